"""The metadata service of an EC2 instance on this machine, for tests: it gives the credentials of the instance's role.

Follows docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-security-credentials.html. It listens on
127.0.0.1, on a port that the system gives; `AWS_EC2_METADATA_SERVICE_ENDPOINT` names it to the SDK.
"""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Final, Self

import pytest

ROLE: Final = "goatherd"
_CREDENTIALS: Final = "/latest/meta-data/iam/security-credentials/"


class InstanceMetadata:
    """A running service, as a context manager.

    Args:
        access_key: The id of the access key of the instance's role.

    Attributes:
        is_up: Whether it answers; if not, every request gets a 503.
    """

    def __init__(self, access_key: str) -> None:
        self.is_up = True
        self._access_key = access_key

    def __enter__(self) -> Self:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                self._answer("token" if self.path == "/latest/api/token" else None)

            def do_GET(self) -> None:
                self._answer({_CREDENTIALS: ROLE, _CREDENTIALS + ROLE: fake._credentials()}.get(self.path))

            def _answer(self, text: str | None) -> None:
                raw = (text or "").encode()
                self.send_response(503 if not fake.is_up else 404 if text is None else 200)
                self.send_header("Content-Length", str(len(raw) if fake.is_up else 0))
                self.end_headers()
                if fake.is_up:
                    self.wfile.write(raw)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def be_only_source(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Set the environment so that the SDK finds no other credentials than those of this service."""
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_CONFIG_FILE", "/no/such/file")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/no/such/file")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{self._server.server_port}/")

    def _credentials(self) -> str:
        return json.dumps(
            {
                "AccessKeyId": self._access_key,
                "SecretAccessKey": "x" * 40,
                "Token": "t",
                "Expiration": f"{datetime.now(UTC) + timedelta(hours=6):%Y-%m-%dT%H:%M:%SZ}",
            }
        )
