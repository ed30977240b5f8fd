"""`goatherd door` as a process: it starts, protects the server, follows the store, and stops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from goatherd.clock import SystemClock
from goatherd.identity.document import encode_document
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.ids import new_id
from goatherd.providers.file.provider import FileSecretProvider
from tests.fakes.upstream_child import UpstreamChild

pytestmark = pytest.mark.slow

NOW = SystemClock().now_ms()


@contextlib.asynccontextmanager
async def door(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "goatherd", "door", "--json", *arguments],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_it_opens_guards_and_closes(tmp_path: Path) -> None:
    root = OwnedSession.generate(session_id=new_id(), owner=ROOT_OWNER, now_ms=NOW)
    async with FileSecretProvider(tmp_path / "keys") as store:
        await store.create("root", encode_document(create_document(root, NOW)))
    uri = f"file://{tmp_path}/keys/root"
    async with (
        UpstreamChild(root) as child,
        door(
            "--upstream", child.url, "--provider", uri, "--port", "0", "--public-url", "https://goats.example"
        ) as process,
        httpx2.AsyncClient(verify=False, timeout=60) as http,
    ):
        assert process.stdout is not None
        ready = json.loads(await process.stdout.readline())
        assert ready["ready"] is True
        url = str(ready["url"])
        health = await http.get(url + "/healthy")
        assert (health.text, health.headers["access-control-allow-origin"]) == ("OK", "https://goats.example")
        caller = OwnedSession.generate(session_id="draft", owner=None, now_ms=NOW)
        wanted = {"publicKey": caller.session.public_key.to_jwk()}
        while (answer := await http.post(url + "/auth/session", json=wanted)).status_code == 503:
            await asyncio.sleep(0.1)  # the server is slow
        assert [each["id"] for each in answer.json()["roots"]] == [root.id]
        secret = root.to_secret_json()["privateKey"]["d"]
        assert secret not in answer.text
        assert secret in child.answers[-1].decode()
        process.send_signal(signal.SIGTERM)
        _, errors = await process.communicate()
        assert process.returncode == 0
        assert b"door.key_withheld" in errors
        assert b"door.opened" in errors, "what ends a warning, such as door.sees, is logged at the same level"
        assert secret.encode() not in errors


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--upstream", "ftp://h"], 2),
        (["--upstream", "http://h/path"], 2),
        (["--upstream", "http://h", "--forwarded-by", "nonsense"], 2),
        (["--upstream", "http://h", "--public-url", "h"], 2),
    ],
    ids=["scheme", "path", "network", "public"],
)
async def test_an_address_that_is_none_is_an_error_that_says_so(
    arguments: list[str], status: int, tmp_path: Path
) -> None:
    root = OwnedSession.generate(session_id=new_id(), owner=ROOT_OWNER, now_ms=NOW)
    async with FileSecretProvider(tmp_path / "keys") as store:
        await store.create("root", encode_document(create_document(root, NOW)))
    async with door(*arguments, "--port", "0", "--provider", f"file://{tmp_path}/keys/root") as process:
        out, _ = await process.communicate()
        assert process.returncode == status
        assert json.loads(out)["error"]["code"] == "configuration.invalid"
