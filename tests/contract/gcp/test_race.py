"""Two rotators in two processes at Google Secret Manager: one winner a round, whose version alone stays readable."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from google.auth.credentials import AnonymousCredentials

from goatherd.errors import ConflictError
from goatherd.providers.gcp import provider as module
from goatherd.providers.gcp.address import GCPAddress
from goatherd.providers.gcp.provider import GCPSecretProvider
from goatherd.providers.values import VersionState
from tests.deadlines import ANSWER, HANG
from tests.fakes.gcp_fake import FakeSecretManager
from tests.fakes.racers import read_line, start_racer, write_line

MODULE = "tests.contract.gcp.test_race"
ROOT = Path(__file__).parents[3]
PROJECT = "goatherd-testing"
SECRET = "goatdb-root"


def rotator(endpoint: str) -> GCPSecretProvider:
    address = GCPAddress(project=PROJECT, endpoint=endpoint)
    return GCPSecretProvider(address, credentials=AnonymousCredentials(), timeout=timedelta(seconds=HANG))


async def race(endpoint: str, name: str) -> None:
    """Try once to change each version that is read from standard input."""
    pytest.MonkeyPatch().setattr(module, "_ATTEMPT", ANSWER)  # in a process of its own
    async with rotator(endpoint) as provider:
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            expected = line.strip()
            try:
                version = await provider.write(SECRET, f"{name} after {expected}".encode(), expected=expected)
            except ConflictError:
                print("lost", flush=True)
            else:
                print(version.id, flush=True)


def start(endpoint: str, name: str) -> subprocess.Popen[str]:
    return start_racer("-m", MODULE, endpoint, name)


@pytest.fixture
def fake() -> Iterator[FakeSecretManager]:
    with FakeSecretManager(PROJECT) as running:
        yield running


@pytest.mark.parametrize("rounds", [15, pytest.param(100, marks=pytest.mark.deep)])
async def test_one_of_two_rotators_wins_each_round_and_the_other_destroys_its_own(fake: FakeSecretManager, rounds: int):
    async with rotator(fake.endpoint) as provider:
        holder: str = (await provider.create(SECRET, b"start")).id
        processes = [start(fake.endpoint, name) for name in ("ann", "bob")]
        try:
            assert [await asyncio.to_thread(read_line, each) for each in processes] == ["ready"] * 2
            winners = ["1"]
            for _ in range(rounds):
                for process in processes:
                    write_line(process, holder)
                outcomes = [await asyncio.to_thread(read_line, each) for each in processes]
                assert outcomes.count("lost") == 1, outcomes
                winner = outcomes.index(next(each for each in outcomes if each != "lost"))
                value = f"{('ann', 'bob')[winner]} after {holder}".encode()
                holder = outcomes[winner]
                winners.append(holder)
                found = await provider.read(SECRET)
                assert (found.version.id, found.value.reveal()) == (holder, value)
        finally:
            for process in processes:
                errors = process.communicate(timeout=HANG)[1]
                assert process.returncode == 0, errors
        versions = await provider.versions(SECRET)
        assert [v.id for v in reversed(versions) if v.state is VersionState.ENABLED] == winners


if __name__ == "__main__":
    asyncio.run(race(*sys.argv[1:]))
