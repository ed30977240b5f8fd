"""The check before a server's first start on data, where the identity alone does not show whether they belong
together."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from goatherd.errors import IdentityExistsError, UnavailableError
from goatherd.operations.first_start import FEW, check_first_start
from goatherd.operations.identity_store import Store
from goatherd.providers.base import Call, RetryPolicy
from goatherd.providers.memory import MemorySecretProvider
from goatherd.providers.values import Label, SecretValue, VersionId
from goatherd.settings.data_directory import SESSIONS_LOG
from goatherd.wire.commit import Commit
from tests.fakes.herd import ORG, SESSIONS
from tests.unit.operations.conftest import MakeHerd, store_of
from tests.unit.rotation.conftest import document_of, rotator_for


def write_log(directory: Path, commits: Iterable[Commit]) -> None:
    (directory / SESSIONS_LOG).parent.mkdir(parents=True)
    (directory / SESSIONS_LOG).write_text("".join(f"{json.dumps(one.to_json())}\n" for one in commits))


async def check(directory: Path, store: Store) -> None:
    @asynccontextmanager
    async def open_store(_: str) -> AsyncIterator[Store]:
        yield store

    await check_first_start(directory, ORG, open_store)


class Silent(MemorySecretProvider):
    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        raise call.error(UnavailableError, "no answer")


async def test_a_log_whose_roots_have_left_the_identity_is_accepted(make_herd: MakeHerd, tmp_path: Path) -> None:
    herd = await make_herd(nodes=1)
    write_log(tmp_path, herd.nodes[0].commits(SESSIONS))
    while (await document_of(herd)).find_root("root-a") is not None:
        await rotator_for(herd).rotate()
        await check(tmp_path, store_of(herd))


@pytest.mark.slow
async def test_a_log_belongs_to_an_identity_however_late_the_first_commit_that_shows_it(
    make_herd: MakeHerd, tmp_path: Path
) -> None:
    herd = await make_herd(nodes=1)
    commits = herd.nodes[0].commits(SESSIONS)
    forged = [replace(one, id=f"{one.id[:-3]}{number:03}") for number in range(2 * FEW) for one in commits[:1]]
    write_log(tmp_path, [*forged, *commits])
    await check(tmp_path, store_of(herd))
    write_log(tmp_path / "other", forged)
    with pytest.raises(IdentityExistsError, match=f"none of the {2 * FEW} commits"):
        await check(tmp_path / "other", store_of(herd))


async def test_a_log_of_another_identity_is_rejected_unless_the_store_does_not_answer(
    make_herd: MakeHerd, tmp_path: Path
) -> None:
    herd = await make_herd(nodes=1)
    commits = [replace(one, signature=f"{one.signature}x") for one in herd.nodes[0].commits(SESSIONS)]
    write_log(tmp_path, commits)
    with pytest.raises(IdentityExistsError, match="belong to another identity"):
        await check(tmp_path, store_of(herd))
    await check(tmp_path, replace(store_of(herd), provider=Silent(retry=RetryPolicy(attempts=1))))
