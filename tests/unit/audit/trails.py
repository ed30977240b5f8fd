"""Audit trails to test with: two roots, the second endorsed by the first, and lines that they have signed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import cache

from goatherd.audit.records import SIGNER, Head, Record, Torn, signer_data, write_record
from goatherd.identity import transitions
from goatherd.identity.anchor import AnchorWord
from goatherd.identity.document import IdentityDocument, Phase
from goatherd.identity.session import OwnedSession
from goatherd.rotation.anchor_keys import UNCHANGED, AnchorChoice, AnchorKeys, collect_anchor_signatures
from tests.fakes.anchors import MemorySigners

NOW_MS = 1_790_000_000_000


@cache
def root(name: str) -> OwnedSession:
    return OwnedSession.generate(session_id=name, owner="root", now_ms=NOW_MS, lifetime=timedelta(days=180))


@cache
def before() -> IdentityDocument:
    """Return the identity that root-a signs."""
    return transitions.create_document(root("root-a"), NOW_MS)


@cache
def after() -> IdentityDocument:
    """Return the identity after the rotation to root-b."""
    return rotated(before(), "root-b")


def rotated(document: IdentityDocument, name: str, word: AnchorWord | None = None) -> IdentityDocument:
    """Return the identity after a rotation to the root `name`, without the roots that may leave."""
    document = transitions.prepare_rotation(
        document, root(name), now_ms=NOW_MS, rotation_id=f"to-{name}", started_by="bob", stable_version="1", word=word
    )
    document = transitions.activate_rotation(transitions.with_phase(document, Phase.PUBLISHED, NOW_MS), NOW_MS)
    document = transitions.finalize_rotation(transitions.with_phase(document, Phase.VERIFIED, NOW_MS), NOW_MS)
    leaving = transitions.roots_to_prune(document)
    return transitions.prune_roots(document, leaving, NOW_MS) if leaving else document


class Anchored:
    """Identities that have an anchor, whose key is in memory."""

    def __init__(self) -> None:
        signers = MemorySigners()
        self._keys = AnchorKeys("localhost", signers.open, signers.configured)

    async def begin(self, name: str, uri: str = "memory:anchor") -> IdentityDocument:
        """Return a new identity whose working root is `name`."""
        anchor = await self._keys.open_new(uri, session_id=f"anchor-of-{name}", now_ms=NOW_MS)
        endorsement = await anchor.introduce(root(name).session, NOW_MS)
        word = AnchorWord(session=anchor.session, endorsements=(endorsement,))
        return transitions.create_document(root(name), NOW_MS, word=word)

    async def rotate(self, document: IdentityDocument, name: str, choice: AnchorChoice = UNCHANGED) -> IdentityDocument:
        """Return the identity after a rotation to the root `name`."""
        word = await collect_anchor_signatures(
            self._keys, document, root(name).session, choice, anchor_id=f"anchor-with-{name}", now_ms=NOW_MS
        )
        return rotated(document, name, word)


def secret_text(session: OwnedSession) -> str:
    return str(session.to_secret_json()["privateKey"]["d"])


class Writer:
    """Writes records one after the other, without a file."""

    def __init__(self) -> None:
        self.head = Head()
        self.records: list[Record] = []
        self._by: str | None = None

    def add(
        self,
        document: IdentityDocument,
        event: str = "decided",
        *,
        at_ms: int = NOW_MS,
        torn: Sequence[Torn] = (),
        lost: int = 0,
        introduce: bool = True,
    ) -> Writer:
        if introduce and self._by != document.current.id:
            self._by = document.current.id
            self._write(document, SIGNER, signer_data(document), at_ms, torn, lost)
            torn, lost = (), 0
        self._write(document, event, {"action": "wait", "number": len(self.records)}, at_ms, torn, lost)
        return self

    def _write(
        self,
        document: IdentityDocument,
        event: str,
        data: dict[str, object],
        at_ms: int,
        torn: Sequence[Torn],
        lost: int,
    ) -> None:
        record = write_record(
            document.current,
            self.head,
            at_ms=at_ms,
            actor="alice@host-1:4711",
            event=event,
            data=data,
            torn=torn,
            lost=lost,
        )
        self.head = record.head
        self.records.append(record)

    @property
    def lines(self) -> list[bytes]:
        return [record.line for record in self.records]


@cache
def trail() -> tuple[bytes, ...]:
    """Nine lines: root-a is introduced and signs four records, root-b is introduced and signs three."""
    writer = Writer()
    for document in (before(), before(), before(), before(), after(), after(), after()):
        writer.add(document)
    assert len(writer.lines) == 9
    return tuple(writer.lines)
