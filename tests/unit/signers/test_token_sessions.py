"""Sessions of PKCS#11 tokens: one login for each token, and no session stays open after a failure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from goatherd.errors import SignerUnavailableError

pkcs11 = pytest.importorskip("pkcs11", reason="NO PYTHON-PKCS11, SO THE PKCS#11 SIGNER IS NOT TESTED: make .venv/.dev")
from goatherd.signers.pkcs11.address import parse_uri  # noqa: E402
from goatherd.signers.pkcs11.library import Library, RefusedPINError  # noqa: E402
from goatherd.signers.pkcs11.signer import PKCS11Signer  # noqa: E402 - after the check that it can be imported
from tests.fakes.pkcs11_fake import PIN, FakeModule, FakeToken  # noqa: E402

sdk = pkcs11.exceptions


class World:
    """A library with two tokens, used by signers that name the first one in different ways."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.token, self.other = FakeToken("goatdb", b"07", 1), FakeToken("other", b"08", 2)
        self.module = FakeModule(self.token, self.other)
        monkeypatch.setattr(pkcs11, "lib", lambda so: self.module)
        self.path = str(path)
        self.library = Library.at(self.path)

    async def session(self, chosen: str = "token=goatdb", pin: str = PIN, user: int = 1) -> Any:
        address = parse_uri(f"pkcs11:{chosen};object=anchor", environment={})
        return await self.library.run(lambda: self.library.session_of(address, pin.encode(), user))

    async def leave(self, chosen: str = "token=goatdb", user: int = 1) -> None:
        await self.library.close_session(parse_uri(f"pkcs11:{chosen};object=anchor", environment={}), user)

    async def drop(self, chosen: str = "token=goatdb") -> None:
        address = parse_uri(f"pkcs11:{chosen};object=anchor", environment={})
        await self.library.run(lambda: self.library.drop(address))

    def signer(self, sign: Callable[[Any, bytes], bytes]) -> PKCS11Signer:
        environment = {"GOATHERD_PKCS11_MODULE": self.path, "GOATHERD_PKCS11_PIN": PIN}
        plugin = PKCS11Signer(
            parse_uri("pkcs11:token=goatdb;object=anchor", environment=environment), environment=environment
        )
        plugin._sign_digest = sign  # type: ignore[method-assign]
        return plugin


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path / "fake.so", monkeypatch)


async def test_uris_that_name_one_token_by_different_attributes_share_one_login(world: World) -> None:
    first = await world.session("token=goatdb", user=1)
    assert await world.session("serial=07", user=2) is first
    assert await world.session("slot-id=1;manufacturer=Goatherd", user=3) is first
    assert await world.session("token=other", user=4) is not first
    assert world.token.logins == [PIN]
    await world.leave("token=goatdb", 1)
    await world.leave("serial=07", 2)
    assert world.token.is_logged_in
    await world.leave("slot-id=1;manufacturer=Goatherd", 3)
    assert (world.token.sessions, world.token.is_logged_in) == ([], False)
    assert world.other.is_logged_in
    assert world.module.finalized == 0


async def test_a_session_that_is_dropped_is_dropped_for_every_uri_of_the_token(world: World) -> None:
    first = await world.session("token=goatdb")
    await world.session("serial=07")
    await world.drop("serial=07")
    second = await world.session("token=goatdb")
    assert second is not first
    assert await world.session("serial=07") is second
    assert world.token.sessions == [second]


async def test_paths_that_lead_to_one_library_share_it(world: World, tmp_path: Path) -> None:
    Path(world.path).touch()
    (tmp_path / "link.so").symlink_to(world.path)
    assert Library.at(str(tmp_path / "link.so")) is Library.at(world.path)
    assert Library.at(str(tmp_path / "another.so")) is not Library.at(world.path)


@pytest.mark.parametrize("error", ["GeneralError", "FunctionFailed", "UserNotLoggedIn"])
async def test_a_session_whose_logout_fails_is_closed_and_the_next_call_logs_in(world: World, error: str) -> None:
    failed = False

    def sign(session: Any, digest: bytes) -> bytes:
        nonlocal failed
        if not failed:
            failed = True
            raise getattr(sdk, error)
        assert session in world.token.sessions
        return bytes(96)

    world.token.logout_error = getattr(sdk, error)()
    async with world.signer(sign) as plugin:
        with pytest.raises(SignerUnavailableError, match="the token or its session is gone") as gone:
            await plugin.sign(b"text")
        assert "SOFTHSM2_CONF" in gone.value.hint, "a library without its configuration fails in the same way"
        assert world.token.sessions == []
        world.token.logout_error = None
        assert await plugin.sign(b"text") == bytes(96)
        assert len(world.token.sessions) == 1
    assert (world.token.sessions, world.token.is_logged_in) == ([], False)


async def test_the_other_tokens_are_logged_in_again_after_all_sessions_were_closed(world: World) -> None:
    before = await world.session("token=other")
    await world.session()
    world.token.logout_error = sdk.GeneralError()
    await world.drop()
    after = await world.session("token=other")
    assert after is not before
    assert world.other.sessions == [after]


async def test_a_session_that_no_longer_exists_leaves_those_of_other_tokens_open(world: World) -> None:
    other = await world.session("token=other")
    await world.session()
    world.token.sessions.clear()  # as after the token was removed
    world.token.is_logged_in = False
    await world.drop()
    assert world.other.sessions == [other]
    assert world.token.sessions == [await world.session()]
    assert world.module.finalized == 0


async def test_a_failed_login_leaves_no_session_open(world: World) -> None:
    for error in (sdk.DeviceError(), sdk.PinLocked(), sdk.FunctionFailed()):
        world.token.login_error = error
        with pytest.raises(type(error)):
            await world.session()
        assert world.token.sessions == []
    world.token.login_error = None
    assert world.token.sessions == [await world.session()]


async def test_a_pin_that_was_refused_is_not_sent_again_for_another_uri_of_the_token(world: World) -> None:
    with pytest.raises(sdk.PinIncorrect):
        await world.session("token=goatdb", "wrong")
    for chosen in ("token=goatdb", "serial=07"):
        with pytest.raises(RefusedPINError):
            await world.session(chosen, "wrong")
    assert world.token.logins == ["wrong"]
    assert world.token.sessions == []
    assert world.token.sessions == [await world.session()]
    with pytest.raises(RefusedPINError):
        await world.session("serial=07", "another")
    assert world.token.logins == ["wrong", PIN]


async def test_a_token_to_which_another_part_of_the_process_has_logged_in_is_used_with_the_pin_that_it_accepted(
    world: World,
) -> None:
    await world.session()
    await world.leave()
    foreign = world.token.open(rw=True, user_pin=PIN)
    session = await world.session()
    assert session in world.token.sessions
    await world.leave()
    assert session not in world.token.sessions
    assert foreign in world.token.sessions  # closing ours has not logged it out
    assert world.token.is_logged_in
    assert world.module.finalized == 0


async def test_a_pin_that_cannot_be_checked_because_the_process_is_logged_in_is_refused_and_sent_once(
    world: World,
) -> None:
    foreign = world.token.open(rw=True, user_pin=PIN)
    for _ in range(20):
        with pytest.raises(RefusedPINError):
            await world.session(pin="not-known")
    assert world.token.logins == [PIN, "not-known"]
    assert foreign in world.token.sessions
    assert len(world.token.sessions) == 2  # python-pkcs11 leaves that of the one login open
    assert world.token.is_logged_in
