"""`python -m intelligent_generation.benchmarks NAME [arguments]`, as scripts/bench.py runs it."""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
from collections.abc import Sequence

from ..scripts.launch_comfyui import TorchvisionOperators
from . import __path__ as _folders


def names() -> list[str]:
    """The benchmarks there are."""
    return sorted(one.name for one in pkgutil.iter_modules(_folders) if one.name[0] != "_")


def main(arguments: Sequence[str]) -> int:
    """Run one benchmark and print what its `main` returns as one line of JSON."""
    if not arguments or arguments[0] not in names():
        asked = f"There is no benchmark {arguments[0]!r}. " if arguments else ""
        print(f"{asked}Benchmarks: {', '.join(names())}", file=sys.stderr)
        return 2
    sys.meta_path.insert(0, TorchvisionOperators())  # sentence-transformers imports torchvision
    module = importlib.import_module(f"{__package__}.{arguments[0]}")
    print(json.dumps(module.main(arguments[1:])), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
