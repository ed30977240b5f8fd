"""Bind a signed request to one server, method, path and body, and reject a request that was accepted before.

GoatDB's request signature covers only a random id and a timestamp. So for three minutes, a server that has received a
request can send another body with the same signature to another server. Goatherd's tools and servers therefore also
sign a member `MEMBER` that names the server, method, path and body; GoatDB ignores it. Goatherd's servers, agents and
doors (proxies in front of GoatDB) reject a request that does not match its `MEMBER`, or that they have already
accepted.

Pure: the time is an argument. `goatherd.trust` verifies the signatures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from goatherd.errors import (
    InvalidSignatureError,
    OtherServerError,
    ReplayedRequestError,
    RequestMismatchError,
    UnboundRequestError,
)
from goatherd.identity.session import REQUEST_WINDOW, OwnedSession, SignatureEnvelope, sign_data

MEMBER: Final = "goatherd"
"""Member of the signed data of a request that holds its binding."""

MAX_AUDIENCE: Final = 8
"""How many server processes one request may name: those that answer behind one URL."""

MISDIRECTED: Final = 421
"""HTTP status of a request that is signed for another server; the answer names this one in a header."""

_MAX_NONCE: Final = 64
_MAX_NONCES: Final = 100_000


@dataclass(frozen=True, slots=True)
class RequestBinding:
    """The server processes, method, path and body for which a request was signed, so that it cannot be sent elsewhere.

    Attributes:
        audience: Ids of the server processes that may accept the request; empty if the sender does not know them.
        method: The HTTP method.
        path: The path, in lower case, without the query.
        digest: SHA-256 of the body, hexadecimal.
    """

    audience: tuple[str, ...]
    method: str
    path: str
    digest: str

    @classmethod
    def for_request(cls, method: str, path: str, body: bytes, audience: Sequence[str] = ()) -> RequestBinding:
        """Return the binding for a request that is about to be sent: its method, path, body digest and audience."""
        return cls(tuple(audience), method, path, digest_body(body))

    def to_json(self) -> dict[str, Any]:
        """Return the request binding as the JSON value that is embedded in the signature."""
        return {"aud": list(self.audience), "method": self.method, "path": self.path, "sha256": self.digest}


def digest_body(body: bytes) -> str:
    """Return the SHA-256 of a request's body, for a `RequestBinding`. Takes milliseconds for a megabyte."""
    return hashlib.sha256(body).hexdigest()


def sign_bound_request(owned: OwnedSession, binding: RequestBinding, *, now_ms: int, nonce: str) -> str:
    """Sign one request to one server; return the value of its ``x-goat-sig`` header. `nonce` is a fresh id."""
    return sign_data(owned, now_ms=now_ms, embedded={"id": nonce, "ts": now_ms, MEMBER: binding.to_json()})


def read_binding(envelope: SignatureEnvelope) -> RequestBinding | None:
    """Return the server, path and body to which a signature binds its request; None if it names none, as GoatDB's do.

    Raises:
        InvalidSignatureError: The signature contains a binding in an invalid form.
    """
    if not isinstance(envelope.data, dict) or MEMBER not in envelope.data:
        return None
    raw = envelope.data[MEMBER]
    audience = raw.get("aud") if isinstance(raw, dict) else None
    texts = [raw.get(name) for name in ("method", "path", "sha256")] if isinstance(raw, dict) else []
    if (
        not isinstance(audience, list)
        or len(audience) > MAX_AUDIENCE
        or not all(isinstance(one, str) for one in [*audience, *texts])
    ):
        raise InvalidSignatureError("the part of the signature that names server, path and body is malformed")
    if type(envelope.data.get("ts")) not in (int, float):
        raise InvalidSignatureError("the signed timestamp (ts) of a request that is bound to a server must be a number")
    method, path, digest = texts
    return RequestBinding(tuple(audience), str(method), str(path), str(digest))


class RequestGuard:
    """Checks that each signed request was meant for this server, and rejects replayed requests.

    Args:
        instance: Returns the id of this server process, which senders write into the audience of a request.
    """

    def __init__(self, instance: Callable[[], str]) -> None:
        self._instance = instance
        self._accepted: dict[str, dict[str, float]] = {}  # by root: when each id of a request expires

    @property
    def instance(self) -> str:
        """The id of this server process, which requests name as their audience."""
        return self._instance()

    def check_request(
        self,
        envelope: SignatureEnvelope,
        binding: RequestBinding | None,
        *,
        method: str,
        path: str,
        digest: str,
        is_root: bool,
        now_ms: int,
    ) -> None:
        """Check that a request was meant for this server and is not a replay.

        Call it once, after verifying the signature. SECURITY: a server that receives a root's request must not be able
        to send it to another server (tests/unit/node/test_bound_requests.py).

        Args:
            envelope: The signature of the request.
            binding: The binding that `read_binding` returned for the signature; None if it has none.
            method: The HTTP method of the request.
            path: The path of the request, in lower case, without the query.
            digest: SHA-256 of the body of the request, as `digest_body` returns it.
            is_root: Whether a root has signed the request. Only such requests are remembered, to detect replays.
            now_ms: Milliseconds since 1970.

        Raises:
            RequestMismatchError: The request is signed for another method, path or body.
            OtherServerError: The request is signed for another server.
            ReplayedRequestError: The request was accepted before.
        """
        if binding is None:
            return
        if (binding.method, binding.path, binding.digest) != (method, path, digest):
            raise RequestMismatchError(
                f"{method} {path}: the request was signed for {binding.method:.20} {binding.path:.100} or another body"
            )
        if self.instance not in binding.audience:
            raise OtherServerError(f"{method} {path}: the request was signed for another server process")
        if is_root:
            self._accept_nonce(envelope, now_ms)

    def check_management_request(self, envelope: SignatureEnvelope, *, path: str, digest: str, now_ms: int) -> None:
        """Check a ``POST`` to a management endpoint, signed by a root, as `check_request` does; it must be bound.

        Raises:
            UnboundRequestError: The request has no binding.
            InvalidSignatureError: The binding has an invalid form.
            RequestMismatchError, OtherServerError, ReplayedRequestError: As `check_request`.
        """
        binding = read_binding(envelope)
        if binding is None:
            raise UnboundRequestError(
                f"POST {path}: the signature does not name the server and the request that it is for"
            )
        self.check_request(envelope, binding, method="POST", path=path, digest=digest, is_root=True, now_ms=now_ms)

    def _accept_nonce(self, envelope: SignatureEnvelope, now_ms: int) -> None:
        nonce, root = envelope.data["id"], envelope.session_id
        if len(nonce) > _MAX_NONCE:
            raise InvalidSignatureError(f"the request's id is too long: it has more than {_MAX_NONCE} characters")
        for accepted in self._accepted.values():
            # In the order of arrival; one whose sender's clock is ahead keeps later ones for six minutes at most.
            while accepted and accepted[oldest := next(iter(accepted))] < now_ms:
                del accepted[oldest]
        # SECURITY: counted by root, so that a thief of one root cannot block the requests of the others
        # (tests/unit/node/test_bound_requests.py).
        accepted = self._accepted.setdefault(root, {})
        if nonce in accepted:
            raise ReplayedRequestError(f"a request of session {root!r:.100} was received a second time")
        if len(accepted) >= _MAX_NONCES:
            # After the clock was set back, expired ones stand behind some that expire much later.
            accepted = self._accepted[root] = {each: until for each, until in accepted.items() if until >= now_ms}
        if len(accepted) >= _MAX_NONCES:
            raise ReplayedRequestError(
                f"too many requests signed by root {root!r:.100} within three minutes: a repeated one could not be"
                " detected",
                hint="If you did not send them, the root's key was stolen: `goatherd revoke` it.",
            )
        # The signed time counts until it is three minutes old.
        window_ms = REQUEST_WINDOW.total_seconds() * 1000
        accepted[nonce] = max(now_ms, float(envelope.data["ts"])) + window_ms
