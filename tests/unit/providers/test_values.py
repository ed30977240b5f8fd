"""Only `reveal` returns the value of a `SecretBytes`."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import logging
import pickle
import traceback

import pytest

from goatherd.providers.values import SecretBytes, SecretValue, SecretVersion, VersionId

TEXT = "tr0ub4dor"
SECRET = SecretBytes(TEXT.encode())
VALUE = SecretValue(version=SecretVersion(id=VersionId("1"), created_ms=0), value=SECRET)


@pytest.mark.parametrize("holder", [SECRET, VALUE, [SECRET], {"value": SECRET}])
@pytest.mark.parametrize("show", [repr, str, "{}".format, "{!r}".format, "%s".__mod__, lambda x: f"{x!s}", ascii])
def test_no_way_of_making_text_shows_the_value(holder: object, show):
    shown = show((holder,) if show == "%s".__mod__ else holder)
    assert TEXT not in shown
    assert TEXT.encode().hex() not in shown
    assert "hidden" in shown


def test_a_format_with_a_width_does_not_show_it_either():
    assert TEXT not in f"{SECRET:>80}"


@pytest.mark.parametrize(
    "leak",
    [
        lambda: bytes(SECRET),  # type: ignore[call-overload]
        lambda: bytearray(SECRET),  # type: ignore[call-overload]
        lambda: memoryview(SECRET),  # type: ignore[arg-type]
        lambda: b"".join([SECRET]),  # type: ignore[list-item]
        lambda: b"x" + SECRET,  # type: ignore[operator]
        lambda: list(SECRET),  # type: ignore[call-overload]
        lambda: len(SECRET),  # type: ignore[arg-type]
        lambda: hash(SECRET),
        lambda: pickle.dumps(SECRET),
        lambda: pickle.dumps(VALUE),
        lambda: pickle.dumps(SECRET, protocol=0),
        lambda: SECRET.__getstate__(),
        lambda: vars(SECRET),
        lambda: json.dumps(SECRET),
        lambda: SECRET[0],  # type: ignore[index]
        lambda: io.BytesIO().write(SECRET),  # type: ignore[arg-type]
    ],
)
def test_everything_that_takes_bytes_or_state_refuses_it(leak):
    with pytest.raises(TypeError) as caught:
        leak()
    assert TEXT not in str(caught.value)


def test_copies_hide_as_well():
    for other in (copy.copy(SECRET), copy.deepcopy(SECRET), dataclasses.replace(VALUE).value):
        assert other == SECRET
        assert TEXT not in repr(other)
    assert TEXT not in repr(dataclasses.asdict(VALUE))


def test_a_log_line_and_a_traceback_with_it_do_not_show_it(caplog: pytest.LogCaptureFixture):
    logging.getLogger("x").warning("read %s %r", VALUE, SECRET)
    try:
        raise ValueError(SECRET)
    except ValueError as error:
        text = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "hidden" in caplog.text
    assert TEXT not in caplog.text
    assert TEXT not in text.replace(f"TEXT = {TEXT!r}", "")


def test_equality_is_by_bytes_and_never_with_plain_bytes():
    assert SecretBytes(b"a") == SecretBytes(bytearray(b"a"))
    assert SecretBytes(b"a") != SecretBytes(b"b")
    assert SecretBytes(b"a") != SecretBytes(b"aa")
    assert SecretBytes(b"a") != b"a"


def test_only_bytes_become_one():
    for wrong in (5, "text", None, [1, 2]):
        with pytest.raises(TypeError):
            SecretBytes(wrong)  # type: ignore[arg-type]


def test_a_later_change_of_the_source_does_not_reach_it():
    source = bytearray(b"abc")
    secret = SecretBytes(source)
    source[0] = 0
    assert secret.reveal() == b"abc"
    assert secret.size == 3


def test_what_lists_versions_has_no_field_for_a_value():
    names = {field.name for field in dataclasses.fields(SecretVersion)}
    assert names == {"id", "labels", "created_ms", "state", "is_leftover"}
