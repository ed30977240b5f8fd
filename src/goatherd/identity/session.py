"""Sessions (GoatDB's key pairs with an owner and an expiration), and their signatures of data, requests and commits.

The formats are in docs/reference/goatdb-formats.md#signatures. Pure. Verification raises an error or returns nothing.
Its results are not cached by signature string, because they depend on the time, and because an altered signature string
can still be valid.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from goatherd.crypto import PrivateKey, PublicKey
from goatherd.crypto.keys import SignatureCheck
from goatherd.errors import (
    ClockSkewError,
    DecodeError,
    EncodeError,
    ExpiredSessionError,
    InvalidSignatureError,
    KeyMismatchError,
    UnknownSignerError,
    VerificationError,
)
from goatherd.identity.remote_key import RemoteKey
from goatherd.times import milliseconds
from goatherd.wire.base32 import base32_decode, base32_encode
from goatherd.wire.javascript_values import (
    JS_SPACE,
    UNDEFINED,
    exact_date_ms,
    is_truthy,
    ms_from_seconds,
    seconds_from_ms,
)
from goatherd.wire.json import json_string, parse_json, stable_stringify, to_json

if TYPE_CHECKING:
    from goatherd.wire.commit import Commit

ROOT_OWNER = "root"
SESSION_LIFETIME = timedelta(days=30)
REQUEST_WINDOW = timedelta(minutes=3)

_MEMBERS = frozenset({"id", "publicKey", "privateKey", "owner", "expiration"})
_NO_MEMBERS: Mapping[str, Any] = {}


class SigningKey(Protocol):
    """The interface of a key that makes raw 96-byte signatures, in memory or in a KMS."""

    @property
    def public_key(self) -> PublicKey: ...

    def sign(self, data: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The public half of a GoatDB session: id, public key, owner, expiration. It never holds a private key.

    Attributes:
        id: GoatDB's session id; any string.
        owner: ``"root"``, the id of a user in ``/sys/users``, or None for an anonymous session.
        expiration_ms: When the session expires, in milliseconds since 1970.
        extra: Members of the JSON that Goatherd does not know. Only the identity document keeps them.
    """

    id: str
    public_key: PublicKey
    owner: str | None
    expiration_ms: int
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def from_json(cls, encoded: Mapping[str, Any]) -> Session:
        """Decode the public half of a session from its JSON object. A private key in it is ignored.

        A caller that must not accept a private key checks for it separately.

        Raises:
            DecodeError: A member is missing or has the wrong type.
        """
        if not isinstance(encoded, Mapping):
            raise DecodeError("a session must be a JSON object")
        session_id, owner = encoded.get("id"), encoded.get("owner")
        if not isinstance(session_id, str) or not session_id:
            raise DecodeError("a session's id must be a string")
        if owner is not None and not isinstance(owner, str):
            raise DecodeError(f"session {session_id!r}: owner must be a string")
        if "expiration" not in encoded:
            raise DecodeError(f"session {session_id!r}: expiration is missing")
        try:
            public_key = PublicKey.from_jwk(encoded.get("publicKey") or {})
            expiration_ms = ms_from_seconds(encoded["expiration"])
        except DecodeError as error:
            raise DecodeError(f"session {session_id!r}: {error}") from None
        extra = {name: value for name, value in encoded.items() if name not in _MEMBERS} or _NO_MEMBERS
        return cls(id=session_id, public_key=public_key, owner=owner, expiration_ms=expiration_ms, extra=extra)

    def to_json(self) -> dict[str, Any]:
        """Encode a session's public members: id, publicKey, owner and expiration, in GoatDB's order, without `extra`.

        SECURITY: every answer to a client encodes sessions by this function, which never writes a private key
        (tests/unit/test_upstream_traps.py).
        """
        encoded: dict[str, Any] = {"id": self.id, "publicKey": self.public_key.to_jwk()}
        if self.owner is not None:
            encoded["owner"] = self.owner
        encoded["expiration"] = seconds_from_ms(self.expiration_ms)
        return encoded

    @property
    def is_root(self) -> bool:
        return self.owner == ROOT_OWNER

    def is_expired(self, now_ms: int) -> bool:
        """Whether the session has expired at `now_ms`; it is still valid in the millisecond of its expiration."""
        return now_ms > self.expiration_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedSession:
    """A session together with its private signing key. Its ``repr`` shows the public half only.

    The key is in memory, or in an HSM or a KMS (`is_remote`); then each signature is a request that blocks.
    """

    session: Session
    signer: SigningKey = field(repr=False, compare=False)

    @classmethod
    def generate(
        cls, *, session_id: str, owner: str | None, now_ms: int, lifetime: timedelta = SESSION_LIFETIME
    ) -> OwnedSession:
        """Create a session with a new key pair, which expires `lifetime` after `now_ms`."""
        key = PrivateKey.generate()
        expiration_ms = exact_date_ms(now_ms + milliseconds(lifetime))
        session = Session(id=session_id, public_key=key.public_key, owner=owner, expiration_ms=expiration_ms)
        return cls(session=session, signer=key)

    @classmethod
    def from_json(cls, encoded: Mapping[str, Any]) -> OwnedSession:
        """Decode a session together with its private key from its JSON object.

        Raises:
            DecodeError: The session is malformed, or has no private key.
            KeyMismatchError: The private key does not belong to the public key.
        """
        session = Session.from_json(encoded)
        if not isinstance(encoded.get("privateKey"), Mapping):
            raise DecodeError(f"session {session.id!r} has no private key")
        try:
            key = PrivateKey.from_jwk(encoded["privateKey"])
        except DecodeError as error:
            raise DecodeError(f"session {session.id!r}: {error}") from None
        if key.public_key != session.public_key:
            raise KeyMismatchError(f"session {session.id!r}: the private key does not belong to the public key")
        return cls(session=session, signer=key)

    def to_secret_json(self) -> dict[str, Any]:
        """Encode the session with its private key, in GoatDB's member order, for the store or a ``settings.json`` only.

        Raises:
            TypeError: The key is in an HSM or a KMS and cannot be exported.
        """
        if not isinstance(self.signer, PrivateKey):
            raise TypeError(f"the key of session {self.session.id!r} is in an HSM or a KMS and cannot be exported")
        public = self.session.to_json()
        key = {"id": public.pop("id"), "publicKey": public.pop("publicKey"), "privateKey": self.signer.to_jwk()}
        return {**key, **public}

    @property
    def id(self) -> str:
        return self.session.id

    @property
    def is_remote(self) -> bool:
        """Whether the private key is in an HSM or a KMS, and no process can read it."""
        return isinstance(self.signer, RemoteKey)


class SignatureEnvelope(NamedTuple):
    """A decoded GoatDB signature string: the raw signature, the session that signed, and the time.

    Attributes:
        session_id: Id of the session that claims to have signed.
        signature: The raw signature.
        ts: The time of signing, in milliseconds since 1970; any JSON value, because it is not checked yet. This member
            is not signed.
        data: The data embedded in the signature string, which is signed too; `UNDEFINED` if there is none.
    """

    session_id: str
    signature: bytes
    ts: Any
    data: Any


MAX_SIGNATURE: Final = 4096
"""Maximum length of a signature string. GoatDB's have about 420 characters, those of Goatherd's tools up to 1 200."""


def parse_signature(text: str) -> SignatureEnvelope:
    """Decode a GoatDB signature string into a `SignatureEnvelope`. The signature is not verified.

    SECURITY: embedded data must be parsed and serialized before the signature can be verified, which takes 25 ms for a
    header of 60 KiB. So a longer string than `MAX_SIGNATURE` is rejected unread (tests/hostile/test_requests.py).

    Raises:
        InvalidSignatureError: The string is too long, not base32 or not JSON, or a member is missing or has the wrong
            type.
    """
    if len(text) > MAX_SIGNATURE:
        raise InvalidSignatureError(f"a signature must have at most {MAX_SIGNATURE} characters, not {len(text)}")
    try:
        envelope = parse_json(base32_decode(text))
        if type(envelope) is not dict:
            raise InvalidSignatureError("the signature string does not hold a JSON object")
        signature = base32_decode(str(envelope.get("s", "?")))
    except DecodeError:
        raise InvalidSignatureError("the signature string is malformed: it must be base32 of JSON") from None
    session_id = envelope.get("i")
    if not isinstance(session_id, str) or not session_id:
        raise InvalidSignatureError("the signature does not name the session that made it")
    return SignatureEnvelope(session_id, signature, envelope.get("ts", UNDEFINED), envelope.get("d", UNDEFINED))


def signed_text(session_id: str, external: Any, embedded: Any) -> str:
    """Return the exact text that GoatDB signs for a session, external data, and data embedded in the signature string.

    Raises:
        EncodeError: The data contain a null, which GoatDB cannot sign.
    """
    container = {"sessionId": session_id}
    if is_truthy(external):
        container["extData"] = external
    if is_truthy(embedded):
        container["sigData"] = embedded
    return stable_stringify(container)


def _to_number(value: Any) -> float:
    """Return JavaScript's ``Number(value)`` for a JSON value; NaN if it is not a number.

    SECURITY: the value comes from a header whose signature is not checked yet, so a string of more than 40 characters,
    longer than any real number, is not parsed and gives NaN (tests/unit/identity/test_session.py).
    """
    if value is None:
        return 0.0
    if isinstance(value, bool | int | float):
        return float(value)
    if isinstance(value, list) and len(value) <= 1:
        return _to_number(value[0] if value and value[0] is not None else "")
    if not isinstance(value, str) or len(value) > _MAX_NUMBER_TEXT:
        return math.nan
    text = value.strip(JS_SPACE)
    if not text:
        return 0.0
    for prefix, base in (("0x", 16), ("0o", 8), ("0b", 2)):
        if text[:2].lower() == prefix:
            digits = text[2:]
            if not digits or not _is_integer_text(digits, base):
                return math.nan
            integer = int(digits, base)
            return float(integer) if integer.bit_length() <= 1023 else math.inf
    return float(text) if _DECIMAL.fullmatch(text) else math.nan


def _is_long_text(value: Any) -> bool:
    """Return whether a value is a string that is too long for `_to_number`, although JavaScript would parse it."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return isinstance(value, str) and len(value) > _MAX_NUMBER_TEXT


def _is_integer_text(digits: str, base: int) -> bool:
    return all(digit in "0123456789abcdef"[:base] for digit in digits.lower())


_DECIMAL = re.compile(r"[+-]?(?:Infinity|(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)")
_MAX_NUMBER_TEXT: Final = 40
"""Longest text that is read as a number; a time in milliseconds has 13 digits."""


def sign_data(owned: OwnedSession, *, now_ms: int, external: Any = None, embedded: Any = None) -> str:
    """Sign `external` (sent separately) and `embedded` (part of the signature string); return the signature string.

    Raises:
        EncodeError: The data contain a null, which GoatDB cannot sign.
    """
    text = signed_text(owned.id, external, embedded)
    return _sign_text(owned, text, now_ms, f',"d":{to_json(embedded)}' if is_truthy(embedded) else "")


def _sign_text(owned: OwnedSession, text: str, now_ms: int, data: str = "") -> str:
    return format_signature(owned.session.id, owned.signer.sign(text.encode()), now_ms, data)


def format_signature(session_id: str, signature: bytes, now_ms: int, data: str = "") -> str:
    """Return GoatDB's signature string for a raw signature that was made elsewhere, such as in a KMS.

    Args:
        session_id: Id of the session that has signed.
        signature: The raw signature, 96 bytes.
        now_ms: The time of the signature, in milliseconds since 1970.
        data: The envelope's further members, as JSON text that begins with a comma.
    """
    envelope = f'{{"i":{json_string(session_id)},"s":"{base32_encode(signature)}","ts":{now_ms}{data}}}'
    return base32_encode(envelope.encode())


def verify_data(session: Session, signature: str | SignatureEnvelope, *, external: Any = None) -> None:
    """Check that `session` signed `external` and the data embedded in the signature string.

    Raises:
        InvalidSignatureError: The signature is malformed, covers other data, or covers data that GoatDB cannot sign
            (with a null).
        UnknownSignerError: The signature names another session.
        ExpiredSessionError: The signature's timestamp is later than the session's expiration.
    """
    envelope = parse_signature(signature) if isinstance(signature, str) else signature
    _check_envelope(session, envelope)
    try:
        text = signed_text(session.id, external, envelope.data)
    except EncodeError as error:
        raise InvalidSignatureError(f"the data cannot be signed: {error}") from error
    session.public_key.verify(envelope.signature, text.encode())


def is_statement_signed(signature: str, *, by: Session, statement: Mapping[str, Any]) -> bool:
    """Return whether session `by` has signed exactly `statement`, before it had expired."""
    try:
        envelope = parse_signature(signature)
        # SECURITY: a signature can embed data, which it then covers as well. Reject it: the signature must cover the
        # statement and nothing else (tests/unit/identity/test_session.py).
        if envelope.data is not UNDEFINED:
            return False
        verify_data(by, envelope, external=statement)
    except VerificationError:
        return False
    return True


def _check_envelope(session: Session, envelope: SignatureEnvelope) -> None:
    if envelope.session_id != session.id:
        raise UnknownSignerError(f"the signature is by session {envelope.session_id!r:.100}, not by {session.id!r}")
    ts = envelope.ts
    if _is_long_text(ts):
        raise InvalidSignatureError("the signature's timestamp has more than 40 characters")
    # COMPAT: the timestamp is compared as JavaScript does: a missing or unreadable one never counts as too late.
    if ts is not UNDEFINED and _to_number(ts) > session.expiration_ms:
        raise ExpiredSessionError(f"session {session.id!r} had expired when it made the signature")


def sign_commit(owned: OwnedSession, commit: Commit, *, now_ms: int) -> Commit:
    """Return the commit with the signature of the session `owned` over its canonical form.

    Args:
        now_ms: The time of signing, in milliseconds since 1970, which the signature string contains.

    Raises:
        EncodeError: The commit's contents have a null, or the commit has no timestamp or connection id, so that no
            reader could verify it.
    """
    if not commit.ts or not commit.connection or not commit.version:
        raise EncodeError(f"commit {commit.id!r:.100} lacks a timestamp (ts), a connection id or a version")
    return commit.with_signature(_sign_text(owned, commit.signed_text(owned.session.id), now_ms))


def verify_commit(session: Session, commit: Commit, envelope: SignatureEnvelope | None = None) -> None:
    """Check that `session` signed the commit. Whether the session has permission to write the commit is not checked.

    `read_commit_signature` makes the same checks, but does not verify the signature.

    Args:
        envelope: The commit's parsed signature, if the caller already has it.

    Raises:
        InvalidSignatureError: The commit is unsigned, or its signature is malformed or covers other data.
        UnknownSignerError: The signature names another session.
        ExpiredSessionError: The signature's timestamp is later than the session's expiration.
    """
    read_commit_signature(session, commit, envelope).verify()


def read_commit_signature(
    session: Session, commit: Commit, envelope: SignatureEnvelope | None = None
) -> SignatureCheck:
    """Return a commit's signature, so that it can be verified with others, after all other checks of `verify_commit`.

    Raises:
        InvalidSignatureError, UnknownSignerError, ExpiredSessionError: As `verify_commit`.
    """
    if commit.signature is None:
        raise InvalidSignatureError(f"commit {commit.id!r:.100} is not signed")
    if envelope is None:
        envelope = parse_signature(commit.signature)
    _check_envelope(session, envelope)
    if not commit.ts or not commit.connection:
        # COMPAT: when GoatDB verifies such a commit, it fills in its own time and connection id, so the signature does
        # not match.
        raise InvalidSignatureError(f"commit {commit.id!r:.100} lacks a timestamp (ts) or a connection id")
    try:
        if is_truthy(envelope.data):
            text = signed_text(session.id, commit.signed_object(), envelope.data)
        else:
            text = commit.signed_text(session.id)
    except EncodeError as error:
        raise InvalidSignatureError(f"the commit's contents cannot be signed: {error}") from error
    if ":null" in text and not commit.is_finite:
        # COMPAT: GoatDB signs an infinite number as null, and sends null in its place, so readers get another value
        # than the signer had.
        raise InvalidSignatureError(f"commit {commit.id!r:.100} holds a number that JSON cannot represent")
    return SignatureCheck(session.public_key, envelope.signature, text.encode())


def sign_request(owned: OwnedSession, *, now_ms: int, nonce: str) -> str:
    """Return the value of the ``x-goat-sig`` header that authenticates a request; `nonce` is a fresh id."""
    return sign_data(owned, now_ms=now_ms, embedded={"id": nonce, "ts": now_ms})


def verify_request(session: Session, signature: str | SignatureEnvelope, *, now_ms: int) -> None:
    """Check the signature of a request, and that its timestamp is close to `now_ms`.

    The result depends on `now_ms`, so it must not be cached.

    Raises:
        ClockSkewError: The embedded timestamp is missing, or more than three minutes from `now_ms`.
        ExpiredSessionError: The session has expired.
        InvalidSignatureError, UnknownSignerError: As for `verify_data`. A signature without embedded data is malformed.
    """
    envelope = parse_signature(signature) if isinstance(signature, str) else signature
    check_request_unsafe(session, envelope, now_ms=now_ms)
    verify_data(session, envelope)


def check_request_unsafe(session: Session, envelope: SignatureEnvelope, *, now_ms: int) -> None:
    """Make the checks of `verify_request`, except that of the signature itself.

    Use it only for an envelope whose signature by the key of this session was verified before.

    Raises:
        ClockSkewError, ExpiredSessionError, InvalidSignatureError, UnknownSignerError: As for `verify_request`.
    """
    check_request_time(envelope, now_ms=now_ms)
    if session.is_expired(now_ms):
        raise ExpiredSessionError(f"session {session.id!r} has expired")
    _check_envelope(session, envelope)


def check_request_time(envelope: SignatureEnvelope, *, now_ms: int) -> None:
    """Check the timestamp that is embedded in a request's signature. This needs no key.

    Raises:
        ClockSkewError: The timestamp is missing, or more than three minutes from `now_ms`.
        InvalidSignatureError: The signature string has no embedded data, as a request's signature must.
    """
    data = envelope.data
    if not is_truthy(data):
        raise InvalidSignatureError("a request signature must contain a timestamp, but this one contains no data")
    ts = _to_number(data["ts"]) if isinstance(data, dict) and "ts" in data else math.nan
    if not abs(now_ms - ts) <= REQUEST_WINDOW.total_seconds() * 1000:
        raise ClockSkewError("the request's signing time differs from this machine's clock by more than three minutes")
