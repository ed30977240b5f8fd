"""Every exception that Goatherd raises.

All derive from `GoatherdError`. `code` is a stable string: `--json`, logs, metrics, docs and tests use it. `hint` says
what to do next; the code that raises an error may replace the hint of its class. Messages contain identifiers, never
key material.
"""

from __future__ import annotations

from typing import Any


class GoatherdError(Exception):
    """Base of every error of Goatherd.

    Attributes:
        code: Stable dotted string, family first.
        hint: What the reader can do next. Every class has one.
        command_hint: The same in terms of the command line, if `hint` is in terms of a Python call; else empty.
        retryable: Whether the same call may succeed later although no operator has changed anything.
    """

    code = "goatherd"
    hint = ""
    command_hint = ""
    retryable = False

    def __init__(self, message: str, *, hint: str | None = None, command_hint: str | None = None) -> None:
        super().__init__(message)
        if hint:
            self.hint = hint
            self.command_hint = command_hint or ""

    @classmethod
    def all_codes(cls) -> tuple[str, ...]:
        """Return the codes of this class and of every class that derives from it, sorted."""
        return tuple(sorted({cls.code, *(code for kind in cls.__subclasses__() for code in kind.all_codes())}))

    def __reduce__(self) -> tuple[object, ...]:
        import copyreg  # here, since a short command pickles nothing

        # Unpickling bypasses `__init__`, because the `__init__` of many error classes needs more arguments than the
        # message. An error that cannot be unpickled ends the process pool whose worker raised it.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


# --- configuration and plugins ------------------------------------------------------------------------------------


class ConfigurationError(GoatherdError):
    """An option, environment variable or configuration file is wrong or missing."""

    code = "configuration.invalid"
    hint = (
        "`goatherd COMMAND --help` lists the options; `goatherd doctor --options` shows their values and where they"
        " come from."
    )


class LifetimeError(ConfigurationError):
    """The lifetime of a new root is too short to replace the root in time."""

    code = "configuration.lifetime_too_short"
    hint = "Set a longer --lifetime (rotation.lifetime), or shorter waiting times (rotation.adoption and others)."


class UnconfirmedError(ConfigurationError):
    """An operation that cannot be undone was called without a confirmation."""

    code = "configuration.unconfirmed"
    hint = "Call the function with confirmed=True."
    command_hint = "Give --yes, or answer the question on a terminal."


class PluginNotFoundError(GoatherdError):
    """No plugin is registered for a URI scheme."""

    code = "plugin.not_found"
    hint = "Check the spelling, or install the package that provides this scheme."


class MissingExtraError(GoatherdError):
    """The plugin exists but the libraries that it needs are not installed; the hint is the install command."""

    code = "plugin.missing_extra"
    hint = "Install Goatherd with the extra of this store: pip install 'goatherd[NAME]'"


# --- wire ---------------------------------------------------------------------------------------------------------


class WireError(GoatherdError):
    """The bytes are not valid in GoatDB's formats."""

    code = "wire.malformed"
    hint = "Check the peer, the client or the file that sent or holds the bytes."


class EncodeError(WireError):
    """A value cannot be encoded in GoatDB's formats (such as a null in signed data). Change the calling program."""

    code = "wire.unencodable"
    hint = "Change the value: GoatDB cannot store this type."


class DecodeError(WireError):
    """Bytes from a peer, a client or a file are malformed, and were rejected."""

    code = "wire.undecodable"


class PathError(WireError):
    """GoatDB or this server does not allow the repository path or item key."""

    code = "wire.invalid_path"
    hint = "A repository is named /type/id, such as /data/notes."


# --- verification -------------------------------------------------------------------------------------------------


class VerificationError(GoatherdError):
    """A signature is invalid, or its signer is not trusted. Base class of more specific errors."""

    code = "verification.failed"
    hint = "Do not use the data. Find out which server, client or file it comes from."


class InvalidSignatureError(VerificationError):
    """The signature is malformed, or does not match the bytes and the key."""

    code = "verification.invalid_signature"


class InvalidSealError(VerificationError):
    """Sealed (encrypted) data was sealed with another key or for another purpose, or is damaged."""

    code = "verification.invalid_seal"


class UnknownSignerError(VerificationError):
    """The session that the signature names is unknown to this process."""

    code = "verification.unknown_signer"


class ExpiredSessionError(VerificationError):
    """The session had expired when it signed the data, or has expired when its request arrives."""

    code = "verification.expired_session"


class ClockSkewError(VerificationError):
    """The timestamp of a request signature differs from this machine's clock by more than three minutes."""

    code = "verification.clock_skew"
    hint = "Set the clocks of both machines by NTP."


class UnboundRequestError(VerificationError):
    """The signature of a root's request to a management endpoint does not cover the server and the body, as it must."""

    code = "verification.unbound_request"
    hint = "Upgrade the tool that sent the request. Upgrade Goatherd's tools before its servers."


class RequestMismatchError(VerificationError):
    """A request was signed for another method, path or body."""

    code = "verification.request_mismatch"


class OtherServerError(VerificationError):
    """A request was signed for another server process."""

    code = "verification.other_server"


class ReplayedRequestError(VerificationError):
    """A server has accepted the same request of a root before, within the three minutes that its signature is valid."""

    code = "verification.replayed_request"


class UntrustedRootError(VerificationError):
    """The signer of a session commit is not a trusted root, or is a root that may not introduce other roots."""

    code = "verification.untrusted_root"


class AuthorMismatchError(VerificationError):
    """A commit names another session as its author than the one that signed it."""

    code = "verification.author_mismatch"


class RevokedSessionError(VerificationError):
    """The session that signed the data or the request has been revoked."""

    code = "verification.revoked_session"


class AccessDeniedError(VerificationError):
    """The session is known, but has no permission for the operation in this repository."""

    code = "verification.access_denied"


# --- identity -----------------------------------------------------------------------------------------------------


class IdentityError(GoatherdError):
    """An identity document was rejected; the identity in use did not change. Base class of more specific errors."""

    code = "identity.refused"
    hint = (
        "Nothing was changed, and no new identity was created. Restore the identity from a backup or an earlier"
        " version."
    )


class MalformedIdentityError(IdentityError):
    """The identity document breaks a rule of its format; the message names the rule."""

    code = "identity.malformed"


class KeyMismatchError(IdentityError):
    """A private key and its public key in the identity document do not match."""

    code = "identity.key_mismatch"


class NewerKeyError(MalformedIdentityError):
    """The identity document holds an Ed25519 key of a newer GoatDB; Goatherd supports GoatDB 0.5.1."""

    code = "identity.newer_key"
    hint = "Nothing was changed. Run this server without Goatherd until a version of Goatherd supports its GoatDB."


class GenerationError(IdentityError):
    """The generation of the identity document is lower than one seen before, or the same with other contents.

    A replica is stale, an old value was replayed, or two writers used the same generation.
    """

    code = "identity.generation_went_back"
    hint = "If you made this change, accept it once with --accept-identity. If not, find out who wrote the secret."


class SuccessionError(IdentityError):
    """No chain of endorsements leads from a trusted root to the current or another root of the identity document.

    Attributes:
        is_chain_open: Whether introductions that were not available could still complete the chain.
        is_root_lost: Whether the check failed because a trusted root is missing in the document.
    """

    is_chain_open = False
    is_root_lost = False
    code = "identity.broken_succession"
    hint = (
        "If you made this change, accept it once with --accept-identity. If not, find out which user wrote the secret."
    )


class GenerationJumpError(GenerationError):
    """The generation of the identity document is further ahead of the last one seen than rotations can explain."""

    code = "identity.generation_jumped"
    hint = (
        "A tool other than Goatherd wrote the secret. Run `goatherd restore --signature`: it shows what changed since"
        " the last signed version, and can write that version again."
    )


class UnsignedIdentityError(SuccessionError):
    """The identity document has no valid signature by its current root, and a signed one was seen before."""

    code = "identity.unsigned"
    hint = (
        "Goatherd 0.1.0, which does not sign, wrote the identity, or a writer without the root's key changed it in the"
        " store. Run `goatherd restore --signature`: it shows what changed since the last signed version, and signs"
        " or undoes it."
    )


class UnanchoredIdentityError(SuccessionError):
    """The identity document holds a root, a revocation or a new anchor that the anchor in use has not signed."""

    code = "identity.not_anchored"
    hint = (
        "Find out which user wrote the secret: the working root's key may be stolen (`goatherd revoke`). If the anchor"
        " is lost and you removed it, start each server once with --accept-identity."
    )


class DirectModeError(IdentityError):
    """The cluster is in direct mode, and this program needs the root's private key, which is in an HSM or a KMS."""

    code = "identity.direct"
    hint = "`goatherd rotate --working-root` returns to a root whose key is in the store."


class ForkedIdentityError(SuccessionError):
    """The identity document and the one in use have a common predecessor, but were changed differently since."""

    code = "identity.forked"
    hint = "The store was restored from a backup and written since. Run `goatherd doctor` for the fixes."


class IdentityExistsError(IdentityError):
    """The store already holds an identity, so none was created."""

    code = "identity.exists"
    hint = "Nothing was changed. Run `goatherd show` to see the identity that the store holds."


# --- providers ----------------------------------------------------------------------------------------------------


class ProviderError(GoatherdError):
    """An operation of a secret store failed.

    Code that does not know the call raises it with a message alone. `goatherd.providers.base.SecretProvider` then adds
    provider, secret and operation.

    Args:
        message: What went wrong. SECURITY: it must not contain any part of a value (tests/contract guards it).
        hint: What to do next, if the class's own hint is not the best one.
        final: Whether another attempt is pointless although the class is retryable.

    Attributes:
        provider: The provider's URI scheme, such as ``file``; empty until the call is known.
        secret_id: The secret's name in the store.
        operation: The method of `goatherd.providers.base.SecretProvider` that failed.
    """

    code = "provider.failed"
    hint = "Run `goatherd doctor` to check the store."

    def __init__(
        self,
        message: str,
        *,
        provider: str = "",
        secret_id: str = "",
        operation: str = "",
        hint: str | None = None,
        final: bool = False,
    ) -> None:
        super().__init__(f"{provider}: {operation} {secret_id!r}: {message}" if provider else message, hint=hint)
        if final:
            self.retryable = False
        self.provider = provider
        self.secret_id = secret_id
        self.operation = operation


class SecretNotFoundError(ProviderError):
    """The secret, the label or the version does not exist."""

    code = "provider.not_found"
    hint = (
        "Check the address and the mount. For a new cluster, run `goatherd init`; no running server trusts the "
        "identity that it creates. For an existing GoatDB server, run `goatherd migrate`."
    )


class SecretExistsError(ProviderError):
    """The secret exists already, so none was created."""

    code = "provider.already_exists"
    hint = "Nothing was changed. Choose another name."


class SecretDeletedError(ProviderError):
    """The secret was deleted. It can be restored, and its name is taken, until its recovery window ends."""

    code = "provider.deleted"
    hint = "Restore the secret with the store's own tool, or wait until its recovery window has ended."


class ConflictError(ProviderError):
    """Another writer moved the label first; this call changed nothing that a reader sees."""

    code = "provider.conflict"
    hint = "Another process wrote the secret first. Run `goatherd status`, and repeat the command if still needed."


class ProviderAccessDeniedError(ProviderError):
    """The store, or the operating system, denies access."""

    code = "provider.access_denied"
    hint = "Grant the permissions that `goatherd policy` prints."


class ThrottledError(ProviderError):
    """The store limits the rate of requests. `retry_after` is the delay in seconds that the store requests, if any."""

    code = "provider.throttled"
    hint = "Wait a minute, then run the command again."
    retryable = True

    def __init__(self, message: str, *, retry_after: float | None = None, **call: Any) -> None:
        super().__init__(message, **call)
        self.retry_after = retry_after


class UnavailableError(ProviderError):
    """The store did not answer, or its answer was damaged."""

    code = "provider.unavailable"
    hint = "Run `goatherd doctor` to check the store. Run the command again when the store answers."
    retryable = True


class StoreLagError(UnavailableError):
    """The store of a region does not show yet what the primary store holds, or what servers use already."""

    code = "provider.lagging"
    hint = "`goatherd stores status` shows each region. Wait until the region has caught up, then repeat the command."


class StoresDifferError(ProviderError):
    """The store of a region holds a later identity than the primary store, or one with another history."""

    code = "provider.stores_differ"
    hint = "`goatherd doctor` shows both histories and the ways out."


class ReplicationFailedError(ProviderError):
    """The platform reports that its replication of a secret to a region has failed; nothing was written."""

    code = "provider.replication_failed"
    hint = "Repair the replica (how-to page: More than one region), then repeat the command."


class PromotionRefusedError(ProviderError):
    """The store of a region cannot become the primary store: another store or a server has shown a later identity."""

    code = "provider.not_promotable"
    hint = "Promote the region that holds the later identity."


class SecretTooLargeError(ProviderError):
    """The value exceeds the size limit of the store."""

    code = "provider.too_large"
    hint = "Use a store with a higher limit: `goatherd copy` moves an identity."


class VersionDisabledError(ProviderError):
    """The version exists but its value was disabled or destroyed."""

    code = "provider.disabled_version"
    hint = "Run `goatherd show --versions` and choose another version."


class ProviderConfigurationError(ProviderError):
    """The store's address or configuration is invalid (such as a directory that other users can read)."""

    code = "provider.invalid_configuration"


class ProviderMisuseError(ProviderError):
    """A program calls a provider that it has closed, or one that is open in another event loop."""

    code = "provider.misuse"
    hint = "Make the call inside the provider's `async with` block."


# --- signers --------------------------------------------------------------------------------------------------------


_SIGNER_OPERATIONS = {
    "public_key": "read the public key of",
    "sign": "sign with",
    "create_key": "create",
}


class SignerError(GoatherdError):
    """An operation of a signer failed. Base class of more specific errors.

    Attributes:
        signer: The signer's URI scheme, such as ``pkcs11``.
        key: The key's name in the signer.
        operation: The method that failed, such as ``sign``.
    """

    code = "signer.failed"
    hint = "Run `goatherd doctor --signer URI` to check the signer."

    def __init__(self, message: str, *, signer: str, key: str, operation: str, hint: str | None = None) -> None:
        doing = _SIGNER_OPERATIONS.get(operation, f"{operation} with")
        super().__init__(f"{signer}: cannot {doing} {key!r}: {message}", hint=hint)
        self.signer = signer
        self.key = key
        self.operation = operation


class SignerKeyNotFoundError(SignerError):
    """The key, the key's version, or the token that holds the key does not exist. No key was created."""

    code = "signer.not_found"
    hint = (
        "Check the signer's URI. To create the key, use --create-key with `goatherd init` or `goatherd rotate`, or the"
        " platform's own tool."
    )


class SignerKeyExistsError(SignerError):
    """The key exists already, so none was created."""

    code = "signer.already_exists"
    hint = "Nothing was changed. Choose another name; or leave out --create-key, if you created this key yourself."


class SignerKeyDisabledError(SignerError):
    """The key exists but is disabled, scheduled for deletion or destroyed, so it does not sign."""

    code = "signer.disabled_key"
    hint = "Enable the key with the platform's own tool, if it was disabled by mistake."


class SignerAccessDeniedError(SignerError):
    """The platform denies access to the key: missing rights, wrong credentials or a wrong PIN."""

    code = "signer.access_denied"
    hint = "Grant the permissions that `goatherd policy SCHEME --role signer URI` prints, and check the credentials."


class SignerThrottledError(SignerError):
    """The platform limits the rate of requests. `retry_after` is the delay in seconds that it requests, if any."""

    code = "signer.throttled"
    hint = "Wait a minute, then run the command again."
    retryable = True
    retry_after: float | None = None


class SignerUnavailableError(SignerError):
    """The signer's platform or device did not answer, or its answer was damaged."""

    code = "signer.unavailable"
    hint = "Check the network or the device. Run the command again when the signer answers."
    retryable = True


class SignerInvalidSignatureError(SignerError):
    """The signer returned a signature that does not match the data and the pinned public key. It was not used."""

    code = "signer.invalid_signature"
    hint = (
        "The device or the service is faulty, or something on the way changes its answers. Do not use this signer until"
        " the cause is known."
    )


class SignerWrongKeyError(SignerError):
    """The signer has another public key than the pinned one: the key was replaced, or the URI names another key."""

    code = "signer.wrong_key"
    hint = "Check that the signer's URI names the key, and the version of the key, that the identity has."


class UnsupportedKeyError(SignerError):
    """The key is not of the kind that GoatDB requires: ECDSA over P-384, with SHA-384."""

    code = "signer.unsupported_key"
    hint = "GoatDB 0.5.1 requires an ECDSA key over P-384 (ES384). Create one, and name it in the signer's URI."


class SignerConfigurationError(SignerError):
    """The signer cannot be used with this URI, this configuration or this set-up of the key."""

    code = "signer.invalid_configuration"


class SignerMisuseError(SignerError):
    """A program calls a signer that it has closed, or calls for something that the signer cannot do."""

    code = "signer.misuse"
    hint = "Make the call before `aclose`, or inside the signer's `async with` block."


# --- settings, nodes, rotation --------------------------------------------------------------------------------------


class SettingsError(GoatherdError):
    """The settings could not be read or written. Goatherd never replaces them by default settings."""

    code = "settings.unreadable"
    hint = "Check the file, its permissions, its directory and the disk."


class LastKnownGoodError(SettingsError):
    """The store is unreachable, and the sealed copy of the last known good identity was rejected.

    The copy is damaged, too old, from the future, of another secret or store, sealed with another key, or older than
    the identity that this server has used.
    """

    code = "settings.last_known_good"
    hint = "Start the server again when the store is reachable."


class DegradedError(SettingsError):
    """The identity cannot be changed while it comes from the last known good copy instead of the store."""

    code = "settings.degraded"
    hint = "Wait until the store is reachable."
    retryable = True


class NodeError(GoatherdError):
    """A GoatDB server gave an unexpected answer."""

    code = "node.failed"
    hint = "Run `goatherd doctor` to check every server."


class NodeUnreachableError(NodeError):
    """The server did not accept a connection, or did not answer in time."""

    code = "node.unreachable"
    hint = "Check that the server runs and that its address is correct. Run `goatherd status` to check every server."
    retryable = True


class DiscoveryError(NodeError):
    """Discovery of the servers failed or found none. An empty result counts as a failure, not as "no servers"."""

    code = "node.discovery"
    hint = "Resolve the name by hand, or list each server with --node."
    retryable = True


class UnsignedRequestError(NodeError):
    """A request to a server was not sent, because the signer (the HSM or KMS with the root's key) has not signed it."""

    code = "node.unsigned_request"
    hint = "Run `goatherd doctor --signer URI` to check the signer that holds the root's key."
    retryable = True


class NodeRefusedError(NodeError):
    """The server rejected the request. `status` is the HTTP status."""

    code = "node.refused"

    def __init__(self, message: str, *, status: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class InvalidAnswerError(NodeRefusedError):
    """The server's answer is not one that GoatDB or Goatherd gives. Nothing in it was used."""

    code = "node.invalid_answer"


class StorageError(GoatherdError):
    """A data directory or commit log cannot be used in its present state."""

    code = "node.storage"
    hint = "Check the directory, its permissions and the disk."


class NewerFormatError(StorageError):
    """A data directory holds a log or a key that a newer GoatDB wrote; Goatherd supports GoatDB 0.5.1."""

    code = "node.newer_format"
    hint = "Nothing was changed. Run the newer GoatDB without Goatherd, or name a directory of GoatDB 0.5.1."


class ItemExistsError(GoatherdError):
    """The item exists already, so none was created."""

    code = "node.item_exists"
    hint = "Use `set` to change an item that exists."


class ItemNotFoundError(GoatherdError):
    """The item to change does not exist, or was deleted."""

    code = "node.item_not_found"
    hint = "Use `create` to create the item."


class RotationError(GoatherdError):
    """A rotation cannot start or continue."""

    code = "rotation.failed"
    hint = "Run `goatherd status` to see the phase of the rotation."


class IllegalStepError(RotationError):
    """A step of a rotation, restore or revocation is not allowed in the identity document's present state."""

    code = "rotation.illegal_step"


class RotationBusyError(RotationError):
    """Another process runs a rotation; the message names the process, the start time and the phase."""

    code = "rotation.busy"
    hint = "Wait until that rotation has ended. If no process drives it any more, run `goatherd rotate --resume`."


class StuckError(RotationError):
    """The same action was tried twice without any effect in the store; it is not tried a third time."""

    code = "rotation.stuck"
    hint = "Run `goatherd status` to see the labels and the phase, and `goatherd doctor` to check the permissions."


class NotRestorableError(RotationError):
    """A previous root cannot become the current root again; the message says why. Nothing was written."""

    code = "rotation.not_restorable"
    hint = "Run `goatherd status` to see the roots and the stored versions that hold their private keys."


class UnhealthyError(RotationError):
    """An operator's health check failed before a rotation could introduce a new root; nothing was written."""

    code = "rotation.unhealthy"
    hint = "Repair the cluster, or correct the health check. Then rotate again."


class ObstructedError(RotationError):
    """Obstacles prevent the start of a rotation; the message names every obstacle, and nothing was written.

    `obstacles` are the `goatherd.rotation.obstacles.Obstacle` that were found.
    """

    code = "rotation.obstructed"
    hint = "Run `goatherd rotate --plan`, remove the obstacles that it lists, then rotate again."

    def __init__(self, message: str, *, obstacles: tuple[object, ...] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.obstacles = obstacles


class WrongClockError(ObstructedError):
    """This machine's clock differs from the store's, or from those of most servers; nothing was written."""

    code = "rotation.wrong_clock"
    hint = "Set this machine's clock by NTP."


class StoreWentBackError(ObstructedError):
    """A server has used a later or a different identity than the store holds; nothing was written."""

    code = "rotation.store_went_back"
    hint = "Restore the later identity in the store, or accept the stored one on every server with --accept-identity."


class NotAdoptedError(RotationError):
    """Servers did not adopt the next root in time; the rotation was cancelled or rolled back.

    `report` is the run's `goatherd.rotation.events.Report`.
    """

    code = "rotation.not_adopted"
    hint = (
        "Run `goatherd status`, and read the logs of the servers that are named here. Start those that did not answer,"
        " or remove them from --node. Then rotate again."
    )

    def __init__(self, message: str, *, report: object = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.report = report


# --- the agent ------------------------------------------------------------------------------------------------------


class AgentError(GoatherdError):
    """The agent cannot start a server, or cannot keep it running. Base class of more specific errors."""

    code = "agent.failed"
    hint = "Check the output of the server and the permissions of its data directory."


class AgentBusyError(AgentError):
    """Another agent uses this data directory."""

    code = "agent.busy"
    hint = "Stop the other agent first: a data directory can have only one agent."


class NotInMemoryError(AgentError):
    """The agent found no tmpfs for the private key, and no option allows a file on a disk."""

    code = "agent.not_in_memory"
    hint = "Name a directory on a tmpfs with --memory, or allow a file on the disk with --plain-file."


class KeyLeakedError(AgentError):
    """The server sent a private key to an unauthenticated client. The agent stopped the server; the key is exposed.

    Attributes:
        root_ids: Ids of the roots whose private keys are exposed.
    """

    code = "agent.key_leaked"
    hint = (
        "Every client that could reach the server may have the key. Revoke this root now: goatherd revoke ID. The agent"
        " does not start the server before another root signs."
    )

    def __init__(self, message: str, *, root_ids: tuple[str, ...], hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.root_ids = root_ids


# --- the audit trail ------------------------------------------------------------------------------------------------


class AuditError(GoatherdError):
    """The audit trail cannot be read or written; a command that must write to it does not start."""

    code = "audit.failed"
    hint = "Check the path, its permissions and the disk."


class AuditBrokenError(GoatherdError):
    """A record of the audit trail was changed or is missing. `line` is the first line that is wrong."""

    code = "audit.broken"
    hint = "The lines before that line are intact. Keep a copy of the file, and find out which users could write to it."

    def __init__(self, message: str, *, line: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.line = line
