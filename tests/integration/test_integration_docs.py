"""Help pages, node texts and the README's commands, held to what a running ComfyUI says."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from intelligent_generation.scripts.comfyui import PACK, PACK_NAME, Client, ComfyUI
from PIL import Image

README = (PACK / "README.md").read_text(encoding="utf-8")
NODES = sorted(page.stem for page in (PACK / "web" / "docs").glob("*.md"))
LANGUAGES = ("en", "es")
NOT_IN_MESSAGES = re.compile(r"[{}@|]")
"""Characters that the translator of ComfyUI's page would not show as they stand."""


@pytest.fixture
def info(client: Client) -> dict[str, Any]:
    return client.object_info()


def inputs_of(node: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Type and options of each input, in order."""
    found = {}
    for group in ("required", "optional"):
        for name, specification in (node["input"].get(group) or {}).items():
            options = specification[1] if len(specification) > 1 else {}
            found[name] = (specification[0], options)
    return found


def table(page: str, heading: str) -> list[list[str]]:
    (block,) = re.findall(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", page, re.MULTILINE)
    return [
        [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        for line in block.splitlines()
    ]


def names_match(wanted: list[str], node: dict[str, Any]) -> bool:
    # An output without a name of its own is called by its type.
    own = zip(wanted, node["output_name"], node["output"], strict=True)
    return all(shown in (name, kind) for name, shown, kind in own)


@pytest.mark.parametrize("name", NODES)
def test_the_help_page_says_what_the_node_takes_and_gives(
    client: Client, info: dict[str, Any], name: str
) -> None:
    answer = client.get(f"/extensions/{PACK_NAME}/docs/{name}.md")
    page = answer.content.decode("utf-8")
    inputs = inputs_of(info[name])
    described = table(page, "Input")
    assert [row[0] for row in described] == list(inputs)
    for row in described:
        kind, options = inputs[row[0]]
        assert (row[1], row[2]) == shown(kind, options, row[1], row[2]), row[0]
    given = table(page, "Output")
    assert [row[1] for row in given] == list(info[name]["output"])
    assert names_match([row[0] for row in given], info[name])


def shown(kind: Any, options: dict[str, Any], takes: str, default: str) -> tuple[str, str]:
    """How a page must write what an input takes and its default, as far as the node fixes it."""
    if kind in ("INT", "FLOAT"):
        return f"{kind}, {_number(options['min'])} to {_number(options['max'])}", _number(
            options["default"]
        )
    if kind == "BOOLEAN":
        return "BOOLEAN", str(options["default"]).lower()
    if kind == "STRING":
        lines = ", several lines" if options.get("multiline") else ""
        return f"STRING{lines}", options["default"] or "empty"
    if kind == "COMBO":
        # Lists of files and of ComfyUI's samplers are described, all others are written out.
        fixed = ", ".join(options["options"])
        varying = re.search(r"files of|ComfyUI's", takes)
        return takes if varying else fixed, options.get("default", default)
    return kind.replace(",", " or "), default if default in ("required", "not wired") else "?"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


@pytest.mark.parametrize("language", LANGUAGES)
def test_comfyui_serves_texts_for_exactly_the_inputs_and_outputs(
    client: Client, info: dict[str, Any], language: str
) -> None:
    served = client.get("/i18n").json()[language]
    assert all(info[name]["category"] in served["nodeCategories"] for name in NODES)
    for name in NODES:
        texts = served["nodeDefs"][name]
        assert texts.keys() == {"display_name", "description", "inputs", "outputs"}
        assert list(texts["inputs"]) == list(inputs_of(info[name])), name
        assert list(texts["outputs"]) == [str(i) for i in range(len(info[name]["output"]))], name
        for slot in (*texts["inputs"].values(), *texts["outputs"].values()):
            assert slot.keys() == {"name", "tooltip"}


def test_english_texts_are_those_of_the_nodes(client: Client, info: dict[str, Any]) -> None:
    served = client.get("/i18n").json()["en"]["nodeDefs"]
    for name in NODES:
        node, texts = info[name], served[name]
        assert texts["display_name"] == node["display_name"]
        assert texts["description"] == node["description"]
        assert names_match([output["name"] for output in texts["outputs"].values()], node)
        said = {key: options.get("tooltip") for key, (_, options) in inputs_of(node).items()}
        said |= {str(i): tooltip for i, tooltip in enumerate(node["output_tooltips"])}
        ours = {**texts["inputs"], **texts["outputs"]}
        different = {
            key: (tooltip, ours[key]["tooltip"])
            for key, tooltip in said.items()
            if tooltip and not NOT_IN_MESSAGES.search(tooltip) and ours[key]["tooltip"] != tooltip
        }
        assert different == {}, name


# --------------------------------------------------------------------------- the README


def commands() -> list[str]:
    return [
        line
        for block in re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
        if line.startswith("curl")
    ]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_api_commands_of_the_readme_work(
    client: Client, comfyui: ComfyUI, tmp_path: Path
) -> None:
    queue, history, record, fetch, to_prompt, again = commands()

    def curl(command: str, **values: str) -> Any:
        for name, value in values.items():
            assert name in command
            command = command.replace(name, value)
        command = command.replace("http://127.0.0.1:8188", comfyui.url)
        assert comfyui.url in command
        environment = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        arguments = [*shlex.split(command), "--silent", "--show-error"]
        out = subprocess.run(
            arguments, cwd=tmp_path, env=environment, capture_output=True, check=True
        )
        return json.loads(out.stdout) if out.stdout else None

    def image_of(prompt_id: str) -> dict[str, str]:
        client.history(prompt_id)  # waits
        (entry,) = curl(history, PROMPT_ID=prompt_id).values()
        assert entry["status"]["status_str"] == "success", entry["status"]
        (output,) = (one for one in entry["outputs"].values() if "generation_id" in one)
        return {**output["images"][0], "id": output["generation_id"][0]}

    def pixels(image: dict[str, str]) -> np.ndarray:
        data = client.view({key: image[key] for key in ("filename", "subfolder", "type")})
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    blocks = re.findall(r"^```json\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    (body,) = (block for block in blocks if "YOUR-MODEL" in block)
    prompt = json.loads(body.replace("YOUR-MODEL", "small-sd15"))
    # As it stands, but small: this is what the README's own MANUAL example does.
    small = {"sampling": {"steps": 2, "width": 64, "height": 64}}
    prompt["prompt"]["4"]["inputs"] |= {"mode": "MANUAL", "plan": json.dumps(small)}
    (tmp_path / "prompt.json").write_text(json.dumps(prompt), encoding="utf-8")

    first = image_of(curl(queue)["prompt_id"])
    found = curl(record, GENERATION_ID=first["id"])
    assert found["plan"]["seed"] == 42 and found["plan"]["loras"]["loras"]
    curl(fetch, **{"IntelligentGeneration_00001_.png": first["filename"]})
    curl(to_prompt)
    second = image_of(curl(again)["prompt_id"])
    assert second["filename"] != first["filename"]
    assert np.array_equal(pixels(first), pixels(second))
