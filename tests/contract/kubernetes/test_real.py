"""The Kubernetes provider against a real kube-apiserver, under real RBAC; and the fake against it, answer by answer.

Runs when `GOATHERD_KUBE_APISERVER` names the program and an etcd is found (`GOATHERD_ETCD`, or on the PATH). Debian has
both: etcd in ``etcd-server``, and the source of a kube-apiserver in Debian 12's ``kubernetes``.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import secrets
import ssl
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

pytest.importorskip("kubernetes_asyncio", reason="needs the extra kubernetes")

from goatherd.errors import (
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    SecretNotFoundError,
    SecretTooLargeError,
    ThrottledError,
)
from goatherd.providers.base import RetryPolicy, SecretProvider
from goatherd.providers.kubernetes.address import KubernetesAddress
from goatherd.providers.kubernetes.permissions import policy
from goatherd.providers.kubernetes.provider import KubernetesSecretProvider
from goatherd.providers.values import STABLE
from goatherd.testing.contract import ProviderContract
from tests.contract.kubernetes.clients import kubeconfig
from tests.deadlines import HANG
from tests.fakes.kubernetes_fake import FakeKubernetes
from tests.fakes.kubernetes_real import WHY_SKIPPED, Fields, RealKubernetes, find_programs

pytestmark = pytest.mark.slow

if find_programs() is None:
    pytest.skip(WHY_SKIPPED, allow_module_level=True)

NEVER = RetryPolicy(attempts=1)


def provider_of(
    server: RealKubernetes, path: Path, token: str = "", *, retry: RetryPolicy | None = None
) -> KubernetesSecretProvider:
    file = kubeconfig(path, server.url, token or server.admin, **{"certificate-authority": str(server.ca)})
    return KubernetesSecretProvider(KubernetesAddress(kubeconfig=file), retry=retry)


@pytest.fixture(scope="module")
def server() -> Iterator[RealKubernetes]:
    with RealKubernetes() as running:
        yield running


def new_name() -> str:
    return f"goatherd-{secrets.token_hex(4)}"


class TestKubernetesReal(ProviderContract):
    promises = frozenset({"cas", "custom_labels", "destroys", "durable", "push"})
    prefix = "default/goatherd-contract-"
    settle = timedelta(0)
    rounds = 100

    @pytest.fixture(autouse=True)
    def _server(self, server: RealKubernetes, tmp_path: Path) -> None:
        self.server, self.path = server, tmp_path

    def provider(self) -> SecretProvider:
        return provider_of(self.server, self.path)


async def test_nothing_listens_but_on_this_machine(server: RealKubernetes):
    own = {process.pid for process in server._processes}
    inodes = set()
    for pid in own:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                inodes.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                listening.append(fields[1].partition(":")[0])
    assert listening
    assert set(listening) == {"0100007F"}


# --- under the printed Roles ------------------------------------------------------------------------------------------


async def test_each_role_may_do_what_it_is_for_and_nothing_more(server: RealKubernetes, tmp_path: Path):
    name = new_name()
    secret, other = f"default/{name}", f"default/{name}-other"
    tokens = {
        role: server.account(next(yaml.safe_load_all(policy(role, secret)))) for role in ("server", "rotator", "admin")
    }
    async with (
        provider_of(server, tmp_path, tokens["server"], retry=NEVER) as reader,
        provider_of(server, tmp_path, tokens["rotator"], retry=NEVER) as rotator,
        provider_of(server, tmp_path, tokens["admin"], retry=NEVER) as admin,
    ):
        with pytest.raises(ProviderAccessDeniedError, match="cannot create"):
            await rotator.create(secret, b"first")
        first = await admin.create(secret, b"first")
        assert (await reader.read(secret)).value.reveal() == b"first"
        hints = reader.watch(secret)
        await asyncio.wait_for(anext(hints), HANG)
        await asyncio.wait_for(anext(hints), HANG)
        second = await rotator.write(secret, b"second", expected=first.id)
        await asyncio.wait_for(anext(hints), HANG)
        await hints.aclose()
        await rotator.label(secret, STABLE, second.id, expected=None)
        await rotator.destroy(secret, first.id)
        for denied in (
            reader.write(secret, b"third", expected=second.id),
            reader.label(secret, "mine", second.id, expected=None),
            rotator.delete(secret),
            reader.read(other),
            rotator.read(other),
            rotator.write(other, b"x", expected=None),
        ):
            with pytest.raises(ProviderAccessDeniedError) as caught:
                await denied
            assert "goatherd policy k8s" in caught.value.hint
        async with contextlib.aclosing(reader.watch(other)) as none:
            with pytest.raises(ProviderAccessDeniedError):
                await anext(none)
        await admin.delete(secret)
        with pytest.raises(SecretNotFoundError):
            await reader.read(secret)


async def test_an_unknown_token_is_denied(server: RealKubernetes, tmp_path: Path):
    async with provider_of(server, tmp_path, "nobody") as provider:
        with pytest.raises(ProviderAccessDeniedError, match="rejected the credentials"):
            await provider.read("default/root")


async def test_a_certificate_of_another_authority_is_not_trusted(server: RealKubernetes, tmp_path: Path):
    file = kubeconfig(tmp_path, server.url, server.admin)
    async with KubernetesSecretProvider(KubernetesAddress(kubeconfig=file), retry=NEVER) as provider:
        with pytest.raises(ProviderConfigurationError, match="is not trusted"):
            await provider.read("default/root")


async def test_a_watch_tells_of_every_change_and_goes_on_where_it_was(server: RealKubernetes, tmp_path: Path):
    secret = f"default/{new_name()}"
    async with provider_of(server, tmp_path) as provider:
        hints = provider.watch(secret)
        await asyncio.wait_for(anext(hints), HANG)
        first = await provider.create(secret, b"first")
        await asyncio.wait_for(anext(hints), HANG)
        await provider.write(secret, b"second", expected=first.id)
        await asyncio.wait_for(anext(hints), HANG)
        await hints.aclose()
        again = provider.watch(secret)
        await asyncio.wait_for(anext(again), HANG)
        waiting = asyncio.create_task(anext(again))
        await asyncio.sleep(0.2)
        assert not waiting.done(), "what was seen is not told again"
        await provider.delete(secret)
        await asyncio.wait_for(waiting, HANG)
        await again.aclose()
        provider._seen[secret] = "1"  # long forgotten
        forgotten = provider.watch(secret)
        await asyncio.wait_for(anext(forgotten), HANG)
        await asyncio.wait_for(anext(forgotten), HANG)
        await provider.create(secret, b"third")
        await asyncio.wait_for(anext(forgotten), HANG)
        await forgotten.aclose()


async def test_an_immutable_secret_is_said_to_be_so(server: RealKubernetes, tmp_path: Path):
    name = new_name()
    async with provider_of(server, tmp_path) as provider:
        first = await provider.create(f"default/{name}", b"first")
        patch = {"immutable": True}
        path = f"/api/v1/namespaces/default/secrets/{name}"
        verify = ssl.create_default_context(cafile=str(server.ca))
        headers = {"Authorization": f"Bearer {server.admin}", "Content-Type": "application/merge-patch+json"}
        with httpx2.Client(verify=verify, trust_env=False) as http:
            assert http.patch(f"{server.url}{path}", headers=headers, content=json.dumps(patch)).status_code == 200
        with pytest.raises(ProviderConfigurationError, match="immutable"):
            await provider.write(f"default/{name}", b"second", expected=first.id)
        await provider.delete(f"default/{name}")


async def test_a_full_secret_is_taken_by_the_server(server: RealKubernetes, tmp_path: Path):
    secret = f"default/{new_name()}"
    async with provider_of(server, tmp_path) as provider:
        size = provider.guarantees.max_value_bytes
        holder = await provider.create(secret, os.urandom(size))
        for _ in range(18):
            holder = await provider.write(secret, os.urandom(size), expected=holder.id)
        assert 10 < len(await provider.versions(secret)) < 16
        for number in range(20):
            await provider.label(secret, f"kept-{number}", holder.id, expected=None)
            try:
                holder = await provider.write(secret, os.urandom(size), expected=holder.id)
            except SecretTooLargeError:
                break
        assert number >= 13
        await provider.delete(secret)


async def test_throttling_for_real_carries_the_servers_own_hint(tmp_path: Path):
    with RealKubernetes("--max-requests-inflight=1", "--feature-gates=APIPriorityAndFairness=false") as server:
        role = next(yaml.safe_load_all(policy("server", "default/root")))
        async with provider_of(server, tmp_path, server.account(role), retry=NEVER) as reader:
            outcomes: list[object] = []
            for _ in range(10):
                outcomes += await asyncio.gather(
                    *(reader.read("default/root") for _ in range(40)), return_exceptions=True
                )
    throttled = [each for each in outcomes if isinstance(each, ThrottledError)]
    assert throttled
    assert {error.retry_after for error in throttled} == {1.0}
    assert {type(each) for each in outcomes} <= {ThrottledError, SecretNotFoundError}


# --- the fake against it ----------------------------------------------------------------------------------------------

Ask = Callable[[str, str, object, str], tuple[int, Any]]


def volatile(answer: object) -> object:
    """Return the answer without the parts that differ between any two servers."""
    if isinstance(answer, Mapping):
        return {
            key: "…" if key in ("uid", "creationTimestamp") else volatile(value)
            for key, value in answer.items()
            # The list's own link and the bookkeeping of fields are not asked for, and not read here.
            if key not in ("managedFields", "selfLink", "resourceVersion", "message")
        }
    return [volatile(each) for each in answer] if isinstance(answer, list) else answer


def conversation(ask: Ask, admin: str, reader: str) -> list[tuple[str, int, object]]:
    """Send the same requests to any API server; return its answers."""
    path, one = "/api/v1/namespaces/default/secrets", "/api/v1/namespaces/default/secrets/talk"
    told: list[tuple[str, int, object]] = []
    secret: Fields = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "talk", "labels": {"a": "b"}},
        "data": {"k": base64.b64encode(b"v").decode()},
    }

    def say(what: str, method: str, where: str, body: object = None, token: str = admin) -> Any:
        status, answer = ask(method, where, body, token)
        told.append((what, status, volatile(answer)))
        return answer

    say("missing", "GET", one)
    say("missing, replace", "PUT", one, secret)
    say("missing, delete", "DELETE", one)
    say("no namespace", "POST", "/api/v1/namespaces/nowhere/secrets", secret)
    say("no namespace, read", "GET", "/api/v1/namespaces/nowhere/secrets/talk")
    made = say("create", "POST", path, secret)
    say("create again", "POST", path, secret)
    say("read", "GET", one)
    newer = say("replace", "PUT", one, {**made, "data": {"k": base64.b64encode(b"w").decode()}})
    say("replace, stale", "PUT", one, made)
    other = {**newer, "metadata": {**newer["metadata"], "uid": "11111111-2222-3333-4444-555555555555"}}
    say("replace, another uid", "PUT", one, other)
    say("replace, another name", "PUT", f"{path}/other-talk", newer)
    say("too long", "PUT", one, {**newer, "data": {"k": base64.b64encode(b"x" * ((1 << 20) + 1)).decode()}})
    say("just not too long", "PUT", one, {**newer, "data": {"k": base64.b64encode(b"x" * (1 << 20)).decode()}})
    say("much too long", "PUT", one, {**newer, "data": {"k": base64.b64encode(b"x" * (3 << 20)).decode()}})
    say("not base64", "PUT", one, {**newer, "data": {"k": "*"}})
    say("a bad name", "POST", path, {**secret, "metadata": {"name": "Not_A_Name"}})
    say("a bad key", "POST", path, {**secret, "metadata": {"name": "bad-key"}, "data": {"a/b": ""}})
    say("no token", "GET", one, None, "nobody")
    say("reader reads", "GET", one, None, reader)
    say("reader lists", "GET", path, None, reader)
    say("reader replaces", "PUT", one, newer, reader)
    say("reader creates", "POST", path, {**secret, "metadata": {"name": "talk2"}}, reader)
    say("reader reads another", "GET", f"{path}/another", None, reader)
    newest = say("read again", "GET", one)
    stale = {"preconditions": {"resourceVersion": made["metadata"]["resourceVersion"]}}
    say("delete, stale", "DELETE", one, {"apiVersion": "v1", "kind": "DeleteOptions", **stale})
    version = newest["metadata"]["resourceVersion"]
    wrong = {"preconditions": {"uid": "11111111-2222-3333-4444-555555555555", "resourceVersion": version}}
    say("delete, another uid", "DELETE", one, {"apiVersion": "v1", "kind": "DeleteOptions", **wrong})
    frozen = say("freeze", "PUT", one, {**newest, "immutable": True, "data": {"k": ""}})
    say("frozen", "PUT", one, {**frozen, "data": {"k": "dw=="}})
    say("thaw", "PUT", one, {**frozen, "immutable": False})
    right = {"preconditions": {"uid": frozen["metadata"]["uid"]}}
    say("delete", "DELETE", one, {"apiVersion": "v1", "kind": "DeleteOptions", **right})
    return told


def watched(ask: Ask, admin: str, reader: str) -> list[object]:
    """Watch one Secret while it changes; return the events."""
    path = "/api/v1/namespaces/default/secrets"
    secret: Fields = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "talk"}, "data": {"k": "dg=="}}
    _, made = ask("POST", path, secret, admin)
    ask("PUT", f"{path}/talk", {**made, "data": {"k": "dw=="}}, admin)
    ask("POST", path, {**secret, "metadata": {"name": "talk-other"}}, admin)
    ask("DELETE", f"{path}/talk", None, admin)
    ask("DELETE", f"{path}/talk-other", None, admin)
    started = made["metadata"]["resourceVersion"]
    query = f"{path}?watch=true&fieldSelector=metadata.name%3Dtalk&timeoutSeconds=1"
    told: list[object] = [ask("GET", f"{query}&resourceVersion={started}", None, reader)]
    told.append(ask("GET", f"{query}&resourceVersion=1", None, reader)[0])
    told.append(ask("GET", f"{path}?watch=true&timeoutSeconds=1", None, reader))
    told.append(ask("GET", f"{path}?watch=true&fieldSelector=metadata.name%3Dx&timeoutSeconds=1", None, reader))
    return [volatile(each) if not isinstance(each, tuple) else (each[0], volatile(each[1])) for each in told]


def parsed(response: httpx2.Response) -> tuple[int, Any]:
    lines = [json.loads(line) for line in response.text.splitlines() if line]
    return response.status_code, lines[0] if len(lines) == 1 and "object" not in lines[0] else lines


@pytest.mark.parametrize("talk", [conversation, watched], ids=lambda each: each.__name__)
def test_the_fake_answers_as_the_real_server_does(server: RealKubernetes, talk: Callable[[Ask, str, str], list[Any]]):
    role = next(yaml.safe_load_all(policy("server", "default/talk")))

    def real(method: str, path: str, body: object, token: str) -> tuple[int, Any]:
        return parsed(server.ask(method, path, body, token=token))

    account = server.account(role)
    wanted = talk(real, server.admin, account)
    with FakeKubernetes() as fake, httpx2.Client(trust_env=False, timeout=HANG) as http:

        def faked(method: str, path: str, body: object, token: str) -> tuple[int, Any]:
            headers = {"Authorization": f"Bearer {token}"}
            return parsed(http.request(method, f"{fake.url}{path}", headers=headers, json=body or None))

        found = talk(faked, next(iter(fake._users)), fake.account("account", role))
    different = [pair for pair in zip(found, wanted, strict=True) if pair[0] != pair[1]]
    assert not different, json.dumps(different, indent=1)[:6000]


# --- two processes --------------------------------------------------------------------------------------------------


def test_of_two_rotator_processes_one_wins_each_round_and_none_is_lost(server: RealKubernetes, tmp_path: Path):
    from .test_race import race_of_two

    name = new_name()
    token = server.account(next(yaml.safe_load_all(policy("rotator", f"default/{name}"))))
    ca = {"certificate-authority": str(server.ca)}
    race_of_two(
        f"default/{name}",
        rotator=kubeconfig(tmp_path, server.url, token, **ca),
        admin=kubeconfig(tmp_path, server.url, server.admin, **ca),
        rounds=100,
    )
