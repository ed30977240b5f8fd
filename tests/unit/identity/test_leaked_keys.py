"""Private keys are found in every form in which they leak, and nothing else is reported as a key."""

from __future__ import annotations

import base64
import json
import secrets
from datetime import timedelta

import pytest

from goatherd.crypto.keys import fingerprint
from goatherd.identity.document import encode_document
from goatherd.identity.leaked_keys import find_private_keys
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.identity.transitions import create_document

NOW_MS = 1_700_000_000_000
ROOT = OwnedSession.generate(session_id="r00t", owner=ROOT_OWNER, now_ms=NOW_MS, lifetime=timedelta(days=90))
DOCUMENT = encode_document(create_document(ROOT, NOW_MS))
PUBLIC = fingerprint(ROOT.session.public_key)
ENCODED = base64.b64encode(DOCUMENT)
WRAPPED = b"\n    ".join(ENCODED[start : start + 76] for start in range(0, len(ENCODED), 76))


@pytest.mark.parametrize(
    "content",
    [
        DOCUMENT,
        json.dumps(json.loads(DOCUMENT), separators=(",", ":")).encode(),
        json.dumps({"log": DOCUMENT.decode()}).encode(),
        json.dumps([json.dumps({"log": DOCUMENT.decode()})]).encode(),
        repr(json.loads(DOCUMENT)).encode(),
        b"data:\n  current: " + ENCODED + b"\n",
        b"data:\n  current: |\n    " + WRAPPED + b"\n",
        b"SETTINGS=" + base64.urlsafe_b64encode(DOCUMENT).rstrip(b"="),
        b"echo " + base64.b64encode(b"." + DOCUMENT) + b" | base64 -d",
        b"\xff\xfe\x00" + DOCUMENT + b"\x00\xff",
    ],
    ids=[
        "file",
        "minified",
        "in JSON",
        "in JSON twice",
        "Python",
        "base64",
        "wrapped",
        "URL-safe",
        "shifted",
        "binary",
    ],
)
def test_a_root_key_is_found_in_every_form(content: bytes) -> None:
    (found,) = find_private_keys(content)
    assert (found.fingerprint, found.session_id) == (PUBLIC, "r00t")
    assert found.is_root
    assert found.is_settings
    assert 0 <= found.offset < len(content)


def test_a_key_alone_is_found_if_its_public_half_or_its_curve_stands_beside_it() -> None:
    jwk = ROOT.to_secret_json()["privateKey"]
    (found,) = find_private_keys(json.dumps(jwk).encode())
    assert (found.fingerprint, found.session_id, found.is_root) == (PUBLIC, None, False)
    assert len(find_private_keys(json.dumps({"crv": "P-384", "d": jwk["d"]}).encode())) == 1
    assert find_private_keys(json.dumps({"d": jwk["d"]}).encode()) == []


def test_a_user_s_key_is_no_root_s() -> None:
    user = OwnedSession.generate(session_id="u", owner="ann", now_ms=NOW_MS, lifetime=timedelta(days=1))
    (found,) = find_private_keys(json.dumps(user.to_secret_json()).encode())
    assert (found.session_id, found.is_root, found.is_settings) == ("u", False, False)


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"currentSession": ROOT.session.to_json(), "roots": [ROOT.session.to_json()]}).encode(),
        json.dumps({"crv": "P-384", "d": "A" * 64}).encode(),
        json.dumps({"crv": "P-384", "d": "_" * 64}).encode(),
        json.dumps({"crv": "P-256", "d": secrets.token_urlsafe(32)}).encode(),
        base64.b64encode(b'{"privateKey":"withheld"}'),
        b"",
    ],
    ids=["public halves", "zero", "out of range", "another curve", "withheld", "nothing"],
)
def test_what_is_no_private_key_is_not_found(content: bytes) -> None:
    assert find_private_keys(content) == []
