"""LORA_STACK in and out of a plan."""

from __future__ import annotations

import pytest
from intelligent_generation.core.catalog import LoraEntry
from intelligent_generation.core.errors import LoraError
from intelligent_generation.core.plan import FileRef, LoraPlan, PlannedLora, RemoteLora
from intelligent_generation.core.recommending import (
    UserLora,
    to_stack,
    with_user_loras,
    without_pending,
)


def planned(name: str, strength: float, origin="recommended") -> PlannedLora:
    return PlannedLora(
        file=FileRef(folder="loras", name=name),
        title=name,
        model_strength=strength,
        clip_strength=strength,
        origin=origin,
        reason="It fits.",
    )


def own(name: str, model_strength: float, clip_strength: float | None = None) -> UserLora:
    file = FileRef(folder="loras", name=name)
    entry = LoraEntry(file, name, "sd15", None, 1.0, "")
    clip = model_strength if clip_strength is None else clip_strength
    return UserLora(entry, model_strength, clip, "stack")


PLAN = LoraPlan(family="sd15", loras=(planned("a", 0.7), planned("b", 0.5)), segments=("x",))


def test_the_users_come_after_the_plans_own_and_keep_both_strengths() -> None:
    plan = with_user_loras(PLAN, [own("c", 0.9, 0.2)])
    assert to_stack(plan) == [("a", 0.7, 0.7), ("b", 0.5, 0.5), ("c", 0.9, 0.2)]
    assert plan.loras[2].by_user and plan.segments == PLAN.segments and not plan.notices


def test_nothing_to_add_changes_nothing() -> None:
    assert with_user_loras(PLAN, []) == PLAN
    assert to_stack(LoraPlan(family="sd15", segments=("",))) == []


def test_a_recommended_one_gives_way_to_the_users_strength_and_it_is_said() -> None:
    plan = with_user_loras(PLAN, [own("a", 1.0)])
    assert to_stack(plan) == [("b", 0.5, 0.5), ("a", 1.0, 1.0)]
    (notice,) = plan.notices
    assert "a was recommended at 0.7" in notice.message and "1" in notice.message


def test_the_same_strength_twice_counts_once() -> None:
    assert with_user_loras(PLAN, [own("b", 0.5)]) == PLAN


def test_two_wishes_of_the_user_that_differ_are_refused() -> None:
    plan = PLAN.model_copy(update={"loras": (planned("a", 0.7, "prompt_tag"),)})
    with pytest.raises(LoraError, match=r"a is named twice, at 0\.7 and at 0\.3"):
        with_user_loras(plan, [own("a", 0.3)])


def pending(name: str, *triggers: str, origin="recommended") -> PlannedLora:
    remote = RemoteLora(hub="civitai", reference="civitai:1@2", page="https://x")
    update = {"remote": remote, "pending": True, "trigger_words": triggers}
    return planned(name, 0.8, origin).model_copy(update=update)


def test_what_is_not_here_is_taken_out_with_the_words_it_added() -> None:
    near = planned("a", 0.7).model_copy(update={"trigger_words": ("ink (wash)",)})
    text = "a cat, ink \\(wash\\), far style"
    plan = LoraPlan(family="sd15", loras=(near, pending("far", "far style")), segments=(text,))
    assert to_stack(plan) == [("a", 0.7, 0.7)]
    left = without_pending(plan, ("a cat",))
    assert left.loras == (near,) and left.segments == ("a cat, ink \\(wash\\)",)
    (skipped,) = left.skipped
    assert (skipped.name, skipped.code) == ("far", "not_fetched")
    edited = plan.model_copy(update={"segments": ("my own text",)})
    assert without_pending(edited, ("a cat",)).segments == ("my own text",)


def test_a_plan_with_nothing_pending_or_with_the_users_own_is_left_as_it_is() -> None:
    assert without_pending(PLAN, ("x",)) is PLAN
    own_choice = PLAN.model_copy(update={"loras": (pending("far", origin="reference"),)})
    assert without_pending(own_choice, ("x",)) is own_choice


def test_a_reference_that_is_not_here_is_pending() -> None:
    remote = RemoteLora(hub="civitai", reference="civitai:1@2")
    plan = with_user_loras(PLAN, [own("c", 0.9)._replace(origin="reference", remote=remote)])
    assert plan.pending == (plan.loras[2],) and plan.loras[2].remote == remote
