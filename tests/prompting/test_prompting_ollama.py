"""The real `ollama` client against a stand-in on loopback."""

from __future__ import annotations

import json
import socket
import threading
from datetime import datetime, timedelta, timezone

import pytest
from intelligent_generation.core.errors import LanguageModelError
from intelligent_generation.core.plan import PromptAnalysis
from intelligent_generation.core.prompting import (
    OllamaSettings,
    analyze,
    installed_models,
    summarize,
)
from intelligent_generation.core.prompting.answers import StoredAnswers
from intelligent_generation.core.prompting.language_model import ANSWER_TOKENS, MAX_BYTES
from intelligent_generation.core.storage import Database
from intelligent_generation.tests.services.ollama import OllamaServer, answer
from intelligent_generation.tests.services.server import DROP, Reply, json_reply

PROMPT = "a (stern lighthouse keeper:1.2) holding a photo, harbour at dusk <lora:ink:0.5>, no boats"
GOOD = answer(
    intent_style="ANIME",
    intent_content="CHARACTER",
    intent_quality="HIGH",
    character=["Stern lighthouse keeper"],
    content=["photo", "a dragon that nobody asked for"],
    setting=["harbour at dusk"],
    mood=["stern", "gloomy"],
)
SMALL = OllamaSettings("small", time_limit=20)


@pytest.fixture
def ollama(monkeypatch):
    with OllamaServer() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        server.said = GOOD
        yield server


def ask(prompt=PROMPT, settings=SMALL, **more):
    return analyze(prompt, ollama=settings, **more)


def fell_back(analysis, code):
    """Whether it is the built-in analysis with one notice more."""
    (notice,) = analysis.notices
    assert (notice.level, notice.code) == ("error", code)
    assert notice.message.endswith("The built-in analyzer read the prompt instead.")
    assert notice.message in summarize(analysis)
    plain = analyze(analysis.prompt)
    return analysis == plain.model_copy(update={"notices": (notice,)})


def test_a_models_answer_becomes_the_analysis(ollama):
    analysis = ask()
    plain = analyze(PROMPT)
    found = [(c.category, c.text, c.weight) for c in analysis.concepts]
    assert found == [
        ("character", "stern lighthouse keeper", pytest.approx(1.2, abs=0.15)),
        ("content", "photo", pytest.approx(1.0, abs=0.15)),
        ("setting", "harbour at dusk", 1.0),
    ], "what does not stand in the prompt is left out"
    assert analysis.mood == ("stern",)
    intent = analysis.intent
    assert (intent.style, intent.content, intent.quality) == ("ANIME", "CHARACTER", "HIGH")
    assert intent.confidence == 0.25, "the built-in one knows no style and sees a scene"
    assert (analysis.analyzer, analysis.language_model) == ("ollama", "small")
    # The text that is encoded is never the model's.
    for field in ("segments", "negative_segments", "spans", "clauses", "lora_tags", "notices"):
        assert getattr(analysis, field) == getattr(plain, field)
    assert "Read by small in Ollama." in summarize(analysis)
    assert PromptAnalysis.from_json(analysis.to_json()) == analysis


def test_one_call_asks_for_everything_by_schema_and_frees_the_memory(ollama):
    ask()
    (chat,) = ollama.chats
    assert chat["model"] == "small"
    assert chat["keep_alive"] == 0
    assert chat["options"]["temperature"] == 0
    assert set(chat["format"]["required"]) == set(json.loads(answer()))
    assert chat["format"]["properties"]["intent_style"]["enum"] == [
        *("ANIME", "PHOTOREAL", "ARTISTIC", "GENERAL"),
    ]
    said = chat["messages"][-1]["content"]
    assert "lighthouse keeper" in said
    assert "lora" not in said and "1.2" not in said
    assert ollama.asked("/api/ps"), "it waits until the model is unloaded"


def test_keep_alive_is_passed_on_and_nothing_waits_for_unloading(ollama):
    ask(settings=SMALL._replace(keep_alive=-1))
    assert ollama.chats[0]["keep_alive"] == -1
    assert not ollama.asked("/api/ps")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (GOOD[: len(GOOD) // 2], "truncated"),
        ("", "empty"),
        ("I'm sorry, but I cannot help with that request.", "refusal"),
        ("```json\n" + GOOD + "\n```", "not the form"),
        (answer(intent_style="BAROQUE", content=["photo"]), "a word not in the list"),
        (answer(content="photo"), "a text where a list should be"),
        (answer(content=[{"text": "photo"}]), "objects in the list"),
        (answer(content=["photo"], confidence=0.9), "a field too many"),
        (json.dumps({"intent_style": "ANIME"}), "fields missing"),
        (answer(content=["photo"] * 41), "a list without end"),
        ("[" * 50_000, "nested without end"),
        (answer(content=["a cat", "a dog", "photo"]), "about something else"),
        (answer(), "nothing found"),
        ("null", "null"),
    ],
)
def test_an_unusable_answer_falls_back(ollama, said, reason):
    ollama.said = said
    assert fell_back(ask(), "ollama_answer_unusable"), reason


def test_an_answer_that_hit_the_length_limit_falls_back(ollama):
    ollama.done_reason = "length"
    assert fell_back(ask(), "ollama_answer_unusable")


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (json_reply({"error": "llama runner process has terminated"}, 500), "ollama_failed"),
        (json_reply({"error": "busy"}, 503), "ollama_failed"),
        (DROP, "ollama_failed"),
        (Reply(200, {"Content-Type": "text/html"}, b"<!DOCTYPE html><p>router"), "ollama_failed"),
        (Reply(200, {}, b'{"message": 5}\n'), "ollama_failed"),
        (Reply(200, {"Content-Length": "500"}, b'{"mess', cut_at=6), "ollama_failed"),
        (Reply(200, {}, b'{"error": "out of memory"}\n'), "ollama_failed"),
        (Reply(307, {"Location": "http://127.0.0.1:1/api/chat"}), "ollama_failed"),
    ],
)
def test_a_server_that_fails_falls_back(ollama, reply, code):
    ollama.fail(reply, path="/api/chat")
    assert fell_back(ask(), code)


def test_a_model_that_is_not_installed_falls_back_and_lists_those_that_are(ollama):
    analysis = ask(settings=SMALL._replace(model="llama9"))
    assert fell_back(analysis, "ollama_model_missing")
    message = analysis.notices[0].message
    assert "no model 'llama9'" in message and "small:latest, other:3b" in message


def test_nothing_listening_falls_back(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{taken.getsockname()[1]}")
        assert fell_back(ask(), "ollama_unreachable")
        with pytest.raises(LanguageModelError, match="OLLAMA_HOST"):
            installed_models()


@pytest.mark.parametrize("host", ["http://[", "http://127.0.0.1:99999", "nonsense://x"])
def test_an_address_that_is_none_falls_back(monkeypatch, host):
    monkeypatch.setenv("OLLAMA_HOST", host)
    (notice,) = ask().notices
    assert notice.code in ("ollama_failed", "ollama_unreachable")


def test_a_model_that_hangs_is_given_up_and_the_connection_closed(ollama):
    ollama.hang = threading.Event()
    analysis = ask(settings=SMALL._replace(time_limit=0.3))
    ollama.hang.set()
    assert fell_back(analysis, "ollama_too_slow")
    assert "0.3 s" in analysis.notices[0].message


def test_a_list_of_models_that_does_not_come_speaks_of_no_model(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(LanguageModelError, match=r"within 0\.2 s\. It may be busy; try again"):
            installed_models(time_limit=0.2)


def test_cancel_ends_the_call(ollama):
    class Cancelled(BaseException):
        pass

    def check():
        if ollama.asked("/api/chat"):
            raise Cancelled

    ollama.hang = threading.Event()
    with pytest.raises(Cancelled):
        ask(check=check)
    ollama.hang.set()


def test_the_client_works_inside_a_running_loop(ollama):
    import asyncio

    async def node():
        return ask()

    assert asyncio.run(node()).analyzer == "ollama"


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_proxies_never_catch_loopback(ollama, monkeypatch, name):
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("OLLAMA_HOST", ollama.url.replace("127.0.0.1", "0.0.0.0"))
    assert ask().analyzer == "ollama"
    assert installed_models() == ("small:latest", "other:3b")


def test_a_proxy_is_used_for_other_machines(monkeypatch):
    with OllamaServer() as proxy:
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("OLLAMA_HOST", "ollama.example")
        ask()
        assert proxy.requests[0].target == "http://ollama.example:11434/api/chat"


@pytest.fixture
def answers(tmp_path):
    clock = [datetime(2026, 1, 1, tzinfo=timezone.utc)]

    def now():
        clock[0] += timedelta(seconds=1)
        return clock[0]

    url = f"sqlite:///{tmp_path / 'data.db'}"
    return lambda **options: StoredAnswers(Database.open(url), now=now, **options)


def test_the_same_prompt_and_model_are_asked_once(ollama, answers):
    first = ask(cache=answers())
    assert ask(cache=answers()) == first, "also after a restart"
    again = ask(prompt=PROMPT.replace("0.5", "0.9"), cache=answers())
    assert again.concepts == first.concepts, "LoRA tags are not what the model reads"
    assert len(ollama.chats) == 1
    ask(settings=SMALL._replace(model="other:3b"), cache=answers())
    ask(prompt="a stern photo", cache=answers())
    assert len(ollama.chats) == 3


def test_a_failure_is_not_kept(ollama, answers):
    ollama.fail(json_reply({"error": "busy"}, 503), path="/api/chat")
    assert ask(cache=answers()).analyzer == "builtin"
    assert ask(cache=answers()).analyzer == "ollama"


def test_an_answer_that_no_longer_passes_is_asked_for_again(ollama):
    class Old:
        kept = "{}"

        def get(self, key):
            return self.kept

        def put(self, key, said):
            self.kept = said

    cache = Old()
    assert ask(cache=cache).analyzer == "ollama"
    assert cache.kept == GOOD


def test_answers_that_were_not_used_for_longest_go_first(answers):
    cache = answers(most=2)
    cache.put("a", "1")
    cache.put("b", "2")
    assert cache.get("a") == "1"
    cache.put("c", "3")
    assert [cache.get(key) for key in "abc"] == ["1", None, "3"]
    cache.put("c", "4")
    assert cache.get("c") == "4"


def test_a_very_long_prompt_is_cut_for_the_model_alone(ollama):
    prompt = "photo, harbour at dusk, " + "filler words, " * 5_000
    analysis = ask(prompt=prompt)
    assert analysis.analyzer == "ollama"
    assert {n.code for n in analysis.notices} == {"long_prompt", "ollama_prompt_cut"}
    assert 0.9 * MAX_BYTES < len(ollama.chats[0]["messages"][-1]["content"]) <= MAX_BYTES
    assert analysis.segments == (prompt,)


def test_a_long_prompt_of_another_script_leaves_room_for_the_answer(ollama):
    ollama.said = answer(setting=["夜晚的森林"])
    analysis = ask(prompt="夜晚的森林，" * 1_500)
    asked = ollama.chats[0]["messages"][-1]["content"]
    assert 0.9 * MAX_BYTES < len(asked.encode()) <= MAX_BYTES
    (cut,) = (n.message for n in analysis.notices if n.code == "ollama_prompt_cut")
    assert f"the first {len(asked)} characters" in cut


def test_an_answer_has_room_for_what_the_prompt_can_hold_and_no_more(ollama):
    def room(prompt):
        ollama.said = answer(content=[prompt])
        assert ask(prompt=prompt).analyzer == "ollama"
        chat = ollama.chats[-1]
        phrases = chat["format"]["properties"]["content"]
        return (
            phrases["maxItems"],
            phrases["items"]["maxLength"],
            chat["options"]["num_predict"],
        )

    assert room("dragon") == (1, 6, 268)
    assert room("红色的猫在夜晚的森林里") == (6, 11, 322)
    assert room("a red cat in the forest at night, " * 60) == (40, 120, ANSWER_TOKENS)


def test_a_line_break_in_a_phrase_is_no_error(ollama):
    ollama.said = answer(setting=["harbour at dusk"]).replace("harbour at", "harbour\n at")
    assert ask().concepts_in("setting") == ("harbour at dusk",)


def test_phrases_of_languages_without_spaces_are_found(ollama):
    ollama.said = answer(setting=["夜晚的森林"], content=["红色的猫"])
    analysis = ask(prompt="红色的猫在夜晚的森林里，水彩")
    assert analysis.concepts_in("setting") == ("夜晚的森林",)
