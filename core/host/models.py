"""What a model is: its parts, their sizes, its patches and what is attached to it."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import comfy.quant_ops
import torch

from .folders import USER_DIRECTORY


class WeightCount(NamedTuple):
    """Size of one loaded part."""

    dtype: str
    """Data type of most of its bytes, e.g. `float16`, or the format of 4 bits, e.g. `nvfp4`."""
    parameters: int
    bytes: int


def count_weights(module: torch.nn.Module) -> WeightCount:
    """Parameters and bytes of a loaded module, and the data type that most of them have.

    The scales of quantized weights count among the bytes, not among the parameters.
    """
    by_dtype: Counter[str] = Counter()
    parameters = 0
    for name, parameter in module.named_parameters():
        # ComfyUI's quantized tensors claim the type that they stand for.
        stored: torch.Tensor = getattr(parameter, "_qdata", parameter)
        by_dtype[_stored_as(parameter, stored)] += stored.nbytes
        for scale in ("scale", "block_scale"):
            values = getattr(getattr(parameter, "_params", None), scale, None)
            if isinstance(values, torch.Tensor):
                by_dtype[str(values.dtype)] += values.nbytes
        parameters += 0 if name.endswith("weight_scale") else parameter.numel()
    most = max(by_dtype, key=by_dtype.__getitem__, default="none")
    return WeightCount(most.removeprefix("torch."), parameters, sum(by_dtype.values()))


def _stored_as(parameter: torch.Tensor, stored: torch.Tensor) -> str:
    layout = getattr(parameter, "_layout_cls", None)
    if layout is not None and stored.numel() < parameter.numel():
        # Several numbers a byte: the data type of the bytes says nothing.
        for name, algorithm in getattr(comfy.quant_ops, "QUANT_ALGOS", {}).items():
            if algorithm.get("comfy_tensor_layout") == layout:
                return name
    return str(stored.dtype)


def diffusion_module(model: Any) -> torch.nn.Module:
    return model.model.diffusion_model


def text_encoder_module(clip: Any) -> torch.nn.Module:
    return clip.cond_stage_model


def vae_module(vae: Any) -> torch.nn.Module:
    return vae.first_stage_model


def comfy_class(model: Any) -> str:
    """Name of the class in `comfy.supported_models` that ComfyUI detected."""
    return type(model.model.model_config).__name__


def patch_count(model: Any) -> int:
    """How many patches (of LoRAs, merges) MODEL carries; one weight may carry several."""
    return sum(len(patches) for patches in model.patches.values())


def other_changes(patcher: Any) -> int:
    """How many changes besides weight patches nodes have made to a MODEL, or to CLIP's patcher:
    replaced parts, options, wrappers, callbacks, injections, hooks."""

    def leaves(tree: Any) -> int:
        return sum(map(leaves, tree.values())) if isinstance(tree, dict) else _length(tree)

    return (
        len(patcher.object_patches)
        + leaves(patcher.model_options)
        + sum(
            leaves(_of_others(getattr(patcher, name, {})))
            for name in ("wrappers", "callbacks", "injections", "hook_patches")
        )
    )


def _of_others(tree: Any) -> Any:
    # Wrappers and callbacks of this pack are how a memory rule is kept; they change no image.
    if not isinstance(tree, dict):
        return tree
    return {key: _of_others(value) for key, value in tree.items() if key != USER_DIRECTORY}


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (list, tuple)) else 1


def clip_changes(clip: Any) -> int:
    """How many settings of CLIP nodes have changed: clip skip, tokenizer options, hooks."""
    return (
        (clip.layer_idx is not None)
        + len(clip.tokenizer_options)
        + (clip.apply_hooks_to_conds is not None)
    )


class Patches(NamedTuple):
    """The weight patches of a model, apart from it."""

    by_weight: dict[str, list[Any]]
    uuid: Any
    """ComfyUI patches a loaded model anew only when this changes."""


def patches_of(patcher: Any) -> Patches:
    """The patches of a MODEL, or of CLIP's patcher."""
    return Patches(
        {key: list(value) for key, value in patcher.patches.items()}, patcher.patches_uuid
    )


def with_patches(model: Any, patches: Patches) -> Any:
    """A clone of MODEL with these patches in place of its own."""
    clone = model.clone()
    clone.patches = {key: list(value) for key, value in patches.by_weight.items()}
    clone.patches_uuid = patches.uuid
    return clone


def clip_with_patches(clip: Any, patches: Patches) -> Any:
    """A clone of CLIP with these patches in place of its own."""
    clone = clip.clone()
    clone.patcher.patches = {key: list(value) for key, value in patches.by_weight.items()}
    clone.patcher.patches_uuid = patches.uuid
    return clone


def attach(model: Any, key: str, value: Any) -> None:
    """Attach a value to MODEL; its clones carry it along."""
    model.set_attachments(f"{USER_DIRECTORY}.{key}", value)


def attached(model: Any, key: str) -> Any:
    """What `attach` attached to MODEL or to the model it was cloned from; None without."""
    return model.get_attachment(f"{USER_DIRECTORY}.{key}")
