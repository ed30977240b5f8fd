"""Check requests, and commits before their signature is verified, for input that the server cannot handle. Pure.

The server, GoatDB 0.5.1, accepts and stores almost any input, and crashes on some. Each `DoorRule` names one kind of
input that the door (the proxy in front of the server) rejects; docs/reference/goatdb-protocol.md and
docs/reference/goatdb-formats.md name the rules that stop each of GoatDB's defects.

Rules: nothing that GoatDB's own clients and servers write is rejected. Input that the door cannot parse does not reach
the server. A malformed request is rejected as a whole (`RefusedError`). From other requests only the bad commits are
removed (`DroppedError`), because a client whose whole request is rejected repeats it indefinitely and cannot
synchronize any repository meanwhile.
"""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final
from unicodedata import category, normalize

import pybase64

from goatherd.admission.commits import MAP_MARK, NotAdmittedError, decode_commit, is_nested_deeper
from goatherd.admission.requests import check_filter_size, decode_session_request, read_repository_path
from goatherd.door.limits import DoorLimits
from goatherd.door.received_commits import NOTHING_KNOWN, KnownCommits, ReceivedCommit, ReceivedList
from goatherd.errors import (
    AuthorMismatchError,
    DecodeError,
    ExpiredSessionError,
    GoatherdError,
    PathError,
    RevokedSessionError,
    UnknownSignerError,
    UntrustedRootError,
    WireError,
)
from goatherd.serving.caller_limits import RefusedError
from goatherd.wire.batch import SMALL_BODY, TooManyValuesError, split_batch
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.commit import Commit
from goatherd.wire.json import parse_json
from goatherd.wire.messages import decode_request_element
from goatherd.wire.paths import SESSIONS_PATH
from goatherd.wire.schema import BUILTIN, Registry

SESSION_BYTES: Final = 64 * 1024
"""Maximum bytes of a commit in `SESSIONS_PATH`; those of GoatDB have one or two thousand."""


class DoorRule(StrEnum):
    """The kinds of input that the door rejects, each with what it means for a request, a commit or an answer.

    docs/reference/door.md is generated from the texts: what a rejected request or answer holds, with the HTTP status,
    and what a commit holds that the door removes.
    """

    TARGET = "target"
    """Request, 400: a path that the server would read as another one: dot segments (also ``%2e``), backslashes, two
    leading slashes, not ASCII.
    """
    METHOD = "method"
    """Request, 405: ``CONNECT``, ``TRACE``."""
    HEADERS = "headers"
    """Request, 400: an invalid ``Host`` (``h:99999``, ``256.1.1.1``); repeated ``Host``, ``x-goat-sig``,
    ``content-type`` or ``content-encoding``; a ``Connection`` that names one of these, the body's length or a header
    about the caller (``X-Forwarded-*``, ``Cookie``, ``Origin``, ``Authorization``, …); a body with an upgrade.
    """
    ENCODING = "encoding"
    """Request, 415: a compressed body where the body is checked."""
    TOO_LARGE = "too-large"
    """Request, 413: a body that is too large (headers, trailers: 431)."""
    TOO_SLOW = "too-slow"
    """Request, 408: headers or a body that is too slow."""
    TOO_MANY = "too-many"
    """Request, 429, 503, 400: a limit is exceeded (429 and 503 with ``Retry-After``); too many elements in a
    batch (400).
    """
    BODY = "body"
    """Request, 400: a batch that is not a JSON array."""
    MESSAGE = "message"
    """Request, 400: an element without path or message, an undecodable or huge filter, an invalid count, nesting, a
    member ``hasOwnProperty`` or ``__proto__``, a member of GoatDB's encoding (``__r``, ``__d``, …) where none belongs;
    in a body of more than 16 KiB, an array other than ``c`` with items where ``c`` could be.
    """
    PATH = "path"
    """Request, 400: a repository other than two names of ``a-z 0-9 - _``, at most 100 characters each."""
    REQUEST_SIGNATURE = "request-signature"
    """Request, 400, 403: no signature (400); a signature that is forged or malformed, is a login token, has no
    timestamp or data, or belongs to an expired session.
    """
    REQUEST_TIME = "request-time"
    """Request, 403: a signature whose timestamp differs from the door's clock by more than three minutes."""
    REVOKED = "revoked"
    """Request, 403: a request that a revoked session signed.

    Commit: whose session is revoked.
    """
    UNKNOWN_SIGNER = "unknown-signer"
    """Request, 403: a batch from a session that no trusted root has introduced, even after the door has read the
    sessions again.

    Commit: of such a session.
    """
    AUTHOR = "author"
    """Commit: that names another session than the one that signed it."""
    EXPIRED = "expired"
    """Commit: whose timestamp, or whose signature's timestamp, is after the expiration of its session."""
    SIGNATURE = "signature"
    """Commit: that is unsigned; or whose signature is malformed, has no timestamp, covers other data, or covers a
    number that JSON cannot represent.
    """
    ROOT_SESSION = "root-session"
    """Commit: of a session that no trusted root has signed."""
    SESSION_ITEM = "session-item"
    """Commit: in ``/sys/sessions``, that holds no session, or whose key is not the session's id; in another
    repository, that holds a session, or a delta that names the schema of sessions.
    """
    COMMIT = "commit"
    """Commit: that is undecodable; has an id or key that GoatDB does not make; has a member ``age``, or a member of
    GoatDB's encoding; repeats an id of the message, of a commit being delivered, or of another repository.
    """
    TIME = "time"
    """Commit: without a time, or dated more than a day ahead."""
    ANCESTORS = "ancestors"
    """Commit: with too many parents, or itself among them; with an ancestors filter that is huge, claims everything, or
    is too small for the ancestors claimed.
    """
    CONTENTS = "contents"
    """Commit: of the null item; nested too deeply; with a member that stops the decoder or a merge; with a reference
    (``__rId``) outside of its object; with missing or wrongly typed fields of GoatDB's own schemas; that changes when
    it is read.
    """
    BIRTH = "birth"
    """Commit: whose parents have not arrived; or without parents, if the server holds only deltas of its key. Two
    creations of one key both pass, unless the server holds the first one and it cannot be verified.
    """
    DELTA = "delta"
    """Commit: that builds on another delta, on itself, on a commit of another key, or on a missing commit."""
    SCHEMA = "schema"
    """Commit: with another schema than its key has."""
    PRIVATE = "private"
    """Commit: with ``--private``: in ``/sys/*`` by others than roots, in ``/user/<id>`` by others than its owner."""
    SESSION_KEY = "session-key"
    """Request, 400: a key at ``/auth/session`` that is not a public P-384 key; answered as by GoatDB."""
    LOGIN_MAIL = "login-mail"
    """Request, 400, 403: an invalid address or signature, or a signature of another session."""
    LOGIN_TOKEN = "login-token"  # noqa: S105 - the name of a rule
    """Request, 307: a token that is old or not signed by a trusted root: the door removes it, and the server redirects
    the caller to the home page.
    """
    PRIVATE_KEY = "private-key"
    """Answer: a private key is removed or overwritten, and ``door.key_withheld`` logged: the server exposes that key,
    so revoke it. 502 if the door cannot check an answer.
    """
    UNTRUSTED_ROOT = "untrusted-root"
    """Answer: a revoked or untrusted root is left out of the answer of ``/auth/session`` (503 if no root is left), and
    its introduction out of what clients get of ``/sys/sessions``; peers that sign with a root get everything.
    """
    CHILD = "child"
    """Answer: the server is unreachable (503, ``door.server_away``), breaks off an answer (502) or does not answer in
    time (504); with ``Retry-After``.
    """


class DroppedError(Exception):
    """The door does not pass a commit on to the server, but passes on the rest of its request."""

    def __init__(self, rule: DoorRule, why: str) -> None:
        super().__init__(why)
        self.rule = rule


# --- the request line and headers -----------------------------------------------------------------------------------

_HOST = re.compile(r"(?:([A-Za-z0-9._-]{1,255})|\[([0-9A-Fa-f:.]{2,45})\])(?::([0-9]{1,5}))?")
_NUMBER = re.compile(r"0[xX](?P<hex>[0-9A-Fa-f]*)|0(?P<octal>[0-7]+)|(?P<decimal>0|[1-9][0-9]*)")
_TARGET = re.compile(rb"/(?!/)[!$%&'()*+,./0-9:;=@A-Z\[\]_a-z~-]*")
_DOTS = re.compile(rb"(?:\.|%2e){1,2}", re.IGNORECASE)
_HOST_LENGTH: Final = 263  # a name and a port
_ONCE: Final = (b"host", b"x-goat-sig", b"content-type", b"content-encoding")
_LASTING: Final = frozenset(
    {*_ONCE, b"authorization", b"content-length", b"cookie", b"forwarded", b"origin", b"x-org-id", b"x-real-ip"}
)
"""Headers that no ``Connection`` header may remove: the door has checked them, or they identify the caller."""


def check_target(path: bytes) -> str:
    """Check a request's target, and return the lower-case path by which the server chooses the handler.

    SECURITY: the server reads URLs as browsers do: it resolves dot segments, also ``%2e``, and reads a backslash as a
    slash, so ``/x/..%5cbatch-sync`` would bypass every other rule. If it resolves the target against a base, as servers
    on Node do, ``//x/batch-sync`` is a host and a path (tests/unit/door/test_request_checks.py).

    Raises:
        RefusedError: The server could read the target as another path.
    """
    if _TARGET.fullmatch(path) is None or any(_DOTS.fullmatch(part) for part in path.split(b"/")):
        raise RefusedError(DoorRule.TARGET, 400, "the path must be in canonical form")
    return path.decode("ascii").lower()


def check_headers(headers: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Check the request's headers, and return them by name; of a repeated header, the last value.

    An empty ``Host``, which is valid and which some health checks send, is left out.

    SECURITY: the server puts the value of ``Host`` into the URL by which it dispatches. A Host with a slash changes the
    path, and an invalid Host makes it throw. It joins repeated headers by commas
    (tests/unit/door/test_request_checks.py).

    Raises:
        RefusedError: A header is repeated that must not be, ``Host`` is invalid, or ``Connection`` removes a header
            that the server must get.
    """
    found = dict(headers)
    if len(found) < len(headers):
        for name in _ONCE:
            if sum(1 for each, _ in headers if each == name) > 1:
                raise RefusedError(DoorRule.HEADERS, 400, f"the header {name.decode()} must occur only once")
    host = found.get(b"host")
    if host == b"":
        del found[b"host"]
    elif host is not None and not (len(host) <= _HOST_LENGTH and _is_host(host)):
        raise RefusedError(DoorRule.HEADERS, 400, "the Host header must contain a valid host")
    if b"connection" in found:
        named = connection_tokens(headers)
        if named & _LASTING or any(each.startswith(b"x-forwarded-") for each in named):
            # SECURITY: a header that the Connection header names is dropped on the way, so the server would get a
            # request without the header that the door has checked (tests/unit/door/test_proxy.py).
            raise RefusedError(DoorRule.HEADERS, 400, "the Connection header must not name an end-to-end header")
    return found


def connection_tokens(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """Return the tokens of the ``Connection`` headers in lower case."""
    values = [value for name, value in headers if name == b"connection"]
    return frozenset([token.strip().lower() for value in values for token in value.split(b",")])


def check_method(method: str) -> None:
    """Reject the methods CONNECT and TRACE, which address a proxy itself and which the server does not serve.

    Raises:
        RefusedError: The method is CONNECT or TRACE.
    """
    if method in ("CONNECT", "TRACE"):
        raise RefusedError(DoorRule.METHOD, 405, f"the method {method} is not allowed")


@lru_cache(maxsize=256)
def _is_host(text: bytes) -> bool:
    """Return whether the server can parse this text as a URL's host (https://url.spec.whatwg.org/#host-parsing)."""
    match = _HOST.fullmatch(text.decode("latin-1"))
    if match is None:
        return False
    name, address, port = match.groups()
    if port is not None and int(port) >= 2**16:
        return False
    try:
        if address is not None:
            ipaddress.IPv6Address(address)
            return True
        parts = name.removesuffix(".").split(".")
        if parts[-1].isdigit() or _NUMBER.fullmatch(parts[-1]):
            # Whatever ends in a number is an IPv4 address, or none: 256.1.1.1, 1.2.3.4.5, a.1.
            numbers = [_parse_number(part) for part in parts]
            return len(numbers) <= 4 and max([0, *numbers[:-1]]) < 256 and numbers[-1] < 256 ** (5 - len(numbers))
        encoded = [part[4:].lower() for part in parts if part[:4].lower() == "xn--"]
        return all(_is_label(part.encode().decode("punycode")) for part in encoded)
    except ValueError:
        return False


def _is_label(text: str) -> bool:
    """Return whether a host name may have this decoded label (part between dots).

    Some invalid right-to-left labels are accepted.
    """
    if text.isascii() or normalize("NFKC", text.lower()) != text or category(text[0]).startswith("M"):
        return False
    return not any(category(character) in ("Cc", "Cn", "Co", "Cs") for character in text)


def _parse_number(part: str) -> int:
    match = _NUMBER.fullmatch(part)
    if match is None:
        raise ValueError(part)
    base = {"hex": 16, "octal": 8, "decimal": 10}[match.lastgroup or "decimal"]
    return int(match[match.lastgroup or "decimal"] or "0", base)


def check_encoding(headers: Mapping[bytes, bytes]) -> None:
    """Reject a compressed body: neither the server nor the door decompresses it, so the door could not check it.

    Raises:
        RefusedError: The body has a content encoding.
    """
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding not in (b"identity", b""):
        raise RefusedError(DoorRule.ENCODING, 415, "the body must not be compressed")


# --- POST /batch-sync -------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Element:
    """One element of a ``/batch-sync`` request: the sync message for one repository.

    Attributes:
        raw: The element as sent; of a large body without its commits.
        path: The repository's path in its normal form.
        commits: The commits as received.
        left_out: How many items in the element's list of commits are no commits, or are too large.
        is_large: Whether the element came in a large body, so that its commits are checked in a thread.
    """

    raw: dict[str, Any]
    path: str
    commits: list[ReceivedCommit]
    left_out: int = 0
    is_large: bool = False


def read_batch(body: bytes, limits: DoorLimits, known: KnownCommits = NOTHING_KNOWN) -> list[Element]:
    """Decode the body of ``POST /batch-sync``, except the contents of the commits.

    Args:
        body: The body as received.
        limits: The limits on one request.
        known: Commits that need not be parsed again, if the body is large.

    Raises:
        RefusedError: The server would answer 500, hang or crash; or an element exceeds a limit.
    """
    lists: list[ReceivedList] | None = None
    try:
        if len(body) <= SMALL_BODY:
            raw = parse_json(body)
        else:
            raw, lists = split_batch(body, sys.maxsize, lambda data: ReceivedList(data, known))
    except DecodeError as error:
        raise RefusedError(DoorRule.BODY, 400, str(error)) from None
    if not isinstance(raw, list):
        raise RefusedError(DoorRule.BODY, 400, "a batch must be a JSON array")
    if len(raw) > limits.elements:
        raise RefusedError(
            DoorRule.TOO_MANY, 400, f"a batch must have at most {limits.elements} elements, not {len(raw)}"
        )
    elements = [_read_element(each, limits) for each in raw]
    if lists is None:
        return elements
    _check_other_lists(elements, lists)
    return [_with_commits(each, lists) for each in elements]


def _check_other_lists(elements: Sequence[Element], lists: Sequence[ReceivedList]) -> None:
    """Check that each array of a large body that was not parsed, as its items may be commits, has commits or is empty.

    SECURITY: GoatDB would parse the items of such an array even for a caller without a session
    (tests/unit/door/test_request_checks.py).

    Raises:
        RefusedError: Another array than a message's ``c`` has items. GoatDB reads no such array, and writes ``ad``
            empty.
    """
    read = {element.commits[0].raw for element in elements if element.commits}
    for index, each in enumerate(lists):
        if index not in read and (each or each.other):
            raise RefusedError(DoorRule.MESSAGE, 400, "in a large batch, only the array c of a message may have items")


def _with_commits(element: Element, lists: Sequence[ReceivedList]) -> Element:
    """Return an element of a large body with its commits, which are parsed one by one.

    Raises:
        RefusedError: A commit is not JSON.
    """
    for member in element.raw.values():
        if isinstance(member, dict):
            member.update({name: [] for name, value in member.items() if isinstance(value, list)})
    if not element.commits:
        return element
    found = lists[element.commits[0].raw]
    commits: list[ReceivedCommit] = []
    left_out = found.other
    for index in range(len(found)):
        if element.path == SESSIONS_PATH and found.size(index) > SESSION_BYTES:
            left_out += 1
            continue
        try:
            commits.append(found.receive(index))
        except TooManyValuesError:
            left_out += 1
        except DecodeError as error:
            raise RefusedError(DoorRule.BODY, 400, str(error)) from None
    return Element(element.raw, element.path, commits, left_out, is_large=True)


_MEMBERS: Final = frozenset({"ver", "f", "s", "c", "ad"})


def _is_base64(text: str) -> bool:
    """Return whether a string is base64 with correct padding."""
    try:
        pybase64.b64decode(text, validate=True)
    except ValueError:
        return False
    return True


def _has_usual_form(raw: Any, limits: DoorLimits) -> bool:
    """Return whether an element has exactly the form that GoatDB's clients write and so needs no further check.

    Most requests are polls with such elements, so this shortcut saves most of the door's work.
    """
    if type(raw) is not dict or len(raw) != 2:
        return False
    if type(raw.get("path")) is not str or type(raw.get("msg")) is not dict:
        return False
    message = raw["msg"]
    if not message.keys() <= _MEMBERS or type(message.get("c")) is not list or message.get("ad") != []:
        return False
    wrapped = message.get("f")
    if (
        type(wrapped) is not dict
        or len(wrapped) != 2
        or wrapped.get("__t") != "E"
        or type(message.get("ver")) is not int
    ):
        return False
    held = wrapped.get("__v")
    if type(held) is not dict or held.keys() != {"d", "s"}:
        return False
    bits, seeds = held["d"], held["s"]
    if type(bits) is not str or type(seeds) is not list or len(seeds) > limits.seeds:
        return False
    if len(bits) * 3 // 4 > limits.filter_bytes or not _is_base64(bits):
        return False
    return all(type(seed) is int and 0 <= seed < 2**53 for seed in seeds)


def _read_element(raw: Any, limits: DoorLimits) -> Element:
    if _has_usual_form(raw, limits):
        path = _read_path(raw["path"])
        _check_size(raw["msg"].get("s"), limits)
        return Element(raw, path, [ReceivedCommit(each) for each in raw["msg"]["c"]])
    try:
        given, message = decode_request_element(raw)
        path = _read_path(given)
        check_filter_size(message.filter, limits)
    except DecodeError as error:
        raise RefusedError(DoorRule.MESSAGE, 400, str(error)) from None
    _check_size(raw["msg"].get("s"), limits)
    _check_marks(raw)
    rest = {name: value for name, value in raw["msg"].items() if name != "c"}
    _check_nesting({**raw, "msg": rest}, limits.depth)
    return Element(raw, path, [ReceivedCommit(each) for each in message.commits])


def _read_path(given: str) -> str:
    try:
        return read_repository_path(given)
    except PathError as error:
        raise RefusedError(DoorRule.PATH, 400, str(error)) from None


def _check_size(size: Any, limits: DoorLimits) -> None:
    if isinstance(size, bool) or not isinstance(size, int | float) or not 0 <= size <= limits.size or size % 1:
        # SECURITY: a count such as 1e8 ends the server's process, which makes a Bloom filter for that many commits
        # (tests/cluster/test_door_requests.py).
        raise RefusedError(DoorRule.MESSAGE, 400, f"the commit count s must be an integer from 0 to {limits.size}")


def _check_nesting(value: Any, depth: int) -> None:
    if is_nested_deeper(value, depth, _POISON):
        raise RefusedError(
            DoorRule.MESSAGE, 400, "a message is nested too deeply, or has a member that GoatDB cannot decode"
        )


def _check_marks(element: Mapping[str, Any]) -> None:
    """Reject type markers by which the server could read another element, message or filter than the door has checked.

    SECURITY: GoatDB decodes an object with ``__r`` and ``__d`` to the value of ``__d``, and one with ``__t`` and
    ``__v`` to the value of ``__v``; in valid requests only the filter has this form
    (tests/unit/door/test_request_checks.py).
    """
    held = element["msg"]["f"]
    if held.get("__t") == "E" and len(held) == 2 and isinstance(held.get("__v"), dict):
        held = held["__v"]
    if any(_is_marked(each) for each in (element, element["msg"], held)):
        raise RefusedError(
            DoorRule.MESSAGE,
            400,
            "a message must not have members that begin with `__`, GoatDB's type markers, outside of its filter",
        )


def _is_marked(value: Any) -> bool:
    return isinstance(value, dict) and any(name.startswith("__") for name in value)


_POISON: Final = ("hasOwnProperty", "__proto__", MAP_MARK)


def read_commit(
    raw: Any, path: str, *, org: str, limits: DoorLimits, now_ms: int, registry: Registry = BUILTIN
) -> Commit:
    """Decode a commit and check everything that needs neither its signer nor the server's commits.

    The form is checked as in Goatherd's own server (`goatherd.admission.commits`). Input that only an unmodified server
    cannot handle is rejected here.

    Raises:
        DroppedError: The commit must not be stored.
    """
    if not isinstance(raw, dict):
        raise DroppedError(DoorRule.COMMIT, "a commit must be a JSON object")
    if is_nested_deeper(raw, limits.depth, _POISON):
        raise DroppedError(
            DoorRule.CONTENTS, "a commit is nested too deeply, or has a member that GoatDB cannot decode"
        )
    if _is_marked(raw) or _is_marked(raw.get("c")):
        # SECURITY: GoatDB would replace an object that has type markers by the value inside. The door verifies the
        # signature of the object as it is, not of that value (tests/unit/door/test_request_checks.py).
        raise DroppedError(
            DoorRule.COMMIT,
            "a commit and its contents must not have members that begin with `__`, which GoatDB uses as type markers",
        )
    if "age" in raw:
        # SECURITY: a commit's signature does not cover `age`, and the server would take the sender's number for its own
        # counter (tests/cluster/test_door_commits.py).
        raise DroppedError(DoorRule.COMMIT, "a commit in a request must not have an age")
    try:
        commit = decode_commit(raw, path, org=org, limits=limits, now_ms=now_ms, registry=registry)
    except NotAdmittedError as error:
        raise DroppedError(DoorRule(error.fault.value), str(error)) from None
    except WireError as error:
        raise DroppedError(DoorRule.COMMIT, str(error)) from None
    _check_ancestors(commit)
    if commit.is_delta and commit.base == commit.id:
        raise DroppedError(DoorRule.DELTA, f"delta commit {commit.id!r} must not be based on itself")
    if not commit.is_delta and commit.schema is None:
        raise DroppedError(DoorRule.CONTENTS, f"commit {commit.id!r} must not contain the null item")
    return commit


def _check_ancestors(commit: Commit) -> None:
    """Reject an ancestors filter or count that would crash GoatDB in a merge; Goatherd's own server accepts it."""
    held = commit.ancestors_filter
    if held is not None:
        if not held.seeds:
            raise DroppedError(DoorRule.ANCESTORS, f"the ancestors filter of commit {commit.id!r} must have a seed")
        if _is_full(held):
            # SECURITY: a filter that matches every commit makes GoatDB leave out merges of the key, or throw in them
            # (tests/cluster/test_door_commits.py::test_a_filter_that_claims_every_ancestor_is_taken_out).
            raise DroppedError(
                DoorRule.ANCESTORS, f"the ancestors filter of commit {commit.id!r} must not match every commit"
            )
    capacity = 0 if held is None else 8 * len(held.bits)
    if commit.ancestors_count > capacity:
        raise DroppedError(
            DoorRule.ANCESTORS, f"the ancestor count of commit {commit.id!r} is too large for its ancestors filter"
        )


def _is_full(held: BloomFilter) -> bool:
    return bool(held.bits) and held.bits.count(0xFF) == len(held.bits)


_VERDICTS: Final[tuple[tuple[type[GoatherdError], DoorRule], ...]] = (
    (AuthorMismatchError, DoorRule.AUTHOR),
    (RevokedSessionError, DoorRule.REVOKED),
    (UnknownSignerError, DoorRule.UNKNOWN_SIGNER),
    (ExpiredSessionError, DoorRule.EXPIRED),
    (UntrustedRootError, DoorRule.ROOT_SESSION),
)


def rule_of(error: GoatherdError) -> DoorRule:
    """Return the door's rule that names the reason of a rejection by the trust pool (the trusted sessions)."""
    return next((rule for kind, rule in _VERDICTS if isinstance(error, kind)), DoorRule.SIGNATURE)


# --- /auth/* ----------------------------------------------------------------------------------------------------------


def check_session_request(body: bytes) -> None:
    """Check the body of ``POST /auth/session``.

    Raises:
        RefusedError: The body is malformed. The answer is GoatDB's own. Keys of other curves and points off the curve
            are answered with 400, too (COMPAT: GoatDB answers 500 after it has stored a session).
    """
    try:
        decode_session_request(body)
    except DecodeError as error:
        raise RefusedError(
            DoorRule.SESSION_KEY, 400, str(error), body=b'{"error":"%s"}' % str(error).encode()
        ) from None


def read_mail_request(body: bytes) -> tuple[str, str]:
    """Return the normalized email address and the signature in the body of ``POST /auth/send-login-email``.

    Raises:
        RefusedError: The request is malformed. The answer is GoatDB's own, with 400 in place of 500.
    """
    try:
        request = parse_json(body)
    except DecodeError:
        request = None
    if not isinstance(request, dict):
        raise RefusedError(DoorRule.LOGIN_MAIL, 400, "the body must be a JSON object", body=b'{"error":"MissingEmail"}')
    email, signature = request.get("email"), request.get("signature")
    if not isinstance(email, str) or not email.strip():
        raise RefusedError(
            DoorRule.LOGIN_MAIL, 400, "the body must contain an email address", body=b'{"error":"MissingEmail"}'
        )
    if not isinstance(signature, str):
        raise RefusedError(
            DoorRule.LOGIN_MAIL, 400, "the body must contain a signature", body=b'{"error":"MissingSignature"}'
        )
    return email.strip().lower(), signature
