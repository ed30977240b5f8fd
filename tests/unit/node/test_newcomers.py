"""Which introductions a client gets, and in which order: it looks at each of them once only."""

from __future__ import annotations

from itertools import permutations

import pytest

from goatherd.node.newcomers import for_clients, roots_first
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.commit import Commit
from tests.unit.goats import Node, introduction, owned, root

Z, A, B, X = root("root-z"), root("root-a"), root("root-b"), root("root-x")
OLD, NEW = introduction(owned("old"), Z), introduction(owned("new"), B)
A_BY_Z, Z_BY_A, B_BY_A, A_BY_B = introduction(A, Z), introduction(Z, A), introduction(B, A), introduction(A, B)
LOG = [OLD, A_BY_Z, Z_BY_A, B_BY_A, A_BY_B, NEW]


def believed(order: list[Commit], roots: set[str]) -> set[str]:
    """What a GoatDB client makes of commits that come in this order: it never looks twice (protocol 7.4)."""
    sessions: set[str] = set()
    for commit in order:
        if commit.session in roots:
            sessions.add(commit.key)
            if commit.data is not None and commit.data.get("owner") == "root":
                roots = roots | {commit.key}
    return sessions


def test_a_newcomer_who_knows_the_last_root_only_believes_everything() -> None:
    assert "old" not in believed(LOG, {"root-b"}), "in the order of the log it does not"
    assert believed(roots_first(LOG, [], "root-b"), {"root-b"}) == {"old", "new", "root-z", "root-a", "root-b"}


def test_an_old_client_that_was_away_for_two_rotations_believes_everything_too() -> None:
    order = roots_first(LOG[1:], [OLD], "root-b")
    assert believed(order, {"root-z"}) == {"new", "root-z", "root-a", "root-b"}


@pytest.mark.parametrize("held", [1, 2, 3, 4, 5])
def test_nothing_is_lost_or_doubled_by_the_order(held: int) -> None:
    order = roots_first(LOG[held:], LOG[:held], "root-b")
    assert sorted(commit.id for commit in order) == sorted(commit.id for commit in LOG[held:])


def test_users_keep_their_order_and_roots_that_nobody_vouches_for_stay_where_they_are() -> None:
    rogue = introduction(X, root("nobody"))
    users = [introduction(owned(f"u{number}"), B) for number in range(3)]
    for order in permutations([rogue, *users]):
        assert roots_first(order, [], "root-b") == list(order)


def test_clients_are_not_told_of_roots_that_are_not_trusted() -> None:
    assert for_clients([A_BY_B, NEW, OLD], lambda session_id: session_id != "root-a") == [NEW, OLD]


def test_a_server_answers_a_client_in_that_order_and_without_a_revoked_root_and_a_peer_with_everything() -> None:
    log = [OLD, A_BY_Z, B_BY_A, A_BY_B, introduction(X, A), NEW]
    node = Node(B, Z, A, B, logs={"/sys/sessions": [commit.to_json() for commit in log]})
    node.pool.verify_pending(100)
    user = owned("new")
    sent = [commit["k"] for commit in node.sync(user, "/sys/sessions")["c"]]
    assert sent[0] == "root-a"
    assert sent.index("old") > sent.index("root-x"), "all roots come first"
    node.pool.replace(current=B, roots=[Z.session, A.session, B.session], revoked=["root-a"])
    sent = [commit["k"] for commit in node.sync(user, "/sys/sessions")["c"]]
    assert sorted(sent) == ["new", "old", "root-b"]
    assert len(node.sync(B, "/sys/sessions", held=BloomFilter(b"\0", (1, 2)))["c"]) >= len(log)
