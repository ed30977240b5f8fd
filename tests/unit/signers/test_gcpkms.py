"""The address and the grants of a key version in Google Cloud KMS."""

from __future__ import annotations

import pytest

from goatherd.errors import ConfigurationError
from goatherd.plugins import policy_text
from goatherd.signers.gcpkms.address import parse_uri


def test_an_address_names_project_location_ring_key_and_version() -> None:
    address = parse_uri("gcpkms://my-project/europe-west1/my-ring/anchor/3?endpoint=kms.example.org:443")
    assert address.name == (
        "projects/my-project/locations/europe-west1/keyRings/my-ring/cryptoKeys/anchor/cryptoKeyVersions/3"
    )
    assert (address.endpoint, address.protection) == ("kms.example.org:443", "hsm")


@pytest.mark.parametrize(
    "uri",
    [
        "gcpkms://my-project/europe-west1/my-ring/anchor",
        "gcpkms://my-project/europe-west1/my-ring/anchor/0",
        "gcpkms://my-project/europe-west1/my-ring/anchor/latest",
        "gcpkms://my-project/europe-west1/my-ring/a;b/1",
        "gcpkms://my-project/europe-west1/my-ring/$(id)/1",
        "gcpkms://$HOME/europe-west1/my-ring/anchor/1",
        "gcpkms://my-project/europe-west1/my-ring/anchor/1?endpoint=http://x",
        "gcpkms://my-project/europe-west1/my-ring/anchor/1?protection=none",
        "gcpkms://my-project/europe-west1/my-ring/anchor/1?key=x",
    ],
)
def test_an_address_that_is_not_one_is_refused(uri: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_uri(uri)


def test_the_grants_are_for_one_key() -> None:
    lines = policy_text("gcpkms", "signer", "gcpkms://my-project/global/my-ring/anchor/1").splitlines()
    binding = "gcloud kms keys add-iam-policy-binding anchor --keyring=my-ring --location=global --project=my-project"
    assert lines[2:] == [
        f'{binding} --member="$MEMBER" --role=roles/cloudkms.signer',
        f'{binding} --member="$MEMBER" --role=roles/cloudkms.publicKeyViewer',
    ]
