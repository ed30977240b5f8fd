"""The Helm chart: each example renders into valid manifests, with no more rights than Goatherd needs.

A `helm` on the PATH renders and lints it; else the stand-in of tests/deploy/helm_template renders it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

import goatherd
from goatherd.config.options import load_options
from goatherd.config.values import parse_duration
from goatherd.providers.kubernetes.permissions import policy
from tests.deadlines import HANG
from tests.deploy.test_deploy import (
    DEPLOY,
    LINTERS,
    ROOT,
    check_command_line,
    check_confinement,
    check_keys_are_in_memory,
    check_manifests,
    containers,
    documents,
    pods,
    run_as_kubernetes,
)
from tests.fakes.kubernetes_fake import ADMIN_TOKEN, FakeKubernetes
from tests.ports import free_ports

CHART = DEPLOY / "helm/goatherd"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
STAND_IN = ROOT / "build/tools/helm-template/helm-template"
SCHEMES = {"aws", "gcp", "azure", "vault", "k8s", "file"}
IS_VALID = """
import json, sys, jsonschema
schema, many = json.load(sys.stdin)
check = jsonschema.Draft7Validator(schema)
json.dump([[error.message for error in check.iter_errors(one)] for one in many], sys.stdout)
"""
by_name = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)

pytestmark = pytest.mark.slow


def helm(*words: str) -> str:
    program = shutil.which("helm") or (str(STAND_IN) if STAND_IN.exists() else None)
    if program is None:
        pytest.skip("NO HELM AND NO STAND-IN, SO THE CHART IS NOT RENDERED: run scripts/install-helm-template")
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise ValueError(done.stderr)
    return done.stdout


def template(values: Path, *, release: str = "goatdb") -> str:
    return helm("template", release, str(CHART), "--namespace", "goatdb", "--values", str(values))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Return the manifests of each example, by the example's name."""
    folder = tmp_path_factory.mktemp("rendered")
    found = {}
    for example in EXAMPLES:
        found[example.stem] = folder / example.name
        found[example.stem].write_text(template(example))
    return found


@pytest.fixture
def render(tmp_path: Path) -> Any:
    """Render an example, with some values changed."""

    def work(example: str, values: str = "", *, release: str = "goatdb") -> Path:
        merged = _override(yaml.safe_load((CHART / f"examples/{example}.yaml").read_text()), yaml.safe_load(values))
        given, into = tmp_path / "given.yaml", tmp_path / f"{len(list(tmp_path.iterdir()))}.yaml"
        given.write_text(yaml.safe_dump(merged))
        into.write_text(template(given, release=release))
        return into

    return work


def _override(first: Any, second: Any) -> Any:
    if not isinstance(first, dict) or not isinstance(second, dict):
        return first if second is None else second
    return {key: _override(first.get(key), second.get(key)) for key in {**first, **second}}


def of_kind(path: Path, kind: str, ending: str = "") -> list[dict[str, Any]]:
    return [each for each in documents(path) if each["kind"] == kind and each["metadata"]["name"].endswith(ending)]


def workloads(path: Path) -> Iterator[dict[str, Any]]:
    for kind in ("StatefulSet", "Deployment"):
        yield from of_kind(path, kind)


def containers_of(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def labels_of(workload: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return found


def own_containers(path: Path) -> Iterator[dict[str, Any]]:
    for container in containers(path):
        if container["image"].startswith("registry.example.org/goatherd@") or container.get("command") == ["goatherd"]:
            yield container


# --- every example ------------------------------------------------------------------------------------------------


def test_each_example_renders_into_what_kubernetes_takes(rendered: Mapping[str, Path], tmp_path: Path) -> None:
    """Kubernetes itself has no schema of a ServiceMonitor."""
    for path in rendered.values():
        known = [each for each in documents(path) if each["kind"] != "ServiceMonitor"]
        assert len({(each["kind"], each["metadata"]["name"]) for each in known}) == len(known)
        (tmp_path / path.name).write_text(yaml.safe_dump_all(known))
    check_manifests(*sorted(tmp_path.iterdir()))
    if shutil.which("helm"):
        for example in EXAMPLES:
            helm("lint", str(CHART), "--strict", "--values", str(example))


@by_name
def test_containers_are_confined_and_have_images_by_digest(rendered: Mapping[str, Path], example: Path) -> None:
    path = rendered[example.stem]
    check_confinement(path)
    check_keys_are_in_memory(path)
    for container in containers(path):
        assert re.search(r"@sha256:[0-9a-f]{64}$", container["image"]), "examples show images by digest"
        assert container["resources"]["requests"]["memory"]


@by_name
def test_every_mount_has_its_volume_and_every_volume_a_mount(rendered: Mapping[str, Path], example: Path) -> None:
    path = rendered[example.stem]
    for workload in workloads(path):
        pod = workload["spec"]["template"]["spec"]
        claims = workload["spec"].get("volumeClaimTemplates", [])
        volumes = [each["name"] for each in pod["volumes"]] + [each["metadata"]["name"] for each in claims]
        mounts = [mount for each in containers_of(pod) for mount in each["volumeMounts"]]
        assert len(set(volumes)) == len(volumes)
        assert {mount["name"] for mount in mounts} == set(volumes)
        for container in containers_of(pod):
            places = [mount["mountPath"] for mount in container["volumeMounts"]]
            assert len(set(places)) == len(places)
            assert "/tmp" in places, "nothing else can be written in a container"


@by_name
def test_goatherd_takes_command_lines_and_environment(rendered: Mapping[str, Path], example: Path) -> None:
    path = rendered[example.stem]
    for container in own_containers(path):
        check_command_line(container["args"])
        environ = {each["name"]: each.get("value", "") for each in container["env"]}
        config = None
        if "GOATHERD_CONFIG" in environ:
            (mount,) = [each for each in container["volumeMounts"] if each["mountPath"] == "/etc/goatherd"]
            (pod,) = [
                each for each in pods(path) if container in [*each.get("initContainers", []), *each["containers"]]
            ]
            (volume,) = [each for each in pod["volumes"] if each["name"] == mount["name"]]
            (found,) = of_kind(path, "ConfigMap", volume["configMap"]["name"])
            config = path.with_suffix(".toml")
            config.write_text(found["data"]["goatherd.toml"])
        options = load_options({}, environ, directory=path.parent, file=config)
        assert options.provider or options.stores_primary, "the store is named"
        if container["args"][0] in {"controller", "web"}:
            assert options.nodes


@by_name
def test_every_service_leads_to_a_port_of_pods_of_one_workload(rendered: Mapping[str, Path], example: Path) -> None:
    path = rendered[example.stem]
    for service in of_kind(path, "Service"):
        wanted = service["spec"]["selector"].items()
        (behind,) = [
            each for each in workloads(path) if wanted <= each["spec"]["template"]["metadata"]["labels"].items()
        ]
        pod = behind["spec"]["template"]["spec"]
        ports = [
            port for each in [*pod.get("initContainers", []), *pod["containers"]] for port in each.get("ports", [])
        ]
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            assert [each for each in ports if target in (each["name"], each["containerPort"])]
    for workload in workloads(path):
        selected = workload["spec"]["selector"]["matchLabels"].items()
        assert selected <= labels_of(workload).items()
        if workload["kind"] == "StatefulSet" and "nodes" in workload["spec"]["serviceName"]:
            (named,) = of_kind(path, "Service", workload["spec"]["serviceName"])
            assert named["spec"]["publishNotReadyAddresses"] is True


@by_name
def test_a_pod_has_an_account_that_exists_and_a_token_only_if_it_needs_one(
    rendered: Mapping[str, Path], example: Path
) -> None:
    path = rendered[example.stem]
    accounts = {each["metadata"]["name"] for each in of_kind(path, "ServiceAccount")}
    subjects = {each["subjects"][0]["name"] for each in of_kind(path, "RoleBinding")}
    assert subjects <= accounts
    for pod in pods(path):
        assert pod["serviceAccountName"] in accounts
        is_vault = any("vault://" in str(each.get("env")) for each in pod["containers"])
        assert pod["automountServiceAccountToken"] is (is_vault or pod["serviceAccountName"] in subjects)


LEASE = "k8s://goatdb/root-lease"
VAULTS = """
[stores]
primary = {region = "eu", provider = "vault://vault.eu:8200/secret/root?auth=kubernetes&role=goatherd"}
followers = [{region = "us", provider = "vault://vault.us:8200/secret/root?auth=kubernetes&role=goatherd"}]
"""
SIGNER = "--root-signer=transit://vault:8200/transit/root?auth=kubernetes&role=goatherd"


@pytest.mark.parametrize(
    ("example", "values", "expected"),
    [
        ("agent", {"store": {"uri": "aws://eu-west-1/root"}}, {"server": False, "controller": True}),
        (
            "agent",
            {"store": {"uri": "aws://eu-west-1/root"}, "server": {"unmodified": {"lease": LEASE}}},
            {"server": True, "controller": True},
        ),
        (
            "controller-only",
            {"store": {"uri": ""}, "controller": {"config": VAULTS}, "page": {"config": VAULTS}},
            {"controller": True, "page": True},
        ),
        ("controller-only", {}, {"controller": False, "page": False}),
        (
            "controller-only",
            {"controller": {"serviceAccount": {"mountToken": True}}},
            {"controller": True, "page": False},
        ),
        ("aws", {"server": {"serviceAccount": {"mountToken": True}}}, {"server": True, "controller": True}),
        ("aws", {"server": {"extraArgs": [SIGNER]}}, {"server": True, "controller": True}),
        ("vault", {"server": {"storeUri": "file:///keys/root"}}, {"server": False, "controller": True}),
    ],
    ids=[
        "lease in the store",
        "lease in a Secret",
        "Vault in [stores]",
        "cloud",
        "anchor in Vault that only the identity names",
        "token for a server",
        "Vault signs",
        "servers read a file",
    ],
)
def test_a_pod_has_a_token_for_each_address_that_needs_one(
    render: Any, example: str, values: dict[str, Any], expected: dict[str, bool]
) -> None:
    found = {
        labels_of(each)["app.kubernetes.io/component"]: each["spec"]["template"]["spec"]["automountServiceAccountToken"]
        for each in workloads(render(example, yaml.safe_dump(values)))
    }
    assert found == expected


def test_there_is_an_example_for_each_kind_of_server_and_each_store() -> None:
    texts = [yaml.safe_load(each.read_text()) for each in EXAMPLES]
    assert {each.get("server", {}).get("kind", "goatherd") for each in texts} == {
        "goatherd",
        "agent",
        "sidecar",
        "none",
    }
    assert {each.get("store", {}).get("uri", "").partition("://")[0] for each in texts} - {""} == SCHEMES
    page = (ROOT / "docs/how-to/helm.md").read_text()
    assert all(f"`{each.name}`" in page for each in EXAMPLES)


# --- rights -------------------------------------------------------------------------------------------------------


def roles_of(path: Path, account: str) -> list[dict[str, Any]]:
    """Return the Roles that are bound to a service account, as `goatherd policy` would write them."""
    bound = [each["roleRef"]["name"] for each in of_kind(path, "RoleBinding") if each["subjects"][0]["name"] == account]
    found = [each for each in of_kind(path, "Role") if each["metadata"]["name"] in bound]
    assert len(found) == len(bound)
    return [{"namespace": each["metadata"]["namespace"], "rules": each["rules"]} for each in found]


def printed(role: str, uri: str) -> dict[str, Any]:
    (found,) = [each for each in yaml.safe_load_all(policy(role, uri)) if each["kind"] == "Role"]
    return {"namespace": found["metadata"]["namespace"], "rules": found["rules"]}


REGIONS = """
[stores]
primary = {region = "eu", provider = "k8s://goatdb/root"}
followers = [
    {region = "us", provider = "aws://us-east-1/root"},
    {region = "ap", provider = "k8s://goatdb/root?kubeconfig=/etc/ap"},
]
"""
FINDS_NODES = {
    "namespace": "goatdb",
    "rules": [{"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list"]}],
}
"""As in docs/how-to/find-nodes.md, with which discovery is tested."""


def test_rights_are_those_that_goatherd_policy_prints(rendered: Mapping[str, Path], render: Any) -> None:
    """SECURITY: no account of the chart has another right."""
    own, agent = rendered["kubernetes"], rendered["agent"]
    server = printed("server", "k8s://goatdb/root")
    rotator = [printed("rotator", "k8s://goatdb/root"), FINDS_NODES]
    assert roles_of(own, "goatdb-goatherd-server") == [server]
    assert roles_of(own, "goatdb-goatherd-controller") == rotator
    for path in (agent, rendered["sidecar"]):
        lease = printed("rotator", "k8s://goatdb/root-lease")
        assert roles_of(path, "goatdb-goatherd-server") == [server, lease]
        assert roles_of(path, "goatdb-goatherd-controller") == rotator

    page = render("kubernetes", "page: {enabled: true, behind: ['10.1.0.0/16']}")
    assert roles_of(page, "goatdb-goatherd-page") == [server, FINDS_NODES]

    elsewhere = render("agent", "store: {uri: 'k8s://keys/{org}.root?context=c', organization: acme}")
    assert roles_of(elsewhere, "goatdb-goatherd-server") == [
        printed("server", "k8s://keys/acme.root"),
        printed("rotator", "k8s://keys/acme.root-lease"),
    ]
    assert {each["subjects"][0]["namespace"] for each in of_kind(elsewhere, "RoleBinding")} == {"goatdb"}
    regions = render(
        "agent",
        yaml.safe_dump({"store": {"uri": ""}, "server": {"config": REGIONS}, "controller": {"config": REGIONS}}),
    )
    assert roles_of(regions, "goatdb-goatherd-server") == [server, lease]
    assert roles_of(regions, "goatdb-goatherd-controller") == rotator
    assert not of_kind(render("kubernetes", "rbac: {create: false}"), "Role")
    assert {each["kind"] for name in SCHEMES - {"k8s"} for each in of_kind(rendered[name], "ClusterRole")} == set()
    assert roles_of(rendered["aws"], "goatdb-goatherd-controller") == [FINDS_NODES]
    assert roles_of(rendered["external-secrets"], "goatdb-goatherd-server") == []


# --- changes ------------------------------------------------------------------------------------------------------


def pod_template(path: Path, ending: str) -> dict[str, Any]:
    (found,) = [each for each in workloads(path) if each["metadata"]["name"].endswith(ending)]
    template: dict[str, Any] = found["spec"]["template"]
    return template


def test_a_change_restarts_only_the_pods_that_read_it(rendered: Mapping[str, Path], render: Any) -> None:
    """A new key restarts no pod, because the Secret is not part of the chart and no pod's template depends on it."""
    before, after = (
        rendered["kubernetes"],
        render("kubernetes", "controller: {config: '[rotation]\nadoption = \"9m\"'}"),
    )
    assert pod_template(before, "-controller") != pod_template(after, "-controller")
    assert pod_template(before, "goatherd") == pod_template(after, "goatherd")
    assert pod_template(after, "goatherd") != pod_template(
        render("kubernetes", "server: {config: '[agent]\ngrace = \"9s\"'}"), "goatherd"
    )
    for path in rendered.values():
        for workload in workloads(path):
            assert workload["metadata"]["annotations"] == {"reloader.stakater.com/auto": "false"}
            made = workload["spec"]["template"]["metadata"]
            assert not {"helm.sh/chart", "app.kubernetes.io/version"} & set(made["labels"])
            assert {name for name in made["annotations"] if name.startswith("checksum/")} <= {"checksum/config"}
        assert not of_kind(path, "Secret")
    assert not re.search(r"\blookup\b", "".join(path.read_text() for path in (CHART / "templates").iterdir()))


def test_servers_are_replaced_one_at_a_time_and_leave_gracefully(rendered: Mapping[str, Path], render: Any) -> None:
    for name in ("kubernetes", "agent", "sidecar"):
        (server,) = of_kind(rendered[name], "StatefulSet")
        assert server["spec"]["updateStrategy"] == {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}
        assert server["spec"]["minReadySeconds"] > 0
        pod = server["spec"]["template"]["spec"]
        (serves,) = [each for each in containers_of(pod) if "ports" in each]
        assert serves["readinessProbe"]["httpGet"] == {"path": "/healthy", "port": "http"}
        assert "livenessProbe" in serves
        pause = serves["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["terminationGracePeriodSeconds"] >= pause + 30 + 10, "what the agent and the server need"
        budgets = {each["metadata"]["name"]: each["spec"] for each in of_kind(rendered[name], "PodDisruptionBudget")}
        assert budgets["goatdb-goatherd-server"]["maxUnavailable"] == 1
        assert budgets["goatdb-goatherd-server"]["selector"] == server["spec"]["selector"]
    single = render("kubernetes", "server: {replicas: 1}\ncontroller: {replicas: 1}")
    assert not of_kind(single, "PodDisruptionBudget"), "it would block every drain"
    peers = [word for each in own_containers(rendered["aws"]) for word in each["args"] if word.startswith("--peer=")]
    assert peers == [f"--peer=http://goatdb-goatherd-{n}.goatdb-goatherd-nodes:8080" for n in range(5)]


# --- an unmodified server -----------------------------------------------------------------------------------------


def test_only_the_door_of_an_unmodified_server_can_be_reached(rendered: Mapping[str, Path]) -> None:
    """SECURITY: the server's own port exposes its key (docs/explanation/door.md)."""
    for name in ("agent", "sidecar"):
        path = rendered[name]
        (server,) = of_kind(path, "NetworkPolicy", "-server")
        (rule,) = server["spec"]["ingress"]
        assert rule["ports"] == [{"port": 8080}]
        assert server["spec"]["podSelector"] == of_kind(path, "StatefulSet")[0]["spec"]["selector"]
        (pod,) = [each for each in pods(path) if each.get("shareProcessNamespace")]
        everything = containers_of(pod)
        assert [port["containerPort"] for each in everything for port in each.get("ports", [])] == [8080]
        (goatdb,) = [each for each in everything if each["name"] == "goatdb"]
        assert {"name": "PORT", "value": "8081"} in goatdb["env"]
        assert any("http://127.0.0.1:8081" in word for each in everything for word in each.get("args", []))
    assert rendered["sidecar"].read_text().count("kubernetes.io/metadata.name: ingress") == 1


def test_the_sidecar_s_server_writes_its_process_id_and_keeps_its_arguments(
    rendered: Mapping[str, Path], tmp_path: Path
) -> None:
    (server,) = [each for each in containers(rendered["sidecar"]) if each["name"] == "goatdb"]
    assert server["args"] == ["deno", "run", "-A", "server.ts"]
    words = [*server["command"], "sh", "-c", 'test "$0" = "a b"', "a b"]
    pid = run_as_kubernetes(words, {"/srv/goatdb": str(tmp_path)})
    assert int((tmp_path / "server.pid").read_text()) == pid
    (watch,) = [each for each in containers(rendered["sidecar"]) if each["name"] == "watch"]
    assert "--pid-file=/srv/goatdb/server.pid" in watch["args"]


# --- the rest -----------------------------------------------------------------------------------------------------


def test_prometheus_reads_each_server_and_each_controller_once(rendered: Mapping[str, Path]) -> None:
    path = rendered["aws"]
    for monitor, port, where in (("server", "http", "/goatherd/v1/metrics"), ("controller", "metrics", "/metrics")):
        (found,) = of_kind(path, "ServiceMonitor", monitor)
        assert found["apiVersion"] == "monitoring.coreos.com/v1"
        assert found["metadata"]["labels"]["release"] == "prometheus"
        wanted = found["spec"]["selector"]["matchLabels"].items()
        (service,) = [each for each in of_kind(path, "Service") if wanted <= each["metadata"]["labels"].items()]
        (endpoint,) = found["spec"]["endpoints"]
        assert (endpoint["port"], endpoint["path"]) == (port, where)
        assert port in [each["name"] for each in service["spec"]["ports"]]
        made = pod_template(path, {"server": "goatherd"}.get(monitor, monitor))["metadata"]["annotations"]
        assert not [name for name in made if name.startswith("prometheus.io/")]
    made = pod_template(rendered["kubernetes"], "goatherd")["metadata"]["annotations"]
    assert made["prometheus.io/path"] == "/goatherd/v1/metrics"


@pytest.mark.parametrize("example", ["kubernetes", "agent", "sidecar"])
def test_pods_listen_on_the_address_that_the_values_name(render: Any, example: str) -> None:
    """Pods of an IPv6 cluster have no other addresses than those of IPv6."""
    values = {"page": {"enabled": True, "behind": ["fd00::/8"]}, "controller": {"nodes": ["http://goats:8080"]}}
    for address, metrics in (("0.0.0.0", "0.0.0.0:9464"), ("::", "[::]:9464")):
        words = [
            word
            for each in own_containers(render(example, yaml.safe_dump(values | {"listenAddress": address})))
            for word in each["args"]
            if re.match("--((door-)?host|metrics)=", word)
        ]
        flag = "--door-host" if example == "agent" else "--host"
        assert sorted(words) == sorted([f"{flag}={address}", f"--host={address}", f"--metrics={metrics}"])


def test_placement_accounts_and_environment_reach_the_pods(rendered: Mapping[str, Path]) -> None:
    given = yaml.safe_load((CHART / "examples/aws.yaml").read_text())["server"]
    pod = pod_template(rendered["aws"], "goatherd")["spec"]
    for name in ("nodeSelector", "tolerations", "affinity", "topologySpreadConstraints", "priorityClassName"):
        assert pod[name] == given[name]
    spread = pod_template(rendered["kubernetes"], "goatherd")["spec"]["topologySpreadConstraints"]
    assert [each["topologyKey"] for each in spread] == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
    (account,) = of_kind(rendered["aws"], "ServiceAccount", "-server")
    assert account["metadata"]["annotations"] == given["serviceAccount"]["annotations"]
    assert pod_template(rendered["azure"], "goatherd")["metadata"]["labels"]["azure.workload.identity/use"] == "true"
    for path in (rendered["vault"], rendered["file"]):
        for workload in workloads(path):
            pod = workload["spec"]["template"]["spec"]
            mounts = {mount["name"] for each in pod["containers"] for mount in each["volumeMounts"]}
            assert {"vault-ca", "store"} & mounts & {each["name"] for each in pod["volumes"]}
    (controller,) = [each for each in workloads(rendered["aws"]) if each["metadata"]["name"].endswith("controller")]
    assert controller["kind"] == "StatefulSet", "each controller keeps an audit trail of its own"
    (claim,) = controller["spec"]["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "audit"


def test_the_release_of_a_region_knows_the_servers_of_the_other_region(rendered: Mapping[str, Path]) -> None:
    by_command = {each["args"][0]: each for each in own_containers(rendered["regions"])}
    peers = {word.removeprefix("--peer=") for word in by_command["serve"]["args"] if word.startswith("--peer=")}
    elsewhere = {peer for peer in peers if "goatherd-nodes" not in peer}
    assert elsewhere
    assert peers - elsewhere
    for name in ("controller", "web"):
        environ = {each["name"]: each["value"] for each in by_command[name]["env"]}
        nodes = set(environ["GOATHERD_NODES"].split(","))
        assert nodes == {*elsewhere, "k8s-service://goatdb/goatdb-goatherd-nodes:http"}
        account = f"goatdb-goatherd-{'page' if name == 'web' else name}"
        assert roles_of(rendered["regions"], account) == [FINDS_NODES]


def test_the_page_of_the_chart_is_not_served_without_signing_in(rendered: Mapping[str, Path]) -> None:
    def arguments(name: str) -> list[str]:
        (page,) = [each for each in containers(rendered[name]) if each.get("args", [""])[0] == "web"]
        found: list[str] = page["args"]
        return found

    assert "--token=env:GOATHERD_PAGE_TOKEN" in arguments("controller-only")
    assert "--certificate=/etc/goatherd-page/tls.crt" in arguments("controller-only")
    assert "--behind=10.1.0.0/16" in arguments("regions")


def test_the_page_behind_a_proxy_keeps_the_token_and_the_certificate_that_the_values_name(render: Any) -> None:
    """SECURITY: the proxy does not replace a token or a certificate that is given."""

    def page(values: str) -> tuple[set[str], set[str], set[str]]:
        path = render("regions", f"page: {{{values}}}")
        (pod,) = [each for each in pods(path) if each["containers"][0]["args"][0] == "web"]
        (container,) = pod["containers"]
        flags = {word.partition("=")[0] for word in container["args"]} & {"--token", "--certificate", "--behind"}
        secrets = {each["secret"]["secretName"] for each in pod["volumes"] if "secret" in each}
        return flags, secrets, {each["name"] for each in container["env"]} & {"GOATHERD_PAGE_TOKEN"}

    token, tls = "token: {secretName: page-token}", "tlsSecretName: page-tls"
    assert page("") == ({"--behind"}, set(), set())
    assert page(token) == ({"--behind", "--token"}, set(), {"GOATHERD_PAGE_TOKEN"})
    assert page(tls) == ({"--behind", "--certificate"}, {"page-tls"}, set())
    assert page(f"{token}, {tls}") == ({"--behind", "--token", "--certificate"}, {"page-tls"}, {"GOATHERD_PAGE_TOKEN"})


@pytest.mark.parametrize(
    ("example", "values", "message"),
    [
        ("kubernetes", "store: {uri: ''}", "store.uri must name the store"),
        ("kubernetes", "page: {enabled: true}", "page needs token.secretName and tlsSecretName"),
        ("agent", "server: {unmodified: {image: {repository: ''}}}", "server.unmodified.image.repository"),
        ("agent", "server: {unmodified: {image: {digest: ''}}}", "a digest, or a tag"),
        ("sidecar", "server: {unmodified: {command: []}}", "server.unmodified.command must start"),
        ("sidecar", "server: {unmodified: {port: 8080}}", "must differ from the door's port"),
        ("controller-only", "controller: {nodes: []}", "controller.nodes must list the servers"),
        ("external-secrets", "server: {volumeSecret: ''}", "server.volumeSecret must name the Secret"),
        ("kubernetes", "store: {uri: 'file:///store/root'}", "must mount the directory of the file:// store"),
        ("file", "store: {volumeMounts: []}", "must mount the directory of the file:// store"),
        ("agent", "server: {preStopSeconds: 60}", "terminationGracePeriodSeconds must be longer than server.preStop"),
        ("agent", "store: {volumes: [{name: keys, emptyDir: {}}]}", "store.volumes: keys is the name of a volume"),
        ("agent", "store: {volumeMounts: [{name: x, mountPath: /keys}]}", "mounts a volume of its own at /keys"),
        ("agent", "server: {storeUri: 'k8s-volume:///keys', volumeSecret: x}", "server.unmodified.lease must name"),
    ],
)
def test_values_that_make_no_cluster_are_refused(render: Any, example: str, values: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        render(example, values)


@pytest.mark.parametrize("section", ["[stores]\nprimary = {STORE}", "# Both\n[stores.primary]\nSTORE", " [ stores ]\n"])
def test_stores_that_a_configuration_names_need_no_uri(render: Any, section: str) -> None:
    config = section.replace("STORE", "region = 'eu'")
    values = {"store": {"uri": ""}, "controller": {"config": config}, "page": {"enabled": False}}
    render("controller-only", yaml.safe_dump(values))


@pytest.mark.parametrize(
    ("example", "values"),
    [
        ("file", "store: {volumes: [{name: keys, emptyDir: {}}], volumeMounts: [{name: keys, mountPath: /keys}]}"),
        (
            "agent",
            "server: {storeUri: 'k8s-volume:///etc/root', volumeSecret: x, extraArgs: ['--lease=k8s://goatdb/root-lease']}",
        ),
        ("agent", "server: {storeUri: 'k8s-volume:///etc/root', volumeSecret: x, config: '[agent]\nlease = \"none\"'}"),
    ],
)
def test_values_of_an_earlier_version_of_the_chart_are_taken(render: Any, example: str, values: str) -> None:
    assert of_kind(render(example, values), "StatefulSet")


@pytest.mark.parametrize("example", ["file", "agent", "sidecar", "aws"])
def test_an_upgrade_that_reuses_the_values_of_an_earlier_version_listens(render: Any, example: str) -> None:
    """`helm upgrade --reuse-values` lacks the values that are new."""
    values = {"listenAddress": None, "page": {"enabled": True, "behind": ["10.1.0.0/16"]}}
    found = render(example, yaml.safe_dump(values)).read_text()
    assert "0.0.0.0" in found
    assert "%!s" not in found


def test_names_stay_short_enough_for_pods(render: Any) -> None:
    path = render("kubernetes", release="a-very-long-name-of-a-release-with-50-characters-xx")
    assert max(len(each["metadata"]["name"]) for each in workloads(path)) <= 63 - len("-0123456789")
    assert {each["metadata"]["name"] for each in of_kind(render("kubernetes", release="goatherd"), "StatefulSet")} == {
        "goatherd"
    }


def notes_of(values: Path) -> str:
    line = ["goatdb", str(CHART), "--namespace", "goatdb", "--values", str(values)]
    return helm(*(["install", *line, "--dry-run=client"] if shutil.which("helm") else ["template", *line, "--notes"]))


def test_the_notes_say_what_to_do_next() -> None:
    notes = notes_of(CHART / "examples/agent.yaml")
    for line_ in re.findall(r"(?:^|-- )goatherd (.*)$", re.sub(r"^ +", "", notes, flags=re.MULTILINE), re.MULTILINE):
        check_command_line(line_.replace("'", "").split())
    assert "goatherd init --provider 'k8s://goatdb/root'" in notes
    assert "--restart-lease" in notes
    assert "WARNING" not in notes
    assert "The page is at" not in notes
    assert "The page is at https://goatdb-goatherd-page.goatdb:8090" in notes_of(
        CHART / "examples/controller-only.yaml"
    )
    assert "The page is at http://goatdb-goatherd-page.goatdb:8090" in notes_of(CHART / "examples/regions.yaml")


@pytest.mark.parametrize(
    ("server", "arguments"),
    [
        ({}, "--provider 'aws://eu-west-1/root' --make"),
        ({"storeUri": "vault://vault:8200/secret/root"}, "--provider 'vault://vault:8200/secret/root' --make"),
        (
            {"storeUri": "k8s-volume:///keys", "volumeSecret": "root", "unmodified": {"lease": LEASE}},
            f"--lease '{LEASE}' --make",
        ),
        ({"unmodified": {"lease": "none"}}, None),
    ],
    ids=["default", "servers' own store", "named", "none"],
)
def test_the_notes_create_the_lease_that_the_agents_use(
    tmp_path: Path, server: dict[str, Any], arguments: str | None
) -> None:
    values = yaml.safe_load((CHART / "examples/agent.yaml").read_text())
    given = tmp_path / "values.yaml"
    given.write_text(yaml.safe_dump(_override(values, {"store": {"uri": "aws://eu-west-1/root"}, "server": server})))
    found = re.findall(r"goatherd status --restart-lease (.*)", notes_of(given))
    assert found == ([] if arguments is None else [arguments])


def test_the_command_of_the_notes_that_explains_the_schedule_sees_all_of_it(render: Any, tmp_path: Path) -> None:
    """The command runs beside the controller, so it has the container's environment, but not its arguments."""
    assert "controller --explain\n" in (CHART / "templates/NOTES.txt").read_text()
    schedule = {
        "cron": "0 3 1 * *",
        "maxAge": "60d",
        "timezone": "Europe/Berlin",
    }
    (container,) = [
        each
        for each in own_containers(render("kubernetes", yaml.safe_dump({"controller": {"schedule": schedule}})))
        if each["args"][0] == "controller"
    ]
    environ = {each["name"]: each["value"] for each in container["env"]}
    options = load_options({}, environ, directory=tmp_path)
    assert options.controller_cron == schedule["cron"]
    assert options.controller_max_age == timedelta(days=60)
    assert options.controller_timezone == schedule["timezone"]
    assert container["args"] == ["controller", "--metrics=0.0.0.0:9464"]
    unscheduled = yaml.safe_dump({"controller": {"schedule": {"cron": "", "timezone": "", "maxAge": ""}}})
    assert "GOATHERD_CONTROLLER_" not in render("kubernetes", unscheduled).read_text()


def test_the_chart_s_version_is_the_project_s() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == goatherd.__version__


class Commands:
    """Runs `goatherd` as the containers of the chart do, with their environment, against one API server.

    Args:
        folder: The working directory.
        kubeconfig: Returns the content of a kubeconfig with a token.
    """

    def __init__(self, folder: Path, kubeconfig: Callable[[str], dict[str, Any]]) -> None:
        self._folder, self._kubeconfig = folder, kubeconfig
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, container: dict[str, Any], token: str, *arguments: str) -> subprocess.Popen[str]:
        """Start `goatherd` with these arguments, and the token and the environment of a container."""
        config = self._folder / f"{hashlib.sha256(token.encode()).hexdigest()[:8]}.json"
        config.write_text(json.dumps(self._kubeconfig(token)))
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GOATHERD_")}
        given = {each["name"]: each["value"] for each in container["env"]}
        process = subprocess.Popen(
            [sys.executable, "-m", "goatherd", *arguments],
            env={**kept, **given, "KUBECONFIG": str(config)},
            cwd=self._folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._stack.callback(process.communicate)
        self._stack.callback(process.kill)
        return process

    def run(self, container: dict[str, Any], token: str, *arguments: str) -> str:
        """Run `goatherd` to its end, which must be a success; return its output."""
        process = self.start(container, token, *arguments)
        out, err = process.communicate(timeout=HANG)
        assert process.returncode == 0, out + err
        return out

    def fail(self, container: dict[str, Any], token: str, *arguments: str) -> str:
        """Run `goatherd` to its end, which must be an error; return the message."""
        process = self.start(container, token, *arguments)
        _, err = process.communicate(timeout=HANG)
        assert process.returncode not in (0, 1, 2), err
        return err

    def serve(self, container: dict[str, Any], token: str) -> int:
        """Start a server with the command line of its container, but without peers; return its port."""
        (port,) = free_ports(1)
        data = self._folder / "data"
        data.mkdir(exist_ok=True)
        replace = {
            "--data=/srv/goatdb": f"--data={data}",
            "--host=0.0.0.0": "--host=127.0.0.1",
            "--port=8080": f"--port={port}",
        }
        peerless = [word for word in container["args"] if not word.startswith("--peer=")]
        running = self.start(container, token, *[replace.pop(word, word) for word in peerless])
        assert not replace
        assert running.stdout is not None
        assert running.stdout.readline().startswith(f"ready at http://127.0.0.1:{port}")
        return port


def nodes_slice(port: int) -> dict[str, Any]:
    """Return the EndpointSlice of the chart's Service of the servers, with one server on this machine."""
    return {
        "metadata": {
            "name": "goatdb-goatherd-nodes-1",
            "namespace": "goatdb",
            "labels": {"kubernetes.io/service-name": "goatdb-goatherd-nodes"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": True}}],
    }


@pytest.mark.deep
def test_a_server_and_the_controller_work_with_the_rights_and_the_command_lines_of_the_chart(
    rendered: Mapping[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("kubernetes_asyncio", reason="needs the extra kubernetes")
    path = rendered["kubernetes"]
    by_command = {each["args"][0]: each for each in own_containers(path)}
    server, controller = by_command["serve"], by_command["controller"]
    with FakeKubernetes(namespaces=["goatdb"]) as cluster:

        def kubeconfig(token: str) -> dict[str, Any]:
            return {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": cluster.url}}],
                "users": [{"name": "u", "user": {"token": token}}],
            }

        with Commands(tmp_path, kubeconfig) as commands:

            def current() -> str:
                return str(json.loads(commands.run(server, ADMIN_TOKEN, "show", "--json"))["current"]["id"])

            commands.run(server, ADMIN_TOKEN, "init")
            first = current()
            port = commands.serve(server, cluster.account("server", *of_kind(path, "Role", "-server-root")))
            cluster.slices["goatdb"] = [nodes_slice(port)]
            roles = [*of_kind(path, "Role", "-controller-root"), *of_kind(path, "Role", "-find-nodes")]
            token = cluster.account("controller", *roles)
            explained = commands.run(controller, token, "controller", "--explain")
            assert "keys older than 30d, in the minutes of `* 2-4 * * MON-FRI` in Europe/Berlin" in explained
            commands.run(controller, token, "rotate", "--unlisted", "0s")
            assert current() != first
            assert signer_of(port) == current()


def signer_of(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/goatherd/v1/identity", timeout=HANG) as answer:
        return str(json.load(answer)["signer"])


# --- the schema ---------------------------------------------------------------------------------------------------


@functools.cache
def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
    return found


def problems(*values: str) -> list[list[str]]:
    """Return the schema's complaints about the chart's default values, overridden by each of the given ones."""
    python = LINTERS / "python"
    if not python.exists():
        pytest.skip("jsonschema IS NOT INSTALLED, SO VALUES ARE NOT VALIDATED: run scripts/install-linters")
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    merged = [_override(defaults, yaml.safe_load(each)) for each in values]
    line = [str(python), "-c", IS_VALID]
    done = subprocess.run(
        line, input=json.dumps([schema(), merged]), capture_output=True, text=True, timeout=60, check=True
    )
    found: list[list[str]] = json.loads(done.stdout)
    return found


def test_the_defaults_and_every_example_pass_the_schema() -> None:
    assert problems("", *[each.read_text() for each in EXAMPLES]) == [[]] * (len(EXAMPLES) + 1)


REFUSED = {
    "server: {replica: 3}": "'replica' was unexpected",
    "srever: {}": "'srever' was unexpected",
    "controller: {schedule: {chron: '0 3 1 * *'}}": "'chron' was unexpected",
    "page: {token: {name: x}}": "'name' was unexpected",
    "networkPolicy: {client: []}": "'client' was unexpected",
    "listenAddress: localhost": "'localhost' is not one of",
    "server: {kind: deno}": "'deno' is not one of",
    "server: {replicas: '3'}": "'3' is not of type 'integer'",
    "server: {replicas: 0}": "0 is less than the minimum",
    "image: {digest: 'sha256:abc'}": "'sha256:abc' does not match",
    "image: {repository: 'goatherd@sha256:abc'}": "does not match",
    "store: {uri: 's3://bucket/root'}": "'s3://bucket/root' does not match",
    "store: {uri: 'k8s-volume:///x'}": "does not match",
    "store: {env: [{nam: X}]}": "'nam' was unexpected",
    "controller: {nodes: ['10.0.0.1:8080']}": "does not match",
    "controller: {schedule: {maxAge: 60 days}}": "does not match",
    "server: {persistence: {size: big}}": "'big' does not match",
    "server: {podDisruptionBudget: {maxUnavailable: 0}}": "is not valid under any of the given schemas",
    "podSecurityContext: {runAsNonRoot: false}": "True was expected",
    "podSecurityContext: {runAsUser: 0}": "0 is less than the minimum",
    "securityContext: {readOnlyRootFilesystem: false}": "True was expected",
    "securityContext: {privileged: true}": "False was expected",
}


@pytest.mark.parametrize("unit", ["ms", "s", "m", "h", "d", "w"])
def test_the_schema_accepts_the_units_of_time_that_goatherd_accepts(unit: str) -> None:
    assert parse_duration(f"8{unit}")
    assert problems(f"controller: {{schedule: {{maxAge: 8{unit}}}}}") == [[]]


def test_values_that_are_misspelled_or_unsafe_are_refused_by_the_schema() -> None:
    for (values, expected), found in zip(REFUSED.items(), problems(*REFUSED), strict=True):
        assert any(expected in each for each in found), (values, found)


def test_the_schema_has_exactly_the_values_of_values_yaml() -> None:
    def compare(values: Any, of: Mapping[str, Any], where: str) -> None:
        of = schema()["definitions"][of["$ref"].rpartition("/")[2]] if "$ref" in of else of
        if of.get("additionalProperties") is not False or not isinstance(values, dict):
            return
        optional = {"global"} if not where else {"claims"}
        assert set(of["properties"]) - optional == set(values), where
        for name, value in values.items():
            compare(value, of["properties"][name], f"{where}.{name}")

    compare(yaml.safe_load((CHART / "values.yaml").read_text()), schema(), "")
