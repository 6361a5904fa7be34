import sys

from tests.benchmarks.gpu.cli import main

sys.exit(main())
