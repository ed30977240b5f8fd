"""Users of the herd: clients that write all the time, and operators who rotate, restore, resume, abandon, retire and
revoke.

What is real: `goatherd.NodeClient`, sessions and signatures, `goatherd.Rotator` with its observer, and
`goatherd.revocation.revoker.Revoker`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from enum import StrEnum
from typing import Final

from goatherd.errors import GoatherdError, NodeError, NodeRefusedError, UnavailableError
from goatherd.identity.session import OwnedSession, sign_commit
from goatherd.ids import new_id
from goatherd.remote_keys import RootSigners
from goatherd.revocation.report import RevocationReport
from goatherd.rotation.events import (
    ConflictMet,
    Decided,
    Event,
    NodeNotified,
    NodesSeen,
    PhaseEntered,
    Report,
    RevocationStepped,
    RunEnded,
    StoreTroubled,
)
from goatherd.rotation.machine import Advance, IntroduceEarlier, Prepare, Step
from goatherd.rotation.policy import Policy, Quorum
from goatherd.rotation.rotator import Rotator
from goatherd.wire.commit import Commit, new_commit
from tests.simulation.dice import Dice
from tests.simulation.loop import Process
from tests.simulation.machine import MachineClock
from tests.simulation.node import SimulatedNode
from tests.simulation.revocations import Order, revoke
from tests.simulation.signers import FIRST, SECOND
from tests.simulation.world import NOTES, ORG, SECRET, World

_PATIENCE: Final = timedelta(seconds=2)
_WRITE_EVERY: Final = (0.5, 3.0)
_FORBIDDEN: Final = 403
_ANY: Final = timedelta(days=10_000)


class SimulatedClient:
    """A client that got its session from one server and talks to that one only, so that it may never be refused.

    Args:
        world: The world of the run.
        name: The name in the trace.
        home: The server that it uses.
        dice: Decides when it writes.
    """

    def __init__(self, world: World, name: str, home: SimulatedNode, dice: Dice) -> None:
        self.name = name
        self._world = world
        self._home = home
        self._dice = dice
        self._clock = MachineClock(world.loop)
        self._process = Process(world.loop, name)
        self._pending: dict[str, Commit] = {}
        self._written = 0

    @property
    def waiting(self) -> int:
        """How many of its notes no server has acknowledged yet."""
        return len(self._pending)

    def start(self) -> None:
        """Start writing, until the world is calm; offer each note until it is acknowledged."""
        self._process.spawn(self._live(), "live")

    async def leave(self) -> None:
        """Be gone."""
        await self._process.kill()

    async def _live(self) -> None:
        client = self._world.client(self._home.url, self._clock, timeout=_PATIENCE)
        owned = await self._signed_in()
        while True:
            await self._clock.sleep(timedelta(seconds=self._dice.uniform(*_WRITE_EVERY)))
            if not self._world.is_calm:
                commit = self._new_note(owned)
                self._pending[commit.id] = commit
                self._world.promises.wanted[commit.id] = None
            if not self._pending:
                continue
            try:
                await client.push(NOTES, list(self._pending.values()), owned)
            except NodeRefusedError as error:
                # A session that a stolen root has introduced is valid again once another root has introduced it.
                if error.status == _FORBIDDEN and not self._world.promises.stolen:
                    self._world.promises.broken.append(f"{self.name} was refused by {self._home.name}: {error}")
            except NodeError:
                pass
            for commit_id in [one for one in self._pending if one in self._world.promises.written]:
                del self._pending[commit_id]

    async def _signed_in(self) -> OwnedSession:
        client = self._world.client(self._home.url, self._clock, timeout=_PATIENCE)
        while True:
            try:
                owned, _ = await client.create_session()
            except NodeError:
                await self._clock.sleep(timedelta(seconds=0.5))
            else:
                return owned

    def _new_note(self, owned: OwnedSession) -> Commit:
        self._written += 1
        now_ms = self._clock.now_ms()
        draft = new_commit(
            commit_id=new_id(),
            key=f"{self.name}-{self._written}",
            session_id=owned.id,
            ts=now_ms,
            org=ORG,
            data={"title": "by a client"},
            schema_marker="note/1",
            connection=new_id(),
        )
        return sign_commit(owned, draft, now_ms=now_ms)


class Goal(StrEnum):
    """The goal of an operator's command."""

    ROTATE = "rotate"
    RESTORE = "restore"
    RESUME = "resume"
    ABANDON = "abandon"
    RETIRE = "retire"
    REVOKE = "revoke"
    REVOKE_EARLIER = "revoke an earlier root"

    @property
    def is_revocation(self) -> bool:
        """Whether a root was stolen."""
        return self in (Goal.REVOKE, Goal.REVOKE_EARLIER)


class Operator:
    """An operator who runs one command, on a machine with its own clock.

    Args:
        world: The world of the run.
        name: The name in the trace and in the document.
        skew: How wrong the machine's clock is.
        is_credulous: Whether the command compares its clock with no other, as an earlier release did.

    Attributes:
        process: The process of the command.
        report: The report of the command, if it returned.
        revocation: The report of a revocation, if it returned.
        ended: How it ended, human-readable; None while it runs.
        is_left_half_way: Whether it ended because of the store, with a rotation in progress.
    """

    def __init__(self, world: World, name: str, skew: timedelta = timedelta(0), *, is_credulous: bool = False) -> None:
        self.name = name
        self._is_credulous = is_credulous
        self.process = Process(world.loop, f"{name}/1")
        self.report: Report | None = None
        self.revocation: RevocationReport | None = None
        self.ended: str | None = None
        self.is_left_half_way = False
        self._world = world
        self._clock = MachineClock(world.loop, skew)
        self._task: asyncio.Task[None] | None = None
        self._leap: tuple[Step, timedelta, Callable[[], None]] | None = None
        self._decided: object = None

    @property
    def is_running(self) -> bool:
        """Whether the command runs."""
        return self._task is not None and self.ended is None

    def begin(self, goal: Goal, nodes: Sequence[str], order: Order | None = None) -> asyncio.Task[None]:
        """Run a command against the nodes with these URLs; `order` says how."""
        self._world.trace.tell(self.name, f"runs {goal} for {', '.join(one.removeprefix('http://') for one in nodes)}")
        order = order or Order()
        if self._world.history is not None:
            self._world.history.begins(self.name, goal, nodes, order)
        self._task = self.process.spawn(self._run(goal, nodes, order), goal)
        return self._task

    def set_clock_at(self, step: int, skew: timedelta) -> None:
        """Set the clock of the operator's machine at a step."""
        self.process.at_step(step, lambda: self._set_clock(skew))

    def set_clock_before(self, step: Step, skew: timedelta, then: Callable[[], None]) -> None:
        """Set the clock of the machine, and call `then`, once the command has decided on a step of its rotation."""
        self._leap = step, skew, then

    def cancel_at(self, step: int) -> None:
        """Interrupt the command at a step, as Ctrl-C does: it may still clean up."""
        self.process.at_step(step, self._interrupt)

    def kill_at(self, step: int) -> None:
        """Kill the command at a step, as SIGKILL does."""
        self.process.at_step(step, self._kill)

    def _set_clock(self, skew: timedelta) -> None:
        self._world.trace.tell(self.name, f"has a clock that is {skew.total_seconds() / 86_400:.1f} days wrong")
        self._clock.skew = skew

    def _leap_before(self, action: object) -> None:
        if self._leap is not None and isinstance(action, Advance) and action.step is self._leap[0]:
            (_, skew, then), self._leap = self._leap, None
            self._set_clock(skew)
            then()

    def _interrupt(self) -> None:
        if self._task is not None and not self._task.done():
            self._world.trace.tell(self.name, f"is interrupted at step {self.process.steps}")
            self._task.cancel()

    def _kill(self) -> None:
        if self._task is None or self._task.done():
            return
        self._world.trace.tell(self.name, f"is killed at step {self.process.steps}")
        self.process.mark_dead()
        self.ended = "killed"
        self._world.loop.create_task(self.process.kill())

    async def _run(self, goal: Goal, nodes: Sequence[str], order: Order) -> None:
        try:
            if goal.is_revocation:
                self.revocation = await self._revocation(goal, nodes, order)
                self._end("complete" if self.revocation.is_complete else "incomplete")
                return
            self.report = await self._command(goal, nodes, order)
            self._end(f"{self.report.outcome}")
        except asyncio.CancelledError:
            self._end("interrupted")
            raise
        except GoatherdError as error:
            self.is_left_half_way = error.code == UnavailableError.code and "--resume" in error.hint
            self._end(f"{error.code}: {error}")
        except BaseException as error:  # noqa: BLE001 - nothing else may come out of a rotator; here it is a finding
            self._world.promises.broken.append(f"{self.name}: {goal} ended with {error!r}")
            self._end("a bug")

    def _end(self, how: str) -> None:
        if not self.process.is_dead:
            self.ended = how
            self._world.trace.tell(self.name, f"ends: {how} (after {self.process.steps} steps)")

    async def _command(self, goal: Goal, nodes: Sequence[str], order: Order) -> Report:
        async with self._world.store(self._clock) as store:
            rotator = Rotator(
                store,
                SECRET,
                [self._world.client(url, self._clock) for url in nodes],
                org=ORG,
                policy=self._policy(order),
                clock=self._clock,
                started_by=self.name,
                on_event=self._on_event,
                open_signer=self._world.signers.opener(self._clock, self._on_signer),
                signers=RootSigners((FIRST, SECOND)),
            )
            match goal:
                case Goal.ROTATE:
                    return await rotator.rotate(anchor=order.anchor)
                case Goal.RESTORE:
                    return await rotator.restore()
                case Goal.RESUME:
                    return await rotator.resume()
                case Goal.ABANDON:
                    return await rotator.abandon()
                case Goal.RETIRE:
                    return await rotator.retire()
                case _:
                    raise AssertionError(f"{goal} is no rotation")

    def _policy(self, order: Order) -> Policy:
        policy = replace(self._world.policy, distrust=frozenset(order.distrust))
        if self._is_credulous:
            policy = replace(policy, clock_tolerance=_ANY)
        return policy if order.quorum is None else replace(policy, quorum=Quorum(count=order.quorum))

    async def _revocation(self, goal: Goal, nodes: Sequence[str], order: Order) -> RevocationReport:
        async with self._world.store(self._clock) as store:
            clients = [self._world.client(url, self._clock) for url in nodes]
            return await revoke(
                self._world,
                store,
                clients,
                self._clock,
                order,
                earlier=goal is Goal.REVOKE_EARLIER,
                heard=self._on_event,
            )

    def _on_signer(self, call: str) -> None:
        """SECURITY: only the first step of a rotation needs an anchor, so that a roll-back needs none."""
        self._world.trace.detail(self.name, f"asks a signer: {call}")
        if not isinstance(self._decided, Prepare | IntroduceEarlier):
            self._world.promises.broken.append(f"{self.name} asks a signer after it has decided: {self._decided}")

    def _on_event(self, event: Event) -> None:
        if self.process.is_dead:
            return
        trace = self._world.trace
        match event:
            case PhaseEntered():
                trace.tell(self.name, f"sees generation {event.generation}, {event.phase}")
            case Decided():
                trace.detail(self.name, f"decides {event.action}")
                self._decided = event.action
                self._leap_before(event.action)
            case NodeNotified(is_reached=False):
                trace.detail(self.name, f"could not tell {event.url}: {event.problem}")
            case ConflictMet():
                trace.tell(self.name, "meets a conflict")
            case StoreTroubled():
                trace.tell(self.name, f"has trouble with the store: {event.error}")
            case RevocationStepped():
                trace.tell(self.name, f"revokes {event.revoked_id[:8]}: {event.step}, generation {event.generation}")
            case NodesSeen():
                trace.detail(self.name, f"sees {'; '.join(str(node) for node in event.nodes)}")
            case RunEnded() | NodeNotified():
                pass
