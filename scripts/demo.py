"""Makes an image from a prompt with the whole pack, on a real ComfyUI, and says why.

    python scripts/demo.py "a lighthouse at dusk, watercolor"

Sets up what is missing on its first run (see bootstrap.py). Without `--model` it uses the small
world (see world/README.md): a model and LoRAs trained for this repository, made for a CPU.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

MAX_SEED = 2**64 - 1


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The demo's options. Prints what is wrong and exits with 2 when they cannot be used."""
    parser = argparse.ArgumentParser(
        prog="demo.py", description="Make an image from a prompt and say why it came out so."
    )
    parser.add_argument("prompt", nargs="?", help="what you want to see")
    parser.add_argument("--negative", default="", metavar="TEXT", help="what to keep out")
    parser.add_argument("--seed", type=_seed, default=None, help="0 to 2^64 - 1; default: random")
    parser.add_argument(
        "--size",
        type=_size,
        default=None,
        metavar="WxH",
        help="image size in pixels; default: the pack's own choice",
    )
    parser.add_argument("--model", type=_file, metavar="FILE", help="a real checkpoint to use")
    parser.add_argument(
        "--compare",
        action="store_true",
        help="with --model, also make the image with stock settings and no LoRA, and show both; "
        "always done without --model",
    )
    parser.add_argument("--comfyui", type=Path, metavar="PATH", help="a ComfyUI checkout to use")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("demo-output"),
        metavar="DIR",
        help="where the PNG goes; default: demo-output",
    )
    parser.add_argument(
        "--serve", action="store_true", help="keep ComfyUI running until Ctrl-C; prompt optional"
    )
    parser.add_argument("--port", type=_port, default=None, help="ComfyUI's port; default: free")
    options = parser.parse_args(arguments)
    if not options.serve and not (options.prompt or "").strip():
        parser.error('give a prompt, for example "a lighthouse at dusk, watercolor", or --serve')
    return options


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > MAX_SEED:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {MAX_SEED}")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{2,5})x(\d{2,5})", text)
    if match is None or any(int(side) % 8 for side in match.groups()):
        raise argparse.ArgumentTypeError(f"{text!r} is not WxH in multiples of 8, such as 512x768")
    return int(match.group(1)), int(match.group(2))


def _file(text: str) -> Path:
    path = Path(text).expanduser().resolve()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {path}")
    return path


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 1 to 65535")
    return int(text)


if __name__ == "__main__":
    import bootstrap

    bootstrap.enter(
        "intelligent_generation.scripts.demonstration",
        sys.argv[1:],
        comfyui=parse(sys.argv[1:]).comfyui,
    )
