"""Model files for the catalog's tests: headers as trainers write them, data of zeros."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from intelligent_generation.core.catalog import Catalog, SafetensorsHeader, TensorInfo
from intelligent_generation.core.storage import Database

Shapes = Mapping[str, tuple[int, ...]]
Write = Callable[..., Path]


def _table(tensors: Shapes, metadata: Mapping[str, str]) -> tuple[dict[str, Any], int]:
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, shape in tensors.items():
        end = offset + 2 * math.prod(shape)
        table[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    return table, offset


@pytest.fixture
def write_model() -> Write:
    """Write a safetensors file; `tensors` gives shapes, `fill` the byte its weights are made of."""

    def write(
        path: Path, tensors: Shapes, metadata: Mapping[str, str] | None = None, *, fill: int = 0
    ) -> Path:
        table, size = _table(tensors, metadata or {})
        text = json.dumps(table).encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes([fill]) * size)
        return path

    return write


@pytest.fixture
def header_of() -> Callable[..., SafetensorsHeader]:
    """A header with these tensor shapes and metadata, without a file."""

    def header(tensors: Shapes, metadata: Mapping[str, str] | None = None) -> SafetensorsHeader:
        return SafetensorsHeader(
            metadata or {},
            {
                name: TensorInfo("F16", shape, 2 * math.prod(shape))
                for name, shape in tensors.items()
            },
        )

    return header


@pytest.fixture
def kohya_lora() -> Callable[..., dict[str, tuple[int, ...]]]:
    """The tensor shapes of a small kohya LoRA for a UNet with this cross-attention width."""

    def tensors(context: int = 768, *, rank: int = 4) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for projection, inputs in (("to_k", context), ("to_q", 320)):
            module = f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_{projection}"
            shapes[f"{module}.alpha"] = ()
            shapes[f"{module}.lora_down.weight"] = (rank, inputs)
            shapes[f"{module}.lora_up.weight"] = (320, rank)
        return shapes

    return tensors


@pytest.fixture
def database(tmp_path: Path):
    database = Database.open(f"sqlite:///{tmp_path / 'user' / 'catalog.db'}")
    yield database
    database.close()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """ComfyUI's models folder, empty."""
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def open_catalog(database: Database, models: Path) -> Callable[..., Catalog]:
    """A catalog as a new process would open it, over models/<folder> or other directories."""

    def open_(*directories: Path) -> Catalog:
        return Catalog(database, lambda folder: [*directories] or [models / folder])

    return open_
