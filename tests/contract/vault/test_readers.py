"""Other readers of a secret in Vault: the documented command, secrets of the first format, and interrupted changes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.clock import SystemClock
from goatherd.errors import (
    ConflictError,
    ProviderConfigurationError,
    SecretNotFoundError,
    UnavailableError,
)
from goatherd.identity.document import encode_document
from goatherd.identity.session import OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.key_inventory import find_holdings
from goatherd.providers.base import RetryPolicy
from goatherd.providers.values import CURRENT, STABLE, SecretBytes, VersionId, VersionState
from goatherd.providers.vault import TokenAuth, VaultAddress, VaultSecretProvider
from goatherd.providers.vault.permissions import MAX_VERSIONS, policy
from goatherd.providers.vault.records import FIRST_POINTER_FORMAT, POINTER_FORMAT, StoredPointer, encode_pointer
from goatherd.providers.versioned_record import VersionedRecord
from goatherd.rotation.policy import Policy
from goatherd.rotation.rotator import Rotator
from tests.deadlines import HANG
from tests.fakes.herd import FakeClock
from tests.fakes.openbao import ROOT_TOKEN, WHY_SKIPPED, BaoServer, find_bao

BAO = find_bao()
pytestmark = pytest.mark.skipif(BAO is None, reason=WHY_SKIPPED)
PAGE = Path(__file__).resolve().parents[3] / "docs/how-to/store-vault.md"
DOCUMENT = '{\n  "roots": ["é", "\\u0001"],\t"n": 1\n}\n'.encode()


def open_provider(server: BaoServer, token: str = ROOT_TOKEN) -> VaultSecretProvider:
    return VaultSecretProvider(VaultAddress(url=server.url, auth=TokenAuth(token=token), reads_active=True))


def new_name() -> str:
    return f"goatdb/{secrets.token_hex(6)}"


def documented_command(program: str) -> list[str]:
    """Return the page's command that reads the identity with `program`."""
    found = re.findall(rf"^\$ ({program} kv get .*-field=identity .*)$", PAGE.read_text(), re.MULTILINE)
    assert len(found) == 1
    return found[0].split()


def read_as_documented(server: BaoServer, name: str, token: str, program: str = "bao") -> bytes:
    """Type the page's command under another secret's name."""
    assert BAO is not None
    _, *arguments = documented_command(program)
    arguments = [argument.replace("goatdb/root", name) for argument in arguments]
    environment = {"BAO_ADDR": server.url, "BAO_TOKEN": token, "HOME": "/nonexistent", "PATH": os.environ["PATH"]}
    done = subprocess.run([str(BAO), *arguments], env=environment, capture_output=True, check=False, timeout=2 * HANG)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("program", ["vault", "bao"])
async def test_the_pages_command_reads_the_current_document_with_a_readers_rights(server: BaoServer, program: str):
    name = new_name()
    token = server.token(policy("server", f"secret/{name}"))
    async with open_provider(server) as provider:
        first = await provider.create(name, DOCUMENT)
        assert read_as_documented(server, name, token, program) == DOCUMENT
        second = await provider.write(name, DOCUMENT + b"2", expected=first.id)
        assert read_as_documented(server, name, token, program) == DOCUMENT + b"2"
        await provider.write(name, b"a candidate", label="candidate", expected=None)
        with pytest.raises(ConflictError):
            await provider.write(name, b"lost", expected=first.id)
        await provider.label(name, STABLE, first.id, expected=None)
        assert read_as_documented(server, name, token, program) == DOCUMENT + b"2"
        await provider.label(name, CURRENT, first.id, expected=second.id)
        assert read_as_documented(server, name, token, program) == DOCUMENT
        await provider.destroy(name, second.id)
        assert read_as_documented(server, name, token, program) == DOCUMENT


async def test_a_reader_during_changes_sees_only_what_was_committed_and_never_goes_back(server: BaoServer):
    name = new_name()
    seen: list[bytes] = []

    async def poll() -> None:
        while True:
            answer = await asyncio.to_thread(server.ask, "GET", f"secret/data/{name}-pointer")
            seen.append(answer["data"]["data"]["identity"].encode())

    async with open_provider(server) as provider:
        holder = (await provider.create(name, b"0")).id
        polling = asyncio.create_task(poll())
        for number in range(1, 30):
            await provider.write(name, b"candidate %d" % number, label=f"c{number}", expected=None)
            holder = (await provider.write(name, b"%d" % number, expected=holder)).id
        polling.cancel()
    numbers = [int(each) for each in seen]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 2, "the reader did read between changes"


async def test_a_value_that_is_not_text_is_there_in_base64(server: BaoServer):
    name = new_name()
    async with open_provider(server) as provider:
        await provider.create(name, b"\xff\x00")
        assert (await provider.read(name)).value.reveal() == b"\xff\x00"
    data = server.ask("GET", f"secret/data/{name}-pointer")["data"]["data"]
    assert data["identity_base64"] == "/wA="
    assert "identity" not in data


async def as_first_format(server: BaoServer, provider: VaultSecretProvider, name: str) -> None:
    """Store the pointer as the first release wrote it."""
    found = await provider._client.read_secret(f"{name}-pointer")
    data = dict(getattr(found, "data", {}))
    data.pop("identity")
    data["format"] = FIRST_POINTER_FORMAT
    server.ask("POST", f"secret/data/{name}-pointer", {"data": data})


@pytest.mark.parametrize("change", ["write", "label", "candidate", "destroy"])
async def test_a_secret_of_the_first_format_is_read_and_the_next_change_migrates_it(server: BaoServer, change: str):
    name = new_name()
    async with open_provider(server) as provider:
        first = await provider.create(name, b"first")
        second = await provider.write(name, b"second", expected=first.id)
        await as_first_format(server, provider, name)
        assert (await provider.read(name)).value.reveal() == b"second"
        assert [version.id for version in await provider.versions(name)] == ["2", "1"]
        if change == "write":
            await provider.write(name, b"third", expected=second.id)
        elif change == "label":
            await provider.label(name, STABLE, second.id, expected=None)
        elif change == "candidate":
            await provider.write(name, b"third", label="candidate", expected=None)
        else:
            await provider.destroy(name, first.id)
    data = server.ask("GET", f"secret/data/{name}-pointer")["data"]["data"]
    assert data["format"] == POINTER_FORMAT
    assert data["identity"] == ("third" if change == "write" else "second")


FIRST_VALUE = (
    '{"format": "goatherd-vault-value/1", "request": "0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f", "sha256": '
    '"e085cdfff72941ac2efe3f1435482125aebea88138c1bb0c454cf948bb724c5d", "value": '
    '"eyJjdXJyZW50U2Vzc2lvbiI6ICJyb290LTEifQ=="}'
)
FIRST_POINTER = (
    '{"format": "goatherd-vault-pointer/1", "sha256": '
    '"1c6148358f8204f254e09c6e2ff1e368b3b99bc044fe9e97340875ef1ea80c13", "labels": {"current": 1, "stable": 1}, '
    '"versions": {"1": {"created": 1795536327037, "destroyed": false, "request": "0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f", '
    '"sha256": "e085cdfff72941ac2efe3f1435482125aebea88138c1bb0c454cf948bb724c5d", "size": 28}}}'
)


async def test_bytes_that_the_first_format_s_release_stored_are_read_and_migrated(server: BaoServer):
    name, document = new_name(), b'{"currentSession": "root-1"}'
    for path, stored in zip((name, f"{name}-pointer"), (FIRST_VALUE, FIRST_POINTER), strict=True):
        server.ask("POST", f"secret/data/{path}", {"data": json.loads(stored)})
    async with open_provider(server) as provider:
        found = await provider.read(name)
        assert found.value.reveal() == document
        assert found.version.labels == {CURRENT, STABLE}
        made = await provider.write(name, b"candidate", label="candidate", expected=None)
        assert made.id == "2"
    assert read_as_documented(server, name, ROOT_TOKEN) == document


async def test_a_pointer_of_a_later_format_is_refused_and_named(server: BaoServer):
    name = new_name()
    async with open_provider(server) as provider:
        await provider.create(name, b"first")
        stored = encode_pointer(StoredPointer(ledger=VersionedRecord()))
        server.ask("POST", f"secret/data/{name}-pointer", {"data": {**stored, "format": "goatherd-vault-pointer/3"}})
        with pytest.raises(ProviderConfigurationError, match="not in the format goatherd-vault-pointer/2"):
            await provider.read(name)


async def test_an_identity_changed_by_hand_is_damaged(server: BaoServer):
    name = new_name()
    async with open_provider(server) as provider:
        await provider.create(name, b"first")
        data = server.ask("GET", f"secret/data/{name}-pointer")["data"]["data"]
        server.ask("POST", f"secret/data/{name}-pointer", {"data": {**data, "identity": "another"}})
        provider.retry = RetryPolicy(attempts=1)
        with pytest.raises(UnavailableError, match="its identity is not the value of the current version"):
            await provider.read(name)


async def test_a_value_that_no_pointer_names_is_listed_read_and_destroyed(server: BaoServer):
    name = new_name()
    async with open_provider(server) as provider:
        first = await provider.create(name, b"first")
        await provider.write(name, b"second", expected=first.id)
        newest = server.ask("GET", f"secret/metadata/{name}-pointer")["data"]["current_version"]
        before = server.ask("GET", f"secret/data/{name}-pointer?version={newest - 1}")["data"]["data"]
        server.ask("POST", f"secret/data/{name}-pointer", {"data": before})  # as if its writer had died before it
        listed = await provider.versions(name)
        assert [(version.id, sorted(version.labels)) for version in listed] == [("2", []), ("1", ["current"])]
        assert (await provider.read(name, VersionId("2"))).value == SecretBytes(b"second")
        await provider.destroy(name, "2")
        assert [version.state for version in await provider.versions(name)] == [
            VersionState.DESTROYED,
            VersionState.ENABLED,
        ]
        third = await provider.write(name, b"third", expected=first.id)
        assert third.id == "3"


async def test_what_others_wrote_to_the_entry_of_values_stops_nothing_and_only_goatherds_own_is_destroyed(
    server: BaoServer,
):
    """Written by hand with `vault kv put`, damaged on the server, or deleted there, but not destroyed."""
    name, clock = new_name(), FakeClock(SystemClock().now_ms())
    root = OwnedSession.generate(session_id="root-a", owner="root", now_ms=clock.now_ms(), lifetime=timedelta(days=400))
    document = create_document(root, clock.now_ms())
    async with open_provider(server) as provider:
        await provider.create(name, encode_document(document))
        stored = server.ask("GET", f"secret/data/{name}?version=1")["data"]["data"]
        for data in ({"password": "of another program"}, stored | {"sha256": "0" * 64}, stored):
            server.ask("POST", f"secret/data/{name}", {"data": data})
        server.ask("POST", f"secret/delete/{name}", {"versions": [4]})
        held = await find_holdings(provider, name, document)
        problems = {one.version.id: (one.problem, one.is_unknown_leftover) for one in held if one.version.is_leftover}
        assert problems == {
            "2": ("not written by Goatherd (provider.invalid_configuration)", False),
            "3": ("damaged (provider.unavailable)", True),
            "4": ("disabled; a user who may change the secret can enable it again", True),
        }
        policy_of_test = Policy(settle=timedelta(0), clock_tolerance=timedelta(days=1000))
        rotator = Rotator(provider, name, [], policy=policy_of_test, clock=clock, unsafe_without_nodes=True)
        await rotator.rotate()
        clock.turn(policy_of_test.grace + timedelta(days=1))
        report = await rotator.retire()
        assert {"1", "3", "4"} <= set(report.destroyed)
        assert server.ask("GET", f"secret/data/{name}?version=2")["data"]["data"] == {"password": "of another program"}
        versions = server.ask("GET", f"secret/metadata/{name}")["data"]["versions"]
        assert [number for number in ("1", "3", "4") if not versions[number]["destroyed"]] == []


async def test_a_value_that_only_an_older_pointer_has_is_listed_read_and_destroyed(server: BaoServer):
    """The mount keeps more versions of the pointer than Goatherd lets the server keep of the values."""
    name = new_name()
    async with open_provider(server) as provider:
        holder = await provider.create(name, b"first")
        server.ask("POST", f"secret/metadata/{name}-pointer", {"max_versions": 200})
        for number in range(2, MAX_VERSIONS + 3):
            holder = await provider.write(name, f"value {number}".encode(), expected=holder.id)
        kept = server.ask("GET", f"secret/metadata/{name}")["data"]["versions"]
        assert min(map(int, kept)) == 3, "the server has dropped the first two"

        def held() -> set[str]:
            known = server.ask("GET", f"secret/metadata/{name}-pointer")["data"]["versions"]
            alive = [number for number, one in known.items() if not one["destroyed"]]
            asked = [server.ask("GET", f"secret/data/{name}-pointer?version={number}") for number in alive]
            return {str(one["data"]["data"]["identity"]) for one in asked}

        assert "first" in held()
        listed = await provider.versions(name)
        assert [one.id for one in listed if one.is_leftover] == ["2", "1"]
        assert [one.id for one in listed][-3:] == ["3", "2", "1"]
        found = await provider.read(name, VersionId("1"))
        assert (found.value.reveal(), found.version.is_leftover) == (b"first", True)
        async with open_provider(server, server.token(policy("admin", f"secret/{name}"))) as admin:
            await admin.destroy(name, "1")
        assert held() == {f"value {MAX_VERSIONS + 2}"}
        assert [one.id for one in await provider.versions(name) if one.is_leftover] == []
        with pytest.raises(SecretNotFoundError):
            await provider.read(name, VersionId("1"))
