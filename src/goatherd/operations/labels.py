"""Add an operator's label to a stored version, move it, or remove it.

The labels ``current`` and ``stable`` cannot be changed here: servers read ``current``, and only rotations move these
two labels.
"""

from __future__ import annotations

from dataclasses import dataclass

from goatherd.errors import ConfigurationError, ConflictError, SecretNotFoundError
from goatherd.operations.identity_store import Store
from goatherd.operations.runs import AuditLog, record_run
from goatherd.providers.base import SecretProvider
from goatherd.providers.values import CURRENT, STABLE, Label, SecretVersion, check_label

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


async def change_label(store: Store, label: str, to: str | None, *, audit_log: AuditLog | None = None) -> LabelChange:
    """Move `label` to a version, or remove it if `to` is None, and record the change in the audit trail.

    Any label that the store lists can be removed, except Goatherd's own (`PROTECTED_LABELS`). This includes labels of
    other tools, whose names may be such that no version can be given the label.

    Args:
        store: The open store.
        label: The label.
        to: The version's id, or a label that the version holds.
        audit_log: The file of the audit trail; None to write only the log.

    Raises:
        ConfigurationError: `label` is protected or not a valid label, or the store supports only Goatherd's own labels.
        SecretNotFoundError: There is no such secret, or no such version.
        ConflictError: Another writer moved the label in the meantime. Nothing was changed.
        AuditError: The trail cannot be written. Nothing was changed.
    """
    _refuse_protected(label)
    checked = Label(label) if to is None else check_label(label)
    asked = {"action": "unlabel" if to is None else "label", "label": label, "version": to}
    async with record_run(store, "versions", asked, audit_log) as journal:
        change = await _change_label(store, checked, to)
        if change.is_change:
            journal.record_decision("label-moved", {"label": change.label, "from": change.before, "to": change.after})
    return change


async def _change_label(store: Store, label: Label, to: str | None) -> LabelChange:
    provider, secret_id = store.provider, store.secret_id
    if not provider.guarantees.custom_labels:
        raise ConfigurationError(
            f"the store ({provider.scheme}) supports only Goatherd's own labels",
            hint=(
                "Its provider declares custom_labels=False. Note the version's id instead; `goatherd show "
                "--at ID` reads that version."
            ),
        )
    known = await provider.versions(secret_id)
    after = None if to is None else _find_version(provider, secret_id, known, to)
    before = next((version.id for version in known if label in version.labels), None)
    try:
        if after is not None and after != before:
            await provider.label(secret_id, label, after, expected=before)
        elif after is None and before is not None:
            await provider.unlabel(secret_id, label, expected=before)
    except ConflictError as error:
        error.hint = (
            "Another writer moved the label. `goatherd show --versions` shows where it is now; then "
            "run the command again."
        )
        raise
    return LabelChange(label=label, before=before, after=after)


def _refuse_protected(text: str) -> None:
    if text in PROTECTED_LABELS:
        hint = (
            "Servers read the version with the label `current`. `goatherd rotate` and its --rollback change it."
            if text == CURRENT
            else "A rotation moves `stable` when it is complete, so that it can be rolled back. Use another label."
        )
        raise ConfigurationError(f"the label {text!r} is protected: only Goatherd moves it", hint=hint)


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
