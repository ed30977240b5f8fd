"""Two rotators in two processes against one secret of AWS: one winner a round, none lost."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.errors import ConflictError
from goatherd.providers.aws.address import AWSAddress
from goatherd.providers.aws.provider import AWSSecretProvider
from goatherd.providers.values import CURRENT, STABLE
from tests.deadlines import HANG
from tests.fakes.aws_fake import ACCESS_KEY, REGION, FakeSecretsManager
from tests.fakes.moto import WHY_SKIPPED, MotoServer, find_moto

MODULE = "tests.contract.aws.test_race"
ROOT = Path(__file__).parents[3]


def store_at(url: str) -> AWSSecretProvider:
    return AWSSecretProvider(AWSAddress(region=REGION, endpoint=url, recovery_days=0), timeout=timedelta(seconds=HANG))


async def rotate(url: str, secret_id: str, name: str) -> None:
    """For each line ``<holder of current> <holder of stable, or ->``, try once to move either label; print the
    result."""
    async with store_at(url) as store:
        print("ready", flush=True)
        number = 0
        while line := await asyncio.to_thread(sys.stdin.readline):
            current, stable = line.split()
            number += 1
            try:
                made = await store.write(secret_id, f"{name} {number}".encode(), expected=current)
            except ConflictError:
                said = "lost -"
            else:
                said = f"won {made.id}"
            if stable != "-":
                try:
                    await store.label(secret_id, STABLE, current, expected=stable)
                except ConflictError:
                    said += " lost"
                else:
                    said += " won"
            print(said, flush=True)


def start(url: str, secret_id: str, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", MODULE, url, secret_id, name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def told(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


async def race(url: str, rounds: int, *, stable: bool) -> None:
    secret_id = f"race/{'labels' if stable else 'plain'}"
    async with store_at(url) as store:
        holder = (await store.create(secret_id, b"start")).id
        current = (await store.write(secret_id, b"second", expected=holder)).id
        if stable:
            # One version has it from the start. If both set a free label on the same version, neither would lose:
            # AWS takes the second request for a repetition of the first.
            await store.label(secret_id, STABLE, holder, expected=None)
        racers = {name: start(url, secret_id, name) for name in ("ann", "bob")}
        try:
            for racer in racers.values():
                assert await asyncio.to_thread(told, racer) == ["ready"]
            wins = {"ann": 0, "bob": 0}
            for number in range(1, rounds + 1):
                for racer in racers.values():
                    assert racer.stdin is not None
                    racer.stdin.write(f"{current} {holder if stable else '-'}\n")
                    racer.stdin.flush()
                said = {name: await asyncio.to_thread(told, racer) for name, racer in racers.items()}
                winners = [name for name, words in said.items() if words[0] == "won"]
                assert len(winners) == 1, said
                wins[winners[0]] += 1
                found = await store.read(secret_id)
                assert found.version.id == said[winners[0]][1]
                assert found.value.reveal() == f"{winners[0]} {number}".encode()
                if stable:
                    # Both want the same version to be stable: the second finds the first one's label and loses.
                    assert sorted(words[2] for words in said.values()) == ["lost", "won"]
                    assert (await store.read(secret_id, STABLE)).version.id == current
                    holder = current
                current = found.version.id
            assert sum(wins.values()) == rounds
            labelled = {label: one.id for one in await store.versions(secret_id) for label in one.labels}
            assert labelled[CURRENT] == current
        finally:
            for racer in racers.values():
                racer.communicate(timeout=HANG)
            await store.delete(secret_id)
    assert [racer.returncode for racer in racers.values()] == [0, 0]


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)


@pytest.mark.parametrize("rounds", [10, pytest.param(100, marks=pytest.mark.deep)])
async def test_two_rotators_have_one_winner_a_round(fake: FakeSecretsManager, rounds: int):
    await race(fake.url, rounds, stable=True)
    moves = [seen.fields for seen in fake.requests if seen.operation == "UpdateSecretVersionStage"]
    assert all("RemoveFromVersionId" in move or move["VersionStage"] == "stable" for move in moves)


@pytest.mark.parametrize("rounds", [20, pytest.param(100, marks=pytest.mark.deep)])
async def test_two_rotators_have_one_winner_a_round_at_moto(rounds: int):
    """Only the current version is checked, because moto moves other labels without checking the holder."""
    program = find_moto()
    if program is None:
        pytest.skip(WHY_SKIPPED)
    with MotoServer(program) as server:
        await race(server.url, rounds, stable=False)


if __name__ == "__main__":
    asyncio.run(rotate(*sys.argv[1:]))
