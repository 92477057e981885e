"""PNG bytes with text in them, as ComfyUI's SaveImage makes them, and the text back."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image, PngImagePlugin

from ..errors import PlanError

RECORD_KEY = "intelligent_generation"
"""Keyword of the text chunk that holds `Generation.to_json()`. Beside it stand ComfyUI's own
`prompt` and `workflow`."""

_COMPRESS_LEVEL = 4
"""As ComfyUI's SaveImage: higher levels take several times as long for a few per cent."""


def encode_png(image: np.ndarray, text: Mapping[str, str]) -> bytes:
    """PNG bytes of an image and its text chunks, in order.

    Args:
        image: uint8, height x width x 3 (RGB) or 4 (RGBA).
        text: keyword (Latin-1, 1 to 79 characters) to any text. What fits Latin-1 becomes a
            tEXt chunk, other text an iTXt chunk in UTF-8 (PNG specification, section 11.3.4).
    """
    chunks = PngImagePlugin.PngInfo()
    for key, value in text.items():
        chunks.add_text(key, value)
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", pnginfo=chunks, compress_level=_COMPRESS_LEVEL)
    return out.getvalue()


def read_png_text(data: bytes) -> dict[str, str]:
    """Text chunks of a PNG by keyword.

    Raises:
        PlanError: not a PNG, or a damaged one.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            assert isinstance(image, PngImagePlugin.PngImageFile)
            return {key: str(value) for key, value in image.text.items()}
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PlanError(
            f"This is not a readable PNG: {error}. Take the file as it was saved: programs and "
            "sites that convert or shrink images remove what is stored in them."
        ) from error
