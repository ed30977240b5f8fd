"""Decode and encode the sync messages of ``/batch-sync``.

Pure. The members are listed in docs/reference/goatdb-protocol.md#sync-messages. Commits inside a message stay raw JSON,
so that a receiver can skip a commit that it cannot decode and still use the rest of the message.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pybase64

from goatherd.errors import DecodeError
from goatherd.wire.bloom import BloomFilter, seed_count
from goatherd.wire.json import to_json_bytes

VERSION = 50595584
"""3.4.7.0, what GoatDB 0.5.1 announces; a server withholds commits from anything lower."""

_MAX_FPR = 0.5
_PULL_FPR = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncMessage:
    """A message of GoatDB's sync protocol about one repository.

    It states which commits the sender holds, and contains commits that the receiver certainly lacks.

    Attributes:
        version: The sender's build version; 0 if the message names none.
        filter: A Bloom filter over the ids of the commits that the sender holds.
        size: The number of these commits.
        commits: The commits as received: raw JSON values of any type.
    """

    version: float
    filter: BloomFilter
    size: float
    commits: Sequence[Any] = ()

    @classmethod
    def from_json(cls, encoded: Mapping[str, Any]) -> SyncMessage:
        """Decode a sync message from JSON.

        The filter may be wrapped in a type marker (``__t``, ``__v``) or not; ``c`` (the commits) may be absent.

        Raises:
            DecodeError: The message is not an object, has no valid filter, or its ``c`` is not an array.
        """
        if not isinstance(encoded, Mapping):
            raise DecodeError("a sync message must be a JSON object")
        raw = encoded.get("f")
        if isinstance(raw, Mapping) and raw.get("__t") == "E" and isinstance(raw.get("__v"), Mapping):
            raw = raw["__v"]
        if not isinstance(raw, Mapping):
            raise DecodeError("a sync message must have a Bloom filter f")
        commits = encoded.get("c", [])
        if not isinstance(commits, list):
            raise DecodeError("a sync message's c (the commits) must be an array")
        seeds = raw.get("s")
        if isinstance(seeds, list):
            # COMPAT: seeds that are strings become numbers, because JavaScript converts them in its arithmetic. In a
            # commit's ancestors filter they stay strings.
            raw = {**raw, "s": [int(seed) if _is_whole(seed) else seed for seed in seeds]}
        return cls(
            version=_read_number(encoded.get("ver")),
            filter=BloomFilter.from_json(raw),
            size=_read_number(encoded.get("s")),
            commits=commits,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the sync message as a JSON object, in GoatDB's member order."""
        return {
            "ver": self.version,
            "f": {"__t": "E", "__v": self.filter.to_json()},
            "s": self.size,
            "c": list(self.commits),
            "ad": [],
        }


def _is_whole(seed: Any) -> bool:
    return isinstance(seed, str) and seed.isascii() and seed.isdecimal() and len(seed) <= 16


def _read_number(value: Any) -> float:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else 0


def filter_parameters(local: int, peer: int, cycles: int, low_accuracy: bool = False) -> tuple[int, float]:
    """Return the size and the false-positive rate, ``(size, fpr)``, for the Bloom filter of a sync message.

    Args:
        local: The number of commits that the sender holds.
        peer: The last known number of commits that the receiver holds.
        cycles: The number of rounds in which sender and receiver must converge, 1 to 3.
        low_accuracy: Whether to use GoatDB's cheap mode, with the false-positive rate 0.5.
    """
    size = max(1, local, peer)
    if low_accuracy:
        return size, _MAX_FPR
    return size, min(_MAX_FPR, 1 / size ** (1 / (0.5 * cycles)))


def decode_request_element(element: Any) -> tuple[str, SyncMessage]:
    """Return the repository path and the sync message of one element of a request; the path is not checked.

    Raises:
        DecodeError: The element is not an object or has no path, or the message is malformed.
    """
    if not isinstance(element, Mapping) or not isinstance(element.get("path"), str):
        raise DecodeError("an element of a batch must be an object with a path")
    message = element.get("msg")
    if not isinstance(message, Mapping):
        raise DecodeError("an element of a batch must have a message")
    return element["path"], SyncMessage.from_json(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedMessage:
    """A sync message with its large parts already as JSON.

    Attributes:
        filter: A filter over the commits that the sender holds, from `encode_filter`.
        size: The number of these commits.
        commits: Commits for the receiver, as JSON.
    """

    filter: bytes
    size: int
    commits: Sequence[bytes] = ()


def encode_filter(bloom: BloomFilter) -> bytes:
    """Return the JSON of a Bloom filter in the form that a sync message contains."""
    seeds = b",".join([b"%d" % seed for seed in bloom.seeds])
    return b'{"__t":"E","__v":{"d":"%b","s":[%b]}}' % (pybase64.b64encode(bloom.bits), seeds)


def filter_of_held(commit_ids: Collection[str], new_seeds: Callable[[int], Iterable[int]]) -> BloomFilter:
    """Return a Bloom filter of commits that the sender holds, for a message that requests all others.

    One in a million other commits is in it by chance, so the receiver does not send it.

    Args:
        commit_ids: Ids of the commits.
        new_seeds: Returns new random seeds (`goatherd.ids.new_seeds`).
    """
    if not commit_ids:
        return BloomFilter(b"\0", (1, 2))
    size = len(commit_ids)
    bloom = BloomFilter.for_size(size, _PULL_FPR, new_seeds(seed_count(size, _PULL_FPR)))
    bloom.update(commit_ids)
    return bloom


def encode_request(requests: Iterable[tuple[str, EncodedMessage | Mapping[str, Any]]]) -> bytes:
    """Encode the body of a ``POST /batch-sync`` request.

    Args:
        requests: Repository paths, each with its sync message: encoded, or as a JSON object.
    """
    return _encode_batch(b"msg", requests)


def encode_reply(replies: Iterable[tuple[str, EncodedMessage]]) -> bytes:
    """Encode the body of the answer to ``POST /batch-sync``, from each requested path and its reply."""
    return _encode_batch(b"res", replies)


def _encode_batch(name: bytes, messages: Iterable[tuple[str, EncodedMessage | Mapping[str, Any]]]) -> bytes:
    parts: list[bytes] = []
    for path, message in messages:
        parts.append(b'%b{"path":%b,"%b":' % (b"," if parts else b"[", to_json_bytes(path), name))
        if isinstance(message, EncodedMessage):
            parts += [b'{"ver":%d,"f":' % VERSION, message.filter, b',"s":%d,"c":[' % message.size]
            parts += [b",".join(message.commits), b'],"ad":[]}}']
        else:
            parts += [to_json_bytes(message), b"}"]
    return b"".join([*parts, b"]"]) if parts else b"[]"
