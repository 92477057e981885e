"""Prompts read by a language model, through /prompt. Ollama is a stand-in on loopback."""

from __future__ import annotations

from typing import Any

import pytest
from intelligent_generation.scripts.comfyui import Client, PromptRefusedError
from intelligent_generation.tests.services.ollama import OllamaServer, answer
from intelligent_generation.tests.services.server import json_reply

TEXT = "a heron at low tide, gouache"


@pytest.fixture
def graph(auto_graph: Any) -> Any:
    def make(text: str = TEXT, *, seed: int = 7, **analyzer: Any) -> Any:
        prompt = auto_graph(text, sampler={"seed": seed})
        prompt["analyzer"]["inputs"] |= {
            "analyzer": "Ollama",
            "ollama_model": "small:latest",
            "keep_alive": 0,
            "time_limit": 20,
            **analyzer,
        }
        return prompt

    return make


def test_a_language_model_reads_the_prompt_once(
    client: Client, graph: Any, ollama: OllamaServer, record_of: Any
) -> None:
    ollama.said = answer(intent_style="ANIME", content=["heron"], style=["gouache"])
    before = len(ollama.chats)
    record = record_of(client.run(graph()))
    analysis = record.plan.analysis
    assert (analysis.analyzer, analysis.language_model) == ("ollama", "small:latest")
    assert analysis.concepts_in("content") == ("heron",)
    assert analysis.segments == (TEXT,)
    assert "Read by small:latest in Ollama as ANIME" in record.explanation
    # Other settings of the node make it run again; the answer is known.
    record_of(client.run(graph(seed=8, time_limit=30)))
    assert len(ollama.chats) == before + 1


def test_the_built_in_analyzer_steps_in_and_the_next_run_asks_again(
    client: Client, graph: Any, ollama: OllamaServer, record_of: Any
) -> None:
    ollama.said = answer(content=["otter"])
    ollama.fail(json_reply({"error": "model requires more memory"}, 500), path="/api/chat")
    prompt = graph("an otter in a river")
    record = record_of(client.run(prompt))
    assert record.plan.analysis.analyzer == "builtin"
    assert "Error: Ollama at" in record.explanation
    assert "requires more memory" in record.explanation
    assert record_of(client.run(prompt)).plan.analysis.analyzer == "ollama"
    assert "sampler" not in client.run(prompt).executed, "then nothing is left to run again"


def test_no_model_named_is_refused_and_the_route_lists_them(
    client: Client, graph: Any, ollama: OllamaServer
) -> None:
    with pytest.raises(PromptRefusedError, match="ollama_model is empty"):
        client.run(graph(ollama_model=" "))
    assert client.get("/intelligent_generation/ollama/models").json() == ollama.models
