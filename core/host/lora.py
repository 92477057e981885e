"""Applying LoRAs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from safetensors import SafetensorError

from ..errors import ModelFileError, first_line
from .memory import raise_out_of_memory
from .stock import stock_nodes


class LoraEffect(NamedTuple):
    """What applying a LoRA did."""

    model: Any
    clip: Any
    model_weights: int
    """Diffusion-model weights patched."""
    clip_weights: int
    """Text-encoder weights patched."""
    misshapen: int
    """Of these, patches whose shape does not fit the weight; ComfyUI drops them later."""


def apply_lora(
    model: Any, clip: Any, name: str, model_strength: float, clip_strength: float
) -> LoraEffect:
    """Apply a LoRA as the stock LoraLoader does; MODEL and CLIP themselves stay as they are.

    Raises:
        ModelFileError: the file cannot be read.
    """
    try:
        new_model, new_clip = stock_nodes.LoraLoader().load_lora(
            model, clip, name, model_strength, clip_strength
        )
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        raise_out_of_memory(error)
        raise ModelFileError(
            f"LoRA {name} could not be read: {first_line(error)}. Download it again or remove it."
        ) from error
    model_keys = _new_patches(model, new_model)
    clip_keys = _new_patches(clip.patcher, new_clip.patcher) if clip is not None else []
    misshapen = _misshapen(new_model, model_keys)
    if clip is not None:
        misshapen += _misshapen(new_clip.patcher, clip_keys)
    return LoraEffect(new_model, new_clip, len(model_keys), len(clip_keys), misshapen)


def _new_patches(before: Any, after: Any) -> list[str]:
    known = before.patches
    return [key for key, patches in after.patches.items() if len(patches) > len(known.get(key, ()))]


def _misshapen(patcher: Any, keys: Sequence[str]) -> int:
    """Low-rank patches whose product does not have the weight's size."""
    if not keys:
        return 0
    weights = patcher.model.state_dict()
    count = 0
    for key in keys:
        _, patch, _, offset, _ = patcher.patches[key][-1]
        factors = getattr(patch, "weights", None)
        # Only plain up/down pairs without a Tucker core have a shape that is this easy to tell, and
        # only weights that are not packed (quantized) have the shape they stand for.
        if getattr(patch, "name", "") != "lora" or factors is None or offset is not None:
            continue
        if not weights[key].dtype.is_floating_point:
            continue
        up, down, _, middle, _, reshape = factors
        if middle is None and reshape is None:
            count += up.shape[0] * down[0].numel() != weights[key].numel()
    return count
