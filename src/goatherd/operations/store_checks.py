"""Check the store that holds an identity: its response time, permissions, labels, clock and old versions.

The checks write nothing. A check that could not be made has the result ``skip``, which does not count as passed.
Results contain ids, times and numbers, never key material.
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
from goatherd.key_inventory import take_key_inventory
from goatherd.operations.identity_store import Store
from goatherd.providers.capabilities import (
    DiagnosableSecretProvider,
    Finding,
    Verdict,
    find_guarantees,
    list_guarantees,
    unreported_finding,
)
from goatherd.providers.values import CURRENT, STABLE, Label, SecretVersion, VersionState, format_label
from goatherd.rotation.clocks import THE_STORE, describe_difference
from goatherd.rotation.policy import Policy
from goatherd.telemetry import describe_count
from goatherd.times import format_duration

OK: Final = "ok"
WARNING: Final = "warn"
FAILED: Final = "FAIL"
SKIPPED: Final = "skip"

READS: Final = 5
SLOW: Final = timedelta(seconds=1)
"""Response time from which a store counts as slow: a rotation reads and writes the store about twenty times."""
STORE_SKEW: Final = timedelta(minutes=1)
_SHOWN: Final = 5

_LEVELS: Final = {
    Verdict.FINE: OK,
    Verdict.CAUTION: WARNING,
    Verdict.WRONG: FAILED,
    Verdict.NOT_CHECKED: SKIPPED,
}


RIGHTS: Final = "rights"
KEY_EXPOSURE: Final = "key exposure"
"""Name of the check for a private key in a server's answer to an unauthenticated request."""
SERVERS: Final = "servers"


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check. `level` is ``ok``, ``warn``, ``FAIL``, or ``skip`` if the check could not be made."""

    name: str
    level: str
    text: str
    hint: str = ""

    def __post_init__(self) -> None:
        # The hint of an error may be to run the command that shows this check.
        kept = [
            part for part in self.hint.split(". ") if "goatherd doctor" not in part.replace("goatherd doctor --", "")
        ]
        object.__setattr__(self, "hint", ". ".join(kept))

    def to_json(self) -> dict[str, str]:
        """Return the check as JSON data. `name` is the former name of a renamed check; `check`, the present one."""
        former = {KEY_EXPOSURE: "attacker's question", SERVERS: "nodes"}.get(self.name, self.name)
        return asdict(self) | {"name": former, "check": self.name, "level": self.level.lower()}


async def check_store(
    store: Store, version: SecretVersion, document: IdentityDocument, policy: Policy, *, as_server: bool = False
) -> list[Check]:
    """Check a secret store that can be read, and the identity in it; return the results.

    Args:
        store: The store.
        version: The version with the label `current`.
        document: The identity in it.
        policy: The policy of rotations.
        as_server: Whether the credentials are those of a server, which need not write. Otherwise, rights that are too
            few for a rotation are a failure.
    """
    checks = [await _check_latency(store), *await _check_rights(store, as_server=as_server)]
    guarantees = store.provider.guarantees
    if guarantees.cas:
        checks.append(Check("store writes", OK, "if two writers write at the same time, exactly one succeeds"))
    else:
        text = f"{store.provider.scheme} cannot guarantee that of two concurrent writers exactly one succeeds"
        hint = "Run only one rotation at a time."
        checks.append(Check("store writes", WARNING, text, hint))
    if not guarantees.durable:
        checks.append(Check("store durability", FAILED, "the identity is lost when this process ends"))
    try:
        versions = await store.versions()
    except GoatherdError as error:
        # A server's credentials may not list versions.
        text = f"the versions cannot be listed: {error}"
        return [*checks, Check("labels", SKIPPED, text, error.hint)]
    labels = {label: one for one in versions for label in one.labels}
    checks.append(_check_current(labels, version))
    checks.append(await _check_stable(store, labels.get(STABLE), document))
    checks += _check_other_labels(labels)
    now_ms = SystemClock().now_ms()
    checks.append(_check_clock(versions, now_ms, store.provider.store_clock.ahead_ms(now_ms), policy.clock_tolerance))
    checks.append(await _check_old_versions(store, versions, document, policy.grace, now_ms))
    return checks


async def _check_old_versions(
    store: Store, versions: Sequence[SecretVersion], document: IdentityDocument, grace: timedelta, now_ms: int
) -> Check:
    """Check whether `goatherd retire` has something to destroy, as `goatherd status` shows it."""
    name, text = "old versions", f"{describe_count(len(versions), 'version')}, none overdue"
    provider = store.provider
    # The number of versions that AWS keeps for longer says nothing.
    if document.rotation is not None or all(one.deprecates for one in list_guarantees(provider)):
        return Check(name, OK, text)
    keys = await take_key_inventory(provider, store.secret_id, document, grace)
    if keys.cause is not None:
        text = f"could not determine which versions hold replaced private keys: {keys.cause}"
        return Check(name, SKIPPED, text, keys.cause.hint)
    overdue = [
        one.version.id for one in keys.holdings_due(now_ms) if not find_guarantees(provider, one.version.id).deprecates
    ]
    unread = [f"{one.version.id} ({one.problem})" for one in keys.holdings if one.problem is not None]
    if unread and not overdue:
        more = f" and {len(unread) - _SHOWN} more" if len(unread) > _SHOWN else ""
        text = f"{text} of those that were read; not read: {', '.join(unread[:_SHOWN])}{more}"
        return Check(name, WARNING, text, "It is unknown which private keys these versions hold.")
    if not overdue:
        return Check(name, OK, text)
    text = f"{describe_count(len(overdue), 'version')} with private keys whose grace period has ended"
    return Check(name, WARNING, text, "Destroy them: `goatherd retire`.")


async def _check_latency(store: Store) -> Check:
    clock, times = SystemClock(), list[float]()
    try:
        for _ in range(READS):
            began = clock.monotonic()
            await store.provider.read(store.secret_id)
            times.append(clock.monotonic() - began)
    except GoatherdError as error:
        text = f"read {len(times)} of {READS} times, then: {error}"
        return Check("latency", FAILED, text, error.hint or "Check that the store is reachable and healthy.")
    median = statistics.median(times)
    text = f"a read takes {1000 * median:.1f} ms, the longest of {READS} {1000 * max(times):.1f} ms"
    if median > SLOW.total_seconds():
        hint = "Use a store closer to the servers, or give rotations more time: rotation.adoption."
        return Check("latency", WARNING, text, hint)
    return Check("latency", OK, text)


async def _check_rights(store: Store, *, as_server: bool = False) -> list[Check]:
    provider = store.provider
    findings = [unreported_finding(provider.scheme)]
    if isinstance(provider, DiagnosableSecretProvider):
        try:
            findings = await provider.diagnose(store.secret_id)
        except GoatherdError as error:
            text = f"the store did not report its rights: {error}"
            return [Check("rights", SKIPPED, text, error.hint)]
    return [_check_finding(each, as_server=as_server) for each in findings]


def _check_finding(finding: Finding, *, as_server: bool) -> Check:
    if finding.name == RIGHTS and not as_server and (finding.may_write is False or finding.verdict is Verdict.CAUTION):
        # The next rotation would fail.
        hint = f"{finding.hint} To check a server's credentials: --as-server."
        return Check(RIGHTS, FAILED, finding.text, hint)
    return Check(finding.name, _LEVELS[finding.verdict], finding.text, finding.hint)


def _check_current(labels: Mapping[Label, SecretVersion], version: SecretVersion) -> Check:
    name, holder = "label current", labels.get(CURRENT)
    if holder is None:
        text = f"a read returns version {version.id}, but no listed version has the label"
        return Check(
            name, WARNING, text, "Run the check again. If the result stays the same, the store is inconsistent."
        )
    if holder.id != version.id:
        return Check(
            name, WARNING, "the label moved during the check", "A rotation may be in progress. Run the check again."
        )
    return Check(name, OK, f"version {version.id}")


async def _check_stable(store: Store, stable: SecretVersion | None, document: IdentityDocument) -> Check:
    name = "label stable"
    if stable is None:
        if document.rotation is None:
            return Check(name, OK, "not set: nothing has been rotated yet")
        text = "not set, although a rotation is in progress"
        return Check(name, FAILED, text, "A rollback needs this label. `goatherd rotate --resume` sets it.")
    try:
        _, there = await store.read(stable.id)
    except VersionDisabledError:
        text = f"version {stable.id} cannot be read any more"
        return Check(name, FAILED, text, "A rollback is not possible.")
    except GoatherdError as error:
        return Check(name, FAILED, f"version {stable.id}: {error}", error.hint)
    if document.rotation is None and there.current.id != document.current.id:
        text = f"version {stable.id} is of root {there.current.id}, but {document.current.id} signs"
        return Check(name, WARNING, text, "`goatherd rotate --resume` repairs the label.")
    return Check(name, OK, f"version {stable.id}, root {there.current.id}")


def _check_other_labels(labels: Mapping[Label, SecretVersion]) -> list[Check]:
    """Return a warning for each label except `current` and `stable` whose version cannot be read."""
    lost = [
        (label, one)
        for label, one in sorted(labels.items())
        if label not in (CURRENT, STABLE) and one.state is not VersionState.ENABLED
    ]
    return [
        Check(
            f"label {format_label(label)}",
            WARNING,
            f"version {one.id} is {one.state.value}",
            f"Goatherd does not need this label: `goatherd show --versions unlabel {format_label(label)}`"
            " removes the label.",
        )
        for label, one in lost
    ]


def _check_clock(versions: Sequence[SecretVersion], now_ms: int, ahead_ms: int | None, tolerance: timedelta) -> Check:
    """Compare this machine's clock with the date of the store's last answer and with the newest version's time.

    The time of a version shows a wrong clock only if it is in the future, since a version may be of any age.
    """
    if ahead_ms is not None and timedelta(milliseconds=abs(ahead_ms)) > STORE_SKEW:
        text = describe_difference(THE_STORE, ahead_ms)
        is_refused = timedelta(milliseconds=abs(ahead_ms)) > tolerance
        more = " No command writes anything while they differ by more than rotation.clock_tolerance." * is_refused
        hint = f"Set this machine's clock by NTP, and the store's if the store is a server of your own.{more}"
        return Check("store clock", FAILED if is_refused else WARNING, text, hint)
    # With eventual reads, the list may still be empty although a version was read.
    newest_ms = max((one.created_ms for one in versions), default=0)
    ahead = timedelta(milliseconds=max(0, newest_ms - now_ms))
    if ahead > STORE_SKEW:
        text = (
            f"the newest version was written {format_duration(ahead)} in the future, by the clock of the store or of"
            " its writer"
        )
        hint = "Set this machine's clock by NTP, and the store's if the store is a server of your own."
        return Check("store clock", WARNING, text, hint)
    if ahead_ms is not None:
        return Check("store clock", OK, "agrees with this machine's clock to the minute")
    return Check("store clock", OK, "no version was written in the future")
