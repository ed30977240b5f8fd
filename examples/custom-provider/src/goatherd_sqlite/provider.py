"""The provider. A secret is one row, and each change replaces it in one transaction."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Self

from goatherd.errors import ConfigurationError, ConflictError, UnavailableError
from goatherd.providers.addresses import path_of_uri
from goatherd.providers.base import Guarantees, ReadConsistency
from goatherd.providers.cancellation import finish_request
from goatherd.providers.record_provider import ObjectStore, RecordProvider, StoredObject, Token
from goatherd.providers.versioned_record import RecordedSecret, decode_secret, encode_secret, parse_json

EXAMPLE = "Write sqlite:///path/to/database.db/secret."
BUSY = timedelta(seconds=5)
TABLE = "CREATE TABLE IF NOT EXISTS secret (id TEXT PRIMARY KEY, content TEXT NOT NULL, token TEXT NOT NULL)"


class SQLiteStore(ObjectStore):
    """Keeps each secret in one row of a table; a random token identifies the state of a row."""

    max_bytes: ClassVar[int | None] = 4 << 20

    def __init__(self, database: Path) -> None:
        self._database = database

    async def get(self, secret_id: str) -> StoredObject | None:
        rows, _ = await self._run("SELECT content, token FROM secret WHERE id = ?", secret_id)
        return StoredObject(decode_secret(parse_json(rows[0][0])), rows[0][1]) if rows else None

    async def put(self, secret_id: str, secret: RecordedSecret, token: Token | None) -> None:
        content, new = json.dumps(encode_secret(secret)), secrets.token_hex(16)
        if token is None:
            statement, values = "INSERT OR IGNORE INTO secret VALUES (?, ?, ?)", (secret_id, content, new)
        else:
            statement = "UPDATE secret SET content = ?, token = ? WHERE id = ? AND token = ?"
            values = (content, new, secret_id, token)
        await self._change(statement, *values)

    async def delete(self, secret_id: str, token: Token) -> None:
        await self._change("DELETE FROM secret WHERE id = ? AND token = ?", secret_id, token)

    async def _change(self, statement: str, *values: str) -> None:
        _, changed = await self._run(statement, *values)
        if not changed:
            raise ConflictError("another writer has changed the secret")

    async def _run(self, statement: str, *values: str) -> tuple[list[Any], int]:
        """Run one statement in a thread; return its rows, and how many rows it has changed.

        A thread cannot be stopped: if the caller is cancelled, this waits until the transaction has ended, so that the
        next read shows whether it took effect.
        """
        try:
            return await finish_request(asyncio.to_thread(self._transact, statement, values), moment=2 * BUSY)
        except (sqlite3.Error, OSError) as error:
            # The message of the database's error does not quote values.
            raise UnavailableError(f"the database failed: {error}") from error

    def _transact(self, statement: str, values: tuple[str, ...]) -> tuple[list[Any], int]:
        self._database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite would make the file readable to all; what exists is left as it is.
        os.close(os.open(self._database, os.O_CREAT | os.O_RDWR, 0o600))
        with closing(sqlite3.connect(self._database, timeout=BUSY.total_seconds(), isolation_level=None)) as database:
            database.execute("PRAGMA synchronous = EXTRA")
            # What was destroyed must not stay in the file.
            database.execute("PRAGMA secure_delete = ON")
            database.execute(TABLE)
            done = database.execute(statement, values)
            return done.fetchall(), done.rowcount


class SQLiteSecretProvider(RecordProvider):
    """Keep secrets in a SQLite database on a local disk.

    Address: ``sqlite:///path/to/database.db/secret``.
    Credentials: none; the operating system's user.
    Permissions: the database's directory, mode 0700.
    Guarantees: compare-and-swap, strong reads, the latest versions kept until destroyed, durable.
    """

    scheme = "sqlite"

    def __init__(self, database: Path, **options: Any) -> None:
        super().__init__(**options)
        self.store = SQLiteStore(database)

    @classmethod
    def from_uri(cls, uri: str) -> tuple[Self, str]:
        database, _, secret_id = path_of_uri(uri, example=EXAMPLE).rpartition("/")
        if not database or not secret_id:
            raise ConfigurationError("a sqlite address must name a database and a secret", hint=EXAMPLE)
        return cls(Path(database)), secret_id

    @property
    def guarantees(self) -> Guarantees:
        return Guarantees(cas=True, read_consistency=ReadConsistency.STRONG, history=40, custom_labels=True)
