"""Pairs of a prompt and the LoRAs that were used with it, as examples to fit the recommender on."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..core.catalog import lora_fit
from ..core.embedding import Encoder
from ..core.prompting import analyze
from ..core.recommending.evidence import Search
from ..core.recommending.index import Floats, Index
from ..core.recommending.query import Query, read_query
from ..core.recommending.text import spelt_out
from ..core.recommending.vectors import (
    Alignment,
    LoraVectors,
    Similarity,
    telling_parts,
    texts_of,
)
from .recommend import FOLDS, Row, entry_of, family_named, fold_of, model_of

FIELDS = ("prompt", "prompt_wo_triggers")
SMALL = (3, 800)
"""Every prompt is also asked of a library of so many LoRAs, drawn at random: most people have few,
and of few most fit no prompt."""
KNOWN = 0.75
"""How often a prompt that is fitted on is shown with a checkpoint."""
ANSWERED = 0.35
"""How often the LoRAs that were used are in that small library."""


class Prompt(NamedTuple):
    """One prompt, and which LoRAs were used with it."""

    field: str
    """Of FIELDS: how it is written."""
    fold: int
    """Of the first LoRA that was used; drawn where none was."""
    folds: frozenset[int]
    """Of all that were used."""
    family: str
    query: Query | None
    """None where nothing is left without its trigger words: nobody can tell."""
    encoded: Floats
    """[1 + clauses, encoder's dimensions], before alignment."""
    checkpoint: str
    """What its file is called; empty where that is not known."""
    used: frozenset[int]
    """Numbers of the models that were used; none where it needs no LoRA."""
    fitting: frozenset[int]
    """And of others of the same character, series or style."""


class Data(NamedTuple):
    """What is fitted on."""

    library: Index
    names: Floats
    """[LoRAs, encoder's dimensions], of `Texts.name`."""
    descriptions: Floats
    """Likewise, of `Texts.description`; zeros where there is none."""
    models: np.ndarray
    """[LoRAs], a number for each model: all versions of a LoRA share it."""
    folds: np.ndarray
    """[models]"""
    usable: Mapping[str, np.ndarray]
    """bool [LoRAs], by family of the checkpoint."""
    checkpoints: Mapping[str, Floats]
    """[encoder's dimensions] of what checkpoints are called; zeros for an empty name."""
    prompts: Sequence[Prompt]


class Example(NamedTuple):
    """One prompt and its candidates."""

    prompt: Prompt
    columns: dict[str, np.ndarray]
    models: np.ndarray
    """Numbers of the candidates' models."""
    used: np.ndarray
    """bool [candidates]"""
    near: np.ndarray
    """bool [candidates]: another LoRA of the same character, series or style as one used."""
    library: int
    """LoRAs that the model can use."""
    small: bool
    """Whether the library is one drawn at random: to fit on, not to measure on."""


def read_data(
    rows: Sequence[Row],
    pairs: Sequence[Row],
    without: Sequence[Row],
    near: Mapping[object, set[object]],
    encoder: Encoder,
) -> Data:
    """Read and encode a library and its prompts, each in both ways it is written.

    Args:
        without: prompts that needed no LoRA, as written alone.
        near: for a model the models that would have fitted as well.
    """
    entries = [entry_of(row) for row in rows]
    index = Index(entries)
    texts = [texts_of(entry) for entry in entries]
    models = [model_of(row) for row in rows]
    numbers = {model: number for number, model in enumerate(dict.fromkeys(models))}
    of_id = dict(zip((row["id"] for row in rows), models, strict=True))
    families = {pair["family"] for pair in (*pairs, *without)}
    prompts: list[Prompt] = []
    for pair in (*pairs, *without):
        targets = [of_id[t["lora_id"]] for t in pair["targets"] if t["lora_id"] in of_id]
        if pair["targets"] and not targets:
            continue
        accepted = set(targets).union(*(near.get(target, ()) for target in targets))
        fold = fold_of(targets[0]) if targets else zlib.crc32(pair["prompt"].encode()) % FOLDS
        for field in FIELDS if targets else FIELDS[:1]:
            clauses = analyze(pair[field]).clauses if pair[field].strip() else ()
            prompts.append(
                Prompt(
                    field=field,
                    fold=fold,
                    folds=frozenset(map(fold_of, targets)),
                    family=pair["family"],
                    query=read_query(clauses) if clauses else None,
                    encoded=encoder.encode_parts(telling_parts(clauses)),
                    checkpoint=(pair.get("checkpoint") or "") if targets else "",
                    used=frozenset(numbers[target] for target in targets),
                    fitting=frozenset(numbers[each] for each in accepted if each in numbers),
                )
            )
    names = sorted({prompt.checkpoint for prompt in prompts} | {""})
    return Data(
        library=index,
        names=encoder.encode([each.name for each in texts]),
        descriptions=encoder.encode([each.description for each in texts]),
        models=np.array([numbers[model] for model in models]),
        folds=np.array([fold_of(model) for model in numbers]),
        usable={family: _usable(index, family) for family in families},
        checkpoints=dict(
            zip(names, encoder.encode([spelt_out(each) for each in names]), strict=True)
        ),
        prompts=prompts,
    )


def examples(
    data: Data, aligned: Callable[[Prompt], Alignment], measured: int | None = None
) -> Iterator[Example]:
    """Each prompt with its candidates, of the whole library and of a small one.

    Args:
        aligned: the alignment that a prompt is compared by; the same object for all that share it.
        measured: the fold that is measured on. All other prompts may get a checkpoint or lose it.
    """
    drawn = _drawn(data, np.random.RandomState(1))
    chance = np.random.RandomState(0)
    # With the alignment, so that it lives as long as its number stands for it.
    known: dict[int, tuple[Alignment, LoraVectors]] = {}
    for prompt, other in zip(data.prompts, drawn, strict=True):
        if prompt.query is None:
            none = np.zeros(0, bool)
            yield Example(prompt, {}, none.astype(int), none, none, 0, False)
            continue
        alignment = aligned(prompt)
        if id(alignment) not in known:
            loras = alignment.of_loras(data.names, data.descriptions)
            known[id(alignment)] = alignment, LoraVectors.of(loras.astype(np.float16))
        asked = alignment.of_prompt(prompt.encoded)
        checkpoint = prompt.checkpoint if prompt.fold == measured and prompt.used else other
        query = prompt.query.on(checkpoint)
        pull = alignment.of_checkpoint(data.checkpoints[checkpoint]) if checkpoint else None
        like = Similarity(asked, known[id(alignment)][1], pull) if asked.any() else None
        used = np.isin(data.models, list(prompt.used))
        fitting = np.isin(data.models, list(prompt.fitting))
        usable = data.usable[prompt.family]
        for small in (False, True):
            there = _some(usable, fitting, chance) if small else usable
            if not there.any():
                continue
            positions, columns = Search(data.library, query, there, like).among(there)
            yield Example(
                prompt,
                {name: each.astype(np.float16) for name, each in columns.items()},
                data.models[positions],
                used[positions],
                fitting[positions],
                int(there.sum()),
                small,
            )


def _drawn(data: Data, chance: np.random.RandomState) -> list[str]:
    """A checkpoint for each prompt, or none as often for all: its own where it says one and needs a
    LoRA, else that of another prompt. Whether and which one is known tells where a prompt was
    collected, and must not tell whether it needs a LoRA."""
    others: dict[str, list[str]] = {}
    for prompt in data.prompts:
        if prompt.checkpoint:
            others.setdefault(prompt.family, []).append(prompt.checkpoint)
    found: list[str] = []
    for prompt in data.prompts:
        own = [prompt.checkpoint] if prompt.checkpoint else others.get(prompt.family, [""])
        found.append(own[chance.randint(len(own))] if chance.rand() < KNOWN else "")
    return found


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
