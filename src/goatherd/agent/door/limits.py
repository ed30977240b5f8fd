"""How much of the child's time one caller may ask for, and the buckets that count it. Pure: the time comes in.

Rules: the defaults are far above what GoatDB's own clients and servers do, so that whoever meets one is no such client.
A table of buckets never grows beyond its capacity, whatever addresses callers show.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import timedelta

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """So many a second on average, so many at once."""

    per_second: float
    burst: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the door lets through.

    Attributes:
        body_bytes: A request's body; 413 beyond. GoatDB's clients push all that they have in one body.
        buffered_bytes: Bodies of pushes that are held in memory at one time, together; 503 beyond.
        header_bytes: A request's line and headers; 431 beyond.
        header_timeout: How long a connection may take to send them.
        body_timeout: How long a body may pause; 408 beyond.
        body_rate: Bytes a second that a body must have on average once `body_timeout` has passed.
        answer_timeout: How long the child may take to answer, or pause in an answer (504), and a caller to take it.
        connections: Open connections.
        connections_per_address: Of one address.
        requests: Of one address.
        session_requests: Of one session, counted when the child has accepted its signature; real clients send 5 a
            second at most.
        new_sessions: ``POST /auth/session`` of one address; each stays in ``/sys/sessions`` for ever.
        mails: ``POST /auth/send-login-email`` of one address.
        new_repositories: Repositories of one address that nobody has asked for since the door opened; the child makes
            a file for each and never closes it.
        repositories: Repositories that callers have asked for since the door opened, of all addresses together; 507
            beyond. Ids are never forgotten to make room for another one (T39).
        elements: Of one batch; real clients and servers send up to 19.
        seeds: Hash functions of one filter.
        filter_bytes: Bytes of one filter.
        size: The count ``s`` of one message; the child sizes its answer's filter by it.
        parents: Of one commit.
        ancestor_bytes: Bytes of one ancestors filter.
        depth: Nesting of one element.
        ahead: How far in the future a commit's time may lie (T40).
        index_commits: Ids held to judge what depends on the child's commits (T7, T37).
        login_age: How old a login token may be.
    """

    body_bytes: int = 64 * _MIB
    buffered_bytes: int = 256 * _MIB
    header_bytes: int = 64 * 1024
    header_timeout: timedelta = timedelta(seconds=10)
    body_timeout: timedelta = timedelta(seconds=30)
    body_rate: int = 4096
    answer_timeout: timedelta = timedelta(seconds=60)
    connections: int = 2000
    connections_per_address: int = 500
    requests: Rate = field(default=Rate(per_second=200, burst=1000))
    session_requests: Rate = field(default=Rate(per_second=30, burst=150))
    new_sessions: Rate = field(default=Rate(per_second=1, burst=60))
    mails: Rate = field(default=Rate(per_second=0.1, burst=10))
    new_repositories: Rate = field(default=Rate(per_second=2, burst=200))
    repositories: int = 50_000
    elements: int = 64
    seeds: int = 64
    filter_bytes: int = 4 * _MIB
    size: int = 1_000_000
    parents: int = 1000
    ancestor_bytes: int = _MIB
    depth: int = 64
    ahead: timedelta = timedelta(days=1)
    index_commits: int = 1_000_000
    login_age: timedelta = timedelta(hours=1)


class Buckets:
    """One token bucket for each key: addresses, sessions.

    Args:
        rate: What each of them may take.
        capacity: How many keys are remembered; the one not seen for longest is forgotten.
    """

    def __init__(self, rate: Rate, capacity: int = 100_000) -> None:
        self._rate = rate
        self._capacity = capacity
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._levels)

    def wait(self, key: str, now: float, cost: float = 1) -> float:
        """Return 0 where `cost` could be taken now, else how many seconds until it can. Takes nothing."""
        lacking = min(cost, self._rate.burst) - self._level(key, now)
        return max(0.0, lacking / self._rate.per_second)

    def take(self, key: str, now: float, cost: float = 1) -> float:
        """Take `cost` and return 0, or take nothing and return how many seconds to wait.

        Args:
            key: Whose bucket.
            now: Seconds on a clock that never goes back.
            cost: How much; more than the burst counts as the burst.
        """
        wait = self.wait(key, now, cost)
        if not wait:
            self._levels[key] = (max(0.0, self._level(key, now) - cost), now)
            self._levels.move_to_end(key)
            if len(self._levels) > self._capacity:
                self._levels.popitem(last=False)
        return wait

    def _level(self, key: str, now: float) -> float:
        level, at = self._levels.get(key, (self._rate.burst, now))
        return min(self._rate.burst, level + (now - at) * self._rate.per_second)


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def caller_of(address: str, forwarded: str, trusted: tuple[Network, ...]) -> str:
    """Return whom to count a request for: an IPv4 address, or an IPv6 network of 64 bits.

    Args:
        address: The connection's other end.
        forwarded: ``X-Forwarded-For``, all of them joined by commas.
        trusted: Proxies whose word in that header counts; the first address from the right that is none of them wins.
    """
    chain = [address]
    if trusted and forwarded:
        chain = [part.strip() for part in forwarded.split(",")] + chain
    caller = address
    for text in reversed(chain):
        try:
            parsed = ipaddress.ip_address(text)
        except ValueError:
            break
        caller = text
        if not any(parsed in network for network in trusted):
            break
    return _grouped(caller)


def _grouped(text: str) -> str:
    if ":" not in text:
        return text
    try:
        address = ipaddress.IPv6Address(text.partition("%")[0])
    except ValueError:
        return text
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False))
