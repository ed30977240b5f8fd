"""Turn the events of a rotation or revocation into JSON data, for the audit trail and for the log.

This module gives each event and action a name and JSON values, and chooses which events to keep. Values are ids,
versions, times, addresses and texts; a value of another type is an error. Some events are repeated every time a
rotation checks the cluster; each of these is kept once per phase.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import timedelta
from enum import Enum
from typing import Any, Final

from goatherd.rotation.events import Decided, Event, NodeNotified, PhaseEntered, RunEnded, StoreTroubled
from goatherd.telemetry import hide_key_material, make_visible, omit_request_ids

_REPEATED: Final = (Decided, NodeNotified, StoreTroubled)
_RECORDED_AS: Final[dict[str, str | None]] = {
    "NodeView.trusts_current": "answers",
    "NodeView.report": None,
    "NodeNotified": "node-told",
    "NodeNotified.is_reached": "heard",
}
"""Events and attributes with another name in a record, because records keep their names; None for those left out."""
_MODULES: Final = ("goatherd.rotation.", "goatherd.cluster.node")


class EventData:
    """Converts the events of one run into names and data, without repetitions."""

    def __init__(self) -> None:
        self._returned: set[str] = set()

    def convert_event(self, event: Event) -> tuple[str, dict[str, Any]] | None:
        """Return the name and the data of an event; None if the same was already returned in this phase."""
        if isinstance(event, Decided):
            name, data = "decided", {"action": _event_name(event.action), **_list_members(event.action)}
        else:
            name, data = _event_name(event), _list_members(event)
        if isinstance(event, PhaseEntered | RunEnded):
            self._returned.clear()
        elif isinstance(event, _REPEATED):
            text = omit_request_ids(f"{name} {data}")
            if text in self._returned:
                return None
            self._returned.add(text)
        return name, data


def to_json_value(value: object) -> Any:
    """Return a value as JSON data.

    Raises:
        TypeError: The value is of a type that has no place in a record: a session, a key, bytes.
    """
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Enum):
        return to_json_value(value.value)
    if isinstance(value, str):
        return make_visible(hide_key_material(value))
    if isinstance(value, timedelta):
        return f"{value / timedelta(seconds=1):g}s"
    if isinstance(value, Mapping):
        return {_to_text(name): to_json_value(item) for name, item in value.items()}
    if isinstance(value, frozenset | set):
        return [to_json_value(item) for item in sorted(value, key=str)]
    if isinstance(value, tuple | list):
        return [to_json_value(item) for item in value]
    # SECURITY: only dataclasses of these modules are written with their members. A session is a dataclass, too, and
    # some sessions hold a private key (tests/unit/audit/test_trail.py).
    if is_dataclass(value) and not isinstance(value, type) and type(value).__module__.startswith(_MODULES):
        return _list_members(value)
    raise TypeError(f"an audit trail cannot contain a {type(value).__name__}")


def _list_members(value: Any) -> dict[str, Any]:
    members = {}
    for field in fields(value):
        name = _RECORDED_AS.get(f"{type(value).__name__}.{field.name}", _to_camel_case(field.name))
        if name is not None:
            members[name] = to_json_value(getattr(value, field.name))
    return members


def _event_name(value: object) -> str:
    name = type(value).__name__
    return _RECORDED_AS.get(name) or re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()


def _to_camel_case(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def _to_text(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError("the name of a member must be a string")
    return name
