"""Show a rotation while it runs: a table that is updated in place on a terminal, plain lines elsewhere.

Rules: lines hold only ids, times and addresses. Each phase is shown once. A wait is shown again when its reason
changes, or the servers that it waits for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from goatherd.cli.output import Output
from goatherd.identity.root_names import shorten_id
from goatherd.rotation.events import (
    ConflictMet,
    Decided,
    Event,
    HealthSeen,
    NodeNotified,
    NodesSeen,
    NodesUnknown,
    PhaseEntered,
    RunEnded,
    StoreTroubled,
)
from goatherd.rotation.machine import Done, NodeView, Phase, Wait
from goatherd.telemetry import make_visible, omit_request_ids
from goatherd.times import format_utc, iso

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

_POLL = "waiting for its next poll of the store, at most 30 s unless it is set otherwise"
_PATH = (Phase.STEADY, Phase.PREPARED, Phase.PUBLISHED, Phase.ACTIVATED, Phase.VERIFIED, Phase.STEADY)
_MARKS: Mapping[bool | None, str] = {True: "yes", False: "no", None: "-"}


def describe_wait(wait: Wait, activities: Sequence[str] = ()) -> tuple[dict[str, object], str]:
    """Return what a run waits for and until when, as JSON data and as a line.

    Args:
        wait: The wait.
        activities: What servers do meanwhile, human-readable.
    """
    whom = f" for {', '.join(wait.nodes)}" if wait.nodes else ""
    data: dict[str, object] = {
        "nodes": list(wait.nodes),
        "reason": str(wait.reason),
        "until": iso(wait.until_ms),
        "activities": list(activities),
    }
    return data, "; ".join([f"waiting until {format_utc(wait.until_ms)}{whom}: {wait.reason}", *activities])


def show_delay(out: Output, event: Event) -> None:
    """Write a line of progress if the event is the beginning of a wait, or a failure of the store."""
    if isinstance(event, Decided) and isinstance(event.action, Wait):
        out.event("wait", *describe_wait(event.action))
    elif isinstance(event, StoreTroubled):
        out.event("store", {"problem": event.error}, f"the store: {event.error}")


class RotationProgress:
    """Show the events of one rotation. A context manager; pass its method `show` to the rotation as `on_event`.

    Args:
        out: Where to show them.
        bare: URLs of manual-restart servers, which do not read the store.

    Attributes:
        has_begun: Whether there is a rotation that can be resumed: the run met one, or has decided to write.
    """

    def __init__(self, out: Output, *, bare: Iterable[str] = ()) -> None:
        self._out = out
        self._bare = frozenset(bare)
        self._live: Live | None = None
        self._nodes: tuple[NodeView, ...] = ()
        self._phase: PhaseEntered | None = None
        self._wait = ""
        self._trouble = ""
        self._is_taken_over = False
        self.has_begun = False
        self._shown: set[tuple[str, str | None]] = set()
        self._polling: set[str] = set()

    def __enter__(self) -> Self:
        if self._out.is_live:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._out.stderr)
            if not console.is_dumb_terminal:  # which writes nothing over, and would be shown the phases only
                self._live = Live(self._build_view(), console=console, transient=True, auto_refresh=False)
                self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)
            self._live = None

    def show(self, event: Event) -> None:
        """Show one event of the rotation."""
        data: dict[str, object]
        if isinstance(event, PhaseEntered):
            self._show_phase(event)
        elif isinstance(event, NodesSeen):
            self._show_joined(event.nodes)
        elif isinstance(event, NodesUnknown):
            if event.problem != self._trouble:
                self._trouble = event.problem
                text = f"the servers could not be discovered: {event.problem}; trying again"
                self._show_line("nodes", {"problem": event.problem}, text)
        elif isinstance(event, HealthSeen):
            health = event.health
            text = f"not healthy, {health.failures} in a row: {health.problem}" if health.failures else "healthy"
            self._show_line("health", {"failures": health.failures, "problem": health.problem}, text)
        elif isinstance(event, Decided):
            self.has_begun |= not isinstance(event.action, Wait | Done)
            if isinstance(event.action, Wait):
                data, text = describe_wait(event.action, self._list_activities(event.action.nodes))
                if omit_request_ids(text) != omit_request_ids(self._wait):
                    self._wait = text
                    self._show_line("wait", data, text)
        elif isinstance(event, NodeNotified):
            is_expected = event.problem is None and event.url in self._bare
            if not event.is_reached and not is_expected and (event.url, event.problem) not in self._shown:
                self._shown.add((event.url, event.problem))
                data = {"node": event.url, "problem": event.problem}
                if event.problem is None:
                    self._polling.add(event.url)
                    text = f"{event.url} has no refresh endpoint: {_POLL}"
                else:
                    text = f"{event.url} was not notified: {event.problem}"
                self._show_line("node", data, text)
        elif isinstance(event, ConflictMet):
            self._show_line("conflict", {}, "another process wrote to the store first; reading it again")
        elif isinstance(event, StoreTroubled):
            if omit_request_ids(event.error) != omit_request_ids(self._trouble):
                self._trouble = event.error
                self._show_line("store", {"problem": event.error}, f"the store: {event.error}; trying again")
        elif isinstance(event, RunEnded):
            self._wait = ""
        if self._live is not None:
            self._live.update(self._build_view(), refresh=True)

    def _show_phase(self, event: PhaseEntered) -> None:
        self._phase, self._wait, self._trouble = event, "", ""
        self.has_begun |= event.rotation_id is not None
        data: dict[str, object] = {
            "phase": event.phase.value,
            "generation": event.generation,
            "rotation": event.rotation_id,
            "current": event.current_id,
            "next": event.next_id,
            "at": iso(event.at_ms),
        }
        to = f", next is {event.next_id}" if event.next_id else ""
        text = f"{event.phase.value}: generation {event.generation}, {event.current_id} signs{to}"
        self._show_line("phase", data, text)
        if event.is_own or event.rotation_id is None or self._is_taken_over:
            return
        self._is_taken_over = True
        who = event.started_by or "an unnamed operator"
        data = {
            "rotation": event.rotation_id,
            "startedBy": who,
            "startedAt": iso(event.started_ms),
            "phaseSince": iso(event.since_ms),
        }
        text = (
            f"rotation {event.rotation_id} was started by {who} at {format_utc(event.started_ms)}; in this phase since"
            f" {format_utc(event.since_ms)}"
        )
        self._show_line("takenOver", data, text)

    def _list_activities(self, urls: Sequence[str]) -> list[str]:
        """Return what the agents of these servers do, and which other servers wait for their next poll of the store."""
        seen = {node.url: node.activity for node in self._nodes}
        activities = [f"{url} {seen[url]}" for url in urls if seen.get(url) is not None]
        return activities + [f"{url}: {_POLL}" for url in urls if url in self._polling and seen.get(url) is None]

    def _show_joined(self, nodes: tuple[NodeView, ...]) -> None:
        before, now = ({node.url for node in views} for views in (self._nodes, nodes))
        for url in sorted(before ^ now) if before else []:
            text = f"{url} has joined" if url in now else f"{url} is no longer listed"
            self._show_line("joined" if url in now else "left", {"node": url}, text)
        self._nodes = nodes

    def _show_line(self, name: str, data: Mapping[str, object], text: str) -> None:
        if self._live is None:
            self._out.event(name, data, text)
        elif name == "phase":
            self._live.console.print(make_visible(text), markup=False, highlight=False, soft_wrap=True)

    def _live_width(self) -> int:
        return 80 if self._live is None else self._live.console.width

    def _build_view(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        for head in ("server", "introduction", "trusts new root", "signs with", "cross-signature", ""):
            # On a narrow terminal, an address or a reason takes more lines instead of being cut off.
            # The address of a server is broken only if it is wider than half of the terminal.
            whole = max((len(node.url) for node in self._nodes), default=0) if head == "server" else 0
            table.add_column(head, overflow="fold", min_width=min(whole, self._live_width() // 2) or None)
        for node in self._nodes:
            table.add_row(
                node.url,
                _MARKS[node.holds_introduction],
                _MARKS[node.trusts_next],
                make_visible(shorten_id(node.signs_with or "-")),
                _MARKS[node.holds_cross_signature],
                make_visible(node.problem or node.rejects or node.activity or ""),
            )
        phase = self._phase.phase if self._phase else Phase.STEADY
        steps = Text(" > ").join([Text(step.value, style="bold" if step is phase else "dim") for step in _PATH])
        return Group(steps, table, Text(make_visible(self._wait or self._trouble), style="dim"))
