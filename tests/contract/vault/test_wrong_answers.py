"""The checks of answers over a real OpenBao server, whose answers are changed on their way back to the client."""

from __future__ import annotations

import json
from datetime import timedelta

import httpx2
import pytest

from goatherd.providers.base import SecretProvider
from goatherd.providers.vault import TokenAuth, VaultAddress, VaultSecretProvider
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
        """Answer with another version of the values, or with the values where the pointer was asked for."""
        right = await self._inner.handle_async_request(request)
        body = await right.aread()
        path, version = request.url.path, request.url.params.get("version")
        urls = [request.url.copy_with(path=path.removesuffix("-pointer"), query=None)]
        if not path.endswith("-pointer"):
            urls = [request.url.copy_merge_params({"version": str(n)}) for n in (1, 2) if str(n) != version]
        for url in urls if "/data/" in path else []:
            other = await self._inner.handle_async_request(httpx2.Request("GET", url, headers=request.headers))
            content = await other.aread()
            if other.status_code == 200 and content != body:
                self._answers.given += 1
                return httpx2.Response(200, content=content)
        return httpx2.Response(right.status_code, content=body)


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
