"""Runs the tests: `python scripts/test.py [pytest arguments]`.

Sets up what is missing first (see bootstrap.py). Without arguments about processes it uses two;
all tests that drive ComfyUI go to one of them, so that a single ComfyUI runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

PARALLEL = ("-n", "2")
OWN_SCHEDULE = ("-n", "--numprocesses", "--dist", "-p", "--pdb", "--trace")


def pytest_arguments(arguments: Sequence[str]) -> list[str]:
    """`arguments`, with the default schedule in front unless they choose one."""
    chosen = any(
        argument == option
        or (argument.startswith(option) and option in ("-n", "-p"))
        or argument.startswith(f"{option}=")
        for argument in arguments
        for option in OWN_SCHEDULE
    )
    return [*(() if chosen else PARALLEL), *arguments]


if __name__ == "__main__":
    import bootstrap

    os.chdir(Path(__file__).resolve().parent.parent)
    bootstrap.enter("pytest", pytest_arguments(sys.argv[1:]))
