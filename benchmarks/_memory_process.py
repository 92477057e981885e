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
from typing import Any, NamedTuple

PROMPT = "a lighthouse at dusk, watercolor"
FULL_SIZE = ("SD15", "SDXL")
Q8_0_BLOCK = 32
"""Numbers that share one fp16 scale in GGUF's Q8_0 (ggml's quantize_row_q8_0)."""


def start(comfyui: Path, base: Path, *options: str) -> None:
    """ComfyUI's modules, as its main.py imports them."""
    sys.path[0] = str(Path(__file__).resolve().parent.parent / "scripts")
    import launch_comfyui

    sys.meta_path.insert(0, launch_comfyui.TorchvisionOperators())
    sys.path[0] = str(comfyui)
    os.chdir(comfyui)
    sys.argv = ["main.py", "--cpu", "--base-directory", str(base), *options]
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
    models["int8"] = host.load_checkpoint(checkpoint, lazy=whole)
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
    from intelligent_generation.benchmarks import _full_models
    from intelligent_generation.core.memory.quantization import int8_bytes

    weights = _full_models.unet(name)
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


# --------------------------------------------------------------------------- sizes

GIB = 2**30
CARDS = (4, 6, 8, 12, 16, 24)
"""GiB of VRAM that are simulated."""
LIMITS = ((4, 3.5), (8, 7.5), (8, 6.0), (8, 4.0), (24, 8.0))
"""Cards in GiB, and max_vram_gb."""
RESERVE = int(0.4 * GIB)
"""What ComfyUI keeps free beside what computing takes (EXTRA_RESERVED_VRAM; 0.6 on Windows)."""
COMFYUI_TILE = 64
"""Side in latent cells of a tile where ComfyUI decodes in tiles by itself."""


class _FullModel(NamedTuple):
    parts: Any
    cells: int
    """Of the latent's side."""
    computing: Callable[[int], int]
    """Bytes to compute so many texts in, ComfyUI's own estimate in half precision."""
    texts: int
    """2 with CFG, 1 without."""
    largest: int
    """Numbers in the largest weight that becomes int8."""
    vae: Any


def measure_sizes(checkpoint: Path, rounds: int) -> dict[str, Any]:
    """Placement and bytes that the planner predicts for models of full size; nothing is loaded
    but the VAEs, which tell what they decode in.

    Shapes are those of the real architectures; what computing and decoding take are ComfyUI's own
    estimates at 1024 x 1024 (SD 1.5: 512 x 512), in half precision. ComfyUI keeps free what one
    text takes and a reserve; `max_vram_gb` what two take. `table` is what placements by the size of
    the card alone take while sampling, beside AUTO; see _memory_floor.py.
    """
    import torch
    from intelligent_generation.benchmarks._memory_floor import counted, floor

    out: dict[str, Any] = {"measured_on_a_gpu": False}
    beside = []
    for name, model in _full_models().items():
        rows: dict[str, Any] = {
            "bytes": {part.role: part.bytes for part in model.parts},
            "int8_bytes": {part.role: part.int8_bytes for part in model.parts},
            "computing_gib": _gib(model.computing(model.texts)),
            "decode_gib": {
                "whole": _gib(_decode_bytes(model, model.cells)),
                "whole in float32": _gib(_decode_bytes(model, model.cells, torch.float32)),
                "a tile of 512 pixels": _gib(_decode_bytes(model, COMFYUI_TILE)),
            },
        }
        for vram in CARDS:
            rows[f"{vram} GiB"] = {
                strategy: _predicted(model, vram, strategy, None)
                for strategy in ("AUTO", "FULL_GPU", "CPU_OFFLOAD", "SEQUENTIAL", "DISK_OFFLOAD")
            }
            at_auto = _allocation(model, vram, "AUTO", None, "auto")
            beside.append(floor(at_auto, _reserved(model, None), vram * GIB))
            rows[f"{vram} GiB"]["table"] = beside[-1].as_gib()
        for vram, cap in LIMITS:
            rows[f"{vram} GiB, max_vram_gb {cap}"] = {
                weight_dtype: _predicted(model, vram, "AUTO", cap, weight_dtype)
                for weight_dtype in ("auto", "int8")
            }
        # The smallest limit that is kept with all weights streamed: computing alone.
        rows["least_gib"] = _gib(model.computing(2))
        out[name] = rows
    return out | {"floor": counted(beside)}


def _reserved(model: _FullModel, cap: float | None) -> int:
    if cap is not None:
        return model.computing(2)
    from intelligent_generation.core.memory.allocation import WORKING_BYTES

    return max(WORKING_BYTES, model.computing(1) + RESERVE)


def _allocation(
    model: _FullModel, vram: int, strategy: str, cap: float | None, weight_dtype: str
) -> Any:
    from intelligent_generation.core.memory import FreeMemory, Machine, plan_memory
    from intelligent_generation.core.memory.allocation import allocate

    machine = Machine("card", "cuda", vram * GIB, 64 * GIB, False, "NORMAL_VRAM")
    return allocate(
        plan_memory(machine, strategy=strategy, weight_dtype=weight_dtype, max_vram_gb=cap or 0.0),
        model.parts,
        FreeMemory(vram * GIB, 64 * GIB),
        name="the model",
        quantized=False,
        supported=("float16", "bfloat16", "float8_e4m3fn", "int8"),
        working=_reserved(model, cap),
    )


def _predicted(
    model: _FullModel, vram: int, strategy: str, cap: float | None, weight_dtype: str = "auto"
) -> dict[str, Any] | str:
    from intelligent_generation.core import host
    from intelligent_generation.core.errors import SettingError
    from intelligent_generation.core.host import rules

    # An int8 weight is made whole while its layer computes (core/host/rules.py); under a limit
    # room is kept for that.
    whole = 6 if not host.has_int8_format() else 2
    limit = int((cap or vram) * GIB)
    reserved = _reserved(model, cap)
    try:
        allocation = _allocation(model, vram, strategy, cap, weight_dtype)
    except SettingError:
        return "refused"
    held = {row.role: row.device_bytes for row in allocation.rows}
    casting = whole * model.largest if allocation.dtype == "int8" else 0
    if cap is not None:
        held["diffusion_model"] = min(held["diffusion_model"], max(0, limit - reserved - casting))
    computing = {
        "encode": ("text_encoder", rules._TEXT_WORKING),
        "sample": ("diffusion_model", model.computing(model.texts) + casting),
        "decode": ("vae", _decode_bytes(model, model.cells)),
    }
    tile = None
    if held["vae"] and held["vae"] + computing["decode"][1] > limit:
        tile = COMFYUI_TILE if cap is None else _tile(model, limit)
        computing["decode"] = ("vae", _decode_bytes(model, tile))
    sizes = {row.role: row.bytes for row in allocation.rows}
    peaks = {
        stage: 0 if strategy == "CPU_OFFLOAD" and not held[role] else held[role] + taken
        for stage, (role, taken) in computing.items()
    }
    if allocation.together:
        for stage, (role, _) in computing.items():
            whole = peaks[stage] - held[role] + sum(held.values())
            # Under a limit all others leave where they do not fit; else as much as is short.
            if cap is None:
                peaks[stage] = max(peaks[stage], min(limit - RESERVE, whole))
            elif whole <= limit:
                peaks[stage] = whole
    return {
        "dtype": allocation.dtype or "as the file",
        "peak_gib": {"all": _gib(max(peaks.values()))} | {k: _gib(v) for k, v in peaks.items()},
        "decode_tile": None if tile is None else 8 * tile,
        "on_device": {role: round(held[role] / max(1, sizes[role]), 2) for role in held},
        "together": allocation.together,
    }


def _tile(model: _FullModel, limit: int) -> int:
    """The side of the tiles that the pack decodes in under a limit."""
    from intelligent_generation.core import host

    ruled = host.vae_with_rule(model.vae, host.MemoryRule(cap=limit))
    latent = _latent(model, model.cells)
    return int(ruled._plan(ruled.memory_used_decode, latent, 1)[1] or model.cells)


def _decode_bytes(model: _FullModel, cells: int, dtype: Any = None) -> int:
    used = model.vae.memory_used_decode(_latent(model, cells), dtype or model.vae.vae_dtype)
    return int(used)


def _latent(model: _FullModel, cells: int) -> tuple[int, ...]:
    frames = (1,) if model.vae.latent_dim == 3 else ()
    return (1, model.vae.latent_channels, *frames, cells, cells)


def _gib(size: float) -> float:
    return round(size / GIB, 2)


def _full_models() -> dict[str, _FullModel]:
    from intelligent_generation.benchmarks import _full_models as full

    encoders = {
        name: {f"{name}.{key}": shape for key, shape in full.text_encoder(name).items()}
        for name in ("clip_l", "clip_g", "t5xxl", "qwen25_7b")
    }
    two_clips = encoders["clip_l"] | encoders["clip_g"]
    made = {
        "sd15": (full.unet("SD15"), encoders["clip_l"], full.vae(4), 64, 1.0, 2),
        "sdxl": (full.unet("SDXL"), two_clips, full.vae(4), 128, 0.8, 2),
        "flux-dev": (
            full.flux_dev(), encoders["clip_l"] | encoders["t5xxl"], full.vae(16), 128, 3.1, 1,
        ),
        "qwen-image": (
            full.qwen_image(), encoders["qwen25_7b"], full.qwen_image_vae(), 128, 1.8, 2,
        ),
    }  # fmt: skip
    return {name: _full_model(*values) for name, values in made.items()}


def _full_model(
    diffusion: Any, text: Any, vae: Any, cells: int, factor: float, texts: int
) -> _FullModel:
    import comfy.sd
    import torch
    from intelligent_generation.core.memory.quantization import kept_because

    def computing(texts: int) -> int:
        # BaseModel.memory_required: bytes of the type, 0.01 MiB a cell, the family's factor.
        return int(texts * cells**2 * 2 * 0.01 * factor * 2**20)

    weights = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in vae.items()}
    largest = max(
        math.prod(shape)
        for name, shape in diffusion.items()
        if kept_because("diffusion_model", name, shape) is None
    )
    return _FullModel(
        _parts(diffusion, text, 2 * sum(map(math.prod, vae.values()))),
        cells,
        computing,
        texts,
        largest,
        comfy.sd.VAE(sd=weights, dtype=torch.bfloat16),
    )


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
