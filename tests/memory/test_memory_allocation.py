"""What to load in which data type, from headers, the plan and free memory."""

from __future__ import annotations

import pytest
from intelligent_generation.benchmarks._memory_floor import floor
from intelligent_generation.core.catalog import SafetensorsHeader, TensorInfo
from intelligent_generation.core.errors import SettingError
from intelligent_generation.core.memory import FreeMemory, Machine, plan_memory
from intelligent_generation.core.memory.allocation import (
    WORKING_BYTES,
    PartSize,
    allocate,
    is_quantized,
    part_sizes,
    table,
)
from intelligent_generation.core.plan import MemoryPlan

GIB = 2**30
ALL = ("float16", "bfloat16", "float8_e4m3fn", "int8")

# Parameters of the parts, from the papers and model cards: SD 1.5's UNet 860 M (CompVis model
# card), SDXL's 2.6 B (arXiv:2307.01952), Flux 12 B (Black Forest Labs), Qwen-Image 20 B
# (arXiv:2508.02324); int8 takes half of fp16 and what stays.
MODELS = {"sd15": (0.86, 0.12), "sdxl": (2.57, 0.82), "flux": (11.9, 4.9), "qwen": (20.4, 7.6)}


def parts(name: str) -> tuple[PartSize, ...]:
    diffusion, text = (int(billions * 1e9) for billions in MODELS[name])
    return (
        PartSize(
            "diffusion_model",
            "float16",
            2 * diffusion,
            4 * diffusion,
            int(1.01 * diffusion),
            int(0.6 * diffusion),
        ),
        PartSize("text_encoder", "float16", 2 * text, 2 * text, int(1.05 * text), int(1.05 * text)),
        PartSize("vae", "float16", *[170_000_000] * 4),
    )


def machine(vram: float, *, kind: str = "cuda", ram: float = 64, dynamic: bool = False) -> Machine:
    return Machine("Test Card", kind, int(vram * GIB), int(ram * GIB), dynamic, "NORMAL_VRAM")


def chosen(
    name: str,
    vram: float,
    *,
    ram: float = 64,
    kind: str = "cuda",
    dynamic: bool = False,
    weight_dtype: str = "auto",
    quantized: bool = False,
    supported: tuple[str, ...] = ALL,
    strategy: str = "AUTO",
    max_vram_gb: float = 0,
    working: int = WORKING_BYTES,
):
    plan: MemoryPlan = plan_memory(
        machine(vram, kind=kind, ram=ram, dynamic=dynamic),
        strategy=strategy,
        weight_dtype=weight_dtype,
        max_vram_gb=max_vram_gb,
    )
    free = FreeMemory(int(vram * GIB), int(ram * GIB))
    return allocate(
        plan,
        parts(name),
        free,
        name="a model",
        quantized=quantized,
        supported=supported,
        working=working,
    )


def tensors(**shapes: tuple[str, tuple[int, ...]]) -> SafetensorsHeader:
    size = {"F16": 2, "F32": 4, "F8_E4M3": 1, "I8": 1}
    table = {}
    for name, (dtype, shape) in shapes.items():
        count = 1
        for side in shape:
            count *= side
        table[name] = TensorInfo(dtype, shape, count * size[dtype])
    return SafetensorsHeader({}, table)


@pytest.mark.parametrize(
    ("name", "vram", "dtype"),
    [
        ("sd15", 4, None),
        ("sd15", 24, None),
        ("sdxl", 4, "int8"),
        ("sdxl", 8, None),
        ("flux", 12, None),  # int8 would not fit whole either: ComfyUI streams what it must
        ("flux", 16, "int8"),
        ("flux", 24, None),
        ("qwen", 16, None),
        ("qwen", 24, "int8"),
    ],
)
def test_auto_takes_int8_where_it_makes_the_model_fit_and_only_there(name, vram, dtype):
    allocation = chosen(name, vram)
    assert allocation.dtype == dtype
    assert (bool(allocation.reasons)) == (dtype == "int8")
    assert allocation.weight_dtype == (dtype or "auto")


def test_auto_leaves_hosts_alone_that_stream_weights():
    assert chosen("flux", 16, dynamic=True).dtype is None


def test_auto_takes_int8_when_ram_is_short_whatever_the_card():
    allocation = chosen("flux", 24, ram=24, dynamic=True)
    assert allocation.dtype == "int8"
    (reason,) = allocation.reasons
    assert "RAM" in reason
    assert "24.0 GiB can be had" in reason


def test_on_a_cpu_the_model_is_counted_in_float32():
    assert chosen("sdxl", 16, kind="cpu", ram=16).dtype is None
    assert chosen("sdxl", 11, kind="cpu", ram=11).dtype == "int8"
    rows = {row.role: row for row in chosen("sdxl", 16, kind="cpu", ram=16).rows}
    assert rows["diffusion_model"].dtype == "float32"
    assert rows["diffusion_model"].bytes == 4 * 2_570_000_000
    assert rows["diffusion_model"].where == "RAM"


@pytest.mark.parametrize(
    ("weight_dtype", "dtype", "item"),
    [("fp16", "float16", 2), ("bf16", "bfloat16", 2), ("fp8", "float8_e4m3fn", 1)],
)
def test_a_data_type_that_was_chosen_is_taken_however_much_room_there_is(weight_dtype, dtype, item):
    for vram in (2, 80):
        allocation = chosen("sdxl", vram, weight_dtype=weight_dtype)
        assert (allocation.dtype, allocation.reasons) == (dtype, ())
        assert allocation.weight_dtype == weight_dtype
        (row,) = (row for row in allocation.rows if row.role == "diffusion_model")
        assert (row.dtype, row.bytes) == (dtype, item * 2_570_000_000)


def test_int8_covers_the_text_encoders_and_not_the_vae():
    rows = {row.role: row for row in chosen("sdxl", 24, weight_dtype="int8").rows}
    assert rows["diffusion_model"].dtype == rows["text_encoder"].dtype == "int8"
    assert rows["vae"].dtype == "float16"
    assert rows["vae"].bytes == 170_000_000


def test_what_the_device_cannot_do_is_refused():
    with pytest.raises(SettingError, match="weight_dtype fp8 does not work on this device"):
        chosen("sdxl", 24, weight_dtype="fp8", supported=("float16", "bfloat16", "int8"))
    assert chosen("sdxl", 4, supported=("float16",)).dtype is None


@pytest.mark.parametrize("weight_dtype", ["fp16", "fp8", "int8"])
def test_a_quantized_file_is_taken_as_it_is_or_refused(weight_dtype: str):
    with pytest.raises(SettingError, match="a model are quantized already"):
        chosen("sdxl", 24, weight_dtype=weight_dtype, quantized=True)
    assert chosen("sdxl", 4, quantized=True).dtype is None


def test_quantized_files_are_told_from_full_ones():
    assert not is_quantized(tensors(**{"a.weight": ("F16", (9, 9)), "a.bias": ("F32", (9,))}))
    assert not is_quantized(tensors(**{"a.weight": ("F16", (9, 9)), "mask": ("I8", (9,))}))
    assert is_quantized(tensors(**{"a.weight": ("F8_E4M3", (9, 9)), "b.weight": ("F16", (9,))}))
    assert is_quantized(tensors(**{"a.weight": ("F16", (9, 9)), "a.comfy_quant": ("I8", (9,))}))


def test_the_parts_of_a_checkpoint_are_told_apart_and_files_of_their_own_take_their_place():
    checkpoint = tensors(
        **{
            "model.diffusion_model.input_blocks.1.0.in_layers.2.weight": ("F16", (320, 320, 3, 3)),
            "model.diffusion_model.time_embed.0.weight": ("F16", (1280, 320)),
            "conditioner.embedders.0.a.weight": ("F16", (512, 512)),
            "first_stage_model.decoder.weight": ("F32", (100,)),
            "alphas_cumprod": ("F32", (1000,)),
        }
    )
    sizes = {part.role: part for part in part_sizes([(None, checkpoint)])}
    convolution, embedding = 320 * 320 * 9, 1280 * 320
    assert sizes["diffusion_model"].bytes == 2 * (convolution + embedding) + 4000
    assert sizes["diffusion_model"].int8_bytes == convolution + 4 * 320 + 2 * embedding + 4000
    assert sizes["text_encoder"].int8_bytes == 512 * 512 + 4 * 512
    wide = {part.role: part for part in part_sizes([(None, checkpoint)], stay_float32=True)}
    assert wide["diffusion_model"].int8_bytes == convolution + 4 * 320 + 4 * embedding + 4000
    assert wide["text_encoder"] == sizes["text_encoder"]
    assert sizes["vae"] == PartSize("vae", "float32", 400, 400, 400, 400)
    (half,) = (part for part in part_sizes([(None, checkpoint)], "bfloat16") if part.role == "vae")
    assert half == PartSize("vae", "bfloat16", *[200] * 4), (
        "ComfyUI casts it, whatever the file has"
    )

    one, two = (tensors(**{"b.weight": ("F16", (size, size))}) for size in (300, 400))
    headers = [(None, checkpoint), ("text_encoder", one), ("text_encoder", two)]
    sizes = {part.role: part for part in part_sizes(headers)}
    assert sizes["text_encoder"].bytes == 2 * (300 * 300 + 400 * 400)
    assert sizes["vae"].bytes == 400


def test_the_table_tells_part_type_bytes_place_and_reason():
    text = table(chosen("sdxl", 4))
    lines = text.splitlines()
    assert lines[0] == "diffusion model: int8, 2.4 GiB, RAM, Test Card while it runs"
    assert lines[1].startswith("text encoder: int8, ")
    assert lines[2].startswith("vae: float16, 162.1 MiB")
    assert lines[3].startswith("At int8, because the diffusion model takes 4.8 GiB of VRAM")
    assert lines[4] == (
        "AUTO: the parts do not fit on Test Card together (3.4 GiB and 1.2 GiB for computing, "
        "4.0 GiB can be had), so text encoder and VAE leave it while the diffusion model samples."
    )
    assert lines[5].startswith("Together: ")


# --------------------------------------------------------------------------- placement

STRATEGIES = ("AUTO", "CPU_OFFLOAD", "SEQUENTIAL", "DISK_OFFLOAD")


@pytest.mark.parametrize("vram", [4, 6, 8, 12, 16, 24])
@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("dynamic", [False, True])
def test_every_card_gets_a_plan_that_fits_for_every_model(name: str, vram: int, dynamic: bool):
    for strategy in STRATEGIES:
        for cap in (0, 3, 0.5 * vram):
            allocation = chosen(name, vram, strategy=strategy, max_vram_gb=cap, dynamic=dynamic)
            limit = min(vram, cap or vram) * GIB
            assert allocation.peak_bytes(WORKING_BYTES) <= limit, (strategy, cap)
            assert sum(row.bytes for row in allocation.rows) > 0


@pytest.mark.parametrize("gib_to_compute_in", [1.2, 2.5, 3.9])
@pytest.mark.parametrize("vram", [4, 6, 8, 11.9, 12, 15.9, 16, 24])
@pytest.mark.parametrize("name", list(MODELS))
def test_auto_never_needs_more_than_the_table_of_placements_where_memory_is_short(
    name: str, vram: float, gib_to_compute_in: float
):
    working = int(gib_to_compute_in * GIB)
    for weight_dtype in ("auto", "fp16", "int8"):
        allocation = chosen(name, vram, weight_dtype=weight_dtype, working=working)
        beside = floor(allocation, working, int(vram * GIB))
        assert beside.auto_fits, "it runs, whatever the table's placement does"
        if not allocation.together:
            assert beside.auto_sampling <= beside.table_sampling
        assert beside.kept


def test_the_table_of_placements_is_counted_as_it_says():
    def sampling(name: str, vram: float) -> tuple[str, int]:
        allocation = chosen(name, vram, weight_dtype="fp16", working=GIB)
        beside = floor(allocation, GIB, int(vram * GIB))
        return beside.table, beside.table_sampling - GIB

    diffusion, text, vae = (part.bytes for part in parts("sdxl"))
    assert sampling("sdxl", 7.9) == ("one part at a time", diffusion)
    assert sampling("sdxl", 8) == ("diffusion model on the card", diffusion)
    assert sampling("sdxl", 12)[1] == diffusion + text
    assert sampling("sdxl", 16) == ("all on the card", diffusion + text + vae)
    # It goes by the card alone: Flux does not fit where it puts everything on the card.
    assert sampling("flux", 24)[1] + GIB > 24 * GIB


def test_auto_tells_how_it_holds_the_parts():
    def told(name: str, vram: float, **options) -> str:
        return chosen(name, vram, weight_dtype="fp16", **options).placement

    assert told("sdxl", 24) == "AUTO: all parts are on Test Card together."
    assert told("sdxl", 8).endswith("leave it while the diffusion model samples.")
    assert told("flux", 8).endswith("and what of it does not fit is streamed in at each step.")
    assert told("sdxl", 24, max_vram_gb=6).count("6.0 GiB can be had") == 1
    assert "dynamic VRAM decides" in told("sdxl", 8, dynamic=True)
    assert (
        told("sdxl", 1, kind="directml") == "AUTO: ComfyUI decides what is on Test Card and when."
    )
    assert told("sdxl", 16, kind="cpu", ram=16) == ""
    assert told("sdxl", 8, strategy="SEQUENTIAL") == ""


@pytest.mark.parametrize("vram", [4, 6, 8, 12, 16, 24])
@pytest.mark.parametrize("name", list(MODELS))
def test_full_gpu_fits_or_is_refused_before_loading(name: str, vram: int):
    needed = sum(part.bytes for part in parts(name)) + WORKING_BYTES
    if needed <= vram * GIB:
        allocation = chosen(name, vram, strategy="FULL_GPU", weight_dtype="fp16")
        assert allocation.together
        assert allocation.peak_bytes(WORKING_BYTES) == needed
        assert {row.where for row in allocation.rows} == {"Test Card"}
    else:
        with pytest.raises(SettingError, match=r"FULL_GPU does not fit: .* Test Card can be had"):
            chosen(name, vram, strategy="FULL_GPU", weight_dtype="fp16")


def test_where_each_part_is_by_strategy():
    def where(**options) -> list[str]:
        return [row.where for row in chosen("sdxl", 7, weight_dtype="fp16", **options).rows]

    while_it_runs = "RAM, Test Card while it runs"
    assert where() == [while_it_runs] * 3
    assert where(strategy="CPU_OFFLOAD") == ["Test Card", *["RAM, runs on the processor"] * 2]
    assert where(strategy="SEQUENTIAL") == [while_it_runs] * 3
    assert where(dynamic=True) == ["RAM, Test Card as layers need it"] * 3
    diffusion, text, _ = where(strategy="SEQUENTIAL", max_vram_gb=4)
    assert diffusion == (
        "RAM, 2.8 GiB on Test Card while it runs and the rest streamed in at each step"
    )
    assert text == while_it_runs
    rows = chosen("sdxl", 8, strategy="DISK_OFFLOAD").rows
    assert rows[0].where == "file, Test Card while it runs"


def test_a_larger_image_leaves_less_room_for_weights():
    small, large = (
        chosen("sdxl", 8, weight_dtype="fp16", working=working).rows[0].device_bytes
        for working in (GIB, 5 * GIB)
    )
    assert small == 2 * 2_570_000_000
    assert large == 3 * GIB


def test_a_limit_makes_auto_take_int8_where_it_helps():
    assert chosen("sdxl", 24).dtype is None
    assert chosen("sdxl", 24, max_vram_gb=4).dtype == "int8"


def test_below_ram_auto_leaves_the_weights_in_the_file():
    allocation = chosen("flux", 12, ram=10)
    assert (allocation.strategy, allocation.dtype) == ("DISK_OFFLOAD", None)
    (reason,) = allocation.reasons
    assert reason.startswith("The weights stay in the file, because they take ")
    assert chosen("flux", 12, ram=10, dynamic=True).strategy == "AUTO", "ComfyUI maps them itself"
    assert chosen("flux", 12, ram=10, quantized=True).strategy == "AUTO"
    assert chosen("flux", 12, ram=24).strategy == "AUTO"


def test_weights_that_stay_in_the_file_stay_as_they_are():
    with pytest.raises(SettingError, match="so weight_dtype int8 cannot be had with it"):
        chosen("sdxl", 8, strategy="DISK_OFFLOAD", weight_dtype="int8")
    with pytest.raises(SettingError, match=r"DISK_OFFLOAD cannot use a model: .* quantized"):
        chosen("sdxl", 8, strategy="DISK_OFFLOAD", quantized=True)
    assert chosen("sdxl", 4, strategy="DISK_OFFLOAD").dtype is None


def test_int4_is_comfyuis_format_for_the_diffusion_model_and_int8_for_text():
    made = chosen("flux", 12, weight_dtype="int4", supported=(*ALL, "int4"))
    assert [(row.role, row.dtype) for row in made.rows] == [
        ("diffusion_model", "nvfp4"),
        ("text_encoder", "int8"),
        ("vae", "float16"),
    ]
    assert made.rows[0].bytes == parts("flux")[0].int4_bytes
    with pytest.raises(SettingError, match="needs a ComfyUI with the 4-bit format nvfp4"):
        chosen("flux", 12, weight_dtype="int4")
    with pytest.raises(SettingError, match="quantized already"):
        chosen("flux", 12, weight_dtype="int4", supported=(*ALL, "int4"), quantized=True)


def test_sizes_at_int4_are_told_from_shapes_alone():
    header = tensors(
        **{
            "blocks.0.a.weight": ("F16", (512, 512)),
            "blocks.0.conv.weight": ("F16", (512, 512, 3, 3)),
            "blocks.0.a.bias": ("F16", (512,)),
        }
    )
    (part,) = part_sizes([("diffusion_model", header)])
    matrix = 512 * 512 // 2 + 512 * 32 + 4
    assert part.int4_bytes == matrix + 512 * 512 * 9 + 4 * 512 + 1024
