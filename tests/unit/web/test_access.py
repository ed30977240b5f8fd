"""Access to the page: at an address that other machines reach, it needs a token and TLS, or a named proxy."""

from __future__ import annotations

from pathlib import Path

import pytest

from goatherd.errors import ConfigurationError
from goatherd.web.access import check_address

TOKEN = "correct horse battery staple"


def test_loopback_needs_nothing() -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.0.0.2"):
        assert check_address(host, 0).is_loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "status.example"])
def test_another_address_needs_a_token_and_tls_or_a_proxy(host: str) -> None:
    environ = {"PAGE": TOKEN}
    with pytest.raises(ConfigurationError, match="without signing in"):
        check_address(host, 0)
    with pytest.raises(ConfigurationError, match="without signing in"):
        check_address(host, 0, token="env:PAGE", environ=environ)
    address = check_address(host, 0, proxies=("10.1.0.0/16",))
    assert address.token_digest is None
    with pytest.raises(ConfigurationError, match="cannot be used"):
        check_address(host, 0, token="env:PAGE", certificate=Path("/no/such"), key=Path("/no/such"), environ=environ)


def test_half_of_a_certificate_and_a_short_token_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="certificate_key is missing"):
        check_address("127.0.0.1", 0, certificate=tmp_path / "c")
    with pytest.raises(ConfigurationError, match=r"web\.certificate is missing"):
        check_address("127.0.0.1", 0, key=tmp_path / "c")
    with pytest.raises(ConfigurationError, match="fewer than 16"):
        check_address("127.0.0.1", 0, token="env:PAGE", environ={"PAGE": "x" * 15})
    assert check_address("127.0.0.1", 0, token="env:PAGE", environ={"PAGE": "x" * 16}).token_digest is not None


def test_a_token_that_others_can_read_is_refused_and_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    file.chmod(0o644)
    with pytest.raises(ConfigurationError, match="other users can read") as caught:
        check_address("127.0.0.1", 0, token=f"file:{file}")
    assert TOKEN not in str(caught.value)
    file.chmod(0o600)
    address = check_address("127.0.0.1", 0, token=f"file:{file}")
    assert address.token_digest is not None
    assert TOKEN not in repr(address)
