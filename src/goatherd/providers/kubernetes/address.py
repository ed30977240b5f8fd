"""What ``k8s://namespace/name?context=…&kubeconfig=…`` and GoatDB's ``cloudConfig`` say.

Pure: nothing is read and nothing is connected to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from goatherd.errors import ConfigurationError
from goatherd.providers.values import ORG_FIELD

# https://kubernetes.io/docs/concepts/overview/working-with-objects/names/: a label for namespaces, a subdomain for
# Secrets.
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAMESPACE = re.compile(_LABEL)
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_MAX_NAME: Final = 253
_SAMPLE: Final = "Such as k8s://goatdb/root: the namespace, then the name of the Secret."


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesAddress:
    """Which cluster.

    Attributes:
        kubeconfig: The file that describes it; None for `KUBECONFIG`, the pod's own cluster, or ``~/.kube/config``.
        context: Which of the file's contexts; None for its current one.
    """

    kubeconfig: str | None = None
    context: str | None = None


def split_secret_id(secret_id: str) -> tuple[str, str]:
    """Return namespace and name.

    Raises:
        ConfigurationError: It is not two names that Kubernetes takes.
    """
    namespace, _, name = secret_id.partition("/")
    if not _NAMESPACE.fullmatch(namespace) or not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
        raise ConfigurationError(
            f"not a namespace and the name of a Secret: {secret_id!r}",
            hint=f"{_SAMPLE} Both take a-z, 0-9 and '-' inside; the name also dots.",
        )
    return namespace, name


def address_from_uri(uri: str) -> tuple[KubernetesAddress, str]:
    """Return the cluster and the secret id, maybe with ``{org}`` in it.

    Raises:
        ConfigurationError: It is no such address.
    """
    parts = urlsplit(uri)
    options = parse_qsl(parts.query, keep_blank_values=True)
    known = {name for name, _ in options}
    if known - {"context", "kubeconfig"} or len(known) < len(options) or not all(value for _, value in options):
        raise ConfigurationError(
            "a k8s address takes the options context and kubeconfig, once each", hint="k8s://goatdb/root?context=prod"
        )
    secret_id = f"{unquote(parts.netloc)}/{unquote(parts.path).removeprefix('/')}".removeprefix("/")
    if parts.fragment:
        raise ConfigurationError("a k8s address has no fragment", hint=_SAMPLE)
    split_secret_id(secret_id.replace(ORG_FIELD, "org"))
    chosen = dict(options)
    return KubernetesAddress(kubeconfig=chosen.get("kubeconfig"), context=chosen.get("context")), secret_id


def address_from_options(config: Mapping[str, object]) -> tuple[KubernetesAddress, str]:
    """Return the same from ``{"provider": "k8s", "secretId": "goatdb/root", "context": …, "kubeconfig": …}``.

    Raises:
        ConfigurationError: An option is missing, of the wrong kind, or unknown.
    """
    unknown = sorted(set(config) - {"provider", "secretId", "region", "namespace", "context", "kubeconfig"})
    if unknown:
        raise ConfigurationError(f"cloudConfig: provider 'k8s' has no option {unknown[0]!r}")
    texts: dict[str, str] = {}
    for name in ("secretId", "namespace", "context", "kubeconfig"):
        value = config.get(name)
        if value is None:
            continue
        if not isinstance(value, str) or not value:
            raise ConfigurationError(f"cloudConfig: {name} must be a text")
        texts[name] = value
    if "secretId" not in texts:
        raise ConfigurationError("cloudConfig: secretId must be a text")
    secret_id = texts["secretId"]
    if "namespace" in texts:
        secret_id = f"{texts['namespace']}/{secret_id}"
    try:
        split_secret_id(secret_id.replace(ORG_FIELD, "org"))
    except ConfigurationError as error:
        raise ConfigurationError(f"cloudConfig: {error}", hint=error.hint) from None
    return KubernetesAddress(kubeconfig=texts.get("kubeconfig"), context=texts.get("context")), secret_id
