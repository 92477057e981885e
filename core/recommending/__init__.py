"""Which LoRAs fit a prompt: PromptAnalysis and LoraLibrary in, LoraPlan out.

Lexical: words and phrases of the prompt against names, trigger words, tags and descriptions,
weighed by rarity, combined by weights.json, then assigned so that no two do the same or go
against each other. Pure and deterministic; no files are read but this package's own tables.
"""

from __future__ import annotations

from .checkpoints import LoraSupport, MemoryLimits, RatedModel, choose_checkpoint
from .recommender import RecommendSettings, UserLora, recommend
from .remote import MAX_QUESTIONS, Offer, Question, questions, with_offers
from .stack import NOT_FETCHED, to_stack, with_user_loras, without_pending
from .strengths import default_strength

__all__ = [
    "MAX_QUESTIONS",
    "NOT_FETCHED",
    "LoraSupport",
    "MemoryLimits",
    "Offer",
    "Question",
    "RatedModel",
    "RecommendSettings",
    "UserLora",
    "choose_checkpoint",
    "default_strength",
    "questions",
    "recommend",
    "to_stack",
    "with_offers",
    "with_user_loras",
    "without_pending",
]
