"""Store the lists of frozen commits of revoked roots, and report which of a root's commits this server holds.

The frozen commits of a root are those that the cluster held when the root was revoked. `goatherd.trust` decides which
of them are accepted. The identity document contains the SHA-256 of each list, so a list with that digest is accepted
from any sender. Lists are stored on disk beside the logs, fetched from peers if missing, and returned to every client
that requests them.

Rules: the server reports which commits of a root it holds only after it has begun to reject new commits of that root,
so that none is missing in the report. It never reports introductions of roots that the identity document does not list,
so that an attacker's roots do not spread.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from goatherd.clock import Clock
from goatherd.errors import DecodeError, NodeError, PathError, SettingsError
from goatherd.files import read_file, replace_file
from goatherd.identity.document import IdentityDocument
from goatherd.identity.revocations import MAX_SHOWN, FrozenList, commit_digest
from goatherd.identity.session_commits import claims_root
from goatherd.node.engine import JSON_TYPE, Engine, Response
from goatherd.node.management import refuse_unless_root
from goatherd.telemetry import Event, event_text
from goatherd.wire.commit import Commit
from goatherd.wire.json import parse_json, to_json_bytes
from goatherd.wire.paths import SESSIONS_PATH

if TYPE_CHECKING:
    from goatherd.cluster.client import NodeClient

_log = logging.getLogger("goatherd.node.freeze")

FOLDER: Final = ".goatherd.frozen"
RETRY: Final = timedelta(seconds=5)
BINARY_TYPE: Final = "application/octet-stream"

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class FrozenCommitStore:
    """Store the frozen-commit lists of one organization, and apply them to the pool of trusted sessions.

    Such a list names the commits of a revoked root that stay valid.

    Args:
        engine: The engine whose pool of trusted sessions is updated.
        folder: Directory in which the lists are stored; None stores the lists in memory only.
        repositories: Returns the paths of the repositories on the disk; may block.
        peers: Returns the HTTP clients of the peers, from which missing lists are fetched.
        clock: Supplies the current time.
        changed: Called when a frozen-commit list has taken effect.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        folder: Path | None,
        repositories: Callable[[], Sequence[str]],
        peers: Callable[[], Sequence[NodeClient]],
        clock: Clock,
        changed: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._folder = folder
        self._repositories = repositories
        self._peers = peers
        self._clock = clock
        self._changed = changed
        self._lists: dict[str, FrozenList] = {}
        self._document: IdentityDocument | None = None
        self._wake = asyncio.Event()

    # --- keeping up -------------------------------------------------------------------------------------------------

    def apply_document(self, document: IdentityDocument) -> None:
        """Apply the frozen-commit lists that an identity document names. `run` fetches those that are missing."""
        self._document = document
        for digest in self._wanted_digests():
            if digest not in self._lists:
                self._read_list(digest)
        self._update_pool()
        self._wake.set()

    async def run(self) -> None:
        """Fetch missing frozen-commit lists from the peers, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while missing := [digest for digest in self._wanted_digests() if digest not in self._lists]:
                for digest in missing:
                    await self._fetch_list(digest)
                if any(digest not in self._lists for digest in missing):
                    await self._clock.sleep(RETRY)

    def _wanted_digests(self) -> list[str]:
        revoked = self._document.revoked if self._document is not None else ()
        return [one.freeze.digest for one in revoked if one.freeze is not None]

    def _update_pool(self) -> None:
        if self._document is None:
            return
        known = {
            one.id: self._lists[one.freeze.digest]
            for one in self._document.revoked
            if one.freeze is not None and one.freeze.digest in self._lists
        }
        self._engine.pool.set_frozen_commits(
            known, [one.id for one in self._document.revoked if one.settled_at is not None]
        )
        if known:
            self._changed()

    async def _fetch_list(self, digest: str) -> None:
        for client in self._peers():
            try:
                raw = await client.frozen(digest)
                found = None if raw is None else FrozenList.from_bytes(raw)
            except (NodeError, DecodeError):
                continue
            # SECURITY: a list from a peer counts only if it has the digest that the identity names
            # (tests/unit/node/test_frozen_commits.py).
            if found is not None and found.digest == digest:
                await self._store_list(found)
                return

    async def _store_list(self, frozen: FrozenList) -> None:
        digest = frozen.digest
        if self._folder is not None and digest not in self._lists:
            await asyncio.to_thread(self._write_list, self._folder, digest, frozen.to_bytes())
        self._lists[digest] = frozen
        self._update_pool()

    def _write_list(self, folder: Path, digest: str, raw: bytes) -> None:
        try:
            replace_file(folder / digest, raw)
        except SettingsError as error:
            # The server keeps serving, because the list stays in memory, and peers hold it as well.
            _log.error(event_text(Event.FREEZE_NOT_KEPT, digest=digest, message=error))

    def _read_list(self, digest: str) -> None:
        if self._folder is None or not (self._folder / digest).exists():
            return
        try:
            frozen = FrozenList.from_bytes(read_file(self._folder / digest))
        except (DecodeError, SettingsError):
            return  # treated like a missing list: the server fetches it from its peers again
        if frozen.digest == digest:
            self._lists[digest] = frozen

    # --- requests ---------------------------------------------------------------------------------------------------

    def answer_get(self, digest: str) -> Response:
        """Answer ``GET /goatherd/v1/frozen/<digest>`` with the frozen-commit list that has this digest.

        No signature is needed: the list contains only digests of commits, which reveal nothing about their contents.
        """
        frozen = self._lists.get(digest) if _DIGEST.fullmatch(digest) else None
        if frozen is None:
            return Response(status=404)
        return Response(status=200, body=frozen.to_bytes(), content_type=BINARY_TYPE)

    async def answer_put(self, body: bytes, header: str | None) -> Response:
        """Answer ``POST /goatherd/v1/frozen``: store a frozen-commit list that a root sends.

        The list takes effect once the identity document names its digest.
        """
        if refusal := await self._refuse_unless_root("frozen", body, header):
            return refusal
        try:
            frozen = FrozenList.from_bytes(body)
        except DecodeError:
            return Response(status=400)
        await self._store_list(frozen)
        return Response(status=200, body=to_json_bytes({"digest": frozen.digest}), content_type=JSON_TYPE)

    async def answer_held(self, body: bytes, header: str | None) -> Response:
        """Answer ``POST /goatherd/v1/held``: list the commits of a revoked root that this server holds.

        The answer has status 409 if this server does not know that the root is revoked: commits that arrive later would
        be missing. A request with ``early`` is answered in this case, too. If the request lists digests in ``show``,
        the answer has instead the path, key and timestamp of each held commit with one of these digests.
        """
        if refusal := await self._refuse_unless_root("held", body, header):
            return refusal
        try:
            asked = parse_json(body)
        except DecodeError:
            return Response(status=400)
        session_id = asked.get("session") if isinstance(asked, dict) else None
        early, show = (asked.get("early"), asked.get("show")) if isinstance(asked, dict) else (None, None)
        if not isinstance(session_id, str) or not isinstance(show, list | None):
            return Response(status=400)
        if early is not True and session_id not in self._engine.pool.revoked:
            return Response(status=409)
        if show is not None:
            wanted = {one for one in show[:MAX_SHOWN] if isinstance(one, str)}
            found = [
                {"digest": digest.hex(), "path": path, "key": commit.key, "ts": commit.ts}
                for digest, (path, commit) in (await self._find_held(session_id)).items()
                if digest.hex() in wanted
            ]
            return Response(status=200, body=to_json_bytes({"commits": found}), content_type=JSON_TYPE)
        frozen = await self.held_commits(session_id)
        return Response(status=200, body=frozen.to_bytes(), content_type=BINARY_TYPE)

    async def answer_lacking(self, body: bytes, header: str | None) -> Response:
        """Answer ``POST /goatherd/v1/lacking``: list which of the given commits of a repository this server lacks."""
        if refusal := await self._refuse_unless_root("lacking", body, header):
            return refusal
        try:
            asked = parse_json(body)
            path, commits = (asked.get("path"), asked.get("commits")) if isinstance(asked, dict) else (None, None)
            if not isinstance(path, str) or not isinstance(commits, list):
                return Response(status=400)
            found = self._engine.repositories.get(path)
            repository = found if found is not None else await asyncio.to_thread(self._engine.read_repository, path)
        except (DecodeError, PathError):
            return Response(status=400)
        lacking = [one for one in commits if not isinstance(one, str) or one not in repository]
        return Response(status=200, body=to_json_bytes({"lacking": lacking}), content_type=JSON_TYPE)

    async def held_commits(self, session_id: str) -> FrozenList:
        """Return the commits of a root that this server holds in memory or on the disk, as a frozen-commit list.

        Raises:
            StorageError: A log cannot be read.
        """
        return FrozenList(frozenset(await self._find_held(session_id)))

    async def _find_held(self, session_id: str) -> dict[bytes, tuple[str, Commit]]:
        open_now = dict(self._engine.repositories)
        commits = {path: _signed_by(session_id, repository) for path, repository in open_now.items()}
        roots = frozenset() if self._document is None else frozenset(root.id for root in self._document.roots)
        return await asyncio.to_thread(self._collect_digests, session_id, commits, roots)

    def _collect_digests(
        self, session_id: str, commits: dict[str, list[Commit]], roots: frozenset[str]
    ) -> dict[bytes, tuple[str, Commit]]:
        found: dict[bytes, tuple[str, Commit]] = {}
        closed = [path for path in self._repositories() if path not in commits]
        for path, listed in commits.items():
            found |= _digests_of(path, listed, roots)
        for path in closed:
            found |= _digests_of(path, _signed_by(session_id, self._engine.read_repository(path)), roots)
        return found

    async def _refuse_unless_root(self, endpoint: str, body: bytes, header: str | None) -> Response | None:
        path = f"/goatherd/v1/{endpoint}"
        return await refuse_unless_root(self._engine, path, body, header, now_ms=self._clock.now_ms())


def _signed_by(session_id: str, commits: Iterable[Commit]) -> list[Commit]:
    return [commit for commit in commits if commit.session == session_id]


def _digests_of(path: str, commits: Iterable[Commit], roots: frozenset[str]) -> dict[bytes, tuple[str, Commit]]:
    good = [commit for commit in commits if path != SESSIONS_PATH or not claims_root(commit) or commit.key in roots]
    return {digest: (path, commit) for commit in good if (digest := commit_digest(commit)) is not None}
