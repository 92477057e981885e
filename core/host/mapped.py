"""Weights that stay in their file, and the patchers of models that have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import comfy.ops
import torch

from .mixing import mix_in


class MappedFile(NamedTuple):
    """A file whose weights are used from where it is mapped, without being read into RAM."""

    tensors: dict[str, torch.Tensor]
    metadata: Mapping[str, str]
    dtypes: Mapping[str, str]
    """Data type of diffusion_model and text_encoder, as torch names it."""
    release: Callable[[torch.Tensor], None]
    """Called with each weight when its model leaves the device, to give the memory back."""


class _MappedLayer:
    """Mixed into ComfyUI's layers: parameters that the file has as they are needed stay in it."""

    mapped: dict[str, torch.Tensor]
    release: Callable[[torch.Tensor], None]

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool,
        missing: list[str], *arguments: Any,
    ) -> None:  # fmt: skip
        module: Any = self
        self.mapped = {}
        for name, parameter in module._parameters.items():
            stored = state_dict.get(f"{prefix}{name}")
            if parameter is None or stored is None:
                continue
            if (stored.shape, stored.dtype) == (parameter.shape, parameter.dtype):
                self.mapped[name] = stored
        keys = {f"{prefix}{name}" for name in self.mapped}
        rest = {key: value for key, value in state_dict.items() if key not in keys}
        super()._load_from_state_dict(rest, prefix, metadata, strict, missing, *arguments)  # type: ignore[misc]
        missing[:] = [key for key in missing if key not in keys]
        self.use_file()

    def use_file(self) -> None:
        """Let the parameters be those in the file again."""
        for name, stored in self.mapped.items():
            module: Any = self
            module._parameters[name] = torch.nn.Parameter(stored, requires_grad=False)


_MAPPED_KINDS = ("Linear", "Conv1d", "Conv2d", "Conv3d", "Embedding")
"""Layers that hold nearly all the bytes of a model."""


def mapped_options(file: MappedFile, part: str) -> dict[str, Any]:
    """ComfyUI's options for loading a part of a file so that its weights stay in it."""
    base: Any = comfy.ops.manual_cast
    layers = {
        name: type(
            name, (_MappedLayer, getattr(base, name)), {"release": staticmethod(file.release)}
        )
        for name in _MAPPED_KINDS
    }
    operations = type("MappedOperations", (base,), layers)
    options: dict[str, Any] = {"custom_operations": operations}
    if part in file.dtypes:
        options["dtype"] = getattr(torch, file.dtypes[part])
    return options


class _MappedPatcher:
    """Mixed into a patcher's class: what leaves the device is in the file, and needs no RAM."""

    model: torch.nn.Module

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> None:
        if unpatch_weights:
            self._use_file()
        super().unpatch_model(device_to, unpatch_weights)  # type: ignore[misc]

    def partially_unload(self, *arguments: Any, **options: Any) -> Any:
        freed = super().partially_unload(*arguments, **options)  # type: ignore[misc]
        self._use_file(lambda layer: not getattr(layer, "comfy_patched_weights", False))
        return freed

    def detach(self, unpatch_all: bool = True) -> Any:
        out = super().detach(unpatch_all)  # type: ignore[misc]
        if unpatch_all:
            for layer in self._layers():
                for stored in layer.mapped.values():
                    layer.release(stored)
        return out

    def pin_weight_to_device(self, key: str) -> None:
        """Nothing: pinned memory is RAM."""

    def _layers(self) -> Iterator[_MappedLayer]:
        return (layer for layer in self.model.modules() if isinstance(layer, _MappedLayer))

    def _use_file(self, which: Callable[[Any], bool] = lambda _: True) -> None:
        for layer in self._layers():
            if which(layer):
                layer.use_file()


def is_mapped(patcher: Any) -> bool:
    """Whether weights stay in their file: loaded so, or streamed from it by ComfyUI itself."""
    return isinstance(patcher, _MappedPatcher) or bool(getattr(patcher, "is_dynamic", bool)())


def keep_in_file(patcher: Any) -> None:
    """Give the patcher a class that knows that its weights are in their file."""
    mix_in(_MappedPatcher, patcher, "Mapped")
