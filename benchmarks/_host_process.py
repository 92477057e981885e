"""Run by import_time.py in a process of its own: loads ComfyUI up to its custom nodes.

    python _host_process.py COMFYUI BASE

Does what ComfyUI's main.py does before that, untimed, then prints as JSON how long loading the
custom nodes of BASE took and which other packages that imported.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from importlib import import_module
from pathlib import Path


def measure(comfyui: Path, base: Path) -> dict[str, object]:
    """Seconds that `init_external_custom_nodes` takes, and the other packages it imported."""
    sys.path[0] = str(Path(__file__).resolve().parent.parent / "scripts")
    import launch_comfyui

    sys.meta_path.insert(0, launch_comfyui.TorchvisionOperators())
    sys.path[0] = str(comfyui)
    sys.argv = ["main.py", "--cpu", "--base-directory", str(base)]

    import_module("comfy.options").enable_args_parsing()
    # In main.py's order: some of them put folders on sys.path.
    for name in ("utils.extra_config", "execution", "server", "nodes"):
        import_module(name)
    nodes = sys.modules["nodes"]

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    sys.modules["server"].PromptServer(loop)
    loop.run_until_complete(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))

    before = set(sys.modules)
    started = time.perf_counter()
    loop.run_until_complete(nodes.init_external_custom_nodes())
    seconds = time.perf_counter() - started
    # Custom nodes are modules named after their path.
    new = {name for name in set(sys.modules) - before if not name.startswith(str(base))}
    return {
        "seconds": seconds,
        "packages": sorted({name.partition(".")[0] for name in new}),
        "pack_loaded": "IntelligentSampler" in nodes.NODE_CLASS_MAPPINGS,
    }


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), Path(sys.argv[2]))))
