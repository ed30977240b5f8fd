"""The name of every log event and every metric, so that a dashboard, a test and the documentation agree on them.

What it is not: a logging set-up or an exporter. Rules: names are dotted, family first, and stable; fields hold ids,
generations, times and codes, never a value from a store.
"""

from __future__ import annotations

import re
from enum import StrEnum


class Event(StrEnum):
    """Log events."""

    SETTINGS_LOADED = "settings.loaded"
    """An identity was taken at start."""
    SETTINGS_CHANGED = "settings.changed"
    """Another identity was taken over from the store while running."""
    SETTINGS_REFUSED = "settings.refused"
    """What the store or the file holds is not to be used; the identity in use stays."""
    SETTINGS_UNREACHABLE = "settings.unreachable"
    """The store did not answer; the identity in use stays."""
    SETTINGS_RECOVERED = "settings.recovered"
    """The first good answer after refusals or failures."""
    SETTINGS_WRITTEN = "settings.written"
    """The identity was written to the store or the file."""
    SETTINGS_ACCEPTED = "settings.accepted"
    """An identity without succession was taken over, because the operator said so."""
    SETTINGS_CHAINED = "settings.chained"
    """An identity was taken over by introductions of roots that have left it: this server was away for long."""
    SETTINGS_UNSIGNED = "settings.unsigned"
    """An identity that its current root has not signed was taken over: no signed one was seen, or it was accepted."""
    SETTINGS_NOT_REMEMBERED = "settings.not_remembered"
    """The file that keeps a node from going back over a restart cannot be written."""
    SETTINGS_LAST_KNOWN_GOOD = "settings.last_known_good"
    """The store did not answer at start, and a node began from its sealed copy of the identity."""
    SETTINGS_NOT_SEALED = "settings.not_sealed"
    """The sealed copy of the identity cannot be written; a start without the store uses the one before, or fails."""
    SETTINGS_BREAKER_OPENED = "settings.breaker_opened"
    """The store failed, and is asked ever more seldom until it answers."""
    SETTINGS_BREAKER_CLOSED = "settings.breaker_closed"
    """The store answers again, and is asked at the usual interval."""
    SETTINGS_WATCHING = "settings.watching"
    """The store tells of changes by itself from now on; polls become rare."""
    SETTINGS_WATCH_LOST = "settings.watch_lost"
    """The store no longer tells of changes; it is polled at the usual interval until it does."""
    SETTINGS_SUBSCRIBER_FAILED = "settings.subscriber_failed"
    """A settings subscriber raised an exception."""
    IDENTITY_EXPIRING = "identity.expiring"
    """The root that signs expires before long; said at start, when it becomes more urgent, and daily."""
    FREEZE_NOT_KEPT = "freeze.not_kept"
    """The list of what the cluster held of a revoked root cannot be written; it is asked for again after a restart."""
    ROTATION_PHASE = "rotation.phase"
    """A rotation was seen in another phase than before; steady is none."""
    ROTATION_ENDED = "rotation.ended"
    """A rotation was brought to its end: the next root signs."""
    ROTATION_ABANDONED = "rotation.abandoned"
    """A rotation was cancelled or rolled back, and why."""
    ROTATION_EVIDENCE = "rotation.evidence"
    """What a rotation saw, decided or did, with the evidence as JSON: what the audit trail holds too."""
    AUDIT_HEAD = "audit.head"
    """The end of the audit trail: a checkpoint, to be compared with what the file says later."""
    AUDIT_FAILED = "audit.failed"
    """A record of the audit trail could not be written; the next one that can be says how many are missing."""
    AUDIT_TORN = "audit.torn"
    """The audit trail ended with a torn line, as a crash leaves it; the next record states it."""
    CONTROLLER_STARTED = "controller.started"
    """A controller has begun to look at an identity."""
    CONTROLLER_START_PROBLEM = "controller.start_problem"
    """Something that a rotation needs does not work at a controller's start, and may pass."""
    CONTROLLER_STOPPED = "controller.stopped"
    """A controller has ended, and whether it left a rotation to be carried on."""
    CONTROLLER_PLANNED = "controller.planned"
    """What a controller will do next, when and why; told when it changes."""
    CONTROLLER_ACTS = "controller.acts"
    """A controller begins, carries on or retires."""
    CONTROLLER_DONE = "controller.done"
    """What a controller did has succeeded."""
    CONTROLLER_YIELDED = "controller.yielded"
    """Somebody else was first; the controller looks again later."""
    CONTROLLER_TROUBLED = "controller.troubled"
    """The store did not answer a controller; it asks again."""
    CONTROLLER_ALERT = "controller.alert"
    """Somebody should look: a rotation has failed, a slot was missed, a key nears its end, or the store is away."""
    CONTROLLER_ALERT_FAILED = "controller.alert_failed"
    """The alert command did not end well."""
    AGENT_STARTED = "agent.started"
    """The agent has started the server."""
    AGENT_UP = "agent.up"
    """The server answers requests that its root has signed."""
    AGENT_NOT_UP = "agent.not_up"
    """The server did not answer such requests in time."""
    AGENT_ENDED = "agent.ended"
    """The server has ended by itself."""
    AGENT_KILLED = "agent.killed"
    """The server did not stop when it was asked to, and was killed."""
    AGENT_CUT_OFF = "agent.cut_off"
    """The server has no handler for the signal that stops it; reported once."""
    AGENT_LEFTOVER = "agent.leftover"
    """An agent before this one was killed; what it left behind was taken over, its server stopped."""
    AGENT_CHANGE = "agent.change"
    """The identity has changed so that the server must be told."""
    AGENT_CHANGE_REFUSED = "agent.change_refused"
    """The identity has changed, but a server cannot be started with it; the one that runs goes on."""
    AGENT_STEPPED_BACK = "agent.stepped_back"
    """The server did not come up with the new root, and runs with the one before."""
    AGENT_REWRITTEN = "agent.rewritten"
    """The server has changed its settings.json; nothing of it goes to the store."""
    AGENT_KEY_IN_DANGER = "agent.key_in_danger"
    """What the server has made of its settings.json puts the private key in danger, or makes it another server."""
    AGENT_MENDED = "agent.mended"
    """The server's settings.json was no longer in memory, and was brought back there."""
    AGENT_KEY_LEAKED = "agent.key_leaked"
    """The server gave a private key to an anonymous caller, and was stopped."""
    AGENT_NOT_ASKED = "agent.not_asked"
    """The attacker's question could not be put to the server yet; it is put again."""
    AGENT_SESSIONS = "agent.sessions"
    """What the server's own log holds: sessions that were verified, and those that nobody vouches for."""
    AGENT_REVOKED_ROOT = "agent.revoked_root"
    """The server's own log introduces a revoked root, which an unmodified server trusts after each start."""
    AGENT_LOG_DAMAGED = "agent.log_damaged"
    """The server's log of sessions is damaged in the middle; GoatDB cuts it off there."""
    AGENT_SHORT_LIFE = "agent.short_life"
    """The root will soon be too old to start the server with."""
    AGENT_LEASE_TAKEN = "agent.lease_taken"
    """It is this node's turn to restart its server."""
    AGENT_LEASE_AWAITED = "agent.lease_awaited"
    """It is another node's turn."""
    AGENT_LEASE_LOST = "agent.lease_lost"
    """Another node has taken the lease while this one had it: it took too long, or could not reach the store."""
    AGENT_LEASE_FAILED = "agent.lease_failed"
    """The store does not let the lease be taken, renewed or given back."""
    NODE_STARTED = "node.started"
    """A server answers requests."""
    NODE_SIGNER = "node.signer"
    """A server signs with another root than before."""
    NODE_PEER_LOST = "node.peer_lost"
    """A peer did not answer, or not as a server does; the server goes on trying. Once until it answers again."""
    NODE_PEER_FOUND = "node.peer_found"
    """A peer answers again."""
    NODE_STOPPED = "node.stopped"
    """A server has finished what it answered, has flushed its data and has stopped."""
    NODE_REQUEST_STOPPED = "node.request_stopped"
    """A request was too large, too slow or one too many for a server; at most one line a minute for each rule."""
    DATA_TORN = "data.torn"
    """A log ended with an unfinished line, as a crash leaves it; it was cut off."""
    DATA_DAMAGED = "data.damaged"
    """A log holds records that cannot be used; they are withheld, and the log stays as it is."""
    DATA_CHECKED = "data.checked"
    """A started server has read all of its logs and verified every record."""
    DATA_UNWRITABLE = "data.unwritable"
    """Logs cannot be written: a full, read-only or broken disk. Reads go on, writes get 507. Said once a minute."""
    DATA_WRITABLE = "data.writable"
    """All logs can be written again."""
    DOOR_OPENED = "door.opened"
    """A door listens in front of a server."""
    DOOR_STOPPED = "door.stopped"
    """A door has stopped something by this rule; at most one line a minute for each, with the count so far."""
    DOOR_SERVER_AWAY = "door.server_away"
    """The server behind a door does not answer, or is being restarted; callers get 503 and come again. At most one line
    a minute, with the count so far."""
    DOOR_CREATIONS_JOINED = "door.creations_joined"
    """Several clients created one key at the same time; the door gave the first creation a child, so that the server
    merges them."""
    DOOR_BYPASSED = "door.bypassed"
    """The server behind a door names another address than the door's to browsers or in login mails."""
    DOOR_SERVER_EXPOSED = "door.server_exposed"
    """The server behind a door can be reached at other addresses of its machine, past the door."""
    DOOR_KEY_WITHHELD = "door.key_withheld"
    """The server behind a door tried to give away a private key: it is burnt, revoke it."""
    DOOR_BLIND = "door.blind"
    """A door cannot read its server's sessions; pushes by unknown sessions are answered with 503."""
    DOOR_SEES = "door.sees"
    """A door has read its server's sessions again."""


class Metric(StrEnum):
    """Metrics; `goatherd.metrics` says of each what it is, and docs/reference/metrics.md is generated from there."""

    BUILD_INFO = "goatherd_build_info"

    CONNECTIONS = "goatherd_connections"
    STOPPED = "goatherd_stopped_total"
    PAUSED = "goatherd_paused_total"
    UNUSED_SESSIONS = "goatherd_unused_sessions"
    UNUSED_SESSIONS_DROPPED = "goatherd_unused_sessions_dropped_total"
    DOOR_REQUESTS = "goatherd_door_requests_total"
    DOOR_SESSIONS = "goatherd_door_sessions"
    DOOR_BLIND = "goatherd_door_blind"
    DOOR_EXPOSED = "goatherd_door_exposed"
    SERVER_STATE = "goatherd_server_state"
    SERVER_RESTARTS = "goatherd_server_restarts_total"

    SETTINGS_AGE_SECONDS = "goatherd_settings_age_seconds"
    SETTINGS_DEGRADED = "goatherd_settings_degraded"
    SETTINGS_FAILURES = "goatherd_settings_failures"
    SETTINGS_LAST_KNOWN_GOOD = "goatherd_settings_last_known_good"
    SETTINGS_BREAKER_OPEN = "goatherd_settings_breaker_open"
    SETTINGS_WATCHING = "goatherd_settings_watching"
    DOCUMENTS_REFUSED = "goatherd_documents_refused_total"

    IDENTITY_GENERATION = "goatherd_identity_generation"
    IDENTITY_INFO = "goatherd_identity_info"
    ROOT_SIGNING_SINCE = "goatherd_root_signing_since_timestamp_seconds"
    ROOT_EXPIRES = "goatherd_root_expires_timestamp_seconds"
    ROTATION_PHASE = "goatherd_rotation_phase"
    ROTATION_PHASE_ENTERED = "goatherd_rotation_phase_entered_timestamp_seconds"
    ROTATION_LAST_SUCCESS = "goatherd_rotation_last_success_timestamp_seconds"
    ROTATION_LAST_FAILURE = "goatherd_rotation_last_failure_timestamp_seconds"

    RUNS = "goatherd_rotation_runs_total"
    RUN_ENDED = "goatherd_rotation_last_run_timestamp_seconds"
    RUN_SUCCEEDED = "goatherd_rotation_last_run_success"
    PHASE_DURATION = "goatherd_rotation_phase_duration_seconds"
    NODES = "goatherd_rotation_nodes"
    NEXT_ROTATION = "goatherd_rotation_next_timestamp_seconds"

    DATA_CHECKED = "goatherd_data_checked"
    DATA_RECORDS = "goatherd_data_records"
    DATA_UNUSABLE = "goatherd_data_unusable_records"
    DATA_UNWRITABLE = "goatherd_data_unwritable_repositories"

    PROVIDER_CALLS = "goatherd_provider_calls_total"
    PROVIDER_RETRIES = "goatherd_provider_retries_total"
    PROVIDER_CALL_DURATION = "goatherd_provider_call_duration_seconds"


def event_text(event: Event, **fields: object) -> str:
    """Return one log line: the event, then ``name=value`` in the order given; texts with spaces are quoted."""
    parts = [event.value]
    for name, value in fields.items():
        text = str(value)
        parts.append(f"{name}={text!r}" if " " in text or not text.isprintable() or not text else f"{name}={text}")
    return " ".join(parts)


# Controls (C0 without tab and line feed, DEL, C1) command a terminal; the others reorder what it shows.
_COMMANDS_TERMINAL = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069]")


def make_visible(text: str) -> str:
    """Return `text` without what commands a terminal: each is written as an escape, such as ``\\u001b``.

    The escapes are those of JSON, so JSON stays the same JSON.

    SECURITY: the last line of defence for texts of servers and stores (tests/unit/cli/test_output.py,
    tests/unit/rotation/test_audit.py).
    """
    return _COMMANDS_TERMINAL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


# A P-384 scalar is 64 characters of base64url, 96 of hex or up to 116 digits; a GoatDB signature is far longer.
# Exactly 64 hexadecimal digits are a SHA-256, which is no secret.
_KEY_MATERIAL = re.compile(r"(?![0-9a-f]{64}(?![A-Za-z0-9_+=-]))[A-Za-z0-9_+=-]{64,}")


def scrub(text: str) -> str:
    """Return `text` with everything hidden that is long enough to be a key or a signature.

    SECURITY: the last line of defence for texts that are not ours (tests/unit/cli/test_no_keys_in_output.py,
    tests/unit/rotation/test_audit.py).
    """
    return _KEY_MATERIAL.sub("<hidden>", text)
