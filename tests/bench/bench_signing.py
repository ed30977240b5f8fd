"""What Goatherd's layers cost on top of one bare OpenSSL signature or verification."""

from __future__ import annotations

from collections.abc import Callable

from goatherd.crypto.keys import verify_with
from goatherd.identity.session import parse_signature, sign_commit, verify_commit
from goatherd.verifiers import use_aws_lc
from goatherd.wire.commit import Commit
from goatherd.wire.json import parse_json, to_json_bytes

from . import bare
from .data import EDITS, Data, make_commit
from .rows import Row
from .scale import Scale

BATCH = 20


async def run(scale: Scale, data: Data) -> list[Row]:
    """Measure signing, verifying, and what receiving a commit takes without its verification."""
    commit = make_commit(EDITS - 1, data.made_ms)
    owned = next(one for one in map(data.user, range(EDITS)) if one.id == commit.session)
    line = to_json_bytes(commit.to_json())

    def receive() -> None:
        received = Commit.from_json(parse_json(line), org="localhost")
        parse_signature(received.signature or "")
        received.signed_text(owned.id)

    rounds = scale.times(10)
    return [
        _row("sign", lambda: sign_commit(owned, commit, now_ms=data.made_ms), bare.sign, "OpenSSL", rounds),
        _row("verify", lambda: verify_commit(owned.session, commit), bare.verify, "OpenSSL", rounds),
        *_verify_with_aws_lc(lambda: verify_commit(owned.session, commit), rounds),
        _row("receive", receive, lambda: bare.parse([line]), "parsing", rounds),
    ]


def _verify_with_aws_lc(verify: Callable[[], object], rounds: int) -> list[Row]:
    """Measure what servers do if `awscrt` is installed, as `make bench` has it."""
    if not use_aws_lc():
        return []
    try:
        return [_row("verify-aws-lc", verify, bare.verify, "OpenSSL", rounds)]
    finally:
        verify_with(None)


def _row(name: str, ours: Callable[[], object], limit: Callable[[], object], what: str, rounds: int) -> Row:
    ours()
    pairs = [(bare.cpu_seconds(ours, BATCH), bare.cpu_seconds(limit, BATCH)) for _ in range(rounds)]
    times, limits = zip(*[(1e6 * taken, 1e6 * bare_time) for taken, bare_time in pairs], strict=True)
    return Row(name=f"signing/{name}", unit="us CPU", size=1, samples=times, bare=limits, limit=what)
