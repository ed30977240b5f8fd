"""AWS Secrets Manager's answers: rejections, throttling and damage, and that no error shows a value."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import goatherd
from goatherd.errors import (
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    ProviderError,
    SecretDeletedError,
    SecretNotFoundError,
    SecretTooLargeError,
    ThrottledError,
    UnavailableError,
)
from goatherd.providers.aws.address import AWSAddress
from goatherd.providers.aws.provider import AWSSecretProvider
from goatherd.providers.base import RetryPolicy
from goatherd.providers.values import CURRENT, STABLE, SecretBytes, SecretVersion, VersionId
from tests.contract.signers.faulty_http import answering
from tests.fakes.aws_fake import ACCESS_KEY, REGION, FakeSecretsManager
from tests.fakes.instance_metadata import InstanceMetadata

from .clients import provider_at, sent

SECRET = "goatdb/prod/root"
NO_RETRY = RetryPolicy(attempts=1)
OURS = str(Path(goatherd.__file__).parent)


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)


# --- refusals ---------------------------------------------------------------------------------------------------------


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
    ("IDPCommunicationError", "", 400, UnavailableError, "IDPCommunicationError"),
    (
        "InvalidIdentityToken",
        "No OpenIDConnect provider found in your account",
        400,
        ProviderAccessDeniedError,
        "OpenID",
    ),
    (
        "InvalidIdentityToken",
        "Couldn't retrieve verification key from your identity provider",
        400,
        UnavailableError,
        "the identity provider did not answer",
    ),
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


# --- damaged answers --------------------------------------------------------------------------------------------------


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
    """Create the only secret anew."""
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


async def test_no_label_points_at_a_version_that_was_not_stored_as_written(fake: FakeSecretsManager):
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
        with pytest.raises(UnavailableError, match="leads to the same page"):
            await store.versions(SECRET)


async def test_the_sdk_logs_no_more_than_the_program_asks_for(fake: FakeSecretsManager):
    """A server's log is at WARNING for libraries; the SDK reports at INFO where it has found its credentials."""
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in ("", "boto3", "botocore", "urllib3")}
    try:
        for logger in levels:
            logger.setLevel(logging.NOTSET if logger.name != "root" else logging.WARNING)
        async with provider_at(fake.url) as store:
            await store.create(SECRET, SecretBytes(b"v"))
        assert not logging.getLogger("botocore.credentials").isEnabledFor(logging.INFO)
        assert not logging.getLogger("urllib3.connectionpool").isEnabledFor(logging.INFO)
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


# --- nothing shows ----------------------------------------------------------------------------------------------------


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
                # In some messages, AWS quotes the value that it rejects.
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
    """Return everything that an error handler could show of the failure, including each frame's local variables."""
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


async def test_credentials_that_were_missing_at_the_first_call_are_found_at_the_next_one(
    fake: FakeSecretsManager, monkeypatch: pytest.MonkeyPatch
):
    with InstanceMetadata(ACCESS_KEY) as metadata:
        metadata.be_only_source(monkeypatch)
        metadata.is_up = False
        async with provider_at(fake.url) as store:
            for _ in range(2):
                with pytest.raises(ProviderAccessDeniedError, match="no credentials"):
                    await store.create(SECRET, b"1")
            metadata.is_up = True
            await store.create(SECRET, b"1")
            assert (await store.read(SECRET)).value.reveal() == b"1"


async def test_a_role_without_credentials_to_assume_it_is_no_store_that_does_not_answer(
    fake: FakeSecretsManager, monkeypatch: pytest.MonkeyPatch
):
    with InstanceMetadata(ACCESS_KEY) as metadata:
        metadata.be_only_source(monkeypatch)
        metadata.is_up = False
        role = "arn:aws:iam::123456789012:role/goatherd"
        async with AWSSecretProvider(AWSAddress(region=REGION, endpoint=fake.url, role_arn=role)) as store:
            with pytest.raises(ProviderAccessDeniedError, match="no credentials"):
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


@pytest.mark.parametrize(
    ("settings", "variables", "kind", "said"),
    [
        ("login_session = arn:aws:iam::123456789012:user/me", {}, ProviderAccessDeniedError, "no credentials"),
        ("role_arn = r\ncredential_source = Moon", {}, ProviderConfigurationError, "InvalidConfigError"),
        (
            "aws_access_key_id = a\naws_secret_access_key = x",
            {"AWS_DEFAULTS_MODE": "moon"},
            ProviderConfigurationError,
            "InvalidDefaultsMode",
        ),
        ("", {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "moon"}, ProviderConfigurationError, "InvalidIMDSEndpointError"),
    ],
)
async def test_a_login_or_setting_that_the_sdk_does_not_accept_is_no_store_that_does_not_answer(
    fake: FakeSecretsManager,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    settings: str,
    variables: dict[str, str],
    kind: type[ProviderError],
    said: str,
):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(f"[default]\n{settings}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_LOGIN_CACHE_DIRECTORY", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    async with provider_at(fake.url) as store:
        with pytest.raises(ProviderError, match=said) as caught:
            await store.read(SECRET)
    assert type(caught.value) is kind


async def test_a_profile_whose_login_needs_a_package_that_is_missing_names_it(
    fake: FakeSecretsManager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text("[default]\nlogin_session = arn:aws:iam::123456789012:user/me\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setattr("botocore.credentials.EC", None)
    async with provider_at(fake.url) as store:
        with pytest.raises(ProviderConfigurationError, match="MissingDependencyException") as caught:
            await store.read(SECRET)
    assert "botocore[crt]" in caught.value.hint


async def test_a_login_that_finds_no_account_is_a_denial_and_no_missing_secret(
    fake: FakeSecretsManager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    start = "https://herd.awsapps.com/start"
    sso = f"sso_start_url = {start}\nsso_region = {REGION}\nsso_account_id = 123456789012\nsso_role_name = herd"
    (tmp_path / "config").write_text(f"[default]\n{sso}\n")
    token = {"accessToken": "t", "expiresAt": f"{datetime.now(UTC) + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"}
    (tmp_path / f"{hashlib.sha1(start.encode()).hexdigest()}.json").write_text(json.dumps(token))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setattr("botocore.credentials.SSOProvider._SSO_TOKEN_CACHE_DIR", str(tmp_path))
    head = "HTTP/1.1 404 Not Found\r\nx-amzn-ErrorType: ResourceNotFoundException\r\nContent-Length: 2\r\n\r\n{}"
    with answering(head.encode()) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SSO", f"http://127.0.0.1:{port}")
        async with provider_at(fake.url) as store:
            with pytest.raises(ProviderAccessDeniedError, match="the login to AWS was refused: ResourceNotFound"):
                await store.read(SECRET)
    assert not fake.requests


async def test_a_profile_that_needs_an_mfa_code_is_an_error_and_no_question_at_the_terminal(
    fake: FakeSecretsManager,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path_factory: pytest.TempPathFactory,
):
    home = tmp_path_factory.mktemp("home")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    role = "role_arn = arn:aws:iam::123456789012:role/goatherd\nmfa_serial = arn:aws:iam::123456789012:mfa/operator"
    (home / "config").write_text(f"[profile prod]\nsource_profile = me\n{role}\n")
    (home / "credentials").write_text(f"[me]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = x\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(home / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(home / "credentials"))
    async with AWSSecretProvider(AWSAddress(region=REGION, endpoint=fake.url, profile="prod")) as store:
        with pytest.raises(ProviderAccessDeniedError, match="needs an MFA code") as caught:
            await store.read(SECRET)
    assert "export-credentials" in caught.value.hint
    assert "getpass" not in caplog.text, "the SDK logs where its refresh failed"


async def test_credentials_that_have_expired_are_read_again_from_their_file(
    fake: FakeSecretsManager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))

    def log_in(key: str) -> None:
        text = f"[default]\naws_access_key_id = {key}\naws_secret_access_key = x\naws_session_token = y\n"
        (tmp_path / "credentials").write_text(text)
        fake.keys = {key}

    log_in("ASIAFIRST")
    async with provider_at(fake.url) as store:
        await store.create(SECRET, b"1")
        fake.keys.clear()
        for _ in range(2):
            with pytest.raises(ProviderAccessDeniedError, match="security token"):
                await store.read(SECRET)
        log_in("ASIASECOND")
        with suppress(ProviderAccessDeniedError):
            await store.read(SECRET)
        assert (await store.read(SECRET)).value.reveal() == b"1"
    assert fake.requests[-1].key == "ASIASECOND"


async def test_an_unreadable_version_id_is_not_found_without_a_call(fake: FakeSecretsManager):
    async with provider_at(fake.url) as store:
        await store.create(SECRET, b"1")
        fake.requests.clear()
        with pytest.raises(SecretNotFoundError):
            await store.read(SECRET, VersionId("7"))
    assert fake.requests == []
