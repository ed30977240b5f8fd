"""Answers that a single healthy Vault server does not give: from standbys, damaged ones, and their dates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from goatherd.clock import SystemClock
from goatherd.errors import (
    ConfigurationError,
    ProviderConfigurationError,
    ProviderError,
    ProviderMisuseError,
    SecretTooLargeError,
    ThrottledError,
    UnavailableError,
)
from goatherd.providers.base import RetryPolicy
from goatherd.providers.values import CURRENT, SecretBytes
from goatherd.providers.vault.address import VaultAddress
from goatherd.providers.vault.auth import TokenAuth
from goatherd.providers.vault.client import VaultClient
from goatherd.providers.vault.provider import VaultSecretProvider
from goatherd.providers.versioned_record import RecordedSecret, VersionedRecord, encode_secret, entry_for
from tests.deadlines import HANG
from tests.fakes.certificates import certificate, certificate_server, replace_file

Answer = Callable[[httpx2.Request], httpx2.Response]
LOOKUP = httpx2.Response(200, json={"data": {"ttl": 0, "renewable": False}})


def provider(answer: Answer, url: str = "https://v:8200") -> VaultSecretProvider:
    """Return a provider with a valid token, whose other requests are answered by `answer`."""

    def handle(request: httpx2.Request) -> httpx2.Response:
        if request.url.path.endswith("lookup-self"):
            return httpx2.Response(200, json={"data": {"ttl": 0, "renewable": False}})
        return answer(request)

    return VaultSecretProvider(
        VaultAddress(url=url, auth=TokenAuth(token="t")),
        transport=httpx2.MockTransport(handle),
        retry=RetryPolicy(attempts=1),
    )


async def error_of(response: httpx2.Response) -> ProviderError:
    async with provider(lambda request: response) as one:
        with pytest.raises(ProviderError) as caught:
            await one.read("goatdb/root")
    return caught.value


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (httpx2.Response(200, content=b""), UnavailableError),
        (httpx2.Response(200, content=b"{"), UnavailableError),
        (httpx2.Response(200, content=b"[]"), UnavailableError),
        (httpx2.Response(200, json={}), UnavailableError),
        (httpx2.Response(200, json={"data": {}}), UnavailableError),
        (httpx2.Response(200, json={"data": {"data": {}, "metadata": {"version": 1}}}), UnavailableError),
        (
            httpx2.Response(200, json={"data": {"data": {}, "metadata": {"version": "1", "created_time": "x"}}}),
            UnavailableError,
        ),
        (httpx2.Response(200, content=b"[" * 100_000), UnavailableError),
        (httpx2.Response(200, content=b" " * (9 << 20)), UnavailableError),
        (httpx2.Response(204), UnavailableError),
        (httpx2.Response(404, content=b"<html>not found</html>"), UnavailableError),
        (httpx2.Response(404, json={}), UnavailableError),
        (httpx2.Response(404, json={"message": "no Route matched with those values"}), UnavailableError),
        (httpx2.Response(404, json={"errors": ["unsupported path"]}), UnavailableError),
        (httpx2.Response(418, json={"errors": []}), UnavailableError),
        (httpx2.Response(412, json={"errors": ["required index state not present"]}), UnavailableError),
        (
            httpx2.Response(500, json={"errors": ["local node not active but active cluster node not found"]}),
            UnavailableError,
        ),
        (httpx2.Response(502, content=b"<html>bad gateway</html>"), UnavailableError),
        (httpx2.Response(503, json={"errors": ["Vault is sealed"]}), UnavailableError),
        (
            httpx2.Response(
                400, json={"errors": ["Upgrading from non-versioned to versioned data. This backend will be"]}
            ),
            UnavailableError,
        ),
        (httpx2.Response(413, content=b""), SecretTooLargeError),
        (httpx2.Response(500, json={"errors": ["put failed due to value being too large"]}), SecretTooLargeError),
        (httpx2.Response(400, json={"errors": ["no such parameter"]}), ProviderConfigurationError),
        (httpx2.Response(404, json={"errors": ['no handler for route "secret/data/x"']}), ProviderConfigurationError),
    ],
)
async def test_an_answer_is_never_taken_for_a_missing_secret_unless_it_says_so(
    response: httpx2.Response, kind: type[ProviderError]
):
    assert type(await error_of(response)) is kind


async def test_a_gateway_that_knows_no_such_route_has_neither_destroyed_nor_deleted_anything():
    value = SecretBytes(b"x")
    entries = {n: entry_for(value, request="r", now_ms=1) for n in (1, 2)}
    secret = RecordedSecret(record=VersionedRecord(versions=entries, labels={CURRENT: 2}), values={1: value, 2: value})
    states: list[object] = [{**encode_secret(secret), "path": "goatdb/root"}]

    def answer(request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        if path.endswith("capabilities-self"):
            return httpx2.Response(200, json={"data": {"secret/destroy/goatdb/root": ["update"]}})
        if not path.endswith("data/goatdb/root") or "/metadata/" in path:
            return httpx2.Response(404, json={"message": "no Route matched with those values"})
        if request.method == "POST":
            states.append(json.loads(request.content)["data"])
        metadata = {"version": len(states), "created_time": "2026-11-24T16:05:27Z"}
        read = {"data": states[-1], "metadata": metadata}
        return httpx2.Response(200, json={"data": read if request.method == "GET" else metadata})

    async with provider(answer) as one:
        with pytest.raises(UnavailableError, match="another server answers"):
            await one.destroy("goatdb/root", "1")
        assert [each.state for each in await one.versions("goatdb/root")] == ["enabled", "destroying"]
        with pytest.raises(UnavailableError, match="another server answers"):
            await one.delete("goatdb/root")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), ("0", 1), ("Fri, 31 Dec 1999 23:59:59 GMT", 1), ("soon", None), (None, None)],
)
async def test_the_hint_of_a_throttling_server_is_seconds_or_a_date(header: str | None, seconds: float | None):
    response = httpx2.Response(429, json={"errors": []}, headers={} if header is None else {"retry-after": header})
    error = await error_of(response)
    assert isinstance(error, ThrottledError)
    assert error.retry_after == seconds


async def test_a_standby_that_redirects_is_followed_once_with_the_token():
    hosts = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        hosts.append((request.url.host, request.headers["x-vault-token"]))
        if request.url.host == "v":
            return httpx2.Response(307, headers={"location": f"https://active:8200{request.url.raw_path.decode()}"})
        return httpx2.Response(404, json={"errors": []})

    async with provider(answer) as one:
        with pytest.raises(ProviderError, match="no such secret"):
            await one.read("goatdb/root")
    assert hosts == [("v", "t"), ("active", "t")]


@pytest.mark.parametrize(
    "location", ["http://active/v1/x", "ftp://active/", "", "https://[x/v1", "https://v:8200/v1/again"]
)
async def test_a_redirect_that_leads_out_of_tls_or_in_a_circle_is_not_followed(location: str):
    hosts = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        hosts.append(request.url.host)
        return httpx2.Response(307, headers={"location": location} if location else {})

    async with provider(answer) as one:
        with pytest.raises(UnavailableError):
            await one.read("goatdb/root")
    assert set(hosts) == {"v"}
    assert len(hosts) <= 2


async def test_the_next_request_names_the_index_that_this_client_has_seen():
    told = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        told.append(request.headers.get("x-vault-index"))
        return httpx2.Response(404, json={"errors": []}, headers={"x-vault-index": f"index {len(told)}"})

    async with provider(answer) as one:
        for _ in range(3):
            with pytest.raises(ProviderError, match="no such secret"):
                await one.read("goatdb/root")
    assert told == [None, "index 1", "index 2"]


async def test_an_index_that_cannot_be_sent_again_is_not_used():
    told: list[str | None] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        told.append(request.headers.get("x-vault-index"))
        return httpx2.Response(404, json={"errors": []}, headers=[(b"x-vault-index", b"\xff")])

    async with provider(answer) as one:
        for _ in range(2):
            with pytest.raises(ProviderError, match="no such secret"):
                await one.read("goatdb/root")
    assert told == [None, None]


async def test_a_provider_opens_itself_and_says_so_when_it_is_closed():
    one = provider(lambda request: LOOKUP)
    with pytest.raises(UnavailableError, match="no 'metadata'"):
        await one.read("goatdb/root")
    await one.aclose()
    with pytest.raises(ProviderMisuseError, match="the provider is closed"):
        await one.read("goatdb/root")


async def test_a_certificate_file_that_is_not_there_is_named_when_it_is_opened():
    address = VaultAddress(url="https://v", ca="/no/such/ca.pem")
    with pytest.raises(ConfigurationError, match=r"/no/such/ca\.pem"):
        await VaultSecretProvider(address).__aenter__()


async def test_a_certificate_authority_that_is_replaced_is_loaded_again(tmp_path: Path):
    ca = tmp_path / "ca.crt"
    ca.write_bytes(certificate("former authority")[0])
    found = {"data": {"ttl": 0, "renewable": False, "type": "kv", "options": {"version": "2"}}}
    async with certificate_server(tmp_path, [], lambda number: (200, found)) as server:
        client = VaultClient(
            VaultAddress(url=server.url, ca=str(ca), auth=TokenAuth(token="t")), timeout=HANG, clock=SystemClock()
        )
        client.open()
        for authority in (ca.read_bytes(), server.ca.read_bytes()):
            replace_file(ca, authority)
            with pytest.raises(ProviderConfigurationError, match="is not trusted"):
                await client.engine_version()
        assert await client.engine_version() == "kv 2"
        await client.close()


async def test_a_client_certificate_in_files_is_loaded_again_when_it_is_renewed(tmp_path: Path):
    clients = [certificate(f"client-{number}") for number in range(2)]
    cert, key = tmp_path / "client.crt", tmp_path / "client.key"
    cert.write_bytes(clients[0][0])
    key.write_bytes(clients[0][1])
    found = {"data": {"ttl": 0, "renewable": False, "type": "kv", "options": {"version": "2"}}}
    async with certificate_server(tmp_path, clients, lambda number: (200, found)) as server:
        address = VaultAddress(
            url=server.url, ca=str(server.ca), cert=str(cert), key=str(key), auth=TokenAuth(token="t")
        )
        client = VaultClient(address, timeout=HANG, clock=SystemClock())
        client.open()
        for path, content, shown in (
            (cert, clients[0][0], "client-0"),
            (cert, clients[1][0], "client-0"),
            (key, clients[1][1], "client-1"),
        ):
            replace_file(path, content)
            server.shown.clear()
            assert await client.engine_version() == "kv 2"
            assert set(server.shown) == {shown}
        await client.close()
