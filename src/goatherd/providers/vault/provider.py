"""Store a secret in two entries of a Vault or OpenBao key/value engine, version 2.

The entry ``path`` holds the values, one per version. The entry ``path-pointer`` holds the pointer, a record with the
valid list of versions and labels (`goatherd.providers.versioned_record.VersionedRecord`) and, for readers that do not
know the list, the current value. Each change replaces the pointer as a whole, with check-and-set. `client` sends the
requests; `auth` logs in.

- A change writes the value first, and then replaces the pointer, which is the only commit point. A crash between the
  two writes leaves a value that the pointer does not name: `versions` lists it from the server's metadata, `destroy`
  removes it, and later writes displace it.
- Older versions of the pointer hold values that were current. Destroying a value destroys those copies first and the
  value last, so `versions` lists the value as long as the server has any copy. `versions` also lists a value that the
  server has dropped from ``path`` but still has in an older pointer.
- Values are written with check-and-set, too. So no other writer can interfere between a write and the check that the
  write does not make the server drop a labelled version.
- Custom metadata is not used, because Vault writes it without compare-and-swap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from types import MappingProxyType
from typing import Final, Self

import httpx2

from goatherd.clock import Clock
from goatherd.errors import (
    ConfigurationError,
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    SecretExistsError,
    SecretNotFoundError,
    UnavailableError,
    VersionDisabledError,
)
from goatherd.providers.base import Call, Guarantees, ReadConsistency, RetryPolicy, SecretProvider
from goatherd.providers.capabilities import Finding, Verdict, rights_finding
from goatherd.providers.values import CURRENT, Label, SecretBytes, SecretValue, SecretVersion, VersionId, VersionState
from goatherd.providers.vault.address import VaultAddress, parse_address
from goatherd.providers.vault.client import Found, Gone, Metadata, VaultClient
from goatherd.providers.vault.permissions import MAX_VERSIONS, POINTER_SUFFIX
from goatherd.providers.vault.records import (
    StoredPointer,
    StoredValue,
    decode_pointer,
    decode_value,
    encode_pointer,
    encode_value,
)
from goatherd.providers.versioned_record import (
    DamagedRecordError,
    ForeignRecordError,
    RecordedVersion,
    VersionedRecord,
    entry_for,
    parse_number,
)

LEAST_VERSIONS: Final = 50
HISTORY: Final = 24
"""Of the versions that are kept at least, as many may be values of writers who lost a race, one a round of two."""

_LOOK_BACK: Final = 8
_OLD_POINTERS: Final = 16
"""So many are read to find values that the server has dropped; more than ten are there only where a mount says so. The
oldest are, and once one of these values is destroyed, all of them are."""
_WRITERS: Final = "other writers keep changing the secret"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pointer:
    """The pointer entry (the record of versions and labels) as read from Vault, and its version for check-and-set."""

    stored: StoredPointer
    version: int

    @property
    def ledger(self) -> VersionedRecord:
        return self.stored.ledger


class VaultSecretProvider(SecretProvider):
    """Store secrets in HashiCorp Vault or OpenBao.

    Address: ``vault://host:port/mount/path``, ``https`` on port 8200; ``vault:///mount/path`` takes `VAULT_ADDR`.
        Options in the query: ``tls=off``, ``ca``, ``cert``, ``key``, ``namespace``, ``mount`` (if its name has a
        slash), ``auth`` (token, approle, kubernetes), ``auth-mount``, ``role``, ``role-id``, ``secret-id-file``,
        ``token-file``, ``reads``. `VAULT_NAMESPACE`, `VAULT_CACERT`, `VAULT_CAPATH`, `VAULT_CLIENT_CERT` and
        `VAULT_CLIENT_KEY` provide the options that the URI does not name; the same variables with ``BAO_`` are read as
        well.
    Credentials: a token in `VAULT_TOKEN`, ``~/.vault-token`` or a file; AppRole with `VAULT_ROLE_ID` and
        `VAULT_SECRET_ID` or a file; or a pod's service account. Tokens are renewed, or replaced by a new login.
    Permissions: ``goatherd policy vault --role server`` (or rotator, admin) prints them.
    Guarantees:
        compare-and-swap: the engine's check-and-set.
        reads: strong with ``reads=active``, otherwise eventual, because standby nodes may lag. Set ``reads=active`` if
            there is only one server, or if every request reaches the active node.
        history: at least 50 versions, and all labelled ones: a write after which the server would delete a labelled
            version is refused.
        destroying: immediate and permanent.
        size: 64 KiB for a value.
    """

    scheme = "vault"
    credential_variables = (
        "VAULT_*",
        "BAO_*",
    )
    _client: VaultClient  # made by `_open`

    def __init__(
        self,
        address: VaultAddress,
        *,
        timeout: timedelta = timedelta(seconds=10),
        retry: RetryPolicy | None = None,
        clock: Clock | None = None,
        environment: Mapping[str, str] | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(timeout=timeout, retry=retry, clock=clock)
        self.address = address
        self._environment = environment
        self._transport = transport

    @classmethod
    def from_uri(cls, uri: str | Mapping[str, object]) -> tuple[Self, str]:
        address, secret_id = parse_address(cls.scheme, uri)
        return cls(address), secret_id

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> tuple[Self, str]:
        return cls.from_uri(config)

    @property
    def guarantees(self) -> Guarantees:
        consistency = ReadConsistency.STRONG if self.address.reads_active else ReadConsistency.EVENTUAL
        return Guarantees(cas=True, read_consistency=consistency, history=HISTORY, custom_labels=True)

    def check_secret_id(self, secret_id: str) -> None:
        super().check_secret_id(secret_id)
        if secret_id.endswith(POINTER_SUFFIX):
            raise ConfigurationError(
                f"the {self.scheme} store reserves names that end in {POINTER_SUFFIX!r} for its own use"
            )

    async def _open(self) -> None:
        client = VaultClient(
            self.address,
            # Half the deadline, so that a connection that died silently leaves time for one more attempt.
            timeout=self.timeout.total_seconds() / 2,
            clock=self.clock,
            environment=self._environment,
            transport=self._transport,
            store_clock=self.store_clock,
        )
        client.open()
        self._client = client

    async def _close(self) -> None:
        await self._client.close()

    # --- diagnosis --------------------------------------------------------------------------------------------------

    async def diagnose(self, secret_id: str) -> list[Finding]:
        """Check what the token allows and whether Vault keeps enough versions of a secret, and return the findings."""
        call = self._start_call("diagnose", secret_id)
        return await self._run_call(call, self._diagnose_secret)

    async def _diagnose_secret(self, call: Call) -> list[Finding]:
        path, ledger = call.secret_id, (await self._require_pointer(call)).ledger
        needed = (("update", "data", path + POINTER_SUFFIX), ("update", "data", path), ("read", "metadata", path))
        held = [await self._client.has_capability(*one) for one in needed]
        if None in held:
            text = "the server does not say what the token may do"
            first = Finding(
                name="rights", verdict=Verdict.NOT_CHECKED, text=text, hint="Give the token the policy `default`."
            )
        else:
            may_destroy = await self._client.has_capability("update", "destroy", path)
            first = rights_finding(self.scheme, may_write=all(held), may_destroy=may_destroy)
            if held[0] and not all(held):  # who may replace the pointer may change the identity
                text = "the token may write, but lacks other permissions that a rotation needs"
                hint = f"`goatherd policy {self.scheme} --role rotator` prints all that is needed."
                first = Finding(name="rights", verdict=Verdict.CAUTION, text=text, hint=hint, may_write=True)
        try:
            known = await self._client.read_metadata(path)
        except ProviderAccessDeniedError:
            text = "a token that may only read does not see how many versions the server keeps"
            return [first, Finding(name="history", verdict=Verdict.NOT_CHECKED, text=text)]
        oldest = min(ledger.labels.values(), default=known.current)
        by_hand = f"vault kv metadata put -mount={self.address.mount} -max-versions={MAX_VERSIONS} {path}"
        keeps, span = known.max_versions, known.current + 1 - oldest + 1
        if span > MAX_VERSIONS:
            text = f"the next write is refused, because the server would delete version {oldest}, which has a label"
            hint = "Move that label to a newer version."
            return [first, Finding(name="history", verdict=Verdict.WRONG, text=text, hint=hint)]
        text = f"the server keeps {keeps or 'ten'} versions, the labels need {span}"
        if keeps < LEAST_VERSIONS:
            return [first, Finding(name="history", verdict=Verdict.CAUTION, text=text, hint=by_hand)]
        return [first, Finding(name="history", verdict=Verdict.FINE, text=text)]

    # --- the algebra ------------------------------------------------------------------------------------------------

    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        engine = await self._client.engine_version()
        if engine not in (None, "kv 2"):
            raise ProviderConfigurationError(
                f"what is mounted at {self.address.mount} is {engine}, not a key/value engine of version 2",
                hint=f"`vault kv enable-versioning {self.address.mount}` upgrades an engine of version 1.",
            )
        written: tuple[int, RecordedVersion] | None = None
        while True:
            pointer = await self._read_pointer(call)
            if pointer is not None:
                if (made := pointer.ledger.made_by(call.request)) is not None:
                    return pointer.ledger.describe_version(made)
                raise SecretExistsError("the secret exists already")
            if written is None:
                written = await self._write_value(call, value, VersionedRecord())
            if written is not None:
                number, entry = written
                ledger = VersionedRecord(
                    versions=MappingProxyType({number: entry}), labels=MappingProxyType({label: number})
                )
                first = StoredPointer(ledger=ledger, current=value if label == CURRENT else None)
                path = call.secret_id + POINTER_SUFFIX
                if await self._client.write_secret(path, encode_pointer(first), cas=0) is not None:
                    return ledger.describe_version(number)
            await call.pause_for_writers(_WRITERS)

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        ledger = (await self._require_pointer(call)).ledger
        number = parse_number(at) if isinstance(at, VersionId) else 0
        if number and (number not in ledger.versions or ledger.versions[number].destroyed):
            return await self._reading_leftover(call, ledger, number)
        number = ledger.find_version(call, at)
        return SecretValue(version=ledger.describe_version(number), value=await self._read_value(call, ledger, number))

    async def _reading_leftover(self, call: Call, ledger: VersionedRecord, number: int) -> SecretValue:
        """Read a value that the record of versions does not list, because a write or destruction was interrupted."""
        found = await self._client.read_secret(call.secret_id, number)
        if isinstance(found, Found):
            version = SecretVersion(id=VersionId(number), created_ms=found.created_ms, is_leftover=True)
            try:
                return SecretValue(version=version, value=decode_value(found.data).value)
            except ForeignRecordError as error:
                place = f"version {number} of {self.address.mount}/{call.secret_id}"
                raise ProviderConfigurationError(f"{place} is not Goatherd's: {error}") from None
            except DamagedRecordError as error:
                text = f"the value of version {number} is damaged: {error}"
                raise UnavailableError(text, final=True) from None
        if found is None and number not in ledger.versions:
            copies = await self._find_copies(call.secret_id)
            if number not in copies:
                raise SecretNotFoundError(f"there is no version {number}")
            version, value = copies[number]
            return SecretValue(version=version, value=value)
        raise VersionDisabledError(f"version {number} was destroyed")

    async def _read_value(self, call: Call, ledger: VersionedRecord, number: int) -> SecretBytes:
        found = await self._client.read_secret(call.secret_id, number)
        if isinstance(found, Gone):
            raise VersionDisabledError(_undelete_hint(self.address.mount, call.secret_id, found))
        if found is None:
            newest = await self._client.read_secret(call.secret_id)
            if newest is not None and newest.version - number >= LEAST_VERSIONS:
                # Later versions have displaced it. A writer that loses against another one also writes a version.
                raise SecretNotFoundError(f"version {number} is older than the server keeps")
            # Between a deletion's two steps, on a standby that lags, or after a change by hand: not "no such secret".
            raise UnavailableError(
                f"version {number} is listed, but the server has no value for it",
                hint="If the error persists, the entry was deleted by hand: delete the secret, and create it from a"
                " backup.",
            )
        stored = _decode_value(number, found)
        if stored.digest != ledger.versions[number].digest:
            raise UnavailableError(f"the value of version {number} is not the one that was written")
        return stored.value

    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        written: tuple[int, RecordedVersion] | None = None
        while True:
            pointer = await self._require_pointer(call)
            ledger = pointer.ledger
            if (made := ledger.made_by(call.request)) is not None:
                return ledger.describe_version(made)
            # For its checks, before anything is written.
            ledger.with_version(call, entry_for(value, request=call.request, now_ms=0), label, expected)
            if written is not None and written[0] in ledger.versions:
                written = None  # another writer has destroyed it meanwhile, because no list named it
            if written is None:
                written = await self._write_value(call, value, ledger)
            if written is not None:
                number, entry = written
                kept = {
                    n: e for n, e in ledger.versions.items() if n > number - MAX_VERSIONS or n in ledger.labels.values()
                }
                grown = replace(ledger, versions=MappingProxyType({**kept, number: entry}))
                moved = grown.with_label(call, label, VersionId(number), expected)
                if await self._replace_pointer(call, pointer, moved, value if label == CURRENT else None) is not None:
                    return moved.describe_version(number)
            await call.pause_for_writers(_WRITERS)

    async def _label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
        while True:
            pointer = await self._require_pointer(call)
            moved = pointer.ledger.with_label(call, label, version, expected)
            state = (await self._client.read_metadata(call.secret_id)).states.get(int(version))
            if state is not VersionState.ENABLED:
                raise VersionDisabledError(f"the value of version {version} was deleted or destroyed")
            if await self._replace_pointer(call, pointer, moved) is not None:
                return
            await call.pause_for_writers(_WRITERS)

    async def _unlabel(self, call: Call, label: Label, expected: VersionId) -> None:
        while True:
            pointer = await self._require_pointer(call)
            if await self._replace_pointer(call, pointer, pointer.ledger.without_label(call, label, expected)):
                return
            await call.pause_for_writers(_WRITERS)

    async def _versions(self, call: Call) -> Sequence[SecretVersion]:
        ledger = (await self._require_pointer(call)).ledger
        listed = ledger.newest_first()
        try:
            known = await self._client.read_metadata(call.secret_id)
        except ProviderAccessDeniedError:
            return listed  # a server's token may not read the metadata, so changes made by hand stay unnoticed here
        seen = []
        for version in listed:
            number = int(version.id)
            state = known.states.get(number)
            if state is None and known.current - number >= LEAST_VERSIONS:
                continue  # pushed out by later ones
            if version.state is not state:
                # The state that the server reports counts: a value whose destruction was interrupted still exists.
                is_leftover = ledger.versions[number].destroyed
                version = replace(version, state=state or VersionState.DESTROYED, is_leftover=is_leftover)
            seen.append(version)
        entries = {int(version.id) for version in listed}
        seen += [
            SecretVersion(id=VersionId(number), created_ms=known.created_ms[number], state=state, is_leftover=True)
            for number, state in known.states.items()
            if number not in entries and state is not VersionState.DESTROYED
        ]
        seen += [version for version, _ in (await self._find_copies(call.secret_id, known)).values()]
        return sorted(seen, key=lambda version: int(version.id), reverse=True)

    async def _find_copies(
        self, path: str, known: Metadata | None = None
    ) -> dict[int, tuple[SecretVersion, SecretBytes]]:
        """Find values that Vault has dropped from the entry of values, but still has in older versions of the pointer.

        Args:
            client: The Vault client.
            path: The path of the secret below the mount.
            known: The metadata of the entry of values, if the caller has it.
        """
        copies: dict[int, tuple[SecretVersion, SecretBytes]] = {}
        try:
            known = known or await self._client.read_metadata(path)
            if min(known.states, default=1) == 1:
                return {}  # the server has dropped none
            pointers = await self._client.read_metadata(path + POINTER_SUFFIX)
        except ProviderAccessDeniedError:
            return {}  # a token that may not read this metadata may not destroy these versions either
        older = (n for n, state in pointers.states.items() if n < pointers.current and state is VersionState.ENABLED)
        for version in sorted(older)[:_OLD_POINTERS]:
            found = await self._client.read_secret(path + POINTER_SUFFIX, version)
            if not isinstance(found, Found):
                continue
            try:
                stored = decode_pointer(found.data)
            except (ForeignRecordError, DamagedRecordError):
                continue
            number = stored.ledger.labels.get(CURRENT)
            if number is not None and stored.current is not None and number not in known.states:
                created_ms = stored.ledger.versions[number].created_ms
                left = SecretVersion(id=VersionId(number), created_ms=created_ms, is_leftover=True)
                copies[number] = (left, stored.current)
        return copies

    async def _labels_held(self, call: Call) -> Mapping[Label, VersionId]:
        ledger = (await self._require_pointer(call)).ledger
        return {label: VersionId(number) for label, number in ledger.labels.items()}

    async def _destroy(self, call: Call, version: VersionId) -> None:
        path, asked = call.secret_id, False
        while True:
            pointer = await self._require_pointer(call)
            ledger = await self._with_leftover(path, pointer.ledger, version)
            number = parse_number(version)
            is_copy = number not in ledger.versions and number in await self._find_copies(path)
            gone = ledger if is_copy else ledger.without_value(call, version)
            # The version leaves the pointer (the list of versions and labels) before it is destroyed: otherwise a label
            # could move to it in between. The permission to destroy is checked before both, so that a missing
            # permission changes nothing.
            if not asked and not (
                await self._client.may_destroy(path) and await self._client.may_destroy(path + POINTER_SUFFIX)
            ):
                raise ProviderAccessDeniedError(
                    "the token may not destroy versions of the secret and of its pointer",
                    hint="`goatherd policy vault --role admin` prints a policy that allows it.",
                )
            asked = True
            newest: int | None = pointer.version
            if gone is not pointer.ledger:
                newest = await self._replace_pointer(call, pointer, gone)
            if newest is not None:
                await self._destroy_older_versions(path + POINTER_SUFFIX, newest)
                if not is_copy:
                    await self._client.destroy_versions(path, int(version))
                return
            await call.pause_for_writers(_WRITERS)

    async def _with_leftover(self, path: str, ledger: VersionedRecord, version: VersionId) -> VersionedRecord:
        """Return the record of versions with an unlisted version added as destroyed, so that no writer can use it."""
        number = parse_number(version)
        if not number or number in ledger.versions:
            return ledger
        known = await self._client.read_metadata(path)
        if known.states.get(number, VersionState.DESTROYED) is VersionState.DESTROYED:
            return ledger
        entry = RecordedVersion(created_ms=known.created_ms[number], request="", digest="", size=0)
        return replace(ledger, versions=MappingProxyType({**ledger.versions, number: entry}))

    async def _destroy_older_versions(self, path: str, newest: int) -> None:
        known = await self._client.read_metadata(path)
        if known.current < newest:
            # SECURITY: the server claims to have written a version that it does not have. So an older version may hold
            # the only list of versions and labels, and none is destroyed
            # (tests/contract/vault/test_wrong_answers.py::TestVaultAnswers).
            raise UnavailableError(
                f"the server answered that it wrote version {newest} of {path}, but does not have it"
            )
        older = [n for n, state in known.states.items() if n < newest and state is not VersionState.DESTROYED]
        if older:
            await self._client.destroy_versions(path, *older)

    async def _delete(self, call: Call) -> None:
        await self._require_pointer(call)
        # The values are deleted before the pointer: while the pointer exists, the secret cannot be created again. If
        # the token may not delete, nothing has changed yet.
        await self._client.remove_secret(call.secret_id)
        await self._client.remove_secret(call.secret_id + POINTER_SUFFIX)

    # --- the two entries --------------------------------------------------------------------------------------------

    async def _read_pointer(self, call: Call) -> _Pointer | None:
        """Read the pointer entry (the record of versions and labels) of a secret; None if there is none."""
        path = call.secret_id + POINTER_SUFFIX
        found = await self._client.read_secret(path)
        if found is None:
            return None
        if isinstance(found, Gone):
            raise ProviderConfigurationError(_undelete_hint(self.address.mount, path, found))
        try:
            return _Pointer(stored=decode_pointer(found.data), version=found.version)
        except ForeignRecordError as error:
            raise ProviderConfigurationError(
                f"the entry {self.address.mount}/{path} is not Goatherd's: {error}"
            ) from None
        except DamagedRecordError as error:
            raise UnavailableError(f"the entry {self.address.mount}/{path} is damaged: {error}") from None

    async def _require_pointer(self, call: Call) -> _Pointer:
        pointer = await self._read_pointer(call)
        if pointer is None:
            raise SecretNotFoundError("there is no such secret")
        return pointer

    async def _replace_pointer(
        self,
        call: Call,
        pointer: _Pointer,
        ledger: VersionedRecord,
        current: SecretBytes | None = None,
    ) -> int | None:
        """Replace a secret's pointer entry (its versions and labels); None if another writer has replaced it meanwhile.

        The result is the entry's new version. `current` is the value of the version with the label ``current``, if the
        caller has it.
        """
        holder = ledger.labels.get(CURRENT)
        if current is None and holder is not None:
            current = pointer.stored.current if holder == pointer.ledger.labels.get(CURRENT) else None
            if current is None:
                current = await self._read_value(call, ledger, holder)
        path = call.secret_id + POINTER_SUFFIX
        stored = encode_pointer(StoredPointer(ledger=ledger, current=current))
        written = await self._client.write_secret(path, stored, cas=pointer.version)
        return None if written is None else written.version

    async def _write_value(
        self, call: Call, value: SecretBytes, ledger: VersionedRecord
    ) -> tuple[int, RecordedVersion] | None:
        """Write a secret's next value, or find the one that an earlier attempt of this call wrote.

        Return the version's number and its entry for the record of versions; None if another writer has written
        meanwhile, so that the caller must read again.
        """
        known = await self._client.read_metadata(call.secret_id)
        newest = max(ledger.versions, default=0)
        if known.current < newest:
            raise ProviderConfigurationError(
                f"versions up to {newest} are listed, but the server has {known.current or 'none'}",
                hint="The entry was deleted by hand: delete the secret and create it from a backup.",
            )
        if call.attempt > 1 or not ledger.exists:
            for number in range(known.current, max(newest, known.current - _LOOK_BACK), -1):
                found = await self._client.read_secret(call.secret_id, number)
                if not isinstance(found, Found):
                    continue
                try:
                    stored = decode_value(found.data)
                except (ForeignRecordError, DamagedRecordError):
                    if ledger.exists:
                        continue
                    raise SecretExistsError(
                        f"the entry {self.address.mount}/{call.secret_id} exists and is not Goatherd's",
                        hint="Choose another path, or delete that entry with all its versions.",
                    ) from None
                if stored.request == call.request:
                    return number, entry_for(value, request=call.request, now_ms=found.created_ms)
        await self._make_room(call.secret_id, known.current + 1, known.max_versions, ledger)
        written = await self._client.write_secret(call.secret_id, encode_value(value, call.request), cas=known.current)
        if written is None:
            return None
        if written.expires:
            raise ProviderConfigurationError(
                f"the server deletes versions of {self.address.mount}/{call.secret_id} automatically after some time",
                hint="Set delete_version_after of the entry and of the mount to 0s.",
            )
        entry = entry_for(value, request=call.request, now_ms=written.created_ms)
        # The list never names a value that the server only said to have written.
        found = await self._client.read_secret(call.secret_id, written.version)
        if not isinstance(found, Found) or _decode_value(written.version, found).digest != entry.digest:
            raise UnavailableError(f"the value of version {written.version} is not what was just written")
        return written.version, entry

    async def _make_room(self, path: str, number: int, keeps: int, ledger: VersionedRecord) -> None:
        """Make sure that Vault does not drop a labelled version when version `number` is written.

        By default, a server keeps ten versions and drops the oldest, labelled or not.
        """
        oldest = min(ledger.labels.values(), default=number)
        needed = max(LEAST_VERSIONS, number - oldest + 1)
        if keeps >= needed:
            return
        by_hand = f"vault kv metadata put -mount={self.address.mount} -max-versions={max(needed, MAX_VERSIONS)} {path}"
        if needed > MAX_VERSIONS:
            labels = sorted(label for label, holder in ledger.labels.items() if holder == oldest)
            them = f"label{'s' if len(labels) > 1 else ''} {', '.join(labels)}"
            raise ProviderConfigurationError(
                f"when version {number} is written, the server would delete version {oldest}, which has the {them}",
                hint=f"Move the {them} to a newer version, or let the server keep more versions: {by_hand}",
            )
        try:
            await self._client.set_max_versions(path, MAX_VERSIONS)
        except ProviderAccessDeniedError:
            raise ProviderConfigurationError(
                f"the server keeps {keeps or 'ten'} versions, which is too few, and the token may not change that",
                hint=f"A user with that right must run: {by_hand}",
            ) from None


class OpenBaoSecretProvider(VaultSecretProvider):
    """Store secrets in OpenBao: as ``vault://``, but ``BAO_ADDR`` and other ``BAO_`` variables take precedence.

    Address: ``openbao://host:port/mount/path``.

    Credentials: those of `VaultSecretProvider`, as are permissions and guarantees.
    """

    scheme = "openbao"


def _undelete_hint(mount: str, path: str, gone: Gone) -> str:
    if gone.state is VersionState.DESTROYED:
        return f"version {gone.version} of {mount}/{path} was destroyed"
    return (
        f"version {gone.version} of {mount}/{path} was deleted by hand; "
        f"`vault kv undelete -mount={mount} -versions={gone.version} {path}` brings it back"
    )


def _decode_value(number: int, found: Found) -> StoredValue:
    try:
        return decode_value(found.data)
    except (ForeignRecordError, DamagedRecordError) as error:
        raise UnavailableError(f"the value of version {number} is damaged: {error}") from None
