"""What a plan gives up when it is out of memory: between the plan and the ladder. Pure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from ..plan import Concessions, GenerationPlan, MemoryPlan, Notice
from .recovery import Setup, Spare, Stage, Step

_STAGES = {
    "encode": "while the text was encoded",
    "sample": "while sampling",
    "refine": "in the second pass",
    "decode": "while the image was decoded",
}


def setup_of(plan: GenerationPlan) -> Setup:
    """How a plan is carried out, as far as the ladder changes it."""
    at_once = plan.concessions.images_at_once or plan.sampling.batch_size
    return Setup(
        strategy=plan.memory.strategy if plan.memory else "AUTO",
        int8=plan.model.weight_dtype in ("int8", "int4"),
        tiled_decode=plan.concessions.tiled_decode,
        images_at_once=min(at_once, plan.sampling.batch_size),
    )


def with_setup(
    plan: GenerationPlan, setup: Setup, policy: Callable[[], MemoryPlan]
) -> GenerationPlan:
    """The plan carried out otherwise. What int8 changes is for who loads the model.

    Args:
        policy: the memory plan for one that has none, where the strategy is another.
    """
    whole = setup.images_at_once >= plan.sampling.batch_size
    conceded = Concessions(
        tiled_decode=setup.tiled_decode,
        images_at_once=None if whole else setup.images_at_once,
    )
    memory = plan.memory
    if setup.strategy != (memory.strategy if memory else "AUTO"):
        memory = memory or policy()
        memory = memory.model_copy(update={"strategy": setup.strategy})
    return plan.model_copy(update={"concessions": conceded, "memory": memory})


def as_it_worked(asked: Setup, worked: Setup, spare: Spare) -> Setup:
    """What was asked for, with what had to be given up for it before and still can be."""
    return asked._replace(
        strategy=worked.strategy if worked.strategy in spare.cheaper else asked.strategy,
        int8=asked.int8 or (worked.int8 and spare.int8),
        tiled_decode=worked.tiled_decode,
        images_at_once=min(worked.images_at_once, asked.images_at_once),
    )


def can_be_int8(plan: GenerationPlan) -> bool:
    """Whether the pack loaded the model in full, by its own choice, and nobody changed it."""
    part = plan.model.part("diffusion_model")
    return (
        (plan.memory is None or plan.memory.weight_dtype == "auto")
        and plan.model.weight_dtype == "auto"
        and not plan.model.carried_patches
        and part is not None
        and len(part.files) == 1
        and part.dtype in ("float16", "bfloat16", "float32")
    )


def largest_side(plan: GenerationPlan) -> int:
    """Of the images that are sampled, in pixels."""
    passes = (plan.sampling, plan.sampling.second_pass)
    return max(max(one.width, one.height) for one in passes if one is not None)


def ran_out_before(at: datetime) -> Notice:
    """What to say of a run that begins as it worked at an earlier time."""
    message = (
        f"This size and batch ran out of memory on {at:%Y-%m-%d}, so the image is made "
        "as it worked then. DELETE /intelligent_generation/memory/fallbacks forgets that."
    )
    return Notice(level="info", code="ran_out_of_memory_before", message=message)


def conceded(stage: Stage, step: Step) -> Notice:
    """What to say of a step down, by where the run was out of memory."""
    message = f"Memory ran out {_STAGES[stage]}, so {step.done}. {step.changes}"
    return Notice(level="warning", code=f"out_of_memory_{step.rung}", message=message)


def tiled_by_comfyui() -> Notice:
    """What to say when ComfyUI's own fallback decoded in tiles."""
    message = (
        "Memory ran out while the image was decoded, so ComfyUI decoded it in tiles of 512 pixels. "
        "Fine detail and tone may differ slightly between tiles."
    )
    return Notice(level="warning", code="out_of_memory_tiled_decode", message=message)
