"""Trains everything that is stored of the small world, as scripts/train_world.py runs it."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from ..comfyui import find_comfyui
from ..sample_models import write_safetensors
from . import autoencoder, denoiser, files, judge, loras, training
from .network import CONTEXT, Autoencoder, Denoiser
from .text import Encoder

PARTS = ("autoencoder", "denoiser", "loras", "judge")


def main(arguments: Sequence[str]) -> int:
    """Train the parts asked for, in their order, and write each when it is done."""
    parser = argparse.ArgumentParser(
        prog="train_world.py", description="Train the small world. Stopped runs go on."
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--only", metavar="NAME", help="of the LoRAs, train this one")
    parser.add_argument(
        "--into",
        type=Path,
        metavar="FOLDER",
        help="keep weights and unfinished trainings there, and leave the repository's alone",
    )
    parser.add_argument(
        "--share",
        type=float,
        default=1.0,
        help="of all steps and scenes, above 0 to 1: tries the whole way in less time; with --into",
    )
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    names = [recipe.name for recipe in loras.recipes()]
    if options.only not in (None, *names):
        parser.error(f"there is no LoRA {options.only!r}; there are {', '.join(names)}")
    if not 0 < options.share <= 1:
        parser.error(f"--share is {options.share:g}; use a number above 0, and at most 1")
    if options.share != 1 and options.into is None:
        parser.error("--share would write an unfinished world over the stored one; add --into")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run = _Run(options.into or files.WEIGHTS, options.share)
    run.place(files.LORAS).mkdir(parents=True, exist_ok=True)
    if options.into is not None:
        training.keep_in(options.into / "unfinished")
    started = time.monotonic()
    for part in options.parts or PARTS:
        torch.manual_seed(0)  # a part alone comes out as it does among all
        if part == "autoencoder":
            _train_autoencoder(run)
        elif part == "denoiser":
            _train_denoiser(run)
        elif part == "loras":
            _train_loras(run, options.only)
        else:
            _train_judge(run)
    logging.info("%.0f s in all", time.monotonic() - started)
    return 0


class _Run(NamedTuple):
    """Where a run writes, and how much of the work it does."""

    folder: Path
    share: float

    def place(self, stored: Path) -> Path:
        """Where this run keeps what the repository keeps as `stored`."""
        return self.folder / stored.relative_to(files.WEIGHTS)

    def part_of(self, count: int) -> int:
        """Its share of so many steps or scenes, two at least."""
        return max(2, round(self.share * count))

    def components(self) -> autoencoder.Components:
        return autoencoder.principal_components(
            autoencoder.training_pictures(self.part_of(autoencoder.SCENES))
        )


def _train_autoencoder(run: _Run) -> None:
    network = Autoencoder().to(training.device())
    pixels = autoencoder.training_pictures(run.part_of(autoencoder.SCENES))
    seconds = autoencoder.train(network, pixels, steps=run.part_of(autoencoder.STEPS))
    _write(run.place(files.AUTOENCODER), network, seconds)


def _train_denoiser(run: _Run) -> None:
    scenes = denoiser.training_scenes(run.part_of(denoiser.SCENES))
    latents = denoiser.latents_of("latents", run.components(), scenes)
    network = Denoiser().to(training.device())
    steps = run.part_of(denoiser.STEPS)
    seconds = denoiser.train(network, latents, scenes, _encoder(), steps=steps)
    _write(run.place(files.DENOISER), network, seconds)


def _train_loras(run: _Run, only: str | None) -> None:
    network = _trained_denoiser(run.place(files.DENOISER))
    components, encoder = run.components(), _encoder()
    for recipe in loras.recipes():
        if only in (None, recipe.name):
            path = run.place(files.LORAS) / f"{recipe.name}.safetensors"
            own = recipe._replace(
                steps=run.part_of(recipe.steps), scenes=run.part_of(recipe.scenes)
            )
            write_safetensors(path, *loras.train(own, network, components, encoder))


def _train_judge(run: _Run) -> None:
    network = judge.Judge().to(training.device())
    seconds = judge.train(network, steps=run.part_of(judge.STEPS), scenes=run.part_of(judge.SCENES))
    _write(run.place(files.JUDGE), network, seconds)
    logging.info("judge: unseen renders %s", json.dumps(judge.accuracy(network)))


def _encoder() -> Encoder:
    return Encoder(find_comfyui() / "comfy" / "sd1_tokenizer", training.device())


def _trained_denoiser(path: Path) -> Denoiser:
    from safetensors.numpy import load_file

    network = Denoiser()
    state = {name: torch.from_numpy(value).float() for name, value in load_file(path).items()}
    unused = torch.zeros_like(network.context_embedder.weight)
    unused[:, :CONTEXT] = state["context_embedder.weight"]
    network.load_state_dict({**state, "context_embedder.weight": unused})
    return network.to(training.device())


def _write(path: Path, network: nn.Module, seconds: float) -> None:
    tensors: Mapping[str, np.ndarray] = {
        name: value.detach().cpu().numpy().astype(np.float16)
        for name, value in sorted(network.state_dict().items())
    }
    if isinstance(network, Denoiser):
        stored = tensors["context_embedder.weight"][:, :CONTEXT]
        tensors = {**tensors, "context_embedder.weight": np.ascontiguousarray(stored)}
    write_safetensors(path, tensors, {"training_seconds": f"{seconds:.0f}"})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
