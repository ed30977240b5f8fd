"""Find private keys of GoatDB sessions in bytes of any kind: a settings.json, a log, a manifest, a shell script.

Pure. A key is found as JSON, as JSON within a string of JSON, and in base64, as in a Kubernetes Secret. A candidate
counts only if its public key or the name of its curve is near it, so that a random string is not reported. A finding
describes the public key, and holds the private key in a form that cannot be shown or copied, to ask servers about it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from goatherd.crypto import PrivateKey
from goatherd.crypto.keys import fingerprint
from goatherd.errors import DecodeError
from goatherd.identity.session import ROOT_OWNER

LONGEST: Final = 1 << 16
"""Number of bytes that a key, with what identifies it, takes up at most: 48 KB in base64."""
_SCALARS: Final = tuple(
    re.compile(quote + rb"d\\*" + quote + rb"\s*:\s*\\*" + quote + rb"([A-Za-z0-9_-]{64})(?![A-Za-z0-9_-])")
    for quote in (b'"', b"'")
)
_AROUND: Final = 2048
_ID: Final = re.compile(rb"""["']id\\*["']\s*:\s*\\*["']([^"'\\\s]{1,64})""")
_OWNER: Final = re.compile(rb"""["']owner\\*["']\s*:\s*\\*["']([^"'\\]{1,64})""")
_SETTINGS: Final = b"currentSession"
_NAMED: Final = b"privateKey"
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/_-](?:[A-Za-z0-9+/_-]|\s{1,99}(?=[A-Za-z0-9+/_-]{16}))*={0,2}")
"""A run of base64 digits, which may be wrapped into lines of at least 16."""


def _encodings_of(text: bytes) -> tuple[bytes, ...]:
    """Return what `text` looks like in base64, for each of the three offsets at which a longer text can hold it.

    The characters that also depend on the neighbouring bytes are left out.
    """
    found = []
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + text)
        end = (before + len(text)) * 8 // 6
        found.append(encoded[-(-before * 8 // 6) : end])
    return tuple(found)


_ENCODED_NAMES: Final = _encodings_of(_NAMED)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakedKey:
    """A private key that `find_private_keys` has found; described by its public key.

    Attributes:
        key: The private key.
        offset: Position of the key, in bytes, in what was searched; for a key in base64, of the base64 string.
        fingerprint: Fingerprint of its public key, as ``goatherd show`` prints it.
        session_id: Id of its session; None if there is no id near the key.
        is_root: Whether the searched content says that the key is a root's; not verified.
        is_settings: Whether the key is in a settings file of GoatDB or in an identity document.
    """

    key: PrivateKey = field(repr=False, compare=False)
    offset: int
    fingerprint: str
    session_id: str | None
    is_root: bool
    is_settings: bool


def find_private_keys(content: bytes) -> list[LeakedKey]:
    """Return the private keys in `content`, in the order of their offsets. Never raises, whatever the bytes are."""
    found = {(key.offset, key.fingerprint): key for key in _find_in_text(content)}
    for start, decoded in _decode_base64(content):
        for key in _find_in_text(decoded):
            found[start, key.fingerprint] = replace(key, offset=start)
    return [found[at] for at in sorted(found)]


def _find_in_text(content: bytes) -> Iterator[LeakedKey]:
    for pattern in _SCALARS:
        for match in pattern.finditer(content):
            before = content[max(0, match.start() - _AROUND) : match.start()]
            after = content[match.end() : match.end() + _AROUND]
            try:
                key = PrivateKey.from_scalar(match[1].decode())
            except DecodeError:
                continue
            public = key.public_key
            is_named = public.to_jwk()["x"].encode() in before + after or b"P-384" in before + after
            if not is_named:
                continue
            ids, owner = _ID.findall(before), _OWNER.search(after)
            is_settings = _SETTINGS in before
            yield LeakedKey(
                key=key,
                offset=match.start(),
                fingerprint=fingerprint(public),
                session_id=ids[-1].decode(errors="replace") if ids else None,
                is_root=is_settings or (owner is not None and owner[1] == ROOT_OWNER.encode()),
                is_settings=is_settings,
            )


def _decode_base64(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the offset and the decoded bytes of each base64 string that contains the name ``privateKey``."""
    squeezed = content.translate(None, b" \t\r\n")  # base64 is often wrapped, and the name cut in two
    if not any(name in squeezed for name in _ENCODED_NAMES):
        return
    for run in _BASE64.finditer(content):
        joined = b"".join(run[0].split()).rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        if not any(name in joined for name in _ENCODED_NAMES):
            continue
        for skipped in range(4):
            # A string of other letters may stand before it without a gap.
            part = joined[skipped:]
            decoded = base64.b64decode(part[: len(part) // 4 * 4])
            if _NAMED in decoded:
                yield run.start(), decoded
                break
