"""GenerationPlan -> latent and image. The same steps, by the same code, as the stock graph:
CheckpointLoaderSimple, LoraLoader, CLIPTextEncode, EmptyLatentImage, KSampler, VAEDecode; for a
second pass LatentUpscale or ImageScale, and another KSampler with the same seed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import host
from ..catalog import family
from ..errors import ModelFileError, PlanError, SettingError
from ..memory import place, read_free
from ..memory.recovery import Stage
from ..plan import FileRef, GenerationPlan, Timings
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
    tiled_decode: bool
    """Whether the image was decoded in tiles: as planned, or because ComfyUI fell back to it."""
    places: tuple[host.SamplingPlace, ...]
    """How the diffusion model was held, in each pass; none where no rule is at work."""


@dataclass
class Progress:
    """What is done of a run. A run that failed goes on from it: given to `run` once more, with
    the same plan but for its concessions, no stage that was complete is done again."""

    stage: Stage = "encode"
    """What is being done."""
    loras: AppliedLoras | None = None
    conditionings: tuple[Any, Any] | None = None
    sampled: dict[str, Any] | None = None
    refined: dict[str, Any] | None = None
    places: list[host.SamplingPlace] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def run(
    plan: GenerationPlan,
    model: Any,
    clip: Any,
    vae: Any,
    *,
    locate: Callable[[FileRef], FileRef],
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Sampled:
    """Make the plan's image with the given MODEL, CLIP and VAE, kept to its memory plan.

    Args:
        progress: of an earlier call that failed, to go on from; it is kept up to date.

    Raises:
        ModelFileError: CLIP or VAE is missing.
        LoraError: see `apply_loras`.
        PlanError: the plan has no text.
        SettingError: the host lacks the plan's sampler or scheduler or way of scaling up, the
            model takes no shift, or the memory plan cannot be kept.
    """
    _check(plan, clip, vae)
    done = progress or Progress()
    with host.PeakMemory(model, clip.patcher, getattr(vae, "patcher", None)) as peak:
        decoded, latent, loras, timings = _run(plan, model, clip, vae, locate, done, clock)
    return Sampled(
        decoded.image, latent, loras, timings, peak.bytes, decoded.tiled, tuple(done.places)
    )


def _run(
    plan: GenerationPlan,
    model: Any,
    clip: Any,
    vae: Any,
    locate: Callable[[FileRef], FileRef],
    done: Progress,
    clock: Callable[[], float],
) -> tuple[host.Decoded, dict[str, Any], AppliedLoras, Timings]:
    sampling = plan.sampling

    @contextmanager
    def timed(name: str, stage: Stage) -> Iterator[None]:
        done.stage = stage
        start = clock()
        yield
        done.seconds[name] = clock() - start

    if done.loras is None:
        with timed("loras", "encode"):
            done.loras = apply_loras(model, clip, plan.loras.loras, locate=locate)
    loras = done.loras
    if plan.memory is not None:
        free = read_free(host.HostMachine(), evictable=host.evictable_vram())
        model, patched, vae = place(plan.memory, loras.model, loras.clip, vae, free)
        loras = loras._replace(model=model, clip=patched)
    if done.conditionings is None:
        with timed("encode", "encode"):
            done.conditionings = _encode_both(plan, clip, loras.clip)
    positive, negative = done.conditionings
    shifted = loras.model
    if sampling.shift is not None:
        shifted = host.with_shift(loras.model, sampling.shift)
    at_once = plan.concessions.images_at_once or sampling.batch_size
    if done.sampled is None:
        with timed("sample", "sample"), host.sampling_places() as done.places:
            latent = host.empty_latent(sampling.width, sampling.height, sampling.batch_size, vae)
            done.sampled = host.joined(
                [
                    host.sample(
                        shifted,
                        positive,
                        negative,
                        part,
                        seed=plan.seed,
                        steps=sampling.steps,
                        cfg=sampling.cfg,
                        sampler=sampling.sampler,
                        scheduler=sampling.scheduler,
                        denoise=sampling.denoise,
                        sigmas=sampling.sigmas,
                        size=(sampling.width, sampling.height),
                    )
                    for part in host.in_parts(latent, at_once)
                ]
            )
    latent = done.sampled
    if sampling.second_pass is not None:
        if done.refined is None:
            with timed("refine", "refine"), host.sampling_places() as places:
                done.refined = _refine(plan, latent, shifted, positive, negative, vae, at_once)
            done.places += places
        latent = done.refined
    with timed("decode", "decode"):
        decoded = _decode(vae, latent, plan.concessions.tiled_decode, at_once)
    return decoded, latent, loras, Timings(**done.seconds)


def _encode_both(plan: GenerationPlan, clip: Any, patched: Any) -> tuple[Any, Any]:
    sampling = plan.sampling
    positive = _encode(clip, patched, plan.loras.segments, sampling.clip_skip)
    negative = _encode(clip, patched, plan.analysis.negative_segments, sampling.clip_skip)
    if sampling.guidance is not None:
        positive = host.with_guidance(positive, sampling.guidance)
    return positive, negative


def _refine(
    plan: GenerationPlan,
    latent: dict[str, Any],
    model: Any,
    positive: Any,
    negative: Any,
    vae: Any,
    at_once: int,
) -> dict[str, Any]:
    second = plan.sampling.second_pass
    assert second is not None
    if second.space == "latent":
        scaled = host.upscale_latent(latent, second.width, second.height, second.method)
    else:
        image = host.upscale_image(
            _decode(vae, latent, plan.concessions.tiled_decode, at_once).image,
            second.width,
            second.height,
            second.method,
        )
        scaled = host.encode_image(vae, image)
    return host.joined(
        [
            host.sample(
                model,
                positive,
                negative,
                part,
                seed=plan.seed,
                steps=second.steps,
                cfg=second.cfg,
                sampler=second.sampler,
                scheduler=second.scheduler,
                denoise=second.denoise,
            )
            for part in host.in_parts(scaled, at_once)
        ]
    )


def _decode(vae: Any, latent: dict[str, Any], tiled: bool, at_once: int) -> host.Decoded:
    parts = [host.decode(vae, part, tiled=tiled) for part in host.in_parts(latent, at_once)]
    if len(parts) == 1:
        return parts[0]
    import torch

    return host.Decoded(
        torch.cat([part.image for part in parts]), any(part.tiled for part in parts)
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
