"""A key version of Google Cloud KMS as a signer, over the official client. Needs the extra ``gcp``.

- `signer`: the class `GCPKMSSigner`.
- `address`: parses ``gcpkms://PROJECT/LOCATION/RING/KEY/VERSION``, and writes the grants that `goatherd policy` prints.
"""

from typing import TYPE_CHECKING

from goatherd.lazy_imports import lazy_attributes
from goatherd.signers.gcpkms.address import policy

if TYPE_CHECKING:
    from goatherd.signers.gcpkms.signer import GCPKMSSigner

__all__ = ["GCPKMSSigner", "policy"]

__getattr__ = lazy_attributes(__name__, GCPKMSSigner="signer")
