"""The doctor's checks of a store: clocks and labels."""

from __future__ import annotations

from datetime import timedelta

import pytest

from goatherd import key_inventory
from goatherd.errors import UnavailableError
from goatherd.identity.transitions import create_document
from goatherd.key_inventory import Holding
from goatherd.operations.identity_store import Store
from goatherd.operations.store_checks import _check_clock, _check_old_versions, _check_other_labels
from goatherd.providers.memory import MemorySecretProvider
from goatherd.providers.values import CURRENT, Label, SecretVersion, VersionId, VersionState
from goatherd.rotation.policy import Policy
from tests.unit.goats import root

NOW_MS = 1_795_000_000_000


def test_doctor_compares_no_clock_with_a_list_that_lags() -> None:
    assert _check_clock([], NOW_MS, None, Policy().clock_tolerance).level == "ok"


@pytest.mark.parametrize(("ahead_ms", "level"), [(0, "ok"), (-120_000, "warn"), (31 * 86_400_000, "FAIL")])
def test_doctor_compares_this_machines_clock_with_the_stores(ahead_ms: int, level: str) -> None:
    found = _check_clock([], NOW_MS, ahead_ms, Policy().clock_tolerance)
    assert found.level == level
    if ahead_ms:
        assert "the clock of the store is" in found.text


def test_doctor_tells_of_a_label_whose_version_is_gone() -> None:
    gone = SecretVersion(id=VersionId("3"), created_ms=0, state=VersionState.DESTROYED)
    assert [(one.name, one.level) for one in _check_other_labels({Label("drill"): gone, CURRENT: gone})] == [
        ("label drill", "warn")
    ]


async def test_doctor_states_why_the_old_versions_were_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> tuple[Holding, ...]:
        raise UnavailableError("the store did not answer")

    monkeypatch.setattr(key_inventory, "find_holdings", fail)
    store = Store(provider=MemorySecretProvider(), secret_id="root", org="localhost", name="memory:")
    document = create_document(root("one"), now_ms=NOW_MS)
    found = await _check_old_versions(store, [], document, timedelta(days=30), NOW_MS)
    assert found.level == "skip"
    assert "the store did not answer" in found.text
    assert found.hint == "Run the command again when the store answers.", "permissions are not the cause"
