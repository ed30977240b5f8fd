"""The keys of a key vault on this machine, for tests: the wire of Azure Key Vault, over TLS, used through the real SDK.

What it is: `FakeKeys`, which answers as the API reference says (learn.microsoft.com/rest/api/keyvault/keys). What it is
not: Azure's rights; a test names the refusal. Rules: it listens on 127.0.0.1, on a port that the system gives; nothing
is written to disk but a certificate, whose key was made for this run.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import secrets
import tempfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature

from tests.fakes.azure_fake import _certificate, _error, _Handler, _RefusedError, _serve

_CHALLENGE: Final = (
    'Bearer authorization="https://login.microsoftonline.com/00000000-0000-0000-0000-000000000000", '
    'resource="https://vault.azure.net"'
)


class FakeKeys:
    """A running vault, as a context manager.

    Attributes:
        refusal: The status, code, inner code and headers with which every request is answered, while it is set.
        is_cut: Whether answers end half-way.
        damage: Changes an answer before it goes out.
        kind: The only type of key that there is: ``EC``, or ``EC-HSM`` as in a Managed HSM.
    """

    def __init__(self) -> None:
        self.refusal: tuple[int, str, str | None, tuple[tuple[str, str], ...]] | None = None
        self.is_cut = False
        self.damage: Callable[[dict[str, Any]], dict[str, Any]] | None = None
        self.kind = "EC"
        self.port = 0
        self.ca = Path()
        self._keys: dict[str, tuple[str, ec.EllipticCurvePrivateKey]] = {}
        self.disabled: set[str] = set()
        self._stack = contextlib.ExitStack()

    def uri(self, name: str) -> str:
        """Return the address of a key."""
        return f"azurekms://fake/{name}?endpoint=https://localhost:{self.port}&challenge=unchecked&ca={self.ca}"

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="goatherd-azurekms-")))
            context, self.ca = _certificate(folder)
            self.port = _serve(stack, self._handler(), context)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add_key(self, name: str, curve: ec.EllipticCurve) -> None:
        """Add a key of any curve, or a version to a key that exists."""
        self._keys[name] = (secrets.token_hex(16), ec.generate_private_key(curve))

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        vault = self

        class Handler(_Handler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if "Authorization" not in self.headers:
                    self.send(401, {"error": {"code": "Unauthorized", "message": "no token"}}, authenticate=_CHALLENGE)
                    return
                more: tuple[tuple[str, str], ...] = ()
                try:
                    if vault.refusal is not None:
                        status, code, inner, more = vault.refusal
                        raise _RefusedError(status, code, "The test wants it so.", inner)
                    status, told = 200, vault._do(self.command, urlsplit(self.path).path, json.loads(body or b"{}"))
                except _RefusedError as refused:
                    status, told = refused.status, _error(refused)
                if vault.damage is not None:
                    told = vault.damage(told)
                raw = json.dumps(told).encode()
                self.send(status, raw[: len(raw) // 2] if vault.is_cut else raw, more=more)

        return Handler

    def _do(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        found = re.fullmatch(r"/keys/([0-9a-zA-Z-]+)/?([0-9a-f]{32})?/?(create|sign)?", path)
        assert found is not None, path
        name, version, action = found[1], found[2], found[3]
        if action == "create":
            assert body["crv"] == "P-384"
            if body["kty"] != self.kind:
                raise _RefusedError(400, "BadParameter", f"The key type {body['kty']} is not supported.")
            self.add_key(name, ec.SECP384R1())
            return self._bundle(name)
        if name not in self._keys or version not in (None, self._keys[name][0]):
            raise _RefusedError(404, "KeyNotFound", f"A key with (name/id) {name} was not found in this key vault.")
        if action == "sign":
            if name in self.disabled:
                raise _RefusedError(403, "Forbidden", "Operation sign is not allowed on a disabled key.", "KeyDisabled")
            assert body["alg"] == "ES384"
            digest = _decoded(body["value"])
            r, s = decode_dss_signature(self._keys[name][1].sign(digest, ec.ECDSA(Prehashed(hashes.SHA384()))))
            return {"kid": self._bundle(name)["key"]["kid"], "value": _encoded(r.to_bytes(48) + s.to_bytes(48))}
        return self._bundle(name)

    def _bundle(self, name: str) -> dict[str, Any]:
        version, key = self._keys[name]
        numbers, size = key.public_key().public_numbers(), (key.curve.key_size + 7) // 8
        curve = {"secp384r1": "P-384", "secp256r1": "P-256"}[key.curve.name]
        jwk = {
            "kid": f"https://localhost:{self.port}/keys/{name}/{version}",
            "kty": self.kind,
            "crv": curve,
            "key_ops": ["sign", "verify"],
            "x": _encoded(numbers.x.to_bytes(size)),
            "y": _encoded(numbers.y.to_bytes(size)),
        }
        return {"key": jwk, "attributes": {"enabled": name not in self.disabled, "exportable": False}}


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
