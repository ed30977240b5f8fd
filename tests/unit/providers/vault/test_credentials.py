"""Callers share one login to Vault, and closing the provider waits for a login that was cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from goatherd.clock import SystemClock
from goatherd.errors import ProviderConfigurationError
from goatherd.providers.vault.auth import AppRoleAuth, Credentials, TokenAuth
from tests.deadlines import HANG
from tests.unit.providers.homeless import make_homeless


async def test_a_user_without_a_home_directory_has_no_token_file(monkeypatch: pytest.MonkeyPatch) -> None:
    async def send(
        method: str, path: str, *, token: str | None, body: Mapping[str, object] | None = None
    ) -> tuple[int, dict[str, Any]]:
        raise AssertionError("there is no token to send")

    make_homeless(monkeypatch)
    auth = TokenAuth(variables=("VAULT_TOKEN",), file="~/.vault-token")
    credentials = Credentials(auth, send, clock=SystemClock(), environment={})
    with pytest.raises(ProviderConfigurationError, match="no token"):
        await credentials.current_token()


async def test_closing_waits_for_the_end_of_a_cancelled_login() -> None:
    sending = asyncio.Event()
    ended: list[str] = []

    async def send(
        method: str, path: str, *, token: str | None, body: Mapping[str, object] | None = None
    ) -> tuple[int, dict[str, Any]]:
        sending.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(3):  # as a client needs some rounds of the event loop to close its connection
                await asyncio.sleep(0)
            ended.append(f"{method} {path} {token} {body}")
        raise AssertionError("the login is cancelled")

    credentials = Credentials(AppRoleAuth(role_id="r"), send, clock=SystemClock(), environment={})
    caller = asyncio.create_task(credentials.current_token())
    await sending.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not ended
    await credentials.close()
    assert len(ended) == 1


async def test_a_caller_that_learns_in_the_moment_of_a_login_that_its_token_is_invalid_logs_in_no_second_time() -> None:
    answers: list[tuple[str, asyncio.Future[tuple[int, dict[str, Any]]]]] = []

    async def send(
        method: str, path: str, *, token: str | None, body: Mapping[str, object] | None = None
    ) -> tuple[int, dict[str, Any]]:
        assert len(answers) < 3, "logged in twice"
        answers.append((path, asyncio.get_running_loop().create_future()))
        return await answers[-1][1]

    async def wait_for(count: int) -> None:
        async with asyncio.timeout(HANG):
            while len(answers) < count:
                await asyncio.sleep(0)

    login = {"auth": {"client_token": "new", "lease_duration": 3600, "renewable": True}}
    credentials = Credentials(AppRoleAuth(role_id="r"), send, clock=SystemClock(), environment={})
    callers = [asyncio.create_task(credentials.replace_token("revoked")) for _ in range(2)]
    await wait_for(2)
    answers[0][1].set_result((403, {}))
    await wait_for(3)
    answers[2][1].set_result((200, login))
    answers[1][1].set_result((403, {}))
    assert await asyncio.gather(*callers) == [True, True]
    assert [path for path, _ in answers] == ["auth/token/lookup-self"] * 2 + ["auth/approle/login"]
    assert await credentials.current_token() == "new"
