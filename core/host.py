"""The only module that imports ComfyUI's internals.

It probes for capabilities and never compares versions. Where ComfyUI has a stock node for a
step (LoRA, text, latent, sampling, decoding), that node's own code is called, so that an image
made here is bit-identical to one made by the stock graph, in whatever version runs.
Imported only while ComfyUI runs, never at its start.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import gc
import inspect
import json
import logging
import os
import platform
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import comfy.ldm.modules.attention as attention
import comfy.lora
import comfy.model_management as model_management
import comfy.ops
import comfy.patcher_extension
import comfy.quant_ops
import comfy.samplers
import comfy.sd
import comfy.utils
import folder_paths
import node_helpers
import numpy as np
import psutil
import torch
from comfy.cli_args import args
from safetensors import SafetensorError

from .errors import HostError, ModelFileError, SaveError, SettingError, first_line

log = logging.getLogger(__name__)

stock_nodes: Any = import_module("nodes")
"""ComfyUI's nodes.py. Not an import statement: type checkers would take our own `nodes`."""

USER_DIRECTORY = "intelligent_generation"
"""Name of the protected user folder; ComfyUI prefixes it with `__` and never serves it."""

_PROGRESS_STEPS = 1000


# --------------------------------------------------------------------------- folders and files


def model_folders(folder: str) -> list[Path]:
    """ComfyUI's directories for a folder key such as `loras`, the default one first.

    Raises:
        HostError: ComfyUI has no such folder key.
    """
    try:
        return [Path(path) for path in folder_paths.get_folder_paths(folder)]
    except KeyError as error:
        raise HostError(
            f"This ComfyUI has no model folder called {folder!r}. Update ComfyUI."
        ) from error


def model_names(folder: str) -> list[str]:
    """Names of the safetensors files in a model folder, with forward slashes on every system."""
    names = (name.replace(os.sep, "/") for name in folder_paths.get_filename_list(folder))
    return [name for name in names if name.lower().endswith((".safetensors", ".sft"))]


def file_stamp(folder: str, name: str) -> tuple[int, int]:
    """Size in bytes and modification time in ns of a model file: changes when the file does.

    Raises:
        ModelFileError: the file is not there.
    """
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        raise ModelFileError(f"{name} is no longer in the {folder} folder.")
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns


def user_directory() -> Path:
    """The pack's protected folder, made if missing: `user/__intelligent_generation`."""
    path = Path(folder_paths.get_system_user_directory(USER_DIRECTORY))
    path.mkdir(parents=True, exist_ok=True)
    return path


class SavePlace(NamedTuple):
    """Where ComfyUI wants the next image: `directory/filename_counter_.png`."""

    directory: Path
    filename: str
    counter: int
    subfolder: str


def save_place(prefix: str, kind: str, width: int, height: int) -> SavePlace:
    """The next free place for an image, by ComfyUI's own naming (`%date%`-like parts included).

    Args:
        prefix: `filename_prefix` as SaveImage takes it; may hold a subfolder.
        kind: `output` or `temp`.

    Raises:
        SaveError: the prefix leaves the folder, or is not a usable name.
    """
    root = (
        folder_paths.get_output_directory()
        if kind == "output"
        else folder_paths.get_temp_directory()
    )
    Path(root).mkdir(parents=True, exist_ok=True)
    try:
        directory, filename, counter, subfolder, _ = folder_paths.get_save_image_path(
            prefix, str(Path(root).absolute()), width, height
        )
    except Exception as error:
        # ComfyUI raises a bare Exception with a multi-line report; the reason is always the name.
        raise SaveError(
            f"filename_prefix {prefix!r} cannot be used inside the {kind} folder {root}: it must "
            "be a relative name without '..'. Change filename_prefix."
        ) from error
    return SavePlace(Path(directory), filename, counter, subfolder)


def metadata_enabled() -> bool:
    """False when ComfyUI was started with --disable-metadata."""
    return not args.disable_metadata


# --------------------------------------------------------------------------- loading


class LoadedModel(NamedTuple):
    """What a load gives. A part is None when the file does not hold it."""

    model: Any
    clip: Any
    vae: Any


class Int8File(NamedTuple):
    """A file to load at int8, or in part at 4 bits, layer by layer."""

    tensors: dict[str, torch.Tensor]
    metadata: Mapping[str, str]
    quantize: Callable[[str, str, torch.Tensor], tuple[torch.Tensor, torch.Tensor] | None]
    """quantize(part, name, weight): int8 codes [N, ...] and float32 scales [N, 1, ...]; None for
    a weight that stays as it is. Parts: diffusion_model, text_encoder."""
    release: Callable[[torch.Tensor], None]
    """Called with each weight that is in the model and no longer needed from the file."""
    four_bits: Callable[[str, str, torch.Tensor], Mapping[str, torch.Tensor] | None] | None = None
    """four_bits(part, name, weight): a Linear weight of the diffusion model as `pack_four_bits`
    gives it; None for one that stays as it is. None itself: these at int8, like all others."""


class MappedFile(NamedTuple):
    """A file whose weights are used from where it is mapped, without being read into RAM."""

    tensors: dict[str, torch.Tensor]
    metadata: Mapping[str, str]
    dtypes: Mapping[str, str]
    """Data type of diffusion_model and text_encoder, as torch names it."""
    release: Callable[[torch.Tensor], None]
    """Called with each weight when its model leaves the device, to give the memory back."""


def weight_dtypes() -> tuple[str, ...]:
    """Data types that models can be loaded in here: names of torch's, int8, and int4."""
    half = ["float16", "bfloat16"]
    # PyTorch has no float8 on Apple's GPU.
    fp8 = [] if model_management.get_torch_device().type == "mps" else ["float8_e4m3fn"]
    four = [] if four_bit_format() is None else ["int4"]
    return (*half, *(name for name in fp8 if hasattr(torch, name)), "int8", *four)


def quantized_formats(*, in_tensors: bool = True) -> frozenset[str]:
    """Formats of quantized weights that this ComfyUI loads, as its `comfy_quant` marks name them,
    e.g. `float8_e4m3fn`, `nvfp4`.

    Args:
        in_tensors: of files that have the marks as tensors, which it reads since 0.4; before,
            only those in the header.
    """
    if in_tensors and not hasattr(comfy.utils, "convert_old_quants"):
        return frozenset()
    return frozenset(getattr(comfy.quant_ops, "QUANT_ALGOS", {}))


_NVFP4 = "nvfp4"


@functools.cache
def four_bit_format() -> str | None:
    """The format that full weights can be made 4 bits in here; None where there is none.

    ComfyUI has nvfp4 since 0.8: two E2M1 numbers a byte, an E4M3 scale for each 16, and one for
    all. Whether its library for that works is tried out on a small weight.
    """
    if _NVFP4 not in quantized_formats() or model_management.get_torch_device().type == "mps":
        return None  # its scales are float8, which PyTorch has not on Apple's GPU
    try:
        pack_four_bits(torch.eye(32))
    except Exception:  # whatever a library raises that is not there, or for another processor
        log.info("Intelligent Generation: ComfyUI knows nvfp4, but cannot make it", exc_info=True)
        return None
    return _NVFP4


_FOUR_BIT_ROWS = 128
"""Scales of nvfp4 are stored in blocks of so many rows (cuBLAS's layout of block scales), so that
pieces of whole blocks are packed as they are in one."""
_FOUR_BIT_CHUNK = 4_000_000


def pack_four_bits(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """A floating-point weight [N, K] as nvfp4, by ComfyUI's own code, piece by piece.

    Returns:
        `weight` uint8 [N, K / 2], sides rounded up to 16 before; `weight_scale` float8_e4m3fn, one
        for each 16 numbers of a row; `weight_scale_2` float32 [].

    Raises:
        ModelFileError: the weight holds NaN or infinity.
    """
    quant: Any = comfy.quant_ops
    algorithm = quant.QUANT_ALGOS[_NVFP4]
    layout = quant.get_layout_class(algorithm["comfy_tensor_layout"])
    rows = weight.shape[0]
    step = max(1, _FOUR_BIT_CHUNK // (weight.shape[1] * _FOUR_BIT_ROWS)) * _FOUR_BIT_ROWS
    pieces = [weight[start : start + step] for start in range(0, rows, step)]
    largest = torch.stack([piece.abs().amax().to("cpu", torch.float32) for piece in pieces]).amax()
    if not torch.isfinite(largest):
        raise ModelFileError(
            "A weight holds NaN or infinity, so the file is damaged. Download it again."
        )
    # The greatest numbers of E4M3 and E2M1. A weight of zeros has no scale of its own.
    scale = largest / (448 * 6) if largest > 1e-30 else torch.ones(())
    packed = [layout.quantize(piece.to("cpu", torch.float32), scale=scale) for piece in pieces]
    return {
        "weight": torch.cat([codes for codes, _ in packed]),
        "weight_scale": torch.cat([made.block_scale for _, made in packed]),
        "weight_scale_2": scale,
    }


def load_checkpoint(
    path: Path,
    *,
    dtype: str | None = None,
    int8: Int8File | None = None,
    mapped: MappedFile | None = None,
) -> LoadedModel:
    """Load a checkpoint as CheckpointLoaderSimple does.

    Args:
        dtype: of `weight_dtypes`, for the diffusion model; None as ComfyUI chooses.
        int8: the same file; then diffusion model and text encoders are loaded at int8.
        mapped: the same file; then their weights stay in it.

    Raises:
        ModelFileError: ComfyUI does not recognise the model in it.
    """
    options = {} if dtype is None else {"dtype": getattr(torch, dtype)}
    common = {
        "output_vae": True,
        "output_clip": True,
        "embedding_directory": folder_paths.get_folder_paths("embeddings"),
    }
    try:
        if mapped is not None:
            load = comfy.sd.load_state_dict_guess_config
            out = load(
                dict(mapped.tensors),
                model_options=_mapped_options(mapped, "diffusion_model"),
                te_model_options=_mapped_options(mapped, "text_encoder"),
                metadata=dict(mapped.metadata),
                **_not_dynamic(load),
                **common,
            )
        elif int8 is None:
            load = comfy.sd.load_checkpoint_guess_config
            out = load(str(path), model_options=options, **common)
        else:
            with _int8_operations(int8) as (unet_ops, text_ops):
                out = comfy.sd.load_state_dict_guess_config(
                    dict(int8.tensors),
                    model_options={"custom_operations": unet_ops},
                    te_model_options={"custom_operations": text_ops},
                    metadata=dict(int8.metadata),
                    **_not_dynamic(comfy.sd.load_state_dict_guess_config),
                    **common,
                )
    except (RuntimeError, SafetensorError) as error:
        _raise_out_of_memory(error)
        raise _not_loaded("checkpoint", path, error) from error
    model, clip, vae = (None, None, None) if out is None else out[:3]
    if model is None:
        raise ModelFileError(
            f"{path.name} holds no diffusion model. Choose a checkpoint, or use this file as a "
            "text encoder or VAE."
        )
    for patcher in (model, None if clip is None else clip.patcher):
        if patcher is not None and int8 is not None:
            _own(patcher)
        elif patcher is not None and mapped is not None:
            _map(patcher)
    return LoadedModel(model, clip, vae if _vae_is_usable(vae) else None)


def load_diffusion_model(
    path: Path,
    *,
    dtype: str | None = None,
    int8: Int8File | None = None,
    mapped: MappedFile | None = None,
) -> Any:
    """Load a diffusion model alone, as UNETLoader does; arguments as `load_checkpoint`'s.

    Raises:
        ModelFileError: ComfyUI does not recognise the model in it.
    """
    options = {} if dtype is None else {"dtype": getattr(torch, dtype)}
    try:
        load = comfy.sd.load_diffusion_model_state_dict
        takes_metadata = "metadata" in inspect.signature(load).parameters
        if mapped is not None:
            model = load(
                dict(mapped.tensors),
                model_options=_mapped_options(mapped, "diffusion_model"),
                **({"metadata": dict(mapped.metadata)} if takes_metadata else {}),
                **_not_dynamic(load),
            )
        elif int8 is None:
            model = comfy.sd.load_diffusion_model(str(path), model_options=options)
        else:
            metadata = {"metadata": dict(int8.metadata)} if takes_metadata else {}
            with _int8_operations(int8) as (operations, _):
                model = load(
                    dict(int8.tensors),
                    model_options={"custom_operations": operations},
                    **metadata,
                    **_not_dynamic(load),
                )
    except (RuntimeError, SafetensorError) as error:
        _raise_out_of_memory(error)
        raise _not_loaded("diffusion model", path, error) from error
    if model is None:
        raise ModelFileError(f"ComfyUI does not recognise the diffusion model in {path.name}.")
    if mapped is not None:
        return _map(model)
    return model if int8 is None else _own(model)


def load_text_encoders(
    paths: Sequence[Path],
    clip_type: str,
    *,
    int8: Sequence[Int8File] = (),
    mapped: Sequence[MappedFile] = (),
) -> Any:
    """Load one to three text encoders, as ComfyUI's CLIP loaders do.

    Args:
        clip_type: name of a `comfy.sd.CLIPType` member, any case, e.g. `sd3`, `flux`.
        int8: the same files, where they are to be loaded at int8.
        mapped: the same files, where their weights are to stay in them.

    Raises:
        ModelFileError: a file is not a text encoder ComfyUI knows.
        HostError: this ComfyUI does not know the type.
    """
    kind = getattr(comfy.sd.CLIPType, clip_type.upper(), None)
    if kind is None:
        raise HostError(
            f"This ComfyUI does not know text encoders of type {clip_type!r}. Update ComfyUI."
        )
    for number, path in enumerate(paths):
        lazy = [*int8, *mapped]
        keys = lazy[number].tensors if lazy else comfy.utils.load_torch_file(str(path))
        # ComfyUI takes any file and fills what is missing with nothing. OpenCLIP's names it turns
        # into its own only later.
        foreign = not any("embed" in key or "resblocks" in key for key in keys)
        if foreign and comfy.sd.detect_te_model(keys) is None:
            raise ModelFileError(
                f"{path.name} is not a text encoder that ComfyUI knows. Choose another file."
            )
    common = {
        "embedding_directory": folder_paths.get_folder_paths("embeddings"),
        "clip_type": kind,
    }
    try:
        load = comfy.sd.load_text_encoder_state_dicts
        if mapped:
            clip = load(
                [dict(file.tensors) for file in mapped],
                model_options=_mapped_options(mapped[0], "text_encoder"),
                **_not_dynamic(load),
                **common,
            )
            _map(clip.patcher)
            return clip
        if not int8:
            return comfy.sd.load_clip(ckpt_paths=[str(path) for path in paths], **common)
        with _int8_operations(*int8) as (_, operations):
            clip = load(
                [dict(file.tensors) for file in int8],
                model_options={"custom_operations": operations},
                **_not_dynamic(load),
                **common,
            )
        _own(clip.patcher)
        return clip
    except (RuntimeError, SafetensorError) as error:
        _raise_out_of_memory(error)
        names = ", ".join(path.name for path in paths)
        raise ModelFileError(
            f"Text encoder {names} could not be loaded for type {clip_type!r}: "
            f"{first_line(error)}. Check that the files belong to this model."
        ) from error


def load_vae(path: Path) -> Any:
    """Load a VAE file, as VAELoader does. Raises ModelFileError."""
    weights, metadata = comfy.utils.load_torch_file(str(path), return_metadata=True)
    vae = comfy.sd.VAE(sd=weights, metadata=metadata)
    if not _vae_is_usable(vae):
        raise ModelFileError(f"{path.name} is not a VAE that ComfyUI can use. Choose another VAE.")
    # Newer hosts copy models to another device by loading them again from this description.
    if hasattr(comfy.sd, "load_vae_patcher") and getattr(vae, "patcher", None) is not None:
        vae.patcher.cached_patcher_init = (
            comfy.sd.load_vae_patcher,
            (str(path), metadata, None),
        )
    return vae


def _vae_is_usable(vae: Any) -> bool:
    return vae is not None and getattr(vae, "first_stage_model", None) is not None


def _not_loaded(what: str, path: Path, error: Exception) -> ModelFileError:
    return ModelFileError(
        f"ComfyUI could not load the {what} {path.name}: {first_line(error)}. "
        "Check that the file is complete and that this ComfyUI supports the model."
    )


def _raise_out_of_memory(error: Exception) -> None:
    """Let running out of memory be seen as what it is."""
    if is_out_of_memory(error):
        raise error


# --------------------------------------------------------------------------- memory


_SHORT = (
    "can't allocate memory",  # torch's allocator for processors, on Linux and macOS
    "not enough memory",  # the same on Windows
    "out of memory",  # CUDA, ROCm, XPU, MPS
    "bad_alloc",  # C++
    "cannot allocate memory",  # the system's ENOMEM, as of mapping a file
    "could not create a memory",  # oneDNN
    "could not create a primitive",  # oneDNN too, for its scratch memory
)
"""What errors of no type of their own say when memory is short."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is that memory was short, of a device or of RAM."""
    known = getattr(model_management, "is_oom", None)
    while error is not None:
        if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
            return True
        if known is not None and known(error):
            return True
        if isinstance(error, (RuntimeError, OSError)):
            text = str(error).lower()
            if any(short in text for short in _SHORT):
                return True
        error = error.__cause__
    return False


def unload_others() -> int:
    """Put all models back into RAM; the bytes of device memory that this gave back."""
    before = evictable_vram()
    model_management.unload_all_models()
    gc.collect()
    _give_back_memory()
    on_cpu = model_management.get_torch_device().type == "cpu"
    return 0 if on_cpu else before - evictable_vram()


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
        _give_back_memory()


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


def _give_back_memory() -> None:
    model_management.soft_empty_cache()
    if sys.platform == "linux":
        # glibc keeps what was freed in small pieces; other C libraries have no such function.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


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


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


class Residency(NamedTuple):
    """A model that ComfyUI has loaded for computing."""

    name: str
    """Its class in ComfyUI, e.g. `SDXL`."""
    device: str
    bytes: int
    loaded_bytes: int
    """On the device; the rest is streamed or offloaded."""
    in_use: bool
    """Whether the last thing that was computed used it."""


def residency() -> list[Residency]:
    """The models on ComfyUI's list of loaded ones, the latest first. From any thread."""
    rows = []
    for one in list(model_management.current_loaded_models):
        patcher = one.model
        if patcher is not None:
            rows.append(
                Residency(
                    type(patcher.model).__name__,
                    str(patcher.load_device),
                    int(patcher.model_size()),
                    int(patcher.loaded_size()),
                    bool(one.currently_used),
                )
            )
    return rows


def when_idle(act: Callable[[], None]) -> bool:
    """Act now if no prompt runs or waits, holding back any that comes; whether that was so.

    For other threads than the one that runs prompts: models may be freed only while that one
    uses none.
    """
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    queue = getattr(server, "prompt_queue", None)
    if queue is None:
        act()
        return True
    with queue.mutex:
        busy = queue.currently_running or queue.queue or queue.flags
        # Between a prompt and the next the worker tidies up, before it waits again.
        waiting = getattr(queue.not_empty, "_waiters", True)
        if busy or not waiting:
            return False
        act()
        return True


def on_free_memory(act: Callable[[], None]) -> None:
    """Have `act` called whenever ComfyUI is told over HTTP to free its memory, caches and all."""
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is None:
        return

    async def answered(request: Any, response: Any) -> None:
        if request.method != "POST" or request.path not in ("/free", "/api/free"):
            return
        body = await request.json() if response.status == 200 else {}
        if body.get("free_memory"):
            act()

    server.app.on_response_prepare.append(answered)


# --------------------------------------------------------------------------- int8


class _Int8Loading:
    """What layers need while a model is loaded; emptied after it, so that no file stays open."""

    def __init__(self, part: str, files: Sequence[Int8File]) -> None:
        self.part = part
        self.files = tuple(files)

    def quantize(self, name: str, weight: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
        """As Int8File.quantize; None also for a weight that the file does not have, and once
        loading is over."""
        if weight is None or not self.files:
            return None
        check_interrupt()
        return self.files[0].quantize(self.part, name, weight)

    def for_host(self, name: str, weight: Any) -> dict[str, torch.Tensor] | None:
        """What ComfyUI's own quantized Linear loads for a weight; None where that stays."""
        if weight is None or not self.files:
            return None
        four = self.files[0].four_bits
        if four is not None:
            check_interrupt()
            packed = four(self.part, name, weight)
            return None if packed is None else {**packed, "comfy_quant": _mark(_NVFP4)}
        codes = self.quantize(name, weight)
        if codes is None:
            return None
        return {"weight": codes[0], "weight_scale": codes[1], "comfy_quant": _mark(_INT8)}

    def release(self, weight: torch.Tensor | None) -> None:
        if weight is not None:
            for file in self.files:
                file.release(weight)


class _Int8Layer:
    """Mixed into Linear and Conv2d: an int8 weight, dequantized at each use.

    Patches (LoRAs) are added to the dequantized weight and never baked into the codes: what
    ComfyUI keeps to undo a patch is the weight alone, without its scale.
    """

    loading: _Int8Loading
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
        packed = self.loading.quantize(name, weight)
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


class _Int8Linear(_Int8Layer, comfy.ops.manual_cast.Linear):
    def forward(self, input: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        if not self.quantized:
            return super().forward(input, *arguments, **options)
        comfy.ops.run_every_op()
        return torch.nn.functional.linear(input, *self.used_weights(input))


class _Int8Conv2d(_Int8Layer, comfy.ops.manual_cast.Conv2d):
    def forward(self, input: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        if not self.quantized:
            return super().forward(input, *arguments, **options)
        comfy.ops.run_every_op()
        return self._conv_forward(input, *self.used_weights(input))


@contextmanager
def _int8_operations(*files: Int8File) -> Iterator[tuple[type, type]]:
    """ComfyUI operations for a diffusion model and for text encoders, which quantize each weight
    when it is loaded."""
    loading = [_Int8Loading(part, files) for part in ("diffusion_model", "text_encoder")]
    sizes: Counter[torch.dtype] = Counter()
    for file in files:
        for tensor in file.tensors.values():
            sizes[tensor.dtype] += tensor.nbytes
    stored = max(sizes, key=sizes.__getitem__)
    try:
        # Text encoders run once a prompt, and the host's layers have no weight where a file has
        # none, which CLIP-L's projection relies on.
        four_bits = any(file.four_bits is not None for file in files)
        hosts = _host_operations(stored, four_bits)
        yield _int8_classes(loading[0], hosts), _int8_classes(loading[1], None)
    finally:
        for one in loading:
            one.files = ()


def _int8_classes(loading: _Int8Loading, hosts: Any) -> type:
    if hosts is None:
        base: Any = comfy.ops.manual_cast
        linear = type("Linear", (_Int8Linear,), {"loading": loading})
    else:
        base = hosts
        linear = type("Linear", (_HostInt8, hosts.Linear), {"loading": loading})
    convolution = type("Conv2d", (_Int8Conv2d,), {"loading": loading})
    return type("Int8Operations", (base,), {"Linear": linear, "Conv2d": convolution})


class _HostInt8:
    """Mixed into the host's own quantized Linear: its weight is quantized when it is loaded."""

    loading: _Int8Loading

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


_INT8 = "int8_tensorwise"


def has_int8_format() -> bool:
    """Whether this ComfyUI computes with int8 weights by itself; since 0.27."""
    return _INT8 in quantized_formats()


def _mark(format_: str) -> torch.Tensor:
    """How files tell ComfyUI the format of a layer."""
    return torch.tensor(list(json.dumps({"format": format_}).encode()), dtype=torch.uint8)


def _host_operations(stored: torch.dtype, four_bits: bool) -> Any:
    """ComfyUI's own quantized layers; None where its format is not what is wanted."""
    if not four_bits and not has_int8_format():
        return None
    compute = stored if stored in (torch.float16, torch.bfloat16) else torch.float32
    make = comfy.ops.mixed_precision_ops
    device = model_management.get_torch_device()
    native = getattr(model_management, "supports_nvfp4_compute", lambda _: False)
    if not four_bits or native(device):
        return make({}, compute)
    # As ComfyUI does for files in this format where the device cannot multiply it: the weight is
    # made whole at each use.
    if "disabled" in inspect.signature(make).parameters:
        return make({}, compute, disabled={_NVFP4})
    return make({}, compute, full_precision_mm=True)


def _not_dynamic(load: Callable[..., Any]) -> dict[str, Any]:
    # Layers of ours are not among those that ComfyUI's dynamic VRAM knows how to stream.
    known = "disable_dynamic" in inspect.signature(load).parameters
    return {"disable_dynamic": True} if known else {}


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
                if isinstance(layer, _Int8Layer):
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


def _int8_layer(model: torch.nn.Module, key: str) -> _Int8Layer | None:
    name, _, parameter = key.rpartition(".")
    if parameter != "weight" or not name:
        return None
    layer = comfy.utils.get_attr(model, name)
    return layer if isinstance(layer, _Int8Layer) and layer.quantized else None


# --------------------------------------------------------------------------- weights in their file


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


def _mapped_options(file: MappedFile, part: str) -> dict[str, Any]:
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


def _map(patcher: Any) -> Any:
    patcher.__class__ = _mapped_class(type(patcher))
    return patcher


@functools.cache
def _mapped_class(base: type) -> type:
    return type(f"Mapped{base.__name__}", (_MappedPatcher, base), {})


def _own(patcher: Any) -> Any:
    """The same patcher, of a class that knows int8 layers; its clones keep that class."""
    patcher.__class__ = _own_class(type(patcher))
    return patcher


@functools.cache
def _own_class(base: type) -> type:
    return type(f"Int8{base.__name__}", (_OwnPatcher, base), {})


# --------------------------------------------------------------------------- reading models


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


# --------------------------------------------------------------------------- memory rules


class MemoryRule(NamedTuple):
    """How a part of a model uses the device. Clones carry it along."""

    whole: bool = False
    """Loaded whole, however much room ComfyUI sees."""
    alone: bool = False
    """Whatever else is on the device leaves it before this part comes."""
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
        clone.__class__ = _ruled_vae_class(type(clone))
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
            clone.__class__ = _ruled_class(type(clone))
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
        if not getattr(patcher, "is_dynamic", bool)():
            limit = _weight_limit(patcher, rule)
            if limit is not None:
                extra_memory = min(extra_memory, limit - patcher.loaded_size())
            elif rule.whole:
                extra_memory = _UNLIMITED
        return load.partially_load(device_to, extra_memory, force_patch_weights)

    def detach(self, unpatch_all: bool = True) -> Any:
        # A clone that takes its place may run on another device.
        rule = rule_of(self)
        away = rule is not None and rule.on_processor
        return super().detach(unpatch_all or away)  # type: ignore[misc]


_UNLIMITED = 1e32  # what ComfyUI itself passes to load all


@functools.cache
def _ruled_class(base: type) -> type:
    return type(f"Ruled{base.__name__}", (_RuledPatcher, base), {})


def _weight_limit(patcher: Any, rule: MemoryRule) -> int | None:
    """Bytes of weights that may be on the device, buffers of streamed ones included."""
    if rule.streamed:
        return 0
    if rule.cap is None:
        return None
    working = attached(patcher, _WORKING)
    working = _TEXT_WORKING if working is None else working
    return max(0, rule.cap - working - _casting(patcher.model))


def _casting(module: torch.nn.Module) -> int:
    """Bytes that the largest weight takes on top of itself while its layer computes, where it is
    stored in another data type than it computes in; wherever it is kept.

    What a layer that is kept elsewhere takes when it is brought to the device is not in it:
    ComfyUI takes that off the bytes that it is allowed to keep there.
    """
    compute = getattr(module, "manual_cast_dtype", None)
    most = 0
    for layer in module.modules():
        weight = layer._parameters.get("weight")
        if weight is None or not hasattr(layer, "comfy_cast_weights"):
            continue
        if isinstance(layer, _Int8Layer) and layer.quantized:
            most = max(most, 6 * weight.numel())  # made whole in float32, then in half of that
        elif hasattr(weight, "_qdata"):
            most = max(most, weight.numel() * (compute or weight.dtype).itemsize)
        elif compute is not None and weight.dtype != compute:
            most = max(most, weight.numel() * compute.itemsize)
    return most


def _streaming(patcher: Any) -> int:
    """Bytes that the layers take which are on their way to the device and in use there, where not
    all of a model is kept there: the largest, once for each of ComfyUI's streams and once more."""
    sizes = (
        model_management.module_size(layer)
        for layer in patcher.model.modules()
        if hasattr(layer, "comfy_cast_weights")
    )
    streams = getattr(model_management, "NUM_STREAMS", 0)
    return (streams + 1) * max(sizes, default=0)


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
        if limit < patcher.model_size():  # what streams in lies outside of what the bar counts
            limit = max(0, limit - _streaming(patcher))
        if hasattr(bar, "set_watermark"):
            bar.set_watermark(limit)
        else:  # before aimdo 0.4.10: freeing all leaves the floor as the highest page in use
            bar.set_watermark_limit(limit)
            bar.free_memory(1 << 60)
    elif not isinstance(patcher, _RuledPatcher) and patcher.loaded_size() > limit:
        patcher.partially_unload(patcher.offload_device, patcher.loaded_size() - limit)


def _make_room(patcher: Any, rule: MemoryRule, working: int) -> None:
    """Put other models off the device, where the rule wants the device alone or its cap asks."""
    attach(patcher, _WORKING, working)
    device = patcher.load_device
    others = [
        (one, one.model)
        for one in list(model_management.current_loaded_models)
        if one.model is not None and one.device == device and not one.model.is_clone(patcher)
    ]
    if not rule.alone:
        if rule.cap is None:
            return
        others = [(one, model) for one, model in others if _same_cap(rule, rule_of(model))]
        held = sum(model.loaded_size() for _, model in others)
        if held + patcher.model_size() + working <= rule.cap:
            return
    if others:
        leaving = {id(one) for one, _ in others}
        keep = [one for one in model_management.current_loaded_models if id(one) not in leaving]
        model_management.free_memory(1e30, device, keep_loaded=keep)


def _same_cap(rule: MemoryRule, other: MemoryRule | None) -> bool:
    return other is not None and other.cap == rule.cap


def _prepare_sampling(
    executor: Any, model: Any, noise_shape: Any, *arguments: Any, **options: Any
) -> Any:
    """Wrapped around the loading of a MODEL for sampling: its rule, for this very size."""
    rule = rule_of(model)
    if rule is not None:
        # Positive and negative text are computed together, as ComfyUI's own estimate has it.
        shape = [noise_shape[0] * 2, *noise_shape[1:]]
        working = int(model.model.memory_required(shape))
        least = working + _casting(model.model) + min(_streaming(model), model.model_size())
        if rule.cap is not None and least > rule.cap:
            raise SettingError(
                f"max_vram_gb is too low: computing this size and batch takes "
                f"{least / 1024**3:.2f} GB with the layers that compute at one time, and the "
                f"limit is {rule.cap / 1024**3:.2f}. Make the image or the batch smaller, or raise "
                "max_vram_gb in MemoryStrategy."
            )
        _make_room(model, rule, working)
    return executor(model, noise_shape, *arguments, **options)


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


@functools.cache
def _ruled_vae_class(base: type) -> type:
    return type(f"Ruled{base.__name__}", (_RuledVAE, base), {})


# --------------------------------------------------------------------------- LoRA


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
        _raise_out_of_memory(error)
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


# --------------------------------------------------------------------------- text


def with_clip_skip(clip: Any, clip_skip: int) -> Any:
    """CLIP that stops `clip_skip` layers from the end, as CLIPSetLastLayer does (1 = the last)."""
    return stock_nodes.CLIPSetLastLayer().set_last_layer(clip, -clip_skip)[0]


def encode(clip: Any, segments: Sequence[str]) -> Any:
    """CONDITIONING for the text: each segment encoded as CLIPTextEncode does, then concatenated
    as ConditioningConcat does."""
    first, *others = (stock_nodes.CLIPTextEncode().encode(clip, text)[0] for text in segments)
    for conditioning in others:
        first = stock_nodes.ConditioningConcat().concat(first, conditioning)[0]
    return first


def with_guidance(conditioning: Any, guidance: float) -> Any:
    """CONDITIONING with embedded guidance, as FluxGuidance sets it."""
    return node_helpers.conditioning_set_values(conditioning, {"guidance": guidance})


# --------------------------------------------------------------------------- sampling


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


def empty_latent(width: int, height: int, batch_size: int, vae: Any) -> dict[str, Any]:
    """LATENT of zeros for an image of this size, as EmptyLatentImage makes it."""
    latent = stock_nodes.EmptyLatentImage().generate(width, height, batch_size)[0]
    pixels = vae.spacial_compression_encode()
    # Newer hosts fit the size to the model while sampling; older ones take 8 pixels for granted.
    if pixels != 8 and "downscale_ratio_spacial" not in latent:
        zeros = latent["samples"]
        latent["samples"] = zeros.new_zeros((*zeros.shape[:2], height // pixels, width // pixels))
    return latent


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
        spaced = _run_node(sigmas, **_SIGMAS[sigmas](model, steps, *size))
        return _run_node(
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


def _run_node(name: str, **inputs: Any) -> Any:
    # The first output of a stock node of ComfyUI's V3 API.
    return stock_nodes.NODE_CLASS_MAPPINGS[name].execute(**inputs).result[0]


def upscale_latent(latent: dict[str, Any], width: int, height: int, method: str) -> dict[str, Any]:
    """LATENT scaled to an image size in pixels, as LatentUpscale does without cropping.

    Raises:
        SettingError: no such method.
    """
    _check_method(method, "LatentUpscale")
    return stock_nodes.LatentUpscale().upscale(latent, method, width, height, "disabled")[0]


def upscale_image(image: torch.Tensor, width: int, height: int, method: str) -> torch.Tensor:
    """IMAGE scaled to a size in pixels, as ImageScale does without cropping. SettingError."""
    _check_method(method, "ImageScale")
    return stock_nodes.ImageScale().upscale(image, method, width, height, "disabled")[0]


def _check_method(method: str, node: str) -> None:
    known = stock_nodes.NODE_CLASS_MAPPINGS[node].upscale_methods
    if method not in known:
        raise SettingError(
            f"This ComfyUI's {node} has no method {method!r}. Set second_pass.method to one of: "
            f"{', '.join(known)}."
        )


def encode_image(vae: Any, image: torch.Tensor) -> dict[str, Any]:
    """LATENT of an IMAGE, as VAEEncode makes it."""
    return stock_nodes.VAEEncode().encode(vae, image)[0]


TILE = 512
"""Pixels along the side of a tile of a tiled decode."""
_TILE_OVERLAP = 128
"""With it VAEDecodeTiled does what ComfyUI does by itself where CUDA is out of memory."""


class Decoded(NamedTuple):
    """What decoding gave."""

    image: torch.Tensor
    """IMAGE [batch, height, width, 3] in [0, 1]."""
    tiled: bool
    """Whether it was decoded in tiles, as told or because ComfyUI ran out of memory."""


def decode(vae: Any, latent: dict[str, Any], *, tiled: bool = False) -> Decoded:
    """IMAGE as VAEDecode makes it; tiled, as VAEDecodeTiled does."""
    if tiled:
        node = stock_nodes.VAEDecodeTiled()
        return Decoded(node.decode(vae, latent, TILE, _TILE_OVERLAP)[0], True)
    # ComfyUI tells nobody but the log when it falls back to tiles.
    watched = copy.copy(vae)
    fell_back: list[str] = []
    for name in ("decode_tiled_", "decode_tiled_1d", "decode_tiled_3d"):
        if hasattr(watched, name):
            setattr(watched, name, _noting(getattr(watched, name), fell_back))
    return Decoded(stock_nodes.VAEDecode().decode(watched, latent)[0], bool(fell_back))


def _noting(call: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    def noted(*arguments: Any, **options: Any) -> Any:
        calls.append(call.__name__)
        return call(*arguments, **options)

    return noted


def in_parts(latent: dict[str, Any], size: int) -> Iterator[dict[str, Any]]:
    """A LATENT in parts of so many images at most, as LatentFromBatch cuts it: each image keeps
    its noise."""
    count = latent["samples"].shape[0]
    if size >= count:
        yield latent
        return
    for start in range(0, count, size):
        if start:
            _give_back_memory()  # what one part left in pieces is in the way of the next
        yield stock_nodes.LatentFromBatch().frombatch(latent, start, size)[0]


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The LATENT that `in_parts` cut."""
    if len(parts) == 1:
        return parts[0]
    whole = {key: value for key, value in parts[0].items() if key != "batch_index"}
    return whole | {"samples": torch.cat([part["samples"] for part in parts])}


def to_pixels(image: torch.Tensor) -> list[np.ndarray]:
    """IMAGE [batch, height, width, 3] in [0, 1] as uint8 arrays, rounded as SaveImage does."""
    return [np.clip(255.0 * one.cpu().numpy(), 0, 255).astype(np.uint8) for one in image]


# --------------------------------------------------------------------------- machine


class HostMachine:
    """The machine as ComfyUI uses it: what `core.memory.read_machine` asks for."""

    @property
    def device_name(self) -> str:
        return str(model_management.get_torch_device_name(model_management.get_torch_device()))

    @property
    def device_kind(self) -> str:
        return _kind(model_management.get_torch_device())

    def total_vram(self) -> int:
        """Bytes of device memory; on a CPU, of RAM."""
        return int(model_management.get_total_memory(model_management.get_torch_device()))

    def free_vram(self) -> int:
        """Bytes of device memory that can be had now, other processes counted."""
        return int(model_management.get_free_memory(model_management.get_torch_device()))

    def total_ram(self) -> int:
        return int(psutil.virtual_memory().total)

    def free_ram(self) -> int:
        """Bytes of RAM that can be had now, other processes counted."""
        return int(psutil.virtual_memory().available)

    def devices(self) -> list[tuple[str, str, int, int, str | None]]:
        """Name, kind, total and free bytes and capability of each device, ComfyUI's own first."""
        own = model_management.get_torch_device()
        rows = []
        for device in [own, *(one for one in _all_devices() if one != own)]:
            name = str(model_management.get_torch_device_name(device))
            total = int(model_management.get_total_memory(device))
            free = int(model_management.get_free_memory(device))
            rows.append((name, _kind(device), total, free, _capability(device)))
        return rows

    def attention_backends(self) -> tuple[str, ...]:
        """Attention functions of this ComfyUI whose library is there: pytorch (its
        scaled_dot_product_attention), sub_quad, split; xformers, flash and sage if installed."""
        return tuple(attention.REGISTERED_ATTENTION_FUNCTIONS)

    def attention_backend(self) -> str:
        """The one that ComfyUI computes with."""
        used = attention.optimized_attention
        used = getattr(used, "__wrapped__", used)
        return used.__name__.removeprefix("attention_")

    def dynamic_vram(self) -> bool:
        """Whether this ComfyUI streams weights into VRAM by itself (its `aimdo`)."""
        import comfy

        module = getattr(comfy, "memory_management", None)
        return bool(getattr(module, "aimdo_enabled", False))

    def vram_state(self) -> str:
        return model_management.vram_state.name


def _kind(device: torch.device) -> str:
    if device.type == "cuda":
        return "rocm" if getattr(torch.version, "hip", None) else "cuda"
    if device.type == "privateuseone":
        return "directml"
    return device.type if device.type in ("mps", "xpu", "cpu") else "other"


def _all_devices() -> list[torch.device]:
    if hasattr(model_management, "get_all_torch_devices"):  # since 0.23
        return list(model_management.get_all_torch_devices())
    own = model_management.get_torch_device()
    backend = getattr(torch, own.type, None)
    if own.type not in ("cuda", "xpu") or backend is None:
        return [own]
    return [torch.device(own.type, number) for number in range(backend.device_count())]


def _capability(device: torch.device) -> str | None:
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    chip = getattr(properties, "gcnArchName", None) if _kind(device) == "rocm" else None
    return chip or f"{properties.major}.{properties.minor}"


class DeviceSpeed(NamedTuple):
    """What `measure_speed` measured."""

    flops: float
    """Floating-point operations a second, multiplying matrices."""
    bandwidth: float
    """Bytes a second, reading and writing memory."""
    value_bytes: int
    """Size of a value of the data type that is computed in."""


def machine_key() -> str:
    """The machine as far as speed goes: device, torch, and on a CPU its threads."""
    device = model_management.get_torch_device()
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    cpu = platform.processor() or platform.machine()
    name = cpu if device.type == "cpu" else HostMachine().device_name
    return f"{name}{threads}, torch {torch.__version__}"[:255]


def measure_speed(stored: str) -> DeviceSpeed:
    """How fast the device computes with weights stored in a data type, e.g. `float16`.

    Takes a fifth of a second on a processor, less on a graphics card: the best of a few matrix
    products and copies.
    """
    device = model_management.get_torch_device()
    weights = getattr(torch, stored, torch.float32)
    dtype = model_management.unet_manual_cast(weights, device) or weights
    if not dtype.is_floating_point or dtype.itemsize < 2:
        dtype = torch.float16
    side = 1024 if device.type == "cpu" else 4096
    matrix = torch.ones((side, side), dtype=dtype, device=device)
    product = _best_seconds(lambda: matrix @ matrix, device)
    source = torch.ones(_COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_seconds = _best_seconds(lambda: target.copy_(source), device)
    return DeviceSpeed(
        flops=2 * side**3 / product,
        bandwidth=2 * _COPIED_BYTES / copy_seconds,  # read once, written once
        value_bytes=dtype.itemsize,
    )


_COPIED_BYTES = 64 * 1024**2
_MEASURED_TIMES = 4


def _best_seconds(work: Callable[[], Any], device: torch.device) -> float:
    backend = getattr(torch, device.type, None)
    wait = getattr(backend, "synchronize", lambda: None)
    best = float("inf")
    for _ in range(_MEASURED_TIMES):
        wait()
        start = time.perf_counter()
        work()
        wait()
        best = min(best, time.perf_counter() - start)
    return max(best, 1e-9)


class PeakMemory:
    """Measures the memory that a run needs on the device that samples, as a context manager.

    That is what its own models held there already, and the most that came on top while it ran;
    what others hold or give back meanwhile does not count. On a processor the RAM of the process
    is read every few milliseconds, as no system keeps a peak that can be set back; on CUDA and
    ROCm, torch keeps it. Elsewhere the peak is unknown.
    """

    def __init__(self, *patchers: Any) -> None:
        self._patchers = [patcher for patcher in patchers if patcher is not None]
        self._device = model_management.get_torch_device()
        self._ended = threading.Event()
        self._watcher: threading.Thread | None = None
        self._start = self._held_before = self._rise = 0
        self.bytes: int | None = None
        """Known after the end; None where it cannot be read."""

    def __enter__(self) -> PeakMemory:
        self._held_before = self._held()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._start = torch.cuda.memory_allocated(self._device)
        elif self._device.type == "cpu":
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            self.bytes = self._on_cuda()
        elif self._watcher is not None:
            self._ended.set()
            self._watcher.join()
            self.bytes = self._held_before + self._rise

    def _on_cuda(self) -> int:
        peak = torch.cuda.max_memory_allocated(self._device)
        if any(getattr(patcher, "is_dynamic", bool)() for patcher in self._patchers):
            # Weights that are streamed in (dynamic VRAM) are outside of torch's count.
            return self._held() + peak - self._start
        end = torch.cuda.memory_allocated(self._device)
        others = min(self._start - self._held_before, end - self._held())
        return peak - max(0, others)

    def _held(self) -> int:
        if self._device.type == "cpu":
            return sum(int(patcher.model_size()) for patcher in self._patchers)
        return sum(
            int(patcher.loaded_size())
            for patcher in self._patchers
            if patcher.load_device == self._device
        )

    def _watch(self) -> None:
        # A rise counts from the lowest point before it, where an earlier model was let go of.
        lowest = _process_bytes()
        while not self._ended.wait(_WATCH_SECONDS):
            now = _process_bytes()
            lowest = min(lowest, now)
            self._rise = max(self._rise, now - lowest)


_WATCH_SECONDS = 0.005


def _process_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def evictable_vram() -> int:
    """Bytes of device memory that hold models which ComfyUI puts back into RAM when others need
    the room."""
    device = model_management.get_torch_device()
    loaded = [one.model for one in list(model_management.current_loaded_models)]
    return sum(
        int(patcher.loaded_size())
        for patcher in loaded
        if patcher is not None and patcher.load_device == device
    )


def show_text(text: str) -> None:
    """Show text on the node that runs now, as long as it runs; nothing without a browser."""
    from comfy_execution.utils import get_executing_context
    from server import PromptServer

    context = get_executing_context()
    server = getattr(PromptServer, "instance", None)
    if context is not None and server is not None:
        server.send_progress_text(text, context.node_id)


def describe() -> str:
    """ComfyUI and torch versions and the device, for the record of a generation."""
    try:
        from comfyui_version import __version__ as version
    except ImportError:
        version = "unknown"
    return f"ComfyUI {version}, torch {torch.__version__}, {HostMachine().device_name}"


def node_module(node_id: str) -> str | None:
    """Where a node of this id comes from, e.g. `custom_nodes.some-pack`; None if there is none."""
    node = stock_nodes.NODE_CLASS_MAPPINGS.get(node_id)
    return None if node is None else getattr(node, "RELATIVE_PYTHON_MODULE", "ComfyUI")


def http_routes() -> Any:
    """ComfyUI's aiohttp route table; None when nodes are loaded without a server."""
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    return None if server is None else server.routes


def blocked(message: str | None) -> Any:
    """An output value that stops whatever node uses it, with this error message; None: without
    an error."""
    from comfy_execution.graph import ExecutionBlocker

    return ExecutionBlocker(message)


def progress() -> Callable[[float], None]:
    """A progress bar on the node that runs now: called with the share done, 0 to 1."""
    bar = comfy.utils.ProgressBar(_PROGRESS_STEPS)
    shown = -1

    def show(share: float) -> None:
        nonlocal shown
        if (now := int(share * _PROGRESS_STEPS)) != shown:
            shown = now
            bar.update_absolute(now)

    return show


def check_interrupt() -> None:
    """Raise ComfyUI's own exception if the user pressed cancel."""
    model_management.throw_exception_if_processing_interrupted()
