"""AWS Secrets Manager as a store, over boto3. Needs the extra ``aws``.

- `provider`: `AWSSecretProvider`, which stores Goatherd's versions and labels as AWS versions and staging labels.
- `client`: the boto3 client, its threads, the checks of its answers, and the translation of its errors.
- `address`: ``aws://REGION/SECRET?option=…``.
- `permissions`: `policy`, the exact IAM policy for a server, a rotator or an administrator.
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
