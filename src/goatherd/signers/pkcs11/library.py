"""Load a token's PKCS#11 library once per process, call it from one thread, and open one session for each token.

python-pkcs11 initializes a library without locking, so only one thread may call it at a time: each `Library` has a
thread for all its calls. All signers of a library share that thread, and all signers of a token share one session,
whichever attributes their URIs name the token by, because a login applies to the whole process. The session is closed
when its last signer is closed.

A child process after a fork initializes the library again, and opens its own sessions. After an error which means that
a session or the token no longer exists, the session is dropped, so that the next attempt logs in again.

python-pkcs11 leaves a session open if its login or its logout fails. Only finalizing the library closes such a session,
and also all others, so the other tokens are logged in again at their next use.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, TypeVar

import pkcs11
from pkcs11 import exceptions as sdk

from goatherd.providers.cancellation import MOMENT, retrieve_outcome
from goatherd.providers.threads import Threads
from goatherd.signers.pkcs11.address import PKCS11Address

Result = TypeVar("Result")

LOST: Final = (
    sdk.SessionClosed,
    sdk.SessionHandleInvalid,
    sdk.UserNotLoggedIn,
    sdk.DeviceRemoved,
    sdk.DeviceError,
    sdk.TokenNotPresent,
    sdk.SlotIDInvalid,
    sdk.ObjectHandleInvalid,
    sdk.KeyHandleInvalid,
    sdk.GeneralError,
    sdk.FunctionFailed,
)
"""Errors after which a session is opened again: the token was removed, reset, or another program has logged out."""
WRONG_PIN: Final = (sdk.PinIncorrect, sdk.PinInvalid, sdk.PinLenRange)
"""Errors with which a token refuses a PIN."""
_CLOSED: Final = (
    sdk.SessionClosed,
    sdk.SessionHandleInvalid,
    sdk.DeviceRemoved,
    sdk.TokenNotPresent,
    sdk.SlotIDInvalid,
)
"""Errors which mean that a session does not exist any more."""
_TokenID = tuple[int, bytes]
"""The id of the slot and the serial number of the token in it."""


class RefusedPINError(Exception):
    """The token has refused this PIN before, or the process is logged in with another one, so it was not tried again.

    A token locks itself after several wrong PINs.
    """


class TokenNotFoundError(Exception):
    """The PKCS#11 library has no token with the wanted attributes, or several."""


@dataclass(slots=True)
class TokenSession:
    """The logged-in session of one PKCS#11 token, which several signers share.

    Attributes:
        token: The token.
        session: The library's session, logged in.
        pin: A digest of the PIN with which the session was logged in.
        users: The signers that use the session.
    """

    token: _TokenID
    session: Any
    pin: bytes
    users: set[int] = field(default_factory=set)


class Library:
    """One PKCS#11 library of this process, with its thread and sessions. `Library.at` returns the one for a path."""

    _loaded: ClassVar[dict[str, Library]] = {}
    _guard: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: str) -> None:
        self._path = path
        self._threads = Threads("goatherd-pkcs11", 1)
        self._pid = os.getpid()
        self._library: Any = None
        self._sessions: dict[str, TokenSession] = {}  # by `PKCS11Address.place`; those of one token are the same object
        self._accepted: dict[_TokenID, bytes] = {}
        self._refused: set[tuple[_TokenID, bytes]] = set()
        self.opened = 0
        """How often a session was opened and logged in."""

    @classmethod
    def at(cls, path: str) -> Library:
        """Return the PKCS#11 library at a path; it is loaded at the first call into it.

        Paths that lead to the same file have the same library, because a process can initialize it only once.
        """
        with cls._guard:
            if path not in cls._loaded:
                cls._loaded[path] = cls._loaded.setdefault(os.path.realpath(path), cls(path))
            return cls._loaded[path]

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run `work` in the thread of the PKCS#11 library and return its result."""
        if self._pid != os.getpid():
            self._threads.forget()
        return await self._threads.run(lambda: self._run_here(work))

    async def close_session(self, address: PKCS11Address, user: int) -> None:
        """Remove a signer (`user`) from the token's session; close the session if no signer uses it any more.

        Waits a moment at most, in case the library hangs.
        """
        if self._pid == os.getpid():
            leaving = asyncio.wrap_future(self._threads.submit(lambda: self._log_out(address, user)))
            leaving.add_done_callback(retrieve_outcome)
            await asyncio.wait({leaving}, timeout=MOMENT.total_seconds())

    def session_of(self, address: PKCS11Address, pin: bytes, user: int) -> Any:
        """Return the token's session for the signer `user`; open it and log in first if that was not done yet.

        Call this in the library's thread.
        """
        digest = hashlib.sha256(pin).digest()
        held = self._sessions.get(address.place)
        if held is None:
            token = self._find_token(address)
            token_id = token.slot.slot_id, token.serial
            held = next((one for one in self._sessions.values() if one.token == token_id), None)
            if held is None:
                held = TokenSession(token_id, self._log_in(token, token_id, pin, digest), digest)
            self._sessions[address.place] = held
        if held.pin != digest:
            raise RefusedPINError
        held.users.add(user)
        return held.session

    def _log_in(self, token: Any, token_id: _TokenID, pin: bytes, digest: bytes) -> Any:
        # A token locks itself after a few wrong PINs, so a refused one is not sent again.
        if (token_id, digest) in self._refused:
            raise RefusedPINError
        try:
            session = token.open(rw=True, user_pin=pin.decode("utf-8", "replace"))
        except sdk.UserAlreadyLoggedIn:
            # Another part of this process has logged in; its sessions must stay open, so the library is not finalized.
            if self._accepted.get(token_id) != digest:
                self._refused.add((token_id, digest))
                raise RefusedPINError from None
            session = token.open(rw=True)
        except sdk.PKCS11Error as error:
            if isinstance(error, WRONG_PIN):
                self._refused.add((token_id, digest))
            self._close_all()
            raise
        self._accepted[token_id] = digest
        self.opened += 1
        return session

    def _log_out(self, address: PKCS11Address, user: int) -> None:
        held = self._sessions.get(address.place)
        if held is not None:
            held.users.discard(user)
            if not held.users:
                self.drop(address)

    def drop(self, address: PKCS11Address) -> None:
        """Close and forget the token's session, so that the next call opens one. Call this in the library's thread."""
        held = self._sessions.get(address.place)
        if held is None:
            return
        self._sessions = {place: other for place, other in self._sessions.items() if other is not held}
        try:
            held.session.close()
        except _CLOSED:
            pass
        except sdk.PKCS11Error:
            self._close_all()

    def _close_all(self) -> None:
        """Close every session of this process by finalizing the library; the next call initializes it again."""
        self._sessions.clear()
        if self._library is not None:
            with suppress(sdk.PKCS11Error):
                self._library.finalize()

    def _run_here(self, work: Callable[[], Result]) -> Result:
        if self._pid != os.getpid():
            self._close_all()  # this process's copies; closing the parent's sessions would log the parent's token out
            self._pid = os.getpid()
        if self._library is None:
            self._library = pkcs11.lib(self._path)
        if not self._library.initialized:
            self._library.initialize()
        return work()

    def _find_token(self, address: PKCS11Address) -> Any:
        wanted = {
            "label": address.token,
            "serial": address.serial,
            "manufacturer_id": address.manufacturer,
            "model": address.model,
        }
        found = [
            token
            for slot in self._library.get_slots(token_present=True)
            if address.slot in (None, slot.slot_id)
            for token in [slot.get_token()]
            if all(text is None or _text(getattr(token, name)) == text for name, text in wanted.items())
        ]
        if address.place == "the only token":
            found = [token for token in found if token.flags & pkcs11.TokenFlag.TOKEN_INITIALIZED]
        if len(found) != 1:
            raise TokenNotFoundError(
                "no token that the URI names" if not found else "more than one token that the URI names"
            )
        return found[0]


def _text(value: object) -> str:
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).rstrip(" \x00")
