"""The fake of Google Secret Manager that the tests of its provider share."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from goatherd.providers.gcp import provider as module
from tests.fakes.gcp_fake import FakeSecretManager

from .clients import PROJECT


@pytest.fixture(scope="module")
def server() -> Iterator[FakeSecretManager]:
    with FakeSecretManager(PROJECT) as running:
        yield running


@pytest.fixture
def fake(server: FakeSecretManager) -> Iterator[FakeSecretManager]:
    yield server
    server.before = server.after = server.damage = None
    server.failures.clear()
    server.quotas.clear()


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEASE", timedelta(milliseconds=600))
    monkeypatch.setattr(module, "_MARGIN", timedelta(milliseconds=100))
