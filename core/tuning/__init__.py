"""PromptAnalysis + ModelInfo -> SamplingPlan, from a sourced table of model families."""

from __future__ import annotations

from .optimizer import SamplingOverrides, optimize

__all__ = ["SamplingOverrides", "optimize"]
