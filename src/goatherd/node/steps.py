"""Long work cut into steps, so that pure code can leave the heavy ones to threads without knowing of any. Pure.

A generator of `Steps` does what is quick, and changes state, wherever it is advanced. What takes long it yields as a
`Step`, which whoever drives it runs in a thread or at once, and sends back what the step returned.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from goatherd.errors import GoatherdError

if TYPE_CHECKING:
    from concurrent.futures import Executor

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Step:
    """Work for a thread. It touches nothing that changes meanwhile."""

    work: Callable[[Executor | None], Any]

    def run(self, executor: Executor | None = None) -> Any:
        """Do it; `executor` (never the one whose thread this occupies) spreads signatures over threads."""
        return self.work(executor)


Steps = Generator[Step, Any, R]


def drive_inline(steps: Steps[R], executor: Executor | None = None) -> R:
    """Run everything in this thread. An error of a step is raised inside the generator."""
    try:
        step = next(steps)
        while True:
            try:
                result = step.run(executor)
            except GoatherdError as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as done:
        answer: R = done.value
        return answer


async def drive(steps: Steps[R], run: Callable[[Step], Awaitable[Any]]) -> R:
    """Advance here, and have the steps done by `run`. An error of a step is raised inside the generator."""
    try:
        step = next(steps)
        while True:
            try:
                result = await run(step)
            except GoatherdError as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as done:
        answer: R = done.value
        return answer
