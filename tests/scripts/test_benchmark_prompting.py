"""The benchmarks of the analyzer and of the checkpoint choice, on a few rows of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from intelligent_generation.benchmarks import checkpoints, prompting
from intelligent_generation.core.embedding import Opened


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def without_model(monkeypatch):
    monkeypatch.setattr(prompting, "open_encoder", lambda _: Opened(None, "Not here."))


def test_agreement_is_counted_by_category_and_confusions_are_named(
    tmp_path, capsys, without_model
) -> None:
    rows = [
        {"id": "a", "prompt": "an old knight", "category": "People"},
        {"id": "b", "prompt": "a knight beside a house", "category": "Animals"},
        {"id": "c", "prompt": "an oil painting of a cat", "category": "Arts"},
        {"id": "d", "prompt": "history", "category": "World Knowledge"},
        {"id": "e", "prompt": "no category"},
    ]
    path = write(tmp_path / "prompts.jsonl", rows)
    result = prompting.main(["--prompts", path, "--part", "all"])
    assert result["prompts"] == 3
    assert "meaning" not in result
    lexicon = result["lexicon"]
    assert lexicon["intent"] == 0.5
    assert lexicon["categories"]["People"] == [1, 1.0, 1.0]
    assert lexicon["categories"]["Arts"][1] is None
    assert lexicon["confusion"] == [["Animals", "CHARACTER", 1]]
    assert "Animals read as CHARACTER: 1" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="Not here"):
        prompting.main(["--prompts", path, "--fit"])


def test_prompts_that_served_to_fit_are_left_out(tmp_path, without_model) -> None:
    rows = [{"id": str(at), "prompt": "a cat", "category": "Animals"} for at in range(60)]
    path = write(tmp_path / "prompts.jsonl", rows)
    other = prompting.main(["--prompts", path])
    assert 0 < other["prompts"] < 60
    assert other["prompts"] == sum(not prompting._to_fit(row) for row in rows)


def test_the_used_checkpoint_counts_where_it_comes_first(tmp_path) -> None:
    names = ["anything-v5", "realisticVision", "photon_photoreal", "epicRealism", "photoMix"]
    rows = [
        {"id": "1", "origin": "user_gallery", "prompt": "1girl, anime style", "checkpoint": name}
        for name in names
    ]
    rows.append({**rows[0], "id": "2", "origin": "lora_showcase"})
    result = checkpoints.main(["--pairs", write(tmp_path / "pairs.jsonl", rows)])
    assert (result["prompts"], result["checkpoints"]) == (5, 5)
    assert result["used_first"] == 0.2, "of the five, the one made for anime"
    assert result["by_style"] == {"ANIME": [5, 0.2]}
