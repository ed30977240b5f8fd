"""The Helm chart against a real kube-apiserver: each example is accepted, and its rights are enough and needed.

Runs when `GOATHERD_KUBE_APISERVER` names the program, as tests/contract/kubernetes/test_real.py does. What the chart
sends, the server must store: a field that it does not know is an error. Fields that are newer than the server's version
are listed in `adapt`, with the version that has brought them, and are not sent.

An API server before 1.21 has neither ``policy/v1`` nor ``discovery.k8s.io/v1``. PodDisruptionBudgets are then sent as
``policy/v1beta1``, which has the same fields. EndpointSlices are a custom resource in the place of the built-in one, so
that a real server stores, lists and authorizes them; both versions have what Goatherd reads of them.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

pytest.importorskip("kubernetes_asyncio", reason="needs the extra kubernetes")

from goatherd.cluster.discovery import source_of
from goatherd.errors import DiscoveryError
from tests.deadlines import ANSWER, HANG
from tests.deploy.test_chart import (
    CHART,
    EXAMPLES,
    Commands,
    nodes_slice,
    of_kind,
    own_containers,
    signer_of,
    template,
)
from tests.deploy.test_deploy import MANIFESTS, documents
from tests.fakes.kubernetes_fake import FakeKubernetes
from tests.fakes.kubernetes_real import WHY_SKIPPED, Fields, RealKubernetes, find_programs

pytestmark = pytest.mark.slow

if find_programs() is None:
    pytest.skip(WHY_SKIPPED, allow_module_level=True)

SERVICE = "kubernetes.io/service-name"
ANY_FIELDS: Fields = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def definition(group: str, kind: str, plural: str, schema: Fields, *versions: str) -> Fields:
    """Return the CustomResourceDefinition of a resource; the first version is the one in which it is stored."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, for a test only"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()},
            "versions": [
                {
                    "name": each,
                    "served": True,
                    "storage": each == versions[0],
                    "schema": {"openAPIV3Schema": schema},
                }
                for each in versions
            ],
        },
    }


def objects(**properties: Fields) -> Fields:
    return {"type": "object", "properties": properties}


TEXT: Fields = {"type": "string"}
LABELS: Fields = {"type": "object", "additionalProperties": TEXT}
# Of the Prometheus operator's definition, the fields that the chart uses.
SERVICE_MONITOR = definition(
    "monitoring.coreos.com",
    "ServiceMonitor",
    "servicemonitors",
    objects(
        spec=objects(
            selector=objects(matchLabels=LABELS),
            endpoints={"type": "array", "items": objects(port=TEXT, path=TEXT, interval=TEXT)},
        )
    ),
    "v1",
)
# Of the example for AWS.
PRIORITY_CLASS: Fields = {
    "apiVersion": "scheduling.k8s.io/v1",
    "kind": "PriorityClass",
    "metadata": {"name": "databases"},
    "value": 1000,
}
ENDPOINT_SLICE = definition("discovery.k8s.io", "EndpointSlice", "endpointslices", ANY_FIELDS, "v1beta1", "v1")


@pytest.fixture(scope="module")
def server() -> Iterator[RealKubernetes]:
    with RealKubernetes("--runtime-config=discovery.k8s.io/v1beta1=false") as running:
        running.install(SERVICE_MONITOR, *([] if running.serves("discovery.k8s.io/v1") else [ENDPOINT_SLICE]))
        running.create_namespace("goatdb")
        assert running.apply(PRIORITY_CLASS).status_code == 201
        yield running


# --- what is sent -------------------------------------------------------------------------------------------------


def adapt(content: Fields, server: RealKubernetes) -> Fields:
    """Return an object without what is newer than the server, by the server's own schema."""
    content = copy.deepcopy(content)
    if content["kind"] == "CronJob" and not server.serves("batch/v1", "CronJob"):  # since 1.21
        content["apiVersion"] = "batch/v1beta1"
    if content["kind"] == "PodDisruptionBudget":
        if not server.serves("policy/v1"):  # since 1.21
            content["apiVersion"] = "policy/v1beta1"
        if not server.knows("policy.v1.PodDisruptionBudgetSpec", "unhealthyPodEvictionPolicy"):  # since 1.26
            del content["spec"]["unhealthyPodEvictionPolicy"]
    if content["kind"] == "StatefulSet" and not server.knows("apps.v1.StatefulSetSpec", "minReadySeconds"):  # 1.22
        content["spec"].pop("minReadySeconds", None)
    template = pod_template(content)
    if template is not None:
        pod = template["spec"]
        if not server.knows("core.v1.Container", "restartPolicy"):  # since 1.28
            # An init container that stays is sent as an ordinary container.
            stays = [each for each in pod.get("initContainers", []) if each.pop("restartPolicy", None) == "Always"]
            if stays:
                pod["initContainers"] = [each for each in pod["initContainers"] if each not in stays]
                pod["containers"] += stays
        if not server.knows("core.v1.LifecycleHandler", "sleep"):  # since 1.29
            for container in pod["containers"]:
                if "sleep" in container.get("lifecycle", {}).get("preStop", {}):
                    del container["lifecycle"]
    return content


def pod_template(content: Fields) -> Fields | None:
    """Return the template from which a workload makes its pods; None if the object is no workload."""
    spec = content.get("spec", {})
    template: Fields | None = spec.get("jobTemplate", {}).get("spec", spec).get("template")
    return template


def pod_of(content: Fields) -> Fields | None:
    """Return a Pod as the workload's controller makes it, with the volumes of its claims."""
    template = copy.deepcopy(pod_template(content))
    if template is None:
        return None
    for claim in content["spec"].get("volumeClaimTemplates", []):
        name = claim["metadata"]["name"]
        template["spec"].setdefault("volumes", []).append({"name": name, "persistentVolumeClaim": {"claimName": name}})
    metadata = {**template["metadata"], "name": "goatdb-0", "namespace": content["metadata"]["namespace"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def lost(sent: Any, stored: Any, where: str = "") -> list[str]:
    """Return the fields that were sent and are not stored as sent; the server may add others."""
    if isinstance(sent, dict) and sent:
        if not isinstance(stored, dict):
            return [where]
        return [found for name, value in sent.items() for found in lost(value, stored.get(name), f"{where}.{name}")]
    if isinstance(sent, list) and sent:
        if not isinstance(stored, list) or len(stored) < len(sent):
            return [where]
        pairs = zip(sent, stored, strict=False)
        return [found for number, (one, two) in enumerate(pairs) for found in lost(one, two, f"{where}[{number}]")]
    # An empty list, map or text and nothing are the same to the API.
    return [] if sent == stored or (not sent and sent is not False and not stored) else [where]


def send(server: RealKubernetes, manifest: Path, *, dry_run: bool = False) -> list[Fields]:
    """Apply each object of a manifest, its pods for validation only; return the objects as the server has them."""
    found = []
    for each in documents(manifest):
        content = adapt(each, server)
        found.append(apply(server, content, dry_run=dry_run))
        # A StatefulSet of 1.20 is taken whatever its pods are.
        if (pod := pod_of(content)) is not None:
            apply(server, pod, dry_run=True)
    return found


def apply(server: RealKubernetes, content: Fields, *, dry_run: bool) -> Fields:
    answer = server.apply(content, dry_run=dry_run)
    name = f"{content['kind']} {content['metadata']['name']}"
    assert answer.status_code in (200, 201), f"{name}: {answer.text}"
    stored: Fields = answer.json()
    assert lost(content, stored) == [], f"{name}: the server dropped or changed these fields"
    return stored


# --- every example ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_server_stores_every_object_of_each_example_as_it_was_sent(
    server: RealKubernetes, tmp_path: Path, example: Path
) -> None:
    check_is_stored(server, template(example), example.stem, tmp_path)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)
def test_the_server_stores_every_object_of_each_manifest_as_it_was_sent(
    server: RealKubernetes, tmp_path: Path, manifest: Path
) -> None:
    check_is_stored(server, manifest.read_text(), f"without-helm-{manifest.stem}", tmp_path)


def check_is_stored(server: RealKubernetes, text: str, namespace: str, folder: Path) -> None:
    """Send a manifest as a dry run, then for real, then again, in a namespace of its own."""
    server.create_namespace(namespace)
    manifest = folder / "manifest.yaml"
    manifest.write_text(text.replace("namespace: goatdb\n", f"namespace: {namespace}\n"))
    for content in send(server, manifest, dry_run=True):
        assert server.ask("GET", server.path_of(content)).status_code == 404, "a dry run stores nothing"
    applied = send(server, manifest)
    for content in applied:
        stored = server.ask("GET", server.path_of(content)).json()
        assert stored["metadata"]["uid"] == content["metadata"]["uid"]
    again = [each["metadata"].get("generation") for each in send(server, manifest)]
    assert again == [each["metadata"].get("generation") for each in applied], "nothing changes if it is applied again"
    check_rights(server, manifest, namespace)


def check_rights(server: RealKubernetes, manifest: Path, namespace: str) -> None:
    """SECURITY: the API server gives each account what its Roles say, which other tests compare, and no other right."""
    for account in of_kind(manifest, "ServiceAccount"):
        name = account["metadata"]["name"]
        bindings = [each for each in of_kind(manifest, "RoleBinding") if each["subjects"][0]["name"] == name]
        roles = {each["roleRef"]["name"] for each in bindings}
        wanted = [
            rule for each in of_kind(manifest, "Role") if each["metadata"]["name"] in roles for rule in each["rules"]
        ]
        token = server.token_of(namespace, name)

        def has_exactly_these(token: str = token, wanted: list[Fields] = wanted) -> bool:
            return sorted(map(repr, rules_of(server, token, namespace))) == sorted(map(repr, map(normal, wanted)))

        server.wait_until(f"{name} may do {wanted}", has_exactly_these)


def rules_of(api: RealKubernetes, token: str, namespace: str) -> list[Fields]:
    """Return what a token may do in a namespace, as the API server tells, without what every account may."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    answer = api.ask("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", review, token=token).json()
    rules: list[Fields] = answer["status"]["resourceRules"]
    return [normal(each) for each in rules if each["apiGroups"] != ["authorization.k8s.io"]]


def normal(rule: Fields) -> Fields:
    """Return a rule with its members and their items in a fixed order."""
    return {name: sorted(rule[name]) for name in sorted(rule)}


@pytest.mark.parametrize(
    ("example", "kind", "where", "value"),
    [
        ("aws", "StatefulSet", "spec.template.spec.containers.0.readinesProbe", {}),
        ("aws", "StatefulSet", "spec.template.spec.terminationGracePeriodSeconds", "soon"),
        ("aws", "StatefulSet", "spec.template.spec.containers.0.volumeMounts.0.name", "not-a-volume"),
        ("kubernetes", "Deployment", "spec.template.spec.restartPolicy", "Never"),
        ("kubernetes", "Role", "rules.0.resourceName", ["root"]),
        ("aws", "NetworkPolicy", "spec.policyType", ["Ingress"]),
        ("aws", "PodDisruptionBudget", "spec.maxUnavailable", "some"),
        ("aws", "ServiceMonitor", "spec.endpoints.0.intervall", "30s"),
    ],
)
def test_a_field_or_a_value_that_the_server_does_not_know_is_noticed(
    server: RealKubernetes, tmp_path: Path, example: str, kind: str, where: str, value: object
) -> None:
    """Shows that the test above can fail: the server rejects the object, or stores it without the field."""
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text(template(CHART / f"examples/{example}.yaml"))
    content = copy.deepcopy(next(each for each in documents(manifest) if each["kind"] == kind))
    *path, last = where.split(".")
    at: Any = content
    for step in path:
        at = at[int(step)] if isinstance(at, list) else at[step]
    at[last] = value
    manifest = tmp_path / "wrong.yaml"
    manifest.write_text(yaml.safe_dump(content))
    with pytest.raises(AssertionError, match=last):
        send(server, manifest, dry_run=True)


# --- rights -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Installed:
    """The example `kubernetes`, applied, with tokens of its service accounts and the containers that have them."""

    api: RealKubernetes
    path: Path
    server: Fields
    controller: Fields
    server_token: str
    controller_token: str

    @contextlib.contextmanager
    def without(self, kind: str, name: str) -> Iterator[None]:
        """Remove an object of the chart within the block."""
        (content,) = of_kind(self.path, kind, name)
        assert self.api.ask("DELETE", self.api.path_of(content)).status_code == 200
        yield
        assert self.api.apply(content).status_code == 201

    def wait_until(self, token: str, verb: str, resource: str, *, allowed: bool) -> None:
        """Wait until the API server's authorizer has seen a change of the Roles."""
        group, _, plural = resource.rpartition("/")
        attributes = {"namespace": "goatdb", "verb": verb, "group": group, "resource": plural, "name": "root"}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes if plural == "secrets" else {**attributes, "name": ""}},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"

        def is_so() -> bool:
            answer = self.api.ask("POST", path, review, token=token).json()
            return bool(answer["status"]["allowed"]) is allowed

        self.api.wait_until(f"{verb} {resource} is {'' if allowed else 'not '}allowed", is_so)


@pytest.fixture
def installed(server: RealKubernetes, tmp_path: Path) -> Installed:
    manifest = tmp_path / "kubernetes.yaml"
    manifest.write_text(template(CHART / "examples/kubernetes.yaml"))
    send(server, manifest)
    by_command = {each["args"][0]: each for each in own_containers(manifest)}
    made = Installed(
        server,
        manifest,
        by_command["serve"],
        by_command["controller"],
        server.token_of("goatdb", "goatdb-goatherd-server"),
        server.token_of("goatdb", "goatdb-goatherd-controller"),
    )
    made.wait_until(made.server_token, "watch", "secrets", allowed=True)
    made.wait_until(made.controller_token, "update", "secrets", allowed=True)
    made.wait_until(made.controller_token, "list", "discovery.k8s.io/endpointslices", allowed=True)
    return made


@pytest.mark.deep
def test_a_server_and_the_controller_need_the_rights_of_the_chart_and_no_other(
    installed: Installed, tmp_path: Path
) -> None:
    api, server, controller = installed.api, installed.server, installed.controller
    may_serve, may_rotate = installed.server_token, installed.controller_token
    with Commands(tmp_path, api.kubeconfig) as commands:

        def current() -> str:
            return str(json.loads(commands.run(server, api.admin, "show", "--json"))["current"]["id"])

        assert "cannot create" in commands.fail(controller, may_rotate, "init"), "only an admin may"
        commands.run(server, api.admin, "init")
        first = current()
        port = commands.serve(server, may_serve)
        assert "no pod is behind this Service" in commands.fail(controller, may_rotate, "rotate")
        assert api.apply(slice_of(nodes_slice(port))).status_code == 201
        commands.run(controller, may_rotate, *controller["args"], "--explain")
        commands.run(controller, may_rotate, "rotate", "--unlisted", "0s")
        second = current()
        assert second != first
        assert signer_of(port) == second

        with installed.without("RoleBinding", "-find-nodes"):
            installed.wait_until(may_rotate, "list", "discovery.k8s.io/endpointslices", allowed=False)
            message = commands.fail(controller, may_rotate, "rotate", "--unlisted", "0s")
            assert "must be allowed to list endpointslices of discovery.k8s.io in that namespace" in message
        with installed.without("RoleBinding", "-controller-root"):
            installed.wait_until(may_rotate, "get", "secrets", allowed=False)
            message = commands.fail(controller, may_rotate, "rotate", "--unlisted", "0s")
            assert "goatherd policy k8s" in message
        (role,) = of_kind(installed.path, "Role", "-controller-root")
        only_reads = copy.deepcopy(role)
        only_reads["rules"][0]["verbs"] = ["get", "watch"]
        api.apply(only_reads)
        installed.wait_until(may_rotate, "update", "secrets", allowed=False)
        message = commands.fail(controller, may_rotate, "rotate", "--unlisted", "0s")
        assert 'cannot update resource "secrets"' in message
        assert "goatherd policy k8s" in message
        api.apply(role)
        with installed.without("RoleBinding", "-server-root"):
            installed.wait_until(may_serve, "get", "secrets", allowed=False)
            message = commands.fail(server, may_serve, "serve", f"--data={tmp_path}/other", "--create")
            assert 'cannot get resource "secrets"' in message
            assert "goatherd policy k8s" in message
        assert current() == second, "nothing was written without the right"


# --- discovery ----------------------------------------------------------------------------------------------------


def slice_of(content: Fields) -> Fields:
    """Return an EndpointSlice with its version and kind."""
    return {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", **content}


async def test_servers_are_discovered_from_slices_that_appear_change_and_go_away(
    installed: Installed, tmp_path: Path
) -> None:
    api, config = installed.api, tmp_path / "config"
    config.write_text(json.dumps(api.kubeconfig(installed.controller_token)))
    source = source_of(f"k8s-service://goatdb/goatdb-goatherd-nodes:http?kubeconfig={config}", timeout=ANSWER)

    async def found() -> list[str]:
        return [place.url for place in await source.find()]

    def endpoint(address: str, **conditions: bool) -> Fields:
        return {"addresses": [address], "conditions": {"ready": True, **conditions}}

    first = slice_of(nodes_slice(8080))
    path = api.path_of(first)
    api.ask("DELETE", path)
    with pytest.raises(DiscoveryError, match="no pod is behind this Service"):
        await found()
    assert api.apply(first).status_code == 201
    assert await found() == ["http://127.0.0.1:8080"]
    starting = endpoint("127.0.0.2", ready=False)
    leaving = endpoint("127.0.0.3", ready=False, serving=True, terminating=True)
    left = endpoint("127.0.0.4", ready=False, serving=False, terminating=True)
    first["endpoints"] += [starting, leaving, left]
    assert api.apply(first).status_code == 200
    assert await found() == ["http://127.0.0.1:8080", "http://127.0.0.2:8080", "http://127.0.0.3:8080"]
    second, other = copy.deepcopy(first), copy.deepcopy(first)
    second["metadata"]["name"] += "-2"
    second["endpoints"] = [endpoint("127.0.0.5")]
    other["metadata"] |= {"name": "other", "labels": {"kubernetes.io/service-name": "other"}}
    other["endpoints"] = [endpoint("127.0.0.6")]
    assert api.apply(second).status_code == 201
    assert api.apply(other).status_code == 201
    assert (await found())[3:] == ["http://127.0.0.5:8080"]
    assert api.ask("DELETE", path).status_code == 200
    assert await found() == ["http://127.0.0.5:8080"]
    assert api.ask("DELETE", api.path_of(second)).status_code == 200
    with pytest.raises(DiscoveryError, match="no pod is behind this Service"):
        await found()
    with installed.without("Role", "-find-nodes"):
        installed.wait_until(installed.controller_token, "list", "discovery.k8s.io/endpointslices", allowed=False)
        with pytest.raises(DiscoveryError, match="must be allowed to list endpointslices"):
            await found()


def test_the_fake_lists_slices_as_the_real_server_does(installed: Installed) -> None:
    api = installed.api
    kept = nodes_slice(8080)
    other = {**kept, "metadata": {**kept["metadata"], "name": "of-another", "labels": {SERVICE: "another"}}}
    path = "/apis/discovery.k8s.io/v1/namespaces/goatdb/endpointslices"
    query = f"?labelSelector={SERVICE.replace('/', '%2F')}%3D"
    for each in (kept, other):
        assert api.apply(slice_of(each)).status_code in (200, 201)
    with FakeKubernetes(namespaces=["goatdb"]) as fake, httpx2.Client(trust_env=False, timeout=HANG) as http:
        fake.slices["goatdb"] = [kept, other]
        roles = {"find": of_kind(installed.path, "Role", "-find-nodes"), "other": []}
        tokens = {"find": installed.controller_token, "other": installed.server_token}
        for right, name in (("find", "goatdb-goatherd-nodes"), ("find", "nowhere"), ("other", "goatdb-goatherd-nodes")):
            real = api.ask("GET", f"{path}{query}{name}", token=tokens[right])
            user = f"system:serviceaccount:goatdb:goatdb-goatherd-{'controller' if right == 'find' else 'server'}"
            headers = {"Authorization": f"Bearer {fake.account(user, *roles[right])}"}
            faked = http.get(f"{fake.url}{path}{query}{name}", headers=headers)
            assert faked.status_code == real.status_code
            assert read(faked.json()) == read(real.json())
    for each in (kept, other):
        assert api.ask("DELETE", api.path_of(slice_of(each))).status_code == 200


def read(answer: Fields) -> Fields:
    """Return what Goatherd reads of a list or a Status."""
    items = [{name: each[name] for name in ("addressType", "ports", "endpoints")} for each in answer.get("items") or []]
    members = ("kind", "apiVersion", "status", "reason", "message", "code", "details")
    return {"items": items, **{name: answer.get(name) for name in members}}
