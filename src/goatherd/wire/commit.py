"""Decode and encode commits in GoatDB's format, and write the text that is signed.

Pure. The format is in docs/reference/goatdb-formats.md#commits. When a commit is decoded, the `Commit` keeps it in
canonical form, because GoatDB verifies signatures over that form: members have a fixed order, and unknown members and
explicit default values are dropped. Contents whose schema is not in the registry are kept as sent.

A repository holds many commits and reads few of them. A *compact* commit (`Commit.compact`, `Commit.from_stored`) keeps
its encoded bytes, such as its line of a log, and the members by which commits are found and ordered. All other members
are decoded at each access, so code that needs several of them calls `Commit.to_decoded` first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from sys import intern
from typing import TYPE_CHECKING, Any, ClassVar, Final

import orjson

from goatherd.errors import DecodeError, EncodeError
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.encoders import check_members
from goatherd.wire.items import apply_edit, canonical_edit, canonical_record, encoded_checksum
from goatherd.wire.javascript_values import MAX_SAFE_INTEGER, is_truthy
from goatherd.wire.json import (
    json_number,
    json_string,
    nesting_depth,
    orjson_agrees,
    parse_json,
    stable_member,
    stable_stringify,
    to_json_bytes,
)
from goatherd.wire.messages import VERSION
from goatherd.wire.schema import BUILTIN, Registry

__all__ = ["ABSENT", "Commit", "apply_edit", "compact_commit", "encoded_checksum", "new_commit"]


class _AbsentText(str):
    """An empty string that stands for a member (id, key or session) that a commit does not have."""

    __slots__ = ()


ABSENT: Final = _AbsentText()
"""What stands for an absent id, key or session: empty, and left out when the commit is encoded."""


@dataclass(slots=True)
class _Decoded:
    """The members of a commit that a compact commit does not keep; see `Commit`."""

    version: int | None
    connection: str
    contents: Mapping[str, Any]
    ancestors_filter: BloomFilter | None
    ancestors_count: int
    merge_base: str | None
    merge_leader: str | None
    revert: bool
    signature: str | None


@dataclass(frozen=True, init=False)
class Commit:
    """One signed change of one item in a GoatDB repository.

    Attributes:
        id: The commit's id; any string. It is not a hash of the contents.
        key: The item's key.
        session: Id of the session that claims to have written the commit; the signature names the signer, which may
            differ.
        ts: The claimed creation time in milliseconds, an int or float. If the member is absent, this is 0 and no
            signature verifies.
        version: The writer's build version; None if the member is absent. The signature covers whether it is absent.
        org: The reader's organization id. The id that was sent is ignored.
        connection: Id of the process that wrote the commit. If the member is absent, this is empty and no signature
            verifies.
        contents: The commit's member ``c`` in canonical form: ``{"r": record}`` or ``{"b": base, "e": edit}``. Must not
            be changed.
        parents: Ids of the parent commits.
        ancestors_filter: A Bloom filter over the ids of the commit's ancestors; None if the commit has no such filter.
        ancestors_count: The number of ancestors in `ancestors_filter`.
        merge_base: Id of the merge base; None if there is none.
        merge_leader: Id of the session that led the merge; None if there is none. If this id is empty, only the member
            ``revert`` is written.
        revert: Whether the commit says that it is a revert; GoatDB writes the merge leader's id in the member
            ``revert``.
        signature: The signature string; None for an unsigned commit.
    """

    id: str
    key: str
    session: str
    ts: float
    version: int | None
    org: str
    connection: str
    contents: Mapping[str, Any]
    parents: tuple[str, ...]
    ancestors_filter: BloomFilter | None
    ancestors_count: int
    merge_base: str | None
    merge_leader: str | None
    revert: bool
    signature: str | None

    # The members of `_Decoded` are properties, which are added to the class below.
    __slots__ = ("_base", "_decoded", "_encoded", "_schema", "id", "key", "org", "parents", "session", "ts")
    if TYPE_CHECKING:
        # As class variables, so that type checkers do not take them for fields of the dataclass.
        _encoded: ClassVar[bytes | None]
        _schema: ClassVar[str | None]
        _base: ClassVar[str | None]
        _decoded: ClassVar[_Decoded | None]

    def __init__(
        self,
        *,
        id: str,  # noqa: A002 - the member's name
        key: str,
        session: str,
        ts: float,
        version: int | None,
        org: str,
        connection: str,
        contents: Mapping[str, Any],
        parents: tuple[str, ...] = (),
        ancestors_filter: BloomFilter | None = None,
        ancestors_count: int = 0,
        merge_base: str | None = None,
        merge_leader: str | None = None,
        revert: bool = False,
        signature: str | None = None,
    ) -> None:
        _set_id(self, id)
        _set_key(self, key)
        _set_session(self, session)
        _set_ts(self, ts)
        _set_org(self, org)
        _set_parents(self, parents)
        _set_encoded(self, None)
        _set_schema(self, None if "r" not in contents else contents["r"]["s"])
        _set_base(self, contents.get("b"))
        decoded = _Decoded(
            version,
            connection,
            contents,
            ancestors_filter,
            ancestors_count,
            merge_base,
            merge_leader,
            revert,
            signature,
        )
        _set_decoded(self, decoded)

    def __reduce__(self) -> tuple[Callable[[dict[str, Any]], Commit], tuple[dict[str, Any]]]:
        commit = self.to_decoded()
        return _commit_of, ({each.name: getattr(commit, each.name) for each in fields(self)},)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Return a member that a compact commit does not keep: decode it from the JSON."""
            if name in _Decoded.__slots__ and self.is_compact:
                return getattr(self.to_decoded(), name)
            raise AttributeError(name)

    @property
    def is_compact(self) -> bool:
        """Whether the commit keeps its encoded bytes instead of all its members."""
        return self._decoded is None

    # --- contents ---

    @property
    def is_delta(self) -> bool:
        return self._schema is None and (self._base is not None or "r" not in self.contents)

    @property
    def record(self) -> dict[str, Any] | None:
        """The record of a full commit (members ``s``, ``d``, ``n``, ``cs``); None for a delta."""
        return self.contents.get("r")

    @property
    def schema(self) -> str | None:
        """The schema marker of a full commit, such as ``sessions/1``; None for a delta."""
        return self._schema

    @property
    def namespace(self) -> str | None:
        """The schema's namespace of a full commit, such as ``sessions``; None for a delta."""
        schema = self.schema
        return None if schema is None else schema.partition("/")[0]

    @property
    def data(self) -> dict[str, Any] | None:
        """The encoded fields of the item in a full commit; None for a delta. Must not be changed."""
        record = self.record
        return None if record is None else record["d"]

    @property
    def checksum(self) -> str | None:
        """The checksum that a full commit states for its data, or a delta for the patched item; not verified here."""
        contents = self.contents
        checksum = contents["r"].get("cs") if "r" in contents else contents["e"].get("dc")
        return checksum if isinstance(checksum, str) else None

    @property
    def base(self) -> str | None:
        """The id of the commit on which a delta builds; None for a full commit."""
        return self._base

    @property
    def edit(self) -> dict[str, Any] | None:
        """The edit of a delta, which changes the base commit's data; None for a full commit."""
        contents = self.contents
        return None if "r" in contents else contents["e"]

    @property
    def is_finite(self) -> bool:
        """Whether all numbers in the commit's contents are finite, so that JSON can represent them."""
        for level in nesting_depth(self.contents):
            for container in level:
                values = container.values() if isinstance(container, dict) else container
                if any(isinstance(value, float) and not math.isfinite(value) for value in values):
                    return False
        return True

    def check_lasting(self, registry: Registry = BUILTIN) -> None:
        """Check that the commit's contents stay the same when they are sent, stored and read again.

        SECURITY: contents that change when they are read again (shared objects, some dates) can have a signature that
        is valid on this server and on no other (tests/unit/node/test_engine.py,
        tests/unit/door/test_request_checks.py).

        Raises:
            DecodeError: The contents would change.
        """
        again = Commit.from_json(parse_json(to_json_bytes(self.to_json())), org=self.org, registry=registry)
        if again.contents != self.contents:
            raise DecodeError(f"commit {self.id!r:.100} would have other contents when it is read again")

    # --- compact commits ---

    @classmethod
    def from_stored(cls, line: bytes, *, org: str, registry: Registry = BUILTIN) -> Commit:
        """Decode one record of a repository's log, and return the commit in compact form if possible.

        The value is that of `from_json`. The commit keeps the record's bytes, in whatever order its members are. A
        record that names another organization, or has members that no commit has, is encoded again.

        Raises:
            DecodeError: The record is not a JSON object, or not a commit that GoatDB could read.
        """
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            record = None
        # The bytes are decoded with the built-in schemas whenever a member is read.
        is_kept = type(record) is dict and record.keys() <= _MEMBERS and record.get("org") == org
        is_kept = is_kept and registry is BUILTIN
        if is_kept and (plain := _read_plain(line, record)) is not None:
            return plain
        commit = cls.from_json(parse_json(line), org=org, registry=registry)
        if is_kept:
            schema, base = commit._schema, commit._base
            schema = None if schema is None else intern(schema)
            session = intern(commit.session)
            return compact_commit(line, commit.id, commit.key, session, commit.ts, org, commit.parents, schema, base)
        commit.compact()
        return commit

    @property
    def encoded(self) -> bytes:
        """The commit's JSON as it is sent and stored.

        A compact commit keeps these bytes; others do after `keep_encoded`.
        """
        return self._encoded or to_json_bytes(self.to_json())

    def keep_encoded(self) -> bytes:
        """Return the commit's JSON as in `encoded`, and keep these bytes for `compact`.

        The bytes are kept only if decoding them gives the same commit.
        """
        if self._encoded is not None:
            return self._encoded
        members = self.to_json()
        is_plain = orjson_agrees(members)
        try:
            encoded = orjson.dumps(members) if is_plain else to_json_bytes(members)
        except orjson.JSONEncodeError:
            encoded = to_json_bytes(members)
        if ABSENT not in (self.id, self.key, self.session) and self._is_read_back(encoded, is_plain):
            _set_encoded(self, encoded)
        return encoded

    def _is_read_back(self, encoded: bytes, is_plain: bool) -> bool:
        """Return whether decoding `encoded`, the JSON of this commit, gives the same commit.

        Args:
            encoded: The commit's JSON.
            is_plain: Whether `orjson_agrees` is true for the commit's members, so that decoding does not change their
                values.
        """
        # Members that are left out because they are empty are read back as None.
        has_empty = self.merge_base == "" or self.merge_leader == "" or (self.revert and self.merge_leader is None)
        if is_plain and not has_empty and encoded.count(b"{") + encoded.count(b"[") <= _SURE_DEPTH:
            return True
        again = compact_commit(
            encoded, self.id, self.key, self.session, self.ts, self.org, self.parents, self._schema, self._base
        )
        return again.to_decoded() == self

    def compact(self) -> None:
        """Make the commit compact, so that it stores its JSON instead of decoded members.

        Nothing happens if decoding that JSON would give another commit. The commit's value stays the same.
        """
        if self.is_compact:
            return
        self.keep_encoded()
        if self._encoded is not None:
            if self._schema is not None:
                _set_schema(self, intern(self._schema))
            _set_decoded(self, None)

    def may_contain(self, text: str) -> bool:
        """Return whether some string in the commit's JSON may be `text`, without decoding the commit.

        `text` must consist of letters and digits. False means that certainly no string is `text`.
        """
        encoded = self._encoded
        return encoded is None or f'"{text}"'.encode() in encoded or b"\\u" in encoded

    def share_strings(self, key: str, parents: Sequence[Commit | None], base: Commit | None) -> None:
        """Let a compact commit use the id and key strings of other commits instead of its own copies, to save memory.

        Args:
            key: The commit's key, as a string object that other commits use.
            parents: The parent commits, in the order of this commit's `parents`; None for each that is not known.
            base: The commit on which a delta builds; None if it is not known.
        """
        if self.is_compact:
            _set_key(self, key)
            if any(parents):
                pairs = zip(self.parents, parents, strict=True)
                _set_parents(self, tuple([one if known is None else known.id for one, known in pairs]))
            if base is not None:
                _set_base(self, base.id)

    def to_decoded(self) -> Commit:
        """Return a copy of this commit with all members decoded."""
        if not self.is_compact:
            return self
        return Commit.from_json(parse_json(self.encoded), org=self.org)

    # --- JSON ---

    @classmethod
    def from_json(cls, encoded: Any, *, org: str, registry: Registry = BUILTIN, like_goatdb: bool = False) -> Commit:
        """Decode a commit from JSON and convert it to canonical form.

        Args:
            encoded: The commit as a JSON object.
            org: The reader's organization id.
            registry: The schemas that the reader knows.
            like_goatdb: Whether to behave as GoatDB does: reject an unknown schema, and accept a commit without id,
                key, session or base, or with an empty merge leader that a revert names. Otherwise the contents of an
                unknown schema are kept as sent, and a commit that cannot be stored, found or read again is rejected or
                does not verify.

        Raises:
            DecodeError: GoatDB could not read the commit, or could not write it again.
        """
        if type(encoded) is not dict:
            raise DecodeError("a commit must be a JSON object")
        check_members(encoded)
        get = encoded.get
        absent = ABSENT if like_goatdb else None
        commit_id, key, session = get("id", absent), get("k", absent), get("s", absent)
        if not isinstance(commit_id, str) or not isinstance(key, str) or not isinstance(session, str):
            raise DecodeError("a commit must have the strings id, k (its key) and s (its session)")
        parents = get("p")
        if not is_truthy(parents):
            parents = ()
        elif type(parents) is not list or not all(type(parent) is str for parent in parents):
            raise DecodeError(f"commit {commit_id!r:.100}: p (the parents) must be an array of ids")
        connection = get("cid")
        return cls(
            id=commit_id,
            key=key,
            session=session,
            ts=_read_number(_or_zero(get("ts")), "ts"),
            version=_read_integer(encoded["ver"], "ver") if "ver" in encoded else None,
            org=org,
            connection=connection if isinstance(connection, str) else "",
            contents=_read_contents(get("c"), registry, like_goatdb),
            parents=tuple(parents),
            ancestors_filter=BloomFilter.from_json(encoded["af"]) if "af" in encoded else None,
            ancestors_count=_read_integer(_or_zero(get("ac")), "ac"),
            merge_base=_read_text(get("mb"), "mb"),
            merge_leader="" if get("ml") == "" and like_goatdb else _read_text(get("ml"), "ml"),
            revert=is_truthy(get("revert")),
            signature=_read_text(get("sig"), "sig"),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the commit as a JSON object, as it is sent and stored.

        It has all members and the signature, in GoatDB's order.
        """
        if self.is_compact:
            members: dict[str, Any] = parse_json(self.encoded)
            return members
        return self._members(self.signature)

    def signed_object(self) -> dict[str, Any]:
        """Return the members of the commit that its signature covers as a JSON object: all but the signature."""
        return self._members(None)

    def _members(self, signature: str | None) -> dict[str, Any]:
        decoded = self._decoded
        if decoded is None:
            return self.to_decoded()._members(signature)
        encoded: dict[str, Any] = {} if decoded.version is None else {"ver": decoded.version}
        encoded |= {"id": self.id, "k": self.key, "s": self.session, "ts": self.ts, "org": self.org}
        if self.parents:
            encoded["p"] = list(self.parents)
        if decoded.ancestors_filter is not None:
            encoded["af"] = decoded.ancestors_filter.to_json()
        if decoded.ancestors_count:
            encoded["ac"] = decoded.ancestors_count
        encoded["c"] = decoded.contents
        if signature is not None:
            encoded["sig"] = signature
        if decoded.merge_base:
            encoded["mb"] = decoded.merge_base
        if decoded.merge_leader:
            encoded["ml"] = decoded.merge_leader
        if decoded.revert and decoded.merge_leader is not None:
            encoded["revert"] = decoded.merge_leader
        encoded["cid"] = decoded.connection
        if ABSENT in (self.id, self.key, self.session):
            encoded = {name: value for name, value in encoded.items() if value is not ABSENT}
        return encoded

    def signed_text(self, signer_id: str) -> str:
        """Return the exact string that the session `signer_id` signs for this commit.

        It is the stable form of the signer's id and `signed_object`.

        The members are joined in sorted order; tests/unit/wire/test_commit.py compares the result with
        `stable_stringify`.

        Raises:
            EncodeError: The commit's contents have a null.
        """
        decoded = self._decoded
        if decoded is None:
            return self.to_decoded().signed_text(signer_id)
        if decoded.version is None or ABSENT in (self.id, self.key, self.session):
            return stable_stringify({"extData": self.signed_object(), "sessionId": signer_id})
        # Ids as GoatDB makes them need no escaping; one test for all of them.
        ids = f"{self.id}{self.key}{self.session}{self.org}{decoded.connection}{signer_id}{''.join(self.parents)}"
        q = _quote_text if ids.isalnum() and ids.isascii() else json_string
        before = after = ""
        if decoded.ancestors_count:
            before = f'"ac":{decoded.ancestors_count},'
        if decoded.ancestors_filter is not None:
            before += f'"af":{decoded.ancestors_filter.stable_text()},'
        if decoded.merge_base or decoded.merge_leader is not None:
            before_org, after = self._merge_texts()
        else:
            before_org = ""
        if self.parents:
            parents = [q(parent) for parent in self.parents]
            after = (
                f'"p":{{"0":{parents[0]}}},{after}' if len(parents) == 1 else f'"p":{_stable_array(parents)},{after}'
            )
        ts = self.ts if type(self.ts) is int else json_number(self.ts)
        return (
            f'{{"extData":{{{before}"c":{_contents_text(decoded.contents)},"cid":{q(decoded.connection)},"id":{q(self.id)},'
            f'"k":{q(self.key)},{before_org}"org":{q(self.org)},{after}"s":{q(self.session)},'
            f'"ts":{ts},"ver":{decoded.version}}},"sessionId":{q(signer_id)}}}'
        )

    def _merge_texts(self) -> tuple[str, str]:
        """Return the merge-related members of a commit as they appear in its signed string, as two parts.

        The first part goes before the member ``org``, the second before the member ``s``.
        """
        before_org = f'"mb":{json_string(self.merge_base)},' if self.merge_base else ""
        if self.merge_leader is None:
            return before_org, ""
        leader = json_string(self.merge_leader)
        if self.merge_leader:
            before_org += f'"ml":{leader},'
        return before_org, f'"revert":{leader},' if self.revert else ""

    def with_signature(self, signature: str) -> Commit:
        """Return a copy of the commit with `signature` as its signature string."""
        return Commit(
            id=self.id,
            key=self.key,
            session=self.session,
            ts=self.ts,
            version=self.version,
            org=self.org,
            connection=self.connection,
            contents=self.contents,
            parents=self.parents,
            ancestors_filter=self.ancestors_filter,
            ancestors_count=self.ancestors_count,
            merge_base=self.merge_base,
            merge_leader=self.merge_leader,
            revert=self.revert,
            signature=signature,
        )


def _commit_of(members: dict[str, Any]) -> Commit:
    return Commit(**members)


_set_id, _set_key, _set_session, _set_ts, _set_org, _set_parents, _set_encoded, _set_schema, _set_base, _set_decoded = [
    Commit.__dict__[name].__set__
    for name in ("id", "key", "session", "ts", "org", "parents", "_encoded", "_schema", "_base", "_decoded")
]
for _name in _Decoded.__slots__:
    # Of a compact commit, `_decoded` is None, so `__getattr__` is called.
    setattr(Commit, _name, property(attrgetter(f"_decoded.{_name}")))


def compact_commit(
    encoded: bytes,
    commit_id: str,
    key: str,
    session: str,
    ts: float,
    org: str,
    parents: tuple[str, ...],
    schema: str | None,
    base: str | None,
) -> Commit:
    """Return a compact commit of these members, which must be those in `encoded`; nothing is checked.

    Args:
        encoded: The commit's JSON, as `Commit.encoded` returns it.
        commit_id: The commit's id.
        key: The item's key.
        session: Id of the commit's session.
        ts: The claimed creation time in milliseconds.
        org: The reader's organization id.
        parents: Ids of the parent commits.
        schema: The schema marker of a full commit; None for a delta.
        base: Id of the commit on which a delta builds; None for a full commit.
    """
    commit = _new_object(Commit)
    _set_decoded(commit, None)
    _set_encoded(commit, encoded)
    _set_id(commit, commit_id)
    _set_key(commit, key)
    _set_session(commit, session)
    _set_ts(commit, ts)
    _set_org(commit, org)
    _set_parents(commit, parents)
    _set_schema(commit, schema)
    _set_base(commit, base)
    return commit


_new_object: Final = object.__new__

_MEMBERS: Final = frozenset(
    {"ver", "id", "k", "s", "ts", "org", "p", "af", "ac", "c", "sig", "mb", "ml", "revert", "cid"}
)
_SURE_DEPTH: Final = 100


def _read_plain(line: bytes, record: dict[str, Any]) -> Commit | None:
    """Return the compact commit of a log's record, if it is certain that `Commit.from_json` can decode the record.

    This saves decoding almost every full commit of an application's items. The result is None for all other records.

    Args:
        line: The record's bytes.
        record: The same, parsed by the library orjson; with no other members than those of a commit.
    """
    if b"\\u" in line or b"hasOwnProperty" in line or b'"__' in line:
        return None  # an escaped name, or a member that GoatDB's encoding uses
    if line.count(b"{") + line.count(b"[") > _SURE_DEPTH:
        return None
    get = record.get
    contents, parents = get("c"), get("p")
    item = contents.get("r") if type(contents) is dict else None
    if type(item) is not dict or type(marker := item.get("s")) is not str or BUILTIN.from_marker(marker) is not None:
        return None
    if not (
        type(item.get("d")) is dict
        and type(commit_id := get("id")) is str
        and type(key := get("k")) is str
        and type(session := get("s")) is str
        and type(get("cid")) is str
        and type(get("sig")) is str
        and type(get("mb", "")) is str
        and type(get("ml", "")) is str
        and type(get("revert", "")) is str
        and type(ts := get("ts")) is int
        and 0 < ts <= MAX_SAFE_INTEGER
        and type(version := get("ver")) is int
        and 0 < version <= MAX_SAFE_INTEGER
        and type(count := get("ac", 0)) is int
        and 0 <= count <= MAX_SAFE_INTEGER
    ):
        return None
    if parents is not None and not (type(parents) is list and {str}.issuperset(map(type, parents))):
        return None
    if "af" in record:
        try:
            BloomFilter.from_json(record["af"])
        except DecodeError:
            return None
    org: str = record["org"]
    return compact_commit(line, commit_id, key, intern(session), ts, org, tuple(parents or ()), intern(marker), None)


def decode_commits(records: Iterable[Any], org: str) -> list[Commit]:
    """Decode the commits of a log or an answer, unverified; records that are not commits are left out."""
    commits = []
    for record in records:
        try:
            commits.append(Commit.from_json(record, org=org))
        except DecodeError:
            continue
    return commits


def new_commit(
    *,
    commit_id: str,
    key: str,
    session_id: str,
    ts: int,
    org: str,
    data: Mapping[str, Any],
    schema_marker: str,
    connection: str,
    parents: Sequence[str] = (),
    checksum: str | None = None,
    ancestors_filter: BloomFilter | None = None,
    ancestors_count: int = 0,
    merge_base: str | None = None,
    merge_leader: str | None = None,
    registry: Registry = BUILTIN,
) -> Commit:
    """Create an unsigned full commit.

    Args:
        data: The item's encoded fields as JSON, with dates in seconds and sets with markers. The object is not copied.
        checksum: The data's checksum; None to compute it.
        ancestors_filter: A Bloom filter over the ancestors' ids. GoatDB's own commits always have such a filter.

    Raises:
        DecodeError: The data is malformed.
        EncodeError: A value is of a kind for which GoatDB has no checksum, or a number is infinite or a date out of
            range, so that no reader could verify the commit.
    """
    if checksum is None:
        checksum = encoded_checksum(data, schema_marker, registry)
    commit = Commit(
        id=commit_id,
        key=key,
        session=session_id,
        ts=ts,
        version=VERSION,
        org=org,
        connection=connection,
        contents={"r": {"s": schema_marker, "d": data, "n": True, "cs": checksum}},
        parents=tuple(parents),
        ancestors_filter=ancestors_filter,
        ancestors_count=ancestors_count,
        merge_base=merge_base,
        merge_leader=merge_leader,
    )
    if not commit.is_finite:
        raise EncodeError("the data hold an infinite number, or a date that is out of range")
    return commit


def _quote_text(text: str) -> str:
    return f'"{text}"'


def _stable_array(texts: list[str]) -> str:
    """Return GoatDB's stable form of an array, given the stable forms of its items.

    The result is an object whose keys are the indices, sorted as strings.
    """
    order = sorted(range(len(texts)), key=str)
    return "{" + ",".join([f'"{index}":{texts[index]}' for index in order]) + "}"


def _read_contents(raw: Any, registry: Registry, like_goatdb: bool) -> dict[str, Any]:
    if type(raw) is not dict:
        raise DecodeError("a commit must have contents")
    check_members(raw)
    if "r" in raw:
        return {"r": canonical_record(raw["r"], registry, like_goatdb=like_goatdb)}
    if "e" in raw:
        edit = canonical_edit(raw["e"], registry, like_goatdb=like_goatdb)
        if "b" not in raw and like_goatdb:
            return {"e": edit}
        if not isinstance(raw.get("b"), str):
            raise DecodeError("a delta must name its base")
        return {"b": raw["b"], "e": edit}
    raise DecodeError("a commit's contents must be a record or an edit")


def _contents_text(contents: Mapping[str, Any]) -> str:
    record = contents.get("r")
    if record is None or len(record) != 4 or record.get("n") is not True or not isinstance(record.get("cs"), str):
        return stable_member(contents)
    return (
        f'{{"r":{{"cs":{json_string(record["cs"])},"d":{stable_member(record["d"])},'
        f'"n":true,"s":{json_string(record["s"])}}}}}'
    )


def _or_zero(value: Any) -> Any:
    """Return a value, or 0 in place of an absent or falsy one, as GoatDB does for some members."""
    return value if is_truthy(value) else 0


def _read_number(value: Any, member: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value in (math.inf, -math.inf):
        raise DecodeError(f"a commit's member {member} must be a number")
    return value


def _read_integer(value: Any, member: str) -> int:
    number = _read_number(value, member)
    if not abs(number) <= 2**53 or number != int(number):
        raise DecodeError(f"a commit's member {member} must be an integer")
    return int(number)


def _read_text(value: Any, member: str) -> str | None:
    if not is_truthy(value):
        return None
    if not isinstance(value, str):
        raise DecodeError(f"a commit's member {member} must be a string")
    return value
