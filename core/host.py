"""The only module that imports ComfyUI's internals.

It probes for capabilities and never compares versions. Where ComfyUI has a stock node for a
step (LoRA, text, latent, sampling, decoding), that node's own code is called, so that an image
made here is bit-identical to one made by the stock graph, in whatever version runs.
Imported only while ComfyUI runs, never at its start.
"""

from __future__ import annotations

import copy
import inspect
import logging
import os
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management as model_management
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

from .errors import HostError, ModelFileError, SaveError, SettingError

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


def load_checkpoint(path: Path) -> LoadedModel:
    """Load a checkpoint as CheckpointLoaderSimple does.

    Raises:
        ModelFileError: ComfyUI does not recognise the model in it.
    """
    try:
        out = comfy.sd.load_checkpoint_guess_config(
            str(path),
            output_vae=True,
            output_clip=True,
            embedding_directory=folder_paths.get_folder_paths("embeddings"),
        )
    except (RuntimeError, SafetensorError) as error:
        _raise_out_of_memory(error)
        raise _not_loaded("checkpoint", path, error) from error
    model, clip, vae = out[:3]
    if model is None:
        raise ModelFileError(
            f"{path.name} holds no diffusion model. Choose a checkpoint, or use this file as a "
            "text encoder or VAE."
        )
    return LoadedModel(model, clip, vae if _vae_is_usable(vae) else None)


def load_diffusion_model(path: Path) -> Any:
    """Load a diffusion model alone, as UNETLoader does. Raises ModelFileError."""
    try:
        model = comfy.sd.load_diffusion_model(str(path), model_options={})
    except (RuntimeError, SafetensorError) as error:
        _raise_out_of_memory(error)
        raise _not_loaded("diffusion model", path, error) from error
    if model is None:
        raise ModelFileError(f"ComfyUI does not recognise the diffusion model in {path.name}.")
    return model


def load_text_encoders(paths: Sequence[Path], clip_type: str) -> Any:
    """Load one to three text encoders, as ComfyUI's CLIP loaders do.

    Args:
        clip_type: name of a `comfy.sd.CLIPType` member, any case, e.g. `sd3`, `flux`.

    Raises:
        ModelFileError: a file is not a text encoder ComfyUI knows.
        HostError: this ComfyUI does not know the type.
    """
    kind = getattr(comfy.sd.CLIPType, clip_type.upper(), None)
    if kind is None:
        raise HostError(
            f"This ComfyUI does not know text encoders of type {clip_type!r}. Update ComfyUI."
        )
    for path in paths:
        keys = comfy.utils.load_torch_file(str(path))
        # ComfyUI takes any file and fills what is missing with nothing. OpenCLIP's names it turns
        # into its own only later.
        foreign = not any("embed" in key or "resblocks" in key for key in keys)
        if foreign and comfy.sd.detect_te_model(keys) is None:
            raise ModelFileError(
                f"{path.name} is not a text encoder that ComfyUI knows. Choose another file."
            )
    try:
        return comfy.sd.load_clip(
            ckpt_paths=[str(path) for path in paths],
            embedding_directory=folder_paths.get_folder_paths("embeddings"),
            clip_type=kind,
        )
    except (RuntimeError, SafetensorError) as error:
        _raise_out_of_memory(error)
        names = ", ".join(path.name for path in paths)
        raise ModelFileError(
            f"Text encoder {names} could not be loaded for type {clip_type!r}: "
            f"{_first_line(error)}. Check that the files belong to this model."
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
        f"ComfyUI could not load the {what} {path.name}: {_first_line(error)}. "
        "Check that the file is complete and that this ComfyUI supports the model."
    )


def _raise_out_of_memory(error: Exception) -> None:
    """Let ComfyUI see running out of memory as what it is: it frees models then."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        raise error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


# --------------------------------------------------------------------------- reading models


class WeightCount(NamedTuple):
    """Size of one loaded part."""

    dtype: str
    """Data type of most of its bytes, e.g. `float16`."""
    parameters: int
    bytes: int


def count_weights(module: torch.nn.Module) -> WeightCount:
    """Parameters and bytes of a loaded module, and the data type that most of them have."""
    by_dtype: dict[str, int] = {}
    parameters = total = 0
    for tensor in module.parameters():
        size = tensor.numel() * tensor.element_size()
        parameters += tensor.numel()
        total += size
        name = str(tensor.dtype).removeprefix("torch.")
        by_dtype[name] = by_dtype.get(name, 0) + size
    return WeightCount(max(by_dtype, key=by_dtype.__getitem__, default="none"), parameters, total)


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
            leaves(getattr(patcher, name, {}))
            for name in ("wrappers", "callbacks", "injections", "hook_patches")
        )
    )


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
            f"LoRA {name} could not be read: {_first_line(error)}. Download it again or remove it."
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
) -> dict[str, Any]:
    """Sample as the stock KSampler does, with its progress, previews and interrupt."""
    return stock_nodes.common_ksampler(
        model, seed, steps, cfg, sampler, scheduler, positive, negative, latent, denoise=denoise
    )[0]


def decode(vae: Any, latent: dict[str, Any]) -> torch.Tensor:
    """IMAGE [batch, height, width, 3] in [0, 1], as VAEDecode makes it."""
    return stock_nodes.VAEDecode().decode(vae, latent)[0]


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
        device = model_management.get_torch_device()
        if device.type == "cuda":
            return "rocm" if getattr(torch.version, "hip", None) else "cuda"
        if device.type == "privateuseone":
            return "directml"
        return device.type if device.type in ("mps", "xpu", "cpu") else "other"

    def total_vram(self) -> int:
        """Bytes of device memory; on a CPU, of RAM."""
        return int(model_management.get_total_memory(model_management.get_torch_device()))

    def free_vram(self) -> int:
        """Bytes of device memory that can be had now, other processes counted."""
        return int(model_management.get_free_memory(model_management.get_torch_device()))

    def total_ram(self) -> int:
        return int(psutil.virtual_memory().total)

    def free_ram(self) -> int:
        return int(psutil.virtual_memory().available)

    def dynamic_vram(self) -> bool:
        """Whether this ComfyUI streams weights into VRAM by itself (its `aimdo`)."""
        import comfy

        module = getattr(comfy, "memory_management", None)
        return bool(getattr(module, "aimdo_enabled", False))

    def vram_state(self) -> str:
        return model_management.vram_state.name


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


def blocked(message: str) -> Any:
    """An output value that stops whatever node uses it, with this error message."""
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
