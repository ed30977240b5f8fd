"""Format the output of `goatherd restore --signature`: the signature's state, the changes, and what was written."""

from __future__ import annotations

from typing import Any

from goatherd.identity.document import IdentityDocument
from goatherd.operations.sign import SignatureExamination, SignatureState

_STATES = {
    SignatureState.VALID: "the current root has signed it",
    SignatureState.MISSING: "it has no signature",
    SignatureState.OUTDATED: "a tool that does not sign has written since it was signed",
    SignatureState.INVALID: "it is not what was signed: it was altered in the store",
}


def signature_data(store: str, examined: SignatureExamination, written: IdentityDocument | None) -> dict[str, Any]:
    """Return the state of the signature, and what was written, as data for ``--json``."""
    return {
        "store": store,
        "storeVersion": examined.version,
        "signature": str(examined.state),
        "current": examined.document.current.id,
        "generation": examined.document.generation,
        "signedVersion": examined.signed_version,
        "changes": list(examined.changes),
        "written": None if written is None else written.generation,
    }


def signature_lines(store: str, examined: SignatureExamination, written: IdentityDocument | None) -> list[str]:
    """Return the state of the signature, the changes, and what was written or is to be done, as lines."""
    document = examined.document
    lines = [f"version {examined.version} of {store}, generation {document.generation}: {_STATES[examined.state]}"]
    if examined.state is SignatureState.VALID:
        return lines
    if examined.signed is None:
        lines.append("no earlier version that can be read is signed")
    else:
        lines.append(f"changes since version {examined.signed_version}, generation {examined.signed.generation}:")
        lines += [f"  {change}" for change in examined.changes or ("none that a server uses",)]
    if written is not None:
        lines.append(f"wrote generation {written.generation}, signed by root {written.current.id}")
        return lines
    lines.append(
        "nothing was written. If your own tools have made these changes, run `goatherd restore --signature --accept`,"
        " and replace every Goatherd 0.1.0 that writes."
    )
    if examined.signed is not None:
        lines.append("If not, run `goatherd restore --signature --take-back`, and find out who can write to the store.")
    return lines
