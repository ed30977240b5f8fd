"""A door in front of a server with several organizations, which the application tells apart by the host name."""

from __future__ import annotations

import asyncio
import re

from goatherd.door.door import Door
from goatherd.door.trusted_sessions import TrustedSessions
from goatherd.identity.session import parse_signature
from tests.cluster.door_world import A, B, Standing, identity

from .scripted_server import PATIENCE, Reader, Writer, head_of


async def test_the_sessions_of_each_organization_are_read_at_its_own_url() -> None:
    """At another host name the server returns the sessions of another organization, and does not trust the root."""
    asked: dict[str, str] = {}

    async def talk(reader: Reader, writer: Writer) -> None:
        fields = dict(re.findall(r"^([\w-]+): (.*)\r$", (await head_of(reader)).decode(), re.MULTILINE))
        if "x-goat-sig" in fields:
            asked[parse_signature(fields["x-goat-sig"]).session_id] = fields["host"]
        writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    clock = Standing()
    trusts = [
        TrustedSessions(org="one", identity=identity(A), clock=clock),
        TrustedSessions(org="two", identity=identity(B), clock=clock),
    ]
    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        urls = {org: f"http://{org}.localhost:{port}" for org in ("one", "two")}
        async with Door(upstream=f"http://127.0.0.1:{port}", trust=trusts, org_urls=urls, clock=clock):
            async with asyncio.timeout(PATIENCE):
                while len(asked) < 2:
                    await asyncio.sleep(0.01)
    assert asked == {A.id: f"one.localhost:{port}", B.id: f"two.localhost:{port}"}
