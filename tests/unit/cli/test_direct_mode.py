"""Direct mode by commands: an identity without a private key, a server with a signer, the return to a working root."""

from __future__ import annotations

import asyncio
import json
import socketserver
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from goatherd.cli.main import EXIT_FINDINGS
from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.errors import NodeRefusedError, SignerKeyNotFoundError
from goatherd.identity.document import decode_document, document_tree, encode_document
from goatherd.identity.root_signatures import MEMBER, sign_tree
from goatherd.plugins import open_provider
from goatherd.providers.values import CURRENT, SecretBytes
from goatherd.signers import SignerKey, verified
from goatherd.signers.local import LocalSigner
from goatherd.times import format_utc, read_iso
from tests.deadlines import ANSWER, HANG
from tests.fakes.anchors import make_own_identity

from .conftest import Goatherd, Serving, secrets_in


@pytest.fixture
def signer(tmp_path: Path) -> str:
    seal = tmp_path / "seal"
    seal.write_text(bytes(range(32)).hex())
    seal.chmod(0o600)
    return f"local:{tmp_path}/root.json?seal-key=file:{seal}"


def test_an_identity_in_direct_mode_has_no_key_in_the_store_and_no_settings_for_unmodified_servers(
    goatherd: Goatherd, store: str, signer: str, tmp_path: Path
) -> None:
    made = goatherd("init", "--anchor", signer, "--create-key", "--direct", "--provider", store)
    assert made.code == 0, made.err
    assert "direct mode" in made.out
    assert "working root" not in made.out
    assert secrets_in(tmp_path / "keys") == set()
    shown = goatherd("show", "--provider", store)
    assert "direct mode" in shown.out
    status = goatherd("status", "--roots", "--provider", store)
    assert "in an HSM or a KMS" in status.out
    exported = goatherd("export", "--provider", store, str(tmp_path / "settings.json"))
    assert exported.code != 0
    assert "identity.direct" in exported.err
    assert "--working-root" in exported.err
    assert not (tmp_path / "settings.json").exists()


def test_a_command_that_waits_for_a_new_key_says_so(
    goatherd: Goatherd, store: str, signer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, early = LocalSigner.public_key, [1, 2]

    async def read_late(self: LocalSigner) -> SignerKey:
        if early:
            early.pop()
            raise self.error(SignerKeyNotFoundError, "public_key", "not yet")
        return await read(self)

    monkeypatch.setattr(LocalSigner, "public_key", read_late)
    monkeypatch.setattr(verified, "READY_POLL", timedelta(0))
    made = goatherd("init", "--anchor", signer, "--create-key", "--provider", store)
    assert made.code == 0, made.err
    assert made.err.count("the key was created; waiting until it is ready, for at most 30s") == 1
    again = goatherd("init", "--anchor", signer, "--create-key", "--provider", f"{store}-2")
    assert "signer.already_exists" in again.err
    assert "leave out --create-key" in again.err
    assert goatherd("init", "--anchor", signer, "--provider", f"{store}-2").code == 0


def test_a_rotation_that_cannot_begin_creates_no_key(
    goatherd: Goatherd, store: str, signer: str, tmp_path: Path
) -> None:
    assert goatherd("init", "--provider", store).code == 0
    changed = ("rotate", "--anchor", signer, "--create-key", "--provider")
    without_servers = goatherd(*changed, store)
    assert without_servers.code == 2
    assert "no server is listed" in without_servers.err
    assert goatherd(*changed, f"{store}-mistyped", "--unsafe-without-nodes").code == 7
    assert not (tmp_path / "root.json").exists()
    assert goatherd(*changed, store, "--unsafe-without-nodes").code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("rotate", "--direct"), "--direct needs --anchor"),
        (("init", "--direct"), "--direct needs --anchor"),
        (("rotate", "--working-root", "--remove-anchor"), "cannot be combined"),
        (("rotate", "--working-root", "--rollback"), "cannot be combined with --rollback"),
        (("init", "--working-lifetime", "7d"), "--working-lifetime needs --anchor"),
        (("init", "--anchor", "local:/no", "--direct", "--lifetime", "7d"), "--direct cannot be combined with --life"),
        (("rotate", "--anchor", "local:/no", "--direct", "--working-lifetime", "7d"), "cannot be combined with --work"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    goatherd: Goatherd, store: str, arguments: tuple[str, ...], told: str
) -> None:
    result = goatherd(*arguments, "--provider", store)
    assert result.code == 2
    assert told in result.err


def test_no_lifetime_that_is_given_is_ignored(
    goatherd: Goatherd, store: str, signer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOATHERD_SIGNERS", signer)

    def days_left(command: str, *options: str) -> int:
        done = goatherd(command, *options, "--provider", store, "--json")
        assert done.code in (0, EXIT_FINDINGS), done.err
        expires = datetime.fromisoformat(goatherd("show", "--provider", store, "--json").json["current"]["expiration"])
        return round((expires - datetime.now(UTC)) / timedelta(days=1))

    rotate = ("rotate", "--unsafe-without-nodes")
    assert days_left("init", "--anchor", signer, "--create-key", "--lifetime", "7d") == 7
    assert days_left(*rotate) == 30
    assert days_left(*rotate, "--lifetime", "8d") == 8
    assert days_left(*rotate, "--working-lifetime", "9d", "--lifetime", "8d") == 9
    current = goatherd("show", "--provider", store, "--json").json["current"]["id"]
    revoke = ("revoke", current, "--reason", "test", "--yes", "--unsafe-without-nodes")
    assert days_left(*revoke, "--lifetime", "10d") == 10
    assert goatherd(*rotate, "--remove-anchor", "--working-lifetime", "9d", "--provider", store).code == 2
    assert days_left(*rotate, "--remove-anchor", "--lifetime", "31d") == 31
    for refused in (rotate, ("rotate", "--plan")):
        result = goatherd(*refused, "--working-lifetime", "9d", "--provider", store)
        assert result.code == 2
        assert "--lifetime sets how long" in result.err


def test_a_rotation_says_whether_and_until_when_the_previous_root_can_be_restored(
    goatherd: Goatherd, store: str, signer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOATHERD_SIGNERS", signer)
    alone = ("--unsafe-without-nodes", "--provider", store)
    goatherd("init", "--provider", store)
    assert "until then `goatherd restore` can make it sign again" in goatherd("rotate", *alone).out
    assert goatherd("restore", *alone).code == 0
    assert "cannot make it sign again" in goatherd("rotate", "--anchor", signer, "--create-key", *alone).out
    assert "rotation.not_restorable" in goatherd("restore", *alone).err
    # The root is renewed when it has 10 days left, and its key is kept for 30 days.
    assert goatherd("rotate", "--lifetime", "10d", *alone).code == 0
    expires = goatherd("show", "--provider", store, "--json").json["current"]["expiration"]
    expires = format_utc(read_iso(expires))
    told = f"until shortly before it expires at {expires}, `goatherd restore` can make it sign again"
    assert told in goatherd("rotate", *alone).out
    assert goatherd("restore", *alone).code == 0


def test_a_lifetime_in_the_file_is_that_of_a_root_without_an_anchor(
    goatherd: Goatherd, store: str, signer: str, tmp_path: Path
) -> None:
    (tmp_path / "goatherd.toml").write_text('[rotation]\nlifetime = "90d"\nworking_lifetime = "20d"\n')
    assert "valid for 20d" in goatherd("init", "--anchor", signer, "--create-key", "--provider", store).out
    assert "valid for 90d" in goatherd("init", "--provider", f"{store}-2").out


@pytest.mark.slow
def test_a_server_process_signs_with_its_signer_and_the_cluster_goes_back_to_a_working_root(
    goatherd: Goatherd,
    store: str,
    signer: str,
    tmp_path: Path,
    serve: Callable[..., Serving],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    goatherd("init", "--anchor", signer, "--create-key", "--direct", "--provider", store)
    without = serve("--data", str(tmp_path / "without"), "--provider", store)
    assert asyncio.run(can_create_session(without.url)) is False
    status = goatherd("status", "--provider", store, "--node", without.url)
    assert "no signer in the configuration of this machine holds the key" in status.out
    monkeypatch.setenv("GOATHERD_SIGNERS", signer)
    status = goatherd("status", "--provider", store, "--node", without.url)
    assert "cannot sign as the root: signer.invalid_configuration" in status.out
    without.stop()

    server = serve("--data", str(tmp_path / "data"), "--provider", store, "--root-signer", signer)
    assert asyncio.run(can_create_session(server.url)) is True
    refused = goatherd("rotate", "--provider", store, "--node", server.url)
    assert "direct mode" in refused.err
    assert "--working-root" in refused.err
    (tmp_path / "root.json").rename(tmp_path / "away.json")
    assert asyncio.run(can_create_session(server.url)) is False
    (tmp_path / "away.json").rename(tmp_path / "root.json")
    asyncio.run(wait_for_session(server.url))
    back = goatherd("rotate", "--working-root", "--provider", store, "--node", server.url)
    assert back.code == 0, back.err
    assert "is in an HSM or a KMS; the store never held it" in back.out
    assert "goatherd retire" not in back.out
    assert len(secrets_in(tmp_path / "keys")) == 1
    (tmp_path / "root.json").rename(tmp_path / "away.json")
    assert asyncio.run(can_create_session(server.url)) is True
    assert server.stop() == 0
    log = server.stderr.read_text()
    assert "signer.failed" in log
    assert "signer.recovered" in log


class Listener:
    """An attacker's address that poses as a Vault, and records what is sent to it."""

    def __enter__(self) -> Listener:
        self.received: list[bytes] = []
        received = self.received

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                received.append(self.request.recv(65536))

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.uri = f"transit://127.0.0.1:{self._server.server_address[1]}/transit/key"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["anchor", "another anchor", "direct mode"])
def test_no_command_sends_credentials_where_a_thief_of_the_root_who_writes_the_store_says(
    goatherd: Goatherd,
    store: str,
    signer: str,
    serve: Callable[..., Serving],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """A signer gets the operator's token, may read any file and load any library."""
    goatherd("init", "--anchor", signer, "--create-key", "--provider", store)
    server = serve("--data", str(Path(store.removeprefix("file://")).parent / "data"), "--provider", store)
    monkeypatch.setenv("VAULT_TOKEN", "the-operator-s-token")
    monkeypatch.setenv("GOATHERD_SIGNERS", signer)
    on = ("--provider", store, "--node", server.url)
    with Listener() as thief:
        asyncio.run(rewrite_identity(store, thief.uri, where))
        for command in (
            ("doctor",),
            ("status",),
            ("rotate", "--plan"),
            ("rotate",),
            ("rotate", "--rollback"),
            ("restore",),
            ("retire", "--yes", "--grace", "0s"),
            ("revoke", "current", "--reason", "test", "--plan"),
            ("revoke", "current", "--reason", "test", "--yes"),
            ("controller", "--once"),
        ):
            goatherd(*command, *on)
            assert thief.received == [], command


async def rewrite_identity(store: str, uri: str, where: str) -> None:
    """Write what a thief of the working root writes, who wants the operator's tools to call an address."""
    provider, secret_id = open_provider(store)
    async with provider:
        found = await provider.read(secret_id, CURRENT)
        document, now_ms = decode_document(found.value.reveal()), SystemClock().now_ms()
        generation = document.generation + 1
        if where == "anchor":
            tree = document_tree(replace(document, generation=generation))
            tree["anchor"] = {"id": document.anchor, "signer": uri}
            signature = sign_tree(tree, by=document.current, generation=generation, now_ms=now_ms)
            value = json.dumps({**tree, MEMBER: signature.to_json()}).encode()
        else:
            own = await make_own_identity(uri, generation=generation, now_ms=now_ms, is_direct=where == "direct mode")
            value = encode_document(own)
        await provider.write(secret_id, SecretBytes(value), expected=found.version.id)


@pytest.mark.slow
def test_a_signer_that_the_configuration_does_not_name_is_named_by_the_error_with_its_key_and_the_option(
    goatherd: Goatherd, store: str, signer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = goatherd("init", "--anchor", signer, "--create-key", "--provider", store)
    assert f'signers = ["{signer}"]' in made.out
    anchor = goatherd("show", "--provider", store, "--json").json["anchor"]
    alone = ("--unsafe-without-nodes", "--provider", store)
    for command in (("rotate",), ("revoke", "current", "--reason", "test", "--yes")):
        refused = goatherd(*command, *alone)
        assert refused.code != 0
        assert (
            f"holds the key of anchor {anchor['id']}, which has the fingerprint {anchor['fingerprint']}" in refused.err
        )
        assert "GOATHERD_SIGNERS" in refused.err
    monkeypatch.setenv("GOATHERD_SIGNERS", signer)
    assert goatherd("rotate", *alone).code == 0


async def can_create_session(url: str) -> bool:
    async with NodeClient(url, timeout=ANSWER) as client:
        try:
            await client.create_session()
        except NodeRefusedError as error:
            if error.status != 503:
                raise
            return False
        return True


async def wait_for_session(url: str) -> None:
    async with asyncio.timeout(HANG):
        while not await can_create_session(url):
            await asyncio.sleep(0.1)
