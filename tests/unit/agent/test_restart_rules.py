"""When an agent must restart its server, and what a settings.json that the server has rewritten means."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from goatherd.agent.restart_rules import (
    find_differences,
    read_file_view,
    reasons_to_restart,
    require_life,
    restart_delay,
    short_life,
    verify_safe,
    with_previous_root,
)
from goatherd.errors import IdentityError
from goatherd.identity.document import IdentityDocument, Revocation
from goatherd.identity.settings_json import to_settings
from goatherd.identity.transitions import revoke_root
from tests.unit.identity.make import DAY, NOW, activated, first, owned, prepared, published, rotated, secret_of

HOUR = 3_600_000


def revoking(document: IdentityDocument, session_id: str) -> IdentityDocument:
    return replace(document, revoked=(Revocation(id=session_id, at=NOW, reason="stolen"),))


@pytest.mark.parametrize("later", [prepared, published], ids=["prepared", "published"])
def test_trust_in_a_new_root_needs_no_restart(later: Any) -> None:
    assert reasons_to_restart(first(), later()) == ()


def test_another_signer_needs_a_restart_and_the_reason_names_both() -> None:
    (reason,) = reasons_to_restart(published(), activated())
    assert owned("a").id in reason
    assert owned("b").id in reason


def test_the_end_of_a_rotation_needs_no_second_restart() -> None:
    assert reasons_to_restart(activated(), rotated()) == ()


def test_another_expiration_of_the_same_root_needs_a_restart() -> None:
    longer = owned("a", days=60)
    document = replace(first(), current=longer, roots=(longer.session,))
    assert "expiration" in reasons_to_restart(first(), document)[0]


def test_a_revocation_needs_a_restart_and_taking_it_back_does_too() -> None:
    document = rotated()
    revoked = revoking(document, owned("a").id)
    assert "is revoked" in reasons_to_restart(document, revoked)[0]
    assert "no longer" in reasons_to_restart(revoked, document)[0]


def test_stepping_back_makes_the_earlier_root_sign_and_keeps_trusting_the_new_one() -> None:
    back = with_previous_root(activated(), first())
    assert back is not None
    assert back.current.id == owned("a").id
    assert {root.id for root in back.roots} == {owned("a").id, owned("b").id}
    settings = json.loads(to_settings(back))
    assert settings["currentSession"]["privateKey"]["d"] == secret_of(owned("a"))
    assert secret_of(owned("b")) not in json.dumps(settings)
    verify_safe(to_settings(back))


def test_there_is_no_stepping_back_to_a_revoked_root_or_to_one_that_is_unknown() -> None:
    assert with_previous_root(revoking(rotated(), owned("a").id), first()) is None
    stranger = replace(first(), current=owned("z"), roots=(owned("z").session,))
    assert with_previous_root(activated(), stranger) is None


@pytest.mark.parametrize(("left_ms", "refused"), [(15 * DAY, True), (15 * DAY + HOUR // 2, True), (16 * DAY, False)])
def test_a_server_is_not_started_with_15_days_left_nor_so_near_to_it_that_a_slow_start_gets_there(
    left_ms: int, refused: bool
) -> None:
    now_ms = owned("a").session.expiration_ms - left_ms
    if not refused:
        require_life(first(), now_ms)
        return
    with pytest.raises(IdentityError, match="exposes its private key") as caught:
        require_life(first(), now_ms)
    assert "goatherd rotate" in caught.value.hint


def test_the_operator_is_warned_a_month_before_the_end_and_told_more_when_it_is_too_late() -> None:
    expires = owned("a").session.expiration_ms
    assert short_life(first(), expires - 30 * DAY - 1) is None
    assert "could not be started" in str(short_life(first(), expires - 30 * DAY))
    assert "could not be started" in str(short_life(first(), expires - 15 * DAY - 1))
    assert "until you rotate" in str(short_life(first(), expires - 15 * DAY))
    assert "until you rotate" in str(short_life(first(), expires))
    assert "has expired" in str(short_life(first(), expires + 1))


def test_crashes_are_answered_ever_later_up_to_a_minute() -> None:
    waits = [restart_delay(n) for n in range(1, 12)]
    assert waits[:4] == [timedelta(seconds=n) for n in (1, 2, 4, 8)]
    assert waits == sorted(waits)
    assert waits[-1] == timedelta(minutes=1)


# --- what goes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [first, prepared, published, activated, rotated])
def test_what_a_document_becomes_is_safe_for_a_goatdb_server_in_every_phase(make: Any) -> None:
    text = to_settings(make(), now_ms=NOW)
    verify_safe(text)
    tree = json.loads(text)
    assert set(tree) == {"currentSession", "roots", "trustedSessions"}
    assert {root["id"] for root in tree["roots"]} <= {one["id"] for one in tree["trustedSessions"]}


def broken(tree: dict[str, Any], how: str) -> dict[str, Any]:
    current = tree["currentSession"]
    if how == "itself is not among the roots":
        tree["roots"] = []
    elif how == "another expiration":
        tree["roots"][0]["expiration"] += 1
    elif how == "another key":
        tree["roots"][0]["publicKey"] = owned("b").session.to_json()["publicKey"]
    elif how == "a private key among the roots":
        tree["roots"][0]["privateKey"] = current["privateKey"]
    else:
        tree["trustedSessions"][0]["privateKey"] = current["privateKey"]
    return tree


@pytest.mark.parametrize(
    "how",
    [
        "itself is not among the roots",
        "another expiration",
        "another key",
        "a private key among the roots",
        "a private key among the trusted",
    ],
)
def test_what_would_make_a_goatdb_server_give_its_key_away_never_goes_out(how: str) -> None:
    tree = broken(json.loads(to_settings(first())), how)
    with pytest.raises(IdentityError) as caught:
        verify_safe(json.dumps(tree).encode())
    assert secret_of(owned("a")) not in str(caught.value)


# --- what comes back ------------------------------------------------------------------------------------------------


def is_known(root_id: str) -> bool:
    return root_id in (owned("a").id, owned("b").id)


def changed(**members: Any) -> tuple[str, ...]:
    before = json.loads(to_settings(first()))
    seen, later = (
        read_file_view(json.dumps(before).encode()),
        read_file_view(json.dumps({**before, **members}).encode()),
    )
    assert seen is not None
    assert later is not None
    return tuple(
        f"{'!' if one.is_serious else ''}{one.text}" for one in find_differences(seen, later, is_known=is_known)
    )


def test_a_file_that_was_only_written_again_has_no_differences() -> None:
    assert changed() == ()
    assert changed(version=2, generation=7) == (), "GoatDB drops what it does not know"


def test_a_root_and_sessions_that_the_server_has_learnt_are_told_and_are_nothing_serious() -> None:
    roots = [owned("a").session.to_json(), owned("b").session.to_json()]
    users = [owned(name, owner=None).session.to_json() for name in ("u", "v")]
    told = changed(roots=roots, trustedSessions=[owned("a").session.to_json(), *users])
    assert told == (f"the server added root {owned('b').id}", "the server added 2 sessions")


def test_a_root_that_the_server_has_dropped_is_told() -> None:
    assert f"the server removed root {owned('a').id}" in changed(roots=[], trustedSessions=[])


def test_a_root_that_the_server_has_invented_is_serious() -> None:
    told = changed(currentSession=owned("z").to_secret_json(), roots=[owned("a").session.to_json()])
    assert told[0].startswith("!")
    assert "created a new root" in told[0]
    assert secret_of(owned("z")) not in str(told)


@pytest.mark.parametrize("is_revoked", [False, True], ids=["earlier", "revoked"])
def test_a_known_root_that_a_running_server_has_written_back_is_not_one_that_it_has_invented(is_revoked: bool) -> None:
    document = activated()
    if is_revoked:
        document = revoke_root(document, owned("a").id, NOW, reason="stolen")
    before, later = read_file_view(to_settings(document)), read_file_view(to_settings(first()))
    assert before is not None
    assert later is not None
    assert (owned("a").id in before.roots) is not is_revoked
    told = find_differences(before, later, is_known=is_known)
    assert not any(one.is_serious for one in told)
    assert "still signs" in told[0].text


def test_an_expiration_that_the_server_has_moved_is_serious() -> None:
    current = {**owned("a").to_secret_json(), "expiration": 1.0}
    assert changed(currentSession=current)[0].startswith("!the server changed the expiration")


def test_a_private_key_among_the_roots_is_serious_and_not_shown() -> None:
    told = changed(roots=[owned("a").to_secret_json()])
    assert told == (f"!the server would publish the private key of root {owned('a').id}",)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'{"currentSession": '])
def test_a_file_that_cannot_be_read_is_not_known_rather_than_empty(raw: bytes) -> None:
    assert read_file_view(raw) is None


@pytest.mark.parametrize("current", [None, 5, {}, {"id": 7}, {"id": "k" * 64}, {"id": "a\nb"}])
def test_strange_sessions_are_no_ids_and_what_could_be_a_key_is_never_told(current: Any) -> None:
    view = read_file_view(json.dumps({"currentSession": current, "roots": [current], "trustedSessions": 3}).encode())
    assert view is not None
    assert view.current_id is None
    assert view.roots == frozenset()
