"""A key of Azure Key Vault or Managed HSM as a signer, over the official client. Needs the extra ``azure``.

- `signer`: the class `AzureKMSSigner`.
- `address`: parses ``azurekms://VAULT/KEY/VERSION?option=…``, and writes the role that `goatherd policy` prints.
"""

from typing import TYPE_CHECKING

from goatherd.lazy_imports import lazy_attributes
from goatherd.signers.azurekms.address import policy

if TYPE_CHECKING:
    from goatherd.signers.azurekms.signer import AzureKMSSigner

__all__ = ["AzureKMSSigner", "policy"]

__getattr__ = lazy_attributes(__name__, AzureKMSSigner="signer")
