"""Check the store of an identity: can it be read, where do its labels lead, is its clock right.

What it is not: it writes nothing. Rules: a check that could not be made is not a check that passed, it is ``skip``;
texts hold ids, times and numbers, never key material.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Final

from goatherd.clock import SystemClock
from goatherd.errors import GoatherdError, VersionDisabledError
from goatherd.identity.document import IdentityDocument
from goatherd.operations.identity_store import Store
from goatherd.providers.capabilities import DiagnosableSecretProvider, Verdict
from goatherd.providers.values import CURRENT, STABLE, Label, SecretVersion, VersionState, shown_label
from goatherd.rotation.clocks import THE_STORE, describe_difference
from goatherd.rotation.policy import Policy
from goatherd.times import format_duration, milliseconds

OK: Final = "ok"
WARNING: Final = "warn"
FAILED: Final = "FAIL"
SKIPPED: Final = "skip"

READS: Final = 5
SLOW: Final = timedelta(seconds=1)
"""A rotation reads and writes the store about twenty times; a server reads it once per refresh."""
STORE_SKEW: Final = timedelta(minutes=1)

_LEVELS: Final = {
    Verdict.FINE: OK,
    Verdict.CAUTION: WARNING,
    Verdict.WRONG: FAILED,
    Verdict.NOT_CHECKED: SKIPPED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at. `level` is ``ok``, ``warn``, ``FAIL``, or ``skip``: it could not be looked at."""

    name: str
    level: str
    text: str
    hint: str = ""

    def __post_init__(self) -> None:
        # The hint of an error may be to run the very command that shows this check.
        kept = [
            part for part in self.hint.split(". ") if "goatherd doctor" not in part.replace("goatherd doctor --", "")
        ]
        object.__setattr__(self, "hint", ". ".join(kept))

    def to_json(self) -> dict[str, str]:
        """Return it as data."""
        return asdict(self) | {"level": self.level.lower()}


async def store_checks(store: Store, version: SecretVersion, document: IdentityDocument, policy: Policy) -> list[Check]:
    """Return the checks on a store that could be read.

    Args:
        store: The store.
        version: What `current` led to.
        document: What was read there.
        policy: What a rotation would go by.
    """
    checks = [await _latency_check(store), *await _diagnosis(store)]
    guarantees = store.provider.guarantees
    if guarantees.cas:
        checks.append(Check(name="store writes", level=OK, text="of two writers at once exactly one wins"))
    else:
        text = f"{store.provider.scheme} cannot make sure that of two writers at once exactly one wins"
        hint = "Let one operator at a time rotate."
        checks.append(Check(name="store writes", level=WARNING, text=text, hint=hint))
    if not guarantees.durable:
        checks.append(Check(name="store durability", level=FAILED, text="the identity is lost when this process ends"))
    try:
        versions = await store.versions()
    except GoatherdError as error:
        # A server's rights do not always go so far.
        text = f"the versions cannot be listed: {error}"
        return [*checks, Check(name="labels", level=SKIPPED, text=text, hint=error.hint)]
    labels = {label: one for one in versions for label in one.labels}
    checks.append(_current_check(labels, version))
    checks.append(await _stable_check(store, labels.get(STABLE), document))
    checks += _other_label_checks(labels)
    now_ms = SystemClock().now_ms()
    checks.append(_clock_check(versions, now_ms, store.provider.store_clock.ahead_ms(now_ms), policy.clock_tolerance))
    grace_ms = milliseconds(policy.grace)
    old = [one for one in versions if not one.labels and one.state is VersionState.ENABLED]
    overdue = [one.id for one in old if one.created_ms < now_ms - grace_ms]
    if overdue and document.rotation is None:
        text = f"{len(overdue)} unlabelled versions are older than {format_duration(policy.grace)}"
        hint = "Private keys that were replaced may lie in them: `goatherd retire`."
        checks.append(Check(name="old versions", level=WARNING, text=text, hint=hint))
    else:
        checks.append(Check(name="old versions", level=OK, text=f"{len(versions)} versions, none overdue"))
    return checks


async def _latency_check(store: Store) -> Check:
    clock, times = SystemClock(), list[float]()
    try:
        for _ in range(READS):
            began = clock.monotonic()
            await store.provider.read(store.secret_id)
            times.append(clock.monotonic() - began)
    except GoatherdError as error:
        text = f"read {len(times)} of {READS} times, then: {error}"
        return Check(name="latency", level=FAILED, text=text, hint=error.hint or "Is the store well?")
    median = statistics.median(times)
    text = f"a read takes {1000 * median:.1f} ms, the longest of {READS} {1000 * max(times):.1f} ms"
    if median > SLOW.total_seconds():
        hint = "Choose a store nearer to the servers, or give rotations more time: rotation.adoption."
        return Check(name="latency", level=WARNING, text=text, hint=hint)
    return Check(name="latency", level=OK, text=text)


async def _diagnosis(store: Store) -> list[Check]:
    provider, scheme = store.provider, store.provider.scheme
    if not isinstance(provider, DiagnosableSecretProvider):
        text = f"may read; {scheme} does not tell what else may be done without its being done"
        hint = f"What rotating needs: `goatherd policy {scheme} --role rotator`."
        return [Check(name="rights", level=SKIPPED, text=text, hint=hint)]
    try:
        findings = await provider.diagnose(store.secret_id)
    except GoatherdError as error:
        return [Check(name="rights", level=SKIPPED, text=f"the store does not tell: {error}", hint=error.hint)]
    return [Check(name=each.name, level=_LEVELS[each.verdict], text=each.text, hint=each.hint) for each in findings]


def _current_check(labels: Mapping[Label, SecretVersion], version: SecretVersion) -> Check:
    name, holder = "label current", labels.get(CURRENT)
    if holder is None:
        text = f"a read leads to version {version.id}, and no listed version has the label"
        return Check(
            name=name, level=WARNING, text=text, hint="Run it again; if it stays so, the store is inconsistent."
        )
    if holder.id != version.id:
        return Check(
            name=name, level=WARNING, text="it moved while this looked", hint="Is somebody rotating? Run it again."
        )
    return Check(name=name, level=OK, text=f"version {version.id}")


async def _stable_check(store: Store, stable: SecretVersion | None, document: IdentityDocument) -> Check:
    name = "label stable"
    if stable is None:
        if document.rotation is None:
            return Check(name=name, level=OK, text="not set: nothing has been rotated yet")
        text = "not set, though a rotation is under way"
        return Check(name=name, level=FAILED, text=text, hint="Going back needs it: `goatherd rotate --resume`.")
    try:
        _, there = await store.read(stable.id)
    except VersionDisabledError:
        text = f"version {stable.id} cannot be read any more"
        return Check(name=name, level=FAILED, text=text, hint="There is nothing to roll back to.")
    except GoatherdError as error:
        return Check(name=name, level=FAILED, text=f"version {stable.id}: {error}", hint=error.hint)
    if document.rotation is None and there.current.id != document.current.id:
        text = f"version {stable.id} is of root {there.current.id}, but {document.current.id} signs"
        return Check(name=name, level=WARNING, text=text, hint="`goatherd rotate --resume` mends the label.")
    return Check(name=name, level=OK, text=f"version {stable.id}, root {there.current.id}")


def _other_label_checks(labels: Mapping[Label, SecretVersion]) -> list[Check]:
    """Return a warning for each further label whose version cannot be read."""
    lost = [
        (label, one)
        for label, one in sorted(labels.items())
        if label not in (CURRENT, STABLE) and one.state is not VersionState.ENABLED
    ]
    return [
        Check(
            name=f"label {shown_label(label)}",
            level=WARNING,
            text=f"version {one.id} is {one.state.value}",
            hint=f"Nothing of Goatherd's needs it: `goatherd show --versions unlabel {shown_label(label)}` removes the"
            " label.",
        )
        for label, one in lost
    ]


def _clock_check(versions: Sequence[SecretVersion], now_ms: int, ahead_ms: int | None, tolerance: timedelta) -> Check:
    """Compare the store's clock, by the date of its last answer, and the clock that stamped the newest version.

    Of the latter it can only be seen that it is fast, not that it is slow.
    """
    if ahead_ms is not None and timedelta(milliseconds=abs(ahead_ms)) > STORE_SKEW:
        text = describe_difference(THE_STORE, ahead_ms)
        is_refused = timedelta(milliseconds=abs(ahead_ms)) > tolerance
        more = " No command writes anything while they differ by more than rotation.clock_tolerance." * is_refused
        hint = f"Set this machine's clock by NTP, and the store's if the store is a server of your own.{more}"
        return Check(name="store clock", level=FAILED if is_refused else WARNING, text=text, hint=hint)
    # With eventual reads, the list may be empty still, though a version was read.
    newest_ms = max((one.created_ms for one in versions), default=0)
    ahead = timedelta(milliseconds=max(0, newest_ms - now_ms))
    if ahead > STORE_SKEW:
        text = f"the newest version was made {format_duration(ahead)} from now, by the store's clock or its writer's"
        hint = "Set this machine's clock by NTP; for stores on a server of your own, that one's too."
        return Check(name="store clock", level=WARNING, text=text, hint=hint)
    if ahead_ms is not None:
        return Check(name="store clock", level=OK, text="agrees with this machine's to the minute")
    return Check(name="store clock", level=OK, text="no version was made in the future")
