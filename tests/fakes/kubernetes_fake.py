"""A fake of the Kubernetes API server on the wire, as much of it as Secrets need: for machines without a real one.

What it is: ``/api/v1/namespaces/N/secrets``, and the list of EndpointSlices, on 127.0.0.1, plain or TLS, with
resourceVersion, ``Status`` objects, RBAC with resourceNames, watches with bookmarks, size limits, troubles to order.
What it is not: any other resource, patches, paging, dry runs, admission or encryption. Rules: a behaviour stands beside
the page that it follows, under https://kubernetes.io/docs/reference/; tests/contract/kubernetes/test_real.py and
tests/deploy/test_chart_applied.py ask it and a real kube-apiserver the same questions and compare the answers.
"""

from __future__ import annotations

import base64
import binascii
import copy
import json
import re
import secrets
import ssl
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self, cast
from urllib.parse import parse_qs, urlsplit

from goatherd.testing.wrong_answers import Restore, WrongAnswers

Fields = dict[str, Any]

ADMIN_TOKEN: Final = "goatherd-fake-admin"
MOST_BYTES: Final = 1 << 20
MOST_REQUEST_BYTES: Final = 3 << 20

_PATH = re.compile(r"/api/v1/namespaces/([^/]+)/secrets(?:/([^/]+))?")
_SLICES = re.compile(r"/apis/discovery\.k8s\.io/v1/namespaces/([^/]+)/endpointslices")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_REVIEWS: Final = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_VERBS: Final = {"GET": "get", "POST": "create", "PUT": "update", "DELETE": "delete"}


class StatusError(Exception):
    """An answer that is a ``Status`` of failure: reference/kubernetes-api/common-definitions/status/."""

    def __init__(self, code: int, reason: str, message: str, details: Fields | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.body: Fields = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
        }
        if details is not None:
            self.body["details"] = details


@dataclass(slots=True)
class Trouble:
    """A fault of the next requests.

    Attributes:
        status: The status of the answer.
        body: The body of the answer; bytes are sent unchanged.
        headers: The headers of the answer.
        method: Only these requests; empty for any.
        times: For how many more requests.
        takes_effect: Whether the request is carried out all the same.
    """

    status: int = 500
    body: bytes | Fields = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = ""
    times: int = 1
    takes_effect: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request, as in an audit log: without bodies."""

    verb: str
    name: str
    user: str
    status: int
    resource_version: str = ""


class FakeKubernetes:
    """The server, as a context manager.

    Attributes:
        url: Where it listens, once entered.
        troubles: The faults of the next requests, in order.
        asked: The requests so far.
        slices: The EndpointSlices that there are, as the API has them, by namespace.
        wrong: Which request is answered with a wrong success.
    """

    def __init__(self, *, namespaces: Sequence[str] = ("default",), tls: tuple[str, str] | None = None) -> None:
        self._tls = tls
        self._namespaces = set(namespaces)
        self._objects: dict[tuple[str, str], Fields] = {}
        self._events: list[tuple[int, str, Fields]] = []
        self._compacted = 0
        self._version = 1
        self._marks = 0
        self._is_closing = False
        self._users: dict[str, tuple[str, tuple[Fields, ...] | None]] = {ADMIN_TOKEN: ("admin", None)}
        self.changed = threading.Condition()
        self.troubles: list[Trouble] = []
        self.asked: list[Asked] = []
        self.slices: dict[str, list[Fields]] = {}
        self.wrong = WrongAnswers()
        self.watching = 0
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self.url = ""

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"api": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        if self._tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self._tls)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.changed:
            self._is_closing = True
            self.changed.notify_all()
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    # --- what a test arranges -----------------------------------------------------------------------------------------

    def account(self, name: str, *roles: Fields) -> str:
        """Return the token of a new user bound to Roles, each as the API has it."""
        token = secrets.token_hex(16)
        self._users[token] = (name, roles)
        return token

    def revoke(self, token: str) -> None:
        """Forget a token."""
        del self._users[token]

    def stored(self, namespace: str, name: str) -> Fields:
        """Return an object as it is stored."""
        with self.changed:
            return copy.deepcopy(self._objects[namespace, name])

    def put(self, namespace: str, name: str, content: Fields) -> None:
        """Store an object past all checks."""
        with self.changed:
            self._store("MODIFIED" if (namespace, name) in self._objects else "ADDED", namespace, name, content)

    def save(self) -> Restore:
        """Record all objects and what watches have been sent; return a function that restores them."""
        saved = copy.deepcopy((self._objects, self._events, self._version))

        def restore() -> None:
            self._objects, self._events, self._version = saved

        return restore

    def other(self, namespace: str, name: str) -> Fields:
        """Return a complete Secret of another name."""
        content = copy.deepcopy(self.get(namespace, name))
        content["metadata"]["name"] = f"{name}-of-others"
        return content

    def bookmark(self) -> None:
        """Send a bookmark to every watch that asked for them."""
        with self.changed:
            self._version += 1  # something else in the cluster has changed meanwhile
            self._marks = self._version
            self.changed.notify_all()

    def compact(self) -> None:
        """Forget all history, as etcd does every five minutes."""
        with self.changed:
            self._version += 1
            self._compacted = self._version
            self._events.clear()

    # --- what it does -------------------------------------------------------------------------------------------------

    def user_of(self, authorization: str) -> tuple[str, tuple[Fields, ...] | None]:
        """Return who asks: reference/access-authn-authz/authentication/#putting-a-bearer-token-in-a-request."""
        user = self._users.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise StatusError(401, "Unauthorized", "Unauthorized")
        return user

    def authorize(
        self, user: str, roles: tuple[Fields, ...] | None, verb: str, namespace: str, name: str | None
    ) -> None:
        """Allow what some rule allows: reference/access-authn-authz/rbac/#referring-to-resources.

        "You cannot restrict create or deletecollection requests by their resource name"; "list" and "watch" are
        matched by a field selector for metadata.name.
        """
        if roles is None:
            return
        for role in roles:
            for rule in role["rules"] if role["metadata"]["namespace"] == namespace else ():
                fits = verb in rule["verbs"] and "secrets" in rule["resources"] and "" in rule["apiGroups"]
                if fits and ("resourceNames" not in rule or name in rule["resourceNames"]):
                    return
        subject = f'secrets "{name}"' if name else "secrets"
        raise StatusError(
            403,
            "Forbidden",
            f'{subject} is forbidden: User "{user}" cannot {verb} resource "secrets" in API group "" in the namespace '
            f'"{namespace}"',
            {"name": name, "kind": "secrets"} if name else {"kind": "secrets"},
        )

    def reviewed(self, user: str, roles: tuple[Fields, ...] | None, review: Fields) -> Fields:
        """Answer whether the asker may do something: every user may ask, by the ClusterRole system:basic-user."""
        asked = review["spec"]["resourceAttributes"]
        try:
            self.authorize(user, roles, asked["verb"], asked["namespace"], asked.get("name"))
        except StatusError:
            return {**review, "status": {"allowed": False}}
        return {**review, "status": {"allowed": True}}

    def get(self, namespace: str, name: str) -> Fields:
        """Read a Secret.

        reference/kubernetes-api/config-and-storage-resources/secret-v1/#get-read-the-specified-secret
        """
        found = self._objects.get((namespace, name))
        if found is None:
            raise _not_found("secrets", name)
        return found

    def listed(self, namespace: str, name: str | None) -> Fields:
        """reference/kubernetes-api/config-and-storage-resources/secret-v1/#list-list-or-watch-objects-of-kind-secret."""
        items = [each for (place, known), each in self._objects.items() if place == namespace and name in (None, known)]
        return {
            "kind": "SecretList",
            "apiVersion": "v1",
            "metadata": {"resourceVersion": str(self._version)},
            "items": items,
        }

    def slices_of(self, roles: tuple[Fields, ...] | None, user: str, namespace: str, selector: str) -> Fields:
        """reference/kubernetes-api/service-resources/endpoint-slice-v1/#list-list-or-watch-objects-of-kind-endpointslice.

        By a label selector of one label; a list that is selected by label cannot be allowed by resource name.
        """
        rules = [rule for role in roles or () if role["metadata"]["namespace"] == namespace for rule in role["rules"]]
        if roles is not None and not any(
            "list" in rule["verbs"]
            and "endpointslices" in rule["resources"]
            and "discovery.k8s.io" in rule["apiGroups"]
            and "resourceNames" not in rule
            for rule in rules
        ):
            told = (
                f'endpointslices.discovery.k8s.io is forbidden: User "{user}" cannot list resource "endpointslices" in '
                f'API group "discovery.k8s.io" in the namespace "{namespace}"'
            )
            raise StatusError(403, "Forbidden", told, {"group": "discovery.k8s.io", "kind": "endpointslices"})
        label, _, value = selector.partition("=")
        found = [each for each in self.slices.get(namespace, []) if each["metadata"]["labels"].get(label) == value]
        metadata = {"resourceVersion": str(self._version)}
        return {"kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "metadata": metadata, "items": found}

    def create(self, namespace: str, content: Fields) -> Fields:
        """Create a Secret: reference/kubernetes-api/config-and-storage-resources/secret-v1/#create-create-a-secret."""
        name = content.get("metadata", {}).get("name", "")
        if namespace not in self._namespaces:
            raise _not_found("namespaces", namespace)
        if content.get("metadata", {}).get("resourceVersion"):
            raise StatusError(500, "", "resourceVersion should not be set on objects to be created")
        self._validate(name, content)
        if (namespace, name) in self._objects:
            raise StatusError(
                409, "AlreadyExists", f'secrets "{name}" already exists', {"name": name, "kind": "secrets"}
            )
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        made = {"type": "Opaque", **content, "metadata": {**content["metadata"], "namespace": namespace}}
        made["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": now}
        return self._store("ADDED", namespace, name, made)

    def replace(self, namespace: str, name: str, content: Fields) -> Fields:
        """Replace, with optimistic concurrency: reference/using-api/api-concepts/#resource-versions.

        An update without a resourceVersion is unconditional; an old one is a Conflict; so is another uid.
        """
        metadata = content.get("metadata", {})
        if metadata.get("name") != name:
            told = f"the name of the object ({metadata.get('name')}) does not match the name on the URL ({name})"
            raise StatusError(400, "BadRequest", told)
        found = self.get(namespace, name)
        if metadata.get("uid") not in (None, found["metadata"]["uid"]):
            raise _conflict(
                name,
                f"Precondition failed: UID in precondition: {metadata['uid']}, UID in object meta: "
                f"{found['metadata']['uid']}",
            )
        if metadata.get("resourceVersion") not in (None, "", found["metadata"]["resourceVersion"]):
            raise _conflict(
                name, "the object has been modified; please apply your changes to the latest version and try again"
            )
        self._validate(name, content)
        # docs/concepts/configuration/secret/#secret-immutable
        if found.get("immutable") and (content.get("data") != found.get("data") or not content.get("immutable")):
            field_name = "data" if content.get("immutable") else "immutable"
            raise _invalid(
                name, "FieldValueForbidden", "Forbidden: field is immutable when `immutable` is set", field_name
            )
        kept = {key: found["metadata"][key] for key in ("uid", "creationTimestamp")}
        changed = {**content, "metadata": {**metadata, **kept, "namespace": namespace}}
        return self._store("MODIFIED", namespace, name, changed)

    def delete(self, namespace: str, name: str, options: Fields) -> Fields:
        """Delete, under preconditions: reference/kubernetes-api/common-definitions/delete-options/."""
        found = self.get(namespace, name)["metadata"]
        for member, title in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
            wanted = options.get("preconditions", {}).get(member)
            if wanted is not None and wanted != found[member]:
                raise _conflict(
                    name,
                    f"the {title} in the precondition ({wanted}) does not match the {title} in record "
                    f"({found[member]}). The object might have been modified",
                    "Secret",
                )
        gone = self._objects.pop((namespace, name))
        self._tell("DELETED", gone)
        details = {"name": name, "kind": "secrets", "uid": found["uid"]}
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}

    def watch_from(self, resource_version: str, namespace: str, name: str | None) -> tuple[int, list[Fields]]:
        """Return where a watch begins, and what it tells first: reference/using-api/api-concepts/#semantics-for-watch.

        Unset: "Get State and Start at Most Recent", with synthetic ADDED events. An old one: "410 Gone", as an ERROR
        event (the request itself is answered 200).
        """
        if resource_version in ("", "0"):
            present = [{"type": "ADDED", "object": each} for each in self.listed(namespace, name)["items"]]
            return self._version, present
        start = int(resource_version)
        if start < self._compacted:
            told = f"too old resource version: {start} ({self._compacted})"
            return -1, [{"type": "ERROR", "object": StatusError(410, "Expired", told).body}]
        return start, []

    def events_after(
        self, version: int, marked: int, namespace: str, name: str | None, bookmarks: bool
    ) -> list[Fields]:
        """Return the next events of a watch."""
        told: list[Fields] = []
        for number, kind, content in self._events:
            metadata = content["metadata"]
            if number > version and metadata["namespace"] == namespace and name in (None, metadata["name"]):
                told.append({"type": kind, "object": content})
        if bookmarks and self._marks > max(version, marked):
            # "a BOOKMARK event … contains only a .metadata.resourceVersion field".
            mark = {"kind": "Secret", "apiVersion": "v1", "metadata": {"resourceVersion": str(self._marks)}}
            told.append({"type": "BOOKMARK", "object": mark})
        return told

    @property
    def version(self) -> int:
        """The resourceVersion of the newest change."""
        return self._version

    @property
    def is_closing(self) -> bool:
        """Whether watches have to end."""
        return self._is_closing

    def _store(self, kind: str, namespace: str, name: str, content: Fields) -> Fields:
        stored = copy.deepcopy(content)
        stored["metadata"]["resourceVersion"] = str(self._version + 1)
        self._objects[namespace, name] = stored
        self._tell(kind, stored)
        return stored

    def _tell(self, kind: str, content: Fields) -> None:
        self._version += 1
        told = copy.deepcopy(content)
        told["metadata"]["resourceVersion"] = str(self._version)
        self._events.append((self._version, kind, told))
        self.changed.notify_all()

    def _validate(self, name: str, content: Fields) -> None:
        """Check a Secret: docs/concepts/configuration/secret/#restriction-names-data and #restriction-data-size."""
        if not name:
            raise _invalid(
                name, "FieldValueRequired", "Required value: name or generateName is required", "metadata.name"
            )
        if not _NAME.fullmatch(name) or len(name) > 253:
            raise _invalid(name, "FieldValueInvalid", f'Invalid value: "{name}"', "metadata.name")
        total = 0
        for key, value in (content.get("data") or {}).items():
            if not re.fullmatch(r"[-._a-zA-Z0-9]{1,253}", key):
                raise _invalid(name, "FieldValueInvalid", f'Invalid value: "{key}"', f"data[{key}]")
            total += len(base64.b64decode(value))
        if total > MOST_BYTES:
            raise _invalid(name, "FieldValueTooLong", f"Too long: must have at most {MOST_BYTES} bytes", "data")


def _line(answer: Fields) -> bytes:
    return json.dumps(answer).encode() + b"\n"


def _decoded(raw: bytes) -> Fields:
    """Return the body of a request; values are checked to be base64 before anything else is looked at."""
    body: Fields = json.loads(raw) if raw else {}
    for value in (body.get("data") or {}).values():
        try:
            base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError, TypeError):
            # A real server quotes the text around the place of the error.
            told = f"illegal base64 data at input byte 0, error found in #10 byte of ...|{str(value)[:40]}|..."
            raise StatusError(
                400, "BadRequest", f'Secret in version "v1" cannot be handled as a Secret: {told}'
            ) from None
    return body


def _not_found(kind: str, name: str) -> StatusError:
    return StatusError(404, "NotFound", f'{kind} "{name}" not found', {"name": name, "kind": kind})


def _conflict(name: str, why: str, kind: str = "secrets") -> StatusError:
    message = f'Operation cannot be fulfilled on {kind} "{name}": {why}'
    return StatusError(409, "Conflict", message, {"name": name, "kind": kind})


def _invalid(name: str, reason: str, message: str, where: str) -> StatusError:
    causes = [{"reason": reason, "message": message, "field": where}]
    details = {"name": name, "kind": "Secret", "causes": causes}
    return StatusError(422, "Invalid", f'Secret "{name}" is invalid: {where}: {message}', details)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Do not log clients that disconnect, or TLS handshakes that fail, which tests cause."""


class _Handler(BaseHTTPRequestHandler):
    api: FakeKubernetes
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - the base class's names

    def _serve(self) -> None:
        api, parts = self.api, urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        verb, name, user = _VERBS[self.command], "", ""
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        status, headers, answer = 200, dict[str, str](), cast("Fields | bytes", {})
        watch: tuple[str, str | None] | None = None
        with api.changed:
            try:
                match = _PATH.fullmatch(parts.path)
                user, roles = api.user_of(self.headers.get("Authorization", ""))
                if parts.path == _REVIEWS and self.command == "POST":
                    self._send(201, {}, api.reviewed(user, roles, _decoded(raw)))
                    return
                slices = _SLICES.fullmatch(parts.path)
                if slices is not None and (trouble := self._trouble()) is None:
                    self._send(200, {}, api.slices_of(roles, user, slices[1], query.get("labelSelector", "")))
                    return
                if slices is not None and trouble is not None:
                    self._send(trouble.status, dict(trouble.headers), trouble.body)
                    return
                if match is None:
                    raise StatusError(404, "NotFound", "the server could not find the requested resource", {})
                namespace, found = match[1], match[2]
                selected = query.get("fieldSelector", "").removeprefix("metadata.name=") or None
                if verb == "get" and found is None:
                    verb = "watch" if query.get("watch") in ("true", "1") else "list"
                name = found or selected or ""
                trouble = self._trouble()
                if trouble is not None and not trouble.takes_effect:
                    status, headers, answer = trouble.status, dict(trouble.headers), trouble.body
                else:
                    api.authorize(user, roles, verb, namespace, name or None)
                    if verb == "watch":
                        watch = namespace, selected
                    else:
                        status = 201 if verb == "create" else 200
                        answer = api.wrong.answer(
                            lambda: _line(self._carried_out(verb, namespace, name, selected, raw)),
                            changes=verb not in ("get", "list"),
                            save=api.save,
                            other=lambda: _line(api.other(namespace, name)) if verb == "get" else None,
                        )
                    if trouble is not None:
                        status, headers, answer = trouble.status, dict(trouble.headers), trouble.body
            except StatusError as error:
                status, answer = error.code, error.body
            except (ValueError, AttributeError, TypeError):
                status, answer = 400, StatusError(400, "BadRequest", "the body of the request is no object").body
            version = query.get("resourceVersion", "")
            api.asked.append(Asked(verb=verb, name=name, user=user, status=status, resource_version=version))
        if watch is None:
            self._send(status, headers, answer)
        else:
            self._watch(*watch, query)

    def _trouble(self) -> Trouble | None:
        for trouble in self.api.troubles:
            if trouble.times > 0 and trouble.method in ("", self.command):
                trouble.times -= 1
                return trouble
        return None

    def _carried_out(self, verb: str, namespace: str, name: str, selected: str | None, raw: bytes) -> Fields:
        # reference/using-api/api-concepts/: --max-request-bytes of the server is 3 MiB.
        if len(raw) > MOST_REQUEST_BYTES:
            message = f"Request entity too large: limit is {MOST_REQUEST_BYTES}"
            raise StatusError(413, "RequestEntityTooLarge", message)
        body = _decoded(raw)
        match verb:
            case "get":
                return self.api.get(namespace, name)
            case "list":
                return self.api.listed(namespace, selected)
            case "create":
                return self.api.create(namespace, body)
            case "update":
                return self.api.replace(namespace, name, body)
            case _:
                return self.api.delete(namespace, name, body)

    def _send(self, status: int, headers: Mapping[str, str], answer: Fields | bytes) -> None:
        raw = answer if isinstance(answer, bytes) else _line(answer)
        self.send_response(status)
        for key, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(raw)),
            **dict(headers),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(raw)

    def _watch(self, namespace: str, name: str | None, query: Mapping[str, str]) -> None:
        """Send one JSON object a line: reference/using-api/api-concepts/#efficient-detection-of-changes."""
        api = self.api
        end = time.monotonic() + float(query.get("timeoutSeconds", "1800"))
        bookmarks = query.get("allowWatchBookmarks") == "true"
        with api.changed:
            api.watching += 1
            marked = api.version
            version, events = api.watch_from(query.get("resourceVersion", ""), namespace, name)
            api.changed.notify_all()
        try:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while True:
                for event in events:
                    line = json.dumps(event).encode() + b"\n"
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                if version < 0:
                    break
                with api.changed:
                    version = max([version, *(int(e["object"]["metadata"]["resourceVersion"]) for e in events)])
                    events = api.events_after(version, marked, namespace, name, bookmarks)
                    left = end - time.monotonic()
                    if not events and (api.is_closing or left <= 0):
                        break
                    if not events:
                        api.changed.wait(min(left, 1.0))
                        events = api.events_after(version, marked, namespace, name, bookmarks)
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True
        finally:
            with api.changed:
                api.watching -= 1
                api.changed.notify_all()
