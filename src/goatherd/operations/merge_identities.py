"""Merge the identities of several servers of one cluster into one, and describe what changes for each server.

Identities with different roots are merged only if the operator has chosen which root becomes the current one; the other
roots stay trusted. Only `describe_double_keys` does I/O: it reads the logs of the servers' repositories.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from goatherd.errors import SettingsError
from goatherd.identity.document import IdentityDocument, normalize_document
from goatherd.identity.key_age import last_valid_ms
from goatherd.identity.root_signatures import endorse_root
from goatherd.identity.session import OwnedSession, Session
from goatherd.operations.migration_files import SHOWN, MigrationSource
from goatherd.settings.data_directory import read_commits
from goatherd.telemetry import describe_count
from goatherd.times import format_utc


def merge_server_identities(
    org: str, found: Sequence[tuple[Path, IdentityDocument]], root_id: str | None = None, *, now_ms: int
) -> IdentityDocument:
    """Merge the settings of several servers into the one identity of an organization.

    Each GoatDB server extends the expiration of its root when it starts, so that servers with the same root may differ
    in its expiration. The latest one is used.

    Args:
        org: The organization.
        found: Each settings.json and the identity in it.
        root_id: The root that becomes the current root if the servers have different ones; the others stay trusted.
        now_ms: Milliseconds since 1970.

    Raises:
        SettingsError: The servers hold different roots and none was chosen, or no server has the chosen one.
    """
    current = {document.current.id: document.current for _, document in found}
    held = "; ".join(f"{path} has {document.current.id}" for path, document in found)
    if root_id is not None and root_id not in current:
        raise SettingsError(f"no server of {org} has root {root_id}: {held}", hint="Give --root one of these roots.")
    if len(current) > 1 and root_id is None:
        raise SettingsError(
            f"the servers of {org} have different roots: {held}",
            hint="Servers with different roots reject each other. If these are two clusters, migrate each into its own"
            " secret. If they are to be one, choose the current root with --root ID: the others stay trusted, so"
            " that their clients keep their sessions and their data. --dry-run shows the consequences.",
        )
    kept = [(path, document) for path, document in found if document.current.id == (root_id or document.current.id)]
    newest = _choose_latest(org, kept)
    known = {root.id for root in newest.roots}
    others = {root.id: root for _, document in found for root in document.roots if root.id not in known}
    whole = replace(newest, roots=(*newest.roots, *others.values()))
    given_up = [root for root in current.values() if root.id != newest.current.id]
    if not given_up:
        return whole
    # Both ways: a server or client that trusts one of the roots can verify the other.
    endorsements = [
        endorse_root(by, of, min(now_ms, last_valid_ms(by.session)))
        for root in given_up
        for by, of in ((root, newest.current.session), (newest.current, root.session))
    ]
    return normalize_document(replace(whole, endorsements=(*whole.endorsements, *endorsements)))


def _choose_latest(org: str, found: Sequence[tuple[Path, IdentityDocument]]) -> IdentityDocument:
    """Return, of several identities with the same root, the one in which the root expires last.

    Raises:
        SettingsError: The root has different keys on two servers.
    """
    first = found[0][1]
    forged = [
        str(path) for path, document in found if document.current.session.public_key != first.current.session.public_key
    ]
    if forged:
        raise SettingsError(
            f"root {first.current.id} of {org} has another key in {', '.join(forged)} than in {found[0][0]}",
            hint="One of the keys is forged. Find out which one before clients use these servers again.",
        )
    return max((document for _, document in found), key=lambda document: document.current.session.expiration_ms)


def contains_root(document: IdentityDocument, root: OwnedSession) -> bool:
    """Whether an identity has this root, with the same key, as its current root or as a previous one."""
    kept = document.find_root(root.id)
    return kept is not None and kept.public_key == root.session.public_key


def covers_root(document: IdentityDocument, root: OwnedSession, now_ms: int) -> bool:
    """Whether an identity lists this root with an expiration at which all that it can have signed until now is valid.

    COMPAT: a GoatDB server extends its root in its own settings.json, and continues to sign with it, while the store
    still has the earlier expiration.
    """
    kept = document.find_root(root.id)
    return kept is not None and kept.expiration_ms >= min(root.session.expiration_ms, now_ms)


def pair_roots(identity: IdentityDocument, roots: Iterable[OwnedSession]) -> tuple[tuple[Session, OwnedSession], ...]:
    """Return each root that must be introduced, with the root that introduces it.

    The current root of `identity` introduces each other root in `roots` and is introduced by it, so that clients of
    either root trust both. The result is empty if all servers have the current root.
    """
    current = identity.current
    given_up = {root.id: root for root in roots if root.id != current.id}
    return tuple(pair for root in given_up.values() for pair in ((current.session, root), (root.session, current)))


def find_doubtful_roots(
    found: Sequence[tuple[Path, IdentityDocument]], identity: IdentityDocument
) -> dict[str, tuple[Path, ...]]:
    """Return the roots that an attacker may have added to the servers' files, each with the files that list it.

    An attacker with write access to one server can add a root to its settings.json, but not to those of the others. So
    the result has every root of `identity` that not every file lists, and, if there is only one file, every root but
    its current one. A root that is the current one of a file is not doubtful: the operator has chosen among these.

    Args:
        found: Each settings.json and the identity in it.
        identity: The identity that was merged from them.
    """
    current = {document.current.id for _, document in found}
    listed = {
        root.id: tuple(path for path, document in found if document.find_root(root.id) is not None)
        for root in identity.roots
        if root.id not in current
    }
    return {root: paths for root, paths in listed.items() if len(found) == 1 or len(paths) < len(found)}


def describe_union(org: str, found: Sequence[tuple[Path, IdentityDocument]], identity: IdentityDocument) -> list[str]:
    """Describe what follows if one of several roots becomes the current root; each line states one consequence.

    The list is empty if all servers have the same root.
    """
    current = identity.current.id
    given_up = {document.current.id: document.current.session for _, document in found}
    given_up.pop(current, None)
    if not given_up:
        return []
    lines = [f"{org}: root {current} becomes the current root of every server"]
    for root_id, root in given_up.items():
        paths = ", ".join(str(path) for path, document in found if document.current.id == root_id)
        lines.append(
            f"{org}: root {root_id} ({paths}) stays trusted until {format_utc(root.expiration_ms)}, and what it has"
            " signed stays valid permanently. Its clients keep their sessions and data; they learn the other root from"
            " /sys/sessions, and the clients of the other root learn this one"
        )
        lines.append(
            f"{org}: the private key of root {root_id} does not go into the store. It is on that server's disk; if it"
            f" may be exposed, run `goatherd revoke {root_id}` as soon as every server starts from the store"
        )
    return lines


def describe_double_keys(
    org: str, sources: Sequence[MigrationSource], found: Sequence[tuple[Path, IdentityDocument]]
) -> list[str]:
    """Return a warning about items that servers with different roots created independently.

    COMPAT: if two servers have each created an item under the same key, the key has two commits without parents. An
    unmodified GoatDB server that merges them crashes, and so do its clients.
    """
    if len({document.current.id for _, document in found}) < 2:
        return []
    created: list[dict[tuple[str, str], set[str]]] = []
    for source in sources:
        keys: dict[tuple[str, str], set[str]] = {}
        for path in sorted(source.data.rglob("*.jsonl")) if source.data is not None else ():
            name = str(path.relative_to(source.data or path).with_suffix(""))
            for commit in read_commits(path, org):
                if not commit.parents:
                    keys.setdefault((name, commit.key), set()).add(commit.id)
        created.append(keys)
    double = {
        key
        for number, one in enumerate(created)
        for other in created[number + 1 :]
        for key in one.keys() & other.keys()
        if not (one[key] <= other[key] or other[key] <= one[key])
    }
    if not double:
        return []
    shown = ", ".join(f"/{name}/{key}" for name, key in sorted(double)[:SHOWN])
    items = describe_count(len(double), "item", "was", "were")
    text = (
        f"{org}: {items} created on more than one server independently ({shown}). An unmodified GoatDB server ends when"
        " it merges both versions, and so do its clients: serve this data with `goatherd serve`, which merges them"
    )
    return [text]
