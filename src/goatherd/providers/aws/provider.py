"""Store secrets in AWS Secrets Manager, with Goatherd's labels as AWS staging labels.

`AWSSecretProvider` decides which requests are sent; `goatherd.providers.aws.client` sends them and checks the answers.
Every write names its ``VersionStages``, because AWS otherwise makes the new version the current one. A label that
readers follow is moved only by an ``UpdateSecretVersionStage`` that names the version that has the label, so the move
is a compare-and-swap. Every value that is read is compared with the digest in its version id.
API: docs.aws.amazon.com/secretsmanager/latest/apireference/
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Self

from goatherd.clock import Clock
from goatherd.errors import (
    ConflictError,
    ProviderConfigurationError,
    SecretDeletedError,
    SecretExistsError,
    SecretNotFoundError,
    UnavailableError,
)
from goatherd.providers.aws.address import AWSAddress, parse_address
from goatherd.providers.aws.client import (
    SecretsManagerAPI,
    ServiceRefusal,
    StoredVersion,
    check_named,
    created_of,
    damaged_error,
    deleted_error,
    is_version_id,
    stages_of,
    stored_of,
    version_of,
)
from goatherd.providers.base import Call, Guarantees, ReadConsistency, RetryPolicy, SecretProvider
from goatherd.providers.values import CURRENT, Label, SecretBytes, SecretValue, SecretVersion, VersionId

CANDIDATE: Final = "goatherd-candidate"
"""The staging label under which versions are written. No reader follows it, so that it moves without a check."""

_CURRENT_STAGE: Final = "AWSCURRENT"
_PREVIOUS_STAGE: Final = "AWSPREVIOUS"
_OURS = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-g([0-9a-f]{8})")
_PAGE: Final = 100
_MOST_PAGES: Final = 100


@dataclass(frozen=True, slots=True)
class _Stages:
    """The staging labels of one AWS secret, and the version that each label points at.

    If the secret is a replica, `primary` is the region of the secret that it follows; otherwise None.
    """

    by_version: Mapping[VersionId, frozenset[str]]
    primary: str | None = None

    def holder_of(self, stage: str) -> VersionId | None:
        holders = [version for version, stages in self.by_version.items() if stage in stages]
        if len(holders) > 1:
            raise damaged_error(f"{len(holders)} versions hold the label {stage!r}")
        return holders[0] if holders else None


class AWSSecretProvider(SecretProvider):
    """Store secrets in AWS Secrets Manager.

    Address: ``aws://eu-west-1/goatdb/prod/root``, the region and the secret's name. Without a region
        (``aws:///name``), the SDK's standard chain decides. Options after ``?``: ``profile``, ``endpoint`` (https,
        or http to this machine), ``role_arn`` (assumed with the credentials found), ``kms_key_id`` (for a secret made
        here), ``recovery_days`` (7 to 30, by default 30; 0 deletes immediately and permanently).
    Credentials: the SDK's standard chain: environment, ``~/.aws``, SSO, web identity, container, instance.
    Permissions: see `goatherd.providers.aws.policy`.
    Guarantees:
        compare-and-swap: on every label.
        reads: eventual, also by version id.
        history: AWS keeps about the last 100 versions, but may remove any without a label.
        destroying: **not possible for one version.** `goatherd retire` removes its labels and AWS deletes it later;
            until then it can be read by id, but not under the server's policy. To be certain, create a new secret and
            delete the old one with ``recovery_days=0``.
        deleting: a deleted secret can be restored, and its name is taken, until the recovery window ends.
        size: 64 KiB for a value.

    A write returns only after its version was read back completely. The first version always becomes the current one.
    A replica in another region, which AWS makes, can be read, and not changed.
    """

    scheme = "aws"
    credential_variables = (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_SECURITY_TOKEN",
        "AWS_PROFILE",
        "AWS_DEFAULT_PROFILE",
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_CONFIG_FILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_ROLE_ARN",
        "AWS_CONTAINER_*",
    )

    def __init__(
        self,
        region: str | AWSAddress | None = None,
        *,
        timeout: timedelta = timedelta(seconds=10),
        retry: RetryPolicy | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(timeout=timeout, retry=retry, clock=clock)
        self.address = region if isinstance(region, AWSAddress) else AWSAddress(region=region)
        self._api = SecretsManagerAPI(self.address, timeout, self.clock, self.store_clock)

    @classmethod
    def from_uri(cls, uri: str | Mapping[str, object]) -> tuple[Self, str]:
        address, secret_id = parse_address(uri)
        return cls(address), secret_id

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> tuple[Self, str]:
        return cls.from_uri(config)

    @property
    def guarantees(self) -> Guarantees:
        return Guarantees(
            cas=True,
            read_consistency=ReadConsistency.EVENTUAL,
            # AWS: "Versions without staging labels are considered deprecated and are subject to deletion" (API
            # reference, ListSecretVersionIds). The label AWSPREVIOUS keeps one: the version that was current before.
            history=1,
            destroys=False,
            deprecates=True,
            recoverable=self.address.recovery_days > 0,
            first_is_current=True,
            custom_labels=True,
        )

    async def _close(self) -> None:
        self._api.close()

    # --- the algebra ----------------------------------------------------------------------------------------------

    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        if label != CURRENT:
            await self._must_be_missing(call)
            # API reference, CreateSecret and PutSecretValue: the first version gets AWSCURRENT whatever is asked.
            raise ProviderConfigurationError(
                f"AWS makes the first version the current one, so it cannot begin as {label!r}",
                hint="Create it as current, then write the other label.",
            )
        token = version_id_for(call.request, value)
        request: dict[str, object] = {"Name": call.secret_id, "ClientRequestToken": token}
        if self.address.kms_key_id is not None:
            request["KmsKeyId"] = self.address.kms_key_id
        answer = await self._api.call_service("create_secret", request, value)
        self._check_written(answer, token)
        stored = await self._read_back(call, token, value)
        return SecretVersion(id=token, labels=frozenset({label}), created_ms=stored.created_ms)

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        if isinstance(at, Label):
            stage = _stage_for(at)
            stored = await self._get_version(call, VersionStage=stage)
            if stage not in stored.stages:
                raise damaged_error("its version does not have the requested label")
        else:
            _must_be_possible(at)
            stored = await self._get_version(call, VersionId=at)
            if stored.id != at:
                raise damaged_error("it is about another version than the requested one")
        version = SecretVersion(id=stored.id, labels=_labels_of(stored.stages), created_ms=stored.created_ms)
        return SecretValue(version=version, value=stored.value)

    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        stage, token = _stage_for(label), version_id_for(call.request, value)
        stages = await self._read_changeable(call)
        holder = stages.holder_of(stage)
        # An earlier attempt may have made the change, and another writer may have written a newer version since.
        superseded = stage == _CURRENT_STAGE and _PREVIOUS_STAGE in stages.by_version.get(token, frozenset())
        if holder == token or superseded:
            stored = await self._read_back(call, token, value)
            return SecretVersion(id=token, labels=_labels_of(stored.stages), created_ms=stored.created_ms)
        call.check_holder(label, holder, expected)
        request = {"SecretId": call.secret_id, "ClientRequestToken": token, "VersionStages": [CANDIDATE]}
        answer = await self._api.call_service("put_secret_value", request, value)
        self._check_written(answer, token)
        # The label moves only after the version was read back, so that readers find the value that was written.
        stored = await self._read_back(call, token, value)
        await self._move_label(call, label, token, expected)
        return SecretVersion(id=token, labels=frozenset({label}), created_ms=stored.created_ms)

    async def _label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
        stage = _stage_for(label)
        stages = await self._read_changeable(call)
        _must_be_possible(version)
        call.check_holder(label, stages.holder_of(stage), expected)
        if version != expected:
            await self._move_label(call, label, version, expected)

    def takes_label(self, label: str) -> bool:
        return super().takes_label(label) and not _is_kept_back(label)

    async def _unlabel(self, call: Call, label: Label, expected: VersionId) -> None:
        stage = _CURRENT_STAGE if label == CURRENT else str(label)
        stages = await self._read_changeable(call)
        if stage in (_CURRENT_STAGE, _PREVIOUS_STAGE, CANDIDATE):
            # AWS's and our own are shown as no label, so that no caller can mean them.
            raise ConflictError(f"no version holds the label {str(label)!r}")
        call.check_holder(label, stages.holder_of(stage), expected)
        await self._remove_stage(call, stage, expected)

    async def _versions(self, call: Call) -> Sequence[SecretVersion]:
        found: dict[VersionId, SecretVersion] = {}
        request: dict[str, object] = {"SecretId": call.secret_id, "IncludeDeprecated": True, "MaxResults": _PAGE}
        for _ in range(_MOST_PAGES):
            answer = await self._api.call_service("list_secret_version_ids", request)
            check_named(answer)
            listed = answer.get("Versions", [])
            if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
                raise damaged_error("it has no list of versions")
            for entry in listed:
                version = SecretVersion(
                    id=version_of(entry),
                    labels=_labels_of(stages_of(entry.get("VersionStages"))),
                    created_ms=created_of(entry),
                )
                found[version.id] = version
            following = answer.get("NextToken")
            if following in (None, ""):
                break
            if not isinstance(following, str) or request.get("NextToken") == following:
                raise damaged_error("its link to the next page leads to the same page")
            request["NextToken"] = following
        else:
            raise damaged_error(f"its list has more than {_MOST_PAGES} pages")
        if not found and (await self._read_stages(call)).by_version:  # which says so if the secret is deleted
            raise damaged_error("its list of versions is empty, but labels point at versions")
        # Ids have no order, and AWS does not document the order of the list. Of versions with the same timestamp, the
        # last in AWS's list is put first.
        newest_first = list(found.values())[::-1]
        newest_first.sort(key=lambda version: version.created_ms, reverse=True)
        return newest_first

    async def _labels_held(self, call: Call) -> Mapping[Label, VersionId]:
        stages = (await self._read_stages(call)).by_version
        return {label: version for version, held in stages.items() for label in _labels_of(held)}

    async def _destroy(self, call: Call, version: VersionId) -> None:
        """Remove all staging labels from a version, so that AWS can delete it (API reference, DeleteSecret).

        Until AWS deletes the version, its value can still be read by the version's id.
        """
        _must_be_possible(version)
        stages = await self._read_changeable(call)
        held = stages.by_version.get(version)
        if held is None:
            if version not in {known.id for known in await self._versions(call)}:
                raise SecretNotFoundError(f"there is no version {version[:64]!r}")
            return
        foreign = sorted(held - {_PREVIOUS_STAGE, CANDIDATE})
        if foreign:
            raise ConflictError(
                f"the staging label {foreign[0]!r} points at version {version}",
                hint="Move the label to another version first.",
            )
        for stage in sorted(held):
            with contextlib.suppress(ConflictError):  # moved meanwhile, by another writer's change
                await self._remove_stage(call, stage, version)

    async def _delete(self, call: Call) -> None:
        days = self.address.recovery_days
        try:
            # A forced deletion also succeeds if there is no such secret (API reference, DeleteSecret), so check first.
            await self._read_changeable(call)
        except SecretDeletedError:
            if call.attempt == 1:
                raise
            return
        request: dict[str, object] = {"SecretId": call.secret_id}
        request |= {"RecoveryWindowInDays": days} if days else {"ForceDeleteWithoutRecovery": True}
        check_named(await self._api.call_service("delete_secret", request))

    # --- steps ------------------------------------------------------------------------------------------------------

    async def _must_be_missing(self, call: Call) -> None:
        try:
            await self._read_stages(call)
        except SecretNotFoundError:
            return
        raise SecretExistsError("the secret exists already")

    async def _get_version(self, call: Call, **at: str) -> StoredVersion:
        """Read one version from AWS and, if Goatherd made its id, check the value against the digest in the id."""
        stored = stored_of(await self._api.call_service("get_secret_value", {"SecretId": call.secret_id, **at}))
        ours = _OURS.fullmatch(stored.id)
        if ours is not None and ours[2] != _value_digest(ours[1], stored.value):
            raise damaged_error(f"its value is not the one that was written as version {stored.id}")
        return stored

    async def _read_back(self, call: Call, token: VersionId, value: SecretBytes) -> StoredVersion:
        try:
            stored = await self._get_version(call, VersionId=token)
        except SecretNotFoundError as error:
            # "All Secrets Manager operations are eventually consistent" (API reference, ListSecrets).
            raise UnavailableError("the version that was just written cannot be read yet") from error
        if stored.id != token or stored.value != value:
            raise damaged_error("it is not what was just written")
        return stored

    async def _read_stages(self, call: Call) -> _Stages:
        answer = await self._api.call_service("describe_secret", {"SecretId": call.secret_id})
        check_named(answer)
        if answer.get("DeletedDate") is not None:
            raise deleted_error()
        # AWS leaves the field out if no version has a label. Goatherd's secrets always have a labelled version.
        labels = answer.get("VersionIdsToStages", {})
        if not isinstance(labels, dict):
            raise damaged_error("its labels are not a map")
        return _Stages(
            by_version={version_of({"VersionId": one}): stages_of(labels[one]) for one in labels},
            primary=_primary_of(answer),
        )

    async def _read_changeable(self, call: Call) -> _Stages:
        """Read the staging labels of a secret that is to be changed.

        Raises:
            ProviderConfigurationError: The secret is a replica, which AWS does not change.
        """
        stages = await self._read_stages(call)
        if stages.primary is not None:
            raise ProviderConfigurationError(
                f"the secret is a replica of the one in {stages.primary}, and AWS changes only that one",
                hint=f"Use the address of the secret in {stages.primary}. For a region of [stores], delete the replica:"
                " Goatherd writes a secret of its own there.",
            )
        return stages

    async def _move_label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
        """Move a label to another version by compare-and-swap: the request names the version that has the label now.

        "If the label is attached and you either do not specify this parameter, or the version ID does not match, then
        the operation fails" (API reference, UpdateSecretVersionStage).
        """
        stage = _stage_for(label)
        request = {"SecretId": call.secret_id, "VersionStage": stage, "MoveToVersionId": version}
        if expected is not None:
            request["RemoveFromVersionId"] = expected
        if await self._update_stage(request):
            return
        holder = (await self._read_stages(call)).holder_of(stage)
        if call.operation == "write" and holder == version:
            return
        call.check_holder(label, holder, expected)
        if version not in {known.id for known in await self._versions(call)}:
            raise SecretNotFoundError(f"there is no version {version!r}")
        raise UnavailableError("AWS refused to move the label, and the reason is not visible yet")

    async def _remove_stage(self, call: Call, stage: str, version: VersionId) -> None:
        """Remove a staging label from the version that has it, by compare-and-swap.

        Raises:
            ConflictError: Another version has the label, or none has it; nothing was changed.
        """
        request = {"SecretId": call.secret_id, "VersionStage": stage, "RemoveFromVersionId": version}
        if await self._update_stage(request):
            return
        holder = (await self._read_stages(call)).holder_of(stage)
        call.check_holder(Label(stage), holder, version)
        raise UnavailableError("AWS refused to remove the label, and the reason is not visible yet")

    async def _update_stage(self, request: Mapping[str, object]) -> bool:
        """Return whether AWS has changed a staging label; if not, the holder of the label shows why.

        The API reference does not say which refusal means what.
        """
        outcome = await self._api.try_call("update_secret_version_stage", request)
        if not isinstance(outcome, ServiceRefusal):
            check_named(outcome)
            return True
        if outcome.code != "InvalidParameterException":
            raise outcome.error
        return False

    def _check_written(self, answer: Mapping[str, object], token: VersionId) -> None:
        check_named(answer)
        if version_of(answer) != token:
            raise damaged_error("it is of another version than the one written")


def version_id_for(request: str, value: SecretBytes) -> VersionId:
    """Return the AWS version id for the version that a write creates; every retry of the write gets the same id.

    The id is a UUID made from `Call.request`, followed by 32 bits of a digest over the request and the value, by which
    a read detects damage. The digest reveals nothing about a value that contains a key; a guessable value must not be
    stored here.
    """
    name = str(uuid.UUID(hex=request))
    return VersionId(f"{name}-g{_value_digest(name, value)}")


def _value_digest(name: str, value: SecretBytes) -> str:
    return hashlib.sha256(name.encode() + value.reveal()).hexdigest()[:8]


def _primary_of(answer: Mapping[str, object]) -> str | None:
    """Return the region of the secret that a replica follows, from an answer to ``DescribeSecret``; else None."""
    primary, own = answer.get("PrimaryRegion"), str(answer["ARN"]).split(":")[3:4]
    return primary if isinstance(primary, str) and primary and [primary] != own else None


def _stage_for(label: Label) -> str:
    """Return the AWS staging label for one of Goatherd's labels, such as ``AWSCURRENT`` for ``current``."""
    if label == CURRENT:
        return _CURRENT_STAGE
    if _is_kept_back(label):
        raise ProviderConfigurationError(f"the label {str(label)!r} is reserved for AWS or for this provider")
    return str(label)


def _is_kept_back(label: str) -> bool:
    return label.upper().startswith("AWS") or label == CANDIDATE


def _labels_of(stages: frozenset[str]) -> frozenset[Label]:
    """Return a version's labels: all its staging labels except ``AWSPREVIOUS``, the candidate label and ``current``.

    Goatherd puts the candidate label on a new version until the version gets its own label. AWS takes any text of 1 to
    256 characters (API reference, UpdateSecretVersionStage). A staging label that is not a valid label of Goatherd's is
    listed too: while a version has it, AWS and `destroy` keep the version. Only one that is spelled ``current`` is not
    listed, because it would pass for ``AWSCURRENT``; the error of `destroy` names it.
    """
    shown = stages - {_PREVIOUS_STAGE, CANDIDATE, str(CURRENT)}
    return frozenset(CURRENT if stage == _CURRENT_STAGE else Label(stage) for stage in shown)


def _must_be_possible(version: VersionId) -> None:
    if not is_version_id(version):
        raise SecretNotFoundError(f"there is no version {version[:64]!r}")
