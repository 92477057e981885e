"""ComfyUI's door to the pack. Imports nothing heavy: ComfyUI's start must not slow down."""

from __future__ import annotations

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The extension ComfyUI loads. ComfyUI calls it once, at start."""
    from .nodes import IntelligentGenerationExtension

    return IntelligentGenerationExtension()
