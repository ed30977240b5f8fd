"""Find the Kubernetes API server and the credentials for it: a pod's service account, or a kubeconfig.

`load_access` chooses between these sources. `kubeconfig` reads the files, `credentials` renews the credentials, and
`client` sends the requests.

Follows https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from goatherd.errors import ConfigurationError
from goatherd.providers.kubernetes.address import KubernetesAddress
from goatherd.providers.kubernetes.credentials import ClusterAccess, TokenFile
from goatherd.providers.kubernetes.kubeconfig import make_context, read_kubeconfig

SERVICE_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"


def load_access(
    address: KubernetesAddress,
    environment: Mapping[str, str] | None = None,
    *,
    service_account: str = SERVICE_ACCOUNT,
) -> ClusterAccess:
    """Find the configuration of a Kubernetes cluster, and return how to reach it. Runs no credential plugin yet.

    The first that exists is used: the address's own kubeconfig; the files in `KUBECONFIG`; the pod's service account;
    ``~/.kube/config``. If the address names a context, only the kubeconfig files count.

    Raises:
        ConfigurationError: No configuration exists, or it cannot be used; the message says what is not supported.
        MissingExtraError: There is a kubeconfig, but the extra ``kubernetes``, which reads it, is not installed.
    """
    environment = os.environ if environment is None else environment
    named = address.kubeconfig or environment.get("KUBECONFIG", "").strip(os.pathsep)
    in_pod = "KUBERNETES_SERVICE_HOST" in environment and Path(service_account, "token").exists()
    if not named and not address.context and in_pod:
        return _from_pod(environment, Path(service_account))
    if not named:
        # Not `Path.expanduser`, which fails if no home directory is known, as for a numeric user in a container.
        home = Path(environment.get("HOME") or os.path.expanduser("~")) / ".kube/config"  # noqa: PTH111
        if not home.exists():
            raise ConfigurationError(
                "no Kubernetes cluster is configured: not in a pod, KUBECONFIG is not set, ~/.kube/config is missing",
                hint="Add ?kubeconfig=/path/to/file to the address.",
            )
        named = str(home)
    return read_kubeconfig(named, address.context)


def _from_pod(environment: Mapping[str, str], directory: Path) -> ClusterAccess:
    host, port = environment["KUBERNETES_SERVICE_HOST"], environment.get("KUBERNETES_SERVICE_PORT", "443")
    with contextlib.suppress(ValueError):
        if ip_address(host).version == 6:
            host = f"[{host}]"
    source = "the pod's service account"
    return ClusterAccess(
        server=f"https://{host}:{port}",
        verify=make_context(directory / "ca.crt", source=source),
        authority=directory / "ca.crt",
        source=source,
        credentials=TokenFile(directory / "token"),
    )
