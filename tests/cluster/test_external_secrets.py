"""Servers that read a copy of AWS's secret, made as the ExternalSecret of the documentation says, follow a rotation."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.identity.document import decode_document, encode_document
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.ids import new_id
from goatherd.node.server import Server, ServerListener
from goatherd.providers.kubernetes.volume import KubernetesVolumeProvider
from goatherd.rotation.machine import Outcome, Policy
from goatherd.rotation.rotator import Rotator
from goatherd.settings.store import CloudSecretSettings
from tests.deadlines import ADOPTION, ANSWER
from tests.fakes.kubelet import Kubelet
from tests.ports import free_ports

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs/how-to/external-secrets.md"
MOMENT = timedelta(seconds=0.2)


def manifest() -> dict[str, Any]:
    (shown,) = re.findall(r"```yaml\n(apiVersion: external-secrets.*?)```", PAGE.read_text(), re.DOTALL)
    found: dict[str, Any] = yaml.safe_load(shown)
    return found


def test_the_page_s_manifest_reads_what_its_table_says_of_the_first_store() -> None:
    """tests/contract/test_documented_readers.py compares each row of the table with a command that is tested."""
    rows = re.findall(r"^\| [A-Z].*? \| `(\{.*?\})` \|", PAGE.read_text(), re.MULTILINE)
    assert manifest()["spec"]["data"] == [{"secretKey": "identity.json", "remoteRef": yaml.safe_load(rows[0])}]


@contextlib.asynccontextmanager
async def copying(client: Any, kubelet: Kubelet) -> AsyncIterator[None]:
    """Do what the operator and the kubelet do, more often: read by `remoteRef`, write `secretKey`, mount.

    The operator's `version` is AWS's staging label, unless it begins with uuid/:
    https://external-secrets.io/latest/provider/aws-secrets-manager/.
    """
    (data,) = manifest()["spec"]["data"]
    mounted: list[str] = []

    def once() -> None:
        remote = data["remoteRef"]
        value = client.get_secret_value(SecretId=remote["key"], VersionStage=remote["version"])["SecretString"]
        if [value] != mounted[-1:]:
            mounted.append(value)
            kubelet.mount({data["secretKey"]: value.encode()})

    async def forever() -> None:
        while True:
            await asyncio.to_thread(once)
            await SystemClock().sleep(MOMENT)

    await asyncio.to_thread(once)
    task = asyncio.create_task(forever())
    try:
        yield
        assert not task.done(), task
        # The identity with the next root may have been replaced before it was copied: servers also trust that root by
        # its introduction in `/sys/sessions`.
        first, last = (decode_document(mounted[at]) for at in (0, -1))
        assert last.rotated_from == first.current.id, "the new root reached the servers as a copy"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_servers_with_a_copy_follow_a_rotation_in_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boto3 = pytest.importorskip("boto3", reason="needs the extra aws")
    from goatherd.providers.aws.address import AWSAddress
    from goatherd.providers.aws.provider import AWSSecretProvider
    from tests.fakes.aws_fake import ACCESS_KEY, REGION, FakeSecretsManager

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)
    name = manifest()["spec"]["data"][0]["remoteRef"]["key"]
    now_ms = SystemClock().now_ms()
    first = OwnedSession.generate(session_id=new_id(), owner=ROOT_OWNER, now_ms=now_ms)
    async with contextlib.AsyncExitStack() as stack:
        fake = stack.enter_context(FakeSecretsManager())
        client = boto3.client("secretsmanager", region_name=REGION, endpoint_url=fake.url)
        stack.callback(client.close)
        address = AWSAddress(region=REGION, endpoint=fake.url)
        store = await stack.enter_async_context(AWSSecretProvider(address, timeout=ANSWER))
        await store.create(name, encode_document(create_document(first, now_ms)))
        kubelet = Kubelet(tmp_path / "goatherd")
        await stack.enter_async_context(copying(client, kubelet))

        servers, nodes = [], []
        ports = free_ports(2)
        for port in ports:
            copy = KubernetesVolumeProvider(str(tmp_path))
            settings = CloudSecretSettings(copy, "goatherd", refresh_interval=MOMENT)
            peers = [f"http://127.0.0.1:{other}" for other in ports if other != port]
            server = await stack.enter_async_context(Server(tmp_path / f"node-{port}", settings, peers=peers))
            await stack.enter_async_context(ServerListener(server, port=port))
            servers.append(server)
            nodes.append(await stack.enter_async_context(NodeClient(f"http://127.0.0.1:{port}", timeout=ANSWER)))
        policy = Policy(adoption=ADOPTION, settle=ADOPTION, node_timeout=ANSWER)
        report = await Rotator(store, name, nodes, policy=policy, started_by="test").rotate()
        document = decode_document((await store.read(name)).value.reveal())
        assert report.outcome is Outcome.ROTATED
        assert document.current.id != first.id
        assert [server.database().pool.current.id for server in servers] == [document.current.id] * 2
