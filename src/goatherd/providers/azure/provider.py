"""Secrets in Azure Key Vault: versions in one secret, what counts of them in a second, the current value in a third.

What it is: the algebra over three secrets. What it is not: HTTP and credentials (`api`), or the rule by which one of
two writers wins (`records`). The secret ``name`` holds the values, one per version. The secret ``name-pointer`` holds
the list of versions and the labels; each change writes it anew. The newest version of ``name-current``, the view, is
the value with the label ``current``, for readers that know nothing of the other two. Rules:

- A value is written first, and nobody looks for it. The pointer is the only commit point. A crash before it leaves a
  value that no pointer names; `versions` lists it, and `destroy` switches it off.
- A pointer that is written is a proposal. The writer waits until it is decided (`records.decide`), then looks who won,
  and decides anew where it was not him. So does a reader, who never takes what is not decided.
- The view is written after the decision, and never shows what is not decided. Before a change, a writer makes sure
  that the view shows what counts; after it has written the view, that nothing newer was decided meanwhile.
- The newest pointer is asked for with one request. Only when it is one that was not seen yet are the proposals listed.
- Each request costs time and counts against the vault's limits, so a change makes no request whose answer is known
  (docs/adr, "What a change in Azure costs").
- Tags are for people. The one that names a request saves writing a value twice; lost, it costs one unused version.
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
    SecretExistsError,
    SecretNotFoundError,
    SecretTooLargeError,
    UnavailableError,
    VersionDisabledError,
)
from goatherd.providers.azure.address import (
    POINTER_SUFFIX,
    VIEW_SUFFIX,
    AzureAddress,
    check_name,
    from_options,
    parse_uri,
)
from goatherd.providers.azure.api import KeyVault, Listing, Stored
from goatherd.providers.azure.records import (
    BASE64_TYPE,
    BEGINNING,
    HISTORY,
    MAX_STORED,
    MAX_VALUE,
    POINTER_TYPE,
    TEXT_TYPE,
    DamagedRecordError,
    Decision,
    Entry,
    ForeignRecordError,
    Pointer,
    Proposal,
    decide,
    decode_leftover,
    decode_pointer,
    decode_value,
    digest_of,
    encode_pointer,
    encode_value,
    is_version_id,
    people_see,
)
from goatherd.providers.base import (
    CURRENT,
    Call,
    Guarantees,
    Label,
    ReadConsistency,
    RetryPolicy,
    SecretBytes,
    SecretProvider,
    SecretValue,
    SecretVersion,
    VersionId,
    VersionState,
)
from goatherd.providers.diagnosable import Finding, Verdict

SETTLE: Final = timedelta(seconds=3)
"""A version's time is in whole seconds, which is one; two are for clocks of the service that differ, and for the time
from when a version gets its time to when it is listed."""

_REMEMBERED: Final = 64
_REQUEST_TAG: Final = "goatherd-request"
_NUMBER_TAG: Final = "goatherd-number"
_VERSION_TAG: Final = "goatherd-version"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What was found out about one secret: it holds as long as `newest` is the newest proposal.

    Attributes:
        newest: The version id of the newest proposal when nothing was pending; empty while something was.
        decided: What counted then.
    """

    newest: str
    decided: Proposal


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """What the view was seen to show.

    Attributes:
        decided: The id of the decided proposal that counted then.
        version: The version whose value the view showed, which had the label ``current``.
    """

    decided: str
    version: VersionId


class AzureSecretProvider(SecretProvider):
    """Keep secrets in Azure Key Vault.

    Address: ``azure://vault-name/secret-name``. Options in the query: ``suffix=vault.azure.cn`` (another cloud),
        ``endpoint=https://…`` (a host of your own before the vault; then mostly with ``challenge=unchecked``),
        ``identity`` (the client id of a user-assigned managed identity), ``ca`` (a file of certificates).
    Credentials: Azure's default chain: the environment, workload identity, managed identity, ``az login``.
    Permissions: ``goatherd policy azure --role server`` (or rotator, admin) prints the role assignments.
    Guarantees: compare-and-swap by best effort. Key Vault has none; of two writers the earlier wins, as long as the
        service lists a version within two seconds of its time, differing clocks included. A change takes four
        seconds. At least 40 versions without a label are kept. `destroy` switches a version off. A deleted secret can
        be recovered, and keeps its name, until it is purged.
    """

    scheme = "azure"
    confirms_labels = False

    def __init__(
        self,
        address: AzureAddress,
        *,
        timeout: timedelta = timedelta(seconds=20),
        retry: RetryPolicy | None = None,
        clock: Clock | None = None,
        credential: AsyncTokenCredential | None = None,
        settle: timedelta = SETTLE,
    ) -> None:
        super().__init__(timeout=timeout, retry=retry, clock=clock)
        self.address = address
        self._credential = credential
        self._settle = math.ceil(settle.total_seconds())
        self._vault: KeyVault | None = None
        self._known: dict[str, _Known] = {}
        self._proposals: dict[str, Proposal] = {}
        self._shown: dict[str, _Shown] = {}

    @classmethod
    def from_uri(cls, uri: str) -> tuple[Self, str]:
        address, secret_id = parse_uri(uri)
        return cls(address), secret_id

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> tuple[Self, str]:
        address, secret_id = from_options(config)
        return cls(address), secret_id

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
        vault = KeyVault(self.address, self.timeout, self.clock, self._credential)
        await vault.open()
        self._vault = vault

    async def _close(self) -> None:
        vault, self._vault = self._vault, None
        if vault is not None:
            await vault.close()

    # --- the algebra ------------------------------------------------------------------------------------------------

    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        vault = self._opened(call)
        newest = await self._newest(call, vault)
        if newest is None:
            # The view is written last, when it is too late to refuse; the other two names refuse by themselves.
            if await self._read_view(call, vault) is None and await vault.is_deleted(
                call, call.secret_id + VIEW_SUFFIX
            ):
                raise vault.deleted(call)
            version, entry = await self._value(call, vault, value, BEGINNING.pointer)
            pointer = BEGINNING.pointer.written(label, version, entry)
            self._shown[call.secret_id] = _Shown(decided=BEGINNING.id, version=VersionId(""))
            if (made := await self._propose(call, vault, BEGINNING, pointer)) is not None:
                await self._update_view(call, vault, made, value)
                return made.pointer.describe(version)
        else:
            last = (await self._look(call, vault, newest)).last
            if (found := last.pointer.made_by(call.request)) is not None:
                await self._update_view(call, vault, last)
                return last.pointer.describe(found)
        raise call.error(SecretExistsError, "the secret exists already")

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        vault = self._opened(call)
        pointer = (await self._decided(call, vault)).pointer
        if isinstance(at, VersionId) and (at not in pointer.versions or pointer.versions[at].disabled):
            return await self._read_leftover(call, vault, pointer, at)
        version = pointer.find(call, at)
        return SecretValue(
            version=pointer.describe(version), value=await self._read_back(call, vault, pointer, version)
        )

    async def _read_leftover(self, call: Call, vault: KeyVault, pointer: Pointer, version: VersionId) -> SecretValue:
        """Read a value that counts no more, or not yet: what an interrupted write or destruction left."""
        found = await vault.get(call, call.secret_id, version) if is_version_id(version) else None
        if found is None or found.content_type not in (TEXT_TYPE, BASE64_TYPE):
            pointer.find(call, version)
            raise call.error(SecretNotFoundError, f"there is no version {version[:40]!r}")
        try:
            value = decode_leftover(found.value, text=found.content_type == TEXT_TYPE)
        except DamagedRecordError as error:
            raise call.error(UnavailableError, f"the value of version {version} is damaged: {error}") from None
        return SecretValue(
            version=SecretVersion(id=version, created_ms=found.created * 1000, is_leftover=True), value=value
        )

    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        vault = self._opened(call)
        written: list[tuple[VersionId, Entry]] = []

        async def change(pointer: Pointer) -> Pointer:
            if pointer.made_by(call.request) is not None:
                return pointer
            pointer.compare(call, label, expected)
            if written and written[0][0] in pointer.versions:
                written.clear()  # it was switched off meanwhile, as a value that no pointer named
            if not written:
                written.append(await self._value(call, vault, value, pointer))
            return pointer.written(label, *written[0])

        pointer = await self._change(call, vault, change, [value] if label == CURRENT else ())
        made = pointer.made_by(call.request)
        if made is None:
            raise call.error(UnavailableError, "the pointer that was written does not hold what was written")
        return pointer.describe(made)

    async def _label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
        vault, values = self._opened(call), list[SecretBytes]()

        async def change(pointer: Pointer) -> Pointer:
            if call.attempt > 1 and pointer.labels.get(label) == version:
                return pointer  # an earlier attempt moved it, and may not have come as far as the view
            moved = pointer.labelled(call, label, version, expected)
            # What is switched off or damaged gets no label.
            values[:] = [await self._read_back(call, vault, pointer, version)]
            return moved if moved.labels != pointer.labels else pointer

        await self._change(call, vault, change, values if label == CURRENT else ())

    async def _unlabel(self, call: Call, label: Label, expected: VersionId) -> None:
        async def change(pointer: Pointer) -> Pointer:
            return pointer.unlabelled(call, label, expected)

        await self._change(call, self._opened(call), change)

    async def _versions(self, call: Call) -> Sequence[SecretVersion]:
        vault = self._opened(call)
        pointer = (await self._decided(call, vault)).pointer
        items = (await vault.listing(call, call.secret_id)).items
        if not items:
            raise await self._lost(call, vault)
        numbered = [(pointer.versions[known.id].number, known) for known in pointer.newest_first()]
        for item in items.values():
            if item.version not in pointer.versions and item.content_type in (TEXT_TYPE, BASE64_TYPE):
                # Left by a writer that lost or died, or older than what the pointer remembers.
                number = item.tags.get(_NUMBER_TAG, "")
                known = SecretVersion(id=VersionId(item.version), created_ms=item.created * 1000, is_leftover=True)
                numbered.append((int(number) if number.isdecimal() and len(number) < 10 else 0, known))
        numbered.sort(key=lambda each: (each[0], each[1].created_ms), reverse=True)
        # The vault's own word counts: a value whose destruction was interrupted can still be read.
        seen = []
        for _, known in numbered:
            if known.id in items and items[known.id].enabled:
                is_leftover = known.is_leftover or known.state is VersionState.DISABLED
                known = replace(known, state=VersionState.ENABLED, is_leftover=is_leftover)
            elif known.id in items:
                known = replace(known, state=VersionState.DISABLED)
            seen.append(known)
        return seen

    async def _destroy(self, call: Call, version: VersionId) -> None:
        """Switch the version off: first in the pointer, so that no label can move there, then in Key Vault.

        What the view showed earlier is switched off before, so that the value goes last: until then it is listed.
        """
        vault = self._opened(call)

        async def change(pointer: Pointer) -> Pointer:
            known = await self._with_leftover(call, vault, pointer, version)
            off = known.disabled(call, version)
            await self._disable_earlier_views(call, vault)
            if off is not pointer:
                # Who may not do the last step is told before the pointer changes, by a change that changes nothing.
                kind = TEXT_TYPE if known.versions[version].text else BASE64_TYPE
                await vault.update(call, call.secret_id, version, content_type=kind)
            return off

        await self._change(call, vault, change)
        await vault.update(call, call.secret_id, version, enabled=False)

    async def _with_leftover(self, call: Call, vault: KeyVault, pointer: Pointer, version: VersionId) -> Pointer:
        if version in pointer.versions or not is_version_id(version):
            return pointer
        item = (await vault.listing(call, call.secret_id)).items.get(version)
        if item is None or item.content_type not in (TEXT_TYPE, BASE64_TYPE):
            return pointer
        return pointer.with_leftover(version, created=item.created, text=item.content_type == TEXT_TYPE)

    async def _disable_earlier_views(self, call: Call, vault: KeyVault) -> None:
        """Switch off what the view showed before: all of its versions but the newest."""
        name = call.secret_id + VIEW_SUFFIX
        items = (await vault.listing(call, name)).items
        if sum(item.enabled for item in items.values()) > 1:
            newest = await self._read_view(call, vault)
            for item in items.values():
                if item.enabled and newest is not None and item.version != newest.version:
                    await vault.update(call, name, item.version, enabled=False)

    async def _delete(self, call: Call) -> None:
        vault = self._opened(call)
        if await self._newest(call, vault) is None:
            if not await vault.is_deleted(call, call.secret_id + POINTER_SUFFIX):
                raise call.error(SecretNotFoundError, "there is no such secret")
            if call.attempt > 1:
                return  # an earlier attempt did it, and its answer was lost
            raise vault.deleted(call)
        # The values first: while the pointer stands, nobody can make the secret again, and it can be deleted again.
        for suffix in ("", VIEW_SUFFIX, POINTER_SUFFIX):
            await vault.delete(call, call.secret_id + suffix)
        self._known.pop(call.secret_id, None)
        self._shown.pop(call.secret_id, None)

    # --- diagnosis --------------------------------------------------------------------------------------------------

    async def diagnose(self, secret_id: str) -> list[Finding]:
        """Return whether the view holds the current document. See `diagnosable`."""
        call = self._start("diagnose", secret_id)
        return await self._run(call, self._diagnosed)

    async def _diagnosed(self, call: Call) -> list[Finding]:
        text = "may read; Key Vault does not say what else the credentials may do"
        hint = f"What rotating needs: `goatherd policy {self.scheme} --role rotator`."
        first = Finding(name="rights", verdict=Verdict.NOT_CHECKED, text=text, hint=hint)
        vault, view = self._opened(call), call.secret_id + VIEW_SUFFIX
        pointer = (await self._decided(call, vault)).pointer
        version = pointer.labels.get(CURRENT)
        try:
            found = await self._read_view(call, vault)
        except ProviderAccessDeniedError:
            text = f"{view} may not be read"
            hint = "`goatherd policy azure` prints the roles for it. Only readers without Goatherd need it."
            return [first, Finding(name="view", verdict=Verdict.NOT_CHECKED, text=text, hint=hint)]
        if version is not None and found is not None and _is_whole(found, pointer.versions[version]):
            text = f"{view} holds the current document"
            return [first, Finding(name="view", verdict=Verdict.FINE, text=text)]
        text = f"{view} does not {'exist' if found is None else 'hold the current document'}"
        hint = "Readers without Goatherd use it. The next change of the secret writes it, such as a label of your own."
        return [first, Finding(name="view", verdict=Verdict.CAUTION, text=text, hint=hint)]

    # --- values -----------------------------------------------------------------------------------------------------

    async def _value(
        self, call: Call, vault: KeyVault, value: SecretBytes, pointer: Pointer
    ) -> tuple[VersionId, Entry]:
        """Write a value that nobody looks for yet, or find the one that an earlier attempt wrote."""
        stored, is_text = encode_value(value)
        if len(stored.encode()) > MAX_STORED:
            raise call.error(SecretTooLargeError, f"the value takes {len(stored)} bytes, the vault {MAX_STORED}")
        entry = Entry(number=0, created=0, request=call.request, digest=digest_of(value), text=is_text)
        if call.attempt > 1 or not pointer.versions:
            items = (await vault.listing(call, call.secret_id)).items
            if not pointer.versions and any("by=goatherd" not in item.content_type for item in items.values()):
                raise call.error(
                    SecretExistsError,
                    f"the secret {call.secret_id} exists in the vault and is not Goatherd's",
                    hint="Choose another name, or delete that secret and purge it.",
                )
            for item in items.values():
                if item.tags.get(_REQUEST_TAG) == call.request and item.version not in pointer.versions:
                    found = replace(entry, created=item.created)
                    if await self._fits(call, vault, item.version, found):
                        return VersionId(item.version), found
        number = max((known.number for known in pointer.versions.values()), default=0) + 1
        version = (
            await vault.put(
                call,
                call.secret_id,
                stored,
                TEXT_TYPE if is_text else BASE64_TYPE,
                {_NUMBER_TAG: str(number), _REQUEST_TAG: call.request},
            )
        ).version
        back = await vault.get(call, call.secret_id, version)
        if back is None or not _is_whole(back, entry):
            raise call.error(UnavailableError, "the value does not read back as it was written")
        return VersionId(version), replace(entry, created=back.created)

    async def _fits(self, call: Call, vault: KeyVault, version: str, entry: Entry) -> bool:
        found = await vault.get(call, call.secret_id, version)
        return found is not None and _is_whole(found, entry)

    async def _read_back(self, call: Call, vault: KeyVault, pointer: Pointer, version: VersionId) -> SecretBytes:
        found = await vault.get(call, call.secret_id, version)
        if found is None:
            raise await self._lost(call, vault)
        try:
            return decode_value(found.value, pointer.versions[version])
        except DamagedRecordError as error:
            raise call.error(UnavailableError, f"the value of version {version} is damaged: {error}") from None

    async def _lost(self, call: Call, vault: KeyVault) -> Exception:
        """Return the error for a value that is listed, but not there. Never "no such secret"."""
        if await vault.is_deleted(call, call.secret_id):
            return vault.deleted(call)
        return call.error(
            UnavailableError,
            f"the pointer names versions of {call.secret_id} that the vault does not have",
            hint=f"If it stays so, they were purged by hand: delete {call.secret_id}{POINTER_SUFFIX} and purge it too.",
        )

    # --- the pointer ------------------------------------------------------------------------------------------------

    async def _newest(self, call: Call, vault: KeyVault) -> Stored | None:
        return await vault.get(call, call.secret_id + POINTER_SUFFIX)

    async def _decided(self, call: Call, vault: KeyVault) -> Proposal:
        """Return the pointer that counts.

        What was written just before is waited for, so that a change whose outcome nobody was told is seen too.
        """
        newest = await self._newest(call, vault)
        if newest is None:
            if await vault.is_deleted(call, call.secret_id + POINTER_SUFFIX):
                raise vault.deleted(call)
            raise call.error(SecretNotFoundError, "there is no such secret")
        known = self._known.get(call.secret_id)
        if known is not None and known.newest == newest.version:
            return known.decided
        return (await self._look(call, vault, newest)).last

    async def _look(self, call: Call, vault: KeyVault, newest: Stored) -> Decision:
        """List the proposals and decide. Wait for what was pending at first, but not for what follows that."""
        known = self._known.get(call.secret_id)
        with contextlib.suppress(ForeignRecordError):
            self._remember(self._decoded(call, newest))
        start = await self._root(call, vault, newest) if known is None else known.decided
        waited = False
        while True:
            listing = await vault.listing(call, call.secret_id + POINTER_SUFFIX)
            if newest.version not in listing.items:
                raise call.error(UnavailableError, "the vault's list of pointers lacks the newest one")
            if start.id and start.id not in listing.items:
                if known is None:
                    raise call.error(UnavailableError, "the vault's list of pointers lacks one that others follow")
                known, start = None, await self._root(call, vault, newest)  # it was purged, and made again
                continue
            decision = await self._decision(call, vault, start, listing)
            start = decision.last
            if decision.pending is None or (waited and start.id):
                settled = decision.pending is None and listing.now - newest.created >= self._settle
                self._known[call.secret_id] = _Known(newest=newest.version if settled else "", decided=start)
                return decision
            waited = True
            await self._wait_until_decidable(decision.pending, listing.now)

    async def _root(self, call: Call, vault: KeyVault, newest: Stored) -> Proposal:
        """Return a decided pointer to begin with: who writes one follows only what is decided."""
        try:
            parent = self._decoded(call, newest).pointer.parent
            return await self._proposal(call, vault, parent) if parent else BEGINNING
        except ForeignRecordError as error:
            raise call.error(
                ProviderConfigurationError,
                f"the secret {call.secret_id}{POINTER_SUFFIX} is not Goatherd's: {error}",
                hint="Set it to the value of the version before, or choose another name.",
            ) from None

    async def _decision(self, call: Call, vault: KeyVault, start: Proposal, listing: Listing) -> Decision:
        proposals = []
        for item in listing.items.values():
            if item.created >= start.created and item.version != start.id:
                with contextlib.suppress(ForeignRecordError):  # it cannot win
                    proposals.append(await self._proposal(call, vault, item.version))
        return decide(start, proposals, now=listing.now, settle=self._settle)

    async def _proposal(self, call: Call, vault: KeyVault, version: str) -> Proposal:
        if version in self._proposals:
            return self._proposals[version]
        stored = await vault.get(call, call.secret_id + POINTER_SUFFIX, version)
        if stored is None:
            raise call.error(UnavailableError, "a pointer that is named is not there")
        return self._remember(self._decoded(call, stored))

    def _remember(self, proposal: Proposal) -> Proposal:
        while len(self._proposals) >= _REMEMBERED:
            self._proposals.pop(next(iter(self._proposals)))
        self._proposals[proposal.id] = proposal
        return proposal

    def _decoded(self, call: Call, stored: Stored) -> Proposal:
        try:
            return Proposal(id=stored.version, created=stored.created, pointer=decode_pointer(stored.value))
        except DamagedRecordError as error:
            place = f"version {stored.version} of {call.secret_id}{POINTER_SUFFIX}"
            raise call.error(UnavailableError, f"{place} is damaged: {error}") from None

    async def _change(
        self,
        call: Call,
        vault: KeyVault,
        change: Callable[[Pointer], Awaitable[Pointer]],
        current: Sequence[SecretBytes] = (),
    ) -> Pointer:
        """Propose what `change` makes of the pointer, until it is decided; `change` returns it as it is to end that.

        The first proposal follows what this provider knows, without asking whether that still counts: a proposal that
        follows anything else is never decided. What cannot be done is said only after a look.

        Args:
            call: The call.
            vault: The vault.
            change: Makes the next pointer.
            current: The value that the label ``current`` leads to after `change`, where the caller has it.
        """
        known = self._known.get(call.secret_id)
        remembered = known.decided if known is not None and known.newest and call.attempt == 1 else None
        while True:
            last = remembered or await self._decided(call, vault)
            with contextlib.suppress(VersionDisabledError):  # switched off by hand: this change may be what helps
                await self._update_view(call, vault, last)
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
            if (decided := await self._propose(call, vault, last, changed)) is not None:
                await self._update_view(call, vault, decided, current[0] if current else None)
                return decided.pointer

    async def _propose(self, call: Call, vault: KeyVault, last: Proposal, pointer: Pointer) -> Proposal | None:
        """Write a pointer that follows `last`; return it once it is decided, or None when another one was."""
        proposed = replace(pointer, epoch=last.pointer.epoch + 1, parent=last.id, request=call.request)
        stored = encode_pointer(proposed)
        if len(stored) > MAX_STORED:
            raise call.error(ProviderConfigurationError, "there are more labels than the pointer has room for")
        name = call.secret_id + POINTER_SUFFIX
        put = await vault.put(call, name, stored, POINTER_TYPE, people_see(proposed))
        pending = self._remember(Proposal(id=put.version, created=put.created, pointer=proposed))
        while True:
            # Nothing can be decided before that, so there is no listing that could be of use.
            await self._wait_until_decidable(pending, vault.now(call))
            listing = await vault.listing(call, name)
            if put.version not in listing.items:
                raise call.error(UnavailableError, "the vault's list of pointers lacks the one that was just written")
            decision = await self._decision(call, vault, last, listing)
            # The epoch after `last` is all that matters; what others may have built on it is looked at later.
            following = decision.chain[1] if len(decision.chain) > 1 else None
            if following is not None:
                # If it is asked for as the newest one later and still is, nothing can have come between.
                is_last = following is decision.last and decision.pending is None
                newest = put.version if is_last and following.id == put.version else ""
                self._known[call.secret_id] = _Known(newest=newest, decided=following)
                return following if following.pointer.request == call.request else None
            if decision.pending is None:
                raise call.error(UnavailableError, "the vault's list of pointers lacks the one that was just written")
            pending = decision.pending

    # --- the view ---------------------------------------------------------------------------------------------------

    async def _read_view(self, call: Call, vault: KeyVault) -> Stored | None:
        """Return the newest version of the view; None where there is none.

        Raises:
            ProviderConfigurationError: A secret of that name exists that Goatherd did not write.
        """
        found = await vault.get(call, call.secret_id + VIEW_SUFFIX)
        if found is not None and found.content_type not in (TEXT_TYPE, BASE64_TYPE):
            raise call.error(
                ProviderConfigurationError,
                f"the secret {call.secret_id}{VIEW_SUFFIX} exists in the vault and is not Goatherd's",
                hint="Choose another name, or delete that secret and purge it.",
            )
        return found

    async def _update_view(
        self, call: Call, vault: KeyVault, decided: Proposal, current: SecretBytes | None = None
    ) -> None:
        """Make sure that the newest version of the view is the value that the label ``current`` leads to.

        Args:
            call: The call.
            vault: The vault.
            decided: The last decided proposal.
            current: The value, where the caller has it.
        """
        while (version := decided.pointer.labels.get(CURRENT)) is not None:
            shown = self._shown.get(call.secret_id)
            if shown is not None and shown.decided in (decided.id, decided.pointer.parent):
                is_right = shown.version == version  # whatever was decided since the last look is known
            else:
                found = await self._read_view(call, vault)
                is_right = found is not None and _is_whole(found, decided.pointer.versions[version])
            if not is_right:
                value = current or await self._read_back(call, vault, decided.pointer, version)
                stored, is_text = encode_value(value)
                kind = TEXT_TYPE if is_text else BASE64_TYPE
                await vault.put(call, call.secret_id + VIEW_SUFFIX, stored, kind, {_VERSION_TAG: str(version)})
                newest = await self._newest(call, vault)
                if newest is None or newest.version != decided.id:
                    # Another writer may have decided the next change and written the view before this request arrived.
                    last = await self._decided(call, vault)
                    if last.id != decided.id:
                        decided, current = last, None
                        self._shown.pop(call.secret_id, None)
                        continue
            self._shown[call.secret_id] = _Shown(decided=decided.id, version=version)
            return

    async def _wait_until_decidable(self, pending: Proposal, now: int) -> None:
        seconds = pending.created + self._settle - now
        await self.clock.sleep(timedelta(seconds=max(0.1, min(seconds, self._settle))))

    def _opened(self, call: Call) -> KeyVault:
        if self._vault is None:
            raise call.error(ProviderConfigurationError, "the provider is not open", hint="Use it in `async with`.")
        return self._vault


def _is_whole(stored: Stored, entry: Entry) -> bool:
    try:
        decode_value(stored.value, entry)
    except DamagedRecordError:
        return False
    return True
