"""The OpenBao server that the tests of the Vault provider share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.openbao import BaoServer, find_bao

BAO = find_bao()


@pytest.fixture(scope="module")
def server() -> Iterator[BaoServer]:
    assert BAO is not None
    with BaoServer(BAO) as running:
        yield running
