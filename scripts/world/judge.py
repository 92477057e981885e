"""Reads back what an image shows: a small classifier of rendered scenes, and a reward from it.

It is trained on rendered pictures alone, never on generated ones, so no model can be fitted to it
by accident.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import RandomState
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from . import training
from .captions import BACKGROUND_WORDS, NOUNS, NUMBERS, PLACE_WORDS, STYLE_WORDS, TIME_WORDS
from .scenes import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    NEW_SUBJECTS,
    PLACES,
    STYLES,
    SUBJECTS,
    TIMES,
    Scene,
    random_scene,
)

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "subject": SUBJECTS + NEW_SUBJECTS,
    "colour": COLOURS,
    "count": tuple(str(count) for count in COUNTS),
    "place": PLACES,
    "background": BACKGROUNDS,
    "time": TIMES,
    "style": STYLES,
}
"""What is read, and the values of each."""
SIZE = 64
"""Pixels of a side that images are reduced to."""
SCENES = 16_000
UNSEEN = 1000
STEPS = 2800
BATCH = 64
RATE = 2e-3


class Judgement(NamedTuple):
    """Of one image: attribute -> value -> probability."""

    probabilities: Mapping[str, Mapping[str, float]]

    def read(self, attribute: str) -> str:
        """The likeliest value of an attribute."""
        values = self.probabilities[attribute]
        return max(values, key=values.__getitem__)


class Judge(nn.Module):
    """Classifies images (batch, 3, 64, 64) in [0, 1]; one head an attribute."""

    def __init__(self) -> None:
        super().__init__()
        widths = (32, 64, 96, 128)
        layers: list[nn.Module] = []
        for inputs, outputs in zip((3, *widths), widths, strict=False):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1),
                nn.GroupNorm(8, outputs),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.features = nn.Sequential(*layers, nn.Conv2d(widths[-1], 128, 3, padding=1), nn.ReLU())
        self.hidden = nn.Linear(128 * (SIZE // 16) ** 2, 256)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(256, len(values)) for name, values in ATTRIBUTES.items()}
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits by attribute, (batch, values)."""
        hidden = functional.relu(self.hidden(self.features(images - 0.5).flatten(1)))
        return {name: head(hidden) for name, head in self.heads.items()}


@torch.no_grad()
def judge(network: Judge, images: Sequence[Image.Image]) -> list[Judgement]:
    """What the network reads in each of the images, which may have any size."""
    resized = [image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX) for image in images]
    pixels = training.to_tensor(np.stack([np.asarray(image) for image in resized]))
    answers = {name: logits.softmax(-1).cpu() for name, logits in network(pixels).items()}
    return [
        Judgement(
            {
                name: dict(zip(values, answers[name][row].tolist(), strict=True))
                for name, values in ATTRIBUTES.items()
            }
        )
        for row in range(len(images))
    ]


def asked_for(prompt: str) -> dict[str, str]:
    """The attributes that a prompt names, with their values, e.g. {"subject": "cat"}.

    Words are those of captions.py. A prompt that names several values of one attribute asks for
    the first of them.
    """
    found: dict[str, tuple[int, int, str]] = {}
    text = _plain(re.sub(r":[\d.]+\)", ")", prompt))  # "(red:1.3)" does not ask for three
    for attribute, words in _phrases().items():
        for phrase, value in words.items():
            match = re.search(rf"\b{re.escape(phrase)}\b", text)
            if match is not None:
                # The earliest; at the same place the longest.
                place = (match.start(), -len(phrase), value)
                found[attribute] = min(found.get(attribute, place), place)
    return {attribute: value for attribute, (_, _, value) in found.items()}


def reward(judgement: Judgement, asked: Mapping[str, str]) -> float:
    """How well an image shows what was asked for, in [0, 1].

    The mean probability of the values asked for. A prompt that asks for no known attribute has
    no reward.

    Raises:
        ValueError: `asked` is empty.
    """
    if not asked:
        raise ValueError("the prompt names nothing that the judge can see")
    parts = [judgement.probabilities[name][value] for name, value in asked.items()]
    return sum(parts) / len(parts)


def train(network: Judge, *, steps: int = STEPS, scenes: int = SCENES) -> float:
    """Train on rendered scenes of every subject and style. Gives the seconds it took."""
    shown = _scenes(scenes, seed=21)
    pixels = training.pictures("judge", shown, SIZE)
    targets = _targets(shown)

    def loss_of(random: RandomState) -> Tensor:
        rows = random.randint(len(shown), size=BATCH)
        answers = network(_disturbed(training.to_tensor(pixels[rows]), random))
        return sum(
            (functional.cross_entropy(answers[name], targets[name][rows]) for name in ATTRIBUTES),
            start=torch.zeros((), device=training.device()),
        )

    return training.train("judge", list(network.parameters()), loss_of, steps=steps, rate=RATE)


def accuracy(network: Judge, *, style: str | None = None) -> dict[str, float]:
    """The share of attributes read rightly in 1000 rendered scenes that it was not trained on."""
    scenes = _scenes(UNSEEN, seed=22, **({"style": style} if style else {}))
    pixels = training.pictures(f"judge-unseen-{style or 'all'}", scenes, SIZE)
    with torch.no_grad():
        answers = network(training.to_tensor(pixels))
    targets = _targets(scenes)
    return {
        name: (answers[name].argmax(-1) == targets[name]).float().mean().item()
        for name in ATTRIBUTES
    }


def load(path: Path) -> Judge:
    """The judge of a safetensors file."""
    from safetensors.torch import load_file

    network = Judge()
    network.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return network.to(training.device())


def _scenes(count: int, seed: int, **fixed: str) -> list[Scene]:
    random = RandomState(seed)
    subjects = ATTRIBUTES["subject"]
    return [
        random_scene(random, subject=subjects[random.randint(len(subjects))], **fixed)
        for _ in range(count)
    ]


def _targets(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    return {
        name: torch.tensor(
            [values.index(str(getattr(scene, name))) for scene in scenes], device=training.device()
        )
        for name, values in ATTRIBUTES.items()
    }


def _disturbed(images: Tensor, random: RandomState) -> Tensor:
    # Blur and noise, so that it looks at shapes and not at a renderer's exact pixels.
    if random.random_sample() < 0.5:
        images = functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    noise = random.uniform(0, 0.06) * random.standard_normal(tuple(images.shape))
    brightness = random.uniform(0.92, 1.08)
    return (images * brightness + torch.from_numpy(noise).to(images)).clamp(0, 1)


def _phrases() -> dict[str, dict[str, str]]:
    out: dict[str, dict[str, str]] = {name: {} for name in ATTRIBUTES}
    out["colour"] = {colour: colour for colour in COLOURS}
    out["count"] = {word: str(count) for count, words in NUMBERS.items() for word in words}
    for subject, names in NOUNS.items():
        out["subject"] |= {name: subject for pair in names for name in pair}
    tables = {"background": BACKGROUND_WORDS, "time": TIME_WORDS, "place": PLACE_WORDS}
    for attribute, table in tables.items():
        for value, forms in table.items():
            for phrases in forms.values():
                out[attribute] |= {_plain(phrase): value for phrase in phrases}
    for style, phrases in STYLE_WORDS.items():
        out["style"] |= {_plain(phrase): style for phrase in phrases}
    return out


def _plain(phrase: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", phrase.lower()))
