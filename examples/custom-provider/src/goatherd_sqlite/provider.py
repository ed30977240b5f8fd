"""The provider. Each operation is one transaction, so compare-and-swap, crashes and several processes need no more."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

from goatherd.errors import ConfigurationError, UnavailableError
from goatherd.providers.addresses import path_of_uri
from goatherd.providers.base import Call, Guarantees, ReadConsistency, SecretProvider
from goatherd.providers.cancellation import finish_request
from goatherd.providers.values import Label, SecretBytes, SecretValue, SecretVersion, VersionId
from goatherd.providers.versioned_record import (
    DamagedRecordError,
    RecordForm,
    VersionedRecord,
    decode_record,
    encode_record,
    entry_for,
)

Result = TypeVar("Result")

EXAMPLE = "Write sqlite:///path/to/database.db/secret."
BUSY = timedelta(seconds=5)
FORM = RecordForm(name="goatherd-sqlite/1")
TABLES = """
CREATE TABLE IF NOT EXISTS record (secret TEXT PRIMARY KEY, content BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS value (secret TEXT, number INTEGER, content BLOB NOT NULL, PRIMARY KEY (secret, number));
"""


class SQLiteSecretProvider(SecretProvider):
    """Keep secrets in a SQLite database on a local disk.

    Address: ``sqlite:///path/to/database.db/secret``.
    Credentials: none; the operating system's user.
    Permissions: the database's directory, mode 0700.
    Guarantees: compare-and-swap, strong reads, every version kept until destroyed, durable.
    """

    scheme = "sqlite"

    def __init__(self, database: Path, **options: Any) -> None:
        super().__init__(**options)
        self._database = database

    @classmethod
    def from_uri(cls, uri: str) -> tuple[Self, str]:
        database, _, secret_id = path_of_uri(uri, example=EXAMPLE).rpartition("/")
        if not database or not secret_id:
            raise ConfigurationError("a sqlite address must name a database and a secret", hint=EXAMPLE)
        return cls(Path(database)), secret_id

    @property
    def guarantees(self) -> Guarantees:
        return Guarantees(cas=True, read_consistency=ReadConsistency.STRONG, custom_labels=True)

    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        def create(found: VersionedRecord) -> VersionedRecord:
            entry = entry_for(value, request=call.request, now_ms=self.clock.now_ms())
            return found.with_first_version(call, entry, label)

        return await self._add_version(call, value, create)

    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        def write(found: VersionedRecord) -> VersionedRecord:
            entry = entry_for(value, request=call.request, now_ms=self.clock.now_ms())
            return found.with_version(call, entry, label, expected)

        return await self._add_version(call, value, write)

    async def _add_version(
        self, call: Call, value: SecretBytes, change: Callable[[VersionedRecord], VersionedRecord]
    ) -> SecretVersion:
        def add(database: sqlite3.Connection) -> SecretVersion:
            found = _load(database, call)
            # A call that is repeated, because its answer was lost, finds what it has written.
            number = found.made_by(call.request)
            if number is None:
                found = change(found)
                number = found.next_number - 1
                row = (call.secret_id, number, value.reveal())
                database.execute("INSERT INTO value VALUES (?, ?, ?)", row)
                _save(database, call, found)
            return found.describe_version(number)

        return await self._run(call, add)

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        def read(database: sqlite3.Connection) -> SecretValue:
            found = _load(database, call)
            number = found.find_version(call, at)
            row = database.execute(
                "SELECT content FROM value WHERE secret = ? AND number = ?", (call.secret_id, number)
            ).fetchone()
            if row is None:
                raise call.error(UnavailableError, "the database has lost the value of a version")
            return SecretValue(version=found.describe_version(number), value=SecretBytes(row[0]))

        return await self._run(call, read)

    async def _label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
        await self._change(call, lambda found: found.with_label(call, label, version, expected))

    async def _unlabel(self, call: Call, label: Label, expected: VersionId) -> None:
        await self._change(call, lambda found: found.without_label(call, label, expected))

    async def _versions(self, call: Call) -> Sequence[SecretVersion]:
        def list_versions(database: sqlite3.Connection) -> Sequence[SecretVersion]:
            found = _load(database, call)
            found.must_exist(call)
            return found.newest_first()

        return await self._run(call, list_versions)

    async def _destroy(self, call: Call, version: VersionId) -> None:
        def destroy(database: sqlite3.Connection) -> None:
            _save(database, call, _load(database, call).without_value(call, version))
            database.execute("DELETE FROM value WHERE secret = ? AND number = ?", (call.secret_id, int(version)))

        await self._run(call, destroy)

    async def _delete(self, call: Call) -> None:
        def delete(database: sqlite3.Connection) -> None:
            _load(database, call).must_exist(call)
            for table in ("record", "value"):
                database.execute(f"DELETE FROM {table} WHERE secret = ?", (call.secret_id,))  # noqa: S608 - a constant

        await self._run(call, delete)

    async def _change(self, call: Call, change: Callable[[VersionedRecord], VersionedRecord]) -> None:
        await self._run(call, lambda database: _save(database, call, change(_load(database, call))))

    async def _run(self, call: Call, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Do the work in one transaction, in a thread.

        A thread cannot be stopped: if the caller is cancelled, this waits until the transaction has ended, so that the
        next read shows whether it took effect.
        """
        try:
            return await finish_request(asyncio.to_thread(self._transact, work), moment=2 * BUSY)
        except (sqlite3.Error, OSError, DamagedRecordError) as error:
            # The message of the database's error does not quote values.
            raise call.error(UnavailableError, f"the database failed: {error}") from error

    def _transact(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        self._database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite would make the file readable to all; what exists is left as it is.
        os.close(os.open(self._database, os.O_CREAT | os.O_RDWR, 0o600))
        with closing(sqlite3.connect(self._database, timeout=BUSY.total_seconds(), isolation_level=None)) as database:
            database.execute("PRAGMA synchronous = EXTRA")
            # What was destroyed must not stay in the file.
            database.execute("PRAGMA secure_delete = ON")
            database.executescript(TABLES)
            database.execute("BEGIN IMMEDIATE")
            try:
                result = work(database)
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")
            return result


def _load(database: sqlite3.Connection, call: Call) -> VersionedRecord:
    row = database.execute("SELECT content FROM record WHERE secret = ?", (call.secret_id,)).fetchone()
    return VersionedRecord() if row is None else decode_record(row[0], FORM)


def _save(database: sqlite3.Connection, call: Call, record: VersionedRecord) -> None:
    database.execute("INSERT OR REPLACE INTO record VALUES (?, ?)", (call.secret_id, encode_record(record, FORM)))
