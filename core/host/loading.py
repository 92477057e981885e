"""Loading models from files."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management as model_management
import comfy.sd
import comfy.utils
import folder_paths
import torch
from safetensors import SafetensorError

from ..errors import HostError, ModelFileError, first_line
from .formats import has_int8_format, int4_format
from .mapped import MappedFile, keep_in_file, mapped_options
from .memory import raise_out_of_memory
from .quantized import FileToQuantize, patch_at_use, quantizing_operations

LazyFile = FileToQuantize | MappedFile
"""A file that ComfyUI does not read whole: a weight is read when its layer loads it, or uses it."""


class LoadedModel(NamedTuple):
    """What a load gives. A part is None when the file does not hold it."""

    model: Any
    clip: Any
    vae: Any


def weight_dtypes() -> tuple[str, ...]:
    """Data types that models can be loaded in here: names of torch's, int8, and int4."""
    half = ["float16", "bfloat16"]
    # PyTorch has no float8 on Apple's GPU.
    fp8 = [] if model_management.get_torch_device().type == "mps" else ["float8_e4m3fn"]
    four = [] if int4_format() is None else ["int4"]
    return (*half, *(name for name in fp8 if hasattr(torch, name)), "int8", *four)


def float32_beside_int8() -> bool:
    """Whether the weights of a diffusion model that stay beside its int8 ones become float32, as
    all of them do where ComfyUI computes on a processor; its own quantized layers keep the file's
    data type."""
    return model_management.get_torch_device().type == "cpu" and not has_int8_format()


def vae_dtype() -> str:
    """torch's name of the data type that ComfyUI makes a VAE's weights here, whatever its file
    has: half precision where the device computes in a kind that VAEs bear, which is most often
    bfloat16 alone."""
    kinds = [torch.bfloat16, torch.float32]  # what most of comfy.sd.VAE's kinds allow
    chosen = model_management.vae_dtype(model_management.vae_device(), kinds)
    return str(chosen).removeprefix("torch.")


def load_checkpoint(
    path: Path, *, dtype: str | None = None, lazy: LazyFile | None = None
) -> LoadedModel:
    """Load a checkpoint as CheckpointLoaderSimple does.

    Args:
        dtype: of `weight_dtypes`, for the diffusion model; None as ComfyUI chooses.
        lazy: the same file, where the weights of diffusion model and text encoders are to be
            quantized as they are read, or to stay in it.

    Raises:
        ModelFileError: ComfyUI does not recognise the model in it.
    """
    common = {
        "output_vae": True,
        "output_clip": True,
        "embedding_directory": folder_paths.get_folder_paths("embeddings"),
    }
    try:
        if lazy is None:
            out = comfy.sd.load_checkpoint_guess_config(
                str(path), model_options=_in_dtype(dtype), **common
            )
        else:
            load = comfy.sd.load_state_dict_guess_config
            with _options([lazy]) as (diffusion_model, text_encoder):
                out = load(
                    dict(lazy.tensors),
                    model_options=diffusion_model,
                    te_model_options=text_encoder,
                    metadata=dict(lazy.metadata),
                    **_not_dynamic(load),
                    **common,
                )
    except (RuntimeError, SafetensorError) as error:
        raise_out_of_memory(error)
        raise _not_loaded("checkpoint", path, error) from error
    model, clip, vae = (None, None, None) if out is None else out[:3]
    if model is None:
        raise ModelFileError(
            f"{path.name} holds no diffusion model. Choose a checkpoint, or use this file as a "
            "text encoder or VAE."
        )
    _adopt(model, lazy)
    if clip is not None:
        _adopt(clip.patcher, lazy)
    return LoadedModel(model, clip, vae if _vae_is_usable(vae) else None)


def load_diffusion_model(
    path: Path, *, dtype: str | None = None, lazy: LazyFile | None = None
) -> Any:
    """Load a diffusion model alone, as UNETLoader does; arguments as `load_checkpoint`'s.

    Raises:
        ModelFileError: ComfyUI does not recognise the model in it.
    """
    try:
        if lazy is None:
            model = comfy.sd.load_diffusion_model(str(path), model_options=_in_dtype(dtype))
        else:
            load = comfy.sd.load_diffusion_model_state_dict
            metadata = {"metadata": dict(lazy.metadata)} if _takes(load, "metadata") else {}
            with _options([lazy]) as (diffusion_model, _):
                model = load(
                    dict(lazy.tensors),
                    model_options=diffusion_model,
                    **metadata,
                    **_not_dynamic(load),
                )
    except (RuntimeError, SafetensorError) as error:
        raise_out_of_memory(error)
        raise _not_loaded("diffusion model", path, error) from error
    if model is None:
        raise ModelFileError(f"ComfyUI does not recognise the diffusion model in {path.name}.")
    _adopt(model, lazy)
    return model


def load_text_encoders(
    paths: Sequence[Path], clip_type: str, *, lazy: Sequence[LazyFile] = ()
) -> Any:
    """Load one to three text encoders, as ComfyUI's CLIP loaders do.

    Args:
        clip_type: name of a `comfy.sd.CLIPType` member, any case, e.g. `sd3`, `flux`.
        lazy: the same files, all of one kind, where their weights are to be quantized as they are
            read, or to stay in them.

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
        if not lazy:
            return comfy.sd.load_clip(ckpt_paths=[str(path) for path in paths], **common)
        load = comfy.sd.load_text_encoder_state_dicts
        with _options(lazy) as (_, text_encoder):
            clip = load(
                [dict(file.tensors) for file in lazy],
                model_options=text_encoder,
                **_not_dynamic(load),
                **common,
            )
    except (RuntimeError, SafetensorError) as error:
        raise_out_of_memory(error)
        names = ", ".join(path.name for path in paths)
        raise ModelFileError(
            f"Text encoder {names} could not be loaded for type {clip_type!r}: "
            f"{first_line(error)}. Check that the files belong to this model."
        ) from error
    _adopt(clip.patcher, lazy[0])
    return clip


@contextmanager
def _options(files: Sequence[LazyFile]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """ComfyUI's options for loading a diffusion model, and text encoders, from lazy files."""
    to_quantize = [file for file in files if isinstance(file, FileToQuantize)]
    mapped = [file for file in files if isinstance(file, MappedFile)]
    if mapped:
        yield (
            mapped_options(mapped[0], "diffusion_model"),
            mapped_options(mapped[0], "text_encoder"),
        )
        return
    with quantizing_operations(*to_quantize) as (diffusion_model, text_encoder):
        yield {"custom_operations": diffusion_model}, {"custom_operations": text_encoder}


def _adopt(patcher: Any, lazy: LazyFile | None) -> None:
    """Let the patcher of a model know how the model's weights are held."""
    if isinstance(lazy, FileToQuantize):
        patch_at_use(patcher)
    elif lazy is not None:
        keep_in_file(patcher)


def _in_dtype(dtype: str | None) -> dict[str, Any]:
    return {} if dtype is None else {"dtype": getattr(torch, dtype)}


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


def _not_dynamic(load: Callable[..., Any]) -> dict[str, Any]:
    # Layers of ours are not among those that ComfyUI's dynamic VRAM knows how to stream.
    return {"disable_dynamic": True} if _takes(load, "disable_dynamic") else {}


def _takes(function: Callable[..., Any], argument: str) -> bool:
    return argument in inspect.signature(function).parameters
