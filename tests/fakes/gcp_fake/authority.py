"""A certificate authority that lives as long as the process, so that the stock client can speak TLS with a fake.

Rules: its key is never written; its certificate is, because gRPC takes trusted roots from a file, which the environment
names. gRPC reads that once: call `trust` before the process makes its first channel.
The certificates have what RFC 5280 asks of them, which Python checks from 3.13 on (``VERIFY_X509_STRICT``).
"""

from __future__ import annotations

import atexit
import functools
import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

ROOTS: Final = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"
_LIFETIME: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certified:
    """A server's certificate for ``localhost`` and ``127.0.0.1``, with its key; both PEM."""

    key: bytes
    certificate: bytes

    def __repr__(self) -> str:
        return "Certified(<hidden>)"


@functools.cache
def trust() -> Path:
    """Make this process, and those that it starts, trust the authority; return the file of its certificate."""
    handle, name = tempfile.mkstemp(prefix="goatherd-testing-", suffix=".pem")
    with os.fdopen(handle, "wb") as file:
        file.write(_root()[1].public_bytes(Encoding.PEM))
    atexit.register(Path(name).unlink, missing_ok=True)
    os.environ[ROOTS] = name
    return Path(name)


@functools.cache
def certified() -> Certified:
    """Return a certificate of the authority for this machine's loopback."""
    root_key, root = _root()
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))])
    certificate = (
        _begun("localhost")
        .issuer_name(root.subject)
        .public_key(key.public_key())
        .add_extension(names, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Certified(key=text, certificate=certificate.public_bytes(Encoding.PEM))


@functools.cache
def _root() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    begun = _begun("Goatherd testing").public_key(key.public_key())
    constraints = x509.BasicConstraints(ca=True, path_length=0)
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        begun.issuer_name(_name("Goatherd testing"))
        .add_extension(constraints, critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key, certificate


def _begun(name: str) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + _LIFETIME)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
