"""Find out which stored version holds which private keys.

``goatherd status`` shows the result; ``goatherd retire`` uses it to choose the versions to destroy.

This module reads the value of every version, which needs a rotator's permissions, and destroys nothing. A version that
cannot be read is listed with the reason, and never counts as a version without keys. Results hold ids and no keys.

The store's list of versions also contains leftovers of interrupted changes, which another process may be about to use.
It is safe to destroy them: each provider records the destruction before it destroys the value, so the other process
gets a conflict and writes its value again.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import takewhile
from typing import Final, NamedTuple

from goatherd.errors import (
    GoatherdError,
    IdentityError,
    NewerKeyError,
    ProviderConfigurationError,
    ProviderError,
    SecretNotFoundError,
    UnavailableError,
    VersionDisabledError,
)
from goatherd.identity.document import IdentityDocument, decode_document
from goatherd.identity.key_age import last_signed_ms, roots_with_keys
from goatherd.identity.key_retirement import RetirementRule
from goatherd.identity.session import OwnedSession, Session
from goatherd.identity.transitions import CANCELLED
from goatherd.providers.base import StoreReader
from goatherd.providers.capabilities import BETWEEN, find_guarantees, list_copied_versions, list_guarantees
from goatherd.providers.values import (
    CURRENT,
    STABLE,
    SecretVersion,
    VersionId,
    VersionState,
    format_label,
)

_RECENT: Final = 12
"""How many versions to search for a cancelled rotation; each rotation writes at most six."""
_INTERRUPTED: Final = "its destruction was interrupted"
_SWITCHED_OFF: Final = "disabled; a user who may change the secret can enable it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """One stored version that may still hold private keys. Destroyed versions are not listed.

    Attributes:
        private_ids: Ids of the roots whose private keys the version holds; empty if its value could not be read.
        retired_ms: When the last of its keys that no longer sign last signed, but not before the version was written;
            in milliseconds since 1970. The grace period starts then.
        rotation_id: Id of the rotation that is prepared or published in this version, which then holds the next root's
            private key; None if there is none.
        root_ids: Ids of all roots of the document in this version.
        rotation_ids: Ids of the rotations that this document records.
        problem: Why the value of the version could not be read; None if it was read.
        is_unknown_leftover: Whether an interrupted change has left the version, its keys cannot be known, and the store
            can destroy it. Its grace period starts when it was written or when the current root began to sign,
            whichever is later.
        is_copied: Whether the version is in the store of another region, which holds a copy of the secret. Its id has
            the form ``REGION:ID``.
        is_unsearched: Whether this stands for all versions in the store of another region, which could not be searched.
            Its id is ``REGION:*``.
    """

    version: SecretVersion
    private_ids: frozenset[str]
    retired_ms: int
    rotation_id: str | None = None
    root_ids: tuple[str, ...] = ()
    rotation_ids: tuple[str, ...] = ()
    problem: str | None = None
    is_unknown_leftover: bool = False
    is_copied: bool = False
    is_unsearched: bool = False

    @property
    def is_used_elsewhere(self) -> bool:
        """Whether label ``current`` or ``stable`` points at the version in the store of another region."""
        return self.is_copied and bool(self.version.labels & {CURRENT, STABLE})

    @property
    def foreign_labels(self) -> tuple[str, ...]:
        """Labels on this version that an operator or another tool has set; a store destroys no labelled version."""
        return tuple(sorted(str(label) for label in self.version.labels - {CURRENT, STABLE}))


class _Content(NamedTuple):
    """What the document in a stored value names; the attributes are those of `Holding`."""

    private_ids: frozenset[str]
    rotation_id: str | None
    root_ids: tuple[str, ...]
    rotation_ids: tuple[str, ...]


@dataclass(slots=True)
class ReadVersions:
    """What was found in the versions that were read before, so that each is read once: a version's value never changes.

    Holds ids and digests, but no value.

    Attributes:
        digests: The SHA-256 of each version's value.
        contents: By this digest, what the value names.
    """

    digests: dict[VersionId, bytes] = field(default_factory=dict)
    contents: dict[bytes, _Content] = field(default_factory=dict)

    def forget(self, version: str) -> None:
        """Let a version and its copies be read again: they are to be destroyed, and a store may list them longer."""
        digest = self.digests.get(VersionId(version))
        self.digests = {one: known for one, known in self.digests.items() if known != digest}


async def find_holdings(
    provider: StoreReader,
    secret_id: str,
    document: IdentityDocument,
    *,
    without: Collection[str] = (),
    latest_ms: int | None = None,
    has_copies: bool = True,
    known: ReadVersions | None = None,
) -> tuple[Holding, ...]:
    """Read every version that is not destroyed, newest first, and return which private keys each holds.

    A former primary store may hold versions that no other store holds. So the stores of other regions are searched,
    too; a version there with the same value as one of the provider's own versions is left out, because it is destroyed
    with that one.

    Args:
        provider: The store.
        secret_id: The secret in it.
        document: The current identity; its history records when a root was retired.
        without: Versions not to read.
        latest_ms: The latest possible time. The time of a version that is later was recorded by a wrong clock, and is
            not used. None if no recorded time is known to be wrong.
        has_copies: Whether to search the stores of other regions, too.
        known: What earlier calls with this provider and secret have read, which is not read again; what this call reads
            is added. None to read every version.

    Raises:
        ProviderError: The store failed. A store of another region that fails is listed as a holding with a problem.
    """
    found = _read_each(
        provider, secret_id, document, without=without, latest_ms=latest_ms, has_copies=has_copies, known=known
    )
    return tuple([holding async for holding in found])


async def _read_each(
    provider: StoreReader,
    secret_id: str,
    document: IdentityDocument,
    *,
    without: Collection[str] = (),
    latest_ms: int | None = None,
    has_copies: bool = True,
    known: ReadVersions | None = None,
) -> AsyncIterator[Holding]:
    """Yield what `find_holdings` returns. Each version is read when it is its turn."""
    known = ReadVersions() if known is None else known
    own: set[bytes] = set()

    async def read(versions: Sequence[SecretVersion], *, is_copied: bool) -> AsyncIterator[Holding]:
        found: list[Holding] = []
        for version in versions:
            if version.state is VersionState.DESTROYED or version.id in without:
                continue
            holding = await _read_holding(provider, secret_id, document, version, own, known, is_copied=is_copied)
            if holding is not None:
                found.append(holding)
                yield _with_retirement_time(holding, found, document, latest_ms)

    async for holding in read(await provider.versions(secret_id), is_copied=False):
        yield holding
    for store in await list_copied_versions(provider, secret_id) if has_copies else ():
        problem = store.problem
        try:
            async for holding in read(store.versions, is_copied=True):
                yield holding
        except ProviderError as error:
            problem = error.code
        if problem is not None:
            yield _unsearched_store(store.region, problem)


def _unsearched_store(region: str, code: str) -> Holding:
    """Return the holding that stands for all versions in the store of another region, which could not be searched."""
    return Holding(
        version=SecretVersion(id=VersionId(f"{region}{BETWEEN}*"), created_ms=0, state=VersionState.DISABLED),
        private_ids=frozenset(),
        retired_ms=0,
        problem=f"not searched ({code})",
        is_copied=True,
        is_unsearched=True,
    )


def _with_retirement_time(
    holding: Holding, versions: Sequence[Holding], document: IdentityDocument, latest_ms: int | None
) -> Holding:
    """Return a holding with its time of retirement, which is derived from the versions if the history lacks it.

    The history drops the oldest rotations. For a root that it no longer names, only the time of the last rotation is
    known; if every rotation comes within the grace period of the one before, the grace period of that root's key would
    never end. So the time of the first version without the key is used: the root had stopped signing by then.
    """
    if holding.is_unknown_leftover:
        return holding
    made_ms = holding.version.created_ms
    # If the version's time is too late, only the times at which its keys last signed count. Those of the document are
    # limited (`goatherd.identity.recorded_times`).
    times = [0 if holding.private_ids and latest_ms is not None and made_ms > latest_ms else made_ms]
    for key in holding.private_ids - {document.current.id}:
        silent_ms = last_signed_ms(document, key)
        newer = list(takewhile(lambda one, key=key: key not in one.private_ids, versions))  # type: ignore[misc]
        is_named = any(key in (entry.from_id, entry.to_id) for entry in document.history)
        if not is_named and newer and not any(one.problem for one in newer):
            silent_ms = min(silent_ms, newer[-1].version.created_ms)
        times.append(silent_ms)
    return replace(holding, retired_ms=max(times))


async def read_private_root(
    provider: StoreReader,
    secret_id: str,
    document: IdentityDocument,
    root: Session | None,
    *,
    known: ReadVersions | None = None,
) -> OwnedSession | None:
    """Return a root of an identity with its private key, from the newest stored version that holds the key.

    No older version is read. Returns None if no version holds the key, or without a root.

    Args:
        provider: The store.
        secret_id: The secret that holds the identity.
        document: The current identity.
        root: The root, exactly as the document or its introduction lists it.
        known: As for `find_holdings`.

    Raises:
        ProviderError: The store failed.
    """
    if root is None:
        return None
    async for holding in _read_each(provider, secret_id, document, known=known):
        if root.id in holding.private_ids:
            held = decode_document((await provider.read(secret_id, holding.version.id)).value.reveal())
            for owned in (held.current, held.next):
                if owned is not None and owned.session == root and not owned.is_remote:
                    return owned
    return None


async def find_former_root(
    provider: StoreReader,
    secret_id: str,
    document: IdentityDocument,
    root_id: str,
    *,
    known: ReadVersions | None = None,
) -> Session | None:
    """Return a root that the current document no longer lists, as an older version lists it; None if none does.

    Args:
        provider: The store.
        secret_id: The secret that holds the identity.
        document: The current identity.
        root_id: Id of the root.
        known: As for `find_holdings`.

    Raises:
        ProviderError: The store failed.
    """
    async for holding in _read_each(provider, secret_id, document, known=known):
        if root_id in holding.root_ids:
            held = decode_document((await provider.read(secret_id, holding.version.id)).value.reveal())
            return held.find_root(root_id)
    return None


async def find_cancelled_holdings(
    provider: StoreReader,
    secret_id: str,
    document: IdentityDocument,
    rotation_id: str,
    *,
    without: Collection[str] = (),
) -> tuple[Holding, ...]:
    """Return the versions in which a rotation that was just cancelled was prepared or published, newest first.

    Only a few values are read, because the search ends at the first version that is older than these. A version that
    this search misses, such as one left by a process that died, is found by `find_holdings`.

    Args:
        provider: The store.
        secret_id: The secret in it.
        document: The current identity.
        rotation_id: Id of the cancelled rotation.
        without: Versions not to read.

    Raises:
        ProviderError: The store failed.
    """
    found: list[Holding] = []
    for version in (await provider.versions(secret_id))[:_RECENT]:
        if version.state is not VersionState.ENABLED or version.id in without:
            continue
        holding = await _read_holding(provider, secret_id, document, version, set(), ReadVersions())
        if holding is None or holding.rotation_id != rotation_id:
            if found:
                break
            continue
        found.append(holding)
    return tuple(found)


async def find_unlisted_keys(
    provider: StoreReader, secret_id: str, document: IdentityDocument
) -> tuple[tuple[str, int], ...]:
    """Return the roots that are no longer in an identity document, but whose private keys the store still holds.

    If rotations follow each other fast, a root is removed from the identity before the grace period of its key ends,
    and the document no longer shows that the key must be destroyed. Versions that a label points at are left out,
    because `goatherd retire` does not destroy them, and so are those in a store that deletes old versions in its own
    time.

    Returns an empty tuple, and reads nothing, if the identity has never dropped a root (`pruned` is 0), or if every
    store only marks a destroyed version for later deletion (`Guarantees.deprecates`). Otherwise reads every version.

    Args:
        provider: The store.
        secret_id: The secret in it.
        document: The current identity.

    Returns:
        The ids of the roots, each with the time (ms since 1970) at which the grace period of its key starts. If several
        versions hold the key, it is the earliest of their times.

    Raises:
        ProviderError: The store failed.
    """
    if document.pruned == 0 or all(one.deprecates for one in list_guarantees(provider)):
        return ()
    listed = {root.id for root in document.roots}
    found: dict[str, int] = {}
    for one in await find_holdings(provider, secret_id, document):
        if one.version.labels or find_guarantees(provider, one.version.id).deprecates:
            continue
        for key in one.private_ids - listed:
            found[key] = min(found.get(key, one.retired_ms), one.retired_ms)
    return tuple(found.items())


async def _read_holding(
    provider: StoreReader,
    secret_id: str,
    document: IdentityDocument,
    version: SecretVersion,
    own: set[bytes],
    known: ReadVersions,
    *,
    is_copied: bool = False,
) -> Holding | None:
    """Return which private keys one version holds; None if it was destroyed, or is a mere copy.

    Args:
        provider, secret_id, document: As for `find_holdings`.
        version: The version.
        own: The digests of the values of the provider's own versions, to which that of a value that is not copied is
            added.
        known: What was read before, to which what is read now is added.
        is_copied: Whether the version is in the store of another region; with a digest in `own` it is a mere copy.
    """
    is_interrupted = version.state is VersionState.DESTROYING
    may_destroy = (version.is_leftover or is_interrupted) and provider.guarantees.destroys
    unknown = Holding(
        version=version,
        private_ids=frozenset(),
        retired_ms=max(version.created_ms, document.rotated_at or 0) if may_destroy else version.created_ms,
        problem=_INTERRUPTED if is_interrupted else _SWITCHED_OFF,
        is_unknown_leftover=may_destroy,
        is_copied=is_copied,
    )
    if version.state in (VersionState.DISABLED, VersionState.DESTROYING):
        return unknown
    try:
        digest, value = known.digests.get(version.id), None
        if digest is None or version.is_leftover:
            value = (await provider.read(secret_id, version.id)).value.reveal()
            digest = hashlib.sha256(value).digest()
            if not version.is_leftover:  # another writer may still replace the value that a killed one has left
                known.digests[version.id] = digest
        if is_copied and digest in own:
            return None
        if not is_copied:
            own.add(digest)
        if digest not in known.contents:
            if value is None:
                value = (await provider.read(secret_id, version.id)).value.reveal()
            known.contents[digest] = _read_content(value)
        content = known.contents[digest]
    except SecretNotFoundError:
        return None  # destroyed since it was listed
    except VersionDisabledError:
        return unknown
    except NewerKeyError as error:
        return replace(unknown, problem=f"not an identity of this version ({error.code})", is_unknown_leftover=False)
    except IdentityError as error:
        return replace(unknown, problem=f"not an identity ({error.code})")
    except UnavailableError as error:
        if error.retryable:
            raise
        return replace(unknown, problem=f"damaged ({error.code})")
    except ProviderConfigurationError as error:
        if not version.is_leftover:
            raise
        # Goatherd destroys no version that another tool has written.
        return replace(unknown, problem=f"not written by Goatherd ({error.code})", is_unknown_leftover=False)
    silent_ms = [last_signed_ms(document, key) for key in content.private_ids - {document.current.id}]
    return Holding(
        version=version,
        private_ids=content.private_ids,
        retired_ms=max([version.created_ms, *silent_ms]),
        rotation_id=content.rotation_id,
        root_ids=content.root_ids,
        rotation_ids=content.rotation_ids,
        is_copied=is_copied,
    )


def _read_content(value: bytes) -> _Content:
    held = decode_document(value)
    signing = [one for one in (held.current, held.next) if one is not None]
    rotations = [one.rotation_id for one in held.history if one.rotation_id]
    if held.rotation is not None:
        rotations.append(held.rotation.id)
    return _Content(
        private_ids=frozenset(one.id for one in signing if not one.is_remote),
        rotation_id=held.rotation.id if held.rotation is not None and held.next is not None else None,
        root_ids=tuple(root.id for root in held.roots),
        rotation_ids=tuple(dict.fromkeys(rotations)),
    )


def describe_kept(version: str, labels: Sequence[str], *, command: str = "`goatherd retire`") -> str:
    """Return, in one line, why a version with a retired private key was not destroyed, and what to do about it.

    Args:
        version: The id of the version; ``REGION:ID`` for one in the store of another region.
        labels: The labels on it that Goatherd has not set.
        command: The command to run after the labels were removed.
    """
    shown = [format_label(label) for label in labels]
    names = " and ".join(f"`{label}`" for label in shown)
    points = "labels {} point" if len(labels) > 1 else "label {} points"
    region, between, _ = version.partition(BETWEEN)
    store = " --provider URI" if between else ""
    commands = " and ".join(f"`goatherd show --versions unlabel {label}{store}`" for label in shown)
    commands += f" (URI: the store of region {region})" if between else ""
    it = "them" if len(labels) > 1 else "it"
    return (
        f"version {version} is kept: {points.format(names)} at it; remove {it} with {commands}, and run {command} again"
    )


def is_gone_when_destroyed(provider: StoreReader, version: str) -> bool:
    """Return whether the value of a version can be read nowhere once `SecretProvider.destroy` has returned.

    A version of the primary store has copies in the stores of other regions, which keep the value if one of them does
    not destroy it. A version that only the store of another region has, with an id of the form ``REGION:ID``, has none.
    """
    is_alone = BETWEEN in version
    return (find_guarantees(provider, VersionId(version)) if is_alone else provider.guarantees).destroys


def retained_copies(provider: StoreReader) -> str | None:
    """Return where a value can still be read after `destroy`, as a phrase; None if no copy is retained.

    Copies that the store's operator makes (a replica, a backup, a snapshot) are not known to any provider.
    """
    guarantees = provider.guarantees
    store = "this store" if len(list_guarantees(provider)) == 1 else "the store of at least one region"
    if guarantees.destroys:
        return None
    if guarantees.deprecates:
        return (
            f"{store} removes a version in its own time after nothing points at it; until then its value can be read by"
            " the version's id"
        )
    if guarantees.disables:
        return (
            f"{store} only disables a version: the value is kept, and a user who may change the secret can enable it"
            " again, until the whole secret is deleted and purged"
        )
    return f"{store} cannot destroy a single version"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyInventory:
    """Where the private keys of one identity are, and which of them `goatherd retire` would destroy and when.

    Attributes:
        holdings: The versions that are not destroyed, newest first.
        rule: Which versions are retired, and when they may be destroyed.
        roots: Ids of all roots of the identity document, in its order.
        recorded: Ids of roots that are recorded as retired: no version holds their private keys.
        unretired: The other previous roots, each by id with the time at which it last signed; empty while a rotation is
            in progress.
        copies: Where a value can still be read after the store has destroyed it, as a phrase; None if nowhere.
        cause: The error for which the store could not be read; None if it was read.
        anchors: Ids of the anchors, present and former, whose keys are in an HSM or a KMS.
    """

    holdings: tuple[Holding, ...]
    rule: RetirementRule
    roots: tuple[str, ...]
    recorded: frozenset[str]
    unretired: tuple[tuple[str, int], ...]
    copies: str | None
    cause: GoatherdError | None = None
    anchors: frozenset[str] = frozenset()

    @property
    def problem(self) -> str | None:
        """The code of `cause`."""
        return None if self.cause is None else self.cause.code

    @property
    def is_complete(self) -> bool:
        """Whether every version could be read, so that a key found in none of them is certainly not stored."""
        return self.problem is None and all(one.problem is None for one in self.holdings)

    @property
    def unsearched(self) -> tuple[Holding, ...]:
        """The stores of other regions that could not be searched, so that they may hold any private key."""
        return tuple(one for one in self.holdings if one.is_unsearched)

    def versions_with(self, root: str) -> tuple[str, ...]:
        """Return the ids of the versions that hold this root's private key."""
        return tuple(one.version.id for one in self.holdings if root in one.private_ids)

    def holdings_due(self, now_ms: int) -> tuple[Holding, ...]:
        """Return the versions that `goatherd retire` would destroy now."""
        return tuple(one for one in self.rule.find_due(self.holdings, now_ms) if not one.foreign_labels)

    def holdings_kept_by_labels(self, now_ms: int) -> tuple[Holding, ...]:
        """Return the versions that `goatherd retire` would destroy now if they had no foreign labels.

        A foreign label is one that an operator or another tool has set.
        """
        return tuple(one for one in self.rule.find_due(self.holdings, now_ms) if one.foreign_labels)

    def next_due_ms(self, now_ms: int) -> int | None:
        """Return when the next version will be due to be destroyed, in milliseconds since 1970; None if none will."""
        times = [self.rule.due_ms(one, now_ms) for one in self.retirable_holdings()]
        return min([one for one in times if one > now_ms], default=None)

    def recordable_roots(self, now_ms: int) -> tuple[str, ...]:
        """Return the ids of roots that `goatherd retire` would record as retired now: no version holds their keys."""
        return () if self.cause is not None else self.rule.find_recordable(self.unretired, self.holdings, now_ms)

    def retired_holdings(self) -> list[Holding]:
        """Return the versions with a private key that no longer signs, or with unknown keys.

        The version with the label ``current`` is left out. So is one with the label ``stable``, except if a run that
        was interrupted has left the label behind: `goatherd retire` moves it before it destroys anything.
        """
        return [one for one in self.holdings if self.rule.is_retired(one)]

    def retirable_holdings(self) -> list[Holding]:
        """Return the versions with retired keys that no label protects from being destroyed."""
        return [one for one in self.retired_holdings() if not one.foreign_labels]


async def take_key_inventory(
    provider: StoreReader, secret_id: str, document: IdentityDocument, grace: timedelta
) -> KeyInventory:
    """Read every version of a secret. A store that refuses is reported as a problem, not as a store without keys.

    Args:
        provider: The store.
        secret_id: The secret in it.
        document: The current identity.
        grace: How long a key is kept after its root was replaced.
    """
    holdings: tuple[Holding, ...] = ()
    cause: GoatherdError | None = None
    try:
        holdings = await find_holdings(provider, secret_id, document)
    except GoatherdError as error:
        cause = error
    # In phase steady, `goatherd retire` first moves a label `stable` that an interrupted run has left behind.
    in_use = {CURRENT} if document.rotation is None else {CURRENT, STABLE}
    return KeyInventory(
        holdings=holdings,
        rule=RetirementRule(
            signing=frozenset([document.current.id, *([document.next.id] if document.next else [])]),
            in_use=frozenset(one.version.id for one in holdings if one.version.labels & in_use),
            cancelled=frozenset(
                one.rotation_id for one in document.history if one.event == CANCELLED and one.rotation_id
            ),
            grace=grace,
        ),
        roots=tuple(root.id for root in document.roots),
        anchors=document.anchor_ids,
        recorded=document.retired_ids,
        unretired=roots_with_keys(document) if document.rotation is None else (),
        copies=retained_copies(provider),
        cause=cause,
    )
