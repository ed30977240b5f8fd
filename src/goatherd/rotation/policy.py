"""The policy of a rotation: timeouts, quorum, and the lifetime of a root.

The module does no I/O. The defaults are the same as those of the configuration file (`goatherd.config.options`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Final

from goatherd.errors import ConfigurationError, LifetimeError
from goatherd.serving.server_url import one_or_more, parse_server_url
from goatherd.telemetry import describe_count
from goatherd.times import LONGEST, format_duration, milliseconds

_LIST_SERVERS: Final = (
    "Give --node URL for each server, set GOATHERD_NODES, or write `nodes = [...]` into goatherd.toml."
)


_QUORUM_HINT: Final = "Write Quorum(count=4), Quorum(fraction=0.8), or Quorum() for all servers."


@dataclass(frozen=True, slots=True, kw_only=True)
class Quorum:
    """How many servers must adopt a new identity before the deadline of a phase (default: all of them).

    Attributes:
        count: The number of servers that must follow; all of them if there are fewer. None if not given as a count.
        fraction: The fraction of the servers that must follow, above 0 and at most 1, rounded up to whole servers; None
            if not given as a fraction. With neither, all servers must follow.

    Raises:
        ConfigurationError: The quorum means no server, or more than all of them, or both values are given.
    """

    count: int | None = None
    fraction: float | None = None

    # SECURITY: a quorum of no server would let the next root sign although no server trusts it
    # (tests/unit/rotation/test_quorum.py).
    def __post_init__(self) -> None:
        if self.count is not None and (self.fraction is not None or self.count < 1):
            raise ConfigurationError(
                f"a quorum must be a count of at least 1 or a fraction, not {self.count}", hint=_QUORUM_HINT
            )
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ConfigurationError(
                f"the fraction of a quorum must be above 0 and at most 1, not {self.fraction}", hint=_QUORUM_HINT
            )

    @classmethod
    def from_text(cls, text: str) -> Quorum:
        """Parse a quorum: ``all``, a count such as ``4``, or a fraction such as ``80%``.

        Raises:
            ConfigurationError: The string has another form, or means no server, or more than all servers.
        """
        wanted = text.strip().lower()
        if wanted == "all":
            return cls()
        if re.fullmatch(r"[1-9]\d{0,5}", wanted):
            return cls(count=int(wanted))
        if re.fullmatch(r"\d{1,3}(\.\d+)?%", wanted) and 0 < float(wanted[:-1]) <= 100:
            return cls(fraction=float(wanted[:-1]) / 100)
        raise ConfigurationError(
            f"{text!r} is not a quorum, which says how many servers must follow a rotation",
            hint="Write all, a count such as 4, or a part such as 80%.",
        )

    def needed(self, total: int) -> int:
        """Return how many of `total` servers must adopt the new identity; at least one if there are any."""
        if self.count is not None:
            return min(self.count, total)
        if self.fraction is not None:
            # Rounded to a millionth first: 0.07 * 100 is a little more than 7.
            return min(total, math.ceil(round(self.fraction * total, 6)))
        return total

    def __str__(self) -> str:
        if self.count is not None:
            return str(self.count)
        return "all" if self.fraction is None else f"{self.fraction * 100:g}%"


ALL = Quorum()


def check_duration(name: str, value: object) -> None:
    """Check that the argument `name` is a `timedelta` between 0 and a hundred years.

    Raises:
        ConfigurationError: It is not.
    """
    hint = f"Give a duration, such as {name}=timedelta(hours=1)."
    if not isinstance(value, timedelta):
        raise ConfigurationError(f"{name} must be a timedelta, not a {type(value).__name__}", hint=hint)
    if not timedelta(0) <= value <= LONGEST:
        raise ConfigurationError(f"{name} must be between 0 and {LONGEST.days} days, a hundred years", hint=hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Timeouts, quorum and lifetimes of a rotation, as an operator sets them in the configuration.

    Attributes:
        adoption: Longest time that one phase may wait for servers; then the rotation is cancelled or rolled back.
        settle: Longest time to wait, after a cancel or a roll-back, for servers to sign with the previous root again.
        node_timeout: Timeout of one observation of one server.
        poll_min, poll_max: Shortest and longest pause between two observations; each pause is twice the one before.
        store_patience: How long to retry if the store does not answer, in addition to the provider's own retries.
        clock_tolerance: By how much this machine's clock may differ from others, and how far in the future a recorded
            time may be. Beyond this, nothing is written.
        flow_patience: How long a session created at one server may take to reach the others, in the check before a
            rotation of servers that do not report their peers.
        lifetime: Time from the generation of a new root to its expiration. `check_lifetime` checks the lower limit.
        working_lifetime: The same for a working root: a root that is endorsed by an anchor (a key in an HSM or a KMS).
        needs_working_root: Whether to reject a new root that no anchor endorses, because `working_lifetime` was given
            for this one root and would have no effect.
        is_for_working_root: Whether `lifetime` and `renewal_fraction` are those of a working root (`for_identity`).
        grace: How long versions that hold a retired private key are kept before `retire` destroys them.
        renewal_fraction, renewal_cap: A root is due for rotation when the time left is less than this fraction of its
            lifetime and at most this duration.
        quorum: How many servers must have adopted the new identity when `adoption` has passed; until then the rotation
            waits for all servers. Only a server that does not answer at all can be left out. A server that answers, but
            does not adopt the identity, ends the rotation.
        unlisted: How long the next root must have been published before it signs, so that servers that are not listed
            have read it: their refresh interval with its jitter. 0 means that all servers are listed.
        bare: URLs of manual-restart servers, which run unmodified GoatDB. They must trust the next root, but the
            rotation does not wait for them to sign with it, because what they sign with the previous root stays valid.
        distrust: URLs of servers whose reports on the store's history are ignored, so that a lying or wrong server
            cannot stop every command.
        health_failures: After this many consecutive failures of the health check the rotation is rolled back.
        health_interval: Shortest time between two health checks.
        health_timeout: Timeout of one health check; a check that exceeds it has failed.
        health_soak: How long the health checks must pass while the next root signs, before the rotation is final.
    """

    adoption: timedelta = timedelta(minutes=5)
    settle: timedelta = timedelta(seconds=90)
    node_timeout: timedelta = timedelta(seconds=5)
    poll_min: timedelta = timedelta(milliseconds=25)
    poll_max: timedelta = timedelta(seconds=1)
    store_patience: timedelta = timedelta(seconds=60)
    clock_tolerance: timedelta = timedelta(minutes=5)
    flow_patience: timedelta = timedelta(seconds=15)
    lifetime: timedelta = timedelta(days=180)
    working_lifetime: timedelta = timedelta(days=30)
    needs_working_root: bool = False
    is_for_working_root: bool = False
    grace: timedelta = timedelta(days=30)
    renewal_fraction: float = 0.5
    renewal_cap: timedelta = timedelta(days=60)
    quorum: Quorum = ALL
    unlisted: timedelta = timedelta(0)
    bare: frozenset[str] = frozenset()
    distrust: frozenset[str] = frozenset()
    health_failures: int = 3
    health_interval: timedelta = timedelta(seconds=2)
    health_timeout: timedelta = timedelta(seconds=5)
    health_soak: timedelta = timedelta(seconds=10)

    def __post_init__(self) -> None:
        """Check the policy. A number is no duration, since it has no unit.

        Raises:
            ConfigurationError: A duration is no `timedelta`, or is negative, or longer than a hundred years; the quorum
                is no `Quorum`; or the URL of a server has a wrong form.
        """
        if not isinstance(self.quorum, Quorum):
            raise ConfigurationError(f"quorum must be a Quorum, not a {type(self.quorum).__name__}", hint=_QUORUM_HINT)
        for field in fields(self):
            if isinstance(field.default, timedelta):
                check_duration(field.name, getattr(self, field.name))
        for name in ("bare", "distrust"):  # a single URL, or another collection, of a Python program
            urls = frozenset(str(parse_server_url(url)) for url in one_or_more(getattr(self, name)))
            object.__setattr__(self, name, urls)

    def for_identity(self, *, has_anchor: bool) -> Policy:
        """Return the policy for the next root of an identity that has an anchor (a key in an HSM or a KMS) or has none.

        With an anchor, the next root is a working root, which lives shorter: by default 30 days, and it is due for
        renewal when 10 are left. Without an anchor, the policy is returned unchanged.
        """
        if not has_anchor:
            return self
        return replace(
            self,
            lifetime=self.working_lifetime,
            renewal_fraction=_WORKING_RENEWAL_FRACTION,
            is_for_working_root=True,
        )

    def check_new_root(self, *, has_anchor: bool) -> None:
        """Check that an anchor endorses the new root, if the policy needs a working root.

        Raises:
            ConfigurationError: No anchor endorses the new root, so `working_lifetime` would have no effect.
        """
        if self.needs_working_root and not has_anchor:
            raise ConfigurationError(
                "the lifetime of a working root was given, but no anchor endorses the next root",
                hint="Policy.lifetime sets how long this root is valid.",
                command_hint="--lifetime sets how long this root is valid; leave out --working-lifetime.",
            )

    @property
    def health_bound(self) -> timedelta:
        """Longest time from the first failure of a health check to the roll-back of the rotation, if the store answers.

        Each failure takes at most the interval of the checks, an observation, a notification of the servers, and the
        pause between two observations.
        """
        look = max(self.node_timeout, self.health_timeout) + self.node_timeout + self.poll_max
        return self.health_failures * (self.health_interval + look)


_WORKING_RENEWAL_FRACTION: Final = 1 / 3
"""A working root is due for renewal when less than this fraction of its lifetime is left."""
_WORKING_HINT: Final = (
    "Set a longer --working-lifetime (rotation.working_lifetime), or shorter waiting times (rotation.adoption and "
    "others)."
)
SHORTEST_LIFETIME: Final = timedelta(hours=1)
"""The shortest lifetime of a root, even if rotations are faster."""
UNMODIFIED_LIFETIME: Final = timedelta(days=30)
"""COMPAT: the lifetime of a root must be longer than this if a server runs unmodified GoatDB. A rotation is due after
half of it, and a GoatDB server that starts with less than 15 days left extends the root, and then exposes its private
key to every client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LifetimeFloor:
    """The shortest permitted lifetime of a new root.

    Attributes:
        shortest: The limit for the lifetime.
        is_exclusive: Whether the lifetime must be longer than `shortest`; otherwise an equal one is permitted.
        reason: The reason for the limit, as a phrase that follows "because" in an error message.
    """

    shortest: timedelta
    is_exclusive: bool
    reason: str

    def is_below(self, lifetime: timedelta) -> bool:
        """Return whether `lifetime` is too short for a new root."""
        return lifetime < self.shortest or (self.is_exclusive and lifetime == self.shortest)


def compute_lifetime_floor(policy: Policy, *, unmodified: Collection[str] = ()) -> LifetimeFloor:
    """Return the shortest permitted lifetime of a new root under a rotation policy.

    A root must outlive several rotations, so that a rotation can fail, be rolled back and be retried before its
    expiration.

    Args:
        policy: How long the parts of a rotation may take.
        unmodified: URLs of servers that were seen to run unmodified GoatDB; those in `Policy.bare` count as well.
    """
    servers = sorted({*policy.bare, *unmodified})
    longest = 3 * policy.adoption + policy.unlisted + policy.health_soak + policy.settle
    # A root must be renewed while more than 15 days are left.
    part, unmodified_floor = "half", UNMODIFIED_LIFETIME
    if policy.is_for_working_root:
        part, unmodified_floor = "a third", UNMODIFIED_LIFETIME * 3 / 2
    if servers and 4 * longest <= unmodified_floor:
        named = ", ".join(servers[:3]) + (f" and {len(servers) - 3} more" if len(servers) > 3 else "")
        return LifetimeFloor(
            shortest=unmodified_floor,
            is_exclusive=True,
            reason=f"{named} runs unmodified GoatDB, which extends a root with less than 15 days left at its start and "
            f"then exposes the private key; a rotation is due when {part} of a root's life is left",
        )
    if 4 * longest <= SHORTEST_LIFETIME:
        return LifetimeFloor(
            shortest=SHORTEST_LIFETIME, is_exclusive=False, reason="no root may live shorter, whatever the policy"
        )
    parts = f"3 x adoption {format_duration(policy.adoption)} + unlisted {format_duration(policy.unlisted)}"
    parts += f" + health soak {format_duration(policy.health_soak)} + settle {format_duration(policy.settle)}"
    return LifetimeFloor(
        shortest=4 * longest,
        is_exclusive=False,
        reason=f"it must outlive four rotations of {format_duration(longest)} ({parts})",
    )


def rotation_due_ms(*, issued_ms: int, expires_ms: int, policy: Policy) -> int:
    """Return when a root is due for rotation, in milliseconds since 1970.

    A root is due some time before its expiration: a fraction of its lifetime (`Policy.renewal_fraction`), which suits
    keys of an hour and keys of a year alike. That time is at most `Policy.renewal_cap`, so that a long-lived key is not
    replaced far too early.

    Args:
        issued_ms: When the root was generated or began to sign, in milliseconds since 1970.
        expires_ms: Expiration of the root, in milliseconds since 1970.
        policy: The rotation's policy.
    """
    reserve = min(int((expires_ms - issued_ms) * policy.renewal_fraction), milliseconds(policy.renewal_cap))
    return expires_ms - reserve


def check_lifetime(policy: Policy, *, unmodified: Collection[str] = ()) -> None:
    """Check that a root generated under a rotation policy lives long enough to be replaced before it expires.

    Args:
        policy: The policy: the `lifetime` of a root, and how long the parts of a rotation may take.
        unmodified: URLs of servers that were seen to run unmodified GoatDB, as for `compute_lifetime_floor`.

    Raises:
        LifetimeError: The lifetime is too short.
    """
    floor = compute_lifetime_floor(policy, unmodified=unmodified)
    if floor.is_below(policy.lifetime):
        least = f"{'more than' if floor.is_exclusive else 'at least'} {format_duration(floor.shortest)}"
        raise LifetimeError(
            f"a lifetime of {format_duration(policy.lifetime)} is too short for a root: it must be {least}, because "
            f"{floor.reason}",
            hint=_WORKING_HINT if policy.is_for_working_root else None,
        )


def check_quorum(policy: Policy, listed: int) -> None:
    """Check that a quorum given as a count is not larger than the number of listed servers.

    Args:
        policy: The policy with the quorum. One that is a fraction always passes.
        listed: The number of listed servers. With 0 nothing is checked: discovered servers are counted later, when they
            are observed.

    Raises:
        ConfigurationError: The quorum is larger than the number of servers.
    """
    count = policy.quorum.count
    if count is not None and listed and count > listed:
        servers = describe_count(listed, "server", "is", "are")
        raise ConfigurationError(
            f"the quorum is {count}, but {servers} listed",
            hint="List every server with --node URL, or lower the quorum (--quorum, rotation.quorum).",
        )


def unlisted_for(refresh_interval: timedelta) -> timedelta:
    """Return how long a root must be published (`Policy.unlisted`) until every server has read it from the store.

    Args:
        refresh_interval: How often servers read the store. By default, a read may come later by a fifth of this
            interval.
    """
    return refresh_interval * 1.2 + timedelta(seconds=2)


def check_rotation_servers(servers: object, *, unsafe_without_nodes: bool) -> None:
    """Check that servers are listed for a rotation, because without them it would wait for none.

    Args:
        servers: The listed servers, or a function that discovers them.
        unsafe_without_nodes: Whether the operator has asked to rotate without servers.

    Raises:
        ConfigurationError: No server is listed, and `unsafe_without_nodes` is False.
    """
    consequence = "the rotation could not wait until each has adopted the new root"
    check_servers_listed(servers, consequence, unsafe_without_nodes=unsafe_without_nodes)


def check_servers_listed(
    servers: object, consequence: str, *, unsafe_without_nodes: bool, command_hint: str = _LIST_SERVERS
) -> None:
    """Check that an operation that waits for servers has servers to wait for.

    Args:
        servers: The listed servers, or a function that discovers them.
        consequence: What the operation could not do without servers, such as ``the rotation could not wait``.
        unsafe_without_nodes: Whether the operator has asked for the operation without servers.
        command_hint: How to list servers on the command line.

    Raises:
        ConfigurationError: No server is listed, and `unsafe_without_nodes` is False.
    """
    # SECURITY: a rotation without listed servers would wait for none, so the next root would sign before servers trust
    # it (tests/unit/operations/test_rotate.py).
    if not callable(servers) and not servers and not unsafe_without_nodes:
        hint = 'Name each server: nodes=["http://…"]. If there is none: unsafe_without_nodes=True.'
        raise ConfigurationError(f"no server is listed, so {consequence}", hint=hint, command_hint=command_hint)
