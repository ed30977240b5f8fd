"""Types the ``>>>`` examples of a page as one session of ``python -m asyncio``, and compares what it prints."""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FENCE = re.compile(r"^```pycon\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL


def examples_of(page: Path, replace: Mapping[str, str]) -> list[doctest.Example]:
    """Return the examples of a page in order, with its paths and ports replaced by the test's."""
    text = page.read_text()
    found = []
    for fence in _FENCE.finditer(text):
        typed = fence[1]
        for old, new in replace.items():
            typed = typed.replace(old, new)
        for example in doctest.DocTestParser().get_examples(typed):
            example.lineno += text.count("\n", 0, fence.start()) + 2
            found.append(example)
    return found


async def run_example(example: doctest.Example, names: dict[str, Any]) -> str | None:
    """Run one example and return what is wrong with its output; None if nothing is."""
    printed, raised = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        try:
            code = compile(example.source, "<page>", "single", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            pending = eval(code, names)
            if pending is not None:
                await pending
        except Exception as error:  # noqa: BLE001 - an example may show any
            raised = "".join(traceback.format_exception_only(error))
    check = doctest.OutputChecker()
    if raised is not None:
        if example.exc_msg is not None and check.check_output(example.exc_msg, raised, _FLAGS):
            return None
        return f"raised {raised}"
    if example.exc_msg is not None:
        return f"did not raise {example.exc_msg}"
    got = printed.getvalue()
    if not check.check_output(example.want, got, _FLAGS):
        return f"printed {got!r} instead of {example.want!r}"
    return None


async def run_page(page: Path, replace: Mapping[str, str], names: dict[str, Any] | None = None) -> list[str]:
    """Run every example of a page in one namespace and return what went wrong, by line."""
    shared: dict[str, Any] = {"__name__": "__main__"} if names is None else names
    wrong = []
    for example in examples_of(page, replace):
        problem = await run_example(example, shared)
        if problem is not None:
            wrong.append(f"{page.name}:{example.lineno}: {example.source.strip()}: {problem}")
    return wrong
