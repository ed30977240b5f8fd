"""Sessions through the public names: created, encoded, introduced."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

import goatherd
from goatherd.errors import (
    ConfigurationError,
    DecodeError,
    ExpiredSessionError,
    KeyMismatchError,
    LifetimeError,
    VerificationError,
)
from goatherd.identity.session import OwnedSession


def test_a_root_lives_as_long_as_that_of_init_and_a_user_session_as_long_as_goatdb_s():
    root, user = goatherd.generate_session("root"), goatherd.generate_session("user-1")
    assert root.session.is_root
    assert user.session.owner == "user-1"
    lives = root.session.expiration_ms - user.session.expiration_ms
    assert timedelta(days=149) < timedelta(milliseconds=lives) < timedelta(days=151)
    assert goatherd.generate_session(None).session.owner is None


def test_a_root_that_could_not_be_replaced_in_time_is_refused():
    with pytest.raises(LifetimeError):
        goatherd.generate_session("root", lifetime=timedelta(minutes=5))
    goatherd.generate_session("user-1", lifetime=timedelta(minutes=5))


@pytest.mark.parametrize("owner", ["root", "user-1"])
@pytest.mark.parametrize("lifetime", [timedelta.max, timedelta(days=-1), 90])
def test_a_lifetime_that_no_date_can_hold_is_refused(owner: str, lifetime: timedelta):
    with pytest.raises(ConfigurationError, match="lifetime must be"):
        goatherd.generate_session(owner, lifetime=lifetime)
    with pytest.raises(ConfigurationError, match="lifetime must be"):
        goatherd.Policy(lifetime=lifetime)


def test_a_lifetime_of_nothing_is_not_the_default():
    ended, hour = (goatherd.generate_session("u", lifetime=timedelta(hours=hours)).session for hours in (0, 1))
    assert ended.expiration_ms < hour.expiration_ms


def test_a_first_identity_is_made_and_stored_with_public_names_only():
    root = goatherd.generate_session("root")
    raw = goatherd.encode_document(goatherd.create_identity(root))
    document = goatherd.decode_document(raw)
    assert document.current == root
    assert document.generation == 1
    with pytest.raises(ConfigurationError, match="root session"):
        goatherd.create_identity(goatherd.generate_session("user-1"))


def test_who_trusts_the_current_root_trusts_the_one_that_it_introduces():
    current, new = goatherd.generate_session("root"), goatherd.generate_session("root")
    pool = goatherd.TrustPool(org="localhost", current=current, roots=[current.session])
    assert pool.add_session_commit(goatherd.create_session_commit(current, new))
    assert set(pool.root_ids) == {current.id, new.id}
    stranger = goatherd.create_session_commit(goatherd.generate_session("root"), goatherd.generate_session("root"))
    assert not pool.add_session_commit(stranger)


def test_a_commit_for_another_organization_introduces_nothing_here():
    root, following = goatherd.generate_session("root"), goatherd.generate_session("root")
    pool = goatherd.TrustPool(org="localhost", current=root, roots=[root.session])
    commit = goatherd.create_session_commit(root, following, org="acme")
    assert not pool.add_session_commit(commit)
    assert following.id not in pool.root_ids
    with pytest.raises(VerificationError, match="is of organization 'acme', not 'localhost'"):
        pool.verify_commit(commit)


def test_a_root_that_cannot_introduce_is_refused():
    new = goatherd.generate_session("root")
    with pytest.raises(ConfigurationError, match="root session"):
        goatherd.create_session_commit(goatherd.generate_session("user-1"), new)
    with pytest.raises(ConfigurationError, match="private key"):
        goatherd.create_session_commit(new.session, new)  # type: ignore[arg-type]
    expired = OwnedSession.generate(session_id="a" * 24, owner="root", now_ms=0)
    with pytest.raises(ExpiredSessionError, match="has expired"):
        goatherd.create_session_commit(expired, new)


def test_a_private_key_is_encoded_only_where_it_is_asked_for():
    root = goatherd.generate_session("root")
    public = goatherd.encode_session(root)
    assert list(public) == ["id", "publicKey", "owner", "expiration"]
    assert "d" not in public["publicKey"]
    assert goatherd.decode_session(public) == root.session
    secret = goatherd.encode_session(root, include_private_key=True)
    assert goatherd.decode_session(json.dumps(secret)) == root
    with pytest.raises(ConfigurationError, match="a dict is not a session"):
        goatherd.encode_session(public)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="is public: it has no private key"):
        goatherd.encode_session(root.session, include_private_key=True)


def test_what_is_no_session_is_refused():
    root, other = goatherd.generate_session("root"), goatherd.generate_session("root")
    mixed = goatherd.encode_session(root) | {"privateKey": other.to_secret_json()["privateKey"]}
    with pytest.raises(KeyMismatchError):
        goatherd.decode_session(mixed)
    for malformed in ("no JSON", b"[]", {}, {"id": "x", "privateKey": None}):
        with pytest.raises(DecodeError):
            goatherd.decode_session(malformed)
