"""Downloads through /prompt: a real ComfyUI whose hubs are the loopback stand-ins."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from intelligent_generation.scripts.comfyui import (
    Client,
    ComfyUI,
    PromptFailedError,
    PromptRefusedError,
    link_model,
    prepare_base,
)
from intelligent_generation.scripts.sample_library import write_library
from intelligent_generation.scripts.sample_models import sample_model
from intelligent_generation.tests.services.civitai import (
    CivitaiServer,
    make_file,
    make_model,
    make_version,
)
from intelligent_generation.tests.services.huggingface import HuggingFaceServer, Repository
from intelligent_generation.tests.services.server import json_reply
from intelligent_generation.tests.services.storage import FileHost
from PIL import Image
from safetensors.numpy import load_file, save

CANARY = "canary-7c2e91"
CHECKPOINT = "small-sd15.safetensors"
CLIP = "small-clip-l.safetensors"
UNET = "small-sd3.safetensors"
VAE = "small-taesd3.safetensors"


class Hubs(NamedTuple):
    host: ComfyUI
    client: Client
    civitai: CivitaiServer
    huggingface: HuggingFaceServer
    storage: FileHost
    ink: bytes
    """What CivitAI's LoRA 101@1001 holds."""

    @property
    def asked(self) -> int:
        servers = (self.civitai, self.huggingface, self.storage)
        return sum(len(server.requests) for server in servers)

    def sent(self, path: str) -> int:
        """How often the storage host was asked for this file."""
        return sum(seen.path.startswith(path) for seen in self.storage.requests)

    def loras(self) -> set[str]:
        return {path.name for path in self.host.base.models("loras").iterdir()}


@pytest.fixture(scope="module")
def hubs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hubs]:
    folder = tmp_path_factory.mktemp("hubs")
    base = prepare_base(folder / "comfyui")
    link_model(sample_model(CHECKPOINT), base.models("checkpoints"))
    write_library(folder / "library")
    ink, harbour, mosaic = (
        (folder / "library" / f"{name}.safetensors").read_bytes()
        for name in ("dusk-light", "misty_mountains", "watercolor_wash_v2")
    )
    with CivitaiServer() as civitai, HuggingFaceServer() as hub, FileHost() as storage:
        civitai.locate = lambda file: storage.url(f"/{file['id']}?signature=x", "localhost")
        for model, version, name, content, word in (
            (101, 1001, "ink", ink, "zinkwash"),
            (102, 1002, "bad", harbour, "zinkwash"),
            (103, 1003, "mosaic_tiles", mosaic, "mosaic tiles"),
        ):
            storage.put(f"/{version}", content)
            file = make_file(version, f"{name}.safetensors", content)
            row = make_version(version, [file], baseModel="SD 1.5", trainedWords=[word])
            civitai.models.append(make_model(model, name.replace("_", " ").title(), [row]))
        storage.put("/1002", harbour[:-1] + b"!")
        hub.repositories = [
            Repository("org/tiny", {
                f"split_files/diffusion_models/{UNET}": sample_model(UNET).read_bytes(),
                f"split_files/vae/{VAE}": sample_model(VAE).read_bytes(),
            }, card={"license": "mit"}),
            Repository("org/pipeline", pipeline(), card={"license": "apache-2.0"}),
        ]  # fmt: skip
        hub.locate = lambda repo, name: storage.url(f"/{name}", "localhost")
        for repo in hub.repositories:
            for name, content in repo.files.items():
                storage.put(f"/{name}", content)
        civitai.tokens = hub.tokens = {CANARY}
        environment = {"CIVITAI_ENDPOINT": civitai.url, "HF_ENDPOINT": hub.url, "HF_TOKEN": CANARY}
        with ComfyUI(base, cpu=True, environment=environment) as host:
            yield Hubs(host, host.client(), civitai, hub, storage, ink)


def pipeline() -> dict[str, bytes]:
    """The small SD 3 as a repository in diffusers format, its transformer in two pieces."""
    tensors = in_diffusers_names(load_file(sample_model(UNET)))
    names = sorted(tensors)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    pieces = {f"diffusion_pytorch_model-0000{n}-of-00002.safetensors": half
              for n, half in enumerate(halves, 1)}  # fmt: skip
    weights = {name: save({key: tensors[key] for key in half}) for name, half in pieces.items()}
    map_of = {key: name for name, half in pieces.items() for key in half}
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}}
    weights["diffusion_pytorch_model.safetensors.index.json"] = json.dumps(
        index | {"weight_map": map_of}
    ).encode()
    return {
        "model_index.json": b'{"_class_name": "StableDiffusion3Pipeline"}',
        **{f"transformer/{name}": data for name, data in weights.items()},
        "text_encoder/model.safetensors": sample_model(CLIP).read_bytes(),
        "vae/diffusion_pytorch_model.safetensors": sample_model(VAE).read_bytes(),
    }


def in_diffusers_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An SD 3 transformer of one block as diffusers' SD3Transformer2DModel saves it."""
    block = "transformer_blocks.0"
    names = {
        "x_embedder.proj": "pos_embed.proj",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "context_embedder": "context_embedder",
        "joint_blocks.0.context_block.adaLN_modulation.1": f"{block}.norm1_context.linear",
        "joint_blocks.0.x_block.attn.proj": f"{block}.attn.to_out.0",
        "joint_blocks.0.x_block.mlp.fc1": f"{block}.ff.net.0.proj",
        "joint_blocks.0.x_block.mlp.fc2": f"{block}.ff.net.2",
        "joint_blocks.0.x_block.adaLN_modulation.1": f"{block}.norm1.linear",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": "norm_out.linear",
    }
    found: dict[str, np.ndarray] = {}
    for key, tensor in tensors.items():
        stem, _, end = key.rpartition(".")
        if stem.endswith("attn.qkv"):
            own = ("to_q", "to_k", "to_v")
            if ".context_block." in stem:
                own = ("add_q_proj", "add_k_proj", "add_v_proj")
            for name, part in zip(own, np.split(tensor, 3), strict=True):
                found[f"{block}.attn.{name}.{end}"] = np.ascontiguousarray(part)
        elif names[stem] in ("norm_out.linear", f"{block}.norm1_context.linear"):
            shift, scale = np.split(tensor, 2)  # diffusers has them the other way round
            found[f"{names[stem]}.{end}"] = np.concatenate([scale, shift])
        else:
            found[f"{names[stem]}.{end}"] = tensor
    return found


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def fetch_lora(references: str, **inputs: Any) -> dict[str, Any]:
    return {
        "fetcher": node("CivitAILoRAFetcher", references=references, **inputs),
        "text": node("PreviewAny", source=["fetcher", 4]),
    }


def load_model(reference: str, **inputs: Any) -> dict[str, Any]:
    return {
        "loader": node(
            "HubModelLoader", source="Hugging Face", model="", vae="automatic",
            variant="automatic", reference=reference, **inputs,
        ),
        "text": node("PreviewAny", source=["loader", 4]),
    }  # fmt: skip


def text_of(run: Any) -> str:
    return "".join(run.outputs["text"]["text"])


def test_a_lora_by_its_address_is_asked_for_then_fetched_then_there(hubs: Hubs) -> None:
    client, civitai = hubs.client, hubs.civitai
    answer = client._session.put(
        f"{hubs.host.url}/intelligent_generation/credentials/civitai", json={"token": CANARY}
    )
    assert answer.json() == {"huggingface": "set", "civitai": "set"}
    address = f"{civitai.url}/models/101/ink?modelVersionId=1001 0.6"
    with pytest.raises(PromptFailedError, match="allow_download is off") as caught:
        client.run(fetch_lora(address))
    for part in ("ink.safetensors", "SD 1.5", "licence: commercial use"):
        assert part in str(caught.value)
    assert not hubs.storage.requests and hubs.loras() == set()

    run = client.run(fetch_lora(address, allow_download=True))
    assert "Downloaded ink.safetensors" in text_of(run) and "zinkwash" in text_of(run)
    assert "at 0.6: on disk" in text_of(run)
    assert any(step.node == "fetcher" and step.value == step.total for step in run.steps)
    assert (hubs.host.base.models("loras") / "ink.safetensors").read_bytes() == hubs.ink

    asked = hubs.asked
    for same in (address, "civitai:101@1001", "urn:air:sd1:lora:civitai:101@1001"):
        assert "Downloaded" not in text_of(client.run(fetch_lora(same)))
    assert hubs.asked == asked, "what is there costs no request"


def test_a_fetched_lora_makes_the_image_that_the_stock_loader_makes(
    hubs: Hubs, stock_graph
) -> None:
    graph = stock_graph("a heron", loras=[("ink.safetensors", 0.6, 0.6)], seed=7)
    expected = _pixels(hubs, hubs.client.run(graph))
    graph["lora-0"] = node(
        "CivitAILoRAFetcher", references="civitai:101@1001 0.6", allow_download=True,
        model=["checkpoint", 0], clip=["checkpoint", 1],
    )  # fmt: skip
    graph["sampler"]["inputs"]["model"] = ["lora-0", 2]
    for name in ("positive", "negative"):
        graph[name]["inputs"]["clip"] = ["lora-0", 3]
    assert _pixels(hubs, hubs.client.run(graph)) == expected


def _pixels(hubs: Hubs, run: Any) -> bytes:
    (image,) = run.images()
    return Image.open(io.BytesIO(hubs.client.view(image))).convert("RGB").tobytes()


def test_content_with_a_wrong_hash_never_gets_the_name(hubs: Hubs) -> None:
    with pytest.raises(PromptFailedError, match="not what CivitAI lists"):
        hubs.client.run(fetch_lora("civitai:102", allow_download=True))
    assert "bad.safetensors" not in hubs.loras()
    assert any(name.startswith("bad.") and name.endswith(".mismatch") for name in hubs.loras())


def test_a_split_file_of_hugging_face_is_fetched_and_loaded(hubs: Hubs) -> None:
    reference = f"hf:org/tiny/split_files/diffusion_models/{UNET}"
    with pytest.raises(PromptFailedError, match=r"allow_download is off(?s:.*)licence: mit"):
        hubs.client.run(load_model(reference))
    run = hubs.client.run(load_model(reference, allow_download=True))
    assert text_of(run) in ("sd3", "sd35")
    folder = hubs.host.base.models("diffusion_models")
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")] == [
        f"org/tiny/split_files/diffusion_models/{UNET}"
    ]
    asked = hubs.asked
    again = hubs.client.run(load_model(reference, allow_download=True))
    assert "loader" in again.cached, "a download alone does not make it load again"
    hubs.client.free()
    hubs.client.run(load_model(reference))
    assert hubs.asked == asked


def test_a_vae_on_a_line_of_its_own_comes_with_the_model(hubs: Hubs) -> None:
    lines = [f"hf:org/tiny/split_files/{name}" for name in (f"diffusion_models/{UNET}",
                                                            f"vae/{VAE}")]  # fmt: skip
    graph = load_model("\n".join(lines), allow_download=True)
    graph["latent"] = node("EmptySD3LatentImage", width=64, height=64, batch_size=1)
    graph["decode"] = node("VAEDecode", samples=["latent", 0], vae=["loader", 2])
    graph["image"] = node("PreviewImage", images=["decode", 0])
    assert hubs.client.run(graph).outputs["image"]["images"]
    assert (hubs.host.base.models("vae") / "org/tiny/split_files/vae" / VAE).is_file()
    with pytest.raises(PromptFailedError, match="must name one checkpoint or diffusion model"):
        hubs.client.run(load_model(lines[1]))


def test_a_diffusers_repository_in_pieces_makes_the_image_that_single_files_make(
    hubs: Hubs,
) -> None:
    link_model(sample_model(CLIP), hubs.host.base.models("text_encoders"))

    def image_of(**loader: Any) -> bytes:
        graph = {
            "loader": node("HubModelLoader", **{"model": "", "vae": "automatic",
                                                "variant": "automatic", **loader}),
            "text": node("CLIPTextEncode", text="a heron", clip=["loader", 1]),
            "latent": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
            "sampler": node(
                "KSampler", model=["loader", 0], positive=["text", 0], negative=["text", 0],
                latent_image=["latent", 0], seed=3, steps=2, cfg=1.0, sampler_name="euler",
                scheduler="normal", denoise=1.0,
            ),
            "decode": node("VAEDecode", samples=["sampler", 0], vae=["loader", 2]),
            "image": node("PreviewImage", images=["decode", 0]),
        }  # fmt: skip
        run = hubs.client.run(graph)
        (image,) = run.outputs["image"]["images"]
        return Image.open(io.BytesIO(hubs.client.view(image))).convert("RGB").tobytes()

    reference = {"source": "Hugging Face", "reference": "hf:org/pipeline"}
    with pytest.raises(PromptFailedError, match=r"(?s:licence: apache-2.0.*){2}"):
        image_of(**reference)
    made = image_of(**reference, allow_download=True)
    single = hubs.host.base.models("diffusion_models") / "org/pipeline/transformer"
    assert [path.name for path in single.iterdir()] == ["diffusion_pytorch_model.safetensors"]
    link_model(sample_model(UNET), hubs.host.base.models("diffusion_models"))
    link_model(sample_model(VAE), hubs.host.base.models("vae"))
    assert made == image_of(
        source="local", model=f"diffusion_models/{UNET}", vae=VAE, text_encoder_1=CLIP
    )


def test_what_a_hub_lacks_is_said(hubs: Hubs) -> None:
    with pytest.raises(PromptFailedError, match=r"org/tiny on Hugging Face has no file"):
        hubs.client.run(load_model("hf:org/tiny/none.safetensors"))
    with pytest.raises(PromptFailedError, match="model 999"):
        hubs.client.run(fetch_lora("civitai:999"))


def test_search_finds_what_is_here_and_what_is_there(hubs: Hubs) -> None:
    found = hubs.client.get("/intelligent_generation/models", query="ink", kind="lora").json()
    assert found["notices"] == []
    (ink,) = found["models"]
    assert ink["file"] == "loras/ink.safetensors"
    assert ink["hub"]["reference"] == "civitai:101@1001"
    asked = hubs.asked
    local = hubs.client.get("/intelligent_generation/models", query="ink", source="local").json()
    assert [hit["file"] for hit in local["models"]] == ["loras/ink.safetensors"]
    assert hubs.asked == asked
    bad = hubs.client._session.get(f"{hubs.host.url}/intelligent_generation/models?kind=cat")
    assert bad.status_code == 400 and "kind must be one of" in bad.json()["error"]


# --------------------------------------------------------------------------- proposed LoRAs


MOSAIC = "mosaic tiles, a heron"
TEXTS = {"explanation": ["recommender", 3], "report": ["fetcher", 4], "json": ["fetcher", 5]}


def proposing(auto_graph: Any, *, include_remote: bool = True, **fetcher: Any) -> dict[str, Any]:
    """The whole loop, the LoRAs through the fetcher when it is given anything."""
    graph = auto_graph(MOSAIC, recommender={"include_remote": include_remote})
    if fetcher:
        inputs = {"lora_plan": ["recommender", 0], "model": ["loader", 0], "clip": ["loader", 1]}
        graph["fetcher"] = node("CivitAILoRAFetcher", **inputs, **fetcher)
        graph["sampler"]["inputs"] |= {
            "lora_plan": ["fetcher", 0], "model": ["fetcher", 2], "clip": ["fetcher", 3],
        }  # fmt: skip
    for name, link in TEXTS.items():
        if link[0] in graph:
            graph[name] = node("PreviewAny", source=link)
    return graph


def shown(run: Any, name: str) -> str:
    return "".join(run.outputs[name]["text"])


def record(hubs: Hubs, run: Any) -> Any:
    (id,) = run.outputs["sampler"]["generation_id"]
    return hubs.client.get(f"/intelligent_generation/generations/{id}").json()


def test_no_hub_is_asked_for_loras_unless_told_to(hubs: Hubs, auto_graph) -> None:
    asked = hubs.asked
    run = hubs.client.run(proposing(auto_graph, include_remote=False))
    assert hubs.asked == asked and "mosaic_tiles" not in shown(run, "explanation")


def test_a_proposed_lora_is_left_out_where_nothing_fetches_it(hubs: Hubs, auto_graph) -> None:
    run = hubs.client.run(proposing(auto_graph))
    said = shown(run, "explanation")
    assert "LoRA Mosaic Tiles v1.0 at" in said and "Not on this machine: " in said
    assert 'asked for LoRAs for "mosaic tiles", "heron"' in said
    for part in ("MB on CivitAI by maker", "base model SD 1.5", "licence: commercial use"):
        assert part in said
    made = record(hubs, run)
    assert made["plan"]["loras"]["loras"] == [] and made["images"]
    assert made["plan"]["loras"]["segments"] == [MOSAIC]
    assert "Left out: Mosaic Tiles v1.0: It is not on this machine." in made["explanation"]
    assert not hubs.sent("/1003")
    again = hubs.client.run(proposing(auto_graph))
    assert again.executed == (), "nothing changed"


def test_hubs_that_fail_do_not_end_the_run(hubs: Hubs, auto_graph) -> None:
    hubs.civitai.fail(json_reply({"error": "Unauthorized"}, 401), path="/api/v1/models")
    hubs.huggingface.fail(json_reply({"error": "x"}, 429, Retry_After="9999"), path="/api/models")
    graph = proposing(auto_graph)
    graph["analyzer"]["inputs"]["prompt"] = "stained glass window"
    said = shown(hubs.client.run(graph), "explanation")
    assert "Warning: CivitAI gave no LoRAs, or not all: CivitAI wants a login" in said
    assert "Warning: Hugging Face gave no LoRAs, or not all: Hugging Face asks for fewer" in said
    # It is asked again, and by then the hub's anger is over for this client too.
    assert "recommender" in hubs.client.run(graph).executed


def test_what_waits_for_approval_is_neither_fetched_nor_sampled(hubs: Hubs, auto_graph) -> None:
    with pytest.raises(PromptRefusedError, match="mode is AUTO, which does not read it"):
        hubs.client.run(proposing(auto_graph, plan="{}"))
    with pytest.raises(PromptRefusedError, match="is not JSON"):
        hubs.client.run(proposing(auto_graph, plan="{", mode="ASSISTED"))
    with pytest.raises(PromptFailedError, match=r"allow_download is off(?s:.*)mosaic_tiles"):
        hubs.client.run(proposing(auto_graph, allow_download=False))

    waiting = proposing(auto_graph, mode="ASSISTED", allow_download=True)
    run = hubs.client.run(waiting)
    assert "sampler" not in run.outputs
    assert "not on this machine: " in shown(run, "report")
    assert "Nothing was downloaded" in shown(run, "report")
    assert "mosaic_tiles.safetensors" not in hubs.loras() and not hubs.sent("/1003")
    plan = json.loads(shown(run, "json"))
    (pending,) = plan["loras"]
    assert pending["pending"] and pending["remote"]["reference"] == "civitai:103@1003"

    plan["loras"][0] |= {"model_strength": 0.35, "clip_strength": 0.35}
    text = json.dumps(plan)
    with pytest.raises(PromptFailedError, match="allow_download is off"):
        hubs.client.run(proposing(auto_graph, mode="ASSISTED", plan=text, allow_download=False))
    changed = text.replace(pending["file"]["sha256"], "0" * 64)
    with pytest.raises(PromptFailedError, match="is another file on the hub now"):
        hubs.client.run(proposing(auto_graph, mode="ASSISTED", plan=changed, allow_download=True))
    assert not hubs.sent("/1003")

    approved = proposing(auto_graph, mode="ASSISTED", plan=text, allow_download=True)
    made = record(hubs, hubs.client.run(approved))
    (lora,) = made["plan"]["loras"]["loras"]
    assert lora["file"]["name"] == "mosaic_tiles.safetensors" and not lora["pending"]
    assert lora["model_strength"] == 0.35 and lora["remote"]["reference"] == "civitai:103@1003"
    assert made["applied"][0]["model_weights"] > 0
    assert "Fetched: " in made["explanation"]
    assert hubs.sent("/1003") == 1


def test_what_was_fetched_is_a_lora_like_any_other_and_costs_no_request(
    hubs: Hubs, auto_graph
) -> None:
    def last_use() -> str:
        files = call(hubs, "GET", "/downloads").json()["files"]
        return next((f["last_used_at"] for f in files if "mosaic_tiles" in f["path"]), "")

    graph = proposing(auto_graph, allow_download=True)
    before = last_use()
    hubs.client.run(graph)
    fetched = len(hubs.storage.requests)
    made = record(hubs, hubs.client.run(graph))
    assert hubs.client.run(graph).executed == (), "now nothing changes any more"
    assert len(hubs.storage.requests) == fetched
    (lora,) = made["plan"]["loras"]["loras"]
    assert lora["file"]["name"] == "mosaic_tiles.safetensors" and not lora["pending"]
    assert last_use() > before, "used without being fetched"
    replay = hubs.client.get(f"/intelligent_generation/generations/{made['id']}/prompt").json()
    again = record(
        hubs, hubs.client.run({**replay["prompt"], "sampler": replay["prompt"].pop("2")})
    )
    assert again["applied"] == made["applied"]


def _own_files(base: Path) -> Iterator[Path]:
    pack = base / "custom_nodes"
    for path in base.rglob("*"):
        if pack not in path.parents and path.is_file() and not path.is_symlink():
            yield path


# --------------------------------------------------------------------------- the catalog by HTTP


def call(hubs: Hubs, method: str, path: str, body: Any = None) -> Any:
    url = f"{hubs.host.url}/intelligent_generation{path}"
    return hubs.client._session.request(method, url, json=body, timeout=60)


def scanned(hubs: Hubs, **body: bool) -> dict[str, Any]:
    assert call(hubs, "POST", "/catalog/scan", body).status_code == 200
    deadline = time.monotonic() + 60
    while (state := call(hubs, "GET", "/catalog/scan").json())["phase"] not in ("done", "failed"):
        assert time.monotonic() < deadline, state
        time.sleep(0.05)
    return state


def test_a_scan_asks_civitai_only_when_told_to(hubs: Hubs) -> None:
    path = hubs.host.base.models("loras") / "found" / "nameless.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(hubs.ink)
    asked = hubs.asked
    state = scanned(hubs, hash_files=True)
    assert state["phase"] == "done" and state["report"]["files"] >= 1 and not state["error"]
    assert hubs.asked == asked, "nothing was sent out"
    assert scanned(hubs, ask_civitai=True)["phase"] == "done"
    assert hubs.asked > asked
    found = call(hubs, "GET", "/models?query=nameless&source=local").json()["models"]
    assert [(one["file"], one["hub"]["reference"]) for one in found] == [
        ("loras/found/nameless.safetensors", "civitai:101@1001")
    ]


def test_what_the_user_says_of_a_lora_is_kept_and_taken_back(hubs: Hubs) -> None:
    path = hubs.host.base.models("loras") / "mine.safetensors"
    path.write_bytes(hubs.ink)
    said = {"name": "mine.safetensors", "trigger_words": ["harbour fog"], "weight": 0.4}
    assert call(hubs, "PUT", "/loras/edit", said).json() == said
    assert call(hubs, "GET", "/loras/edit?name=mine.safetensors").json() == said
    for wrong, because in (
        ({"trigger_words": "fog"}, "list of texts"),
        ({"weight": 400}, "-100 to 100"),
        ({"weigth": 1}, "no field 'weigth'"),
        ({"name": "none.safetensors"}, "is not in"),
        ({"name": "../mine.safetensors"}, "is not a name below"),
    ):
        answer = call(hubs, "PUT", "/loras/edit", {"name": "mine.safetensors", **wrong})
        assert answer.status_code == 400 and because in answer.json()["error"]
    assert call(hubs, "GET", "/loras/edit?name=mine.safetensors").json() == said
    taken_back = {"name": "mine.safetensors", "trigger_words": None, "weight": None}
    assert call(hubs, "PUT", "/loras/edit", {"name": "mine.safetensors"}).json() == taken_back


def test_a_clean_up_is_shown_first_and_touches_only_downloads(hubs: Hubs) -> None:
    hubs.client.run(fetch_lora("civitai:101@1001", allow_download=True))
    own = hubs.host.base.models("loras") / "own.safetensors"
    own.write_bytes(hubs.ink[:-1] + b"~")
    listed = call(hubs, "GET", "/downloads").json()
    path = next(
        file["path"] for file in listed["files"] if file["path"].endswith("ink.safetensors")
    )
    assert listed["bytes"] >= len(hubs.ink)

    assert call(hubs, "PUT", "/downloads", {"path": path, "pinned": True}).status_code == 200
    pinned = call(hubs, "POST", "/downloads/cleanup", {"cap_gb": 0}).json()
    assert path not in [action["file"]["path"] for action in pinned["actions"]]
    assert call(hubs, "PUT", "/downloads", {"path": path, "pinned": False}).status_code == 200

    plan = call(hubs, "POST", "/downloads/cleanup", {"cap_gb": 0}).json()
    assert path in [action["file"]["path"] for action in plan["actions"]]
    taken = {action["file"]["path"] for action in plan["actions"]}
    used = [file for file in listed["files"] if file["path"] not in taken]
    assert used and all("ink" not in file["path"] for file in used), "what is in use stays"
    assert plan["bytes_after"] == sum(file["size"] for file in used)
    assert Path(path).is_file(), "a dry run touches nothing"
    old = call(hubs, "POST", f"/downloads/cleanup/{pinned['id']}", {})
    assert old.status_code == 400 and "not the last dry run" in old.json()["error"]
    report = call(hubs, "POST", f"/downloads/cleanup/{plan['id']}", {}).json()
    assert report["freed_bytes"] == plan["bytes_now"] - plan["bytes_after"]
    assert not Path(path).exists()
    assert own.is_file(), "a file that the pack did not download stays"
    assert call(hubs, "POST", f"/downloads/cleanup/{plan['id']}", {}).status_code == 400


@pytest.mark.parametrize(
    ("body", "because"),
    [
        ({}, "Give a limit"),
        ({"cap_gb": -1}, "cap_gb must be a number"),
        ({"cap_gb": "5"}, "cap_gb must be a number"),
        ({"cap": 5}, "no field 'cap'"),
        ([5], "Send a JSON object"),
    ],
)
def test_a_clean_up_without_a_proper_limit_is_refused(hubs: Hubs, body: Any, because: str) -> None:
    answer = call(hubs, "POST", "/downloads/cleanup", body)
    assert answer.status_code == 400 and because in answer.json()["error"]


def test_only_downloads_can_be_pinned_and_restored(hubs: Hubs) -> None:
    own = hubs.host.base.models("loras") / "own.safetensors"
    own.write_bytes(hubs.ink[:-1] + b"~")
    for method, path, extra in (
        ("PUT", "/downloads", {"pinned": True}),
        ("POST", "/downloads/restore", {}),
    ):
        answer = call(hubs, method, path, {"path": str(own), **extra})
        assert answer.status_code == 400 and "is not a file that the pack" in answer.json()["error"]


# --------------------------------------------------------------------------- secrets


def test_tokens_are_in_the_hubs_header_and_nowhere_else(hubs: Hubs, auto_graph) -> None:
    """Last: looks at all that the tests above left behind, and at one more run."""
    graph = auto_graph("an old harbour", recommender={"include_remote": True})
    graph["fetcher"] = node("CivitAILoRAFetcher", references="civitai:101@1001",
                            lora_plan=["recommender", 0], allow_download=True)  # fmt: skip
    graph["sampler"]["inputs"]["lora_plan"] = ["fetcher", 0]
    extra = {"extra_pnginfo": {"workflow": {"nodes": []}}}
    run = hubs.client.run(graph, extra_data=extra)
    assert hubs.client.get("/intelligent_generation/credentials").json() == {
        "huggingface": "set", "civitai": "set",
    }  # fmt: skip
    sent = [*hubs.civitai.requests, *hubs.huggingface.requests]
    assert sent and all(CANARY not in request.target for request in sent)
    assert any(request.token == CANARY for request in hubs.civitai.asked("/download/"))
    assert any(request.token == CANARY for request in hubs.huggingface.asked("/resolve/"))
    searched = [request for request in sent if {"query", "search"} & request.query.keys()]
    assert any("harbour" in request.target for request in searched)
    assert all(request.token == CANARY for request in searched)
    assert hubs.storage.requests
    assert not any("authorization" in seen.headers for seen in hubs.storage.requests)
    assert CANARY not in repr(hubs.storage.requests)
    assert CANARY not in repr(run) + hubs.host.log_text()
    assert any(hubs.host.base.output.rglob("*.png"))
    holders = [
        path.relative_to(hubs.host.base.path).as_posix()
        for path in _own_files(hubs.host.base.path)
        if CANARY.encode() in path.read_bytes()
    ]
    assert holders == ["user/__intelligent_generation/credentials/civitai.token"]

    url = f"{hubs.host.url}/intelligent_generation/credentials"
    assert hubs.client._session.delete(f"{url}/civitai").json()["civitai"] == "not set"
    kept = hubs.client._session.delete(f"{url}/huggingface")
    assert kept.status_code == 400 and "HF_TOKEN" in kept.json()["error"]
    wrong = hubs.client._session.put(f"{url}/civitai", json={"token": f"two {CANARY}"})
    assert wrong.status_code == 400 and CANARY not in wrong.text
    assert hubs.client._session.put(f"{url}/other", json={"token": "x"}).status_code == 400
