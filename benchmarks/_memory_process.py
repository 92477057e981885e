"""Run by memory.py in a process of its own: int8 beside other data types, inside ComfyUI.

    python _memory_process.py COMFYUI BASE CHECKPOINT ROUNDS

Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

PROMPT = "a lighthouse at dusk, watercolor"
FULL_SIZE = ("SD15", "SDXL")
Q8_0_BLOCK = 32
"""Numbers that share one fp16 scale in GGUF's Q8_0 (ggml's quantize_row_q8_0)."""


def start(comfyui: Path, base: Path) -> None:
    """ComfyUI's modules, as its main.py imports them."""
    sys.path[0] = str(Path(__file__).resolve().parent.parent / "scripts")
    import launch_comfyui

    sys.meta_path.insert(0, launch_comfyui.TorchvisionOperators())
    sys.path[0] = str(comfyui)
    os.chdir(comfyui)
    sys.argv = ["main.py", "--cpu", "--base-directory", str(base)]
    import_module("comfy.options").enable_args_parsing()
    for name in ("utils.extra_config", "nodes"):
        import_module(name)


def measure(checkpoint: Path, rounds: int) -> dict[str, Any]:
    """Bytes of full-size models, errors and times of a small one."""
    import torch
    from intelligent_generation.core import host
    from intelligent_generation.core.memory.quantization import quantize
    from intelligent_generation.core.memory.streaming import stream

    file = stream(checkpoint)
    whole = host.Int8File(file.tensors, file.metadata, quantize, file.release)
    models: dict[str, Any] = {
        name: host.load_checkpoint(checkpoint, dtype=name)
        for name in ("float32", "float16", "float8_e4m3fn")
    }
    models["int8"] = host.load_checkpoint(checkpoint, int8=whole)
    context = host.encode(models["float32"].clip, [PROMPT])[0][0].float()

    def predict(name: str) -> torch.Tensor:
        model = models[name].model.model
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn((1, model.latent_format.latent_channels, 32, 32), generator=generator)
        with torch.no_grad():
            return model.diffusion_model(noise, torch.tensor([500.0]), context=context).float()

    for one in models.values():
        one.model.patch_model(torch.device("cpu"))
    exact = predict("float32")
    errors = {name: _relative(predict(name), exact) for name in models if name != "float32"}
    layers = _layer_errors(
        models["float32"].model.model.diffusion_model, lambda: predict("float32")
    )
    errors["q8_0"] = _q8_0_error(models["float32"].model.model.diffusion_model, predict, exact)
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, seconds in times.items():
            started = time.perf_counter()
            predict(name)
            seconds.append(time.perf_counter() - started)
    return {
        "bytes_of_fp16": {name: _share(name) for name in FULL_SIZE},
        "predicted_noise_error": errors,
        "layer_error": layers,
        "seconds_a_step": {name: statistics.median(taken) for name, taken in times.items()},
        "hosts_int8": host.has_int8_format(),
    }


def _relative(found: Any, exact: Any) -> float:
    return float((found - exact).norm() / exact.norm())


def _share(name: str) -> dict[str, float]:
    # The real architecture without memory for its weights; sizes from shapes alone.
    import comfy.ldm.modules.diffusionmodules.openaimodel as unet
    import comfy.ops
    import torch
    from intelligent_generation.core.memory.quantization import int8_bytes

    levels: dict[str, Any] = {
        "SD15": {
            "channel_mult": [1, 2, 4, 4], "num_res_blocks": [2, 2, 2, 2], "context_dim": 768,
            "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "num_heads": 8,
        },
        "SDXL": {
            "channel_mult": [1, 2, 4], "num_res_blocks": [2, 2, 2], "context_dim": 2048,
            "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "num_head_channels": 64,
            "use_linear_in_transformer": True, "num_classes": "sequential",
            "adm_in_channels": 2816,
        },
    }  # fmt: skip
    module = unet.UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=320,
        use_spatial_transformer=True,
        legacy=False,
        dtype=torch.float16,
        device="meta",
        operations=comfy.ops.disable_weight_init,
        **levels[name],
    )
    weights = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    numbers = sum(torch.Size(shape).numel() for shape in weights.values())
    rows = [(key, shape, 2 * torch.Size(shape).numel()) for key, shape in weights.items()]
    return {
        "parameters": numbers,
        "int8": int8_bytes("diffusion_model", rows) / (2 * numbers),
    }


def _schemes() -> dict[str, Callable[[Any], Any]]:
    import torch
    from intelligent_generation.core.memory.quantization import quantize_rows

    def int8(weight: Any) -> Any:
        codes, scale = quantize_rows(weight)
        return codes.float() * scale

    return {
        "int8": int8,
        "fp8": lambda weight: weight.to(torch.float8_e4m3fn).float(),
        "q8_0": _q8_0,
    }


def _q8_0(weight: Any) -> Any:
    import torch

    if weight[0].numel() % Q8_0_BLOCK:
        return weight  # llama.cpp keeps such a row as it is
    blocks = weight.reshape(-1, Q8_0_BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True) / 127
    codes = torch.where(scale > 0, (blocks / scale.clamp_min(1e-30)).round(), 0)
    return (codes * scale.half().float()).reshape(weight.shape)


def _quantized_layers(module: Any) -> dict[str, Any]:
    from intelligent_generation.core.memory.quantization import kept_because

    return {
        name: layer
        for name, layer in module.named_modules()
        if getattr(layer, "weight", None) is not None
        and kept_because("diffusion_model", f"{name}.weight", tuple(layer.weight.shape)) is None
    }


def _layer_errors(module: Any, run: Callable[[], Any]) -> dict[str, dict[str, float]]:
    """Relative error of each layer's output for the input that it really gets."""
    import torch

    found: dict[str, list[float]] = {name: [] for name in _schemes()}

    def compare(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        for name, scheme in _schemes().items():
            weight = scheme(layer.weight)
            if isinstance(layer, torch.nn.Linear):
                other = torch.nn.functional.linear(inputs[0], weight, layer.bias)
            else:
                other = layer._conv_forward(inputs[0], weight, layer.bias)
            found[name].append(_relative(other, output))

    hooks = [layer.register_forward_hook(compare) for layer in _quantized_layers(module).values()]
    run()
    for hook in hooks:
        hook.remove()
    return {
        name: {"median": statistics.median(all_), "largest": max(all_), "layers": len(all_)}
        for name, all_ in found.items()
    }


def _q8_0_error(module: Any, predict: Callable[[str], Any], exact: Any) -> float:
    import torch

    layers = _quantized_layers(module)
    originals = {name: layer.weight.data for name, layer in layers.items()}
    with torch.no_grad():
        for layer in layers.values():
            layer.weight.data = _q8_0(layer.weight.data)
        error = _relative(predict("float32"), exact)
        for name, layer in layers.items():
            layer.weight.data = originals[name]
    return error


if __name__ == "__main__":
    comfyui, base, checkpoint, rounds = sys.argv[1:]
    start(Path(comfyui), Path(base))
    print(json.dumps(measure(Path(checkpoint), int(rounds))))
