"""The IAM policies: exactly what each role needs."""

from __future__ import annotations

import json

import pytest

from goatherd.errors import ConfigurationError
from goatherd.providers.aws.permissions import policy

URI = "aws://eu-west-1/goatdb/prod/root"
ARN = "arn:aws:secretsmanager:eu-west-1:*:secret:goatdb/prod/root-??????"


def statements(role: str, uri: str = URI, **options: str) -> list[dict[str, object]]:
    document = json.loads(policy(role, uri, **options))  # type: ignore[arg-type]
    assert document["Version"] == "2012-10-17"
    return list(document["Statement"])


def test_a_server_may_read_the_current_and_the_stable_version_and_nothing_else():
    assert statements("server") == [
        {
            "Sid": "GoatherdReads",
            "Effect": "Allow",
            "Action": ["secretsmanager:GetSecretValue"],
            "Resource": [ARN],
            "Condition": {"ForAnyValue:StringEquals": {"secretsmanager:VersionStage": ["AWSCURRENT", "stable"]}},
        }
    ]


def test_a_rotator_may_write_versions_and_move_labels_and_is_denied_what_would_break_them():
    allowed, denied, foreign_rotation = statements("rotator")
    assert allowed["Action"] == [
        "secretsmanager:DescribeSecret",
        "secretsmanager:GetSecretValue",
        "secretsmanager:ListSecretVersionIds",
        "secretsmanager:PutSecretValue",
        "secretsmanager:UpdateSecretVersionStage",
    ]
    assert denied["Effect"] == "Deny"
    assert denied["Action"] == [
        "secretsmanager:DeleteSecret",
        "secretsmanager:PutResourcePolicy",
        "secretsmanager:RotateSecret",
        "secretsmanager:UpdateSecret",
    ]
    assert allowed["Resource"] == denied["Resource"] == foreign_rotation["Resource"] == [ARN]
    assert foreign_rotation["Effect"] == "Deny"
    assert foreign_rotation["Action"] == ["secretsmanager:UpdateSecretVersionStage"]
    assert foreign_rotation["Condition"] == {
        "ForAnyValue:StringEquals": {"secretsmanager:VersionStage": ["AWSPENDING"]}
    }


def test_an_admin_may_create_and_delete_as_well():
    (rotator, *_), (admin,) = statements("rotator"), statements("admin")
    assert set(admin["Action"]) - set(rotator["Action"]) == {
        "secretsmanager:CreateSecret",
        "secretsmanager:DeleteSecret",
    }


@pytest.mark.parametrize(
    ("role", "actions"), [("server", ["kms:Decrypt"]), ("rotator", ["kms:Decrypt", "kms:GenerateDataKey"])]
)
@pytest.mark.parametrize(
    ("key", "resource", "more"),
    [
        ("1234abcd-12ab", "arn:aws:kms:eu-west-1:*:key/1234abcd-12ab", {}),
        ("arn:aws:kms:eu-west-1:111122223333:key/k", "arn:aws:kms:eu-west-1:111122223333:key/k", {}),
        (
            "alias/herd",
            "arn:aws:kms:eu-west-1:*:key/*",
            {"ForAnyValue:StringEquals": {"kms:ResourceAliases": ["alias/herd"]}},
        ),
        (
            "arn:aws:kms:eu-west-1:111122223333:alias/of/herd",
            "arn:aws:kms:eu-west-1:111122223333:key/*",
            {"ForAnyValue:StringEquals": {"kms:ResourceAliases": ["alias/of/herd"]}},
        ),
    ],
)
def test_a_key_of_ones_own_may_be_used_through_the_service_only(
    role: str, actions: list[str], key: str, resource: str, more: dict[str, object]
):
    assert statements(role, f"{URI}?kms_key_id={key}")[-1] == {
        "Sid": "GoatherdKey",
        "Effect": "Allow",
        "Action": actions,
        "Resource": [resource],
        "Condition": {"StringEquals": {"kms:ViaService": "secretsmanager.eu-west-1.amazonaws.com"}, **more},
    }


@pytest.mark.parametrize(
    ("uri", "account", "resource"),
    [
        (URI, "111122223333", "arn:aws:secretsmanager:eu-west-1:111122223333:secret:goatdb/prod/root-??????"),
        ("root", "*", "arn:aws:secretsmanager:*:*:secret:root-??????"),
        ("aws:///root", "*", "arn:aws:secretsmanager:*:*:secret:root-??????"),
        ("aws://cn-north-1/root", "*", "arn:aws-cn:secretsmanager:cn-north-1:*:secret:root-??????"),
        ("aws://us-gov-west-1/root", "*", "arn:aws-us-gov:secretsmanager:us-gov-west-1:*:secret:root-??????"),
        ("aws://eusc-de-east-1/root", "*", "arn:aws-eusc:secretsmanager:eusc-de-east-1:*:secret:root-??????"),
        ("aws://us-isob-east-1/root", "*", "arn:aws-iso-b:secretsmanager:us-isob-east-1:*:secret:root-??????"),
        ("aws://eu-west-1/{org}/root", "*", "arn:aws:secretsmanager:eu-west-1:*:secret:*/root-??????"),
    ],
)
def test_the_resource_is_the_one_secret(uri: str, account: str, resource: str):
    assert statements("server", uri, account=account)[0]["Resource"] == [resource]


@pytest.mark.parametrize("name", ["*", "goatdb/*", "goatdb/r??t", "a/${aws:username}", "a%22b"])
def test_a_name_that_would_grant_more_is_refused(name: str):
    with pytest.raises(ConfigurationError):
        policy("server", f"aws://eu-west-1/{name}".replace("?", "%3F"))


@pytest.mark.parametrize(("role", "account"), [("owner", "*"), ("server", "12"), ("server", "11112222333x")])
def test_what_is_no_role_or_account_is_refused(role: str, account: str):
    with pytest.raises(ConfigurationError):
        policy(role, URI, account=account)  # type: ignore[arg-type]
