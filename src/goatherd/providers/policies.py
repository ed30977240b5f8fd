"""Fill in the access policies, which are files that a reviewer can read without running anything.

A policy is a file in the folder ``policies`` beside the module that fills it in, such as ``server.json``. What depends
on the address is written ``{{name}}``. Nothing else in the file changes.
"""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"\{\{(\w+)\}\}")


def fill_policy(module: str, file: str, **values: str) -> str:
    """Return the text of a policy.

    Args:
        module: The ``__file__`` of the module beside which the folder ``policies`` is.
        file: The name of the file in it.
        values: What replaces each ``{{name}}``. SECURITY: the caller has checked that no value can end the string or
            the line that it is in, and so grant more (tests/unit/cli/test_policy.py).
    """
    text = Path(module).with_name("policies").joinpath(file).read_text(encoding="utf-8")
    return _NAME.sub(lambda found: values[found[1]], text)
