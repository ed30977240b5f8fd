"""Parse the address of a secret in Google Secret Manager, ``gcp://PROJECT/SECRET?option=…``, and its resource names.

Pure. When a resource name in an answer is compared with the requested one, the project is ignored: the address may
give the project's id where the service answers with the project's number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from goatherd.errors import ConfigurationError
from goatherd.providers import addresses
from goatherd.providers.addresses import AddressForm, Option

HOST: Final = "secretmanager.googleapis.com"
FORM: Final = AddressForm(
    scheme="gcp",
    example="Write gcp://project-id/secret-name, with ?location=europe-west3 for a regional secret.",
    options={"endpoint": Option(), "location": Option(config=""), "replication": Option(config="")},
    parts=("project",),
)

_PROJECT = re.compile(r"[a-z0-9][a-z0-9.:-]{0,98}[a-z0-9]")
_LOCATION = re.compile(r"[a-z][a-z0-9-]{1,40}")
_ENDPOINT = re.compile(r"[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?")
_SECRET = re.compile(r"[A-Za-z0-9_-]{1,255}")
_NUMBER = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
_RESOURCE = re.compile(
    r"projects/(?P<project>[^/]+)(/locations/(?P<location>[^/]+))?/secrets/(?P<secret>[^/]+)"
    r"(/versions/(?P<version>[^/]+))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GCPAddress:
    """A Google Cloud project, and how to reach its secrets.

    Attributes:
        project: The project's id or number.
        location: The region of a regional secret; None for a global one.
        endpoint: ``host`` or ``host:port`` of the API, if not Google's public one (Private Service Connect).
        replication: The locations for a secret created here; empty for Google's automatic choice.
    """

    project: str
    location: str | None = None
    endpoint: str | None = None
    replication: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check all parts of the address.

        Raises:
            ConfigurationError: A part is invalid.
        """
        if not _PROJECT.fullmatch(self.project):
            raise ConfigurationError(f"not a Google Cloud project: {self.project[:100]!r}", hint=FORM.example)
        for location in ([] if self.location is None else [self.location]) + list(self.replication):
            if not _LOCATION.fullmatch(location):
                raise ConfigurationError(f"not a Google Cloud location: {location[:50]!r}", hint=FORM.example)
        if self.endpoint is not None and not _ENDPOINT.fullmatch(self.endpoint):
            raise ConfigurationError(f"not an endpoint: {self.endpoint[:100]!r}", hint="Write host or host:port.")
        if self.location is not None and self.replication:
            raise ConfigurationError("a regional secret is not replicated: give location or replication, not both")

    @property
    def host(self) -> str:
        """The API's host name. Each region has its own for regional secrets.

        https://docs.cloud.google.com/secret-manager/regional-secrets/create-regional-secret
        """
        if self.endpoint is not None:
            return self.endpoint
        return HOST if self.location is None else f"secretmanager.{self.location}.rep.googleapis.com"

    @property
    def parent(self) -> str:
        """The resource name under which the secret is created."""
        return f"projects/{self.project}" + ("" if self.location is None else f"/locations/{self.location}")

    def secret_name(self, secret_id: str) -> str:
        """Return the secret's resource name."""
        return f"{self.parent}/secrets/{secret_id}"

    def version_name(self, secret_id: str, version: str | int) -> str:
        """Return the resource name of a version, by number or by alias."""
        return f"{self.secret_name(secret_id)}/versions/{version}"

    def is_secret(self, name: str, secret_id: str) -> bool:
        """Return whether a resource name in an answer is this secret's."""
        return self._parse_name(name, secret_id) == ""

    def number_in(self, name: str, secret_id: str) -> int | None:
        """Return the version number in a resource name from an answer; None if it is not a version of this secret."""
        found = self._parse_name(name, secret_id)
        return parse_number(found) if found else None

    def _parse_name(self, name: str, secret_id: str) -> str | None:
        match = _RESOURCE.fullmatch(name)
        if match is None or match["secret"] != secret_id or match["location"] != self.location:
            return None
        return match["version"] or ""


def parse_number(text: str) -> int | None:
    """Return the version number that `text` denotes; None if `text` is not a version id of this store."""
    return int(text) if _NUMBER.fullmatch(text) else None


def check_name(secret_id: str) -> None:
    """Check a secret's name by the service's rule: 1 to 255 letters, digits, ``_`` and ``-``.

    Raises:
        ConfigurationError: The name breaks the rule.
    """
    if not _SECRET.fullmatch(secret_id):
        raise ConfigurationError(
            f"not a name for a secret at Google: {secret_id[:255]!r}",
            hint="Use A-Z a-z 0-9 _ - only: no slash and no dot, also not in an organization's id.",
        )


def parse_uri(uri: str) -> tuple[GCPAddress, str]:
    """Return the address and the secret id that `uri` names; the id may contain ``{org}``.

    Raises:
        ConfigurationError: The URI does not have the form above, or an option is unknown or repeated.
    """
    parsed = addresses.parse_uri(FORM, uri)
    if not parsed.host or "/" in parsed.path:
        raise FORM.error("it must name a project and a secret without a slash")
    given = parsed.options
    replication = tuple(given["replication"].split(",")) if "replication" in given else ()
    return (
        GCPAddress(
            project=parsed.host,
            location=given.get("location"),
            endpoint=given.get("endpoint"),
            replication=replication,
        ),
        parsed.path,
    )


def parse_config(config: Mapping[str, object], environment: Mapping[str, str]) -> tuple[GCPAddress, str]:
    """Return the address and the id from ``{"provider": "gcp", "project": "my-project", "secretId": "goatdb-root"}``.

    The secret id may be the full name, ``projects/my-project/secrets/goatdb-root``. Without a project in either,
    GOOGLE_CLOUD_PROJECT is taken. A ``region`` means a regional secret.

    Raises:
        ConfigurationError: An option is missing, of the wrong kind, contradicts another, or is unknown.
    """
    parsed = addresses.parse_config(FORM, config)
    secret_id, project, region = parsed.secret_id, parsed.parts.get("project"), parsed.parts.get("region")
    if "/" in secret_id:
        named = parse_resource(secret_id)
        if named is None or (project or named[0]) != named[0] or (region or named[1]) != named[1]:
            raise ConfigurationError(
                f"cloudConfig: secretId {secret_id[:300]!r} is not a secret, or contradicts project or region",
                hint="Write the secret's name, or projects/my-project/secrets/name, without a version.",
            )
        project, region, secret_id = named
    project = project or environment.get("GOOGLE_CLOUD_PROJECT")
    if not project:
        raise ConfigurationError("cloudConfig: provider 'gcp' needs a project", hint='Add "project": "my-project".')
    return GCPAddress(project=project, location=region, endpoint=parsed.options.get("endpoint")), secret_id


def parse_resource(name: str) -> tuple[str, str | None, str] | None:
    """Return the project, location and secret id in a secret's full resource name; None for another string."""
    match = _RESOURCE.fullmatch(name)
    if match is None or match["version"] is not None:
        return None
    return match["project"], match["location"], match["secret"]
