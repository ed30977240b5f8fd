"""Run and replay simulations: ``python -m tests.simulation --seed 7``."""

from __future__ import annotations

import sys

from tests.simulation.command import main

sys.exit(main(sys.argv[1:]))
