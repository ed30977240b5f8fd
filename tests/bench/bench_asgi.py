"""Our ASGI callable beside the same answer from Starlette: what a request costs before anything of GoatDB is done.

No network: the application is called as uvicorn calls it, ours and Starlette's in turns of one run.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from goatherd.identity.document import encode_document
from goatherd.identity.session import OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.node import Server
from goatherd.providers.memory import MemorySecretProvider, MemoryStore
from goatherd.serving.caller_limits import CallerLimits, Rate
from goatherd.settings import CloudSecretSettings

PER_ROUND = 500
UNLIMITED = CallerLimits(requests=Rate(per_second=1e6, burst=1e6))
"""All requests come from one address; its limit is not what is measured."""
Application = Callable[[Any, Any, Any], Awaitable[None]]


async def healthy(request: Request) -> PlainTextResponse:
    origin = request.headers.get("origin", "")
    return PlainTextResponse("OK", headers={"access-control-allow-origin": origin} if origin else None)


async def per_request(application: Application, answers: list[bytes]) -> float:
    """Return seconds for one request."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            answers.append(message["body"])

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/healthy",
        "raw_path": b"/healthy",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"localhost:8080"), (b"accept", b"*/*"), (b"user-agent", b"bench")],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8080),
    }
    began = time.perf_counter()
    for _ in range(PER_ROUND):
        await application(dict(scope), receive, send)
    return (time.perf_counter() - began) / PER_ROUND


async def measure(rounds: int) -> dict[str, float]:
    now_ms = time.time_ns() // 1_000_000
    root = OwnedSession.generate(session_id="r" * 24, owner="root", now_ms=now_ms)
    provider = MemorySecretProvider(MemoryStore())
    async with provider:
        await provider.create("root", encode_document(create_document(root, now_ms)))
        with tempfile.TemporaryDirectory() as directory:
            settings = CloudSecretSettings(provider, "root")
            async with Server(Path(directory), settings, limits=UNLIMITED) as server:
                starlette = Starlette(routes=[Route("/healthy", healthy)])
                ours, theirs, answers = [], [], list[bytes]()
                for _ in range(rounds):
                    ours.append(await per_request(server.app, answers))
                    theirs.append(await per_request(starlette, answers))
    assert len(set(answers)) == 1, "both answer alike"
    return {
        "ours, us a request": statistics.median(ours) * 1e6,
        "Starlette, us a request": statistics.median(theirs) * 1e6,
        "ours / Starlette": statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
    }


def run(rounds: int = 40) -> dict[str, float]:
    """Measure; returns microseconds and the ratio."""
    return asyncio.run(measure(rounds))


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
