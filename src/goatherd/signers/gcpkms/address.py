"""Parse the address of a key version in Google Cloud KMS, and write the grants for signing with it. Imports no SDK."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from goatherd.providers import addresses
from goatherd.providers.addresses import AddressForm, Option
from goatherd.providers.policies import fill_policy
from goatherd.signers.base import check_role

PUBLIC_HOST: Final = "cloudkms.googleapis.com"
FORM: Final = AddressForm(
    scheme="gcpkms",
    example="Write gcpkms://my-project/europe-west1/my-ring/my-key/1: project, location, ring, key, version.",
    options={"endpoint": Option(), "protection": Option(choices=("hsm", "software"))},
    missing="it names no key",
    subject="a key",
)
_PROJECT = re.compile(r"([a-z0-9.-]{1,80}:)?[a-z][a-z0-9-]{4,28}[a-z0-9]")
_LOCATION = re.compile(r"[a-z]+(-[a-z]+)*[0-9]*")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,63}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_ENDPOINT = re.compile(r"[a-z0-9.-]+(:[0-9]{1,5})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class GCPKeyAddress:
    """The address of one version of a key in Google Cloud KMS.

    Attributes:
        project: Name of the project.
        location: The location, such as ``europe-west1`` or ``global``.
        ring: Name of the key ring.
        key: Name of the key.
        version: Number of the version.
        endpoint: The API's ``host`` or ``host:port``; None for Google's public API.
        protection: The protection level of a key that Goatherd creates at this address: ``hsm`` or ``software``.
    """

    project: str
    location: str
    ring: str
    key: str
    version: int = 1
    endpoint: str | None = None
    protection: str = "hsm"

    @property
    def ring_name(self) -> str:
        """The resource name of the key ring."""
        return f"projects/{self.project}/locations/{self.location}/keyRings/{self.ring}"

    @property
    def key_name(self) -> str:
        """The resource name of the key."""
        return f"{self.ring_name}/cryptoKeys/{self.key}"

    @property
    def name(self) -> str:
        """The resource name of the version."""
        return f"{self.key_name}/cryptoKeyVersions/{self.version}"


def parse_uri(uri: str) -> GCPKeyAddress:
    """Return the address of the key version that `uri` names.

    Raises:
        ConfigurationError: The URI is not ``gcpkms://PROJECT/LOCATION/RING/KEY/VERSION``, or an option is invalid.
    """
    parsed = addresses.parse_uri(FORM, uri)
    parts = parsed.path.split("/")
    endpoint = parsed.options.get("endpoint")
    # SECURITY: operators paste these names into a shell, so they are checked first
    # (tests/unit/signers/test_gcpkms.py::test_an_address_that_is_not_one_is_refused).
    forms = (_LOCATION, _NAME, _NAME, _VERSION)
    is_fine = len(parts) == len(forms) and all(form.fullmatch(part) for form, part in zip(forms, parts, strict=True))
    if not is_fine or not _PROJECT.fullmatch(parsed.host):
        raise FORM.error("it must name project, location, ring, key and version")
    if endpoint is not None and not _ENDPOINT.fullmatch(endpoint):
        raise FORM.error("the endpoint must be host or host:port")
    location, ring, key, version = parts
    return GCPKeyAddress(
        project=parsed.host,
        location=location,
        ring=ring,
        key=key,
        version=int(version),
        endpoint=endpoint,
        protection=parsed.options.get("protection", "hsm"),
    )


def policy(role: str, uri: str) -> str:
    """Return the ``gcloud`` commands that grant signing with one key and reading its public half."""
    check_role(role)
    it = parse_uri(uri)
    values = {"project": it.project, "location": it.location, "ring": it.ring, "key": it.key}
    return fill_policy(__file__, "signer.sh", **values)
