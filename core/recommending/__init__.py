"""Which LoRAs fit a prompt: PromptAnalysis and LoraLibrary in, LoraPlan out.

Words, spelling and meaning of the prompt against names, trigger words, tags and descriptions,
combined by ranking.json, then assigned so that no two do the same or go against each other. Pure
and deterministic but for `meaning`, which keeps the vectors; no other files are read than this
package's own tables.
"""

from __future__ import annotations

from .approving import approved_plan
from .checkpoints import LoraSupport, MemoryLimits, RatedModel, choose_checkpoint
from .history import RatedLora, history_of
from .meaning import Meaning, MeaningStatus, meaning_notice
from .recommender import RecommendSettings, UserLora, recommend
from .remote import MAX_QUESTIONS, Offer, Question, questions, with_offers
from .stack import (
    NOT_FETCHED,
    made_for,
    once_each,
    to_stack,
    with_user_loras,
    without_pending,
)
from .strengths import default_strength

__all__ = [
    "MAX_QUESTIONS",
    "NOT_FETCHED",
    "LoraSupport",
    "Meaning",
    "MeaningStatus",
    "MemoryLimits",
    "Offer",
    "Question",
    "RatedLora",
    "RatedModel",
    "RecommendSettings",
    "UserLora",
    "approved_plan",
    "choose_checkpoint",
    "default_strength",
    "history_of",
    "made_for",
    "meaning_notice",
    "once_each",
    "questions",
    "recommend",
    "to_stack",
    "with_offers",
    "with_user_loras",
    "without_pending",
]
