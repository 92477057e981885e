"""What IntelligentSampler keeps with a model must not keep the model: a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from intelligent_generation.scripts import launch_comfyui
from intelligent_generation.scripts.comfyui import find_comfyui, link_model, prepare_base
from intelligent_generation.scripts.sample_library import rows, write_lora
from intelligent_generation.scripts.sample_models import sample_model

LOAD_APPLY_FORGET = """
import gc, json, os, sys, weakref
from importlib import import_module
from pathlib import Path

launcher, comfyui, base, lora = sys.argv[1:]
sys.path[0] = str(Path(launcher).parent)
sys.meta_path.insert(0, import_module(Path(launcher).stem).TorchvisionOperators())
sys.path[0] = comfyui
os.chdir(comfyui)
sys.argv = ["main.py", "--cpu", "--base-directory", base]
import_module("comfy.options").enable_args_parsing()
for name in ("utils.extra_config", "nodes"):
    import_module(name)

from intelligent_generation.core import host
from intelligent_generation.core.generating import apply_loras
from intelligent_generation.core.plan import FileRef, PlannedLora

model, clip, vae = host.load_checkpoint(host.model_folders("checkpoints")[0] / "small.safetensors")
wanted = PlannedLora(
    file=FileRef(folder="loras", name=lora), title=lora, model_strength=0.5, clip_strength=0.5,
    origin="recommended", reason="",
)
gc.collect()
gc.disable()
first = apply_loras(model, clip, [wanted], locate=lambda file: file)
again = apply_loras(model, clip, [wanted], locate=lambda file: file)
found = {
    "applied": len(first.applied),
    "patched anew": again.model.patches_uuid != first.model.patches_uuid,
    "same patches": again.model.patches.keys() == first.model.patches.keys(),
}
watched = {"model": weakref.ref(model.model), "clip": weakref.ref(clip)}
del model, clip, vae, first, again
print(json.dumps(found | {name: ref() is not None for name, ref in watched.items()}))
"""


def test_a_dropped_model_is_freed_at_once_and_kept_patches_are_put_back(tmp_path: Path) -> None:
    base = prepare_base(tmp_path, pack=None)
    linked = base.models("checkpoints") / link_model(
        sample_model("small-sd15.safetensors"), base.models("checkpoints")
    )
    linked.rename(linked.with_name("small.safetensors"))
    (row,) = (row for row in rows() if row["name"] == "watercolor_wash_v2")
    lora = write_lora(row, base.models("loras"))
    script = [launch_comfyui.__file__, str(find_comfyui()), str(base.path), lora.name]
    done = subprocess.run(
        [sys.executable, "-c", LOAD_APPLY_FORGET, *script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "applied": 1,
        "patched anew": False,
        "same patches": True,
        "model": False,
        "clip": False,
    }
