"""The rotation as tables: its phases, its steps, which step is legal where, and what must be seen before it.

Pure data. Everybody reads these tables from `goatherd.rotation.machine`, which alone acts by them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Phase(StrEnum):
    """What the identity document records; `STEADY` is the absence of a rotation."""

    STEADY = "steady"
    PREPARED = "prepared"
    PUBLISHED = "published"
    ACTIVATED = "activated"
    VERIFIED = "verified"


class Step(StrEnum):
    """A write of the document that moves the phase; `PRUNE` leaves it where it is."""

    PREPARE = "prepare"
    PUBLISH = "publish"
    ACTIVATE = "activate"
    VERIFY = "verify"
    FINALIZE = "finalize"
    CANCEL = "cancel"
    ROLL_BACK = "roll back"
    PRUNE = "prune"


class Evidence(StrEnum):
    """Something that one node was, or was not, seen to do."""

    ANSWERS = "answers a request signed by the current root"
    HOLDS_INTRODUCTION = "holds the introduction of the next root"
    TRUSTS_NEXT = "answers a request signed by the next root"
    SIGNS_WITH_NEXT = "signs with the next root"
    HOLDS_CROSS_SIGNATURE = "holds the introduction of the earlier root, signed by the next one"
    HOLDS_EARLIER = "holds the introduction of a root that leaves the document, signed by the current one"


STEPS: Final[dict[tuple[Phase, Step], Phase]] = {
    (Phase.STEADY, Step.PREPARE): Phase.PREPARED,
    (Phase.STEADY, Step.PRUNE): Phase.STEADY,
    (Phase.PREPARED, Step.PUBLISH): Phase.PUBLISHED,
    (Phase.PREPARED, Step.CANCEL): Phase.STEADY,
    (Phase.PUBLISHED, Step.ACTIVATE): Phase.ACTIVATED,
    (Phase.PUBLISHED, Step.CANCEL): Phase.STEADY,
    (Phase.ACTIVATED, Step.VERIFY): Phase.VERIFIED,
    (Phase.ACTIVATED, Step.ROLL_BACK): Phase.STEADY,
    (Phase.VERIFIED, Step.FINALIZE): Phase.STEADY,
    (Phase.VERIFIED, Step.ROLL_BACK): Phase.STEADY,
}
"""The legal steps. Tests print, walk and exhaust this table."""

GATES: Final[dict[Step, tuple[Evidence, ...]]] = {
    # Nothing is written before every server has answered: a server that is down would cancel the rotation later, and
    # one of another identity would take no part in it at all.
    Step.PREPARE: (Evidence.ANSWERS,),
    # "published" is written first and pushed after, so that B is unknown to every node while it can still be forgotten.
    # From then on it stays trusted for good; so nobody is told of it who would have it cancelled anyhow.
    Step.PUBLISH: (Evidence.ANSWERS,),
    # SECURITY: signing before being trusted. A node that signs with B before the others know B loses commits
    # (tests/unit/rotation/test_hazards.py).
    Step.ACTIVATE: (Evidence.TRUSTS_NEXT, Evidence.HOLDS_INTRODUCTION),
    # Without the cross-signature nobody who comes after A's expiry can verify A's commits.
    Step.VERIFY: (Evidence.SIGNS_WITH_NEXT, Evidence.HOLDS_CROSS_SIGNATURE),
    Step.FINALIZE: (),
    Step.CANCEL: (),
    Step.ROLL_BACK: (),
    # SECURITY: a node that does not hold it would refuse what that root has signed, from its next restart on. No quorum
    # excuses a node here: nothing is lost by a root that stays (tests/unit/rotation/test_pruning.py).
    Step.PRUNE: (Evidence.HOLDS_EARLIER,),
}
"""What must hold on every listed node before a step. Leaving a rotation needs nobody's consent."""

SETTLED: Final[dict[Phase, frozenset[Evidence]]] = {
    Phase.PUBLISHED: frozenset({Evidence.HOLDS_INTRODUCTION, Evidence.TRUSTS_NEXT}),
    Phase.ACTIVATED: frozenset({Evidence.SIGNS_WITH_NEXT}),
}
"""What a run that shall stop in a phase waits for before it says that the phase is reached."""

FORWARD: Final[dict[Phase, Step]] = {
    Phase.STEADY: Step.PREPARE,
    Phase.PREPARED: Step.PUBLISH,
    Phase.PUBLISHED: Step.ACTIVATE,
    Phase.ACTIVATED: Step.VERIFY,
    Phase.VERIFIED: Step.FINALIZE,
}
"""The step that carries a rotation on from each phase."""

BACKWARD: Final[dict[Phase, Step]] = {
    Phase.PREPARED: Step.CANCEL,
    Phase.PUBLISHED: Step.CANCEL,
    Phase.ACTIVATED: Step.ROLL_BACK,
    Phase.VERIFIED: Step.ROLL_BACK,
}
"""The step that leaves a rotation from each phase: cancel where B has not signed yet, else roll back."""


def after(phase: Phase, step: Step) -> Phase:
    """Return the phase that `step` leads to.

    Raises:
        KeyError: The step is not legal in this phase.
    """
    return STEPS[phase, step]
