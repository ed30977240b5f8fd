"""Check the answers of platforms that a provider calls over HTTP without an SDK, such as Vault.

No error here holds or chains the request, whose headers carry the token and whose body carries the value.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

import httpx2

from goatherd.clock import read_http_date
from goatherd.errors import ProviderConfigurationError, ProviderError, UnavailableError
from goatherd.serving.http_client import causes_of, describe_failure

Result = TypeVar("Result")

_LONGEST_ANSWER: Final = 8 << 20


async def await_answer(work: Awaitable[Result], translate: Callable[[Exception], ProviderError]) -> Result:
    """Await a part of a request and its answer; raise what `translate` returns for an error of the HTTP client.

    SECURITY: the error is not raised `from` the HTTP client's, nor while that is handled, because it refers to the
    request, and so to the token and the value (tests/contract/vault/test_faults.py and
    tests/contract/kubernetes/test_faults.py, ``test_no_error_leads_to_the_token_or_the_value``).
    """
    try:
        return await work
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError) as error:
        problem = translate(error)
    raise problem


async def read_body(response: httpx2.Response) -> bytes:
    """Read the body of a streamed answer.

    Raises:
        UnavailableError: The body is longer than any answer that a provider needs.
    """
    raw = bytearray()
    async for chunk in response.aiter_bytes():
        add_chunk(raw, chunk)
    return bytes(raw)


def add_chunk(raw: bytearray, chunk: bytes) -> None:
    """Add a chunk to a part of an answer.

    Raises:
        UnavailableError: The part is longer than any that a provider needs.
    """
    raw += chunk
    if len(raw) > _LONGEST_ANSWER:
        raise damaged_answer_error("it is too long")


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
    until_ms = read_http_date(header)
    return None if until_ms is None else max(0.0, (until_ms - now_ms) / 1000)
