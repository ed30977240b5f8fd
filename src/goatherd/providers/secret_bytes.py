"""Bytes that do not show.

What it is: the type in which a value travels. What it is not: encryption, or memory that is wiped; Python copies bytes
as it likes. Rules: `SecretBytes.reveal` is the only way out, so that a search for it finds every place that handles
the bytes.
"""

from __future__ import annotations

import hmac
from typing import NoReturn, final


@final
class SecretBytes:
    """A value that does not show: not in ``repr``, ``str``, a format string, a pickle, or joined to other bytes.

    Equality takes constant time for equal lengths.
    """

    __slots__ = ("_value",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: bytes | bytearray | memoryview) -> None:
        # Not bytes(value): that makes zeros of a number.
        self._value = bytes(memoryview(value))

    def reveal(self) -> bytes:
        """Return the bytes."""
        return self._value

    @property
    def size(self) -> int:
        """The length in bytes."""
        return len(self._value)

    # SECURITY: tests/unit/providers/test_secret_bytes.py tries every way out that Python offers.
    def __repr__(self) -> str:
        return "SecretBytes(<hidden>)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecretBytes):
            return NotImplemented
        return hmac.compare_digest(self._value, other._value)

    def __copy__(self) -> SecretBytes:
        return self

    def __deepcopy__(self, memo: object) -> SecretBytes:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a SecretBytes cannot be pickled")

    def __getstate__(self) -> NoReturn:
        raise TypeError("a SecretBytes cannot be pickled")
