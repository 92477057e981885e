from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import pytest
from intelligent_generation.core.catalog.entries import (
    LoraEntry,
    LoraLibrary,
    TagCount,
    TriggerWord,
    UnreadableFile,
)
from intelligent_generation.core.errors import LoraError, SettingError
from intelligent_generation.core.plan import (
    Clause,
    Concept,
    Factor,
    FileRef,
    Intent,
    LoraPlan,
    PromptAnalysis,
    RemoteLora,
    Span,
    StyleIntent,
)
from intelligent_generation.core.prompting import analyze
from intelligent_generation.core.recommending import (
    RecommendSettings,
    UserLora,
    recommend,
    to_stack,
)

AC_PROMPT = (
    "1girl, anime style, magical powers, detailed Victorian mansion background, "
    "cinematic lighting, masterpiece, best quality"
)


def analyse(
    prompt: str,
    *,
    weights: dict[str, float] | None = None,
    style: StyleIntent = "GENERAL",
    clarity: float = 0.0,
    complexity: float = 0.4,
    characters: Sequence[str] = (),
    segments: tuple[str, ...] | None = None,
) -> PromptAnalysis:
    clauses = [part.strip() for part in prompt.split(",") if part.strip()]
    return PromptAnalysis(
        prompt=prompt,
        segments=segments or (prompt,),
        negative_segments=("",),
        spans=(Span(text=prompt, weight=1.0),),
        clauses=tuple(Clause(text=c, weight=(weights or {}).get(c, 1.0)) for c in clauses),
        concepts=tuple(Concept(category="character", text=c, weight=1.0) for c in characters),
        intent=Intent(style=style, content="SCENE", quality="MEDIUM", confidence=clarity),
        complexity=complexity,
        complexity_band="MODERATE",
    )


def lora(
    name: str,
    *triggers: str,
    title: str | None = None,
    family: str = "sdxl",
    tags: Sequence[str | tuple[str, float]] = (),
    source: str = "modelspec",
    share: float = 1.0,
    description: str = "",
    weight: float | None = None,
    variant: str | None = None,
) -> LoraEntry:
    return LoraEntry(
        file=FileRef(folder="loras", name=f"{name}.safetensors"),
        title=title or name.split("/")[-1].replace("_", " "),
        family=family,
        variant=variant,
        family_confidence=1.0,
        evidence="test",
        trigger_words=tuple(TriggerWord(text, share, source) for text in triggers),
        tags=tuple(TagCount(t, 1.0) if isinstance(t, str) else TagCount(*t) for t in tags),
        description=description,
        recommended_weight=weight,
    )


def fit(lora_family: str, model_family: str) -> float:
    if lora_family == "unknown":
        return 0.5
    return 1.0 if lora_family == model_family else 0.0


OTHERS = (
    lora("lighthouse_coast", tags=[("lighthouse", 0.9), ("sea", 0.8)]),
    lora("styles/inkwash_v1", "ink wash painting", weight=0.8),
    lora("mecha_parts_v3", "mecha parts"),
    lora("frieren_v1", "frieren", tags=["character", "anime", ("white hair", 0.9)]),
    lora("victorian_dress", "victorian dress", tags=["clothing"]),
    lora("add_detail_xl"),
)


def library(*entries: LoraEntry, unreadable: Sequence[UnreadableFile] = ()) -> LoraLibrary:
    return LoraLibrary(entries, tuple(unreadable), revision="sample")


def plan_for(
    prompt: str | PromptAnalysis,
    *entries: LoraEntry,
    family: str = "sdxl",
    users: Sequence[UserLora] = (),
    unreadable: Sequence[UnreadableFile] = (),
    fit: Callable[[str, str], float] = fit,
    remote: Sequence[LoraEntry] = (),
    checkpoint: str = "",
    **settings: object,
) -> LoraPlan:
    analysis = analyse(prompt) if isinstance(prompt, str) else prompt
    return recommend(
        analysis,
        library(*entries, *remote, unreadable=unreadable),
        family=family,
        fit=fit,
        checkpoint=checkpoint,
        settings=RecommendSettings(**settings),  # pyright: ignore[reportArgumentType]
        user_loras=users,
        remote={entry.file: place(entry) for entry in remote},
    )


def place(entry: LoraEntry) -> RemoteLora:
    return RemoteLora(hub="civitai", reference="civitai:1@2", page=f"https://x/{entry.title}")


def titles(plan: LoraPlan) -> list[str]:
    return [each.title for each in plan.loras]


def skipped(plan: LoraPlan) -> dict[str, str]:
    return {each.name.removesuffix(".safetensors"): each.code for each in plan.skipped}


def codes(plan: LoraPlan) -> list[str]:
    return [notice.code for notice in plan.notices]


# ------------------------------------------------------------------ choosing


def test_the_acceptance_prompt_gets_its_anime_style() -> None:
    plan = plan_for(analyze(AC_PROMPT), lora("Anime_Style_XL", "anime style"), *OTHERS)
    assert len(plan.loras) <= 3
    assert any("anime" in title.lower() for title in titles(plan))
    for chosen in plan.loras:
        assert chosen.confidence >= 0.5
        assert 0.3 <= chosen.model_strength <= 1.2
        assert chosen.clip_strength == chosen.model_strength
        assert chosen.reason.endswith(".")
        assert chosen.serves


def test_each_thing_asked_for_gets_its_lora_by_name_trigger_or_script() -> None:
    plan = plan_for("a lighthouse by the sea, ink wash", *OTHERS, min_confidence=0.35)
    assert set(titles(plan)) == {"lighthouse coast", "inkwash v1"}
    found = plan_for("墨心 水墨画", lora("墨心"), *OTHERS)
    assert titles(found) == ["墨心"]
    # A name written as one word, a prompt as two, and the other way round.
    assert titles(plan_for("pixel art castle", lora("pixelart-000010"), *OTHERS))
    assert titles(plan_for("pixelart castle", lora("pixel_art_v2"), *OTHERS))


def test_what_an_author_says_of_the_checkpoint_counts_and_is_told() -> None:
    entry = lora("ink_wash", "ink wash", description="Best on RevAnimated, at 0.7.")

    def factor(checkpoint: str) -> Factor:
        (chosen,) = plan_for("ink wash castle", entry, *OTHERS, checkpoint=checkpoint).loras
        return next(each for each in chosen.factors if each.name == "checkpoint")

    named, other, unknown = map(factor, ("revAnimated_v122", "photon_v1", ""))
    assert named.value > max(other.value, unknown.value)
    assert (named.detail, other.detail, unknown.detail) == ("revanimated", "", "")


def test_whole_words_only() -> None:
    entries = [lora("art", "art"), lora("cat", "cat"), *OTHERS]
    assert titles(plan_for("a party in a cathedral", *entries)) == []


@pytest.mark.parametrize("prompt", ["a cat", "masterpiece, best quality", "", "!!! ((", "x" * 5000])
def test_nothing_fits_nothing_is_recommended(prompt: str) -> None:
    plan = plan_for(prompt, *OTHERS)
    assert plan.loras == ()
    assert codes(plan) == ["no_lora_fits"]
    assert plan.segments == (prompt,)
    assert plan.candidates == len(OTHERS)


def test_an_empty_library_is_fine() -> None:
    plan = plan_for("a lighthouse")
    assert (plan.loras, plan.candidates, codes(plan)) == ((), 0, ["no_loras"])


def test_more_evidence_and_emphasis_raise_confidence() -> None:
    def confidence(prompt: PromptAnalysis) -> float:
        plan = plan_for(prompt, *OTHERS, min_confidence=0.0)
        return next(c.confidence for c in plan.loras if c.title == "inkwash v1")

    part = confidence(analyse("ink, a castle on a hill"))
    whole = confidence(analyse("ink wash painting, a castle on a hill"))
    strong = confidence(analyse("ink, a castle on a hill", weights={"ink": 1.4}))
    weak = confidence(analyse("ink, a castle on a hill", weights={"ink": 0.5}))
    assert part < whole
    assert weak < part < strong


def test_the_nearest_alternative_has_the_confidence_that_the_skipped_one_has() -> None:
    other = lora("ink_lines", tags=["ink"])
    plan = plan_for("ink wash painting, a castle on a hill", other, *OTHERS)
    (chosen,) = plan.loras
    (lost,) = (each for each in plan.skipped if "ink_lines" in each.name)
    figure = lost.reason.split("confidence ")[1].split(" ")[0]
    assert 0.1 <= float(figure) < 0.6
    assert f'"ink lines", has confidence {figure}: that is not sure enough' in chosen.reason


def test_what_name_and_captions_both_say_counts_when_it_is_asked_for() -> None:
    def sure(title: str, prompt: str) -> tuple[float, float]:
        captioned = lora(title, "watercolor", source="tag_frequency", share=0.95)
        plan = plan_for(prompt, captioned, *OTHERS, min_confidence=0.0)
        (chosen,) = (each for each in plan.loras if each.title == title)
        (value,) = (f.value for f in chosen.factors if f.name == "captions")
        return chosen.confidence, value

    named, value = sure("Watercolor Wash", "a castle, watercolor")
    other, nothing = sure("Wet Wash", "a castle, watercolor")
    assert 0.4 < value < 1 and nothing == 0
    assert named > max(0.6, other + 0.2)


def test_a_lora_without_metadata_is_judged_by_its_name() -> None:
    bare = lora("steampunk_airship")
    full = lora("steampunk_airship", "stmpnk9", description="unrelated words of its author")
    prompt = "a steampunk airship over the city"
    assert titles(plan_for(prompt, bare, *OTHERS)) == ["steampunk airship"]
    bare_confidence = plan_for(prompt, bare, *OTHERS).loras[0].confidence
    full_confidence = plan_for(prompt, full, *OTHERS).loras[0].confidence
    # A lack counts neither for nor against it.
    assert bare_confidence == pytest.approx(full_confidence, abs=0.1)


def test_the_factors_sum_to_the_confidence_and_name_the_words() -> None:
    chosen = plan_for("ink wash painting of a hill", *OTHERS).loras[0]
    logit = sum(factor.value * factor.weight for factor in chosen.factors)
    assert 1 / (1 + 2.718281828**-logit) == pytest.approx(chosen.confidence, abs=0.002)
    details = {factor.name: factor.detail for factor in chosen.factors}
    assert details["trigger"] == "ink wash painting"
    assert "ink wash painting" in chosen.reason


def test_intent_favours_a_style_of_its_kind() -> None:
    style = lora("cel_look", "anime cel look", tags=["style"])
    plain = plan_for(analyse("anime, a hill at noon"), style, *OTHERS, min_confidence=0.0)
    clear = plan_for(
        analyse("anime, a hill at noon", style="ANIME", clarity=0.9),
        style,
        *OTHERS,
        min_confidence=0.0,
    )
    assert clear.loras[0].confidence > plain.loras[0].confidence


def test_it_is_deterministic_and_does_not_depend_on_the_library_order() -> None:
    prompt = "frieren, ink wash painting, a lighthouse"
    first = plan_for(prompt, *OTHERS)
    assert plan_for(prompt, *OTHERS) == first
    assert plan_for(prompt, *reversed(OTHERS)).loras == first.loras
    assert LoraPlan.from_json(first.to_json()) == first


# ------------------------------------------------------------------ conflicts


def test_of_two_versions_the_better_stays() -> None:
    old = lora("ukiyo_wave_v1")
    new = lora("ukiyo_wave_v2", "ukiyo wave")
    plan = plan_for("ukiyo wave, a boat", old, new, *OTHERS)
    assert [c.file.name for c in plan.loras] == ["ukiyo_wave_v2.safetensors"]
    loss = next(s for s in plan.skipped if s.name == "ukiyo_wave_v1.safetensors")
    assert loss.code == "conflict"
    assert "ukiyo wave v2" in loss.reason


def test_the_same_trigger_words_are_the_same_lora() -> None:
    a = lora("kyoto_garden", "kyogdn")
    b = lora("zen_stones", "kyogdn")
    plan = plan_for("kyogdn, kyoto garden, zen stones", a, b, *OTHERS)
    assert len(plan.loras) == 1
    assert "conflict" in skipped(plan).values()


def test_one_lora_for_one_thing() -> None:
    a = lora("steampunk_city", "steampunk city")
    b = lora("steampunk_gears")
    plan = plan_for("steampunk city, a bridge", a, b, *OTHERS, min_confidence=0.2)
    assert titles(plan) == ["steampunk city"]
    assert skipped(plan)["steampunk_gears"] == "conflict"


def test_opposing_styles_exclude_each_other() -> None:
    anime = lora("akira_cel", "akira cel anime", tags=["style"])
    photo = lora("kodak_photo", "kodak photograph", tags=["style"])
    plan = plan_for("akira cel anime, kodak photograph", anime, photo, *OTHERS, min_confidence=0.5)
    assert len(plan.loras) == 1
    loss = next(s for s in plan.skipped if s.code == "conflict")
    assert "exclude each other" in loss.reason
    assert plan.loras[0].title in loss.reason


def test_a_style_against_the_clear_intent_is_left_out() -> None:
    anime = lora("sakuga_waifu", tags=["style"])
    prompt = "sakuga, portrait of a woman"
    assert titles(plan_for(prompt, anime, *OTHERS)) == ["sakuga waifu"]
    photo = analyse(prompt, style="PHOTOREAL", clarity=0.9)
    assert skipped(plan_for(photo, anime, *OTHERS))["sakuga_waifu"] == "not_asked"


def test_a_character_nobody_asked_for_is_rejected() -> None:
    entry = lora(
        "kaede_sakurano",
        "kaede sakurano",
        "horned owl mask",
        tags=["character", "lantern festival"],
    )
    asked = plan_for("kaede sakurano, lantern festival", entry, *OTHERS)
    assert titles(asked) == ["kaede sakurano"]
    unasked = plan_for("horned owl mask, lantern festival", entry, *OTHERS, min_confidence=0.2)
    assert titles(unasked) == []
    assert skipped(unasked)["kaede_sakurano"] == "not_asked"


@pytest.mark.parametrize(
    ("before", "characters", "count"),
    [("", (), 1), ("1girl", (), 1), ("2girls", (), 2), ("two women", (), 2), ("1girl, 1boy", (), 2),
     ("", ("kaede", "mirelda"), 2)],
)  # fmt: skip
def test_characters_are_as_many_as_asked(
    before: str, characters: Sequence[str], count: int
) -> None:
    a = lora("kaede", "kaede sakurano", tags=["character"])
    b = lora("mirelda", "mirelda voss", tags=["character"])
    prompt = f"kaede sakurano, mirelda voss, {before}"
    plan = plan_for(analyse(prompt, characters=characters), a, b, *OTHERS)
    assert len(plan.loras) == count


def test_at_most_two_styles_or_one() -> None:
    styles = [
        lora("styles/zorblat", "zorblat"),
        lora("styles/quivanta", "quivanta"),
        lora("styles/meldrun", "meldrun"),
    ]
    prompt = "zorblat, quivanta, meldrun"
    assert len(plan_for(prompt, *styles).loras) == 2
    assert len(plan_for(prompt, *styles, allow_style_mixing=False).loras) == 1


def test_no_more_than_max_loras() -> None:
    entries = [lora(name, name) for name in ("zorblat", "quivanta", "meldrun", "hexolin")]
    plan = plan_for("zorblat, quivanta, meldrun, hexolin", *entries, max_loras=2)
    assert len(plan.loras) == 2
    assert list(skipped(plan).values()).count("over_limit") == 2
    assert plan_for("zorblat", *entries, max_loras=0).loras == ()


# ------------------------------------------------------------------ base model and safety


def test_another_base_model_is_skipped_only_where_it_would_have_matched() -> None:
    other = lora("zorblat_sd15", "zorblat", family="sd15")
    unrelated = lora("quivanta_sd15", "quivanta", family="sd15")
    plan = plan_for("zorblat", other, unrelated, *OTHERS)
    assert plan.loras == ()
    assert skipped(plan) == {"zorblat_sd15": "other_base_model"}
    assert plan.candidates == len(OTHERS)
    # However many of them match better, one that fits the model is still found.
    crowd = [lora(f"z{i}", "zorblat", title=f"zorblat {i}", family="sd15") for i in range(150)]
    assert titles(plan_for("zorblat", *crowd, lora("mine", "zorblat"))) == ["mine"]


def test_an_unknown_lora_family_counts_a_little_against_it() -> None:
    known = plan_for("zorblat", lora("zorblat", "zorblat")).loras[0]
    unknown = plan_for("zorblat", lora("zorblat", "zorblat", family="unknown")).loras[0]
    assert unknown.confidence < known.confidence
    assert "base model is unknown" in unknown.reason


def test_a_lora_of_unknown_family_that_fits_nothing_is_skipped_but_the_users_is_kept() -> None:
    def strict(lora_family: str, model_family: str) -> float:
        return float(lora_family == model_family)

    entry = lora("zorblat", "zorblat", family="unknown")
    plan = plan_for("zorblat", entry, *OTHERS, fit=strict)
    assert skipped(plan) == {"zorblat": "other_base_model"}
    assert "cannot be told" in plan.skipped[0].reason
    own = UserLora(entry, 1.0, 1.0, "prompt_tag")
    assert titles(plan_for("zorblat", *OTHERS, fit=strict, users=[own])) == ["zorblat"]


def test_an_unknown_model_gets_no_recommendation_but_keeps_the_users_lora() -> None:
    own = UserLora(lora("mine", family="sd15"), 0.9, 0.8, "stack")
    plan = plan_for("ink wash painting", *OTHERS, family="unknown", users=[own])
    assert titles(plan) == ["mine"]
    assert "model_family_unknown" in codes(plan)


def test_acceleration_loras_are_not_content() -> None:
    fast = lora("lightning_4step", "lightning", variant="lightning")
    plan = plan_for("lightning", fast, *OTHERS)
    assert plan.loras == ()
    assert skipped(plan)["lightning_4step"] == "acceleration"


def test_sexual_content_is_off_by_default_and_compared_by_whole_words() -> None:
    explicit = lora("zorblat", "zorblat", tags=[("nude", 0.6)])
    seldom = lora("quivanta", "quivanta", tags=[("nude", 0.1)], description="From Sussex, 2018.")
    plan = plan_for("zorblat, quivanta", explicit, seldom)
    assert titles(plan) == ["quivanta"]
    assert skipped(plan) == {"zorblat": "blocked"}
    assert len(plan_for("zorblat, quivanta", explicit, seldom, allow_nsfw=True).loras) == 2


@pytest.mark.parametrize(
    ("tags", "prompt"),
    [
        (["nude", "child"], "zorblat"),
        (["nude", ("loli", 0.1)], "zorblat"),
        (["nude"], "zorblat, 15 year old girl"),
        (["schoolgirl"], "zorblat, nsfw"),
    ],
)
def test_minors_in_a_sexual_context_are_always_blocked(tags: list[str], prompt: str) -> None:
    entry = lora("zorblat", "zorblat", tags=tags)
    plan = plan_for(prompt, entry, allow_nsfw=True)
    assert plan.loras == ()
    assert skipped(plan) == {"zorblat": "blocked"}
    with pytest.raises(LoraError, match="minors"):
        plan_for(prompt, users=[UserLora(entry, 1.0, 1.0, "stack")], allow_nsfw=True)


def test_a_child_alone_is_no_reason_to_block() -> None:
    assert titles(plan_for("zorblat, a child", lora("zorblat", "zorblat", tags=["child"])))


def test_blocked_tags_are_compared_whole() -> None:
    entry = lora("zorblat", "zorblat", tags=["horror art"])
    assert plan_for("zorblat", entry, blocked_tags=("hor", "art horror")).loras
    plan = plan_for("zorblat", entry, blocked_tags=("Horror",))
    assert skipped(plan) == {"zorblat": "blocked"}


# ------------------------------------------------------------------ the user's own


def test_the_users_loras_come_first_keep_their_strength_and_serve_their_words() -> None:
    own = UserLora(lora("ink_of_mine", "ink wash"), 1.7, 0.4, "prompt_tag")
    plan = plan_for("ink wash, frieren", *OTHERS, users=[own])
    assert titles(plan) == ["ink of mine", "frieren v1"]
    first = plan.loras[0]
    assert (first.model_strength, first.clip_strength) == (1.7, 0.4)
    assert first.by_user
    assert first.serves == ("ink wash",)
    assert skipped(plan)["styles/inkwash_v1"] == "conflict"


def test_the_users_own_file_is_not_recommended_again() -> None:
    plan = plan_for("frieren", *OTHERS, users=[UserLora(OTHERS[3], 1.0, 1.0, "stack")])
    assert titles(plan) == ["frieren v1"]


def test_a_users_lora_of_another_base_model_is_an_error_that_says_what_to_do() -> None:
    own = UserLora(lora("old/thing", family="sd15"), 1.0, 1.0, "prompt_tag")
    with pytest.raises(LoraError) as error:
        plan_for("a hill", *OTHERS, users=[own])
    for part in ("old/thing.safetensors", "sd15", "sdxl", "prompt"):
        assert part in str(error.value)


def test_only_recommended_strengths_give_way() -> None:
    own = [UserLora(lora(f"own{i}"), 1.1, 1.1, "stack") for i in range(2)]
    entries = [lora(name, name, weight=1.2) for name in ("zorblat", "quivanta")]
    plan = plan_for("zorblat, quivanta", *entries, users=own, max_loras=4)
    assert [c.model_strength for c in plan.loras[:2]] == [1.1, 1.1]
    given = [c.model_strength for c in plan.loras[2:]]
    assert given and all(strength >= 0.3 for strength in given)
    assert sum(c.model_strength for c in plan.loras) <= 3.0 + 1e-9
    assert "scaled" in plan.loras[2].reason
    full = plan_for("zorblat", *entries, users=[own[0]._replace(model_strength=3.5)])
    assert len(full.loras) == 1
    assert skipped(full)["zorblat"] == "over_limit"


# ------------------------------------------------------------------ trigger words


def test_only_missing_trigger_words_are_added_to_the_last_segment_and_escaped() -> None:
    entry = lora("ana_zorblat", r"ana zorblat \(game\), 1girl, solo", "second outfit")
    analysis = analyse("ana zorblat", segments=("sky, ", "ana zorblat,"))
    plan = plan_for(analysis, entry, *OTHERS)
    assert plan.segments == ("sky, ", r"ana zorblat, ana zorblat \(game\)")
    assert plan.loras[0].trigger_words == ("ana zorblat (game)",)


def test_a_trigger_word_that_is_there_is_not_added() -> None:
    entry = lora("zorblat", "zorblat style", "zorblat coat")
    for prompt in ("Zorblat_Style, a hill", "zorblat coat, a hill"):
        plan = plan_for(prompt, entry, *OTHERS)
        assert plan.loras[0].trigger_words == ()
        assert plan.segments == (prompt,)


def test_a_caption_tag_is_added_only_if_it_is_rare_and_nearly_everywhere() -> None:
    def added(tag: str, share: float) -> tuple[str, ...]:
        entry = lora("zorblat", tag, source="tag_frequency", share=share)
        plan = plan_for("zorblat, a hill", entry, *OTHERS, min_confidence=0.5)
        return plan.loras[0].trigger_words

    assert added("zrbl8", 0.98) == ("zrbl8",)
    assert added("zrbl8", 0.6) == ()
    assert added("1girl", 1.0) == ()


def test_the_users_lora_gets_its_trigger_word_and_a_notice() -> None:
    own = UserLora(lora("thing", "th1ng"), 1.0, 1.0, "prompt_tag")
    plan = plan_for("a hill", *OTHERS, users=[own])
    assert plan.segments == ("a hill, th1ng",)
    assert codes(plan) == ["trigger_words_added"]
    assert plan_for("a hill, th1ng", *OTHERS, users=[own]).segments == ("a hill, th1ng",)


def test_at_most_three_words_of_a_lora_with_hundreds() -> None:
    entry = lora(
        "zorblat", ", ".join(f"zorb{i}" for i in range(400)), *[f"t{i}" for i in range(400)]
    )
    plan = plan_for("zorblat", entry, *OTHERS, min_confidence=0.1)
    assert len(plan.loras[0].trigger_words) <= 3


# ------------------------------------------------------------------ reports and limits


def test_unreadable_files_are_named_up_to_ten_and_then_counted() -> None:
    files = [UnreadableFile(f"bad{i}.safetensors", "Truncated; delete it.") for i in range(13)]
    plan = plan_for("a hill", *OTHERS, unreadable=files)
    assert [s.code for s in plan.skipped] == ["unreadable"] * 10
    assert plan.skipped[0].reason == "Truncated; delete it."
    notice = next(n for n in plan.notices if n.code == "more_unreadable")
    assert notice.message.startswith("3 more")


def test_the_nearest_below_the_limit_are_named() -> None:
    plan = plan_for("ink wash painting", *OTHERS, min_confidence=1.0)
    assert plan.loras == ()
    assert skipped(plan) == {"styles/inkwash_v1": "below_confidence"}


@pytest.mark.parametrize(
    "bad", [{"max_loras": -1}, {"min_confidence": 1.5}, {"max_total_strength": float("nan")}]
)
def test_settings_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(SettingError, match=next(iter(bad))):
        RecommendSettings(**bad)  # pyright: ignore[reportArgumentType]


def test_a_changed_library_under_the_same_revision_is_seen() -> None:
    assert plan_for("zorblat", *OTHERS).loras == ()
    assert titles(plan_for("zorblat", *OTHERS, lora("zorblat"))) == ["zorblat"]


def test_thousands_of_loras_and_long_prompts_take_bounded_time() -> None:
    rng = random.Random(0)
    syllables = ["ka", "ri", "to", "me", "shi", "lo", "van", "der"]
    tags = ["long hair", "garden", "neon", "castle", "forest", "sword", "rain", "ruins"]

    def made() -> str:
        return "".join(rng.choices(syllables, k=5))

    entries = tuple(
        lora(made(), made(), tags=[(t, rng.random()) for t in tags]) for _ in range(3000)
    )
    wanted = lora("zorblat", "zorblat")
    whole = library(*entries, wanted)
    prompt = ", ".join([*(made() for _ in range(280)), *tags, "zorblat"])
    recommend(analyse("warm"), whole, family="sdxl", fit=fit)
    start = time.process_time()
    plan = recommend(
        analyse(prompt), whole, family="sdxl", fit=fit, settings=RecommendSettings(min_confidence=0)
    )
    assert time.process_time() - start < 2.0
    assert plan.candidates == 3001
    assert len(plan.loras) == 3


def test_a_remote_lora_is_chosen_only_for_what_no_local_one_serves() -> None:
    near = lora("pixel_grid", "pixel art", title="Pixel Grid")
    far = lora("pixel_perfect", "pixel art style", "pixel art", title="Pixel Art Perfect")
    mecha = lora("mecha_works", "mecha armor", title="Mecha Armor Works")
    prompt = "pixel art, mecha armor"
    alone = plan_for(prompt, *OTHERS[:2], near, min_confidence=0.2)
    assert titles(alone) == ["Pixel Grid"] and not alone.pending
    plan = plan_for(prompt, *OTHERS[:2], near, remote=(far, mecha), min_confidence=0.2)
    assert titles(plan) == ["Pixel Grid", "Mecha Armor Works"]
    assert [each.pending for each in plan.loras] == [False, True]
    assert plan.loras[1].remote == place(mecha) and plan.loras[1].origin == "recommended"
    assert skipped(plan)["pixel_perfect"] == "conflict"
    assert [name for name, *_ in to_stack(plan)] == ["pixel_grid.safetensors"]


def test_local_loras_take_the_places_first() -> None:
    near = lora("pixel_grid", "pixel art", title="Pixel Grid")
    mecha = lora("mecha_works", "mecha armor", title="Mecha Armor Works")
    plan = plan_for(
        "mecha armor, pixel art", near, remote=(mecha,), max_loras=1, min_confidence=0.2
    )
    assert titles(plan) == ["Pixel Grid"] and skipped(plan)["mecha_works"] == "over_limit"


def test_words_that_are_served_already_are_told_in_the_prompts_order() -> None:
    words = ["azure", "brass", "coral", "dune", "ember", "flint"]
    plan = plan_for(
        " ".join(words),
        lora("first", " ".join(words), title=" ".join(reversed(words))),
        lora("second", title=" ".join(words[::2])),
        min_confidence=0.0,
    )
    (told,) = (one.reason for one in plan.skipped if "already serves" in one.reason)
    assert told.endswith("already serves: azure, coral, ember.")
