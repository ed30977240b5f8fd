"""Write the identity as a settings.json that an unmodified GoatDB server reads.

No server is stopped, and the store is not changed. A file that holds another identity is overwritten only if the caller
asks for it. The operation refuses a root that is about to expire, because GoatDB extends the lifetime of such a root
and then exposes its private key.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from goatherd.clock import SystemClock
from goatherd.errors import IdentityExistsError, SettingsError
from goatherd.files import create_file, read_if_there, replace_file
from goatherd.identity.session import Session
from goatherd.identity.settings_json import to_settings
from goatherd.identity.succession import verify_signed
from goatherd.operations.identity_store import Store
from goatherd.settings.data_directory import SEEN_NAME, refuse_running


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedSettings:
    """A settings.json that was written.

    Attributes:
        file: The file.
        version_id: The stored version that the file was made from.
        current_id: The current root in the file.
        roots: How many roots the file holds.
        sessions: How many trusted user sessions the file holds.
    """

    file: Path
    version_id: str
    current_id: str
    roots: int
    sessions: int


async def export_settings(
    store: Store, file: Path, *, data: Path | None = None, replace: bool = False, unsafe_short_life: bool = False
) -> ExportedSettings:
    """Write the identity in a store to a GoatDB settings.json that only its owner can read.

    Args:
        store: The open store.
        file: The file to write.
        data: Data directory of one organization; the user sessions of its ``/sys/sessions`` log become
            ``trustedSessions``.
        replace: Overwrite an existing file that has other contents, and so the private key in it.
        unsafe_short_life: Accept a root with less than 15 days left, whose private key GoatDB exposes.

    Raises:
        SettingsError: The file cannot be written, or its directory does not exist.
        StorageError: A running server takes its identity from a store and has the file's directory open.
        IdentityExistsError: The file exists with other contents, and `replace` is False.
        UnsignedIdentityError: The identity was changed since a root signed it.
        ConfigurationError: `data` has no ``/sys/sessions`` log.
        IdentityError: The root has less than 15 days left, or the identity is malformed.
        ProviderError: The store cannot be read.
    """
    if not file.parent.is_dir():
        # A path with a typing error would put the key where it is not looked for.
        raise SettingsError(
            f"cannot write {file}: there is no directory {file.parent}", hint="Create it, or correct the path."
        )
    if (file.parent / SEEN_NAME).is_file():
        # SECURITY: a server that takes its identity from a store neither reads nor removes this file, so the key would
        # stay on its disk (tests/unit/cli/test_serve.py).
        refuse_running(file.parent)
    version, document = await store.read()
    # SECURITY: an unmodified server trusts every root in the file, also one that an attacker has added to the identity
    # (tests/unit/cli/test_sign.py).
    if document.signature is not None:
        verify_signed(document)
    sessions: tuple[Session, ...] = ()
    if data is not None:
        # Imported here, since an export without --data needs no storage of a server.
        from goatherd.operations.migration_files import verified_sessions

        sessions = verified_sessions(data, document, store.org)
    text = to_settings(document, sessions, now_ms=None if unsafe_short_life else SystemClock().now_ms())
    _write_settings(file, text, replace=replace)
    return ExportedSettings(
        file=file,
        version_id=version.id,
        current_id=document.current.id,
        roots=sum(root.id not in document.revoked_ids for root in document.roots),
        sessions=len(sessions),
    )


def _write_settings(file: Path, text: bytes, *, replace: bool) -> None:
    """Write a file that holds a key, atomically and with mode 0600. If its contents are the same, do nothing.

    Raises:
        IdentityExistsError: The file exists with other contents, and `replace` is False.
    """
    if replace:
        replace_file(file, text)
        return
    try:
        create_file(file, text)
    except IdentityExistsError as error:
        if read_if_there(file) == text:
            return
        error.hint = (
            f"It is a link to {file.readlink()}, such as `goatherd run` makes. If no `goatherd run` is running there,"
            " --replace writes a file in place of the link; remove what the link leads to by hand."
            if file.is_symlink()
            else "The file was not changed. --replace overwrites it, and the private key in it."
        )
        raise
