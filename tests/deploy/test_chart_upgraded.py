"""The Helm chart is upgraded and rolled back while the root is rotated, by the real controllers of Kubernetes.

What is real: the kube-apiserver, the controllers of Deployments and StatefulSets, the chart's objects and rights, and
every process of Goatherd. What is not: nodes, scheduler, kubelet, DNS, kube-proxy and what writes EndpointSlices
(`PodProcesses`).
Runs when tests/deploy/test_chart_applied.py runs and a kube-controller-manager is there as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("kubernetes_asyncio", reason="needs the extra kubernetes")

from goatherd.cluster.client import NodeClient
from goatherd.cluster.discovery import source_of
from goatherd.errors import NodeUnreachableError
from goatherd.identity.document import IdentityDocument, Phase, decode_document
from goatherd.identity.session import OwnedSession, sign_commit
from goatherd.ids import new_id
from goatherd.providers.kubernetes.address import KubernetesAddress
from goatherd.providers.kubernetes.provider import KubernetesSecretProvider
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.commit import new_commit
from tests.deadlines import ANSWER, HANG
from tests.deploy.test_chart import CHART, Commands, _override, helm, own_containers
from tests.deploy.test_chart_applied import (  # is skipped, and this with it, without a server
    ENDPOINT_SLICE,
    adapt,
    pod_of,
)
from tests.deploy.test_deploy import documents
from tests.fakes.kubernetes_real import NO_CONTROLLERS, Fields, RealKubernetes, find_programs
from tests.fakes.pod_processes import PodProcesses
from tests.ports import free_ports

PROGRAMS = find_programs()
if PROGRAMS is None or PROGRAMS.controllers is None:
    pytest.skip(NO_CONTROLLERS, allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.deep]

NAME, NAMESPACE = "goatdb-goatherd", "goatdb"
ROLLOUT = 5 * HANG


@dataclass(slots=True)
class Clients:
    """Clients that constantly create sessions and write through the Service, each request on a connection of its own.

    A request that is not answered is repeated, as a client of GoatDB does. A refusal is raised.

    Attributes:
        accepted: The ids of the commits that a server has accepted.
        unanswered: How many requests were repeated.
        created: How many sessions were created.
    """

    url: str
    path: str = "/data/load"
    accepted: set[str] = field(default_factory=set)
    unanswered: int = 0
    created: int = 0

    async def write(self, owned: OwnedSession) -> None:
        """Write commits until it is cancelled."""
        while True:
            draft = new_commit(
                commit_id=new_id(),
                key=f"note-{random.randrange(8)}",
                session_id=owned.id,
                ts=_now_ms(),
                org="localhost",
                parents=(),
                data={"title": "during an upgrade"},
                schema_marker="note/1",
                connection=new_id(),
            )
            await self._push(owned, sign_commit(owned, draft, now_ms=_now_ms()))
            await asyncio.sleep(0.2)

    async def join(self) -> None:
        """Create sessions until it is cancelled."""
        while True:
            await self.create_session()
            await asyncio.sleep(1)

    async def create_session(self) -> OwnedSession:
        """Create a session, and repeat that until a server answers."""
        while True:
            try:
                async with NodeClient(self.url, timeout=ANSWER) as node:
                    owned, _ = await node.create_session()
            except NodeUnreachableError:
                self.unanswered += 1
                await asyncio.sleep(0.1)
            else:
                self.created += 1
                return owned

    async def _push(self, owned: OwnedSession, commit: Any) -> None:
        while True:
            try:
                async with NodeClient(self.url, timeout=ANSWER) as node:
                    reply = await node.push(self.path, [commit], owned)
            except NodeUnreachableError:
                self.unanswered += 1
                await asyncio.sleep(0.1)
            else:
                assert reply is not None
                assert commit.id in BloomFilter.from_json(reply["f"]["__v"]), "the commit is not kept"
                self.accepted.add(commit.id)
                return


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Release:
    """The chart in one namespace of a real API server.

    Attributes:
        api: The server.
        folder: Where manifests are written.
        ports: The servers' port and the controllers', in the place of the chart's.
    """

    api: RealKubernetes
    folder: Path
    ports: tuple[int, int]

    def render(self, name: str, values: str = "") -> Path:
        """Return a revision's manifest, with ports that are free on this machine."""
        merged = _override(yaml.safe_load((CHART / "examples/kubernetes.yaml").read_text()), yaml.safe_load(values))
        given, manifest = self.folder / f"{name}.values.yaml", self.folder / f"{name}.yaml"
        given.write_text(yaml.safe_dump(merged))
        text = helm("template", "goatdb", str(CHART), "--namespace", NAMESPACE, "--values", str(given))
        manifest.write_text(text.replace("8080", str(self.ports[0])).replace("9464", str(self.ports[1])))
        return manifest

    async def apply(self, manifest: Path) -> None:
        """Apply a revision, as an upgrade or a rollback does."""
        # Helm, too, sends workloads after what they need.
        for each in sorted(documents(manifest), key=lambda one: one["kind"] in ("StatefulSet", "Deployment")):
            content = adapt(each, self.api)
            answer = await asyncio.to_thread(self.api.apply, content)
            assert answer.status_code in (200, 201), answer.text

    async def is_rolled_out(self) -> bool:
        """Return whether all pods are of the applied revision, and ready."""
        for plural, name in (("statefulsets", NAME), ("deployments", f"{NAME}-controller")):
            path = f"/apis/apps/v1/namespaces/{NAMESPACE}/{plural}/{name}"
            found = (await asyncio.to_thread(self.api.ask, "GET", path)).json()
            wanted, status = found["spec"]["replicas"], found.get("status", {})
            if status.get("observedGeneration") != found["metadata"]["generation"]:
                return False
            if (status.get("replicas"), status.get("readyReplicas")) != (wanted, wanted):
                return False
            if plural == "deployments" and status.get("updatedReplicas") != wanted:
                return False
            if status.get("currentRevision") != status.get("updateRevision"):
                return False
        return True


async def eventually(what: str, pods: PodProcesses, is_so: Callable[[], Any], *, within: float = ROLLOUT) -> None:
    """Wait until a condition holds."""
    try:
        async with asyncio.timeout(within):
            while not await is_so():
                pods.check()
                await asyncio.sleep(0.2)
    except TimeoutError:
        logs = "\n".join(f"--- {name}\n{pods.log(name)[-1500:]}" for name in sorted(pods.started))
        pytest.fail(f"not within {within:g} s: {what}\n{pods.ended}\n{logs}")


@pytest.fixture
def api() -> Iterator[RealKubernetes]:
    with RealKubernetes("--runtime-config=discovery.k8s.io/v1beta1=false") as running:
        if not running.serves("discovery.k8s.io/v1"):
            running.install(ENDPOINT_SLICE)
        running.create_namespace(NAMESPACE)
        yield running


@contextlib.asynccontextmanager
async def rotating(api: RealKubernetes, folder: Path, container: Fields) -> AsyncIterator[Rotation]:
    """Run `goatherd rotate` with the rights and environment of the chart's controller, without its goatherd.toml."""
    config, log = folder / "rotate.json", folder / "rotate.log"
    token = await asyncio.to_thread(api.token_of, NAMESPACE, f"{NAME}-controller")
    config.write_text(json.dumps(api.kubeconfig(token)))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GOATHERD_", "KUBE"))}
    given = {each["name"]: each["value"] for each in container["env"] if each["name"] != "GOATHERD_CONFIG"}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "goatherd", "rotate"),
            env={**kept, **given, "KUBECONFIG": str(config)},
            cwd=folder,
            stdout=output,
            stderr=output,
        )
    try:
        yield Rotation(process, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@dataclass(frozen=True, slots=True)
class Rotation:
    """A process that rotates."""

    process: asyncio.subprocess.Process
    log: Path

    def check_runs(self) -> None:
        assert self.process.returncode is None, self.log.read_text()

    async def finish(self) -> None:
        """Wait for its end, which must be a success."""
        await asyncio.wait_for(self.process.wait(), ROLLOUT)
        assert self.process.returncode == 0, self.log.read_text()


UPGRADE = f"""
image: {{digest: 'sha256:{"ab" * 32}'}}
server: {{replicas: 4}}
"""
CONTROLLER = """
controller:
  config: |
    [rotation]
    adoption = "1m"
    [controller]
    interval = "2s"
    jitter = "0s"
    stale = "75s"
"""


async def test_the_chart_is_upgraded_and_rolled_back_in_rotations_and_nothing_is_refused(
    api: RealKubernetes, tmp_path: Path
) -> None:
    """The second rotation loses its process as well, and a controller of the chart brings it to its end."""
    api.start_controllers("deployment", "replicaset", "statefulset")
    ports = free_ports(2)
    release = Release(api, tmp_path, (ports[0], ports[1]))
    installed = release.render("installed", CONTROLLER)
    upgraded = release.render("upgraded", f"{CONTROLLER}\n{UPGRADE}")
    by_command = {each["args"][0]: each for each in own_containers(installed)}
    config = tmp_path / "admin.json"
    config.write_text(json.dumps(api.kubeconfig(api.admin)))
    async with contextlib.AsyncExitStack() as stack:
        store = KubernetesSecretProvider(KubernetesAddress(kubeconfig=str(config)))
        await stack.enter_async_context(store)
        await asyncio.to_thread(create_identity, api, tmp_path, by_command["serve"])

        async def document() -> IdentityDocument:
            return decode_document((await store.read(f"{NAMESPACE}/root")).value.reveal())

        async def is_published() -> bool:
            return (await document()).phase is Phase.PUBLISHED

        async def is_steady() -> bool:
            return (await document()).phase is None

        pods = await stack.enter_async_context(PodProcesses(api, NAMESPACE, tmp_path, service=NAME))
        await release.apply(installed)
        await eventually("the chart is installed", pods, release.is_rolled_out)
        roots = [(await document()).current.id]

        clients = Clients(pods.service_url)
        async with asyncio.timeout(HANG):
            writers = [await clients.create_session() for _ in range(3)]
        tasks = [asyncio.create_task(clients.write(owned)) for owned in writers]
        tasks.append(asyncio.create_task(clients.join()))
        for revision, servers, dies in ((upgraded, 4, False), (installed, 3, True)):
            before, accepted, names = dict(pods.started), len(clients.accepted), pods.names("controller")
            async with rotating(api, tmp_path, by_command["controller"]) as rotation:

                async def is_published_by_it(rotation: Rotation = rotation) -> bool:
                    rotation.check_runs()
                    return await is_published()

                await eventually("the next root is published", pods, is_published_by_it)
                await release.apply(revision)
                assert await is_published(), "the revision changes during the rotation"
                if dies:
                    rotation.process.kill()
                    await eventually("a controller has brought the rotation to its end", pods, is_steady)
                else:
                    await rotation.finish()
            await eventually("the revision is rolled out", pods, release.is_rolled_out)
            assert pods.names("serve") == {f"{NAME}-{number}" for number in range(servers)}
            for number in range(3):
                name = f"{NAME}-{number}"
                assert pods.started[name] == before[name] + 1, "every server was replaced once"
            assert len(pods.names("controller") - names) == 2, "both controllers were replaced"
            assert len(clients.accepted) > accepted
            roots.append((await document()).current.id)
            assert await is_steady()
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert [end for end in ends if not isinstance(end, asyncio.CancelledError)] == [], "nothing was refused"

        assert len(set(roots)) == 3, "two rotations"
        assert pods.ended == [], "no process has ended by itself, or with an error"
        for pod in pods.running("serve"):
            async with NodeClient(f"http://{pod.address}:{ports[0]}", timeout=ANSWER) as node:
                report = await node.identity()
                assert report is not None
                assert report.signer == roots[-1]

                async def has_everything(node: NodeClient = node) -> bool:
                    held = await node.pull(clients.path, writers[0])
                    return clients.accepted <= {commit["id"] for commit in held}

                await eventually("the server holds every accepted commit", pods, has_everything)


def create_identity(api: RealKubernetes, folder: Path, container: Fields) -> None:
    with Commands(folder, api.kubeconfig) as commands:
        commands.run(container, api.admin, "init")


async def test_servers_are_discovered_from_the_slices_that_the_real_controller_writes(
    api: RealKubernetes, tmp_path: Path
) -> None:
    """The controller of 1.20 can create a custom resource but not update it, so the pods are there before it starts."""
    manifest = Release(api, tmp_path, (8080, 9464)).render("installed")
    (server,) = [each for each in documents(manifest) if each["kind"] == "StatefulSet"]
    (service,) = [each for each in documents(manifest) if each["metadata"]["name"] == f"{NAME}-nodes"]
    assert api.ask("POST", "/api/v1/nodes", {"metadata": {"name": "node-1"}}).status_code == 201
    for number, is_ready in enumerate((True, False, True)):
        pod = pod_of(adapt(server, api))
        assert pod is not None
        pod["metadata"]["name"] = f"{NAME}-{number}"
        pod["spec"]["nodeName"] = "node-1"
        assert api.apply(pod).status_code == 201
        address = f"127.0.0.{number + 1}"
        condition = {"type": "Ready", "status": str(is_ready)}
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": [condition]}
        kind = "application/merge-patch+json"
        path = api.path_of(pod)
        assert api.ask("PATCH", f"{path}/status", {"status": status}, content_type=kind).status_code == 200
    assert api.ask("DELETE", path).status_code == 200
    assert "deletionTimestamp" in api.ask("GET", path).json()["metadata"], "its node has to stop it first"
    assert api.apply(service).status_code == 201
    api.start_controllers("endpointslice", extra=("--feature-gates=EndpointSliceTerminatingCondition=true",))
    slices = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"
    api.wait_until("the slices are written", lambda: bool(api.ask("GET", slices).json()["items"]))
    conditions = {
        endpoint["targetRef"]["name"]: endpoint["conditions"]
        for each in api.ask("GET", slices).json()["items"]
        for endpoint in each["endpoints"] or []
    }
    assert conditions[f"{NAME}-2"]["terminating"] is True

    config = tmp_path / "config"
    config.write_text(json.dumps(api.kubeconfig(api.admin)))
    source = source_of(f"k8s-service://{NAMESPACE}/{NAME}-nodes:http?kubeconfig={config}", timeout=ANSWER)
    found = sorted(place.url for place in await source.find())
    assert found == [f"http://127.0.0.{number}:8080" for number in (1, 2, 3)], "that which ends still serves"
