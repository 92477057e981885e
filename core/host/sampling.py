"""Samplers, schedulers, and sampling by them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import comfy.samplers

from ..errors import SettingError
from .stock import run_node, stock_nodes


def sampler_names() -> tuple[str, ...]:
    return tuple(comfy.samplers.KSampler.SAMPLERS)


def scheduler_names() -> tuple[str, ...]:
    return tuple(comfy.samplers.KSampler.SCHEDULERS)


def sigma_nodes() -> tuple[str, ...]:
    """Names of those scheduler nodes that `sample` can use, and that this ComfyUI has."""
    return tuple(name for name in _SIGMAS if name in stock_nodes.NODE_CLASS_MAPPINGS)


_SIGMAS: dict[str, Callable[..., dict[str, Any]]] = {
    "Flux2Scheduler": lambda model, steps, width, height: {
        "steps": steps,
        "width": width,
        "height": height,
    },
    "SDTurboScheduler": lambda model, steps, width, height: {
        "model": model,
        "steps": min(steps, 10),
        "denoise": 1.0,
    },
}
"""Inputs of the scheduler nodes by name."""


def with_shift(model: Any, shift: float) -> Any:
    """MODEL with another flow-matching time shift, as the ModelSampling nodes set it.

    Raises:
        SettingError: the model has no time shift.
    """
    sampling = copy.deepcopy(model.get_model_object("model_sampling"))
    parameters = inspect.signature(getattr(sampling, "set_parameters", lambda: None)).parameters
    if "shift" not in parameters:
        raise SettingError(
            "shift is set, but this model is not a flow-matching model. Take shift out of the plan."
        )
    keep = {"multiplier": sampling.multiplier} if "multiplier" in parameters else {}
    sampling.set_parameters(shift=shift, **keep)
    patched = model.clone()
    patched.add_object_patch("model_sampling", sampling)
    return patched


def sample(
    model: Any,
    positive: Any,
    negative: Any,
    latent: dict[str, Any],
    *,
    seed: int,
    steps: int,
    cfg: float,
    sampler: str,
    scheduler: str,
    denoise: float,
    sigmas: str | None = None,
    size: tuple[int, int] = (0, 0),
) -> dict[str, Any]:
    """Sample as the stock KSampler does, with its progress, previews and interrupt.

    Args:
        sigmas: name in `sigma_nodes()`: sample as the stock SamplerCustom does with the sigmas of
            that node; `scheduler` is not used then, nor where `denoise` is below 1.
        size: width and height of the image in pixels, for `sigmas`.
    """
    if sigmas is not None and denoise == 1.0:
        spaced = run_node(sigmas, **_SIGMAS[sigmas](model, steps, *size))
        return run_node(
            "SamplerCustom",
            model=model,
            add_noise=True,
            noise_seed=seed,
            cfg=cfg,
            positive=positive,
            negative=negative,
            sampler=comfy.samplers.sampler_object(sampler),
            sigmas=spaced,
            latent_image=latent,
        )
    return stock_nodes.common_ksampler(
        model, seed, steps, cfg, sampler, scheduler, positive, negative, latent, denoise=denoise
    )[0]
