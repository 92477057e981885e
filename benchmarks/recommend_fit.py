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
from safetensors.numpy import save as serialized

from ..core.embedding import model_folder, open_encoder
from ..core.recommending.evidence import compare
from ..core.recommending.scoring import Models
from ..core.recommending.vectors import Alignment
from ._recommend_align import align
from ._recommend_examples import FIELDS, Data, Example, Prompt, examples, read_data
from ._recommend_lists import OF_CHECKPOINT, OF_MEANING, OF_POPULARITY, Lists
from ._recommend_networks import fit_networks
from ._recommend_trees import fit_trees
from .recommend import FOLDS, lines, neighbors_of

FIRST = 3
NEEDLESS = 0.5
"""How much the answer to a prompt that needs no LoRA counts in calibrating. Counted fully, 49.5 %
of the prompts that need a LoRA get one (half is the goal); not counted, 9.7 % of those that need
none do (a tenth is the limit)."""
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

    Two things are fitted: the alignment of vectors, and the models, trees and networks, on what
    compares prompts and LoRAs. No fold's LoRAs are seen by the alignment and the models that are
    measured on it, neither as answers nor as wrong answers. The prompts that models are fitted on
    are compared by an alignment that did not see them either, so that they trust meaning as far as
    it can be trusted of new LoRAs.

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
        models = fit(Lists.of(data, seen, fold))
        new_hits, answers = measure(models, seen, fold)
        hits += new_hits
        fitted.append((models, answers))
        print(f"fold {fold}: {shares(new_hits)}", flush=True)
    if options.folds:
        options.folds.mkdir(parents=True, exist_ok=True)
        for fold, (models, own) in enumerate(fitted):
            # By what the other folds' models answered; by its own where there is one fold alone.
            others = [each for _, answers in fitted if answers is not own for each in answers]
            write(options.folds / f"{fold}.json", models, calibrated(others or own), {})
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
    models = fit(Lists.of(data, examples(data, alignments.beside()), None))
    write(options.out, models, calibrated([e for _, own in fitted for e in own]), said)
    return said


class FirstThree(NamedTuple):
    """The first three LoRAs for one prompt."""

    scores: np.ndarray
    """Highest first."""
    fits: np.ndarray
    """bool, of each."""
    needs: bool
    """Whether the prompt needs a LoRA."""


Answers = Sequence[FirstThree]


class Alignments:
    """The alignments of some data, each without the LoRAs of some folds; fitted when needed."""

    def __init__(self, data: Data) -> None:
        self.without = cache(lambda *folds: align(data, frozenset(folds)))

    def beside(self, left_out: int | None = None) -> Callable[[Prompt], Alignment]:
        """For each prompt the alignment that saw neither its fold nor the one left out."""
        left = set() if left_out is None else {left_out}
        return lambda prompt: self.without(*sorted({prompt.fold, *left}))


def fit(lists: Lists) -> dict[str, Any]:
    """The models, as `Models.read` takes them."""
    return {"trees": fit_trees(lists), "networks": fit_networks(lists)}


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
    models: Mapping[str, Any], seen: Iterable[Example], fold: int
) -> tuple[list[Hit], Answers]:
    """Whether each prompt of the fold that needs a LoRA has one that was used among the first
    three; and what is said of every prompt."""
    read = Models.read(models)
    hits: list[Hit] = []
    answers: list[FirstThree] = []
    for example in seen:
        prompt = example.prompt
        if prompt.fold != fold or example.small:
            continue
        first, scores = _first(read, example)
        if prompt.used:
            hit = bool(example.used[first].any())
            hits.append(Hit(prompt.field, prompt.folds == {fold}, hit))
        if first:
            fits = example.near[first] | example.used[first]
            answers.append(FirstThree(scores, fits, bool(prompt.used)))
    return hits, answers


def _first(models: Models, example: Example) -> tuple[list[int], np.ndarray]:
    """The first three candidates, each of another model, and their scores."""
    if not len(example.used):
        return [], np.zeros(0)
    columns = {name: column.astype(np.float32) for name, column in example.columns.items()}
    columns = compare(columns, example.library)
    answer = models.answer(np.stack([columns[name] for name in models.columns], axis=1))
    first: dict[int, int] = {}
    for at in np.argsort(-answer, kind="stable"):
        first.setdefault(int(example.models[at]), int(at))
        if len(first) == FIRST:
            break
    places = list(first.values())
    return places, answer[places]


def calibrated(answers: Answers) -> dict[str, float]:
    """Scale and offset that turn scores into calibrated logits (Platt, 1999): the logistic
    regression of whether each of the first three fits; of a prompt that needs none, NEEDLESS
    counts."""
    from scipy.optimize import minimize

    scores = np.concatenate([each.scores for each in answers])
    fits = np.concatenate([each.fits for each in answers]).astype(float)
    counts = [len(each.scores) for each in answers]
    weights = np.repeat([1.0 if each.needs else NEEDLESS for each in answers], counts)

    def loss(at: np.ndarray) -> float:
        logit = at[0] * scores + at[1]
        return float(np.average(np.logaddexp(0.0, logit) - fits * logit, weights=weights))

    scale, offset = minimize(loss, np.array([1.0, 0.0]), method="L-BFGS-B").x
    return {"scale": round(float(scale), 4), "offset": round(float(offset), 4)}


def save(path: Path, alignment: Alignment) -> None:
    """Write alignment.safetensors, in half precision."""
    halves = {name: part.astype(np.float16) for name, part in alignment._asdict().items()}
    path.write_bytes(serialized(halves))  # save_file makes files that others may not read


def write(
    path: Path, models: Mapping[str, Any], calibration: Mapping[str, float], said: Mapping[str, Any]
) -> None:
    """Write ranking.json: one list a line, so that a change can be read."""
    source = (
        "LightGBM, binary objective, and networks by PyTorch, on prompts of public images and the "
        "LoRAs used with them (November 2026), as written and without trigger words; "
        "benchmarks/recommend_fit.py"
    )
    head = {
        "source": source,
        "fitted_on": said,
        "calibration": {
            **calibration,
            "source": "Platt (1999), on the folds left out, prompts that need no LoRA counted "
            f"{NEEDLESS:g}",
        },
        "factors": [
            *({"factor": n, "about": a, "columns": c, "source": source} for n, a, c in FACTORS),
            *JUDGED,
            {"factor": "prior", "about": "what every LoRA starts from", "source": source},
        ],
    }
    text = json.dumps(head, indent=1, ensure_ascii=False)[:-2]
    for name, model in models.items():
        lists = ",\n  ".join(
            f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}"
            for key, value in model.items()
        )
        text += f',\n "{name}": {{\n  {lists}\n }}'
    path.write_text(f"{text}\n}}\n", encoding="utf-8")
