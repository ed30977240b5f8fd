"""How patient a rotation is, and with whom.

Pure data. Durations are what an operator would write in the configuration; `goatherd.config` has the same defaults.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import timedelta

from goatherd.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Quorum:
    """How many of the nodes must follow when patience has ended. All of them, unless one of the two is given.

    Attributes:
        count: So many nodes; where there are fewer, all of them.
        fraction: Such a part of the nodes, above 0 and at most 1; rounded up to whole nodes.
    """

    count: int | None = None
    fraction: float | None = None

    @classmethod
    def from_text(cls, text: str) -> Quorum:
        """Read ``all``, a count such as ``4``, or a part such as ``80%``.

        Raises:
            ConfigurationError: None of these, no node at all, or more than all.
        """
        wanted = text.strip().lower()
        if wanted == "all":
            return cls()
        if re.fullmatch(r"[1-9]\d{0,5}", wanted):
            return cls(count=int(wanted))
        if re.fullmatch(r"\d{1,3}(\.\d+)?%", wanted) and 0 < float(wanted[:-1]) <= 100:
            return cls(fraction=float(wanted[:-1]) / 100)
        raise ConfigurationError(
            f"{text!r} is not a quorum", hint="Write all, a count such as 4, or a part such as 80%."
        )

    def needed(self, total: int) -> int:
        """Return how many of `total` nodes must follow: at least one where there are any."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How patient a rotation is. Durations are what an operator would write in the configuration.

    Attributes:
        adoption: Longest time that one phase may wait for nodes; past it the rotation is cancelled or rolled back.
        settle: Longest time to wait, after a cancel or a roll-back, for nodes to sign with the restored root.
        node_timeout: Longest time that one observation of one node may take.
        poll_min, poll_max: Bounds of the pause between two observations; it starts small and doubles.
        store_patience: How long a store that does not answer is asked again, beyond the provider's own retries.
        lifetime: From the making of a new root to its expiration. GoatDB rewrites the expiration of a key with less
            than 15 days left, so it must stay well above that.
        grace: How long versions that hold a retired private key are kept before `retire` destroys them.
        renewal_fraction, renewal_cap: A root is due for rotation when less than this fraction of its lifetime, and at
            most this time, is left.
        quorum: How many nodes must follow once `adoption` has passed; until then all are waited for. Only a node that
            does not answer at all can be left out: one that answers, and does not follow, ends the rotation.
        unlisted: How long B must have been published before it signs, beside all evidence, for the sake of servers
            that nobody has listed: their refresh interval with its jitter. 0 says that there are none.
        bare: URLs of unmodified servers that nobody restarts. They must trust B as all do, but are not waited for to
            sign with it: what they sign with A counts everywhere, until their operator starts them anew.
        health_failures: After so many bad answers in a row from the health signal the rotation is rolled back.
        health_interval: Shortest time between two questions to the health signal.
        health_timeout: Longest time for one answer of the health signal; none in time is a bad one.
        health_soak: With a health signal, how long it must be watched while B signs before the rotation is final.
    """

    adoption: timedelta = timedelta(minutes=5)
    settle: timedelta = timedelta(seconds=90)
    node_timeout: timedelta = timedelta(seconds=5)
    poll_min: timedelta = timedelta(milliseconds=25)
    poll_max: timedelta = timedelta(seconds=1)
    store_patience: timedelta = timedelta(seconds=60)
    lifetime: timedelta = timedelta(days=180)
    grace: timedelta = timedelta(days=30)
    renewal_fraction: float = 0.5
    renewal_cap: timedelta = timedelta(days=60)
    quorum: Quorum = ALL
    unlisted: timedelta = timedelta(0)
    bare: frozenset[str] = frozenset()
    health_failures: int = 3
    health_interval: timedelta = timedelta(seconds=2)
    health_timeout: timedelta = timedelta(seconds=5)
    health_soak: timedelta = timedelta(seconds=10)

    @property
    def health_bound(self) -> timedelta:
        """Longest time from the first bad answer of the health signal to the roll-back, in a store that answers.

        Each question may have to wait for the interval, for one look at the nodes and for telling them, and for the
        pause between two looks.
        """
        look = max(self.node_timeout, self.health_timeout) + self.node_timeout + self.poll_max
        return self.health_failures * (self.health_interval + look)


def unlisted_for(refresh_interval: timedelta, *, jitter: float = 0.2) -> timedelta:
    """Return a `Policy.unlisted` by which every server that can read the store has looked at it.

    Args:
        refresh_interval: How often servers look (`goatherd.settings.CloudSecretSettings`).
        jitter: By which part of it they may be later.
    """
    return refresh_interval * (1 + jitter) + timedelta(seconds=2)
