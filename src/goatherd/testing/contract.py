"""Runs what every secret provider must do over any of them.

What it is: three ways to run `goatherd.testing.provider_checks`: `check_provider` in a program, `ProviderContract`
under pytest, and ``python -m goatherd.testing.contract URI``. Rules: what a check made is
removed; a failing check does not stop the others; pytest is imported only where pytest runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from goatherd._plugins import open_provider
from goatherd.errors import GoatherdError
from goatherd.providers.base import SecretProvider
from goatherd.testing.provider_checks import CHECKS
from goatherd.testing.subject import Check, Factory, SkippedError, Subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one check went.

    Attributes:
        check: Its name.
        error: Why it failed, or None.
        skipped: Why it did not apply, or None.
    """

    check: str
    error: BaseException | None = None
    skipped: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How all of them went."""

    outcomes: tuple[Outcome, ...]

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """Those that failed."""
        return tuple(outcome for outcome in self.outcomes if outcome.error is not None)

    @property
    def passed(self) -> bool:
        """Whether none failed."""
        return not self.failures


async def run_check(
    check: Check,
    factory: Factory,
    *,
    prefix: str = "goatherd-contract-",
    rounds: int = 100,
    settle: timedelta = timedelta(minutes=5),
) -> None:
    """Run one check and remove what it made.

    Args:
        check: One of `CHECKS`.
        factory: Makes a provider that is not entered yet; each call one more client of the same store.
        prefix: What the names of the secrets made here begin with.
        rounds: How often a race is run; fewer where calls cost money.
        settle: How long a store without strong reads may take to show a write.

    Raises:
        ContractViolationError: The provider does not do what it must.
        SkippedError: It declares that it does not.
        GoatherdError: It failed where it must not.
    """
    async with factory() as provider:
        it = Subject(factory=factory, provider=provider, prefix=prefix, rounds=rounds, settle=settle)
        try:
            await check(it)
        finally:
            for name in it.made:
                with contextlib.suppress(GoatherdError):
                    await provider.delete(name)


async def check_provider(
    factory: Factory,
    *,
    prefix: str = "goatherd-contract-",
    rounds: int = 100,
    settle: timedelta = timedelta(minutes=5),
    tell: Callable[[Outcome], None] | None = None,
) -> Report:
    """Run all checks, the failing ones included, and report. See `run_check` for the arguments.

    `tell`, if given, is called after each. No check's failure escapes.
    """
    outcomes = []
    for check in CHECKS:
        name = check_name(check)
        try:
            await run_check(check, factory, prefix=prefix, rounds=rounds, settle=settle)
        except SkippedError as reason:
            outcome = Outcome(check=name, skipped=str(reason))
        except Exception as error:  # noqa: BLE001 - whatever a stranger's plugin does is an outcome
            outcome = Outcome(check=name, error=_plain(error))
        else:
            outcome = Outcome(check=name)
        outcomes.append(outcome)
        if tell is not None:
            tell(outcome)
    return Report(outcomes=tuple(outcomes))


def check_name(check: Check) -> str:
    """Return the sentence that a check proves, with underscores."""
    return str(getattr(check, "__name__", check))


def _plain(error: Exception) -> BaseException:
    """Return the one error inside a task group's, where there is one."""
    return error.exceptions[0] if isinstance(error, ExceptionGroup) and len(error.exceptions) == 1 else error


class ProviderContract:
    """The checks as pytest tests: derive a class whose name begins with Test, and say how to make a provider.

    ::

        class TestMyProvider(ProviderContract):
            def provider(self) -> SecretProvider:
                return MyProvider(address)

    Every check becomes a test method (``test_a_new_secret_reads_back``…), with an event loop of its own.
    """

    prefix = "goatherd-contract-"
    rounds = 100
    settle = timedelta(minutes=5)

    def provider(self) -> SecretProvider:
        """Return a provider that is not entered yet; each call one more client of the same store."""
        raise NotImplementedError("say how to make a provider")

    def run(self, check: Check) -> None:
        """Run one check in a new event loop."""
        asyncio.run(run_check(check, self.provider, prefix=self.prefix, rounds=self.rounds, settle=self.settle))


def _method(check: Check) -> Callable[[ProviderContract], None]:
    def test(self: ProviderContract) -> None:
        try:
            self.run(check)
        except SkippedError as reason:
            import pytest  # only where a test that pytest runs is to be skipped

            pytest.skip(str(reason))

    test.__doc__ = check.__doc__
    return test


for _check in CHECKS:
    setattr(ProviderContract, f"test_{check_name(_check)}", _method(_check))


def main(arguments: list[str]) -> int:
    """Run the checks over the store that a URI names, beside the secret that it names, and print each.

    Returns:
        0 when all that apply hold, 1 when one does not, 2 when the URI is of no use.
    """
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.stderr.write("usage: python -m goatherd.testing.contract URI\n")
        return 2
    try:
        _, secret_id = open_provider(arguments[0])
    except GoatherdError as error:
        sys.stderr.write(f"{error}\n{error.hint}\n")
        return 2

    def tell(outcome: Outcome) -> None:
        if outcome.error is not None:
            line = f"FAILED  {outcome.check}: {type(outcome.error).__name__}: {outcome.error}"
        elif outcome.skipped is not None:
            line = f"skipped {outcome.check}: {outcome.skipped}"
        else:
            line = f"ok      {outcome.check}"
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    prefix = f"{secret_id}-contract-".replace("{org}", "contract")
    report = asyncio.run(check_provider(lambda: open_provider(arguments[0])[0], prefix=prefix, tell=tell))
    sys.stdout.write(f"{len(report.outcomes) - len(report.failures)} of {len(report.outcomes)} hold\n")
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
