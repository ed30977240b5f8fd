"""Format the output of `goatherd scan`: as lines, and as a SARIF document."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any, Final
from urllib.parse import quote

from goatherd import __version__
from goatherd.operations.scan import UNLISTED, KeyFinding, ScanReport
from goatherd.telemetry import describe_count

_SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"
_RULE: Final = "goatdb-private-key"


def scan_lines(report: ScanReport) -> list[str]:
    """Return what a scan found, as lines."""
    lines = [f"{_place_of(one)}: {_describe_finding(one)}" for one in report.findings]
    lines += [f"not searched: {reason}" for reason in report.unsearched]
    lines += [f"note: {note}" for note in report.notes]
    searched = f"searched {describe_count(report.files, 'file')} and {describe_count(report.objects, 'git object')}"
    if not report.findings:
        return [*lines, f"{searched}: no private key" + (" in what was searched" if report.unsearched else "")]
    keys = {one.fingerprint for one in report.findings}
    lines.append(
        f"{searched}: {describe_count(len(keys), 'private key')} in {describe_count(len(report.findings), 'place')}"
    )
    live = sorted({one.root or one.fingerprint for one in report.findings if one.is_live and one.is_root})
    if len(live) == 1:
        lines.append(f"LIVE: {live[0]}. Others may have read the key: goatherd revoke {live[0]}")
    elif live:
        named = " ".join(live)
        lines.append(f"LIVE: {named}. Others may have read the keys; revoke each of these roots: goatherd revoke ID")
    sessions = sorted({one.root for one in report.findings if one.is_live and not one.is_root and one.root})
    if sessions:
        lines.append(
            f"LIVE user sessions: {' '.join(sessions)}. Servers accept them until they expire, or until the root that"
            " introduced them is revoked: goatherd revoke ROOT --except ID"
        )
    unknown = [one for one in report.findings if one.is_live is None]
    if any(one.in_store is None for one in unknown):
        lines.append("Whether a key is live is not known: --provider URI compares with the store.")
    elif unknown:
        lines.append(
            f"Whether a key that is {UNLISTED} is live is not known: servers can trust user sessions, and roots that"
            " were removed from the identity. Name every server with --node URL; all must answer."
        )
    return lines


def _place_of(one: KeyFinding) -> str:
    if one.repository is None:
        return f"{one.path}:{one.line}"
    commit = f"commit {one.commit[:12]}" if one.commit is not None else "no commit"
    return f"{one.repository} ({commit}): {one.path}:{one.line}"


def _describe_finding(one: KeyFinding) -> str:
    owner = f"root {one.root}" if one.is_root else f"session {one.root}"
    named = f"private key of {owner}" if one.root is not None else "private key"
    within = ", in a GoatDB settings file" if one.is_settings else ""
    state = "" if one.in_store is None else f", {one.in_store}"
    state += f", accepted by {', '.join(one.accepted_by)}" if one.accepted_by else ""
    state += ", rejected by every server" if one.is_rejected else ""
    state += " (LIVE)" if one.is_live else ""
    return f"{named}, fingerprint {one.fingerprint}{within}{state}"


def sarif_document(report: ScanReport) -> str:
    """Return the findings as a SARIF 2.1.0 document."""
    rule = {
        "id": _RULE,
        "name": "GoatDBPrivateKey",
        "shortDescription": {"text": "Private key of a GoatDB session"},
        "fullDescription": {"text": "A file, an image or a git history holds a private key that signs for a cluster."},
        "help": {"text": "Revoke the root with goatherd revoke. To delete the file is not enough."},
        "defaultConfiguration": {"level": "error"},
    }
    run: dict[str, Any] = {
        "tool": {"driver": {"name": "goatherd", "version": __version__, "rules": [rule]}},
        "results": [_sarif_result(one) for one in report.findings],
        "invocations": [
            {
                "executionSuccessful": not report.unsearched,
                "toolExecutionNotifications": [
                    {"level": "error", "message": {"text": f"not searched: {reason}"}} for reason in report.unsearched
                ],
            }
        ],
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _uri_of(path: str) -> str:
    """Return a path as a URI reference (RFC 3986), which SARIF demands."""
    return quote(PurePath(path).as_posix(), safe="/!", errors="surrogateescape")


def _sarif_result(one: KeyFinding) -> dict[str, Any]:
    return {
        "ruleId": _RULE,
        "level": "warning" if one.is_live is False else "error",
        "message": {"text": _describe_finding(one)},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": _uri_of(one.path)},
                    "region": {"startLine": one.line},
                }
            }
        ],
        "partialFingerprints": {"goatherdKey/v1": f"{one.fingerprint}:{one.path}"},
        "properties": {name: value for name, value in one.to_json().items() if name in ("commit", "object", "live")},
    }
