"""Copy a secret from one store to another: first every readable version, oldest first, and then its labels.

The destination must not hold the secret yet, unless an interrupted copy is resumed. Nothing is changed in the source
and nothing is deleted. The versions are copied as bytes; the current one is decoded only to refuse a copy while a
rotation is in progress. Rules:

- The label `current` is set last, so an interrupted copy has no current version, and no server starts with it. The
  report names the two exceptions: a platform that itself makes the first version current, and a source that has no
  other label.
- The destination is written by compare-and-swap only. A copy is resumed only if the destination holds exactly the first
  versions of the source, which is checked by their digests.
- A copy has succeeded when every version was read back with the same value and every label is on the right version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final

from goatherd.clock import SystemClock
from goatherd.errors import (
    ConflictError,
    IdentityError,
    IdentityExistsError,
    IllegalStepError,
    SecretExistsError,
    SecretNotFoundError,
    SecretTooLargeError,
    UnavailableError,
    VersionDisabledError,
)
from goatherd.identity.document import decode_document
from goatherd.operations.identity_store import Store
from goatherd.providers.base import ReadConsistency
from goatherd.providers.values import CURRENT, STABLE, Label, SecretBytes, SecretVersion, VersionId, VersionState
from goatherd.providers.versioned_record import digest_of

SETTLE: Final = timedelta(seconds=30)
_PAUSE: Final = timedelta(milliseconds=200)
_DEPRECATED_KEPT: Final = 64
"""How many old versions to copy to a store that deletes them in its own time. AWS promises to keep one, and keeps about
100; without them, `goatherd restore` could not make the previous root sign again."""

Progress = Callable[[str, str], None]
"""Called with each version that was copied: its id in the source, and its id in the destination."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionCopy:
    """One version to copy. `target` is its id in the destination, or None until it is written."""

    source: VersionId
    value: SecretBytes
    digest: str
    target: VersionId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedVersion:
    """A version that is not copied, and the reason."""

    id: VersionId
    reason: str

    def to_json(self) -> dict[str, str]:
        """Return the skipped version as JSON data."""
        return {"id": self.id, "reason": self.reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyPlan:
    """The versions and labels that the destination must hold when the copy is complete.

    Attributes:
        items: The versions, oldest first.
        labels: For each label, the id of its version in the source.
        skipped: The versions that are not copied.
        left_labels: Labels of other tools that are not copied, because the destination does not accept them; each with
            the id of its version in the source.
        listing: The versions that the source listed, to detect a change during the copy.
    """

    items: tuple[VersionCopy, ...]
    labels: Mapping[Label, VersionId]
    skipped: tuple[SkippedVersion, ...]
    left_labels: Mapping[Label, VersionId]
    listing: tuple[SecretVersion, ...] = field(repr=False)

    @property
    def carrier(self) -> Label:
        """The label that each new version is written with, since a version cannot be written without one.

        It is `stable` or another label that is copied; `current` only if there is no other.
        """
        others = sorted(set(self.labels) - {CURRENT})
        return STABLE if STABLE in others else Label(others[0]) if others else CURRENT


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyReport:
    """What a copy has done, or would do.

    Attributes:
        plan: What was copied, with the ids in the destination as far as they are known.
        present: How many versions the destination held before.
        is_dry: Whether this was a dry run, in which nothing was written.
        shows_current_early: Whether the destination has a current version before the copy is complete.
    """

    plan: CopyPlan
    present: int
    is_dry: bool
    shows_current_early: bool

    def labels_of(self, item: VersionCopy) -> list[str]:
        """Return the labels of one copied version of the secret."""
        return sorted(label for label, holder in self.plan.labels.items() if holder == item.source)


async def copy_secret(
    source: Store,
    destination: Store,
    *,
    resume: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> CopyReport:
    """Copy a secret with its readable versions and its labels from one store to another.

    Args:
        source: The store to copy from.
        destination: The store to copy to.
        resume: Complete a copy that was interrupted.
        dry_run: Read both stores and write nothing.
        progress: Called with each version that was copied.

    Raises:
        IllegalStepError: A rotation is in progress in the source.
        IdentityExistsError: The destination has a secret, and `resume` is False or the secret is not the beginning of a
            copy of this one.
        ConflictError: Another process changed the source or the destination during the copy.
        ProviderError: A store could not be read or written.
    """
    plan = await _plan_copy(source, destination)
    _refuse_rotation(plan)
    there = await _list_destination(destination)
    if there and not resume:
        raise IdentityExistsError(
            f"{destination.name} holds a secret already; nothing was changed",
            hint="Choose another secret. If this one is an interrupted copy of the source, --resume completes it.",
        )
    plan, holders = await _match_versions(plan, destination, there)
    promised = destination.provider.guarantees
    is_early = len(plan.items) > 1 and (promised.first_is_current or plan.carrier == CURRENT)
    done = CopyReport(plan=plan, present=len(there), is_dry=dry_run, shows_current_early=is_early)
    if dry_run:
        return done
    plan, holders = await _write_versions(plan, destination, holders, progress)
    await _check_unchanged(source, plan)
    await _move_labels(plan, destination, holders)
    await _verify_copy(plan, destination)
    return replace(done, plan=plan)


async def _plan_copy(source: Store, destination: Store) -> CopyPlan:
    listing = tuple(await source.versions())
    items: list[VersionCopy] = []
    skipped: list[SkippedVersion] = []
    for version in reversed(listing):
        if version.state is not VersionState.ENABLED:
            skipped.append(SkippedVersion(id=version.id, reason=version.state.value))
            continue
        if version.is_leftover:
            skipped.append(SkippedVersion(id=version.id, reason="left by an interrupted change"))
            continue
        try:
            found = await source.provider.read(source.secret_id, version.id)
        except VersionDisabledError:
            skipped.append(SkippedVersion(id=version.id, reason="cannot be read any more"))
            continue
        items.append(VersionCopy(source=version.id, value=found.value, digest=digest_of(found.value)))
    held = {label: version.id for version in listing for label in version.labels}
    labels = {label: holder for label, holder in held.items() if destination.provider.takes_label(label)}
    history = destination.provider.guarantees.history
    if history is not None and destination.provider.guarantees.deprecates:
        history = max(history, _DEPRECATED_KEPT)
    loose = [item for item in items if item.source not in labels.values()]
    if history is not None and len(loose) > history:
        for item in loose[: len(loose) - history]:
            items.remove(item)
            skipped.append(SkippedVersion(id=item.source, reason=f"the destination keeps {history} old versions"))
    known = {item.source for item in items}
    if labels.get(CURRENT) not in known:
        raise SecretNotFoundError(
            "no readable version of the source holds the label 'current'",
            provider=source.provider.scheme,
            secret_id=source.secret_id,
            operation="copy",
        )
    plan = CopyPlan(
        items=tuple(items),
        labels={label: holder for label, holder in labels.items() if holder in known},
        skipped=tuple(skipped),
        left_labels={label: held[label] for label in sorted(held.keys() - labels.keys())},
        listing=listing,
    )
    await _check_unchanged(source, plan)
    limit = destination.provider.guarantees.max_value_bytes
    for item in items:
        if item.value.size > limit:
            raise SecretTooLargeError(
                f"version {item.source} is {item.value.size} bytes long, but the destination accepts at most {limit}",
                provider=destination.provider.scheme,
                secret_id=destination.secret_id,
                operation="copy",
            )
    return plan


def _refuse_rotation(plan: CopyPlan) -> None:
    """Refuse a copy while a rotation is in progress.

    The rotation's record names version ids of the source. A roll-back in the destination would not find them.
    """
    current = next(item for item in plan.items if item.source == plan.labels[CURRENT])
    try:
        document = decode_document(current.value.reveal())
    except IdentityError:
        return  # no identity of Goatherd's: the bytes are copied as they are
    if document.rotation is not None:
        raise IllegalStepError(
            f"a rotation is in progress ({document.rotation.phase.value}), and its record names versions of "
            "the source store",
            hint="End the rotation first: run `goatherd rotate --resume` or `goatherd rotate --rollback`.",
        )


async def _check_unchanged(source: Store, plan: CopyPlan) -> None:
    """Check that the versions and labels of the source are still those that the plan was made from."""
    before = {(version.id, version.labels, version.state) for version in plan.listing}
    now = {(version.id, version.labels, version.state) for version in await source.versions()}
    if now != before:
        raise ConflictError(
            "the source changed while it was copied, so the label `current` was not set in the destination",
            provider=source.provider.scheme,
            secret_id=source.secret_id,
            operation="copy",
            hint="Repeat the command with --resume while no rotation is in progress.",
        )


async def _list_destination(destination: Store) -> list[SecretVersion]:
    """Return the destination's versions, oldest first; an empty list if there is no secret."""
    try:
        if destination.provider.guarantees.first_is_current:
            # A secret has a current version there. moto fails with status 500 to list a secret that does not exist.
            await destination.provider.read(destination.secret_id, CURRENT)
        found = await destination.versions()
    except SecretNotFoundError:
        return []
    # A version that an interrupted change left takes no label, and some stores remove it with the next change.
    return [version for version in reversed(found) if not version.is_leftover]


async def _match_versions(
    plan: CopyPlan, destination: Store, there: Sequence[SecretVersion]
) -> tuple[CopyPlan, dict[Label, VersionId]]:
    """Add to the plan the ids of versions that are already copied; also return the destination's labels."""
    holders = {label: version.id for version in there for label in version.labels}
    items = list(plan.items)
    reason = None
    if len(there) > len(items):
        reason = "it has more versions"
    for number, version in enumerate(there[: len(items)]):
        try:
            found = await destination.provider.read(destination.secret_id, version.id)
        except VersionDisabledError:
            reason = f"its version {version.id} cannot be read"
            break
        if digest_of(found.value) != items[number].digest:
            reason = f"its version {version.id} is not what version {items[number].source} of the source is"
            break
        items[number] = replace(items[number], target=version.id)
    strange = sorted(set(holders) - set(plan.labels))
    if reason is None and strange:
        reason = f"it has a label {strange[0]!r}, which the source does not have"
    if reason is not None:
        raise IdentityExistsError(
            f"{destination.name} is not an interrupted copy of this source: {reason}; nothing was changed",
            hint="Choose a secret that does not exist yet, or delete this one with the store's own tool.",
        )
    return replace(plan, items=tuple(items)), holders


async def _write_versions(
    plan: CopyPlan, destination: Store, holders: dict[Label, VersionId], progress: Progress | None
) -> tuple[CopyPlan, dict[Label, VersionId]]:
    provider, secret_id, carrier = destination.provider, destination.secret_id, plan.carrier
    items = list(plan.items)
    for number, item in enumerate(items):
        if item.target is not None:
            continue
        if number == 0:
            label = CURRENT if provider.guarantees.first_is_current else carrier
            try:
                made = await provider.create(secret_id, item.value, label)
            except SecretExistsError as error:
                raise IdentityExistsError(
                    f"another process created {destination.name} during the copy; it was not changed",
                    hint="Choose a secret that does not exist yet.",
                ) from error
        else:
            label = carrier
            made = await provider.write(secret_id, item.value, label=label, expected=holders.get(label))
        holders[label] = made.id
        items[number] = replace(item, target=made.id)
        if progress is not None:
            progress(item.source, made.id)
    return replace(plan, items=tuple(items)), holders


async def _move_labels(plan: CopyPlan, destination: Store, holders: dict[Label, VersionId]) -> None:
    targets = {item.source: item.target for item in plan.items}
    # `current` last: until then, no server starts from the copy.
    for label in sorted(plan.labels, key=lambda each: (each == CURRENT, each)):
        target = targets[plan.labels[label]]
        assert target is not None
        if holders.get(label) != target:
            await destination.provider.label(destination.secret_id, label, target, expected=holders.get(label))
            holders[label] = target


async def _verify_copy(plan: CopyPlan, destination: Store) -> None:
    """Read every version and label back from the destination, and compare them with the plan.

    Raises:
        UnavailableError: The destination holds something other than what was written.
    """
    strong = destination.provider.guarantees.read_consistency is ReadConsistency.STRONG
    timeout = timedelta(0) if strong else SETTLE
    clock = SystemClock()
    end = clock.monotonic() + timeout.total_seconds()
    while True:
        problem = await _describe_difference(plan, destination)
        if problem is None:
            return
        if clock.monotonic() >= end:
            raise UnavailableError(
                f"the copy differs from the source: {problem}",
                provider=destination.provider.scheme,
                secret_id=destination.secret_id,
                operation="copy",
                hint="Do not use the copy. Run the command again with --resume to check it again.",
            )
        await clock.sleep(_PAUSE)


async def _describe_difference(plan: CopyPlan, destination: Store) -> str | None:
    """Return how the destination differs from the plan; None if it does not."""
    provider, secret_id = destination.provider, destination.secret_id
    targets = {item.source: item.target for item in plan.items}
    try:
        listed = {label: version.id for version in await destination.versions() for label in version.labels}
        if listed != {label: targets[holder] for label, holder in plan.labels.items()}:
            return "the labels are on other versions"
        # One after another: a store that keeps every version may hold so many that it would throttle parallel reads.
        for item in plan.items:
            if item.target is not None:
                there = await provider.read(secret_id, item.target)
                if digest_of(there.value) != item.digest:
                    return f"version {item.target} differs from version {item.source} of the source"
        current = await provider.read(secret_id, CURRENT)
    except (SecretNotFoundError, VersionDisabledError) as error:
        return str(error)
    return None if current.version.id == targets[plan.labels[CURRENT]] else "`current` is on another version"
