"""Answer requests for the status page. This ASGI application holds the newest view, and no key, store or server.

Rules:
1. A request changes nothing but the sessions of readers, by signing in and out.
2. SECURITY: every page has the same strict headers; nothing is loaded from elsewhere, no script or style is inline,
   and no other site may show the page in a frame (tests/unit/web/test_app.py).
3. SECURITY: on a loopback address the ``Host`` header must name loopback, also behind a proxy, or another site could
   read the page through a name that it lets point here (tests/unit/web/test_app.py).
4. Open pages poll. A view is rendered once, however many they are, and a page that shows it already is sent only the
   status 304.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qs

from goatherd.clock import Clock
from goatherd.serving.caller_limiter import CallerLimiter, GoneError, Receive, Scope, Send, parse_networks, send_refusal
from goatherd.serving.caller_limits import RefusedError, is_in_networks
from goatherd.web.access import PageAddress, is_loopback
from goatherd.web.render import ASSETS, Choice, Data, Renderer, read_asset

POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
COOKIE: Final = "goatherd_page"
SESSION_SECONDS: Final = 12 * 3600
MOST_SESSIONS: Final = 1000
_BODY_BYTES: Final = 4096
_MOST_FIELDS: Final = 10
_MOST_CHOICES: Final = 16
_HEADERS: Final = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"cache-control", b"no-store"),
)
_WAITING: Final = "The store and the servers are being read."


class _TooManyFieldsError(Exception):
    """A query or a form has more than `_MOST_FIELDS` fields."""


class Sessions:
    """The sessions of the readers that have signed in to the page. They are in memory only, so a restart ends them.

    Args:
        clock: Supplies the time, at which sessions end.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ends: OrderedDict[bytes, float] = OrderedDict()

    def create(self) -> str:
        """Create a session, and return its secret name. If there are more than `MOST_SESSIONS`, the oldest one ends."""
        name = secrets.token_urlsafe(32)
        self._ends[_hash_secret(name)] = self._clock.monotonic() + SESSION_SECONDS
        while len(self._ends) > MOST_SESSIONS:
            self._ends.popitem(last=False)
        return name

    def is_valid(self, name: str) -> bool:
        """Whether a reader's session with this secret name exists and has not ended."""
        return self._ends.get(_hash_secret(name), -1.0) > self._clock.monotonic()

    def end(self, name: str) -> None:
        """End the session with this secret name, if there is one."""
        self._ends.pop(_hash_secret(name), None)


def _hash_secret(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


class PageApp:
    """The ASGI application that serves the status page.

    Args:
        address: The address of the page, and the readers that may see it.
        limiter: Limits what each caller may use.
        clock: Supplies the current time.
        interval_ms: Time between two views in milliseconds, which the page shows until the first view arrives.
    """

    def __init__(self, address: PageAddress, limiter: CallerLimiter, *, clock: Clock, interval_ms: int) -> None:
        self._address = address
        self._is_secure = address.certificate is not None or bool(address.proxies)
        self._proxies = parse_networks(address.proxies)
        self._limiter = limiter
        self._clock = clock
        self._interval_ms = interval_ms
        self._renderer = Renderer()
        self._sessions = Sessions(clock)
        self._assets = {path: read_asset(path) for path in ASSETS}
        self._view: Data | None = None
        self._problem: Data | None = None
        self._rendered: OrderedDict[Choice, tuple[bytes, bytes]] = OrderedDict()

    def publish(self, view: Data | None, problem: Data | None) -> None:
        """Show a view, and why the store could not be read later, if so; with None as `view`, the last view stays."""
        self._view, self._problem = view if view is not None else self._view, problem
        self._rendered.clear()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        is_head = scope["method"] == "HEAD"
        try:
            address = self._limiter.take_request(scope)
            await self._answer_request(scope, receive, send, address)
        except RefusedError as refused:
            await send_refusal(refused, receive, send, is_head=is_head)
        except _TooManyFieldsError:
            await _send_answer(send, 400, b"too many fields", b"text/plain; charset=utf-8", is_head=is_head)
        except GoneError:
            return

    async def _answer_request(self, scope: Scope, receive: Receive, send: Send, address: str) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        path, method = scope["path"], scope["method"]
        problem = self._find_refusal(scope, headers)
        if problem is not None:
            await _send_answer(send, problem[0], problem[1].encode(), b"text/plain; charset=utf-8")
            return
        if method not in ("GET", "HEAD", "POST") or (method == "POST") != (path in ("/login", "/logout")):
            is_known = path in ("/", "/login", "/logout") or path in ASSETS
            status, text = (405, b"method not allowed") if is_known else (404, b"not found")
            await _send_answer(send, status, text, b"text/plain; charset=utf-8")
        elif path in ASSETS:
            await _send_answer(
                send, 200, self._assets[path], f"{ASSETS[path]}; charset=utf-8".encode(), is_head=method == "HEAD"
            )
        elif path == "/login":
            await self._sign_in(headers, receive, send, address)
        elif path == "/logout":
            self._sessions.end(_session_name(headers))
            await _send_redirect(send, _make_cookie("", 0, is_secure=self._is_secure))
        elif self._address.token_digest is not None and not self._sessions.is_valid(_session_name(headers)):
            await self._send_page(send, 401, self._renderer.render_login(), is_head=method == "HEAD")
        elif path == "/":
            await self._send_view(self._read_choice(scope), headers, send, is_head=method == "HEAD")
        else:
            await _send_answer(send, 404, b"not found", b"text/plain; charset=utf-8")

    def _find_refusal(self, scope: Scope, headers: Mapping[bytes, bytes]) -> tuple[int, str] | None:
        """Return the status and text of the answer to a caller that may not use the page; None if it may."""
        client = scope.get("client")
        direct = client[0] if client else ""
        if self._proxies and not is_in_networks(direct, self._proxies):
            return 403, "this page is reached through its reverse proxy only"
        if self._address.is_loopback and not _is_loopback_host(headers.get(b"host", b"")):
            return 421, "this page is served to this machine only, at http://localhost or http://127.0.0.1"
        return None

    # --- the page -----------------------------------------------------------------------------------------------------

    def _read_choice(self, scope: Scope) -> Choice:
        query = _parse_fields(scope.get("query_string", b""))
        event = query.get("event", [""])[0]
        known = {one["event"] for one in self._view["history"]} if self._view is not None else ()
        return Choice(event=event if event in known else "", is_all="all" in query)

    async def _send_view(self, choice: Choice, headers: Mapping[bytes, bytes], send: Send, *, is_head: bool) -> None:
        """Send the page with the newest view, or the status 304 to a reader's page that shows it already."""
        tag, page = self._render_page(choice)
        # A proxy that compresses the page makes the tag weak, or adds to it.
        if tag in headers.get(b"if-none-match", b""):
            await send({"type": "http.response.start", "status": 304, "headers": [(b"etag", b'"%s"' % tag), *_HEADERS]})
            await send({"type": "http.response.body", "body": b""})
            return
        kind = b"text/html; charset=utf-8"
        await _send_answer(send, 200, page, kind, (b"etag", b'"%s"' % tag), is_head=is_head)

    def _render_page(self, choice: Choice) -> tuple[bytes, bytes]:
        """Return the page for a reader's choice, after its digest; each view and choice is rendered only once."""
        found = self._rendered.get(choice)
        if found is None:
            view, problem = self._newest_view(), self._problem
            if self._view is None and problem is None:
                problem = {"text": _WAITING, "advice": ""}
            page = self._renderer.render_page(
                view,
                choice,
                problem=problem,
                has_session=self._address.token_digest is not None,
                is_stale=self._problem is not None,
            ).encode()
            self._rendered[choice] = found = hashlib.sha256(page).hexdigest().encode(), page
            while len(self._rendered) > _MOST_CHOICES:
                self._rendered.popitem(last=False)
        return found

    def _newest_view(self) -> Data:
        """Return the newest view, or an empty one before the first view."""
        if self._view is not None:
            return self._view
        return {
            **dict.fromkeys(("org", "store", "sentence", "advice", "signer"), ""),
            **dict.fromkeys(("remarks", "servers", "roots", "stores", "history"), ()),
            **dict.fromkeys(("next_step", "rotation", "trail")),
            "sentence": "Nothing has been read yet.",
            "state": "unknown",
            "pruned_roots": 0,
            "at_ms": self._clock.now_ms(),
            "interval_ms": self._interval_ms,
        }

    async def _send_page(self, send: Send, status: int, html: str, *, is_head: bool = False) -> None:
        await _send_answer(send, status, html.encode(), b"text/html; charset=utf-8", is_head=is_head)

    # --- signing in ---------------------------------------------------------------------------------------------------

    async def _sign_in(self, headers: Mapping[bytes, bytes], receive: Receive, send: Send, address: str) -> None:
        if self._address.token_digest is None:
            await _send_redirect(send)
            return
        self._limiter.take_session(address)
        share = self._limiter.open_share(address)
        try:
            body = await self._limiter.read_body(receive, headers, share, _BODY_BYTES)
        finally:
            share.give_back()
        given = _parse_fields(body).get("token", [""])[0].strip()
        # SECURITY: digests are compared in constant time, so the time of the answer reveals nothing about the token
        # (tests/unit/web/test_app.py).
        if not hmac.compare_digest(_hash_secret(given).hex(), self._address.token_digest):
            await self._send_page(send, 403, self._renderer.render_login("This is not the token."))
            return
        await _send_redirect(send, _make_cookie(self._sessions.create(), SESSION_SECONDS, is_secure=self._is_secure))


def _parse_fields(text: bytes) -> dict[str, list[str]]:
    """Parse a query or a form.

    Raises:
        _TooManyFieldsError: It has more than `_MOST_FIELDS` fields.
    """
    try:
        return parse_qs(text.decode("latin-1"), max_num_fields=_MOST_FIELDS)
    except ValueError as error:
        raise _TooManyFieldsError from error


def _session_name(headers: Mapping[bytes, bytes]) -> str:
    """Return the secret name of the reader's session from the cookie; empty without one.

    The cookies of other applications on the same host are not parsed, since they may have any form.
    """
    for each in headers.get(b"cookie", b"").decode("latin-1").split(";"):
        name, _, value = each.partition("=")
        if name.strip() == COOKIE:
            return value.strip()
    return ""


def _make_cookie(value: str, seconds: int, *, is_secure: bool) -> tuple[bytes, bytes]:
    secure = "; Secure" if is_secure else ""
    text = f"{COOKIE}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"
    return b"set-cookie", text.encode()


def _is_loopback_host(raw: bytes) -> bool:
    host = raw.decode("latin-1").lower()
    name, _, port = host[1:].partition("]") if host.startswith("[") else host.partition(":")
    return is_loopback(name) and (not port or port.removeprefix(":").isdecimal())


async def _send_redirect(send: Send, *more: tuple[bytes, bytes]) -> None:
    headers = [(b"location", b"/"), (b"content-length", b"0"), *_HEADERS, *more]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _send_answer(
    send: Send, status: int, body: bytes, kind: bytes, *more: tuple[bytes, bytes], is_head: bool = False
) -> None:
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *_HEADERS, *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if is_head else body})
