"""Reads a prompt with a language model in Ollama: concepts, mood and intent in one call.

The model only says what is there. Emphasis, LoRA tags, clauses and the text to encode stay those
of the built-in analyzer, and nothing that the model says gets into the text.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import os
import re
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import LanguageModelError
from ..plan import (
    Clause,
    Concept,
    ConceptCategory,
    ContentIntent,
    Intent,
    Notice,
    PromptAnalysis,
    QualityIntent,
    StyleIntent,
)
from .complexity import band, complexity
from .concepts import as_found

if TYPE_CHECKING:
    from ollama import AsyncClient

T = TypeVar("T")

MAX_BYTES = 8_000
"""Of a prompt in UTF-8, that a model is given: about 2,000 tokens of English, and at most 4,000 of
a script with three bytes a character. What follows it is read by nobody but the built-in
analyzer."""

CONTEXT_TOKENS = 8_192
"""Room for instructions, prompt and answer. Always the same, as Ollama loads a model anew for
another size."""

ANSWER_TOKENS = 2_048
"""A model that goes on for longer has lost its way. For a short prompt it is less: see
`_most_tokens`."""

MOST_PHRASES = 40
"""Of one category. It is also in the schema, so that no model lists without end."""

LONGEST_PHRASE = 120
"""Characters of a phrase in the schema: a small model writes stories into a field without end."""

LEAST_GROUNDED = 0.5
"""Share of the phrases that must stand in the prompt: below it the answer is about something
else."""

_POLL_SECONDS = 0.05
_UNLOAD_SECONDS = 5.0
_FORM = 2  # of instructions and schema: raised when older answers in the cache should not be used

_INSTRUCTIONS = """\
You analyse prompts for image generators. Answer with one JSON object that follows the schema.
Copy phrases exactly as they stand in the prompt, in its language; never translate, correct or \
invent. Put each phrase into one category only. Leave out what the prompt says must not be in the \
picture.
character: people and beings with their looks, clothes and expression. content: other things, \
animals, actions. setting: place, time, weather, background. style: art form, medium, artist, \
genre. lighting: light and shadow. camera: framing, angle, lens. quality: words that ask for a \
good picture, such as masterpiece. technical: file, render and camera settings. mood: feelings.
intent_style is ANIME for anime or manga, PHOTOREAL for photographs, ARTISTIC for paintings, \
drawings and other art, GENERAL when the prompt does not say; a photo or painting that is a thing \
in the picture does not count. intent_content is what the picture is mainly of: CHARACTER, \
PORTRAIT (a face or bust), LANDSCAPE (nature, outdoors), SCENE (a place or several subjects), \
OBJECT (a thing, animal, food), ABSTRACT. intent_quality is HIGH when the prompt asks for high \
quality, LOW when it asks for a draft, else MEDIUM."""

_CATEGORIES: tuple[ConceptCategory, ...] = get_args(ConceptCategory)
_Phrases = Annotated[list[str], Field(max_length=MOST_PHRASES)]


class _Form(BaseModel):
    """What the model is asked for; its JSON schema goes along, so the order is the answer's."""

    model_config = ConfigDict(extra="forbid", strict=True)

    intent_style: StyleIntent
    intent_content: ContentIntent
    intent_quality: QualityIntent
    character: _Phrases
    content: _Phrases
    setting: _Phrases
    style: _Phrases
    lighting: _Phrases
    camera: _Phrases
    quality: _Phrases
    technical: _Phrases
    mood: _Phrases


class Answer(NamedTuple):
    """What a language model found in a prompt, checked."""

    style: StyleIntent
    content: ContentIntent
    quality: QualityIntent
    phrases: tuple[tuple[ConceptCategory, str], ...]
    """As they stand in the prompt, lower case."""
    mood: tuple[str, ...]


class OllamaSettings(NamedTuple):
    """How to ask Ollama."""

    model: str
    """A model that is installed there, such as `llama3.2:3b`."""
    keep_alive: int = 0
    """Seconds that Ollama keeps the model in memory after the answer; 0 frees it before anything
    is sampled, below 0 keeps it until Ollama ends."""
    time_limit: float = 60.0
    """Seconds for the whole call, loading of the model included."""


class AnswerCache(Protocol):
    """Keeps answers by a key: the same prompt and model are not asked twice."""

    def get(self, key: str) -> str | None: ...

    def put(self, key: str, answer: str) -> None: ...


def read_with_ollama(
    plain: PromptAnalysis,
    settings: OllamaSettings,
    *,
    cache: AnswerCache | None = None,
    check: Callable[[], object] = lambda: None,
) -> PromptAnalysis:
    """The analysis with concepts, mood, intent and complexity by a language model.

    Without a usable answer it is `plain` with a notice that says why. Only good answers are kept
    in the cache.

    Args:
        plain: what the built-in analyzer found.
        settings: the model and how long it may take.
        cache: where earlier answers are; None asks every time.
        check: called every few hundredths of a second while waiting; what it raises ends the
            call at once and passes on.
    """
    text, left_out = _text(plain.clauses)
    notices = plain.notices
    key = hashlib.sha256(json.dumps([_FORM, settings.model, text]).encode()).hexdigest()
    said = cache.get(key) if cache else None
    try:
        answer = None if said is None else _checked(said, text)
    except LanguageModelError:
        answer = None  # of an earlier version of this code
    if answer is None:
        try:
            said = _ask(text, settings, check)
            answer = _checked(said, text)
        except LanguageModelError as error:
            message = f"{error} The built-in analyzer read the prompt instead."
            notice = Notice(level="error", code=error.code, message=message)
            return plain.model_copy(update={"notices": (*notices, notice)})
        if cache:
            cache.put(key, said)
    if left_out:
        message = (
            f"{settings.model} was given the first {len(text)} characters of the prompt; "
            f"{left_out} more were not read by it."
        )
        notices = (*notices, Notice(level="warning", code="ollama_prompt_cut", message=message))
    return _merged(plain, answer, settings.model, notices)


def installed_models(*, time_limit: float = 5.0) -> tuple[str, ...]:
    """Names of the models that Ollama has, as it sorts them.

    Raises:
        LanguageModelError: Ollama cannot be reached or does not answer as Ollama does.
    """

    async def names() -> tuple[str, ...]:
        async with _client() as client:
            found = await client.list()
        return tuple(model.model for model in found.models if model.model)

    return _finished(_guarded(names(), ""), time_limit, lambda: None, "It may be busy; try again.")


def address() -> str:
    """Where Ollama is expected: OLLAMA_HOST, else this machine's port 11434."""
    return os.environ.get("OLLAMA_HOST", "").strip() or "127.0.0.1:11434"


# --------------------------------------------------------------------------- asking


def _client() -> AsyncClient:
    from ollama import AsyncClient

    host = address()
    # A server's own setting, "on every interface", is no address to connect to.
    host = re.sub(r"(^|//)0\.0\.0\.0(?=[:/]|$)", r"\g<1>127.0.0.1", host)
    # A prompt goes to no other address than this one. Proxies of the environment are for others.
    return AsyncClient(host, follow_redirects=False, trust_env=not _is_loopback(host))


def _is_loopback(host: str) -> bool:
    name = urlsplit(host if "://" in host else f"//{host}").hostname or "localhost"
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def _ask(text: str, settings: OllamaSettings, check: Callable[[], object]) -> str:
    async def chat() -> str:
        async with _client() as client:
            parts: list[str] = []
            size, reason = 0, None
            # Streamed, so that Ollama stops when the connection is closed.
            stream = await client.chat(
                model=settings.model,
                messages=[
                    {"role": "system", "content": _INSTRUCTIONS},
                    {"role": "user", "content": text},
                ],
                format=_schema(text),
                options={
                    "temperature": 0,
                    "seed": 0,
                    "num_ctx": CONTEXT_TOKENS,
                    "num_predict": _most_tokens(text),
                },
                keep_alive=settings.keep_alive,
                think=False,
                stream=True,
            )
            async for part in stream:
                parts.append(part.message.content or "")
                size += len(parts[-1])
                reason = part.done_reason or reason
                if size > 16 * _most_tokens(text):
                    reason = "length"
                    break
            if settings.keep_alive == 0:
                await _unloaded(client, settings.model)
        if reason == "length":
            raise LanguageModelError(
                "ollama_answer_unusable",
                f"{settings.model} answered without an end. Try another model.",
            )
        return "".join(parts)

    try:
        advice = "Raise the time limit, or choose a smaller model."
        return _finished(_guarded(chat(), settings.model), settings.time_limit, check, advice)
    except LanguageModelError as error:
        if error.code == "ollama_model_missing":
            raise LanguageModelError(error.code, f"{error} {_installed_hint()}") from None
        raise


async def _unloaded(client: AsyncClient, model: str) -> None:
    """Wait until Ollama has let go of the memory: what comes next may need all of it."""
    from ollama import ResponseError

    until = time.monotonic() + _UNLOAD_SECONDS
    try:
        while time.monotonic() < until:
            loaded = {one.model for one in (await client.ps()).models}
            if not loaded & {model, f"{model}:latest"}:
                return
            await asyncio.sleep(_POLL_SECONDS)
    except (ResponseError, ConnectionError, ValidationError):
        return  # a server that cannot say


def _installed_hint() -> str:
    try:
        names = installed_models()
    except LanguageModelError:
        return ""
    if not names:
        return "No model is installed there; `ollama pull` installs one."
    return f"Installed are: {', '.join(names[:10])}."


async def _guarded(call: Coroutine[Any, Any, T], model: str) -> T:
    """What the call gives, whatever goes wrong in it as an LanguageModelError."""
    try:
        import httpx
        from ollama import ResponseError
    except ImportError as error:
        call.close()
        raise LanguageModelError(
            "ollama_failed",
            "The Python package ollama is not installed. Run `pip install -r requirements.txt` "
            "in this node pack's folder.",
        ) from error
    try:
        return await call
    except ResponseError as error:
        said = " ".join(error.error.split())[:200] or "nothing more"
        if error.status_code == 404 and model:
            raise LanguageModelError(
                "ollama_model_missing", f"Ollama at {address()} has no model {model!r}."
            ) from error
        raise LanguageModelError(
            "ollama_failed", f"Ollama at {address()} failed ({error.status_code}): {said}."
        ) from error
    except (ConnectionError, httpx.ConnectError, httpx.ConnectTimeout, httpx.InvalidURL) as error:
        raise LanguageModelError(
            "ollama_unreachable",
            f"Ollama cannot be reached at {address()}. Start it, or set OLLAMA_HOST to where it "
            "runs.",
        ) from error
    except (httpx.HTTPError, ValueError, TypeError) as error:
        # ValueError: what came is no JSON, or (pydantic's) not what Ollama sends.
        raise LanguageModelError(
            "ollama_failed",
            f"What answers at {address()} broke off or does not speak Ollama's protocol "
            f"({type(error).__name__}).",
        ) from error


def _finished(
    call: Coroutine[Any, Any, T], time_limit: float, check: Callable[[], object], advice: str
) -> T:
    """The call's result. It runs in a thread with a loop of its own, as ComfyUI may be in one
    already, and is cancelled, its connection closed, when time is up or `check` raises. The
    advice is for those whose time was up."""
    # Before the clock runs: on a busy machine the first import took more than five seconds.
    with suppress(ImportError):
        import ollama  # noqa: F401
    outcome: dict[str, Any] = {}
    ready = threading.Event()

    async def main() -> None:
        outcome["loop"], outcome["task"] = asyncio.get_running_loop(), asyncio.current_task()
        ready.set()
        outcome["value"] = await asyncio.wait_for(call, time_limit)

    def work() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            outcome["error"] = error
        finally:
            ready.set()

    thread = threading.Thread(target=work, name="ollama", daemon=True)
    thread.start()
    ready.wait()
    try:
        while thread.is_alive():
            check()
            thread.join(_POLL_SECONDS)
    except BaseException:
        if "loop" in outcome:
            with suppress(RuntimeError):  # it ended meanwhile
                outcome["loop"].call_soon_threadsafe(outcome["task"].cancel)
        thread.join(1.0)
        raise
    error = outcome.get("error")
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        raise LanguageModelError(
            "ollama_too_slow",
            f"Ollama at {address()} did not finish within {time_limit:g} s. {advice}",
        ) from error
    if error is not None:
        raise error
    return outcome["value"]


# --------------------------------------------------------------------------- checking


def _text(clauses: Sequence[Clause]) -> tuple[str, int]:
    """What is asked for, without emphasis and LoRA tags, and how many characters were too many."""
    whole = ", ".join(clause.text for clause in clauses if clause.weight > 0)
    fitting = whole.encode("utf-8", "ignore")[:MAX_BYTES].decode("utf-8", "ignore")
    if len(fitting) == len(whole):
        return whole, 0
    cut = fitting.rfind(", ")
    text = fitting[: cut if cut > 0 else len(fitting)]
    return text, len(whole) - len(text)


def _schema(text: str) -> dict[str, Any]:
    """The form as a JSON schema, with no room for more phrases than the prompt has words, nor for
    longer ones than the prompt."""
    schema = _Form.model_json_schema()
    # Scripts without spaces have more words than can be counted so.
    most = len(text.split()) + sum(not letter.isascii() for letter in text) // 2
    for field in schema["properties"].values():
        if field.get("type") == "array":
            field["maxItems"] = min(MOST_PHRASES, most)
            field["items"] = {"type": "string", "maxLength": min(LONGEST_PHRASE, len(text))}
    return schema


def _most_tokens(text: str) -> int:
    """Of an answer that names every word of the prompt once: no token is shorter than a byte, and
    a phrase takes as much again for quotes and commas. Beside it the field names."""
    return min(ANSWER_TOKENS, 256 + 2 * len(text.encode("utf-8", "ignore")))


def _checked(said: str, text: str) -> Answer:
    """The answer, if it has the form asked for and speaks of this text.

    Raises:
        LanguageModelError: it does not.
    """
    try:
        # Not strict: small models write line breaks into phrases.
        parsed = _Form.model_validate(json.loads(said, strict=False))
    except (ValueError, RecursionError) as error:
        problem = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            problem = f"{where}: {first['msg']}" if where else first["msg"]
        shown = " ".join(said.split())[:80]
        raise LanguageModelError(
            "ollama_answer_unusable",
            f"The language model's answer is not of the form asked for ({problem}). It begins: "
            f"{shown!r}.",
        ) from error
    words = f" {' '.join(_normal(text).split())} "
    there: list[tuple[ConceptCategory, str]] = []
    seen: set[str] = set()
    named = 0
    for category in _CATEGORIES:
        for phrase in getattr(parsed, category):
            shown = " ".join(phrase.lower().split())
            normal = _normal(phrase)
            if not normal or normal in seen:
                continue
            seen.add(normal)
            named += 1
            if _stands_in(normal, words):
                there.append((category, shown))
    if len(there) < LEAST_GROUNDED * named or not there:
        raise LanguageModelError(
            "ollama_answer_unusable",
            f"The language model named {named} phrases, of which {len(there)} stand in the "
            "prompt, so its answer was not used.",
        )
    mood = [m for m in parsed.mood if _stands_in(_normal(m), words)]
    return Answer(
        parsed.intent_style,
        parsed.intent_content,
        parsed.intent_quality,
        tuple(there),
        tuple(dict.fromkeys(" ".join(m.lower().split()) for m in mood)),
    )


def _normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold().replace("_", " ")))


def _stands_in(phrase: str, words: str) -> bool:
    # In scripts without spaces a phrase is part of a longer run of letters.
    return bool(phrase) and (f" {phrase} " in words or (not phrase.isascii() and phrase in words))


def _merged(
    plain: PromptAnalysis, answer: Answer, model: str, notices: Sequence[Notice]
) -> PromptAnalysis:
    clauses = [(f" {_normal(clause.text)} ", clause.weight) for clause in plain.clauses]

    def weight(phrase: str) -> float:
        normal = _normal(phrase)
        return next((w for clause, w in clauses if w > 0 and _stands_in(normal, clause)), 1.0)

    concepts = tuple(
        Concept(category=category, text=phrase, weight=weight(phrase))
        for category, phrase in answer.phrases
    )
    said = [*answer.phrases, *(("mood", word) for word in answer.mood)]
    value = round(complexity(as_found(category, phrase) for category, phrase in said), 4)
    return plain.model_copy(
        update={
            "concepts": concepts,
            "mood": answer.mood,
            "intent": Intent(
                style=answer.style,
                content=answer.content,
                quality=answer.quality,
                confidence=_confidence(plain.intent, answer),
            ),
            "complexity": value,
            "complexity_band": band(value),
            "analyzer": "ollama",
            "language_model": model,
            "notices": tuple(notices),
        }
    )


def _confidence(plain: Intent, answer: Answer) -> float:
    """How far two readers agree, mean over style and content: 1 where both say the same, ½ where
    the built-in one says what it says of anything it does not know, 0 where they differ. A model
    is not asked how sure it is, as it always is."""
    pairs = ((plain.style, answer.style, "GENERAL"), (plain.content, answer.content, "OBJECT"))
    agreed = [
        1.0 if ours == its else 0.5 if ours == unknown else 0.0 for ours, its, unknown in pairs
    ]
    return sum(agreed) / len(agreed)
