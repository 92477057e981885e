"""Fit core/recommending/ranking.json on pairs of a prompt and the LoRAs that were used with it."""

from __future__ import annotations

import argparse
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from ..core.catalog import lora_fit
from ..core.embedding import Encoder, model_folder, open_encoder
from ..core.prompting import analyze
from ..core.recommending.evidence import compare, gather
from ..core.recommending.index import Index
from ..core.recommending.meaning import projection
from ..core.recommending.query import read_query
from ..core.recommending.vectors import similarity, telling_parts, texts_of
from .recommend import FOLDS, Row, entry_of, family_named, fold_of, lines, model_of, neighbors_of

FIELDS = ("prompt", "prompt_wo_triggers")
BOOSTING = {
    "objective": "binary",
    "learning_rate": 0.04,
    "num_leaves": 24,
    "max_depth": 7,
    "min_data_in_leaf": 80,
    "feature_fraction": 0.3,
    "bagging_fraction": 0.6,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "max_bin": 127,
    "seed": 0,
    "num_threads": 2,
    "verbose": -1,
    "deterministic": True,
}
ROUNDS = 320
WRONG = 3
"""One wrong answer of so many is fitted on, and counts for all of them: as good, measured, and in a
third of the time."""
SMALL = (3, 800)
"""Every prompt is also asked of a library of so many LoRAs, drawn at random: most people have few,
and of few most fit no prompt."""
ANSWERED = 0.35
"""How often the LoRAs that were used are in that small library."""
LACKING = {"meaning": 0.15, "popularity": 0.25, "texts": 0.15, "answers": 0.15}
"""How often a prompt is shown without vectors, without what hubs count, without tags and
descriptions, and without the LoRAs that were used, so that it needs none."""
OF_MEANING = (
    "similarity", "similarity_clause", "similarity_description", "similarity_description_clause",
)  # fmt: skip
OF_POPULARITY = ("downloads", "likes")
OF_TEXTS = (
    "tags", "tag_share", "tag_top", "tag_phrases", "description", "description_top", "tag_count",
    "description_length",
)  # fmt: skip
FIRST = 3
ANYTHING = 3e38
"""A threshold that all numbers are below."""
SHORT = 128
"""Numbers of a LoRA's vector that are kept."""

FACTORS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "trigger",
        "trigger words: whole phrases and single words of them, and how much of them is asked for",
        ("trigger", "trigger_words", "trigger_share", "first_trigger_share", "trigger_top"),
    ),
    ("name", "title and file name", ("name", "name_share", "name_top")),
    (
        "tags",
        "the author's tags and frequent caption tags",
        ("tags", "tag_share", "tag_top", "tag_phrases"),
    ),
    ("description", "what the author says", ("description", "description_top", "all_text")),
    ("rarity", "how rare the rarest word matched in name, trigger words or tags is", ("rarest",)),
    (
        "focus",
        "share of the prompt, and of its best matched clause, that name or trigger words match",
        (
            "focus", "clause", "clause_rarity", "clause_place", "clause_words", "matched_words",
            "matched_clauses",
        ),
    ),
    (
        "rivals",
        "how many others match the same clause better, or as well and are downloaded more often",
        ("clause_better", "clause_tied", "clause_downloads"),
    ),
    (
        "spelling",
        "letters shared with a clause: other spellings, names written as one, other languages",
        ("spelling_name", "spelling_trigger"),
    ),
    (
        "semantic",
        "cosine of embeddings, of name and of description, to the prompt and its nearest clause",
        OF_MEANING,
    ),
    ("popularity", "downloads and likes on the hub it came from", OF_POPULARITY),
    (
        "kind",
        "character, style or other, and how much is said of it at all",
        ("kind", "trigger_count", "tag_count", "description_length"),
    ),
    (
        "prompt",
        "what the prompt is like: how long, how telling, tags or prose",
        (
            "prompt_words", "prompt_clauses", "prompt_rarity", "prompt_rarest", "prompt_quality",
            "prompt_people", "prompt_prose",
        ),
    ),
    ("library", "how many LoRAs there are: the more, the likelier a match is chance", ("library",)),
)  # fmt: skip
JUDGED = (
    {
        "factor": "base_model",
        "weight": 2.0,
        "about": "fit of the LoRA's base-model family to the model's, less 1",
        "source": "judged: the pairs have no LoRA of another base model",
    },
    {
        "factor": "captions",
        "weight": 3.0,
        "about": "rarity of what name and captions of nearly all training images both say",
        "source": "judged: the pairs' LoRAs come without counts of captions",
    },
    {
        "factor": "intent",
        "weight": 1.5,
        "about": "clarity of the prompt's style intent where the LoRA is a style of that kind",
        "source": "judged: a clear intent lifts confidence 0.2 to 0.5",
    },
    {
        "factor": "history",
        "weight": 1.0,
        "about": "your ratings of images made with it for like prompts, shrunk, -1 to 1",
        "source": "judged: the pairs have no ratings",
    },
)


class Example(NamedTuple):
    """One prompt and its candidates."""

    fold: int
    columns: dict[str, np.ndarray]
    used: np.ndarray
    near: np.ndarray
    """Another LoRA of the same character, series or style as one that was used."""
    models: np.ndarray
    """Numbers of the candidates' models."""
    library: int
    """LoRAs that the model can use."""
    needs: bool
    """Whether LoRAs were used with it."""
    small: bool
    """Whether the library is one drawn at random: to fit on, not to measure on."""


def main(argv: list[str]) -> dict[str, Any]:
    """Fit the recommender's trees, split by LoRA: no fold's LoRAs are seen by the trees that are
    measured on it, neither as answers nor as wrong answers. Then fit them on everything.

    The vectors need the embedding model on this machine. Needs about 6 GB of memory.
    """
    parser = argparse.ArgumentParser(prog="recommend_fit", description=main.__doc__)
    parser.add_argument("--library", nargs="+", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--neighbors", type=Path)
    parser.add_argument("--without", type=Path, help="prompts, one a line, that needed no LoRA")
    parser.add_argument("--out", type=Path, required=True, help="ranking.json")
    parser.add_argument("--folds", type=Path, help="folder for the trees of each fold")
    parser.add_argument("--projection", type=Path, help="find the vectors' directions anew")
    parser.add_argument("--only", type=int, help="this many folds, to try something")
    options = parser.parse_args(argv)
    encoder = open_encoder(model_folder()).encoder
    if encoder is None:
        parser.error("the embedding model is not on this machine")
    rows = [row for path in options.library for row in lines(path)]
    pairs = lines(options.pairs)
    without = [
        {"prompt": row["prompt"], "family": "sd15", "targets": []}
        for row in (lines(options.without) if options.without else [])
        if row["kind"] == "user_prompt"
    ]
    near = neighbors_of(options.neighbors) if options.neighbors else {}
    directions = projection()
    if options.projection:
        names = encoder.encode([texts_of(entry_of(row)).name for row in rows])
        directions = principal_directions(names)
        save_file({"projection": directions}, options.projection)
    examples = read_examples(rows, pairs, without, near, encoder, directions)
    measured: dict[str, list[bool]] = {field: [] for field in FIELDS}
    answers: list[tuple[np.ndarray, np.ndarray]] = []
    for fold in range(options.only or FOLDS):
        trees = fit(examples, fold)
        found = measure(trees, examples, fold, measured)
        answers += found
        print(f"fold {fold}: " + str({k: round(float(np.mean(v)), 4) for k, v in measured.items()}))
        if options.folds:
            options.folds.mkdir(parents=True, exist_ok=True)
            write(options.folds / f"{fold}.json", trees, calibrated(found), {})
    digest = hashlib.sha256()
    for path in (*options.library, options.pairs, *filter(None, [options.without])):
        digest.update(path.read_bytes())
    said = {
        "pairs": len(pairs),
        "library": len(rows),
        "prompts_without": len(without),
        "data_sha256": digest.hexdigest(),
        "hit@3": {field: round(float(np.mean(hits)), 4) for field, hits in measured.items()},
        "folds": options.only or FOLDS,
    }
    write(options.out, fit(examples, None), calibrated(answers), said)
    return said


# --------------------------------------------------------------------------- examples


def read_examples(
    rows: Sequence[Row],
    pairs: Sequence[Row],
    without: Sequence[Row],
    near: Mapping[object, set[object]],
    encoder: Encoder,
    directions: np.ndarray,
) -> list[tuple[str, Example]]:
    """Every prompt with its candidates, by field; vectors are compared in the directions given,
    [dimensions, n]."""
    entries = [entry_of(row) for row in rows]
    index = Index(entries)
    texts = [texts_of(entry) for entry in entries]
    names = encoder.encode([each.name for each in texts])
    descriptions = encoder.encode([each.description for each in texts])
    descriptions[[not each.description for each in texts]] = np.nan
    names, descriptions = _shortened(names, directions), _shortened(descriptions, directions)
    models = [model_of(row) for row in rows]
    numbers = {model: number for number, model in enumerate(dict.fromkeys(models))}
    numbered = np.array([numbers[model] for model in models])
    of_id = dict(zip((row["id"] for row in rows), models, strict=True))
    fits: dict[str, np.ndarray] = {}
    chance = np.random.RandomState(0)
    found: list[tuple[str, Example]] = []
    for place, pair in enumerate([*pairs, *without]):
        targets = [of_id[t["lora_id"]] for t in pair["targets"] if t["lora_id"] in of_id]
        if pair["targets"] and not targets:
            continue
        fold = fold_of(targets[0]) if targets else zlib.crc32(pair["prompt"].encode()) % FOLDS
        accepted = set(targets).union(*(near.get(target, ()) for target in targets))
        usable = fits.setdefault(pair["family"], _usable(index, pair["family"]))
        for field in FIELDS if targets else FIELDS[:1]:
            if not pair[field].strip():
                # Nothing is left without its trigger words: nobody can tell.
                none = np.zeros(0, bool)
                found.append(
                    (field, Example(fold, {}, none, none, none.astype(int), 0, True, False))
                )
                continue
            clauses = analyze(pair[field]).clauses
            prompt = _shortened(encoder.encode_parts(telling_parts(clauses)), directions)
            like = similarity(prompt, names, descriptions)
            query = read_query(clauses)
            answers = np.isin(numbered, [numbers[target] for target in targets])
            fitting = np.isin(numbered, [numbers[m] for m in accepted if m in numbers])
            for small in (False, True):
                there = _some(usable, fitting, chance) if small else usable
                if not there.any():
                    continue
                positions, columns = gather(index, query, there, like)
                found.append(
                    (
                        field,
                        Example(
                            fold,
                            {name: each.astype(np.float16) for name, each in columns.items()},
                            answers[positions],
                            fitting[positions],
                            numbered[positions],
                            int(there.sum()),
                            bool(targets),
                            small,
                        ),
                    )
                )
        if place % 1000 == 0:
            print(f"{place} of {len(pairs) + len(without)} prompts read", flush=True)
    _folds_of_models[:] = [fold_of(model) for model in numbers]
    return found


_folds_of_models: list[int] = []


def principal_directions(vectors: np.ndarray) -> np.ndarray:
    """[dimensions, SHORT]: the right singular vectors of most weight, in half precision."""
    return np.linalg.svd(vectors, full_matrices=False)[2][:SHORT].T.astype(np.float16)


def _shortened(vectors: np.ndarray, directions: np.ndarray) -> np.ndarray:
    short = vectors @ directions.astype(np.float32)
    return short / np.maximum(np.linalg.norm(short, axis=1, keepdims=True), 1e-9)


def _usable(index: Index, family: str) -> np.ndarray:
    # Rows without a family are never recommended, but a file's tensors would tell it.
    named = family_named(family)
    fits = [each == "unknown" or lora_fit(each, named) > 0 for each in index.families]
    return np.array(fits)[index.family]


def _some(usable: np.ndarray, fitting: np.ndarray, chance: np.random.RandomState) -> np.ndarray:
    """A small part of the library, with all or none of the LoRAs that fit."""
    size = np.exp(chance.uniform(*np.log(SMALL)))
    some = usable & ~fitting & (chance.rand(len(usable)) < size / usable.sum())
    return some | (usable & fitting) if chance.rand() < ANSWERED else some


def _varied(example: Example, chance: np.random.RandomState) -> Example:
    """The example with less said."""
    lacking = {what for what, rate in LACKING.items() if chance.rand() < rate}
    keep = ~example.near if "answers" in lacking else np.ones(len(example.used), bool)
    columns = {name: column[keep].astype(np.float32) for name, column in example.columns.items()}
    for what, names, value in (
        ("texts", OF_TEXTS, 0.0),
        ("texts", OF_MEANING[2:], np.nan),
        ("meaning", OF_MEANING, np.nan),
        ("popularity", OF_POPULARITY, np.nan),
    ):
        if what in lacking:
            columns |= {name: np.full_like(columns[name], value) for name in names}
    return example._replace(
        columns=columns,
        used=example.used[keep],
        near=example.near[keep],
        models=example.models[keep],
    )


def fit(examples: Sequence[tuple[str, Example]], left_out: int | None) -> dict[str, Any]:
    """The trees, from all folds but one, as `Trees.read` takes them."""
    import lightgbm

    chance = np.random.RandomState(0)
    folds = np.array(_folds_of_models)
    tables, labels, names = [], [], ()
    for _, example in examples:
        if not example.columns or example.fold == left_out:
            continue
        if (folds[example.models[example.used]] == left_out).any():
            continue
        example = _varied(example, chance)
        # What is much like an answer is neither right nor wrong.
        keep = (folds[example.models] != left_out) & (example.used | ~example.near)
        keep &= example.used | (chance.rand(len(keep)) < 1 / WRONG)
        if not keep.any():
            continue
        columns = compare(example.columns, example.library)
        names = tuple(columns)
        tables.append(np.stack(list(columns.values()), axis=1)[keep])
        labels.append(example.used[keep])
    label = np.concatenate(labels)
    weight = np.where(label, 1, WRONG)
    data = lightgbm.Dataset(np.concatenate(tables), label.astype(np.int8), weight=weight)
    del tables
    booster = lightgbm.train(BOOSTING, data, ROUNDS)
    return _as_lists(booster.dump_model(), names)


def _as_lists(model: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    out: dict[str, Any] = {"columns": list(names)}
    out |= {key: [] for key in ("roots", "column", "threshold", "left", "missing_left", "value")}
    deepest = 0

    def room(nodes: int) -> int:
        at = len(out["value"])
        for key, value in (
            ("column", 0), ("threshold", ANYTHING), ("missing_left", 1), ("value", 0.0),
        ):  # fmt: skip
            out[key] += [value] * nodes
        out["left"] += range(at, at + nodes)
        return at

    def fill(at: int, node: Mapping[str, Any], depth: int) -> None:
        nonlocal deepest
        deepest = max(deepest, depth)
        leaf = "leaf_value" in node
        out["value"][at] = float(f"{node['leaf_value' if leaf else 'internal_value']:.5g}")
        if leaf:
            return
        out["column"][at] = node["split_feature"]
        out["threshold"][at] = _threshold(node["threshold"])
        out["missing_left"][at] = int(node["default_left"])
        out["left"][at] = left = room(2)
        fill(left, node["left_child"], depth + 1)
        fill(left + 1, node["right_child"], depth + 1)

    for tree in model["tree_info"]:
        out["roots"].append(root := room(1))
        fill(root, tree["tree_structure"], 0)
    out["depth"] = deepest
    return out


def _threshold(value: float) -> float:
    # Columns are of single precision: the largest such number up to the threshold splits them as
    # the threshold does, and nine digits name it exactly. A ratio close to 1 needs all of them.
    # Beyond what single precision holds all numbers go left, and only NaN can go right.
    single = np.float32(min(max(value, -ANYTHING), ANYTHING))
    if float(single) > value:
        single = np.nextafter(single, np.float32(-np.inf))
    return float(f"{single:.9g}")


# --------------------------------------------------------------------------- measuring


def measure(
    trees: Mapping[str, Any],
    examples: Sequence[tuple[str, Example]],
    fold: int,
    measured: dict[str, list[bool]],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Add whether each prompt of the fold has a LoRA that was used among the first three; of
    prompts as written, the scores of those three, and whether each fits."""
    from ..core.recommending.trees import Trees

    read = Trees.read(trees)
    found = []
    for field, example in examples:
        if example.fold != fold or example.small:
            continue
        if not len(example.used):
            measured[field].append(False)
            continue
        columns = {name: column.astype(np.float32) for name, column in example.columns.items()}
        columns = compare(columns, example.library)
        answer = read.answer(np.stack([columns[name] for name in read.columns], axis=1))
        order = np.argsort(-answer, kind="stable")
        first = [order[0]]
        for at in order[1:]:
            if len(first) == FIRST:
                break
            if example.models[at] not in example.models[first]:
                first.append(at)
        if example.needs:
            measured[field].append(bool(example.used[first].any()))
            if field == FIELDS[0]:
                found.append((answer[first], example.near[first] | example.used[first]))
    return found


def calibrated(answers: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Scale and offset that turn answers into calibrated logits (Platt, 1999): the logistic
    regression of whether one of the first three fits."""
    from scipy.optimize import minimize

    answer = np.concatenate([each for each, _ in answers])
    fits = np.concatenate([each for _, each in answers]).astype(float)

    def loss(at: np.ndarray) -> float:
        logit = at[0] * answer + at[1]
        return float(np.mean(np.logaddexp(0.0, logit) - fits * logit))

    scale, offset = minimize(loss, np.array([1.0, 0.0]), method="L-BFGS-B").x
    return {"scale": round(float(scale), 4), "offset": round(float(offset), 4)}


def write(
    path: Path, trees: Mapping[str, Any], calibration: Mapping[str, float], said: Mapping[str, Any]
) -> None:
    """Write ranking.json: one list a line, so that a change can be read."""
    source = (
        "LightGBM, binary objective, on prompts of public images and the LoRAs used with them "
        "(November 2026), as written and without trigger words; benchmarks/recommend_fit.py"
    )
    head = {
        "source": source,
        "fitted_on": said,
        "calibration": {**calibration, "source": "Platt (1999), on the folds left out"},
        "factors": [
            *({"factor": n, "about": a, "columns": c, "source": source} for n, a, c in FACTORS),
            *JUDGED,
            {"factor": "prior", "about": "what every LoRA starts from", "source": source},
        ],
    }
    lists = ",\n  ".join(
        f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}"
        for key, value in trees.items()
    )
    text = json.dumps(head, indent=1, ensure_ascii=False)
    path.write_text(f'{text[:-2]},\n "trees": {{\n  {lists}\n }}\n}}\n', encoding="utf-8")
