"""Store new sessions, which have not signed a request yet, in a small bounded table outside ``/sys/sessions``.

``POST /auth/session`` creates a session for every caller. Once a session is introduced (a root signs a commit for it in
``/sys/sessions``), it takes 2 kB of memory and 1 kB of disk on each server and each client, permanently. So a server
stores a new session here, in a tenth of that space, and introduces the session at its first signed request
(`goatherd.node.engine`), which GoatDB's clients send at once. A session that signs no request is dropped when it
expires, or when the table is full and the session is among the oldest.

The table is in memory. Its log (`UnusedLog`), from which a server loads the table when it starts, does all I/O.
`goatherd.node.unused_session_exchange` copies the sessions to the other servers of the cluster.
"""

from __future__ import annotations

import base64
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final, Protocol

from goatherd.crypto import PublicKey
from goatherd.crypto.keys import COMPRESSED_BYTES
from goatherd.errors import DecodeError
from goatherd.identity.session import SESSION_LIFETIME, Session
from goatherd.node.repository import Log

UNUSED_LOG: Final = "unused sessions"
"""Name of this log among the logs of the repositories; no repository has such a path."""
MAX_UNUSED: Final = 200_000

_DROPPED_AT_ONCE: Final = 16  # one part in so many
_SPARE_RECORDS: Final = 10_000
_LEAVING: Final = 1000
_ID: Final = re.compile(r"[A-Za-z0-9._~-]{1,63}")
_LATEST: Final = int(SESSION_LIFETIME.total_seconds() * 1000) + 86_400_000


class UnusedLog(Log, Protocol):
    """The interface of the log of unused sessions (which have signed no request yet); it can also be rewritten."""

    def read_records(self) -> Sequence[Mapping[str, Any]]:
        """Read every undamaged record of the log, in order.

        Raises:
            StorageError: The log cannot be read.
        """
        ...

    def rewrite_records(self, records: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        """Make the next flush replace the whole log by these records and by those that are appended from now on."""
        ...


class UnusedSessions:
    """The table of the sessions that have not signed a request yet, oldest first.

    Args:
        log: The log in which the sessions are stored.
        capacity: Maximum number of sessions; if there are more, the oldest ones are dropped.

    Attributes:
        dropped_count: How many sessions were dropped because there were too many.
    """

    def __init__(self, log: UnusedLog, capacity: int = MAX_UNUSED) -> None:
        self.dropped_count = 0
        self._log = log
        self._capacity = max(1, capacity)
        self._sessions: dict[str, bytes] = {}
        self._recorded = 0
        # SECURITY: sessions that have just been introduced stay in the log when it is rewritten, because their
        # introductions may not be on the disk yet (tests/unit/node/test_unused_sessions.py).
        self._leaving: deque[tuple[str, bytes]] = deque(maxlen=_LEAVING)

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._sessions

    def load_log(self, is_introduced: Callable[[str], bool], now_ms: int) -> None:
        """Read the unused sessions from their log, except those that have been introduced meanwhile or have expired.

        The call blocks.

        Raises:
            StorageError: The log cannot be read.
        """
        records = self._log.read_records()
        self._recorded = len(records)
        self.add_records(records, is_introduced, now_ms, is_recorded=True)

    def add_records(
        self,
        records: Iterable[Mapping[str, Any]],
        is_introduced: Callable[[str], bool],
        now_ms: int,
        *,
        is_recorded: bool = False,
    ) -> int:
        """Add the sessions in records from a peer or the log; return how many sessions were new.

        Malformed records, and sessions for which `is_introduced` returns True, are ignored. `is_recorded` is true if
        the log contains the records already.
        """
        before = len(self._sessions)
        for record in records:
            try:
                session_id, packed = _pack_session(record, now_ms)
            except DecodeError:
                continue
            if session_id not in self._sessions and not is_introduced(session_id):
                self._add_packed(session_id, packed, is_recorded=is_recorded)
        return max(0, len(self._sessions) - before)

    def add_session(self, session: Session) -> None:
        """Add a session that has not signed a request yet. It is durable after the log's next flush."""
        self._add_packed(
            session.id, session.expiration_ms.to_bytes(6) + session.public_key.compressed, is_recorded=False
        )

    def find_session(self, session_id: str, now_ms: int) -> Session | None:
        """Return the session with this id; None if it is not in the table, has expired, or its key is no key.

        The last can happen if the record was damaged on a disk, here or at a peer: whether a key is a point of the
        curve takes too long to check when the table is loaded.
        """
        packed = self._sessions.get(session_id)
        if packed is None:
            return None
        try:
            session = _unpack_session(session_id, packed)
        except DecodeError:
            return None
        return None if session.is_expired(now_ms) else session

    def oldest_sessions(self, count: int, now_ms: int) -> list[Session]:
        """Return up to `count` of the oldest unused sessions that have not expired."""
        found = (self.find_session(session_id, now_ms) for session_id in self._sessions)
        return list(islice((session for session in found if session is not None), count))

    def discard_session(self, session_id: str) -> None:
        """Remove a session from the table, since it has been introduced in ``/sys/sessions``."""
        packed = self._sessions.pop(session_id, None)
        if packed is not None:
            self._leaving.append((session_id, packed))
            self._compact_log()

    def drop_expired(self, now_ms: int) -> None:
        """Remove the sessions that have expired from the table."""
        gone = [session_id for session_id, packed in self._sessions.items() if int.from_bytes(packed[:6]) < now_ms]
        for session_id in gone:
            del self._sessions[session_id]
        self._compact_log()

    def page_reader(self) -> Callable[[str, int], list[dict[str, Any]]]:
        """Return a function that reads the present records of unused sessions in pages, in order of their ids.

        The function may be called in any thread.
        """
        sessions = self._sessions.copy()

        def page(after: str, count: int) -> list[dict[str, Any]]:
            ids = sorted([session_id for session_id in sessions if session_id > after])[:count]
            return [_unpack_record(session_id, sessions[session_id]) for session_id in ids]

        return page

    def _add_packed(self, session_id: str, packed: bytes, *, is_recorded: bool) -> None:
        if len(self._sessions) >= self._capacity:
            # SECURITY: the table is bounded, however many sessions callers request
            # (tests/unit/node/test_unused_sessions.py).
            oldest = list(islice(self._sessions, max(1, self._capacity // _DROPPED_AT_ONCE)))
            for one in oldest:
                del self._sessions[one]
            self.dropped_count += len(oldest)
        self._sessions[session_id] = packed
        if not is_recorded:
            self._log.append_record(_unpack_record(session_id, packed))
            self._recorded += 1
        self._compact_log()

    def _compact_log(self) -> None:
        """Schedule a rewrite of the log of unused sessions once most of its records are obsolete."""
        if self._recorded > 2 * len(self._sessions) + _SPARE_RECORDS:
            left = (*self._leaving, *self._sessions.items())
            self._recorded = len(left)
            self._log.rewrite_records(lambda: [_unpack_record(session_id, packed) for session_id, packed in left])


def record_of(session: Session) -> dict[str, Any]:
    """Return an unused session as the JSON object that is stored in the log and sent to peers."""
    return _unpack_record(session.id, session.expiration_ms.to_bytes(6) + session.public_key.compressed)


def read_records(value: object) -> Sequence[Mapping[str, Any]]:
    """Check that the session records in a server's message are a list of objects, and return them.

    Raises:
        DecodeError: The value is not a list of objects.
    """
    if not isinstance(value, list) or not all(isinstance(record, dict) for record in value):
        raise DecodeError("sessions must be a list of objects")
    return value


def read_servers(value: object) -> frozenset[str]:
    """Check that the ids of server processes in a server's message are a list of strings, and return them as a set.

    Raises:
        DecodeError: The value is not a list of strings.
    """
    if not isinstance(value, list) or not all(isinstance(instance, str) for instance in value):
        raise DecodeError("servers must be a list of strings")
    return frozenset(value)


def _unpack_record(session_id: str, packed: bytes) -> dict[str, Any]:
    key = base64.urlsafe_b64encode(packed[6:]).decode()
    return {"id": session_id, "key": key, "expiration": int.from_bytes(packed[:6])}


def _pack_session(record: Mapping[str, Any], now_ms: int) -> tuple[str, bytes]:
    session_id, key, expiration = record.get("id"), record.get("key"), record.get("expiration")
    if not isinstance(session_id, str) or _ID.fullmatch(session_id) is None:
        raise DecodeError("an unused session must have a valid id")
    if type(expiration) is not int or not now_ms <= expiration <= now_ms + _LATEST:
        raise DecodeError("the expiration of an unused session is missing, past, or too far in the future")
    try:
        raw = base64.b64decode(key if isinstance(key, str) else "", altchars=b"-_", validate=True)
    except ValueError:
        raise DecodeError("an unused session must have a valid public key") from None
    if len(raw) != COMPRESSED_BYTES:
        raise DecodeError("an unused session must have a valid public key")
    return session_id, expiration.to_bytes(6) + raw


def _unpack_session(session_id: str, packed: bytes) -> Session:
    key = PublicKey.from_compressed(packed[6:])
    return Session(id=session_id, public_key=key, owner=None, expiration_ms=int.from_bytes(packed[:6]))
