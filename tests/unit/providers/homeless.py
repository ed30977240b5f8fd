"""A process whose user has no home directory, as a numeric user in a container."""

from __future__ import annotations

import pwd
from typing import NoReturn

import pytest


def make_homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the home directory unknown: neither ``HOME`` nor the user database names it."""

    def find_no_user(_: object) -> NoReturn:
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", find_no_user)
