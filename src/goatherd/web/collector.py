"""Read the store, the servers, the schedule and the audit trail, and build a `View` of them for the status page.

Rules: each server is polled once in an interval, however many pages are open, because only `Collector.collect` polls.
If the store cannot be read, the last view stays, and the error is shown beside it.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

from goatherd.audit.records import Anchors, Record
from goatherd.clock import SystemClock
from goatherd.cluster.discovery import NodeDirectory
from goatherd.errors import AuditBrokenError, AuditError, GoatherdError
from goatherd.identity.document import IdentityDocument
from goatherd.operations.audit import read_trail, verify_trail
from goatherd.operations.identity_store import Store
from goatherd.operations.status import ClusterStatus, decide_next_rotation, read_status
from goatherd.providers.call_metrics import CANCELLED, OK
from goatherd.providers.capabilities import DiagnosableSecretProvider
from goatherd.rotation.events import RevocationStep
from goatherd.rotation.policy import Policy
from goatherd.schedule.due import Schedule
from goatherd.schedule.seen_identity import SeenIdentity
from goatherd.stores import DocumentMark, RegionalReader
from goatherd.stores.members import StoreGroup
from goatherd.times import format_utc, milliseconds
from goatherd.web.view import CallsView, RecordRow, Remark, TrailView, View, clean_text, make_view

RECORDS: Final = 50
"""How many records of the audit trail are shown."""
_HOUR_MS: Final = 3_600_000
_RIGHTS_SECONDS: Final = 3600.0
"""Pause between two checks of the rights of the page's credentials, which an operator may change."""
_LONGEST_TEXT: Final = 300
_NO_FAILURE: Final = frozenset({OK, CANCELLED, "provider.conflict", "provider.not_found"})


def read_trail_view(file: Path, anchors: Anchors, now_ms: int) -> TrailView:
    """Verify an audit trail, and return the verdict and the newest records. A long trail takes a long time.

    Args:
        file: The file of the trail.
        anchors: The roots that may sign it.
        now_ms: Milliseconds since 1970.
    """
    try:
        checked = verify_trail(file, anchors=anchors)
    except AuditError as error:
        return _trail_view(file, "unreadable", str(error), (), now_ms)
    except AuditBrokenError as error:
        return _trail_view(file, "broken", str(error), (), now_ms)
    text = f"{checked.head.seq} records from {format_utc(checked.first_ms)} to {format_utc(checked.last_ms)}"
    if checked.by_revoked:
        text += f"; the last {checked.by_revoked} are signed by a root that was revoked"
    if checked.after_revocation:
        text += f"; {len(checked.after_revocation)} are signed by a root after it was revoked"
    return _trail_view(file, "whole", text, read_trail(file).records, now_ms)


def _trail_view(file: Path, verdict: str, text: str, records: Collection[Record], now_ms: int) -> TrailView:
    starts: dict[str, tuple[int | None, str]] = {}
    for one in records:
        rotation, by = one.data.get("rotationId"), one.data.get("startedBy")
        if one.event == "phase-entered" and isinstance(rotation, str) and isinstance(by, str) and by:
            # A trail that was begun later records the start too, if not as an event.
            started_ms = one.data.get("startedMs")
            starts.setdefault(rotation, (started_ms if isinstance(started_ms, int) else None, by))
        elif one.event == "revocation-stepped" and one.data.get("step") == RevocationStep.REVOKED.value:
            starts.setdefault(str(one.data.get("revokedId")), (None, one.actor))
    newest = list(records)[-RECORDS:]
    rows = [
        RecordRow(
            seq=one.seq,
            at_ms=one.at_ms,
            actor=clean_text(one.actor),
            event=clean_text(one.event),
            text=_shorten(_describe_data(one)),
        )
        for one in reversed(newest)
    ]
    return TrailView(
        file=str(file), verdict=verdict, text=_shorten(text), checked_ms=now_ms, records=tuple(rows), starts=starts
    )


def _describe_data(record: Record) -> str:
    pairs = [(name, value) for name, value in record.data.items() if value not in (None, [], "", {})]
    return ", ".join(f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in pairs)


def _shorten(text: str) -> str:
    clean = clean_text(text)
    return clean if len(clean) <= _LONGEST_TEXT else f"{clean[: _LONGEST_TEXT - 1]}…"


async def find_excess_rights(store: Store) -> tuple[Remark, ...]:
    """Return a remark if the page's credentials may write to the store, which the page never does; else nothing."""
    if not isinstance(store.provider, DiagnosableSecretProvider):
        return ()
    try:
        findings = await store.provider.diagnose(store.secret_id)
    except GoatherdError:
        return ()
    if not any(one.may_write for one in findings):
        return ()
    schemes = [store.provider.scheme]
    if isinstance(store.provider, StoreGroup):
        schemes = sorted({one.provider.scheme for one in store.provider.members})
    commands = " and ".join(f"`goatherd policy {scheme} --role server`" for scheme in schemes)
    advice = f"{commands} {'prints' if len(schemes) == 1 else 'print'} what it needs."
    text = "This page has more rights than it needs: its credentials may write to the store."
    return (Remark(text=text, advice=advice),)


@dataclass(slots=True)
class _Counted:
    at_ms: int
    calls: int
    errors: int


@dataclass(slots=True, kw_only=True)
class Collector:
    """Builds the views of one cluster for the status page, one after another.

    Attributes:
        store: The open store.
        nodes: The servers; None for the store alone.
        policy: The policy of a rotation.
        schedule: When to rotate; None if that is not configured.
        grace: How long a private key is kept after a rotation.
        hidden: URLs of servers whose state is not shown.
        audit_log: File of the audit trail; None if there is none.
        interval: Time between two views.
        may_write: Whether the process also rotates, so that the page does not warn of credentials that may write.
    """

    store: Store
    nodes: NodeDirectory | None
    policy: Policy
    schedule: Schedule | None
    grace: timedelta
    interval: timedelta
    hidden: Collection[str] = ()
    audit_log: Path | None = None
    may_write: bool = False
    _seen: SeenIdentity = field(default_factory=SeenIdentity)
    _status: ClusterStatus | None = None
    _remarks: tuple[Remark, ...] = ()
    _next_rights_check: float = 0.0
    _trail: tuple[object, TrailView] | None = None
    _counted: deque[_Counted] = field(default_factory=deque)
    _last_error: tuple[str, int] | None = None

    async def collect(self) -> View:
        """Poll the store and each server once, and return the view.

        Raises:
            ProviderError, IdentityError: The store cannot be read, or does not hold an identity.
        """
        follows = False

        def check(document: IdentityDocument) -> None:
            nonlocal follows
            follows = self._seen.follows(document)

        try:
            status = await read_status(
                self.store,
                self.nodes,
                self.policy,
                grace=self.grace,
                hidden=self.hidden,
                known=self._status,
                check=check,
            )
        except GoatherdError as error:
            self._last_error = clean_text(str(error)), SystemClock().now_ms()
            raise
        self._status = status
        if follows and isinstance(self.store.provider, RegionalReader):
            self.store.provider.note_used(self.store.secret_id, DocumentMark.from_document(status.document))
        now = self.store.provider.clock.monotonic()
        if not self.may_write and now >= self._next_rights_check:
            self._remarks, self._next_rights_check = await find_excess_rights(self.store), now + _RIGHTS_SECONDS
        return make_view(
            status,
            org=self.store.org,
            guarantees=self.store.provider.guarantees,
            schedule=self.schedule,
            decision=None if self.schedule is None else decide_next_rotation(status, self.schedule),
            trail=await self._read_trail(status),
            calls=self._count_calls(status.at_ms),
            remarks=self._remarks,
            interval_ms=milliseconds(self.interval),
        )

    async def _read_trail(self, status: ClusterStatus) -> TrailView | None:
        """Return the verified audit trail; None without one.

        The trail is verified again only if its file or the roots have changed, or if it could not be read.
        """
        file = self.audit_log
        if file is None:
            return None
        try:
            found = await asyncio.to_thread(file.stat)
            mark: object = (found.st_size, found.st_mtime_ns, found.st_ino)
        except OSError:
            mark = None
        key = (mark, status.document.revoked_ids, tuple(root.id for root in status.document.roots))
        if self._trail is None or self._trail[0] != key or self._trail[1].verdict == "unreadable":
            anchors = Anchors.from_document(status.document)
            self._trail = key, await asyncio.to_thread(read_trail_view, file, anchors, status.at_ms)
        return self._trail[1]

    def _count_calls(self, now_ms: int) -> CallsView:
        ended = self.store.provider.call_counts.ended
        calls, errors = sum(ended.values()), sum(n for (_, outcome), n in ended.items() if outcome not in _NO_FAILURE)
        last = self._counted[-1] if self._counted else _Counted(now_ms, 0, 0)
        if not self._counted or last.at_ms > now_ms:  # the clock was set back
            self._counted = deque([_Counted(now_ms, last.calls, last.errors)])
        self._counted.append(_Counted(now_ms, calls, errors))
        while len(self._counted) > 1 and self._counted[1].at_ms <= now_ms - _HOUR_MS:
            self._counted.popleft()
        first = self._counted[0]
        return CallsView(
            calls=calls - first.calls,
            errors=errors - first.errors,
            since_ms=first.at_ms,
            last_error=self._last_error[0] if self._last_error is not None else "",
            last_error_ms=self._last_error[1] if self._last_error is not None else None,
        )
