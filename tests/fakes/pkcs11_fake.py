"""A PKCS#11 library in memory, for tests, as python-pkcs11 presents one: slots, tokens, sessions and logins.

What it is: `FakeModule`, with the rules of logins: a login belongs to the process and a token, not to a session. As in
python-pkcs11 0.10.1, the session that was opened for a login stays open if the login fails, and a session stays open if
its logout fails. What it is not: SoftHSM; it has no keys, but it fails on demand.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pkcs11 import TokenFlag
from pkcs11 import exceptions as sdk

PIN = "PIN-of-the-fake-1234"


@dataclass(eq=False)
class FakeSession:
    """An open session. With `has_login`, closing it logs the process out first."""

    token: FakeToken
    has_login: bool

    def close(self) -> None:
        if self not in self.token.sessions:
            raise sdk.SessionHandleInvalid
        if self.has_login:
            if self.token.logout_error is not None:
                raise self.token.logout_error
            if not self.token.is_logged_in:
                raise sdk.UserNotLoggedIn
            self.token.is_logged_in = False
        self.token.sessions.remove(self)


@dataclass(frozen=True)
class FakeSlot:
    """A slot with its token."""

    slot_id: int
    token: FakeToken

    def get_token(self) -> FakeToken:
        return self.token


@dataclass(eq=False)
class FakeToken:
    """A token with the PIN `PIN`.

    Attributes:
        sessions: The open sessions of the process.
        is_logged_in: Whether the process is logged in.
        login_error: What a login raises, while it is set.
        logout_error: What a logout raises, while it is set.
        logins: The PINs that were sent.
    """

    label: str
    serial: bytes
    slot_id: int
    manufacturer_id: str = "Goatherd"
    model: str = "fake"
    flags: TokenFlag = TokenFlag.TOKEN_INITIALIZED
    sessions: list[FakeSession] = field(default_factory=list)
    is_logged_in: bool = False
    login_error: Exception | None = None
    logout_error: Exception | None = None
    logins: list[str] = field(default_factory=list)

    @property
    def slot(self) -> FakeSlot:
        return FakeSlot(self.slot_id, self)

    def open(self, rw: bool = False, user_pin: str | None = None) -> FakeSession:
        session = FakeSession(self, user_pin is not None)
        self.sessions.append(session)
        if user_pin is not None:
            self.logins.append(user_pin)
            if self.login_error is not None:
                raise self.login_error
            if self.is_logged_in:
                raise sdk.UserAlreadyLoggedIn
            if user_pin != PIN:
                raise sdk.PinIncorrect
            self.is_logged_in = True
        return session


class FakeModule:
    """A PKCS#11 library with tokens."""

    def __init__(self, *tokens: FakeToken) -> None:
        self.tokens = tokens
        self.initialized = False
        self.finalized = 0

    def initialize(self) -> None:
        self.initialized = True

    def finalize(self) -> None:
        self.initialized = False
        self.finalized += 1
        for token in self.tokens:
            token.sessions.clear()
            token.is_logged_in = False

    def get_slots(self, token_present: bool = False) -> list[FakeSlot]:
        return [token.slot for token in self.tokens]
