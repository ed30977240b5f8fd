"""Remove private keys from the server's answers before the door (reverse proxy) passes them on. Pure.

The answer to ``POST /auth/session`` is small: `filter_session_answer` parses it and reduces its list of roots to the
public keys of trusted roots. Any other JSON streams through a `KeyFilter`, which overwrites the private part of every
key with as many other characters, so that ``Content-Length`` stays valid and no answer has to be buffered.

Rules: data without keys passes unchanged. A key is a JSON object with the members ``kty`` and ``d``, also where that
object is serialized inside a JSON string. In answers of ``/batch-sync`` only the keys of roots are overwritten: the
rest is signed data of users.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from goatherd.crypto import PublicKey
from goatherd.errors import DecodeError
from goatherd.wire.batch import RawCommits, split_batch
from goatherd.wire.json import parse_json, to_json_bytes
from goatherd.wire.paths import SESSIONS_PATH

PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
HOLD_BYTES = 64 * 1024

# SECURITY: users choose the bytes that these patterns search, and the door searches them with every answer. So each
# pattern takes time in proportion to the text: no match attempt can begin inside text that has just failed to match
# (tests/unit/door/test_key_filter.py).
_OBJECT = re.compile(rb"\{[^{}]*\}")
_PRIVATE = re.compile(rb'("d\\*"\s*:\s*\\*")([A-Za-z0-9_=+/-]+)')
_X = re.compile(rb'"x\\*"\s*:\s*\\*"([A-Za-z0-9_-]+)')

IsTrusted = Callable[[str, PublicKey], bool]


class KeyFilter:
    """Overwrite private keys in a stream of JSON.

    Args:
        only: The ``x`` coordinates (base64url) of the keys to overwrite; None overwrites every key.
    """

    def __init__(self, only: frozenset[bytes] | None = None) -> None:
        self._only = only
        self._held = b""
        self.found = 0
        """How many private keys were overwritten."""

    def feed(self, chunk: bytes) -> bytes:
        """Filter the next part of the stream; return the data that can be sent: all but an incomplete JSON object."""
        data = self._held + chunk if self._held else chunk
        # A JWK holds no other object, so only what begins at the last brace can still become one.
        start = data.rfind(b"{")
        if start < 0 or data.find(b"}", start) >= 0 or len(data) - start > HOLD_BYTES:
            self._held = b""
            return self._hide_keys(data)
        self._held = data[start:]
        return self._hide_keys(data[:start])

    def close(self) -> bytes:
        """Return the filtered rest of the JSON stream, at its end."""
        data, self._held = self._held, b""
        return self._hide_keys(data)

    def _hide_keys(self, data: bytes) -> bytes:
        if b"kty" not in data or (self._only is not None and not any(x in data for x in self._only)):
            return data
        return _OBJECT.sub(self._hide_key, data)

    def _hide_key(self, match: re.Match[bytes]) -> bytes:
        text = match[0]
        if b"kty" not in text:
            return text
        if self._only is not None:
            x = _X.search(text)
            if x is None or x[1] not in self._only:
                return text
        cleaned, count = _PRIVATE.subn(lambda found: found[1] + b"A" * len(found[2]), text)
        self.found += count
        return cleaned


def filter_session_answer(body: bytes, is_trusted: IsTrusted) -> tuple[bytes | None, list[str], list[str]]:
    """Return the answer to ``POST /auth/session`` without private keys and untrusted roots.

    Args:
        body: The server's answer.
        is_trusted: Returns whether clients may learn of a root, given its id and public key.

    Returns:
        The body, the same object if nothing had to change, None if no root is left; the ids of the roots that came
        with a private key; the ids of the roots that were left out, because no trusted root introduces them or they are
        revoked.

    Raises:
        DecodeError: The body is not such an answer.
    """
    answer = parse_json(body)
    if not isinstance(answer, dict) or not isinstance(answer.get("session"), dict):
        raise DecodeError("the answer of /auth/session must contain a session")
    raw_roots = answer.get("roots")
    if not isinstance(raw_roots, list):
        raise DecodeError("the answer of /auth/session must contain a list of roots")
    leaked: list[str] = []
    untrusted: list[str] = []
    roots: list[dict[str, Any]] = []
    for raw in raw_roots:
        if not isinstance(raw, dict) or not isinstance(raw.get("id"), str):
            raise DecodeError("a root in the answer of /auth/session must be an object with an id")
        key = raw.get("publicKey")
        public = PublicKey.from_jwk(key if isinstance(key, Mapping) else {})
        if "privateKey" in raw or (isinstance(key, Mapping) and "d" in key):
            leaked.append(raw["id"])
        if not is_trusted(raw["id"], public):
            untrusted.append(raw["id"])
            continue
        roots.append(_public_members(raw, ("id", "publicKey", "owner", "expiration")))
    session = _public_members(answer["session"], ("publicKey", "id", "owner", "expiration"))
    cleaned = {"session": session, "roots": roots}
    if not roots:
        return None, leaked, untrusted
    return (body if cleaned == answer else to_json_bytes(cleaned)), leaked, untrusted


_CLAIMS_ROOT = re.compile(rb'"owner"\s*:\s*"root"')


class _SessionCommits(RawCommits):
    """The commits of one element of an answer of ``/batch-sync``, unparsed, except those that introduce roots."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.introductions: dict[int, dict[str, Any]] = {}
        self.unreadable: set[int] = set()

    def find_introductions(self) -> None:
        """Parse the commits that introduce roots, into `introductions`.

        Those that may introduce a root, but cannot be parsed, are in `unreadable`, and are not sent to clients.

        Raises:
            DecodeError: The array has other items than commits.
        """
        for index in range(len(self)):
            if _CLAIMS_ROOT.search(self.text(index)):
                try:
                    commit = self[index]
                except DecodeError:  # nested too deeply, such as a client can have sent past the door
                    self.unreadable.add(index)
                else:
                    if _claims_root(commit):
                        self.introductions[index] = commit
        if (self.introductions or self.unreadable) and self.other:
            raise DecodeError("commits in an answer of /batch-sync must be objects")

    def replace_introductions(self, chosen: Sequence[dict[str, Any]]) -> tuple[int, int, bytes] | None:
        """Return two offsets of the body and the text to put between them; None if nothing changes."""
        found = self.introductions
        if not self.unreadable and list(found) == list(range(len(chosen))) and list(found.values()) == list(chosen):
            return None
        others = [self.text(index) for index in range(len(self)) if index not in found and index not in self.unreadable]
        return self._starts[0], self._ends[-1], b",".join([*map(to_json_bytes, chosen), *others])


class SyncAnswer:
    """An answer of the server to ``/batch-sync``, with the commits in it that introduce roots.

    It takes long to make and to encode if it is large, so both may be done in a thread. The other commits are not
    parsed all at once, since that would hold up other threads, too.

    Args:
        body: The answer's body.

    Attributes:
        introductions: The commits that introduce roots, whether these are trusted or not, for each element of the
            answer that has some, or has one that cannot be read.

    Raises:
        DecodeError: The body is not such an answer.
    """

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._lists: list[_SessionCommits] = []
        # Most answers introduce no root, and need not be read.
        if _CLAIMS_ROOT.search(body) is not None:
            elements, lists = split_batch(body, sys.maxsize, _SessionCommits)
            for commits in [lists[number] for number in _session_lists(elements)]:
                commits.find_introductions()
                if commits.introductions or commits.unreadable:
                    self._lists.append(commits)
        self.introductions = [list(commits.introductions.values()) for commits in self._lists]

    def encode(self, chosen: Sequence[Sequence[dict[str, Any]]], keys: KeyFilter) -> bytes:
        """Return the body to send to the client.

        Args:
            chosen: For each item of `introductions`, the commits to send in its place. They come before the element's
                other commits.
            keys: Overwrites private keys.
        """
        parts: list[bytes] = []
        sent = 0
        for commits, introductions in zip(self._lists, chosen, strict=True):
            if (change := commits.replace_introductions(introductions)) is not None:
                start, end, text = change
                parts += [self._body[sent:start], text]
                sent = end
        body = b"".join([*parts, self._body[sent:]]) if parts else self._body
        return keys.feed(body) + keys.close()


def _session_lists(elements: Sequence[Any]) -> list[int]:
    """Return the numbers of the lists of commits for `SESSIONS_PATH` in an answer that `split_batch` has split."""
    found = []
    for element in elements:
        if not isinstance(element, dict) or not isinstance(element.get("path"), str):
            raise DecodeError("an element of an answer of /batch-sync must be an object with a path")
        message = element.get("res")
        path = "/" + element["path"].strip("/").lower()
        if path.startswith(SESSIONS_PATH) and isinstance(message, dict) and isinstance(message.get("c"), list):
            found.append(message["c"][0])
    return found


def _claims_root(commit: Any) -> bool:
    try:
        return bool(commit["c"]["r"]["d"]["owner"] == "root") and isinstance(commit["k"], str)
    except (LookupError, TypeError):
        return False


_CONFIG = re.compile(rb"(?:;\r?\n|)globalThis\.GoatDBConfig = ")


def script_with_server_url(script: bytes, rename: Callable[[bytes], bytes]) -> bytes:
    """Return an application's script with another `serverURL` in the configuration that GoatDB puts in front of it.

    COMPAT: GoatDB puts ``;\\nglobalThis.GoatDBConfig = {...};\\n;`` on lines of their own before the application's
    code.

    Args:
        script: The body of an answer to ``GET .../app.js``.
        rename: Returns the address that takes the place of the server's own.

    Returns:
        The script; the same object if nothing had to change.
    """
    first, newline, rest = script.partition(b"\n")
    line, end, code = rest.partition(b"\n")
    match = _CONFIG.match(line)
    if first != b";" or match is None:
        return script
    statement = line[match.end() :].decode("utf-8", "surrogateescape")
    try:
        config, length = json.JSONDecoder().raw_decode(statement)
    except (ValueError, RecursionError):
        return script
    address = config.get("serverURL") if isinstance(config, dict) else None
    if not isinstance(address, str) or not statement.startswith(";", length):
        return script
    renamed = rename(address.encode("utf-8", "replace")).decode("utf-8", "replace")
    if renamed == address:
        return script
    config["serverURL"] = renamed
    text = json.dumps(config, separators=(",", ":")) + statement[length:]
    return first + newline + match[0] + text.encode("utf-8", "surrogateescape") + end + code


def _public_members(session: Mapping[str, Any], members: tuple[str, ...]) -> dict[str, Any]:
    """Return those of the given `members` that a session has, in the order in which the server wrote them."""
    public = {name: value for name, value in session.items() if name in members}
    key = public.get("publicKey")
    if isinstance(key, Mapping):
        public["publicKey"] = {name: value for name, value in key.items() if name not in PRIVATE_MEMBERS}
    return public
