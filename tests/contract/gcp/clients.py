"""A client of a faked Google Secret Manager behind a proxy that fails, for the tests of faults."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from google.auth.credentials import AnonymousCredentials
from google.cloud.secretmanager_v1 import types as wire

from goatherd.providers.base import RetryPolicy
from goatherd.providers.gcp.address import GCPAddress
from goatherd.providers.gcp.provider import GCPSecretProvider
from tests.deadlines import HANG
from tests.fakes.gcp_fake import FakeSecretManager, StatusError

PROJECT = "goatherd-testing"
QUICK = RetryPolicy(attempts=5, base=timedelta(milliseconds=100))


def client(port: int, *, retry: RetryPolicy = QUICK, timeout: float = HANG) -> GCPSecretProvider:
    address = GCPAddress(project=PROJECT, endpoint=f"127.0.0.1:{port}")
    credentials = AnonymousCredentials()  # type: ignore[no-untyped-call]
    return GCPSecretProvider(address, retry=retry, timeout=timedelta(seconds=timeout), credentials=credentials)


def new_secret() -> str:
    return f"goatdb-{secrets.token_hex(6)}"


def stored(fake: FakeSecretManager, name: str) -> wire.Secret:
    return fake.service.get_secret(wire.GetSecretRequest(name=f"projects/{PROJECT}/secrets/{name}"))


class At:
    """Calls a function at the n-th request that reaches the server, counted from 0."""

    def __init__(self, number: int, action: Callable[[], None]) -> None:
        self.number, self.action, self.seen = number, action, 0

    def __call__(self, name: str, request: Any) -> None:
        self.seen += 1
        if self.seen == self.number + 1:
            self.action()


def failing(status: str, retry_after: float | None = None) -> Callable[[], None]:
    def fail() -> None:
        raise StatusError(status, "asked for by a test", retry_after=retry_after)

    return fail


def void(_: object) -> None:
    """Do nothing with the argument."""
