"""The socket types of the pack, one for each object that flows (core/plan.py)."""

from __future__ import annotations

from comfy_api.latest import io

CATEGORY = "intelligent generation"

PromptAnalysisSocket = io.Custom("IG_PROMPT_ANALYSIS")
ModelInfoSocket = io.Custom("IG_MODEL_INFO")
LoraPlanSocket = io.Custom("IG_LORA_PLAN")
SamplingPlanSocket = io.Custom("IG_SAMPLING_PLAN")
MemoryPlanSocket = io.Custom("IG_MEMORY_PLAN")
GenerationSocket = io.Custom("IG_GENERATION")
LoraStackSocket = io.Custom("LORA_STACK")
"""As other packs use it: a list of (LoRA name, model strength, clip strength)."""


def model_info_input(*, optional: bool = False) -> io.Input:
    """An input for ModelInfo that takes a plain MODEL as well."""
    return io.MultiType.Input(
        "model_info",
        types=[ModelInfoSocket, io.Model],
        optional=optional,
        tooltip="MODEL_INFO from HubModelLoader, or any MODEL: its family is read off it.",
    )
