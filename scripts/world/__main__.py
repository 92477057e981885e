"""Trains everything that is stored of the small world, as scripts/train_world.py runs it."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence

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
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    files.LORAS.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    for part in options.parts or PARTS:
        torch.manual_seed(0)  # a part alone comes out as it does among all
        if part == "autoencoder":
            _train_autoencoder()
        elif part == "denoiser":
            _train_denoiser()
        elif part == "loras":
            _train_loras(options.only)
        else:
            _train_judge()
    logging.info("%.0f s in all", time.monotonic() - started)
    return 0


def _train_autoencoder() -> None:
    network = Autoencoder().to(training.device())
    seconds = autoencoder.train(network)
    _write(files.AUTOENCODER, network, seconds)


def _train_denoiser() -> None:
    scenes = denoiser.training_scenes()
    latents = denoiser.latents_of("latents", _components(), scenes)
    network = Denoiser().to(training.device())
    seconds = denoiser.train(network, latents, scenes, _encoder())
    _write(files.DENOISER, network, seconds)


def _train_loras(only: str | None) -> None:
    network, components, encoder = _trained_denoiser(), _components(), _encoder()
    for recipe in loras.recipes():
        if only in (None, recipe.name):
            tensors, metadata = loras.train(recipe, network, components, encoder)
            write_safetensors(files.LORAS / f"{recipe.name}.safetensors", tensors, metadata)


def _train_judge() -> None:
    network = judge.Judge().to(training.device())
    seconds = judge.train(network)
    _write(files.JUDGE, network, seconds)
    logging.info("judge: unseen renders %s", json.dumps(judge.accuracy(network)))


def _components() -> autoencoder.Components:
    return autoencoder.principal_components(autoencoder.training_pictures())


def _encoder() -> Encoder:
    return Encoder(find_comfyui() / "comfy" / "sd1_tokenizer", training.device())


def _trained_denoiser() -> Denoiser:
    from safetensors.numpy import load_file

    network = Denoiser()
    state = {
        name: torch.from_numpy(value).float() for name, value in load_file(files.DENOISER).items()
    }
    unused = torch.zeros_like(network.context_embedder.weight)
    unused[:, :CONTEXT] = state["context_embedder.weight"]
    network.load_state_dict({**state, "context_embedder.weight": unused})
    return network.to(training.device())


def _write(path: files.Path, network: nn.Module, seconds: float) -> None:
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
