"""Add an operator's label to a stored version, move it, or remove it.

The labels ``current`` and ``stable`` cannot be changed here: servers read ``current``, and only rotations move these
two labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from goatherd.errors import ConfigurationError, ConflictError, SecretNotFoundError
from goatherd.operations.identity_store import Store
from goatherd.operations.runs import AuditLog, record_run
from goatherd.providers.base import SecretProvider
from goatherd.providers.values import CURRENT, STABLE, Label, SecretVersion, check_label

__all__ = [
    "PROTECTED_LABELS",
    "LabelChange",
    "change_label",
    "check_custom_label",
    "check_removable_label",
    "move_label",
    "remove_label",
]

PROTECTED_LABELS = frozenset({CURRENT, STABLE})
"""Labels that only Goatherd moves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelChange:
    """The version that held a label before a change, and the one that holds it now.

    Attributes:
        label: The label.
        before: Id of the version that held the label; None if no version did.
        after: Id of the version that holds the label now; None if it was removed.
    """

    label: Label
    before: str | None
    after: str | None

    @property
    def is_change(self) -> bool:
        """Whether anything was written."""
        return self.before != self.after


def check_custom_label(text: str) -> Label:
    """Check that an operator may move the label `text`, and return it as a `Label`.

    Raises:
        ConfigurationError: `text` is not a valid label, or is one of `PROTECTED_LABELS`.
    """
    label = check_label(text)
    check_removable_label(text)
    return label


def check_removable_label(text: str) -> None:
    """Check that an operator may remove the label `text`, which another tool may have set.

    Raises:
        ConfigurationError: `text` is one of `PROTECTED_LABELS`.
    """
    if text in PROTECTED_LABELS:
        hint = (
            "Servers read the version with the label `current`. `goatherd rotate` and its --rollback change it."
            if text == CURRENT
            else "A rotation moves `stable` when it is complete, so that it can be rolled back. Use another label."
        )
        raise ConfigurationError(f"the label {text!r} is protected: only Goatherd moves it", hint=hint)


async def move_label(provider: SecretProvider, secret_id: str, label: str, to: str) -> LabelChange:
    """Add `label` to a version, or move it there from another version.

    Args:
        provider: An open provider.
        secret_id: The secret.
        label: The label.
        to: The version's id, or a label that the version holds.

    Raises:
        ConfigurationError: `label` is protected or not a valid label, or the store supports only Goatherd's own labels.
        SecretNotFoundError: There is no such secret, or no such version.
        ConflictError: Another writer moved the label in the meantime. Nothing was changed.
    """
    checked = check_custom_label(label)
    _check_store(provider)
    known = await provider.versions(secret_id)
    target = _find_version(provider, secret_id, known, to)
    before = _find_holder(known, checked)
    if before != target:
        with _explain_conflict():
            await provider.label(secret_id, checked, target, expected=before)
    return LabelChange(label=checked, before=before, after=target)


async def remove_label(provider: SecretProvider, secret_id: str, label: str) -> LabelChange:
    """Remove `label` from the version that holds it. Do nothing if no version holds it.

    Any label that the store lists can be removed, except Goatherd's own (`PROTECTED_LABELS`). This includes labels of
    other tools whose names `move_label` rejects.

    Raises:
        ConfigurationError: `label` is protected, or the store supports only Goatherd's own labels.
        SecretNotFoundError: There is no such secret.
        ConflictError: Another writer moved the label in the meantime. Nothing was changed.
    """
    check_removable_label(label)
    _check_store(provider)
    before = _find_holder(await provider.versions(secret_id), Label(label))
    if before is not None:
        with _explain_conflict():
            await provider.unlabel(secret_id, label, expected=before)
    return LabelChange(label=Label(label), before=before, after=None)


async def change_label(store: Store, label: str, to: str | None, *, audit_log: AuditLog | None = None) -> LabelChange:
    """Move `label` to a version, or remove it if `to` is None, and record the change in the audit trail.

    Args:
        store: The open store.
        label: The label.
        to: The version's id, or a label that the version holds.
        audit_log: The file of the audit trail; None to write only the log.

    Raises:
        ConfigurationError, SecretNotFoundError, ConflictError: As `move_label` and `remove_label`.
        AuditError: The trail cannot be written. Nothing was changed.
    """
    check_removable_label(label) if to is None else check_custom_label(label)
    asked = {"action": "unlabel" if to is None else "label", "label": label, "version": to}
    async with record_run(store, "versions", asked, audit_log) as journal:
        if to is None:
            change = await remove_label(store.provider, store.secret_id, label)
        else:
            change = await move_label(store.provider, store.secret_id, label, to)
        if change.is_change:
            journal.record_decision("label-moved", {"label": change.label, "from": change.before, "to": change.after})
    return change


@contextmanager
def _explain_conflict() -> Iterator[None]:
    """Give a `ConflictError` that the ``with`` block raises a hint about labels."""
    try:
        yield
    except ConflictError as error:
        error.hint = (
            "Another writer moved the label. `goatherd show --versions` shows where it is now; then "
            "run the command again."
        )
        raise


def _check_store(provider: SecretProvider) -> None:
    if not provider.guarantees.custom_labels:
        raise ConfigurationError(
            f"the store ({provider.scheme}) supports only Goatherd's own labels",
            hint=(
                "Its provider declares custom_labels=False. Note the version's id instead; `goatherd show "
                "--at ID` reads that version."
            ),
        )


def _find_holder(versions: list[SecretVersion], label: Label) -> str | None:
    return next((version.id for version in versions if label in version.labels), None)


def _find_version(provider: SecretProvider, secret_id: str, versions: list[SecretVersion], text: str) -> str:
    if any(version.id == text and version.is_leftover for version in versions):
        raise SecretNotFoundError(
            f"version {text} was left by an interrupted change and cannot have a label",
            provider=provider.scheme,
            secret_id=secret_id,
            operation="label",
            hint="`goatherd show --versions` lists the versions that can have labels.",
        )
    if any(version.id == text for version in versions):
        return text
    found = next((version.id for version in versions if text in version.labels), None)
    if found is None:
        raise SecretNotFoundError(
            f"no version has the id or the label {text!r}",
            provider=provider.scheme,
            secret_id=secret_id,
            operation="label",
            hint="`goatherd show --versions` lists the ids and labels of all versions.",
        )
    return found
