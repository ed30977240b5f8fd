"""Run and replay simulations: ``python -m goatherd.testing.simulation --seed 7``."""

from __future__ import annotations

import sys

from goatherd.testing.simulation.command import main

sys.exit(main(sys.argv[1:]))
