"""`goatherd --version`: which extras are installed."""

from __future__ import annotations

import platform
from importlib import metadata

import pytest

from goatherd.operations.installation import describe_installation

MISSING = {"awscrt", "dnspython"}


@pytest.mark.parametrize(("machine", "missing"), [("x86_64", ("dns", "node")), ("riscv64", ("dns",))])
def test_an_extra_is_complete_without_a_library_that_is_not_for_this_machine(
    monkeypatch: pytest.MonkeyPatch, machine: str, missing: tuple[str, ...]
) -> None:
    def version(name: str) -> str:
        if name in MISSING:
            raise metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    found = describe_installation()
    assert found.missing == missing
    assert found.awscrt is None
