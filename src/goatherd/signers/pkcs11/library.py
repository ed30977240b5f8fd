"""Load a token's PKCS#11 library once per process, call it from one thread, and open one session for each token.

python-pkcs11 initializes a library without locking, so only one thread may call it at a time: each `Library` has a
thread for all its calls. All signers of a library share that thread, and all signers of a token share one session,
because a login applies to the whole process. The session is closed when its last signer is closed.

A child process after a fork initializes the library again, and opens its own sessions. After an error which means that
a session or the token no longer exists, the session is dropped, so that the next attempt logs in again.
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
from goatherd.signers.pkcs11.address import PKCS11Address
from goatherd.signers.threads import Threads

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


class RefusedPINError(Exception):
    """The token has refused this PIN before, or is logged in with another one, so the PIN was not tried again.

    A token locks itself after several wrong PINs.
    """


class TokenNotFoundError(Exception):
    """The PKCS#11 library has no token with the wanted attributes, or several."""


@dataclass(slots=True)
class TokenSession:
    """The logged-in session of one PKCS#11 token, which several signers share.

    Attributes:
        session: The library's session, logged in.
        pin: A digest of the PIN with which the session was logged in.
        users: The signers that use the session.
    """

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
        self._sessions: dict[str, TokenSession] = {}
        self._refused: set[tuple[str, bytes]] = set()
        self.opened = 0
        """How often a session was opened and logged in."""

    @classmethod
    def at(cls, path: str) -> Library:
        """Return the PKCS#11 library at a path; it is loaded at the first call into it."""
        with cls._guard:
            return cls._loaded.setdefault(path, cls(path))

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
            leaving = asyncio.wrap_future(self._threads.submit(lambda: self._leave(address, user)))
            leaving.add_done_callback(retrieve_outcome)
            await asyncio.wait({leaving}, timeout=MOMENT.total_seconds())

    def session_of(self, address: PKCS11Address, pin: bytes, user: int) -> Any:
        """Return the token's session for the signer `user`; open it and log in first if that was not done yet.

        Call this in the library's thread.
        """
        digest = hashlib.sha256(pin).digest()
        name = address.place
        held = self._sessions.get(name)
        if held is None:
            # A token locks itself after a few wrong PINs, so a refused one is not sent again.
            if (name, digest) in self._refused:
                raise RefusedPINError
            token = self._find_token(address)
            try:
                session = token.open(rw=True, user_pin=pin.decode("utf-8", "replace"))
            except (sdk.PinIncorrect, sdk.PinInvalid, sdk.PinLenRange):
                self._refused.add((name, digest))
                raise
            self.opened += 1
            held = self._sessions[name] = TokenSession(session, digest)
        if held.pin != digest:
            raise RefusedPINError
        held.users.add(user)
        return held.session

    def _leave(self, address: PKCS11Address, user: int) -> None:
        held = self._sessions.get(address.place)
        if held is not None:
            held.users.discard(user)
            if not held.users:
                self.drop(address)

    def drop(self, address: PKCS11Address) -> None:
        """Close and forget the token's session, so that the next call opens one. Call this in the library's thread."""
        held = self._sessions.pop(address.place, None)
        if held is not None:
            with suppress(sdk.PKCS11Error):
                held.session.close()

    def _run_here(self, work: Callable[[], Result]) -> Result:
        if self._pid != os.getpid():
            self._sessions.clear()  # they are the parent's; closing them would log the parent's token out
            self._pid = os.getpid()
            if self._library is not None:
                with suppress(sdk.PKCS11Error):
                    self._library.finalize()
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
            raise TokenNotFoundError("no such token" if not found else "more than one such token")
        return found[0]


def _text(value: object) -> str:
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).rstrip(" \x00")
