"""The checks of answers over a real OpenBao server, whose answers are changed on their way back to the client."""

from __future__ import annotations

import json
from datetime import timedelta

import httpx2
import pytest

from goatherd.providers.base import SecretProvider
from goatherd.providers.vault.address import VaultAddress
from goatherd.providers.vault.auth import TokenAuth
from goatherd.providers.vault.provider import VaultSecretProvider
from goatherd.testing.contract import AnswerContract
from goatherd.testing.wrong_answers import WrongAnswer, WrongAnswers
from tests.fakes.openbao import ROOT_TOKEN, WHY_SKIPPED, BaoServer, find_bao

BAO = find_bao()
pytestmark = pytest.mark.skipif(BAO is None, reason=WHY_SKIPPED)


class LyingTransport(httpx2.AsyncBaseTransport):
    """A transport that changes the server's answers. A change that it drops is answered as the server would answer
    it."""

    def __init__(self, answers: WrongAnswers) -> None:
        self._answers = answers
        self._inner = httpx2.AsyncHTTPTransport()

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        if not any(f"/{kind}/" in path for kind in ("data", "metadata", "destroy")):
            return await self._inner.handle_async_request(request)
        changes = request.method != "GET"
        wrong = self._answers.take(changes=changes)
        if wrong is None:
            return await self._inner.handle_async_request(request)
        if wrong is WrongAnswer.NOT_DONE:
            self._answers.given += 1
            return pretended(request)
        if wrong is WrongAnswer.OTHER_VERSION:
            return await self._other(request)
        response = await self._inner.handle_async_request(request)
        body = await response.aread()
        if response.status_code >= 300:
            return httpx2.Response(response.status_code, content=body)
        self._answers.given += 1
        if wrong is WrongAnswer.DONE_TWICE:
            await (await self._inner.handle_async_request(request)).aread()
        elif wrong is WrongAnswer.EMPTY:
            body = b""
        else:
            body = body[: len(body) // 2]
        return httpx2.Response(response.status_code, content=body)

    async def _other(self, request: httpx2.Request) -> httpx2.Response:
        """Answer with the entry of another secret."""
        right = await self._inner.handle_async_request(request)
        body, path = await right.aread(), request.url.path
        if "/data/" in path and right.status_code == 200:
            OTHERS[path] = body
            others = [content for name, content in OTHERS.items() if name != path]
            if others:
                self._answers.given += 1
                body = others[-1]
        return httpx2.Response(right.status_code, content=body)


OTHERS: dict[str, bytes] = {}
"""The last answer about each entry."""


def pretended(request: httpx2.Request) -> httpx2.Response:
    """Return the answer to a change that was made.

    https://openbao.org/api-docs/secret/kv/kv-v2: a write is answered with its version, the others with 204.
    """
    if "/data/" not in request.url.path or request.method != "POST":
        return httpx2.Response(204)
    version = json.loads(request.content)["options"]["cas"] + 1
    data = {"version": version, "created_time": "2026-11-24T16:05:27Z", "deletion_time": "", "destroyed": False}
    return httpx2.Response(200, json={"data": data})


class TestVaultAnswers(AnswerContract):
    prefix = "goatdb/wrong-"
    settle = timedelta(0)

    @pytest.fixture(autouse=True)
    def _server(self, server: BaoServer) -> None:
        self.url, self.answers = server.url, WrongAnswers()

    def provider(self) -> SecretProvider:
        address = VaultAddress(url=self.url, auth=TokenAuth(token=ROOT_TOKEN), reads_active=True)
        return VaultSecretProvider(address, transport=LyingTransport(self.answers))

    def wrong_answers(self) -> WrongAnswers:
        return self.answers
