"""The fake of AWS Secrets Manager that the tests of its provider share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.aws_fake import FakeSecretsManager


@pytest.fixture
def fake() -> Iterator[FakeSecretsManager]:
    with FakeSecretsManager() as started:
        yield started
