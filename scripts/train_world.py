"""Trains the small world from nothing: `python scripts/train_world.py`; see world/README.md.

Sets up what is missing first (see bootstrap.py). A run that was stopped goes on where it was.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    import bootstrap

    bootstrap.enter("intelligent_generation.scripts.world", sys.argv[1:])
