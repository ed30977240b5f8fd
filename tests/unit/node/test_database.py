"""One organization alive, without HTTP: what goes on in the background, and what its end looks like."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from goatherd.identity.session import OwnedSession
from goatherd.node import Server
from goatherd.node.database import PENDING_BATCH
from goatherd.node.rules import SESSIONS_PATH
from tests.unit.node.nodes import ORG, document_of, eventually, now_ms, root, session_commit, settings_of, store_of


async def test_every_session_is_verified_in_the_background_also_what_a_later_root_vouches_for(tmp_path: Path) -> None:
    signer, later, stranger = root("signer"), root("later"), root("stranger")
    one = OwnedSession.generate(session_id="one", owner=None, now_ms=now_ms()).session
    disputed = [replace(one, id=f"disputed{number}") for number in range(PENDING_BATCH + 1)]
    commits = [session_commit(by, session) for session in disputed for by in (stranger, signer)]
    commits += [session_commit(signer, one), session_commit(later, replace(one, id="waits"))]
    provider = await store_of(document_of(signer))
    log = tmp_path / ORG / "sys" / "sessions.jsonl"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"".join(b"\n" + json.dumps(commit.to_json()).encode() + b"\n" for commit in commits))
    async with Server(tmp_path, settings_of(provider), debug=True) as server:
        pool = server.database().pool

        async def known(count: int) -> bool:
            return pool.known_count == count

        await eventually(lambda: known(1 + len(disputed) + 1))
        assert await server.database().take(SESSIONS_PATH, [session_commit(signer, later.session).to_json()]) == 1
        await eventually(lambda: known(1 + len(disputed) + 1 + 2))
