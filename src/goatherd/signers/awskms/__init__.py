"""A key of AWS KMS as a signer, over boto3. Needs the extra ``aws``.

- `signer`: the class `AWSKMSSigner`.
- `address`: parses ``awskms://REGION/KEY?option=…``, and writes the IAM policy that `goatherd policy` prints.
"""

from typing import TYPE_CHECKING

from goatherd.lazy_imports import lazy_attributes
from goatherd.signers.awskms.address import policy

if TYPE_CHECKING:
    from goatherd.signers.awskms.signer import AWSKMSSigner

__all__ = ["AWSKMSSigner", "policy"]

__getattr__ = lazy_attributes(__name__, AWSKMSSigner="signer")
