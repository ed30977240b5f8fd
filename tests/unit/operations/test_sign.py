"""Sign, as a Python program calls it."""

from __future__ import annotations

from pathlib import Path

import pytest

from goatherd.errors import IllegalStepError
from goatherd.operations.runs import AuditLog
from goatherd.operations.sign import SignatureState, accept_changes, examine_signature, take_back_changes
from tests.unit.rotation.test_signed_store import changed, document_of, put

from .conftest import POLICY, MakeHerd, store_of


@pytest.mark.parametrize("way", [accept_changes, take_back_changes])
async def test_an_unsigned_change_is_signed_or_taken_back_and_recorded(
    make_herd: MakeHerd, way: object, tmp_path: Path
) -> None:
    herd = await make_herd(clients=0)
    store = store_of(herd)
    await put(herd, changed(await document_of(herd), keeps_signature=True))
    examined = await examine_signature(store.provider, store.secret_id)
    assert examined.state is SignatureState.OUTDATED
    log = AuditLog(tmp_path / "audit.jsonl")
    options = {"examined": examined, "audit_log": log, "clock": herd.clock}
    written = await way(store, herd.nodes, POLICY, **options)  # type: ignore[operator]
    assert written.is_signed
    assert (await store.read())[1] == written
    assert "identity-signed" in log.path.read_text()
    again = await examine_signature(store.provider, store.secret_id)
    with pytest.raises(IllegalStepError):
        await way(store, herd.nodes, POLICY, examined=again, clock=herd.clock)  # type: ignore[operator]
