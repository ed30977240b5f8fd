"""Check the store, the identity and every server of a cluster: what ``goatherd doctor`` reports.

Nothing is changed, with one exception: to find out whether a server exposes its key, the check creates one anonymous
session on it, unless the server's agent has already made this check. A check that could not be made does not count as
passed. Results contain ids and times, never key material.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.cluster.discovery import NodeDirectory
from goatherd.cluster.node import NodeView
from goatherd.cluster.observer import observe_servers
from goatherd.cluster.server_answers import LogsReport
from goatherd.errors import DiscoveryError, GoatherdError, NodeError, NodeRefusedError, UnsignedIdentityError
from goatherd.identity.document import IdentityDocument
from goatherd.identity.key_age import EXPIRED_HINT, SHORT_LIFE, Urgency, assess_urgency, is_fresh_and_short
from goatherd.identity.recorded_times import recorded_ahead_ms
from goatherd.identity.redaction import days_left, find_warnings
from goatherd.identity.session import REQUEST_WINDOW
from goatherd.identity.succession import verify_signed
from goatherd.operations.concurrent_creations import Conflict, find_conflicts
from goatherd.operations.identity_store import Store
from goatherd.operations.rotate import make_rotator, resolve_nodes
from goatherd.operations.status import SKEW_WARNING
from goatherd.operations.store_checks import (
    FAILED,
    KEY_EXPOSURE,
    OK,
    RIGHTS,
    SERVERS,
    SKIPPED,
    WARNING,
    Check,
    check_store,
)
from goatherd.operations.stores import RegionState, read_regions
from goatherd.rotation.clocks import describe_difference, describe_span
from goatherd.rotation.health_checks import HealthSignal
from goatherd.rotation.obstacles import WENT_BACK, ObstacleKind, Survey, explain_silence
from goatherd.rotation.policy import Policy
from goatherd.settings.base import Origin
from goatherd.stores import RegionalReader, ReplicatedStore, Standing
from goatherd.telemetry import describe_count
from goatherd.times import format_duration, format_utc, milliseconds
from goatherd.wire.commit import Commit, decode_commits
from goatherd.wire.paths import SESSIONS_PATH

_CHECKED_ELSEWHERE: Final = frozenset(
    {
        ObstacleKind.UNREACHABLE,
        ObstacleKind.UNTRUSTED,
        ObstacleKind.OTHER_IDENTITY,
        ObstacleKind.REJECTS,
        ObstacleKind.EXPIRED,
        ObstacleKind.NODES_UNKNOWN,
    }
)

_EXPIRY_HINTS: Final = {
    Urgency.DUE: "A new root is due: run `goatherd rotate` at a convenient time.",
    Urgency.SOON: "A new root is overdue: run `goatherd rotate` this week.",
    Urgency.URGENT: "Run `goatherd rotate` now.",
}

SESSIONS_TIMEOUT: Final = timedelta(seconds=60)
"""Timeout of one request whose answer may hold 50 000 sessions; other requests have --timeout."""
SHOWN: Final = 5
_LONG_SINCE: Final = timedelta(seconds=30)
"""How long a store may show an earlier state, before a server that has read it is suspected of reading another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckScope:
    """What `goatherd doctor` checks besides the store.

    Attributes:
        addresses: The servers, or addresses that discover them.
        timeout: Timeout of one request to a server.
        org: The organization.
        policy: The policy of a rotation.
        refresh_interval: How often a server is assumed to read the store, if the server does not report its own
            interval.
        health: The health checks of a rotation.
        as_server: Whether the credentials are those of a server, which may only read; otherwise, what would make the
            next rotation fail is a failed check.
    """

    addresses: tuple[str, ...] = ()
    timeout: timedelta = timedelta(seconds=5)
    org: str
    policy: Policy
    refresh_interval: timedelta
    health: Sequence[HealthSignal] = ()
    as_server: bool = False

    @property
    def servers(self) -> tuple[str, ...]:
        """The addresses of all servers, manual-restart servers included."""
        return tuple(dict.fromkeys((*self.addresses, *sorted(self.policy.bare))))


async def run_checks(opening: AbstractAsyncContextManager[Store], scope: CheckScope) -> list[Check]:
    """Make every check of `goatherd doctor` and return the results.

    A store that cannot be read is reported as a failed check, and raises no error.

    Args:
        opening: Opens the store.
        scope: The servers, and the policy of a rotation.

    Raises:
        ConfigurationError, PluginNotFoundError, MissingExtraError: No store is named, or its plugin cannot be loaded.
    """
    checks: list[Check] = []
    store = document = None
    async with AsyncExitStack() as stack:
        try:
            store = await stack.enter_async_context(opening)
            version, document = await store.read()
        except GoatherdError as error:
            if error.code.startswith(("configuration", "plugin")):
                raise
            name = "identity" if error.code.startswith("identity") else "store"
            checks.append(Check(name, FAILED, str(error), error.hint))
        else:
            checks.append(Check("store", OK, f"{store.name} is readable, version {version.id}"))
            checks += await check_store(store, version, document, scope.policy, as_server=scope.as_server)
            checks += _check_identity(document, scope)
        if store is not None and isinstance(store.provider, RegionalReader | ReplicatedStore):
            checks += await _check_regions(store)
        checks += await _check_servers(document, scope)
        if not scope.servers:
            checks.append(Check(SERVERS, WARNING, "no server is listed", "Give --node URL."))
        is_identity_known = not any(check.level == FAILED and check.name in ("store", "identity") for check in checks)
        if store is not None and is_identity_known:
            is_writable = not any(check.level == FAILED and check.name in (RIGHTS, "room") for check in checks)
            checks += await _check_rotation(store, scope, is_writable=is_writable)
    return checks


async def _check_rotation(store: Store, scope: CheckScope, *, is_writable: bool) -> list[Check]:
    """Return the checks of whether a rotation can start or continue; an empty list if no server is listed."""
    if not scope.servers:
        return []
    try:
        async with NodeDirectory(scope.servers, timeout=scope.timeout, org=scope.org) as nodes:
            rotator = make_rotator(store, await resolve_nodes(nodes), scope.policy, health=scope.health)
            survey = await rotator.survey(is_reader=scope.as_server)
            return check_obstacles(survey, is_writable=is_writable and not scope.as_server)
    except GoatherdError as error:
        # `rotate` makes the same checks, and would end with this error.
        return [Check("rotation", SKIPPED if scope.as_server else FAILED, str(error), error.hint)]


async def _check_regions(store: Store) -> list[Check]:
    """Check the store of every region. If stores have different histories, also describe each history."""
    checks, split = [], []
    states = await read_regions(store)
    for one in states:
        name, role = "stores", "primary" if one.is_primary else "follower"
        where = f"region {one.region} ({role})"
        if one.is_in_step:
            text = f"{where} holds generation {one.generation}, the latest one"
            checks.append(Check(name, OK, text))
            continue
        is_other = one.standing in (Standing.SPLIT, Standing.UNTRUSTED)
        level = FAILED if one.is_primary or is_other else WARNING
        checks.append(Check(name, level, f"{where}: {one.problem}", one.hint))
        if one.standing is Standing.SPLIT:
            split.append(one)
    if split:
        latest = next(one for one in states if one.standing is Standing.SAME)
        checks += [_describe_history(one) for one in (latest, *split)]
        checks.append(
            Check(
                "stores",
                FAILED,
                "both stores were changed since they separated; no server leaves the history that it follows",
                "Choose the history to keep: that of the servers whose data you need. Make its store the primary"
                " store in [stores]. In each store of the other history, delete the secret permanently with the"
                " platform's own tools (AWS: --force-delete-without-recovery; Azure: purge it, too), then run `goatherd"
                " stores sync`, and start each server of that region once with --accept-identity. What the other root"
                " has signed since is no longer accepted afterwards: export it first.",
            )
        )
    return checks


def _describe_history(one: RegionState) -> Check:
    assert one.document is not None
    events = "; ".join(
        f"{format_utc(entry.at)} {entry.event}" + (f" {entry.from_id} -> {entry.to_id}" if entry.to_id else "")
        for entry in one.document.history[-SHOWN:]
    )
    text = f"history of region {one.region}: generation {one.generation}, root {one.document.current.id} signs"
    return Check("stores", WARNING, f"{text}; {events}" if events else text)


def _check_signature(document: IdentityDocument) -> Check:
    try:
        verify_signed(document)
    except UnsignedIdentityError as error:
        if document.signature is not None:
            return Check("signature", FAILED, str(error), error.hint)
        hint = "The next write by this version of Goatherd signs it. Do not let Goatherd 0.1.0 write after that."
        return Check("signature", WARNING, str(error), hint)
    return Check("signature", OK, "the current root has signed the document")


def _check_identity(document: IdentityDocument, scope: CheckScope) -> list[Check]:
    now_ms = SystemClock().now_ms()
    text = f"the document is complete: generation {document.generation}, {describe_count(len(document.roots), 'root')}"
    checks = [Check("identity", OK, text), _check_signature(document)]
    left = days_left(document, now_ms)
    for remark in find_warnings(document, now_ms):
        level = FAILED if left < 0 else WARNING
        hint = EXPIRED_HINT if left < 0 else "Run `goatherd rotate`." if left < SHORT_LIFE.days else ""
        checks.append(Check("identity", level, remark, hint))
    if left >= SHORT_LIFE.days:
        stage = assess_urgency(document, now_ms)
        level, hint = (OK, "") if stage is Urgency.FINE else (WARNING, _EXPIRY_HINTS[stage])
        if stage is Urgency.DUE and is_fresh_and_short(document):
            hint = (
                "Run `goatherd rotate` as soon as every server starts from the store: an unmodified server is not"
                f" started with {SHORT_LIFE.days} days or less left. A root that a rotation makes is valid for"
                f" {format_duration(scope.policy.lifetime)} (rotation.lifetime)."
            )
        checks.append(Check("expiration", level, f"{left:.0f} days left", hint))
    ahead_ms = recorded_ahead_ms(document, now_ms)
    if timedelta(milliseconds=ahead_ms) > scope.policy.clock_tolerance:
        text = f"the identity contains timestamps up to {describe_span(ahead_ms)} in the future"
        hint = (
            "Check this machine's clock. If it is right, a machine with a wrong clock wrote the timestamps: the "
            "next change of the identity corrects them, such as `goatherd retire`. Until then they count as "
            "the present."
        )
        checks.append(Check("recorded times", WARNING, text, hint))
    record = document.rotation
    if record is not None:
        since = timedelta(milliseconds=max(0, now_ms - record.phase_at))
        overdue = since > scope.policy.adoption
        begun = f"begun {format_utc(record.started_at)} by {record.started_by}"
        text = f"{record.phase.value} for {format_duration(since)}, {begun}"
        hint = (
            "No process seems to drive the rotation: run `goatherd rotate --resume`, or --rollback." if overdue else ""
        )
        checks.append(Check("rotation", WARNING if overdue else OK, text, hint))
    return checks


def check_obstacles(survey: Survey, *, is_writable: bool = True) -> list[Check]:
    """Turn a survey into checks: one for each obstacle to a rotation, and one for each remark.

    Obstacles that another check of `goatherd doctor` reports, such as an unreachable server, are left out. If the
    survey has no obstacle at all, one check states that a rotation can start or continue, if the credentials may write
    to the store (`is_writable`).
    """
    checks = [
        Check(
            "store history" if one.kind in WENT_BACK else "rotation",
            WARNING if one.kind is ObstacleKind.WITHOUT_STORE else FAILED,
            one.text,
            one.hint,
        )
        for one in survey.obstacles
        if one.kind not in _CHECKED_ELSEWHERE
    ]
    if not survey.obstacles:
        what = "the rotation in progress can continue" if survey.is_in_progress else "a rotation can start now"
        text = f"no obstacle: {what}" if is_writable else "the servers are no obstacle to a rotation"
        checks.append(Check("rotation", OK, text))
    return [*checks, *(Check("rotation", WARNING, remark) for remark in survey.remarks)]


async def _check_servers(document: IdentityDocument | None, scope: CheckScope) -> list[Check]:
    async with NodeDirectory(scope.servers, timeout=scope.timeout, org=scope.org) as directory:
        try:
            clients = await directory()
        except DiscoveryError as error:
            return [Check(SERVERS, FAILED, str(error), error.hint)]
        checks = []
        if directory.is_discovered:
            found = ", ".join(client.base_url for client in clients)
            checks.append(Check(SERVERS, OK, f"{len(clients)} found: {found}"))
        for each in await asyncio.gather(*(_check_server(client, document, scope) for client in clients)):
            checks += each
    if document is not None and scope.servers:
        checks += await _check_sessions(document, scope)
    return checks


async def _check_sessions(document: IdentityDocument, scope: CheckScope) -> list[Check]:
    """Check that no session was created by two different commits, on one server or on two.

    GoatDB servers and clients crash when they merge such commits.
    """
    name = "sessions"
    org = scope.org
    held: dict[str, list[Commit]] = {}
    checks = []

    async def read(client: NodeClient) -> None:
        try:
            sent = await client.pull(SESSIONS_PATH, document.current)
        except NodeError as error:
            # A server that does not answer, or does not trust this root, has failed another check.
            with suppress(NodeError):
                if await client.answers(document.current):
                    text = f"{client.base_url} did not return its sessions: {error}"
                    checks.append(Check(name, SKIPPED, text, error.hint))
        else:
            held[client.base_url] = await asyncio.to_thread(decode_commits, sent, org)

    timeout = max(scope.timeout, SESSIONS_TIMEOUT)
    async with NodeDirectory(scope.servers, timeout=timeout) as directory:
        try:
            clients = await directory()
        except DiscoveryError as error:  # it was not, a moment ago
            return [Check(name, SKIPPED, str(error), error.hint)]
        await asyncio.gather(*(read(client) for client in clients))
    conflicts = await asyncio.to_thread(find_conflicts, held)
    if conflicts:
        checks.append(_describe_conflicts(name, conflicts))
    elif held:
        count = describe_count(len({commit.key for commits in held.values() for commit in commits}), "session")
        checks.append(Check(name, OK, f"no conflict between the creations of {count}"))
    return checks


def _describe_conflicts(name: str, conflicts: Sequence[Conflict]) -> Check:
    more = f"; and {describe_count(len(conflicts) - SHOWN, 'more session')}" if len(conflicts) > SHOWN else ""
    return Check(
        name,
        FAILED,
        f'GoatDB servers and clients end with "Merge commit got empty ancestors filter" when they merge what these'
        f" servers hold: {'; '.join(conflict.text for conflict in conflicts[:SHOWN])}{more}",
        "Stop one of the servers, run `goatherd doctor --data repair DIR --peer URL` for it with each other"
        " server as a --peer, and start it.",
    )


async def _check_server(client: NodeClient, document: IdentityDocument | None, scope: CheckScope) -> list[Check]:
    try:
        checks = [await _check_key_exposure(client)]
    except NodeRefusedError as error:
        if document is not None and document.current.session.is_expired(SystemClock().now_ms()):
            text = (
                f"{client.base_url} creates no session with which to check, because root {document.current.id} has"
                " expired"
            )
            checks = [Check(KEY_EXPOSURE, SKIPPED, text, EXPIRED_HINT)]
        else:
            checks = [Check("node", FAILED, str(error), error.hint)]
    except NodeError as error:
        return [Check("node", FAILED, str(error), "Check that the server is running, and that its address is right.")]
    checks.append(await _check_clock(client))
    if document is not None:
        (node,) = await observe_servers([client], document.current, org=scope.org, timeout=scope.timeout)
        checks.append(_check_step(node, document, scope))
        agent, data = node.report.agent, node.report.data
        if agent is not None and agent.door is not None and agent.door.is_exposed:
            text = (
                f"the server behind {node.url} can be reached at other addresses of its machine, which "
                "bypasses its door"
            )
            hint = "The door's log names them (door.server_exposed). Close that port with a firewall."
            checks.append(Check("door", WARNING, text, hint))
        if node.report.has_key_on_disk:
            text = f"{node.url} holds a private key in the settings.json of its data directory"
            hint = (
                "Stop the server, run `goatherd migrate DIR --remove-key` on its machine, and start it again. If others"
                " could read the file, also run `goatherd rotate` and revoke the root in it."
            )
            checks.append(Check("key on disk", WARNING, text, hint))
        if data is not None:
            checks.append(_check_data(node.url, data))
    return checks


async def _check_key_exposure(client: NodeClient) -> Check:
    """Create a session without authentication, as an attacker would, and check the answer for a private key.

    If the server has an agent, which makes the same check after each start, the agent's result is used instead.
    """
    url = client.base_url
    answer = await client.identity()
    agent = None if answer is None else answer.agent
    if agent is not None and agent.checked_ms is not None:
        # The agent checks its server after each start, behind the door. Another check would leave another session.
        checked = format_utc(agent.checked_ms)
        text = f"{url} does not expose its private key: its agent has checked after the start, at {checked}"
        return Check(KEY_EXPOSURE, OK, text)
    if agent is not None and agent.activity is not None:
        text = f"{url} {agent.activity}; the agent makes this check afterwards"
        return Check(KEY_EXPOSURE, SKIPPED, text)
    new = await client.new_session()
    if not new.leaked:
        return Check(KEY_EXPOSURE, OK, f"{url} does not expose its private key")
    return Check(
        KEY_EXPOSURE,
        FAILED,
        f"{url} returned the private key of root {' '.join(new.leaked)} to an unauthenticated request",
        "The key is exposed. Take the server off the network, then revoke this root: goatherd revoke ID.",
    )


async def _check_clock(client: NodeClient) -> Check:
    clock = SystemClock()
    name, url = "clock", client.base_url
    before = clock.now_ms()
    try:
        server_ms = await client.time_ms()
    except NodeError:
        server_ms = None
    after = clock.now_ms()
    if server_ms is None:
        return Check(name, WARNING, f"{url} does not report its time")
    # The header has whole seconds, so the answer may be up to one older than it looks.
    ahead_ms = round(server_ms - after if server_ms > after else min(0, server_ms + 1000 - before))
    skew = timedelta(milliseconds=abs(ahead_ms))
    text = describe_difference(url, ahead_ms) if skew else f"the clock of {url} is right to the second"
    hint = f"Servers reject requests beyond a difference of {format_duration(REQUEST_WINDOW)}. Set both clocks by NTP."
    if skew > REQUEST_WINDOW:
        return Check(name, FAILED, text, hint)
    if skew > SKEW_WARNING:
        return Check(name, WARNING, text, hint)
    return Check(name, OK, text)


def _check_data(url: str, data: LogsReport) -> Check:
    if data.cannot_write is not None:
        hint = "The server's log names the error. Free disk space, or make the disk writable; no restart is needed."
        return Check("data", FAILED, f"{url} rejects writes; {data.cannot_write}", hint)
    if data.unusable is not None:
        hint = (
            "The server's log names the files. Stop the server, then run `goatherd doctor --data check DIR`, and"
            " `goatherd doctor --data repair DIR --peer URL`."
        )
        return Check("data", WARNING, f"{url} has {data.unusable}", hint)
    so_far = "" if data.is_complete else " so far; it is still reading its logs"
    return Check("data", OK, f"{url} has verified {describe_count(data.records, 'record')} in its logs{so_far}")


def _check_step(node: NodeView, document: IdentityDocument, scope: CheckScope) -> Check:
    name, url, report, agent = "node", node.url, node.report, node.report.agent
    current, root_ids = document.current.id, {root.id for root in document.roots}
    silence = explain_silence(node, root_ids, current_id=current, generation=document.generation)
    problem = node.find_problem()
    if problem is not None and (node.trusts_current or node.problem is None):
        return Check(name, FAILED, f"{url} {problem}")
    if silence.kind is ObstacleKind.OTHER_IDENTITY:
        return Check(name, FAILED, silence.text, silence.hint)
    if node.activity is not None:
        return Check(name, WARNING, f"{url} {node.activity}", "Check again in a minute.")
    if node.trusts_current is False and document.current.session.is_expired(SystemClock().now_ms()):
        return Check(name, FAILED, f"{url} rejects root {current}, which has expired", EXPIRED_HINT)
    if not node.trusts_current:
        return Check(name, FAILED, silence.text, silence.hint)
    if node.is_unmodified and agent is None:
        return Check(name, OK, f"{url} trusts root {current} (an unmodified GoatDB server)")
    if agent is not None and node.signs_with is None:
        text = f"{url} trusts root {current}; its agent has not seen yet with which root it signs"
        return Check(name, WARNING, text, "Check again in a minute.")
    if node.signs_with != current and url in scope.policy.bare:
        text = f"{url} signs with {node.signs_with}, not with {current}, until you restart it"
        return Check(name, WARNING, text, "Write its settings.json, and restart it.")
    if node.signs_with != current:
        text = f"{url} signs with {node.signs_with}, not with {current}"
        hint = "Check whether the server can read the store."
        if node.generation is not None and node.generation > document.generation:
            hint = "The server has seen a later identity than the store holds: see `store history`."
        if report.is_from_file:
            hint = "Its identity is from a settings.json: start it with --provider, or write that file again."
        return Check(name, FAILED, text, hint)
    if report.source == Origin.LAST_KNOWN_GOOD:
        age = "unknown" if report.view_age is None else format_duration(report.view_age)
        text = f"{url} started from its last known good identity, of age {age}, and cannot reach the store"
        return Check(
            name, WARNING, text, "The server answers requests, but follows no rotation until it can read the store."
        )
    if report.is_degraded or node.is_stale(scope.refresh_interval):
        age = "unknown" if report.view_age is None else format_duration(report.view_age)
        every = (
            ""
            if report.view_interval is None
            else f", and it reads the store every {format_duration(report.view_interval)}"
        )
        text = f"{url} has not read the store for {age}{every}"
        return Check(name, WARNING, text, "Check whether the server can read the store.")
    if not report.is_from_file and node.generation != document.generation:
        text = f"{url} is at generation {node.generation}, the store at {document.generation}"
        hint = "The server reads the store again at its next refresh."
        is_behind = node.generation is not None and node.generation < document.generation
        if is_behind and report.view_age is not None and document.last_updated is not None:
            read_ms = SystemClock().now_ms() - milliseconds(report.view_age)
            if read_ms > document.last_updated + milliseconds(_LONG_SINCE):
                text += ", although the server has read its store since that generation was written"
                hint = "Check that the server reads this store, and not another one such as the one before a move."
        return Check(name, WARNING, text, hint)
    others = [root for root in node.roots or () if root != current]
    also = f"; it also trusts {', '.join(others[:5])}" if others else ""
    also += f" and {len(others) - 5} more" if len(others) > 5 else ""
    also += "; its identity is from a settings.json" if report.is_from_file else ""
    return Check(name, OK, f"{url} trusts and signs with root {current}{also}")
