"""Signed commits and sessions for the benchmark: made once, stored under ``build/bench``, and replaced when they are
old.

The keys are derived from numbers, so that no private key is kept. Commit n belongs to item n // 4: each item is created
once and changed three times, with parents and ancestors filters as GoatDB writes them.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from goatherd.crypto.keys import CURVE, PrivateKey
from goatherd.identity.document import encode_document
from goatherd.identity.session import (
    ROOT_OWNER,
    SESSION_LIFETIME,
    OwnedSession,
    Session,
    sign_commit,
)
from goatherd.identity.session_commits import SESSIONS_SCHEMA
from goatherd.identity.transitions import create_document
from goatherd.plugins import open_provider
from goatherd.times import milliseconds
from goatherd.wire.bloom import DEFAULT_FPR, BloomFilter, seed_count
from goatherd.wire.commit import Commit, new_commit
from goatherd.wire.commit_log import frame_records
from goatherd.wire.javascript_values import exact_date_ms, seconds_from_ms
from goatherd.wire.json import to_json, to_json_bytes

FOLDER: Final = Path(__file__).parents[2] / "build" / "bench"
VERSION: Final = 1
"""Changes when the data are made differently."""
LIFE: Final = timedelta(days=10)
AUTHORS: Final = 20
EDITS: Final = 4
CHUNK: Final = 1_000
CORES: Final = 2


def number_id(kind: str, number: int) -> str:
    """Return an id of GoatDB's length."""
    return hashlib.blake2b(f"{kind} {number}".encode(), digest_size=12).hexdigest()


@cache
def owned_session(kind: str, number: int, made_ms: int) -> OwnedSession:
    """Return a session whose key follows from its number; of the kind ``root``, a root."""
    secret = int.from_bytes(hashlib.sha384(f"benchmark {kind} {number}".encode()).digest()) >> 1
    key = PrivateKey(ec.derive_private_key(secret, CURVE))
    session = Session(
        id=number_id(kind, number),
        public_key=key.public_key,
        owner=ROOT_OWNER if kind == "root" else None,
        expiration_ms=exact_date_ms(made_ms + milliseconds(SESSION_LIFETIME)),
    )
    return OwnedSession(session=session, signer=key)


def make_commit(number: int, made_ms: int, author: OwnedSession | None = None) -> Commit:
    """Return a commit by an author, or by one of `AUTHORS` sessions: a typical note, or a change of one."""
    item, edit = divmod(number, EDITS)
    owned = author or owned_session("user", item % AUTHORS, made_ms)
    ancestors = [number_id("commit", item * EDITS + earlier) for earlier in range(edit)]
    seeds = [number + at for at in range(seed_count(max(1, edit), DEFAULT_FPR))]
    known = BloomFilter.for_size(max(1, edit), DEFAULT_FPR, seeds)
    known.update(ancestors)
    draft = new_commit(
        commit_id=number_id("commit", number),
        key=number_id("item", item),
        session_id=owned.id,
        ts=made_ms + edit,
        org="localhost",
        parents=ancestors[-1:],
        data={
            "title": f"Water the tomatoes in bed {item}",
            "done": edit == EDITS - 1,
            "due": 1735689600.123,
            "notes": "Not at noon. The ones by the wall need more than the others. " * (1 + edit // 2),
        },
        schema_marker="note/1",
        connection=number_id("connection", item % AUTHORS),
        ancestors_filter=known,
        ancestors_count=edit,
    )
    return sign_commit(owned, draft, now_ms=made_ms + edit)


def make_session_commit(number: int, made_ms: int) -> Commit:
    """Return the commit with which the root introduces a session."""
    root, session = owned_session("root", 0, made_ms), owned_session.__wrapped__("user", number, made_ms).session
    draft = new_commit(
        commit_id=number_id("session commit", number),
        key=session.id,
        session_id=root.id,
        ts=made_ms,
        org="localhost",
        data={
            "id": session.id,
            "publicKey": to_json(session.public_key.to_jwk()),
            "expiration": seconds_from_ms(session.expiration_ms),
        },
        schema_marker=SESSIONS_SCHEMA,
        connection="benchmark",
    )
    return sign_commit(root, draft, now_ms=made_ms)


def _lines(make: Callable[[int, int], Commit], made_ms: int, start: int, end: int) -> bytes:
    return b"".join(to_json_bytes(make(number, made_ms).to_json()) + b"\n" for number in range(start, end))


class Data:
    """The data of one run, in a folder that later runs use again.

    Attributes:
        made_ms: When the data were made; sessions expire 30 days later.
        root: The root that introduces the sessions.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        now_ms = time.time_ns() // 1_000_000
        made = folder / "made.json"
        found = {}
        with suppress(OSError, ValueError):
            found = json.loads(made.read_bytes())
        if found.get("version") != VERSION or now_ms - found["ms"] > milliseconds(LIFE):
            for old in folder.glob("*.jsonl"):
                old.unlink()
            found = {"version": VERSION, "ms": now_ms - 60_000}
            made.write_text(json.dumps(found))
        self.made_ms: int = found["ms"]
        self.root = owned_session("root", 0, self.made_ms)

    def user(self, number: int) -> OwnedSession:
        """Return the session that `sessions` introduces under this number."""
        return owned_session("user", number, self.made_ms)

    def commits(self, start: int, end: int) -> list[bytes]:
        """Return signed commits as the lines of a log."""
        return self._read("commits", make_commit, start, end)

    def sessions(self, count: int) -> list[bytes]:
        """Return the commits that introduce the first sessions, those of all authors among them."""
        return self._read("sessions", make_session_commit, 0, max(count, AUTHORS))

    async def create_store(self, top: Path) -> str:
        """Create a file store that holds the root's identity document, and return its URL."""
        url = f"file://{top}/keys/root"
        provider, secret_id = open_provider(url)
        async with provider:
            await provider.create(secret_id, encode_document(create_document(self.root, self.made_ms)))
        return url

    def _read(self, name: str, make: Callable[[int, int], Commit], start: int, end: int) -> list[bytes]:
        file = self._folder / f"{name}.jsonl"
        have = 0
        if file.exists():
            with file.open("rb") as lines:
                have = sum(1 for _ in lines)
        if have < end:
            self._extend(file, partial(_lines, make, self.made_ms), have, end)
        with file.open("rb") as lines:
            return [line[:-1] for line in islice(lines, start, end)]

    def _extend(self, file: Path, make: Callable[[int, int], bytes], have: int, end: int) -> None:
        """Append lines; written beside the file first, so that an interrupted run leaves whole lines only."""
        chunks = [(at, min(at + CHUNK, end)) for at in range(have, end, CHUNK)]
        part = file.with_suffix(".part")
        with part.open("wb") as out:
            if have:
                out.write(file.read_bytes())
            for made in self._make_chunks(make, chunks):
                out.write(made)
        part.replace(file)

    @staticmethod
    def _make_chunks(make: Callable[[int, int], bytes], chunks: list[tuple[int, int]]) -> Iterable[bytes]:
        if len(chunks) == 1:
            yield make(*chunks[0])
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(CORES, os.cpu_count() or 1), mp_context=context) as pool:
            yield from pool.map(make, *zip(*chunks, strict=True))


def write_log(data: Path, repository: str, lines: Iterable[bytes]) -> int:
    """Write the log of a repository below a data directory; return its size."""
    file = data / "localhost" / f"{repository.strip('/')}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file.write_bytes(b"".join(frame_records([line]) for line in lines))
    file.chmod(0o600)
    return file.stat().st_size


def ids_of(lines: Iterable[bytes]) -> list[str]:
    """Return the ids of commits."""
    return [json.loads(line)["id"] for line in lines]
