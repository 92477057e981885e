"""The generated models and LoRAs are the same everywhere, and valid."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from intelligent_generation.scripts import sample_library, sample_models
from intelligent_generation.scripts.sample_models import Tensors, random_fill, write_safetensors
from safetensors import SafetensorError, safe_open

SMALL = ("sd15", "sd15-diffusers", "sd15-peft", "sd15-locon")


def digest(tensors: Tensors) -> str:
    total = hashlib.sha256()
    for name, tensor in tensors.items():
        total.update(f"{name} {tensor.dtype.name} {tensor.shape}".encode())
        total.update(tensor.tobytes())
    return total.hexdigest()[:16]


EXPECTED = {
    "unet": "d861015167bb7863",
    "taesd": "e8a135f330525d0a",
    "sd3": "6c1bdb5570ab4d53",
    "clip": "cb1c06e3ea5e95ef",
}
"""Written down once. When they change on purpose, raise `sample_models.REVISION`."""


def test_models_have_the_same_bytes_everywhere():
    made = {
        "unet": digest(sample_models.sd15_unet()),
        "taesd": digest(sample_models.taesd(2)),
        "sd3": digest(sample_models.sd3_transformer()),
        "clip": hashlib.sha256(random_fill(1)(64, 768, std=0.02).tobytes()).hexdigest()[:16],
    }
    assert made == EXPECTED


def test_random_tensors_have_the_spread_asked_for():
    sample = random_fill(5)(200, 500, std=0.25)
    assert sample.dtype == np.float32
    assert abs(sample.mean()) < 0.002
    assert abs(sample.std() - 0.25) < 0.002
    assert abs(random_fill(5)(200, 400).std() - 0.05) < 0.001
    assert not np.array_equal(random_fill(6)(200, 500, std=0.25), sample)


def test_unet_has_the_parameters_that_detection_forces():
    unet = sample_models.sd15_unet()
    assert sum(tensor.size for tensor in unet.values()) == 18_733_124
    assert unet["input_blocks.0.0.weight"].shape == (320, 4, 3, 3)
    assert unet["input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"].shape == (320, 768)
    assert not any(name.startswith("middle_block") for name in unet)


def test_file_is_read_back_by_the_safetensors_package(tmp_path: Path):
    tensors = {
        "a": np.arange(6, dtype=np.float16).reshape(2, 3),
        "scalar": np.array(4, np.float16),
        "ü": np.ones((1, 2), np.float32),
    }
    path = tmp_path / "t.safetensors"
    write_safetensors(path, tensors, {"title": "Türkis", "b": "2", "a": "1"})
    with safe_open(path, "np") as file:
        assert file.metadata() == {"title": "Türkis", "b": "2", "a": "1"}
        assert set(file.keys()) == set(tensors)
        for name, tensor in tensors.items():
            read = file.get_tensor(name)
            assert read.dtype == tensor.dtype
            assert np.array_equal(read, tensor)
    first = path.read_bytes()
    write_safetensors(path, tensors, {"title": "Türkis", "b": "2", "a": "1"})
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "t.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(KeyError):
        write_safetensors(path, {"a": np.zeros(2, np.complex64)}, {})
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    files = sample_library.write_library(tmp_path_factory.mktemp("loras"))
    return {row["name"]: file for row, file in zip(sample_library.rows(), files, strict=True)}


def test_library_has_what_the_demo_needs():
    kinds = [row["tensors"] for row in sample_library.rows()]
    assert sum(kind in SMALL for kind in kinds) >= 12
    assert {"sdxl", "flux", "sd15-mid"} <= set(kinds)
    headers = {header for row in sample_library.rows() for header in row["headers"]}
    assert headers == {"kohya", "modelspec", "hf"}


@pytest.mark.parametrize("row", sample_library.rows(), ids=lambda row: row["name"])
def test_every_lora_is_a_valid_file_with_a_consistent_header(
    library: dict[str, Path], row: dict[str, Any]
):
    path = library[row["name"]]
    raw = path.read_bytes()
    payload = raw[8 + int.from_bytes(raw[:8], "little") :]
    with safe_open(path, "np") as file:
        metadata = file.metadata()
        for name in file.keys():  # noqa: SIM118 - not a dict
            tensor = file.get_tensor(name)
            assert np.isfinite(tensor).all()
            if name.endswith(("lora_down.weight", "lora_A.weight", "lora.down.weight")):
                assert tensor.shape[0] == sample_library.RANK
    payload_hash = hashlib.sha256(payload).hexdigest()
    if "kohya" in row["headers"]:
        assert metadata["sshs_model_hash"] == payload_hash
        (folder,) = json.loads(metadata["ss_dataset_dirs"]).items()
        (frequency,) = json.loads(metadata["ss_tag_frequency"]).items()
        assert folder[0] == frequency[0]
        assert 0 < max(frequency[1].values()) <= folder[1]["img_count"]
    if "modelspec" in row["headers"]:
        assert metadata["modelspec.hash_sha256"] == f"0x{payload_hash}"
        assert metadata["modelspec.architecture"].endswith("/lora")
    if row["headers"] == ["hf"]:
        assert metadata == {"format": "pt"}


def test_library_is_the_same_again_and_keeps_files(library: dict[str, Path], tmp_path: Path):
    row = sample_library.rows()[0]
    again = sample_library.write_lora(row, tmp_path)
    assert again.read_bytes() == library[row["name"]].read_bytes()
    again.write_bytes(b"changed by a person")
    sample_library.write_lora(row, tmp_path)
    assert again.read_bytes() == b"changed by a person"


def test_damaged_files_are_damaged(tmp_path: Path):
    truncated = sample_library.write_truncated_lora(tmp_path / "half.safetensors")
    assert truncated.name == "half.safetensors"
    page = sample_library.write_login_page(tmp_path / "page.safetensors")
    for path in (truncated, page):
        with pytest.raises(SafetensorError), safe_open(path, "np"):
            pass
