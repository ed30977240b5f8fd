"""HTTP requests to a server, for the tests of its HTTP interface."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2

from goatherd.identity.session import OwnedSession, sign_request
from goatherd.ids import new_id
from goatherd.node import Server
from goatherd.wire.commit import Commit
from tests.unit.node.nodes import now_ms


def client_of(server: Server) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(server.app), base_url="http://node", verify=False)


def header(signer: OwnedSession) -> dict[str, str]:
    return {"x-goat-sig": sign_request(signer, now_ms=now_ms(), nonce=new_id())}


def batch(path: str, *commits: Commit) -> bytes:
    message = {"ver": 50595584, "f": {"d": "AA==", "s": [1]}, "s": 0, "c": [commit.to_json() for commit in commits]}
    return json.dumps([{"path": path, "msg": message}]).encode()


def records(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_bytes().splitlines() if line] if file.exists() else []
