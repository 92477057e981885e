"""Turns a workflow as ComfyUI's editor saves it into the form that /prompt takes.

The editor keeps widget values in a list, in the order of the node's widgets; /prompt wants them
by name. The names come from /object_info of the ComfyUI that will run the workflow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Prompt = dict[str, dict[str, Any]]

WIDGET_TYPES = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"})
ANNOTATIONS = frozenset({"Note", "MarkdownNote"})
SEEDS = frozenset({"seed", "noise_seed"})
"""Integer inputs that the editor follows with a `control_after_generate` widget unasked."""
MUTED, BYPASSED = 2, 4


class WorkflowError(Exception):
    """A workflow that cannot be turned into a prompt, or lacks what is asked of it."""


class _Link(NamedTuple):
    source: str
    slot: int


class _Value(NamedTuple):
    value: Any


def to_prompt(workflow: Mapping[str, Any], object_info: Mapping[str, Any]) -> Prompt:
    """The prompt that the editor would queue for this workflow.

    Muted nodes are left out; bypassed ones hand on the first input of the output's type;
    Reroute and PrimitiveNode are followed to what they stand for; notes are left out.

    Args:
        workflow: parsed JSON in the editor's format, versions 0.4 and 1.
        object_info: ComfyUI's answer to /object_info.

    Raises:
        WorkflowError: it uses a subgraph or a node class that this ComfyUI does not have.
    """
    if (workflow.get("definitions") or {}).get("subgraphs"):
        raise WorkflowError("Workflows with subgraphs are not supported; unpack them first.")
    nodes = {str(node["id"]): node for node in workflow["nodes"]}
    links = dict(_links(workflow["links"]))
    prompt: Prompt = {}
    for key, node in nodes.items():
        kind = node["type"]
        mode = node.get("mode", 0)
        if kind in ANNOTATIONS or kind in ("Reroute", "PrimitiveNode"):
            continue
        if mode in (MUTED, BYPASSED):
            continue
        if kind not in object_info:
            raise WorkflowError(f"This ComfyUI has no node class {kind} (node {key}).")
        inputs = _widget_values(node, object_info[kind])
        for socket in node.get("inputs") or ():
            if socket.get("link") is None:
                continue
            source = _source(links[socket["link"]], nodes, links)
            if isinstance(source, _Link):
                inputs[socket["name"]] = [source.source, source.slot]
            elif isinstance(source, _Value):
                inputs[socket["name"]] = source.value
        title = node.get("title") or object_info[kind].get("display_name") or kind
        prompt[key] = {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}
    return prompt


def node_of(prompt: Prompt, class_type: str) -> str:
    """The id of the only node of a class.

    Raises:
        WorkflowError: there is none, or there are several.
    """
    found = [key for key, node in prompt.items() if node["class_type"] == class_type]
    if len(found) != 1:
        raise WorkflowError(f"The workflow has {len(found)} nodes of class {class_type}, not 1.")
    return found[0]


def with_inputs(prompt: Prompt, class_type: str, values: Mapping[str, Any]) -> Prompt:
    """A copy of `prompt` with inputs of the only node of a class set to other values.

    Raises:
        WorkflowError: there is no such node, or it has no such input.
    """
    key = node_of(prompt, class_type)
    node = prompt[key]
    unknown = values.keys() - node["inputs"].keys()
    if unknown:
        raise WorkflowError(f"{class_type} has no input {', '.join(sorted(unknown))}.")
    return {**prompt, key: {**node, "inputs": {**node["inputs"], **values}}}


def _links(links: Any) -> Iterator[tuple[Any, _Link]]:
    for link in links:
        if isinstance(link, Mapping):
            yield link["id"], _Link(str(link["origin_id"]), link["origin_slot"])
        else:
            yield link[0], _Link(str(link[1]), link[2])


def _source(
    link: _Link, nodes: Mapping[str, Any], links: Mapping[Any, _Link]
) -> _Link | _Value | None:
    node = nodes[link.source]
    if node["type"] == "PrimitiveNode":
        values = node.get("widgets_values") or []
        return _Value(values[0]) if values else None
    mode = node.get("mode", 0)
    if mode == MUTED:
        return None
    if node["type"] == "Reroute":
        through = node["inputs"][:1]
    elif mode == BYPASSED:
        wanted = node["outputs"][link.slot]["type"]
        through = [one for one in node.get("inputs") or () if one["type"] == wanted][:1]
    else:
        return link
    if not through or through[0].get("link") is None:
        return None
    return _source(links[through[0]["link"]], nodes, links)


def _widget_values(node: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    values = node.get("widgets_values") or []
    if isinstance(values, Mapping):
        known = {name for name, _ in _inputs(info)}
        return {name: value for name, value in values.items() if name in known}
    named: dict[str, Any] = {}
    position = 0
    for name, specification in _inputs(info):
        kind = specification[0]
        options = specification[1] if len(specification) > 1 else {}
        if not _is_widget(kind, options):
            continue
        if position >= len(values):
            break
        named[name] = values[position]
        position += 1 + _companions(name, kind, options)
    return named


def _inputs(info: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for group in ("required", "optional"):
        yield from (info["input"].get(group) or {}).items()


def _is_widget(kind: Any, options: Mapping[str, Any]) -> bool:
    is_combo = isinstance(kind, list)
    return (is_combo or kind in WIDGET_TYPES) and not options.get("forceInput")


def _companions(name: str, kind: Any, options: Mapping[str, Any]) -> int:
    # Widgets that the editor puts after this one and saves a value for, unknown to the node.
    seed = options.get("control_after_generate", kind == "INT" and name in SEEDS)
    upload = any(options.get(f"{what}_upload") for what in ("image", "video", "audio"))
    return int(bool(seed)) + int(upload)
