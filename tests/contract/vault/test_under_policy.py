"""What Goatherd may do under the policies that it prints, on a server that enforces them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest

from goatherd.errors import (
    ConflictError,
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    SecretExistsError,
    UnavailableError,
    VersionDisabledError,
)
from goatherd.providers.values import CURRENT, STABLE, Label, VersionId
from goatherd.providers.vault import TokenAuth, VaultAddress, VaultSecretProvider, policy
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
    for path in (secret, f"{secret}-pointer"):
        assert server.ask("GET", f"secret/metadata/{path}") == {"errors": []}, "nothing is left"


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


async def test_creation_makes_the_server_keep_more_than_its_ten(
    as_: dict[str, VaultSecretProvider], secret: str, server: BaoServer
):
    rotator = as_["rotator"]
    holder = await rotator.create(secret, b"0")
    await rotator.label(secret, STABLE, holder.id, expected=None)
    for number in range(1, 20):
        holder = await rotator.write(secret, b"%d" % number, expected=holder.id)
    assert (await rotator.read(secret, STABLE)).value.reveal() == b"0", "a default server has dropped it by now"
    assert server.ask("GET", f"secret/metadata/{secret}")["data"]["max_versions"] == 64


async def test_an_engine_that_requires_check_and_set_of_metadata_is_served(server: BaoServer):
    server.ask("POST", "sys/mounts/strict", {"type": "kv", "options": {"version": "2"}})
    server.ask("POST", "strict/config", {"cas_required": True, "metadata_cas_required": True})
    token = server.token(policy("rotator", "strict/goatdb/root"))
    address = VaultAddress(url=server.url, mount="strict", auth=TokenAuth(token=token))
    async with VaultSecretProvider(address) as rotator:
        first = await rotator.create("goatdb/root", b"first")
        known = server.ask("GET", "strict/metadata/goatdb/root")["data"]["current_metadata_version"]
        server.ask("POST", "strict/metadata/goatdb/root", {"max_versions": 10, "metadata_cas": known})
        second = await rotator.write("goatdb/root", b"second", expected=first.id)
        assert (await rotator.read("goatdb/root")).version.id == second.id
    assert server.ask("GET", "strict/metadata/goatdb/root")["data"]["max_versions"] == 64


async def test_too_short_a_history_that_the_token_may_not_lengthen_is_refused_with_the_command(
    server: BaoServer, secret: str
):
    text = policy("rotator", f"secret/{secret}").replace('["64"]', '["63"]')
    async with VaultSecretProvider(VaultAddress(url=server.url, auth=TokenAuth(token=server.token(text)))) as rotator:
        with pytest.raises(ProviderConfigurationError, match="keeps ten versions, which is too few") as caught:
            await rotator.create(secret, b"first")
        assert f"vault kv metadata put -mount=secret -max-versions=64 {secret}" in caught.value.hint
        server.ask("POST", f"secret/metadata/{secret}", {"max_versions": 50})
        assert (await rotator.create(secret, b"first")).id == "1", "fifty, by a client that may write, are enough"


@pytest.mark.slow
async def test_a_write_that_would_push_out_a_labelled_version_is_refused(
    as_: dict[str, VaultSecretProvider], secret: str, server: BaoServer
):
    rotator = as_["rotator"]
    first = holder = await rotator.create(secret, b"0")
    await rotator.label(secret, STABLE, first.id, expected=None)
    for number in range(1, 64):
        holder = await rotator.write(secret, b"%d" % number, expected=holder.id)
    with pytest.raises(ProviderConfigurationError, match="delete version 1, which has the label stable") as caught:
        await rotator.write(secret, b"64", expected=holder.id)
    assert "max-versions=65" in caught.value.hint
    assert (await rotator.read(secret, STABLE)).value.reveal() == b"0"
    await rotator.label(secret, STABLE, holder.id, expected=first.id)
    last = await rotator.write(secret, b"64", expected=holder.id)
    listed = await rotator.versions(secret)
    assert [listed[0].id, listed[-1].id, len(listed)] == [last.id, "2", 64], "the oldest is forgotten when it is gone"


async def test_a_mount_that_deletes_by_itself_is_refused_before_anything_counts(server: BaoServer, secret: str):
    server.ask("POST", "sys/mounts/brief", {"type": "kv", "options": {"version": "2"}})
    server.ask("POST", "brief/config", {"delete_version_after": "1h"})
    address = VaultAddress(url=server.url, auth=TokenAuth(token=ROOT_TOKEN), mount="brief")
    async with VaultSecretProvider(address) as provider:
        with pytest.raises(ProviderConfigurationError, match="automatically after some time"):
            await provider.create(secret, b"first")


# --- what hands did -------------------------------------------------------------------------------------------------


async def test_a_version_deleted_or_destroyed_by_hand_is_disabled_not_missing(
    as_: dict[str, VaultSecretProvider], secret: str, server: BaoServer
):
    root = as_["root"]
    first = await root.create(secret, b"first")
    second = await root.write(secret, b"second", expected=first.id)
    server.ask("POST", f"secret/delete/{secret}", {"versions": [1]})
    with pytest.raises(VersionDisabledError, match="undelete -mount=secret -versions=1"):
        await root.read(secret, first.id)
    with pytest.raises(VersionDisabledError):
        await root.label(secret, STABLE, first.id, expected=None)
    assert [version.state for version in await root.versions(secret)] == ["enabled", "disabled"]
    server.ask("POST", f"secret/undelete/{secret}", {"versions": [1]})
    assert (await root.read(secret, first.id)).value.reveal() == b"first"
    server.ask("POST", f"secret/destroy/{secret}", {"versions": [2]})
    with pytest.raises(VersionDisabledError, match=r"version 2 of .* was destroyed"):
        await root.read(secret)
    assert {version.id: version.state for version in await root.versions(secret)}[second.id] == "destroyed"


async def test_an_entry_that_is_not_ours_is_neither_read_nor_overwritten(
    as_: dict[str, VaultSecretProvider], secret: str, server: BaoServer
):
    server.ask("POST", f"secret/data/{secret}", {"data": {"password": "x"}})
    with pytest.raises(SecretExistsError, match="not Goatherd's"):
        await as_["root"].create(secret, b"first")
    server.ask("POST", f"secret/data/{secret}-pointer", {"data": {"to": "somewhere"}})
    with pytest.raises(ProviderConfigurationError, match="not Goatherd's"):
        await as_["root"].read(secret)
    assert server.ask("GET", f"secret/data/{secret}")["data"]["metadata"]["version"] == 1


async def test_a_value_changed_by_hand_is_damaged_and_never_read(
    as_: dict[str, VaultSecretProvider], secret: str, server: BaoServer
):
    root = as_["root"]
    first = await root.create(secret, b"first")
    data = server.ask("GET", f"secret/data/{secret}")["data"]["data"]
    server.ask("DELETE", f"secret/metadata/{secret}")
    with pytest.raises(UnavailableError, match="no value for it"):
        await root.read(secret)
    with pytest.raises(ProviderConfigurationError, match="the server has none"):
        await root.write(secret, b"second", expected=first.id)
    server.ask("POST", f"secret/data/{secret}", {"data": {**data, "value": "Zmlyc1Q="}})
    with pytest.raises(UnavailableError, match="digest"):
        await root.read(secret, VersionId("1"))
    whole = {**data, "value": "eA==", "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}
    server.ask("DELETE", f"secret/metadata/{secret}")
    server.ask("POST", f"secret/data/{secret}", {"data": whole})
    with pytest.raises(UnavailableError, match="not the one that was written"):
        await root.read(secret, Label("current"))


async def test_a_pointer_deleted_by_hand_is_not_a_missing_secret(
    as_: dict[str, VaultSecretProvider], secret: str, server: BaoServer
):
    root = as_["root"]
    await root.create(secret, b"first")
    server.ask("DELETE", f"secret/data/{secret}-pointer")
    for begin in (lambda: root.read(secret), lambda: root.create(secret, b"other")):
        with pytest.raises(ProviderConfigurationError, match="undelete -mount=secret -versions=1"):
            await begin()
    server.ask("POST", f"secret/undelete/{secret}-pointer", {"versions": [1]})
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
