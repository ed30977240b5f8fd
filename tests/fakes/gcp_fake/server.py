"""The fake as a gRPC server: Google's own messages over TLS, rights, quotas, and what can go wrong.

What it is: `FakeSecretManager`. What it is not: the rules (`tests.fakes.gcp_fake.service`), or a network that
fails (`tests.fakes.faults`). Rules: it listens on 127.0.0.1, on a port that the system gives.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import grpc  # type: ignore[import-untyped]
from google.cloud.secretmanager_v1 import types as wire
from google.iam.v1 import iam_policy_pb2  # type: ignore[import-untyped]
from google.protobuf import any_pb2, duration_pb2, empty_pb2  # type: ignore[import-untyped]
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]

from goatherd.testing.wrong_answers import WrongAnswers
from tests.fakes.gcp_fake.authority import certified, trust
from tests.fakes.gcp_fake.service import SecretManager, StatusError

SERVICE: Final = "google.cloud.secretmanager.v1.SecretManagerService"
# https://docs.cloud.google.com/secret-manager/quotas: which of the three quotas of a project a method counts against.
ACCESS: Final = "access"
READ: Final = "read"
WRITE: Final = "write"
_QUOTA_OF: Final = {
    "AccessSecretVersion": ACCESS,
    "GetSecret": READ,
    "GetSecretVersion": READ,
    "ListSecretVersions": READ,
}
_CHANGES: Final = frozenset(
    {
        "CreateSecret",
        "UpdateSecret",
        "DeleteSecret",
        "AddSecretVersion",
        "EnableSecretVersion",
        "DisableSecretVersion",
        "DestroySecretVersion",
    }
)
_ANSWERS: Final[dict[str, Any]] = {
    "CreateSecret": wire.Secret,
    "GetSecret": wire.Secret,
    "UpdateSecret": wire.Secret,
    "AccessSecretVersion": wire.AccessSecretVersionResponse,
    "ListSecretVersions": wire.ListSecretVersionsResponse,
}


@dataclass(slots=True)
class Failure:
    """An answer to give instead of the real one, a number of times.

    Attributes:
        status: The gRPC status, such as ``RESOURCE_EXHAUSTED``.
        times: How often; None: indefinitely.
        retry_after: Seconds, sent as google.rpc.RetryInfo.
        message: The text.
    """

    status: str
    times: int | None = 1
    retry_after: float | None = None
    message: str = "asked for by a test"


class FakeSecretManager:
    """Google Secret Manager on this machine; see `tests.fakes.gcp_fake`.

    Attributes:
        service: The state and its rules.
        port: Where it listens, once entered.
        endpoint: The same as ``host:port``.
        calls: How often each method was called.
        granted: Permissions by the service account's e-mail address. None: every account may do everything.
            Without a right, PERMISSION_DENIED, as for a secret that does not exist.
        quotas: How many calls of a kind (`ACCESS`, `READ`, `WRITE`) a minute are answered; more get RESOURCE_EXHAUSTED.
        failures: What a method answers instead, by its name or ``*``.
        before: Called with a method's name and its request before it takes effect.
        after: The same when it has, before the answer goes out.
        damage: Called with a method's name and its answer; what it returns goes out.
        wrong: Which request is answered with a wrong success.
    """

    def __init__(self, project: str = "goatherd-testing") -> None:
        self.service = SecretManager(project)
        self.port = 0
        self.calls: Counter[str] = Counter()
        self.granted: dict[str, frozenset[str]] | None = None
        self.quotas: dict[str, int] = {}
        self.failures: dict[str, Failure] = {}
        self.before: Callable[[str, Any], None] | None = None
        self.after: Callable[[str, Any], None] | None = None
        self.damage: Callable[[str, Any], Any] | None = None
        self.wrong = WrongAnswers()
        self._lock = threading.Lock()
        self._used: dict[str, list[float]] = {}
        self._server: Any = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        trust()
        one = certified()
        self._server = grpc.server(ThreadPoolExecutor(8, thread_name_prefix="gcp-fake"))
        methods = {name: self._handler(name, *what) for name, what in self.service.handlers().items()}
        methods["TestIamPermissions"] = self._tester()
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        credentials = grpc.ssl_server_credentials([(one.key, one.certificate)])
        self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(0).wait()

    def _handler(self, name: str, permission: str, act: Callable[..., object]) -> object:
        request_type = getattr(wire, f"{name}Request")
        answer_type = _ANSWERS.get(name, wire.SecretVersion)

        def serve(request: Any, context: Any) -> Any:
            try:
                self._allow(name, permission, _principal(context))
                if self.before is not None:
                    self.before(name, request)
                answer = self._answered(name, act, request, encode)
                if self.after is not None:
                    self.after(name, request)
                return answer if self.damage is None or answer is None else self.damage(name, answer)
            except StatusError as error:
                return _abort(context, error)

        def encode(answer: Any) -> bytes:
            if isinstance(answer, bytes):
                return answer
            encoded: bytes = empty_pb2.Empty().SerializeToString() if answer is None else answer_type.serialize(answer)
            return encoded

        return grpc.unary_unary_rpc_method_handler(
            serve, request_deserializer=request_type.deserialize, response_serializer=encode
        )

    def _answered(self, name: str, act: Callable[..., object], request: Any, encode: Callable[[Any], bytes]) -> object:
        """Return the answer itself, or the bytes of a wrong one."""
        right: list[object] = []

        def do() -> bytes:
            right.append(act(request))
            return encode(right[-1])

        raw = self.wrong.answer(
            do, changes=name in _CHANGES, save=self.service.save, other=lambda: self._other(name, act, request, encode)
        )
        return right[0] if right and raw == encode(right[0]) else raw

    def _other(
        self, name: str, act: Callable[..., object], request: Any, encode: Callable[[Any], bytes]
    ) -> bytes | None:
        """Return the answer to a read of another version of the same secret."""
        if name not in ("AccessSecretVersion", "GetSecretVersion"):
            return None
        asked, (parent, _, _) = encode(act(request)), request.name.rpartition("/")
        for number in range(1, 10):
            try:
                raw = encode(act(type(request)(name=f"{parent}/{number}")))
            except StatusError:
                continue
            if raw != asked:
                return raw
        return None

    def _tester(self) -> object:
        """Answer which of the asked permissions every caller has [rpc, TestIamPermissions]."""

        def serve(request: Any, context: Any) -> Any:
            asked = frozenset(request.permissions)
            has = asked if self.granted is None else asked & self.granted.get(_principal(context), frozenset())
            return iam_policy_pb2.TestIamPermissionsResponse(permissions=sorted(has))

        return grpc.unary_unary_rpc_method_handler(
            serve,
            request_deserializer=iam_policy_pb2.TestIamPermissionsRequest.FromString,
            response_serializer=iam_policy_pb2.TestIamPermissionsResponse.SerializeToString,
        )

    def _allow(self, name: str, permission: str, principal: str) -> None:
        with self._lock:
            self.calls[name] += 1
            failure = self.failures.get(name) or self.failures.get("*")
            if failure is not None and failure.times != 0:
                if failure.times is not None:
                    failure.times -= 1
                raise StatusError(failure.status, failure.message, retry_after=failure.retry_after)
            kind, now = _QUOTA_OF.get(name, WRITE), time.monotonic()
            recent = [each for each in self._used.get(kind, []) if each > now - 60]
            if kind in self.quotas and len(recent) >= self.quotas[kind]:
                raise StatusError("RESOURCE_EXHAUSTED", f"Quota exceeded for quota metric '{kind} requests'.")
            self._used[kind] = [*recent, now]
            if self.granted is not None and permission not in self.granted.get(principal, frozenset()):
                text = f"Permission '{permission}' denied for resource (or it may not exist)."
                raise StatusError("PERMISSION_DENIED", text)


def _principal(context: Any) -> str:
    """Return the e-mail address in the caller's token: a service account's own, unverified, or empty."""
    for key, text in context.invocation_metadata():
        if key == "authorization" and text.count(".") == 2:
            body = text.split(".")[1]
            claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
            return str(claims.get("iss", ""))
    return ""


def _abort(context: Any, error: StatusError) -> object:
    code = grpc.StatusCode[error.status]
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        packed = any_pb2.Any()
        packed.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        number = code_pb2.Code.Value(error.status)
        detailed = status_pb2.Status(code=number, message=error.message, details=[packed])
        context.set_trailing_metadata((("grpc-status-details-bin", detailed.SerializeToString()),))
    return context.abort(code, error.message)
