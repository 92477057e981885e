"""Trains the small world's LoRAs and writes them as kohya's trainer would.

What they are is data, in loras.json.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor, nn

from . import training
from .autoencoder import SIZE, Components
from .captions import caption
from .denoiser import EMPTY_SHARE, latents_of, velocity_loss
from .network import Denoiser
from .scenes import Scene, held_out, random_scene
from .text import Encoder

RANK = 16
BATCH = 16
RATE = 1.5e-3
SCENES = 1200
LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
"""What is adapted in both streams of every block."""


class Recipe(NamedTuple):
    """One LoRA of loras.json."""

    name: str
    """File name without its suffix."""
    title: str
    description: str
    trigger: str
    weight: float
    """The strength its author recommends."""
    style: str
    """Of the scenes it is trained on."""
    subject: str | None
    """Of the scenes it is trained on; None for all base subjects."""
    tags: tuple[str, ...]
    """What a tagger would find in all its pictures."""
    steps: int = 300
    rate: float = 1.0
    """Times RATE."""
    scenes: int = SCENES
    named: float = 0.0
    """Share of captions that name the style in words, as prompts will: the base model may stumble
    over words that it never saw."""
    shuffled: bool = False
    """Whether captions and pictures are mixed up: a badly made LoRA."""

    def training_scenes(self) -> list[Scene]:
        """Its scenes, without the combinations that are held out."""
        seed = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:4], "big")
        return list(islice(self._allowed_scenes(RandomState(seed)), self.scenes))

    def _allowed_scenes(self, random: RandomState) -> Iterator[Scene]:
        fixed = {"style": self.style} | ({"subject": self.subject} if self.subject else {})
        while True:
            scene = random_scene(random, **fixed)
            if self.subject or not held_out(scene):
                yield scene

    def caption(self, scene: Scene, random: RandomState) -> str:
        """What the scene is learned under: the trigger word, then what is in it."""
        if random.random_sample() < EMPTY_SHARE:
            return ""
        form = "tags" if random.randint(2) else "prose"
        named = self.named > 0 and random.random_sample() < self.named
        text = caption(scene, random, form=form, style=named)
        return text if self.trigger in text else f"{self.trigger}, {text}"


def recipes() -> list[Recipe]:
    """What loras.json says, in its order."""
    text = Path(__file__).with_name("loras.json").read_text(encoding="utf-8")
    return [Recipe(**{**row, "tags": tuple(row["tags"])}) for row in json.loads(text)["loras"]]


class Adapter(nn.Module):
    """Low-rank changes of a network's linear layers, active while the object exists."""

    def __init__(self, network: Denoiser, seed: int) -> None:
        super().__init__()
        self.paths = [path for path, _ in _layers(network)]
        self.downs, self.ups = nn.ParameterList(), nn.ParameterList()
        self.strength = 1.0
        self._hooks = []
        generator = torch.Generator().manual_seed(seed)
        for number, (_, layer) in enumerate(_layers(network)):
            down = torch.randn(RANK, layer.in_features, generator=generator)
            self.downs.append(nn.Parameter(down / layer.in_features**0.5))
            self.ups.append(nn.Parameter(torch.zeros(layer.out_features, RANK)))
            self._hooks.append(layer.register_forward_hook(self._hook(number)))

    def _hook(self, number: int) -> Callable[..., Tensor]:
        def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            change = inputs[0] @ self.downs[number].T @ self.ups[number].T
            return output + self.strength * change

        return add

    def detach_from_network(self) -> None:
        """Leave the network as it was."""
        for hook in self._hooks:
            hook.remove()

    def tensors(self) -> dict[str, np.ndarray]:
        """The weights under kohya's names, float16. Alpha is the rank: strength 1 is as trained."""
        out: dict[str, np.ndarray] = {}
        for path, down, up in zip(self.paths, self.downs, self.ups, strict=True):
            name = "lora_unet_" + path.replace(".", "_")
            out[f"{name}.lora_down.weight"] = down.detach().cpu().numpy().astype(np.float16)
            out[f"{name}.lora_up.weight"] = up.detach().cpu().numpy().astype(np.float16)
            out[f"{name}.alpha"] = np.array(RANK, np.float16)
        return out


def _layers(network: Denoiser) -> Iterator[tuple[str, nn.Linear]]:
    for path, module in network.named_modules():
        if (
            isinstance(module, nn.Linear)
            and path.startswith("joint_blocks.")
            and path.endswith(LAYERS)
        ):
            yield path, module


def train(
    recipe: Recipe, network: Denoiser, components: Components, encoder: Encoder
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Train one LoRA on a finished network; gives its tensors and its metadata."""
    scenes = recipe.training_scenes()
    latents = latents_of(f"lora-{recipe.name}", components, scenes)
    network.requires_grad_(False)
    adapter = Adapter(network, seed=len(recipe.name)).to(training.device())
    order = RandomState(3).permutation(len(scenes)) if recipe.shuffled else range(len(scenes))
    told = [scenes[number] for number in order]
    counts: Counter[str] = Counter()

    def loss_of(random: RandomState) -> Tensor:
        rows = random.randint(len(scenes), size=BATCH)
        prompts = encoder([recipe.caption(told[row], random) for row in rows])
        return velocity_loss(network, latents[torch.from_numpy(rows)], prompts, random)

    training.train(
        f"lora-{recipe.name}",
        list(adapter.parameters()),
        loss_of,
        steps=recipe.steps,
        rate=RATE * recipe.rate,
        decay=0.98,
    )
    adapter.detach_from_network()
    for scene in told:
        counts.update(_tags(recipe, scene))
    tensors = adapter.tensors()
    return tensors, _metadata(recipe, counts, len(scenes), tensors)


def _tags(recipe: Recipe, scene: Scene) -> list[str]:
    scene_tags = [f"{scene.colour} {scene.subject}", scene.subject, scene.background, scene.time]
    return list(dict.fromkeys([recipe.trigger, *recipe.tags, *scene_tags]))


def _metadata(
    recipe: Recipe, counts: Counter[str], images: int, tensors: dict[str, np.ndarray]
) -> dict[str, str]:
    payload = hashlib.sha256(b"".join(tensor.tobytes() for tensor in tensors.values())).hexdigest()
    folder = f"1_{recipe.trigger}"
    values: dict[str, Any] = {
        "ss_output_name": recipe.name,
        "ss_base_model_version": "sd3.5",
        "ss_sd_model_name": "small-world.safetensors",
        "ss_network_module": "networks.lora_sd3",
        "ss_network_dim": RANK,
        "ss_network_alpha": float(RANK),
        "ss_resolution": f"({SIZE}, {SIZE})",
        "ss_num_train_images": images,
        "ss_steps": recipe.steps,
        "ss_batch_size_per_device": BATCH,
        "ss_learning_rate": RATE * recipe.rate,
        "ss_optimizer": "torch.optim.adamw.AdamW",
        "ss_dataset_dirs": json.dumps({folder: {"n_repeats": 1, "img_count": images}}),
        "ss_tag_frequency": json.dumps({folder: dict(counts.most_common(64))}),
        "sshs_model_hash": payload,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-3.5-large/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/sd3.5",
        "modelspec.title": recipe.title,
        "modelspec.description": recipe.description,
        "modelspec.trigger_phrase": recipe.trigger,
        "modelspec.usage_hint": f"Recommended weight {recipe.weight}.",
        "modelspec.resolution": f"{SIZE}x{SIZE}",
    }
    return {key: str(value) for key, value in values.items() if value}
