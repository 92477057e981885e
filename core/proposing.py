"""From what no LoRA on disk serves to the LoRAs that hubs have for it.

Asks the hubs, within a time limit, and downloads nothing. What goes wrong there is a notice in
the plan, never the end of a run. Imports nothing of ComfyUI.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from .catalog import Catalog, all_families, lora_fit
from .errors import IntelligentGenerationError
from .fetching import Fetcher
from .hubs import Hub, RemoteVersion, SafetyRules, SearchQuery, blocked_by
from .hubs.answers import HUB_NAMES
from .plan import LoraPlan, Notice
from .recommending import MAX_QUESTIONS, Offer, Question

log = logging.getLogger(__name__)
T = TypeVar("T")
_Key = tuple[Hub, SearchQuery, bool]
_Job = Callable[[Callable[[], None]], None]
"""Is given a `stop` for its client."""

SECONDS = 20.0
"""What asking the hubs may take for one plan, and after that the details of what it would take.
CivitAI is asked once a second."""
_PER_QUESTION = 10  # results for one clause
_KEEP_SECONDS = 3600.0
_KEEP_ANSWERS = 256
_TICK = 0.05


class Offers(NamedTuple):
    """What hubs have for a prompt."""

    found: tuple[Offer, ...]
    notices: tuple[Notice, ...]
    complete: bool
    """False when a hub failed, or had not answered everything in time: asking again may give
    more."""


class _EndedError(Exception):
    """Nobody waits for the answer any more."""


class Proposer:
    """Asks the hubs for LoRAs. Safe to use from several threads.

    Args:
        fetcher: has the clients, and knows what is on disk.
        catalog: is told of what hubs say.
        seconds: what `ask` and `look_up` may take each.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        catalog: Catalog,
        *,
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetcher = fetcher
        self._catalog = catalog
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._answers: dict[_Key, tuple[float, Sequence[RemoteVersion]]] = {}

    def ask(
        self,
        questions: Sequence[Question],
        *,
        family: str,
        rules: SafetyRules,
        stop: Callable[[], None],
    ) -> Offers:
        """The LoRAs that fit a model's family and the rules, of each clause's best results.

        Each question is a query of its own to each hub; at most `MAX_QUESTIONS` are asked.

        Args:
            stop: raises to end it.
        """
        asked = questions[:MAX_QUESTIONS]
        families = tuple(id for id in all_families() if lora_fit(id, family) > 0)
        answers: dict[Hub, list[RemoteVersion]] = {"civitai": [], "huggingface": []}

        def search(hub: Hub) -> _Job:
            def work(ended: Callable[[], None]) -> None:
                for question in asked:
                    query = _query(hub, question, families)
                    answers[hub] += self._search(hub, query, rules.allow_nsfw, ended)

            return work

        jobs: dict[Hub, _Job] = {hub: search(hub) for hub in answers}
        problems = self._bounded(jobs, stop)
        notices = [_failed(HUB_NAMES[hub], problem, self._seconds)
                   for hub, problem in problems.items()]  # fmt: skip
        offers = self._fitting([v for found in answers.values() for v in list(found)],
                               families, rules, stop)  # fmt: skip
        said = ", ".join(f'"{" ".join(question.words)}"' for question in asked)
        more = len(questions) - len(asked)
        notices.insert(0, _info(
            f"CivitAI and Hugging Face were asked for LoRAs for {said}, which none on disk serves"
            f"{f' ({more} more clauses were not asked about)' if more else ''}. They have "
            f"{len(offers) or 'none'} for this model."
        ))  # fmt: skip
        return Offers(tuple(offers), tuple(notices), complete=not problems)

    def look_up(
        self, offers: Sequence[Offer], plan: LoraPlan, *, stop: Callable[[], None]
    ) -> tuple[Offer, ...]:
        """The offers, those that a plan would take with what only a request of its own tells:
        size and hash on Hugging Face, the strength of sample images on CivitAI. What cannot be
        had in time is left as it is."""
        wanted = [lora.file for lora in plan.pending]
        known = {offer.file: offer for offer in offers}

        def detail(offer: Offer) -> _Job:
            def work(ended: Callable[[], None]) -> None:
                known[offer.file] = self._detailed(offer, ended)

            return work

        jobs = {offer: detail(offer) for offer in offers if offer.file in wanted}
        for offer, problem in self._bounded(jobs, stop).items():
            log.info("Intelligent Generation: %s: %s", offer.remote.reference, problem or "no time")
        return tuple(dict(known).values())

    # ------------------------------------------------------------------ inside

    def _search(
        self, hub: Hub, query: SearchQuery, allow_nsfw: bool, ended: Callable[[], None]
    ) -> Sequence[RemoteVersion]:
        key: _Key = (hub, query, allow_nsfw)
        now = self._clock()
        with self._lock:
            at, versions = self._answers.get(key, (float("-inf"), ()))
        if now - at < _KEEP_SECONDS:
            return versions
        client = self._fetcher.civitai(ended) if hub == "civitai" else self._hub(ended)
        versions = client.search(query, allow_nsfw=allow_nsfw, requests=1).versions
        with self._lock:
            self._answers.pop(key, None)
            self._answers[key] = (now, versions)
            while len(self._answers) > _KEEP_ANSWERS:
                del self._answers[next(iter(self._answers))]
        return versions

    def _hub(self, ended: Callable[[], None]) -> Any:
        return self._fetcher.huggingface(ended)

    def _fitting(
        self,
        versions: Sequence[RemoteVersion],
        families: Sequence[str],
        rules: SafetyRules,
        stop: Callable[[], None],
    ) -> list[Offer]:
        fitting = [
            version
            for version in dict.fromkeys(versions)
            if version.kind == "lora"
            and version.family in families
            and not blocked_by(version, rules)
        ]
        self._catalog.remember(fitting)
        found: dict[object, Offer] = {}
        for version in fitting:
            wanted = self._fetcher.offered(version, "lora", stop=stop)
            if wanted is not None:
                offer = Offer(version, wanted.ref, wanted.remote, self._mined(version))
                found.setdefault(wanted.file.sha256 or wanted.ref, offer)
        return list(found.values())

    def _mined(self, version: RemoteVersion) -> Any:
        return self._catalog.registry.get(version.hub, version.model_id, version.version_id).mined

    def _detailed(self, offer: Offer, ended: Callable[[], None]) -> Offer:
        version = offer.version
        if version.hub == "civitai":
            if offer.mined is not None or offer.entry.recommended_weight is not None:
                return offer
            mined = self._fetcher.civitai(ended).settings(version)
            key = (version.hub, version.model_id, version.version_id)
            self._catalog.registry.set_mined(*key, mined)
            return offer._replace(mined=mined)
        whole = self._hub(ended).repository(version.model_id, version.version_id)
        self._catalog.remember([whole])
        wanted = self._fetcher.offered(whole, "lora", stop=ended)
        if wanted is None:
            return offer
        return offer._replace(version=whole, file=wanted.ref, remote=wanted.remote)

    def _bounded(
        self, jobs: Mapping[T, _Job], stop: Callable[[], None]
    ) -> dict[T, IntelligentGenerationError | None]:
        """Do the jobs side by side, for `seconds` at most; those that failed, and why: None when
        they were not done in time. One that is still waiting for an answer then ends by itself
        as soon as it gets one."""
        over = threading.Event()
        problems: dict[T, IntelligentGenerationError | None] = {}
        faults: list[BaseException] = []

        def ended() -> None:
            if over.is_set():
                raise _EndedError

        def run(name: T, job: _Job) -> None:
            try:
                job(ended)
            except _EndedError:
                pass
            except IntelligentGenerationError as problem:
                problems[name] = problem
            except BaseException as fault:
                faults.append(fault)

        threads = {
            name: threading.Thread(target=run, args=(name, job), name="ask hubs", daemon=True)
            for name, job in jobs.items()
        }
        until = self._clock() + self._seconds
        try:
            for thread in threads.values():
                thread.start()
            for thread in threads.values():
                while thread.is_alive() and self._clock() < until:
                    stop()
                    thread.join(_TICK)
        finally:
            over.set()
        late = {name: None for name, thread in threads.items() if thread.is_alive()}
        if faults:
            raise faults[0]
        return late | problems


def _query(hub: Hub, question: Question, families: Sequence[str]) -> SearchQuery:
    if hub == "huggingface":
        # Only the names of repositories are searched, and those are written with hyphens.
        text = "-".join(question.words)
        return SearchQuery(text, kind="lora", families=tuple(families), limit=_PER_QUESTION)
    names = tuple(name for id in families for name in all_families()[id].civitai_names)
    return SearchQuery(
        " ".join(question.words),
        kind="lora",
        base_models=names,
        families=tuple(families),
        limit=_PER_QUESTION,
    )


def _failed(hub: str, problem: IntelligentGenerationError | None, seconds: float) -> Notice:
    if problem is None:
        message = (
            f"{hub} had not answered everything within {seconds:g} s; what came until then was "
            "used. Run again to ask for the rest."
        )
    else:
        message = f"{hub} gave no LoRAs, or not all: {problem}"
    return Notice(level="warning", code="remote_search_failed", message=message)


def _info(message: str) -> Notice:
    return Notice(level="info", code="remote_asked", message=message)
