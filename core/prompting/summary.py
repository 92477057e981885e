"""An analysis in a few lines for people."""

from __future__ import annotations

from itertools import groupby

from ..plan import PromptAnalysis


def summarize(analysis: PromptAnalysis) -> str:
    """What was found in a prompt: intent, complexity, concepts by category, mood, notices."""
    intent = analysis.intent
    lines = [
        f"{intent.style} / {intent.content} / {intent.quality}, confidence "
        f"{intent.confidence:.2f}; complexity {analysis.complexity:.2f} "
        f"({analysis.complexity_band})."
    ]
    if analysis.language_model:
        lines.append(f"Read by {analysis.language_model} in Ollama.")
    by_category = sorted(analysis.concepts, key=lambda concept: concept.category)
    for category, concepts in groupby(by_category, key=lambda concept: concept.category):
        lines.append(f"{category}: {', '.join(concept.text for concept in concepts)}")
    if analysis.mood:
        lines.append(f"mood: {', '.join(analysis.mood)}")
    if analysis.lora_tags:
        tags = (f"{tag.name} at {tag.model_strength:g}" for tag in analysis.lora_tags)
        lines.append(f"your LoRA tags: {', '.join(tags)}")
    lines += [notice.message for notice in analysis.notices]
    return "\n".join(lines)
