"""Parse the address of a secret in Google Secret Manager, ``gcp://PROJECT/SECRET?option=…``, and its resource names.

Pure. When a resource name in an answer is compared with the requested one, the project is ignored, because the service
answers with the project's number even if the address has the project's id.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from goatherd.errors import ConfigurationError
from goatherd.providers import addresses
from goatherd.providers.addresses import AddressForm, Option, check_part

HOST: Final = "secretmanager.googleapis.com"
FORM: Final = AddressForm(
    scheme="gcp",
    example="Write gcp://project-id/secret-name, with ?location=europe-west3 for a regional secret.",
    options={"endpoint": Option(), "location": Option(config="region"), "replication": Option(config="")},
    host="project",
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
    """A project of Google Cloud, and how to reach its secrets in Secret Manager.

    Attributes:
        project: The project's id or number.
        location: The region of a regional secret; None for a global one.
        endpoint: ``host`` or ``host:port`` of the API, if not Google's public one; used with Private Service Connect.
        replication: The locations that store a secret that Goatherd creates; empty for Google's automatic choice.
    """

    project: str
    location: str | None = None
    endpoint: str | None = None
    replication: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check project, location, endpoint and replication of the address.

        Raises:
            ConfigurationError: A part is invalid.
        """
        check_part(self.project, _PROJECT, "name for a Google Cloud project", FORM.example)
        for location in (self.location, *self.replication):
            check_part(location, _LOCATION, "name for a Google Cloud location", FORM.example)
        check_part(self.endpoint, _ENDPOINT, "endpoint", "Write host or host:port.")
        if self.location is not None and self.replication:
            raise ConfigurationError("a regional secret is not replicated: give location or replication, not both")

    @property
    def host(self) -> str:
        """The host name of the Secret Manager API; each region has its own host for regional secrets.

        https://docs.cloud.google.com/secret-manager/regional-secrets/create-regional-secret
        """
        if self.endpoint is not None:
            return self.endpoint
        return HOST if self.location is None else f"secretmanager.{self.location}.rep.googleapis.com"

    @property
    def parent(self) -> str:
        """The resource name under which the secret is created: the project, or a location in the project."""
        return f"projects/{self.project}" + ("" if self.location is None else f"/locations/{self.location}")

    def secret_name(self, secret_id: str) -> str:
        """Return the secret's resource name, such as ``projects/my-project/secrets/goatdb-root``."""
        return f"{self.parent}/secrets/{secret_id}"

    def version_name(self, secret_id: str, version: str | int) -> str:
        """Return the resource name of a version of the secret, which is named by its number or by an alias."""
        return f"{self.secret_name(secret_id)}/versions/{version}"

    def is_secret(self, name: str, secret_id: str) -> bool:
        """Return whether a resource name in an answer of the API is that of the given secret."""
        return self._parse_name(name, secret_id) == ""

    def number_in(self, name: str, secret_id: str) -> int | None:
        """Return the version number in a resource name from an answer; None if it names something else."""
        found = self._parse_name(name, secret_id)
        return parse_number(found) if found else None

    def _parse_name(self, name: str, secret_id: str) -> str | None:
        match = _RESOURCE.fullmatch(name)
        if match is None or match["secret"] != secret_id or match["location"] != self.location:
            return None
        return match["version"] or ""


def parse_number(text: str) -> int | None:
    """Parse the id of a version in Google Secret Manager, a whole number; None if `text` has another form."""
    return int(text) if _NUMBER.fullmatch(text) else None


def check_name(secret_id: str) -> None:
    """Check the name of a secret by Google's rule: 1 to 255 letters, digits, ``_`` and ``-``.

    Raises:
        ConfigurationError: The name breaks the rule.
    """
    if not _SECRET.fullmatch(secret_id):
        raise ConfigurationError(
            f"{secret_id[:255]!r} is not a valid name for a Google secret",
            hint="Use A-Z a-z 0-9 _ - only: no slash and no dot, also not in an organization's id.",
        )


def parse_address(given: str | Mapping[str, object]) -> tuple[GCPAddress, str]:
    """Parse the address of a secret into a project's address and a secret id; the id may contain ``{org}``.

    Args:
        given: ``gcp://PROJECT/SECRET``, or a ``cloudConfig`` like ``{"provider": "gcp", "project": …, "secretId": …}``.
            Its secret id may be the full name, ``projects/p/secrets/goatdb-root``. Without a project in it, the
            environment variable GOOGLE_CLOUD_PROJECT names it. With a ``region``, the secret is a regional one.

    Raises:
        ConfigurationError: The address has another form, or a member or option is unknown, or two contradict each
            other.
    """
    project, secret_id, options = addresses.parse_address(FORM, given)
    location = options.get("location")
    if isinstance(given, str):
        if not project or "/" in secret_id:
            raise FORM.error("it must name a project and a secret, and the secret's name must not contain a slash")
    elif "/" in secret_id:
        named = parse_resource(secret_id)
        if named is None or (project or named[0]) != named[0] or (location or named[1]) != named[1]:
            raise ConfigurationError(
                f"cloudConfig: secretId {secret_id[:300]!r} names no secret, or contradicts the project or region",
                hint="Write the secret's name, or projects/my-project/secrets/name, without a version.",
            )
        project, location, secret_id = named
    project = project or os.environ.get("GOOGLE_CLOUD_PROJECT", "")
    if not project:
        raise ConfigurationError("cloudConfig: provider 'gcp' needs a project", hint='Add "project": "my-project".')
    replication = tuple(options["replication"].split(",")) if "replication" in options else ()
    address = GCPAddress(project=project, location=location, endpoint=options.get("endpoint"), replication=replication)
    return address, secret_id


def parse_resource(name: str) -> tuple[str, str | None, str] | None:
    """Parse the resource name of a Google secret into project, location and secret id; None for another name.

    The location is None for a global secret.
    """
    match = _RESOURCE.fullmatch(name)
    if match is None or match["version"] is not None:
        return None
    return match["project"], match["location"], match["secret"]
