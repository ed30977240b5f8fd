"""A signer is opened by its URI's scheme, and nothing else is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from goatherd.errors import ConfigurationError, GoatherdError, PluginNotFoundError
from goatherd.plugins import policy_text, signer_schemes
from goatherd.signers import VerifiedSigner, open_signer
from goatherd.signers.local import LocalSigner


def test_a_signer_is_opened_by_its_scheme_in_either_case() -> None:
    for uri in ("local:/keys/anchor.json", "LOCAL:/keys/anchor.json"):
        signer = open_signer(uri)
        assert isinstance(signer, VerifiedSigner)
        assert isinstance(signer.plugin, LocalSigner)
        assert (signer.scheme, signer.name) == ("local", "/keys/anchor.json")


@pytest.mark.parametrize("text", ["", "4711-my-pin", "/keys/anchor.json", "1x:y", "MIG2AgEAMBAGByqGSM49AgEG"])
def test_what_is_no_uri_is_not_quoted(text: str) -> None:
    with pytest.raises(GoatherdError) as caught:
        open_signer(text)
    assert not text or text not in str(caught.value)
    assert "local" in caught.value.hint


def test_an_unknown_scheme_names_the_known_ones() -> None:
    with pytest.raises(PluginNotFoundError, match=r"no signer for the scheme 'yubikey'; known schemes: .*local"):
        open_signer("yubikey:slot=1")


def test_a_password_in_a_uri_is_refused_and_not_quoted() -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_signer("transit://root:hunter2@localhost/transit/key")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("scheme", signer_schemes())
def test_every_signer_has_a_policy_for_signing_only(scheme: str) -> None:
    for role in ("server", "rotator", "admin"):
        with pytest.raises(ConfigurationError, match=f"a signer has no role '{role}'"):
            policy_text(scheme, role, "anything:x")


@pytest.mark.slow
def test_the_command_line_imports_no_signer_until_one_is_used() -> None:
    script = (
        "import sys, goatherd.cli.main as m; m.run(['--help']); m.run(['doctor', '--help']);"
        "assert not [n for n in sys.modules if n.startswith('goatherd.signers')], sys.modules;"
        "from goatherd.plugins import open_signer_plugin; open_signer_plugin('local:/x');"
        "assert 'goatherd.signers.local' in sys.modules;"
        "assert not [n for n in sys.modules if n.partition('.')[0] in ('boto3', 'google', 'azure', 'pkcs11')]"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
