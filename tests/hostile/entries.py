"""Every function of Goatherd that reads bytes from outside, with valid samples."""

from __future__ import annotations

import contextlib
import json
import tempfile
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goatherd.admission.requests import decode_session_request
from goatherd.audit.records import verify as verify_trail
from goatherd.config.options import load_options
from goatherd.config.values import parse_duration
from goatherd.crypto import PublicKey
from goatherd.door import key_filter, request_checks
from goatherd.door.limits import DoorLimits
from goatherd.errors import GoatherdError
from goatherd.identity.document import decode_document, encode_document
from goatherd.identity.revocations import FrozenList
from goatherd.identity.session import Session, parse_signature
from goatherd.identity.session_commits import session_from_commit
from goatherd.identity.settings_json import from_settings
from goatherd.identity.transitions import create_document
from goatherd.node.commit_checks import read_commit
from goatherd.node.data_check import decode_lines
from goatherd.node.repository import Repository
from goatherd.node.views import SyncLimits
from goatherd.plugins import open_provider
from goatherd.providers import versioned_record
from goatherd.providers.azure.records import BASE64_TYPE
from goatherd.providers.azure.records import decode_pointer as decode_azure_pointer
from goatherd.providers.azure.records import decode_value as decode_azure_value
from goatherd.providers.base import Call
from goatherd.providers.values import SecretBytes, check_label
from goatherd.providers.versioned_record import (
    DamagedRecordError,
    ForeignRecordError,
    RecordedSecret,
    VersionedRecord,
    entry_for,
)
from goatherd.schedule.due import check_cron
from goatherd.serving.caller_limits import RefusedError
from goatherd.serving.server_url import parse_listen_address, parse_server_url
from goatherd.settings.data_directory import check_understood
from goatherd.wire.batch import read_batch
from goatherd.wire.commit import Commit
from goatherd.wire.commit_log import frame_records, read_lines, scan_log
from goatherd.wire.json import parse_json, stable_stringify, to_json_bytes
from tests.fakes.memory_log import MemoryLog
from tests.unit.goats import NOW, ORG, commit_by, element, introduction, owned, root, signed_header

ARGUMENT = 8192
LARGE = 1 << 20
"""Bytes of a body, document or log in these tests; what is larger grows the same way."""


@dataclass(frozen=True)
class Entry:
    """One place that takes bytes.

    Attributes:
        read: Reads them.
        samples: What it reads without an error.
        limit: The most bytes that the code in front of it lets through.
        raises: What it may raise, and nothing else.
        is_measured: Whether its cost is bounded; false for the user's own file that a library reads.
        small: Bytes of memory that it may take however few bytes come.
    """

    name: str
    read: Callable[[bytes], object]
    samples: tuple[bytes, ...]
    limit: int = LARGE
    raises: tuple[type[Exception], ...] = (GoatherdError,)
    is_measured: bool = True
    small: int = 200_000


RECORD = (ForeignRecordError, DamagedRecordError)


def text(data: bytes) -> str:
    """Return bytes as a string, as a header, an argument or a variable contains them."""
    return data.decode("utf-8", "surrogateescape")


A, X = root("root-a"), owned("anon-x")
NOTE = commit_by(X, "k", {"text": "x"})
BIRTH = introduction(X, A)
DOCUMENT = encode_document(create_document(A, NOW))
SESSION = to_json_bytes(A.session.to_json())
BATCH = json.dumps([element("/data/a", [NOTE.to_json()])]).encode()
KEY = json.dumps({"publicKey": X.session.public_key.to_jwk()}).encode()
ANSWER = json.dumps({"session": X.session.to_json(), "roots": [A.session.to_json()]}).encode()
REPLY = json.dumps([{"path": "/data/a", "res": element("/data/a", [NOTE.to_json()])["msg"]}]).encode()
KUBECONFIG = b"""current-context: a
contexts: [{name: a, context: {cluster: c}}]
clusters: [{name: c, cluster: {server: 'https://h:1'}}]
"""
LOG = frame_records([NOTE.to_json(), BIRTH.to_json()])


def _secret() -> RecordedSecret:
    entry = entry_for(SecretBytes(b"x"), request="r", now_ms=NOW)
    call = Call(operation="create", provider="file", secret_id="root", request="r")
    record = VersionedRecord().with_first_version(call, entry, check_label("current"))
    return RecordedSecret(record=record, values={1: SecretBytes(b"x")})


def _object(data: bytes) -> Mapping[str, Any]:
    with contextlib.suppress(GoatherdError):
        found = parse_json(data)
        return found if isinstance(found, dict) else {}
    return {}


def _commit(data: bytes) -> object:
    return read_commit(
        parse_json(data),
        Repository("/data/a", MemoryLog(), org=ORG, connection="c", own_session=lambda: X.id),
        SyncLimits(),
        NOW,
    )


def _stable_text(data: bytes) -> object:
    value = parse_json(data)
    # Nothing that comes from outside is signed as a bare text, of which GoatDB makes a member a character.
    return stable_stringify(value) if isinstance(value, dict | list) else None


def _signed_text(data: bytes) -> object:
    commit = Commit.from_json(parse_json(data), org=ORG)
    return commit.signed_text(commit.session)


def _session_commit(data: bytes) -> object:
    return session_from_commit(Commit.from_json(parse_json(data), org=ORG))


def _door_commit(data: bytes) -> object:
    with contextlib.suppress(request_checks.DroppedError):
        return request_checks.read_commit(parse_json(data), "/data/a", org=ORG, limits=DoorLimits(), now_ms=NOW)
    return None


def _door_batch(data: bytes) -> object:
    with contextlib.suppress(RefusedError):
        return request_checks.read_batch(data, DoorLimits())
    return None


def _door_session(data: bytes) -> object:
    with contextlib.suppress(RefusedError):
        request_checks.check_session_request(data)
    return None


def _door_mail(data: bytes) -> object:
    with contextlib.suppress(RefusedError):
        return request_checks.read_mail_request(data)
    return None


def _door_target(data: bytes) -> object:
    with contextlib.suppress(RefusedError):
        return request_checks.check_target(data)
    return None


def _door_host(data: bytes) -> object:
    with contextlib.suppress(RefusedError):
        return request_checks.check_headers([(b"host", data), (b"connection", data)])
    return None


def _filtered(data: bytes) -> object:
    stream = key_filter.KeyFilter()
    for start in range(0, len(data), 65536):
        stream.feed(data[start : start + 65536])
    return stream.close()


def _file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def from_file(data: bytes) -> object:
        with tempfile.TemporaryDirectory() as top:
            path = Path(top) / name
            path.write_bytes(data)
            path.chmod(0o600)
            return read(path)

    return from_file


def _options(path: Path) -> object:
    return load_options({}, {}, directory=path.parent, file=path)


def _kubeconfig(path: Path) -> object:
    from goatherd.providers.kubernetes.kubeconfig import read_kubeconfig

    return read_kubeconfig(str(path), None)


def _directory(path: Path) -> object:
    check_understood(path.parent)
    return None


def _cron(data: bytes) -> object:
    check_cron(text(data))
    return None


def entries() -> Sequence[Entry]:
    """Return all of them."""
    trail = b'{"seq":1,"at":"2026-01-01T00:00:00Z","event":"x","data":{},"by":"root-a","prev":"","sig":""}\n'
    return [
        # what clients and peers send
        Entry("session header", lambda data: parse_signature(text(data)), (signed_header(X).encode(),), 16384),
        Entry("JSON", parse_json, (BATCH, DOCUMENT)),
        Entry("stable text", _stable_text, (BATCH, DOCUMENT)),
        Entry("batch", lambda data: read_batch(data, 1000), (BATCH,)),
        Entry("commit", _commit, (json.dumps(NOTE.to_json()).encode(),)),
        Entry("signed text of a commit", _signed_text, (json.dumps(NOTE.to_json()).encode(),)),
        Entry("session's commit", _session_commit, (json.dumps(BIRTH.to_json()).encode(),)),
        Entry("new session", decode_session_request, (KEY,), 16384),
        # requests to the door, and answers of the server behind it
        Entry("door: batch", _door_batch, (BATCH,)),
        Entry("door: commit", _door_commit, (json.dumps(NOTE.to_json()).encode(),)),
        Entry("door: new session", _door_session, (KEY,), 16384),
        Entry("door: login mail", _door_mail, (b'{"email":"a@example.org","signature":"x"}',), 16384),
        Entry("door: path", _door_target, (b"/batch-sync",), 65536),
        Entry("door: headers", _door_host, (b"example.org:80",), 65536),
        Entry("door: key filter", _filtered, (SESSION, DOCUMENT, BATCH)),
        Entry("door: session answer", lambda data: key_filter.filter_session_answer(data, lambda *_: True), (ANSWER,)),
        Entry("door: introductions", key_filter.SyncAnswer, (REPLY,)),
        Entry(
            "door: script",
            lambda data: key_filter.script_with_server_url(data, lambda url: url),
            (b'{"serverURL":"x"}',),
        ),
        # what servers answer to the tools
        Entry("frozen list", FrozenList.from_bytes, (bytes(32),)),
        # what is stored
        Entry("identity document", decode_document, (DOCUMENT,)),
        Entry("settings.json", lambda data: from_settings(data, NOW), (DOCUMENT,)),
        Entry("session", lambda data: Session.from_json(_object(data)), (SESSION,)),
        Entry(
            "public key",
            lambda data: PublicKey.from_jwk(_object(data)),
            (json.dumps(X.session.public_key.to_jwk()).encode(),),
        ),
        Entry(
            "secret in a file, Vault or Kubernetes",
            lambda raw: versioned_record.decode_secret(versioned_record.parse_json(raw)),
            (json.dumps(versioned_record.encode_secret(_secret())).encode(),),
            raises=RECORD,
        ),
        Entry("Azure pointer", lambda data: decode_azure_pointer(text(data)), (), raises=RECORD),
        Entry("Azure value", lambda data: decode_azure_value(text(data), BASE64_TYPE), (b"QUFB",), raises=RECORD),
        Entry("log", lambda data: [each.record for each in read_lines(data)], (LOG,)),
        Entry("log recovery", scan_log, (LOG,)),
        Entry("log check", lambda data: list(decode_lines(data, ORG)), (LOG,)),
        Entry("audit trail", lambda data: verify_trail(data.splitlines(keepends=True)), (trail,)),
        Entry("data directory", _file("data.jsonl", _directory), (LOG,)),
        # what the operator writes
        # Python's TOML reader descends into brackets to the interpreter's limit: 1 000 frames, at most 0.6 MB.
        Entry(
            "goatherd.toml",
            _file("goatherd.toml", _options),
            (b'nodes = ["http://a:1"]\n', b"nodes = " + b"{a=" * 1000, b"nodes = " + b"[" * 1000),
            16384,
            small=800_000,
        ),
        Entry("kubeconfig", _file("config", _kubeconfig), (KUBECONFIG,), 8192, is_measured=False),
        Entry("server URL", lambda data: parse_server_url(text(data)), (b"https://a.example.org:8080",), ARGUMENT),
        Entry("listen address", lambda data: parse_listen_address(text(data)), (b"127.0.0.1:80",), ARGUMENT),
        Entry(
            "store address",
            lambda data: open_provider(text(data)),
            (b"file:///srv/keys/root", b"aws://eu-west-1/x"),
            ARGUMENT,
        ),
        Entry(
            "duration",
            lambda data: parse_duration(text(data)),
            (b"90d",),
            ARGUMENT,
            raises=(GoatherdError, ValueError),
        ),
        Entry("cron expression", _cron, (b"0 3 * * 1",), ARGUMENT, raises=(GoatherdError, ValueError)),
    ]


def outcome(entry: Entry, data: bytes) -> str | None:
    """Read `data`; return None, or what must not happen, such as the name of an unexpected exception."""
    try:
        entry.read(data)
    except entry.raises:
        return None
    except Exception as error:  # noqa: BLE001 - what is looked for
        return f"{type(error).__name__}: {str(error)[:200]}"
    return None


def memory_of(entry: Entry, data: bytes) -> int:
    """Return the most bytes of memory that reading `data` takes at one time.

    The smaller figure of two: a table of the interpreter (interned texts, a cache) that grows in one of them is no
    property of the bytes.
    """
    return min(_traced(entry, data) for _ in range(2))


def _traced(entry: Entry, data: bytes) -> int:
    tracemalloc.start()
    try:
        outcome(entry, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
