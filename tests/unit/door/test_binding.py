"""A request that Goatherd's tools have bound to a server counts at one door, once, with the body that was signed."""

from __future__ import annotations

import pytest

from goatherd.agent.own_address import OwnAddress
from goatherd.cluster.client import INSTANCE_HEADER, NodeClient
from goatherd.door.request_checks import DoorRule
from goatherd.identity.request_binding import MISDIRECTED, RequestBinding, RequestGuard, sign_bound_request
from goatherd.identity.session import OwnedSession, sign_data
from goatherd.ids import new_id
from tests.cluster.door_world import A, World, X, world
from tests.deadlines import ANSWER


def bound(w: World, signer: OwnedSession, body: bytes, *audience: str) -> str:
    binding = RequestBinding.for_request("POST", "/batch-sync", body, audience)
    return sign_bound_request(signer, binding, now_ms=w.clock.at_ms, nonce=new_id())


@pytest.mark.slow
async def test_a_door_takes_a_bound_request_once_and_for_its_body_only() -> None:
    async with world() as w:
        await w.trust.refresh()
        answer = await w.send(True, b"[]", bound(w, A, b"[]", "another"))
        assert answer.status_code == MISDIRECTED
        here = answer.headers[INSTANCE_HEADER]
        header = bound(w, A, b"[]", "another", here)
        assert (await w.send(True, b"[ ]", header)).status_code == 403
        assert (await w.send(True, b"[]", header)).status_code == 200
        assert (await w.send(True, b"[]", header)).status_code == 403
        assert w.stopped(DoorRule.REQUEST_SIGNATURE) == 2
        assert (await w.send(False, b"[ ]", header)).status_code == 200, "COMPAT: GoatDB itself takes all of them"


@pytest.mark.slow
async def test_a_door_remembers_no_request_that_the_root_did_not_sign() -> None:
    async with world() as w:
        await w.trust.refresh()
        here = (await w.send(True, b"[]", bound(w, A, b"[]"))).headers[INSTANCE_HEADER]
        header = bound(w, A, b"[]", here)
        assert (await w.send(True, b"[]", header[:-8] + "aaaaaaaa")).status_code == 403
        assert (await w.send(True, b"[]", header)).status_code == 200
        by_client = bound(w, X, b"[]", here)
        for _ in range(2):
            assert (await w.send(True, b"[]", by_client)).status_code == 200


async def test_tools_find_their_way_through_a_door_and_an_agents_own_address() -> None:
    async with world() as w:
        guard = RequestGuard(lambda: "agent")

        async def answer(*_: object) -> tuple[int, bytes]:
            return 404, b""

        async with OwnAddress(upstream=w.child.url, answer=answer, guard=guard, clock=w.clock) as own:
            for url in (w.door.url, own.url):
                async with NodeClient(url, clock=w.clock, timeout=ANSWER) as client:
                    assert await client.answers(A)
            stray = bound(w, A, b"[]", "another")
            refused = await w.http.post(own.url + "/batch-sync", content=b"[]", headers={"x-goat-sig": stray})
            assert (refused.status_code, refused.headers[INSTANCE_HEADER]) == (MISDIRECTED, "agent")


@pytest.mark.parametrize("member", ["aud", "method"])
async def test_a_binding_that_cannot_be_read_is_refused(member: str) -> None:
    async with world() as w:
        changed = {**RequestBinding.for_request("POST", "/batch-sync", b"[]", ["x"]).to_json(), member: 7}
        now_ms = w.clock.at_ms
        header = sign_data(A, now_ms=now_ms, embedded={"id": new_id(), "ts": now_ms, "goatherd": changed})
        assert (await w.send(True, b"[]", header)).status_code == 403
