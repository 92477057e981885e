from __future__ import annotations

import pytest
from intelligent_generation.core.recommending.text import (
    called,
    contains,
    name_words,
    pieces,
    spelt_out,
    words,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Flowers, green_backgrounds", ("flower", "green", "background")),
        ("witches glass bus ponies", ("witch", "glass", "bus", "pony")),
        ("a girl's café", ("a", "girl", "cafe")),
        ("grey armour", ("gray", "armor")),
        ("Ｗｉｄｅ", ("wide",)),
        ("水墨画", ("水墨", "墨画")),
        ("猫 cat猫耳", ("猫", "cat", "猫耳")),
        ("パティ", ("パテ", "ティ")),
        ("чёрный кот", ("черныи", "кот")),
        (" ,()-!", ()),
        ("", ()),
    ],
)
def test_words_fold_case_width_accents_and_plural(text: str, expected: tuple[str, ...]) -> None:
    assert words(text) == expected


def test_short_and_long_texts_are_read_alike() -> None:
    assert words("red coats, " * 40) == ("red", "coat") * 40


@pytest.mark.parametrize(
    ("name", "family", "expected"),
    [
        ("inkWash_v2-SDXL", "sdxl", ("ink", "wash")),
        ("gachaSplashLORA", "sd15", ("gacha", "splash")),
        ("pixelart-000010", "sdxl", ("pixelart",)),
        ("moxin3", "sd15", ("moxin",)),
        ("2B_v1", "sd15", ("2b",)),
        ("pony_ride", "sdxl", ("pony", "ride")),
        ("pony_ride", "pony", ("ride",)),
        ("lora_v3", "sd15", ()),
    ],
)
def test_name_words_drop_what_is_said_of_the_file(
    name: str, family: str, expected: tuple[str, ...]
) -> None:
    assert name_words(name, family) == expected


@pytest.mark.parametrize(
    ("stem", "names", "text"),
    [
        ("revAnimated_v122", {"revanimated", "rev", "animated"}, "rev Animated v 122"),
        ("AOM3_pruned", {"aom3", "aom"}, "AOM 3 pruned"),
        (
            "realisticVisionV60B1_v51VAE",
            {
                "realisticvisionv60b1",
                "realisticvision",
                "realistic",
                "vision",
                "v51vae",
            },
            "realistic Vision V 60 B 1 v 51 VAE",
        ),
        ("墨幽人造人_v1080", {"墨幽", "幽人", "人造", "造人"}, "墨幽人造人 v 1080"),
        ("v1-5-pruned-emaonly", set(), "v 1 5 pruned emaonly"),
        ("", set(), ""),
    ],
)
def test_what_a_file_may_be_called_in_running_text(stem: str, names: set[str], text: str) -> None:
    assert called(stem) == names
    assert spelt_out(stem) == text


def test_pieces_take_off_emphasis_escapes_and_lora_tags() -> None:
    trigger = r"hm2b, (red coat:1.2), <lora:x:1>, ((hat)), ana \(game\), ana (game), ,"
    assert pieces(trigger) == ("hm2b", "red coat", "hat", "ana (game)")


def test_contains_wants_the_words_side_by_side() -> None:
    text = words("a red velvet coat")
    assert contains(text, words("red velvet"))
    assert not contains(text, words("red coat"))
    assert not contains(text, ())
    assert not contains(words("party"), words("art"))
