"""The stores of several regions: show them, copy a newer identity to followers, and make a follower the primary store.

`read_regions` changes nothing. `sync_stores` writes followers only, and never over a later identity. `promote_store`
writes one version to the promoted store, with a higher generation than any that was seen. The operator then names the
new primary store in the configuration of every command that writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from goatherd.clock import Clock, SystemClock
from goatherd.cluster.discovery import NodeDirectory
from goatherd.cluster.observer import Observer
from goatherd.errors import (
    ConfigurationError,
    GoatherdError,
    IdentityError,
    PromotionRefusedError,
    ProviderError,
    SecretNotFoundError,
    StoresDifferError,
    UnsignedIdentityError,
)
from goatherd.identity.document import IdentityDocument, decode_document, encode_document, source_digest
from goatherd.identity.transitions import PROMOTED, can_go_back, record_promotion
from goatherd.operations.identity_store import Store
from goatherd.operations.runs import AuditLog, record_run
from goatherd.providers.base import SecretProvider
from goatherd.providers.values import CURRENT, STABLE, Label, VersionId, VersionState
from goatherd.remote_keys import call_signing
from goatherd.rotation.signed_store import SignedStoreCheck
from goatherd.stores import (
    DocumentMark,
    FollowerView,
    RegionalReader,
    ReplicatedStore,
    Standing,
    StoreMember,
    compare_documents,
)
from goatherd.stores.members import describe_promotion, describe_untrusted, find_secret_id
from goatherd.stores.promotion import Objection, find_objections

TIMEOUT = timedelta(seconds=10)
ONLY: Final = "-"
"""The region of a single store."""
_MOST_READ = 32
"""How many versions are read at most to find the first change that a store lacks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionState:
    """The state of one region's store.

    Attributes:
        region: The region.
        scheme: URI scheme of the store.
        is_primary: Whether this is the primary store; the others are followers.
        generation: The generation of the identity in this store; None if it is not known.
        standing: How this identity compares with the latest one in any store (same, behind, another history, or
            untrusted: neither follows from the other's roots); None if it is not known.
        labels: For each label, the id of the version that it points at.
        lag_since_ms: When the first change that this store lacks was written, in milliseconds since 1970; None if no
            change is missing, or if the time is not known.
        problem: Why this store cannot be read or cannot follow the primary store; None if there is no problem.
        hint: What to do about the problem.
        is_missing: Whether this store answers, and has no such secret.
    """

    region: str
    scheme: str
    is_primary: bool
    generation: int | None = None
    standing: Standing | None = None
    labels: Mapping[Label, VersionId]
    lag_since_ms: int | None = None
    problem: str | None = None
    hint: str = ""
    is_missing: bool = False
    document: IdentityDocument | None = None

    @property
    def is_reachable(self) -> bool:
        """Whether the identity in the region's store could be read."""
        return self.document is not None

    @property
    def is_in_step(self) -> bool:
        """Whether the region's store holds the latest identity in any store, and has no problem."""
        return self.standing is Standing.SAME and self.problem is None


def writer_of(store: Store) -> ReplicatedStore:
    """Return the object that compares and writes the stores of several regions.

    Args:
        store: The stores of all regions as one `Store`, already open.

    Raises:
        ConfigurationError: There is only one store, without regions.
    """
    provider = store.provider
    if isinstance(provider, ReplicatedStore):
        return provider
    if isinstance(provider, RegionalReader):
        return ReplicatedStore.from_reader(provider)
    raise ConfigurationError(
        "there is only one store, but this command needs a store in each of several regions",
        hint="Write [stores] with `primary` and `followers` into goatherd.toml, and give no --provider.",
    )


async def read_regions(store: Store) -> tuple[RegionState, ...]:
    """Read the store of every region, and compare each with the one that holds the latest identity. Changes nothing.

    Args:
        store: The open stores, or a single store, whose region is `ONLY`.
    """
    if isinstance(store.provider, ReplicatedStore | RegionalReader):
        stores = writer_of(store)
    else:
        stores = ReplicatedStore(
            [StoreMember(region=ONLY, provider=store.provider, template=store.secret_id, is_primary=True)]
        )
    views: dict[str, FollowerView] = {}
    with suppress(ProviderError, IdentityError):  # the primary store cannot be read, as its own row shows
        views = {view.region: view for view in await stores.observe(store.secret_id)}
    states = await asyncio.gather(*(_read_region(one, stores, store.secret_id) for one in stores.members))
    marks = [DocumentMark.from_document(one.document) for one in states if one.document is not None]
    if not marks:
        return tuple(states)
    primary = states[0].document
    latest = DocumentMark.from_document(primary) if primary is not None else max(marks, key=lambda it: it.generation)
    for mark in marks:
        if compare_documents(mark, latest) is Standing.AHEAD:
            latest = mark
    newest = next(one for one in states if one.document and DocumentMark.from_document(one.document) == latest)
    compared = [_compare_region(one, latest, newest, views.get(one.region)) for one in states]
    member = next(one for one in stores.members if one.region == newest.region)
    inner = find_secret_id(member, stores.primary, store.secret_id)
    return tuple(await asyncio.gather(*(_add_lag(one, newest, member, inner) for one in compared)))


async def _read_region(
    member: StoreMember, stores: ReplicatedStore, secret_id: str, *, must_ask: bool = False
) -> RegionState:
    """Return what the store of one region holds.

    Args:
        member: The store.
        stores: All stores.
        secret_id: The secret's id in the primary store.
        must_ask: Whether to ask the store although its last call failed a moment ago.
    """
    state = RegionState(region=member.region, scheme=member.provider.scheme, is_primary=member.is_primary, labels={})
    inner = find_secret_id(member, stores.primary, secret_id)
    try:
        failure = None if must_ask else stores.recent_failure(member, secret_id)
        if failure is not None:
            raise failure.with_traceback(None)
        async with asyncio.timeout(TIMEOUT.total_seconds()):
            found = await member.provider.read(inner, attempts=1)
            document = decode_document(found.value.reveal())
            labels = await _read_labels(member.provider, inner, found.version.id)
    except TimeoutError:
        return replace(state, problem=f"no answer within {TIMEOUT.total_seconds():g} s")
    except (ProviderError, IdentityError) as error:
        is_missing = isinstance(error, SecretNotFoundError)
        return replace(state, problem=str(error), hint=error.hint, is_missing=is_missing)
    return replace(state, generation=document.generation, document=document, labels=labels)


async def _read_labels(provider: SecretProvider, secret_id: str, current: VersionId) -> dict[Label, VersionId]:
    labels = {CURRENT: current}
    with suppress(ProviderError):  # there is no such label, or a server's credentials may not read it
        labels[STABLE] = (await provider.read(secret_id, STABLE, attempts=1)).version.id
    return labels


def _compare_region(
    state: RegionState, latest: DocumentMark, newest: RegionState, view: FollowerView | None
) -> RegionState:
    if state.is_missing:
        sync = "`goatherd stores sync` fills it."
        hint = describe_promotion(newest.region, state.region) if state.is_primary else sync
        return replace(state, hint=hint)
    if state.document is None:
        return state
    standing = compare_documents(DocumentMark.from_document(state.document), latest)
    state = replace(state, standing=standing)
    if standing is Standing.BEHIND and newest.document is not None:
        problem = f"behind region {newest.region}, which holds generation {latest.generation}"
        return replace(state, problem=problem, hint=_hint_for(state, newest))
    if standing is Standing.SPLIT:
        return replace(state, problem=f"another history than region {newest.region}", hint=_SPLIT_HINT)
    if standing is Standing.UNTRUSTED:
        problem = (
            f"holds generation {state.generation}, and region {newest.region} generation {latest.generation}: neither"
            " follows from the other's roots, so neither is the later one"
        )
        return replace(state, problem=problem, hint=describe_untrusted(state.region))
    if view is not None and not view.is_in_step and not view.is_later:
        return replace(state, problem=view.problem, hint=view.hint)
    return state


async def _add_lag(state: RegionState, newest: RegionState, member: StoreMember, secret_id: str) -> RegionState:
    """Set `lag_since_ms` of a store that is behind: when the first change that it lacks was written.

    Args:
        state: The store that may be behind.
        newest: The state of the store that holds the latest identity.
        member: The store that holds the latest identity; its earlier versions are read if needed.
        secret_id: The secret's id in `member`.
    """
    if state.standing is not Standing.BEHIND or state.document is None or newest.document is None:
        return state
    held = DocumentMark.from_document(state.document)
    if _is_next(newest.document, held):
        return replace(state, lag_since_ms=newest.document.last_updated)
    with suppress(ProviderError, IdentityError, TimeoutError):  # a server's credentials may not list the versions
        async with asyncio.timeout(TIMEOUT.total_seconds()):
            for version in (await member.provider.versions(secret_id))[:_MOST_READ]:
                if version.state is not VersionState.ENABLED:
                    continue
                found = await member.provider.read(secret_id, version.id, attempts=1)
                document = decode_document(found.value.reveal())
                if document.generation <= held.generation:
                    break
                if _is_next(document, held):
                    return replace(state, lag_since_ms=document.last_updated)
    return state


def _is_next(document: IdentityDocument, held: DocumentMark) -> bool:
    """Return whether an identity document is the direct successor of the one that `held` describes."""
    if document.lineage is None or not document.lineage.entries:
        return document.generation == held.generation + 1
    generation, digest = document.lineage.entries[-1]
    return generation == held.generation and held.digest.startswith(digest)


_SPLIT_HINT = (
    "Both stores were changed independently. `goatherd doctor` shows both histories and the ways out (how-to page: More"
    " than one region)."
)


def _hint_for(state: RegionState, newest: RegionState) -> str:
    if not newest.is_primary:
        return (
            "If a region was promoted, write the [stores] section that `goatherd stores promote` printed into"
            f" goatherd.toml. Otherwise the store of region {state.region} holds an older identity than before: make"
            f" {newest.region} the primary store. `goatherd stores sync` then brings the others forward."
        )
    return "`goatherd stores sync` brings it forward."


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """What `sync_stores` has done.

    Attributes:
        followers: Each follower afterwards.
        before: The generation of each follower before; None if it had none, or if it is not known.
    """

    followers: tuple[FollowerView, ...]
    before: Mapping[str, int | None]

    @property
    def is_complete(self) -> bool:
        """Whether every follower holds what the primary store holds."""
        return all(one.is_in_step for one in self.followers)


async def sync_stores(
    store: Store, *, audit_log: AuditLog | None = None, patience: timedelta = timedelta(seconds=30)
) -> SyncReport:
    """Copy the identity in the primary store to every follower that is behind. Later identities in followers are kept.

    Args:
        store: The open stores.
        audit_log: The file of the audit trail; None to write only the log.
        patience: How long to wait until every follower shows its copy.

    Raises:
        ConfigurationError: There is only one store, without regions.
        ProviderError: The primary store cannot be read.
    """
    stores = writer_of(store)
    clock = stores.clock
    async with record_run(store, "stores", {"action": "sync"}, audit_log):
        before = await stores.observe(store.secret_id)
        until = clock.monotonic() + patience.total_seconds()
        while True:
            views = await stores.observe(store.secret_id, catch_up=True)
            waiting = [one for one in views if not one.is_in_step and one.is_reachable and not one.is_lasting]
            if not waiting or clock.monotonic() >= until:
                break
            await clock.sleep(timedelta(milliseconds=500))
    return SyncReport(followers=views, before={one.region: one.generation for one in before})


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionReport:
    """The result of a promotion.

    Attributes:
        region: The region whose store is the primary store now.
        before: The generation that the store held.
        generation: The generation that it holds now.
        overruled: What the operator has overruled with ``--force-generation``.
        unseen: Stores and servers whose generation is not known, each with the reason: they did not answer, or do not
            report it.
        is_repeated: Whether an earlier call had promoted the store, so that this call wrote nothing.
        can_go_back: Whether a rotation in progress can still be rolled back. A rotation that sets an anchor (a key in
            an HSM or a KMS that endorses the roots) can no longer be, if the new generation is above the last one for
            which the anchor has signed that.
    """

    region: str
    before: int
    generation: int
    overruled: tuple[Objection, ...]
    unseen: Mapping[str, str]
    is_repeated: bool = False
    can_go_back: bool = True


async def promote_store(
    store: Store,
    region: str,
    nodes: NodeDirectory | None = None,
    *,
    force: bool = False,
    audit_log: AuditLog | None = None,
    clock: Clock | None = None,
) -> PromotionReport:
    """Make a region's store the primary store: write a version there with a higher generation than any that was seen.

    Args:
        store: The open stores.
        region: The region of the store.
        nodes: The servers, which are asked for the generation that they use; None to ask no server.
        force: Whether to promote the store although another store or a server has shown a later identity. Servers that
            use that identity reject the promoted one until they are started with ``--accept-identity``.
        audit_log: The file of the audit trail; None to write only the log.
        clock: Supplies the time.

    Raises:
        ConfigurationError: No follower has this region.
        PromotionRefusedError: Another store or a server has shown a later identity, or one with another history; or
            no server trusts the root in the store of the region, also with `force`.
        StoresDifferError: Another region was promoted at the same time, so there are two histories now.
        UnsignedIdentityError: The identity in the store of the region was changed since a root signed it.
        ProviderError, IdentityError: The store of the region cannot be read or written.
    """
    stores = writer_of(store)
    time = clock or SystemClock()
    member = next((one for one in stores.members if one.region == region), None)
    if member is None:
        regions = ", ".join(one.region for one in stores.followers)
        raise ConfigurationError(f"no store has the region {region!r}", hint=f"Name a follower: {regions}.")
    if member.is_primary:
        raise ConfigurationError(f"region {region} is the primary store already", hint="Name a follower.")
    inner = find_secret_id(member, stores.primary, store.secret_id)
    found = await member.provider.read(inner)
    document = decode_document(found.value.reveal(), store.signers.sign)
    seen, unseen = await _gather_evidence(stores, store.secret_id, region, nodes)
    await _check_signature(member, inner, document, nodes, time)
    is_trusted = await _check_trusted(member, inner, document, nodes, time)
    mark = DocumentMark.from_document(document)
    objections = find_objections(mark, seen)
    if is_trusted:  # the other store, not this one, holds what an attacker wrote
        objections = tuple(one for one in objections if one.standing is not Standing.UNTRUSTED)
    if objections and not force:
        raise PromotionRefusedError(
            f"region {region} holds generation {mark.generation}, but {'; '.join(one.text for one in objections)}",
            provider=member.provider.scheme,
            secret_id=inner,
            operation="promote",
            hint="Promote the region that holds the later identity. If it is lost, --force-generation overrules this:"
            " servers that use the later identity then have to be started once with --accept-identity.",
        )
    last = document.history[-1] if document.history else None
    is_repeated = last is not None and last.event == PROMOTED and region in (last.reason or "").split()
    report = PromotionReport(
        region=region,
        before=document.generation,
        generation=document.generation,
        overruled=objections,
        unseen=unseen,
        can_go_back=can_go_back(document),
    )
    if is_repeated and not objections:
        return replace(report, is_repeated=True)
    promoted = Store(provider=member.provider, secret_id=inner, org=store.org, name=store.name)
    asked = {
        "action": "promote",
        "region": region,
        "generation": document.generation,
        "overruled": [one.text for one in objections],
        "unseen": list(unseen),
    }
    async with record_run(promoted, "stores", asked, audit_log):
        # Only a rotation in progress can be rolled back to it.
        stable = None if document.rotation is None else await _read_stable(member.provider, inner)
        # SECURITY: an attacker's generation, which may be above any that servers follow, does not count
        # (tests/unit/stores/test_foreign_identity.py).
        counting = [one.generation for one in objections if one.standing is not Standing.UNTRUSTED]
        above = max([document.generation, *counting])
        changed = await call_signing(
            record_promotion, document, time.now_ms(), region=region, above=above, stable_version=stable
        )
        await member.provider.write(inner, encode_document(changed), label=CURRENT, expected=found.version.id)
        after, _ = await _gather_evidence(stores, store.secret_id, region, None)
        since = {who: mark for who, mark in after.items() if mark != seen.get(who)}
        if others := find_objections(DocumentMark.from_document(changed), since):
            raise StoresDifferError(
                f"region {region} was promoted to generation {changed.generation}, but meanwhile"
                f" {'; '.join(one.text for one in others)}",
                provider=member.provider.scheme,
                secret_id=inner,
                operation="promote",
                hint="Make only one of them the primary store in [stores], and delete the secret in the other (how-to"
                " page: More than one region).",
            )
    return replace(report, generation=changed.generation, can_go_back=can_go_back(changed))


async def _check_signature(
    member: StoreMember, secret_id: str, document: IdentityDocument, nodes: NodeDirectory | None, clock: Clock
) -> None:
    """Check that a root has signed the identity in a store, as every command does that signs a later one.

    SECURITY: a writer of this store without a root's key may have altered the identity, and the promotion signs it
    (tests/unit/operations/test_stores.py).

    Raises:
        UnsignedIdentityError: The identity was changed since its current root signed it.
    """
    observer = Observer(nodes or (), clock=clock, timeout=TIMEOUT)
    try:
        await SignedStoreCheck(member.provider, secret_id, observer.read_identities).check_document(document)
    except UnsignedIdentityError as error:
        error.hint = f"Make {member.region} the primary store in [stores]. {error.hint}"
        raise


async def _check_trusted(
    member: StoreMember, secret_id: str, document: IdentityDocument, nodes: NodeDirectory | None, clock: Clock
) -> bool:
    """Check that a server trusts the current root in a store; return whether one does, False if none answers.

    SECURITY: a writer of this store without a root's key can write an identity of their own, correctly signed. After a
    promotion, `goatherd stores sync` would copy this identity over that of the cluster
    (tests/unit/operations/test_stores.py).

    Raises:
        PromotionRefusedError: Servers have answered, and none of them trusts the root.
    """
    if nodes is None:
        return False
    root, digest, now_ms = document.current, source_digest(document), clock.now_ms()
    refusing = []
    for client in await nodes():
        with suppress(GoatherdError):  # the evidence names a server that does not answer
            answer = await client.identity()
            if answer is not None and answer.digest == digest:
                return True
            if await client.answers(root):
                return True
            if root.session.is_expired(now_ms) and answer is not None and root.id in (answer.roots or ()):
                return True  # servers reject requests of an expired root
            refusing.append(client.base_url)
    if refusing:
        raise PromotionRefusedError(
            f"no server trusts root {root.id}, which region {member.region} holds: {', '.join(refusing)} rejected its"
            " signature",
            provider=member.provider.scheme,
            secret_id=secret_id,
            operation="promote",
            hint="Find out who has written this identity. Promote a region whose root the servers trust; delete the"
            f" secret in region {member.region}, and `goatherd stores sync` fills it again.",
        )
    return False


async def _read_stable(provider: SecretProvider, secret_id: str) -> VersionId | None:
    """Return the id of the version with the label `stable`; None if there is none.

    Raises:
        ProviderError: The store cannot be read. Without the id, a rotation in progress could never be rolled back.
    """
    try:
        return (await provider.read(secret_id, STABLE)).version.id
    except SecretNotFoundError:
        return None


async def _gather_evidence(
    stores: ReplicatedStore, secret_id: str, region: str, nodes: NodeDirectory | None
) -> tuple[dict[str, DocumentMark], dict[str, str]]:
    """Return the identities that the other stores and the servers hold, by name; and for others why not, by name."""
    others = [one for one in stores.members if one.region != region]
    # SECURITY: a store that failed before may be back with a later identity (tests/unit/operations/test_stores.py).
    states = await asyncio.gather(*(_read_region(one, stores, secret_id, must_ask=True) for one in others))
    seen: dict[str, DocumentMark] = {}
    unseen: dict[str, str] = {}
    for state in states:
        if state.document is None:
            unseen[f"region {state.region}"] = state.problem or ""
        else:
            seen[f"region {state.region}"] = DocumentMark.from_document(state.document)
    if nodes is None:
        return seen, unseen
    for client in await nodes():
        try:
            answer = await client.identity()
        except GoatherdError as error:
            unseen[client.base_url] = str(error)
            continue
        if answer is not None and answer.generation is not None and answer.digest is not None:
            seen[client.base_url] = DocumentMark(generation=answer.generation, digest=answer.digest)
        else:
            kind = "unmodified, without an agent" if answer is None else "it has a settings.json"
            unseen[client.base_url] = f"it answered, but reports no generation ({kind})"
    return seen, unseen
