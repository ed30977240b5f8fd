"""Tell the path to a broken state, for a reader who knows rotations but not this model.

What it is: numbered lines of plain words. States keep nodes and operators sorted; a story gives them numbers again.
"""

from __future__ import annotations

from typing import Any

from goatherd.rotation.machine import (
    Abandon,
    Action,
    Advance,
    Busy,
    CrossSign,
    Destroy,
    Done,
    Illegal,
    Introduce,
    IntroduceEarlier,
    LabelStable,
    Phase,
    Prepare,
    PrepareRestore,
    Prune,
    Wait,
)

from .anchors import NO_ANCHOR, Choice
from .explorer import Exploration
from .invariants import RULES
from .state import Node, Run
from .store import NAMES, NONE, Store, bits, names
from .world import World


def tell(found: Exploration) -> str:
    """Return the story of what was found; one line where nothing broke."""
    if found.broken is None:
        return "nothing broke"
    world = found.world
    store, runs, nodes, _, _ = world.unpack(found.path[0][0] if found.path else world.first())
    teller = _Teller(world, list(nodes), list(runs))
    lines = ["A signs everywhere; nothing is labelled stable yet."]
    for before, move, after in found.path:
        store = world.unpack(before)[0]
        lines.append(teller.line(store, world.unpack(after)[0], move.what))
    store, runs, nodes, _, signed = world.unpack(found.path[-1][2]) if found.path else world.unpack(world.first())
    numbered = [f"{number:3}. {line}" for number, line in enumerate(lines)]
    ending = [f"     BROKEN ({found.broken}): {RULES[found.broken]}.", f"     {_labels(store)}"]
    ending += [f"     {teller.state_of(at, store)}" for at in range(len(teller.nodes))]
    ending.append(f"     Commits by {names(signed)} have been accepted.")
    return "\n".join([*numbered, *ending])


class _Teller:
    def __init__(self, world: World, nodes: list[Node], runs: list[Run | None]) -> None:
        self.world, self.nodes, self.runs = world, nodes, runs

    def line(self, before: Store, after: Store, what: tuple[Any, ...]) -> str:
        """Return what happened in one move, and whose decisions it has made void."""
        if what[0] == "node":
            return self._node(before, *what[1:])
        if what[0] == "operator":
            said = self._operator(before, after, *what[1:])
        elif what[0] == "time":
            said = "The grace period passes."
        elif what[0] == "outsider":
            at, verb = (bits(what[2]), "on") if what[2] else (bits(what[1]), "off")
            said = (
                f"Another client takes a label {verb} version {at[0]}."
                if verb == "off"
                else (f"Another client puts a label on version {at[0]}.")
            )
        elif what[0] == "altered":
            document = after.docs[what[1]]
            said = f"A writer without a root's key {document.altered}: version {what[1]} is {document.signature}."
        elif what[0] == "taken back":
            content = _content(after, what[1])
            said = f"An operator takes that back by `goatherd restore --signature`: version {what[1]} ({content})."
        elif what[0] == "mute":
            said = "From now on, no signer of an anchor answers any more."
        elif what[0] == "revoked":
            said = f"The anchor revokes the root that signs: version {what[1]} ({_content(after, what[1])})."
        elif what[0] == "stolen":
            how = after.docs[what[1]].stolen
            said = f"The thief of the root that signs writes version {what[1]} ({_content(after, what[1])}): it {how}."
        elif what[0] == "restored":
            said = f"The store is restored from a backup: version {what[1]} ({_content(before, what[1])}) is current."
        else:
            said = f"An intruder writes version {what[1]}: X signs, endorsed by no root."
        for place, run in enumerate(self.runs):
            self.runs[place] = self.world.alive(after, run)
            if self.runs[place] != run:
                said += f" What operator {place + 1} has decided will end in a conflict."
        return said

    def _node(self, store: Store, old: Node, new: Node, kind: str, *about: Any) -> str:
        at = self.nodes.index(old)
        self.nodes[at] = new
        who = self._name(at)
        target = store.target_of(about[0]) if kind in ("introduced", "stores", "crossed") else NONE
        match kind:
            case "takes":
                return f"{who} reads version {about[0]} ({_content(store, about[0])}) and takes it."
            case "restarts":
                return f"{who} restarts with version {about[0]} ({_content(store, about[0])})."
            case "accepts":
                return f"An operator starts {who.lower()} with --accept-identity: it takes version {about[0]}."
            case "introduced":
                return f"The introduction of {NAMES[target]} reaches {who.lower()}, which takes it."
            case "stores":
                return f"The introduction of {NAMES[target]} reaches {who.lower()}, which stores it and does no more."
            case "crossed":
                origin = NAMES[store.origin_of(about[0])]
                return f"The introduction of {origin} by {NAMES[target]} reaches {who.lower()}, which takes it."
            case "waits":
                return f"{who} does not take version {about[1]}, because no signer answers."
            case "earlier":
                root, signer = (NAMES[one] for one in about)
                return f"The introduction of {root} by {signer} reaches {who.lower()}, which takes it."
        return f"{who} goes away permanently."

    def _name(self, at: int) -> str:
        return f"Node {at + 1}" if self.nodes[at].is_listed else f"Node {at + 1} (not listed)"

    def _operator(self, before: Store, after: Store, old: Run | None, new: Run | None, kind: str, *about: Any) -> str:
        at = self.runs.index(old)
        self.runs[at] = new
        who = f"Operator {at + 1}"
        match kind:
            case "begins":
                assert new is not None
                return f"{who} begins: {_goal(new)}."
            case "crashes":
                return f"{who} crashes."
            case "fails":
                return f"{who} does not get through: nothing has changed."
            case "refuses":
                return f"{who} ends: version {about[0]} is {before.docs[about[0]].signature}."
            case "looks":
                version, shown, action = about
                seen = f"version {version} ({_content(before, version)}){self._shown(before, version, shown)}"
                return f"{who} sees {seen}: {_decision(action)}."
            case "waits":
                return f"{who} cannot go on, because no signer answers."
        suffix = {"acts": "", "acts and crashes": " and crashes", "acts unknowingly": "; the reply is lost"}[kind]
        return f"{who} {_deed(before, after, about[0])}{suffix}."

    def _shown(self, store: Store, version: int, shown: tuple[str, ...]) -> str:
        """Say which nodes did not show what is, in the order in which the decision saw them."""
        document = store.docs[version]
        listed = [at for at, node in enumerate(self.nodes) if node.is_listed]
        ordered = sorted(listed, key=lambda at: self.world.sight(store, document, self.nodes[at]))
        words = {"silence": "no answer from", "half": "half an answer from", "refusal": "a refusal from"}
        pairs = zip(ordered, shown, strict=False)
        said = [f"{words[how]} {self._name(at).lower()}" for at, how in pairs if how in words]
        if shown[-1] == "late":
            said.append("after the deadline")
        return "".join(f", {part}" for part in said)

    def state_of(self, at: int, store: Store) -> str:
        node = self.nodes[at]
        crossed = names(node.cross_signatures)
        parts = [
            f"{self._name(at)} uses version {node.version}",
            f"signs with {NAMES[store.docs[node.version].current]}",
            f"trusts {names(self.world.trusted(store, node))}",
            f"holds introductions of {names(node.introductions)} and cross-signatures by {crossed}",
        ]
        return ", ".join(parts) + ("; it is gone." if node.is_dead else ".")


def _content(store: Store, version: int) -> str:
    document = store.docs[version]
    words = f"{document.phase}, generation {document.generation}, {NAMES[document.current]} signs"
    words += f", {NAMES[document.anchor]} is the anchor" if document.anchor != NO_ANCHOR else ""
    return words if document.next == NONE else f"{words}, {NAMES[document.next]} next"


def _labels(store: Store) -> str:
    heads = [f"version {at} ({_content(store, at)}, roots {names(store.docs[at].roots)})" for at in store.heads]
    parts = [f"Current is {' or '.join(heads)}"]
    parts.append("nothing is stable" if store.stable == NONE else f"stable is version {store.stable}")
    if store.head.phase is not Phase.STEADY:
        parts.append(f"version {store.head.rollback} is the one to go back to")
    if store.destroyed:
        parts.append(f"destroyed: {', '.join(map(str, bits(store.destroyed)))}")
    return "; ".join(parts) + "."


def _goal(run: Run) -> str:
    if run.drives:
        return f"{run.goal} rotation {run.drives}"
    if run.restores != NONE:
        return f"restore {NAMES[run.restores]} in place of {NAMES[run.origin]}"
    if run.choice is not Choice.KEEP:
        return f"rotate away from {NAMES[run.origin]}, to {run.choice}"
    return f"rotate away from {NAMES[run.origin]}" if run.origin != NONE else str(run.goal)


def _decision(action: Action) -> str:
    match action:
        case Wait(reason=reason):
            return f"wait until it {reason}"
        case Introduce():
            return "push the introduction of the next root"
        case CrossSign():
            return "push the introduction of the earlier root by the next one"
        case LabelStable(expected=expected):
            return f"label it stable, where {'nothing' if expected is None else 'another version'} is"
        case Prepare():
            return "prepare a rotation"
        case PrepareRestore(root_id=root):
            return f"prepare a rotation back to {root}"
        case Advance(step=step):
            return f"the next step is to {step}"
        case Abandon(step=step):
            return f"{step}"
        case IntroduceEarlier(session_ids=ids):
            return f"push the introduction of {', '.join(ids)} by the root that signs"
        case Prune(session_ids=ids):
            return f"take {', '.join(ids)} out of the document"
        case Destroy(version=version):
            return f"destroy version {version}" if version.isdigit() else f"destroy the {version} version"
        case Done(outcome=outcome):
            return f"the end: {outcome}"
        case Busy():
            return "the end: another operator is at it"
        case Illegal(why=why):
            return f"the end: {why}"
    return str(action)


def _deed(before: Store, after: Store, pending: tuple[Any, ...]) -> str:
    if pending[0] == "label":
        return f"moves label stable to version {pending[1]}"
    if pending[0] == "destroy":
        return f"destroys version {pending[1]}"
    version = len(after.docs) - 1
    base, head = after.docs[version].base, before.heads[-1]
    over = "" if base in before.heads else f", made from version {base}, over version {head} that it has not seen"
    return f"writes version {version} ({_content(after, version)}){over}"
