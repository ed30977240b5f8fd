"""The transit engine of Vault and OpenBao as a signer, through the client of the provider ``vault``.

- `signer`: the class `TransitSigner`.
- `address`: parses ``transit://host:port/mount/key?option=…``, and writes the policy that `goatherd policy` prints.
"""

from typing import TYPE_CHECKING

from goatherd.lazy_imports import lazy_attributes
from goatherd.signers.transit.address import policy

if TYPE_CHECKING:
    from goatherd.signers.transit.signer import TransitSigner

__all__ = ["TransitSigner", "policy"]

__getattr__ = lazy_attributes(__name__, TransitSigner="signer")
