"""Two rotators in two processes against one real server: one winner a round, none lost."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.errors import ConflictError
from goatherd.providers.values import VersionId
from goatherd.providers.vault.address import VaultAddress
from goatherd.providers.vault.auth import TokenAuth
from goatherd.providers.vault.permissions import policy
from goatherd.providers.vault.provider import VaultSecretProvider
from tests.deadlines import HANG
from tests.fakes.openbao import ROOT_TOKEN, WHY_SKIPPED, BaoServer, find_bao
from tests.fakes.racers import read_line, start_racer, write_line

BAO = find_bao()
pytestmark = pytest.mark.skipif(BAO is None, reason=WHY_SKIPPED)

MODULE = "tests.contract.vault.test_race"
ROOT = Path(__file__).parents[3]
SECRET = "goatdb/root"


def provider(url: str, token: str) -> VaultSecretProvider:
    address = VaultAddress(url=url, auth=TokenAuth(token=token), reads_active=True)
    return VaultSecretProvider(address, timeout=timedelta(seconds=HANG))


async def race(url: str, token: str, name: str) -> None:
    """Try once to change each version that is read from standard input, and print the result."""
    async with provider(url, token) as rotator:
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            expected = line.strip()
            try:
                version = await rotator.write(SECRET, f"{name} after {expected}".encode(), expected=expected)
            except ConflictError:
                print(json.dumps(None), flush=True)
            else:
                print(json.dumps(version.id), flush=True)


def start(server: BaoServer, token: str, name: str) -> subprocess.Popen[str]:
    return start_racer("-m", MODULE, server.url, token, name)


@pytest.mark.parametrize("rounds", [30, pytest.param(100, marks=pytest.mark.deep)])
def test_of_two_rotator_processes_one_wins_each_round_and_none_is_lost(server: BaoServer, rounds: int):
    token = server.token(policy("rotator", f"secret/{SECRET}"))

    async def begin() -> str:
        async with provider(server.url, token) as rotator:
            return (await rotator.create(SECRET, b"start")).id

    expected = asyncio.run(begin())
    racers = {name: start(server, token, name) for name in ("ann", "bob")}
    won: dict[str, str] = {}
    wins = {"ann": 0, "bob": 0}
    try:
        assert [read_line(process) for process in racers.values()] == ["ready", "ready"]
        for _ in range(rounds):
            for process in racers.values():
                write_line(process, expected)
            said = {name: json.loads(read_line(process)) for name, process in racers.items()}
            winners = [name for name, version in said.items() if version is not None]
            assert len(winners) == 1, f"{len(winners)} winners after {expected}: {said}"
            won[said[winners[0]]] = f"{winners[0]} after {expected}"
            wins[winners[0]] += 1
            expected = said[winners[0]]
    finally:
        for process in racers.values():
            _, errors = process.communicate(timeout=HANG)
            assert process.returncode == 0, errors
    assert sum(wins.values()) == rounds

    async def end() -> None:
        async with provider(server.url, ROOT_TOKEN) as reader:
            found = await reader.read(SECRET)
            assert (found.version.id, found.value.reveal().decode()) == (expected, won[expected])
            listed = await reader.versions(SECRET)
            assert [v.id for v in listed if v.labels] == [expected]
            kept = [version.id for version in listed if version.id in won]
            assert kept == sorted(won, key=int, reverse=True)[: len(kept)], (
                "all that won and is kept is listed, in order"
            )
            assert len(kept) > reader.guarantees.history >= 8
            for version in kept:
                value = await reader.read(SECRET, VersionId(version))
                assert value.value.reveal().decode() == won[version]
            await reader.delete(SECRET)

    asyncio.run(end())


if __name__ == "__main__":
    asyncio.run(race(*sys.argv[1:]))
