"""The results of one vector file: cases that hold, that fail, and that are not checked, with reasons."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from goatherd.errors import GoatherdError
from goatherd.wire.javascript_values import UNDEFINED, JSDate, JSMap, JSSet, join_surrogates
from tests.vectors.notation import value_of

_SHOWN = 240
_PRIVATE = re.compile(r"""(['"]d\\*['"]\s*:\s*\\*['"])[A-Za-z0-9_-]{20,}""")

Case = dict[str, Any]


class MismatchError(Exception):
    """A case does not hold."""

    def __init__(self, what: str, expected: Any, got: Any) -> None:
        super().__init__(what)
        self.what, self.expected, self.got = what, expected, got


class NotJudgedError(Exception):
    """A case needs code that does not exist yet; the message says which."""


class Sheet:
    """Counts the cases of one file.

    Attributes:
        name: The file's name in the report.
        total: Cases seen.
        ok: Cases that hold.
        failures: What went wrong, one text per failed case, without key material.
        not_judged: Reasons and how often.
        parts: The lists of cases that the file's kind is known to have.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.total = 0
        self.ok = 0
        self.failures: list[str] = []
        self.not_judged: Counter[str] = Counter()
        self.parts: set[str] = set()

    def each(self, part: str, cases: Any, check: Callable[[Any], None]) -> None:
        """Run `check` on every case of one list of the file; an absent list holds none."""
        self.parts.add(part)
        if cases is None:
            return
        if not isinstance(cases, list):
            self.case(part, lambda: mismatch(part, "a list", type(cases).__name__))
            return
        for index, case in enumerate(cases):
            name = case.get("name") if isinstance(case, dict) else None
            self.case(f"{part}[{index}]" + (f" {name}" if name else ""), lambda case=case: check(case))  # type: ignore[misc]

    def case(self, label: str, check: Callable[[], None]) -> None:
        """Run one case: it holds if `check` returns."""
        self.total += 1
        try:
            check()
        except NotJudgedError as reason:
            self.not_judged[str(reason)] += 1
        except MismatchError as error:
            self.failures.append(f"{label}: {error.what}: expected {shown(error.expected)}, got {shown(error.got)}")
        except Exception as error:  # noqa: BLE001 - whatever a hostile file provokes is a failed case, not a crash
            self.failures.append(f"{label}: {type(error).__name__}: {shown(str(error))}")
        else:
            self.ok += 1

    def leave(self, cases: int, reason: str) -> None:
        """Count cases that no test checks."""
        if cases:
            self.total += cases
            self.not_judged[reason] += cases

    def line(self) -> str:
        """Return the report's line: ``NAME N ok / M, K not judged: REASON``."""
        parts = [f"{self.name} {self.ok} ok / {self.total}"]
        parts += [f"{count} not judged: {reason}" for reason, count in sorted(self.not_judged.items())]
        return ", ".join(parts)


def shown(value: Any) -> str:
    """Return a short text of a value, without private keys.

    SECURITY: tests/vectors/test_vectors.py.
    """
    text = _PRIVATE.sub(r"\1…", value if isinstance(value, str) else repr(value))
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"


def mismatch(what: str, expected: Any, got: Any) -> NoReturn:
    """Fail the case, with the expected and the actual value."""
    raise MismatchError(what, expected, got)


def equal(what: str, expected: Any, got: Any) -> None:
    """Fail the case unless both are the same JavaScript value; members may come in any order."""
    if not same(expected, got):
        mismatch(what, expected, got)


def same_text(what: str, expected: str, got: str) -> None:
    """Fail the case unless both strings are equal; the message begins shortly before the first difference."""
    if expected != got:
        at = next(
            (i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), min(len(expected), len(got))
        )
        start = max(0, at - 40)
        mismatch(f"{what}, from character {start}", expected[start:], got[start:])


def refuses(what: str, call: Callable[[], Any]) -> None:
    """Fail the case unless the call raises one of Goatherd's errors."""
    try:
        result = call()
    except GoatherdError:
        return
    mismatch(what, "an error", result)


def yields(
    case: Case,
    name: str,
    call: Callable[[], Any],
    compare: Callable[[str, Any, Any], None] = equal,
    *,
    as_is: bool = False,
) -> bool:
    """Check one recorded result of a case: a value, or an exception of GoatDB.

    A result that threw is absent from the case, which names the exception in a member that ends in ``error`` or
    ``throws``; or it is itself an object with the single member ``error``.

    Args:
        call: Computes ours.
        compare: How to compare a recorded value with ours.
        as_is: Whether the recorded value is given to `compare` as JSON, not as the JavaScript value that it denotes.

    Returns:
        Whether there was a value to compare with.
    """
    expected = case.get(name, UNDEFINED)
    if isinstance(expected, dict) and set(expected) == {"error"}:
        refuses(name, call)
    elif expected is not UNDEFINED:
        compare(name, expected if as_is else value_of(expected), call())
        return True
    elif threw(case):
        refuses(name, call)
    else:
        mismatch(name, "a value, or an error, in the case", None)
    return False


def threw(case: Case) -> bool:
    """Whether a case names an exception that GoatDB raised instead of giving a result."""
    return any(member.endswith(("error", "throws")) for member in case)


def accepts(call: Callable[[], Any]) -> bool:
    """Whether a check returns; False when it raises one of Goatherd's errors."""
    try:
        call()
    except GoatherdError:
        return False
    return True


def same(a: Any, b: Any) -> bool:
    """Whether two JavaScript values are the same, deeply; NaN is itself, -0 is 0, Sets compare in order."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        return bool(float(a) == float(b)) or (a != a and b != b)
    if isinstance(a, str) and isinstance(b, str):
        return join_surrogates(a) == join_surrogates(b)
    if isinstance(a, JSDate) and isinstance(b, JSDate):
        return a.ms == b.ms
    if isinstance(a, JSSet) and isinstance(b, JSSet):
        return _all_same(list(a), list(b))
    if isinstance(a, dict) and isinstance(b, dict):
        if isinstance(a, JSMap) != isinstance(b, JSMap):
            return False
        left, right = _defined(a), _defined(b)
        return left.keys() == right.keys() and all(same(item, right[key]) for key, item in left.items())
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return _all_same(a, b)
    return a is b


def _defined(value: dict[str, Any]) -> dict[str, Any]:
    return {join_surrogates(key): item for key, item in value.items() if item is not UNDEFINED}


def _all_same(a: Iterable[Any], b: Iterable[Any]) -> bool:
    left, right = list(a), list(b)
    return len(left) == len(right) and all(map(same, left, right))
