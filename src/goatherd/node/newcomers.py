"""What a client is told of roots, and in which order, so that it can follow.

Pure. COMPAT: a GoatDB client looks at each commit of ``/sys/sessions`` once, when it comes: one that is signed by a
root which it does not know yet is not believed until its next start (protocol 7.4). A client that was born after root A
has expired knows only the roots that it was told of, and A's introduction by a later root stands in the log far behind
the sessions that A introduced. So roots come first, each after the one that introduces it, as far as the client knows.

Not a rule of trust: whoever asks as a root (a peer) gets everything there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from goatherd.identity.introduction import claims_root
from goatherd.wire.commit import Commit


def for_clients(missing: Iterable[Commit], counts: Callable[[str], bool]) -> list[Commit]:
    """Leave out the introductions of roots that are not trusted here: revoked ones, and what those introduced.

    SECURITY: a client cannot be told that a root was revoked, but need not be told of it (tests/cluster/
    test_clients_through_rotation.py).

    Args:
        missing: Session commits that a client lacks.
        counts: Tells whether the root with this id is trusted.
    """
    return [commit for commit in missing if not claims_root(commit) or counts(commit.key)]


def roots_first(missing: Sequence[Commit], held: Iterable[Commit], current: str) -> list[Commit]:
    """Return the commits with the introductions of roots first, each after that of the root which signed it.

    Args:
        missing: Session commits that the other side lacks, in the order of the log.
        held: Those that it holds; looked at only where a root is missing, which is seldom.
        current: Id of the root that signs: the one that a new client knows.
    """
    waiting = [commit for commit in missing if claims_root(commit)]
    if not waiting:
        return list(missing)
    known: set[str] = set()
    for commit in held:
        known.add(commit.session)
        if claims_root(commit):
            known.add(commit.key)
    known = known or {current}
    first: list[Commit] = []
    while ready := [commit for commit in waiting if commit.session in known]:
        first += ready
        waiting = [commit for commit in waiting if commit.session not in known]
        known.update(commit.key for commit in ready)
    ids = {commit.id for commit in first}
    return [*first, *(commit for commit in missing if commit.id not in ids)]
