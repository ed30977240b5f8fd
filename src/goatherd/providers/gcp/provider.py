"""Store secrets in Google Secret Manager, with aliases as labels and the secret's etag for compare-and-swap.

`goatherd.providers.gcp.client` sends the requests, and `goatherd.providers.base` retries. How a version is written:

1. `UpdateSecret` notes in an annotation, under the secret's etag, that a writer is about to add a version.
2. `AddSecretVersion` adds the version. It has no precondition and no idempotency token, and makes the version
   ``latest`` at once.
3. `UpdateSecret` moves the alias and removes the note, under the etag of step 1. This is the only commit point.

The alias alone decides which of several writers wins. The note protects readers of ``latest``, the newest version in
whatever state: without the note, these readers could get the version of a writer that lost, or an error once that
version is destroyed. With the note, only one writer at a time adds a version, so a writer that loses has added none. If
a note stays unchanged for the time `LEASE`, its writer is presumed dead: the next writer disables the versions that it
added, without destroying them, and notes them as leftovers, so that `goatherd retire` destroys them.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final, Self

from google.auth.credentials import Credentials

from goatherd.clock import Clock
from goatherd.errors import (
    ConflictError,
    ProviderAccessDeniedError,
    ProviderError,
    SecretExistsError,
    SecretNotFoundError,
    UnavailableError,
    VersionDisabledError,
)
from goatherd.providers.base import Call, Guarantees, ReadConsistency, RetryPolicy, SecretProvider
from goatherd.providers.cancellation import retrieve_outcome
from goatherd.providers.capabilities import Finding, Verdict, rights_finding
from goatherd.providers.gcp import journal
from goatherd.providers.gcp.address import GCPAddress, check_name, parse_address, parse_number
from goatherd.providers.gcp.client import Secret, SecretManagerAPI, Version, missing_version_error
from goatherd.providers.gcp.permissions import permissions
from goatherd.providers.gcp.problem import EtagMovedError
from goatherd.providers.values import Label, SecretBytes, SecretValue, SecretVersion, VersionId, VersionState

Check = Callable[[Secret], None]

LEASE: Final = timedelta(seconds=5)
"""How long a note must be unchanged before its writer counts as gone, by the reader's clock."""
_MARGIN: Final = timedelta(seconds=1)
_ATTEMPT: Final = timedelta(seconds=4)
_SHARE: Final = 0.4  # of the whole deadline, so that one silent request leaves time for another
_PATIENCE: Final = 1.0
_PROBES: Final = 32
_REMEMBERED: Final = 256
_RANDOM = secrets.SystemRandom()


@dataclass(slots=True)
class _Work:
    """The progress of one attempt to add or destroy a version; the cleanup after the attempt needs it."""

    announced: bool = False
    began: float = 0.0
    base: int = 0
    resumed: bool = False
    abandoned_base: int | None = None
    done: int | None = None
    sent: bool = False
    number: int | None = None


class GCPSecretProvider(SecretProvider):
    """Store secrets in Google Secret Manager. Needs the extra ``gcp``.

    Address: ``gcp://PROJECT/SECRET``. ``?location=europe-west3`` for a regional secret and its regional endpoint;
        ``?replication=europe-west3,europe-west4`` for the locations of a global secret that Goatherd creates (by
        default, Google chooses); ``?endpoint=host:port`` for a private endpoint. Names have no slash and no dot.
    Credentials: application default credentials: the attached service account, Workload Identity,
        GOOGLE_APPLICATION_CREDENTIALS, ``gcloud auth application-default login``.
    Permissions: `goatherd.providers.gcp.permissions` has the exact ones for each role.
    Guarantees:
        compare-and-swap: on every label.
        reads: by version strong. A read by label may return the previous version for minutes; a rotation waits until
            the servers report the new one.
        history: every version until it is destroyed.
        destroying: immediate. With a ``version_destroy_ttl`` on the secret, ``versions.enable`` can restore the version
            until that time has passed.
        deleting: immediate and permanent.
        size: 64 KiB for a value.

    Once a write has returned, its version is also the newest, so that readers of ``latest`` get it. A read by label
    returns no other labels of the version, and a version's `created_ms` is 0 for a reader without the right to read
    metadata.
    """

    scheme = "gcp"
    credential_variables = (
        "GOOGLE_APPLICATION_CREDENTIALS",
        "CLOUDSDK_*",
    )

    def __init__(
        self,
        project_id: str | GCPAddress,
        *,
        timeout: timedelta = timedelta(seconds=10),
        retry: RetryPolicy | None = None,
        clock: Clock | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        """Create a provider for the secrets of a Google Cloud project. Connects to nothing.

        Args:
            project_id: The project's id or number, or an address with more details, such as the location.
            timeout: The deadline of one call, retries included.
            retry: How often and how fast to retry.
            clock: Used for the pauses between retries.
            credentials: Used instead of the application default credentials.
        """
        super().__init__(timeout=timeout, retry=retry, clock=clock)
        self.address = project_id if isinstance(project_id, GCPAddress) else GCPAddress(project=project_id)
        self._api = SecretManagerAPI(self.address, credentials, min(_ATTEMPT, timeout * _SHARE))
        self._created: dict[tuple[str, int, int], int] = {}

    @classmethod
    def from_uri(cls, uri: str | Mapping[str, object]) -> tuple[Self, str]:
        address, secret_id = parse_address(uri)
        return cls(address), secret_id

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> tuple[Self, str]:
        return cls.from_uri(config)

    @property
    def guarantees(self) -> Guarantees:
        return Guarantees(cas=True, read_consistency=ReadConsistency.STRONG_BY_VERSION, custom_labels=True)

    def check_secret_id(self, secret_id: str) -> None:
        super().check_secret_id(secret_id)
        check_name(secret_id)

    async def _close(self) -> None:
        await self._api.close()

    async def diagnose(self, secret_id: str) -> list[Finding]:
        """Check which permissions the credentials have on a secret, and return the findings."""
        call = self._start_call("diagnose", secret_id)
        rotator = permissions("rotator")
        granted = await self._run_call(call, lambda now: self._api.granted_permissions(now, rotator))
        missing = sorted(rotator - granted)
        if not missing or granted == permissions("server"):
            return [rights_finding(self.scheme, may_write=not missing, may_destroy=None if missing else True)]
        text = f"neither a server's rights nor a rotator's: {', '.join(missing)} missing for that"
        hint = f"`goatherd policy {self.scheme} --role server` or `--role rotator` prints all that is needed."
        return [Finding(name="rights", verdict=Verdict.CAUTION, text=text, hint=hint)]

    # --- reading ----------------------------------------------------------------------------------------------------

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        if isinstance(at, Label):
            number, value = await self._by_label(call, at)
            labels, is_left = frozenset({at}), False
        else:
            wanted = parse_number(at)
            if wanted is None:
                raise missing_version_error(at)
            number, value = await self._api.access_version(call, wanted)
            labels, is_left = await self._read_labels(call, number)
        version = SecretVersion(
            id=VersionId(number),
            labels=labels,
            created_ms=await self._created_ms(call, number, value),
            is_leftover=is_left and not labels,
        )
        return SecretValue(version=version, value=value)

    async def _versions(self, call: Call) -> Sequence[SecretVersion]:
        listed = {version.number: version for version in await self._api.list_versions(call)}
        secret = await self._api.get_secret(call)
        for number in sorted(set(secret.aliases.values()) - set(listed)):  # the list lags
            with contextlib.suppress(SecretNotFoundError):
                listed[number] = await self._api.get_version(call, number)
        left = journal.read_left(secret.annotations)
        return [
            listed[number].describe_version(secret.labels_of(number), is_left=number in left)
            for number in sorted(listed, reverse=True)
        ]

    async def _labels_held(self, call: Call) -> Mapping[Label, VersionId]:
        aliases = (await self._api.get_secret(call)).aliases
        return {Label(alias): VersionId(number) for alias, number in aliases.items()}

    async def _by_label(self, call: Call, label: Label) -> tuple[int, SecretBytes]:
        """Read the version that a label points at, by its alias; look up an unknown alias in the metadata."""
        try:
            return await self._api.access_version(call, label)
        except SecretNotFoundError as missing:
            try:
                number = (await self._api.get_secret(call)).aliases.get(label)
            except ProviderAccessDeniedError:
                number = None
            if number is None:
                raise call.missing_label_error(label) from missing
        return await self._api.access_version(call, number)

    async def _read_labels(self, call: Call, number: int) -> tuple[frozenset[Label], bool]:
        """Return a version's labels, and whether the annotations list it as left by a writer that died."""
        try:
            secret = await self._api.get_secret(call)
        except ProviderAccessDeniedError:  # a server may read values and nothing else
            return frozenset(), False
        return secret.labels_of(number), number in journal.read_left(secret.annotations)

    async def _created_ms(self, call: Call, number: int, value: SecretBytes) -> int:
        """Return when a version was created, or 0 without permission; cached, because metadata has a small quota."""
        # The value too: a secret that was deleted and created again has other versions with the same numbers.
        key = (call.secret_id, number, hash(value.reveal()))
        if key not in self._created:
            try:
                created_ms = (await self._api.get_version(call, number)).created_ms
            except ProviderAccessDeniedError:
                created_ms = 0
            while len(self._created) >= _REMEMBERED:
                del self._created[next(iter(self._created))]
            self._created[key] = created_ms
        return self._created[key]

    # --- writing ----------------------------------------------------------------------------------------------------

    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        def absent(secret: Secret) -> None:
            if secret.aliases:
                raise SecretExistsError("the secret exists already")

        work = _Work(began=_loop_time())
        mine = self._new_announcement(call, "add", 0)
        try:
            made = await self._api.create_secret(call, journal.with_announcement({}, mine))
            work.announced = True
        except (SecretExistsError, ProviderAccessDeniedError) as error:
            made = None
            try:
                await self._refuse_existing_secret(call)
            except SecretNotFoundError:
                raise error from None  # the secret does not exist, and the credentials may not create it
        except asyncio.CancelledError:
            await self._await_briefly(self._withdraw_announcement(call))
            raise
        self._forget_secret(call)
        return await self._add_labelled(call, value, label, absent, work, made)

    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        return await self._add_labelled(
            call, value, label, lambda secret: call.check_holder(label, secret.aliases.get(label), expected), _Work()
        )

    async def _refuse_existing_secret(self, call: Call) -> None:
        """Raise `SecretExistsError` if a secret has a version, unless a write to it is in progress.

        A secret without a version is accepted: an operator may have created it to grant permissions on it.
        """
        secret = await self._api.get_secret(call)
        if journal.read_announcement(secret.annotations) or journal.written_by(secret.annotations, call.request):
            return
        if secret.aliases or await self._api.list_versions(call):
            raise SecretExistsError("the secret exists already")

    async def _add_labelled(
        self, call: Call, value: SecretBytes, label: Label, check: Check, work: _Work, secret: Secret | None = None
    ) -> SecretVersion:
        """Add a version to a secret and move `label` to it, if `check` allows it; clean up if the call fails."""
        try:
            if secret is None:
                secret = await self._announce_work(call, "add", check, work)
            if work.done is not None:
                return (await self._api.get_version(call, work.done)).describe_version(secret.labels_of(work.done))
            version = await self._add_version(call, value, work)
            secret = await self._move_label(call, secret, label, version.number, check)
        except ProviderError as error:
            given_up = not error.retryable or call.attempt >= self.retry.attempts
            if given_up and (work.announced or call.attempt > 1):
                await self._await_briefly(self._undo_work(call, value, work))
            raise
        except asyncio.CancelledError:
            if work.announced:
                await self._await_briefly(self._undo_work(call, value, work))
            raise
        if work.resumed or work.abandoned_base is not None:
            await self._await_briefly(self._disable_leftovers(call, value, work, secret))
        return version.describe_version(secret.labels_of(version.number))

    async def _change_secret(
        self, call: Call, change: Callable[[Secret], Awaitable[Secret]], secret: Secret | None = None
    ) -> Secret:
        """Change a secret under its etag; after a conflict with another writer, read it again and repeat.

        Args:
            call: The provider call.
            change: Returns the secret as it is to be, or its argument if nothing is to change. It raises
                `EtagMovedError` to be called again after a pause.
            secret: The secret as the caller has just read it.

        Returns:
            The secret as it is now.
        """
        pause = _Pause()
        while True:
            secret = secret or await self._api.get_secret(call)
            try:
                wanted = await change(secret)
                return secret if wanted is secret else await self._api.update_secret(call, secret, wanted)
            except EtagMovedError:
                secret = None
                await pause()

    async def _announce_work(self, call: Call, purpose: str, check: Check, work: _Work) -> Secret:
        """Announce this writer in the secret's annotations, as soon as no other writer changes the secret.

        Return the secret with the announcement. If this call has written its version before, return the secret
        unchanged, and put the version's number into `work.done`.
        """
        lease = _Lease()

        async def announce(secret: Secret) -> Secret:
            work.announced = work.resumed
            work.done = journal.written_by(secret.annotations, call.request)
            if work.done is not None:
                return secret
            check(secret)
            other = journal.read_announcement(secret.annotations)
            work.resumed = other is not None and other.request == journal.short_request(call.request)
            work.base = journal.newest_known(secret.annotations, secret.aliases)
            work.abandoned_base = None
            if other is not None and work.resumed:
                work.base = other.base
            elif other is not None:
                lease.must_have_ended(other, call, f"another writer is at work on the secret ({other.purpose})")
                work.abandoned_base = other.base
            work.began, work.announced = _loop_time(), True
            mine = self._new_announcement(call, purpose, work.base)
            return replace(secret, annotations=journal.with_announcement(secret.annotations, mine))

        return await self._change_secret(call, announce)

    async def _add_version(self, call: Call, value: SecretBytes, work: _Work) -> Version:
        if work.resumed:
            # AddSecretVersion has no token by which to repeat it: an earlier attempt's version is found by its value.
            work.number = await self._find_version(call, value, work.base)
            if work.number is not None:
                return await self._api.get_version(call, work.number)
        left = (LEASE - _MARGIN).total_seconds() - (_loop_time() - work.began)
        if left <= 0:
            raise UnavailableError("the store took too long to begin the write")
        work.sent = True
        sending = asyncio.ensure_future(self._api.add_version(call, value, timeout=left))
        try:
            version = await asyncio.shield(sending)
        except asyncio.CancelledError:
            # With the number, the version can be removed again.
            await asyncio.wait({sending}, timeout=_PATIENCE)
            if sending.done() and not sending.cancelled() and sending.exception() is None:
                work.number = sending.result().number
            sending.add_done_callback(retrieve_outcome)
            sending.cancel()
            raise
        work.number = version.number
        return version

    async def _move_label(self, call: Call, announced: Secret, label: Label, number: int, check: Check) -> Secret:
        """Move a label to version `number`, and remove this writer's announcement, in one update of the secret."""

        async def move(secret: Secret) -> Secret:
            if secret is not announced:
                if journal.written_by(secret.annotations, call.request) == number:
                    return secret
                check(secret)
                other = journal.read_announcement(secret.annotations)
                if other is not None and other.request != journal.short_request(call.request):
                    # This writer was too slow. The writer that has taken over disables this writer's version.
                    raise ConflictError("this writer took too long, so another writer has replaced it")
                # After the secret: a writer that disables or destroys the version as a leftover changes the etag first.
                if (await self._api.get_version(call, number)).state is not VersionState.ENABLED:
                    raise UnavailableError(
                        f"version {number} was treated as a leftover by another writer before its label moved"
                    )
            noted = journal.with_done_note(secret.annotations, call.request, number)
            return replace(secret, aliases={**secret.aliases, label: number}, annotations=noted)

        return await self._change_secret(call, move, announced)

    async def _find_version(self, call: Call, value: SecretBytes, base: int) -> int | None:
        """Return the number of a version above `base` that holds `value`; reads by number are strongly consistent."""
        for number in range(base + 1, base + 1 + _PROBES):
            try:
                _, found = await self._api.access_version(call, number)
            except SecretNotFoundError:
                return None
            except VersionDisabledError:
                continue
            if found == value:
                return number
        return None

    async def _label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
        number, lease = parse_number(version), _Lease()

        async def move(secret: Secret) -> Secret:
            if number is None:
                raise missing_version_error(version)
            other = journal.read_announcement(secret.annotations)
            if other is not None and other.purpose == "destroy":
                lease.must_have_ended(other, call, "a version of the secret is being destroyed")
            # Read the version after the secret: a writer that destroys the version from now on changes the etag first.
            found = await self._api.get_version(call, number)
            if found.state is not VersionState.ENABLED:
                raise VersionDisabledError(f"version {number} was {found.state.value}")
            call.check_holder(label, secret.aliases.get(label), expected)
            return replace(secret, aliases={**secret.aliases, label: number})

        await self._change_secret(call, move)

    async def _unlabel(self, call: Call, label: Label, expected: VersionId) -> None:
        async def remove(secret: Secret) -> Secret:
            call.check_holder(label, secret.aliases.get(label), expected)
            return replace(secret, aliases={name: at for name, at in secret.aliases.items() if name != label})

        await self._change_secret(call, remove)

    # --- removing ---------------------------------------------------------------------------------------------------

    async def _destroy(self, call: Call, version: VersionId) -> None:
        def unlabelled(secret: Secret) -> None:
            if number is not None and (held := sorted(secret.labels_of(number))):
                raise ConflictError(
                    f"the label {held[0]!r} points at version {number}", hint="Move the label to another version first."
                )

        number, work = parse_number(version), _Work()
        if number is None:
            raise missing_version_error(version)
        if (await self._api.get_version(call, number)).doomed:
            if call.attempt > 1:
                await self._withdraw_announcement(call)
            return
        try:
            await self._announce_work(call, "destroy", unlabelled, work)
            await self._api.destroy_version(call, number)
        except (ProviderError, asyncio.CancelledError):
            if work.announced:
                await self._await_briefly(self._withdraw_announcement(call))
            raise
        await self._withdraw_announcement(call)

    async def _delete(self, call: Call) -> None:
        self._forget_secret(call)
        await self._api.delete_secret(call)

    # --- clearing up ------------------------------------------------------------------------------------------------

    async def _undo_work(self, call: Call, value: SecretBytes, work: _Work) -> None:
        """Remove this writer's announcement and the version that it added, unless the version has got its label."""
        secret = await self._withdraw_announcement(call)
        if secret is None:
            return
        if work.number is None and (work.sent or call.attempt > 1):
            known = journal.newest_known(secret.annotations, secret.aliases)
            work.number = await self._find_version(call, value, max(work.base, known))
        if work.number is not None and not secret.labels_of(work.number):
            await self._api.destroy_version(call, work.number)

    async def _withdraw_announcement(self, call: Call) -> Secret | None:
        """Remove this writer's announcement from the secret, and return the secret; None if its write is complete.

        The secret is updated even if the announcement is missing: a request of this writer that is still on its way to
        the store then fails because its etag is outdated.
        """

        async def withdraw(secret: Secret) -> Secret:
            if journal.written_by(secret.annotations, call.request) is not None:
                return secret
            standing = journal.read_announcement(secret.annotations)
            ours = standing is not None and standing.request == journal.short_request(call.request)
            kept = journal.without_announcement(secret.annotations) if ours else secret.annotations
            return replace(secret, annotations=kept)

        secret = await self._change_secret(call, withdraw)
        return secret if journal.written_by(secret.annotations, call.request) is None else None

    async def _disable_leftovers(self, call: Call, value: SecretBytes, work: _Work, secret: Secret) -> None:
        """Destroy versions that earlier attempts of this call added; disable those that another, dead writer left."""
        base = work.base if work.abandoned_base is None else min(work.base, work.abandoned_base)
        abandoned = []
        for version in await self._api.list_versions(call, after=base):
            if version.number == work.number or version.state is not VersionState.ENABLED:
                continue
            if secret.labels_of(version.number):
                continue
            if work.abandoned_base is not None and version.number < (work.number or 0):
                abandoned.append(version.number)
            elif work.resumed and (await self._api.access_version(call, version.number))[1] == value:
                await self._api.destroy_version(call, version.number)
        if abandoned:
            await self._note_left(call, abandoned)
        for number in abandoned:
            await self._api.disable_version(call, number)

    async def _note_left(self, call: Call, numbers: Collection[int]) -> None:
        """List versions in the annotations as left by a dead writer; `versions` then shows them as leftovers."""

        async def note(secret: Secret) -> Secret:
            return replace(secret, annotations=journal.with_left(secret.annotations, numbers))

        await self._change_secret(call, note)

    async def _await_briefly(self, clearing: Coroutine[object, object, object]) -> None:
        """Run a cleanup for at most a second, even when cancelled. The next writer completes a cleanup that fails."""
        task = asyncio.ensure_future(clearing)
        task.add_done_callback(retrieve_outcome)
        try:
            await asyncio.wait({task}, timeout=_PATIENCE)
        finally:
            task.cancel()
        if task.done() and not task.cancelled():
            error = task.exception()
            if error is not None and not isinstance(error, ProviderError):
                raise error

    def _new_announcement(self, call: Call, purpose: str, base: int) -> journal.Announcement:
        return journal.Announcement(
            purpose=purpose, request=journal.short_request(call.request), nonce=secrets.token_hex(8), base=base
        )

    def _forget_secret(self, call: Call) -> None:
        """Remove a secret's versions from the cache, because this call creates or deletes the secret."""
        self._created = {key: known for key, known in self._created.items() if key[0] != call.secret_id}


class _Lease:
    """Measures how long the announcement of another writer has stayed unchanged."""

    def __init__(self) -> None:
        self._nonce, self._since = "", 0.0

    def must_have_ended(self, other: journal.Announcement, call: Call, wait: str) -> None:
        """Raise `EtagMovedError`, so that the secret is read again, until its announcement is `LEASE` old.

        `wait` says what the call waits for.
        """
        if other.nonce != self._nonce:
            self._nonce, self._since = other.nonce, _loop_time()
        if _loop_time() - self._since < LEASE.total_seconds():
            call.waits[:] = [wait]
            raise EtagMovedError


class _Pause:
    """Pauses between two reads of a secret that another writer is changing; each pause is longer than the last."""

    def __init__(self) -> None:
        self._next = 0.02

    async def __call__(self) -> None:
        # Not the provider's clock: this waits for another process, whose time no test turns.
        await asyncio.sleep(self._next * _RANDOM.uniform(0.5, 1))
        self._next = min(1.0, self._next * 1.6)


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
