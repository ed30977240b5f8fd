"""Read the identity of an unmodified GoatDB server from its disk: settings.json, and the log of ``/sys/sessions``.

Nothing is written. A file that cannot be read is an error; only a missing file counts as absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import orjson

from goatherd.errors import (
    ConfigurationError,
    DecodeError,
    IdentityError,
    SettingsError,
    VerificationError,
)
from goatherd.identity.document import IdentityDocument
from goatherd.identity.session import Session
from goatherd.identity.session_commits import verify_commit_by
from goatherd.identity.settings_json import SETTINGS_NAME, check_exportable, from_settings, publishes_private_key
from goatherd.settings.data_directory import REMAINS, SESSIONS_LOG, check_understood, read_commits
from goatherd.telemetry import describe_count
from goatherd.times import iso, read_iso
from goatherd.trust import TrustPool
from goatherd.wire.commit import Commit
from goatherd.wire.paths import DEFAULT_ORG

_LARGEST_COPY: Final = 1 << 24

SHOWN: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationSource:
    """The files of one organization. `data` is None for a settings.json outside of a data directory.

    If `is_migrated` is true, there is no settings.json: a migration or an agent has removed the file.
    """

    settings: Path
    data: Path | None
    org: str
    is_migrated: bool = False

    @property
    def place(self) -> tuple[Path, Path]:
        """The directory and the file, whatever paths lead to them. Several servers may have a link to one file."""
        return (self.data or self.settings.parent).resolve(), self.settings.resolve()


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLog:
    """The sessions in a ``/sys/sessions`` log.

    Attributes:
        pool: The sessions that a trusted root introduced.
        introductions: For each session id, the verified commits that introduce the session.
        problems: A human-readable sentence for each session that could not be verified.
    """

    pool: TrustPool
    introductions: dict[str, tuple[Commit, ...]]
    problems: tuple[str, ...]


def find_sources(source: Path, given: str | None) -> list[MigrationSource]:
    """Return the organizations found in a path, sorted by name, also those of a server that was migrated earlier.

    Args:
        source: A data directory with or without a directory for each organization, or a settings.json.
        given: The only organization to look for; None for all.

    Raises:
        ConfigurationError: The path holds no organization, or not the given one.
        NewerFormatError: A newer GoatDB has written in the directory.
    """
    if source.is_file():
        return [_describe_source(source, given)]
    if (source / SETTINGS_NAME).is_file():
        return [_describe_source(source / SETTINGS_NAME, given)]
    if (source / SESSIONS_LOG).is_file():
        return [_describe_migrated(source, given)]
    if source.is_dir():
        logs = [path.parents[1] for path in source.glob(f"*/{SESSIONS_LOG}")]
        found = sorted({*(path.parent for path in source.glob(f"*/{SETTINGS_NAME}") if path.is_file()), *logs})
        if chosen := [_describe_directory(path, path.name) for path in found if given in (None, path.name)]:
            return chosen
        if found:
            names = ", ".join(path.name for path in found[:SHOWN])
            raise ConfigurationError(
                f"{source} holds no data of organization {given!r}; it holds the organizations {names}",
                hint="Check --org and GOATHERD_ORG.",
            )
        if (source / REMAINS).is_file():
            return [_describe_migrated(source, given)]
    elif source.name == SETTINGS_NAME and source.with_name(REMAINS).is_file():
        return [_describe_migrated(source.parent, given)]
    raise ConfigurationError(
        f"there is no {SETTINGS_NAME} in {source}, nor in one of its subdirectories"
        if source.is_dir()
        else f"{source} does not exist",
        hint="Name the data directory of a GoatDB server, or a settings.json.",
    )


def _describe_directory(directory: Path, org: str) -> MigrationSource:
    check_understood(directory)
    settings = directory / SETTINGS_NAME
    return MigrationSource(settings=settings, data=directory, org=org, is_migrated=not settings.is_file())


def _describe_migrated(directory: Path, given: str | None) -> MigrationSource:
    """Return the organization of a directory whose settings.json a migration or an agent has removed."""
    settings = directory / SETTINGS_NAME
    if not (directory / SESSIONS_LOG).is_file():
        return MigrationSource(settings=settings, data=None, org=given or DEFAULT_ORG, is_migrated=True)
    source = _describe_directory(directory, given or directory.resolve().name)
    if given is None and settings.with_name(REMAINS).is_file():
        # As in `_describe_source`; the roots are in the note.
        with suppress(ConfigurationError):
            roots = {root.id: root for root in read_note(source).roots}
            orgs = (source.org, DEFAULT_ORG)
            return replace(
                source, org=next((org for org in orgs if _has_signed_log(roots, org, directory)), source.org)
            )
    return source


def _has_signed_log(roots: Mapping[str, Session], org: str, data: Path) -> bool:
    """Whether one of the roots has signed a commit of the log for this organization."""
    for commit in read_commits(data / SESSIONS_LOG, org):
        if commit.session in roots:
            with suppress(VerificationError):
                verify_commit_by(roots[commit.session], commit)
                return True
    return False


def missing_settings_error(source: MigrationSource) -> ConfigurationError:
    """Return the error for a server that has no settings.json, and no note of the migration that removed it."""
    return ConfigurationError(
        f"there is no {SETTINGS_NAME} in {source.settings.parent}, only logs",
        hint="If `goatherd serve` or `goatherd run` ran there, the identity is in the store: these leave no such file."
        " Otherwise restore the file from a backup.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationNote:
    """What the note states that a migration has left in place of a settings.json.

    Attributes:
        store: The name of the store.
        removed_ms: When the file was removed, in milliseconds since 1970.
        root: The current root of the file.
        roots: All of its roots.
    """

    store: str
    removed_ms: int
    root: Session
    roots: tuple[Session, ...]


def make_note(store: str, removed_at_ms: int, document: IdentityDocument) -> dict[str, object]:
    """Return the note that a migration leaves in place of a settings.json with this identity, as JSON data."""
    return {
        "store": store,
        "removedAt": iso(removed_at_ms),
        "current": document.current.session.to_json(),
        "roots": [root.to_json() for root in document.roots],
        "undo": "goatherd export settings.json --provider … --data <this directory>",
    }


def read_note(source: MigrationSource) -> MigrationNote:
    """Read the note that a migration has left in place of a server's settings.json.

    Raises:
        ConfigurationError: There is no note, or it cannot be read.
    """
    note = source.settings.with_name(REMAINS)
    try:
        found = orjson.loads(note.read_bytes())
        root = Session.from_json(found["current"])
        roots = tuple(Session.from_json(one) for one in found.get("roots", ()))
        removed_ms = read_iso(found["removedAt"])
        return MigrationNote(store=str(found["store"]), removed_ms=removed_ms, root=root, roots=roots)
    except FileNotFoundError:
        raise missing_settings_error(source) from None
    except (OSError, ValueError, KeyError, TypeError, DecodeError) as error:
        raise ConfigurationError(f"{note} cannot be read: {type(error).__name__}") from None


def _describe_source(settings: Path, given: str | None) -> MigrationSource:
    # A settings.json in a data directory may be a link to a file elsewhere, and a link elsewhere may lead to it.
    directories = (settings.parent.resolve(), settings.resolve().parent)
    data = next((directory for directory in directories if (directory / "sys").is_dir()), None)
    if data is not None:
        check_understood(data)
    if given is not None or data is None:
        return MigrationSource(settings=settings, data=data, org=given or DEFAULT_ORG)
    # The organization is part of the signed bytes, so the log shows which of the two candidates is right.
    source = MigrationSource(settings=settings, data=data, org=data.name)
    document, _, _ = read_settings(source, 0)
    orgs = (data.name, DEFAULT_ORG)
    return replace(source, org=next((org for org in orgs if _is_signed_for(org, data, [document])), data.name))


def check_signed_for(source: MigrationSource, identities: Sequence[IdentityDocument]) -> None:
    """Check that a log is that of the organization under whose name its directory is to be migrated.

    Args:
        source: The directory and the organization.
        identities: The identities with which the log may be signed.

    Raises:
        ConfigurationError: The log holds commits, and none of them verifies for this organization.
    """
    data, org = source.data, source.org
    if data is None or _is_signed_for(org, data, identities) or not (commits := read_commits(data / SESSIONS_LOG, org)):
        return
    right = next((one for one in (data.name, DEFAULT_ORG) if _is_signed_for(one, data, identities)), None)
    raise ConfigurationError(
        f"none of the {describe_count(len(commits), 'commit')} in {data / SESSIONS_LOG} verifies with the root of"
        f" {source.settings} as organization {org!r}; nothing was written",
        hint=f"They are signed for organization {right!r}: run `goatherd migrate {data} --org {right} …`."
        if right is not None
        else "Check that --org is right: it is part of what is signed. If it is, this settings.json has another root"
        " than the log: GoatDB makes a new one if it cannot read the file.",
    )


def _is_signed_for(org: str, data: Path, identities: Sequence[IdentityDocument]) -> bool:
    """Whether a root of one of the identities has signed a commit of the log for this organization."""
    commits = read_commits(data / SESSIONS_LOG, org)
    for identity in identities:
        roots = {root.id for root in identity.roots}
        pool = TrustPool.from_identity(identity, org=org)
        for commit in commits:
            if commit.session in roots and pool.verify_commits([commit], held=True) == [None]:
                return True
    return False


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error


def read_settings(source: MigrationSource, now_ms: int) -> tuple[IdentityDocument, tuple[Session, ...], list[str]]:
    """Read a settings.json: the identity, the user sessions, and what the operator should know.

    Raises:
        SettingsError: The file cannot be read.
        IdentityError: The file is malformed, or has no private key; the message names the file.
    """
    try:
        raw = _read_bytes(source.settings)
        document, users, notes = from_settings(raw, now_ms)
        check_exportable(document)  # a key in an HSM or a KMS is not in the file
        if publishes_private_key(raw):
            notes.append(
                "a GoatDB server that runs with this settings.json gives its private key to any caller that asks. If"
                f" others could reach the server, run `goatherd revoke {document.current.id}` as soon as every server"
                " starts from the store; a rotation is not enough"
            )
        return document, users, notes
    except IdentityError as error:
        raise type(error)(f"{source.settings}: {error}", hint=error.hint) from None


def read_session_log(data: Path, document: IdentityDocument, org: str) -> SessionLog:
    """Read a server's ``/sys/sessions`` log, and verify it with the roots of an identity."""
    commits = read_commits(data / SESSIONS_LOG, org)
    pool = TrustPool.from_identity(document, org=org)
    pool.offer_session_commits(commits)
    introductions, problems = {}, []
    for session_id in dict.fromkeys(commit.key for commit in commits):
        # SECURITY: anyone may have put a commit into the log; one that was not verified must not be copied or followed
        # (tests/unit/cli/test_migrate_cluster.py).
        if found := pool.get_introductions(session_id):
            introductions[session_id] = found
        try:
            pool.get_session(session_id)
        except VerificationError as error:
            problems.append(f"session {session_id} of the log could not be verified: {error}")
    return SessionLog(pool=pool, introductions=introductions, problems=tuple(problems))


def verified_sessions(data: Path, document: IdentityDocument, org: str) -> tuple[Session, ...]:
    """Return the user sessions in a server's log that a root of the identity introduced.

    Raises:
        ConfigurationError: `data` has no ``/sys/sessions`` log, or that of another identity.
    """
    if not (data / SESSIONS_LOG).is_file():
        raise ConfigurationError(f"{data} has no {SESSIONS_LOG}", hint="Name the data directory of one organization.")
    if not _is_signed_for(org, data, [document]) and (commits := read_commits(data / SESSIONS_LOG, org)):
        raise ConfigurationError(
            f"none of the {describe_count(len(commits), 'commit')} in {data / SESSIONS_LOG} verifies with the identity"
            f" (root {document.current.id}) as organization {org!r}; nothing was written",
            hint="Check --data, --org and --provider: a server that starts with another identity rejects its own data.",
        )
    log = read_session_log(data, document, org)
    found = []
    for session_id in log.introductions:
        try:
            session = log.pool.get_session(session_id)
        except VerificationError:
            continue
        if not session.is_root:
            found.append(session)
    return tuple(found)


def describe_key_copies(settings: Path, *, advice: str = "") -> list[str]:
    """Describe the files beside a settings.json that also hold a private key, such as a backup, or cannot be read.

    Args:
        settings: The settings.json.
        advice: What to do with a file that holds a key, as the end of its line.
    """
    found = []
    for path in sorted(settings.parent.iterdir()):
        try:
            if path != settings and _holds_key(path):
                found.append(f"{path} holds a private key too{advice}")
        except FileNotFoundError:
            continue  # it was removed meanwhile
        except OSError as error:
            found.append(f"{path} cannot be read ({error.strerror}): check whether it holds a private key too")
    return found


def _holds_key(path: Path) -> bool:
    if not path.is_file() or path.suffix == ".jsonl" or path.stat().st_size > _LARGEST_COPY:
        return False
    return b'"privateKey"' in path.read_bytes()
