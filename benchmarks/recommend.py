"""The recommender against LoRAs that people really used with a prompt: predict, compare, scale."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..core.catalog import (
    LoraEntry,
    LoraLibrary,
    TagCount,
    TriggerWord,
    all_families,
    lora_fit,
)
from ..core.catalog.digest import weight_in_words
from ..core.plan import FileRef, PromptAnalysis
from ..core.prompting import analyze
from ..core.recommending import recommend
from ..core.recommending.index import Index, index_of, read_entry
from ..core.recommending.recommender import intent_factor
from ..core.recommending.scoring import read_query, score
from ..core.recommending.strengths import strength_for
from ..core.recommending.text import STOPWORDS, words
from .parameters import FAMILY_NAMES

RANKED = 20
"""LoRAs written for each prompt."""
FIRST = 3
DESCRIPTION = 1000
"""Characters of a description that the catalog keeps."""
SATURATION, LENGTH = 1.2, 0.75
"""BM25's k1 and b, at their usual values (Robertson and Zaragoza 2009)."""
RESAMPLES = 1000
SCALES = (7_500, 100_000)

Row = Mapping[str, Any]


class Ranked(NamedTuple):
    """One LoRA of an answer."""

    id: str
    confidence: float
    weight: float


class Answer(NamedTuple):
    """What the recommender says of one prompt."""

    ranked: tuple[Ranked, ...]
    """Best first; the first `recommended` of them are what LoRARecommender gives."""
    recommended: int
    seconds: float


def main(argv: list[str]) -> dict[str, Any]:
    """Measure the recommender on real pairs of prompt and LoRA, one JSON object a line.

    `predict` writes one answer a pair, made by the code that LoRARecommender runs. `compare`
    tells how often a LoRA that was used is among the first three, ours beside BM25 over all
    text, with the 95 % interval of the paired difference (bootstrap over pairs). `scale` takes
    the median time of one recommendation, reading the prompt included, in libraries of 7,500 and
    100,000, made by repeating the given one under other names.
    """
    parser = argparse.ArgumentParser(prog="recommend", description=main.__doc__)
    parser.add_argument("action", choices=("predict", "compare", "scale"))
    parser.add_argument("--library", nargs="+", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--field", choices=("prompt", "prompt_wo_triggers"), default="prompt")
    parser.add_argument("--out", type=Path, help="where predict writes its answers")
    parser.add_argument("--most", type=int, help="take this many pairs, evenly spread")
    options = parser.parse_args(argv)
    if options.action == "predict" and options.out is None:
        parser.error("predict needs --out")
    if options.most is not None and options.most < 2:
        parser.error("--most takes 2 or more: an interval needs them")
    rows = [row for path in options.library for row in _lines(path)]
    pairs = _lines(options.pairs)
    if options.most is not None:
        pairs = pairs[:: max(1, len(pairs) // options.most)][: options.most]
    if not rows or not pairs:
        parser.error("--library and --pairs must each hold a line or more")
    actions: Mapping[str, Callable[[], dict[str, Any]]] = {
        "predict": lambda: _predict(rows, pairs, options.field, options.out),
        "compare": lambda: _compare(rows, pairs, options.field),
        "scale": lambda: _scale(rows, pairs, options.field),
    }
    return {"action": options.action, "field": options.field, **actions[options.action]()}


def _lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def family_named(name: str) -> str:
    """The id of ours for what the data calls a family; `unknown` where it is none of ours."""
    ours = {theirs: family for (family, _), theirs in FAMILY_NAMES.items()}
    return name if name in all_families() else ours.get(name, "unknown")


def entry_of(row: Row) -> LoraEntry:
    """A row of a library as the catalog would know it after a look-up on CivitAI.

    Args:
        row: `id`, `name`, `file_name`, `family`, `trained_words`, `tags`, `description`, `stats`
            and `recommended_weight`. Its file lies under its id, so that no two are one.
    """
    statistics_ = row.get("stats") or {}
    description = (row["description"] or "")[:DESCRIPTION]
    folder = row["id"].replace(":", "-").replace("/", "-")
    return LoraEntry(
        file=FileRef(folder="loras", name=f"{folder}/{row['file_name']}.safetensors"),
        title=row["name"],
        family=family_named(row["family"]),
        variant=None,
        family_confidence=1.0,
        evidence="the row's family",
        trigger_words=tuple(TriggerWord(text, 1.0, "civitai") for text in row["trained_words"]),
        tags=tuple(TagCount(text, 1.0) for text in row["tags"]),
        description=description,
        recommended_weight=row.get("recommended_weight") or weight_in_words(description),
        downloads=statistics_.get("model_downloads"),
        likes=statistics_.get("favorites"),
    )


def library_of(rows: Iterable[Row]) -> LoraLibrary:
    """The rows as one library."""
    entries = tuple(map(entry_of, rows))
    return LoraLibrary(entries, (), revision=f"{len(entries)} rows")


# --------------------------------------------------------------------------- answers


def answer(text: str, family: str, library: LoraLibrary, ids: Sequence[str]) -> Answer:
    """What LoRARecommender would say of a prompt, and what it ranks behind that.

    Args:
        text: the prompt.
        family: of the model, as the data calls it.
        ids: of the library's entries, in their order.
    """
    if not text.strip():  # nothing but trigger words: the node refuses it
        return Answer((), 0, 0.0)
    family = family_named(family)
    started = time.perf_counter()
    analysis = analyze(text)
    plan = recommend(analysis, library, family=family, fit=lora_fit)
    seconds = time.perf_counter() - started
    named = {entry.file.name: id for entry, id in zip(library.entries, ids, strict=True)}
    ranked = {
        (id := named[lora.file.name]): Ranked(id, lora.confidence, lora.model_strength)
        for lora in plan.loras
    }
    recommended = len(ranked)
    index = index_of(library)
    for position, confidence in _scored(analysis, index, family):
        if len(ranked) >= RANKED:
            break
        weight = index.entries[position].recommended_weight
        strength = strength_for(weight, max(1, recommended)).strength
        ranked.setdefault(ids[position], Ranked(ids[position], confidence, strength))
    return Answer(tuple(ranked.values()), recommended, seconds)


def _scored(analysis: PromptAnalysis, index: Index, family: str) -> Iterable[tuple[int, float]]:
    fits = {each: lora_fit(each, family) for each in index.families}
    scores = score(index, read_query(analysis.clauses), fits, intent_factor(analysis.intent))
    for position, confidence in zip(scores.positions, scores.confidence, strict=True):
        family_of_lora = index.entries[position].family
        # Rows without a family are never recommended, but a file's tensors would tell it.
        if fits[family_of_lora] > 0 or family_of_lora == "unknown":
            yield int(position), float(confidence)


def _predict(rows: Sequence[Row], pairs: Sequence[Row], field: str, out: Path) -> dict[str, Any]:
    library, ids = library_of(rows), [row["id"] for row in rows]
    with out.open("w", encoding="utf-8", newline="\n") as file:
        for pair in pairs:
            said = answer(pair[field], pair["family"], library, ids)
            line = {
                "id": pair["id"],
                "ranked": [one._asdict() for one in said.ranked],
                "recommended": said.recommended,
                "ms": round(1000 * said.seconds, 3),
            }
            file.write(json.dumps(line) + "\n")
    return {"pairs": len(pairs), "library": len(rows), "out": out.name}


# --------------------------------------------------------------------------- comparison


class Bm25:
    """BM25 over all text of a library, what most LoRA pickers use."""

    def __init__(self, library: LoraLibrary) -> None:
        self._lengths = np.zeros(len(library.entries))
        self._found: dict[str, list[tuple[int, int]]] = {}
        for position, entry in enumerate(library.entries):
            text = read_entry(entry)
            counts = Counter(text.description)
            for run in (*text.names, *(t.words for t in text.triggers), *(t for t, _ in text.tags)):
                counts.update(word for word in run if word not in STOPWORDS)
            self._lengths[position] = counts.total()
            for word, count in counts.items():
                self._found.setdefault(word, []).append((position, count))

    def order(self, text: str) -> list[int]:
        """Positions of the LoRAs that share a word with the text, the best first."""
        size, scores = len(self._lengths), np.zeros(len(self._lengths))
        whole = 1 - LENGTH + LENGTH * self._lengths / max(1.0, self._lengths.mean())
        for word in set(words(text)) - STOPWORDS:
            if found := self._found.get(word):
                at, counts = np.array(found).T
                rarity = math.log(1 + (size - len(at) + 0.5) / (len(at) + 0.5))
                counted = counts * (SATURATION + 1) / (counts + SATURATION * whole[at])
                scores[at] += rarity * counted
        order = np.argsort(-scores, kind="stable")
        return [int(position) for position in order[: 10 * RANKED] if scores[position] > 0]


def _compare(rows: Sequence[Row], pairs: Sequence[Row], field: str) -> dict[str, Any]:
    library, ids = library_of(rows), [row["id"] for row in rows]
    models = {row["id"]: row["id"] if row["model_id"] is None else row["model_id"] for row in rows}
    pairs = [pair for pair in pairs if any(t["lora_id"] in models for t in pair["targets"])]
    bm25 = Bm25(library)
    hits: dict[str, list[bool]] = {"ours": [], "bm25": []}
    for pair in pairs:
        used = {models[t["lora_id"]] for t in pair["targets"] if t["lora_id"] in models}
        said = answer(pair[field], pair["family"], library, ids)
        fitting = [
            position
            for position in bm25.order(pair[field])
            if (theirs := library.entries[position].family) == "unknown"
            or lora_fit(theirs, family_named(pair["family"])) > 0
        ]
        orders = {"ours": [one.id for one in said.ranked], "bm25": [ids[at] for at in fitting]}
        for name, order in orders.items():
            first = list(dict.fromkeys(models[id] for id in order))[:FIRST]
            hits[name].append(not used.isdisjoint(first))
    shares = {name: round(statistics.mean(found), 4) for name, found in hits.items()}
    difference = np.array(hits["ours"], float) - np.array(hits["bm25"], float)
    draws = np.random.RandomState(0).randint(len(difference), size=(RESAMPLES, len(difference)))
    interval = np.quantile(difference[draws].mean(1), (0.025, 0.975))
    return {
        "hit@3": shares,
        "over_bm25": [round(float(end), 4) for end in interval],
        "pairs": len(pairs),
        "library": len(rows),
    }


# --------------------------------------------------------------------------- scale


def _scale(rows: Sequence[Row], pairs: Sequence[Row], field: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for size in SCALES:
        many = [
            {**row, "id": f"{row['id']}-{number}", "file_name": f"{row['file_name']} {number}"}
            for number, row in enumerate(_repeated(rows, size))
        ]
        library, ids = library_of(many), [row["id"] for row in many]
        started = time.perf_counter()
        index_of(library)
        built = time.perf_counter() - started
        taken = [answer(pair[field], pair["family"], library, ids).seconds for pair in pairs]
        out[str(size)] = {
            "build_seconds": round(built, 2),
            "median_ms": round(1000 * statistics.median(taken), 2),
            "slowest_ms": round(1000 * max(taken), 2),
        }
    return {"libraries": out, "pairs": len(pairs)}


def _repeated(rows: Sequence[Row], size: int) -> Iterable[Row]:
    return (rows[number % len(rows)] for number in range(size))
