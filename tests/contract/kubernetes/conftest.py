"""The fake of a Kubernetes API server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("kubernetes_asyncio", reason="needs the extra kubernetes")

from tests.fakes.kubernetes_fake import FakeKubernetes


@pytest.fixture
def fake() -> Iterator[FakeKubernetes]:
    with FakeKubernetes() as running:
        yield running
