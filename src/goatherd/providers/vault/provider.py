"""Store a secret in one entry of a Vault or OpenBao key/value engine, version 2.

The entry holds the record of versions and labels and the values (`goatherd.providers.record_provider`); its member
``value`` is the current value, for readers that do not know the record. Each change replaces the entry with
check-and-set. `client` sends the requests; `auth` logs in.

- The engine keeps earlier versions of the entry, with values that were destroyed since. Destroying a value first takes
  it out of the entry, then destroys all earlier versions of the entry.
- Custom metadata is not used, because Vault writes it without compare-and-swap.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Final, Self

import httpx2

from goatherd.clock import Clock
from goatherd.errors import ConflictError, ProviderAccessDeniedError, ProviderConfigurationError
from goatherd.providers.base import Call, Guarantees, ReadConsistency, RetryPolicy
from goatherd.providers.capabilities import Finding, Verdict, rights_finding
from goatherd.providers.record_provider import ObjectStore, RecordProvider, StoredObject, Token
from goatherd.providers.values import Label, SecretBytes, SecretVersion, VersionId, VersionState
from goatherd.providers.vault.address import VaultAddress, parse_address
from goatherd.providers.vault.client import Gone, VaultClient
from goatherd.providers.versioned_record import DamagedRecordError, RecordedSecret, decode_secret, encode_secret

PATH: Final = "path"
"""The member that holds the entry's path, because an answer of the server does not name it."""
MAX_VALUE_BYTES: Final = 20 << 10
HISTORY: Final = 8
"""With values of the greatest length, so many unlabelled versions fit beside seven labelled ones."""


class VaultStore(ObjectStore):
    """Keeps each secret as one entry of a key/value engine. The entry's version is the token.

    Args:
        client: An open client of the server.
        mount: The engine's mount, for error messages.
    """

    max_bytes = (512 - 16) << 10
    """Vault on Consul limits an entry to 512 KB: developer.hashicorp.com/vault/docs/internals/limits."""
    max_unlabelled = 32
    keeps_states = True

    def __init__(self, client: VaultClient, mount: str) -> None:
        self._client = client
        self._mount = mount

    async def get(self, secret_id: str) -> StoredObject | None:
        found = await self._client.read_secret(secret_id)
        if found is None:
            return None
        if isinstance(found, Gone):
            how = "destroyed" if found.state is VersionState.DESTROYED else "deleted by hand"
            raise ProviderConfigurationError(
                f"version {found.version} of the entry {self._mount}/{secret_id} was {how}",
                hint=f"`vault kv undelete -mount={self._mount} -versions={found.version} {secret_id}` brings back one"
                f" that was deleted; `vault kv rollback -mount={self._mount} -version=… {secret_id}`, an earlier one.",
            )
        secret = decode_secret(found.data)
        if found.data.get(PATH) != secret_id:
            raise DamagedRecordError("it is the entry of another path, from where `goatherd copy` can copy it")
        return StoredObject(secret, found.version)

    async def put(self, secret_id: str, secret: RecordedSecret, token: Token | None) -> None:
        written = await self._client.write_secret(secret_id, {**encode_secret(secret), PATH: secret_id}, cas=token or 0)
        if written is None:
            raise ConflictError("other writers keep changing the secret")
        if written.expires:
            raise ProviderConfigurationError(
                f"the server deletes versions of {self._mount}/{secret_id} automatically after some time",
                hint="The change was made. Set delete_version_after of the entry and of the mount to 0s, then make"
                " another change before that time.",
            )

    async def delete(self, secret_id: str, token: Token) -> None:  # noqa: ARG002 - Vault deletes any state
        await self._client.remove_secret(secret_id)

    async def erase_before(self, secret_id: str, token: Token) -> None:
        # SECURITY: only versions before one that was read, and no longer has the value, are destroyed. So a server that
        # claims a write which it has not made loses no key
        # (tests/contract/vault/test_wrong_answers.py::TestVaultAnswers).
        states = await self._client.read_states(secret_id)
        older = [n for n, state in states.items() if n < token and state is not VersionState.DESTROYED]
        if older:
            await self._client.destroy_versions(secret_id, *older)


class VaultSecretProvider(RecordProvider):
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
        history: at least 8 unlabelled versions, and 32 of the usual size; labelled ones are never dropped.
        destroying: immediate and permanent. It also destroys the earlier versions of the entry.
        size: 20 KiB for a value, 496 KiB for all: Vault on Consul stores no larger entry.
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
        return Guarantees(
            cas=True,
            read_consistency=consistency,
            max_value_bytes=MAX_VALUE_BYTES,
            history=HISTORY,
            custom_labels=True,
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
        self.store = VaultStore(client, self.address.mount)

    async def _close(self) -> None:
        await self._client.close()

    async def diagnose(self, secret_id: str) -> list[Finding]:
        """Check what the token allows for a secret, and return the findings."""
        call = self._start_call("diagnose", secret_id)
        return await self._run_call(call, self._diagnose_secret)

    async def _diagnose_secret(self, call: Call) -> list[Finding]:
        await self._require_object(call)
        may_write = await self._client.has_capability("update", "data", call.secret_id)
        if may_write is None:
            text = "the server does not say what the token may do"
            hint = "Give the token the policy `default`."
            return [Finding(name="rights", verdict=Verdict.NOT_CHECKED, text=text, hint=hint)]
        may_destroy = await self._client.has_capability("update", "destroy", call.secret_id)
        return [rights_finding(self.scheme, may_write=may_write, may_destroy=may_destroy)]

    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        engine = await self._client.engine_version()
        if engine not in (None, "kv 2"):
            raise ProviderConfigurationError(
                f"what is mounted at {self.address.mount} is {engine}, not a key/value engine of version 2",
                hint=f"`vault kv enable-versioning {self.address.mount}` upgrades an engine of version 1.",
            )
        return await super()._create(call, value, label)

    async def _destroy(self, call: Call, version: VersionId) -> None:
        record = (await self._require_object(call)).secret.record
        record.require_unlabelled(call, version)
        if not await self._client.may_destroy(call.secret_id):  # before anything is changed
            raise ProviderAccessDeniedError(
                "the token may not destroy versions of the secret",
                hint="`goatherd policy vault --role admin` prints a policy that allows it.",
            )
        await super()._destroy(call, version)


class OpenBaoSecretProvider(VaultSecretProvider):
    """Store secrets in OpenBao: as ``vault://``, but ``BAO_ADDR`` and other ``BAO_`` variables take precedence.

    Address: ``openbao://host:port/mount/path``.

    Credentials: those of `VaultSecretProvider`, as are permissions and guarantees.
    """

    scheme = "openbao"
