"""How well images of the small world show what was asked for, on a real ComfyUI."""

from __future__ import annotations

import argparse
import io
import json
import logging
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from numpy.random import RandomState
from PIL import Image

from ..core.plan import Generation
from ..scripts.comfyui import Client, ComfyUI, Prompt, link_model, prepare_base
from ..scripts.demonstration import STOCK_SETTINGS, auto_prompt
from ..scripts.sample_library import write_other_families
from ..scripts.workflow_api import node_of
from ..scripts.world import files, judge
from ..scripts.world.autoencoder import SIZE
from ..scripts.world.captions import caption
from ..scripts.world.loras import Recipe, recipes
from ..scripts.world.scenes import (
    NEW_SUBJECTS,
    STYLES,
    SUBJECTS,
    Scene,
    held_out,
    random_scene,
)

LOG = logging.getLogger("world")
PARTS = ("judge", "judge_all_styles", "auto", "following", "styles", "choice")
BATCH = 20
"""Images made by one prompt of ComfyUI, to save its overhead."""


class Task(NamedTuple):
    """One image to make and to judge."""

    scene: Scene
    text: str
    seed: int

    @property
    def asked(self) -> dict[str, str]:
        return judge.asked_for(self.text)


class Choice(NamedTuple):
    """How an image is made by stock nodes."""

    settings: Mapping[str, Any]
    """Inputs of KSampler: steps, cfg, sampler_name, scheduler."""
    shift: float | None = None
    lora: Recipe | None = None
    """Applied at its recommended weight, its trigger word put before the prompt."""


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Make images by AUTO and by stock nodes and have the judge read them.

    - `following`: shares read rightly in plain pictures of combinations that were never trained,
      AUTO's sampling parameters, no LoRA; beside it what the judge reads in rendered pictures.
    - `styles`: for each style LoRA at its recommended weight the share of images in its style,
      the same without it, and the share whose subject is right with it.
    - `auto`: the reward of AUTO less that of stock settings without a LoRA, and less that of
      AUTO's settings with one LoRA at random; same prompts and seeds, mean difference with its
      95 % interval (normal approximation over prompts).
    - `choice`: over some of these prompts, the reward of AUTO beside that of no LoRA and of the
      best single LoRA found by trying all with AUTO's settings; and how often AUTO's first LoRA
      is that best one.

    Args:
        argv: names of the parts to measure, of `PARTS` (all); `--prompts` (200) for following and
            auto, `--style-prompts` (60) a style, `--lora` a style LoRA (all of them), `--tried`
            (25) prompts for choice, `--seed` (1). A part, or a LoRA, gets the same prompts alone
            as it does among all.
    """
    parser = argparse.ArgumentParser(prog="world", description="Judge the small world's images.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--style-prompts", type=int, default=60)
    parser.add_argument("--lora", action="append", metavar="NAME", help="of the styles, only this")
    parser.add_argument("--tried", type=int, default=25)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    if min(options.prompts, options.style_prompts, options.tried) < 2:
        parser.error("give two prompts or more of each: an interval needs them")
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    styled = [recipe.name for recipe in recipes() if recipe.style != STYLES[0]]
    options.lora = options.lora or styled
    if not set(options.lora) <= set(styled):
        parser.error(f"--lora: use one of {', '.join(styled)}")
    wanted = options.parts or PARTS
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    random = RandomState(options.seed)
    network = judge.load(files.JUDGE)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        base = prepare_base(Path(directory))
        checkpoint = link_model(files.checkpoint(), base.models("checkpoints"))
        for lora in files.loras():
            link_model(lora, base.models("loras"))
        write_other_families(base.models("loras"))
        with ComfyUI(base, cpu=True) as host:
            studio = _Studio(host.client(), network, checkpoint)
            plain = list(islice(_plain_tasks(random), options.prompts))
            mixed = list(islice(_mixed_tasks(random), options.prompts))
            needed = {"auto": options.prompts, "choice": min(options.tried, options.prompts)}
            autos = [
                studio.auto(task) for task in mixed[: max(needed.get(part, 1) for part in wanted)]
            ]
            settings = autos[0].choice
            measures: dict[str, Callable[[RandomState], Any]] = {
                "judge": lambda _: judge.accuracy(network, style=STYLES[0]),
                "judge_all_styles": lambda _: judge.accuracy(network),
                "auto": lambda random: _against(studio, mixed, autos, settings, random),
                "following": lambda _: _following(studio, plain, settings),
                "styles": lambda _: _styles(studio, options, settings),
                "choice": lambda _: _choice(studio, mixed[: options.tried], autos, settings),
            }
            out: dict[str, Any] = {}
            for number, name in enumerate(PARTS):
                if name not in wanted:
                    continue
                out[name] = measures[name](RandomState([options.seed, number]))
                LOG.info("%s: %s", name, json.dumps(out[name]))
    return {
        **out,
        "settings": {**settings.settings, "shift": settings.shift},
        "prompts": options.prompts,
    }


class _Auto(NamedTuple):
    reward: float
    choice: Choice
    """AUTO's sampling parameters."""
    loras: tuple[str, ...]
    """File names, without suffixes."""


class _Studio:
    """Makes images in one ComfyUI and judges them."""

    def __init__(
        self,
        client: Client,
        network: judge.Judge,
        checkpoint: str,
        weight_dtype: str | None = None,
    ) -> None:
        self._client, self._network, self._checkpoint = client, network, checkpoint
        self._weight_dtype = weight_dtype
        self._info = client.object_info()

    def auto(self, task: Task) -> _Auto:
        """One image by the AUTO workflow."""
        prompt = auto_prompt(
            self._info, text=task.text, checkpoint=self._checkpoint, seed=task.seed, size=None
        )
        run = self._client.run(prompt)
        (made,) = run.outputs[node_of(prompt, "IntelligentSampler")]["generation_id"]
        path = f"/intelligent_generation/generations/{made}"
        record = Generation.from_data(self._client.get(path).json())
        sampling = record.plan.sampling
        (image,) = [self._image(image) for image in run.images()]
        return _Auto(
            judge.reward(judge.judge(self._network, [image])[0], task.asked),
            Choice(
                {
                    "steps": sampling.steps,
                    "cfg": sampling.cfg,
                    "sampler_name": sampling.sampler,
                    "scheduler": sampling.scheduler,
                },
                sampling.shift,
            ),
            tuple(Path(lora.file.name).stem for lora in record.plan.loras.loras),
        )

    def judgements(self, tasks: Sequence[Task], choices: Sequence[Choice]) -> list[judge.Judgement]:
        """One image by stock nodes for each task and its choice."""
        out: list[judge.Judgement] = []
        pairs = list(zip(tasks, choices, strict=True))
        for start in range(0, len(pairs), BATCH):
            part = pairs[start : start + BATCH]
            graph = _stock_graph(self._checkpoint, part)
            if self._weight_dtype is not None:
                graph |= _loader(self._checkpoint, self._weight_dtype)
            run = self._client.run(graph)
            images = [
                self._image(run.outputs[f"save-{number}"]["images"][0])
                for number in range(len(part))
            ]
            out += judge.judge(self._network, images)
        return out

    def rewards(self, tasks: Sequence[Task], choices: Sequence[Choice]) -> list[float]:
        judged = self.judgements(tasks, choices)
        return [judge.reward(one, task.asked) for one, task in zip(judged, tasks, strict=True)]

    def _image(self, image: dict[str, str]) -> Image.Image:
        return Image.open(io.BytesIO(self._client.view(image))).convert("RGB")


def _loader(checkpoint: str, weight_dtype: str) -> Prompt:
    """HubModelLoader in the place of the stock loader, with weights in a data type."""
    return {
        "memory": _node("MemoryStrategy", strategy="AUTO", weight_dtype=weight_dtype),
        "loader": _node(
            "HubModelLoader",
            source="local",
            model=f"checkpoints/{checkpoint}",
            vae="automatic",
            variant="automatic",
            memory_plan=["memory", 0],
        ),
    }


def compare_weight_dtypes(dtypes: Sequence[str], base: str, prompts: int) -> dict[str, Any]:
    """Rewards with weights in each of `dtypes` less those in `base`, same prompts and seeds.

    Plain pictures, the family's own sampling settings, no LoRA: nothing but the data type differs.
    """
    random = RandomState(1)
    network = judge.load(files.JUDGE)
    tasks = list(islice(_plain_tasks(random), prompts))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        folder = prepare_base(Path(directory))
        checkpoint = link_model(files.checkpoint(), folder.models("checkpoints"))
        with ComfyUI(folder, cpu=True) as host:
            settings = _Studio(host.client(), network, checkpoint).auto(tasks[0]).choice

            def rewards(dtype: str) -> list[float]:
                studio = _Studio(host.client(), network, checkpoint, dtype)
                found = studio.rewards(tasks, [settings] * len(tasks))
                LOG.info("%s: %s", dtype, statistics.mean(found))
                return found

            exact = rewards(base)
            return {
                "reward": {base: round(statistics.mean(exact), 3)},
                "difference": {dtype: _difference(rewards(dtype), exact) for dtype in dtypes},
                "settings": {**settings.settings, "shift": settings.shift},
                "prompts": prompts,
            }


def _stock_graph(checkpoint: str, pairs: Sequence[tuple[Task, Choice]]) -> Prompt:
    # The LoRAs leave the text encoder as it is, so all prompts are encoded by the checkpoint's.
    graph: Prompt = {
        "loader": _node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "latent": _node("EmptySD3LatentImage", width=SIZE, height=SIZE, batch_size=1),
        "negative": _node("CLIPTextEncode", text="", clip=["loader", 1]),
    }
    for number, (task, choice) in enumerate(pairs):
        model, text = ["loader", 0], task.text
        if choice.lora is not None:
            key = f"lora-{choice.lora.name}"
            graph[key] = _node(
                "LoraLoaderModelOnly",
                model=model,
                lora_name=f"{choice.lora.name}.safetensors",
                strength_model=choice.lora.weight,
            )
            model = [key, 0]
            if choice.lora.trigger not in text:
                text = f"{choice.lora.trigger}, {text}"
        if choice.shift is not None:
            key = f"shift-{model[0]}"
            graph[key] = _node("ModelSamplingSD3", model=model, shift=choice.shift)
            model = [key, 0]
        graph[f"positive-{number}"] = _node("CLIPTextEncode", text=text, clip=["loader", 1])
        graph[f"sampler-{number}"] = _node(
            "KSampler",
            model=model,
            positive=[f"positive-{number}", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            seed=task.seed,
            denoise=1.0,
            **choice.settings,
        )
        graph[f"decode-{number}"] = _node(
            "VAEDecode", samples=[f"sampler-{number}", 0], vae=["loader", 2]
        )
        graph[f"save-{number}"] = _node(
            "SaveImage", images=[f"decode-{number}", 0], filename_prefix="world"
        )
    return graph


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


# --------------------------------------------------------------------------- tasks


def _plain_tasks(random: RandomState) -> Iterator[Task]:
    """Flat pictures of combinations that no model was trained on."""
    while True:
        scene = random_scene(random, style=STYLES[0], count=1)
        if held_out(scene):
            yield _task(scene, random)


def _mixed_tasks(random: RandomState) -> Iterator[Task]:
    """What people would ask for: any subject, known or not, in any style or none."""
    subjects = SUBJECTS + NEW_SUBJECTS
    while True:
        subject = subjects[random.randint(len(subjects))]
        scene = random_scene(random, subject=subject, count=1)
        if held_out(scene) or subject in NEW_SUBJECTS:
            yield _task(scene, random)


def _task(scene: Scene, random: RandomState) -> Task:
    form = "tags" if random.randint(2) else "prose"
    text = caption(scene, random, form=form, mention=1.0, style=scene.style != STYLES[0])
    return Task(scene, text, int(random.randint(2**31 - 1)))


# --------------------------------------------------------------------------- figures


def _following(studio: _Studio, tasks: Sequence[Task], settings: Choice) -> dict[str, float]:
    judged = studio.judgements(tasks, [settings] * len(tasks))
    out = {
        name: _share(
            one.read(name) == getattr(task.scene, name)
            for one, task in zip(judged, tasks, strict=True)
        )
        for name in ("subject", "colour", "background", "time", "place")
    }
    return {**out, "prompts": len(tasks)}


def _styles(
    studio: _Studio, options: argparse.Namespace, settings: Choice
) -> dict[str, dict[str, float]]:
    out: dict[str, dict[str, float]] = {}
    count = options.style_prompts
    for number, recipe in enumerate(recipes()):
        if recipe.name not in options.lora:
            continue
        random = RandomState([options.seed, len(PARTS), number])
        plain = list(islice(_plain_tasks(random), count))
        tasks = [
            _task(random_scene(random, **_fixed(task.scene, recipe.style)), random)
            for task in plain
        ]
        with_lora = studio.judgements(tasks, [settings._replace(lora=recipe)] * count)
        without = studio.judgements(tasks, [settings] * count)
        out[recipe.name] = {
            "style": _share(one.read("style") == recipe.style for one in with_lora),
            "style_without": _share(one.read("style") == recipe.style for one in without),
            "subject": _share(
                one.read("subject") == task.scene.subject
                for one, task in zip(with_lora, tasks, strict=True)
            ),
            "prompts": count,
        }
    return out


def _fixed(scene: Scene, style: str) -> dict[str, Any]:
    names = ("subject", "colour", "background", "time", "place", "count")
    return {name: getattr(scene, name) for name in names} | {"style": style}


def _against(
    studio: _Studio,
    tasks: Sequence[Task],
    autos: Sequence[_Auto],
    settings: Choice,
    random: RandomState,
) -> dict[str, Any]:
    known = recipes()
    stock = studio.rewards(tasks, [Choice(STOCK_SETTINGS)] * len(tasks))
    any_lora = [settings._replace(lora=known[random.randint(len(known))]) for _ in tasks]
    chance = studio.rewards(tasks, any_lora)
    ours = [auto.reward for auto in autos]
    return {
        "reward": round(statistics.mean(ours), 3),
        "stock_reward": round(statistics.mean(stock), 3),
        "random_lora_reward": round(statistics.mean(chance), 3),
        "over_stock": _difference(ours, stock),
        "over_random_lora": _difference(ours, chance),
        "with_lora": _share(bool(auto.loras) for auto in autos),
        "prompts": len(tasks),
    }


def _choice(
    studio: _Studio, tasks: Sequence[Task], autos: Sequence[_Auto], settings: Choice
) -> dict[str, Any]:
    known = recipes()
    choices = [settings, *(settings._replace(lora=recipe) for recipe in known)]
    tried = [studio.rewards(tasks, [choice] * len(tasks)) for choice in choices]
    by_task = list(zip(*tried, strict=True))
    ours = [auto.reward for auto, _ in zip(autos, tasks, strict=False)]
    best = [max(rewards) for rewards in by_task]
    names = ["", *(recipe.name for recipe in known)]
    first = [auto.loras[0] if auto.loras else "" for auto in autos[: len(tasks)]]
    return {
        "reward": round(statistics.mean(ours), 3),
        "no_lora_reward": round(statistics.mean(tried[0]), 3),
        "best_single_reward": round(statistics.mean(best), 3),
        "under_best": _difference(best, ours),
        "first_is_best": _share(
            name == names[rewards.index(max(rewards))]
            for name, rewards in zip(first, by_task, strict=True)
        ),
        "prompts": len(tasks),
    }


def _difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    differences = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    mean = statistics.mean(differences)
    half = 1.96 * statistics.stdev(differences) / math.sqrt(len(differences))
    return {"mean": round(mean, 3), "interval": [round(mean - half, 3), round(mean + half, 3)]}


def _share(hits: Iterable[bool]) -> float:
    return round(statistics.mean(float(hit) for hit in hits), 3)
