"""Commits and requests of attackers, for tests of what the door rejects."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from goatherd.door.request_checks import DoorRule
from goatherd.identity.session import OwnedSession
from goatherd.wire.base32 import base32_decode, base32_encode
from goatherd.wire.commit import Commit
from tests.cluster.door_world import X, Y, world
from tests.unit.goats import commit_by, element, new_id

NOTES = "/data/notes"


def envelope(signature: str | None, **changes: Any) -> str:
    """Change a signature string's envelope; None removes a member."""
    members = {**json.loads(base32_decode(signature or "")), **changes}
    return base32_encode(json.dumps({k: v for k, v in members.items() if v is not None}).encode())


def note(author: OwnedSession = X, key: str | None = None, **more: Any) -> Commit:
    """Return a note with new contents each time: creations with equal contents need no merge."""
    return commit_by(author, key or new_id(), {"text": new_id()}, **more)


async def both_ways(
    rule: DoorRule,
    attack: Callable[[], Any],
    path: str = NOTES,
    *,
    by: OwnedSession = X,
    given: Any = None,
    works: bool = True,
    sessions: tuple[OwnedSession, ...] = (X, Y),
) -> None:
    """Push an attack to the server directly, which stores it, and through the door, which removes it."""
    async with world(given=given, sessions=sessions) as w:
        bad = attack()
        bad_id = bad.id if isinstance(bad, Commit) else bad["id"]
        response = await w.push(False, path, bad, by=by)
        assert response.status_code == 200
        assert (bad_id in w.stored(path)) is works
    async with world(given=given, sessions=sessions) as w:
        bad, good = attack(), note(Y)
        bad_id = bad.id if isinstance(bad, Commit) else bad["id"]
        good_path = NOTES if path.startswith("/sys/") else path
        await w.push(True, good_path, note(Y), by=Y)
        w.child.reached.clear()
        elements = [element(path, [bad]), element(good_path, [good])]
        response = await w.send(True, elements, by=by)
        assert response.status_code == 200, "the rest of the request goes on"
        assert [one["path"] for one in response.json()] == [path, good_path]
        assert bad_id not in w.stored(path)
        assert good.id in w.stored(good_path)
        assert all(bad_id.encode() not in body for body in w.pushes()), "nothing of it reached the server"
        assert w.stopped(rule) == 1
