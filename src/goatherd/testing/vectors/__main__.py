"""Entry of ``python -m goatherd.testing.vectors DIR``."""

import sys

from goatherd.testing.vectors.runner import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
