"""What Goatherd's layers cost on top of one bare OpenSSL signature or verification.

Each round times the bare call and ours back to back, so that a busy machine slows both; the ratio is the median over
the rounds. Run it alone for a table: ``python tests/bench/bench_signing.py``.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from goatherd.identity.session import OwnedSession, parse_signature, sign_commit, verify_commit
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.commit import Commit, new_commit
from goatherd.wire.json import parse_json, to_json_bytes

NOW_MS = 1_735_689_600_000


def typical_commit(owned: OwnedSession) -> Commit:
    """A commit of six fields with one parent and an ancestors filter."""
    data = {
        "title": "Water the tomatoes",
        "done": False,
        "count": 12,
        "due": 1735689600.123,
        "notes": "Not at noon. The ones by the wall need more than the others.",
        "list": "garden",
    }
    return new_commit(
        commit_id="b" * 24,
        key="k" * 24,
        session_id=owned.id,
        ts=NOW_MS,
        org="localhost",
        data=data,
        schema_marker="task/1",
        connection="c" * 24,
        parents=["p" * 24],
        ancestors_filter=BloomFilter.for_size(9, 0.25, [8162624908085704, 4643945078194810, 3324255518676693]),
        ancestors_count=9,
    )


def run(rounds: int = 400) -> dict[str, float]:
    """Measure; returns ratios over bare OpenSSL, and microseconds."""
    owned = OwnedSession.generate(session_id="s" * 24, owner="root", now_ms=NOW_MS)
    commit = typical_commit(owned)
    signed = sign_commit(owned, commit, now_ms=NOW_MS)
    text = commit.signed_text(owned.id).encode()
    raw = parse_signature(signed.signature or "").signature
    der = encode_dss_signature(int.from_bytes(raw[:48], "big"), int.from_bytes(raw[48:], "big"))
    jwk = owned.to_secret_json()["privateKey"]
    private = ec.derive_private_key(int.from_bytes(_base64url(jwk["d"]), "big"), ec.SECP384R1())
    public = private.public_key()
    signing, verifying = ec.ECDSA(hashes.SHA384(), deterministic_signing=True), ec.ECDSA(hashes.SHA384())
    line = to_json_bytes(signed.to_json())

    sign = _compare(lambda: private.sign(text, signing), lambda: sign_commit(owned, commit, now_ms=NOW_MS), rounds)
    verify = _compare(lambda: public.verify(der, text, verifying), lambda: verify_commit(owned.session, signed), rounds)
    wire = _micros(lambda: _receive(line, owned.id), rounds)
    return {
        "sign_ratio": sign[2],
        "verify_ratio": verify[2],
        "sign_bare_us": sign[0],
        "sign_ours_us": sign[1],
        "verify_bare_us": verify[0],
        "verify_ours_us": verify[1],
        "receive_without_verification_us": wire,
    }


def _receive(line: bytes, signer_id: str) -> None:
    """Everything that the wire layer does with a received commit, short of the verification itself."""
    commit = Commit.from_json(parse_json(line), org="localhost")
    parse_signature(commit.signature or "")
    commit.signed_text(signer_id)


def _base64url(text: str) -> bytes:
    import base64

    return base64.urlsafe_b64decode(text)


def _micros(call: Callable[[], object], rounds: int) -> float:
    return statistics.median(_once(call) for _ in range(rounds)) * 1e6


def _once(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _compare(bare: Callable[[], object], ours: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    for _ in range(20):
        bare()
        ours()
    pairs = [(_once(bare), _once(ours)) for _ in range(rounds)]
    medians = [statistics.median(times) * 1e6 for times in zip(*pairs, strict=True)]
    return medians[0], medians[1], statistics.median(ours / bare for bare, ours in pairs)


if __name__ == "__main__":
    print(json.dumps({name: round(value, 3) for name, value in run().items()}, indent=2))
