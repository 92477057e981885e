"""Models loaded at 4 bits in the format of ComfyUI's own, where it has one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from intelligent_generation.scripts.comfyui import Base
from intelligent_generation.scripts.sample_library import rows, write_lora

InComfyUI = Callable[..., dict[str, Any]]

LOAD = """
name = "small-sdxl-unet.safetensors"
def pack(part, name, weight):
    if weight.ndim != 2 or quantization.kept_because(part, name, tuple(weight.shape)) is not None:
        return None
    return host.pack_four_bits(weight)
def load():
    file = path("diffusion_models", name)
    return host.load_diffusion_model(file, int8=int8_file(file)._replace(four_bits=pack))
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
if host.four_bit_format() is None:
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
    format=host.four_bit_format(), offered="int4" in host.weight_dtypes(),
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
    assert size < 0.45 * parameters * 2, "of fp16"
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
whole = host.pack_four_bits(weight)
host._FOUR_BIT_CHUNK = 1
pieces = host.pack_four_bits(weight)
report(format=host.four_bit_format(), equal={key: bool(torch.equal(
    whole[key].reshape(-1).view(torch.uint8), pieces[key].reshape(-1).view(torch.uint8)))
    for key in whole}, zeros=float(host.pack_four_bits(torch.zeros(16, 16))["weight_scale_2"]))
"""
    )
    has(found)
    assert found["equal"] == {"weight": True, "weight_scale": True, "weight_scale_2": True}
    assert found["zeros"] == 1


def test_a_lora_on_4_bits_comes_and_goes_without_a_trace(in_comfyui: InComfyUI, model_base: Base):
    (row,) = (row for row in rows() if row["name"] == "xl/storybook_watercolor_xl")
    folder = model_base.models("loras")
    lora = write_lora(row, folder).relative_to(folder).as_posix()
    found = in_comfyui(
        LOAD
        + """
small = load()
plain = predict(small)
patched = host.apply_lora(small, None, ARGUMENTS[0], 1.0, 0.0).model
changed = difference(predict(patched), plain)
again = predict(small)
report(format=host.four_bit_format(), patches=len(patched.patches), changed=changed,
       restored=bool(torch.equal(again, plain)))
""",
        lora,
    )
    has(found)
    assert found["patches"] > 0
    assert found["changed"] > 0
    assert found["restored"]
