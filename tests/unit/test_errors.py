"""Errors can be pickled, so a process pool can pass them on."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest

import goatherd
from goatherd import errors
from goatherd.event_loop import run_reader

ARGUMENTS: dict[type[errors.GoatherdError], dict[str, Any]] = {
    errors.ProviderError: {"provider": "file", "secret_id": "root", "operation": "read"},
    errors.SignerError: {"signer": "local", "key": "anchor", "operation": "sign"},
    errors.NodeRefusedError: {"status": 403},
    errors.AuditBrokenError: {"line": 3},
    errors.ObstructedError: {"obstacles": ("a server is down",)},
    errors.NotAdoptedError: {"report": "of the run"},
    errors.KeyLeakedError: {"root_ids": ("root-a",)},
}
KINDS = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.GoatherdError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_is_pickled_and_copied_with_all_that_it_says(kind: type[errors.GoatherdError]) -> None:
    arguments = {
        name: value for base, more in ARGUMENTS.items() if issubclass(kind, base) for name, value in more.items()
    }
    error = kind("the message", hint="the hint", **arguments)
    error.retryable = not kind.retryable
    pickled = [pickle.loads(pickle.dumps(error, protocol)) for protocol in (0, pickle.HIGHEST_PROTOCOL)]
    for again in (*pickled, copy.copy(error)):
        assert type(again) is kind
        assert str(again) == str(error)
        assert vars(again) == vars(error)


def test_a_hint_of_its_own_replaces_both_hints_of_an_errors_class() -> None:
    common = errors.UnconfirmedError("nothing was written")
    assert (common.hint, common.command_hint) == (errors.UnconfirmedError.hint, errors.UnconfirmedError.command_hint)
    assert common.command_hint
    own = errors.UnconfirmedError("nothing was written", hint="Ask first.")
    assert (own.hint, own.command_hint) == ("Ask first.", "")
    both = errors.UnconfirmedError("nothing was written", hint="Ask first.", command_hint="Give --yes.")
    assert (both.hint, both.command_hint) == ("Ask first.", "Give --yes.")


def read_missing(directory: str) -> None:
    run_reader(lambda: goatherd.FileSecretProvider(directory).read("root"))


@pytest.mark.slow
def test_an_error_in_a_worker_of_a_process_pool_reaches_its_caller(tmp_path) -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        for _ in range(2):
            with pytest.raises(errors.SecretNotFoundError) as caught:
                pool.submit(read_missing, str(tmp_path)).result()
            assert caught.value.secret_id == "root"
