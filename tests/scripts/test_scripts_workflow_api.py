"""From the editor's workflow format to /prompt's."""

from __future__ import annotations

from typing import Any

import pytest
from intelligent_generation.scripts.workflow_api import (
    WorkflowError,
    node_of,
    to_prompt,
    with_inputs,
)

OBJECT_INFO: dict[str, Any] = {
    "Loader": {
        "display_name": "Load It",
        "input": {"required": {"name": [["a.safetensors", "b.safetensors"]]}},
    },
    "Encode": {
        "input": {
            "required": {"text": ["STRING", {"multiline": True}], "clip": ["CLIP"]},
        }
    },
    "Sample": {
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "seed": ["INT", {"default": 0, "control_after_generate": True}],
                "steps": ["INT", {"default": 20}],
                "sampler": ["COMBO", {"options": ["euler"]}],
            },
            "optional": {
                "count": ["INT", {"forceInput": True}],
                "denoise": ["FLOAT", {"default": 1.0}],
            },
            "hidden": {"prompt": "PROMPT"},
        }
    },
    "Noise": {"input": {"required": {"noise_seed": ["INT", {}], "on": ["BOOLEAN", {}]}}},
    "Plain": {
        "input": {
            "required": {"seed": ["INT", {"control_after_generate": False}], "n": ["INT", {}]}
        }
    },
    "Image": {"input": {"required": {"image": [["x.png"], {"image_upload": True}], "n": ["INT"]}}},
    "Patch": {"input": {"required": {"clip": ["CLIP"], "model": ["MODEL"]}}},
}


def node(key: int, kind: str, values: Any = None, **more: Any) -> dict[str, Any]:
    return {"id": key, "type": kind, "mode": 0, "widgets_values": values, **more}


def socket(name: str, kind: str, link: int | None, *, widget: bool = False) -> dict[str, Any]:
    return {
        "name": name,
        "type": kind,
        "link": link,
        **({"widget": {"name": name}} if widget else {}),
    }


def inputs_of(*nodes: dict[str, Any], links: tuple[Any, ...] = (), key: str) -> dict[str, Any]:
    return to_prompt({"nodes": list(nodes), "links": list(links)}, OBJECT_INFO)[key]["inputs"]


def test_widgets_get_their_names_and_control_values_are_skipped():
    sample = node(
        5, "Sample", [42, "randomize", 25, "euler", 0.5], inputs=[socket("model", "MODEL", 1)]
    )
    loader = node(1, "Loader", ["b.safetensors"], outputs=[{"type": "MODEL"}])
    prompt = to_prompt(
        {"nodes": [sample, loader], "links": [[1, 1, 0, 5, 0, "MODEL"]]}, OBJECT_INFO
    )
    assert prompt == {
        "5": {
            "class_type": "Sample",
            "inputs": {
                "model": ["1", 0],
                "seed": 42,
                "steps": 25,
                "sampler": "euler",
                "denoise": 0.5,
            },
            "_meta": {"title": "Sample"},
        },
        "1": {
            "class_type": "Loader",
            "inputs": {"name": "b.safetensors"},
            "_meta": {"title": "Load It"},
        },
    }


def test_links_may_be_objects():
    encode = node(2, "Encode", ["hi"], inputs=[socket("clip", "CLIP", 9)])
    loader = node(1, "Loader", ["a"])
    link = {"id": 9, "origin_id": 1, "origin_slot": 1, "target_id": 2, "target_slot": 0}
    assert inputs_of(encode, loader, links=(link,), key="2") == {"text": "hi", "clip": ["1", 1]}


def test_a_seed_is_followed_by_a_control_widget_even_when_the_node_does_not_say_so():
    assert inputs_of(node(1, "Noise", [7, "fixed", True]), key="1") == {"noise_seed": 7, "on": True}
    assert inputs_of(node(1, "Plain", [7, 3]), key="1") == {"seed": 7, "n": 3}


def test_upload_button_is_skipped():
    assert inputs_of(node(1, "Image", ["x.png", "image", 4]), key="1") == {"image": "x.png", "n": 4}


def test_linked_widget_takes_the_link_and_keeps_its_place_in_the_list():
    sample = node(
        2,
        "Sample",
        [42, "fixed", 25, "euler", 1.0],
        inputs=[
            socket("seed", "INT", None, widget=True),
            socket("steps", "INT", 3, widget=True),
        ],
    )
    inputs = inputs_of(sample, node(1, "Loader", ["a"]), links=([3, 1, 2, 2, 1, "INT"],), key="2")
    assert inputs["steps"] == ["1", 2]
    assert inputs["seed"] == 42
    assert inputs["sampler"] == "euler"


def test_values_by_name_are_taken_as_they_are():
    values = {"text": "hi", "videopreview": {"hidden": False}}
    assert inputs_of(node(1, "Encode", values), key="1") == {"text": "hi"}


def test_older_workflow_with_fewer_values_leaves_the_rest_to_comfyui():
    assert inputs_of(node(1, "Sample", [1, "fixed", 20]), key="1") == {"seed": 1, "steps": 20}


def test_primitive_gives_its_value_and_notes_vanish():
    nodes = (
        node(1, "PrimitiveNode", [31, "fixed"], outputs=[{"type": "INT"}]),
        node(2, "Sample", [1, "fixed", 20, "euler", 1.0], inputs=[socket("steps", "INT", 4)]),
        node(3, "MarkdownNote", ["read me"]),
        node(4, "Note", ["me too"]),
    )
    prompt = to_prompt({"nodes": list(nodes), "links": [[4, 1, 0, 2, 0, "INT"]]}, OBJECT_INFO)
    assert set(prompt) == {"2"}
    assert prompt["2"]["inputs"]["steps"] == 31


def test_reroutes_are_followed():
    nodes = (
        node(1, "Loader", ["a"]),
        node(2, "Reroute", inputs=[socket("", "*", 1)], outputs=[{"type": "CLIP"}]),
        node(3, "Reroute", inputs=[socket("", "*", 2)], outputs=[{"type": "CLIP"}]),
        node(4, "Encode", ["hi"], inputs=[socket("clip", "CLIP", 3)]),
    )
    links = ([1, 1, 1, 2, 0, "*"], [2, 2, 0, 3, 0, "*"], [3, 3, 0, 4, 0, "*"])
    assert inputs_of(*nodes, links=links, key="4")["clip"] == ["1", 1]


def bypass(mode: int) -> tuple[list[dict[str, Any]], list[Any]]:
    patch = node(
        2,
        "Patch",
        inputs=[socket("clip", "CLIP", 1), socket("model", "MODEL", 2)],
        outputs=[{"type": "MODEL"}, {"type": "CLIP"}],
    )
    patch["mode"] = mode
    nodes = [
        node(1, "Loader", ["a"]),
        patch,
        node(3, "Encode", ["hi"], inputs=[socket("clip", "CLIP", 3)]),
    ]
    links = [[1, 1, 1, 2, 0, "CLIP"], [2, 1, 0, 2, 1, "MODEL"], [3, 2, 1, 3, 0, "CLIP"]]
    return nodes, links


def test_bypassed_node_hands_on_its_input_of_the_same_type():
    nodes, links = bypass(4)
    prompt = to_prompt({"nodes": nodes, "links": links}, OBJECT_INFO)
    assert set(prompt) == {"1", "3"}
    assert prompt["3"]["inputs"]["clip"] == ["1", 1]


def test_muted_node_leaves_its_readers_without_input():
    nodes, links = bypass(2)
    prompt = to_prompt({"nodes": nodes, "links": links}, OBJECT_INFO)
    assert set(prompt) == {"1", "3"}
    assert prompt["3"]["inputs"] == {"text": "hi"}


def test_unknown_node_class_is_named():
    with pytest.raises(WorkflowError, match=r"no node class Absent \(node 8\)"):
        inputs_of(node(8, "Absent"), key="8")


def test_subgraphs_are_refused():
    workflow = {"nodes": [], "links": [], "definitions": {"subgraphs": [{"id": "x"}]}}
    with pytest.raises(WorkflowError, match="subgraphs"):
        to_prompt(workflow, OBJECT_INFO)


def test_inputs_are_changed_in_a_copy():
    prompt = to_prompt({"nodes": [node(1, "Loader", ["a"])], "links": []}, OBJECT_INFO)
    changed = with_inputs(prompt, "Loader", {"name": "b"})
    assert changed["1"]["inputs"] == {"name": "b"}
    assert prompt["1"]["inputs"] == {"name": "a"}
    assert node_of(prompt, "Loader") == "1"


def test_changes_that_fit_nothing_are_refused():
    prompt = to_prompt(
        {"nodes": [node(1, "Loader", ["a"]), node(2, "Loader", ["a"])], "links": []}, OBJECT_INFO
    )
    with pytest.raises(WorkflowError, match="2 nodes of class Loader"):
        node_of(prompt, "Loader")
    with pytest.raises(WorkflowError, match="0 nodes of class Sample"):
        with_inputs(prompt, "Sample", {"seed": 1})
    del prompt["2"]
    with pytest.raises(WorkflowError, match="no input model"):
        with_inputs(prompt, "Loader", {"model": "b"})
