"""Layers with quantized weights, and the patchers of models that have them."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import comfy.lora
import comfy.model_management as model_management
import comfy.ops
import comfy.utils
import torch

from ..errors import HostError
from .formats import INT8, NVFP4, has_int8_format, mark
from .mixing import mix_in
from .serving import check_interrupt


class FileToQuantize(NamedTuple):
    """A file whose weights are made smaller layer by layer while it is loaded."""

    tensors: dict[str, torch.Tensor]
    metadata: Mapping[str, str]
    int8: Callable[[str, str, torch.Tensor], tuple[torch.Tensor, torch.Tensor] | None]
    """int8(part, name, weight): int8 codes [N, ...] and float32 scales [N, 1, ...]; None for
    a weight that stays as it is. Parts: diffusion_model, text_encoder."""
    release: Callable[[torch.Tensor], None]
    """Called with each weight that is in the model and no longer needed from the file."""
    int4: Callable[[str, str, torch.Tensor], Mapping[str, torch.Tensor] | None] | None = None
    """int4(part, name, weight): a Linear weight of the diffusion model as `pack_int4` gives it;
    None for one that stays as it is. None itself: these at int8, like all others."""


class _Quantizing:
    """What layers need while a model is loaded; emptied after it, so that no file stays open."""

    def __init__(self, part: str, files: Sequence[FileToQuantize]) -> None:
        self.part = part
        self.files = tuple(files)

    def int8(self, name: str, weight: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
        """As FileToQuantize.int8; None also for a weight that the file does not have, and once
        loading is over."""
        if weight is None or not self.files:
            return None
        check_interrupt()
        return self.files[0].int8(self.part, name, weight)

    def for_host(self, name: str, weight: Any) -> dict[str, torch.Tensor] | None:
        """What ComfyUI's own quantized Linear loads for a weight; None where that stays."""
        if weight is None or not self.files:
            return None
        int4 = self.files[0].int4
        if int4 is not None:
            check_interrupt()
            packed = int4(self.part, name, weight)
            return None if packed is None else {**packed, "comfy_quant": mark(NVFP4)}
        codes = self.int8(name, weight)
        if codes is None:
            return None
        return {"weight": codes[0], "weight_scale": codes[1], "comfy_quant": mark(INT8)}

    def release(self, weight: torch.Tensor | None) -> None:
        if weight is not None:
            for file in self.files:
                file.release(weight)


class Int8Layer:
    """Mixed into Linear and Conv2d: an int8 weight, dequantized at each use.

    Patches (LoRAs) are added to the dequantized weight and never baked into the codes: what
    ComfyUI keeps to undo a patch is the weight alone, without its scale.
    """

    loading: _Quantizing
    weight: torch.nn.Parameter
    weight_scale: torch.nn.Parameter
    weight_function: list[Any]
    bias: torch.nn.Parameter | None
    bias_function: list[Any]

    @property
    def quantized(self) -> bool:
        """False for a layer whose weight stayed as it is."""
        return hasattr(self, "weight_scale")

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        name = f"{prefix}weight"
        weight = state_dict.get(name)
        packed = self.loading.int8(name, weight)
        if packed is None:
            super()._load_from_state_dict(state_dict, prefix, *arguments)  # type: ignore[misc]
        else:
            codes, scale = packed
            self.weight = torch.nn.Parameter(codes, requires_grad=False)
            self.weight_scale = torch.nn.Parameter(scale, requires_grad=False)
            own = {name: codes, f"{prefix}weight_scale": scale}
            if f"{prefix}bias" in state_dict:
                own[f"{prefix}bias"] = state_dict[f"{prefix}bias"]
            module: Any = self
            torch.nn.Module._load_from_state_dict(module, own, prefix, *arguments)
        self.loading.release(weight)

    def convert_weight(self, weight: torch.Tensor, **_: Any) -> torch.Tensor:
        """The weight's values; asked for by nodes that merge models."""
        if not self.quantized:
            return weight
        return weight.to(torch.float32) * self.weight_scale.to(weight.device)

    def used_weights(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias in the data type and on the device of `like`, with their patches."""
        place = like.device
        codes = model_management.cast_to(self.weight, None, place)
        # In float32, as a scale may be smaller than what float16 holds exactly.
        weight = codes.to(torch.float32).mul_(
            model_management.cast_to(self.weight_scale, torch.float32, place)
        )
        patched = False
        for function in self.weight_function:
            if not _adds_patches(function):
                weight = function(weight)
            elif not patched:  # the host may add its own beside ours for the same patches
                patched = True
                weight = comfy.lora.calculate_weight(
                    function.patches[function.key],
                    weight,
                    function.key,
                    intermediate_dtype=torch.float32,
                )
        bias = self.bias
        if bias is not None:
            bias = model_management.cast_to(bias, like.dtype, place, copy=True)
            for function in self.bias_function:
                bias = function(bias)
        return weight.to(like.dtype), bias


class _Int8Patch(NamedTuple):
    """Stands in a layer's weight_function for the patches of one weight."""

    key: str
    patches: dict[str, list[Any]]


def _adds_patches(function: Any) -> bool:
    return hasattr(function, "patches") and hasattr(function, "key")


class _Int8Linear(Int8Layer, comfy.ops.manual_cast.Linear):
    def forward(self, input: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        if not self.quantized:
            return super().forward(input, *arguments, **options)
        comfy.ops.run_every_op()
        return torch.nn.functional.linear(input, *self.used_weights(input))


class _Int8Conv2d(Int8Layer, comfy.ops.manual_cast.Conv2d):
    def forward(self, input: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        if not self.quantized:
            return super().forward(input, *arguments, **options)
        comfy.ops.run_every_op()
        return self._conv_forward(input, *self.used_weights(input))


@contextmanager
def quantizing_operations(*files: FileToQuantize) -> Iterator[tuple[type, type]]:
    """ComfyUI operations for a diffusion model and for text encoders, which quantize each weight
    when it is loaded."""
    loading = [_Quantizing(part, files) for part in ("diffusion_model", "text_encoder")]
    sizes: Counter[torch.dtype] = Counter()
    for file in files:
        for tensor in file.tensors.values():
            sizes[tensor.dtype] += tensor.nbytes
    stored = max(sizes, key=sizes.__getitem__)
    try:
        # Text encoders run once a prompt, and the host's layers have no weight where a file has
        # none, which CLIP-L's projection relies on.
        hosts = _host_operations(stored, any(file.int4 is not None for file in files))
        yield _operations(loading[0], hosts), _operations(loading[1], None)
    finally:
        for one in loading:
            one.files = ()


def _operations(loading: _Quantizing, hosts: Any) -> type:
    if hosts is None:
        base: Any = comfy.ops.manual_cast
        linear = type("Linear", (_Int8Linear,), {"loading": loading})
    else:
        base = hosts
        linear = type("Linear", (_HostQuantized, hosts.Linear), {"loading": loading})
    convolution = type("Conv2d", (_Int8Conv2d,), {"loading": loading})
    return type("QuantizingOperations", (base,), {"Linear": linear, "Conv2d": convolution})


class _HostQuantized:
    """Mixed into the host's own quantized Linear: its weight is quantized when it is loaded."""

    loading: _Quantizing

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        name = f"{prefix}weight"
        weight = state_dict.get(name)
        packed = self.loading.for_host(name, weight)
        if packed is not None:
            state_dict.update({f"{prefix}{key}": tensor for key, tensor in packed.items()})
        elif weight is not None:  # the host keeps the tensor itself, and it must not be the file's
            state_dict[name] = weight.clone()
        super()._load_from_state_dict(state_dict, prefix, *arguments)  # type: ignore[misc]
        self.loading.release(weight)


def _host_operations(stored: torch.dtype, int4: bool) -> Any:
    """ComfyUI's own quantized layers; None where its format is not what is wanted."""
    if not int4 and not has_int8_format():
        return None
    compute = stored if stored in (torch.float16, torch.bfloat16) else torch.float32
    make = comfy.ops.mixed_precision_ops
    device = model_management.get_torch_device()
    native = getattr(model_management, "supports_nvfp4_compute", lambda _: False)
    if not int4 or native(device):
        return make({}, compute)
    # As ComfyUI does for files in this format where the device cannot multiply it: the weight is
    # made whole at each use.
    if "disabled" in inspect.signature(make).parameters:
        return make({}, compute, disabled={NVFP4})
    return make({}, compute, full_precision_mm=True)


class _OwnPatcher:
    """Mixed into a model's patcher class: patches of int8 weights are added at each use."""

    model: torch.nn.Module
    patches: dict[str, list[Any]]

    def patch_weight_to_device(self, key: str, *arguments: Any, **options: Any) -> Any:
        layer = _int8_layer(self.model, key)
        if layer is None or key not in self.patches:
            return super().patch_weight_to_device(key, *arguments, **options)  # type: ignore[misc]
        others = [one for one in layer.weight_function if not _adds_patches(one)]
        layer.weight_function = [_Int8Patch(key, self.patches), *others]
        return layer.weight

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> None:
        super().unpatch_model(device_to, unpatch_weights)  # type: ignore[misc]
        if unpatch_weights:
            for layer in self.model.modules():
                if isinstance(layer, Int8Layer):
                    layer.weight_function = []

    def patch_hook_weight_to_device(
        self, hooks: Any, combined_patches: dict[Any, Any], key: str, *arguments: Any
    ) -> None:
        if key in combined_patches and _int8_layer(self.model, key) is not None:
            raise HostError(
                "Hooks cannot change int8 weights. Set weight_dtype to another one, or apply the "
                "LoRA without hooks."
            )
        super().patch_hook_weight_to_device(hooks, combined_patches, key, *arguments)  # type: ignore[misc]

    def partially_load(
        self, device_to: Any, extra_memory: float = 0, force_patch_weights: bool = False
    ) -> Any:
        if force_patch_weights:  # what older hosts ask for before they save a model
            raise _not_saved()
        return super().partially_load(device_to, extra_memory)  # type: ignore[misc]

    def state_dict_for_saving(self, *_: Any, **__: Any) -> Any:
        raise _not_saved()


def _not_saved() -> HostError:
    return HostError(
        "A model loaded at int8 or int4 cannot be saved: its full weights are no longer there. "
        "Load it with another weight_dtype to save it."
    )


def _int8_layer(model: torch.nn.Module, key: str) -> Int8Layer | None:
    name, _, parameter = key.rpartition(".")
    if parameter != "weight" or not name:
        return None
    layer = comfy.utils.get_attr(model, name)
    return layer if isinstance(layer, Int8Layer) and layer.quantized else None


def patch_at_use(patcher: Any) -> None:
    """Give the patcher a class that adds patches of int8 weights at each use."""
    mix_in(_OwnPatcher, patcher, "Quantized")
