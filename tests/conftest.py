"""How tests are shared out between processes (pytest-xdist)."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give all tests that drive ComfyUI to one process, which runs the only ComfyUI.

    They come first, as the largest group; the other tests go one by one to whoever is free.
    """
    from xdist.scheduler import LoadScopeScheduling

    class OneComfyUI(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "comfyui" if nodeid.startswith("tests/integration/") else nodeid

    return OneComfyUI(config, log)
