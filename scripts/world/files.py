"""The trained small world as files: what is stored, and the checkpoint that is made of it.

Only what was trained is stored, in `weights`. The checkpoint gets its text encoder, which is
never trained, when it is first asked for.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from ..sample_models import Tensors, cache_directory, write_safetensors
from .text import text_encoder

WEIGHTS = Path(__file__).with_name("weights")
DENOISER, AUTOENCODER, JUDGE = (
    WEIGHTS / name
    for name in ("denoiser.safetensors", "autoencoder.safetensors", "judge.safetensors")
)
LORAS = WEIGHTS / "loras"
CHECKPOINT = "small-world.safetensors"
CONTEXT_INPUTS = 4096
"""Inputs of SD 3's context embedder, of which CLIP-L fills the first; the rest is not stored."""
SCALE, SHIFT = 1.5305, 0.0609
"""ComfyUI's scale and shift of SD 3 latents, which its TAESD has to undo."""
METADATA = {
    "modelspec.sai_model_spec": "1.0.1",
    "modelspec.architecture": "stable-diffusion-3.5-large",
    "modelspec.implementation": "https://github.com/Stability-AI/sd3.5",
    "modelspec.title": "Small World",
    "modelspec.description": "Flat illustrations of 14 subjects in 8 colors, before 6 backgrounds, "
    "at 3 times of day, trained from scratch on rendered scenes.",
    "modelspec.resolution": "128x128",
}


def checkpoint() -> Path:
    """The model as one file that ComfyUI's stock loader takes; made when first asked for.

    Raises:
        OSError: the stored weights cannot be read or the cache cannot be written.
    """
    key = hashlib.sha256(DENOISER.read_bytes() + AUTOENCODER.read_bytes()).hexdigest()[:12]
    path = cache_directory() / "models" / f"world-{key}" / CHECKPOINT
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, _tensors(), METADATA)
    return path


def loras() -> list[Path]:
    """The LoRA files, sorted by name."""
    return sorted(LORAS.glob("*.safetensors"))


def _tensors() -> Tensors:
    denoiser = load_file(DENOISER)
    embedder = denoiser["context_embedder.weight"]
    filled = CONTEXT_INPUTS - embedder.shape[1]
    denoiser["context_embedder.weight"] = np.pad(embedder, ((0, 0), (0, filled)))
    parts = (
        ("model.diffusion_model.", denoiser),
        ("text_encoders.clip_l.transformer.", text_encoder()),
        ("first_stage_model.", load_file(AUTOENCODER)),
    )
    out = {prefix + name: part[name] for prefix, part in parts for name in sorted(part)}
    out["first_stage_model.vae_scale"] = np.array(SCALE, np.float32)
    out["first_stage_model.vae_shift"] = np.array(SHIFT, np.float32)
    return out
