"""A test of the test: code from which one protection is taken away is found out by the simulation."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.simulation.mutants import MUTANTS

ROOT = Path(__file__).parents[2]
PATIENCE = 900.0
SEEDS = "0-200"


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
async def test_the_simulation_finds_out_what_was_taken_away(name: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.simulation.mutants", name, SEEDS),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=ROOT,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 1, said.decode()
    assert said.decode().startswith("seed "), said.decode()
    print(said.decode())
