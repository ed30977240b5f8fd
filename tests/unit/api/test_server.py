"""A server through the public names: where its settings come from, and two servers in one program."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

import goatherd
from goatherd.cluster.client import NodeClient
from goatherd.errors import ConfigurationError, SecretNotFoundError, StorageError, SuccessionError
from goatherd.identity.session import OwnedSession
from goatherd.node.log_storage import LogDirectory
from goatherd.providers.base import Call
from goatherd.providers.values import Label, SecretValue, VersionId
from tests.deadlines import HANG


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


def test_one_peer_one_proxy_or_one_signer_needs_no_list(tmp_path: Path):
    server = goatherd.Server(
        tmp_path,
        "memory:///one-each/root",
        peers="http://127.0.0.1:8102",
        forwarded_by="10.0.0.0/8",
        root_signers=f"local:{tmp_path}/key.json",
    )
    assert list(server.peers) == ["http://127.0.0.1:8102"]
    with pytest.raises(ConfigurationError, match="forwarded_by must be a network: 'proxy'"):
        goatherd.Server(tmp_path, "memory:///one-each/root", forwarded_by=["proxy"])


@pytest.mark.parametrize("given", ["file:///srv/goatdb", "", None])
async def test_what_is_no_path_is_named_and_nothing_is_put_under_the_working_directory(given: str):
    with pytest.raises(ConfigurationError, match="the data directory must be a path"):
        goatherd.Server(given, "memory:///no-path/root")
    with pytest.raises(ConfigurationError, match="the place of the settings must be a path"):
        await goatherd.FileSettings.create(given, goatherd.create_identity(goatherd.generate_session("root")))


@pytest.mark.parametrize("port", ["8080", -1, 65536, None])
async def test_what_is_no_port_is_named(tmp_path: Path, port: int):
    _, path = await stored(tmp_path)
    with pytest.raises(ConfigurationError, match=f"port must be an integer from 0 to 65535, not {port!r}"):
        async with goatherd.Server(tmp_path / "data", f"file://{path}").listen(port=port):
            pass


class Forgetful(goatherd.SettingsProvider):
    """A settings provider that lacks most methods; those of the protocol return None."""


async def test_what_returns_no_settings_is_named(tmp_path: Path):
    for given in (Forgetful(), lambda org: None):
        with pytest.raises(ConfigurationError, match="returned a NoneType for organization 'localhost'"):
            async with goatherd.Server(tmp_path / "data", given):  # type: ignore[arg-type]
                pass


async def test_a_class_whose_objects_are_settings_is_called_with_the_organization(tmp_path: Path):
    root, _ = await stored(tmp_path)

    class Chosen(goatherd.CloudSecretSettings):
        def __init__(self, org: str) -> None:
            super().__init__("root", goatherd.FileSecretProvider(tmp_path / "keys"))

    async with goatherd.Server(tmp_path / "data", Chosen).listen() as url, NodeClient(url) as client:
        assert await client.answers(root)


async def test_a_server_without_an_identity_does_not_invent_one(tmp_path: Path):
    with pytest.raises(SecretNotFoundError):
        async with goatherd.Server(tmp_path / "data", f"file://{tmp_path}/keys/root").listen():
            pass


async def test_a_server_that_is_in_use_is_not_entered_again_and_goes_on(tmp_path: Path):
    root, path = await stored(tmp_path)
    server = goatherd.Server(tmp_path / "data", f"file://{path}")
    async with server.listen() as url, NodeClient(url) as client:
        with pytest.raises(ConfigurationError, match="in use already"):
            async with server.listen():
                pass
        assert await client.answers(root)
    async with server.listen() as url, NodeClient(url) as client:
        assert await client.answers(root)


async def test_a_server_that_stops_finishes_what_the_program_writes_and_takes_no_more(tmp_path: Path):
    _, path = await stored(tmp_path)
    server = goatherd.Server(tmp_path / "data", f"file://{path}")
    async with server.listen():
        notes = server.database().repository("/data/notes")
        writes = [asyncio.create_task(notes.create(f"note-{n}", "note/1", {"text": "x"})) for n in range(20)]
        await asyncio.sleep(0)
        writes[0].cancel()
    assert {item.key for item in await asyncio.gather(*writes[1:])} == {f"note-{n}" for n in range(1, 20)}
    for call in (notes.keys(), notes.get("note-1"), notes.set("note-1", {}), notes.delete("note-1")):
        with pytest.raises(StorageError, match="'localhost' is closed"):
            await call
    async with server.listen():
        assert sorted(await server.database().repository("/data/notes").keys()) == sorted(
            f"note-{n}" for n in range(20)
        )
        await server.database().repository("/data/notes").delete("note-7")
        assert "note-7" not in await server.database().repository("/data/notes").keys()


def test_the_database_of_a_server_that_was_not_entered_is_named(tmp_path: Path):
    with pytest.raises(KeyError, match="organization 'localhost' is not open"):
        goatherd.Server(tmp_path, "memory:///not-entered/root").database()


class Late(goatherd.MemorySecretProvider):
    """A settings provider that answers when the test releases it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.answers = asyncio.Event(), asyncio.Event()

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        self.asked.set()
        await self.answers.wait()
        return await super()._read(call, at)


async def test_a_start_that_is_cancelled_ends_and_the_next_one_serves(tmp_path: Path):
    root, provider = goatherd.generate_session("root"), Late()
    await provider.create("root", goatherd.encode_document(goatherd.create_identity(root)))
    server = goatherd.Server(tmp_path / "data", goatherd.CloudSecretSettings("root", provider))
    start = asyncio.create_task(server.__aenter__())
    await provider.asked.wait()
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    provider.answers.set()
    async with server.listen() as url, NodeClient(url) as client:
        assert await client.answers(root)


async def test_a_start_that_is_cancelled_while_it_takes_the_lock_releases_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    _, path = await stored(tmp_path)
    began, goes_on, order = threading.Event(), threading.Event(), list[str]()
    acquire, close = LogDirectory.acquire, LogDirectory.close

    def acquire_slowly(directory: LogDirectory) -> None:
        began.set()
        assert goes_on.wait(HANG)
        acquire(directory)
        order.append("acquired")

    def close_noted(directory: LogDirectory) -> None:
        order.append("closed")
        close(directory)

    monkeypatch.setattr(LogDirectory, "acquire", acquire_slowly)
    monkeypatch.setattr(LogDirectory, "close", close_noted)
    server = goatherd.Server(tmp_path / "data", f"file://{path}")
    start = asyncio.create_task(server.__aenter__())
    await asyncio.to_thread(began.wait, HANG)
    start.cancel()
    for _ in range(100):
        await asyncio.sleep(0)
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert order == ["acquired", "closed"]
    async with server:
        pass


async def test_serving_until_a_signal_arrives_is_refused_outside_of_the_main_thread(tmp_path: Path):
    _, path = await stored(tmp_path)
    server = goatherd.Server(tmp_path / "data", f"file://{path}")
    with pytest.raises(ConfigurationError, match="in the main thread only") as caught:
        await asyncio.to_thread(lambda: asyncio.run(goatherd.serve(server, port=0)))
    assert "server.listen()" in caught.value.hint
