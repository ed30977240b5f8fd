"""Where private halves still are: what ``goatherd status`` shows of the versions, and when ``retire`` is due.

What it is: every version that is not destroyed and whose private keys it holds, turned round into roots and the
versions that still hold each. What it is not: it destroys nothing. Rules: a version that could not be looked at is
never taken for one without keys; ids and times only.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from goatherd.cli.output import Output
from goatherd.cli.rotation_text import kept_data
from goatherd.errors import GoatherdError
from goatherd.identity.document import IdentityDocument
from goatherd.identity.silence import unretired
from goatherd.operations.identity_store import Store
from goatherd.providers.values import CURRENT, STABLE, shown_labels
from goatherd.rotation.holdings import Holding, copies_left, describe_kept, find_holdings
from goatherd.rotation.machine import Kept
from goatherd.times import iso, milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Whereabouts:
    """What was found.

    Attributes:
        holdings: The versions that are not destroyed, newest first.
        signing: Roots whose private keys are needed: the current one, and the next one of a rotation.
        roots: All roots of the document, in its order.
        recorded: Roots of which it is on record that no version holds their private keys.
        unretired: The other earlier roots, and since when they have not signed; none while a rotation is under way.
        grace: How long after it was replaced a key is kept.
        copies: Where a value can be found even after it was destroyed, for people; None where nowhere.
        problem: Why nothing could be found out.
    """

    holdings: tuple[Holding, ...]
    signing: frozenset[str]
    roots: tuple[str, ...]
    recorded: frozenset[str]
    unretired: tuple[tuple[str, int], ...]
    grace: timedelta
    copies: str | None
    problem: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every version could be looked at, so that absence is proven."""
        return self.problem is None and all(one.problem is None for one in self.holdings)

    def versions_with(self, root: str) -> tuple[str, ...]:
        """Return the versions that were seen to hold this root's private key."""
        return tuple(one.version.id for one in self.holdings if root in one.private_ids)

    def due(self, now_ms: int) -> tuple[str, ...]:
        """Return the versions that `goatherd retire` would destroy now."""
        return tuple(one.version.id for one in self._old() if self._due_ms(one) <= now_ms)

    def describe_due(self, now_ms: int) -> list[str]:
        """Return a line for each version that `goatherd retire` would destroy now: whose private keys it holds."""
        return [
            f"version {one.version.id}, of {iso(one.version.created_ms)}: {_describe_content(one)}"
            for one in self._old()
            if self._due_ms(one) <= now_ms
        ]

    def kept(self, now_ms: int) -> tuple[Kept, ...]:
        """Return the versions that `goatherd retire` would destroy now if no label of another's pointed at them."""
        return tuple(
            Kept(version=one.version.id, labels=one.foreign_labels)
            for one in self._retired()
            if one.foreign_labels and self._due_ms(one) <= now_ms
        )

    def next_due_ms(self, now_ms: int) -> int | None:
        """Return when the next version is due to be destroyed, where one is."""
        return min([self._due_ms(one) for one in self._old() if self._due_ms(one) > now_ms], default=None)

    def recordable(self, now_ms: int) -> tuple[str, ...]:
        """Return the roots of which `goatherd retire` would put on record now that no version holds their keys."""
        if not self.is_complete:
            return ()
        grace_ms = milliseconds(self.grace)
        return tuple(root for root, ms in self.unretired if ms + grace_ms <= now_ms and not self.versions_with(root))

    def _retired(self) -> list[Holding]:
        ours = {CURRENT, STABLE}
        return [
            one
            for one in self.holdings
            if (one.private_ids - self.signing or one.is_unknown_leftover) and not ours & one.version.labels
        ]

    def _old(self) -> list[Holding]:
        return [one for one in self._retired() if not one.foreign_labels]

    def _due_ms(self, one: Holding) -> int:
        # What a cancelled rotation has left needs no time to go back: its next root has signed nothing.
        return one.retired_ms + (0 if one.is_of_cancelled else milliseconds(self.grace))

    def to_json(self, now_ms: int) -> dict[str, object]:
        """Return it as data."""
        following = self.next_due_ms(now_ms)
        return {
            "complete": self.is_complete,
            "problem": self.problem,
            "versions": [
                {
                    "id": one.version.id,
                    "labels": sorted(one.version.labels),
                    "state": one.version.state.value,
                    "leftover": one.version.is_leftover,
                    "privateKeysOf": sorted(one.private_ids),
                    "problem": one.problem,
                }
                for one in self.holdings
            ],
            "roots": [
                {"id": root, "versions": list(self.versions_with(root)), "recordedDestroyed": root in self.recorded}
                for root in self.roots
            ],
            "copies": self.copies,
            "retireDue": list(self.due(now_ms)),
            "retireKept": kept_data(self.kept(now_ms)),
            "recordDue": list(self.recordable(now_ms)),
            "retireNext": None if following is None else iso(following),
        }

    def lines(self, out: Output, now_ms: int) -> list[str]:
        """Return it for people."""
        if self.problem is not None:
            return [f"private keys: it cannot be told which version holds which ({self.problem})"]
        rows = [
            (
                one.version.id,
                "(left over)" if one.version.is_leftover else shown_labels(one.version.labels),
                one.problem or " ".join(sorted(one.private_ids)),
                self._describe_due(one),
            )
            for one in self.holdings
        ]
        lines = out.table(("VERSION", "LABELS", "PRIVATE KEYS OF", "RETIRE FROM"), rows)
        for root in self.roots:
            if not self.versions_with(root):
                lines.append(self._absence(root))
        due, following, recordable = self.due(now_ms), self.next_due_ms(now_ms), self.recordable(now_ms)
        if recordable:
            named = " ".join(recordable)
            lines.append(f"due: `goatherd retire` puts on record that no version holds the private key of {named}")
        if due:
            lines.append(f"due: `goatherd retire` destroys {len(due)} versions: {' '.join(due)}")
        elif following is not None:
            lines.append(f"`goatherd retire` has nothing to destroy before {iso(following)}")
        lines += [describe_kept(one) for one in self.kept(now_ms)]
        if self.copies is not None:
            lines.append(f"mind: {self.copies}")
        return lines

    def _describe_due(self, one: Holding) -> str:
        if one in self._old():
            return iso(self._due_ms(one))
        return "when no label points at it" if one in self._retired() else ""

    def _absence(self, root: str) -> str:
        record = ", and it is on record that none holds it" if root in self.recorded else ""
        if self.is_complete:
            return f"the private key of {root} is in no version of this secret{record}"
        return f"the private key of {root} was not seen, but some versions could not be looked at{record}"


def _describe_content(one: Holding) -> str:
    keys = f"the private key of {', '.join(sorted(one.private_ids))}" if one.private_ids else str(one.problem)
    return f"left over from an interrupted change; {keys}" if one.version.is_leftover else keys


async def find_whereabouts(store: Store, document: IdentityDocument, grace: timedelta) -> Whereabouts:
    """Look into every version of the store. A store that does not let us is told as that, not as "none"."""
    holdings: tuple[Holding, ...] = ()
    problem: str | None = None
    try:
        holdings = await find_holdings(store.provider, store.secret_id, document)
    except GoatherdError as error:
        problem = error.code
    return Whereabouts(
        holdings=holdings,
        signing=frozenset([document.current.id, *([document.next.id] if document.next else [])]),
        roots=tuple(root.id for root in document.roots),
        recorded=document.retired_ids,
        unretired=unretired(document) if document.rotation is None else (),
        grace=grace,
        copies=copies_left(store.provider.guarantees),
        problem=problem,
    )
