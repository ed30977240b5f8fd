"""Sign, as a Python program calls it."""

from __future__ import annotations

from pathlib import Path

import pytest

from goatherd.errors import IllegalStepError
from goatherd.operations.runs import AuditLog
from goatherd.operations.sign import SignatureState, examine_signature, repair_signature
from tests.unit.rotation.test_signed_store import changed, document_of, put

from .conftest import POLICY, MakeHerd, store_of


@pytest.mark.parametrize("accept", [True, False])
async def test_an_unsigned_change_is_signed_or_taken_back_and_recorded(
    make_herd: MakeHerd, accept: bool, tmp_path: Path
) -> None:
    herd = await make_herd(clients=0)
    store = store_of(herd)
    await put(herd, changed(await document_of(herd), keeps_signature=True))
    examined = await examine_signature(store.provider, store.secret_id)
    assert examined.state is SignatureState.OUTDATED
    log = AuditLog(tmp_path / "audit.jsonl")
    written = await repair_signature(
        store, herd.nodes, POLICY, accept=accept, examined=examined, audit_log=log, clock=herd.clock
    )
    assert written.is_signed
    assert (await store.read())[1] == written
    assert "identity-signed" in log.path.read_text()
    again = await examine_signature(store.provider, store.secret_id)
    with pytest.raises(IllegalStepError):
        await repair_signature(store, herd.nodes, POLICY, accept=accept, examined=again, clock=herd.clock)
