"""Signatures by remote keys: which signer makes them, in which thread, and what follows from a failure."""

from __future__ import annotations

import asyncio
import re
import threading
from functools import partial
from pathlib import Path

import pytest

from goatherd.clock import SystemClock
from goatherd.crypto import PublicKey, fingerprint
from goatherd.errors import (
    ConfigurationError,
    SignerConfigurationError,
    SignerError,
    SignerKeyNotFoundError,
    SignerMisuseError,
)
from goatherd.identity.anchor import AnchorWord
from goatherd.identity.document import decode_document, encode_document
from goatherd.identity.remote_key import RemoteKey
from goatherd.identity.session import ROOT_OWNER, OwnedSession, Session
from goatherd.identity.transitions import create_document
from goatherd.remote_keys import RootSigner, RootSigners, run_remote, sign_aside
from goatherd.signers.local import LocalSigner
from tests.deadlines import HANG
from tests.unit.identity.make import owned

NOW = SystemClock().now_ms()


@pytest.fixture(autouse=True)
def sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOATHERD_SIGNER_SEAL_KEY", bytes(range(32)).hex())


async def new_key(path: Path) -> tuple[str, PublicKey]:
    uri = f"local:{path}"
    signer = LocalSigner.from_uri(uri)
    await signer.create_key()
    return uri, (await signer.public_key()).public_key


def root(key: PublicKey) -> OwnedSession:
    session = Session(id="kms", public_key=key, owner=ROOT_OWNER, expiration_ms=NOW + 1)
    return OwnedSession(session=session, signer=RemoteKey(key))


async def test_a_root_signs_with_the_signer_of_its_key_in_another_thread(tmp_path: Path) -> None:
    uri, key = await new_key(tmp_path / "root.json")
    threads = list[int]()

    async with RootSigners([uri]) as signers:
        signer = signers.connect(root(key))

        def sign() -> bytes:
            threads.append(threading.get_ident())
            return signer.signer.sign(b"text")

        key.verify(await sign_aside(sign, signer), b"text")
    assert threads != [threading.get_ident()]
    local, threads = owned("local"), []
    await sign_aside(lambda: threads.append(threading.get_ident()), local, None)
    assert threads == [threading.get_ident()]
    assert signers.connect(local) is local
    assert signers.find_problem(local) is None


async def test_only_signers_of_the_configuration_are_called_and_the_error_names_the_key(tmp_path: Path) -> None:
    named, key = await new_key(tmp_path / "named.json")
    other, _ = await new_key(tmp_path / "other.json")
    word = AnchorWord(session=root(key).session)
    async with RootSigners([other, named]) as both:
        text = encode_document(create_document(both.connect(root(key)), NOW, word=word))
        current = decode_document(text, both.sign).current
        key.verify(await sign_aside(partial(current.signer.sign, b"text"), current), b"text")
        assert both.find_problem(current) is None
    for uris in ([other], []):
        async with RootSigners(uris) as signers:
            current = decode_document(text, signers.sign).current
            with pytest.raises(SignerConfigurationError, match=re.escape(fingerprint(key))) as refused:
                await sign_aside(partial(current.signer.sign, b"text"), current)
        assert 'signers = ["URI"]' in refused.value.hint
        assert "--root-signer URI" in refused.value.hint
        assert signers.find_problem(current) == SignerConfigurationError.code
    with pytest.raises(SignerMisuseError):
        decode_document(text).current.signer.sign(b"text")


async def test_a_server_reports_which_keys_it_can_use_and_that_one_cannot_be_read(tmp_path: Path) -> None:
    good, key = await new_key(tmp_path / "good.json")
    async with (
        RootSigners([good, f"local:{tmp_path}/missing.json"], clock=SystemClock()) as signers,
        asyncio.timeout(HANG),
    ):
        while [one["problem"] for one in signers.states] != [None, SignerKeyNotFoundError.code]:
            await asyncio.sleep(0.01)
        while signers.states[0]["fingerprint"] is None:
            await asyncio.sleep(0.01)
        assert signers.states[0]["fingerprint"] == fingerprint(key)
        assert signers.states[1]["fingerprint"] is None


async def test_a_uri_that_names_no_signer_is_an_error_at_the_start() -> None:
    with pytest.raises(ConfigurationError):
        async with RootSigners(["local:relative"], clock=SystemClock()):
            pass


async def test_after_a_failure_calls_fail_at_once_and_the_signer_is_asked_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "root.json"
    uri, key = await new_key(path)
    away = path.rename(tmp_path / "away.json")
    signer = RootSigner(uri)
    with pytest.raises(SignerError) as first:
        await run_remote(lambda: signer.sign(b"text"))
    away.rename(path)
    with pytest.raises(SignerError) as second:
        await run_remote(lambda: signer.sign(b"text"))
    assert second.value is first.value
    monkeypatch.setattr(signer, "used_at", 0.0)
    key.verify(await run_remote(lambda: signer.sign(b"text")), b"text")
    assert signer.error is None
    await run_remote(signer.close)
