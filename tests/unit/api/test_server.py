"""A server by the public names: where it takes its settings from, and two servers in one program."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import goatherd
from goatherd.cluster.client import NodeClient
from goatherd.errors import ConfigurationError, SecretNotFoundError, SuccessionError
from goatherd.identity.session import OwnedSession


async def stored(directory: Path) -> tuple[OwnedSession, str]:
    root = goatherd.generate_session("root")
    provider = goatherd.FileSecretProvider(str(directory / "keys"))
    await provider.create("root", goatherd.encode_document(goatherd.create_identity(root)))
    return root, f"{directory}/keys/root"


@pytest.mark.parametrize("shape", ["cloudConfig", "URI", "object"])
async def test_a_server_takes_its_identity_from_what_it_is_given(tmp_path: Path, shape: str):
    root, path = await stored(tmp_path)
    given = {
        "cloudConfig": {"type": "cloud", "cloudConfig": {"provider": "file", "secretId": path}},
        "URI": f"file://{path}",
        "object": goatherd.CloudSecretSettings("root", goatherd.FileSecretProvider(str(tmp_path / "keys"))),
    }[shape]
    server = goatherd.Server(tmp_path / "data", settings_provider=given)
    async with server.listen() as url, NodeClient(url) as client:
        assert await client.answers(root)
    remembered = tmp_path / "data" / "localhost" / ".goatherd.seen.json"
    assert remembered.exists() is (shape != "object")


async def test_a_server_takes_goatdb_s_own_file(tmp_path: Path):
    root = goatherd.generate_session("root")
    await goatherd.FileSettings.create(tmp_path / "data" / "localhost", goatherd.create_identity(root))
    async with goatherd.Server(tmp_path / "data", {"type": "file"}).listen() as url, NodeClient(url) as client:
        assert await client.answers(root)


async def test_a_server_does_not_go_back_behind_the_identity_that_it_has_used(tmp_path: Path):
    _, path = await stored(tmp_path)
    async with goatherd.Server(tmp_path / "data", f"file://{path}"):
        pass
    provider = goatherd.FileSecretProvider(str(tmp_path / "keys"))
    other = goatherd.create_identity(goatherd.generate_session("root"))
    await provider.update_secret("root", goatherd.encode_document(other))
    with pytest.raises(SuccessionError, match="another identity"):
        async with goatherd.Server(tmp_path / "data", f"file://{path}"):
            pass


async def test_two_servers_of_one_program_share_an_identity_and_sync(tmp_path: Path):
    root, path = await stored(tmp_path)
    one = goatherd.Server(tmp_path / "one", f"file://{path}")
    async with one.listen() as url:
        two = goatherd.Server(tmp_path / "two", f"file://{path}", peers=[url])
        async with two.listen() as other, NodeClient(url) as first, NodeClient(other) as second:
            assert all(await asyncio.gather(first.answers(root), second.answers(root)))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (42, "settings_provider has the unsupported type int"),
        ({"type": "clod"}, "type must be"),
        ({"type": "cloud"}, "needs a cloudConfig"),
        ("/srv/keys/root", "not the URI of a store"),
    ],
)
def test_what_names_no_settings_is_refused_with_an_example(tmp_path: Path, given: object, text: str):
    with pytest.raises(ConfigurationError, match=text) as caught:
        goatherd.Server(tmp_path, given)  # type: ignore[arg-type]
    assert "://" in caught.value.hint or "cloudConfig" in caught.value.hint


async def test_a_server_without_an_identity_does_not_invent_one(tmp_path: Path):
    with pytest.raises(SecretNotFoundError):
        async with goatherd.Server(tmp_path / "data", f"file://{tmp_path}/keys/root").listen():
            pass
