"""A client of the fake Kubernetes API server, and the kubeconfig that it reads."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from pathlib import Path

import pytest

pytest.importorskip("kubernetes_asyncio", reason="needs the extra kubernetes")

from goatherd.providers.base import RetryPolicy
from goatherd.providers.kubernetes.address import KubernetesAddress
from goatherd.providers.kubernetes.provider import KubernetesSecretProvider
from tests.deadlines import HANG
from tests.fakes.kubernetes_fake import ADMIN_TOKEN, FakeKubernetes

QUICK = RetryPolicy(attempts=3, base=timedelta(milliseconds=5))


def kubeconfig(path: Path, server: str, token: str = ADMIN_TOKEN, **cluster: str) -> str:
    """Write a kubeconfig in JSON, which is YAML; return its path."""
    config = {
        "current-context": "it",
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        "clusters": [{"name": "it", "cluster": {"server": server, **cluster}}],
        "users": [{"name": "it", "user": {"token": token}}],
    }
    raw = json.dumps(config)
    file = path / f"kubeconfig-{hashlib.sha256(raw.encode()).hexdigest()[:8]}"
    if not file.exists():  # another process may be reading it
        file.write_text(raw)
    return str(file)


def provider_of(
    fake: FakeKubernetes, path: Path, *, token: str = ADMIN_TOKEN, retry: RetryPolicy = QUICK, timeout: float = HANG
) -> KubernetesSecretProvider:
    address = KubernetesAddress(kubeconfig=kubeconfig(path, fake.url, token))
    return KubernetesSecretProvider(address, retry=retry, timeout=timedelta(seconds=timeout))
