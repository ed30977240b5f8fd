"""What `goatherd doctor --signer` concludes from a signer."""

from __future__ import annotations

from pathlib import Path

import pytest

from goatherd.operations.check_signer import check_signer
from goatherd.operations.store_checks import FAILED, WARNING


async def test_a_key_that_cannot_be_read_is_not_said_to_be_safe_from_copies(tmp_path: Path) -> None:
    pytest.importorskip("pkcs11", reason="NO PYTHON-PKCS11, SO THE PKCS#11 SIGNER IS NOT TESTED: make .venv/.dev")
    report = await check_signer(f"pkcs11:object=anchor?module-path={tmp_path}/missing.so&pin-source=env:PIN")
    assert [(check.name, check.level) for check in report.checks] == [("key", FAILED)]


async def test_a_key_in_a_file_can_be_copied_even_if_it_cannot_be_read_now(tmp_path: Path) -> None:
    report = await check_signer(f"local:{tmp_path}/missing.json")
    assert [(check.name, check.level) for check in report.checks] == [("key", FAILED), ("export", WARNING)]
