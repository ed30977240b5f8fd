"""Log in to Vault or OpenBao, and renew or replace the token.

The ways to log in are a token, AppRole and Kubernetes. `Credentials` returns a token that should still be valid; if the
server rejects it nevertheless, `client` requests a new one. Files and the environment are read again at each login,
because Vault agents rewrite them. Callers that need a token at the same time share one login. No token is in any repr,
error or log.

Follows https://openbao.org/api-docs/auth/token/ (lookup-self, renew-self), …/auth/approle/ and …/auth/kubernetes/
(login).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol

from goatherd.clock import Clock
from goatherd.errors import (
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    ProviderError,
    UnavailableError,
)
from goatherd.providers.cancellation import retrieve_outcome

SERVICE_ACCOUNT_TOKEN: Final = "/var/run/secrets/kubernetes.io/serviceaccount/token"  # noqa: S105 - a path

_RENEW_AT: Final = 2 / 3
_POSTPONED: Final = 5.0
_TOO_SHORT: Final = 2.0
_QUOTED: Final = 200


class Send(Protocol):
    """The type of a function that sends a request with a token to Vault and returns status and JSON object."""

    def __call__(
        self, method: str, path: str, *, token: str | None, body: Mapping[str, object] | None = None
    ) -> Awaitable[tuple[int, Mapping[str, Any]]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAuth:
    """Log in to Vault with an existing token.

    Attributes:
        token: The token itself; None to use `variables` or `file`.
        variables: Environment variables that may hold the token; the first one that is set is used.
        file: A file that holds the token if none of the variables is set, such as ``~/.vault-token`` or the sink of a
            Vault agent.
    """

    token: str | None = field(default=None, repr=False)
    variables: tuple[str, ...] = ()
    file: str | None = None

    def read_token(self, environment: Mapping[str, str]) -> str:
        """Return the existing token, from the configuration, an environment variable or a file."""
        found = self.token or _first_set(environment, self.variables)
        if not found and self.file:
            found = _text_of(self.file, missing_ok=True)
        if not found:
            places = [*self.variables, *([self.file] if self.file else [])]
            raise ProviderConfigurationError(
                f"there is no token in {', '.join(places)}",
                hint="Log in with `vault login` or `bao login`, set the variable, or add auth=approle or kubernetes.",
            )
        return found.strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class AppRoleAuth:
    """Log in to Vault with AppRole: a role id, which is public, and a secret id, which is secret.

    Attributes:
        role_id: The role id; None to read it from the first of the environment variables `role_id_variables` that is
            set.
        secret_id: The secret id; None to read it from `secret_id_file` or from the environment variables
            `secret_id_variables`. Some roles need none.
        mount: The mount path of the auth method.
    """

    role_id: str | None = None
    role_id_variables: tuple[str, ...] = ()
    secret_id: str | None = field(default=None, repr=False)
    secret_id_file: str | None = None
    secret_id_variables: tuple[str, ...] = ()
    mount: str = "approle"

    def login_body(self, environment: Mapping[str, str]) -> dict[str, object]:
        """Return the body of the AppRole login request: role id and secret id."""
        role_id = self.role_id or _first_set(environment, self.role_id_variables)
        if not role_id:
            names = ", ".join(self.role_id_variables)
            raise ProviderConfigurationError(f"auth=approle needs role-id in the address, or {names}")
        secret_id = self.secret_id or (_text_of(self.secret_id_file) if self.secret_id_file else None)
        secret_id = secret_id or _first_set(environment, self.secret_id_variables)
        return {"role_id": role_id, **({"secret_id": secret_id.strip()} if secret_id else {})}


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesAuth:
    """Log in to Vault with the pod's Kubernetes service account.

    Attributes:
        role: The role in Vault's auth method for Kubernetes.
        token_file: The file in which the kubelet keeps the service account's token; read at each login.
        mount: The mount path of the auth method.
    """

    role: str
    token_file: str = SERVICE_ACCOUNT_TOKEN
    mount: str = "kubernetes"

    def login_body(self, environment: Mapping[str, str]) -> dict[str, object]:  # noqa: ARG002 - the same shape as AppRole's
        """Return the body of the Kubernetes login request: the role and the service account's token."""
        return {"role": self.role, "jwt": _text_of(self.token_file).strip()}


AuthMethod = TokenAuth | AppRoleAuth | KubernetesAuth


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lease:
    """A Vault token, and when it must be renewed and when it expires by the monotonic clock; None means never."""

    token: str = field(repr=False)
    renewable: bool
    renew_at: float | None
    expires_at: float | None


class Credentials:
    """Gets a Vault token, and renews or replaces it after two thirds of its lifetime.

    No background task renews the token: a server reads its store every half minute, which is often enough.
    """

    def __init__(
        self, method: AuthMethod, send: Send, *, clock: Clock, environment: Mapping[str, str] | None = None
    ) -> None:
        self._method = method
        self._send = send
        self._clock = clock
        self._environment = os.environ if environment is None else environment
        self._lease: _Lease | None = None
        self._work: asyncio.Task[_Lease] | None = None
        self._logins: set[asyncio.Task[_Lease]] = set()
        self._waiting = 0

    async def current_token(self) -> str:
        """Return a Vault token that should still be valid; log in or renew it first if necessary."""
        lease = self._lease
        if lease is None:
            lease = await self._share_login(self._log_in)
        elif lease.renew_at is not None and self._clock.monotonic() >= lease.renew_at:
            lease = await self._share_login(self._renew_lease)
        return lease.token

    async def replace_token(self, token: str) -> bool:
        """Get a new Vault token after the server has rejected `token`, if that token is no longer valid.

        Returns:
            Whether there is a new token, with which to send the request again. False if the rejected token is still
            valid, so that the request was rejected for another reason.

        Raises:
            ProviderError: The token is not valid, and no new one can be obtained.
        """
        if self._work is not None and not self._work.done():
            await asyncio.wait({self._work})
        if self._other_than(token):
            return True
        status, _ = await self._send("GET", "auth/token/lookup-self", token=token)
        if status == 200:
            return False
        if self._other_than(token):
            return True
        self._lease = None
        try:
            lease = await self._share_login(self._log_in)
        except ProviderConfigurationError:
            if isinstance(self._method, TokenAuth):
                raise _expired_error() from None
            raise
        if lease.token == token:
            self._lease = None
            raise _expired_error()
        return True

    def _other_than(self, token: str) -> bool:
        return self._lease is not None and self._lease.token != token

    async def close(self) -> None:
        """Cancel the Vault logins that are in progress, and wait for their end."""
        for login in self._logins:
            if not login.cancelling():  # a second cancellation would interrupt the closing of the connection
                login.cancel()
        if self._logins:
            await asyncio.wait(list(self._logins))

    async def _share_login(self, work: Callable[[], Coroutine[Any, Any, _Lease]]) -> _Lease:
        """Run the login `work` once for all callers that need a token; cancel it when no caller waits any more."""
        if self._work is None or self._work.done():
            self._work = asyncio.ensure_future(self._replace_lease(work()))
            self._work.add_done_callback(retrieve_outcome)
            self._logins.add(self._work)
            self._work.add_done_callback(self._logins.discard)
            self._waiting = 0
        running = self._work
        self._waiting += 1
        try:
            return await asyncio.shield(running)
        finally:
            if running is self._work:
                self._waiting -= 1
                if self._waiting == 0 and not running.done():
                    running.cancel()
                    self._work = None

    async def _replace_lease(self, work: Coroutine[Any, Any, _Lease]) -> _Lease:
        # Set the lease here and not in the callers, which run a moment later: until then, another caller would log in
        # once more.
        self._lease = lease = await work
        return lease

    async def _log_in(self) -> _Lease:
        method = self._method
        if isinstance(method, TokenAuth):
            token = await asyncio.to_thread(method.read_token, self._environment)
            status, answer = await self._send("GET", "auth/token/lookup-self", token=token)
            data = answer.get("data")
            if status != 200 or not isinstance(
                data, Mapping
            ):  # the token has expired, or may not read this: the first use shows which
                return _Lease(token=token, renewable=False, renew_at=None, expires_at=None)
            return self._lease_of(token, data.get("ttl"), data.get("renewable"))
        body = await asyncio.to_thread(method.login_body, self._environment)
        status, answer = await self._send("POST", f"auth/{method.mount}/login", token=None, body=body)
        if status in (400, 403, 404):
            errors = answer.get("errors")
            reason = f"{errors[0]}"[:_QUOTED] if isinstance(errors, list) and errors else f"HTTP {status}"
            raise ProviderAccessDeniedError(
                f"logging in at auth/{method.mount} was refused: {reason}",
                hint="Check the role, its secret id or service account, and that the login method is enabled.",
            )
        return self._lease_from(answer)

    async def _renew_lease(self) -> _Lease:
        lease = self._lease
        if lease is None:
            return await self._log_in()
        now = self._clock.monotonic()
        if lease.renewable and (lease.expires_at is None or now < lease.expires_at):
            try:
                status, answer = await self._send("POST", "auth/token/renew-self", token=lease.token, body={})
            except ProviderError:
                if lease.expires_at is not None and now + _POSTPONED < lease.expires_at:
                    return replace(lease, renew_at=now + _POSTPONED)
                raise
            if status == 200:
                renewed = self._lease_from(answer)
                if renewed.expires_at is None or renewed.expires_at - now > _TOO_SHORT:
                    return renewed
                # Its longest life is nearly over: renewing gives no more.
        if isinstance(self._method, TokenAuth):
            return replace(lease, renew_at=None)
        return await self._log_in()

    def _lease_from(self, answer: Mapping[str, Any]) -> _Lease:
        auth = answer.get("auth")
        token = auth.get("client_token") if isinstance(auth, Mapping) else None
        if not isinstance(auth, Mapping) or not isinstance(token, str) or not token:
            raise UnavailableError("the answer to a login holds no token")
        return self._lease_of(token, auth.get("lease_duration"), auth.get("renewable"))

    def _lease_of(self, token: str, seconds: object, renewable: object) -> _Lease:
        if not isinstance(seconds, int) or seconds <= 0:
            return _Lease(token=token, renewable=False, renew_at=None, expires_at=None)
        now = self._clock.monotonic()
        renew_at: float | None = now + seconds * _RENEW_AT
        if isinstance(self._method, TokenAuth) and renewable is not True:
            renew_at = None
        return _Lease(token=token, renewable=renewable is True, renew_at=renew_at, expires_at=now + seconds)


def _expired_error() -> ProviderAccessDeniedError:
    return ProviderAccessDeniedError(
        "the token is expired, revoked or unknown",
        hint="Log in again, or use auth=approle or auth=kubernetes, with which Goatherd gets new tokens automatically.",
    )


def _first_set(environment: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((environment[name] for name in names if environment.get(name)), None)


def _text_of(file: str, *, missing_ok: bool = False) -> str:
    try:
        # Not `Path.expanduser`, which fails if no home directory is known, as for a numeric user in a container.
        return Path(os.path.expanduser(file)).read_text(encoding="utf-8")  # noqa: PTH111
    except FileNotFoundError:
        if missing_ok:
            return ""
        raise ProviderConfigurationError(f"there is no file {file}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ProviderConfigurationError(f"cannot read {file}: {type(error).__name__}") from None
