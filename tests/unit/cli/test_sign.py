"""`goatherd restore --signature`: what it shows and writes, and what it does not change."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from goatherd.cluster.client import NodeClient
from goatherd.cluster.server_answers import ServerIdentity
from goatherd.identity.document import IdentityDocument, decode_document, document_tree, encode_document
from goatherd.identity.strict_json import to_pretty_json
from goatherd.plugins import open_provider
from goatherd.providers.values import CURRENT

from .conftest import Goatherd


def stored(store: str) -> IdentityDocument:
    async def read() -> IdentityDocument:
        provider, secret_id = open_provider(store)
        async with provider:
            return decode_document((await provider.read(secret_id, CURRENT)).value.reveal())

    return asyncio.run(read())


def write(store: str, **members: object) -> None:
    """Write the next generation into the store without a signature, as another tool could."""

    async def put() -> None:
        provider, secret_id = open_provider(store)
        async with provider:
            found = await provider.read(secret_id, CURRENT)
            document = decode_document(found.value.reveal())
            tree = {**document_tree(document), "generation": document.generation + 1, **members}
            raw = encode_document(decode_document(to_pretty_json(tree)))
            await provider.write(secret_id, raw, label=CURRENT, expected=found.version.id)

    asyncio.run(put())


def test_a_signed_identity_needs_nothing(goatherd: Goatherd, store: str) -> None:
    goatherd("init", "--provider", store)
    result = goatherd("sign", "--accept", "--provider", store)
    assert result.code == 0
    assert "the current root has signed it" in result.out
    assert stored(store).generation == 1
    shown = goatherd("show", "--provider", store)
    assert "signature   by the current root" in shown.out


def test_what_changed_is_shown_and_nothing_is_written_without_an_option(
    goatherd: Goatherd, store: str, tmp_path: Path
) -> None:
    goatherd("init", "--provider", store)
    write(store, newer={"a": 1})
    assert "signature   invalid" in goatherd("show", "--provider", store).out
    doctor = goatherd("doctor", "--provider", store, "--json").json
    (check,) = [one for one in doctor["checks"] if one["name"] == "signature"]
    assert check["level"] == "fail"
    assert "goatherd restore --signature" in check["hint"]
    for refused in (("rotate", "--unsafe-without-nodes"), ("retire", "--yes"), ("revoke", "x", "--reason", "y")):
        result = goatherd(*refused, "--provider", store)
        assert result.code != 0
    assert "was signed at generation 1 and changed since" in goatherd("retire", "--yes", "--provider", store).err
    exported = goatherd("export", str(tmp_path / "settings.json"), "--provider", store)
    assert "was signed at generation 1 and changed since" in exported.err, "a server would trust what was added"
    assert not (tmp_path / "settings.json").exists()
    result = goatherd("sign", "--provider", store)
    assert result.code == 11
    assert "a tool that does not sign has written" in result.out
    assert "newer was added" in result.out
    assert "--take-back" in result.out
    shown = goatherd("sign", "--provider", store, "--json").json
    assert (shown["signature"], shown["signedVersion"], shown["written"]) == ("outdated", "1", None)
    assert shown["changes"] == ["newer was added"]
    assert stored(store).generation == 2


def test_accept_signs_the_change_and_keeps_it(goatherd: Goatherd, store: str) -> None:
    goatherd("init", "--provider", store)
    write(store, newer={"a": 1})
    result = goatherd("sign", "--accept", "--provider", store, "--audit-log", "trail.jsonl")
    assert result.code == 0
    assert "wrote generation 3" in result.out
    document = stored(store)
    assert document.is_signed
    assert document.extra == {"newer": {"a": 1}}
    assert goatherd("retire", "--yes", "--provider", store).code == 0
    trail = goatherd("audit", "show", "trail.jsonl", "--json").json
    (record,) = [one for one in trail["records"] if one["event"] == "identity-signed"]
    assert record["data"]["generation"] == 3
    assert goatherd("audit", "verify", "trail.jsonl", "--provider", store).code == 0


def test_take_back_writes_the_last_signed_version_again(goatherd: Goatherd, store: str) -> None:
    goatherd("init", "--provider", store)
    write(store, newer={"a": 1}, generation=2**53 - 1)
    result = goatherd("sign", "--take-back", "--provider", store, "--json")
    assert result.json["written"] == 2
    document = stored(store)
    assert (document.generation, document.extra, document.is_signed) == (2, {}, True)


@pytest.mark.parametrize("way", ["--accept", "--take-back"])
def test_nothing_is_signed_while_a_listed_server_has_used_a_later_identity(
    goatherd: Goatherd, store: str, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    goatherd("init", "--provider", store)
    document = stored(store)
    write(store, newer={"a": 1})

    async def identity(node: NodeClient) -> ServerIdentity:
        return ServerIdentity(
            signer="later", roots=(document.current.id,), generation=7, digest="0" * 64, has_seen_signed=True
        )

    monkeypatch.setattr(NodeClient, "identity", identity)
    listed = (way, "--provider", store, "--node", "http://10.0.0.1:8080")
    refused = goatherd("sign", *listed)
    assert (refused.code, stored(store).generation) == (10, 2)
    assert "http://10.0.0.1:8080 has seen generation 7 of the identity" in refused.err
    assert "--distrust http://10.0.0.1:8080" in refused.err
    wrong = goatherd("sign", *listed, "--distrust", "http://10.0.0.2:8080")
    assert (wrong.code, stored(store).generation) == (10, 2)
    done = goatherd("sign", *listed, "--distrust", "http://10.0.0.1:8080", "--audit-log", "trail.jsonl")
    assert (done.code, stored(store).is_signed) == (0, True)
    records = goatherd("audit", "show", "trail.jsonl", "--json").json["records"]
    (began,) = [one for one in records if one["event"] == "run-began"]
    assert (began["data"]["what"], began["data"]["distrust"]) == (way.removeprefix("--"), ["http://10.0.0.1:8080"])


def test_both_ways_at_once_are_a_mistake(goatherd: Goatherd, store: str) -> None:
    assert goatherd("sign", "--accept", "--take-back", "--provider", store).code == 2


def test_no_key_is_shown(goatherd: Goatherd, store: str) -> None:
    goatherd("init", "--provider", store)
    secret = document_tree(stored(store))["currentSession"]["privateKey"]["d"]
    write(store, history=[{"at": "2026-11-26T00:00:00.000Z", "event": "rotated"}])
    result = goatherd("sign", "--provider", store, "--json")
    assert "history was added" in json.dumps(result.json)
    assert secret not in result.out + result.err
