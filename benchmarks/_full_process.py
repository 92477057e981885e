"""Run by _memory_full.py in processes of their own, inside ComfyUI: writes models of full size,
loads them by the pack's loader, runs them, and measures the memory of each step.

    python _full_process.py COMFYUI BASE TASK

TASK is a JSON object; prints one JSON object.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import time
from pathlib import Path
from typing import Any

GIB = 2**30
PROMPT = "a lighthouse at dusk, watercolor"
SPARE = 1.5 * GIB
"""RAM that stays free beside what a load is predicted to take."""
NEVER = 1 << 60
"""Bytes that no card has: without a limit."""


# --------------------------------------------------------------------------- files


def write(task: dict[str, Any]) -> dict[str, Any]:
    """Files of random weights, tensor by tensor."""
    from intelligent_generation.benchmarks import _full_models

    sizes = {}
    for name, (folder, dtype, shapes) in _full_models.files(task["model"]).items():
        path = Path(task["folder"]) / folder / name
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, dtype, shapes)
        sizes[name] = path.stat().st_size
    return {"files": sizes}


def count(task: dict[str, Any]) -> dict[str, Any]:
    """Bytes that `write` would still write."""
    import torch
    from intelligent_generation.benchmarks import _full_models

    missing = [
        getattr(torch, dtype).itemsize * sum(map(math.prod, shapes.values()))
        for name, (folder, dtype, shapes) in _full_models.files(task["model"]).items()
        if not (Path(task["folder"]) / folder / name).is_file()
    ]
    return {"bytes": sum(missing)}


_NAMES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


def _write(path: Path, dtype: str, shapes: dict[str, tuple[int, ...]]) -> None:
    import torch

    kind = getattr(torch, dtype)
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * kind.itemsize
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(0)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            file.write(_weight(name, shape, kind, generator).view(torch.uint8).numpy())
    part.replace(path)


def _weight(name: str, shape: tuple[int, ...], dtype: Any, generator: Any) -> Any:
    """Flat. Norms and biases do nothing; the rest keeps the size of a signal."""
    import torch

    if len(shape) < 2:
        return torch.full((max(1, math.prod(shape)),), 0.0 if name.endswith("bias") else 1.0).to(
            dtype
        )
    spread = math.sqrt(3 / math.prod(shape[1:]))
    values = torch.empty(math.prod(shape), dtype=dtype)
    return values.uniform_(-spread, spread, generator=generator)


# --------------------------------------------------------------------------- memory


class OwnMemory:
    """The most private memory that this process has while a block runs; files that are mapped and
    only read are not in it, since the system takes their pages back when it needs them."""

    def __init__(self) -> None:
        self.start = self.peak = _anonymous()
        self.seconds = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> OwnMemory:
        self.seconds = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.seconds
        self._ended.set()
        self._thread.join()
        self.peak = max(self.peak, _anonymous())

    @property
    def rise(self) -> int:
        return self.peak - self.start

    def _watch(self) -> None:
        while not self._ended.wait(0.005):
            self.peak = max(self.peak, _anonymous())


def _anonymous() -> int:
    with Path("/proc/self/status").open(encoding="utf-8") as file:
        for line in file:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError("This system does not tell private memory apart (RssAnon).")


def _stored(module: Any) -> int:
    """Bytes of the memory that a module's tensors lie in, each piece once."""
    pieces = {}
    for tensor in (*module.parameters(), *module.buffers()):
        for one in (tensor, getattr(tensor, "_qdata", None)):
            if one is not None and hasattr(one, "untyped_storage"):
                storage = one.untyped_storage()
                pieces[storage.data_ptr()] = storage.nbytes()
    return sum(pieces.values())


def _gib(size: float) -> float:
    return round(size / GIB, 3)


# --------------------------------------------------------------------------- loading and running


def load(task: dict[str, Any]) -> dict[str, Any]:
    """What loading takes, and each of the task's steps after it."""
    import torch
    from intelligent_generation.core import host
    from intelligent_generation.core.services import services

    own = services()
    own.memory.set_pool({"quantized_disk_gb": task["disk_gb"]})
    plan = _plan(task)
    choice = own.models.choose_model(**task["choice"])
    predicted, largest = _predict(own, choice, plan)
    in_file = predicted.strategy == "DISK_OFFLOAD"
    rows = {row.role: (row.dtype, row.bytes) for row in predicted.rows}
    need = sum(
        0 if in_file and role != "vae" else size for role, (_, size) in rows.items()
    )  # fmt: skip
    free = own.memory.free_memory().ram
    if need + largest + SPARE > free:
        raise RuntimeError(
            f"Loading is predicted to take {_gib(need)} GiB, and {_gib(free)} GiB of RAM can be "
            "had. Close other programs."
        )
    with OwnMemory() as taken:
        loaded = own.models.load(choice, plan)
    modules = {
        "diffusion_model": host.diffusion_module(loaded.model),
        "text_encoder": host.text_encoder_module(loaded.clip),
        "vae": host.vae_module(loaded.vae),
    }
    measured = {role: _stored(module) for role, module in modules.items()}
    counted = {role: host.count_weights(module) for role, module in modules.items()}
    out: dict[str, Any] = {
        "predicted": predicted.strategy,
        "free_gib": _gib(free),
        "loaded_as": loaded.info.weight_dtype,
        "parts": {
            role: {
                "predicted": rows[role][0],
                "dtype": counted[role].dtype,
                "predicted_gib": _gib(rows[role][1]),
                "gib": _gib(measured[role]),
                "ratio": round(measured[role] / rows[role][1], 4),
                "counted": round(counted[role].bytes / rows[role][1], 4),
            }
            for role in modules
        },
        "load": {
            "seconds": round(taken.seconds, 1),
            "peak_gib": _gib(taken.rise),
            "of_weights": round(taken.rise / max(1, need), 3),
            "limit_gib": _gib(1.15 * need + largest),
        },
        "report": loaded.report.splitlines()[-2:],
    }
    steps = {"encode": _encode, "sample": _sample, "decode": _decode, "placed": _placed}
    with torch.inference_mode():
        for number, step in enumerate(task["steps"]):
            kind, *arguments = step
            out[f"{number} {kind}"] = steps[kind](loaded, plan, *arguments)
    return out


def _plan(task: dict[str, Any]) -> Any:
    from intelligent_generation.core import host
    from intelligent_generation.core.memory import plan_memory, read_machine

    return plan_memory(
        read_machine(host.HostMachine()),
        strategy=task["strategy"],
        weight_dtype=task["weight_dtype"],
    )


def _headers(own: Any, choice: Any) -> list[Any]:
    from intelligent_generation.core.catalog import read_header

    files = [choice.model, *choice.text_encoders, *([choice.vae] if choice.vae else [])]
    roles = {"checkpoints": None, "diffusion_models": "diffusion_model", "vae": "vae"}
    return [
        (roles.get(file.folder, "text_encoder"), read_header(_path(file))) for file in files
    ]  # fmt: skip


def _path(file: Any) -> Path:
    from intelligent_generation.core import host

    folders = host.model_folders(file.folder)
    return next(one / file.name for one in folders if (one / file.name).is_file())


def _predict(own: Any, choice: Any, plan: Any) -> tuple[Any, int]:
    """The allocation table, and the bytes of the largest tensor."""
    from intelligent_generation.core import host
    from intelligent_generation.core.memory.allocation import allocate, part_sizes

    headers = _headers(own, choice)
    allocation = allocate(
        plan,
        part_sizes(headers, host.vae_dtype(), stay_float32=host.float32_beside_int8()),
        own.memory.free_memory(),
        name=choice.model.name,
        quantized=False,
        supported=host.weight_dtypes(),
    )
    largest = max(tensor.bytes for _, header in headers for tensor in header.tensors.values())
    return allocation, largest


def _encode(loaded: Any, plan: Any) -> dict[str, Any]:
    from intelligent_generation.core import host

    with OwnMemory() as taken:
        host.encode(loaded.clip, [PROMPT])
    return {"seconds": round(taken.seconds, 1), "peak_gib": _gib(taken.rise)}


def _sample(loaded: Any, plan: Any, side: int, cfg: float) -> dict[str, Any]:
    """One step; the memory beside the weights against ComfyUI's estimates."""
    with OwnMemory() as taken:
        latent = _step(loaded, side, cfg)
    model = loaded.model.model
    shape = [(2 if cfg > 1 else 1) * 1, 1, side // 8, side // 8]
    cells = shape[0] * shape[2] * shape[3]
    card = cells * 0.01 * model.memory_usage_factor * 2**20
    return {
        "side": side,
        "finite": bool(latent["samples"].isfinite().all()),
        "seconds": round(taken.seconds, 1),
        "peak_gib": _gib(taken.rise),
        # BaseModel.memory_required: with an attention that keeps no scores, bytes of the type a
        # cell; without, more. A card computes in 2 bytes, this processor in 4.
        "estimate_here_gib": _gib(model.memory_required(shape)),
        "estimate_4_bytes_gib": _gib(4 * card),
        "estimate_2_bytes_gib": _gib(2 * card),
    }


def _step(loaded: Any, side: int, cfg: float) -> Any:
    from intelligent_generation.core import host

    positive, negative = (host.encode(loaded.clip, [text]) for text in (PROMPT, ""))
    return host.sample(
        loaded.model, positive, negative, host.empty_latent(side, side, 1, loaded.vae),
        seed=1, steps=1, cfg=cfg, sampler="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip


def _decode(loaded: Any, plan: Any, side: int, cap: float | None) -> dict[str, Any]:
    """Decoding, whole, or as the pack does it under a limit."""
    import torch
    from intelligent_generation.core import host
    from intelligent_generation.core.memory import place

    vae, tile = loaded.vae, None
    shape = (1, loaded.model.model.latent_format.latent_channels, side // 8, side // 8)
    if cap is not None:
        limited = plan.model_copy(update={"max_vram_bytes": int(cap * GIB)})
        vae = place(limited, None, None, vae, _card(cap)).vae
        tile = vae._plan(vae.memory_used_decode, shape, 1)[1]
    latent = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with OwnMemory() as taken:
        image = host.decode(vae, {"samples": latent}).image
    computed = shape if tile is None else (*shape[:2], tile, tile)
    return {
        "side": side,
        "cap_gib": cap,
        "tile": None if tile is None else 8 * tile,
        "finite": bool(image.isfinite().all()),
        "seconds": round(taken.seconds, 1),
        "peak_gib": _gib(taken.rise),
        "dtype": str(vae.vae_dtype).removeprefix("torch."),
        "estimate_gib": _gib(vae.memory_used_decode(computed, vae.vae_dtype)),
    }


def _card(vram_gib: float) -> Any:
    from intelligent_generation.core.memory import FreeMemory

    return FreeMemory(int(vram_gib * GIB), NEVER)


def _placed(loaded: Any, plan: Any, cap: float, side: int, cfg: float) -> dict[str, Any]:
    """What the table for a card with a limit says of the diffusion model, and what a run holds."""
    from intelligent_generation.core import host
    from intelligent_generation.core.host import rules
    from intelligent_generation.core.memory import Machine, place, plan_memory
    from intelligent_generation.core.memory.allocation import PartSize, allocate

    size = int(loaded.model.model_size())
    working = int(loaded.model.model.memory_required([2, 1, side // 8, side // 8]))
    card = Machine("card", "cuda", 24 * GIB, NEVER, False, "NORMAL_VRAM")
    part = PartSize("diffusion_model", "float16", size, size, size, size)
    (row,) = allocate(
        plan_memory(card, max_vram_gb=cap),
        [part],
        _card(24),
        name="the model",
        quantized=True,
        supported=(),
        working=working,
    ).rows
    limited = plan.model_copy(update={"max_vram_bytes": int(cap * GIB)})
    model, clip, vae = place(limited, loaded.model, loaded.clip, loaded.vae, _card(24))
    with OwnMemory() as taken:
        _step(loaded._replace(model=model, clip=clip, vae=vae), side, cfg)
    held, layer = int(model.loaded_size()), rules._on_top(model)
    streamed = [
        layer for layer in model.model.modules() if hasattr(layer, "prev_comfy_cast_weights")
    ]
    host.unload_others()
    return {
        "cap_gib": cap,
        "side": side,
        "computing_gib": _gib(working),
        # At most: with what the layer that computes takes beside the weights that are held.
        "predicted_gib": _gib(row.device_bytes),
        "held_gib": _gib(held),
        "layer_gib": _gib(layer),
        "share": round(held / size, 3),
        "in_all_gib": _gib(held + layer + working),
        "streamed_layers": len(streamed),
        "peak_gib": _gib(taken.rise),
        "seconds": round(taken.seconds, 1),
    }


TASKS = {"count": count, "write": write, "load": load}

if __name__ == "__main__":
    from intelligent_generation.benchmarks._memory_process import start

    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    comfyui, base, given = sys.argv[1:]
    start(Path(comfyui), Path(base), "--use-pytorch-cross-attention")
    wanted = json.loads(given)
    print(json.dumps(TASKS[wanted["what"]](wanted)))
