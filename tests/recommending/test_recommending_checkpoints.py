from __future__ import annotations

import random
from typing import Any

import pytest
from intelligent_generation.core.catalog import all_families
from intelligent_generation.core.catalog.entries import ModelEntry, UnreadableFile
from intelligent_generation.core.errors import ModelFileError
from intelligent_generation.core.plan import ChosenModel, FileRef
from intelligent_generation.core.prompting import analyze
from intelligent_generation.core.recommending import (
    LoraSupport,
    MemoryLimits,
    RatedModel,
    choose_checkpoint,
)
from intelligent_generation.core.recommending.checkpoints import _facts, style_profile

GIB = 2**30
CARD = MemoryLimits(8 * GIB, 32 * GIB, own_memory=True)
ANIME = analyze("1girl, anime style, cherry blossoms, masterpiece")
PHOTO = analyze("photo of an old fisherman, 85mm, f/1.8, natural light")
ANY = analyze("a red bicycle")


def entry(name: str, *, family: str = "sd15", gib: float = 2.0, **more: Any) -> ModelEntry:
    file = FileRef(folder="checkpoints", name=f"{name}.safetensors", size=int(gib * GIB))
    return ModelEntry(file, name, family, None, 1.0, "tensors", **more)


def no_loras(family: str) -> LoraSupport:
    return LoraSupport()


def choose(*entries: ModelEntry, analysis: Any = ANY, **more: Any) -> ChosenModel:
    more = {"loras": no_loras, "memory": CARD, **more}
    return choose_checkpoint(entries, analysis, **more)


def chosen(*entries: ModelEntry, **more: Any) -> str:
    return choose(*entries, **more).file.name.removesuffix(".safetensors")


SHELF = (
    entry("anything-v5"),
    entry("realisticVisionV60"),
    entry("v1-5-pruned-emaonly"),
    entry("dreamshaper_8"),
)


@pytest.mark.parametrize(
    ("analysis", "expected"),
    [
        (ANIME, "anything-v5"),
        (PHOTO, "realisticVisionV60"),
        (analyze("oil painting of a harbour, impressionism"), "dreamshaper_8"),
        (ANY, "v1-5-pruned-emaonly"),
        (None, "v1-5-pruned-emaonly"),
    ],
)
def test_the_style_that_is_asked_for_decides(analysis, expected):
    assert chosen(*SHELF, analysis=analysis) == expected


@pytest.mark.parametrize(
    ("made", "style"),
    [
        (entry("x", tags=("anime", "girl")), "ANIME"),
        (entry("x", description="A photorealistic model."), "PHOTOREAL"),
        (entry("x", family="noobai"), "ANIME"),
        (entry("surrealistic_dreams"), None),
        (entry("unrealEngine"), None),
        (entry("meinaunreal_v1Beta"), None),
        (entry("partyMix"), None),
        (entry("RealVisXL_V5"), "PHOTOREAL"),
        (entry("AOM3A1B"), "ANIME"),
    ],
)
def test_what_a_checkpoint_is_made_for(made, style):
    profile = style_profile(made)
    best = max(profile, key=lambda name: profile[name])
    assert (best if profile[best] else None) == style


def test_the_choice_is_explained_with_what_lost_and_why():
    choice = choose(*SHELF, analysis=ANIME)
    assert choice.candidates == 4
    assert choice.score == pytest.approx(
        sum(factor.value * factor.weight for factor in choice.factors), abs=1e-3
    )
    assert "ANIME was read in the prompt" in choice.reason
    lost = {item.name: item.reason for item in choice.alternatives}
    assert "what it is made for (PHOTOREAL" in lost["realisticVisionV60.safetensors"]
    assert list(lost)[-1] == "realisticVisionV60.safetensors", "the worst comes last"


def test_loras_that_fit_draw_to_their_family():
    def loras(family: str) -> LoraSupport:
        return LoraSupport((0.9, 0.6), ("Ink", "Fog")) if family == "sdxl" else LoraSupport()

    both = (entry("a-base", gib=2), entry("b-base", family="sdxl", gib=2))
    asked: list[str] = []
    choice = choose(*both, *both, analysis=ANY, loras=lambda f: (asked.append(f), loras(f))[1])
    assert choice.file.name == "b-base.safetensors"
    assert sorted(asked) == ["sd15", "sdxl"], "once for each family"
    (factor,) = (factor for factor in choice.factors if factor.name == "loras")
    assert (factor.value, factor.detail) == (0.96, "Ink, Fog")


def test_a_lora_of_the_users_rules_out_families_it_does_not_fit():
    def loras(family: str) -> LoraSupport:
        return (
            LoraSupport(problem="The LoRA is made for sdxl.") if family == "sd15" else no_loras("")
        )

    choice = choose(entry("a"), entry("b", family="sdxl", gib=6), loras=loras)
    assert choice.file.name == "b.safetensors"
    (lost,) = choice.alternatives
    assert (lost.code, lost.reason) == ("other_base_model", "The LoRA is made for sdxl.")


def test_memory_decides_between_equals_and_rules_out_what_cannot_be_loaded():
    small, large = entry("b-small", gib=2), entry("a-large", gib=12)
    assert chosen(small, large) == "b-small"
    roomy = MemoryLimits(24 * GIB, 64 * GIB, own_memory=True)
    assert chosen(small, large, memory=roomy) == "a-large", "by name"
    assert chosen(entry("b", gib=5), entry("a", gib=7, precision="F32")) == "a", "loaded at half"
    choice = choose(small, entry("a-huge", gib=100))
    assert choice.alternatives[0].code == "too_large"


def test_ratings_count_by_style_and_one_is_no_verdict():
    def rated(name: str, style: Any, *ratings: int) -> list[RatedModel]:
        return [RatedModel(f"{name}.safetensors", None, style, rating) for rating in ratings]

    a, b = entry("a"), entry("b")
    assert chosen(a, b) == "a"
    assert chosen(a, b, ratings=rated("a", "GENERAL", 1, 1, 1)) == "b"
    assert chosen(a, b, ratings=rated("b", "GENERAL", 5)) == "b", "between equals it decides"
    assert chosen(a, b, ratings=rated("b", "GENERAL", 3, 3)) == "a", "neutral teaches nothing"
    one_star = rated("anything-v5", "ANIME", 1)
    assert chosen(*SHELF, analysis=ANIME, ratings=one_star) == "anything-v5"
    many = rated("anything-v5", "ANIME", *[1] * 6)
    assert chosen(*SHELF, analysis=ANIME, ratings=many) != "anything-v5"
    elsewhere = rated("anything-v5", "PHOTOREAL", *[1] * 6)
    assert chosen(*SHELF, analysis=ANIME, ratings=elsewhere) == "anything-v5"
    other_file = [RatedModel("a.safetensors", "f" * 64, "GENERAL", 1)] * 5
    hashed = a._replace(file=a.file.model_copy(update={"sha256": "e" * 64}))
    assert chosen(hashed, b, ratings=other_file) == "a"


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (entry("a", family="unknown"), "unknown_family"),
        (entry("sd-v1-5-inpainting"), "not_text_to_image"),
        (entry("sd_xl_refiner_1.0", family="sdxl"), "not_text_to_image"),
        (entry("a", family="wan"), "not_text_to_image"),
        (entry("a", nsfw=True), "nsfw"),
        (entry("a", minor_unsafe=True), "unsafe"),
    ],
)
def test_what_is_never_chosen(bad, code):
    choice = choose(bad, entry("z"))
    assert choice.file.name == "z.safetensors"
    assert [item.code for item in choice.alternatives] == [code]
    with pytest.raises(ModelFileError, match=r"none of the 1 checkpoints can be used"):
        choose(bad)


def test_files_without_encoder_or_vae_are_passed_over():
    a, b = entry("a"), entry("b")
    choice = choose(a, b, problem=lambda e: "The file holds no vae." if e is a else "")
    assert choice.file.name == "b.safetensors"
    assert choice.alternatives[0].reason == "The file holds no vae."


def test_none_at_all_and_only_broken_ones_are_told():
    with pytest.raises(ModelFileError, match="no checkpoint to choose from"):
        choose()
    broken = [UnreadableFile("a.safetensors", "is cut off; download it again")]
    with pytest.raises(ModelFileError, match=r"a\.safetensors: It is cut off"):
        choose(unreadable=broken)
    assert choose(entry("b"), unreadable=broken).alternatives[0].code == "unreadable"


def test_order_of_files_does_not_matter_and_json_holds_it():
    shelf = list(SHELF)
    expected = choose(*shelf, analysis=PHOTO)
    random.Random(1).shuffle(shelf)
    assert choose(*shelf, analysis=PHOTO) == expected
    assert ChosenModel.model_validate_json(expected.model_dump_json()) == expected


def test_the_table_names_families_that_exist_and_sources():
    facts = _facts()
    named = {row["family"] for row in facts["families"]} | set(
        facts["not_text_to_image"]["families"]
    )
    assert named <= set(all_families())
    assert all(row["source"] for row in (*facts["signs"], *facts["families"], *facts["readers"]))
