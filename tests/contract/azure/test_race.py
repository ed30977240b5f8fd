"""Two rotators in two processes write to one secret of a key vault, which has no compare-and-swap."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator

import pytest

pytest.importorskip("azure.keyvault.secrets", reason="needs the extra azure")

from goatherd.providers.azure.address import AzureAddress
from goatherd.providers.azure.provider import AzureSecretProvider
from tests.fakes.azure_fake import FakeCredential, FakeKeyVault, FastClock

SPEED = 50.0

ROTATOR = """
import asyncio, json, sys
from datetime import timedelta
from goatherd.errors import ConflictError
from goatherd.providers.azure.address import AzureAddress
from goatherd.providers.azure.provider import AzureSecretProvider
from tests.deadlines import HANG
from tests.fakes.azure_fake import FakeCredential, FastClock

async def main(url, ca, speed, me):
    address = AzureAddress(vault="fake", url=url, ca=ca, check_challenge=False)
    clock, timeout = FastClock(float(speed)), timedelta(seconds=HANG)
    async with AzureSecretProvider(address, credential=FakeCredential(), clock=clock, timeout=timeout) as provider:
        loop = asyncio.get_running_loop()
        print("ready", flush=True)
        while line := (await loop.run_in_executor(None, sys.stdin.readline)).split():
            number, holder = line
            try:
                made = await provider.write("root", f"{me} {number}".encode(), expected=holder)
                told = {"won": made.id}
            except ConflictError:
                told = {"won": None}
            found = await provider.read("root")
            told |= {"reads": found.version.id, "value": found.value.reveal().decode()}
            print(json.dumps(told), flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def vault() -> Iterator[FakeKeyVault]:
    with FakeKeyVault(speed=SPEED) as running:
        yield running


@pytest.mark.parametrize("rounds", [20, pytest.param(100, marks=pytest.mark.deep)])
async def test_of_two_processes_at_most_one_believes_that_it_won_and_all_readers_agree(
    vault: FakeKeyVault, rounds: int
):
    address = AzureAddress(vault="fake", url=vault.url, ca=str(vault.ca), check_challenge=False)
    provider = AzureSecretProvider(address, credential=FakeCredential(), clock=FastClock(SPEED))
    rotators = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", ROTATOR, vault.url, str(vault.ca), str(SPEED), me),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for me in ("left", "right")
    ]
    won = {"left": 0, "right": 0}
    try:
        for rotator in rotators:
            assert rotator.stdout is not None
            assert await rotator.stdout.readline() == b"ready\n"
        async with provider:
            holder = (await provider.create("root", b"start")).id
            for number in range(rounds):
                for rotator in rotators:
                    assert rotator.stdin is not None
                    rotator.stdin.write(f"{number} {holder}\n".encode())
                told = [json.loads(await rotator.stdout.readline()) for rotator in rotators if rotator.stdout]
                winners = [me for me, each in zip(won, told, strict=True) if each["won"] is not None]
                assert len(winners) <= 1, f"round {number}: both believe that they won"
                found = await provider.read("root")
                assert {each["reads"] for each in told} == {found.version.id}, f"round {number}: readers disagree"
                view = list(vault.versions("root").values())[-1]
                assert view == found.value.reveal().decode(), f"round {number}: the view shows another value"
                for me in winners:
                    won[me] += 1
                    assert found.value.reveal().decode() == f"{me} {number}"
                    assert found.version.id in {each["won"] for each in told}
                holder = found.version.id
    finally:
        for rotator in rotators:
            rotator.kill()
            await rotator.wait()
    assert sum(won.values()) == rounds, f"one client always wins while the vault is well: {won}"
    assert len(vault.versions("root-pointer")) > rounds + 1, f"they did race: {won}"
