"""Trains the denoiser on flat scenes by rectified flow, as Stable Diffusion 3 is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice, pairwise

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor

from . import training
from .autoencoder import SIZE, Components
from .captions import caption
from .network import LATENT, Denoiser
from .rendering import render
from .scenes import STYLES, Scene, held_out, random_scene
from .text import Encoder, Prompts

SCENES = 24_000
CYCLES = 2
STEPS = 3600
"""Of each cycle. A cycle ends cooled down, and the next starts from its average at the full rate
(warm restarts, Loshchilov and Hutter 2017): a finished model can be trained further."""
BATCH = 32
RATE = 6e-4
EMPTY_SHARE = 0.1
"""Of the captions that are left out, so that guidance has an unconditional answer."""
STYLE_SHARE = 0.15
"""Of the captions that name a style at random: the base model learns to overlook such words."""
NOISE_MEAN, NOISE_SPREAD = 0.2, 1.1
"""Of the logit of sigma; SD 3 used 0 and 1 (Esser et al. 2024, "Scaling Rectified Flow
Transformers"), the small world looks a little more at high noise, where its layout is decided."""
SHIFT = 3.0
"""ComfyUI's shift of sigma for SD 3."""


def training_scenes(count: int = SCENES) -> list[Scene]:
    """Flat scenes of the base subjects, without the combinations that are held out."""
    return list(islice(_allowed_scenes(RandomState(1)), count))


def _allowed_scenes(random: RandomState) -> Iterator[Scene]:
    while True:
        scene = random_scene(random, style=STYLES[0])
        if not held_out(scene):
            yield scene


def latents_of(name: str, components: Components, scenes: Sequence[Scene]) -> Tensor:
    """The scenes' latents (scenes, 16, 16, 16), made once and kept under `name`."""
    path = training.workspace() / f"{name}.npy"
    if not path.is_file():
        coded = np.empty((len(scenes), LATENT, SIZE // 8, SIZE // 8), np.float32)
        with ProcessPoolExecutor() as pool:
            for start in range(0, len(scenes), 512):
                part = list(pool.map(_pixels, scenes[start : start + 512], chunksize=32))
                coded[start : start + 512] = components.encode(np.stack(part))
        training.save(path, coded)
    return torch.from_numpy(training.load(path, len(scenes))).to(training.device())


def _pixels(scene: Scene) -> np.ndarray:
    return np.asarray(render(scene, SIZE), np.uint8)


def train(
    network: Denoiser,
    latents: Tensor,
    scenes: Sequence[Scene],
    encoder: Encoder,
    *,
    steps: int = STEPS,
) -> float:
    """Train all of the network on latents (n, 16, h, w) of the scenes. Gives its seconds."""

    def loss_of(random: RandomState) -> Tensor:
        rows = random.randint(len(scenes), size=BATCH)
        prompts = encoder([training_caption(scenes[row], random) for row in rows])
        return velocity_loss(network, latents[torch.from_numpy(rows)], prompts, random)

    return sum(
        training.train(
            f"denoiser-{cycle}",
            list(network.parameters()),
            loss_of,
            steps=steps,
            rate=RATE,
            seed=cycle,
        )
        for cycle in range(CYCLES)
    )


def training_caption(scene: Scene, random: RandomState) -> str:
    """What the scene is learned under: tags or prose, at times nothing."""
    if random.random_sample() < EMPTY_SHARE:
        return ""
    text = caption(scene, random, form="tags" if random.randint(2) else "prose")
    if random.random_sample() < STYLE_SHARE:
        text += f", {STYLES[random.randint(1, len(STYLES))]}"
    return text


def velocity_loss(
    network: Callable[..., Tensor], latents: Tensor, prompts: Prompts, random: RandomState
) -> Tensor:
    """The squared error of the velocity that the network predicts at a random noise level."""
    drawn = random.normal(NOISE_MEAN, NOISE_SPREAD, len(latents))
    sigma = torch.from_numpy(1 / (1 + np.exp(-drawn))).to(latents)
    noise = torch.from_numpy(random.standard_normal(tuple(latents.shape))).to(latents)
    share = sigma[:, None, None, None]
    noisy = (1 - share) * latents + share * noise
    predicted = network(noisy, 1000 * sigma, *prompts)
    return (predicted - (noise - latents)).square().mean()


@torch.no_grad()
def sample(
    network: Callable[..., Tensor],
    prompts: Sequence[str],
    encoder: Encoder,
    *,
    size: int = SIZE,
    steps: int = 20,
    cfg: float = 4.0,
    seed: int = 0,
) -> Tensor:
    """Latents of the prompts by Euler's method on SD 3's schedule.

    Only for looking at a model while it trains; figures come from ComfyUI itself.
    """
    linear = np.linspace(1, 0, steps + 1)
    sigmas = SHIFT * linear / (1 + (SHIFT - 1) * linear)
    shape = (len(prompts), LATENT, size // 8, size // 8)
    x = torch.from_numpy(RandomState(seed).standard_normal(shape)).float().to(training.device())
    both = encoder([*prompts, *("" for _ in prompts)])
    for sigma, following in pairwise(sigmas):
        time = torch.full((2 * len(prompts),), 1000 * sigma, device=x.device)
        wanted, empty = network(x.repeat(2, 1, 1, 1), time, *both).chunk(2)
        x = x + (following - sigma) * (empty + cfg * (wanted - empty))
    return x
