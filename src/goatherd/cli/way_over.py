"""What makes ``goatherd migrate`` the way over of a whole cluster: servers compared, the store read back, keys removed.

What it is: the comparison of several servers' identities, the proofs that the store holds the cluster's key, and the
removal of that key from a disk. What it is not: it reads no log and writes no store (`goatherd.cli.migration`).
Rules: a key leaves a disk only after the store has given the same identity back, and no server that was asked denies
it; what is left in its place says where the key went, and holds public halves only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import orjson

from goatherd.client import NodeClient
from goatherd.clock import SystemClock
from goatherd.config.options import Options
from goatherd.data_directory import REMAINS
from goatherd.errors import NodeError, SettingsError
from goatherd.files import remove_file, replace_file
from goatherd.identity.document import IdentityDocument, settled
from goatherd.identity.endorsement import endorse
from goatherd.identity.expiry import last_valid_ms
from goatherd.identity.session import OwnedSession
from goatherd.operations.identity_store import Store
from goatherd.rotation.discovery import NodeDirectory
from goatherd.times import iso

_LARGEST_COPY: Final = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What one running server said to a request that was signed with the key.

    Attributes:
        trusts: Whether it took the key for a root of its own; None when it gave no answer.
    """

    org: str
    url: str
    root: str
    trusts: bool | None
    problem: str | None = None

    def to_json(self) -> dict[str, object]:
        """Return it as data."""
        return {"org": self.org, "url": self.url, "root": self.root, "trusts": self.trusts, "problem": self.problem}

    def line(self) -> str:
        """Return it for people."""
        if self.trusts is None:
            return f"{self.org}: {self.url} was asked and gave no answer: {self.problem}"
        if self.trusts:
            return f"{self.org}: {self.url} answers a request signed by root {self.root}"
        return f"{self.org}: {self.url} does not know root {self.root}: it has another identity"


def united(
    org: str, found: Sequence[tuple[Path, IdentityDocument]], root_id: str | None = None, *, now_ms: int
) -> IdentityDocument:
    """Return the one identity that several servers' settings hold for an organization.

    GoatDB pushes the expiration of its root forward when it starts, each server by itself: the latest one counts.

    Args:
        org: The organization.
        found: Each settings.json and what it holds.
        root_id: The root that signs from now on, where the servers have different ones; the others stay trusted.
        now_ms: Milliseconds since 1970.

    Raises:
        SettingsError: They hold different ones and none was chosen, or none has the chosen one.
    """
    current = {document.current.id: document.current for _, document in found}
    held = "; ".join(f"{path} has {document.current.id}" for path, document in found)
    if root_id is not None and root_id not in current:
        raise SettingsError(f"no server of {org} has root {root_id}: {held}")
    if len(current) > 1 and root_id is None:
        raise SettingsError(
            f"the servers of {org} have different roots: {held}",
            hint="They do not accept one another. If they are two clusters, migrate each into a secret of its own. If"
            " they are to be one, choose the root that signs from now on with --root ID: the others stay trusted, so"
            " that their clients keep their sessions and their data. With --dry-run, --root tells what that means.",
        )
    kept = [(path, document) for path, document in found if document.current.id == (root_id or document.current.id)]
    newest = _one_root(org, kept)
    known = {root.id for root in newest.roots}
    others = {root.id: root for _, document in found for root in document.roots if root.id not in known}
    whole = replace(newest, roots=(*newest.roots, *others.values()))
    given_up = [root for root in current.values() if root.id != newest.current.id]
    if not given_up:
        return whole
    # Both ways: a server or client that trusts one of the roots finds its way to the other.
    endorsements = [
        endorse(by, of, min(now_ms, last_valid_ms(by.session)))
        for root in given_up
        for by, of in ((root, newest.current.session), (newest.current, root.session))
    ]
    return settled(replace(whole, endorsements=(*whole.endorsements, *endorsements)))


def describe_union(org: str, found: Sequence[tuple[Path, IdentityDocument]], identity: IdentityDocument) -> list[str]:
    """Return what it means that one of several roots was chosen, for people; nothing where there is one root only."""
    current = identity.current.id
    given_up = {document.current.id: document.current.session for _, document in found}
    given_up.pop(current, None)
    if not given_up:
        return []
    lines = [f"{org}: root {current} wins: it signs from now on, on every server"]
    for root_id, root in given_up.items():
        paths = ", ".join(str(path) for path, document in found if document.current.id == root_id)
        lines.append(
            f"{org}: root {root_id} ({paths}) stays trusted until {iso(root.expiration_ms)}, and what it has signed"
            " permanently. Its clients keep their sessions and their data; they learn the other root from"
            " /sys/sessions, and the clients of the other root learn this one"
        )
        lines.append(
            f"{org}: the private key of root {root_id} does not go into the store. It is on that server's disk; if it"
            f" may be exposed, run `goatherd revoke {root_id}` as soon as every server starts from the store"
        )
    return lines


def _one_root(org: str, found: Sequence[tuple[Path, IdentityDocument]]) -> IdentityDocument:
    """Return what servers with the same root hold, with the latest expiration.

    Raises:
        SettingsError: The root has different keys.
    """
    first = found[0][1]
    forged = [
        str(path) for path, document in found if document.current.session.public_key != first.current.session.public_key
    ]
    if forged:
        raise SettingsError(
            f"root {first.current.id} of {org} has another key in {', '.join(forged)} than in {found[0][0]}",
            hint="One of them is forged. Find out which before anything trusts these servers again.",
        )
    return max((document for _, document in found), key=lambda document: document.current.session.expiration_ms)


def holds(document: IdentityDocument, root: OwnedSession) -> bool:
    """Whether an identity has this very root among its own, as the one that signs or as an earlier one."""
    kept = document.root(root.id)
    return kept is not None and kept.public_key == root.session.public_key


async def read_back(store: Store, wanted: OwnedSession) -> IdentityDocument:
    """Return what the store holds, after making sure that it is the identity of `wanted`.

    Raises:
        SettingsError: It holds something else than what was put there.
        ProviderError, IdentityError: It cannot be read, or is no identity.
    """
    _, document = await store.read()
    if not holds(document, wanted):
        raise SettingsError(
            f"{store.name} does not give root {wanted.id} back",
            hint="Nothing was removed from the disk. `goatherd versions` shows what the store holds.",
        )
    return document


async def ask_servers(options: Options, signers: Sequence[tuple[str, OwnedSession]]) -> list[Proof]:
    """Ask every server of the options, once for each organization, whether it takes the key for a root of its own.

    Raises:
        DiscoveryError: It cannot be found out who the servers are.
    """
    async with NodeDirectory(options.nodes, timeout=options.timeout) as directory:
        asked = [_ask(client, org, signer) for client in await directory() for org, signer in signers]
        return list(await asyncio.gather(*asked))


async def _ask(client: NodeClient, org: str, signer: OwnedSession) -> Proof:
    try:
        trusts = await client.answers(signer)
    except NodeError as error:
        return Proof(org=org, url=client.base_url, root=signer.id, trusts=None, problem=str(error))
    return Proof(org=org, url=client.base_url, root=signer.id, trusts=trusts)


def remove_key(settings: Path, document: IdentityDocument, store: str) -> list[str]:
    """Remove a settings.json that holds the key, leave a note in its place, and return what people should know.

    SECURITY: only after `read_back` (tests/unit/cli/test_migrate_cluster.py).

    Raises:
        SettingsError: It is a link, or cannot be removed.
    """
    if settings.is_symlink():
        raise SettingsError(
            f"{settings} is a link to {settings.readlink()}",
            hint="`goatherd run` makes such a link, to a file in memory. Stop it, and the file goes by itself.",
        )
    remains = settings.with_name(REMAINS)
    note = {
        "store": store,
        "removedAt": iso(SystemClock().now_ms()),
        "current": document.current.session.to_json(),
        "roots": [root.to_json() for root in document.roots],
        "undo": "goatherd export settings.json --provider … --data <this directory>",
    }
    replace_file(remains, orjson.dumps(note, option=orjson.OPT_INDENT_2) + b"\n")
    remove_file(settings)
    # COMPAT: GoatDB takes a missing settings.json for a first start and generates a root.
    said = [
        f"{settings} is removed; {remains} says where the key went",
        "start that server with `goatherd serve` or `goatherd run` from now on: GoatDB itself would make a new root",
    ]
    said += [f"{copy} holds a private key too: remove it by hand" for copy in copies(settings)]
    return said


def copies(settings: Path) -> list[Path]:
    """Return the files beside a settings.json that hold a private key as well, such as a backup of it."""
    return [path for path in sorted(settings.parent.iterdir()) if path != settings and _holds_key(path)]


def _holds_key(path: Path) -> bool:
    try:
        if not path.is_file() or path.suffix == ".jsonl" or path.stat().st_size > _LARGEST_COPY:
            return False
        return b'"privateKey"' in path.read_bytes()
    except OSError:
        return False


def denied(proofs: Iterable[Proof]) -> list[Proof]:
    """Return the servers that were asked and do not take the key for a root of their own."""
    return [proof for proof in proofs if proof.trusts is False]
