"""The recommender against LoRAs that people really used with a prompt: predict, compare, scale."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import zlib
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
from ..core.embedding import Encoder, Opened, Vectors, model_folder, open_encoder
from ..core.limits import MIN_CONFIDENCE
from ..core.plan import FileRef
from ..core.prompting import analyze
from ..core.recommending import recommend
from ..core.recommending.index import Index, index_of, read_description, read_entry
from ..core.recommending.meaning import Meaning
from ..core.recommending.query import Query, read_query
from ..core.recommending.recommender import intent_factor
from ..core.recommending.scoring import RANKING, Ranking, load_ranking, score
from ..core.recommending.strengths import strength_for
from ..core.recommending.text import STOPWORDS, words
from ..core.recommending.vectors import ALIGNMENT, Similarity, read_alignment, texts_of
from .parameters import FAMILY_NAMES

RANKED = 20
"""LoRAs written for each prompt."""
FIRST = 3
DESCRIPTION = 1000
"""Characters of a description that the catalog keeps."""
SATURATION, LENGTH = 1.2, 0.75
"""BM25's k1 and b, at their usual values (Robertson and Zaragoza 2009)."""
RESAMPLES = 1000
FOLDS = 5
VECTORS = Path(__file__).parent.parent / ".cache" / "recommend"
SCALES = (7_500, 100_000)
LEAST = (0.6, 0.65, 0.7, 0.75, 0.8)
"""Least confidences to compare."""

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

    Where a pair says which checkpoint was used, the recommender knows it, as it does in ComfyUI
    for a model that HubModelLoader loaded; --prompt-alone takes that away.

    `predict` writes one answer a pair, made by the code that LoRARecommender runs. `compare`
    tells how often a LoRA that was used is among the first three, ours beside BM25 over all
    text, the cosine of MiniLM, the fusion of both and requirement 2.9's formula, with the 95 %
    interval of the paired difference (bootstrap over pairs). `without` tells for how many of
    the prompts in --pairs something is recommended, of kind user_prompt: people made those
    images without a LoRA; also if more confidence were asked for. `scale` takes
    the median time of one recommendation, reading the prompt included, in libraries of 7,500 and
    100,000, made by repeating the given one under other names, all prompts for one checkpoint.
    """
    parser = argparse.ArgumentParser(prog="recommend", description=main.__doc__)
    parser.add_argument("action", choices=("predict", "compare", "without", "scale"))
    parser.add_argument("--library", nargs="+", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--field", choices=("prompt", "prompt_wo_triggers"), default="prompt")
    parser.add_argument("--out", type=Path, help="where predict writes its answers")
    parser.add_argument("--prompt-alone", action="store_true", help="no checkpoint is known")
    parser.add_argument("--words-only", action="store_true", help="without the embedding model")
    parser.add_argument("--crossed", type=Path, help="recommend_fit's --folds: no LoRA seen")
    parser.add_argument("--most", type=int, help="take this many pairs, evenly spread")
    options = parser.parse_args(argv)
    if options.action == "predict" and options.out is None:
        parser.error("predict needs --out")
    if options.most is not None and options.most < 2:
        parser.error("--most takes 2 or more: an interval needs them")
    rows = [row for path in options.library for row in lines(path)]
    pairs = lines(options.pairs)
    if options.most is not None:
        pairs = pairs[:: max(1, len(pairs) // options.most)][: options.most]
    if options.prompt_alone:
        pairs = [{**pair, "checkpoint": None} for pair in pairs]
    if not rows or not pairs:
        parser.error("--library and --pairs must each hold a line or more")
    said = {"action": options.action, "field": options.field}
    if options.action == "scale":
        return {**said, **_scale(rows, pairs, options.field, options.words_only)}
    setup = set_up(rows, words_only=options.words_only, crossed=options.crossed)
    if options.action == "without":
        return {**said, **_without(rows, pairs, setup)}
    if options.action == "predict":
        return {**said, **_predict(rows, pairs, options.field, options.out, setup)}
    return {**said, **_compare(rows, pairs, options.field, setup)}


def lines(path: Path) -> list[Row]:
    """The rows of a file with one JSON object a line."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def neighbors_of(path: Path) -> dict[object, set[object]]:
    """Models that fit where another one does, by model id."""
    return {row["model_id"]: {n["model_id"] for n in row["neighbors"]} for row in lines(path)}


def family_named(name: str) -> str:
    """The id of ours for what the data calls a family; `unknown` where it is none of ours."""
    ours = {theirs: family for (family, _), theirs in FAMILY_NAMES.items()}
    return name if name in all_families() else ours.get(name, "unknown")


def entry_of(row: Row) -> LoraEntry:
    """A row of a library as the catalog would know it after a look-up on CivitAI: called by the
    names of model and version, described by the model's words before the version's, and with the
    version's downloads before the model's.

    Args:
        row: `id`, `name`, `file_name`, `family`, `trained_words`, `tags`, `description`, and where
            known `version_name`, `version_description`, `stats` and `recommended_weight`. Its file
            lies under its id, so that no two are one.
    """
    statistics_ = row.get("stats") or {}
    downloads = statistics_.get("downloads")
    description = (row["description"] or row.get("version_description") or "")[:DESCRIPTION]
    folder = row["id"].replace(":", "-").replace("/", "-")
    return LoraEntry(
        file=FileRef(folder="loras", name=f"{folder}/{row['file_name']}.safetensors"),
        title=" ".join(filter(None, (row["name"], row.get("version_name")))),
        family=family_named(row["family"]),
        variant=None,
        family_confidence=1.0,
        evidence="the row's family",
        trigger_words=tuple(TriggerWord(text, 1.0, "civitai") for text in row["trained_words"]),
        tags=tuple(TagCount(text, 1.0) for text in row["tags"]),
        description=description,
        recommended_weight=row.get("recommended_weight") or weight_in_words(description),
        downloads=statistics_.get("model_downloads") if downloads is None else downloads,
        likes=statistics_.get("favorites"),
    )


def library_of(rows: Iterable[Row]) -> LoraLibrary:
    """The rows as one library."""
    entries = tuple(map(entry_of, rows))
    return LoraLibrary(entries, (), revision=f"{len(entries)} rows")


# --------------------------------------------------------------------------- answers


class Fitted(NamedTuple):
    """What was fitted, on all pairs or on those of all folds but one."""

    ranking: Ranking
    meaning: Meaning | None
    """None compares words alone."""


class Setup(NamedTuple):
    """What the recommender works with."""

    library: LoraLibrary
    ids: Sequence[str]
    """Of the library's entries, in their order."""
    fitted: Sequence[Fitted]
    """One for each fold of recommend_fit; or what is shipped, alone."""
    encoder: Encoder | None
    """None compares words alone."""


class _Remembering:
    """An encoder that encodes no text of a LoRA twice: every fold asks for the same."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._known: dict[str, Vectors] = {}
        self.encode_parts = encoder.encode_parts

    def encode(self, texts: Sequence[str]) -> Vectors:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        self._known |= zip(new, self._encoder.encode(new), strict=True)
        return np.stack([self._known[text] for text in texts])


def set_up(rows: Sequence[Row], *, words_only: bool, crossed: Path | None) -> Setup:
    """The rows as a library, read and compared by meaning; vectors are kept for the next time."""
    library = library_of(rows)
    encoder = None
    if not words_only:
        opened = open_encoder(model_folder())
        if opened.encoder is None:
            raise SystemExit(f"Not compared by meaning ({opened.problem}); use --words-only.")
        encoder = _Remembering(opened.encoder)
    index_of(library)
    files = [("shipped", RANKING, ALIGNMENT)]
    if crossed:
        names = [(f"fold-{fold}", crossed / str(fold)) for fold in range(FOLDS)]
        files = [(n, p.with_suffix(".json"), p.with_suffix(".safetensors")) for n, p in names]
    fitted = [
        Fitted(load_ranking(ranking), encoder and _meaning(library, encoder, name, alignment))
        for name, ranking, alignment in files
    ]
    return Setup(library, [row["id"] for row in rows], fitted, encoder)


def _meaning(library: LoraLibrary, encoder: Encoder, name: str, alignment: Path) -> Meaning:
    aligned = read_alignment(alignment)
    meaning = Meaning(VECTORS / f"{name}.bin", lambda: Opened(encoder), lambda: aligned)
    meaning.start(library)
    if (status := meaning.wait()).state != "ready":
        raise SystemExit(f"The library's vectors could not be made: {status.problem}")
    return meaning


def fold_of(model: object) -> int:
    """The fold of a LoRA's model id, for fitting on some and measuring on others."""
    return zlib.crc32(str(model).encode()) % FOLDS


def model_of(row: Row) -> object:
    """What all versions of a LoRA share."""
    return row["id"] if row["model_id"] is None else row["model_id"]


def answer(pair: Row, field: str, setup: Setup, fitted: Fitted) -> Answer:
    """What LoRARecommender would say of a prompt, and what it ranks behind that.

    Args:
        pair: with the prompt, the model's family as the data calls it and, where it is known,
            what the checkpoint's file is called.
        field: how the prompt is written.
        fitted: one of `setup.fitted`.
    """
    text = pair[field]
    library, ids = setup.library, setup.ids
    if not text.strip():  # nothing but trigger words: the node refuses it
        return Answer((), 0, 0.0)
    family = family_named(pair["family"])
    checkpoint = pair.get("checkpoint") or ""
    started = time.perf_counter()
    analysis = analyze(text)
    ranking, meaning = fitted
    like = meaning.similarity(library, analysis.clauses, checkpoint) if meaning else None
    plan = recommend(
        analysis,
        library,
        family=family,
        fit=lora_fit,
        checkpoint=checkpoint,
        similarity=like,
        ranking=ranking,
    )
    seconds = time.perf_counter() - started
    named = {entry.file.name: id for entry, id in zip(library.entries, ids, strict=True)}
    ranked = {
        (id := named[lora.file.name]): Ranked(id, lora.confidence, lora.model_strength)
        for lora in plan.loras
    }
    recommended = len(ranked)
    index = index_of(library)
    query = read_query(analysis.clauses).on(checkpoint)
    intent = intent_factor(analysis.intent)
    for position, confidence in _scored(query, intent, index, family, like, ranking):
        if len(ranked) >= RANKED:
            break
        weight = index.entries[position].recommended_weight
        strength = strength_for(weight, max(1, recommended)).strength
        ranked.setdefault(ids[position], Ranked(ids[position], confidence, strength))
    return Answer(tuple(ranked.values()), recommended, seconds)


def _scored(
    query: Query,
    intent: Callable[[LoraEntry], float],
    index: Index,
    family: str,
    like: Similarity | None,
    ranking: Ranking,
) -> Iterable[tuple[int, float]]:
    # Rows without a family are never recommended, but a file's tensors would tell it.
    fits = {e: 1.0 if e == "unknown" else lora_fit(e, family) for e in index.families}
    scores = score(index, query, fits, intent, similarity=like, ranking=ranking)
    for position, confidence in zip(scores.positions, scores.confidence, strict=True):
        if fits[index.entries[position].family] > 0:
            yield int(position), float(confidence)


def _fitted_for(pair: Row, rows: Mapping[str, Row], setup: Setup) -> Fitted:
    """What saw none of the pair's LoRAs; or what is shipped."""
    if len(setup.fitted) == 1:
        return setup.fitted[0]
    targets = [t["lora_id"] for t in pair["targets"] if t["lora_id"] in rows]
    if not targets:
        return setup.fitted[zlib.crc32(pair["prompt"].encode()) % FOLDS]
    return setup.fitted[fold_of(model_of(rows[targets[0]]))]


def _predict(
    rows: Sequence[Row], pairs: Sequence[Row], field: str, out: Path, setup: Setup
) -> dict[str, Any]:
    of_id = {row["id"]: row for row in rows}
    with out.open("w", encoding="utf-8", newline="\n") as file:
        for pair in pairs:
            said = answer(pair, field, setup, _fitted_for(pair, of_id, setup))
            line = {
                "id": pair["id"],
                "ranked": [one._asdict() for one in said.ranked],
                "recommended": said.recommended,
                "ms": round(1000 * said.seconds, 3),
            }
            file.write(json.dumps(line) + "\n")
    return {"pairs": len(pairs), "library": len(rows), "out": out.name}


def _without(rows: Sequence[Row], prompts: Sequence[Row], setup: Setup) -> dict[str, Any]:
    of_id = {row["id"]: row for row in rows}
    alone = {"family": "sd15", "targets": []}
    asked = [{**row, **alone} for row in prompts if row["kind"] == "user_prompt"]
    said = [answer(row, "prompt", setup, _fitted_for(row, of_id, setup)) for row in asked]
    surest = [max((r.confidence for r in a.ranked[: a.recommended]), default=0.0) for a in said]
    return {
        "prompts": len(said),
        "recommended_for": round(statistics.mean(a.recommended > 0 for a in said), 4),
        "at_confidence": {
            least: round(statistics.mean(each >= least for each in surest), 4)
            for least in LEAST
            if least >= MIN_CONFIDENCE
        },
    }


# --------------------------------------------------------------------------- comparison


class Bm25:
    """BM25 over all text of a library, what most LoRA pickers use."""

    def __init__(self, library: LoraLibrary) -> None:
        self._lengths = np.zeros(len(library.entries))
        self._found: dict[str, list[tuple[int, int]]] = {}
        for position, entry in enumerate(library.entries):
            text = read_entry(entry)
            counts = Counter(read_description(entry))
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


def _seed_formula(entry: LoraEntry, cosine: float, prompt_words: frozenset[str]) -> float:
    """Requirement 2.9: .40 cosine, .30 share of trigger words in the prompt, .20 rating, .10
    history. Ratings in its form for sites without stars; no history counts as neutral."""
    triggers = [frozenset(words(trigger.text)) for trigger in entry.trigger_words]
    named = sum(each <= prompt_words for each in triggers) / max(1, len(triggers))
    popular = 0.5 * min(math.log10(1 + (entry.downloads or 0)) / 5, 1.0)
    popular += 0.5 * min(math.log10(1 + (entry.likes or 0)) / 3, 1.0)
    return 0.40 * cosine + 0.30 * named + 0.20 * popular + 0.10 * 0.5


def _compare(rows: Sequence[Row], pairs: Sequence[Row], field: str, setup: Setup) -> dict[str, Any]:
    library, ids, _, encoder = setup
    models = {row["id"]: model_of(row) for row in rows}
    of_id = {row["id"]: row for row in rows}
    pairs = [pair for pair in pairs if any(t["lora_id"] in models for t in pair["targets"])]
    bm25 = Bm25(library)
    names = encoder.encode([texts_of(e).name for e in library.entries]) if encoder else None
    hits: dict[str, list[bool]] = {}
    usable: dict[str, set[int]] = {}
    for pair in pairs:
        text, family = pair[field], family_named(pair["family"])
        used = {models[t["lora_id"]] for t in pair["targets"] if t["lora_id"] in models}
        said = answer(pair, field, setup, _fitted_for(pair, of_id, setup))
        if family not in usable:
            usable[family] = {
                position
                for position, entry in enumerate(library.entries)
                if entry.family == "unknown" or lora_fit(entry.family, family) > 0
            }
        fitting = usable[family]
        by_words = [at for at in bm25.order(text) if at in fitting]
        orders = {"ours": [one.id for one in said.ranked], "bm25": [ids[at] for at in by_words]}
        if encoder is not None and names is not None:
            near = names @ encoder.encode([text])[0]
            cosine = [int(at) for at in np.argsort(-near, kind="stable") if at in fitting]
            orders["minilm"] = [ids[at] for at in cosine[: 10 * RANKED]]
            orders["rank_fusion"] = [ids[at] for at in fused(by_words, cosine[: 10 * RANKED])]
            asked = frozenset(words(text))
            best = {*cosine[: 10 * RANKED], *by_words}
            formula = {
                at: _seed_formula(library.entries[at], float(near[at]), asked) for at in best
            }
            ranked = sorted(formula, key=lambda at: (-formula[at], at))
            orders["requirement_2_9"] = [ids[at] for at in ranked]
        for name, order in orders.items():
            first = list(dict.fromkeys(models[id] for id in order))[:FIRST]
            hits.setdefault(name, []).append(not used.isdisjoint(first))
    ours = np.array(hits["ours"], float)
    draws = np.random.RandomState(0).randint(len(ours), size=(RESAMPLES, len(ours)))

    def interval(values: np.ndarray) -> list[float]:
        ends = np.quantile(values[draws].mean(1), (0.025, 0.975))
        return [round(float(end), 4) for end in ends]

    return {
        "hit@3": {name: round(statistics.mean(found), 4) for name, found in hits.items()},
        "interval": interval(ours),
        "lead": {
            name: interval(ours - np.array(found, float))
            for name, found in hits.items()
            if name != "ours"
        },
        "pairs": len(pairs),
        "library": len(rows),
    }


def fused(*orders: Sequence[int]) -> list[int]:
    """Reciprocal rank fusion at its usual 60 (Cormack, Clarke and Buettcher 2009)."""
    scores: Counter[int] = Counter()
    for order in orders:
        for place, at in enumerate(order):
            scores[at] += 1.0 / (60 + place)  # pyright: ignore[reportArgumentType]
    return [at for at, _ in scores.most_common()]


# --------------------------------------------------------------------------- scale


def _scale(
    rows: Sequence[Row], pairs: Sequence[Row], field: str, words_only: bool
) -> dict[str, Any]:
    # A person's prompts are for one checkpoint, one after the other: its name is read once.
    checkpoint = next((pair["checkpoint"] for pair in pairs if pair.get("checkpoint")), None)
    pairs = [{**pair, "checkpoint": checkpoint} for pair in pairs]
    out: dict[str, Any] = {}
    for size in SCALES:
        many = [
            {**row, "id": f"{row['id']}-{number}", "file_name": f"{row['file_name']} {number}"}
            for number, row in enumerate(_repeated(rows, size))
        ]
        started = time.perf_counter()
        setup = set_up(many, words_only=words_only, crossed=None)
        built = time.perf_counter() - started
        taken = [answer(pair, field, setup, setup.fitted[0]).seconds for pair in pairs]
        out[str(size)] = {
            "build_seconds": round(built, 2),
            "index_megabytes": round(index_of(setup.library).bytes() / 1e6, 1),
            "median_ms": round(1000 * statistics.median(taken), 2),
            "slowest_ms": round(1000 * max(taken), 2),
        }
    return {"libraries": out, "pairs": len(pairs)}


def _repeated(rows: Sequence[Row], size: int) -> Iterable[Row]:
    return (rows[number % len(rows)] for number in range(size))
