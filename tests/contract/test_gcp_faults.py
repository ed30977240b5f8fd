"""Google Secret Manager with faults, at each request of each operation: old or new is seen, and nothing done twice."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import secrets
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud.secretmanager_v1 import types as wire

from goatherd.errors import (
    ConflictError,
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    ProviderError,
    SecretExistsError,
    SecretNotFoundError,
    ThrottledError,
    UnavailableError,
    VersionDisabledError,
)
from goatherd.providers.base import RetryPolicy
from goatherd.providers.gcp import GCPAddress, GCPSecretProvider
from goatherd.providers.gcp import provider as module
from goatherd.providers.gcp.journal import ANNOUNCED
from goatherd.providers.values import CURRENT, STABLE, Label, SecretValue, SecretVersion, VersionId, VersionState
from tests.deadlines import HANG
from tests.fakes.faults import Fault, FaultProxy, Mode
from tests.fakes.gcp_fake import ACCESS, READ, Failure, FakeSecretManager, StatusError

PROJECT = "goatherd-testing"
QUICK = RetryPolicy(attempts=5, base=timedelta(milliseconds=100))
NEVER = RetryPolicy(attempts=1)


@pytest.fixture(scope="module")
def server() -> Iterator[FakeSecretManager]:
    with FakeSecretManager(PROJECT) as running:
        yield running


@pytest.fixture
def fake(server: FakeSecretManager) -> Iterator[FakeSecretManager]:
    yield server
    server.before = server.after = server.damage = None
    server.failures.clear()
    server.quotas.clear()


@pytest.fixture
async def proxy(fake: FakeSecretManager) -> AsyncIterator[FaultProxy]:
    async with FaultProxy("127.0.0.1", fake.port) as running:
        yield running


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEASE", timedelta(milliseconds=600))
    monkeypatch.setattr(module, "_MARGIN", timedelta(milliseconds=100))


def client(port: int, *, retry: RetryPolicy = QUICK, timeout: float = 10) -> GCPSecretProvider:
    address = GCPAddress(project=PROJECT, endpoint=f"127.0.0.1:{port}")
    return GCPSecretProvider(
        address, retry=retry, timeout=timedelta(seconds=timeout), credentials=AnonymousCredentials()
    )


def new_secret() -> str:
    return f"goatdb-{secrets.token_hex(6)}"


async def back(provider: GCPSecretProvider, name: str) -> SecretValue:
    """Read as soon as it goes again: gRPC itself pauses up to two seconds between two attempts to connect."""
    async with asyncio.timeout(HANG):
        while True:
            with contextlib.suppress(UnavailableError):
                return await provider.read(name)


def stored(fake: FakeSecretManager, name: str) -> wire.Secret:
    return fake.service.get_secret(wire.GetSecretRequest(name=f"projects/{PROJECT}/secrets/{name}"))


def latest(fake: FakeSecretManager, name: str) -> bytes:
    """Return what a reader of ``latest`` gets."""
    request = wire.AccessSecretVersionRequest(name=f"projects/{PROJECT}/secrets/{name}/versions/latest")
    return fake.service.access_secret_version(request).payload.data


class At:
    """Does something at one of the requests that reach the server, counted from 0."""

    def __init__(self, number: int, action: Callable[[], None]) -> None:
        self.number, self.action, self.seen = number, action, 0

    def __call__(self, name: str, request: Any) -> None:
        self.seen += 1
        if self.seen == self.number + 1:
            self.action()


def dropping(proxy: FaultProxy, *, losing: bool) -> Callable[[], None]:
    """Return what ends all connections from the server's thread, and with `losing` the request with them."""
    loop = asyncio.get_running_loop()

    def drop() -> None:
        asyncio.run_coroutine_threadsafe(proxy.drop(), loop).result(5)
        if losing:
            raise StatusError("CANCELLED", "never seen")

    return drop


def failing(status: str, retry_after: float | None = None) -> Callable[[], None]:
    def fail() -> None:
        raise StatusError(status, "asked for by a test", retry_after=retry_after)

    return fail


def telling(event: asyncio.Event) -> Callable[[], None]:
    loop = asyncio.get_running_loop()
    return lambda: void(loop.call_soon_threadsafe(event.set))


def void(_: object) -> None:
    """Make nothing of it."""


# --- every fault at every request of every operation ------------------------------------------------------------------

Operation = Callable[[GCPSecretProvider, str], Awaitable[object]]


async def create(provider: GCPSecretProvider, name: str) -> None:
    await provider.create(f"{name}-made", b"made")


async def write(provider: GCPSecretProvider, name: str) -> None:
    await provider.write(name, b"new", expected="2")


async def write_candidate(provider: GCPSecretProvider, name: str) -> None:
    await provider.write(name, b"new", label="candidate", expected=None)


async def label(provider: GCPSecretProvider, name: str) -> None:
    await provider.label(name, STABLE, "1", expected=None)


async def destroy(provider: GCPSecretProvider, name: str) -> None:
    await provider.destroy(name, "1")


async def delete(provider: GCPSecretProvider, name: str) -> None:
    await provider.delete(name)


async def picture(provider: GCPSecretProvider, name: str) -> list[tuple[str, str, frozenset[str]]] | None:
    try:
        return [(v.id, v.state.value, v.labels) for v in await provider.versions(name)]
    except SecretNotFoundError:
        return None


OPERATIONS: tuple[Operation, ...] = (create, write, write_candidate, label, destroy, delete)


@pytest.mark.parametrize("kind", ["reply lost", "request lost", "UNAVAILABLE", "INTERNAL", "RESOURCE_EXHAUSTED"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
async def test_one_fault_at_any_request_changes_nothing_about_the_outcome(
    operation: Operation, kind: str, fake: FakeSecretManager, proxy: FaultProxy
):
    async def done(number: int | None) -> tuple[object, object, int]:
        """Do it with a fault at request `number`; return what is there then, and how many requests there were."""
        name = new_secret()
        async with client(fake.port) as calm:
            await calm.create(name, b"first")
            await calm.write(name, b"second", expected="1")
            seen = At(-1, lambda: None)
            fake.before, fake.after = seen, None
            if number is not None and kind == "reply lost":
                fake.after = At(number, dropping(proxy, losing=False))
            elif number is not None and kind == "request lost":
                fake.before = At(number, dropping(proxy, losing=True))
            elif number is not None:
                fake.before = At(number, failing(kind, 0.05 if kind == "RESOURCE_EXHAUSTED" else None))
            async with client(proxy.port) as unlucky:
                await operation(unlucky, name)
            fake.before = fake.after = None
            found = await picture(calm, name), await picture(calm, f"{name}-made")
            for each, there in zip((name, f"{name}-made"), found, strict=True):
                if there is not None:
                    assert ANNOUNCED not in stored(fake, each).annotations
            return *found, seen.seen

    expected = await done(None)
    assert 1 <= expected[2] <= 8
    for number in range(expected[2]):
        assert (await done(number))[:2] == expected[:2], f"request {number}"


@pytest.mark.slow
@pytest.mark.parametrize("effect", [True, False])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
async def test_without_a_retry_old_or_new_is_there_and_the_next_writer_gets_on(
    operation: Operation, effect: bool, fake: FakeSecretManager, proxy: FaultProxy, short_lease: None
):
    for number in range(6):
        name = new_secret()
        async with client(fake.port) as calm, client(proxy.port, retry=NEVER) as unlucky:
            await calm.create(name, b"first")
            await calm.write(name, b"second", expected="1")
            cut = At(number, dropping(proxy, losing=not effect))
            fake.before, fake.after = (None, cut) if effect else (cut, None)
            with contextlib.suppress(UnavailableError):
                await operation(unlucky, name)
            fake.before = fake.after = None
            if await picture(calm, name) is None:
                assert operation is delete
                await calm.create(name, b"again")
                continue
            found = await calm.read(name)
            assert found.value.reveal() in (b"second", b"new")
            version = await calm.write(name, b"next", expected=found.version.id)
            assert (await calm.read(name)).value.reveal() == b"next"
            assert latest(fake, name) == b"next"
            unlabelled = [v for v in await calm.versions(name) if not v.labels and v.state is VersionState.ENABLED]
            assert {v.id for v in unlabelled} <= {"1", found.version.id, "2"}, "what was left is disabled"
            assert version.labels == {CURRENT}


async def test_a_silent_store_costs_one_attempt_and_its_late_effect_harms_nobody(fake: FakeSecretManager):
    name, silent = new_secret(), threading.Event()
    async with client(fake.port) as calm, client(fake.port, timeout=6) as unlucky:
        await calm.create(name, b"first")
        fake.before = At(2, lambda: void(silent.wait(3.6)))  # the third request adds the version
        version = await unlucky.write(name, b"second", expected="1")
        silent.set()
        assert (await calm.read(name, version.id)).value.reveal() == b"second"
        assert (await calm.read(name)).version.id == version.id


async def test_refused_connections_are_unavailable_and_it_goes_on_when_they_are_not(fake: FakeSecretManager):
    name = new_secret()
    proxy = FaultProxy("127.0.0.1", fake.port)
    async with proxy, client(proxy.port) as provider:
        await provider.create(name, b"first")
        port = proxy.port
        await proxy.stop()
        async with client(port, retry=NEVER) as other:
            for each in (provider, other):
                with pytest.raises(UnavailableError):
                    await each.read(name)


@pytest.mark.parametrize("mode", [Mode.RESET, Mode.CUT, Mode.REPLY_LOST, Mode.BLACK_HOLE])
async def test_a_broken_connection_is_unavailable_and_never_a_missing_secret(mode: Mode, fake: FakeSecretManager):
    name = new_secret()
    async with (
        FaultProxy("127.0.0.1", fake.port) as proxy,
        client(proxy.port, timeout=2) as provider,
        client(fake.port) as calm,
    ):
        await calm.create(name, b"first")
        await back(provider, name)
        proxy.fault = Fault(mode=mode, after=20)
        with pytest.raises(UnavailableError):
            await provider.read(name)
        proxy.fault = Fault()
        await proxy.drop()
        assert (await back(provider, name)).value.reveal() == b"first"


async def test_a_slow_store_is_waited_for_and_no_longer_than_the_deadline(proxy: FaultProxy):
    name = new_secret()
    async with client(proxy.port, timeout=HANG) as patient, client(proxy.port, timeout=0.3) as hasty:
        await patient.create(name, b"first")
        proxy.fault = Fault(mode=Mode.DELAY, delay=timedelta(milliseconds=400))
        assert (await patient.read(name)).value.reveal() == b"first"
        async with asyncio.timeout(HANG):
            with pytest.raises(UnavailableError):
                await hasty.read(name)


# --- the newest version -----------------------------------------------------------------------------------------------


async def test_after_each_race_the_newest_version_is_the_current_one_and_no_loser_added_any(fake: FakeSecretManager):
    name = new_secret()
    async with client(fake.port) as left, client(fake.port) as right:
        holder = await left.create(name, b"0")
        for number in range(10):
            done = await asyncio.gather(
                *(it.write(name, b"%d" % number, expected=holder.id) for it in (left, right, left)),
                return_exceptions=True,
            )
            winners = [each for each in done if isinstance(each, SecretVersion)]
            assert [type(each) for each in done if isinstance(each, BaseException)] == [ConflictError] * 2
            holder = winners[0]
            assert latest(fake, name) == b"%d" % number
            assert len(await left.versions(name)) == number + 2


async def test_a_stalled_writer_gives_way_and_takes_its_version_back(
    fake: FakeSecretManager, short_lease: None, monkeypatch: pytest.MonkeyPatch
):
    name, stalled, go_on = new_secret(), asyncio.Event(), asyncio.Event()
    async with client(fake.port) as slow, client(fake.port) as quick:
        await slow.create(name, b"first")
        whole = slow._flipped

        async def late(*arguments: Any) -> Any:
            stalled.set()
            await go_on.wait()
            return await whole(*arguments)

        monkeypatch.setattr(slow, "_flipped", late)
        losing = asyncio.ensure_future(slow.write(name, b"slow", expected="1"))
        await stalled.wait()
        assert latest(fake, name) == b"slow", "as the service is: the newest version is the latest at once"
        winner = await quick.write(name, b"quick", expected="1")
        go_on.set()
        with pytest.raises(ConflictError):
            await losing
        assert (await quick.read(name)).version.id == winner.id
        assert latest(fake, name) == b"quick"
        assert {v.id: v.state.value for v in await quick.versions(name)} == {
            "1": "enabled",
            "2": "destroyed",
            "3": "enabled",
        }


async def test_what_a_dead_writer_left_is_disabled_and_what_stood_before_is_not(
    fake: FakeSecretManager, short_lease: None
):
    name = new_secret()
    async with client(fake.port) as calm:
        await calm.create(name, b"first")
        await calm.write(name, b"second", expected="1")
        await calm.label(name, CURRENT, "1", expected="2")

        dying = client(fake.port, retry=NEVER)
        dead = threading.Event()

        def die(method: str, request: Any) -> None:
            if method == "UpdateSecret" and "version_aliases" in request.update_mask.paths:
                dead.set()
            if dead.is_set():
                failing("UNAVAILABLE")()

        fake.before = die
        async with dying:
            with pytest.raises(UnavailableError):
                await dying.write(name, b"dead", expected="1")
        fake.before = None
        assert latest(fake, name) == b"dead", "as the service is: the newest version is the latest at once"
        await calm.write(name, b"alive", expected="1")
        assert latest(fake, name) == b"alive"
        states = {v.id: v.state.value for v in await calm.versions(name)}
        assert states == {"1": "enabled", "2": "enabled", "3": "disabled", "4": "enabled"}
        assert [v.id for v in await calm.versions(name) if v.is_leftover] == ["3"]
        await calm.destroy(name, "3")
        states = {v.id: (v.state.value, v.is_leftover) for v in await calm.versions(name)}
        assert states["3"] == ("destroyed", False)


async def test_a_cancelled_write_leaves_no_note_and_no_newer_version(fake: FakeSecretManager):
    async with client(fake.port) as provider:
        for number in range(6):
            name, reached = new_secret(), asyncio.Event()
            await provider.create(name, b"first")
            fake.before, fake.after = At(number, telling(reached)), At(number, telling(reached))
            task = asyncio.ensure_future(provider.write(name, b"second", expected="1"))
            waiting = asyncio.ensure_future(reached.wait())
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED, timeout=HANG)
            waiting.cancel()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            fake.before = fake.after = None
            assert ANNOUNCED not in stored(fake, name).annotations
            found = await provider.read(name)
            enabled = [v.id for v in await provider.versions(name) if v.state is VersionState.ENABLED]
            assert enabled[0] == found.version.id, f"cancelled at request {number}"


async def test_a_secret_that_was_made_empty_beforehand_takes_its_first_version(fake: FakeSecretManager):
    name = new_secret()
    secret = wire.Secret(replication=wire.Replication(automatic=wire.Replication.Automatic()))
    fake.service.create_secret(wire.CreateSecretRequest(parent=f"projects/{PROJECT}", secret_id=name, secret=secret))
    async with client(fake.port) as provider:
        made = await provider.create(name, b"first")
        assert (made.id, made.labels) == ("1", {CURRENT})
        with pytest.raises(SecretExistsError):
            await provider.create(name, b"again")


async def test_versions_without_any_label_are_not_taken_for_an_empty_secret(fake: FakeSecretManager):
    name = new_secret()
    secret = wire.Secret(replication=wire.Replication(automatic=wire.Replication.Automatic()))
    parent = f"projects/{PROJECT}"
    fake.service.create_secret(wire.CreateSecretRequest(parent=parent, secret_id=name, secret=secret))
    payload = wire.SecretPayload(data=b"theirs")
    fake.service.add_secret_version(wire.AddSecretVersionRequest(parent=f"{parent}/secrets/{name}", payload=payload))
    async with client(fake.port) as provider:
        with pytest.raises(SecretExistsError):
            await provider.create(name, b"ours")
        await provider.label(name, CURRENT, "1", expected=None)
        assert (await provider.read(name)).value.reveal() == b"theirs"


async def test_annotations_of_others_are_kept(fake: FakeSecretManager):
    name = new_secret()
    async with client(fake.port) as provider:
        await provider.create(name, b"first")
        found = stored(fake, name)
        theirs = wire.Secret(name=found.name, annotations={**found.annotations, "team": "goats"})
        fake.service.update_secret(wire.UpdateSecretRequest(secret=theirs, update_mask={"paths": ["annotations"]}))
        await provider.write(name, b"second", expected="1")
        await provider.label(name, STABLE, "1", expected=None)
        assert stored(fake, name).annotations["team"] == "goats"


# --- what the service says --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("PERMISSION_DENIED", ProviderAccessDeniedError),
        ("UNAUTHENTICATED", ProviderAccessDeniedError),
        ("RESOURCE_EXHAUSTED", ThrottledError),
        ("UNAVAILABLE", UnavailableError),
        ("DEADLINE_EXCEEDED", UnavailableError),
        ("ABORTED", UnavailableError),
        ("INTERNAL", UnavailableError),
        ("UNKNOWN", UnavailableError),
        ("DATA_LOSS", UnavailableError),
        ("CANCELLED", UnavailableError),
        ("INVALID_ARGUMENT", ProviderConfigurationError),
        ("FAILED_PRECONDITION", ProviderConfigurationError),
        ("UNIMPLEMENTED", ProviderConfigurationError),
        ("NOT_FOUND", SecretNotFoundError),
    ],
)
async def test_each_status_has_its_error(status: str, kind: type[ProviderError], fake: FakeSecretManager):
    name = new_secret()
    async with client(fake.port, retry=NEVER) as provider:
        await provider.create(name, b"first")
        fake.failures["*"] = Failure(status, times=None)
        with pytest.raises(ProviderError) as caught:
            await provider.read(name)
        assert type(caught.value) is kind
        assert caught.value.hint or kind in (SecretNotFoundError, UnavailableError, ProviderConfigurationError)


async def test_the_services_own_hint_says_how_long_to_wait(fake: FakeSecretManager):
    name = new_secret()
    async with client(fake.port, retry=NEVER) as provider, client(fake.port) as patient:
        await provider.create(name, b"first")
        fake.failures["AccessSecretVersion"] = Failure("RESOURCE_EXHAUSTED", times=2, retry_after=0.6)
        with pytest.raises(ThrottledError) as caught:
            await provider.read(name)
        assert caught.value.retry_after == pytest.approx(0.6)
        began = asyncio.get_running_loop().time()
        assert (await patient.read(name)).value.reveal() == b"first"
        assert asyncio.get_running_loop().time() - began >= 0.6


async def test_polling_uses_the_large_quota_and_almost_nothing_of_the_small_one(fake: FakeSecretManager):
    name = new_secret()
    async with client(fake.port, retry=NEVER) as writer, client(fake.port, retry=NEVER) as server:
        await writer.create(name, b"first")
        fake.calls.clear()
        for _ in range(20):
            await server.read(name)
        assert fake.calls == {"AccessSecretVersion": 20, "GetSecretVersion": 1}
        fake.quotas = {ACCESS: 0, READ: 0}
        with pytest.raises(ThrottledError):
            await server.read(name)


async def test_a_disabled_version_is_named_as_such(fake: FakeSecretManager):
    name = new_secret()
    async with client(fake.port) as provider:
        await provider.create(name, b"first")
        version = f"projects/{PROJECT}/secrets/{name}/versions/1"
        fake.service.disable_secret_version(wire.DisableSecretVersionRequest(name=version))
        for at in (CURRENT, VersionId("1")):
            with pytest.raises(VersionDisabledError, match="disabled"):
                await provider.read(name, at)
        with pytest.raises(VersionDisabledError):
            await provider.label(name, STABLE, "1", expected=None)


async def test_delayed_destruction_is_unreadable_at_once_and_asked_for_once(fake: FakeSecretManager):
    name = new_secret()
    async with client(fake.port) as provider:
        await provider.create(name, b"first")
        await provider.write(name, b"second", expected="1")
        ttl = wire.Secret(name=f"projects/{PROJECT}/secrets/{name}", version_destroy_ttl=timedelta(days=1))
        fake.service.update_secret(wire.UpdateSecretRequest(secret=ttl, update_mask={"paths": ["version_destroy_ttl"]}))
        fake.calls.clear()
        await provider.destroy(name, "1")
        await provider.destroy(name, "1")
        assert fake.calls["DestroySecretVersion"] == 1
        with pytest.raises(VersionDisabledError):
            await provider.read(name, VersionId("1"))


# --- damage -----------------------------------------------------------------------------------------------------------


def emptied(answer: wire.AccessSecretVersionResponse) -> object:
    return wire.AccessSecretVersionResponse(name=answer.name)


def changed(answer: wire.AccessSecretVersionResponse) -> object:
    answer.payload.data = answer.payload.data[:-1] + b"?"
    return answer


def cut(answer: wire.AccessSecretVersionResponse) -> object:
    answer.payload.data = answer.payload.data[:-1]
    return answer


def unsummed(answer: wire.AccessSecretVersionResponse) -> object:
    return wire.AccessSecretVersionResponse(name=answer.name, payload=wire.SecretPayload(data=answer.payload.data))


def renamed(answer: wire.AccessSecretVersionResponse) -> object:
    answer.name = "projects/1/secrets/another/versions/1"
    return answer


def nameless(answer: wire.AccessSecretVersionResponse) -> object:
    answer.name = ""
    return answer


def nothing(answer: wire.AccessSecretVersionResponse) -> object:
    return b""


def noise(answer: wire.AccessSecretVersionResponse) -> object:
    return b"\xff\xff\xff\xff\x00"


@pytest.mark.parametrize("damage", [emptied, changed, cut, unsummed, renamed, nameless, nothing, noise])
async def test_a_damaged_value_is_unavailable_and_never_returned(
    damage: Callable[[wire.AccessSecretVersionResponse], object], fake: FakeSecretManager
):
    name = new_secret()
    async with client(fake.port, retry=NEVER) as provider:
        await provider.create(name, b"first")
        fake.damage = lambda method, answer: damage(answer) if method == "AccessSecretVersion" else answer
        for at in (CURRENT, VersionId("1")):
            with pytest.raises(UnavailableError):
                await provider.read(name, at)


@pytest.mark.parametrize("method", ["GetSecret", "GetSecretVersion", "ListSecretVersions", "AddSecretVersion"])
@pytest.mark.parametrize("damage", [b"", b"\xff\xff\xff\xff\x00"])
async def test_a_damaged_description_is_unavailable_and_never_a_lost_label(
    method: str, damage: bytes, fake: FakeSecretManager
):
    if (method, damage) == ("ListSecretVersions", b""):
        pytest.skip("an empty list is what a secret without versions answers")
    name = new_secret()
    async with client(fake.port, retry=NEVER) as provider:
        await provider.create(name, b"first")
        fake.damage = lambda called, answer: damage if called == method else answer
        begin: dict[str, Callable[[], Awaitable[object]]] = {
            "GetSecret": lambda: provider.write(name, b"second", expected="1"),
            "AddSecretVersion": lambda: provider.write(name, b"second", expected="1"),
            "GetSecretVersion": lambda: provider.label(name, STABLE, "1", expected=None),
            "ListSecretVersions": lambda: provider.versions(name),
        }
        with pytest.raises(UnavailableError):
            await begin[method]()
        fake.damage = None
        assert (await provider.read(name)).value.reveal() == b"first"


async def test_a_list_that_lags_still_has_every_labelled_version(fake: FakeSecretManager):
    name = new_secret()
    async with client(fake.port) as provider:
        await provider.create(name, b"first")
        await provider.write(name, b"second", expected="1")
        fake.damage = lambda method, answer: (
            wire.ListSecretVersionsResponse() if method == "ListSecretVersions" else answer
        )
        assert [(v.id, v.labels) for v in await provider.versions(name)] == [("2", {CURRENT})]


async def test_lists_longer_than_a_page_are_whole(fake: FakeSecretManager):
    name = new_secret()
    fake.service.page = 2
    try:
        async with client(fake.port) as provider:
            version = await provider.create(name, b"0")
            for number in range(1, 6):
                version = await provider.write(name, b"%d" % number, expected=version.id)
            assert [v.id for v in await provider.versions(name)] == ["6", "5", "4", "3", "2", "1"]
    finally:
        fake.service.page = 25_000


async def test_no_error_of_the_service_shows_a_value(fake: FakeSecretManager):
    name, value = new_secret(), b"S3CRET-" + secrets.token_hex(8).encode()

    def shown(error: BaseException | None) -> Iterator[str]:
        while error is not None:
            yield repr(error) + repr(vars(error)) + "".join(traceback.format_exception(error))
            error = error.__cause__ or error.__context__

    async with client(fake.port, retry=NEVER) as provider:
        await provider.create(name, value)
        for status in ("INVALID_ARGUMENT", "INTERNAL", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED"):
            fake.failures["AddSecretVersion"] = Failure(status, message=f"cannot take {value.decode()}")
            with pytest.raises(ProviderError) as caught:
                await provider.write(name, value, label=f"l-{status}", expected=None)
            assert not any(value.decode() in text for text in shown(caught.value))


async def test_the_sdk_logs_no_value(fake: FakeSecretManager, caplog: pytest.LogCaptureFixture):
    name, value = new_secret(), b"S3CRET-" + secrets.token_hex(8).encode()
    names = ["google", *(each for each in logging.root.manager.loggerDict if each.startswith("google."))]
    for each in names:
        logger = logging.getLogger(each)
        logger.setLevel(logging.DEBUG)
        logger.propagate = True
    with caplog.at_level(logging.DEBUG):
        async with client(fake.port) as provider:
            await provider.create(name, value)
            assert (await provider.read(name)).value.reveal() == value
    told = "".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    encoded = base64.b64encode(value).decode()
    assert not [text for text in (value.decode(), encoded, encoded[:12]) if text in told]


async def test_a_foreign_alias_is_a_label_like_any_other(fake: FakeSecretManager):
    name = new_secret()
    async with client(fake.port) as provider:
        await provider.create(name, b"first")
        aliased = wire.Secret(name=f"projects/{PROJECT}/secrets/{name}", version_aliases={"current": 1, "prod": 1})
        fake.service.update_secret(wire.UpdateSecretRequest(secret=aliased, update_mask={"paths": ["version_aliases"]}))
        await provider.write(name, b"second", expected="1")
        assert (await provider.read(name, Label("prod"))).value.reveal() == b"first"
