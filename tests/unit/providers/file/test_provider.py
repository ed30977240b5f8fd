"""The file provider: addresses, permissions, damage, and errors of the operating system."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import stat
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.errors import (
    ConfigurationError,
    ConflictError,
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    SecretExistsError,
    SecretNotFoundError,
    UnavailableError,
    VersionDisabledError,
)
from goatherd.files import System
from goatherd.plugins import open_provider, provider_from_config
from goatherd.providers.base import RetryPolicy
from goatherd.providers.file.provider import FileSecretProvider
from goatherd.providers.values import VersionId
from tests.deadlines import HANG

IMPATIENT = RetryPolicy(attempts=2, base=timedelta(milliseconds=1))


def at(directory: Path, *, timeout: timedelta = timedelta(seconds=HANG), **options) -> FileSecretProvider:
    return FileSecretProvider(str(directory), retry=IMPATIENT, timeout=timeout, **options)


async def waits_in_vain(keys: Path, expected: str, **options) -> UnavailableError:
    """Return the error of a write that waits for a held lock until its deadline.

    On a slow machine a short deadline ends before the write has come to the lock; then a longer one is tried.
    """
    for seconds in (0.2, 2, HANG / 2):
        with pytest.raises(UnavailableError) as caught:
            await at(keys, timeout=timedelta(seconds=seconds), **options).write("root", b"third", expected=expected)
        if "another writer holds the lock" in str(caught.value):
            break
    return caught.value


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    directory = tmp_path / "keys"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
async def store(keys: Path) -> FileSecretProvider:
    """A store whose secret `root` has two versions, `current` on the second, `stable` on the first."""
    provider = at(keys)
    await provider.create("root", b"first")
    await provider.label("root", "stable", "1", expected=None)
    await provider.write("root", b"second", expected="1")
    return provider


def chmod(path: Path, mode: int) -> None:
    path.chmod(mode)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def picture(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "base", "secret_id"),
    [
        ("file:///srv/keys/root", "/srv/keys", "root"),
        ("file:///srv/keys/{org}/root", "/srv/keys", "{org}/root"),
        ("file:///srv/keys/{org}", "/srv/keys", "{org}"),
        ("file:///srv/goat-{org}/a/root", "/srv", "goat-{org}/a/root"),
        ("file://localhost/srv/keys/root", "/srv/keys", "root"),
        ("file:///srv/my%20keys/root", "/srv/my keys", "root"),
        ("file:///root", "/", "root"),
    ],
)
def test_the_base_ends_before_the_last_component_or_the_one_with_the_organization(uri: str, base: str, secret_id: str):
    provider, found = open_provider(uri)
    assert isinstance(provider, FileSecretProvider)
    assert (provider.base, found) == (base, secret_id)


@pytest.mark.parametrize(
    "uri",
    [
        "file://",
        "file:///",
        "file:///srv/keys/",
        "file://srv/keys/root",
        "file:///srv//root",
        "file:///srv/../root",
        "file:///srv/./root",
        "file:///srv/%2e%2e/root",
        "file:///srv/root?mode=1",
        "file:///srv/root#x",
    ],
)
def test_what_is_no_absolute_path_to_a_secret_is_refused(uri: str):
    with pytest.raises(ConfigurationError):
        open_provider(uri)


def test_goatdb_s_configuration_shape_names_a_file_store():
    provider, secret_id = provider_from_config(
        {"provider": "file", "secretId": "/srv/keys/root", "region": "eu-west-1"}
    )
    assert isinstance(provider, FileSecretProvider)
    assert (provider.base, secret_id) == ("/srv/keys", "root")
    provider, secret_id = provider_from_config({"provider": "file", "secretId": "{org}/root", "directory": "/srv/keys"})
    assert isinstance(provider, FileSecretProvider)
    assert (provider.base, secret_id) == ("/srv/keys", "{org}/root")


@pytest.mark.parametrize(
    "config",
    [
        {"secretId": "root"},
        {},
        {"secretId": 5},
        {"secretId": "/a/b", "profile": "x"},
        {"secretId": "root", "directory": "keys"},
        {"secretId": "root", "directory": 5},
    ],
)
def test_a_configuration_without_a_place_or_with_a_strange_option_is_refused(config: dict[str, object]):
    with pytest.raises(ConfigurationError):
        provider_from_config({"provider": "file", **config})


@pytest.mark.parametrize("base", ["file:///srv/keys/root", "", None, 7])
def test_what_is_no_path_is_refused_and_puts_nothing_under_the_working_directory(base: str):
    with pytest.raises(ConfigurationError, match="must be a path") as caught:
        FileSecretProvider(base)
    assert "open_provider" in caught.value.hint


@pytest.mark.parametrize("secret_id", ["lock", "secret.json", "secret.new", "a/lock", "../keys", "."])
async def test_names_that_the_layout_needs_are_not_secrets(keys: Path, secret_id: str):
    with pytest.raises(ProviderConfigurationError):
        await at(keys).create(secret_id, b"x")
    assert picture(keys) == {}


async def test_a_secret_lives_beside_and_below_others(keys: Path):
    provider = at(keys)
    for secret_id in ("root", "acme/root", "acme/deep/root"):
        await provider.create(secret_id, secret_id.encode())
    await provider.delete("acme/root")
    assert (await provider.read("acme/deep/root")).value.reveal() == b"acme/deep/root"
    assert (await provider.read("root")).value.reveal() == b"root"
    with pytest.raises(SecretNotFoundError):
        await provider.read("acme")


# --- permissions ------------------------------------------------------------------------------------------------------


async def test_everything_made_is_for_the_owner_alone_whatever_the_umask(tmp_path: Path):
    before = os.umask(0)
    try:
        provider = at(tmp_path / "new" / "keys")
        await provider.create("acme/root", b"first")
        await provider.write("acme/root", b"second", expected="1")
    finally:
        os.umask(before)
    made = [tmp_path / "new", *(tmp_path / "new").rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in made if path.is_dir()} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in made if path.is_file()} == {0o600}
    assert len(made) == 6


@pytest.mark.parametrize("mode", [0o750, 0o710, 0o705, 0o770, 0o701, 0o720])
async def test_a_secret_s_directory_that_others_can_enter_is_refused_with_the_chmod(
    store: FileSecretProvider, keys: Path, mode: int
):
    (keys / "root").chmod(mode)
    for begin in (
        lambda: store.read("root"),
        lambda: store.versions("root"),
        lambda: store.write("root", b"x", expected="2"),
        lambda: store.create("root", b"x"),
        lambda: store.delete("root"),
    ):
        with pytest.raises(ProviderConfigurationError, match=f"open to others \\(mode {mode:o}\\)") as caught:
            await begin()
        assert caught.value.hint == f"chmod 700 {keys}/root"
    (keys / "root").chmod(0o700)
    assert (await store.read("root")).value.reveal() == b"second"


@pytest.mark.parametrize("name", ["secret.json", "lock"])
async def test_a_file_that_others_can_read_is_refused_with_the_chmod(store: FileSecretProvider, keys: Path, name: str):
    (keys / "root" / name).chmod(0o640)
    with pytest.raises(ProviderConfigurationError, match="open to others") as caught:
        await (store.write("root", b"x", expected="2") if name == "lock" else store.read("root"))
    assert caught.value.hint == f"chmod 600 {keys / 'root' / name}"


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
async def test_a_base_in_which_others_could_swap_the_directory_is_refused(
    store: FileSecretProvider, keys: Path, mode: int
):
    chmod(keys, mode)
    with pytest.raises(ProviderConfigurationError, match="can be written by others") as caught:
        await store.read("root")
    assert caught.value.hint == f"chmod go-w {keys}"
    chmod(keys, 0o1777)
    assert (await store.read("root")).value.reveal() == b"second"
    chmod(keys, 0o755)
    assert (await store.read("root")).value.reveal() == b"second"


async def test_what_belongs_to_another_user_is_refused(store: FileSecretProvider, keys: Path):
    class AsAnother(System):
        def effective_user(self) -> int:
            return os.geteuid() + 1000

    with pytest.raises(ProviderConfigurationError, match=f"belongs to user {os.geteuid()}"):
        await at(keys, system=AsAnother()).read("root")


@pytest.mark.parametrize("secret_id", ["new", "acme/root"])
async def test_nothing_is_made_in_a_directory_that_is_refused(keys: Path, secret_id: str):
    """Directories that root has left there would prevent the owner from writing."""
    keys.mkdir(mode=0o700, exist_ok=True)
    before = sorted(keys.iterdir())
    keys.chmod(0o777)
    with pytest.raises(ProviderConfigurationError, match="can be written by others"):
        await at(keys).create(secret_id, b"x")
    assert sorted(keys.iterdir()) == before


# --- links and strange things -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["secret.json", "lock", "secret.new"])
async def test_a_symbolic_link_in_place_of_a_file_is_not_followed(
    store: FileSecretProvider, keys: Path, tmp_path: Path, name: str
):
    target = tmp_path / "elsewhere"
    target.write_bytes(b"precious")
    target.chmod(0o600)
    link = keys / "root" / name
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    if name == "secret.json":
        with pytest.raises(ProviderConfigurationError):
            await store.read("root")
    if name == "secret.new":
        await store.write("root", b"third", expected="2")
        assert not link.is_symlink()
    else:
        with pytest.raises(ProviderConfigurationError):
            await store.write("root", b"third", expected="2")
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize("secret_id", ["root", "acme/root"])
async def test_a_symbolic_link_in_place_of_a_directory_is_refused(keys: Path, tmp_path: Path, secret_id: str):
    other = at(tmp_path / "other")
    await other.create(secret_id, b"planted")
    first = secret_id.split("/")[0]
    (keys / first).symlink_to(tmp_path / "other" / first)
    for begin in (lambda: at(keys).read(secret_id), lambda: at(keys).create(secret_id, b"x")):
        with pytest.raises(ProviderConfigurationError, match="symbolic link"):
            await begin()
    assert (await other.read(secret_id)).value.reveal() == b"planted"


async def test_a_pipe_in_place_of_a_file_does_not_make_a_reader_wait(store: FileSecretProvider, keys: Path):
    (keys / "root" / "secret.json").unlink()
    os.mkfifo(keys / "root" / "secret.json", 0o600)
    with pytest.raises(ProviderConfigurationError, match="is not a file") as caught:
        await asyncio.wait_for(store.read("root"), HANG)
    assert "backup" in caught.value.hint, "not only to run doctor, which reports the same"


async def test_files_that_are_not_ours_are_left_alone(store: FileSecretProvider, keys: Path):
    (keys / "root" / "README").write_text("the operator's")
    (keys / "root" / "secret.json.bak").write_text("the operator's too")
    await store.write("root", b"third", expected="2")
    await store.delete("root")
    assert names(keys / "root") == ["README", "secret.json.bak"]
    await store.create("root", b"again")


# --- damage -----------------------------------------------------------------------------------------------------------


def flip(raw: bytes, at_byte: int) -> bytes:
    return raw[:at_byte] + bytes([raw[at_byte] ^ 1]) + raw[at_byte + 1 :]


def change(key: str, member: object) -> Callable[[Path], None]:
    """Return what replaces a member of the secret's file, or removes it."""

    def damage(directory: Path) -> None:
        document = json.loads((directory / "secret.json").read_bytes())
        document = {name: found for name, found in document.items() if name != key or member is not None}
        document |= {} if member is None else {key: member}
        (directory / "secret.json").write_text(json.dumps(document))

    return damage


DAMAGES: dict[str, Callable[[Path], None]] = {
    "another value": change("value", "sec0nd"),
    "a value in base64 that is none": change("value", {"base64": "*"}),
    "a value that is a number": change("value", 2),
    "a missing value": change("value", None),
    "another version's value": change("value", "first"),
    "a missing record": change("record", None),
    "an empty record": change("record", {}),
    "an empty file": lambda d: (d / "secret.json").write_bytes(b"") and None,
    "a file that is a list": lambda d: (d / "secret.json").write_bytes(b"[]\n") and None,
    "a file of a later format": lambda d: (
        (d / "secret.json").write_bytes((d / "secret.json").read_bytes().replace(b"record/1", b"record/2")) and None
    ),
}
DAMAGED = (UnavailableError, ProviderConfigurationError)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_damage_is_called_damage_and_never_absence_and_gives_no_value(
    store: FileSecretProvider, keys: Path, damage: Callable[[Path], None]
):
    damage(keys / "root")
    before = picture(keys)
    with pytest.raises(DAMAGED, match=r"damaged|not made by Goatherd") as caught:
        await store.read("root")
    assert not caught.value.retryable
    assert "second" not in str(caught.value)
    with pytest.raises((*DAMAGED, SecretExistsError)):
        await store.create("root", b"invented")
    assert picture(keys) == before, "nothing was repaired, overwritten or invented"


@pytest.mark.slow
async def test_any_change_of_any_byte_gives_an_error_or_the_same_value(store: FileSecretProvider, keys: Path):
    file = keys / "root" / "secret.json"
    good, other = file.read_bytes(), file.read_bytes().index(b'"v1"')
    for position in range(len(good)):
        file.write_bytes(flip(good, position))
        if position < other:  # else the current value is whole
            with pytest.raises(DAMAGED):
                await store.read("root")
    for length in range(len(good) - 1):
        file.write_bytes(good[:length])
        with pytest.raises(DAMAGED):
            await store.read("root")
    file.write_bytes(good)
    assert (await store.read("root")).value.reveal() == b"second"


async def test_an_operator_can_go_back_to_a_whole_version_when_one_is_damaged(store: FileSecretProvider, keys: Path):
    change("value", "broken")(keys / "root")
    assert (await store.read("root", VersionId("1"))).value.reveal() == b"first"
    await store.label("root", "current", "1", expected="2")
    assert (await store.read("root")).value.reveal() == b"first"


# --- what the operating system may answer -----------------------------------------------------------------------------


class FailingSystem(System):
    """Makes the k-th system call, and all later ones of the same kind, fail."""

    def __init__(self, number: int, code: int) -> None:
        self.left = number
        self.code = code
        self.failed: object = None

    def run_call(self, operation, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            self.failed = operation
        if self.left <= 0 and operation is self.failed and operation is not os.close:
            raise OSError(self.code, os.strerror(self.code))
        return operation(*args, **kwargs)


CODES = {
    errno.ENOSPC: UnavailableError,
    errno.EDQUOT: UnavailableError,
    errno.EIO: UnavailableError,
    errno.EROFS: ProviderAccessDeniedError,
    errno.EACCES: ProviderAccessDeniedError,
}


@pytest.mark.parametrize(
    "code",
    [code if code == errno.ENOSPC else pytest.param(code, marks=pytest.mark.slow) for code in CODES],
    ids=errno.errorcode.get,
)
async def test_whichever_call_fails_the_error_is_ours_and_old_or_new_is_what_is_read(tmp_path: Path, code: int):
    failures = 0
    for number in range(1, 200):
        directory = tmp_path / f"{number}"
        good = at(directory)
        await good.create("root", b"old")
        system = FailingSystem(number, code)
        (outcome,) = await asyncio.gather(
            at(directory, system=system).write("root", b"new", expected="1"), return_exceptions=True
        )
        if isinstance(outcome, BaseException):
            failures += 1
            assert type(outcome) is CODES[code], outcome
            assert (await good.read("root")).value.reveal() in (b"old", b"new")
        else:
            assert (await good.read("root")).value.reveal() == b"new"
        if system.failed is None:
            break
        # Whatever it was has passed: the next writer works and leaves nothing of the failed one.
        holder = (await good.read("root")).version.id
        await good.write("root", b"after", expected=holder)
        assert names(directory / "root") == ["lock", "secret.json"]
    else:
        pytest.fail("the writer needs more system calls than this test allows for")
    assert failures > 10


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS], ids=errno.errorcode.get)
async def test_a_full_or_read_only_disk_changes_nothing_and_leaves_nothing(
    store: FileSecretProvider, keys: Path, code: int
):
    class Full(System):
        def run_call(self, operation, *args, **kwargs):
            creating = operation is os.open and args[1] & os.O_EXCL
            if (operation is os.write and code == errno.ENOSPC) or (creating and code == errno.EROFS):
                raise OSError(code, os.strerror(code))
            return operation(*args, **kwargs)

    before = picture(keys)
    with pytest.raises(CODES[code]) as caught:
        await at(keys, system=Full()).write("root", b"third", expected="2")
    assert caught.value.hint
    with pytest.raises(CODES[code]):
        await at(keys, system=Full()).label("root", "stable", "2", expected="1")
    assert picture(keys) == before
    assert (await store.read("root")).value.reveal() == b"second"


async def test_a_write_cut_short_by_the_system_is_carried_on(keys: Path):
    class Short(System):
        def run_call(self, operation, *args, **kwargs):
            if operation is os.write:
                return os.write(args[0], args[1][:7])
            return operation(*args, **kwargs)

    value = bytes(range(256)) * 4
    await at(keys, system=Short()).create("root", value)
    assert (await at(keys).read("root")).value.reveal() == value


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS], ids=errno.errorcode.get)
async def test_a_file_system_without_locks_is_refused_clearly(keys: Path, code: int):
    class NoLocks(System):
        def run_call(self, operation, *args, **kwargs):
            if operation is fcntl.flock:
                raise OSError(code, os.strerror(code))
            return operation(*args, **kwargs)

    with pytest.raises(ProviderConfigurationError, match="cannot lock files") as caught:
        await at(keys, system=NoLocks()).create("root", b"x")
    assert "local file system" in caught.value.hint


async def test_a_system_without_posix_locks_is_told_so(keys: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("goatherd.providers.file.provider.SUPPORTED", False)
    with pytest.raises(ProviderConfigurationError, match="POSIX"):
        await at(keys).read("root")


async def test_reading_needs_no_lock_and_no_right_to_write(store: FileSecretProvider, keys: Path):
    class ReadOnly(System):
        def run_call(self, operation, *args, **kwargs):
            if operation is os.open:
                assert not args[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            # A directory that is only open for reading can be synced.
            assert operation in (os.open, os.close, os.read, os.fstat, os.stat, os.fsync)
            return operation(*args, **kwargs)

    reader = at(keys, system=ReadOnly())
    assert (await reader.read("root")).value.reveal() == b"second"
    assert [version.id for version in await reader.versions("root")] == ["2", "1"]


@pytest.mark.slow
async def test_waiting_for_a_held_lock_ends_at_the_deadline_and_does_not_stop_the_loop(
    store: FileSecretProvider, keys: Path
):
    descriptor = os.open(keys / "root" / "lock", os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        waiting = asyncio.ensure_future(store.write("root", b"third", expected="2"))
        for _ in range(20):
            await asyncio.sleep(0.005)
            assert not waiting.done()
        waiting.cancel()
        await asyncio.wait({waiting})
        assert "another writer holds the lock" in str(await waits_in_vain(keys, "2"))
        assert (await store.read("root")).value.reveal() == b"second", "readers do not wait for writers"
    finally:
        os.close(descriptor)
    assert (await store.write("root", b"third", expected="2")).id == "3"


# --- labels, versions, destruction ------------------------------------------------------------------------------------


async def test_a_destroyed_value_is_in_no_file_and_its_version_stays_listed(store: FileSecretProvider, keys: Path):
    await store.label("root", "stable", "2", expected="1")
    await store.destroy("root", "1")
    assert b"first" not in b"".join(picture(keys).values())
    with pytest.raises(VersionDisabledError):
        await store.read("root", VersionId("1"))


async def test_a_deleted_secret_leaves_no_directory(store: FileSecretProvider, keys: Path):
    await store.delete("root")
    assert names(keys) == []


async def test_a_writer_that_waited_for_the_lock_of_a_deleted_secret_does_not_write_into_the_void(
    store: FileSecretProvider, keys: Path
):
    """The writer has opened a lock file that is deleted now; it must open the new one."""

    class DeletedBetween(System):
        done = False

        def try_lock(self, descriptor: int) -> bool:
            if not self.done:
                self.done = True
                asyncio.run(at(keys).delete("root"))
                asyncio.run(at(keys).create("root", b"another"))
            return super().try_lock(descriptor)

    with pytest.raises(ConflictError):
        await at(keys, system=DeletedBetween()).write("root", b"third", expected="2")
    assert (await store.read("root")).value.reveal() == b"another"


async def test_what_a_killed_writer_left_is_removed_by_the_next_reader_but_not_while_a_writer_is_at_work(
    store: FileSecretProvider, keys: Path
):
    left = keys / "root" / "secret.new"
    left.write_bytes(b"a new private key")
    descriptor = os.open(keys / "root" / "lock", os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert (await store.read("root")).value.reveal() == b"second"
        assert left.exists(), "the writer at work still needs it"
    finally:
        os.close(descriptor)
    assert (await store.read("root")).value.reveal() == b"second"
    assert not left.exists()
