"""Operations through the public names: stores and servers are given as URLs, and errors name the wrong one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, get_overloads

import pytest

import goatherd
from goatherd.errors import (
    AuditError,
    ConfigurationError,
    IdentityExistsError,
    IllegalStepError,
    NotRestorableError,
    ObstructedError,
    PluginNotFoundError,
    RotationBusyError,
    SecretNotFoundError,
    SignerConfigurationError,
    SignerKeyNotFoundError,
    SignerMisuseError,
    UnconfirmedError,
    UnsignedIdentityError,
)
from goatherd.identity.document import decode_document, encode_document, sign_document
from goatherd.identity.session import OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.operations.rotate import rotate
from tests.ports import free_ports
from tests.unit.providers.test_lifetime import Connected


@dataclass(frozen=True)
class Herd:
    """Two servers in this process that share an identity."""

    store: str
    nodes: list[str]
    directory: Path


@pytest.fixture
async def herd(tmp_path: Path) -> AsyncIterator[Herd]:
    store = f"file://{tmp_path}/keys/root"
    await goatherd.init(store)
    nodes = [f"http://127.0.0.1:{port}" for port in free_ports(2)]
    async with AsyncExitStack() as stack:
        for name, url in zip(("one", "two"), nodes, strict=True):
            server = goatherd.Server(tmp_path / name, settings_provider=store, peers=nodes)
            await stack.enter_async_context(server.listen(port=int(url.rpartition(":")[2])))
        yield Herd(store, nodes, tmp_path)


def test_a_synchronous_program_needs_one_line_for_each_call(tmp_path: Path):
    store = f"file://{tmp_path}/keys/root"
    document = asyncio.run(goatherd.init(store))
    report = asyncio.run(goatherd.rotate(store, unsafe_without_nodes=True))
    assert report.from_id == document.current.id
    assert asyncio.run(goatherd.read_identity(store)).current.id == report.current_id
    assert asyncio.run(goatherd.read_identity(store, "stable")).current.id == report.current_id


@pytest.mark.slow
async def test_a_root_is_rotated_restored_revoked_and_retired_by_urls(herd: Herd):
    first = (await goatherd.read_identity(herd.store)).current.id
    trail = herd.directory / "audit.jsonl"
    report = await goatherd.rotate(herd.store, herd.nodes, audit_log=trail)
    assert report.from_id == first
    assert trail.read_text().count("\n") > 2
    status = await goatherd.status(herd.store, herd.nodes)
    assert status.is_in_step
    assert [server.signs_with for server in status.servers] == [report.current_id] * 2
    restored = await goatherd.restore(herd.store, herd.nodes)
    assert restored.current_id == first
    with pytest.raises(UnconfirmedError):
        await goatherd.revoke(herd.store, herd.nodes, root_id=report.current_id, reason="stolen")
    await goatherd.revoke(herd.store, herd.nodes, root_id=report.current_id, reason="stolen", confirmed=True)
    with pytest.raises(NotRestorableError):
        await goatherd.restore(herd.store, herd.nodes, root_id=report.current_id)
    with pytest.raises(UnconfirmedError):
        await goatherd.retire(herd.store, herd.nodes)
    retirement = await goatherd.retire(herd.store, herd.nodes, confirmed=True)
    assert retirement.report.current_id == first


@pytest.mark.slow
async def test_an_anchor_is_named_by_a_uri_or_an_open_signer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GOATHERD_SIGNER_SEAL_KEY", bytes(range(32)).hex())
    store, first, second = f"file://{tmp_path}/root", f"local:{tmp_path}/first.json", f"local:{tmp_path}/second.json"
    alone: Any = {"unsafe_without_nodes": True}
    await goatherd.init(store, anchor=first, create_key=True)
    async with goatherd.open_signer(second) as signer:
        with pytest.raises(SignerKeyNotFoundError):
            await goatherd.rotate(store, anchor=second, signer=first, **alone)
        plan = await goatherd.plan_rotation(store, anchor=signer, signer=first)
        assert any("the anchor cannot sign" in one for one in plan.obstacles)
        await goatherd.rotate(store, anchor=signer, signer=first, create_key=True, **alone)
        with pytest.raises(SignerConfigurationError, match="no signer in the configuration of this machine holds"):
            await goatherd.rotate(store, signer=first, **alone)
        assert len(await signer.sign(b"it has read its key")) == 96
        with pytest.raises(SignerConfigurationError, match="no signer in the configuration of this machine holds"):
            await goatherd.rotate(store, **alone)
        monkeypatch.delenv("GOATHERD_SIGNER_SEAL_KEY")  # so only the open signer can sign
        root_id = (await goatherd.read_identity(store)).current.id
        await goatherd.revoke(store, root_id=root_id, reason="stolen", confirmed=True, signer=signer, **alone)
        document = await goatherd.read_identity(store)
        assert document.anchor is not None
        assert root_id in document.revoked_ids
        await goatherd.rotate(store, remove_anchor=True, signer=signer, **alone)
        assert len(await signer.sign(b"it is still open")) == 96
    assert (await goatherd.read_identity(store)).anchor is None


async def test_a_new_identity_has_an_anchor_if_its_signer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GOATHERD_SIGNER_SEAL_KEY", bytes(range(32)).hex())
    store, uri = f"file://{tmp_path}/keys/root", f"local:{tmp_path}/anchor.json"
    for wrong in ({"create_key": True}, {"anchor": object()}):
        with pytest.raises(ConfigurationError):
            await goatherd.init(store, **wrong)  # type: ignore[arg-type]
    async with goatherd.open_signer(uri) as signer:
        document = await goatherd.init(store, anchor=signer, create_key=True)
        assert document.anchor is not None
        with pytest.raises(ConfigurationError):
            await goatherd.rotate(store, anchor=signer, remove_anchor=True, unsafe_without_nodes=True)
        report = await goatherd.rotate(store, signer=uri, unsafe_without_nodes=True)
    assert report.from_id == document.current.id


async def test_a_signer_that_the_program_has_closed_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GOATHERD_SIGNER_SEAL_KEY", bytes(range(32)).hex())
    store = f"file://{tmp_path}/root"
    async with goatherd.open_signer(f"local:{tmp_path}/anchor.json") as signer:
        await goatherd.init(store, anchor=signer, create_key=True)
    with pytest.raises(SignerMisuseError, match="the signer is closed"):
        await goatherd.rotate(store, signer=signer, unsafe_without_nodes=True)


async def test_no_key_is_created_for_a_rotation_that_cannot_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GOATHERD_SIGNER_SEAL_KEY", bytes(range(32)).hex())
    store, key = f"file://{tmp_path}/keys/root", tmp_path / "anchor.json"
    rotate = partial(goatherd.rotate, anchor=f"local:{key}", create_key=True)
    with pytest.raises(SecretNotFoundError):
        await rotate(store, unsafe_without_nodes=True)
    await goatherd.init(store)
    with pytest.raises(ConfigurationError, match="no server is listed"):
        await rotate(store)
    with pytest.raises(AuditError):
        await rotate(store, unsafe_without_nodes=True, audit_log=tmp_path / "missing" / "audit.jsonl")
    with pytest.raises(ConfigurationError, match="lifetime"):
        await rotate(store, unsafe_without_nodes=True, policy=goatherd.Policy(lifetime=timedelta(minutes=1)))
    (port,) = free_ports(1)
    with pytest.raises(ObstructedError):
        await rotate(store, [f"http://127.0.0.1:{port}"])
    await goatherd.rotate(store, unsafe_without_nodes=True, to_phase="prepared")
    with pytest.raises(RotationBusyError):
        await rotate(store, unsafe_without_nodes=True)
    await goatherd.cancel(store)
    provider, secret_id = goatherd.open_provider(store)
    async with provider:
        signed = await provider.get_secret(secret_id)
        altered = signed.reveal().replace(b"asked for by the operator", b"asked for by an attacker")
        assert altered != signed.reveal()
        await provider.update_secret(secret_id, altered)
        with pytest.raises(UnsignedIdentityError):
            await rotate(store, unsafe_without_nodes=True)
        document = replace(decode_document(signed.reveal()), extra={"x": "y" * 20_000})
        await provider.update_secret(secret_id, encode_document(sign_document(document, document.last_updated or 0)))
        with pytest.raises(IllegalStepError, match="too large for another rotation"):
            await rotate(store, unsafe_without_nodes=True)
        await provider.update_secret(secret_id, signed)
    assert not key.exists()
    await rotate(store, unsafe_without_nodes=True)
    document = await goatherd.read_identity(store)
    assert document.anchor is not None


async def test_only_an_expired_root_is_replaced_as_expired(herd: Herd):
    with pytest.raises(IllegalStepError, match="has not expired"):
        await goatherd.rotate(herd.store, herd.nodes, replace_expired=True)
    for wrong in ({"to_phase": "published"}, {"remove_anchor": True}, {"health": [object()]}):
        with pytest.raises(ConfigurationError, match="replace_expired"):
            await goatherd.rotate(herd.store, herd.nodes, replace_expired=True, **wrong)  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="no server is listed"):
        await goatherd.rotate(herd.store, replace_expired=True)


def test_a_typed_program_can_decide_at_run_time_whether_to_replace_an_expired_root() -> None:
    kinds = {each.__annotations__["replace_expired"]: each.__annotations__["return"] for each in get_overloads(rotate)}
    assert kinds == {
        "Literal[False]": "Report",
        "Literal[True]": "ReplacementReport",
        "bool": "Report | ReplacementReport",
    }


def test_a_typed_program_can_name_a_version_by_its_label() -> None:
    assert "str" in goatherd.Store.read.__annotations__["at"].split(" | ")


async def test_an_expired_root_is_replaced(tmp_path: Path):
    store = f"file://{tmp_path}/root"
    root = OwnedSession.generate(session_id="a" * 24, owner="root", now_ms=0)
    async with goatherd.open_store(store) as opened:
        await opened.provider.create(opened.secret_id, goatherd.encode_document(create_document(root, 0)))
        report = await goatherd.rotate(opened, replace_expired=True, unsafe_without_nodes=True)
    assert report.is_complete
    assert report.expired_id == root.id
    assert (await goatherd.read_identity(store)).current.id == report.current_id != root.id


async def test_a_lost_anchor_is_dropped_without_its_signature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GOATHERD_SIGNER_SEAL_KEY", bytes(range(32)).hex())
    store, key = f"file://{tmp_path}/root", tmp_path / "anchor.json"
    before = await goatherd.init(store, anchor=f"local:{key}", create_key=True)
    key.unlink()
    trail = tmp_path / "audit.jsonl"
    after = await goatherd.drop_lost_anchor(store, reason="the token is broken", audit_log=trail)
    assert after.anchor is None
    assert after.current == before.current
    assert after.history[-1].reason == "the token is broken"
    assert "lost-anchor-dropped" in trail.read_text()
    with pytest.raises(IllegalStepError):
        await goatherd.drop_lost_anchor(store)
    await goatherd.rotate(store, unsafe_without_nodes=True)


@pytest.mark.slow
async def test_an_interrupted_rotation_is_resumed_cancelled_or_rolled_back(herd: Herd):
    async with goatherd.open_store(herd.store) as store:
        first = (await store.read())[1].current.id
        await goatherd.rotate(store, herd.nodes, to_phase="published")
        assert (await goatherd.status(store, herd.nodes)).progress is not None
        await goatherd.cancel(store, herd.nodes, reason="wrong day")
        await goatherd.rotate(store, herd.nodes, to_phase="activated")
        await goatherd.roll_back(store, herd.nodes)
        assert (await goatherd.read_identity(store)).current.id == first
        await goatherd.rotate(store, herd.nodes, to_phase="prepared")
        assert (await goatherd.plan_rotation(store, herd.nodes)).steps
        report = await goatherd.resume(store, (url for url in herd.nodes))
        assert report.phase.value == "steady"
        assert report.current_id != first


async def test_a_settings_json_that_a_migration_has_removed_is_not_missed(tmp_path: Path):
    store, path = f"file://{tmp_path}/keys/root", tmp_path / "server/settings.json"
    path.parent.mkdir()
    await goatherd.FileSettings.create(path, goatherd.create_identity(goatherd.generate_session("root")))
    await goatherd.migrate(store, path, remove_key=True)
    for again in (path, path.parent):
        (outcome,) = (await goatherd.migrate(store, again, remove_key=True)).outcomes
        assert (outcome.is_new, outcome.is_read_back, outcome.settings) == (False, True, path)
    other = f"file://{tmp_path}/other/root"
    with pytest.raises(ConfigurationError, match="does not hold its root") as caught:
        await goatherd.migrate(other, path)
    assert f"{tmp_path}/keys/root held the identity" in caught.value.hint
    await goatherd.init(other)
    with pytest.raises(ConfigurationError, match="does not hold its root"):
        await goatherd.migrate(other, path)


async def test_a_settings_json_is_migrated(tmp_path: Path):
    root = goatherd.generate_session("root")
    settings = tmp_path / "data" / "settings.json"
    await goatherd.FileSettings.create(settings, goatherd.create_identity(root))
    store = f"file://{tmp_path}/keys/root"
    planned = await goatherd.migrate(store, settings, dry_run=True)
    assert planned.outcomes[0].current_id == root.id
    with pytest.raises(SecretNotFoundError):
        await goatherd.read_identity(store)
    migration = await goatherd.migrate(store, str(settings), remove_key=True)
    assert migration.outcomes[0].is_new
    assert not settings.exists()
    assert (await goatherd.read_identity(store)).current == root


@pytest.mark.parametrize("kind", ["URI", "cloudConfig", "settings", "pair", "open"])
async def test_a_store_is_named_in_several_ways(tmp_path: Path, kind: str):
    path = f"{tmp_path}/keys/root"
    await goatherd.init(f"file://{path}")
    config = {"provider": "file", "secretId": path}
    async with goatherd.open_store(f"file://{path}") as opened:
        named = {
            "URI": f"file://{path}",
            "cloudConfig": config,
            "settings": {"type": "cloud", "cloudConfig": config},
            "pair": goatherd.open_provider(f"file://{path}"),
            "open": opened,
        }[kind]
        status = await goatherd.status(named)
        assert status.document.generation == 1
        with pytest.raises(IdentityExistsError):
            await goatherd.init(named)


async def test_a_provider_of_the_caller_is_not_closed():
    provider = Connected()
    await goatherd.init((provider, "root"))
    status = await goatherd.status((provider, "root"))
    document = goatherd.decode_document((await provider.get_secret("root")).reveal())
    assert document.current == status.document.current
    assert provider.noted == ["opened"]
    await provider.aclose()
    assert provider.noted == ["opened", "closed"]


async def test_each_organization_has_its_own_identity_and_a_mistyped_one_changes_no_other(tmp_path: Path):
    store = f"file://{tmp_path}/keys/{{org}}/root"
    north = await goatherd.init(store, org="north")
    assert (await goatherd.read_identity(store, org="north")).current == north.current
    with pytest.raises(SecretNotFoundError):
        await goatherd.read_identity(store, org="south")
    # SECURITY: the address without {org} is the same identity for every organization.
    shared = f"file://{tmp_path}/keys/north/root"
    for call in (
        goatherd.init(shared, org="south"),
        goatherd.rotate(shared, org="south", unsafe_without_nodes=True),
        goatherd.read_identity(shared, org="south"),
    ):
        with pytest.raises(ConfigurationError, match="same identity as every other one"):
            await call
    async with goatherd.open_store(store, org="north") as opened:
        with pytest.raises(ConfigurationError, match="open for organization 'north'"):
            await goatherd.status(opened, org="south")


@pytest.mark.parametrize(("name", "is_asked"), [("root", False), ("{org}/root", True)])
async def test_whether_the_organization_is_right_is_asked_only_where_another_has_another_secret(
    tmp_path: Path, name: str, is_asked: bool
):
    with pytest.raises(SecretNotFoundError) as missing:
        await goatherd.status(f"file://{tmp_path}/{name}")
    assert ("is --org right?" in missing.value.hint) == is_asked


async def test_a_listener_that_raises_does_not_leave_the_rotation_half_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    store = f"file://{tmp_path}/keys/root"
    await goatherd.init(store)

    def listen(event: object) -> None:
        raise AttributeError(type(event).__name__)

    report = await goatherd.rotate(store, unsafe_without_nodes=True, on_event=listen)
    assert report.phase == "steady"
    assert "a listener failed with the event PhaseEntered" in caplog.messages


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda path: goatherd.open_provider(path), "the address of a store must be a string, not a PosixPath"),
        (lambda path: goatherd.open_signer(path), "the URI of a signer must be a string, not a PosixPath"),
        (lambda path: goatherd.settings_from_options(path), "settings must be a mapping or the URI of a secret"),
        (lambda _: goatherd.settings_from_options({"type": "file"}), 'type "file" needs a path'),
        (lambda _: goatherd.open_store({"provider": "file"}).__aenter__(), "secretId must be a string"),
        (lambda _: goatherd.NodeClient(8101), "the URL must be a string, not a int"),
        (lambda path: goatherd.migrate(f"file://{path}/root", None), "a NoneType cannot be used as a source"),
        (lambda path: goatherd.migrate(f"file://{path}/root", [1]), "a int cannot be used as a source"),
        (lambda _: goatherd.create_session_commit(goatherd.generate_session(), "root"), "a str is not a session"),
    ],
)
async def test_an_argument_of_another_type_is_named(tmp_path: Path, call: Callable[[Path], Any], text: str):
    with pytest.raises(ConfigurationError, match=text) as caught:
        await call(tmp_path)
    assert caught.value.hint
    assert "--help" not in caught.value.hint


async def test_mistakes_are_named_with_what_is_expected(tmp_path: Path):
    store = f"file://{tmp_path}/keys/root"
    await goatherd.init(store)
    revoke = partial(goatherd.revoke, store, "http://127.0.0.1:1", root_id="x", reason="stolen", confirmed=True)
    mixed = [goatherd.NodeClient("http://127.0.0.1:1"), "http://127.0.0.1:2"]
    revoke_mixed = goatherd.revoke(store, mixed, root_id="x", reason="stolen", confirmed=True)  # type: ignore[arg-type]
    for call, text in (
        (goatherd.rotate(store), "no server"),
        (goatherd.rotate(store, "localhost"), "localhost"),
        (goatherd.rotate(store, [8101]), "a int cannot be used as a server"),
        (revoke_mixed, "some servers are given as clients, and some as URLs"),
        (goatherd.rotate(store, ["http://127.0.0.1:1"], to_phase="publishd"), "not a phase"),
        (goatherd.rotate(store, unsafe_without_nodes=True, policy="90d"), "a str is not a policy"),  # type: ignore[arg-type]
        (goatherd.status(tmp_path), "cannot be used as a store"),
        (goatherd.status(goatherd.open_store(store)), "cannot be used as a store"),
        (goatherd.migrate(store, tmp_path / "settings.json"), "does not exist"),
        (goatherd.migrate(store, tmp_path, policy="90d"), "a str is not a policy"),  # type: ignore[arg-type]
        (goatherd.migrate(store, tmp_path.glob("*/settings.json")), "no source is given"),
        (goatherd.status({"type": "cloud", "cloudConfig": "aws"}), "cloudConfig"),
        (goatherd.status("/srv/keys/root"), "not the URI of a store"),
        (goatherd.revoke(store, unsafe_without_nodes=True, root_id="x", reason=""), "reason"),
        (goatherd.rotate(store, unsafe_without_nodes=True, audit_log=7), "audit_log must be a path, not 7"),  # type: ignore[call-overload]
        (goatherd.rotate(store, unsafe_without_nodes=True, audit_log=f"{store}.jsonl"), "audit_log must be a path"),
        (revoke(distrust="127.0.0.1:8101"), "'127.0.0.1:8101' has no scheme"),
        (revoke(trust_alone="127.0.0.1:8101"), "'127.0.0.1:8101' has no scheme"),
    ):
        with pytest.raises(ConfigurationError, match=text) as caught:
            await call
        assert caught.value.hint
    with pytest.raises(ConfigurationError, match="lifetime must be a timedelta, not a int"):
        goatherd.Policy(lifetime=90)
    with pytest.raises(ConfigurationError, match="not URLs"):
        goatherd.Rotator(goatherd.MemorySecretProvider(), "root", ["http://127.0.0.1:8101"])
    with pytest.raises(ConfigurationError, match="must not be a URI"):
        goatherd.CloudSecretSettings(store, "file")
    with pytest.raises(TypeError, match="reveal"):
        goatherd.decode_document(await goatherd.open_provider(store)[0].get_secret("root"))
    with pytest.raises(TypeError, match="must be bytes, not dict"):
        await goatherd.open_provider(store)[0].update_secret("root", {})
    with pytest.raises(PluginNotFoundError) as unknown:
        await goatherd.status("flie:///srv/keys/root")
    assert "'file'" in unknown.value.hint
    with pytest.raises(TypeError, match="to_phas"):
        await goatherd.rotate(store, unsafe_without_nodes=True, to_phas="published")  # type: ignore[call-arg]
