"""The check before each write: whether the store holds what servers report that they use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from goatherd.cluster.server_answers import ServerIdentity
from goatherd.errors import DecodeError, NodeUnreachableError, StoreWentBackError
from goatherd.identity.document import IdentityDocument, Phase, document_digest, encode_document
from goatherd.providers.memory import MemorySecretProvider, MemoryStore
from goatherd.providers.values import CURRENT
from goatherd.rotation.machine import Outcome
from goatherd.rotation.obstacles import ObstacleKind
from goatherd.rotation.rotator import Rotator
from goatherd.rotation.store_history import find_contradictions
from tests.fakes.herd import Herd
from tests.unit.identity.make import first, owned, prepared, rotated
from tests.unit.rotation.conftest import POLICY, MakeHerd, document_of, rotator_for
from tests.unit.rotation.test_held_up import HeldUp

URL = "http://node-0"


def says(document: IdentityDocument, **changed: Any) -> dict[str, Any]:
    answer = {
        "org": "localhost",
        "signer": document.current.id,
        "roots": [root.id for root in document.roots],
        "generation": document.generation,
        "digest": document_digest(document),
    }
    return answer | changed


def read(answer: dict[str, Any]) -> ServerIdentity:
    found = ServerIdentity.from_json(answer)
    assert found is not None
    return found


def kinds(stored: IdentityDocument, answer: dict[str, Any], *distrust: str) -> list[ObstacleKind]:
    return [one.kind for one in find_contradictions({URL: read(answer)}, stored, distrust)]


def test_a_server_that_uses_what_the_store_holds_or_held_before_is_no_contradiction() -> None:
    chain = [first()]
    for name in ("b", "c"):
        chain += [prepared(chain[-1], name), rotated(chain[-1], name)]
    del chain[3]  # its rotation was prepared anew
    del chain[1]
    for used in chain:
        assert kinds(chain[-1], says(used)) == []


def test_a_later_generation_and_another_document_with_the_same_are() -> None:
    before = rotated(first(), "b")
    assert kinds(first(), says(before)) == [ObstacleKind.STORE_BEHIND]
    assert kinds(rotated(first(), "d"), says(before)) == [ObstacleKind.FORKED]
    assert kinds(rotated(rotated(first(), "d"), "e"), says(before)) == [ObstacleKind.FORKED]
    assert kinds(rotated(before, "d"), says(before)) == []


def test_beyond_the_named_predecessors_nothing_is_known_and_nothing_is_claimed() -> None:
    stored, used = first(), rotated(first(), "x")
    for name in ("b", "c", "d", "e", "f"):
        stored = rotated(stored, name)
    assert stored.lineage is not None
    assert stored.lineage.digest_of(used.generation) is None
    assert kinds(stored, says(used)) == []


@pytest.mark.parametrize(
    "changed", [{"generation": None}, {"roots": None}, {"roots": ["another-identity"]}, {"roots": []}]
)
def test_what_says_nothing_of_this_identity_stops_nothing(changed: dict[str, Any]) -> None:
    assert kinds(first(), says(rotated(first(), "b"), **changed)) == []


def test_a_server_that_has_revoked_the_only_root_of_a_backup_is_no_server_of_another_identity() -> None:
    """The server trusts none of the roots in the store any more; only the revoked root shows that both belong
    together."""
    after = says(rotated(first(), "b"), roots=["b"], revoked=[first().current.id])
    assert kinds(first(), after) == [ObstacleKind.STORE_BEHIND]
    assert kinds(first(), {**after, "revoked": ["another-identity"]}) == []


def test_a_server_that_does_not_say_the_digest_is_compared_by_generation() -> None:
    before = rotated(first(), "b")
    assert kinds(rotated(first(), "d"), says(before, digest=None)) == []
    assert kinds(first(), says(before, digest=None)) == [ObstacleKind.STORE_BEHIND]


@pytest.mark.parametrize("digest", [7, "", "x" * 64, "A" * 64, "a" * 63, ["x"]])
def test_an_invalid_digest_makes_the_whole_answer_invalid(digest: object) -> None:
    with pytest.raises(DecodeError, match="digest"):
        read(says(first(), digest=digest))


def test_a_server_that_lies_is_overruled_by_name() -> None:
    lie = says(first(), generation=2**53 - 1)
    assert kinds(first(), lie) == [ObstacleKind.STORE_BEHIND]
    assert kinds(first(), lie, URL) == []
    assert kinds(first(), lie, "http://another") == [ObstacleKind.STORE_BEHIND]


def test_in_an_emergency_one_that_lies_is_outvoted_and_a_restored_store_is_not() -> None:
    stored, later = says(first()), says(rotated(first(), "b"))

    def found(*answers: dict[str, Any]) -> int:
        named = {f"http://node-{at}": read(answer) for at, answer in enumerate(answers)}
        return len(find_contradictions(named, first(), is_voted=True))

    assert found(later, stored, stored) == 0
    assert found(later, stored) == 1
    assert found(later, later, stored) == 2
    assert found(later, later, later) == 3


# --- the commands -----------------------------------------------------------------------------------------------------


def store_of(herd: Herd) -> MemoryStore:
    assert isinstance(herd.provider, MemorySecretProvider)
    return herd.provider.store


class Fine:
    """A health check that passes."""

    name = "fine"

    async def ask(self) -> str | None:
        return None


class Backup:
    """What the store of a herd held, and a way to restore it. The restored store gives the same version ids again."""

    def __init__(self, herd: Herd) -> None:
        self._herd = herd
        self._kept = dict(store_of(herd).secrets)

    def restore(self) -> None:
        store_of(self._herd).secrets = dict(self._kept)


COMMANDS: dict[str, Callable[[Rotator], Awaitable[object]]] = {
    "rotate": Rotator.rotate,
    "restore": Rotator.restore,
    "resume": Rotator.resume,
    "abandon": Rotator.abandon,
    "retire": Rotator.retire,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
async def test_no_command_writes_or_moves_a_label_or_destroys_anything(make_herd: MakeHerd, name: str) -> None:
    herd = await make_herd()
    await rotator_for(herd).rotate()
    backup = Backup(herd)
    await rotator_for(herd).rotate()
    backup.restore()
    before = dict(store_of(herd).secrets)
    policy = replace(POLICY, grace=POLICY.poll_min)
    with pytest.raises(StoreWentBackError, match="nothing was written: http://node-0 has seen generation 11") as caught:
        await COMMANDS[name](rotator_for(herd, policy=policy))
    assert store_of(herd).secrets == before
    assert "--distrust http://node-0" in caught.value.hint
    assert "`goatherd stores status`" in caught.value.hint, "the store of another region may hold the later state"
    distrusted = replace(policy, distrust=frozenset(node.base_url for node in herd.nodes))
    if name == "retire":
        assert (await rotator_for(herd, policy=distrusted).retire()).destroyed


@pytest.mark.slow
async def test_what_an_earlier_run_has_read_does_not_count_once_servers_have_accepted_a_backup(
    make_herd: MakeHerd,
) -> None:
    """The rotator of a controller runs for years, so its first read may be years old."""
    herd = await make_herd(clients=0)
    backup, rotator = Backup(herd), rotator_for(herd, health=[Fine()])
    await rotator.rotate()
    backup.restore()
    with pytest.raises(StoreWentBackError, match="nothing was written: http://node-0 has seen"):
        await rotator.rotate()
    for node in herd.nodes:
        node.adopt(await document_of(herd))
    assert (await rotator.rotate(to_phase=Phase.PUBLISHED)).phase is Phase.PUBLISHED
    backup.restore()
    for node in herd.nodes:
        node.adopt(await document_of(herd))
    assert (await rotator.resume()).outcome is Outcome.NOTHING
    assert (await rotator.rotate()).outcome is Outcome.ROTATED


async def test_servers_that_do_not_answer_stop_no_retirement(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotator_for(herd).rotate()
    for node in herd.nodes:
        node.faults.cut_off = True
    with pytest.raises(NodeUnreachableError):
        await herd.nodes[0].identity()
    herd.clock.turn(POLICY.poll_max)
    report = await rotator_for(herd, policy=replace(POLICY, grace=POLICY.poll_min)).retire()
    assert report.destroyed


async def test_a_version_id_that_is_given_again_is_not_written_over(make_herd: MakeHerd) -> None:
    """A compare-and-swap would pass: the id exists again, but names another version than the one that was read."""
    herd = await make_herd()
    backup = Backup(herd)

    async def restored_and_written_since() -> None:
        found = await herd.provider.read(herd.secret_id, CURRENT)
        assert (await document_of(herd)).phase == "prepared"
        backup.restore()
        document = prepared(replace(await document_of(herd)), "other")
        first_version = await herd.provider.read(herd.secret_id, CURRENT)
        written = await herd.provider.write(
            herd.secret_id, encode_document(document), label=CURRENT, expected=first_version.version.id
        )
        assert written.id == found.version.id

    provider = HeldUp(herd.provider, "write", restored_and_written_since, after=True)
    with pytest.raises(StoreWentBackError, match="a backup was restored meanwhile"):
        await rotator_for(herd, provider=provider).rotate()
    document = await document_of(herd)
    assert document.next is not None
    assert document.next.id == owned("other").id, "it was overwritten"


@pytest.mark.slow
async def test_a_rotation_goes_on_while_the_store_is_only_written_by_others(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    for _ in range(5):
        assert (await rotator_for(herd).rotate()).outcome is Outcome.ROTATED
