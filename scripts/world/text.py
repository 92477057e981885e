"""The small world's text encoder: CLIP-L's shape with seeded, frozen weights.

Each token keeps a random vector of its own and the layers pass it on unchanged, so a prompt is
the set of its words; what they mean is learned by the denoiser's cross-attention. Nothing of it
needs storing: the weights come from a generator with a guaranteed stream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..sample_models import CONTEXT, Tensors, random_fill

SEED = 20_261
TOKENS = 77
"""CLIP's context length; shorter prompts are filled up with the end token."""
START, END = 49406, 49407
LAYERS = 12


class Prompts(NamedTuple):
    """Encoded prompts, cut to their longest.

    All padding tokens are alike, so the last column stands for those that were cut: `bias`, added
    to the attention's logits, gives it their weight. This equals attention to all 77 tokens.
    """

    context: Tensor
    """(batch, tokens, 768)"""
    bias: Tensor
    """(tokens,)"""


@cache
def embeddings() -> np.ndarray:
    """The token embeddings, float16 (49408, 768)."""
    return random_fill(SEED)(END + 1, CONTEXT, std=1.0).astype(np.float16)


def text_encoder() -> Tensors:
    """The whole text encoder as ComfyUI loads it, float16, without a key prefix."""
    out: Tensors = {
        "text_model.embeddings.token_embedding.weight": embeddings(),
        "text_model.embeddings.position_embedding.weight": _zeros(TOKENS, CONTEXT),
    }
    for number in range(LAYERS):
        layer = f"text_model.encoder.layers.{number}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            out[f"{layer}.self_attn.{name}.weight"] = _zeros(CONTEXT, CONTEXT)
            out[f"{layer}.self_attn.{name}.bias"] = _zeros(CONTEXT)
        out[f"{layer}.mlp.fc1.weight"] = _zeros(4 * CONTEXT, CONTEXT)
        out[f"{layer}.mlp.fc1.bias"] = _zeros(4 * CONTEXT)
        out[f"{layer}.mlp.fc2.weight"] = _zeros(CONTEXT, 4 * CONTEXT)
        out[f"{layer}.mlp.fc2.bias"] = _zeros(CONTEXT)
        for name in ("layer_norm1", "layer_norm2"):
            out[f"{layer}.{name}.weight"] = np.ones(CONTEXT, np.float16)
            out[f"{layer}.{name}.bias"] = _zeros(CONTEXT)
    out["text_model.final_layer_norm.weight"] = np.ones(CONTEXT, np.float16)
    out["text_model.final_layer_norm.bias"] = _zeros(CONTEXT)
    return out


class Encoder:
    """Encodes prompts without emphasis, as ComfyUI does with `text_encoder()`.

    Args:
        tokenizer: the folder of ComfyUI's CLIP tokenizer, `comfy/sd1_tokenizer`.
        device: where the encoded prompts go.
    """

    def __init__(self, tokenizer: Path, device: torch.device) -> None:
        from transformers import CLIPTokenizer

        self._tokenizer = CLIPTokenizer.from_pretrained(tokenizer)
        self._table = torch.from_numpy(embeddings()).to(device).float()
        self._known: dict[str, list[int]] = {}

    def __call__(self, texts: Sequence[str]) -> Prompts:
        rows = [self._tokens(text) for text in texts]
        longest = min(TOKENS, max(len(row) for row in rows) + 1)
        padded = [(row + [END] * longest)[:longest] for row in rows]
        tokens = torch.tensor(padded, device=self._table.device)
        bias = torch.zeros(longest, device=self._table.device)
        bias[-1] = math.log(TOKENS - longest + 1)
        return Prompts(self._table[tokens], bias)

    def _tokens(self, text: str) -> list[int]:
        # Words are tokenized one by one by CLIP, so each is looked up once.
        out = [START]
        for word in text.lower().replace(",", " , ").split():
            if word not in self._known:
                self._known[word] = self._tokenizer.encode(word, add_special_tokens=False)
            out += self._known[word]
        return [*out[: TOKENS - 1], END]


def _zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float16)
