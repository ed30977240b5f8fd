"""Pods as processes: what starts, watches and stops the pods of the chart where there is an API server and no cluster.

What it is: in place of scheduler and kubelet, each pod of a namespace is run as a process of this machine, at an
address and with a token of its own, and its status is reported; each Service's EndpointSlice is written; in place of
the cluster's DNS and of kube-proxy, connections to a pod's name or to a Service are passed on. What it is not: a
container: the process has this machine's files, the images are not read, and of the volumes only ConfigMaps and the
data directory are there. Rules: 127.0.0.0/8 only; a process that ends by itself is recorded and started again; nothing
outlives ``async with``.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import random
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx2

from tests.deadlines import HANG
from tests.fakes.kubernetes_real import RealKubernetes

_INTERVAL: Final = 0.2
_CHUNK: Final = 1 << 16
_NODE: Final = "node-1"
_PR_SET_PDEATHSIG: Final = 1

Fields = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Pod:
    """One pod, while it exists.

    Attributes:
        content: The Pod as the API server had it first.
        address: Its address.
        deleted: Set once it is to stop.
        is_ready: Whether it has passed its readiness probe.
    """

    content: Fields
    address: str
    deleted: asyncio.Event = field(default_factory=asyncio.Event)
    is_ready: bool = False

    @property
    def name(self) -> str:
        return str(self.content["metadata"]["name"])

    @property
    def container(self) -> Fields:
        found: Fields = self.content["spec"]["containers"][0]
        return found


class PodProcesses:
    """Runs the pods of one namespace, as an async context manager.

    Args:
        api: The API server.
        namespace: The namespace.
        home: A directory for data, logs and configuration.
        service: The Service to which `service_url` leads.

    Attributes:
        pods: The pods that exist, by uid.
        started: How many processes were started for each pod's name.
        ended: The output of each process that ended unexpectedly, with the pod's name.
    """

    def __init__(self, api: RealKubernetes, namespace: str, home: Path, *, service: str) -> None:
        self._api, self._namespace, self._home, self._service = api, namespace, home, service
        self._http = httpx2.AsyncClient(
            base_url=api.url,
            verify=api.trust(),
            headers={"Authorization": f"Bearer {api.admin}"},
            trust_env=False,
            timeout=HANG,
        )
        self._block = f"127.{random.SystemRandom().randrange(1, 250)}.{random.SystemRandom().randrange(250)}"
        self._next = 0
        self._ports: dict[str, int] = {}
        self._listeners: list[asyncio.Server] = []
        self._slices: dict[str, Fields] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._loop: asyncio.Task[None] | None = None
        self.pods: dict[str, Pod] = {}
        self.started: Counter[str] = Counter()
        self.ended: list[tuple[str, str]] = []
        self.service_url = ""

    async def __aenter__(self) -> Self:
        answer = await self._http.post("/api/v1/nodes", json={"metadata": {"name": _NODE}})
        assert answer.status_code in (201, 409), answer.text
        self.service_url = f"http://127.0.0.1:{await self._listen(self._choose_ready)}"
        self._loop = asyncio.create_task(self._follow())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [task for task in (self._loop, *self._tasks.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for listener in self._listeners:
            listener.close()
        await self._http.aclose()

    def check(self) -> None:
        """Raise the exception of any task in here that has failed."""
        for task in (self._loop, *self._tasks.values()):
            if task is not None and task.done() and not task.cancelled():
                task.result()

    def running(self, command: str) -> list[Pod]:
        """Return the pods that run a command of Goatherd and are to stay."""
        return [
            each for each in self.pods.values() if each.container["args"][0] == command and not each.deleted.is_set()
        ]

    def names(self, command: str) -> set[str]:
        """Return the names of these pods."""
        return {each.name for each in self.running(command)}

    def log(self, name: str) -> str:
        """Return the output of all processes of a pod's name."""
        return (self._home / f"{name}.log").read_text()

    # --- the cluster's DNS and kube-proxy ---------------------------------------------------------------------------

    async def _listen(self, choose: Callable[[], tuple[str, int] | None]) -> int:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            place = choose()
            try:
                with contextlib.suppress(OSError):
                    if place is not None:
                        answers, onward = await asyncio.open_connection(*place)
                        try:
                            await asyncio.gather(_pass_on(reader, onward), _pass_on(answers, writer))
                        finally:
                            onward.close()
            finally:
                writer.close()

        listener = await asyncio.start_server(accept, "127.0.0.1", 0)
        self._listeners.append(listener)
        return int(listener.sockets[0].getsockname()[1])

    def _choose_ready(self) -> tuple[str, int] | None:
        ready = self._addresses()
        return (random.choice(ready), int(self._slices[self._service]["ports"][0]["port"])) if ready else None

    def _addresses(self) -> list[str]:
        """Return the addresses to which the Service leads."""
        endpoints = self._slices.get(self._service, {}).get("endpoints", [])
        return [each["addresses"][0] for each in endpoints if each["conditions"]["ready"]]

    async def _port_of_name(self, name: str) -> int:
        """Return the port on 127.0.0.1 from which connections are passed on to the pod of this name."""

        def choose() -> tuple[str, int] | None:
            return next(((pod.address, _port_of(pod)) for pod in self.pods.values() if pod.name == name), None)

        if name not in self._ports:
            self._ports[name] = await self._listen(choose)
        return self._ports[name]

    # --- the kubelet ------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        while True:
            listed = await self._get(f"/api/v1/namespaces/{self._namespace}/pods")
            there = {each["metadata"]["uid"]: each for each in listed["items"]}
            for uid, content in there.items():
                if uid not in self.pods and "deletionTimestamp" not in content["metadata"]:
                    self._next += 1
                    self.pods[uid] = Pod(content=content, address=f"{self._block}.{self._next}")
                    self._tasks[uid] = asyncio.create_task(self._run(self.pods[uid]))
                elif uid in self.pods and "deletionTimestamp" in content["metadata"]:
                    self.pods[uid].deleted.set()
            for uid in set(self.pods) - set(there):
                self.pods.pop(uid).deleted.set()
            for service in (await self._get(f"/api/v1/namespaces/{self._namespace}/services"))["items"]:
                await self._publish(service)
            await asyncio.sleep(_INTERVAL)

    async def _publish(self, service: Fields) -> None:
        """Write the EndpointSlice of a Service, if it has changed.

        https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/#conditions. The controller of 1.20
        cannot: it updates without a resourceVersion, which is not allowed for a custom resource.
        """
        name, spec = service["metadata"]["name"], service["spec"]
        labels = spec["selector"].items()
        behind = [pod for pod in self.pods.values() if labels <= pod.content["metadata"]["labels"].items()]
        endpoints = [
            {
                "addresses": [pod.address],
                "conditions": {
                    "ready": bool(spec.get("publishNotReadyAddresses")) or (pod.is_ready and not pod.deleted.is_set()),
                    "serving": pod.is_ready,
                    "terminating": pod.deleted.is_set(),
                },
                "targetRef": {"kind": "Pod", "name": pod.name, "uid": uid},
            }
            for uid, pod in self.pods.items()
            if pod in behind
        ]
        (port,) = spec["ports"]
        content = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": [{"name": port["name"], "port": _port_of(behind[0]), "protocol": "TCP"}] if behind else [],
            "endpoints": endpoints,
        }
        if self._slices.get(name) == content:
            return
        answer = await self._http.patch(
            f"/apis/discovery.k8s.io/v1/namespaces/{self._namespace}/endpointslices/{name}?fieldManager=slices",
            content=json.dumps(content),
            headers={"Content-Type": "application/apply-patch+yaml"},
        )
        assert answer.status_code in (200, 201), answer.text
        self._slices[name] = content

    async def _run(self, pod: Pod) -> None:
        path = f"/api/v1/namespaces/{self._namespace}/pods/{pod.name}"
        binding = {"metadata": {"name": pod.name}, "target": {"kind": "Node", "name": _NODE}}
        answer = await self._http.post(f"{path}/binding", json=binding)
        assert answer.status_code == 201, answer.text
        command, environment = await self._command(pod)
        while not pod.deleted.is_set():
            await self._report(path, pod, is_ready=False)
            with (self._home / f"{pod.name}.log").open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    env=environment,
                    cwd=self._home,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=_die_with_parent if sys.platform == "linux" else None,
                )
            self.started[pod.name] += 1
            try:
                await self._watch(path, pod, process)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        uid = pod.content["metadata"]["uid"]
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}}
        answer = await self._http.request("DELETE", path, json=body)
        assert answer.status_code in (200, 404, 409), answer.text

    async def _watch(self, path: str, pod: Pod, process: asyncio.subprocess.Process) -> None:
        """Watch a process until it ends or the pod is to stop; then stop it, once the Service leads elsewhere."""
        ended = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(pod.deleted.wait())
        pod.is_ready = False
        try:
            while not (ended.done() or stopping.done()):
                if not pod.is_ready and await self._is_ready(pod):
                    await self._report(path, pod, is_ready=True)
                    pod.is_ready = True
                await asyncio.wait({ended, stopping}, timeout=_INTERVAL, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                # In place of the preStop pause of the chart.
                while pod.address in self._addresses():
                    await asyncio.sleep(_INTERVAL)
                process.terminate()
                await asyncio.wait_for(asyncio.shield(ended), HANG)
            if not stopping.done() or process.returncode != 0:
                self.ended.append((pod.name, f"exit code {process.returncode}: {self.log(pod.name)[-1500:]}"))
                await asyncio.wait({stopping}, timeout=1)
        finally:
            ended.cancel()
            stopping.cancel()

    async def _command(self, pod: Pod) -> tuple[list[str], dict[str, str]]:
        container, spec = pod.container, pod.content["spec"]
        environment = {each["name"]: each["value"] for each in container["env"]}
        mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
        for volume in spec["volumes"]:
            if "configMap" in volume:
                folder = self._home / pod.name / volume["name"]
                folder.mkdir(parents=True, exist_ok=True)
                name = volume["configMap"]["name"]
                found = await self._get(f"/api/v1/namespaces/{self._namespace}/configmaps/{name}")
                for file, text in found["data"].items():
                    (folder / file).write_text(text)
                place = mounts[volume["name"]]
                environment = {key: value.replace(place, str(folder)) for key, value in environment.items()}
        token = await asyncio.to_thread(self._api.token_of, self._namespace, spec["serviceAccountName"])
        config = self._home / f"{pod.name}.kubeconfig"
        config.write_text(json.dumps(self._api.kubeconfig(token)))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("GOATHERD_", "KUBE"))}
        named = {"KUBECONFIG": str(config)}
        words = [await self._translate(pod, word) for word in container["args"]]
        return [sys.executable, "-m", "goatherd", *words], {**kept, **environment, **named}

    async def _translate(self, pod: Pod, word: str) -> str:
        """Return an argument with this machine's directories and addresses in the place of a container's."""
        if word.startswith("--data="):
            data = self._home / "data" / pod.name
            data.mkdir(parents=True, exist_ok=True)
            return f"--data={data}"
        if peer := re.fullmatch(r"--peer=http://([^.:/]+)\.[^.:/]+:\d+", word):
            return f"--peer=http://127.0.0.1:{await self._port_of_name(peer[1])}"
        return word.replace("0.0.0.0", pod.address)

    async def _is_ready(self, pod: Pod) -> bool:
        path = pod.container["readinessProbe"]["httpGet"]["path"]
        with contextlib.suppress(httpx2.HTTPError):
            async with httpx2.AsyncClient(trust_env=False, timeout=HANG) as http:
                return (await http.get(f"http://{pod.address}:{_port_of(pod)}{path}")).status_code == 200
        return False

    async def _report(self, path: str, pod: Pod, *, is_ready: bool) -> None:
        condition = {"type": "Ready", "status": "True" if is_ready else "False"}
        status = {
            "phase": "Running",
            "podIP": pod.address,
            "podIPs": [{"ip": pod.address}],
            "conditions": [condition],
        }
        answer = await self._http.patch(
            f"{path}/status",
            content=json.dumps({"status": status}),
            headers={"Content-Type": "application/strategic-merge-patch+json"},
        )
        assert answer.status_code in (200, 404), answer.text

    async def _get(self, path: str) -> Fields:
        answer = await self._http.get(path)
        assert answer.status_code == 200, answer.text
        found: Fields = answer.json()
        return found


def _port_of(pod: Pod) -> int:
    return int(pod.container["ports"][0]["containerPort"])


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()
    writer.close()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
