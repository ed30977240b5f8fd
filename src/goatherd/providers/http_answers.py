"""Check the answers of platforms that a provider calls over HTTP without an SDK, such as Vault.

No error here holds or chains the request, whose headers carry the token and whose body carries the value.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from goatherd.errors import ProviderConfigurationError, ProviderError, UnavailableError
from goatherd.serving.http_client import causes_of, describe_failure


def damaged_answer_error(why: str) -> UnavailableError:
    """Return the error for an answer that does not hold what was requested; `why` says what is wrong with it."""
    return UnavailableError(f"the server's answer is damaged: {why}")


def no_answer_error(error: Exception, where: str, *, distrust_hint: str) -> ProviderError:
    """Return the error for a request that got no complete answer.

    Args:
        error: What the HTTP client raised.
        where: The server's URL.
        distrust_hint: The hint of the error if the server's certificate is not trusted.
    """
    for cause in causes_of(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ProviderConfigurationError(
                f"the certificate of {where} is not trusted: {cause.verify_message}", hint=distrust_hint
            )
    if isinstance(error, httpx2.InvalidURL | httpx2.UnsupportedProtocol):
        return ProviderConfigurationError(f"{where} is not a valid URL: {type(error).__name__}")
    return UnavailableError(f"no complete answer from {where}: {describe_failure(error)}")


def parse_object(raw: bytes) -> Mapping[str, Any] | None:
    """Return the JSON object in an answer; None if it is something else."""
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def parse_retry_after(header: str | None, now_ms: int) -> float | None:
    """Return for how many seconds a ``Retry-After`` header asks to wait; None if there is none, or it is invalid.

    The header is a number or a date (RFC 9110, 10.2.3); a date is compared with `now_ms`, the time in milliseconds
    since 1970.
    """
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        until = parsedate_to_datetime(header)
    except (TypeError, ValueError):
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.fromtimestamp(now_ms / 1000, UTC)).total_seconds())
