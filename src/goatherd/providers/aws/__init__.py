"""AWS Secrets Manager as a store, over boto3. Needs the extra ``aws``.

- `provider`: `AWSSecretProvider`, the algebra of versions and labels over versions and staging labels.
- `client`: the SDK's client, its threads, and what its errors and answers mean to us.
- `address`: ``aws://REGION/SECRET?option=…``.
- `permissions`: `policy`, the exact IAM policy for a server or a rotator.
"""

from typing import TYPE_CHECKING

from goatherd.lazy_imports import lazy_attributes
from goatherd.providers.aws.address import AWSAddress
from goatherd.providers.aws.permissions import policy

if TYPE_CHECKING:
    from goatherd.providers.aws.provider import AWSSecretProvider

__all__ = ["AWSAddress", "AWSSecretProvider", "policy"]

# The provider needs the SDK; the policies and addresses do not (tests/unit/test_bare_install.py).
__getattr__ = lazy_attributes(__name__, AWSSecretProvider="provider")
