"""Check, before a controller sleeps, everything that it will need when a rotation is due.

What it is: the store and its rights, the servers, the audit trail, the alert command and the health check, each tried
once. What it is not: it rotates nothing, and it runs no alert command, which would page an operator at every start.

Rules: what cannot get better by itself ends the start; what may pass is a warning. Programs are looked up by the shell
that will run them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from goatherd.errors import ConfigurationError, GoatherdError
from goatherd.providers.base import SecretProvider
from goatherd.providers.capabilities import DiagnosableSecretProvider, Verdict
from goatherd.providers.values import CURRENT
from goatherd.rotation.action import ObstacleKind
from goatherd.rotation.obstacles import Survey

_PERMANENT: Final = frozenset(
    {ObstacleKind.OTHER_IDENTITY, ObstacleKind.NAMED_TWICE, ObstacleKind.QUORUM, ObstacleKind.LIFETIME}
)
"""Obstacles that are mistakes of the controller's own configuration."""

_SHELL: Final = "/bin/sh"
_PLAIN_WORD: Final = re.compile(r"[\w./~+-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class StartProblem:
    """One thing that a controller would fail by.

    Attributes:
        text: What is wrong and where.
        hint: What to do about it; may be empty.
        is_permanent: Whether it ends the start.
    """

    text: str
    hint: str = ""
    is_permanent: bool


class Surveyor(Protocol):
    """What says what stands in the way of a rotation; `goatherd.rotation.Rotator` is one."""

    async def survey(self, *, is_probing: bool = True) -> Survey: ...


async def find_start_problems(
    provider: SecretProvider, secret_id: str, surveyor: Surveyor, commands: Mapping[str, str | None]
) -> list[StartProblem]:
    """Try everything that a controller needs, and return what does not work.

    Args:
        provider: The store, opened.
        secret_id: The identity's secret in it.
        surveyor: Looks at the servers.
        commands: What the operator gave to be run, by the name of the option; None where nothing was given.

    Raises:
        ProviderError, IdentityError: The store cannot be read, and that will not pass by itself.
    """
    problems = []
    for option, line in commands.items():
        missing = None if line is None else await find_missing_program(line)
        if missing is not None:
            problems.append(
                StartProblem(
                    text=f"{option}: /bin/sh finds no program {missing!r}",
                    hint="Give its full path, or install it on this machine.",
                    is_permanent=True,
                )
            )
    try:
        await provider.read(secret_id, CURRENT)
        problems += await _of_rights(provider, secret_id)
        survey = await surveyor.survey(is_probing=False)
    except GoatherdError as error:
        if not error.retryable:
            raise
        return [*problems, StartProblem(text=str(error), hint=error.hint, is_permanent=False)]
    problems += [
        StartProblem(text=one.text, hint=one.hint, is_permanent=one.kind in _PERMANENT) for one in survey.obstacles
    ]
    return [*problems, *(StartProblem(text=remark, is_permanent=False) for remark in survey.remarks)]


async def _of_rights(provider: SecretProvider, secret_id: str) -> list[StartProblem]:
    if not isinstance(provider, DiagnosableSecretProvider):
        return []
    return [
        StartProblem(text=one.text, hint=one.hint, is_permanent=one.verdict is Verdict.WRONG)
        for one in await provider.diagnose(secret_id)
        if one.verdict in (Verdict.WRONG, Verdict.CAUTION)
    ]


async def find_missing_program(line: str) -> str | None:
    """Return the program that a command line begins with, where the shell does not find it.

    Lines that begin with more than a plain word (an assignment, a subshell) are not judged.
    """
    word = (line.split() or [""])[0]
    if not _PLAIN_WORD.fullmatch(word):
        return None
    nothing = asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(
            _SHELL, "-c", 'command -v -- "$1"', _SHELL, word, stdin=nothing, stdout=nothing, stderr=nothing
        )
    except OSError:
        return word
    return None if await process.wait() == 0 else word


def refuse_start(problems: Sequence[StartProblem]) -> None:
    """Raise where a problem ends the start.

    Raises:
        ConfigurationError: It names every such problem.
    """
    permanent = [one for one in problems if one.is_permanent]
    if permanent:
        message = f"the controller was not started: {'; '.join(one.text for one in permanent)}"
        hint = " ".join(dict.fromkeys(one.hint for one in permanent if one.hint))
        raise ConfigurationError(message, hint=hint or None)
