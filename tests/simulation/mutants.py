"""Code from which one protection is taken away: ``python -m tests.simulation.mutants NAME FROM-TO``.

A test of the test: the simulation must find each of these out. It prints what the first seed that does has to say.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from goatherd.clock import SteadyClock
from goatherd.identity import succession, transitions
from goatherd.identity.document import IdentityDocument, sign_document
from goatherd.node import disk
from goatherd.rotation import clocks, machine, rotator, signed_store, table
from goatherd.settings import cloud
from goatherd.testing.simulation.run import run

NO_HASHES = "0"


def ungated() -> None:
    """B signs before the others know B (hazard 1)."""
    table.GATES[table.Step.ACTIVATE] = ()


def unvouched() -> None:
    """Nobody waits until B has introduced A, so that later nobody can verify what A signed (hazard 3)."""
    table.GATES[table.Step.VERIFY] = (table.Evidence.SIGNS_WITH_NEXT,)


def amnesic() -> None:
    """A roll-back takes the new root out of the roots (hazard 2)."""
    roll_back = transitions.roll_back

    def without(document: IdentityDocument, stable: IdentityDocument, *rest: Any, **options: Any) -> IdentityDocument:
        back = roll_back(document, stable, *rest, **options)
        kept = tuple(root for root in back.roots if root.id != document.current.id)
        words = tuple(one for one in back.endorsements if document.current.id not in (one.by, one.of))
        return sign_document(replace(back, roots=kept, endorsements=words, source=None), back.last_updated or 0)

    transitions.roll_back = without


def hasty() -> None:
    """A server answers before what it took in is on the disk (T50)."""

    async def not_at_all(self: Any) -> None:
        return None

    disk.Disk.durable = not_at_all


def credulous() -> None:
    """A server takes whatever generation the store shows."""
    cloud.verify_successor = lambda *given, **options: None


def unsuspecting() -> None:
    """A server that has seen a signed document follows an altered one."""
    succession.check_signature = lambda new, seen: None


def obliging() -> None:
    """A command signs what somebody without the key has altered."""

    async def nothing(self: Any, document: IdentityDocument) -> None:
        return None

    signed_store.SignatureCheck.check = nothing


def silent() -> None:
    """Whoever carries on does not mend the label `stable`."""
    machine._label = lambda *arguments: None


def unlabelled_orphans() -> None:
    """Retiring looks at labelled versions only, so that what a dead process has put there stays for ever."""
    find = rotator.find_holdings

    async def labelled(*arguments: Any, **options: Any) -> Any:
        return tuple([one for one in await find(*arguments, **options) if one.version.labels])

    rotator.find_holdings = labelled


def lawless() -> None:
    """Whoever writes the document last wins: no compare-and-swap."""

    async def overwrite(self: Any, document: IdentityDocument, expected: str) -> Any:
        _, now = await self._read()
        return await write(self, document, now.id)

    write = rotator.Rotator._write
    rotator.Rotator._write = overwrite


def uncompared() -> None:
    """Nobody's clock is compared with any other, so that `retire` destroys the way back."""
    clocks.Clocks.is_ours_wrong = property(lambda self: False)


def believing() -> None:
    """A phase that was recorded in the future counts from then, so that a command waits for months."""
    view, limit = rotator.store_view, rotator.limit_times

    def as_recorded(document: IdentityDocument, *arguments: Any, **options: Any) -> Any:
        found = view(document, *arguments, **options)
        record = document.rotation
        return found if record is None else replace(found, phase_since_ms=record.phase_at)

    def without_the_phase(document: IdentityDocument, *arguments: Any, **options: Any) -> IdentityDocument:
        return replace(limit(document, *arguments, **options), rotation=document.rotation)

    rotator.store_view = as_recorded
    rotator.limit_times = without_the_phase


def uncorrected() -> None:
    """What a wrong clock has recorded stays as it is, so that a grace period begins in months."""
    rotator.limit_times = lambda document, *arguments, **options: document


def resettable() -> None:
    """A deadline moves with the clock of the machine when somebody sets that."""
    SteadyClock.now_ms = lambda self: self._clock.now_ms()


def grudging() -> None:
    """The failures of the store are counted from the first one on, however well it answers in between."""
    source = textwrap.dedent(inspect.getsource(rotator.Rotator._run))
    assert source.count("troubled_since = None\n") + source.count("troubled_since = None  #") == 2
    source = source.replace("troubled_since = None  #", "pass  #").replace("troubled_since = None\n", "pass\n")
    names: dict[str, Any] = {}
    exec(compile(source, rotator.__file__, "exec"), vars(rotator), names)
    rotator.Rotator._run = names["_run"]


TAKEN_AWAY = (
    *(ungated, unvouched, amnesic, hasty, credulous, silent, unsuspecting, obliging, unlabelled_orphans, lawless),
    *(uncompared, believing, uncorrected, resettable, grudging),
)
MUTANTS: dict[str, Callable[[], None]] = {mutant.__name__: mutant for mutant in TAKEN_AWAY}


def main(name: str, seeds: str) -> int:
    if os.environ.get("PYTHONHASHSEED") != NO_HASHES:
        os.environ["PYTHONHASHSEED"] = NO_HASHES
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation.mutants", name, seeds])
    logging.disable(logging.CRITICAL)
    MUTANTS[name]()
    first, _, last = seeds.partition("-")
    for seed in range(int(first), int(last) + 1):
        result = run(seed)
        if result.broken:
            print(f"seed {seed}:", *result.broken[:5], sep="\n  ")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
