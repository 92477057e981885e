"""Vectors in the background, in a file; with the real model where one is needed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from intelligent_generation.core.catalog.entries import LoraEntry, LoraLibrary
from intelligent_generation.core.embedding import (
    DIMENSIONS,
    FOLDER,
    Opened,
    Vectors,
    model_folder,
    open_encoder,
)
from intelligent_generation.core.plan import Clause, FileRef
from intelligent_generation.core.recommending import Meaning
from intelligent_generation.core.recommending.meaning import VectorFile
from intelligent_generation.core.recommending.vectors import (
    Alignment,
    LoraVectors,
    Similarity,
    Texts,
    alignment,
    telling_parts,
    texts_of,
)
from intelligent_generation.scripts.launch_comfyui import TorchvisionOperators


class Letters:
    """Counts letters: texts that share letters are near."""

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode(self, texts: Sequence[str]) -> Vectors:
        self.encoded += texts
        found = np.zeros((len(texts), DIMENSIONS), np.float32)
        for row, text in enumerate(texts):
            for letter in text.lower():
                found[row, ord(letter) % DIMENSIONS] += 1
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)

    def encode_parts(self, parts: Sequence[str]) -> Vectors:
        return self.encode([" ".join(parts), *parts])


AS_ENCODED = Alignment(*[np.eye(DIMENSIONS, dtype=np.float32)] * 4)


def meaning_of(path: Path, encoder: Letters | None = None) -> Meaning:
    return Meaning(path, lambda: Opened(encoder or Letters()), lambda: AS_ENCODED)


def nearness(near: Similarity | None) -> tuple[np.ndarray, np.ndarray]:
    """To the prompt and to its nearest clause, of all LoRAs."""
    assert near is not None
    return near.of(np.arange(len(near.loras.whole), dtype=np.int32))


def library(*titles: str, revision: str = "") -> LoraLibrary:
    entries = tuple(
        LoraEntry(FileRef(folder="loras", name=f"{t}.safetensors"), t, "sdxl", None, 1.0, "test")
        for t in titles
    )
    return LoraLibrary(entries, (), revision=revision or " ".join(titles))


def clauses(*texts: str) -> tuple[Clause, ...]:
    return tuple(Clause(text=text, weight=1.0) for text in texts)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "protected" / "lora_vectors.bin"


def test_vectors_are_made_once_and_opened_again(path: Path) -> None:
    meaning = meaning_of(path)
    prompt, clause = nearness(meaning.similarity(library("castle", "robot"), clauses("a castle")))
    assert prompt[0] > prompt[1] and clause.shape == (2,)
    assert meaning.status()[:3] == ("ready", 2, 2)
    assert meaning.revision() == "0"

    again = Letters()
    reopened = meaning_of(path, again)
    same, _ = nearness(reopened.similarity(library("robot", "castle"), clauses("a castle")))
    assert same.tolist() == pytest.approx(prompt[::-1].tolist())
    assert not {"castle", "robot"} & set(again.encoded)


def test_a_lora_has_one_vector_of_its_name_and_its_description(path: Path) -> None:
    entries = library("zzz", "zzz", "zzz").entries
    entries = tuple(
        entry._replace(description=text)
        for entry, text in zip(entries, ("castle on a rock", "", "quick zebra"), strict=True)
    )
    described = library("zzz")._replace(entries=entries)
    prompt, _ = nearness(meaning_of(path).similarity(described, clauses("a castle")))
    assert prompt[0] > prompt[2] > prompt[1]
    assert not np.isnan(prompt).any()


def test_prompt_and_lora_are_compared_as_the_alignment_says(path: Path) -> None:
    swap = np.eye(DIMENSIONS, dtype=np.float32)
    swap[[ord("a"), ord("b")]] = swap[[ord("b"), ord("a")]]
    aligned = Alignment(swap, *AS_ENCODED[1:])
    meaning = Meaning(path, lambda: Opened(Letters()), lambda: aligned)
    prompt, _ = nearness(meaning.similarity(library("aaa", "bbb"), clauses("aaa")))
    assert prompt.tolist() == pytest.approx([0, 1], abs=1e-3)


def test_a_checkpoint_pulls_what_is_used_with_its_like(path: Path) -> None:
    encoder = Letters()
    meaning = meaning_of(path, encoder)
    two = library("castle", "robot")
    everything = np.arange(2, dtype=np.int32)

    def pull(checkpoint: str) -> np.ndarray:
        near = meaning.similarity(two, clauses("xyz"), checkpoint)
        assert near is not None
        return near.of_checkpoint(everything)

    assert np.isnan(pull("")).all() and np.isnan(pull("___")).all()
    robots = pull("robotMix_v20")
    assert robots[1] > robots[0]
    near = meaning.similarity(two, clauses("xyz"), "robotMix_v20")
    assert near is not None and near.nearest(np.ones(2, bool), 1).tolist() == [1]
    # Read once, as long as the checkpoint is the same.
    assert encoder.encoded.count("robot Mix v 20") == 1
    assert pull("castleReal")[0] > robots[0]


def test_candidates_are_found_by_the_sum_that_the_alignment_was_fitted_by() -> None:
    chance = np.random.RandomState(4)
    loras = chance.randn(300, DIMENSIONS).astype(np.float32)
    loras /= np.linalg.norm(loras, axis=1, keepdims=True)
    asked = (loras[:3] + loras[3:6]).astype(np.float32) / 2
    pull = (loras[50] - loras[0]).astype(np.float32)
    near = Similarity(asked, LoraVectors.of(loras.astype(np.float16)), pull)
    cosines = loras @ asked.T
    # As benchmarks/_recommend_align.py has it: the mean of both cosines, and the pull.
    wanted = (cosines[:, 0] + cosines[:, 1:].max(1)) / 2 + loras @ pull
    assert near.nearest(np.ones(300, bool), 5).tolist() == np.argsort(-wanted)[:5].tolist()
    assert near.of_checkpoint(np.arange(300, dtype=np.int32)) == pytest.approx(
        loras @ pull, abs=1e-3
    )


def test_a_new_alignment_of_prompts_keeps_the_vectors_of_loras(path: Path) -> None:
    meaning_of(path).similarity(library("castle"), clauses("a castle"))
    other = AS_ENCODED._replace(prompt=2 * AS_ENCODED.prompt, checkpoint=3 * AS_ENCODED.checkpoint)
    again = Letters()
    Meaning(path, lambda: Opened(again), lambda: other).similarity(
        library("castle"), clauses("a robot")
    )
    assert "castle" not in again.encoded


def test_the_nearest_are_found_in_a_large_library() -> None:
    chance = np.random.RandomState(0)
    vectors = chance.randn(3000, DIMENSIONS) / np.arange(1, DIMENSIONS + 1) ** 0.5
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    asked = (vectors[[7, 70]] + vectors[[7, 700]] / 2).astype(np.float32)
    near = Similarity(asked, LoraVectors.of(vectors.astype(np.float16)))
    usable = np.ones(3000, bool)
    found = near.nearest(usable, 20)
    assert {7, 70, 700} <= set(found.tolist()) and len(set(found.tolist())) == 20
    prompt, clause = nearness(near)
    exact = set(np.argsort(-(prompt + clause))[:20].tolist())
    assert len(exact & set(found.tolist())) >= 18
    usable[7] = False
    assert 7 not in near.nearest(usable, 20)
    usable[1000:] = False
    few = near.nearest(usable, 20)
    assert {70, 700} <= set(few.tolist()) and few.max() < 1000
    vectors[70] = np.nan
    half_made = Similarity(asked, LoraVectors.of(vectors.astype(np.float16)))
    assert not {7, 70} & set(half_made.nearest(usable, 3000).tolist())


def test_two_libraries_under_one_revision_are_two(path: Path) -> None:
    meaning = meaning_of(path)
    for titles in (("castle",), ("castle", "robot"), ("robot",), ()):
        near = meaning.similarity(library(*titles, revision="same"), clauses("a castle"))
        prompt, _ = nearness(near)
        assert prompt.shape == (len(titles),) and not np.isnan(prompt).any()


def test_libraries_used_in_turn_are_put_together_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_together: list[int] = []
    get = VectorFile.get
    monkeypatch.setattr(
        VectorFile,
        "get",
        lambda self, texts: put_together.append(len(texts)) or get(self, texts),
    )
    meaning = meaning_of(path)
    libraries = [library("castle", "robot"), library("rocket"), library("castle", "rocket")]
    for titles in libraries * 3:
        assert meaning.similarity(titles, clauses("a castle")) is not None
    # Again once for the first, as the file had grown.
    assert sorted(put_together) == [1] + [2] * 3


def test_a_changed_lora_alone_is_read_again(path: Path) -> None:
    encoder = Letters()
    meaning = meaning_of(path, encoder)
    meaning.similarity(library("castle", "robot"), clauses("castle"))
    encoder.encoded.clear()
    meaning.start(library("castle", "rocket", "robot"))
    assert meaning.wait().state == "ready"
    assert encoder.encoded == ["rocket", ""]


def test_a_large_library_is_not_waited_for(path: Path) -> None:
    go = threading.Event()

    class Slow(Letters):
        def encode(self, texts: Sequence[str]) -> Vectors:
            if len(self.encoded) >= 32:
                go.wait(30)
            return super().encode(texts)

        def encode_parts(self, parts: Sequence[str]) -> Vectors:
            return Letters().encode_parts(parts)

    whole = library(*(f"lora {number}" for number in range(400)))
    meaning = meaning_of(path, Slow())
    near = meaning.similarity(whole, clauses("lora"))
    status = meaning.status()
    assert status.state == "reading" and status.done < status.total == 400
    assert near is None or np.isnan(nearness(near)[0]).any()
    go.set()
    assert meaning.wait(60).state == "ready"
    near = meaning.similarity(whole, clauses("lora"))
    assert not np.isnan(nearness(near)[0]).any()
    assert meaning.revision() == "1"  # so that the recommender runs again


def test_without_a_model_words_alone_decide_and_it_says_why(path: Path) -> None:
    meaning = Meaning(path, lambda: Opened(None, "no model here"))
    assert meaning.similarity(library("castle"), clauses("castle")) is None
    assert meaning.status() == ("off", 0, 1, "no model here")
    assert not path.exists()


def test_an_encoder_that_fails_is_no_error(path: Path) -> None:
    class Broken(Letters):
        def encode(self, texts: Sequence[str]) -> Vectors:
            raise RuntimeError("out of luck")

    meaning = Meaning(path, lambda: Opened(Broken()))
    assert meaning.similarity(library("castle"), clauses("castle")) is None
    assert (meaning.status().state, meaning.status().problem) == ("failed", "out of luck")


def test_an_interrupt_ends_the_wait(path: Path) -> None:
    class CancelledError(Exception):
        pass

    hold = threading.Event()

    def slow() -> Opened:
        hold.wait(30)
        return Opened(Letters())

    def check() -> None:
        raise CancelledError

    meaning = Meaning(path, slow)
    with pytest.raises(CancelledError):
        meaning.similarity(library("castle"), clauses("castle"), check=check)
    hold.set()
    meaning.wait(30)


def named(*titles: str) -> list[Texts]:
    return [Texts(title, "") for title in titles]


def test_what_a_killed_process_left_is_written_over(path: Path) -> None:
    vectors = Letters().encode(["castle", "robot"])
    file = VectorFile(path, AS_ENCODED)
    file.add(named("castle"), vectors[:1])
    with path.open("ab") as broken:
        broken.write(b"half a record")
    file = VectorFile(path, AS_ENCODED)
    assert len(file) == 1
    file.add(named("robot"), vectors[1:])
    found = VectorFile(path, AS_ENCODED).get(named("robot", "castle", "unknown"))
    assert np.allclose(found[:2], vectors[::-1], atol=1e-2) and np.isnan(found[2]).all()


def test_two_processes_may_add(path: Path) -> None:
    vectors = Letters().encode(["a", "b", "c"])
    one, two = VectorFile(path, AS_ENCODED), VectorFile(path, AS_ENCODED)
    one.add(named("a"), vectors[:1])
    two.add(named("b"), vectors[1:2])
    assert two.missing(named("a", "b", "c")) == named("c")
    one.add(named("c"), vectors[2:])
    assert one.missing(named("a", "b", "c", "c", "d")) == named("d")
    assert np.allclose(one.get(named("b", "c")), vectors[1:], atol=1e-2)


def test_vectors_of_another_alignment_are_made_anew(path: Path) -> None:
    vectors = Letters().encode(["castle", "robot"])
    before = VectorFile(path, AS_ENCODED)
    before.add(named("castle", "robot"), vectors)
    size = path.stat().st_size
    other = AS_ENCODED._replace(name=AS_ENCODED.name * 2)
    file = VectorFile(path, other)
    assert len(file) == 0
    file.add(named("robot"), vectors[:1])
    assert path.stat().st_size < size
    # Who still has the old ones in mind finds none, not wrong ones.
    assert np.isnan(before.get(named("castle", "robot"))).all()


def test_a_name_and_a_description_are_not_taken_for_one_another(path: Path) -> None:
    file = VectorFile(path, AS_ENCODED)
    file.add([Texts("ab", "c")], Letters().encode(["ab"]))
    assert file.missing([Texts("a", "bc"), Texts("ab", "c")]) == [Texts("a", "bc")]


def test_the_most_telling_clauses_are_compared() -> None:
    assert telling_parts(clauses("masterpiece", "the", "sakurano kaede")) == (
        "masterpiece",
        "sakurano kaede",
    )
    many = telling_parts(clauses(*["masterpiece"] * 60, "kaede sakurano", "word " * 60))
    assert "kaede sakurano" in many
    assert sum(len(part.split()) for part in many) <= 32
    assert telling_parts(()) == telling_parts(clauses("", "of the")) == ()


def test_text_of_a_lora_with_hundreds_of_trigger_words_is_bounded() -> None:
    from intelligent_generation.core.catalog.entries import TriggerWord

    words = tuple(TriggerWord(f"word{n}", 1.0, "civitai") for n in range(400))
    entry = LoraEntry(FileRef(folder="loras", name="x"), "X", "sdxl", None, 1.0, "t", words)
    entry = entry._replace(description="long " * 200)
    assert [len(text) < 301 for text in texts_of(entry)] == [True, True]


# ------------------------------------------------------------------ the real model


@pytest.fixture(scope="module")
def finder() -> Iterator[None]:
    finder = TorchvisionOperators()
    sys.meta_path.insert(0, finder)
    yield
    sys.meta_path.remove(finder)


def test_the_real_model_knows_synonyms(finder: None, path: Path) -> None:
    opened = open_encoder(model_folder())
    assert opened.encoder is not None, opened.problem
    meaning = Meaning(path, lambda: opened)
    prompt, clause = nearness(
        meaning.similarity(
            library("automobile", "pastry", "mountain landscape"),
            clauses("masterpiece", "a fast car"),
        )
    )
    assert prompt.argmax() == clause.argmax() == 0
    whole = opened.encoder.encode_parts(("a fast car", "", "x" * 4000))
    assert whole.shape == (4, DIMENSIONS)
    assert not whole[2].any() and np.linalg.norm(whole[1]) == pytest.approx(1, abs=1e-3)
    assert not opened.encoder.encode([""]).any()


def test_the_shipped_alignment_keeps_unit_vectors_and_zeros() -> None:
    encoded = Letters().encode(["castle", "robot", ""])
    shipped = alignment()
    for vectors in (shipped.of_prompt(encoded), shipped.of_loras(encoded, encoded[[2, 0, 2]])):
        assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 0], abs=1e-3)


@pytest.mark.parametrize("content", [None, "not a model"])
def test_a_folder_without_a_usable_model_says_so(
    finder: None, tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "model.safetensors").write_text(content)
    opened = open_encoder(model_folder({FOLDER: str(tmp_path)}.get))
    assert opened.encoder is None
    assert str(tmp_path) in opened.problem


def test_no_model_says_how_to_get_it() -> None:
    assert "hf download" in open_encoder(None).problem
