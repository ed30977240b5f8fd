"""Check that a server's data belong to the identity with which Goatherd starts a server on them for the first time.

An operator may have created a new identity with `goatherd init` in place of `goatherd migrate`, or have mistyped a
path, an organization or the address of the store. After the first start, the record of the identity that the server
used last (`goatherd.settings.data_directory.SEEN_NAME`) takes the place of this check.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from goatherd.errors import IdentityExistsError, ThrottledError, UnavailableError
from goatherd.settings.data_directory import SEEN_NAME, SESSIONS_LOG, read_records
from goatherd.telemetry import describe_count
from goatherd.trust import TrustPool
from goatherd.wire.commit import decode_commits

if TYPE_CHECKING:
    from goatherd.identity.document import IdentityDocument
    from goatherd.operations.data import OpenStore
    from goatherd.wire.commit import Commit

FEW: Final = 100
"""How many records are read at first; nearly always, one of them verifies with the identity."""


async def check_first_start(directory: Path, org: str, open_store: OpenStore) -> None:
    """Check, before the first start on an organization's data, that they belong to the identity in the store.

    With another identity, the server would write commits of two identities into one log: Goatherd's own server would
    trust no session in it, and the clients of an unmodified one would not know its new root.

    Nothing is checked if the store does not answer, since the server may start from its last known good copy; and if
    roots were removed from the identity, since one of them may have signed what the log holds, and peers have its
    introduction.

    Args:
        directory: The organization's directory.
        org: The organization.
        open_store: Opens the organization's store.

    Raises:
        IdentityExistsError: The log of ``/sys/sessions`` holds commits, and none verifies with the identity.
        ProviderError, IdentityError: The identity cannot be read.
        StorageError: The log cannot be read.
    """
    if (directory / SEEN_NAME).exists():
        return  # the server compares the identity with the one that it used last
    records = read_records(directory / SESSIONS_LOG)
    commits = decode_commits(islice(records, FEW), org) or decode_commits(records, org)
    if not commits:
        return
    try:
        async with open_store(org) as store:
            _, document = await store.read()
            name = store.name
    except (ThrottledError, UnavailableError):
        return
    if document.pruned:
        return
    if _is_signed_by(document, commits, org):
        return
    commits += decode_commits(records, org)
    if _is_signed_by(document, commits, org):
        return
    raise IdentityExistsError(
        f"none of the {describe_count(len(commits), 'commit')} in {directory / SESSIONS_LOG} verifies with the identity"
        f" in {name} (root {document.current.id}): the data belong to another identity",
        hint=f"If a GoatDB server has written the data, bring its identity into a store: `goatherd migrate {directory}"
        " --provider URI`. If a server that was started by mistake has created them, move the directory away. Otherwise"
        " check --data, --org and the store's address. To use this identity although the data do not belong to it, add"
        " --accept-identity.",
    )


def _is_signed_by(document: IdentityDocument, commits: Sequence[Commit], org: str) -> bool:
    """Return whether any of these commits of ``/sys/sessions`` verifies with an identity."""
    pool = TrustPool.from_identity(document, org=org)
    pool.offer_session_commits(commits)
    if any(pool.get_introductions(session_id) for session_id in {commit.key for commit in commits}):
        return True
    return None in pool.verify_commits(commits, held=True)
