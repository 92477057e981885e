"""The CivitAI client against a stand-in, over real HTTP."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest
from intelligent_generation.core.errors import (
    HubAccessError,
    HubBusyError,
    HubError,
    HubNotFoundError,
    SettingError,
)
from intelligent_generation.core.hubs import (
    Civitai,
    CivitaiReference,
    HashReference,
    Pace,
    SearchQuery,
)
from intelligent_generation.core.hubs.answers import failure
from intelligent_generation.core.hubs.http import Http
from intelligent_generation.tests.services.civitai import (
    CivitaiServer,
    make_file,
    make_image,
    make_model,
    make_version,
)
from intelligent_generation.tests.services.fixtures import FakeTime
from intelligent_generation.tests.services.server import DROP, Reply, json_reply, page_reply

FAMILIES = {"SDXL 1.0": "sdxl", "SD 1.5": "sd15", "Illustrious": "illustrious", "Pony": "pony"}
NOW = datetime(2026, 6, 1, tzinfo=timezone.utc)


def weights(seed: int, size: int = 1030) -> bytes:
    """A safetensors-like file: an empty header, then bytes."""
    return b"\x02\0\0\0\0\0\0\0{}" + bytes([seed % 251]) * size


def sha(seed: int) -> str:
    return hashlib.sha256(weights(seed)).hexdigest()


def lora(id: int, *, base: str = "SDXL 1.0", version: dict[str, Any] | None = None,
         **fields: Any) -> dict[str, Any]:  # fmt: skip
    file = make_file(id * 100, f"lora-{id}.safetensors", weights(id))
    own = make_version(id * 10, [file], baseModel=base, **(version or {}))
    return make_model(id, f"LoRA {id}", [own], **fields)


Client = Callable[..., Civitai]


@pytest.fixture
def client(civitai_server: CivitaiServer, fake_time: FakeTime) -> Client:
    def make(**options: Any) -> Civitai:
        return Civitai(
            family_of=lambda name: FAMILIES.get(name, "unknown"),
            address=civitai_server.url,
            pace=Pace(1000),
            effects=fake_time.effects,
            now=lambda: NOW,
            **options,
        )

    return make


# ---------------------------------------------------------------------- search


def test_every_result_matches_type_base_model_and_tags(
    civitai_server: CivitaiServer, client: Client
) -> None:
    old = make_version(61, [make_file(611, "old.safetensors", weights(7))], baseModel="SD 1.5")
    new = make_version(60, [make_file(601, "new.safetensors", weights(8))], baseModel="SDXL 1.0")
    civitai_server.models = [
        lora(1), lora(2, base="SD 1.5"), lora(3, type="Checkpoint"), lora(4, tags=["other"]),
        lora(5, type="LoCon", tags=["Style", "extra"]),
        make_model(6, "Two bases", [new, old]),
    ]  # fmt: skip
    query = SearchQuery(kind="lora", base_models=("SD 1.5",), tags=("style",))
    found = client().search(query).versions
    assert {(v.model_id, v.version_id) for v in found} == {("2", "20"), ("6", "61")}
    assert {v.base_model for v in found} == {"SD 1.5"}
    sent = civitai_server.requests[0].query
    assert sent["types"] == ["LORA", "LoCon", "DoRA"]
    assert sent["baseModels"] == ["SD 1.5"]
    both = client().search(SearchQuery(kind="lora", families=("sdxl",), tags=("style", "extra")))
    assert both.versions == ()
    civitai_server.models[4]["tags"] = ["style", "extra"]
    both = client().search(SearchQuery(kind="lora", families=("sdxl",), tags=("style", "extra")))
    assert [v.model_id for v in both.versions] == ["5"]


@pytest.mark.parametrize("text", ["", "lora"])
def test_pages_join_without_gaps_or_repeats(
    civitai_server: CivitaiServer, client: Client, text: str
) -> None:
    civitai_server.models = [
        lora(
            i,
            base="SD 1.5" if i % 3 == 0 else "SDXL 1.0",
            stats={"downloadCount": 1000 - i, "thumbsUpCount": 0},
        )
        for i in range(1, 60)
    ]
    hub, query, found = client(), SearchQuery(text=text, families=("sdxl",), limit=7), []
    while True:
        page = hub.search(query)
        assert len(page.versions) <= 7
        found += [int(v.model_id) for v in page.versions]
        if page.cursor is None:
            break
        query = query._replace(cursor=page.cursor)
    assert found == [i for i in range(1, 60) if i % 3]


def test_sorted_out_results_are_made_up_for_within_bounds(
    civitai_server: CivitaiServer, client: Client
) -> None:
    civitai_server.models = [
        lora(i, tags=["style", "rare"] if i % 40 == 0 else ["style"]) for i in range(1, 201)
    ]
    found, query, pages = [], SearchQuery(tags=("style", "rare"), limit=20), 0
    while True:
        before = len(civitai_server.requests)
        page = client().search(query)
        assert len(civitai_server.requests) - before <= 5
        found += [v.model_id for v in page.versions]
        pages += 1
        if page.cursor is None:
            break
        query = query._replace(cursor=page.cursor)
    assert sorted(map(int, found)) == [40, 80, 120, 160, 200]
    assert pages > 1


def test_safe_for_work_by_default(civitai_server: CivitaiServer, client: Client) -> None:
    civitai_server.models = [
        lora(1), lora(2, nsfw=True), lora(3, nsfwLevel=28), lora(4, nsfwLevel=29),
        lora(5, version={"nsfwLevel": 8}),
    ]  # fmt: skip
    assert {v.model_id for v in client().search(SearchQuery()).versions} == {"1", "4"}
    everything = client().search(SearchQuery(), allow_nsfw=True).versions
    assert {v.model_id for v in everything} == {"1", "2", "3", "4", "5"}
    assert {v.model_id for v in everything if v.nsfw} == {"2", "3", "5"}


@pytest.mark.parametrize("limit", [0, 101])
def test_a_limit_out_of_range(client: Client, limit: int) -> None:
    with pytest.raises(SettingError, match="1 to 100"):
        client().search(SearchQuery(limit=limit))


def test_what_the_hub_has_no_filter_for_finds_nothing(
    civitai_server: CivitaiServer, client: Client
) -> None:
    civitai_server.models = [lora(1)]
    assert client().search(SearchQuery(library="diffusers")).versions == ()
    assert client().search(SearchQuery(kind="text_encoder")).versions == ()


# ---------------------------------------------------------------------- look-up


def test_a_version_in_full(civitai_server: CivitaiServer, client: Client) -> None:
    file = make_file(11, "../Evil Name.safetensors", weights(1))
    config = make_file(12, "training.zip", b"12345678" * 9, type="Training Data", primary=False)
    second = make_file(13, "small.gguf", weights(2), primary=False,
                       metadata={"format": "GGUF", "fp": None, "quantType": "Q4_K_M"})  # fmt: skip
    bad = make_file(14, "bad.ckpt", weights(3), primary=False, pickleScanResult="Danger")
    version = make_version(
        5, [file, config, second, bad], trainedWords=["word, ", "word", " other words "],
        images=[make_image(1, 8), make_image(2, 1, type="video"), make_image(3, 1, minor=True),
                make_image(4, 2)],
    )  # fmt: skip
    civitai_server.models = [
        make_model(
            2, "A name", [version], description="<h1>Hello</h1><p>a &amp; b<br>c</p>",
            allowCommercialUse="{Image,RentCivit}", allowNoCredit=False, tags=["x", "y"],
        )
    ]  # fmt: skip
    found = client().version(5)
    assert (found.hub, found.model_id, found.version_id) == ("civitai", "2", "5")
    assert (found.name, found.kind, found.family) == ("A name v1.0", "lora", "sdxl")
    assert found.trigger_words == ("word", "other words")
    assert found.description == "Hello a & b c"
    assert found.licence == (
        "commercial use: selling images, generation on CivitAI; credit the creator; "
        "merges allowed; other terms on merges not allowed"
    )
    assert found.image == "https://image.example/4.jpeg"
    assert found.tags == ("x", "y")
    assert [f.name for f in found.files] == ["../Evil Name.safetensors", "small.gguf"]
    main, small = found.files
    assert main.url == f"{civitai_server.url}/api/download/models/5"
    assert main.sha256 == hashlib.sha256(weights(1)).hexdigest()
    assert main.size == main.size_about == len(weights(1))
    assert (main.precision, main.format, main.primary) == ("fp16", "safetensors", True)
    assert small.url == f"{civitai_server.url}/api/download/models/5?fileId=13"
    assert (small.precision, small.format, small.primary) == ("q4_k_m", "gguf", False)


@pytest.mark.parametrize(
    ("kilobytes", "size", "about"),
    [(1.5, 1536, 1536), (144128.0, None, 147587072), (144.13, None, 147589), (None, None, None)],
)
def test_a_rounded_size_is_no_promise(
    civitai_server: CivitaiServer, client: Client, kilobytes: float | None, size: Any, about: Any
) -> None:
    civitai_server.models = [lora(1)]
    civitai_server.models[0]["modelVersions"][0]["files"][0]["sizeKB"] = kilobytes
    (file,) = client().version(10).files
    assert (file.size, file.size_about) == (size, about)


def test_a_reference_is_resolved(civitai_server: CivitaiServer, client: Client) -> None:
    empty = make_version(12, [], name="v2")
    model = lora(1)
    model["modelVersions"].insert(0, empty)
    civitai_server.models = [model, lora(2)]
    hub = client()
    assert hub.resolve(CivitaiReference(1)).version_id == "10", "the newest with files"
    assert hub.resolve(CivitaiReference(1, 12)).version_id == "12"
    assert hub.resolve(CivitaiReference(None, 20)).model_id == "2"
    hashes = civitai_server.models[1]["modelVersions"][0]["files"][0]["hashes"]
    for kind in ("SHA256", "AutoV2", "AutoV3"):
        assert hub.resolve(HashReference(hashes[kind].lower(), "sha256")).version_id == "20"
    with pytest.raises(HubNotFoundError, match="civitai:2@20"):
        hub.resolve(CivitaiReference(1, 20))
    with pytest.raises(HubNotFoundError, match="no file 7"):
        hub.file(hub.version(20), CivitaiReference(2, 20, 7))
    assert hub.file(hub.version(20), CivitaiReference(2, 20, 200)).name == "lora-2.safetensors"
    with pytest.raises(HubNotFoundError, match="archived"):
        hub.file(hub.version(12))


def test_a_version_of_a_hidden_model(civitai_server: CivitaiServer, client: Client) -> None:
    civitai_server.models = [lora(1, nsfw=True)]
    civitai_server.hidden = {1}
    found = client().version(10)
    assert (found.model_id, found.name, found.nsfw) == ("1", "LoRA 1 v1.0", True)


def test_what_may_only_be_used_on_the_site(civitai_server: CivitaiServer, client: Client) -> None:
    civitai_server.models = [lora(1, version={"usageControl": "Generation"})]
    version = client().version(10)
    assert version.gated
    with pytest.raises(HubAccessError, match="may be downloaded"):
        client().file(version)


@pytest.mark.parametrize(
    ("fields", "gated"),
    [
        ({"paidAccess": {"permanent": True, "endsAt": None}}, True),
        ({"paidAccess": {"permanent": False, "endsAt": "2026-07-01T00:00:00.12Z"}}, True),
        ({"paidAccess": {"permanent": False, "endsAt": "2026-05-01T00:00:00.000Z"}}, False),
        ({"earlyAccessEndsAt": "2026-07-01T00:00:00Z"}, True),
        ({"earlyAccessDeadline": "2026-05-01T00:00:00Z"}, False),
        ({}, False),
    ],
)
def test_early_access(
    civitai_server: CivitaiServer, client: Client, fields: dict[str, Any], gated: bool
) -> None:
    civitai_server.models = [lora(1, version=fields)]
    assert client().version(10).gated is gated


def test_a_model_marked_for_minors_is_marked(civitai_server: CivitaiServer, client: Client) -> None:
    civitai_server.models = [lora(1, minor=True)]
    assert client().version(10).minor_unsafe


# ---------------------------------------------------------------------- many files at once


def test_many_hashes_take_few_requests(civitai_server: CivitaiServer, client: Client) -> None:
    civitai_server.models = [lora(i) for i in range(1, 251)]
    wanted = [sha(i).upper() for i in range(1, 251)]
    told: list[tuple[int, int]] = []
    found = client().by_hashes([*wanted, "0" * 64], progress=lambda *p: told.append(p))
    assert found.keys() == {value.lower() for value in wanted}
    assert all(found[sha(i)].model_id == str(i) for i in (1, 100, 250))
    assert len(civitai_server.requests) == 1 + 3
    assert told[-1] == (251, 251)
    assert told == sorted(told)
    assert found[sha(3)].tags == ("style",), "tags and safety come with it"


def test_hidden_models_are_found_by_the_other_batch(
    civitai_server: CivitaiServer, client: Client
) -> None:
    civitai_server.models = [lora(1), lora(2)]
    civitai_server.hidden = {2}
    found = client().by_hashes([sha(1), sha(2)])
    assert found[sha(2)].version_id == "20"
    url = found[sha(2)].files[0].url
    assert url == f"{civitai_server.url}/api/download/models/20", "not the address it answers"


def test_an_archived_model_without_files_is_still_recognised(
    civitai_server: CivitaiServer, client: Client
) -> None:
    civitai_server.models = [lora(1, mode="Archived")]
    assert client().by_hashes([sha(1)])[sha(1)].files == ()


def test_what_is_no_hash_is_refused(client: Client) -> None:
    with pytest.raises(SettingError, match="64 hex digits"):
        client().by_hashes(["abc"])


def test_no_hashes_no_requests(civitai_server: CivitaiServer, client: Client) -> None:
    assert client().by_hashes([]) == {}
    assert civitai_server.requests == []


# ---------------------------------------------------------------------- mining


def test_settings_from_sample_images(civitai_server: CivitaiServer, client: Client) -> None:
    civitai_server.models = [lora(1)]
    civitai_server.images[10] = [
        make_image(i) | {"meta": {"cfgScale": 6 + i, "steps": 20 + i, "sampler": "DPM++ 2M Karras",
                                  "civitaiResources": [{"type": "lora", "modelVersionId": 10,
                                                        "weight": 0.6 + i / 10}]}}
        for i in range(3)
    ]  # fmt: skip
    mined = client().settings(client().version(10))
    assert mined == (3, 0.7, 7.0, 21, "dpmpp_2m", "karras", None)


# ---------------------------------------------------------------------- refusals


def test_what_is_not_there(client: Client) -> None:
    for look_up in (client().model, client().version):
        with pytest.raises(HubNotFoundError, match=r"civitai\.red"):
            look_up(999)
    with pytest.raises(HubNotFoundError, match="hash"):
        client().by_hash("a" * 64)


@pytest.mark.parametrize(
    ("prepare", "error", "says"),
    [
        (lambda s: s.models[0].update(mode="Archived"), HubNotFoundError, "archived"),
        (
            lambda s: s.models[0]["modelVersions"][0].update(usageControl="Generation"),
            HubAccessError,
            "disabled its download",
        ),
        (lambda s: s.wants_login.add(10), HubAccessError, "CIVITAI_API_TOKEN"),
        (lambda s: s.early.update({10: "2026-07-01"}), HubAccessError, "early access until 2026"),
        (lambda s: s.forbidden.add(10), HubAccessError, "may not have version 10"),
        (lambda s: s.models.clear(), HubNotFoundError, "has no version 10"),
        (lambda s: setattr(s, "overworked", True), HubBusyError, "Wait some hours"),
    ],
)
def test_each_refusal_of_a_download_has_one_error(
    civitai_server: CivitaiServer, prepare: Any, error: type[HubError], says: str
) -> None:
    civitai_server.models = [lora(1)]
    prepare(civitai_server)
    answer = Http().fetch("GET", f"{civitai_server.url}/api/download/models/10")
    told = failure("civitai", answer, what="version 10", has_token=False)
    assert type(told.error) is error
    assert says in str(told.error)
    assert not told.again


def test_a_token_that_is_not_accepted_is_told_apart_from_none(
    civitai_server: CivitaiServer,
) -> None:
    civitai_server.models = [lora(1)]
    civitai_server.wants_login = {10}
    answer = Http().fetch(
        "GET", f"{civitai_server.url}/api/download/models/10", authorization="Bearer canary-20"
    )
    told = str(failure("civitai", answer, what="it", has_token=True).error)
    assert "does not accept the token" in told
    assert "canary" not in told


def test_limits_and_troubles_pass(
    civitai_server: CivitaiServer, client: Client, fake_time: FakeTime
) -> None:
    civitai_server.models = [lora(1)]
    start = fake_time.now
    civitai_server.fail(
        json_reply({"error": "slow"}, 429, Retry_After="9"),
        DROP,
        json_reply({"error": "search is overloaded"}, 503, Retry_After="2"),
        Reply(200, {"Content-Type": "application/json"}, b'{"items": [', cut_at=5),
    )
    assert client().search(SearchQuery()).versions
    assert len(civitai_server.requests) == 5
    assert fake_time.now - start >= 9 + 2 + 2


def test_a_hub_that_stays_busy_is_given_up(civitai_server: CivitaiServer, client: Client) -> None:
    civitai_server.fail(*[json_reply({"error": "no"}, 502)] * 9)
    with pytest.raises(HubBusyError, match=r"HTTP 502.*5 times"):
        client().model(1)
    assert len(civitai_server.requests) == 5


def test_a_cut_answer_is_asked_for_again(civitai_server: CivitaiServer, client: Client) -> None:
    civitai_server.models = [lora(1)]
    body = b'{"id": 1, "name": "half of it'
    headers = {"Content-Type": "application/json", "Content-Length": "500"}
    civitai_server.fail(Reply(200, headers, body, cut_at=20))
    assert client().model(1)
    assert len(civitai_server.requests) == 2


@pytest.mark.parametrize("reply", [page_reply(), json_reply([1]), json_reply({"items": None})])
def test_a_web_page_or_nonsense_is_no_result(
    civitai_server: CivitaiServer, client: Client, reply: Reply
) -> None:
    civitai_server.fail(reply)
    with pytest.raises(HubError, match="unreadable"):
        client().search(SearchQuery())


def test_a_wall_in_front_of_the_site(civitai_server: CivitaiServer, client: Client) -> None:
    civitai_server.fail(page_reply("<html>Just a moment</html>", 403))
    with pytest.raises(HubAccessError, match="in front of CivitAI"):
        client().model(1)


def test_a_bad_request_repeats_the_hubs_words(
    civitai_server: CivitaiServer, client: Client
) -> None:
    civitai_server.fail(json_reply({"error": {"message": "Invalid enum value"}}, 400))
    with pytest.raises(HubError, match="Invalid enum value"):
        client().search(SearchQuery())


def test_nobody_there(client: Client, civitai_server: CivitaiServer, fake_time: FakeTime) -> None:
    hub = Civitai(family_of=str, address="http://127.0.0.1:9", pace=Pace(1000),
                  effects=fake_time.effects)  # fmt: skip
    with pytest.raises(HubError, match=r"cannot be reached at 127\.0\.0\.1:9 .*5 times"):
        hub.search(SearchQuery(text="canary-21"))


def test_strange_items_are_left_out(civitai_server: CivitaiServer, client: Client) -> None:
    good = lora(1)
    civitai_server.fail(
        json_reply(
            {"items": [None, {"id": "x"}, {"id": 3, "modelVersions": [None, {"id": None}]},
                       {"id": 4, "modelVersions": [{"id": 40, "files": None, "stats": 7,
                                                    "trainedWords": [1], "images": "no"}]},
                       good], "metadata": {}}
        )
    )  # fmt: skip
    found = client().search(SearchQuery()).versions
    assert [v.model_id for v in found] == ["4", "1"]
    assert found[0].files == ()
