"""Fit core/recommending/alignment.safetensors and ranking.json on pairs of a prompt and the LoRAs
that were used with it."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from ..core.embedding import model_folder, open_encoder
from ..core.recommending.evidence import compare
from ..core.recommending.trees import Trees
from ..core.recommending.vectors import Alignment
from .recommend import FOLDS, lines, neighbors_of
from .recommend_align import align
from .recommend_examples import FIELDS, Data, Example, Prompt, examples, read_data

BOOSTING = {
    "objective": "binary",
    "learning_rate": 0.04,
    "num_leaves": 32,
    "max_depth": 8,
    "min_data_in_leaf": 80,
    "feature_fraction": 0.3,
    "bagging_fraction": 0.6,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "monotone_constraints_method": "intermediate",
    "max_bin": 127,
    "num_threads": 2,
    "verbose": -1,
    "deterministic": True,
}
ROUNDS = 480
SEEDS = (0, 1)
"""One forest of trees for each; their mean answers. Two together are as good as the better of
them, measured, and which that is only the measuring tells."""
WRONG = 3
"""One wrong answer of so many is fitted on, and counts for all of them: as good, measured, and in a
third of the time."""
LACKING = {"meaning": 0.15, "popularity": 0.25, "texts": 0.15, "answers": 0.15}
"""How often a prompt is shown without vectors, without what hubs count, without tags and
descriptions, and without the LoRAs that were used, so that it needs none."""
OF_MEANING = ("similarity", "similarity_clause")
OF_POPULARITY = ("downloads", "likes")
OF_TEXTS = (
    "tags", "tag_share", "tag_top", "tag_phrases", "description", "description_top", "tag_count",
    "description_length",
)  # fmt: skip
OF_CHECKPOINT = ("checkpoint", "checkpoint_top")
RISING = ("name", "trigger", "trigger_words")
"""More of these never makes a LoRA less fitting: what a person expects who writes `(ink:1.4)`. It
costs nothing, measured; asked of all that speaks for a LoRA, it tells prompts that need none
worse (a Brier skill of 0.49, not 0.52)."""
FIRST = 3
ANYTHING = 3e38
"""A threshold that all numbers are below."""
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
        "cosine of aligned embeddings to the prompt and to the nearest of its clauses",
        OF_MEANING,
    ),
    (
        "checkpoint",
        "whether its author speaks of the checkpoint, and how far it lies towards the LoRAs that "
        "are used with checkpoints of such names",
        (*OF_CHECKPOINT, "checkpoint_meaning"),
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


def main(argv: list[str]) -> dict[str, Any]:
    """Fit the recommender, split by LoRA, and tell how often a LoRA that was used is among the
    first three. Then fit it on everything.

    Two things are fitted: the alignment of vectors, and the trees on what compares prompts and
    LoRAs. No fold's LoRAs are seen by the alignment and the trees that are measured on it, neither
    as answers nor as wrong answers. The prompts that trees are fitted on are compared by an
    alignment that did not see them either, so that the trees trust meaning as far as it can be
    trusted of new LoRAs.

    The vectors need the embedding model on this machine. Needs about 6 GB of memory.
    """
    parser = argparse.ArgumentParser(prog="recommend_fit", description=main.__doc__)
    parser.add_argument("--library", nargs="+", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--neighbors", type=Path)
    parser.add_argument("--without", type=Path, help="prompts, one a line, that needed no LoRA")
    parser.add_argument("--out", type=Path, required=True, help="ranking.json")
    parser.add_argument("--alignment", type=Path, required=True, help="alignment.safetensors")
    parser.add_argument("--folds", type=Path, help="folder for what is fitted for each fold")
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
    data = read_data(rows, pairs, without, near, encoder)
    alignments = Alignments(data)
    hits: list[Hit] = []
    fitted: list[tuple[Mapping[str, Any], Answers]] = []
    for fold in range(options.only or FOLDS):
        seen = list(examples(data, alignments.beside(fold), fold))
        trees = fit(data, seen, fold)
        new_hits, answers = measure(trees, seen, fold)
        hits += new_hits
        fitted.append((trees, answers))
        print(f"fold {fold}: {shares(new_hits)}", flush=True)
    if options.folds:
        options.folds.mkdir(parents=True, exist_ok=True)
        for fold, (trees, own) in enumerate(fitted):
            # By what the other folds' trees answered; by its own where there is one fold alone.
            others = [each for _, answers in fitted if answers is not own for each in answers]
            write(options.folds / f"{fold}.json", trees, calibrated(others or own), {})
            save(options.folds / f"{fold}.safetensors", alignments.without(fold))
    digest = hashlib.sha256()
    for path in (*options.library, options.pairs, *filter(None, [options.without])):
        digest.update(path.read_bytes())
    said = {
        "pairs": len(pairs),
        "library": len(rows),
        "prompts_without": len(without),
        "data_sha256": digest.hexdigest(),
        "hit@3": shares(hits),
        "folds": options.only or FOLDS,
    }
    save(options.alignment, alignments.without())
    trees = fit(data, list(examples(data, alignments.beside())), None)
    write(options.out, trees, calibrated([e for _, own in fitted for e in own]), said)
    return said


Answers = Sequence[tuple[np.ndarray, np.ndarray]]
"""Of each prompt the scores of the first three, and whether each fits."""


class Alignments:
    """The alignments of some data, each without the LoRAs of some folds; fitted when needed."""

    def __init__(self, data: Data) -> None:
        self.without = cache(lambda *folds: align(data, frozenset(folds)))

    def beside(self, left_out: int | None = None) -> Callable[[Prompt], Alignment]:
        """For each prompt the alignment that saw neither its fold nor the one left out."""
        left = set() if left_out is None else {left_out}
        return lambda prompt: self.without(*sorted({prompt.fold, *left}))


# --------------------------------------------------------------------------- fitting


def _varied(example: Example, chance: np.random.RandomState) -> Example:
    """The example with less said."""
    lacking = {what for what, rate in LACKING.items() if chance.rand() < rate}
    keep = ~example.near if "answers" in lacking else np.ones(len(example.used), bool)
    columns = {name: column[keep].astype(np.float32) for name, column in example.columns.items()}
    for what, names, value in (
        ("texts", OF_TEXTS, 0.0),
        ("meaning", (*OF_MEANING, "checkpoint_meaning"), np.nan),
        ("popularity", OF_POPULARITY, np.nan),
    ):
        if what in lacking:
            columns |= {name: np.full_like(columns[name], value) for name in names}
    if "texts" in lacking:  # where the checkpoint is not known, that stays
        columns |= {name: 0.0 * columns[name] for name in OF_CHECKPOINT}
    return example._replace(
        columns=columns,
        used=example.used[keep],
        near=example.near[keep],
        models=example.models[keep],
    )


def fit(data: Data, seen: Iterable[Example], left_out: int | None) -> dict[str, Any]:
    """The trees, from all folds but one, as `Trees.read` takes them."""
    import lightgbm

    chance = np.random.RandomState(0)
    tables, labels, names = [], [], ()
    for example in seen:
        prompt = example.prompt
        if not example.columns or left_out == prompt.fold or left_out in prompt.folds:
            continue
        example = _varied(example, chance)
        # What is much like an answer is neither right nor wrong.
        keep = (data.folds[example.models] != left_out) & (example.used | ~example.near)
        keep &= example.used | (chance.rand(len(keep)) < 1 / WRONG)
        if not keep.any():
            continue
        columns = compare(example.columns, example.library)
        names = tuple(columns)
        tables.append(np.stack(list(columns.values()), axis=1)[keep])
        labels.append(example.used[keep])
    label = np.concatenate(labels)
    weight = np.where(label, 1, WRONG)
    table = lightgbm.Dataset(np.concatenate(tables), label.astype(np.int8), weight=weight)
    del tables
    settings = {**BOOSTING, "monotone_constraints": list(map(_direction, names))}
    boosters = [lightgbm.train({**settings, "seed": seed}, table, ROUNDS) for seed in SEEDS]
    return _as_lists([booster.dump_model() for booster in boosters], names)


def _direction(column: str) -> int:
    """Whether the answer may only rise with a column (1), only fall (-1), or both (0)."""
    if column.rstrip("#").removesuffix("/best") not in RISING:
        return 0
    return -1 if column.endswith("#") else 1


def _as_lists(models: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """The trees of several models, as one whose answer is the mean of theirs."""
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
        value = node["leaf_value" if leaf else "internal_value"] / len(models)
        out["value"][at] = float(f"{value:.5g}")
        if leaf:
            return
        out["column"][at] = node["split_feature"]
        out["threshold"][at] = _threshold(node["threshold"])
        out["missing_left"][at] = int(node["default_left"])
        out["left"][at] = left = room(2)
        fill(left, node["left_child"], depth + 1)
        fill(left + 1, node["right_child"], depth + 1)

    for tree in (tree for model in models for tree in model["tree_info"]):
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


class Hit(NamedTuple):
    """Whether a LoRA that was used with a prompt is among the first three."""

    field: str
    alone: bool
    """Whether all LoRAs that were used are of the fold left out: of the others some were seen."""
    hit: bool


def shares(hits: Sequence[Hit]) -> dict[str, float]:
    """hit@3 by field, of all prompts and of those all of whose LoRAs were left out."""
    found: dict[str, float] = {}
    for field in FIELDS:
        own = [hit for hit in hits if hit.field == field]
        for name, some in ((field, own), (f"{field}, no LoRA seen", [h for h in own if h.alone])):
            found[name] = round(float(np.mean([each.hit for each in some])), 4)
    return found


def measure(
    trees: Mapping[str, Any], seen: Iterable[Example], fold: int
) -> tuple[list[Hit], Answers]:
    """Whether each prompt of the fold has a LoRA that was used among the first three; the scores of
    those three, and whether each fits."""
    read = Trees.read(trees)
    hits: list[Hit] = []
    answers: list[tuple[np.ndarray, np.ndarray]] = []
    for example in seen:
        prompt = example.prompt
        if prompt.fold != fold or example.small or not prompt.used:
            continue
        first, answer = _first(read, example)
        hit = bool(example.used[first].any())
        hits.append(Hit(prompt.field, prompt.folds == {fold}, hit))
        if first:
            answers.append((answer, example.near[first] | example.used[first]))
    return hits, answers


def _first(trees: Trees, example: Example) -> tuple[list[int], np.ndarray]:
    """The first three candidates, each of another model, and their scores."""
    if not len(example.used):
        return [], np.zeros(0)
    columns = {name: column.astype(np.float32) for name, column in example.columns.items()}
    columns = compare(columns, example.library)
    answer = trees.answer(np.stack([columns[name] for name in trees.columns], axis=1))
    first: dict[int, int] = {}
    for at in np.argsort(-answer, kind="stable"):
        first.setdefault(int(example.models[at]), int(at))
        if len(first) == FIRST:
            break
    places = list(first.values())
    return places, answer[places]


def calibrated(answers: Answers) -> dict[str, float]:
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


def save(path: Path, alignment: Alignment) -> None:
    """Write alignment.safetensors, in half precision."""
    save_file({n: part.astype(np.float16) for n, part in alignment._asdict().items()}, path)


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
