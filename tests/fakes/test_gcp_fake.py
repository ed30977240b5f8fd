"""The fake of Google Secret Manager follows the reference, and rejects what the reference forbids."""

from __future__ import annotations

import time
from datetime import timedelta

import google_crc32c
import pytest
from google.cloud.secretmanager_v1 import types as wire

from tests.fakes.gcp_fake import SecretManager, StatusError

PARENT = "projects/goatherd-testing"
NAME = f"{PARENT}/secrets/herd"


@pytest.fixture
def service() -> SecretManager:
    made = SecretManager()
    made.create_secret(wire.CreateSecretRequest(parent=PARENT, secret_id="herd", secret=automatic()))
    return made


def automatic() -> wire.Secret:
    return wire.Secret(replication=wire.Replication(automatic=wire.Replication.Automatic()))


def add(service: SecretManager, data: bytes, crc: int | None = None) -> wire.SecretVersion:
    payload = wire.SecretPayload(data=data) if crc is None else wire.SecretPayload(data=data, data_crc32c=crc)
    return service.add_secret_version(wire.AddSecretVersionRequest(parent=NAME, payload=payload))


def access(service: SecretManager, version: str) -> wire.AccessSecretVersionResponse:
    return service.access_secret_version(wire.AccessSecretVersionRequest(name=f"{NAME}/versions/{version}"))


def update(service: SecretManager, *paths: str, etag: str = "", **fields: object) -> wire.Secret:
    secret = wire.Secret(name=NAME, etag=etag, **fields)
    return service.update_secret(wire.UpdateSecretRequest(secret=secret, update_mask={"paths": list(paths)}))


def test_names_in_answers_hold_the_projects_number(service: SecretManager):
    assert add(service, b"one").name == "projects/100200300400/secrets/herd/versions/1"


def test_an_etag_is_compared_where_given_and_renewed_by_every_change(service: SecretManager):
    first = service.get_secret(wire.GetSecretRequest(name=NAME))
    second = update(service, "annotations", etag=first.etag, annotations={"a": "b"})
    assert update(service, "annotations", etag=second.etag, annotations={"a": "b"}).etag != second.etag
    with pytest.raises(StatusError) as caught:
        update(service, "annotations", etag=second.etag)
    assert caught.value.status == "FAILED_PRECONDITION"
    update(service, "annotations")


def test_adding_a_version_does_not_change_the_secrets_etag_and_makes_it_latest(service: SecretManager):
    before = service.get_secret(wire.GetSecretRequest(name=NAME)).etag
    add(service, b"one")
    add(service, b"two")
    assert service.get_secret(wire.GetSecretRequest(name=NAME)).etag == before
    assert access(service, "latest").payload.data == b"two"


def test_latest_is_the_newest_version_also_when_that_is_disabled_or_destroyed(service: SecretManager):
    add(service, b"one")
    add(service, b"two")
    service.disable_secret_version(wire.DisableSecretVersionRequest(name=f"{NAME}/versions/2"))
    with pytest.raises(StatusError, match="DISABLED state"):
        access(service, "latest")
    service.destroy_secret_version(wire.DestroySecretVersionRequest(name=f"{NAME}/versions/2"))
    with pytest.raises(StatusError, match="DESTROYED state"):
        access(service, "latest")
    with pytest.raises(StatusError):
        service.enable_secret_version(wire.EnableSecretVersionRequest(name=f"{NAME}/versions/2"))


def test_checksums_are_verified_and_always_given(service: SecretManager):
    with pytest.raises(StatusError) as caught:
        add(service, b"one", crc=1)
    assert caught.value.status == "INVALID_ARGUMENT"
    assert add(service, b"one", crc=google_crc32c.value(b"one")).client_specified_payload_checksum
    assert not add(service, b"one").client_specified_payload_checksum
    assert access(service, "2").payload.data_crc32c == google_crc32c.value(b"one")


def test_a_payload_is_64_kib_at_most(service: SecretManager):
    add(service, b"x" * 65536)
    for data in (b"x" * 65537, b""):
        with pytest.raises(StatusError):
            add(service, data)


@pytest.mark.parametrize(
    "aliases",
    [
        {"latest": 1},
        {"NEW": 1},
        {"1st": 1},
        {"a b": 1},
        {"x" * 64: 1},
        {f"a{n}": 1 for n in range(51)},
        {"current": 2},
    ],
)
def test_aliases_that_the_reference_excludes_are_refused(service: SecretManager, aliases: dict[str, int]):
    add(service, b"one")
    with pytest.raises(StatusError):
        update(service, "version_aliases", version_aliases=aliases)
    update(service, "version_aliases", version_aliases={f"a{n}": 1 for n in range(50)})


def test_only_the_fields_of_the_mask_change_and_the_fixed_ones_never(service: SecretManager):
    add(service, b"one")
    update(service, "version_aliases", version_aliases={"current": 1}, annotations={"a": "b"})
    found = service.get_secret(wire.GetSecretRequest(name=NAME))
    assert dict(found.version_aliases) == {"current": 1}
    assert not found.annotations
    for paths in ((), ("replication",), ("name",)):
        with pytest.raises(StatusError):
            update(service, *paths)
    with pytest.raises(StatusError):
        update(service, "annotations", annotations={"a": "x" * 16384})


def test_versions_are_listed_newest_first_and_in_pages(service: SecretManager):
    for number in range(5):
        add(service, b"%d" % number)
    seen: list[str] = []
    token = ""
    while True:
        page = service.list_secret_versions(wire.ListSecretVersionsRequest(parent=NAME, page_size=2, page_token=token))
        seen += [version.name.rpartition("/")[2] for version in page.versions]
        token = page.next_page_token
        if not token:
            break
    assert seen == ["5", "4", "3", "2", "1"]


def test_with_a_delay_destroying_only_disables(service: SecretManager):
    add(service, b"one")
    update(service, "version_destroy_ttl", version_destroy_ttl=timedelta(days=1))
    gone = service.destroy_secret_version(wire.DestroySecretVersionRequest(name=f"{NAME}/versions/1"))
    assert gone.state == wire.SecretVersion.State.DISABLED
    assert gone.scheduled_destroy_time
    service.enable_secret_version(wire.EnableSecretVersionRequest(name=f"{NAME}/versions/1"))
    assert access(service, "1").payload.data == b"one"


def test_an_alias_lags_where_asked_to_and_a_number_never_does(service: SecretManager):
    add(service, b"one")
    update(service, "version_aliases", version_aliases={"current": 1})
    service.lag = 3600
    add(service, b"two")
    update(service, "version_aliases", version_aliases={"current": 2})
    with pytest.raises(StatusError):
        access(service, "latest")
    with pytest.raises(StatusError):
        access(service, "current")
    assert access(service, "2").payload.data == b"two"
    service.lag = 0.02
    time.sleep(0.03)
    assert access(service, "current").payload.data == b"two"


@pytest.mark.parametrize(
    ("name", "status"),
    [
        (f"{PARENT}/secrets/other", "NOT_FOUND"),
        ("projects/another/secrets/herd", "PERMISSION_DENIED"),
        (f"{PARENT}/secrets/herd/versions/1", "INVALID_ARGUMENT"),
        (f"{PARENT}/locations/europe-west3/secrets/herd", "NOT_FOUND"),
        ("root", "INVALID_ARGUMENT"),
    ],
)
def test_names_that_lead_nowhere_are_told_apart(service: SecretManager, name: str, status: str):
    with pytest.raises(StatusError) as caught:
        service.get_secret(wire.GetSecretRequest(name=name))
    assert caught.value.status == status
