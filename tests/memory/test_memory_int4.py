"""Models loaded at 4 bits in the format of ComfyUI's own, where it has one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from intelligent_generation.scripts.comfyui import Base

InComfyUI = Callable[..., dict[str, Any]]

LOAD = """
name = "small-sdxl-unet.safetensors"
def pack(part, name, weight):
    if weight.ndim != 2 or quantization.kept_because(part, name, tuple(weight.shape)) is not None:
        return None
    return host.pack_int4(weight)
def load():
    file = path("diffusion_models", name)
    return host.load_diffusion_model(file, lazy=file_to_quantize(file)._replace(int4=pack))
def predict(patcher):
    patcher.model_patches_to(CPU)
    patcher.detach()
    patcher.patch_model(CPU)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return patcher.model.diffusion_model(
            torch.randn(1, 4, 16, 16, generator=generator), torch.tensor([500.0]),
            context=torch.randn(1, 77, 2048, generator=generator),
            y=torch.randn(1, 2816, generator=generator),
        ).float()
def difference(one, other):
    return float((one - other).norm() / other.norm())
if host.int4_format() is None:
    report(offered="int4" in host.weight_dtypes(), format=None)
    sys.exit()
"""


def has(found: dict[str, Any]) -> None:
    """Skip where this ComfyUI has no format of 4 bits, once it is sure that none is offered."""
    if found["format"] is None:
        assert not found["offered"]
        pytest.skip("this ComfyUI has no format of 4 bits (0.8 has)")


def test_comfyuis_own_4_bits_take_a_third_and_predict_nearly_the_same(in_comfyui: InComfyUI):
    found = in_comfyui(
        LOAD
        + """
small = load()
full = host.load_diffusion_model(path("diffusion_models", name))
report(
    format=host.int4_format(), offered="int4" in host.weight_dtypes(),
    error=difference(predict(small), predict(full)),
    count=host.count_weights(host.diffusion_module(small)),
    full=host.count_weights(host.diffusion_module(full)),
    linear=host.count_weights(host.diffusion_module(small).input_blocks[2][1]),
    formats=sorted({getattr(m, "quant_format", None) or str(getattr(m.weight, "dtype", None))
                    for m in host.diffusion_module(small).modules() if hasattr(m, "weight")}),
)
"""
    )
    has(found)
    assert found["offered"]
    _, parameters, size = found["count"]
    _, all_parameters, full = found["full"]
    assert parameters == all_parameters
    assert size < 0.48 * parameters * 2, "of fp16, and most of it are convolutions at int8"
    dtype, parameters, size = found["linear"]
    assert dtype == "nvfp4"
    assert size < 0.29 * parameters * 2, "4 bits and a scale of 8 for each 16"
    assert full >= 2 * parameters
    assert {"nvfp4", "torch.int8"} <= set(found["formats"]), "convolutions at int8"
    assert 0 < found["error"] < 0.2


def test_pieces_are_packed_as_the_whole_is(in_comfyui: InComfyUI):
    found = in_comfyui(
        LOAD
        + """
weight = torch.randn(1000, 80, generator=torch.Generator().manual_seed(0))
whole = host.pack_int4(weight)
host.formats._INT4_CHUNK = 1
pieces = host.pack_int4(weight)
report(format=host.int4_format(), equal={key: bool(torch.equal(
    whole[key].reshape(-1).view(torch.uint8), pieces[key].reshape(-1).view(torch.uint8)))
    for key in whole}, zeros=float(host.pack_int4(torch.zeros(16, 16))["weight_scale_2"]))
"""
    )
    has(found)
    assert found["equal"] == {"weight": True, "weight_scale": True, "weight_scale_2": True}
    assert found["zeros"] == 1


def test_patches_on_4_bits_come_and_go_without_a_trace(in_comfyui: InComfyUI):
    found = in_comfyui(
        LOAD
        + """
small = load()
plain = predict(small)
key = "diffusion_model.input_blocks.2.1.transformer_blocks.0.attn1.to_q.weight"
import comfy.utils
shape = comfy.utils.get_attr(small.model, key).shape
patched = small.clone()
added = patched.add_patches({key: ("diff", (0.3 * torch.ones(shape),))}, 1.0)
changed = difference(predict(patched), plain)
again = predict(small)
report(format=host.int4_format(), added=len(added), changed=changed,
       restored=bool(torch.equal(again, plain)))
"""
    )
    has(found)
    assert found["added"] == 1
    assert found["changed"] > 0
    assert found["restored"]


FILE = """
from safetensors.torch import save_file
from intelligent_generation.core.errors import ModelFileError, SettingError
from intelligent_generation.core.memory.formats import layer_formats
from intelligent_generation.core.services import Services

torch.set_grad_enabled(False)
work = Services("sqlite:///" + ARGUMENTS[0])
folder = host.model_folders("diffusion_models")[0]
source = stream(path("diffusion_models", "small-sd3.safetensors")).tensors
made = {name: tensor.clone() for name, tensor in source.items()}
mark = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
for name in source:
    part = name.removeprefix("model.diffusion_model.").split(".")[0]
    matrix = name.endswith(".weight") and made[name].ndim == 2
    if matrix and part == "joint_blocks":
        packed = ({"weight": made[name], "weight_scale_2": torch.ones(())}
                  if host.int4_format() is None else host.pack_int4(made[name]))
        layer = name.removesuffix("weight")
        made |= {layer + key: tensor for key, tensor in packed.items()} | {
            layer + "comfy_quant": mark.clone()}
save_file(made, folder / "sd3-nvfp4.safetensors")

def load(model, weight_dtype="auto"):
    plan, _ = work.memory.plan_memory("AUTO", weight_dtype)
    try:
        return work.models.load_model(work.models.choose_model(model=model), plan)
    except (ModelFileError, SettingError) as error:
        return str(error)
import folder_paths
folder_paths.filename_list_cache.clear()
loaded = load("diffusion_models/sd3-nvfp4.safetensors")
made_here = load("diffusion_models/small-sdxl-unet.safetensors", "int4")
if isinstance(loaded, str):
    report(format=host.int4_format(), loaded=loaded, made=made_here)
    sys.exit()
"""


def test_a_file_at_4_bits_is_loaded_as_it_is_and_refused_before_loading_where_it_cannot_be(
    in_comfyui: InComfyUI, model_base: Base, tmp_path: Path
):
    try:
        found = in_comfyui(
            FILE
            + """
block = host.diffusion_module(loaded.model).joint_blocks[0].x_block.mlp.fc1
full = stream(path("diffusion_models", "small-sd3.safetensors")).tensors
(name,) = (one for one in full if one.endswith("joint_blocks.0.x_block.mlp.fc1.weight"))
whole = full[name].float()
report(
    format=host.int4_format(), info=loaded.info.weight_dtype,
    kept=type(block.weight.data).__name__, dtype=host.count_weights(block)[0],
    error=float((block.weight.dequantize().float() - whole).norm() / whole.norm()),
    again=load("diffusion_models/sd3-nvfp4.safetensors", "int4"),
    made=made_here.info.weight_dtype, made_report=made_here.report,
)
""",
            str(tmp_path / "memory.db"),
        )
    finally:
        (model_base.models("diffusion_models") / "sd3-nvfp4.safetensors").unlink(missing_ok=True)
    if found["format"] is None:
        told = found["loaded"]
        assert "sd3-nvfp4.safetensors holds weights in the format nvfp4 (4 bits)" in told
        assert "ComfyUI 0.8 or newer does" in told
        assert "weight_dtype int4 cannot be made here" in found["made"]
        return
    assert found["info"] == "auto"
    assert found["kept"] == "QuantizedTensor"
    assert 0 < found["error"] < 0.2
    assert found["dtype"] == "nvfp4"
    assert "quantized already" in found["again"]
    assert found["made"] == "int4"
    assert "int8" in found["made_report"] or "nvfp4" in found["made_report"]
