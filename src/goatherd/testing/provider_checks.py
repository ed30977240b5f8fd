"""The checks that every secret provider must pass. Each is a function whose name says what it checks.

`PROVIDER_CHECKS` lists the checks; `goatherd.testing.contract` runs them. A check creates its own secrets, and uses the
public methods of `goatherd.providers.base`. Some checks wrap private methods, to simulate that an answer is lost. A
check of a property that the provider does not promise (`Guarantees`) is skipped with the reason, and does not count as
passed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final
from unittest import mock

from goatherd.clock import SystemClock
from goatherd.errors import (
    ConflictError,
    ProviderConfigurationError,
    ProviderError,
    SecretDeletedError,
    SecretExistsError,
    SecretNotFoundError,
    SecretTooLargeError,
    VersionDisabledError,
)
from goatherd.providers.base import ReadConsistency
from goatherd.providers.values import CURRENT, STABLE, Label, SecretBytes, SecretVersion, VersionId, VersionState
from goatherd.testing.subject import Check, Subject, checks_in, losing_the_answer, must, only_if, refused

NOT_VERSIONS: Final = ("0", "-1", "01", "99999999999", "no-such-version", "1 ", "\u0661", "../1", "current")


def ids_of_no_version(*made: SecretVersion) -> list[str]:
    """Return strings that are not the id of a version, given every version that a secret has had."""
    return [text for text in NOT_VERSIONS if text not in {version.id for version in made}]


async def a_new_secret_reads_back(it: Subject) -> None:
    """A secret that was just created can be read by its label and by the id of its version, and has one version."""
    name, before = it.new_id(), time.time_ns() // 1_000_000
    made = await it.provider.create(name, b"first")
    must(isinstance(made.id, VersionId), "create does not return a VersionId")
    must(made.labels == {CURRENT} and made.state is VersionState.ENABLED, f"create returned {made}")
    must(abs(made.created_ms - before) < 600_000, "created_ms is not milliseconds since 1970, about now")
    must(await it.seen(name, made.id) == b"first", "another value came back")
    by_id = await it.provider.read(name, made.id)
    must(by_id.value == SecretBytes(b"first") and by_id.version.id == made.id, "read by id returned something else")
    must([v.id for v in await it.provider.versions(name)] == [made.id], "versions does not list exactly the first")


@only_if(lambda promised: not promised.first_is_current, "declares first_is_current=True")
async def a_label_can_be_chosen_at_creation(it: Subject) -> None:
    """A secret can be created with any label; its first version then has no other label."""
    name = it.new_id()
    made = await it.provider.create(name, b"first", "candidate")
    await it.seen(name, made.id, Label("candidate"))
    await refused(SecretNotFoundError, it, it.provider.read(name, CURRENT))


async def creating_twice_is_refused_and_changes_nothing(it: Subject) -> None:
    """Creating a secret that exists fails and does not overwrite the identity in it."""
    name = it.new_id()
    made = await it.provider.create(name, b"first")
    await refused(SecretExistsError, it, it.provider.create(name, b"second"))
    await refused(SecretExistsError, it, it.provider.create(name, b"first", "other"))
    must(await it.seen(name, made.id) == b"first", "the refused creation changed the value")
    must(await it.picture(name) == {CURRENT: made.id}, "the refused creation moved a label")


async def what_is_not_there_is_not_found(it: Subject) -> None:
    """Each operation raises `SecretNotFoundError` for a secret, a label or a version that does not exist."""
    p, name = it.provider, it.new_id()
    for begin in (
        lambda: p.read(name),
        lambda: p.read(name, VersionId("1")),
        lambda: p.write(name, b"x", expected=None),
        lambda: p.label(name, STABLE, "1", expected=None),
        lambda: p.versions(name),
        lambda: p.delete(name),
    ):
        await refused(SecretNotFoundError, it, begin())
    made = await p.create(name, b"first")
    await refused(SecretNotFoundError, it, p.read(name, STABLE))
    for text in ids_of_no_version(made):
        await refused(SecretNotFoundError, it, p.read(name, VersionId(text)))
        await refused(SecretNotFoundError, it, p.label(name, STABLE, text, expected=None))
    must(await it.picture(name) == {CURRENT: made.id}, "an unknown version got a label")


async def a_write_moves_its_label_and_keeps_the_old_version(it: Subject) -> None:
    """A write moves its label to the new version; the old version loses the label and stays readable by its id."""
    name = it.new_id()
    first = await it.provider.create(name, b"first")
    second = await it.provider.write(name, b"second", expected=first.id)
    must(second.id != first.id and second.labels == {CURRENT}, f"write returned {second}")
    must(await it.seen(name, second.id) == b"second", "the label leads to another value")
    old = await it.provider.read(name, first.id)
    must(old.value == SecretBytes(b"first") and not old.version.labels, "the old version changed or kept its label")


async def a_conflicting_write_changes_nothing(it: Subject) -> None:
    """A write fails, and no reader sees a change, if `expected` is not the version at which the label points."""
    name = it.new_id()
    first = await it.provider.create(name, b"first")
    second = await it.provider.write(name, b"second", expected=first.id)
    for expected in (first.id, None, "no-such-version", "current"):
        await refused(ConflictError, it, it.provider.write(name, b"lost", expected=expected))
    must(await it.seen(name, second.id) == b"second", "a lost write changed what readers see")
    must(await it.picture(name) == {CURRENT: second.id}, "a lost write moved a label")


async def expecting_no_holder_works_once(it: Subject) -> None:
    """With ``expected=None``, a write succeeds only while no version has the label."""
    name = it.new_id()
    first = await it.provider.create(name, b"first")
    other = await it.provider.write(name, b"other", label="candidate", expected=None)
    must(await it.picture(name) == {CURRENT: first.id, "candidate": other.id}, "the labels are not as written")
    await refused(ConflictError, it, it.provider.write(name, b"lost", label="candidate", expected=None))
    await refused(ConflictError, it, it.provider.label(name, "candidate", first.id, expected=None))
    must(await it.seen(name, first.id) == b"first", "another label's write changed this one")


async def a_label_moves_by_compare_and_swap(it: Subject) -> None:
    """A label can move to a newer, an older or the same version, but only if `expected` is where it points now."""
    p, name = it.provider, it.new_id()
    first = await p.create(name, b"first")
    second = await p.write(name, b"second", expected=first.id)
    await p.label(name, STABLE, first.id, expected=None)
    must(await it.picture(name) == {CURRENT: second.id, STABLE: first.id}, "the label was not set")
    await refused(ConflictError, it, p.label(name, STABLE, second.id, expected=second.id))
    await p.label(name, STABLE, second.id, expected=first.id)
    await p.label(name, STABLE, second.id, expected=second.id)
    must(await it.picture(name) == {CURRENT: second.id, STABLE: second.id}, "one version cannot hold two labels")
    await p.label(name, CURRENT, first.id, expected=second.id)
    must(await it.seen(name, first.id) == b"first", "the label did not move back")
    must(await it.picture(name) == {CURRENT: first.id, STABLE: second.id}, "another label of the version moved, too")


@only_if(lambda promised: promised.custom_labels, "declares custom_labels=False")
async def a_label_is_taken_off_by_compare_and_swap(it: Subject) -> None:
    """A label is removed only if `expected` is the version that it points at; version, value and other labels stay."""
    p, name = it.provider, it.new_id()
    first = await p.create(name, b"first")
    second = await p.write(name, b"second", expected=first.id)
    await p.label(name, "before-upgrade", first.id, expected=None)
    await refused(ConflictError, it, p.unlabel(name, "before-upgrade", expected=second.id))
    await refused(ConflictError, it, p.unlabel(name, "not-there", expected=first.id))
    await refused(ProviderConfigurationError, it, p.unlabel(name, CURRENT, expected=second.id))
    await refused(SecretNotFoundError, it, p.unlabel(it.new_id(), "before-upgrade", expected=first.id))
    must(await it.picture(name) == {CURRENT: second.id, "before-upgrade": first.id}, "a refused call changed a label")
    async with it.factory() as unlucky:
        await losing_the_answer(unlucky, "_unlabel", lambda: unlucky.unlabel(name, "before-upgrade", expected=first.id))
    must(await it.picture(name) == {CURRENT: second.id}, "the label was not taken off, or others were")
    must(await it.seen(name, second.id) == b"second", "the current value changed")
    await p.label(name, "before-upgrade", second.id, expected=None)
    must(await it.picture(name) == {CURRENT: second.id, "before-upgrade": second.id}, "the label cannot be put again")
    await p.unlabel(name, "before-upgrade", expected=second.id)
    must(await it.picture(name) == {CURRENT: second.id}, "another label of the version was taken off, too")


async def eleven_versions_list_newest_first(it: Subject) -> None:
    """Versions are listed from newest to oldest, also when there are more than nine: as a string, 10 sorts before 9."""
    name = it.new_id()
    made = [await it.provider.create(name, b"value 1")]
    for number in range(2, 12):
        made.append(await it.provider.write(name, b"value %d" % number, expected=made[-1].id))
    listed = await it.provider.versions(name)
    history = it.provider.guarantees.history
    kept = made if history is None else made[-(history + 1) :]
    must([v.id for v in listed][: len(kept)] == [v.id for v in reversed(kept)], "the order is not newest first")
    must(len({v.id for v in listed}) == len(listed), "an id is listed twice")
    must([v.id for v in listed if v.labels] == [made[-1].id], "the label is not on the newest alone")
    for number, version in enumerate(made, 1):
        if version in kept:
            found = await it.provider.read(name, version.id)
            must(found.value.reveal() == b"value %d" % number, f"{version.id!r} holds another version's value")


async def a_wrong_clock_changes_nothing(it: Subject) -> None:
    """If clients' clocks are hours ahead or behind, versions keep their order, and labels and conflicts are right."""
    name = it.new_id()
    made = [await it.provider.create(name, b"value 0")]
    for number, hours in enumerate((5, -5, 0, 9), 1):
        with _clock_ahead(hours):
            async with it.factory() as other:
                written = await other.write(name, b"value %d" % number, expected=made[-1].id)
                await refused(ConflictError, it, other.write(name, b"late", expected=made[-1].id))
                must(await it.seen(name, written.id) == b"value %d" % number, "another value is read")
        made.append(written)
    with _clock_ahead(-9):
        async with it.factory() as other:
            value = await it.seen(name, made[-1].id, by=other)
            must(value == b"value 4", "a reader whose clock is behind reads another value")
            await other.label(name, STABLE, made[1].id, expected=None)
    must(await it.picture(name) == {STABLE: made[1].id, CURRENT: made[-1].id}, "the labels are elsewhere")
    listed = [v.id for v in await it.provider.versions(name)]
    must(listed == [v.id for v in reversed(made) if v.id in listed], "the order is not the one of writing")


async def a_version_read_by_id_never_changes(it: Subject) -> None:
    """A version's value does not change when versions are written or labels moved."""
    name = it.new_id()
    first = await it.provider.create(name, b"first")
    second = await it.provider.write(name, b"second", expected=first.id)
    await it.provider.label(name, CURRENT, first.id, expected=second.id)
    third = await it.provider.write(name, b"third", expected=first.id)
    for version, value in ((first, b"first"), (second, b"second"), (third, b"third")):
        found = await it.provider.read(name, version.id)
        must(found.value.reveal() == value, "a version's value changed")
        must(found.version.created_ms == version.created_ms, "a version's time changed")


async def any_bytes_come_back_as_they_were(it: Subject) -> None:
    """Any bytes are read back unchanged: binary, text, line ends, zero bytes, a byte order mark."""
    samples = (bytes(range(256)), "Zürich 羊 \U0001f410".encode(), b"\x00", b"\xef\xbb\xbf{}\r\n", b" \n", b"x" * 5000)
    name = it.new_id()
    version = await it.provider.create(name, samples[0])
    must(await it.seen(name, version.id) == samples[0], "binary bytes changed")
    for sample in samples[1:]:
        version = await it.provider.write(name, SecretBytes(sample), expected=version.id)
        must(await it.seen(name, version.id) == sample, f"{len(sample)} bytes changed")


async def sizes_are_limited_on_the_byte(it: Subject) -> None:
    """A value of the declared maximum size can be stored; one more byte, or an empty value, is rejected."""
    limit, name = it.provider.guarantees.max_value_bytes, it.new_id()
    await refused(SecretTooLargeError, it, it.provider.create(name, b"x" * (limit + 1)))
    await refused(ProviderConfigurationError, it, it.provider.create(name, b""))
    await refused(SecretNotFoundError, it, it.provider.read(name))
    longest = secrets.token_bytes(limit)
    version = await it.provider.create(name, longest)
    must(await it.seen(name, version.id) == longest, "the longest value changed")
    await refused(SecretTooLargeError, it, it.provider.write(name, longest + b"x", expected=version.id))
    must(await it.picture(name) == {CURRENT: version.id}, "a refused write moved a label")


async def names_that_lead_elsewhere_are_refused(it: Subject) -> None:
    """Invalid secret ids and labels, such as paths to other secrets, are rejected before a request to the store."""
    p = it.provider
    for name in ("", "..", "a/../b", "a//b", "/a", "a/", "a\x00b", "a\nb", "{org}/root", "x" * 600):
        await refused(ProviderConfigurationError, it, p.read(name))
        await refused(ProviderConfigurationError, it, p.create(name, b"x"))
    name = it.new_id()
    first = await p.create(name, b"first")
    for label in ("", "latest", "new", "1st", "a b", "x" * 64, "ä"):
        await refused(ProviderConfigurationError, it, p.read(name, Label(label)))
        await refused(ProviderConfigurationError, it, p.label(name, label, first.id, expected=None))


@only_if(lambda promised: promised.destroys, "declares destroys=False")
async def a_destroyed_version_is_gone_for_good(it: Subject) -> None:
    """A destroyed version can no longer be read or get a label; the other versions do not change."""
    p, name = it.provider, it.new_id()
    first = await p.create(name, b"first")
    second = await p.write(name, b"second", expected=first.id)
    await p.destroy(name, first.id)
    await refused(VersionDisabledError, it, p.read(name, first.id))
    await refused(VersionDisabledError, it, p.label(name, STABLE, first.id, expected=None))
    await p.destroy(name, first.id)
    states = {v.id: v.state for v in await p.versions(name)}
    must(states.get(first.id, VersionState.DESTROYED) is VersionState.DESTROYED, "it is listed as if it were there")
    must(await it.seen(name, second.id) == b"second", "another version was harmed")
    third = await p.write(name, b"third", expected=second.id)
    must(third.id not in (first.id, second.id), "an id was given twice")
    for text in ids_of_no_version(first, second, third):
        await refused(SecretNotFoundError, it, p.destroy(name, text))


@only_if(lambda promised: promised.destroys, "declares destroys=False")
async def a_labelled_version_cannot_be_destroyed(it: Subject) -> None:
    """A version that a label points at cannot be destroyed."""
    p, name = it.provider, it.new_id()
    first = await p.create(name, b"first")
    await p.label(name, STABLE, first.id, expected=None)
    second = await p.write(name, b"second", expected=first.id)
    for version in (first, second):
        await refused(ConflictError, it, p.destroy(name, version.id))
    must(await it.seen(name, first.id, STABLE) == b"first", "a refused destruction did harm")


async def destroy_the_unlabelled(it: Subject, name: str) -> tuple[SecretVersion, SecretVersion, SecretVersion]:
    """Create a secret with three versions, the second labelled stable and the third current; destroy the first one.

    Returns:
        The three versions. The check has failed if a labelled version could be destroyed.
    """
    p = it.provider
    first = await p.create(name, b"first")
    second = await p.write(name, b"second", expected=first.id)
    await p.label(name, STABLE, second.id, expected=None)
    third = await p.write(name, b"third", expected=second.id)
    for version in (second, third):
        await refused(ConflictError, it, p.destroy(name, version.id))
    await p.destroy(name, first.id)
    return first, second, third


async def must_be_unharmed(
    it: Subject, name: str, first: SecretVersion, second: SecretVersion, third: SecretVersion
) -> None:
    """Check that a version that does not exist cannot be destroyed, and that the labelled versions have not changed."""
    for text in ids_of_no_version(first, second, third):
        await refused(SecretNotFoundError, it, it.provider.destroy(name, text))
    must(await it.seen(name, third.id) == b"third", "another version was harmed")
    must(await it.seen(name, second.id, STABLE) == b"second", "a refused destruction did harm")


@only_if(lambda promised: promised.deprecates and not promised.destroys, "declares deprecates=False")
async def a_store_that_only_deprecates_keeps_what_is_labelled(it: Subject) -> None:
    """If a store only marks a version as deprecated, to remove it at some time, the labelled versions do not change."""
    name = it.new_id()
    versions = await destroy_the_unlabelled(it, name)
    await must_be_unharmed(it, name, *versions)


@only_if(lambda promised: promised.disables and not promised.destroys, "declares disables=False")
async def a_store_that_only_disables_does_not_read_what_is_off(it: Subject) -> None:
    """If a store only disables a version, that version cannot be read or labelled; the labelled ones stay enabled."""
    p, name = it.provider, it.new_id()
    first, second, third = await destroy_the_unlabelled(it, name)
    await refused(VersionDisabledError, it, p.read(name, first.id))
    await refused(VersionDisabledError, it, p.label(name, STABLE, first.id, expected=second.id))
    await p.destroy(name, first.id)
    states = {v.id: v.state for v in await p.versions(name)}
    must(states[first.id] is VersionState.DISABLED, "it is not listed as disabled")
    await must_be_unharmed(it, name, first, second, third)


@only_if(lambda promised: promised.recoverable, "declares recoverable=False")
async def a_deleted_secret_that_can_be_restored_is_neither_there_nor_missing(it: Subject) -> None:
    """Operations on a deleted secret that can be restored raise `SecretDeletedError`, because its name is not free."""
    p, name = it.provider, it.new_id()
    first = await p.create(name, b"old")
    await p.delete(name)
    for begin in (
        lambda: p.read(name),
        lambda: p.read(name, first.id),
        lambda: p.create(name, b"new"),
        lambda: p.write(name, b"new", expected=first.id),
        lambda: p.label(name, STABLE, first.id, expected=None),
        lambda: p.delete(name),
    ):
        await refused(SecretDeletedError, it, begin())


@only_if(lambda promised: not promised.recoverable, "declares recoverable=True")
async def a_deleted_secret_is_gone_and_can_be_made_again(it: Subject) -> None:
    """A deleted secret can be created again, and nothing of the old one is left: no value, no version, no label."""
    p, name = it.provider, it.new_id()
    first = await p.create(name, b"old")
    second = await p.write(name, b"older", expected=first.id)
    await p.label(name, STABLE, first.id, expected=None)
    await p.delete(name)
    await refused(SecretNotFoundError, it, p.read(name))
    for old in (first, second):
        await refused(SecretNotFoundError, it, p.read(name, old.id))
    await refused(SecretNotFoundError, it, p.delete(name))
    again = await p.create(name, b"new")
    must(await it.seen(name, again.id) == b"new", "the new secret holds another value")
    must([v.id for v in await p.versions(name)] == [again.id], "versions of the deleted secret came back")
    must(await it.picture(name) == {CURRENT: again.id}, "labels of the deleted secret came back")
    for old in (first, second):
        if old.id != again.id:
            await refused(SecretNotFoundError, it, p.read(name, old.id))


async def secrets_with_similar_names_are_kept_apart(it: Subject) -> None:
    """A secret is not mixed up with one whose name begins with its name, such as the restart lease of an identity."""
    p, name = it.provider, it.new_id()
    longer = f"{name}-lease"
    it.made.append(longer)
    one = await p.create(name, b"one")
    await refused(SecretNotFoundError, it, p.read(longer))
    first = await p.create(longer, b"first")
    second = await p.write(longer, b"second", expected=first.id)
    must([v.id for v in await p.versions(name)] == [one.id], "versions of another secret are listed")
    must(await it.seen(name, one.id) == b"one", "another secret's value is read")
    await p.delete(name)
    must(await it.seen(longer, second.id) == b"second", "deleting a secret changed another one")
    must([v.id for v in await p.versions(longer)] == [second.id, first.id], "deleting a secret harmed another one")


@only_if(lambda promised: promised.cas, "declares cas=False")
async def of_two_writers_exactly_one_wins(it: Subject) -> None:
    """If two clients write at the same time, one succeeds and its value is read; the other one gets `ConflictError`."""
    name = it.new_id()
    holder = await it.provider.create(name, b"start")
    async with it.factory() as other:
        for number in range(it.rounds):
            values = (b"left %d" % number, b"right %d" % number)
            done = await asyncio.gather(
                it.provider.write(name, values[0], expected=holder.id),
                other.write(name, values[1], expected=holder.id),
                return_exceptions=True,
            )
            holder = _winner(done)
            must(await it.seen(name, holder.id) in values, "a value that no writer wrote")
            won = values[[isinstance(each, SecretVersion) for each in done].index(True)]
            must(await it.seen(name, holder.id) == won, "the loser's value is read")


@only_if(lambda promised: promised.best_effort_cas and not promised.cas, "declares best_effort_cas=False")
async def of_two_writers_at_most_one_believes_that_it_won(it: Subject) -> None:
    """Without real compare-and-swap, at most one of two concurrent writers succeeds, and all readers agree which."""
    name = it.new_id()
    holder = await it.provider.create(name, b"start")
    async with it.factory() as other:
        for number in range(it.rounds):
            done = await asyncio.gather(
                it.provider.write(name, b"left %d" % number, expected=holder.id),
                other.write(name, b"right %d" % number, expected=holder.id),
                return_exceptions=True,
            )
            winners = [each for each in done if isinstance(each, SecretVersion)]
            _only_conflicts(each for each in done if isinstance(each, BaseException))
            must(len(winners) <= 1, "both writers reported success")
            if winners:
                won = (b"left %d", b"right %d")[done.index(winners[0])] % number
                must(await it.seen(name, winners[0].id) == won, "the loser's value is read")
            left, right = await it.provider.read(name), await other.read(name)
            must(left == right, "two readers disagree")
            holder = left.version


@only_if(lambda promised: promised.cas or promised.best_effort_cas, "declares cas=False")
async def of_many_label_movers_exactly_one_wins(it: Subject) -> None:
    """If several clients move a label at the same time, one succeeds (without real compare-and-swap, at most one)."""
    promised = it.provider.guarantees
    name = it.new_id()
    versions = [await it.provider.create(name, b"0")]
    for number in range(1, 4):
        versions.append(await it.provider.write(name, b"%d" % number, expected=versions[-1].id))
    expected: str | None = None
    for _ in range(max(1, it.rounds // 10)):
        movers = [version for version in versions if version.id != expected]
        done = await asyncio.gather(
            *(it.provider.label(name, STABLE, version.id, expected=expected) for version in movers),
            return_exceptions=True,
        )
        winners = [version for version, each in zip(movers, done, strict=True) if each is None]
        _only_conflicts(each for each in done if each is not None)
        if promised.best_effort_cas and not winners:
            continue
        must(len(winners) == 1, f"{len(winners)} movers won")
        expected = winners[0].id
        must((await it.picture(name))[STABLE] == expected, "the label is not where the winner put it")


@only_if(lambda promised: promised.destroys, "declares destroys=False")
async def of_a_destruction_and_a_label_exactly_one_wins(it: Subject) -> None:
    """If a version is destroyed and labelled at the same time, exactly one of the two calls succeeds.

    Without real compare-and-swap, at most one succeeds.
    """
    promised, name = it.provider.guarantees, it.new_id()
    holder = await it.provider.create(name, b"0")
    stable: VersionId | None = None
    async with it.factory() as other:
        for number in range(1, max(4, it.rounds // 5) + 1):
            old, holder = holder, await it.provider.write(name, b"%d" % number, expected=holder.id)
            calls = {
                "destroy": it.provider.destroy(name, old.id),
                "label": other.label(name, STABLE, old.id, expected=stable),
            }
            order = sorted(calls, reverse=bool(number % 2))
            outcomes = await asyncio.gather(*(calls[each] for each in order), return_exceptions=True)
            errors = dict(zip(order, outcomes, strict=True))
            destroyed, labelled = errors["destroy"] is None, errors["label"] is None
            must(not (destroyed and labelled), "a version was destroyed that has just got a label")
            must(destroyed or labelled or not promised.cas, "neither the destruction nor the label succeeded")
            _only_conflicts([errors["destroy"]] if not destroyed else [])
            if not isinstance(errors["label"], VersionDisabledError):
                _only_conflicts([errors["label"]] if not labelled else [])
            if labelled:
                stable = old.id
                must(await it.seen(name, old.id, STABLE) == b"%d" % (number - 1), "the labelled value changed")
            if destroyed:
                await refused(VersionDisabledError, it, it.provider.read(name, old.id))
            must((await it.picture(name)).get(STABLE) == stable, "the label is not where it was put last")


async def of_many_creators_exactly_one_wins(it: Subject) -> None:
    """If several clients create a secret at the same time, one succeeds, and the others do not change the secret."""
    for _ in range(max(1, it.rounds // 10)):
        name = it.new_id()
        done = await asyncio.gather(
            *(it.provider.create(name, b"%d" % number) for number in range(4)), return_exceptions=True
        )
        for each in done:
            must(isinstance(each, SecretVersion | SecretExistsError), f"a creator got {type(each).__name__}")
        winners = [number for number, each in enumerate(done) if isinstance(each, SecretVersion)]
        must(len(winners) == 1, f"{len(winners)} creators won")
        found = await it.provider.read(name)
        must(found.value.reveal() == b"%d" % winners[0], "a loser's value is read")


async def a_reader_sees_old_or_new_and_never_goes_back(it: Subject) -> None:
    """During writes, a reader sees complete values only and, if reads are strong, never an older value again."""
    name, done = it.new_id(), asyncio.Event()
    holder = await it.provider.create(name, _sealed(0))
    strong = it.provider.guarantees.read_consistency is ReadConsistency.STRONG

    async def read() -> None:
        newest = 0
        async with it.factory() as client:
            while not done.is_set():
                number = _unsealed((await client.read(name)).value.reveal())
                must(number >= newest or not strong, f"{number} was read after {newest}")
                newest = number
                await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(read())
        try:
            for number in range(1, it.rounds + 1):
                holder = await it.provider.write(name, _sealed(number), expected=holder.id)
        finally:
            done.set()
    must(_unsealed(await it.seen(name, holder.id)) == it.rounds, "the last write is not what is read")


async def nothing_shows_a_value(it: Subject) -> None:
    """No result, no error and no cause of an error contains a secret's value when it is printed."""
    p, name, secret = it.provider, it.new_id(), f"S3CRET-{secrets.token_hex(8)}"
    value, shown = secret.encode(), []
    first = await p.create(name, value)
    shown.append(repr(first) + repr(await p.read(name)) + f"{await p.read(name)}" + repr(await p.versions(name)))
    limit = p.guarantees.max_value_bytes
    too_long = value * (limit // len(value) + 1)
    attempts: tuple[tuple[type[ProviderError], Callable[[], Awaitable[object]]], ...] = (
        (SecretExistsError, lambda: p.create(name, value)),
        (ConflictError, lambda: p.write(name, value, expected=None)),
        (SecretTooLargeError, lambda: p.write(name, too_long, expected=first.id)),
        (SecretNotFoundError, lambda: p.write(f"{name}-not", value, expected=None)),
    )
    for kind, begin in attempts:
        chain: list[BaseException] = []
        error: BaseException | None = await refused(kind, it, begin())
        while error is not None and error not in chain:  # a chain may lead back into itself
            chain.append(error)
            shown.append(repr(error) + "".join(traceback.format_exception(error)) + repr(vars(error)))
            error = error.__cause__ or error.__context__
    must(not any(secret in text or value.hex() in text for text in shown), "a value shows")


async def a_cancelled_write_leaves_old_or_new(it: Subject) -> None:
    """A write that is cancelled at any point is done completely or not at all, and the next write succeeds."""
    name = it.new_id()
    holder = await it.provider.create(name, _sealed(0))
    for number in range(1, min(it.rounds, 40) + 1):
        task = asyncio.ensure_future(it.provider.write(name, _sealed(number), expected=holder.id))
        for _ in range(number % 8):
            await asyncio.sleep(0)
        await asyncio.sleep(0.0002 * (number % 5))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        found = await it.current(name)
        value = _unsealed(found.value.reveal())
        must(value in (number, number - 1), f"{value} is read after a cancelled write of {number}")
        must((value == number - 1) == (found.version.id == holder.id), "a version's value changed")
        holder = await it.provider.write(name, _sealed(number), expected=found.version.id)


async def a_lost_answer_is_not_a_lost_race(it: Subject) -> None:
    """If an answer is lost after the change was made, the retry succeeds and makes no second change."""
    name = it.new_id()
    async with it.factory() as unlucky:
        first = await losing_the_answer(unlucky, "_create", lambda: unlucky.create(name, b"first"))
        second = await losing_the_answer(unlucky, "_write", lambda: unlucky.write(name, b"second", expected=first.id))
        await losing_the_answer(unlucky, "_label", lambda: unlucky.label(name, STABLE, first.id, expected=None))
        await losing_the_answer(unlucky, "_label", lambda: unlucky.label(name, STABLE, second.id, expected=first.id))
    must(len(await it.provider.versions(name)) == 2, "the retry left one more version")
    must(await it.seen(name, second.id) == b"second", "another value is read")
    must(await it.picture(name) == {CURRENT: second.id, STABLE: second.id}, "the labels are elsewhere")


async def what_is_declared_is_true(it: Subject) -> None:
    """A second client declares the same guarantees and sees what the first one wrote; the limits are plausible."""
    promised, name = it.provider.guarantees, it.new_id()
    must(1024 <= promised.max_value_bytes <= 1 << 30, "max_value_bytes is not a number of bytes")
    must(promised.history is None or promised.history >= 1, "history keeps no version to go back to")
    made = await it.provider.create(name, b"first")
    async with it.factory() as other:
        must(other.guarantees == promised, "two clients of one store declare different things")
        end = time.monotonic() + it.settle.total_seconds()
        while True:
            try:
                found = await other.read(name)
            except SecretNotFoundError:
                late = promised.read_consistency is ReadConsistency.STRONG or time.monotonic() >= end
                must(not late, "a second client does not see the secret")
                await asyncio.sleep(0.2)
            else:
                must(found.version.id == made.id, "a second client sees another version")
                return


PROVIDER_CHECKS: Final[tuple[Check, ...]] = checks_in(globals())


@contextlib.contextmanager
def _clock_ahead(hours: int) -> Iterator[None]:
    """Set the clock of all providers in this process ahead by some hours (negative: back), until the context ends."""

    def now_ms(_: SystemClock) -> int:
        return time.time_ns() // 1_000_000 + hours * 3_600_000

    with mock.patch.object(SystemClock, "now_ms", now_ms):
        yield


def _winner(done: Iterable[SecretVersion | BaseException]) -> SecretVersion:
    outcomes = list(done)
    winners = [each for each in outcomes if isinstance(each, SecretVersion)]
    _only_conflicts(each for each in outcomes if isinstance(each, BaseException))
    must(len(winners) == 1, f"{len(winners)} writers won")
    return winners[0]


def _only_conflicts(errors: Iterable[BaseException | None]) -> None:
    for error in errors:
        must(isinstance(error, ConflictError), f"a loser got {type(error).__name__}, not ConflictError")


def _sealed(number: int) -> bytes:
    """Return a value that contains `number` and its own checksum, so that a mixture of two values is detected."""
    body = b"%d:" % number + b"%d," % number * (number * 37 % 1500)
    return hashlib.sha256(body).digest() + body


def _unsealed(value: bytes) -> int:
    must(hashlib.sha256(value[32:]).digest() == value[:32], "a torn value was read")
    return int(value[32:].partition(b":")[0])
