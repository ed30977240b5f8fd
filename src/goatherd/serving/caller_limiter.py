"""Limit how many connections, requests, seconds and bytes each caller of a server or door (reverse proxy) may use.

A `CallerLimiter` counts the connections, requests and new sessions of each address, limits the size of each request
body and the time in which it must arrive, and bounds the memory that all bodies take. It does not interpret requests.
Rules: everything that is rejected is counted and reported; every wait for a caller has a timeout.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Final

from goatherd.clock import Clock
from goatherd.errors import ConfigurationError
from goatherd.serving.caller_limits import (
    CallerLimits,
    Excess,
    Network,
    RefusedError,
    TokenBuckets,
    find_caller,
    is_in_networks,
    parse_network,
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

CONNECTION: Final = "goatherd.connection"
"""The key of the caller's `HTTPConnection` in a request's ASGI scope."""
LINGER_SECONDS: Final = 2.0
LINGER_BYTES: Final = 8 * 1024 * 1024
SMALL_BODY: Final = 64 * 1024
"""Up to this size, a body or an answer is small."""
SPARE_PART: Final = 16
"""Small bodies may take one part in so many more than the memory budget."""
PART_BYTES: Final = 256 * 1024
"""How many bytes of an answer are given to the connection at once."""
UNLISTED: Final = 1000
"""Maximum number of remembered addresses that may be proxies which `forwarded_by` lacks."""
LONGEST_PAUSE: Final = 3.0
"""Maximum delay of a session's request in seconds; GoatDB's clients give up after ten."""


class GoneError(Exception):
    """The caller has disconnected before its request was answered."""


class CallerLimiter:
    """Count the requests, connections and bytes of each caller, and reject requests that exceed the limits.

    Args:
        limits: The limits for each caller.
        clock: Supplies the current time.
        forwarded_by: Networks of the proxies in front of the server, whose ``X-Forwarded-For`` names the caller.
        report: Called for each rejected request or connection, with the rule and the reason.

    Raises:
        ConfigurationError: A network of `forwarded_by` is invalid.
    """

    def __init__(
        self,
        limits: CallerLimits,
        *,
        clock: Clock,
        forwarded_by: Iterable[str] = (),
        report: Callable[[Excess, str], None] = lambda _, __: None,
    ) -> None:
        self.limits = limits
        per_address = max(limits.buffered_bytes // 2, limits.body_bytes)
        spare = limits.buffered_bytes // SPARE_PART
        self.budget = Budget(limits.buffered_bytes, per_address, spare, report=report)
        self.answers = Budget(limits.buffered_bytes, per_address, spare, report=report)
        """The memory budget for answers that are in memory until their callers have taken them."""
        self._clock = clock
        self._proxies = parse_networks(forwarded_by)
        self._report = report
        self._requests = TokenBuckets(limits.requests)
        self._sessions = TokenBuckets(limits.new_sessions)
        self._session_requests = TokenBuckets(limits.session_requests)
        self.paused_count = 0
        """Number of requests that were delayed because their session had sent too many."""
        self.connection_count = 0
        """Number of open connections of all callers."""
        self._open: dict[str, dict[Callable[[], None], None]] = {}  # by address, the oldest connection first
        self._unlisted: dict[str, None] = {}  # addresses that sent X-Forwarded-For and are not in `forwarded_by`

    # --- connections --------------------------------------------------------------------------------------------------

    def count_connection(self, address: str, abort: Callable[[], None]) -> bool:
        """Count a new connection of an address, and return whether the limits let it stay open.

        Only the limit on all connections together applies to proxies in `forwarded_by`. If that limit is reached, the
        oldest connection of the address with most connections makes room for one of an address with fewer.

        SECURITY: otherwise a few addresses could keep out all others (tests/unit/serving/test_caller_limiter.py).

        Args:
            address: The remote address.
            abort: Closes the connection at once; also identifies it.
        """
        key = find_caller(address, "", ())
        own = self._open.setdefault(key, {})
        own[abort] = None
        self.connection_count += 1
        is_proxy = is_in_networks(address, self._proxies)
        if not is_proxy and len(own) > self.limits.connections_per_address:
            self._report(Excess.TOO_MANY, f"too many connections, {len(own)} of them from {key}")
            return False
        if self.connection_count <= self.limits.connections:
            return True
        callers = [each for each in self._open if not is_in_networks(each, self._proxies)]
        most = max(callers, key=lambda each: len(self._open[each]), default=key)
        count = len(self._open[most])
        self._report(Excess.TOO_MANY, f"too many connections, {count} of them from {most}")
        if most == key or (count <= len(own) and not is_proxy):
            return False
        oldest = next(iter(self._open[most]))
        self.uncount_connection(most, oldest)
        oldest()
        return True

    def uncount_connection(self, address: str, abort: Callable[[], None]) -> None:
        """Count a connection of an address as closed. May be called twice."""
        key = find_caller(address, "", ())
        own = self._open.get(key, {})
        if abort in own:
            del own[abort]
            self.connection_count -= 1
            if not own:
                del self._open[key]

    def report_slow_head(self) -> None:
        """Report a connection that was closed because the request's headers came too slowly or not at all."""
        self._report(Excess.TOO_SLOW, "a connection sent its headers too slowly")

    def report_full_queue(self) -> None:
        """Report a connection that was closed because it sent too many requests without waiting for answers."""
        self._report(Excess.TOO_MANY, "a connection sent too many requests before the first was answered")

    # --- requests -----------------------------------------------------------------------------------------------------

    def take_request(self, scope: Scope) -> str:
        """Count a request against its caller's limit, and return the address to which it is charged.

        Raises:
            RefusedError: The address has sent too many requests.
        """
        client = scope.get("client")
        direct = client[0] if client else ""
        forwarded = ",".join(
            [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
        )
        address = find_caller(direct, forwarded if self._proxies else "", self._proxies)
        if forwarded and address not in self._unlisted and not is_in_networks(direct, self._proxies):
            self._unlisted[address] = None
            if len(self._unlisted) > UNLISTED:
                del self._unlisted[next(iter(self._unlisted))]
        self.take_token(self._requests, address, "requests")
        return address

    def take_session(self, address: str) -> None:
        """Count the creation of a session against the limit of an address.

        Raises:
            RefusedError: The address has created too many sessions.
        """
        self.take_token(self._sessions, address, "new sessions")

    def give_back_session(self, address: str) -> None:
        """Undo `take_session`, because the request was malformed and created no session."""
        self._sessions.give_back(address, self._clock.monotonic(), 1)

    async def pause_request(self, session_id: str) -> None:
        """Delay a request if its session has sent too many requests.

        Nothing is charged to the session yet, because the request's signature is not verified yet.

        COMPAT: after any answer but 200 a client considers itself offline until the next good one, so requests are
        delayed before they are rejected.

        Raises:
            RefusedError: The request would have to wait too long.
        """
        if not (wait := self._wait_for(session_id, is_unread=True)):
            return
        self.paused_count += 1
        await self._clock.sleep(timedelta(seconds=wait))

    def take_request_of(self, session_id: str) -> None:
        """Charge a request to the session that signed it, after the signature was verified.

        A session may exceed its limit for a short time, by as many requests as are restored in the longest pause.
        SECURITY: only verified requests are charged, so that no caller uses up another's share
        (tests/unit/serving/test_caller_limiter.py).

        Raises:
            RefusedError: The session has sent too many requests at one time.
        """
        self._wait_for(session_id, is_unread=False)
        self._session_requests.charge(session_id, self._clock.monotonic(), 1)

    def _wait_for(self, session_id: str, *, is_unread: bool) -> float:
        wait = self._session_requests.seconds_until(session_id, self._clock.monotonic())
        if wait > LONGEST_PAUSE:
            why = f"session {session_id!r:.100} sent too many requests"
            raise RefusedError(Excess.TOO_MANY, 429, why, retry_after=wait, is_unread=is_unread)
        return wait

    def take_token(self, buckets: TokenBuckets, address: str, what: str, count: int = 1) -> None:
        """Take tokens out of the bucket of an address, to count `count` uses of what `what` names.

        Raises:
            RefusedError: The bucket has too few: the limit is exceeded.
        """
        wait = buckets.take(address, self._clock.monotonic(), count)
        if wait:
            remark = ""
            if address in self._unlisted:
                remark = "; it sent X-Forwarded-For: if it is your proxy, list it with --forwarded-by"
            raise RefusedError(Excess.TOO_MANY, 429, f"too many {what} from {address}{remark}", retry_after=wait)

    # --- bodies -------------------------------------------------------------------------------------------------------

    def open_share(self, address: str, abort: Callable[[], None] | None = None) -> Share:
        """Return a new, empty share of the memory budget for the body of one request.

        Args:
            address: The address to which the bytes are charged.
            abort: Closes the caller's connection at once; None if the request must not be dropped for another.
        """
        return Share(self.budget, address, abort)

    def open_answer_share(self, address: str, abort: Callable[[], None] | None = None) -> Share:
        """Return a new, empty share of the memory budget for answers, until the caller has taken one answer.

        Args:
            address: The address to which the bytes are charged.
            abort: Closes the caller's connection at once; None if the answer must not be dropped for another.
        """
        return Share(self.answers, address, abort)

    async def read_body(self, receive: Receive, headers: Mapping[bytes, bytes], share: Share, limit: int) -> bytes:
        """Read and return the whole body of a request.

        Its bytes are charged to a share of the memory budget until the share is given back.

        Args:
            receive: The ASGI receive function.
            headers: The request's headers.
            share: The share of the memory budget to which the bytes are charged.
            limit: Maximum number of bytes in the body.

        Raises:
            RefusedError: The body is too large or too slow, or there is no more memory for it.
            GoneError: The caller disconnected.
        """
        parts: list[bytes] = []
        with share.waiting():
            async for part in self.read_parts(receive, headers, limit):
                share.take(len(part))
                parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def read_parts(self, receive: Receive, headers: Mapping[bytes, bytes], limit: int) -> AsyncIterator[bytes]:
        """Yield the body of a request in parts as they arrive.

        Raises:
            RefusedError: The body is too large or too slow.
            GoneError: The caller disconnected.
        """
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > limit:
            raise RefusedError(
                Excess.TOO_LARGE, 413, f"a body must have at most {limit} bytes, not {int(length)}", is_unread=True
            )
        loop = asyncio.get_running_loop()
        began, received = loop.time(), 0
        while True:
            deadline = began + self.limits.body_timeout.total_seconds() + received / self.limits.body_rate
            try:
                async with asyncio.timeout_at(deadline):
                    event = await receive()
            except TimeoutError:
                raise RefusedError(Excess.TOO_SLOW, 408, "the body arrived too slowly", is_unread=True) from None
            if event["type"] != "http.request":
                raise GoneError
            part: bytes = event.get("body", b"")
            received += len(part)
            if received > limit:
                raise RefusedError(Excess.TOO_LARGE, 413, f"a body must have at most {limit} bytes", is_unread=True)
            if part:
                yield part
            if not event.get("more_body"):
                return


class Budget:
    """The memory budget for bodies of requests, and of answers that are read whole: limits how many bytes they have.

    If it is used up, the address that holds most makes room for one that holds less: the oldest of its requests whose
    body is still arriving, or whose answer is still being sent, is dropped.

    SECURITY: otherwise a few addresses that send or read slowly could keep out all others
    (tests/unit/serving/test_caller_limiter.py).

    Args:
        size: Maximum number of bytes for all addresses together.
        per_address: Maximum number of bytes for one address.
        spare: By how many bytes small bodies may exceed `size` and `per_address`. SECURITY: without spare bytes, a few
            large bodies that arrive slowly would keep out all other bodies (tests/unit/serving/test_caller_limiter.py).
        report: Called for each request that is dropped, with the rule and the reason.
    """

    def __init__(
        self,
        size: int,
        per_address: int,
        spare: int = 0,
        *,
        report: Callable[[Excess, str], None] = lambda _, __: None,
    ) -> None:
        self._left = size
        self._per_address = per_address
        self._spare = spare
        self._report = report
        self._held: Counter[str] = Counter()
        self._waiting: dict[Share, None] = {}  # the oldest first

    def take(self, share: Share, count: int, *, is_small: bool = False) -> None:
        """Charge bytes of a body to the address of a share.

        Raises:
            RefusedError: The budget has too few bytes left.
        """
        spare = self._spare if is_small else 0
        wanted = self._held[share.address] + count
        if wanted > self._per_address + spare or not self._make_room(count - spare, wanted):
            raise RefusedError(Excess.TOO_MANY, 503, "too many large bodies are in memory", retry_after=1)
        self._left -= count
        self._held[share.address] = wanted

    def give_back(self, share: Share, count: int) -> None:
        """Return bytes of a body, which were charged to the address of a share, to the budget."""
        self._left += count
        self._held[share.address] -= count
        if not self._held[share.address]:
            del self._held[share.address]

    def offer(self, share: Share) -> None:
        """Let a share be dropped for another address, because its request waits for its caller."""
        self._waiting[share] = None

    def withdraw(self, share: Share) -> None:
        """Let a share no longer be dropped. May be called twice."""
        self._waiting.pop(share, None)

    def _make_room(self, count: int, wanted: int) -> bool:
        """Drop requests of addresses that hold more than `wanted` bytes until `count` bytes are left.

        Returns:
            Whether so many bytes are left.
        """
        while count > self._left:
            droppable = [each for each in self._waiting if each.count]
            oldest_of_most = max(droppable, key=lambda each: self._held[each.address], default=None)
            if oldest_of_most is None or self._held[oldest_of_most.address] <= wanted:
                return False
            address = oldest_of_most.address
            self._report(Excess.TOO_SLOW, f"{address} holds the most memory, and was too slow when others needed it")
            oldest_of_most.drop()
        return True


class Share:
    """The bytes of the memory budget that one request has taken and not given back yet.

    The end of a ``with`` block gives them back.

    Args:
        budget: The memory budget.
        address: The address to which the bytes are charged.
        abort: Closes the caller's connection at once; None if the request must not be dropped for another.

    Attributes:
        count: How many bytes the request has taken and not given back yet.
    """

    def __init__(self, budget: Budget, address: str, abort: Callable[[], None] | None = None) -> None:
        self.address = address
        self._budget = budget
        self._abort = abort
        self.count = 0
        self._is_dropped = False

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()

    def take(self, count: int) -> None:
        """Take more bytes from the memory budget for this request's body, or its answer.

        Raises:
            RefusedError: The budget has too few bytes left.
            GoneError: The request was dropped for another address.
        """
        if self._is_dropped:
            raise GoneError
        self._budget.take(self, count, is_small=self.count + count <= SMALL_BODY)
        self.count += count

    def give_back(self) -> int:
        """Give all bytes of this request back to the memory budget, and return how many bytes these were.

        May be called twice.
        """
        count, self.count = self.count, 0
        self._budget.give_back(self, count)
        return count

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let the request be dropped for another address during the ``with`` block, in which it waits for its caller.

        Nothing of the request must have been carried out yet, or everything.
        """
        if self._abort is not None:
            self._budget.offer(self)
        try:
            yield
        finally:
            self._budget.withdraw(self)

    def drop(self) -> None:
        """Close the caller's connection, and give the bytes back."""
        self._is_dropped = True
        self._budget.withdraw(self)
        self.give_back()
        if self._abort is not None:
            self._abort()

    def move(self) -> Share:
        """Move all bytes of this share to a new share, and return the new share.

        Work that continues after the request was answered gives the new share back.
        """
        other = Share(self._budget, self.address)
        other.count, self.count = self.count, 0
        return other


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Parse the IP networks of reverse proxies, such as ``10.0.0.0/8``.

    Raises:
        ConfigurationError: A string is not an IP network.
    """
    try:
        return tuple([parse_network(text) for text in texts])
    except ValueError as error:
        raise ConfigurationError(
            f"forwarded_by must be a network: {error}", hint="Write a network such as 10.0.0.0/8 or 127.0.0.1."
        ) from None


def refusal_headers(refused: RefusedError) -> Headers:
    """Return the HTTP headers of the answer to a rejected request."""
    headers: Headers = [(b"content-length", b"%d" % len(refused.body))]
    if refused.body:
        headers.append((b"content-type", b"text/plain;charset=UTF-8"))
    if refused.retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(1, int(refused.retry_after + 0.999))))
    if refused.is_unread:
        headers.append((b"connection", b"close"))
    return headers


async def send_refusal(refused: RefusedError, receive: Receive, send: Send, *, is_head: bool = False) -> None:
    """Answer a rejected request with its error status."""
    await send({"type": "http.response.start", "status": refused.status, "headers": refusal_headers(refused)})
    if refused.is_unread:
        await _read_on(receive)
    await send({"type": "http.response.body", "body": b"" if is_head else refused.body})


async def send_body(send: Send, body: bytes) -> None:
    """Send the body of an answer, in parts: each waits until the caller has taken most of the one before.

    SECURITY: when this function returns, only a small part of the body is still in memory, so the share of memory that
    the body used may be given back (tests/unit/door/test_proxy.py).
    """
    start = 0
    while len(body) - start > PART_BYTES:
        await send({"type": "http.response.body", "body": body[start : start + PART_BYTES], "more_body": True})
        start += PART_BYTES
    await send({"type": "http.response.body", "body": body[start:] if start else body})


async def _read_on(receive: Receive) -> None:
    """Read and discard the rest of a rejected request's body, for a short time.

    If the connection were closed with unread bytes, the caller might not receive the answer.
    """
    left = LINGER_BYTES
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while left > 0:
                event = await receive()
                if event["type"] != "http.request" or not event.get("more_body"):
                    return
                left -= len(event.get("body", b""))
