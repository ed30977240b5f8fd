"""The PKCS#11 signer keeps the contract, over SoftHSM2; log-ins after a fork and a reset; no key that can be copied."""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from goatherd.errors import (
    SignerAccessDeniedError,
    SignerConfigurationError,
    SignerError,
    SignerKeyDisabledError,
    SignerKeyNotFoundError,
    SignerUnavailableError,
    UnsupportedKeyError,
)
from goatherd.signers import KeyCreator, Signer, VerifiedSigner
from goatherd.testing.signer_checks import SignerContract, SignerWorld
from tests.deadlines import HANG
from tests.fakes.softhsm import PIN, WHY_SKIPPED, SoftToken, find_softhsm

pkcs11 = pytest.importorskip("pkcs11", reason="NO PYTHON-PKCS11, SO THE PKCS#11 SIGNER IS NOT TESTED: make .venv/.dev")
from goatherd.signers.pkcs11.address import parse_uri  # noqa: E402
from goatherd.signers.pkcs11.library import Library  # noqa: E402
from goatherd.signers.pkcs11.signer import PKCS11Signer  # noqa: E402 - after the check that it can be imported

MODULE = find_softhsm()
pytestmark = pytest.mark.skipif(MODULE is None, reason=WHY_SKIPPED)
ENVIRONMENT = {"GOATHERD_PKCS11_PIN": PIN, "GOATHERD_PKCS11_MODULE": MODULE or ""}


def opened(name: str, pin: str = PIN, *, token: str = "goatdb") -> PKCS11Signer:
    environment = {**ENVIRONMENT, "GOATHERD_PKCS11_PIN": pin}
    return PKCS11Signer(
        parse_uri(f"pkcs11:token={token};object={name}", environment=environment), environment=environment
    )


@pytest.fixture(scope="module", autouse=True)
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftToken]:
    assert MODULE is not None
    with SoftToken(tmp_path_factory.mktemp("softhsm")) as running:
        for label in ("goatdb", "other"):
            running.make_token(label)

        async def make() -> None:
            async with opened("anchor") as plugin:
                await plugin.create_key()

        asyncio.run(make())
        yield running


@contextmanager
def own_session() -> Iterator[Any]:
    """A session of the test's own, beside those of the signers."""
    token = pkcs11.lib(MODULE).get_token(token_label="other")
    with token.open(rw=True, user_pin=PIN) as session:
        yield session


def generate(session: Any, label: str, curve: str = "secp384r1", **attributes: bool) -> None:
    from pkcs11.util.ec import encode_named_curve_parameters

    parameters = session.create_domain_parameters(
        pkcs11.KeyType.EC, {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters(curve)}, local=True
    )
    template = {getattr(pkcs11.Attribute, name): value for name, value in attributes.items()}
    parameters.generate_keypair(store=True, label=label, private_template=template)


class TokenWorld(SignerWorld):
    """The key in the token; faults that software does not have are raised by the library's session."""

    def signer(self) -> Signer:
        return opened("anchor")

    def missing_key(self) -> Signer:
        return opened("missing")

    @contextmanager
    def disabled(self) -> Iterator[Signer]:
        with own_session() as session:
            generate(session, "verify-only", SIGN=False, EXTRACTABLE=False)
        yield opened("verify-only", token="other")

    @contextmanager
    def denied(self) -> Iterator[Signer]:
        yield opened("anchor", "wrong-pin")

    @contextmanager
    def unavailable(self) -> Iterator[Signer | None]:
        def removed(session: Any, digest: bytes) -> bytes:
            raise pkcs11.exceptions.DeviceRemoved

        yield troubled(removed)

    @contextmanager
    def slow(self) -> Iterator[Signer | None]:
        over = threading.Event()

        def wait(session: Any, digest: bytes) -> bytes:
            over.wait(HANG)
            return b""

        yield troubled(wait)
        over.set()

    @contextmanager
    def cut(self) -> Iterator[Signer | None]:
        yield troubled(lambda session, digest: bytes(40))


def troubled(sign: Callable[[Any, bytes], bytes]) -> PKCS11Signer:
    plugin = opened("anchor")
    plugin._sign_digest = sign  # type: ignore[method-assign]
    return plugin


class TestTokenContract(SignerContract):
    def world(self) -> SignerWorld:
        return TokenWorld()


async def test_a_new_key_never_leaves_the_token() -> None:
    async with opened("made-here") as plugin:
        assert isinstance(plugin, KeyCreator)
        await plugin.create_key()
        await plugin.public_key()
        assert plugin._key is not None
        private = plugin._key[1]
        library = Library.at(MODULE or "")
        assert not await library.run(lambda: private[pkcs11.Attribute.EXTRACTABLE])
        with pytest.raises(pkcs11.exceptions.AttributeSensitive):
            await library.run(lambda: private[pkcs11.Attribute.VALUE])


async def test_a_key_that_can_leave_the_token_is_refused() -> None:
    with own_session() as session:
        generate(session, "loose", EXTRACTABLE=True, SENSITIVE=False)
    async with VerifiedSigner(opened("loose", token="other")) as signer:
        with pytest.raises(SignerConfigurationError, match="the key can leave the token"):
            await signer.check_key()


async def test_other_kinds_of_keys_are_refused_and_two_keys_of_one_label_are_a_mistake() -> None:
    with own_session() as session:
        generate(session, "p256", "secp256r1", EXTRACTABLE=False)
        generate(session, "twice", EXTRACTABLE=False)
        generate(session, "twice", EXTRACTABLE=False)
        session.generate_keypair(pkcs11.KeyType.RSA, 2048, store=True, label="rsa")
    for label, kind, message in (
        ("p256", UnsupportedKeyError, "the key's curve must be P-384"),
        ("rsa", UnsupportedKeyError, "the key's type must be EC; it is RSA"),
        ("twice", SignerConfigurationError, "the token has 2 private keys with the label or id in the URI"),
    ):
        async with VerifiedSigner(opened(label, token="other")) as signer:
            with pytest.raises(kind, match=message):
                await signer.check_key()


async def test_a_wrong_pin_is_sent_once_so_that_the_token_is_not_locked() -> None:
    signer = VerifiedSigner(opened("anchor", "another-wrong-pin"))
    with pytest.raises(SignerAccessDeniedError, match="the token refuses the PIN") as caught:
        await signer.check_key()
    assert "another-wrong-pin" not in f"{caught.value} {caught.value.hint} {caught.value.__cause__!r}"
    for _ in range(20):
        with pytest.raises(SignerAccessDeniedError, match="was not tried again"):
            await signer.check_key()
    async with VerifiedSigner(opened("anchor")) as right:
        await right.sign(b"text")


async def test_a_missing_pin_library_or_token_is_named() -> None:
    for environment, uri, kind, message in (
        ({}, "pkcs11:object=anchor", SignerConfigurationError, "no PKCS#11 library is named"),
        ({"GOATHERD_PKCS11_MODULE": MODULE or ""}, "pkcs11:object=a", SignerConfigurationError, "is not set"),
        (
            ENVIRONMENT,
            "pkcs11:token=none;object=anchor",
            SignerKeyNotFoundError,
            "the library has no token that the URI names",
        ),
        (ENVIRONMENT, "pkcs11:object=anchor", SignerKeyNotFoundError, "more than one token that the URI names"),
        (ENVIRONMENT, "pkcs11:object=a?module-path=/no/such.so", SignerConfigurationError, "cannot be loaded"),
    ):
        signer = VerifiedSigner(PKCS11Signer(parse_uri(uri, environment=environment), environment=environment))
        with pytest.raises(kind, match=message):
            await signer.check_key()


async def test_signers_of_a_token_share_one_log_in_until_the_last_is_closed() -> None:
    library = Library.at(MODULE or "")
    before = library.opened
    first, second = VerifiedSigner(opened("anchor")), VerifiedSigner(opened("anchor"))
    await first.sign(b"text")
    await second.sign(b"text")
    assert library.opened == before + 1
    await first.aclose()
    await second.sign(b"text")
    assert library.opened == before + 1
    await second.aclose()
    assert library._sessions == {}


async def test_uris_that_name_one_token_by_label_and_by_serial_number_share_one_log_in() -> None:
    library = Library.at(MODULE or "")
    serial = pkcs11.lib(MODULE).get_token(token_label="goatdb").serial.decode()
    uri = f"pkcs11:serial={serial};object=anchor"
    async with (
        VerifiedSigner(opened("anchor")) as by_label,
        VerifiedSigner(PKCS11Signer(parse_uri(uri, environment=ENVIRONMENT), environment=ENVIRONMENT)) as by_serial,
    ):
        before = library.opened
        key = (await by_label.check_key()).public_key
        key.verify(await by_serial.sign(b"text"), b"text")
        assert library.opened == before + 1
    assert library._sessions == {}


async def test_a_token_to_which_another_part_of_the_process_has_logged_in_is_used_and_stays_logged_in() -> None:
    async with VerifiedSigner(opened("anchor")) as signer:
        await signer.sign(b"the token has accepted the PIN")
    with pkcs11.lib(MODULE).get_token(token_label="goatdb").open(rw=True, user_pin=PIN) as session:
        async with VerifiedSigner(opened("anchor")) as signer:
            await signer.sign(b"text")
        assert list(session.get_objects({pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY}))


async def test_a_token_that_another_part_of_the_process_has_logged_out_is_logged_in_again() -> None:
    library = Library.at(MODULE or "")
    async with VerifiedSigner(opened("anchor")) as signer:
        await signer.sign(b"before")
        (held,) = library._sessions.values()
        log_out = ctypes.CDLL(MODULE).C_Logout
        assert await library.run(lambda: log_out(ctypes.c_ulong(held.session.handle))) == 0
        await signer.sign(b"after")
        assert held not in library._sessions.values()
    assert library._sessions == {}


async def test_a_token_that_was_reset_is_logged_in_again() -> None:
    library = Library.at(MODULE or "")
    async with VerifiedSigner(opened("anchor")) as signer:
        await signer.sign(b"before")
        opened_before = library.opened
        await library.run(lambda: library._library.reinitialize())  # every session is gone, as after a removal
        await signer.sign(b"after")
        assert library.opened == opened_before + 1


async def test_a_child_of_a_fork_logs_in_again_and_the_parent_stays_logged_in() -> None:
    async with VerifiedSigner(opened("anchor")) as signer:
        pinned = (await signer.check_key()).public_key
        child = os.fork()
        if child == 0:
            status = 1
            try:
                plugin = signer.plugin

                async def sign() -> bytes:
                    return await VerifiedSigner(plugin, pinned=pinned).sign(b"of the child")

                with_own_loop = threading.Thread(target=lambda: results.append(asyncio.run(sign())))
                results: list[bytes] = []
                with_own_loop.start()
                with_own_loop.join(HANG)
                pinned.verify(results[0], b"of the child")
                status = 0
            finally:
                os._exit(status)
        done = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(done[1]) == 0
        pinned.verify(await signer.sign(b"of the parent"), b"of the parent")


async def test_what_the_library_raises_is_translated() -> None:
    for raised, kind, message in (
        (pkcs11.exceptions.PinLocked(), SignerAccessDeniedError, "has locked the PIN"),
        (pkcs11.exceptions.DeviceMemory(), SignerUnavailableError, "the token failed: DeviceMemory"),
        (pkcs11.exceptions.MechanismInvalid(), SignerConfigurationError, "cannot sign with ECDSA"),
        (AttributeError("PIN"), SignerError, "the token's library failed with AttributeError"),
    ):

        def fail(session: Any, digest: bytes, error: Exception = raised) -> bytes:
            raise error

        async with troubled(fail) as plugin:
            with pytest.raises(kind, match=message):
                await plugin.sign(b"text")


async def test_a_key_that_may_not_sign_is_disabled() -> None:
    with own_session() as session:
        generate(session, "may-not-sign", SIGN=False, EXTRACTABLE=False)
    async with opened("may-not-sign", token="other") as plugin:
        with pytest.raises(SignerKeyDisabledError, match="CKA_SIGN is false"):
            await plugin.public_key()
