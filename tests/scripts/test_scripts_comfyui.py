"""The parts of scripts/comfyui.py that need no running ComfyUI."""

from __future__ import annotations

from pathlib import Path

import pytest
from intelligent_generation.scripts.comfyui import (
    PACK,
    PACK_NAME,
    Base,
    ComfyUI,
    ComfyUIError,
    PromptRefusedError,
    find_comfyui,
    link_model,
    prepare_base,
)


def test_base_directory_holds_the_pack_and_every_folder(tmp_path: Path):
    base = prepare_base(tmp_path / "a base")
    assert (base.path / "custom_nodes" / PACK_NAME).resolve() == PACK.resolve()
    for folder in (base.output, base.user, base.models("loras"), base.path / "temp"):
        assert folder.is_dir()


def test_preparing_again_keeps_what_is_there(tmp_path: Path):
    base = prepare_base(tmp_path, pack=None)
    assert list((base.path / "custom_nodes").iterdir()) == []
    kept = base.models("loras") / "mine.safetensors"
    kept.write_bytes(b"mine")
    prepare_base(tmp_path)
    assert kept.read_bytes() == b"mine"
    assert prepare_base(tmp_path) == base


def test_link_to_a_pack_that_moved_is_replaced(tmp_path: Path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    base = prepare_base(tmp_path / "base", pack=old)
    old.rmdir()
    prepare_base(base.path, pack=new)
    assert (base.path / "custom_nodes" / PACK_NAME).samefile(new)


def test_model_is_linked_not_copied(tmp_path: Path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    assert link_model(file, folder) == "model.safetensors"
    assert (folder / "model.safetensors").samefile(file)
    assert link_model(file, folder) == "model.safetensors"


def test_model_of_the_same_name_is_replaced(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for number in (1, 2):
        source = tmp_path / str(number)
        source.mkdir()
        (source / "m.safetensors").write_text(str(number))
        link_model(source / "m.safetensors", folder)
    assert (folder / "m.safetensors").read_text() == "2"
    assert (tmp_path / "1" / "m.safetensors").read_text() == "1"


def test_own_comfyui_is_used_when_it_is_one(tmp_path: Path):
    with pytest.raises(ComfyUIError, match=r"COMFYUI_PATH.*main\.py"):
        find_comfyui({"COMFYUI_PATH": str(tmp_path)})
    (tmp_path / "main.py").write_text("")
    assert find_comfyui({"COMFYUI_PATH": str(tmp_path)}) == tmp_path.resolve()


def test_bundled_comfyui_is_found():
    assert (find_comfyui({}) / "main.py").is_file()


def test_host_that_ends_at_once_is_reported_with_its_log(tmp_path: Path):
    comfyui = tmp_path / "comfyui"
    comfyui.mkdir()
    (comfyui / "main.py").write_text("raise SystemExit('the database is of a newer version')\n")
    base: Base = prepare_base(tmp_path / "base", pack=None)
    host = ComfyUI(base, cpu=True, comfyui=comfyui)
    with pytest.raises(ComfyUIError, match=r"(?s)exit code 1.*database is of a newer version"):
        host.start()
    assert not host.running


def test_refusal_tells_node_input_and_reason():
    details = {
        "error": {"message": "Prompt outputs failed validation"},
        "node_errors": {
            "3": {
                "class_type": "KSampler",
                "errors": [{"message": "Value too big", "details": "steps: 99999"}],
            }
        },
    }
    text = str(PromptRefusedError(details))
    assert text.splitlines() == [
        "ComfyUI refused the prompt: Prompt outputs failed validation",
        "  KSampler (node 3): Value too big: steps: 99999",
    ]
