"""A label that is not Goatherd's, on every kind of store: the version stays, and the report names the label."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from goatherd.clock import SystemClock
from goatherd.identity.document import decode_document
from goatherd.providers.values import CURRENT, Label
from goatherd.rotation.machine import Kept
from tests.cluster.test_rotation_on_every_store import STORES, Place, vault
from tests.fakes.herd import FakeClock, Herd
from tests.unit.rotation.conftest import OWN_CLOCK, POLICY, rotator_for

pytestmark = pytest.mark.slow


@pytest.fixture(params=list(STORES))
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    # Vault's role `rotator` may not destroy; `goatherd retire` needs `admin` there.
    opener = partial(vault, role="admin") if request.param == "vault" else STORES[request.param]
    with opener(tmp_path, monkeypatch) as opened:
        yield opened


async def test_a_version_that_a_label_points_at_is_kept_and_named_on_every_store(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Herd, "secret_id", place.secret_id)
    async with place.factory() as provider:
        # The versions have the times of the store itself, so that the clock of the herd begins at the real one.
        clock = FakeClock(SystemClock().now_ms())
        herd = await Herd.start(provider, clock=clock, nodes=1)
        first = (await provider.read(place.secret_id, CURRENT)).version.id
        await provider.label(place.secret_id, Label("audit"), first, expected=None)
        await rotator_for(herd, policy=OWN_CLOCK).rotate()
        clock.turn(POLICY.grace + timedelta(days=1))
        report = await rotator_for(herd, policy=OWN_CLOCK).retire()
        assert report.kept == (Kept(version=first, labels=("audit",)),)
        assert first not in (*report.destroyed, *report.given_up)
        assert len(report.destroyed) + len(report.given_up) >= 1
        held = await provider.read(place.secret_id, Label("audit"))
        assert decode_document(held.value.reveal()).current.id == "root-a"
        assert (await rotator_for(herd, policy=OWN_CLOCK).retire()).kept == report.kept
