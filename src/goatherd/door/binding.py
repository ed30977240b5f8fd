"""Check for which server a request was signed: the reverse proxy (door) rejects one that is meant for another server.

Only Goatherd's tools name the server in their signatures. The server behind the door is an unmodified GoatDB and does
not make this check. A request that names no server is accepted, because GoatDB's clients and servers send only such
requests.
"""

from __future__ import annotations

import asyncio
from typing import Final

from goatherd.cluster.client import INSTANCE_HEADER
from goatherd.door.exchange import Exchange
from goatherd.door.request_checks import DoorRule
from goatherd.errors import OtherServerError, VerificationError
from goatherd.identity.request_binding import MISDIRECTED, RequestGuard, digest_body, read_binding
from goatherd.identity.session import SignatureEnvelope, parse_signature
from goatherd.serving.caller_limiter import Headers
from goatherd.serving.caller_limits import RefusedError

_BIG_BODY: Final = 64 * 1024


async def is_misdirected(
    guard: RequestGuard,
    exchange: Exchange,
    body: bytes,
    envelope: SignatureEnvelope,
    *,
    is_root: bool,
    now_ms: int,
) -> bool:
    """Return whether a request was signed for other servers only; `give_misdirected` answers such a request.

    Args:
        guard: The door's guard, which knows the server's instance id and the requests accepted before.
        exchange: The request.
        body: The request's body.
        envelope: The request's signature.
        is_root: Whether a root signed the request, and the caller has verified this. Only such requests are remembered.
        now_ms: Milliseconds since 1970.

    Raises:
        RefusedError: The request was signed for another endpoint or body, or was accepted before.
    """
    try:
        binding = read_binding(envelope)
        if binding is None:
            return False
        digest = digest_body(body) if len(body) <= _BIG_BODY else await asyncio.to_thread(digest_body, body)
        guard.check_request(
            envelope,
            binding,
            method=exchange.method,
            path=exchange.path,
            digest=digest,
            is_root=is_root,
            now_ms=now_ms,
        )
    except OtherServerError:
        return True
    except VerificationError as error:
        raise RefusedError(DoorRule.REQUEST_SIGNATURE, 403, str(error)) from None
    return False


def parse_bound_signature(header: str) -> SignatureEnvelope | None:
    """Return a request's signature; None if it is missing or malformed. The server itself rejects such a request."""
    try:
        return parse_signature(header)
    except VerificationError:
        return None


def instance_headers(guard: RequestGuard, status: int) -> Headers:
    """Return the header with the server's instance id if `status` is that of a misdirected request; else no header."""
    return [(INSTANCE_HEADER.encode(), guard.instance.encode())] if status == MISDIRECTED else []


async def give_misdirected(exchange: Exchange, guard: RequestGuard) -> None:
    """Answer a request that was signed for other servers only, with the instance id of the server behind this door."""
    await exchange.give_answer(MISDIRECTED, b"", instance_headers(guard, MISDIRECTED))
