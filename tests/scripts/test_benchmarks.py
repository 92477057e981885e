"""What bench.py lists."""

from __future__ import annotations

import importlib

import pytest
from intelligent_generation.benchmarks.__main__ import names


@pytest.mark.parametrize("name", names())
def test_every_benchmark_that_is_listed_can_be_run(name: str) -> None:
    module = importlib.import_module(f"intelligent_generation.benchmarks.{name}")
    assert callable(module.main)
