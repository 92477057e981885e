"""Models loaded at int8 in a real ComfyUI: numbers, LoRAs, offload, clones, saving."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from intelligent_generation.scripts.comfyui import Base
from intelligent_generation.scripts.sample_library import rows, write_lora
from intelligent_generation.scripts.sample_models import sample_model
from safetensors.numpy import load_file, save_file

InComfyUI = Callable[..., dict[str, Any]]
LORA = "watercolor_wash_v2"
MB = 1_000_000

PREDICT = """
def predict(patcher, device_memory=0, channels=4, context=(77, 768), **conditions):
    # The noise that the model predicts, its weights loaded as ComfyUI's sampler loads them; with
    # device_memory only so many bytes of them, the others at each use.
    patcher.model_patches_to(CPU)
    patcher.detach()
    patcher.patch_model(CPU, lowvram_model_memory=device_memory)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        out = patcher.model.diffusion_model(
            torch.randn(1, channels, 16, 16, generator=generator), torch.tensor([500.0]),
            context=torch.randn(1, *context, generator=generator), **conditions,
        )
    return out.float()

def difference(one, other):
    return float((one - other).norm() / other.norm())

def load(name, folder="checkpoints", int8=True):
    file = path(folder, name)
    wanted = {"lazy": file_to_quantize(file)} if int8 else {}
    if folder == "checkpoints":
        return host.load_checkpoint(file, **wanted)
    return host.load_diffusion_model(file, **wanted)
"""

CHECKPOINTS = (
    PREDICT
    + """
full, clip, vae = load("small-sd15.safetensors", int8=False)
small, small_clip, small_vae = load("small-sd15.safetensors")
"""
)


@pytest.fixture(scope="module")
def lora(model_base: Base) -> str:
    (row,) = (row for row in rows() if row["name"] == LORA)
    return write_lora(row, model_base.models("loras")).name


def test_int8_predicts_nearly_the_same_noise_in_half_the_bytes(in_comfyui: InComfyUI):
    found = in_comfyui(
        CHECKPOINTS
        + """
import comfy.model_management as mm
def text(clip):
    return host.encode(clip, ["a lighthouse at dusk"])[0][0].float()
unet = host.count_weights(host.diffusion_module(small))
encoder = host.count_weights(host.text_encoder_module(small_clip))
stored = [getattr(p, "_qdata", p) for p in host.diffusion_module(small).parameters()]
codes = sum(tensor.numel() for tensor in stored if tensor.dtype == torch.int8)
convolution = host.diffusion_module(small).input_blocks[1][0].in_layers[2].weight
report(
    error=difference(predict(small), predict(full)),
    text=difference(text(small_clip), text(clip)),
    dtypes=[unet.dtype, encoder.dtype], parameters=unet.parameters, codes=codes,
    full=host.count_weights(host.diffusion_module(full)).parameters,
    convolution=str(convolution.dtype), bytes=unet.bytes, vae=small_vae is not None,
    counted=mm.module_size(host.diffusion_module(small)),
)
"""
    )
    assert 0 < found["error"] < 0.02
    assert 0 < found["text"] < 0.03
    assert found["dtypes"] == ["int8", "int8"]
    assert found["parameters"] == found["full"]
    assert found["bytes"] == pytest.approx(found["counted"], rel=1e-3), "as ComfyUI counts them"
    assert found["codes"] > 0.85 * found["parameters"]
    assert found["convolution"] == "torch.int8"
    assert found["vae"]


def test_a_lora_is_applied_at_int8_also_offloaded_and_taken_off_without_a_trace(
    in_comfyui: InComfyUI, lora: str
):
    found = in_comfyui(
        CHECKPOINTS
        + """
from comfy.model_patcher import LowVramPatch
with_lora = host.apply_lora(small, small_clip, ARGUMENTS[0], 1.0, 1.0).model
full_with_lora = host.apply_lora(full, clip, ARGUMENTS[0], 1.0, 1.0).model
before = {key: value.clone() for key, value in small.model.state_dict().items()}
plain = predict(small)
patched = predict(with_lora)
in_place = sum(len(getattr(m, "weight_function", [])) for m in small.model.modules())
exact = predict(full_with_lora)
effect = exact - predict(full)
half = predict(with_lora, device_memory=8_000_000)
by_host = sum(
    isinstance(f, LowVramPatch)
    for m in small.model.modules() for f in getattr(m, "weight_function", [])
)
# What ComfyUI does when memory gets short while the model is loaded.
predict(with_lora)
freed = with_lora.partially_unload(CPU, 5_000_000)
with torch.no_grad():
    generator = torch.Generator().manual_seed(0)
    shrunk = with_lora.model.diffusion_model(
        torch.randn(1, 4, 16, 16, generator=generator), torch.tensor([500.0]),
        context=torch.randn(1, 77, 768, generator=generator)).float()
again = predict(small)
with_lora.detach()
after = small.model.state_dict()
report(
    patches=len(with_lora.patches), in_place=in_place, by_host=by_host, freed=freed,
    change=float(effect.norm()), error=difference(patched - plain, effect),
    offloaded=difference(half, patched), shrunk=difference(shrunk, patched),
    hosts=host.has_int8_format(),
    restored=torch.equal(again, plain),
    same=before.keys() == after.keys() and all(torch.equal(after[k], before[k]) for k in before),
)
""",
        lora,
    )
    assert found["patches"] > 0
    assert found["in_place"] > 0 or found["hosts"]
    assert found["by_host"] > 0, "some weights were patched on the fly by ComfyUI's own offload"
    assert found["freed"] > 5_000_000
    assert found["change"] > 0
    assert found["error"] < 0.1, "the LoRA changes the noise as it does without quantization"
    # ComfyUI's own int8 layers round a patched weight to int8 anew where it is not offloaded.
    most = 0.02 if found["hosts"] else 0
    assert found["offloaded"] <= most
    assert found["shrunk"] <= most
    assert found["restored"]
    assert found["same"]


def test_clones_with_and_without_a_lora_take_turns(in_comfyui: InComfyUI, lora: str):
    found = in_comfyui(
        CHECKPOINTS
        + """
import comfy.model_management as mm
def through_host(patcher):
    mm.load_models_gpu([patcher])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return patcher.model.diffusion_model(
            torch.randn(1, 4, 16, 16, generator=generator), torch.tensor([500.0]),
            context=torch.randn(1, 77, 768, generator=generator)).float()
strong = host.apply_lora(small, small_clip, ARGUMENTS[0], 1.0, 1.0).model
weak = host.apply_lora(small, small_clip, ARGUMENTS[0], 0.5, 1.0).model
first = [through_host(one) for one in (small, strong, weak)]
second = [through_host(one) for one in (small.clone(), weak.clone(), strong.clone(), small)]
report(
    distinct=not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2]),
    same=[torch.equal(a, b) for a, b in zip(second, [first[0], first[2], first[1], first[0]])],
)
""",
        lora,
    )
    assert found["distinct"]
    assert found["same"] == [True] * 4


def test_saving_and_hooks_are_refused_and_merging_reads_real_weights(
    in_comfyui: InComfyUI, tmp_path: Path
):
    target = tmp_path / "saved.safetensors"
    found = in_comfyui(
        CHECKPOINTS
        + """
import comfy.sd
from intelligent_generation.core.errors import HostError
def refused(act):
    try:
        act()
    except HostError as error:
        return str(error)
key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
def merge_error():
    if host.has_int8_format():
        return None  # ComfyUI itself cannot merge from its quantized layers
    merged = full.clone()
    merged.add_patches({key: small.get_key_patches("diffusion_model.")[key]}, 1.0, 0.0)
    before = full.model.state_dict()[key].float().clone()
    merged.patch_model(CPU)
    after = merged.model.state_dict()[key].float().clone()
    merged.detach()
    return difference(after, before)
convolution = "diffusion_model.input_blocks.1.0.in_layers.2.weight"
report(
    saving=refused(lambda: comfy.sd.save_checkpoint(ARGUMENTS[0], small)),
    hooks=refused(lambda: small.patch_hook_weight_to_device(
        None, {convolution: []}, convolution, {}, None)),
    merged=merge_error(),
)
""",
        str(target),
    )
    assert "another weight_dtype" in found["saving"]
    assert not target.exists()
    assert "Hooks" in found["hooks"]
    assert found["merged"] is None or 0 < found["merged"] < 0.02


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_loading_never_holds_the_full_model(in_comfyui: InComfyUI):
    found = in_comfyui(
        PREDICT
        + """
def status(name):
    (line,) = (l for l in open("/proc/self/status") if l.startswith(name + ":"))
    return int(line.split()[1]) * 1024
import gc
give_back_what_is_freed()
load("small-sd15-b.safetensors")  # what torch and ComfyUI allocate once, at first use
gc.collect()
tensors = stream(path("checkpoints", "small-sd15.safetensors")).tensors
largest = max(tensor.nbytes for tensor in tensors.values())
del tensors
gc.collect()
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
small, small_clip, small_vae = load("small-sd15.safetensors")
peak = status("VmHWM") - before
parts = (
    host.diffusion_module(small), host.text_encoder_module(small_clip),
    host.vae_module(small_vae),
)
maps = Path("/proc/self/maps").read_text()
report(
    peak=peak, largest=largest, size=sum(host.count_weights(part).bytes for part in parts),
    mapped="small-sd15.safetensors" in maps,
)
"""
    )
    # 11 MB of the constant are used. Holding the whole file beside the model would take 160 more.
    assert found["peak"] <= 1.15 * found["size"] + found["largest"] + 32 * MB
    assert not found["mapped"], "the file is let go after loading"


def test_files_of_their_own_are_loaded_at_int8_too(in_comfyui: InComfyUI):
    found = in_comfyui(
        PREDICT
        + """
from intelligent_generation.core.catalog import read_header
from intelligent_generation.core.memory.allocation import part_sizes

encoder = path("text_encoders", "small-clip-l.safetensors")
def text(clip):
    return host.encode(clip, ["a lighthouse at dusk"])[0][0].float()
full = load("small-sd15-unet.safetensors", "diffusion_models", int8=False)
small = load("small-sd15-unet.safetensors", "diffusion_models")
clip = host.load_text_encoders([encoder], "stable_diffusion")
small_clip = host.load_text_encoders(
    [encoder], "stable_diffusion", lazy=[file_to_quantize(encoder)])
transformer = load("small-sd3.safetensors", "diffusion_models")
def predicted(role, file):
    (size,) = part_sizes([(role, read_header(file))], stay_float32=host.float32_beside_int8())
    return size.int8_bytes
report(
    predicted=[
        predicted("diffusion_model", path("diffusion_models", "small-sd15-unet.safetensors")),
        predicted("text_encoder", encoder),
    ],
    bytes=[host.count_weights(part).bytes for part in (
        host.diffusion_module(small), host.text_encoder_module(small_clip),
    )],
    error=difference(predict(small), predict(full)),
    text=difference(text(small_clip), text(clip)),
    dtypes=[host.count_weights(part).dtype for part in (
        host.diffusion_module(small), host.text_encoder_module(small_clip),
        host.diffusion_module(transformer),
    )],
    sd3=host.comfy_class(transformer),
    finite=bool(predict(transformer, channels=16, context=(77, 4096)).isfinite().all()),
)
"""
    )
    assert 0 < found["error"] < 0.02
    assert 0 < found["text"] < 0.03
    # Half of the diffusion model and nearly all of the text encoder is in weights that stay.
    assert found["bytes"] == pytest.approx(found["predicted"], rel=0.01)
    # All weights of the smallest SD 3 are below the least size, so they stay as they are.
    assert found["dtypes"][:2] == ["int8", "int8"]
    assert found["dtypes"][2] != "int8"
    assert found["sd3"] == "SD3"
    assert found["finite"]


def test_a_damaged_weight_is_refused_before_a_model_is_made(in_comfyui: InComfyUI, tmp_path: Path):
    tensors = load_file(sample_model("small-sd15-unet.safetensors"))
    tensors["output_blocks.1.0.in_layers.2.weight"][3, 1, 0, 2] = np.nan
    damaged = tmp_path / "damaged.safetensors"
    save_file(tensors, damaged)
    found = in_comfyui(
        """
from intelligent_generation.core.errors import ModelFileError
try:
    host.load_diffusion_model(Path(ARGUMENTS[0]), lazy=file_to_quantize(Path(ARGUMENTS[0])))
except ModelFileError as error:
    report(error=str(error))
""",
        str(damaged),
    )
    assert "output_blocks.1.0.in_layers.2.weight holds NaN" in found["error"]


@pytest.mark.parametrize(("ram", "loaded"), [(200 * MB, "int8"), (8_000 * MB, "auto")])
def test_auto_loads_at_int8_only_when_ram_is_short_and_says_so(
    in_comfyui: InComfyUI, ram: int, loaded: str
):
    found = in_comfyui(
        """
from intelligent_generation.core.memory import (
    FreeMemory, Machine, ModelChoice, ModelPool, PoolSettings, load_model, plan_memory
)
from intelligent_generation.core.memory.kept import KeptWeights
from intelligent_generation.core.plan import FileRef

class OneFile:
    def path(self, file):
        return path(file.folder, file.name)

shown = []
free = FreeMemory(int(ARGUMENTS[0]), int(ARGUMENTS[0]))
model = load_model(
    ModelChoice(FileRef(folder="checkpoints", name="small-sd15.safetensors")), OneFile(),
    plan_memory(Machine("cpu", "cpu", 16 * 2**30, 16 * 2**30, False, "DISABLED")),
    pool=ModelPool(PoolSettings(), total_ram=2**34, free_ram=lambda: 2**33),
    kept_weights=KeptWeights(Path("unused"), lambda: 0), free=lambda: free, show=shown.append,
)
report(
    weight_dtype=model.info.weight_dtype, dtype=model.info.part("diffusion_model").dtype,
    notices=[notice.code for notice in model.info.notices], shown=shown,
)
""",
        str(ram),
    )
    assert found["weight_dtype"] == loaded
    assert (found["dtype"] == "int8") == (loaded == "int8")
    assert ("loaded_at_int8" in found["notices"]) == (loaded == "int8")
    (table,) = found["shown"]
    assert ("At int8, because the model takes" in table) == (loaded == "int8")
