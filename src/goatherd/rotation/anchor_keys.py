"""Collect the signatures of an anchor, whose key is in an HSM or a KMS, before an identity document is written.

An anchor is a key that endorses each root of a cluster. This module makes all calls to its signer before the write:
once a rotation is prepared, the identity document holds every signature of the anchor that the rotation needs. So a
signer that fails later does not stop the rotation.

Each signature is verified with the public key that is pinned for the signer (`goatherd.signers.verified`). If a signer
fails, its error is raised, and nothing was written.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

from goatherd.errors import ConfigurationError, IllegalStepError, SignerError
from goatherd.identity.anchor import AnchorChange, AnchorWord, change_text, revocation_text
from goatherd.identity.document import IdentityDocument
from goatherd.identity.key_age import last_valid_ms
from goatherd.identity.remote_key import RemoteKey
from goatherd.identity.root_signatures import Endorsement, IntroducedBy
from goatherd.identity.session import ROOT_OWNER, OwnedSession, Session, format_signature
from goatherd.remote_keys import RootSigners, make_unnamed_error
from goatherd.times import milliseconds
from goatherd.wire.javascript_values import exact_date_ms

if TYPE_CHECKING:
    from goatherd.signers.base import SignerKey

LIFETIME: Final = timedelta(days=3650)
"""How long a new anchor is valid. Its key cannot be copied, so it is replaced for other reasons than its age. It still
endorses roots after this time (`AnchorKey`)."""
ROLL_BACK_WRITES: Final = 4
"""How many generations after the prepared document a roll-back can be written at the latest.

The rotation itself uses all of them. So after another write meanwhile, such as the promotion of a store, a rotation may
have to be completed (`goatherd.identity.transitions.can_go_back`).
"""


class AnchorSigner(Protocol):
    """The methods that this module calls on a signer; `goatherd.signers.verified.VerifiedSigner` implements them."""

    async def public_key(self) -> SignerKey: ...

    async def sign(self, text: bytes) -> bytes: ...

    async def aclose(self) -> None: ...


SignerOpener = Callable[[str], AnchorSigner]
"""Returns the signer that a URI names. Its signatures must match the public key that it reports first."""


def open_anchor_signer(uri: str) -> AnchorSigner:
    """Return the signer that `uri` names. Opens no connection."""
    from goatherd.signers.verified import open_signer  # most identities have no anchor

    return open_signer(uri)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorChoice:
    """What a rotation changes about the anchor, the key in an HSM or a KMS that endorses the roots (default: nothing).

    Attributes:
        signer: URI of the signer that holds the key of a new anchor; None to set no new anchor.
        is_removed: Whether the rotation removes the anchor, so that none endorses the roots after it.
        is_direct: Whether the new anchor becomes the next root itself (direct mode): the HSM or the KMS then makes each
            signature of the root.
        leaves_direct: Whether the rotation leaves direct mode: the next root is a working root, an ordinary key in the
            store, which the present anchor endorses.

    Raises:
        ConfigurationError: Two of these changes exclude each other, or direct mode is chosen without a signer.
    """

    signer: str | None = None
    is_removed: bool = False
    is_direct: bool = False
    leaves_direct: bool = False

    def leaves_anchor(self, document: IdentityDocument) -> bool:
        """Return whether the identity has an anchor after this change."""
        return self.signer is not None or (document.anchor is not None and not self.is_removed)

    def check_allowed(self, document: IdentityDocument) -> None:
        """Check that the identity, in which no rotation is in progress, allows this change of the anchor.

        Raises:
            IllegalStepError: The identity is not in direct mode, which the change would leave; or it is in direct mode,
                where a rotation must change the anchor.
        """
        if self.leaves_direct and not document.is_direct:
            raise IllegalStepError(
                "the identity is not in direct mode, so it has a working root already",
                hint="`goatherd rotate` without --working-root renews the root.",
            )
        if document.is_direct and self == UNCHANGED:
            raise IllegalStepError(
                f"root {document.current.id} signs in an HSM or a KMS (direct mode), and such a key is not renewed",
                hint="`goatherd rotate --anchor URI --direct` replaces the key by another one; `goatherd rotate"
                " --working-root` returns to a working root, whose key is in the store.",
            )

    def __post_init__(self) -> None:
        if self.signer is not None and self.is_removed:
            raise ConfigurationError(
                "one rotation cannot both set a new anchor and remove the anchor", hint="Choose one of the two."
            )
        if self.leaves_direct and (self.signer is not None or self.is_removed):
            raise ConfigurationError(
                "a rotation that leaves direct mode keeps the anchor: it cannot also set a new anchor or remove it",
                hint="Choose one of the two.",
            )
        if self.is_direct and self.signer is None:
            raise ConfigurationError(
                "a rotation into direct mode needs the URI of the signer that holds the new key",
                hint="Name the signer of the new anchor.",
            )


UNCHANGED: Final = AnchorChoice()


class AnchorKey:
    """One anchor: its session (id and public key), and the signer in an HSM or a KMS that holds its key.

    An expired anchor dates its signatures at the last time at which they are valid (`last_valid_ms`), as an expired
    root does for its successor. Otherwise no rotation could begin, not even one to another anchor.
    """

    def __init__(self, session: Session, signer: AnchorSigner, org: str, signers: RootSigners) -> None:
        self.session = session
        self._signer = signer
        self._org = org
        self._signers = signers

    @property
    def owned(self) -> OwnedSession:
        """The anchor as a root that can sign: in direct mode, the anchor itself is the current root."""
        return OwnedSession(session=self.session, signer=RemoteKey(self.session.public_key, self._signers.sign))

    async def introduce(self, root: Session, now_ms: int, *, is_earlier: bool = False) -> Endorsement:
        """Return the anchor's endorsement of a root, which is also the root's introduction in ``/sys/sessions``.

        Args:
            root: The root to endorse.
            now_ms: Milliseconds since 1970.
            is_earlier: Whether servers trusted the root before they knew the anchor.
        """
        commit = IntroducedBy(ts=self._limit_time(now_ms), org=self._org, is_earlier=is_earlier)
        text = commit.draft_commit(root, by_id=self.session.id).signed_text(self.session.id)
        return Endorsement(by=self.session.id, of=root.id, signature=await self._sign_text(text, now_ms), commit=commit)

    async def sign_change(
        self, subject: Session, now_ms: int, *, is_anchor: bool, until: int | None = None
    ) -> AnchorChange:
        """Sign that this anchor's role ends, and that `subject` is the next anchor or signs without an anchor.

        Args:
            subject: The next anchor if `is_anchor`, else the root that signs without an anchor.
            now_ms: Milliseconds since 1970.
            is_anchor: Whether `subject` is the next anchor.
            until: The last generation of the identity for which the statement counts; None for no limit.
        """
        text = change_text(self.session.id, subject, is_anchor=is_anchor, until=until)
        return AnchorChange(
            by=self.session.id,
            to=subject.id if is_anchor else None,
            root=None if is_anchor else subject.id,
            until=until,
            signature=await self._sign_text(text, now_ms),
        )

    async def sign_revocation(self, revoked_id: str, at: int) -> str:
        """Return the anchor's signature of the statement that root `revoked_id` is revoked at time `at`."""
        return await self._sign_text(revocation_text(self.session.id, revoked_id, at), at)

    async def check_signing(self) -> None:
        """Check that the anchor's signer signs: it signs a text that GoatDB accepts neither as commit nor as request.

        Raises:
            SignerError: The signer refused, did not answer, or returned an invalid signature.
        """
        await self._signer.sign(f"goatherd check {self.session.id}".encode())

    async def _sign_text(self, text: str, now_ms: int) -> str:
        return format_signature(self.session.id, await self._signer.sign(text.encode()), self._limit_time(now_ms))

    def _limit_time(self, now_ms: int) -> int:
        return min(now_ms, last_valid_ms(self.session))


class AnchorKeys:
    """Opens the signers of anchors for one run of an operation, such as a rotation, and closes them at its end.

    SECURITY: only signers that the configuration of this machine names are opened. The anchor in the identity document
    is known by its public key, and the signer that reports this key signs (tests/unit/rotation/test_anchor.py).

    Args:
        org: The organization id, which is part of every signed commit.
        opener: Opens a signer by its URI.
        signers: The signers that this machine may call; the one of a new anchor is added.
    """

    def __init__(self, org: str, opener: SignerOpener = open_anchor_signer, signers: RootSigners | None = None) -> None:
        self._org = org
        self._opener = opener
        self._signers = signers or RootSigners()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every signer that this object has opened. It can open signers again afterwards."""
        await self._stack.aclose()

    async def open_current(self, document: IdentityDocument) -> AnchorKey:
        """Return the anchor that an identity has, with the signer that holds its key.

        Raises:
            SignerConfigurationError: The configuration of this machine names no such signer.
            SignerError: No signer has reported the anchor's key, and one of them refused or did not answer.
        """
        session = document.anchor_session
        assert session is not None
        failure: SignerError | None = None
        for uri in self._signers.uris:
            signer = self._open_signer(uri)
            try:
                key = (await signer.public_key()).public_key
            except SignerError as error:
                failure = error
                continue
            if key == session.public_key:
                return AnchorKey(session, signer, self._org, self._signers)
        raise failure or make_unnamed_error(session.public_key, f"anchor {session.id}")

    async def open_new(
        self,
        uri: str,
        *,
        session_id: str,
        now_ms: int,
        document: IdentityDocument | None = None,
        is_direct: bool = False,
    ) -> AnchorKey:
        """Return a new anchor, whose session has the public key that the signer reports.

        Args:
            uri: The signer's URI.
            session_id: A new id for the session; not used if the identity lists the key already.
            now_ms: Milliseconds since 1970.
            document: The identity that gets the anchor; None for a new identity.
            is_direct: Whether the anchor will itself be the current root (direct mode); then the identity must not list
                the key yet.

        Raises:
            IllegalStepError: The identity lists the key already, as its anchor or as a root that cannot become one.
        """
        self._signers.add(uri)
        signer = self._open_signer(uri)
        key = (await signer.public_key()).public_key
        known = None if document is None else next((one for one in document.roots if one.public_key == key), None)
        if is_direct and known is not None:
            raise IllegalStepError(
                f"the signer's key is that of root {known.id}, which this identity lists already",
                hint="Direct mode needs a key that the identity has not used: create another one (--create-key).",
            )
        if document is not None and known is not None:
            signing = {one.id for one in (document.current, document.next) if one is not None}
            if known.id in signing | document.revoked_ids or known.is_expired(now_ms):
                raise IllegalStepError(
                    f"the signer's key is that of root {known.id}, which cannot be the anchor: it signs, is the next"
                    " root, was revoked, or has expired",
                    hint="Name the signer of another key, or create one (--create-key).",
                )
            if document.anchor is not None and known.id == document.anchor:
                raise IllegalStepError(
                    f"the signer's key is that of the present anchor {known.id}",
                    hint="`goatherd rotate` without --anchor renews the working root.",
                )
        session = known or Session(
            id=session_id,
            public_key=key,
            owner=ROOT_OWNER,
            expiration_ms=exact_date_ms(now_ms + milliseconds(LIFETIME)),
        )
        return AnchorKey(session, signer, self._org, self._signers)

    def _open_signer(self, uri: str) -> AnchorSigner:
        signer = self._opener(uri)
        self._stack.push_async_callback(signer.aclose)
        return signer


async def collect_anchor_signatures(
    keys: AnchorKeys,
    document: IdentityDocument,
    successor: Session,
    choice: AnchorChoice,
    *,
    anchor_id: str,
    now_ms: int,
    direct: AnchorKey | None = None,
) -> AnchorWord | None:
    """Return the signatures of the anchors that a rotation needs; None if there is no anchor before or after it.

    The renewal of a root that the anchor endorses needs one signature. To set an anchor takes three, to replace an
    anchor six. All signatures are made before anything is written.

    Args:
        keys: Opens the signers.
        document: The identity, without a rotation in progress.
        successor: The next root.
        choice: What the rotation changes about the anchor.
        anchor_id: An unused id, for the session of a new anchor.
        now_ms: Milliseconds since 1970.
        direct: The new anchor if it is the next root itself (direct mode); else None.

    Raises:
        SignerError: A signer refused, did not answer, or returned invalid signatures.
        IllegalStepError: The identity does not allow this change of the anchor.
    """
    choice.check_allowed(document)
    before = None if document.anchor is None else await keys.open_current(document)
    if choice.signer is None:
        if before is None:
            if choice.is_removed:
                raise IllegalStepError(
                    "the identity has no anchor that could be removed", hint="`goatherd rotate` renews the root."
                )
            return None
        endorsement = await before.introduce(successor, now_ms)
        if not choice.is_removed:
            return AnchorWord(session=before.session, endorsements=(endorsement,))
        release = await before.sign_change(successor, now_ms, is_anchor=False)
        return AnchorWord(session=None, endorsements=(endorsement,), changes=(release,))
    after = direct or await keys.open_new(choice.signer, session_id=anchor_id, now_ms=now_ms, document=document)
    # SECURITY: the permission to roll back ends with the last document of this rotation, which has this generation.
    # Otherwise the previous key could undo the rotation at any time (tests/unit/identity/test_anchor.py).
    until = document.generation + 1 + ROLL_BACK_WRITES
    # A next root that is the next anchor itself has no other authority over it than the anchor before it.
    endorsements = [] if direct is not None else [await after.introduce(successor, now_ms)]
    changes: list[AnchorChange] = []
    if before is None:
        endorsements.append(await after.introduce(document.current.session, now_ms, is_earlier=True))
        changes.append(await after.sign_change(document.current.session, now_ms, is_anchor=False, until=until))
    else:
        endorsements.append(await before.introduce(after.session, now_ms))
        # The next root stays listed after a cancellation or a roll-back, when only the previous anchor's word counts.
        if direct is None:
            endorsements.append(await before.introduce(successor, now_ms))
        changes.append(await before.sign_change(after.session, now_ms, is_anchor=True))
        endorsements.append(await after.introduce(before.session, now_ms, is_earlier=True))
        changes.append(await after.sign_change(before.session, now_ms, is_anchor=True, until=until))
    return AnchorWord(session=after.session, endorsements=tuple(endorsements), changes=tuple(changes))
