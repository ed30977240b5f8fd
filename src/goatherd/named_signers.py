"""Decide which signers a tool may call as roots of one cluster (direct mode: a root's key is in an HSM or a KMS).

Only a signature needs an event loop and the connections to signers, so this module imports neither
(`goatherd.remote_keys` has them): a command that only reads the identity starts without them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from goatherd.crypto import PublicKey, fingerprint
from goatherd.errors import SignerConfigurationError

AskServers = Callable[[str], Awaitable[bool]]
"""Returns whether a server reports that it was started with the signer of the key that has this fingerprint."""


class NamedSigners:
    """The signers that a tool may call for one cluster, by the URIs in its identity document.

    A signer gets this process's credentials, may read files and load a library. SECURITY: an attacker can replace the
    whole document and sign it correctly, so its URI is used only if the operator has named it, too, or a listed server
    was started with the signer of this key (tests/unit/cli/test_direct_mode.py, tests/unit/test_remote_keys.py).

    Args:
        accepted: The URIs that the operator has named.
        servers: Asks the servers of the cluster.
    """

    def __init__(self, accepted: Iterable[str] = (), *, servers: AskServers | None = None) -> None:
        self.accepted = set(accepted)
        self._servers = [] if servers is None else [servers]
        self._reported: set[bytes] = set()

    def add_servers(self, ask: AskServers) -> None:
        """Add servers of the cluster, which are asked before a signer is called that the operator has not named."""
        self._servers.append(ask)

    def sign(self, uri: str, public_key: PublicKey, data: bytes) -> bytes:
        """Return a verified signature by the signer that `uri` names; it is opened at its first signature.

        Raises:
            SignerConfigurationError: Neither the operator nor a server of the cluster has named the signer.
            SignerError: The signer refused, did not answer, or returned an invalid signature.
        """
        from goatherd import remote_keys  # with an event loop, which only direct mode needs

        if uri not in self.accepted and public_key.compressed not in self._reported:
            if not remote_keys.run_and_wait(self._is_known_to_servers(fingerprint(public_key))):
                raise SignerConfigurationError(
                    "only the identity in the store names this signer, so it is not used: no server that is listed and"
                    " answers was started with the signer of the root's key",
                    signer=uri.partition(":")[0],
                    key=uri,
                    operation="sign",
                    hint="Find out who has written this identity. If it is yours, list its servers (--node), or name"
                    " the signer in the setting `serve.root_signers`.",
                )
            self._reported.add(public_key.compressed)
        return remote_keys.sign_with(uri, public_key, data)

    async def _is_known_to_servers(self, key_fingerprint: str) -> bool:
        return any([await ask(key_fingerprint) for ask in self._servers])
