"""The fake of Google Secret Manager that the tests of its provider share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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
