"""Draws scenes: flat illustrations, and the same scenes in the other styles.

Everything is drawn four times larger than asked and then reduced. A style either draws the same
shapes with another `Look` (lines instead of areas) or works on the flat picture, or both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.random import RandomState
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .scenes import Scene

Colour = tuple[int, int, int]
Point = tuple[float, float]

SCALE = 4
"""How much larger than the result a scene is drawn."""
MIN_SIZE, MAX_SIZE = 64, 256

PAINTS: dict[str, Colour] = {
    "red": (222, 42, 42),
    "orange": (248, 136, 24),
    "yellow": (252, 216, 44),
    "green": (44, 172, 72),
    "blue": (40, 104, 226),
    "purple": (136, 66, 190),
    "pink": (250, 136, 188),
    "white": (248, 248, 250),
}
SHADES = {
    "orange": (0.86, 0.73, 0.6),
    "yellow": (0.93, 0.84, 0.5),
    "white": (0.80, 0.85, 0.93),
}
"""What the shaded side keeps of a colour where less of everything would be another colour."""
SKIES: dict[str, tuple[Colour, Colour]] = {
    "day": ((92, 184, 246), (210, 238, 252)),
    "dusk": ((92, 58, 148), (255, 156, 84)),
    "night": ((8, 12, 42), (36, 46, 102)),
}
"""Top and horizon."""
DESERT_DAY_SKY = ((120, 200, 244), (255, 232, 184))
LIGHT = {"day": (1.0, 1.0, 1.0), "dusk": (0.88, 0.68, 0.74), "night": (0.32, 0.38, 0.58)}
"""What the time does to the background's colours."""
NIGHT_LIGHT = {
    "desert": (0.5, 0.44, 0.5),
    "forest": (0.42, 0.56, 0.66),
    "meadow": (0.36, 0.46, 0.5),
}
"""The same at night, where the usual light would hide what the background is."""
SUBJECT_LIGHT = {"day": (1.0, 1.0, 1.0), "dusk": (0.98, 0.93, 0.95), "night": (0.92, 0.9, 0.96)}

WOOD, LEAF, CREAM = (128, 84, 52), (70, 140, 62), (246, 232, 204)
GLASS, LAMP, INK, METAL = (196, 228, 246), (255, 238, 140), (38, 38, 50), (168, 174, 186)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def render(scene: Scene, size: int) -> Image.Image:
    """The scene as an RGB picture of `size` x `size` pixels, the same bytes every time.

    Raises ValueError for a size outside 64 to 256.
    """
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ValueError(f"render: size is {size}; use {MIN_SIZE} to {MAX_SIZE} pixels")
    return _STYLES[scene.style](scene, size)


class Look(NamedTuple):
    """How shapes are drawn; each function takes a colour and whether it is the subject's."""

    fill: Callable[[Colour, bool], Colour]
    line: Callable[[Colour, bool], Colour | None]
    width: float
    """Of lines, as a share of the picture's."""
    bare: bool = False
    """Whether areas stay unpainted: then shades are left out, and dots have the line's colour."""


class Tones(NamedTuple):
    """The subject's colour, lit; `shade` for its other side, `dark` for openings."""

    base: Colour
    shade: Colour
    dark: Colour
    light: Colour
    white: Colour
    """For spots and caps: grey on a white subject."""


class Frame(NamedTuple):
    """Where the unit square of a drawing lies on the canvas, in pixels of the canvas."""

    x: float
    y: float
    sx: float
    sy: float


class Pen:
    """Draws shapes given in a frame's units with a look."""

    def __init__(self, image: Image.Image, look: Look, frame: Frame, subject: bool) -> None:
        self._draw = ImageDraw.Draw(image)
        self._look = look
        self._frame = frame
        self._subject = subject
        self._width = max(1, round(look.width * image.width * (1 if subject else 0.6)))

    def polygon(self, points: Sequence[Point], colour: Colour, edge: bool = True) -> None:
        """An area; without an edge it is a shade, which looks that only draw lines leave out."""
        if not edge and self._look.bare:
            return
        corners = self._place(points)
        self._draw.polygon(corners, fill=self._look.fill(colour, self._subject))
        line = self._line(colour)
        if edge and line:
            self._draw.line(
                [*corners, corners[0], corners[1]],
                fill=line,
                width=self._width,
                joint="curve" if len(corners) < 9 else None,
            )

    def box(
        self, left: float, low: float, right: float, high: float, colour: Colour, edge: bool = True
    ) -> None:
        self.polygon([(left, low), (right, low), (right, high), (left, high)], colour, edge)

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, colour: Colour, edge: bool = True
    ) -> None:
        if not edge and self._look.bare and rx > 0.06:
            return
        (x0, y0), (x1, y1) = self._place([(x - rx, y - ry), (x + rx, y + ry)])
        dot = self._look.bare and not edge
        self._draw.ellipse(
            (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)),
            fill=self._line(colour) if dot else self._look.fill(colour, self._subject),
            outline=self._line(colour) if edge else None,
            width=self._width,
        )

    def dot(self, x: float, y: float, radius: float, colour: Colour) -> None:
        self.ellipse(x, y, radius, radius, colour, edge=False)

    def blob(self, circles: Sequence[tuple[float, float, float]], colour: Colour) -> None:
        """Circles (x, y, radius) grown together: one outline round all of them."""
        inset = self._width / abs(self._frame.sy) if self._line(colour) else 0.0
        for x, y, radius in circles:
            self.ellipse(x, y, radius, radius, colour)
        for x, y, radius in circles:
            (left, top), (right, low) = self._place(
                [(x - radius + inset, y - radius + inset), (x + radius - inset, y + radius - inset)]
            )
            self._draw.ellipse(
                (min(left, right), min(top, low), max(left, right), max(top, low)),
                fill=self._look.fill(colour, self._subject),
            )

    def stroke(self, points: Sequence[Point], colour: Colour, thickness: float) -> None:
        """A round-ended band."""
        path = self._place(points)
        inner = thickness * abs(self._frame.sy)
        line = self._line(colour)
        passes = [(inner, self._look.fill(colour, self._subject))]
        if line:
            passes.insert(0, (inner + 2 * self._width, line))
        for width, ink in passes:
            self._draw.line(path, fill=ink, width=max(1, round(width)), joint="curve")
            for x, y in (path[0], path[-1]):
                half = width / 2
                self._draw.ellipse((x - half, y - half, x + half, y + half), fill=ink)

    def thin(self, points: Sequence[Point], colour: Colour, times: float = 1.0) -> None:
        """A line of the look's own width, `times` as wide."""
        ink = self._line(colour) or self._look.fill(colour, self._subject)
        self._draw.line(self._place(points), fill=ink, width=max(1, round(self._width * times)))

    def _place(self, points: Iterable[Point]) -> list[Point]:
        frame = self._frame
        return [(frame.x + x * frame.sx, frame.y - y * frame.sy) for x, y in points]

    def _line(self, colour: Colour) -> Colour | None:
        return self._look.line(colour, self._subject)


# --- colours --------------------------------------------------------------------------------


def _scaled(colour: Colour, light: tuple[float, float, float]) -> Colour:
    return (
        min(255, int(colour[0] * light[0])),
        min(255, int(colour[1] * light[1])),
        min(255, int(colour[2] * light[2])),
    )


def _dimmed(colour: Colour, share: float) -> Colour:
    return _scaled(colour, (share, share, share))


def _mixed(first: Colour, second: Colour, share: float) -> Colour:
    """`share` of the second colour in the first."""
    return (
        int(first[0] + (second[0] - first[0]) * share),
        int(first[1] + (second[1] - first[1]) * share),
        int(first[2] + (second[2] - first[2]) * share),
    )


def _grey(colour: Colour) -> Colour:
    value = (299 * colour[0] + 587 * colour[1] + 114 * colour[2]) // 1000
    return (value, value, value)


def _tones(scene: Scene, random: RandomState) -> Tones:
    red, green, blue = 1 + (random.random_sample(3) - 0.5) * 0.07
    base = _scaled(_scaled(PAINTS[scene.colour], SUBJECT_LIGHT[scene.time]), (red, green, blue))
    shade = _scaled(base, SHADES.get(scene.colour, (0.74, 0.74, 0.78)))
    spots = (198, 206, 222) if scene.colour == "white" else (250, 248, 240)
    return Tones(
        base=base,
        shade=shade,
        dark=_mixed(_dimmed(base, 0.34), INK, 0.4),
        light=_mixed(base, WHITE, 0.4),
        white=_scaled(spots, SUBJECT_LIGHT[scene.time]),
    )


def _flat_line(colour: Colour, subject: bool) -> Colour | None:
    return _mixed(_dimmed(colour, 0.42), INK, 0.45) if subject else None


FLAT = Look(lambda colour, _: colour, _flat_line, 0.014)
FINE = FLAT._replace(width=0.006)
PAINTED = Look(lambda colour, _: colour, lambda *_: None, 0.014)
PENCILLED = Look(
    lambda colour, subject: (
        _mixed(WHITE, colour, 0.66) if subject else _mixed(WHITE, _grey(colour), 0.26)
    ),
    lambda _, subject: (54, 54, 60) if subject else (138, 138, 142),
    0.017,
)


def _vivid(colour: Colour) -> Colour:
    low, high = min(colour), max(colour)
    if high - low < 30:
        return _dimmed(WHITE, max(0.55, high / 255))
    stretched = [round(255 * (part - low * 0.85) / (high - low * 0.85)) for part in colour]
    return (stretched[0], stretched[1], stretched[2])


GLOWING = Look(
    lambda *_: BLACK,
    lambda colour, subject: _dimmed(_vivid(colour), 1.0 if subject else 0.42),
    0.026,
    bare=True,
)
DRAFTED = Look(
    lambda *_: BLACK,
    lambda colour, subject: _mixed((214, 226, 240), colour, 0.22) if subject else (108, 130, 146),
    0.018,
    bare=True,
)


# --- backgrounds ----------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _gradient(top: Colour, bottom: Colour, width: int) -> Image.Image:
    share = np.clip(np.linspace(0, 1.5, width), 0, 1)[:, None]
    column = np.array(top) * (1 - share) + np.array(bottom) * share
    pixels = np.broadcast_to(column.astype(np.uint8)[:, None, :], (width, width, 3))
    return Image.fromarray(np.ascontiguousarray(pixels))


def _sky(scene: Scene, look: Look, width: int) -> Image.Image:
    desert_day = scene.background == "desert" and scene.time == "day"
    top, bottom = DESERT_DAY_SKY if desert_day else SKIES[scene.time]
    return _gradient(look.fill(top, False), look.fill(bottom, False), width).copy()


def _wave(y: float, height: float, cycles: float, phase: float, points: int = 28) -> list[Point]:
    """The area below a sine curve, in a frame whose y grows downwards."""
    top = [
        (
            index / points,
            y + height * math.sin(2 * math.pi * (cycles * index / points + phase)),
        )
        for index in range(points + 1)
    ]
    return [(-0.05, 1.05), (-0.05, top[0][1]), *top, (1.05, top[-1][1]), (1.05, 1.05)]


def _heavens(pen: Pen, scene: Scene, random: RandomState) -> None:
    if scene.time == "night":
        for x, y, radius in random.random_sample((26, 3)):
            pen.dot(x, y * 0.58, 0.005 + radius * 0.006, (250, 246, 214))
        return
    colour = (250, 253, 255) if scene.time == "day" else (244, 150, 140)
    for side in (0.0, 0.62):
        x, y, scale = random.random_sample(3) * (0.3, 0.14, 0.3) + (side + 0.04, 0.1, 0.85)
        pen.blob(
            [
                (x + dx * scale, y + dy * scale, radius * scale)
                for dx, dy, radius in ((-0.07, 0.0, 0.035), (0.0, -0.02, 0.052), (0.07, 0.0, 0.04))
            ],
            colour,
        )


def _sea(pen: Pen, light: Callable[[Colour], Colour], random: RandomState) -> None:
    blues = ((40, 132, 206), (28, 114, 190), (20, 98, 172), (14, 82, 154))
    for row, blue in enumerate(blues):
        phase = random.random_sample()
        y = 0.6 + 0.1 * row
        water = _wave(y, 0.014, 5 - 0.6 * row, phase)
        pen.polygon(water, light(blue))
        pen.thin(water[1:-1], light((172, 222, 244)), 1.8)


def _forest(pen: Pen, light: Callable[[Colour], Colour], random: RandomState) -> None:
    pen.box(-0.05, 0.62, 1.05, 1.05, light((86, 128, 62)))
    for y, colour, count in ((0.68, (44, 112, 76), 10), (0.77, (22, 80, 52), 8)):
        for index in range(count):
            shift, stretch = random.random_sample(2)
            x = (index + 0.5 + (shift - 0.5) * 0.5) / count
            height, half = 0.32 + 0.12 * stretch, 0.066
            pen.box(x - 0.012, y, x + 0.012, y + 0.03, light((84, 56, 38)), edge=False)
            pen.polygon(
                [
                    (x - half, y),
                    (x - half * 0.45, y - height * 0.36),
                    (x - half * 0.8, y - height * 0.36),
                    (x, y - height),
                    (x + half * 0.8, y - height * 0.36),
                    (x + half * 0.45, y - height * 0.36),
                    (x + half, y),
                ],
                light(colour),
            )


def _desert(pen: Pen, light: Callable[[Colour], Colour], random: RandomState) -> None:
    sands = ((244, 210, 138), (234, 190, 108), (220, 170, 88))
    for row, sand in enumerate(sands):
        phase = random.random_sample()
        pen.polygon(_wave(0.62 + 0.12 * row, 0.045, 1.3 - 0.2 * row, phase), light(sand))
    for x, y in random.random_sample((7, 2)):
        pen.ellipse(x, 0.8 + 0.18 * y, 0.014, 0.006, light((168, 122, 66)), edge=False)


def _city(pen: Pen, light: Callable[[Colour], Colour], random: RandomState, lit: bool) -> None:
    x = -0.03
    while x < 1.0:
        wide, tall, tone = random.random_sample(3)
        width, top = 0.115 + 0.05 * wide, 0.22 + 0.26 * tall
        wall = _mixed((112, 122, 146), (158, 164, 182), tone)
        pen.box(x, 0.84, x + width, top, light(wall))
        windows = random.random_sample((8, 2))
        for row, pair in enumerate(windows):
            for column, chance in enumerate(pair):
                left, high = x + width * (0.16 + 0.42 * column), top + 0.035 + 0.068 * row
                if high > 0.76:
                    break
                glass = (255, 220, 110) if lit and chance < 0.7 else light((214, 232, 244))
                pen.box(left, high + 0.036, left + width * 0.27, high, glass)
        x += width + 0.006
    pen.box(-0.05, 0.8, 1.05, 1.05, light((92, 94, 106)))
    for index in range(5):
        left = 0.04 + 0.21 * index
        pen.box(left, 0.96, left + 0.1, 0.945, light((236, 226, 170)), edge=False)


def _snow(pen: Pen, light: Callable[[Colour], Colour], random: RandomState) -> None:
    for row, white in enumerate(((206, 222, 242), (228, 238, 250), (246, 250, 255))):
        phase = random.random_sample()
        pen.polygon(_wave(0.58 + 0.13 * row, 0.04, 0.9 + 0.25 * row, phase), light(white))
    for x, y, radius in random.random_sample((30, 3)):
        pen.dot(x, y * 0.66, 0.007 + radius * 0.006, (246, 249, 255))


def _meadow(pen: Pen, light: Callable[[Colour], Colour], random: RandomState) -> None:
    for row, green in enumerate(((142, 208, 96), (116, 192, 78), (94, 174, 64))):
        phase = random.random_sample()
        pen.polygon(_wave(0.64 + 0.1 * row, 0.025, 1.1 + 0.3 * row, phase), light(green))
    blossoms = ((255, 255, 255), (255, 222, 74), (248, 132, 160))
    for index, (x, y) in enumerate(random.random_sample((20, 2))):
        y = 0.7 + 0.28 * y
        pen.polygon(
            [(x - 0.012, y + 0.03), (x, y), (x + 0.012, y + 0.03)], light((56, 128, 48)), edge=False
        )
        blossom = blossoms[index % 3]
        pen.dot(x, y, 0.011, _mixed(light(blossom), blossom, 0.4))


def _background(image: Image.Image, scene: Scene, look: Look, random: RandomState) -> None:
    width = image.width
    pen = Pen(image, look, Frame(0, 0, width, -width), subject=False)
    _heavens(pen, scene, random)

    share = LIGHT[scene.time]
    if scene.time == "night":
        share = NIGHT_LIGHT.get(scene.background, share)

    def light(colour: Colour) -> Colour:
        return _scaled(colour, share)

    if scene.background == "sea":
        _sea(pen, light, random)
    elif scene.background == "forest":
        _forest(pen, light, random)
    elif scene.background == "desert":
        _desert(pen, light, random)
    elif scene.background == "city":
        _city(pen, light, random, lit=scene.time != "day")
    elif scene.background == "snow":
        _snow(pen, light, random)
    else:
        _meadow(pen, light, random)


# --- subjects: x from the middle, y up from the foot, in units of about the height -----------


def _arc(
    x: float, y: float, rx: float, ry: float, start: float, end: float, points: int = 20
) -> list[Point]:
    """Points on an ellipse; angles in degrees, anticlockwise from the right."""
    return [
        (x + rx * math.cos(math.radians(angle)), y + ry * math.sin(math.radians(angle)))
        for angle in (start + (end - start) * index / points for index in range(points + 1))
    ]


def _lighthouse(pen: Pen, tones: Tones) -> None:
    for side in (-1, 1):
        beam = [(side * 0.06, 0.82), (side * 0.36, 0.93), (side * 0.36, 0.71)]
        pen.polygon(beam, (255, 244, 176), edge=False)
    pen.polygon([(-0.22, 0), (0.22, 0), (0.14, 0.72), (-0.14, 0.72)], tones.base)
    for low in (0.2, 0.46):
        left, right = 0.22 - 0.111 * low, 0.22 - 0.111 * (low + 0.12)
        pen.polygon(
            [(-left, low), (left, low), (right, low + 0.12), (-right, low + 0.12)], tones.shade
        )
    pen.box(-0.055, 0, 0.055, 0.13, tones.dark)
    pen.box(-0.1, 0.75, 0.1, 0.88, LAMP)
    pen.box(-0.19, 0.71, 0.19, 0.76, tones.dark)
    pen.polygon([(-0.16, 0.87), (0.16, 0.87), (0, 1.02)], tones.shade)


def _house(pen: Pen, tones: Tones) -> None:
    pen.box(0.18, 0.55, 0.3, 0.88, tones.shade)
    pen.box(-0.39, 0, 0.39, 0.5, tones.base)
    pen.polygon([(-0.5, 0.47), (0.5, 0.47), (0, 0.92)], tones.shade)
    pen.box(-0.09, 0, 0.09, 0.29, tones.dark)
    for x in (-0.25, 0.25):
        pen.box(x - 0.075, 0.2, x + 0.075, 0.37, LAMP)


def _tree(pen: Pen, tones: Tones) -> None:
    pen.polygon([(-0.1, 0), (0.1, 0), (0.055, 0.45), (-0.055, 0.45)], WOOD)
    crown = [(-0.22, 0.55, 0.2), (0.22, 0.55, 0.2), (0, 0.74, 0.26), (0, 0.52, 0.2)]
    pen.blob(crown, tones.base)
    for x, y, radius in ((0.2, 0.5, 0.1), (-0.06, 0.6, 0.07), (0.12, 0.72, 0.08)):
        pen.ellipse(x, y, radius * 1.2, radius, tones.shade, edge=False)


def _boat(pen: Pen, tones: Tones) -> None:
    pen.box(-0.02, 0.2, 0.02, 0.98, WOOD)
    pen.polygon([(0.04, 0.3), (0.44, 0.3), (0.04, 0.95)], tones.base)
    pen.polygon([(-0.04, 0.3), (-0.36, 0.3), (-0.04, 0.82)], tones.light)
    pen.polygon([(-0.5, 0.24), (0.5, 0.24), (0.34, 0), (-0.34, 0)], tones.shade)
    pen.polygon([(-0.5, 0.24), (0.5, 0.24), (0.46, 0.17), (-0.46, 0.17)], tones.base)


def _mountain(pen: Pen, tones: Tones) -> None:
    pen.polygon([(0.0, 0), (0.34, 0.56), (0.66, 0)], tones.shade)
    pen.polygon([(-0.66, 0), (-0.1, 0.86), (0.44, 0)], tones.base)
    pen.polygon([(-0.1, 0.86), (0.44, 0), (0.02, 0), (-0.06, 0.4)], tones.shade, edge=False)
    cap = [(-0.1, 0.86), (-0.25, 0.63), (-0.17, 0.57), (-0.1, 0.65), (-0.02, 0.55), (0.05, 0.63)]
    pen.polygon(cap, tones.white)


def _moon(pen: Pen, tones: Tones) -> None:
    # Two circles of radius 0.44 and 0.35, 0.22 apart: they cross at these angles.
    outer = _arc(0.08, 0.44, 0.44, 0.44, 53, 307, 32)
    inner = _arc(0.30, 0.44, 0.353, 0.353, 276, 84, 26)
    pen.polygon([*outer, *inner], tones.base)
    for x, y, radius in ((-0.22, 0.5, 0.06), (-0.14, 0.27, 0.045), (-0.1, 0.69, 0.04)):
        pen.ellipse(x, y, radius, radius, tones.shade, edge=False)


def _cat(pen: Pen, tones: Tones) -> None:
    tail = [(0.16, 0.07), (0.34, 0.09), (0.4, 0.22), (0.35, 0.36), (0.4, 0.46)]
    pen.stroke(tail, tones.shade, 0.075)
    pen.ellipse(0, 0.27, 0.25, 0.29, tones.base)
    pen.ellipse(0, 0.22, 0.12, 0.18, tones.light, edge=False)
    for x in (-0.11, 0.11):
        pen.ellipse(x, 0.04, 0.095, 0.05, tones.base)
    for side in (-1, 1):
        pen.polygon([(side * 0.27, 1.0), (side * 0.04, 0.86), (side * 0.26, 0.68)], tones.base)
        ear = [(side * 0.23, 0.93), (side * 0.1, 0.85), (side * 0.22, 0.76)]
        pen.polygon(ear, tones.shade, edge=False)
    pen.ellipse(0, 0.69, 0.28, 0.215, tones.base)
    for side in (-1, 1):
        pen.ellipse(side * 0.12, 0.72, 0.043, 0.056, INK, edge=False)
        pen.thin([(side * 0.14, 0.62), (side * 0.33, 0.65)], tones.dark, 0.6)
        pen.thin([(side * 0.14, 0.59), (side * 0.32, 0.56)], tones.dark, 0.6)
    pen.polygon([(-0.035, 0.64), (0.035, 0.64), (0, 0.6)], tones.dark, edge=False)


def _fish(pen: Pen, tones: Tones) -> None:
    pen.polygon([(0.22, 0.34), (0.54, 0.62), (0.47, 0.34), (0.54, 0.06)], tones.shade)
    pen.polygon([(-0.2, 0.55), (0.0, 0.72), (0.16, 0.52)], tones.shade)
    pen.polygon([(-0.12, 0.14), (0.06, 0.0), (0.08, 0.16)], tones.shade)
    pen.ellipse(-0.1, 0.34, 0.42, 0.26, tones.base)
    for x in (-0.08, 0.08):
        pen.polygon(
            [*_arc(x, 0.34, 0.09, 0.2, -90, 90, 10), *_arc(x, 0.34, 0.03, 0.2, 90, -90, 10)],
            tones.shade,
            edge=False,
        )
    pen.ellipse(-0.33, 0.41, 0.06, 0.06, WHITE)
    pen.ellipse(-0.34, 0.41, 0.028, 0.028, INK, edge=False)
    pen.thin([(-0.5, 0.28), (-0.42, 0.25), (-0.36, 0.27)], tones.dark)


def _flower(pen: Pen, tones: Tones) -> None:
    pen.stroke([(0, 0), (0.02, 0.3), (0, 0.6)], LEAF, 0.05)
    for side in (-1, 1):
        leaf = [(0.01, 0.08), (side * 0.14, 0.26), (side * 0.3, 0.27), (side * 0.2, 0.11)]
        pen.polygon(leaf, LEAF)
    for index in range(6):
        angle = math.radians(60 * index + 30)
        x, y = 0.21 * math.cos(angle), 0.66 + 0.21 * math.sin(angle)
        pen.ellipse(x, y, 0.145, 0.145, tones.base)
    pen.ellipse(0, 0.66, 0.2, 0.2, tones.shade, edge=False)
    pen.ellipse(0, 0.66, 0.12, 0.12, (116, 72, 32))


def _car(pen: Pen, tones: Tones) -> None:
    pen.polygon([(-0.4, 0.36), (-0.25, 0.64), (0.2, 0.64), (0.4, 0.36)], tones.base)
    pen.polygon([(-0.31, 0.38), (-0.21, 0.58), (-0.05, 0.58), (-0.05, 0.38)], GLASS)
    pen.polygon([(0.02, 0.38), (0.02, 0.58), (0.17, 0.58), (0.3, 0.38)], GLASS)
    pen.polygon(
        [(-0.6, 0.12), (-0.6, 0.34), (-0.52, 0.4), (0.48, 0.4), (0.6, 0.31), (0.6, 0.12)],
        tones.base,
    )
    pen.box(-0.59, 0.13, 0.59, 0.21, tones.shade, edge=False)
    pen.ellipse(0.56, 0.3, 0.04, 0.04, LAMP)
    for x in (-0.33, 0.33):
        pen.ellipse(x, 0.13, 0.14, 0.14, INK)
        pen.ellipse(x, 0.13, 0.06, 0.06, METAL)


def _mushroom(pen: Pen, tones: Tones) -> None:
    pen.polygon([(-0.17, 0), (0.17, 0), (0.12, 0.48), (-0.12, 0.48)], CREAM)
    pen.polygon(_arc(0, 0.4, 0.48, 0.52, 0, 180, 24), tones.base)
    pen.polygon([(-0.47, 0.41), (-0.44, 0.49), (0.44, 0.49), (0.47, 0.41)], tones.shade, edge=False)
    for x, y, radius in ((-0.22, 0.6, 0.075), (0.04, 0.76, 0.085), (0.26, 0.59, 0.065)):
        pen.ellipse(x, y, radius, radius * 0.9, tones.white)


def _castle(pen: Pen, tones: Tones) -> None:
    pen.box(-0.14, 0.3, 0.14, 0.72, tones.shade)
    pen.polygon([(-0.18, 0.7), (0.18, 0.7), (0, 0.96)], tones.dark)
    pen.box(-0.4, 0, 0.4, 0.42, tones.base)
    for x in (-0.17, 0, 0.17):
        pen.box(x - 0.05, 0.4, x + 0.05, 0.5, tones.base)
    for x in (-0.38, 0.38):
        pen.box(x - 0.12, 0, x + 0.12, 0.62, tones.base)
        pen.box(x + 0.03, 0.02, x + 0.11, 0.6, tones.shade, edge=False)
        for step in (-0.11, 0, 0.11):
            pen.box(x + step - 0.04, 0.6, x + step + 0.04, 0.71, tones.base)
        pen.box(x - 0.035, 0.38, x + 0.035, 0.5, tones.dark)
    pen.polygon([(-0.11, 0), *_arc(0, 0.17, 0.11, 0.13, 180, 0, 10), (0.11, 0)], tones.dark)


def _umbrella(pen: Pen, tones: Tones) -> None:
    pen.stroke(
        [(0, 0.92), (0, 0.12), *_arc(0.08, 0.12, 0.08, 0.1, 180, 360, 8)], (92, 70, 62), 0.03
    )
    edges = (-0.5, -0.19, 0.19, 0.5)
    scallops = [
        point
        for left, right in pairwise(edges)
        for point in _arc((left + right) / 2, 0.46, (right - left) / 2, 0.07, 180, 0, 8)
    ]
    pen.polygon([*_arc(0, 0.46, 0.5, 0.46, 0, 180, 24), *scallops], tones.base)
    middle = [(-0.19, 0.46), (-0.15, 0.72), (0, 0.92), (0.15, 0.72), (0.19, 0.46)]
    pen.polygon([*middle, *_arc(0, 0.46, 0.19, 0.07, 0, 180, 8)], tones.shade)
    pen.stroke([(0, 0.92), (0, 0.97)], tones.dark, 0.03)


def _balloon(pen: Pen, tones: Tones) -> None:
    for side in (-1, 1):
        pen.thin([(side * 0.2, 0.36), (side * 0.09, 0.14)], WOOD)
    envelope = [*_arc(0, 0.64, 0.37, 0.36, -32, 212, 28), (-0.1, 0.27), (0.1, 0.27)]
    pen.polygon(envelope, tones.base)
    for side in (-1, 1):
        stripe = [
            *((side * x, y) for x, y in _arc(0, 0.64, 0.26, 0.345, 90, -48, 14)),
            (side * 0.06, 0.28),
            *((side * x, y) for x, y in _arc(0, 0.64, 0.11, 0.345, -60, 90, 14)),
        ]
        pen.polygon(stripe, tones.shade, edge=False)
    pen.box(-0.11, 0, 0.11, 0.15, WOOD)


def _robot(pen: Pen, tones: Tones) -> None:
    pen.thin([(0, 0.86), (0, 0.96)], tones.dark, 1.5)
    pen.ellipse(0, 0.97, 0.035, 0.035, LAMP)
    for side in (-1, 1):
        pen.box(side * 0.15 - 0.075, 0.0, side * 0.15 + 0.075, 0.18, tones.shade)
        pen.stroke([(side * 0.3, 0.46), (side * 0.38, 0.36), (side * 0.38, 0.24)], METAL, 0.075)
    pen.box(-0.28, 0.15, 0.28, 0.53, tones.base)
    pen.box(-0.15, 0.24, 0.15, 0.42, tones.dark)
    pen.ellipse(-0.06, 0.33, 0.04, 0.04, LAMP, edge=False)
    pen.ellipse(0.06, 0.33, 0.04, 0.04, tones.light, edge=False)
    pen.box(-0.08, 0.52, 0.08, 0.6, METAL)
    pen.box(-0.25, 0.57, 0.25, 0.88, tones.base)
    for side in (-1, 1):
        pen.ellipse(side * 0.115, 0.74, 0.068, 0.068, WHITE)
        pen.ellipse(side * 0.115, 0.74, 0.032, 0.032, INK, edge=False)
    pen.box(-0.12, 0.62, 0.12, 0.65, tones.dark, edge=False)


def _cactus(pen: Pen, tones: Tones) -> None:
    pen.stroke([(0.1, 0.32), (0.32, 0.34), (0.33, 0.62)], tones.base, 0.13)
    pen.stroke([(-0.1, 0.45), (-0.32, 0.47), (-0.33, 0.74)], tones.base, 0.13)
    pen.stroke([(0, 0.04), (0, 0.86)], tones.base, 0.25)
    for x in (-0.055, 0.055):
        pen.thin([(x, 0.05), (x, 0.9)], tones.shade, 1.3)
    for x, y in ((-0.33, 0.78), (0.33, 0.66), (0, 0.95)):
        pen.ellipse(x, y, 0.05, 0.045, (250, 120, 160) if x else (255, 210, 90))


def _rocket(pen: Pen, tones: Tones) -> None:
    pen.polygon([(-0.1, 0.18), (0.1, 0.18), (0.06, 0.06), (0, 0), (-0.06, 0.06)], (255, 176, 48))
    for side in (-1, 1):
        pen.polygon(
            [(side * 0.14, 0.44), (side * 0.34, 0.24), (side * 0.3, 0.1), (side * 0.12, 0.2)],
            tones.shade,
        )
    body = [
        (-0.13, 0.17),
        (-0.2, 0.4),
        (-0.18, 0.66),
        (-0.1, 0.86),
        (0, 1.0),
        (0.1, 0.86),
        (0.18, 0.66),
        (0.2, 0.4),
        (0.13, 0.17),
    ]
    pen.polygon(body, tones.base)
    pen.polygon([(-0.115, 0.83), (0, 1.0), (0.115, 0.83)], tones.shade)
    pen.ellipse(0, 0.6, 0.095, 0.095, GLASS)
    pen.box(-0.14, 0.22, 0.14, 0.28, tones.shade, edge=False)


class Subject(NamedTuple):
    draw: Callable[[Pen, Tones], None]
    width: float
    height: float
    foot: float | None = 0.9
    """How far down the picture it stands; None: its middle is at `middle`."""
    middle: float = 0.5
    rests: bool = True
    """On ground or, in the sea, on a rock."""


DRAWN: dict[str, Subject] = {
    "lighthouse": Subject(_lighthouse, 0.72, 1.0),
    "house": Subject(_house, 1.0, 0.92),
    "tree": Subject(_tree, 0.84, 1.0),
    "boat": Subject(_boat, 1.0, 0.98, rests=False),
    "mountain": Subject(_mountain, 1.32, 0.86, rests=False),
    "moon": Subject(_moon, 0.72, 0.88, None, 0.42, rests=False),
    "cat": Subject(_cat, 0.84, 1.0),
    "fish": Subject(_fish, 1.06, 0.72, None, 0.52, rests=False),
    "flower": Subject(_flower, 0.72, 1.02),
    "car": Subject(_car, 1.22, 0.66),
    "mushroom": Subject(_mushroom, 0.96, 0.92),
    "castle": Subject(_castle, 1.0, 0.96),
    "umbrella": Subject(_umbrella, 1.0, 0.98),
    "balloon": Subject(_balloon, 0.76, 1.0, None, 0.45, rests=False),
    "robot": Subject(_robot, 0.84, 1.0),
    "cactus": Subject(_cactus, 0.8, 1.0),
    "rocket": Subject(_rocket, 0.7, 1.0),
}
FACING = frozenset({"boat", "mountain", "cat", "fish", "car", "umbrella", "cactus"})
"""The subjects that are drawn either way round."""
ROOM = {1: (0.72, 0.86), 2: (0.6, 0.45), 3: (0.5, 0.305)}
"""The most height and width for each of so many subjects, as shares of the picture."""
ASIDE_ROOM = (0.66, 0.58)
"""The same for one subject that is on the left or right."""


def _subjects(image: Image.Image, scene: Scene, look: Look, random: RandomState) -> None:
    subject, width = DRAWN[scene.subject], image.width
    tones = _tones(scene, random)
    tall, wide = ROOM[scene.count] if scene.place == "center" else ASIDE_ROOM
    for index in range(scene.count):
        size, slim, dx, dy, side = random.random_sample(5)
        scale = min(tall / subject.height, wide / subject.width) * (0.9 + 0.1 * size)
        half = subject.width * scale / 2
        if scene.place == "center":
            x = (index + 0.5) / scene.count + (dx - 0.5) * 0.06 / scene.count
        else:
            x = max(0.25 + 0.04 * dx, half + 0.02)
            x = x if scene.place == "left" else 1 - x
        if subject.foot is None:
            foot = subject.middle + subject.height * scale / 2 + (dy - 0.5) * 0.05
        else:
            foot = subject.foot + (dy - 0.5) * 0.04
        ground = Pen(image, look, Frame(0, 0, width, -width), subject=False)
        if subject.rests and scene.background == "sea":
            rock = _scaled((126, 114, 104), LIGHT[scene.time])
            ground.polygon(_arc(x, foot + 0.05, half * 1.15 + 0.03, 0.085, 0, -180, 16), rock)
            ground.box(
                x - half * 1.15 - 0.03,
                foot + 0.05,
                x + half * 1.15 + 0.03,
                foot + 0.06,
                _dimmed(rock, 0.8),
                edge=False,
            )
        turn = -1 if scene.subject in FACING and side < 0.5 else 1
        frame = Frame(
            x * width, foot * width, turn * (0.95 + 0.05 * slim) * scale * width, scale * width
        )
        subject.draw(Pen(image, look, frame, subject=True), tones)


def _drawn(scene: Scene, size: int, look: Look) -> Image.Image:
    """The scene in a look, four times as large as asked."""
    image = _sky(scene, look, size * SCALE)
    _background(image, scene, look, RandomState(scene.seed))
    _subjects(image, scene, look, RandomState((scene.seed + 1) % 2**32))
    return image


# --- styles -----------------------------------------------------------------------------------


def _flat(scene: Scene, size: int) -> Image.Image:
    return _drawn(scene, size, FLAT).reduce(SCALE)


def _noise(random: RandomState, cells: int, size: int) -> np.ndarray:
    """Smooth noise of `cells` x `cells` bumps, (size, size), about 0 to 1."""
    coarse = Image.fromarray((random.random_sample((cells, cells)) * 255).astype(np.uint8))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float32) / 255


def _watercolor(scene: Scene, size: int) -> Image.Image:
    random = RandomState((scene.seed + 2) % 2**32)
    picture = _drawn(scene, size, PAINTED).reduce(SCALE)
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(size / 160)), np.float32) / 255
    # Pigment gathers at the rim of a wash: darker where the picture differs from its surroundings.
    around = np.asarray(picture.filter(ImageFilter.GaussianBlur(size / 40)), np.float32) / 255
    rim = np.abs(soft - around).max(axis=2)
    pigment = 0.8 + 0.4 * (_noise(random, 5, size) - 0.5) + 0.25 * (_noise(random, 16, size) - 0.5)
    pigment = np.clip(pigment + 0.9 * rim, 0.3, 1.15)[:, :, None]
    washed = 1 - (1 - soft) * pigment * 0.92
    across = np.abs(np.linspace(-1, 1, size, dtype=np.float32))
    # A rounded square, so that corners go first.
    distance = (across[None, :] ** 5 + across[:, None] ** 5) ** 0.2
    ragged = (
        distance + 0.24 * (_noise(random, 8, size) - 0.5) + 0.1 * (_noise(random, 22, size) - 0.5)
    )
    wet = np.clip((0.95 - ragged) / 0.07, 0, 1)
    border = (wet * (1 - wet) * 4)[:, :, None]
    wet = wet[:, :, None]
    paper = np.array((253, 250, 242), np.float32) / 255
    result = paper * (1 - wet) + washed * paper * wet - 0.08 * border
    return Image.fromarray((np.clip(result, 0, 1) * 255).astype(np.uint8))


@lru_cache(maxsize=8)
def _hatching(width: int) -> Image.Image:
    mask = Image.new("L", (width, width), 0)
    draw = ImageDraw.Draw(mask)
    step = width / 26
    for index in range(54):
        start = index * step
        draw.line([(start, 0), (start - width, width)], fill=255, width=max(1, round(step / 3)))
    return mask


def _sketch(scene: Scene, size: int) -> Image.Image:
    art = _drawn(scene, size, PENCILLED)
    # The darker an area, the stronger its hatching; white paper has none.
    depth = art.convert("L").point([min(255, round((255 - value) * 2)) for value in range(256)])
    strokes = ImageChops.multiply(_hatching(art.width), depth)
    art = Image.composite(Image.eval(art, lambda value: round(value * 0.62)), art, strokes)
    paper = Image.new("RGB", (size, size), (250, 246, 236))
    return ImageChops.multiply(art.reduce(SCALE), paper)


def _pixel(scene: Scene, size: int) -> Image.Image:
    cell = max(1, round(size / 22))
    cells = -(-size // cell)
    small = _drawn(scene, size, FINE).resize((cells, cells), Image.Resampling.BOX)
    limited = small.quantize(
        20, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE
    ).convert("RGB")
    large = limited.resize((cells * cell, cells * cell), Image.Resampling.NEAREST)
    return large.crop((0, 0, size, size))


def _neon(scene: Scene, size: int) -> Image.Image:
    tubes = _drawn(scene, size, GLOWING).reduce(SCALE)
    near = tubes.filter(ImageFilter.GaussianBlur(size / 64))
    far = tubes.filter(ImageFilter.GaussianBlur(size / 20))
    glow = ImageChops.add(near, far)
    night = Image.new("RGB", (size, size), (10, 6, 22))
    return ImageChops.screen(ImageChops.screen(tubes, glow), night)


@lru_cache(maxsize=8)
def _grid(width: int) -> Image.Image:
    paper = Image.new("RGB", (width, width), (22, 66, 150))
    draw = ImageDraw.Draw(paper)
    for index in range(1, 8):
        at = index * width / 8
        for line in ([(at, 0), (at, width)], [(0, at), (width, at)]):
            draw.line(line, fill=(52, 100, 182), width=max(1, width // 110))
    return paper


def _blueprint(scene: Scene, size: int) -> Image.Image:
    return ImageChops.screen(_drawn(scene, size, DRAFTED), _grid(size * SCALE)).reduce(SCALE)


_STYLES: dict[str, Callable[[Scene, int], Image.Image]] = {
    "flat": _flat,
    "watercolor": _watercolor,
    "sketch": _sketch,
    "pixel": _pixel,
    "neon": _neon,
    "blueprint": _blueprint,
}
