"""Sign with a key in a PKCS#11 token.

The SHA-384 digest of the text is computed here, since not all tokens can compute it. A key that can be exported from
the token is rejected. Every error of the PKCS#11 library is converted to a `goatherd.errors.SignerError`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11 import exceptions as sdk
from pkcs11.util.ec import encode_ec_public_key, encode_named_curve_parameters

from goatherd.crypto import SIGNATURE_BYTES, PublicKey, raw_from_der
from goatherd.errors import (
    DecodeError,
    SignerAccessDeniedError,
    SignerConfigurationError,
    SignerError,
    SignerKeyDisabledError,
    SignerKeyExistsError,
    SignerKeyNotFoundError,
    SignerMisuseError,
    SignerUnavailableError,
    UnsupportedKeyError,
)
from goatherd.signers.base import KeyKind, Latency, Signer, SignerFacts, SignerKey
from goatherd.signers.pkcs11.address import MODULE_VARIABLE, PIN_VARIABLE, PKCS11Address, parse_uri
from goatherd.signers.pkcs11.library import LOST, WRONG_PIN, Library, RefusedPINError, TokenNotFoundError

Result = TypeVar("Result")

_P384: Final = bytes.fromhex("06052b81040022")
"""The DER of the object identifier of P-384 (secp384r1), as tokens have it in CKA_EC_PARAMS."""
_OFFICER_HINT: Final = "Use the token's own tool, as its security officer."


class _Problem(NamedTuple):
    """The translation of some errors: the class, the text and the hint, with places for `error`, `name` and `pin`."""

    errors: type[Exception] | tuple[type[Exception], ...]
    kind: type[SignerError]
    text: str
    hint: str = ""


_PROBLEMS: Final = (
    _Problem(
        TokenNotFoundError,
        SignerKeyNotFoundError,
        "the library has {error}",
        "Check that the token is inserted, and the token's label in the URI.",
    ),
    _Problem(
        RefusedPINError,
        SignerAccessDeniedError,
        "the token has refused this PIN before, or this process is logged in with another one; the PIN was not tried"
        " again",
        "Correct {pin}, then start this process again.",
    ),
    _Problem(
        WRONG_PIN,
        SignerAccessDeniedError,
        "the token refuses the PIN",
        "Correct {pin}, then start this process again. A few wrong PINs lock a token.",
    ),
    _Problem(sdk.PinLocked, SignerAccessDeniedError, "the token has locked the PIN", _OFFICER_HINT),
    _Problem(sdk.PinExpired, SignerAccessDeniedError, "the PIN has expired", _OFFICER_HINT),
    _Problem(sdk.UserPinNotInitialized, SignerAccessDeniedError, "the token has no user PIN yet", _OFFICER_HINT),
    _Problem(
        sdk.AttributeReadOnly,
        SignerMisuseError,
        "the token does not allow this change of the key: {name}",
        "Change the key with the token's own tool.",
    ),
    _Problem(
        (sdk.AttributeTypeInvalid, sdk.MechanismInvalid, sdk.KeyTypeInconsistent),
        SignerConfigurationError,
        "the token cannot sign with ECDSA: {name}",
    ),
    _Problem(
        LOST,
        SignerUnavailableError,
        "the token or its session is gone: {name}",
        "Check the device, and the variables that its library reads, such as SOFTHSM2_CONF.",
    ),
    _Problem(sdk.PKCS11Error, SignerUnavailableError, "the token failed: {name}"),
    _Problem(Exception, SignerError, "the token's library failed with {name}"),
)
"""The first entry that fits an error counts."""


class PKCS11Signer(Signer):
    """A key in a PKCS#11 token: a hardware security module, a smart card, or SoftHSM.

    Address: ``pkcs11:token=LABEL;object=LABEL?module-path=/path/to/library.so&pin-source=file:/PATH`` (RFC 7512). Also
    ``serial``, ``slot-id``, ``manufacturer``, ``model`` and ``id=%01``. Without ``module-path``,
    `GOATHERD_PKCS11_MODULE` names the library; without ``pin-source``, `GOATHERD_PKCS11_PIN` holds the PIN.
    Credentials: the user's PIN.
    Permissions: those of the token's user.
    Facts: not exportable; a signature takes some milliseconds; signs data of any length.
    """

    scheme: ClassVar[str] = "pkcs11"
    credential_variables: ClassVar[tuple[str, ...]] = (PIN_VARIABLE,)

    def __init__(self, address: PKCS11Address, *, environment: Mapping[str, str] | None = None) -> None:
        self.address = address
        self.name = address.name
        self._environment = os.environ if environment is None else environment
        self._key: tuple[Any, Any] | None = None
        self._is_open = False

    @classmethod
    def from_uri(cls, uri: str) -> PKCS11Signer:
        return cls(parse_uri(uri))

    @property
    def facts(self) -> SignerFacts:
        return SignerFacts(exportable=False, latency=Latency.DEVICE)

    async def public_key(self) -> SignerKey:
        return await self._run_operation("public_key", self._read_public)

    async def sign(self, text: bytes) -> bytes:
        digest = hashlib.sha384(text).digest()
        signature = await self._run_operation("sign", lambda session: self._sign_digest(session, digest))
        if len(signature) == SIGNATURE_BYTES:
            return signature
        return self.decode_answer("sign", raw_from_der, signature)  # some tokens' libraries return DER

    async def aclose(self) -> None:
        self._key = None
        if self.address.module is not None and self._is_open:
            self._is_open = False
            await Library.at(self.address.module).close_session(self.address, id(self))

    async def create_key(self) -> None:
        await self._run_operation("create_key", self._generate_key_pair)

    # --- in the library's thread --------------------------------------------------------------------------------------

    def _sign_digest(self, session: Any, digest: bytes) -> bytes:
        key = self._private_key(session, "sign")
        try:
            return bytes(key.sign(digest, mechanism=Mechanism.ECDSA))
        except LOST:
            raise
        except sdk.PKCS11Error:
            self._check_private(key, "sign")  # it may have been disabled since it was looked up
            raise

    def _private_key(self, session: Any, operation: str) -> Any:
        """Return the handle of the private key in the token; it is looked up once for each session."""
        if self._key is None or self._key[0] is not session:
            key = self._find_key(session, ObjectClass.PRIVATE_KEY, operation)
            self._check_private(key, operation)
            self._key = (session, key)
        return self._key[1]

    def _check_private(self, key: Any, operation: str) -> None:
        if key[Attribute.KEY_TYPE] is not KeyType.EC:
            kind = getattr(key[Attribute.KEY_TYPE], "name", "another one")
            raise self.error(UnsupportedKeyError, operation, f"the key's type must be EC; it is {kind}")
        # SECURITY: the token must state that the key cannot be exported; Goatherd reads both attributes instead of
        # assuming it (tests/contract/signers/test_token.py::test_a_key_that_can_leave_the_token_is_refused).
        if key[Attribute.EXTRACTABLE] or not key[Attribute.SENSITIVE]:
            raise self.error(
                SignerConfigurationError,
                operation,
                "the key can leave the token (CKA_EXTRACTABLE is true, or CKA_SENSITIVE is false)",
                hint="Generate a key in the token that is sensitive and not extractable.",
            )
        if not key[Attribute.SIGN]:
            raise self.error(SignerKeyDisabledError, operation, "the key's attribute CKA_SIGN is false")

    def _find_key(self, session: Any, kind: ObjectClass, operation: str) -> Any:
        wanted: dict[Attribute, object] = {Attribute.CLASS: kind}
        if self.address.object is not None:
            wanted[Attribute.LABEL] = self.address.object
        if self.address.id is not None:
            wanted[Attribute.ID] = self.address.id
        found = list(session.get_objects(wanted))
        if not found:
            raise self.error(
                SignerKeyNotFoundError,
                operation,
                f"the token has no {_describe_kind(kind)} with the label or id in the URI",
            )
        if len(found) > 1:
            raise self.error(
                SignerConfigurationError,
                operation,
                f"the token has {len(found)} {_describe_kind(kind)}s with the label or id in the URI",
                hint="Name the key's id in the URI, such as id=%01, besides its label.",
            )
        return found[0]

    def _read_public(self, session: Any) -> SignerKey:
        self._private_key(session, "public_key")
        public = self._find_key(session, ObjectClass.PUBLIC_KEY, "public_key")
        return SignerKey(kind=KeyKind.ECDSA_P384, public_key=self._decode_public(public, "public_key"))

    def _decode_public(self, public: Any, operation: str) -> PublicKey:
        if bytes(public[Attribute.EC_PARAMS]) != _P384:
            raise self.error(UnsupportedKeyError, operation, "the key's curve must be P-384")
        try:
            return PublicKey.from_der(encode_ec_public_key(public))
        except (DecodeError, ValueError) as error:
            raise self.error(
                SignerUnavailableError, operation, f"the token's answer is damaged: {type(error).__name__}"
            ) from None

    def _generate_key_pair(self, session: Any) -> None:
        for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
            try:
                self._find_key(session, kind, "create_key")
            except SignerKeyNotFoundError:
                continue
            raise self.error(SignerKeyExistsError, "create_key", "the token already has a key with this label and id")
        domain = session.create_domain_parameters(
            KeyType.EC, {Attribute.EC_PARAMS: encode_named_curve_parameters("secp384r1")}, local=True
        )
        common: dict[Attribute, object] = {} if self.address.id is None else {Attribute.ID: self.address.id}
        domain.generate_keypair(
            store=True,
            label=self.address.object,
            public_template={**common, Attribute.VERIFY: True, Attribute.DERIVE: False},
            private_template={
                **common,
                Attribute.SIGN: True,
                Attribute.DERIVE: False,
                Attribute.SENSITIVE: True,
                Attribute.EXTRACTABLE: False,
            },
        )

    # --- one call ---------------------------------------------------------------------------------------------------

    async def _run_operation(self, operation: str, work: Callable[[Any], Result]) -> Result:
        if self.address.module is None:
            raise self.error(
                SignerConfigurationError,
                operation,
                "no PKCS#11 library is named",
                hint=f"Add module-path=/path/to/library.so to the URI, or set {MODULE_VARIABLE}.",
            )
        pin = self.address.pin.read_bytes(self._environment).strip()
        library = Library.at(self.address.module)

        def call() -> Result:
            try:
                session = library.session_of(self.address, pin, id(self))
                self._is_open = True
                return work(session)
            except LOST:
                library.drop(self.address)
                self._key = None
                raise

        try:
            return await library.run(call)
        except SignerError:
            raise
        except Exception as error:  # noqa: BLE001 - the library may raise anything, such as AttributeError
            problem = self._translate_error(operation, error)
        raise problem  # out here, where the library's error is not its context

    def _translate_error(self, operation: str, error: Exception) -> SignerError:
        if isinstance(error, sdk.PKCS11Error) and "loading" in str(error):
            return self.error(
                SignerConfigurationError,
                operation,
                f"the library {self.address.module} cannot be loaded",
                hint="Check module-path: the file must exist, and be a PKCS#11 library for this machine.",
            )
        found = next(one for one in _PROBLEMS if isinstance(error, one.errors))
        facts = {"error": error, "name": type(error).__name__, "pin": self.address.pin}
        return self.error(found.kind, operation, found.text.format(**facts), hint=found.hint.format(**facts) or None)


def _describe_kind(kind: ObjectClass) -> str:
    return str(kind.name).lower().replace("_", " ")
