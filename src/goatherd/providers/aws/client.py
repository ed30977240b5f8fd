"""Send requests to AWS Secrets Manager through boto3, check the answers, and translate the errors.

`SecretsManagerAPI` sends one request in a thread and returns the answer or raises one of Goatherd's errors. It does not
retry (`goatherd.providers.base` does) and does not handle labels. Every exception of boto3 is translated here. No
answer is used before its shape has been checked.

SECURITY: an exception of boto3 may quote what was sent or received, so it is never chained. Only its code, the HTTP
status, the request id and the text of a denial are quoted (tests/contract/aws/test_answers.py, `test_no_error_log_…`).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, NoReturn, Protocol, cast

import boto3
import botocore.session
from botocore import exceptions as sdk
from botocore.config import Config
from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials
from botocore.loaders import Loader

from goatherd.clock import Clock, RemoteClock
from goatherd.errors import (
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    ProviderError,
    SecretDeletedError,
    SecretExistsError,
    SecretNotFoundError,
    SecretTooLargeError,
    ThrottledError,
    UnavailableError,
)
from goatherd.providers.aws.address import AWSAddress
from goatherd.providers.threads import Threads
from goatherd.providers.values import SecretBytes, VersionId
from goatherd.serving.http_client import describe_failure

Answer = Mapping[str, object]

THREADS: Final = 4
_PATIENCE: Final = 1.0
_SERVICE: Final = "secretsmanager"
_NOISY: Final = ("boto3", "botocore", "urllib3")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)

_CODE = re.compile(r"[A-Za-z0-9.]{1,64}")
_PLAIN = re.compile(r"[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]+")
_REQUEST_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
# The lengths of the API's SecretVersionIdType. AWS does not document the characters: all printable ASCII is accepted.
_VERSION_ID = re.compile(r"[\x21-\x7e]{32,64}")

# Error codes, by what they mean. Those of the service itself:
# docs.aws.amazon.com/secretsmanager/latest/apireference/API_GetSecretValue.html#API_…_Errors (and each operation's
# page); the others: …/apireference/CommonErrors.html, and what the signing layer answers.
_THROTTLED: Final = frozenset(
    {
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "TooManyRequestsException",
    }
)
_DENIED: Final = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "IncompleteSignatureException",
        "InvalidClientTokenId",
        "InvalidIdentityToken",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "NotAuthorized",
        "OptInRequired",
        "SignatureDoesNotMatch",
        "UnauthorizedOperation",
        "UnrecognizedClientException",
    }
)
# The credentials have expired, or AWS does not know them (any more).
_REJECTED: Final = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "UnrecognizedClientException"}
)
_CLOCK: Final = frozenset({"RequestExpired", "RequestInTheFuture", "RequestTimeTooSkewed"})
_UNWELL: Final = frozenset(
    {
        "IDPCommunicationError",  # of STS: the cluster's identity provider did not answer it
        "InternalFailure",
        "InternalServiceError",
        "RequestTimeout",
        "ServiceUnavailable",
    }
)
_KEY_TROUBLE: Final = frozenset({"DecryptionFailure", "EncryptionFailure"})
# Of other services of AWS: the SDK gets credentials by them, before it sends the request itself.
_LOGINS: Final = frozenset(
    {"AssumeRole", "AssumeRoleWithWebIdentity", "CreateOAuth2Token", "CreateToken", "GetRoleCredentials"}
)
_NO_CREDENTIALS: Final = (
    sdk.LoginError,
    sdk.NoCredentialsError,
    sdk.PartialCredentialsError,
    sdk.RefreshWithMFAUnsupportedError,
    sdk.SSOError,
    sdk.TokenRetrievalError,
    sdk.UnauthorizedSSOTokenError,
)
_SET_UP: Final = (
    sdk.ConfigNotFound,
    sdk.ConfigParseError,
    sdk.EndpointProviderError,
    sdk.InvalidConfigError,
    sdk.InvalidDefaultsMode,
    sdk.InvalidEndpointDiscoveryConfigurationError,
    sdk.InvalidIMDSEndpointError,
    sdk.InvalidIMDSEndpointModeError,
    sdk.InvalidRegionError,
    sdk.InvalidSTSRegionalEndpointsConfigError,
    sdk.MissingDependencyException,
    sdk.NoRegionError,
    sdk.ParamValidationError,
    sdk.ProfileNotFound,
    sdk.UnknownCredentialError,
    sdk.UnknownEndpointError,
)


class Client(Protocol):
    """A boto3 client; boto3 creates its class, with a method for each request, at run time."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRefusal:
    """The error with which a request to AWS Secrets Manager failed, in the service or in the SDK.

    Attributes:
        code: The service's error code, or the name of the SDK's exception.
        error: The Goatherd error to raise.
    """

    code: str
    error: ProviderError


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVersion:
    """One version of a secret with its value, as AWS Secrets Manager reports them."""

    id: VersionId
    stages: frozenset[str]
    created_ms: int
    value: SecretBytes


class SecretsManagerAPI:
    """Sends requests to AWS Secrets Manager from threads, with one boto3 client that the first request creates.

    Args:
        address: The address of the service and the credentials to use.
        timeout: The deadline of a whole call; no single request takes longer than half of it.
        clock: Measures how long the service took to answer.
        store_clock: The estimate of the service's clock; the date of each answer updates it.
    """

    def __init__(self, address: AWSAddress, timeout: timedelta, clock: Clock, store_clock: RemoteClock) -> None:
        self._address = address
        self._timeout = timeout
        self._clock = clock
        self._store_clock = store_clock
        self._threads = Threads("goatherd-aws", THREADS)
        self._client = KeptClient(address, timeout)

    async def call_service(
        self, method: str, request: Mapping[str, object], carried: SecretBytes | None = None
    ) -> Answer:
        """Send one request to AWS Secrets Manager, and return the answer without checking its contents.

        Args:
            method: The name of the boto3 client's method.
            request: The fields of the request.
            carried: The secret value to send. SECURITY: it is revealed only in the worker thread that sends it, so that
                no stack frame in the traceback of an error contains it (tests/contract/aws/test_answers.py).

        Raises:
            ProviderError: The request failed; see `refusal_of`.
        """
        outcome = await self.try_call(method, request, carried)
        if isinstance(outcome, ServiceRefusal):
            raise outcome.error
        return outcome

    async def try_call(
        self, method: str, request: Mapping[str, object], carried: SecretBytes | None = None
    ) -> Answer | ServiceRefusal:
        """Send one request to AWS Secrets Manager; return the answer, or the service's error instead of raising it."""
        job = self._threads.submit(functools.partial(self._send_request, method, request, carried))
        # A request that is queued behind others is waited for as well, until the deadline of the call.
        waiting = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            # A running thread cannot be stopped. So a request that is still queued is cancelled, and one that is being
            # sent is waited for briefly: its outcome is then known before the caller reads the store again.
            if not job.cancel():
                await asyncio.wait({waiting}, timeout=_PATIENCE)
            raise

    def close(self) -> None:
        """Close the boto3 client's connections and end its threads."""
        self._threads.close()
        self._client.close()

    def _send_request(
        self, method: str, request: Mapping[str, object], carried: SecretBytes | None
    ) -> Answer | ServiceRefusal:
        """Send one request to AWS, in a worker thread; return the answer, or the error as a `ServiceRefusal`.

        An SDK exception may quote a secret value. Translated in this thread, it never becomes part of a traceback.
        """
        began = self._clock.monotonic()
        try:
            value = {} if carried is None else _fields_of(carried)
            answer = self._client.send(method, {**request, **value})
        except Exception as error:  # noqa: BLE001 - under faults, the SDK lets other errors out, such as UnicodeDecodeError
            if isinstance(error, sdk.ClientError):
                self._note_date(error.response, began)
            return refusal_of(error)
        self._note_date(answer, began)
        return answer

    def _note_date(self, answer: Mapping[str, object], began: float) -> None:
        date = _require_mapping(_require_mapping(answer.get("ResponseMetadata")).get("HTTPHeaders")).get("date")
        self._store_clock.note_date(date if isinstance(date, str) else None, began=began)


class KeptClient:
    """Keeps one boto3 client for a service of AWS, for use in several threads; `send` creates it when it is needed.

    If AWS rejects its credentials, the next request is sent by a new client: the SDK reads ``~/.aws/credentials`` only
    when it creates a client, and other programs replace the credentials in this file before they expire.

    Args:
        address: The address of the service and the credentials to use.
        timeout: As for `make_client`.
        service: The SDK's name of the service.
    """

    def __init__(self, address: AWSAddress, timeout: timedelta, service: str = _SERVICE) -> None:
        self._address, self._timeout, self._service = address, timeout, service
        self._lock = threading.Lock()
        self._made: Client | None = None

    def send(self, method: str, request: Mapping[str, object]) -> Answer:
        """Send one request through the SDK's method called `method`, and return the answer. Raises the SDK's errors."""
        client = self._get()
        try:
            return cast("Answer", getattr(client, method)(**request))
        except sdk.ClientError as error:
            if _require_mapping(error.response.get("Error")).get("Code") in _REJECTED:
                self._forget(client)
            raise

    def close(self) -> None:
        """Close the client's connections; a later request creates a new client."""
        made, self._made = self._made, None
        if made is not None:
            made.close()

    def _get(self) -> Client:
        with self._lock:
            if self._made is None:
                self._made = make_client(self._address, self._timeout, self._service)
            return self._made

    def _forget(self, client: Client) -> None:
        with self._lock:
            if self._made is client:
                self._made = None  # not closed, because other threads may be using it


def _fields_of(value: SecretBytes) -> dict[str, object]:
    """Return the AWS request field for a value: a string if it is plain text, for other tools to read; else bytes."""
    raw = value.reveal()
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return {"SecretBinary": raw}
    return {"SecretString": text} if _PLAIN.fullmatch(text) else {"SecretBinary": raw}


def make_client(address: AWSAddress, timeout: timedelta, service: str) -> Client:
    """Create a boto3 client for a service of AWS with short timeouts and without the SDK's own retries.

    The SDK looks for credentials when it creates a client, and a client without credentials never gets any. So none is
    created without them: the instance's metadata service may only have missed a request, and the next call asks again.
    The timeouts hold for the services that give credentials, too: by default, the SDK would wait for them for minutes,
    and all requests with it.

    SECURITY: the SDK's debug log holds requests and answers with their values, so it is turned off for this process
    (tests/contract/aws/test_answers.py::test_no_error_log_or_traceback_shows_a_value).

    Raises:
        NoCredentialsError: The SDK finds no credentials now.
        NoRegionError: Neither the address nor the SDK's configuration names a region.
    """
    for name in _NOISY:
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.getEffectiveLevel(), logging.INFO))
    seconds = timeout.total_seconds()
    config = Config(
        connect_timeout=min(3.0, seconds / 4),
        read_timeout=seconds / 2,
        retries={"mode": "standard", "total_max_attempts": 1},
        max_pool_connections=THREADS,
        user_agent_extra="goatherd",
    )
    session = _open_session(address.profile, address.region, config)
    if session.region_name is None:
        raise sdk.NoRegionError
    if session.get_credentials() is None:
        raise sdk.NoCredentialsError
    if address.role_arn is not None:
        session = _assume_role(session, address.role_arn, config)
    return cast("Client", session.client(service, endpoint_url=address.endpoint))


def _open_session(profile: str | None, region: str | None, config: Config) -> boto3.Session:
    """Create a boto3 session that shares the descriptions of AWS's services, whose decoding takes 60 ms.

    All its clients have the settings `config`, also those with which the SDK gets credentials.

    It does not ask for an MFA code at the terminal: the question would outlast the call, and the end of the command
    would wait for the answer.
    """
    inner = botocore.session.get_session()
    session = boto3.Session(profile_name=profile, region_name=region, botocore_session=inner)
    inner.set_default_client_config(config)
    inner.register_component("data_loader", _service_descriptions())
    # The SDK has no public way.
    inner.get_component("credential_provider").get_provider("assume-role")._prompter = _refuse_prompt
    return session


def _refuse_prompt(_: str) -> NoReturn:
    raise sdk.RefreshWithMFAUnsupportedError


@functools.cache
def _service_descriptions() -> Loader:
    return cast("Loader", botocore.session.get_session().get_component("data_loader"))


def _assume_role(source: boto3.Session, role_arn: str, config: Config) -> boto3.Session:
    """Assume an IAM role and return a boto3 session with its credentials, which the SDK renews before they expire."""
    fetcher = AssumeRoleCredentialFetcher(
        client_creator=functools.partial(
            source._session.create_client,  # as the SDK's own profiles with a role_arn do
            region_name=source.region_name,
        ),
        source_credentials=source.get_credentials(),
        role_arn=role_arn,
        extra_args={"RoleSessionName": "goatherd"},
    )
    session = _open_session(None, source.region_name, config)
    session._session._credentials = DeferredRefreshableCredentials(  # the SDK has no public way
        method="assume-role", refresh_using=fetcher.fetch_credentials
    )
    return session


# --- errors ---------------------------------------------------------------------------------------------------------


def refusal_of(error: Exception) -> ServiceRefusal:
    """Translate an exception of the AWS SDK into a `ServiceRefusal` with Goatherd's error."""
    if isinstance(error, sdk.ClientError):
        return _service_refusal(error.response, is_login=error.operation_name in _LOGINS)
    name = type(error).__name__
    if isinstance(error, _NO_CREDENTIALS):
        kind: type[ProviderError] = ProviderAccessDeniedError
        message = f"no credentials for AWS: {name}"
        hint = (
            "Log in (aws login, aws sso login), set AWS_PROFILE, or give the machine a role (how-to page: Keep the"
            " identity in AWS Secrets Manager)."
        )
        if isinstance(error, sdk.RefreshWithMFAUnsupportedError):
            message = "the profile needs an MFA code, for which Goatherd does not ask"
            hint = (
                "Take the credentials from the AWS CLI, which asks for it:"
                ' eval "$(aws configure export-credentials --profile NAME --format env)".'
            )
    elif isinstance(error, _SET_UP):
        kind, message = ProviderConfigurationError, f"the AWS client cannot be set up: {name}"
        hint = "Check region and profile, in the address and in ~/.aws/config."
        if isinstance(error, sdk.MissingDependencyException):
            hint = (
                "The SDK needs another package, for example for profiles of `aws login`: pip install 'botocore[crt]'."
            )
    elif isinstance(error, sdk.SSLError):
        kind, message = UnavailableError, "the endpoint's certificate is not accepted"
        hint = "Check the endpoint, the clock, and AWS_CA_BUNDLE where a proxy intercepts TLS."
    elif isinstance(error, sdk.HTTPClientError | sdk.ConnectionError):
        kind, message = UnavailableError, f"no complete answer from AWS: {describe_failure(error)}"
        hint = ""
    elif isinstance(error, sdk.CredentialRetrievalError | sdk.MetadataRetrievalError):
        kind, message = UnavailableError, f"the source of the credentials did not answer: {name}"
        hint = "Check the credential process, or the instance's or container's metadata service."
    else:
        kind, message, hint = UnavailableError, f"the answer cannot be read: {name}", ""
    return ServiceRefusal(code=name, error=kind(message, hint=hint or None))


def _service_refusal(response: Answer, *, is_login: bool) -> ServiceRefusal:
    failure, meta = _require_mapping(response.get("Error")), _require_mapping(response.get("ResponseMetadata"))
    code, text = str(failure.get("Code", "")), str(failure.get("Message", ""))
    status, headers = meta.get("HTTPStatusCode"), _require_mapping(meta.get("HTTPHeaders"))
    status = status if isinstance(status, int) else 0
    code = code if _CODE.fullmatch(code) else "?"
    request_id = str(meta.get("RequestId", ""))
    where = f"{code} (HTTP {status}" + (f", request {request_id})" if _REQUEST_ID.fullmatch(request_id) else ")")
    error = _error_for(code, status, text, where, headers)
    # SECURITY: if the login answers "not found", the account or role is wrong; the error must not state that the secret
    # is missing (tests/contract/aws/test_answers.py, `…_login_…`).
    if is_login and not isinstance(error, ProviderAccessDeniedError | ThrottledError | UnavailableError):
        error = ProviderAccessDeniedError(
            f"the login to AWS was refused: {where}",
            hint="Check the account and the role that the profile or the address names.",
        )
    return ServiceRefusal(code=code, error=error)


def _error_for(code: str, status: int, text: str, where: str, headers: Answer) -> ProviderError:
    """Choose Goatherd's error for an error code of AWS.

    The service's message `text` helps to choose the error, but only an error about denied access quotes it. `where` is
    the code with the HTTP status and the request id, for the message.
    """
    if code in _THROTTLED or status == 429:
        return ThrottledError(where, retry_after=_retry_after(headers))
    if code == "InvalidIdentityToken" and "retrieve verification key" in text:
        # STS rejects the token of a pod also if the cluster's identity provider has not answered STS.
        return UnavailableError(f"{where}: the identity provider did not answer AWS")
    if code in _CLOCK or (code in _DENIED and ("Signature expired" in text or "not yet current" in text)):
        return ProviderAccessDeniedError(
            f"AWS does not accept this machine's time: {where}", hint="Set the clock: AWS allows about five minutes."
        )
    if code in _DENIED or status in (401, 403):
        said = " ".join(text.split())[:300]
        return ProviderAccessDeniedError(
            f"{where}: {said}" if said and code != "?" else where,
            hint="Attach a policy: `goatherd policy aws --role server` (or rotator, admin) prints it. Only the role"
            " admin may create a secret.",
        )
    if code in _KEY_TROUBLE:
        return ProviderAccessDeniedError(
            f"the KMS key cannot be used: {where}",
            hint="Check that the key is enabled and allows kms:Decrypt (writers: kms:GenerateDataKey too).",
        )
    if code in _UNWELL or status >= 500 or status < 400:
        return UnavailableError(where)
    if code == "ResourceNotFoundException":
        return SecretNotFoundError(f"there is no such secret, version or label: {where}")
    if code == "ResourceExistsException":
        return SecretExistsError(f"the secret exists already: {where}")
    if code == "InvalidRequestException" and "delet" in text:
        return deleted_error()
    if code == "LimitExceededException":
        return ProviderConfigurationError(
            f"a quota of Secrets Manager is reached: {where}",
            hint="AWS allows about 100 versions of a secret and 20 labels of a version. Remove labels, or wait until"
            " AWS has deleted old versions, which are at least a day old.",
        )
    if status == 413 or "length less than or equal to 65536" in text:
        return SecretTooLargeError(f"AWS rejected the value as too long: {where}")
    return ProviderConfigurationError(f"AWS rejected the request: {where}")


def deleted_error() -> SecretDeletedError:
    """Return the error for an AWS secret that is deleted but can still be restored during its recovery window."""
    return SecretDeletedError(
        "the secret is scheduled for deletion",
        hint="Until the recovery window ends, `aws secretsmanager restore-secret` restores the secret.",
    )


def _retry_after(headers: Answer) -> float | None:
    """Return for how many seconds AWS asks to wait before a retry, at most an hour; None if it does not say."""
    for name, unit in (("retry-after", 1.0), ("x-amz-retry-after", 0.001)):
        value = str(headers.get(name, ""))
        if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
            return min(3600.0, float(value) * unit)
    return None


# --- answers --------------------------------------------------------------------------------------------------------


def damaged_error(what: str) -> UnavailableError:
    """Return the error for a damaged answer of AWS; `what` says what is wrong with the answer.

    The SDK raises no exception if an answer is cut off: it returns an empty success.
    """
    return UnavailableError(f"the answer is damaged: {what}")


def check_named(answer: Answer) -> None:
    """Check that an answer of AWS Secrets Manager names a secret, as every complete answer does.

    Raises:
        UnavailableError: The answer names no secret, so it is unknown what the request did.
    """
    if not isinstance(answer.get("ARN"), str) or not answer["ARN"]:
        raise damaged_error("it does not name the secret")


def version_of(answer: Answer) -> VersionId:
    """Return the version id in an answer of AWS Secrets Manager, after checking its form."""
    version_id = answer.get("VersionId")
    if not isinstance(version_id, str) or not is_version_id(version_id):
        raise damaged_error("it has no version id")
    return VersionId(version_id)


def is_version_id(text: str) -> bool:
    """Return whether `text` has the form of a version id of AWS Secrets Manager."""
    return _VERSION_ID.fullmatch(text) is not None


def stages_of(stages: object) -> frozenset[str]:
    """Check the staging labels in an AWS answer and return them; AWS leaves the field out if there are none."""
    if stages is None:
        return frozenset()
    if not isinstance(stages, list) or not all(isinstance(stage, str) for stage in stages):
        raise damaged_error("its staging labels are not a list of strings")
    return frozenset(stages)


def created_of(answer: Answer) -> int:
    """Return the ``CreatedDate`` in an answer of AWS Secrets Manager, in milliseconds since 1970."""
    date = answer.get("CreatedDate")
    if not isinstance(date, datetime) or date.tzinfo is None:
        raise damaged_error("it has no time of creation")
    return round((date - _EPOCH) / _MILLISECOND)


def stored_of(answer: Answer) -> StoredVersion:
    """Return the version and the value in AWS's answer to ``GetSecretValue``.

    Raises:
        UnavailableError: A part of the answer is missing, or it holds a text and a binary value.
    """
    check_named(answer)
    text, binary = answer.get("SecretString"), answer.get("SecretBinary")
    if isinstance(text, str) and text and binary is None:
        value = SecretBytes(text.encode("utf-8", "surrogatepass"))
    elif isinstance(binary, bytes) and binary and text is None:
        value = SecretBytes(binary)
    else:
        raise damaged_error("it has no value")
    return StoredVersion(
        id=version_of(answer),
        stages=stages_of(answer.get("VersionStages")),
        created_ms=created_of(answer),
        value=value,
    )


def _require_mapping(value: object) -> Answer:
    return value if isinstance(value, dict) else {}
