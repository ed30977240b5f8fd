"""Evaluate IAM policies: decide whether a request is allowed, as AWS's policy evaluation logic says.

What it is: `is_allowed` over one identity's policy, with the condition operators and set operators that the policies of
`goatherd.providers.aws.permissions` use. What it is not: all of IAM: no resource policies, boundaries, variables or
``NotAction``. An element or an operator that it does not know is an error, never a condition that happens to hold.

Follows docs.aws.amazon.com/IAM/latest/UserGuide/: reference_policies_evaluation-logic.html (an explicit denial wins;
what nothing allows is denied), reference_policies_elements_condition_operators.html (a missing key matches no operator
but ``Null``) and reference_policies_condition-single-vs-multi-valued-context-keys.html (set operators).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, cast

Values = str | Sequence[str]
Context = Mapping[str, Values]

_STATEMENT: Final = frozenset({"Sid", "Effect", "Action", "Resource", "Condition"})
_MULTI_VALUED: Final = frozenset({"secretsmanager:versionstage", "kms:resourcealiases"})
"""Keys of which a request may have several values; an operator without a set operator is not defined on them."""


class UnknownPolicyElementError(Exception):
    """The policy uses what this evaluator does not know, or applies an operator to a key that it is not meant for."""


def request_context(operation: str, fields: Mapping[str, object]) -> dict[str, Values]:
    """Return the service's condition keys for a request to Secrets Manager.

    Only ``GetSecretValue`` and ``UpdateSecretVersionStage`` have the key ``secretsmanager:VersionStage``, and only
    ``GetSecretValue`` has ``secretsmanager:VersionId``; a field that the request leaves out gives no key.
    docs.aws.amazon.com/service-authorization/latest/reference/list_awssecretsmanager.html

    Args:
        operation: Such as ``GetSecretValue``.
        fields: The request's own fields.
    """
    context: dict[str, Values] = {}
    if operation in ("GetSecretValue", "UpdateSecretVersionStage") and "VersionStage" in fields:
        context["secretsmanager:VersionStage"] = [str(fields["VersionStage"])]
    if operation == "GetSecretValue" and "VersionId" in fields:
        context["secretsmanager:VersionId"] = str(fields["VersionId"])
    return context


def is_allowed(policy: str, action: str, resource: str, context: Context) -> bool:
    """Return whether the identity that has this policy alone may do `action` to `resource`.

    Args:
        policy: The policy document as JSON text.
        action: Such as ``secretsmanager:GetSecretValue``.
        resource: The full ARN.
        context: The request's condition keys. A list is a multi-valued key; names are not case-sensitive.

    Raises:
        UnknownPolicyElementError: The policy uses an element or an operator that is not known here.
    """
    keys = {name.lower(): values for name, values in context.items()}
    allowed = False
    for statement in _statements(policy):
        unknown = set(statement) - _STATEMENT
        if unknown or statement["Effect"] not in ("Allow", "Deny"):
            raise UnknownPolicyElementError(f"statement {statement.get('Sid')}: {sorted(unknown)}")
        applies = (
            any(_matches(pattern, action, ignore_case=True) for pattern in _listed(statement["Action"]))
            and any(_matches(pattern, resource) for pattern in _listed(statement["Resource"]))
            and all(_holds(operator, name, values, keys) for operator, name, values in _conditions(statement))
        )
        if applies and statement["Effect"] == "Deny":
            return False
        allowed = allowed or applies
    return allowed


def _holds(operator: str, name: str, wanted: list[str], keys: Context) -> bool:
    """Return whether one key of a condition holds."""
    found = keys.get(name.lower())
    if operator == "Null":
        return (found is None or len(found) == 0) == (wanted == ["true"])
    quantifier, _, plain = operator.rpartition(":")
    if plain not in ("StringEquals", "StringLike"):
        raise UnknownPolicyElementError(f"operator {operator}")
    has_list = found is not None and not isinstance(found, str)
    if quantifier == "" and (has_list or name.lower() in _MULTI_VALUED):
        raise UnknownPolicyElementError(f"{operator} on {name}, which is multi-valued: it needs a set operator")
    values = [] if found is None else [found] if isinstance(found, str) else list(found)
    fits = [
        any(value == one if plain == "StringEquals" else _matches(one, value) for one in wanted) for value in values
    ]
    match quantifier:
        case "" | "ForAnyValue":
            return any(fits)
        case "ForAllValues":
            return all(fits)  # also without any value: that is why it needs Null beside it in an Allow
        case _:
            raise UnknownPolicyElementError(f"operator {operator}")


def _matches(pattern: str, text: str, *, ignore_case: bool = False) -> bool:
    """Return whether `text` fits a pattern with ``*`` and ``?``."""
    regex = "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in pattern)
    return re.fullmatch(regex, text, re.DOTALL | (re.IGNORECASE if ignore_case else 0)) is not None


def _statements(policy: str) -> list[dict[str, object]]:
    return cast("list[dict[str, object]]", json.loads(policy)["Statement"])


def _conditions(statement: Mapping[str, object]) -> Iterator[tuple[str, str, list[str]]]:
    """Return operator, key and values of each condition: all of them have to hold, of the values of one key any."""
    for operator, block in cast("Mapping[str, Mapping[str, object]]", statement.get("Condition", {})).items():
        for name, values in block.items():
            yield operator, name, _listed(values)


def _listed(values: object) -> list[str]:
    return [str(value) for value in values] if isinstance(values, list) else [str(values)]
