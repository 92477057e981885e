"""Plans around the one that the rows give, scored, and the one that fits limits and priority.

Quality is how near a plan comes to what experts use: of those who publish a number of steps for
the model, the share whom the candidate's steps satisfy, and likewise for its sampler and size.
Fidelity is how much of the prompt it leaves room for: the steps that a prompt of this complexity
is given, and the shape that it asks for. Both fall off by a normal curve whose width is the
tolerance within which experts count figures as the same. Nothing here is fitted to taste.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from ..plan import FRONT_SIZE, Alternative, Priority, SecondPass
from .cost import Cost, Pass, Work, evaluations
from .rows import Votes

STEPS_TOLERANCE = 1.3
"""Experts count steps within 30 % as the same (benchmarks/parameters.md)."""
PIXELS_TOLERANCE = 1.25
"""Likewise a quarter of the pixels."""
CFG_TOLERANCE = 1.0
"""Likewise CFG within 1."""
SHORTER = (0.85, 0.7, 0.55, 0.4)
"""Shares of the steps that are tried where nobody publishes shorter runs."""
SMALLER = (0.85, 0.7, 0.5)
"""Shares of the pixels that are tried to keep limits; below half, models draw badly."""
_FEWEST_STEPS = 4
"""Of a model that is not distilled."""
_FINEST_STEP = 32
"""Pixels: sides of smaller images are multiples of it; every latent model takes those."""
_PRIOR_RATINGS = 3
"""Ratings that count for nothing: so many are needed before those that are there count half."""
MOST_PAIRS = 3
"""Other samplers that are tried, those of most experts."""
_NEUTRAL, _SPREAD = 3, 2
"""Middle of the ratings, and the way from it to the best and the worst."""


class Limits(NamedTuple):
    """What a plan must not exceed; None: no limit."""

    seconds: float | None = None
    memory_bytes: int | None = None


class RatedSettings(NamedTuple):
    """Settings that a person rated, for the same family and style."""

    steps: int
    cfg: float
    sampler: str
    scheduler: str
    rating: int
    """1 (bad) to 5 (excellent)."""


class Settings(NamedTuple):
    """The settings in which candidates differ."""

    steps: int
    cfg: float
    sampler: str
    scheduler: str
    width: int
    height: int
    second: SecondPass | None

    @property
    def pair(self) -> tuple[str, str]:
        return self.sampler, self.scheduler


class Candidate(NamedTuple):
    """Settings and what they are expected to give and to take."""

    settings: Settings
    quality: float
    """0 to 1."""
    fidelity: float
    """0 to 1."""
    cost: Cost
    taught: float = 0.0
    """-1 to 1: what ratings of settings like these say."""

    @property
    def merit(self) -> float:
        return self.quality * self.fidelity + self.taught

    def exceeds(self, limits: Limits) -> float:
        """The largest share of a limit that it takes; above 1 it breaks one. 0 without limits."""
        shares = [0.0]
        if limits.seconds is not None:
            shares.append(self.cost.seconds / limits.seconds)
        if limits.memory_bytes is not None:
            shares.append(self.cost.memory_bytes / limits.memory_bytes)
        return max(shares)


class Space(NamedTuple):
    """What may be varied around a plan, and what is known of it."""

    anchor: Settings
    """The plan that the rows give for the priority; the best there is without limits."""
    steps: tuple[int, ...]
    """Of the rows for every priority: figures that experts publish as well."""
    published_steps: Votes
    needed_steps: int
    """What a prompt of this complexity is given."""
    distilled: bool
    """Trained for its few steps: more of them are no better."""
    pairs: tuple[tuple[tuple[str, str], float], ...]
    """Other samplers with schedulers that the host has, and the share of experts for each."""
    aspect: float | None
    """Width / height that the prompt asks for."""
    multiple: int
    fixed: frozenset[str]
    """Fields that the user has set: steps, cfg, pair, size."""
    second_pass_share: float = 0.0
    """Share of experts who add a second pass where the prompt asks for one."""


class Found(NamedTuple):
    """The candidate to run and those that it was chosen from."""

    chosen: Candidate
    anchor: Candidate
    front: tuple[Candidate, ...]
    """Candidates that none other beats, fastest first."""
    feasible: bool
    """Whether the chosen one keeps the limits."""


def search(
    space: Space,
    costs: Callable[[Work], Cost],
    *,
    batch: int,
    priority: Priority,
    limits: Limits = Limits(),  # noqa: B008 (immutable)
    ratings: Sequence[RatedSettings] = (),
) -> Found:
    """The best candidate within the limits, by the priority. Pure.

    The anchor itself where it keeps the limits, unless settings that were rated well have more
    merit; MEMORY takes the least memory among those that experts would still call the same. Where
    the anchor breaks a limit, the one of most merit with no more steps that keeps them; where none
    does, the one that breaks them least.
    """
    experts = _Experts(space)

    def judged(settings: Settings) -> Candidate:
        return Candidate(
            settings,
            experts.quality(settings),
            experts.fidelity(settings),
            costs(_work(settings, batch)),
            _taught(settings, ratings),
        )

    varied = _settings(space, smaller=limits != Limits() or priority == "MEMORY")
    candidates = [judged(settings) for settings in varied]
    anchor = candidates[0]
    liked = [judged(settings) for settings in _liked(space, ratings)]
    front = pareto({c.settings: c for c in (*candidates, *liked)}.values())

    def within(some: Iterable[Candidate]) -> list[Candidate]:
        return [c for c in some if c.exceeds(limits) <= 1]

    asked = [c for c in candidates if c.settings.steps <= anchor.settings.steps]
    feasible = within(asked)
    if not feasible:
        chosen = min(asked, key=lambda c: (c.exceeds(limits), -c.merit))
    elif priority == "MEMORY":
        alike = [c for c in feasible if experts.alike(c.settings)] or feasible
        chosen = min(alike, key=lambda c: (c.cost.memory_bytes, -c.merit))
    elif anchor in feasible:
        chosen = max([anchor, *within(liked)], key=lambda c: experts.preferred(c, anchor))
    else:
        chosen = max(feasible, key=lambda c: c.merit)
    return Found(chosen, anchor, front, bool(feasible))


def pareto(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Those that none other beats, fastest first."""
    # In this order, none can be beaten by one that comes later; time needs no comparison then.
    order = sorted(
        candidates, key=lambda c: (c.cost.seconds, c.cost.memory_bytes, -c.quality, -c.fidelity)
    )
    front: list[Candidate] = []
    best: list[tuple[int, float, float]] = []
    for candidate in order:
        memory, quality, fidelity = (
            candidate.cost.memory_bytes,
            candidate.quality,
            candidate.fidelity,
        )
        if not any(m <= memory and q >= quality and f >= fidelity for m, q, f in best):
            front.append(candidate)
            best.append((memory, quality, fidelity))
    return tuple(front)


def shown(found: Found) -> tuple[Alternative, ...]:
    """The front as a plan keeps it: the chosen one and others spread over the times."""
    others = [c for c in found.front if c.settings != found.chosen.settings]
    room = FRONT_SIZE - 1
    if len(others) > room:
        last = len(others) - 1
        others = [others[round(i * last / (room - 1))] for i in range(room)]
    listed = sorted([found.chosen, *others], key=lambda c: (c.cost.seconds, c.cost.memory_bytes))
    return tuple(
        Alternative(
            steps=c.settings.steps,
            sampler=c.settings.sampler,
            scheduler=c.settings.scheduler,
            width=c.settings.width,
            height=c.settings.height,
            second_pass=c.settings.second is not None,
            quality=round(c.quality, 3),
            fidelity=round(c.fidelity, 3),
            seconds=round(c.cost.seconds, 3),
            memory_bytes=c.cost.memory_bytes,
            chosen=c is found.chosen,
        )
        for c in listed
    )


# --------------------------------------------------------------------------- candidates


def _settings(space: Space, *, smaller: bool) -> list[Settings]:
    # The anchor first: of equally good ones, the first wins.
    anchor = space.anchor
    shapes = []
    for size in _sizes(space, smaller=smaller):
        if anchor.second is not None:
            shapes.append((size, _fitted(anchor.second, anchor, size)))
        shapes.append((size, None))
    # One that fewer experts use and that is no quicker is beaten by the anchor's at once.
    calls = evaluations(anchor.sampler, 2)
    quicker = [pair for pair, _ in space.pairs if evaluations(pair[0], 2) < calls]
    pairs = [anchor.pair, *quicker]
    return [
        Settings(steps, anchor.cfg, sampler, scheduler, width, height, second)
        for ((width, height), second), (sampler, scheduler), steps in itertools.product(
            shapes, pairs, _steps(space)
        )
    ]


def _steps(space: Space) -> list[int]:
    anchor = space.anchor.steps
    if "steps" in space.fixed:
        return [anchor]
    known = {*space.steps, *(value for value, _ in space.published_steps)}
    shorter = () if space.distilled else (max(_FEWEST_STEPS, round(anchor * s)) for s in SHORTER)
    return [anchor, *sorted({*known, *shorter} - {anchor}, reverse=True)]


def _sizes(space: Space, *, smaller: bool) -> list[tuple[int, int]]:
    width, height = space.anchor.width, space.anchor.height
    sizes = [(width, height)]
    if smaller and "size" not in space.fixed:
        sizes += [_scaled(width, height, share, space.multiple) for share in SMALLER]
    return list(dict.fromkeys(sizes))


def _scaled(width: int, height: int, share: float, multiple: int) -> tuple[int, int]:
    step = min(multiple, _FINEST_STEP)

    def side(length: int) -> int:
        return max(step, round(length * math.sqrt(share) / step) * step)

    return side(width), side(height)


def _fitted(second: SecondPass, anchor: Settings, size: tuple[int, int]) -> SecondPass:
    if size == (anchor.width, anchor.height):
        return second
    sides = {
        name: max(16, round(getattr(second, name) * new / old / 8) * 8)
        for name, new, old in (
            ("width", size[0], anchor.width),
            ("height", size[1], anchor.height),
        )
    }
    return second.model_copy(update=sides)


def _liked(space: Space, ratings: Sequence[RatedSettings]) -> list[Settings]:
    anchor, fixed = space.anchor, space.fixed
    known = {anchor.pair, *(pair for pair, _ in space.pairs)}
    found = []
    for rated in ratings:
        pair = (rated.sampler, rated.scheduler)
        if rated.rating <= _NEUTRAL or ("pair" not in fixed and pair not in known):
            continue
        own = {
            "steps": anchor.steps if "steps" in fixed else rated.steps,
            "cfg": anchor.cfg if "cfg" in fixed else rated.cfg,
            "sampler": anchor.sampler if "pair" in fixed else rated.sampler,
            "scheduler": anchor.scheduler if "pair" in fixed else rated.scheduler,
        }
        found.append(anchor._replace(**own))
    return list(dict.fromkeys(found))


def _work(settings: Settings, batch: int) -> Work:
    passes = [Pass(settings.width, settings.height, settings.steps, settings.sampler)]
    guided = settings.cfg != 1
    if settings.second is not None:
        second = settings.second
        passes.append(Pass(second.width, second.height, second.steps, second.sampler))
        guided = guided or second.cfg != 1
    return Work(tuple(passes), batch, guided)


# --------------------------------------------------------------------------- scores


class _Experts:
    """How experts would judge the settings of one space. Each figure is worked out once."""

    def __init__(self, space: Space) -> None:
        self._space = space
        own = tuple((value, 1.0) for value in dict.fromkeys((*space.steps, space.anchor.steps)))
        self._step_votes: Votes = (*space.published_steps, *own)
        self._pairs = dict(space.pairs)
        self._known: dict[tuple[str, object], float] = {}

    def quality(self, settings: Settings) -> float:
        anchor = self._space.anchor
        without = anchor.second is not None and settings.second is None
        return (
            self._once("steps", settings.steps, self._steps)
            * self._once("size", settings.width * settings.height, self._size)
            * (1.0 if settings.pair == anchor.pair else self._pairs.get(settings.pair, 0.0))
            * self._cfg(settings.cfg)
            * (1 - self._space.second_pass_share if without else 1.0)
        )

    def fidelity(self, settings: Settings) -> float:
        shape = settings.width / settings.height
        enough = _enough(settings.steps, self._space.needed_steps)
        aspect = self._space.aspect
        return enough if aspect is None else enough * _alike(shape, aspect, PIXELS_TOLERANCE)

    def alike(self, settings: Settings) -> bool:
        """Whether experts count its steps and size as those of the anchor."""
        anchor = self._space.anchor
        pixels = settings.width * settings.height * PIXELS_TOLERANCE
        steps = settings.steps * STEPS_TOLERANCE
        return pixels >= anchor.width * anchor.height and steps >= anchor.steps

    def preferred(self, candidate: Candidate, anchor: Candidate) -> float:
        """Merit of rated settings beside the anchor: more steps than those alone are no merit."""
        settings, own = candidate.settings, anchor.settings
        near = _alike_steps(settings.steps, own.steps) * self._cfg(settings.cfg)
        near *= 1.0 if settings.pair == own.pair else self._pairs.get(settings.pair, 0.0)
        return anchor.quality * anchor.fidelity * near + candidate.taught

    def _once(self, field: str, value: int, score: Callable[[int], float]) -> float:
        key = field, value
        if key not in self._known:
            self._known[key] = score(value)
        return self._known[key]

    def _steps(self, steps: int) -> float:
        judge = _alike_steps if self._space.distilled else _enough
        total = sum(vote for _, vote in self._step_votes)
        return sum(vote * judge(steps, value) for value, vote in self._step_votes) / total

    def _size(self, pixels: int) -> float:
        anchor = self._space.anchor
        return _alike(pixels, anchor.width * anchor.height, PIXELS_TOLERANCE)

    def _cfg(self, cfg: float) -> float:
        return math.exp(-0.5 * ((cfg - self._space.anchor.cfg) / CFG_TOLERANCE) ** 2)


def _enough(steps: float, wanted: float) -> float:
    return 1.0 if steps >= wanted else _alike(steps, wanted, STEPS_TOLERANCE)


def _alike_steps(steps: float, wanted: float) -> float:
    return _alike(steps, wanted, STEPS_TOLERANCE)


def _alike(value: float, wanted: float, tolerance: float) -> float:
    return math.exp(-0.5 * (math.log(value / wanted) / math.log(tolerance)) ** 2)


def _taught(settings: Settings, ratings: Sequence[RatedSettings]) -> float:
    # The mean of the ratings of settings like these, drawn towards nothing where they are few.
    good = weights = 0.0
    for rated in ratings:
        if rated.rating == _NEUTRAL or (rated.sampler, rated.scheduler) != settings.pair:
            continue
        far = (rated.cfg - settings.cfg) / CFG_TOLERANCE
        weight = _alike_steps(rated.steps, settings.steps) * math.exp(-0.5 * far**2)
        good += weight * (rated.rating - _NEUTRAL) / _SPREAD
        weights += weight
    return good / (weights + _PRIOR_RATINGS)


def pairs_of(
    votes: Votes,
    own: Sequence[Sequence[str]],
    anchor: tuple[str, str],
    samplers: Collection[str],
    schedulers: Collection[str],
) -> tuple[tuple[tuple[str, str], float], ...]:
    """Other pairs of sampler and scheduler that experts use and the host has, with the share for
    each; the anchor is the one that most agree on.

    Args:
        votes: published pairs; a source may leave the scheduler open.
        own: the pairs of the row.
    """
    counts: dict[tuple[str, str], float] = {}
    for first, second in own:
        counts[first, second] = counts.get((first, second), 0.0) + 1
    for (sampler, scheduler), vote in votes:
        if scheduler is not None:
            counts[sampler, scheduler] = counts.get((sampler, scheduler), 0.0) + vote
    most = sum(counts.values()) + 1
    there = [
        (pair, count / most)
        for pair, count in counts.items()
        if pair != anchor and pair[0] in samplers and pair[1] in schedulers
    ]
    return tuple(sorted(there, key=lambda item: -item[1])[:MOST_PAIRS])
