"""All that the pack has of ComfyUI: only the modules in here import its internals.

    stock         ComfyUI's own nodes, as Python objects
    folders       where ComfyUI keeps files: models, the user's folder, images
    serving       the prompt that runs and the server that it came by: progress, interrupt, routes
    machine       the machine as ComfyUI uses it
    measuring     how fast the machine is, and what a run takes of its memory
    memory        what ComfyUI has in memory, and being out of it
    models        what a model is: its parts, their sizes, its patches and what is attached to it
    formats       formats of quantized weights, and weights made in them
    mixing        objects of ComfyUI's classes that are given a few methods of ours
    quantized     layers with quantized weights, and the patchers of models that have them
    mapped        weights that stay in their file, and the patchers of models that have them
    loading       loading models from files
    kept          loaded models that are kept, and lent to who needs them
    rules         memory rules: MODEL, CLIP and VAE that use the device as they are told
    lora          applying LoRAs
    conditioning  text to CONDITIONING
    sampling      samplers, schedulers, and sampling by them
    images        latents and images: made, scaled, cut, encoded, decoded

It probes for capabilities and never compares versions. Where ComfyUI has a stock node for a
step (LoRA, text, latent, sampling, decoding), that node's own code is called, so that an image
made here is bit-identical to one made by the stock graph, in whatever version runs.
Imported only while ComfyUI runs, never at its start. Its users say `host.NAME`.
"""

from __future__ import annotations

from .conditioning import encode, with_clip_skip, with_guidance
from .folders import (
    SavePlace,
    file_stamp,
    metadata_enabled,
    model_folders,
    model_names,
    save_place,
    user_directory,
)
from .formats import has_int8_format, int4_format, pack_int4, quantized_formats
from .images import (
    TILE,
    Decoded,
    decode,
    empty_latent,
    encode_image,
    in_parts,
    joined,
    to_pixels,
    upscale_image,
    upscale_latent,
)
from .kept import KeptModel, files_of
from .loading import (
    LazyFile,
    LoadedModel,
    float32_beside_int8,
    load_checkpoint,
    load_diffusion_model,
    load_text_encoders,
    load_vae,
    vae_dtype,
    weight_dtypes,
)
from .lora import LoraEffect, apply_lora
from .machine import HostMachine, describe, machine_key
from .mapped import MappedFile, is_mapped
from .measuring import DeviceSpeed, PeakMemory, measure_speed
from .memory import Residency, evictable_vram, is_out_of_memory, residency, unload_others
from .models import (
    Patches,
    WeightCount,
    attach,
    attached,
    clip_changes,
    clip_with_patches,
    comfy_class,
    count_weights,
    diffusion_module,
    other_changes,
    patch_count,
    patches_of,
    text_encoder_module,
    vae_module,
    with_patches,
)
from .quantized import FileToQuantize
from .rules import (
    MemoryRule,
    SamplingPlace,
    clip_with_rule,
    model_with_rule,
    rule_of,
    sampling_places,
    vae_with_rule,
)
from .sampling import sample, sampler_names, scheduler_names, sigma_nodes, with_shift
from .serving import (
    blocked,
    check_interrupt,
    http_routes,
    on_free_memory,
    progress,
    show_text,
    when_idle,
)
from .stock import node_module

__all__ = [
    "TILE",
    "Decoded",
    "DeviceSpeed",
    "FileToQuantize",
    "HostMachine",
    "KeptModel",
    "LazyFile",
    "LoadedModel",
    "LoraEffect",
    "MappedFile",
    "MemoryRule",
    "Patches",
    "PeakMemory",
    "Residency",
    "SamplingPlace",
    "SavePlace",
    "WeightCount",
    "apply_lora",
    "attach",
    "attached",
    "blocked",
    "check_interrupt",
    "clip_changes",
    "clip_with_patches",
    "clip_with_rule",
    "comfy_class",
    "count_weights",
    "decode",
    "describe",
    "diffusion_module",
    "empty_latent",
    "encode",
    "encode_image",
    "evictable_vram",
    "file_stamp",
    "files_of",
    "float32_beside_int8",
    "has_int8_format",
    "http_routes",
    "in_parts",
    "int4_format",
    "is_mapped",
    "is_out_of_memory",
    "joined",
    "load_checkpoint",
    "load_diffusion_model",
    "load_text_encoders",
    "load_vae",
    "machine_key",
    "measure_speed",
    "metadata_enabled",
    "model_folders",
    "model_names",
    "model_with_rule",
    "node_module",
    "on_free_memory",
    "other_changes",
    "pack_int4",
    "patch_count",
    "patches_of",
    "progress",
    "quantized_formats",
    "residency",
    "rule_of",
    "sample",
    "sampler_names",
    "sampling_places",
    "save_place",
    "scheduler_names",
    "show_text",
    "sigma_nodes",
    "text_encoder_module",
    "to_pixels",
    "unload_others",
    "upscale_image",
    "upscale_latent",
    "user_directory",
    "vae_dtype",
    "vae_module",
    "vae_with_rule",
    "weight_dtypes",
    "when_idle",
    "with_clip_skip",
    "with_guidance",
    "with_patches",
    "with_shift",
]
