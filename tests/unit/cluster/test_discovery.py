"""Discovery of servers by DNS and by a Kubernetes Service; a failed lookup is never taken for "no servers"."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from goatherd.cluster.client import NodeClient
from goatherd.cluster.discovery import LINGER, NodeDirectory, Place, PlatformNames, is_discovered, source_of
from goatherd.cluster.node import Node
from goatherd.config.options import load_options
from goatherd.errors import ConfigurationError, DiscoveryError, MissingExtraError, NodeUnreachableError, ObstructedError
from goatherd.providers.memory import MemorySecretProvider
from goatherd.rotation.machine import Outcome
from tests.deadlines import HANG
from tests.fakes.gcp_fake.authority import certified, trust
from tests.fakes.herd import FakeClock, Herd
from tests.fakes.kubernetes_fake import ADMIN_TOKEN, FakeKubernetes
from tests.unit.cluster.name_server import NameServer
from tests.unit.rotation.conftest import check_steady, document_of, rotator_for

SECOND = timedelta(seconds=1)
PATIENT = timedelta(seconds=HANG)


async def places(*addresses: str, timeout: timedelta = PATIENT) -> list[str]:
    async with NodeDirectory(addresses, timeout=timeout) as directory:
        return [client.base_url for client in await directory()]


# --- addresses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "dns://goat.test",
        "dns://goat.test:0",
        "dns://goat.test:65536",
        "dns://goat.test:http",
        "dns://_goat._tcp.goat.test:8080",
        "dns://goat.test:8080?port=1",
        "dns://goat.test:8080?scheme=ftp",
        "dns://goat.test:8080?scheme=http&scheme=https",
        "dns://goat.test:8080?family=5",
        "dns://goat.test:8080?server=goat.test",
        "dns://goat.test:8080?server=127.0.0.1:99999",
        "dns://goat..test:8080",
        "dns://me@goat.test:8080",
        "dns://goat.test:8080#here",
        "dns://:8080",
        "k8s-service://prod/goatdb",
        "k8s-service://goatdb:8080",
        "k8s-service://prod/Goat:8080",
        "k8s-service://prod/goatdb:80/80",
        "k8s-service://prod/goatdb:8080?family=4",
        "http://",
        "ftp://goat.test",
    ],
)
def test_what_is_no_address_is_refused_where_it_is_read(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        load_options({"nodes": (address,)}, {}, directory=tmp_path)


def test_every_kind_of_address_may_stand_in_one_list(tmp_path: Path) -> None:
    (tmp_path / "goatherd.toml").write_text(
        'nodes = ["http://a:1/", "dns://goat.test:8080", "dns://_goat._tcp.test", "k8s-service://prod/goatdb:http"]'
    )
    options = load_options({}, {}, directory=tmp_path)
    assert options.nodes == (
        "http://a:1",
        "dns://goat.test:8080",
        "dns://_goat._tcp.test",
        "k8s-service://prod/goatdb:http",
    )
    assert [is_discovered(address) for address in options.nodes] == [False, True, True, True]


def test_srv_records_need_a_library_and_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dns.asyncresolver", None)
    with pytest.raises(MissingExtraError) as caught:
        source_of("dns://_goat._tcp.goat.test", timeout=SECOND)
    assert "goatherd[dns]" in caught.value.hint
    assert source_of("dns://goat.test:8080", timeout=SECOND)


async def test_no_address_is_no_node() -> None:
    assert await places() == []


async def test_a_url_is_one_node_and_twice_the_same_one_too() -> None:
    assert await places("http://a:1", "http://a:1/", "http://b:1") == ["http://a:1", "http://b:1"]


# --- names --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def names() -> AsyncIterator[NameServer]:
    async with NameServer() as server:
        yield server


async def test_a_name_is_a_node_for_each_of_its_addresses_of_both_families(names: NameServer) -> None:
    names.records = {("goat.test.", "A"): ["10.0.0.1", "10.0.0.2"], ("goat.test.", "AAAA"): ["fd00::1"]}
    address = f"dns://goat.test:8080?server={names.address}"
    assert await places(address) == ["http://10.0.0.1:8080", "http://10.0.0.2:8080", "http://[fd00::1]:8080"]
    assert await places(f"{address}&family=6") == ["http://[fd00::1]:8080"]


async def test_a_name_with_addresses_of_one_family_only_is_known(names: NameServer) -> None:
    names.records = {("goat.test.", "A"): ["10.0.0.1"]}
    assert await places(f"dns://goat.test:1?server={names.address}") == ["http://10.0.0.1:1"]


async def test_srv_records_are_nodes_with_ports_of_their_own(names: NameServer) -> None:
    names.records = {
        ("_goat._tcp.goat.test.", "SRV"): ["0 0 8001 a.goat.test.", "0 0 8002 b.goat.test."],
        ("a.goat.test.", "A"): ["10.0.0.1"],
        ("b.goat.test.", "A"): ["10.0.0.2", "10.0.0.3"],
    }
    found = await places(f"dns://_goat._tcp.goat.test?server={names.address}")
    assert found == ["http://10.0.0.1:8001", "http://10.0.0.2:8002", "http://10.0.0.3:8002"]


async def test_an_answer_that_is_cut_off_is_fetched_whole(names: NameServer) -> None:
    addresses = [f"10.0.{high}.{low}" for high in range(4) for low in range(1, 50)]
    names.records = {("goat.test.", "A"): addresses}
    names.truncates = True
    found = await places(f"dns://goat.test:1?server={names.address}")
    assert len(found) == len(addresses)
    assert ("A", "tcp") in names.asked


NOT_KNOWN = {
    "no such name": ({}, set(), set()),
    "no addresses": ({("goat.test.", "TXT"): ["x"]}, set(), set()),
    "a failure": ({("goat.test.", "A"): ["10.0.0.1"]}, {"A", "AAAA"}, set()),
    "half a failure": ({("goat.test.", "A"): ["10.0.0.1"]}, {"AAAA"}, set()),
    "half an answer": ({("goat.test.", "A"): ["10.0.0.1"]}, set(), {"AAAA"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", NOT_KNOWN)
async def test_no_answer_half_an_answer_and_an_empty_one_are_not_known(names: NameServer, case: str) -> None:
    names.records, names.refuses, names.silent = NOT_KNOWN[case]  # type: ignore[assignment]
    with pytest.raises(DiscoveryError, match=r"goat\.test"):
        await places(f"dns://goat.test:1?server={names.address}", timeout=SECOND)


async def test_a_service_that_is_decidedly_not_available_is_not_known(names: NameServer) -> None:
    names.records = {("_goat._tcp.goat.test.", "SRV"): ["0 0 0 ."]}
    with pytest.raises(DiscoveryError, match="no SRV"):
        await places(f"dns://_goat._tcp.goat.test?server={names.address}")


async def test_one_target_without_an_address_makes_all_of_them_not_known(names: NameServer) -> None:
    names.records = {
        ("_goat._tcp.goat.test.", "SRV"): ["0 0 1 a.goat.test.", "0 0 1 b.goat.test."],
        ("a.goat.test.", "A"): ["10.0.0.1"],
    }
    with pytest.raises(DiscoveryError, match=r"b\.goat\.test"):
        await places(f"dns://_goat._tcp.goat.test?server={names.address}")


async def test_one_source_that_fails_makes_all_of_them_not_known(names: NameServer) -> None:
    with pytest.raises(DiscoveryError):
        await places("http://a:1", f"dns://goat.test:1?server={names.address}")


async def test_the_platform_is_asked_for_addresses_where_no_name_server_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert set(await places("dns://localhost:8080?family=4")) == {"http://127.0.0.1:8080"}

    def fails(*_: object, **__: object) -> Any:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    with pytest.raises(DiscoveryError, match="Temporary failure"):
        await places("dns://goat.test:8080")


async def test_a_lookup_that_hangs_takes_one_thread_however_often_it_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, go_on = 0, asyncio.Event()

    class Hanging(PlatformNames):
        async def _look_up_host(self) -> list[Any]:
            nonlocal began
            began += 1
            await go_on.wait()
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 1))]

    source = Hanging("goat.test", 1, scheme="http", server_name="goat.test", family=None)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await source.find()
    assert began == 1
    go_on.set()
    assert [place.url for place in await source.find()] == ["http://10.0.0.1:1"]


def record_closed_clients() -> tuple[list[str], Callable[[Place], NodeClient]]:
    """Return a list of the URLs of closed clients, and a function that makes clients that add theirs to it."""
    closed: list[str] = []

    class Client(NodeClient):
        async def aclose(self) -> None:
            closed.append(self.base_url)

    return closed, lambda place: Client(place.url)


async def test_a_node_that_dns_no_longer_names_counts_for_a_while_and_its_client_is_closed_after_that(
    names: NameServer,
) -> None:
    clock = FakeClock()
    closed, connect = record_closed_clients()
    names.records = {("goat.test.", "A"): ["10.0.0.1", "10.0.0.2"]}
    address = f"dns://goat.test:1?server={names.address}"
    async with NodeDirectory([address], timeout=PATIENT, clock=clock, connect=connect) as directory:
        first = await directory()
        names.records = {("goat.test.", "A"): ["10.0.0.2", "10.0.0.3"]}
        clock.turn(LINGER)
        second = await directory()
        assert {client.base_url for client in second} == {f"http://10.0.0.{n}:1" for n in (1, 2, 3)}
        assert closed == []
        assert [client for client in second if client.base_url == "http://10.0.0.2:1"] == [first[1]], (
            "it was connected to anew"
        )
        clock.turn(SECOND)
        third = await directory()
        assert {client.base_url for client in third} == {"http://10.0.0.2:1", "http://10.0.0.3:1"}
        assert closed == ["http://10.0.0.1:1"]
    assert sorted(closed) == [f"http://10.0.0.{n}:1" for n in (1, 2, 3)]


async def test_a_server_whose_name_for_tls_changes_gets_a_new_client_and_the_old_one_is_closed(
    names: NameServer,
) -> None:
    clock = FakeClock()
    closed, connect = record_closed_clients()
    names.records = {("goat.test.", "A"): ["10.0.0.1", "10.0.0.2"]}
    addresses = [f"dns://goat.test:1?scheme=https&server={names.address}", "https://10.0.0.1:1"]
    async with NodeDirectory(addresses, timeout=PATIENT, clock=clock, connect=connect) as directory:
        before = {client.base_url: client for client in await directory()}
        names.records = {("goat.test.", "A"): ["10.0.0.2"]}
        await directory()
        clock.turn(LINGER + SECOND)
        after = {client.base_url: client for client in await directory()}
        assert after.keys() == before.keys() == {"https://10.0.0.1:1", "https://10.0.0.2:1"}
        assert after["https://10.0.0.1:1"] is not before["https://10.0.0.1:1"], "DNS no longer names it"
        assert after["https://10.0.0.2:1"] is before["https://10.0.0.2:1"]
        assert closed == ["https://10.0.0.1:1"]


# --- TLS and names ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def tls_server(tmp_path: Path) -> AsyncIterator[tuple[int, list[str], list[str]]]:
    """Yield the port, the names that clients requested in TLS (SNI), and the ``Host`` headers."""
    pair = certified()
    (tmp_path / "key.pem").write_bytes(pair.key)
    (tmp_path / "cert.pem").write_bytes(pair.certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    asked: list[str] = []
    hosts: list[str] = []
    context.sni_callback = lambda _, name, __: asked.append(name or "")  # type: ignore[assignment]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        hosts.extend(line[6:] for line in head.decode().split("\r\n") if line.lower().startswith("host: "))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nOK")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1], asked, hosts


def trusting(http: httpx2.AsyncClient, place: Place) -> NodeClient:
    return NodeClient(place.url, http=http, server_name=place.server_name, timeout=PATIENT)


async def test_over_tls_a_node_found_by_name_is_called_by_its_name_and_must_prove_it(tmp_path: Path) -> None:
    context = ssl.create_default_context(cafile=str(trust()))
    async with tls_server(tmp_path) as (port, asked, hosts), httpx2.AsyncClient(verify=context) as http:
        (place,) = await source_of(f"dns://localhost:{port}?scheme=https&family=4", timeout=PATIENT).find()
        assert place == Place(f"https://127.0.0.1:{port}", "localhost")
        assert await trusting(http, place).healthy()
        assert asked == ["localhost"]
        assert hosts == [f"localhost:{port}"]

        # The certificate holds 127.0.0.1, where the connection goes, but not this name.
        another = f"dns://localhost:{port}?scheme=https&family=4&tls-name=other.test"
        (place,) = await source_of(another, timeout=PATIENT).find()
        with pytest.raises(NodeUnreachableError, match=r"(?i)certificate|hostname"):
            await trusting(http, place).identity()
        assert hosts == [f"localhost:{port}"], "a request was sent to a server that could not prove its name"


async def test_a_node_given_by_its_url_is_called_by_that(tmp_path: Path) -> None:
    context = ssl.create_default_context(cafile=str(trust()))
    async with tls_server(tmp_path) as (port, _, hosts), httpx2.AsyncClient(verify=context) as http:
        (place,) = await source_of(f"https://127.0.0.1:{port}", timeout=PATIENT).find()
        assert await trusting(http, place).healthy()
        assert hosts == [f"127.0.0.1:{port}"]


# --- a Service of Kubernetes --------------------------------------------------------------------------------------


def endpoint(address: str, **conditions: bool) -> dict[str, Any]:
    pod = {"kind": "Pod", "name": f"goatdb-{address[-1]}", "uid": f"uid-{address[-1]}"}
    return {"addresses": [address], "conditions": {"ready": True, **conditions}, "targetRef": pod}


def slice_of(*endpoints: dict[str, Any], service: str = "goatdb", family: str = "IPv4") -> dict[str, Any]:
    return {
        "metadata": {"name": f"{service}-x", "labels": {"kubernetes.io/service-name": service}},
        "addressType": family,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "metrics", "port": 9090}],
        "endpoints": list(endpoints),
    }


@pytest.fixture
def cluster() -> Iterator[FakeKubernetes]:
    with FakeKubernetes(namespaces=["prod"]) as fake:
        yield fake


def kubeconfig(cluster: FakeKubernetes, tmp_path: Path, token: str = ADMIN_TOKEN) -> Path:
    pytest.importorskip("kubernetes_asyncio", reason="needs the extra kubernetes")
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": cluster.url}}],
        "users": [{"name": "u", "user": {"token": token}}],
    }
    path = tmp_path / "kubeconfig.json"
    path.write_text(json.dumps(config))
    return path


@pytest.fixture
def service(cluster: FakeKubernetes, tmp_path: Path) -> str:
    return f"k8s-service://prod/goatdb:http?kubeconfig={kubeconfig(cluster, tmp_path)}"


async def test_every_pod_behind_a_service_is_a_node_from_all_its_slices_and_no_other(
    cluster: FakeKubernetes, service: str
) -> None:
    cluster.slices["prod"] = [
        slice_of(endpoint("10.0.0.1"), endpoint("10.0.0.2")),
        slice_of(endpoint("10.0.0.3"), endpoint("10.0.0.1")),
        slice_of(endpoint("10.0.0.9"), service="other"),
    ]
    cluster.slices["dev"] = [slice_of(endpoint("10.0.0.8"))]
    assert await places(service) == [f"http://10.0.0.{n}:8080" for n in (1, 2, 3)]
    assert await places(service.replace(":http?", ":9090?")) == [f"http://10.0.0.{n}:9090" for n in (1, 2, 3)]


async def test_a_pod_that_is_not_ready_counts_and_one_that_has_stopped_serving_does_not(
    cluster: FakeKubernetes, service: str
) -> None:
    cluster.slices["prod"] = [
        slice_of(
            endpoint("10.0.0.1", ready=False, serving=False, terminating=False),
            endpoint("10.0.0.2", ready=False, serving=True, terminating=True),
            endpoint("10.0.0.3", ready=False, serving=False, terminating=True),
        )
    ]
    assert await places(service) == ["http://10.0.0.1:8080", "http://10.0.0.2:8080"]


async def test_a_pod_with_addresses_of_both_families_is_one_node(cluster: FakeKubernetes, service: str) -> None:
    cluster.slices["prod"] = [
        slice_of(endpoint("fd00::1"), family="IPv6"),
        slice_of(endpoint("10.0.0.1")),
    ]
    assert await places(service) == ["http://10.0.0.1:8080"]


async def test_a_port_without_a_name_is_found_by_its_number(cluster: FakeKubernetes, service: str) -> None:
    """The name of a Service's only port may be omitted:
    https://kubernetes.io/docs/concepts/services-networking/service/."""
    for number, unnamed in enumerate(({"port": 8080}, {"name": None, "port": 8080}, {"name": "", "port": 8080})):
        cluster.slices["prod"] = [{**slice_of(endpoint(f"10.0.0.{number}")), "ports": [unnamed]}]
        assert await places(service.replace(":http?", ":8080?")) == [f"http://10.0.0.{number}:8080"]
        with pytest.raises(DiscoveryError) as caught:
            await places(service)
        assert "(no name) (8080)" in caught.value.hint
    for none in (None, []):
        cluster.slices["prod"] = [{**slice_of(endpoint("10.0.0.1")), "ports": none}]
        with pytest.raises(DiscoveryError, match="have no port"):
            await places(service)


async def test_each_slice_has_its_own_number_for_a_named_port(cluster: FakeKubernetes, service: str) -> None:
    """Pods whose container port differs, as in the middle of an update, are in different slices."""
    moved = slice_of(endpoint("10.0.0.2")) | {"ports": [{"name": "http", "port": 9000, "protocol": "TCP"}]}
    cluster.slices["prod"] = [slice_of(endpoint("10.0.0.1")), moved, slice_of()]
    assert await places(service) == ["http://10.0.0.1:8080", "http://10.0.0.2:9000"]


async def test_conditions_that_are_left_out_mean_ready_and_lists_may_be_null(
    cluster: FakeKubernetes, service: str
) -> None:
    """A condition that is null means true, or unknown:
    reference/kubernetes-api/service-resources/endpoint-slice-v1/."""
    unknown = {"ready": None, "serving": None, "terminating": None}
    cluster.slices["prod"] = [
        slice_of({"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"], "conditions": None}),
        slice_of({"addresses": ["10.0.0.3"], "conditions": unknown, "targetRef": None}),
        {**slice_of(), "endpoints": None},
    ]
    assert await places(service) == [f"http://10.0.0.{n}:8080" for n in (1, 2, 3)]


async def test_a_pod_that_moves_between_slices_is_one_node_and_counts_while_one_of_them_says_that_it_serves(
    cluster: FakeKubernetes, service: str
) -> None:
    """For a short time the pod is in both slices: concepts/services-networking/endpoint-slices/#duplicate-endpoints."""
    ends = endpoint("10.0.0.1", ready=False, serving=False, terminating=True)
    cluster.slices["prod"] = [slice_of(ends, endpoint("10.0.0.2")), slice_of(endpoint("10.0.0.1"))]
    assert await places(service) == ["http://10.0.0.2:8080", "http://10.0.0.1:8080"]
    cluster.slices["prod"] = [slice_of(ends, endpoint("10.0.0.2")), slice_of(ends)]
    assert await places(service) == ["http://10.0.0.2:8080"]


async def test_pods_of_a_cluster_with_both_families_are_found_by_the_family_that_each_has(
    cluster: FakeKubernetes, service: str
) -> None:
    cluster.slices["prod"] = [
        slice_of(endpoint("fd00::1"), endpoint("fd00::2", ready=False, serving=False), family="IPv6"),
        slice_of(endpoint("10.0.0.1", ready=False, serving=False)),
    ]
    assert await places(service) == ["http://10.0.0.1:8080", "http://[fd00::2]:8080"]
    del cluster.slices["prod"][1]
    assert await places(service) == ["http://[fd00::1]:8080", "http://[fd00::2]:8080"]


async def test_a_pod_that_is_replaced_between_two_lists_leaves_at_once_and_the_others_stay_connected(
    cluster: FakeKubernetes, service: str
) -> None:
    closed, connect = record_closed_clients()
    cluster.slices["prod"] = [slice_of(endpoint("10.0.0.1"), endpoint("10.0.0.2"))]
    async with NodeDirectory([service], timeout=PATIENT, connect=connect) as directory:
        first = await directory()
        cluster.slices["prod"] = [slice_of(endpoint("10.0.0.1")), slice_of(endpoint("10.0.0.3", ready=False))]
        second = await directory()
        assert [client.base_url for client in second] == ["http://10.0.0.1:8080", "http://10.0.0.3:8080"]
        assert second[0] is first[0], "it was connected to anew"
        assert closed == ["http://10.0.0.2:8080"]
        cluster.slices["prod"] = []
        with pytest.raises(DiscoveryError, match="no pod"):
            await directory()
        assert closed == ["http://10.0.0.2:8080"], "an empty answer removes no server"
        cluster.slices["prod"] = [slice_of(endpoint("10.0.0.1"), endpoint("10.0.0.3"))]
        assert await directory() == second


async def test_over_https_the_name_is_the_services(cluster: FakeKubernetes, service: str) -> None:
    cluster.slices["prod"] = [slice_of(endpoint("10.0.0.1"))]
    assert await source_of(f"{service}&scheme=https", timeout=PATIENT).find() == [
        Place("https://10.0.0.1:8080", "goatdb.prod.svc")
    ]


async def test_a_service_without_pods_and_one_that_is_not_there_are_not_known(
    cluster: FakeKubernetes, service: str
) -> None:
    with pytest.raises(DiscoveryError, match="no pod"):
        await places(service)
    cluster.slices["prod"] = [slice_of()]
    with pytest.raises(DiscoveryError, match="no pod"):
        await places(service)


async def test_a_port_that_the_pods_do_not_have_is_an_error_that_names_those_that_they_have(
    cluster: FakeKubernetes, service: str
) -> None:
    cluster.slices["prod"] = [slice_of(endpoint("10.0.0.1"))]
    with pytest.raises(DiscoveryError) as caught:
        await places(service.replace(":http?", ":grpc?"))
    assert "http (8080), metrics (9090)" in caught.value.hint


async def test_a_list_that_comes_in_parts_is_not_known(cluster: FakeKubernetes, service: str) -> None:
    from tests.fakes.kubernetes_fake import Trouble

    part = {"kind": "EndpointSliceList", "metadata": {"continue": "x"}, "items": [slice_of(endpoint("10.0.0.1"))]}
    cluster.troubles = [Trouble(status=200, body=part)]
    with pytest.raises(DiscoveryError, match="part"):
        await places(service)


ROLE = {
    "metadata": {"namespace": "prod"},
    "rules": [{"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list"]}],
}


async def test_the_role_of_the_documentation_is_enough_and_without_it_the_error_says_which_right_is_missing(
    cluster: FakeKubernetes, tmp_path: Path
) -> None:
    import re

    import yaml

    page = (Path(__file__).parents[3] / "docs/how-to/find-nodes.md").read_text()
    (shown,) = re.findall(r"```yaml\n(apiVersion: rbac.*?)```", page, re.DOTALL)
    role = next(one for one in yaml.safe_load_all(shown) if one["kind"] == "Role")
    cluster.slices["prod"] = [slice_of(endpoint("10.0.0.1"))]
    allowed = kubeconfig(cluster, tmp_path, cluster.account("rotator", role | {"metadata": {"namespace": "prod"}}))
    address = f"k8s-service://prod/goatdb:http?kubeconfig={allowed}"
    assert await places(address) == ["http://10.0.0.1:8080"]
    kubeconfig(cluster, tmp_path, cluster.account("nobody"))
    with pytest.raises(DiscoveryError) as caught:
        await places(address)
    assert "must be allowed to list endpointslices" in str(caught.value), "a rotation shows the message, not the hint"


async def test_a_cluster_that_cannot_be_reached_is_not_known(cluster: FakeKubernetes, tmp_path: Path) -> None:
    path = kubeconfig(cluster, tmp_path)
    config = json.loads(path.read_text())
    config["clusters"][0]["cluster"]["server"] = "http://127.0.0.1:9"
    path.write_text(json.dumps(config))
    with pytest.raises(DiscoveryError):
        await places(f"k8s-service://prod/goatdb:http?kubeconfig={path}")
    with pytest.raises(DiscoveryError):
        await places(f"k8s-service://prod/goatdb:http?kubeconfig={path}.missing")


async def test_without_the_extra_the_message_itself_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An obstacle of a rotation is reported with a hint of its own, so the message must contain the instructions."""
    monkeypatch.setitem(sys.modules, "kubernetes_asyncio.config.kube_config", None)
    (tmp_path / "kubeconfig").write_text("{}")
    with pytest.raises(DiscoveryError, match=r"pip install 'goatherd\[kubernetes\]'"):
        await places(f"k8s-service://prod/goatdb:http?kubeconfig={tmp_path}/kubeconfig")


# --- in a rotation ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def herd_behind_names(names: NameServer) -> AsyncIterator[tuple[Herd, NodeDirectory]]:
    """Yield a simulated herd whose nodes are found by name, ``10.0.0.N`` for node N."""
    clock = FakeClock()
    async with MemorySecretProvider(clock=clock) as provider:
        herd = await Herd.start(provider, clock=clock, nodes=3)
        await herd.add_clients(2)

        def connect(place: Place) -> Any:
            return _Named(herd.nodes[int(place.url.removeprefix("http://10.0.0.")[0])], place.url)

        names.records = {("goat.test.", "A"): [f"10.0.0.{n}" for n in range(3)]}
        address = f"dns://goat.test:1?server={names.address}"
        async with NodeDirectory([address], timeout=PATIENT, clock=clock, connect=connect) as directory:
            yield herd, directory


class _Named:
    """A node of the herd at an address that was found."""

    def __init__(self, node: Node, url: str) -> None:
        self._node = node
        self.base_url = url

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)

    async def aclose(self) -> None:
        pass


@pytest.mark.slow
async def test_a_rotation_waits_for_every_node_that_a_name_leads_to(names: NameServer) -> None:
    async with herd_behind_names(names) as (herd, directory):
        report = await rotator_for(herd, nodes=directory).rotate()
        assert report.outcome is Outcome.ROTATED
        assert report.behind == ()
        await check_steady(herd)
        assert all(node.asked["identity"] for node in herd.nodes)


@pytest.mark.slow
@pytest.mark.parametrize("records", [{}, {("goat.test.", "TXT"): ["x"]}], ids=["no such name", "no addresses"])
async def test_a_rotation_does_not_take_an_empty_answer_for_a_cluster_without_nodes(
    names: NameServer, records: dict[tuple[str, str], list[str]]
) -> None:
    async with herd_behind_names(names) as (herd, directory):
        names.records = records
        before = await document_of(herd)
        with pytest.raises(ObstructedError, match="the servers of the cluster are not known"):
            await rotator_for(herd, nodes=directory).rotate()
        assert await document_of(herd) == before


async def test_a_rotation_waits_for_a_pod_that_joins_and_not_for_one_that_leaves(
    cluster: FakeKubernetes, service: str
) -> None:
    clock = FakeClock()
    async with MemorySecretProvider(clock=clock) as provider:
        herd = await Herd.start(provider, clock=clock, nodes=3)
        phases: list[str] = []

        def list_pods(*numbers: int) -> None:
            cluster.slices["prod"] = [slice_of(endpoint(f"10.0.0.{number}")) for number in numbers]

        def connect(place: Place) -> Any:
            return _Named(herd.nodes[int(place.url.removeprefix("http://10.0.0.")[0])], place.url)

        class Watched(NodeDirectory):
            async def __call__(self) -> list[NodeClient]:
                phase = (await document_of(herd)).rotation
                phases.append(phase.phase.value if phase else "steady")
                if phases[-1] == "published":
                    list_pods(0, 1, 2)
                elif phases[-1] == "activated":
                    list_pods(0, 2)
                return await super().__call__()

        list_pods(0, 1)
        async with Watched([service], timeout=PATIENT, clock=clock, connect=connect) as directory:
            report = await rotator_for(herd, nodes=directory).rotate()
        assert report.outcome is Outcome.ROTATED
        assert {"published", "activated"} <= set(phases)
        current = (await document_of(herd)).current.id
        assert herd.nodes[2].asked["identity"], "the pod that joined was asked"
        assert [herd.nodes[number].pool.current.id for number in (0, 2)] == [current] * 2
