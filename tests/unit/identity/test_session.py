"""Sessions, and signatures over data, requests and commits."""

from __future__ import annotations

import copy
import json
import pickle
import traceback
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goatherd.crypto import PrivateKey
from goatherd.errors import (
    ClockSkewError,
    DecodeError,
    EncodeError,
    ExpiredSessionError,
    GoatherdError,
    InvalidSignatureError,
    KeyMismatchError,
    UnknownSignerError,
    VerificationError,
)
from goatherd.identity.session import (
    OwnedSession,
    Session,
    check_request_time,
    is_statement_signed,
    parse_signature,
    sign_commit,
    sign_data,
    sign_request,
    signed_text,
    verify_commit,
    verify_data,
    verify_request,
)
from goatherd.wire.base32 import base32_decode, base32_encode
from goatherd.wire.commit import Commit, new_commit
from goatherd.wire.javascript_values import UNDEFINED, exact_date_ms
from goatherd.wire.json import to_json

NOW = 1_735_689_600_000
OWNED = OwnedSession.generate(session_id="s" * 24, owner="root", now_ms=NOW)
OTHER = OwnedSession.generate(session_id="t" * 24, owner=None, now_ms=NOW)
EXPIRATION = OWNED.session.expiration_ms


def envelope_of(signature: str) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(base32_decode(signature))
    return decoded


def repacked(signature: str, **members: Any) -> str:
    envelope = {**envelope_of(signature), **members}
    return base32_encode(to_json({name: value for name, value in envelope.items() if value is not ...}).encode())


class TestSessions:
    @given(now_ms=st.integers(NOW, 4 * NOW))
    def test_an_exact_expiration_is_the_same_after_it_was_written_and_read_also_after_2038(self, now_ms: int) -> None:
        expiration_ms = exact_date_ms(now_ms)
        written = json.loads(
            json.dumps(
                Session(
                    id="s" * 24, public_key=OWNED.session.public_key, owner=None, expiration_ms=expiration_ms
                ).to_json()
            )
        )
        assert Session.from_json(written).expiration_ms == expiration_ms
        assert now_ms - 1000 < expiration_ms <= now_ms

    def test_live_thirty_days_unless_told_otherwise(self) -> None:
        assert EXPIRATION - NOW == 30 * 86_400_000
        short = OwnedSession.generate(session_id="a", owner=None, now_ms=NOW, lifetime=timedelta(seconds=1.5))
        assert short.session.expiration_ms == NOW + 1500

    def test_expire_one_millisecond_after_their_expiration(self) -> None:
        assert not OWNED.session.is_expired(EXPIRATION)
        assert OWNED.session.is_expired(EXPIRATION + 1)

    def test_read_back_and_keep_unknown_members_out_of_what_is_published(self) -> None:
        encoded = {**OWNED.session.to_json(), "note": "x"}
        session = Session.from_json(encoded)
        assert session == OWNED.session
        assert session.extra == {"note": "x"}
        assert session.to_json() == OWNED.session.to_json()

    def test_owned_ones_read_back_with_members_in_goatdbs_order(self) -> None:
        encoded = OWNED.to_secret_json()
        assert list(encoded) == ["id", "publicKey", "privateKey", "owner", "expiration"]
        again = OwnedSession.from_json(encoded)
        assert again.session == OWNED.session
        assert sign_data(again, now_ms=NOW, external=1) == sign_data(OWNED, now_ms=NOW, external=1)

    def test_anonymous_ones_have_no_owner_member(self) -> None:
        assert "owner" not in OTHER.session.to_json()
        assert "owner" not in OTHER.to_secret_json()
        assert not OTHER.session.is_root

    @pytest.mark.parametrize(
        "change",
        [
            {"id": None},
            {"id": ""},
            {"id": 5},
            {"owner": 5},
            {"expiration": ...},
            {"expiration": None},
            {"expiration": "soon"},
            {"expiration": True},
            {"publicKey": None},
            {"publicKey": ...},
            {"publicKey": []},
        ],
    )
    def test_malformed_ones_are_refused(self, change: dict[str, Any]) -> None:
        encoded = {name: v for name, v in {**OWNED.session.to_json(), **change}.items() if v is not ...}
        with pytest.raises(DecodeError):
            Session.from_json(encoded)

    @pytest.mark.parametrize("expiration", [1.5, "1.5", 1.5e12])
    def test_an_expiration_may_be_text_or_milliseconds(self, expiration: Any) -> None:
        session = Session.from_json({**OWNED.session.to_json(), "expiration": expiration})
        assert session.expiration_ms == (1500 if expiration != 1.5e12 else 1.5e12)

    def test_an_owned_one_needs_its_own_private_key(self) -> None:
        with pytest.raises(DecodeError):
            OwnedSession.from_json(OWNED.session.to_json())
        with pytest.raises(KeyMismatchError):
            OwnedSession.from_json({**OWNED.to_secret_json(), "publicKey": OTHER.session.public_key.to_jwk()})

    def test_a_key_that_lies_elsewhere_cannot_be_exported(self) -> None:
        class Elsewhere:
            public_key = OWNED.session.public_key

            def sign(self, data: bytes) -> bytes:
                return OWNED.signer.sign(data)

        remote = OwnedSession(session=OWNED.session, signer=Elsewhere())
        assert sign_data(remote, now_ms=NOW) == sign_data(OWNED, now_ms=NOW)
        with pytest.raises(TypeError):
            remote.to_secret_json()


class TestSecrecy:
    def test_no_text_of_an_owned_session_holds_its_key(self) -> None:
        d = OWNED.to_secret_json()["privateKey"]["d"]
        for text in (repr(OWNED), str(OWNED), f"{[OWNED]}", repr(OWNED.session)):
            assert d not in text

    def test_it_is_not_pickled_or_copied(self) -> None:
        with pytest.raises(TypeError):
            pickle.dumps(OWNED)
        with pytest.raises(TypeError):
            copy.deepcopy(OWNED)

    @pytest.mark.parametrize("change", [{"id": 5}, {"expiration": None}, {"publicKey": {}}, {"privateKey": {"d": 5}}])
    def test_no_error_quotes_it(self, change: dict[str, Any]) -> None:
        encoded = OWNED.to_secret_json()
        d = encoded["privateKey"]["d"]
        with pytest.raises(GoatherdError) as caught:
            OwnedSession.from_json({**encoded, **change})
        assert d not in "".join(traceback.format_exception(caught.value))

    def test_the_published_form_has_no_private_member_even_when_it_came_with_one(self) -> None:
        session = Session.from_json(OWNED.to_secret_json())
        assert "privateKey" not in to_json(session.to_json())
        assert session.extra == {}


class TestData:
    def test_a_signature_has_goatdbs_form(self) -> None:
        signature = sign_data(OWNED, now_ms=NOW, external={"b": [1], "a": "x"}, embedded={"q": 1})
        assert signature.startswith("pmrgsir2e")
        assert signature == signature.lower()
        envelope = envelope_of(signature)
        assert list(envelope) == ["i", "s", "ts", "d"]
        assert (envelope["i"], envelope["ts"], envelope["d"]) == (OWNED.id, NOW, {"q": 1})
        assert len(envelope["s"]) == 160
        assert envelope["s"].endswith("_=====")

    def test_the_text_is_the_stable_form_of_the_container(self) -> None:
        assert signed_text("i", {"b": 1, "a": [2]}, {"c": 3}) == (
            '{"extData":{"a":{"0":2},"b":1},"sessionId":"i","sigData":{"c":3}}'
        )

    @pytest.mark.parametrize("falsy", [None, UNDEFINED, False, 0, -0.0, float("nan"), ""])
    def test_falsy_data_are_none(self, falsy: Any) -> None:
        assert signed_text("i", falsy, falsy) == '{"sessionId":"i"}'

    @pytest.mark.parametrize("empty", [{}, []])
    def test_empty_containers_are_data(self, empty: Any) -> None:
        assert signed_text("i", empty, empty) == '{"extData":{},"sessionId":"i","sigData":{}}'

    def test_a_null_inside_cannot_be_signed_nor_verified(self) -> None:
        with pytest.raises(EncodeError):
            sign_data(OWNED, now_ms=NOW, external={"a": None})
        with pytest.raises(InvalidSignatureError):
            verify_data(OWNED.session, sign_data(OWNED, now_ms=NOW), external={"a": None})
        with pytest.raises(InvalidSignatureError):
            verify_data(OWNED.session, repacked(sign_data(OWNED, now_ms=NOW), d={"a": None}))

    @given(st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers(-99, 99) | st.booleans(), max_size=4))
    @settings(deadline=None, max_examples=25)
    def test_what_was_signed_verifies_and_nothing_else_does(self, data: dict[str, Any]) -> None:
        signature = sign_data(OWNED, now_ms=NOW, external=data)
        verify_data(OWNED.session, signature, external=data)
        with pytest.raises(InvalidSignatureError):
            verify_data(OWNED.session, signature, external={**data, "more": 1})
        with pytest.raises(UnknownSignerError):
            verify_data(OTHER.session, signature, external=data)

    @pytest.mark.parametrize(
        "ts", [EXPIRATION + 1, float(EXPIRATION + 1), str(EXPIRATION + 1), f" {EXPIRATION + 1}\n", [EXPIRATION + 1]]
    )
    def test_an_envelope_from_after_the_expiration_is_refused(self, ts: Any) -> None:
        with pytest.raises(ExpiredSessionError):
            verify_data(OWNED.session, repacked(sign_data(OWNED, now_ms=NOW), ts=ts))

    @pytest.mark.parametrize("ts", [..., EXPIRATION, None, "soon", "", "1e3", True, {}, [1, 2], -1, "0xZ", "1_000"])
    def test_any_other_envelope_time_is_not(self, ts: Any) -> None:
        verify_data(OWNED.session, repacked(sign_data(OWNED, now_ms=NOW), ts=ts))

    def test_null_counts_as_zero(self) -> None:
        ancient = Session(id=OWNED.id, public_key=OWNED.session.public_key, owner=None, expiration_ms=-1)
        with pytest.raises(ExpiredSessionError):
            verify_data(ancient, repacked(sign_data(OWNED, now_ms=NOW), ts=None))

    @pytest.mark.parametrize(("text", "value"), [("0x10", 16), ("0b11", 3), ("0o17", 15), (".5", 0.5), ("1.e1", 10)])
    def test_text_is_converted_as_javascript_does(self, text: str, value: float) -> None:
        strict = Session(id=OWNED.id, public_key=OWNED.session.public_key, owner=None, expiration_ms=0)
        assert value > 0
        with pytest.raises(ExpiredSessionError):
            verify_data(strict, repacked(sign_data(OWNED, now_ms=NOW), ts=text))

    @pytest.mark.parametrize("data", [0, "", False, None])
    def test_falsy_embedded_data_are_none(self, data: Any) -> None:
        verify_data(OWNED.session, repacked(sign_data(OWNED, now_ms=NOW), d=data))


class TestParsing:
    @pytest.mark.parametrize(
        "envelope",
        [
            b"",
            b"null",
            b"[]",
            b"5",
            b"{",
            b"{}",
            b'{"i":"x"}',
            b'{"i":"","s":""}',
            b'{"i":5,"s":""}',
            b'{"i":"x","s":5}',
            b'{"i":"x","s":"!"}',
        ],
    )
    def test_malformed_envelopes_have_one_name(self, envelope: bytes) -> None:
        with pytest.raises(InvalidSignatureError):
            parse_signature(base32_encode(envelope))

    @pytest.mark.parametrize("text", ["", "!", "me", "a" * 9, "ø", "[" * 80])
    def test_what_is_no_base32_has_the_same(self, text: str) -> None:
        with pytest.raises(InvalidSignatureError):
            parse_signature(text)

    def test_nesting_without_end_has_the_same(self) -> None:
        with pytest.raises(InvalidSignatureError):
            parse_signature(base32_encode(b'{"i":"x","s":"","d":' + b"[" * 5000 + b"]" * 5000 + b"}"))

    @given(st.data())
    @settings(deadline=None, max_examples=60)
    def test_no_damage_raises_anything_but_a_named_error(self, data: st.DataObject) -> None:
        signature = sign_data(OWNED, now_ms=NOW, external={"a": 1}, embedded={"b": 2})
        position = data.draw(st.integers(0, len(signature) - 1))
        damaged = signature[:position] + data.draw(st.text(max_size=2)) + signature[position + 1 :]
        try:
            verify_data(OWNED.session, damaged, external={"a": 1})
        except VerificationError:
            return
        assert parse_signature(damaged).signature == parse_signature(signature).signature

    def test_letter_case_padding_and_spare_bits_do_not_matter(self) -> None:
        signature = sign_data(OWNED, now_ms=NOW, external=1)
        for same in (signature.upper(), signature.replace("_", "="), repacked(signature, zzz=1)):
            verify_data(OWNED.session, same, external=1)


def test_a_signature_of_a_statement_covers_nothing_else() -> None:
    statement = {"goatherd": "endorsement/1"}
    signature = sign_data(OWNED, now_ms=NOW, external=statement)
    assert is_statement_signed(signature, by=OWNED.session, statement=statement)
    assert not is_statement_signed(signature, by=OWNED.session, statement={**statement, "more": 1})
    with_more = sign_data(OWNED, now_ms=NOW, external=statement, embedded={"more": 1})
    verify_data(OWNED.session, with_more, external=statement)
    assert not is_statement_signed(with_more, by=OWNED.session, statement=statement)


class TestNumbersInSignatures:
    @pytest.mark.parametrize("text", ["1" * 41, "1" * 60_000 + "x", " " * 60_000, "0x" + "f" * 60_000])
    def test_a_text_longer_than_any_number_that_is_meant_is_refused(self, text: str) -> None:
        envelope = parse_signature(sign_data(OWNED, now_ms=NOW, embedded={"id": "n", "ts": NOW}))
        with pytest.raises(InvalidSignatureError, match="more than 40 characters"):
            verify_data(OWNED.session, envelope._replace(ts=text))
        with pytest.raises(ClockSkewError):
            check_request_time(envelope._replace(data={"ts": text}), now_ms=NOW)


class TestRequests:
    def test_count_for_three_minutes_either_way(self) -> None:
        signature = sign_request(OWNED, now_ms=NOW, nonce="n" * 24)
        for now_ms in (NOW - 180_000, NOW, NOW + 180_000):
            verify_request(OWNED.session, signature, now_ms=now_ms)
        for now_ms in (NOW - 180_001, NOW + 180_001):
            with pytest.raises(ClockSkewError):
                verify_request(OWNED.session, signature, now_ms=now_ms)

    def test_verdicts_are_not_remembered(self) -> None:
        signature = sign_request(OWNED, now_ms=NOW, nonce="n")
        verify_request(OWNED.session, signature, now_ms=NOW)
        with pytest.raises(ClockSkewError):
            verify_request(OWNED.session, signature, now_ms=NOW + 10**6)
        verify_request(OWNED.session, signature, now_ms=NOW)

    def test_the_time_may_be_numeric_text(self) -> None:
        verify_request(OWNED.session, sign_data(OWNED, now_ms=NOW, embedded={"ts": str(NOW)}), now_ms=NOW)

    @pytest.mark.parametrize(
        "embedded",
        [{"id": "x"}, {"ts": "soon"}, {"ts": {}}, "text", [1], {"ts": float("inf")}, {"ts": f"0x{'f' * 400}"}],
    )
    def test_no_usable_time_is_refused(self, embedded: Any) -> None:
        with pytest.raises(ClockSkewError):
            verify_request(OWNED.session, sign_data(OWNED, now_ms=NOW, embedded=embedded), now_ms=NOW)

    def test_without_embedded_data_it_is_no_request_signature(self) -> None:
        with pytest.raises(InvalidSignatureError):
            verify_request(OWNED.session, sign_data(OWNED, now_ms=NOW, external=1), now_ms=NOW)

    def test_an_expired_session_requests_nothing_even_back_dated(self) -> None:
        late = EXPIRATION + 1
        signature = repacked(sign_request(OWNED, now_ms=late, nonce="n"), ts=NOW)
        with pytest.raises(ExpiredSessionError):
            verify_request(OWNED.session, signature, now_ms=late)

    def test_another_key_with_the_same_id_is_refused(self) -> None:
        impostor = OwnedSession(session=OWNED.session, signer=PrivateKey.generate())
        with pytest.raises(InvalidSignatureError):
            verify_request(OWNED.session, sign_request(impostor, now_ms=NOW, nonce="n"), now_ms=NOW)


class TestCommits:
    def make(self, **members: Any) -> Commit:
        options: dict[str, Any] = {"ts": NOW, "connection": "c" * 24, "data": {"a": 1}, **members}
        return new_commit(commit_id="i", key="k", session_id=OWNED.id, org="o", schema_marker="note/1", **options)

    def test_verify_after_a_journey(self) -> None:
        sent = to_json(sign_commit(OWNED, self.make(), now_ms=NOW).to_json())
        verify_commit(OWNED.session, Commit.from_json(json.loads(sent), org="o"))

    def test_of_another_organisation_do_not_verify(self) -> None:
        sent = sign_commit(OWNED, self.make(), now_ms=NOW).to_json()
        with pytest.raises(InvalidSignatureError):
            verify_commit(OWNED.session, Commit.from_json(sent, org="elsewhere"))

    @pytest.mark.parametrize("member", ["ver", "id", "k", "s", "ts", "cid", "p", "ac", "mb", "ml", "af", "c"])
    def test_every_signed_member_counts(self, member: str) -> None:
        sent = sign_commit(OWNED, self.make(), now_ms=NOW).to_json()
        other = {
            "ver": 1,
            "id": "x",
            "k": "x",
            "s": "x",
            "ts": NOW + 1,
            "cid": "x",
            "p": ["x"],
            "ac": 1,
            "mb": "x",
            "ml": "x",
            "af": {"d": "AA==", "s": [1]},
            "c": {"r": {**sent["c"]["r"], "d": {"a": 2}}},
        }
        with pytest.raises(InvalidSignatureError):
            verify_commit(OWNED.session, Commit.from_json({**sent, member: other[member]}, org="o"))

    def test_unsigned_or_foreign_ones_are_refused(self) -> None:
        with pytest.raises(InvalidSignatureError):
            verify_commit(OWNED.session, self.make())
        with pytest.raises(UnknownSignerError):
            verify_commit(OTHER.session, sign_commit(OWNED, self.make(), now_ms=NOW))

    def test_signed_after_the_expiration_are_refused(self) -> None:
        with pytest.raises(ExpiredSessionError):
            verify_commit(OWNED.session, sign_commit(OWNED, self.make(), now_ms=EXPIRATION + 1))

    @pytest.mark.parametrize("lacking", [{"ts": 0}, {"connection": ""}])
    def test_lacking_what_a_reader_would_fill_in_are_neither_signed_nor_verified(self, lacking: dict[str, Any]) -> None:
        commit = self.make(**lacking)
        with pytest.raises(EncodeError):
            sign_commit(OWNED, commit, now_ms=NOW)
        forged = commit.with_signature(sign_data(OWNED, now_ms=NOW, external=commit.signed_object()))
        with pytest.raises(InvalidSignatureError):
            verify_commit(OWNED.session, forged)

    def test_with_a_null_are_neither_signed_nor_verified(self) -> None:
        commit = self.make(data={"a": None})
        with pytest.raises(EncodeError):
            sign_commit(OWNED, commit, now_ms=NOW)
        signature = sign_commit(OWNED, self.make(), now_ms=NOW).signature or ""
        with pytest.raises(InvalidSignatureError):
            verify_commit(OWNED.session, commit.with_signature(signature))

    def test_a_number_that_json_cannot_carry_is_not_verified(self) -> None:
        signed = sign_commit(OWNED, self.make(data={"a": "b:null", "n": {"x": [1.5]}}), now_ms=NOW)
        verify_commit(OWNED.session, signed)
        draft = self.make().to_json()
        contents = {"r": {**draft["c"]["r"], "d": {"n": {"x": [float("inf")]}}}}
        endless = sign_commit(OWNED, Commit.from_json({**draft, "c": contents}, org="o"), now_ms=NOW)
        with pytest.raises(InvalidSignatureError, match="JSON cannot represent"):
            verify_commit(OWNED.session, endless)

    def test_embedded_data_in_the_signature_count_as_signed(self) -> None:
        commit = self.make()
        signature = sign_data(OWNED, now_ms=NOW, external=commit.signed_object(), embedded={"x": 1})
        verify_commit(OWNED.session, commit.with_signature(signature))
        with pytest.raises(InvalidSignatureError):
            verify_commit(OWNED.session, commit.with_signature(repacked(signature, d=...)))

    def test_the_signature_is_the_one_over_the_signed_object(self) -> None:
        commit = self.make(parents=["p"])
        assert sign_commit(OWNED, commit, now_ms=NOW).signature == sign_data(
            OWNED, now_ms=NOW, external=commit.signed_object()
        )
