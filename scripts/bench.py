"""Runs a benchmark: `python scripts/bench.py NAME [arguments]`; without a name it lists them.

Sets up what is missing first (see bootstrap.py). The last line that a benchmark prints is one
JSON object.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    import bootstrap

    bootstrap.enter("intelligent_generation.benchmarks", sys.argv[1:])
