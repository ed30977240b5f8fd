"""Check that a secret provider notices when its store falsely answers a request with success.

`ANSWER_CHECKS` has one check for each kind of wrong answer; `goatherd.testing.provider_checks` has the checks with a
store that answers correctly. A check runs each operation of the provider repeatedly, each time with a wrong answer to
another one of the requests that the operation makes. The operation must raise an error, or a second client must see the
reported change. The store must be able to answer wrongly (`goatherd.testing.wrong_answers`); with any other store these
checks are skipped.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from goatherd.errors import (
    ProviderError,
    SecretDeletedError,
    SecretNotFoundError,
    VersionDisabledError,
)
from goatherd.providers.base import ReadConsistency, RetryPolicy, SecretProvider
from goatherd.providers.values import CURRENT, STABLE, Label, SecretValue, SecretVersion, VersionState
from goatherd.testing.subject import Check, ContractViolationError, Subject, checks_in, must, needs
from goatherd.testing.wrong_answers import WrongAnswer, WrongAnswers

WHY_SKIPPED: Final = "runs over a store that cannot be made to answer wrongly; AnswerContract has this check for a fake"
_MOST_REQUESTS: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A secret with two versions, made for a check. The second is current; no label points at the first.

    Attributes:
        name: The name of the secret.
        new: The name of a secret that does not exist.
        first: The first version.
        second: The second version.
    """

    name: str
    new: str
    first: SecretVersion
    second: SecretVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation of a provider, and how to check that its success is true.

    Attributes:
        name: The operation's name, for messages.
        changes: Whether the operation changes the prepared secret, so that each run needs a new one.
        begin: Runs the operation with a provider on a prepared secret.
        confirm: Raises `ContractViolationError` if the operation reported a success that is not true.
    """

    name: str
    changes: bool
    begin: Callable[[SecretProvider, Prepared], Awaitable[object]]
    confirm: Callable[[Subject, Prepared, object], Awaitable[None]]


async def _confirm_create(it: Subject, prepared: Prepared, made: object) -> None:
    must(isinstance(made, SecretVersion), "create does not return a SecretVersion")
    if isinstance(made, SecretVersion):
        must(await it.seen(prepared.new, made.id) == b"new", "create reported success, and another value is read")
        must(
            await it.picture(prepared.new) == {CURRENT: made.id}, "create reported success, and the label is elsewhere"
        )


async def _confirm_write(it: Subject, prepared: Prepared, made: object) -> None:
    must(isinstance(made, SecretVersion), "write does not return a SecretVersion")
    if isinstance(made, SecretVersion):
        must(await it.seen(prepared.name, made.id) == b"third", "write reported success, and another value is read")
        must(await it.picture(prepared.name) == {CURRENT: made.id}, "write reported success, and a label is elsewhere")
        others = {version.id for version in await it.provider.versions(prepared.name)}
        extra = others - {prepared.first.id, prepared.second.id, made.id}
        must(len(extra) <= 1, f"one write left {len(extra)} more versions")


async def _confirm_label(it: Subject, prepared: Prepared, _: object) -> None:
    wanted = {CURRENT: prepared.second.id, STABLE: prepared.first.id}
    must(await it.picture(prepared.name) == wanted, "label reported success, and the label is elsewhere")


async def _confirm_destroy(it: Subject, prepared: Prepared, _: object) -> None:
    promised = it.provider.guarantees
    try:
        await it.provider.read(prepared.name, prepared.first.id)
    except VersionDisabledError:
        pass
    else:
        must(promised.deprecates and not promised.destroys, "destroy reported success, and the value is still read")
    states = {version.id: version.state for version in await it.provider.versions(prepared.name)}
    must(states.get(prepared.second.id) is VersionState.ENABLED, "destroy harmed another version")


async def _confirm_delete(it: Subject, prepared: Prepared, _: object) -> None:
    try:
        await it.provider.read(prepared.name)
    except (SecretNotFoundError, SecretDeletedError):
        return
    must(False, "delete reported success, and the secret is still read")


async def _confirm_current(it: Subject, prepared: Prepared, found: object) -> None:
    if isinstance(found, SecretValue):
        values = {prepared.first.id: b"first", prepared.second.id: b"second"}
        must(values.get(found.version.id) == found.value.reveal(), "a version was returned with another one's value")
        # Where reads are eventual, a label may lead to where it led before.
        strong = it.provider.guarantees.read_consistency is ReadConsistency.STRONG
        must(found.version.id == prepared.second.id or not strong, "another version was returned than the current one")


async def _confirm_first(_: Subject, prepared: Prepared, found: object) -> None:
    if isinstance(found, SecretValue):
        must(found.value.reveal() == b"first", "another version's value was returned for the one asked for")
        must(found.version.id == prepared.first.id, "another version was returned than the one asked for")


async def _confirm_versions(it: Subject, prepared: Prepared, found: object) -> None:
    if isinstance(found, list):
        listed = {version.id: version.labels for version in found}
        wanted = {prepared.first.id: frozenset[Label](), prepared.second.id: frozenset({CURRENT})}
        # Where reads are eventual, a list may lack what is new, but nothing that a label points at.
        if it.provider.guarantees.read_consistency is not ReadConsistency.STRONG:
            wanted = {version: labels for version, labels in wanted.items() if labels or version in listed}
        must(listed == wanted, "versions returned another list than the store's")


READS: Final = frozenset({"read", "read by id", "versions"})
OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        name="create",
        changes=False,
        begin=lambda client, at: client.create(at.new, b"new"),
        confirm=_confirm_create,
    ),
    Operation(name="read", changes=False, begin=lambda client, at: client.read(at.name), confirm=_confirm_current),
    Operation(
        name="read by id",
        changes=False,
        begin=lambda client, at: client.read(at.name, at.first.id),
        confirm=_confirm_first,
    ),
    Operation(
        name="versions", changes=False, begin=lambda client, at: client.versions(at.name), confirm=_confirm_versions
    ),
    Operation(
        name="write",
        changes=True,
        begin=lambda client, at: client.write(at.name, b"third", expected=at.second.id),
        confirm=_confirm_write,
    ),
    Operation(
        name="label",
        changes=True,
        begin=lambda client, at: client.label(at.name, STABLE, at.first.id, expected=None),
        confirm=_confirm_label,
    ),
    Operation(
        name="destroy",
        changes=True,
        begin=lambda client, at: client.destroy(at.name, at.first.id),
        confirm=_confirm_destroy,
    ),
    Operation(name="delete", changes=True, begin=lambda client, at: client.delete(at.name), confirm=_confirm_delete),
)


async def a_change_that_was_not_made_is_not_reported_as_made(it: Subject) -> None:
    """If the store reports success for a change that it has not made, the provider notices, or makes the change."""
    await _check_every_request(it, WrongAnswer.NOT_DONE)


async def a_change_that_was_made_twice_is_one_change(it: Subject) -> None:
    """If the store makes a change twice but answers once, at most one more version, without a label, is listed."""
    await _check_every_request(it, WrongAnswer.DONE_TWICE)


async def an_answer_about_another_version_is_not_taken_for_the_one_asked_for(it: Subject) -> None:
    """If the store answers a read with the data of another version or secret, the provider does not return them."""
    await _check_every_request(it, WrongAnswer.OTHER_VERSION)


async def an_empty_answer_is_neither_a_success_nor_an_absence(it: Subject) -> None:
    """If the store answers with success but without a body, that counts neither as success nor as a missing secret."""
    await _check_every_request(it, WrongAnswer.EMPTY)


async def a_cut_answer_is_neither_a_success_nor_an_absence(it: Subject) -> None:
    """If the store answers with success but half a body, that counts neither as success nor as a missing secret."""
    await _check_every_request(it, WrongAnswer.CUT)


async def _check_every_request(it: Subject, wrong: WrongAnswer) -> None:
    needs(it, it.answers is not None, WHY_SKIPPED)
    if it.answers is None:
        return
    given = 0
    prepared: Prepared | None = None
    promised = it.provider.guarantees
    client = it.factory()
    client.retry = RetryPolicy(attempts=client.retry.attempts, base=timedelta(0))
    async with client:
        for operation in OPERATIONS:
            if operation.name == "destroy" and not (promised.destroys or promised.deprecates or promised.disables):
                continue
            for position in range(1, _MOST_REQUESTS):
                if prepared is None or operation.changes:
                    prepared = await _prepare(it)
                prepared = replace(prepared, new=it.new_id())
                seen, was_given = await _check_request(it, client, it.answers, operation, wrong, position, prepared)
                given += was_given
                if seen < position:
                    break
    must(given > 0, "no request was answered wrongly: the store does not ask its WrongAnswers")


async def _prepare(it: Subject) -> Prepared:
    name = it.new_id()
    first = await it.provider.create(name, b"first")
    second = await it.provider.write(name, b"second", expected=first.id)
    return Prepared(name=name, new=it.new_id(), first=first, second=second)


async def _check_request(
    it: Subject,
    client: SecretProvider,
    answers: WrongAnswers,
    operation: Operation,
    wrong: WrongAnswer,
    position: int,
    prepared: Prepared,
) -> tuple[int, int]:
    """Run an operation in which one request is answered wrongly, and check that its result is right nevertheless.

    Args:
        it: The argument of the check.
        client: The provider that runs the operation.
        answers: Makes the store answer wrongly.
        operation: The operation.
        wrong: The kind of wrong answer.
        position: Which of the operation's requests is answered wrongly, from 1.
        prepared: The secret that the operation uses.

    Returns:
        How many requests the operation made, of those to which this kind of wrong answer applies, and how many were
        answered wrongly.
    """
    where = f"{operation.name}, request {position} of its kind answered wrongly ({wrong}): "
    answers.choose(wrong, position)
    failure: ProviderError | None = None
    done: object = None
    try:
        done = await operation.begin(client, prepared)
    except ProviderError as error:
        failure = error
    finally:
        counted = answers.seen, answers.given
        answers.choose(None)
    try:
        if failure is None:
            await operation.confirm(it, prepared, done)
        else:
            must(type(failure) is not ProviderError, f"the plugin has no error of its own for it: {failure}")
            is_absence = isinstance(failure, SecretNotFoundError | SecretDeletedError | VersionDisabledError)
            must(operation.name not in READS or not is_absence, f"it was taken for an absence: {failure}")
            await _check_untouched(it, prepared, operation)
    except (AssertionError, ProviderError) as error:
        raise ContractViolationError(f"{where}{error}") from None
    return counted


async def _check_untouched(it: Subject, prepared: Prepared, operation: Operation) -> None:
    """Check that after a failed operation, a reader sees the secret in its old or in its new state, and complete."""
    try:
        found = await it.provider.read(prepared.name)
    except (SecretNotFoundError, SecretDeletedError):
        must(operation.name == "delete", "it failed, and the secret is gone")
        return
    is_old = found.version.id == prepared.second.id and found.value.reveal() == b"second"
    is_new = found.version.id != prepared.second.id and found.value.reveal() == b"third"
    must(is_old or is_new, "it failed, and a reader sees neither the old value nor the new one")


ANSWER_CHECKS: Final[tuple[Check, ...]] = checks_in(globals())
