"""A plan run in the memory there is: where it runs out, with less and less."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from .. import host
from ..errors import ShortOfMemoryError, first_line
from ..generating import Progress, Sampled, run
from ..memory import OWN_MEMORY, ModelChoice, describe_model, is_auto, told
from ..memory.conceding import (
    as_it_worked,
    can_be_int8,
    conceded,
    largest_side,
    ran_out_before,
    setup_of,
    tiled_by_comfyui,
    with_setup,
)
from ..memory.recovery import Setup, Spare, Stage, cheaper_than, next_step
from ..memory.remembered import Fallback
from ..plan import Concessions, GenerationPlan, MemoryPlan, Notice
from ..tuning import model_key
from .files import Files
from .memory import Memory, own_plan
from .models import Models

log = logging.getLogger(__name__)


class Running:
    """Runs plans."""

    def __init__(self, files: Files, memory: Memory, models: Models) -> None:
        self._files = files
        self._memory = memory
        self._models = models

    def run(
        self, plan: GenerationPlan, given: host.LoadedModel, configuration: str
    ) -> tuple[GenerationPlan, Sampled, tuple[Notice, ...]]:
        """Run the plan; where it is out of memory, with less and less. What was run then is in
        the plan that is returned, and told by the notices.

        Args:
            given: MODEL, CLIP and VAE as they are wired.
            configuration: under which what ran out of memory is kept; see `tuning.Work`.
        """
        model, clip, vae = given
        key = model_key(plan.model)
        free = self._memory_for_running()
        asked = setup_of(plan)
        found = self._memory.recall(key, configuration, free)
        plan, setup, notices = self._as_it_worked(plan, asked, given, found)
        if setup.int8 and not asked.int8:
            swapped = self._at_int8(plan, given)
            if swapped is None:
                setup = setup._replace(int8=False)
            else:
                model, clip, plan = swapped
        done = Progress()
        made_room = fell_short = no_int8 = False
        while True:
            try:
                sampled = run(plan, model, clip, vae, locate=self._files.locate, progress=done)
                break
            except Exception as error:
                if not host.is_out_of_memory(error):
                    raise
                problem = first_line(error)
            # Not in the handler: the error's frames hold what was being computed.
            fell_short, stage = True, done.stage
            log.warning("Intelligent Generation: out of memory (%s): %s", stage, problem)
            room = self._memory.give_way() > 0 and not made_room
            made_room = made_room or room
            spare = _spare(plan, asked, given)
            spare = spare._replace(room=room, int8=spare.int8 and not no_int8)
            step = next_step(stage, setup, spare)
            if step is not None and step.rung == "int8":
                swapped = self._at_int8(plan, given)
                if swapped is None:
                    no_int8 = True
                    step = next_step(stage, setup, spare._replace(int8=False))
                else:
                    model, clip, plan = swapped
                    done = Progress()
            if step is None:
                raise self._nothing_left(plan, stage, problem, notices, free)
            setup = step.setup
            notices = (*notices, conceded(stage, step))
            plan = with_setup(plan, setup, lambda: _policy(given))
        if sampled.tiled_decode and not setup.tiled_decode:
            setup, fell_short = setup._replace(tiled_decode=True), True
            plan = with_setup(plan, setup, lambda: _policy(given))
            notices = (*notices, tiled_by_comfyui())
        if fell_short and setup != asked:
            self._memory.remember(key, configuration, setup, free)
        if _own_memory():
            notices = (*notices, *told(sampled.places))
        return plan, sampled, notices

    def _as_it_worked(
        self,
        plan: GenerationPlan,
        asked: Setup,
        given: host.LoadedModel,
        found: Fallback | None,
    ) -> tuple[GenerationPlan, Setup, tuple[Notice, ...]]:
        """The plan with what was given up for it before."""
        if found is None or plan.concessions != Concessions():
            return plan, asked, ()
        setup = as_it_worked(asked, found.setup, _spare(plan, asked, given))
        if setup == asked:
            return plan, asked, ()
        plan = with_setup(plan, setup, lambda: _policy(given))
        return plan, setup, (ran_out_before(found.at),)

    def _memory_for_running(self) -> int:
        """What can be had on the device that samples."""
        free = self._memory.free_memory()
        return free.vram if _own_memory() else free.ram

    def _at_int8(
        self, plan: GenerationPlan, given: host.LoadedModel
    ) -> tuple[Any, Any, GenerationPlan] | None:
        """MODEL and CLIP of the plan's files at int8, and the plan with them; None where RAM is
        short for that. CLIP stays where another node made it, or it lies in other files."""
        part, text = plan.model.part("diffusion_model"), plan.model.part("text_encoder")
        assert part is not None
        policy = plan.memory or own_plan()
        policy = policy.model_copy(update={"weight_dtype": "int8"})
        if policy.strategy == "DISK_OFFLOAD":  # which uses weights as the file has them
            policy = policy.model_copy(update={"strategy": "SEQUENTIAL"})
        choice = ModelChoice(part.files[0], variant=plan.model.variant or "")
        try:
            loaded = self._models.load(choice, policy)
        except ShortOfMemoryError as error:
            log.warning("Intelligent Generation: int8 was not possible: %s", error)
            return None
        same = text is not None and text.files == part.files
        model, clip = loaded.model, loaded.clip if same else given.clip
        # A memory plan that only the loader has is known by what it loaded.
        if (rule := host.rule_of(given.model)) is not None:
            model = host.model_with_rule(model, rule)
        if same and clip is not None and given.clip is not None:
            rule = host.rule_of(given.clip.patcher)
            clip = clip if rule is None else host.clip_with_rule(clip, rule)
        info = describe_model(model, clip, given.vae)
        info = info.model_copy(update={"notices": plan.model.notices})
        return model, clip, plan.model_copy(update={"model": info})

    def _nothing_left(
        self,
        plan: GenerationPlan,
        stage: Stage,
        problem: str,
        notices: Sequence[Notice],
        free: int,
    ) -> ShortOfMemoryError:
        tried = " ".join(notice.message for notice in notices)
        advice = "Choose a smaller size or a smaller model, or close other programs."
        main = plan.model.part("diffusion_model")
        if main is not None and can_be_int8(plan):
            # Only the loader can make it smaller where all of it is in RAM.
            self._memory.remember_loading(main.files[0], Setup(int8=True), free)
            advice = f"HubModelLoader will load it at int8 when it loads it again. {advice}"
        return ShortOfMemoryError(
            f"Out of memory at the stage {stage}: {problem}. {tried} Nothing else is left to try. "
            f"{advice}".replace("  ", " ")
        )


def _own_memory() -> bool:
    """Whether the device that samples has memory apart from RAM."""
    return host.HostMachine().device_kind in OWN_MEMORY


def _spare(plan: GenerationPlan, asked: Setup, given: host.LoadedModel) -> Spare:
    """What this plan could still give up, beside room on the device."""
    return Spare(
        cheaper=_cheaper_strategies(plan, asked, given),
        # ComfyUI's cache keeps the model as it was: at int8 there is less on the device, and
        # where that is the processor, more in all.
        int8=_own_memory() and can_be_int8(plan),
        tiles=largest_side(plan) > host.TILE,
    )


def _cheaper_strategies(
    plan: GenerationPlan, asked: Setup, given: host.LoadedModel
) -> tuple[str, ...]:
    # A strategy that the user named stays, here or where the model was loaded.
    named = asked.strategy != "AUTO" or not all(map(is_auto, _rules(given)))
    if named or not _own_memory():
        return ()
    return cheaper_than(setup_of(plan).strategy)


def _rules(given: host.LoadedModel) -> list[host.MemoryRule]:
    """The rules that what is wired carries from where it was loaded."""
    patchers = [given.model, *(part and part.patcher for part in (given.clip, given.vae))]
    rules = [host.rule_of(patcher) for patcher in patchers if patcher is not None]
    return [rule for rule in rules if rule is not None]


def _policy(given: host.LoadedModel) -> MemoryPlan:
    """This machine's plan, with the limit that what is wired keeps to."""
    caps = [rule.cap for rule in _rules(given) if rule.cap is not None]
    return own_plan().model_copy(update={"max_vram_bytes": min(caps, default=None)})
