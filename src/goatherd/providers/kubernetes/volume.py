"""Read a Secret that is mounted into the pod, for pods that may not call the API server.

The provider only reads: it cannot write or watch. The kubelet updates the mounted files within one or two minutes. The
record of versions and labels and the value always come from the same state, even if the kubelet replaces the files
meanwhile. File modes are the pod's configuration and are not checked.

The kubelet writes each state into a new directory and then swaps the symbolic link ``..data``, so a reader sees a
complete state: https://kubernetes.io/docs/concepts/configuration/secret/#mounted-secrets-are-updated-automatically.

Another operator, such as External Secrets, copies the current identity document of another store into a Secret of its
own. Such a Secret has no record, but the key ``identity.json``. The provider presents its bytes as one version,
labelled ``current``, and derives the version's id from them.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final, NoReturn, Self, TypeVar

from goatherd.clock import Clock
from goatherd.errors import (
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    SecretNotFoundError,
    UnavailableError,
)
from goatherd.providers.addresses import path_of_uri, split_path
from goatherd.providers.base import Call, Guarantees, ReadConsistency, RetryPolicy, SecretProvider
from goatherd.providers.values import CURRENT, Label, SecretBytes, SecretValue, SecretVersion, VersionId
from goatherd.providers.versioned_record import (
    RECORD,
    DamagedRecordError,
    ForeignRecordError,
    RecordedSecret,
    decode_members,
)

Result = TypeVar("Result")

SNAPSHOT: Final = "..data"
COPY: Final = "identity.json"
"""The member of a Secret that holds a copy of the current identity document of another store."""

_EXAMPLE: Final = "The directory of a mounted Secret, such as k8s-volume:///var/run/secrets/goatherd."
_TRIES: Final = 20
_MAX_OBJECT_BYTES: Final = 1 << 20


class SwappedError(Exception):
    """The kubelet removed the snapshot of the mounted Secret while it was read; a newer one exists."""


class KubernetesVolumeProvider(SecretProvider):
    """Read a secret from a Kubernetes Secret volume that is mounted into the pod.

    Address: ``k8s-volume:///var/run/secrets/goatherd``. The path is the directory at which the whole Secret is mounted:
        without ``items``, and without ``subPath``, because the kubelet never updates a mount with a ``subPath``. The
        Secret is that of a ``k8s://`` address, or holds a copy of another store's current document as
        ``identity.json``.
    Credentials: none; the kubelet fetches the Secret.
    Permissions: the volume's ``defaultMode`` and the pod's user. The pod's service account needs none.
    Guarantees: read-only. Reads are eventually consistent: the kubelet updates the volume within about two minutes. A
        copy of another store's document has one version.
    """

    scheme = "k8s-volume"
    confirms_labels = False

    def __init__(
        self,
        base: str,
        *,
        timeout: timedelta = timedelta(seconds=10),
        retry: RetryPolicy | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(timeout=timeout, retry=retry, clock=clock)
        self.base = base

    @classmethod
    def from_uri(cls, uri: str) -> tuple[Self, str]:
        base, secret_id = split_path(path_of_uri(uri, example=_EXAMPLE), example=_EXAMPLE)
        return cls(base), secret_id

    @property
    def guarantees(self) -> Guarantees:
        return Guarantees(cas=False, read_consistency=ReadConsistency.EVENTUAL, history=0, destroys=False, push=False)

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        def work(snapshot: int) -> SecretValue:
            secret = _read_secret(snapshot)
            if isinstance(secret, SecretValue):
                if at in (CURRENT, secret.version.id):
                    return secret
                raise SecretNotFoundError(f"{COPY} holds the current version only, not {str(at)[:40]!r}")
            number = secret.record.find_version(call, at)
            return SecretValue(version=secret.record.describe_version(number), value=secret.read_value(number))

        return await self._run_blocking(call, work)

    async def _versions(self, call: Call) -> Sequence[SecretVersion]:
        def work(snapshot: int) -> list[SecretVersion]:
            secret = _read_secret(snapshot)
            return [secret.version] if isinstance(secret, SecretValue) else secret.record.newest_first()

        return await self._run_blocking(call, work)

    async def _refuse_write(self, *_: Any, **__: Any) -> NoReturn:
        raise ProviderAccessDeniedError(
            "a mounted Secret can only be read",
            hint="Use the address of the store: k8s://NAMESPACE/NAME, or the store whose copy this Secret is.",
        )

    _create = _write = _label = _destroy = _delete = _refuse_write

    async def _run_blocking(self, call: Call, work: Callable[[int], Result]) -> Result:
        # A few small files in memory: a thread that outlives a cancellation by a moment does no harm.
        return await asyncio.to_thread(self._read_snapshot, call, work)

    def _read_snapshot(self, call: Call, work: Callable[[int], Result]) -> Result:
        directory = f"{self.base.rstrip('/')}/{call.secret_id}"
        for _ in range(_TRIES):
            try:
                snapshot = self._open_snapshot(directory)
                try:
                    return work(snapshot)
                except (SecretNotFoundError, ForeignRecordError, DamagedRecordError, OSError):
                    if not _is_newest(snapshot, directory):
                        raise SwappedError from None
                    raise
                finally:
                    os.close(snapshot)
            except SwappedError:
                continue
            except ForeignRecordError as error:
                raise ProviderConfigurationError(
                    f"the Secret mounted at {directory} was not made by Goatherd: {error}",
                    hint=f"Mount the whole Secret of a k8s:// address, or one with the member {COPY}, without items.",
                ) from None
            except DamagedRecordError as error:
                raise UnavailableError(f"the Secret mounted at {directory} is damaged: {error}") from None
            except PermissionError:
                raise ProviderAccessDeniedError(
                    f"the files in {directory} cannot be read by this user",
                    hint="Set the volume's defaultMode, or the pod's fsGroup.",
                ) from None
            except OSError as error:
                raise UnavailableError(f"{error.strerror} at {directory}") from None
        raise UnavailableError(f"the Secret mounted at {directory} keeps changing")

    def _open_snapshot(self, directory: str) -> int:
        try:
            return os.open(f"{directory}/{SNAPSHOT}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            if os.path.islink(f"{directory}/{SNAPSHOT}"):  # noqa: PTH114 - it points at what was just removed
                raise SwappedError from None
            if os.path.isdir(directory):  # noqa: PTH112
                raise ProviderConfigurationError(
                    f"{directory} is not the volume of a Secret: it has no {SNAPSHOT}",
                    hint="Mount the Secret as a directory, without subPath: a subPath is never updated.",
                ) from None
            raise SecretNotFoundError(f"nothing is mounted at {directory}", hint="Add the volume to the pod.") from None


def _read_secret(snapshot: int) -> RecordedSecret | SecretValue:
    """Return the secret in a snapshot of a mounted Secret, or the copied value of a Secret without a record."""
    names = [name for name in os.listdir(snapshot) if not name.startswith("..")]
    if not names:  # an `optional: true` volume whose Secret does not exist
        raise SecretNotFoundError("there is no such secret: the mounted directory is empty")
    if RECORD in names:
        return decode_members({name: _bytes_of(snapshot, name) for name in names})
    if COPY not in names:
        raise ForeignRecordError(f"it holds neither {RECORD} nor {COPY}")
    copied = _bytes_of(snapshot, COPY)
    version = SecretVersion(
        id=VersionId(hashlib.sha256(copied).hexdigest()[:16]),
        labels=frozenset({CURRENT}),
        created_ms=os.fstat(snapshot).st_mtime_ns // 1_000_000,
    )
    return SecretValue(version=version, value=SecretBytes(copied))


def _is_newest(snapshot: int, directory: str) -> bool:
    """Return whether an open snapshot of a mounted Secret is still the newest; the kubelet removes older ones."""
    try:
        return os.path.samestat(os.fstat(snapshot), os.stat(f"{directory}/{SNAPSHOT}"))  # noqa: PTH116
    except FileNotFoundError:
        return False


def _bytes_of(snapshot: int, name: str) -> bytes:
    """Return the content of a file in a snapshot of a mounted Secret."""
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=snapshot)
    with os.fdopen(descriptor, "rb") as file:
        raw = file.read(_MAX_OBJECT_BYTES + 1)
    if len(raw) > _MAX_OBJECT_BYTES:
        raise DamagedRecordError(f"{name} is longer than a Secret can be")
    return raw
