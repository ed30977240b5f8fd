"""Read settings from a secret store, and refresh them while the server runs.

The module decides nothing about rotation, and stores no user sessions. Rules: each refresh reads the store once;
requests to the server never cause a read. Bytes that were read before are not parsed again. Not only the version ids
but also the bytes are compared, because a store that was restored from a backup reuses ids. The module writes to the
store only if the identity has changed. It holds no lock while it waits for the store. `goatherd.settings.refresh` alone
decides when to read the store. A last known good copy is used only if the store did not answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from goatherd.clock import Clock
from goatherd.errors import (
    ConfigurationError,
    ConflictError,
    DegradedError,
    GenerationError,
    IdentityError,
    LastKnownGoodError,
    ProviderError,
    SettingsError,
    SuccessionError,
    ThrottledError,
    UnavailableError,
    UnsignedIdentityError,
)
from goatherd.files import read_if_there, replace_file
from goatherd.identity.document import IdentityDocument, decode_document, encode_document
from goatherd.identity.session import Session
from goatherd.identity.settings_json import check_exportable
from goatherd.identity.succession import TrustCheckpoint, check_first, verify_successor
from goatherd.plugins import open_provider, provider_from_config
from goatherd.providers.base import SecretProvider
from goatherd.providers.breaker import Breaker, new_breaker
from goatherd.providers.values import CURRENT, ORG_FIELD, SecretValue, secret_id_for
from goatherd.serving.signals import cancel_tasks
from goatherd.settings.base import DBSettings, Origin, SettingsSource, SettingsStatus
from goatherd.settings.file import FileSettings
from goatherd.settings.last_known_good import LastKnownGood
from goatherd.settings.refresh import StoreRefresher
from goatherd.stores import DocumentMark, RegionalReader
from goatherd.telemetry import Event, event_text

if TYPE_CHECKING:
    from goatherd.wire.commit import Commit


REFRESH_INTERVAL: Final = timedelta(seconds=30)
CHAIN_RETRY: Final = timedelta(minutes=1)
"""Pause before the peers are asked again for a chain to an identity, if none was found."""
PEERS_TIMEOUT: Final = timedelta(minutes=1)
"""How long a server that has used no identity yet waits for a peer that trusts the root in the store."""
PEERS_RETRY: Final = timedelta(seconds=2)
_BREAKERS: Final = 1000
_CHAIN_HINT: Final = (
    "If this server missed many rotations, name another server that it can reach (with `goatherd serve` by --peer, with"
    " `goatherd run` by GOATHERD_NODES or `nodes` in goatherd.toml): other servers have the commits that lead from the"
    " root that it knows to the current one. As a last resort, compare the root with `goatherd show`, and start once"
    " with --accept-identity."
)
_PEERS_HINT: Final = (
    "Compare `goatherd show` with `goatherd status`. If the root is wrong, find out which user wrote the secret. If the"
    " peers belong to another cluster, correct the list of peers. If you have replaced the identity, start every server"
    " once with --accept-identity."
)
_REVOKED_HINT: Final = (
    "The identity in the store revokes every root that this server trusts, without a proof by their keys. If you have"
    " revoked these roots (`goatherd show`), start once with --accept-identity; no other server can help. If not, find"
    " out which user wrote the secret."
)

_OPTIONS_HINT: Final = """Such as {"type": "cloud", "cloudConfig": {"provider": "aws", "secretId": "goatdb/root"}}."""
_WENT_BACK_HINT: Final = (
    "If the store was restored from a backup, restore the later state, or start every server once with"
    " --accept-identity (how-to page: The store was restored from a backup). `goatherd doctor` shows details."
)

_log = logging.getLogger("goatherd.settings")


class CloudSecretSettings(SettingsSource):
    """A server's settings (its identity) from a secret store, refreshed as long as the context manager is entered.

    A new identity is adopted if it is complete, its generation is not lower, a chain of endorsements leads from the
    roots in use to its roots, and its current root has signed it. Otherwise the server keeps the identity in use. The
    first identity is trusted without such a chain, unless the file `seen` records an earlier identity, or peers reject
    its current root and none accepts it. An unsigned identity is accepted until a signed one was seen.

    Args:
        secret_id: Id of the secret; ``{org}`` in it is replaced by `for_org`.
        cloud_provider: The store, which is opened and closed together with these settings; or its ``cloudConfig``,
            such as ``{"provider": "aws", "region": "eu-west-1"}``; or only the provider's name, such as ``"aws"``.
        refresh_interval: How often to read the store.
        jitter: By which fraction of the interval a pause may be shorter or longer, from 0 to 1.
        clock: Supplies the current time.
        accept_identity: Adopt the first identity that the store returns, even if no chain of endorsements leads to it;
            at the start also one with a lower generation. Each later identity needs such a chain, unless `accept_next`
            is called. With ``{org}`` in the secret id or a path, this applies to the organizations for which `for_org`
            is called before the first of them is loaded. Only an operator may decide this.
        seen: A file that records the identity in use (generation, digest, public keys), so that no older one is adopted
            after a restart. ``{org}`` in it is replaced by `for_org`.
        last_known_good: The encrypted copy of the identity to keep, and to start from while the store is unreachable.
            If None, the server cannot start while the store is unreachable.
        allows_direct: Whether to use an identity whose root's key is in an HSM or a KMS (direct mode), which unmodified
            GoatDB cannot use.
    """

    origin = Origin.STORE

    def __init__(
        self,
        secret_id: str | SecretProvider,
        cloud_provider: SecretProvider | Mapping[str, object] | str,
        *,
        refresh_interval: timedelta = REFRESH_INTERVAL,
        jitter: float = 0.2,
        clock: Clock | None = None,
        accept_identity: bool = False,
        seen: Path | str | None = None,
        last_known_good: LastKnownGood | None = None,
        allows_direct: bool = True,
    ) -> None:
        if refresh_interval <= timedelta(0) or not 0 <= jitter <= 1:
            raise ConfigurationError("a refresh interval must be longer than 0, and its jitter must be from 0 to 1")
        provider, secret = _named_secret(secret_id, cloud_provider)
        super().__init__(source=f"{provider.scheme} secret {secret}", clock=clock)
        self._provider = provider
        self._secret_id = secret
        self._refresh_interval = refresh_interval
        self._jitter = jitter
        self._is_next_accepted = accept_identity
        self._armed_by: CloudSecretSettings | None = None
        self._seen = None if seen is None else Path(seen)
        self._copy = last_known_good
        self._allows_direct = allows_direct
        # One for each secret, kept over the organizations' settings, which come and go while a secret cannot be read.
        self._breakers: dict[str, Breaker] = {}
        self._keeper = self._new_refresher()
        self._digest: bytes | None = None
        self._refused_digest: bytes | None = None
        self._refused_error: IdentityError | None = None
        self._refused_at = 0.0
        self._loop: asyncio.Task[None] | None = None
        self._remembering: asyncio.Task[None] | None = None
        self._remembered: IdentityDocument | None = None
        self._unwritten: set[str] = set()
        self._has_seen_signed = False

    def _new_refresher(self) -> StoreRefresher:
        breaker = self._breakers.get(self._secret_id)
        if breaker is None:
            while len(self._breakers) >= _BREAKERS:
                del self._breakers[next(iter(self._breakers))]
            breaker = self._breakers[self._secret_id] = new_breaker(self._refresh_interval)
        return StoreRefresher(
            provider=self._provider,
            secret_id=self._secret_id,
            interval=self._refresh_interval,
            jitter=self._jitter,
            breaker=breaker,
            clock=self._clock,
        )

    def for_org(self, org: str) -> CloudSecretSettings:
        """Return the store settings of one organization.

        The organization's id replaces ``{org}`` in the secret id and in the paths of files. If none of them contains
        ``{org}``, return this object itself.

        Raises:
            ConfigurationError: The organization's id cannot be part of a secret id.
        """
        if not any(ORG_FIELD in str(one) for one in (self._secret_id, self._seen, self._copy and self._copy.path)):
            return self
        settings = CloudSecretSettings(
            secret_id_for(self._secret_id, org),
            self._provider,
            refresh_interval=self._refresh_interval,
            jitter=self._jitter,
            clock=self._clock,
            accept_identity=self._is_next_accepted,
            seen=None if self._seen is None else secret_id_for(str(self._seen), org),
            last_known_good=None if self._copy is None else self._copy.for_org(org),
            allows_direct=self._allows_direct,
        )
        settings._armed_by = self if self._is_next_accepted else None
        settings._breakers = self._breakers
        settings.introductions, settings.rejections = self.introductions, self.rejections
        settings._keeper = settings._new_refresher()
        return settings

    @property
    def status(self) -> SettingsStatus:
        """How fresh the settings in use are, and how the store is read."""
        stores: dict[str, Any] = {}
        if isinstance(self._provider, RegionalReader):
            stores = {
                "region": self._provider.region,
                "store_read": self._provider.last_read(self._secret_id),
                "stores": self._provider.states(self._secret_id),
            }
        return replace(
            super().status,
            **stores,
            is_backing_off=self._keeper.is_open,
            is_watching=self._keeper.is_watching,
            view_interval=self._keeper.longest_pause,
            has_seen_signed=self._has_seen_signed,
            calls=self._provider.call_counts,
        )

    def accept_next(self) -> None:
        """Adopt the next identity from the store, once, even if no chain of endorsements leads to it.

        With ``{org}`` in the secret id or a path, this applies to the next organization that is loaded. Only an
        operator may decide this.
        """
        self._is_next_accepted = True
        self._refused_version = None

    async def _open_source(self) -> None:
        await self._provider.__aenter__()
        self._loop = asyncio.create_task(self._keeper.run(self._poll_store), name=f"keep {self._source} fresh")

    async def _close_source(self) -> None:
        try:
            await cancel_tasks(self._loop)
            if self._remembering is not None:
                await self._remembering
        finally:
            self._loop = self._remembering = None
            await self._provider.__aexit__(None, None, None)

    async def _poll_store(self) -> None:
        if self._settings is None:
            return
        try:
            await self._share_refresh(is_requested=False)
        except Exception:  # noqa: BLE001 - without the loop, the server would keep an old key permanently
            _log.exception(event_text(Event.SETTINGS_UNREACHABLE, source=self._source))

    async def refresh(self) -> bool:
        """Read the settings from the store now, and adopt a changed identity; return whether it has changed.

        While the store does not answer, it is called at most once every few seconds, however often this method is
        called. In between, the result is False, and `status` has the reason.
        """
        _ = self.settings
        if not self._keeper.admits_call():
            return False
        if isinstance(self._provider, RegionalReader):
            self._provider.expect_change(self._secret_id)
        return await super().refresh()

    async def _read_first(self) -> DBSettings:
        if ORG_FIELD in str(self._seen):
            raise ConfigurationError(f"the path {self._seen} still contains {ORG_FIELD}: give an organization")
        if self._copy is not None:
            await asyncio.to_thread(self._copy.check_usable)
        if isinstance(self._provider, RegionalReader) and not self._is_next_accepted:
            # A replica that lags must not stop a start while another region's store has the identity.
            known = await self._read_checkpoint()
            if known is not None:
                self._provider.note_used(self._secret_id, DocumentMark.from_checkpoint(known))
        try:
            found = await self._keeper.read_store(is_requested=True)
        except (ThrottledError, UnavailableError) as error:
            # SECURITY: the copy is used only if the store does not answer, not if the store has no such secret, or an
            # identity that this server rejects (tests/unit/settings/test_last_known_good.py).
            return await self._read_copy(error)
        document = self._decode_usable(found)
        before = await self._read_checkpoint()
        if before is not None:
            await self._verify_first(document, before)
            self.recalled = before.roots
        elif not self._is_next_accepted:
            check_first(document)
            await self._check_with_peers(document)
        if self._settings is None:
            self._version, self._digest = str(found.version.id), _value_digest(found)
        return self._settings_from(document)

    async def _check_with_peers(self, document: IdentityDocument) -> None:
        """Check that a peer trusts the current root of the first identity that this server uses, if any peer answers.

        A peer that reads the store later than this server may trust the root a little later.

        Raises:
            SuccessionError: Peers reject the root, and none accepts it.
        """
        # SECURITY: an attacker who can write the secret but has no root's key could give a new server an identity of
        # the attacker's own (tests/unit/settings/test_first_identity.py).
        until, is_logged = self._clock.monotonic() + PEERS_TIMEOUT.total_seconds(), False
        while self.rejections is not None and (rejecting := await self.rejections(document)):
            if not is_logged:
                is_logged, root, peers = True, document.current.id, " ".join(rejecting)
                event = Event.SETTINGS_REJECTED_BY_PEERS
                _log.warning(event_text(event, source=self._source, current=root, peers=peers, waits="1m"))
            if self._clock.monotonic() >= until:
                raise SuccessionError(
                    f"no peer trusts the current root {document.current.id} of the identity in the store (rejected by:"
                    f" {', '.join(rejecting)}). This server has used no identity yet, so it cannot tell which is right",
                    hint=_PEERS_HINT,
                )
            await self._clock.sleep(PEERS_RETRY)

    async def _read_checkpoint(self) -> TrustCheckpoint | None:
        before = None if self._seen is None else await asyncio.to_thread(_read_checkpoint_file, self._seen)
        self._has_seen_signed = self._has_seen_signed or (before is not None and before.is_signed)
        return before

    async def _read_copy(self, failure: ProviderError) -> DBSettings:
        """Return the settings from the last known good copy of the identity, because the store did not answer.

        If there is no copy, raise `failure`, the error with which reading the store failed.
        """
        if self._copy is None:
            raise failure
        try:
            opened = await asyncio.to_thread(self._copy.open_copy, self._secret_id, self._clock.now_ms())
            if opened is None:
                raise failure
            before = await self._read_checkpoint()
            if before is not None:
                await self._verify_since(opened.document, before)
        except (LastKnownGoodError, GenerationError, SuccessionError) as error:
            message = str(error) if isinstance(error, LastKnownGoodError) else f"{self._copy.path}: {error}"
            problem = LastKnownGoodError(f"{failure}; and {message}", hint=error.hint)
            raise problem from failure
        self._record_failure(failure)
        settings = replace(
            self._settings_from(opened.document),
            source=f"the last known good copy {self._copy.path} of {self._source}",
            confirmed_at_ms=opened.confirmed_ms,
        )
        age = timedelta(milliseconds=self._clock.now_ms() - opened.confirmed_ms)
        _log.error(
            event_text(
                Event.SETTINGS_LAST_KNOWN_GOOD,
                source=self._source,
                generation=opened.document.generation,
                age=f"{age.total_seconds():.0f}s",
            )
        )
        return settings

    async def _read_again(self, *, is_requested: bool) -> DBSettings | None:
        while True:
            before = self._version
            found = await self._keeper.read_store(is_requested=is_requested)
            # This server has written a version meanwhile, so the one that was read may be older than the one in use.
            if self._version != before:
                continue
            # SECURITY: the version id alone does not prove that the value is unchanged: a restored store can use ids
            # again (tests/unit/settings/test_restored_store.py).
            version, digest = str(found.version.id), _value_digest(found)
            if (version, digest) == (self._version, self._digest):
                self._refused_version = None
                return None
            is_refused = (version, digest) == (self._refused_version, self._refused_digest)
            if is_refused and self._refused_error is not None and not self._may_retry():
                raise self._refused_error.with_traceback(None)
            try:
                document = await self._verify_document(found)
            except IdentityError as error:
                self._refused_version, self._refused_digest, self._refused_error = version, digest, error
                self._refused_at = self._clock.monotonic()
                if isinstance(self._provider, RegionalReader):
                    self._provider.note_rejected(self._secret_id, found.value)
                raise
            if self._version == before:
                break
        self._version, self._digest, self._refused_version = version, digest, None
        if encode_document(document) == encode_document(self.settings.document):
            self._end_acceptance()
            return None
        return self._settings_from(document)

    def _may_retry(self) -> bool:
        """Return whether to search the other servers again for commits that lead to the rejected identity.

        These are commits by which one root introduces another. The search is repeated at most once a minute.
        """
        error = self._refused_error
        if not isinstance(error, SuccessionError) or not error.is_chain_open or self.introductions is None:
            return False
        return self._clock.monotonic() - self._refused_at >= CHAIN_RETRY.total_seconds()

    def _decode_usable(self, found: SecretValue) -> IdentityDocument:
        document = decode_document(found.value.reveal())
        if not self._allows_direct:
            check_exportable(document)
        return document

    async def _verify_document(self, found: SecretValue) -> IdentityDocument:
        document = self._decode_usable(found)
        seen = self._checkpoint_of(self.settings.document)
        try:
            self._check_successor(document, seen)
        except SuccessionError as error:
            await self._close_chain(document, seen, error)
        return document

    def _checkpoint_of(self, document: IdentityDocument) -> TrustCheckpoint:
        # SECURITY: once this server has seen a signed document, it rejects unsigned ones, even if the operator has
        # accepted one in between (tests/unit/settings/test_signed_documents.py).
        return replace(TrustCheckpoint.from_document(document), is_signed=self._has_seen_signed)

    def _apply_settings(self, settings: DBSettings, event: Event) -> None:
        is_signed = settings.document.is_signed
        if not is_signed:
            _log.warning(
                event_text(Event.SETTINGS_UNSIGNED, source=self._source, generation=settings.document.generation)
            )
        self._has_seen_signed = self._has_seen_signed or is_signed
        if isinstance(self._provider, RegionalReader):
            self._provider.note_used(self._secret_id, DocumentMark.from_document(settings.document))
        if settings.confirmed_at_ms is None:
            self._end_acceptance()
        super()._apply_settings(settings, event)

    def _end_acceptance(self) -> None:
        """Adopt no further identity without a chain of endorsements, because one from the store is in use now."""
        # SECURITY: the acceptance ends even if the adopted identity did not need it. Otherwise an attacker who can
        # write the secret but has no root's key could use the acceptance at any later time
        # (tests/unit/settings/test_store.py).
        self._is_next_accepted = False
        if self._armed_by is not None:
            self._armed_by._is_next_accepted = False
            self._armed_by = None

    async def _close_chain(
        self, document: IdentityDocument, before: IdentityDocument | TrustCheckpoint, open_: SuccessionError
    ) -> None:
        """Search the other servers for introductions that lead from the roots of `before` to the roots of `document`.

        An introduction is a commit by which one root introduces another. `open_` is the error which says that the
        endorsements in the document do not form such a chain.

        Raises:
            SuccessionError: There are no such introductions, or they could not help (then `open_` itself).
        """
        if not open_.is_chain_open or self.introductions is None:
            raise open_
        commits: list[Commit] = []
        asked: list[str] = []
        is_root_lost = open_.is_root_lost
        async for found in self.introductions(document):
            asked.append(f"{found.place}: {found.problem or 'has no matching introductions'}")
            if not found.commits:
                continue
            commits += found.commits
            try:
                # SECURITY: the document is verified by the same rules as without these commits; they only supply
                # missing links of the chain (tests/unit/settings/test_chain.py).
                await asyncio.to_thread(self._verify_successor, document, before, tuple(commits))
            except UnsignedIdentityError:
                raise
            except SuccessionError as error:
                open_ = error
            else:
                # That a root was pruned is everyday business.
                _log.log(
                    logging.INFO if is_root_lost else logging.WARNING,
                    event_text(
                        Event.SETTINGS_CHAINED, source=self._source, current=document.current.id, place=found.place
                    ),
                )
                return
        failure = SuccessionError(
            f"{open_}; places searched for introductions: {'; '.join(asked) or 'none, because no peer is known'}",
            hint=open_.hint if open_.is_root_lost else _choose_chain_hint(document, before),
        )
        failure.is_chain_open, failure.is_root_lost = True, open_.is_root_lost
        raise failure

    def _verify_successor(
        self, document: IdentityDocument, before: IdentityDocument | TrustCheckpoint, commits: tuple[Commit, ...] = ()
    ) -> None:
        guarantees = self._provider.guarantees
        verify_successor(
            document,
            before,
            commits,
            # With a store in which two writers can both succeed, a server that has read the losing document must be
            # able to adopt the winning one.
            may_fork=guarantees.best_effort_cas and not guarantees.cas,
            is_pruning_believed=self.introductions is None,
        )

    async def _verify_since(self, document: IdentityDocument, before: TrustCheckpoint) -> None:
        """Verify a new identity against the one that this server used before its start (`before`).

        If introductions by other servers could complete the chain, search for them.
        """
        try:
            self._verify_successor(document, before)
        except SuccessionError as error:
            if self._is_next_accepted:
                raise
            await self._close_chain(document, before, error)

    async def _verify_first(self, document: IdentityDocument, before: TrustCheckpoint) -> None:
        try:
            await self._verify_since(document, before)
        except (GenerationError, SuccessionError) as error:
            if not self._is_next_accepted:
                if not before.shares_root_with(document):
                    raise self._other_identity_error(document, before, error) from None
                is_open = isinstance(error, SuccessionError) and error.is_chain_open
                if isinstance(error, UnsignedIdentityError):
                    raise UnsignedIdentityError(
                        f"{error}; {self._seen} records a signed identity, so this server accepts no unsigned one"
                    ) from None
                hint = _choose_chain_hint(document, before) if is_open else _WENT_BACK_HINT
                raise type(error)(f"{error}, according to {self._seen}", hint=hint) from None
            _log.warning(event_text(Event.SETTINGS_ACCEPTED, source=self._source, current=document.current.id))

    def _other_identity_error(
        self, document: IdentityDocument, before: TrustCheckpoint, error: GenerationError | SuccessionError
    ) -> SuccessionError:
        earlier = before.roots[-1].id if before.roots else "unknown"
        # No peer has commits that lead back to an earlier identity, such as that of an old backup.
        hint = _WENT_BACK_HINT if isinstance(error, GenerationError) else _CHAIN_HINT
        return SuccessionError(
            f"the store holds another identity (root {document.current.id}) than this server used last (root {earlier},"
            f" according to {self._seen}): check --provider and --data. {error}",
            hint=f"{hint} Do the same if the cluster's identity was replaced on purpose.",
        )

    def _record_success(self) -> None:
        super()._record_success()
        document, now_ms = self.settings.document, self._clock.now_ms()
        is_due = self._copy is not None and self._copy.is_due(document, now_ms)
        if is_due or (self._seen is not None and self._remembered is not document):
            self._remembered = document
            self._remembering = asyncio.create_task(self._write_records(document, now_ms, self._remembering))

    async def _write_records(self, document: IdentityDocument, now_ms: int, before: asyncio.Task[None] | None) -> None:
        """Write the last known good copy of the identity, then the record of the identity that was seen.

        In this order, a restart after a crash in between can use the copy. `before` is the task that does the previous
        such write, which must end first.
        """
        if before is not None:
            await asyncio.wait({before})
        # The server keeps serving if one of the two cannot be written. Without the copy, a start without the store uses
        # the previous copy or fails; without the record of the seen identity, a restart trusts what the store returns.
        problems = []
        if self._copy is not None:
            try:
                await asyncio.to_thread(self._copy.save_copy, self._secret_id, document, now_ms)
            except SettingsError as error:
                problems.append(event_text(Event.SETTINGS_NOT_SEALED, source=self._source, message=error))
        if self._seen is not None:
            try:
                await asyncio.to_thread(replace_file, self._seen, self._checkpoint_of(document).to_bytes())
            except SettingsError as error:
                problems.append(event_text(Event.SETTINGS_NOT_REMEMBERED, source=self._source, message=error))
                self._remembered = None  # the next refresh retries
        for problem in problems:
            if problem not in self._unwritten:
                _log.error(problem)
        self._unwritten = set(problems)

    def _check_successor(self, document: IdentityDocument, seen: TrustCheckpoint) -> None:
        # SECURITY: a new identity must follow from the one in use, so that an attacker who can write the secret but has
        # no root's key cannot make this server adopt an identity (tests/unit/settings/test_store.py).
        try:
            self._verify_successor(document, seen)
        except SuccessionError:
            if not self._is_next_accepted:
                raise
            _log.warning(event_text(Event.SETTINGS_ACCEPTED, source=self._source, current=document.current.id))

    def _settings_from(self, document: IdentityDocument) -> DBSettings:
        return DBSettings(
            current=document.current,
            roots=document.roots,
            document=document,
            loaded_at_ms=self._clock.now_ms(),
            source=self._source,
        )

    async def update(
        self, *, document: IdentityDocument | None = None, trusted_sessions: Iterable[Session] = ()
    ) -> bool:
        """Write a changed identity to the store by compare-and-swap. User sessions are not stored and have no effect.

        Args:
            document: The identity document to write; None, or the one in use, writes nothing.
            trusted_sessions: Ignored: user sessions are stored in ``/sys/sessions``.

        Returns:
            Whether the identity was written.

        Raises:
            DegradedError: The identity in use is from a last known good copy, so what the store holds is unknown.
            GenerationError: The generation is not one higher than that of the identity in use.
            SuccessionError: Servers would reject the identity, because no chain of endorsements leads to it.
            ConflictError: Another process wrote first; the identity that it wrote has been read, as by `refresh`.
            ProviderError: The identity could not be written, or it is unknown whether it was.
        """
        del trusted_sessions
        if document is None:
            return False
        raw, seen = encode_document(document), self.settings.document
        if raw == encode_document(seen):
            return False
        if self._is_copy:
            raise DegradedError(
                f"{self._source} cannot be reached: the server uses its last known good identity and cannot change it"
            )
        if document.generation != seen.generation + 1:
            raise GenerationError(
                f"generation {document.generation} must be one higher than the present generation {seen.generation}"
            )
        self._check_successor(document, self._checkpoint_of(seen))
        failure: ConflictError | UnavailableError
        try:
            version = await self._provider.write(self._secret_id, raw, label=CURRENT, expected=self._version)
        except (ConflictError, UnavailableError) as error:
            failure = error
        else:
            self._record_write(document, str(version.id), raw)
            return True
        # An answer may have got lost after the write was done, and then another attempt finds a conflict.
        found = await self._provider.read(self._secret_id, CURRENT)
        if found.value.reveal() == raw:
            self._record_write(document, str(found.version.id), raw)
            return True
        if isinstance(failure, ConflictError):
            await self.refresh()
        raise failure

    def _record_write(self, document: IdentityDocument, version: str, raw: bytes) -> None:
        _log.info(event_text(Event.SETTINGS_WRITTEN, source=self._source, generation=document.generation))
        # A refresh may have seen this version, or one after it, before the answer to the write was here.
        if self.settings.document.generation < document.generation:
            self._version, self._digest, self._refused_version = version, hashlib.sha256(raw).digest(), None
            self._apply_settings(self._settings_from(document), Event.SETTINGS_CHANGED)


def _choose_chain_hint(document: IdentityDocument, before: IdentityDocument | TrustCheckpoint) -> str:
    """Return what to do if no introduction leads from the roots of `before` to those of `document`."""
    unproved = {one.id for one in document.revoked if one.proof is None}
    trusted = {root.id for root in before.roots} - before.revoked_ids
    return _REVOKED_HINT if document.anchor is None and trusted <= unproved else _CHAIN_HINT


def _value_digest(found: SecretValue) -> bytes:
    return hashlib.sha256(found.value.reveal()).digest()


def _read_checkpoint_file(path: Path) -> TrustCheckpoint | None:
    """Read the record of the identity that this server used last; None if there is no such file.

    Raises:
        SettingsError: The file cannot be read, or is damaged.
    """
    raw = read_if_there(path)
    if raw is None:
        return None
    try:
        return TrustCheckpoint.from_bytes(raw)
    except IdentityError as error:
        problem = str(error)
    raise SettingsError(
        f"{path} is damaged: {problem}",
        hint="The file records the identity that this node used last. Remove it to trust the store's identity once.",
    )


def _named_secret(
    secret_id: str | SecretProvider, cloud_provider: SecretProvider | Mapping[str, object] | str
) -> tuple[SecretProvider, str]:
    """Return the secret provider, and the id of the secret in it, from the arguments of `CloudSecretSettings`.

    Raises:
        ConfigurationError: The arguments are not a secret's id and a provider.
    """
    if isinstance(secret_id, SecretProvider):  # the order of 0.1.0
        secret_id, cloud_provider = cloud_provider, secret_id  # type: ignore[assignment]
    if isinstance(secret_id, str) and isinstance(cloud_provider, SecretProvider):
        return cloud_provider, secret_id
    if isinstance(secret_id, str) and isinstance(cloud_provider, str | Mapping):
        if "://" in secret_id:
            raise ConfigurationError(
                "the id of a secret must not be a URI",
                hint="Use settings_from_options(uri) for a URI. Server and every operation accept a URI as well.",
            )
        config = {"provider": cloud_provider} if isinstance(cloud_provider, str) else dict(cloud_provider)
        return provider_from_config({**config, "secretId": secret_id})
    raise ConfigurationError(
        "CloudSecretSettings needs the id of a secret and a secret provider",
        hint='Such as CloudSecretSettings("goatdb/prod/root", AWSSecretProvider("eu-west-1")).',
    )


def settings_from_options(
    options: Mapping[str, object] | str,
    *,
    path: Path | str | None = None,
    refresh_interval: timedelta = REFRESH_INTERVAL,
    seen: Path | str | None = None,
    last_known_good: LastKnownGood | None = None,
    clock: Clock | None = None,
) -> CloudSecretSettings | FileSettings:
    """Return the settings object (store or file) that a server's configuration options describe.

    Args:
        options: ``{"type": "cloud", "cloudConfig": {"provider", "secretId", "region"}}`` or
            ``{"type": "file", "path"?}``; or the URI of a secret, such as ``aws://eu-west-1/goatdb/prod/root``.
        path: The server's data directory, used for the type ``file`` if the options have no path.
        refresh_interval: How often to read the store.
        seen: A file that records the identity in use, so that no older one is adopted after a restart.
        last_known_good: The encrypted copy of the identity to start from while the store is unreachable.
        clock: Supplies the current time.

    Raises:
        ConfigurationError: The options have none of these forms.
        PluginNotFoundError, MissingExtraError: As for `goatherd.plugins.provider_from_config`.
    """
    if isinstance(options, str):
        provider, secret_id = open_provider(options)
    elif not isinstance(options, Mapping):
        raise ConfigurationError(
            f"settings must be a mapping or the URI of a secret, not a {type(options).__name__}", hint=_OPTIONS_HINT
        )
    else:
        kind = options.get("type")
        allowed = {"cloud": {"type", "cloudConfig"}, "file": {"type", "path"}}.get(
            kind if isinstance(kind, str) else ""
        )
        if allowed is None:
            raise ConfigurationError('settings: type must be "cloud" or "file"', hint=_OPTIONS_HINT)
        unknown = sorted(set(options) - allowed)
        if unknown:
            raise ConfigurationError(f'settings: type "{kind}" has no option {unknown[0]!r}', hint=_OPTIONS_HINT)
        if kind == "file":
            place = options.get("path", path)
            if not isinstance(place, str | Path) or not str(place):
                raise ConfigurationError(
                    'settings: type "file" needs a path', hint='Such as {"type": "file", "path": "/srv/goatdb"}.'
                )
            return FileSettings(place, clock=clock)
        config = options.get("cloudConfig")
        if not isinstance(config, Mapping):
            raise ConfigurationError('settings: type "cloud" needs a cloudConfig', hint=_OPTIONS_HINT)
        provider, secret_id = provider_from_config(config)
    return CloudSecretSettings(
        secret_id,
        provider,
        refresh_interval=refresh_interval,
        clock=clock,
        seen=seen,
        last_known_good=last_known_good,
    )
