"""ComfyUI without its server, for what needs its model classes: a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from intelligent_generation.scripts import launch_comfyui
from intelligent_generation.scripts.comfyui import Base, find_comfyui, link_model, prepare_base
from intelligent_generation.scripts.sample_models import MODELS, sample_model

START = """
import ctypes, json, os, sys
from importlib import import_module
from pathlib import Path

launcher, comfyui, base = sys.argv[1:4]
ARGUMENTS = sys.argv[4:]
sys.path[0] = str(Path(launcher).parent)
sys.meta_path.insert(0, import_module(Path(launcher).stem).TorchvisionOperators())
sys.path[0] = comfyui
os.chdir(comfyui)
sys.argv = ["main.py", "--cpu", "--base-directory", base]
import_module("comfy.options").enable_args_parsing()
for name in ("utils.extra_config", "nodes"):
    import_module(name)

import torch
from intelligent_generation.core import host
from intelligent_generation.core.memory import quantization
from intelligent_generation.core.memory.streaming import stream

CPU = torch.device("cpu")

def path(folder, name):
    (found,) = (one / name for one in host.model_folders(folder) if (one / name).is_file())
    return found

def file_to_quantize(path):
    file = stream(path)
    return host.FileToQuantize(file.tensors, file.metadata, quantization.quantize, file.release)

def give_back_what_is_freed():
    # Without this, malloc keeps what was freed: some hundred MB in some runs and none in others.
    libc, M_MMAP_THRESHOLD = ctypes.CDLL(None), -3
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 65536)

def report(**found):
    print(json.dumps(found))
"""


@pytest.fixture(scope="session")
def model_base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A base directory of ComfyUI with every sample model in it."""
    base = prepare_base(tmp_path_factory.mktemp("memory"), pack=None)
    for name, model in MODELS.items():
        link_model(sample_model(name), base.models(model.folder))
    return base


@pytest.fixture(scope="session")
def in_comfyui(model_base: Base) -> Callable[..., dict[str, Any]]:
    """in_comfyui(code, *arguments): what `report(...)` in the code was given; see START."""

    def run(code: str, *arguments: str) -> dict[str, Any]:
        script = [launch_comfyui.__file__, str(find_comfyui()), str(model_base.path)]
        done = subprocess.run(
            [sys.executable, "-c", START + code, *script, *arguments],
            # As scripts/comfyui.py does, for the sake of busy processors.
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run
