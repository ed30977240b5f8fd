"""Run the checks of the provider contract with any secret provider.

A program calls `check_provider`; pytest uses `ProviderContract` and `AnswerContract`. All of these run `CHECKS`, which
`goatherd.testing.provider_checks` and `goatherd.testing.answer_checks` define. The secrets that a check has created are
removed. A failed check does not stop the others, and a skipped check does not count as passed. Only `ProviderContract`
and `AnswerContract` import pytest.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from enum import StrEnum
from typing import Any, ClassVar, Final

from goatherd.errors import GoatherdError, SecretDeletedError, SecretNotFoundError
from goatherd.providers.base import Guarantees, ReadConsistency, SecretProvider
from goatherd.testing.answer_checks import ANSWER_CHECKS
from goatherd.testing.provider_checks import PROVIDER_CHECKS
from goatherd.testing.subject import Check, Factory, SkippedError, Subject, add_tests, is_about, must
from goatherd.testing.subject import check_name as check_name
from goatherd.testing.wrong_answers import WrongAnswers

CHECKS: Final[tuple[Check, ...]] = (*PROVIDER_CHECKS, *ANSWER_CHECKS)


class Result(StrEnum):
    """The result of a check: passed, failed or skipped."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOutcome:
    """The outcome of one check.

    Attributes:
        check: The name of the check.
        error: Why the check failed, or None.
        skipped: Why the check did not apply, or None.
        seconds: How long the check took.
    """

    check: str
    error: BaseException | None = None
    skipped: str | None = None
    seconds: float = 0.0

    @property
    def result(self) -> Result:
        """Whether the check passed, failed or was skipped."""
        if self.error is not None:
            return Result.FAILED
        return Result.PASSED if self.skipped is None else Result.SKIPPED


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractReport:
    """The outcomes of all checks of a run.

    Attributes:
        outcomes: The outcome of each check, in the order of the checks.
        left_behind: The names of secrets that could not be removed.
    """

    outcomes: tuple[CheckOutcome, ...]
    left_behind: tuple[str, ...] = ()

    def with_result(self, result: Result) -> tuple[CheckOutcome, ...]:
        """Return the outcomes of the checks that have this result (passed, failed or skipped)."""
        return tuple(outcome for outcome in self.outcomes if outcome.result is result)

    @property
    def failures(self) -> tuple[CheckOutcome, ...]:
        """The outcomes of the checks that failed."""
        return self.with_result(Result.FAILED)

    @property
    def has_failures(self) -> bool:
        """Whether any check failed. A report without failures may still have skipped checks."""
        return bool(self.failures)


async def run_check(
    check: Check,
    factory: Factory,
    *,
    prefix: str = "goatherd-contract-",
    rounds: int = 100,
    settle: timedelta = timedelta(minutes=5),
    answers: WrongAnswers | None = None,
    left_behind: list[str] | None = None,
) -> None:
    """Run one check of the provider contract, and remove the secrets that it created.

    Args:
        check: One of `CHECKS`.
        factory: Returns a provider, not yet entered as a context manager; each call makes another client of the same
            store.
        prefix: The beginning of the names of all secrets that the check creates.
        rounds: How often each test with concurrent writers is repeated; use fewer if requests cost money.
        settle: How long a store without strong reads may take until a write is visible.
        answers: Makes the store answer wrongly; None to skip the checks that need wrong answers.
        left_behind: A list to which the names of secrets that could not be removed are added.

    Raises:
        ContractViolationError: The provider breaks the contract.
        SkippedError: The check does not apply, because the provider does not promise what the check tests, or because
            `answers` is missing.
        GoatherdError: An operation failed that must succeed.
    """
    async with factory() as provider:
        it = Subject(factory=factory, provider=provider, prefix=prefix, rounds=rounds, settle=settle, answers=answers)
        try:
            await check(it)
        finally:
            left = left_behind if left_behind is not None else []
            left.extend(it.made)  # at once, so that they are reported where the removal is interrupted
            for name in it.made:
                with contextlib.suppress(GoatherdError):
                    with contextlib.suppress(SecretNotFoundError, SecretDeletedError):
                        await provider.delete(name)
                    left.remove(name)


Outcome = CheckOutcome
Report = ContractReport
"""Earlier names, which stay importable."""


async def check_provider(
    factory: Factory,
    *,
    prefix: str = "goatherd-contract-",
    rounds: int = 100,
    settle: timedelta = timedelta(minutes=5),
    answers: WrongAnswers | None = None,
    tell: Callable[[CheckOutcome], None] | None = None,
    checks: Sequence[Check] = CHECKS,
    left_behind: list[str] | None = None,
) -> ContractReport:
    """Run all checks of the provider contract, even after failures, and return a report.

    Args:
        factory: Returns a provider, not yet entered as a context manager; each call makes another client of the same
            store.
        prefix: The beginning of the names of all secrets that the checks create.
        rounds: How often each test with concurrent writers is repeated.
        settle: How long a store without strong reads may take until a write is visible.
        answers: Makes the store answer wrongly; None to skip the checks that need wrong answers.
        tell: Called with the outcome of each check. If it raises an exception, the run ends; a failed check does not
            end it.
        checks: The checks to run.
        left_behind: A list to which the names of secrets that could not be removed are added, also if the run is
            interrupted.
    """
    outcomes = list[CheckOutcome]()
    left_behind = [] if left_behind is None else left_behind
    for check in checks:
        began = time.monotonic()
        error: BaseException | None = None
        skipped: str | None = None
        try:
            await run_check(
                check, factory, prefix=prefix, rounds=rounds, settle=settle, answers=answers, left_behind=left_behind
            )
        except SkippedError as reason:
            skipped = str(reason)
        except Exception as caught:  # noqa: BLE001 - whatever a stranger's plugin does is an outcome
            error = _plain(caught)
        seconds = time.monotonic() - began
        outcome = CheckOutcome(check=check_name(check), error=error, skipped=skipped, seconds=seconds)
        outcomes.append(outcome)
        if tell is not None:
            tell(outcome)
    return ContractReport(outcomes=tuple(outcomes), left_behind=tuple(left_behind))


def _plain(error: Exception) -> BaseException:
    """Return the error in an exception group that has only one; return any other error unchanged."""
    return error.exceptions[0] if isinstance(error, ExceptionGroup) and len(error.exceptions) == 1 else error


class _Contract:
    """The base of the pytest classes for secret providers: makes a provider, and runs one check with it."""

    prefix = "goatherd-contract-"
    rounds = 100
    settle = timedelta(minutes=5)
    promises: ClassVar[Collection[str] | None] = None
    """Names of the promises (yes or no) that the provider's `Guarantees` make.

    If given, checks of other promises are no tests of the class; else they are skipped when they run. Each test checks
    that these are what the provider declares.
    """

    def __init_subclass__(cls, **more: object) -> None:
        super().__init_subclass__(**more)
        if cls.promises is None:
            return
        declared = _guarantees(cls.promises)
        for check in CHECKS:
            name = f"test_{check_name(check)}"
            if name not in vars(cls) and not is_about(check, declared):
                setattr(cls, name, None)

    def provider(self) -> SecretProvider:
        """Return a provider, not yet entered as a context manager; each call makes another client of the same store."""
        raise NotImplementedError("a subclass of ProviderContract or AnswerContract must override provider()")

    def wrong_answers(self) -> WrongAnswers | None:
        """Return the object that makes the store of `provider` answer wrongly; None if that is not possible."""
        return None

    def run(self, check: Check) -> None:
        """Run one check of the provider contract in a new event loop; raise its failure."""
        if self.promises is not None:
            declared = _promises(self.provider().guarantees)
            must(declared == set(self.promises), f"promises are {sorted(declared)}, not {sorted(self.promises)}")
        asyncio.run(
            run_check(
                check,
                self.provider,
                prefix=self.prefix,
                rounds=self.rounds,
                settle=self.settle,
                answers=self.wrong_answers(),
            )
        )


_PROMISES: Final = tuple(one.name for one in fields(Guarantees) if one.type in (bool, "bool"))


def _promises(guarantees: Guarantees) -> set[str]:
    return {name for name in _PROMISES if getattr(guarantees, name)}


def _guarantees(promises: Collection[str]) -> Guarantees:
    unknown = set(promises) - set(_PROMISES)
    if unknown:
        raise ValueError(f"promises: {sorted(unknown)} are no promises of a provider; those are {', '.join(_PROMISES)}")
    yes_or_no: dict[str, Any] = {name: name in promises for name in _PROMISES}
    return replace(Guarantees(cas=True, read_consistency=ReadConsistency.STRONG), **yes_or_no)


class ProviderContract(_Contract):
    """The provider checks as pytest tests: derive a class named Test… and override `provider`.

    ::

        class TestMyProvider(ProviderContract):
            def provider(self) -> SecretProvider:
                return MyProvider(address)

    Every check becomes a test method (such as ``test_a_new_secret_reads_back``), and runs in an event loop of its own.
    """


class AnswerContract(_Contract):
    """The checks against wrong answers as pytest tests, for a fake store that can be made to answer wrongly.

    Derive a class named Test…, and override `provider` and `wrong_answers`:

    ::

        class TestMyProviderAnswers(AnswerContract):
            def provider(self) -> SecretProvider:
                return MyProvider(self.fake.address)

            def wrong_answers(self) -> WrongAnswers:
                return self.fake.wrong
    """


add_tests(ProviderContract, PROVIDER_CHECKS)
add_tests(AnswerContract, ANSWER_CHECKS)


if __name__ == "__main__":
    from goatherd.testing.contract_command import main

    main()
