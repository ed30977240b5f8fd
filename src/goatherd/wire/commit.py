"""Decode and encode commits in GoatDB's format, and write the text that is signed.

Pure. The format is in docs/reference/goatdb-formats.md#commits. When a commit is read, a `Commit` keeps the canonical
re-encoding that GoatDB verifies. This drops a peer's extra members, explicit defaults and order of members. Contents of
a schema that the registry does not know are kept as sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from goatherd.errors import DecodeError
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.items import apply_edit, canonical_edit, canonical_record, encoded_checksum
from goatherd.wire.javascript_values import is_truthy
from goatherd.wire.json import (
    json_number,
    json_string,
    nesting_depth,
    parse_json,
    stable_member,
    stable_stringify,
    to_json_bytes,
)
from goatherd.wire.messages import VERSION
from goatherd.wire.schema import BUILTIN, Registry

__all__ = ["ABSENT", "Commit", "apply_edit", "encoded_checksum", "new_commit"]


class _AbsentText(str):
    """Stands for the text of a member that the commit does not have."""

    __slots__ = ()


ABSENT: Final = _AbsentText()
"""What stands for an absent id, key or session: empty, and left out when the commit is encoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One signed change of one item.

    Attributes:
        id: The commit's id; any string. It is not a hash of the contents.
        key: The item's key.
        session: Id of the session that claims to have written the commit; the signature names the signer, which may
            differ.
        ts: The claimed creation time in ms, an int or float; 0 if it is absent, and then no signature verifies.
        version: The writer's build version; None if it is absent. The signature covers that too.
        org: The reader's organisation, whatever was sent.
        connection: Id of the process that wrote the commit; empty if it is absent, and then no signature verifies.
        contents: The canonical ``c``: ``{"r": record}`` or ``{"b": base, "e": edit}``. Must not be changed.
        parents: Ids of the parent commits.
        ancestors_filter: A Bloom filter over the ids of ancestors; None if there is none.
        ancestors_count: The number of ancestors in the filter.
        merge_base: Id of the merge base, or None.
        merge_leader: Id of the session that led the merge, or None. If it is empty, only `revert` is written.
        revert: Whether the commit says that it is a revert; GoatDB writes the merge leader's id in that member.
        signature: The signature string, or None.
    """

    id: str
    key: str
    session: str
    ts: float
    version: int | None
    org: str
    connection: str
    contents: Mapping[str, Any]
    parents: tuple[str, ...] = ()
    ancestors_filter: BloomFilter | None = None
    ancestors_count: int = 0
    merge_base: str | None = None
    merge_leader: str | None = None
    revert: bool = False
    signature: str | None = None

    # --- contents ---

    @property
    def is_delta(self) -> bool:
        return "r" not in self.contents

    @property
    def record(self) -> dict[str, Any] | None:
        """The record (``s``, ``d``, ``n``, ``cs``) of a full commit; None for a delta."""
        return self.contents.get("r")

    @property
    def schema(self) -> str | None:
        """The schema marker of a full commit; None for a delta."""
        return None if self.is_delta else self.contents["r"]["s"]

    @property
    def namespace(self) -> str | None:
        """The schema's namespace, such as ``sessions``; None for a delta."""
        schema = self.schema
        return None if schema is None else schema.partition("/")[0]

    @property
    def data(self) -> dict[str, Any] | None:
        """The encoded fields of a full commit; None for a delta. Must not be changed."""
        return None if self.is_delta else self.contents["r"]["d"]

    @property
    def checksum(self) -> str | None:
        """The stored checksum of a full commit, or a delta's target checksum. It is not verified here."""
        checksum = self.contents["e"].get("dc") if self.is_delta else self.contents["r"].get("cs")
        return checksum if isinstance(checksum, str) else None

    @property
    def base(self) -> str | None:
        """The id of the commit that a delta builds on; None for a full commit."""
        return self.contents.get("b")

    @property
    def edit(self) -> dict[str, Any] | None:
        """The edit of a delta; None for a full commit."""
        return self.contents["e"] if self.is_delta else None

    @property
    def is_finite(self) -> bool:
        """Whether all numbers in the contents are finite, so that JSON can represent them."""
        for level in nesting_depth(self.contents):
            for container in level:
                values = container.values() if isinstance(container, dict) else container
                if any(isinstance(value, float) and not math.isfinite(value) for value in values):
                    return False
        return True

    def check_lasting(self, registry: Registry = BUILTIN) -> None:
        """Check that the commit's contents stay the same when they are sent, stored and read again.

        SECURITY: contents that change (shared objects, some dates) can carry a signature that is valid here and nowhere
        else (tests/unit/node/test_engine.py, tests/unit/door/test_request_checks.py).

        Raises:
            DecodeError: The contents would change.
        """
        again = Commit.from_json(parse_json(to_json_bytes(self.to_json())), org=self.org, registry=registry)
        if again.contents != self.contents:
            raise DecodeError(f"commit {self.id!r:.100} would have other contents when it is read again")

    # --- JSON ---

    @classmethod
    def from_json(cls, encoded: Any, *, org: str, registry: Registry = BUILTIN, like_goatdb: bool = False) -> Commit:
        """Decode a commit and convert it to canonical form.

        Args:
            encoded: The commit as a JSON object.
            org: The reader's organisation id.
            registry: The known schemas.
            like_goatdb: Whether to behave as GoatDB does: reject an unknown schema, and accept a commit without id,
                key, session or base, or with an empty merge leader that a revert names. Otherwise the contents of an
                unknown schema are kept as sent, and a commit that cannot be stored, found or read again is rejected or
                does not verify.

        Raises:
            DecodeError: GoatDB could not read the commit, or could not write it again.
        """
        if type(encoded) is not dict:
            raise DecodeError("a commit must be a JSON object")
        get = encoded.get
        absent = ABSENT if like_goatdb else None
        commit_id, key, session = get("id", absent), get("k", absent), get("s", absent)
        if not isinstance(commit_id, str) or not isinstance(key, str) or not isinstance(session, str):
            raise DecodeError("a commit must have the strings id, k and s")
        parents = get("p")
        if not is_truthy(parents):
            parents = ()
        elif type(parents) is not list or not all(type(parent) is str for parent in parents):
            raise DecodeError(f"commit {commit_id!r:.100}: p must be an array of ids")
        raw_filter = get("af")
        connection = get("cid")
        return cls(
            id=commit_id,
            key=key,
            session=session,
            ts=_read_number(get("ts"), "ts"),
            version=_read_integer(encoded["ver"], "ver") if "ver" in encoded else None,
            org=org,
            connection=connection if isinstance(connection, str) else "",
            contents=_read_contents(get("c"), registry, like_goatdb),
            parents=tuple(parents),
            ancestors_filter=BloomFilter.from_json(raw_filter) if is_truthy(raw_filter) else None,
            ancestors_count=_read_integer(get("ac"), "ac"),
            merge_base=_read_text(get("mb"), "mb"),
            merge_leader="" if get("ml") == "" and like_goatdb else _read_text(get("ml"), "ml"),
            revert=is_truthy(get("revert")),
            signature=_read_text(get("sig"), "sig"),
        )

    def to_json(self) -> dict[str, Any]:
        """Encode the commit as it is sent and stored: all members and the signature, in GoatDB's order."""
        return self._members(self.signature)

    def signed_object(self) -> dict[str, Any]:
        """Encode the members that are signed: all but the signature."""
        return self._members(None)

    def _members(self, signature: str | None) -> dict[str, Any]:
        encoded: dict[str, Any] = {} if self.version is None else {"ver": self.version}
        encoded |= {"id": self.id, "k": self.key, "s": self.session, "ts": self.ts, "org": self.org}
        if self.parents:
            encoded["p"] = list(self.parents)
        if self.ancestors_filter is not None:
            encoded["af"] = self.ancestors_filter.to_json()
        if self.ancestors_count:
            encoded["ac"] = self.ancestors_count
        encoded["c"] = self.contents
        if signature is not None:
            encoded["sig"] = signature
        if self.merge_base:
            encoded["mb"] = self.merge_base
        if self.merge_leader:
            encoded["ml"] = self.merge_leader
        if self.revert and self.merge_leader is not None:
            encoded["revert"] = self.merge_leader
        encoded["cid"] = self.connection
        if ABSENT in (self.id, self.key, self.session):
            encoded = {name: value for name, value in encoded.items() if value is not ABSENT}
        return encoded

    def signed_text(self, signer_id: str) -> str:
        """Return the exact text that `signer_id` signs: the stable form of the signer's id and `signed_object`.

        The members are joined in sorted order; tests/unit/wire/test_commit.py compares the result with
        `stable_stringify`.

        Raises:
            EncodeError: The contents have a null.
        """
        if self.version is None or ABSENT in (self.id, self.key, self.session):
            return stable_stringify({"extData": self.signed_object(), "sessionId": signer_id})
        # Ids as GoatDB makes them need no escaping; one test for all of them.
        ids = f"{self.id}{self.key}{self.session}{self.org}{self.connection}{signer_id}{''.join(self.parents)}"
        q = _quote_text if ids.isalnum() and ids.isascii() else json_string
        before = after = ""
        if self.ancestors_count:
            before = f'"ac":{self.ancestors_count},'
        if self.ancestors_filter is not None:
            before += f'"af":{self.ancestors_filter.stable_text()},'
        if self.merge_base or self.merge_leader is not None:
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
            f'{{"extData":{{{before}"c":{_contents_text(self.contents)},"cid":{q(self.connection)},"id":{q(self.id)},'
            f'"k":{q(self.key)},{before_org}"org":{q(self.org)},{after}"s":{q(self.session)},'
            f'"ts":{ts},"ver":{self.version}}},"sessionId":{q(signer_id)}}}'
        )

    def _merge_texts(self) -> tuple[str, str]:
        """Return the parts of a merge's signed text that come before ``org`` and before ``s``."""
        before_org = f'"mb":{json_string(self.merge_base)},' if self.merge_base else ""
        if self.merge_leader is None:
            return before_org, ""
        leader = json_string(self.merge_leader)
        if self.merge_leader:
            before_org += f'"ml":{leader},'
        return before_org, f'"revert":{leader},' if self.revert else ""

    def with_signature(self, signature: str) -> Commit:
        """Return the commit with `signature` as its signature string."""
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
        data: The encoded fields (JSON; dates in seconds, sets with markers). Not copied.
        checksum: The data's checksum; None to compute it.
        ancestors_filter: GoatDB's own commits always have one.

    Raises:
        DecodeError: The data is malformed.
        EncodeError: A value has no checksum.
    """
    if checksum is None:
        checksum = encoded_checksum(data, schema_marker, registry)
    return Commit(
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


def _quote_text(text: str) -> str:
    return f'"{text}"'


def _stable_array(texts: list[str]) -> str:
    """Return the stable form of an array of ready texts: an object whose keys are sorted as strings."""
    order = sorted(range(len(texts)), key=str)
    return "{" + ",".join([f'"{index}":{texts[index]}' for index in order]) + "}"


def _read_contents(raw: Any, registry: Registry, like_goatdb: bool) -> dict[str, Any]:
    if type(raw) is not dict:
        raise DecodeError("a commit must have contents")
    if raw.get("r") is not None:
        return {"r": canonical_record(raw["r"], registry, like_goatdb=like_goatdb)}
    if raw.get("e") is not None:
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


def _read_number(value: Any, member: str) -> float:
    if not is_truthy(value):
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float) or value in (math.inf, -math.inf):
        raise DecodeError(f"a commit's {member} must be a number")
    return value


def _read_integer(value: Any, member: str) -> int:
    number = _read_number(value, member)
    if not abs(number) <= 2**53 or number != int(number):
        raise DecodeError(f"a commit's {member} must be an integer")
    return int(number)


def _read_text(value: Any, member: str) -> str | None:
    if not is_truthy(value):
        return None
    if not isinstance(value, str):
        raise DecodeError(f"a commit's {member} must be a string")
    return value
