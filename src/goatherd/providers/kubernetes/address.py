"""Parse ``k8s://namespace/name?context=…&kubeconfig=…`` and GoatDB's ``cloudConfig`` for Kubernetes.

Pure: the module reads no file and connects to nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from goatherd.errors import ConfigurationError
from goatherd.providers import addresses
from goatherd.providers.addresses import AddressForm, Option
from goatherd.providers.values import ORG_FIELD

# https://kubernetes.io/docs/concepts/overview/working-with-objects/names/: a label for namespaces, a subdomain for
# Secrets.
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAMESPACE = re.compile(_LABEL)
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_MAX_NAME: Final = 253
_SAMPLE: Final = "Such as k8s://goatdb/root: the namespace, then the name of the Secret."
FORM: Final = AddressForm(
    scheme="k8s",
    example=_SAMPLE,
    options={"context": Option(), "kubeconfig": Option()},
    host="namespace",
    missing="it names no namespace and Secret",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesAddress:
    """The address of a Kubernetes cluster: a kubeconfig file and a context.

    Attributes:
        kubeconfig: The kubeconfig file; None for `KUBECONFIG`, the pod's own cluster, or ``~/.kube/config``.
        context: The context in the file; None for its current context.
    """

    kubeconfig: str | None = None
    context: str | None = None


def split_secret_id(secret_id: str) -> tuple[str, str]:
    """Split a secret id, ``namespace/name``, into the namespace and the name of the Kubernetes Secret.

    Raises:
        ConfigurationError: The id is not two names that Kubernetes allows.
    """
    namespace, _, name = secret_id.partition("/")
    if not _NAMESPACE.fullmatch(namespace) or not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
        raise ConfigurationError(
            f"{secret_id!r} must be a namespace and the name of a Secret",
            hint=f"{_SAMPLE} Both names may contain a-z and 0-9, and '-' except at the ends; the Secret's name may also"
            " contain dots.",
        )
    return namespace, name


def parse_address(given: str | Mapping[str, object]) -> tuple[KubernetesAddress, str]:
    """Parse the address of a secret into a cluster's address and a secret id; the id may contain ``{org}``.

    Args:
        given: ``k8s://namespace/name``, or a ``cloudConfig`` like ``{"provider": "k8s", "secretId": "goatdb/root"}``,
            in which ``namespace`` may be a member of its own.

    Raises:
        ConfigurationError: The address has another form, or a member or option is unknown or invalid.
    """
    namespace, secret_id, options = addresses.parse_address(FORM, given)
    if isinstance(given, str):
        namespace = unquote(namespace)
    if namespace:
        secret_id = f"{namespace}/{secret_id}"
    try:
        split_secret_id(secret_id.replace(ORG_FIELD, "org"))
    except ConfigurationError as error:
        if isinstance(given, str):
            raise
        raise ConfigurationError(f"cloudConfig: {error}", hint=error.hint) from None
    return KubernetesAddress(kubeconfig=options.get("kubeconfig"), context=options.get("context")), secret_id
