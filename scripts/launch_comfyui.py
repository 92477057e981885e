"""Runs ComfyUI's main.py for the tests and the demo: `launch_comfyui.py MAIN [arguments]`.

The same as `python MAIN [arguments]`, but for two things:

- ComfyUI imports torchvision. Where torchvision's compiled operators do not fit the torch in
  use (a build of torchvision for another kind of torch), importing it fails because it
  describes operators that do not exist. They are declared then; ComfyUI never calls them.
- It stops when its standard input closes. That is how it is asked to stop on every operating
  system, and it never outlives the process that started it.
"""

from __future__ import annotations

import importlib.machinery
import os
import runpy
import signal
import sys
import threading
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType

GRACE_SECONDS = 5.0
"""How long ComfyUI may take to stop by itself."""


class TorchvisionOperators(MetaPathFinder):
    """Looks after torchvision's operators at the moment torchvision is first imported.

    Not earlier: that needs torch, and ComfyUI sets torch up before it imports it.
    """

    def __init__(self) -> None:
        self._library: object | None = None  # the declarations live as long as this does

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "torchvision" and self._library is None:
            spec = importlib.machinery.PathFinder.find_spec(fullname, path)
            if spec is not None and spec.origin is not None and not _loads(Path(spec.origin)):
                self._library = _declared()
        return None


def _loads(package_file: Path) -> bool:
    import torch

    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        library = package_file.with_name(f"_C{suffix}")
        if library.is_file():
            try:
                torch.ops.load_library(str(library))
            except OSError:
                return False
            return True
    return False


def _declared() -> object:
    import torch.library

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def _stop_with_standard_input() -> None:
    while os.read(0, 4096):
        pass
    if sys.platform == "win32":
        import _thread

        _thread.interrupt_main()
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    threading.Event().wait(GRACE_SECONDS)
    os._exit(0)


def main(arguments: Sequence[str]) -> None:
    """Become ComfyUI. `arguments[0]` is the path of its main.py."""
    main_file = Path(arguments[0]).resolve()
    # A shell may have started us with interrupts ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_stop_with_standard_input, daemon=True).start()
    sys.meta_path.insert(0, TorchvisionOperators())
    sys.path[0] = str(main_file.parent)
    sys.argv = [str(main_file), *arguments[1:]]
    runpy.run_path(str(main_file), run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
