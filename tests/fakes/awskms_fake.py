"""AWS KMS on this machine, for tests: the wire of the asymmetric keys, used through the real SDK.

What it is: `FakeKMS`, which answers as the API reference says (docs.aws.amazon.com/kms/latest/APIReference/), and fails
on demand. What it is not: moto, against which the same tests run, but which signs with disabled keys, throttles nothing
and has no rights. Rules: it listens on 127.0.0.1, on a port that the system gives; nothing is written.
"""

from __future__ import annotations

import base64
import json
import secrets
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.deadlines import HANG

CURVES: Final[dict[str, type[ec.EllipticCurve]]] = {"ECC_NIST_P384": ec.SECP384R1, "ECC_NIST_P256": ec.SECP256R1}
ACCESS_KEY: Final = "AKIATESTOFTHEOWNER00"
DENIED_KEY: Final = "AKIATESTOFASTRANGER0"


@dataclass(slots=True)
class _Key:
    id: str
    spec: str
    key: ec.EllipticCurvePrivateKey
    state: str = "Enabled"


class RefusedError(Exception):
    """An error of the service: its code, and its status."""

    def __init__(self, code: str, status: int = 400, headers: dict[str, str] | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.status = status
        self.headers = headers or {}


@dataclass
class FakeKMS:
    """A running service, as a context manager.

    Attributes:
        refusal: Answers every request with this error, while it is set.
        refusals: As `refusal`, for single operations.
        lost: An operation that is done once more without its answer.
        late_keys: For how many requests each new key is unknown to CreateAlias.
        late_aliases: For how many requests each new alias is unknown.
        is_cut: Whether answers end half-way.
        silence: Answers come once this event is set; None if they come at once.
        requests: The operations that were asked for.
    """

    refusal: RefusedError | None = None
    refusals: dict[str, RefusedError] = field(default_factory=dict)
    lost: str | None = None
    late_keys: int = 0
    late_aliases: int = 0
    is_cut: bool = False
    silence: threading.Event | None = None
    requests: list[str] = field(default_factory=list)
    _keys: dict[str, _Key] = field(default_factory=dict)
    _aliases: dict[str, str] = field(default_factory=dict)
    _late: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> Self:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                fake._handle(self)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def set_state(self, alias: str, state: str) -> None:
        """Set the state of a key: ``Enabled``, ``Disabled`` or ``PendingDeletion``."""
        self._keys[self._aliases[alias]].state = state

    def state_of(self, alias: str) -> str:
        return self._keys[self._aliases[alias]].state

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        operation = handler.headers["X-Amz-Target"].partition(".")[2]
        self.requests.append(operation)
        headers: dict[str, str] = {}
        try:
            if (refusal := self.refusal or self.refusals.get(operation)) is not None:
                raise refusal
            if DENIED_KEY in handler.headers.get("Authorization", ""):
                raise RefusedError("AccessDeniedException")
            status, answer = 200, getattr(self, f"_do_{operation}")(body)
            if operation == self.lost:
                self.lost = None
                raise RefusedError("KMSInternalException", 500)
        except RefusedError as refused:
            status, answer, headers = (
                refused.status,
                {"__type": refused.code, "message": "as the test wants"},
                refused.headers,
            )
        if (silence := self.silence) is not None:
            silence.wait(HANG)
        raw = json.dumps(answer).encode()
        handler.send_response(status)
        for name, value in {
            **headers,
            "Content-Type": "application/x-amz-json-1.1",
            "Content-Length": str(len(raw)),
        }.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(raw[: len(raw) // 2] if self.is_cut else raw)
        if self.is_cut:
            handler.close_connection = True

    def _find(self, body: dict[str, Any]) -> _Key:
        named = str(body["KeyId"]).rpartition(":")[2].removeprefix("key/")
        if named in self._aliases:
            self._be_late(named)
        found = self._keys.get(self._aliases.get(named, named))
        if found is None:
            raise RefusedError("NotFoundException")
        return found

    def _be_late(self, name: str) -> None:
        if (left := self._late.get(name, 0)) > 0:
            self._late[name] = left - 1
            raise RefusedError("NotFoundException")

    def _do_CreateKey(self, body: dict[str, Any]) -> dict[str, Any]:  # noqa: N802 - the API's names
        key_id = "-".join(secrets.token_hex(n) for n in (4, 2, 2, 2, 6))
        spec = body["KeySpec"]
        self._keys[key_id] = _Key(key_id, spec, ec.generate_private_key(CURVES[spec]()))
        self._late[key_id] = self.late_keys
        return {"KeyMetadata": {"KeyId": key_id, "KeySpec": spec, "KeyUsage": body["KeyUsage"]}}

    def _do_CreateAlias(self, body: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        if body["AliasName"] in self._aliases:
            raise RefusedError("AlreadyExistsException")
        self._be_late(body["TargetKeyId"])
        self._aliases[body["AliasName"]] = body["TargetKeyId"]
        self._late[body["AliasName"]] = self.late_aliases
        return {}

    def _do_DescribeKey(self, body: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        key = self._find(body)
        return {"KeyMetadata": {"KeyId": key.id, "KeyState": key.state}}

    def _do_ScheduleKeyDeletion(self, body: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        key = self._find(body)
        key.state = "PendingDeletion"
        return {"KeyId": key.id, "DeletionDate": time.time() + body["PendingWindowInDays"] * 86_400}

    def _do_GetPublicKey(self, body: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        key = self._usable(body)
        der = key.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        text = base64.b64encode(der).decode()
        return {"KeyId": key.id, "KeySpec": key.spec, "KeyUsage": "SIGN_VERIFY", "PublicKey": text}

    def _do_Sign(self, body: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        key, message = self._usable(body), base64.b64decode(body["Message"])
        if key.spec != "ECC_NIST_P384" or body["SigningAlgorithm"] != "ECDSA_SHA_384":
            raise RefusedError("InvalidKeyUsageException")
        if not 1 <= len(message) <= 4096:
            raise RefusedError("ValidationException")
        how: Any = hashes.SHA384()
        if body["MessageType"] == "DIGEST":
            if len(message) != 48:
                raise RefusedError("ValidationException")
            how = Prehashed(hashes.SHA384())
        der = key.key.sign(message, ec.ECDSA(how))
        return {"KeyId": key.id, "Signature": base64.b64encode(der).decode(), "SigningAlgorithm": "ECDSA_SHA_384"}

    def _usable(self, body: dict[str, Any]) -> _Key:
        key = self._find(body)
        if key.state != "Enabled":
            raise RefusedError("DisabledException" if key.state == "Disabled" else "KMSInvalidStateException")
        return key
