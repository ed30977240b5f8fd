"""Faults of AWS Secrets Manager: truncated answers, lost replies, a store that is unavailable for a while."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.clock import SystemClock
from goatherd.errors import (
    SecretDeletedError,
    UnavailableError,
)
from goatherd.providers.aws.client import THREADS
from goatherd.providers.aws.provider import CANDIDATE
from goatherd.providers.values import CURRENT, STABLE
from tests.contract.signers.faulty_http import answering
from tests.deadlines import HANG
from tests.fakes.aws_fake import ACCESS_KEY, FakeSecretsManager
from tests.fakes.faults import Fault, FaultProxy, Mode

from .clients import provider_at, sent

SECRET = "goatdb/prod/root"


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)


async def test_a_store_that_is_not_there_is_unavailable_soon():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with provider_at(url) as store:
            with pytest.raises(UnavailableError, match="connection refused"):
                await store.read(SECRET)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(mode=Mode.RESET, times=2),
        Fault(mode=Mode.CUT, after=60, times=1),
        Fault(mode=Mode.CUT, after=0, times=1),
        Fault(mode=Mode.CUT, after=250, times=1),
        Fault(mode=Mode.DELAY, delay=timedelta(milliseconds=300), times=1),
    ],
    ids=lambda fault: f"{fault.mode}-{fault.after}",
)
async def test_a_read_outlives_what_passes(fake: FakeSecretsManager, fault: Fault):
    async with FaultProxy("127.0.0.1", fake.port) as proxy, provider_at(f"http://127.0.0.1:{proxy.port}") as store:
        first = await store.create(SECRET, b"1")
        proxy.fault = fault
        found = await store.read(SECRET)
    assert (found.version.id, found.value.reveal()) == (first.id, b"1")


async def test_a_black_hole_is_unavailable_at_the_deadline(fake: FakeSecretsManager):
    async with (
        FaultProxy("127.0.0.1", fake.port) as proxy,
        provider_at(f"http://127.0.0.1:{fake.port}") as calm,
        provider_at(f"http://127.0.0.1:{proxy.port}", timeout=1.2) as store,
    ):
        await calm.create(SECRET, b"1")
        proxy.fault = Fault(mode=Mode.BLACK_HOLE)
        async with asyncio.timeout(HANG):
            with pytest.raises(UnavailableError):
                await store.read(SECRET)


STEPS = ["DescribeSecret", "PutSecretValue", "GetSecretValue", "UpdateSecretVersionStage"]
PASSING = [
    Fault(mode=Mode.REPLY_LOST, times=1),
    Fault(mode=Mode.RESET, times=1),
    Fault(mode=Mode.CUT, after=100, times=1),
]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: str(fault.mode))
async def test_a_write_that_is_hit_at_any_step_is_done_once(fake: FakeSecretsManager, step: str, fault: Fault):
    async with FaultProxy("127.0.0.1", fake.port) as proxy, provider_at(f"http://127.0.0.1:{proxy.port}") as store:
        first = await store.create(SECRET, b"1")
        proxy.fault = Fault(mode=fault.mode, after=fault.after, times=1, match=f"secretsmanager.{step}".encode())
        second = await store.write(SECRET, b"2", expected=first.id)
        found = await store.read(SECRET)
        assert (found.version.id, found.value.reveal()) == (second.id, b"2")
        assert len(await store.versions(SECRET)) == 2
        assert fake.stages(SECRET) == {first.id: ["AWSPREVIOUS"], second.id: [CANDIDATE, "AWSCURRENT"]}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("code", ["InternalServiceError", "ThrottlingException"])
async def test_a_write_that_took_effect_though_the_answer_was_an_error_is_done_once(
    fake: FakeSecretsManager, step: str, code: str
):
    async with provider_at(fake.url) as store:
        first = await store.create(SECRET, b"1")
        fake.fail(code, status=500 if code == "InternalServiceError" else 400, operation=step, times=2, after=True)
        second = await store.write(SECRET, b"2", expected=first.id)
        assert (await store.read(SECRET)).version.id == second.id
        assert list(fake.stages(SECRET)) == [first.id, second.id]


@pytest.mark.parametrize("operation", ["CreateSecret", "GetSecretValue"])
async def test_a_creation_whose_reply_is_lost_is_done_once(fake: FakeSecretsManager, operation: str):
    async with FaultProxy("127.0.0.1", fake.port) as proxy, provider_at(f"http://127.0.0.1:{proxy.port}") as store:
        proxy.fault = Fault(mode=Mode.REPLY_LOST, times=1, match=f"secretsmanager.{operation}".encode())
        made = await store.create(SECRET, b"1")
        assert fake.stages(SECRET) == {made.id: ["AWSCURRENT"]}


async def test_a_label_and_a_deletion_whose_reply_is_lost_are_done(fake: FakeSecretsManager):
    async with FaultProxy("127.0.0.1", fake.port) as proxy, provider_at(f"http://127.0.0.1:{proxy.port}") as store:
        first = await store.create(SECRET, b"1")
        proxy.fault = Fault(mode=Mode.REPLY_LOST, times=1, match=b"UpdateSecretVersionStage")
        await store.label(SECRET, STABLE, first.id, expected=None)
        assert fake.stages(SECRET) == {first.id: ["AWSCURRENT", "stable"]}
        proxy.fault = Fault(mode=Mode.REPLY_LOST, times=1, match=b"DeleteSecret")
        await store.delete(SECRET)
        with pytest.raises(SecretDeletedError):
            await store.read(SECRET)


class Held(SystemClock):
    """A clock whose sleep ends when the test releases it."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def sleep(self, duration: timedelta) -> None:
        await self.go_on.wait()


async def test_a_write_that_won_and_was_overtaken_before_its_retry_has_won(fake: FakeSecretsManager):
    async with (
        FaultProxy("127.0.0.1", fake.port) as proxy,
        provider_at(f"http://127.0.0.1:{proxy.port}", timeout=HANG) as slow,
        provider_at(fake.url) as quick,
    ):
        first = await slow.create(SECRET, b"1")
        slow.clock = held = Held()
        proxy.fault = Fault(mode=Mode.REPLY_LOST, times=1, match=b"UpdateSecretVersionStage")
        writing = asyncio.create_task(slow.write(SECRET, b"2", expected=first.id))
        while (holder := (await quick.read(SECRET)).version.id) == first.id:
            await asyncio.sleep(0.005)
        third = await quick.write(SECRET, b"3", expected=holder)
        held.go_on.set()
        second = await writing
        assert second.id == holder
        assert CURRENT not in second.labels
        assert (await quick.read(SECRET)).version.id == third.id


async def test_an_outage_of_some_calls_is_outlived_and_a_longer_one_reported(fake: FakeSecretsManager):
    async with provider_at(fake.url) as store:
        first = await store.create(SECRET, b"1")
        fake.fail("InternalServiceError", status=500, times=4)
        assert (await store.read(SECRET)).version.id == first.id
        fake.fail("InternalServiceError", status=500, times=5)
        with pytest.raises(UnavailableError, match="500"):
            await store.read(SECRET)
        assert (await store.read(SECRET)).version.id == first.id


async def test_a_move_that_is_refused_for_no_reason_shown_yet_is_asked_again(fake: FakeSecretsManager):
    """Another client's write may not be visible yet at a lagging replica."""
    async with provider_at(fake.url) as store:
        first = await store.create(SECRET, b"1")
        fake.fail("InvalidParameterException", operation="UpdateSecretVersionStage")
        second = await store.write(SECRET, b"2", expected=first.id)
        assert (await store.read(SECRET)).version.id == second.id
        fake.fail("InvalidParameterException", operation="UpdateSecretVersionStage", times=9)
        with pytest.raises(UnavailableError, match="the reason is not visible yet"):
            await store.label(SECRET, STABLE, first.id, expected=None)


async def test_a_version_that_loses_its_last_label_meanwhile_is_destroyed(fake: FakeSecretsManager):
    async with provider_at(fake.url) as store:
        first = await store.create(SECRET, b"1")
        await store.write(SECRET, b"2", expected=first.id)
        assert fake.stages(SECRET)[first.id] == ["AWSPREVIOUS"]
        # AWS moves AWSPREVIOUS when another writer moves AWSCURRENT, and rejects its removal from the former holder.
        fake.fail("InvalidParameterException", operation="UpdateSecretVersionStage", after=True)
        await store.destroy(SECRET, first.id)
    assert fake.stages(SECRET)[first.id] == []


async def test_what_was_written_and_is_not_seen_yet_is_waited_for(fake: FakeSecretsManager):
    async with provider_at(fake.url) as store:
        fake.fail("ResourceNotFoundException", operation="GetSecretValue", times=2)
        first = await store.create(SECRET, b"1")
        fake.fail("ResourceNotFoundException", operation="GetSecretValue", times=2)
        second = await store.write(SECRET, b"2", expected=first.id)
        assert list(fake.stages(SECRET)) == [first.id, second.id]


async def test_a_cancelled_request_that_waits_for_a_thread_is_not_sent(fake: FakeSecretsManager):
    async with provider_at(fake.url) as store:
        await store.create(SECRET, b"1")
        fake.requests.clear()
        with fake._lock:  # the service stands still
            reads = [asyncio.create_task(store.read(SECRET)) for _ in range(THREADS)]
            await asyncio.sleep(0.1)
            late = asyncio.create_task(store.delete(SECRET))
            await asyncio.sleep(0.05)
            late.cancel()
            with pytest.raises(asyncio.CancelledError):
                await late
        await asyncio.gather(*reads)
    assert sent(fake, "DescribeSecret") == []
    assert sent(fake, "DeleteSecret") == []


ASSUMED = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult>
<AssumedRoleUser><Arn>arn:aws:sts::123456789012:assumed-role/herd/it</Arn><AssumedRoleId>A:it</AssumedRoleId></AssumedRoleUser>
<Credentials><AccessKeyId>ASIAHERD</AccessKeyId><SecretAccessKey>x</SecretAccessKey><SessionToken>t</SessionToken>
<Expiration>2999-01-01T00:00:00Z</Expiration></Credentials>
</AssumeRoleWithWebIdentityResult>
</AssumeRoleWithWebIdentityResponse>"""


async def test_a_token_service_that_is_silent_once_is_asked_again_soon(
    fake: FakeSecretsManager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    async with provider_at(fake.url) as store:
        await store.create(SECRET, b"1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "token").write_text("header.claims.signature")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/herd")
    fake.keys.add("ASIAHERD")
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: {len(ASSUMED)}\r\n\r\n"
    with answering(f"{head}{ASSUMED}".encode()) as port:
        async with FaultProxy("127.0.0.1", port) as proxy, provider_at(fake.url, timeout=4) as store:
            monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{proxy.port}")
            proxy.fault = Fault(mode=Mode.BLACK_HOLE, times=1)
            async with asyncio.timeout(HANG / 2):
                found = None
                while found is None:
                    with suppress(UnavailableError):  # on a busy machine, the first call may reach its deadline
                        found = await store.read(SECRET)
    assert found.value.reveal() == b"1"
    assert fake.requests[-1].key == "ASIAHERD"


READ: str = """
import asyncio
from datetime import timedelta
from goatherd.providers.aws.address import AWSAddress
from goatherd.providers.aws.provider import AWSSecretProvider

async def main():
    async with AWSSecretProvider(AWSAddress(region="eu-west-1"), timeout=timedelta(seconds=1)) as store:
        await store.read("goatdb/prod/root")

asyncio.run(main())
"""


async def test_a_source_of_credentials_that_hangs_does_not_keep_the_process_from_ending(tmp_path: Path):
    login = tmp_path / "login"
    os.mkfifo(login)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = cat {login}\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_SHARED_CREDENTIALS_FILE": "/no/such/file"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", READ, env=environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(HANG):
            _, told = await process.communicate()
    finally:
        with suppress(OSError):  # nothing reads it any more
            os.close(os.open(login, os.O_WRONLY | os.O_NONBLOCK))
        if process.returncode is None:
            await process.wait()
    assert b"no answer within 1 s" in told
