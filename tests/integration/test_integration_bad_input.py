"""What goes wrong for people: a clear error or a named, reported skip; never a wrong image."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from intelligent_generation.scripts.comfyui import (
    Client,
    ComfyUI,
    Progress,
    PromptFailedError,
    PromptRefusedError,
)
from intelligent_generation.scripts.sample_library import write_login_page, write_truncated_lora


@contextmanager
def present(path: Path, write: Callable[[Path], object]) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "prompt is empty"),
        ("  , ", "prompt is empty"),
        ("<lora:dusk-light:0.5>", "no text besides"),
        ("a cat <lora:dusk-light:strong>", "strong"),
        ("a cat <lora:no such file:1>", "no such file"),
        ("a cat <lora:xl/storybook_watercolor_xl:1>", "sdxl"),
        ("a cat <lora:old_harbour_midblock:1>", "does not fit this model"),
    ],
)
def test_a_prompt_that_cannot_be_honoured_is_an_error(
    client: Client, comfyui: ComfyUI, auto_graph, text: str, said: str
) -> None:
    before = set(comfyui.base.output.rglob("*"))
    with pytest.raises(PromptFailedError, match=said):
        client.run(auto_graph(text))
    assert set(comfyui.base.output.rglob("*")) == before


@pytest.mark.parametrize("text", ["a ((cat on a mat", "a cat)) on (a mat", ")("])
def test_unbalanced_parentheses_are_told(client: Client, auto_graph, record_of, text: str) -> None:
    record = record_of(client.run(auto_graph(text, sampler={"seed": 1, "save": "off"})))
    assert any(notice.level == "warning" for notice in record.plan.analysis.notices)
    assert "Warning: " in record.explanation
    assert record.plan.analysis.segments == (text,)


def test_a_prompt_of_50000_characters_works_and_is_told(
    client: Client, auto_graph, record_of
) -> None:
    text = ("a lighthouse on a cliff, " * 2001)[:50_000]
    run = client.run(auto_graph(text, optimizer={"steps": 1}, sampler={"save": "off"}))
    record = record_of(run)
    assert record.plan.analysis.prompt == text
    assert any("little effect" in notice.message for notice in record.notices)


@pytest.mark.parametrize("write", [write_truncated_lora, write_login_page])
def test_a_damaged_lora_is_skipped_and_reported_and_left_as_it_is(
    client: Client, comfyui: ComfyUI, auto_graph, record_of, write
) -> None:
    path = comfyui.base.models("loras") / "damaged watercolor.safetensors"
    with present(path, write):
        content = path.read_bytes()
        record = record_of(client.run(auto_graph("watercolor sea", sampler={"seed": 2})))
        assert path.name in {skipped.name for skipped in record.plan.loras.skipped}
        assert path.name in record.explanation
        assert record.plan.loras.loras, "the others still serve"
        with pytest.raises(PromptFailedError, match="damaged watercolor"):
            client.run(auto_graph("watercolor sea <lora:damaged watercolor:1>"))
        assert path.read_bytes() == content


def test_a_chosen_lora_whose_keys_match_nothing_is_skipped_and_reported(
    client: Client, auto_graph, record_of
) -> None:
    record = record_of(client.run(auto_graph("an old harbour", sampler={"seed": 3})))
    assert "old_harbour_midblock.safetensors" in {x.file.name for x in record.plan.loras.loras}
    assert "old_harbour_midblock.safetensors" not in {x.file.name for x in record.applied}
    assert "does not fit this model" in record.explanation
    assert "not applied in this run" in record.explanation


def test_a_lora_of_another_base_model_is_never_chosen(
    client: Client, auto_graph, record_of
) -> None:
    record = record_of(client.run(auto_graph("storybook watercolor", sampler={"seed": 4})))
    assert not any("_xl" in lora.file.name for lora in record.plan.loras.loras)
    (skipped,) = (s for s in record.plan.loras.skipped if "_xl" in s.name)
    assert skipped.code == "other_base_model" and "sdxl" in skipped.reason


def test_a_model_that_carries_loras_keeps_them_and_it_is_told(
    client: Client, auto_graph, record_of
) -> None:
    graph = auto_graph("carried along", sampler={"model": ["stock-lora", 0]})
    graph["stock-lora"] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {
            "model": ["loader", 0],
            "lora_name": "dusk-light.safetensors",
            "strength_model": 1.0,
        },
    }
    record = record_of(client.run(graph))
    assert record.plan.model.carried_patches > 0
    assert "already carries" in record.explanation
    with pytest.raises(requests.HTTPError) as caught:
        client.get(f"/intelligent_generation/generations/{record.id}/prompt")
    answer = caught.value.response
    assert answer is not None and "workflow in the PNG" in answer.json()["error"]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("checkpoints/absent.safetensors", "absent"),
        ("checkpoints/small-sd15.safetensor", "Did you mean checkpoints/small-sd15.safetensors"),
        ("checkpoints/old.ckpt", "not a safetensors file"),
        ("", "No model is chosen"),
    ],
)
def test_a_missing_checkpoint_is_refused_before_anything_runs(
    client: Client, auto_graph, model: str, said: str
) -> None:
    graph = auto_graph("x")
    graph["loader"]["inputs"]["model"] = model
    with pytest.raises(PromptRefusedError, match=said):
        client.run(graph)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"source": "CivitAI"}, "reference is empty"),
        ({"source": "CivitAI", "reference": "hf:a/b"}, "is for Hugging Face"),
        ({"source": "Hugging Face", "reference": "a cat"}, "does not say which model"),
        ({"reference": "hf:a/b"}, "source is local, which does not read it"),
        (
            {"source": "CivitAI", "reference": "https://civitai.com/models/1?token=x"},
            "holds a login or token",
        ),
    ],
)
def test_a_reference_that_cannot_be_honoured_is_refused_before_anything_runs(
    client: Client, auto_graph, inputs: dict[str, str], said: str
) -> None:
    graph = auto_graph("x")
    graph["loader"]["inputs"].update(inputs)
    with pytest.raises(PromptRefusedError, match=said):
        client.run(graph)


def test_a_truncated_checkpoint_is_refused_by_its_header(
    client: Client, comfyui: ComfyUI, auto_graph
) -> None:
    folder = comfyui.base.models("checkpoints")

    def cut(path: Path) -> None:
        with (folder / "small-sd15.safetensors").open("rb") as source:
            path.write_bytes(source.read(1_000_000))

    with (
        present(folder / "cut.safetensors", cut),
        pytest.raises(PromptFailedError, match=r"cut\.safetensors"),
    ):
        client.run(auto_graph("x", checkpoint="cut.safetensors"))


def test_a_text_encoder_is_not_a_checkpoint(client: Client, add_model, comfyui, auto_graph) -> None:
    name = add_model("small-clip-l.safetensors")
    source = comfyui.base.models("text_encoders") / name
    target = comfyui.base.models("checkpoints") / "wrong-folder.safetensors"
    with (
        present(target, lambda path: shutil.copyfile(source, path)),
        pytest.raises(PromptFailedError, match=r"wrong-folder\.safetensors"),
    ):
        client.run(auto_graph("x", checkpoint=target.name))


def test_an_interrupted_run_leaves_nothing(client: Client, comfyui: ComfyUI, auto_graph) -> None:
    before = set(comfyui.base.output.rglob("*"))
    newest = client.get("/intelligent_generation/generations", limit=1).json()

    def stop(progress: Progress) -> None:
        if progress.kind == "step" and progress.value == 2:
            client.interrupt()

    with pytest.raises(PromptFailedError) as caught:
        client.run(auto_graph("interrupted", optimizer={"steps": 300}), on_progress=stop)
    assert caught.value.run.status == "interrupted"
    assert set(comfyui.base.output.rglob("*")) == before
    assert client.get("/intelligent_generation/generations", limit=1).json() == newest


def test_a_prefix_that_leaves_the_output_folder_is_refused(
    client: Client, comfyui: ComfyUI, auto_graph
) -> None:
    with pytest.raises(PromptFailedError, match="filename_prefix"):
        client.run(auto_graph("x", sampler={"filename_prefix": "../escaped"}))
    assert not list(comfyui.base.path.glob("escaped*"))


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [({"width": 100}, "8"), ({"guidance": 3.5}, "guidance"), ({"shift": 3.0}, "shift")],
)
def test_a_setting_the_model_does_not_have_is_refused(
    client: Client, auto_graph, optimizer: dict, said: str
) -> None:
    with pytest.raises(PromptFailedError, match=said):
        client.run(auto_graph("x", optimizer=optimizer))


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (b"not a png", "image/png", "not a readable PNG"),
        (b"{}", "text/plain", "image/png"),
        (b"{", "application/json", "not JSON"),
        (b"{}", "application/json", "Generation"),
    ],
)
def test_what_holds_no_record_cannot_be_replayed(
    client: Client, body: bytes, kind: str, said: str
) -> None:
    answer = client.post_bytes("/intelligent_generation/prompt", body, kind)
    assert answer.status_code == 400
    assert said in answer.json()["error"]
