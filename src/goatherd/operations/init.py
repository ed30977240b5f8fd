"""Create the first identity of a cluster in a store that has none.

If the store already holds an identity, that is an error, and the identity is not changed.
"""

from __future__ import annotations

from contextlib import suppress

from goatherd.clock import SystemClock
from goatherd.errors import GoatherdError, IdentityExistsError, SecretExistsError
from goatherd.identity.document import IdentityDocument, encode_document
from goatherd.identity.session import OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.ids import new_id
from goatherd.operations.identity_store import Store
from goatherd.providers.values import SecretBytes, SecretVersion
from goatherd.rotation.policy import Policy, check_lifetime


async def init_identity(store: Store, policy: Policy) -> tuple[SecretVersion, IdentityDocument]:
    """Generate a root session and write the first identity document.

    Args:
        store: The open store.
        policy: The lifetime of the root, and the tolerance for clocks.

    Returns:
        The version that was written, and the identity in it.

    Raises:
        ConfigurationError: The lifetime is shorter than a rotation needs.
        WrongClockError: This machine's clock differs from the store's.
        IdentityExistsError: The store holds an identity. Nothing was changed.
        ProviderError: The store could not be written.
    """
    check_lifetime(policy)
    now_ms = SystemClock().now_ms()
    with suppress(GoatherdError):
        await store.read()  # the answer carries the store's time; `create` detects an existing identity
    store.check_clock(policy.clock_tolerance)
    root = OwnedSession.generate(session_id=new_id(), owner="root", now_ms=now_ms, lifetime=policy.lifetime)
    document = create_document(root, now_ms)
    try:
        version = await store.provider.create(store.secret_id, SecretBytes(encode_document(document)))
    except SecretExistsError as error:
        raise IdentityExistsError(
            f"{store.name} holds an identity already; nothing was changed",
            hint="`goatherd show` shows it; `goatherd rotate` replaces its key.",
        ) from error
    return version, document
