"""Decide whether a store may become the primary store: it must hold the latest identity in use.

Pure. Other stores and servers may have shown a change that the candidate lacks. After its promotion, servers would
reject its older identity, or lose the root that signs since that change.
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
        generation: The generation of that identity.
        standing: How the candidate's identity compares with that one.
    """

    who: str
    generation: int
    standing: Standing

    @property
    def text(self) -> str:
        """The objection in words."""
        if self.standing is Standing.SPLIT:
            return f"{self.who} has generation {self.generation} with another history"
        if self.standing is Standing.UNTRUSTED:
            return f"{self.who} has generation {self.generation}, and neither follows from the other's roots"
        return f"{self.who} has generation {self.generation}"


def find_objections(candidate: DocumentMark, seen: Mapping[str, DocumentMark]) -> tuple[Objection, ...]:
    """Return the stores and servers that have shown an identity which the candidate lacks; empty if there are none.

    Args:
        candidate: The identity in the store that is to become the primary store.
        seen: The identities that the other stores and the servers have shown, by the name of the store or server.
    """
    standings = {who: compare_documents(candidate, mark) for who, mark in seen.items()}
    return tuple(
        Objection(who=who, generation=seen[who].generation, standing=standing)
        for who, standing in standings.items()
        if standing in (Standing.BEHIND, Standing.SPLIT, Standing.UNTRUSTED)
    )
