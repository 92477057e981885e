"""Memory rules: MODEL, CLIP and VAE that use the device as they are told."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import comfy.model_management as model_management
import comfy.patcher_extension
import torch

from ..errors import SettingError
from .folders import USER_DIRECTORY
from .mixing import mix_in
from .models import attach, attached
from .quantized import Int8Layer

log = logging.getLogger(__name__)


class MemoryRule(NamedTuple):
    """How a part of a model uses the device. Clones carry it along."""

    whole: bool = False
    """Loaded whole, however much room ComfyUI sees."""
    alone: bool = False
    """Whatever else is on the device leaves it before this part comes."""
    makes_room: bool = False
    """Where it does not fit on the device beside them, text encoders and VAEs leave it whole before
    this part samples; ComfyUI would leave there what just fits."""
    on_processor: bool = False
    """Loaded and run on the processor."""
    streamed: bool = False
    """No weight is kept on the device: each is brought there when its layer runs."""
    cap: int | None = None
    """Bytes on the device that the parts with this rule take at most, computing included."""


_RULE = "memory_rule"

_WORKING = "memory_working"

_TEXT_WORKING = 256 * 1024**2
"""What a text encoder computes in: T5-XXL's attention scores of 512 tokens and its widest layer
take under 100 MB in fp16 (64 heads, 512 x 512; 512 x 10240)."""

_TILES = (64, 48, 32, 24, 16)
"""Sides of a tile in latent cells: VAEDecodeTiled's default of 512 pixels, and smaller."""


def model_with_rule(model: Any, rule: MemoryRule | None) -> Any:
    """A clone of MODEL that keeps to the rule; None takes a rule off."""
    clone = _ruled(model, rule)
    kind = comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING
    clone.remove_wrappers_with_key(kind, USER_DIRECTORY)
    if rule is not None:
        clone.add_wrapper_with_key(kind, USER_DIRECTORY, _prepare_sampling)
    return clone


def clip_with_rule(clip: Any, rule: MemoryRule | None) -> Any:
    """A clone of CLIP that keeps to the rule."""
    clone = clip.clone()
    clone.patcher = _ruled(clone.patcher, rule)
    return clone


def vae_with_rule(vae: Any, rule: MemoryRule | None) -> Any:
    """A copy of VAE that keeps to the rule: what does not fit under its cap is done in tiles."""
    clone = copy.copy(vae)
    clone.patcher = _ruled(vae.patcher, rule)
    clone.device = clone.patcher.load_device
    if rule is not None and not isinstance(clone, _RuledVAE):
        mix_in(_RuledVAE, clone, "Ruled")
    return clone


def rule_of(patcher: Any) -> MemoryRule | None:
    """The rule of a MODEL, or of CLIP's or VAE's patcher."""
    return attached(patcher, _RULE)


def _ruled(patcher: Any, rule: MemoryRule | None) -> Any:
    place = attached(patcher, _PLACE) or (patcher.load_device, patcher.offload_device)
    if rule is not None and rule.on_processor and getattr(patcher, "is_dynamic", bool)():
        clone = patcher.clone(disable_dynamic=True)
    else:
        clone = patcher.clone()
    attach(clone, _RULE, rule)
    attach(clone, _PLACE, place)
    processor = torch.device("cpu")
    on_processor = rule is not None and rule.on_processor
    clone.load_device, clone.offload_device = (processor, processor) if on_processor else place
    load = comfy.patcher_extension.CallbacksMP.ON_LOAD
    clone.remove_callbacks_with_key(load, USER_DIRECTORY)
    if rule is not None:
        # A pack may give clones a class of its own, which then lacks what ours adds.
        clone.add_callback_with_key(load, USER_DIRECTORY, _keep_to_cap)
        if not isinstance(clone, _RuledPatcher):
            mix_in(_RuledPatcher, clone, "Ruled")
    return clone


_PLACE = "memory_place"
"""Attachment: load and offload device before a rule changed them."""


class _RuledPatcher:
    """Mixed into a patcher's class: it loads as much as its rule allows."""

    def partially_load(
        self, device_to: Any, extra_memory: float = 0, force_patch_weights: bool = False
    ) -> Any:
        load: Any = super()
        patcher: Any = self
        rule = rule_of(self)
        if rule is None:
            return load.partially_load(device_to, extra_memory, force_patch_weights)
        if patcher.is_clip:  # for the others room was made before ComfyUI was asked to load them
            _make_room(patcher, rule, _TEXT_WORKING)
        if patcher.loaded_size() and patcher.current_loaded_device() != device_to:
            patcher.detach()  # a clone of it ran on the other device
        limit = None
        if not getattr(patcher, "is_dynamic", bool)():
            if not patcher.loaded_size():
                _unmark(patcher.model)
            limit = _weight_limit(patcher, rule)
            if limit is not None:
                extra_memory = min(extra_memory, limit - patcher.loaded_size())
            elif rule.whole:
                extra_memory = _UNLIMITED
        loaded = load.partially_load(device_to, extra_memory, force_patch_weights)
        if limit is not None:
            _trim(patcher, limit)
        return loaded

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> None:
        super().unpatch_model(device_to, unpatch_weights)  # type: ignore[misc]
        if unpatch_weights:
            _unmark(self.model)  # type: ignore[attr-defined]

    def detach(self, unpatch_all: bool = True) -> Any:
        # A clone that takes its place may run on another device.
        rule = rule_of(self)
        away = rule is not None and rule.on_processor
        return super().detach(unpatch_all or away)  # type: ignore[misc]


def _unmark(model: torch.nn.Module) -> None:
    """Take off what ComfyUI marks streamed layers with, of a model with no weight on the device.

    It leaves the mark where it casts the weights of a model that it has loaded whole (text encoders
    since 0.27), and then takes the LoRA of such a layer as added already when it is streamed.
    """
    for layer in model.modules():
        if hasattr(layer, "prev_comfy_cast_weights"):
            layer.comfy_cast_weights = layer.prev_comfy_cast_weights
            del layer.prev_comfy_cast_weights


_UNLIMITED = 1e32  # what ComfyUI itself passes to load all


def _weight_limit(patcher: Any, rule: MemoryRule) -> int | None:
    """Bytes that the weights on the device may take, with what `_on_top` of them counts."""
    if rule.streamed:
        return 0
    if rule.cap is None:
        return None
    working = attached(patcher, _WORKING)
    return max(0, rule.cap - (_TEXT_WORKING if working is None else working))


def _trim(patcher: Any, limit: int) -> None:
    """Take weights off the device until what their layers take on top of them has room too.

    ComfyUI reserves some of that itself where it loads a model in part, and how much differs by
    version: the layers on their way, what a LoRA takes, lately (0.27) what a cast takes. So it is
    given the whole limit, and only what its reserve is short of is made up for here.
    """
    while patcher.loaded_size():
        over = patcher.loaded_size() + _on_top(patcher) - limit
        if over <= 0 or not patcher.partially_unload(patcher.offload_device, max(1, over // 2)):
            break


def _is_kept(layer: Any) -> bool:
    return bool(getattr(layer, "comfy_patched_weights", False))


def _all_kept(_: Any) -> bool:
    return True


def _none_kept(_: Any) -> bool:
    return False


def _on_top(patcher: Any, kept: Callable[[Any], bool] = _is_kept) -> int:
    """Bytes that layers take on the device beside the weights that are kept there: the one that
    computes, and those that are on their way.

    A layer that is not kept comes to the device once for each of ComfyUI's streams and once more.

    Args:
        kept: which layers' weights are kept on the device; by default those that are now.
    """
    copies = getattr(model_management, "NUM_STREAMS", 0) + 1
    most = 0
    for name, layer in patcher.model.named_modules():
        if hasattr(layer, "comfy_cast_weights"):
            stays = kept(layer)
            coming = 0 if stays else copies * model_management.module_size(layer)
            most = max(most, coming + _computing(patcher, f"{name}.weight", layer, baked=stays))
    return most


def _computing(patcher: Any, key: str, layer: Any, *, baked: bool) -> int:
    """Bytes that a layer's weight takes beside itself while the layer computes: made whole in the
    data type that is computed in, and what a LoRA adds to it, once as the product of its two
    matrices and once scaled.

    Args:
        key: of the weight among the patches.
        baked: whether ComfyUI has added patches to the weight already.
    """
    weight = layer._parameters.get("weight")
    if weight is None:
        return 0
    numbers = weight.numel()
    patched = key in patcher.patches
    if isinstance(layer, Int8Layer) and layer.quantized:  # in float32, then in half of that
        return numbers * (12 if patched else 6)
    compute = getattr(patcher.model, "manual_cast_dtype", None)
    item = (compute or weight.dtype).itemsize
    made_whole = hasattr(weight, "_qdata") or (compute is not None and weight.dtype != compute)
    return numbers * item * (made_whole + (2 if patched and not baked else 0))


def _keep_to_cap(patcher: Any, *_: Any) -> None:
    """Called after a patcher has loaded."""
    rule = rule_of(patcher)
    limit = None if rule is None else _weight_limit(patcher, rule)
    if limit is None:
        return
    if getattr(patcher, "is_dynamic", bool)():
        bar = patcher._vbar_get()
        if bar is None:
            return
        # What streams in lies outside of what the bar counts.
        whole = patcher.model_size() + _on_top(patcher, _all_kept) <= limit
        limit = max(0, limit - _on_top(patcher, _all_kept if whole else _none_kept))
        if hasattr(bar, "set_watermark"):
            bar.set_watermark(limit)
        else:  # before aimdo 0.4.10: freeing all leaves the floor as the highest page in use
            bar.set_watermark_limit(limit)
            bar.free_memory(1 << 60)
    elif not isinstance(patcher, _RuledPatcher):
        _trim(patcher, limit)


class SamplingPlace(NamedTuple):
    """How a diffusion model with a rule was held while it sampled."""

    made_room: bool
    """Whether others left the device for it."""
    bytes: int
    loaded_bytes: int
    """On the device; the rest was streamed in at each step."""


_places: ContextVar[list[SamplingPlace] | None] = ContextVar("sampling_places", default=None)


@contextmanager
def sampling_places() -> Iterator[list[SamplingPlace]]:
    """Collects how diffusion models are held that sample in the block, in their order."""
    places: list[SamplingPlace] = []
    token = _places.set(places)
    try:
        yield places
    finally:
        _places.reset(token)


def _make_room(patcher: Any, rule: MemoryRule, working: int) -> bool:
    """Put other models off the device where the rule asks for that; whether any left."""
    attach(patcher, _WORKING, working)
    device = patcher.load_device
    others = [
        (one, one.model)
        for one in list(model_management.current_loaded_models)
        if one.model is not None and one.device == device and not one.model.is_clone(patcher)
    ]
    leaving = _leaving([model for _, model in others], patcher, rule, working)
    if not leaving:
        return False
    gone = {id(one) for one, model in others if any(model is other for other in leaving)}
    keep = [one for one in model_management.current_loaded_models if id(one) not in gone]
    model_management.free_memory(1e30, device, keep_loaded=keep)
    return True


def _leaving(others: list[Any], patcher: Any, rule: MemoryRule, working: int) -> list[Any]:
    if rule.alone:
        return others
    leaving = []
    if rule.cap is not None:
        same = [one for one in others if _same_cap(rule, rule_of(one))]
        held = sum(one.loaded_size() for one in same) + patcher.model_size()
        if held + _on_top(patcher, _all_kept) + working > rule.cap:
            leaving = same
    if rule.makes_room and _is_short(patcher, working):
        leaving = [*leaving, *filter(_is_text_encoder_or_vae, others)]
    return leaving


def _same_cap(rule: MemoryRule, other: MemoryRule | None) -> bool:
    return other is not None and other.cap == rule.cap


def _is_short(patcher: Any, working: int) -> bool:
    """Whether ComfyUI would have to put others off the device for this one to sample: its
    load_models_gpu reckons so, but for what layers take on top of their weights."""
    missing = patcher.model_size() - patcher.loaded_size()
    computing = max(
        model_management.minimum_inference_memory(),
        working + model_management.extra_reserved_memory(),
    )
    needed = 1.1 * missing + computing + _on_top(patcher, _all_kept)
    return needed > model_management.get_free_memory(patcher.load_device)


def _is_text_encoder_or_vae(patcher: Any) -> bool:
    return bool(patcher.is_clip) or hasattr(patcher.model, "decode")


def _prepare_sampling(
    executor: Any, model: Any, noise_shape: Any, *arguments: Any, **options: Any
) -> Any:
    """Wrapped around the loading of a MODEL for sampling: its rule, for this very size."""
    rule = rule_of(model)
    if rule is None:
        return executor(model, noise_shape, *arguments, **options)
    # Positive and negative text are computed together, as ComfyUI's own estimate has it.
    shape = [noise_shape[0] * 2, *noise_shape[1:]]
    working = int(model.model.memory_required(shape))
    # All of it kept, or none, whichever takes less.
    least = working + min(
        model.model_size() + _on_top(model, _all_kept), _on_top(model, _none_kept)
    )
    if rule.cap is not None and least > rule.cap:
        raise SettingError(
            f"max_vram_gb is too low: computing this size and batch takes "
            f"{least / 1024**3:.2f} GB with the layers that compute at one time, and the "
            f"limit is {rule.cap / 1024**3:.2f}. Make the image or the batch smaller, or raise "
            "max_vram_gb in MemoryStrategy."
        )
    made_room = _make_room(model, rule, working)
    prepared = executor(model, noise_shape, *arguments, **options)
    places = _places.get()
    if places is not None and not getattr(model, "is_dynamic", bool)():
        size = int(model.model_size())
        in_part = getattr(model.model, "model_lowvram", False)
        loaded = int(model.loaded_size()) if in_part else size
        places.append(SamplingPlace(made_room, size, loaded))
    return prepared


class _RuledVAE:
    """Mixed into VAE: it makes room, and works in tiles, and image by image, under a cap."""

    patcher: Any

    def decode(self, samples_in: Any, *arguments: Any, **options: Any) -> Any:
        vae: Any = super()
        used = self.memory_used_decode  # type: ignore[attr-defined]
        working, tile = self._plan(used, samples_in.shape, 1)
        if working is None:
            return vae.decode(samples_in, *arguments, **options)
        if tile is not None:
            return vae.decode_tiled(samples_in, tile_x=tile, tile_y=tile, overlap=tile // 4)
        if len(samples_in) > 1:
            return torch.cat([vae.decode(one[None], *arguments, **options) for one in samples_in])
        return vae.decode(samples_in, *arguments, **options)

    def encode(self, pixel_samples: Any) -> Any:
        vae: Any = super()
        used = self.memory_used_encode  # type: ignore[attr-defined]
        shape = pixel_samples.movedim(-1, 1).shape
        cells = vae.spacial_compression_encode()
        working, tile = self._plan(used, shape, cells)
        if working is None:
            return vae.encode(pixel_samples)
        if tile is not None:
            side = tile * cells
            return vae.encode_tiled(pixel_samples, tile_x=side, tile_y=side, overlap=side // 4)
        if len(pixel_samples) > 1:
            return torch.cat([vae.encode(one[None]) for one in pixel_samples])
        return vae.encode(pixel_samples)

    def _plan(self, used: Any, shape: Any, cells: int) -> tuple[int | None, int | None]:
        """Bytes to compute in, None without a rule, and the side of a tile, None for the whole."""
        rule = rule_of(self.patcher)
        if rule is None:
            return None, None
        dtype = self.vae_dtype  # type: ignore[attr-defined]
        whole = int(used(shape, dtype))
        room = None if rule.cap is None else rule.cap - self.patcher.model_size()
        tile = None
        if room is not None and whole > room and not rule.on_processor:
            sizes = {
                side: int(used((*shape[:-2], side * cells, side * cells), dtype)) for side in _TILES
            }
            tile = next((side for side, size in sizes.items() if size <= room), _TILES[-1])
            whole = sizes[tile]
            log.info("Intelligent Generation: VAE in tiles of %s to stay under the limit", tile)
        _make_room(self.patcher, rule, whole)
        return whole, tile
