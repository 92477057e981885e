"""ComfyUI's own nodes, as Python objects."""

from __future__ import annotations

from importlib import import_module
from typing import Any

stock_nodes: Any = import_module("nodes")
"""ComfyUI's nodes.py. Not an import statement: type checkers would take our own `nodes`."""


def run_node(name: str, **inputs: Any) -> Any:
    """The first output of a stock node of ComfyUI's V3 API."""
    return stock_nodes.NODE_CLASS_MAPPINGS[name].execute(**inputs).result[0]


def node_module(node_id: str) -> str | None:
    """Where a node of this id comes from, e.g. `custom_nodes.some-pack`; None if there is none."""
    node = stock_nodes.NODE_CLASS_MAPPINGS.get(node_id)
    return None if node is None else getattr(node, "RELATIVE_PYTHON_MODULE", "ComfyUI")
