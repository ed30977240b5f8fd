"""AWS-LC gives the same verdicts as OpenSSL, and is used only where it is faster."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goatherd import trust, verifiers
from goatherd.crypto import PrivateKey, PublicKey, keys
from goatherd.crypto.keys import ImportedKey, OtherLibrary, verify_with
from goatherd.errors import InvalidSignatureError, UnknownSignerError
from goatherd.trust import TrustPool
from goatherd.verifiers import use_aws_lc, verification_threads
from tests.deadlines import HANG
from tests.done_once import sign_and_verify_each_time
from tests.vectors import runner

from .goats import ORG, commit_by, introduction, owned, root

KEY = PrivateKey.generate()
DATA = b"a commit"
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973


@pytest.fixture(autouse=True)
def every_signature_is_verified() -> Iterator[None]:
    """Verify again what this process has verified before; afterwards, restore the library that was in use."""
    before = keys._other
    with sign_and_verify_each_time():
        yield
    verify_with(before)


def numbers(signature: bytes) -> tuple[int, int]:
    return int.from_bytes(signature[:48], "big"), int.from_bytes(signature[48:], "big")


def signature_of(r: int, s: int) -> bytes:
    return r.to_bytes(48, "big") + s.to_bytes(48, "big")


def verdict(signature: bytes, data: bytes = DATA, raw: bytes = KEY.public_key.raw) -> bool:
    try:
        PublicKey(raw).verify(signature, data)
    except InvalidSignatureError:
        return False
    return True


def verdicts(signature: bytes, data: bytes = DATA, raw: bytes = KEY.public_key.raw) -> tuple[bool, bool]:
    """Return the verdict of AWS-LC, and that of OpenSSL."""
    assert use_aws_lc()
    found = verdict(signature, data, raw)
    verify_with(None)
    return found, verdict(signature, data, raw)


class Counted:
    """A key that records each use."""

    def __init__(self, key: ImportedKey, uses: list[bytes]) -> None:
        self._key = key
        self._uses = uses

    def verify(self, digest: bytes, signature: bytes) -> bool:
        self._uses.append(signature)
        return self._key.verify(digest, signature)


def count_uses(library: OtherLibrary | None) -> list[bytes]:
    """Verify with this library, and return a list of the signatures that it will have verified."""
    assert library is not None
    uses: list[bytes] = []
    verify_with(OtherLibrary(lambda der: Counted(library.import_key(der), uses), library.is_preferred))
    return uses


R, S = numbers(KEY.sign(DATA))


@pytest.mark.parametrize(
    ("signature", "is_valid"),
    [
        pytest.param(signature_of(R, S), True, id="valid"),
        pytest.param(signature_of(R, ORDER - S), True, id="mirrored"),
        pytest.param(signature_of(R, S + 1), False, id="next s"),
        pytest.param(signature_of(0, S), False, id="r zero"),
        pytest.param(signature_of(R, 0), False, id="s zero"),
        pytest.param(signature_of(0, 0), False, id="both zero"),
        pytest.param(signature_of(1, 1), False, id="both one"),
        pytest.param(signature_of(R, ORDER), False, id="s is the order"),
        pytest.param(signature_of(ORDER, S), False, id="r is the order"),
        pytest.param(signature_of(2**384 - 1, 2**384 - 1), False, id="all bits"),
        pytest.param(signature_of(S, R), False, id="exchanged"),
    ],
)
def test_signatures_at_the_edges_of_their_range_get_the_same_verdict(signature: bytes, is_valid: bool) -> None:
    assert verdicts(signature) == (is_valid, is_valid)


@given(st.binary(max_size=300), st.integers(0, 767))
@settings(deadline=None, max_examples=30)
def test_signatures_of_any_data_get_the_same_verdict_and_so_do_changed_ones(data: bytes, bit: int) -> None:
    signature = KEY.sign(data)
    assert verdicts(signature, data) == (True, True)
    changed = bytearray(signature)
    changed[bit // 8] ^= 1 << bit % 8
    assert verdicts(bytes(changed), data) == (False, False)
    assert verdicts(signature, data + b"x") == (False, False)


@pytest.mark.parametrize(
    "raw",
    [KEY.public_key.raw[:-1] + bytes([KEY.public_key.raw[-1] ^ 1]), bytes(96), b"\xff" * 96],
    ids=["off the curve", "zero", "out of range"],
)
def test_a_key_that_is_no_point_verifies_nothing(raw: bytes) -> None:
    assert verdicts(KEY.sign(DATA), DATA, raw) == (False, False)


@pytest.mark.parametrize(
    ("cores", "in_main_thread", "in_worker"), [(1, True, True), (2, True, True), (3, True, False), (64, True, False)]
)
def test_worker_threads_leave_it_to_openssl_where_there_are_cores_for_several(
    monkeypatch: pytest.MonkeyPatch, cores: int, in_main_thread: bool, in_worker: bool
) -> None:
    monkeypatch.setattr(verifiers, "count_cores", lambda: cores)
    assert use_aws_lc()
    uses = count_uses(keys._other)
    signature = KEY.sign(DATA)

    def is_used() -> bool:
        before = len(uses)
        PublicKey(KEY.public_key.raw).verify(signature, DATA)
        return len(uses) > before

    assert is_used() is in_main_thread
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(is_used).result() is in_worker


@pytest.mark.parametrize("cores", [1, 2])
def test_on_few_cores_one_thread_verifies_and_only_when_the_verdicts_are_needed(
    monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    monkeypatch.setattr(verifiers, "count_cores", lambda: cores)
    assert use_aws_lc()
    threads: list[int] = []
    with ThreadPoolExecutor(4) as pool:
        begun = trust._start_verification(lambda _: threads.append(threading.get_ident()), range(100), pool)
        pool.submit(lambda: None).result()
        assert threads == []
        assert len(list(chain.from_iterable(begun))) == 100
    assert len(threads) == 100
    assert len(set(threads) - {threading.get_ident()}) == 1


def test_on_more_cores_several_threads_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifiers, "count_cores", lambda: 3)
    assert use_aws_lc()
    both = threading.Barrier(2)

    def check(number: int) -> int:
        if number in (0, trust._CHUNK):  # the first of two parts
            both.wait(HANG)
        return number

    with ThreadPoolExecutor(2) as pool:
        assert trust.verify_in_threads(check, range(2 * trust._CHUNK), pool) == list(range(2 * trust._CHUNK))


@pytest.mark.parametrize("cores", [1, 2, 3])
def test_a_large_batch_has_the_same_verdicts_in_the_same_order(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    monkeypatch.setattr(verifiers, "count_cores", lambda: cores)
    a, authors = root("a"), [owned("x"), owned("y"), owned("stranger")]
    by = [2 if index % 11 == 10 else index % 2 for index in range(150)]
    commits = [commit_by(authors[one], f"k{index}", {"n": index}) for index, one in enumerate(by)]
    for index in range(6, 150, 7):
        commits[index] = commits[index].with_signature(commits[index % 2].signature or "")
    pool = TrustPool(org=ORG, current=a, roots=[a.session])
    forged = introduction(owned("forged"), a).with_signature(introduction(owned("x"), a).signature or "")
    pool.offer_session_commits([introduction(owned("x"), a), forged, introduction(owned("y"), a)])
    with verification_threads("test") as executor:
        found = pool.verify_commits(commits, executor)
        pending = pool.prepare_pending(3)
        pending.run(executor)
        pool.conclude_verification(pending)
    assert [type(verdict) for verdict in found] == [type(verdict) for verdict in pool.verify_commits(commits)]
    assert {type(verdict) for verdict in found} == {type(None), UnknownSignerError, InvalidSignatureError}
    assert [pool.knows_session(owned(name).id) for name in ("x", "y", "forged")] == [True, True, False]


def test_without_the_library_openssl_verifies(monkeypatch: pytest.MonkeyPatch) -> None:
    verify_with(None)
    monkeypatch.setitem(sys.modules, "awscrt.crypto", None)
    assert not use_aws_lc()
    assert keys._other is None
    assert verdict(KEY.sign(DATA))


def test_a_library_that_fails_is_no_verdict() -> None:
    def fail(_: bytes) -> ImportedKey:
        raise RuntimeError("out of memory")

    verify_with(OtherLibrary(fail, lambda: True))
    assert verdict(KEY.sign(DATA))
    assert not verdict(KEY.sign(DATA + b"x"))


def test_many_threads_verify_with_one_key() -> None:
    assert use_aws_lc()
    texts = [hashlib.sha256(bytes([number])).digest() for number in range(64)]
    signatures = [KEY.sign(text) for text in texts]
    key = PublicKey(KEY.public_key.raw)

    def check(number: int) -> bool:
        key.verify(signatures[number], texts[number])
        with pytest.raises(InvalidSignatureError):
            key.verify(signatures[number], texts[number - 1])
        return True

    run: Callable[[int], bool] = check
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(64)))


@pytest.mark.slow
def test_signatures_that_goatdb_made_get_the_verdict_that_the_vectors_name() -> None:
    assert use_aws_lc()
    uses = count_uses(keys._other)
    assert runner.main([str(Path(runner.__file__).parent)]) == 0
    assert len(uses) > 900
