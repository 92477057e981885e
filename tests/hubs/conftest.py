"""The hubs' stand-ins as fixtures."""

from __future__ import annotations

from intelligent_generation.tests.services.fixtures import (  # noqa: F401
    civitai_server,
    fake_time,
    huggingface_server,
)
