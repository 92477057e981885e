"""The Hugging Face client against a stand-in, through the real huggingface_hub."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
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
    HuggingFace,
    HuggingFaceReference,
    Pace,
    SearchQuery,
    cached_repositories,
    delete_cached,
    diffusers_files,
)
from intelligent_generation.tests.services.fixtures import FakeTime
from intelligent_generation.tests.services.huggingface import HuggingFaceServer, Repository
from intelligent_generation.tests.services.server import DROP, Reply, json_reply, page_reply

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
FLUX = "black-forest-labs/FLUX.1-dev"
FAMILIES = {SDXL: "sdxl", FLUX: "flux-dev"}

Client = Callable[..., HuggingFace]


@pytest.fixture
def client(huggingface_server: HuggingFaceServer, fake_time: FakeTime) -> Client:
    def make(**options: Any) -> HuggingFace:
        return HuggingFace(
            family_of=lambda name: FAMILIES.get(name, "unknown"),
            address=huggingface_server.url,
            pace=Pace(1000),
            effects=fake_time.effects,
            **options,
        )

    return make


def lora(id: str, base: Any = SDXL, **fields: Any) -> Repository:
    card = {"base_model": base, "instance_prompt": "sks thing", "license": "mit"}
    files = {"README.md": b"hi", "pytorch_lora_weights.safetensors": id.encode() * 9}
    return Repository(**{"id": id, "files": files, "tags": ["lora"], "card": card} | fields)


# ---------------------------------------------------------------------- search


def test_every_result_matches(huggingface_server: HuggingFaceServer, client: Client) -> None:
    huggingface_server.repositories = [
        lora("a/one", downloads=5), lora("b/two", base=FLUX), lora("c/three", downloads=9),
        Repository("d/four", card={"base_model": SDXL}), lora("e/five", disabled=True),
        lora("f/six", base=[FLUX, SDXL], downloads=7),
        lora("g/seven", tags=["lora", "not-for-all-audiences"]),
    ]  # fmt: skip
    query = SearchQuery(kind="lora", base_models=(SDXL,), task="text-to-image",
                        library="diffusers")  # fmt: skip
    found = client().search(query).versions
    assert [v.model_id for v in found] == ["c/three", "f/six", "a/one"], "by downloads"
    sent = huggingface_server.requests[0].query
    assert sent["filter"] == ["lora", "diffusers", f"base_model:adapter:{SDXL}"]
    assert sent["pipeline_tag"] == ["text-to-image"]
    by_family = client().search(SearchQuery(kind="lora", families=("flux-dev",))).versions
    assert {v.model_id for v in by_family} == {"b/two", "f/six"}
    either = client().search(SearchQuery(kind="lora", base_models=(SDXL, FLUX))).versions
    assert len(either) == 4
    adult = client().search(SearchQuery(text="seven"), allow_nsfw=True).versions
    assert [(v.model_id, v.nsfw) for v in adult] == [("g/seven", True)]


def test_pages_join_without_gaps_or_repeats(
    huggingface_server: HuggingFaceServer, client: Client
) -> None:
    huggingface_server.repositories = [
        lora(f"o/r{i:02}", downloads=100 - i, disabled=i % 5 == 0) for i in range(40)
    ]
    query, found = SearchQuery(limit=6), []
    while True:
        page = client().search(query)
        assert len(page.versions) <= 6
        found += [v.model_id for v in page.versions]
        if page.cursor is None:
            break
        query = query._replace(cursor=page.cursor)
    assert found == [f"o/r{i:02}" for i in range(40) if i % 5]


def test_kinds(huggingface_server: HuggingFaceServer, client: Client) -> None:
    huggingface_server.repositories = [
        lora("a/lora"), Repository("a/model"), Repository("a/vae", tags=["vae"]),
        Repository("a/words", pipeline_tag="text-generation"),
    ]  # fmt: skip
    assert {v.model_id: v.kind for v in client().search(SearchQuery()).versions} == {
        "a/lora": "lora", "a/model": "checkpoint", "a/vae": "vae", "a/words": "other",
    }  # fmt: skip
    found = client().search(SearchQuery(kind="checkpoint")).versions
    assert [v.model_id for v in found] == ["a/model"]


# ---------------------------------------------------------------------- look-up


def test_a_repository_in_full(huggingface_server: HuggingFaceServer, client: Client) -> None:
    repo = lora("owner/a-lora", downloads=3, likes=4, gated="auto")
    repo.files["sub dir/other-fp16.safetensors"] = b"x" * 50
    repo.files["old.ckpt"] = b"pickle"
    huggingface_server.repositories = [repo]
    found = client().resolve(HuggingFaceReference("owner/a-lora"))
    assert (found.hub, found.model_id, found.version_id) == (
        "huggingface", "owner/a-lora", repo.sha,
    )  # fmt: skip
    assert (found.kind, found.base_model, found.family) == ("lora", SDXL, "sdxl")
    assert (found.downloads, found.likes, found.licence) == (3, 4, "mit")
    assert (found.trigger_words, found.creator, found.gated) == (("sks thing",), "owner", True)
    assert found.tags == ("diffusers", "lora")
    files = {file.name: file for file in found.files}
    main = files["pytorch_lora_weights.safetensors"]
    content = repo.files[main.name]
    assert (main.size, main.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert main.primary
    root = f"{huggingface_server.url}/owner/a-lora/resolve/{repo.sha}"
    assert main.url == f"{root}/pytorch_lora_weights.safetensors"
    other = files["sub dir/other-fp16.safetensors"]
    assert (other.url, other.precision, other.primary) == (
        f"{root}/sub%20dir/other-fp16.safetensors", "fp16", False,
    )  # fmt: skip
    assert files["old.ckpt"].format == "ckpt"
    hub = client()
    assert hub.file(found) == main
    assert hub.file(found, other.name) == other
    with pytest.raises(HubNotFoundError, match=r"no file x.safetensors.*It has: pytorch_lora"):
        hub.file(found, "x.safetensors")


def test_a_revision(huggingface_server: HuggingFaceServer, client: Client) -> None:
    huggingface_server.repositories = [lora("a/b", branches=("main", "refs/pr/1"))]
    assert client().repository("a/b", "refs/pr/1").files
    with pytest.raises(HubNotFoundError, match="no such revision: a/b at nowhere"):
        client().repository("a/b", "nowhere")


def test_the_main_file_is_the_largest_at_the_top(
    huggingface_server: HuggingFaceServer, client: Client
) -> None:
    files = {
        "vae/diffusion_pytorch_model.safetensors": b"1" * 900,
        "model_index.json": b"{}",
        "small.safetensors": b"1" * 10,
        "model_0.9vae.safetensors": b"1" * 100,
        "model.safetensors": b"1" * 100,
        "huge.ckpt": b"1" * 999,
    }
    huggingface_server.repositories = [Repository("a/b", files)]
    found = client().repository("a/b")
    assert client().file(found).name == "model.safetensors"
    forms = {file.name: file.format for file in found.files}
    assert forms["vae/diffusion_pytorch_model.safetensors"] == "diffusers"
    assert forms["model_index.json"] == "diffusers"
    assert forms["small.safetensors"] == "safetensors"


def test_a_repository_without_models(huggingface_server: HuggingFaceServer, client: Client) -> None:
    huggingface_server.repositories = [Repository("a/b", {"README.md": b""})]
    with pytest.raises(HubNotFoundError, match="no model files at all"):
        client().file(client().repository("a/b"))


def diffusers(**files: bytes | None) -> Repository:
    """A repository in diffusers format; None takes a file out, `__` stands for `/`."""
    stems = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model",
             "text_encoder": "model", "safety_checker": "model"}  # fmt: skip
    every: dict[str, bytes | None] = {
        f"{folder}/{stem}.safetensors": b"1" for folder, stem in stems.items()
    }
    every |= {"model_index.json": b"{}", "vae/diffusion_pytorch_model.bin": b"3"}
    every |= {name.replace("__", "/"): data for name, data in files.items()}
    return Repository("a/b", {name: data for name, data in every.items() if data is not None})


def parts_of(server: HuggingFaceServer, client: Client, repo: Repository) -> dict[str, list[str]]:
    server.repositories = [repo]
    parts = diffusers_files(client().repository("a/b"))
    return {part.name: [file.name for file in part.files] for part in parts}


PIECES = {f"diffusion_pytorch_model-0000{n}-of-00002.safetensors": b"p" for n in (1, 2)}


def test_the_files_comfyui_needs_of_a_diffusers_repository(
    huggingface_server: HuggingFaceServer, client: Client
) -> None:
    half = "unet/diffusion_pytorch_model.fp16.safetensors"
    vae, text = "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
    found = parts_of(huggingface_server, client, diffusers(**{half: b"2"}))
    assert found == {half: [half], vae: [vae], text: [text]}
    huggingface_server.repositories = [lora("a/lora")]
    with pytest.raises(HubNotFoundError, match="not in diffusers format"):
        diffusers_files(client().repository("a/lora"))
    for lacking in (vae, text, "unet/diffusion_pytorch_model.safetensors"):
        with pytest.raises(HubNotFoundError, match="single-file checkpoint"):
            parts_of(huggingface_server, client, diffusers(**{lacking: None}))


def test_weights_in_pieces_are_taken_in_order_and_only_whole(
    huggingface_server: HuggingFaceServer, client: Client
) -> None:
    unet = "unet/diffusion_pytorch_model.safetensors"
    pieces = {f"transformer/{name}": data for name, data in reversed(PIECES.items())}
    index = {"transformer/diffusion_pytorch_model.safetensors.index.json": b"{}"}
    found = parts_of(huggingface_server, client, diffusers(**pieces, **index, **{unet: None}))
    assert found["transformer/diffusion_pytorch_model.safetensors"] == sorted(pieces)
    half = {name.replace("model-", "model.fp16-"): b"h" for name in pieces}
    found = parts_of(huggingface_server, client, diffusers(**pieces, **half, **{unet: None}))
    assert found["transformer/diffusion_pytorch_model.fp16.safetensors"] == sorted(half)
    pieces.popitem()
    with pytest.raises(HubNotFoundError, match="only 1 of 2 pieces of transformer"):
        parts_of(huggingface_server, client, diffusers(**pieces, **{unet: None}))


def test_two_diffusion_models_are_too_many(
    huggingface_server: HuggingFaceServer, client: Client
) -> None:
    second = {"transformer/diffusion_pytorch_model.safetensors": b"t"}
    with pytest.raises(HubNotFoundError, match="several diffusion models, unet and transformer"):
        parts_of(huggingface_server, client, diffusers(**second))


# ---------------------------------------------------------------------- refusals


def test_what_is_not_there_or_private(
    huggingface_server: HuggingFaceServer, client: Client
) -> None:
    huggingface_server.repositories = [
        lora("a/private", private=True),
        lora("a/off", disabled=True),
    ]
    huggingface_server.tokens = {"good"}
    for repo in ("a/none", "a/private"):
        with pytest.raises(HubNotFoundError, match=r"or it is private.*set a token"):
            client().repository(repo)
    with pytest.raises(HubNotFoundError, match="use a token that may read it"):
        client(token=lambda: "good").repository("a/none")
    assert client(token=lambda: "good").repository("a/private")
    with pytest.raises(HubNotFoundError, match="disabled"):
        client().repository("a/off")


def test_a_token_that_is_not_accepted(
    huggingface_server: HuggingFaceServer, client: Client
) -> None:
    huggingface_server.repositories = [lora("a/b")]
    with pytest.raises(HubAccessError, match="does not accept the token") as caught:
        client(token=lambda: "canary-30").repository("a/b")
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("has_token", [True, False])
def test_terms_to_accept(
    huggingface_server: HuggingFaceServer, client: Client, has_token: bool
) -> None:
    reply = json_reply(
        {"error": "restricted"}, 403 if has_token else 401, X_Error_Code="GatedRepo",
        X_Error_Message="Access to model a/b is restricted.",
    )  # fmt: skip
    huggingface_server.fail(reply)
    says = "Accept them on its page" if has_token else "then set a token"
    with pytest.raises(HubAccessError, match=says):
        client(token=lambda: "good" if has_token else None).repository("a/b")


def test_no_other_login_is_used(
    huggingface_server: HuggingFaceServer,
    client: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-31")
    huggingface_server.repositories = [lora("a/b")]
    client().repository("a/b")
    client().search(SearchQuery())
    assert not any(request.holds("canary-31") for request in huggingface_server.requests)


def test_limits_and_troubles_pass(
    huggingface_server: HuggingFaceServer, client: Client, fake_time: FakeTime
) -> None:
    huggingface_server.repositories = [lora("a/b")]
    for look_up in (lambda: client().repository("a/b"), lambda: client().search(SearchQuery())):
        start = fake_time.now
        limit = json_reply({}, 429, RateLimit='"api";r=0;t=55')
        huggingface_server.fail(limit, DROP, json_reply({}, 503))
        assert look_up()
        assert fake_time.now - start >= 55


def test_a_hub_that_stays_busy_is_given_up(
    huggingface_server: HuggingFaceServer, client: Client
) -> None:
    huggingface_server.fail(*[json_reply({}, 500)] * 9)
    with pytest.raises(HubBusyError, match=r"HTTP 500.*5 times"):
        client().repository("a/b")
    assert len(huggingface_server.requests) == 5


@pytest.mark.parametrize("reply", [page_reply(), json_reply([1]), json_reply({})])
def test_a_web_page_or_nonsense_is_no_result(
    huggingface_server: HuggingFaceServer, client: Client, reply: Reply
) -> None:
    huggingface_server.fail(reply, reply)
    with pytest.raises(HubError, match="unreadable"):
        client().repository("a/b")
    with pytest.raises(HubError, match="unreadable"):
        client().search(SearchQuery())


def test_nobody_there(client: Client, fake_time: FakeTime) -> None:
    hub = HuggingFace(family_of=str, address="http://127.0.0.1:9", pace=Pace(1000),
                      effects=fake_time.effects)  # fmt: skip
    with pytest.raises(HubError, match=r"cannot be reached at 127\.0\.0\.1:9 .*5 times"):
        hub.repository("a/b")


def test_a_name_that_is_none(client: Client) -> None:
    with pytest.raises(SettingError, match="no name of a Hugging Face repository"):
        client().repository("a--b..c/../d")


def test_the_token_is_not_forwarded(huggingface_server: HuggingFaceServer, client: Client) -> None:
    huggingface_server.repositories = [lora("a/b")]
    huggingface_server.tokens = {"canary-32"}
    with HuggingFaceServer() as far:
        far.repositories = [lora("a/b")]
        away = Reply(307, {"Location": f"{far.url}/api/models/a/b?blobs=true"})
        huggingface_server.fail(away)
        assert client(token=lambda: "canary-32").repository("a/b").model_id == "a/b"
        assert huggingface_server.requests[0].token == "canary-32"
        assert far.requests
        assert not any(request.holds("canary-32") for request in far.requests)


def test_the_cache_of_others_is_listed_and_emptied(tmp_path: Path) -> None:
    assert cached_repositories(tmp_path / "none") == ()
    for name, size in (("one", 10), ("two", 500)):
        repo, commit = tmp_path / f"models--o--{name}", name[0] * 40
        (repo / "blobs").mkdir(parents=True)
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text(commit)
        (repo / "snapshots" / commit).mkdir(parents=True)
        (repo / "snapshots" / commit / "a.safetensors").write_bytes(b"1" * size)
    found = cached_repositories(tmp_path)
    assert [(r.repo, r.commits, r.size) for r in found] == [
        ("o/two", ("t" * 40,), 500), ("o/one", ("o" * 40,), 10),
    ]  # fmt: skip
    with pytest.raises(SettingError, match="has no commit"):
        delete_cached(["x"], tmp_path)
    assert delete_cached(["t" * 40], tmp_path) == 500
    assert [r.repo for r in cached_repositories(tmp_path)] == ["o/one"]
