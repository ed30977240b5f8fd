"""Drive a rotation: observe the store and the servers, let `decide` choose an action, perform it, and repeat.

This module has the loop, and one method for each action. The rules of a rotation are in `machine`. All state that must
survive a crash is in the identity document, so any process can resume a rotation.

Rules:
- Every write of the document is a compare-and-swap on the version that was read. After a conflict the rotator reads and
  decides again. If an action was tried twice and the store has not changed, it is not tried a third time (`attempts`).
- Every action can be repeated without harm, and the process may be killed before, during and after it.
- A failed store call is retried after a short pause (`repeating_store`).
- After each write the servers are notified; a server that cannot be notified reads the store at its next refresh.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Final

from goatherd.clock import Clock, SteadyClock, SystemClock
from goatherd.cluster.node import Node, NodeSource
from goatherd.cluster.observer import Observer, Question
from goatherd.crypto import fingerprint
from goatherd.errors import (
    ConfigurationError,
    ConflictError,
    GenerationError,
    IdentityError,
    IllegalStepError,
    NotAdoptedError,
    NotRestorableError,
    ObstructedError,
    ProviderAccessDeniedError,
    ProviderConfigurationError,
    ProviderError,
    SecretNotFoundError,
    SignerError,
    UnhealthyError,
    UnsignedIdentityError,
)
from goatherd.identity import transitions
from goatherd.identity.document import (
    IdentityDocument,
    Phase,
    decode_document,
)
from goatherd.identity.recorded_times import limit_times, recorded_ahead_ms
from goatherd.identity.session import ROOT_OWNER, OwnedSession, Session
from goatherd.identity.succession import verify_signed
from goatherd.ids import new_id
from goatherd.key_inventory import (
    Holding,
    ReadVersions,
    find_cancelled_holdings,
    find_holdings,
    is_gone_when_destroyed,
)
from goatherd.providers.base import ReadConsistency, SecretProvider
from goatherd.providers.values import CURRENT, STABLE, SecretVersion, VersionId, VersionState
from goatherd.remote_keys import RootSigners, call_signing, sign_aside
from goatherd.rotation.anchor_keys import (
    UNCHANGED,
    AnchorChoice,
    AnchorKey,
    AnchorKeys,
    SignerOpener,
    collect_anchor_signatures,
    open_anchor_signer,
)
from goatherd.rotation.attempts import Attempts, identify_attempt
from goatherd.rotation.clocks import Clocks
from goatherd.rotation.cross_signing import (
    expected_cross_signature,
    expected_earlier_introduction,
    expected_introductions,
    is_introduced_by_anchor,
    make_cross_signature,
    make_earlier_introduction,
    make_introductions,
)
from goatherd.rotation.events import (
    ConflictMet,
    Decided,
    Event,
    HealthSeen,
    NodeNotified,
    NodesSeen,
    NodesUnknown,
    PhaseEntered,
    Report,
    RunEnded,
    StoreTroubled,
)
from goatherd.rotation.health_checks import HealthSignal, HealthWatch
from goatherd.rotation.identity_writer import IdentityWriter
from goatherd.rotation.machine import (
    Abandon,
    Action,
    Advance,
    Busy,
    CorrectTimes,
    CrossSign,
    Destroy,
    Done,
    FlowProbe,
    Goal,
    HealthView,
    Illegal,
    Intent,
    Introduce,
    IntroduceEarlier,
    LabelStable,
    NodeView,
    Observation,
    Outcome,
    Policy,
    Prepare,
    PrepareRestore,
    Prune,
    RecordRetired,
    Refuse,
    Step,
    StoreView,
    Wait,
    decide,
    describe_wait,
    find_lack_of_room,
    find_obstacles_to_begin,
    refusal_error,
)
from goatherd.rotation.observation import make_store_view
from goatherd.rotation.obstacles import StoredState, Survey, find_contradiction, find_flow, find_remarks
from goatherd.rotation.plan import Plan, make_plan
from goatherd.rotation.policy import check_quorum, check_rotation_servers
from goatherd.rotation.polling import Polling
from goatherd.rotation.restorable import check_remaining_life, choose_root, find_left_root, read_earlier_root
from goatherd.rotation.store_history import find_later_versions
from goatherd.stores import FollowerView, RegionalReader, ReplicatedStore
from goatherd.telemetry import Event as LogEvent
from goatherd.telemetry import event_text
from goatherd.times import milliseconds
from goatherd.wire.paths import DEFAULT_ORG, SESSIONS_PATH

_log = logging.getLogger("goatherd.rotation")

_MEANT: Final = "asked for by the operator"
_UNREAD: Final = "the versions"


class Rotator:
    """Rotates the root of one organization. One object may run any number of times, but one run at a time.

    Args:
        provider: The store.
        secret_id: The secret that holds the identity, with ``{org}`` replaced.
        nodes: Every server that holds this identity, or a function that lists the servers again at each observation.
            The rotation does not wait for a server that is missing here; see `Policy.unlisted`.
        org: The organization id, which is part of every signed commit.
        policy: Timeouts, quorum and lifetimes.
        clock: Supplies the time, and waits.
        started_by: The user or process that runs the rotation, human-readable: ``user@host:pid``.
        on_event: Called with each event as it happens; must not block and must not raise.
        on_identity: Called with the identity document, which holds private keys, after each read of the store and
            before the events that follow from it; must not block and must not raise.
        health: Health checks that must pass before a rotation begins, and while the next root signs.
        unsafe_without_nodes: Whether to rotate although no server is listed.
        open_signer: Opens the signer that holds the key of an anchor (in an HSM or a KMS) by its URI.
        signers: The signers that this machine may call; None for none.
    """

    def __init__(
        self,
        provider: SecretProvider,
        secret_id: str,
        nodes: Sequence[Node] | NodeSource,
        *,
        org: str = DEFAULT_ORG,
        policy: Policy | None = None,
        clock: Clock | None = None,
        started_by: str = "",
        on_event: Callable[[Event], None] | None = None,
        on_identity: Callable[[IdentityDocument], None] | None = None,
        health: Sequence[HealthSignal] = (),
        unsafe_without_nodes: bool = False,
        open_signer: SignerOpener = open_anchor_signer,
        signers: RootSigners | None = None,
    ) -> None:
        if not callable(nodes) and any(isinstance(node, str) for node in nodes):
            raise ConfigurationError(
                "a Rotator needs a client object for each server, not URLs",
                hint="Pass NodeClient(url) for each URL, or call `goatherd.rotate(store, nodes)`, which takes URLs.",
            )
        self.policy = policy or Policy()
        self._provider = provider
        self._secret_id = secret_id
        self._org = org
        self._clock: Clock = clock or SystemClock()
        # Measures waits and grace periods; signatures and records have the machine's own time.
        self._steady = SteadyClock(self._clock)
        self._seen_ms: dict[str, int] = {}
        self._is_clock_confirmed = False
        self._recorded_ahead_ms = 0
        self._started_by = started_by
        self._on_event = on_event
        self._on_identity = on_identity
        self._observer = Observer(
            nodes,
            clock=self._clock,
            timeout=self.policy.node_timeout,
            bare=self.policy.bare,
            org=org,
            on_failure=self._report_failure,
        )
        self._health = HealthWatch(health, clock=self._clock, interval=self.policy.health_interval)
        self._well: HealthView | None = None
        self._nodes = nodes
        self._unsafe_without_nodes = unsafe_without_nodes
        self._listed = 0 if callable(nodes) else len(nodes)
        self._seen: tuple[NodeView, ...] = ()
        self._given_up: list[str] = []
        self._undestroyed: dict[str, str] = {}
        self._read_versions = ReadVersions()
        self._left_out: tuple[str, ...] = ()
        self._restoring: Session | None = None
        self._flow: FlowProbe | None = None
        self._health_before: HealthView | None = None
        self._pruned: set[str] = set()
        self._signers = signers or RootSigners()
        self._identity = IdentityWriter(
            provider,
            secret_id,
            policy=self.policy,
            clock=self._clock,
            ask=self._observer.read_identities,
            on_event=self._emit_event,
            signers=self._signers,
        )
        self._store = self._identity.store
        self._anchor_keys = AnchorKeys(org, open_signer, self._signers)
        self._anchor_choice = UNCHANGED
        self._earlier: dict[str, dict[str, Any]] = {}
        self._read_last: IdentityDocument | None = None
        self._phase: Phase | None = None
        self._stored_phase: Phase | None = None

    # --- what an operator asks for ----------------------------------------------------------------------------------

    async def rotate(self, *, to_phase: Phase | None = None, anchor: AnchorChoice = UNCHANGED) -> Report:
        """Replace the current root by a new one. Return when every server signs with it and the rotation is final.

        Args:
            to_phase: The phase at which to stop; `resume` continues the rotation. None to complete it.
            anchor: What the rotation changes about the anchor, the key in an HSM or a KMS that endorses roots (default:
                nothing).

        Raises:
            SignerError: The anchor's signer refused or did not answer. Nothing was written.
            RotationBusyError: A rotation is in progress, or another process has just started one; the error names its
                owner, its start time and its phase.
            NotAdoptedError: Servers did not adopt the new identity in time, or rejected it; the rotation was cancelled
                or rolled back. `report` has the details.
            StoreWentBackError: A server has used a later identity than the store holds, or a different one, probably
                because a backup was restored. Nothing was written.
            ObstructedError: An obstacle prevents the rotation (`goatherd.rotation.obstacles`), such as a server that
                does not answer or belongs to another identity, or servers that do not synchronize. Nothing was written.
            IllegalStepError: The current root has expired; or the identity does not allow this change of the anchor. In
                direct mode (the anchor itself signs), a rotation must change the anchor. Nothing was written.
            DegradedError: A server cannot read the store, and so could not adopt the new identity. Nothing was written.
            UnhealthyError: A health check fails before the rotation. Nothing was written.
            LifetimeError: The lifetime of the new root would be too short (`goatherd.rotation.policy.check_lifetime`).
            ConfigurationError: No server is listed, or the quorum is larger than their number; or the policy needs a
                working root, but no anchor endorses the next root.
            UnsignedIdentityError: The identity in the store was changed since a root signed it.
            ProviderError: The store failed. If the rotation had begun, `resume` continues it.
        """
        check_rotation_servers(self._nodes, unsafe_without_nodes=self._unsafe_without_nodes)
        if to_phase is Phase.STEADY:
            to_phase = None
        return await self._run_goal(Goal.ROTATE, to_phase=to_phase, anchor=anchor)

    async def restore(self, root_id: str | None = None, *, to_phase: Phase | None = None) -> Report:
        """Make a previous root the current root again, by a rotation to it. The root that it replaces stays trusted.

        Args:
            root_id: The previous root, named as `resolve_root` reads it; None for the root before the current one.
            to_phase: The phase at which to stop; `resume` continues the rotation. None to complete it.

        Raises:
            ConfigurationError: The name fits several roots. Nothing was written.
            NotRestorableError: The root is unknown, is the current root, was revoked, expires too soon, or no readable
                version holds its private key; or the identity document no longer lists the root, and no listed server
                holds an introduction which proves that it was a root of this identity. Nothing was written.
            RotationBusyError, NotAdoptedError, StoreWentBackError, ObstructedError, DegradedError, UnhealthyError,
                ProviderError: As for `rotate`.
        """
        check_rotation_servers(self._nodes, unsafe_without_nodes=self._unsafe_without_nodes)
        if to_phase is Phase.STEADY:
            to_phase = None
        self._restoring = None
        document = await self.check_identity()
        if document.rotation is None:
            root_id = choose_root(document, root_id, self._clock.now_ms())
            unmodified = await self._observer.find_unmodified()
            root = document.find_root(root_id)
            if root is None:
                now_ms = self._clock.now_ms()
                root = await find_left_root(
                    self._store, self._secret_id, document, root_id, observer=self._observer, now_ms=now_ms
                )
            check_remaining_life(root, self._clock.now_ms(), self.policy, unmodified=unmodified)
            self._restoring = root
        return await self._run_goal(Goal.RESTORE, to_phase=to_phase, to_id=root_id)

    async def resume(self, *, to_phase: Phase | None = None) -> Report:
        """Resume the rotation in progress, whichever process began it; if there is none, repair what a crash has left.

        Args:
            to_phase: The phase at which to stop; None to complete the rotation.

        Raises:
            The errors of `rotate`, except `RotationBusyError`.
        """
        check_rotation_servers(self._nodes, unsafe_without_nodes=self._unsafe_without_nodes)
        check_quorum(self.policy, self._listed)
        self._identity.forget()
        if self._health.signals and (await self._read_identity())[0].next is not None:
            # Once B signs, a failed health check leads to a roll-back, not to a refusal.
            await self._refuse_unwell()
        return await self._run_goal(Goal.RESUME, to_phase=to_phase)

    async def abandon(self, reason: str = _MEANT, *, by: Step | None = None) -> Report:
        """End the rotation in progress: cancel it if the next root has not signed yet, else roll it back.

        Afterwards the root that was to be replaced is the current root again. Servers continue to trust the new root,
        unless it was not published yet. The report lists the servers that do not sign with the current root yet, as far
        as the run has seen (`Report.behind`).

        Args:
            reason: The reason, which the document's history records.
            by: `Step.CANCEL` or `Step.ROLL_BACK`, to permit only this way to end the rotation; None to permit the one
                that the phase requires.

        Raises:
            IllegalStepError: No rotation is in progress; or its phase requires another step than `by`; or the root to
                roll back to has expired or is revoked, so that the rotation can only be completed.
            StoreWentBackError: As for `rotate`.
            ProviderError: The store failed, or no longer holds the private key of the root to roll back to.
        """
        return await self._run_goal(Goal.ABANDON, reason=reason, required_step=by)

    async def retire(self) -> Report:
        """Destroy the stored versions whose private keys were retired longer than the grace period ago.

        Raises:
            IllegalStepError: A rotation is in progress.
            ObstructedError: A listed server still signs with a root whose private key would be destroyed.
            StoreWentBackError: As for `rotate`; only the servers that answer are compared with the store.
            ProviderError: The store failed, or cannot destroy a version.
        """
        return await self._run_goal(Goal.RETIRE)

    async def plan(self, *, anchor: AnchorChoice = UNCHANGED) -> Plan:
        """Return the plan of a rotation: what `rotate` would do, or `resume` if a rotation is in progress.

        Writes nothing to the store. The signer of a new anchor signs a test text; so does that of the identity's
        anchor, if a server trusts the current root.

        Args:
            anchor: What the rotation would change about the anchor (default: nothing).

        Raises:
            IllegalStepError: The identity does not allow this change of the anchor.
            ConfigurationError: The policy needs a working root, but no anchor endorses the next root.
            ProviderError, IdentityError: The store does not answer, or does not hold an identity.
        """
        self._anchor_choice = anchor
        self._identity.forget()
        self._set_clock()
        document, version = await self._read_identity()
        await self._identity.signatures.check_document(self._read_last)
        if document.rotation is None:
            anchor.check_allowed(document)
            self.policy.check_new_root(has_anchor=anchor.leaves_anchor(document))
        observation, document = await self._survey_cluster(document, version)
        observation = await self._add_anchor_problem(observation)
        if anchor.is_direct and document.rotation is None and observation.anchor_problem is None:
            async with self._anchor_keys:
                observation = replace(observation, direct_key=await self._read_direct_key(document))
        names = tuple(one.name for one in self._health.signals)
        remarks = tuple(await self._find_remarks(observation, document))
        return make_plan(
            observation,
            self._policy_for(document),
            self._steady.now_ms(),
            signals=names,
            remarks=remarks,
        )

    async def check_identity(self) -> IdentityDocument:
        """Return the identity in the store, after the checks of it that every run makes before it changes anything.

        Raises:
            StoreWentBackError, UnsignedIdentityError, ConfigurationError, ProviderError: As for `rotate`.
        """
        document = await self._check_history()
        await self._identity.signatures.check_document(self._read_last)
        return document

    async def may_begin(self, anchor: AnchorChoice) -> bool:
        """Return whether `rotate` would begin a rotation now, by all that can be checked without an effect.

        Raises:
            IllegalStepError: The identity does not allow this change of the anchor.
            StoreWentBackError, UnsignedIdentityError, ConfigurationError, ProviderError: As for `rotate`.
        """
        self._anchor_choice, self._flow, self._health_before = anchor, None, None
        self._set_clock()
        document = await self.check_identity()
        if document.rotation is not None:
            return False
        anchor.check_allowed(document)
        observation, document = await self._survey_cluster(*await self._read_identity())
        now_ms, store = self._steady.now_ms(), observation.store
        intent = Intent(goal=Goal.ROTATE, began_ms=now_ms, from_id=document.current.id)
        # A label to be repaired first must not hide what comes after it.
        observation = replace(observation, store=replace(store, stable=store.version))
        action = decide(observation, self._policy_for(document), intent, now_ms)
        return not isinstance(action, Busy | Illegal | Refuse)

    async def survey(self, *, is_probing: bool = True, has_remarks: bool = True, is_reader: bool = False) -> Survey:
        """Return the obstacles that prevent a rotation, as `rotate` would find them. Writes nothing to the store.

        Args:
            is_probing: Whether to make the checks that have an effect: if the servers do not report their peers, check
                by sessions that they synchronize, which may create one anonymous session; and let the anchor's signer
                sign a test text.
            has_remarks: Whether to return remarks, too: problems that do not prevent a rotation. They require a read of
                every stored version.
            is_reader: Whether the credentials may be those of a server, which may not list the versions.

        Raises:
            ProviderError, IdentityError: The store does not answer, or does not hold an identity.
        """
        self._flow = self._health_before = None
        self._identity.forget()
        self._set_clock()
        document, version = await self._read_identity()
        self._anchor_choice = UNCHANGED
        observation, document = await self._survey_cluster(
            document, version, is_probing=is_probing, is_reader=is_reader
        )
        if is_probing:
            observation = await self._add_anchor_problem(observation)
        policy, now_ms = self._policy_for(document), self._steady.now_ms()
        return Survey(
            obstacles=(
                *find_obstacles_to_begin(observation, policy, now_ms),
                *find_lack_of_room(observation, policy, now_ms),
            ),
            remarks=await self._find_remarks(observation, document) if has_remarks else (),
            is_in_progress=document.rotation is not None,
            progress=describe_wait(observation, self.policy),
            nodes=observation.nodes,
        )

    async def _find_remarks(self, observation: Observation, document: IdentityDocument) -> tuple[str, ...]:
        try:
            held = await find_holdings(self._store, self._secret_id, document, has_copies=False)
        except ProviderError:
            held = ()  # the permissions allow reading the current version only
        later: tuple[str, ...] = ()
        store = observation.store
        now = StoredState(generation=store.generation, digest=store.digest, lineage=store.lineage)
        used = {
            node.url: (node.generation, node.digest)
            for node in observation.nodes
            if node.generation is not None
            and node.digest is not None
            and find_contradiction(node.url, node.generation, node.digest, now) is not None
        }
        if used:
            with suppress(ProviderError):
                later = await find_later_versions(self._store, self._secret_id, used)
        return later + find_remarks(
            observation,
            self.policy,
            foreign_labels={label: one.version.id for one in held for label in one.foreign_labels},
            damaged={one.version.id: one.problem for one in held if one.problem is not None},
        )

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def _run_goal(
        self,
        goal: Goal,
        *,
        to_phase: Phase | None = None,
        to_id: str | None = None,
        reason: str = _MEANT,
        required_step: Step | None = None,
        anchor: AnchorChoice = UNCHANGED,
    ) -> Report:
        self._anchor_choice, self._earlier = anchor, {}
        self._phase, self._seen, self._given_up, self._left_out, self._well = None, (), [], (), None
        self._undestroyed, self._read_versions = {}, ReadVersions()
        self._observer.begin_run()
        self._flow = self._health_before = None
        self._health.forget()
        self._set_clock()
        document = await self.check_identity()
        if goal is Goal.ROTATE and document.rotation is None:
            anchor.check_allowed(document)
            self.policy.check_new_root(has_anchor=anchor.leaves_anchor(document))
        intent = Intent(
            goal=goal,
            began_ms=self._steady.now_ms(),
            from_id=document.current.id,
            to_id=to_id,
            to_phase=to_phase,
            is_restore=goal is Goal.RESTORE,
            reason=reason,
            required_step=required_step,
        )
        record = document.rotation
        if record is not None and goal in (Goal.RESUME, Goal.ABANDON):
            intent = replace(
                intent,
                rotation_id=record.id,
                from_id=record.from_id,
                to_id=record.to_id,
                is_restore=record.is_restore,
            )
        with self._store.repeating():
            async with self._anchor_keys:
                return await self._run_rotation(intent)

    async def _run_rotation(self, intent: Intent) -> Report:
        polling = Polling(self._clock, self.policy)
        troubled_since: float | None = None
        has_write_failed = False
        destroyed: list[str] = []
        candidate, successor_id, anchor_id = new_id(), new_id(), new_id()
        pushed: type[Action] | None = None
        signing: Mapping[str, str] | None = None
        attempts = Attempts(self._provider.guarantees, self.policy, self._clock)
        while True:
            attempted: object = None
            action: Action | None = None
            if self._was_clock_set() and (not intent.has_acted or intent.goal is Goal.RETIRE):
                self._set_clock()
                intent = replace(intent, began_ms=self._steady.now_ms())
            try:
                observation, document = await self._observe_cluster(intent)
                await self._identity.signatures.check_document(self._read_last)
                if not has_write_failed:
                    troubled_since = None  # single failed reads between successful ones do not count
                if intent.rotation_id is None and transitions.has_begun(document, candidate):
                    # The write of `Prepare` is seen in the store, whether its answer was lost or not.
                    intent = replace(intent, rotation_id=candidate, to_id=intent.to_id or successor_id)
                    if document.rotation is None:
                        continue  # another run has already ended the rotation: observe again, as at the end of a run
                action = decide(observation, self._policy_for(document), intent, self._steady.now_ms())
                self._emit_event(Decided(action=action))
                if isinstance(action, Done):
                    return self._end_run(action, document, intent, tuple(destroyed))
                if isinstance(action, Busy | Illegal | Refuse):
                    raise refusal_error(action)
                if isinstance(action, Wait):
                    troubled_since, has_write_failed = None, False  # the store answers, and nothing has to be written
                    await self._notify_servers(document, action.nodes)
                    left_ms = max(1, action.until_ms - self._steady.now_ms())
                    await polling.pause(timedelta(milliseconds=left_ms))
                    continue
                attempted = identify_attempt(action, observation)
                if not attempts.may_try(attempted, action):
                    await polling.pause()
                    continue
                if isinstance(action, Destroy) and intent.goal is Goal.RETIRE:
                    signing = await self._read_signing_roots() if signing is None else signing
                    _refuse_used_key(observation, action, signing)
                intent = replace(intent, has_acted=True)
                await self._perform_action(action, document, candidate, successor_id, anchor_id)
                attempts.count_attempt(attempted)
                if isinstance(action, Advance) and action.step is not Step.PUBLISH:  # after that they are waited for
                    self._left_out = tuple(dict.fromkeys([*self._left_out, *action.left_out]))
                if isinstance(action, Destroy) and action.version not in self._undestroyed:
                    # A store that destroys with a delay may list the version for an unknown time.
                    gone = destroyed if is_gone_when_destroyed(self._provider, action.version) else self._given_up
                    gone.append(action.version)
                if isinstance(action, Introduce | CrossSign | IntroduceEarlier) and pushed is type(action):
                    # Pushes without effect must not loop without a pause. After the first one, observe at once.
                    await polling.pause()
                else:
                    polling.shorten()
                pushed = type(action)
                troubled_since, has_write_failed = None, False
            except ConflictError as conflict:
                attempts.count_attempt(attempted, conflict)
                self._emit_event(ConflictMet())
                await polling.pause()
            except (ProviderError, GenerationError, SignerError) as error:
                if isinstance(error, SignerError) and not self._is_rotation_in_progress():
                    raise  # nothing was written
                is_waited_for = error.retryable or isinstance(error, GenerationError)
                if not is_waited_for and not (
                    self._is_rotation_in_progress() and isinstance(error, _retried_read_errors(attempted))
                ):
                    raise
                now, failing_since = self._clock.monotonic(), self._store.failing_since
                if troubled_since is None:
                    troubled_since = now if failing_since is None else failing_since
                has_write_failed = has_write_failed or attempted is not None
                if now - troubled_since >= self.policy.store_patience.total_seconds():
                    if isinstance(action, Destroy) and action.is_best_effort:
                        self._undestroyed[action.version] = error.code
                        continue
                    if self._is_rotation_in_progress():
                        error.hint = f"{self._describe_half_way()} {error.hint}".rstrip()
                    raise
                self._emit_event(StoreTroubled(error=str(error)))
                await polling.pause()

    def _is_rotation_in_progress(self) -> bool:
        """Return whether a rotation was in progress in the identity when this run last read it from the store."""
        return self._stored_phase is not None

    def _describe_half_way(self) -> str:
        return (
            f"The rotation is in progress, in phase {self._stored_phase}, and the servers keep their state. When the "
            "store can be read again, finish it with `goatherd rotate --resume`, or use --rollback or --cancel."
        )

    async def _read_signing_roots(self) -> Mapping[str, str]:
        """Return the root that signs at each server that reports one, by the server's URL.

        Servers with a settings.json are left out, since their key is there, and so are distrusted ones.
        """
        return {
            url: one.signer
            for url, one in (await self._observer.read_identities()).items()
            if one.signer is not None and not one.is_from_file and url not in self.policy.distrust
        }

    async def _observe_cluster(self, intent: Intent) -> tuple[Observation, IdentityDocument]:
        nodes: tuple[NodeView, ...] = ()
        if intent.goal is Goal.RETIRE and self._store_ahead_ms() is None:
            # The servers are not observed otherwise, and a destroyed key cannot be recovered.
            nodes = await self._observer.read_clocks()
        document, version = await self._read_identity(nodes)
        followers = await self._observe_followers(catch_up=True)
        is_beginning = intent.goal in (Goal.ROTATE, Goal.RESTORE) and intent.rotation_id is None
        if is_beginning and document.rotation is None:
            observation, document = await self._survey_cluster(
                document, version, is_probing=True, is_restore=intent.is_restore, followers=followers
            )
            if self._anchor_choice.is_direct:
                observation = replace(observation, direct_key=await self._read_direct_key(document))
            self._report_changes(observation.store, observation.nodes, document, None, intent)
            return observation, document
        store = await self._store_view(document, version)
        versions: tuple[Holding, ...] = ()
        if intent.goal is Goal.RETIRE and store.phase is Phase.STEADY:
            now_ms = self._steady.now_ms() if self._is_clock_confirmed else None
            versions = self._add_given_up(
                await find_holdings(
                    self._store,
                    self._secret_id,
                    document,
                    without=self._given_up,
                    latest_ms=self._latest_ms(now_ms),
                    known=self._read_versions,
                )
            )
        elif store.phase is Phase.STEADY and intent.rotation_id in store.cancelled:
            versions = await self._find_cancelled(document, intent.rotation_id or "")
        health: HealthView | None = None
        signer = store.phase is Phase.ACTIVATED or (store.phase is Phase.STEADY and intent.rotation_id is not None)
        if signer or store.phase is not Phase.STEADY:
            async with asyncio.TaskGroup() as group:
                question = self._make_question(document, signer=signer, leaving=store.leaving)
                looking = group.create_task(self._observer.observe(question))
                asking = group.create_task(self._look_at_health(store, intent))
            nodes, health = looking.result(), asking.result()
        self._report_changes(store, nodes, document, health, intent)
        observation = Observation(
            store=store,
            nodes=nodes,
            versions=versions,
            health=health,
            nodes_unknown=self._observer.unknown,
            followers=self._leave_untrusted(followers, nodes),
        )
        return observation, self._limit_times(document, version, nodes)

    async def _survey_cluster(
        self,
        document: IdentityDocument,
        version: SecretVersion,
        *,
        is_probing: bool = False,
        is_restore: bool = False,
        is_reader: bool = False,
        followers: tuple[FollowerView, ...] | None = None,
    ) -> tuple[Observation, IdentityDocument]:
        """Observe the store and the servers before a rotation; return the observation, and the identity.

        Writes nothing to the store. `find_obstacles_to_begin` finds the obstacles in the observation.

        Args:
            document, version: The identity with label ``current``, and its version.
            is_probing: Whether to make requests that have an effect: notify servers that could not read the store, so
                that they read it again; and, if there is no obstacle and the servers do not report their peers, check
                by sessions that they synchronize.
            is_restore: Whether the rotation would be to a previous root.
            is_reader: Whether the credentials may be those of a server, which may not list the versions.
            followers: The stores of other regions, if they were observed already.
        """
        try:
            store = await self._store_view(document, version)
            if STABLE in version.labels and not is_reader:
                # The rotation lists the versions before it moves the label. Denied access is found now, not at its end.
                await self._store.versions(self._secret_id)
        except ProviderAccessDeniedError:
            if not is_reader:
                raise
            store = self._make_store_view(document, version, stable=None)  # no obstacle depends on the label
        if followers is None:
            followers = await self._observe_followers(catch_up=False)
        # Which root signs is not asked, because that would create a session at an unmodified server.
        leaving = store.leaving if store.is_full else ()
        question = replace(
            self._make_question(document, signer=False, leaving=leaving),
            process=False,
            answers=True,
            sharing=not is_reader,
        )
        nodes = await self._observer.observe(question)
        document = self._limit_times(document, version, nodes)
        cut_off = [node.url for node in nodes if node.without_store]
        if cut_off and is_probing:
            await self._notify_servers(document, cut_off)
            nodes = await self._observer.observe(question)
        if any((node.generation or 0) > document.generation for node in nodes):
            latest, its_version = await self._read_after(document, is_waiting=is_probing)
            if latest.generation != document.generation:
                # The identity was changed during the observation, or the store has shown an older state.
                return await self._survey_cluster(
                    latest,
                    its_version,
                    is_probing=is_probing,
                    is_restore=is_restore,
                    is_reader=is_reader,
                    followers=followers,
                )
        health = self._health_before
        if self._health.signals and health is None:
            problem = await self._health.ask()
            health = HealthView(failures=0 if problem is None else 1, problem=problem)
            self._health_before = health if is_probing else None
        observation = Observation(
            store=store,
            nodes=nodes,
            health=health,
            nodes_unknown=self._observer.unknown,
            flow=self._flow,
            are_nodes_discovered=self._observer.is_discovered,
            followers=self._leave_untrusted(followers, nodes),
        )
        flow = find_flow(nodes)
        if (
            not is_probing
            or self._flow is not None
            or flow.is_proven
            or find_obstacles_to_begin(
                observation, self._policy_for(document), self._steady.now_ms(), is_restore=is_restore
            )
        ):
            return observation, document
        at, *others = (*flow.silent, *(url for group in flow.groups for url in group))
        self._flow = await self._observer.probe_flow(
            at, others, asker=document.current, patience=self.policy.flow_patience
        )
        return replace(observation, flow=self._flow), document

    async def _read_after(
        self, document: IdentityDocument, *, is_waiting: bool
    ) -> tuple[IdentityDocument, SecretVersion]:
        """Read the identity from the store again, because a server uses a later one than `document`.

        With `is_waiting`, and if reads of the store may lag, wait up to `Policy.store_patience` until the store returns
        another identity.
        """
        lags = self._provider.guarantees.read_consistency is not ReadConsistency.STRONG
        polling = Polling(self._clock, self.policy, self.policy.store_patience)
        while True:
            latest, version = await self._read_identity()
            if latest.generation != document.generation or not (is_waiting and lags):
                return latest, version
            if polling.is_over:
                return latest, version
            await polling.pause()

    async def _look_at_health(self, store: StoreView, intent: Intent) -> HealthView | None:
        if (
            store.phase not in (Phase.ACTIVATED, Phase.VERIFIED)
            or not self._health.signals
            or intent.goal is Goal.ABANDON
        ):
            return None
        return await self._health.read_result(anew=store.phase is not self._phase)

    async def _perform_action(
        self, action: Action, document: IdentityDocument, candidate: str, successor_id: str, anchor_id: str
    ) -> None:
        now_ms = self._time_to_record()
        match action:
            case LabelStable(version=version, expected=expected):
                await self._store.label(self._secret_id, STABLE, version, expected=expected)
            case Prepare(expected=expected):
                direct = None
                if self._anchor_choice.is_direct:
                    direct = await self._open_direct(document, successor_id)
                    successor = direct.owned
                else:
                    lifetime = self._policy_for(document).lifetime
                    successor = OwnedSession.generate(
                        session_id=successor_id, owner=ROOT_OWNER, now_ms=now_ms, lifetime=lifetime
                    )
                word = await collect_anchor_signatures(
                    self._anchor_keys,
                    document,
                    successor.session,
                    self._anchor_choice,
                    anchor_id=anchor_id,
                    now_ms=now_ms,
                    direct=direct,
                )
                prepared = await call_signing(
                    transitions.prepare_rotation,
                    document,
                    successor,
                    now_ms=now_ms,
                    rotation_id=candidate,
                    started_by=self._started_by,
                    stable_version=expected,
                    word=word,
                )
                await self._write_identity(prepared, expected)
            case PrepareRestore(expected=expected, root_id=root_id):
                wanted = document.find_root(root_id) or self._restoring
                if wanted is None or wanted.id != root_id:
                    raise NotRestorableError("another rotation has ended since this command began; nothing was written")
                earlier = await read_earlier_root(self._store, self._secret_id, document, wanted)
                prepared = await call_signing(
                    transitions.prepare_restore,
                    document,
                    earlier,
                    now_ms=now_ms,
                    rotation_id=candidate,
                    started_by=self._started_by,
                    stable_version=expected,
                    has_left=True,
                )
                await self._write_identity(prepared, expected)
            case Introduce(nodes=urls):
                pushes = await call_signing(make_introductions, document, org=self._org)

                async def introduce(node: Node) -> None:
                    for commits in pushes:
                        await node.push(SESSIONS_PATH, commits, document.current, now_ms)

                await self._observer.call_each(urls, introduce)
            case CrossSign(node=url):
                commit = await call_signing(make_cross_signature, document, org=self._org)
                await self._observer.call_each(
                    (url,), lambda node: node.push(SESSIONS_PATH, [commit], document.current, now_ms)
                )
            case Advance(step=step, expected=expected):
                await self._write_identity(await call_signing(_advance_document, document, step, now_ms), expected)
            case Abandon(step=step, expected=expected, reason=reason):
                abandoned = await self._abandon_document(document, step, reason)
                provider = self._provider
                with provider.ignoring_lag() if isinstance(provider, ReplicatedStore) else nullcontext():
                    await self._write_identity(abandoned, expected)
            case Destroy(version=version, is_best_effort=is_best_effort):
                self._read_versions.forget(version)
                try:
                    await self._store.destroy(self._secret_id, version)
                except ProviderError as error:
                    if error.retryable or not is_best_effort:
                        raise
                    self._undestroyed[version] = error.code
            case RecordRetired(session_id=session_id, expected=expected):
                retired = await call_signing(transitions.record_retirement, document, session_id, now_ms)
                await self._write_identity(retired, expected)
            case CorrectTimes(expected=expected):
                await self._write_identity(await call_signing(transitions.correct_times, document, now_ms), expected)
            case IntroduceEarlier(session_ids=ids, nodes=urls):
                # A root that the anchor cannot introduce now stays in the document, where it does no harm.
                with suppress(SignerError):
                    commits = [await self._introduce_earlier(document, one) for one in ids]
                    await self._observer.call_each(
                        urls, lambda node: node.push(SESSIONS_PATH, commits, document.current, now_ms)
                    )
            case Prune(session_ids=ids, expected=expected):
                await self._write_identity(await call_signing(transitions.prune_roots, document, ids, now_ms), expected)
                self._pruned.update(ids)
            case _:  # pragma: no cover - the loop handles the others
                raise AssertionError(f"the rotator has no method for the action {action}")

    async def _introduce_earlier(self, document: IdentityDocument, root_id: str) -> dict[str, Any]:
        """Return the commit that introduces a previous root, signed by the anchor or by the current root."""
        if document.anchor is None or is_introduced_by_anchor(document, root_id):
            return await call_signing(make_earlier_introduction, document, root_id, org=self._org)
        if root_id not in self._earlier:
            root = document.find_root(root_id)
            assert root is not None
            anchor = await self._anchor_keys.open_current(document)
            signed = await anchor.introduce(root, self._time_to_record(), is_earlier=True)
            self._earlier[root_id] = signed.introduction(root).to_json()
        return self._earlier[root_id]

    async def find_anchor_problem(self, document: IdentityDocument) -> tuple[str, str] | None:
        """Check that the anchor of an identity can sign, by a test text. Call this only while no other method runs.

        Args:
            document: The identity. Nothing is checked if it has no anchor (a key in an HSM or a KMS that endorses
                roots), or while a rotation is in progress, which has all the signatures that it needs.

        Returns:
            What is wrong and what to do about it; None if the signer signed, or nothing was checked.
        """
        self._anchor_choice = UNCHANGED
        return await self._find_anchor_problem(document)

    async def _add_anchor_problem(self, observation: Observation) -> Observation:
        """Add to an observation why the anchor of the identity that was read last cannot sign, if it cannot."""
        assert self._read_last is not None
        return replace(observation, anchor_problem=await self._find_anchor_problem(self._read_last))

    async def _find_anchor_problem(self, document: IdentityDocument) -> tuple[str, str] | None:
        """Let each signer that a rotation would need sign a test text; return the first problem and its hint, or None.

        These are the signers of the present anchor, and of a new one if the rotation would set one. `document` is the
        identity as it was read.
        """
        if document.rotation is not None:
            return None  # it has every signature that it needs
        async with self._anchor_keys as keys:
            try:
                if document.anchor is not None:
                    verify_signed(document)
                    await (await keys.open_current(document)).check_signing()
                if self._anchor_choice.signer is not None:
                    now_ms = self._clock.now_ms()
                    new = await keys.open_new(
                        self._anchor_choice.signer,
                        session_id=new_id(),
                        now_ms=now_ms,
                        document=document,
                        is_direct=self._anchor_choice.is_direct,
                    )
                    await new.check_signing()
            except (SignerError, IllegalStepError, UnsignedIdentityError) as error:
                return str(error), error.hint
        return None

    async def _open_direct(self, document: IdentityDocument, session_id: str) -> AnchorKey:
        """Open the new anchor, which itself becomes the current root (direct mode), as a session with id `session_id`.

        The identity `document` must not list the anchor's key yet.
        """
        assert self._anchor_choice.signer is not None
        return await self._anchor_keys.open_new(
            self._anchor_choice.signer,
            session_id=session_id,
            now_ms=self._time_to_record(),
            document=document,
            is_direct=True,
        )

    async def _read_direct_key(self, document: IdentityDocument) -> str:
        """Return the fingerprint of the new anchor's key, with which every server will have to sign (direct mode)."""
        new = await self._open_direct(document, new_id())
        return fingerprint(new.session.public_key)

    def _policy_for(self, document: IdentityDocument) -> Policy:
        """Return the policy for the next root: one with an anchor lives shorter (`Policy.for_identity`)."""
        choice = self._anchor_choice
        has_anchor = document.next_anchor is not None and not choice.is_removed
        return self.policy.for_identity(has_anchor=has_anchor or choice.signer is not None)

    async def _abandon_document(self, document: IdentityDocument, step: Step, reason: str) -> IdentityDocument:
        now_ms = self._time_to_record()
        if step is Step.CANCEL:
            return await call_signing(transitions.cancel_rotation, document, now_ms, reason=reason)
        record = document.rotation
        assert record is not None
        assert record.stable_version is not None
        found = await self._store.read(self._secret_id, VersionId(record.stable_version))
        stable = decode_document(found.value.reveal(), self._signers.sign)
        roll_back = partial(transitions.roll_back_rotation, document, stable, now_ms, reason=reason)
        return await sign_aside(roll_back, stable.current)

    # --- the store --------------------------------------------------------------------------------------------------

    def _set_clock(self) -> None:
        """Start a clock at this machine's present time, which later changes of the system time do not affect."""
        self._steady, self._seen_ms, self._is_clock_confirmed = SteadyClock(self._clock), {}, False

    def _was_clock_set(self) -> bool:
        """Return whether this machine's clock was set to another time since `_set_clock`."""
        return timedelta(milliseconds=abs(self._clock.now_ms() - self._steady.now_ms())) > self.policy.clock_tolerance

    def _time_to_record(self) -> int:
        """Return the time to record in the identity document, in milliseconds since 1970.

        It is this machine's time. But if the machine's clock was set to a wrong time during this run, it is the start
        of the run plus the time measured since. The machine's time is preferred, because a machine that was suspended
        in between has measured too little.
        """
        times = (self._clock.now_ms(), self._steady.now_ms())
        return next((now_ms for now_ms in times if not self._is_wrong_time(now_ms)), times[0])

    def _is_wrong_time(self, now_ms: int) -> bool:
        """Return whether `now_ms` is not the present time, judged by the last answers of the store and the servers."""
        return Clocks(
            store_ahead_ms=self._provider.store_clock.ahead_ms(now_ms),
            servers_ahead_ms={url: node.clock_ahead_ms(now_ms) for url, node in self._observer.nodes.items()},
            tolerance=self.policy.clock_tolerance,
        ).is_ours_wrong

    def _store_ahead_ms(self) -> int | None:
        return self._provider.store_clock.ahead_ms(self._steady.now_ms())

    def _latest_ms(self, now_ms: int | None) -> int | None:
        return None if now_ms is None else now_ms + milliseconds(self.policy.clock_tolerance)

    def _limit_times(
        self, document: IdentityDocument, version: SecretVersion, nodes: Sequence[NodeView] = ()
    ) -> IdentityDocument:
        """Return the identity document with each time in the future replaced by the latest possible time.

        That is done only if the clock of the store or of a server confirms this machine's clock. Otherwise it is not
        known which times are in the future, and the document is returned unchanged.
        """
        clocks = Clocks(
            store_ahead_ms=self._store_ahead_ms(),
            servers_ahead_ms={one.url: one.clock_ahead_ms for one in nodes},
            tolerance=self.policy.clock_tolerance,
        )
        self._is_clock_confirmed = clocks.is_ours_confirmed or (self._is_clock_confirmed and not clocks.is_ours_wrong)
        if not self._is_clock_confirmed:
            return document
        seen_ms = self._seen_ms.get(version.id, self._steady.now_ms())
        return limit_times(document, seen_ms, written_ms=version.created_ms, tolerance=self.policy.clock_tolerance)

    async def _read_identity(self, nodes: Sequence[NodeView] = ()) -> tuple[IdentityDocument, SecretVersion]:
        """Read the identity with label ``current`` from the store; return it and its version.

        Args:
            nodes: The state of the servers, whose clocks may confirm this machine's clock.
        """
        document, version = await self._identity.read()
        self._stored_phase = document.phase
        self._read_last = document
        if self._on_identity is not None:
            self._on_identity(document)
        seen_ms = self._seen_ms.setdefault(version.id, self._steady.now_ms())
        self._recorded_ahead_ms = recorded_ahead_ms(document, seen_ms)
        return self._limit_times(document, version, nodes), version

    async def _check_history(self) -> IdentityDocument:
        """Return the identity in the store, after checking that no server has used a later or a different one.

        SECURITY: a write on top of an older identity would remove the root that has signed since
        (tests/cluster/test_restored_store.py). If reads of the store lag, the identity that was read may also be one
        from before the last rotation began or ended.
        """
        self._identity.forget()
        return await self._identity.check_history(await self._read_document(), read=self._read_document)

    async def _observe_followers(self, *, catch_up: bool) -> tuple[FollowerView, ...]:
        """Observe the stores of other regions (followers), which copy the primary store; empty if there are none.

        With `catch_up`, first write the primary store's state to those followers that Goatherd itself keeps up to date.
        """
        if isinstance(self._provider, RegionalReader):
            with suppress(ProviderError, IdentityError):  # while the primary store is away, the page shows the others
                return await ReplicatedStore.from_reader(self._provider).observe(self._secret_id)
        if not isinstance(self._provider, ReplicatedStore):
            return ()
        return await self._provider.observe(self._secret_id, catch_up=catch_up)

    def _leave_untrusted(
        self, followers: tuple[FollowerView, ...], nodes: Sequence[NodeView]
    ) -> tuple[FollowerView, ...]:
        """Let the stores with an untrusted identity lag, once a server has shown that it trusts the primary store's.

        SECURITY: an attacker who can write one region's store must not stop a rotation
        (tests/unit/stores/test_foreign_identity.py).
        """
        if not any(node.trusts_current for node in nodes):
            return followers
        left = [one for one in followers if one.is_untrusted and not one.is_allowed]
        for one in left:
            self._emit_event(StoreTroubled(error=f"the rotation continues without region {one.region}: {one.problem}"))
        if left and isinstance(self._provider, ReplicatedStore):
            self._provider.allow_lagging({one.region for one in left})
        return tuple(replace(one, is_allowed=True) if one in left else one for one in followers)

    async def _read_document(self) -> IdentityDocument:
        return (await self._read_identity())[0]

    async def _write_identity(self, document: IdentityDocument, expected: str) -> None:
        await self._identity.write(document, expected)
        self._stored_phase = document.phase
        await self._notify_servers(document, tuple(self._observer.nodes))

    async def _store_view(self, document: IdentityDocument, version: SecretVersion) -> StoreView:
        stable: str | None = None
        if document.rotation is None:
            if STABLE in version.labels:
                stable = version.id
            else:
                listed = await self._store.versions(self._secret_id)
                if not any(one.id == version.id and CURRENT in one.labels for one in listed):
                    # The value and the list of versions were read at different times. With such labels, `stable` could
                    # be moved to a version older than the one to which this rotation rolls back (tests/model, mutant
                    # "reading the labels").
                    raise GenerationError(
                        f"the store returned version {version.id} as current, but its list of versions names another"
                    )
                stable = next((one.id for one in listed if STABLE in one.labels), None)
        return self._make_store_view(document, version, stable)

    def _make_store_view(self, document: IdentityDocument, version: SecretVersion, stable: str | None) -> StoreView:
        view = make_store_view(
            document,
            version,
            stable,
            self._policy_for(document),
            seen_ms=self._seen_ms.get(version.id, self._steady.now_ms()),
            clock_ahead_ms=self._store_ahead_ms(),
            is_renewal=document.anchor is not None and self._anchor_choice == UNCHANGED,
        )
        return replace(view, recorded_ahead_ms=self._recorded_ahead_ms)

    async def _find_cancelled(self, document: IdentityDocument, rotation_id: str) -> tuple[Holding, ...]:
        """Return the stored versions that a cancelled rotation has left, so that they can be destroyed.

        If they cannot be read, the result is empty: the run reports that, and a later `retire` destroys them.
        """
        without = [*self._given_up, *self._undestroyed]
        if _UNREAD in without:
            return ()
        try:
            held = await find_cancelled_holdings(self._store, self._secret_id, document, rotation_id, without=without)
        except ProviderError as error:
            if error.retryable:
                raise
            self._undestroyed[_UNREAD] = error.code
            return ()
        return self._add_given_up(held)

    def _add_given_up(self, held: Sequence[Holding]) -> tuple[Holding, ...]:
        """Add the versions that the store may keep for an unknown time.

        They are neither destroyed again nor recorded as destroyed.
        """
        lasting = (
            Holding(
                version=SecretVersion(id=VersionId(one), created_ms=0, state=VersionState.DISABLED),
                private_ids=frozenset(),
                retired_ms=0,
                problem="given up",
            )
            for one in self._given_up
        )
        return (*held, *lasting)

    # --- the nodes --------------------------------------------------------------------------------------------------

    def _make_question(self, document: IdentityDocument, *, signer: bool, leaving: Sequence[str] = ()) -> Question:
        record = document.rotation
        if record is None:
            earlier = tuple(expected_earlier_introduction(document, one) for one in leaving)
            return Question(asker=document.current, signer=signer, earlier=earlier)
        early = document.next is not None
        return Question(
            asker=document.current,
            next_root=document.next if early else document.current,
            is_next_new=early and not record.is_restore,
            introductions=expected_introductions(document) if early else (),
            cross_signature=None if early else expected_cross_signature(document),
            signer=signer,
            process=True,
        )

    async def _notify_servers(self, document: IdentityDocument, urls: Sequence[str]) -> None:
        async def notify(node: Node) -> None:
            answer = await node.refresh(document.current, self._clock.now_ms())
            self._emit_event(NodeNotified(url=node.base_url, is_reached=answer is not None))

        await self._observer.call_each(urls, notify)

    async def _refuse_unwell(self) -> None:
        problem = await self._health.ask()
        if problem is not None:
            raise UnhealthyError(
                f"the health check failed before the next step, so the step was not started: {problem}"
            )

    # --- telling ----------------------------------------------------------------------------------------------------

    def _report_changes(
        self,
        store: StoreView,
        nodes: tuple[NodeView, ...],
        document: IdentityDocument,
        health: HealthView | None,
        intent: Intent,
    ) -> None:
        if store.phase is not self._phase:
            self._phase = store.phase
            entered = PhaseEntered(
                phase=store.phase,
                generation=store.generation,
                rotation_id=store.rotation_id,
                current_id=store.current_id,
                next_id=document.next.id if document.next is not None else None,
                at_ms=self._clock.now_ms(),
                since_ms=store.phase_since_ms,
                started_by=store.started_by,
                started_ms=store.started_ms,
                is_own=intent.goal in (Goal.ROTATE, Goal.RESTORE),
            )
            self._emit_event(entered)
            _log.info(event_text(LogEvent.ROTATION_PHASE, **entered.fields()))
        if nodes != self._seen:
            self._seen = nodes
            self._emit_event(NodesSeen(nodes=nodes))
        if health is not None and health != self._well:
            self._well = health
            self._emit_event(HealthSeen(health=health))
        if self._observer.unknown is not None:
            self._emit_event(NodesUnknown(problem=self._observer.unknown))

    def _end_run(self, action: Done, document: IdentityDocument, intent: Intent, destroyed: tuple[str, ...]) -> Report:
        own = (
            one for one in reversed(document.history) if intent.rotation_id and one.rotation_id == intent.rotation_id
        )
        last = next(own, None)
        is_stopped = action.outcome.is_stopped
        has_retired = intent.goal is Goal.RETIRE and (destroyed or self._given_up)
        why = _describe_other_end(document, intent.from_id) if last is None else last.reason
        stopped = intent.to_id if is_stopped else intent.from_id
        stopped_root = None if stopped is None else document.find_root(stopped)
        report = Report(
            outcome=Outcome.RETIRED if has_retired else action.outcome,
            rotation_id=intent.rotation_id,
            from_id=intent.from_id,
            to_id=intent.to_id,
            current_id=document.current.id,
            phase=Phase(document.phase or Phase.STEADY),
            generation=document.generation,
            reason=why if is_stopped else None,
            event=last.event if last is not None else None,
            is_restore=intent.is_restore,
            trusts_next=intent.to_id is not None
            and (document.find_root(intent.to_id) is not None or intent.to_id in self._pruned),
            behind=action.behind,
            left_out=self._left_out,
            destroyed=destroyed,
            given_up=tuple(self._given_up),
            kept=action.kept,
            undestroyed=tuple(f"{version}: {code}" for version, code in self._undestroyed.items()),
            restarts=self._observer.count_restarts(),
            began_ms=intent.began_ms,
            ended_ms=self._steady.now_ms(),
            recorded_ms=last.at if last is not None else None,
            keeps_key=stopped not in document.anchor_ids,
            restorable_until_ms=stopped_root.expiration_ms
            if stopped_root is not None and transitions.may_sign_again(document, stopped_root.id)
            else None,
        )
        self._emit_event(RunEnded(report=report))
        if is_stopped or action.outcome in (Outcome.ROTATED, Outcome.RESTORED):
            _log.log(
                logging.WARNING if is_stopped else logging.INFO,
                event_text(
                    LogEvent.ROTATION_ENDED,
                    rotation=report.rotation_id,
                    outcome=action.outcome,
                    current=report.current_id,
                    reason=report.reason,
                ),
            )
        if is_stopped and intent.goal is not Goal.ABANDON:
            message = f"the rotation was {action.outcome.replace('-', ' ')}: {report.reason}"
            hint = UnhealthyError.hint if self._health.is_failing else self._observer.hint
            if action.outcome is Outcome.ENDED:
                hint = (
                    "Another command has ended this rotation. `goatherd status` shows whether it left something to do."
                )
            raise NotAdoptedError(message, report=report, hint=hint)
        if intent.goal is Goal.ABANDON and not is_stopped:
            raise IllegalStepError(
                f"rotation {report.rotation_id} was finished by another process before this one could cancel it or "
                f"roll it back: root {report.current_id} signs",
                hint="`goatherd restore` makes the previous root the current root again.",
            )
        return report

    def _report_failure(self, url: str, problem: str) -> None:
        self._emit_event(NodeNotified(url=url, is_reached=False, problem=problem))

    def _emit_event(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)


def _describe_other_end(document: IdentityDocument, from_id: str) -> str:
    """Return what ended a rotation from root `from_id`, if the document's history has no entry with the rotation's id.

    A revocation and the replacement of an expired root end a rotation, and their entries do not name it.
    """
    for entry in reversed(document.history):
        if entry.event == transitions.REVOKED:
            return f"root {entry.from_id} was revoked meanwhile"
        if entry.event == transitions.ROTATED and entry.from_id == from_id:
            return f"root {entry.to_id} replaced root {entry.from_id} meanwhile"
    return "the identity does not record how it ended"


def _retried_read_errors(attempted: object) -> tuple[type[ProviderError], ...]:
    """Return the classes of errors after which a rotation reads the store again, although they are not retryable.

    Missing permissions and a wrong configuration are among them, because an operator may repair these meanwhile.

    Args:
        attempted: The change that the run was making; None while it only read the store. If a change needs a version
            that does not exist, the run does not retry, since the version will not return.
    """
    denied = (ProviderAccessDeniedError, ProviderConfigurationError)
    return denied if attempted is not None else (*denied, SecretNotFoundError)


def _advance_document(document: IdentityDocument, step: Step, now_ms: int) -> IdentityDocument:
    if step is Step.ACTIVATE:
        return transitions.activate_rotation(document, now_ms)
    if step is Step.FINALIZE:
        return transitions.finalize_rotation(document, now_ms)
    return transitions.with_phase(document, _RECORDED[step], now_ms)


_RECORDED: Final = {Step.PUBLISH: Phase.PUBLISHED, Step.VERIFY: Phase.VERIFIED}


def _refuse_used_key(observation: Observation, action: Destroy, signing: Mapping[str, str]) -> None:
    """Check that no server signs with a root whose private key is in the version that is to be destroyed.

    SECURITY: an attacker who can write the store, but may destroy nothing and has no root's key, can replace the whole
    identity. In the new one, the key with which the servers sign is an old key, but it must not be destroyed
    (tests/unit/rotation/test_signed_store.py).

    Raises:
        ObstructedError: A server signs with such a root.
    """
    held = next((one.private_ids for one in observation.versions if one.version.id == action.version), frozenset())
    used = [url for url, root_id in signing.items() if root_id in held and root_id != observation.store.current_id]
    if used:
        raise ObstructedError(
            f"version {action.version} was not destroyed: it holds the private key of root {signing[used[0]]}, with"
            f" which {', '.join(used)} still {'signs' if len(used) == 1 else 'sign'}",
            hint="If these servers do not follow the store, find out why: `goatherd status` shows it. Perhaps another"
            f" identity was written into the store. If a server is wrong, overrule it with --distrust {used[0]}.",
        )
