"""Which LoRAs fit a prompt: PromptAnalysis and LoraLibrary in, LoraPlan out.

Lexical: words and phrases of the prompt against names, trigger words, tags and descriptions,
weighed by rarity, combined by weights.json, then assigned so that no two do the same or go
against each other. Pure and deterministic; no files are read but this package's own tables.
"""

from __future__ import annotations

from .recommender import RecommendSettings, UserLora, recommend
from .stack import to_stack, with_user_loras
from .strengths import default_strength

__all__ = [
    "RecommendSettings",
    "UserLora",
    "default_strength",
    "recommend",
    "to_stack",
    "with_user_loras",
]
