"""A mounted Secret: every read shows one state, whatever the kubelet swaps, and nothing is written."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.errors import (
    ConfigurationError,
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    SecretNotFoundError,
    UnavailableError,
    VersionDisabledError,
)
from goatherd.plugins import open_provider
from goatherd.providers.base import Call, RetryPolicy
from goatherd.providers.kubernetes import volume
from goatherd.providers.kubernetes.volume import COPY, KubernetesVolumeProvider
from goatherd.providers.values import CURRENT, STABLE, Label, SecretBytes, VersionId
from goatherd.providers.versioned_record import RECORD, RecordedSecret, VersionedRecord, encode_members, entry_for
from tests.fakes.kubelet import Kubelet

CALL = Call(provider="k8s", secret_id="ns/root", operation="write")


def grown(values: list[bytes]) -> RecordedSecret:
    """Return a secret to which these values were written, one after the other."""
    first = entry_for(SecretBytes(values[0]), request="0", now_ms=0)
    record = VersionedRecord().with_first_version(CALL, first, CURRENT)
    secret = RecordedSecret(record=record, values={1: SecretBytes(values[0])})
    for number, value in enumerate(values[1:], 1):
        entry = entry_for(SecretBytes(value), request=str(number), now_ms=number)
        record = record.with_version(CALL, entry, CURRENT, VersionId(number))
        secret = secret.with_record(record, SecretBytes(value))
    return secret


@pytest.fixture
def kubelet(tmp_path: Path) -> Kubelet:
    return Kubelet(tmp_path / "goatherd")


@pytest.fixture
def provider(tmp_path: Path) -> KubernetesVolumeProvider:
    return KubernetesVolumeProvider(str(tmp_path), retry=RetryPolicy(attempts=1))


NAME = "goatherd"


async def test_what_is_mounted_can_be_read_by_label_and_by_id(kubelet: Kubelet, provider: KubernetesVolumeProvider):
    kubelet.show(grown([b"first", b"second"]))
    found = await provider.read(NAME)
    assert (found.value.reveal(), found.version.id, found.version.labels) == (b"second", "2", {CURRENT})
    assert (await provider.read(NAME, VersionId("1"))).value.reveal() == b"first"
    assert [version.id for version in await provider.versions(NAME)] == ["2", "1"]
    with pytest.raises(SecretNotFoundError):
        await provider.read(NAME, STABLE)


async def test_the_address_is_the_directory_of_the_mount(kubelet: Kubelet, tmp_path: Path):
    kubelet.show(grown([b"first"]))
    opened, secret_id = open_provider(f"k8s-volume://{kubelet.directory}")
    async with opened:
        assert (await opened.read(secret_id)).value.reveal() == b"first"
    several, secret_id = KubernetesVolumeProvider.from_uri("k8s-volume:///var/run/secrets/{org}/root")
    assert (several.base, secret_id) == ("/var/run/secrets", "{org}/root")


@pytest.mark.parametrize(
    "uri", ["k8s-volume://", "k8s-volume://host/x", "k8s-volume:///", "k8s-volume:///a/../b", "k8s-volume:///a?b=c"]
)
def test_what_is_no_directory_is_refused(uri: str):
    with pytest.raises(ConfigurationError):
        KubernetesVolumeProvider.from_uri(uri)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda p: p.create(NAME, b"x"),
        lambda p: p.write(NAME, b"x", expected="1"),
        lambda p: p.label(NAME, STABLE, "1", expected=None),
        lambda p: p.delete(NAME),
    ],
    ids=["create", "write", "label", "delete"],
)
async def test_every_change_is_denied_and_the_hint_says_how_to_make_it(
    kubelet: Kubelet, provider: KubernetesVolumeProvider, attempt: Callable[[KubernetesVolumeProvider], object]
):
    kubelet.show(grown([b"first"]))
    with pytest.raises(ProviderAccessDeniedError, match="can only be read") as caught:
        await attempt(provider)  # type: ignore[misc]
    assert "k8s://NAMESPACE/NAME, or the store whose copy this Secret is" in caught.value.hint


async def test_destroying_is_not_promised_and_refused(kubelet: Kubelet, provider: KubernetesVolumeProvider):
    kubelet.show(grown([b"first"]))
    assert not provider.guarantees.destroys
    assert not provider.guarantees.cas
    with pytest.raises(ProviderConfigurationError):
        await provider.destroy(NAME, "1")


async def test_a_destroyed_version_is_said_to_be_so(kubelet: Kubelet, provider: KubernetesVolumeProvider):
    secret = grown([b"first", b"second"])
    kubelet.show(secret.with_record(secret.record.without_value(CALL, VersionId("1"))))
    with pytest.raises(VersionDisabledError):
        await provider.read(NAME, VersionId("1"))


async def test_nothing_mounted_an_empty_mount_a_subpath_and_a_foreign_secret_are_four_things(
    kubelet: Kubelet, provider: KubernetesVolumeProvider, tmp_path: Path
):
    with pytest.raises(SecretNotFoundError, match="nothing is mounted"):
        await provider.read("elsewhere")
    (tmp_path / "subpath").mkdir()
    (tmp_path / "subpath" / RECORD).write_bytes(b"{}")
    with pytest.raises(ProviderConfigurationError, match=r"no \.\.data") as caught:
        await provider.read("subpath")
    assert "subPath" in caught.value.hint
    kubelet.mount({})
    with pytest.raises(SecretNotFoundError, match="empty"):
        await provider.read(NAME)
    kubelet.mount({"tls.crt": b"x"})
    with pytest.raises(ProviderConfigurationError, match="not made by Goatherd"):
        await provider.read(NAME)


@pytest.mark.parametrize("what", ["record", "value", "value gone", "too long", "a link"])
async def test_damage_is_unavailable_and_never_absent(
    kubelet: Kubelet, provider: KubernetesVolumeProvider, tmp_path: Path, what: str
):
    kubelet.show(grown([b"first"]))
    data = kubelet.directory / "..data"
    match what:
        case "record":
            (data / RECORD).write_bytes((data / RECORD).read_bytes()[:-5])
        case "value":
            (data / "value").write_bytes(b"f1rst")
        case "value gone":
            (data / "value").unlink()
        case "too long":
            (data / "value").write_bytes(b"x" * ((1 << 20) + 1))
        case _:
            (tmp_path / "other").write_bytes(b"first")
            (data / "value").unlink()
            (data / "value").symlink_to(tmp_path / "other")
    with pytest.raises(UnavailableError):
        await provider.read(NAME)


async def test_a_state_that_is_swapped_away_while_it_is_read_is_read_anew(
    kubelet: Kubelet, provider: KubernetesVolumeProvider, monkeypatch: pytest.MonkeyPatch
):
    kubelet.show(grown([b"first"]))
    read, swapped = volume._bytes_of, []

    def slow(snapshot: int, name: str) -> bytes:
        if name != RECORD and not swapped:
            swapped.append(name)
            kubelet.show(grown([b"first", b"second"]))  # which removes the state that is being read
        return read(snapshot, name)

    monkeypatch.setattr(volume, "_bytes_of", slow)
    assert (await provider.read(NAME)).value.reveal() == b"second"
    assert swapped


async def test_record_and_value_are_of_one_state_even_while_the_old_one_is_kept(
    kubelet: Kubelet, provider: KubernetesVolumeProvider, monkeypatch: pytest.MonkeyPatch
):
    kubelet.show(grown([b"first"]))
    read, swapped = volume._bytes_of, []

    def slow(snapshot: int, name: str) -> bytes:
        if name != RECORD and not swapped:
            swapped.append(name)
            kubelet.mount(encode_members(grown([b"f1rst"])), remove=False)
        return read(snapshot, name)

    monkeypatch.setattr(volume, "_bytes_of", slow)
    assert (await provider.read(NAME)).value.reveal() == b"first"


@pytest.mark.slow
async def test_a_reader_under_endless_swaps_sees_whole_states_that_never_go_back(
    kubelet: Kubelet, provider: KubernetesVolumeProvider
):
    states = [grown([b"%d" % number for number in range(1, count + 1)]) for count in range(1, 31)]
    kubelet.show(states[0])
    done = threading.Event()

    def swap() -> None:
        for state in states[1:]:
            kubelet.show(state)
        done.set()

    swapping = asyncio.create_task(asyncio.to_thread(swap))
    newest = 0
    while not done.is_set():
        found = await provider.read(NAME)
        number = int(found.value.reveal())
        assert str(number) == found.version.id
        assert number >= newest
        newest = number
    await swapping
    assert (await provider.read(NAME, Label("current"))).version.id == "30"


async def test_files_that_the_user_may_not_read_are_denied(
    kubelet: Kubelet, provider: KubernetesVolumeProvider, monkeypatch: pytest.MonkeyPatch
):
    kubelet.show(grown([b"first"]))

    def denied(snapshot: int, name: str) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")  # as root, no mode would deny anything

    monkeypatch.setattr(volume, "_bytes_of", denied)
    with pytest.raises(ProviderAccessDeniedError) as caught:
        await provider.read(NAME)
    assert "defaultMode" in caught.value.hint


async def test_a_provider_has_a_deadline_and_declares_that_reads_lag(provider: KubernetesVolumeProvider):
    assert provider.timeout == timedelta(seconds=10)
    assert provider.guarantees.read_consistency == "eventual"
    assert not provider.guarantees.push


# --- a copy of another store's current document -------------------------------------------------------------------


async def test_a_copied_document_is_the_current_version_until_the_next_copy(
    kubelet: Kubelet, provider: KubernetesVolumeProvider
):
    kubelet.mount({COPY: b"first", "other": b"x"})
    first = await provider.read(NAME)
    assert (first.value.reveal(), first.version.labels) == (b"first", {CURRENT})
    assert abs(first.version.created_ms / 1000 - time.time()) < 3600
    assert await provider.read(NAME, first.version.id) == first
    assert await provider.versions(NAME) == [first.version]
    kubelet.mount({COPY: b"second"})
    second = await provider.read(NAME)
    assert second.value.reveal() == b"second"
    assert second.version.id != first.version.id
    for gone in (STABLE, first.version.id, VersionId("1")):
        with pytest.raises(SecretNotFoundError, match="current version only"):
            await provider.read(NAME, gone)
    kubelet.mount({COPY: b"first"})
    assert (await provider.read(NAME)).version.id == first.version.id, "the id is that of the bytes"


async def test_a_record_wins_over_a_copy_and_a_damaged_one_is_not_replaced_by_it(
    kubelet: Kubelet, provider: KubernetesVolumeProvider
):
    data = encode_members(grown([b"first"]))
    kubelet.mount({**data, COPY: b"copy"})
    assert (await provider.read(NAME)).value.reveal() == b"first"
    kubelet.mount({**data, RECORD: data[RECORD][:-5], COPY: b"copy"})
    with pytest.raises(UnavailableError):
        await provider.read(NAME)


async def test_a_copy_cannot_be_changed_and_one_that_is_too_long_is_unavailable(
    kubelet: Kubelet, provider: KubernetesVolumeProvider
):
    kubelet.mount({COPY: b"first"})
    with pytest.raises(ProviderAccessDeniedError):
        await provider.write(NAME, b"x", expected=(await provider.read(NAME)).version.id)
    kubelet.mount({COPY: b"x" * ((1 << 20) + 1)})
    with pytest.raises(UnavailableError):
        await provider.read(NAME)
