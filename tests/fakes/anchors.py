"""Signers of anchors in memory, whose faults a test can set and whose signatures are counted."""

from __future__ import annotations

from dataclasses import replace

from goatherd.crypto import PrivateKey, PublicKey
from goatherd.errors import SignerUnavailableError
from goatherd.identity.anchor import AnchorWord
from goatherd.identity.document import IdentityDocument, normalize_document, sign_document
from goatherd.identity.remote_key import RemoteKey
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.remote_keys import RootSigners, make_unnamed_error
from goatherd.rotation.anchor_keys import AnchorKeys
from goatherd.signers.base import KeyKind, Latency, Signer, SignerFacts, SignerKey
from goatherd.signers.verified import SigningPolicy, VerifiedSigner


class MemorySigner(Signer):
    """A key that this process holds."""

    scheme = "memory"

    def __init__(self, name: str) -> None:
        self.name = name
        self.key = PrivateKey.generate()
        self.signed = 0
        self.is_down = False
        self.is_wrong = False

    @classmethod
    def from_uri(cls, uri: str) -> MemorySigner:
        return cls(uri)

    @property
    def facts(self) -> SignerFacts:
        return SignerFacts(exportable=True, latency=Latency.MEMORY)

    async def public_key(self) -> SignerKey:
        if self.is_down:
            raise self.error(SignerUnavailableError, "public_key", "down", final=True)
        return SignerKey(kind=KeyKind.ECDSA_P384, public_key=self.key.public_key)

    async def sign(self, text: bytes) -> bytes:
        if self.is_down:
            raise self.error(SignerUnavailableError, "sign", "down", final=True)
        self.signed += 1
        return self.key.sign(text + (b"!" if self.is_wrong else b""))


class OwnKey:
    """A session's own key as a signer, such as an attacker's."""

    def __init__(self, owned: OwnedSession) -> None:
        self._signer = owned.signer

    async def public_key(self) -> SignerKey:
        return SignerKey(kind=KeyKind.ECDSA_P384, public_key=self._signer.public_key)

    async def sign(self, text: bytes) -> bytes:
        return self._signer.sign(text)

    async def aclose(self) -> None:
        pass


class MemorySigners:
    """Every signer that a test uses, by URI; `open` makes one on first use."""

    def __init__(self) -> None:
        self.by_uri: dict[str, MemorySigner] = {}

    def __getitem__(self, uri: str) -> MemorySigner:
        return self.by_uri.setdefault(uri, MemorySigner(uri))

    def open(self, uri: str) -> VerifiedSigner:
        return VerifiedSigner(self[uri], policy=SigningPolicy(invalid_signatures=0))

    @property
    def configured(self) -> MemoryRootSigners:
        """A configuration that names each of them, also those that the test opens later."""
        return MemoryRootSigners(self)

    @property
    def signed(self) -> int:
        """How many signatures all of them have made."""
        return sum(one.signed for one in self.by_uri.values())


class MemoryRootSigners(RootSigners):
    """The configuration of a machine that names a test's signers. With `is_refusing`, a direct signature fails it."""

    def __init__(self, signers: MemorySigners) -> None:
        super().__init__()
        self._memory = signers
        self.is_refusing = False

    @property
    def uris(self) -> tuple[str, ...]:
        return tuple(self._memory.by_uri)

    def sign(self, public_key: PublicKey, data: bytes) -> bytes:
        assert not self.is_refusing, "the signer was asked"
        for one in self._memory.by_uri.values():
            if one.key.public_key == public_key:
                return one.key.sign(data)
        raise make_unnamed_error(public_key)


async def make_own_identity(uri: str, *, generation: int, now_ms: int, is_direct: bool = False) -> IdentityDocument:
    """Return what an attacker without a root's key writes: an identity of their own, whose anchor names a signer."""
    root = OwnedSession.generate(session_id="root-of-an-attacker", owner=ROOT_OWNER, now_ms=now_ms)
    signers = MemorySigners()
    async with AnchorKeys("localhost", signers.open) as keys:
        key = await keys.open_new(uri, session_id="anchor-of-an-attacker", now_ms=now_ms)
        endorsements = [await key.introduce(root.session, now_ms)]
    session = key.session
    if is_direct:
        # It ends soon, which a controller records in the audit trail.
        session = replace(session, expiration_ms=now_ms + 86_400_000)
        own = RemoteKey(session.public_key, lambda _, data: signers[uri].key.sign(data))
        root, endorsements = OwnedSession(session=session, signer=own), []
    word = AnchorWord(session=session, endorsements=tuple(endorsements))
    first = replace(create_document(root, now_ms, word=word), current=root, generation=generation)
    return normalize_document(sign_document(first, now_ms))
