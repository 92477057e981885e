"""The rooms' rules: who may import whom, and who may import ComfyUI."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import intelligent_generation
import pytest

ROOT = Path(intelligent_generation.__path__[0])
SHARED = {"plan", "errors", "limits", "storage", "host", "embedding", "filelock"}
"""What every room may use."""
ROOMS = [
    "prompting", "hubs", "catalog", "recommending", "tuning", "memory", "learning", "generating",
]  # fmt: skip
"""In the direction of the data: a room may use those before it."""
SERVICES = [
    "data", "files", "hubs", "scanning", "prompts", "loras", "lora_fetching", "memory", "models",
    "tuning", "running", "generating", "records", "__init__",
]  # fmt: skip
"""Modules of core/services: one may use those before it."""
HOST_MODULES = {
    "comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths",
    "latent_preview", "node_helpers", "nodes", "server",
}  # fmt: skip


def imports_of(path: Path) -> set[str]:
    """Absolute dotted names a file imports, ours as `intelligent_generation...`."""
    package = ["intelligent_generation", *path.relative_to(ROOT).parent.parts]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *(node.module or "").split(".")]).rstrip(".")
            found |= {f"{name}.{alias.name}" for alias in node.names} | {name}
    return found


def sources(folder: str) -> list[Path]:
    return sorted(p for p in (ROOT / folder).rglob("*.py") if "__pycache__" not in p.parts)


@pytest.mark.parametrize("path", sources("core"), ids=lambda p: str(p.relative_to(ROOT)))
def test_core_keeps_to_its_rooms(path: Path) -> None:
    first, *below = path.relative_to(ROOT / "core").parts
    imported = imports_of(path)
    ours = {name.split(".")[1:] [0] if name.count(".") else "" for name in imported
            if name.startswith("intelligent_generation.")}  # fmt: skip
    assert not ours & {"nodes", "scripts", "benchmarks"}, "core never imports its users"
    rooms = {
        name.split(".")[2]
        for name in imported
        if name.startswith("intelligent_generation.core.") and len(name.split(".")) > 2
    }
    if below and first in ROOMS:
        allowed = SHARED | set(ROOMS[: ROOMS.index(first) + 1])
        assert rooms <= allowed, f"{first} may use only {sorted(allowed)}"
    elif first == "storage":
        assert rooms <= {"plan", "errors", "limits", "storage"}
    elif first == "host":
        assert rooms <= {"errors", "limits", "host"}
    elif first == "plan.py":
        assert rooms <= {"errors", "limits"}
    elif first in ("errors.py", "limits.py", "embedding.py", "filelock.py", "version.py"):
        assert not rooms


@pytest.mark.parametrize("path", sources("core/services"), ids=lambda p: p.stem)
def test_services_use_those_before_them(path: Path) -> None:
    package = "intelligent_generation.core.services."
    used = {name.removeprefix(package).split(".")[0] for name in imports_of(path)
            if name.startswith(package)} & set(SERVICES)  # fmt: skip
    assert used <= set(SERVICES[: SERVICES.index(path.stem)])


@pytest.mark.parametrize("path", sources("core"), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_embedding_imports_sentence_transformers(path: Path) -> None:
    used = {n for n in imports_of(path) if n.split(".")[0] == "sentence_transformers"}
    assert bool(used) == (path == ROOT / "core" / "embedding.py")


def comfyui_in(path: Path) -> set[str]:
    return {name for name in imports_of(path) if name.split(".")[0] in HOST_MODULES}


def test_the_host_imports_comfyui() -> None:
    assert any(map(comfyui_in, sources("core/host")))


@pytest.mark.parametrize(
    "path", sources("core") + sources("nodes"), ids=lambda p: str(p.relative_to(ROOT))
)
def test_only_host_imports_comfyui(path: Path) -> None:
    used = comfyui_in(path)
    if path.is_relative_to(ROOT / "core" / "host"):
        return
    if path.is_relative_to(ROOT / "nodes"):
        assert {name for name in used if not name.startswith("comfy_api.latest")} == set()
    else:
        assert not used


def test_every_package_is_listed_for_installation() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    packages = {
        ".".join(["intelligent_generation", *path.parent.relative_to(ROOT).parts])
        for folder in ("core", "nodes", "scripts", "benchmarks")
        for path in (ROOT / folder).rglob("__init__.py")
    }
    missing = {name for name in packages if f'"{name}"' not in text}
    assert not missing


def test_the_pack_itself_imports_nothing_heavy() -> None:
    code = (
        "import sys; before = set(sys.modules); import intelligent_generation;"
        "heavy = {'torch','sqlalchemy','pydantic','numpy','requests','PIL','alembic',"
        "'sentence_transformers','ollama','huggingface_hub'};"
        "print(sorted(heavy & (set(sys.modules) - before)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
