"""A fake of AWS Secrets Manager on the wire, where the emulators differ from the service's API reference.

What it is: ``POST /`` with ``X-Amz-Target`` on 127.0.0.1, for any AWS SDK; staging labels with their compare-and-swap,
limits, paging, scheduled deletion, IAM policies, and faults on demand. What it is not:
encryption or rotation, and no check of signatures beyond the access key and the time. Rules: a behaviour stands beside
the sentence of the reference that it follows
(docs.aws.amazon.com/secretsmanager/latest/apireference/API_<Operation>.html); what the reference leaves open is chosen
to be the least convenient.
"""

from __future__ import annotations

import base64
import copy
import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Final, Self, cast

from goatherd.testing.wrong_answers import Restore, WrongAnswers
from tests.fakes.iam_evaluator import is_allowed, request_context

Fields = dict[str, object]

ACCESS_KEY: Final = "AKIAGOATHERDFAKE0000"
ACCOUNT: Final = "123456789012"
REGION: Final = "eu-west-1"

_TARGET: Final = "secretsmanager."
_MOST_BYTES: Final = 65536
_MOST_STAGES: Final = 20
_MOST_STAGE_CHARS: Final = 256
_CREDENTIAL = re.compile(r"AWS4-HMAC-SHA256 Credential=([A-Za-z0-9]+)/")
_NAME = re.compile(r"[A-Za-z0-9/_+=.@-]{1,512}")
_SKEW_SECONDS: Final = 300
_READS: Final = frozenset({"DescribeSecret", "GetSecretValue", "ListSecretVersionIds"})


class AWSFakeError(Exception):
    """An answer that is an error."""

    def __init__(self, code: str, message: str, *, status: int = 400, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.headers = dict(headers or {})


@dataclass(slots=True)
class Trouble:
    """A fault of the next requests.

    Attributes:
        error: The error to answer with; None for a truncated or empty answer.
        operation: Only these requests; empty for any.
        times: For how many more requests.
        body: Without `error`: the body of an answer with status 200.
        after: Whether the request takes effect first.
    """

    error: AWSFakeError | None
    operation: str
    times: int
    body: bytes = b""
    after: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """An answered request: the operation, its fields without values, and the access key."""

    operation: str
    fields: Mapping[str, object]
    key: str


@dataclass(slots=True, kw_only=True)
class _Version:
    value: Fields
    created: float
    stages: list[str]


@dataclass(slots=True, kw_only=True)
class _Secret:
    name: str
    arn: str
    versions: dict[str, _Version] = field(default_factory=dict)
    deleted: float | None = None
    primary_region: str | None = None


class FakeSecretsManager:
    """The service, listening on 127.0.0.1 between ``with`` and its end.

    Attributes:
        policies: IAM policies by access key, as JSON text; a key without one may do everything.
        clock_ahead: How many seconds the service's clock is ahead of the true time.
        page_size: The longest page of a list.
        requests: The requests that were answered.
        wrong: Which request is answered with a wrong success.
        region: The region that it is.
    """

    def __init__(self, region: str = REGION) -> None:
        self.region = region
        self.policies: dict[str, str] = {}
        self.keys = {ACCESS_KEY}
        self.clock_ahead = 0.0
        self.page_size = 100
        self.requests: list[Seen] = []
        self.wrong = WrongAnswers()
        self._secrets: dict[str, _Secret] = {}
        self._troubles: list[Trouble] = []
        self._lock = threading.RLock()
        self._last = 0.0
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        """The address to give to an SDK as its endpoint."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        """The port that it listens on."""
        assert self._server is not None
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    # --- what a test orders -----------------------------------------------------------------------------------------

    def fail(
        self,
        code: str,
        *,
        message: str = "",
        status: int = 400,
        headers: Mapping[str, str] | None = None,
        operation: str = "",
        times: int = 1,
        after: bool = False,
    ) -> None:
        """Answer the next requests with an error; with `after`, although they take effect."""
        error = AWSFakeError(code, message, status=status, headers=headers)
        with self._lock:
            self._troubles.append(Trouble(error, operation, times, after=after))

    def damage(self, body: bytes, *, operation: str = "", times: int = 1) -> None:
        """Do the next requests, but answer them with ``200`` and this body."""
        with self._lock:
            self._troubles.append(Trouble(None, operation, times, body, after=True))

    def corrupt(self, name: str, version: str, value: str) -> None:
        """Put another text in the place of a version's value, as damage on a disk would."""
        with self._lock:
            self._secrets[name].versions[version].value = {"SecretString": value}

    def set_stage(self, name: str, stage: str, version: str) -> None:
        """Put a staging label on a version, as another tool would."""
        with self._lock:
            for known in self._secrets[name].versions.values():
                known.stages = [each for each in known.stages if each != stage]
            self._secrets[name].versions[version].stages.append(stage)

    def stages(self, name: str) -> dict[str, list[str]]:
        """Return each version's staging labels."""
        with self._lock:
            return {one: list(version.stages) for one, version in self._secrets[name].versions.items()}

    # --- one request ------------------------------------------------------------------------------------------------

    def answer(self, headers: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body for one request."""
        with self._lock:
            operation = headers.get("X-Amz-Target", "").removeprefix(_TARGET)
            trouble = next((one for one in self._troubles if one.operation in ("", operation)), None)
            if trouble is not None:
                trouble.times -= 1
                if trouble.times == 0:
                    self._troubles.remove(trouble)
            try:
                if trouble is not None and trouble.error is not None and not trouble.after:
                    raise trouble.error
                raw = self.wrong.answer(
                    lambda: json.dumps(self._do(operation, headers, body)).encode(),
                    changes=operation not in _READS,
                    save=self._save,
                    other=lambda: self._other(operation, json.loads(body)),
                )
                if trouble is not None and trouble.error is not None:
                    raise trouble.error
            except AWSFakeError as error:
                text = json.dumps({"__type": error.code, "message": error.message})
                return error.status, error.headers, text.encode()
            return 200, {}, raw if trouble is None else trouble.body

    def _save(self) -> Restore:
        saved = copy.deepcopy(self._secrets)
        return lambda: setattr(self, "_secrets", saved)

    def _other(self, operation: str, fields: Fields) -> bytes | None:
        """Return the answer to a read of another version of the same secret."""
        secret = self._secrets.get(str(fields.get("SecretId")))
        if operation != "GetSecretValue" or secret is None:
            return None
        asked = json.dumps(self._get(fields)).encode()
        for version in secret.versions:
            raw = json.dumps(self._get({"SecretId": secret.name, "VersionId": version})).encode()
            if raw != asked:
                return raw
        return None

    def _do(self, operation: str, headers: Mapping[str, str], body: bytes) -> Fields:
        fields = cast("Fields", json.loads(body))
        key = self._authenticated(headers)
        plain = {name: value for name, value in fields.items() if name not in ("SecretString", "SecretBinary")}
        self.requests.append(Seen(operation=operation, fields=plain, key=key))
        method = _OPERATIONS.get(operation)
        if method is None:
            raise AWSFakeError("UnknownOperationException", "")
        # "Authorization comes before existence": a missing secret answers a denial too.
        self._authorized(key, operation, fields)
        known = self._secrets.get(str(fields.get("SecretId", "")))
        if known is not None and known.primary_region is not None and operation not in _READS:
            # "A replica secret can't be updated independently from its primary secret, except for its encryption key."
            # Code and text as seen at AWS.
            text = "Operation not permitted on a replica secret. Call must be made in primary secret's region."
            raise AWSFakeError("InvalidParameterException", text)
        return method(self, fields)

    def _authenticated(self, headers: Mapping[str, str]) -> str:
        found = _CREDENTIAL.match(headers.get("Authorization", ""))
        if found is None:
            raise AWSFakeError("MissingAuthenticationTokenException", "Missing Authentication Token")
        if found[1] not in self.keys:
            raise AWSFakeError("UnrecognizedClientException", "The security token included in the request is invalid.")
        # docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-troubleshooting.html: five minutes either way.
        signed = datetime.strptime(headers.get("X-Amz-Date", ""), "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        if abs(time.time() + self.clock_ahead - signed) > _SKEW_SECONDS:
            raise AWSFakeError("InvalidSignatureException", "Signature expired: the times are too far apart")
        return found[1]

    def _authorized(self, key: str, operation: str, fields: Fields) -> None:
        policy = self.policies.get(key)
        if policy is None:
            return
        name = str(fields.get("SecretId", fields.get("Name", "")))
        known = self._secrets.get(name)
        arn = known.arn if known else self._arn(name)
        action = f"secretsmanager:{operation}"
        if not is_allowed(policy, action, arn, request_context(operation, fields)):
            raise AWSFakeError(
                "AccessDeniedException",
                f"User: arn:aws:iam::{ACCOUNT}:user/{key} is not authorized to perform: {action} on resource: {name} "
                f"because no identity-based policy allows the {action} action",
            )

    # --- operations -------------------------------------------------------------------------------------------------

    def _create(self, fields: Fields) -> Fields:
        name, token = str(fields.get("Name", "")), _token(fields)
        if not _NAME.fullmatch(name):
            raise AWSFakeError("ValidationException", "Invalid name.")
        known, value = self._secrets.get(name), _value(fields)
        if known is not None and known.deleted is not None:
            raise AWSFakeError(
                "InvalidRequestException",
                "You can't create this secret because a secret with this name is already scheduled for deletion.",
            )
        if known is not None:
            # "If a version with this value already exists and the version SecretString and SecretBinary values are the
            # same as those in the request, then the request is ignored." (CreateSecret, ClientRequestToken)
            if value and token in known.versions and known.versions[token].value == value:
                return {"ARN": known.arn, "Name": name, "VersionId": token}
            raise AWSFakeError(
                "ResourceExistsException", f"The operation failed because the secret {name} already exists."
            )
        made = self._secrets[name] = _Secret(name=name, arn=self._arn(name))
        if not value:
            return {"ARN": made.arn, "Name": name}
        # "Secrets Manager creates an initial secret version and automatically attaches the staging label AWSCURRENT."
        made.versions[token] = _Version(value=value, created=self._now(), stages=["AWSCURRENT"])
        return {"ARN": made.arn, "Name": name, "VersionId": token}

    def _put(self, fields: Fields) -> Fields:
        secret, token, value = self._usable(fields), _token(fields), _value(fields)
        if not value:
            raise AWSFakeError("InvalidRequestException", "You must provide either SecretString or SecretBinary.")
        stages = [str(stage) for stage in cast("list[object]", fields.get("VersionStages", ["AWSCURRENT"]))]
        if not 1 <= len(stages) <= _MOST_STAGES or not all(1 <= len(stage) <= _MOST_STAGE_CHARS for stage in stages):
            raise AWSFakeError("ValidationException", "Member must have length less than or equal to 20")
        known = secret.versions.get(token)
        told: Fields = {"ARN": secret.arn, "Name": secret.name, "VersionId": token}
        if known is not None:
            # "…and you specify the same secret data, the operation succeeds but does nothing. However, if the secret
            # data is different, then the operation fails because you can't modify an existing version."
            if known.value != value:
                raise AWSFakeError(
                    "ResourceExistsException",
                    f"You can't use ClientRequestToken {token} because that value is already in use for a version.",
                )
            return {**told, "VersionStages": list(known.stages)}
        # "If this operation creates the first version for the secret, then Secrets Manager automatically attaches the
        # staging label AWSCURRENT to it."
        if not secret.versions and "AWSCURRENT" not in stages:
            stages.append("AWSCURRENT")
        secret.versions[token] = _Version(value=value, created=self._now(), stages=[])
        for stage in stages:
            # "If you specify a staging label that's already associated with a different version of the same secret,
            # then Secrets Manager removes the label from the other version and attaches it to this version."
            _attach(secret, stage, token)
        return {**told, "VersionStages": list(secret.versions[token].stages)}

    def _get(self, fields: Fields) -> Fields:
        secret = self._usable(fields)
        wanted, stage = fields.get("VersionId"), fields.get("VersionStage")
        # "If you don't specify either a VersionStage or VersionId, Secrets Manager returns the AWSCURRENT version."
        if wanted is None and stage is None:
            stage = "AWSCURRENT"
        for one, version in secret.versions.items():
            if wanted in (None, one) and (stage is None or stage in version.stages):
                return {
                    "ARN": secret.arn,
                    "Name": secret.name,
                    "VersionId": one,
                    "CreatedDate": version.created,
                    "VersionStages": list(version.stages),
                    **version.value,
                }
        raise AWSFakeError(
            "ResourceNotFoundException", "Secrets Manager can't find the specified secret value for the version given."
        )

    def _describe(self, fields: Fields) -> Fields:
        secret = self._known(fields)
        # "A list of the versions of the secret that have staging labels attached."
        held = {one: list(version.stages) for one, version in secret.versions.items() if version.stages}
        told: Fields = {"ARN": secret.arn, "Name": secret.name}
        # "Secrets Manager only returns fields that have a value in the response."
        told |= {"PrimaryRegion": secret.primary_region} if secret.primary_region is not None else {}
        return told | ({"VersionIdsToStages": held} if held else {}) | _deleted(secret)

    def _list(self, fields: Fields) -> Fields:
        secret = self._known(fields)
        # "By default, versions without staging labels aren't included."
        shown = [one for one in secret.versions if fields.get("IncludeDeprecated") or secret.versions[one].stages]
        size = min(self.page_size, int(str(fields.get("MaxResults", 100))))
        token = str(fields.get("NextToken", "0"))
        if not token.isdigit() or int(token) > len(shown):
            raise AWSFakeError("InvalidNextTokenException", "The NextToken value is invalid.")
        begin = int(token)
        told: Fields = {
            "ARN": secret.arn,
            "Name": secret.name,
            "Versions": [
                {"VersionId": one, "CreatedDate": secret.versions[one].created}
                # "Secrets Manager only returns fields that have a value": none for a version without labels.
                | ({"VersionStages": list(secret.versions[one].stages)} if secret.versions[one].stages else {})
                for one in shown[begin : begin + size]
            ],
        }
        return told | ({"NextToken": str(begin + size)} if begin + size < len(shown) else {})

    def _update_stage(self, fields: Fields) -> Fields:
        secret, stage = self._usable(fields), str(fields.get("VersionStage", ""))
        target, named = fields.get("MoveToVersionId"), fields.get("RemoveFromVersionId")
        if not 1 <= len(stage) <= _MOST_STAGE_CHARS:
            raise AWSFakeError("ValidationException", "Invalid staging label.")
        for one in (target, named):
            if one is not None and not 32 <= len(str(one)) <= 64:
                raise AWSFakeError("ValidationException", "Invalid version id.")
        if target is not None and str(target) not in secret.versions:
            raise AWSFakeError("ResourceNotFoundException", "Secrets Manager can't find the specified secret version.")
        holder = next((one for one, version in secret.versions.items() if stage in version.stages), None)
        # "If the label is attached and you either do not specify this parameter, or the version ID does not match, then
        # the operation fails."
        if holder is not None and holder != target and named != holder:
            raise AWSFakeError(
                "InvalidParameterException",
                f"The parameter RemoveFromVersionId can't be empty. Staging label {stage} is currently attached to "
                f"version {holder}, so you must explicitly reference that version in RemoveFromVersionId.",
            )
        # The reference does not say what a wrong name for a free label, or the target's own, does: least convenient.
        if named is not None and named != holder:
            raise AWSFakeError("InvalidParameterException", f"Staging label {stage} is not attached to that version.")
        if target is None:
            if stage == "AWSCURRENT":
                raise AWSFakeError("InvalidParameterException", "AWSCURRENT can only be moved, not removed.")
            if holder is not None:
                secret.versions[holder].stages.remove(stage)
        elif holder != target:
            if len(secret.versions[str(target)].stages) >= _MOST_STAGES:
                # "A version can have up to 20 staging labels" (PutSecretValue, VersionStages: at most 20 items).
                raise AWSFakeError("LimitExceededException", "The version has too many staging labels.")
            _attach(secret, stage, str(target))
        return {"ARN": secret.arn, "Name": secret.name}

    def _delete(self, fields: Fields) -> Fields:
        force, days = fields.get("ForceDeleteWithoutRecovery") is True, fields.get("RecoveryWindowInDays")
        name = str(fields.get("SecretId", ""))
        # "You can't use both this parameter and RecoveryWindowInDays in the same call."
        if force and days is not None:
            raise AWSFakeError("InvalidParameterException", "You can't use both parameters.")
        if days is not None and not 7 <= int(str(days)) <= 30:
            raise AWSFakeError("InvalidParameterException", "RecoveryWindowInDays must be between 7 and 30 days.")
        if force:
            # "If you forcibly delete an already deleted or nonexistent secret, the operation does not return
            # ResourceNotFoundException."
            gone = self._secrets.pop(name, None)
            return {"ARN": gone.arn if gone else self._arn(name), "Name": name, "DeletionDate": time.time()}
        secret = self._usable(fields)
        secret.deleted = time.time()
        return {"ARN": secret.arn, "Name": name, "DeletionDate": secret.deleted + 86400 * int(str(days or 30))}

    # --- helpers ----------------------------------------------------------------------------------------------------

    def _known(self, fields: Fields) -> _Secret:
        secret = self._secrets.get(str(fields.get("SecretId", "")))
        if secret is None:
            raise AWSFakeError("ResourceNotFoundException", "Secrets Manager can't find the specified secret.")
        return secret

    def _usable(self, fields: Fields) -> _Secret:
        secret = self._known(fields)
        # "When a secret is scheduled for deletion, you cannot retrieve the secret value." (DeleteSecret)
        if secret.deleted is not None:
            raise AWSFakeError(
                "InvalidRequestException",
                "You can't perform this operation on the secret because it was marked for deletion.",
            )
        return secret

    def _arn(self, name: str) -> str:
        # "Secrets Manager automatically adds six random characters to the end of the ARN" (CreateSecret, Name).
        return f"arn:aws:secretsmanager:{self.region}:{ACCOUNT}:secret:{name}-{secrets.token_hex(3)}"

    def _now(self) -> float:
        """Return the time in seconds with milliseconds, as the service tells it, later than any before."""
        self._last = max(self._last + 0.001, time.time() + self.clock_ahead)
        return round(self._last, 3)


_OPERATIONS: Final[Mapping[str, Callable[[FakeSecretsManager, Fields], Fields]]] = {
    "CreateSecret": FakeSecretsManager._create,
    "DeleteSecret": FakeSecretsManager._delete,
    "DescribeSecret": FakeSecretsManager._describe,
    "GetSecretValue": FakeSecretsManager._get,
    "ListSecretVersionIds": FakeSecretsManager._list,
    "PutSecretValue": FakeSecretsManager._put,
    "UpdateSecretVersionStage": FakeSecretsManager._update_stage,
}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, fake: FakeSecretsManager) -> None:
        self.fake = fake
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Do not log that a client disconnected early, which tests make clients do."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        fake = cast("_Server", self.server).fake
        status, headers, text = fake.answer(dict(self.headers.items()), body)
        self.send_response(status)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(text)))
        self.send_header("x-amzn-RequestId", secrets.token_hex(8))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Log nothing."""


def _token(fields: Fields) -> str:
    # "If you generate a raw HTTP request … you must generate a ClientRequestToken"; 32 to 64 characters.
    token = str(fields.get("ClientRequestToken", ""))
    if not 32 <= len(token) <= 64:
        raise AWSFakeError("InvalidParameterException", "You must provide a ClientRequestToken of 32 to 64 characters.")
    return token


def _value(fields: Fields) -> Fields:
    value: Fields = {name: fields[name] for name in ("SecretString", "SecretBinary") if name in fields}
    if len(value) > 1:
        raise AWSFakeError("InvalidParameterException", "You can't specify both a binary and a string secret value.")
    for name, held in value.items():
        raw = str(held).encode() if name == "SecretString" else base64.b64decode(str(held))
        # SecretString: "Length Constraints: Minimum length of 1. Maximum length of 65536."; the same for SecretBinary.
        if not 1 <= len(raw) <= _MOST_BYTES:
            raise AWSFakeError(
                "ValidationException",
                f"Value '{held}' failed to satisfy constraint: Member must have length less than or equal to 65536",
            )
    return value


def _attach(secret: _Secret, stage: str, target: str) -> None:
    holder = next((one for one, version in secret.versions.items() if stage in version.stages), None)
    if holder == target:
        return
    if holder is not None:
        secret.versions[holder].stages.remove(stage)
    secret.versions[target].stages.append(stage)
    if stage == "AWSCURRENT" and holder is not None:
        # "Whenever you move AWSCURRENT, Secrets Manager automatically moves the label AWSPREVIOUS to the version that
        # AWSCURRENT was removed from."
        for version in secret.versions.values():
            version.stages = [each for each in version.stages if each != "AWSPREVIOUS"]
        secret.versions[holder].stages.append("AWSPREVIOUS")


def _deleted(secret: _Secret) -> Fields:
    return {} if secret.deleted is None else {"DeletedDate": secret.deleted}
