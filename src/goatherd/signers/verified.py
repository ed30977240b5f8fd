"""Open a signer, and verify each of its signatures before it is used.

All signatures are made by a `VerifiedSigner`: it adds the check of the signature, a deadline, retries and counts to the
one attempt that a plugin makes. Hardware and cloud services have returned invalid signatures, so a signature is used
only after this machine has verified it against the pinned public key.

Rules:
- Only this module retries: after `SignerThrottledError` and `SignerUnavailableError`, with jittered backoff, within one
  deadline for the whole call. After an invalid signature it tries again as often as `SigningPolicy` allows; each
  invalid signature is counted and logged, even if a later attempt succeeds.
- A key is created by one attempt of the plugin. Then this module reads it repeatedly, until the platform has it ready.
- Only `goatherd.errors` are raised.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final, Self, TypeVar

from goatherd.clock import Clock, SystemClock
from goatherd.crypto import PublicKey
from goatherd.errors import (
    GoatherdError,
    InvalidSignatureError,
    SignerAccessDeniedError,
    SignerConfigurationError,
    SignerError,
    SignerInvalidSignatureError,
    SignerKeyNotFoundError,
    SignerMisuseError,
    SignerThrottledError,
    SignerUnavailableError,
    SignerWrongKeyError,
)
from goatherd.plugins import open_signer_plugin
from goatherd.providers.base import RetryPolicy, describe_crash
from goatherd.providers.call_metrics import CallCounts
from goatherd.signers.base import KeyCreator, KeyKind, Signer, SignerFacts, SignerKey
from goatherd.telemetry import Event, event_text
from goatherd.times import format_duration

Result = TypeVar("Result")

READY_POLL: Final = timedelta(seconds=2)
"""The pause between two reads of a new key that is not ready yet."""
_MAY_NOT_CREATE: Final = (
    "The role signer may not create a key. Grant what --create-key needs, which the page of each signer states"
    " (reference page: Signers). Or create the key with the platform's own tool, and leave out --create-key."
)

_LOG: Final = logging.getLogger("goatherd.signers")


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningPolicy:
    """How long and how often a call of a signer is tried.

    Attributes:
        timeout: The longest time for one call, retries included.
        retry: How often and how fast to retry after a throttled or unanswered attempt.
        invalid_signatures: After how many invalid signatures in one call another attempt follows. With the default 1,
            the second invalid signature ends the call.
    """

    timeout: timedelta = timedelta(seconds=15)
    retry: RetryPolicy = RetryPolicy()  # noqa: RUF009 - immutable
    invalid_signatures: int = 1


class SignerCounts(CallCounts):
    """Counts of one signer's calls, and of the invalid signatures that the signer has returned."""

    def __init__(self, scheme: str) -> None:
        super().__init__(scheme, SignerError)
        self.invalid_signatures = 0


def open_signer(
    uri: str, *, pinned: PublicKey | None = None, policy: SigningPolicy | None = None, clock: Clock | None = None
) -> VerifiedSigner:
    """Return the signer that `uri` names; close it with `aclose`, or use it in ``async with``. Opens no connection yet.

    Args:
        uri: URI of the signer, such as ``awskms://eu-west-1/alias/goatdb-anchor`` or
            ``pkcs11:token=goatdb;object=anchor``.
        pinned: The public key that every signature must match. Without it, the key that the signer reports at the first
            call is pinned.
        policy: The deadline and the retries of each call; None for the defaults.
        clock: Measures calls, and waits between attempts.

    Raises:
        ConfigurationError: The string is not the URI of a signer, or the plugin rejects it.
        PluginNotFoundError: No plugin is for the URI's scheme; the message lists the schemes that have one.
        MissingExtraError: The plugin's libraries are not installed; the hint is the install command.
    """
    return VerifiedSigner(open_signer_plugin(uri), uri=uri, pinned=pinned, policy=policy, clock=clock)


class VerifiedSigner:
    """A signer that verifies each signature on this machine before it returns it. `open_signer` makes it.

    Every method may raise a `SignerError`; see `goatherd.errors`.

    Attributes:
        plugin: The platform's signer, which may be a `KeyCreator`. A signature that it makes is not verified.
        uri: The URI by which the signer was opened; None if it was not opened by a URI.
        call_counts: The number of calls, their outcomes, and the invalid signatures.
    """

    def __init__(
        self,
        plugin: Signer,
        *,
        uri: str | None = None,
        pinned: PublicKey | None = None,
        policy: SigningPolicy | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.plugin = plugin
        self.uri = uri
        self.call_counts = SignerCounts(plugin.scheme)
        self._pinned = pinned
        self._policy = policy or SigningPolicy()
        self._clock: Clock = clock or SystemClock()
        self._is_closed = False
        self._is_lent = False

    @property
    def scheme(self) -> str:
        """The scheme of the signer's URI, such as ``awskms``."""
        return self.plugin.scheme

    @property
    def name(self) -> str:
        """The key's name on its platform."""
        return self.plugin.name

    @property
    def facts(self) -> SignerFacts:
        """What the signer declares about itself, such as whether its key can be exported."""
        return self.plugin.facts

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def lend(self) -> VerifiedSigner:
        """Return a second `VerifiedSigner` for the same key, whose owner can close it without effect on this one.

        Raises:
            SignerMisuseError: This signer is closed.
        """
        self._check_open("sign")
        lent = VerifiedSigner(self.plugin, uri=self.uri, pinned=self._pinned, policy=self._policy, clock=self._clock)
        lent.call_counts = self.call_counts
        lent._is_lent = True
        return lent

    async def aclose(self) -> None:
        """Close the signer's connections, sessions and threads. Later calls are rejected. May be called twice."""
        self._is_closed = True
        if not self._is_lent:
            await self.plugin.aclose()

    async def public_key(self) -> SignerKey:
        """Return the pinned public key. Asks the signer only if no key is pinned yet.

        Raises:
            UnsupportedKeyError: The signer's key is of a kind that GoatDB does not support.
        """
        if self._pinned is None:
            key = (await self._run_call("public_key", self._read_key)).public_key
            if self._pinned is None:
                self._pinned = key
        return SignerKey(kind=KeyKind.ECDSA_P384, public_key=self._pinned)

    async def check_key(self) -> SignerKey:
        """Ask the signer for its public key, compare it with the pinned one, and return it.

        Raises:
            SignerWrongKeyError: The signer has another key.
        """
        return await self._check_key(self._policy)

    async def create_key(self, on_wait: Callable[[timedelta], None] | None = None) -> SignerKey:
        """Create the key that the signer's URI names, wait until the platform reports its public key, and return that.

        Some platforms generate a key after they have answered, or need a while until all of their servers know it.

        Args:
            on_wait: Called once, with the longest duration of the wait, if the key is not ready at once.

        Raises:
            SignerKeyExistsError: The key exists; nothing was changed.
            SignerMisuseError: The signer's plugin cannot create keys.
            SignerError: The key was not created; or it was created but cannot be read, as the message then says.
        """
        plugin = self.plugin
        if not isinstance(plugin, KeyCreator):
            raise plugin.error(
                SignerMisuseError, "create_key", "this signer cannot create keys", hint="Create the key yourself."
            )
        self._check_open("create_key")
        with self.call_counts.count_call("create_key", self._clock.monotonic):
            try:
                await self._run_guarded("create_key", plugin.create_key)
            except SignerAccessDeniedError as error:
                if error.hint == SignerAccessDeniedError.hint:
                    error.hint = _MAY_NOT_CREATE
                raise
        return await self._wait_for_key(on_wait)

    async def _wait_for_key(self, on_wait: Callable[[timedelta], None] | None) -> SignerKey:
        longest = self.facts.ready_within
        until = self._clock.monotonic() + longest.total_seconds()
        once = replace(self._policy, retry=RetryPolicy(attempts=1))
        while True:
            try:
                return await self._check_key(once)
            except (SignerKeyNotFoundError, SignerThrottledError, SignerUnavailableError) as error:
                pause = max(READY_POLL, _requested_pause(error, longest))
                if self._clock.monotonic() + pause.total_seconds() > until:
                    raise self._unready(
                        error,
                        f"the key was created, but is not ready after {format_duration(longest)}",
                        "The key exists: wait, then run the command again without --create-key.",
                    ) from error
            except SignerError as error:
                raise self._unready(
                    error,
                    "the key was created, but cannot be read",
                    f"{error.hint} The key exists, so leave out --create-key then.",
                ) from error
            if on_wait is not None:
                on_wait(longest)
                on_wait = None
            await self._clock.sleep(pause)

    def _unready(self, error: SignerError, what: str, hint: str) -> SignerError:
        reason = str(error).partition(f"{error.key!r}: ")[2] or str(error)
        return self.plugin.error(type(error), "public_key", f"{what}: {reason}", hint=hint)

    async def _check_key(self, policy: SigningPolicy) -> SignerKey:
        found = await self._run_call("public_key", self._read_key, policy)
        if self._pinned is None:
            self._pinned = found.public_key
        elif found.public_key != self._pinned:
            raise self._wrong_key("public_key")
        return found

    async def sign(self, text: bytes) -> bytes:
        """Return a raw signature over `text` that was verified against the pinned public key.

        Raises:
            SignerInvalidSignatureError: The signer returned more invalid signatures than `SigningPolicy` allows.
            SignerWrongKeyError: The signatures are invalid because the signer has another key.
            SignerThrottledError, SignerUnavailableError: All attempts failed.
        """
        longest = self.facts.max_text_bytes
        if longest is not None and len(text) > longest:
            raise self.plugin.error(
                SignerConfigurationError, "sign", f"the text has {len(text)} bytes; the signer takes {longest}"
            )
        pinned = (await self.public_key()).public_key
        return await self._run_call("sign", lambda: self._sign_verified(text, pinned))

    async def _read_key(self) -> SignerKey:
        found = await self.plugin.public_key()
        self.plugin.decode_answer("public_key", PublicKey.check, found.public_key)
        return found

    async def _sign_verified(self, text: bytes, pinned: PublicKey) -> bytes:
        """Request one signature from the signer, verify it against the pinned key, and return it.

        SECURITY: a signature that the pinned public key does not verify is never returned
        (tests/unit/signers/test_verified.py::test_an_invalid_signature_is_never_returned).
        """
        signature = await self.plugin.sign(text)
        try:
            pinned.verify(signature, text)
        except InvalidSignatureError:
            self.call_counts.invalid_signatures += 1
            _LOG.error(event_text(Event.SIGNER_INVALID_SIGNATURE, signer=self.scheme, key=self.name))
            raise self.plugin.error(
                SignerInvalidSignatureError,
                "sign",
                "the signer returned a signature that does not match the data and the public key; it was not used",
            ) from None
        return signature

    # --- around each call -------------------------------------------------------------------------------------------

    def _check_open(self, operation: str) -> None:
        if self._is_closed:
            raise self.plugin.error(SignerMisuseError, operation, "the signer is closed")

    async def _run_call(
        self, operation: str, attempt: Callable[[], Awaitable[Result]], policy: SigningPolicy | None = None
    ) -> Result:
        self._check_open(operation)
        with self.call_counts.count_call(operation, self._clock.monotonic):
            return await self._run_attempts(operation, attempt, policy or self._policy)

    async def _run_attempts(
        self, operation: str, attempt: Callable[[], Awaitable[Result]], policy: SigningPolicy
    ) -> Result:
        made, invalid = 1, 0
        scope = asyncio.timeout(policy.timeout.total_seconds())
        last: SignerError | None = None
        try:
            async with scope:
                while True:
                    try:
                        return await self._run_guarded(operation, attempt)
                    except SignerInvalidSignatureError as error:
                        invalid += 1
                        if invalid > policy.invalid_signatures:
                            await self._explain_invalid(error)
                            raise
                        last = error
                    except (SignerThrottledError, SignerUnavailableError) as error:
                        last = error
                        if not error.retryable or made >= policy.retry.attempts:
                            raise
                    pause = max(policy.retry.delay(made), _requested_pause(last, policy.timeout))
                    if pause.total_seconds() >= (scope.when() or 0) - asyncio.get_running_loop().time():
                        raise last
                    await self._clock.sleep(pause)
                    made += 1
                    self.call_counts.count_retry(operation)
        except TimeoutError:
            waited = f"no answer within {policy.timeout.total_seconds():g} s"
            problem = f"{waited}; before: {last}" if last else waited
            raise self.plugin.error(SignerUnavailableError, operation, problem) from last

    async def _explain_invalid(self, error: SignerInvalidSignatureError) -> None:
        """Raise `SignerWrongKeyError` if invalid signatures have this cause: the signer's key is not the pinned one.

        Does nothing if the signer has the pinned key, or does not report its key.
        """
        try:
            found = (await self._run_guarded("public_key", self._read_key)).public_key
        except SignerError:
            return
        if found != self._pinned:
            raise self._wrong_key(error.operation) from error

    def _wrong_key(self, operation: str) -> SignerWrongKeyError:
        return self.plugin.error(
            SignerWrongKeyError, operation, "the signer's public key is not the one that signatures must match"
        )

    async def _run_guarded(self, operation: str, attempt: Callable[[], Awaitable[Result]]) -> Result:
        try:
            return await attempt()
        except GoatherdError as error:
            if isinstance(error, SignerError):
                raise
            raise self.plugin.error(SignerConfigurationError, operation, str(error), hint=error.hint) from None
        except TimeoutError:
            raise self.plugin.error(SignerUnavailableError, operation, "the signer did not answer in time") from None
        except Exception as error:  # noqa: BLE001 - the guarantee: nothing but our errors leaves a plugin
            # SECURITY: the message of a plugin's exception may quote a PIN or a token, so neither it nor the chain is
            # shown (tests/unit/signers/test_verified.py::test_a_plugin_s_own_exception_is_named_and_not_quoted).
            raise self.plugin.error(
                SignerError,
                operation,
                describe_crash(error),
                hint="This is a bug in the plugin: it must raise goatherd.errors only.",
            ) from None


def _requested_pause(error: SignerError, longest: timedelta) -> timedelta:
    """Return the pause that the platform asks for after an error: at most `longest`, since it may ask for any time."""
    if not isinstance(error, SignerThrottledError) or error.retry_after is None:
        return timedelta(0)
    return timedelta(seconds=min(longest.total_seconds(), max(0.0, error.retry_after)))
