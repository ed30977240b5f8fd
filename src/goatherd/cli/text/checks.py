"""Format the output of `goatherd doctor`: a line for each check, and a total."""

from __future__ import annotations

from collections.abc import Sequence

from goatherd.operations.store_checks import FAILED, SKIPPED, WARNING, Check


def check_lines(checks: Sequence[Check]) -> list[str]:
    """Return the results of all checks as lines, with a total at the end."""
    lines = []
    for check in checks:
        lines.append(f"{check.level:<4}  {check.name:<22}  {check.text}")
        if check.hint:
            lines.append(f"      {'':<22}  -> {check.hint}")
    failed, warnings, skipped = (sum(check.level == level for check in checks) for level in (FAILED, WARNING, SKIPPED))
    total = f"{len(checks)} checks, {failed} failed, {warnings} warnings"
    return [*lines, "", f"{total}, {skipped} not possible" if skipped else total]
