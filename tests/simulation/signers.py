"""Signers of anchors that fail, and what a thief of a working root does with its key.

What is real: `goatherd.signers.verified.VerifiedSigner` around the signers, and all that asks them. What it is not: a
protocol of any platform.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from goatherd.clock import Clock
from goatherd.crypto import PrivateKey
from goatherd.errors import ConflictError, NodeError, SignerAccessDeniedError, SignerUnavailableError
from goatherd.identity.anchor import AnchorWord, change_text
from goatherd.identity.document import IdentityDocument, decode_document, encode_document, sign_document
from goatherd.identity.root_signatures import Endorsement, endorse_root
from goatherd.identity.session import ROOT_OWNER, OwnedSession, Session
from goatherd.identity.session_commits import introduction_id
from goatherd.identity.transitions import sign_again
from goatherd.providers.values import CURRENT
from goatherd.remote_keys import RootSigners
from goatherd.rotation.anchor_keys import AnchorKey, AnchorKeys
from goatherd.rotation.cross_signing import make_session_commit
from goatherd.signers.base import KeyKind, Latency, Signer, SignerFacts, SignerKey
from goatherd.signers.verified import SigningPolicy, VerifiedSigner
from tests.fakes.anchors import OwnKey
from tests.simulation.dice import Dice
from tests.simulation.loop import check_alive

if TYPE_CHECKING:
    from tests.simulation.herd import Herd
    from tests.simulation.store import SimulatedStore
    from tests.simulation.world import World

FIRST, SECOND = "kms:first", "kms:second"
THIEF: Final = "thiefs-root"
_TAKES: Final = (0.02, 0.2)
_POLICY: Final = SigningPolicy(timeout=timedelta(seconds=5))
_LIFETIME: Final = timedelta(days=90)
_LOOKS: Final = 3
"""So many times servers read the store before the thief writes again."""


class Trouble(StrEnum):
    """What signers do instead of signing correctly."""

    SLOW = "slow"
    DENIED = "denied"
    WRONG = "wrong signature"
    DOWN = "down"


class SimulatedSigner(Signer):
    """A key that no process holds."""

    scheme = "kms"

    def __init__(self, uri: str, signers: SimulatedSigners, on_call: Callable[[str], None]) -> None:
        self.name = uri
        self._signers = signers
        self._on_call = on_call

    @classmethod
    def from_uri(cls, uri: str) -> SimulatedSigner:
        raise NotImplementedError

    @property
    def facts(self) -> SignerFacts:
        return SignerFacts(exportable=False, latency=Latency.SERVICE)

    async def public_key(self) -> SignerKey:
        await self._answer("public_key")
        return SignerKey(kind=KeyKind.ECDSA_P384, public_key=self._signers.key(self.name).public_key)

    async def sign(self, text: bytes) -> bytes:
        await self._answer("sign")
        key = self._signers.key(self.name)
        if self._signers.trouble is Trouble.WRONG:
            return key.sign(text + b"!")
        self._signers.texts.add(text)
        return key.sign(text)

    async def _answer(self, call: str) -> None:
        check_alive()
        self._on_call(f"{call} of {self.name}")
        await asyncio.sleep(self._signers.pause())
        check_alive()
        if self._signers.trouble is Trouble.DOWN:
            raise self.error(SignerUnavailableError, call, "it does not answer")
        if self._signers.trouble is Trouble.DENIED:
            raise self.error(SignerAccessDeniedError, call, "it refuses")


class SimulatedSigners:
    """All signers, their faults, and each text that one of them has signed correctly.

    Args:
        dice: Decides how long a call takes.

    Attributes:
        trouble: What they all do instead of signing; None if they work.
        degree: How slow they are, from 0 to 1.
        texts: What they have signed.
    """

    def __init__(self, dice: Dice) -> None:
        self.trouble: Trouble | None = None
        self.degree = 0.0
        self.texts: set[bytes] = set()
        self._dice = dice
        self._keys: dict[str, PrivateKey] = {}

    def key(self, uri: str) -> PrivateKey:
        if uri not in self._keys:
            self._keys[uri] = PrivateKey.generate()
        return self._keys[uri]

    def pause(self) -> float:
        """Return how many seconds a call takes; a slow one mostly longer than the caller waits."""
        return self._dice.uniform(*_TAKES) + (1 + 9 * self.degree if self.trouble is Trouble.SLOW else 0.0)

    def opener(self, clock: Clock, on_call: Callable[[str], None]) -> Callable[[str], VerifiedSigner]:
        """Return the function with which a process opens signers; `on_call` is called for each call."""
        return lambda uri: VerifiedSigner(SimulatedSigner(uri, self, on_call), policy=_POLICY, clock=clock)

    # --- the truth ----------------------------------------------------------------------------------------------------

    def unsigned(self, document: IdentityDocument) -> Iterator[str]:
        """Yield the signatures of anchors in a document that no signer has made."""
        roots = {root.id: root for root in document.roots}
        for one in document.endorsements:
            if one.commit is not None and not self._has_endorsed(one, roots[one.of]):
                yield f"the endorsement of {one.of} by {one.by}"
        for change in document.anchor_changes:
            subject = roots[change.to or change.root or ""]
            text = change_text(change.by, subject, is_anchor=change.to is not None, until=change.until)
            if text.encode() not in self.texts:
                yield f"the change of the anchor from {change.by} to {subject.id}"

    def have_named(self, document: IdentityDocument) -> bool:
        """Return whether an anchor has endorsed the root that signs, or one without an anchor that leads to it."""
        roots = {root.id: root for root in document.roots}
        if document.anchor is not None:
            ones = [one for one in document.endorsements if one.of == document.current.id and one.commit is not None]
            return any(self._has_endorsed(one, roots[one.of]) for one in ones)
        named = {
            change.root
            for change in document.anchor_changes
            if change.root is not None
            and change_text(change.by, roots[change.root], is_anchor=False, until=change.until).encode() in self.texts
        }
        for _ in document.endorsements:
            named |= {one.of for one in document.endorsements if one.by in named}
        return document.current.id in named

    def _has_endorsed(self, one: Endorsement, root: Session) -> bool:
        assert one.commit is not None
        return one.commit.draft_commit(root, by_id=one.by).signed_text(one.by).encode() in self.texts


async def first_word(world: World, root: OwnedSession, now_ms: int) -> AnchorWord:
    """Return the endorsement of the anchor with which a cluster begins."""
    async with AnchorKeys("localhost", world.signers.opener(world.clock, lambda call: None)) as keys:
        key = await keys.open_new(FIRST, session_id="anchor-first", now_ms=now_ms)
        endorsement = await key.introduce(root.session, now_ms)
        return AnchorWord(session=key.session, endorsements=(endorsement,))


# --- the thief --------------------------------------------------------------------------------------------------------


async def steal(herd: Herd, secret: str, refresh: timedelta) -> list[str]:
    """Act as an attacker with the working root's key and write access to the store, then as the operator who reverts
    that.

    Returns:
        What servers accepted of the attacker's documents.
    """
    world = herd.world
    document = world.promises.documents[-1][1]
    if document.anchor is None or document.rotation is not None:
        return []
    world.trace.tell("thief", f"has the key of {document.current.id[:8]}")
    now_ms = world.clock.now_ms()
    thief = OwnedSession.generate(session_id=THIEF, owner=ROOT_OWNER, now_ms=now_ms, lifetime=_LIFETIME)
    await _introduce(herd, document, thief.session, now_ms)
    world.is_stealing = True
    async with world.store(world.clock) as store:
        written = document
        for forged in await _forgeries(document, thief, now_ms):
            written = sign_document(replace(forged, generation=written.generation + 1, source=None), now_ms)
            await _write(store, secret, written)
            await asyncio.sleep(_LOOKS * refresh.total_seconds())
        await _write(
            store, secret, sign_again(document, world.clock.now_ms(), after=written.generation, signed=document)
        )
    world.is_stealing = False
    wrong = [] if await herd.converge() else ["the nodes did not come to hold the same after a theft"]
    fooled = [one.name for one in herd.nodes if one.database is not None and THIEF in one.database.pool.root_ids]
    return [*wrong, *(f"{name} trusts a root that only a working root has introduced" for name in fooled)]


async def _write(store: SimulatedStore, secret: str, document: IdentityDocument) -> None:
    """Write a document over whatever there is; a repeated call may conflict with its own first attempt."""
    while (found := await store.read(secret, CURRENT)) and decode_document(
        found.value.reveal()
    ).generation < document.generation:
        with contextlib.suppress(ConflictError):
            await store.write(secret, encode_document(document), label=CURRENT, expected=found.version.id)
        await asyncio.sleep(1)


async def _introduce(herd: Herd, document: IdentityDocument, root: Session, now_ms: int) -> None:
    commit = make_session_commit(
        root, signer=document.current, commit_id=introduction_id(root.id), ts=now_ms, org="localhost"
    )
    for node in herd.nodes:
        client = herd.world.client(node.url, herd.world.clock)
        with contextlib.suppress(NodeError):
            await client.push("/sys/sessions", [commit], document.current)


async def _forgeries(document: IdentityDocument, thief: OwnedSession, now_ms: int) -> list[IdentityDocument]:
    """Return a document that lists the thief's root, one that has no anchor, and one with the thief's anchor."""
    roots = (*document.roots, thief.session)
    stolen = endorse_root(document.current, thief.session, now_ms)
    listed = replace(document, roots=roots, endorsements=(*document.endorsements, stolen), lineage=None)
    own = AnchorKey(thief.session, OwnKey(thief), "localhost", RootSigners())
    others = [one for one in listed.endorsements if one.of != document.current.id]
    named = await own.introduce(document.current.session, now_ms)
    return [
        listed,
        replace(listed, anchor=None),
        replace(listed, anchor=thief.id, endorsements=(*others, named)),
    ]
