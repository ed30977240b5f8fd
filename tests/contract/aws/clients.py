"""A client of a faked AWS Secrets Manager, for the tests of requests, answers and faults."""

from __future__ import annotations

from datetime import timedelta

from goatherd.providers.aws.address import AWSAddress
from goatherd.providers.aws.provider import AWSSecretProvider
from goatherd.providers.base import RetryPolicy
from tests.deadlines import HANG
from tests.fakes.aws_fake import REGION, FakeSecretsManager

AT_ONCE = RetryPolicy(attempts=5, base=timedelta(milliseconds=1))


def provider_at(url: str, *, retry: RetryPolicy = AT_ONCE, timeout: float = HANG) -> AWSSecretProvider:
    address = AWSAddress(region=REGION, endpoint=url)
    return AWSSecretProvider(address, retry=retry, timeout=timedelta(seconds=timeout))


def sent(fake: FakeSecretsManager, operation: str) -> list[dict[str, object]]:
    return [dict(seen.fields) for seen in fake.requests if seen.operation == operation]
