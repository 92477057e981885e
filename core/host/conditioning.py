"""Text to CONDITIONING."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import node_helpers

from .stock import stock_nodes


def with_clip_skip(clip: Any, clip_skip: int) -> Any:
    """CLIP that stops `clip_skip` layers from the end, as CLIPSetLastLayer does (1 = the last)."""
    return stock_nodes.CLIPSetLastLayer().set_last_layer(clip, -clip_skip)[0]


def encode(clip: Any, segments: Sequence[str]) -> Any:
    """CONDITIONING for the text: each segment encoded as CLIPTextEncode does, then concatenated
    as ConditioningConcat does."""
    first, *others = (stock_nodes.CLIPTextEncode().encode(clip, text)[0] for text in segments)
    for conditioning in others:
        first = stock_nodes.ConditioningConcat().concat(first, conditioning)[0]
    return first


def with_guidance(conditioning: Any, guidance: float) -> Any:
    """CONDITIONING with embedded guidance, as FluxGuidance sets it."""
    return node_helpers.conditioning_set_values(conditioning, {"guidance": guidance})
