"""Reading the headers of a LoRA library: first time, and in a new process when nothing changed."""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any


def main(argv: list[str]) -> dict[str, Any]:
    """Time `Catalog.loras()` over generated kohya LoRA files.

    `cold_seconds` is the first read of a library (headers, classification, database), in a
    process of its own; `warm_seconds` the same call in another new process when no file changed.
    Opening the database and importing are apart, as `*_open_seconds` and `*_import_seconds`.
    The files are freshly written, so the system has them in its cache in both.

    Args:
        argv: `--files` (5000), `--modules` (6 of a LoRA's modules, which makes headers of
            about 5 KB; with 192 the header is that of a whole SD 1.5 LoRA),
            `--tags` (15 caption tags a file; the catalog keeps at most 64), `--seed`.
    """
    parser = argparse.ArgumentParser(prog="headers", description="Read LoRA headers.")
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--modules", type=int, default=6)
    parser.add_argument("--tags", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        root = Path(directory)
        size = make_library(
            root / "loras",
            options.files,
            modules=options.modules,
            tags=options.tags,
            seed=options.seed,
        )
        cold = _in_new_process(root)
        warm = _in_new_process(root)
    return {
        "files": options.files,
        "bytes_per_file": size // max(options.files, 1),
        "cold_seconds": cold["read"],
        "warm_seconds": warm["read"],
        "cold_open_seconds": cold["open"],
        "warm_open_seconds": warm["open"],
        "cold_import_seconds": cold["import"],
        "warm_import_seconds": warm["import"],
        "warm_with_open_and_import_seconds": round(sum(warm[k] for k in _PARTS), 4),
        "entries": warm["entries"],
    }


_PARTS = ("import", "open", "read")

_ADJECTIVES = (
    *("red", "green", "blue", "golden", "silver", "dark", "bright", "long", "short", "wide"),
    *("old", "ornate", "torn", "wet", "glowing", "striped", "floral", "wooden", "stone", "paper"),
)
_NOUNS = (
    *("hair", "eyes", "armor", "sword", "city", "night", "rain", "forest", "lantern", "castle"),
    *("dress", "hat", "cloak", "boots", "bridge", "tower", "sky", "river", "mask", "wings"),
)
_TAGS = ("1girl", "solo", "looking at viewer", *(f"{a} {n}" for a in _ADJECTIVES for n in _NOUNS))


def make_library(directory: Path, files: int, *, modules: int, tags: int, seed: int) -> int:
    """Write LoRA files with kohya's headers and tensors of zeros; returns their bytes."""
    draw = random.Random(seed)
    total = 0
    for number in range(files):
        name = f"{draw.choice(_TAGS).replace(' ', '_')}_{number:05d}"
        folder = directory / f"group_{number % 20:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        data = _lora_file(name, modules, tags, draw)
        (folder / f"{name}.safetensors").write_bytes(data)
        total += len(data)
    return total


def _lora_file(name: str, modules: int, tags: int, draw: random.Random) -> bytes:
    context, base = draw.choice(((768, "sd_v1"), (2048, "sdxl_base_v1-0")))
    images = draw.randint(15, 120)
    captions = draw.sample(_TAGS, tags)
    frequency = {name: images} | {tag: draw.randint(1, images) for tag in captions}
    header: dict[str, Any] = {
        "__metadata__": {
            "ss_base_model_version": base,
            "ss_network_module": "networks.lora",
            "ss_network_dim": "1",
            "ss_output_name": name,
            "ss_num_train_images": str(images * 10),
            "ss_dataset_dirs": json.dumps({f"10_{name}": {"n_repeats": 10, "img_count": images}}),
            "ss_tag_frequency": json.dumps({f"10_{name}": frequency}),
            "ss_training_comment": "weight 0.8",
            "sshs_model_hash": f"{draw.getrandbits(256):064x}",
        }
    }
    offset = 0
    for module, wide in islice(_modules(context), modules):
        for part, shape in (
            ("alpha", []),
            ("lora_down.weight", [1, wide]),
            ("lora_up.weight", [320, 1]),
        ):
            end = offset + math.prod(shape)  # one byte a value, to keep the files small
            entry = {"dtype": "F8_E4M3", "shape": shape, "data_offsets": [offset, end]}
            header[f"{module}.{part}"] = entry
            offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + bytes(offset)


def _modules(context: int) -> Iterator[tuple[str, int]]:
    """kohya's names of an SD UNet's attention modules, with their input width."""
    for block, attention, layer in product((1, 2, 0), range(2), ("attn2", "attn1")):
        for projection in ("to_k", "to_v", "to_q", "to_out_0"):
            wide = context if layer == "attn2" and projection in ("to_k", "to_v") else 320
            where = f"down_blocks_{block}_attentions_{attention}_transformer_blocks_0"
            yield f"lora_unet_{where}_{layer}_{projection}", wide
    for block, attention, depth, part in product(range(1, 4), range(3), range(6), range(4)):
        where = f"up_blocks_{block}_attentions_{attention}_transformer_blocks_{depth}"
        yield f"lora_unet_{where}_attn1_{('to_k', 'to_v', 'to_q', 'to_out_0')[part]}", 320


_READ = """
import json, sys, time
from pathlib import Path
root = Path(sys.argv[1])
start = time.perf_counter()
from intelligent_generation.core.catalog import Catalog
from intelligent_generation.core.storage import Database
import intelligent_generation.core.catalog.store
imported = time.perf_counter()
database = Database.open(f"sqlite:///{root / 'catalog.db'}")
opened = time.perf_counter()
library = Catalog(database, lambda folder: [root / folder]).loras()
read = time.perf_counter()
print(json.dumps({"import": round(imported - start, 4), "open": round(opened - imported, 4),
                  "read": round(read - opened, 4), "entries": len(library.entries)}))
"""


def _in_new_process(root: Path) -> dict[str, Any]:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _READ, str(root)],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"The reader failed after {time.monotonic() - start:.1f} s:\n{done.stderr}"
        )
    return json.loads(done.stdout.splitlines()[-1])
