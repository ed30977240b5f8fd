"""Direct mode by commands: an identity without a private key, a server with a signer, the return to a working root."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from goatherd.cli.main import EXIT_FINDINGS
from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.errors import NodeRefusedError, SignerKeyNotFoundError
from goatherd.identity.document import encode_document
from goatherd.plugins import open_provider
from goatherd.providers.values import CURRENT, SecretBytes
from goatherd.remote_keys import RootSigner
from goatherd.signers import SignerKey, verified
from goatherd.signers.local import LocalSigner
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
    status = goatherd("status", "--provider", store)
    assert signer in status.out
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


def test_no_lifetime_that_is_given_is_ignored(goatherd: Goatherd, store: str, signer: str) -> None:
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
    goatherd: Goatherd, store: str, signer: str
) -> None:
    alone = ("--unsafe-without-nodes", "--provider", store)
    goatherd("init", "--provider", store)
    assert "until then `goatherd restore` can make it sign again" in goatherd("rotate", *alone).out
    assert goatherd("restore", *alone).code == 0
    assert "cannot make it sign again" in goatherd("rotate", "--anchor", signer, "--create-key", *alone).out
    assert "rotation.not_restorable" in goatherd("restore", *alone).err
    # The root is renewed when it has 10 days left, and its key is kept for 30 days.
    assert goatherd("rotate", "--lifetime", "10d", *alone).code == 0
    expires = goatherd("show", "--provider", store, "--json").json["current"]["expiration"]
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
    assert "only the identity in the store names this signer" in status.out
    with monkeypatch.context() as named:
        named.setenv("GOATHERD_SERVE_ROOT_SIGNERS", signer)
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
    assert "is in its signer; the store never held it" in back.out
    assert "goatherd retire" not in back.out
    assert len(secrets_in(tmp_path / "keys")) == 1
    (tmp_path / "root.json").rename(tmp_path / "away.json")
    assert asyncio.run(can_create_session(server.url)) is True
    assert server.stop() == 0
    log = server.stderr.read_text()
    assert "signer.failed" in log
    assert "signer.recovered" in log


@pytest.mark.slow
def test_no_command_calls_a_signer_that_only_an_attacker_has_written_into_the_store(
    goatherd: Goatherd, store: str, tmp_path: Path, serve: Callable[..., Serving], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signer gets this process's credentials, may read any file and load any library."""
    called: list[str] = []

    def sign(self: RootSigner, _: bytes) -> bytes:
        called.append(self.uri)
        raise self.error or SignerKeyNotFoundError("no key", signer="local", key=self.uri, operation="sign")

    monkeypatch.setattr(RootSigner, "sign", sign)
    (tmp_path / "goatherd.toml").write_text(f'[audit]\nlog = "{tmp_path}/audit.jsonl"\n')
    goatherd("init", "--provider", store)
    server = serve("--data", str(tmp_path / "data"), "--provider", store)
    evil = f"local:{tmp_path}/evil.json"
    asyncio.run(replace_identity(store, evil))
    for command in (
        ("status",),
        ("doctor",),
        ("rotate", "--working-root"),
        ("rotate", "--working-root", "--plan"),
        ("rotate", "--rollback"),
        ("restore",),
        ("retire", "--yes", "--grace", "0s"),
        ("revoke", "root-of-an-attacker", "--reason", "test", "--plan"),
    ):
        goatherd(*command, "--provider", store, "--node", server.url)
        assert called == [], command
    shown = goatherd("status", "--provider", store, "--node", server.url)
    assert "belongs to another identity" in shown.out
    assert "only the identity in the store names this signer" in shown.out
    monkeypatch.setenv("GOATHERD_SERVE_ROOT_SIGNERS", evil)
    goatherd("status", "--provider", store, "--node", server.url)
    assert set(called) == {evil}, "what the operator names is used"


async def replace_identity(store: str, signer: str) -> None:
    """Write what an attacker writes who has no root's key: a correctly signed identity of their own."""
    provider, secret_id = open_provider(store)
    async with provider:
        before = (await provider.read(secret_id, CURRENT)).version
        own = await make_own_identity(signer, generation=2, now_ms=SystemClock().now_ms(), is_direct=True)
        await provider.write(secret_id, SecretBytes(encode_document(own)), expected=before.id)


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
