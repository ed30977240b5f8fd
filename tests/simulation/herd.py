"""A herd that lives through a `Scenario`, and is then healed: servers, clients, operators and their world."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from types import MappingProxyType
from typing import Final

from goatherd.cluster.server_answers import ServerIdentity
from goatherd.errors import ConflictError, ProviderError, RotationBusyError
from goatherd.identity.document import decode_document, document_tree, encode_document
from goatherd.identity.revocations import commit_digest
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.identity.strict_json import to_pretty_json
from goatherd.identity.transitions import create_document
from goatherd.operations.sign import examine_signature, sign_current, sign_earlier
from goatherd.providers.values import CURRENT, SecretBytes
from goatherd.providers.versioned_record import RecordedVersion, VersionedRecord
from goatherd.remote_keys import RootSigners
from goatherd.rotation.machine import Outcome
from tests.simulation.dice import Dice
from tests.simulation.liar import INVALID, Liar
from tests.simulation.node import SimulatedNode
from tests.simulation.people import Goal, Operator, SimulatedClient
from tests.simulation.restored_store import Restoration, StoreHistory
from tests.simulation.revocations import Order, loot, thiefs_session, uncounted
from tests.simulation.scenario import Command, Fate, Fault, FaultKind, Scenario
from tests.simulation.signers import Trouble, first_word
from tests.simulation.store import NOTICED, digest_of
from tests.simulation.world import FIRST_ROOT, NOTES, SECRET, SESSIONS, World

COMMAND_LIMIT: Final = 120.0
"""Seconds within which every command ends by itself, whatever is wrong: its phases' deadlines, and some more."""
CONVERGED_WITHIN: Final = 120.0
_BUSY: Final = RotationBusyError.code
_STEPS_OF_A_WRITE: Final = 60
_LIFETIME: Final = timedelta(days=90)


class Herd:
    """A simulated herd with its scenario; see the module.

    Args:
        world: The world of the run.
        scenario: The scenario.
        seed: Decides what the scenario leaves open.
    """

    def __init__(self, world: World, scenario: Scenario, seed: int) -> None:
        self.world = world
        self.scenario = scenario
        names = [f"node-{number}" for number in range(scenario.nodes + (scenario.joins_at is not None))]
        urls = [f"http://{name}" for name in names]
        self.nodes = [SimulatedNode(world, name, urls, Dice(seed, name)) for name in names]
        for node, skew in zip(self.nodes, scenario.skews, strict=False):
            node.clock.skew = skew
        dice = Dice(seed, "clients")
        first = self.nodes[: scenario.nodes]
        self.clients = [
            SimulatedClient(world, f"client-{number}", dice.choice(first), Dice(seed, f"client-{number}"))
            for number in range(scenario.clients)
        ]
        self.operators: list[Operator] = []
        self._absence: asyncio.Task[None] | None = None
        self.liar: SimulatedNode | None = None
        if scenario.lie is not None:
            self.liar = self.nodes[scenario.nodes - 1]
            self.liar.liar = Liar(
                scenario.lie, Dice(seed, "liar"), another=self._another_instance, claimed=self._of_thieves
            )

        self.restoration: Restoration | None = None
        if scenario.went_back is not None:
            world.history = StoreHistory(
                world, is_strict=not scenario.faults, is_lineage_believed=not scenario.kind.is_best_effort
            )
            self.restoration = Restoration(self, scenario.went_back, world.history)

    async def found(self) -> None:
        """Create the identity in the store, before any server or client starts."""
        platform, now_ms = self.world.platform, self.world.clock.now_ms()
        root = OwnedSession.generate(session_id=FIRST_ROOT, owner=ROOT_OWNER, now_ms=now_ms, lifetime=_LIFETIME)
        word = await first_word(self.world, root, now_ms) if self.scenario.has_anchor else None
        value = SecretBytes(encode_document(create_document(root, now_ms, word=word)))
        entry = RecordedVersion(created_ms=now_ms, request="", digest=digest_of(value), size=value.size)
        platform.values[1] = value
        platform.become(VersionedRecord(versions=MappingProxyType({1: entry}), labels=MappingProxyType({CURRENT: 1})))

    async def live(self) -> None:
        """Start everything, and perform the scenario until every command has ended."""
        await self.found()
        for node in self.nodes[: self.scenario.nodes]:
            node.start()
        for client in self.clients:
            client.start()
        async with asyncio.timeout(30):
            await self.until(lambda: all(node.is_up for node in self.nodes[: self.scenario.nodes]))
        self.world.platform.trouble.lag = self.scenario.lag
        ended = [asyncio.Event() for _ in self.scenario.commands]
        async with asyncio.TaskGroup() as group:
            if self.scenario.joins_at is not None:
                group.create_task(self._join(self.scenario.joins_at))
            if self.scenario.altered_at is not None:
                group.create_task(self._alter(self.scenario.altered_at))
            if self.restoration is not None:
                group.create_task(self.restoration.happen(ended))
            for fault in self.scenario.faults:
                group.create_task(self._suffer(fault))
            for number, command in enumerate(self.scenario.commands):
                group.create_task(self._obey(number, command, ended))

    async def heal(self) -> None:
        """Repair every fault, and start what is down."""
        world = self.world
        world.trace.tell("world", "everything is mended")
        if self._absence is not None:
            self._absence.cancel()
        world.platform.trouble = type(world.platform.trouble)(lag=min(0.3, self.scenario.lag))
        world.network.trouble = type(world.network.trouble)()
        world.network.mended()
        world.signers.trouble = None
        for node in self.nodes:
            node.clock.skew = timedelta(0)
            if node.process is None:
                node.start()
        if self.liar is not None:
            self.liar.liar = None
        world.is_calm = True
        if self.restoration is not None:
            await self.restoration.find_way_out()
        async with asyncio.timeout(CONVERGED_WITHIN):
            await self.until(lambda: all(node.is_up for node in self.nodes))
        # Calls that hung have failed by then; and of a store whose reads lag, a look right after a crash may show no
        # rotation to resume.
        await asyncio.sleep(max(2 * NOTICED, world.platform.trouble.lag))
        await self._take_back()

    async def command(
        self, name: str, goal: Goal, *, skew: timedelta = timedelta(0), order: Order | None = None
    ) -> Operator:
        """Run one command on the repaired herd, to its end."""
        return await self.operate(name, goal, [node.url for node in self.nodes], order or Order(), skew=skew)

    async def operate(
        self, name: str, goal: Goal, listed: Sequence[str], order: Order, *, skew: timedelta = timedelta(0)
    ) -> Operator:
        """Run one command of an operator who lists these servers, to its end."""
        operator = Operator(self.world, name, skew)
        self.operators.append(operator)
        await self._ended(operator, operator.begin(goal, listed, order))
        return operator

    async def converge(self) -> bool:
        """Wait until all nodes hold the same and can read the store; return whether they did in time."""
        try:
            async with asyncio.timeout(CONVERGED_WITHIN):
                await self.until(self._agrees, every=0.5)
        except TimeoutError:
            return False
        return True

    async def until(self, is_true: Callable[[], bool], *, every: float = 0.1) -> None:
        """Wait for something."""
        while not is_true():
            await asyncio.sleep(every)

    def _agrees(self) -> bool:
        if any(client.waiting for client in self.clients):
            return False
        generation = self.world.promises.documents[-1][1].generation
        held: set[tuple[frozenset[str], ...]] = set()
        without = uncounted(self.nodes, self.world.promises.documents[-1][1])
        for node in self.nodes:
            if node.database is None or node.generation != generation or node.database.status.is_degraded:
                return False
            repositories = node.database.engine.repositories
            held.add(tuple(frozenset(repositories[path].ids) - without for path in (SESSIONS, NOTES)))
        return len(held) == 1

    # --- what happens -------------------------------------------------------------------------------------------------

    async def _join(self, at: float) -> None:
        await asyncio.sleep(at)
        node = self.nodes[self.scenario.nodes]
        self.world.trace.tell(node.name, "joins")
        if node.process is None:
            node.start()

    async def _alter(self, at: float) -> None:
        """Write to the store without a root's key, and change the recorded history."""
        await asyncio.sleep(at)
        async with self.world.store(self.world.clock) as store:
            for _ in range(20):
                try:
                    found = await store.read(SECRET, CURRENT)
                    document = decode_document(found.value.reveal())
                    tree = {**document_tree(document), "generation": document.generation + 1, "history": []}
                    await store.write(SECRET, to_pretty_json(tree), label=CURRENT, expected=found.version.id)
                except ProviderError:
                    await asyncio.sleep(0.3)
                else:
                    self.world.trace.tell("intruder", "has altered the document")
                    return

    async def _take_back(self) -> None:
        """Act as the operator who learns that the document is not signed, and restores the last signed one."""
        self.world.is_repairing = True
        async with self.world.store(self.world.clock) as store:
            while not self.world.promises.documents[-1][1].is_signed:
                examined = await examine_signature(store, SECRET)
                if not examined.document.is_signed:
                    sign = sign_current if examined.signed is None else sign_earlier
                    try:
                        await sign(
                            store,
                            SECRET,
                            examined,
                            ask=_ask_no_server,
                            policy=self.world.policy,
                            clock=self.world.clock,
                            signers=RootSigners(),
                        )
                    except ConflictError:
                        self.world.trace.tell("mender", "meets a conflict")
                await asyncio.sleep(0.5)
        self.world.is_repairing = False

    async def _obey(self, number: int, command: Command, ended: list[asyncio.Event]) -> None:
        try:
            if command.after is not None:
                await ended[command.after].wait()
            await asyncio.sleep(command.at)
            wrong = next((one for one in self.scenario.wrong_clocks if one.command == number), None)
            is_later = wrong is not None and (wrong.step or wrong.before)
            skew = command.skew if wrong is None or is_later else wrong.skew
            is_credulous = wrong is not None and wrong.is_credulous
            operator = Operator(self.world, f"ops-{number}", skew, is_credulous=is_credulous)
            if wrong is not None and wrong.step:
                operator.set_clock_at(wrong.step, wrong.skew)
            elif wrong is not None and wrong.before:
                operator.set_clock_before(wrong.before, wrong.skew, partial(self._cut_short, operator))
            self.operators.append(operator)
            if command.fate is Fate.KILLED:
                operator.kill_at(command.step)
            elif command.fate is Fate.INTERRUPTED:
                operator.cancel_at(command.step)
            known = self.nodes if self._knows_joiner() else self.nodes[: self.scenario.nodes]
            order = Order(quorum=self.scenario.quorum, anchor=command.anchor)
            await self._ended(operator, operator.begin(command.goal, [node.url for node in known], order))
            self._judge(operator, command)
        finally:
            ended[number].set()

    def _cut_short(self, operator: Operator) -> None:
        """Make a server unavailable for longer than any command may wait, and kill an operator's command after its next
        write."""
        away = Fault(kind=FaultKind.CRASH, at=0.0, lasts=COMMAND_LIMIT + 20)
        self._absence = asyncio.create_task(self._suffer(away))
        operator.kill_at(operator.process.steps + _STEPS_OF_A_WRITE)

    def _judge(self, operator: Operator, command: Command) -> None:
        """Check that a lie makes a command fail only as that server's failure. With other faults, nothing is
        checked."""
        scenario, liar = self.scenario, self.liar
        if liar is None or scenario.faults or any(one.fate is not None or one.skew for one in scenario.commands):
            return
        problem = how_it_failed(operator, command.goal, liar.url, scenario)
        if problem is not None:
            self.world.promises.broken.append(f"{operator.name}: {problem}")

    def _another_instance(self) -> str | None:
        return next((node.database.instance for node in self.nodes if node.database is not None), None)

    def _of_thieves(self) -> frozenset[bytes]:
        roots = [loot(self.world, root_id) for root_id in self.world.promises.stolen]
        digests = [commit_digest(thiefs_session(root)) for root in roots if root is not None]
        return frozenset(digest for digest in digests if digest is not None)

    def _knows_joiner(self) -> bool:
        return self.scenario.joiner_listed and self.nodes[-1].lives > 0

    async def _ended(self, operator: Operator, task: asyncio.Task[None]) -> None:
        lives = [node.lives for node in self.nodes]
        _, late = await asyncio.wait({task}, timeout=COMMAND_LIMIT)
        if late:
            self.world.promises.broken.append(f"{operator.name} did not end within {COMMAND_LIMIT:g} s")
            await operator.process.kill()
        if operator.is_left_half_way and self._has_only_blips():
            self.world.promises.broken.append(f"{operator.name} gave up half-way because of blips: {operator.ended}")
        if operator.report is None:
            return
        for node, before in zip(self.nodes, lives, strict=True):
            counted, real = operator.report.restarts.get(node.url) or 0, node.lives - before
            if counted > real:
                self.world.promises.broken.append(
                    f"{operator.name} reports {counted} restarts of {node.name}, which started {real} times"
                )

    def _has_only_blips(self) -> bool:
        """Return whether the store's only faults are single calls that fail."""
        ills = {fault.kind for fault in self.scenario.faults if fault.kind.startswith("store")}
        return ills == {FaultKind.STORE_BLIPS}

    async def _suffer(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at)
        who = self.nodes[fault.machine].name
        if fault.kind.startswith(("store", "signer")):
            who = fault.kind.partition(" ")[0]
        self.world.trace.tell(who, f"fault: {fault.kind}")
        mend = await self._strike(fault)
        await asyncio.sleep(fault.lasts)
        self.world.trace.tell(who, f"over: {fault.kind}")
        done = mend()
        if done is not None:
            await done

    async def _strike(self, fault: Fault) -> Callable[[], Awaitable[None] | None]:
        """Cause a fault; return what ends it."""
        node, trouble = self.nodes[fault.machine], self.world.network.trouble
        match fault.kind:
            case FaultKind.CRASH | FaultKind.RESTART:
                await (node.crash() if fault.kind is FaultKind.CRASH else node.stop())
                return lambda: None if node.process is not None else node.start()
            case FaultKind.CUT_OFF:
                trouble.cut.add(node.name)
                return self._mending(lambda: trouble.cut.discard(node.name))
            case FaultKind.CUT_PAIR:
                pair = (node.name, self.nodes[fault.other].name)
                trouble.cut_pairs.add(pair)
                return self._mending(lambda: trouble.cut_pairs.discard(pair))
            case FaultKind.REFUSING:
                trouble.cut.add(node.name)
                trouble.refusing.add(node.name)
                return self._mending(
                    lambda: trouble.cut.discard(node.name), lambda: trouble.refusing.discard(node.name)
                )
            case FaultKind.SLOW:
                trouble.slow[node.name] = 10 ** (1 + 2 * fault.degree)
                return self._mending(lambda: trouble.slow.pop(node.name, None))
            case FaultKind.LOSES_ANSWERS:
                trouble.loses_answers[node.name] = fault.degree
                return self._mending(lambda: trouble.loses_answers.pop(node.name, None))
            case FaultKind.CLOCK:
                before, node.clock.skew = node.clock.skew, timedelta(seconds=160 * (fault.degree - 0.5))
                return self._mending(lambda: setattr(node.clock, "skew", before))
            case FaultKind.SIGNER_DOWN | FaultKind.SIGNER_DENIED | FaultKind.SIGNER_SLOW | FaultKind.SIGNER_WRONG:
                signers = self.world.signers
                signers.trouble, signers.degree = Trouble(fault.kind.removeprefix("signer ")), fault.degree
                return lambda: setattr(signers, "trouble", None)
        return self._strike_store(fault)

    def _strike_store(self, fault: Fault) -> Callable[[], Awaitable[None] | None]:
        name, trouble = self.nodes[fault.machine].name, self.world.platform.trouble
        match fault.kind:
            case FaultKind.STORE_DOWN | FaultKind.STORE_HANGS:
                trouble.down, trouble.hangs = True, fault.kind is FaultKind.STORE_HANGS
                return self._mending(lambda: setattr(trouble, "down", False), lambda: setattr(trouble, "hangs", False))
            case FaultKind.STORE_CUT:
                trouble.cut.add(name)
                return self._mending(lambda: trouble.cut.discard(name))
            case FaultKind.STORE_THROTTLES:
                trouble.throttles = fault.degree
                return self._mending(lambda: setattr(trouble, "throttles", 0.0))
            case FaultKind.STORE_BLIPS:
                # Longer than the longest pause of a command, so that its next call succeeds.
                trouble.blips = 1.5 + 3 * fault.degree
                return self._mending(lambda: setattr(trouble, "blips", 0.0))
            case FaultKind.STORE_LOSES_ANSWERS:
                trouble.loses_answers = fault.degree
                return self._mending(lambda: setattr(trouble, "loses_answers", 0.0))
            case _:
                trouble.slow = 1 + 100 * fault.degree
                return self._mending(lambda: setattr(trouble, "slow", 1.0))

    def _mending(self, *changes: Callable[[], object]) -> Callable[[], None]:
        def mend() -> None:
            for change in changes:
                change()
            self.world.network.mended()

        return mend


async def _ask_no_server() -> dict[str, ServerIdentity]:
    return {}


def how_it_failed(operator: Operator, goal: Goal, liar: str, scenario: Scenario) -> str | None:
    """Return what is wrong with the end of a command in a herd whose only fault is a liar; None if nothing is."""
    said = operator.ended or "nothing"
    if goal.is_revocation:
        return None if operator.revocation is not None else f"a lie ended a revocation: {said}"
    report = operator.report
    is_outvoted = goal is Goal.ROTATE and scenario.quorum is not None and scenario.lie in INVALID
    if is_outvoted and (report is None or report.outcome is not Outcome.ROTATED):
        return f"a quorum did not outvote a server without a valid answer: {said}"
    if report is None:
        return None if liar in said or _BUSY in said else f"a lie ended {goal} with: {said}"
    if goal is not Goal.ROTATE or report.outcome is Outcome.ROTATED:
        return None
    return (
        None
        if liar in (report.reason or "")
        else f"a lie ended a rotation without the liar being named: {report.reason}"
    )
