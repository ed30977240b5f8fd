"""Audit trails to test with: two roots, the second endorsed by the first, and lines that they have signed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import cache

from goatherd.audit.records import SIGNER, Head, Record, Torn, signer_data, write_record
from goatherd.identity import transitions
from goatherd.identity.document import IdentityDocument, Phase
from goatherd.identity.session import OwnedSession

NOW_MS = 1_790_000_000_000


@cache
def root(name: str) -> OwnedSession:
    return OwnedSession.generate(session_id=name, owner="root", now_ms=NOW_MS, lifetime=timedelta(days=180))


@cache
def before() -> IdentityDocument:
    """The identity whose root-a signs."""
    return transitions.create_document(root("root-a"), NOW_MS)


@cache
def after() -> IdentityDocument:
    """The same once root-b has taken over."""
    document = transitions.prepare_rotation(
        before(), root("root-b"), now_ms=NOW_MS, rotation_id="rotation-1", started_by="bob", stable_version="1"
    )
    document = transitions.activate_rotation(transitions.with_phase(document, Phase.PUBLISHED, NOW_MS), NOW_MS)
    return transitions.finalize_rotation(transitions.mark_verified(document, NOW_MS), NOW_MS)


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
