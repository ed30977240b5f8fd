"""The worlds to explore, in the fast and in the slow tests, and which rules may break in each.

The fast ones run with every ``make test-fast``; all of them take minutes on one slow core.
"""

from __future__ import annotations

from dataclasses import dataclass

from goatherd.rotation.machine import Goal

from .anchors import Choice
from .settings import Options
from .store import Alteration, Theft

BACK = (Goal.ROTATE, Goal.RESTORE, Goal.RESUME, Goal.ABANDON)
EVERYTHING = (Goal.ROTATE, Goal.RESUME, Goal.ABANDON, Goal.RETIRE)
UNATTENDED = (Goal.ROTATE, Goal.RESUME)
CHOICES = tuple(Choice)
THEFTS = tuple(one for one in Theft if one is not Theft.ABANDONED)
EMERGENCY = frozenset({"trust", "introduced", "restarts"})
"""What a revocation breaks: it waits for no server."""
RESTORED = frozenset(
    {"signer listed", "introduced listed", "adopted", "cross-signed", "lost write", "roll-back possible"}
)
"""What a restore itself breaks: what it takes away, labels too, and what is written over an id that is given again."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One world with a name.

    Attributes:
        about: Human-readable description of what it adds.
        is_slow: Whether it takes more than a second or two.
        is_by_hand: Whether it takes so long that only ``python -m tests.model --all`` runs it.
        allowed: Rules that do not hold in it; docs/explanation/proof.md says why.
    """

    name: str
    about: str
    options: Options
    is_slow: bool = False
    is_by_hand: bool = False
    allowed: frozenset[str] = frozenset()


CONFIGURATIONS = (
    Configuration(name="one node", about="one node, one operator", options=Options(nodes=1, operators=1)),
    Configuration(name="two nodes", about="two nodes, one operator", options=Options(nodes=2, operators=1)),
    Configuration(
        name="four nodes", about="four nodes, one operator", options=Options(nodes=4, operators=1), is_slow=True
    ),
    Configuration(name="two operators, one node", about="two operators at once", options=Options(nodes=1, operators=2)),
    Configuration(
        name="two operators, two nodes",
        about="two operators at once",
        options=Options(nodes=2, operators=2),
        is_slow=True,
    ),
    Configuration(
        name="two operators, three nodes",
        about="two operators at once",
        options=Options(nodes=3, operators=2),
        is_slow=True,
    ),
    Configuration(
        name="two operators, four nodes",
        about="two operators at once",
        options=Options(nodes=4, operators=2),
        is_slow=True,
    ),
    Configuration(
        name="two rotations",
        about="a second rotation, whatever the outcome of the first",
        options=Options(nodes=1, operators=2, rotations=2),
        is_slow=True,
    ),
    Configuration(
        name="two rotations, two nodes",
        about="a second rotation, one operator",
        options=Options(nodes=2, operators=1, rotations=2),
        is_slow=True,
    ),
    Configuration(
        name="a restore",
        about="after a rotation, whatever its outcome, an earlier root is restored",
        options=Options(nodes=1, operators=1, rotations=2, goals=BACK),
    ),
    Configuration(
        name="a restore, two nodes",
        about="an earlier root is restored",
        options=Options(nodes=2, operators=1, rotations=2, goals=BACK),
        is_slow=True,
    ),
    Configuration(
        name="a restore, two operators",
        about="an earlier root is restored, two operators at once",
        options=Options(nodes=1, operators=2, rotations=2, goals=BACK),
        is_slow=True,
    ),
    Configuration(
        name="a restore, three rotations",
        about="rotate, restore, and then rotate or restore once more",
        options=Options(nodes=1, operators=1, rotations=3, goals=BACK),
        is_slow=True,
    ),
    Configuration(
        name="a restore, stale reads",
        about="an earlier root is restored, and every read may show any earlier state",
        options=Options(nodes=1, operators=1, rotations=2, stale_reads=True, goals=BACK),
        is_slow=True,
    ),
    Configuration(
        name="a restore, unmodified servers",
        about="an earlier root is restored; a node may store an introduction without acting on it",
        options=Options(nodes=1, operators=1, rotations=2, unmodified_nodes=True, nodes_forget=True, goals=BACK),
        is_slow=True,
    ),
    Configuration(
        name="a restore, retiring",
        about="an earlier root is restored, while old keys are destroyed",
        options=Options(nodes=1, operators=1, rotations=2, retires_keys=True, goals=(*BACK, Goal.RETIRE)),
        is_slow=True,
    ),
    Configuration(
        name="stale reads",
        about="every read may show any earlier state",
        options=Options(nodes=2, operators=1, stale_reads=True),
        is_slow=True,
    ),
    Configuration(
        name="stale reads, two operators",
        about="every read may show any earlier state",
        options=Options(nodes=1, operators=2, stale_reads=True),
        is_slow=True,
    ),
    Configuration(
        name="stale reads, two operators, two nodes",
        about="every read may show any earlier state",
        options=Options(nodes=2, operators=2, stale_reads=True),
        is_slow=True,
    ),
    Configuration(
        name="stale reads, three nodes",
        about="every read may show any earlier state",
        options=Options(nodes=3, operators=1, stale_reads=True),
        is_slow=True,
    ),
    Configuration(
        name="forgetful nodes",
        about="stale reads, and a restart forgets what the node has seen",
        options=Options(nodes=2, operators=1, stale_reads=True, nodes_forget=True),
        is_slow=True,
    ),
    Configuration(
        name="forgetful nodes, two operators",
        about="stale reads, and a restart forgets what the node has seen",
        options=Options(nodes=1, operators=2, stale_reads=True, nodes_forget=True),
        is_slow=True,
    ),
    Configuration(
        name="unmodified servers",
        about="a node may store an introduction without acting on it, as GoatDB can",
        options=Options(nodes=2, operators=1, unmodified_nodes=True, nodes_forget=True),
        is_slow=True,
    ),
    Configuration(
        name="an unlisted server",
        about="a node that the rotation does not know",
        options=Options(nodes=2, operators=1, unlisted=1),
        is_slow=True,
    ),
    Configuration(
        name="a node dies, no operator is there",
        about="one node stops permanently, and no operator cancels: deadlines alone must lead to steady",
        options=Options(nodes=3, operators=1, nodes_that_stop=1, nodes_reject=False, goals=UNATTENDED),
        is_slow=True,
    ),
    Configuration(
        name="retiring",
        about="operators retire, and the grace period passes at any time",
        options=Options(nodes=1, operators=2, retires_keys=True, goals=EVERYTHING),
        is_slow=True,
    ),
    Configuration(
        name="wrong clocks",
        about="operators retire; at any look, a clock is days ahead or behind, or a phase was recorded in the future",
        options=Options(nodes=1, operators=1, retires_keys=True, wrong_clocks=True, goals=EVERYTHING),
    ),
    Configuration(
        name="wrong clocks, no operator is there",
        about="operators retire with a wrong clock, and one node stops permanently: deadlines alone must lead to"
        " steady",
        options=Options(
            nodes=2, operators=1, nodes_that_stop=1, nodes_reject=False, wrong_clocks=True, goals=UNATTENDED
        ),
    ),
    Configuration(
        name="labels of others",
        about="operators retire, while another tool labels any version and removes the label",
        options=Options(nodes=1, operators=1, retires_keys=True, foreign_labels=True, goals=EVERYTHING),
    ),
    Configuration(
        name="earlier roots leave",
        about="roots leave the document as soon as every node holds their introduction",
        options=Options(nodes=1, operators=1, rotations=2, prunes_at_once=True),
        is_slow=True,
    ),
    Configuration(
        name="earlier roots leave, after a node was left out",
        about="by a quorum, a first rotation has continued without one node, which lacks the introduction of B",
        options=Options(
            nodes=2, operators=1, rotations=2, prunes_at_once=True, begins_with_node_left_out=True, nodes_reject=False
        ),
        allowed=frozenset({"introduced"}),
        is_slow=True,
    ),
    Configuration(
        name="a root that has left signs again",
        about="after two rotations A has left the document; one of the earlier roots is restored",
        options=Options(
            nodes=2, operators=1, rotations=3, prunes_at_once=True, begins_after_root_has_left=True, goals=BACK
        ),
        is_slow=True,
    ),
    Configuration(
        name="an anchor",
        about="the working root is renewed, or the anchor replaced or removed; signers fail, also permanently",
        options=Options(nodes=1, operators=1, anchor_choices=CHOICES, begins_with_anchor=True, signers_stop=True),
    ),
    Configuration(
        name="an anchor is added",
        about="the identity has no anchor, and may get one; signers fail, also permanently",
        options=Options(nodes=1, operators=1, anchor_choices=CHOICES, signers_stop=True),
    ),
    Configuration(
        name="an anchor, two nodes",
        about="the working root is renewed, or the anchor replaced or removed; signers fail, also permanently",
        options=Options(nodes=2, operators=1, anchor_choices=CHOICES, begins_with_anchor=True, signers_stop=True),
        is_slow=True,
    ),
    Configuration(
        name="an anchor, two operators",
        about="two operators at once renew the working root, replace the anchor or remove it",
        options=Options(nodes=1, operators=2, anchor_choices=CHOICES, begins_with_anchor=True),
        is_slow=True,
    ),
    Configuration(
        name="an anchor, stale reads",
        about="one operator renews the working root, replaces the anchor or removes it, and every read may show"
        " any earlier state",
        options=Options(nodes=1, operators=1, anchor_choices=CHOICES, begins_with_anchor=True, stale_reads=True),
        is_slow=True,
    ),
    Configuration(
        name="an anchor, two rotations",
        about="an anchor is added, and then replaced or removed, whatever the outcome of the first rotation",
        options=Options(nodes=1, operators=1, rotations=2, anchor_choices=CHOICES, signers_stop=True),
        is_slow=True,
    ),
    Configuration(
        name="an anchor, a restore",
        about="the working root is renewed, the anchor replaced or removed; then an earlier root is restored",
        options=Options(
            nodes=1,
            operators=1,
            rotations=2,
            anchor_choices=CHOICES,
            begins_with_anchor=True,
            signers_stop=True,
            goals=BACK,
        ),
        is_slow=True,
    ),
    Configuration(
        name="an anchor is added, a restore",
        about="the identity has no anchor and may get one, and then an earlier root is restored",
        options=Options(nodes=1, operators=1, rotations=2, anchor_choices=CHOICES, signers_stop=True, goals=BACK),
        is_slow=True,
    ),
    Configuration(
        name="an anchor, a restore, two operators",
        about="an earlier working root is restored, two operators at once",
        options=Options(nodes=1, operators=2, rotations=2, begins_with_anchor=True, goals=BACK),
        is_slow=True,
    ),
    Configuration(
        name="an anchor revokes",
        about="once, the anchor revokes the root that signs, at any time",
        options=Options(
            nodes=1,
            operators=1,
            anchor_choices=CHOICES,
            begins_with_anchor=True,
            anchor_revokes=True,
            signers_stop=True,
        ),
        allowed=EMERGENCY,
        is_slow=True,
    ),
    Configuration(
        name="a thief of a working root",
        about="once, a thief of the current root's key writes to the store; nodes must not follow the roots it names",
        options=Options(
            nodes=1,
            operators=1,
            anchor_choices=CHOICES,
            begins_with_anchor=True,
            thefts=THEFTS,
            must_reach_steady=False,
        ),
        allowed=frozenset({"trust"}),
        is_slow=True,
    ),
    Configuration(
        name="a thief of a working root, a restore",
        about="once, a thief of the current root's key writes to the store after a renewal, and an earlier root is"
        " restored",
        options=Options(
            nodes=1,
            operators=1,
            rotations=2,
            goals=BACK,
            begins_with_anchor=True,
            thefts=THEFTS,
            nodes_reject=False,
            must_reach_steady=False,
        ),
        allowed=frozenset({"trust"}),
        is_slow=True,
    ),
    Configuration(
        name="an intruder",
        about="an attacker without a root's key writes to the store; nodes must not follow",
        options=Options(nodes=2, operators=1, has_intruder=True, must_reach_steady=False),
    ),
    Configuration(
        name="a writer without the key",
        about="once, a writer without a root's key alters what no chain covers; operators reject or revert that",
        options=Options(nodes=2, operators=1, alterations=tuple(Alteration)),
        is_slow=True,
    ),
    Configuration(
        name="a writer without the key, an identity of 0.1.0",
        about="once, the generation is raised further than rotations can, also while the identity is not signed yet",
        options=Options(nodes=1, operators=1, alterations=(Alteration.GENERATION,), begins_unsigned=True),
    ),
    Configuration(
        name="a restored store",
        about="once, the store goes back to any earlier state, and gives the same version ids again",
        options=Options(
            nodes=1, operators=1, rotations=2, store_goes_back=True, nodes_reject=False, must_reach_steady=False
        ),
        allowed=RESTORED,
        is_slow=True,
    ),
    Configuration(
        name="two writers win",
        about="a failing store without compare-and-swap: once, two writers both win",
        options=Options(nodes=1, operators=2, two_writers_win=True, must_reach_steady=False),
        allowed=frozenset({"one signer"}),
        is_slow=True,
    ),
    Configuration(
        name="two writers win, two nodes",
        about="a failing store without compare-and-swap: once, two writers both win",
        options=Options(nodes=2, operators=2, two_writers_win=True, must_reach_steady=False),
        allowed=frozenset({"one signer"}),
        is_slow=True,
    ),
    Configuration(
        name="two writers win, and a rotation after it",
        about="a failing store without compare-and-swap: the next change decides which write wins",
        options=Options(nodes=1, operators=2, two_writers_win=True, rotations=2, goals=(Goal.ROTATE, Goal.ABANDON)),
        is_by_hand=True,
        allowed=frozenset({"one signer", "true report", "one rotation a run"}),
    ),
)
