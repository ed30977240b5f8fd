"""Get tokens from Azure's default chain of credentials, and distinguish a failed token service from a missing login.

The SDK raises the same error whether no credential is configured, or one is and its token service could not be reached.
`DefaultCredential` watches the requests that the chain sends: if the chain gives no token and a token service did not
answer or reported an error, it raises `TokenServiceError`. The store and the signer use it.

On every machine the chain also asks the metadata service of Azure's virtual machines, which never answers outside
Azure. So a failure of that service counts only after the credential has given a token.

SECURITY: the SDK's errors may quote an answer of a token service, so none is chained to a `TokenServiceError`
(tests/contract/azure/test_credential.py::test_a_token_service_that_reports_an_error_is_unavailable).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from azure.core.credentials import AccessToken, AccessTokenInfo, TokenRequestOptions
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError
from azure.core.pipeline import PipelineRequest, PipelineResponse
from azure.identity.aio import DefaultAzureCredential

from goatherd.providers.azure.address import AzureAddress

Token = TypeVar("Token")

_METADATA_SERVICE: Final = "169.254.169.254"
"""learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token"""
_NO_ANSWER: Final = "did not answer"
_failures: ContextVar[dict[str, str]] = ContextVar("failures")
"""How the last request to each host failed, in one request for a token."""


class TokenServiceError(Exception):
    """No credential gave a token, because a token service did not answer or reported an error; the text names it."""


class DefaultCredential(DefaultAzureCredential):
    """Azure's default chain of credentials, for the cloud and the managed identity of an address.

    The SDK reads a client certificate, and the environment, when it builds the chain. So after a login was refused, the
    chain is built again, because another program may have replaced the certificate.

    Args:
        address: The key vault; its cloud and its managed identity are used.
    """

    def __init__(self, address: AzureAddress) -> None:
        options: dict[str, Any] = {}
        if address.authority is not None:
            options["authority"] = address.authority
        if address.identity is not None:
            options["managed_identity_client_id"] = address.identity
        self._options = options
        self._has_given = False
        self._build_chain()

    def _build_chain(self) -> None:
        super().__init__(raw_request_hook=_note_request, raw_response_hook=_note_answer, **self._options)

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """Return a token, as the SDK's policies ask for it.

        Raises:
            TokenServiceError: A token service did not answer or reported an error.
            ClientAuthenticationError: No credential gave a token for another reason, such as a missing login.
        """
        return await self._watch(super().get_token(*scopes, **options))

    async def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
        """Return a token with its kind; the SDK calls this method. Raises what `get_token` does."""
        return await self._watch(super().get_token_info(*scopes, options=options))

    async def _watch(self, request: Awaitable[Token]) -> Token:
        used, failures = self.credentials, dict[str, str]()
        reset = _failures.set(failures)
        try:
            token = await request
        except Exception as error:
            failure = self._find_failure(failures)
            if failure is None and not isinstance(error, HttpResponseError):
                raise
        else:
            self._has_given = True
            return token
        finally:
            _failures.reset(reset)
        # Raised outside of the `except`, so that the SDK's error is not in the context: it may hold an answer of the
        # token service, which must not be mistaken for one of the key vault.
        if failure is not None:
            raise TokenServiceError(failure)
        if self.credentials is used:
            with suppress(OSError, ValueError):  # in the middle of a renewal; the next call tries again
                self._build_chain()
                await asyncio.gather(*(credential.close() for credential in used))
        raise ClientAuthenticationError("no credential gave a token")

    def _find_failure(self, failures: dict[str, str]) -> str | None:
        for host, failure in failures.items():
            if self._has_given or host != _METADATA_SERVICE:
                return f"no token, because {host} {failure}"
        return None


def _note_request(request: PipelineRequest[Any]) -> None:
    _failures.get({})[_host_of(request.http_request.url)] = _NO_ANSWER  # until it answers


def _note_answer(response: PipelineResponse[Any, Any]) -> None:
    host, status = _host_of(response.http_request.url), response.http_response.status_code
    if status >= 500 or status in (408, 429):
        _failures.get({})[host] = f"answered with HTTP {status}"
    else:
        _failures.get({}).pop(host, None)


def _host_of(url: str) -> str:
    return urlsplit(url).hostname or ""
