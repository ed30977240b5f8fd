"""The process that serves the page, run within the test's process: its certificate is renewed while it serves."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from goatherd.clock import SystemClock
from goatherd.web.access import PageAddress
from goatherd.web.page_process import CERTIFICATE_CHECK, serve_page
from tests.deadlines import HANG
from tests.fakes.certificates import certificate, replace_file


class Minutes(SystemClock):
    """A clock whose pauses between two checks of the certificate end when the test releases them."""

    def __init__(self) -> None:
        self.begun = asyncio.Semaphore(0)
        self.over = asyncio.Semaphore(0)

    async def sleep(self, duration: timedelta) -> None:
        if duration != CERTIFICATE_CHECK:
            await super().sleep(duration)
            return
        self.begun.release()
        await self.over.acquire()

    async def pass_one(self) -> None:
        """End the pause, and return when the next one begins, after the check."""
        self.over.release()
        await self.begun.acquire()


async def name_shown_at(port: int) -> str:
    """Return the name in the certificate that a new connection is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    found = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value)


async def test_a_renewed_certificate_is_shown_to_new_connections_and_a_bad_one_is_logged_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    first, second = certificate("first"), certificate("second")
    cert.write_bytes(first[0])
    key.write_bytes(first[1])
    address = asdict(PageAddress(host="127.0.0.1", port=0, certificate=cert, key=key))
    lines, minutes = asyncio.StreamReader(), Minutes()
    lines.feed_data(json.dumps({"address": address, "interval_ms": 1000}, default=str).encode() + b"\n")
    async with asyncio.timeout(HANG):
        serving = asyncio.create_task(serve_page(lines, minutes))
        await minutes.begun.acquire()
        url = json.loads(capsys.readouterr().out)["ready"]
        port = int(url.rpartition(":")[2])
        assert await name_shown_at(port) == "first"
        replace_file(cert, second[0])
        with caplog.at_level(logging.WARNING, logger="goatherd.web"):
            for _ in range(3):
                await minutes.pass_one()
                assert await name_shown_at(port) == "first", "the new certificate has no key yet"
            assert len(caplog.messages) == 1
            assert caplog.messages[0].startswith("page.certificate_refused reason=")
            assert "mismatch" in caplog.messages[0]
            replace_file(key, second[1])
            await minutes.pass_one()
        assert await name_shown_at(port) == "second"
        assert len(caplog.messages) == 1
        lines.feed_eof()
        await serving
