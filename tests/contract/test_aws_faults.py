"""AWS Secrets Manager in trouble: refusals, throttling, cut answers, lost replies, a store that is away for a while."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

import goatherd
from goatherd.clock import SystemClock
from goatherd.errors import (
    ConflictError,
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    ProviderError,
    SecretDeletedError,
    SecretNotFoundError,
    SecretTooLargeError,
    ThrottledError,
    UnavailableError,
)
from goatherd.providers.aws import AWSAddress, AWSSecretProvider, policy
from goatherd.providers.aws.client import THREADS
from goatherd.providers.aws.provider import CANDIDATE
from goatherd.providers.base import RetryPolicy
from goatherd.providers.values import CURRENT, STABLE, Label, SecretBytes, SecretVersion, VersionId
from tests.deadlines import HANG
from tests.fakes.aws_fake import ACCESS_KEY, REGION, FakeSecretsManager
from tests.fakes.faults import Fault, FaultProxy, Mode

SECRET = "goatdb/prod/root"
NO_RETRY = RetryPolicy(attempts=1)
OURS = str(Path(goatherd.__file__).parent)
AT_ONCE = RetryPolicy(attempts=5, base=timedelta(milliseconds=1))


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)


@pytest.fixture
def fake() -> Iterator[FakeSecretsManager]:
    with FakeSecretsManager() as started:
        yield started


def provider_at(url: str, *, retry: RetryPolicy = AT_ONCE, timeout: float = 10) -> AWSSecretProvider:
    address = AWSAddress(region=REGION, endpoint=url)
    return AWSSecretProvider(address, retry=retry, timeout=timedelta(seconds=timeout))


def sent(fake: FakeSecretsManager, operation: str) -> list[dict[str, object]]:
    return [dict(seen.fields) for seen in fake.requests if seen.operation == operation]


# --- what we send ---------------------------------------------------------------------------------------------------


async def test_every_write_names_its_stages_and_token_and_every_move_names_the_holder(fake: FakeSecretsManager):
    async with provider_at(fake.url) as store:
        first = await store.create(SECRET, b"1")
        second = await store.write(SECRET, b"2", expected=first.id)
        await store.label(SECRET, STABLE, first.id, expected=None)
        await store.label(SECRET, STABLE, second.id, expected=first.id)
        await store.label(SECRET, CURRENT, first.id, expected=second.id)
        with pytest.raises(ConflictError):
            await store.write(SECRET, b"3", expected=second.id)
        other = await store.write(SECRET, b"4", label="other", expected=None)
    assert sent(fake, "CreateSecret") == [{"Name": SECRET, "ClientRequestToken": first.id}]
    assert sent(fake, "PutSecretValue") == [
        {"SecretId": SECRET, "ClientRequestToken": version, "VersionStages": [CANDIDATE]}
        for version in (second.id, other.id)
    ]
    assert [
        (move["VersionStage"], move["MoveToVersionId"], move.get("RemoveFromVersionId"))
        for move in sent(fake, "UpdateSecretVersionStage")
    ] == [
        ("AWSCURRENT", second.id, first.id),
        ("stable", first.id, None),
        ("stable", second.id, first.id),
        ("AWSCURRENT", first.id, second.id),
        ("other", other.id, None),
    ]
    assert {seen.operation for seen in fake.requests} <= {
        "CreateSecret",
        "DescribeSecret",
        "GetSecretValue",
        "PutSecretValue",
        "UpdateSecretVersionStage",
    }
    assert all({"VersionId", "VersionStage"} & set(read) for read in sent(fake, "GetSecretValue"))


async def test_a_read_is_one_call(fake: FakeSecretsManager):
    async with provider_at(fake.url) as store:
        await store.create(SECRET, b"1")
        fake.requests.clear()
        await store.read(SECRET)
    assert [seen.operation for seen in fake.requests] == ["GetSecretValue"]


async def test_a_document_is_text_that_any_reader_of_the_current_secret_gets(fake: FakeSecretsManager):
    import boto3

    document = '{\n  "schema": "羊"\n}'
    async with provider_at(fake.url) as store:
        await store.create(SECRET, document.encode())
    client = boto3.client("secretsmanager", region_name=REGION, endpoint_url=fake.url)
    try:
        found = client.get_secret_value(SecretId=SECRET)
    finally:
        client.close()
    assert found["SecretString"] == document
    assert "SecretBinary" not in found


async def test_a_secret_that_other_tools_made_is_read_and_written_like_our_own(fake: FakeSecretsManager):
    import boto3

    client = boto3.client("secretsmanager", region_name=REGION, endpoint_url=fake.url)
    try:
        made = client.create_secret(Name=SECRET, SecretString="by hand")["VersionId"]
    finally:
        client.close()
    async with provider_at(fake.url) as store:
        found = await store.read(SECRET)
        assert (found.version.id, found.value.reveal()) == (made, b"by hand")
        second = await store.write(SECRET, b"ours", expected=made)
        assert (await store.read(SECRET)).version.id == second.id
        assert fake.stages(SECRET)[made] == ["AWSPREVIOUS"]


async def test_versions_come_from_all_pages_newest_first(fake: FakeSecretsManager):
    fake.page_size = 3
    async with provider_at(fake.url) as store:
        made = [await store.create(SECRET, b"0")]
        for number in range(1, 8):
            made.append(await store.write(SECRET, b"%d" % number, expected=made[-1].id))
        listed = await store.versions(SECRET)
    assert [version.id for version in listed] == [version.id for version in reversed(made)]
    assert [page.get("NextToken") for page in sent(fake, "ListSecretVersionIds")] == [None, "3", "6"]


STRANGE = (
    "AWSPENDING",
    "awsthing",
    "1st",
    "latest",
    "Q4 2024 (audit)",
    "it's",
    "a\nb\x1b[31m",
    "current",
    "stage=current",
    "x" * 256,
)
"""Staging labels of other tools: AWS takes any text of 1 to 256 characters."""


@pytest.mark.parametrize("stage", STRANGE, ids=ascii)
async def test_a_staging_label_of_any_spelling_is_shown_keeps_its_version_and_can_be_removed(
    fake: FakeSecretsManager, stage: str
):
    shown = f"stage={stage}" if stage.endswith("current") else stage
    async with provider_at(fake.url) as store:
        first = await store.create(SECRET, b"1")
        second = await store.write(SECRET, b"2", expected=first.id)
        fake.set_stage(SECRET, stage, first.id)
        assert {version.id: version.labels for version in await store.versions(SECRET)} == {
            first.id: {shown},
            second.id: {CURRENT},
        }
        assert (await store.read(SECRET, first.id)).version.labels == {shown}
        with pytest.raises(ConflictError) as kept:
            await store.destroy(SECRET, first.id)
        assert repr(shown) in str(kept.value)
        with pytest.raises(ConflictError):
            await store.unlabel(SECRET, shown, expected=second.id)
        await store.unlabel(SECRET, shown, expected=first.id)
        assert sorted(fake.stages(SECRET)[first.id]) == ["AWSPREVIOUS"]
        assert fake.stages(SECRET)[second.id] == [CANDIDATE, "AWSCURRENT"]
        await store.destroy(SECRET, first.id)


async def test_the_labels_that_aws_and_this_provider_move_cannot_be_taken_off(fake: FakeSecretsManager):
    async with provider_at(fake.url) as store:
        first = await store.create(SECRET, b"1")
        second = await store.write(SECRET, b"2", expected=first.id)
        before = fake.stages(SECRET)
        for stage, holder in (("AWSCURRENT", second), ("AWSPREVIOUS", first), (CANDIDATE, second)):
            with pytest.raises(ConflictError, match="no version holds the label"):
                await store.unlabel(SECRET, stage, expected=holder.id)
        assert fake.stages(SECRET) == before


async def test_the_labels_of_aws_and_our_candidate_are_not_taken(fake: FakeSecretsManager):
    async with provider_at(fake.url) as store:
        first = await store.create(SECRET, b"1")
        second = await store.write(SECRET, b"2", expected=first.id)
        assert {version.id: version.labels for version in await store.versions(SECRET)} == {
            first.id: frozenset(),
            second.id: {CURRENT},
        }
        for label in ("AWSCURRENT", "AWSPENDING", "awsthing", CANDIDATE):
            assert not store.takes_label(label)
            with pytest.raises(ProviderConfigurationError, match="kept for AWS"):
                await store.label(SECRET, label, first.id, expected=None)


async def test_a_destroyed_version_loses_the_labels_that_keep_it_and_no_more(fake: FakeSecretsManager):
    async with provider_at(fake.url) as store:
        first = await store.create(SECRET, b"1")
        second = await store.write(SECRET, b"2", expected=first.id)
        await store.label(SECRET, CURRENT, first.id, expected=second.id)
        assert sorted(fake.stages(SECRET)[second.id]) == ["AWSPREVIOUS", CANDIDATE]
        await store.destroy(SECRET, second.id)
        await store.destroy(SECRET, second.id)
        assert fake.stages(SECRET) == {first.id: ["AWSCURRENT"], second.id: []}
        with pytest.raises(SecretNotFoundError):
            await store.destroy(SECRET, "x" * 36)
    assert not store.guarantees.destroys
    assert store.guarantees.deprecates


# --- refusals -------------------------------------------------------------------------------------------------------

REFUSALS: list[tuple[str, str, int, type[ProviderError], str]] = [
    ("ResourceNotFoundException", "", 400, SecretNotFoundError, "no such secret"),
    ("AccessDeniedException", "User: arn is not authorized", 400, ProviderAccessDeniedError, "arn is not authorized"),
    ("403", "", 403, ProviderAccessDeniedError, "HTTP 403"),
    ("ExpiredTokenException", "", 400, ProviderAccessDeniedError, "ExpiredToken"),
    ("UnrecognizedClientException", "", 400, ProviderAccessDeniedError, "UnrecognizedClient"),
    ("InvalidSignatureException", "Signature expired: 1 is now earlier", 400, ProviderAccessDeniedError, "time"),
    ("RequestExpired", "", 400, ProviderAccessDeniedError, "time"),
    ("DecryptionFailure", "", 400, ProviderAccessDeniedError, "KMS key"),
    ("ThrottlingException", "Rate exceeded", 400, ThrottledError, "Throttling"),
    ("TooManyRequestsException", "", 429, ThrottledError, "TooMany"),
    ("Whatever", "", 429, ThrottledError, "429"),
    ("InternalServiceError", "", 500, UnavailableError, "InternalServiceError"),
    ("ServiceUnavailable", "", 503, UnavailableError, "503"),
    ("Odd", "", 502, UnavailableError, "502"),
    ("InvalidRequestException", "it was marked for deletion.", 400, SecretDeletedError, "scheduled for deletion"),
    ("InvalidRequestException", "managed by another service", 400, ProviderConfigurationError, "InvalidRequest"),
    ("LimitExceededException", "", 400, ProviderConfigurationError, "quota"),
    ("InvalidParameterException", "", 400, ProviderConfigurationError, "InvalidParameter"),
    ("ValidationException", "length less than or equal to 65536", 400, SecretTooLargeError, "too long"),
    ("", "", 413, SecretTooLargeError, "too long"),
]


@pytest.mark.parametrize(("code", "text", "status", "kind", "said"), REFUSALS)
async def test_each_refusal_has_its_error(
    fake: FakeSecretsManager, code: str, text: str, status: int, kind: type[ProviderError], said: str
):
    async with provider_at(fake.url, retry=NO_RETRY) as store:
        fake.fail(code, message=text, status=status)
        with pytest.raises(ProviderError, match=said) as caught:
            await store.read(SECRET)
    assert type(caught.value) is kind


async def test_a_key_that_aws_does_not_know_is_denied(fake: FakeSecretsManager, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIASTRANGER")
    async with provider_at(fake.url) as store:
        with pytest.raises(ProviderAccessDeniedError, match="security token"):
            await store.read(SECRET)


async def test_a_clock_that_is_off_is_named_as_the_reason(fake: FakeSecretsManager):
    fake.clock_ahead = 900
    async with provider_at(fake.url) as store:
        with pytest.raises(ProviderAccessDeniedError, match="time") as caught:
            await store.create(SECRET, b"1")
    assert "clock" in caught.value.hint


@pytest.mark.parametrize("headers", [{"Retry-After": "0.4"}, {"x-amz-retry-after": "400"}])
async def test_the_hint_of_a_throttled_answer_is_followed(fake: FakeSecretsManager, headers: dict[str, str]):
    async with provider_at(fake.url) as store:
        await store.create(SECRET, b"1")
        fake.fail("ThrottlingException", headers=headers)
        begin = time.monotonic()
        await store.read(SECRET)
        assert time.monotonic() - begin >= 0.4
        fake.fail("ThrottlingException", headers=headers, times=10)
        store.retry = NO_RETRY
        with pytest.raises(ThrottledError) as caught:
            await store.read(SECRET)
    assert caught.value.retry_after == pytest.approx(0.4)


@pytest.mark.parametrize("value", ["soon", "-1", "1e9", ""])
async def test_a_hint_that_is_no_number_is_not_followed(fake: FakeSecretsManager, value: str):
    async with provider_at(fake.url, retry=NO_RETRY) as store:
        fake.fail("ThrottlingException", headers={"Retry-After": value})
        with pytest.raises(ThrottledError) as caught:
            await store.read(SECRET)
    assert caught.value.retry_after is None


async def test_a_version_takes_twenty_labels_and_no_more(fake: FakeSecretsManager):
    async with provider_at(fake.url) as store:
        first = await store.create(SECRET, b"1")
        for number in range(19):
            await store.label(SECRET, f"label{number}", first.id, expected=None)
        with pytest.raises(ProviderConfigurationError, match="quota"):
            await store.label(SECRET, "label19", first.id, expected=None)
        assert len((await store.read(SECRET)).version.labels) == 20


async def test_labelling_a_version_that_does_not_exist_says_so(fake: FakeSecretsManager):
    async with provider_at(fake.url) as store:
        await store.create(SECRET, b"1")
        with pytest.raises(SecretNotFoundError):
            await store.label(SECRET, STABLE, "0" * 36, expected=None)
        # The reference does not say which of its two errors this is.
        fake.fail("InvalidParameterException", operation="UpdateSecretVersionStage")
        with pytest.raises(SecretNotFoundError, match="no version"):
            await store.label(SECRET, STABLE, "0" * 36, expected=None)


async def test_a_deleted_secret_can_be_brought_back_and_is_an_error_of_its_own_until_then(fake: FakeSecretsManager):
    async with provider_at(fake.url) as store:
        first = await store.create(SECRET, b"1")
        await store.delete(SECRET)
        assert sent(fake, "DeleteSecret") == [{"SecretId": SECRET, "RecoveryWindowInDays": 30}]
        begins: list[Callable[[], Awaitable[object]]] = [
            lambda: store.read(SECRET),
            lambda: store.create(SECRET, b"2"),
            lambda: store.write(SECRET, b"2", expected=first.id),
            lambda: store.delete(SECRET),
        ]
        for begin in begins:
            with pytest.raises(SecretDeletedError) as caught:
                await begin()
            assert "restore-secret" in caught.value.hint


# --- least privilege ------------------------------------------------------------------------------------------------


async def test_a_server_under_its_policy_reads_its_two_labels_and_nothing_else(fake: FakeSecretsManager):
    async with provider_at(fake.url) as store:
        first = await store.create(SECRET, b"1")
        second = await store.write(SECRET, b"2", expected=first.id)
        await store.label(SECRET, STABLE, first.id, expected=None)
        await store.label(SECRET, "other", first.id, expected=None)
        await store.create(f"{SECRET}-of-others", b"x")
        fake.policies[ACCESS_KEY] = policy("server", f"aws://{REGION}/{SECRET}")
        assert (await store.read(SECRET)).value.reveal() == b"2"
        assert (await store.read(SECRET, STABLE)).value.reveal() == b"1"
        denied: list[Callable[[], Awaitable[object]]] = [
            lambda: store.read(SECRET, Label("other")),
            lambda: store.read(SECRET, first.id),
            lambda: store.read(f"{SECRET}-of-others"),
            lambda: store.read("not/there"),
            lambda: store.create("not/there", b"3"),
            lambda: store.write(SECRET, b"3", expected=second.id),
            lambda: store.label(SECRET, CURRENT, first.id, expected=second.id),
            lambda: store.versions(SECRET),
            lambda: store.destroy(SECRET, first.id),
            lambda: store.delete(SECRET),
        ]
        for begin in denied:
            with pytest.raises(ProviderAccessDeniedError, match="not authorized to perform: secretsmanager:") as caught:
                await begin()
            assert "goatherd policy" in caught.value.hint


async def test_a_rotator_under_its_policy_does_all_that_a_rotation_needs_but_makes_and_deletes_nothing(
    fake: FakeSecretsManager,
):
    async with provider_at(fake.url) as store:
        first = await store.create(SECRET, b"1")
        fake.policies[ACCESS_KEY] = policy("rotator", f"aws://{REGION}/{SECRET}")
        second = await store.write(SECRET, b"2", expected=first.id)
        await store.label(SECRET, STABLE, first.id, expected=None)
        await store.label(SECRET, STABLE, second.id, expected=first.id)
        assert len(await store.versions(SECRET)) == 2
        assert (await store.read(SECRET, first.id)).value.reveal() == b"1"
        await store.destroy(SECRET, first.id)
        for begin in (lambda: store.create("another", b"3"), lambda: store.delete(SECRET)):
            with pytest.raises(ProviderAccessDeniedError):
                await begin()


# --- damaged answers ------------------------------------------------------------------------------------------------

OPERATIONS: list[tuple[str, Callable[[AWSSecretProvider, SecretVersion], Awaitable[object]]]] = [
    ("GetSecretValue", lambda store, first: store.read(SECRET)),
    ("GetSecretValue", lambda store, first: store.read(SECRET, first.id)),
    ("ListSecretVersionIds", lambda store, first: store.versions(SECRET)),
    ("DescribeSecret", lambda store, first: store.label(SECRET, STABLE, first.id, expected=None)),
    ("UpdateSecretVersionStage", lambda store, first: store.label(SECRET, STABLE, first.id, expected=None)),
    ("PutSecretValue", lambda store, first: store.write(SECRET, b"2", expected=first.id)),
    ("CreateSecret", lambda store, first: store.create("new", b"2")),
    ("DeleteSecret", lambda store, first: store.delete(SECRET)),
]
DAMAGED = [b"", b"{}", b'{"ARN": ', b"null", b"[]", b'"text"', b"\xff\xfe", b'{"ARN": 5}', b'{"VersionId": "x"}']


@pytest.mark.parametrize("body", DAMAGED)
async def test_a_damaged_answer_is_unavailable_and_never_nothing(fake: FakeSecretsManager, body: bytes):
    async with provider_at(fake.url, retry=NO_RETRY) as store:
        for operation, begin in OPERATIONS:
            name = "new" if operation == "CreateSecret" else SECRET
            first = await provider_made(fake, store)
            fake.damage(body, operation=operation)
            with pytest.raises(UnavailableError) as caught:
                await begin(store, first)
            assert repr(name) in str(caught.value)


async def provider_made(fake: FakeSecretsManager, store: AWSSecretProvider) -> SecretVersion:
    """Start again with one secret."""
    fake._secrets.clear()
    return await store.create(SECRET, b"1")


@pytest.mark.parametrize(
    "change",
    [
        '"VersionId": "00000000-0000-0000-0000-000000000000"',
        '"VersionStages": ["stable"]',
        '"VersionStages": "AWSCURRENT"',
        '"CreatedDate": null',
        '"SecretString": ""',
        '"SecretBinary": "eA=="',
    ],
)
async def test_a_read_is_checked_part_by_part(fake: FakeSecretsManager, change: str):
    import json

    async with provider_at(fake.url, retry=NO_RETRY) as store:
        first = await store.create(SECRET, b"1")
        whole = {"ARN": "arn", "Name": SECRET, "VersionId": first.id, "CreatedDate": 1.5, "SecretString": "1"}
        whole["VersionStages"] = ["AWSCURRENT"]
        fake.damage(json.dumps(whole).encode(), operation="GetSecretValue")
        assert (await store.read(SECRET)).value.reveal() == b"1"
        fake.damage(json.dumps(whole | json.loads(f"{{{change}}}")).encode(), operation="GetSecretValue", times=2)
        place = first.id if "00000000" in change else CURRENT
        with pytest.raises(UnavailableError, match="damaged"):
            await store.read(SECRET, place)


async def test_a_value_that_is_not_the_one_written_as_its_version_is_damaged(fake: FakeSecretsManager):
    async with provider_at(fake.url, retry=NO_RETRY) as store:
        first = await store.create(SECRET, b"written")
        fake.corrupt(SECRET, first.id, "rotten")
        for at in (CURRENT, first.id):
            with pytest.raises(UnavailableError, match="not the one that was written"):
                await store.read(SECRET, at)


async def test_nobody_is_led_to_a_version_that_was_not_stored_as_it_was_written(fake: FakeSecretsManager):
    async with provider_at(fake.url, retry=NO_RETRY) as store:
        first = await store.create(SECRET, b"1")
        fake.damage(b"{}", operation="GetSecretValue")
        with pytest.raises(UnavailableError):
            await store.write(SECRET, b"2", expected=first.id)
        assert (await store.read(SECRET)).version.id == first.id


async def test_a_list_that_lacks_what_labels_lead_to_is_not_an_empty_one(fake: FakeSecretsManager):
    async with provider_at(fake.url) as store:
        first = await store.create(SECRET, b"1")
        fake.damage(b'{"ARN": "a"}', operation="ListSecretVersionIds", times=1)
        assert [version.id for version in await store.versions(SECRET)] == [first.id], "asked again"


async def test_an_endless_list_of_versions_ends(fake: FakeSecretsManager):
    async with provider_at(fake.url, retry=NO_RETRY) as store:
        await store.create(SECRET, b"1")
        fake.damage(b'{"ARN": "a", "Versions": [], "NextToken": "1"}', operation="ListSecretVersionIds", times=9)
        with pytest.raises(UnavailableError, match="this one again"):
            await store.versions(SECRET)


# --- faults of the network ------------------------------------------------------------------------------------------


async def test_a_store_that_is_not_there_is_unavailable_soon():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with provider_at(url, timeout=2) as store:
            with pytest.raises(UnavailableError, match="EndpointConnectionError"):
                await store.read(SECRET)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(mode=Mode.RESET, times=2),
        Fault(mode=Mode.CUT, after=60, times=1),
        Fault(mode=Mode.CUT, after=0, times=1),
        Fault(mode=Mode.CUT, after=250, times=1),
        Fault(mode=Mode.DELAY, delay=timedelta(milliseconds=300), times=1),
    ],
    ids=lambda fault: f"{fault.mode}-{fault.after}",
)
async def test_a_read_outlives_what_passes(fake: FakeSecretsManager, fault: Fault):
    async with FaultProxy("127.0.0.1", fake.port) as proxy, provider_at(f"http://127.0.0.1:{proxy.port}") as store:
        first = await store.create(SECRET, b"1")
        proxy.fault = fault
        found = await store.read(SECRET)
    assert (found.version.id, found.value.reveal()) == (first.id, b"1")


async def test_a_black_hole_is_unavailable_at_the_deadline(fake: FakeSecretsManager):
    async with (
        FaultProxy("127.0.0.1", fake.port) as proxy,
        provider_at(f"http://127.0.0.1:{fake.port}") as calm,
        provider_at(f"http://127.0.0.1:{proxy.port}", timeout=1.2) as store,
    ):
        await calm.create(SECRET, b"1")
        proxy.fault = Fault(mode=Mode.BLACK_HOLE)
        async with asyncio.timeout(HANG):
            with pytest.raises(UnavailableError):
                await store.read(SECRET)


STEPS = ["DescribeSecret", "PutSecretValue", "GetSecretValue", "UpdateSecretVersionStage"]
PASSING = [
    Fault(mode=Mode.REPLY_LOST, times=1),
    Fault(mode=Mode.RESET, times=1),
    Fault(mode=Mode.CUT, after=100, times=1),
]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: str(fault.mode))
async def test_a_write_that_is_hit_at_any_step_is_done_once(fake: FakeSecretsManager, step: str, fault: Fault):
    async with FaultProxy("127.0.0.1", fake.port) as proxy, provider_at(f"http://127.0.0.1:{proxy.port}") as store:
        first = await store.create(SECRET, b"1")
        proxy.fault = Fault(mode=fault.mode, after=fault.after, times=1, match=f"secretsmanager.{step}".encode())
        second = await store.write(SECRET, b"2", expected=first.id)
        found = await store.read(SECRET)
        assert (found.version.id, found.value.reveal()) == (second.id, b"2")
        assert len(await store.versions(SECRET)) == 2
        assert fake.stages(SECRET) == {first.id: ["AWSPREVIOUS"], second.id: [CANDIDATE, "AWSCURRENT"]}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("code", ["InternalServiceError", "ThrottlingException"])
async def test_a_write_that_took_effect_though_the_answer_was_an_error_is_done_once(
    fake: FakeSecretsManager, step: str, code: str
):
    async with provider_at(fake.url) as store:
        first = await store.create(SECRET, b"1")
        fake.fail(code, status=500 if code == "InternalServiceError" else 400, operation=step, times=2, after=True)
        second = await store.write(SECRET, b"2", expected=first.id)
        assert (await store.read(SECRET)).version.id == second.id
        assert list(fake.stages(SECRET)) == [first.id, second.id]


@pytest.mark.parametrize("operation", ["CreateSecret", "GetSecretValue"])
async def test_a_creation_whose_reply_is_lost_is_done_once(fake: FakeSecretsManager, operation: str):
    async with FaultProxy("127.0.0.1", fake.port) as proxy, provider_at(f"http://127.0.0.1:{proxy.port}") as store:
        proxy.fault = Fault(mode=Mode.REPLY_LOST, times=1, match=f"secretsmanager.{operation}".encode())
        made = await store.create(SECRET, b"1")
        assert fake.stages(SECRET) == {made.id: ["AWSCURRENT"]}


async def test_a_label_and_a_deletion_whose_reply_is_lost_are_done(fake: FakeSecretsManager):
    async with FaultProxy("127.0.0.1", fake.port) as proxy, provider_at(f"http://127.0.0.1:{proxy.port}") as store:
        first = await store.create(SECRET, b"1")
        proxy.fault = Fault(mode=Mode.REPLY_LOST, times=1, match=b"UpdateSecretVersionStage")
        await store.label(SECRET, STABLE, first.id, expected=None)
        assert fake.stages(SECRET) == {first.id: ["AWSCURRENT", "stable"]}
        proxy.fault = Fault(mode=Mode.REPLY_LOST, times=1, match=b"DeleteSecret")
        await store.delete(SECRET)
        with pytest.raises(SecretDeletedError):
            await store.read(SECRET)


class Held(SystemClock):
    """A clock that sleeps until it is told to go on."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def sleep(self, duration: timedelta) -> None:
        await self.go_on.wait()


async def test_a_write_that_won_and_was_overtaken_before_its_retry_has_won(fake: FakeSecretsManager):
    async with (
        FaultProxy("127.0.0.1", fake.port) as proxy,
        provider_at(f"http://127.0.0.1:{proxy.port}", timeout=HANG) as slow,
        provider_at(fake.url) as quick,
    ):
        first = await slow.create(SECRET, b"1")
        slow.clock = held = Held()
        proxy.fault = Fault(mode=Mode.REPLY_LOST, times=1, match=b"UpdateSecretVersionStage")
        writing = asyncio.create_task(slow.write(SECRET, b"2", expected=first.id))
        while (holder := (await quick.read(SECRET)).version.id) == first.id:
            await asyncio.sleep(0.005)
        third = await quick.write(SECRET, b"3", expected=holder)
        held.go_on.set()
        second = await writing
        assert second.id == holder
        assert CURRENT not in second.labels
        assert (await quick.read(SECRET)).version.id == third.id


async def test_an_outage_of_some_calls_is_outlived_and_a_longer_one_reported(fake: FakeSecretsManager):
    async with provider_at(fake.url) as store:
        first = await store.create(SECRET, b"1")
        fake.fail("InternalServiceError", status=500, times=4)
        assert (await store.read(SECRET)).version.id == first.id
        fake.fail("InternalServiceError", status=500, times=5)
        with pytest.raises(UnavailableError, match="500"):
            await store.read(SECRET)
        assert (await store.read(SECRET)).version.id == first.id


async def test_a_move_that_is_refused_for_no_reason_shown_yet_is_asked_again(fake: FakeSecretsManager):
    """As after a write of another client that a lagging replica does not show."""
    async with provider_at(fake.url) as store:
        first = await store.create(SECRET, b"1")
        fake.fail("InvalidParameterException", operation="UpdateSecretVersionStage")
        second = await store.write(SECRET, b"2", expected=first.id)
        assert (await store.read(SECRET)).version.id == second.id
        fake.fail("InvalidParameterException", operation="UpdateSecretVersionStage", times=9)
        with pytest.raises(UnavailableError, match="does not show yet why"):
            await store.label(SECRET, STABLE, first.id, expected=None)


async def test_what_was_written_and_is_not_seen_yet_is_waited_for(fake: FakeSecretsManager):
    async with provider_at(fake.url) as store:
        fake.fail("ResourceNotFoundException", operation="GetSecretValue", times=2)
        first = await store.create(SECRET, b"1")
        fake.fail("ResourceNotFoundException", operation="GetSecretValue", times=2)
        second = await store.write(SECRET, b"2", expected=first.id)
        assert list(fake.stages(SECRET)) == [first.id, second.id]


async def test_a_cancelled_request_that_waits_for_a_thread_is_not_sent(fake: FakeSecretsManager):
    async with provider_at(fake.url) as store:
        await store.create(SECRET, b"1")
        fake.requests.clear()
        with fake._lock:  # the service stands still
            reads = [asyncio.create_task(store.read(SECRET)) for _ in range(THREADS)]
            await asyncio.sleep(0.1)
            late = asyncio.create_task(store.delete(SECRET))
            await asyncio.sleep(0.05)
            late.cancel()
            with pytest.raises(asyncio.CancelledError):
                await late
        await asyncio.gather(*reads)
    assert sent(fake, "DescribeSecret") == []
    assert sent(fake, "DeleteSecret") == []


# --- nothing shows --------------------------------------------------------------------------------------------------


async def test_no_error_log_or_traceback_shows_a_value(
    fake: FakeSecretsManager, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
):
    value = f"S3CRET-{secrets.token_hex(8)}"
    hidden = SecretBytes(value.encode())
    shown: list[str] = []
    for name in ("boto3", "botocore", "botocore.endpoint", "botocore.parsers", "urllib3"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    caplog.set_level(logging.DEBUG)
    async with provider_at(fake.url, retry=NO_RETRY) as store:
        first = await store.create(SECRET, hidden)
        attempts: list[Callable[[], Awaitable[object]]] = [
            lambda: store.create("another", hidden),
            lambda: store.write(SECRET, hidden, expected=first.id),
        ]
        for begin in attempts:
            operation = "CreateSecret" if begin is attempts[0] else "PutSecretValue"
            for code in ("ValidationException", "InvalidRequestException", "Odd", "InternalServiceError", value):
                # AWS quotes what it refuses in some messages.
                fake.fail(code, message=f"Value '{value}' at 'secretString' is wrong", operation=operation)
                await shows(begin, shown)
        for body in (f'{{"SecretString": "{value}'.encode(), f"{value}\xff".encode("latin-1")):
            fake.damage(body, operation="GetSecretValue")
            await shows(lambda: store.read(SECRET), shown)
        fake.fail("x", message=value, status=500)
        await shows(lambda: store.read(SECRET), shown)
    assert len(shown) == 13
    assert not any(value in text for text in shown)
    assert value not in caplog.text
    assert "S3CRET" not in "".join(capfd.readouterr())
    assert logging.getLogger("botocore").level == logging.INFO


async def shows(begin: Callable[[], Awaitable[object]], shown: list[str]) -> None:
    """Collect all that a handler of errors could show of the failure, the local variables of each frame too."""
    with pytest.raises(ProviderError) as caught:
        await begin()
    error: BaseException | None = caught.value
    texts = []
    while error is not None:
        texts += [repr(error), *traceback.format_exception(error), repr(vars(error))]
        # Ours only: a test's own variables hold what has been collected, which would double with every failure.
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        texts += [repr(frame.f_locals) for frame in frames if frame.f_code.co_filename.startswith(OURS)]
        error = error.__cause__ or error.__context__
    shown.append("".join(texts))


async def test_no_credentials_and_no_profile_are_told_apart(
    fake: FakeSecretsManager, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
):
    home = tmp_path_factory.mktemp("home")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(home / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(home / "credentials"))
    async with provider_at(fake.url) as store:
        with pytest.raises(ProviderAccessDeniedError, match="no credentials"):
            await store.read(SECRET)
    async with AWSSecretProvider(AWSAddress(region=REGION, endpoint=fake.url, profile="nobody")) as store:
        with pytest.raises(ProviderConfigurationError, match="ProfileNotFound"):
            await store.read(SECRET)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.delenv("AWS_REGION", raising=False)
    async with AWSSecretProvider(AWSAddress()) as store:
        with pytest.raises(ProviderConfigurationError, match="NoRegionError"):
            await store.read(SECRET)


async def test_a_profile_of_the_standard_chain_is_used(
    fake: FakeSecretsManager, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
):
    home = tmp_path_factory.mktemp("home")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (home / "config").write_text("[profile herd]\nregion = eu-central-1\n")
    (home / "credentials").write_text("[herd]\naws_access_key_id = AKIAHERD\naws_secret_access_key = x\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(home / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(home / "credentials"))
    fake.keys.add("AKIAHERD")
    async with AWSSecretProvider(AWSAddress(endpoint=fake.url, profile="herd")) as store:
        await store.create(SECRET, b"1")
    assert {seen.key for seen in fake.requests} == {"AKIAHERD"}


async def test_an_unreadable_version_id_is_not_found_without_a_call(fake: FakeSecretsManager):
    async with provider_at(fake.url) as store:
        await store.create(SECRET, b"1")
        fake.requests.clear()
        with pytest.raises(SecretNotFoundError):
            await store.read(SECRET, VersionId("7"))
    assert fake.requests == []
