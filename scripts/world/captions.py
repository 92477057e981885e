"""What people would type to get a scene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from numpy.random import RandomState

from .scenes import NEW_SUBJECTS, SUBJECTS, Scene

Form = Literal["tags", "prose"]

NOUNS: dict[str, tuple[tuple[str, str], ...]] = {
    name: ((name, f"{name}s"),) for name in SUBJECTS + NEW_SUBJECTS
}
"""Of each subject, its names in the singular and plural; the first is the usual one."""
NOUNS |= {
    "house": (("house", "houses"), ("cottage", "cottages")),
    "boat": (("boat", "boats"), ("sailboat", "sailboats")),
    "cat": (("cat", "cats"), ("kitten", "kittens")),
    "fish": (("fish", "fish"),),
    "flower": (("flower", "flowers"), ("blossom", "blossoms")),
    "balloon": (("balloon", "balloons"), ("hot air balloon", "hot air balloons")),
    "cactus": (("cactus", "cacti"), ("cactus", "cactuses")),
}
NUMBERS = {2: ("two", "2"), 3: ("three", "3")}

_Words = dict[str, dict[Form, tuple[str, ...]]]

BACKGROUND_WORDS: _Words = {
    "sea": {
        "tags": ("sea", "ocean", "by the sea", "coast"),
        "prose": ("by the sea", "at sea", "by the ocean", "on the coast", "in front of the sea"),
    },
    "forest": {
        "tags": ("forest", "woods", "in the forest"),
        "prose": ("in the forest", "in a forest", "in the woods", "in front of a forest"),
    },
    "desert": {
        "tags": ("desert", "dunes", "sand dunes"),
        "prose": ("in the desert", "in a desert", "among the dunes", "on sand dunes"),
    },
    "city": {
        "tags": ("city", "town", "skyline", "city skyline"),
        "prose": ("in the city", "in a city", "in a town", "in front of a city skyline"),
    },
    "snow": {
        "tags": ("snow", "snowy", "snowy field", "in the snow"),
        "prose": ("in the snow", "in snow", "in a snowy field", "in a snowy landscape"),
    },
    "meadow": {
        "tags": ("meadow", "grassy field", "grass", "green meadow"),
        "prose": ("in a meadow", "in the meadow", "in a grassy field", "on a green meadow"),
    },
}
TIME_WORDS: _Words = {
    "day": {
        "tags": ("day", "daytime", "noon"),
        "prose": ("by day", "during the day", "in the daytime", "at noon"),
    },
    "dusk": {
        "tags": ("dusk", "sunset", "evening"),
        "prose": ("at dusk", "at sunset", "in the evening"),
    },
    "night": {
        "tags": ("night", "midnight", "at night"),
        "prose": ("at night", "at night", "at midnight"),
    },
}
PLACE_WORDS: _Words = {
    place: {
        "tags": (f"on the {place}", place, f"{place} side"),
        "prose": (f"on the {place}", f"on the {place} side", f"to the {place}"),
    }
    for place in ("left", "right")
}
PLACE_WORDS["center"] = {
    "tags": ("centered", "in the center"),
    "prose": ("in the center", "in the middle"),
}
STYLE_WORDS: dict[str, tuple[str, ...]] = {
    "flat": ("flat", "flat illustration", "flat design"),
    "watercolor": ("watercolor", "watercolour", "watercolor painting"),
    "sketch": ("sketch", "pencil sketch", "pencil drawing"),
    "pixel": ("pixel art", "pixel art style"),
    "neon": ("neon", "neon glow", "neon style"),
    "blueprint": ("blueprint", "blueprint drawing"),
}
STYLE_OPENINGS: dict[str, tuple[str, ...]] = {
    "flat": ("a flat illustration of",),
    "watercolor": ("a watercolor of", "a watercolor painting of"),
    "sketch": ("a sketch of", "a pencil sketch of"),
    "pixel": ("pixel art of", "a pixel art picture of"),
    "neon": ("a neon picture of", "neon art of"),
    "blueprint": ("a blueprint of", "a blueprint drawing of"),
}
OPENINGS = ("a picture of", "an illustration of", "a drawing of", "an image of")
PRAISE = ("masterpiece", "best quality", "highly detailed", "beautiful", "high quality")

USUAL_MENTION = {"colour": 0.9, "background": 0.85, "time": 0.75, "place": 0.5}
"""How often an attribute is named. The center is named as if it were one, but ten times rarer."""
PRAISE_SHARE, OPENING_SHARE, STYLE_OPENING_SHARE = 0.2, 0.15, 0.4
USUAL_WORD_SHARE = 0.7
"""How often the usual name of a subject is used where it has another one."""


def caption(
    scene: Scene,
    random: RandomState,
    *,
    form: Form,
    mention: float | None = None,
    style: bool = False,
) -> str:
    """A prompt for the scene, as tags ("red lighthouse, night, sea") or in prose.

    The subject is always named, and a count of two or three. `mention` is the probability (0 to
    1) of naming each other attribute; None names them as often as people do (`USUAL_MENTION`).
    The center is named seldom, and never has to be. With `style` the scene's style is named too,
    except that "flat" is so only half of the time.
    Raises ValueError for a mention outside 0 to 1.
    """
    if mention is not None and not 0 <= mention <= 1:
        raise ValueError(f"caption: mention is {mention}; use 0 to 1, or None")

    def named(attribute: str) -> bool:
        share = USUAL_MENTION[attribute] if mention is None else mention
        if attribute == "place" and scene.place == "center":
            share *= 0.1 if scene.count == 1 else 0
        return random.random_sample() < share

    styled = style and (scene.style != "flat" or random.random_sample() < 0.5)
    opening = ""
    if form == "prose":
        if styled and random.random_sample() < STYLE_OPENING_SHARE:
            opening, styled = _one(random, STYLE_OPENINGS[scene.style]), False
        elif random.random_sample() < OPENING_SHARE:
            opening = _one(random, OPENINGS)
    subject = _subject(scene, random, coloured=named("colour"), article=form == "prose")
    details = [
        _one(random, words[value][form])
        for attribute, words, value in (
            ("background", BACKGROUND_WORDS, scene.background),
            ("time", TIME_WORDS, scene.time),
        )
        if named(attribute)
    ]
    random.shuffle(details)
    place = [_one(random, PLACE_WORDS[scene.place][form])] if named("place") else []
    if form == "prose":
        parts = [" ".join(filter(None, (opening, subject, *details))), *place]
    else:
        parts = [subject, *details, *place]
    if styled:
        parts.append(_one(random, STYLE_WORDS[scene.style]))
    if random.random_sample() < PRAISE_SHARE:
        count = 1 + random.randint(2)
        praise = [PRAISE[index] for index in random.permutation(len(PRAISE))[:count]]
        parts = praise + parts if random.random_sample() < 0.5 else parts + praise
    return ", ".join(parts)


def _one(random: RandomState, words: Sequence[str]) -> str:
    return words[random.randint(len(words))]


def _subject(scene: Scene, random: RandomState, *, coloured: bool, article: bool) -> str:
    nouns = NOUNS[scene.subject]
    usual = len(nouns) == 1 or random.random_sample() < USUAL_WORD_SHARE
    singular, plural = nouns[0] if usual else nouns[1:][random.randint(len(nouns) - 1)]
    words = [scene.colour] if coloured else []
    if scene.count > 1:
        return " ".join([_one(random, NUMBERS[scene.count]), *words, plural])
    words.append(singular)
    if article:
        words.insert(0, "an" if words[0][0] in "aeiou" else "a")
    return " ".join(words)
