"""Objects of ComfyUI's classes that are given a few methods of ours."""

from __future__ import annotations

import functools
from typing import Any


def mix_in(mixin: type, thing: Any, name: str) -> Any:
    """The same object, of a class that has the mixin before its own; its clones keep that class.

    Args:
        name: stands before the name of its class.
    """
    thing.__class__ = _mixed(mixin, type(thing), name)
    return thing


@functools.cache
def _mixed(mixin: type, base: type, name: str) -> type:
    return type(f"{name}{base.__name__}", (mixin, base), {})
