"""What a server remembers of its clients' polls never withholds a commit from a client.

Clients lose commits, write commits that the server rejects, start anew with an empty filter, and share a session. Each
poll is compared with the plain rule, which looks up all commits of the server in the client's filter.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goatherd.node.engine import EngineStep, drive_steps
from goatherd.node.poll_memory import CERTAIN, Look, PollMemory
from goatherd.wire.bloom import BloomFilter, seed_count
from goatherd.wire.messages import filter_parameters
from tests.unit.goats import NOW, Node, commit_by, element, introduction, owned, root, signed_header

SLICE = 8
A, X = root("root-a"), owned("anon-x")


@dataclass(frozen=True)
class Held:
    id: str


@dataclass
class Client:
    session: str
    ids: set[str] = field(default_factory=set)

    def bloom(self, dice: random.Random, theirs: int) -> BloomFilter:
        size, fpr = filter_parameters(len(self.ids), theirs, 3)
        made = BloomFilter.for_size(size, fpr, [dice.getrandbits(50) for _ in range(seed_count(size, fpr))])
        made.update(sorted(self.ids))
        return made


class Server:
    """The commits of one repository, and what the server remembers of its clients."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.commits: list[Held] = []
        self.memory = PollMemory(slice_size=SLICE)
        self.lookups = self.whole = self.number = 0

    def new_id(self) -> str:
        self.number += 1
        return f"{self.dice.getrandbits(64):016x}{self.number:08d}"

    def write(self, count: int) -> list[str]:
        ids = [self.new_id() for _ in range(count)]
        self.commits += [Held(one) for one in ids]
        return ids

    def poll(self, client: Client, *, is_empty: bool = False, is_lost: bool = False) -> Look:
        """Answer a poll; if `is_lost`, the answer does not reach the client."""
        held = client.bloom(self.dice, len(self.commits))
        if is_empty:
            held.bits[:] = bytes(len(held.bits))
        asked = client.session, self.commits, held, len(client.ids)
        look = self.memory.recall(*asked, len(self.commits) // 8)
        if look is None:
            look = self.memory.look_at_all(*asked)
            self.whole += 1
        self.memory.store(client.session, look)
        self.lookups += look.lookups
        plain = held.find_missing([one.id for one in self.commits])
        assert set(look.missing) <= set(plain), "it sends nothing that the filter contains"
        if not is_lost:
            client.ids |= {self.commits[position].id for position in look.missing}
        return look

    def lacking(self, client: Client) -> set[str]:
        return {one.id for one in self.commits} - client.ids

    def rounds_until_complete(self, client: Client) -> int:
        """Poll until the client holds everything; return how many polls that took."""
        for polls in range(1000):
            if not self.lacking(client):
                return polls
            self.poll(client)
        raise AssertionError(f"the client still lacks {len(self.lacking(client))} commits")


def settled(seed: int, count: int, session: str = "one") -> tuple[Server, Client]:
    """Return a server with some commits, and a client that holds them and that the server remembers."""
    server, client = Server(seed), Client(session)
    server.write(count)
    for _ in range(12):
        server.poll(client)
    assert not server.lacking(client)
    return server, client


@pytest.mark.slow
def test_an_idle_client_costs_the_rotating_part_only() -> None:
    server, client = settled(1, 1000)
    server.lookups = 0
    for _ in range(100):
        assert not server.poll(client).missing
    assert server.lookups <= 100 * SLICE


def test_the_first_polls_of_a_session_look_up_the_newest_commits_and_a_sample() -> None:
    server = Server(12)
    written = server.write(5000)
    complete, behind = Client("complete", set(written)), Client("behind", set(written[:-10]))
    for client in (complete, behind):
        for _ in range(5):
            server.poll(client)
        assert not server.lacking(client)
    assert server.whole == 0
    assert server.lookups < 2 * 5 * (5000 // 8 + SLICE + 5000 // 256)


@pytest.mark.parametrize("seed", range(5))
def test_the_first_poll_of_a_session_that_lacks_an_old_commit_looks_up_all(seed: int) -> None:
    server = Server(seed)
    client = Client("one", set(server.write(2000)))
    client.ids -= {one.id for one in (*server.commits[500:503], *server.commits[-3:])}
    server.poll(client)
    assert server.whole == 1
    assert server.rounds_until_complete(client) <= 2


def test_a_session_that_begins_with_as_many_other_commits_as_it_lacks_is_noticed_by_the_rotating_part() -> None:
    server = Server(13)
    client = Client("one", set(server.write(1000)))
    client.ids -= {one.id for one in server.commits[100:103]}
    client.ids |= {server.new_id() for _ in range(3)}
    assert server.rounds_until_complete(client) <= 1000 // SLICE + 2


def test_a_session_that_begins_with_many_other_commits_is_noticed_by_the_sample() -> None:
    server = Server(15)
    client = Client("one", set(server.write(2000)))
    client.ids -= {one.id for one in server.commits[100:1100]}
    client.ids |= {server.new_id() for _ in range(1000)}
    assert len(server.poll(client).missing) > 900


def test_a_session_that_begins_with_an_empty_filter_gets_everything() -> None:
    server = Server(14)
    client = Client("one", set(server.write(1000)))
    assert len(server.poll(client, is_empty=True).missing) == 1000


def test_a_new_commit_is_sent_at_once_and_looked_up_until_enough_filters_contain_it() -> None:
    server, client = settled(2, 1000)
    server.lookups, server.whole = 0, 0
    for _ in range(50):
        server.write(1)
        server.poll(client)
    assert not server.lacking(client)
    assert server.whole <= 3, "a filter may contain a new commit by chance"
    assert server.lookups < 50 * 40 + server.whole * 1000


@pytest.mark.parametrize("seed", range(10))
def test_a_client_that_lost_commits_gets_them_at_its_next_poll(seed: int) -> None:
    server, client = settled(seed, 1000)
    lost = set(server.dice.sample([one.id for one in server.commits[500:]], 5))
    client.ids -= lost
    missing = {server.commits[position].id for position in server.poll(client).missing}
    assert len(missing) >= 4, "a filter contains one by chance once in a hundred times"
    assert server.rounds_until_complete(client) <= 2


def test_a_client_that_lost_commits_and_wrote_others_gets_them_at_its_next_poll() -> None:
    server, client = settled(10, 1000)
    client.ids -= {one.id for one in server.commits[500:505]}
    client.ids |= set(server.write(5))
    server.poll(client)
    assert server.rounds_until_complete(client) <= 2


def test_a_client_that_others_share_a_session_with_gets_what_it_lacks_at_its_next_poll() -> None:
    server, client = settled(11, 1000)
    other = Client("one", client.ids - {one.id for one in server.commits[500:505]})
    for _ in range(3):
        server.poll(client)
        server.poll(other)
    assert not server.lacking(other)


def test_a_client_that_starts_anew_and_sends_an_empty_filter_gets_everything() -> None:
    server, client = settled(4, 1000)
    assert len(server.poll(client, is_empty=True).missing) == 1000


def test_a_client_that_lost_as_much_as_it_gained_elsewhere_is_noticed_by_the_rotating_part() -> None:
    server, client = settled(5, 1000)
    client.ids -= set(server.dice.sample(sorted(client.ids), 3))
    client.ids |= {server.new_id() for _ in range(3)}
    assert server.rounds_until_complete(client) <= 1000 // SLICE + 2


@pytest.mark.slow
def test_a_commit_that_a_filter_contains_by_chance_is_looked_up_again() -> None:
    server, client = settled(6, 300)
    for _ in range(300):
        (new,) = server.write(1)
        server.poll(client)
        assert server.rounds_until_complete(client) <= 3, new
    assert server.whole < 60


@pytest.mark.slow
def test_a_commit_that_a_client_never_takes_is_sent_each_time_and_costs_nothing_else() -> None:
    server, client = settled(7, 1000)
    (unreadable,) = server.write(1)
    server.poll(client, is_lost=True)
    server.lookups = sent = 0
    for _ in range(100):
        sent += unreadable in {server.commits[position].id for position in server.poll(client, is_lost=True).missing}
    assert sent >= 95
    assert server.lookups < 100 * (SLICE + 2) + 8 * 1001


def test_the_same_filter_twice_counts_once() -> None:
    server = Server(8)
    server.write(300)
    client = Client("one", {one.id for one in server.commits})
    held = client.bloom(server.dice, 300)
    asked = "one", server.commits, held, 300
    for _ in range(10):
        server.memory.store("one", server.memory.look_at_all(*asked))
    assert server.memory.recall("one", server.commits, client.bloom(server.dice, 300), 300, 100) is None


def test_what_is_remembered_is_bounded() -> None:
    memory = PollMemory(max_sessions=10)
    server = Server(9)
    server.write(300)
    everything = {one.id for one in server.commits}
    for number in range(100):
        client = Client(f"session-{number}", everything | {server.new_id() for _ in range(number % 20)})
        for _ in range(3):
            held = client.bloom(server.dice, 300)
            look = memory.look_at_all(client.session, server.commits, held, len(client.ids))
            memory.store(client.session, look)
            assert len(memory) <= 20
    client = Client("session-1", everything | {server.new_id()})
    assert memory.recall(client.session, server.commits, client.bloom(server.dice, 300), 301, 300) is None


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["write", "push", "reject", "poll", "poll", "poll", "lose", "swap", "restart", "lost", "gone", "new"]
        ),
        st.integers(0, 3),
        st.integers(1, 40),
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(ACTIONS, st.integers(0, 2**32), st.integers(0, 300))
def test_no_client_stays_without_a_commit(actions: list[tuple[str, int, int]], seed: int, count: int) -> None:
    """Two tabs share a session; two clients have one each."""
    server = Server(seed)
    server.write(count)
    clients = [Client("tabs"), Client("tabs"), Client("alone"), Client("other")]
    for what, who, number in actions:
        client = clients[who]
        if what == "write":
            server.write(number)
        elif what == "push":
            client.ids |= set(server.write(number))
            server.poll(client)
        elif what == "reject":
            client.ids |= {server.new_id() for _ in range(number)}
        elif what == "lose":
            client.ids -= set(server.dice.sample(sorted(client.ids), min(number, len(client.ids))))
        elif what == "swap":
            number = min(number, len(client.ids))
            client.ids -= set(server.dice.sample(sorted(client.ids), number))
            client.ids |= {server.new_id() for _ in range(number)}
        elif what == "restart":
            server.poll(client, is_empty=True)
        elif what == "gone":
            client.ids.clear()
        elif what == "new":
            client.session = server.new_id()
        else:
            server.poll(client, is_lost=what == "lost")
    limit = len(server.commits) // SLICE + 12
    for client in clients:
        assert server.rounds_until_complete(client) <= limit


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 400), st.lists(st.integers(0, 30), min_size=1, max_size=20))
def test_a_client_that_only_writes_and_polls_gets_what_the_plain_rule_sends(
    seed: int, count: int, writes: list[int]
) -> None:
    server, client = Server(seed), Client("one")
    server.write(count)
    for number in writes:
        server.write(number)
        if number % 3 == 0:
            client.ids |= set(server.write(number))
        held = client.bloom(server.dice, len(server.commits))
        asked = "one", server.commits, held, len(client.ids)
        look = server.memory.recall(*asked, len(server.commits)) or server.memory.look_at_all(*asked)
        server.memory.store("one", look)
        plain = held.find_missing([one.id for one in server.commits])
        unsure = set(plain) - set(look.missing)
        assert not unsure, "only a commit that filters have contained with a chance of less than one in a million"
        client.ids |= {server.commits[position].id for position in look.missing}
    assert CERTAIN <= 1e-6


@pytest.mark.parametrize("count", [150, 600])
def test_a_server_sends_what_a_client_has_lost_and_answers_with_every_commit_in_its_filter(count: int) -> None:
    records = [commit_by(A, f"k{number}", {"n": 1}).to_json() for number in range(count)]
    node = Node(A, A, logs={"/data/test": records})
    node.pool.add_session_commit(introduction(X, A))
    dice = random.Random(count)
    client = Client(X.id, {record["id"] for record in records})

    def poll(at: int) -> set[str]:
        held = client.bloom(dice, count)
        now = NOW + 1500 * at
        body = [element("/data/test", held=held, size=len(client.ids))]
        ((answer),) = json.loads(node.send(body, signed_header(X, now), now_ms=now).body)
        shown = BloomFilter.from_json(answer["res"]["f"]["__v"])
        assert not shown.find_missing(node.repository("/data/test").ids)
        assert answer["res"]["s"] == len(node.repository("/data/test"))
        return {each["id"] for each in answer["res"]["c"]}

    assert [poll(at) for at in range(20)] == [set()] * 20
    new = commit_by(X, "new", {"n": 2})
    node.sync(X, commits=[new])
    assert any(new.id in poll(20 + at) for at in range(10))
    client.ids.add(new.id)
    assert [poll(30 + at) for at in range(10)] == [set()] * 10
    lost = {records[1]["id"], records[count // 2]["id"]}
    client.ids -= lost
    assert set().union(*[poll(40 + at) for at in range(10)]) == lost


@pytest.mark.parametrize(("count", "text", "threads"), [(1, "x", 0), (8, "x", 0), (300, "x", 1), (1, "x" * 400_000, 1)])
async def test_a_client_that_lacks_a_few_small_commits_is_answered_without_a_thread(
    count: int, text: str, threads: int
) -> None:
    records = [commit_by(A, "k", {"n": 1}).to_json()]
    records += [{**records[0], "id": f"commit-{number:018d}", "k": f"k{number}"} for number in range(599)]
    node = Node(A, A, logs={"/data/test": records})
    node.pool.add_session_commit(introduction(X, A))
    dice = random.Random(count)
    client = Client(X.id, {record["id"] for record in records})
    taken: list[EngineStep] = []

    async def run(step: EngineStep) -> Any:
        taken.append(step)
        return step.run()

    async def poll() -> set[str]:
        taken.clear()
        # A filter that contains no other commit by chance, which would be looked up in a thread.
        rate = 1e-9
        seeds = [dice.randrange(2**31) for _ in range(seed_count(len(client.ids), rate))]
        held = BloomFilter.for_size(len(client.ids), rate, seeds)
        held.update(client.ids)
        body = json.dumps([element("/data/test", held=held, size=len(client.ids))], separators=(",", ":")).encode()
        answer = await drive_steps(node.engine.batch_sync(signed_header(X), body, NOW), run)
        return {each["id"] for each in json.loads(answer.body)[0]["res"]["c"]}

    for _ in range(20):
        assert await poll() == set()
    new = [node.create_item("/data/test", f"new{n}", "note/1", {"text": text}, NOW) for n in range(count)]
    found = await poll()
    assert len(taken) == threads
    assert found == {commit.id for commit in new}


def test_a_root_can_request_a_commit_again_that_it_holds_and_counts() -> None:
    records = [commit_by(A, f"k{number}", {"n": 1}).to_json() for number in range(300)]
    node = Node(A, A, logs={"/data/test": records})
    client = Client(A.id, {record["id"] for record in records})
    dice = random.Random(1)
    for _ in range(10):
        assert not node.sync(A, held=client.bloom(dice, 300), size=300)["c"]
    client.ids.remove(records[200]["id"])
    asked = [node.sync(A, held=client.bloom(dice, 300), size=300)["c"] for _ in range(3)]
    assert [each["id"] for each in max(asked, key=len)] == [records[200]["id"]]
