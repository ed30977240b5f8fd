"""Which introductions of roots a client gets, and in which order, because it looks at each of them only once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from goatherd.identity.introductions_for_clients import MARGIN, RootIntroductions
from goatherd.identity.session import Session
from goatherd.identity.session_commits import claims_root, introduction_id, session_fields
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.commit import Commit, new_commit
from tests.unit.following import Client
from tests.unit.goats import NOW, Node, introduction, owned, root, verify_pending

Z, A, B, X = root("root-z"), root("root-a"), root("root-b"), root("root-x")
OLD, NEW = introduction(owned("old"), Z), introduction(owned("new"), B)
A_BY_Z, Z_BY_A, B_BY_A, A_BY_B = introduction(A, Z), introduction(Z, A), introduction(B, A), introduction(A, B)
LOG = [OLD, A_BY_Z, Z_BY_A, B_BY_A, A_BY_B, NEW]


def find_root(root_id: str) -> Session:
    return root(root_id).session


def sent(log: Sequence[Commit], held: Sequence[Commit] = (), *, born_under: set[str]) -> list[Commit]:
    missing = [commit for commit in log if commit not in held]
    return RootIntroductions(log).for_client(missing, born_under=dict.fromkeys(born_under, NOW), find_root=find_root)


def test_a_new_client_that_knows_the_last_root_only_believes_everything() -> None:
    careless, client = Client({"root-b"}), Client({"root-b"})
    careless.take(LOG)
    assert "old" not in careless.sessions, "in the order of the log it does not"
    client.take(sent(LOG, born_under={"root-b"}))
    assert client.sessions == {"old", "new", "root-z", "root-a", "root-b"}


def test_an_old_client_that_was_away_for_two_rotations_believes_everything_too() -> None:
    client = Client({"root-z"})
    client.take(sent(LOG, [OLD], born_under={"root-z"}))
    assert client.sessions == {"new", "root-z", "root-a", "root-b"}


def test_a_client_born_under_a_working_root_learns_the_earlier_ones_from_the_anchor() -> None:
    # No introduction leads from the working root to the previous root, which it replaced after that had expired.
    log = [
        introduction(A, Z, commit_id=introduction_id(A.id)),
        introduction(owned("old"), A),
        introduction(B, Z, commit_id=introduction_id(B.id)),
        introduction(owned("new"), B),
    ]
    index, client = RootIntroductions(log), Client({"root-z", "root-b"})
    client.take(index.for_client(log, born_under={"root-b": NOW}, find_root=find_root, anchors={"root-z"}))
    assert client.sessions == {"old", "new", "root-a", "root-b"}
    # A root that had expired when the client was created is unknown to the client.
    chosen = index.for_client(log, born_under={"root-b": Z.session.expiration_ms}, find_root=find_root)
    assert "root-a" not in {commit.key for commit in chosen}


def test_a_client_born_under_the_first_working_root_learns_the_next_one_from_the_anchor() -> None:
    log = [introduction(B, Z, commit_id=introduction_id(B.id)), introduction(owned("new"), B)]
    index, client = RootIntroductions(log), Client({"root-z", "root-a"})
    client.take(index.for_client(log, born_under={"root-a": NOW}, find_root=find_root, anchors={"root-z"}))
    assert client.sessions == {"new", "root-b"}
    # A client of an ordinary first root has not got an anchor that was added later.
    log = [introduction(Z, A, commit_id=introduction_id(Z.id)), *log]
    index, client = RootIntroductions(log), Client({"root-a"})
    client.take(index.for_client(log, born_under={"root-a": NOW}, find_root=find_root, anchors={"root-z"}))
    assert client.sessions == {"new", "root-z", "root-b"}


def test_a_client_born_under_a_root_that_was_rolled_back_learns_the_others_from_the_root_before() -> None:
    log = [
        A_BY_Z,
        Z_BY_A,
        OLD,
        introduction(B, A, commit_id=introduction_id(B.id)),
        introduction(X, A, commit_id=introduction_id(X.id)),
        introduction(A, X),
        introduction(owned("new"), X),
    ]
    client = Client({"root-a", "root-b"})
    client.take(sent(log, born_under={"root-b"}))
    assert client.sessions >= {"old", "new", "root-z", "root-x"}
    # A root that has been revoked since then leads to no other.
    trusts = lambda one: None if one == "root-a" else find_root(one)  # noqa: E731
    chosen = RootIntroductions(log).for_client(log, born_under={"root-b": NOW}, find_root=trusts)
    assert [commit.key for commit in chosen] == ["old", "new"]


@pytest.mark.parametrize("held", [1, 2, 3, 4, 5])
def test_nothing_that_is_lacking_is_left_out_where_nothing_has_a_parent(held: int) -> None:
    order = [commit.id for commit in sent(LOG, LOG[:held], born_under={"root-z"})]
    assert len(set(order)) == len(order)
    assert set(order) >= {commit.id for commit in LOG[held:]}


def test_users_keep_their_order() -> None:
    users = [introduction(owned(f"u{number}"), B) for number in range(3)]
    assert sent([*LOG, *users], LOG, born_under={"root-z"}) == users


def test_clients_are_not_sent_roots_that_are_not_trusted() -> None:
    log = [A_BY_B, NEW, OLD]
    chosen = RootIntroductions(log).for_client(
        log, born_under={"root-b": NOW}, find_root=lambda one: None if one == "root-a" else find_root(one)
    )
    assert chosen == [NEW, OLD]


def test_a_server_answers_a_client_in_that_order_and_without_a_revoked_root_and_a_peer_with_everything() -> None:
    log = [OLD, A_BY_Z, B_BY_A, A_BY_B, introduction(X, A), NEW]
    node = Node(B, Z, A, B, logs={"/sys/sessions": [commit.to_json() for commit in log]})
    verify_pending(node.pool)
    user = owned("new")
    keys = [commit["k"] for commit in node.sync(user, "/sys/sessions")["c"]]
    assert keys[0] == "root-a"
    assert keys.index("old") > keys.index("root-x"), "all roots come first"
    node.pool.replace_roots(current=B, roots=[Z.session, A.session, B.session], revoked=["root-a"])
    keys = [commit["k"] for commit in node.sync(user, "/sys/sessions")["c"]]
    assert sorted(keys) == ["new", "old"]
    assert len(node.sync(B, "/sys/sessions", held=BloomFilter(b"\0", (1, 2)))["c"]) >= len(log)


# --- a client that was away -------------------------------------------------------------------------------------------


@cache
def introduced(name: str, key: str, signer: str, ts: int, *parents: str) -> Commit:
    return new_commit(
        commit_id=name,
        key=key,
        session_id=signer,
        ts=NOW + ts,
        org="localhost",
        data=session_fields((root if key.startswith("root") else owned)(key).session),
        schema_marker="sessions/1",
        connection="c",
        parents=parents,
    )


def rotation(number: int, *, former: bool) -> list[Commit]:
    """Return what a rotation leaves in ``/sys/sessions``, in the former format or today's, and a user."""
    before, after = f"root-{number}", f"root-{number + 1}"
    copies = 1 if former else 3
    births = [introduced(f"{after}/{n}", after, before, 10 * number) for n in range(copies)]
    parents = [f"{before}/0"] if former and number else []
    cross = introduced(f"{before} by {after} {former}", before, after, 10 * number + 5, *parents)
    return [*births, cross, introduced(f"user-{number}", f"user-{number}", after, 10 * number + 6)]


@pytest.mark.parametrize("former", [True, False], ids=["cross-signatures with parents", "without"])
@pytest.mark.parametrize("away", [1, 2, 5, 20])
@pytest.mark.parametrize("born", [0, 3])
def test_a_client_that_was_away_follows_the_roots_in_one_answer(born: int, away: int, former: bool) -> None:
    log = [commit for number in range(born + away) for commit in rotation(number, former=former)]
    held = [commit for number in range(born) for commit in rotation(number, former=former)]
    client = Client({f"root-{born}"})
    client.take(held)
    client.take(sent(log, held, born_under={f"root-{born}"}))
    assert f"root-{born + away}" in client.roots
    assert {f"user-{number}" for number in range(born, born + away)} <= client.sessions


def test_without_the_portions_cross_signatures_with_parents_end_the_following() -> None:
    log = [commit for number in range(2) for commit in rotation(number, former=True)]
    client = Client({"root-0"})
    client.take(log)
    assert client.roots == {"root-0"}


def test_without_a_server_of_ours_todays_form_is_followed_at_once() -> None:
    client = Client({"root-0"})
    client.take([commit for number in range(20) for commit in rotation(number, former=False)])
    assert "root-20" in client.roots


def test_a_client_that_lacks_a_late_root_gets_some_before_it_again_and_no_more() -> None:
    log = [commit for number in range(50) for commit in rotation(number, former=False)]
    answer = sent(log, log[:-5], born_under={"root-0"})
    assert [commit.key for commit in answer if claims_root(commit)] == [
        *(f"root-{number}" for number in range(50 - MARGIN, 50)),
        *(["root-50"] * 3),
        "root-49",
    ]


def test_a_session_that_was_introduced_again_counts_for_the_root_under_which_it_was_created() -> None:
    log = [commit for number in range(4) for commit in rotation(number, former=True)]
    client = Client({"root-1"})
    client.take(sent(log, born_under={"root-3", "root-1"}))
    assert "root-4" in client.roots


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Commit], int, set[str]]:
    """A log in any order, how many rotations there were, and which roots the client was sent at its creation.

    The client was created under the last of these roots in alphabetical order. If there are two, the rotation to that
    root was rolled back.
    """
    total = draw(st.integers(1, 9))
    forms = draw(st.lists(st.booleans(), min_size=total, max_size=total))
    log = [commit for number in range(total) for commit in rotation(number, former=forms[number])]
    current = f"root-{total}"
    for pruned in draw(st.sets(st.integers(0, total - 1), max_size=3)):
        parents = [f"root-{pruned}/0"] if pruned and draw(st.booleans()) else []
        name = f"root-{pruned} by {current} again {bool(parents)}"
        log.append(introduced(name, f"root-{pruned}", current, 10 * total, *parents))
    born_under = {f"root-{draw(st.integers(0, total))}"}
    if draw(st.booleans()):
        before = next(iter(born_under))
        undone = f"{before}-undone"
        log.append(introduced(introduction_id(undone), undone, before, 5))
        born_under.add(undone)
    return draw(st.permutations(log)), total, born_under


@pytest.mark.slow
@given(
    history=histories(),
    arrivals=st.lists(st.integers(0, 60), max_size=4),
    mistakes=st.lists(st.lists(st.booleans(), min_size=70, max_size=70), min_size=4, max_size=4),
)
@example(
    history=(rotation(0, former=True) + rotation(1, former=True), 2, {"root-0"}), arrivals=[3], mistakes=[[False]] * 4
)
def test_whatever_arrives_when_and_whatever_the_filter_contains_by_chance_the_client_ends_with_the_current_root(
    history: tuple[list[Commit], int, set[str]], arrivals: list[int], mistakes: list[list[bool]]
) -> None:
    log, total, born_under = history
    client, root_id = Client(set(born_under)), max(born_under)
    introductions = RootIntroductions()
    there = 0
    for until, wrong in zip([*sorted(arrivals), len(log)], [*mistakes, []], strict=False):
        introductions.extend(log[there:until])
        there = max(there, min(until, len(log)))
        # The client's filter contains the ids that it holds, and by chance some others.
        for by_chance in (wrong, []):
            missing = [
                commit
                for number, commit in enumerate(log[:there])
                if commit.id not in client.held and not (number < len(by_chance) and by_chance[number])
            ]
            answer = introductions.for_client(missing, born_under={root_id: NOW}, find_root=find_root)
            assert len({commit.id for commit in answer}) == len(answer)
            client.take(answer)
    introductions.extend(log[there:])
    missing = [commit for commit in log if commit.id not in client.held]
    client.take(introductions.for_client(missing, born_under={root_id: NOW}, find_root=find_root))
    assert {f"root-{number}" for number in range(int(root_id.split("-")[1]), total + 1)} <= client.roots
    assert {f"user-{number}" for number in range(total)} <= client.held.keys()
