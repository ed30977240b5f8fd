"""The members of ``GET /goatherd/v1/identity`` that only some servers have are those that the reference lists."""

from __future__ import annotations

from dataclasses import replace

from goatherd.settings.base import SettingsStatus, describe_identity
from goatherd.stores import StoreState
from tests.docs.http_answers import IDENTITY, REGIONS
from tests.unit.cli.json_documents import JSONDocuments
from tests.unit.identity.make import first


def test_a_server_with_stores_in_several_regions_has_these_members_too() -> None:
    store = StoreState(region="eu", is_primary=True, is_reachable=True)
    status = SettingsStatus(
        source="",
        generation=1,
        version="1",
        last_success_ms=1,
        age=None,
        failures=0,
        last_refusal=None,
        stores=(store,),
    )
    alone = describe_identity(first(), replace(status, stores=()))
    answer = describe_identity(first(), status)
    JSONDocuments().check_fields("identity", IDENTITY, answer)
    assert set(answer) - set(alone) == set(REGIONS)
