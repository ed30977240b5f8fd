"""A key in a PKCS#11 token, such as a hardware security module, as a signer. Needs the extra ``pkcs11``.

- `signer`: the class `PKCS11Signer`.
- `library`: loads the token's library, and calls it from one thread.
- `address`: parses ``pkcs11:token=…;object=…`` (RFC 7512), and writes the policy that `goatherd policy` prints.
"""

from typing import TYPE_CHECKING

from goatherd.lazy_imports import lazy_attributes
from goatherd.signers.pkcs11.address import policy

if TYPE_CHECKING:
    from goatherd.signers.pkcs11.signer import PKCS11Signer

__all__ = ["PKCS11Signer", "policy"]

__getattr__ = lazy_attributes(__name__, PKCS11Signer="signer")
