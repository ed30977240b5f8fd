"""Code from which one protection is taken away: ``python -m tests.simulation.mutants NAME FROM-TO``.

A test of the simulation, which must find each defect. The command prints the story of the first seed that does.
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
from goatherd.cluster import server_answers
from goatherd.errors import DecodeError
from goatherd.identity import lineage, succession, transitions
from goatherd.identity.document import IdentityDocument, sign_document
from goatherd.identity.revocations import FrozenList
from goatherd.identity.session import Session
from goatherd.node import log_storage
from goatherd.revocation import revoker
from goatherd.rotation import clocks, identity_writer, machine, obstacles, repeating_store, rotator, signed_store
from goatherd.rotation.anchor_keys import AnchorChoice
from goatherd.rotation.policy import Quorum
from goatherd.settings import store as store_settings
from goatherd.trust import TrustPool
from tests.simulation.people import Goal
from tests.simulation.run import run
from tests.simulation.scenario import Command, Fault, FaultKind, Scenario
from tests.simulation.signers import SECOND

NO_HASHES = "0"


def activation_without_gates() -> None:
    """The next root signs before the other servers trust it."""
    machine.GATES[machine.Step.ACTIVATE] = ()


def no_wait_for_cross_signatures() -> None:
    """No run waits for the next root's introduction of the previous one, so later clients cannot verify what that one
    signed."""
    machine.GATES[machine.Step.VERIFY] = (machine.Evidence.SIGNS_WITH_NEXT,)


def roll_back_forgets_the_new_root() -> None:
    """A roll-back removes the new root from the document."""
    roll_back = transitions.roll_back_rotation

    def without(document: IdentityDocument, stable: IdentityDocument, *rest: Any, **options: Any) -> IdentityDocument:
        back = roll_back(document, stable, *rest, **options)
        kept = tuple(root for root in back.roots if root.id != document.current.id)
        words = tuple(one for one in back.endorsements if document.current.id not in (one.by, one.of))
        return sign_document(replace(back, roots=kept, endorsements=words, source=None), back.last_updated or 0)

    transitions.roll_back_rotation = without


def answers_before_the_disk() -> None:
    """A server answers before the received commits are on the disk."""

    async def not_at_all(self: Any, *arguments: Any) -> bool:
        return True

    log_storage.GroupCommit.wait_until_durable = not_at_all


def any_generation_is_adopted() -> None:
    """A server adopts a document of any generation that the store shows."""
    store_settings.verify_successor = lambda *given, **options: None


def altered_document_is_followed() -> None:
    """A server that has read a signed document follows an altered one."""
    succession.check_signature = lambda new, seen: None


def altered_document_is_signed() -> None:
    """A command signs a document that was altered by a writer without the key."""

    async def nothing(self: Any, document: IdentityDocument) -> None:
        return None

    signed_store.SignedStoreCheck.check = nothing


def label_stable_is_not_repaired() -> None:
    """The operator who resumes does not repair the label `stable`."""
    machine._repair_label = lambda *arguments: None


def retire_skips_unlabelled_versions() -> None:
    """Retiring looks at labelled versions only, so versions that a killed process has left stay indefinitely."""
    find = rotator.find_holdings

    async def labelled(*arguments: Any, **options: Any) -> Any:
        return tuple([one for one in await find(*arguments, **options) if one.version.labels])

    rotator.find_holdings = labelled


def no_compare_and_swap() -> None:
    """The last writer of the document wins: no compare-and-swap."""

    async def overwrite(self: Any, document: IdentityDocument, expected: str) -> Any:
        _, now = await self._read_identity()
        return await write(self, document, now.id)

    write = rotator.Rotator._write_identity
    rotator.Rotator._write_identity = overwrite


def clocks_are_not_compared() -> None:
    """No clock is compared with another, so `retire` destroys the keys that a roll-back needs."""
    clocks.Clocks.is_ours_wrong = property(lambda self: False)


def future_phase_is_believed() -> None:
    """A phase that was recorded in the future counts from then, so a command waits for months."""
    view, limit = rotator.make_store_view, rotator.limit_times

    def as_recorded(document: IdentityDocument, *arguments: Any, **options: Any) -> Any:
        found = view(document, *arguments, **options)
        record = document.rotation
        return found if record is None else replace(found, phase_since_ms=record.phase_at)

    def without_the_phase(document: IdentityDocument, *arguments: Any, **options: Any) -> IdentityDocument:
        return replace(limit(document, *arguments, **options), rotation=document.rotation)

    rotator.make_store_view = as_recorded
    rotator.limit_times = without_the_phase


def future_time_is_not_corrected() -> None:
    """A wrong timestamp that was recorded is not corrected, so a grace period begins in months."""
    rotator.limit_times = lambda document, *arguments, **options: document


def deadlines_by_the_wall_clock() -> None:
    """Deadlines are measured by the machine's clock, so that an operator who sets the clock moves them."""
    SteadyClock.now_ms = lambda self: self._clock.now_ms()


def store_calls_are_not_repeated() -> None:
    """A call of the store is not repeated, and a later success does not reset the count of failures."""
    repeating_store.TRIES = 1
    source = textwrap.dedent(inspect.getsource(rotator.Rotator._run_rotation))
    single, both = "troubled_since = None  #", "troubled_since, has_write_failed = None, False"
    assert (source.count(single), source.count(both)) == (1, 2)
    source = source.replace(single, "pass  #").replace(both, "pass")
    names: dict[str, Any] = {}
    exec(compile(source, rotator.__file__, "exec"), vars(rotator), names)
    rotator.Rotator._run_rotation = names["_run_rotation"]


def revocation_is_forgotten() -> None:
    """A rotation begins with a document in which no root is revoked."""
    prepare = transitions.prepare_rotation

    def without(*arguments: Any, now_ms: int, **options: Any) -> IdentityDocument:
        return sign_document(replace(prepare(*arguments, now_ms=now_ms, **options), revoked=(), source=None), now_ms)

    transitions.prepare_rotation = without


def revoked_root_is_trusted() -> None:
    """A server continues to trust a revoked root."""
    TrustPool.adopt_document = lambda self, document: self.replace_roots(current=document.current, roots=document.roots)


def frozen_list_is_ignored() -> None:
    """A server accepts what a revoked root signs, even if the frozen list does not contain it."""
    TrustPool._is_frozen = lambda self, commit: commit.session in self._frozen


def older_read_is_trusted() -> None:
    """A command trusts a read that is older than one it has had."""

    async def read(self: Any) -> Any:
        if self._last is not None:
            version, _, digest = self._last
            self._last = version, 0, digest
        return await guarded(self)

    guarded = identity_writer.IdentityWriter.read
    identity_writer.IdentityWriter.read = read


def replacement_introduces_no_root() -> None:
    """A root that replaces a stolen one introduces no earlier root."""

    async def not_at_all(self: Any, *arguments: Any) -> None:
        return None

    revoker.Revoker._introduce_roots = not_at_all


def revoke_skips_unlabelled_versions() -> None:
    """A revocation looks at labelled versions only, and reports that no other version holds the stolen key."""
    find = revoker.find_holdings

    async def labelled(*arguments: Any, **options: Any) -> Any:
        return tuple([one for one in await find(*arguments, **options) if one.version.labels])

    revoker.find_holdings = labelled


def one_server_suffices_for_commits() -> None:
    """Commits of a stolen root count if one server alone claims to hold them."""
    revoker.merge_frozen_lists = lambda lists, **options: FrozenList.union(lists.values())


def invalid_answers_are_used() -> None:
    """Invalid members of a server's answer are used."""
    of = server_answers._Members.of

    def as_it_is(self: Any, name: str, read: Any) -> Any:
        try:
            return of(self, name, read)
        except DecodeError:
            return self._values.get(name)

    server_answers._Members.of = as_it_is


def quorum_is_ignored() -> None:
    """A declared quorum is ignored: the failure of one server stops a rotation."""
    Quorum.needed = lambda self, total: total


def one_server_suffices_in_an_emergency() -> None:
    """In an emergency, too, the report of one server suffices to conclude that the store went back."""
    check = identity_writer.check_store_history

    async def unvoted(*arguments: Any, is_voted: bool = False, **options: Any) -> Any:
        return await check(*arguments, is_voted=False, **options)

    identity_writer.check_store_history = unvoted


def servers_histories_are_not_compared() -> None:
    """No command compares the store with what its servers have used."""

    async def unchecked(document: IdentityDocument, **options: Any) -> IdentityDocument:
        return document

    identity_writer.check_store_history = unchecked
    obstacles._find_contradiction = lambda node, store: None


def equal_version_id_means_unchanged() -> None:
    """A server takes a version for unchanged if its id is the same, although a restored store reuses ids."""
    store_settings._value_digest = lambda found: b""


def documents_record_no_ancestors() -> None:
    """A document does not record which documents it has grown from."""
    lineage.Lineage.followed_by = lambda self, generation, digest: lineage.Lineage()


def lost_root_is_not_noticed() -> None:
    """A server adopts a document that lacks a root which the server knows."""
    succession.find_lost_roots = lambda new, seen, introductions: ()


def anchor_is_ignored() -> None:
    """A server that knows an anchor follows any root that a trusted root has endorsed."""
    verify = succession.verify_succession

    def without(*arguments: Any, anchor: Any = None) -> None:
        verify(*arguments)

    succession.verify_succession = without


def named_anchor_is_adopted() -> None:
    """A server that knows an anchor adopts the anchor named in a document without the known anchor's signature."""
    find = succession.find_anchors

    def with_the_named_one(document: IdentityDocument, anchor: Session) -> Any:
        anchors, released = find(document, anchor)
        named = document.anchor_session
        return anchors | ({} if named is None else {named.id: named}), released

    succession.find_anchors = with_the_named_one


def cancel_needs_the_anchor() -> None:
    """A cancellation or roll-back of a rotation needs a signature of the anchor."""
    abandon = rotator.Rotator._abandon_document

    async def asking(self: Any, document: IdentityDocument, *arguments: Any) -> IdentityDocument:
        if document.anchor is not None:
            await (await self._anchor_keys.open_current(document)).check_signing()
        return await abandon(self, document, *arguments)

    rotator.Rotator._abandon_document = asking


_REMOVED_PROTECTIONS = (
    activation_without_gates,
    no_wait_for_cross_signatures,
    roll_back_forgets_the_new_root,
    answers_before_the_disk,
    any_generation_is_adopted,
    label_stable_is_not_repaired,
    altered_document_is_followed,
    altered_document_is_signed,
    retire_skips_unlabelled_versions,
    no_compare_and_swap,
    clocks_are_not_compared,
    future_phase_is_believed,
    future_time_is_not_corrected,
    deadlines_by_the_wall_clock,
    store_calls_are_not_repeated,
    revocation_is_forgotten,
    revoked_root_is_trusted,
    frozen_list_is_ignored,
    older_read_is_trusted,
    replacement_introduces_no_root,
    revoke_skips_unlabelled_versions,
    one_server_suffices_for_commits,
    invalid_answers_are_used,
    quorum_is_ignored,
    one_server_suffices_in_an_emergency,
    servers_histories_are_not_compared,
    equal_version_id_means_unchanged,
    documents_record_no_ancestors,
    lost_root_is_not_noticed,
    anchor_is_ignored,
    named_anchor_is_adopted,
    cancel_needs_the_anchor,
)
MUTANTS: dict[str, Callable[[], None]] = {mutant.__name__: mutant for mutant in _REMOVED_PROTECTIONS}


DIRECTED: dict[str, Scenario] = {
    "cancel_needs_the_anchor": Scenario(
        has_anchor=True,
        commands=(Command(goal=Goal.ROTATE, at=0.5, anchor=AnchorChoice(signer=SECOND)),),
        faults=(Fault(kind=FaultKind.STORE_CUT, at=0.9, lasts=20.0, machine=1),),
    ),
}
"""Scenarios for mutants that few random runs find. With the protection, no rule is broken in them."""


def main(name: str, seeds: str) -> int:
    if os.environ.get("PYTHONHASHSEED") != NO_HASHES:
        os.environ["PYTHONHASHSEED"] = NO_HASHES
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation.mutants", name, seeds])
    logging.disable(logging.CRITICAL)
    MUTANTS[name]()
    first, _, last = seeds.partition("-")
    for seed in range(int(first), int(last) + 1):
        result = run(seed, DIRECTED.get(name))
        if result.broken:
            print(f"seed {seed}:", *result.broken[:5], sep="\n  ")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
