"""Google Secret Manager as a store, over Google's asynchronous client. Needs the extra ``gcp``.

- `provider`: `GCPSecretProvider`, which stores Goatherd's versions and labels as Google's versions and aliases.
- `journal`: the notes on its writes that the provider keeps in a secret's annotations.
- `client`: the SDK's client, with one method for each API call, and the checks of its answers.
- `connection`: credentials and the gRPC channel, which the signer `goatherd.signers.gcpkms` uses, too.
- `problem`: the translation of the SDK's errors.
- `address`: ``gcp://PROJECT/SECRET?option=…`` and the service's resource names.
- `permissions`: the exact IAM permissions for a server, a rotator and an administrator.
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
