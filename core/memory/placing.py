"""MemoryPlan and MODEL, CLIP, VAE -> the same, which keep to the plan when they are used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .. import host
from ..errors import SettingError
from ..plan import MemoryPlan, Notice
from .allocation import WORKING_BYTES, room_for_weights
from .resources import FreeMemory, human_bytes
from .strategy import OWN_MEMORY, makes_room


class Placed(NamedTuple):
    """Clones that keep to a plan; None where None came in."""

    model: Any
    clip: Any
    vae: Any


def place(plan: MemoryPlan, model: Any, clip: Any, vae: Any, free: FreeMemory) -> Placed:
    """MODEL, CLIP and VAE of any loader, kept to the plan by whatever node uses them.

    Objects that keep to the plan already, or that AUTO leaves alone, come back as they are.

    Args:
        free: what can be had now; VRAM with what ComfyUI would make room in.

    Raises:
        SettingError: FULL_GPU does not fit, or DISK_OFFLOAD and a model whose weights another
            node has read into RAM.
    """
    patchers = {"MODEL": model, "CLIP": clip and clip.patcher, "VAE": vae and vae.patcher}
    patchers = {name: patcher for name, patcher in patchers.items() if patcher is not None}
    mapped = not plan.dynamic_vram and any(map(host.is_mapped, patchers.values()))
    if plan.strategy == "AUTO" and mapped:  # as AUTO chose when it was loaded
        plan = plan.model_copy(update={"strategy": "DISK_OFFLOAD"})
        patchers = {}
    if plan.strategy == "FULL_GPU":
        _check_whole(plan, list(patchers.values()), free)
    if plan.strategy == "DISK_OFFLOAD":
        for name, patcher in patchers.items():
            if name != "VAE" and not host.is_mapped(patcher):
                raise SettingError(
                    f"DISK_OFFLOAD cannot be applied to this {name}: its weights are in RAM "
                    "already. Load it by HubModelLoader with the memory plan linked to it, or set "
                    "strategy to SEQUENTIAL in MemoryStrategy."
                )
    main, others = _rules(plan)
    if model is not None and host.rule_of(model) != main:
        model = host.model_with_rule(model, main)
    if clip is not None and host.rule_of(clip.patcher) != others:
        clip = host.clip_with_rule(clip, others)
    if vae is not None and host.rule_of(vae.patcher) != others:
        vae = host.vae_with_rule(vae, others)
    return Placed(model, clip, vae)


def _rules(plan: MemoryPlan) -> tuple[host.MemoryRule | None, host.MemoryRule | None]:
    """The rule for the diffusion model, and that for text encoders and VAE."""
    cap = plan.max_vram_bytes
    capped = None if cap is None else host.MemoryRule(cap=cap)
    if plan.strategy == "AUTO":
        making_room = host.MemoryRule(makes_room=True, cap=cap)
        return (making_room if makes_room(plan) else capped), capped
    if plan.strategy == "CPU_OFFLOAD":
        return capped, host.MemoryRule(on_processor=True)
    if plan.strategy in ("SEQUENTIAL", "DISK_OFFLOAD"):
        # In RAM, a LoRA that is added to all weights would make a second model of them.
        in_ram = plan.device.kind not in OWN_MEMORY
        streamed = plan.strategy == "DISK_OFFLOAD" and in_ram
        rule = host.MemoryRule(alone=True, cap=cap, streamed=streamed)
    else:
        rule = host.MemoryRule(whole=True, cap=cap)
    return rule, rule


def is_auto(rule: host.MemoryRule) -> bool:
    """Whether AUTO gives such a rule, with or without a limit."""
    return rule._replace(makes_room=False, cap=None) == host.MemoryRule()


def told(places: Sequence[host.SamplingPlace]) -> tuple[Notice, ...]:
    """What to say of how the diffusion model was held while it sampled, on a device with memory
    of its own; nothing where it was there whole, and so were the others."""
    notices = []
    if any(place.made_room for place in places):
        message = (
            "The parts of the model do not fit on the device together at this size and batch, so "
            "others left it before sampling."
        )
        notices.append(Notice(level="info", code="parts_in_turn", message=message))
    least = min(places, key=lambda place: place.loaded_bytes, default=None)
    if least is not None and least.loaded_bytes < least.bytes:
        message = (
            f"{human_bytes(least.loaded_bytes)} of the diffusion model's "
            f"{human_bytes(least.bytes)} were on the device while it sampled. The rest was "
            "streamed in at each step, which takes longer."
        )
        notices.append(Notice(level="info", code="weights_streamed", message=message))
    return tuple(notices)


def _check_whole(plan: MemoryPlan, patchers: list[Any], free: FreeMemory) -> None:
    if plan.device.kind not in OWN_MEMORY and plan.max_vram_bytes is None:
        return
    size = sum(int(patcher.model_size()) for patcher in patchers)
    working = WORKING_BYTES if plan.device.kind in OWN_MEMORY else 0
    room = room_for_weights(plan, free.vram, working)
    if size > room:
        raise SettingError(
            f"FULL_GPU does not fit: MODEL, CLIP and VAE take {human_bytes(size)}, and "
            f"{human_bytes(room)} of {plan.device.name} can be had beside what computing needs. "
            "Set strategy to AUTO in MemoryStrategy, or raise max_vram_gb if you set it."
        )
