"""A secret is given by its location, and no error quotes it. Sealing keys:
tests/unit/settings/test_last_known_good.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from goatherd.errors import ConfigurationError
from goatherd.serving.secret_source import PageToken, SecretSource


@pytest.mark.parametrize("text", ["1234", "file:relative", "env:a b", "credential:..", "pin:1234"])
def test_what_is_no_source_is_refused_and_not_quoted(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        SecretSource.from_text(text)
    assert text not in str(caught.value)
    with pytest.raises(ConfigurationError, match="the source of the token of the page must be file:/PATH"):
        PageToken.from_text(text)


def test_the_hint_states_what_is_wrong_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as relative:
        PageToken.from_text("file:page-token")
    assert relative.value.hint == "After `file:`, write an absolute path."
    source = SecretSource.from_text(f"file:{tmp_path}/missing")
    with pytest.raises(ConfigurationError, match="missing cannot be read: No such file") as missing:
        source.read_bytes({})
    assert missing.value.hint == "Check the path, and whether the user of this process may read the file."
    with pytest.raises(ConfigurationError, match="not a regular file") as directory:
        SecretSource.from_text(f"file:{tmp_path}").read_bytes({})
    assert directory.value.hint == "Name the file that holds the secret."


def test_a_secret_is_read_from_the_environment_a_file_and_a_credential(tmp_path: Path) -> None:
    (tmp_path / "pin").write_text("1234\n")
    (tmp_path / "pin").chmod(0o600)
    environ = {"PIN": "1234", "CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert SecretSource.from_text("env:PIN").read_bytes(environ) == b"1234"
    assert SecretSource.from_text(f"file:{tmp_path}/pin").read_bytes(environ) == b"1234\n"
    assert SecretSource.from_text("credential:pin").read_bytes(environ) == b"1234\n"
    (tmp_path / "pin").chmod(0o644)
    with pytest.raises(ConfigurationError, match="other users can read or change"):
        SecretSource.from_text(f"file:{tmp_path}/pin").read_bytes(environ)
    with pytest.raises(ConfigurationError, match="the secret, env:OTHER: the environment variable is not set"):
        SecretSource.from_text("env:OTHER").read_bytes(environ)


@pytest.mark.parametrize("typed", ["a secret that a person has typed", "x" * 32, "x" * 44, "00" * 32])
def test_a_key_is_random_bytes_and_not_what_a_user_has_typed(typed: str) -> None:
    with pytest.raises(ConfigurationError, match="32 random bytes as base64 or hexadecimal") as caught:
        SecretSource.from_text("env:KEY").read_key({"KEY": typed}, 32)
    assert typed not in f"{caught.value} {caught.value.hint}"
