"""The contract suite fails for providers that break it: each mistake below is caught by the check named beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from goatherd.errors import ConflictError, SecretNotFoundError, VersionDisabledError
from goatherd.providers.base import Call, Guarantees, RetryPolicy, SecretProvider
from goatherd.providers.memory import MemorySecretProvider, MemoryStore
from goatherd.providers.values import Label, SecretBytes, SecretValue, SecretVersion, VersionId, VersionState
from goatherd.providers.versioned_record import VersionedRecord
from goatherd.testing.answer_checks import ANSWER_CHECKS, WHY_SKIPPED
from goatherd.testing.contract import check_name, check_provider, run_check
from goatherd.testing.subject import ContractViolationError
from goatherd.testing.wrong_answers import WrongAnswer, WrongAnswers


class Broken(MemorySecretProvider):
    """What the broken providers need to get at what is stored."""

    def record(self, call: Call) -> VersionedRecord:
        found = self.store.secrets.get(call.secret_id)
        return VersionedRecord() if found is None else found.record

    def put(self, call: Call, record: VersionedRecord) -> None:
        found = self.store.secrets[call.secret_id]
        self.store.secrets[call.secret_id] = found.with_record(record)

    @property
    def deleted(self) -> dict[tuple[str, int], SecretBytes]:
        kept: dict[tuple[str, int], SecretBytes] = vars(self.store).setdefault("deleted", {})
        return kept


class SortsAsText(Broken):
    async def _versions(self, call: Call) -> Sequence[SecretVersion]:
        return sorted(await super()._versions(call), key=lambda version: version.id, reverse=True)


class SortsByTime(Broken):
    async def _versions(self, call: Call) -> Sequence[SecretVersion]:
        return sorted(await super()._versions(call), key=lambda version: version.created_ms, reverse=True)


class LastWriterWins(Broken):
    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        holder = self.record(call).labels.get(label)
        return await super()._write(call, value, label, None if holder is None else VersionId(holder))


class LastMoverWins(Broken):
    async def _label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
        holder = self.record(call).labels.get(label)
        await super()._label(call, label, version, None if holder is None else VersionId(holder))


class Overwrites(Broken):
    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        self.store.secrets.pop(call.secret_id, None)
        return await super()._create(call, value, label)


class QuotesTheValue(Broken):
    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        try:
            return await super()._write(call, value, label, expected)
        except ConflictError as error:
            raise call.error(ConflictError, f"could not write {value.reveal()!r}") from error


class QuotesTheValueInTheCause(Broken):
    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        try:
            return await super()._write(call, value, label, expected)
        except ConflictError:
            raise call.error(ConflictError, "lost") from ValueError(value.reveal())


class LetsItsOwnErrorsOut(Broken):
    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        ledger = self.record(call)
        number = ledger.labels[at] if isinstance(at, Label) else int(at)
        value = self.store.secrets[call.secret_id].values[number]
        return SecretValue(version=ledger.describe_version(number), value=value)


class TakesDestroyedForMissing(Broken):
    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        try:
            return await super()._read(call, at)
        except VersionDisabledError as error:
            raise call.error(SecretNotFoundError, "no such version") from error


class DestroysWhatIsLabelled(Broken):
    async def _destroy(self, call: Call, version: VersionId) -> None:
        ledger = self.record(call)
        self.put(call, replace(replace(ledger, labels={}).without_value(call, version), labels=ledger.labels))


class DestroysWhatWasJustLabelled(Broken):
    """Reads the labels, and destroys the value later, even if a label has moved in between."""

    async def _destroy(self, call: Call, version: VersionId) -> None:
        self.record(call).without_value(call, version)
        await asyncio.sleep(0)
        ledger = self.record(call)
        self.put(call, replace(replace(ledger, labels={}).without_value(call, version), labels=ledger.labels))


class LabelsWhatWasJustDestroyed(Broken):
    """Reads the version, and moves the label later, even if the value was destroyed in between."""

    async def _label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
        before = self.record(call).with_label(call, label, version, expected)
        await asyncio.sleep(0)
        ledger = self.record(call)
        self.put(call, replace(ledger, labels=before.labels))


class MovesAllLabels(Broken):
    """Moves a label, and drops the other labels of the version that had it."""

    async def _label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
        holder = self.record(call).labels.get(label)
        await super()._label(call, label, version, expected)
        if holder is None or version == str(holder):
            return
        ledger = self.record(call)
        left = {each: number for each, number in ledger.labels.items() if number != holder}
        self.put(call, replace(ledger, labels=left))


class TakesAllLabelsOff(Broken):
    async def _unlabel(self, call: Call, label: Label, expected: VersionId) -> None:
        await super()._unlabel(call, label, expected)
        ledger = self.record(call)
        left = {each: number for each, number in ledger.labels.items() if number != int(expected)}
        self.put(call, replace(ledger, labels=left))


class ListsByPrefix(Broken):
    """Lists the versions of each secret whose name begins with the given one, as an object store does."""

    async def _versions(self, call: Call) -> Sequence[SecretVersion]:
        own = await super()._versions(call)
        others = [name for name in self.store.secrets if name != call.secret_id and name.startswith(call.secret_id)]
        return [*own, *(each for name in others for each in self.store.secrets[name].record.newest_first())]


class DeletesByPrefix(Broken):
    async def _delete(self, call: Call) -> None:
        await super()._delete(call)
        for name in [name for name in self.store.secrets if name.startswith(call.secret_id)]:
            await super()._delete(replace(call, secret_id=name))


class ForgetsItsRequest(Broken):
    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        return await super()._write(replace(call, request=f"{call.request}{call.attempt}"), value, label, expected)


class ForgetsItsCreation(Broken):
    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        return await super()._create(replace(call, request=f"{call.request}{call.attempt}"), value, label)


class StripsBytes(Broken):
    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        return await super()._write(call, SecretBytes(value.reveal().rstrip()), label, expected)


class KeepsValuesOfTheDeleted(Broken):
    """Deletes the record of versions and labels, but keeps the values."""

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        try:
            return await super()._read(call, at)
        except SecretNotFoundError:
            if at not in ("1", "2") or (call.secret_id, int(at)) not in self.deleted:
                raise
            left = self.deleted[call.secret_id, int(at)]
            return SecretValue(version=SecretVersion(id=VersionId(at), created_ms=0), value=left)

    async def _delete(self, call: Call) -> None:
        self.record(call).must_exist(call)
        left = self.store.secrets.pop(call.secret_id)
        self.deleted.update({(call.secret_id, number): value for number, value in left.values.items()})


class KeepsVersionsOfTheDeleted(KeepsValuesOfTheDeleted):
    """The values of the deleted secret are read again once the name is used again."""

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        self.record(call).must_exist(call)
        return await super()._read(call, at)


class KeepsLabelsOfTheDeleted(Broken):
    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        made = await super()._create(call, value, label)
        ledger = self.record(call)
        self.put(call, replace(ledger, labels={**ledger.labels, Label("stable"): 1}))
        return made


class ReusesIds(Broken):
    async def _destroy(self, call: Call, version: VersionId) -> None:
        await super()._destroy(call, version)
        ledger = self.record(call)
        left = {number: entry for number, entry in ledger.versions.items() if not entry.destroyed}
        self.put(call, VersionedRecord(versions=left, labels=ledger.labels))


class PromisesTooMuch(Broken):
    """Declares strong reads, but each client has a store of its own."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(None)


class TakesTooMuch(Broken):
    @property
    def guarantees(self) -> Guarantees:
        return replace(super().guarantees, max_value_bytes=MAX_OF_THE_STORE + 1)

    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        return await super()._create(call, SecretBytes(value.reveal()[:MAX_OF_THE_STORE]), label)


MAX_OF_THE_STORE = 65536

MISTAKES: list[tuple[type[MemorySecretProvider], str]] = [
    (SortsAsText, "eleven_versions_list_newest_first"),
    (SortsByTime, "a_wrong_clock_changes_nothing"),
    (LastWriterWins, "a_conflicting_write_changes_nothing"),
    (LastWriterWins, "of_two_writers_exactly_one_wins"),
    (LastMoverWins, "a_label_moves_by_compare_and_swap"),
    (LastMoverWins, "of_many_label_movers_exactly_one_wins"),
    (Overwrites, "creating_twice_is_refused_and_changes_nothing"),
    (Overwrites, "of_many_creators_exactly_one_wins"),
    (QuotesTheValue, "nothing_shows_a_value"),
    (QuotesTheValueInTheCause, "nothing_shows_a_value"),
    (LetsItsOwnErrorsOut, "what_is_not_there_is_not_found"),
    (TakesDestroyedForMissing, "a_destroyed_version_is_gone_for_good"),
    (DestroysWhatIsLabelled, "a_labelled_version_cannot_be_destroyed"),
    (DestroysWhatWasJustLabelled, "of_a_destruction_and_a_label_exactly_one_wins"),
    (LabelsWhatWasJustDestroyed, "of_a_destruction_and_a_label_exactly_one_wins"),
    (MovesAllLabels, "a_label_moves_by_compare_and_swap"),
    (TakesAllLabelsOff, "a_label_is_taken_off_by_compare_and_swap"),
    (ListsByPrefix, "secrets_with_similar_names_are_kept_apart"),
    (DeletesByPrefix, "secrets_with_similar_names_are_kept_apart"),
    (ForgetsItsRequest, "a_lost_answer_is_not_a_lost_race"),
    (ForgetsItsCreation, "a_lost_answer_is_not_a_lost_race"),
    (StripsBytes, "any_bytes_come_back_as_they_were"),
    (KeepsValuesOfTheDeleted, "a_deleted_secret_is_gone_and_can_be_made_again"),
    (KeepsVersionsOfTheDeleted, "a_deleted_secret_is_gone_and_can_be_made_again"),
    (KeepsLabelsOfTheDeleted, "a_deleted_secret_is_gone_and_can_be_made_again"),
    (ReusesIds, "a_destroyed_version_is_gone_for_good"),
    (PromisesTooMuch, "what_is_declared_is_true"),
    (TakesTooMuch, "sizes_are_limited_on_the_byte"),
]


@pytest.mark.parametrize(("broken", "check"), MISTAKES, ids=lambda each: getattr(each, "__name__", each))
async def test_a_broken_provider_fails_the_check_that_is_for_it(broken: type[MemorySecretProvider], check: str):
    store = MemoryStore()

    def factory() -> SecretProvider:
        provider = broken(store)
        provider.retry = RetryPolicy(base=timedelta(0))
        return provider

    report = await check_provider(factory, rounds=20, settle=timedelta(0))
    assert check in [failure.check for failure in report.failures]


class CountsFromZero(Broken):
    """Correct: the ids of its versions begin at 0."""

    def _own_id(self, version: VersionId) -> VersionId:
        is_number = version.isascii() and version.isdigit() and str(int(version)) == version
        return VersionId(str(int(version) + 1)) if is_number else version

    def _shown(self, version: SecretVersion) -> SecretVersion:
        return replace(version, id=VersionId(str(int(version.id) - 1)))

    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        return self._shown(await super()._create(call, value, label))

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        found = await super()._read(call, self._own_id(at) if isinstance(at, VersionId) else at)
        return replace(found, version=self._shown(found.version))

    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        held = None if expected is None else self._own_id(expected)
        return self._shown(await super()._write(call, value, label, held))

    async def _label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
        held = None if expected is None else self._own_id(expected)
        await super()._label(call, label, self._own_id(version), held)

    async def _unlabel(self, call: Call, label: Label, expected: VersionId) -> None:
        await super()._unlabel(call, label, self._own_id(expected))

    async def _versions(self, call: Call) -> Sequence[SecretVersion]:
        return [self._shown(version) for version in await super()._versions(call)]

    async def _destroy(self, call: Call, version: VersionId) -> None:
        await super()._destroy(call, self._own_id(version))


class OnlyDisablesAndCountsFromZero(CountsFromZero):
    @property
    def guarantees(self) -> Guarantees:
        return replace(super().guarantees, destroys=False, disables=True)

    async def _versions(self, call: Call) -> Sequence[SecretVersion]:
        found = await super()._versions(call)
        return [
            replace(one, state=VersionState.DISABLED) if one.state is VersionState.DESTROYED else one for one in found
        ]


@pytest.mark.parametrize("correct", [CountsFromZero, OnlyDisablesAndCountsFromZero])
async def test_a_correct_provider_passes_also_if_its_first_version_is_0(correct: type[MemorySecretProvider]):
    store = MemoryStore()
    report = await check_provider(lambda: correct(store), rounds=5, settle=timedelta(0))
    assert [(one.check, str(one.error)) for one in report.failures] == []


@pytest.mark.slow
async def test_what_a_provider_does_not_promise_is_skipped_with_the_reason_and_not_passed():
    class Weak(Broken):
        @property
        def guarantees(self) -> Guarantees:
            return replace(super().guarantees, cas=False, destroys=False)

    store = MemoryStore()
    report = await check_provider(lambda: Weak(store), rounds=5, settle=timedelta(0))
    skipped = {outcome.check: outcome.skipped for outcome in report.outcomes if outcome.skipped}
    assert not report.has_failures
    assert skipped == {
        **{check_name(check): f"memory {WHY_SKIPPED}" for check in ANSWER_CHECKS},
        "a_store_that_only_deprecates_keeps_what_is_labelled": "memory declares deprecates=False",
        "a_store_that_only_disables_does_not_read_what_is_off": "memory declares disables=False",
        "a_deleted_secret_that_can_be_restored_is_neither_there_nor_missing": "memory declares recoverable=False",
        "a_destroyed_version_is_gone_for_good": "memory declares destroys=False",
        "a_labelled_version_cannot_be_destroyed": "memory declares destroys=False",
        "of_a_destruction_and_a_label_exactly_one_wins": "memory declares destroys=False",
        "of_two_writers_exactly_one_wins": "memory declares cas=False",
        "of_two_writers_at_most_one_believes_that_it_won": "memory declares best_effort_cas=False",
        "of_many_label_movers_exactly_one_wins": "memory declares cas=False",
    }


# --- wrong answers ----------------------------------------------------------------------------------------------------


class Trusting(Broken):
    """Trusts the answers of its store. Faults are put between the methods of this class and those of its base."""

    def __init__(self, store: MemoryStore, answers: WrongAnswers) -> None:
        super().__init__(store)
        self.answers = answers

    def _fate(self, *, changes: bool) -> WrongAnswer | None:
        wrong = self.answers.take(changes=changes)
        self.answers.given += wrong is not None
        return wrong

    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        wrong = self._fate(changes=True)
        made = await super()._create(call, value, label)
        if wrong is WrongAnswer.NOT_DONE:
            del self.store.secrets[call.secret_id]
        return made

    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        wrong, before = self._fate(changes=True), self.store.secrets.get(call.secret_id)
        written = await super()._write(call, value, label, expected)
        if wrong is WrongAnswer.NOT_DONE and before is not None:
            self.store.secrets[call.secret_id] = before
        if wrong is WrongAnswer.DONE_TWICE:
            await super()._write(replace(call, request=f"{call.request}2"), value, label, written.id)
        return written

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        wrong = self._fate(changes=False)
        if wrong in (WrongAnswer.EMPTY, WrongAnswer.CUT):
            raise call.error(SecretNotFoundError, "there is nothing in the answer")
        found = await super()._read(call, at)
        if wrong is WrongAnswer.OTHER_VERSION:
            other = "1" if found.version.id == "2" else "2"
            return replace(found, value=(await super()._read(call, VersionId(other))).value)
        return found


class Confirming(Trusting):
    confirms_labels = True


@pytest.mark.parametrize(
    ("check", "catches"),
    [
        ("a_change_that_was_not_made_is_not_reported_as_made", "another value is read|no such secret"),
        ("a_change_that_was_made_twice_is_one_change", "leads to"),
        ("an_answer_about_another_version_is_not_taken_for_the_one_asked_for", "another one's value"),
        ("an_empty_answer_is_neither_a_success_nor_an_absence", "taken for an absence"),
        ("a_cut_answer_is_neither_a_success_nor_an_absence", "taken for an absence"),
    ],
)
async def test_a_provider_that_believes_every_answer_fails_the_checks_of_answers(check: str, catches: str):
    store, answers = MemoryStore(), WrongAnswers()
    (one,) = (each for each in ANSWER_CHECKS if check_name(each) == check)
    with pytest.raises(ContractViolationError, match=catches):
        await run_check(one, lambda: Trusting(store, answers), settle=timedelta(0), answers=answers)


async def test_reading_the_labels_back_is_what_notices_a_change_that_was_not_made():
    store, answers = MemoryStore(), WrongAnswers()
    await run_check(ANSWER_CHECKS[0], lambda: Confirming(store, answers), settle=timedelta(0), answers=answers)


async def test_a_store_that_gives_no_wrong_answer_fails_the_checks_of_answers():
    store = MemoryStore()
    with pytest.raises(ContractViolationError, match="no request was answered wrongly"):
        await run_check(
            ANSWER_CHECKS[0], lambda: MemorySecretProvider(store), settle=timedelta(0), answers=WrongAnswers()
        )
