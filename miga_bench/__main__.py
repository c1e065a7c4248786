"""``python -m miga_bench`` is ``miga-bench``."""

import sys

from miga_bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
