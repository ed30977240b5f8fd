"""Other readers of a secret in Vault: the documented command."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import subprocess
from pathlib import Path

import pytest

from goatherd.errors import (
    ConflictError,
)
from goatherd.providers.values import CURRENT, STABLE
from goatherd.providers.vault.address import VaultAddress
from goatherd.providers.vault.auth import TokenAuth
from goatherd.providers.vault.permissions import policy
from goatherd.providers.vault.provider import VaultSecretProvider
from tests.deadlines import HANG
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
    found = re.findall(rf"^\$ ({program} kv get .*-field=value .*)$", PAGE.read_text(), re.MULTILINE)
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
            answer = await asyncio.to_thread(server.ask, "GET", f"secret/data/{name}")
            seen.append(answer["data"]["data"]["value"].encode())

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
        data = server.ask("GET", f"secret/data/{name}")["data"]["data"]
        assert data["value"] == {"base64": "/wA="}
        assert (await provider.read(name)).value.reveal() == b"\xff\x00"
