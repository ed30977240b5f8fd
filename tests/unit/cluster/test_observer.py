"""What a rotation can observe of a server, and that "unknown" is never taken for yes or no."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.cluster.observer import Observer, Question
from goatherd.cluster.process_mark import MarkState, find_mark, leave_mark
from goatherd.cluster.server_answers import ServerIdentity
from goatherd.cluster.session_queries import ExpectedCommit, filter_all_but
from goatherd.crypto import PublicKey
from goatherd.errors import DecodeError, InvalidAnswerError, NodeRefusedError, NodeUnreachableError
from goatherd.identity.remote_key import RemoteKey
from goatherd.identity.session import OwnedSession
from goatherd.identity.session_commits import introduction_id
from goatherd.rotation.cross_signing import make_session_commit
from goatherd.rotation.machine import NodeView
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.paths import SESSIONS_PATH
from tests.deadlines import ANSWER, HANG
from tests.fakes.herd import FakeClock, Herd, HerdNode
from tests.fakes.upstream_child import UpstreamChild
from tests.unit.rotation.conftest import MakeHerd


def observer_of(herd: Herd, *nodes: Any) -> Observer:
    return Observer(nodes or herd.nodes, clock=herd.clock, timeout=timedelta(seconds=HANG))


def new_root(herd: Herd) -> OwnedSession:
    return OwnedSession.generate(session_id="root-b", owner="root", now_ms=herd.clock.now_ms())


def question(herd: Herd, b: OwnedSession, **changes: Any) -> Question:
    asker = herd.nodes[0].document.current
    sought = ExpectedCommit(commit_id=introduction_id(b.id), session=b.session, signers=(asker.session,))
    return replace(Question(asker=asker, next_root=b, introductions=(sought,)), **changes)


async def introduce(herd: Herd, b: OwnedSession, node: HerdNode, **changes: Any) -> None:
    a = herd.nodes[0].document.current
    options = {"signer": a, "commit_id": introduction_id(b.id), "ts": herd.clock.now_ms(), "org": "localhost"}
    await node.push(SESSIONS_PATH, [make_session_commit(b.session, **{**options, **changes})], a)


async def test_a_node_trusts_b_when_it_answers_b_and_holds_what_it_sends_back(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=2)
    b = new_root(herd)
    await introduce(herd, b, herd.nodes[1])
    without, with_b = await observer_of(herd).observe(question(herd, b))
    assert (without.reachable, without.trusts_next, without.holds_introduction) == (True, False, False)
    assert (with_b.reachable, with_b.trusts_next, with_b.holds_introduction) == (True, True, True)
    assert with_b.signs_with == "root-a"
    assert with_b.problem is None


async def test_another_commit_under_the_same_id_is_not_the_introduction(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=1)
    b, other = new_root(herd), OwnedSession.generate(session_id="other", owner=None, now_ms=herd.clock.now_ms())
    await introduce(herd, other, herd.nodes[0], commit_id=introduction_id(b.id))
    assert herd.nodes[0].holds(SESSIONS_PATH, introduction_id(b.id))
    (view,) = await observer_of(herd).observe(question(herd, b))
    assert view.holds_introduction is False


async def test_a_server_that_holds_something_else_under_the_id_and_the_names_does_not_hold_it(
    make_herd: MakeHerd,
) -> None:
    """The id, the key and the claimed signer are correct, but no client can verify the commit."""
    herd = await make_herd(nodes=1)
    b, a = new_root(herd), herd.nodes[0].document.current
    thief = OwnedSession.generate(session_id=a.id, owner="root", now_ms=herd.clock.now_ms())
    impostor = OwnedSession.generate(session_id=b.id, owner="root", now_ms=herd.clock.now_ms())
    options: dict[str, Any] = {"commit_id": introduction_id(b.id), "ts": herd.clock.now_ms(), "org": "localhost"}
    genuine = make_session_commit(b.session, signer=a, **options)
    others = {
        "signed by another key": make_session_commit(b.session, signer=thief, **options),
        "of another key": make_session_commit(impostor.session, signer=a, **options),
        "of no root": make_session_commit(replace(b.session, owner=None), signer=a, **options),
        "for a shorter time": make_session_commit(
            replace(b.session, expiration_ms=herd.clock.now_ms()), signer=a, **options
        ),
        "changed since": {**genuine, "ts": genuine["ts"] + 1},
        "no longer whole": {name: value for name, value in genuine.items() if name != "c"},
        "of another organization": make_session_commit(b.session, signer=a, **{**options, "org": "other"}),
    }

    class Holding:
        base_url = herd.nodes[0].base_url
        commit: Any = genuine

        async def batch_sync(self, requests: Any, *_: Any) -> list[dict[str, Any]]:
            return [{"c": [self.commit], "s": 1} for _ in requests]

        def __getattr__(self, name: str) -> Any:
            return getattr(herd.nodes[0], name)

    node = Holding()
    observer = observer_of(herd, node)
    for round_trip in range(2):
        for name, commit in others.items():
            node.commit = commit
            (view,) = await observer.observe(question(herd, b))
            assert view.holds_introduction is False, f"{name}, {round_trip}"
        node.commit = genuine
        for _ in range(2):
            (view,) = await observer.observe(question(herd, b))
            assert view.holds_introduction is True


@pytest.mark.parametrize(
    ("error", "reachable"),
    [(NodeUnreachableError("gone"), False), (NodeRefusedError("broken", status=500), True)],
    ids=["unreachable", "status 500"],
)
async def test_no_answer_is_neither_yes_nor_no(make_herd: MakeHerd, error: Exception, reachable: bool) -> None:
    herd = await make_herd(nodes=1)

    class Failing:
        base_url = "http://failing"

        def clock_ahead_ms(self, now_ms: int) -> int | None:
            return None

        def __getattr__(self, name: str) -> Any:
            async def fail(*args: Any, **options: Any) -> Any:
                raise error

            return fail

    (view,) = await observer_of(herd, Failing()).observe(question(herd, new_root(herd)))
    assert view == NodeView(url="http://failing", reachable=reachable, problem=str(error))


def test_the_filter_lacks_what_is_asked_for_and_almost_nothing_else() -> None:
    ids = [f"commit-{number}" for number in range(50_000)]
    lacking = BloomFilter.from_json(filter_all_but(ids[:2])["__v"])
    returned = [commit_id for commit_id in ids if commit_id not in lacking]
    assert set(ids[:2]) <= set(returned)
    assert len(returned) < 100


@pytest.mark.parametrize("sessions", [2, 1005])
async def test_an_unmodified_server_shows_its_signer_by_the_session_that_it_makes(
    make_herd: MakeHerd, sessions: int
) -> None:
    herd = await make_herd(nodes=1, clients=0, unmodified=[0])
    node = herd.nodes[0]
    commit = None
    for _ in range(sessions):  # the log grows; what is in it does not matter here
        await node.create_session() if commit is None else None
        commit = commit or node.commits(SESSIONS_PATH)[0]
        node._logs[SESSIONS_PATH][herd.new_id()] = replace(commit, id=herd.new_id())
    observer = observer_of(herd)
    seen = set()
    for _ in range(3):  # at this size the server's own filter may hide the commit once in a hundred times
        (view,) = await observer.observe(Question(asker=node.document.current, signer=True))
        seen.add(view.signs_with)
        herd.clock.turn(timedelta(seconds=6))
    assert "root-a" in seen
    assert seen <= {"root-a", None}
    assert node.asked["identity"] == 1


async def test_who_signs_is_not_asked_of_an_unmodified_server_unless_it_matters_nor_often(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd(nodes=1, clients=0, unmodified=[0])
    node, observer = herd.nodes[0], observer_of(herd)
    (view,) = await observer.observe(Question(asker=node.document.current))
    assert view.signs_with is None
    assert node.asked["create_session"] == 0
    for _ in range(10):
        (view,) = await observer.observe(Question(asker=node.document.current, signer=True))
        assert view.signs_with == "root-a"
    assert node.asked["create_session"] == 1


class Later(SystemClock):
    """A clock that jumps ahead when a test sets it."""

    later = timedelta(0)

    def monotonic(self) -> float:
        return super().monotonic() + self.later.total_seconds()

    def now_ms(self) -> int:
        return super().now_ms() + self.later // timedelta(milliseconds=1)


async def test_a_server_that_is_no_longer_listed_is_forgotten(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=3, clients=0, unmodified=[2])
    listed, gone = list(herd.nodes), herd.nodes[2].base_url

    async def find() -> list[HerdNode]:
        return listed

    observer = Observer(find, clock=herd.clock, timeout=timedelta(seconds=HANG))
    await observer.read_identities()
    assert observer.hint is not None
    assert gone in observer.hint
    del listed[2]
    await observer.read_identities()
    assert observer.hint is None
    observer.begin_run()
    assert gone not in observer._memory


async def test_an_unmodified_server_shows_by_its_session_commits_whether_it_has_restarted() -> None:
    clock = Later()
    root = OwnedSession.generate(session_id="root-a", owner="root", now_ms=clock.now_ms())
    asked = Question(asker=root, next_root=root, process=True)
    async with UpstreamChild(root, clock=clock) as child, NodeClient(child.url, clock=clock, timeout=ANSWER) as client:
        observer = Observer([client], clock=clock, timeout=timedelta(seconds=HANG))
        for _ in range(2):
            await observer.observe(asked)
        assert observer.count_restarts() == {child.url: 0}
        assert len(child.answers) == 1, "which process serves is asked once"
        child.restart()
        clock.later = timedelta(minutes=10)
        await observer.observe(replace(asked, signer=True))
        assert observer.count_restarts() == {child.url: 1}
        observer.begin_run()
        assert observer.count_restarts() == {}


async def test_a_server_without_a_process_id_counts_as_restarted_when_the_new_root_signs() -> None:
    """Until the restart the check creates no session; after it, the check creates one."""
    clock = Later()
    root, b = (
        OwnedSession.generate(session_id=name, owner="root", now_ms=clock.now_ms()) for name in ("root-a", "root-b")
    )
    early = Question(asker=root, next_root=b, is_next_new=True, process=True)
    late = Question(asker=b, next_root=b, process=True, signer=True)
    async with UpstreamChild(root, clock=clock) as child, NodeClient(child.url, timeout=ANSWER) as client:
        child.introduce(b.session)
        observer = Observer([client], clock=clock, timeout=timedelta(seconds=HANG))
        for asked in (early, early, late, late):
            (view,) = await observer.observe(asked)
            assert view.signs_with is None
            clock.later += timedelta(minutes=10)
        assert observer.count_restarts() == {child.url: 0}
        assert not child.answers
        child.root = b
        child.restart()
        for _ in range(3):
            (view,) = await observer.observe(late)
            assert view.signs_with == "root-b"
            clock.later += timedelta(minutes=10)
        assert observer.count_restarts() == {child.url: 1}
        assert len(child.answers) == 1
        child.restart()
        await observer.observe(late)
        assert observer.count_restarts() == {child.url: 2}
        assert len(child.answers) == 2


async def test_a_server_that_has_lost_its_mark_and_signs_as_before_is_not_taken_for_restarted(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd(nodes=1, clients=0, unmodified=[0])
    node, observer, b = herd.nodes[0], observer_of(herd), new_root(herd)
    await observer.observe(question(herd, b, process=True, is_next_new=True))
    node._accepted.clear()  # a thousand other requests
    await introduce(herd, b, node)
    for _ in range(40):
        herd.clock.turn(timedelta(seconds=10))
        (view,) = await observer.observe(question(herd, b, asker=b, process=True, signer=True))
        node._accepted.clear()
    assert view.signs_with == "root-a"
    assert observer.count_restarts() == {node.base_url: 0}
    assert node.asked["create_session"] <= 9, "ever more seldom"


async def test_a_server_that_does_not_show_its_process_is_asked_three_times_in_a_run_and_is_not_known(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd(nodes=1, clients=0, unmodified=[0])
    node, observer = herd.nodes[0], observer_of(herd)
    node.instance = "x" * 65  # no id of a process: it is not kept
    for _ in range(5):
        await observer.observe(question(herd, new_root(herd), process=True))
    assert node.asked["create_session"] == 3
    assert observer.count_restarts() == {node.base_url: None}


async def test_who_signs_is_asked_once_for_each_start_of_a_server(make_herd: MakeHerd) -> None:
    """GoatDB keeps every session permanently, and changes the root that it signs with only at a restart."""
    herd = await make_herd(nodes=1, clients=0, unmodified=[0])
    node, observer = herd.nodes[0], observer_of(herd)
    asked = Question(asker=node.document.current, signer=True, answers=True)
    for _ in range(150):  # five minutes
        await observer.observe(asked)
        herd.clock.turn(timedelta(seconds=2))
    assert node.asked["create_session"] == 1
    node.faults.cut_off = True
    await observer.observe(asked)
    node.faults.cut_off = False
    (view,) = await observer.observe(asked)
    assert (view.signs_with, node.asked["create_session"]) == ("root-a", 1), "it was unreachable, not restarted"
    node.restart()
    herd.clock.turn(timedelta(minutes=5))
    (view,) = await observer.observe(asked)
    assert (view.signs_with, node.asked["create_session"]) == ("root-a", 2)


@pytest.mark.parametrize("is_checking_times", [True, False])
async def test_a_server_that_keeps_no_mark_is_asked_ever_more_seldom(
    make_herd: MakeHerd, is_checking_times: bool
) -> None:
    """A busy server forgets marks; a proxy may accept any signature, or only recent ones."""
    herd = await make_herd(nodes=1, clients=0, unmodified=[0])
    node, observer = herd.nodes[0], observer_of(herd)

    async def accepts(signature: str) -> bool:
        node._accepted.clear()
        return not is_checking_times or await HerdNode.accepts_signature(node, signature)

    node.accepts_signature = accepts  # type: ignore[method-assign]
    asked = Question(asker=new_root(herd), signer=True, answers=True)
    for _ in range(150):  # five minutes
        await observer.observe(asked)
        herd.clock.turn(timedelta(seconds=2))
    assert 1 < node.asked["create_session"] <= 8
    before = node.asked["create_session"]
    node.faults.cut_off = True
    await observer.observe(asked)
    node.faults.cut_off = False
    (view,) = await observer.observe(asked)
    assert (view.signs_with, node.asked["create_session"]) == ("root-a", before + 1), "after it was unreachable"


async def test_no_mark_is_made_with_a_key_in_an_hsm_or_a_kms(make_herd: MakeHerd) -> None:
    def refuse(_key: PublicKey, _data: bytes) -> bytes:
        raise AssertionError("no signature is asked for")

    herd = await make_herd(nodes=1, clients=0, unmodified=[0])
    root, b = herd.nodes[0].document.current, new_root(herd)
    key = RemoteKey(root.session.public_key, refuse)
    remote = OwnedSession(session=root.session, signer=key)
    assert await leave_mark(herd.nodes[0], remote, herd.clock.now_ms()) is None
    asked = question(herd, b, asker=remote, is_next_new=True, process=True)
    observer = observer_of(herd)
    for _ in range(2):
        (view,) = await observer.observe(asked)
        assert view.reachable


async def test_a_server_whose_clock_is_off_takes_a_mark_all_the_same(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=1, clients=0, unmodified=[0])
    node, root = herd.nodes[0], herd.nodes[0].document.current
    mark = await leave_mark(node, root, herd.clock.now_ms() - 5_000)
    assert mark is not None
    herd.clock.turn(timedelta(seconds=1))
    assert await find_mark(node, mark) is MarkState.TOO_EARLY
    herd.clock.turn(timedelta(seconds=10))
    assert await find_mark(node, mark) is MarkState.FOUND
    node.restart()
    assert await find_mark(node, mark) is MarkState.LOST
    assert await leave_mark(node, root, herd.clock.now_ms() - 60_000) is None
    assert mark.signature not in repr(mark)


def read(answer: Mapping[str, Any]) -> ServerIdentity | None:
    """Read an answer as the client does."""
    try:
        return ServerIdentity.from_json(answer)
    except DecodeError as error:
        raise InvalidAnswerError(f"invalid: {error}", status=200) from None


class UnderAgent:
    """An unmodified node of a herd with an agent in front of it, which reports what a test sets."""

    def __init__(self, node: HerdNode) -> None:
        self._node = node
        self.base_url = node.base_url
        self.claim: dict[str, Any] = {}
        self.state = "serving"

    async def identity(self) -> ServerIdentity | None:
        check = {"atMs": 0, "commit": self._node.commits(SESSIONS_PATH)[0].id}
        agent = {"state": self.state, "pending": [], "leakCheck": check}
        return read({"signer": "root-a", "instance": "i1", "generation": 1, "agent": agent, **self.claim})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)


async def under_agent(herd: Herd) -> UnderAgent:
    node = herd.nodes[0]
    if not node.commits(SESSIONS_PATH):
        await node.create_session()
    node.asked.clear()
    return UnderAgent(node)


async def test_a_server_under_an_agent_shows_its_signer_without_a_session(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=1, clients=0, unmodified=[0])
    node = await under_agent(herd)
    observer = Observer([node], clock=herd.clock, timeout=timedelta(seconds=HANG), org="localhost")  # type: ignore[list-item]
    for _ in range(3):
        (view,) = await observer.observe(Question(asker=node.document.current, signer=True))
        assert (view.signs_with, view.is_unmodified, view.activity) == ("root-a", True, None)
    assert node.asked["create_session"] == 0
    assert node.asked["batch_sync"] == 1, "once for each start of the server"
    assert observer.count_restarts() == {node.base_url: 0}
    assert observer.hint is None, "it is restarted"


@pytest.mark.parametrize(
    "claim",
    [
        {"signer": "root-b"},
        {"agent": {"leakCheck": {"atMs": 0, "commit": "nothing"}}},
        {"agent": {"leakCheck": None}},
        {"agent": {"leakCheck": {"commit": 1}}},
        {"signer": None},
        {"instance": None},
    ],
)
async def test_what_an_agent_claims_and_its_server_does_not_show_is_not_known(
    make_herd: MakeHerd, claim: dict[str, Any]
) -> None:
    herd = await make_herd(nodes=1, clients=0, unmodified=[0])
    node = await under_agent(herd)
    node.claim = claim
    observer = Observer([node], clock=herd.clock, timeout=timedelta(seconds=HANG), org="localhost")  # type: ignore[list-item]
    (view,) = await observer.observe(Question(asker=node.document.current, signer=True))
    assert view.signs_with is None


async def test_a_commit_that_another_root_has_signed_in_the_name_of_the_signer_proves_nothing(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd(nodes=1, clients=0, unmodified=[0])
    node = await under_agent(herd)
    commit = node.commits(SESSIONS_PATH)[0]
    herd.nodes[0]._logs[SESSIONS_PATH][commit.id] = replace(
        commit, ts=commit.ts + 1
    )  # what was signed is something else
    observer = Observer([node], clock=herd.clock, timeout=timedelta(seconds=HANG), org="localhost")  # type: ignore[list-item]
    (view,) = await observer.observe(Question(asker=node.document.current, signer=True))
    assert view.signs_with is None


async def test_a_server_that_its_agent_restarts_is_not_in_trouble(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=1, clients=0, unmodified=[0])
    node = await under_agent(herd)
    node.state = "restarting"
    node._node.faults.cut_off = True
    observer = Observer([node], clock=herd.clock, timeout=timedelta(seconds=HANG))  # type: ignore[list-item]
    (view,) = await observer.observe(Question(asker=node.document.current, signer=True, answers=True))
    assert (view.reachable, view.problem, view.activity) == (True, None, "is being restarted by its agent")


@pytest.mark.parametrize(
    ("problem", "activity"),
    [
        (None, "waits for its turn to restart"),
        (
            "provider.access_denied",
            "cannot be restarted by its agent now: provider.access_denied (the agent's log says more)",
        ),
    ],
)
async def test_an_agent_that_cannot_restart_its_server_says_why(
    make_herd: MakeHerd, problem: str | None, activity: str
) -> None:
    """Without a reason, a rotation would wait for a restart that does not come."""
    herd = await make_herd(nodes=1, clients=0, unmodified=[0])
    node = await under_agent(herd)
    node.claim = {"agent": {"state": "serving", "pending": ["a new root"], "problem": problem}}
    observer = Observer([node], clock=herd.clock, timeout=timedelta(seconds=HANG))  # type: ignore[list-item]
    (view,) = await observer.observe(Question(asker=node.document.current))
    assert view.activity == activity


@pytest.mark.parametrize(
    ("answer", "rejects"),
    [
        ({"degraded": True, "refusal": {"code": "identity.broken_succession"}}, "identity.broken_succession"),
        ({"degraded": False, "refusal": {"code": "identity.broken_succession"}}, None),
        ({"degraded": True, "refusal": {"code": "provider.unavailable"}}, None),
        ({"degraded": True, "refusal": {"code": "identity.generation_went_back"}}, None),
        ({"degraded": True, "refusal": "text"}, None),
        ({"degraded": True}, None),
    ],
)
async def test_a_node_rejects_a_document_only_when_it_says_so_now(
    make_herd: MakeHerd, answer: Mapping[str, Any], rejects: str | None
) -> None:
    herd = await make_herd(nodes=1)
    (view,) = await observer_of(herd, Saying(answer)).observe(Question(asker=herd.nodes[0].document.current))
    assert view.rejects == rejects


class Saying:
    """A Goatherd server that reports what a test sets."""

    base_url = "http://saying"

    def __init__(self, answer: Mapping[str, Any]) -> None:
        self._answer = answer

    def clock_ahead_ms(self, now_ms: int) -> int | None:
        return None

    async def identity(self) -> ServerIdentity | None:
        return read({"signer": "root-a", **self._answer})


async def test_the_generation_of_a_settings_json_is_none_of_the_stores_and_the_hint_says_what_to_do(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd(nodes=1)
    asked = Question(asker=herd.nodes[0].document.current, signer=True)  # as a rotation asks between two steps
    for source, hint in (("file", "a settings.json, which a rotation does not change"), ("store", None)):
        answer = {"source": source, "generation": 3, "digest": "ab" * 32}
        observer = observer_of(herd, Saying(answer))
        (view,) = await observer.observe(asked)
        of_store = source == "store"
        assert (view.generation, view.digest) == ((3, "ab" * 32) if of_store else (None, None))
        assert (observer.hint is None) if hint is None else hint in (observer.hint or "")
    bare = Observer(
        [Saying({"source": "file"})],  # type: ignore[list-item]
        clock=herd.clock,
        timeout=timedelta(seconds=HANG),
        bare=[Saying.base_url],
    )
    await bare.observe(asked)
    assert bare.hint is None


async def test_a_clock_that_is_not_turned_stands_still(clock: FakeClock) -> None:
    before = clock.now_ms()
    await clock.sleep(timedelta(seconds=2))
    assert clock.now_ms() - before == 2000
    assert clock.monotonic() == pytest.approx(2)
