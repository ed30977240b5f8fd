"""The provider base class: checks, errors, deadlines and retries around a plugin's private methods."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.errors import (
    ConfigurationError,
    ConflictError,
    ProviderConfigurationError,
    ProviderError,
    SecretNotFoundError,
    SecretTooLargeError,
    ThrottledError,
    UnavailableError,
)
from goatherd.providers.base import Call, Guarantees, ReadConsistency, RetryPolicy, SecretProvider
from goatherd.providers.memory import MemorySecretProvider
from goatherd.providers.values import (
    CURRENT,
    STABLE,
    Label,
    SecretBytes,
    SecretValue,
    SecretVersion,
    VersionId,
    check_label,
    secret_id_for,
)


class PatientClock:
    """A clock that does not wait, and records the requested durations."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now_ms(self) -> int:
        return 1_800_000_000_000

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, duration: timedelta) -> None:
        self.slept.append(duration.total_seconds())


class Failing(MemorySecretProvider):
    """A memory provider whose calls fail as scripted before they succeed."""

    def __init__(self, *failures: object, after: bool = False, **options) -> None:
        super().__init__(clock=PatientClock(), **options)
        self.failures = list(failures)
        self.after = after
        self.requests: list[str] = []

    @property
    def slept(self) -> list[float]:
        assert isinstance(self.clock, PatientClock)
        return self.clock.slept

    def _fail(self, call: Call) -> None:
        self.requests.append(call.request)
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, type) and issubclass(failure, ProviderError):
                raise call.error(failure, "scripted")
            if isinstance(failure, BaseException):
                raise failure

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        self._fail(call)
        return await super()._read(call, at)

    async def _label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
        await super()._label(call, label, version, expected)
        self._fail(call)

    async def _delete(self, call: Call) -> None:
        await super()._delete(call)
        self._fail(call)


async def made(*failures: object, **options) -> Failing:
    provider = Failing(*failures, **options)
    await provider.create("root", b"value")
    return provider


async def test_a_write_that_may_have_been_done_ends_as_unknown_though_the_last_attempt_was_only_throttled():
    class Busy(Failing):
        async def _write(self, call: Call, *rest: object) -> SecretVersion:
            self._fail(call)
            raise AssertionError

    provider = Busy(UnavailableError, ThrottledError, ThrottledError, retry=RetryPolicy(attempts=3))
    with pytest.raises(UnavailableError):
        await provider.write("root", b"x", expected="1")
    provider.failures = [ThrottledError] * 3
    with pytest.raises(ThrottledError):
        await provider.write("root", b"x", expected="1")


@pytest.mark.parametrize("kind", [ThrottledError, UnavailableError])
async def test_what_may_pass_by_itself_is_tried_again_with_growing_random_pauses(kind: type[ProviderError]):
    provider = await made(kind, kind, kind)
    assert (await provider.read("root")).value.reveal() == b"value"
    assert len(provider.slept) == 3
    for pause, longest in zip(provider.slept, (0.1, 0.2, 0.4), strict=True):
        assert longest / 10 <= pause <= longest
    assert len(set(provider.requests)) == 1, "every attempt of one call carries the same request"


async def test_the_last_error_is_raised_when_the_attempts_are_used_up():
    provider = await made(*[UnavailableError] * 9)
    with pytest.raises(UnavailableError, match="scripted"):
        await provider.read("root")
    assert len(provider.requests) == 5


@pytest.mark.parametrize("kind", [ConflictError, SecretNotFoundError, ProviderError, ProviderConfigurationError])
async def test_everything_else_is_raised_at_once(kind: type[ProviderError]):
    provider = await made(kind, kind)
    with pytest.raises(kind):
        await provider.read("root")
    assert provider.slept == []


async def test_an_error_marked_final_is_not_tried_again():
    provider = await made()
    call = Call(provider="memory", secret_id="root", operation="read")
    provider.failures = [call.error(UnavailableError, "damaged", final=True)]
    with pytest.raises(UnavailableError, match="damaged"):
        await provider.read("root")
    assert provider.slept == []
    assert UnavailableError.retryable, "the mark is on the one error, not on its class"


async def test_an_error_that_was_raised_without_its_call_gets_it():
    cause = ConnectionError("cut off")
    bare = ThrottledError("slow down", retry_after=2.5, hint="Ask less often.", final=True)
    bare.__cause__ = cause
    provider = await made(bare)
    with pytest.raises(ThrottledError, match=r"^memory: read 'root': slow down$") as caught:
        await provider.read("root")
    error = caught.value
    assert (error.provider, error.secret_id, error.operation) == ("memory", "root", "read")
    assert (error.hint, error.retry_after, error.retryable) == ("Ask less often.", 2.5, False)
    assert error.__cause__ is cause
    assert str(bare) == "slow down", "another call may get the same error"


async def test_an_error_of_a_plugin_s_own_class_gets_its_call_and_keeps_what_the_class_has_added():
    class StatusError(UnavailableError):
        def __init__(self, status: int) -> None:
            super().__init__(f"HTTP {status}", final=True)
            self.status = status

    provider = await made(StatusError(503))
    with pytest.raises(StatusError, match=r"^memory: read 'root': HTTP 503$") as caught:
        await provider.read("root")
    assert (caught.value.status, caught.value.secret_id, caught.value.retryable) == (503, "root", False)


async def test_the_store_s_own_wish_for_patience_is_heeded_unless_it_exceeds_the_deadline():
    def throttled(seconds: float) -> ThrottledError:
        error = Call(provider="memory", secret_id="root", operation="read").error(ThrottledError, "slow down")
        error.retry_after = seconds
        return error

    provider = await made(throttled(2.5))
    await provider.read("root")
    assert provider.slept == [2.5]
    for seconds in (60, 1e300, float("inf"), float("nan")):
        provider = await made(throttled(seconds))
        with pytest.raises(ThrottledError):
            await provider.read("root")
        assert provider.slept == []


async def test_a_store_that_never_answers_is_unavailable_at_the_deadline():
    class Silent(MemorySecretProvider):
        async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
            call.waits.append("another client holds the lock")
            await asyncio.Event().wait()
            raise AssertionError

    provider = Silent(timeout=timedelta(milliseconds=20))
    with pytest.raises(UnavailableError, match=r"no answer within 0\.02 s: another client holds the lock") as caught:
        await provider.read("root")
    assert (caught.value.provider, caught.value.secret_id, caught.value.operation) == ("memory", "root", "read")


async def test_a_time_out_of_the_plugin_s_own_is_unavailable_too():
    provider = await made(TimeoutError("inner"))
    assert (await provider.read("root")).value.reveal() == b"value"
    assert len(provider.slept) == 1


async def test_a_stranger_exception_is_named_but_not_quoted():
    provider = await made(KeyError("the-value"))
    with pytest.raises(ProviderError, match=r"the plugin failed with KeyError at test_base\.py:\d+") as caught:
        await provider.read("root")
    assert type(caught.value) is ProviderError
    assert "the-value" not in "".join(traceback.format_exception(caught.value))


class Breaks(MemorySecretProvider):
    """A plugin that fails while it is opened or closed."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    async def _open(self) -> None:
        if self.where == "open":
            raise KeyError("the-token")

    async def _close(self) -> None:
        if self.where == "close":
            raise KeyError("the-token")


@pytest.mark.parametrize("where", ["open", "close"])
async def test_a_stranger_exception_at_the_opening_or_closing_is_named_but_not_quoted(where: str):
    with pytest.raises(ProviderError, match=rf"{where} '': the plugin failed with KeyError at test_base\.py") as caught:
        async with Breaks(where):
            pass
    assert "the-token" not in "".join(traceback.format_exception(caught.value))


class Returns(MemorySecretProvider):
    """A plugin whose methods return `result`."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        return self.result

    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        return self.result

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        return self.result

    async def _versions(self, call: Call) -> list[SecretVersion]:
        return [self.result]


@pytest.mark.parametrize(
    ("attempt", "wanted"),
    [
        (lambda provider: provider.create("root", b"value"), "SecretVersion"),
        (lambda provider: provider.write("root", b"value", expected=None), "SecretVersion"),
        (lambda provider: provider.read("root"), "SecretValue"),
        (lambda provider: provider.versions("root"), "SecretVersion"),
    ],
)
async def test_what_a_plugin_returns_in_place_of_its_result_is_named_but_not_quoted(
    attempt: Callable[[Returns], Awaitable[object]], wanted: str
):
    for result in (None, b"the-value", "7"):
        with pytest.raises(ProviderError, match=f"returned a {type(result).__name__}, not a {wanted}") as caught:
            await attempt(Returns(result))
        assert "the-value" not in "".join(traceback.format_exception(caught.value))
        assert "bug in the plugin" in caught.value.hint


async def test_a_cancellation_passes_through():
    provider = await made(asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        await provider.read("root")


async def test_a_label_moved_by_an_attempt_whose_answer_was_lost_is_moved():
    provider = await made(UnavailableError)
    await provider.label("root", STABLE, "1", expected=None)
    assert (await provider.read("root", STABLE)).version.id == "1"


async def test_a_label_that_another_moved_meanwhile_is_a_conflict_even_on_a_retry():
    provider = await made()
    await provider.write("root", b"second", expected="1")

    class Overtaken(Failing):
        async def _label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
            if call.attempt == 1:
                await MemorySecretProvider._label(self, call, label, VersionId("2"), expected)
                raise call.error(UnavailableError, "lost")
            await MemorySecretProvider._label(self, call, label, version, expected)

    overtaken = Overtaken(store=provider.store)
    with pytest.raises(ConflictError):
        await overtaken.label("root", STABLE, "1", expected=None)


async def test_a_secret_deleted_by_an_attempt_whose_answer_was_lost_is_deleted():
    provider = await made(UnavailableError)
    await provider.delete("root")
    with pytest.raises(SecretNotFoundError):
        await provider.delete("root")


async def test_a_string_is_a_label_and_a_label_is_not_taken_for_a_version():
    provider = await made()
    assert (await provider.read("root", "current")).version == (await provider.read("root", CURRENT)).version
    with pytest.raises(ProviderConfigurationError, match="is not a valid label"):
        await provider.read("root", "1")
    for call in (provider.read, provider.get_secret_version):
        with pytest.raises(ProviderConfigurationError, match="1 is not a valid label") as caught:
            await call("root", 1)
        assert "VersionId('1')" in caught.value.hint
    with pytest.raises(TypeError, match="label was given in place of a version id"):
        await provider.write("root", b"x", expected=CURRENT)
    with pytest.raises(ProviderConfigurationError):
        await provider.label("root", VersionId("abc"), "1", expected=None)


async def test_a_value_longer_than_declared_does_not_come_out_of_a_plugin():
    provider = MemorySecretProvider()
    await provider.create("root", b"x" * 100)
    small = MemorySecretProvider(provider.store, max_value_bytes=99)
    with pytest.raises(SecretTooLargeError):
        await small.read("root")


async def test_a_store_that_cannot_destroy_is_not_asked_to():
    class Keeps(MemorySecretProvider):
        @property
        def guarantees(self) -> Guarantees:
            return Guarantees(cas=True, read_consistency=ReadConsistency.STRONG, destroys=False)

        async def _destroy(self, call: Call, version: VersionId) -> None:
            raise AssertionError

    with pytest.raises(ProviderConfigurationError, match="cannot destroy"):
        await Keeps().destroy("root", "1")


async def test_a_provider_entered_twice_is_opened_once_and_closed_at_the_end():
    class Counting(MemorySecretProvider):
        events: list[str] = []  # noqa: RUF012

        async def _open(self) -> None:
            self.events.append("open")

        async def _close(self) -> None:
            self.events.append("close")

    provider = Counting()
    async with provider:
        async with provider:
            pass
        assert provider.events == ["open"]
    assert provider.events == ["open", "close"]


async def test_who_enters_while_it_is_being_opened_waits_for_that():
    class Opens(MemorySecretProvider):
        may_go_on = asyncio.Event()
        events: list[str] = []  # noqa: RUF012

        async def _open(self) -> None:
            self.events.append("opening")
            await self.may_go_on.wait()
            self.events.append("open")

        async def _close(self) -> None:
            self.events.append("close")

    both = asyncio.Barrier(2)

    async def use(provider: Opens) -> None:
        async with provider:
            provider.events.append("used")
            await both.wait()

    provider = Opens()
    first, second = asyncio.create_task(use(provider)), asyncio.create_task(use(provider))
    await asyncio.sleep(0)
    assert provider.events == ["opening"]
    provider.may_go_on.set()
    await asyncio.gather(first, second)
    assert provider.events == ["opening", "open", "used", "used", "close"]


async def test_if_opening_fails_each_waiting_caller_tries_to_open():
    class Opens(MemorySecretProvider):
        tries = 0

        async def _open(self) -> None:
            self.tries += 1
            mine = self.tries
            await asyncio.sleep(0)
            if mine == 1:
                raise ConfigurationError("not yet")

    async def use(provider: Opens) -> int:
        async with provider:
            return provider.tries

    provider = Opens()
    first, second = await asyncio.gather(use(provider), use(provider), return_exceptions=True)
    assert isinstance(first, ConfigurationError)
    assert second == 2
    assert await use(provider) == 3, "it was closed behind the last"


async def test_a_provider_that_failed_to_open_can_be_entered_again():
    class Opens(MemorySecretProvider):
        tries = 0

        async def _open(self) -> None:
            self.tries += 1
            if self.tries == 1:
                raise ConfigurationError("not yet")

    provider = Opens()
    with pytest.raises(ConfigurationError):
        await provider.__aenter__()
    async with provider:
        assert provider.tries == 2


@given(st.text(max_size=30))
def test_an_organization_cannot_step_out_of_its_place(org: str):
    try:
        secret_id = secret_id_for("goatdb/{org}/root", org)
    except ConfigurationError:
        return
    first, middle, last = secret_id.split("/")
    assert (first, last) == ("goatdb", "root")
    assert middle.strip(".")
    assert middle.isascii()


@pytest.mark.parametrize("org", ["", ".", "..", "a/b", "../other", "a\\b", "{org}", "a b", "ä"])
def test_organizations_that_are_no_component_are_refused(org: str):
    with pytest.raises(ConfigurationError, match="organization"):
        secret_id_for("goatdb/{org}/root", org)


def test_every_place_for_the_organization_is_filled():
    assert secret_id_for("{org}/x-{org}", "acme") == "acme/x-acme"
    assert secret_id_for("root", "acme") == "root"


@pytest.mark.parametrize("text", ["current", "stable", "goatdb-candidate", "A_1", "x" * 63])
def test_labels_that_every_platform_takes_are_labels(text: str):
    assert check_label(text) == Label(text)


@given(st.integers(1, 60))
def test_a_pause_never_exceeds_the_cap(attempt: int):
    policy = RetryPolicy(base=timedelta(milliseconds=100), cap=timedelta(seconds=3))
    assert timedelta(0) < policy.delay(attempt) <= timedelta(seconds=3)


async def test_seven_private_methods_and_an_address_are_all_that_a_plugin_needs():
    class Smallest(SecretProvider):
        scheme = "smallest"

        @classmethod
        def from_uri(cls, uri: str) -> tuple[Self, str]:
            return cls(retry=RetryPolicy(attempts=1)), uri.rpartition("/")[2]

        @property
        def guarantees(self) -> Guarantees:
            return Guarantees(cas=False, read_consistency=ReadConsistency.EVENTUAL)

        async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
            return SecretVersion(id=VersionId("1"), created_ms=0, labels=frozenset({label}))

        async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
            raise call.error(SecretNotFoundError, "nothing here")

        async def _write(
            self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None
        ) -> SecretVersion:
            raise call.error(ConflictError, "always")

        async def _label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None: ...

        async def _versions(self, call: Call) -> Sequence[SecretVersion]:
            return (SecretVersion(id=VersionId("1"), created_ms=0, labels=frozenset({CURRENT})),)

        async def _destroy(self, call: Call, version: VersionId) -> None: ...

        async def _delete(self, call: Call) -> None: ...

    provider, secret_id = Smallest.from_config({"provider": "smallest", "secretId": "root", "region": "any"})
    async with provider:
        assert (await provider.create(secret_id, b"x")).id == "1"
        assert [version.id for version in await provider.versions(secret_id)] == ["1"]
        with pytest.raises(UnavailableError, match="answered success, but no version holds the label 'stable'"):
            await provider.label(secret_id, "stable", "1", expected=None)
        with pytest.raises(SecretNotFoundError, match="smallest: read 'root': nothing here"):
            await provider.read(secret_id)
    with pytest.raises(ConfigurationError, match="no option 'profile'"):
        Smallest.from_config({"provider": "smallest", "secretId": "root", "profile": "x"})
    with pytest.raises(ConfigurationError, match="secretId"):
        Smallest.from_config({"provider": "smallest"})
