"""Certificates for servers and clients on this machine, and a server that asks clients for theirs."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def certificate(name: str = "localhost") -> tuple[bytes, bytes]:
    """Return a self-signed certificate and its key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return made.public_bytes(serialization.Encoding.PEM), pem


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file by another one, which the coarse clock of a file system may date like the first."""
    beside = path.with_suffix(".new")
    beside.write_bytes(content)
    beside.replace(path)


@dataclass(frozen=True, kw_only=True)
class CertificateServer:
    """A running HTTPS server that requires a client certificate.

    Attributes:
        url: Its URL.
        ca: The file with the certificate to trust.
        shown: The names in the client certificates, one for each request.
    """

    url: str
    ca: Path
    shown: list[str] = field(default_factory=list)


@asynccontextmanager
async def certificate_server(
    directory: Path, clients: list[tuple[bytes, bytes]], answer: Callable[[int], tuple[int, dict[str, Any]]]
) -> AsyncIterator[CertificateServer]:
    """Run an HTTPS server that accepts the client certificates of `clients` only, or any client if there are none.

    Args:
        directory: Where to put the server's own certificate.
        clients: Certificates and keys of the clients; the keys are not used.
        answer: Returns the status and the JSON object with which the n-th request is answered, counted from 1.
    """
    ca, key = directory / "tls.crt", directory / "tls.key"
    for path, content in zip((ca, key), certificate(), strict=True):
        path.write_bytes(content)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca, key)
    if clients:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata="".join(cert.decode() for cert, _ in clients))
    shown: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            shown.append(writer.get_extra_info("peercert")["subject"][0][0][1] if clients else "")
            status, told = answer(len(shown))
            body = json.dumps(told).encode()
            writer.write(b"HTTP/1.1 %d -\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)
            await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield CertificateServer(url=url, ca=ca, shown=shown)
