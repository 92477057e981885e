"""Which quantized formats files are in, and which of them a ComfyUI loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from intelligent_generation.core.catalog import read_header
from intelligent_generation.core.errors import ModelFileError
from intelligent_generation.core.memory.allocation import is_quantized, part_sizes
from intelligent_generation.core.memory.formats import check_formats, layer_formats, with_formats
from safetensors.numpy import save_file

NVFP4 = {
    "a.weight": np.zeros((512, 256), np.uint8),
    "a.weight_scale": np.zeros((512, 32), np.uint8),
    "a.weight_scale_2": np.zeros((), np.float32),
    "a.bias": np.zeros(512, np.float16),
}


def mark(format_: str) -> np.ndarray:
    return np.frombuffer(json.dumps({"format": format_}).encode(), np.uint8)


def written(path: Path, tensors: dict[str, np.ndarray], **metadata: str) -> Path:
    save_file(tensors, path, metadata or None)
    return path


def test_marks_in_tensors_and_in_the_header_are_read(tmp_path: Path):
    own = written(tmp_path / "own.safetensors", {**NVFP4, "a.comfy_quant": mark("nvfp4")})
    assert layer_formats(own, read_header(own)) == {"a": "nvfp4"}
    layers = {"layers": {"a": {"format": "float8_e4m3fn"}}}
    old = written(tmp_path / "old.safetensors", NVFP4, _quantization_metadata=json.dumps(layers))
    assert layer_formats(old, read_header(old)) == {"a": "float8_e4m3fn"}
    plain = written(tmp_path / "plain.safetensors", {"a.weight": np.zeros((4, 4), np.float16)})
    assert layer_formats(plain, read_header(plain)) == {}


def test_a_file_at_4_bits_has_its_own_size_and_says_its_format(tmp_path: Path):
    path = written(tmp_path / "four.safetensors", {**NVFP4, "a.comfy_quant": mark("nvfp4")})
    header = read_header(path)
    marked = with_formats(header, layer_formats(path, header))
    assert is_quantized(marked)
    (part,) = part_sizes([("diffusion_model", marked)])
    stored = sum(tensor.nbytes for tensor in NVFP4.values()) + len(mark("nvfp4"))
    assert (part.dtype, part.bytes) == ("nvfp4", stored)
    assert part.cpu_bytes == stored + 512 * 2, "only the bias becomes float32"


def test_a_format_that_this_comfyui_lacks_is_refused_by_name(tmp_path: Path):
    path = written(tmp_path / "four.safetensors", {**NVFP4, "a.comfy_quant": mark("nvfp4")})
    header = read_header(path)
    layers = layer_formats(path, header)
    check_formats(path.name, header, layers, {"nvfp4"})
    with pytest.raises(ModelFileError, match=r"four\.safetensors.*nvfp4 \(4 bits\).*0\.8 or newer"):
        check_formats(path.name, header, layers, {"float8_e4m3fn"})
    with pytest.raises(ModelFileError, match="'other', which this ComfyUI does not know"):
        check_formats(path.name, header, {"a": "other"}, {"nvfp4"})


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a.qweight", "a.wscales", "a.smooth_factor"], "SVDQuant"),
        (["a.qweight", "a.qzeros", "a.scales"], "GPTQ or AWQ"),
        (["a.weight", "a.weight.quant_state.bitsandbytes__nf4"], "NF4"),
    ],
)
def test_formats_of_other_programs_are_refused_with_what_loads_them(
    tmp_path: Path, names: list[str], told: str
):
    tensors = {name: np.zeros((4, 4), np.uint8) for name in names}
    path = written(tmp_path / "foreign.safetensors", tensors)
    with pytest.raises(ModelFileError, match=f"{told}.*ComfyUI does not load. Load it with"):
        check_formats(path.name, read_header(path), {}, {"nvfp4"})


@pytest.mark.parametrize("broken", [b"not json", b"{}", b"[1]"])
def test_marks_that_cannot_be_read_are_an_error(tmp_path: Path, broken: bytes):
    tensors = {**NVFP4, "a.comfy_quant": np.frombuffer(broken, np.uint8)}
    path = written(tmp_path / "broken.safetensors", tensors)
    with pytest.raises(ModelFileError, match=r"broken\.safetensors says of its quantized layers"):
        layer_formats(path, read_header(path))
