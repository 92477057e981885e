"""One running ComfyUI, with the pack, the small checkpoint and the sample library in it.

All tests of this folder share it and are marked `integration`; with several processes, one of
them runs all of these (tests/conftest.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from intelligent_generation.core.plan import Generation
from intelligent_generation.scripts.comfyui import (
    Client,
    ComfyUI,
    Prompt,
    link_model,
    prepare_base,
)
from intelligent_generation.scripts.sample_library import write_library
from intelligent_generation.scripts.sample_models import MODELS, sample_model
from intelligent_generation.tests.services.ollama import OllamaServer
from safetensors.numpy import load_file

HERE = Path(__file__).parent
CHECKPOINT = "small-sd15.safetensors"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.integration)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    arguments = getattr(item, "funcargs", {})
    if report.failed and "comfyui" in arguments and "comfyui_log" in arguments:
        report.sections.append(("ComfyUI's log", arguments["comfyui_log"]()[-4000:]))
    return report


@pytest.fixture(scope="session")
def ollama() -> Iterator[OllamaServer]:
    """The Ollama of the shared ComfyUI, a stand-in."""
    with OllamaServer() as server:
        yield server


@pytest.fixture(scope="session")
def _host(tmp_path_factory: pytest.TempPathFactory, ollama: OllamaServer) -> Iterator[ComfyUI]:
    base = prepare_base(tmp_path_factory.mktemp("comfyui"))
    link_model(sample_model(CHECKPOINT), base.models("checkpoints"))
    write_library(base.models("loras"))
    with ComfyUI(base, cpu=True, environment={"OLLAMA_HOST": ollama.url}) as host:
        yield host


@pytest.fixture
def comfyui(_host: ComfyUI) -> ComfyUI:
    """The shared ComfyUI, running; started again if an earlier test ended it."""
    if not _host.running:
        _host.start()
    return _host


@pytest.fixture(autouse=True)
def comfyui_log(request: pytest.FixtureRequest) -> Callable[[], str]:
    """What ComfyUI has logged since the test began; shown when the test fails."""
    if "comfyui" not in request.fixturenames:
        return str
    host: ComfyUI = request.getfixturevalue("comfyui")
    start = host.log_size()
    return lambda: host.log_text(start)


@pytest.fixture
def client(comfyui: ComfyUI) -> Client:
    """A client of the shared ComfyUI, as a browser tab of its own."""
    return comfyui.client()


@pytest.fixture
def add_model(comfyui: ComfyUI) -> Callable[[str], str]:
    """add_model(name): put another of `sample_models.MODELS` into the shared ComfyUI."""

    def add(name: str) -> str:
        return link_model(sample_model(name), comfyui.base.models(MODELS[name].folder))

    return add


@pytest.fixture
def start_comfyui(tmp_path: Path) -> Iterator[Callable[..., ComfyUI]]:
    """start_comfyui(**options of ComfyUI): one more, with an empty base directory of its own."""
    hosts: list[ComfyUI] = []

    def start(*, pack: bool = True, **options: Any) -> ComfyUI:
        path = tmp_path / f"comfyui-{len(hosts)}"
        base = prepare_base(path) if pack else prepare_base(path, pack=None)
        link_model(sample_model(CHECKPOINT), base.models("checkpoints"))
        hosts.append(ComfyUI(base, cpu=True, **options))
        hosts[-1].start()
        return hosts[-1]

    yield start
    for host in hosts:
        host.stop()


@pytest.fixture(scope="session")
def stock_graph() -> Callable[..., Prompt]:
    """stock_graph(...): a prompt of stock nodes that makes and saves one image.

    Node ids: checkpoint, lora-0 ..., positive, negative, latent, sampler, decode, save.
    """

    def graph(
        positive: str = "a lighthouse at dusk, watercolor",
        negative: str = "",
        *,
        checkpoint: str = CHECKPOINT,
        loras: Sequence[tuple[str, float, float]] = (),
        width: int = 64,
        height: int = 64,
        batch_size: int = 1,
        steps: int = 2,
        cfg: float = 5.0,
        sampler: str = "euler",
        scheduler: str = "normal",
        seed: int = 0,
        save: str = "SaveImage",
    ) -> Prompt:
        model, clip = ["checkpoint", 0], ["checkpoint", 1]
        prompt: Prompt = {"checkpoint": _node("CheckpointLoaderSimple", ckpt_name=checkpoint)}
        for number, (name, model_strength, clip_strength) in enumerate(loras):
            key = f"lora-{number}"
            prompt[key] = _node(
                "LoraLoader",
                model=model,
                clip=clip,
                lora_name=name,
                strength_model=model_strength,
                strength_clip=clip_strength,
            )
            model, clip = [key, 0], [key, 1]
        prompt["positive"] = _node("CLIPTextEncode", text=positive, clip=clip)
        prompt["negative"] = _node("CLIPTextEncode", text=negative, clip=clip)
        prompt["latent"] = _node(
            "EmptyLatentImage", width=width, height=height, batch_size=batch_size
        )
        prompt["sampler"] = _node(
            "KSampler",
            model=model,
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            seed=seed,
            steps=steps,
            cfg=cfg,
            sampler_name=sampler,
            scheduler=scheduler,
            denoise=1.0,
        )
        prompt["decode"] = _node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2])
        prompt["save"] = _node(save, images=["decode", 0])
        if save == "SaveImage":
            prompt["save"]["inputs"]["filename_prefix"] = "stock"
        return prompt

    return graph


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


@pytest.fixture(scope="session")
def auto_graph() -> Callable[..., Prompt]:
    """auto_graph(text, ...): the pack's whole loop as an API prompt.

    Node ids: loader, analyzer, recommender, optimizer, memory, sampler, feedback. Inputs of the
    sampler, optimizer and recommender are changed by dicts of these names.
    """

    def graph(
        text: str = "a lighthouse at dusk, watercolor",
        *,
        negative: str = "",
        syntax: str = "comfy",
        checkpoint: str = CHECKPOINT,
        recommender: dict[str, Any] | None = None,
        optimizer: dict[str, Any] | None = None,
        sampler: dict[str, Any] | None = None,
        feedback: dict[str, Any] | None = None,
    ) -> Prompt:
        return {
            "loader": _node(
                "HubModelLoader",
                source="local",
                model=f"checkpoints/{checkpoint}",
                vae="automatic",
                variant="automatic",
            ),
            "analyzer": _node(
                "PromptAnalyzer", prompt=text, negative_prompt=negative, syntax=syntax
            ),
            "recommender": _node(
                "LoRARecommender",
                analysis=["analyzer", 0],
                model_info=["loader", 3],
                **{
                    "max_loras": 3,
                    "min_confidence": 0.4,
                    "allow_style_mixing": True,
                    "blocked_tags": "",
                    "allow_nsfw": False,
                    **(recommender or {}),
                },
            ),
            "optimizer": _node(
                "ParameterOptimizer",
                analysis=["analyzer", 0],
                model_info=["loader", 3],
                lora_plan=["recommender", 0],
                **{
                    "priority": "BALANCED",
                    "batch_size": 1,
                    "steps": 2,
                    "cfg": -1.0,
                    "sampler": "auto",
                    "scheduler": "auto",
                    "width": 64,
                    "height": 64,
                    "clip_skip": 0,
                    "guidance": -1.0,
                    "shift": -1.0,
                    **(optimizer or {}),
                },
            ),
            "memory": _node("MemoryStrategy", strategy="AUTO"),
            "sampler": _node(
                "IntelligentSampler",
                **{
                    "model": ["loader", 0],
                    "clip": ["loader", 1],
                    "vae": ["loader", 2],
                    "mode": "AUTO",
                    "seed": 7,
                    "save": "output",
                    "filename_prefix": "IntelligentGeneration",
                    "plan": "",
                    "analysis": ["analyzer", 0],
                    "lora_plan": ["recommender", 0],
                    "sampling_plan": ["optimizer", 0],
                    "memory_plan": ["memory", 0],
                    **(sampler or {}),
                },
            ),
            "feedback": _node(
                "FeedbackRecorder",
                generation=["sampler", 2],
                **{"rating": 0, "comment": "", "generation_id": "", **(feedback or {})},
            ),
        }

    return graph


@pytest.fixture
def record_of(client: Client) -> Callable[[Any], Generation]:
    """record_of(run): the record of a run of `auto_graph`, from the database, by HTTP."""

    def record(run: Any, node: str = "sampler") -> Generation:
        (generation_id,) = run.outputs[node]["generation_id"]
        return Generation.from_data(
            client.get(f"/intelligent_generation/generations/{generation_id}").json()
        )

    return record


@pytest.fixture
def latent_of(comfyui: ComfyUI) -> Callable[[Any], np.ndarray]:
    """latent_of(run): the latent that a stock SaveLatent node called "latent-file" wrote."""

    def latent(run: Any) -> np.ndarray:
        (file,) = run.outputs["latent-file"]["latents"]
        path = comfyui.base.output / file["subfolder"] / file["filename"]
        return load_file(path)["latent_tensor"]

    return latent
