"""The command ``goatherd-contract URI``: the provider contract over a store, without writing a test.

What it is: the command line around `goatherd.testing.contract.check_provider`. What it is not: the checks. Rules: it
works in secrets of its own, whose names begin with that of the address and ``-contract-``; it does not start where the
secret of the address exists; it removes what it made, also when it is interrupted.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import click

from goatherd._plugins import open_provider
from goatherd.errors import GoatherdError, SecretDeletedError, SecretNotFoundError
from goatherd.testing.contract import CHECKS, Outcome, Report, Result, check_provider

EXIT_FAILED: Final = 1
EXIT_NOT_RUN: Final = 2
EXIT_INTERRUPTED: Final = 130
_WIDTH: Final = 74


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the command was called with."""

    address: str
    rounds: int
    settle: timedelta
    as_json: bool


class NotRunError(Exception):
    """The contract cannot be run over this address.

    Attributes:
        hint: What to do.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("address", metavar="URI")
@click.option("--rounds", type=click.IntRange(1, 10_000), default=20, show_default=True, help="Rounds of each race.")
@click.option(
    "--settle",
    type=click.IntRange(0, 3600),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="How long a store with eventual reads may take to show a write.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def command(address: str, rounds: int, settle: int, as_json: bool) -> None:
    """Check that the provider of URI keeps the provider contract over the store of URI.

    URI is the address of a secret that does not exist, such as aws://eu-west-1/goatdb/try. The checks make secrets
    beside it, named like it with "-contract-" and a random part, and remove them. A store may bill for that.

    Exit code: 0 no check failed, 1 a check failed, 2 the contract could not be run.
    """
    settings = Settings(address=address, rounds=rounds, settle=timedelta(seconds=settle), as_json=as_json)
    try:
        report = asyncio.run(_run(settings))
    except NotRunError as error:
        click.echo(f"error: {error}\nhint: {error.hint}", err=True)
        sys.exit(EXIT_NOT_RUN)
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo("interrupted; the secrets that were made are removed", err=True)
        sys.exit(EXIT_INTERRUPTED)
    click.echo(json.dumps(report_as_data(settings.address, report), indent=2) if as_json else summary(report))
    sys.exit(EXIT_FAILED if report.has_failures else 0)


def main() -> None:
    """Run the command and end the process with its exit code."""
    command(prog_name="goatherd-contract")


async def _run(settings: Settings) -> Report:
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    secret_id = await _check_address(settings.address)
    prefix = re.sub(r"\{org\}", "contract", f"{secret_id}-contract-")
    if not settings.as_json:
        click.echo(f"{'result':<8} {'check':<{_WIDTH}} {'time':>8}")
    return await check_provider(
        lambda: open_provider(settings.address)[0],
        prefix=prefix,
        rounds=settings.rounds,
        settle=settings.settle,
        tell=None if settings.as_json else _print_outcome,
    )


async def _check_address(address: str) -> str:
    """Return the secret id of an address whose secret does not exist."""
    try:
        provider, secret_id = open_provider(address)
        async with provider:
            await provider.read(secret_id.replace("{org}", "contract"))
    except SecretNotFoundError:
        return secret_id
    except SecretDeletedError:
        raise NotRunError(
            "the secret of this address is deleted, but can still be restored",
            "Name a secret that has never existed, beside it.",
        ) from None
    except GoatherdError as error:
        raise NotRunError(str(error), error.hint or "Check the address.") from None
    raise NotRunError(
        "the secret of this address exists; it was not changed",
        "Name a secret that does not exist, for example the same address with -try at its end.",
    )


def _print_outcome(outcome: Outcome) -> None:
    sentence = outcome.check.replace("_", " ")
    word = "FAILED" if outcome.result is Result.FAILED else outcome.result.value
    click.echo(f"{word:<8} {sentence:<{_WIDTH}} {outcome.seconds:>6.2f} s")
    if outcome.error is not None:
        click.echo(f"         {type(outcome.error).__name__}: {outcome.error}")
    elif outcome.skipped is not None:
        click.echo(f"         {outcome.skipped}")


def summary(report: Report) -> str:
    """Return the last lines of the table."""
    counts = {result: len(report.with_result(result)) for result in Result}
    seconds = sum(outcome.seconds for outcome in report.outcomes)
    told = ", ".join(f"{count} {result.value}" for result, count in counts.items())
    lines = [f"{told}, of {len(CHECKS)} checks in {seconds:.1f} s"]
    if report.left_behind:
        lines.append(f"could not remove: {', '.join(report.left_behind)}")
    return "\n".join(lines)


def report_as_data(address: str, report: Report) -> dict[str, object]:
    """Return the report as JSON data. ``passed``, ``failed`` and ``skipped`` are counts that add up to all checks."""
    return {
        "address": address,
        "failed": len(report.with_result(Result.FAILED)),
        "passed": len(report.with_result(Result.PASSED)),
        "skipped": len(report.with_result(Result.SKIPPED)),
        "left_behind": list(report.left_behind),
        "checks": [
            {
                "check": outcome.check,
                "result": outcome.result.value,
                "seconds": round(outcome.seconds, 3),
                "error": None if outcome.error is None else f"{type(outcome.error).__name__}: {outcome.error}",
                "reason": outcome.skipped,
            }
            for outcome in report.outcomes
        ],
    }
