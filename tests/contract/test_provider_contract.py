"""The contract over the providers that we ship. A new one gets a class here, green, or is not merged."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.providers.base import SecretProvider
from goatherd.providers.file import FileSecretProvider
from goatherd.providers.memory import MemorySecretProvider, MemoryStore
from goatherd.testing.contract import ProviderContract, check_provider, main
from goatherd.testing.provider_checks import CHECKS


class TestMemory(ProviderContract):
    settle = timedelta(0)

    @pytest.fixture(autouse=True)
    def _store(self) -> None:
        self.store = MemoryStore()

    def provider(self) -> SecretProvider:
        return MemorySecretProvider(self.store)


class TestFile(ProviderContract):
    settle = timedelta(0)
    rounds = 30

    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self.directory = tmp_path / "keys"

    def provider(self) -> SecretProvider:
        return FileSecretProvider(str(self.directory))


@pytest.mark.slow
class TestFileAtLength(TestFile):
    rounds = 100


async def test_the_report_of_a_good_provider_holds_every_check_and_no_failure():
    store = MemoryStore()
    report = await check_provider(lambda: MemorySecretProvider(store), rounds=5, settle=timedelta(0))
    assert report.passed
    assert len(report.outcomes) == len(CHECKS) >= 28
    assert {outcome.check for outcome in report.outcomes if outcome.skipped} == {
        "a_store_that_only_deprecates_keeps_what_is_labelled",
        "a_store_that_only_disables_does_not_read_what_is_off",
        "a_deleted_secret_that_can_be_restored_is_neither_there_nor_missing",
        "of_two_writers_at_most_one_believes_that_it_won",
    }
    assert store.ledgers == {}, "the checks remove what they made"


def test_the_command_prints_every_check_and_exits_with_0(capsys: pytest.CaptureFixture[str]):
    assert main(["memory:///contract-command/root"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(CHECKS) + 1
    assert lines[-1] == f"{len(CHECKS)} of {len(CHECKS)} hold"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["no-such-store://x/y"], ["nonsense"], ["memory:///"]])
def test_the_command_exits_with_2_where_there_is_nothing_to_check(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 2
    assert capsys.readouterr().err
