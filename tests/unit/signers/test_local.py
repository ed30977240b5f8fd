"""The signer in a file: the contract, and what its file contains and hides."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from goatherd.crypto import PrivateKey
from goatherd.errors import (
    ConfigurationError,
    SignerAccessDeniedError,
    SignerConfigurationError,
    SignerError,
    SignerKeyExistsError,
    SignerKeyNotFoundError,
    SignerThrottledError,
    SignerUnavailableError,
)
from goatherd.signers.base import KeyCreator, Signer
from goatherd.signers.local import LocalSigner, SealSource, parse_uri, policy
from goatherd.testing.signer_checks import SignerContract, SignerWorld

ENVIRON = {"SEAL": base64.b64encode(secrets.token_bytes(32)).decode()}
SEAL = SealSource.from_text("env:SEAL")


class LocalWorld(SignerWorld):
    """Keys in a directory; faults that a file does not have are raised by a signer that stands in for it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._trouble: SignerError | None = None

    def signer(self) -> Signer:
        return self._named("key.json")

    def missing_key(self) -> Signer:
        return self._named("missing.json")

    @contextmanager
    def disabled(self) -> Iterator[Signer]:
        other = self._named("key.json")
        path = self._directory / "key.json"
        before = path.read_bytes()
        head = json.loads(before)
        assert head["disabled"] is False
        path.write_text(json.dumps({**head, "disabled": True}))
        yield other
        path.write_bytes(before)

    @contextmanager
    def denied(self) -> Iterator[Signer]:
        environ = {"SEAL": base64.b64encode(secrets.token_bytes(32)).decode()}
        yield LocalSigner(self._directory / "key.json", SEAL, environ=environ)

    @contextmanager
    def throttled(self) -> Iterator[float | None]:
        signer = self._named("key.json")
        self._trouble = signer.error(SignerThrottledError, "sign", "scripted", retry_after=7)
        yield 7
        self._trouble = None

    @contextmanager
    def unavailable(self) -> Iterator[Signer | None]:
        path = self._directory / "key.json"
        before = path.read_bytes()
        path.write_bytes(before[: len(before) // 2])
        yield None
        path.write_bytes(before)

    @contextmanager
    def slow(self) -> Iterator[Signer | None]:
        signer = self._named("key.json")

        async def wait(text: bytes) -> bytes:
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

        signer.sign = wait  # type: ignore[method-assign]
        yield signer

    @contextmanager
    def cut(self) -> Iterator[Signer | None]:
        with self.unavailable() as other:
            yield other

    def _named(self, name: str) -> LocalSigner:
        return _Troubled(self._directory / name, SEAL, self)


class _Troubled(LocalSigner):
    def __init__(self, path: Path, source: SealSource, world: LocalWorld) -> None:
        super().__init__(path, source, environ=ENVIRON)
        self._world = world

    async def sign(self, text: bytes) -> bytes:
        await asyncio.sleep(0)
        if self._world._trouble is not None:
            raise self._world._trouble
        return await super().sign(text)


@pytest.fixture(autouse=True)
def directory(tmp_path: Path) -> Path:
    asyncio.run(LocalSigner(tmp_path / "key.json", SEAL, environ=ENVIRON).create_key())
    return tmp_path


class TestLocalContract(SignerContract):
    @pytest.fixture(autouse=True)
    def _place(self, directory: Path) -> None:
        self._directory = directory

    def world(self) -> SignerWorld:
        return LocalWorld(self._directory)


def test_the_file_does_not_hold_the_key_in_the_clear(directory: Path) -> None:
    signer = LocalSigner(directory / "key.json", SEAL, environ=ENVIRON)
    raw = (directory / "key.json").read_bytes()
    key = signer._unseal_key(json.loads(raw))
    assert isinstance(key, PrivateKey)
    assert key.to_jwk()["d"].encode() not in raw
    assert (directory / "key.json").stat().st_mode & 0o777 == 0o600
    assert "PrivateKey(…)" in repr([key])


async def test_a_file_that_exists_is_not_replaced_by_a_new_key(directory: Path) -> None:
    signer = LocalSigner(directory / "key.json", SEAL, environ=ENVIRON)
    assert isinstance(signer, KeyCreator)
    with pytest.raises(SignerKeyExistsError):
        await signer.create_key()


async def test_a_change_of_the_file_by_another_tool_is_found(directory: Path) -> None:
    path = directory / "key.json"
    content = json.loads(path.read_text())
    other = PrivateKey.generate().public_key.to_jwk()
    for change, kind in (
        ({"publicKey": other}, SignerAccessDeniedError),
        ({"sealed": ""}, SignerAccessDeniedError),
        ({"publicKey": {}}, SignerAccessDeniedError),
        ({"format": "another"}, SignerConfigurationError),
        ({"more": 1}, SignerUnavailableError),
    ):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(kind):
            await LocalSigner(path, SEAL, environ=ENVIRON).sign(b"text")
    path.write_text("[" * 100_000)
    with pytest.raises(SignerUnavailableError):
        await LocalSigner(path, SEAL, environ=ENVIRON).sign(b"text")
    path.unlink()
    with pytest.raises(SignerKeyNotFoundError):
        await LocalSigner(path, SEAL, environ=ENVIRON).sign(b"text")
    assert not path.exists()


@pytest.mark.parametrize(
    "uri", ["local:", "local:key", "local://host/key", "local:/keys/", "local:/key?pin=1", "local:/key#x", "file:/key"]
)
def test_an_address_that_is_not_one_is_refused(uri: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_uri(uri)


def test_an_address_names_the_file_and_the_place_of_the_sealing_key() -> None:
    assert parse_uri("local:/keys/a%20b.json?seal-key=file:/run/seal") == (
        Path("/keys/a b.json"),
        SealSource("file", "/run/seal"),
    )
    assert parse_uri("local:///keys/a.json") == (Path("/keys/a.json"), SealSource("env", "GOATHERD_SIGNER_SEAL_KEY"))


def test_the_policy_is_for_one_user_and_two_files() -> None:
    assert policy("signer", "local:/keys/a.json?seal-key=file:/run/seal").splitlines()[1:] == [
        "chown USER /keys/a.json && chmod 0600 /keys/a.json",
        "chown USER /run/seal && chmod 0600 /run/seal",
    ]
    with pytest.raises(ConfigurationError, match="no role 'server'"):
        policy("server", "local:/keys/a.json")
