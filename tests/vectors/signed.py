"""Checks the vectors of signed data: sessions, settings, data and request signatures, commits."""

from __future__ import annotations

import contextlib
import re
from typing import Any

from goatherd.crypto import PrivateKey
from goatherd.errors import DecodeError, GoatherdError
from goatherd.identity.session import (
    REQUEST_WINDOW,
    OwnedSession,
    Session,
    check_request_time,
    parse_signature,
    sign_commit,
    sign_data,
    signed_text,
    verify_commit,
    verify_data,
)
from goatherd.identity.strict_json import to_pretty_json
from goatherd.wire.base32 import base32_decode, base32_encode
from goatherd.wire.commit import Commit
from goatherd.wire.encoders import Decoder
from goatherd.wire.items import apply_edit, canonical_record, decode_data, encode_data, normalize_data
from goatherd.wire.javascript_values import date_from_json, is_truthy
from goatherd.wire.json import parse_json, to_json
from goatherd.wire.schema import SESSIONS, Registry
from tests.vectors.notation import registry_of, session_of, value_of
from tests.vectors.sheet import (
    Case,
    NotJudgedError,
    Sheet,
    accepts,
    equal,
    mismatch,
    refuses,
    same_text,
    yields,
)

Document = dict[str, Any]
_DAY_MS = 86_400_000
_BASE64URL = re.compile(r"(?:[A-Za-z0-9_-]{4})*(?:[A-Za-z0-9_-]{2,3})?")


def signatures(document: Document, sheet: Sheet) -> None:
    sessions = [session_of(each) for each in document.get("sessions") or []]

    def case(c: Case) -> None:
        signer = sessions[c["signer"]]
        external, embedded = value_of(c["external"]), value_of(c["embedded"])
        if "sign_error" in c:
            refuses("signed_string", lambda: signed_text(signer.id, external, embedded))
            return
        same_text("signed_string", c["signed_string"], signed_text(signer.id, external, embedded))
        same_text("envelope", c["envelope"], base32_decode(c["signature"]).decode())
        same_text("signature", c["signature"], base32_encode(c["envelope"].encode()))
        _envelope_rebuilt(c, signer, embedded)
        equal("expect", c["expect"], accepts(lambda: verify_data(signer, c["signature"], external=external)))

    def _envelope_rebuilt(c: Case, signer: Session, embedded: Any) -> None:
        """Rebuild an envelope with a signer that returns the recorded raw signature, and check that every byte is the
        same."""
        envelope = parse_signature(c["signature"])
        recorded = OwnedSession(session=signer, signer=_Recorded(signer, envelope.signature))
        again = sign_data(recorded, now_ms=envelope.ts, external=value_of(c["external"]), embedded=embedded)
        same_text("signature string made anew", c["signature"], again)

    def verify(c: Case) -> None:
        verifier = c["verifier"]
        session = session_of(verifier) if isinstance(verifier, dict) else sessions[verifier]
        external = value_of(c.get("external", {"$": "undefined"}))
        signature = value_of(c.get("signature"))

        def check() -> None:
            verify_data(session, signature if isinstance(signature, str) else "", external=external)

        equal("accepted", False if "throws" in c else c["expect"], accepts(check))

    sheet.each("cases", document.get("cases"), case)
    sheet.each("verify", document.get("verify"), verify)


class _Recorded:
    """A signer whose signatures were made elsewhere."""

    def __init__(self, session: Session, signature: bytes) -> None:
        self.public_key = session.public_key
        self._signature = signature

    def sign(self, _data: bytes, /) -> bytes:
        return self._signature


def request_signatures(document: Document, sheet: Sheet) -> None:
    sessions = [session_of(each) for each in document.get("sessions") or []]
    ours_ms = REQUEST_WINDOW.total_seconds() * 1000

    def case(c: Case) -> None:
        equal("window_ms of the file", document.get("window_ms", ours_ms), ours_ms)
        session = sessions[c["verifier"]]

        def check() -> None:
            # The recorded function does not look at the session's own expiration; `verify_request` also does.
            envelope = parse_signature(c["signature"])
            check_request_time(envelope, now_ms=c["now_ms"])
            verify_data(session, envelope)

        equal("accepted", False if "throws" in c else c["expect"], accepts(check))

    sheet.each("cases", document.get("cases"), case)


# --- sessions and settings.json ---------------------------------------------------------------------------------------


def sessions(document: Document, sheet: Sheet) -> None:
    sheet.each("sessions", document.get("sessions"), _session)
    sheet.each("settings", document.get("settings"), _settings)
    sheet.each("load", document.get("load"), _load)


def _reencoded(encoded: dict[str, Any], *, public: bool = False) -> dict[str, Any]:
    """Decode a session and encode it again, in the member order it came in, unknown members kept."""
    ours = _public_or_owned(encoded, public=public)
    return {name: ours.get(name, value) for name, value in encoded.items() if not (public and name == "privateKey")}


def _public_or_owned(encoded: dict[str, Any], *, public: bool) -> dict[str, Any]:
    if public or "privateKey" not in encoded:
        session = Session.from_json(encoded)
        session.public_key.check()
        return session.to_json()
    return OwnedSession.from_json(encoded).to_secret_json()


def _session(c: Case) -> None:
    encoded = parse_json(c["json"])
    if c.get("decoded", {}).get("expiration_ms") == "NaN":
        # SECURITY: GoatDB takes an invalid date, with which no signature ever counts as too late; Goatherd rejects it.
        refuses("decoded", lambda: Session.from_json(encoded))
        return
    if not yields(c, "reencoded_json", lambda: to_json(_reencoded(encoded)), same_text):
        return
    same_text("public_json", c["public_json"], to_json(_reencoded(encoded, public=True)))
    session = Session.from_json(encoded)
    decoded = {"id": session.id, "owner": session.owner, "expiration_ms": session.expiration_ms}
    equal("decoded", c["decoded"], {**decoded, "has_private": "privateKey" in encoded})
    _session_item(c, session)
    example = c.get("signed_example")
    if example is not None:
        owned = OwnedSession.from_json(encoded)
        made = sign_data(owned, now_ms=example["now_ms"], external=value_of(example["external"]))
        same_text("signed_example", example["signature"], made)


def _session_item(c: Case, session: Session) -> None:
    wire = c["item_wire"]
    equal("item_wire read and written", wire, canonical_record(wire))
    encoded = session.to_json()
    fields: dict[str, Any] = {"id": session.id, "publicKey": to_json(encoded["publicKey"])}
    fields["expiration"] = encoded["expiration"]
    if session.owner is not None:
        fields["owner"] = session.owner
    data = normalize_data(decode_data(fields, SESSIONS), SESSIONS)
    made = canonical_record({"s": SESSIONS.marker, "d": encode_data(data, SESSIONS), "n": True})
    equal("item_wire made from the session", wire, made)
    if "from_item" in c:
        item = wire["d"]
        read = Session.from_json({**item, "publicKey": parse_json(item["publicKey"])})
        decoded = {"id": read.id, "owner": read.owner, "expiration_ms": read.expiration_ms}
        equal("from_item", c["from_item"], decoded)


def _settings(c: Case) -> None:
    settings = parse_json(c["text"])
    again = dict(settings)
    if "currentSession" in settings:
        again["currentSession"] = _reencoded(settings["currentSession"])
    for name in ("roots", "trustedSessions"):
        if name in settings:
            again[name] = [_reencoded(each) for each in settings[name]]
    same_text("text", c["text"], to_pretty_json(again).decode())


def _load(c: Case) -> None:
    """Load settings as GoatDB does, with errors ignored; Goatherd's settings reject such files instead."""
    now_ms = c["now_ms"]
    sessions: dict[str, list[dict[str, Any]]] = {"currentSession": [], "roots": [], "trustedSessions": []}
    with contextlib.suppress(GoatherdError):
        _load_until_error((c["text"] or "").removeprefix("\ufeff"), sessions)
    found, roots, trusted = sessions.values()
    equal("current", c["current"], "kept" if found else "new")
    rewritten = False
    if found:
        owner, expiration_ms = found[0].get("owner"), date_from_json(found[0]["expiration"]).ms
        rewritten = expiration_ms is not None and expiration_ms - now_ms < 15 * _DAY_MS
        expiration_ms = now_ms + 30 * _DAY_MS if rewritten else expiration_ms
    else:
        owner, expiration_ms = "root", now_ms + 30 * _DAY_MS
    equal("owner", c["owner"] or "", owner or "")
    equal("expiration_ms", None if c["expiration_ms"] == "NaN" else c["expiration_ms"], expiration_ms)
    equal("roots", c["roots"], len(roots))
    equal("trusted", c["trusted"], len(trusted))
    equal("file_after", c["file_after"], "absent" if c["text"] is None else "rewritten" if rewritten else "unchanged")


def _load_until_error(text: str, sessions: dict[str, list[dict[str, Any]]]) -> None:
    """Collect the sessions of a settings.json that GoatDB decodes before the first error."""
    settings = parse_json(text)
    if settings is None:
        raise DecodeError("null has no members")
    for name, found in sessions.items():
        if not isinstance(settings, dict) or name not in settings:
            continue
        member = Decoder(cyclical=False).decode(settings[name])
        if name == "currentSession":
            if not is_truthy(member):
                continue
            if not isinstance(member, dict) or "privateKey" not in member:
                raise DecodeError("the current session has no private key")
            member = [member]
        if not isinstance(member, list) and member != "":
            raise DecodeError("not an array")
        for each in member:
            _import(each)
            found.append(each)


def _import(encoded: Any) -> None:
    """Decode a session as GoatDB does: each key alone, whatever the date."""
    if not isinstance(encoded, dict):
        raise DecodeError("no session")
    _import_key(encoded.get("publicKey"), "verify")
    if is_truthy(encoded.get("privateKey")):
        _import_key(encoded["privateKey"], "sign")
    date_from_json(encoded.get("expiration"))


def _import_key(jwk: Any, operation: str) -> None:
    """Check a JWK as Deno does when it imports the key; whether the numbers are a valid key shows later."""
    if not isinstance(jwk, dict):
        raise DecodeError("no key")
    operations, is_extractable = jwk.get("key_ops"), jwk.get("ext")
    if (
        jwk.get("kty") != "EC"
        or jwk.get("alg") not in (None, "ES384")
        or jwk.get("use") not in (None, "sig")
        or (isinstance(operations, list) and operation not in operations)
        or (isinstance(operations, list) and any(one not in ("sign", "verify") for one in operations))
        or not (is_extractable is None or is_truthy(is_extractable))
        or (jwk.get("d") is None) == (operation == "sign")
        or any(jwk.get(name) is None for name in ("x", "y"))
    ):
        raise DecodeError("Deno refuses this key")
    if operation == "sign":
        PrivateKey.from_scalar(jwk["d"])
    elif not all(isinstance(jwk.get(name), str) and _BASE64URL.fullmatch(jwk[name]) for name in ("x", "y")):
        raise DecodeError("a coordinate must be base64url")


# --- commits ----------------------------------------------------------------------------------------------------------


def commits(document: Document, sheet: Sheet) -> None:
    pool = [session_of(each) for each in document.get("sessions") or []]
    registry = registry_of(document)
    org = document.get("org", "localhost")
    sheet.each("cases", document.get("cases"), lambda c: _commit(c, pool, registry, c.get("org", org)))


def _commit(c: Case, pool: list[Session], registry: Registry, org: str) -> None:
    raw = parse_json(c["wire"])
    if "decode_error" in c:
        refuses("decoded", lambda: Commit.from_json(raw, org=org, registry=registry, like_goatdb=True))
        return
    if "receiver_error" in c:
        refuses("receiver's text", lambda: _text(raw, pool[0].id, registry, org))
        commit = None
    else:
        commit = Commit.from_json(raw, org=org, registry=registry, like_goatdb=True)
    if c.get("unsigned"):
        _unsigned(c, commit)
        return
    signer = pool[c["signer"]]
    if commit is not None:
        _texts(c, raw, commit, signer)
        if "base_item" in c:
            _delta(c, commit, registry)
    equal(
        "accepted",
        False if "throws" in c else c["expect"],
        commit is not None and accepts(lambda: verify_commit(signer, commit)),
    )
    in_pool = commit is not None and _pool_accepts(commit, pool)
    equal("accepted by the pool", False if "pool_throws" in c else c["pool_expect"], in_pool)
    if commit is not None and "add_session" in c:
        _add_session(c, commit, pool[0])


def _text(raw: Any, signer_id: str, registry: Registry, org: str) -> str:
    return Commit.from_json(raw, org=org, registry=registry, like_goatdb=True).signed_text(signer_id)


def _unsigned(c: Case, commit: Commit | None) -> None:
    if commit is None:
        raise NotJudgedError("an unsigned commit that cannot be decoded")
    owned = OwnedSession.generate(session_id=commit.session, owner=None, now_ms=0)
    if "sign_error" in c:
        refuses("signed", lambda: sign_commit(owned, commit, now_ms=0))
    else:
        verify_commit(owned.session, sign_commit(owned, commit, now_ms=0))


def _texts(c: Case, raw: Any, commit: Commit, signer: Session) -> None:
    expected = c["signed_string"] if c.get("receiver_same") else c.get("receiver_string")
    if c.get("receiver_nondeterministic"):
        return
    if expected is None:
        mismatch("receiver_string", "a text in the case", None)
    got = commit.signed_text(signer.id)
    same_text("receiver's text", expected, got)
    container = {"extData": commit.signed_object(), "sessionId": signer.id}
    same_text("receiver's text from the object", expected, signed_text(signer.id, container["extData"], None))
    if c.get("receiver_same") and "tampered_from" not in c:
        sent = {name: value for name, value in raw.items() if name != "age"}
        equal("what would be sent again", sent, commit.to_json())


def _delta(c: Case, commit: Commit, registry: Registry) -> None:
    if re.search(r'"changeType": *"rt"', c["wire"]):
        return  # Its signature is judged above all the same.
    edit, base = commit.edit, c["base_item"]
    if edit is None:
        mismatch("contents", "a delta", "a record")
    if edit.get("s", base["s"]) != base["s"]:
        # GoatDB applies the edit in the schema of its base, and gets another item.
        refuses("target_item", lambda: apply_edit(base, edit, registry))
    else:
        equal("target_item", c["target_item"], apply_edit(base, edit, registry))


def _pool_accepts(commit: Commit, pool: list[Session]) -> bool:
    """GoatDB's ``TrustPool.verify`` with these sessions."""

    def check() -> None:
        envelope = parse_signature(commit.signature or "")
        for session in pool:
            if session.id == envelope.session_id:
                return verify_commit(session, commit, envelope)
        raise DecodeError("unknown session")

    return accepts(check)


def _add_session(c: Case, commit: Commit, root: Session) -> None:
    """GoatDB's ``TrustPool.addSession`` with one root."""
    added = accepts(lambda: verify_commit(root, commit))
    equal("add_session", c["add_session"], added)
    data = commit.data or {}
    introduced = added and data.get("owner") == "root" and data.get("id") != root.id
    equal("roots_after", c["roots_after"], 2 if introduced else 1)
