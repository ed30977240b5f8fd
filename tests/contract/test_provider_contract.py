"""The contract over the providers in this package. A new provider gets a class here, which must pass."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from goatherd.errors import ProviderAccessDeniedError, UnavailableError
from goatherd.providers.base import Call, Guarantees, SecretProvider
from goatherd.providers.file.provider import FileSecretProvider
from goatherd.providers.memory import MemorySecretProvider, MemoryStore
from goatherd.providers.values import Label, SecretBytes, SecretVersion
from goatherd.testing import contract_command
from goatherd.testing.answer_checks import ANSWER_CHECKS
from goatherd.testing.contract import CHECKS, ProviderContract, Result, check_name, check_provider
from goatherd.testing.contract_command import command


class TestMemory(ProviderContract):
    promises = frozenset({"cas", "custom_labels", "destroys"})
    settle = timedelta(0)

    @pytest.fixture(autouse=True)
    def _store(self) -> None:
        self.store = MemoryStore()

    def provider(self) -> SecretProvider:
        return MemorySecretProvider(self.store)


class TestFile(ProviderContract):
    promises = frozenset({"cas", "custom_labels", "destroys", "durable"})
    settle = timedelta(0)
    rounds = 30

    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self.directory = tmp_path / "keys"

    def provider(self) -> SecretProvider:
        return FileSecretProvider(str(self.directory))


@pytest.mark.deep
class TestFileAtLength(TestFile):
    rounds = 100


NEEDS_A_STORE_THAT_LIES = {check_name(check) for check in ANSWER_CHECKS}
DECLARED_BY_MEMORY = {
    "a_store_that_only_deprecates_keeps_what_is_labelled",
    "a_store_that_only_disables_does_not_read_what_is_off",
    "a_deleted_secret_that_can_be_restored_is_neither_there_nor_missing",
    "of_two_writers_at_most_one_believes_that_it_won",
}


@pytest.mark.slow
async def test_the_report_of_a_good_provider_holds_every_check_and_no_failure():
    store = MemoryStore()
    report = await check_provider(lambda: MemorySecretProvider(store), rounds=5, settle=timedelta(0))
    assert not report.has_failures
    assert len(report.outcomes) == len(CHECKS) >= 36
    skipped = {outcome.check for outcome in report.with_result(Result.SKIPPED)}
    assert skipped == DECLARED_BY_MEMORY | NEEDS_A_STORE_THAT_LIES
    assert len(report.with_result(Result.PASSED)) == len(CHECKS) - len(skipped)
    assert store.secrets == {}, "the checks remove what they made"


@pytest.mark.slow
async def test_a_secret_that_cannot_be_removed_is_reported():
    class KeepsAll(MemorySecretProvider):
        async def _delete(self, call: Call) -> None:
            raise call.error(ProviderAccessDeniedError, "no")

    store = MemoryStore()
    report = await check_provider(lambda: KeepsAll(store), rounds=2, settle=timedelta(0))
    assert set(report.left_behind) >= set(store.secrets) != set()


# --- goatherd-contract ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_prints_every_check_and_counts_skipped_as_skipped():
    done = CliRunner().invoke(command, ["memory:///contract-command/try", "--rounds", "2"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    words = Counter(line.split(" ", 1)[0] for line in lines[1:-3] if not line.startswith(" "))
    assert words["passed"] + words["skipped"] == len(CHECKS)
    assert words["skipped"] >= len(ANSWER_CHECKS)
    assert lines[-3].startswith(f"{words['passed']} passed, 0 failed, {words['skipped']} skipped, of {len(CHECKS)} ")
    assert lines[-2] == (
        f"skipped: {words['skipped'] - len(ANSWER_CHECKS)} the provider does not promise, "
        f"{len(ANSWER_CHECKS)} need a fake that answers wrongly"
    )
    assert lines[-1].startswith("not checked: writers in different processes")
    assert "AnswerContract has this check for a fake" in done.output


@pytest.mark.slow
def test_the_help_of_the_command_has_an_example_and_states_each_default_in_one_form():
    shown = CliRunner().invoke(command, ["--help"]).output
    assert "Example:\n    goatherd-contract memory:///try/root\n" in shown
    assert "[default" not in shown
    assert " ".join(shown.split()).count("(default: ") == 2


def test_the_command_prints_json():
    done = CliRunner().invoke(command, ["memory:///contract-command/try", "--rounds", "2", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert told["passed"] + told["skipped"] + told["failed"] == len(told["checks"]) == len(CHECKS)
    assert told["failed"] == 0
    assert told["left_behind"] == []
    assert told["not_checked"].startswith("writers in different processes")
    assert {each["result"] for each in told["checks"]} == {"passed", "skipped"}
    assert all((each["reason"] is not None) == (each["result"] == "skipped") for each in told["checks"])


def test_the_command_does_not_start_where_the_secret_exists(tmp_path: Path):
    provider = FileSecretProvider(str(tmp_path / "keys"))
    asyncio.run(provider.create("root", b"precious"))
    before = {path: path.read_bytes() for path in (tmp_path / "keys").rglob("*") if path.is_file()}
    done = CliRunner().invoke(command, [f"file://{tmp_path}/keys/root"])
    assert done.exit_code == 2
    assert "exists, and the checks need one that does not; it was not changed" in done.output
    assert {path: path.read_bytes() for path in (tmp_path / "keys").rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_the_command_exits_with_1_where_a_check_fails(monkeypatch: pytest.MonkeyPatch):
    store = MemoryStore()

    class Overwrites(MemorySecretProvider):
        async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
            self.store.secrets.pop(call.secret_id, None)
            return await super()._create(call, value, label)

    monkeypatch.setattr(contract_command, "open_provider", lambda _: (Overwrites(store), "root"))
    done = CliRunner().invoke(command, ["memory:///root", "--rounds", "2"])
    assert done.exit_code == 1
    assert "FAILED   creating twice is refused and changes nothing" in done.output
    assert ", 3 failed, " in done.output.splitlines()[-3]


def test_the_command_reports_what_a_plugin_raises_outside_of_its_own_methods(monkeypatch: pytest.MonkeyPatch):
    class ForgetsTheProperty(MemorySecretProvider):
        def guarantees(self) -> Guarantees:  # type: ignore[override]
            return self._guarantees

    store = MemoryStore()
    monkeypatch.setattr(contract_command, "open_provider", lambda _: (ForgetsTheProperty(store), "root"))
    done = CliRunner().invoke(command, ["memory:///root", "--only", "a new secret"])
    assert done.exit_code == 1
    assert "FAILED   a new secret reads back" in done.output
    assert "AttributeError" in done.output
    assert "1 failed" in done.output


@pytest.mark.slow
def test_the_command_runs_only_the_checks_that_are_named():
    arguments = ["memory:///contract-command/try", "--only", "lost answer", "--only", "A_NEW_SECRET"]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    _, *checks, counts, _ = done.output.splitlines()
    assert [re.sub(r"  +.*", "", line[9:]) for line in checks] == [
        "a new secret reads back",
        "a lost answer is not a lost race",
    ]
    assert counts.startswith(f"2 passed, 0 failed, 0 skipped, of {len(CHECKS)} checks")
    mistyped = CliRunner().invoke(command, ["memory:///contract-command/try", "--only", "lots answer"])
    assert mistyped.exit_code == 2
    assert "no check has 'lots answer' in its name" in mistyped.output
    assert "a lost answer is not a lost race" in mistyped.output


def test_the_command_does_not_start_where_no_secret_may_be_made(tmp_path: Path):
    done = CliRunner().invoke(command, [f"k8s-volume://{tmp_path}/root"])
    assert done.exit_code == 2
    assert "a mounted Secret can only be read" in done.output
    assert "FAILED" not in done.output


def test_the_command_does_not_start_where_no_secret_may_be_removed(monkeypatch: pytest.MonkeyPatch):
    store = MemoryStore()

    class KeepsAll(MemorySecretProvider):
        async def _delete(self, call: Call) -> None:
            raise call.error(ProviderAccessDeniedError, "no")

    monkeypatch.setattr(contract_command, "open_provider", lambda _: (KeepsAll(store), "root"))
    done = CliRunner().invoke(command, ["memory:///root"])
    assert done.exit_code == 2
    (left,) = store.secrets
    assert f"{left} was created and could not be deleted" in done.output


def test_the_command_names_a_secret_of_its_own_that_it_could_not_remove(monkeypatch: pytest.MonkeyPatch):
    store, calls = MemoryStore(), list[Call]()

    class FailsOnce(MemorySecretProvider):
        async def _delete(self, call: Call) -> None:
            calls.append(call)
            if len(calls) == 1:
                raise call.error(UnavailableError, "it is away", final=True)
            await super()._delete(call)

    monkeypatch.setattr(contract_command, "open_provider", lambda _: (FailsOnce(store), "root"))
    done = CliRunner().invoke(command, ["memory:///root", "--only", "a new secret reads back"])
    (left,) = store.secrets
    assert done.output.splitlines()[-2:] == ["could not remove these secrets, where they exist:", f"  {left}"]


@pytest.mark.slow
@pytest.mark.parametrize("comes_back", [True, False])
def test_the_command_stops_where_the_store_does_not_answer_any_more(monkeypatch: pytest.MonkeyPatch, comes_back: bool):
    store, calls = MemoryStore(), list[Call]()

    class Away(MemorySecretProvider):
        async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
            calls.append(call)
            if len(calls) > 2 and not (comes_back and len(calls) > 5):
                raise call.error(UnavailableError, "it is away", final=True)
            return await super()._create(call, value, label)

    monkeypatch.setattr(contract_command, "open_provider", lambda _: (Away(store), "root"))
    done = CliRunner().invoke(command, ["memory:///root", "--rounds", "2"])
    lines = done.output.splitlines()
    if comes_back:
        assert done.exit_code == 1, "one that answers again is checked to the end"
        assert any(f", 3 failed, {len(ANSWER_CHECKS) + len(DECLARED_BY_MEMORY)} skipped, of " in line for line in lines)
    else:
        assert done.exit_code == 2
        assert lines[-2] == (
            "error: stopped, because the store does not answer any more: "
            f"memory: create {calls[-1].secret_id!r}: it is away"
        )
        assert "1 passed, 3 failed, 0 skipped, of " in done.output


@pytest.mark.parametrize(
    "arguments", [[], ["--rounds", "0", "memory:///x"], ["no-such-store://x/y"], ["nonsense"], ["memory:///"]]
)
def test_the_command_exits_with_2_where_there_is_nothing_to_check(arguments: list[str]):
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 2
    assert done.output


@pytest.mark.slow
def test_the_module_runs_as_a_command_and_an_interrupt_leaves_nothing_behind(tmp_path: Path):
    line = [sys.executable, "-m", "goatherd.testing.contract", f"file://{tmp_path}/keys/try", "--rounds", "10000"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for shown in running.stdout:
            if "a label moves by" in shown:
                break
        running.send_signal(signal.SIGTERM)
        _, told = running.communicate(timeout=120)
    assert running.returncode == 130
    assert re.search(r"interrupted: \d+ passed, 0 failed, \d+ skipped, of ", told)
    assert "could not remove" not in told
    assert not [path for path in (tmp_path / "keys").rglob("*") if "contract" in path.name]


async def test_a_secret_whose_removal_is_interrupted_is_reported():
    class Slow(MemorySecretProvider):
        async def _delete(self, call: Call) -> None:
            removing.set()
            await asyncio.Event().wait()

    store, removing, left = MemoryStore(), asyncio.Event(), list[str]()
    task = asyncio.create_task(check_provider(lambda: Slow(store), rounds=2, left_behind=left))
    await removing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left == list(store.secrets) != []
