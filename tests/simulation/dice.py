"""The source of every random bit of a run, keys included.

What it is: `Dice`, and `loaded`, within which one number decides what `secrets`, `random.SystemRandom` and with them
all of Goatherd roll, and which keys are "made". What it is not: safe. Nothing that it makes is a secret.

Rules:
- One place is changed in the standard library: where `random.SystemRandom` gets its bytes. `secrets` stands on it.
- Keys are real P-384 keys, the n-th of a run being the n-th of `tests.simulation.keys`.
- A signature costs half a millisecond and its check a whole one, and a run has thousands. So they are idealised: a
  keyed hash of the data, as long as a real one, deterministic as a real one is (RFC 6979), which verifies under its own
  key and no other. With ``real`` P-384 signs, and the run is the same (tests/simulation guards it).
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any, Final

from goatherd.crypto import PrivateKey, PublicKey
from goatherd.node import peer
from goatherd.settings import store
from tests.done_once import decode_once
from tests.simulation.keys import ideal_sign, ideal_verify, keys

RELAXED: Final = 4
"""Servers ask each other for news so much more seldom than in production: most of a run would be that. What is new goes
out at once all the same."""

_read: dict[str, PrivateKey] = {}


class Dice(random.Random):
    """A stream of random numbers for one use, so that a change in one does not shift the others.

    Args:
        seed: The seed of the run.
        use: The use of the stream.
    """

    def __new__(cls, seed: int, use: str) -> Dice:
        return super().__new__(cls)

    def __init__(self, seed: int, use: str) -> None:
        super().__init__(f"{seed}/{use}")

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.random() < probability


@contextlib.contextmanager
def loaded(seed: int, *, real: bool = False) -> Iterator[None]:
    """Have every random value of Goatherd decided by `seed` within the block; for one thread.

    Args:
        seed: The seed of the run.
        real: Whether signatures are P-384's own.
    """
    source, made = Dice(seed, "dice"), keys()
    read = PrivateKey.from_jwk

    def from_jwk(jwk: Mapping[str, Any]) -> PrivateKey:
        """Read a key once: it costs as much as a signature, and a document is read at every look."""
        name = repr(sorted(jwk.items())) if isinstance(jwk, Mapping) else ""
        if name not in _read:
            _read[name] = read(jwk)
        return _read[name]

    files: dict[str, bytes] = {}
    changes: list[tuple[Any, str, Any]] = [
        (store, "read_if_there", lambda path: files.get(str(path))),
        (store, "replace_file", lambda path, data: files.__setitem__(str(path), data)),
        (peer, "POLL_MIN", RELAXED * peer.POLL_MIN),
        (peer, "POLL_MAX", RELAXED * peer.POLL_MAX),
        (random, "_urandom", source.randbytes),
        (PrivateKey, "generate", staticmethod(lambda: next(made))),
        (PrivateKey, "from_jwk", staticmethod(from_jwk)),
    ]
    if not real:
        changes += [(PrivateKey, "sign", ideal_sign), (PublicKey, "verify", ideal_verify)]
    kept = [(owner, name, vars(owner)[name]) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        with decode_once():
            yield
    finally:
        for owner, name, value in kept:
            setattr(owner, name, value)
