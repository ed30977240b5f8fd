"""Keep notes in a secret's annotations: announced changes, completed calls, and leftovers of writers that died.

Annotations exist "to allow client tools to store their own state information" (type `Secret` of the API). They change
under the same etag as the aliases, so that a label and its note change in one step. Pure: maps in, maps out.

Rules:
- A writer announces itself before it adds a version, so only one at a time adds one and the newest version is the
  current one. The etag, not the announcement, decides a race for a label.
- A missing, foreign or damaged note is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

ANNOUNCED: Final = "goatherd-announced"
DONE: Final = "goatherd-done"
LEFT: Final = "goatherd-left"
REMEMBERED: Final = 8
MOST_LEFT: Final = 64

_ANNOUNCEMENT = re.compile(
    r"(?P<purpose>add|destroy) (?P<request>[0-9a-f]{16}) (?P<nonce>[0-9a-f]{16}) (?P<base>[0-9]{1,18})"
)
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_ENTRY = re.compile(r"([1-9][0-9]{0,17})=([0-9a-f]{16})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """A note that a writer is adding or destroying a version.

    Attributes:
        purpose: ``add`` or ``destroy`` a version.
        request: The beginning of the writer's `Call.request`.
        nonce: A random string, new each time that the same call announces itself.
        base: The versions that this writer adds have higher numbers.
    """

    purpose: str
    request: str
    nonce: str
    base: int

    def __str__(self) -> str:
        return f"{self.purpose} {self.request} {self.nonce} {self.base}"


def short_request(request: str) -> str:
    """Return the part of a `Call.request` that is stored in notes."""
    return request[:16]


def read_announcement(annotations: Mapping[str, str]) -> Announcement | None:
    """Return the announcement of the writer that is working on the secret; None if there is none."""
    match = _ANNOUNCEMENT.fullmatch(annotations.get(ANNOUNCED, ""))
    if match is None:
        return None
    return Announcement(
        purpose=match["purpose"], request=match["request"], nonce=match["nonce"], base=int(match["base"])
    )


def with_announcement(annotations: Mapping[str, str], new: Announcement) -> dict[str, str]:
    """Return the annotations with `new` in place of any other announcement."""
    return {**annotations, ANNOUNCED: str(new)}


def without_announcement(annotations: Mapping[str, str]) -> dict[str, str]:
    """Return the annotations without an announcement."""
    return {key: text for key, text in annotations.items() if key != ANNOUNCED}


def with_done_note(annotations: Mapping[str, str], request: str, number: int) -> dict[str, str]:
    """Return the annotations without an announcement, and with the note that `request` wrote version `number`."""
    entries = _ENTRY.findall(annotations.get(DONE, ""))[: REMEMBERED - 1]
    noted = [(str(number), short_request(request)), *entries]
    return {**without_announcement(annotations), DONE: " ".join(f"{version}={by}" for version, by in noted)}


def written_by(annotations: Mapping[str, str], request: str) -> int | None:
    """Return the version that `request` wrote, if it is among the last few that are noted."""
    for version, by in _ENTRY.findall(annotations.get(DONE, "")):
        if by == short_request(request):
            return int(version)
    return None


def newest_known(annotations: Mapping[str, str], aliases: Mapping[str, int]) -> int:
    """Return the highest number of a version that a label points at or that Goatherd has written, or 0."""
    return max([0, *aliases.values(), *(int(number) for number, _ in _ENTRY.findall(annotations.get(DONE, "")))])


def read_left(annotations: Mapping[str, str]) -> frozenset[int]:
    """Return the numbers of the versions that were disabled because their writer had died."""
    return frozenset(int(number) for number in annotations.get(LEFT, "").split() if _NUMBER.fullmatch(number))


def with_left(annotations: Mapping[str, str], numbers: Collection[int]) -> dict[str, str]:
    """Return the annotations with these versions noted as left by dead writers; at most the newest `MOST_LEFT` stay."""
    noted = sorted(read_left(annotations).union(numbers))[-MOST_LEFT:]
    return {**annotations, LEFT: " ".join(map(str, noted))}
