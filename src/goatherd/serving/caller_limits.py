"""Define how many requests and bytes an unauthenticated caller may use, and the token buckets that count them. Pure.

Rules: the defaults are far above what GoatDB's own clients and servers use, even if a whole office shares one address.
A table of buckets never exceeds its capacity, however many addresses callers use. Functions get the time as an
argument.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Final

_MIB = 1024 * 1024
AUTH_PREFIX: Final = "/auth/"
"""Prefix of the paths that callers without a session request."""


class Excess(StrEnum):
    """The kinds of exceeded limits; the door has rules with the same names."""

    TOO_LARGE = "too-large"
    TOO_SLOW = "too-slow"
    TOO_MANY = "too-many"


class RefusedError(Exception):
    """A request is rejected without further processing.

    Attributes:
        rule: The rule that the request breaks.
        status: HTTP status of the answer.
        body: The answer's body; empty where GoatDB's would be.
        retry_after: Seconds after which the same request may succeed; None if it never will.
        is_unread: Whether the request was not read completely, so that its connection cannot be used again.
    """

    def __init__(
        self,
        rule: StrEnum,
        status: int,
        why: str,
        *,
        body: bytes = b"",
        retry_after: float | None = None,
        is_unread: bool = False,
    ) -> None:
        super().__init__(why)
        self.rule = rule
        self.status = status
        self.body = body
        self.retry_after = retry_after
        self.is_unread = is_unread


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A rate limit: the average number per second, and the maximum at once."""

    per_second: float
    burst: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerLimits:
    """How much callers may use.

    Attributes:
        body_bytes: Size of a request's body; 413 beyond. GoatDB's clients push all their commits in one body.
        auth_body_bytes: Size of the body of a request below ``/auth/``; 413 beyond. A key or a signed mail address has
            1 KiB.
        buffered_bytes: Size of all bodies in memory together; 503 beyond. One address gets half, or room for one body.
        header_bytes: Size of a request's line and headers; 431 beyond.
        header_timeout: How long a connection may take to send line and headers.
        body_timeout: How long a body may pause; 408 beyond.
        body_rate: Average of bytes per second that a body must reach after `body_timeout`.
        answer_timeout: How long a caller may pause in reading an answer.
        idle_timeout: How long a connection stays open without a request. It must be well above the 5 seconds in which
            clients reuse a connection, since a request is lost if the connection is closed at the same time.
        connections: Number of open connections.
        connections_per_address: Number of open connections of one address.
        requests: Rate of requests of one address.
        new_sessions: Rate of ``POST /auth/session`` of one address.
        session_requests: Rate of ``POST /batch-sync`` of one session; a real client sends 5 a second at most. Roots
            have no limit, because all servers of a cluster share one.
    """

    body_bytes: int = 64 * _MIB
    auth_body_bytes: int = 16 * 1024
    buffered_bytes: int = 256 * _MIB
    header_bytes: int = 64 * 1024
    header_timeout: timedelta = timedelta(seconds=10)
    body_timeout: timedelta = timedelta(seconds=30)
    body_rate: int = 4096
    answer_timeout: timedelta = timedelta(seconds=60)
    idle_timeout: timedelta = timedelta(seconds=75)
    connections: int = 4000
    connections_per_address: int = 1000
    requests: Rate = field(default=Rate(per_second=500, burst=2500))
    new_sessions: Rate = field(default=Rate(per_second=0.2, burst=300))
    session_requests: Rate = field(default=Rate(per_second=30, burst=150))

    def body_limit(self, path: str) -> int:
        """Return the maximum size of the body of a request for `path`, which is in lower case."""
        return min(self.auth_body_bytes, self.body_bytes) if path.startswith(AUTH_PREFIX) else self.body_bytes


class TokenBuckets:
    """Token buckets for rate limits, one for each key (an address or a session).

    Args:
        rate: The rate limit of each key.
        capacity: Maximum number of keys; the least recently used one is dropped.
    """

    def __init__(self, rate: Rate, capacity: int = 100_000) -> None:
        self._rate = rate
        self._capacity = capacity
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._levels)

    def seconds_until(self, key: str, now: float, cost: float = 1) -> float:
        """Return how many seconds until `cost` can be taken; 0 if it can be now. Takes nothing."""
        lacking = min(cost, self._rate.burst) - self._current_level(key, now)
        return max(0.0, lacking / self._rate.per_second)

    def take(self, key: str, now: float, cost: float = 1) -> float:
        """Take `cost` and return 0, or take nothing and return how many seconds to wait.

        Args:
            key: The bucket's key.
            now: Seconds on a monotonic clock.
            cost: Number of tokens; more than the burst counts as the burst.
        """
        wait = self.seconds_until(key, now, cost)
        if not wait:
            self._levels[key] = (max(0.0, self._current_level(key, now) - cost), now)
            self._levels.move_to_end(key)
            if len(self._levels) > self._capacity:
                self._levels.popitem(last=False)
        return wait

    def charge(self, key: str, now: float, cost: float) -> None:
        """Take `cost` after the work was done. The bucket may become negative, by one burst at most."""
        self._levels[key] = (max(-self._rate.burst, self._current_level(key, now) - cost), now)
        self._levels.move_to_end(key)
        if len(self._levels) > self._capacity:
            self._levels.popitem(last=False)

    def give_back(self, key: str, now: float, cost: float) -> None:
        """Undo a `take`."""
        if key in self._levels:
            self._levels[key] = (min(self._rate.burst, self._current_level(key, now) + cost), now)

    def _current_level(self, key: str, now: float) -> float:
        level, at = self._levels.get(key, (self._rate.burst, now))
        return min(self._rate.burst, level + (now - at) * self._rate.per_second)


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def find_caller(address: str, forwarded: str, trusted: tuple[Network, ...]) -> str:
    """Return the address to which a request is charged: an IPv4 address, or an IPv6 network of 64 bits.

    Args:
        address: The remote address of the connection.
        forwarded: The values of all ``X-Forwarded-For`` headers, joined by commas.
        trusted: Proxies whose entries in that header are trusted. The caller is the first address from the right that
            is not such a proxy.
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
    return _group_address(caller)


def _group_address(text: str) -> str:
    if ":" not in text:
        return text
    try:
        address = ipaddress.IPv6Address(text.partition("%")[0])
    except ValueError:
        return text
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False))
