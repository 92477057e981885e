"""Memory plans kept by real models in a real ComfyUI: where weights are, and the same latents.

On a processor ComfyUI loads every model whole. What forces partial loading here is the plan's own
limit: it is the code that keeps to it on a graphics card, with another device.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from intelligent_generation.scripts.comfyui import Base
from intelligent_generation.scripts.sample_library import rows, write_lora

InComfyUI = Callable[..., dict[str, Any]]

RUN = """
import comfy.model_management as mm
from comfy.model_patcher import LowVramPatch
from intelligent_generation.core.errors import SettingError
from intelligent_generation.core.memory import FreeMemory, Machine, place, plan_memory

mode = torch.inference_mode()  # as ComfyUI runs its nodes
mode.__enter__()
GIB = 2**30
MACHINE = Machine("cpu", "cpu", 16 * GIB, 16 * GIB, False, "DISABLED")
FREE = FreeMemory(16 * GIB, 16 * GIB)

def plan(strategy="AUTO", max_bytes=0):
    made = plan_memory(MACHINE, strategy=strategy)
    return made.model_copy(update={"max_vram_bytes": max_bytes or None})

def load(name, dtype="float32"):
    loaded = host.load_checkpoint(path("checkpoints", name), dtype=dtype)
    if dtype == "float32":  # text encoders come in half precision
        loaded.clip.cond_stage_model.float()
        loaded.clip.patcher.size = 0
    return loaded

def working(model, side=64):
    return int(model.model.memory_required([2, 4, side // 8, side // 8]))

seen = []
def watch(model):
    # Called at every evaluation: what is on the device, and how many weights are patched there.
    def look(apply, arguments):
        modules = [m for m in model.model.modules() if hasattr(m, "comfy_cast_weights")]
        on_the_fly = sum(
            any(hasattr(f, "patches") for f in getattr(m, "weight_function", [])) for m in modules
        )
        held = [one.model for one in mm.current_loaded_models if one.model is not None]
        seen.append({
            "held": sum(one.loaded_size() for one in held),
            "models": sorted(type(one.model).__name__ for one in held if one.loaded_size()),
            "on_the_fly": on_the_fly, "weights": model.loaded_size(), "of": model.model_size(),
        })
        return apply(arguments["input"], arguments["timestep"], **arguments["c"])
    model.set_model_unet_function_wrapper(look)
    return model

conditions = []
def run(model, clip, vae, side=64, batch=1, encode=True):
    seen.clear()
    if encode:
        conditions[:] = [host.encode(clip, [text]) for text in ("a lighthouse", "")]
    positive, negative = conditions
    latent = host.sample(
        watch(model.clone()), positive, negative, host.empty_latent(side, side, batch, vae), seed=3,
        steps=2, cfg=5.0, sampler="euler", scheduler="normal", denoise=1.0,
    )
    return latent["samples"], host.decode(vae, latent).image, dict(seen[-1])

def same(one, other):
    return bool(torch.equal(one[0], other[0])), float((one[0] - other[0]).norm() / other[0].norm())
"""


@pytest.fixture(scope="module")
def lora(model_base: Base) -> str:
    (row,) = (row for row in rows() if row["name"] == "watercolor_wash_v2")
    return write_lora(row, model_base.models("loras")).name


@pytest.mark.parametrize(("dtype", "most"), [("float32", 0.0), ("bfloat16", 0.05)])
def test_no_strategy_changes_the_latent_though_weights_are_patched_on_the_fly(
    in_comfyui: InComfyUI, lora: str, dtype: str, most: float
):
    found = in_comfyui(
        RUN
        + """
model, clip, vae = load("small-sd15.safetensors", ARGUMENTS[1])
stock = host.apply_lora(model, clip, ARGUMENTS[0], 1.0, 1.0)
exact = ARGUMENTS[1] == "float32"
def made(plan, encode=True):
    return run(*place(plan, stock.model, stock.clip, vae, FREE), encode=encode and exact)
conditions[:] = [host.encode(stock.clip, [text]) for text in ("a lighthouse", "")]
whole = made(plan("FULL_GPU"))
# A limit of the working memory, one weight as it is computed with, and a part of all.
cap = working(model) + host.rules._on_top(model, host.rules._all_kept) + model.model_size() // 2
results = {
    "none": run(stock.model, stock.clip, vae, encode=False),
    "CPU_OFFLOAD": made(plan("CPU_OFFLOAD", cap), encode=False),
    "SEQUENTIAL": made(plan("SEQUENTIAL"), encode=False),
    "SEQUENTIAL limited": made(plan("SEQUENTIAL", cap)),
    "AUTO limited": made(plan("AUTO", cap), encode=False),
    "FULL_GPU again": made(plan("FULL_GPU"), encode=False),
}
plain = run(model, clip, vae, encode=False)
report(
    same={name: same(result, whole) for name, result in results.items()},
    image={name: bool(torch.equal(result[1], whole[1])) for name, result in results.items()},
    seen={name: result[2] for name, result in results.items()} | {"FULL_GPU": whole[2]},
    lora_changes=same(plain, whole)[1], cap=cap, working=working(model),
)
""",
        lora,
        dtype,
    )
    assert found["lora_changes"] > 0.01, "the LoRA must count"
    for name, (equal, difference) in found["same"].items():
        assert difference <= most, name
        assert equal or most, name
    seen = found["seen"]
    for name in ("none", "FULL_GPU", "FULL_GPU again", "SEQUENTIAL"):
        assert seen[name]["weights"] == seen[name]["of"], name
        assert seen[name]["on_the_fly"] == 0, name
    for name in ("SEQUENTIAL limited", "AUTO limited", "CPU_OFFLOAD"):
        assert seen[name]["on_the_fly"] > 20, name
        assert seen[name]["weights"] + found["working"] <= found["cap"], name
        assert seen[name]["weights"] > 0, name
    for name in ("SEQUENTIAL", "SEQUENTIAL limited"):
        assert len(seen[name]["models"]) == 1, "one part at a time"
    assert len(seen["FULL_GPU"]["models"]) > 1


@pytest.mark.parametrize("dtype", ["float32", "float16", "float8_e4m3fn", "int8"])
@pytest.mark.parametrize("strategy", ["AUTO", "SEQUENTIAL"])
def test_what_is_on_the_device_stays_under_the_limit_streamed_layers_included(
    in_comfyui: InComfyUI, dtype: str, strategy: str
):
    found = in_comfyui(
        RUN
        + """
import comfy.ops
strategy, dtype = ARGUMENTS
file = path("checkpoints", "small-sd15.safetensors")
if dtype == "int8":
    model, clip, vae = host.load_checkpoint(file, lazy=file_to_quantize(file))
else:
    model, clip, vae = host.load_checkpoint(file, dtype=dtype)
work = working(model)
# Some weights, and the largest once more as it is computed with.
largest = max(m.weight.numel() for m in host.diffusion_module(model).modules()
              if getattr(m, "weight", None) is not None)
cap = work + int(0.75 * model.model_size()) + 4 * largest
placed = place(plan(strategy, cap), model, clip, vae, FREE)

# On a processor a layer that is kept elsewhere is used where it is: its bytes count as moved.
kept, moved, cast = [], [0], [0]
def layers():
    return [m for m in host.diffusion_module(model).modules() if hasattr(m, "comfy_cast_weights")]
def begin(layer, *_):
    offloaded = not getattr(layer, "comfy_patched_weights", False)
    moved.append(mm.module_size(layer) if offloaded else 0)
    weight = layer.weight
    wide = getattr(weight, "_qdata", weight).dtype != torch.float32
    own = isinstance(layer, host.quantized.Int8Layer) and layer.quantized
    cast.append(moved[-1] + (weight.numel() * (6 if own else 4) if wide else 0))
for layer in layers():
    layer.register_forward_pre_hook(begin)
conditions[:] = [host.encode(placed.clip, [text]) for text in ("a lighthouse", "")]
result = run(*placed, encode=False)
held = result[2]["held"]
report(held=held, moved=max(moved), most=held + max(cast), weights=result[2]["weights"],
       room=cap - work, size=model.model_size(), largest=largest)
""",
        strategy,
        dtype,
    )
    assert 0 < found["weights"] < found["size"]
    assert found["moved"] > 0, "layers were streamed"
    assert found["most"] <= 1.05 * found["room"], found
    # What ComfyUI reserves for a cast is not reserved again: less than a quarter of the largest one
    # (four bytes a number) is left.
    assert found["room"] - found["most"] < found["largest"], found


def test_rules_are_kept_by_clones_and_taken_off_and_leave_no_trace(
    in_comfyui: InComfyUI, lora: str
):
    found = in_comfyui(
        RUN
        + """
model, clip, vae = load("small-sd15.safetensors")
before = {key: value.clone() for key, value in model.model.state_dict().items()}
cap = working(model) + model.model_size() // 2
limited = place(plan("AUTO", cap), model, clip, vae, FREE)
clone = limited.model.clone()
patched = host.apply_lora(clone, None, ARGUMENTS[0], 1.0, 1.0).model
first = run(patched, limited.clip, limited.vae)
held = first[2]["weights"]
# A clone of another pack's class lacks ours; the callback that clones carry keeps the limit.
foreign = patched.clone()
foreign.__class__ = type(model)
second = run(foreign, limited.clip, limited.vae, encode=False)
held_foreign = second[2]["weights"]
free = place(plan(), limited.model, limited.clip, limited.vae, FREE)
third = run(free.model, free.clip, free.vae, encode=False)
mm.unload_all_models()
after = model.model.state_dict()
report(
    held=[held, held_foreign], limit=cap - working(model), size=model.model_size(),
    whole=third[2]["weights"], equal=bool(torch.equal(first[0], second[0])),
    untouched=all(torch.equal(value, after[key]) for key, value in before.items()),
    same_object=place(plan("AUTO", cap), *limited, FREE).model is limited.model,
    left_alone=place(plan(), model, clip, vae, FREE).clip is clip,
    described=host.other_changes(limited.model) == host.other_changes(model),
)
""",
        lora,
    )
    assert [0 < held <= found["limit"] for held in found["held"]] == [True, True], found
    assert found["whole"] == found["size"]
    assert found["equal"]
    assert found["untouched"]
    assert found["same_object"]
    assert found["left_alone"]
    assert found["described"], "no change that a record would have to name"


def test_models_of_stock_loaders_and_both_devices_in_turn(in_comfyui: InComfyUI):
    found = in_comfyui(
        RUN
        + """
model, clip, vae = host.stock.stock_nodes.CheckpointLoaderSimple().load_checkpoint(
    "small-sd15.safetensors")
# Another torch device of the same processor: what a graphics card is to ComfyUI.
card = torch.device("cpu", 0)
for patcher in (model, clip.patcher, vae.patcher):
    patcher.load_device = card
vae.device = card
loads = []
def loaded(patcher, device, *_):
    loads.append(str(device))
import comfy.patcher_extension
for patcher in (clip.patcher, model, vae.patcher):
    patcher.add_callback_with_key(comfy.patcher_extension.CallbacksMP.ON_LOAD, "test", loaded)
def places(*parts):
    loads.clear()
    return run(*parts), list(loads)
plain, before = places(model, clip, vae)
offloaded = place(plan("CPU_OFFLOAD"), model, clip, vae, FREE)
result, moved = places(*offloaded)
back, again = places(model, clip, vae)
taken_off = place(plan(), *offloaded, FREE)
report(
    loads=[before, moved, again], device=str(offloaded.vae.device),
    taken_off=[str(taken_off.clip.patcher.load_device), str(taken_off.vae.device)],
    equal=[bool(torch.equal(r[i], plain[i])) for r in (result, back) for i in (0, 1)],
)
"""
    )
    # What is loaded already is not loaded again; text encoder and VAE, first and last, are.
    before, moved, again = found["loads"]
    assert {*before} == {*again} == {"cpu:0"}
    assert (moved[0], moved[-1]) == ("cpu", "cpu")
    assert found["device"] == "cpu"
    assert found["taken_off"] == ["cpu:0", "cpu:0"]
    assert all(found["equal"])


def test_the_vae_works_in_tiles_and_one_by_one_where_the_limit_asks(in_comfyui: InComfyUI):
    found = in_comfyui(
        RUN
        + """
model, clip, vae = load("small-sd15.safetensors")
sizes = []
vae.memory_used_decode = lambda shape, dtype: 1000 * shape[-1] * shape[-2] * 64
vae.memory_used_encode = lambda shape, dtype: 1000 * shape[-1] * shape[-2]
decoder = vae.first_stage_model.decode
def watched(samples):
    sizes.append(list(samples.shape))
    return decoder(samples)
vae.first_stage_model.decode = watched
latent = {"samples": torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0))}
def decoded(cap):
    sizes.clear()
    image = host.decode(place(plan("AUTO", cap), model, clip, vae, FREE).vae, latent).image
    return image, max(s[-1] * s[-2] for s in sizes), max(s[0] for s in sizes)
size = vae.patcher.model_size()
whole, cells, batch = decoded(0)
alone, alone_cells, alone_batch = decoded(size + 300_000_000)
tiled, tiled_cells, _ = decoded(size + 100_000_000)
pixels = torch.rand(1, 512, 512, 3, generator=torch.Generator().manual_seed(0))
encoder = vae.first_stage_model.encode
seen = []
def watched_encode(pixels):
    seen.append(pixels.shape[-1] * pixels.shape[-2])
    return encoder(pixels)
vae.first_stage_model.encode = watched_encode
small = place(plan("AUTO", size + 100_000_000), model, clip, vae, FREE).vae
encoded = host.encode_image(small, pixels)["samples"]
report(
    cells=[cells, alone_cells, tiled_cells], batches=[batch, alone_batch],
    shapes=[list(whole.shape), list(tiled.shape)],
    difference=[float((one - whole).abs().mean()) for one in (alone, tiled)],
    encoded=list(encoded.shape), encoded_pixels=max(seen), error=float(
        (encoded - host.encode_image(vae, pixels)["samples"]).abs().mean()),
)
"""
    )
    assert found["cells"] == [64 * 64, 64 * 64, 32 * 32]
    assert found["batches"] == [2, 1]
    assert found["shapes"][0] == found["shapes"][1] == [2, 512, 512, 3]
    assert found["difference"][0] == 0
    assert 0 < found["difference"][1] < 0.02
    assert found["encoded"] == [1, 4, 64, 64]
    assert found["encoded_pixels"] <= 256 * 256
    assert found["error"] < 0.1


def test_what_cannot_be_kept_is_refused_with_figures(in_comfyui: InComfyUI):
    found = in_comfyui(
        RUN
        + """
model, clip, vae = load("small-sd15.safetensors")
def refusal(call):
    try:
        call()
    except SettingError as error:
        return str(error)
tight = place(plan("SEQUENTIAL", 10_000_000), model, clip, vae, FREE)
card = MACHINE._replace(device_name="cuda:0 Test Card", device_kind="cuda", total_vram=GIB)
whole = plan_memory(card, strategy="FULL_GPU")
report(
    computing=refusal(lambda: run(*tight)),
    whole=refusal(lambda: place(whole, model, clip, vae, FreeMemory(GIB, 16 * GIB))),
    limited=refusal(lambda: place(plan("FULL_GPU", 10_000_000), model, clip, vae, FREE)),
    disk=refusal(lambda: place(plan("DISK_OFFLOAD"), model, clip, vae, FREE)),
    fits=place(whole, model, clip, vae, FreeMemory(4 * GIB, 16 * GIB)).model is not model,
)
"""
    )
    assert "computing this size and batch takes" in found["computing"]
    assert "FULL_GPU does not fit" in found["whole"]
    assert "Test Card" in found["whole"]
    assert "raise max_vram_gb" in found["limited"]
    assert "DISK_OFFLOAD cannot be applied to this MODEL" in found["disk"]
    assert found["fits"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's own count of private memory")
def test_weights_that_stay_in_their_file_take_no_ram_and_change_nothing(
    in_comfyui: InComfyUI, lora: str
):
    found = in_comfyui(
        RUN
        + """
import gc
def own_ram():
    gc.collect()
    (line,) = (l for l in open("/proc/self/status") if l.startswith("RssAnon"))
    return int(line.split()[1]) * 1024
def mapped(folder, name, dtypes):
    file = stream(path(folder, name))
    return host.MappedFile(file.tensors, file.metadata, dtypes, file.release)
name = "small-sd15.safetensors"
dtypes = {"diffusion_model": "float16", "text_encoder": "float16"}
before = own_ram()
model, clip, vae = host.load_checkpoint(
    path("checkpoints", name), lazy=mapped("checkpoints", name, dtypes))
ours = own_ram() - before
stock = place(plan("DISK_OFFLOAD"), *host.apply_lora(model, clip, ARGUMENTS[0], 1.0, 1.0)[:2], vae,
              FREE)
result = run(*stock)
def place_of_weight():
    block = host.diffusion_module(model).input_blocks[1][1].transformer_blocks[0]
    return block.attn1.to_q.weight.data_ptr()
in_file = place_of_weight()
mm.unload_all_models()
ran = own_ram() - before
# Loaded whole, as on a graphics card that has the room, and back into the file.
whole = place(plan("FULL_GPU"), stock.model, stock.clip, vae, FREE)
second = run(*whole)
patched = place_of_weight()
mm.unload_all_models()
full = host.load_checkpoint(path("checkpoints", name), dtype="float16")
with_lora = host.apply_lora(full.model, full.clip, ARGUMENTS[0], 1.0, 1.0)
plain = run(with_lora.model, with_lora.clip, full.vae)
encoder = mapped("text_encoders", "small-clip-l.safetensors", dtypes)
alone = host.load_text_encoders(
    [path("text_encoders", "small-clip-l.safetensors")], "stable_diffusion", lazy=[encoder])
unet = mapped("diffusion_models", "small-sdxl-unet.safetensors", dtypes)
sdxl = host.load_diffusion_model(
    path("diffusion_models", "small-sdxl-unet.safetensors"), lazy=unet)
report(
    ours=ours, ran=ran, on_the_fly=result[2]["on_the_fly"],
    difference=same(result, plain)[1], whole=same(second, plain)[1],
    moved=patched != in_file, back=place_of_weight() == in_file,
    mapped=[host.is_mapped(one) for one in (
        model, clip.patcher, alone.patcher, sdxl, full.model)],
    size=model.model_size() + clip.patcher.model_size(),
)
""",
        lora,
    )
    assert found["ours"] < 0.2 * found["size"], "the VAE, and what ComfyUI allocates once"
    assert found["ran"] < 0.6 * found["size"], "working memory that the allocator keeps"
    assert found["on_the_fly"] > 20
    assert found["difference"] < 0.01
    assert found["whole"] < 0.01
    assert found["moved"], "a patched weight is a copy"
    assert found["back"]
    assert found["mapped"] == [True, True, True, True, False]


def test_where_comfyui_streams_weights_itself_the_limit_is_handed_to_it(in_comfyui: InComfyUI):
    found = in_comfyui(
        RUN
        + """
class Bar:
    # What ComfyUI's dynamic VRAM has for a model since aimdo 0.4.10.
    def __init__(self):
        self.calls = []
    def set_watermark(self, size):
        self.calls.append(["set_watermark", size])

class OldBar:
    def __init__(self):
        self.calls = []
    def set_watermark_limit(self, size):
        self.calls.append(["set_watermark_limit", size])
    def free_memory(self, size):
        self.calls.append(["free_memory", size > 2**50])

def handed(bar):
    model, clip, vae = loaded
    limited = place(plan("AUTO", cap), model, clip, vae, FREE).model
    host.attach(limited, "memory_working", working(model))
    limited.is_dynamic = lambda: True
    limited._vbar_get = lambda: bar
    host.rules._keep_to_cap(limited)
    return bar.calls
loaded = load("small-sd15.safetensors", "float16")
cap = working(loaded.model) + 20_000_000
largest = max(layer.weight.numel() for layer in host.diffusion_module(loaded.model).modules()
              if hasattr(layer, "comfy_cast_weights") and layer.weight is not None)
report(new=handed(Bar()), old=handed(OldBar()), largest=largest)
"""
    )
    # Less the largest layer on its way in (fp16), and made float32 to be computed with.
    limit = 20_000_000 - found["largest"] * (2 + 4)
    assert found["new"] == [["set_watermark", pytest.approx(limit, abs=10_000)]]
    assert found["old"][0] == ["set_watermark_limit", pytest.approx(limit, abs=10_000)]
    assert found["old"][1] == ["free_memory", True]


def test_auto_clears_the_device_for_sampling_only_where_the_parts_do_not_fit_together(
    in_comfyui: InComfyUI, lora: str
):
    found = in_comfyui(
        RUN
        + """
model, clip, vae = load("small-sd15.safetensors")
# Another torch device of the same processor, as a card of a size that the test sets.
card, total = torch.device("cpu", 0), 0
for patcher in (model, clip.patcher, vae.patcher):
    patcher.load_device = card
vae.device = card
def on_card():
    loaded = [one.model for one in mm.current_loaded_models if one.device == card]
    return [one for one in loaded if one is not None and one.loaded_size()]
def free(device=None, torch_free_too=False):
    left = total - sum(one.loaded_size() for one in on_card())
    return (left, left) if torch_free_too else left
mm.get_free_memory = free

stock = host.apply_lora(model, clip, ARGUMENTS[0], 1.0, 1.0)
machine = Machine("card", "cuda", 16 * GIB, 16 * GIB, False, "NORMAL_VRAM")
def placed(**changes):
    made = plan_memory(machine._replace(**changes))
    return place(made, stock.model, stock.clip, vae, FREE)
sizes = [model.model_size(), clip.patcher.model_size(), vae.patcher.model_size()]
compute = mm.minimum_inference_memory()  # more than this size takes
roomy, short = int(compute + 1.2 * sum(sizes)), int(compute + 1.2 * sizes[0] + 0.6 * sizes[1])

def made(parts, size):
    global total
    total = size
    with host.sampling_places() as places:
        result = run(*parts)
    return {"result": result, "seen": result[2]["models"], "told": [list(p) for p in places],
            "held": result[2]["held"]}
auto = placed()
made((stock.model, stock.clip, vae), roomy)  # so that all parts are there
runs = {
    "stock": made((stock.model, stock.clip, vae), roomy), "roomy": made(auto, roomy),
    "stock short": made((stock.model, stock.clip, vae), short), "short": made(auto, short),
}
first = runs["stock"]["result"]
equal = {name: bool(torch.equal(one.pop("result")[0], first[0])) for name, one in runs.items()}
left_alone = {
    name: host.rule_of(placed(**changes).model) is None
    for name, changes in {
        "dynamic": {"dynamic_vram": True}, "high": {"vram_state": "HIGH_VRAM"},
        "unreadable": {"device_kind": "directml"}, "card": {},
    }.items()
}
report(runs=runs, equal=equal, sizes=sizes, left_alone=left_alone, others=[
    auto.clip is stock.clip, auto.vae is vae])
""",
        lora,
    )
    runs, (size, *_) = found["runs"], found["sizes"]
    assert len(runs["stock"]["seen"]) >= 2
    assert runs["roomy"]["seen"] == runs["stock"]["seen"], "together as ComfyUI has them"
    assert runs["roomy"]["told"] == [[False, size, size]]
    assert len(runs["stock short"]["seen"]) >= 2, "ComfyUI leaves what just fits"
    assert runs["stock short"]["held"] < sum(found["sizes"]), "and puts the rest off"
    assert len(runs["short"]["seen"]) == 1, "the diffusion model alone"
    assert runs["short"]["held"] == size < runs["stock short"]["held"]
    assert runs["short"]["told"] == [[True, size, size]]
    assert all(found["equal"].values())
    assert found["others"] == [True, True], "text encoder and VAE are as they came"
    assert found["left_alone"] == {"dynamic": True, "high": True, "unreadable": True, "card": False}
