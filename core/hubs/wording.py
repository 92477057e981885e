"""What a hub offers, in words for a person."""

from __future__ import annotations

from ..plan import RemoteLora
from .answers import HUB_NAMES
from .entries import Hub


def size_in_words(size: int | None) -> str:
    """Bytes with the unit that suits them, e.g. `228 MB`."""
    if size is None:
        return "size not said"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} bytes"


def terms(hub: Hub, *, base_model: str, licence: str, creator: str, page: str) -> str:
    """Where a file comes from and on what terms, as the middle of a sentence."""
    by = f" by {creator}" if creator else ""
    return (
        f"on {HUB_NAMES[hub]}{by}, base model {base_model or 'not said'}, licence: "
        f"{licence or 'not said'}, {page}"
    )


def describe_remote(remote: RemoteLora) -> str:
    """Size and terms of a plan's remote LoRA, as the middle of a sentence."""
    where = terms(
        remote.hub,
        base_model=remote.base_model,
        licence=remote.licence,
        creator=remote.creator,
        page=remote.page,
    )
    return f"{size_in_words(remote.size)} {where}"


def where_to_get(remote: RemoteLora) -> str:
    """What to do to have a plan's remote LoRA, as a sentence."""
    return f"{HUB_NAMES[remote.hub]} has it: {remote.reference}, {remote.page}."
