"""The same worlds without one protection: the explorer must find the harm that the protection prevents.

What it is: a test of the test. What it is not: a list of everything that could be wrong. `REDUNDANT` are protections
whose loss alone does no harm in any world here, because another one stands behind them; they are listed with that one,
and taken away together with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from unittest.mock import patch

from goatherd.providers.values import CURRENT, STABLE
from goatherd.rotation import machine
from goatherd.rotation.machine import Evidence, Goal, Intent, NodeView, Observation, Phase, Step

from .anchors import Choice
from .configurations import BACK, CHOICES, EMERGENCY, EVERYTHING, RESTORED, UNATTENDED
from .decisions import NEVER
from .explorer import Exploration, explore
from .settings import Options, Removed
from .store import Alteration, Theft

Asked = tuple[Observation, Intent, int]


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A world without one protection.

    Attributes:
        name: The missing protection, in words.
        breaks: The rule that breaks first; None where nothing breaks (a redundant protection).
        allowed: Rules that may break on the way, because they break sooner and are not the point.
    """

    name: str
    breaks: str | None
    options: Options
    removed: Removed
    allowed: frozenset[str] = field(default_factory=frozenset)


ONE = Options(nodes=1, operators=1)
TWO = Options(nodes=2, operators=1)
RIVALS = Options(nodes=1, operators=2)
TWICE = Options(nodes=1, operators=2, rotations=2)
STALE = Options(nodes=2, operators=1, stale_reads=True)
FORGETFUL = replace(STALE, nodes_forget=True)
LABELLED = Options(nodes=1, operators=1, retires_keys=True, foreign_labels=True, goals=EVERYTHING)
WENT_BACK = Options(
    nodes=1,
    operators=1,
    rotations=2,
    store_goes_back=True,
    nodes_reject=False,
    must_reach_steady=False,
    goals=(Goal.ROTATE,),
)
RESTORING = Options(nodes=1, operators=1, rotations=2, goals=BACK)
LEFT_OUT = Options(
    nodes=2,
    operators=1,
    rotations=2,
    prunes_at_once=True,
    begins_with_node_left_out=True,
    nodes_reject=False,
    must_reach_steady=False,
    goals=(Goal.ROTATE,),
)
ALTERED = Options(nodes=1, operators=1, alterations=tuple(Alteration))
ANCHORED = Options(nodes=1, operators=1, anchor_choices=CHOICES, begins_with_anchor=True, signers_stop=True)
RENEWED = Options(nodes=1, operators=1, rotations=2, begins_with_anchor=True, signers_stop=True, goals=BACK)
THIEF = replace(ANCHORED, signers_stop=False, must_reach_steady=False)
RETIRING = Options(nodes=1, operators=1, retires_keys=True, goals=EVERYTHING)


# --- lies: false arguments of `decide` --------------------------------------------------------------------------------


def never_late(observation: Observation, intent: Intent, now_ms: int) -> Asked:
    """The deadline never passes."""
    return observation, intent, min(now_ms, 1)


def no_answer_is_yes(observation: Observation, intent: Intent, now_ms: int) -> Asked:
    """An unknown state counts as confirmed."""

    def shown(node: NodeView) -> NodeView:
        return node if node.reachable else replace(node, trusts_next=True, holds_introduction=True)

    return replace(observation, nodes=tuple(map(shown, observation.nodes))), intent, now_ms


def only_who_answers_counts(observation: Observation, intent: Intent, now_ms: int) -> Asked:
    """Nodes that do not answer are ignored."""
    return replace(observation, nodes=tuple(node for node in observation.nodes if node.reachable)), intent, now_ms


def one_is_enough(observation: Observation, intent: Intent, now_ms: int) -> Asked:
    """Only one node is considered: the most advanced, because nodes are sorted by their state."""
    return replace(observation, nodes=observation.nodes[-1:]), intent, now_ms


def no_clock_is_compared(observation: Observation, intent: Intent, now_ms: int) -> Asked:
    """The operator's clock is trusted without a comparison."""
    return replace(observation, store=replace(observation.store, clock_ahead_ms=None)), intent, now_ms


def stable_is_never_moved(observation: Observation, intent: Intent, now_ms: int) -> Asked:
    """The label ``stable`` always seems to be correct."""
    return replace(observation, store=replace(observation.store, stable=observation.store.version)), intent, now_ms


def every_rotation_is_mine(observation: Observation, intent: Intent, now_ms: int) -> Asked:
    """Every operator resumes any rotation in progress."""
    store = observation.store
    if store.phase is Phase.STEADY or intent.goal is Goal.RETIRE:
        return observation, intent, now_ms
    return observation, replace(intent, rotation_id=store.rotation_id, to_id=store.to_id), now_ms


def any_root_will_do(observation: Observation, intent: Intent, now_ms: int) -> Asked:
    """The current root is replaced, even if the run was started to replace another one."""
    return observation, replace(intent, from_id=observation.store.current_id), now_ms


def it_was_finished(observation: Observation, intent: Intent, now_ms: int) -> Asked:
    """The document does not record how rotations ended; a run only checks which root signs now."""
    is_current = intent.to_id == observation.store.current_id
    finished = frozenset() if intent.rotation_id is None or not is_current else frozenset({intent.rotation_id})
    return replace(observation, store=replace(observation.store, finished=finished)), intent, now_ms


def current_and_stable_are_nothing_special(observation: Observation, intent: Intent, now_ms: int) -> Asked:
    """Retiring ignores which version ``current`` and ``stable`` point at, and treats all keys as retired."""
    if observation.store.phase is not Phase.STEADY or not observation.versions:
        return observation, intent, now_ms
    store = observation.store
    hidden = replace(store, version="?", stable="?", current_id="?")
    return replace(observation, store=hidden), intent, now_ms


def labels_of_others_are_not_seen(observation: Observation, intent: Intent, now_ms: int) -> Asked:
    """Retiring ignores all labels but ``current`` and ``stable``."""
    versions = tuple(
        replace(held, version=replace(held.version, labels=held.version.labels & {CURRENT, STABLE}))
        for held in observation.versions
    )
    return replace(observation, versions=versions), intent, now_ms


def no_server_has_a_history(observation: Observation, intent: Intent, now_ms: int) -> Asked:
    """Servers do not report the generation that they use, nor the digest of its document."""
    nodes = tuple(replace(node, generation=None, digest=None) for node in observation.nodes)
    return replace(observation, nodes=nodes), intent, now_ms


def pushing_without_end(observation: Observation, intent: Intent, now_ms: int) -> Asked:
    """Every look counts as the first, so the deadline starts again and again."""
    return observation, replace(intent, began_ms=now_ms), now_ms


def cancelled_is_nothing_special(observation: Observation, intent: Intent, now_ms: int) -> Asked:
    """A cancelled rotation's remains are ignored."""
    return replace(observation, store=replace(observation.store, cancelled=frozenset())), intent, now_ms


def no_grace_period(observation: Observation, intent: Intent, now_ms: int) -> Asked:
    """Every retired key seems old enough to be destroyed."""
    versions = tuple(replace(version, retired_ms=-NEVER) for version in observation.versions)
    return replace(observation, versions=versions), intent, now_ms


def no_generations(observation: Observation, intent: Intent, now_ms: int) -> Asked:
    """No node reports which document it uses."""
    nodes = tuple(replace(node, generation=None) for node in observation.nodes)
    return replace(observation, nodes=nodes), intent, now_ms


def who_is_silent_holds_it(observation: Observation, intent: Intent, now_ms: int) -> Asked:
    """A node that does not answer is assumed to hold the introductions of the roots that are to leave."""

    def shown(node: NodeView) -> NodeView:
        return node if node.reachable else replace(node, holds_earlier=frozenset(observation.store.leaving))

    return replace(observation, nodes=tuple(map(shown, observation.nodes))), intent, now_ms


def a_quorum_lets_roots_leave(observation: Observation, intent: Intent, now_ms: int) -> Asked:
    """After a rotation, nodes that do not answer are ignored."""
    if observation.store.phase is not Phase.STEADY or intent.rotation_id is None:
        return observation, intent, now_ms
    return only_who_answers_counts(observation, intent, now_ms)


# --- the protections --------------------------------------------------------------------------------------------------


def _gate(step: Step, *kept: Evidence) -> Removed:
    return Removed(gates={step: kept})


MUTANTS = (
    Mutant(
        name="preparing while a node gives no answer", breaks="all answered", options=ONE, removed=_gate(Step.PREPARE)
    ),
    Mutant(name="activating without a gate", breaks="trust", options=STALE, removed=_gate(Step.ACTIVATE)),
    Mutant(
        name="activating before every node is known to hold the introduction",
        breaks="introduced",
        options=ONE,
        removed=_gate(Step.ACTIVATE, Evidence.TRUSTS_NEXT),
    ),
    Mutant(
        name="activating before every node is known to trust the next root",
        breaks="trust",
        options=Options(nodes=2, operators=1, unmodified_nodes=True),
        removed=_gate(Step.ACTIVATE, Evidence.HOLDS_INTRODUCTION),
    ),
    Mutant(
        name="a step after activation that changes the signing root once more",
        breaks="restarts",
        options=ONE,
        removed=Removed(protections=frozenset({"one change of signer"})),
    ),
    Mutant(
        name="verifying before every node is known to sign with the next root",
        breaks="adopted",
        options=TWO,
        removed=_gate(Step.VERIFY, Evidence.HOLDS_CROSS_SIGNATURE),
    ),
    Mutant(
        name="verifying before every node is known to hold the cross-signature",
        breaks="cross-signed",
        options=ONE,
        removed=_gate(Step.VERIFY, Evidence.SIGNS_WITH_NEXT),
    ),
    Mutant(
        name="taking a missing answer for a confirmation",
        breaks="trust",
        options=TWO,
        removed=Removed(lie=no_answer_is_yes),
        allowed=frozenset({"all answered"}),
    ),
    Mutant(
        name="ignoring nodes that do not answer",
        breaks="trust",
        options=TWO,
        removed=Removed(lie=only_who_answers_counts),
        allowed=frozenset({"all answered"}),
    ),
    Mutant(
        name="asking one node only",
        breaks="introduced",
        options=TWO,
        removed=Removed(lie=one_is_enough),
        allowed=frozenset({"all answered"}),
    ),
    Mutant(
        name="pushing the introduction before the phase published is written",
        breaks="introduced listed",
        options=ONE,
        removed=Removed(protections=frozenset({"published first"})),
    ),
    Mutant(
        name="preparing without compare-and-swap",
        breaks="lost write",
        options=TWICE,
        removed=Removed(blind=frozenset({"prepare"})),
    ),
    Mutant(
        name="advancing without compare-and-swap",
        breaks="lost write",
        options=RIVALS,
        removed=Removed(blind=frozenset({"advance"})),
    ),
    Mutant(
        name="abandoning without compare-and-swap",
        breaks="lost write",
        options=RIVALS,
        removed=Removed(blind=frozenset({"abandon"})),
    ),
    Mutant(
        name="labelling stable without compare-and-swap",
        breaks="roll-back possible",
        options=TWICE,
        removed=Removed(blind=frozenset({"label"})),
    ),
    Mutant(
        name="reading current and stable at two different times",
        breaks="roll-back possible",
        options=TWICE,
        removed=Removed(protections=frozenset({"labels read together"})),
    ),
    Mutant(
        name="never labelling stable",
        breaks="roll-back possible",
        options=ONE,
        removed=Removed(lie=stable_is_never_moved),
    ),
    Mutant(
        name="a node that does not compare generations",
        breaks="generation",
        options=STALE,
        removed=Removed(protections=frozenset({"generation"})),
    ),
    Mutant(
        name="a node that follows without endorsements",
        breaks="trust",
        options=Options(nodes=2, operators=1, has_intruder=True, must_reach_steady=False),
        removed=Removed(protections=frozenset({"succession"})),
    ),
    Mutant(
        name="a node that does not check the signature over the whole document",
        breaks="unaltered",
        options=ALTERED,
        removed=Removed(protections=frozenset({"document signature"})),
    ),
    Mutant(
        name="a node that accepts an unsigned document after a signed one",
        breaks="unaltered",
        options=ALTERED,
        removed=Removed(protections=frozenset({"no unsigned document after a signed one"})),
    ),
    Mutant(
        name="a node that accepts any generation",
        breaks="possible generation",
        options=replace(ALTERED, alterations=(Alteration.GENERATION,), begins_unsigned=True),
        removed=Removed(protections=frozenset({"possible generations"})),
    ),
    Mutant(
        name="a run that builds on a document that was altered without the key",
        breaks="signed over",
        options=ALTERED,
        removed=Removed(protections=frozenset({"unaltered base"})),
    ),
    Mutant(
        name="a roll-back that removes the next root from the document",
        breaks="signer listed",
        options=ONE,
        removed=Removed(protections=frozenset({"roots after roll-back"})),
        allowed=frozenset({"introduced listed"}),
    ),
    Mutant(
        name="cancelling a published rotation and removing the next root from the document",
        breaks="introduced listed",
        options=ONE,
        removed=Removed(protections=frozenset({"roots after cancel"})),
    ),
    Mutant(
        name="cancelling a restore and removing the earlier root from the document",
        breaks="signer listed",
        options=RESTORING,
        removed=Removed(protections=frozenset({"roots after a cancelled restore"})),
        allowed=frozenset({"introduced listed"}),
    ),
    Mutant(
        name="restoring a root that has left the document without listing it again",
        breaks="signer listed",
        options=Options(
            nodes=1, operators=1, rotations=3, prunes_at_once=True, begins_after_root_has_left=True, goals=BACK
        ),
        removed=Removed(protections=frozenset({"restored root is listed"})),
    ),
    Mutant(
        name="completing a restore before every node is known to sign with the earlier root",
        breaks="adopted",
        options=replace(RESTORING, nodes=2),
        removed=_gate(Step.VERIFY, Evidence.HOLDS_CROSS_SIGNATURE),
    ),
    Mutant(
        name="taking an older document for the new one, because the same root signs in both",
        breaks="adopted",
        options=RESTORING,
        removed=Removed(lie=no_generations),
    ),
    Mutant(
        name="leaving the private key of a cancelled root in the store",
        breaks="cancelled key",
        options=ONE,
        removed=Removed(lie=cancelled_is_nothing_special),
    ),
    Mutant(
        name="retiring without a grace period",
        breaks="last key",
        options=RETIRING,
        removed=Removed(lie=no_grace_period),
    ),
    Mutant(
        name="leaving the earlier private key in the document",
        breaks="private keys",
        options=ONE,
        removed=Removed(protections=frozenset({"one private key"})),
    ),
    Mutant(
        name="no deadline",
        breaks="steady",
        options=Options(nodes=2, operators=1, nodes_that_stop=1, nodes_reject=False, goals=UNATTENDED),
        removed=Removed(lie=never_late),
        allowed=frozenset({"run ends"}),
    ),
    Mutant(
        name="driving any rotation that is in progress",
        breaks="own rotation",
        options=RIVALS,
        removed=Removed(lie=every_rotation_is_mine),
    ),
    Mutant(
        name="replacing any root that is current",
        breaks="root as asked",
        options=TWICE,
        removed=Removed(lie=any_root_will_do),
    ),
    Mutant(
        name="a run that does not recognize that its own rotation has ended",
        breaks="one rotation a run",
        options=TWICE,
        removed=Removed(protections=frozenset({"own rotation is recognized"})),
    ),
    Mutant(
        name="deriving the outcome of a rotation from the root that signs now",
        breaks="true report",
        options=Options(nodes=0, operators=2, rotations=2, goals=(Goal.ROTATE,)),
        removed=Removed(lie=it_was_finished),
    ),
    Mutant(
        name="a run that accepts an older read than an earlier one",
        breaks="true report",
        options=Options(nodes=1, operators=1, stale_reads=True),
        removed=Removed(protections=frozenset({"highest generation read"})),
    ),
    Mutant(
        name="retiring the versions of current and stable, in a store that allows it",
        breaks="roll-back possible",
        options=RETIRING,
        removed=Removed(lie=current_and_stable_are_nothing_special, protections=frozenset({"label guard"})),
    ),
    Mutant(
        name="retiring the versions of current and stable",
        breaks="run ends",
        options=RETIRING,
        removed=Removed(lie=current_and_stable_are_nothing_special),
    ),
    Mutant(
        name="following a document that has not grown from the one in use and lacks one of its roots",
        breaks="lost root",
        options=WENT_BACK,
        removed=Removed(
            protections=frozenset({"grown documents", "lost roots", "servers' histories"}), lie=no_server_has_a_history
        ),
        allowed=RESTORED | {"store went back", "grown document"},
    ),
    Mutant(
        name="following a document that has not grown from the one in use",
        breaks="grown document",
        options=WENT_BACK,
        removed=Removed(protections=frozenset({"grown documents", "servers' histories"}), lie=no_server_has_a_history),
        allowed=RESTORED | {"store went back"},
    ),
    Mutant(
        name="beginning a rotation without checking which identity the servers have used",
        breaks="store went back",
        options=WENT_BACK,
        removed=Removed(protections=frozenset({"servers' histories"}), lie=no_server_has_a_history),
        allowed=RESTORED,
    ),
    Mutant(
        name="ignoring another tool's label on a version",
        breaks="run ends",
        options=LABELLED,
        removed=Removed(lie=labels_of_others_are_not_seen),
    ),
    Mutant(
        name="ignoring labels of others, in a store that destroys labelled versions",
        breaks="foreign labels",
        options=LABELLED,
        removed=Removed(lie=labels_of_others_are_not_seen, protections=frozenset({"label guard"})),
    ),
    Mutant(
        name="starting the deadline again at each look",
        breaks="run ends",
        options=ONE,
        removed=Removed(lie=pushing_without_end),
    ),
    Mutant(
        name="removing a root from the document before every node is known to hold its introduction",
        breaks="pruned trusted",
        options=LEFT_OUT,
        removed=_gate(Step.PRUNE),
        allowed=frozenset({"introduced"}),
    ),
    Mutant(
        name="removing a root from the document although a node did not answer, as a quorum would allow",
        breaks="pruned trusted",
        options=LEFT_OUT,
        removed=Removed(lie=a_quorum_lets_roots_leave),
        allowed=frozenset({"introduced"}),
    ),
    Mutant(
        name="taking a missing answer for a confirmation when a root leaves the document",
        breaks="pruned trusted",
        options=LEFT_OUT,
        removed=Removed(lie=who_is_silent_holds_it),
        allowed=frozenset({"introduced"}),
    ),
    Mutant(
        name="removing a root from the document without compare-and-swap",
        breaks="lost write",
        options=replace(LEFT_OUT, nodes=1, operators=2, rotations=3),
        removed=Removed(blind=frozenset({"prune"})),
        allowed=frozenset({"introduced"}),
    ),
    Mutant(
        name="writing before every signature of the anchor was made",
        breaks="signed first",
        options=ANCHORED,
        removed=Removed(protections=frozenset({"signed first"})),
    ),
    Mutant(
        name="using a signature of the anchor that was not verified",
        breaks="signed first",
        options=ANCHORED,
        removed=Removed(protections=frozenset({"signature check"})),
    ),
    Mutant(
        name="asking the anchor again at a later step",
        breaks="steady",
        options=ANCHORED,
        removed=Removed(protections=frozenset({"no later signature"})),
        allowed=frozenset({"run ends", "no signer"}),
    ),
    Mutant(
        name="asking the anchor again in order to continue, but not to cancel or roll back",
        breaks="no signer",
        options=ANCHORED,
        removed=Removed(protections=frozenset({"no signature to go on"})),
        allowed=frozenset({"run ends"}),
    ),
    Mutant(
        name="a node that follows a document only while a signer answers",
        breaks="no signer",
        options=ANCHORED,
        removed=Removed(protections=frozenset({"nodes ask no signer"})),
    ),
    Mutant(
        name="a restore that asks the anchor to sign",
        breaks="no signer",
        options=RENEWED,
        removed=Removed(protections=frozenset({"no signature for a restore"})),
    ),
    Mutant(
        name="a restore of a root that the anchor has not endorsed",
        breaks="signed first",
        options=replace(
            RENEWED, begins_with_anchor=False, signers_stop=False, anchor_choices=(Choice.KEEP, Choice.SET)
        ),
        removed=Removed(protections=frozenset({"endorsed to sign again"})),
    ),
    Mutant(
        name="a new anchor that does not sign the roll-back to the previous anchor",
        breaks="steady",
        options=ANCHORED,
        removed=Removed(protections=frozenset({"anchor's roll-back is signed"})),
    ),
    Mutant(
        name="a replaced anchor that does not endorse the next root",
        breaks="steady",
        options=ANCHORED,
        removed=Removed(protections=frozenset({"old anchor endorses next root"})),
    ),
    Mutant(
        name="a revocation by a new anchor that drops the previous anchor's signatures",
        breaks="steady",
        options=replace(ANCHORED, anchor_revokes=True),
        removed=Removed(protections=frozenset({"revocation keeps signatures"})),
        allowed=EMERGENCY,
    ),
    Mutant(
        name="a node that follows a root without the anchor's signature",
        breaks="anchored",
        options=replace(THIEF, thefts=(Theft.ANCHOR, Theft.REMOVAL)),
        removed=Removed(protections=frozenset({"anchor"})),
    ),
    Mutant(
        name="a node that follows another anchor because the document names it",
        breaks="anchored",
        options=replace(THIEF, thefts=(Theft.ANCHOR,)),
        removed=Removed(protections=frozenset({"change of the anchor"})),
    ),
    Mutant(
        name="a node that accepts a working root's endorsement of another root",
        breaks="anchored",
        options=replace(THIEF, thefts=(Theft.ROOT,)),
        removed=Removed(protections=frozenset({"working roots endorse none"})),
    ),
    Mutant(
        name="a node that accepts a revocation without the anchor's signature",
        breaks="anchored",
        options=replace(THIEF, thefts=(Theft.REVOCATION,), begins_with_anchor=False, rotations=2),
        removed=Removed(protections=frozenset({"signed revocations"})),
        allowed=frozenset({"trust"}),
    ),
    Mutant(
        name="a node that accepts a new anchor's signature for a roll-back indefinitely",
        breaks="anchored",
        options=replace(THIEF, thefts=(Theft.WAY_BACK,)),
        removed=Removed(protections=frozenset({"anchor's roll-back ends"})),
    ),
    Mutant(
        name="retiring with a clock that is days ahead of the store's",
        breaks="last key",
        options=replace(RETIRING, wrong_clocks=True),
        removed=Removed(lie=no_clock_is_compared),
    ),
    Mutant(
        name="trusting a phase's recorded time although it is in the future",
        breaks="run ends",
        options=replace(ONE, wrong_clocks=True),
        removed=Removed(protections=frozenset({"recorded times"})),
    ),
)
"""Each is caught, by the rule that it names."""

REDUNDANT = (
    Mutant(
        name="publishing while a node does not answer",
        breaks=None,
        options=TWO,
        removed=_gate(Step.PUBLISH),
    ),
    Mutant(
        name="a store that destroys labelled versions",
        breaks=None,
        options=RETIRING,
        removed=Removed(protections=frozenset({"label guard"})),
    ),
    Mutant(
        name="activating before trust is confirmed, where each node acts on an introduction that it holds",
        breaks=None,
        options=TWO,
        removed=_gate(Step.ACTIVATE, Evidence.HOLDS_INTRODUCTION),
    ),
    Mutant(
        name="a node that does not compare generations, where reads are not stale",
        breaks=None,
        options=TWO,
        removed=Removed(protections=frozenset({"generation"})),
    ),
)
"""Each does no harm alone; see docs/explanation/proof.md for what stands behind it."""


PRICES = (
    Mutant(
        name="a declared quorum, and a node that only the operator cannot reach",
        breaks="introduced",
        options=replace(TWO, quorum=1),
        removed=Removed(),
    ),
    Mutant(
        name="an identity of 0.1.0: a server that has read no signed document yet follows an altered one",
        breaks="trust",
        options=replace(
            ALTERED, nodes=2, alterations=(Alteration.REVOCATION,), begins_unsigned=True, must_reach_steady=False
        ),
        removed=Removed(),
    ),
    Mutant(
        name="an anchor whose replacement or removal was cancelled or rolled back: its signatures for that still count",
        breaks="anchored",
        options=replace(THIEF, thefts=(Theft.ABANDONED,)),
        removed=Removed(),
    ),
    Mutant(
        name="a stolen working root that a server does not know yet: it can revoke another root at that server",
        breaks="trust",
        options=replace(THIEF, thefts=(Theft.REVOCATION,)),
        removed=Removed(),
    ),
    Mutant(
        name="a failing store without compare-and-swap: until the next change, two roots are current",
        breaks="one signer",
        options=Options(nodes=1, operators=2, two_writers_win=True, must_reach_steady=False),
        removed=Removed(),
    ),
    Mutant(
        name="two writers that both win: one write is lost, and the report of its run is wrong",
        breaks="true report",
        options=Options(nodes=1, operators=2, two_writers_win=True, rotations=2, must_reach_steady=False),
        removed=Removed(),
        allowed=frozenset({"one signer"}),
    ),
)
"""Nothing is taken away here: what an operator gives up who chooses this, and the story of it."""


@contextmanager
def taken_away(removed: Removed) -> Iterator[None]:
    """Change the real table of gates for as long as the block lasts."""
    with patch.dict(machine.GATES, removed.gates):
        yield


def explore_mutant(mutant: Mutant) -> Exploration:
    """Explore a world without one protection, up to the first rule that breaks."""
    with taken_away(mutant.removed):
        return explore(mutant.options, mutant.removed, allowed=mutant.allowed)
