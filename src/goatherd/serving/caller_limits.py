"""Define how many requests and bytes an unauthenticated caller may use, and the token buckets that count them. Pure.

Rules: the defaults are far above what GoatDB's own clients and servers use, even if a whole office shares one address.
A table of buckets never exceeds its capacity, however many addresses callers use. The time is an argument.
"""

from __future__ import annotations

import ipaddress
import re
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Final

_MIB = 1024 * 1024
AUTH_PREFIX: Final = "/auth/"
"""Prefix of the paths that callers without a session request."""


class Excess(StrEnum):
    """The kinds of limits that a caller can exceed. The door (reverse proxy) has rules with the same names."""

    TOO_LARGE = "too-large"
    TOO_SLOW = "too-slow"
    TOO_MANY = "too-many"


class RefusedError(Exception):
    """A request is rejected without further processing, for example because its caller exceeds a limit.

    Attributes:
        rule: The rule that the request violates.
        status: HTTP status of the answer to the request.
        body: The answer's body; empty wherever GoatDB would send an empty one.
        retry_after: Seconds after which the same request may succeed; None if it never can.
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
    """A rate limit: the average number of events per second, and the maximum number of events at once (burst)."""

    per_second: float
    burst: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerLimits:
    """Limits on what each caller of the server may use: bytes, connections, requests and time.

    Attributes:
        body_bytes: Maximum size of a request's body; a larger one is answered with 413. A GoatDB client that was
            offline pushes all its commits in one body.
        auth_body_bytes: Maximum size of the body of a request below ``/auth/``; real ones (a key or a signed mail
            address) have about 1 KiB.
        buffered_bytes: Maximum size of all bodies in memory together; requests beyond this limit are answered with 503.
            One address may use half of this memory, or `body_bytes` if that is more. Bodies of up to 64 KiB may use
            another sixteenth. The address that holds most makes room for one that holds less: its oldest request that
            is still arriving is dropped, or its oldest answer that is still being sent. The same limit applies again to
            the answers that clients have not read yet: the door's answers with ``/sys/sessions``, and the answers of
            `goatherd serve` with more than 64 KiB.
        header_bytes: Maximum size of a request's line and headers, and of trailers; larger ones are answered with 431.
        header_timeout: How long a connection may take to send a request's line and headers.
        body_timeout: How long a body may take to arrive, plus a second for each `body_rate` bytes; after that the
            answer is 408.
        body_rate: Bytes of a body for which its caller gets another second.
        answer_timeout: How long a caller may pause in reading an answer, and how long the server behind the door may
            take to answer or pause in an answer (504).
        answer_rate: Bytes per second that a caller must read on average in each `answer_timeout`, or all that is left;
            else the connection is closed. GoatDB's clients give up after ten seconds; a lower rate would let a few
            callers fill the memory for answers for hours.
        idle_timeout: How long a connection stays open without a request. It must be well above the 5 seconds in which
            clients reuse a connection, since a request is lost if the connection is closed at the same time.
        connections: Maximum number of open connections; fewer if the process may not open so many files. Beyond it, the
            oldest connection of the address with most connections makes room for an address with fewer.
        connections_per_address: Maximum number of open connections of one address.
        requests: Rate limit for the requests of one address.
        new_sessions: Rate limit for ``POST /auth/session`` of one address.
        session_requests: Rate limit for ``POST /batch-sync`` of one session; a GoatDB client sends at most 5 a second.
            A request is delayed by up to 3 s before it is answered with 429, and counted when its signature is
            verified. Root sessions have no such limit, because all servers of a cluster sign with the same root.
    """

    body_bytes: int = 64 * _MIB
    auth_body_bytes: int = 16 * 1024
    buffered_bytes: int = 256 * _MIB
    header_bytes: int = 64 * 1024
    header_timeout: timedelta = timedelta(seconds=10)
    body_timeout: timedelta = timedelta(seconds=30)
    body_rate: int = 4096
    answer_timeout: timedelta = timedelta(seconds=60)
    answer_rate: int = 64 * 1024
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
    """Token buckets that enforce a rate limit, one bucket for each key (an address or a session).

    Args:
        rate: The rate limit for each key.
        capacity: Maximum number of keys; the least recently used one is dropped.
    """

    def __init__(self, rate: Rate, capacity: int = 100_000) -> None:
        self._rate = rate
        self._capacity = capacity
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._levels)

    def seconds_until(self, key: str, now: float, cost: float = 1) -> float:
        """Return how many seconds until a key's bucket has `cost` tokens; 0 if it has them now. No token is taken."""
        lacking = min(cost, self._rate.burst) - self._current_level(key, now)
        return max(0.0, lacking / self._rate.per_second)

    def take(self, key: str, now: float, cost: float = 1) -> float:
        """Take `cost` tokens from a key's bucket and return 0, or take nothing and return how many seconds to wait.

        Args:
            key: The bucket's key (an address or a session).
            now: Seconds on a monotonic clock.
            cost: Number of tokens; if it exceeds the burst of the rate limit, the burst is used.
        """
        wait = self.seconds_until(key, now, cost)
        if not wait:
            self.charge(key, now, min(cost, self._rate.burst))
        return wait

    def charge(self, key: str, now: float, cost: float) -> None:
        """Take `cost` tokens from a key's bucket for work that was already done, even if it has fewer.

        The number of tokens may become negative, by one burst at most.
        """
        self._levels[key] = (max(-self._rate.burst, self._current_level(key, now) - cost), now)
        self._levels.move_to_end(key)
        if len(self._levels) > self._capacity:
            self._levels.popitem(last=False)

    def give_back(self, key: str, now: float, cost: float) -> None:
        """Put `cost` tokens back into a key's bucket, to undo a `take`."""
        if key in self._levels:
            self._levels[key] = (min(self._rate.burst, self._current_level(key, now) + cost), now)

    def _current_level(self, key: str, now: float) -> float:
        level, at = self._levels.get(key, (self._rate.burst, now))
        return min(self._rate.burst, level + (now - at) * self._rate.per_second)


IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_WITH_PORT: Final = re.compile(r"(?:([0-9.]+)|\[([0-9A-Fa-f:.]+)\])(?::[0-9]+)?")
"""An entry of ``X-Forwarded-For`` as Azure's Application Gateway, IIS, and AWS, if configured, write it: with a port"""


_PADDING: Final = re.compile(r"(?<![0-9])0+(?=[0-9])")


def find_caller(address: str, forwarded: str, trusted: tuple[Network, ...]) -> str:
    """Return the address to which a request is charged: an IPv4 address, or an IPv6 network of 64 bits.

    Args:
        address: The remote address of the connection.
        forwarded: The values of all ``X-Forwarded-For`` headers, joined by commas; an address may have a port.
        trusted: Networks of the proxies whose entries in that header are trusted. The caller is the first address from
            the right that is not one of these proxies.
    """
    if not trusted:
        return _group_address(address)
    chain = [*(part.strip() for part in forwarded.split(",")), address] if forwarded else [address]
    caller = address
    for text in reversed(chain):
        if len(text) > _LONGEST_ADDRESS:
            break
        match = _WITH_PORT.fullmatch(text)
        # Some proxies pad the numbers of an IPv4 address with zeros.
        host = text if match is None else match[2] or _PADDING.sub("", match[1])
        parsed = _parse_address(host)
        if parsed is None:
            break
        caller = host
        if not _is_in(parsed, trusted):
            break
    return _group_address(caller)


def is_in_networks(address: str, networks: tuple[Network, ...]) -> bool:
    """Return whether an address is in one of the networks; a string that is no address is in none."""
    parsed = _parse_address(address)
    return parsed is not None and _is_in(parsed, networks)


def _is_in(address: IPAddress, networks: tuple[Network, ...]) -> bool:
    """Return whether an address is in a network; an IPv4 address also if its IPv6 form is, as in ``::/0``."""
    mapped = ipaddress.IPv6Address(f"::ffff:{address}") if isinstance(address, ipaddress.IPv4Address) else address
    return any(address in network or mapped in network for network in networks)


@lru_cache(maxsize=4096)
def _parse_address(text: str) -> IPAddress | None:
    """Return an IP address; an IPv4 caller of a listener on ``::``, ``::ffff:10.0.0.5``, gets the IPv4 one."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def parse_network(text: str) -> Network:
    """Parse an IP network, such as ``10.0.0.0/8``; ``::ffff:10.0.0.0/104`` is the same one.

    Raises:
        ValueError: The string is not an IP network.
    """
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= _MAPPED_BITS:
        address = network.network_address.ipv4_mapped
        if address is not None:
            return ipaddress.IPv4Network((address, network.prefixlen - _MAPPED_BITS))
    return network


_MAPPED_BITS: Final = 96
"""Bits of an IPv6 address before an IPv4 address in it."""


_LONGEST_ADDRESS: Final = 100
"""Longest text that is read as an IP address, so that no caller fills the memory with what is not one."""


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
