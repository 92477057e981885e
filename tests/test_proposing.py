"""What hubs are asked and what they offer: the real clients against the loopback hubs."""

from __future__ import annotations

import operator
import threading
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from intelligent_generation.core.catalog import Catalog, DiskCache, LoraLibrary, lora_fit
from intelligent_generation.core.catalog.entries import LoraEntry
from intelligent_generation.core.fetching import Fetcher
from intelligent_generation.core.hubs import Credentials, SafetyRules
from intelligent_generation.core.plan import FileRef, LoraPlan, PromptAnalysis
from intelligent_generation.core.prompting import analyze
from intelligent_generation.core.proposing import Offers, Proposer
from intelligent_generation.core.recommending import (
    Question,
    RecommendSettings,
    questions,
    recommend,
    with_offers,
)
from intelligent_generation.core.recommending.index import Index, index_of
from intelligent_generation.core.storage import Database
from intelligent_generation.tests.services.civitai import (
    CivitaiServer,
    make_file,
    make_model,
    make_version,
)
from intelligent_generation.tests.services.fixtures import (  # noqa: F401
    civitai_server,
    huggingface_server,
)
from intelligent_generation.tests.services.huggingface import HuggingFaceServer, Repository
from intelligent_generation.tests.services.server import Reply, Request, json_reply

NOW = datetime(2026, 8, 1, tzinfo=timezone.utc)
CONTENT = b"\x02\0\0\0\0\0\0\0{}"
ASKED = (Question("pixel art", ("pixel", "art")),)
SAFE = SafetyRules()
EMPTY = LoraLibrary((), (), "none")


class StoppedError(Exception):
    pass


class World(NamedTuple):
    civitai: CivitaiServer
    huggingface: HuggingFaceServer
    folder: Path
    fetcher: Fetcher
    catalog: Catalog

    def offer(self, id: int, name: str, *, version: dict[str, Any] | None = None, **model: Any):
        content = CONTENT + str(id).encode()
        file = make_file(id, f"{name.replace(' ', '_')}.safetensors", content)
        row = make_version(id * 10, [file], **{"baseModel": "SD 1.5", **(version or {})})
        self.civitai.models.append(make_model(id, name, [row], **model))
        return content

    def ask(
        self,
        asked: Sequence[Question] = ASKED,
        *,
        rules: SafetyRules = SAFE,
        seconds: float = 20.0,
        stop: Any = lambda: None,
        proposer: Proposer | None = None,
    ) -> Offers:
        asker = proposer or Proposer(self.fetcher, self.catalog, seconds=seconds)
        return asker.ask(asked, family="sd15", rules=rules, stop=stop)

    @property
    def asked(self) -> int:
        return len(self.civitai.requests) + len(self.huggingface.requests)


@pytest.fixture
def world(
    tmp_path: Path,
    civitai_server: CivitaiServer,  # noqa: F811
    huggingface_server: HuggingFaceServer,  # noqa: F811
) -> Iterator[World]:
    folder = tmp_path / "models"
    database = Database.open(f"sqlite:///{tmp_path / 'data.db'}")
    catalog = Catalog(database, lambda key: [folder / key])
    fetcher = Fetcher(
        catalog,
        DiskCache(database, catalog, now=lambda: NOW),
        Credentials(tmp_path / "tokens", {}),
        lambda key: [folder / key],
        civitai=civitai_server.url,
        huggingface=huggingface_server.url,
        per_second=1000,
    )
    yield World(civitai_server, huggingface_server, folder, fetcher, catalog)
    database.close()


def analysis(prompt: str) -> PromptAnalysis:
    return analyze(prompt)


def names(offers: Offers) -> list[str]:
    return [offer.version.name for offer in offers.found]


def codes(offers: Offers) -> list[str]:
    return [notice.code for notice in offers.notices]


# --------------------------------------------------------------------------- what is asked


def test_a_clause_that_nothing_serves_is_a_question_and_praise_is_none() -> None:
    plan = LoraPlan(family="sd15", segments=("x",))
    found = questions(
        analysis("masterpiece, best quality, a girl with an umbrella, pixel art, 8k, pixel art"),
        plan,
    )
    assert [question.words for question in found] == [("girl", "umbrella"), ("pixel", "art")]


def test_served_clauses_are_not_asked_about_and_few_words_go_out() -> None:
    prompt = "pixel art, " + " ".join(f"word{n}" for n in range(40))
    alone = LoraPlan(family="sd15", segments=("x",))
    found = questions(analysis(prompt), alone)
    assert [len(question.words) for question in found] == [2, 6]
    (chinese,) = questions(analysis("水墨画风格的山水" * 20), alone)
    assert len(chinese.words) == 1 and len(chinese.words[0]) == 60
    library, remote = with_offers(EMPTY, ())
    assert library.entries == () and not remote


# --------------------------------------------------------------------------- what is offered


def test_each_hub_is_asked_once_for_each_question(world: World) -> None:
    content = world.offer(1, "Pixel Art Perfect", version={"trainedWords": ["pixel art"]})
    world.huggingface.repositories = [
        Repository("org/pixel-art-tiny", {"a.safetensors": CONTENT}, tags=["lora"],
                   card={"base_model": "runwayml/stable-diffusion-v1-5", "license": "mit"}),
    ]  # fmt: skip
    asked = (*ASKED, Question("old harbour", ("old", "harbour")))
    offers = world.ask(asked)
    assert names(offers) == ["Pixel Art Perfect v1.0", "pixel-art-tiny"]
    assert [request.first("query") for request in world.civitai.requests] == [
        "pixel art", "old harbour",
    ]  # fmt: skip
    assert [request.first("search") for request in world.huggingface.requests] == [
        "pixel-art", "old-harbour",
    ]  # fmt: skip
    (request, _) = world.civitai.requests
    assert request.query["nsfw"] == ["false"] and "SD 1.5" in request.query["baseModels"]
    first, second = offers.found
    assert first.remote.reference == "civitai:1@10" and first.remote.size == len(content)
    assert first.remote.base_model == "SD 1.5" and "commercial use" in first.remote.licence
    assert first.file.name == "Pixel_Art_Perfect.safetensors" and first.file.sha256
    assert second.remote.licence == "mit"
    (notice,) = offers.notices
    assert notice.level == "info" and '"pixel art", "old harbour"' in notice.message
    assert offers.complete and not list(world.folder.rglob("*"))


def test_at_most_six_questions_are_asked(world: World) -> None:
    offers = world.ask([Question(f"thing {n}", ("thing", str(n))) for n in range(9)])
    assert len(world.civitai.requests) == 6
    assert "3 more clauses were not asked about" in offers.notices[0].message


def test_the_same_question_is_not_asked_again(world: World) -> None:
    proposer = Proposer(world.fetcher, world.catalog)
    world.offer(1, "Pixel Art Perfect")
    first = world.ask(proposer=proposer)
    asked = world.asked
    assert world.ask(proposer=proposer) == first and world.asked == asked


@pytest.mark.parametrize(
    "fields",
    [
        {"nsfw": True},
        {"minor": True},
        {"tags": ["gore"]},
        {"version": {"baseModel": "SDXL 1.0"}},
        {"version": {"paidAccess": {"permanent": True, "endsAt": None}}},
        {"type": "Checkpoint"},
    ],
    ids=str,
)
def test_what_is_unsafe_or_of_no_use_is_not_offered(world: World, fields: dict[str, Any]) -> None:
    world.offer(1, "Pixel Art Bad", **fields)
    world.offer(2, "Pixel Art Good")
    assert names(world.ask(rules=SafetyRules(blocked_tags=("gore",)))) == ["Pixel Art Good v1.0"]


def test_what_is_on_disk_is_not_offered(world: World) -> None:
    content = world.offer(1, "Pixel Art Perfect")
    mine = world.folder / "loras" / "mine.safetensors"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(content)
    world.catalog.sha256(mine)
    assert names(world.ask()) == []


def test_a_name_that_is_taken_is_not_used_twice(world: World) -> None:
    world.offer(1, "Pixel Art Perfect")
    other = world.folder / "loras" / "Pixel_Art_Perfect.safetensors"
    other.parent.mkdir(parents=True)
    other.write_bytes(CONTENT + b"other")
    (offer,) = world.ask().found
    assert offer.file.name == "Pixel_Art_Perfect-civitai-10-1.safetensors"


# --------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (json_reply({"error": "Unauthorized"}, 401), "wants a login"),
        (json_reply({"error": "slow"}, 429, Retry_After="4000"), "wait 67 minutes"),
        (Reply(200, {"Content-Type": "text/html"}, b"<html>"), "something unreadable"),
    ],
    ids=["401", "429", "page"],
)
def test_a_hub_that_refuses_is_a_notice_and_the_other_is_used(
    world: World, reply: Reply, says: str
) -> None:
    world.huggingface.repositories = [
        Repository("org/pixel-art-tiny", {"a.safetensors": CONTENT}, tags=["lora"],
                   card={"base_model": "runwayml/stable-diffusion-v1-5"}),
    ]  # fmt: skip
    world.civitai.fail(reply)
    offers = world.ask()
    assert names(offers) == ["pixel-art-tiny"] and not offers.complete
    assert codes(offers) == ["remote_asked", "remote_search_failed"]
    assert says in offers.notices[1].message and offers.notices[1].level == "warning"


def test_a_wrong_token_is_a_notice_without_the_token(world: World, tmp_path: Path) -> None:
    Credentials(tmp_path / "tokens", {}).set("huggingface", "canary-55")
    world.offer(1, "Pixel Art Perfect")
    offers = world.ask()
    assert names(offers) == ["Pixel Art Perfect v1.0"]
    assert "does not accept the token" in offers.notices[1].message
    assert "canary" not in repr(offers)


def test_hubs_that_are_not_there_are_notices(world: World) -> None:
    for hub in ("civitai", "huggingface"):
        world.fetcher._addresses[hub] = "http://127.0.0.1:9"  # nothing listens there
    offers = world.ask(seconds=0.5)
    assert codes(offers) == ["remote_asked", *["remote_search_failed"] * 2]
    assert not offers.found and not offers.complete


def test_a_silent_hub_costs_the_time_allowed_and_what_came_is_used(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.offer(1, "Pixel Art Perfect")
    answer, go_on = HuggingFaceServer.answer, threading.Event()

    def silent(self: HuggingFaceServer, request: Request) -> Reply:
        go_on.wait(60)
        return answer(self, request)

    monkeypatch.setattr(HuggingFaceServer, "answer", silent)

    def clock() -> float:
        # The time is over as soon as CivitAI has answered.
        return 100.0 if any(hub == "civitai" for hub, *_ in proposer._answers) else 0.0

    proposer = Proposer(world.fetcher, world.catalog, clock=clock)
    offers = world.ask(proposer=proposer)
    go_on.set()
    assert names(offers) == ["Pixel Art Perfect v1.0"]
    assert "Hugging Face had not answered everything within 20 s" in offers.notices[1].message


def test_texts_that_are_none_do_no_harm(world: World) -> None:
    odd = "pixel \ud83d\0!"
    version = {"trainedWords": [odd], "name": odd}
    world.offer(1, "Pixel Art", description=odd, tags=[odd, "style"], version=version)
    world.huggingface.repositories = [
        Repository("org/pixel-art", {"a.safetensors": CONTENT}, tags=["lora"],
                   card={"base_model": "runwayml/stable-diffusion-v1-5", "license_name": odd,
                         "instance_prompt": odd}),
    ]  # fmt: skip
    offers = world.ask()
    assert names(offers) == ["Pixel Art pixel ?!", "pixel-art"]
    assert LoraPlan.from_json(planned(world, "pixel art", offers.found).to_json()).pending


def test_an_interrupt_ends_it_at_once(world: World) -> None:
    for _ in range(4):
        world.civitai.fail(json_reply({"error": "slow"}, 429, Retry_After="60"))
    asked: list[int] = []

    def stop() -> None:
        asked.append(1)
        if len(asked) > 5:
            raise StoppedError

    with pytest.raises(StoppedError):
        world.ask(stop=stop)


# --------------------------------------------------------------------------- into a plan


def planned(world: World, prompt: str, offers: Sequence[Any]) -> LoraPlan:
    library, remote = with_offers(EMPTY, offers)
    return recommend(
        analysis(prompt),
        library,
        family="sd15",
        fit=lora_fit,
        settings=RecommendSettings(min_confidence=0.2),
        remote=remote,
    )


def test_indexes_are_kept_while_the_offers_are_the_same(world: World) -> None:
    files = [FileRef(folder="loras", name=f"own {n}.safetensors") for n in range(3)]
    entries = (LoraEntry(file, file.name, "sd15", None, 1.0, "test") for file in files)
    own = LoraLibrary(tuple(entries), (), "own")
    world.offer(1, "Pixel Art Perfect")

    def indexes() -> list[Index]:
        offers = world.ask().found
        libraries = (own, with_offers(EMPTY, offers)[0], with_offers(own, offers)[0])
        return [index_of(library) for library in libraries]

    first, second = indexes(), indexes()
    assert [len(index.entries) for index in first] == [3, 1, 4]
    assert all(map(operator.is_, first, second))
    world.offer(2, "Pixel Art Other")
    assert [len(index.entries) for index in indexes()] == [3, 2, 5]


def test_details_come_for_those_that_would_be_taken(world: World) -> None:
    world.offer(1, "Pixel Art Perfect", version={"trainedWords": ["pixel art"]})
    meta = {"meta": {"civitaiResources": [{"type": "lora", "weight": 0.65, "modelVersionId": 10}]}}
    world.civitai.images[10] = [{"id": n, **meta} for n in range(4)]
    world.huggingface.repositories = [
        Repository("org/mecha-armor", {"a.safetensors": CONTENT}, tags=["lora"],
                   card={"base_model": "runwayml/stable-diffusion-v1-5"}),
        Repository("org/mecha-armor-xl", {"a.safetensors": CONTENT}, tags=["lora"],
                   card={"base_model": "stabilityai/stable-diffusion-xl-base-1.0"}),
    ]  # fmt: skip
    prompt = "pixel art, mecha armor"
    proposer = Proposer(world.fetcher, world.catalog)
    asked = questions(analysis(prompt), LoraPlan(family="sd15", segments=("",)))
    offers = proposer.ask(asked, family="sd15", rules=SAFE, stop=lambda: None)
    first = planned(world, prompt, offers.found)
    assert [lora.title for lora in first.pending] == ["Pixel Art Perfect v1.0", "mecha-armor"]
    found = proposer.look_up(offers.found, first, stop=lambda: None)
    plan = planned(world, prompt, found)
    pixel, mecha = plan.pending
    assert pixel.model_strength == 0.65, "that of the sample images"
    assert mecha.file.size == len(CONTENT) and mecha.file.sha256 and mecha.remote
    sha = world.huggingface.repositories[0].sha
    assert mecha.remote.reference == f"hf:org/mecha-armor@{sha}/a.safetensors"
    assert LoraPlan.from_json(plan.to_json()) == plan
