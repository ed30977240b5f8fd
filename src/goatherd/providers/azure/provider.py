"""Store one of Goatherd's secrets in two secrets of an Azure key vault, because Key Vault has no compare-and-swap.

The secret ``name-pointer`` holds each value in a version of its own, and the pointers, which say where the labels are.
The secret ``name`` is the view: its newest version is a copy of the value with the label ``current``. `client` sends
the requests; `records` decides which of two writers wins.

- A change writes the value, if it brings one, and then a new pointer, which is only a proposal. It is decided when no
  other proposal can win any more (`decide_proposals`). The writer waits for that, and starts again if another writer
  won. A value that no pointer names has no label, like any other old version.
- The view is written after the decision, and names the decided pointer. `read` of the label ``current`` reads the view,
  and never waits; everything else decides from the list of pointers. If that list has already shown a later
  decision than the view names, because a writer died, `read` decides from the list, too.
- If a writer dies before it has written the view, the next change writes it first. After each write of the view, the
  writer checks that no newer pointer was decided meanwhile, and otherwise writes the view again.
- If a delayed writer copies a destroyed value to the view, `versions` lists that value as enabled again, and `destroy`
  disables the copy.
- A pointer is never disabled, so the list of the pointers tells which of all changes were made. Their tags, and those
  of a value and of the view, are part of the record.
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
    ProviderConfigurationError,
    ProviderError,
    SecretExistsError,
    SecretNotFoundError,
    UnavailableError,
    VersionDisabledError,
)
from goatherd.providers.azure.address import POINTER_SUFFIX, AzureAddress, check_name, parse_address, parse_vault
from goatherd.providers.azure.client import KeyVault, StoredSecret
from goatherd.providers.azure.records import (
    BEGINNING,
    MAX_VALUE,
    POINTER_TYPE,
    REQUEST_TAG,
    VALUE_TYPES,
    VERSION_TAG,
    Pointer,
    Proposal,
    Shown,
    decide_proposals,
    decode_pointer,
    decode_value,
    encode_pointer,
    encode_value,
    is_version_id,
    proposal_tags,
)
from goatherd.providers.base import Call, Guarantees, ReadConsistency, RetryPolicy, SecretProvider
from goatherd.providers.capabilities import Finding, Verdict, unreported_finding
from goatherd.providers.values import CURRENT, Label, SecretBytes, SecretValue, SecretVersion, VersionId, VersionState
from goatherd.providers.versioned_record import DamagedRecordError

SETTLE: Final = timedelta(seconds=3)
"""A version's time is in whole seconds, which is one; two are for clocks of the service that differ, and for the time
from when a version gets its time to when it is listed."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class _State:
    """A secret as it was read from the key vault when no proposal was pending.

    Attributes:
        chain: All decided proposals, oldest first, after `BEGINNING`.
        pointer: The pointer of the last one.
        values: The stored values by their version ids, without the values themselves.
        view: The newest version of the view, with its value; None if there is none, or if it is disabled.
    """

    chain: tuple[Proposal, ...]
    pointer: Pointer
    values: Mapping[str, StoredSecret]
    view: StoredSecret | None

    @property
    def last(self) -> Proposal:
        return self.chain[-1]

    @property
    def is_shown(self) -> bool:
        """Whether the view names the last pointer."""
        shown = None if self.view is None else Shown.from_tags(self.view.tags)
        return shown is not None and shown.pointer == self.last.id

    def made_by(self, request: str) -> list[StoredSecret]:
        """Return the stored values that a call with this request has written, those with a label first."""
        made = [item for item in self.values.values() if item.tags.get(REQUEST_TAG) == request]
        return sorted(made, key=lambda item: not self.pointer.labels_of(VersionId(item.version)))


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
        a change: takes four to five seconds.
        history: every version, until the secret is deleted.
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
        self._pointers: dict[str, tuple[str, Pointer]] = {}
        self._decided: dict[str, int] = {}  # by secret, the epoch of the last decision that was read

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
        async def change(state: _State) -> Pointer:
            if state.last is not BEGINNING:
                raise SecretExistsError("the secret exists already")
            return state.pointer.with_label(label, await self._store_value(call, state, value))

        return _describe_written(call, await self._change_pointer(call, change))

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        if isinstance(at, Label) and at == CURRENT:
            view = await self._read_view(call)
            shown = None if view is None else Shown.from_tags(view.tags)
            if view is not None and shown is not None and shown.epoch >= self._decided.get(call.secret_id, 0):
                pointer = await self._read_pointer(call, shown.pointer)
                return _describe_read(pointer, shown.version, replace(view, created=shown.created))
        state = await self._require_state(call)
        version = at if isinstance(at, VersionId) else state.pointer.labels.get(at)
        if version is None:
            raise call.missing_label_error(at)
        return _describe_read(state.pointer, version, await self._read_value(call, state, version))

    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        async def change(state: _State) -> Pointer:
            call.check_holder(label, state.pointer.labels.get(label), expected)
            return state.pointer.with_label(label, await self._store_value(call, state, value))

        return _describe_written(call, await self._change_pointer(call, change))

    async def _label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
        async def change(state: _State) -> Pointer:
            if version in state.pointer.destroyed:
                raise VersionDisabledError(f"version {version} was destroyed")
            await self._read_value(call, state, version)  # one that cannot be read gets no label
            call.check_holder(label, state.pointer.labels.get(label), expected)
            return state.pointer.with_label(label, version)

        await self._change_pointer(call, change)

    async def _unlabel(self, call: Call, label: Label, expected: VersionId) -> None:
        async def change(state: _State) -> Pointer:
            call.check_holder(label, state.pointer.labels.get(label), expected)
            return state.pointer.without_label(label)

        await self._change_pointer(call, change)

    async def _versions(self, call: Call) -> Sequence[SecretVersion]:
        state = await self._require_state(call)
        if not set(state.pointer.labels.values()) <= state.values.keys():
            raise _missing_value_error(call)
        # A value can also be read if a delayed writer has copied it to the view after it was disabled.
        readable = {*await self._list_copies(call), *(item.version for item in state.values.values() if item.enabled)}
        return [
            SecretVersion(
                id=VersionId(item.version),
                labels=state.pointer.labels_of(VersionId(item.version)),
                created_ms=item.created * 1000,
                state=VersionState.ENABLED if item.version in readable else VersionState.DISABLED,
            )
            for item in sorted(state.values.values(), key=lambda item: item.created, reverse=True)
        ]

    async def _destroy(self, call: Call, version: VersionId) -> None:
        """Disable a version, because Key Vault cannot destroy a single one.

        First, the pointer marks it as destroyed, so that no label can move to it. If the run is interrupted, the
        version is still listed as enabled, and another run can finish.
        """

        async def change(state: _State) -> Pointer:
            if version not in state.values:
                raise SecretNotFoundError(f"there is no version {version[:40]!r}")
            pointer = state.pointer.without_version(call, version)
            # Before the pointer changes, so that a role that may not disable a version changes nothing.
            for copy in (await self._list_copies(call)).get(version, ()):
                await self._vault.disable_version(call.secret_id, copy)
            return pointer

        await self._change_pointer(call, change)
        await self._vault.disable_version(call.secret_id + POINTER_SUFFIX, version)

    async def _delete(self, call: Call) -> None:
        if not await self._vault.list_versions(call.secret_id + POINTER_SUFFIX):
            error = await self._missing_secret_error(call)
            if call.attempt > 1 and not isinstance(error, SecretNotFoundError):
                return  # an earlier attempt did it, and its answer was lost
            raise error
        # The pointer last: until it is gone, no other writer can create the secret again, and it can be deleted again.
        await self._vault.delete_secret(call.secret_id)
        await self._vault.delete_secret(call.secret_id + POINTER_SUFFIX)

    # --- diagnosis --------------------------------------------------------------------------------------------------

    async def diagnose(self, secret_id: str) -> list[Finding]:
        """Check whether the view, from which servers read, holds the current value; return findings."""
        call = self._start_call("diagnose", secret_id)
        return await self._run_call(call, self._diagnose_secret)

    async def _diagnose_secret(self, call: Call) -> list[Finding]:
        view = call.secret_id
        state = await self._require_state(call)
        finding = Finding(name="view", verdict=Verdict.FINE, text=f"{view} holds the current document")
        if not state.is_shown:
            text = f"{view} does not {'exist' if state.view is None else 'hold the current document'}"
            hint = "The next change of the secret writes it, such as a label of your own."
            finding = Finding(name="view", verdict=Verdict.CAUTION, text=text, hint=hint)
        return [unreported_finding(self.scheme), finding]

    # --- values -----------------------------------------------------------------------------------------------------

    async def _store_value(self, call: Call, state: _State, value: SecretBytes) -> VersionId:
        """Write a value, unless an earlier attempt of the same call has stored it; return its version's id."""
        name, (stored, kind) = call.secret_id + POINTER_SUFFIX, encode_value(value)
        for item in state.made_by(call.request):
            if item.enabled and item.version not in state.pointer.destroyed:
                made = item.version
                break
        else:
            made = (await self._vault.put_secret(name, stored, kind, {REQUEST_TAG: call.request})).version
        try:
            back = await self._vault.get_secret(name, made)
        except VersionDisabledError:
            raise UnavailableError("the value that was just written was destroyed meanwhile") from None
        if back is None or (back.value, back.content_type) != (stored, kind):
            raise UnavailableError("the value that was read back is not the one that was written")
        return VersionId(made)

    async def _read_value(self, call: Call, state: _State, version: VersionId) -> StoredSecret:
        """Read the value of a version, or, if that was disabled, an enabled copy of it in the view."""
        found: StoredSecret | None = None
        try:
            if is_version_id(version):
                found = await self._vault.get_secret(call.secret_id + POINTER_SUFFIX, version)
        except VersionDisabledError:
            copies = (await self._list_copies(call)).get(version)
            if not copies:
                raise
            found = await self._vault.get_secret(call.secret_id, copies[0])
            if found is not None and version in state.values:
                found = replace(found, created=state.values[version].created)
        if found is not None and found.content_type in VALUE_TYPES:
            return found
        if version in state.pointer.labels.values():
            raise _missing_value_error(call)
        raise SecretNotFoundError(f"there is no version {version[:40]!r}")

    async def _list_copies(self, call: Call) -> dict[str, list[str]]:
        """List the versions of the view that can be read, by the version of which each is a copy."""
        copies: dict[str, list[str]] = {}
        for item in (await self._vault.list_versions(call.secret_id)).values():
            if item.enabled:
                copies.setdefault(item.tags.get(VERSION_TAG, ""), []).append(item.version)
        return copies

    # --- pointers ---------------------------------------------------------------------------------------------------

    async def _change_pointer(self, call: Call, change: Callable[[_State], Awaitable[Pointer]]) -> _State:
        """Propose the pointers that `change` makes until one of them is decided; return the state with it.

        Nothing is proposed if `change` returns the pointer that is in effect. The proposals of all attempts of a call
        bear the same request, so that each of them is recognized.
        """
        while True:
            state = await self._read_state(call)
            if state.last is BEGINNING and call.operation != "create":
                raise await self._missing_secret_error(call)
            with contextlib.suppress(VersionDisabledError):  # disabled by hand: this change may repair it
                await self._update_view(call, state)
            if any(each.request == call.request for each in state.chain):
                return state
            pointer = await change(state)
            if pointer == state.pointer:
                return state
            put = await self._vault.put_secret(
                call.secret_id + POINTER_SUFFIX,
                encode_pointer(pointer),
                POINTER_TYPE,
                proposal_tags(state.last, call.request),
            )
            await self._wait_until_decidable(put.created)

    async def _read_state(self, call: Call) -> _State:
        """Read which pointer is in effect; wait until that is certain.

        So it also finds a change whose outcome was never reported.
        """
        name = call.secret_id + POINTER_SUFFIX
        try:
            view = await self._read_view(call)
        except VersionDisabledError:
            view = None
        while True:
            now = self._vault.service_time()
            items = (await self._vault.list_versions(name)).values()
            pointers = [item for item in items if item.content_type == POINTER_TYPE]
            proposals = [Proposal.from_tags(item.version, item.created, item.tags) for item in pointers]
            listed = [each for each in proposals if each is not None]
            decision = decide_proposals(listed, now=now, settle=self._settle)
            if decision.pending is None:
                break
            await self._wait_until_decidable(decision.pending.created)
        last, shown = decision.last, None if view is None else Shown.from_tags(view.tags)
        if last.epoch < (shown.epoch if shown else 0) or any(each.epoch > last.epoch + 1 for each in listed):
            raise UnavailableError(
                f"a version of {name} that a later version names is missing from the vault's list, or its tags were"
                " changed"
            )
        self._decided[call.secret_id] = last.epoch
        return _State(
            chain=decision.chain,
            pointer=Pointer() if last is BEGINNING else await self._read_pointer(call, last.id),
            values={item.version: item for item in items if item.content_type in VALUE_TYPES},
            view=view,
        )

    async def _require_state(self, call: Call) -> _State:
        state = await self._read_state(call)
        if state.last is BEGINNING:
            raise await self._missing_secret_error(call)
        return state

    async def _read_pointer(self, call: Call, version: str) -> Pointer:
        known, pointer = self._pointers.get(call.secret_id, ("", Pointer()))
        if known != version:
            found = await self._vault.get_secret(call.secret_id + POINTER_SUFFIX, version)
            if found is None:
                raise UnavailableError(f"the vault has no version {version} of the pointer, which it names elsewhere")
            try:
                pointer = decode_pointer(found.value)
            except DamagedRecordError as error:
                place = f"version {version} of {call.secret_id}{POINTER_SUFFIX}"
                raise UnavailableError(f"{place} is damaged: {error}", final=True) from None
            self._pointers[call.secret_id] = version, pointer
        return pointer

    async def _wait_until_decidable(self, created: int) -> None:
        """Wait until a proposal of that time can be decided; an earlier list would be useless."""
        seconds = created + self._settle - self._vault.service_time()
        await self.clock.sleep(timedelta(seconds=max(0.1, min(seconds, self._settle))))

    async def _missing_secret_error(self, call: Call) -> ProviderError:
        if await self._vault.is_deleted(call.secret_id + POINTER_SUFFIX):
            return self._vault.deleted_error(call.secret_id)
        return SecretNotFoundError("there is no such secret")

    # --- the view ---------------------------------------------------------------------------------------------------

    async def _read_view(self, call: Call) -> StoredSecret | None:
        """Read the newest version of the view, the copy of the current value for readers; None if there is none.

        Raises:
            ProviderError: A secret with the view's name exists that Goatherd did not write.
        """
        found = await self._vault.get_secret(call.secret_id)
        if found is not None and found.content_type not in VALUE_TYPES:
            foreign = SecretExistsError if call.operation == "create" else ProviderConfigurationError
            raise foreign(
                f"the secret {call.secret_id} exists in the vault and is not Goatherd's",
                hint="Choose another name, or delete that secret and purge it.",
            )
        return found

    async def _update_view(self, call: Call, state: _State) -> None:
        """Write the value with the label ``current`` to the view, unless the view names the last pointer.

        A writer that was delayed may then have written it with an older value. So it is read again afterwards, together
        with the list of pointers, and written again if another change was decided meanwhile.
        """
        written = ""
        while (version := state.pointer.labels.get(CURRENT)) is not None and not state.is_shown:
            if written == state.last.id:
                raise UnavailableError(f"{call.secret_id} does not show the value that was just written there")
            written = state.last.id
            value = await self._read_value(call, state, version)
            shown = Shown(pointer=written, epoch=state.last.epoch, version=version, created=value.created)
            await self._vault.put_secret(call.secret_id, value.value, value.content_type, shown.tags)
            state = await self._read_state(call)


def _missing_value_error(call: Call) -> ProviderError:
    """Return the error for a version that has a label although its value is missing.

    The error is never "no such secret", because a caller might then create the secret.
    """
    return UnavailableError(
        f"the pointer names versions of {call.secret_id} that the vault does not have",
        hint="If this persists, they were purged by hand: restore them from a backup of the vault. Do not delete"
        f" {call.secret_id}{POINTER_SUFFIX}, which may hold other versions.",
    )


def _describe_read(pointer: Pointer, version: VersionId, stored: StoredSecret) -> SecretValue:
    try:
        value = decode_value(stored.value, stored.content_type)
    except DamagedRecordError as error:
        raise UnavailableError(f"the value of version {version} is damaged: {error}", final=True) from None
    described = SecretVersion(id=version, labels=pointer.labels_of(version), created_ms=stored.created * 1000)
    return SecretValue(version=described, value=value)


def _describe_written(call: Call, state: _State) -> SecretVersion:
    made = state.made_by(call.request)
    if not made:
        raise UnavailableError("the vault's list lacks the version that was written")
    version = VersionId(made[0].version)
    return SecretVersion(id=version, labels=state.pointer.labels_of(version), created_ms=made[0].created * 1000)
