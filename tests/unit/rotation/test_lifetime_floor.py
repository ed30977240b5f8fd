"""A root whose lifetime is too short to replace it in time is rejected before anything is written."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.errors import ConfigurationError, LifetimeError
from goatherd.identity.document import Phase
from goatherd.rotation.machine import Outcome
from goatherd.rotation.policy import Policy, Quorum, check_lifetime, check_quorum, compute_lifetime_floor
from goatherd.schedule.due import Schedule, make_schedule
from tests.unit.node.nodes import document_of as document_for
from tests.unit.node.nodes import root
from tests.unit.revocation.clusters import cluster_of
from tests.unit.rotation.conftest import POLICY, MakeHerd, document_of, rotator_for

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
spans = st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=40))


@given(spans, spans, spans, spans, st.booleans())
def test_the_floor_is_an_hour_four_rotations_or_thirty_days_whichever_is_longest(
    adoption: timedelta, unlisted: timedelta, soak: timedelta, settle: timedelta, is_unmodified: bool
) -> None:
    policy = Policy(adoption=adoption, unlisted=unlisted, health_soak=soak, settle=settle)
    unmodified = ["http://a"] if is_unmodified else []
    wanted = max(HOUR, 4 * (3 * adoption + unlisted + soak + settle), 30 * DAY if is_unmodified else HOUR)
    assert compute_lifetime_floor(policy, unmodified=unmodified).shortest == wanted
    check_lifetime(replace(policy, lifetime=wanted + timedelta(milliseconds=1)), unmodified=unmodified)
    with pytest.raises(LifetimeError):
        check_lifetime(replace(policy, lifetime=wanted - timedelta(milliseconds=1)), unmodified=unmodified)


def test_exactly_thirty_days_are_too_short_for_an_unmodified_server_and_the_floor_itself_is_enough_elsewhere() -> None:
    with pytest.raises(LifetimeError, match="more than 30d, because http://a runs unmodified GoatDB"):
        check_lifetime(Policy(lifetime=30 * DAY), unmodified=["http://a"])
    check_lifetime(Policy(lifetime=compute_lifetime_floor(Policy()).shortest))


def test_the_error_says_which_number_and_from_what() -> None:
    with pytest.raises(LifetimeError) as caught:
        check_lifetime(Policy(lifetime=timedelta(seconds=1)))
    assert str(caught.value) == (
        "a lifetime of 1s is too short for a root: it must be at least 1h6m40s, because it must outlive four rotations "
        "of 16m40s (3 x adoption 5m + unlisted 0s + health soak 10s + settle 1m30s)"
    )
    assert caught.value.code == "configuration.lifetime_too_short"
    with pytest.raises(LifetimeError, match="at least 1h, because no root may live shorter"):
        check_lifetime(replace(POLICY, lifetime=timedelta(minutes=59)))


async def test_rotate_with_a_lifetime_below_the_floor_writes_nothing(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    with pytest.raises(LifetimeError):
        await rotator_for(herd, policy=replace(POLICY, lifetime=timedelta(seconds=1))).rotate()
    assert (await document_of(herd)).generation == 1


@pytest.mark.parametrize("is_bare", [False, True], ids=["seen to be unmodified", "listed as bare"])
async def test_where_a_server_runs_unmodified_goatdb_a_root_of_thirty_days_is_refused_and_one_of_31_is_made(
    make_herd: MakeHerd, is_bare: bool
) -> None:
    herd = await make_herd(unmodified=[1])
    policy = replace(POLICY, lifetime=30 * DAY, bare=frozenset([herd.nodes[1].base_url] if is_bare else []))
    with pytest.raises(LifetimeError, match=herd.nodes[1].base_url):
        await rotator_for(herd, policy=policy).rotate()
    assert (await document_of(herd)).generation == 1
    policy = replace(policy, lifetime=31 * DAY, bare=frozenset([herd.nodes[1].base_url]))
    assert (await rotator_for(herd, policy=policy).rotate()).outcome is Outcome.ROTATED


async def test_a_rotation_in_progress_can_be_left_whatever_the_lifetime_of_the_policy(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotator_for(herd).rotate(to_phase=Phase.ACTIVATED)
    report = await rotator_for(herd, policy=replace(POLICY, lifetime=timedelta(seconds=1))).abandon()
    assert report.current_id == "root-a"


async def test_revoke_makes_no_root_below_the_floor_and_takes_an_earlier_one_whatever_the_policy(
    tmp_path: Path,
) -> None:
    a = root("root-a")
    short = Policy(lifetime=timedelta(minutes=5))
    async with cluster_of(tmp_path, document_for(a), 1) as cluster:
        with pytest.raises(LifetimeError):
            await cluster.revoker(policy=short).revoke(a.id, reason="stolen")
        with pytest.raises(LifetimeError):
            await cluster.revoker(policy=short).plan(a.id)
        assert (await cluster.document()).generation == 1


def test_a_schedule_whose_roots_would_live_too_short_is_refused() -> None:
    with pytest.raises(LifetimeError):
        make_schedule(Schedule(controller="a", policy=Policy(lifetime=HOUR)), 0)


def test_a_quorum_larger_than_the_number_of_listed_servers_is_an_error() -> None:
    policy = Policy(quorum=Quorum(count=99))
    with pytest.raises(ConfigurationError, match="the quorum is 99, but 2 servers are listed"):
        check_quorum(policy, 2)
    with pytest.raises(ConfigurationError, match="1 server is listed"):
        check_quorum(policy, 1)
    check_quorum(policy, 99)
    check_quorum(Policy(quorum=Quorum(fraction=1.0)), 2)


async def test_rotate_and_resume_refuse_a_quorum_of_99_of_3_before_they_write(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    rotator = rotator_for(herd, policy=replace(POLICY, quorum=Quorum(count=99)))
    for asked in (rotator.rotate, rotator.resume):
        with pytest.raises(ConfigurationError, match="the quorum is 99, but 3 servers are listed"):
            await asked()
    assert (await document_of(herd)).generation == 1
