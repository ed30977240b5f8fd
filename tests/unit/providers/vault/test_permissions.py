"""The printed policies. Tests on a real server (tests/contract) check that they suffice and that no rule can be left
out."""

from __future__ import annotations

import pytest

from goatherd.errors import ConfigurationError
from goatherd.providers.vault.permissions import policy


def test_a_server_may_read_the_entry():
    assert policy("server", "secret/goatdb/root") == (
        "# Goatherd server: reads the identity, and can change nothing.\n"
        'path "secret/data/goatdb/root" {\n  capabilities = ["read"]\n}\n'
    )


def test_a_rotator_may_write_the_entry_and_no_more():
    assert policy("rotator", "secret/goatdb/root") == (
        "# Goatherd rotator: creates and rotates the identity; destroys nothing.\n"
        'path "secret/data/goatdb/root" {\n  capabilities = ["create", "read", "update"]\n}\n'
    )


def test_an_admin_may_destroy_and_delete():
    text = policy("admin", "secret/goatdb/root")
    assert 'path "secret/destroy/goatdb/root" {\n  capabilities = ["update"]' in text
    assert text.count('"delete"') == 1


def test_an_organization_that_is_a_whole_component_matches_any():
    assert 'path "secret/data/goatdb/+/root"' in policy("server", "secret/goatdb/{org}/root")
    assert 'path "secret/data/goatdb/+"' in policy("rotator", "secret/goatdb/{org}")
    with pytest.raises(ConfigurationError, match="must be a whole component"):
        policy("server", "secret/goatdb-{org}/root")


def test_a_mount_with_a_slash_is_given_apart():
    assert 'path "kv/team/data/goatdb/root"' in policy("server", "goatdb/root", mount="kv/team")


@pytest.mark.parametrize("secret_id", ["secret", "secret/", "secret//x", "secret/../x", 'secret/x" {}', "secret/*", ""])
def test_a_path_that_would_change_the_policy_is_refused(secret_id: str):
    with pytest.raises(ConfigurationError):
        policy("server", secret_id)


def test_an_unknown_role_is_refused_with_the_known_ones():
    with pytest.raises(ConfigurationError) as caught:
        policy("reader", "secret/goatdb/root")
    assert caught.value.hint == "Roles: server, rotator, admin."
