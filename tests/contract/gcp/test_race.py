"""Two rotators in two processes at Google Secret Manager: one winner a round, none lost, and ``latest`` is current."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud.secretmanager_v1 import types as wire

from goatherd.errors import ConflictError
from goatherd.providers.gcp import GCPAddress, GCPSecretProvider
from goatherd.providers.gcp import provider as module
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
    patch = pytest.MonkeyPatch()  # in a process of its own: the winner is not taken for gone because it is slow
    patch.setattr(module, "LEASE", timedelta(seconds=2 * HANG))
    patch.setattr(module, "_ATTEMPT", ANSWER)
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
async def test_one_of_two_rotators_wins_each_round_and_latest_is_its_version(fake: FakeSecretManager, rounds: int):
    async with rotator(fake.endpoint) as provider:
        holder: str = (await provider.create(SECRET, b"start")).id
        processes = [start(fake.endpoint, name) for name in ("ann", "bob")]
        try:
            assert [await asyncio.to_thread(read_line, each) for each in processes] == ["ready"] * 2
            winners = set()
            for _ in range(rounds):
                for process in processes:
                    write_line(process, holder)
                outcomes = [await asyncio.to_thread(read_line, each) for each in processes]
                assert outcomes.count("lost") == 1, outcomes
                winner = outcomes.index(next(each for each in outcomes if each != "lost"))
                winners.add(winner)
                value = f"{('ann', 'bob')[winner]} after {holder}".encode()
                holder = outcomes[winner]
                found = await provider.read(SECRET)
                assert (found.version.id, found.value.reveal()) == (holder, value)
                latest = fake.service.access_secret_version(
                    wire.AccessSecretVersionRequest(name=f"projects/{PROJECT}/secrets/{SECRET}/versions/latest")
                )
                assert latest.payload.data == value
        finally:
            for process in processes:
                errors = process.communicate(timeout=HANG)[1]
                assert process.returncode == 0, errors
        versions = await provider.versions(SECRET)
        assert [v.id for v in versions] == [str(number) for number in range(rounds + 1, 0, -1)]
        assert {v.state for v in versions} == {VersionState.ENABLED}, "no loser added a version"


if __name__ == "__main__":
    asyncio.run(race(*sys.argv[1:]))
