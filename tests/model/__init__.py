"""The rotation, explored exhaustively: a small world around the real `goatherd.rotation.machine.decide`.

- `store`: the identity document as an abstract record, and a store that promises what real ones promise.
- `world`: nodes, operators and everything that an adversary may do to them, as moves from one state to the next.
- `invariants`: what must hold in every state.
- `explorer`: every reachable state, and whether from each there is a way to steady.
- `story`: the shortest way to a broken state, in words.
- `configurations`: which worlds are explored; `mutants`: the same worlds with one protection taken away.

``python -m tests.model --help`` runs it by hand. docs/explanation/proof.md says what it shows and what it does not.
"""
