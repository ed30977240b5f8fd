"""Compare what the store holds with what its servers have used: did the store go back, or take another way?

Pure; `goatherd.rotation.history_check` asks the servers, before a command writes. Rules: a server that says nothing
usable, or that shares no root with the identity, not even a revoked one, is no contradiction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from goatherd.cluster.server_answers import ServerIdentity
from goatherd.errors import StoreWentBackError
from goatherd.identity.document import IdentityDocument, source_digest
from goatherd.identity.lineage import DIGEST_CHARACTERS, Lineage
from goatherd.rotation.action import Obstacle, ObstacleKind

KINDS: Final = frozenset({ObstacleKind.STORE_BEHIND, ObstacleKind.FORKED})
"""The obstacles that say that the store went back."""

_WAYS_OUT: Final = (
    "The store went back: a backup was restored, an older version was made current, or a replica lags. Either put the"
    " later state back into the store; or accept what the store holds, by starting every server once with"
    " --accept-identity (how-to page: A restored store)."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What the store holds, as far as it is compared.

    Attributes:
        digest: SHA-256 of the document's text, hexadecimal.
        lineage: Its predecessors, as far as it names them.
    """

    generation: int
    digest: str
    lineage: Lineage | None = None

    @classmethod
    def of(cls, document: IdentityDocument) -> Held:
        return cls(generation=document.generation, digest=source_digest(document), lineage=document.lineage)

    def is_behind(self, generation: int) -> bool:
        """Whether a server that uses this generation has seen more than the store holds."""
        return generation > self.generation

    def is_other(self, generation: int, digest: str | None) -> bool:
        """Whether a server uses another document than the store holds now, or held when it had that generation."""
        if digest is None or generation > self.generation:
            return False
        if generation == self.generation:
            return self.digest[:DIGEST_CHARACTERS] != digest[:DIGEST_CHARACTERS]
        return self.lineage is not None and self.lineage.contradicts(generation, digest)


def find_contradiction(url: str, generation: int | None, digest: str | None, held: Held) -> Obstacle | None:
    """Return why the store cannot be where the identity of this server comes from; None where it can.

    Args:
        url: The server.
        generation: Of the identity that it says it uses; None where it does not say.
        digest: Of that identity's text; None where it does not say.
        held: What the store holds.
    """
    if generation is None:
        return None
    if held.is_behind(generation):
        kind = ObstacleKind.STORE_BEHIND
        text = f"{url} has seen generation {generation} of the identity, and the store holds generation"
        text = f"{text} {held.generation}"
    elif held.is_other(generation, digest):
        kind = ObstacleKind.FORKED
        text = f"{url} uses another generation {generation} of the identity than the one"
        here = "that the store holds" if generation == held.generation else "that the store's identity has grown from"
        text = f"{text} {here}"
    else:
        return None
    return Obstacle(kind=kind, text=text, hint=_WAYS_OUT, nodes=(url,))


def find_contradictions(
    answers: Mapping[str, ServerIdentity],
    document: IdentityDocument,
    distrust: Collection[str] = (),
    *,
    signed: IdentityDocument | None = None,
    is_voted: bool = False,
) -> tuple[Obstacle, ...]:
    """Return why the store cannot be where the servers' identity comes from, one obstacle for each such server.

    Args:
        answers: What servers say of themselves (``GET /goatherd/v1/identity``), by URL.
        document: What the store holds.
        distrust: URLs of servers whose word does not count.
        signed: Where `document` is not signed, the last signed one before it. Servers that ask for signatures can use
            nothing later, and the others may still use it.
        is_voted: Whether the servers that agree with the store overrule the others if they are more: in an emergency
            one server that lies must not cost time. After a restore, none that runs agrees.
    """
    held, listed = Held.of(document), {root.id for root in document.roots}
    last_signed = None if signed is None else Held.of(signed)
    found, agreeing = [], 0
    for url, answer in answers.items():
        if url in distrust or listed.isdisjoint((*(answer.roots or ()), *(answer.revoked or ()))):
            continue
        is_refusing = last_signed is not None and answer.has_seen_signed
        states = [one for one in (None if is_refusing else held, last_signed) if one is not None]
        contradictions = [find_contradiction(url, answer.generation, answer.digest, one) for one in states]
        one = None if None in contradictions else contradictions[0]
        if one is not None:
            found.append(one)
        elif answer.generation is not None:
            agreeing += 1
    return () if is_voted and agreeing > len(found) else tuple(found)


def went_back(obstacles: Iterable[Obstacle]) -> StoreWentBackError:
    """Return the error for a store that went back."""
    found = tuple(obstacles)
    urls = [url for one in found for url in one.nodes]
    return StoreWentBackError(
        f"nothing was written: {'; '.join(one.text for one in found)}",
        obstacles=found,
        hint=f"{_WAYS_OUT} A server that is wrong about it is overruled by --distrust {urls[0]}.",
    )
