"""Connect to a Google service through its asynchronous SDK: credentials, channel, and one page of a list at a time.

Used by the store (`goatherd.providers.gcp`) and by the signer (`goatherd.signers.gcpkms`). The only requests that the
module sends itself are those for credentials.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeVar

import google.auth
from google.api_core.client_options import ClientOptions
from google.auth.credentials import Credentials

from goatherd.providers.gcp.problem import is_rejected_login

Client = TypeVar("Client")
Method = Callable[..., Awaitable[Any]]

SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)
# gRPC waits a second after a connection broke, longer than the first retries take.
_CHANNEL: Final = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)


class Connection(Generic[Client]):
    """The SDK's client of one Google service; `open` creates it on first use, and anew for another event loop.

    Args:
        client: The SDK's asynchronous client class.
        transport: The SDK's class of its gRPC transport over asyncio.
        host: Host of the service, with its port if that is not 443.
        credentials: Credentials to use; None for Google's default chain.
        quiet: Names of loggers that must not log at DEBUG, because the SDK then logs requests and answers.
    """

    def __init__(
        self,
        client: Callable[..., Client],
        transport: Any,
        *,
        host: str,
        credentials: Credentials | None,
        quiet: Sequence[str],
    ) -> None:
        self._make, self._transport, self._host = client, transport, host
        self._credentials, self._quiet = credentials, quiet
        self._client: Client | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self) -> Client:
        """Return the SDK's client for the running event loop; create it if there is none yet."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            # In a thread: it reads files, and may ask the metadata server.
            credentials = self._credentials or await asyncio.to_thread(default_credentials)
            if self._client is None or self._loop is not loop:
                for name in self._quiet:
                    logger = logging.getLogger(name)
                    logger.setLevel(max(logger.getEffectiveLevel(), logging.INFO))
                options = ClientOptions(api_endpoint=self._host)
                self._client = self._make(
                    credentials=credentials, transport=self._new_transport, client_options=options
                )
                self._loop = loop
        return self._client

    async def send(self, method: Callable[[Client], Method], request: object, *, timeout: float) -> Any:
        """Send one request through the SDK, without the SDK's retries, and return the answer. Raises the SDK's errors.

        If Google rejects the credentials of the default chain, the next request looks for credentials again: another
        program may have replaced the file that holds them.

        Args:
            method: Returns the method of the SDK's client to call.
            request: The request.
            timeout: The deadline of the request in seconds.
        """
        client = await self.open()
        try:
            return await method(client)(request=request, retry=None, timeout=timeout)
        except Exception as error:
            if self._credentials is None and self._client is client and is_rejected_login(error):
                self._client = None  # not closed, because other requests may be using it
            raise

    async def close(self) -> None:
        """Close the connection, if there is one."""
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop():
            await client.transport.close()  # type: ignore[attr-defined]

    def _new_transport(self, **options: Any) -> Any:
        return self._transport(channel=self._new_channel, **options)

    def _new_channel(self, host: str, *, options: list[tuple[str, object]], **others: Any) -> Any:
        return self._transport.create_channel(host, options=[*options, *_CHANNEL], **others)


def default_credentials() -> Credentials:
    """Find the credentials of Google's default chain. Blocks: may read files and query the metadata server."""
    found: Credentials = google.auth.default(scopes=list(SCOPES))[0]
    return found


def first_page(listing: Method) -> Method:
    """Wrap a list method of Google's SDK so that it returns only the first page.

    The pager that the SDK's own method returns requests further pages automatically, and fails on a damaged page.
    """

    async def ask(**arguments: Any) -> Any:
        pager: Any = await listing(**arguments)
        return await anext(aiter(pager.pages))

    return ask
