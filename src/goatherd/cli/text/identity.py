"""Write as text: an identity (never its private keys), the stored versions, and their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from goatherd.cli.output import Output
from goatherd.crypto import fingerprint
from goatherd.identity.document import IdentityDocument
from goatherd.providers.values import SecretVersion, format_label, format_labels
from goatherd.telemetry import describe_count
from goatherd.times import format_utc, iso

if TYPE_CHECKING:
    from goatherd.operations.labels import LabelChange


def _describe_signature(document: IdentityDocument) -> str:
    if document.is_signed:
        return "by the current root"
    if document.signature is None:
        return "none: the next write signs the document, unless a signed one was seen before"
    return "invalid: `goatherd restore --signature` shows what changed since the last valid one"


def identity_lines(out: Output, store: str, version: str, document: IdentityDocument, now_ms: int) -> list[str]:
    """Return an identity document as human-readable lines."""
    written = "at an unknown time" if document.last_updated is None else format_utc(document.last_updated)
    lines = [
        f"store       {store}, version {version}",
        f"generation  {document.generation}, last written {written}",
        f"phase       {'steady' if document.phase is None else document.phase.value}",
        f"signature   {_describe_signature(document)}",
    ]
    if document.rotation is not None:
        record = document.rotation
        lines.append(f"rotation    {record.id}: {record.from_id} -> {record.to_id}")
        lines.append(f"            started {format_utc(record.started_at)} by {record.started_by}")
    if document.anchor is not None:
        lines.append(f"anchor      {document.anchor}, key in an HSM or a KMS")
    if document.is_direct:
        lines.append("mode        direct mode: the signer of the anchor makes each signature of the root")
    if document.rotated_from is not None:
        at = "" if document.rotated_at is None else f" at {format_utc(document.rotated_at)}"
        lines.append(f"replaced    {document.rotated_from}{at}")
    return [*lines, "", *roots_lines(out, document, now_ms)]


def roots_lines(out: Output, document: IdentityDocument, now_ms: int, unlisted: Sequence[str] = ()) -> list[str]:
    """Return the roots of an identity as a table, and how many roots it no longer lists.

    `unlisted` are the ids of the roots that servers trust although the document does not list them.
    """
    rows = []
    for root in document.roots:
        state = "trusted"
        if root.id == document.current.id:
            state = "EXPIRED" if document.current.session.is_expired(now_ms) else "signs"
        if document.next is not None and root.id == document.next.id:
            state = "next"
        if document.anchor is not None and root.id == document.anchor and not document.is_direct:
            state = "anchor"
        if root.id in document.revoked_ids:
            state = "REVOKED"
        rows.append((root.id, state, fingerprint(root.public_key), format_utc(root.expiration_ms)))
    rows += [(root_id, "trusted, not listed", "", "") for root_id in unlisted]
    lines = out.table(("ROOT", "STATE", "FINGERPRINT", "EXPIRES"), rows)
    if document.pruned:
        roots = describe_count(document.pruned, "previous root", "is", "are")
        lines.append(f"{roots} introduced in /sys/sessions only, and still trusted")
    return lines


def label_line(change: LabelChange) -> str:
    """Return how a label was changed, as a line."""
    label = format_label(change.label)
    if not change.is_change:
        where = "no version holds it" if change.after is None else f"version {change.after} holds it already"
        return f"label {label}: {where}; nothing was changed"
    if change.after is None:
        return f"label {label}: removed from version {change.before}"
    if change.before is None:
        return f"label {label}: added to version {change.after}"
    return f"label {label}: moved from version {change.before} to version {change.after}"


def versions_json(found: Sequence[SecretVersion]) -> list[dict[str, Any]]:
    """Return stored versions of a secret as JSON."""
    return [
        {
            "id": version.id,
            "created": iso(version.created_ms),
            "labels": sorted(version.labels),
            "state": version.state.value,
            "leftover": version.is_leftover,
        }
        for version in found
    ]


def versions_lines(found: Sequence[SecretVersion], out: Output) -> list[str]:
    """Return stored versions of a secret as lines."""
    rows = [
        (version.id, format_utc(version.created_ms), version.state.value, format_labels(version.labels))
        for version in found
    ]
    lines = out.table(("VERSION", "CREATED", "STATE", "LABELS"), rows)
    if left := [version.id for version in found if version.is_leftover]:
        lines.append(
            f"left by an interrupted change: {' '.join(left)}; `goatherd retire` destroys them when their keys are due"
        )
    return lines
