"""Find out which of the private keys that a scan has found are live: whether servers accept what they sign.

The store's current version lists only some of the roots that servers trust: a root that has left the document stays
trusted until it expires or is revoked. So older versions of the secret are compared, too, and listed servers are asked:
a server that accepts a request signed with the key trusts it, whatever the store says. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from goatherd.crypto.keys import fingerprint
from goatherd.errors import DiscoveryError, IdentityError, NodeError, ProviderError
from goatherd.identity.document import IdentityDocument, decode_document
from goatherd.identity.session import OwnedSession, Session
from goatherd.operations.identity_store import Store
from goatherd.operations.scan import CURRENT, FORMER, NEXT, REVOKED, TRUSTED, UNKNOWN, UNLISTED, KeyFinding, ScanReport
from goatherd.providers.values import VersionState

if TYPE_CHECKING:
    from goatherd.cluster.client import NodeClient
    from goatherd.cluster.discovery import NodeDirectory


async def compare_with_store(report: ScanReport, store: Store) -> IdentityDocument:
    """Set in each finding how the store lists the key, and the root's id; return the identity.

    The current version lists a key as the current, next, trusted or revoked root, as not trusted, or not at all. Older
    versions are read only if it does not list one of the keys; a root that they list is a former root.

    Raises:
        ProviderError, IdentityError: The store cannot be read, or does not hold an identity. A problem with an older
            version is a note of the report.
    """
    _, document = await store.read()
    listed = _list_roots(document)
    found = {one.fingerprint for one in report.findings}
    if document.pruned and not found <= listed.keys():
        listed = {**await _list_former_roots(report, store, found - listed.keys()), **listed}
    report.findings = [_compare_finding(one, listed, document) for one in report.findings]
    return document


def _compare_finding(
    finding: KeyFinding, listed: Mapping[str, tuple[str, str]], document: IdentityDocument
) -> KeyFinding:
    if finding.fingerprint in listed:
        state, root_id = listed[finding.fingerprint]
        return replace(finding, in_store=state, root=root_id, is_root=True)
    # SECURITY: servers still trust roots that were removed from the identity, and user sessions, which are in
    # /sys/sessions only (tests/unit/cli/test_scan.py).
    is_complete = finding.is_root and not document.pruned
    return replace(finding, in_store=UNKNOWN if is_complete else UNLISTED)


def _list_roots(document: IdentityDocument) -> dict[str, tuple[str, str]]:
    """Return how the identity lists each root, and the root's id, by the fingerprint of its public key."""
    states = {root.id: REVOKED if root.id in document.revoked_ids else TRUSTED for root in document.roots}
    sessions = {root.id: root for root in document.roots}
    if document.next is not None:
        states[document.next.id], sessions[document.next.id] = NEXT, document.next.session
    states[document.current.id] = CURRENT
    return {fingerprint(session.public_key): (states[root_id], root_id) for root_id, session in sessions.items()}


async def _list_former_roots(report: ScanReport, store: Store, keys: set[str]) -> dict[str, tuple[str, str]]:
    """Return those of the given keys, by fingerprint, that an older version lists as a root; with the root's id."""
    former: dict[str, tuple[str, str]] = {}
    unread = 0
    try:
        versions = await store.versions()
    except ProviderError as error:
        report.notes.append(f"the older versions of the secret were not compared: {error}")
        return former
    for version in versions:
        if keys <= former.keys():
            break
        if version.state is VersionState.DESTROYED:
            continue
        try:
            value = (await store.provider.read(store.secret_id, version.id)).value
            roots = decode_document(value.reveal(), store.signers.sign).roots
        except (ProviderError, IdentityError):
            unread += 1
            continue
        for root in roots:
            former.setdefault(fingerprint(root.public_key), (FORMER, root.id))
    if unread:
        report.notes.append(f"{unread} of {len(versions)} versions of the secret could not be read and compared")
    return {key: found for key, found in former.items() if key in keys}


@dataclass(slots=True)
class _Verdict:
    """What one server has answered: the sessions that it trusts, by fingerprint, and whether it has answered all."""

    url: str
    trusted: dict[str, str] = field(default_factory=dict)
    roots: frozenset[str] = frozenset()
    is_conclusive: bool = False


async def ask_servers(report: ScanReport, nodes: NodeDirectory, current: OwnedSession | None) -> None:
    """Ask every server whether it accepts a request signed with each key, and set the answers in the findings.

    A server that does not answer, or rejects a request of the current root as well, proves nothing about a key that it
    rejects; the report notes it.

    Args:
        report: The findings, and how the store lists them.
        nodes: The servers.
        current: The current root; None if no store was named, so that no rejection proves anything.
    """
    import asyncio  # a scan without servers needs no event loop

    try:
        clients = await nodes()
    except DiscoveryError as error:
        report.notes.append(f"no server was asked: {error}")
        return
    verdicts = await asyncio.gather(*(_ask_server(one, report, current) for one in clients))
    has_all = bool(verdicts) and all(one.is_conclusive for one in verdicts)
    report.findings = [_judge_finding(one, verdicts, has_all=has_all) for one in report.findings]


def _judge_finding(finding: KeyFinding, verdicts: Sequence[_Verdict], *, has_all: bool) -> KeyFinding:
    accepted = [one for one in verdicts if finding.fingerprint in one.trusted]
    if not accepted:
        return replace(finding, is_rejected=has_all and finding.root is not None)
    session_id = accepted[0].trusted[finding.fingerprint]
    return replace(
        finding,
        root=session_id,
        is_root=finding.is_root or any(session_id in one.roots for one in accepted),
        accepted_by=tuple([one.url for one in accepted]),
    )


async def _ask_server(client: NodeClient, report: ScanReport, current: OwnedSession | None) -> _Verdict:
    verdict = _Verdict(url=client.base_url)
    # One request for each key and id: the same key is often found in many files.
    asked = {(one.fingerprint, one.root): one for one in report.findings}
    try:
        answer = await client.identity()
        verdict.roots = frozenset(answer.roots or () if answer is not None else ())
        for key_fingerprint, session_id in asked:
            if key_fingerprint in verdict.trusted:
                continue
            key = asked[key_fingerprint, session_id].key
            # The id near a key may be another one's, so the key may be that of any root that the server trusts.
            for one in dict.fromkeys([*([session_id] if session_id else []), *sorted(verdict.roots)]):
                session = Session(id=one, public_key=key.public_key, owner=None, expiration_ms=0)
                if await client.answers(OwnedSession(session=session, signer=key)):
                    verdict.trusted[key_fingerprint] = one
                    break
        verdict.is_conclusive = current is not None and await client.answers(current)
    except NodeError as error:
        report.notes.append(f"whether {client.base_url} accepts the keys is not known: {error}")
        return verdict
    if current is not None and not verdict.is_conclusive:
        report.notes.append(
            f"{client.base_url} rejects requests of the current root too, so it is not known which keys it accepts"
        )
    return verdict
