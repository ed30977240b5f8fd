"""The name of every log event and every metric, so that dashboards, tests and documentation use the same names.

Rules: the names of events are stable and consist of a family and a name with a dot between them. Fields of events
contain ids, generations, times and codes, never a secret's value.
"""

from __future__ import annotations

import re
from enum import StrEnum


class Event(StrEnum):
    """The names of all log events."""

    SETTINGS_LOADED = "settings.loaded"
    """The server loaded an identity at its start."""
    SETTINGS_CHANGED = "settings.changed"
    """The server adopted another identity from the store while it ran."""
    SETTINGS_REFUSED = "settings.refused"
    """The server rejected the identity in the store or the file, and keeps the one in use."""
    SETTINGS_UNREACHABLE = "settings.unreachable"
    """The store did not answer; the server keeps the identity in use."""
    SIGNER_INVALID_SIGNATURE = "signer.invalid_signature"
    """A signer returned a signature that does not match its public key; it was not used."""
    ROOT_SIGNER_FAILED = "signer.failed"
    """The HSM or the KMS that holds a root's key did not sign (direct mode). The server retries."""
    ROOT_SIGNER_RECOVERED = "signer.recovered"
    """The HSM or the KMS that holds a root's key signs again."""
    SETTINGS_RECOVERED = "settings.recovered"
    """The store gave its first good answer after rejections or failures."""
    SETTINGS_WRITTEN = "settings.written"
    """The identity was written to the store or the file."""
    SETTINGS_ACCEPTED = "settings.accepted"
    """The server adopted an identity without a succession, because the operator accepted it."""
    SETTINGS_CHAINED = "settings.chained"
    """The server was offline for long, and adopted an identity by introductions of roots that it no longer lists."""
    SETTINGS_REJECTED_BY_PEERS = "settings.rejected_by_peers"
    """No peer trusts the root in the store. This server has used no identity yet; it waits a minute for such a peer."""
    SETTINGS_UNSIGNED = "settings.unsigned"
    """The server adopted an unsigned identity: it saw no signed one, or the operator accepted it."""
    SETTINGS_NOT_REMEMBERED = "settings.not_remembered"
    """The file that prevents a return to an older identity at a restart cannot be written."""
    SETTINGS_LAST_KNOWN_GOOD = "settings.last_known_good"
    """The store did not answer, so the server started from its sealed copy of the identity."""
    SETTINGS_NOT_SEALED = "settings.not_sealed"
    """The sealed copy of the identity cannot be written; a start without the store uses the previous one, or fails."""
    SETTINGS_BREAKER_OPENED = "settings.breaker_opened"
    """The store failed; the server reads it at growing intervals until it answers."""
    SETTINGS_BREAKER_CLOSED = "settings.breaker_closed"
    """The store answers again; the server reads it at the usual interval."""
    SETTINGS_WATCHING = "settings.watching"
    """The store notifies the server of changes from now on, so the server polls it less often."""
    SETTINGS_WATCH_LOST = "settings.watch_lost"
    """The store no longer notifies the server of changes, so the server polls it at the usual interval."""
    STORES_BEHIND = "stores.behind"
    """The store of a region holds an identity that is earlier than the one in use, untrusted, or of another history."""
    STORES_UNREACHABLE = "stores.unreachable"
    """The store of a region did not answer; those of the other regions are read."""
    STORES_RECOVERED = "stores.recovered"
    """The store of a region answers again, and holds the identity in use or a later one."""
    SETTINGS_SUBSCRIBER_FAILED = "settings.subscriber_failed"
    """A settings subscriber raised an exception."""
    IDENTITY_EXPIRING = "identity.expiring"
    """The current root expires soon; reported at start, when it becomes more urgent, and daily."""
    FREEZE_NOT_KEPT = "freeze.not_kept"
    """A list of frozen commits cannot be written; the server requests it again after a restart."""
    ROTATION_PHASE = "rotation.phase"
    """A rotation has entered another phase; steady means no rotation."""
    ROTATION_ENDED = "rotation.ended"
    """A rotation has ended: rotated, restored, cancelled, rolled back, or ended by another command. The last three are
    warnings with the reason."""
    ROTATION_EVIDENCE = "rotation.evidence"
    """An observation, decision or action of a rotation, as in the audit trail."""
    AUDIT_HEAD = "audit.head"
    """The head of the audit trail, for a later `--checkpoint`."""
    AUDIT_FAILED = "audit.failed"
    """A record of the audit trail could not be written."""
    AUDIT_TORN = "audit.torn"
    """The audit trail ended with a torn line, as after a crash."""
    CONTROLLER_STARTED = "controller.started"
    """A controller has started to observe an identity."""
    CONTROLLER_START_PROBLEM = "controller.start_problem"
    """At a controller's start, something that a rotation needs does not work."""
    CONTROLLER_STOPPED = "controller.stopped"
    """A controller has stopped; the event states whether a rotation must be resumed."""
    CONTROLLER_PLANNED = "controller.planned"
    """What a controller does next, when and why; reported when it changes."""
    CONTROLLER_ACTS = "controller.acts"
    """A controller starts or resumes a rotation, or destroys old keys."""
    CONTROLLER_DONE = "controller.done"
    """An action of a controller has succeeded."""
    CONTROLLER_YIELDED = "controller.yielded"
    """Another process acted first; the controller checks again later."""
    CONTROLLER_TROUBLED = "controller.troubled"
    """The store did not answer a controller; the controller retries."""
    CONTROLLER_ALERT = "controller.alert"
    """An operator is needed: a rotation failed, a slot was missed, a key expires soon, or the store is unreachable."""
    CONTROLLER_ALERT_FAILED = "controller.alert_failed"
    """The alert command failed."""
    AGENT_STARTED = "agent.started"
    """The agent has started the server."""
    AGENT_UP = "agent.up"
    """The server is ready: it answers requests signed by the current root."""
    AGENT_NOT_UP = "agent.not_up"
    """The server was not ready in time."""
    AGENT_ENDED = "agent.ended"
    """The server has exited without a request of the agent."""
    AGENT_STOPPING = "agent.stopping"
    """The agent has received a signal to stop: it stops the server, removes its files and exits."""
    AGENT_KILLED = "agent.killed"
    """The server did not stop in time, and the agent killed it."""
    AGENT_CUT_OFF = "agent.cut_off"
    """The server has no handler for the signal that stops it; reported once."""
    AGENT_LEFTOVER = "agent.leftover"
    """A previous agent was killed; this agent took over its files and stopped its server."""
    AGENT_CHANGE = "agent.change"
    """The identity has changed, and the agent must notify the server."""
    AGENT_CHANGE_REFUSED = "agent.change_refused"
    """The identity has changed, but cannot be written, or no server can start with it, or a start would lose records;
    the server continues."""
    AGENT_STEPPED_BACK = "agent.stepped_back"
    """The server was not ready with the next root, and runs with the previous root."""
    AGENT_NOT_RECORDED = "agent.not_recorded"
    """The process id of the server, or a root that it has exposed, cannot be written to the data directory for the next
    agent."""
    AGENT_REWRITTEN = "agent.rewritten"
    """The server has changed its settings.json; the agent writes none of it to the store."""
    AGENT_KEY_IN_DANGER = "agent.key_in_danger"
    """The server's edit of its settings.json endangers the private key, or changes its identity."""
    AGENT_MENDED = "agent.mended"
    """The server's settings.json was no longer in memory, and the agent restored it there."""
    AGENT_KEY_LEAKED = "agent.key_leaked"
    """The server returned a private key to an unauthenticated client, and the agent stopped it."""
    AGENT_NOT_ASKED = "agent.not_asked"
    """The agent could not check yet whether the server exposes its key; it retries."""
    AGENT_SESSIONS = "agent.sessions"
    """How many sessions the server's log holds, verified ones and those that no trusted root introduces."""
    AGENT_REVOKED_ROOT = "agent.revoked_root"
    """The server's own log introduces a revoked root, which an unmodified server trusts after each start."""
    AGENT_LOG_DAMAGED = "agent.log_damaged"
    """The server's log of sessions is damaged in the middle; GoatDB cuts it off there."""
    AGENT_SHORT_LIFE = "agent.short_life"
    """The remaining lifetime of the root will soon be too short to start the server."""
    AGENT_LEASE_TAKEN = "agent.lease_taken"
    """This server's agent holds the restart lease."""
    AGENT_LEASE_AWAITED = "agent.lease_awaited"
    """Another server's agent holds the restart lease."""
    AGENT_LEASE_LOST = "agent.lease_lost"
    """Another agent has taken the lease from this one, which was too slow or could not reach the store."""
    AGENT_LEASE_FAILED = "agent.lease_failed"
    """The store rejects a request to take, renew or release the lease."""
    NODE_STARTED = "node.started"
    """A server is ready."""
    NODE_SIGNER = "node.signer"
    """A server signs with another root than before."""
    NODE_PEER_LOST = "node.peer_lost"
    """A peer did not answer, or gave an unexpected answer; the server retries. Reported once until it answers again."""
    NODE_PEER_FOUND = "node.peer_found"
    """A peer answers again."""
    NODE_KEY_ON_DISK = "node.key_on_disk"
    """A server takes its identity from a store, and its data directory holds a settings.json with a private key."""
    NODE_STOPPED = "node.stopped"
    """A server has finished the requests in progress, has flushed its data and has stopped."""
    NODE_REQUEST_STOPPED = "node.request_stopped"
    """A server rejected a request that was too large, too slow or above a limit; one line a minute per rule."""
    DATA_TORN = "data.torn"
    """A log ended with an unfinished line, as after a crash; the server or its agent removed the line."""
    DATA_CUT_OFF = "data.cut_off"
    """Another program had removed a log or cut it off while the server ran; the server has written it again."""
    DATA_QUERY_CACHE = "data.query_cache"
    """GoatDB's stored query results beside a log cannot be deleted; delete them before GoatDB serves the data again."""
    DATA_DAMAGED = "data.damaged"
    """A log holds records that cannot be used; the server withholds them and leaves the log unchanged."""
    DATA_CHECKED = "data.checked"
    """A started server has read all of its logs and verified every record."""
    DATA_UNWRITABLE = "data.unwritable"
    """Logs cannot be written: a full, read-only or broken disk. Reads continue, writes get 507."""
    DATA_WRITABLE = "data.writable"
    """All logs can be written again."""
    PAGE_OPENED = "page.opened"
    """The controller serves the page."""
    PAGE_LOST = "page.lost"
    """The controller's page has failed; it is started again."""
    PAGE_CERTIFICATE_REFUSED = "page.certificate_refused"
    """The renewed certificate of the page or its key cannot be used; the page is served with the previous one."""
    DOOR_OPENED = "door.opened"
    """A door listens in front of a server."""
    DOOR_STOPPED = "door.stopped"
    """A door has blocked traffic by this rule; one line a minute per rule, with the count so far."""
    DOOR_SERVER_AWAY = "door.server_away"
    """The server behind a door is unreachable or restarting; clients get 503 and retry."""
    DOOR_CREATIONS_JOINED = "door.creations_joined"
    """Clients created one key at the same time; the door gave the first creation a child, so that the server survives
    the merge."""
    DOOR_BYPASSED = "door.bypassed"
    """The server behind a door gives browsers or login mails another address than the door's."""
    DOOR_SERVER_EXPOSED = "door.server_exposed"
    """The server behind a door can be reached at other addresses of its machine, without the door."""
    DOOR_KEY_WITHHELD = "door.key_withheld"
    """The server behind a door tried to return a private key: the key is exposed, revoke it."""
    DOOR_BLIND = "door.blind"
    """A door cannot read its server's sessions; pushes by unknown sessions are answered with 503."""
    DOOR_SEES = "door.sees"
    """A door has read its server's sessions again."""


class Metric(StrEnum):
    """The names of all metrics; `goatherd.metrics` describes each of them (docs/reference/metrics.md)."""

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
    STORE_FOLLOWED = "goatherd_store_followed"
    DOCUMENTS_REFUSED = "goatherd_documents_refused_total"

    IDENTITY_GENERATION = "goatherd_identity_generation"
    IDENTITY_INFO = "goatherd_identity_info"
    ROOT_SIGNING_SINCE = "goatherd_root_signing_since_timestamp_seconds"
    ROOT_EXPIRES = "goatherd_root_expires_timestamp_seconds"
    WORKING_ROOT_LIFETIME = "goatherd_working_root_lifetime_seconds"
    ROTATION_PHASE = "goatherd_rotation_phase"
    ROTATION_PHASE_ENTERED = "goatherd_rotation_phase_entered_timestamp_seconds"
    ROTATION_LAST_SUCCESS = "goatherd_rotation_last_success_timestamp_seconds"
    ROTATION_LAST_FAILURE = "goatherd_rotation_last_failure_timestamp_seconds"

    RUNS = "goatherd_rotation_runs_total"
    RUN_ENDED = "goatherd_rotation_last_run_timestamp_seconds"
    RUN_SUCCEEDED = "goatherd_rotation_last_run_success"
    PHASE_DURATION = "goatherd_rotation_phase_duration_seconds"
    NODES = "goatherd_rotation_nodes"
    ANCHOR_REACHABLE = "goatherd_anchor_reachable"
    ROOT_SIGNER_UP = "goatherd_root_signer_up"
    WITHHELD_ITEMS = "goatherd_withheld_items"
    NEXT_ROTATION = "goatherd_rotation_next_timestamp_seconds"

    DATA_CHECKED = "goatherd_data_checked"
    DATA_RECORDS = "goatherd_data_records"
    DATA_UNUSABLE = "goatherd_data_unusable_records"
    DATA_UNWRITABLE = "goatherd_data_unwritable_repositories"

    PROVIDER_CALLS = "goatherd_provider_calls_total"
    PROVIDER_RETRIES = "goatherd_provider_retries_total"
    PROVIDER_CALL_DURATION = "goatherd_provider_call_duration_seconds"

    SIGNER_CALLS = "goatherd_signer_calls_total"
    SIGNER_RETRIES = "goatherd_signer_retries_total"
    SIGNER_CALL_DURATION = "goatherd_signer_call_duration_seconds"
    SIGNER_INVALID_SIGNATURES = "goatherd_signer_invalid_signatures_total"


def event_text(event: Event, **fields: object) -> str:
    """Return one log line: the event, then ``name=value`` in the given order; values with spaces are quoted."""
    parts = [event.value]
    for name, value in fields.items():
        text = str(value)
        parts.append(f"{name}={text!r}" if " " in text or not text.isprintable() or not text else f"{name}={text}")
    return " ".join(parts)


# Controls (C0 without tab and line feed, DEL, C1) command a terminal; the others reorder what it shows.
_COMMANDS_TERMINAL = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069]")


def describe_count(number: int, noun: str, one: str = "", many: str = "") -> str:
    """Return a number with its noun, such as ``1 root`` or ``2 roots``, and with the matching verb, if verbs are given.

    Args:
        number: The number.
        noun: The noun in the singular; its plural ends in ``s``.
        one: The verb after one thing, such as ``is``.
        many: The verb after any other number of things, such as ``are``.
    """
    noun, verb = (noun, one) if number == 1 else (f"{noun}s", many)
    return f"{number} {noun} {verb}" if verb else f"{number} {noun}"


def make_visible(text: str) -> str:
    """Return `text` with each character that controls a terminal replaced by an escape, such as ``\\u001b``.

    The escapes are those of JSON, so JSON text keeps its meaning.

    SECURITY: the last protection against control sequences in texts from servers and stores
    (tests/unit/cli/test_output.py, tests/unit/audit/test_trail.py).
    """
    return _COMMANDS_TERMINAL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


# A P-384 scalar is 64 characters of base64url, 96 of hex or up to 116 digits; a GoatDB signature is far longer.
# Exactly 64 hexadecimal digits are a SHA-256, which is no secret.
_KEY_MATERIAL = re.compile(r"(?![0-9a-f]{64}(?![A-Za-z0-9_+=-]))[A-Za-z0-9_+=-]{64,}")


_PLAIN_WORD = re.compile(r"[\w./~+-]+")
_REQUEST_ID = re.compile(r", request [A-Za-z0-9-]+(?=\))")


def find_program(line: str) -> str:
    """Return the program that a command line runs: its first word. Return "" if that is no plain word.

    SECURITY: the other words may contain secrets, and so may a first word that is an assignment, such as
    ``PGPASSWORD=… psql`` (tests/unit/rotation/test_health_checks.py, tests/unit/config/test_options.py).
    """
    word = (line.split() or [""])[0]
    return word if _PLAIN_WORD.fullmatch(word) else ""


def omit_request_ids(text: str) -> str:
    """Return `text` without the ids of AWS's requests, so that texts of one error in several attempts are equal."""
    return _REQUEST_ID.sub("", text)


def hide_key_material(text: str) -> str:
    """Replace every part of `text` that is long enough to be a key or a signature by ``<hidden>``.

    SECURITY: the last protection against keys in texts from servers and stores
    (tests/unit/cli/test_no_keys_in_output.py, tests/unit/audit/test_trail.py).
    """
    return _KEY_MATERIAL.sub("<hidden>", text)
