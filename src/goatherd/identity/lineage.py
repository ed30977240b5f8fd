"""A bounded list of digests of an identity document's latest predecessors (its earlier generations).

Pure. If a store is restored from a backup, a second document with the same generation number can be written; the
digests tell the two apart. An older release of Goatherd copies the list without adding to it. Each entry names its
generation, so such a copy lacks one generation, but all its entries stay correct. An earlier document whose generation
is not in the list counts as unknown, not as wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from goatherd.errors import MalformedIdentityError

KEPT: Final = 16
"""How many predecessors a document names. A rotation writes five documents, and one or two more when keys are retired
and roots leave."""
DIGEST_CHARACTERS: Final = 32
"""Of the SHA-256 in hexadecimal: 128 bits."""
_MOST: Final = 64
_GENERATION: Final = re.compile(r"0|[1-9][0-9]{0,15}")
_DIGEST: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Lineage:
    """The latest predecessors of an identity document, each as a generation and a shortened digest, oldest first."""

    entries: tuple[tuple[int, str], ...] = ()

    @classmethod
    def from_json(cls, value: Any, where: str) -> Lineage:
        """Read a lineage from the JSON value that `to_json` returned; an error names the value by `where`.

        Raises:
            MalformedIdentityError: The value is not one that `to_json` returns.
        """
        if not isinstance(value, Mapping) or len(value) > _MOST:
            raise MalformedIdentityError(f"{where} must be an object of at most {_MOST} digests")
        entries = []
        for generation, digest in value.items():
            if not _GENERATION.fullmatch(generation):
                raise MalformedIdentityError(f"each name in {where} must be a generation number")
            if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
                raise MalformedIdentityError(
                    f"each value in {where} must be a digest of {DIGEST_CHARACTERS} hexadecimal digits"
                )
            entries.append((int(generation), digest))
        return cls(tuple(sorted(entries)))

    def to_json(self) -> dict[str, str]:
        return {str(generation): digest for generation, digest in self.entries}

    def followed_by(self, generation: int, digest: str) -> Lineage:
        """Return the lineage of the next document, whose predecessor has the given generation and digest."""
        earlier = [one for one in self.entries if one[0] < generation]
        return Lineage((*earlier, (generation, digest[:DIGEST_CHARACTERS]))[-KEPT:])

    def digest_of(self, generation: int) -> str | None:
        """Return the shortened digest of the predecessor document with this generation; None if it is not known."""
        return next((digest for at, digest in self.entries if at == generation), None)

    def contradicts(self, generation: int, digest: str) -> bool:
        """Return whether the lineage names a predecessor of this generation with another digest than `digest`."""
        known = self.digest_of(generation)
        return known is not None and known != digest[:DIGEST_CHARACTERS]
