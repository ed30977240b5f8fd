"""Kubernetes Secrets, through the API server or from a mounted volume.

`provider` is the algebra over one Secret object, `record` its content, `api` the HTTP, `access` how the API server is
reached (from `kubeconfig`, with `tls`) and as whom (`credentials`), `address` the URI, `volume` the read-only provider
over a mounted Secret, `policy` the text of the RBAC Roles.
"""

from goatherd.providers.kubernetes.access import Access
from goatherd.providers.kubernetes.address import KubernetesAddress
from goatherd.providers.kubernetes.policy import policy, volume_policy
from goatherd.providers.kubernetes.provider import KubernetesSecretProvider
from goatherd.providers.kubernetes.volume import KubernetesVolumeProvider

__all__ = [
    "Access",
    "KubernetesAddress",
    "KubernetesSecretProvider",
    "KubernetesVolumeProvider",
    "policy",
    "volume_policy",
]
