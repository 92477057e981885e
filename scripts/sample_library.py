"""A sample LoRA library: small, valid files with the headers that training tools write.

Most of them fit the small SD 1.5 checkpoint of sample_models.py and change its images; two are
for other base models (SDXL and Flux), and one was trained on layers that the small checkpoint
does not have, so that none of its keys match. What they are is data, in sample_library.json.
Weights are seeded: a file has the same bytes on every machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .sample_models import CONTEXT, WIDTH, Fill, Tensors, random_fill, write_safetensors

RANK = 4
CHECKPOINTS = {
    "sd15": ("sd_v1", "stable-diffusion-v1/lora", "v1-5-pruned-emaonly.safetensors", 512),
    "sdxl": (
        "sdxl_base_v1-0",
        "stable-diffusion-xl-v1-base/lora",
        "sd_xl_base_1.0.safetensors",
        1024,
    ),
    "flux": ("flux1", "flux-1-dev/lora", "flux1-dev.safetensors", 1024),
}
"""By base model: kohya's ss_base_model_version, modelspec's architecture, the file trained on,
and the training resolution in pixels."""


class Layer(NamedTuple):
    """A weight that a LoRA patches."""

    path: str
    """Its module path in diffusers or the original code, with dots."""
    inputs: int
    outputs: int
    kernel: int = 0
    """Side of a convolution's kernel; 0 for a linear layer."""


def rows() -> list[dict[str, Any]]:
    """What sample_library.json says of each LoRA."""
    text = Path(__file__).with_name("sample_library.json").read_text(encoding="utf-8")
    return json.loads(text)["loras"]


def write_library(folder: Path) -> list[Path]:
    """Write every LoRA of the library below `folder` and give the files, in the data's order.

    Files that are there already are kept.
    """
    return [write_lora(row, folder) for row in rows()]


def write_other_families(folder: Path) -> list[Path]:
    """Write the LoRAs of the library that are for SDXL and Flux, as `write_library` does."""
    others = [row for row in rows() if not row["tensors"].startswith("sd15")]
    return [write_lora(row, folder) for row in others]


def write_lora(row: dict[str, Any], folder: Path) -> Path:
    """Write one LoRA of `rows()`, at `<folder>/<name>.safetensors`."""
    path = folder / f"{row['name']}.safetensors"
    if not path.exists():
        tensors = lora_tensors(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, tensors, lora_metadata(row, tensors))
    return path


def write_truncated_lora(path: Path) -> Path:
    """Write a LoRA that ends in the middle of its tensors, as an interrupted download does."""
    whole = write_lora(rows()[0] | {"name": path.stem}, path.parent)
    with whole.open("r+b") as file:
        file.truncate(whole.stat().st_size // 2)
    return whole


def write_login_page(path: Path) -> Path:
    """Write an HTML page under the name of a LoRA, as a refused download leaves it."""
    path.write_text(
        "<!DOCTYPE html><html><head><title>Sign in</title></head>"
        "<body><p>You need to be signed in to download this.</p></body></html>\n",
        encoding="utf-8",
    )
    return path


# --------------------------------------------------------------------------- tensors


def lora_tensors(row: dict[str, Any]) -> Tensors:
    """The tensors of one LoRA of `rows()`, float16, under the names its training tool uses."""
    seed = int.from_bytes(hashlib.sha256(row["name"].encode()).digest()[:4], "big")
    fill = random_fill(seed)
    out: Tensors = {}
    kind = row["tensors"]
    if kind == "sd15-diffusers":
        for layer in _attention_layers():
            name = f"unet.{layer.path}".replace(".to_", ".processor.to_").removesuffix(".0")
            _put(out, layer, fill, down=f"{name}_lora.down", up=f"{name}_lora.up")
        for layer in _clip_layers("text_encoder.text_model.encoder.layers"):
            name = f"{layer.path}.lora_linear_layer"
            _put(out, layer, fill, down=f"{name}.down", up=f"{name}.up")
        return out
    if kind == "sd15-peft":
        for layer in _attention_layers(original_names=True):
            name = f"diffusion_model.{layer.path}"
            _put(out, layer, fill, down=f"{name}.lora_A", up=f"{name}.lora_B")
        return out
    for prefix, layer in _kohya_layers(kind, text_encoder=row["text_encoder"]):
        name = f"{prefix}_{layer.path.replace('.', '_')}"
        _put(out, layer, fill, down=f"{name}.lora_down", up=f"{name}.lora_up")
        out[f"{name}.alpha"] = np.array(RANK, np.float16)
    return out


def _put(out: Tensors, layer: Layer, fill: Fill, *, down: str, up: str) -> None:
    kernel = (layer.kernel, layer.kernel) if layer.kernel else ()
    point = (1, 1) if layer.kernel else ()
    out[f"{down}.weight"] = fill(RANK, layer.inputs, *kernel).astype(np.float16)
    # About a third of the size of the weights it is added to.
    out[f"{up}.weight"] = fill(layer.outputs, RANK, *point, std=0.3 / RANK).astype(np.float16)


def _kohya_layers(kind: str, *, text_encoder: bool) -> Iterator[tuple[str, Layer]]:
    if kind == "sdxl":
        for block, width, number in (("input_blocks.4.1", 640, 2), ("input_blocks.7.1", 1280, 4)):
            for depth in range(number):
                path = f"{block}.transformer_blocks.{depth}"
                yield from (("lora_unet", one) for one in _block_layers(path, width, 2048))
        if text_encoder:
            layers = "text_model.encoder.layers"
            yield from (("lora_te1", one) for one in _clip_layers(layers, 768, 2))
            yield from (("lora_te2", one) for one in _clip_layers(layers, 1280, 2))
    elif kind == "flux":
        for number in (0, 1):
            for stream in ("img", "txt"):
                block = f"double_blocks.{number}.{stream}"
                yield "lora_unet", Layer(f"{block}_attn.qkv", 3072, 9216)
                yield "lora_unet", Layer(f"{block}_attn.proj", 3072, 3072)
                yield "lora_unet", Layer(f"{block}_mlp.0", 3072, 12288)
                yield "lora_unet", Layer(f"{block}_mlp.2", 12288, 3072)
            yield "lora_unet", Layer(f"single_blocks.{number}.linear1", 3072, 21504)
            yield "lora_unet", Layer(f"single_blocks.{number}.linear2", 15360, 3072)
    elif kind == "sd15-mid":
        path = "mid_block.attentions.0.transformer_blocks.0"
        yield from (("lora_unet", layer) for layer in _block_layers(path, 1280, CONTEXT))
    else:
        for layer in _unet_layers():
            yield "lora_unet", layer
        if kind == "sd15-locon":
            yield "lora_unet", Layer("down_blocks.0.resnets.0.conv1", WIDTH, WIDTH, 3)
            yield "lora_unet", Layer("down_blocks.0.resnets.0.conv2", WIDTH, WIDTH, 3)
            yield "lora_unet", Layer("up_blocks.0.resnets.0.conv1", 2 * WIDTH, WIDTH, 3)
        if text_encoder:
            yield from (("lora_te", one) for one in _clip_layers("text_model.encoder.layers"))


def _unet_layers() -> Iterator[Layer]:
    for attention in (
        "down_blocks.0.attentions.0",
        "up_blocks.0.attentions.0",
        "up_blocks.0.attentions.1",
    ):
        yield Layer(f"{attention}.proj_in", WIDTH, WIDTH, 1)
        yield from _block_layers(f"{attention}.transformer_blocks.0", WIDTH, CONTEXT)
        yield Layer(f"{attention}.proj_out", WIDTH, WIDTH, 1)


def _attention_layers(*, original_names: bool = False) -> Iterator[Layer]:
    places = {
        "down_blocks.0.attentions.0": "input_blocks.1.1",
        "up_blocks.0.attentions.0": "output_blocks.0.1",
        "up_blocks.0.attentions.1": "output_blocks.1.1",
    }
    for diffusers, original in places.items():
        path = f"{original if original_names else diffusers}.transformer_blocks.0"
        yield from (one for one in _block_layers(path, WIDTH, CONTEXT) if ".attn" in one.path)


def _block_layers(path: str, width: int, context: int) -> Iterator[Layer]:
    for attention, inputs in (("attn1", width), ("attn2", context)):
        yield Layer(f"{path}.{attention}.to_q", width, width)
        yield Layer(f"{path}.{attention}.to_k", inputs, width)
        yield Layer(f"{path}.{attention}.to_v", inputs, width)
        yield Layer(f"{path}.{attention}.to_out.0", width, width)
    yield Layer(f"{path}.ff.net.0.proj", width, 8 * width)
    yield Layer(f"{path}.ff.net.2", 4 * width, width)


def _clip_layers(path: str, width: int = CONTEXT, count: int = 12) -> Iterator[Layer]:
    for number in range(count):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield Layer(f"{path}.{number}.self_attn.{name}", width, width)
        yield Layer(f"{path}.{number}.mlp.fc1", width, 4 * width)
        yield Layer(f"{path}.{number}.mlp.fc2", 4 * width, width)


# --------------------------------------------------------------------------- headers


def lora_metadata(row: dict[str, Any], tensors: Tensors) -> dict[str, str]:
    """The `__metadata__` of one LoRA of `rows()`, as its training tool would write it."""
    payload = hashlib.sha256()
    for tensor in tensors.values():
        payload.update(tensor.tobytes())
    metadata: dict[str, str] = {}
    for header in row["headers"]:
        if header == "kohya":
            metadata |= _kohya_metadata(row, payload.hexdigest())
        elif header == "modelspec":
            metadata |= _modelspec_metadata(row, payload.hexdigest())
        else:
            metadata["format"] = "pt"
    return metadata


def _base(row: dict[str, Any]) -> tuple[str, str, str, int]:
    return CHECKPOINTS[row["tensors"].partition("-")[0]]


def _kohya_metadata(row: dict[str, Any], payload_hash: str) -> dict[str, str]:
    version, _, checkpoint, resolution = _base(row)
    images, repeats, epochs = row["images"], 10, 4
    folder = f"{repeats}_{row['concept']}"
    counts = {tag: max(1, round(share * images)) for tag, share in row["tags"].items()}
    network = "networks.lora_flux" if version == "flux1" else "networks.lora"
    conv = row["tensors"] == "sd15-locon"
    return {
        "ss_output_name": row["name"].rpartition("/")[2],
        "ss_base_model_version": version,
        "ss_sd_model_name": checkpoint,
        "ss_v2": "False",
        "ss_network_module": network,
        "ss_network_dim": str(RANK),
        "ss_network_alpha": str(float(RANK)),
        "ss_network_args": json.dumps({"conv_dim": str(RANK)} if conv else {}),
        "ss_resolution": f"({resolution}, {resolution})",
        "ss_clip_skip": "2" if "anime" in row["name"] else "None",
        "ss_num_train_images": str(images * repeats),
        "ss_num_epochs": str(epochs),
        "ss_epoch": str(epochs),
        "ss_steps": str(images * repeats * epochs // 2),
        "ss_batch_size_per_device": "2",
        "ss_learning_rate": "0.0001",
        "ss_optimizer": "torch.optim.adamw.AdamW",
        "ss_mixed_precision": "fp16",
        "ss_seed": "42",
        "ss_training_comment": "None",
        "ss_dataset_dirs": json.dumps({folder: {"n_repeats": repeats, "img_count": images}}),
        "ss_tag_frequency": json.dumps({folder: counts}),
        "sshs_model_hash": payload_hash,
    }


def _modelspec_metadata(row: dict[str, Any], payload_hash: str) -> dict[str, str]:
    _, architecture, _, resolution = _base(row)
    optional = {
        "modelspec.tags": row.get("keywords"),
        "modelspec.lora_default_weight": row.get("weight"),
    }
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": row["title"],
        "modelspec.description": row["description"],
        "modelspec.trigger_phrase": row["trigger"],
        "modelspec.date": "2025-03-01T00:00:00",
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.hash_sha256": f"0x{payload_hash}",
        **{key: str(value) for key, value in optional.items() if value is not None},
    }
