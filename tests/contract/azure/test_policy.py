"""What Goatherd may do under the roles that it prints, in a vault that enforces their data actions."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

pytest.importorskip("azure.keyvault.secrets", reason="needs the extra azure")

from goatherd.errors import ConfigurationError, ProviderAccessDeniedError, SecretDeletedError, VersionDisabledError
from goatherd.providers.azure.address import AzureAddress
from goatherd.providers.azure.permissions import policy
from goatherd.providers.azure.provider import AzureSecretProvider
from goatherd.providers.values import CURRENT, STABLE, VersionState
from tests.fakes.azure_fake import FakeCredential, FakeKeyVault, FastClock

SPEED = 50.0
URI = "azure://my-vault/root"
# learn.microsoft.com/azure/role-based-access-control/built-in-roles/security#key-vault-secrets-user
SECRETS_USER = [
    "Microsoft.KeyVault/vaults/secrets/getSecret/action",
    "Microsoft.KeyVault/vaults/secrets/readMetadata/action",
]
AZ = """#!/bin/sh
if [ "$1 $2" = "keyvault show" ]; then
    echo /subscriptions/s/resourceGroups/g/providers/Microsoft.KeyVault/vaults/my-vault
else
    for each in "$@"; do printf '%s\\0' "$each" >> "$TOLD"; done
    printf '\\n\\0' >> "$TOLD"
fi
"""


def run(commands: str, folder: Path) -> tuple[list[str], list[str]]:
    """Run the commands with an ``az`` that only records them; return the data actions and the scopes that they
    grant."""
    (folder / "az").write_text(AZ)
    (folder / "az").chmod(0o700)
    told = folder / "told"
    told.unlink(missing_ok=True)
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "TOLD": str(told), "PRINCIPAL": "p"}
    subprocess.run(["/bin/sh", "-eu", "-c", commands], env=environment, check=True)
    actions, scopes = SECRETS_USER, []
    for line in told.read_text().removesuffix("\n\0").split("\n\0"):
        words = line.split("\0")
        options = dict(zip(words[3::2], words[4::2], strict=False))
        if words[:3] == ["role", "definition", "create"]:
            definition = json.loads(options["--role-definition"])
            actions, name = definition["DataActions"], definition["Name"]
            assert definition["Actions"] == []
            assert definition["AssignableScopes"] == ["/subscriptions/s/resourceGroups/g"]
        else:
            assert options["--assignee"] == "p"
            assert options["--role"] == ("Key Vault Secrets User" if actions is SECRETS_USER else name)
            scopes.append(options["--scope"])
    return actions, scopes


@pytest.fixture
def vault() -> Iterator[FakeKeyVault]:
    with FakeKeyVault(speed=SPEED) as running:
        yield running


@pytest.fixture
async def as_(vault: FakeKeyVault, tmp_path: Path) -> AsyncIterator[dict[str, AzureSecretProvider]]:
    """Return a provider for each role, with only the rights that its printed commands grant."""
    address = AzureAddress(vault="my-vault", url=vault.url, ca=str(vault.ca), check_challenge=False)
    providers = {}
    for role in ("server", "rotator", "admin"):
        actions, scopes = run(policy(role, URI), tmp_path)
        vault.allow(role, actions, [scope.rpartition("/")[2] for scope in scopes])
        providers[role] = AzureSecretProvider(address, credential=FakeCredential(role), clock=FastClock(SPEED))
        await providers[role].__aenter__()
    yield providers
    for provider in providers.values():
        await provider.__aexit__(None, None, None)


async def test_a_rotator_creates_writes_labels_and_lists(as_: dict[str, AzureSecretProvider]):
    rotator = as_["rotator"]
    first = await rotator.create("root", b"first")
    second = await rotator.write("root", b"second", expected=first.id)
    await rotator.label("root", STABLE, first.id, expected=None)
    assert (await rotator.read("root", STABLE)).value.reveal() == b"first"
    assert [version.id for version in await rotator.versions("root")] == [second.id, first.id]


async def test_a_server_reads_and_lists_and_no_more(as_: dict[str, AzureSecretProvider]):
    first = await as_["rotator"].create("root", b"first")
    reader = as_["server"]
    assert (await reader.read("root")).value.reveal() == b"first"
    assert (await reader.read("root", first.id)).version.labels == {CURRENT}
    assert [version.id for version in await reader.versions("root")] == [first.id]


async def test_a_server_that_writes_is_denied_with_our_error_and_changes_nothing(
    vault: FakeKeyVault, as_: dict[str, AzureSecretProvider]
):
    first = await as_["rotator"].create("root", b"first")
    before = vault.versions("root"), vault.versions("root-pointer")
    reader = as_["server"]
    for begin in (
        lambda: reader.write("root", b"second", expected=first.id),
        lambda: reader.label("root", STABLE, first.id, expected=None),
        lambda: reader.delete("root"),
    ):
        with pytest.raises(ProviderAccessDeniedError) as caught:
            await begin()
        assert "goatherd policy azure" in caught.value.hint
    assert (vault.versions("root"), vault.versions("root-pointer")) == before


async def test_a_rotator_switches_nothing_off_and_deletes_nothing(as_: dict[str, AzureSecretProvider]):
    rotator = as_["rotator"]
    first = await rotator.create("root", b"first")
    await rotator.write("root", b"second", expected=first.id)
    with pytest.raises(ProviderAccessDeniedError):
        await rotator.delete("root")
    with pytest.raises(ProviderAccessDeniedError):
        await rotator.destroy("root", first.id)
    assert (await rotator.read("root", first.id)).value.reveal() == b"first"
    assert {version.state for version in await rotator.versions("root")} == {VersionState.ENABLED}


async def test_an_administrator_switches_off_and_deletes(as_: dict[str, AzureSecretProvider]):
    admin = as_["admin"]
    first = await admin.create("root", b"first")
    await admin.write("root", b"second", expected=first.id)
    await admin.destroy("root", first.id)
    with pytest.raises(VersionDisabledError):
        await admin.read("root", first.id)
    await admin.delete("root")
    with pytest.raises(SecretDeletedError):
        await admin.read("root")


async def test_no_role_grants_access_to_another_secret_of_the_vault(as_: dict[str, AzureSecretProvider]):
    for provider in as_.values():
        with pytest.raises(ProviderAccessDeniedError):
            await provider.read("root2")


@pytest.mark.parametrize("role", ["server", "rotator", "admin"])
def test_one_secret_is_two_scopes_and_a_template_is_the_whole_vault(role: str, tmp_path: Path):
    vault = "/subscriptions/s/resourceGroups/g/providers/Microsoft.KeyVault/vaults/my-vault"
    assert run(policy(role, URI), tmp_path)[1] == [
        f"{vault}/secrets/root",
        f"{vault}/secrets/root-pointer",
    ]
    assert run(policy(role, "azure://my-vault/{org}-root"), tmp_path)[1] == [vault]
    assert policy(role, "my-vault/root") == policy(role, URI)


def test_an_unknown_role_and_an_address_that_would_change_the_commands_are_refused():
    with pytest.raises(ConfigurationError, match="there is no role"):
        policy("owner", URI)
    for uri in ("azure://my-vault/a$(id)", "azure://my-vault;id/root", "azure://my-vault/a'b", "azure://my-vault/a b"):
        with pytest.raises(ConfigurationError):
            policy("server", uri)


def test_no_role_may_purge_back_up_or_manage(tmp_path: Path):
    for role in ("server", "rotator", "admin"):
        actions, _ = run(policy(role, URI), tmp_path)
        assert not re.search(r"purge|backup|restore|recover|\*", " ".join(actions))
