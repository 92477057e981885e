"""What a picture of the small world shows, and which combinations are kept out of training."""

from __future__ import annotations

import hashlib
from bisect import bisect
from dataclasses import dataclass
from typing import Any

from numpy.random import RandomState

SUBJECTS = (
    "lighthouse",
    "house",
    "tree",
    "boat",
    "mountain",
    "moon",
    "cat",
    "fish",
    "flower",
    "car",
    "mushroom",
    "castle",
    "umbrella",
    "balloon",
)
"""The subjects that the base model is trained on."""
NEW_SUBJECTS = ("robot", "cactus", "rocket")
"""The subjects that only LoRAs are trained on."""
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
PLACES = ("left", "center", "right")
BACKGROUNDS = ("sea", "forest", "desert", "city", "snow", "meadow")
TIMES = ("day", "dusk", "night")
STYLES = ("flat", "watercolor", "sketch", "pixel", "neon", "blueprint")
"""The first is the base model's; the others are what style LoRAs are trained on."""
COUNTS = (1, 2, 3)

HELD_OUT_PERCENT = 15
MAX_SEED = 2**32 - 1

_VALUES: dict[str, tuple[Any, ...]] = {
    "subject": SUBJECTS + NEW_SUBJECTS,
    "colour": COLOURS,
    "count": COUNTS,
    "place": PLACES,
    "background": BACKGROUNDS,
    "time": TIMES,
    "style": STYLES,
}


@dataclass(frozen=True)
class Scene:
    """One scene. `seed` (0 to 2**32 - 1) decides everything that the other fields leave open.

    Raises ValueError for a value outside its vocabulary, and for two or three subjects that are
    not at the center: they fill the width.
    """

    subject: str
    colour: str
    count: int = 1
    place: str = "center"
    background: str = "meadow"
    time: str = "day"
    style: str = "flat"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, values in _VALUES.items():
            value = getattr(self, name)
            if value not in values:
                raise ValueError(f"scene: {name} is {value!r}; use one of {values}")
        if self.count > 1 and self.place != "center":
            raise ValueError(f"scene: {self.count} subjects stand at the center, not {self.place}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"scene: seed is {self.seed}; use 0 to {MAX_SEED}")


def random_scene(random: RandomState, **fixed: Any) -> Scene:
    """A scene drawn from `random`, with the fields in `fixed` as given.

    Every base subject, colour, background, time and style is equally likely; one, two or three
    subjects in 70, 20 and 10 % of scenes; a single one at the center in 60 %. Always takes the
    same number of draws, so that fixing a field leaves the other ones as they were.
    """
    drawn: dict[str, Any] = {
        "subject": SUBJECTS[random.randint(len(SUBJECTS))],
        "colour": COLOURS[random.randint(len(COLOURS))],
        "background": BACKGROUNDS[random.randint(len(BACKGROUNDS))],
        "time": TIMES[random.randint(len(TIMES))],
        "style": STYLES[random.randint(len(STYLES))],
        "count": COUNTS[bisect((0.7, 0.9), random.random_sample())],
        "place": PLACES[bisect((0.2, 0.8), random.random_sample())],
        "seed": int(random.randint(2**31 - 1)),
    }
    if "count" not in fixed and fixed.get("place", "center") != "center":
        drawn["count"] = 1
    if fixed.get("count", drawn["count"]) > 1:
        drawn["place"] = "center"
    return Scene(**{**drawn, **fixed})


def held_out(scene: Scene) -> bool:
    """Whether the scene's subject, colour and background are a combination never trained on.

    About 15 % of all triples, chosen by the MD5 of their words, whatever the other fields are.
    """
    words = f"{scene.colour} {scene.subject} {scene.background}"
    digest = hashlib.md5(words.encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT
