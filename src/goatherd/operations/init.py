"""Create the first identity of a cluster in a store that has none.

If the store already holds an identity, that is an error, and the identity is not changed.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from goatherd.clock import SystemClock
from goatherd.errors import (
    ConfigurationError,
    GoatherdError,
    IdentityExistsError,
    SecretExistsError,
    SecretNotFoundError,
)
from goatherd.identity.anchor import AnchorWord
from goatherd.identity.document import IdentityDocument, encode_document
from goatherd.identity.session import OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.ids import new_id
from goatherd.operations.anchor_key import create_anchor_key, mention_created_key
from goatherd.operations.identity_store import Store
from goatherd.operations.opening import (
    StoreName,
    check_key_is_named,
    choose_policy,
    make_signer_opener,
    open_store,
    read_signer_uri,
)
from goatherd.providers.values import SecretBytes, SecretVersion
from goatherd.remote_keys import sign_aside
from goatherd.rotation.anchor_keys import AnchorKeys, SignerOpener, open_anchor_signer
from goatherd.rotation.policy import Policy, check_lifetime
from goatherd.stores import ReplicatedStore

if TYPE_CHECKING:
    from goatherd.signers.verified import VerifiedSigner


async def init(
    store: StoreName,
    policy: Policy | None = None,
    *,
    org: str | None = None,
    anchor: str | VerifiedSigner | None = None,
    create_key: bool = False,
    direct: bool = False,
) -> IdentityDocument:
    """Create the first identity of a cluster in a store that has none, and return it.

    Args:
        store: See `open_store`.
        policy: How long the root is valid: `Policy.lifetime`, or `Policy.working_lifetime` if there is an anchor.
        org: The organization.
        anchor: The signer (an HSM or a KMS) that holds the key of the identity's anchor: its URI, or what `open_signer`
            returns, which stays open. None for an identity without an anchor.
        create_key: Create the anchor's key first, and wait until it is ready: some minutes at most. It must not exist
            yet.
        direct: Let the anchor itself sign (direct mode). Signatures are made by the signer that the URI names.

    Raises:
        LifetimeError: The lifetime of the root would be too short.
        WrongClockError: This machine's clock differs from the store's.
        IdentityExistsError: The store holds an identity. Nothing was changed.
        ProviderError: The store could not be written.
        SignerError: The signer refused, did not answer, or holds the key already. Nothing was written.
    """
    uri = read_signer_uri(anchor)
    check_key_is_named(uri, create_key=create_key)
    opener = make_signer_opener(anchor)
    async with open_store(store, org=org) as opened:
        _, document = await init_identity(
            opened, choose_policy(policy), anchor=uri, create_key=create_key, direct=direct, open_signer=opener
        )
        return document


async def init_identity(
    store: Store,
    policy: Policy,
    *,
    anchor: str | None = None,
    create_key: bool = False,
    direct: bool = False,
    open_signer: SignerOpener = open_anchor_signer,
    on_wait: Callable[[timedelta], None] | None = None,
) -> tuple[SecretVersion, IdentityDocument]:
    """Create the first identity in an open store, and return the version that was written, and the identity in it.

    Args:
        store, policy, anchor, create_key, direct: As for `init`; the anchor is named by its URI.
        open_signer: Opens the signer by its URI.
        on_wait: Called once, with the longest duration of the wait, if the created key is not ready at once.

    Raises:
        ConfigurationError: Direct mode without an anchor; or the policy needs a working root, but there is no anchor.
        GoatherdError: As `init`.
    """
    if direct and anchor is None:
        raise ConfigurationError(
            "direct mode needs an anchor", hint="Give the URI of the signer that holds the anchor's key."
        )
    policy.check_new_root(has_anchor=anchor is not None)
    policy = policy.for_identity(has_anchor=anchor is not None)
    check_lifetime(policy)
    now_ms = SystemClock().now_ms()
    if await _holds_identity(store, must_be_certain=create_key):
        raise _exists_error(store)
    store.check_clock(policy.clock_tolerance)
    root = OwnedSession.generate(session_id=new_id(), owner="root", now_ms=now_ms, lifetime=policy.lifetime)
    word: AnchorWord | None = None
    if anchor is not None:
        if create_key:
            await create_anchor_key(anchor, open_signer, on_wait=on_wait)
        async with AnchorKeys(store.org, open_signer, store.signers) as keys:
            key = await keys.open_new(anchor, session_id=new_id(), now_ms=now_ms)
            if direct:
                root = key.owned
                word = AnchorWord(session=key.session)
            else:
                endorsement = await key.introduce(root.session, now_ms)
                word = AnchorWord(session=key.session, endorsements=(endorsement,))
    document = await sign_aside(lambda: create_document(root, now_ms, word=word), root)
    try:
        with mention_created_key(was_created=create_key):
            version = await store.provider.create(store.secret_id, SecretBytes(encode_document(document)))
    except SecretExistsError as error:
        if isinstance(store.provider, ReplicatedStore):  # in the store of another region, which the hint names
            raise IdentityExistsError(f"{error}; nothing was changed", hint=error.hint) from error
        found = _exists_error(store)
        if create_key:  # which is the key of the other process's identity if that one has named it, too
            found.hint = (
                f"{found.hint} The command has created the key {anchor}: destroy it, unless it is the anchor of that"
                " identity."
            )
        raise found from error
    return version, document


async def _holds_identity(store: Store, *, must_be_certain: bool) -> bool:
    """Return whether a read of the store returns an identity.

    The answer to this read also carries the store's time, which `Store.check_clock` needs.

    Args:
        store: The open store.
        must_be_certain: Whether to raise the read's error, unless the store has no such secret. Otherwise `create`
            detects an identity that cannot be read.
    """
    try:
        await store.read()
    except SecretNotFoundError:
        return False
    except GoatherdError:
        if must_be_certain:
            raise  # a key would be created for an identity that then cannot be written
        return False
    return True


def _exists_error(store: Store) -> IdentityExistsError:
    return IdentityExistsError(
        f"{store.name} holds an identity already; nothing was changed",
        hint="`goatherd show` shows the identity; `goatherd rotate` replaces its root key.",
    )
