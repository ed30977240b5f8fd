"""``make bench``: every benchmark, as ratios taken side by side in one run. ``make bench ARGS=--json`` for programs."""

from __future__ import annotations

import json
import sys
import time

from tests.bench import (
    bench_agent,
    bench_asgi,
    bench_command_line,
    bench_door,
    bench_node,
    bench_outage,
    bench_revocation,
    bench_rotation,
    bench_signing,
    bench_startup,
)

PARTS = (
    ("CPU time of short commands over a bare interpreter", bench_command_line.run),
    ("signing and verifying over bare OpenSSL", bench_signing.run),
    ("a request to our ASGI callable and to Starlette", bench_asgi.run),
    ("one node, commits pushed over HTTP", bench_node.run),
    ("requests through the door, and directly", bench_door.run),
    ("200 nodes through an hour without their store, calls per second", bench_outage.run),
    ("a rotation: 3, 10 and 100 simulated nodes; five real ones under load", bench_rotation.run),
    ("a revocation on two servers with user sessions in /sys/sessions", bench_revocation.run),
    ("start-up and memory with user sessions in /sys/sessions", bench_startup.run),
    ("what the agent adds to the start of an unmodified server with user sessions", bench_agent.run),
)


def main() -> None:
    results: dict[str, dict[str, float]] = {}
    for title, run in PARTS:
        began = time.perf_counter()
        results[title] = run()
        if "--json" not in sys.argv[1:]:
            print(f"\n{title}  ({time.perf_counter() - began:.0f} s)")
            for name, value in results[title].items():
                print(f"  {name:<44} {value:10.3f}")
    if "--json" in sys.argv[1:]:
        print(json.dumps(results, indent=2))


main()
