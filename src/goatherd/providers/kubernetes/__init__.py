"""Kubernetes Secrets as a store, through the API server or from a mounted volume.

- `provider`: keeps all versions and labels of a secret in one Secret object.
- `client`: the HTTP requests. `access`: the API server and the credentials, with `kubeconfig` and `credentials`.
- `address`: the URI. `volume`: a read-only provider for a mounted Secret. `permissions`: the RBAC Roles as text.
"""

from typing import TYPE_CHECKING

from goatherd.lazy_imports import lazy_attributes
from goatherd.providers.kubernetes.address import KubernetesAddress
from goatherd.providers.kubernetes.permissions import policy, volume_policy

if TYPE_CHECKING:
    from goatherd.providers.kubernetes.credentials import ClusterAccess
    from goatherd.providers.kubernetes.provider import KubernetesSecretProvider
    from goatherd.providers.kubernetes.volume import KubernetesVolumeProvider

__all__ = [
    "ClusterAccess",
    "KubernetesAddress",
    "KubernetesSecretProvider",
    "KubernetesVolumeProvider",
    "policy",
    "volume_policy",
]

# The policies and addresses are imported without an HTTP client.
__getattr__ = lazy_attributes(
    __name__, ClusterAccess="credentials", KubernetesSecretProvider="provider", KubernetesVolumeProvider="volume"
)
