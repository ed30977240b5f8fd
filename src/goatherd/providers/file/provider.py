"""Store secrets as files. This is the default store; it needs no server and no account.

This module parses the address, runs the file system calls and translates their errors; `goatherd.providers.file.layout`
defines the layout of the files and the order of writes. File system calls run in a separate thread if an event loop is
running, otherwise in the caller's thread (`goatherd.event_loop`). No thread blocks on a lock: the provider tries to
take the lock again after a pause, so that deadlines and cancellations always take effect.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Final, Self, TypeVar

from goatherd.clock import Clock
from goatherd.errors import (
    ConfigurationError,
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    ProviderError,
    UnavailableError,
)
from goatherd.event_loop import find_running_loop
from goatherd.files import SUPPORTED, System, check_path
from goatherd.providers.addresses import parse_config, path_of_uri, split_path
from goatherd.providers.base import Call, Guarantees, ReadConsistency, RetryPolicy, SecretProvider
from goatherd.providers.capabilities import Finding, Verdict, rights_finding
from goatherd.providers.file.layout import (
    FULL,
    LOCK,
    MANIFEST,
    NEW_MANIFEST,
    RESERVE,
    VALUE,
    Durable,
    LockHeldError,
    SecretDirectory,
)
from goatherd.providers.file.permissions import FORM
from goatherd.providers.values import Label, SecretBytes, SecretValue, SecretVersion, VersionId

Result = TypeVar("Result")

_EXAMPLE: Final = "Such as file:///srv/keys/root, without '.', '..', or a slash at the end."
_DENIED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NOT_POSIX: Final = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF})
_RESERVED: Final = frozenset({LOCK, MANIFEST, NEW_MANIFEST, RESERVE})
_LEAST_ROOM: Final = 16_000_000
_ROOM_TO_ROTATE: Final = 500_000
"""What a rotation may write: some versions of the largest identity document, and their ledger."""


class FileSecretProvider(SecretProvider):
    """Store secrets in a directory of this machine.

    Address: ``file:///srv/keys/root``: the secret ``root`` in the base directory ``/srv/keys``. With ``{org}`` in a
        component, the base directory ends before that component: ``file:///srv/keys/{org}/root``. Only `create` makes
        missing directories.
    Credentials: the user that the process runs as.
    Permissions: the secret's directory belongs to that user, mode 0700, its files 0600; files that others could read or
        replace are rejected, and the error shows the chmod command. A reader needs no write access.
    Guarantees:
        compare-and-swap: between all processes of the machine.
        reads: strong.
        history: every version until it is destroyed.
        destroying: unlinks the file without overwriting it. On SSDs, copy-on-write file systems and snapshots the old
            blocks may remain, so use an encrypted volume, and backups that expire.
        size: 64 KiB for a value.
        durability: what a call has written or read is durable once it has returned. A rotation reserves space for its
            writes before it begins.

    This holds on local file systems only.
    """

    scheme = "file"
    needs_event_loop = False
    confirms_labels = False

    def __init__(
        self,
        base: str | PurePosixPath,
        *,
        timeout: timedelta = timedelta(seconds=10),
        retry: RetryPolicy | None = None,
        clock: Clock | None = None,
        system: System | None = None,
    ) -> None:
        hint = 'Write FileSecretProvider("/srv/keys"). `open_provider` takes a URI such as file:///srv/keys/root.'
        check_path(base, "the directory of a file store", hint=hint)
        super().__init__(timeout=timeout, retry=retry, clock=clock)
        self.base = str(base)
        self._system = system or System()
        self._durable: Durable = {}

    @classmethod
    def from_uri(cls, uri: str) -> tuple[Self, str]:
        return cls._from_path(path_of_uri(uri, hosts=("", "localhost"), example="Write file:///absolute/path/name."))

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> tuple[Self, str]:
        """Return a provider and the secret id from ``{"provider": "file", "secretId": "/srv/keys/root"}``.

        The secret id is an absolute path, or relative to the member ``directory``, such as ``/srv/keys``. A region is
        ignored.

        Raises:
            ConfigurationError: A required member is missing, or a member is unknown or invalid.
        """
        parsed = parse_config(FORM, config)
        if not parsed.host:
            return cls._from_path(parsed.path)
        if not parsed.host.startswith("/"):
            raise ConfigurationError("cloudConfig: directory must be an absolute path")
        return cls(parsed.host), parsed.path

    @classmethod
    def _from_path(cls, path: str) -> tuple[Self, str]:
        base, secret_id = split_path(path, example=_EXAMPLE)
        return cls(base), secret_id

    @property
    def guarantees(self) -> Guarantees:
        return Guarantees(cas=True, read_consistency=ReadConsistency.STRONG, custom_labels=True)

    def check_secret_id(self, secret_id: str) -> None:
        super().check_secret_id(secret_id)
        for component in secret_id.split("/"):
            if component in _RESERVED or VALUE.fullmatch(component):
                raise ConfigurationError(f"the file store reserves the name {component!r} for its own use")

    async def diagnose(self, secret_id: str) -> list[Finding]:
        """Check whether the process may write to the secret's directory and the disk has space; return the findings."""
        call = self._start_call("diagnose", secret_id)
        return await self._run_call(
            call, lambda now: self._run_blocking(now, lambda _: self._diagnose_secret(secret_id))
        )

    async def reserve(self, secret_id: str) -> None:
        """Reserve 128 KiB of disk space for a secret; a later write uses it if the disk is full."""
        call = self._start_call("reserve", secret_id)
        await self._run_call(call, lambda now: self._run_change(now, lambda secret: secret.reserve_room()))

    def _diagnose_secret(self, secret_id: str) -> list[Finding]:
        place = f"{self.base.rstrip('/')}/{secret_id}"
        may_write = self._system.may_write(place)
        first = rights_finding(self.scheme, may_write=may_write, may_destroy=True if may_write else None)
        room = self._system.free_bytes(place)
        if room < _ROOM_TO_ROTATE:
            text = f"{room // 1000} KB free, which is too little for a rotation"
            return [first, Finding(name="room", verdict=Verdict.WRONG, text=text, hint=f"Make room under {place}.")]
        text = f"{room // 1_000_000} MB free"
        if room < _LEAST_ROOM:
            return [first, Finding(name="room", verdict=Verdict.CAUTION, text=text, hint=f"Make room under {place}.")]
        return [first, Finding(name="room", verdict=Verdict.FINE, text=text)]

    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        now_ms = self.clock.now_ms()
        return await self._run_change(
            call,
            lambda secret: secret.add_version(
                value, now_ms, lambda ledger, entry: ledger.with_first_version(call, entry, label), creates=True
            ),
        )

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        return await self._run_blocking(call, lambda secret: secret.read_version(at))

    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        now_ms = self.clock.now_ms()
        return await self._run_change(
            call,
            lambda secret: secret.add_version(
                value, now_ms, lambda ledger, entry: ledger.with_version(call, entry, label, expected)
            ),
        )

    async def _label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
        await self._run_change(
            call, lambda secret: secret.move_labels(lambda ledger: ledger.with_label(call, label, version, expected))
        )

    async def _unlabel(self, call: Call, label: Label, expected: VersionId) -> None:
        await self._run_change(
            call, lambda secret: secret.move_labels(lambda ledger: ledger.without_label(call, label, expected))
        )

    async def _versions(self, call: Call) -> Sequence[SecretVersion]:
        return await self._run_blocking(call, lambda secret: secret.list_versions())

    async def _destroy(self, call: Call, version: VersionId) -> None:
        """Delete the file with a version's value. Its content is not overwritten.

        On SSDs, and with journals, copy-on-write file systems or snapshots, a process that reads the raw device may
        still find the old blocks, and overwriting would not change that: use an encrypted volume, and backups that
        expire.
        """
        await self._run_change(call, lambda secret: secret.destroy_version(version))

    async def _delete(self, call: Call) -> None:
        await self._run_change(call, lambda secret: secret.delete_secret())

    async def _run_change(self, call: Call, work: Callable[[SecretDirectory], Result]) -> Result:
        """Run the change `work` of a secret, and retry it while another writer holds the secret's lock."""
        while True:
            try:
                return await self._run_blocking(call, work)
            except LockHeldError:
                pass
            place = f"{self.base.rstrip('/')}/{call.secret_id}"
            await call.pause_for_writers(f"another writer holds the lock of {place}")

    async def _run_blocking(self, call: Call, work: Callable[[SecretDirectory], Result]) -> Result:
        if not SUPPORTED:
            raise call.error(
                ProviderConfigurationError, "the file store needs POSIX locks, which this system does not have"
            )
        secret = SecretDirectory(call, self.base, self._system, self._durable)
        try:
            loop = find_running_loop()
            if loop is None:
                return work(secret)
            from goatherd.providers.cancellation import finish_request  # here: without a loop, asyncio is not imported

            # A thread cannot be stopped. Its few system calls end soon; when they have, the outcome is settled.
            return await finish_request(loop.run_in_executor(None, lambda: work(secret)))
        except OSError as error:
            raise self._translate_error(call, error) from error

    def _existing_parent(self) -> str:
        """Return the store's base directory or, if that is missing, its nearest existing parent."""
        path = Path(self.base)
        return str(next((each for each in (path, *path.parents) if os.path.isdir(each)), path))  # noqa: PTH112

    def _translate_error(self, call: Call, error: OSError) -> ProviderError:
        reason = f"{error.strerror or type(error).__name__} ({errno.errorcode.get(error.errno or 0, '?')})"
        if error.errno in _DENIED:
            if error.errno == errno.EROFS:
                hint = f"The file system of {self.base} is mounted read-only: mount it for writing, or choose another."
            else:
                hint = (
                    f"User {os.geteuid()} runs this command and needs the right to read and write {self.base} and what "
                    "is in it. Give it that right, run the command as the owner, or choose another path."
                )
            parent = self._existing_parent()
            where = self.base if parent == self.base else f"{parent}, where {self.base} would be made"
            return call.error(ProviderAccessDeniedError, f"{reason} in {where}", hint=hint)
        if error.errno in FULL:
            if call.operation == "reserve":
                return call.error(
                    UnavailableError,
                    f"there is not enough space for the writes of this command: {reason}",
                    hint=f"Nothing was changed. Free some space under {self.base}.",
                    final=True,
                )
            return call.error(UnavailableError, reason, hint=f"Free some space under {self.base}.")
        if error.errno in _NOT_POSIX:
            return call.error(
                ProviderConfigurationError,
                f"the file system under {self.base} cannot lock files or sync directories: {reason}",
                hint="Use a local file system.",
            )
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
            return call.error(
                ProviderConfigurationError,
                f"{reason} on the way to {self.base}/{call.secret_id}",
                hint="Choose another path for the secret: each part of it but the last must be a directory.",
            )
        return call.error(UnavailableError, reason)
