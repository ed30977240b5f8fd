"""Kubernetes Secrets, through the API server or from a mounted volume.

`provider` is the algebra over one Secret object, `record` its content, `client` the HTTP, `access` how the API server
is reached (from `kubeconfig`, with `tls`) and as whom (`credentials`), `address` the URI, `volume` the read-only
provider over a mounted Secret, `permissions` the text of the RBAC Roles.
"""

from typing import TYPE_CHECKING

from goatherd.lazy_imports import lazy_attributes
from goatherd.providers.kubernetes.address import KubernetesAddress
from goatherd.providers.kubernetes.permissions import policy, volume_policy

if TYPE_CHECKING:
    from goatherd.providers.kubernetes.access import ClusterAccess
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
    __name__, ClusterAccess="access", KubernetesSecretProvider="provider", KubernetesVolumeProvider="volume"
)
