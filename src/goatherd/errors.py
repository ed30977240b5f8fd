"""Every exception that Goatherd raises, on one screen.

All derive from `GoatherdError`. `code` is stable text: `--json`, logs, metrics, docs and tests use it. `hint` says
what to do next; a raiser may give a better one than the class's own. Messages hold identifiers, never key material.
"""

from __future__ import annotations


class GoatherdError(Exception):
    """Base of every error of Goatherd.

    Attributes:
        code: Stable dotted text, family first.
        hint: What the reader can do next. Every class has one.
        retryable: Whether the same call may succeed later without anybody changing anything.
    """

    code = "goatherd"
    hint = ""
    retryable = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        if hint:
            self.hint = hint


# --- configuration and plugins ------------------------------------------------------------------------------------


class ConfigurationError(GoatherdError):
    """An option, environment variable or configuration file is wrong or missing."""

    code = "configuration.invalid"
    hint = "`goatherd COMMAND --help` lists the options; `goatherd config` shows their values and where they come from."


class LifetimeError(ConfigurationError):
    """A new root would live so short that it could not be replaced in time."""

    code = "configuration.lifetime_too_short"
    hint = "Give a longer --lifetime (rotation.lifetime), or shorten the waiting times (rotation.adoption and others)."


class PluginNotFoundError(GoatherdError):
    """No plugin is registered for a URI scheme."""

    code = "plugin.not_found"
    hint = "Check the spelling, or install the package that provides this scheme."


class MissingExtraError(GoatherdError):
    """The plugin exists but the libraries that it needs are not installed; the hint is the install command."""

    code = "plugin.missing_extra"
    hint = "Install Goatherd with the extra that is named after the store: pip install 'goatherd[NAME]'"


# --- wire ---------------------------------------------------------------------------------------------------------


class WireError(GoatherdError):
    """Bytes that GoatDB's formats do not allow."""

    code = "wire.malformed"
    hint = "Check the peer, the client or the file that the bytes come from."


class EncodeError(WireError):
    """A value of ours cannot be written in GoatDB's formats (a null in signed data, for one). Fix the caller."""

    code = "wire.unencodable"
    hint = "Change the value: GoatDB has no form for it."


class DecodeError(WireError):
    """Bytes from a peer, a client or a file are malformed. Refuse them."""

    code = "wire.undecodable"


class PathError(WireError):
    """A repository path or item key that GoatDB or this server does not allow."""

    code = "wire.invalid_path"
    hint = "A repository is named /type/id, such as /data/notes."


# --- verification -------------------------------------------------------------------------------------------------


class VerificationError(GoatherdError):
    """A signature is invalid, or its signer is not trusted. Base of the named reasons."""

    code = "verification.failed"
    hint = "Do not use it. Find out where it comes from."


class InvalidSignatureError(VerificationError):
    """The signature does not belong to these bytes and this key, or is malformed."""

    code = "verification.invalid_signature"


class InvalidSealError(VerificationError):
    """Sealed data was sealed with another key or for another purpose, or is damaged."""

    code = "verification.invalid_seal"


class UnknownSignerError(VerificationError):
    """The session named in the signature is not known here."""

    code = "verification.unknown_signer"


class ExpiredSessionError(VerificationError):
    """The session had expired at the time that counts."""

    code = "verification.expired_session"


class ClockSkewError(VerificationError):
    """A request signature's time is more than three minutes from ours."""

    code = "verification.clock_skew"
    hint = "Check the clocks of both machines."


class UnboundRequestError(VerificationError):
    """A root's request to a management endpoint does not say in its signature which server and body it is for."""

    code = "verification.unbound_request"
    hint = "Upgrade the tool that sent it: Goatherd's tools are upgraded before its servers."


class RequestMismatchError(VerificationError):
    """A request was signed for another method, path or body."""

    code = "verification.request_mismatch"


class OtherServerError(VerificationError):
    """A request was signed for another server process."""

    code = "verification.other_server"


class ReplayedRequestError(VerificationError):
    """A root's request was accepted before, within the three minutes that its signature counts."""

    code = "verification.replayed_request"


class UntrustedRootError(VerificationError):
    """A root session commit is not signed by a root that is trusted already."""

    code = "verification.untrusted_root"


class AuthorMismatchError(VerificationError):
    """A commit claims a session that did not sign it."""

    code = "verification.author_mismatch"


class RevokedSessionError(VerificationError):
    """The signer has been revoked."""

    code = "verification.revoked_session"


class AccessDeniedError(VerificationError):
    """The session is known but may not do this in this repository."""

    code = "verification.access_denied"


# --- identity -----------------------------------------------------------------------------------------------------


class IdentityError(GoatherdError):
    """An identity document is not to be used. Base of the named reasons; the one in use stays in use."""

    code = "identity.refused"
    hint = "Nothing was changed, and no new identity was made. Restore it from a backup or an earlier version."


class MalformedIdentityError(IdentityError):
    """The document breaks a rule of its form; the message names the rule."""

    code = "identity.malformed"


class KeyMismatchError(IdentityError):
    """A private key does not belong to the public key beside it."""

    code = "identity.key_mismatch"


class NewerKeyError(MalformedIdentityError):
    """The document holds an Ed25519 key, which a newer GoatDB made; Goatherd supports GoatDB 0.5.1."""

    code = "identity.newer_key"
    hint = "Nothing was changed. Run this server without Goatherd until a version of Goatherd supports its GoatDB."


class GenerationError(IdentityError):
    """The document's generation is lower than one already seen: a stale replica or a replayed value."""

    code = "identity.generation_went_back"
    hint = "A replica of the store lags, or the store was restored from a backup; `goatherd doctor` names the ways out."


class SuccessionError(IdentityError):
    """No chain of endorsements leads from a root trusted here to the document's current session.

    Attributes:
        is_chain_open: Introductions that were not at hand could still close the chain.
        is_root_lost: It is not the current root that is in question, but one that has left the document.
    """

    is_chain_open = False
    is_root_lost = False
    code = "identity.broken_succession"
    hint = "If the change is yours, accept it once with --accept-identity; if not, find out who wrote the secret."


class GenerationJumpError(GenerationError):
    """The document's generation is further ahead of the one seen last than any number of rotations could have led."""

    code = "identity.generation_jumped"
    hint = (
        "A tool other than Goatherd wrote the secret. `goatherd sign` shows what changed since the last signed version,"
        " and writes that version again."
    )


class UnsignedIdentityError(SuccessionError):
    """The document lacks a valid signature by its current root, and a signed one was seen before."""

    code = "identity.unsigned"
    hint = (
        "Goatherd 0.1.0 wrote it, which does not sign, or somebody without the root's key altered it in the store."
        " `goatherd sign` shows what changed since the last signed version; it signs the change or takes it back."
    )


class ForkedIdentityError(SuccessionError):
    """The document has not grown from the one in use: both have a common beginning and went different ways."""

    code = "identity.forked"
    hint = "The store was restored from a backup and written since. `goatherd doctor` names the ways out."


class IdentityExistsError(IdentityError):
    """There is an identity already where one was to be created."""

    code = "identity.exists"
    hint = "Nothing was changed. `goatherd show` shows what the store holds."


# --- providers ----------------------------------------------------------------------------------------------------


class ProviderError(GoatherdError):
    """A secret store could not do what was asked.

    Attributes:
        provider: The provider's URI scheme, such as ``file``.
        secret_id: The secret's name in the store.
        operation: The method of `goatherd.providers.base.SecretProvider` that failed.
    """

    code = "provider.failed"
    hint = "`goatherd doctor` checks the store."

    def __init__(self, message: str, *, provider: str, secret_id: str, operation: str, hint: str | None = None) -> None:
        super().__init__(f"{provider}: {operation} {secret_id!r}: {message}", hint=hint)
        self.provider = provider
        self.secret_id = secret_id
        self.operation = operation


class SecretNotFoundError(ProviderError):
    """The secret, the label or the version does not exist."""

    code = "provider.not_found"
    hint = (
        "Check the address and the mount. Only for a new cluster: `goatherd init` makes an identity, which no running "
        "server will trust. For an existing GoatDB server: `goatherd migrate`."
    )


class SecretExistsError(ProviderError):
    """The secret was to be created but exists."""

    code = "provider.already_exists"
    hint = "Nothing was changed. Choose another name."


class SecretDeletedError(ProviderError):
    """The secret was deleted, but can be brought back for a while, and its name is taken until then."""

    code = "provider.deleted"
    hint = "Restore it with the store's own tool, or wait until its recovery window has ended."


class ConflictError(ProviderError):
    """Another writer moved the label first; nothing that a reader sees was changed by this call."""

    code = "provider.conflict"
    hint = "Another writer was first. `goatherd status` shows the state; if it is still needed, run the command again."


class ProviderAccessDeniedError(ProviderError):
    """The store, or the operating system, refuses access."""

    code = "provider.access_denied"
    hint = "`goatherd policy` prints the rights that are needed."


class ThrottledError(ProviderError):
    """The store limits the rate of requests. `retry_after` is its own hint in seconds, if it gave one."""

    code = "provider.throttled"
    hint = "Wait a moment, then run the command again."
    retryable = True
    retry_after: float | None = None


class UnavailableError(ProviderError):
    """The store did not answer, or its answer was damaged."""

    code = "provider.unavailable"
    hint = "Run the command again when the store answers. `goatherd doctor` checks the store."
    retryable = True


class SecretTooLargeError(ProviderError):
    """The value exceeds what the store takes."""

    code = "provider.too_large"
    hint = "Use a store with a higher limit: `goatherd copy` moves an identity."


class VersionDisabledError(ProviderError):
    """The version exists but its value was disabled or destroyed."""

    code = "provider.disabled_version"
    hint = "Choose another version: `goatherd versions` lists them."


class ProviderConfigurationError(ProviderError):
    """The store's address or set-up cannot work (a directory that others can read, for one)."""

    code = "provider.invalid_configuration"


# --- settings, nodes, rotation --------------------------------------------------------------------------------------


class SettingsError(GoatherdError):
    """Settings could not be read or written; nothing was invented in their place."""

    code = "settings.unreadable"
    hint = "Check the file, its permissions, its directory and its disk."


class LastKnownGoodError(SettingsError):
    """The store cannot be reached, and the sealed copy of the last known good identity is not to be used either.

    It is damaged, too old, from the future, of another secret or store, sealed with another key, or goes back behind
    what this node has used.
    """

    code = "settings.last_known_good"
    hint = "Start again when the store can be reached."


class DegradedError(SettingsError):
    """A change of the identity was asked for where it is in use from a last known good copy, without the store."""

    code = "settings.degraded"
    hint = "Wait until the store can be read again."
    retryable = True


class NodeError(GoatherdError):
    """A GoatDB server gave an unexpected answer."""

    code = "node.failed"
    hint = "`goatherd doctor` checks every server."


class NodeUnreachableError(NodeError):
    """No connection, or no answer in time."""

    code = "node.unreachable"
    hint = "Check that the server runs and that its address is right. `goatherd status` asks every server."
    retryable = True


class DiscoveryError(NodeError):
    """It cannot be found out which servers there are, or the answer names none: that is never taken for "none"."""

    code = "node.discovery"
    hint = "Look the name up by hand, or list each server with --node."
    retryable = True


class NodeRefusedError(NodeError):
    """The server answered, with a refusal. `status` is the HTTP status."""

    code = "node.refused"

    def __init__(self, message: str, *, status: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class InvalidAnswerError(NodeRefusedError):
    """The server answered with something that no GoatDB or Goatherd server answers. Nothing of it was used."""

    code = "node.invalid_answer"


class StorageError(GoatherdError):
    """A data directory or commit log cannot be used as it is."""

    code = "node.storage"
    hint = "Check the directory, its permissions and its disk."


class NewerFormatError(StorageError):
    """A data directory holds a log or a key that a newer GoatDB wrote; Goatherd supports GoatDB 0.5.1."""

    code = "node.newer_format"
    hint = "Nothing was changed. Run the newer GoatDB without Goatherd, or name a directory of GoatDB 0.5.1."


class ItemExistsError(GoatherdError):
    """An item was to be created where one is."""

    code = "node.item_exists"
    hint = "`set` changes an item that exists."


class ItemNotFoundError(GoatherdError):
    """An item was to be changed where none is, or only a deleted one."""

    code = "node.item_not_found"
    hint = "`create` makes an item."


class RotationError(GoatherdError):
    """A rotation cannot go on as asked."""

    code = "rotation.failed"
    hint = "`goatherd status` shows the phase of the rotation."


class IllegalStepError(RotationError):
    """The step does not follow from the phase that the document records."""

    code = "rotation.illegal_step"


class RotationBusyError(RotationError):
    """Another process runs a rotation; the message says which, since when and in which phase."""

    code = "rotation.busy"
    hint = "Wait until it is done. If its process has died, take over with `goatherd rotate --resume`."


class StuckError(RotationError):
    """The same action was tried twice, and what the store shows has not changed; it is not tried a third time."""

    code = "rotation.stuck"
    hint = "`goatherd status` shows the labels and the phase; `goatherd doctor` checks what these credentials may do."


class NotRestorableError(RotationError):
    """An earlier root cannot sign again; the message says why. Nothing was written."""

    code = "rotation.not_restorable"
    hint = "`goatherd status` lists the roots, and which stored versions hold their private keys."


class UnhealthyError(RotationError):
    """The operator's health signal is bad before a rotation goes on to a new root; nothing was written."""

    code = "rotation.unhealthy"
    hint = "Fix the cluster first, or check the health check itself."


class ObstructedError(RotationError):
    """Something keeps a new rotation from beginning; the message names every obstacle, and nothing was written.

    `obstacles` are the `goatherd.rotation.Obstacle` that were found.
    """

    code = "rotation.obstructed"
    hint = "`goatherd rotate --plan` names every obstacle; remove them, then rotate."

    def __init__(self, message: str, *, obstacles: tuple[object, ...] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.obstacles = obstacles


class WrongClockError(ObstructedError):
    """This machine's clock differs from the store's, or from those of most servers; nothing was written."""

    code = "rotation.wrong_clock"
    hint = "Set this machine's clock by NTP."


class StoreWentBackError(ObstructedError):
    """A server has used a later state of the identity than the store holds, or another one; nothing was written."""

    code = "rotation.store_went_back"
    hint = "Put the later state back into the store, or accept the one that it holds on every server."


class NotAdoptedError(RotationError):
    """Nodes did not adopt the new root in time; the rotation was cancelled or rolled back.

    `report` is the run's `goatherd.rotation.Report`.
    """

    code = "rotation.not_adopted"
    hint = (
        "`goatherd status` and `goatherd doctor` show what is wrong. Start the servers that do not answer, or "
        "remove them from --node. Then rotate again."
    )

    def __init__(self, message: str, *, report: object = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.report = report


# --- the agent ------------------------------------------------------------------------------------------------------


class AgentError(GoatherdError):
    """The agent cannot run a server, or not go on running it. Base of the named reasons."""

    code = "agent.failed"
    hint = "Check the server's own output, and the permissions of its data directory."


class AgentBusyError(AgentError):
    """Another agent uses this data directory."""

    code = "agent.busy"
    hint = "Stop the other agent first: one data directory has one server."


class NotInMemoryError(AgentError):
    """There is no directory in memory for the private key, and a plain file on a disk is not allowed."""

    code = "agent.not_in_memory"
    hint = "Name a directory on a tmpfs with --memory, or allow a plain file on the disk with --plain-file."


class KeyLeakedError(AgentError):
    """The server gave a private key to an anonymous caller. The server was stopped; the key is exposed."""

    code = "agent.key_leaked"
    hint = "Anyone who could reach the server may have the key. Revoke this root now: goatherd revoke ID."


# --- the audit trail ------------------------------------------------------------------------------------------------


class AuditError(GoatherdError):
    """The audit trail cannot be read or written; a command that must write to it does not start."""

    code = "audit.failed"
    hint = "Check the path, its permissions and its disk."


class AuditBrokenError(GoatherdError):
    """A record of the audit trail is not as it was written, or is missing. `line` is the first that is wrong."""

    code = "audit.broken"
    hint = "The lines before it are as they were written. Keep the file as it is, and find out who could write to it."

    def __init__(self, message: str, *, line: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.line = line
