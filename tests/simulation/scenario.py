"""What goes wrong in a run, when and for how long: drawn from the seed before the run begins.

What it is: `Scenario` as data, `draw`, and the faults that a `Herd` can suffer. What it is not: the expected outcome
(`invariants`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from typing import Final

from goatherd.providers.base import ReadConsistency
from goatherd.rotation.anchor_keys import UNCHANGED, AnchorChoice
from goatherd.rotation.machine import Step
from tests.simulation.dice import Dice
from tests.simulation.liar import Lie
from tests.simulation.people import Goal
from tests.simulation.restored_store import Kind as WentBackKind
from tests.simulation.restored_store import WayOut, WentBack
from tests.simulation.signers import SECOND
from tests.simulation.store import Kind

FAULTS_WITHIN: Final = 5.0
"""Seconds from the beginning within which faults begin."""
LONGEST_FAULT: Final = 5.0
MOST_STEPS: Final = 1500
"""A command is killed or interrupted at a step up to this; a rotation on three healthy nodes has some thousand."""
MOST_SKEW: Final = 80
"""Seconds by which a clock is wrong: two may differ by less than the three minutes that GoatDB allows."""


class FaultKind(StrEnum):
    """One kind of fault."""

    CRASH = "crash"
    RESTART = "restart"
    CUT_OFF = "cut off"
    CUT_PAIR = "cut between"
    REFUSING = "refusing"
    SLOW = "slow"
    LOSES_ANSWERS = "loses answers"
    CLOCK = "clock"
    STORE_DOWN = "store down"
    STORE_HANGS = "store hangs"
    STORE_CUT = "store cut from"
    STORE_THROTTLES = "store throttles"
    STORE_LOSES_ANSWERS = "store loses answers"
    STORE_SLOW = "store slow"
    STORE_BLIPS = "store blips"
    SIGNER_DOWN = "signer down"
    SIGNER_DENIED = "signer denied"
    SIGNER_SLOW = "signer slow"
    SIGNER_WRONG = "signer wrong signature"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        kind: What goes wrong.
        at: When it begins, in seconds.
        lasts: How long it lasts, in seconds.
        machine: The number of the affected node.
        other: The other end, for `FaultKind.CUT_PAIR`.
        degree: Severity, from 0 to 1.
    """

    kind: FaultKind
    at: float
    lasts: float
    machine: int = 0
    other: int = 0
    degree: float = 0.5


class Fate(StrEnum):
    """How a command is interrupted."""

    KILLED = "killed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One operator's command.

    Attributes:
        goal: What the operator wants.
        at: When the command starts, in seconds.
        after: The number of a command that must have ended first; `at` counts from its end.
        fate: How the command is interrupted; None if it is not.
        step: The step at which it is interrupted.
        skew: How wrong the operator's clock is.
        anchor: What a rotation changes about the anchor.
    """

    goal: Goal
    at: float
    after: int | None = None
    fate: Fate | None = None
    step: int = 0
    skew: timedelta = timedelta(0)
    anchor: AnchorChoice = UNCHANGED


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongClock:
    """A clock that is days wrong.

    Attributes:
        command: The number of the command whose clock is wrong.
        skew: How wrong the clock is.
        step: At which of the operator's steps it is set so; 0 from the beginning.
        before: Instead of `step`: right before this step of the rotation, so that the servers have answered
            requests with the right time, and the document records the wrong one. A server then crashes, and the command
            dies before it notices.
        is_credulous: Whether the command compares it with no other clock, as an earlier release did; then it is ahead.
    """

    command: int
    skew: timedelta
    step: int = 0
    before: Step | None = None
    is_credulous: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One run.

    Attributes:
        nodes: How many serve from the beginning.
        joins_at: When one more joins, in seconds; None for never.
        joiner_listed: Whether the operators know of the one that joins.
        clients: How many clients there are.
        kind: The kind of store.
        lag: How old what the store shows may be, in seconds.
        skews: By how much each node's clock is wrong.
        faults: The faults.
        commands: The operators' commands.
        wrong_clocks: Which operators' clocks are days wrong; mended with everything else.
        altered_at: When a writer without a key alters the document, in seconds; None
            for never.
        lie: What one server answers falsely, from the beginning until all is mended; None where all are honest.
        quorum: How many servers must follow the operators' rotations; None for all.
        went_back: How the store goes back to an earlier state; None where it does not.
        has_anchor: Whether the identity has an anchor from the beginning.
        is_robbed: Whether, once all is mended, a thief of the working root writes to the store.
        is_resumed_first: Whether, once all is mended, one operator resumes a rotation before another one does
            with a revocation.
        is_restored: Whether, once all is mended, the previous root must come to sign again where its key is stored.
        is_rotated_again: Whether, once all is mended, a second rotation must come to a good end.
    """

    nodes: int = 3
    joins_at: float | None = None
    joiner_listed: bool = False
    clients: int = 2
    kind: Kind = field(default_factory=Kind)
    lag: float = 0.0
    skews: tuple[timedelta, ...] = ()
    faults: tuple[Fault, ...] = ()
    commands: tuple[Command, ...] = (Command(goal=Goal.ROTATE, at=0.5),)
    wrong_clocks: tuple[WrongClock, ...] = ()
    altered_at: float | None = None
    lie: Lie | None = None
    quorum: int | None = None
    went_back: WentBack | None = None
    has_anchor: bool = False
    is_robbed: bool = False
    is_resumed_first: bool = False
    is_restored: bool = False
    is_rotated_again: bool = True

    def lines(self) -> list[str]:
        """Return the scenario as human-readable lines."""
        lines = [f"{self.nodes} nodes, {self.clients} clients; the store {self.kind}, {self.lag:.1f} s behind"]
        if self.has_anchor:
            lines.append("the identity has an anchor")
        if self.joins_at is not None:
            lines.append(f"one more joins at {self.joins_at:.1f} s, {'listed' if self.joiner_listed else 'unlisted'}")
        if self.altered_at is not None:
            lines.append(f"the document is altered without a key at {self.altered_at:.1f} s")
        lines += [f"node-{n}: clock off by {skew.total_seconds():.1f} s" for n, skew in enumerate(self.skews) if skew]
        for number, command in enumerate(self.commands):
            after = "" if command.after is None else f" after ops-{command.after} has ended"
            fate = "" if command.fate is None else f", {command.fate} at step {command.step}"
            anchor = f" with anchor {command.anchor.signer}" if command.anchor.signer else ""
            anchor += " without an anchor" if command.anchor.is_removed else ""
            lines.append(f"ops-{number}: {command.goal}{anchor} at {command.at:.1f} s{after}{fate}")
        for wrong in self.wrong_clocks:
            days = wrong.skew / timedelta(days=1)
            more = ", compared with no other" if wrong.is_credulous else ""
            since = f"step {wrong.step}" if wrong.before is None else f"the step to {wrong.before}"
            lines.append(f"ops-{wrong.command}: clock off by {days:.1f} days from {since} on{more}")
        if self.went_back is not None:
            lines.append(f"the store goes back: {self.went_back}")
        if self.lie is not None:
            lines.append(f"node-{self.nodes - 1} answers falsely: {self.lie}; quorum: {self.quorum or 'all'}")
        for fault in self.faults:
            lines.append(f"{fault.kind} (node-{fault.machine}) at {fault.at:.1f} s for {fault.lasts:.1f} s")
        return lines


def draw(seed: int) -> Scenario:
    """Draw the scenario of a seed."""
    dice, restoring, altering = Dice(seed, "scenario"), Dice(seed, "restores"), Dice(seed, "alterations")
    nodes = dice.choices([1, 2, 3, 4], [1, 7, 4, 1])[0]
    joins = dice.uniform(0.2, FAULTS_WITHIN) if dice.chance(0.2) else None
    consistency = dice.choice(list(ReadConsistency))
    scenario = Scenario(
        nodes=nodes,
        joins_at=joins,
        joiner_listed=dice.chance(0.5),
        clients=dice.randint(1, 2),
        kind=Kind(consistency=consistency, in_two=dice.chance(0.5), forgets=dice.chance(0.4)),
        lag=dice.uniform(0.1, 2.5) if consistency is not ReadConsistency.STRONG else 0.0,
        skews=tuple(_skew(dice) for _ in range(nodes + 1)) if dice.chance(0.4) else (),
        faults=tuple(_fault(dice, nodes) for _ in range(dice.choices([0, 1, 2, 3, 5], [2, 3, 3, 2, 1])[0])),
        commands=(*_commands(dice), *_restores(restoring)),
        altered_at=altering.uniform(0.3, FAULTS_WITHIN + 3) if altering.chance(0.1) else None,
        is_restored=restoring.chance(0.25),
        is_rotated_again=dice.chance(0.25),
    )
    blips = Dice(seed, "blips")
    if blips.chance(0.15):
        scenario = _with_blips(scenario, blips)
    clocks = Dice(seed, "clocks")
    if clocks.chance(0.2):
        leaps = Dice(seed, "leaps")
        return _with_leap(scenario, leaps) if leaps.chance(0.2) else _with_wrong_clocks(scenario, clocks)
    return _with_anchor(seed, _with_restored_store(seed, _with_liar(seed, _with_theft(seed, scenario))))


def _with_blips(scenario: Scenario, dice: Dice) -> Scenario:
    """Return the scenario with a store in which a single call fails now and then.

    A server is away as well, so that commands wait.
    """
    kept = tuple(fault for fault in scenario.faults if not fault.kind.startswith("store"))
    blips = Fault(kind=FaultKind.STORE_BLIPS, at=0.1, lasts=60.0, degree=dice.random())
    away = Fault(kind=FaultKind.CRASH, at=dice.uniform(0.6, 4), lasts=dice.uniform(5, 20), machine=scenario.nodes - 1)
    return replace(scenario, faults=(*kept, blips, away))


def _with_wrong_clocks(scenario: Scenario, dice: Dice) -> Scenario:
    """Return the scenario with clocks that are days wrong, and with a server that is away for long."""
    commands, faults = scenario.commands, scenario.faults
    if dice.chance(0.5):  # soon after a rotation has come to its end
        commands = (*commands, Command(goal=Goal.RETIRE, at=dice.uniform(0, 3), after=0))
    wrong = []
    for number, command in enumerate(commands):
        if command.goal is Goal.RETIRE or dice.chance(0.5):
            is_credulous = command.goal is not Goal.RETIRE and dice.chance(0.5)
            days = dice.uniform(1, 90) * (1 if is_credulous or dice.chance(0.5) else -1)
            step = 0 if dice.chance(0.4) else dice.randint(1, MOST_STEPS // 3)
            wrong.append(WrongClock(command=number, skew=timedelta(days=days), step=step, is_credulous=is_credulous))
    if dice.chance(0.5):  # longer than any command may wait
        away = Fault(kind=FaultKind.CRASH, at=dice.uniform(1, 8), lasts=dice.uniform(130, 150), machine=0)
        faults = (*faults, away)
    return replace(
        scenario,
        commands=commands,
        faults=faults,
        wrong_clocks=tuple(wrong),
        kind=replace(scenario.kind, is_timeless=dice.chance(0.5)),
    )


def _with_leap(scenario: Scenario, dice: Dice) -> Scenario:
    """Return the scenario with a rotation whose clock leaps ahead in the middle of it, and an operator who resumes it.

    The servers reject requests that are signed with a time days off, so a clock that is wrong for longer than one look
    gets no further than that.
    """
    rotation = Command(goal=Goal.ROTATE, at=dice.uniform(0.1, 1.5))
    wrong = WrongClock(
        command=0,
        skew=timedelta(days=dice.uniform(1, 90)),
        before=dice.choice([Step.PUBLISH, Step.ACTIVATE, Step.VERIFY]),
        is_credulous=True,
    )
    return replace(
        scenario,
        commands=(rotation, Command(goal=Goal.RESUME, at=dice.uniform(0, 2), after=0)),
        faults=scenario.faults if dice.chance(0.5) else (),
        altered_at=None,
        wrong_clocks=(wrong,),
        kind=replace(scenario.kind, is_timeless=dice.chance(0.5)),
    )


def _with_theft(seed: int, scenario: Scenario) -> Scenario:
    """Have a root be revoked in every eighth run, mostly while another operator is at work."""
    dice = Dice(seed, "thefts")
    if not dice.chance(0.125):
        return scenario
    others, commands = len(scenario.commands), list(scenario.commands)
    first = dice.choice([Goal.REVOKE, Goal.REVOKE, Goal.REVOKE_EARLIER])
    if dice.chance(0.6):  # while others are at work
        commands.append(_command(dice, first, at=dice.uniform(0.1, 7), dies=0.5))
    else:
        commands.append(_command(dice, first, at=dice.uniform(0, 2), after=0, dies=0.5))
    if dice.chance(0.3):  # no other operator is
        commands = [replace(commands[-1], after=None)]
        others = 0
    if dice.chance(0.3):  # another one, at the same time or when the first has ended
        after = dice.choice([None, others])
        commands.append(_command(dice, Goal.REVOKE, at=dice.uniform(0.1, 7), after=after, dies=0.5))
    return replace(scenario, commands=tuple(commands), is_resumed_first=dice.chance(0.5))


def _with_liar(seed: int, scenario: Scenario) -> Scenario:
    """Have one of three servers lie in every tenth run. Half of these runs have no other fault."""
    dice = Dice(seed, "lies")
    if not dice.chance(0.1):
        return scenario
    scenario = replace(
        scenario, nodes=3, joins_at=None, lie=dice.choice(list(Lie)), quorum=2 if dice.chance(0.6) else None
    )
    if dice.chance(0.5):
        calm = replace(scenario.commands[0], fate=None, skew=timedelta(0))
        commands = (calm, Command(goal=Goal.REVOKE, at=1.0, after=0)) if dice.chance(0.4) else (calm,)
        return replace(scenario, faults=(), skews=(), lag=0.0, commands=commands, altered_at=None)
    faults = tuple(replace(one, machine=one.machine % 3, other=(one.machine + 1) % 3) for one in scenario.faults)
    return replace(scenario, faults=faults, skews=())


def _with_restored_store(seed: int, scenario: Scenario) -> Scenario:
    """Have the store go back in some runs without a liar. Half of them have no other fault."""
    dice = Dice(seed, "restored stores")
    is_blipping = any(fault.kind is FaultKind.STORE_BLIPS for fault in scenario.faults)
    if not dice.chance(0.1) or scenario.lie is not None or is_blipping:
        return scenario
    backed_up_at = dice.choice([0.0, dice.uniform(0, 2.2)])
    is_after = dice.chance(0.6)
    is_best_effort = dice.chance(0.3)
    went_back = WentBack(
        kind=dice.choice([WentBackKind.BACKUP, WentBackKind.BACKUP, WentBackKind.LABEL]),
        backed_up_at=backed_up_at,
        at=dice.uniform(0, 2) if is_after else backed_up_at + dice.uniform(0.3, 5),
        is_after=is_after,
        forks=dice.choice([0, 1, 2, 2]),
        is_unlisted=not is_best_effort and dice.chance(0.4),
        goal=dice.choice([None, Goal.ROTATE, Goal.ROTATE, Goal.RESTORE, Goal.RESUME, Goal.RETIRE, Goal.REVOKE]),
        asks_at=dice.uniform(0.1, 12),
        way_out=dice.choice(list(WayOut)),
        is_loss_theft=dice.chance(0.3),
    )
    scenario = replace(
        scenario,
        joins_at=None,
        altered_at=None,
        went_back=went_back,
        kind=replace(scenario.kind, is_best_effort=is_best_effort),
        is_rotated_again=True,
    )
    if dice.chance(0.5):
        calm = replace(scenario.commands[0], fate=None, skew=timedelta(0))
        return replace(scenario, faults=(), skews=(), lag=0.0, commands=(calm,))
    return scenario


def _with_anchor(seed: int, scenario: Scenario) -> Scenario:
    """Have an anchor in every tenth run whose servers are honest and whose store does not go back.

    In some, the identity has none at the beginning, and may get one.
    """
    dice = Dice(seed, "the anchor")
    if not dice.chance(0.1) or scenario.lie is not None or scenario.went_back is not None:
        return scenario
    choices = [UNCHANGED, UNCHANGED, AnchorChoice(signer=SECOND), AnchorChoice(is_removed=True)]
    has_anchor = dice.chance(0.7)
    commands = tuple(
        replace(one, anchor=dice.choice(choices if has_anchor else [UNCHANGED, AnchorChoice(signer=SECOND)]))
        for one in scenario.commands
    )
    kinds = [kind for kind in FaultKind if kind.startswith("signer")]
    faults = tuple(
        Fault(kind=dice.choice(kinds), at=dice.uniform(0.0, 3), lasts=dice.uniform(0.5, 8), degree=dice.random())
        for _ in range(dice.choices([0, 1, 2], [4, 4, 2])[0])
    )
    return replace(
        scenario,
        has_anchor=has_anchor,
        commands=commands,
        faults=(*scenario.faults, *faults),
        is_robbed=True,
        is_rotated_again=True,
    )


def _skew(dice: Dice) -> timedelta:
    return timedelta(seconds=dice.choice([0.0, dice.uniform(-1, 1), dice.uniform(-MOST_SKEW, MOST_SKEW)]))


def _fault(dice: Dice, nodes: int) -> Fault:
    machine = dice.randrange(nodes)
    return Fault(
        kind=dice.choice(
            [ill for ill in FaultKind if ill is not FaultKind.STORE_BLIPS and not ill.startswith("signer")]
        ),
        at=dice.uniform(0.1, FAULTS_WITHIN),
        lasts=dice.uniform(0.1, LONGEST_FAULT),
        machine=machine,
        other=(machine + 1) % nodes,
        degree=dice.random(),
    )


def _commands(dice: Dice) -> tuple[Command, ...]:
    commands = [_command(dice, Goal.ROTATE, at=dice.uniform(0.1, 1.5), dies=0.6)]
    if dice.chance(0.4):  # at the same time
        goal = dice.choice([Goal.ROTATE, Goal.ROTATE, Goal.RESUME, Goal.ABANDON, Goal.RETIRE])
        at = commands[0].at + dice.choice([0.0, dice.uniform(0, 0.3), dice.uniform(0, 6)])
        commands.append(_command(dice, goal, at=at, dies=0.3))
    if dice.chance(0.6):  # after the first one has come to its end
        goal = dice.choice([Goal.RESUME, Goal.RESUME, Goal.ROTATE, Goal.ABANDON])
        commands.append(_command(dice, goal, at=dice.uniform(0, 2), after=0, dies=0.3))
    return tuple(commands)


def _restores(dice: Dice) -> tuple[Command, ...]:
    commands = []
    if dice.chance(0.3):  # after the first rotation has come to its end, however it ended
        commands.append(_command(dice, Goal.RESTORE, at=dice.uniform(0, 2), after=0, dies=0.5))
    if dice.chance(0.1):  # while others are at work
        commands.append(_command(dice, Goal.RESTORE, at=dice.uniform(0.1, 7), dies=0.3))
    return tuple(commands)


def _command(dice: Dice, goal: Goal, *, at: float, dies: float, after: int | None = None) -> Command:
    fate = dice.choice(list(Fate)) if dice.chance(dies) else None
    # Half of them early, where the writes are; a run that waits has many more steps than one that does not.
    step = dice.randint(1, MOST_STEPS if dice.chance(0.5) else MOST_STEPS // 3)
    return Command(goal=goal, at=at, after=after, fate=fate, step=step, skew=_skew(dice))
