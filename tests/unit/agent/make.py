"""Logs of session commits, settings that a test can change, and an agent that runs a command of the test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from goatherd.identity.document import IdentityDocument
from goatherd.identity.session import OwnedSession, Session, sign_commit
from goatherd.identity.session_commits import session_fields
from goatherd.ids import new_id
from goatherd.settings.base import DBSettings, SettingsStatus
from goatherd.wire.commit import new_commit
from goatherd.wire.commit_log import frame_records
from tests.unit.identity.make import NOW, first


def introduction(session: Session, by: OwnedSession, *, org: str = "localhost", **more: Any) -> dict[str, Any]:
    """The commit in the session log that introduces `session`, signed by `by`."""
    draft = new_commit(
        commit_id=new_id(),
        key=more.get("key", session.id),
        session_id=more.get("claimed", by.id),
        ts=more.get("ts", NOW),
        org=org,
        parents=(),
        data=session_fields(session),
        schema_marker="sessions/1",
        connection="test",
    )
    return sign_commit(by, draft, now_ms=more.get("ts", NOW)).to_json()


def write_log(directory: Path, records: Iterable[dict[str, Any]], *, tail: bytes = b"") -> Path:
    """Append to the ``/sys/sessions`` log of an organization's directory."""
    path = directory / "sys" / "sessions.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        for record in records:
            file.write(frame_records([record]))
        file.write(tail)
    return path


class TestSettings:
    """A settings provider whose identity a test changes."""

    __test__ = False

    def __init__(self, document: IdentityDocument | None = None) -> None:
        self.document = document or first()
        self.failure: Exception | None = None
        self.recalled: tuple[Session, ...] = ()
        self.silence: asyncio.Event | None = None
        self.status = SettingsStatus(
            source="test", generation=None, version=None, last_success_ms=NOW, age=None, failures=0, last_refusal=None
        )
        self._callbacks: list[Callable[[DBSettings], None]] = []

    async def __aenter__(self) -> TestSettings:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0)

    @property
    def settings(self) -> DBSettings:
        document = self.document
        return DBSettings(
            current=document.current, roots=document.roots, document=document, loaded_at_ms=NOW, source="test"
        )

    async def load(self) -> DBSettings:
        if self.silence is not None:
            await self.silence.wait()
        if self.failure is not None:
            raise self.failure
        return self.settings

    async def refresh(self) -> bool:
        return False

    def subscribe(self, callback: Callable[[DBSettings], None]) -> Callable[[], None]:
        self._callbacks.append(callback)
        return lambda: None

    def change(self, document: IdentityDocument) -> None:
        self.document = document
        for callback in self._callbacks:
            callback(self.settings)
