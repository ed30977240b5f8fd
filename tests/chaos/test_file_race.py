"""The file store under processes that race and are killed: no torn, missing or stale value, and one winner each
round."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from goatherd.errors import ConflictError, GoatherdError
from goatherd.providers.file.provider import FileSecretProvider
from tests.fakes.racers import read_line, start_racer, write_line

MODULE = "tests.chaos.test_file_race"


def seal(counter: int, writer: str) -> bytes:
    """Return a value of varying length, up to 40 kB, in which any mixture or truncation can be detected."""
    body = json.dumps({"counter": counter, "writer": writer, "pad": "x" * (counter * 7919 % 40_000)}).encode()
    return hashlib.sha256(body).hexdigest().encode() + body


def unseal(value: bytes) -> tuple[int, str]:
    if hashlib.sha256(value[64:]).hexdigest().encode() != value[:64]:
        raise AssertionError("torn")
    content = json.loads(value[64:])
    return content["counter"], content["writer"]


# --- what the other processes do --------------------------------------------------------------------------------------


async def write_on(provider: FileSecretProvider, name: str, rounds: int | None) -> None:
    """Raise the counter by compare-and-swap; print each success, so that none is claimed twice."""
    while rounds is None or rounds > 0:
        found = await provider.read("root")
        counter, _ = unseal(found.value.reveal())
        try:
            version = await provider.write("root", seal(counter + 1, name), expected=found.version.id)
        except ConflictError:
            continue
        print(counter + 1, version.id, flush=True)
        if rounds is not None:
            rounds -= 1


async def read_on(provider: FileSecretProvider, stop: Path) -> None:
    """Read as fast as possible until `stop` exists; any surprise ends the process with a traceback."""
    newest, reads = 0, 0
    while reads < 20 or stop.name not in names(stop.parent):
        found = await provider.read("root")
        counter, _ = unseal(found.value.reveal())
        if counter < newest:
            raise AssertionError(f"stale: {counter} after {newest}")
        newest, reads = counter, reads + 1
    print(reads, newest)


async def race(provider: FileSecretProvider, name: str) -> None:
    """Try once to change each version that is read from standard input."""
    print("ready", flush=True)
    for line in sys.stdin:
        expected = line.strip()
        try:
            await provider.write("root", seal(int(expected), name), expected=expected)
        except ConflictError:
            print("lost", flush=True)
        else:
            print("won", flush=True)


def start(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    return start_racer("-m", MODULE, str(directory), *arguments)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return output


# --- tests ------------------------------------------------------------------------------------------------------------


def kill_in_a_loop(directory: Path, seconds: float, seed: int) -> None:
    provider = FileSecretProvider(str(directory))
    asyncio.run(provider.create("root", seal(0, "start")))
    dice = random.Random(seed)
    stop = directory / "stop"
    reader = start(directory, "read", str(stop))
    steady = [start(directory, "write", name) for name in ("ann", "bob")]
    claims: list[str] = []
    kills, end = 0, time.monotonic() + seconds
    while time.monotonic() < end or kills < 2:
        victim = start(directory, "write", f"victim{kills}")
        assert victim.stdout is not None
        claims.append(victim.stdout.readline())  # it is at work: now it may die anywhere
        time.sleep(dice.uniform(0, 0.03))
        victim.send_signal(signal.SIGKILL)
        claims += victim.communicate()[0].splitlines(keepends=True)
        kills += 1
    for process in steady:
        assert process.poll() is None, "a writer that was not killed has ended by itself"
        process.send_signal(signal.SIGKILL)
        claims += process.communicate()[0].splitlines(keepends=True)
    stop.touch()
    finish(reader)

    won = [line.split() for line in claims if line.endswith("\n")]
    counters = [int(counter) for counter, _ in won]
    assert len(set(counters)) == len(counters), "two writers won one round"
    assert all(int(counter) + 1 == int(version) for counter, version in won), "a round was skipped or won twice"

    async def aftermath() -> None:
        found = await provider.read("root")
        last, _ = unseal(found.value.reveal())
        assert last >= max(counters), "a write that had returned is lost"
        listed = await provider.versions("root")
        for version in listed:
            counter, _ = unseal((await provider.read("root", version.id)).value.reveal())
            assert counter + 1 == int(version.id)
        await provider.write("root", seal(last + 1, "end"), expected=found.version.id)
        assert names(directory / "root") == {"lock", "secret.json"}, "nothing is left of the killed"

    asyncio.run(aftermath())
    assert len(won) >= kills >= 2


def test_killing_writers_for_two_seconds_harms_no_other_writer(tmp_path: Path):
    kill_in_a_loop(tmp_path / "keys", 2, seed=1)


@pytest.mark.deep
def test_killing_writers_for_ten_seconds_harms_no_other_writer(tmp_path: Path):
    kill_in_a_loop(tmp_path / "keys", 10, seed=2)


def test_two_processes_that_count_by_compare_and_swap_lose_no_step(tmp_path: Path):
    directory = tmp_path / "keys"
    provider = FileSecretProvider(str(directory))
    asyncio.run(provider.create("root", seal(0, "start")))
    writers = [start(directory, "write", name, "25") for name in ("ann", "bob")]
    lines = [line for process in writers for line in finish(process).splitlines()]
    assert sorted(int(line.split()[0]) for line in lines) == list(range(1, 51))
    found = asyncio.run(provider.read("root"))
    assert unseal(found.value.reveal())[0] == 50


@pytest.mark.parametrize(("racing", "rounds"), [(3, 10), pytest.param(4, 100, marks=pytest.mark.slow)])
def test_of_many_processes_with_the_same_expectation_exactly_one_wins(tmp_path: Path, racing: int, rounds: int):
    directory = tmp_path / "keys"
    provider = FileSecretProvider(str(directory))
    holder = asyncio.run(provider.create("root", seal(0, "start"))).id
    racers = [start(directory, "race", f"racer{number}") for number in range(racing)]
    assert [read_line(process) for process in racers] == ["ready"] * racing
    for _ in range(rounds):
        for process in racers:
            write_line(process, holder)
        outcomes = [read_line(process) for process in racers]
        assert sorted(outcomes) == ["lost"] * (racing - 1) + ["won"]
        found = asyncio.run(provider.read("root"))
        assert found.version.id == str(int(holder) + 1)
        assert unseal(found.value.reveal()) == (int(holder), f"racer{outcomes.index('won')}")
        holder = found.version.id
    for process in racers:
        finish(process)


async def test_many_tasks_in_one_process_with_the_same_expectation_have_one_winner(tmp_path: Path):
    provider = FileSecretProvider(str(tmp_path / "keys"))
    holder = await provider.create("root", seal(0, "start"))
    for number in range(1, 11):
        outcomes = await asyncio.gather(
            *(provider.write("root", seal(number, f"{task}"), expected=holder.id) for task in range(12)),
            return_exceptions=True,
        )
        winners = [each for each in outcomes if not isinstance(each, BaseException)]
        assert [type(each) for each in outcomes if isinstance(each, BaseException)] == [ConflictError] * 11
        holder = winners[0]
        found = await provider.read("root")
        assert unseal(found.value.reveal()) == (number, str(outcomes.index(holder)))


async def test_creators_and_deleters_that_race_leave_a_whole_secret_or_none(tmp_path: Path):
    providers = [FileSecretProvider(str(tmp_path / "keys")) for _ in range(3)]

    async def churn(provider: FileSecretProvider, name: str) -> set[str]:
        met = set()
        for number in range(25):
            for begin in (
                lambda number=number: provider.create("root", seal(number, name)),
                lambda: provider.read("root"),
                lambda: provider.delete("root"),
            ):
                try:
                    found = await begin()
                    if hasattr(found, "value"):
                        unseal(found.value.reveal())
                except GoatherdError as error:
                    met.add(error.code)
        return met

    met = set().union(*await asyncio.gather(*(churn(p, f"{n}") for n, p in enumerate(providers))))
    assert met <= {"provider.not_found", "provider.already_exists"}
    assert met, "they got in each other's way"


if __name__ == "__main__":
    store = FileSecretProvider(sys.argv[1])
    if sys.argv[2] == "write":
        asyncio.run(write_on(store, sys.argv[3], int(sys.argv[4]) if len(sys.argv) > 4 else None))
    elif sys.argv[2] == "read":
        asyncio.run(read_on(store, Path(sys.argv[3])))
    else:
        asyncio.run(race(store, sys.argv[3]))
