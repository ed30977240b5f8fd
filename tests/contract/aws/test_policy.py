"""The IAM policies, evaluated over the requests that the provider sends and over requests that must be denied."""

from __future__ import annotations

import json
from collections.abc import Mapping

import botocore.session
import pytest

from goatherd.providers.aws.address import AWSAddress, partition_of
from goatherd.providers.aws.permissions import policy
from goatherd.providers.aws.provider import AWSSecretProvider
from goatherd.providers.values import CURRENT, STABLE
from tests.fakes.aws_fake import ACCESS_KEY, ACCOUNT, REGION, FakeSecretsManager, Seen
from tests.fakes.iam_evaluator import UnknownPolicyElementError, is_allowed, request_context

SECRET = "goatdb/prod/root"
URI = f"aws://{REGION}/{SECRET}"
ARN = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:{SECRET}-a1b2c3"
VERSION = "0d5a0a6e-9d0c-4c59-8a52-3c1f4a3f8d11-g01234567"


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)


def allows(role: str, operation: str, fields: Mapping[str, object], *, arn: str = ARN) -> bool:
    return is_allowed(policy(role, URI), f"secretsmanager:{operation}", arn, request_context(operation, fields))  # type: ignore[arg-type]


async def every_request(fake: FakeSecretsManager) -> dict[str, list[Seen]]:
    """Perform every operation; return the requests that each role sent."""
    address = AWSAddress(region=REGION, endpoint=fake.url)
    sent: dict[str, list[Seen]] = {}

    def collect(role: str) -> None:
        sent.setdefault(role, []).extend(fake.requests)
        fake.requests.clear()

    async with AWSSecretProvider(address) as store:
        first = await store.create(SECRET, b"1")
        collect("admin")
        second = await store.write(SECRET, b"2", expected=first.id)
        await store.label(SECRET, STABLE, first.id, expected=None)
        await store.label(SECRET, STABLE, second.id, expected=first.id)
        await store.label(SECRET, CURRENT, first.id, expected=second.id)
        await store.label(SECRET, CURRENT, second.id, expected=first.id)
        await store.read(SECRET, first.id)
        await store.versions(SECRET)
        await store.destroy(SECRET, first.id)
        collect("rotator")
        await store.read(SECRET)
        await store.read(SECRET, STABLE)
        collect("server")
        await store.delete(SECRET)
        collect("admin")
    return sent


async def test_each_role_may_send_what_goatherd_sends_in_it(fake: FakeSecretsManager):
    sent = await every_request(fake)
    may = {"server": ["server", "rotator", "admin"], "rotator": ["rotator", "admin"], "admin": ["admin"]}
    for role, requests in sent.items():
        assert requests
        for seen in requests:
            for allowed in may[role]:
                assert allows(allowed, seen.operation, seen.fields), (allowed, seen)


async def test_a_server_may_send_nothing_that_only_a_rotator_or_an_admin_sends(fake: FakeSecretsManager):
    sent = await every_request(fake)
    reads = [(seen.operation, seen.fields) for seen in sent["server"]]  # a change is confirmed by such a read
    others = [seen for seen in [*sent["rotator"], *sent["admin"]] if (seen.operation, seen.fields) not in reads]
    assert len(others) > 5
    for seen in others:
        assert not allows("server", seen.operation, seen.fields), seen
    operations = {seen.operation for seen in sent["admin"] if not allows("rotator", seen.operation, seen.fields)}
    assert operations == {"CreateSecret", "DeleteSecret"}


OTHER_ARN = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:{SECRET}-of-others-a1b2c3"


@pytest.mark.parametrize(
    ("operation", "fields", "arn"),
    [
        ("GetSecretValue", {"VersionStage": "AWSPENDING"}, ARN),
        ("GetSecretValue", {"VersionStage": "AWSPREVIOUS"}, ARN),
        ("GetSecretValue", {"VersionStage": "goatherd-candidate"}, ARN),
        ("GetSecretValue", {"VersionStage": "Stable"}, ARN),
        ("GetSecretValue", {"VersionStage": "stable2"}, ARN),
        ("GetSecretValue", {"VersionStage": ""}, ARN),
        ("GetSecretValue", {"VersionId": VERSION}, ARN),
        ("GetSecretValue", {}, ARN),
        ("GetSecretValue", {"VersionStage": "AWSCURRENT"}, OTHER_ARN),
        ("GetSecretValue", {"VersionStage": "AWSCURRENT"}, ARN.replace(REGION, "us-east-1")),
        ("DescribeSecret", {}, ARN),
        ("ListSecretVersionIds", {}, ARN),
        ("PutSecretValue", {"VersionStages": ["stable"]}, ARN),
        ("UpdateSecretVersionStage", {"VersionStage": "stable", "MoveToVersionId": VERSION}, ARN),
        ("UpdateSecretVersionStage", {"VersionStage": "AWSCURRENT", "MoveToVersionId": VERSION}, ARN),
        ("UpdateSecret", {}, ARN),
        ("DeleteSecret", {}, ARN),
        ("PutResourcePolicy", {}, ARN),
    ],
)
def test_a_server_may_not(operation: str, fields: dict[str, object], arn: str):
    assert not allows("server", operation, fields, arn=arn)


@pytest.mark.parametrize(
    ("operation", "fields", "arn"),
    [
        ("UpdateSecretVersionStage", {"VersionStage": "AWSPENDING", "MoveToVersionId": VERSION}, ARN),
        ("UpdateSecretVersionStage", {"VersionStage": "AWSPENDING", "RemoveFromVersionId": VERSION}, ARN),
        ("UpdateSecretVersionStage", {"VersionStage": "stable", "MoveToVersionId": VERSION}, OTHER_ARN),
        ("PutSecretValue", {"VersionStages": ["goatherd-candidate"]}, OTHER_ARN),
        ("CreateSecret", {}, ARN),
        ("DeleteSecret", {}, ARN),
        ("RotateSecret", {}, ARN),
        ("UpdateSecret", {}, ARN),
        ("PutResourcePolicy", {}, ARN),
    ],
)
def test_a_rotator_may_not(operation: str, fields: dict[str, object], arn: str):
    assert not allows("rotator", operation, fields, arn=arn)


def test_a_rotators_denials_hold_beside_a_policy_that_allows_everything():
    everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    document = json.loads(policy("rotator", URI))
    document["Statement"].append(everything)
    both = json.dumps(document)
    fields: dict[str, object] = {"VersionStage": "AWSPENDING"}
    for operation in ("UpdateSecretVersionStage", "DeleteSecret", "UpdateSecret", "RotateSecret", "PutResourcePolicy"):
        action = f"secretsmanager:{operation}"
        assert not is_allowed(both, action, ARN, request_context(operation, fields))
    assert is_allowed(both, "secretsmanager:TagResource", ARN, {})


KEY = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/1234abcd-12ab"


@pytest.mark.parametrize(
    ("role", "action", "context", "allowed"),
    [
        ("server", "kms:Decrypt", {"kms:ResourceAliases": ["alias/herd", "alias/other"]}, True),
        ("rotator", "kms:GenerateDataKey", {"kms:ResourceAliases": ["alias/herd"]}, True),
        ("server", "kms:GenerateDataKey", {"kms:ResourceAliases": ["alias/herd"]}, False),
        ("server", "kms:Decrypt", {"kms:ResourceAliases": ["alias/other"]}, False),
        ("server", "kms:Decrypt", {"kms:ResourceAliases": []}, False),
        ("server", "kms:Decrypt", {}, False),
    ],
)
@pytest.mark.parametrize("alias", ["alias/herd", f"arn:aws:kms:{REGION}:{ACCOUNT}:alias/herd"])
def test_a_key_is_found_by_one_of_its_aliases(
    role: str, action: str, context: dict[str, list[str]], allowed: bool, alias: str
):
    through = {"kms:ViaService": f"secretsmanager.{REGION}.amazonaws.com"}
    document = policy(role, f"{URI}?kms_key_id={alias}")  # type: ignore[arg-type]
    assert is_allowed(document, action, KEY, {**through, **context}) is allowed
    assert not is_allowed(document, action, KEY, {"kms:ViaService": f"s3.{REGION}.amazonaws.com", **context})


def test_each_region_is_in_the_partition_in_which_the_sdk_has_it():
    session = botocore.session.get_session()
    for partition in session.get_available_partitions():
        for region in session.get_available_regions("secretsmanager", partition):
            assert partition_of(region) == partition
            assert json.loads(policy("server", f"aws://{region}/x?kms_key_id=k"))["Statement"][-1]["Condition"] == {
                "StringEquals": {"kms:ViaService": f"secretsmanager.{region}.amazonaws.com"}
            }


# --- the evaluator itself -------------------------------------------------------------------------------------------


def evaluated(condition: dict[str, object], context: Mapping[str, list[str] | str]) -> bool:
    statement = {"Effect": "Allow", "Action": "a:B", "Resource": "*", "Condition": condition}
    return is_allowed(json.dumps({"Version": "2012-10-17", "Statement": [statement]}), "a:B", "arn", context)


@pytest.mark.parametrize(
    ("quantifier", "values", "holds"),
    [
        ("ForAnyValue", ["x"], True),
        ("ForAnyValue", ["x", "z"], True),
        ("ForAnyValue", ["z"], False),
        ("ForAnyValue", [], False),
        ("ForAnyValue", None, False),
        ("ForAllValues", ["x", "y"], True),
        ("ForAllValues", ["x", "z"], False),
        ("ForAllValues", [], True),
        ("ForAllValues", None, True),
    ],
)
def test_set_operators_hold_as_aws_documents_them(quantifier: str, values: list[str] | None, holds: bool):
    context = {} if values is None else {"a:Key": values}
    condition: dict[str, object] = {f"{quantifier}:StringEquals": {"a:Key": ["x", "y"]}}
    assert evaluated(condition, context) is holds
    # Null closes the gap that ForAllValues leaves where the key is missing or empty.
    assert evaluated({**condition, "Null": {"a:Key": "false"}}, context) is (holds and bool(values))


def test_what_the_evaluator_does_not_know_is_an_error_and_no_condition_that_holds():
    for condition in (
        {"StringNotEquals": {"a:Key": "x"}},
        {"StringEquals": {"secretsmanager:VersionStage": "AWSCURRENT"}},
        {"ForMostValues:StringEquals": {"a:Key": "x"}},
    ):
        with pytest.raises(UnknownPolicyElementError):
            evaluated(condition, {"a:Key": ["x"]})
    statement = {"Effect": "Allow", "NotAction": "a:B", "Action": "a:*", "Resource": "*"}
    with pytest.raises(UnknownPolicyElementError):
        is_allowed(json.dumps({"Statement": [statement]}), "a:C", "arn", {})
