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

    def __init_subclass__(cls, *, code: str = "", **keywords: object) -> None:
        """Define a kind of error. Without a code of its own, a class has that of its base."""
        super().__init_subclass__(**keywords)
        if code:
            cls.code = code

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


class ConfigurationError(GoatherdError, code="configuration.invalid"):
    """An option, environment variable or configuration file is wrong or missing."""

    hint = (
        "`goatherd COMMAND --help` lists the options; `goatherd doctor --options` shows their values and where they"
        " come from."
    )


class LifetimeError(ConfigurationError, code="configuration.lifetime_too_short"):
    """The lifetime of a new root is too short to replace the root in time."""

    hint = "Set a longer --lifetime (rotation.lifetime), or shorter waiting times (rotation.adoption and others)."


class UnconfirmedError(ConfigurationError, code="configuration.unconfirmed"):
    """An operation that cannot be undone was called without a confirmation."""

    hint = "Call the function with confirmed=True."
    command_hint = "Give --yes, or answer the question on a terminal."


class PluginNotFoundError(GoatherdError, code="plugin.not_found"):
    """No plugin is registered for a URI scheme."""

    hint = "Check the spelling, or install the package that provides this scheme."


class MissingExtraError(GoatherdError, code="plugin.missing_extra"):
    """The plugin exists but the libraries that it needs are not installed; the hint is the install command."""

    hint = "Install Goatherd with the extra of this store: pip install 'goatherd[NAME]'"


# --- wire ---------------------------------------------------------------------------------------------------------


class WireError(GoatherdError, code="wire.malformed"):
    """The bytes are not valid in GoatDB's formats."""

    hint = "Check the peer, the client or the file that sent or holds the bytes."


class EncodeError(WireError, code="wire.unencodable"):
    """A value cannot be encoded in GoatDB's formats (such as a null in signed data). Change the calling program."""

    hint = "Change the value: GoatDB cannot store this type."


class DecodeError(WireError, code="wire.undecodable"):
    """Bytes from a peer, a client or a file are malformed, and were rejected."""


class PathError(WireError, code="wire.invalid_path"):
    """GoatDB or this server does not allow the repository path or item key."""

    hint = "A repository is named /type/id, such as /data/notes."


# --- verification -------------------------------------------------------------------------------------------------


class VerificationError(GoatherdError, code="verification.failed"):
    """A signature is invalid, or its signer is not trusted. Base class of more specific errors."""

    hint = "Do not use the data. Find out which server, client or file it comes from."


class InvalidSignatureError(VerificationError, code="verification.invalid_signature"):
    """The signature is malformed, or does not match the bytes and the key."""


class InvalidSealError(VerificationError, code="verification.invalid_seal"):
    """Sealed (encrypted) data was sealed with another key or for another purpose, or is damaged."""


class UnknownSignerError(VerificationError, code="verification.unknown_signer"):
    """The session that the signature names is unknown to this process."""


class ExpiredSessionError(VerificationError, code="verification.expired_session"):
    """The session had expired when it signed the data, or has expired when its request arrives."""


class ClockSkewError(VerificationError, code="verification.clock_skew"):
    """The timestamp of a request signature differs from this machine's clock by more than three minutes."""

    hint = "Set the clocks of both machines by NTP."


class UnboundRequestError(VerificationError, code="verification.unbound_request"):
    """The signature of a root's request to a management endpoint does not cover the server and the body, as it must."""

    hint = "Upgrade the tool that sent the request. Upgrade Goatherd's tools before its servers."


class RequestMismatchError(VerificationError, code="verification.request_mismatch"):
    """A request was signed for another method, path or body."""


class OtherServerError(VerificationError, code="verification.other_server"):
    """A request was signed for another server process."""


class ReplayedRequestError(VerificationError, code="verification.replayed_request"):
    """A server has accepted the same request of a root before, within the three minutes that its signature is valid."""


class UntrustedRootError(VerificationError, code="verification.untrusted_root"):
    """The signer of a session commit is not a trusted root, or is a root that may not introduce other roots."""


class AuthorMismatchError(VerificationError, code="verification.author_mismatch"):
    """A commit names another session as its author than the one that signed it."""


class RevokedSessionError(VerificationError, code="verification.revoked_session"):
    """The session that signed the data or the request has been revoked."""


class AccessDeniedError(VerificationError, code="verification.access_denied"):
    """The session is known, but has no permission for the operation in this repository."""


# --- identity -----------------------------------------------------------------------------------------------------


class IdentityError(GoatherdError, code="identity.refused"):
    """An identity document was rejected; the identity in use did not change. Base class of more specific errors."""

    hint = (
        "Nothing was changed, and no new identity was created. Restore the identity from a backup or an earlier"
        " version."
    )


class MalformedIdentityError(IdentityError, code="identity.malformed"):
    """The identity document breaks a rule of its format; the message names the rule."""


class KeyMismatchError(IdentityError, code="identity.key_mismatch"):
    """A private key and its public key in the identity document do not match."""


class NewerKeyError(MalformedIdentityError, code="identity.newer_key"):
    """The identity document holds an Ed25519 key of a newer GoatDB; Goatherd supports GoatDB 0.5.1."""

    hint = "Nothing was changed. Run this server without Goatherd until a version of Goatherd supports its GoatDB."


class GenerationError(IdentityError, code="identity.generation_went_back"):
    """The generation of the identity document is lower than one seen before, or the same with other contents.

    A replica is stale, an old value was replayed, or two writers used the same generation.
    """

    hint = "If you made this change, accept it once with --accept-identity. If not, find out who wrote the secret."


class SuccessionError(IdentityError, code="identity.broken_succession"):
    """No chain of endorsements leads from a trusted root to the current or another root of the identity document.

    Attributes:
        is_chain_open: Whether introductions that were not available could still complete the chain.
        is_root_lost: Whether the check failed because a trusted root is missing in the document.
    """

    is_chain_open = False
    is_root_lost = False
    hint = (
        "If you made this change, accept it once with --accept-identity. If not, find out which user wrote the secret."
    )


class GenerationJumpError(GenerationError, code="identity.generation_jumped"):
    """The generation of the identity document is further ahead of the last one seen than rotations can explain."""

    hint = (
        "A tool other than Goatherd wrote the secret. Run `goatherd restore --signature`: it shows what changed since"
        " the last signed version, and can write that version again."
    )


class UnsignedIdentityError(SuccessionError, code="identity.unsigned"):
    """The identity document has no valid signature by its current root, and a signed one was seen before."""

    hint = (
        "Goatherd 0.1.0, which does not sign, wrote the identity, or a writer without the root's key changed it in the"
        " store. Run `goatherd restore --signature`: it shows what changed since the last signed version, and signs"
        " or undoes it."
    )


class UnanchoredIdentityError(SuccessionError, code="identity.not_anchored"):
    """The identity document holds a root, a revocation or a new anchor that the anchor in use has not signed."""

    hint = (
        "Find out which user wrote the secret: the working root's key may be stolen (`goatherd revoke`). If the anchor"
        " is lost and you removed it, start each server once with --accept-identity."
    )


class DirectModeError(IdentityError, code="identity.direct"):
    """The cluster is in direct mode, and this program needs the root's private key, which is in an HSM or a KMS."""

    hint = "`goatherd rotate --working-root` returns to a root whose key is in the store."


class ForkedIdentityError(SuccessionError, code="identity.forked"):
    """The identity document and the one in use have a common predecessor, but were changed differently since."""

    hint = "The store was restored from a backup and written since. Run `goatherd doctor` for the fixes."


class IdentityExistsError(IdentityError, code="identity.exists"):
    """The store already holds an identity, so none was created."""

    hint = "Nothing was changed. Run `goatherd show` to see the identity that the store holds."


# --- providers ----------------------------------------------------------------------------------------------------


class ProviderError(GoatherdError, code="provider.failed"):
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


class SecretNotFoundError(ProviderError, code="provider.not_found"):
    """The secret, the label or the version does not exist."""

    hint = (
        "Check the address and the mount. For a new cluster, run `goatherd init`; no running server trusts the "
        "identity that it creates. For an existing GoatDB server, run `goatherd migrate`."
    )


class SecretExistsError(ProviderError, code="provider.already_exists"):
    """The secret exists already, so none was created."""

    hint = "Nothing was changed. Choose another name."


class SecretDeletedError(ProviderError, code="provider.deleted"):
    """The secret was deleted. It can be restored, and its name is taken, until its recovery window ends."""

    hint = "Restore the secret with the store's own tool, or wait until its recovery window has ended."


class ConflictError(ProviderError, code="provider.conflict"):
    """Another writer moved the label first; this call changed nothing that a reader sees."""

    hint = "Another process wrote the secret first. Run `goatherd status`, and repeat the command if still needed."


class ProviderAccessDeniedError(ProviderError, code="provider.access_denied"):
    """The store, or the operating system, denies access."""

    hint = "Grant the permissions that `goatherd policy` prints."


class ThrottledError(ProviderError, code="provider.throttled"):
    """The store limits the rate of requests. `retry_after` is the delay in seconds that the store requests, if any."""

    hint = "Wait a minute, then run the command again."
    retryable = True

    def __init__(self, message: str, *, retry_after: float | None = None, **call: Any) -> None:
        super().__init__(message, **call)
        self.retry_after = retry_after


class UnavailableError(ProviderError, code="provider.unavailable"):
    """The store did not answer, or its answer was damaged."""

    hint = "Run `goatherd doctor` to check the store. Run the command again when the store answers."
    retryable = True


class StoreLagError(UnavailableError, code="provider.lagging"):
    """The store of a region does not show yet what the primary store holds, or what servers use already."""

    hint = "`goatherd stores status` shows each region. Wait until the region has caught up, then repeat the command."


class StoresDifferError(ProviderError, code="provider.stores_differ"):
    """The store of a region holds no identity that follows from the primary store's, or a later one."""

    hint = "`goatherd doctor` shows both histories and the ways out."


class PromotionRefusedError(ProviderError, code="provider.not_promotable"):
    """The store of a region cannot become the primary store: another store or a server has shown a later identity."""

    hint = "Promote the region that holds the later identity."


class SecretTooLargeError(ProviderError, code="provider.too_large"):
    """The value exceeds the size limit of the store."""

    hint = "Use a store with a higher limit: `goatherd copy` moves an identity."


class VersionDisabledError(ProviderError, code="provider.disabled_version"):
    """The version exists but its value was disabled or destroyed."""

    hint = "Run `goatherd show --versions` and choose another version."


class ProviderConfigurationError(ProviderError, code="provider.invalid_configuration"):
    """The store's address or configuration is invalid (such as a directory that other users can read)."""


class ProviderMisuseError(ProviderError, code="provider.misuse"):
    """A program calls a provider that it has closed, or one that is open in another event loop."""

    hint = "Make the call inside the provider's `async with` block."


# --- signers --------------------------------------------------------------------------------------------------------


_SIGNER_OPERATIONS = {
    "public_key": "read the public key of",
    "sign": "sign with",
    "create_key": "create",
}


class SignerError(GoatherdError, code="signer.failed"):
    """An operation of a signer failed. Base class of more specific errors.

    Attributes:
        signer: The signer's URI scheme, such as ``pkcs11``.
        key: The key's name in the signer.
        operation: The method that failed, such as ``sign``.
    """

    hint = "Run `goatherd doctor --signer URI` to check the signer."

    def __init__(self, message: str, *, signer: str, key: str, operation: str, hint: str | None = None) -> None:
        doing = _SIGNER_OPERATIONS.get(operation, f"{operation} with")
        super().__init__(f"{signer}: cannot {doing} {key!r}: {message}", hint=hint)
        self.signer = signer
        self.key = key
        self.operation = operation


class SignerKeyNotFoundError(SignerError, code="signer.not_found"):
    """The key, the key's version, or the token that holds the key does not exist. No key was created."""

    hint = (
        "Check the signer's URI. To create the key, use --create-key with `goatherd init` or `goatherd rotate`, or the"
        " platform's own tool."
    )


class SignerKeyExistsError(SignerError, code="signer.already_exists"):
    """The key exists already, so none was created."""

    hint = "Nothing was changed. Choose another name; or leave out --create-key, if you created this key yourself."


class SignerKeyDisabledError(SignerError, code="signer.disabled_key"):
    """The key exists but is disabled, scheduled for deletion or destroyed, so it does not sign."""

    hint = "Enable the key with the platform's own tool, if it was disabled by mistake."


class SignerAccessDeniedError(SignerError, code="signer.access_denied"):
    """The platform denies access to the key: missing rights, wrong credentials or a wrong PIN."""

    hint = "Grant the permissions that `goatherd policy SCHEME --role signer URI` prints, and check the credentials."


class SignerThrottledError(SignerError, code="signer.throttled"):
    """The platform limits the rate of requests. `retry_after` is the delay in seconds that it requests, if any."""

    hint = "Wait a minute, then run the command again."
    retryable = True
    retry_after: float | None = None


class SignerUnavailableError(SignerError, code="signer.unavailable"):
    """The signer's platform or device did not answer, or its answer was damaged."""

    hint = "Check the network or the device. Run the command again when the signer answers."
    retryable = True


class SignerInvalidSignatureError(SignerError, code="signer.invalid_signature"):
    """The signer returned a signature that does not match the data and the pinned public key. It was not used."""

    hint = (
        "The device or the service is faulty, or something on the way changes its answers. Do not use this signer until"
        " the cause is known."
    )


class SignerWrongKeyError(SignerError, code="signer.wrong_key"):
    """The signer has another public key than the pinned one: the key was replaced, or the URI names another key."""

    hint = "Check that the signer's URI names the key, and the version of the key, that the identity has."


class UnsupportedKeyError(SignerError, code="signer.unsupported_key"):
    """The key is not of the kind that GoatDB requires: ECDSA over P-384, with SHA-384."""

    hint = "GoatDB 0.5.1 requires an ECDSA key over P-384 (ES384). Create one, and name it in the signer's URI."


class SignerConfigurationError(SignerError, code="signer.invalid_configuration"):
    """The signer cannot be used with this URI, this configuration or this set-up of the key."""


class SignerMisuseError(SignerError, code="signer.misuse"):
    """A program calls a signer that it has closed, or calls for something that the signer cannot do."""

    hint = "Make the call before `aclose`, or inside the signer's `async with` block."


# --- settings, nodes, rotation --------------------------------------------------------------------------------------


class SettingsError(GoatherdError, code="settings.unreadable"):
    """The settings could not be read or written. Goatherd never replaces them by default settings."""

    hint = "Check the file, its permissions, its directory and the disk."


class LastKnownGoodError(SettingsError, code="settings.last_known_good"):
    """The store is unreachable, and the sealed copy of the last known good identity was rejected.

    The copy is damaged, too old, from the future, of another secret or store, sealed with another key, or older than
    the identity that this server has used.
    """

    hint = "Start the server again when the store is reachable."


class DegradedError(SettingsError, code="settings.degraded"):
    """The identity cannot be changed while it comes from the last known good copy instead of the store."""

    hint = "Wait until the store is reachable."
    retryable = True


class NodeError(GoatherdError, code="node.failed"):
    """A GoatDB server gave an unexpected answer."""

    hint = "Run `goatherd doctor` to check every server."


class NodeUnreachableError(NodeError, code="node.unreachable"):
    """The server did not accept a connection, or did not answer in time."""

    hint = "Check that the server runs and that its address is correct. Run `goatherd status` to check every server."
    retryable = True


class DiscoveryError(NodeError, code="node.discovery"):
    """Discovery of the servers failed or found none. An empty result counts as a failure, not as "no servers"."""

    hint = "Resolve the name by hand, or list each server with --node."
    retryable = True


class UnsignedRequestError(NodeError, code="node.unsigned_request"):
    """A request to a server was not sent, because the signer (the HSM or KMS with the root's key) has not signed it."""

    hint = "Run `goatherd doctor --signer URI` to check the signer that holds the root's key."
    retryable = True


class NodeRefusedError(NodeError, code="node.refused"):
    """The server rejected the request. `status` is the HTTP status."""

    def __init__(self, message: str, *, status: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class InvalidAnswerError(NodeRefusedError, code="node.invalid_answer"):
    """The server's answer is not one that GoatDB or Goatherd gives. Nothing in it was used."""


class StorageError(GoatherdError, code="node.storage"):
    """A data directory or commit log cannot be used in its present state."""

    hint = "Check the directory, its permissions and the disk."


class NewerFormatError(StorageError, code="node.newer_format"):
    """A data directory holds a log or a key that a newer GoatDB wrote; Goatherd supports GoatDB 0.5.1."""

    hint = "Nothing was changed. Run the newer GoatDB without Goatherd, or name a directory of GoatDB 0.5.1."


class ItemExistsError(GoatherdError, code="node.item_exists"):
    """The item exists already, so none was created."""

    hint = "Use `set` to change an item that exists."


class ItemNotFoundError(GoatherdError, code="node.item_not_found"):
    """The item to change does not exist, or was deleted."""

    hint = "Use `create` to create the item."


class RotationError(GoatherdError, code="rotation.failed"):
    """A rotation cannot start or continue."""

    hint = "Run `goatherd status` to see the phase of the rotation."


class IllegalStepError(RotationError, code="rotation.illegal_step"):
    """A step of a rotation, restore or revocation is not allowed in the identity document's present state."""


class RotationBusyError(RotationError, code="rotation.busy"):
    """Another process runs a rotation; the message names the process, the start time and the phase."""

    hint = "Wait until that rotation has ended. If no process drives it any more, run `goatherd rotate --resume`."


class StuckError(RotationError, code="rotation.stuck"):
    """The same action was tried twice without any effect in the store; it is not tried a third time."""

    hint = "Run `goatherd status` to see the labels and the phase, and `goatherd doctor` to check the permissions."


class NotRestorableError(RotationError, code="rotation.not_restorable"):
    """A previous root cannot become the current root again; the message says why. Nothing was written."""

    hint = "Run `goatherd status` to see the roots and the stored versions that hold their private keys."


class UnhealthyError(RotationError, code="rotation.unhealthy"):
    """An operator's health check failed before a rotation could introduce a new root; nothing was written."""

    hint = "Repair the cluster, or correct the health check. Then rotate again."


class ObstructedError(RotationError, code="rotation.obstructed"):
    """Obstacles prevent the start of a rotation; the message names every obstacle, and nothing was written.

    `obstacles` are the `goatherd.rotation.obstacles.Obstacle` that were found.
    """

    hint = "Run `goatherd rotate --plan`, remove the obstacles that it lists, then rotate again."

    def __init__(self, message: str, *, obstacles: tuple[object, ...] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.obstacles = obstacles


class WrongClockError(ObstructedError, code="rotation.wrong_clock"):
    """This machine's clock differs from the store's, or from those of most servers; nothing was written."""

    hint = "Set this machine's clock by NTP."


class StoreWentBackError(ObstructedError, code="rotation.store_went_back"):
    """A server has used a later or a different identity than the store holds; nothing was written."""

    hint = "Restore the later identity in the store, or accept the stored one on every server with --accept-identity."


class NotAdoptedError(RotationError, code="rotation.not_adopted"):
    """Servers did not adopt the next root in time; the rotation was cancelled or rolled back.

    `report` is the run's `goatherd.rotation.events.Report`.
    """

    hint = (
        "Run `goatherd status`, and read the logs of the servers that are named here. Start those that did not answer,"
        " or remove them from --node. Then rotate again."
    )

    def __init__(self, message: str, *, report: object = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.report = report


# --- the agent ------------------------------------------------------------------------------------------------------


class AgentError(GoatherdError, code="agent.failed"):
    """The agent cannot start a server, or cannot keep it running. Base class of more specific errors."""

    hint = "Check the output of the server and the permissions of its data directory."


class AgentBusyError(AgentError, code="agent.busy"):
    """Another agent uses this data directory."""

    hint = "Stop the other agent first: a data directory can have only one agent."


class NotInMemoryError(AgentError, code="agent.not_in_memory"):
    """The agent found no tmpfs for the private key, and no option allows a file on a disk."""

    hint = "Name a directory on a tmpfs with --memory, or allow a file on the disk with --plain-file."


class KeyLeakedError(AgentError, code="agent.key_leaked"):
    """The server sent a private key to an unauthenticated client. The agent stopped the server; the key is exposed.

    Attributes:
        root_ids: Ids of the roots whose private keys are exposed.
    """

    hint = (
        "Every client that could reach the server may have the key. Revoke this root now: goatherd revoke ID. The agent"
        " does not start the server before another root signs."
    )

    def __init__(self, message: str, *, root_ids: tuple[str, ...], hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.root_ids = root_ids


# --- the audit trail ------------------------------------------------------------------------------------------------


class AuditError(GoatherdError, code="audit.failed"):
    """The audit trail cannot be read or written; a command that must write to it does not start."""

    hint = "Check the path, its permissions and the disk."


class AuditBrokenError(GoatherdError, code="audit.broken"):
    """A record of the audit trail was changed or is missing. `line` is the first line that is wrong."""

    hint = "The lines before that line are intact. Keep a copy of the file, and find out which users could write to it."

    def __init__(self, message: str, *, line: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.line = line
