"""The command ``goatherd-contract URI``, which checks a secret provider with the store that the URI names.

`goatherd.testing.contract.check_provider` runs the checks. They create their own secrets, whose names begin with the
name in the URI and ``-contract-``. The command stops at once if the secret that the URI names exists, or if the
credentials do not allow creating and deleting secrets. It removes the secrets that it created, even when it is
interrupted, and names those that it could not remove.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import click

from goatherd.errors import (
    GoatherdError,
    ProviderAccessDeniedError,
    SecretDeletedError,
    SecretNotFoundError,
    ThrottledError,
    UnavailableError,
)
from goatherd.plugins import open_provider
from goatherd.providers.base import SecretProvider
from goatherd.testing.answer_checks import ANSWER_CHECKS
from goatherd.testing.contract import CHECKS, CheckOutcome, ContractReport, Result, check_name, check_provider
from goatherd.testing.subject import Check

EXIT_FAILED: Final = 1
EXIT_NOT_RUN: Final = 2
EXIT_INTERRUPTED: Final = 130
NOT_CHECKED: Final = "writers in different processes, because the concurrent writers of the checks run in one"
_WIDTH: Final = 74
_SILENT: Final = 3
"""After so many failed checks in a row without an answer, the command looks whether the store is still there."""


@dataclass(slots=True, kw_only=True)
class ContractProgress:
    """The outcomes of the checks that have been run so far.

    Attributes:
        as_json: Whether the report will be printed as JSON at the end, so that no outcome is printed before.
        outcomes: The outcome of each check that has been run.
        left_behind: The names of secrets that could not be removed.
        unanswered: The number of checks in a row that failed because the store did not answer.
    """

    as_json: bool
    outcomes: list[CheckOutcome] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    unanswered: int = 0

    def add(self, outcome: CheckOutcome) -> None:
        """Add the outcome of a check, and print it unless the report will be JSON.

        Raises:
            _UnansweredError: Several checks in a row failed without an answer, so the store may no longer answer.
        """
        self.outcomes.append(outcome)
        if not self.as_json:
            _print_outcome(outcome)
        self.unanswered = self.unanswered + 1 if _is_unanswered(outcome.error) else 0
        if self.unanswered >= _SILENT:
            self.unanswered = 0
            raise _UnansweredError

    @property
    def report(self) -> ContractReport:
        """The report on the checks that have been run so far."""
        return ContractReport(outcomes=tuple(self.outcomes), left_behind=tuple(self.left_behind))


class NotRunError(Exception):
    """The checks of the contract cannot be run, or not be completed, with the store of this address.

    Attributes:
        hint: What the user can do.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class _UnansweredError(Exception):
    """Several checks in a row failed because the store did not answer."""


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExample:\n  goatherd-contract memory:///try/root\n"
    "  goatherd-contract vault://vault.example.org:8200/secret/goatdb/try --only label",
)
@click.argument("address", metavar="URI")
@click.option(
    "--rounds",
    type=click.IntRange(1, 10_000),
    default=20,
    metavar="N",
    help="How many times to repeat each check with concurrent writers (default: 20).",
)
@click.option(
    "--settle",
    type=click.IntRange(0, 3600),
    default=300,
    metavar="SECONDS",
    help="How long to wait until a write is visible, in a store whose reads may be outdated (default: 300).",
)
@click.option(
    "--only",
    multiple=True,
    metavar="TEXT",
    help="Run only the checks whose name contains this text. Can be given more than once.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def command(address: str, rounds: int, settle: int, only: tuple[str, ...], as_json: bool) -> None:
    """Check that a secret provider keeps the contract that Goatherd relies on, with the store that URI names.

    URI is the address of a secret that does not exist, such as aws://eu-west-1/goatdb/try. The checks create secrets in
    the same store, whose names are the name in URI with "-contract-" and a random part, and remove them. The store may
    charge for that.

    Exit code: 0 no check failed, 1 a check failed, 2 the contract could not be run, 130 interrupted.
    """
    progress = ContractProgress(as_json=as_json)
    try:
        report = asyncio.run(_run(address, progress, _chosen(only), rounds=rounds, settle=timedelta(seconds=settle)))
    except NotRunError as error:
        if progress.outcomes:
            click.echo(summary(progress.report), err=True)
        click.echo(f"error: {error}\nhint: {error.hint}", err=True)
        sys.exit(EXIT_NOT_RUN)
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo(f"interrupted: {summary(progress.report)}", err=True)
        sys.exit(EXIT_INTERRUPTED)
    click.echo(json.dumps(report_as_data(address, report), indent=2) if as_json else summary(report))
    sys.exit(EXIT_FAILED if report.has_failures else 0)


def main() -> None:
    """Run the command that checks a secret provider, and end the process with its exit code."""
    command(prog_name="goatherd-contract")


def _chosen(only: Sequence[str]) -> Sequence[Check]:
    wanted = [text.replace("_", " ").lower() for text in only]
    names = {check: check_name(check).replace("_", " ") for check in CHECKS}
    for text in wanted:
        if not any(text in name for name in names.values()):
            raise NotRunError(f"no check has {text!r} in its name", f"The checks: {'; '.join(names.values())}.")
    return [check for check in CHECKS if not wanted or any(text in names[check] for text in wanted)]


async def _run(
    address: str, progress: ContractProgress, checks: Sequence[Check], *, rounds: int, settle: timedelta
) -> ContractReport:
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    prefix = await _check_address(address, progress.left_behind)
    if not progress.as_json:
        click.echo(f"{'result':<8} {'check':<{_WIDTH}} {'time':>8}")
    while True:
        with contextlib.suppress(_UnansweredError):
            await check_provider(
                lambda: open_provider(address)[0],
                prefix=prefix,
                rounds=rounds,
                settle=settle,
                tell=progress.add,
                checks=checks[len(progress.outcomes) :],
                left_behind=progress.left_behind,
            )
        if len(progress.outcomes) == len(checks):
            return progress.report
        try:
            await _check_address(address, progress.left_behind)
        except NotRunError as error:
            raise NotRunError(f"stopped, because the store does not answer any more: {error}", error.hint) from None


async def _check_address(address: str, left_behind: list[str]) -> str:
    """Check that the checks can use an address, and return the beginning of the names of the secrets that they create.

    The name of a secret that could not be removed is added to `left_behind`.

    Raises:
        NotRunError: The secret of the address exists, is deleted but can be restored, or cannot be read; or the
            credentials do not allow creating and deleting secrets.
    """
    try:
        provider, template = open_provider(address)
        secret_id = re.sub(r"\{org\}", "contract", template)
        async with provider:
            try:
                await provider.read(secret_id)
            except SecretNotFoundError:
                prefix = f"{secret_id}-contract-"
                await _try_rights(provider, f"{prefix}{secrets.token_hex(6)}", left_behind)
                return prefix
    except SecretDeletedError:
        raise NotRunError(
            "the secret of this address was deleted, but can still be restored, so its name is not free",
            "Give the address of a secret that has never existed.",
        ) from None
    except GoatherdError as error:
        raise NotRunError(str(error), error.hint or "Check the address.") from None
    raise NotRunError(
        "the secret of this address exists, and the checks need one that does not; it was not changed",
        "Give the address of a secret that does not exist, for example the same address with -try at its end.",
    )


async def _try_rights(provider: SecretProvider, name: str, left_behind: list[str]) -> None:
    """Create a secret and delete it, to check the permissions. Other errors are ignored, because the checks find them.

    Raises:
        ProviderAccessDeniedError: The credentials do not allow creating the secret.
        UnavailableError: The store does not answer.
        ThrottledError: The store rejected the request because of its rate limit, even after the retries.
        NotRunError: The credentials do not allow deleting the secret.
    """
    left_behind.append(name)  # at once, so that it is reported where the command is interrupted
    try:
        await provider.create(name, b"goatherd-contract")
    except ProviderAccessDeniedError:
        left_behind.remove(name)
        raise
    except (UnavailableError, ThrottledError):
        raise
    except Exception:  # noqa: BLE001 - a stranger's plugin can raise anything
        return
    try:
        await provider.delete(name)
    except ProviderAccessDeniedError as error:
        raise NotRunError(
            f"{error}; {name} was created and could not be deleted", f"The checks delete secrets. {error.hint}"
        ) from None
    except Exception:  # noqa: BLE001
        return
    left_behind.remove(name)


def _is_unanswered(error: BaseException | None) -> bool:
    """Return whether the error of a check, or a cause of it, is that the store did not answer or limits the rate."""
    while error is not None and not isinstance(error, UnavailableError | ThrottledError):
        error = error.__cause__ or error.__context__
    return error is not None


def _print_outcome(outcome: CheckOutcome) -> None:
    sentence = outcome.check.replace("_", " ")
    word = "FAILED" if outcome.result is Result.FAILED else outcome.result.value
    click.echo(f"{word:<8} {sentence:<{_WIDTH}} {outcome.seconds:>6.2f} s")
    if outcome.error is not None:
        click.echo(f"         {type(outcome.error).__name__}: {outcome.error}")
    elif outcome.skipped is not None:
        click.echo(f"         {outcome.skipped}")


def summary(report: ContractReport) -> str:
    """Return the last lines of the printed table: how many checks passed, what no check can find, and what is left."""
    counts = {result: len(report.with_result(result)) for result in Result}
    seconds = sum(outcome.seconds for outcome in report.outcomes)
    totals = ", ".join(f"{count} {result.value}" for result, count in counts.items())
    lines = [f"{totals}, of {len(CHECKS)} checks in {seconds:.1f} s"]
    answers = {check_name(check) for check in ANSWER_CHECKS}
    need_a_fake = sum(outcome.check in answers for outcome in report.with_result(Result.SKIPPED))
    if counts[Result.SKIPPED]:
        not_promised = counts[Result.SKIPPED] - need_a_fake
        lines.append(
            f"skipped: {not_promised} the provider does not promise, {need_a_fake} need a fake that answers wrongly"
        )
    lines.append(f"not checked: {NOT_CHECKED}")
    if report.left_behind:
        lines += ["could not remove these secrets, where they exist:", *(f"  {name}" for name in report.left_behind)]
    return "\n".join(lines)


def report_as_data(address: str, report: ContractReport) -> dict[str, object]:
    """Return the report as JSON data: the outcome of each check that was run, and the numbers of each result."""
    return {
        "address": address,
        "failed": len(report.with_result(Result.FAILED)),
        "passed": len(report.with_result(Result.PASSED)),
        "skipped": len(report.with_result(Result.SKIPPED)),
        "not_checked": NOT_CHECKED,
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
