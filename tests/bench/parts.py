"""The parts of the benchmark, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from . import (
    bench_agent,
    bench_command_line,
    bench_crowd,
    bench_direct,
    bench_door,
    bench_outage,
    bench_page,
    bench_repository,
    bench_revocation,
    bench_rotation,
    bench_sessions,
    bench_settings,
    bench_signers,
    bench_signing,
)
from .data import Data
from .rows import Row
from .scale import Scale

Part = Callable[[Scale, Data], Coroutine[Any, Any, list[Row]]]

PARTS: Final[Mapping[str, Part]] = {
    "command": bench_command_line.run,
    "signing": bench_signing.run,
    "signers": bench_signers.run,
    "direct": bench_direct.run,
    "repository": bench_repository.run,
    "sessions": bench_sessions.run,
    "settings": bench_settings.run,
    "door": bench_door.run,
    "crowd": bench_crowd.run,
    "rotation": bench_rotation.run,
    "revocation": bench_revocation.run,
    "agent": bench_agent.run,
    "outage": bench_outage.run,
    "page": bench_page.run,
}
"""By the first part of their rows' names."""

GROWING_WITH_COMMITS: Final = ("repository", "door")
GROWING_WITH_SESSIONS: Final = ("sessions", "revocation", "agent")
