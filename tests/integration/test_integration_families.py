"""Families with a graph of their own: the latent is that of ComfyUI's nodes, bit for bit.

In a ComfyUI of its own, as text encoders and FLUX.1 are made small by nodes for tests.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from intelligent_generation.core.plan import Generation
from intelligent_generation.scripts.comfyui import (
    Client,
    ComfyUI,
    Prompt,
    PromptFailedError,
    link_model,
    prepare_base,
)
from intelligent_generation.scripts.sample_models import MODELS, sample_model
from safetensors.numpy import load_file

SMALL_MODELS = Path(__file__).parent.parent / "services" / "small_models.py"
FILES = {
    "sdxl": ("small-sdxl-unet.safetensors", "small-taesd.safetensors"),
    "sd3": ("small-sd3.safetensors", "small-taesd3.safetensors"),
    "flux": (None, "small-taesd3.safetensors"),
}
PROMPT = "a lighthouse at dusk, masterpiece, best quality"
SEED = 9


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    base = prepare_base(tmp_path_factory.mktemp("families"))
    shutil.copy(SMALL_MODELS, base.path / "custom_nodes" / SMALL_MODELS.name)
    for name in {name for pair in FILES.values() for name in pair if name}:
        link_model(sample_model(name), base.models(MODELS[name].folder))
    with ComfyUI(base, cpu=True) as running:
        yield running


@pytest.fixture
def client(host: ComfyUI) -> Client:
    return host.client()


@pytest.fixture
def comfyui(host: ComfyUI) -> ComfyUI:
    return host


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def loaders(kind: str) -> Prompt:
    model, vae = FILES[kind]
    return {
        "model": node("UNETLoader", unet_name=model, weight_dtype="default")
        if model
        else node("SmallFlux"),
        "clip": node("SmallTextEncoders", kind=kind),
        "vae": node("VAELoader", vae_name=vae),
    }


def ours(kind: str, sampling: dict[str, Any] | None = None, **optimizer: Any) -> Prompt:
    """The pack's nodes around a stock loader; `sampling` edits the plan in MANUAL."""
    wired = {"model": ["model", 0], "clip": ["clip", 0], "vae": ["vae", 0]}
    plan = json.dumps({"sampling": sampling}) if sampling else ""
    values = {
        "priority": "BALANCED", "batch_size": 1, "steps": 3, "cfg": -1.0, "sampler": "auto",
        "scheduler": "auto", "width": 64, "height": 64, "clip_skip": 0, "guidance": -1.0,
        "shift": -1.0, **optimizer,
    }  # fmt: skip
    return {
        **loaders(kind),
        "analyzer": node(
            "PromptAnalyzer", prompt=PROMPT, negative_prompt="blurry", syntax="comfy"
        ),
        "optimizer": node(
            "ParameterOptimizer", analysis=["analyzer", 0], model_info=["model", 0], **values
        ),
        "sampler": node(
            "IntelligentSampler", **wired, mode="MANUAL" if plan else "AUTO", seed=SEED,
            save="output", filename_prefix="ours", plan=plan, analysis=["analyzer", 0],
            sampling_plan=["optimizer", 0],
        ),
        "latent-file": node("SaveLatent", samples=["sampler", 1], filename_prefix="latents/ours"),
    }  # fmt: skip


def stock(kind: str, record: Generation) -> Prompt:
    """Stock nodes up to the first KSampler, with the plan's values."""
    sampling = record.plan.sampling
    prompt = loaders(kind)
    (positive,) = record.plan.loras.segments
    prompt["positive"] = node("CLIPTextEncode", text=positive, clip=["clip", 0])
    prompt["negative"] = node("CLIPTextEncode", text="blurry", clip=["clip", 0])
    empty = "EmptyLatentImage" if kind == "sdxl" else "EmptySD3LatentImage"
    prompt["latent"] = node(
        empty, width=sampling.width, height=sampling.height, batch_size=sampling.batch_size
    )
    prompt["ksampler"] = node(
        "KSampler", model=["model", 0], positive=["positive", 0], negative=["negative", 0],
        latent_image=["latent", 0], seed=SEED, steps=sampling.steps, cfg=sampling.cfg,
        sampler_name=sampling.sampler, scheduler=sampling.scheduler, denoise=1.0,
    )  # fmt: skip
    prompt["latent-file"] = node(
        "SaveLatent", samples=["ksampler", 0], filename_prefix="latents/stock"
    )
    return prompt


def latent(host: ComfyUI, client: Client, prompt: Prompt) -> np.ndarray:
    (file,) = client.run(prompt).outputs["latent-file"]["latents"]
    path = host.base.output / file["subfolder"] / file["filename"]
    return load_file(path)["latent_tensor"]


def run(host: ComfyUI, client: Client, prompt: Prompt) -> tuple[Generation, np.ndarray]:
    done = client.run(prompt)
    (generation,) = done.outputs["sampler"]["generation_id"]
    (file,) = done.outputs["latent-file"]["latents"]
    record = client.get(f"/intelligent_generation/generations/{generation}").json()
    made = load_file(host.base.output / file["subfolder"] / file["filename"])["latent_tensor"]
    return Generation.from_data(record), made


def test_sdxl_is_the_stock_graph(host: ComfyUI, client: Client) -> None:
    record, made = run(host, client, ours("sdxl"))
    assert record.plan.model.family == "sdxl"
    assert np.array_equal(made, latent(host, client, stock("sdxl", record)))


def test_sd3_with_shift_is_the_stock_graph(host: ComfyUI, client: Client) -> None:
    record, made = run(host, client, ours("sd3", shift=2.25))
    assert record.plan.model.family in ("sd3", "sd35")
    prompt = stock("sd3", record)
    plain = latent(host, client, prompt)
    prompt["shift"] = node("ModelSamplingSD3", model=["model", 0], shift=2.25)
    prompt["ksampler"]["inputs"]["model"] = ["shift", 0]
    assert np.array_equal(made, latent(host, client, prompt))
    assert not np.array_equal(made, plain), "a shift that changes nothing shows nothing"


def flux_shift(width: int, height: int) -> float:
    """What ModelSamplingFlux makes of its defaults, 1.15 and 0.5, at a size."""
    slope = (1.15 - 0.5) / (4096 - 256)
    return width * height / (8 * 8 * 2 * 2) * slope + (0.5 - slope * 256)


def test_flux_with_guidance_and_shift_is_the_stock_graph(host: ComfyUI, client: Client) -> None:
    shift = flux_shift(64, 64)
    record, made = run(host, client, ours("flux", sampling={"shift": shift, "guidance": 2.5}))
    assert record.plan.model.family == "flux-dev"
    assert record.plan.sampling.shift == shift
    prompt = stock("flux", record)
    prompt["guidance"] = node("FluxGuidance", conditioning=["positive", 0], guidance=2.5)
    prompt["ksampler"]["inputs"]["positive"] = ["guidance", 0]
    plain = latent(host, client, prompt)
    prompt["shift"] = node(
        "ModelSamplingFlux", model=["model", 0], max_shift=1.15, base_shift=0.5, width=64, height=64
    )
    prompt["ksampler"]["inputs"]["model"] = ["shift", 0]
    assert np.array_equal(made, latent(host, client, prompt))
    assert not np.array_equal(made, plain), "a shift that changes nothing shows nothing"


def test_plain_outputs_drive_the_advanced_graph_of_flux(host: ComfyUI, client: Client) -> None:
    graph = ours("flux", guidance=4.0)
    record, made = run(host, client, graph)
    prompt = {
        **{key: graph[key] for key in ("model", "clip", "vae", "analyzer", "optimizer")},
        "positive": node("CLIPTextEncode", text=record.plan.loras.segments[0], clip=["clip", 0]),
        "latent": node(
            "EmptySD3LatentImage", width=["optimizer", 5], height=["optimizer", 6],
            batch_size=["optimizer", 7],
        ),
        "guidance": node(
            "FluxGuidance", conditioning=["positive", 0], guidance=["optimizer", 8]
        ),
        "guider": node("BasicGuider", model=["model", 0], conditioning=["guidance", 0]),
        "noise": node("RandomNoise", noise_seed=SEED),
        "select": node("KSamplerSelect", sampler_name=["optimizer", 3]),
        "sigmas": node(
            "BasicScheduler", model=["model", 0], scheduler=["optimizer", 4],
            steps=["optimizer", 1], denoise=1.0,
        ),
        "ksampler": node(
            "SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0],
            sampler=["select", 0], sigmas=["sigmas", 0], latent_image=["latent", 0],
        ),
        "latent-file": node("SaveLatent", samples=["ksampler", 0], filename_prefix="latents/adv"),
    }  # fmt: skip
    assert record.plan.sampling.cfg == 1.0
    assert np.array_equal(made, latent(host, client, prompt))


@pytest.mark.parametrize("kind", ["sdxl", "flux"])
@pytest.mark.parametrize("space", ["latent", "image"])
def test_a_second_pass_is_that_of_the_stock_graph(
    host: ComfyUI, client: Client, kind: str, space: str
) -> None:
    method = "nearest-exact" if space == "latent" else "bicubic"
    own = {"space": space, "method": method, "steps": 2}
    graph = ours(kind, sampling={"second_pass": own}, second_pass="on")
    record, made = run(host, client, graph)
    second = record.plan.sampling.second_pass
    assert second is not None and (second.width, second.height) == (96, 96)
    assert record.timings.refine > 0
    prompt = stock(kind, record)
    if record.plan.sampling.guidance is not None:
        prompt["guided"] = node(
            "FluxGuidance", conditioning=["positive", 0], guidance=record.plan.sampling.guidance
        )
        prompt["ksampler"]["inputs"]["positive"] = ["guided", 0]
    size = {"width": 96, "height": 96, "upscale_method": method, "crop": "disabled"}
    if space == "latent":
        prompt["scaled"] = node("LatentUpscale", samples=["ksampler", 0], **size)
    else:
        prompt["decoded"] = node("VAEDecode", samples=["ksampler", 0], vae=["vae", 0])
        prompt["larger"] = node("ImageScale", image=["decoded", 0], **size)
        prompt["scaled"] = node("VAEEncode", pixels=["larger", 0], vae=["vae", 0])
    prompt["again"] = node(
        "KSampler",
        **{
            **prompt["ksampler"]["inputs"],
            "latent_image": ["scaled", 0],
            "steps": second.steps,
            "cfg": second.cfg,
            "sampler_name": second.sampler,
            "scheduler": second.scheduler,
            "denoise": second.denoise,
        },
    )
    prompt["latent-file"]["inputs"]["samples"] = ["again", 0]
    assert made.shape[-1] == 12
    assert np.array_equal(made, latent(host, client, prompt))


def test_a_way_of_scaling_that_comfyui_lacks_is_refused_by_name(
    host: ComfyUI, client: Client
) -> None:
    graph = ours("flux", sampling={"second_pass": {"method": "magic"}}, second_pass="on")
    with pytest.raises(PromptFailedError, match=r"no method 'magic'.*nearest-exact"):
        client.run(graph)


def test_predictions_are_recorded_and_come_from_the_runs_before(
    host: ComfyUI, client: Client
) -> None:
    graph = ours("flux", steps=4)
    costs = []
    for seed in range(50, 54):
        graph["sampler"]["inputs"]["seed"] = seed
        record, _ = run(host, client, graph)
        assert record.cost is not None
        costs.append(record.cost)
        assert record.cost.seconds == pytest.approx(record.timings.total)
        assert f"{record.cost.predicted_seconds:.2f} s" in record.explanation
    first, *_, last = costs
    assert last.runs >= first.runs + 2
    assert last.memory_bytes and last.memory_error is not None
    assert abs(last.memory_error) < 0.5


def test_limits_make_a_plan_that_keeps_them_or_says_why_not(host: ComfyUI, client: Client) -> None:
    run(host, client, ours("flux", steps=4, width=128, height=128))
    tight = ours("flux", width=0, height=0, steps=0, max_seconds=1e-6)
    done = client.run(
        {**tight, "shown": node("PreviewAny", source=["optimizer", 10])}
        | {
            "sampler": tight["sampler"]
            | {
                "inputs": tight["sampler"]["inputs"]
                | {"mode": "MANUAL", "plan": json.dumps({"sampling": {"width": 64, "height": 64}})}
            }
        }
    )
    (text,) = done.outputs["shown"]["text"]
    assert "Error: No plan keeps the limits" in text and "max_seconds" in text
