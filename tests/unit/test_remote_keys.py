"""Signatures by remote keys: which signer makes them, in which thread, and what follows from a failure."""

from __future__ import annotations

import asyncio
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
    SignerWrongKeyError,
)
from goatherd.identity.anchor import AnchorRecord, AnchorWord
from goatherd.identity.document import decode_document, encode_document
from goatherd.identity.remote_key import RemoteKey
from goatherd.identity.session import ROOT_OWNER, OwnedSession, Session
from goatherd.identity.transitions import create_document
from goatherd.named_signers import NamedSigners
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


def root(uri: str, key: PublicKey, signers: NamedSigners | None = None) -> OwnedSession:
    session = Session(id="kms", public_key=key, owner=ROOT_OWNER, expiration_ms=NOW + 1)
    return OwnedSession(session=session, signer=RemoteKey(key, uri, (signers or NamedSigners()).sign))


async def test_a_tool_signs_with_the_signer_that_the_operator_names_and_in_another_thread(tmp_path: Path) -> None:
    uri, key = await new_key(tmp_path / "root.json")
    signers = NamedSigners()
    signer, threads = root(uri, key, signers), list[int]()
    with pytest.raises(SignerConfigurationError, match="only the identity in the store names this signer"):
        await sign_aside(lambda: signer.signer.sign(b"text"), signer)
    signers.accepted.add(uri)

    def sign() -> bytes:
        threads.append(threading.get_ident())
        return signer.signer.sign(b"text")

    key.verify(await sign_aside(sign, signer), b"text")
    assert threads != [threading.get_ident()]
    local, threads = owned("local"), []
    await sign_aside(lambda: threads.append(threading.get_ident()), local, None)
    assert threads == [threading.get_ident()]


async def test_a_signer_that_is_accepted_for_one_cluster_is_refused_for_another(tmp_path: Path) -> None:
    """A program that manages two clusters must not send credentials where only the other one's operator has said so."""
    uri, key = await new_key(tmp_path / "root.json")
    text = to_document_in_direct_mode(uri, key)

    async def has(fingerprint_of_key: str) -> bool:
        return fingerprint_of_key == fingerprint(key)

    named, reported = NamedSigners([uri]), NamedSigners(servers=has)
    for signers in (named, reported):
        current = decode_document(text, signers.sign).current
        key.verify(await sign_aside(partial(current.signer.sign, b"text"), current), b"text")
    for other in (NamedSigners(), NamedSigners([f"{uri}-2"]), NamedSigners(servers=has_none)):
        current = decode_document(text, other.sign).current
        with pytest.raises(SignerConfigurationError, match="only the identity in the store names this signer"):
            await sign_aside(partial(current.signer.sign, b"text"), current)
    with pytest.raises(SignerMisuseError):
        decode_document(text).current.signer.sign(b"text")


async def has_none(_: str) -> bool:
    return False


def to_document_in_direct_mode(uri: str, key: PublicKey) -> bytes:
    current = root(uri, key, NamedSigners([uri]))
    word = AnchorWord(anchor=AnchorRecord(id=current.id, signer=uri), session=current.session)
    return encode_document(create_document(current, NOW, word=word))


async def test_a_server_signs_with_its_own_signer_only(tmp_path: Path) -> None:
    """An attacker who can write the document must not decide where a server's credentials are sent."""
    named, key = await new_key(tmp_path / "named.json")
    other, _ = await new_key(tmp_path / "other.json")
    named_root = root(named, key)
    async with RootSigners([other]) as signers:
        connected = signers.connect(named_root)
        with pytest.raises(SignerConfigurationError, match="not started with the signer"):
            await run_remote(lambda: connected.signer.sign(b"text"))
    async with RootSigners() as none:
        assert none.find_problem(named_root) == SignerConfigurationError.code
        with pytest.raises(SignerConfigurationError):
            await run_remote(lambda: none.connect(named_root).signer.sign(b"text"))
    async with RootSigners([other, named]) as both:
        connected = both.connect(root(f"local:{tmp_path}/elsewhere.json", key))
        key.verify(await run_remote(lambda: connected.signer.sign(b"text")), b"text")
        assert both.find_problem(named_root) is None
    local = owned("local")
    assert signers.connect(local) is local
    assert signers.find_problem(local) is None


async def test_a_server_reports_which_keys_it_can_use_and_that_one_cannot_be_read(tmp_path: Path) -> None:
    good, key = await new_key(tmp_path / "good.json")
    async with RootSigners([good, f"local:{tmp_path}/missing.json"]) as signers, asyncio.timeout(HANG):
        while [one["problem"] for one in signers.states] != [None, SignerKeyNotFoundError.code]:
            await asyncio.sleep(0.01)
        while signers.states[0]["fingerprint"] is None:
            await asyncio.sleep(0.01)
        assert signers.states[0]["fingerprint"] == fingerprint(key)
        assert signers.states[1]["fingerprint"] is None


async def test_a_uri_that_names_no_signer_is_an_error_at_the_start() -> None:
    with pytest.raises(ConfigurationError):
        async with RootSigners(["local:relative"]):
            pass


async def test_no_signature_of_another_key_than_the_pinned_one_is_returned(tmp_path: Path) -> None:
    uri, _ = await new_key(tmp_path / "replaced.json")
    _, pinned = await new_key(tmp_path / "first.json")
    signer = RootSigner(uri, pinned)
    with pytest.raises(SignerWrongKeyError):
        await run_remote(lambda: signer.sign(b"text"))
    await run_remote(signer.close)


async def test_after_a_failure_calls_fail_at_once_and_the_signer_is_asked_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "root.json"
    uri, key = await new_key(path)
    away = path.rename(tmp_path / "away.json")
    signer = RootSigner(uri, key)
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
