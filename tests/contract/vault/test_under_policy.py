"""What Goatherd may do under the policies that it prints, on a server that enforces them."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator

import pytest

from goatherd.errors import (
    ConflictError,
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    SecretExistsError,
    UnavailableError,
)
from goatherd.providers.values import CURRENT, STABLE
from goatherd.providers.vault.address import VaultAddress
from goatherd.providers.vault.auth import TokenAuth
from goatherd.providers.vault.permissions import policy
from goatherd.providers.vault.provider import VaultSecretProvider
from tests.fakes.openbao import ROOT_TOKEN, WHY_SKIPPED, BaoServer, find_bao

BAO = find_bao()
pytestmark = pytest.mark.skipif(BAO is None, reason=WHY_SKIPPED)


@pytest.fixture
def secret() -> str:
    return f"goatdb/{secrets.token_hex(4)}/root"


@pytest.fixture
async def as_(server: BaoServer, secret: str) -> AsyncIterator[dict[str, VaultSecretProvider]]:
    """Return a provider for each role, under the policy that is printed for this secret."""
    tokens = {role: server.token(policy(role, f"secret/{secret}")) for role in ("server", "rotator", "admin")}
    tokens["root"] = ROOT_TOKEN
    providers = {
        role: VaultSecretProvider(VaultAddress(url=server.url, auth=TokenAuth(token=token), reads_active=True))
        for role, token in tokens.items()
    }
    for provider in providers.values():
        await provider.__aenter__()
    yield providers
    for provider in providers.values():
        await provider.__aexit__(None, None, None)


async def test_a_rotator_creates_writes_labels_and_lists(as_: dict[str, VaultSecretProvider], secret: str):
    rotator = as_["rotator"]
    first = await rotator.create(secret, b"first")
    second = await rotator.write(secret, b"second", expected=first.id)
    await rotator.label(secret, STABLE, first.id, expected=None)
    assert (await rotator.read(secret, STABLE)).value.reveal() == b"first"
    assert [version.id for version in await rotator.versions(secret)] == [second.id, first.id]


async def test_a_server_reads_and_lists_and_no_more(as_: dict[str, VaultSecretProvider], secret: str):
    first = await as_["rotator"].create(secret, b"first")
    reader = as_["server"]
    assert (await reader.read(secret)).value.reveal() == b"first"
    assert (await reader.read(secret, first.id)).version.labels == {CURRENT}
    assert [version.id for version in await reader.versions(secret)] == [first.id]


async def test_a_server_that_writes_is_denied_with_our_error_and_a_hint(
    as_: dict[str, VaultSecretProvider], secret: str
):
    first = await as_["rotator"].create(secret, b"first")
    reader = as_["server"]
    for begin in (
        lambda: reader.write(secret, b"second", expected=first.id),
        lambda: reader.label(secret, STABLE, first.id, expected=None),
        lambda: reader.delete(secret),
        lambda: reader.create(f"{secret}/other", b"x"),
        lambda: reader.read(f"{secret}/other"),
    ):
        with pytest.raises(ProviderAccessDeniedError) as caught:
            await begin()
        assert "goatherd policy vault" in caught.value.hint
    assert [version.id for version in await as_["root"].versions(secret)] == [first.id]


async def test_a_rotator_that_destroys_or_deletes_is_denied_and_has_changed_nothing(
    as_: dict[str, VaultSecretProvider], secret: str
):
    rotator = as_["rotator"]
    first = await rotator.create(secret, b"first")
    second = await rotator.write(secret, b"second", expected=first.id)
    with pytest.raises(ProviderAccessDeniedError):
        await rotator.destroy(secret, first.id)
    with pytest.raises(ProviderAccessDeniedError):
        await rotator.delete(secret)
    assert (await rotator.read(secret, first.id)).value.reveal() == b"first"
    assert [version.id for version in await rotator.versions(secret)] == [second.id, first.id]


async def test_an_admin_destroys_and_deletes(as_: dict[str, VaultSecretProvider], secret: str, server: BaoServer):
    admin = as_["admin"]
    first = await admin.create(secret, b"first")
    await admin.write(secret, b"second", expected=first.id)
    await admin.destroy(secret, first.id)
    with pytest.raises(ConflictError):
        await admin.destroy(secret, "2")
    await admin.delete(secret)
    assert server.ask("GET", f"secret/metadata/{secret}") == {"errors": []}, "nothing is left"


async def test_a_rotator_cannot_shorten_the_history(
    as_: dict[str, VaultSecretProvider], secret: str, server: BaoServer
):
    await as_["rotator"].create(secret, b"first")
    token = server.token(policy("rotator", f"secret/{secret}"))
    for body in ({"max_versions": 1}, {"max_versions": "1"}, {"cas_required": True}, {"delete_version_after": "1s"}):
        with pytest.raises(AssertionError, match="403"):
            server.ask("POST", f"secret/metadata/{secret}", body, token=token)


async def test_a_policy_for_every_organization_matches_one_component(server: BaoServer):
    token = server.token(policy("rotator", "secret/herd/{org}/root"))
    address = VaultAddress(url=server.url, auth=TokenAuth(token=token))
    async with VaultSecretProvider(address) as rotator:
        await rotator.create("herd/acme/root", b"first")
        with pytest.raises(ProviderAccessDeniedError):
            await rotator.create("herd/acme/deeper/root", b"first")


# --- history ---------------------------------------------------------------------------------------------------------


async def test_an_engine_that_requires_check_and_set_is_served(server: BaoServer):
    server.ask("POST", "sys/mounts/strict", {"type": "kv", "options": {"version": "2"}})
    server.ask("POST", "strict/config", {"cas_required": True, "metadata_cas_required": True})
    token = server.token(policy("rotator", "strict/goatdb/root"))
    address = VaultAddress(url=server.url, mount="strict", auth=TokenAuth(token=token))
    async with VaultSecretProvider(address) as rotator:
        first = await rotator.create("goatdb/root", b"first")
        second = await rotator.write("goatdb/root", b"second", expected=first.id)
        assert (await rotator.read("goatdb/root")).version.id == second.id


async def test_labelled_versions_stay_however_few_states_the_server_keeps(
    as_: dict[str, VaultSecretProvider], secret: str, server: BaoServer
):
    rotator = as_["rotator"]
    holder = await rotator.create(secret, b"0")
    await rotator.label(secret, STABLE, holder.id, expected=None)
    server.ask("POST", f"secret/metadata/{secret}", {"max_versions": 2})
    for number in range(1, 40):
        holder = await rotator.write(secret, b"%d" % number, expected=holder.id)
    assert (await rotator.read(secret, STABLE)).value.reveal() == b"0"
    assert len(await rotator.versions(secret)) == 35, "32, and those with labels before and after the last write"


async def test_a_mount_that_deletes_by_itself_is_named_at_the_first_change(server: BaoServer, secret: str):
    server.ask("POST", "sys/mounts/brief", {"type": "kv", "options": {"version": "2"}})
    server.ask("POST", "brief/config", {"delete_version_after": "1h"})
    address = VaultAddress(url=server.url, auth=TokenAuth(token=ROOT_TOKEN), mount="brief")
    async with VaultSecretProvider(address) as provider:
        with pytest.raises(ProviderConfigurationError, match="automatically after some time") as caught:
            await provider.create(secret, b"first")
        assert "delete_version_after" in caught.value.hint


async def test_a_destroyed_value_is_in_no_state_of_the_entry(
    as_: dict[str, VaultSecretProvider], secret: str, server: BaoServer
):
    admin = as_["admin"]
    first = await admin.create(secret, b"first value")
    await admin.write(secret, b"second value", expected=first.id)
    await admin.destroy(secret, first.id)
    known = server.ask("GET", f"secret/metadata/{secret}")["data"]["versions"]
    states = [json.dumps(server.ask("GET", f"secret/data/{secret}?version={number}")) for number in known]
    assert not any("first value" in state for state in states)
    assert sum("second value" in state for state in states) >= 1


# --- what hands did -------------------------------------------------------------------------------------------------


async def test_an_entry_that_is_not_ours_is_neither_read_nor_overwritten(
    as_: dict[str, VaultSecretProvider], secret: str, server: BaoServer
):
    server.ask("POST", f"secret/data/{secret}", {"data": {"password": "x"}})
    with pytest.raises(SecretExistsError, match="not made by Goatherd"):
        await as_["root"].create(secret, b"first")
    with pytest.raises(ProviderConfigurationError, match="not made by Goatherd"):
        await as_["root"].read(secret)
    assert server.ask("GET", f"secret/data/{secret}")["data"]["metadata"]["version"] == 1


async def test_what_others_put_into_the_entry_survives_every_change(
    as_: dict[str, VaultSecretProvider], secret: str, server: BaoServer
):
    first = await as_["root"].create(secret, b"first")
    data = server.ask("GET", f"secret/data/{secret}")["data"]["data"]
    server.ask("POST", f"secret/data/{secret}", {"data": {**data, "note": "theirs"}})
    await as_["root"].write(secret, b"second", expected=first.id)
    assert server.ask("GET", f"secret/data/{secret}")["data"]["data"]["note"] == "theirs"


async def test_a_value_changed_by_hand_is_damaged_and_never_read(
    as_: dict[str, VaultSecretProvider], secret: str, server: BaoServer
):
    root = as_["root"]
    first = await root.create(secret, b"first")
    data = server.ask("GET", f"secret/data/{secret}")["data"]["data"]
    server.ask("POST", f"secret/data/{secret}", {"data": {**data, "value": "firsT"}})
    for at in (CURRENT, first.id):
        with pytest.raises(UnavailableError, match="digest"):
            await root.read(secret, at)
    record = {**data["record"], "labels": {}}
    server.ask("POST", f"secret/data/{secret}", {"data": {**data, "record": record}})
    with pytest.raises(UnavailableError, match="damaged"):
        await root.write(secret, b"second", expected=first.id)


async def test_an_entry_deleted_by_hand_is_not_a_missing_secret(
    as_: dict[str, VaultSecretProvider], secret: str, server: BaoServer
):
    root = as_["root"]
    await root.create(secret, b"first")
    server.ask("DELETE", f"secret/data/{secret}")
    with pytest.raises(ProviderConfigurationError, match="deleted by hand") as caught:
        await root.read(secret)
    assert "undelete -mount=secret -versions=1" in caught.value.hint
    with pytest.raises(SecretExistsError, match="deleted by hand"):
        await root.create(secret, b"other")
    server.ask("POST", f"secret/undelete/{secret}", {"versions": [1]})
    assert (await root.read(secret)).value.reveal() == b"first"


@pytest.mark.parametrize("version", ["1", "2"])
async def test_a_mount_that_is_not_there_or_of_version_1_is_named(server: BaoServer, version: str, secret: str):
    mount = f"v{version}-{secrets.token_hex(3)}"
    if version == "1":
        server.ask("POST", f"sys/mounts/{mount}", {"type": "kv", "options": {"version": "1"}})
    address = VaultAddress(url=server.url, auth=TokenAuth(token=ROOT_TOKEN), mount=mount)
    async with VaultSecretProvider(address) as provider:
        with pytest.raises(ProviderConfigurationError, match=mount):
            await provider.create(secret, b"first")
