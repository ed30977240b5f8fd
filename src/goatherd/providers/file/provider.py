"""Store secrets as files. This is the default store; it needs no server and no account.

This module parses the address, runs the file system calls and translates their errors; `goatherd.providers.file.layout`
defines the layout of the files and the order of writes. File system calls run in a separate thread if an event loop is
running, otherwise in the caller's thread (`goatherd.event_loop`). No thread blocks on a lock: a lock that another
writer holds is a conflict, after which the provider tries again. So deadlines and cancellations always take effect.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping
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
from goatherd.providers.base import Call, Guarantees, ReadConsistency, RetryPolicy
from goatherd.providers.capabilities import Finding, Verdict, rights_finding
from goatherd.providers.file.layout import CONTENT, LOCK, NEW, SecretDirectory, token_of
from goatherd.providers.file.permissions import FORM
from goatherd.providers.record_provider import ObjectStore, RecordProvider, StoredObject, Token
from goatherd.providers.versioned_record import RecordedSecret, decode_secret, encode_secret, parse_json

Result = TypeVar("Result")

_EXAMPLE: Final = "Such as file:///srv/keys/root, without '.', '..', or a slash at the end."
_DENIED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NOT_POSIX: Final = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF})
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_RESERVED: Final = frozenset({LOCK, CONTENT, NEW})
_LEAST_ROOM: Final = 16_000_000
_ROOM_TO_ROTATE: Final = 500_000
"""What a rotation may write: some versions of the largest identity document, and their ledger."""
HISTORY: Final = 40
"""With values of the greatest length, so many unlabelled versions fit beside seven labelled ones."""


class FileStore(ObjectStore):
    """Keeps each secret in one file below a base directory.

    Args:
        base: The base directory.
        system: The functions of the operating system that are called.
    """

    max_bytes = 4 << 20

    def __init__(self, base: str, system: System) -> None:
        self._base = base
        self._system = system

    async def get(self, secret_id: str) -> StoredObject | None:
        raw = await self.run_blocking(secret_id, lambda directory: directory.read_content())
        if raw is None:
            return None
        return StoredObject(decode_secret(parse_json(raw)), token_of(raw))

    async def put(self, secret_id: str, secret: RecordedSecret, token: Token | None) -> None:
        raw = json.dumps(encode_secret(secret), indent=1, ensure_ascii=False).encode() + b"\n"
        await self.run_blocking(secret_id, lambda directory: directory.replace_content(raw, token))

    async def delete(self, secret_id: str, token: Token) -> None:
        await self.run_blocking(secret_id, lambda directory: directory.remove_content(token))

    async def run_blocking(self, secret_id: str, work: Callable[[SecretDirectory], Result]) -> Result:
        """Run system calls on a secret's directory in a thread, and translate an `OSError`."""
        if not SUPPORTED:
            raise ProviderConfigurationError("the file store needs POSIX locks, which this system does not have")
        directory = SecretDirectory(self._base, secret_id, self._system)
        try:
            loop = find_running_loop()
            if loop is None:
                return work(directory)
            from goatherd.providers.cancellation import finish_request  # here: without a loop, asyncio is not imported

            # A thread cannot be stopped. Its few system calls end soon; when they have, the outcome is settled.
            return await finish_request(loop.run_in_executor(None, lambda: work(directory)))
        except OSError as error:
            raise self._translate_error(secret_id, error) from error

    def _existing_parent(self) -> str:
        """Return the store's base directory or, if that is missing, its nearest existing parent."""
        path = Path(self._base)
        return str(next((each for each in (path, *path.parents) if os.path.isdir(each)), path))  # noqa: PTH112

    def _translate_error(self, secret_id: str, error: OSError) -> ProviderError:
        reason = f"{error.strerror or type(error).__name__} ({errno.errorcode.get(error.errno or 0, '?')})"
        if error.errno in _DENIED:
            if error.errno == errno.EROFS:
                hint = f"The file system of {self._base} is mounted read-only: mount it for writing, or choose another."
            else:
                hint = (
                    f"User {os.geteuid()} runs this command and needs the right to read and write {self._base} and what"
                    " is in it. Give it that right, run the command as the owner, or choose another path."
                )
            parent = self._existing_parent()
            where = self._base if parent == self._base else f"{parent}, where {self._base} would be made"
            return ProviderAccessDeniedError(f"{reason} in {where}", hint=hint)
        if error.errno in _FULL:
            hint = f"Nothing was changed. Free some space under {self._base}."
            return UnavailableError(reason, hint=hint)
        if error.errno in _NOT_POSIX:
            return ProviderConfigurationError(
                f"the file system under {self._base} cannot lock files or sync directories: {reason}",
                hint="Use a local file system.",
            )
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
            return ProviderConfigurationError(
                f"{reason} on the way to {self._base}/{secret_id}",
                hint="Choose another path for the secret: each part of it but the last must be a directory.",
            )
        return UnavailableError(reason)


class FileSecretProvider(RecordProvider):
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
        history: at least 40 unlabelled versions, and about 250 of the usual size; labelled ones are never dropped.
        destroying: replaces the file without overwriting its old blocks. On SSDs, copy-on-write file systems and
            snapshots these may remain, so use an encrypted volume, and backups that expire.
        size: 64 KiB for a value, 4 MiB for all.
        durability: what a call has written or read is durable once it has returned. If the disk is full, a write fails
            and changes nothing.

    This holds on local file systems only.
    """

    scheme = "file"
    needs_event_loop = False
    confirms_labels = False
    store: FileStore

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
        self.store = FileStore(self.base, self._system)

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
        return Guarantees(cas=True, read_consistency=ReadConsistency.STRONG, history=HISTORY, custom_labels=True)

    def check_secret_id(self, secret_id: str) -> None:
        super().check_secret_id(secret_id)
        for component in secret_id.split("/"):
            if component in _RESERVED:
                raise ConfigurationError(f"the file store reserves the name {component!r} for its own use")

    async def diagnose(self, secret_id: str) -> list[Finding]:
        """Check whether the process may write to the secret's directory and the disk has space; return the findings."""
        call = self._start_call("diagnose", secret_id)

        async def check(now: Call) -> list[Finding]:
            await self._require_object(now)
            return await self.store.run_blocking(secret_id, lambda _: self._diagnose_secret(secret_id))

        return await self._run_call(call, check)

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
