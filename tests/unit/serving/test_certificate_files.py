"""Certificates in files that another program replaces: what a TLS context shows before, during and after a renewal."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from goatherd.serving.certificate_files import CertificateFiles, load_pair
from tests.fakes.certificates import certificate, replace_file
from tests.fakes.kubelet import Kubelet


def shown_by(context: ssl.SSLContext) -> str:
    """Return the name in the certificate that a server with this context shows to a new connection."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(to_server, to_client, server_side=True)
    client = trusting.wrap_bio(to_client, to_server)
    is_done = False
    while not is_done:
        for side in (client, server):
            try:
                side.do_handshake()
                is_done = side is server
            except ssl.SSLWantReadError:
                pass
    der = client.getpeercert(binary_form=True)
    assert der is not None
    found = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value)


def put(directory: Path, cert: bytes | None, key: bytes | None) -> None:
    if cert is not None:
        replace_file(directory / "tls.crt", cert)
    if key is not None:
        replace_file(directory / "tls.key", key)


def files_in(directory: Path) -> CertificateFiles:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    return CertificateFiles(context, directory / "tls.crt", directory / "tls.key")


async def test_files_that_the_kubelet_swaps_are_loaded_again(tmp_path: Path):
    kubelet = Kubelet(tmp_path / "mount")
    for name in ("first", "second"):
        cert, key = certificate(name)
        kubelet.mount({"tls.crt": cert, "tls.key": key})
        if name == "first":
            files = files_in(kubelet.directory)
            files.load()
            assert not await files.load_if_replaced()
        else:
            assert await files.load_if_replaced()
        assert shown_by(files.context) == name
    assert not await files.load_if_replaced()
    assert files.generation == 2


def test_a_pair_that_is_replaced_while_it_is_loaded_leaves_no_context_without_a_key(tmp_path: Path):
    class Overtaken(ssl.SSLContext):
        """Reads the certificate before a renewal, and the key after it."""

        def load_cert_chain(self, certfile: Any, keyfile: Any = None, password: Any = None) -> None:
            if renewals:
                put(tmp_path, None, renewals[0][1])
                try:
                    super().load_cert_chain(certfile, keyfile, password)
                finally:
                    put(tmp_path, *renewals.pop())
            super().load_cert_chain(certfile, keyfile, password)

    renewals = list[tuple[bytes, bytes]]()
    context = Overtaken(ssl.PROTOCOL_TLS_SERVER)
    put(tmp_path, *certificate("first"))
    load_pair(context, tmp_path / "tls.crt", tmp_path / "tls.key")
    renewals.append(certificate("second"))
    load_pair(context, tmp_path / "tls.crt", tmp_path / "tls.key")
    assert shown_by(context) == "second"


async def test_a_pair_that_does_not_match_keeps_the_earlier_one_and_is_tried_again(tmp_path: Path):
    put(tmp_path, *certificate("first"))
    files = files_in(tmp_path)
    files.load()
    cert, key = certificate("second")
    put(tmp_path, cert, None)
    for _ in range(2):
        with pytest.raises(ssl.SSLError):
            await files.load_if_replaced()
        assert shown_by(files.context) == "first"
    put(tmp_path, None, key)
    assert await files.load_if_replaced()
    assert shown_by(files.context) == "second"


async def test_files_that_are_missing_during_a_renewal_keep_the_earlier_pair(tmp_path: Path):
    put(tmp_path, *certificate("first"))
    files = files_in(tmp_path)
    files.load()
    (tmp_path / "tls.key").unlink()
    assert not await files.load_if_replaced()
    assert shown_by(files.context) == "first"


def test_an_encrypted_key_is_an_error_and_no_question_at_the_terminal(tmp_path: Path):
    cert, key = certificate()
    encrypted = serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"a passphrase"),
    )
    put(tmp_path, cert, encrypted)
    with pytest.raises(ValueError, match="the key is encrypted"):
        files_in(tmp_path).load()
