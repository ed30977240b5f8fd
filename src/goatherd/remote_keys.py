"""Sign with roots whose keys are in an HSM or a KMS (direct mode), without blocking an event loop.

A session with such a key holds a `goatherd.identity.remote_key.RemoteKey`; this module makes its signatures. The
connections to the HSM or KMS belong to one thread with an event loop of its own, so a signature can be requested in any
thread. Code on another event loop calls `sign_aside`, which signs with a local key at once, and with a remote one in
another thread.

SECURITY: a signer gets this process's credentials, may read files and load a library. So a machine calls only signers
that its own configuration names (the setting `signers`, or `--root-signer`), and the identity document, which an
attacker may have written, names none (tests/unit/cli/test_direct_mode.py, tests/unit/test_remote_keys.py).

Every signature is verified against the root's public key before it is used (`goatherd.signers.verified`). After a
failed call, further calls fail at once for the time `REST`, so that callers need not wait for an unreachable signer.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from datetime import timedelta
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, Self, TypeVar

from goatherd.clock import Clock
from goatherd.crypto import PublicKey, fingerprint
from goatherd.errors import SignerConfigurationError, SignerError
from goatherd.identity.remote_key import RemoteKey
from goatherd.identity.session import OwnedSession
from goatherd.serving.signals import cancel_tasks
from goatherd.telemetry import Event, event_text

if TYPE_CHECKING:
    from goatherd.identity.document import IdentityDocument
    from goatherd.providers.threads import Threads
    from goatherd.signers.verified import SignerCounts, VerifiedSigner

P = ParamSpec("P")
R = TypeVar("R")

_log: Final = logging.getLogger("goatherd.signers")

TIMEOUT: Final = timedelta(seconds=10)
"""The deadline of one signature by a root, retries included."""
REST: Final = timedelta(seconds=1)
"""How long calls fail at once after a call that has failed."""
CHECK_AGAIN: Final = timedelta(seconds=5)
"""Pause before a server checks a signer again that did not sign."""
CHECK_IDLE: Final = timedelta(minutes=5)
"""Pause before a server checks a signer that it has not used meanwhile."""
MOST_AT_ONCE: Final = 32
"""How many signatures by remote keys are made at the same time in one process."""


@cache
def _threads() -> Threads:
    from goatherd.providers.threads import Threads  # only direct mode needs it

    return Threads("goatherd-root-signing", MOST_AT_ONCE)


async def sign_aside(work: Callable[[], R], *signers: OwnedSession | None) -> R:
    """Call `work`, which signs with some of the sessions `signers`, and return its result.

    If one of their keys is remote (in an HSM or a KMS), `work` runs in another thread, else at once in this one.
    """
    if any(one is not None and one.is_remote for one in signers):
        return await _threads().run(work)
    return work()


async def call_signing(
    function: Callable[Concatenate[IdentityDocument, P], R],
    document: IdentityDocument,
    *args: P.args,
    **kwargs: P.kwargs,
) -> R:
    """Call a function that signs with the roots of an identity document, and return its result.

    The document is the function's first argument. If a root's key is in an HSM or a KMS, the function runs in another
    thread (`sign_aside`).
    """
    return await sign_aside(partial(function, document, *args, **kwargs), document.current, document.next)


async def run_remote(work: Callable[[], R]) -> R:
    """Call `work`, which signs with a key in an HSM or a KMS, in a thread that is used only for signing."""
    return await _threads().run(work)


class _SignerLoop:
    """The one thread, with its event loop, that owns the connections to signers; started when first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine on this event loop, and wait for its result in the calling thread."""
        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                try:
                    threading.Thread(target=loop.run_forever, name="goatherd-signers", daemon=True).start()
                except RuntimeError:  # the system gives no thread now; a later call must not wait for one
                    loop.close()
                    work.close()
                    raise
                self._loop = loop
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


_LOOP: Final = _SignerLoop()


class RootSigner:
    """A signer in an HSM or a KMS that holds the key of a root. Its methods block, and may be called in any thread.

    Args:
        uri: The signer's URI.

    Attributes:
        pinned: The public key that each signature must match: the one that the signer reports first; None before.
        error: Why the last call failed; None if it succeeded, or if there was none.
        used_at: When the last call ended, by `time.monotonic`; None before the first.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.pinned: PublicKey | None = None
        self.error: SignerError | None = None
        self.used_at: float | None = None
        self._signer: VerifiedSigner | None = None

    @property
    def is_open(self) -> bool:
        """Whether the signer was opened, so that it has connections to close."""
        return self._signer is not None

    @property
    def call_counts(self) -> SignerCounts | None:
        """The number of calls and their outcomes; None before the first call."""
        return None if self._signer is None else self._signer.call_counts

    def sign(self, data: bytes) -> bytes:
        """Return a verified signature over `data`.

        Raises:
            SignerError: The signer refused, did not answer, or returned an invalid signature; or this happened less
                than `REST` ago, and the signer was not called again.
        """
        self._refuse_while_resting()
        return _LOOP.run(self._call_signer(lambda signer: signer.sign(data)))

    def read_key(self) -> PublicKey:
        """Return the public key; asks the signer only if the key is not known yet.

        Raises:
            SignerError: As `sign`.
        """
        if self.pinned is None:
            self._refuse_while_resting()
            self.pinned = _LOOP.run(self._call_signer(lambda signer: signer.public_key())).public_key
        return self.pinned

    def check(self) -> None:
        """Let the signer sign a test text, which no server accepts as a commit or a request.

        Raises:
            SignerError: As `sign`.
        """
        text = f"goatherd check {fingerprint(self.read_key())}".encode()
        _LOOP.run(self._call_signer(lambda signer: signer.sign(text)))

    def close(self) -> None:
        """Close the signer's connections. Later calls fail."""
        if self._signer is not None:
            _LOOP.run(self._signer.aclose())

    def _refuse_while_resting(self) -> None:
        if self.error is None or self.used_at is None:
            return
        if time.monotonic() - self.used_at < REST.total_seconds():
            raise self.error.with_traceback(None)

    async def _call_signer(self, call: Callable[[VerifiedSigner], Coroutine[Any, Any, R]]) -> R:
        signer = self._open_signer()
        try:
            result = await call(signer)
        except SignerError as error:
            self._note_outcome(error)
            raise
        self._note_outcome(None)
        return result

    def _open_signer(self) -> VerifiedSigner:
        if self._signer is None:
            from goatherd.signers.verified import SigningPolicy, open_signer  # only direct mode needs it

            self._signer = open_signer(self.uri, pinned=self.pinned, policy=SigningPolicy(timeout=TIMEOUT))
        return self._signer

    def _note_outcome(self, error: SignerError | None) -> None:
        before, self.error, self.used_at = self.error, error, time.monotonic()
        if error is not None and (before is None or before.code != error.code):
            fields = {"signer": error.signer, "key": error.key, "code": error.code, "reason": str(error)}
            _log.error(event_text(Event.ROOT_SIGNER_FAILED, **fields))
        elif error is None and before is not None:
            _log.warning(event_text(Event.ROOT_SIGNER_RECOVERED, signer=before.signer, key=before.key))


def make_unnamed_error(public_key: PublicKey, holder: str = "the root") -> SignerConfigurationError:
    """Return the error that no signer in the configuration of this machine holds the key with this public half.

    Args:
        public_key: The public half.
        holder: Whose key it is, such as ``"anchor 7f3k…"``.
    """
    key = fingerprint(public_key)
    return SignerConfigurationError(
        f"no signer in the configuration of this machine holds the key of {holder}, which has the fingerprint {key}",
        signer="signers",
        key=key,
        operation="sign",
        hint='Name its signer in goatherd.toml: signers = ["URI"], or in the variable GOATHERD_SIGNERS, or with'
        " `goatherd serve --root-signer URI`. `goatherd doctor --signer URI` shows the fingerprint of a signer's key.",
    )


class RootSigners:
    """The signers that this machine may call, by the URIs in its configuration. They hold keys of roots.

    An async context manager, which closes the signers at its end. With a clock, it also checks each signer while it is
    entered: at the start, every few minutes if it is not used, and soon after a failure. So a server can report that it
    is able to sign with a key before a rotation makes that key the current root.

    Args:
        uris: URIs of the signers.
        clock: Waits between checks; None to make no checks.
    """

    def __init__(self, uris: Iterable[str] = (), *, clock: Clock | None = None) -> None:
        self._signers: dict[str, RootSigner] = {}
        for uri in uris:
            self.add(uri)
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    def add(self, uri: str) -> None:
        """Add a signer that the operator has named for this run, such as that of a new anchor."""
        self._signers.setdefault(uri, RootSigner(uri))

    @property
    def uris(self) -> tuple[str, ...]:
        """The URIs of the signers."""
        return tuple(self._signers)

    async def __aenter__(self) -> Self:
        if self._signers and self._clock is not None:
            for one in self._signers.values():
                one._open_signer()  # a URI that is wrong is an error at the start
            self._task = asyncio.create_task(self._check_signers(self._clock), name="check the signers of roots")
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancel_tasks(self._task)
        self._task = None
        for one in self._signers.values():
            if one.is_open:
                await _threads().run(one.close)

    @property
    def call_counts(self) -> list[SignerCounts]:
        """The number of calls to each signer that was called, and their outcomes."""
        return [counts for one in self._signers.values() if (counts := one.call_counts) is not None]

    @property
    def states(self) -> list[dict[str, str | None]]:
        """The fingerprint of each signer's key (None while unknown), and the code of its last call's error, or None."""
        return [
            {
                "fingerprint": None if one.pinned is None else fingerprint(one.pinned),
                "problem": None if one.error is None else one.error.code,
            }
            for one in self._signers.values()
        ]

    def find_problem(self, root: OwnedSession) -> str | None:
        """Return the code of the error because of which this server cannot sign as `root`; None if none is known."""
        if not root.is_remote:
            return None
        mine = next((one for one in self._signers.values() if one.pinned == root.session.public_key), None)
        if mine is not None:
            return None if mine.error is None else mine.error.code
        unknown = next((one for one in self._signers.values() if one.pinned is None), None)
        if unknown is None:
            return SignerConfigurationError.code
        return None if unknown.error is None else unknown.error.code

    def connect(self, root: OwnedSession) -> OwnedSession:
        """Return `root` as a session that signs with one of these signers; a root with a local key is unchanged.

        Only a root in direct mode, whose key is in an HSM or a KMS, needs a signer.
        """
        if not root.is_remote:
            return root
        return OwnedSession(session=root.session, signer=RemoteKey(root.session.public_key, self.sign))

    def sign(self, public_key: PublicKey, data: bytes) -> bytes:
        """Return a verified signature by the signer that holds the key with this public half. Blocks.

        Raises:
            SignerConfigurationError: The configuration names no such signer.
            SignerError: The signer refused, did not answer, or returned an invalid signature.
        """
        failure: SignerError | None = None
        for one in tuple(self._signers.values()):
            try:
                is_mine = one.read_key() == public_key
            except SignerError as error:
                failure = error
                continue
            if is_mine:
                return one.sign(data)
        raise failure or make_unnamed_error(public_key)

    async def _check_signers(self, clock: Clock) -> None:
        while True:
            for one in self._signers.values():
                idle = None if one.used_at is None else time.monotonic() - one.used_at
                pause = CHECK_IDLE if one.error is None else CHECK_AGAIN
                if idle is None or idle >= pause.total_seconds() or one.pinned is None:
                    with suppress(SignerError):
                        await _threads().run(one.check)
            await clock.sleep(CHECK_AGAIN)
