"""Run the checks of the signer contract with any signer, from pytest (`SignerContract`) or a program (`SIGNER_CHECKS`).

A check gets a `SignerWorld`, which stands for the platform under test: it opens signers of one key and, if it can,
simulates faults of the platform. A check that needs a fault which cannot be simulated is skipped with the reason, and
does not count as passed. Checks sign through `VerifiedSigner`, as every caller does. Only `SignerContract` imports
pytest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Final

from goatherd.crypto import PrivateKey, PublicKey
from goatherd.errors import (
    SignerAccessDeniedError,
    SignerError,
    SignerInvalidSignatureError,
    SignerKeyDisabledError,
    SignerKeyExistsError,
    SignerKeyNotFoundError,
    SignerMisuseError,
    SignerThrottledError,
    SignerUnavailableError,
    SignerWrongKeyError,
)
from goatherd.providers.base import RetryPolicy
from goatherd.signers.base import KeyCreator, KeyKind, Signer
from goatherd.signers.verified import SigningPolicy, VerifiedSigner
from goatherd.testing.subject import SkippedError, add_tests, checks_in, must

TEXTS: Final = (b"", b"a", b"goatherd" * 12, bytes(range(256)) * 40)
QUICK: Final = SigningPolicy(timeout=timedelta(seconds=20), retry=RetryPolicy(attempts=1), invalid_signatures=0)
"""One attempt, so that a check sees what the plugin raised."""


class SignerWorld:
    """The platform under test, with one usable key. The author of a signer derives a class that overrides its methods.

    If a method is not overridden, the checks that need it are skipped (except for `signer`, which is required). The
    methods that return a context manager simulate a fault of the platform until the context ends.
    """

    def signer(self) -> Signer:
        """Return a new signer for the usable key; each call makes another signer for the same key."""
        raise NotImplementedError("a subclass of SignerWorld must override signer()")

    def administrator(self) -> Signer:
        """Return a signer of the usable key whose credentials may also create keys."""
        return self.signer()

    def missing_key(self) -> Signer:
        """Return a signer of a key that does not exist."""
        raise SkippedError("this test environment names no key that does not exist")

    def disabled(self) -> AbstractContextManager[Signer]:
        """Disable a key, and yield a signer for this key."""
        raise SkippedError("this test environment cannot disable a key")

    def denied(self) -> AbstractContextManager[Signer]:
        """Yield a signer whose credentials do not permit the use of its key."""
        raise SkippedError("this test environment cannot deny access to a key")

    def throttled(self) -> AbstractContextManager[float | None]:
        """Make the platform reject requests as too frequent.

        Yields the delay in seconds for which its answers ask; None if they state none.
        """
        raise SkippedError("this test environment cannot make the platform reject requests as too frequent")

    def unavailable(self) -> AbstractContextManager[Signer | None]:
        """Make the platform unreachable.

        Yields the signer that the check must use meanwhile; None to use one from `signer`.
        """
        raise SkippedError("this test environment cannot make the platform unreachable")

    def slow(self) -> AbstractContextManager[Signer | None]:
        """Make the platform answer only after a minute, or never.

        Yields the signer that the check must use meanwhile; None to use one from `signer`.
        """
        raise SkippedError("this test environment cannot make the platform slow")

    def cut(self) -> AbstractContextManager[Signer | None]:
        """Make the platform's answers end half-way.

        Yields the signer that the check must use meanwhile; None to use one from `signer`.
        """
        raise SkippedError("this test environment cannot cut an answer short")

    def wrong_signature(self) -> AbstractContextManager[Signer | None]:
        """Make the platform return well-formed signatures that do not match the text.

        Yields the signer that the check must use meanwhile; None to use one from `signer`.
        """
        return _Lying(self.signer)


class _Lying:
    """The default of `SignerWorld.wrong_signature`: makes a signer that signs another text than it was given."""

    def __init__(self, make: Callable[[], Signer]) -> None:
        self._make = make

    def __enter__(self) -> Signer:
        signer = self._make()
        honest = signer.sign

        async def sign(text: bytes) -> bytes:
            return await honest(text + b"!")

        signer.sign = sign  # type: ignore[method-assign]
        return signer

    def __exit__(self, *_: object) -> None:
        return None


SignerCheck = Callable[[SignerWorld], Awaitable[None]]


async def _raises(kind: type[SignerError], doing: Awaitable[object], signer: VerifiedSigner) -> SignerError:
    """Await a call that must raise an error of exactly the class `kind`; return the error.

    The error must also name the signer and its key.
    """
    try:
        await doing
    except SignerError as error:
        must(type(error) is kind, f"{kind.__name__} was expected, but {type(error).__name__} was raised: {error}")
        must(error.signer == signer.scheme, f"the error does not name the signer: {error}")
        must(signer.name in str(error), f"the error does not name the key: {error}")
        return error
    except Exception as error:
        raise AssertionError(f"{kind.__name__} was expected, but {type(error).__name__} was raised") from error
    raise AssertionError(f"{kind.__name__} was expected, but nothing was raised")


def _quick(signer: Signer, *, pinned: PublicKey | None = None, timeout: float = 20.0) -> VerifiedSigner:
    policy = SigningPolicy(timeout=timedelta(seconds=timeout), retry=QUICK.retry, invalid_signatures=0)
    return VerifiedSigner(signer, pinned=pinned, policy=policy)


async def _key_of(world: SignerWorld) -> PublicKey:
    async with _quick(world.signer()) as signer:
        return (await signer.public_key()).public_key


async def a_signature_is_right(world: SignerWorld) -> None:
    """Signatures over texts of several lengths match the public key, and have the raw form."""
    async with _quick(world.signer()) as signer:
        key = await signer.check_key()
        must(key.kind is KeyKind.ECDSA_P384, f"the kind is {key.kind}")
        for text in TEXTS:
            signature = await signer.sign(text)
            must(len(signature) == 96, f"a raw signature has 96 bytes, this one {len(signature)}")
            key.public_key.verify(signature, text)


async def two_signers_of_one_key_have_one_public_key(world: SignerWorld) -> None:
    """Two signers that were opened for the same key report the same public key."""
    must(await _key_of(world) == await _key_of(world), "two signers report different public keys")


async def another_pinned_key_is_reported(world: SignerWorld) -> None:
    """A signer whose key is not the pinned one signs nothing."""
    async with _quick(world.signer(), pinned=PrivateKey.generate().public_key) as signer:
        await _raises(SignerWrongKeyError, signer.check_key(), signer)
        await _raises(SignerWrongKeyError, signer.sign(b"text"), signer)


async def a_missing_key_is_not_found_and_not_created(world: SignerWorld) -> None:
    """A key that does not exist is reported as such; neither reading its public key nor signing creates it."""
    async with _quick(world.missing_key()) as signer:
        for _ in range(2):
            await _raises(SignerKeyNotFoundError, signer.check_key(), signer)
        pinned = _quick(world.missing_key(), pinned=await _key_of(world))
        async with pinned:
            await _raises(SignerKeyNotFoundError, pinned.sign(b"text"), pinned)


async def a_disabled_key_does_not_sign(world: SignerWorld) -> None:
    """A disabled key is reported as disabled, and not as missing or as a missing right."""
    pinned = await _key_of(world)
    with world.disabled() as plugin:
        async with _quick(plugin, pinned=pinned) as signer:
            await _raises(SignerKeyDisabledError, signer.sign(b"text"), signer)


async def denied_access_is_reported(world: SignerWorld) -> None:
    """A missing right is final: it is not retried and not taken for a missing key."""
    pinned = await _key_of(world)
    with world.denied() as plugin:
        async with _quick(plugin, pinned=pinned) as signer:
            error = await _raises(SignerAccessDeniedError, signer.sign(b"text"), signer)
            must(not error.retryable, "a missing right is reported as retryable")


async def throttling_is_reported_with_its_hint(world: SignerWorld) -> None:
    """If the platform limits the rate, the error is retryable, and names the delay for which the platform asks."""
    pinned = await _key_of(world)
    with world.throttled() as wanted:
        async with _quick(world.signer(), pinned=pinned) as signer:
            error = await _raises(SignerThrottledError, signer.sign(b"text"), signer)
            must(error.retryable, "throttling is not reported as retryable")
            seconds = getattr(error, "retry_after", None)
            # The delay may count down while the request is on its way.
            is_right = seconds == wanted if seconds is None or wanted is None else wanted - 2 <= seconds <= wanted
            must(is_right, f"the platform asks for {wanted} s, the error says {seconds} s")


async def an_unreachable_platform_is_unavailable_and_recovers(world: SignerWorld) -> None:
    """An unreachable platform is reported as unavailable; once it answers again, the same signer signs again."""
    pinned = await _key_of(world)
    plugin = world.signer()
    async with _quick(plugin, pinned=pinned) as signer:
        await signer.sign(b"before")
        with world.unavailable() as other:
            if other is None:
                await _raises(SignerUnavailableError, signer.sign(b"text"), signer)
            else:
                async with _quick(other, pinned=pinned) as unreachable:
                    await _raises(SignerUnavailableError, unreachable.sign(b"text"), unreachable)
        patient = VerifiedSigner(plugin, pinned=pinned)
        pinned.verify(await patient.sign(b"after"), b"after")


async def a_slow_platform_ends_with_the_deadline(world: SignerWorld) -> None:
    """If the platform answers too slowly, the call ends at its deadline, and is reported as unavailable."""
    pinned = await _key_of(world)
    with world.slow() as plugin:
        async with _quick(plugin or world.signer(), pinned=pinned, timeout=0.3) as signer:
            await _raises(SignerUnavailableError, signer.sign(b"text"), signer)


async def a_cut_answer_is_no_signature(world: SignerWorld) -> None:
    """An answer that ends half-way is reported as unavailable; it is never taken for a signature or a missing key."""
    pinned = await _key_of(world)
    with world.cut() as plugin:
        async with _quick(plugin or world.signer(), pinned=pinned) as signer:
            await _raises(SignerUnavailableError, signer.sign(b"text"), signer)


async def a_wrong_signature_is_never_returned(world: SignerWorld) -> None:
    """A well-formed signature over another text than the given one raises an error, and is counted."""
    pinned = await _key_of(world)
    with world.wrong_signature() as plugin:
        async with _quick(plugin or world.signer(), pinned=pinned) as signer:
            await _raises(SignerInvalidSignatureError, signer.sign(b"text"), signer)
            must(signer.call_counts.invalid_signatures == 1, "the invalid signature is not counted")


async def many_signatures_at_once_are_right(world: SignerWorld) -> None:
    """If many callers sign at the same time, each one gets a signature over its own text."""
    async with _quick(world.signer()) as signer:
        key = (await signer.public_key()).public_key
        texts = [f"text {number}".encode() for number in range(24)]
        for text, signature in zip(texts, await asyncio.gather(*map(signer.sign, texts)), strict=True):
            key.verify(signature, text)


async def a_cancelled_call_leaves_the_signer_usable(world: SignerWorld) -> None:
    """A caller that is cancelled at any moment does not disturb the next call."""
    async with _quick(world.signer()) as signer:
        key = (await signer.public_key()).public_key
        for yields in range(6):
            task = asyncio.ensure_future(signer.sign(b"cancelled"))
            for _ in range(yields):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
        key.verify(await signer.sign(b"next"), b"next")


async def a_closed_signer_rejects_calls(world: SignerWorld) -> None:
    """A signer may be closed twice; a later call raises `SignerMisuseError`."""
    signer = _quick(world.signer())
    await signer.public_key()
    await signer.aclose()
    await signer.aclose()
    await _raises(SignerMisuseError, signer.sign(b"text"), signer)


async def creating_twice_is_refused(world: SignerWorld) -> None:
    """A key that exists is not replaced by creating it again."""
    plugin = world.administrator()
    if not isinstance(plugin, KeyCreator):
        await plugin.aclose()
        raise SkippedError(f"signers of the scheme {plugin.scheme} cannot create keys")
    before = await _key_of(world)
    async with VerifiedSigner(plugin) as signer:
        await _raises(SignerKeyExistsError, signer.create_key(), signer)
    must(await _key_of(world) == before, "creating the key again has replaced it")


SIGNER_CHECKS: Final[tuple[SignerCheck, ...]] = checks_in(globals(), argument="world")


class SignerContract:
    """The checks as pytest tests: derive a class named Test… and override `world`.

    ::

        class TestMySigner(SignerContract):
            def world(self) -> SignerWorld:
                return MyWorld(self.server)
    """

    def world(self) -> SignerWorld:
        """Return the platform under test."""
        raise NotImplementedError("a subclass of SignerContract must override world()")

    def run(self, check: SignerCheck) -> None:
        """Run one check of the signer contract in a new event loop; raise its failure."""

        async def run() -> None:
            await check(self.world())

        asyncio.run(run())


add_tests(SignerContract, SIGNER_CHECKS)
