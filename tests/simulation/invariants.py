"""The invariants of a herd that was repaired; each broken rule is a human-readable line.

`Promises.broken` covers what is checked during a run: generations, rejections, exceptions.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

from goatherd.errors import GoatherdError, NodeError, NodeRefusedError, VerificationError
from goatherd.identity.document import IdentityDocument, decode_document
from goatherd.identity.recorded_times import recorded_ahead_ms
from goatherd.identity.session import OwnedSession
from goatherd.identity.session_commits import introduction_id
from goatherd.identity.transitions import may_sign_again
from goatherd.providers.values import CURRENT, STABLE, SecretBytes, VersionState
from goatherd.trust import TrustPool
from goatherd.wire.commit import Commit
from tests.simulation.herd import Herd
from tests.simulation.liar import invented
from tests.simulation.people import Operator
from tests.simulation.revocations import (
    frozen_lists,
    holders,
    loot,
    thiefs_session,
    uncounted,
)
from tests.simulation.world import FIRST_ROOT, NOTES, ORG, SESSIONS

_MAY_HOLD: Final = frozenset({"currentSession", "nextSession"})


def at_rest(herd: Herd) -> list[str]:
    """Return the rules that are broken in a herd that gets no requests and has had time."""
    document = herd.world.promises.documents[-1][1]
    return [*_store(herd, document), *_nodes(herd, document), *_commits(herd)]


def restorable_root(herd: Herd) -> str | None:
    """Return the root that `restore` must make sign again: the previous one, if its private key is stored.

    None also where it was rolled back: then the operator has to name it.
    """
    platform, document = herd.world.platform, herd.world.promises.documents[-1][1]
    last = next((one for one in reversed(document.history) if one.event != "retired"), None)
    previous = document.rotated_from
    if previous in document.revoked_ids:
        return None
    if not may_sign_again(document, previous or ""):
        return None
    if previous is None or (last is not None and last.event == "rolled-back" and last.to_id == previous):
        return None
    for number, value in platform.values.items():
        if platform.ledger.describe_version(number).state is VersionState.ENABLED:
            held = decode_document(value.reveal())
            if previous in {one.id for one in (held.current, held.next) if one is not None}:
                return previous
    return None


def no_time_in_the_future(herd: Herd) -> list[str]:
    """Return what is wrong with the times that the identity records, once an operator with a right clock retired."""
    document = herd.world.promises.documents[-1][1]
    ahead_ms = recorded_ahead_ms(document, herd.world.clock.now_ms())
    is_tolerated = timedelta(milliseconds=ahead_ms) <= herd.world.policy.clock_tolerance
    return [] if is_tolerated else [f"the identity still records a time {ahead_ms} ms in the future"]


def after_retiring(herd: Herd) -> list[str]:
    """Return the rules that are broken after a rotation and after the earlier keys were retired: orphaned keys, above
    all."""
    platform, wrong = herd.world.platform, []
    for number, entry in platform.ledger.versions.items():
        if entry.destroyed:
            continue
        held = decode_document(platform.values[number].reveal())
        current = herd.world.promises.documents[-1][1].current.id
        if held.current.id != current or held.next is not None:
            wrong.append(f"version {number} still holds the private key of {held.current.id} or of a candidate")
    return wrong


async def new_client(herd: Herd) -> list[str]:
    """Return what a new client cannot verify."""
    client = herd.world.client(herd.nodes[0].url, herd.world.clock)
    try:
        owned, roots = await client.create_session()
        pool = TrustPool(org=ORG, current=owned, roots=roots)
        sessions = [Commit.from_json(raw, org=ORG) for raw in await client.pull(SESSIONS, owned)]
        pool.offer_session_commits(sessions)
        notes = [Commit.from_json(raw, org=ORG) for raw in await client.pull(NOTES, owned)]
    except (NodeError, GoatherdError) as error:
        return [f"a new client fails: {error}"]
    # GoatDB's clients know of no revocation: what a revoked root itself has signed is for servers.
    revoked = herd.world.promises.documents[-1][1].revoked_ids
    missing = herd.world.promises.written.keys() - {commit.id for commit in notes} - _uncounted(herd)
    sessions = [commit for commit in sessions if commit.session not in revoked]
    notes = [commit for commit in notes if commit.session not in revoked]
    wrong = [f"a new client cannot verify {what}" for what in _unverifiable(pool, [*sessions, *notes])]
    # Once the others have expired, the root that signs and the anchors are the only ones that new clients learn.
    lasting = {_signer(herd), *herd.world.promises.documents[-1][1].anchor_ids}
    later = TrustPool(org=ORG, current=owned, roots=[root for root in roots if root.id in lasting])
    later.offer_session_commits(sessions)
    wrong += [f"a client of later cannot verify {what}" for what in _unverifiable(later, [*sessions, *notes])]
    return wrong + [f"a new client does not get note {commit_id}" for commit_id in sorted(missing)]


async def after_revoking(herd: Herd) -> list[str]:
    """Return what a stolen root can still do, once every revocation is complete."""
    document, wrong = herd.world.promises.documents[-1][1], []
    for root_id in herd.world.promises.stolen:
        if root_id not in document.revoked_ids:
            wrong.append(f"{root_id} was stolen, and is not revoked")
            continue
        stolen = loot(herd.world, root_id)
        if stolen is not None:
            wrong += await _try_to_steal(herd, stolen)
    if any(frozen.digests & invented() for frozen in frozen_lists(herd.nodes, document)):
        wrong.append("commits that one server alone has invented are in the frozen list")
    return wrong


async def _try_to_steal(herd: Herd, stolen: OwnedSession) -> list[str]:
    """Act as the thief: send requests as the stolen root, and push what it has signed under any session."""
    forged, wrong = thiefs_session(stolen), []
    for node in herd.nodes:
        client = herd.world.client(node.url, herd.world.clock)
        with contextlib.suppress(NodeRefusedError):
            await client.push(SESSIONS, [forged.to_json()], stolen)
            wrong.append(f"{node.name} answers {stolen.id}, which is revoked")
        with contextlib.suppress(NodeRefusedError):
            author, _ = await client.create_session()
            await client.push(SESSIONS, [forged.to_json()], author)
        assert node.database is not None
        if forged.id in node.database.engine.get_repository(SESSIONS):
            wrong.append(f"{node.name} took a session of a thief, signed by {stolen.id} after its revocation")
    return wrong


def keys_left(herd: Herd, operator: Operator) -> list[str]:
    """Return false statements to an operator who has revoked a root, about versions that hold its key."""
    report = operator.revocation
    if report is None:
        return [f"{operator.name} could not revoke: {operator.ended}"]
    truth = holders(herd.world, report.revoked_id)
    wrong = []
    labels, record = herd.world.platform.ledger.labels, herd.world.promises.documents[-1][1].rotation
    # Another operator's rotation in progress may have to roll back to the version of `stable`.
    stable = str(labels.get(CURRENT)) if record is None else record.stable_version
    if str(labels.get(STABLE)) != stable:
        wrong.append(f"{operator.name} left stable on version {labels.get(STABLE)}, not on {stable}")
    if sorted(report.keys_left) != sorted(truth):
        wrong.append(f"{operator.name} was told that {report.keys_left} hold the revoked key; {truth} do")
    return wrong


def _signer(herd: Herd) -> str:
    return herd.world.promises.documents[-1][1].current.id


# --- the store --------------------------------------------------------------------------------------------------------


def _store(herd: Herd, document: IdentityDocument) -> Iterator[str]:
    platform = herd.world.platform
    if document.rotation is not None or document.next is not None:
        yield "the document is not steady"
    signers = _signers(herd)
    # Roots that have left are trusted by their introductions.
    trusted = [frozenset(node.database.pool.root_ids) for node in herd.nodes if node.database is not None]
    forgotten = signers - {root.id for root in document.roots} - frozenset.intersection(*trusted)
    if forgotten:
        yield f"{sorted(forgotten)} could have signed, and the document no longer lists them"
    labels = platform.ledger.labels
    if labels.get(CURRENT) is None or labels.get(CURRENT) != labels.get(STABLE):
        yield f"stable is on version {labels.get(STABLE)}, current on {labels.get(CURRENT)}"
    for number, value in platform.values.items():
        if platform.ledger.describe_version(number).state is VersionState.ENABLED:
            yield from (f"version {number} holds a private key in {place}" for place in _strange_keys(value))


def _strange_keys(value: SecretBytes) -> list[str]:
    tree = json.loads(value.reveal())
    return sorted(name for name, part in tree.items() if name not in _MAY_HOLD and _holds_private_key(part))


def _holds_private_key(part: Any) -> bool:
    if isinstance(part, dict):
        return "privateKey" in part or "d" in part or any(_holds_private_key(each) for each in part.values())
    return isinstance(part, list) and any(_holds_private_key(each) for each in part)


# --- the nodes --------------------------------------------------------------------------------------------------------


def _nodes(herd: Herd, document: IdentityDocument) -> Iterator[str]:
    for node in herd.nodes:
        if node.database is None:
            yield f"{node.name} does not serve"
            continue
        pool = node.database.pool
        if pool.current.id != document.current.id:
            yield f"{node.name} signs with {pool.current.id}, not with {document.current.id}"
        strange = {root.id for root in document.roots} - set(pool.root_ids) - document.revoked_ids
        if strange:
            yield f"{node.name} does not trust {sorted(strange)}"
        if followed := document.revoked_ids & {pool.current.id, *pool.root_ids}:
            yield f"{node.name} still follows {sorted(followed)}, which are revoked"


def _commits(herd: Herd) -> Iterator[str]:
    promises = herd.world.promises
    signers = _signers(herd)
    unheard = promises.wanted.keys() - promises.written.keys()
    if unheard:
        yield f"{len(unheard)} notes of clients were never acknowledged"
    up = [node for node in herd.nodes if node.database is not None]
    held: dict[str, Commit] = {}
    without = _uncounted(herd)
    for node in up:
        assert node.database is not None
        for path in (SESSIONS, NOTES):
            commits = node.database.engine.get_repository(path)
            held.update({commit.id: commit for commit in commits if commit.id not in without})
    for node in up:
        assert node.database is not None
        engine = node.database.engine
        lost = [one for one in promises.written if one not in engine.get_repository(NOTES) and one not in without]
        if lost:
            yield f"{node.name} lacks {len(lost)} acknowledged notes, {lost[0]} of {promises.written[lost[0]]} first"
        introduced = signers - {FIRST_ROOT} - _heirs(herd)
        unknown = [one for one in introduced if introduction_id(one) not in engine.get_repository(SESSIONS)]
        if unknown:
            yield f"{node.name} lacks the introduction of {sorted(unknown)}"
        # SECURITY: signatures are verified again, by the node's own pool, whatever it verified before.
        yield from (f"{node.name} cannot verify {what}" for what in _unverifiable(engine.pool, held.values()))


def _signers(herd: Herd) -> set[str]:
    """Return the roots that may have signed: where the store went back, those by which servers have signed."""
    history = herd.world.history
    return {one.current.id for _, one in herd.world.promises.documents} if history is None else set(history.signers)


def _heirs(herd: Herd) -> frozenset[str]:
    """Return the roots that replaced a stolen one while servers may have been unreachable.

    Only the stolen root can introduce them, and then no server accepts it: a server that was offline follows by the
    proof in the identity, and an introduction that one server alone got does not count.
    """
    scenario, documents = herd.scenario, [document for _, document in herd.world.promises.documents]
    if not (scenario.faults or scenario.lie or scenario.skews or scenario.joins_at):
        return frozenset()
    pairs = itertools.pairwise(documents)
    return frozenset(new.current.id for old, new in pairs if old.current.id in new.revoked_ids - old.revoked_ids)


def _uncounted(herd: Herd) -> frozenset[str]:
    return uncounted(herd.nodes, herd.world.promises.documents[-1][1])


def _unverifiable(pool: TrustPool, commits: Any) -> list[str]:
    wrong = []
    for commit in commits:
        try:
            pool.verify_commit(commit)
        except VerificationError as error:
            wrong.append(f"commit {commit.id}: {error}")
    return wrong
