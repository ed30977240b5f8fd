"""The requests to AWS Secrets Manager, and that the printed policies allow them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from goatherd.errors import (
    ConflictError,
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    SecretNotFoundError,
)
from goatherd.providers.aws.permissions import policy
from goatherd.providers.aws.provider import CANDIDATE
from goatherd.providers.values import CURRENT, STABLE, Label
from tests.fakes.aws_fake import ACCESS_KEY, REGION, FakeSecretsManager

from .clients import provider_at, sent

SECRET = "goatdb/prod/root"


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)


# --- what we send -----------------------------------------------------------------------------------------------------


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


async def test_a_replica_that_aws_makes_is_read_and_the_error_of_a_change_names_its_region(fake: FakeSecretsManager):
    async with provider_at(fake.url) as store:
        first = await store.create(SECRET, b"1")
        await store.label(SECRET, "mine", first.id, expected=None)
        fake._secrets[SECRET].primary_region = "us-west-2"
        for change in (
            store.write(SECRET, b"2", expected=first.id),
            store.label(SECRET, STABLE, first.id, expected=None),
            store.unlabel(SECRET, "mine", expected=first.id),
            store.delete(SECRET),
        ):
            with pytest.raises(ProviderConfigurationError, match="a replica of the one in us-west-2") as caught:
                await change
            assert "delete the replica" in caught.value.hint
        assert (await store.read(SECRET)).value.reveal() == b"1"


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
    "x" * 256,
)
"""Staging labels of other tools: AWS takes any text of 1 to 256 characters."""


@pytest.mark.parametrize("stage", STRANGE, ids=ascii)
async def test_a_staging_label_of_any_spelling_is_shown_keeps_its_version_and_can_be_removed(
    fake: FakeSecretsManager, stage: str
):
    async with provider_at(fake.url) as store:
        first = await store.create(SECRET, b"1")
        second = await store.write(SECRET, b"2", expected=first.id)
        fake.set_stage(SECRET, stage, first.id)
        assert {version.id: version.labels for version in await store.versions(SECRET)} == {
            first.id: {stage},
            second.id: {CURRENT},
        }
        assert (await store.read(SECRET, first.id)).version.labels == {stage}
        with pytest.raises(ConflictError) as kept:
            await store.destroy(SECRET, first.id)
        assert repr(stage) in str(kept.value)
        with pytest.raises(ConflictError):
            await store.unlabel(SECRET, stage, expected=second.id)
        await store.unlabel(SECRET, stage, expected=first.id)
        assert sorted(fake.stages(SECRET)[first.id]) == ["AWSPREVIOUS"]
        assert fake.stages(SECRET)[second.id] == [CANDIDATE, "AWSCURRENT"]
        await store.destroy(SECRET, first.id)


async def test_a_staging_label_that_is_spelled_current_is_not_taken_for_the_current_version(fake: FakeSecretsManager):
    async with provider_at(fake.url) as store:
        first = await store.create(SECRET, b"1")
        second = await store.write(SECRET, b"2", expected=first.id)
        fake.set_stage(SECRET, "current", first.id)
        assert (await store.read(SECRET)).version.id == second.id
        assert [version.labels for version in await store.versions(SECRET)] == [{CURRENT}, frozenset()]
        with pytest.raises(ConflictError, match="the staging label 'current' points at version"):
            await store.destroy(SECRET, first.id)
        assert "current" in fake.stages(SECRET)[first.id]


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
            with pytest.raises(ProviderConfigurationError, match="reserved for AWS"):
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


# --- least privilege --------------------------------------------------------------------------------------------------


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
            with pytest.raises(ProviderAccessDeniedError) as caught:
                await begin()
            assert "admin" in caught.value.hint, "the rotator's policy is attached already"
