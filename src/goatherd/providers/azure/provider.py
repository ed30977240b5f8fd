"""Store one of Goatherd's secrets in two secrets of an Azure key vault, because Key Vault has no compare-and-swap.

The secret ``name-pointer`` holds the pointer, a record with the valid list of versions and labels. Each change writes a
new pointer, together with the new value if there is one. The secret ``name`` is the view: its newest version is the
value with the label ``current``, for readers that do not know the pointer. `client` sends the requests; `records`
decides which of two writers wins.

- A pointer and its value are written in one request, so a crash leaves no value without a pointer. `versions` also
  lists the values of writers that lost, and `destroy` disables them.
- A written pointer is only a proposal; it is decided when no other proposal can win any more (`decide_proposals`). The
  writer waits for that, and starts again if another writer won. A reader waits too, and never uses an undecided
  pointer.
- The view is written after the decision. Before a change, the writer checks that the view matches the decided pointer;
  after a late write of the view, it checks that no newer pointer was decided meanwhile.
- One request reads the newest pointer. The list of all proposals is requested only if that pointer was not seen before.
- If a delayed writer copies a destroyed value to the view, `versions` lists that value as enabled again, and `destroy`
  disables the copy.
- The oldest versions are dropped from the pointer, but the vault keeps them: `versions` lists them as leftovers.
- Each request takes time and counts against the vault's limits, so a change makes no request whose answer is already
  known (docs/adr, "What a change in Azure costs").
- Tags are for humans, with three exceptions: the tags of a disabled pointer say what it added; one tag names the
  request, so that a retry does not write a value twice; one tag of the view names the version that was copied.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final, Self

from azure.core.credentials_async import AsyncTokenCredential

from goatherd.clock import Clock
from goatherd.errors import (
    ConflictError,
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    ProviderError,
    SecretExistsError,
    SecretNotFoundError,
    UnavailableError,
    VersionDisabledError,
)
from goatherd.providers.azure.address import (
    POINTER_SUFFIX,
    AzureAddress,
    check_name,
    parse_address,
    parse_vault,
)
from goatherd.providers.azure.client import KeyVault, Listing, StoredSecret
from goatherd.providers.azure.records import (
    BASE64_TYPE,
    BEGINNING,
    HISTORY,
    ITSELF,
    MAX_STORED,
    MAX_VALUE,
    NUMBER_TAG,
    POINTER_TYPE,
    REQUEST_TAG,
    TEXT_TYPE,
    VALUE_TYPES,
    WITH_TEXT_TYPE,
    WITH_VALUE_TYPES,
    Decision,
    Entry,
    Home,
    Pointer,
    Proposal,
    decide_proposals,
    decode_leftover,
    decode_pointer,
    decode_value,
    encode_pointer,
    encode_value,
    is_version_id,
    links_of,
    rebuild_pointer,
    tags_of,
    value_after_pointer,
    value_tags,
)
from goatherd.providers.base import Call, Guarantees, ReadConsistency, RetryPolicy, SecretProvider
from goatherd.providers.capabilities import Finding, Verdict, unreported_finding
from goatherd.providers.values import CURRENT, Label, SecretBytes, SecretValue, SecretVersion, VersionId, VersionState
from goatherd.providers.versioned_record import DamagedRecordError, ForeignRecordError, digest_of

SETTLE: Final = timedelta(seconds=3)
"""A version's time is in whole seconds, which is one; two are for clocks of the service that differ, and for the time
from when a version gets its time to when it is listed."""
PROMPT: Final = timedelta(seconds=0.5)
"""How much longer than `SETTLE` it may take from before a proposal until the view shows it. No other proposal can be
decided so soon after it, as long as clocks of the service differ by less than a quarter of a second."""

_REMEMBERED: Final = 64
_VERSION_TAG: Final = "goatherd-version"
_SPARE: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """The cached result of reading one secret; valid as long as `newest` is the newest proposal.

    A proposal is a pointer (a record of versions and labels) that was written, but may lose to another one.

    Attributes:
        newest: The version id of the secret's newest proposal; empty if another proposal could still win, so that the
            next read must list the proposals again.
        decided: The proposal that was in effect at that time.
    """

    newest: str
    decided: Proposal


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """The last known state of the view, the copy of the current value for readers without Goatherd.

    Attributes:
        decided: The id of the proposal (a pointer that was written) that was in effect when the view was read or
            written.
        version: The version with the label ``current``, whose value the view held.
    """

    decided: str
    version: VersionId


@dataclass(slots=True, kw_only=True)
class _ValueDraft:
    """A value that is being written to Azure Key Vault. Its repr hides the value, as `SecretBytes` does.

    Attributes:
        value: The value.
        entry: The entry for the value in the next pointer, the record of versions and labels.
        version: The version of the pointer secret that already stores the value, though no valid pointer names it; None
            if the value is not stored yet.
    """

    value: SecretBytes
    entry: Entry
    version: VersionId | None = None


class AzureSecretProvider(SecretProvider):
    """Store secrets in Azure Key Vault.

    Address: ``azure://vault-name/secret-name``. Options in the query: ``suffix=vault.azure.cn`` (another cloud),
        ``endpoint=https://…`` (a host of your own in front of the vault, usually together with
        ``challenge=unchecked``), ``identity`` (the client id of a user-assigned managed identity), ``ca`` (a file of
        certificates).
    Credentials: Azure's default chain: the environment, workload identity, managed identity, ``az login``.
    Permissions: ``goatherd policy azure --role server`` (or rotator, admin) prints the role assignments.
    Guarantees:
        compare-and-swap: none. The earlier of two writers wins, if the service lists each version within two seconds of
            the version's timestamp.
        reads: eventual. After a failover to the paired region, the last changes may be lost.
        a change: takes four seconds.
        history: 64 versions, of which at least 40 unlabelled.
        destroying: **not possible for one version.** It is disabled, and an account that may update the secret can
            enable it.
        deleting: a deleted secret can be recovered, and its name is taken, until it is purged (7 to 90 days). Recover
            both secrets: the one that the address names, and its ``-pointer``.
        size: 19 200 bytes for a value.
    """

    scheme = "azure"
    credential_variables = (
        "AZURE_CLIENT_*",
        "AZURE_TENANT_ID",
        "AZURE_USERNAME",
        "AZURE_PASSWORD",
        "AZURE_FEDERATED_TOKEN_FILE",
        "AZURE_CONFIG_DIR",
        "IDENTITY_ENDPOINT",
        "IDENTITY_HEADER",
        "IMDS_ENDPOINT",
        "MSI_ENDPOINT",
        "MSI_SECRET",
    )
    confirms_labels = False
    _vault: KeyVault  # made by `_open`

    def __init__(
        self,
        vault_url: str | AzureAddress,
        *,
        timeout: timedelta = timedelta(seconds=20),
        retry: RetryPolicy | None = None,
        clock: Clock | None = None,
        credential: AsyncTokenCredential | None = None,
        settle: timedelta = SETTLE,
    ) -> None:
        super().__init__(timeout=timeout, retry=retry, clock=clock)
        self.address = vault_url if isinstance(vault_url, AzureAddress) else parse_vault(vault_url)
        self._credential = credential
        self._settle = math.ceil(settle.total_seconds())
        self._known: dict[str, _Known] = {}
        self._proposals: dict[str, Proposal] = {}
        self._shown: dict[str, _Shown] = {}

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
            cas=False,
            best_effort_cas=True,
            read_consistency=ReadConsistency.EVENTUAL,
            max_value_bytes=MAX_VALUE,
            history=HISTORY,
            destroys=False,
            disables=True,
            recoverable=True,
            custom_labels=True,
        )

    def check_secret_id(self, secret_id: str) -> None:
        super().check_secret_id(secret_id)
        check_name(secret_id)

    async def _open(self) -> None:
        vault = KeyVault(self.address, self.timeout, self.clock, self._credential, self.store_clock)
        await vault.open()
        self._vault = vault

    async def _close(self) -> None:
        await self._vault.close()

    # --- the algebra ------------------------------------------------------------------------------------------------

    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        newest = await self._read_newest_pointer(call)
        if newest is None:
            # The view is written last, when it is too late to reject another secret of that name.
            await self._read_view(call, SecretExistsError)
            draft = self._new_draft(call, value)
            pointer = await self._with_value(call, BEGINNING.pointer, label, draft)
            self._shown[call.secret_id] = _Shown(decided=BEGINNING.id, version=VersionId(""))
            if (made := await self._propose_pointer(call, BEGINNING, pointer, draft)) is not None:
                await self._update_view(call, *made, value)
                return _describe_written(call, made[0].pointer)
        else:
            last = await self._decide_pointers(call, newest)
            if last.pointer.made_by(call.request) is not None:
                await self._update_view(call, last)
                return _describe_written(call, last.pointer)
        raise SecretExistsError("the secret exists already")

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        newest, last = await self._read_decided(call)
        pointer = last.pointer
        if isinstance(at, VersionId) and (at not in pointer.versions or pointer.versions[at].disabled):
            return await self._read_leftover(call, pointer, at)
        version = pointer.find_version(call, at)
        try:
            value = await self._read_back(call, pointer, version, newest)
        except VersionDisabledError:
            if version in pointer.labels.values():
                raise
            return await self._read_leftover(call, pointer, version)  # off by hand, and its copy is not
        return SecretValue(version=pointer.describe_version(version), value=value)

    async def _read_leftover(self, call: Call, pointer: Pointer, version: VersionId) -> SecretValue:
        """Read a value that the record of versions does not list, because a write or destruction was interrupted."""
        off: VersionDisabledError | None = None
        found: StoredSecret | None = None
        if is_version_id(version):
            try:
                found = await self._vault.get_secret(call.secret_id + POINTER_SUFFIX, version)
            except VersionDisabledError as error:
                off, found = error, await self._read_copy(call, version)
        if found is None or not _holds_value(found.content_type):
            pointer.find_version(call, version)
            raise off or SecretNotFoundError(f"there is no version {version[:40]!r}")
        try:
            value = decode_leftover(_stored_value(found), text=_is_text(found.content_type))
        except DamagedRecordError as error:
            text = f"the value of version {version} is damaged: {error}"
            raise UnavailableError(text, final=True) from None
        described = SecretVersion(id=version, created_ms=found.created * 1000, is_leftover=True)
        return SecretValue(version=described, value=value)

    async def _read_copy(self, call: Call, version: VersionId) -> StoredSecret | None:
        """Return the copy of a disabled version's value in the secret for other readers (the view), if there is one."""
        copies = (await self._vault.list_versions(call.secret_id)).items.values()
        at = next((item.version for item in copies if item.enabled and item.tags.get(_VERSION_TAG) == version), None)
        return None if at is None else await self._vault.get_secret(call.secret_id, at)

    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        draft = self._new_draft(call, value)

        async def change(pointer: Pointer) -> Pointer:
            if pointer.made_by(call.request) is not None:
                return pointer
            call.check_holder(label, pointer.labels.get(label), expected)
            return await self._with_value(call, pointer, label, draft)

        pointer = await self._change_pointer(call, change, [value] if label == CURRENT else (), draft)
        return _describe_written(call, pointer)

    async def _label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
        values = list[SecretBytes]()

        async def change(pointer: Pointer) -> Pointer:
            if call.attempt > 1 and pointer.labels.get(label) == version:
                return pointer  # an earlier attempt moved the label, but may not have updated the view
            moved = pointer.with_label(call, label, version, expected)
            # A disabled or damaged version gets no label.
            values[:] = [await self._read_back(call, pointer, version)]
            return moved if moved.labels != pointer.labels else pointer

        await self._change_pointer(call, change, values if label == CURRENT else ())

    async def _unlabel(self, call: Call, label: Label, expected: VersionId) -> None:
        async def change(pointer: Pointer) -> Pointer:
            return pointer.without_label(call, label, expected)

        await self._change_pointer(call, change)

    async def _versions(self, call: Call) -> Sequence[SecretVersion]:
        _, last = await self._read_decided(call)
        pointer = last.pointer
        items = await self._list_values(call)
        if not set(pointer.labels.values()) <= items.keys():
            raise await self._missing_value_error(call)
        numbered = [(pointer.versions[known.id].number, known) for known in pointer.newest_first()]
        for item in items.values():
            if item.version not in pointer.versions:
                # A writer that lost or died has left this version, or it is older than the versions in the pointer.
                number = item.tags.get(NUMBER_TAG, "")
                known = SecretVersion(id=VersionId(item.version), created_ms=item.created * 1000, is_leftover=True)
                numbered.append((int(number) if number.isdecimal() and len(number) < 10 else 0, known))
        numbered.sort(key=lambda each: (each[0], each[1].created_ms), reverse=True)
        # What can be read is decided by the vault's list, not by the pointer: a value whose destruction was interrupted
        # can still be read, and so can one that a writer copied into the view after it was destroyed.
        view = (await self._vault.list_versions(call.secret_id)).items.values()
        copied = {item.tags.get(_VERSION_TAG, "") for item in view if item.enabled}
        seen = []
        for _, known in numbered:
            is_on = known.id in items and items[known.id].enabled
            if is_on or (known.id in items and known.id in copied and not known.labels):
                is_leftover = known.is_leftover or known.state is VersionState.DISABLED or not is_on
                known = replace(known, state=VersionState.ENABLED, is_leftover=is_leftover)
            elif known.id in items:
                known = replace(known, state=VersionState.DISABLED)
            seen.append(known)
        return seen

    async def _list_values(self, call: Call) -> dict[str, StoredSecret]:
        """List the values that the vault stores, without the copies for readers without Goatherd (the view)."""
        items = (await self._vault.list_versions(call.secret_id + POINTER_SUFFIX)).items
        return {version: item for version, item in items.items() if _holds_value(item.content_type)}

    async def _destroy(self, call: Call, version: VersionId) -> None:
        """Disable a version, because Key Vault cannot destroy a single one.

        First, the copies for readers without Goatherd (the view) are disabled. Then the version is marked as disabled
        in the pointer (the record of versions and labels), so that no label can move to it. Last, the value is
        disabled. If the run is interrupted, the version is still listed, and another run can finish.
        """

        async def change(pointer: Pointer) -> Pointer:
            known = await self._with_leftover(call, pointer, version)
            off = known.without_value(call, version)
            may_update = await self._disable_copies(call, off, version)
            if off is not pointer and not may_update:
                # An update without effect checks the permission for the last step before the pointer changes.
                entry = known.versions[version]
                kind = entry.home.content_type(text=entry.text)
                await self._vault.update_version(call.secret_id + POINTER_SUFFIX, version, content_type=kind)
            return off

        await self._change_pointer(call, change)
        name = call.secret_id + POINTER_SUFFIX
        await self._vault.update_version(name, version, enabled=False)
        await self._confirm_disabled(name, version, version)

    async def _confirm_disabled(self, name: str, at: str, version: VersionId) -> None:
        with contextlib.suppress(VersionDisabledError):
            if await self._vault.get_secret(name, at) is not None:
                raise UnavailableError(f"the store answered success, but version {version} is still enabled")

    async def _confirm_destroyed(self, call: Call, version: VersionId) -> None:
        """Do nothing: `_destroy` has already confirmed the destruction, which saves a request."""

    async def _with_leftover(self, call: Call, pointer: Pointer, version: VersionId) -> Pointer:
        if version in pointer.versions or not is_version_id(version):
            return pointer
        item = (await self._list_values(call)).get(version)
        if item is None:
            return pointer
        home = Home.POINTER if item.content_type in WITH_VALUE_TYPES else Home.ALONE
        return pointer.with_leftover(version, created=item.created, text=_is_text(item.content_type), home=home)

    async def _disable_copies(self, call: Call, pointer: Pointer, version: VersionId) -> bool:
        """Disable a destroyed version's copies in the secret for other readers (the view); return if it had any."""
        done = False
        for item in (await self._vault.list_versions(call.secret_id)).items.values():
            owner = item.tags.get(_VERSION_TAG, "")
            known = pointer.versions.get(VersionId(owner))
            if item.enabled and (owner == version or (known is not None and known.disabled)):
                await self._vault.update_version(call.secret_id, item.version, enabled=False)
                await self._confirm_disabled(call.secret_id, item.version, version)
                done = True
        return done

    async def _delete(self, call: Call) -> None:
        newest = await self._read_newest_pointer(call)
        if newest is None:
            if not await self._vault.is_deleted(call.secret_id + POINTER_SUFFIX):
                raise SecretNotFoundError("there is no such secret")
            if call.attempt > 1:
                return  # an earlier attempt did it, and its answer was lost
            raise self._vault.deleted_error(call.secret_id)
        # The pointer last: until it is gone, no other writer can create the secret again, and it can be deleted again.
        await self._vault.delete_secret(call.secret_id)
        await self._vault.delete_secret(call.secret_id + POINTER_SUFFIX)
        self._known.pop(call.secret_id, None)
        self._shown.pop(call.secret_id, None)

    # --- diagnosis --------------------------------------------------------------------------------------------------

    async def diagnose(self, secret_id: str) -> list[Finding]:
        """Check whether the copy for readers without Goatherd (the view) holds the current value; return findings."""
        call = self._start_call("diagnose", secret_id)
        return await self._run_call(call, self._diagnose_secret)

    async def _diagnose_secret(self, call: Call) -> list[Finding]:
        first = unreported_finding(self.scheme)
        view = call.secret_id
        _, last = await self._read_decided(call)
        pointer = last.pointer
        version = pointer.labels.get(CURRENT)
        try:
            found = await self._read_view(call)
        except ProviderAccessDeniedError:
            text = f"{view} may not be read"
            hint = "`goatherd policy azure` prints the roles for it. Only readers without Goatherd need it."
            return [first, Finding(name="view", verdict=Verdict.NOT_CHECKED, text=text, hint=hint)]
        if version is not None and found is not None and _shows_version(found, pointer, version):
            text = f"{view} holds the current document"
            return [first, Finding(name="view", verdict=Verdict.FINE, text=text)]
        text = f"{view} does not {'exist' if found is None else 'hold the current document'}"
        hint = "Readers without Goatherd use it. The next change of the secret writes it, such as a label of your own."
        return [first, Finding(name="view", verdict=Verdict.CAUTION, text=text, hint=hint)]

    # --- values -----------------------------------------------------------------------------------------------------

    def _new_draft(self, call: Call, value: SecretBytes) -> _ValueDraft:
        _, is_text = encode_value(value)
        entry = Entry(number=0, created=0, request=call.request, digest=digest_of(value), text=is_text)
        return _ValueDraft(value=value, entry=entry)

    async def _with_value(self, call: Call, pointer: Pointer, label: Label, draft: _ValueDraft) -> Pointer:
        """Return the pointer (the record of versions and labels) with a new value added, which gets `label`.

        The value is written later, together with the pointer, if both fit into one Key Vault version. Otherwise this
        method writes the value now, as a version of its own.
        """
        if call.attempt > 1 and draft.version is None:
            await self._find_earlier_attempt(call, pointer, draft)
        if draft.version in pointer.versions:
            draft.version = None  # another writer has disabled it meanwhile, because no pointer listed it
        if draft.version is None:
            draft.entry = replace(draft.entry, created=0, home=Home.POINTER)
            grown = pointer.with_version(label, ITSELF, draft.entry)
            stored, _ = encode_value(draft.value)
            if len(encode_pointer(grown)) + len(stored.encode()) + _SPARE <= MAX_STORED:
                return grown
            await self._write_alone(call, pointer, draft)
        return pointer.with_version(label, VersionId(draft.version or ""), draft.entry)

    async def _find_earlier_attempt(self, call: Call, pointer: Pointer, draft: _ValueDraft) -> None:
        """Find the value that an earlier attempt of the same call has stored, and record its version in the draft."""
        name = call.secret_id + POINTER_SUFFIX
        for item in (await self._vault.list_versions(name)).items.values():
            is_same = item.tags.get(REQUEST_TAG) == call.request and _holds_value(item.content_type)
            if is_same and item.enabled and item.version not in pointer.versions:
                found = await self._vault.get_secret(name, item.version)
                if found is not None and _is_whole(found, draft.entry):
                    home = Home.POINTER if item.content_type in WITH_VALUE_TYPES else Home.ALONE
                    draft.version = VersionId(item.version)
                    draft.entry = replace(draft.entry, created=item.created, home=home)
                    return

    async def _write_alone(self, call: Call, pointer: Pointer, draft: _ValueDraft) -> None:
        name, (stored, is_text) = call.secret_id + POINTER_SUFFIX, encode_value(draft.value)
        kind = Home.ALONE.content_type(text=is_text)
        put = await self._vault.put_secret(name, stored, kind, value_tags(pointer.next_number, call.request))
        back = await self._vault.get_secret(name, put.version)
        if back is None or not _is_whole(back, draft.entry):
            raise UnavailableError("the value that was read back is not the one that was written")
        draft.version = VersionId(put.version)
        draft.entry = replace(draft.entry, created=back.created, home=Home.ALONE)

    async def _read_back(
        self, call: Call, pointer: Pointer, version: VersionId, newest: StoredSecret | None = None
    ) -> SecretBytes:
        """Return the value of a version; no request is needed if it was stored together with the pointer `newest`."""
        entry = pointer.versions[version]
        if newest is not None and newest.enabled and newest.version == version:
            found: StoredSecret | None = newest
        else:
            found = await self._vault.get_secret(call.secret_id + POINTER_SUFFIX, version)
        if found is None:
            raise await self._missing_value_error(call)
        try:
            return decode_value(_stored_value(found), entry)
        except DamagedRecordError as error:
            raise UnavailableError(f"the value of version {version} is damaged: {error}") from None

    async def _missing_value_error(self, call: Call) -> Exception:
        """Return the error for a version that the pointer (the record of versions) lists although its value is missing.

        The error is never "no such secret", because a caller might then create the secret.
        """
        if await self._vault.is_deleted(call.secret_id):
            return self._vault.deleted_error(call.secret_id)
        return UnavailableError(
            f"the pointer names versions of {call.secret_id} that the vault does not have",
            hint="If this persists, they were purged by hand: restore them from a backup of the vault. Do not delete"
            f" {call.secret_id}{POINTER_SUFFIX}, which may hold other versions.",
        )

    # --- the pointer ------------------------------------------------------------------------------------------------

    async def _read_newest_pointer(self, call: Call) -> StoredSecret | None:
        """Read the newest version of the pointer secret (the record of versions and labels); None if there is none.

        If that version is disabled, the result has an empty value.
        """
        name = call.secret_id + POINTER_SUFFIX
        off: VersionDisabledError | None = None
        try:
            found = await self._vault.get_secret(name)
        except VersionDisabledError as error:
            found, off = None, error
        if off is None and (found is None or found.content_type not in VALUE_TYPES):
            return found
        # A value that was written alone is newer than the pointer that is to name it.
        items = (await self._vault.list_versions(name)).items.values()
        pointers = [item for item in items if item.content_type not in VALUE_TYPES]
        if not pointers:
            return None
        newest = max(pointers, key=lambda item: item.created)
        if newest.enabled:
            return await self._vault.get_secret(name, newest.version)
        if newest.content_type not in WITH_VALUE_TYPES and off is not None:
            raise off
        return newest

    async def _read_decided(self, call: Call) -> tuple[StoredSecret, Proposal]:
        """Return the newest version of the pointer secret, and the proposal whose pointer is in effect.

        A proposal is a pointer (a record of versions and labels) that was written. The method waits until it is certain
        which of the recent proposals won, so that it also sees a change whose outcome was never reported.
        """
        newest = await self._read_newest_pointer(call)
        if newest is None:
            if await self._vault.is_deleted(call.secret_id + POINTER_SUFFIX):
                raise self._vault.deleted_error(call.secret_id)
            raise SecretNotFoundError("there is no such secret")
        known = self._known.get(call.secret_id)
        if known is not None and known.newest == newest.version:
            return newest, known.decided
        return newest, await self._decide_pointers(call, newest)

    async def _decide_pointers(self, call: Call, newest: StoredSecret) -> Proposal:
        """List the proposed pointers and return the one in effect; wait once for a proposal that is still undecided."""
        known = self._known.get(call.secret_id)
        if newest.enabled:
            with contextlib.suppress(ForeignRecordError):
                self._cache_proposal(self._decode_proposal(call, newest))
        start = None if known is None else known.decided
        waited = False
        while True:
            listing = await self._vault.list_versions(call.secret_id + POINTER_SUFFIX)
            if newest.version not in listing.items:
                raise UnavailableError("the vault's list of pointers lacks the newest pointer")
            if start is None:
                start = self._first_decided(call, newest, listing)
            elif start.id and start.id not in listing.items:
                if known is None:
                    raise UnavailableError(
                        "the vault's list of pointers lacks a pointer that a later pointer names as its predecessor"
                    )
                known, start = None, self._first_decided(call, newest, listing)  # it was purged, and made again
            decision = await self._decide_listed(call, start, listing)
            start = decision.last
            if decision.pending is None or (waited and start.id):
                start = await self._complete_proposal(call, start, listing)
                settled = decision.pending is None and listing.now - newest.created >= self._settle
                self._known[call.secret_id] = _Known(newest=newest.version if settled else "", decided=start)
                return start
            waited = True
            await self._wait_until_decidable(decision.pending, listing.now)

    def _first_decided(self, call: Call, newest: StoredSecret, listing: Listing) -> Proposal:
        """Return the proposed pointer that `newest` follows. It is decided: writers follow only decided ones."""
        try:
            if newest.enabled:
                pointer = self._decode_proposal(call, newest).pointer
            else:
                pointer = links_of(newest.version, newest.created, newest.tags).pointer
        except ForeignRecordError as error:
            raise ProviderConfigurationError(
                f"the secret {call.secret_id}{POINTER_SUFFIX} is not Goatherd's: {error}",
                hint="Set this secret to the value of its previous version, or choose another name.",
            ) from None
        if not pointer.parent:
            return BEGINNING
        if pointer.parent not in listing.items:
            raise UnavailableError(
                "the vault's list of pointers lacks a pointer that a later pointer names as its predecessor"
            )
        unread = Proposal.unread_proposal(pointer.parent, listing.items[pointer.parent].created, pointer.epoch - 1)
        return self._proposals.get(pointer.parent, unread)

    async def _decide_listed(self, call: Call, start: Proposal, listing: Listing) -> Decision:
        proposals = []
        for item in listing.items.values():
            if item.created < start.created or item.version == start.id or item.content_type in VALUE_TYPES:
                continue
            with contextlib.suppress(ForeignRecordError):  # it cannot win
                if item.enabled or item.version in self._proposals:
                    proposals.append(await self._read_proposal(call, item.version))
                else:
                    proposals.append(links_of(item.version, item.created, item.tags))
        decision = decide_proposals(start, proposals, now=listing.now, settle=self._settle)
        if decision.pending is None and any(p.pointer.epoch > decision.last.pointer.epoch + 1 for p in proposals):
            raise UnavailableError(
                f"a version of {call.secret_id}{POINTER_SUFFIX} that a later version names as its predecessor is"
                " missing from the vault's list, or its tags were changed"
            )
        return decision

    async def _complete_proposal(self, call: Call, proposal: Proposal, listing: Listing) -> Proposal:
        """Return a proposal with its pointer (the record of versions), which is read, or rebuilt if it is disabled."""
        if proposal.is_read:
            return proposal
        item = listing.items.get(proposal.id)
        if item is None or item.enabled:
            return await self._read_proposal(call, proposal.id)
        try:
            links = links_of(item.version, item.created, item.tags)
            parent = BEGINNING
            if before := links.pointer.parent:
                created = listing.items[before].created if before in listing.items else 0
                unread = Proposal.unread_proposal(before, created, links.pointer.epoch - 1)
                parent = await self._complete_proposal(call, self._proposals.get(before, unread), listing)
            return self._cache_proposal(
                rebuild_pointer(links, parent.pointer, item.tags, text=_is_text(item.content_type))
            )
        except ForeignRecordError as error:
            place = f"version {proposal.id} of {call.secret_id}{POINTER_SUFFIX}"
            raise UnavailableError(f"{place} is damaged: {error}") from None

    async def _read_proposal(self, call: Call, version: str) -> Proposal:
        if version in self._proposals:
            return self._proposals[version]
        try:
            stored = await self._vault.get_secret(call.secret_id + POINTER_SUFFIX, version)
        except VersionDisabledError:
            raise UnavailableError(f"the pointer {version} was disabled a moment ago") from None
        if stored is None:
            raise UnavailableError(
                f"the vault has no version {version} of the pointer, which its list or a later pointer names"
            )
        return self._cache_proposal(self._decode_proposal(call, stored))

    def _cache_proposal(self, proposal: Proposal) -> Proposal:
        while len(self._proposals) >= _REMEMBERED:
            self._proposals.pop(next(iter(self._proposals)))
        self._proposals[proposal.id] = proposal
        return proposal

    def _decode_proposal(self, call: Call, stored: StoredSecret) -> Proposal:
        try:
            pointer = decode_pointer(stored.value).with_version_id(VersionId(stored.version), stored.created)
            return Proposal(id=stored.version, created=stored.created, pointer=pointer)
        except DamagedRecordError as error:
            place = f"version {stored.version} of {call.secret_id}{POINTER_SUFFIX}"
            raise UnavailableError(f"{place} is damaged: {error}") from None

    async def _change_pointer(
        self,
        call: Call,
        change: Callable[[Pointer], Awaitable[Pointer]],
        current: Sequence[SecretBytes] = (),
        draft: _ValueDraft | None = None,
    ) -> Pointer:
        """Change the record of versions and labels: propose pointers made by `change` until one of them is decided.

        If `change` returns its argument, nothing is proposed. To save a read, the first proposal follows the pointer
        that this provider saw last. If another pointer is in effect by now, that proposal loses, and the next one
        follows the pointer in effect. If `change` raises an error for the pointer seen last, it is called again with
        the pointer in effect.

        Args:
            call: The provider call.
            change: Makes the next pointer from the one that is in effect.
            current: The value that has the label ``current`` after `change`, if the caller has it.
            draft: The value that `change` adds, if any.
        """
        known = self._known.get(call.secret_id)
        remembered = known.decided if known is not None and known.newest and call.attempt == 1 else None
        while True:
            last = remembered or (await self._read_decided(call))[1]
            with contextlib.suppress(VersionDisabledError):  # disabled by hand: this change may repair it
                await self._update_view(call, last)
            try:
                changed = await change(last.pointer)
            except (ConflictError, SecretNotFoundError, VersionDisabledError):
                if remembered is None:
                    raise
                remembered = None
                continue
            remembered = None
            if changed is last.pointer:
                return changed
            if (decided := await self._propose_pointer(call, last, changed, draft)) is not None:
                await self._update_view(call, *decided, current[0] if current else None)
                return decided[0].pointer

    async def _propose_pointer(
        self, call: Call, last: Proposal, pointer: Pointer, draft: _ValueDraft | None = None
    ) -> tuple[Proposal, float] | None:
        """Propose a pointer (a record of versions and labels) that follows `last`, together with the value of `draft`.

        Returns:
            The proposal, once it is decided, and the monotonic time before it was written; None if another proposal
            won.
        """
        proposed = replace(pointer, epoch=last.pointer.epoch + 1, parent=last.id, request=call.request)
        name, kind, stored = call.secret_id + POINTER_SUFFIX, POINTER_TYPE, encode_pointer(proposed)
        tags = tags_of(proposed)
        brings = draft if ITSELF in proposed.versions else None
        if brings is not None:
            value, is_text = encode_value(brings.value)
            kind, stored = Home.POINTER.content_type(text=is_text), f"{stored}\n{value}"
        if len(stored.encode()) > MAX_STORED:
            raise ProviderConfigurationError("the pointer has no room for so many labels")
        began = self.clock.monotonic()
        put = await self._vault.put_secret(name, stored, kind, tags)
        if brings is not None:
            brings.version = VersionId(put.version)
            brings.entry = replace(brings.entry, created=put.created)
        proposed = proposed.with_version_id(VersionId(put.version), put.created)
        pending = self._cache_proposal(Proposal(id=put.version, created=put.created, pointer=proposed))
        while True:
            # The proposals cannot be decided before that time, so an earlier listing would be useless.
            await self._wait_until_decidable(pending, self._vault.service_time())
            listing = await self._vault.list_versions(name)
            if put.version not in listing.items:
                raise UnavailableError("the vault's list of pointers lacks the pointer that was just written")
            decision = await self._decide_listed(call, last, listing)
            # Only the proposal after `last` matters here. Later calls look at the proposals that follow it.
            following = decision.chain[1] if len(decision.chain) > 1 else None
            if following is not None:
                following = await self._complete_proposal(call, following, listing)
                # If a later call finds this version to be still the newest, no other version was written in between.
                is_last = following is decision.last and decision.pending is None
                newest = put.version if is_last and following.id == put.version else ""
                self._known[call.secret_id] = _Known(newest=newest, decided=following)
                return (following, began) if following.pointer.request == call.request else None
            if decision.pending is None:
                raise UnavailableError("the vault's list of pointers lacks the pointer that was just written")
            pending = decision.pending

    # --- the view ---------------------------------------------------------------------------------------------------

    async def _read_view(
        self, call: Call, foreign: type[ProviderError] = ProviderConfigurationError
    ) -> StoredSecret | None:
        """Read the newest version of the view, the copy of the current value for other readers; None if there is none.

        Raises:
            ProviderError: A secret with the view's name exists that Goatherd did not write. The argument `foreign` is
                the class of this error.
        """
        found = await self._vault.get_secret(call.secret_id)
        if found is not None and found.content_type not in VALUE_TYPES:
            raise foreign(
                f"the secret {call.secret_id} exists in the vault and is not Goatherd's",
                hint="Choose another name, or delete that secret and purge it.",
            )
        return found

    async def _update_view(
        self,
        call: Call,
        decided: Proposal,
        since: float | None = None,
        current: SecretBytes | None = None,
    ) -> None:
        """Write the value with the label ``current`` to the view, the copy for readers without Goatherd, if it differs.

        Args:
            call: The provider call.
            decided: The proposal that is in effect; it holds the record of versions and labels.
            since: The monotonic time before the proposal was written, if this call has written it.
            current: The value with the label ``current``, if the caller has it.
        """
        while (version := decided.pointer.labels.get(CURRENT)) is not None:
            shown = self._shown.get(call.secret_id)
            if shown is not None and shown.decided in (decided.id, decided.pointer.parent):
                is_right = shown.version == version  # whatever was decided since the last look is known
            else:
                try:
                    found = await self._read_view(call)
                except VersionDisabledError:
                    found = None
                is_right = found is not None and _shows_version(found, decided.pointer, version)
            if not is_right:
                value = current or await self._read_back(call, decided.pointer, version)
                stored, is_text = encode_value(value)
                kind = TEXT_TYPE if is_text else BASE64_TYPE
                await self._vault.put_secret(call.secret_id, stored, kind, {_VERSION_TAG: str(version)})
                if since is None or self.clock.monotonic() - since > self._settle + PROMPT.total_seconds():
                    _, last = await self._read_decided(call)
                    if last.id != decided.id:
                        # Another writer has decided the next change meanwhile, and may have written the view before
                        # this request arrived. So write the view again, with that change.
                        decided, current = last, None
                        self._shown.pop(call.secret_id, None)
                        continue
            self._shown[call.secret_id] = _Shown(decided=decided.id, version=version)
            return

    async def _wait_until_decidable(self, pending: Proposal, now: int) -> None:
        seconds = pending.created + self._settle - now
        await self.clock.sleep(timedelta(seconds=max(0.1, min(seconds, self._settle))))


def _is_whole(stored: StoredSecret, entry: Entry) -> bool:
    try:
        decode_value(_stored_value(stored), entry)
    except DamagedRecordError:
        return False
    return True


def _shows_version(view: StoredSecret, pointer: Pointer, version: VersionId) -> bool:
    return view.tags.get(_VERSION_TAG) == version and _is_whole(view, pointer.versions[version])


def _stored_value(stored: StoredSecret) -> str:
    return value_after_pointer(stored.value) if stored.content_type in WITH_VALUE_TYPES else stored.value


def _holds_value(content_type: str) -> bool:
    return content_type in VALUE_TYPES or content_type in WITH_VALUE_TYPES


def _is_text(content_type: str) -> bool:
    return content_type in (TEXT_TYPE, WITH_TEXT_TYPE)


def _describe_written(call: Call, pointer: Pointer) -> SecretVersion:
    made = pointer.made_by(call.request)
    if made is None:
        raise UnavailableError("the pointer that was written does not hold what was written")
    return pointer.describe_version(made)
