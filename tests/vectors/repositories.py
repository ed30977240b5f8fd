"""Checks whole repository files: what a new process reads from the logs of a real instance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from goatherd.errors import DecodeError
from goatherd.identity.session import OwnedSession, Session, parse_signature, verify_commit
from goatherd.identity.strict_json import to_pretty_json
from goatherd.wire.commit import Commit
from goatherd.wire.commit_log import frame_records, scan_log
from goatherd.wire.items import apply_edit
from goatherd.wire.javascript_values import unit_key
from goatherd.wire.json import parse_json, to_json_bytes
from goatherd.wire.schema import Registry
from tests.fakes.goatdb_paths import log_file, repository_id
from tests.vectors.items import RICH_TEXT
from tests.vectors.notation import registry_of, session_of
from tests.vectors.sheet import Case, NotJudgedError, Sheet, accepts, equal, mismatch

Document = dict[str, Any]


def jsonl(document: Document, sheet: Sheet, description: Path) -> None:
    """Check a description and the log files beside it.

    Args:
        description: The path of the description's own file.
    """
    registry = registry_of(document)
    sessions = {each["id"]: session_of(each) for each in document.get("sessions") or []}
    if "settings_json" in document:
        sheet.case("settings_json", lambda: _settings(document["settings_json"], sessions))
    for repository in document.get("repositories") or []:
        reader = _Reader(repository, registry, document.get("org", "localhost"), sessions, description)
        label = str(repository.get("path"))
        sheet.case(f"{label} file", reader.check_file)
        sheet.each(f"{label} commits", repository.get("commits"), reader.check_commit)
        sheet.each(f"{label} items", repository.get("items"), reader.check_item)


def log_path(repository: dict[str, Any], description: Path) -> Path:
    """Return the path of a repository's log: its ``file`` is relative to the description's parent or its
    grandparent."""
    named = Path(str(repository["file"]))
    for base in (description.parent.parent, description.parent):
        if (base / named).is_file():
            return base / named
    return description.parent / named.name


def _settings(text: str, sessions: dict[str, Session]) -> None:
    settings = parse_json(text)
    equal("settings text", text, to_pretty_json(settings).decode())
    current = OwnedSession.from_json(settings["currentSession"])
    equal("current session is known", True, current.id in sessions)
    equal("current session's key", sessions[current.id].public_key.raw.hex(), current.session.public_key.raw.hex())


class _Reader:
    """One repository's log, read once, at the first case that needs it."""

    def __init__(
        self,
        repository: dict[str, Any],
        registry: Registry,
        org: str,
        sessions: dict[str, Session],
        description: Path,
    ) -> None:
        self._repository = repository
        self._registry = registry
        self._org = org
        self._sessions = sessions
        self._description = description
        self._commits: dict[str, Commit] | None = None
        self._data = b""

    def _load(self) -> dict[str, Commit]:
        if self._commits is None:
            self._data = log_path(self._repository, self._description).read_bytes()
            commits: dict[str, Commit] = {}
            for record in scan_log(self._data).records:
                commit = Commit.from_json(record, org=self._org, registry=self._registry, like_goatdb=True)
                commits.setdefault(commit.id, commit)
            self._commits = commits
        return self._commits

    def check_file(self) -> None:
        self._load()
        equal("bytes", self._repository["bytes"], len(self._data))
        if "path_in_data_dir" in self._repository:
            path = log_file(repository_id(self._repository["path"]))
            equal("path_in_data_dir", self._repository["path_in_data_dir"], path)
        found = scan_log(self._data)
        equal("damage", None, found.damage)
        equal("number of commits", len(self._repository["commits"]), len(found.records))
        if frame_records(found.records) != self._data:
            mismatch("file written anew", self._data, frame_records(found.records))
        for record in found.records:
            sent = Commit.from_json(record, org=self._org, registry=self._registry).to_json()
            equal("record written anew", record, parse_json(to_json_bytes(sent)))

    def check_commit(self, c: Case) -> None:
        commits = self._load()
        commit = commits.get(c["id"])
        if commit is None:
            mismatch("commit", c["id"], None)
        equal("key", c["key"], commit.key)
        equal("kind", c["kind"], "delta" if commit.is_delta else "full")
        equal("age", c["age"], list(commits).index(commit.id) + 1)
        equal("signed", c["signed"], commit.signature is not None)
        equal("parents", c["parents"], list(commit.parents))
        equal("merge_base", c["merge_base"], commit.merge_base)
        equal("merge_leader", c["merge_leader"], commit.merge_leader)
        equal("verifies", c["verifies"], accepts(lambda: self._verify(commit, self._signer(commit))))
        claimed = accepts(lambda: self._verify(commit, self._sessions.get(commit.session)))
        equal("verifies_claimed_session", c["verifies_claimed_session"], claimed)
        equal("corrupted", c["corrupted"], self._is_corrupted(commit))

    def check_item(self, c: Case) -> None:
        own = [commit for commit in self._load().values() if commit.key == c["key"]]
        parents = {parent for commit in self._load().values() for parent in commit.parents}
        own.sort(key=lambda commit: (commit.ts, unit_key(commit.id)), reverse=True)
        leaves = [commit.id for commit in own if commit.id not in parents]
        equal("commit_count", c["commit_count"], len(own))
        equal("leaves", c["leaves"], leaves)
        if len(leaves) == 1:
            equal("head", c["head"], leaves[0])
        record = self._value(self._load()[c["head"]], own)
        equal("item", c["item"], record)
        if "deleted" in c:
            equal("deleted", c["deleted"], record["d"].get("isDeleted") is True)

    def _signer(self, commit: Commit) -> Session | None:
        return self._sessions.get(parse_signature(commit.signature or "").session_id)

    def _verify(self, commit: Commit, session: Session | None) -> None:
        if session is None:
            raise DecodeError("unknown session")
        verify_commit(session, commit)

    def _is_corrupted(self, commit: Commit) -> bool:
        return commit.is_delta and not accepts(lambda: self._record(commit))

    def _record(self, commit: Commit) -> dict[str, Any]:
        if commit.record is not None:
            return commit.record
        edit = commit.edit or {}
        if any(change["__v"]["changeType"] == "rt" for changes in edit["c"].values() for change in changes):
            raise NotJudgedError(RICH_TEXT)
        base = self._load().get(commit.base or "")
        if base is None:
            raise DecodeError("the base is missing")
        return apply_edit(self._record(base), edit, self._registry)

    def _value(self, head: Commit, own: list[Commit]) -> dict[str, Any]:
        """Return the head's record, or the newest that is intact."""
        for commit in (head, *own):
            if accepts(lambda commit=commit: self._record(commit)):  # type: ignore[misc]
                return self._record(commit)
        return {"s": "null", "d": {}, "n": False, "cs": "3320765784"}
