"""Fitting the recommender, on made-up LoRAs of which the prompt names one."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from intelligent_generation.benchmarks import (
    _recommend_align,
    _recommend_lists,
    _recommend_networks,
    _recommend_trees,
    recommend_fit,
)
from intelligent_generation.benchmarks._recommend_examples import (
    FIELDS,
    Data,
    Prompt,
    examples,
    read_data,
)
from intelligent_generation.benchmarks._recommend_lists import Lists
from intelligent_generation.core.embedding import DIMENSIONS, Vectors
from intelligent_generation.core.recommending.networks import Networks
from intelligent_generation.core.recommending.scoring import Models, load_ranking
from intelligent_generation.core.recommending.vectors import Alignment, read_alignment

if TYPE_CHECKING:
    from intelligent_generation.core.recommending.index import Index

pytest.importorskip("lightgbm")


class Nothing:
    """An encoder that knows no meaning: every text has a direction of its own."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        found = np.zeros((len(texts), DIMENSIONS), np.float32)
        for row, text in enumerate(texts):
            found[row] = np.random.RandomState(zlib.crc32(text.encode())).randn(DIMENSIONS)
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)

    def encode_parts(self, parts: Sequence[str]) -> Vectors:
        return self.encode([" ".join(parts), *parts])


AS_ENCODED = Alignment(*[np.eye(DIMENSIONS, dtype=np.float32)] * 4)


def word(number: int) -> str:
    return "".join(random.Random(number).choices("abcdefghijklmnoprtuvz", k=8))


def rows() -> list[dict[str, Any]]:
    return [
        {
            "id": f"civitai:{n}@{n}", "model_id": n, "name": word(n), "file_name": word(n),
            "family": "sd15", "trained_words": [], "tags": [], "description": "",
            "stats": {"model_downloads": 10, "favorites": 1}, "recommended_weight": None,
        }
        for n in range(150)
    ]  # fmt: skip


def pairs() -> list[dict[str, Any]]:
    chance = random.Random(0)
    return [
        {
            "id": str(n), "family": "sd15", "targets": [{"lora_id": f"civitai:{n}@{n}"}],
            "prompt": f"a street, {word(n)}, {word(chance.randrange(200, 900))}",
            "prompt_wo_triggers": "" if n % 2 else "a street",
        }
        for n in range(150)
    ]  # fmt: skip


def needless() -> list[dict[str, Any]]:
    """Prompts that need no LoRA."""
    return [
        {
            "id": f"none {n}",
            "family": "sd15",
            "targets": [],
            "prompt": f"a street, {word(n + 2000)}",
        }
        for n in range(60)
    ]


def test_what_is_learned_holds_for_loras_never_seen(tmp_path: Path) -> None:
    data = read_data(rows(), pairs(), needless(), {}, Nothing())
    seen = list(examples(data, lambda _: AS_ENCODED))
    models = recommend_fit.fit(Lists.of(data, seen, left_out=0))
    hits, answers = recommend_fit.measure(models, seen, 0)
    counts = [sum(hit.field == field for hit in hits) for field in FIELDS]
    assert counts[0] == counts[1] > 15
    # Calibrated on both ways a prompt is written, blanks have no answer, and on those without.
    assert counts[0] < sum(each.needs for each in answers) < 2 * counts[0]
    without = [each for each in answers if not each.needs]
    assert 3 < len(without) < 30
    assert not any(each.fits.any() for each in without)
    shares = recommend_fit.shares(hits)
    assert shares["prompt"] == shares["prompt, no LoRA seen"] > 0.9
    assert shares["prompt_wo_triggers"] < 0.3  # nothing says which: blanks are misses

    out = tmp_path / "ranking.json"
    calibration = recommend_fit.calibrated(answers)
    recommend_fit.write(out, models, calibration, {"pairs": 150})
    read = load_ranking(out)
    assert read.scale == calibration["scale"] > 0
    table = np.random.RandomState(0).rand(50, len(read.models.columns)).astype(np.float32)
    table[::2, ::3] = np.nan
    assert read.models.answer(table).tolist() == Models.read(models).answer(table).tolist()


def test_nothing_of_the_fold_left_out_is_fitted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_recommend_lists, "LACKING", {})
    data = read_data(rows(), pairs(), [], {}, Nothing())
    seen = [one for one in examples(data, lambda _: AS_ENCODED) if one.columns]
    # The models of the candidates as a column, to find them again.
    told = [one._replace(columns=dict.fromkeys(one.columns, one.models / 256)) for one in seen]
    lists = Lists.of(data, told, left_out=0)
    assert 100 < len(lists.used) <= sum(one.prompt.fold != 0 for one in seen)
    models = np.concatenate([table[:, lists.columns.index("name")] for table in lists.tables])
    of_fold = np.flatnonzero(data.folds == 0) / 256
    assert len(of_fold) > 15
    assert not np.isin(models, of_fold).any()
    assert np.isin(np.concatenate([one.models for one in seen]) / 256, of_fold).any()


def test_a_prompt_that_needs_none_counts_half_in_calibrating() -> None:
    answers = [
        recommend_fit.FirstThree(np.zeros(1), np.array([needs]), needs) for needs in (True, False)
    ]
    assert recommend_fit.calibrated(answers)["offset"] == pytest.approx(np.log(2), abs=1e-3)


# --------------------------------------------------------------------------- alignment


def paired(words: int = 40, prompts: int = 800) -> Data:
    """Prompts in a language of their own: word `n` of it is used with LoRA `n`, of whose vector it
    says nothing; a prompt has two. Word and LoRA `n` belong to fold `n % 5`."""
    directions = np.linalg.qr(np.random.RandomState(0).randn(DIMENSIONS, 2 * words))[0].T
    asked, loras = directions[:words], directions[words:].astype(np.float32)
    chance = np.random.RandomState(1)
    made = []
    for _ in range(prompts):
        mine = chance.choice(words, 2, replace=False)
        encoded = np.stack([asked[mine].sum(0) / 2**0.5, *asked[mine]]).astype(np.float32)
        used = frozenset(mine[:1].tolist())
        folds = frozenset(number % 5 for number in used)
        made.append(Prompt("prompt", min(folds), folds, "sd15", None, encoded, "", used, used))
    numbers = np.arange(words)
    library = cast("Index", None)  # alignment looks nothing up in it
    nothing = {"": np.zeros(DIMENSIONS, np.float32)}
    return Data(library, loras, np.zeros_like(loras), numbers, numbers % 5, {}, nothing, made)


def places(data: Data, alignment: Alignment, folds: set[int]) -> list[int]:
    """How many LoRAs are nearer to each prompt of some folds than the one that was used."""
    loras = alignment.of_loras(data.names, data.descriptions)
    found = []
    for prompt in data.prompts:
        if prompt.fold in folds:
            (used,) = prompt.used
            near = loras @ alignment.of_prompt(prompt.encoded[:1])[0]
            found.append(int((near > near[used]).sum()))
    return found


def test_an_alignment_learns_what_is_used_with_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_recommend_align, "EPOCHS", 12)
    monkeypatch.setattr(_recommend_align, "FASTEST", 5e-3)
    data = paired()
    before = places(data, AS_ENCODED, {1, 2, 3, 4})
    aligned = _recommend_align.align(data, frozenset({0}))
    assert np.mean(before) > 15
    assert np.mean(places(data, aligned, {1, 2, 3, 4})) < 2
    # Of what was left out nothing was learned.
    assert np.mean(places(data, aligned, {0})) > 10


def test_an_alignment_learns_what_is_used_with_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_recommend_align, "EPOCHS", 12)
    monkeypatch.setattr(_recommend_align, "FASTEST", 5e-3)
    data = paired()
    # LoRAs of even numbers are used with one checkpoint, of odd ones with another.
    called = np.linalg.qr(np.random.RandomState(3).randn(DIMENSIONS, 2))[0].T.astype(np.float32)
    names = ("even", "odd")
    data = data._replace(
        checkpoints=data.checkpoints | dict(zip(names, called, strict=True)),
        prompts=[each._replace(checkpoint=names[min(each.used) % 2]) for each in data.prompts],
    )
    aligned = _recommend_align.align(data, frozenset())
    loras = aligned.of_loras(data.names, data.descriptions)
    for name, start in (("even", 0), ("odd", 1)):
        pull = loras @ aligned.of_checkpoint(data.checkpoints[name])
        assert pull[start::2].mean() > pull[1 - start :: 2].mean() + 0.1
    assert not aligned.of_checkpoint(data.checkpoints[""]).any()


def test_whether_a_checkpoint_is_known_says_nothing() -> None:
    made = [
        {**pair, "checkpoint": f"model {n % 7}" if n % 3 else None}
        for n, pair in enumerate(pairs() * 2)
    ]
    needless = [{**pair, "targets": [], "checkpoint": None} for pair in pairs() * 2]
    data = read_data(rows(), made, needless, {}, Nothing())
    known: dict[bool, list[bool]] = {True: [], False: []}
    for example in examples(data, lambda _: AS_ENCODED, measured=0):
        prompt, pull = example.prompt, example.columns.get("checkpoint_meaning", np.zeros(0))
        if not len(pull):
            continue
        if prompt.used and prompt.fold == 0:  # what is measured on keeps its own
            assert np.isnan(pull).all() == (not prompt.checkpoint)
        else:
            known[bool(prompt.used)].append(not np.isnan(pull).any())
    assert np.mean(known[True]) == pytest.approx(np.mean(known[False]), abs=0.08)


def test_without_descriptions_no_author_speaks_of_the_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_recommend_lists, "LACKING", {"texts": 1.0})
    made = [{**pair, "checkpoint": word(number)} for number, pair in enumerate(pairs()[:60])]
    told = [{**row, "description": f"For {word(number)}."} for number, row in enumerate(rows())]
    data = read_data(told, made, [], {}, Nothing())
    seen = [one for one in examples(data, lambda _: AS_ENCODED) if "checkpoint" in one.columns]
    spoken_of = next(one for one in seen if np.nan_to_num(one.columns["checkpoint"]).any())
    unknown = next(one for one in seen if np.isnan(one.columns["checkpoint"]).all())
    chance = np.random.RandomState(0)
    assert not _recommend_lists._varied(spoken_of, chance).columns["checkpoint"].any()
    assert np.isnan(_recommend_lists._varied(unknown, chance).columns["checkpoint"]).all()


def test_the_first_numbers_of_aligned_vectors_tell_most(tmp_path: Path) -> None:
    data = paired()
    path = tmp_path / "alignment.safetensors"
    aligned = _recommend_align.align(data, frozenset())
    recommend_fit.save(path, aligned)
    read = read_alignment(path)
    for kept, made in zip(read, aligned, strict=True):
        assert np.array_equal(kept, made)
    spread = np.square(read.of_loras(data.names, data.descriptions)).sum(0)
    assert spread[:40].sum() > 0.99 * spread.sum()


def test_too_few_pairs_to_align_by_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^0 prompts .* at least 10 "):
        _recommend_align.align(paired(), frozenset(range(5)))


@pytest.mark.parametrize("prompts", [10, 13, 700])
def test_any_number_of_pairs_aligns_in_all_directions(prompts: int) -> None:
    aligned = _recommend_align.align(paired(prompts=prompts), frozenset())
    assert [part.shape for part in aligned] == [(DIMENSIONS, DIMENSIONS)] * 4
    assert all(np.isfinite(part).all() for part in aligned)


def test_a_prompt_is_compared_by_an_alignment_that_saw_neither_its_fold_nor_the_one_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[frozenset[int]] = []
    monkeypatch.setattr(
        recommend_fit, "align", lambda _, left_out: asked.append(left_out) or AS_ENCODED
    )
    data = paired()
    beside = recommend_fit.Alignments(data).beside(3)
    for prompt in data.prompts:
        beside(prompt)
    assert set(asked) == {frozenset({3, fold}) for fold in range(5)}
    assert len(asked) == 5  # each once


# --------------------------------------------------------------------------- trees


def test_trees_answer_as_the_library_that_fitted_them() -> None:
    import lightgbm
    from intelligent_generation.core.recommending.trees import Trees

    table = np.random.RandomState(1).rand(2000, 4).astype(np.float32)
    table[::5, 1] = np.nan
    # Numbers that differ in the seventh digit, as ratios close to 1 do.
    table[:, 2] = 1 - np.float32(2**-24) * np.random.RandomState(2).randint(0, 30, 2000)
    wanted = table[:, 0] + np.nan_to_num(table[:, 1]) + (table[:, 2] > 1 - 1e-6) > 1.5
    settings = {"objective": "binary", "verbose": -1, "num_threads": 1, "max_depth": 5}
    booster = lightgbm.train(settings, lightgbm.Dataset(table, wanted.astype(int)), 20)
    trees = Trees.read(_recommend_trees._as_json(booster.dump_model(), list("abcd")))
    raw = np.asarray(booster.predict(table, raw_score=True))
    assert trees.answer(table) == pytest.approx(raw, abs=2e-3)


@pytest.mark.parametrize("column", _recommend_trees.RISING)
def test_more_evidence_hardly_ever_makes_a_lora_less_fitting(column: str) -> None:
    ranking = load_ranking()
    models = ranking.models
    table = np.random.RandomState(0).rand(300, len(models.columns)).astype(np.float32)
    raised = table.copy()
    raised[:, models.columns.index(column)] += np.linspace(0, 2, 300, dtype=np.float32)
    change = models.trees.answer(raised) - models.trees.answer(table)
    assert change.min() > -1e-3  # leaves are kept with five digits
    # The networks may take back a little of what it is raised by.
    change = ranking.scale * (models.answer(raised) - models.answer(table))
    assert change.min() > -0.1
    assert change.mean() > 0.01


# --------------------------------------------------------------------------- networks


def lists(answered: float, prompts: int) -> Lists:
    """Ten candidates each, of which one was used at most: the one that has more of a than all
    others, by a lot. b says nothing; c is unknown of half the prompts."""
    chance = np.random.RandomState(0)
    tables, of_prompts = [], []
    for number in range(prompts):
        table = chance.rand(10, 3)
        table[:, 2] = np.nan if number % 2 else 1.0
        used = np.zeros(10, bool)
        if chance.rand() < answered:
            used[chance.randint(10)] = True
            table[used, 0] += 3
        tables.append(table.astype(np.float16))
        of_prompts.append(used)
    return Lists(("a", "b", "c"), tables, of_prompts)


def test_networks_learn_which_was_used_and_that_nothing_was() -> None:
    shown = lists(answered=0.5, prompts=4000)
    networks = Networks.read(_recommend_networks.fit_networks(shown))
    assert networks.scale.unknown.tolist() == [2]
    # 0 is nothing's score.
    right = [
        np.array_equal(networks.answer(table.astype(np.float32)) > 0, used)
        for table, used in zip(shown.tables[:500], shown.used, strict=False)
    ]
    assert np.mean(right) > 0.98


def test_networks_are_fitted_on_however_few_lists() -> None:
    one = _recommend_networks.fit_networks(lists(answered=1.0, prompts=1))
    answer = Networks.read(one).answer(np.full((2, 3), np.nan, np.float32))
    assert np.isfinite(answer).all()
