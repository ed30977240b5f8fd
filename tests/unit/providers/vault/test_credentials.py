"""A Vault login that no caller waits for any more has ended when the provider is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from goatherd.clock import SystemClock
from goatherd.providers.vault.auth import AppRoleAuth, Credentials


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
