"""Bring one organization's identity from the store to its server: write settings.json, and check the server's edits.

`goatherd.agent.agent` starts and stops the server. Rules: each settings.json is made from a verified identity document
and checked once more before it is written. Edits that the server makes to the file are reported and never adopted. The
store is only read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import orjson

from goatherd.agent.restart_rules import (
    FileView,
    find_differences,
    read_file_view,
    reasons_to_restart,
    require_life,
    short_life,
    verify_safe,
    with_previous_root,
)
from goatherd.agent.server_checks import LeakCheck, check_key_exposure
from goatherd.agent.session_log import SessionLogContents, SessionLogReader
from goatherd.agent.settings_file import FileState, SettingsFile, Stamp
from goatherd.clock import Clock
from goatherd.cluster.client import NodeClient
from goatherd.cluster.observer import observe_trust
from goatherd.errors import (
    GoatherdError,
    IdentityError,
    IdentityExistsError,
    KeyLeakedError,
    SecretNotFoundError,
    SettingsError,
)
from goatherd.identity.document import IdentityDocument
from goatherd.identity.session import Session
from goatherd.identity.settings_json import from_settings, to_settings
from goatherd.settings.base import SettingsProvider, SettingsStatus, describe_identity
from goatherd.settings.data_directory import REMAINS, SESSIONS_LOG, check_logs_whole, prepare_logs
from goatherd.telemetry import Event, event_text

WARN_EVERY: Final = timedelta(hours=12)
_LOOK_COST: Final = 20
"""After each check of the file, the next one waits this many times as long as the check took."""
_PATIENCE: Final = 3
_LONGEST_PAUSE: Final = 30.0

_log = logging.getLogger("goatherd.agent")


@dataclass(slots=True)
class _Seen:
    """The last observed state of the settings file."""

    stamp: Stamp | None = None
    view: FileView | None = None
    unreadable: int = 0
    unreadable_stamp: Stamp | None = None
    not_before: float = 0


@dataclass(slots=True)
class _SignerCheckTimes:
    """When the server was last asked which root signs, and how long to wait before asking again."""

    at: float = 0
    pause: float = 1
    was_away: bool = False


class ManagedOrganization:
    """One organization of the agent's server: its identity in the store, and its settings.json.

    An async context manager: enter it, then call `load_identity` before any other method.

    Args:
        org: The organization's id.
        settings: Reads the organization's identity from the store.
        directory: The organization's directory in the server's data directory.
        file: The organization's settings.json.
        client: HTTP client of the server, at the URL that this organization's clients use.
        clock: Supplies the current time.

    Attributes:
        check: Result of the key exposure check since the current settings.json was written; None before the check.
    """

    def __init__(
        self,
        *,
        org: str,
        settings: SettingsProvider,
        directory: Path,
        file: SettingsFile,
        client: NodeClient,
        clock: Clock,
    ) -> None:
        self.org = org
        self.file = file
        self.check: LeakCheck | None = None
        self._signer_check_times = _SignerCheckTimes()
        self._settings = settings
        self._client = client
        self._clock = clock
        self._directory = directory
        self._book = SessionLogReader(directory / SESSIONS_LOG, org)
        self._running: IdentityDocument | None = None
        self._good: IdentityDocument | None = None
        self._earlier: dict[str, Session] = {}
        self._refused: int | None = None
        self._seen = _Seen()
        self._reported: tuple[str | int, ...] = ()
        self._reported_revoked: tuple[str, ...] = ()
        self._reported_roots: set[str] = set()
        self._reported_problem = ""
        self._warned_at: float | None = None
        self._warned_of_end = False

    async def __aenter__(self) -> Self:
        await self._settings.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._client.aclose()
        finally:
            await self._settings.__aexit__(kind, error, trace)

    async def load_identity(self, changed: asyncio.Event) -> None:
        """Read the identity from the store for the first time. From then on, `changed` is set on each change.

        Raises:
            GoatherdError: The identity cannot be loaded. No new identity is created.
        """
        try:
            await self._settings.load()
        except SecretNotFoundError as error:
            error.hint = f"The server's organization is taken to be {self.org!r}: is --org right? {error.hint}"
            raise
        self.subscribe(lambda _: changed.set())

    @property
    def url(self) -> str:
        """URL at which the agent asks the server."""
        return self._client.base_url

    def subscribe(self, on_change: Callable[[IdentityDocument], None]) -> None:
        """Call `on_change` with every new identity of the store."""
        self._settings.subscribe(lambda settings: on_change(settings.document))

    # --- what is wanted ---------------------------------------------------------------------------------------------

    @property
    def document(self) -> IdentityDocument:
        """The identity document in the store."""
        return self._settings.settings.document

    @property
    def wanted(self) -> IdentityDocument:
        """The identity document to run the server with.

        This is the store's document. If the server did not become ready with its current root, it is the document with
        the previous root instead.
        """
        document = self.document
        if self._refused == document.generation and self._good is not None:
            return with_previous_root(document, self._good) or document
        return document

    @property
    def running(self) -> IdentityDocument | None:
        """The identity document of the last settings.json that the agent wrote."""
        return self._running

    def reasons_to_restart(self) -> tuple[str, ...]:
        """Return the reasons to restart the server with the wanted identity; empty if there are none."""
        return () if self._running is None else reasons_to_restart(self._running, self.wanted)

    def mark_ready(self) -> None:
        """Record that the server is ready with the settings.json that the agent wrote."""
        self._good = self._running

    def record_failed_start(self) -> bool:
        """Record that the server did not become ready; return whether it can be started with the previous root."""
        if self._running is None or self._good is None or not reasons_to_restart(self._good, self._running):
            return False
        self._refused = self.document.generation
        return with_previous_root(self.document, self._good) is not None

    # --- the file ---------------------------------------------------------------------------------------------------

    async def check_place(self, *, is_left_over: bool) -> None:
        """Check that writing the settings file overwrites no identity that is stored nowhere else.

        A file with an earlier root of this identity may be overwritten. What shows that the root is one: the document,
        what this agent has used before, or commits in the server's log of sessions that lead from the current root to
        it.

        Args:
            is_left_over: Whether an agent that was killed wrote the file. Its content may then be replaced, even if
                damaged. But if it holds a root that the store has never had, the server created this root, and the file
                may be the only copy: this is an error.

        Raises:
            IdentityExistsError: A settings.json exists that holds another identity, or cannot be read.
        """
        raw = await asyncio.to_thread(self.file.read)
        if raw is None:
            return
        logged = await self._book.read_sessions(self.document)
        self._earlier = {root.id: root for root in logged.sessions if root.is_root}
        if is_left_over:
            if (stranger := self._find_unknown_root(raw)) is not None:
                raise self._other_identity(stranger, is_ours=True)
            return
        try:
            found, _, _ = from_settings(raw, self._clock.now_ms())
        except IdentityError as error:
            text = f"{self.file.link} already exists and cannot be read: {error}"
            raise IdentityExistsError(text, hint="Move the file away, and start again.") from error
        mine = found.current.session
        known = self.document.find_root(mine.id) or self._recall_root(mine.id)
        is_known = self._knows_root(mine.id) if known is None else known.public_key == mine.public_key
        if not is_known:
            raise self._other_identity(mine.id, is_ours=bool(getattr(self._settings, "recalled", ())))

    def _other_identity(self, root_id: str, *, is_ours: bool) -> IdentityExistsError:
        """Return the error for a file with a root that the store has never had.

        `is_ours` is true if an agent has already run this server with the identity in the store.
        """
        migrated = read_migration_note(self.file.link.parent)
        if migrated is not None:
            store, migrated_id = migrated
            return IdentityExistsError(
                f"{self.file.link} holds root {root_id}, but this server's identity (root {migrated_id}) was migrated"
                f" to {store}, as {self.file.link.with_name(REMAINS)} states",
                hint="A server that was started without its settings.json made this root; do not migrate it. Check that"
                f" the store's address is {store}, move {self.file.link} away, and start again.",
            )
        return IdentityExistsError(
            f"{self.file.link} already exists and holds another identity (root {root_id}) than the store"
            f" (root {self.document.current.id})",
            hint=f"A server that was started without its agent created that root; do not migrate it. Move"
            f" {self.file.link} away, and start again."
            if is_ours
            else "If the server belongs to another cluster, import the file into a secret of its own with"
            " `goatherd migrate`, and name that secret here. If it was started without the agent, it created that root:"
            " move the file away. Do the same if the root is an earlier one of this identity, which neither the"
            " identity's history nor the server's own log of sessions shows any more.",
        )

    def _recall_root(self, root_id: str) -> Session | None:
        """Return an earlier root of the identity that this agent has used, or that the server's log proves."""
        recalled: Iterable[Session] = getattr(self._settings, "recalled", ())
        return next((root for root in recalled if root.id == root_id), None) or self._earlier.get(root_id)

    def _find_unknown_root(self, raw: bytes) -> str | None:
        """Return the id of the root in a settings.json if the store has never had this root; otherwise None."""
        view = read_file_view(raw)
        if view is None or view.current_id is None or self._knows_root(view.current_id):
            return None
        return view.current_id

    def _knows_root(self, root_id: str) -> bool:
        """Return whether the store has or had a root; if not, the server has created it."""
        document = self.document
        known = {document.current.id, *(root.id for root in document.roots), *document.revoked_ids}
        known |= {one for entry in document.history for one in (entry.from_id, entry.to_id) if one}
        return root_id in known or self._recall_root(root_id) is not None

    async def prepare_file(self) -> None:
        """Verify the sessions that `write_file` will need, so that the server is stopped only for a short time.

        Also check that there is room for the file, so that the server is not stopped in vain, and that its next start
        loses no records.

        Raises:
            IdentityError: A server cannot be started with the wanted identity.
            SettingsError: The file could not be written.
            StorageError: A log cannot be read, or the server would cut off good records of it.
        """
        await asyncio.to_thread(check_logs_whole, self._directory)
        text = await self._make_file(self.wanted)
        await asyncio.to_thread(self.file.check_room, len(text))

    async def write_file(self) -> None:
        """Write the settings.json with the wanted identity for the server to read.

        Stop the server before, or notify it right afterwards.

        Raises:
            IdentityError: A server cannot be started with this identity.
            SettingsError: The file cannot be written.
        """
        wanted = self.wanted
        text = await self._make_file(wanted)
        stamp = await asyncio.to_thread(self.file.write, text)
        self.check = None
        self._signer_check_times = _SignerCheckTimes(at=self._clock.monotonic())
        self._running = wanted
        self._seen = _Seen(stamp=stamp, view=read_file_view(text))

    async def prepare_logs(self) -> None:
        """Make the logs ready for a start of the server, which must have ended (`data_directory.prepare_logs`).

        Raises:
            StorageError: The server would cut off good records of a log, or a log cannot be read or written.
        """
        await asyncio.to_thread(prepare_logs, self._directory)

    async def check_present_file(self) -> None:
        """Check that a server can be started with the settings.json that is there. A key exposure check is then due.

        Raises:
            IdentityError: The root is too old.
            SettingsError: The file is missing, or holds no root.
        """
        assert self._running is not None
        require_life(self._running, self._clock.now_ms())
        raw = await asyncio.to_thread(self.file.read)
        view = None if raw is None else read_file_view(raw)
        if view is None or view.current_id is None:
            # SECURITY: a GoatDB server would make a new root (tests/unit/agent/test_agent.py).
            raise SettingsError(f"{self.file.link} holds no root, and cannot be written again")
        self.check = None

    async def adopt_file(self) -> bool:
        """Use the existing settings.json if it holds the wanted identity; return whether it does."""
        raw, stamp = await asyncio.to_thread(self.file.read), await asyncio.to_thread(self.file.stamp)
        view = None if raw is None else read_file_view(raw)
        mine = self.wanted.current.session
        if view is None or (view.current_id, view.expiration) != (mine.id, mine.expiration_ms / 1000):
            return False
        self._running = self._good = self.wanted
        self._seen = _Seen(stamp=stamp, view=view)
        return True

    async def _make_file(self, wanted: IdentityDocument) -> bytes:
        """Return the settings.json with which a server is to be started.

        Raises:
            IdentityError: The root is too old, or the file would be unsafe.
        """
        require_life(wanted, self._clock.now_ms())
        return await self._encode_file(wanted)

    async def _encode_file(self, wanted: IdentityDocument) -> bytes:
        found = await self._book.read_sessions(wanted)
        self._report_log(found)
        text = to_settings(wanted, found.sessions, is_compact=True)
        verify_safe(text)
        return text

    def _report_log(self, found: SessionLogContents) -> None:
        news: tuple[str | int, ...] = (len(found.sessions), len(found.unvouched), found.damage or "")
        if found.revoked_roots != self._reported_revoked:
            self._reported_revoked = found.revoked_roots
            for root_id in found.revoked_roots:
                text = (
                    f"/sys/sessions introduces the revoked root {root_id}: GoatDB trusts it after each start; a door in"
                    " front of the server (--door) rejects what that root signs"
                )
                _log.warning(event_text(Event.AGENT_REVOKED_ROOT, org=self.org, message=text))
        if news == self._reported:
            return
        self._reported = news
        level = logging.WARNING if found.unvouched else logging.INFO
        fields = {"org": self.org, "verified": len(found.sessions), "unvouched": len(found.unvouched)}
        _log.log(level, event_text(Event.AGENT_SESSIONS, **fields))
        for root_id, author in found.unvouched_roots:
            if root_id not in self._reported_roots:
                self._reported_roots.add(root_id)
                text = self._describe_unvouched_root(root_id, author)
                _log.error(event_text(Event.AGENT_KEY_IN_DANGER, org=self.org, message=text))
        if found.damage is not None:
            _log.error(event_text(Event.AGENT_LOG_DAMAGED, org=self.org, message=found.damage))

    def _describe_unvouched_root(self, root_id: str, author: str) -> str:
        text = (
            f"/sys/sessions holds root {root_id}, which no trusted root introduced, and the server trusts it after each"
        )
        text += " start. A door in front of the server (--door) rejects what it signs. "
        if author in self.document.revoked_ids:
            return (
                f"{text}Its introduction names the revoked root {author}: if `goatherd revoke {author}` failed and was"
                " run again, this is the root of the first run, whose key was discarded; otherwise the thief made it"
            )
        return f"{text}Its introduction names {author}, which is no trusted root or did not sign it"

    async def remove_file(self) -> bool:
        """Remove settings.json, unless it holds a root that the store does not know; return whether it is gone."""
        try:
            raw = await asyncio.to_thread(self.file.read)
        except SettingsError:
            raw = None
        stranger = None if raw is None else self._find_unknown_root(raw)
        if stranger is not None:
            text = f"{self.file.link} holds root {stranger}, which the store does not know: the file was not removed"
            _log.error(event_text(Event.AGENT_KEY_IN_DANGER, org=self.org, message=text))
            return False
        await asyncio.to_thread(self.file.remove)
        return True

    # --- looking ----------------------------------------------------------------------------------------------------

    async def check_file(self) -> bool:
        """Log edits that the server made to settings.json, and repair the link to it.

        Return whether an edit makes a check for key exposure necessary.
        """
        now = self._clock.monotonic()
        if self._running is None or now < self._seen.not_before:
            return False
        must_ask, problem = False, ""
        try:
            place = await asyncio.to_thread(self.file.read_state)
            if place is not FileState.OURS:
                await self._repair_file(place)
            stamp = await asyncio.to_thread(self.file.stamp)
            if stamp != self._seen.stamp:
                must_ask = await self._compare_file(stamp)
        except SettingsError as error:
            problem = str(error)
            if problem != self._reported_problem:
                _log.error(event_text(Event.AGENT_KEY_IN_DANGER, org=self.org, message=error))
        self._reported_problem = problem
        self._seen.not_before = now + _LOOK_COST * (self._clock.monotonic() - now)
        return must_ask

    async def is_regressed(self) -> bool:
        """Return whether settings.json holds another root than the agent wrote.

        The server has then overwritten the file without having read it.
        """
        raw = await asyncio.to_thread(self.file.read)
        view = None if raw is None else read_file_view(raw)
        return self._running is not None and view is not None and view.current_id != self._running.current.id

    async def _repair_file(self, place: FileState) -> None:
        if place is FileState.REPLACED:
            # SECURITY: the server has replaced the link to memory by a plain file, so the private key was on the disk
            # for a moment, and may still be found in its free space (tests/unit/agent/test_organization.py).
            await asyncio.to_thread(self.file.repair_link)
            text = "the link was replaced by a plain file, so the private key was on the disk for a short time"
        else:
            assert self._running is not None
            await asyncio.to_thread(self.file.write, await self._encode_file(self._running))
            text = "the file was missing"
        _log.error(event_text(Event.AGENT_MENDED, org=self.org, file=self.file.link, message=text))

    async def _compare_file(self, stamp: Stamp | None) -> bool:
        raw = await asyncio.to_thread(self.file.read)
        view = None if raw is None else await asyncio.to_thread(read_file_view, raw)
        if view is None:
            # GoatDB writes the file in place, once for each new client, so this may be an unfinished write.
            is_still = stamp == self._seen.unreadable_stamp
            self._seen.unreadable = self._seen.unreadable + 1 if is_still else 1
            self._seen.unreadable_stamp = stamp
            if self._seen.unreadable == _PATIENCE:
                text = "the server left its settings.json unreadable; the agent replaces the file at the next start"
                _log.error(event_text(Event.AGENT_KEY_IN_DANGER, org=self.org, message=text))
            return False
        before = self._seen.view
        self._seen.stamp, self._seen.view, self._seen.unreadable = stamp, view, 0
        must_ask = False
        for one in () if before is None else find_differences(before, view, is_known=self._knows_root):
            must_ask = must_ask or one.is_serious
            event = Event.AGENT_KEY_IN_DANGER if one.is_serious else Event.AGENT_REWRITTEN
            level = logging.ERROR if one.is_serious else logging.DEBUG if one.is_common else logging.INFO
            _log.log(level, event_text(event, org=self.org, message=one.text))
        return must_ask

    def warn_of_age(self) -> None:
        """Log a warning at intervals if a server can soon not be started with the current root any more."""
        now, now_ms = self._clock.monotonic(), self._clock.now_ms()
        is_expired = self.document.current.session.is_expired(now_ms)
        is_news = is_expired and not self._warned_of_end
        if self._warned_at is not None and now - self._warned_at < WARN_EVERY.total_seconds() and not is_news:
            return
        self._warned_of_end = is_expired
        text = short_life(self.document, now_ms)
        if text is not None:
            self._warned_at = now
            _log.log(
                logging.ERROR if is_expired else logging.WARNING,
                event_text(Event.AGENT_SHORT_LIFE, org=self.org, message=text),
            )

    # --- asking -----------------------------------------------------------------------------------------------------

    @property
    def is_exposure_checked(self) -> bool:
        """Whether the key exposure check has passed since the current settings.json was written."""
        return self.check is not None

    async def is_root_trusted(self) -> bool | None:
        """Return whether the server accepts requests that its configured root has signed; None if it did not answer.

        A server that rejects them has not read the settings.json that the agent wrote.
        """
        assert self._running is not None
        found = await observe_trust(self._client, self._running.current)
        self._signer_check_times.was_away |= found.trusts_current is None
        return found.trusts_current

    async def check_signer(self) -> bool:
        """Return whether the server was seen to sign with the root in the settings.json that the agent wrote.

        Each check creates a session, which GoatDB stores permanently. So the check is repeated only at growing
        intervals, and after the server was unreachable, because a GoatDB server changes its root only at a restart.

        Raises:
            KeyLeakedError: The answer held a private key.
        """
        assert self._running is not None
        asking, now = self._signer_check_times, self._clock.monotonic()
        if asking.was_away or now - asking.at >= asking.pause:
            asking.at, asking.was_away, asking.pause = now, False, min(2 * asking.pause, _LONGEST_PAUSE)
            await self.check_key_exposure()
        return self.check is not None and self.check.signer == self._running.current.id

    async def check_key_exposure(self) -> None:
        """Check whether the server returns its private key to an unauthenticated request.

        Raises:
            KeyLeakedError: The server returned a private key.
        """
        try:
            self.check = await check_key_exposure(self._client, self._running or self.document, self._clock)
        except KeyLeakedError as error:
            _log.critical(event_text(Event.AGENT_KEY_LEAKED, org=self.org, message=error))
            raise
        if self.check is None:
            _log.warning(event_text(Event.AGENT_NOT_ASKED, org=self.org, url=self._client.base_url))

    # --- telling ----------------------------------------------------------------------------------------------------

    async def refresh_identity(self) -> bool:
        """Read the identity from the store now; return whether it has changed."""
        return await self._settings.refresh()

    @property
    def status(self) -> SettingsStatus:
        """How fresh the organization's identity is, and the result of the latest reads from the store."""
        return self._settings.status

    def describe(self) -> dict[str, Any]:
        """Describe the organization's server in the form of ``GET /goatherd/v1/identity``: ids and numbers only.

        Generation, digest and phase are those of the document in the store. While ``agent.pending`` names a reason to
        restart the server, the server still runs with an earlier one.

        SECURITY: the answer contains no key (tests/unit/agent/test_own_api.py).
        """
        running, check, pending = self._running, self.check, self.reasons_to_restart()
        return {
            "org": self.org,
            "signer": None if check is None else check.signer,
            "roots": [] if running is None else [root.id for root in running.roots],
            **describe_identity(self.document, self._settings.status),
            "data": None,
            "agent": {
                "pending": list(pending),
                "started": None if running is None else running.current.id,
                "leakCheck": None if check is None else {"atMs": check.at_ms, "commit": check.commit_id},
            },
        }


def read_migration_note(directory: Path) -> tuple[str, str] | None:
    """Return the secret and root that the note of `goatherd migrate` in this directory names; None without one."""
    try:
        note = orjson.loads((directory / REMAINS).read_bytes())
        return str(note["store"]), str(note["current"]["id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def format_problem(error: GoatherdError) -> str:
    """Return an error as one line for the log: the message and the hint."""
    return f"{error} ({error.hint})" if error.hint else str(error)
