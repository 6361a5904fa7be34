"""`python -m tgrad.profiler` is the `tgrad` command."""

import sys

from tgrad.profiler.cli import main

if __name__ == "__main__":
    sys.exit(main())
