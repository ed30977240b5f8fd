"""A rotation or a restore is killed by SIGKILL at every numbered effect; another process resumes or cancels it.

The processes are real (`tests.chaos.dying`, which is the command line with one end of its own, and then the command
line itself); so are the servers, on sockets; the store is the file store, and OpenBao.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from goatherd.cli.main import EXIT_CODES
from goatherd.cluster.client import NodeClient
from goatherd.identity.document import decode_document
from goatherd.node.server import Server
from goatherd.providers.base import SecretProvider
from goatherd.providers.file.provider import FileSecretProvider
from goatherd.providers.values import CURRENT, STABLE, VersionState
from goatherd.providers.vault.address import VaultAddress
from goatherd.providers.vault.auth import TokenAuth
from goatherd.providers.vault.provider import VaultSecretProvider
from tests.cluster.herd import Herd, herd_around
from tests.deadlines import ANSWER, HANG
from tests.depth import STRIDE
from tests.fakes.openbao import ROOT_TOKEN, WHY_SKIPPED, BaoServer, find_bao

BAO = find_bao()
ROOT = Path(__file__).parents[2]
NOTES = "/data/notes"
SERVERS = 2
FEWEST_STEPS, MOST_STEPS = 12, 60
FEW = 9
"""Of the effects, every n-th in a test that is not deep."""


@dataclass(slots=True, kw_only=True)
class Store:
    """A store that other processes can reach.

    Attributes:
        client: Makes a client of the store.
        uri: The URI of a secret in the store.
        environment: Environment variables with which a process can reach the store.
    """

    client: Callable[[], SecretProvider]
    uri: Callable[[str], str]
    environment: dict[str, str] = field(default_factory=dict)


@pytest.fixture
def file_store(tmp_path: Path) -> Store:
    keys = tmp_path / "keys"
    return Store(client=lambda: FileSecretProvider(keys), uri=lambda name: f"file://{keys}/{name}")


@pytest.fixture(scope="module")
def server() -> Iterator[BaoServer]:
    if BAO is None:
        pytest.skip(WHY_SKIPPED)
    with BaoServer(BAO) as running:
        yield running


@pytest.fixture
def openbao(server: BaoServer) -> Store:
    address = VaultAddress(url=server.url, auth=TokenAuth(token=ROOT_TOKEN), reads_active=True)
    return Store(
        client=lambda: VaultSecretProvider(address, timeout=ANSWER),
        uri=lambda name: f"openbao://127.0.0.1:{server.port}/secret/{name}?tls=off&reads=active",
        environment={"BAO_TOKEN": ROOT_TOKEN},
    )


@pytest.fixture(params=["file_store", "openbao"])
def store(request: pytest.FixtureRequest) -> Store:
    return request.getfixturevalue(request.param)


class Shell:
    """Runs processes, one at a time; see `tests.chaos.dying`."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log

    async def run(self, *arguments: str, step: int = 0, when: str = "before") -> tuple[int, str]:
        """Run a process to its end; return its exit code, negative for a signal, and all its output."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._log.unlink(missing_ok=True)
        job = {"arguments": arguments, "log": str(self._log), "step": step, "when": when}
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        async with asyncio.timeout(4 * HANG):
            line = await self._process.stdout.readline()
        return json.loads(line)["code"], self._log.read_text() if self._log.exists() else ""


@contextlib.asynccontextmanager
async def shell_for(store: Store, top: Path) -> AsyncIterator[Shell]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.chaos.dying"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "GOATHERD_TIMEOUT": f"{ANSWER.total_seconds():g}s", **store.environment},
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        yield Shell(process, top / "said")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


@contextlib.asynccontextmanager
async def herd_of_two(store: Store, top: Path, name: str) -> AsyncIterator[Herd]:
    async with herd_around(top / name, store.client, name, count=SERVERS) as started:
        await started.servers[0].database().repository(NOTES).create("note-0", "note/1", {"title": "before"})
        yield started


async def test_killed_at_some_effects_another_process_carries_it_on(file_store: Store, tmp_path: Path) -> None:
    await killed_at_each_effect(file_store, tmp_path, "before", one_rotation_killed, stride=FEW)


async def test_a_restore_is_killed_at_some_effects_and_another_process_resumes_it(
    file_store: Store, tmp_path: Path
) -> None:
    await killed_at_each_effect(file_store, tmp_path, "before", one_restore_killed, stride=FEW)


@pytest.mark.deep
@pytest.mark.parametrize("when", ["before", "after"])
async def test_killed_at_every_effect_another_process_carries_it_on(store: Store, tmp_path: Path, when: str) -> None:
    await killed_at_each_effect(store, tmp_path, when, one_rotation_killed, stride=STRIDE)


@pytest.mark.deep
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("way", ["resumed", "left"])
async def test_a_restore_is_killed_at_every_effect_and_another_process_resumes_or_leaves_it(
    store: Store, tmp_path: Path, when: str, way: str
) -> None:
    async def one_killed(shell: Shell, store: Store, top: Path, step: int, when: str) -> bool:
        return await one_restore_killed(shell, store, top, step, when, is_left=way == "left")

    await killed_at_each_effect(store, tmp_path, when, one_killed, stride=STRIDE)


async def killed_at_each_effect(
    store: Store,
    top: Path,
    when: str,
    one_killed: Callable[[Shell, Store, Path, int, str], Awaitable[bool]],
    *,
    stride: int,
) -> None:
    async with shell_for(store, top) as shell:
        for step in range(1, MOST_STEPS, stride):
            if not await one_killed(shell, store, top, step, when):
                assert step > FEWEST_STEPS, "there must be that many effects to die at"
                return
    pytest.fail("it has more effects than this test allows for")


async def one_rotation_killed(shell: Shell, store: Store, top: Path, step: int, when: str) -> bool:
    """Begin a rotation whose process is killed at `step`, and resume it; return whether there was such a step."""
    name = f"root-{when}-{step}-{secrets.token_hex(4)}"
    async with herd_of_two(store, top, name) as herd:
        target = target_of(store, name, herd)
        code, said = await shell.run("rotate", *target, step=step, when=when)
        assert code in (0, -signal.SIGKILL), f"to be killed {when} effect {step}: {said}"
        if code:
            await carried_on(shell, herd, target, f"killed {when} effect {step}")
        await ends_well(shell, herd, name, store.uri(name))
        return code != 0


async def one_restore_killed(
    shell: Shell, store: Store, top: Path, step: int, when: str, *, is_left: bool = False
) -> bool:
    """Rotate from A to B, begin a restore whose process is killed at `step`; return whether there was such a step.

    Another process resumes the restore, or cancels it and then starts it again: both ways A signs in the end.
    """
    name, what = f"root-{when}-{step}-{secrets.token_hex(4)}", f"killed {when} effect {step}"
    async with herd_of_two(store, top, name) as herd:
        target, a = target_of(store, name, herd), herd.first.id
        code, said = await shell.run("rotate", *target)
        assert code == 0, said
        rotated = await herd.document()
        b = rotated.current.id
        code, said = await shell.run("restore", *target, step=step, when=when)
        assert code in (0, -signal.SIGKILL), f"to be {what}: {said}"
        if code and is_left:
            await left(shell, herd, target, what, signs=b)
        elif code:
            resumed, said = await shell.run("rotate", "--resume", *target)
            assert resumed == 0, f"{what}, resumed: {said}"
        if (await herd.document()).current.id == b:
            again, said = await shell.run("restore", a, *target)  # by name: it may have been rolled back
            assert again == 0, f"{what}, restored anew: {said}"
        await ends_well(shell, herd, name, store.uri(name), signs=a, trusts=b)
        return code != 0


async def left(shell: Shell, herd: Herd, target: list[str], what: str, *, signs: str) -> None:
    """Cancel a restore by the command that its phase allows; then the root that signed before it signs everywhere.

    Before the first write and after the last one, `--cancel` is rejected, but still repairs the label.
    """
    document = await herd.document()
    if document.rotation is None:
        code, said = await shell.run("rotate", "--cancel", *target)
        assert code == EXIT_CODES["rotation"], f"{what}, nothing to cancel: {said}"
        return
    step = "--cancel" if document.next is not None else "--rollback"
    wrong = "--rollback" if document.next is not None else "--cancel"
    code, said = await shell.run("rotate", wrong, *target)
    assert code == EXIT_CODES["rotation"], f"{what}, left by {wrong}: {said}"
    code, said = await shell.run("rotate", step, *target)
    assert code == 0, f"{what}, left by {step}: {said}"
    assert (await herd.document()).rotation is None
    for url in herd.urls:
        async with NodeClient(url, timeout=ANSWER) as client:
            identity = await client.identity()
        assert identity is not None
        assert identity.signer == signs, f"{what}, left by {step}"


def target_of(store: Store, name: str, herd: Herd) -> list[str]:
    return ["--provider", store.uri(name), *(word for url in herd.urls for word in ("--node", url))]


async def carried_on(shell: Shell, herd: Herd, target: list[str], what: str) -> None:
    """Do what the next operator does: resume the rotation in progress, or rotate if there is none."""
    code, said = await shell.run("rotate", "--resume", *target)
    assert code == 0, f"{what}, resumed: {said}"
    if (await herd.document()).current.id == herd.first.id:
        code, said = await shell.run("rotate", *target)
        assert code == 0, f"{what}, rotated anew: {said}"


async def ends_well(
    shell: Shell, herd: Herd, name: str, uri: str, *, signs: str | None = None, trusts: str | None = None
) -> None:
    """Check a finished rotation from A to B, or a restore of A: steady, nothing lost, both trusted, no other key left.

    Args:
        shell: Runs `retire`.
        herd: The servers.
        name: The name of the secret.
        uri: The URI of the secret.
        signs: The root that must sign; None for the one that the document names.
        trusts: The root that signed before it; None for the herd's first.
    """
    document = await herd.document()
    trusts = trusts or herd.first.id
    assert document.rotation is None
    assert document.next is None
    assert document.current.id == (signs or document.current.id)
    assert document.rotated_from == trusts
    assert len(document.roots) == 2, "a second candidate was made"
    labels = [(await herd.provider.read(name, label)).version.id for label in (CURRENT, STABLE)]
    assert labels[0] == labels[1]
    await herd.servers[-1].database().repository(NOTES).create("note-1", "note/1", {"title": "after"})
    for server, url in zip(herd.servers, herd.urls, strict=True):
        await holds_both(server)
        async with NodeClient(url, timeout=ANSWER) as client:
            identity = await client.identity()
        assert identity is not None
        assert identity.signer == document.current.id
        assert trusts in (identity.roots or ())
    code, said = await shell.run("retire", "--grace", "1ms", "--yes", "--provider", uri)
    assert code == 0, said
    for version in await herd.provider.versions(name):
        if version.state is VersionState.ENABLED:
            held = decode_document((await herd.provider.read(name, version.id)).value.reveal())
            assert held.current.id == document.current.id, "an orphan holds another private key"
            assert held.next is None, "an orphan holds a candidate's private key"


async def holds_both(server: Server) -> None:
    notes = server.database().repository(NOTES)
    async with asyncio.timeout(HANG):
        while [await notes.get(key) for key in ("note-0", "note-1")].count(None):
            await asyncio.sleep(0.05)
