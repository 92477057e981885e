"""From references to files: the real clients and downloader against the loopback hubs."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from intelligent_generation.core.catalog import Catalog, DiskCache, read_header
from intelligent_generation.core.errors import (
    DownloadError,
    HubAccessError,
    HubError,
    SettingError,
)
from intelligent_generation.core.fetching import (
    Fetcher,
    Wanted,
    read_lora_references,
    read_references,
)
from intelligent_generation.core.hubs import (
    CivitaiReference,
    Credentials,
    HuggingFaceReference,
    Reference,
)
from intelligent_generation.core.hubs.joining import join
from intelligent_generation.core.storage import Database
from intelligent_generation.tests.services.civitai import (
    CivitaiServer,
    civitai_hashes,
    make_file,
    make_model,
    make_version,
)
from intelligent_generation.tests.services.fixtures import (  # noqa: F401
    civitai_server,
    huggingface_server,
)
from intelligent_generation.tests.services.huggingface import HuggingFaceServer, Repository
from intelligent_generation.tests.services.server import Reply
from intelligent_generation.tests.services.storage import FileHost

NOW = datetime(2026, 8, 1, tzinfo=timezone.utc)


def safetensors(text: str, size: int = 512, tensor: str = "lora_unet_x.lora_down.weight") -> bytes:
    """A sound file of one tensor, another for each text."""
    header = {
        "__metadata__": {"about": text},
        tensor: {
            "dtype": "F16", "shape": [size], "data_offsets": [0, 2 * size],
        },
    }  # fmt: skip
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + text.encode().ljust(2 * size, b"\0")[: 2 * size]


class World(NamedTuple):
    civitai: CivitaiServer
    huggingface: HuggingFaceServer
    storage: FileHost
    folder: Path
    fetcher: Fetcher
    catalog: Catalog
    cache: DiskCache

    def offer(
        self, model: int, version: int, name: str, content: bytes, **fields: Any
    ) -> dict[str, Any]:
        """A LoRA on CivitAI, its bytes on the other host."""
        file = make_file(version, name, content)
        self.storage.put(f"/{version}", content)
        row = make_model(model, f"Model {model}", [make_version(version, [file])], **fields)
        self.civitai.models.append(row)
        return row

    @property
    def asked(self) -> int:
        """Requests that reached any of the three."""
        servers = (self.civitai, self.huggingface, self.storage)
        return sum(len(server.requests) for server in servers)

    def get(self, *references: Reference, use: Any = "lora", **options: Any) -> list[str]:
        options.setdefault("allow", True)
        fetched = self.fetcher.fetch(references, use, **options)
        return [f"{file.folder}/{file.name}" for one in fetched for file in one.files]

    def on_disk(self) -> list[str]:
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.folder).as_posix() for path in files)


@pytest.fixture
def world(
    tmp_path: Path,
    civitai_server: CivitaiServer,  # noqa: F811
    huggingface_server: HuggingFaceServer,  # noqa: F811
) -> Iterator[World]:
    folder = tmp_path / "models"
    database = Database.open(f"sqlite:///{tmp_path / 'data.db'}")
    catalog = Catalog(database, lambda key: [folder / key])
    cache = DiskCache(database, catalog, now=lambda: NOW)
    with FileHost() as storage:
        civitai_server.locate = lambda file: storage.url(f"/{file['id']}")
        fetcher = Fetcher(
            catalog,
            cache,
            Credentials(tmp_path / "tokens", {}),
            lambda key: [folder / key],
            civitai=civitai_server.url,
            huggingface=huggingface_server.url,
            per_second=1000,
        )
        yield World(civitai_server, huggingface_server, storage, folder, fetcher, catalog, cache)
    database.close()


def test_a_lora_is_fetched_once_and_then_costs_no_request(world: World) -> None:
    content = safetensors("ink")
    world.offer(1, 10, "ink.safetensors", content)
    shares: list[float] = []
    reference = CivitaiReference(1, 10)
    said: list[str] = []
    got = world.get(reference, on_share=shares.append, on_text=said.append)
    assert got == ["loras/ink.safetensors"]
    assert re.fullmatch(
        r"ink\.safetensors: downloading, 0 of 0 MB, \d+\.\d MB/s(, 0 s left)?", said[-1]
    )
    assert (world.folder / "loras" / "ink.safetensors").read_bytes() == content
    assert shares[-1] == 1.0 and shares == sorted(shares)
    (kept,) = world.cache.files()
    assert kept.source == "civitai:1@10"
    asked = world.asked
    for same in (reference, CivitaiReference(1), CivitaiReference(None, 10)):
        assert world.get(same, allow=False) == ["loras/ink.safetensors"]
    (by_hash,) = read_references("hash:" + civitai_hashes(content)["AutoV2"])
    assert world.get(by_hash, allow=False) == ["loras/ink.safetensors"]
    assert world.asked == asked


def test_a_file_that_is_there_under_another_name_is_found_by_its_hash(world: World) -> None:
    content = safetensors("ink")
    world.offer(1, 10, "ink.safetensors", content)
    mine = world.folder / "loras" / "mine" / "renamed.safetensors"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(content)
    world.catalog.sha256(mine)
    assert world.get(CivitaiReference(1, 10), allow=False) == ["loras/mine/renamed.safetensors"]
    assert not world.storage.requests
    assert world.cache.files() == [], "what was there is the user's"


def test_without_leave_nothing_is_fetched_and_the_error_says_what_it_would_be(
    world: World,
) -> None:
    world.offer(1, 10, "ink.safetensors", safetensors("ink"))
    large = safetensors("oil", 5000)
    world.offer(2, 20, "oil.safetensors", large + b"\0" * (10_250 - len(large)))
    with pytest.raises(SettingError, match="allow_download is off") as caught:
        world.get(CivitaiReference(1, 10), CivitaiReference(2, 20), allow=False)
    said = str(caught.value)
    for part in (
        "ink.safetensors", "1.16 kB", "oil.safetensors", "10.2 kB", "SDXL 1.0",
        "commercial use: selling images", "into loras/oil.safetensors",
    ):  # fmt: skip
        assert part in said, part
    assert not world.storage.requests and world.on_disk() == []


def test_wrong_content_never_gets_the_name(world: World) -> None:
    world.offer(1, 10, "ink.safetensors", safetensors("ink"))
    world.storage.put("/10", safetensors("bad"))
    with pytest.raises(DownloadError, match="not what CivitAI lists"):
        world.get(CivitaiReference(1, 10))
    (left,) = world.on_disk()
    assert left.endswith(".mismatch")
    assert world.cache.files() == []


def test_another_newer_version_is_not_taken_for_the_one_that_is_there(world: World) -> None:
    old, new = safetensors("old"), safetensors("new")
    row = world.offer(1, 10, "ink.safetensors", old)
    world.get(CivitaiReference(1, 10))
    row["modelVersions"].insert(0, make_version(11, [make_file(11, "ink-2.safetensors", new)]))
    world.storage.put("/11", new)
    assert world.get(CivitaiReference(1, 11)) == ["loras/ink-2.safetensors"]
    # Two are known now, so which is the newest is asked.
    assert world.get(CivitaiReference(1), allow=False) == ["loras/ink-2.safetensors"]


def test_a_model_is_not_fetched_as_a_lora_nor_the_other_way_round(world: World) -> None:
    world.offer(1, 10, "base.safetensors", safetensors("base"), type="Checkpoint")
    world.offer(2, 20, "ink.safetensors", safetensors("ink"))
    with pytest.raises(SettingError, match="HubModelLoader's reference"):
        world.get(CivitaiReference(1, 10))
    with pytest.raises(SettingError, match="CivitAILoRAFetcher's references"):
        world.get(CivitaiReference(2, 20), use="model")
    assert world.get(CivitaiReference(1, 10), use="model") == ["checkpoints/base.safetensors"]


def test_a_pickle_is_refused_before_it_is_fetched(world: World) -> None:
    world.offer(1, 10, "old.ckpt", b"PK", type="Checkpoint")
    with pytest.raises(SettingError, match="not a safetensors file"):
        world.get(CivitaiReference(1, 10), use="model")
    assert not world.storage.requests


def test_what_shows_minors_is_never_fetched(world: World) -> None:
    world.offer(1, 10, "a.safetensors", safetensors("a"), minor=True)
    with pytest.raises(HubAccessError, match="minors"):
        world.get(CivitaiReference(1, 10))
    assert not world.storage.requests


def test_a_path_in_a_file_name_does_not_leave_the_folder(world: World) -> None:
    world.offer(1, 10, "../../evil.safetensors", safetensors("a"))
    with pytest.raises(DownloadError, match="parts of a path"):
        world.get(CivitaiReference(1, 10))
    assert world.on_disk() == []


SPLIT = {
    "split_files/diffusion_models/unet.safetensors": "diffusion_models",
    "split_files/text_encoders/clip.safetensors": "text_encoders",
    "split_files/vae/ae.safetensors": "vae",
}


def test_split_files_of_a_repository_go_where_comfyui_looks(world: World) -> None:
    files = {path: safetensors(path) for path in SPLIT}
    world.huggingface.repositories = [Repository("Org/parts", files)]
    references = [HuggingFaceReference("Org/parts", None, path) for path in SPLIT]
    places = [f"{folder}/Org/parts/{path}" for path, folder in SPLIT.items()]
    assert world.get(*references, use="model") == places
    assert world.on_disk() == sorted(places)
    asked = world.asked
    assert world.get(*references, use="model", allow=False) == places
    assert world.asked == asked
    # Where a branch points now is asked.
    world.get(references[0]._replace(revision="main"), use="model", allow=False)
    assert world.asked > asked


DIFFUSERS = {
    "model_index.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": safetensors("unet"),
    "unet/diffusion_pytorch_model.fp16.safetensors": safetensors("unet 16"),
    "vae/diffusion_pytorch_model.safetensors": safetensors("vae"),
    "text_encoder/model.safetensors": safetensors("te"),
    "text_encoder_2/model.safetensors": safetensors("te2"),
}


def test_a_diffusers_repository_comes_as_split_files(world: World) -> None:
    world.huggingface.repositories = [Repository("a/xl", DIFFUSERS)]
    places = {
        "diffusion_models/a/xl/unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/a/xl/vae/diffusion_pytorch_model.safetensors",
        "text_encoders/a/xl/text_encoder/model.safetensors",
        "text_encoders/a/xl/text_encoder_2/model.safetensors",
    }
    reference = HuggingFaceReference("a/xl")
    got = world.get(reference, use="model", leave_out=frozenset({"vae"}))
    assert set(got) == {place for place in places if not place.startswith("vae")}
    assert got[-2:] == sorted(got[-2:]), "text_encoder comes before text_encoder_2"
    assert set(world.get(reference, use="model")) == places


def test_lines_become_references_with_strengths() -> None:
    text = """
        https://civitai.com/models/5/x?modelVersionId=6
        civitai:7@8 0.45

        hf:a/b/c.safetensors -1
    """
    assert [(str(r), s) for r, s in read_lora_references(text)] == [
        ("civitai:5@6", None), ("civitai:7@8", 0.45), ("hf:a/b/c.safetensors", -1.0),
    ]  # fmt: skip
    mirror = "http://127.0.0.1:99/models/5"
    assert read_references(mirror, ["http://127.0.0.1:99"]) == (CivitaiReference(5),)
    with pytest.raises(SettingError, match="neither on CivitAI"):
        read_references(mirror)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("civitai:1 200", "strength"),
        ("civitai:1 0.5\ncivitai:1 0.6", "two strengths"),
        ("watercolor 0.5", "does not say which model"),
        ("https://civitai.com/models/1?token=abc", "login or token"),
        ("12345", "may be a model, a version or a hash"),
    ],
)
def test_lines_that_cannot_be_honoured_are_errors(text: str, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        read_lora_references(text)


def test_stop_ends_a_download_and_the_next_one_goes_on(world: World) -> None:
    content = safetensors("long", 4 << 20)
    world.offer(1, 10, "long.safetensors", content)
    shares: list[float] = []

    class StoppedError(Exception):
        pass

    def stop() -> None:
        if shares and shares[-1] > 0:
            raise StoppedError

    # The server waits in the middle, so that the stop is heard before the end.
    stopped = threading.Event()
    world.storage.on_sent = lambda seen: seen.sent > 2_000_000 and stopped.wait(20)
    with pytest.raises(StoppedError):
        world.get(CivitaiReference(1, 10), on_share=shares.append, stop=stop)
    stopped.set()
    world.storage.on_sent = lambda seen: None
    assert not (world.folder / "loras" / "long.safetensors").exists()
    world.get(CivitaiReference(1, 10))
    assert (world.folder / "loras" / "long.safetensors").read_bytes() == content
    assert world.storage.starts[-1] > 0, "it went on where it stopped"


def test_two_files_of_one_name_both_find_a_place(world: World) -> None:
    contents = {n: safetensors(f"style {n}") for n in (1, 2)}
    for n, content in contents.items():
        world.offer(n, n * 10, "style.safetensors", content)
    assert world.get(CivitaiReference(1, 10)) == ["loras/style.safetensors"]
    assert world.get(CivitaiReference(2, 20)) == ["loras/style-civitai-20-20.safetensors"]
    assert (world.folder / "loras/style.safetensors").read_bytes() == contents[1]
    asked = world.asked
    assert world.get(CivitaiReference(2, 20), allow=False) == [
        "loras/style-civitai-20-20.safetensors"
    ]
    assert world.asked == asked


def test_what_settle_finds_missing_says_where_to_get_it(world: World) -> None:
    world.offer(1, 10, "ink.safetensors", safetensors("ink"))
    world.huggingface.repositories = [
        Repository("org/a", {"100% ink.safetensors": safetensors("oil")}, card={"license": "mit"})
    ]
    references = (CivitaiReference(1), HuggingFaceReference("org/a"))
    ((ink,), (oil,)) = world.fetcher.settle(references, "lora")
    assert isinstance(ink, Wanted) and isinstance(oil, Wanted)
    assert ink.remote.reference == "civitai:1@10" and ink.remote.licence
    for wanted in (ink, oil):
        (again,) = read_references(wanted.remote.reference)
        assert again == wanted.reference
        ((same,),) = world.fetcher.settle([again], "lora")
        assert isinstance(same, Wanted) and same.ref == wanted.ref
    assert not world.storage.requests and world.on_disk() == []


def pieces_of_a_model() -> dict[str, bytes]:
    return {
        f"transformer/diffusion_pytorch_model-0000{n}-of-00002.safetensors": safetensors(
            f"piece {n}", tensor=f"blocks.{n}.weight"
        )
        for n in (1, 2)
    }


JOINED = "diffusion_models/a/big/transformer/diffusion_pytorch_model.safetensors"


def test_weights_in_pieces_become_one_file(world: World) -> None:
    pieces = pieces_of_a_model()
    others = {name: data for name, data in DIFFUSERS.items() if not name.startswith("unet/")}
    index = {"transformer/diffusion_pytorch_model.safetensors.index.json": b"{}"}
    world.huggingface.repositories = [Repository("a/big", {**others, **index, **pieces})]
    reference = HuggingFaceReference("a/big")
    with pytest.raises(SettingError, match=r"diffusion_pytorch_model.safetensors \(2\.3"):
        world.get(reference, use="model", allow=False)
    shares: list[float] = []
    got = world.get(reference, use="model", on_share=shares.append)
    assert got[0] == JOINED and shares == sorted(shares) and shares[-1] == 1.0
    header = read_header(world.folder / JOINED)
    assert list(header.tensors) == ["blocks.1.weight", "blocks.2.weight"]
    digests = [hashlib.sha256(data).hexdigest() for data in pieces.values()]
    assert header.metadata["joined_from"] == " ".join(digests)
    content = (world.folder / JOINED).read_bytes()
    assert b"piece 1" in content and content.rstrip(b"\0").endswith(b"piece 2")
    assert not [name for name in world.on_disk() if "-of-" in name]
    asked = world.asked
    assert world.get(reference, use="model", allow=False) == got and world.asked == asked
    assert world.catalog.ref("diffusion_models", JOINED.partition("/")[2]).sha256

    # The repository changes: what is there is not taken for it, and is left.
    changed = {**pieces, next(iter(pieces)): safetensors("new", tensor="blocks.1.weight")}
    world.huggingface.repositories[0].files.update(changed)
    with pytest.raises(DownloadError, match="Another file of that name is already there"):
        world.get(reference._replace(revision="main"), use="model")
    assert (world.folder / JOINED).read_bytes() == content


def test_joining_goes_on_after_a_stop_and_fetches_nothing_twice(world: World) -> None:
    pieces = pieces_of_a_model()
    others = {name: data for name, data in DIFFUSERS.items() if not name.startswith("unet/")}
    world.huggingface.repositories = [Repository("a/big", {**others, **pieces})]
    world.huggingface.fail(Reply(404), path="-00002-of-")
    reference = HuggingFaceReference("a/big")
    with pytest.raises(HubError):
        world.get(reference, use="model")
    assert JOINED not in world.on_disk()
    world.get(reference, use="model")
    assert JOINED in world.on_disk()
    assert len(world.huggingface.asked("-00001-of-")) == 1


def test_pieces_that_hold_the_same_tensor_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.safetensors" for n in (1, 2)]
    for path in paths:
        path.write_bytes(safetensors(path.stem))
    target = tmp_path / "whole.safetensors"
    with pytest.raises(DownloadError, match="another piece has too"):
        join(paths, target, ["a", "b"])
    with pytest.raises(DownloadError, match=r"needs 0\.00 GB, and the disk"):
        join(paths, target, ["a", "b"], free=lambda folder: 0)
    assert sorted(tmp_path.iterdir()) == paths


@pytest.mark.parametrize("kind", ["SHA256", "AutoV2", "AutoV3"])
def test_a_hash_means_the_very_file_that_has_it(world: World, kind: str) -> None:
    first, second = safetensors("pruned"), safetensors("full")
    files = [
        make_file(1, "pruned.safetensors", first),
        make_file(2, "full.safetensors", second, primary=False),
    ]
    world.storage.put("/2", second)
    world.civitai.models.append(make_model(5, "Two", [make_version(50, files)]))
    (reference,) = read_references(f"hash:{civitai_hashes(second)[kind]}")
    assert world.get(reference) == ["loras/full.safetensors"]
