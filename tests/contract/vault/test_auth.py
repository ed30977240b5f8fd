"""Logging in, renewing and losing a login: tokens, AppRole and Kubernetes, on a real server."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator, Mapping
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx2
import pytest

from goatherd.errors import ProviderAccessDeniedError, ProviderConfigurationError, UnavailableError
from goatherd.providers.base import RetryPolicy
from goatherd.providers.vault.address import VaultAddress
from goatherd.providers.vault.auth import AppRoleAuth, AuthMethod, KubernetesAuth, TokenAuth
from goatherd.providers.vault.permissions import policy
from goatherd.providers.vault.provider import VaultSecretProvider
from tests.deadlines import HANG
from tests.fakes.openbao import ROOT_TOKEN, WHY_SKIPPED, BaoServer, find_bao

BAO = find_bao()
pytestmark = pytest.mark.skipif(BAO is None, reason=WHY_SKIPPED)
SECRET = "goatdb/root"
LIVES = (5, 15, 30)
"""Seconds for which a token is good. The longer ones are for a machine that is too slow to renew the first in time."""


class Seen(httpx2.AsyncHTTPTransport):
    """The real transport, which records the requests."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[str] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(f"{request.method} {request.url.path.removeprefix('/v1/')}")
        return await super().handle_async_request(request)

    def count(self, request: str) -> int:
        return self.requests.count(request)


@pytest.fixture(scope="module")
def server() -> Iterator[BaoServer]:
    assert BAO is not None
    with BaoServer(BAO) as running:
        asyncio.run(prepare(running))
        yield running


async def prepare(server: BaoServer) -> None:
    async with VaultSecretProvider(VaultAddress(url=server.url, auth=TokenAuth(token=ROOT_TOKEN))) as root:
        await root.create(SECRET, b"value")
    server.ask("POST", "sys/auth/approle", {"type": "approle"})
    server.ask("POST", "sys/auth/kubernetes", {"type": "kubernetes"})


@pytest.fixture
def seen() -> Seen:
    return Seen()


def provider(
    server: BaoServer, auth: AuthMethod, seen: Seen, environment: Mapping[str, str] | None = None
) -> VaultSecretProvider:
    address = VaultAddress(url=server.url, auth=auth, reads_active=True)
    return VaultSecretProvider(address, transport=seen, environment=environment or {}, retry=RetryPolicy(attempts=1))


def approle(server: BaoServer, **options: object) -> tuple[str, str]:
    """Make a role; return its role id and a secret id."""
    name = server.policy(policy("server", f"secret/{SECRET}"))
    server.ask("POST", "auth/approle/role/goat", {"token_policies": [name], **options})
    role_id = server.ask("GET", "auth/approle/role/goat/role-id")["data"]["role_id"]
    return role_id, server.ask("POST", "auth/approle/role/goat/secret-id", {})["data"]["secret_id"]


# --- tokens ----------------------------------------------------------------------------------------------------------


async def test_a_token_comes_from_the_environment_or_a_file_that_an_agent_writes_anew(
    server: BaoServer, seen: Seen, tmp_path: Path
):
    file = tmp_path / "token"
    text = policy("server", f"secret/{SECRET}")
    first, second = server.token(text), server.token(text)
    async with provider(server, TokenAuth(variables=("BAO_TOKEN", "VAULT_TOKEN")), seen, {"VAULT_TOKEN": first}) as one:
        assert (await one.read(SECRET)).value.reveal() == b"value"
    file.write_text(f"{first}\n")
    async with provider(server, TokenAuth(file=str(file)), seen) as one:
        assert (await one.read(SECRET)).value.reveal() == b"value"
        server.ask("POST", "auth/token/revoke", {"token": first})
        with pytest.raises(ProviderAccessDeniedError, match="expired, revoked or unknown"):
            await one.read(SECRET)
        file.write_text(second)
        assert (await one.read(SECRET)).value.reveal() == b"value"


async def test_without_a_token_anywhere_the_places_are_named(server: BaoServer, seen: Seen, tmp_path: Path):
    auth = TokenAuth(variables=("VAULT_TOKEN", "BAO_TOKEN"), file=str(tmp_path / "none"))
    async with provider(server, auth, seen) as one:
        with pytest.raises(ProviderConfigurationError, match="VAULT_TOKEN, BAO_TOKEN, "):
            await one.read(SECRET)


@pytest.mark.slow
async def test_a_token_is_renewed_while_it_is_used(server: BaoServer, seen: Seen):
    for seconds in LIVES:
        seen.requests.clear()
        token = server.token(policy("server", f"secret/{SECRET}"), ttl=f"{seconds}s", renewable=True)
        try:
            async with asyncio.timeout(HANG), provider(server, TokenAuth(token=token), seen) as one:
                while seen.count("POST auth/token/renew-self") < 2:
                    await asyncio.sleep(0.2)
                    assert (await one.read(SECRET)).value.reveal() == b"value"
            break
        except ProviderAccessDeniedError:
            assert seconds != LIVES[-1], "it expired while it was used"
    assert seen.count("GET auth/token/lookup-self") == 1


@pytest.mark.slow
async def test_a_token_that_expires_is_denied_and_says_so(server: BaoServer, seen: Seen):
    for seconds in (3, *LIVES[1:]):
        token = server.token(policy("server", f"secret/{SECRET}"), ttl=f"{seconds}s", renewable=False)
        async with provider(server, TokenAuth(token=token), seen) as one:
            try:
                assert (await one.read(SECRET)).value.reveal() == b"value"
            except ProviderAccessDeniedError:
                assert seconds != LIVES[-1], "it was never good"
                continue
            await asyncio.sleep(seconds + 0.2)
            with pytest.raises(ProviderAccessDeniedError, match="expired, revoked or unknown"):
                await one.read(SECRET)
        break


# --- AppRole ---------------------------------------------------------------------------------------------------------


async def test_approle_logs_in_once_for_many_calls_at_once(server: BaoServer, seen: Seen):
    role_id, secret_id = approle(server)
    environment = {"VAULT_ROLE_ID": role_id, "VAULT_SECRET_ID": secret_id}
    auth = AppRoleAuth(role_id_variables=("VAULT_ROLE_ID",), secret_id_variables=("VAULT_SECRET_ID",))
    async with provider(server, auth, seen, environment) as one:
        found = await asyncio.gather(*(one.read(SECRET) for _ in range(8)))
    assert {each.value.reveal() for each in found} == {b"value"}
    assert seen.count("POST auth/approle/login") == 1


async def test_approle_gets_a_new_token_when_its_own_was_revoked(server: BaoServer, seen: Seen, tmp_path: Path):
    role_id, secret_id = approle(server)
    file = tmp_path / "secret-id"
    file.write_text(secret_id)
    async with provider(server, AppRoleAuth(role_id=role_id, secret_id_file=str(file)), seen) as one:
        await one.read(SECRET)
        accessors = server.ask("LIST", "auth/token/accessors")["data"]["keys"]
        for accessor in accessors:
            with contextlib.suppress(AssertionError):  # another test's token, which has ended since
                data = server.ask("POST", "auth/token/lookup-accessor", {"accessor": accessor})["data"]
                if data["path"] == "auth/approle/login":
                    server.ask("POST", "auth/token/revoke-accessor", {"accessor": accessor})
        found = await asyncio.gather(*(one.read(SECRET) for _ in range(4)))
    assert {each.value.reveal() for each in found} == {b"value"}
    assert seen.count("POST auth/approle/login") == 2, "once more, for all of them"


@pytest.mark.slow
async def test_approle_renews_and_at_the_end_of_its_tokens_life_logs_in_again(server: BaoServer, seen: Seen):
    for seconds in LIVES:
        seen.requests.clear()
        role_id, secret_id = approle(server, token_ttl=f"{seconds}s", token_max_ttl=f"{seconds + 2}s")
        async with provider(server, AppRoleAuth(role_id=role_id, secret_id=secret_id), seen) as one:
            end = asyncio.get_running_loop().time() + HANG
            while seen.count("POST auth/approle/login") < 2 and asyncio.get_running_loop().time() < end:
                assert (await one.read(SECRET)).value.reveal() == b"value"
                await asyncio.sleep(0.2)
            assert (await one.read(SECRET)).value.reveal() == b"value"
        if seen.count("POST auth/token/renew-self") >= 1 and seen.count("POST auth/approle/login") == 2:
            break
    assert seen.count("POST auth/token/renew-self") >= 1
    assert seen.count("POST auth/approle/login") == 2
    approle(server, token_ttl="1h", token_max_ttl="1h")


async def test_a_denied_role_logs_in_once_and_is_told_apart_from_a_dead_token(server: BaoServer, seen: Seen):
    role_id, secret_id = approle(server)
    async with provider(server, AppRoleAuth(role_id=role_id, secret_id=secret_id), seen) as one:
        with pytest.raises(ProviderAccessDeniedError, match="refuses GET secret/data/goatdb/other"):
            await one.read("goatdb/other")
    assert seen.count("POST auth/approle/login") == 1


@pytest.mark.parametrize("role_id", ["", "not-a-role"])
async def test_a_refused_login_names_the_method_and_not_the_secret_id(server: BaoServer, seen: Seen, role_id: str):
    real, _ = approle(server)
    async with provider(server, AppRoleAuth(role_id=role_id or real, secret_id="S3CRET"), seen) as one:
        with pytest.raises(ProviderAccessDeniedError, match="auth/approle was refused") as caught:
            await one.read(SECRET)
    assert "S3CRET" not in f"{caught.value} {caught.value.hint} {one.address}"


# --- Kubernetes -------------------------------------------------------------------------------------------------------


class TokenReview(BaseHTTPRequestHandler):
    """Answers for a Kubernetes API server: the token of service account goat in namespace herd is good.

    https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/
    """

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        good = body["spec"]["token"] == JWT
        user = {"username": "system:serviceaccount:herd:goat", "uid": "u1", "groups": ["system:serviceaccounts"]}
        status = {"authenticated": True, "user": user, "audiences": body["spec"]["audiences"]}
        answer = {**body, "status": status if good else {"authenticated": False}}
        self.send_response(201)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *arguments: object) -> None:
        pass


def _jwt() -> str:
    claims = {
        "iss": "https://kubernetes.default.svc",
        "sub": "system:serviceaccount:herd:goat",
        "aud": ["https://kubernetes.default.svc"],
        "nbf": 1,
        "iat": 1,
        "exp": 4102444800,
        "kubernetes.io": {"namespace": "herd", "serviceaccount": {"name": "goat", "uid": "u1"}},
    }
    parts = [json.dumps({"alg": "RS256", "typ": "JWT"}).encode(), json.dumps(claims).encode(), b"x" * 256]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


JWT = _jwt()


@pytest.fixture
def kubernetes(server: BaoServer, tmp_path: Path) -> Iterator[None]:
    ca = tmp_path / "ca.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", "/CN=kubernetes", "-keyout", str(tmp_path / "key.pem"), "-out", str(ca)]
    subprocess.run(command, check=True, capture_output=True)
    with HTTPServer(("127.0.0.1", 0), TokenReview) as api:
        thread = threading.Thread(target=api.serve_forever)
        thread.start()
        try:
            name = server.policy(policy("server", f"secret/{SECRET}"))
            server.ask(
                "POST",
                "auth/kubernetes/config",
                {
                    "kubernetes_host": f"http://127.0.0.1:{api.server_port}",
                    "token_reviewer_jwt": JWT,
                    "disable_local_ca_jwt": True,
                    "kubernetes_ca_cert": ca.read_text(),  # demanded, though the API is plain HTTP here
                },
            )
            role = {
                "bound_service_account_names": ["goat"],
                "bound_service_account_namespaces": ["herd"],
                "token_policies": [name],
            }
            server.ask("POST", "auth/kubernetes/role/goatherd", role)
            yield
        finally:
            api.shutdown()
            thread.join()


async def test_a_pod_gets_in_with_its_service_account(server: BaoServer, kubernetes: None, seen: Seen, tmp_path: Path):
    file = tmp_path / "token"
    file.write_text(JWT)
    async with provider(server, KubernetesAuth(role="goatherd", token_file=str(file)), seen) as one:
        assert (await one.read(SECRET)).value.reveal() == b"value"
    file.write_text(JWT[:-4] + "AAAA")
    async with provider(server, KubernetesAuth(role="goatherd", token_file=str(file)), seen) as one:
        with pytest.raises(ProviderAccessDeniedError, match="auth/kubernetes was refused"):
            await one.read(SECRET)


async def test_a_service_account_without_its_token_is_named(server: BaoServer, seen: Seen, tmp_path: Path):
    async with provider(server, KubernetesAuth(role="goatherd", token_file=str(tmp_path / "no")), seen) as one:
        with pytest.raises(ProviderConfigurationError, match="there is no file"):
            await one.read(SECRET)


async def test_the_deadline_covers_the_login():
    handlers = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(asyncio.current_task())
        await reader.read()
        writer.close()
        await writer.wait_closed()

    hole = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{hole.sockets[0].getsockname()[1]}"
    one = VaultSecretProvider(VaultAddress(url=url, auth=AppRoleAuth(role_id="r")), timeout=timedelta(milliseconds=300))
    async with hole:
        async with one:
            async with asyncio.timeout(HANG):
                with pytest.raises(UnavailableError):
                    await one.read(SECRET)
        assert handlers
        await asyncio.wait_for(asyncio.gather(*handlers), HANG)
