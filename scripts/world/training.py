"""What all trainings of the small world share: data made once, and a loop that can be resumed."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..sample_models import cache_directory
from .rendering import render
from .scenes import Scene

LOG = logging.getLogger("world")
SAVE_SECONDS = 120.0
REPORT_STEPS = 100


_kept_in: Path | None = None


def keep_in(folder: Path) -> None:
    """Have this process keep data and unfinished trainings in `folder`."""
    global _kept_in
    _kept_in = folder


def workspace() -> Path:
    """Where data and unfinished trainings are kept: `world` in the cache directory, if not told."""
    folder = _kept_in or cache_directory() / "world"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pictures(name: str, scenes: Sequence[Scene], size: int) -> np.ndarray:
    """The scenes as uint8 pixels (scenes, size, size, 3), rendered once and kept under `name`.

    Raises:
        ValueError: what is kept under that name was made of another number of scenes.
    """
    path = workspace() / f"{name}.npy"
    if not path.is_file():
        started = time.monotonic()
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            rows = pool.map(partial(_pixels, size=size), scenes, chunksize=64)
            pixels = np.stack(list(rows))
        save(path, pixels)
        LOG.info("%s: %d pictures in %.0f s", name, len(pixels), time.monotonic() - started)
    return load(path, len(scenes))


def save(path: Path, values: np.ndarray) -> None:
    """Write an .npy file that is there whole or not at all, wherever the process is stopped."""
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, values)
    temporary.replace(path)


def load(path: Path, rows: int) -> np.ndarray:
    """What `save` wrote. Raises ValueError where it has another number of rows."""
    values = np.load(path)
    if len(values) != rows:
        raise ValueError(f"{path} was made of {len(values)} scenes, not {rows}; delete it")
    return values


def _pixels(scene: Scene, size: int) -> np.ndarray:
    return np.asarray(render(scene, size), np.uint8)


def to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 (batch, height, width, 3) to float32 (batch, 3, height, width) in [0, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(pixels)).to(device())
    return tensor.permute(0, 3, 1, 2).float().div(255)


class Average:
    """An exponential moving average of a network's parameters."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.values = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def copy_to_network(self) -> None:
        for value, parameter in zip(self.values, self.parameters, strict=True):
            parameter.copy_(value)


def learning_rate(step: int, steps: int, *, warmup: int = 100, cooldown: float = 0.3) -> float:
    """The share of the full rate at a step: linear warm-up, then full, then a cosine to zero.

    The last part takes `cooldown` of all steps. A training whose `steps` are raised later goes on
    as if it had been planned so, as long as it had not begun to cool down.
    """
    rise = min(1.0, (step + 1) / warmup)
    left = (steps - step) / (cooldown * steps)
    return rise * (1.0 if left >= 1 else 0.5 - 0.5 * math.cos(math.pi * left))


def train(
    name: str,
    parameters: Sequence[nn.Parameter],
    loss_of: Callable[[np.random.RandomState], Tensor],
    *,
    steps: int,
    rate: float,
    decay: float = 0.999,
    seed: int = 0,
    clip: float = 1.0,
) -> float:
    """Train `parameters` in place and leave their moving average in them.

    A training that was stopped goes on from its last state, saved every two minutes under `name`;
    each step draws from a RandomState of its own, so it makes the steps it would have made.

    Args:
        name: of the training, for its state file and the log.
        loss_of: gives one step's loss from a source of randomness.
        steps: optimizer steps in all.
        rate: AdamW's full learning rate.
        decay: of the moving average.
        clip: largest norm of the gradient.

    Returns:
        The seconds that training took, over all its runs.

    Raises:
        ValueError: the loss is not finite, or the saved state is another network's.
    """
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
    average = Average(parameters, decay)
    path = workspace() / f"{name}.state.pt"
    step, spent = _load_state(path, parameters, optimizer, average)
    started = saved = time.monotonic()
    losses: list[float] = []
    while step < steps:
        for group in optimizer.param_groups:
            group["lr"] = rate * learning_rate(step, steps)
        loss = loss_of(np.random.RandomState(seed * 1_000_003 + step))
        if not torch.isfinite(loss):
            raise ValueError(f"{name}: the loss of step {step} is {loss.item()}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        average.update(step)
        losses.append(loss.item())
        step += 1
        now = time.monotonic()
        if step % REPORT_STEPS == 0 or step == steps:
            mean = sum(losses) / len(losses)
            LOG.info("%s: step %d of %d, loss %.4f, %.0f s", name, step, steps, mean, now - started)
            losses.clear()
        if now - saved > SAVE_SECONDS or step == steps:
            _save_state(path, parameters, optimizer, average, step, spent + now - started)
            saved = now
    average.copy_to_network()
    return spent + time.monotonic() - started


def _save_state(
    path: Path,
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: Average,
    step: int,
    seconds: float,
) -> None:
    state = {
        "parameters": [parameter.detach() for parameter in parameters],
        "average": average.values,
        "optimizer": optimizer.state_dict(),
        "step": step,
        "seconds": seconds,
    }
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def _load_state(
    path: Path,
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: Average,
) -> tuple[int, float]:
    if not path.is_file():
        return 0, 0.0
    state = torch.load(path, map_location=device(), weights_only=True)
    shapes = [tuple(parameter.shape) for parameter in parameters]
    if [tuple(value.shape) for value in state["parameters"]] != shapes:
        raise ValueError(f"{path} holds the training of another network; delete it to start anew")
    with torch.no_grad():
        for parameter, value in zip(parameters, state["parameters"], strict=True):
            parameter.copy_(value)
    average.values = state["average"]
    optimizer.load_state_dict(state["optimizer"])
    LOG.info("%s: goes on at step %d", path.stem, state["step"])
    return state["step"], state["seconds"]
