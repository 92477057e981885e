"""The demo's command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from intelligent_generation.scripts.demo import MAX_SEED, parse


def test_prompt_alone_is_enough():
    options = parse(["a cat"])
    assert options.prompt == "a cat"
    assert options.seed is None
    assert options.size is None
    assert options.model is None


def test_everything_can_be_chosen(tmp_path: Path):
    model = tmp_path / "real model.safetensors"
    model.write_bytes(b"")
    choices = f"--seed {MAX_SEED} --size 512x768 --negative blurry --port 8188 --serve"
    options = parse(["a cat", "--model", str(model), *choices.split()])
    assert options.seed == MAX_SEED
    assert options.size == (512, 768)
    assert options.model == model.resolve()
    assert options.negative == "blurry"
    assert options.port == 8188
    assert options.serve


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a prompt"),
        (["   "], "give a prompt"),
        (["a cat", "--seed", "-1"], "seed"),
        (["a cat", "--seed", str(MAX_SEED + 1)], "whole number"),
        (["a cat", "--size", "512"], "WxH"),
        (["a cat", "--size", "510x512"], "multiples of 8"),
        (["a cat", "--model", "absent.safetensors"], "there is no file"),
        (["a cat", "--port", "0"], "not a port"),
    ],
)
def test_bad_options_are_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_serve_needs_no_prompt():
    assert parse(["--serve"]).prompt is None
