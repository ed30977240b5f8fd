"""Parse the JSON answers of servers, and check their form, so that other code need not check it again.

The module does not check whether an answer is true: a server can report anything, and only signatures prove something.
It does no I/O.

Rules:
1. A missing member means "not known" (None). A member of another type, or out of its limits, makes the whole answer
   invalid: `DecodeError`, which `goatherd.cluster.client` reports as that server's failure.
2. Every value can be shown and stored: a string is printable and at most `LONGEST_TEXT` characters long; a number or a
   duration can be computed with and written as JSON.
3. Unknown members are ignored: a newer server may send them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

from goatherd.errors import DecodeError
from goatherd.wire.messages import SyncMessage

T = TypeVar("T")

LONGEST_TEXT: Final = 200
MOST_ENTRIES: Final = 10_000
"""Maximum number of entries of a list in an answer about an identity."""
LAST_TIME: Final = 253_402_300_799_999
"""The end of the year 9999, in milliseconds since 1970."""

_MOST_COUNT: Final = 2**53 - 1
_MOST_SIGNERS: Final = 100
_FROM_FILE: Final = "file"
_ACTIVITIES: Final = {
    "starting": "is being started by its agent",
    "restarting": "is being restarted by its agent",
    "stopped": "has ended; its agent starts it again",
}


def make_printable(text: str) -> str:
    """Return a string that is safe to show on a terminal: shortened, and with ``?`` for unprintable characters."""
    short = text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
    return short if short.isprintable() else "".join([char if char.isprintable() else "?" for char in short])


@dataclass(frozen=True, slots=True, kw_only=True)
class LogsReport:
    """A server's report on its logs: whether it has read all of them, and how many records it cannot use.

    Attributes:
        is_complete: Whether it has read all logs.
        records: Number of records that it has read.
        damaged: Number of records that are not commits.
        unverifiable: Number of commits whose signature is wrong, or whose signer is unknown at present.
        unwritable: Number of logs to which it cannot write.
    """

    is_complete: bool
    records: int
    damaged: int
    unverifiable: int
    unwritable: int = 0

    def to_json(self) -> dict[str, object]:
        """Return the report as a JSON object that contains only numbers and booleans."""
        return {
            "complete": self.is_complete,
            "records": self.records,
            "damaged": self.damaged,
            "unverifiable": self.unverifiable,
            "unwritable": self.unwritable,
        }

    @property
    def cannot_write(self) -> str | None:
        """A phrase with the number of logs to which the server cannot write; None if it can write to all."""
        return f"storage: {self.unwritable} of its logs cannot be written" if self.unwritable else None

    @property
    def unusable(self) -> str | None:
        """A phrase with the numbers of records that the server cannot use, by reason; None if it can use all."""
        parts = [
            f"{count} {what}"
            for count, what in ((self.damaged, "damaged"), (self.unverifiable, "unverifiable"))
            if count
        ]
        return f"unusable records in its logs: {' and '.join(parts)}" if parts else None


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorReport:
    """An agent's report on the door, the verifying proxy in front of its server.

    Attributes:
        passed_on: Number of requests that the door passed on and the server answered; None if not reported.
        stopped: Number of requests that the door rejected, for all reasons; None if not reported.
        is_exposed: Whether clients could reach the server directly, without the door.
    """

    passed_on: int | None
    stopped: int | None
    is_exposed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentReport:
    """An agent's report on the unmodified server that it runs.

    Attributes:
        state: ``starting``, ``serving``, ``restarting`` or ``stopped``.
        started: Id of the root with which the server was started.
        restarts: How often the agent has restarted the server.
        pending: The reasons why the server is to be restarted; empty if it is not.
        problem: Code of the error for which the agent cannot restart the server now; None if there is none.
        checked_ms: When the agent last checked that the server does not expose a private key, in milliseconds since
            1970; None if it has not.
        check_commit: Id of the commit by which the server introduced the session created for that check.
        door: The report on the door, a verifying proxy in front of the server; None without one.
    """

    state: str | None
    started: str | None
    restarts: int | None
    pending: tuple[str, ...]
    problem: str | None
    checked_ms: int | None
    check_commit: str | None
    door: DoorReport | None

    @property
    def is_down(self) -> bool:
        """Whether the server is not expected to answer now, because it is being started or restarted, or has ended."""
        return self.state in _ACTIVITIES

    @property
    def activity(self) -> str | None:
        """What the agent is doing with the server, as a human-readable phrase; None if the server simply runs."""
        if self.state in _ACTIVITIES:
            return _ACTIVITIES[self.state or ""]
        if self.pending and self.problem is not None:
            return f"cannot be restarted by its agent now: {self.problem} (the agent's log says more)"
        return "waits for its turn to restart" if self.pending else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerReport:
    """A server's report on one of its peers.

    Attributes:
        is_online: Whether the peer's last answer was valid; None before the first answer.
        instances: Ids of the server processes that have recently answered at the peer's URL.
        url: The peer's URL; None in a report to a caller that no root has authorized.
    """

    is_online: bool | None
    instances: tuple[str, ...]
    url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RootSignerReport:
    """A server's report on one of its signers: a key in an HSM or a KMS with which it can sign as a root (direct mode).

    Attributes:
        fingerprint: Fingerprint of the signer's public key; None while the server does not know it.
        problem: Code of the error because of which the signer does not sign; None if it signs.
    """

    fingerprint: str | None
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerIdentity:
    """The answer to ``GET /goatherd/v1/identity``: an unsigned report of a Goatherd server or an agent.

    Below, "it" is the server: the Goatherd server itself, or the unmodified server that the agent runs. None means that
    the value is not reported.

    Attributes:
        org: Id of the organization.
        signer: Id of the session with which the server signs; an agent reports it after it has asked its server.
        roots: Ids of the roots that it trusts.
        revoked: Ids of the sessions that it rejects as revoked.
        generation: Generation of the identity that it uses; None if that is from a settings.json.
        has_seen_signed: Whether it rejects an identity document that is not signed.
        digest: SHA-256 of the text of the identity that it uses, hexadecimal; None if that is from a settings.json.
        phase: Phase of the rotation that it knows of.
        view_age: How long ago the source of its identity last gave a valid answer.
        view_interval: Longest time between two reads of the store.
        says_interval: Whether it reports `view_interval`. If it does, a `view_interval` of None means that it reads the
            store only when asked to.
        is_watching: Whether the store notifies it of changes.
        is_degraded: Whether the last read of the source failed, or its result was rejected.
        source: Where its identity comes from.
        refusal: Code of the error because of which it is degraded; None if it is not.
        data: The result of the check of its logs.
        instance: Id of the server process.
        peers: The peers that it synchronizes with; None if it does not report them.
        now_ms: Its time, in milliseconds since 1970.
        version: Version of Goatherd, of the server or of its agent; None if it does not report it.
        region: The region in which it stands; None if it reports none.
        store_region: The region of the store from which it read its identity last; None with a single store.
        store_version: The store's id of the version that it read last.
        stores_not_followed: Regions whose store did not answer it, or holds an earlier identity than it uses.
        root_signers: The signers with which it can sign as a root; None if it cannot use a root whose key is in an HSM
            or a KMS, or does not report it.
        signing_problem: Code of the error because of which it cannot sign as the current root; None if it can.
        has_key_on_disk: Whether its data directory holds a settings.json, and so a private key, although its identity
            is from a store.
        agent: The report of its agent; None if a Goatherd server answers.
    """

    org: str | None = None
    signer: str | None = None
    roots: tuple[str, ...] | None = None
    revoked: tuple[str, ...] | None = None
    generation: int | None = None
    has_seen_signed: bool = False
    digest: str | None = None
    phase: str | None = None
    view_age: timedelta | None = None
    view_interval: timedelta | None = None
    says_interval: bool = False
    is_watching: bool = False
    is_degraded: bool | None = None
    source: str | None = None
    refusal: str | None = None
    data: LogsReport | None = None
    instance: str | None = None
    peers: tuple[PeerReport, ...] | None = None
    now_ms: int | None = None
    version: str | None = None
    region: str | None = None
    store_region: str | None = None
    store_version: str | None = None
    stores_not_followed: tuple[str, ...] = ()
    root_signers: tuple[RootSignerReport, ...] | None = None
    signing_problem: str | None = None
    has_key_on_disk: bool = False
    agent: AgentReport | None = None

    @property
    def is_from_file(self) -> bool:
        """Whether the server's identity is from a settings.json, not from a store."""
        return self.source == _FROM_FILE

    @classmethod
    def from_json(cls, answer: object) -> ServerIdentity | None:
        """Parse the JSON of an answer; None if it is that of neither a Goatherd server nor an agent.

        Raises:
            DecodeError: The answer has the members of a Goatherd server or an agent, but one of them is invalid.
        """
        if not isinstance(answer, Mapping) or (answer.get("signer") is None and answer.get("agent") is None):
            return None
        read = _Members(answer)
        refusal = read.of("refusal", _read_mapping)
        agent = read.of("agent", _read_agent)
        signer = read.of("signer", _read_id)
        source, generation, digest = (
            read.of("source", _read_id),
            read.of("generation", _read_count),
            read.of("digest", _read_digest),
        )
        if source == _FROM_FILE:
            # Not comparable with the store's: GoatDB's form of a settings.json has no generations.
            generation = digest = None
        return cls(
            org=read.of("org", _read_id),
            signer=signer,
            roots=read.of("roots", _read_ids),
            revoked=read.of("revoked", _read_ids),
            generation=generation,
            has_seen_signed=read.of("signed", _read_bool) is True,
            digest=digest,
            phase=read.of("phase", _read_id),
            view_age=read.of("viewAgeMs", _read_duration),
            view_interval=read.of("viewIntervalMs", _read_duration),
            says_interval="viewIntervalMs" in answer,
            is_watching=read.of("watching", _read_bool) is True,
            is_degraded=read.of("degraded", _read_bool),
            source=source,
            refusal=None if refusal is None else _Members(refusal, "refusal.").of("code", _read_id),
            data=read.of("data", _read_logs),
            instance=read.of("instance", _short_id),
            peers=read.of("peers", _read_peers),
            now_ms=read.of("nowMs", _read_time),
            version=read.of("version", _short_id),
            region=read.of("region", _read_id),
            store_region=read.of("storeRegion", _read_id),
            store_version=read.of("storeVersion", _read_id),
            stores_not_followed=read.of("storesNotFollowed", _read_ids) or (),
            root_signers=read.of("rootSigners", _root_signers),
            signing_problem=read.of("signingProblem", _read_id),
            has_key_on_disk=read.of("keyOnDisk", _read_bool) is True,
            agent=agent,
        )


@dataclass(frozen=True, slots=True)
class HeldCommit:
    """A server's description of a commit that it holds; unverified.

    Attributes:
        digest: Digest of the commit, hexadecimal.
        path: The repository.
        key: The item; in ``/sys/sessions`` the id of the session that it introduces.
        ts: The time that its author gave it, in milliseconds since 1970; None if that is no time.
    """

    digest: str
    path: str
    key: str
    ts: int | None

    @classmethod
    def from_json(cls, found: object) -> HeldCommit:
        """Parse a server's description of one commit that it holds.

        An attacker may have written the commit, so its strings are made safe to print.

        Raises:
            DecodeError: The description is not an object, or the digest, the path or the key is missing or no string.
        """
        values = _read_mapping(found)
        read, ts = _Members(values), values.get("ts")
        digest, path, key = read.of("digest", _read_string), read.of("path", _read_string), read.of("key", _read_string)
        if digest is None or path is None or key is None:
            raise DecodeError("a commit must have a digest, a path and a key")
        is_time = isinstance(ts, int | float) and not isinstance(ts, bool) and 0 <= ts <= LAST_TIME
        return cls(digest, make_printable(path), make_printable(key), int(values["ts"]) if is_time else None)


def read_sync_reply(answer: object) -> dict[str, Any]:
    """Check the form of a server's reply to a sync message, and return it.

    Its commits must be objects, its Bloom filter must be decodable, and its number of commits in range. The commits
    themselves are not checked: the caller decodes each, and leaves out those that cannot be decoded.

    Raises:
        DecodeError: The reply is invalid.
    """
    reply = dict(_read_mapping(answer))
    read = _Members(reply)
    commits = read.of("c", _read_list)
    if commits is not None and not all(isinstance(one, dict) for one in commits):
        raise DecodeError("c: every entry must be an object")
    if (size := read.of("s", _read_number)) is not None and not 0 <= size <= _MOST_COUNT:
        raise DecodeError(f"s: must be a number from 0 to {_MOST_COUNT}")
    if "f" in reply:
        SyncMessage.from_json(reply)
    return reply


def read_texts(answer: object, member: str) -> list[str]:
    """Return the member named `member` of a server's answer, which must be a list of strings.

    Raises:
        DecodeError: The member is missing or invalid.
    """
    found = _Members(_read_mapping(answer)).of(member, _read_list)
    if found is None or not all(isinstance(one, str) for one in found):
        raise DecodeError(f"{member} must be a list of strings")
    return found


def read_entries(answer: object, member: str) -> list[Any]:
    """Return the member named `member` of a server's answer, which must be a list.

    Raises:
        DecodeError: The member is missing or not a list.
    """
    found = _Members(_read_mapping(answer)).of(member, _read_list)
    if found is None:
        raise DecodeError(f"{member} must be a list")
    return found


def read_peers(answer: object) -> tuple[PeerReport, ...]:
    """Parse the answer to ``POST /goatherd/v1/peers``.

    Raises:
        DecodeError: The answer is invalid.
    """
    return _Members(_read_mapping(answer)).of("peers", _read_peers) or ()


def read_refresh(answer: object) -> dict[str, Any]:
    """Parse the answer to ``POST /goatherd/v1/refresh``; return its members ``generation`` and ``changed``, if present.

    Raises:
        DecodeError: The answer is invalid.
    """
    read = _Members(_read_mapping(answer))
    found = {"generation": read.of("generation", _read_count), "changed": read.of("changed", _read_bool)}
    return {name: value for name, value in found.items() if value is not None}


# --- members --------------------------------------------------------------------------------------------------------


_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class _Members:
    """The members of a JSON object in a server's answer, which `of` parses one by one."""

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self._values = values
        self._where = where

    def of(self, name: str, read: Callable[[Any], T]) -> T | None:
        """Return the member named `name`, as parsed by the function `read`; None if the member is missing or null.

        Raises:
            DecodeError: The member is invalid; the message names the member and not its value.
        """
        value = self._values.get(name)
        if value is None:
            return None
        try:
            return read(value)
        except DecodeError as error:
            raise DecodeError(f"{self._where}{name}: {error}") from None


def _read_mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DecodeError("must be an object")
    return value


def _read_list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise DecodeError("must be a list")
    return value


def _read_entries(value: object) -> list[Any]:
    found = _read_list(value)
    if len(found) > MOST_ENTRIES:
        raise DecodeError(f"must not have more than {MOST_ENTRIES} entries")
    return found


def _read_digest(value: object) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise DecodeError("must be a SHA-256 digest: 64 hexadecimal digits")
    return value


def _read_string(value: object) -> str:
    if not isinstance(value, str):
        raise DecodeError("must be a string")
    return value


def _read_id(value: object) -> str:
    text = _read_string(value)
    if not text or len(text) > LONGEST_TEXT or not text.isprintable():
        raise DecodeError(f"must be a short printable string: 1 to {LONGEST_TEXT} characters")
    return text


def _short_id(value: object) -> str:
    text = _read_id(value)
    if len(text) > 64:
        raise DecodeError("must not be longer than 64 characters")
    return text


def _read_ids(value: object) -> tuple[str, ...]:
    return tuple([_read_id(one) for one in _read_entries(value)])


def _read_bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise DecodeError("must be true or false")
    return value


def _read_number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DecodeError("must be a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise DecodeError("must be a finite number")
    return value


def _read_count(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _MOST_COUNT:
        raise DecodeError("must be a count")
    return value


def _read_time(value: object) -> int:
    if type(value) is not int or not 0 <= value <= LAST_TIME:
        raise DecodeError("must be a timestamp, in milliseconds since 1970")
    return value


def _read_duration(value: object) -> timedelta:
    number = _read_number(value)
    if not 0 <= number <= LAST_TIME:
        raise DecodeError("must be a duration, in milliseconds")
    return timedelta(milliseconds=number)


def _read_logs(value: object) -> LogsReport:
    read = _Members(_read_mapping(value))
    records, damaged, unverifiable = (read.of(name, _read_count) for name in ("records", "damaged", "unverifiable"))
    if records is None or damaged is None or unverifiable is None:
        raise DecodeError("must contain the counts records, damaged and unverifiable")
    is_complete = read.of("complete", _read_bool) is True
    unwritable = read.of("unwritable", _read_count) or 0  # servers of 0.1.0 do not report it
    return LogsReport(
        is_complete=is_complete, records=records, damaged=damaged, unverifiable=unverifiable, unwritable=unwritable
    )


def _root_signers(value: object) -> tuple[RootSignerReport, ...]:
    reports = []
    for entry in _read_list(value)[:_MOST_SIGNERS]:
        read = _Members(_read_mapping(entry))
        reports.append(
            RootSignerReport(fingerprint=read.of("fingerprint", _read_id), problem=read.of("problem", _read_id))
        )
    return tuple(reports)


def _read_peers(value: object) -> tuple[PeerReport, ...]:
    found = []
    for one in _read_entries(value):
        read = _Members(_read_mapping(one))
        instances = tuple([_short_id(each) for each in read.of("instances", _read_entries) or ()])
        url = read.of("url", _read_id)
        found.append(PeerReport(is_online=read.of("online", _read_bool), instances=instances, url=url))
    return tuple(found)


def _read_agent(value: object) -> AgentReport:
    read = _Members(_read_mapping(value))
    check, pending = read.of("leakCheck", _read_mapping), read.of("pending", _read_entries)
    found = None if check is None else _Members(check, "leakCheck.")
    return AgentReport(
        state=read.of("state", _read_id),
        started=read.of("started", _read_id),
        restarts=read.of("restarts", _read_count),
        pending=tuple([make_printable(_read_string(one)) for one in pending or ()]),
        problem=read.of("problem", _read_id),
        checked_ms=None if found is None else found.of("atMs", _read_time),
        check_commit=None if found is None else found.of("commit", _read_id),
        door=read.of("door", _read_door),
    )


def _read_door(value: object) -> DoorReport:
    read = _Members(_read_mapping(value))
    stopped = read.of("stopped", _read_mapping)
    return DoorReport(
        passed_on=read.of("passedOn", _read_count),
        stopped=None if stopped is None else sum(_read_count(one) for one in stopped.values()),
        is_exposed=read.of("exposed", _read_bool) is True,
    )
