"""Loaded models that are kept, and lent to who needs them."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comfy.model_management as model_management
import torch

from .loading import LoadedModel
from .memory import give_back_memory


class KeptModel:
    """A loaded model as its file has it, lent out as clones that share its weights.

    Nodes may do to a clone what they do to any MODEL: ComfyUI keeps patches with the clone, and
    puts the weights back before another clone is used.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded: LoadedModel | None = loaded
        self._lent: list[weakref.ref[Any]] = []
        self._modules = [weakref.ref(patcher.model) for patcher in _patchers(loaded)]

    @property
    def bytes(self) -> int:
        """RAM that the weights take when they are not on a device."""
        return 0 if self._loaded is None else sum(map(_ram_bytes, _patchers(self._loaded)))

    @property
    def in_use(self) -> bool:
        """Whether a clone that was lent, or a clone of it, is alive."""
        self._lent = [one for one in self._lent if one() is not None]
        return bool(self._lent)

    def lend(self) -> LoadedModel:
        """MODEL, CLIP and VAE for one more user."""
        assert self._loaded is not None, "a model that was let go is not lent"
        model, clip, vae = self._loaded
        if model is not None:
            model = model.clone()
        if clip is not None:
            clip = clip.clone()
        if vae is not None:
            vae = copy.copy(vae)
            vae.patcher = vae.patcher.clone()
        lent = LoadedModel(model, clip, vae)
        # A clone holds the patcher that it was made from, so these live as long as any of theirs.
        self._lent += map(weakref.ref, _patchers(lent))
        return lent

    def let_go(self) -> None:
        """Forget the model. While somebody still holds it, it goes from the device to RAM alone."""
        self._loaded = None
        if self.in_use:
            _offload([module() for module in self._modules])
            return
        if any(module() is not None for module in self._modules):
            gc.collect()  # some models refer to themselves
        give_back_memory()


def files_of(loaded: LoadedModel) -> list[Path]:
    """The files that ComfyUI's own loaders loaded a model from; empty where one cannot be told."""
    files: list[Path] = []
    for patcher in _patchers(loaded):
        arguments = (getattr(patcher, "cached_patcher_init", None) or (None, ()))[1]
        texts = [one for many in arguments for one in (many if _is_list(many) else [many])]
        own = [Path(text) for text in texts if isinstance(text, str) and Path(text).is_file()]
        if not own:
            return []
        files += own
    return list(dict.fromkeys(files))


def _offload(modules: Sequence[Any]) -> None:
    loaded = [one for one in model_management.current_loaded_models if one.model is not None]
    others = [one for one in loaded if one.model.model not in modules]
    for device in {one.device for one in loaded if one.model.model in modules}:
        if device != torch.device("cpu"):
            model_management.free_memory(1e30, device, keep_loaded=others)


def _patchers(loaded: LoadedModel) -> list[Any]:
    model, clip, vae = loaded
    patchers = [model, getattr(clip, "patcher", None), getattr(vae, "patcher", None)]
    return [patcher for patcher in patchers if patcher is not None]


def _ram_bytes(patcher: Any) -> int:
    # Where ComfyUI streams weights from the file, only some of them are in RAM.
    if getattr(patcher, "is_dynamic", bool)() and hasattr(patcher, "loaded_ram_size"):
        return int(patcher.loaded_ram_size())
    return int(patcher.model_size())


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))
