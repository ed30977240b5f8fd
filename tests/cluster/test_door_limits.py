"""The limits of a caller at the door: the attack works on the server itself, and the door stops it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from goatherd.door.exchange import KEPT_BYTES
from goatherd.door.limits import DoorLimits
from goatherd.door.request_checks import DoorRule
from goatherd.door.server_connections import ServerConnections
from goatherd.errors import NodeUnreachableError
from goatherd.serving.caller_limits import Rate
from tests.cluster.door_world import A, World, X, Y, world
from tests.unit.goats import ORG, element, new_id, owned, signed_header

from .door_attacks import envelope, note

pytestmark = pytest.mark.slow
FEW = Rate(per_second=0.001, burst=3)


@pytest.mark.parametrize(
    ("limits", "attempt"),
    [
        (DoorLimits(requests=FEW), lambda w: w.http.get(w.door.url + "/healthy")),
        (DoorLimits(session_requests=FEW), lambda w: w.send(True, [])),
        (DoorLimits(new_sessions=FEW), lambda w: w.http.post(w.door.url + "/auth/session", json=NEW)),
        (DoorLimits(new_repositories=FEW), lambda w: w.send(True, [element(f"/data/{new_id()}")])),
    ],
    ids=["requests", "session", "new sessions", "repositories"],
)
async def test_who_asks_too_often_is_told_when_to_come_again(
    limits: DoorLimits, attempt: Callable[[World], Any]
) -> None:
    async with world(limits=limits) as w:
        statuses = [await attempt(w) for _ in range(5)]
        assert [each.status_code for each in statuses] == [200, 200, 200, 429, 429]
        assert int(statuses[-1].headers["retry-after"]) >= 1
        assert w.stopped(DoorRule.TOO_MANY) == 2


async def test_forged_requests_do_not_fill_the_table_of_repositories() -> None:
    async with world(limits=DoorLimits(repositories=3, new_repositories=Rate(per_second=0.001, burst=4))) as w:
        forged = envelope(signed_header(Y), i=X.id)
        for number in range(20):
            assert (await w.send(True, [element(f"/data/f{number}")], forged)).status_code == 403
        stranger = signed_header(owned("stranger"))
        assert (await w.send(True, [element("/data/s1"), element("/data/s2")], stranger)).status_code == 403
        assert not w.door._proxy._repositories
        assert (await w.push(True, "/data/0", note(X))).status_code == 200


@pytest.mark.parametrize("is_chunked", [False, True], ids=["as Deno answers", "as Node answers"])
async def test_repositories_that_the_server_has_already_do_not_count_after_a_restart_of_the_door(
    is_chunked: bool,
) -> None:
    async with world(limits=DoorLimits(new_repositories=Rate(per_second=0.001, burst=4))) as w:
        w.child.is_chunked = is_chunked
        for number in range(20):
            w.child.create(f"/data/{number}", note(X))
        for number in range(0, 20, 2):
            elements = [element(f"/data/{number}"), element(f"/data/{number + 1}")]
            assert (await w.send(True, elements)).status_code == 200
        statuses = [(await w.send(True, [element(f"/data/new{number}")])).status_code for number in range(5)]
        assert statuses == [200] * 4 + [429]


async def test_a_large_answer_is_passed_on_and_counts() -> None:
    async with world(limits=DoorLimits(new_repositories=Rate(per_second=0.001, burst=1))) as w:
        for _ in range(500):
            w.child.create("/data/large", note(X))
        answer = await w.send(True, [element("/data/large")])
        assert (answer.status_code, len(answer.content) > KEPT_BYTES) == (200, True)
        assert (await w.send(True, [element("/data/other")])).status_code == 429


async def test_requests_that_do_not_reach_the_server_do_not_count() -> None:
    """The door is open while the agent still starts the server."""
    async with world(limits=DoorLimits(new_repositories=Rate(per_second=0.001, burst=4))) as w:
        for number in range(4):
            w.child.create(f"/data/{number}", note(X))
        polls = [element(f"/data/{number}") for number in range(4)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ServerConnections, "send_request", unreachable)
            assert [(await w.send(True, polls)).status_code for _ in range(3)] == [503, 503, 503]
        assert (await w.send(True, polls)).status_code == 200


async def unreachable(*_: object, **__: object) -> None:
    raise NodeUnreachableError("cannot connect")


@pytest.mark.parametrize("path", ["/data/1", "/sys/sessions"])
async def test_an_answer_that_is_compressed_although_it_must_not_be_is_not_passed_on(path: str) -> None:
    """The door could not search the compressed answer for private keys."""
    async with world() as w:
        w.child.create("/data/1", note(X))
        w.child.compresses = True
        for _ in range(2):  # new to the door, and known to it
            assert (await w.send(True, [element(path)])).status_code == 502
        assert w.stopped(DoorRule.PRIVATE_KEY) == 2


async def test_a_push_counts_for_its_new_repository_although_the_server_has_commits_in_it_then() -> None:
    async with world(limits=DoorLimits(new_repositories=Rate(per_second=0.001, burst=4))) as w:
        statuses = []
        for number in range(5):
            path = f"/data/{number}"
            statuses.append((await w.send(True, [element(path, [note(X)]), element(path)])).status_code)
        assert statuses == [200] * 4 + [429]


async def test_a_forged_request_of_a_server_gives_nothing_back() -> None:
    async with world(limits=DoorLimits(new_repositories=FEW)) as w:
        forged = envelope(signed_header(Y), i=A.id)
        statuses = []
        for number in range(5):
            statuses.append((await w.send(True, [element(f"/data/{number}")])).status_code)
            assert (await w.send(True, [element(f"/data/f{number}")], forged)).status_code == 403
        assert statuses == [200] * 3 + [429] * 2


async def test_servers_request_any_number_of_new_repositories() -> None:
    async with world(limits=DoorLimits(new_repositories=FEW)) as w:
        for number in range(10):
            assert (await w.send(True, [element(f"/data/{number}")], by=A)).status_code == 200
            commit = note(A)
            assert (await w.push(True, f"/data/pushed{number}", commit, by=A)).status_code == 200
            assert commit.id in w.stored(f"/data/pushed{number}")
        forged = envelope(signed_header(Y), i=A.id)
        for number in range(10):
            assert (await w.send(True, [element(f"/data/f{number}", [note(A)])], forged)).status_code == 403
            assert (await w.send(True, [element(f"/data/f{number}")], forged)).status_code == 403
        assert not any(path.startswith("/data/f") for path in w.child.repositories)


async def test_forged_pushes_create_no_repositories() -> None:
    async with world(limits=DoorLimits(new_repositories=Rate(per_second=0.001, burst=4))) as w:
        forged = envelope(signed_header(Y), i=X.id)
        for number in range(20):
            assert (await w.send(True, [element(f"/data/f{number}", [note(X)])], forged)).status_code == 403
        assert not w.child.repositories.keys() - {"/sys/sessions"}
        assert (await w.push(True, "/data/0", note(X))).status_code == 200


async def test_pushes_that_the_server_rejects_count_if_they_create_repositories() -> None:
    async with world(limits=DoorLimits(new_repositories=Rate(per_second=0.001, burst=4))) as w:
        del w.child.sessions[X.id]
        statuses = [(await w.push(True, f"/data/{number}", note(X))).status_code for number in range(8)]
        assert statuses == [403] * 4 + [429] * 4
        assert len(w.child.repositories.keys() - {"/sys/sessions"}) == 4


async def test_there_is_always_room_for_one_more_repository_and_no_id_is_forgotten_for_it() -> None:
    async with world(limits=DoorLimits(repositories=3)) as w:
        first = note(X)
        assert (await w.push(True, "/data/0", first)).status_code == 200
        for number in range(1, 6):
            assert (await w.push(True, f"/data/{number}", note(X))).status_code == 200
        assert list(w.door._proxy._repositories) == ["/data/3", "/data/4", "/data/5"]
        # A push whose commits the server has not shown yet keeps its index.
        assert {"/data/4", "/data/5"} <= set(w.door._indexes[ORG]._indexes)
        await w.push(True, "/data/1", note(Y, "k", commit_id=first.id))
        assert first.id not in w.stored("/data/1"), "an id counts in all repositories"
        assert first.id in w.stored("/data/0")


async def test_the_indexes_of_repositories_are_not_more_than_so_many() -> None:
    async with world(limits=DoorLimits(repositories=3)) as w:
        for number in range(8):
            assert (await w.push(True, f"/data/{number}", note(X))).status_code == 200
            await w.door._indexes[ORG]._indexes[f"/data/{number}"].refresh()
        assert list(w.door._indexes[ORG]._indexes) == ["/data/5", "/data/6", "/data/7"]


NEW = {"publicKey": owned("new").session.public_key.to_jwk()}


async def test_no_caller_uses_up_the_share_of_another_session() -> None:
    async with world(limits=DoorLimits(session_requests=FEW)) as w:
        forged = envelope(signed_header(Y), i=X.id)
        for _ in range(10):
            assert (await w.send(True, [], forged)).status_code == 403
        assert (await w.send(True, [])).status_code == 200


async def test_addresses_are_counted_apart_where_a_trusted_proxy_names_them() -> None:
    async with world(limits=DoorLimits(requests=FEW), forwarded_by=("127.0.0.0/8",)) as w:
        for caller in ("192.0.2.1", "192.0.2.2"):
            answers = [
                await w.http.get(w.door.url + "/healthy", headers={"x-forwarded-for": f"spoofed, {caller}"})
                for _ in range(4)
            ]
            assert [each.status_code for each in answers] == [200, 200, 200, 429]
    async with world(limits=DoorLimits(requests=FEW)) as w:
        answers = [
            await w.http.get(w.door.url + "/healthy", headers={"x-forwarded-for": f"192.0.2.{n}"}) for n in range(4)
        ]
        assert answers[-1].status_code == 429, "a header that any client can write"


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
async def test_a_body_that_is_too_large_is_413(is_chunked: bool) -> None:
    async with world(limits=DoorLimits(body_bytes=100_000)) as w:

        async def parts() -> Any:
            for _ in range(20):
                yield b" " * 10_000

        for path in ("/batch-sync", "/nothing"):
            content: Any = parts() if is_chunked else b" " * 200_000
            response = await w.http.post(w.door.url + path, content=content, headers={"x-goat-sig": signed_header(X)})
            assert response.status_code == 413
        assert w.stopped(DoorRule.TOO_LARGE) == 2


async def test_bodies_that_do_not_fit_into_memory_together_wait() -> None:
    async with world(limits=DoorLimits(buffered_bytes=50_000)) as w:
        response = await w.send(True, b" " * 60_000)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert (await w.send(True, [])).status_code == 200, "the memory came back"


async def test_a_compressed_body_is_not_taken() -> None:
    async with world() as w:
        for path in ("/batch-sync", "/auth/session", "/auth/send-login-email"):
            response = await w.send(True, b"\x1f\x8b", path=path, headers={"content-encoding": "gzip"})
            assert response.status_code == 415
        assert not w.others()
