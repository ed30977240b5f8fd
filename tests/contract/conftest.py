"""What the tests of all stores share: a store that works may be slow, and no provider gives it up for that."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta

import pytest

from goatherd.providers import cancellation
from goatherd.providers.base import SecretProvider
from goatherd.providers.file import provider as file_provider
from tests.deadlines import ANSWER, HANG

OPTIONAL = ("aws", "azure", "gcp", "kubernetes", "vault")


@pytest.fixture(scope="module", autouse=True)
def only_hangs_are_given_up() -> Iterator[None]:
    """Let every provider wait as long as for a hang, unless the test gives it a timeout of its own.

    The same for the moment that a cancelled call waits for its last answer.
    """
    for name in OPTIONAL:
        with suppress(ImportError):  # without its extra
            importlib.import_module(f"goatherd.providers.{name}.provider")
    with pytest.MonkeyPatch.context() as patch:
        for kind in subclasses_of(SecretProvider):
            defaults = vars(kind).get("__init__", SecretProvider.__init__).__kwdefaults__ or {}
            if isinstance(defaults.get("timeout"), timedelta):
                patch.setitem(defaults, "timeout", timedelta(seconds=HANG))
        patch.setattr(cancellation.finish_request, "__defaults__", (timedelta(seconds=HANG),))
        patch.setattr(file_provider, "_PATIENCE", HANG)
        if aws := sys.modules.get("goatherd.providers.aws.client"):
            patch.setattr(aws, "_PATIENCE", HANG)
        if gcp := sys.modules.get("goatherd.providers.gcp.provider"):
            patch.setattr(gcp, "_PATIENCE", HANG)
            patch.setattr(gcp, "_ATTEMPT", ANSWER)
            patch.setattr(gcp, "LEASE", timedelta(seconds=2 * HANG))
        yield


def subclasses_of(kind: type[SecretProvider]) -> Iterator[type[SecretProvider]]:
    """Yield the class and all that are derived from it."""
    yield kind
    for derived in kind.__subclasses__():
        yield from subclasses_of(derived)
