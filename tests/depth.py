"""How many cases the deep tests run: all, or the sample that ``GOATHERD_TEST_DEPTH=sample`` asks for."""

from __future__ import annotations

import os
from typing import Final

IS_SAMPLE: Final = os.environ.get("GOATHERD_TEST_DEPTH") == "sample"

SEEDS: Final = 100 if IS_SAMPLE else 2000
"""Of the simulation, from 0 on."""

STRIDE: Final = 5 if IS_SAMPLE else 1
"""Every n-th is taken: of the moments at which an operator or a process is stopped, of the inputs that are timed, of a
server's lies, and of the model's large worlds. A thousand rotations are as many fewer."""
