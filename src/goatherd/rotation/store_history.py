"""Check, before a command writes, that the store does not hold an older identity than its servers have used.

Every command that writes the identity makes this check: rotate, resume, cancel, roll back, restore, replace an expired
root, drop a lost anchor, retire, revoke, sign, and the controller. The check changes nothing and does not repair the
store.

A store holds an older identity after a backup was restored, or after a label was moved back with the platform's own
tools. Servers reject that identity, because its generation (a number that each write raises) is lower than the one that
they use. If a command continued from it, the generation could exceed that of the servers, and they would adopt an
identity without the root that has signed since the backup. So the command stops if a server has used a later identity,
or a different one with the same generation.

A server does not stop the command if it does not answer, gives no usable answer, or shares no root with the identity,
not even a revoked one. The operator can name servers whose reports are ignored, because they are wrong
(`Policy.distrust`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Collection, Mapping

from goatherd.clock import Clock
from goatherd.cluster.server_answers import ServerIdentity
from goatherd.errors import (
    GenerationError,
    IdentityError,
    SecretNotFoundError,
    VersionDisabledError,
)
from goatherd.identity.document import IdentityDocument, decode_document, source_digest
from goatherd.providers.base import Guarantees, ReadConsistency, StoreReader
from goatherd.providers.values import VersionState
from goatherd.rotation.obstacles import Obstacle, StoredState, find_contradiction, went_back_error
from goatherd.rotation.policy import Policy
from goatherd.rotation.polling import Polling


async def check_store_history(
    document: IdentityDocument,
    *,
    read: Callable[[], Awaitable[IdentityDocument]],
    ask: Callable[[], Awaitable[Mapping[str, ServerIdentity]]],
    policy: Policy,
    guarantees: Guarantees,
    clock: Clock,
    troubled: Callable[[str], None] | None = None,
    signed: IdentityDocument | None = None,
    is_voted: bool = False,
) -> IdentityDocument:
    """Check that no server has used a later identity than the store holds, or a different one.

    If reads of the store may lag, it is read again for up to `Policy.store_patience`, until it returns the identity
    that the servers use.

    Args:
        document: The identity that was read from the store.
        read: Reads the store again.
        ask: Asks the servers which identity they use, by URL; servers that do not answer are left out.
        policy: `distrust` names the servers whose reports are ignored.
        guarantees: The store's guarantees.
        clock: Tells the time and waits.
        troubled: Called with a description of the problem before each pause.
        signed, is_voted: As for `find_contradictions`.

    Returns:
        The identity in the store; a later document than `document` if it was changed meanwhile.

    Raises:
        StoreWentBackError: A server has used a later identity, or a different one.
    """
    may_lag = guarantees.read_consistency is not ReadConsistency.STRONG
    polling = Polling(clock, policy, policy.store_patience)
    while found := find_contradictions(await ask(), document, policy.distrust, signed=signed, is_voted=is_voted):
        before = document
        with contextlib.suppress(GenerationError):  # a replica that lags more than the one before
            document = await read()
        is_over = polling.is_over
        # It may have been changed while the servers were asked; then they are ahead of what was read before.
        if source_digest(document) != source_digest(before) and not is_over:
            continue
        if is_over or not may_lag:
            raise went_back_error(found)
        if troubled is not None:
            troubled(found[0].text)
        await polling.pause()
    return document


def find_contradictions(
    answers: Mapping[str, ServerIdentity],
    document: IdentityDocument,
    distrust: Collection[str] = (),
    *,
    signed: IdentityDocument | None = None,
    is_voted: bool = False,
) -> tuple[Obstacle, ...]:
    """Return one obstacle for each server that uses an identity which cannot have come from the store's present state.

    Args:
        answers: The servers' reports (``GET /goatherd/v1/identity``), by URL.
        document: The identity in the store.
        distrust: URLs of servers whose reports are ignored.
        signed: If `document` is not signed, the last signed identity before it; else None. A server that requires
            signatures is compared with this one only, because it cannot use an unsigned identity. Another server may
            use either of the two.
        is_voted: Whether the majority decides. Then the result is empty if more servers agree with the store than
            disagree, so that one server with a wrong report does not stop an operator in an emergency. (After a
            restored backup, no running server agrees.)
    """
    held, listed = StoredState.from_document(document), {root.id for root in document.roots}
    last_signed = None if signed is None else StoredState.from_document(signed)
    found, agreeing = [], 0
    for url, answer in answers.items():
        if url in distrust or listed.isdisjoint((*(answer.roots or ()), *(answer.revoked or ()))):
            continue
        is_refusing = last_signed is not None and answer.has_seen_signed
        states = [one for one in (None if is_refusing else held, last_signed) if one is not None]
        contradictions = [find_contradiction(url, answer.generation, answer.digest, one) for one in states]
        one = None if None in contradictions else contradictions[0]
        if one is not None:
            found.append(one)
        elif answer.generation is not None:
            agreeing += 1
    return () if is_voted and agreeing > len(found) else tuple(found)


async def find_later_versions(
    provider: StoreReader, secret_id: str, used: Mapping[str, tuple[int, str]]
) -> tuple[str, ...]:
    """Return a sentence for each stored version that holds an identity which servers use, to be made current again.

    Used after the check has found that servers use later identities than the store's current one.

    Args:
        provider: The store.
        secret_id: Id of the store's secret that holds the identity.
        used: Generation and digest of the identity that servers use, by URL.

    Raises:
        ProviderError: The store does not answer.
    """
    found = []
    for version in await provider.versions(secret_id):
        if version.state is not VersionState.ENABLED or not used:
            continue
        try:
            document = decode_document((await provider.read(secret_id, version.id)).value.reveal())
        except (IdentityError, SecretNotFoundError, VersionDisabledError):
            continue
        held = StoredState.from_document(document)
        urls = [
            url
            for url, (generation, digest) in used.items()
            if generation == held.generation and not held.is_other(generation, digest)
        ]
        if urls:
            found.append(
                f"version {version.id} of the store holds the generation {held.generation} that {', '.join(urls)} uses:"
                " make it current again with the store's own tools"
            )
    return tuple(found)
