"""The argument of a contract check: the provider under test (`Subject`), and functions that state what must be true."""

from __future__ import annotations

import asyncio
import functools
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar
from unittest import mock

from goatherd.errors import ProviderError, UnavailableError
from goatherd.providers.base import Call, Guarantees, ReadConsistency, SecretProvider
from goatherd.providers.values import CURRENT, Label, SecretValue, SecretVersion, VersionId
from goatherd.testing.wrong_answers import WrongAnswers

Result = TypeVar("Result")
Factory = Callable[[], SecretProvider]


class ContractViolationError(AssertionError):
    """The provider does not do what every provider must."""


class SkippedError(Exception):
    """The provider declares that it does not promise this."""


@dataclass(slots=True)
class Subject:
    """A provider under test, and what a check needs besides.

    Attributes:
        factory: Makes a provider that is not entered yet; each call one more client of the same store.
        provider: One that is entered.
        prefix: What the names of the secrets made here begin with.
        rounds: How often a race is run.
        settle: How long a store without strong reads may take to show a write.
        answers: What makes the store answer wrongly; None where that cannot be done.
        made: The names given out, to be removed at the end.
    """

    factory: Factory
    provider: SecretProvider
    prefix: str
    rounds: int
    settle: timedelta
    answers: WrongAnswers | None = None
    made: list[str] = field(default_factory=list)

    def new_id(self) -> str:
        """Return the name of a secret that does not exist."""
        name = f"{self.prefix}{secrets.token_hex(6)}"
        self.made.append(name)
        return name

    async def seen(self, secret_id: str, version: str, at: Label = CURRENT) -> bytes:
        """Return the value at a label once it leads to `version`: at once where reads are strong."""
        patient = self.provider.guarantees.read_consistency is not ReadConsistency.STRONG
        end = time.monotonic() + (self.settle.total_seconds() if patient else 0)
        while True:
            found = await self.provider.read(secret_id, at)
            if found.version.id == version or time.monotonic() >= end:
                must(found.version.id == version, f"{at!r} leads to {found.version.id!r} after {version!r} was written")
                must(at in found.version.labels, f"a version read by {at!r} does not list that label")
                return found.value.reveal()
            await asyncio.sleep(0.2)

    async def current(self, secret_id: str) -> SecretValue:
        """Return what counts: by its label or, where a label may still lead to an older version, by its id."""
        if self.provider.guarantees.read_consistency is ReadConsistency.STRONG:
            return await self.provider.read(secret_id)
        return await self.provider.read(secret_id, VersionId((await self.picture(secret_id))[CURRENT]))

    async def picture(self, secret_id: str) -> dict[str, str]:
        """Return which version holds which label."""
        return {label: v.id for v in await self.provider.versions(secret_id) for label in v.labels}


Check = Callable[[Subject], Awaitable[None]]


def must(condition: bool, text: str) -> None:
    """Raise `ContractViolationError` with `text` unless `condition` holds."""
    if not condition:
        raise ContractViolationError(text)


async def refused(kind: type[ProviderError], subject: Subject, doing: Awaitable[object]) -> ProviderError:
    """Await something that must fail with exactly this error, well formed; return it."""
    try:
        await doing
    except ProviderError as error:
        must(type(error) is kind, f"{kind.__name__} was due, {type(error).__name__} came: {error}")
        must(error.provider == subject.provider.scheme, f"the error does not name the provider: {error}")
        must(repr(error.secret_id) in str(error), f"the error does not name the secret: {error}")
        must(hasattr(SecretProvider, error.operation), f"the error names no operation of a provider: {error}")
        return error
    except Exception as error:
        raise ContractViolationError(f"{kind.__name__} was due, {type(error).__name__} came") from error
    raise ContractViolationError(f"{kind.__name__} was due, nothing was raised")


async def losing_the_answer(unlucky: SecretProvider, method: str, begin: Callable[[], Awaitable[Result]]) -> Result:
    """Do something whose first answer is lost after it was done; return the second, which must be of the same version.

    Args:
        unlucky: The client.
        method: The private one whose answer is lost.
        begin: Calls the public one.
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
    """Mark a check as one of providers that promise something; with others, it raises `SkippedError`.

    Args:
        applies: Whether the check is about a provider with these guarantees.
        declares: What a provider declares that the check is not about.
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
    """Whether a check is about a provider with these guarantees."""
    applies: Callable[[Guarantees], bool] = getattr(check, "applies", lambda _: True)
    return applies(guarantees)


def needs(it: Subject, condition: bool, reason: str) -> None:
    """Raise `SkippedError` unless the provider promises what the check is about; `reason` is what it declares."""
    if not condition:
        raise SkippedError(f"{it.provider.scheme} {reason}")
