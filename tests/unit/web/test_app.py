"""The page's answers: headers, access, sessions, and one rendering for all open pages."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from goatherd.clock import SystemClock
from goatherd.serving.caller_limiter import CallerLimiter
from goatherd.serving.caller_limits import CallerLimits, Rate
from goatherd.web.access import PageAddress
from goatherd.web.app import POLICY, PageApp
from goatherd.web.render import Renderer, view_data
from tests.fakes.page_scenes import scenes, view_of
from tests.fakes.shifting_clock import ShiftingClock

TOKEN = "correct horse battery staple"
DIGEST = hashlib.sha256(TOKEN.encode()).hexdigest()
SCENES = scenes()


def make_app(**address: Any) -> PageApp:
    given = {"host": "127.0.0.1", "port": 0, **address}
    limits = CallerLimits(new_sessions=Rate(per_second=0.001, burst=3))
    app = PageApp(
        PageAddress(**given), CallerLimiter(limits, clock=SystemClock()), clock=SystemClock(), interval_ms=2000
    )
    app.publish(view_data(view_of(SCENES["steady"])), None)
    return app


class Answer:
    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message["body"]


def scope_of(method: str, target: str, headers: dict[str, str], client: str) -> dict[str, Any]:
    path, _, query = target.partition("?")
    given = {"host": "localhost:8090", **headers}
    return {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "client": (client, 4711),
        "scheme": "http",
    }


async def request(
    app: PageApp, method: str, target: str, body: bytes = b"", *, client: str = "127.0.0.1", **headers: str
) -> Answer:
    answer = Answer()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    await app(scope_of(method, target, headers, client), receive, answer.send)
    return answer


async def test_every_answer_is_strict_and_nothing_can_be_changed() -> None:
    app = make_app()
    for target in ("/", "/page.css", "/page.js", "/icon.svg", "/nothing", "/?event=rotated&all=1"):
        answer = await request(app, "GET", target)
        assert answer.status == (404 if target == "/nothing" else 200), target
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["cache-control"] == "no-store"
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert (await request(app, method, "/")).status == 405
    assert (await request(app, "POST", "/nothing")).status == 404
    assert (await request(app, "HEAD", "/")).body == b""
    html = (await request(app, "GET", "/")).body.decode()
    assert "<style" not in html
    assert "style=" not in html
    assert "onclick" not in html
    assert "<script src=" in html
    assert html.count("<script") == 1


async def test_the_script_is_small() -> None:
    assert len((await request(make_app(), "GET", "/page.js")).body) < 10_000


@pytest.mark.slow
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example:8090",
        "",
        "10.0.0.1",
        "localhost.evil.example",
        "localhost:80@evil.example",
    ],
)
async def test_another_name_of_loopback_is_refused(host: str) -> None:
    for app in (make_app(), make_app(proxies=("127.0.0.0/8",))):
        answer = await request(app, "GET", "/", host=host)
        assert answer.status == 421
        assert b"Root" not in answer.body
        for own in ("localhost", "127.0.0.1:8090", "[::1]:8090"):
            assert (await request(app, "GET", "/", host=own)).status == 200


async def test_behind_a_proxy_only_the_proxy_may_connect() -> None:
    app = make_app(host="0.0.0.0", proxies=("10.1.0.0/16",))
    assert (await request(app, "GET", "/", client="10.2.0.1", host="status.example")).status == 403
    assert (await request(app, "GET", "/", client="127.0.0.1", host="status.example")).status == 403
    assert (await request(app, "GET", "/", client="10.1.0.1", host="status.example")).status == 200
    # As a page on :: sees the proxy.
    assert (await request(app, "GET", "/", client="::ffff:10.1.0.1", host="status.example")).status == 200


async def test_a_token_is_asked_for_and_gives_a_session() -> None:
    app = make_app(host="0.0.0.0", token_digest=DIGEST, certificate="c", key="k")
    page = await request(app, "GET", "/")
    assert (page.status, b"Token" in page.body, b"Root" in page.body) == (401, True, False)
    wrong = await request(app, "POST", "/login", b"token=wrong")
    assert (wrong.status, "set-cookie" in wrong.headers) == (403, False)
    right = await request(app, "POST", "/login", f"token={TOKEN.replace(' ', '+')}".encode())
    assert right.status == 303
    cookie = right.headers["set-cookie"]
    assert cookie.endswith("; HttpOnly; SameSite=Strict; Secure")
    mine = {"cookie": cookie.partition(";")[0]}
    assert TOKEN.split()[0] not in cookie
    assert (await request(app, "GET", "/", **mine)).status == 200
    forged = {"cookie": mine["cookie"][:-1] + ("A" if mine["cookie"][-1] != "A" else "B")}
    assert (await request(app, "GET", "/", **forged)).status == 401
    assert (await request(app, "POST", "/logout", **mine)).status == 303
    assert (await request(app, "GET", "/", **mine)).status == 401


async def test_a_query_or_a_form_with_too_many_fields_is_a_bad_request() -> None:
    fields = "&".join(f"a{number}=1" for number in range(11))
    guarded = make_app(host="0.0.0.0", token_digest=DIGEST, certificate="c", key="k")
    for app, method, target, body in (
        (guarded, "POST", "/login", fields),
        (make_app(), "GET", f"/?{fields}", ""),
    ):
        answer = await request(app, method, target, body.encode())
        assert (answer.status, answer.body) == (400, b"too many fields"), target
        assert answer.headers["content-security-policy"] == POLICY
    assert (await request(make_app(), "GET", f"/?{fields.rpartition('&')[0]}")).status == 200


@pytest.mark.parametrize(
    "other",
    ["theme=dark", 'prefs={"a":1}', "a b=c", "x=caf\u00e9", 'x="a', "id[0]=5", "flag", "j=a,b", "", "=", "x=a=b"],
)
async def test_a_session_is_found_beside_any_cookie_of_another_application(other: str) -> None:
    app = make_app(host="0.0.0.0", token_digest=DIGEST, certificate="c", key="k")
    right = await request(app, "POST", "/login", f"token={TOKEN.replace(' ', '+')}".encode())
    mine = right.headers["set-cookie"].partition(";")[0]
    for cookies in (f"{other}; {mine}", f"{mine};{other}"):
        assert (await request(app, "GET", "/", cookie=cookies)).status == 200, cookies
    assert (await request(app, "GET", "/", cookie=f"{other}; not_{mine}")).status == 401


async def test_tokens_cannot_be_tried_without_end() -> None:
    app = make_app(host="0.0.0.0", token_digest=DIGEST, certificate="c", key="k")
    statuses = [(await request(app, "POST", "/login", b"token=wrong")).status for _ in range(5)]
    assert statuses == [403, 403, 403, 429, 429]


async def test_a_session_ends_after_twelve_hours() -> None:
    clock = ShiftingClock()
    address = PageAddress(host="0.0.0.0", port=0, token_digest=DIGEST, certificate=None, key=None)
    app = PageApp(address, CallerLimiter(CallerLimits(), clock=SystemClock()), clock=clock, interval_ms=2000)
    answer = await request(app, "POST", "/login", f"token={TOKEN.replace(' ', '%20')}".encode())
    mine = {"cookie": answer.headers["set-cookie"].partition(";")[0]}
    clock.seconds += 12 * 3600 - 60
    assert (await request(app, "GET", "/", **mine)).status == 200
    clock.seconds += 120
    assert (await request(app, "GET", "/", **mine)).status == 401


async def test_polls_get_the_page_when_it_has_changed_and_one_rendering_serves_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rendered = []
    original = Renderer.render_page

    def counted(self: Renderer, *arguments: Any, **options: Any) -> str:
        rendered.append(1)
        return original(self, *arguments, **options)

    monkeypatch.setattr(Renderer, "render_page", counted)
    app = make_app()
    firsts = [await request(app, "GET", "/") for _ in range(100)]
    assert all(b"5 of 5 servers" in one.body for one in firsts)
    (tag,) = {one.headers["etag"] for one in firsts}
    # A proxy that compresses the page makes the tag weak (nginx), or adds to it (Apache).
    for held in (tag, f"W/{tag}", f'{tag[:-1]}-gzip"', f'"other", {tag}'):
        answer = await request(app, "GET", "/", **{"if-none-match": held})
        assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", tag)
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["cache-control"] == "no-store"
    assert (await request(app, "GET", "/?all=1", **{"if-none-match": '"other"'})).status == 200
    assert len(rendered) == 2, "one for each choice of events"
    app.publish(view_data(view_of(SCENES["server-away"])), None)
    second = await request(app, "GET", "/", **{"if-none-match": tag})
    assert (second.status, b"4 of 5 servers" in second.body) == (200, True)
    app.publish(None, {"text": "The store did not answer.", "advice": ""})
    third = await request(app, "GET", "/", **{"if-none-match": second.headers["etag"]})
    assert third.status == 200
    assert b"The store did not answer." in third.body
    assert b"Unknown; before: failed" in third.body
    assert b"<title>? " in third.body
    app.publish(None, {"text": "The store did not answer.", "advice": ""})
    assert (await request(app, "GET", "/", **{"if-none-match": third.headers["etag"]})).status == 304


@pytest.mark.parametrize(
    ("scene", "interval_ms", "poll_ms"),
    [("steady", 10_000, 3000), ("steady", 2000, 2000), ("activated", 10_000, 1000), ("steady", 1000, 1000)],
)
async def test_a_page_polls_every_second_during_a_rotation(scene: str, interval_ms: int, poll_ms: int) -> None:
    app = make_app()
    app.publish(view_data(view_of(SCENES[scene], interval_ms=interval_ms)), None)
    assert f'data-poll="{poll_ms}"'.encode() in (await request(app, "GET", "/")).body


async def test_a_page_can_be_opened_before_the_first_view() -> None:
    address = PageAddress(host="127.0.0.1", port=0)
    app = PageApp(address, CallerLimiter(CallerLimits(), clock=SystemClock()), clock=SystemClock(), interval_ms=2000)
    assert b"Nothing has been read yet." in (await request(app, "GET", "/")).body
    app.publish(None, {"text": "The store did not answer.", "advice": "Check the network."})
    answer = await request(app, "GET", "/")
    assert b"The store did not answer." in answer.body
    assert b"Check the network." in answer.body
