"""Damaged answers of a store: the provider raises one of its documented errors, and none that looks like a bug."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from goatherd.errors import GoatherdError, ProviderError, SecretNotFoundError
from goatherd.providers.base import Call, RetryPolicy, SecretProvider
from goatherd.providers.kubernetes.provider import KubernetesSecretProvider
from goatherd.providers.values import CURRENT, SecretBytes, VersionId
from goatherd.providers.vault.address import VaultAddress
from goatherd.providers.vault.auth import TokenAuth
from goatherd.providers.vault.provider import VaultSecretProvider
from goatherd.providers.versioned_record import (
    DamagedRecordError,
    RecordedSecret,
    VersionedRecord,
    decode_record,
    encode_base64,
    encode_members,
    encode_secret,
    entry_for,
)
from tests.deadlines import HANG

VALUE = SecretBytes(b"a value")
SECRET = "ns/root"
ONCE = {"retry": RetryPolicy(attempts=1), "timeout": timedelta(seconds=HANG)}
JUNK: tuple[Any, ...] = (None, True, 0, -1, 2**70, 1.5, float("inf"), "", "x", "9" * 5000, [], {}, [1], [[]], {"a": 1})
ROUNDS = 60

Answer = tuple[int, Any]
Damage = Callable[[Any], Any]


def places(tree: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield here
    members = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, inner in members:
        yield from places(inner, (*here, key))


def damaged(tree: Any, dice: random.Random) -> Any:
    """Remove one member, or replace it by another value."""
    tree = copy.deepcopy(tree)
    place = dice.choice(list(places(tree)))
    if not place:
        return dice.choice(JUNK)
    holder = tree
    for key in place[:-1]:
        holder = holder[key]
    if dice.random() < 0.3:
        del holder[place[-1]]
    else:
        holder[place[-1]] = dice.choice(JUNK)
    return tree


def transport(answer: Callable[[httpx2.Request], Answer], dice: random.Random) -> httpx2.MockTransport:
    def handle(request: httpx2.Request) -> httpx2.Response:
        status, tree = answer(request)
        return httpx2.Response(status, content=json.dumps(damaged(tree, dice) if dice.random() < 0.5 else tree))

    return httpx2.MockTransport(handle)


def vault(dice: random.Random, _: Path) -> SecretProvider:
    entries = {1: entry_for(VALUE, request="r", now_ms=1), 2: entry_for(VALUE, request="s", now_ms=1)}
    secret = RecordedSecret(record=VersionedRecord(versions=entries, labels={CURRENT: 1}), values={1: VALUE, 2: VALUE})
    data = {**encode_secret(secret), "path": SECRET}
    version = {"version": 1, "created_time": "2026-11-24T16:05:27Z", "deletion_time": "", "destroyed": False}

    def answer(request: httpx2.Request) -> Answer:
        path = request.url.path
        if path.endswith("lookup-self"):
            return 200, {"data": {"ttl": 0, "renewable": False}}
        if path.endswith("capabilities-self"):
            return 200, {"data": {f"secret/{kind}": ["update"] for kind in ("destroy/ns/root", "data/ns/root")}}
        if "/ui/mounts/" in path:
            return 200, {"data": {"type": "kv", "options": {"version": "2"}}}
        if "/metadata/" in path:
            return 200, {"data": {"current_version": 1, "max_versions": 64, "versions": {"1": version}}}
        if request.method == "POST":
            return 200, {"data": {**version, "version": 2}}
        return 200, {"data": {"data": data, "metadata": version}}

    address = VaultAddress(url="https://v:8200", auth=TokenAuth(token="t"))
    return VaultSecretProvider(address, transport=transport(answer, dice), **ONCE)


def kubernetes(dice: random.Random, directory: Path) -> SecretProvider:
    pytest.importorskip("kubernetes_asyncio", reason="needs the extra kubernetes")
    entry = entry_for(VALUE, request="r", now_ms=1)
    call = Call(provider="k8s", secret_id=SECRET, operation="create")
    secret = RecordedSecret(record=VersionedRecord().with_first_version(call, entry, CURRENT), values={1: VALUE})
    whole = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"namespace": "ns", "name": "root", "resourceVersion": "7", "uid": "u"},
        "data": {name: encode_base64(raw) for name, raw in encode_members(secret).items()},
    }
    causes = [{"reason": "FieldValueInvalid", "field": "data"}]

    def answer(request: httpx2.Request) -> Answer:
        if "selfsubject" in request.url.path:
            return 200, {"kind": "SelfSubjectAccessReview", "status": {"allowed": True}}
        if request.method == "GET":
            return 200, whole
        status, reason = dice.choice([(200, ""), (409, "Conflict"), (422, "Invalid"), (403, "Forbidden")])
        if status == 200:
            return 200, whole
        return status, {"kind": "Status", "status": "Failure", "reason": reason, "details": {"causes": causes}}

    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    file = directory / "kubeconfig"
    file.write_text(json.dumps(config))
    environment = {"KUBECONFIG": str(file)}
    return KubernetesSecretProvider(environment=environment, transport=transport(answer, dice), **ONCE)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("make", [vault, kubernetes])
async def test_no_damage_is_taken_for_a_value_an_absence_or_a_bug_of_the_plugin(
    make: Callable[[random.Random, Path], SecretProvider], seed: int, tmp_path: Path
):
    dice = random.Random(seed)
    async with make(dice, tmp_path) as provider:
        calls: tuple[Callable[[], Awaitable[Any]], ...] = (
            lambda: provider.read(SECRET),
            lambda: provider.read(SECRET, VersionId("1")),
            lambda: provider.versions(SECRET),
            lambda: provider.write(SECRET, b"new", expected="1"),
            lambda: provider.label(SECRET, "stable", "1", expected=None),
            lambda: provider.destroy(SECRET, "1"),
            lambda: provider.delete(SECRET),
            lambda: provider.create(SECRET, b"new"),
            lambda: provider.diagnose(SECRET),  # type: ignore[attr-defined]
        )
        for _ in range(ROUNDS):
            for number, begin in enumerate(calls):
                found, refused = None, None
                try:
                    found = await begin()
                except GoatherdError as error:
                    refused = error
                assert type(refused) not in (ProviderError, SecretNotFoundError), refused
                assert refused or number > 1 or found.value == VALUE


def test_a_number_that_is_none_is_damage():
    versions = '{"1": {"created": Infinity, "request": "", "sha256": "", "size": 1, "destroyed": false}}'
    with pytest.raises(DamagedRecordError, match="wrong type"):
        decode_record(json.loads(f'{{"format": "goatherd-record/1", "versions": {versions}, "labels": {{}}}}'))
