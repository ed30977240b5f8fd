"""Parse a PKCS#11 URI (RFC 7512) that names a token and a private key in it.

The PIN is never in the URI: ``pin-value`` is rejected, and ``pin-source`` names a file, an environment variable or a
systemd credential. The library is named by ``module-path`` or an environment variable.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final
from urllib.parse import quote, unquote_to_bytes

from goatherd.errors import ConfigurationError
from goatherd.serving.secret_source import SecretSource
from goatherd.signers.base import check_role

MODULE_VARIABLE: Final = "GOATHERD_PKCS11_MODULE"
PIN_VARIABLE: Final = "GOATHERD_PKCS11_PIN"
_EXAMPLE: Final = "Write pkcs11:token=goatdb;object=anchor?module-path=/usr/lib/softhsm/libsofthsm2.so."
_PATH: Final = frozenset({"token", "serial", "slot-id", "manufacturer", "model", "object", "id", "type"})
_QUERY: Final = frozenset({"module-path", "pin-source"})
_NUMBER = re.compile(r"[0-9]{1,10}")


@dataclass(frozen=True, slots=True)
class PINSource(SecretSource):
    """Where the operator keeps the token's PIN."""

    subject: ClassVar[str] = "the token's PIN"


@dataclass(frozen=True, slots=True, kw_only=True)
class PKCS11Address:
    """A private key in a token.

    Attributes:
        module: The path of the token's PKCS#11 library; None if neither the URI nor the environment names it.
        pin: Where the operator keeps the PIN.
        token: The token's label; None for any, as with the following four.
        serial: The token's serial number.
        manufacturer: The token's manufacturer.
        model: The token's model.
        slot: The id of the token's slot.
        object: The key's label.
        id: The key's id.
    """

    module: str | None
    pin: PINSource
    token: str | None = None
    serial: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    slot: int | None = None
    object: str | None = None
    id: bytes | None = None

    @property
    def name(self) -> str:
        """The attributes of the URI that choose the token and the key, as written there, for errors and reports."""
        texts = {"token": self.token, "serial": self.serial, "manufacturer": self.manufacturer, "model": self.model}
        texts |= {"slot-id": None if self.slot is None else str(self.slot), "object": self.object}
        parts = [f"{name}={quote(text, safe='')}" for name, text in texts.items() if text is not None]
        if self.id is not None:
            parts.append("id=" + "".join(f"%{byte:02X}" for byte in self.id))
        return ";".join(parts)

    @property
    def place(self) -> str:
        """The attributes of the PKCS#11 URI that choose the token."""
        return replace(self, object=None, id=None).name or "the only token"


def parse_uri(uri: str, *, environment: Mapping[str, str] | None = None) -> PKCS11Address:
    """Return the address that a PKCS#11 URI names.

    Raises:
        ConfigurationError: The URI is not one of RFC 7512, holds a PIN, has an attribute that Goatherd does not know,
            or names no key. SECURITY: no error quotes a value (tests/unit/signers/test_token.py).
    """
    environment = os.environ if environment is None else environment
    scheme, _, rest = uri.partition(":")
    if scheme != "pkcs11" or rest.startswith("//"):
        raise ConfigurationError("a PKCS#11 URI must begin with pkcs11: and must not have //", hint=_EXAMPLE)
    path, _, query = rest.partition("?")
    if "pin-value" in query:
        raise ConfigurationError(
            "a PKCS#11 URI must not contain the PIN (pin-value)",
            hint=f"Put the PIN into {PIN_VARIABLE}, or into a file and write pin-source=file:/PATH.",
        )
    found = _attributes(path, ";", _PATH)
    options = {name: value.decode("utf-8", "replace") for name, value in _attributes(query, "&", _QUERY).items()}
    if found.pop("type", b"private") != b"private":
        raise ConfigurationError("a PKCS#11 URI of a signer must name a private key: type=private", hint=_EXAMPLE)
    key_id, slot = found.pop("id", None), found.pop("slot-id", None)
    texts = {name: value.decode("utf-8", "replace") for name, value in found.items()}
    if key_id is None and "object" not in texts:
        raise ConfigurationError("a PKCS#11 URI of a signer must name a key: object=LABEL or id=%01", hint=_EXAMPLE)
    if slot is not None and not _NUMBER.fullmatch(slot.decode("ascii", "replace")):
        raise ConfigurationError("PKCS#11 URI: slot-id must be a number", hint=_EXAMPLE)
    module = options.get("module-path") or environment.get(MODULE_VARIABLE)
    if module is not None and not Path(module).is_absolute():
        raise ConfigurationError("PKCS#11 URI: module-path must be an absolute path", hint=_EXAMPLE)
    source = options.get("pin-source", f"env:{PIN_VARIABLE}")
    return PKCS11Address(
        module=module,
        pin=PINSource.from_text(source.replace("file:///", "file:/", 1)),
        token=texts.get("token"),
        serial=texts.get("serial"),
        manufacturer=texts.get("manufacturer"),
        model=texts.get("model"),
        slot=None if slot is None else int(slot),
        object=texts.get("object"),
        id=key_id,
    )


def _attributes(text: str, separator: str, known: frozenset[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for part in filter(None, text.split(separator)):
        name, equals, value = part.partition("=")
        if name not in known:
            raise ConfigurationError(
                "PKCS#11 URI: an attribute is unknown", hint=f"Known attributes: {', '.join(sorted(_PATH | _QUERY))}."
            )
        if not equals or not value or name in found:
            raise ConfigurationError(f"PKCS#11 URI: {name} is empty or given twice", hint=_EXAMPLE)
        found[name] = unquote_to_bytes(value)
    return found


def policy(role: str, uri: str) -> str:
    """Return a text that says how to set up a token so that its user can only sign with one key."""
    check_role(role)
    address = parse_uri(uri, environment={})
    lines = [
        "# Goatherd signer: PKCS#11 has no language for rights; the key's attributes and the PIN are the rights.",
        f"# 1. The key ({address.name}) has CKA_SIGN and CKA_SENSITIVE true, and CKA_EXTRACTABLE,",
        "#    CKA_DERIVE, CKA_DECRYPT and CKA_UNWRAP false.",
        "# 2. The PIN is that of the user, not of the security officer, of a token without other keys",
        f"#    ({address.place}). Only the user that runs Goatherd can read it.",
    ]
    if address.pin.kind == "file":
        path = shlex.quote(address.pin.name)
        lines.append(f"chown USER {path} && chmod 0600 {path}")
    lines.append("# 3. A network HSM allows this user to use keys, and not to create, delete or share them.")
    return "\n".join(lines) + "\n"
