"""Google Secret Manager as a store, over Google's asynchronous client. Needs the extra ``gcp``.

- `provider`: `GCPSecretProvider`, the algebra of versions and labels over versions and aliases.
- `journal`: what it keeps in a secret's annotations.
- `client`: the SDK's client, one method for each call, and what is checked of an answer.
- `problem`: what the SDK's errors mean.
- `address`: ``gcp://PROJECT/SECRET?option=…`` and the service's resource names.
- `permissions`: the exact rights in IAM for a server, a rotator and an administrator.
"""

from typing import TYPE_CHECKING

from goatherd.lazy_imports import lazy_attributes
from goatherd.providers.gcp.address import GCPAddress
from goatherd.providers.gcp.permissions import policy

if TYPE_CHECKING:
    from goatherd.providers.gcp.provider import GCPSecretProvider

__all__ = ["GCPAddress", "GCPSecretProvider", "policy"]

# The provider needs the SDK; the policies and addresses do not (tests/unit/test_bare_install.py).
__getattr__ = lazy_attributes(__name__, GCPSecretProvider="provider")
