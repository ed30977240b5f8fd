"""A real kube-apiserver for tests, around a real etcd, and the real controllers where their program is there.

What it is: `find_programs` and `RealKubernetes`. What it is not: a cluster: there is no scheduler and no kubelet, and
admission by service account is off. Rules: 127.0.0.1 only; ready means that the API server says so; a test process that
is killed takes all of them along (Linux).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx2
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.deadlines import HANG
from tests.ports import free_ports

WHY_SKIPPED: Final = (
    "NO REAL KUBERNETES API SERVER, SO PROVIDER AND CHART ARE TESTED AGAINST THE FAKE ONLY: set "
    "GOATHERD_KUBE_APISERVER to a kube-apiserver, and install etcd or set GOATHERD_ETCD"
)
NO_CONTROLLERS: Final = (
    "NO REAL KUBERNETES CONTROLLERS, SO THE CHART IS NOT UPGRADED IN A ROTATION: put kube-controller-manager beside "
    "the kube-apiserver, or set GOATHERD_KUBE_CONTROLLER_MANAGER"
)
READY_WITHIN: Final = 2 * HANG
ACCOUNTS: Final = 12
_PR_SET_PDEATHSIG: Final = 1

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Programs:
    """The programs of Kubernetes that were found; `controllers` may be missing."""

    apiserver: str
    etcd: str
    controllers: str | None


def find_programs() -> Programs | None:
    """Return the programs that the environment names, etcd also from the PATH; None if one of both is missing."""
    apiserver = os.environ.get("GOATHERD_KUBE_APISERVER")
    etcd = os.environ.get("GOATHERD_ETCD") or shutil.which("etcd")
    if not apiserver or not etcd:
        return None
    beside = Path(apiserver).with_name("kube-controller-manager")
    controllers = os.environ.get("GOATHERD_KUBE_CONTROLLER_MANAGER") or (str(beside) if beside.exists() else None)
    return Programs(apiserver, etcd, controllers)


class RealKubernetes:
    """etcd and a kube-apiserver on 127.0.0.1, as a context manager, with the same interface as the fake."""

    def __init__(self, *extra: str) -> None:
        found = find_programs()
        assert found is not None, WHY_SKIPPED
        self.programs = found
        self._extra = extra
        self._processes: list[subprocess.Popen[bytes]] = []
        self._home = tempfile.TemporaryDirectory(prefix="goatherd-kube-")
        self.admin = secrets.token_hex(16)
        self._tokens = {f"account-{number}": secrets.token_hex(16) for number in range(ACCOUNTS)}
        self._free = list(self._tokens)
        self._resources: dict[str, dict[str, str]] = {}
        self._definitions: Fields = {}
        self.url = ""

    @property
    def home(self) -> Path:
        return Path(self._home.name)

    @property
    def ca(self) -> Path:
        return self.home / "certs/apiserver.crt"

    def __enter__(self) -> Self:
        try:
            for attempt in range(5):
                if self._start(last=attempt == 4):
                    return self
                self._stop()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        raise AssertionError("unreachable")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._home.cleanup()

    def trust(self) -> ssl.SSLContext:
        """Return what a client needs in order to trust the API server."""
        return ssl.create_default_context(cafile=str(self.ca))

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str = "",
        content_type: str = "application/json",
        **more: Any,
    ) -> httpx2.Response:
        """Send a request as an administrator, or with another token."""
        headers = {"Authorization": f"Bearer {token or self.admin}", "Content-Type": content_type}
        content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        with httpx2.Client(verify=self.trust(), trust_env=False, timeout=HANG) as http:
            return http.request(method, f"{self.url}{path}", headers=headers, content=content, **more)

    def serves(self, version: str, kind: str = "") -> bool:
        """Return whether the API server has a version of a group, such as policy/v1, and a kind in it."""
        answer = self.ask("GET", f"/apis/{version}")
        return answer.status_code == 200 and kind in ("", *(each["kind"] for each in answer.json()["resources"]))

    def knows(self, definition: str, name: str) -> bool:
        """Return whether the API server's own schema has a field, such as `restartPolicy` of ``core.v1.Container``."""
        if not self._definitions:
            self._definitions = self.ask("GET", "/openapi/v2").json()["definitions"]
        return name in self._definitions.get(f"io.k8s.api.{definition}", {}).get("properties", {})

    def apply(self, content: Fields, *, dry_run: bool = False) -> httpx2.Response:
        """Send one object for server-side apply, as `kubectl apply --server-side` does."""
        query = "?fieldManager=chart&fieldValidation=Strict" + ("&dryRun=All" if dry_run else "")
        return self.ask("PATCH", self.path_of(content) + query, content, content_type="application/apply-patch+yaml")

    def path_of(self, content: Fields) -> str:
        """Return the path of an object, from its kind, name and namespace."""
        version, metadata = content["apiVersion"], content["metadata"]
        group = f"/apis/{version}" if "/" in version else f"/api/{version}"
        if version not in self._resources:
            answer = self.ask("GET", group).json()
            self._resources[version] = {
                each["kind"]: each["name"] for each in answer["resources"] if "/" not in each["name"]
            }
        namespace = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
        return f"{group}{namespace}/{self._resources[version][content['kind']]}/{metadata['name']}"

    def create_namespace(self, name: str) -> None:
        """Create a namespace, unless it exists."""
        answer = self.ask("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        assert answer.status_code in (201, 409), answer.text

    def token_of(self, namespace: str, account: str) -> str:
        """Return a new token of a service account, as the kubelet requests one for a pod."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        answer = self.ask("POST", path, body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["status"]["token"])

    def install(self, *definitions: Fields) -> None:
        """Create CustomResourceDefinitions, and wait until objects of each of their versions can be listed."""
        for each in definitions:
            assert self.apply(each).status_code in (200, 201)
            group, plural = each["spec"]["group"], each["spec"]["names"]["plural"]
            for version in each["spec"]["versions"]:
                path = f"/apis/{group}/{version['name']}/{plural}"
                self.wait_until(f"{path} is served", functools.partial(self._answers, path))

    def start_controllers(self, *names: str, extra: tuple[str, ...] = ()) -> None:
        """Start the controllers with these names, as an administrator."""
        assert self.programs.controllers is not None, NO_CONTROLLERS
        config = self.home / "controllers.json"
        config.write_text(json.dumps(self.kubeconfig(self.admin)))
        options = {
            "kubeconfig": config,
            "controllers": ",".join(names),
            "leader-elect": "false",
            # Custom resources are not sent as protocol buffers.
            "kube-api-content-type": "application/json",
            "bind-address": "127.0.0.1",
            "secure-port": 0,
            "port": 0,
        }
        self._run("controllers", self.programs.controllers, options, *extra)

    def _answers(self, path: str) -> bool:
        return self.ask("GET", path).status_code == 200

    def wait_until(self, what: str, is_so: Callable[[], bool]) -> None:
        """Wait until something is so, which takes the API server a moment."""
        end = time.monotonic() + READY_WITHIN
        while time.monotonic() < end:
            if is_so():
                return
            time.sleep(0.05)
        raise AssertionError(f"not within {READY_WITHIN:g} s: {what}\n{self._logs()}")

    def kubeconfig(self, token: str) -> Fields:
        """Return the content of a kubeconfig with a token."""
        cluster = {"server": self.url, "certificate-authority": str(self.ca)}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "it",
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
            "clusters": [{"name": "it", "cluster": cluster}],
            "users": [{"name": "it", "user": {"token": token}}],
        }

    def account(self, *roles: Fields) -> str:
        """Return the token of a user bound to Roles, once they are in force."""
        user = self._free.pop()
        rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/{}"
        for number, role in enumerate(roles):
            namespace, name = role["metadata"]["namespace"], f"{user}-{number}"
            made = {**role, "metadata": {"namespace": namespace, "name": name}}
            assert self.ask("POST", rbac.format(namespace, "roles"), made).status_code == 201
            binding = {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": {"name": name},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
                "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}],
            }
            assert self.ask("POST", rbac.format(namespace, "rolebindings"), binding).status_code == 201
            for rule in role["rules"]:
                self._in_force(user, namespace, rule)
        return self._tokens[user]

    def _in_force(self, user: str, namespace: str, rule: Fields) -> None:
        attributes = {"namespace": namespace, "verb": rule["verbs"][0], "resource": "secrets"}
        attributes["name"] = next(iter(rule.get("resourceNames", ())), "")
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": user, "resourceAttributes": attributes},
        }
        end = time.monotonic() + READY_WITHIN
        while time.monotonic() < end:
            answer = self.ask("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review).json()
            if answer["status"]["allowed"]:
                return
            time.sleep(0.02)
        raise AssertionError(f"the rule is not in force: {rule}")

    def _start(self, *, last: bool) -> bool:
        home, certs = self.home, self.home / "certs"
        shutil.rmtree(home / "etcd", ignore_errors=True)
        client, peer, secure = free_ports(3)
        tokens = [f"{self.admin},admin,admin,system:masters"]
        tokens += [f"{token},{user},{user}" for user, token in self._tokens.items()]
        (home / "tokens").write_text("\n".join(tokens))
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
        (home / "accounts.key").write_bytes(pem)
        etcd = f"http://127.0.0.1:{client}"
        self.url = f"https://127.0.0.1:{secure}"
        peers = f"http://127.0.0.1:{peer}"
        options = {
            "data-dir": home / "etcd",
            "unsafe-no-fsync": "true",
            "listen-client-urls": etcd,
            "advertise-client-urls": etcd,
            "listen-peer-urls": peers,
            "initial-advertise-peer-urls": peers,
            "initial-cluster": f"default={peers}",
            "log-level": "error",
        }
        self._run("etcd", self.programs.etcd, options)
        options = {
            "etcd-servers": etcd,
            "bind-address": "127.0.0.1",
            "secure-port": secure,
            "insecure-port": 0,
            "cert-dir": certs,
            "token-auth-file": home / "tokens",
            "authorization-mode": "RBAC",
            "service-account-key-file": home / "accounts.key",
            "service-account-signing-key-file": home / "accounts.key",
            "service-account-issuer": "https://goatherd.test",
            "disable-admission-plugins": "ServiceAccount",
            "endpoint-reconciler-type": "none",
            "advertise-address": "127.0.0.1",
        }
        self._run("apiserver", self.programs.apiserver, options, *self._extra)
        end = time.monotonic() + READY_WITHIN
        while time.monotonic() < end:
            for process in self._processes:
                if process.poll() is not None:
                    assert not last, f"{process.args!r} ended by itself:\n{self._logs()}"
                    return False
            with contextlib.suppress(httpx2.HTTPError, OSError):
                if self.ask("GET", "/readyz").text == "ok" and self._has_default_namespace():
                    return True
            time.sleep(0.05)
        raise AssertionError(f"not ready after {READY_WITHIN:g} s:\n{self._logs()}")

    def _has_default_namespace(self) -> bool:
        return self.ask("GET", "/api/v1/namespaces/default").status_code == 200

    def _logs(self) -> str:
        return "\n".join(log.read_text()[-2000:] for log in sorted(self.home.glob("*.log")))

    def _run(self, name: str, program: object, options: Mapping[str, object], *extra: str) -> None:
        command = [program, *(f"--{key}={value}" for key, value in options.items()), *extra]
        with (self.home / f"{name}.log").open("wb") as output:
            self._processes.append(
                subprocess.Popen(
                    [str(each) for each in command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=self.home,
                    env={"HOME": str(self.home), "PATH": os.environ.get("PATH", "")},
                    start_new_session=True,
                    preexec_fn=die_with_parent if sys.platform == "linux" else None,
                )
            )

    def _stop(self) -> None:
        for process in reversed(self._processes):
            for number in (signal.SIGTERM, signal.SIGKILL):
                if process.poll() is not None:
                    break
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
        self._processes.clear()


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
