"""Google Cloud KMS on this machine, for tests: a real gRPC server with Google's own messages, over TLS.

What it is: `FakeKeyManagement`, the methods for asymmetric keys, with checksums, states and failures on demand. What it
is not: Google's rights; a test names the status that a method answers instead. Rules: it listens on 127.0.0.1, on a
port that the system gives; clients trust the authority of `tests.fakes.gcp_fake`.
RPC = docs.cloud.google.com/kms/docs/reference/rpc/google.cloud.kms.v1.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, Self

import google_crc32c
import grpc  # type: ignore[import-untyped]
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.cloud.kms_v1 import types as wire

from tests.deadlines import HANG
from tests.fakes.gcp_fake.authority import certified, trust
from tests.fakes.gcp_fake.server import Failure, _abort
from tests.fakes.gcp_fake.service import StatusError

SERVICE: Final = "google.cloud.kms.v1.KeyManagementService"
ENABLED: Final = "ENABLED"
PENDING: Final = "PENDING_GENERATION"
_METHODS: Final[dict[str, Any]] = {
    "CreateCryptoKey": wire.CryptoKey,
    "GetPublicKey": wire.PublicKey,
    "AsymmetricSign": wire.AsymmetricSignResponse,
}


class FakeKeyManagement:
    """A running service, as a context manager.

    Attributes:
        port: Where it listens, once entered.
        failure: What every method answers instead, while it is set.
        silence: Answers come once this event is set; None if they come at once.
        damage: Called with a method's name and its answer; what it returns goes out, bytes as they are.
        states: The state of each key version, by its resource name.
        pending_reads: For how many requests each new key is still being generated.
        algorithm: The algorithm that public keys name.
    """

    def __init__(self) -> None:
        self.port = 0
        self.failure: Failure | None = None
        self.silence: threading.Event | None = None
        self.damage: Callable[[str, Any], Any] | None = None
        self.states: dict[str, str] = {}
        self.pending_reads = 0
        self.algorithm = "EC_SIGN_P384_SHA384"
        self._keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self._pending: dict[str, int] = {}
        self._server: Any = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        trust()
        one = certified()
        self._server = grpc.server(ThreadPoolExecutor(8, thread_name_prefix="gcpkms-fake"))
        methods = {name: self._handler(name, answer) for name, answer in _METHODS.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        credentials = grpc.ssl_server_credentials([(one.key, one.certificate)])
        self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(0).wait()

    def _handler(self, name: str, answer_type: Any) -> object:
        def serve(request: Any, context: Any) -> Any:
            if (silence := self.silence) is not None:
                silence.wait(HANG)
            try:
                if self.failure is not None:
                    failed = self.failure
                    raise StatusError(failed.status, failed.message, retry_after=failed.retry_after)
                answer = getattr(self, f"_do_{name}")(request)
            except StatusError as error:
                return _abort(context, error)
            return answer if self.damage is None else self.damage(name, answer)

        def encode(answer: Any) -> bytes:
            encoded: bytes = answer if isinstance(answer, bytes) else answer_type.serialize(answer)
            return encoded

        request_type = getattr(wire, f"{name}Request")
        return grpc.unary_unary_rpc_method_handler(
            serve, request_deserializer=request_type.deserialize, response_serializer=encode
        )

    def _do_CreateCryptoKey(self, request: Any) -> Any:  # noqa: N802 - the API's names
        name = f"{request.parent}/cryptoKeys/{request.crypto_key_id}"
        version = f"{name}/cryptoKeyVersions/1"
        if version in self._keys:
            raise StatusError("ALREADY_EXISTS", f"CryptoKey {name} already exists.")
        self._keys[version], self.states[version] = ec.generate_private_key(ec.SECP384R1()), ENABLED
        if self.pending_reads:
            self._pending[version], self.states[version] = self.pending_reads, PENDING
        return wire.CryptoKey(name=name)

    def _do_GetPublicKey(self, request: Any) -> Any:  # noqa: N802
        der = self._usable(request.name).public_key()
        pem = der.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        algorithm = wire.CryptoKeyVersion.CryptoKeyVersionAlgorithm[self.algorithm]
        checksum = google_crc32c.value(pem.encode())
        return wire.PublicKey(name=request.name, pem=pem, algorithm=algorithm, pem_crc32c=checksum)

    def _do_AsymmetricSign(self, request: Any) -> Any:  # noqa: N802
        key, digest = self._usable(request.name), request.digest.sha384
        # RPC#asymmetricsignrequest: a checksum that does not match is an error.
        if request.digest_crc32c != google_crc32c.value(digest):
            raise StatusError("INVALID_ARGUMENT", "The checksum in field digest_crc32c did not match.")
        signature = key.sign(digest, ec.ECDSA(Prehashed(hashes.SHA384())))
        return wire.AsymmetricSignResponse(
            name=request.name,
            signature=signature,
            signature_crc32c=google_crc32c.value(signature),
            verified_digest_crc32c=True,
        )

    def _usable(self, name: str) -> ec.EllipticCurvePrivateKey:
        if name not in self._keys:
            raise StatusError("NOT_FOUND", f"CryptoKeyVersion {name} not found.")
        if name in self._pending:
            self._pending[name] -= 1
            if self._pending[name] < 0:
                del self._pending[name]
                self.states[name] = ENABLED
        if (state := self.states[name]) != ENABLED:
            raise StatusError("FAILED_PRECONDITION", f"{name} is not enabled, current state is: {state}.")
        return self._keys[name]
