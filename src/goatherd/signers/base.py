"""The interface of a signer, which signs bytes with one key. Plugins implement it.

A plugin makes one attempt for each call and reports what happened. `goatherd.signers.verified` adds what all signers
need: the check of each signature, a deadline, retries and counts.

Rules:
- A plugin raises `goatherd.errors.SignerError` only, made with `Signer.error`. It never creates a key unless
  `KeyCreator.create_key` is called. It never retries, except for a step without which a key that it has just created
  would be lost.
- A signer gets the whole text, not a digest, because plain Ed25519 cannot sign a digest. A plugin may hash the text
  itself.
- PINs and tokens come from files, the environment or the platform's own credential chain, never from a URI.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from types import TracebackType
from typing import ClassVar, Final, Protocol, Self, TypeVar, runtime_checkable

from goatherd.crypto import PublicKey
from goatherd.errors import (
    ConfigurationError,
    ConflictError,
    DecodeError,
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    ProviderError,
    ProviderMisuseError,
    SecretDeletedError,
    SecretExistsError,
    SecretNotFoundError,
    SignerAccessDeniedError,
    SignerConfigurationError,
    SignerError,
    SignerKeyDisabledError,
    SignerKeyExistsError,
    SignerKeyNotFoundError,
    SignerMisuseError,
    SignerThrottledError,
    SignerUnavailableError,
    ThrottledError,
    UnavailableError,
    VersionDisabledError,
)

ErrorKind = TypeVar("ErrorKind", bound=SignerError)
Raw = TypeVar("Raw")
Decoded = TypeVar("Decoded")


class KeyKind(StrEnum):
    """The kinds of keys that GoatDB's sessions can have."""

    ECDSA_P384 = "ECDSA P-384, SHA-384"
    """The only kind of GoatDB 0.5.1; a raw signature is ``r || s``, 96 bytes."""


class Latency(StrEnum):
    """How long a signature takes: the order of magnitude, by where the key is."""

    MEMORY = "memory"
    """Below a millisecond: the key is in this process."""
    DEVICE = "device"
    """Some milliseconds: the key is in a device of this machine or its network."""
    SERVICE = "service"
    """Tens of milliseconds: a request to a service."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerFacts:
    """What a signer declares about itself.

    Attributes:
        exportable: Whether any process can read the private key in a usable form.
        latency: How long a signature takes, as an order of magnitude.
        max_text_bytes: The longest text that can be signed; None for no limit.
        region: The region of the cloud service; None without one.
        signatures_per_second: The highest rate that the platform documents, often shared by a whole account; None if it
            documents none.
        ready_within: How long it may take until a key that was just created can be read and used.
    """

    exportable: bool
    latency: Latency
    max_text_bytes: int | None = None
    region: str | None = None
    signatures_per_second: int | None = None
    ready_within: timedelta = timedelta(seconds=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerKey:
    """A public key and its kind."""

    kind: KeyKind
    public_key: PublicKey


class Signer(ABC):
    """One key of one platform. A plugin derives its signer from this class and sets `scheme`.

    An instance is an async context manager; leaving it calls `aclose`. Construction connects to nothing.

    Attributes:
        scheme: The scheme of the signer's URIs, which is also the name of the plugin's entry point.
        name: The key's name on its platform, for errors and reports. It contains no secret.
        credential_variables: Environment variables that hold credentials for the platform; ``*`` at the end matches any
            suffix.
    """

    scheme: ClassVar[str]
    credential_variables: ClassVar[tuple[str, ...]] = ()
    name: str

    @classmethod
    @abstractmethod
    def from_uri(cls, uri: str) -> Self:
        """Return the signer that `uri` names. Connects to nothing.

        Raises:
            ConfigurationError: The URI does not have the form that this scheme requires.
        """

    @property
    @abstractmethod
    def facts(self) -> SignerFacts:
        """What this signer declares about itself, such as whether its key can be exported."""

    @abstractmethod
    async def public_key(self) -> SignerKey:
        """Return the public key, as the platform reports it now.

        Raises:
            SignerError: The platform refused or did not answer.
            UnsupportedKeyError: The key is of another kind than `KeyKind` has.
        """

    @abstractmethod
    async def sign(self, text: bytes) -> bytes:
        """Return the raw signature over `text`, unverified. One attempt.

        Raises:
            SignerError: The platform refused or did not answer.
        """

    async def aclose(self) -> None:  # noqa: B027 - some signers own nothing
        """Close connections, sessions and threads. May be called twice."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def error(
        self,
        kind: type[ErrorKind],
        operation: str,
        message: str,
        *,
        hint: str | None = None,
        final: bool = False,
        retry_after: float | None = None,
    ) -> ErrorKind:
        """Make an error that names the signer, the key and the operation.

        Args:
            kind: The class of the error.
            operation: The method that failed.
            message: What went wrong. SECURITY: never with a PIN or a token (tests/unit/signers guards it).
            hint: What to do next, if the class's own hint is not the best one.
            final: Whether the error must not be retried although errors of its class are.
            retry_after: The pause in seconds that the platform asks for; used with `SignerThrottledError` only.
        """
        error = kind(message, signer=self.scheme, key=self.name, operation=operation, hint=hint)
        if final:
            error.retryable = False
        if isinstance(error, SignerThrottledError):
            error.retry_after = retry_after
        return error

    def damaged_error(self, operation: str, why: str) -> SignerUnavailableError:
        """Make the error for an answer that does not hold what was requested; `why` says what is wrong with it."""
        return self.error(SignerUnavailableError, operation, f"the answer is damaged: {why}")

    def decode_answer(self, operation: str, decode: Callable[[Raw], Decoded], raw: Raw) -> Decoded:
        """Decode a part of the platform's answer, such as a signature in DER.

        Raises:
            SignerUnavailableError: `decode` has raised a `DecodeError`.
        """
        try:
            return decode(raw)
        except DecodeError as error:
            raise self.damaged_error(operation, str(error)) from None

    def check_first_version(self, version: int | None, *, hint: str) -> None:
        """Check that the URI of a key that is to be created names version 1, where keys have numbered versions.

        Raises:
            SignerConfigurationError: The URI names another version.
        """
        if version != 1:
            problem = f"the first version of a new key is 1, not {version}"
            raise self.error(SignerConfigurationError, "create_key", problem, hint=hint)

    def error_of_provider(self, operation: str, error: ProviderError) -> SignerError:
        """Convert an error of the platform's secret store, whose client this signer uses, to the signer's error.

        Args:
            operation: The method of the signer that failed.
            error: The error of the secret store.
        """
        kind = next((ours for theirs, ours in _KINDS if isinstance(error, theirs)), SignerError)
        # The default hint of a store's error names commands for stores, so only a hint of this very error is used.
        hint = error.hint if "hint" in vars(error) and "policy" not in error.hint else None
        return self.error(
            kind,
            operation,
            str(error),
            hint=hint,
            final=not error.retryable,
            retry_after=error.retry_after if isinstance(error, ThrottledError) else None,
        )


_KINDS: tuple[tuple[type[ProviderError], type[SignerError]], ...] = (
    (SecretNotFoundError, SignerKeyNotFoundError),
    (SecretExistsError, SignerKeyExistsError),
    (ConflictError, SignerKeyExistsError),
    (SecretDeletedError, SignerKeyDisabledError),
    (VersionDisabledError, SignerKeyDisabledError),
    (ProviderAccessDeniedError, SignerAccessDeniedError),
    (ThrottledError, SignerThrottledError),
    (UnavailableError, SignerUnavailableError),
    (ProviderMisuseError, SignerMisuseError),
    (ProviderConfigurationError, SignerConfigurationError),
)


# --- creating a key ----------------------------------------------------------------------------------------------


@runtime_checkable
class KeyCreator(Protocol):
    """A signer that can create the key that its URI names. No other method of a signer creates a key."""

    async def create_key(self) -> None:
        """Create the key that the URI names. The key cannot be exported, if the platform has such keys.

        Does not wait until the key can be used; `goatherd.signers.verified.VerifiedSigner.create_key` does.

        Raises:
            SignerKeyExistsError: The key exists; nothing was changed.
        """
        ...


SIGNER: Final = "signer"


def check_role(role: str) -> None:
    """Check the role that was given to `goatherd policy` for a signer; the only one is ``signer``.

    Raises:
        ConfigurationError: The role is another one.
    """
    if role != SIGNER:
        raise ConfigurationError(
            f"a signer has no role {role!r}; the only role is signer",
            hint="Give --role signer, the role that may only sign with this one key.",
        )
