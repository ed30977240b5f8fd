"""Shared by the tests of all stores: a working store may be slow, and no provider gives up for that reason."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from goatherd.providers import cancellation
from goatherd.providers.base import SecretProvider
from goatherd.testing import signer_checks
from tests.deadlines import ANSWER, HANG

OPTIONAL = ("aws", "azure", "gcp", "kubernetes", "vault")


@pytest.fixture(scope="module", autouse=True)
def only_hangs_are_given_up() -> Iterator[None]:
    """Let every provider and signer wait as long as for a hang, unless the test gives it a timeout of its own.

    The same for the moment that a cancelled call waits for its last answer.
    """
    for name in OPTIONAL:
        with suppress(ImportError):  # without its extra
            importlib.import_module(f"goatherd.providers.{name}.provider")
    with pytest.MonkeyPatch.context() as patch:
        kinds: tuple[type[Any], ...] = (SecretProvider, *subclasses_of(SecretProvider))
        for kind in kinds:
            defaults = kind.__init__.__kwdefaults__ or {}
            if isinstance(defaults.get("timeout"), timedelta):
                patch.setitem(defaults, "timeout", timedelta(seconds=HANG))
        patch.setattr(cancellation.finish_request, "__defaults__", (timedelta(seconds=HANG),))
        quick = signer_checks._quick.__kwdefaults__
        assert quick is not None
        patch.setitem(quick, "timeout", HANG)
        if aws := sys.modules.get("goatherd.providers.aws.client"):
            patch.setattr(aws, "_PATIENCE", HANG)
        if gcp := sys.modules.get("goatherd.providers.gcp.provider"):
            patch.setattr(gcp, "_ATTEMPT", ANSWER)
        if kubernetes := sys.modules.get("goatherd.providers.kubernetes.provider"):
            patch.setattr(kubernetes, "KubernetesClient", patient_client(kubernetes.KubernetesClient))
        yield


def patient_client(make: Callable[..., Any]) -> Callable[..., Any]:
    """Let a request take longer than the five seconds that the provider gives it where its own timeout is long."""
    return lambda *args, timeout, **options: make(*args, timeout=HANG / 2 if timeout == 5 else timeout, **options)


def subclasses_of(kind: type[Any]) -> Iterator[type[Any]]:
    """Yield all classes that are derived from one."""
    for derived in kind.__subclasses__():
        yield derived
        yield from subclasses_of(derived)
