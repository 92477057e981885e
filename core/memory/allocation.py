"""Files' headers + MemoryPlan + free memory -> what is loaded in which data type, and where."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from ..catalog import SafetensorsHeader
from ..errors import SettingError
from ..plan import MemoryPlan, Strategy, WeightDtype
from .formats import is_format
from .quantization import INT4_FORMAT, int4_bytes, int8_bytes
from .resources import FreeMemory, human_bytes
from .strategy import OWN_MEMORY, makes_room

Role = Literal["diffusion_model", "text_encoder", "vae"]

_TORCH_NAMES: dict[WeightDtype, str | None] = {
    "auto": None,
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp8": "float8_e4m3fn",
    "int8": "int8",
    "int4": "int4",
}
"""What the widget's choices are called by torch; None leaves the choice to ComfyUI."""

WORKING_BYTES = 1_288_490_189
"""What ComfyUI keeps free of weights for computing: 0.8 GiB and 0.4 GiB of reserve
(minimum_inference_memory in its model_management.py)."""
_LOADING = 1.1
"""Room that ComfyUI makes for a model, as a share of its bytes (load_models_gpu)."""
_CPU_ITEM = 4  # ComfyUI computes in float32 on a CPU, and holds the diffusion model so
_ITEMS = {"float32": 4, "float16": 2, "bfloat16": 2}
_PREFIXES: tuple[tuple[str, Role], ...] = (
    ("model.diffusion_model.", "diffusion_model"),
    ("model.model.", "diffusion_model"),
    ("first_stage_model.", "vae"),
    ("vae.", "vae"),
    ("cond_stage_model.", "text_encoder"),
    ("conditioner.", "text_encoder"),
    ("text_encoders.", "text_encoder"),
)
"""How checkpoints name their parts (ComfyUI's model_detection.py and supported_models.py)."""
_SAFETENSORS = {
    "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I8": "int8", "U8": "uint8", "F64": "float64",
}  # fmt: skip
_QUANTIZED = (".comfy_quant", ".weight_scale", ".scale_weight", "scaled_fp8")
"""Ends of names that only files in a quantized format have."""
_SCALES = (".comfy_quant", ".weight_scale", ".weight_scale_2", ".input_scale")


class PartSize(NamedTuple):
    """One part of a model as its files hold it."""

    role: Role
    dtype: str
    """Data type of most of its bytes, as torch names it."""
    bytes: int
    cpu_bytes: int
    """What it takes where ComfyUI computes on a CPU."""
    int8_bytes: int
    int4_bytes: int


class Row(NamedTuple):
    """One line of the allocation table."""

    role: Role
    dtype: str
    bytes: int
    where: str
    device_bytes: int
    """What of it is on the device at most while it runs; 0 where it runs on the processor."""


class Allocation(NamedTuple):
    """What a load will take."""

    weight_dtype: WeightDtype
    """What to load in; auto: as ComfyUI chooses. Where AUTO chose int8, int8."""
    dtype: str | None
    """torch's name for it; None as ComfyUI chooses."""
    strategy: Strategy
    """The plan's; DISK_OFFLOAD where AUTO chose that."""
    rows: tuple[Row, ...]
    together: bool
    """Whether the parts are on the device at the same time."""
    reasons: tuple[str, ...]
    """Why AUTO chose int8 or DISK_OFFLOAD; empty where it did not."""
    placement: str = ""
    """How AUTO holds the parts on a device with memory of its own, a sentence."""

    def peak_bytes(self, working: int) -> int:
        """Most bytes on the device in a run that computes in `working` bytes."""
        held = [row.device_bytes for row in self.rows]
        return working + (sum(held) if self.together else max(held, default=0))


def part_sizes(
    headers: Sequence[tuple[Role | None, SafetensorsHeader]],
    vae_dtype: str | None = None,
    *,
    stay_float32: bool = False,
) -> tuple[PartSize, ...]:
    """The parts in some files.

    Args:
        headers: of each file, with its role; None for a checkpoint, which holds several.
        vae_dtype: torch's name of what ComfyUI makes the weights of VAEs here, whatever the file
            has; None: as the file.
        stay_float32: whether the weights of a diffusion model that do not become int8 or int4 are
            float32 here; see `host.float32_beside_int8`.
    """
    tensors: dict[Role, list[_Tensor]] = {}
    own_files = {given for given, _ in headers}
    for given, header in headers:
        for full_name, info in header.tensors.items():
            role, name = (given, full_name) if given else _part_of(full_name)
            if given is None and role in own_files:
                continue  # a file of its own takes the place of what is in the checkpoint
            dtype, size = info.dtype, info.bytes
            if role == "vae" and vae_dtype is not None:
                dtype, size = vae_dtype, math.prod(info.shape) * _ITEMS[vae_dtype]
            # ComfyUI keeps what a file has in a format of its own, on a processor too.
            kept = role != "diffusion_model" or is_format(info.dtype) or name.endswith(_SCALES)
            cpu_size = size if kept else math.prod(info.shape) * _CPU_ITEM
            tensors.setdefault(role, []).append(_Tensor(name, info.shape, dtype, size, cpu_size))
    return tuple(
        _size(role, tensors[role], stay_float32) for role in get_args(Role) if role in tensors
    )


class _Tensor(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    cpu_bytes: int


def _part_of(name: str) -> tuple[Role, str]:
    for prefix, role in _PREFIXES:
        if name.startswith(prefix):
            return role, name[len(prefix) :]
    return "diffusion_model", name


def _size(role: Role, tensors: Sequence[_Tensor], stay_float32: bool) -> PartSize:
    dtypes: Counter[str] = Counter()
    for tensor in tensors:
        dtypes[tensor.dtype] += tensor.bytes
    most = max(dtypes, key=dtypes.__getitem__)
    stored = sum(dtypes.values())
    on_cpu = sum(tensor.cpu_bytes for tensor in tensors)
    small = smaller = stored
    if role != "vae":
        stay = [
            (one.name, one.shape, one.cpu_bytes if stay_float32 else one.bytes) for one in tensors
        ]
        whole = on_cpu if stay_float32 else stored
        small, smaller = (min(count(role, stay), whole) for count in (int8_bytes, int4_bytes))
    return PartSize(role, _SAFETENSORS.get(most, most), stored, on_cpu, small, smaller)


def is_quantized(header: SafetensorsHeader) -> bool:
    """Whether a file's weights are in 8 bits or less already."""
    if any(name.endswith(_QUANTIZED) for name in header.tensors):
        return True
    small = sum(t.bytes for t in header.tensors.values() if t.bytes < 2 * math.prod(t.shape))
    return 2 * small > sum(tensor.bytes for tensor in header.tensors.values())


def allocate(
    plan: MemoryPlan,
    parts: Sequence[PartSize],
    free: FreeMemory,
    *,
    name: str,
    quantized: bool,
    supported: Sequence[str],
    working: int = WORKING_BYTES,
) -> Allocation:
    """In which data type to load a model, and where its parts will be. Pure.

    A plan's own weight_dtype and strategy are taken as they are. `auto` leaves the data type to
    ComfyUI unless memory is short: when the model does not fit into the RAM that is free, or its
    diffusion model not into VRAM where ComfyUI does not stream weights by itself, and int8 helps.
    AUTO leaves the weights in their files when they do not fit into RAM even so. Of VRAM, it keeps
    all parts there together where they fit beside computing; else text encoder and VAE leave it
    while the diffusion model samples, and what of that does not fit is streamed in.

    Args:
        parts: as `part_sizes` gives them.
        free: what can be had now; VRAM with what ComfyUI would make room in.
        name: of the model, for messages.
        quantized: `is_quantized` of one of its files.
        supported: torch's names of what this machine can load, and int8 if it can.
        working: bytes of VRAM that computing takes beside the weights.

    Raises:
        SettingError: the plan's data type is not supported here, the file is quantized already,
            or FULL_GPU does not fit.
    """
    wanted = plan.weight_dtype
    dtype = _TORCH_NAMES[wanted]
    strategy = plan.strategy
    reasons: list[str] = []
    if wanted != "auto":
        if wanted == "int4" and dtype not in supported:
            raise SettingError(
                "weight_dtype int4 cannot be made here: it needs a ComfyUI with the 4-bit format "
                f"{INT4_FORMAT} (0.8 or newer, with its comfy-kitchen library working on this "
                "device), and a file whose tensors have ComfyUI's own names. Use int8."
            )
        if dtype not in supported:
            raise SettingError(
                f"weight_dtype {wanted} does not work on this device. Set it to auto in "
                "MemoryStrategy."
            )
        if quantized:
            raise SettingError(
                f"The weights of {name} are quantized already, so weight_dtype {wanted} cannot be "
                "made from them. Set it to auto in MemoryStrategy, or load a full file."
            )
        if strategy == "DISK_OFFLOAD":
            raise SettingError(
                f"DISK_OFFLOAD uses weights as the file has them, so weight_dtype {wanted} cannot "
                "be had with it. Set one of them to auto or AUTO in MemoryStrategy."
            )
    elif not quantized and "int8" in supported and (reason := _short(plan, parts, free, working)):
        wanted = dtype = "int8"
        reasons.append(f"At int8, because {reason}.")
    if strategy == "DISK_OFFLOAD" and quantized and not plan.dynamic_vram:
        raise SettingError(
            f"DISK_OFFLOAD cannot use {name}: its weights are quantized, and ComfyUI makes them "
            "whole in RAM. Set strategy to SEQUENTIAL in MemoryStrategy, or load a full file."
        )
    sizes = [_size_in(part, dtype, on_cpu=plan.device.kind == "cpu") for part in parts]
    needed = sum(size for _, size in sizes)
    if strategy == "AUTO" and needed > free.ram and not (plan.dynamic_vram or quantized):
        strategy, wanted, dtype = "DISK_OFFLOAD", "auto", None
        reasons = [
            f"The weights stay in the file, because they take {human_bytes(needed)} of RAM at "
            f"the least, and {human_bytes(free.ram)} can be had."
        ]
    if strategy == "DISK_OFFLOAD":  # weights are used as the file has them
        sizes = [(part.dtype, part.bytes) for part in parts]
    rows, together = _place(plan, strategy, parts, sizes, free, working)
    placement = ""
    if strategy == "AUTO" and plan.device.kind in OWN_MEMORY:
        placement = _placement(plan, rows, together, free, working)
    return Allocation(wanted, dtype, strategy, rows, together, tuple(reasons), placement)


def room_for_weights(plan: MemoryPlan, vram: int, working: int) -> int:
    """Bytes of VRAM that weights may take beside what computing takes."""
    return max(0, min(vram, plan.max_vram_bytes or vram) - working)


def _short(
    plan: MemoryPlan, parts: Sequence[PartSize], free: FreeMemory, working: int
) -> str | None:
    if plan.strategy == "DISK_OFFLOAD":
        return None
    on_cpu = plan.device.kind == "cpu"
    whole = sum(part.cpu_bytes if on_cpu else part.bytes for part in parts)
    if whole > free.ram and sum(part.int8_bytes for part in parts) <= free.ram:
        return (
            f"the model takes {human_bytes(whole)} of RAM, and {human_bytes(free.ram)} can be had"
        )
    if plan.device.kind not in OWN_MEMORY or plan.dynamic_vram:
        return None
    room = room_for_weights(plan, free.vram, working)
    diffusion = next((part for part in parts if part.role == "diffusion_model"), None)
    if diffusion is None or diffusion.bytes <= room or diffusion.int8_bytes > room:
        return None
    return (
        f"the diffusion model takes {human_bytes(diffusion.bytes)} of VRAM, and "
        f"{human_bytes(room)} can be had beside what computing needs; at int8 it fits"
    )


def _size_in(part: PartSize, dtype: str | None, *, on_cpu: bool) -> tuple[str, int]:
    if dtype == "int4" and part.role == "diffusion_model":
        return INT4_FORMAT, part.int4_bytes
    if dtype in ("int8", "int4") and part.role != "vae":
        return "int8", part.int8_bytes
    if part.role != "diffusion_model" or (dtype is None and not on_cpu):
        return part.dtype, part.bytes
    if dtype is None:
        return part.dtype if is_format(part.dtype) else "float32", part.cpu_bytes
    item = 1 if dtype.startswith("float8") else 2
    return dtype, part.cpu_bytes // _CPU_ITEM * item


def _place(
    plan: MemoryPlan,
    strategy: Strategy,
    parts: Sequence[PartSize],
    sizes: Sequence[tuple[str, int]],
    free: FreeMemory,
    working: int,
) -> tuple[tuple[Row, ...], bool]:
    home = "file" if strategy == "DISK_OFFLOAD" else "RAM"
    if plan.device.kind not in OWN_MEMORY:
        rows = [
            Row(part.role, *size, home, size[1]) for part, size in zip(parts, sizes, strict=True)
        ]
        return tuple(rows), True
    room = room_for_weights(plan, free.vram, working)
    on_processor = ("text_encoder", "vae") if strategy == "CPU_OFFLOAD" else ()
    whole = sum(
        size for part, (_, size) in zip(parts, sizes, strict=True) if part.role not in on_processor
    )
    if strategy == "FULL_GPU" and whole > room:
        raise SettingError(
            f"FULL_GPU does not fit: the model's parts take {human_bytes(whole)} and computing "
            f"{human_bytes(working)}, and {human_bytes(room + working)} of {plan.device.name} can "
            "be had. Set strategy to AUTO in MemoryStrategy, choose a smaller weight_dtype, or "
            "raise max_vram_gb if you set it."
        )
    needed = whole
    if strategy == "AUTO":
        main = [size for part, (_, size) in zip(parts, sizes, strict=True) if _samples(part)]
        needed += int((_LOADING - 1) * sum(main))
    together = strategy in ("AUTO", "FULL_GPU", "CPU_OFFLOAD") and needed <= room
    rows = []
    for part, (dtype, size) in zip(parts, sizes, strict=True):
        held = 0 if part.role in on_processor else min(size, room)
        if part.role in on_processor:
            where = f"{home}, runs on the processor"
        elif strategy == "AUTO" and not makes_room(plan):
            when = "as layers need it" if plan.dynamic_vram else "as ComfyUI decides"
            where = f"{home}, {plan.device.name} {when}"
        elif together:
            where = plan.device.name
        elif held < size:
            where = (
                f"{home}, {human_bytes(held)} on {plan.device.name} while it runs and the rest "
                "streamed in at each step"
            )
        else:
            where = f"{home}, {plan.device.name} while it runs"
        rows.append(Row(part.role, dtype, size, where, held))
    return tuple(rows), together


def _samples(part: PartSize | Row) -> bool:
    return part.role == "diffusion_model"


def _placement(
    plan: MemoryPlan, rows: Sequence[Row], together: bool, free: FreeMemory, working: int
) -> str:
    device = plan.device.name
    if not makes_room(plan):
        by = "ComfyUI's dynamic VRAM decides" if plan.dynamic_vram else "ComfyUI decides"
        return f"AUTO: {by} what is on {device} and when."
    if together:
        return f"AUTO: all parts are on {device} together."
    whole = human_bytes(sum(row.bytes for row in rows))
    room = human_bytes(min(free.vram, plan.max_vram_bytes or free.vram))
    streamed = any(_samples(row) and row.device_bytes < row.bytes for row in rows)
    rest = ", and what of it does not fit is streamed in at each step" if streamed else ""
    return (
        f"AUTO: the parts do not fit on {device} together ({whole} and {human_bytes(working)} for "
        f"computing, {room} can be had), so text encoder and VAE leave it while the diffusion "
        f"model samples{rest}."
    )


def table(allocation: Allocation) -> str:
    """The allocation for people, one part a line, the sum, and why."""
    lines = [
        f"{row.role.replace('_', ' ')}: {row.dtype}, {human_bytes(row.bytes)}, {row.where}"
        for row in allocation.rows
    ]
    total = human_bytes(sum(row.bytes for row in allocation.rows))
    notes = [*allocation.reasons, *filter(None, [allocation.placement])]
    return "\n".join([*lines, *notes, f"Together: {total}"])
