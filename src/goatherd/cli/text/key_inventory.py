"""Format the key inventory, for `goatherd status` and `goatherd retire`, and what `goatherd retire` destroyed.

The key inventory (`goatherd.key_inventory`) states which stored version holds which private key. The output holds ids
and times, never a key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from goatherd.cli.output import Output
from goatherd.key_inventory import Holding, KeyInventory, describe_kept
from goatherd.providers.capabilities import BETWEEN
from goatherd.providers.values import format_labels
from goatherd.telemetry import describe_count
from goatherd.times import format_duration, format_utc, iso

if TYPE_CHECKING:
    from goatherd.operations.retire import Retirement


def inventory_data(keys: KeyInventory, now_ms: int) -> dict[str, object]:
    """Return a key inventory, as data for ``--json``."""
    following = keys.next_due_ms(now_ms)
    return {
        "complete": keys.is_complete,
        "problem": keys.problem,
        "versions": [
            {
                "id": one.version.id,
                "labels": sorted(one.version.labels),
                "state": one.version.state.value,
                "leftover": one.version.is_leftover,
                "privateKeysOf": sorted(one.private_ids),
                "problem": one.problem,
            }
            for one in keys.holdings
        ],
        "roots": [
            {
                "id": root,
                "versions": list(keys.versions_with(root)),
                "recordedDestroyed": root in keys.recorded,
                "inSigner": root in keys.anchors,
            }
            for root in keys.roots
        ],
        "copies": keys.copies,
        "retireDue": [one.version.id for one in keys.holdings_due(now_ms)],
        "retireKept": [
            {"version": one.version.id, "labels": list(one.foreign_labels)}
            for one in keys.holdings_kept_by_labels(now_ms)
        ],
        "recordDue": list(keys.recordable_roots(now_ms)),
        "retireNext": None if following is None else iso(following),
    }


def inventory_lines(keys: KeyInventory, out: Output, now_ms: int) -> list[str]:
    """Return a key inventory as lines."""
    if keys.problem is not None:
        return [f"private keys: unknown, since the stored versions could not be read ({keys.problem})"]
    rows = [
        (
            one.version.id,
            "(left over)" if one.version.is_leftover else format_labels(one.version.labels),
            one.problem or " ".join(sorted(one.private_ids)),
            _describe_due(keys, one, now_ms),
        )
        for one in keys.holdings
    ]
    lines = out.table(("VERSION", "LABELS", "PRIVATE KEYS OF", "RETIRE FROM"), rows)
    for root in keys.roots:
        if not keys.versions_with(root):
            lines.append(_explain_absence(keys, root))
    due, following, recordable = keys.holdings_due(now_ms), keys.next_due_ms(now_ms), keys.recordable_roots(now_ms)
    if recordable:
        named = " ".join(recordable)
        lines.append(f"due: `goatherd retire` records that no version holds the private key of {named}")
    if due:
        count = describe_count(len(due), "version")
        # In a store that does not destroy, they stay due until it has deleted them.
        verb = "destroys" if keys.copies is None else "gives up"
        lines.append(f"due: `goatherd retire` {verb} {count}: {' '.join(one.version.id for one in due)}")
    elif following is not None:
        lines.append(f"`goatherd retire` has nothing to destroy before {format_utc(following)}")
    lines += [describe_kept(one.version.id, one.foreign_labels) for one in keys.holdings_kept_by_labels(now_ms)]
    if keys.copies is not None:
        lines.append(f"copies: {keys.copies}")
    return lines


def due_lines(keys: KeyInventory, now_ms: int) -> list[str]:
    """Return a line for each version that `goatherd retire` would destroy now, with the roots whose keys it holds."""
    return [
        f"version {one.version.id}, of {format_utc(one.version.created_ms)}: {_describe_content(one)}"
        for one in keys.holdings_due(now_ms)
    ]


def _describe_due(keys: KeyInventory, one: Holding, now_ms: int) -> str:
    if one in keys.retirable_holdings():
        return format_utc(keys.rule.due_ms(one, now_ms))
    return "when no label points at it" if one in keys.retired_holdings() else ""


def _explain_absence(keys: KeyInventory, root: str) -> str:
    if root in keys.anchors:
        return f"the private key of the anchor {root} is in an HSM or a KMS, and in no version of this secret"
    record = ", and the identity records that none holds it" if root in keys.recorded else ""
    if keys.is_complete:
        return f"the private key of {root} is in no version of this secret{record}"
    return f"the private key of {root} was not found, but some versions could not be read{record}"


def _describe_content(one: Holding) -> str:
    keys = f"the private key of {', '.join(sorted(one.private_ids))}" if one.private_ids else str(one.problem)
    return f"left over from an interrupted change; {keys}" if one.version.is_leftover else keys


def would_retire_lines(keys: KeyInventory, now_ms: int) -> list[str]:
    """Return a line for each version that `retire` would destroy or give up now, and for each that a label keeps."""
    verb = "destroy" if keys.copies is None else "give up"
    lines = [f"would {verb} {line}" for line in due_lines(keys, now_ms)]
    lines += [describe_kept(one.version.id, one.foreign_labels) for one in keys.holdings_kept_by_labels(now_ms)]
    return (lines or [_explain_no_keys(keys)]) + _unsearched_lines(keys)


def retirement_lines(done: Retirement) -> list[str]:
    """Return a line for each version that was destroyed, given up (the store keeps its value for longer) or kept."""
    lines = [f"destroyed version {version}" for version in done.report.destroyed]
    lines += [f"gave up version {version}: {done.keys.copies}" for version in done.report.given_up]
    lines += [describe_kept(one.version, one.labels) for one in done.report.kept]
    return (lines or [_explain_no_keys(done.keys)]) + _unsearched_lines(done.keys)


def _unsearched_lines(keys: KeyInventory) -> list[str]:
    unread = [one for one in keys.holdings if one.problem is not None and not one.is_unsearched]
    lines = [
        f"version {one.version.id} was not read ({one.problem}), so no root is recorded as retired" for one in unread
    ]
    return lines + [
        f"region {one.version.id.partition(BETWEEN)[0]}: {one.problem}, so no root is recorded as retired; run"
        " `goatherd retire` again when its store answers"
        for one in keys.unsearched
    ]


def _explain_no_keys(keys: KeyInventory) -> str:
    if keys.problem is not None:
        return f"not known what to destroy: the stored versions could not be read ({keys.problem})"
    grace = format_duration(keys.rule.grace)
    none = "no version" if keys.is_complete else "no version that was read"
    return f"nothing to destroy: {none} holds a private key that was replaced over {grace} ago"
