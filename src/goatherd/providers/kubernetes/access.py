"""Find the Kubernetes API server and the credentials for it: a pod's service account, or a kubeconfig.

`load_access` chooses between these sources. `ClusterAccess` returns the credential that is valid now. `kubeconfig`
reads the files, `credentials` renews the credentials, and `client` sends the requests.

Follows https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from goatherd.clock import Clock
from goatherd.errors import ConfigurationError, ProviderConfigurationError
from goatherd.providers.kubernetes.address import KubernetesAddress
from goatherd.providers.kubernetes.credentials import ClusterCredentials, Credential, TokenFile
from goatherd.providers.kubernetes.kubeconfig import make_context, read_kubeconfig
from goatherd.providers.tls import load_authorities

SERVICE_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"


@dataclass(slots=True, kw_only=True)
class ClusterAccess:
    """How to reach one Kubernetes API server: its URL, the TLS settings and the credentials.

    Attributes:
        server: The URL of the API server.
        verify: The TLS context, with the client certificate if there is one; None for a plain ``http`` address.
        authority: The file with the cluster's certificate authority; None if it is not in a file.
        tls_server_name: The name that the server's certificate must have, if it is not the URL's host.
        source: Where this configuration was found, for messages.
        credentials: The source of the token.
    """

    server: str
    verify: ssl.SSLContext | None
    authority: Path | None = None
    tls_server_name: str | None = None
    source: str
    credentials: ClusterCredentials = field(repr=False)

    async def credential(self, clock: Clock, *, rejected: Credential | None = None) -> Credential:
        """Return the credential for the next request; see `ClusterCredentials.current_credential`."""
        try:
            return await self.credentials.current_credential(clock, rejected=rejected)
        except ConfigurationError as error:  # such as a token file that cannot be read
            raise ProviderConfigurationError(str(error), hint=error.hint) from None

    def load_authority(self) -> None:
        """Load the cluster's certificate authority again, after the API server's certificate was not trusted."""
        if self.verify is not None and self.authority is not None:
            load_authorities(self.verify, self.authority)

    async def close(self) -> None:
        """Stop the credential plugin, if one is running."""
        await self.credentials.close()


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
    server, verify, authority, tls_server_name, credentials, source = read_kubeconfig(named, address.context)
    return ClusterAccess(
        server=server,
        verify=verify,
        authority=authority,
        tls_server_name=tls_server_name,
        source=source,
        credentials=credentials,
    )


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
