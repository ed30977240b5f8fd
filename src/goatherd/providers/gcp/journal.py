"""Keep notes in a secret's annotations: announced changes, completed calls, and versions that killed writers have left.

Annotations exist "to allow client tools to store their own state information" (type `Secret` of the API). One write
under one etag changes annotations and aliases, so that a label and its note change together. Pure: the module takes and
returns maps of annotations.

Rules:
- A writer announces itself before it adds a version. So only one writer at a time adds a version, and the newest
  version is the current one. If two writers move a label, the etag lets only the first one succeed.
- Missing and damaged notes, and annotations that Goatherd did not write, are ignored.
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
    """A note in a secret's annotations that a writer is adding or destroying a version.

    Attributes:
        purpose: What the writer does with a version: ``add`` or ``destroy``.
        request: The beginning of the writer's `Call.request`.
        nonce: A random string, new each time that the same call announces itself.
        base: The highest version number before the writer began; versions that it adds have higher numbers.
    """

    purpose: str
    request: str
    nonce: str
    base: int

    def __str__(self) -> str:
        return f"{self.purpose} {self.request} {self.nonce} {self.base}"


def short_request(request: str) -> str:
    """Return the beginning of a `Call.request`, by which a secret's annotations identify the writer."""
    return request[:16]


def read_announcement(annotations: Mapping[str, str]) -> Announcement | None:
    """Return the announcement of an active writer in a secret's annotations; None if there is none."""
    match = _ANNOUNCEMENT.fullmatch(annotations.get(ANNOUNCED, ""))
    if match is None:
        return None
    return Announcement(
        purpose=match["purpose"], request=match["request"], nonce=match["nonce"], base=int(match["base"])
    )


def with_announcement(annotations: Mapping[str, str], new: Announcement) -> dict[str, str]:
    """Return a secret's annotations with the announcement `new`, which replaces any other one."""
    return {**annotations, ANNOUNCED: str(new)}


def without_announcement(annotations: Mapping[str, str]) -> dict[str, str]:
    """Return a secret's annotations without a writer's announcement."""
    return {key: text for key, text in annotations.items() if key != ANNOUNCED}


def with_done_note(annotations: Mapping[str, str], request: str, number: int) -> dict[str, str]:
    """Return a secret's annotations with a note that `request` wrote version `number`, and without an announcement."""
    entries = _ENTRY.findall(annotations.get(DONE, ""))[: REMEMBERED - 1]
    noted = [(str(number), short_request(request)), *entries]
    return {**without_announcement(annotations), DONE: " ".join(f"{version}={by}" for version, by in noted)}


def written_by(annotations: Mapping[str, str], request: str) -> int | None:
    """Return the number of the version that the call with this request id wrote, as recorded in the annotations.

    None if the call has written none, or if the annotations no longer record it.
    """
    for version, by in _ENTRY.findall(annotations.get(DONE, "")):
        if by == short_request(request):
            return int(version)
    return None


def newest_known(annotations: Mapping[str, str], aliases: Mapping[str, int]) -> int:
    """Return the highest number of a secret's versions that have a label or that Goatherd wrote; 0 if there is none."""
    return max([0, *aliases.values(), *(int(number) for number, _ in _ENTRY.findall(annotations.get(DONE, "")))])


def read_left(annotations: Mapping[str, str]) -> frozenset[int]:
    """Return the numbers of the versions that a secret's annotations list as left by writers that died."""
    return frozenset(int(number) for number in annotations.get(LEFT, "").split() if _NUMBER.fullmatch(number))


def with_left(annotations: Mapping[str, str], numbers: Collection[int]) -> dict[str, str]:
    """Return a secret's annotations with `numbers` added to the versions left by dead writers.

    Only the newest `MOST_LEFT` numbers are kept.
    """
    noted = sorted(read_left(annotations).union(numbers))[-MOST_LEFT:]
    return {**annotations, LEFT: " ".join(map(str, noted))}
