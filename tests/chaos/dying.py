"""Processes that run `goatherd`, and may be killed by SIGKILL before or after one of their numbered effects.

The command line itself runs, with one difference: what would be the n-th effect on the outside (a call
that changes the store, a commit pushed to a server, a notification of a server) ends the process at once. Effects
are counted where they leave the process: the calls of the file store, else HTTP requests.

``python -m tests.chaos.dying`` forks one process for each job that it reads, so that Python starts once, and not some
hundred times. A job is a line of JSON: ``{"arguments": ["rotate", …], "log": path, "step": 7, "when": "before"}``;
without a step the process lives to its end. The answer is a line too: ``{"code": -9}``.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn

import httpx2

from goatherd.cli.main import run
from goatherd.providers.base import SecretProvider

ON_A_SERVER = "/v1/"
"""Where OpenBao's API is."""
PRELOADED = ("cli.rotate", "cli.output", "providers.file", "providers.vault", "cluster.client", "rotation")


class Death:
    """Ends the process at one step, before or after its effect."""

    def __init__(self, step: int, when: str) -> None:
        self.step = step
        self.when = when
        self.count = 0

    async def around(self, call: Callable[[], Awaitable[Any]]) -> Any:
        self.count += 1
        mine = self.count == self.step
        if mine and self.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = await call()
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)
        return result


def has_effect(request: httpx2.Request) -> bool:
    path = request.url.path
    if path.startswith(ON_A_SERVER):
        return request.method not in ("GET", "LIST") and "/auth/" not in path
    if path == "/batch-sync":
        return b'"c":[]' not in request.content
    return path == "/goatherd/v1/refresh"


def arm(death: Death) -> None:
    send = httpx2.AsyncClient.send

    async def deadly_send(self: httpx2.AsyncClient, request: httpx2.Request, **options: Any) -> httpx2.Response:
        if not has_effect(request):
            return await send(self, request, **options)
        response: httpx2.Response = await death.around(lambda: send(self, request, **options))
        return response

    httpx2.AsyncClient.send = deadly_send  # type: ignore[method-assign]

    def deadly(name: str) -> None:
        method = getattr(SecretProvider, name)

        async def call(self: SecretProvider, *arguments: Any, **options: Any) -> Any:
            if self.scheme != "file":
                return await method(self, *arguments, **options)
            return await death.around(lambda: method(self, *arguments, **options))

        setattr(SecretProvider, name, call)

    for name in ("write", "label", "destroy"):
        deadly(name)


def live(job: Mapping[str, Any]) -> NoReturn:
    """Run one job in this process."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if job.get("step"):
        arm(Death(job["step"], job["when"]))
    code = 70
    try:
        code = run(job["arguments"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    for name in PRELOADED:
        importlib.import_module(f"goatherd.{name}")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            live(json.loads(line))
        _, status = os.waitpid(child, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
