"""Who may use a server's management endpoints: a root whose signature is for this server, this endpoint and this body.

Not GoatDB's own endpoints: those take a request without a binding, as GoatDB's clients and servers send it
(`goatherd.node.engine`).
"""

from __future__ import annotations

import asyncio
from typing import Final

from goatherd.errors import AccessDeniedError, VerificationError
from goatherd.identity.request_binding import digest_body, read_binding
from goatherd.identity.session import parse_signature
from goatherd.node.engine import Engine, Response, refuse_request

_BIG_BODY: Final = 64 * 1024


async def refuse_unless_root(
    engine: Engine, path: str, body: bytes, header: str | None, *, now_ms: int
) -> Response | None:
    """Return the refusal of a ``POST`` to a management endpoint, or None where a root has signed it for this server."""
    try:
        envelope = parse_signature(header or "")
        session = engine.pool.verify_request(envelope, now_ms)
        if not session.is_root:
            raise AccessDeniedError(f"session {session.id!r:.100} is no root")
        binding = read_binding(envelope)
        digest = digest_body(body) if len(body) <= _BIG_BODY else await asyncio.to_thread(digest_body, body)
        engine.guard.check(
            envelope,
            binding,
            method="POST",
            path=path,
            digest=digest,
            is_root=True,
            now_ms=now_ms,
            must_be_bound=True,
        )
    except VerificationError as error:
        return refuse_request(error)
    return None
