"""Name a root as an operator does: by its id, a unique beginning of the id, `current` or `previous`. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from goatherd.errors import ConfigurationError

if TYPE_CHECKING:
    from goatherd.identity.document import IdentityDocument

CURRENT_ROOT: Final = "current"
PREVIOUS_ROOT: Final = "previous"
_SHOWN: Final = 8


def shorten_id(text: str) -> str:
    """Return the beginning of a long id, as people read and type it; a short id is returned whole."""
    return text if len(text) <= _SHOWN + 4 else text[:_SHOWN]


def resolve_root(document: IdentityDocument, named: str) -> str:
    """Return the id of the root that `named` names.

    Args:
        document: The identity. Roots that it lists, has revoked or records in its history can be named by a beginning.
        named: An id, a unique beginning of one, ``current``, or ``previous``: the root before the current one. Text
            that is none of these is returned unchanged, because the document may no longer list the root.

    Raises:
        ConfigurationError: `named` is empty or the beginning of several ids, or there is no previous root.
    """
    if named == CURRENT_ROOT:
        return document.current.id
    if named == PREVIOUS_ROOT:
        if document.rotated_from is None:
            raise ConfigurationError(
                f"root {document.current.id} has signed from the beginning: there is no previous root",
                hint="`goatherd status --roots` lists the roots.",
            )
        return document.rotated_from
    if not named:
        raise ConfigurationError("the id of the root is empty", hint="`goatherd status --roots` lists the roots.")
    known = {
        *(root.id for root in document.roots),
        *document.revoked_ids,
        *(one for entry in document.history for one in (entry.from_id, entry.to_id) if one is not None),
    }
    found = [named] if named in known else sorted(one for one in known if one.startswith(named))
    if len(found) > 1:
        raise ConfigurationError(
            f"{named!r} is the beginning of {len(found)} roots: {', '.join(found)}", hint="Give more of the id."
        )
    return found[0] if found else named
