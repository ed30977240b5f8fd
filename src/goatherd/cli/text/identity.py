"""Format the output of `goatherd show`: the ids, fingerprints and times of an identity, without keys."""

from __future__ import annotations

from goatherd.cli.output import Output
from goatherd.identity.document import IdentityDocument
from goatherd.identity.redaction import redact_document
from goatherd.times import iso


def _describe_signature(document: IdentityDocument) -> str:
    if document.is_signed:
        return "by the current root"
    if document.signature is None:
        return "none: the next write signs the document, unless a signed one was seen before"
    return "invalid: `goatherd restore --signature` shows what changed since the last valid one"


def identity_lines(out: Output, store: str, version: str, document: IdentityDocument) -> list[str]:
    """Return an identity as lines."""
    shown = redact_document(document)
    lines = [
        f"store       {store}, version {version}",
        f"generation  {document.generation}, last written {shown['lastUpdated'] or 'at an unknown time'}",
        f"phase       {shown['phase']}",
        f"signature   {_describe_signature(document)}",
    ]
    if document.rotation is not None:
        record = document.rotation
        lines.append(f"rotation    {record.id}: {record.from_id} -> {record.to_id}")
        lines.append(f"            started {iso(record.started_at)} by {record.started_by}")
    if document.rotated_from is not None:
        lines.append(f"replaced    {document.rotated_from} at {shown['rotatedAt']}")
    rows = []
    for root in shown["roots"]:
        state = "signs" if root["id"] == document.current.id else "trusted"
        if document.next is not None and root["id"] == document.next.id:
            state = "next"
        if root["revoked"]:
            state = "REVOKED"
        rows.append((root["id"], state, root["fingerprint"], root["expiration"]))
    lines += ["", *out.table(("ROOT", "STATE", "FINGERPRINT", "EXPIRES"), rows)]
    if document.pruned:
        noun = "root is" if document.pruned == 1 else "roots are"
        lines.append(f"{document.pruned} previous {noun} introduced in /sys/sessions only, and still trusted")
    return lines
