"""The built-in analyzer against the categories that people gave to prompts; and fitting it.

    bench.py prompting --prompts FILE            how often they agree
    bench.py prompting --prompts FILE --fit      fit core/prompting/meaning.json first

FILE has a JSON object a line with `id`, `prompt` and `category`, one of PartiPrompts'
(google-research/parti). Half of the prompts, by a hash of their id, serve to fit; figures are of
the other half unless `--part` says otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from ..core.embedding import DIMENSIONS, model_folder, open_encoder
from ..core.plan import ContentIntent, PromptAnalysis
from ..core.prompting import analyze
from ..core.prompting import meaning as meaning_module
from ..core.prompting.meaning import Encoder, Linear, content_of, features, pack

WEIGHTS = Path(meaning_module.__file__).with_name("meaning.json")
LEXICON = WEIGHTS.with_name("lexicon.json")

CONTENT: dict[str, tuple[str, tuple[ContentIntent, ...]]] = {
    "People": ("PEOPLE", ("CHARACTER", "PORTRAIT")),
    "Animals": ("THING", ("OBJECT",)),
    "Artifacts": ("THING", ("OBJECT",)),
    "Vehicles": ("THING", ("OBJECT",)),
    "Food & Beverage": ("THING", ("OBJECT",)),
    "Produce & Plants": ("THING", ("OBJECT",)),
    "Outdoor Scenes": ("OUTDOOR", ("LANDSCAPE", "SCENE")),
    "Indoor Scenes": ("INDOOR", ("SCENE",)),
    "Abstract": ("ABSTRACT", ("ABSTRACT",)),
}
"""The intents that a category of PartiPrompts means. World Knowledge, Arts and Illustrations say
nothing of what a picture is of."""

CONCEPTS = {
    "People": "character", "Animals": "content", "Artifacts": "content", "Vehicles": "content",
    "Food & Beverage": "content", "Produce & Plants": "content", "Outdoor Scenes": "setting",
    "Indoor Scenes": "setting", "Arts": "style", "Illustrations": "style",
}  # fmt: skip
"""The category of ours that a concept of such a prompt must be in."""

STRENGTH = 0.3
"""Inverse strength of regularization of the model of prompts, as scikit-learn counts it."""
SCALE = 8.0
"""Of the vectors beside the evidence, so that both are regularized about alike."""
PHRASE_STRENGTH = 1.0
PRECISION = 0.95
"""Of the phrases whose category is changed, so many must be right."""
FOLDS = 5
NAMED = 8
"""Confusions told."""

Row = dict[str, Any]


class Agreement(NamedTuple):
    """Of the prompts of one category, in how many both say the same; None where it says nothing."""

    prompts: int
    content: float | None
    concepts: float | None


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Agreement by category, with the lexicon alone and with meaning. Prints a table."""
    parser = argparse.ArgumentParser(prog="bench.py prompting")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--part", choices=("other", "all"), default="other")
    parser.add_argument("--fit", action="store_true", help="write core/prompting/meaning.json")
    parser.add_argument("--folds", action="store_true", help="also cross-validate (fits again)")
    options = parser.parse_args(arguments)
    rows = [
        row
        for row in map(json.loads, options.prompts.read_text(encoding="utf-8").splitlines())
        if row.get("category") in CONTENT.keys() | CONCEPTS.keys()
    ]
    encoder, problem = open_encoder(model_folder())
    if encoder is None and options.fit:
        raise SystemExit(f"Without the embedding model nothing can be fitted. {problem}")
    result: dict[str, Any] = {}
    if encoder is not None and (options.fit or options.folds):
        examples, labels = _examples(rows, encoder)
        if options.folds:
            result["cross_validated"] = _cross_validated(rows, examples, labels)
        if options.fit:
            half = np.array([_to_fit(row) for row in rows if row["category"] in CONTENT])
            data_hash = hashlib.sha256(options.prompts.read_bytes()).hexdigest()
            _write(examples[half], labels[half], encoder, data_hash)
    shown = [row for row in rows if options.part == "all" or not _to_fit(row)]
    readers = {"lexicon": None} | ({"meaning": encoder} if encoder is not None else {})
    for name, reader in readers.items():
        analyses = [analyze(row["prompt"], encoder=reader) for row in shown]
        result[name] = _report(name, shown, analyses)
    return {"prompts": len(shown), "part": options.part, **result}


def _to_fit(row: Row) -> bool:
    return hashlib.sha256(row["id"].encode()).digest()[0] % 2 == 0


# --------------------------------------------------------------------------- reporting


def _report(name: str, rows: Sequence[Row], analyses: Sequence[PromptAnalysis]) -> dict[str, Any]:
    agreed: Counter[str] = Counter()
    with_concept: Counter[str] = Counter()
    counts = Counter(row["category"] for row in rows)
    confusion: Counter[tuple[str, str]] = Counter()
    for row, analysis in zip(rows, analyses, strict=True):
        category, content = row["category"], analysis.intent.content
        if category in CONTENT:
            if content in CONTENT[category][1]:
                agreed[category] += 1
            else:
                confusion[category, content] += 1
        wanted = CONCEPTS.get(category)
        with_concept[category] += any(concept.category == wanted for concept in analysis.concepts)
    table = {
        category: Agreement(
            count,
            round(agreed[category] / count, 3) if category in CONTENT else None,
            round(with_concept[category] / count, 3) if category in CONCEPTS else None,
        )
        for category, count in sorted(counts.items())
    }
    print(f"\n{name}: agreement of intent and of concepts with PartiPrompts' categories")
    for category, row in table.items():
        print(f"  {category:18}{row.prompts:4}  intent {row.content!s:6} concepts {row.concepts}")
    known = sum(counts[category] for category in CONTENT)
    for (category, content), count in confusion.most_common(NAMED):
        print(f"  {category} read as {content}: {count}")
    asked = sum(counts[category] for category in CONCEPTS)
    right = sum(with_concept[category] for category in CONCEPTS)
    return {
        "intent": round(sum(agreed.values()) / max(known, 1), 4),
        "intent_mean_over_categories": round(
            float(np.mean([row.content for row in table.values() if row.content is not None])), 4
        ),
        "concepts": round(right / max(asked, 1), 4),
        "categories": {category: list(row) for category, row in table.items()},
        "confusion": [[*pair, count] for pair, count in confusion.most_common(NAMED)],
    }


# --------------------------------------------------------------------------- fitting


def _examples(rows: Sequence[Row], encoder: Encoder) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of the prompts whose category says what they are of."""
    from ..core.prompting import analyzer

    seen: list[np.ndarray] = []

    def keep(evidence: Any, vector: np.ndarray) -> tuple[ContentIntent, float]:
        seen.append(features(evidence, vector))
        return "OBJECT", 0.0

    known = [row for row in rows if row["category"] in CONTENT]
    names = ("content_of", "readable", "read_meaning", "is_caption")
    original = {name: getattr(analyzer, name) for name in names}
    analyzer.content_of = keep
    analyzer.readable = analyzer.is_caption = lambda *_: True
    analyzer.read_meaning = lambda text, found, encoder: (found, encoder.encode([text])[0])
    try:
        for row in known:
            analyze(row["prompt"], encoder=encoder)
    finally:
        for name, function in original.items():
            setattr(analyzer, name, function)
    return np.array(seen), np.array([CONTENT[row["category"]][0] for row in known])


def _cross_validated(rows: Sequence[Row], examples: np.ndarray, labels: np.ndarray) -> float:
    """Share of prompts whose content is right, each read by a model that did not see it."""
    from sklearn.model_selection import StratifiedKFold

    right = 0
    known = [row for row in rows if row["category"] in CONTENT]
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    for seen, held in folds.split(examples, labels):
        linear = _linear(examples[seen], labels[seen])
        for at in held:
            evidence = dict(zip(get_args(ContentIntent), examples[at], strict=False))
            vector = examples[at][len(evidence) :]
            content, _ = content_of(evidence, vector, linear)
            right += content in CONTENT[known[at]["category"]][1]
    return round(right / len(known), 4)


def _linear(examples: np.ndarray, labels: np.ndarray) -> Linear:
    model = _model(STRENGTH, labels).fit(_scaled(examples), labels)
    weights = model.coef_.copy()
    weights[:, -DIMENSIONS:] *= SCALE
    return Linear(tuple(model.classes_.tolist()), weights, model.intercept_)


def _model(strength: float, labels: np.ndarray | None = None) -> Any:
    """With labels, rare ones weigh more, by the root of how rare: indoor scenes are a thirtieth."""
    from sklearn.linear_model import LogisticRegression

    weights = None
    if labels is not None:
        counts = Counter(labels.tolist())
        even = len(labels) / len(counts)
        weights = {label: (even / count) ** 0.5 for label, count in counts.items()}
    return LogisticRegression(C=strength, max_iter=500, class_weight=weights)


def _scaled(examples: np.ndarray) -> np.ndarray:
    evidence = len(examples[0]) - DIMENSIONS
    return np.hstack([examples[:, :evidence], examples[:, evidence:] * SCALE])


def _write(examples: np.ndarray, labels: np.ndarray, encoder: Encoder, data_hash: str) -> None:
    from sklearn.model_selection import cross_val_predict

    model = _linear(examples, labels)
    terms, categories = _terms()
    vectors = encoder.encode(terms) * SCALE
    phrases = _model(PHRASE_STRENGTH)
    guessed = np.asarray(
        cross_val_predict(phrases, vectors, categories, cv=FOLDS, method="predict_proba")
    )
    phrases.fit(vectors, categories)
    best = guessed.argmax(1)
    named = phrases.classes_[best]
    threshold, share = _threshold(guessed.max(1), named, categories)
    data = {
        "source": "Fitted by `bench.py prompting --prompts FILE --fit` on PartiPrompts' categories "
        "(half of the prompts, by a hash of their id) and on the terms of lexicon.json.",
        "data_sha256": data_hash,
        "lexicon_sha256": hashlib.sha256(LEXICON.read_bytes()).hexdigest(),
        "prompts": {
            "fitted_on": len(labels),
            "labels": model.labels,
            "weights": pack(np.column_stack([model.bias, model.weights])),
        },
        "phrases": {
            "fitted_on": len(terms),
            "threshold": threshold,
            "precision": PRECISION,
            "changed_share": share,
            "labels": phrases.classes_.tolist(),
            "weights": pack(np.column_stack([phrases.intercept_, phrases.coef_ * SCALE])),
        },
    }
    WEIGHTS.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    meaning_module._data.cache_clear()
    meaning_module._models.cache_clear()


def _terms() -> tuple[list[str], np.ndarray]:
    lexicon = json.loads(LEXICON.read_text(encoding="utf-8"))
    pairs = [
        (term, group["category"])
        for group in lexicon["groups"]
        if group["category"] != "mood"
        for term in group["terms"]
        if term.isascii()
    ]
    order = np.random.default_rng(0).permutation(len(pairs))
    return [pairs[at][0] for at in order], np.array([pairs[at][1] for at in order])


def _threshold(sure: np.ndarray, guessed: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """The least probability at which changed phrases are right often enough, and their share."""
    changed = guessed != "content"
    for threshold in np.arange(0.5, 1.0, 0.01):
        taken = changed & (sure >= threshold)
        if taken.any() and np.mean(guessed[taken] == true[taken]) >= PRECISION:
            return round(float(threshold), 2), round(float(np.mean(taken)), 4)
    return 1.0, 0.0
