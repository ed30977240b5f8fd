"""Load a certificate and its key from PEM files into a TLS context, and again when another program has replaced them.

Such a program is cert-manager, certbot, or the kubelet, which replaces what a link leads to. The context keeps its
identity: connections that are made with it afterwards use the new pair, earlier ones keep the old pair.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path


def load_pair(context: ssl.SSLContext, certificate: str | Path, key: str | Path | None) -> None:
    """Load a certificate and its key into a TLS context. If they cannot be used, the context is left as it was.

    Args:
        context: The TLS context.
        certificate: The PEM file with the certificate and its chain.
        key: The PEM file with the key, not encrypted; None if it is in the same file as the certificate.

    Raises:
        OSError: A file cannot be read, or is not PEM, or the two do not match (`ssl.SSLError`).
        ValueError: The key is encrypted.
    """
    for is_last in (False, False, True):
        # A key that does not match the certificate leaves a context without a key, so another context tries them first.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=_no_password)
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except ssl.SSLError:
            if is_last:
                raise
        else:
            return
        # The files were replaced just now: they matched a moment ago, and the context needs the new pair at once.


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # else OpenSSL would ask at the terminal


class CertificateFiles:
    """A certificate and its key in files that another program may replace.

    Args:
        context: The TLS context that uses them.
        certificate: The PEM file with the certificate and its chain.
        key: The PEM file with the key, not encrypted; None if it is in the same file as the certificate.

    Attributes:
        context: The TLS context that uses them.
        generation: How often a pair was loaded.
    """

    def __init__(self, context: ssl.SSLContext, certificate: str | Path, key: str | Path | None) -> None:
        self.context = context
        self.generation = 0
        self._certificate = certificate
        self._key = key
        self._loaded: list[tuple[int, ...]] = []

    def load(self) -> None:
        """Load the pair that the files hold now. Raises what `load_pair` does.

        Call it in the thread that makes connections with the context: a handshake needs both halves of a pair.
        """
        identity = self._identify_files()  # before they are read: what is replaced meanwhile is loaded next time
        load_pair(self.context, self._certificate, self._key)
        self._loaded = identity
        self.generation += 1

    async def load_if_replaced(self) -> bool:
        """Load the pair if the files were replaced; return whether this call has loaded it.

        In the middle of a renewal a file may be missing, or the two may not match. Then the context keeps its pair.

        Raises:
            OSError: The new pair cannot be used; see `load_pair`.
            ValueError: The new key is encrypted.
        """
        generation = self.generation
        if not await asyncio.to_thread(self._are_replaced) or self.generation != generation:
            return False
        self.load()
        return True

    def _are_replaced(self) -> bool:
        try:
            return self._identify_files() != self._loaded
        except OSError:
            return False

    def _identify_files(self) -> list[tuple[int, ...]]:
        found = [Path(path).stat() for path in (self._certificate, self._key) if path is not None]
        return [(each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns) for each in found]
