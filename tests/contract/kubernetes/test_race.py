"""Two rotators in two processes: one winner a round, none lost."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

pytest.importorskip("kubernetes_asyncio", reason="needs the extra kubernetes")

from goatherd.errors import ConflictError
from goatherd.providers.kubernetes.address import KubernetesAddress
from goatherd.providers.kubernetes.provider import KubernetesSecretProvider
from goatherd.providers.values import VersionId
from tests.deadlines import HANG
from tests.fakes.racers import read_line, start_racer, write_line

MODULE = "tests.contract.kubernetes.test_race"
ROOT = Path(__file__).parents[3]


def provider(kubeconfig: str) -> KubernetesSecretProvider:
    return KubernetesSecretProvider(KubernetesAddress(kubeconfig=kubeconfig), timeout=timedelta(seconds=HANG))


async def race(kubeconfig: str, secret: str, name: str) -> None:
    """Try once to change each version that is read from standard input, and print the result."""
    async with provider(kubeconfig) as rotator:
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            expected = line.strip()
            try:
                version = await rotator.write(secret, f"{name} after {expected}".encode(), expected=expected)
            except ConflictError:
                print(json.dumps(None), flush=True)
            else:
                print(json.dumps(version.id), flush=True)


def start(kubeconfig: str, secret: str, name: str) -> subprocess.Popen[str]:
    return start_racer("-m", MODULE, kubeconfig, secret, name)


def race_of_two(secret: str, *, rotator: str, admin: str, rounds: int) -> None:
    """Let two processes race, and check the result."""

    async def begin() -> str:
        async with provider(admin) as first:
            return (await first.create(secret, b"start")).id

    expected = asyncio.run(begin())
    racers = {name: start(rotator, secret, name) for name in ("ann", "bob")}
    won: dict[str, str] = {}
    try:
        assert [read_line(process) for process in racers.values()] == ["ready", "ready"]
        for _ in range(rounds):
            for process in racers.values():
                write_line(process, expected)
            outcomes = {name: json.loads(read_line(process)) for name, process in racers.items()}
            winners = [name for name, version in outcomes.items() if version is not None]
            assert len(winners) == 1, outcomes
            winner = winners[0]
            version = outcomes[winner]
            assert int(version) == int(expected) + 1, "a round was skipped"
            won[version] = f"{winner} after {expected}"
            expected = version
    finally:
        for process in racers.values():
            _, errors = process.communicate(timeout=HANG)
            assert process.returncode == 0, errors

    async def look() -> None:
        async with provider(admin) as reader:
            assert (await reader.read(secret)).version.id == expected
            for version in await reader.versions(secret):
                if version.id != "1":
                    found = await reader.read(secret, VersionId(version.id))
                    assert found.value.reveal().decode() == won[version.id]
            await reader.delete(secret)

    asyncio.run(look())


@pytest.mark.parametrize("rounds", [20, pytest.param(100, marks=pytest.mark.deep)])
def test_of_two_rotator_processes_one_wins_each_round_and_none_is_lost(tmp_path: Path, rounds: int):
    import yaml

    from goatherd.providers.kubernetes.permissions import policy
    from tests.contract.kubernetes.clients import kubeconfig
    from tests.fakes.kubernetes_fake import FakeKubernetes

    with FakeKubernetes() as fake:
        token = fake.account("rotator", next(yaml.safe_load_all(policy("rotator", "default/root"))))
        race_of_two(
            "default/root",
            rotator=kubeconfig(tmp_path, fake.url, token),
            admin=kubeconfig(tmp_path, fake.url),
            rounds=rounds,
        )


if __name__ == "__main__":
    asyncio.run(race(*sys.argv[1:]))
