"""Whole rotations of the real code in a simulated world, decided by one number (docs/explanation/simulation.md).

- `loop`: an event loop whose time is a number; processes that can be killed at any step.
- `dice`, `keys`: where every random bit and every key comes from.
- `machine`, `network`, `store`: clocks, disks, HTTP and a secret store, all of which fail.
- `world`, `trace`: what all parts of a run share, and its story.
- `node`, `people`: servers, clients and operators; `revocations`: a stolen root; `liar`: a server that answers falsely.
- `scenario`, `herd`: what goes wrong, and the servers and clients that it happens to.
- `invariants`: what must be true in the end.
- `run`: one run from seed to verdict; ``python -m tests.simulation --seed 7`` tells it.
"""
