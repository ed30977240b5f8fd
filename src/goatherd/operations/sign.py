"""Repair an identity whose signature is invalid: sign it, or write its last signed version again.

Use it after the errors `identity.unsigned` and `identity.generation_jumped`. The operator looks at the changes since
the last signed version, and either accepts them or restores that version. An identity that the servers would reject, as
far as the store and the servers that answer show, is not written. Every write is a compare-and-swap on the version that
the operator has seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from goatherd.clock import Clock, SystemClock
from goatherd.cluster.observer import Observer
from goatherd.errors import IllegalStepError, SuccessionError
from goatherd.identity.document import IdentityDocument, decode_document, document_tree, encode_document
from goatherd.identity.root_signatures import MEMBER
from goatherd.identity.succession import MAX_JUMP, verify_succession
from goatherd.identity.transitions import sign_again
from goatherd.operations.identity_store import Store
from goatherd.operations.opening import Nodes
from goatherd.operations.rotate import describe_distrust, resolve_nodes
from goatherd.operations.runs import AuditLog, record_run
from goatherd.providers.base import SecretProvider
from goatherd.providers.values import CURRENT, VersionId
from goatherd.remote_keys import RootSigners, call_signing
from goatherd.rotation.policy import Policy
from goatherd.rotation.signed_store import Ask, read_earlier
from goatherd.rotation.store_history import check_store_history
from goatherd.times import format_utc


class SignatureState(StrEnum):
    """The state of an identity's signature: valid, missing, outdated (of an earlier generation), or invalid."""

    VALID = "valid"
    MISSING = "missing"
    OUTDATED = "outdated"
    """The signature is of an earlier generation: a tool that does not sign has written since."""
    INVALID = "invalid"
    """The signature is of this generation, but of other content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureExamination:
    """The current identity document, and the last one that a root signed.

    Attributes:
        version: Id of the current version.
        document: The identity in it.
        signed_version: Id of the newest earlier version that is signed; None if there is none.
        signed: The identity in the signed version.
        changes: The differences between the two, each in a sentence without key material.
    """

    version: VersionId
    document: IdentityDocument
    signed_version: VersionId | None = None
    signed: IdentityDocument | None = None
    changes: tuple[str, ...] = ()

    @property
    def state(self) -> SignatureState:
        """The state of the current version's signature."""
        if self.document.is_signed:
            return SignatureState.VALID
        if self.document.signature is None:
            return SignatureState.MISSING
        is_outdated = self.document.signature.generation != self.document.generation
        return SignatureState.OUTDATED if is_outdated else SignatureState.INVALID


async def examine_signature(provider: SecretProvider, secret_id: str) -> SignatureExamination:
    """Return the identity in the store, and what has changed since a root last signed it. Writes nothing.

    Raises:
        ProviderError: The store failed.
        IdentityError: The store holds no identity document.
    """
    found = await provider.read(secret_id, CURRENT)
    document = decode_document(found.value.reveal())
    examined = SignatureExamination(version=found.version.id, document=document)
    last = None if document.is_signed else await _last_signed(provider, secret_id, document)
    if last is None:
        return examined
    signed_version, signed = last
    changes = tuple(describe_changes(signed, document))
    return replace(examined, signed_version=signed_version, signed=signed, changes=changes)


async def repair_signature(
    store: Store,
    nodes: Nodes,
    policy: Policy | None = None,
    *,
    accept: bool,
    examined: SignatureExamination,
    audit_log: AuditLog | None = None,
    clock: Clock | None = None,
) -> IdentityDocument:
    """Sign the identity in the store as it is, or undo the changes since the last signed version; return what it wrote.

    Args:
        store: The open store.
        nodes: Servers whose identities are compared with the store's; may be empty.
        policy: Names the servers whose reports are ignored (`distrust`).
        accept: Whether to sign the changes (`sign_current`) and not to undo them (`sign_earlier`).
        examined: The result of `examine_signature`.
        audit_log: Where to append the audit trail.
        clock: Tells the time and waits.

    Raises:
        AuditError: The audit trail cannot be written. Nothing was written.
        IllegalStepError, StoreWentBackError, SuccessionError, ConflictError, ProviderError: As `sign_current` and
            `sign_earlier`.
    """
    policy, clock = policy or Policy(), clock or SystemClock()
    what, write = ("accept", sign_current) if accept else ("take-back", sign_earlier)
    asked = {"what": what, "version": examined.version, "changes": list(examined.changes), **describe_distrust(policy)}
    async with record_run(store, "sign", asked, audit_log) as journal:
        servers = await resolve_nodes(nodes)
        observer = Observer(servers, clock=clock, timeout=policy.node_timeout, bare=policy.bare, org=store.org)
        written = await write(
            store.provider,
            store.secret_id,
            examined,
            ask=observer.read_identities,
            policy=policy,
            clock=clock,
            signers=store.signers,
        )
        journal.record_decision("identity-signed", {"generation": written.generation, "current": written.current.id})
    return written


async def _last_signed(
    provider: SecretProvider, secret_id: str, document: IdentityDocument
) -> tuple[VersionId, IdentityDocument] | None:
    """Return the newest stored version before `document` that a root has signed; None if there is none.

    In a store that writes a value before it moves the label, a writer that lost a race also leaves a signed version,
    which never was the current one. So if the signature in `document` is that of an earlier version, this version is
    returned, even if there is a newer one.
    """
    newest, mark = None, document.signature
    async for version, earlier in read_earlier(provider, secret_id):
        # An unsigned one is good enough only where the current one has a generation that nothing can have reached.
        if not earlier.is_signed and (mark is not None or not earlier.generation <= MAX_JUMP < document.generation):
            continue
        newest = newest or (version.id, earlier)
        if mark is None or earlier.generation < mark.generation:
            break
        if earlier.signature == mark:
            return version.id, earlier
    return newest


async def sign_current(
    provider: SecretProvider,
    secret_id: str,
    examined: SignatureExamination,
    *,
    ask: Ask,
    policy: Policy,
    clock: Clock,
    signers: RootSigners,
) -> IdentityDocument:
    """Sign the identity in the store as it is, and write it as the next generation.

    Args:
        provider: The store.
        secret_id: The secret that holds the identity.
        examined: The result of `examine_signature`.
        ask: Asks the listed servers which identity they use.
        policy: `distrust` names the servers whose reports are ignored.
        clock: Tells the time and waits.
        signers: The signers that this machine may call (direct mode).

    Raises:
        IllegalStepError: The identity is already signed.
        StoreWentBackError: A server has used a later identity than the store holds, or a different one.
        SuccessionError: The identity holds a root that is not endorsed by a root of the last signed version. Servers
            would reject it even if it were signed.
        ConflictError: Another writer was faster; examine the store again.
        ProviderError: The store failed.
    """
    document, signed = examined.document, examined.signed
    _refuse_valid(examined)
    if signed is not None:
        _verify_follows(document, signed)
    await _check_history(provider, secret_id, examined, ask=ask, policy=policy, clock=clock)
    after = _last_generation(document, signed)
    changed = await call_signing(
        sign_again, _connect_signer(document, signers), clock.now_ms(), after=after, signed=signed
    )
    await provider.write(secret_id, encode_document(changed), label=CURRENT, expected=examined.version)
    return changed


async def sign_earlier(
    provider: SecretProvider,
    secret_id: str,
    examined: SignatureExamination,
    *,
    ask: Ask,
    policy: Policy,
    clock: Clock,
    signers: RootSigners,
) -> IdentityDocument:
    """Write the last signed version again, as the next generation. This undoes the changes since then.

    Args:
        provider, secret_id, examined, ask, policy, clock, signers: As for `sign_current`.

    Raises:
        StoreWentBackError: As `sign_current`.
        IllegalStepError: The current version is signed, or there is no earlier signed version, or the current root was
            added after that version with a valid endorsement: after a restore, its commits would not be trusted.
        ConflictError: Another writer was faster; examine the store again.
        ProviderError: The store failed.
    """
    document, signed = examined.document, examined.signed
    _refuse_valid(examined)
    if signed is None:
        raise IllegalStepError(
            "no earlier readable version is signed, so there is no version to restore",
            hint="`goatherd restore --signature --accept` signs what the store holds.",
        )
    if document.current.id != signed.current.id and _follows_signed(document, signed):
        raise IllegalStepError(
            f"root {document.current.id} became the current root after the last signed version, with a valid"
            " endorsement, and may have signed commits; they would no longer be trusted if that version were restored",
            hint="`goatherd restore --signature --accept` signs what the store holds; `goatherd restore` lets the"
            " previous root sign.",
        )
    await _check_history(provider, secret_id, examined, ask=ask, policy=policy, clock=clock)
    after = _last_generation(document, signed)
    changed = await call_signing(sign_again, _connect_signer(signed, signers), clock.now_ms(), after=after)
    await provider.write(secret_id, encode_document(changed), label=CURRENT, expected=examined.version)
    return changed


async def _check_history(
    provider: SecretProvider, secret_id: str, examined: SignatureExamination, *, ask: Ask, policy: Policy, clock: Clock
) -> None:
    """Check that no server has used a later identity than the one to be signed, or a different one.

    SECURITY: the store may have been restored from a backup, and then changed or written by an older version. If that
    identity were signed, the root that has signed in the meantime would be lost
    (tests/unit/rotation/test_signed_store.py).
    """
    signed = examined.signed

    def comparable(document: IdentityDocument) -> IdentityDocument:
        base = _last_generation(document, signed)
        # No server can have followed a generation that has jumped.
        return document if base == document.generation else signed or replace(document, generation=base)

    async def read() -> IdentityDocument:
        return comparable(decode_document((await provider.read(secret_id, CURRENT)).value.reveal()))

    await check_store_history(
        comparable(examined.document),
        read=read,
        ask=ask,
        policy=policy,
        guarantees=provider.guarantees,
        clock=clock,
        signed=signed,
    )


def _connect_signer(document: IdentityDocument, signers: RootSigners) -> IdentityDocument:
    """Return the document with a current root that signs, also if its key is in an HSM or a KMS (direct mode)."""
    return replace(document, current=signers.connect(document.current))


def _refuse_valid(examined: SignatureExamination) -> None:
    if examined.state is SignatureState.VALID:
        raise IllegalStepError("the identity is signed already; nothing was written")


def _verify_follows(document: IdentityDocument, signed: IdentityDocument) -> None:
    trusted = [root for root in signed.roots if root.id not in signed.revoked_ids]
    verify_succession(document, trusted, anchor=signed.anchor_session)


def _follows_signed(document: IdentityDocument, signed: IdentityDocument) -> bool:
    try:
        _verify_follows(document, signed)
    except SuccessionError:
        return False
    return True


def _last_generation(document: IdentityDocument, signed: IdentityDocument | None) -> int:
    """Return the highest generation that any server may have adopted.

    Servers of Goatherd 0.1.0 may have adopted an unsigned change. Unsigned changes that raised the generation by more
    than `MAX_JUMP` do not count, because newer servers reject them and everything after them.
    """
    base = 0 if signed is None else signed.generation
    return document.generation if document.generation <= base + MAX_JUMP else base


def describe_changes(before: IdentityDocument, after: IdentityDocument) -> Iterator[str]:
    """Describe the differences between two documents, with ids, times and names of members but no key material."""
    if after.generation != before.generation + 1:
        yield f"generation: {before.generation} before, {after.generation} now"
    if after.current.id != before.current.id:
        yield f"current root: {before.current.id} before, {after.current.id} now"
    roots = {root.id: root for root in before.roots}
    for root in after.roots:
        known = roots.pop(root.id, None)
        if known is None:
            yield f"root {root.id} was added; it expires at {format_utc(root.expiration_ms)}"
        elif known.public_key != root.public_key:
            yield f"root {root.id} has another key"
        elif known.expiration_ms != root.expiration_ms:
            before_ms, now_ms = known.expiration_ms, root.expiration_ms
            yield f"root {root.id} expired at {format_utc(before_ms)}, and expires at {format_utc(now_ms)} now"
    for session_id in roots:
        yield f"root {session_id} was removed"
    for session_id in sorted(after.revoked_ids - before.revoked_ids):
        yield f"root {session_id} was revoked"
    for session_id in sorted(before.revoked_ids - after.revoked_ids):
        yield f"the revocation of root {session_id} was removed"
    old, new = document_tree(before), document_tree(after)
    covered = {"generation", "currentSession", "roots", "lastUpdated", MEMBER}
    for name in sorted((old.keys() | new.keys()) - covered):
        if old.get(name) != new.get(name):
            yield f"{name} was {_choose_verb(name in old, name in new)}"


def _choose_verb(was: bool, is_: bool) -> str:
    return "changed" if was and is_ else "added" if is_ else "removed"
