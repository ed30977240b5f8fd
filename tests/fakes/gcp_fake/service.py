"""The rules of Google Secret Manager, each with the place in the reference that states it.

What it is: the semantics, over the SDK's own messages. What it is not: a server (`tests.fakes.gcp_fake.server`),
or Google: what the reference leaves open is marked so, and no test may build on it. Rules: one lock, one step.

Reference: https://docs.cloud.google.com/secret-manager/docs/reference/rpc/google.cloud.secretmanager.v1, here [rpc],
with the texts of the messages' fields as they stand in google-cloud-secret-manager 2.32.
"""

from __future__ import annotations

import copy
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

import google_crc32c
from google.cloud.secretmanager_v1 import types as wire

from goatherd.testing.wrong_answers import Restore

ENABLED: Final = "ENABLED"
DISABLED: Final = "DISABLED"
DESTROYED: Final = "DESTROYED"
MAX_PAYLOAD: Final = 64 * 1024
MAX_ALIASES: Final = 50
MAX_ANNOTATIONS: Final = 16 * 1024
NUMBER: Final = "100200300400"

_SECRET_ID = re.compile(r"[A-Za-z0-9_-]{1,255}")
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")
_ANNOTATION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_NAME = re.compile(
    r"projects/(?P<project>[^/]+)(?P<location>/locations/[^/]+)?(/secrets/(?P<secret>[^/]+)(/versions/(?P<version>[^/]+))?)?"
)
_CHANGEABLE: Final = frozenset({"annotations", "labels", "version_aliases", "version_destroy_ttl"})


class StatusError(Exception):
    """An answer that is not OK. `retry_after` goes out as google.rpc.RetryInfo."""

    def __init__(self, status: str, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after


@dataclass(slots=True)
class _Version:
    number: int
    created: datetime
    payload: bytes
    checked: bool
    etag: str = field(default_factory=lambda: _etag())
    state: str = ENABLED
    scheduled: datetime | None = None
    destroyed: datetime | None = None


@dataclass(slots=True)
class _Secret:
    name: str
    created: datetime
    replication: wire.Replication
    labels: dict[str, str]
    annotations: dict[str, str]
    destroy_ttl: timedelta | None
    etag: str = field(default_factory=lambda: _etag())
    aliases: dict[str, int] = field(default_factory=dict)
    versions: dict[int, _Version] = field(default_factory=dict)
    past: list[tuple[float, dict[str, int]]] = field(default_factory=list)

    def message(self) -> wire.Secret:
        shown = wire.Secret(
            name=self.name,
            replication=self.replication,
            create_time=self.created,
            labels=self.labels,
            annotations=self.annotations,
            version_aliases=self.aliases,
            etag=self.etag,
        )
        if self.destroy_ttl is not None:
            shown.version_destroy_ttl = self.destroy_ttl
        return shown


class SecretManager:
    """The state of one project and its rules.

    Attributes:
        project: The project's id. Its resources answer with the project's number in their names.
        lag: For how many seconds an access by alias or by ``latest`` still leads where it led. "Adding a secret version
            and then immediately accessing that secret version by version number is a strongly consistent operation …
            this doesn't apply when you access a secret version using aliases or latest"
            (https://docs.cloud.google.com/secret-manager/docs/reference/consistency).
        page: The longest page of a list.
    """

    def __init__(self, project: str = "goatherd-testing") -> None:
        self.project = project
        self.lag = 0.0
        self.page = 25_000
        self._lock = threading.RLock()
        self._secrets: dict[str, _Secret] = {}

    def handlers(self) -> dict[str, tuple[str, Callable[..., object]]]:
        """Return, for each method, the permission that it needs and what it does.

        https://docs.cloud.google.com/secret-manager/docs/access-control
        """
        return {
            "CreateSecret": ("secretmanager.secrets.create", self.create_secret),
            "GetSecret": ("secretmanager.secrets.get", self.get_secret),
            "UpdateSecret": ("secretmanager.secrets.update", self.update_secret),
            "DeleteSecret": ("secretmanager.secrets.delete", self.delete_secret),
            "AddSecretVersion": ("secretmanager.versions.add", self.add_secret_version),
            "GetSecretVersion": ("secretmanager.versions.get", self.get_secret_version),
            "AccessSecretVersion": ("secretmanager.versions.access", self.access_secret_version),
            "ListSecretVersions": ("secretmanager.versions.list", self.list_secret_versions),
            "EnableSecretVersion": ("secretmanager.versions.enable", self.enable_secret_version),
            "DisableSecretVersion": ("secretmanager.versions.disable", self.disable_secret_version),
            "DestroySecretVersion": ("secretmanager.versions.destroy", self.destroy_secret_version),
        }

    def has(self, secret_id: str) -> bool:
        """Whether there is a global secret of that name."""
        with self._lock:
            return f"projects/{NUMBER}/secrets/{secret_id}" in self._secrets

    def save(self) -> Restore:
        """Record all secrets; return a function that restores them."""
        with self._lock:
            saved = copy.deepcopy(self._secrets)

        def restore() -> None:
            with self._lock:
                self._secrets = saved

        return restore

    # --- secrets ----------------------------------------------------------------------------------------------------

    def create_secret(self, request: wire.CreateSecretRequest) -> wire.Secret:
        """Make a secret "containing no SecretVersions" [rpc, CreateSecret]."""
        match = self._match(request.parent, depth="parent")
        location = match["location"] or ""
        if not _SECRET_ID.fullmatch(request.secret_id):
            # [rpc, CreateSecretRequest.secret_id]: up to 255 of letters, numerals, hyphen and underscore.
            raise StatusError("INVALID_ARGUMENT", "The provided Secret ID does not match the expected format.")
        given = wire.Secret.pb(request.secret).WhichOneof("expiration")
        replicated = "replication" in request.secret
        if given or replicated == bool(location):
            # A global secret needs a replication policy; a regional one has none
            # (https://docs.cloud.google.com/secret-manager/regional-secrets/create-regional-secret).
            raise StatusError("INVALID_ARGUMENT", "The replication policy does not fit the kind of the secret.")
        name = f"projects/{NUMBER}{location}/secrets/{request.secret_id}"
        with self._lock:
            if name in self._secrets:
                raise StatusError("ALREADY_EXISTS", f"Secret [{name}] already exists.")
            _check_annotations(request.secret.annotations)
            if request.secret.version_aliases:
                # The reference leaves open what is said; there is no version yet to point at.
                raise StatusError("INVALID_ARGUMENT", "There are no versions for aliases to point at.")
            self._secrets[name] = _Secret(
                name=name,
                created=_now(),
                replication=request.secret.replication,
                labels=dict(request.secret.labels),
                annotations=dict(request.secret.annotations),
                destroy_ttl=request.secret.version_destroy_ttl or None,
            )
            return self._secrets[name].message()

    def get_secret(self, request: wire.GetSecretRequest) -> wire.Secret:
        """Return a secret [rpc, GetSecret]."""
        with self._lock:
            return self._secret(request.name).message()

    def update_secret(self, request: wire.UpdateSecretRequest) -> wire.Secret:
        """Change what the mask names, if the etag is right or absent.

        https://docs.cloud.google.com/secret-manager/docs/etags: a wrong etag is FAILED_PRECONDITION; every
        modification renews the etag, one that changes nothing too.
        """
        paths = list(request.update_mask.paths)
        if not paths or not set(paths) <= _CHANGEABLE:
            raise StatusError("INVALID_ARGUMENT", "The update mask is empty, or names a field that is fixed.")
        with self._lock:
            secret = self._secret(request.secret.name)
            _check_etag(request.secret.etag, secret.etag)
            if "annotations" in paths:
                _check_annotations(request.secret.annotations)
            if "version_aliases" in paths:
                _check_aliases(request.secret.version_aliases, secret.versions)
                secret.past.append((time.monotonic(), secret.aliases))
                secret.aliases = dict(request.secret.version_aliases)
            if "annotations" in paths:
                secret.annotations = dict(request.secret.annotations)
            if "labels" in paths:
                secret.labels = dict(request.secret.labels)
            if "version_destroy_ttl" in paths:
                secret.destroy_ttl = request.secret.version_destroy_ttl or None
            secret.etag = _etag()
            return secret.message()

    def delete_secret(self, request: wire.DeleteSecretRequest) -> None:
        """Remove it with all versions [rpc, DeleteSecret]."""
        with self._lock:
            secret = self._secret(request.name)
            _check_etag(request.etag, secret.etag)
            del self._secrets[secret.name]

    # --- versions ---------------------------------------------------------------------------------------------------

    def add_secret_version(self, request: wire.AddSecretVersionRequest) -> wire.SecretVersion:
        """Add an enabled version. The request has neither an etag nor a token [rpc, AddSecretVersionRequest].

        [rpc, SecretPayload]: data is at most 64 KiB; a checksum that is sent is verified.
        """
        data = request.payload.data
        if not 0 < len(data) <= MAX_PAYLOAD:
            raise StatusError("INVALID_ARGUMENT", "The payload is empty or larger than the maximum of 65536 bytes.")
        checked = "data_crc32c" in request.payload
        if checked and request.payload.data_crc32c != google_crc32c.value(data):
            raise StatusError("INVALID_ARGUMENT", "The checksum of the payload does not match its data_crc32c.")
        with self._lock:
            secret = self._secret(request.parent)
            number = max(secret.versions, default=0) + 1
            made = _Version(number=number, created=_now(), payload=data, checked=checked)
            secret.versions[number] = made
            return _shown(secret, made)

    def get_secret_version(self, request: wire.GetSecretVersionRequest) -> wire.SecretVersion:
        """Return a version by number, alias or ``latest`` [rpc, GetSecretVersion]."""
        with self._lock:
            return _shown(*self._version(request.name))

    def access_secret_version(self, request: wire.AccessSecretVersionRequest) -> wire.AccessSecretVersionResponse:
        """Return the value with its checksum.

        "versions/latest is an alias to the most recently created SecretVersion" [rpc, AccessSecretVersion], also when
        that is disabled or destroyed, which is then an error
        (https://github.com/google-github-actions/get-secretmanager-secrets/issues/268 has its text).
        """
        with self._lock:
            secret, version = self._version(request.name)
            if version.state != ENABLED:
                name = f"{secret.name}/versions/{version.number}"
                raise StatusError("FAILED_PRECONDITION", f"Secret Version [{name}] is in {version.state} state.")
            payload = wire.SecretPayload(data=version.payload, data_crc32c=google_crc32c.value(version.payload))
            return wire.AccessSecretVersionResponse(name=f"{secret.name}/versions/{version.number}", payload=payload)

    def list_secret_versions(self, request: wire.ListSecretVersionsRequest) -> wire.ListSecretVersionsResponse:
        """List "sorted in reverse by create_time (newest first)", at most 25000 a page [rpc, ListSecretVersions]."""
        with self._lock:
            secret = self._secret(request.parent)
            numbers = sorted(secret.versions, reverse=True)
            start = int(request.page_token or 0)
            size = min(request.page_size or self.page, self.page)
            return wire.ListSecretVersionsResponse(
                versions=[_shown(secret, secret.versions[number]) for number in numbers[start : start + size]],
                next_page_token=str(start + size) if start + size < len(numbers) else "",
                total_size=len(numbers),
            )

    def enable_secret_version(self, request: wire.EnableSecretVersionRequest) -> wire.SecretVersion:
        """Enable a version [rpc, EnableSecretVersion].

        "A version may not leave this state once entered" [rpc, State.DESTROYED].
        """
        return self._switch(request.name, request.etag, ENABLED)

    def disable_secret_version(self, request: wire.DisableSecretVersionRequest) -> wire.SecretVersion:
        """Disable a version [rpc, DisableSecretVersion]."""
        return self._switch(request.name, request.etag, DISABLED)

    def destroy_secret_version(self, request: wire.DestroySecretVersionRequest) -> wire.SecretVersion:
        """Destroy permanently; or disable, and destroy when the secret's `version_destroy_ttl` has passed.

        https://docs.cloud.google.com/secret-manager/docs/delay-destruction-of-secret-versions
        """
        with self._lock:
            secret, version = self._version(request.name)
            _check_etag(request.etag, version.etag)
            if version.state == DESTROYED:
                # [rpc, DestroySecretVersion] leaves open what a second time does.
                raise StatusError("FAILED_PRECONDITION", "The version is in DESTROYED state.")
            version.etag = _etag()
            if secret.destroy_ttl:
                version.state, version.scheduled = DISABLED, _now() + secret.destroy_ttl
            else:
                version.state, version.payload, version.destroyed = DESTROYED, b"", _now()
            return _shown(secret, version)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _switch(self, name: str, etag: str, state: str) -> wire.SecretVersion:
        with self._lock:
            secret, version = self._version(name)
            _check_etag(etag, version.etag)
            if version.state == DESTROYED:
                raise StatusError("FAILED_PRECONDITION", "The version is in DESTROYED state.")
            version.state, version.scheduled, version.etag = state, None, _etag()
            return _shown(secret, version)

    def _match(self, name: str, *, depth: str) -> re.Match[str]:
        match = _NAME.fullmatch(name)
        deep = "parent" if match is None or match["secret"] is None else "version" if match["version"] else "secret"
        if match is None or deep != depth:
            raise StatusError("INVALID_ARGUMENT", f"Resource name [{name}] is not valid.")
        if match["project"] not in (self.project, NUMBER):
            raise StatusError("PERMISSION_DENIED", f"Permission denied on resource project {match['project']}.")
        return match

    def _secret(self, name: str, *, depth: str = "secret") -> _Secret:
        match = self._match(name, depth=depth)
        full = f"projects/{NUMBER}{match['location'] or ''}/secrets/{match['secret']}"
        if full not in self._secrets:
            raise StatusError("NOT_FOUND", f"Secret [{full}] not found.")
        return self._secrets[full]

    def _version(self, name: str) -> tuple[_Secret, _Version]:
        secret = self._secret(name, depth="version")
        wanted = name.rpartition("/")[2]
        number = int(wanted) if re.fullmatch(r"[0-9]{1,18}", wanted) else self._aliased(secret, wanted)
        if number not in secret.versions:
            raise StatusError("NOT_FOUND", f"Secret Version [{secret.name}/versions/{wanted}] not found.")
        return secret, secret.versions[number]

    def _aliased(self, secret: _Secret, alias: str) -> int:
        then = time.monotonic() - self.lag
        if alias == "latest":
            settled = _now() - timedelta(seconds=self.lag)
            return max((each.number for each in secret.versions.values() if each.created <= settled), default=0)
        aliases = next((before for until, before in secret.past if until > then), secret.aliases)
        return aliases.get(alias, 0)


def _shown(secret: _Secret, version: _Version) -> wire.SecretVersion:
    shown = wire.SecretVersion(
        name=f"{secret.name}/versions/{version.number}",
        create_time=version.created,
        state=getattr(wire.SecretVersion.State, version.state),
        etag=version.etag,
        client_specified_payload_checksum=version.checked,
    )
    if version.destroyed is not None:
        shown.destroy_time = version.destroyed
    if version.scheduled is not None:
        shown.scheduled_destroy_time = version.scheduled
    return shown


def _check_etag(given: str, present: str) -> None:
    # https://docs.cloud.google.com/secret-manager/docs/etags: without one nothing is compared; a wrong one is HTTP 400.
    if given and given != present:
        raise StatusError("FAILED_PRECONDITION", "The etag provided in the request does not match the current etag.")


def _check_aliases(aliases: Mapping[str, int], versions: dict[int, _Version]) -> None:
    # [rpc, Secret.version_aliases], which leaves open what an alias of a missing version is answered with.
    given = dict(aliases)
    good = all(_ALIAS.fullmatch(alias) and alias not in ("latest", "NEW") for alias in given)
    if len(given) > MAX_ALIASES or not good or not set(given.values()) <= set(versions):
        raise StatusError("INVALID_ARGUMENT", "A version alias is not valid.")


def _check_annotations(annotations: Mapping[str, str]) -> None:
    # [rpc, Secret.annotations]: "The total size of annotation keys and values must be less than 16KiB."
    given = dict(annotations)
    size = sum(len(key.encode()) + len(text.encode()) for key, text in given.items())
    if size >= MAX_ANNOTATIONS or not all(_ANNOTATION.fullmatch(key) for key in given):
        raise StatusError("INVALID_ARGUMENT", "An annotation is not valid.")


def _etag() -> str:
    return f'"{secrets.token_hex(8)}"'


def _now() -> datetime:
    return datetime.now(UTC)
