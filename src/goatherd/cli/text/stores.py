"""Format the output of `goatherd stores`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from goatherd.cli.output import Output
from goatherd.config.values import StoreEntry
from goatherd.identity.transitions import NO_WAY_BACK_HINT
from goatherd.operations.stores import ONLY, PromotionReport, RegionState, SyncReport
from goatherd.providers.values import format_label
from goatherd.times import format_utc, iso


def regions_data(found: Sequence[RegionState]) -> dict[str, Any]:
    """Return the stores of several regions, as data for ``--json``."""
    return {
        "stores": [
            {
                "region": one.region,
                "provider": one.scheme,
                "role": "primary" if one.is_primary else "follower",
                "reachable": one.is_reachable,
                "generation": one.generation,
                "labels": dict(one.labels),
                "standing": one.standing and str(one.standing),
                "inStep": one.is_in_step,
                "lagSince": None if one.lag_since_ms is None else iso(one.lag_since_ms),
                "problem": one.problem,
                "hint": one.hint or None,
            }
            for one in found
        ]
    }


def regions_lines(found: Sequence[RegionState], out: Output) -> list[str]:
    """Return the stores of several regions as a table, and a line for each problem."""
    heads = ("REGION", "PROVIDER", "ROLE", "REACHABLE", "GENERATION", "LABELS", "LAGS SINCE")
    rows = [
        (
            one.region,
            one.scheme,
            "primary" if one.is_primary else "follower",
            "yes" if one.is_reachable else "NO",
            "?" if one.generation is None else str(one.generation),
            ", ".join(f"{format_label(label)} -> {one.labels[label]}" for label in sorted(one.labels)) or "?",
            format_utc(one.lag_since_ms) if one.lag_since_ms is not None else "-" if one.is_in_step else "?",
        )
        for one in found
    ]
    lines = out.table(heads, rows)
    for one in found:
        if one.problem is not None:
            lines.append(f"{'store' if one.region == ONLY else f'region {one.region}'}: {one.problem}")
            lines += [f"    {one.hint}"] if one.hint else []
    return lines


def sync_data(report: SyncReport) -> dict[str, Any]:
    """Return what `goatherd stores sync` has done, as data for ``--json``."""
    return {
        "complete": report.is_complete,
        "followers": [
            {
                "region": one.region,
                "inStep": one.is_in_step,
                "before": report.before.get(one.region),
                "generation": one.generation,
                "problem": one.problem or None,
                "hint": one.hint or None,
            }
            for one in report.followers
        ],
    }


def sync_lines(report: SyncReport) -> list[str]:
    """Return what `goatherd stores sync` has done, as lines."""
    lines = []
    for one in report.followers:
        before = report.before.get(one.region)
        if one.is_in_step and before == one.generation:
            lines.append(f"region {one.region}: in step, generation {one.generation}")
        elif one.is_in_step:
            start = "nothing" if before is None else f"generation {before}"
            lines.append(f"region {one.region}: brought forward from {start} to generation {one.generation}")
        else:
            lines.append(f"region {one.region}: NOT IN STEP: {one.problem}")
            lines += [f"    {one.hint}"] if one.hint else []
    return lines or ["there are no followers"]


def promotion_data(report: PromotionReport) -> dict[str, Any]:
    """Return the result of `goatherd stores promote`, as data for ``--json``."""
    return {
        "region": report.region,
        "before": report.before,
        "generation": report.generation,
        "written": not report.is_repeated,
        "overruled": [one.text for one in report.overruled],
        "unseen": list(report.unseen),
        "reasons": dict(report.unseen),
        "canRollBack": report.can_go_back,
    }


def promotion_lines(report: PromotionReport, entries: Sequence[StoreEntry]) -> list[str]:
    """Return the result of `goatherd stores promote` as lines, with the section for goatherd.toml."""
    if report.is_repeated:
        lines = [f"region {report.region} was promoted before: it holds generation {report.generation}"]
    else:
        lines = [f"region {report.region} is the primary store now: generation {report.before} -> {report.generation}"]
    lines += [f"overruled: {one.text}" for one in report.overruled]
    lines += [f"generation not known: {who}: {why}" for who, why in report.unseen.items()]
    if not report.can_go_back:
        lines.append(f"The rotation in progress can no longer be rolled back. {NO_WAY_BACK_HINT}")
    new = next(one for one in entries if one.region == report.region)
    lines += [
        "",
        "Write this into goatherd.toml wherever commands write the identity:",
        "",
        "[stores]",
        f'primary = {{region = "{new.region}", provider = "{new.provider}"}}',
        "followers = [",
    ]
    others = [one for one in entries if one.region != new.region]
    lines += [f'    {{region = "{one.region}", provider = "{one.provider}"}},' for one in others]
    return [*lines, "]"]
