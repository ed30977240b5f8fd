"""Read and change the identity in a store for one command: with retries, checks of what is read, and compare-and-swap.

A rotation, a revocation and the replacement of an expired root read and write the identity through `IdentityWriter`.

Rules:
- Every write is a compare-and-swap on the version that was read. After a conflict, `change` reads again and lets the
  command decide again. It tries at most twice on the same state of the store (`attempts`).
- A document that is older than one that this command has read or written is never used, nor one that cannot follow it.
- Once the command has begun, a call that fails is retried after a short pause (`repeating_store`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from goatherd.clock import Clock
from goatherd.errors import ConflictError, GenerationError, StoreWentBackError
from goatherd.identity.document import (
    IdentityDocument,
    decode_document,
    document_digest,
    encode_document,
    source_digest,
)
from goatherd.providers.base import SecretProvider
from goatherd.providers.values import CURRENT, STABLE, SecretVersion
from goatherd.remote_keys import RootSigners
from goatherd.rotation.attempts import Attempts
from goatherd.rotation.events import ConflictMet, Event, StoreTroubled
from goatherd.rotation.obstacles import StoredState
from goatherd.rotation.policy import Policy
from goatherd.rotation.polling import Polling
from goatherd.rotation.repeating_store import RepeatingStore
from goatherd.rotation.signed_store import Ask, SignedStoreCheck
from goatherd.rotation.store_history import check_store_history


class IdentityWriter:
    """Reads, checks and changes the identity in a store, for one command.

    Args:
        provider: The store.
        secret_id: The secret that holds the identity, with ``{org}`` replaced.
        policy: How long to wait for the store, and the servers whose reports on its history are ignored.
        clock: Tells the time and waits.
        ask: Asks the listed servers which identity they use.
        on_event: Called with each event as it happens.
        signers: The signers that this machine may call (direct mode).

    Attributes:
        store: The store, whose failed calls are retried within ``with store.repeating()``.
        signatures: Checks the signature of a document that the command is about to change.
    """

    def __init__(
        self,
        provider: SecretProvider,
        secret_id: str,
        *,
        policy: Policy,
        clock: Clock,
        ask: Ask,
        on_event: Callable[[Event], None],
        signers: RootSigners,
    ) -> None:
        self.store = RepeatingStore(
            provider,
            policy=policy,
            clock=clock,
            troubled=lambda error: on_event(StoreTroubled(error=str(error))),
        )
        self._secret_id = secret_id
        self._policy = policy
        self._clock = clock
        self._ask = ask
        self._on_event = on_event
        self._signers = signers
        self.signatures = SignedStoreCheck(self.store, secret_id, ask)
        self._last: tuple[str, int, str] | None = None

    def forget(self) -> None:
        """Forget what was read or written, because a new command begins, and the store may have been restored since."""
        self._last = None

    async def read(self) -> tuple[IdentityDocument, SecretVersion]:
        """Return the identity with label ``current``, and its version.

        Raises:
            GenerationError: The store shows an older identity than this command has read or written.
            StoreWentBackError: The store holds a different identity, which cannot follow the one before.
        """
        found = await self.store.read(self._secret_id, CURRENT)
        document = decode_document(found.value.reveal(), self._signers.sign)
        if self._last is not None and document.generation < self._last[1]:
            # The answer of a replica that lags must not be used for a decision.
            raise GenerationError(
                f"the store returned generation {document.generation} after generation {self._last[1]}",
                hint="The store's replicas disagree, or an old version was restored: run `goatherd doctor`.",
            )
        self._check_continuity(document, found.version)
        return document, found.version

    async def read_latest(self) -> tuple[IdentityDocument, SecretVersion]:
        """Read as `read` does, and wait up to `Policy.store_patience` while the store shows an older identity."""
        polling = Polling(self._clock, self._policy, self._policy.store_patience)
        while True:
            try:
                return await self.read()
            except GenerationError:
                if polling.is_over:
                    raise
            await polling.pause()

    def _check_continuity(self, document: IdentityDocument, version: SecretVersion) -> None:
        """Check that a document is the one last read or written, or can follow that one.

        SECURITY: if a store is restored from a backup while the command runs, it assigns the same version ids again. A
        compare-and-swap on an id could then overwrite another document than the one on which the command has decided
        (tests/unit/rotation/test_store_history.py).

        A document names the digests of its predecessors (its lineage). It is rejected if they contradict the document
        before, or if the store returns it under the version id of that one.
        """
        digest = source_digest(document)
        before, self._last = self._last, (version.id, document.generation, digest)
        if before is None or before[2] == digest:
            return
        guarantees = self.store.guarantees
        is_other = StoredState.from_document(document).is_other(before[1], before[2]) and (
            guarantees.cas or not guarantees.best_effort_cas
        )
        if before[0] != version.id and not is_other:
            return
        if self.signatures.has_seen_signed and not document.is_signed:
            return  # the check of its signature reports it as altered
        raise StoreWentBackError(
            f"version {version.id} in the store, of generation {document.generation}, does not follow the identity"
            " that this command read before: a backup was restored meanwhile",
            hint="Run `goatherd doctor`, then run the command again.",
        )

    async def check_history(
        self,
        document: IdentityDocument,
        *,
        read: Callable[[], Awaitable[IdentityDocument]] | None = None,
        is_voted: bool = False,
    ) -> IdentityDocument:
        """Check that no server has used a later identity than the store holds, or a different one.

        Args:
            document: The identity that was read from the store.
            read: Reads the store again; None for `read_latest`.
            is_voted: As for `goatherd.rotation.store_history.check_store_history`.

        Returns:
            The identity in the store; a later document than `document` if it was changed meanwhile.

        Raises:
            StoreWentBackError: A server has used a later identity, or a different one.
        """

        async def read_document() -> IdentityDocument:
            return (await self.read_latest())[0]

        return await check_store_history(
            document,
            read=read or read_document,
            ask=self._ask,
            policy=self._policy,
            guarantees=self.store.guarantees,
            clock=self._clock,
            troubled=lambda problem: self._on_event(StoreTroubled(error=problem)),
            is_voted=is_voted,
        )

    async def write(self, document: IdentityDocument, expected: str) -> SecretVersion:
        """Write a document in place of version `expected`, and return its version.

        Raises:
            ConflictError: Another version is the current one. Nothing was written.
        """
        raw = encode_document(document)
        version = await self.store.write(self._secret_id, raw, label=CURRENT, expected=expected)
        self._last = (version.id, document.generation, document_digest(document))
        return version

    async def change(
        self, name: str, change: Callable[[IdentityDocument, SecretVersion], Awaitable[IdentityDocument | None]]
    ) -> tuple[IdentityDocument, SecretVersion, bool]:
        """Change the stored identity by compare-and-swap; if another writer was faster, decide again on the new state.

        Args:
            name: What the change does, as a phrase that follows "cannot" in an error message.
            change: Returns the new document; None if the stored one needs no change.

        Returns:
            The document as it is stored, its version, and whether this call has written it.

        Raises:
            StuckError: The store has refused the change twice, and has not changed.
            UnsignedIdentityError: The identity in the store was changed since a root signed it.
        """
        attempts = Attempts(self.store.guarantees, self._policy, self._clock)
        polling = Polling(self._clock, self._policy)
        sent: set[str] = set()
        while True:
            document, version = await self.read_latest()
            evidence = (version.id, document_digest(document))
            if attempts.may_try(evidence, name):
                await self.signatures.check_document(document)
                changed = await change(document, version)
                if changed is None:
                    return document, version, evidence[1] in sent  # if it is there, only the answer was lost
                sent.add(document_digest(changed))
                try:
                    return changed, await self.write(changed, version.id), True
                except ConflictError as conflict:
                    attempts.count_attempt(evidence, conflict)
                    self._on_event(ConflictMet())
            await polling.pause()

    async def move_stable(self, document: IdentityDocument, version: SecretVersion) -> None:
        """Move label ``stable`` to a version, unless a rotation is in progress, which may need a roll-back."""
        if STABLE in version.labels or document.rotation is not None:
            return
        polling = Polling(self._clock, self._policy, self._policy.store_patience)
        while True:
            listed = await self.store.versions(self._secret_id)
            at = next((one.id for one in listed if STABLE in one.labels), None)
            if at == version.id:
                return
            try:
                await self.store.label(self._secret_id, STABLE, version.id, expected=at)
            except ConflictError:
                self._on_event(ConflictMet())
            else:
                return
            # Another process has moved the label, or the list was outdated. The process that wrote last moves it.
            _, now = await self.read_latest()
            if now.id != version.id or polling.is_over:
                return
            await polling.pause()
