"""Run by memory.py in a process of its own, inside ComfyUI: what its `MEASURES` say.

    python _memory_process.py COMFYUI BASE WHAT CHECKPOINT ROUNDS

Prints one JSON object.
"""

from __future__ import annotations

import json
import math
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
    whole = host.FileToQuantize(file.tensors, file.metadata, quantize, file.release)
    models: dict[str, Any] = {
        name: host.load_checkpoint(checkpoint, dtype=name)
        for name in ("float32", "float16", "float8_e4m3fn")
    }
    models["int8"] = host.load_checkpoint(checkpoint, to_quantize=whole)
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
    import torch
    from intelligent_generation.core.memory.quantization import int8_bytes

    weights = _unet(name)
    numbers = sum(torch.Size(shape).numel() for shape in weights.values())
    rows = [(key, shape, 2 * torch.Size(shape).numel()) for key, shape in weights.items()]
    return {
        "parameters": numbers,
        "int8": int8_bytes("diffusion_model", rows) / (2 * numbers),
    }


def _unet(name: str) -> dict[str, tuple[int, ...]]:
    # The real architecture without memory for its weights; sizes from shapes alone.
    import comfy.ldm.modules.diffusionmodules.openaimodel as unet
    import comfy.ops
    import torch

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
    return _shapes(module)


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


# --------------------------------------------------------------------------- sizes

GIB = 2**30
CARDS = (4, 6, 8, 12, 16, 24)
"""GiB of VRAM that are simulated."""
VAE_BYTES = {"sd15": 167_335_342, "sdxl": 167_335_342, "flux-dev": 167_666_902,
             "qwen-image": 253_806_966}  # fmt: skip
"""VAE files in half precision: AutoencoderKL of 83.7 M parameters; Qwen-Image's, published size."""


def measure_sizes(checkpoint: Path, rounds: int) -> dict[str, Any]:
    """Placement and bytes that the planner predicts for models of full size; nothing is loaded.

    Shapes are those of the real architectures; computing is ComfyUI's own estimate at 1024 x 1024
    (SD 1.5: 512 x 512), positive and negative text at once, half precision.
    """
    out: dict[str, Any] = {"measured_on_a_gpu": False}
    for name, (parts, working) in _full_models().items():
        rows: dict[str, Any] = {
            "bytes": {part.role: part.bytes for part in parts},
            "int8_bytes": {part.role: part.int8_bytes for part in parts},
            "computing_bytes": working,
        }
        for vram in CARDS:
            rows[f"{vram} GiB"] = {
                strategy: _predicted(parts, working, vram, strategy)
                for strategy in ("AUTO", "FULL_GPU", "CPU_OFFLOAD", "SEQUENTIAL", "DISK_OFFLOAD")
            }
        # The smallest limit that is kept with all weights streamed: computing alone.
        rows["least_gib"] = round(working / GIB, 2)
        out[name] = rows
    return out


def _predicted(parts: Any, working: int, vram: int, strategy: str) -> dict[str, Any] | str:
    from intelligent_generation.core.errors import SettingError
    from intelligent_generation.core.memory import FreeMemory, Machine, plan_memory
    from intelligent_generation.core.memory.allocation import allocate

    machine = Machine("card", "cuda", vram * GIB, 64 * GIB, False, "NORMAL_VRAM")
    try:
        allocation = allocate(
            plan_memory(machine, strategy=strategy),
            parts,
            FreeMemory(vram * GIB, 64 * GIB),
            name="the model",
            quantized=False,
            supported=("float16", "bfloat16", "float8_e4m3fn", "int8"),
            working=working,
        )
    except SettingError:
        return "refused"
    held = {row.role: round(row.device_bytes / max(1, row.bytes), 2) for row in allocation.rows}
    return {
        "dtype": allocation.dtype or "as the file",
        "peak_gib": round(allocation.peak_bytes(working) / GIB, 2),
        "on_device": held,
        "together": allocation.together,
    }


def _full_models() -> dict[str, tuple[Any, int]]:
    import comfy.ldm.flux.model as flux
    import comfy.ldm.qwen_image.model as qwen
    import comfy.ops
    import torch

    common: dict[str, Any] = {
        "dtype": torch.bfloat16,
        "device": "meta",
        "operations": comfy.ops.disable_weight_init,
    }
    flux_dev = flux.Flux(
        image_model="flux", in_channels=16, out_channels=16, vec_in_dim=768, context_in_dim=4096,
        hidden_size=3072, mlp_ratio=4.0, num_heads=24, depth=19, depth_single_blocks=38,
        axes_dim=[16, 56, 56], theta=10_000, patch_size=2, qkv_bias=True, guidance_embed=True,
        **common,
    )  # fmt: skip
    qwen_image = qwen.QwenImageTransformer2DModel(**common)
    encoders = _full_encoders()
    made = {
        "sd15": (_unet("SD15"), encoders["clip_l"], 512, 1.0),
        "sdxl": (_unet("SDXL"), encoders["clip_l"] | encoders["clip_g"], 1024, 0.8),
        "flux-dev": (_shapes(flux_dev), encoders["clip_l"] | encoders["t5xxl"], 1024, 3.1),
        "qwen-image": (_shapes(qwen_image), encoders["qwen25_7b"], 1024, 1.8),
    }
    out = {}
    for name, (diffusion, text, side, factor) in made.items():
        # BaseModel.memory_required: bytes of the type, 0.01 MiB a cell, the family's factor.
        working = int(2 * (side // 8) ** 2 * 2 * 0.01 * factor * 2**20)
        out[name] = (_parts(diffusion, text, VAE_BYTES[name]), working)
    return out


def _full_encoders() -> dict[str, dict[str, tuple[int, ...]]]:
    import comfy.clip_model
    import comfy.ops
    import comfy.sd1_clip
    import comfy.text_encoders.llama as llama
    import comfy.text_encoders.t5 as t5
    import torch

    folder = Path(comfy.sd1_clip.__file__).parent
    arguments = (torch.float16, "meta", comfy.ops.disable_weight_init)

    def config(name: str) -> dict[str, Any]:
        return json.loads((folder / name).read_text(encoding="utf-8"))

    modules = {
        "clip_l": comfy.clip_model.CLIPTextModel(config("sd1_clip_config.json"), *arguments),
        "clip_g": comfy.clip_model.CLIPTextModel(config("clip_config_bigg.json"), *arguments),
        "t5xxl": t5.T5(config("text_encoders/t5_config_xxl.json"), *arguments),
        "qwen25_7b": llama.Qwen25_7BVLI({}, *arguments),
    }
    return {
        name: {f"{name}.{key}": shape for key, shape in _shapes(module).items()}
        for name, module in modules.items()
    }


def _shapes(module: Any) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def _parts(
    diffusion: dict[str, tuple[int, ...]], text: dict[str, tuple[int, ...]], vae: int
) -> Any:
    from intelligent_generation.core.catalog import SafetensorsHeader, TensorInfo
    from intelligent_generation.core.memory.allocation import PartSize, part_sizes

    def header(shapes: dict[str, tuple[int, ...]]) -> SafetensorsHeader:
        return SafetensorsHeader(
            {},
            {key: TensorInfo("F16", shape, 2 * math.prod(shape)) for key, shape in shapes.items()},
        )

    sizes = part_sizes([("diffusion_model", header(diffusion)), ("text_encoder", header(text))])
    return (*sizes, PartSize("vae", "float16", vae, vae, vae, vae))


# --------------------------------------------------------------------------- strategies


def measure_strategies(checkpoint: Path, rounds: int) -> dict[str, Any]:
    """Seconds an image of each strategy on this device, in batches of 1 and 4; all streamed under
    a limit that leaves no room for weights. Ratios to FULL_GPU, in turn in one process."""
    import torch
    from intelligent_generation.core import host
    from intelligent_generation.core.memory import (
        FreeMemory,
        place,
        plan_memory,
        read_free,
        read_machine,
    )

    machine = host.HostMachine()
    loaded = host.load_checkpoint(checkpoint)
    parts = (loaded.model, loaded.clip, loaded.vae)
    plain = plan_memory(read_machine(machine))
    side = 256
    free: FreeMemory = read_free(machine)
    positive, negative = (host.encode(loaded.clip, [text]) for text in (PROMPT, ""))

    def limited(strategy: str, batch: int, share: float) -> Any:
        shape = [2 * batch, 4, side // 8, side // 8]
        room = int(loaded.model.model_size() * share)
        cap = int(loaded.model.model.memory_required(shape)) + room
        return plain.model_copy(update={"strategy": strategy, "max_vram_bytes": cap})

    def plans(batch: int) -> dict[str, Any]:
        return {
            "FULL_GPU": plain.model_copy(update={"strategy": "FULL_GPU"}),
            "CPU_OFFLOAD": plain.model_copy(update={"strategy": "CPU_OFFLOAD"}),
            "SEQUENTIAL": plain.model_copy(update={"strategy": "SEQUENTIAL"}),
            "half_streamed": limited("AUTO", batch, 0.5),
            "all_streamed": limited("AUTO", batch, 0.0),
        }

    out: dict[str, Any] = {}
    with torch.inference_mode():
        for batch in (1, 4):
            times: dict[str, list[float]] = {name: [] for name in plans(batch)}
            for _ in range(rounds):
                for name, plan in plans(batch).items():
                    model, _, vae = place(plan, *parts, free)
                    started = time.perf_counter()
                    latent = host.sample(
                        model, positive, negative, host.empty_latent(side, side, batch, vae),
                        seed=1, steps=4, cfg=5.0, sampler="euler", scheduler="normal", denoise=1.0,
                    )  # fmt: skip
                    host.decode(vae, latent)
                    times[name].append((time.perf_counter() - started) / batch)
            seconds = {name: statistics.median(taken) for name, taken in times.items()}
            out[f"batch of {batch}"] = {
                "seconds_an_image": seconds["FULL_GPU"],
                "of_full_gpu": {
                    name: round(one / seconds["FULL_GPU"], 2) for name, one in seconds.items()
                },
            }
    return {"device": machine.device_name, **out}


# --------------------------------------------------------------------------- attention

ATTENTION = {
    "SD 1.5, 512x512": (8, 4096, 40), "SDXL, 1024x1024": (10, 4096, 64),
    "Flux, 512x512": (24, 1536, 128),
}  # fmt: skip
"""Heads, tokens and width of a head in the layers that take most time."""


def measure_attention(checkpoint: Path, rounds: int) -> dict[str, Any]:
    """Seconds of one call of each attention function that is there, and which one is used."""
    import comfy.ldm.modules.attention as attention
    import comfy.model_management as model_management
    import torch
    from intelligent_generation.core import host

    device = model_management.get_torch_device()
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    wait = getattr(getattr(torch, device.type, None), "synchronize", lambda: None)
    functions = attention.REGISTERED_ATTENTION_FUNCTIONS
    out: dict[str, Any] = {}
    for name, (heads, tokens, width) in ATTENTION.items():
        query, key, value = (
            torch.randn(1, tokens, heads * width, dtype=dtype, device=device) for _ in range(3)
        )
        times: dict[str, list[float]] = {backend: [] for backend in functions}
        for _ in range(rounds):
            for backend, function in functions.items():
                wait()
                started = time.perf_counter()
                function(query, key, value, heads)
                wait()
                times[backend].append(time.perf_counter() - started)
        out[name] = {backend: statistics.median(taken) for backend, taken in times.items()}
    return {
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "used": host.HostMachine().attention_backend(),
        "seconds": out,
    }


MEASURES: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "int8": measure,
    "sizes": measure_sizes,
    "strategies": measure_strategies,
    "attention": measure_attention,
}

if __name__ == "__main__":
    comfyui, base, what, checkpoint, rounds = sys.argv[1:]
    start(Path(comfyui), Path(base))
    print(json.dumps(MEASURES[what](Path(checkpoint), int(rounds))))
