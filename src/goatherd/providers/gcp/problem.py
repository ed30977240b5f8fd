"""Translate the errors of Google's libraries to Goatherd's.

An error is recognized by its status, never by its class, because the class depends on the transport. The service's
message is quoted only where it cannot contain a secret's value.

SECURITY: an exception of the SDK may contain the request, so it never becomes the cause or the context of Goatherd's
error (tests/contract/gcp/test_answers.py::test_no_error_of_the_service_shows_a_value).
"""

from __future__ import annotations

import re
from typing import Final

from google.api_core import exceptions as sdk
from google.auth import exceptions as auth
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from goatherd.errors import (
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    ProviderError,
    SecretExistsError,
    SecretNotFoundError,
    ThrottledError,
    UnavailableError,
    VersionDisabledError,
)

CREDENTIALS_HINT: Final = (
    "On Google Cloud, attach a service account (on GKE: Workload Identity). Elsewhere, set "
    "GOOGLE_APPLICATION_CREDENTIALS, or run: gcloud auth application-default login"
)
DENIED_HINT: Final = (
    "Grant what `goatherd policy` prints for this role; a secret that does not exist may be denied like this too. "
    "New grants take minutes to reach every server."
)
QUOTA_HINT: Final = "See the project's quotas for secretmanager.googleapis.com; poll less often, or ask for more."

_LONGEST: Final = 300
_PLUGIN: Final = "Getting metadata from plugin failed"
_PASSING: Final = frozenset(
    {"UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "INTERNAL", "UNKNOWN", "CANCELLED", "DATA_LOSS"}
)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]+")
_STATE = re.compile(r"\b(DISABLED|DESTROYED) state\b")
_FINAL_LOGIN = re.compile(r"invalid_grant|RefreshError|[Rr]eauthentication|unauthorized_client|account not found")


class EtagMovedError(Exception):
    """The secret has changed since it was read; the provider must read it again. Callers never see this error."""


def status_of(error: sdk.GoogleAPICallError) -> str:
    """Return the name of the gRPC status of a Google SDK error, such as ``NOT_FOUND``."""
    return str(getattr(error.grpc_status_code, "name", "UNKNOWN"))


def is_rejected_login(error: Exception) -> bool:
    """Return whether an error of Google's libraries means that Google does not accept the credentials."""
    if isinstance(error, sdk.GoogleAPICallError):
        text = str(error.message or "")
        return status_of(error) == "UNAUTHENTICATED" or (text.startswith(_PLUGIN) and bool(_FINAL_LOGIN.search(text)))
    return isinstance(error, auth.RefreshError) and not error.retryable


def translate_error(error: Exception, *, doing: str, quoting: bool = True) -> ProviderError:
    """Return Goatherd's error for an error of Google's SDK.

    Args:
        error: The SDK's exception.
        doing: The API method that was called, such as ``AccessSecretVersion``.
        quoting: Whether the service's text may be shown; False if the request held a value.
    """
    if isinstance(error, sdk.GoogleAPICallError):
        return _from_status(error, doing=doing, quoting=quoting)
    if isinstance(error, auth.DefaultCredentialsError):
        return ProviderAccessDeniedError("no Google credentials were found", hint=CREDENTIALS_HINT)
    if isinstance(error, auth.GoogleAuthError):
        name = type(error).__name__
        if getattr(error, "retryable", False) or isinstance(error, auth.TransportError):
            return UnavailableError(f"Google's login did not answer ({name})")
        return ProviderAccessDeniedError(f"Google rejected the credentials ({name})", hint=CREDENTIALS_HINT)
    return UnavailableError(f"{doing} failed ({type(error).__name__})")


def _from_status(error: sdk.GoogleAPICallError, *, doing: str, quoting: bool) -> ProviderError:
    status = status_of(error)
    text = _UNPRINTABLE.sub(" ", str(error.message or ""))
    what = f"{doing}: {status}" + (f": {text[:_LONGEST]}" if quoting and text else "")
    if status in _PASSING:
        if text.startswith(_PLUGIN):
            if _FINAL_LOGIN.search(text):
                return ProviderAccessDeniedError("Google rejected the credentials", hint=CREDENTIALS_HINT)
            return UnavailableError("Google's login did not answer", hint=CREDENTIALS_HINT)
        return UnavailableError(what)
    if status == "RESOURCE_EXHAUSTED":
        return ThrottledError(what, hint=QUOTA_HINT, retry_after=_retry_after(error))
    if status in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
        hint = DENIED_HINT if status == "PERMISSION_DENIED" else CREDENTIALS_HINT
        return ProviderAccessDeniedError(what, hint=hint)
    if status == "NOT_FOUND":
        return SecretNotFoundError(what)
    if status == "ALREADY_EXISTS":
        return SecretExistsError("the secret exists already")
    if status == "FAILED_PRECONDITION" and (state := _STATE.search(text)):
        return VersionDisabledError(f"the version was {state[1].lower()}")
    if status == "INVALID_ARGUMENT" and ("checksum" in text.lower() or "crc32c" in text.lower()):
        return UnavailableError(f"{doing}: the value was damaged in transit")
    return ProviderConfigurationError(what)


def _retry_after(error: sdk.GoogleAPICallError) -> float | None:
    """Return for how many seconds Google asks to wait before a retry (google.rpc.RetryInfo); None if it does not."""
    for detail in error.details or ():
        if isinstance(detail, error_details_pb2.RetryInfo):
            return max(0.0, float(detail.retry_delay.seconds + detail.retry_delay.nanos / 1e9))
    return None
