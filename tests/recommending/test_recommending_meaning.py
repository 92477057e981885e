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
from intelligent_generation.core.recommending.meaning import VectorFile, projected
from intelligent_generation.core.recommending.vectors import telling_parts, texts_of
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
    first = Letters()
    meaning = Meaning(path, lambda: Opened(first))
    near = meaning.similarity(library("castle", "robot"), clauses("a castle"))
    assert near is not None
    assert near.prompt[0] > near.prompt[1] and near.clause.shape == (2,)
    assert meaning.status()[:3] == ("ready", 2, 2)
    assert meaning.revision() == "0"

    again = Letters()
    reopened = Meaning(path, lambda: Opened(again))
    same = reopened.similarity(library("robot", "castle"), clauses("a castle"))
    assert same is not None
    assert same.prompt.tolist() == pytest.approx(near.prompt[::-1].tolist())
    assert not {"castle", "robot"} & set(again.encoded)


def test_descriptions_are_compared_where_there_are_any(path: Path) -> None:
    entries = library("a", "b", "c").entries
    entries = tuple(
        entry._replace(description=text)
        for entry, text in zip(entries, ("castle on a rock", "", "quick zebra"), strict=True)
    )
    described = library("a", "b", "c")._replace(entries=entries)
    near = Meaning(path, lambda: Opened(Letters())).similarity(described, clauses("a castle"))
    assert near is not None
    for likeness in near.of_descriptions(np.array([0, 1, 2], np.int32)):
        assert likeness[0] > likeness[2]
        assert np.isnan(likeness[1])
    assert not np.isnan(near.prompt).any()


def test_two_libraries_under_one_revision_are_two(path: Path) -> None:
    meaning = Meaning(path, lambda: Opened(Letters()))
    for titles in (("castle",), ("castle", "robot"), ("robot",), ()):
        near = meaning.similarity(library(*titles, revision="same"), clauses("a castle"))
        assert near is not None and near.prompt.shape == (len(titles),)
        assert not np.isnan(near.prompt).any()


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
    meaning = Meaning(path, lambda: Opened(Letters()))
    libraries = [library("castle", "robot"), library("rocket"), library("castle", "rocket")]
    for titles in libraries * 3:
        assert meaning.similarity(titles, clauses("a castle")) is not None
    # Names and descriptions; again once for the first, as the file had grown.
    assert sorted(put_together) == [1, 1] + [2, 2] * 3


def test_a_changed_lora_alone_is_read_again(path: Path) -> None:
    encoder = Letters()
    meaning = Meaning(path, lambda: Opened(encoder))
    meaning.similarity(library("castle", "robot"), clauses("castle"))
    encoder.encoded.clear()
    meaning.start(library("castle", "rocket", "robot"))
    assert meaning.wait().state == "ready"
    assert encoder.encoded == ["rocket"]


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
    meaning = Meaning(path, lambda: Opened(Slow()))
    near = meaning.similarity(whole, clauses("lora"))
    status = meaning.status()
    assert status.state == "reading" and status.done < status.total == 400
    assert near is None or np.isnan(near.prompt).any()
    go.set()
    assert meaning.wait(60).state == "ready"
    near = meaning.similarity(whole, clauses("lora"))
    assert near is not None and not np.isnan(near.prompt).any()
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


def test_what_a_killed_process_left_is_written_over(path: Path) -> None:
    vectors = projected(Letters().encode(["castle", "robot"]))
    file = VectorFile(path)
    file.add(["castle"], vectors[:1])
    with path.open("ab") as broken:
        broken.write(b"half a record")
    file = VectorFile(path)
    assert len(file) == 1
    file.add(["robot"], vectors[1:])
    found = VectorFile(path).get(["robot", "castle", "unknown"])
    assert np.allclose(found[:2], vectors[::-1], atol=1e-2) and np.isnan(found[2]).all()


def test_two_processes_may_add(path: Path) -> None:
    vectors = projected(Letters().encode(["a", "b", "c"]))
    one, two = VectorFile(path), VectorFile(path)
    one.add(["a"], vectors[:1])
    two.add(["b"], vectors[1:2])
    assert two.missing(["a", "b", "c"]) == ["c"]
    one.add(["c"], vectors[2:])
    assert one.missing(["a", "b", "c", "c", "d"]) == ["d"]


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
    near = meaning.similarity(
        library("automobile", "pastry", "mountain landscape"), clauses("masterpiece", "a fast car")
    )
    assert near is not None
    assert near.prompt.argmax() == near.clause.argmax() == 0
    whole = opened.encoder.encode_parts(("a fast car", "", "x" * 4000))
    assert whole.shape == (4, DIMENSIONS)
    assert not whole[2].any() and np.linalg.norm(whole[1]) == pytest.approx(1, abs=1e-3)
    assert not opened.encoder.encode([""]).any()


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
