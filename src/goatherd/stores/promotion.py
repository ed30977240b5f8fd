"""Decide which store may become the primary store: one that holds the highest generation that anything has shown.

Pure. A store that lacks a change which servers have seen already would take that change away from them: they would
refuse the promoted store's identity, or lose the root that has signed since.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from goatherd.stores.comparison import DocumentMark, Standing, compare_documents


@dataclass(frozen=True, slots=True, kw_only=True)
class Objection:
    """A store or a server that has shown an identity which the candidate does not hold.

    Attributes:
        who: The store or the server, such as ``region eu`` or a URL.
        generation: The generation that it has shown.
        standing: How the candidate's identity stands to that one.
    """

    who: str
    generation: int
    standing: Standing

    @property
    def text(self) -> str:
        """The objection in words."""
        if self.standing is Standing.SPLIT:
            return f"{self.who} has generation {self.generation} with another history"
        return f"{self.who} has generation {self.generation}"


def find_objections(candidate: DocumentMark, seen: Mapping[str, DocumentMark]) -> tuple[Objection, ...]:
    """Return who has shown an identity that the candidate for the primary store does not hold; empty if there is none.

    Args:
        candidate: The identity in the store that is to become the primary store.
        seen: The identities that the other stores and the servers have shown, by name.
    """
    standings = {who: compare_documents(candidate, mark) for who, mark in seen.items()}
    return tuple(
        Objection(who=who, generation=seen[who].generation, standing=standing)
        for who, standing in standings.items()
        if standing in (Standing.BEHIND, Standing.SPLIT)
    )
