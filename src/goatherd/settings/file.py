"""Read and write settings in GoatDB's own ``settings.json``, user sessions included.

GoatDB's own loader creates a new identity if it cannot read the file. Here a missing or unreadable file is an error,
and no new identity is created. Rules: the file is replaced atomically or left unchanged; only `FileSettings.create`
creates it. Another program may have changed the file: it is read before each write, and its identity is adopted or the
write fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Final

from goatherd.clock import Clock
from goatherd.errors import GoatherdError
from goatherd.files import check_path, create_file, read_file, replace_file
from goatherd.identity.document import IdentityDocument, encode_document
from goatherd.identity.session import Session
from goatherd.identity.settings_json import SETTINGS_NAME, from_settings, to_settings, to_settings_keeping
from goatherd.identity.succession import check_generation, check_signature, verify_succession, verify_successor
from goatherd.providers.values import ORG_FIELD, secret_id_for
from goatherd.serving.signals import cancel_tasks
from goatherd.settings.base import DBSettings, Origin, SettingsSource
from goatherd.telemetry import Event

WRITE_DELAY: Final = timedelta(seconds=1)


class FileSettings(SettingsSource):
    """Settings from GoatDB's own ``settings.json``, user sessions included. For one server on one machine.

    The file is replaced atomically, with mode 0600. New user sessions are written together, after a short delay and at
    the latest when the context is left, so that ten thousand sessions do not cause ten thousand writes.

    Before each write, the file is read again. If another program has changed it, its identity is adopted by the rules
    of `refresh`; if that identity is rejected, the file is not overwritten. A user session that was removed from the
    file is no longer trusted, and not written again.

    Args:
        path: The file, or the directory that holds ``settings.json``. `for_org` replaces ``{org}`` in it; a directory
            without ``{org}`` is taken for a server's data directory, with one subdirectory for each organization.
        write_delay: How long to wait for more new sessions before the file is written.
        clock: Supplies the current time.

    Raises:
        ConfigurationError: `path` is a URI, empty, or no path.
    """

    origin = Origin.FILE

    def __init__(self, path: Path | str, *, write_delay: timedelta = WRITE_DELAY, clock: Clock | None = None) -> None:
        check_path(path, "the place of the settings")
        given = Path(path)
        self.path = given if given.suffix == ".json" else given / SETTINGS_NAME
        super().__init__(source=f"file {self.path}", clock=clock)
        self._given = given
        self._write_delay = write_delay
        self._trusted: dict[str, Session] = {}
        self._is_trusted_stale = False
        self._unwritten: dict[str, Session] = {}
        self._writing = asyncio.Lock()
        self._written: bytes | None = None
        self._later: asyncio.Task[None] | None = None

    @classmethod
    async def create(cls, path: Path | str, document: IdentityDocument, *, clock: Clock | None = None) -> FileSettings:
        """Write a new ``settings.json`` with the given identity document. No other method creates the file.

        Raises:
            IdentityExistsError: The file exists already and was not changed.
            SettingsError: The file cannot be written.
        """
        created = cls(path, clock=clock)
        await asyncio.to_thread(create_file, created.path, _file_text(document, ()))
        return created

    def for_org(self, org: str) -> FileSettings:
        """Return the file settings of one organization.

        Raises:
            ConfigurationError: The organization's id cannot be part of a path.
        """
        text = str(self._given)
        if ORG_FIELD not in text:
            if self._given.suffix == ".json":
                return self
            text = str(self._given / ORG_FIELD)
        return FileSettings(secret_id_for(text, org), write_delay=self._write_delay, clock=self._clock)

    @property
    def settings(self) -> DBSettings:
        """The settings that the server uses now, including user sessions that were added since the file was read.

        Raises:
            SettingsError: `load` was not called yet, or failed.
        """
        settings = super().settings
        if self._is_trusted_stale:
            settings = self._settings = replace(settings, trusted=tuple(self._trusted.values()))
            self._is_trusted_stale = False
        return settings

    async def _open_source(self) -> None:
        pass

    async def _close_source(self) -> None:
        later, self._later = self._later, None
        await cancel_tasks(later)
        if self._unwritten:
            await self.flush()

    async def _read_first(self) -> DBSettings:
        raw = await asyncio.to_thread(read_file, self.path)
        settings = self._decode_settings(raw)
        if self._settings is None:
            self._written = raw
            self._trusted = {session.id: session for session in settings.trusted}
        return settings

    async def _read_again(self, *, is_requested: bool) -> DBSettings | None:  # noqa: ARG002 - a file is read either way
        async with self._writing:
            return await self._read_changed()

    async def _read_changed(self) -> DBSettings | None:
        """Read the file; return its settings if another program has changed it and its identity passes the checks.

        The caller holds the lock, and applies the settings.
        """
        raw = await asyncio.to_thread(read_file, self.path)
        if raw == self._written:
            return None
        found, seen = self._decode_settings(raw), self.settings.document
        # GoatDB's own form has no generations.
        if found.document.generation > 1 or seen.generation > 1:
            check_generation(found.document, seen)
        trusted = [root for root in seen.roots if root.id not in seen.revoked_ids]
        verify_succession(found.document, trusted, anchor=seen.anchor_session)
        check_signature(found.document, seen)
        self._written = raw
        # A session that is missing in the file was removed from it, unless it was added here and not written yet.
        self._trusted = {session.id: session for session in found.trusted} | self._unwritten
        return replace(found, trusted=tuple(self._trusted.values()))

    async def _adopt_changed(self) -> None:
        found = await self._read_changed()
        if found is not None:
            self._apply_settings(found, Event.SETTINGS_CHANGED)

    def _decode_settings(self, raw: bytes) -> DBSettings:
        now_ms = self._clock.now_ms()
        document, trusted, notes = from_settings(raw, now_ms)
        return DBSettings(
            current=document.current,
            roots=document.roots,
            trusted=trusted,
            document=document,
            loaded_at_ms=now_ms,
            source=self._source,
            notes=tuple(notes),
        )

    async def update(
        self, *, document: IdentityDocument | None = None, trusted_sessions: Iterable[Session] = ()
    ) -> bool:
        """Write a changed identity to ``settings.json`` at once, and new user sessions a moment later.

        Args:
            document: The identity document to write; None, or the one in use, changes nothing.
            trusted_sessions: User sessions to add, or to replace by id. Root sessions are ignored: they belong in the
                identity document.

        Returns:
            Whether the identity was written.

        Raises:
            IdentityError: The identity is not a valid successor of the one in use, such as `GenerationError` if another
                one was written first; or the file holds an identity that is rejected.
            SettingsError: The file is missing, or cannot be read or written.
        """
        _ = super().settings
        news = {session.id: session for session in trusted_sessions if not session.is_root}
        news = {session_id: session for session_id, session in news.items() if self._trusted.get(session_id) != session}
        if news:
            self._trusted |= news
            self._unwritten |= news
            self._is_trusted_stale = True
            if self._later is None or self._later.done():
                self._later = asyncio.create_task(self._write_later(), name=f"write {self._source}")
        if document is None:
            return False
        async with self._writing:
            await self._adopt_changed()
            in_use = self.settings.document
            if encode_document(document) == encode_document(in_use):
                return False
            verify_successor(document, in_use)
            await self._write_file(document)
        return True

    async def flush(self) -> None:
        """Write new user sessions to ``settings.json`` now, without waiting for the write delay.

        Raises:
            IdentityError: The file holds an identity that is rejected, and was not changed.
            SettingsError: The file is missing, or cannot be read or written.
        """
        async with self._writing:
            await self._adopt_changed()
            await self._write_file(self.settings.document)

    async def _write_later(self) -> None:
        while self._unwritten:
            await self._clock.sleep(self._write_delay)
            try:
                await self.flush()
            except GoatherdError as error:
                self._record_failure(error)

    async def _write_file(self, document: IdentityDocument) -> None:
        raw, added = _file_text(document, self._trusted.values()), dict(self._unwritten)
        if raw != self._written:
            # Not cut short by a cancellation: what is on the disk and what is in use must agree.
            writing = asyncio.ensure_future(asyncio.to_thread(replace_file, self.path, raw))
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                await asyncio.wait({writing})
                if writing.exception() is None:
                    self._note_written(document, raw, added)
                raise
        self._note_written(document, raw, added)

    def _note_written(self, document: IdentityDocument, raw: bytes, added: dict[str, Session]) -> None:
        self._written = raw
        self._unwritten = {
            session_id: session for session_id, session in self._unwritten.items() if added.get(session_id) != session
        }
        if document is not self.settings.document:
            settings = replace(
                self.settings,
                current=document.current,
                roots=document.roots,
                document=document,
                loaded_at_ms=self._clock.now_ms(),
            )
            self._apply_settings(settings, Event.SETTINGS_CHANGED)


def _file_text(document: IdentityDocument, trusted: Iterable[Session]) -> bytes:
    """Encode an identity and user sessions as GoatDB's ``settings.json``.

    The whole identity document is included if GoatDB's form alone would lose a part of it.
    """
    has_more = document.generation > 1 or document.extra or document.endorsements or document.revoked
    return to_settings_keeping(document, trusted) if has_more or document.history else to_settings(document, trusted)
