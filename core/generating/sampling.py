"""GenerationPlan -> latent and image. The same steps, by the same code, as the stock graph:
CheckpointLoaderSimple, LoraLoader, CLIPTextEncode, EmptyLatentImage, KSampler, VAEDecode; for a
second pass LatentUpscale or ImageScale, and another KSampler with the same seed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import host
from ..catalog import family
from ..errors import ModelFileError, PlanError, SettingError
from ..plan import FileRef, GenerationPlan, SecondPass, Timings
from .applying import AppliedLoras, apply_loras

if TYPE_CHECKING:
    import torch

ENCODINGS_KEPT = 4
"""Encoded prompts kept with a CLIP, so that a new seed does not load the text encoder again."""


class Sampled(NamedTuple):
    """What sampling a plan gave."""

    image: torch.Tensor
    """IMAGE [batch, height, width, 3], float, in [0, 1]."""
    latent: dict[str, Any]
    """LATENT as KSampler returns it."""
    loras: AppliedLoras
    timings: Timings
    memory_bytes: int | None
    """Peak on the device that samples; None where it cannot be read."""


def run(
    plan: GenerationPlan,
    model: Any,
    clip: Any,
    vae: Any,
    *,
    locate: Callable[[FileRef], FileRef],
    clock: Callable[[], float] = time.perf_counter,
) -> Sampled:
    """Make the plan's image with the given MODEL, CLIP and VAE.

    Raises:
        ModelFileError: CLIP or VAE is missing.
        LoraError: see `apply_loras`.
        PlanError: the plan has no text.
        SettingError: the host lacks the plan's sampler or scheduler or way of scaling up, or the
            model takes no shift.
    """
    _check(plan, clip, vae)
    with host.PeakMemory(model, clip.patcher, getattr(vae, "patcher", None)) as peak:
        image, latent, loras, timings = _run(plan, model, clip, vae, locate, clock)
    return Sampled(image, latent, loras, timings, peak.bytes)


def _run(
    plan: GenerationPlan,
    model: Any,
    clip: Any,
    vae: Any,
    locate: Callable[[FileRef], FileRef],
    clock: Callable[[], float],
) -> tuple[torch.Tensor, dict[str, Any], AppliedLoras, Timings]:
    sampling = plan.sampling
    start = clock()
    loras = apply_loras(model, clip, plan.loras.loras, locate=locate)
    after_loras = clock()
    positive = _encode(clip, loras.clip, plan.loras.segments, sampling.clip_skip)
    negative = _encode(clip, loras.clip, plan.analysis.negative_segments, sampling.clip_skip)
    if sampling.guidance is not None:
        positive = host.with_guidance(positive, sampling.guidance)
    after_encode = clock()
    shifted = loras.model
    if sampling.shift is not None:
        shifted = host.with_shift(loras.model, sampling.shift)
    latent = host.sample(
        shifted,
        positive,
        negative,
        host.empty_latent(sampling.width, sampling.height, sampling.batch_size, vae),
        seed=plan.seed,
        steps=sampling.steps,
        cfg=sampling.cfg,
        sampler=sampling.sampler,
        scheduler=sampling.scheduler,
        denoise=sampling.denoise,
        sigmas=sampling.sigmas,
        size=(sampling.width, sampling.height),
    )
    after_sample = clock()
    if sampling.second_pass is not None:
        latent = _refine(
            sampling.second_pass, latent, shifted, positive, negative, vae, seed=plan.seed
        )
    after_refine = clock()
    image = host.decode(vae, latent)
    timings = Timings(
        loras=after_loras - start,
        encode=after_encode - after_loras,
        sample=after_sample - after_encode,
        refine=after_refine - after_sample if sampling.second_pass else 0.0,
        decode=clock() - after_refine,
    )
    return image, latent, loras, timings


def _refine(
    second: SecondPass,
    latent: dict[str, Any],
    model: Any,
    positive: Any,
    negative: Any,
    vae: Any,
    *,
    seed: int,
) -> dict[str, Any]:
    if second.space == "latent":
        scaled = host.upscale_latent(latent, second.width, second.height, second.method)
    else:
        image = host.upscale_image(
            host.decode(vae, latent), second.width, second.height, second.method
        )
        scaled = host.encode_image(vae, image)
    return host.sample(
        model,
        positive,
        negative,
        scaled,
        seed=seed,
        steps=second.steps,
        cfg=second.cfg,
        sampler=second.sampler,
        scheduler=second.scheduler,
        denoise=second.denoise,
    )


def _check(plan: GenerationPlan, clip: Any, vae: Any) -> None:
    sampling = plan.sampling
    if not plan.loras.segments or not plan.analysis.negative_segments:
        raise PlanError(
            "The plan has no text to encode: loras.segments and analysis.negative_segments need "
            "one text each at least, which may be empty."
        )
    if clip is None:
        model = family(plan.model.family)
        needed = f" {model.name} reads {', '.join(model.text_encoders)}."
        raise ModelFileError(
            "CLIP is missing: the model file holds no text encoder. Choose one in HubModelLoader's "
            f"text_encoder_1 or wire a CLIP loader in.{needed if model.text_encoders else ''}"
        )
    if vae is None:
        raise ModelFileError(
            "VAE is missing: the model file holds none. Choose one in HubModelLoader's vae or wire "
            "a VAE loader in."
        )
    second = sampling.second_pass or sampling
    for what, value, known in (
        ("sampler", sampling.sampler, host.sampler_names()),
        ("scheduler", sampling.scheduler, host.scheduler_names()),
        ("sampler", second.sampler, host.sampler_names()),
        ("scheduler", second.scheduler, host.scheduler_names()),
        ("scheduler node", sampling.sigmas, (None, *host.sigma_nodes())),
    ):
        if value not in known:
            names = ", ".join(filter(None, known))
            raise SettingError(f"This ComfyUI has no {what} called {value!r}. It has: {names}.")


def _encode(clip: Any, patched: Any, segments: tuple[str, ...], clip_skip: int | None) -> Any:
    # Kept on the CLIP that came in, as in `apply_loras`: the stock graph caches its texts too.
    kept: dict[Any, Any] = clip.__dict__.setdefault("_intelligent_generation_encodings", {})
    key = (patched.patcher.patches_uuid, segments, clip_skip)
    if key not in kept:
        source = patched if clip_skip is None else host.with_clip_skip(patched, clip_skip)
        encoding = host.encode(source, segments)
        while len(kept) >= ENCODINGS_KEPT:
            del kept[next(iter(kept))]
        kept[key] = encoding
    return kept[key]
