"""`Subject`, which gives each contract check the provider under test; and the assertions that the checks use."""

from __future__ import annotations

import asyncio
import functools
import inspect
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar
from unittest import mock

from goatherd.errors import ProviderError, UnavailableError
from goatherd.providers.base import Call, Guarantees, ReadConsistency, SecretProvider
from goatherd.providers.values import CURRENT, Label, SecretValue, SecretVersion, VersionId
from goatherd.testing.wrong_answers import WrongAnswers

Result = TypeVar("Result")
Factory = Callable[[], SecretProvider]


class ContractViolationError(AssertionError):
    """The secret provider under test does not keep the contract that Goatherd relies on."""


class SkippedError(Exception):
    """A check does not apply: the provider does not promise what it tests, or the environment cannot test it."""


@dataclass(slots=True)
class Subject:
    """The argument of a check: the provider under test, and what the check needs besides.

    Attributes:
        factory: Returns a provider, not yet entered as a context manager; each call makes another client of the same
            store.
        provider: The provider under test, entered and ready for calls.
        prefix: The beginning of the names of all secrets that the check creates.
        rounds: How often each test with concurrent writers is repeated.
        settle: How long a store without strong reads may take until a write is visible.
        answers: Makes the store answer wrongly; None if that is not possible.
        made: The names that `new_id` has returned, of secrets to be removed at the end.
    """

    factory: Factory
    provider: SecretProvider
    prefix: str
    rounds: int
    settle: timedelta
    answers: WrongAnswers | None = None
    made: list[str] = field(default_factory=list)

    def new_id(self) -> str:
        """Return a new name for a secret that does not exist."""
        name = f"{self.prefix}{secrets.token_hex(6)}"
        self.made.append(name)
        return name

    async def seen(
        self, secret_id: str, version: str, at: Label = CURRENT, *, by: SecretProvider | None = None
    ) -> bytes:
        """Return the value that is read by a label, and check that the label points at `version`.

        If reads of the store may be outdated, wait up to `settle` until it does. `by` is the provider that reads, by
        default the one under test.
        """
        reader = by or self.provider
        patient = self.provider.guarantees.read_consistency is not ReadConsistency.STRONG
        end = time.monotonic() + (self.settle.total_seconds() if patient else 0)
        while True:
            found = await reader.read(secret_id, at)
            if found.version.id == version or time.monotonic() >= end:
                must(found.version.id == version, f"{at!r} leads to {found.version.id!r} after {version!r} was written")
                must(at in found.version.labels, f"a version read by {at!r} does not list that label")
                return found.value.reveal()
            await asyncio.sleep(0.2)

    async def current(self, secret_id: str) -> SecretValue:
        """Read the current version of a secret: by its label, or by its id if reads by label may be outdated."""
        if self.provider.guarantees.read_consistency is ReadConsistency.STRONG:
            return await self.provider.read(secret_id)
        return await self.provider.read(secret_id, VersionId((await self.picture(secret_id))[CURRENT]))

    async def picture(self, secret_id: str) -> dict[str, str]:
        """Return the labels of a secret, each with the id of the version that it points at."""
        return {label: v.id for v in await self.provider.versions(secret_id) for label in v.labels}


Check = Callable[[Subject], Awaitable[None]]


def check_name(check: Callable[..., object]) -> str:
    """Return the name of a check, which is the name of its function."""
    return str(getattr(check, "__name__", check))


def checks_in(names: Mapping[str, Any], *, argument: str = "it") -> tuple[Any, ...]:
    """Return the checks that a module defines, in their order: its public coroutine functions with only this argument.

    Args:
        names: The names that the module has defined.
        argument: The name of the argument.
    """
    return tuple(
        one
        for name, one in names.items()
        if not name.startswith("_")
        and inspect.iscoroutinefunction(one)
        and [*inspect.signature(one).parameters] == [argument]
    )


def add_tests(contract: type, checks: Sequence[Callable[..., object]]) -> None:
    """Give a pytest class one test for each check, which runs the check by the method `run` of the class."""

    def test_of(check: Callable[..., object]) -> Callable[[Any], None]:
        def test(self: Any) -> None:
            try:
                self.run(check)
            except SkippedError as reason:
                import pytest  # only where a test that pytest runs is to be skipped

                pytest.skip(str(reason))

        test.__doc__ = check.__doc__
        return test

    for check in checks:
        setattr(contract, f"test_{check_name(check)}", test_of(check))


def must(condition: bool, text: str) -> None:
    """Raise `ContractViolationError` with `text` unless `condition` holds."""
    if not condition:
        raise ContractViolationError(text)


async def refused(kind: type[ProviderError], subject: Subject, doing: Awaitable[object]) -> ProviderError:
    """Await an operation that must raise an error of exactly the class `kind`; return the error.

    The error must also name the provider, the secret and the operation.
    """
    try:
        await doing
    except ProviderError as error:
        must(type(error) is kind, f"{kind.__name__} was expected, but {type(error).__name__} was raised: {error}")
        must(error.provider == subject.provider.scheme, f"the error does not name the provider: {error}")
        must(repr(error.secret_id) in str(error), f"the error does not name the secret: {error}")
        must(hasattr(SecretProvider, error.operation), f"the error names no operation of a provider: {error}")
        return error
    except Exception as error:
        raise ContractViolationError(f"{kind.__name__} was expected, but {type(error).__name__} was raised") from error
    raise ContractViolationError(f"{kind.__name__} was expected, but nothing was raised")


async def losing_the_answer(unlucky: SecretProvider, method: str, begin: Callable[[], Awaitable[Result]]) -> Result:
    """Run an operation whose first attempt succeeds but whose answer is lost; return the result of the retry.

    Args:
        unlucky: The provider that runs the operation.
        method: Name of the provider's private method that makes the attempts.
        begin: Calls the provider's public method.
    """
    whole, answers = getattr(unlucky, method), list[object]()

    async def lossy(call: Call, *arguments: object) -> object:
        answers.append(await whole(call, *arguments))
        if len(answers) == 1:
            raise call.error(UnavailableError, "the answer was lost")
        return answers[-1]

    with mock.patch.object(unlucky, method, lossy):
        found = await begin()
    lost = answers[0]
    if isinstance(lost, SecretVersion):
        must(isinstance(found, SecretVersion) and found.id == lost.id, "the retry made another version")
    return found


def only_if(applies: Callable[[Guarantees], bool], declares: str) -> Callable[[Check], Check]:
    """Mark a check that applies only to providers with certain guarantees; for others it raises `SkippedError`.

    Args:
        applies: Returns whether the check applies to a provider with these guarantees.
        declares: What the other providers declare, as a phrase for the reason, such as ``declares cas=False``.
    """

    def marked(check: Check) -> Check:
        @functools.wraps(check)
        async def guarded(it: Subject) -> None:
            needs(it, applies(it.provider.guarantees), declares)
            await check(it)

        guarded.applies = applies  # type: ignore[attr-defined]
        return guarded

    return marked


def is_about(check: Check, guarantees: Guarantees) -> bool:
    """Return whether a check applies to a provider with these guarantees: whether they promise what the check tests."""
    applies: Callable[[Guarantees], bool] = getattr(check, "applies", lambda _: True)
    return applies(guarantees)


def needs(it: Subject, condition: bool, reason: str) -> None:
    """Raise `SkippedError` with `reason` unless `condition` holds, without which the check does not apply."""
    if not condition:
        raise SkippedError(f"{it.provider.scheme} {reason}")
