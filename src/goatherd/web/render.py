"""Turn a `View`, the data of the status page, into HTML, with templates that escape every text.

The page as one file (`render_file`) has the same sections as the page that is served (`render_page`), and contains its
stylesheet and script.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from goatherd.errors import MissingExtraError
from goatherd.identity.root_names import shorten_id
from goatherd.times import format_age, format_utc, iso

if TYPE_CHECKING:
    from jinja2 import Environment

    from goatherd.web.view import View

SECTIONS: Final = ("problem", "state", "rotation", "servers", "roots", "stores", "history")
POLL_MS: Final = 3000
"""Longest time between two polls of an open page for a newer view."""
ROTATION_POLL_MS: Final = 1000
"""Time between two polls during a rotation; the shortest time between two views."""
FIRST_EVENTS: Final = 50
"""How many events of the history the page shows unless all are asked for."""
SIGNS: Final = {"well": "✓", "rotating": "↻", "degraded": "!", "failed": "✕", "unknown": "?"}
"""The sign of each `goatherd.web.view.State`."""
ASSETS: Final = {"/page.css": "text/css", "/page.js": "text/javascript", "/icon.svg": "image/svg+xml"}

Data = Mapping[str, Any]
"""A `View` as plain data: the result of `view_data`, or that of parsing its JSON."""


def view_data(view: View) -> dict[str, Any]:
    """Return a view as plain data, which can be written as JSON."""
    data: dict[str, Any] = json.loads(json.dumps(asdict(view)))
    return data


@dataclass(frozen=True, slots=True)
class Choice:
    """Which events of the history a reader has chosen.

    Attributes:
        event: Only events of this name; empty for all.
        is_all: Whether to show all of these events, not only the newest.
    """

    event: str = ""
    is_all: bool = False


class Renderer:
    """Renders the status page from the templates in this package.

    Raises:
        MissingExtraError: ``jinja2`` is not installed.
    """

    def __init__(self) -> None:
        try:
            import jinja2
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"the page needs a library that is not installed: {error.name}",
                hint="Install it: pip install 'goatherd[node]'",
            ) from error
        self._environment: Environment = jinja2.Environment(
            loader=jinja2.PackageLoader("goatherd.web"),
            # SECURITY: names come from servers and stores, so they are escaped in the HTML
            # (tests/unit/web/test_view.py).
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        filters: dict[str, Callable[..., Any]] = {
            "iso": iso,
            "utc": format_utc,
            "age": format_age,
            "span": _format_span,
            "clock": format_clock,
            "short": shorten_id,
            "code": self._mark_commands,
            "by_due": _group_by_due,
        }
        self._environment.filters |= filters

    def render_sections(self, view: Data, choice: Choice, *, is_live: bool, problem: Data | None) -> dict[str, str]:
        """Return the HTML of each section of the page, by its name in `SECTIONS`."""
        matching = [one for one in view["history"] if choice.event in ("", one["event"])]
        context = {
            "view": view,
            "problem": problem,
            "is_live": is_live,
            "events": sorted({one["event"] for one in view["history"]}),
            "chosen": choice.event,
            "matching": len(matching),
            # A link to an event must show it later, too, when it is not among the newest any more.
            "link": "" if choice.is_all or not is_live else "/?all=1",
            "history": matching if choice.is_all or not is_live else matching[:FIRST_EVENTS],
        }
        return {name: self._environment.get_template(f"{name}.html").render(context).strip() for name in SECTIONS}

    def render_page(
        self, view: Data, choice: Choice, *, problem: Data | None, has_session: bool, is_stale: bool = False
    ) -> str:
        """Return the HTML of the whole page, whose script polls for a newer view.

        Args:
            view: The view.
            choice: The reader's choice.
            problem: What the page says above the view, such as why the store could not be read; None for nothing.
            has_session: Whether the reader has signed in, so that the page offers to sign out.
            is_stale: Whether the store could not be read after this view was made.
        """
        interval_ms = view["interval_ms"] or 0
        is_rotating = view["rotation"] is not None
        return self._environment.get_template("page.html").render(
            view=view,
            parts=self.render_sections(view, choice, is_live=True, problem=problem),
            is_live=True,
            title=page_title(view, is_stale=is_stale),
            poll_ms=ROTATION_POLL_MS if is_rotating else max(ROTATION_POLL_MS, min(POLL_MS, interval_ms)),
            reload_seconds=max(5, round(interval_ms / 1000)),
            has_session=has_session,
        )

    def render_login(self, message: str = "") -> str:
        """Return the page that asks for the token; `message` says why the last token was rejected."""
        return self._environment.get_template("login.html").render(message=message)

    def render_file(self, view: Data) -> str:
        """Return the page as a single HTML file, which loads no other file."""
        css, script = read_asset("/page.css").decode(), read_asset("/page.js").decode()
        policy = f"default-src 'none'; style-src {_hash_source(css)}; script-src {_hash_source(script)}"
        return self._environment.get_template("page.html").render(
            view=view,
            parts=self.render_sections(view, Choice(is_all=True), is_live=False, problem=None),
            is_live=False,
            title=page_title(view),
            css=css,
            script=script,
            policy=f"{policy}; base-uri 'none'; form-action 'none'",
            has_session=False,
        )

    @cached_property
    def _markup(self) -> Any:
        import markupsafe

        return markupsafe.Markup

    def _mark_commands(self, text: str) -> Any:
        """Return a text as escaped HTML, in which the parts between backquotes are marked as code."""
        parts = text.split("`")
        if len(parts) % 2 == 0:
            return text
        code = self._markup("<code>{}</code>")
        return self._markup("").join(code.format(part) if at % 2 else part for at, part in enumerate(parts))


def _group_by_due(places: Sequence[Data]) -> list[tuple[int | None, list[Data]]]:
    """Group a private key's stored versions by the time when they may be destroyed, first those without a time."""
    groups: dict[int | None, list[Data]] = {}
    for one in places:
        groups.setdefault(one["due_ms"], []).append(one)
    return sorted(groups.items(), key=lambda group: group[0] or 0)


def page_title(view: Data, *, is_stale: bool = False) -> str:
    """Return the page's title: a sign for the cluster's state (unknown if `is_stale`), and the organization."""
    sign = "?" if is_stale else SIGNS[view["state"]]
    return f"{sign} {view['org']} · Goatherd"


def read_asset(path: str) -> bytes:
    """Return the bytes of one of the files in `ASSETS` (stylesheet, script, icon)."""
    from importlib.resources import files

    return (files("goatherd.web") / "static" / path.removeprefix("/")).read_bytes()


def _format_span(ms: int) -> str:
    return format_age(ms).removesuffix(" ago") if ms >= 1000 else f"{ms} ms"


def format_clock(ms: int) -> str:
    """Return how far a clock is ahead (``+``) or behind (``−``); less than a second cannot be measured (``±0 s``)."""
    if abs(ms) < 1000:
        return "±0 s"
    sign, seconds = ("+" if ms > 0 else "−"), abs(ms) / 1000
    return f"{sign}{seconds:.0f} s" if seconds < 120 else f"{sign}{seconds / 60:.0f} min"


def _hash_source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
