"""Entry of ``python -m tests.vectors``: without arguments it checks the files beside it."""

import sys
from pathlib import Path

from tests.vectors.runner import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or [str(Path(__file__).parent)]))
