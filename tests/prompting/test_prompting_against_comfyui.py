"""Our reading of emphasis against ComfyUI's own parser, in a process that has ComfyUI."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest
from intelligent_generation.core.prompting import read_emphasis
from intelligent_generation.scripts.comfyui import find_comfyui

READ = """
import json, sys
sys.path.insert(0, sys.argv[1])
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
from comfy.sd1_clip import escape_important, token_weights, unescape_important
texts = json.load(sys.stdin)
print(json.dumps([
    [[unescape_important(t), w] for t, w in token_weights(escape_important(x), 1.0)] for x in texts
]))
"""


def texts() -> list[str]:
    rng = random.Random(5)
    pieces = ["(", ")", "((", ":1.3)", ":", "\\(", "\\)", "cat", " ", ",", ":-1)", "(a:1e1)", "猫"]
    made = ["".join(rng.choices(pieces, k=rng.randrange(1, 14))) for _ in range(2000)]
    return [*made, "(a (b:0.5) c:1.2)", "a) (b)", "((x", "", "(:1.2)", "(x:)", "(x:nan)"]


@pytest.mark.integration
def test_emphasis_is_read_as_comfyui_reads_it() -> None:
    asked = [text for text in texts() if "nan" not in text]
    answer = subprocess.run(
        [sys.executable, "-c", READ, str(find_comfyui())],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    theirs = json.loads(answer.stdout.splitlines()[-1])
    for text, expected in zip(asked, theirs, strict=True):
        assert [[span.text, span.weight] for span in read_emphasis(text)] == expected, text
