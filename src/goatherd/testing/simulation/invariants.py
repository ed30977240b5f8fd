"""What must be true of a herd that was healed (design §3); each broken rule as a line for people.

What is watched while a run goes on (generations, refusals, what escapes) stands in `Promises.broken`; this is the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

from goatherd.errors import GoatherdError, NodeError, VerificationError
from goatherd.identity.document import IdentityDocument, decode_document
from goatherd.identity.recorded_times import recorded_ahead_ms
from goatherd.providers.base import CURRENT, STABLE, SecretBytes, VersionState
from goatherd.rotation.vouching import introduction_id
from goatherd.testing.simulation.herd import Herd
from goatherd.testing.simulation.world import FIRST_ROOT, NOTES, ORG, SESSIONS
from goatherd.trust import TrustPool
from goatherd.wire.commit import Commit

_MAY_HOLD: Final = frozenset({"currentSession", "nextSession"})


def at_rest(herd: Herd) -> list[str]:
    """Return what is wrong with a herd of which nobody asks anything and which has had time."""
    document = herd.world.promises.documents[-1][1]
    return [*_store(herd, document), *_nodes(herd, document), *_commits(herd)]


def restorable_root(herd: Herd) -> str | None:
    """Return the root that `restore` must make sign again: the previous one, if its private key is stored.

    None also where it was rolled back: then the operator has to name it.
    """
    platform, document = herd.world.platform, herd.world.promises.documents[-1][1]
    last = next((one for one in reversed(document.history) if one.event != "retired"), None)
    previous = document.rotated_from
    if previous is None or (last is not None and last.event == "rolled-back" and last.to_id == previous):
        return None
    for number, value in platform.values.items():
        if platform.ledger.describe(number).state is VersionState.ENABLED:
            held = decode_document(value.reveal())
            if previous in {one.id for one in (held.current, held.next) if one is not None}:
                return previous
    return None


def no_time_in_the_future(herd: Herd) -> list[str]:
    """Return what is wrong with the times that the identity records, once somebody with a right clock has retired."""
    document = herd.world.promises.documents[-1][1]
    ahead_ms = recorded_ahead_ms(document, herd.world.clock.now_ms())
    is_tolerated = timedelta(milliseconds=ahead_ms) <= herd.world.policy.clock_tolerance
    return [] if is_tolerated else [f"the identity still records a time {ahead_ms} ms in the future"]


def after_retiring(herd: Herd) -> list[str]:
    """Return what is wrong once a rotation was made and the earlier keys were retired: orphans, above all."""
    platform, wrong = herd.world.platform, []
    for number, entry in platform.ledger.entries.items():
        if entry.destroyed:
            continue
        held = decode_document(platform.values[number].reveal())
        current = herd.world.promises.documents[-1][1].current.id
        if held.current.id != current or held.next is not None:
            wrong.append(f"version {number} still holds the private key of {held.current.id} or of a candidate")
    return wrong


async def new_client(herd: Herd) -> list[str]:
    """Return what a client that is born now cannot verify."""
    client = herd.world.client(herd.nodes[0].url, herd.world.clock)
    try:
        owned, roots = await client.create_session()
        pool = TrustPool(org=ORG, current=owned, roots=roots)
        sessions = [Commit.from_json(raw, org=ORG) for raw in await client.pull(SESSIONS, owned)]
        pool.offer_session_commits(sessions)
        notes = [Commit.from_json(raw, org=ORG) for raw in await client.pull(NOTES, owned)]
    except (NodeError, GoatherdError) as error:
        return [f"a new client fails: {error}"]
    wrong = [f"a new client cannot verify {what}" for what in _unverifiable(pool, [*sessions, *notes])]
    # Once the others have expired, the root that signs is the only one that anybody is told of (hazard 3).
    later = TrustPool(org=ORG, current=owned, roots=[root for root in roots if root.id == _signer(herd)])
    later.offer_session_commits(sessions)
    wrong += [f"a client of later cannot verify {what}" for what in _unverifiable(later, [*sessions, *notes])]
    missing = herd.world.promises.written.keys() - {commit.id for commit in notes}
    return wrong + [f"a new client does not get note {commit_id}" for commit_id in sorted(missing)]


def _signer(herd: Herd) -> str:
    return herd.world.promises.documents[-1][1].current.id


# --- the store --------------------------------------------------------------------------------------------------------


def _store(herd: Herd, document: IdentityDocument) -> Iterator[str]:
    platform = herd.world.platform
    if document.rotation is not None or document.next is not None:
        yield "the document is not steady"
    signers = {signer.current.id for _, signer in herd.world.promises.documents}
    forgotten = signers - {root.id for root in document.roots}
    if forgotten:
        yield f"{sorted(forgotten)} could have signed, and the document no longer lists them"
    labels = platform.ledger.labels
    if labels.get(CURRENT) is None or labels.get(CURRENT) != labels.get(STABLE):
        yield f"stable is on version {labels.get(STABLE)}, current on {labels.get(CURRENT)}"
    for number, value in platform.values.items():
        if platform.ledger.describe(number).state is VersionState.ENABLED:
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
        strange = {root.id for root in document.roots} - set(pool.root_ids)
        if strange:
            yield f"{node.name} does not trust {sorted(strange)}"


def _commits(herd: Herd) -> Iterator[str]:
    promises = herd.world.promises
    signers = {document.current.id for _, document in promises.documents}
    unheard = promises.wanted.keys() - promises.written.keys()
    if unheard:
        yield f"{len(unheard)} notes of clients were never acknowledged"
    up = [node for node in herd.nodes if node.database is not None]
    held: dict[str, Commit] = {}
    for node in up:
        assert node.database is not None
        for path in (SESSIONS, NOTES):
            held.update({commit.id: commit for commit in node.database.engine.repository(path)})
    for node in up:
        assert node.database is not None
        engine = node.database.engine
        lost = [one for one in promises.written if one not in engine.repository(NOTES)]
        if lost:
            yield f"{node.name} lacks {len(lost)} acknowledged notes, {lost[0]} of {promises.written[lost[0]]} first"
        unknown = [one for one in signers - {FIRST_ROOT} if introduction_id(one) not in engine.repository(SESSIONS)]
        if unknown:
            yield f"{node.name} lacks the introduction of {sorted(unknown)}"
        # SECURITY: signatures are verified again, by the node's own pool, whatever it verified before (design §3).
        yield from (f"{node.name} cannot verify {what}" for what in _unverifiable(engine.pool, held.values()))


def _unverifiable(pool: TrustPool, commits: Any) -> list[str]:
    wrong = []
    for commit in commits:
        try:
            pool.verify_commit(commit)
        except VerificationError as error:
            wrong.append(f"commit {commit.id}: {error}")
    return wrong
