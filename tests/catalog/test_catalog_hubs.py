"""What hubs, sidecars and the user say of files: hashes, merging, registry, moves, enrichment."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from intelligent_generation.core.catalog import Catalog, Edit, LoraEntry, TagCount, TriggerWord
from intelligent_generation.core.catalog import library as module
from intelligent_generation.core.catalog.hashing import Throttle, hash_file
from intelligent_generation.core.catalog.merging import Said, merge
from intelligent_generation.core.catalog.scan import list_files
from intelligent_generation.core.catalog.sidecars import (
    SidecarFacts,
    pack_facts,
    read_sidecars,
    unpack_facts,
)
from intelligent_generation.core.errors import HubError, HubNotFoundError, ModelFileError
from intelligent_generation.core.hubs.entries import (
    MinedSettings,
    RemoteFile,
    RemoteVersion,
    SearchQuery,
)
from intelligent_generation.core.plan import FileRef
from intelligent_generation.core.storage.tables import Base

START = datetime(2026, 11, 1, tzinfo=timezone.utc)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def remote(sha: str | None = None, /, **fields) -> RemoteVersion:
    url = "https://civitai.com/api/download/models/456"
    given = {
        "hub": "civitai",
        "model_id": "123",
        "version_id": "456",
        "name": "Ink Wash",
        "kind": "lora",
        "base_model": "Illustrious",
        "family": "illustrious",
        "files": (RemoteFile("civitai", url, "ink.safetensors", 10, sha),),
        "trigger_words": ("inkwash",),
        "tags": ("Style", "ink"),
        "downloads": 1000,
        "page": "https://civitai.com/models/123",
    }
    return RemoteVersion(**{**given, **fields})


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def catalog(database, models, clock) -> Catalog:
    return Catalog(database, lambda folder: [models / folder], now=clock)


@pytest.fixture
def add(models, write_model, kohya_lora):
    def add(name: str, metadata: dict | None = None, *, context: int = 2048, fill: int = 0) -> Path:
        return write_model(models / "loras" / name, kohya_lora(context), metadata, fill=fill)

    return add


def only(catalog: Catalog) -> LoraEntry:
    (entry,) = catalog.loras().entries
    return entry


def triggers(entry: LoraEntry) -> list[str]:
    return [word.text for word in entry.trigger_words]


class TestHashing:
    def test_all_kinds_as_the_scanner_defines_them(self, catalog, add):
        path = add("a.safetensors", {"ss_output_name": "a"}, fill=7)
        data = path.read_bytes()
        payload = data[8 + int.from_bytes(data[:8], "little") :]
        hashes = catalog.hashes(path)
        assert hashes.sha256 == sha256(path)
        assert hashes.autov2 == sha256(path)[:10]
        assert hashes.autov3 == hashlib.sha256(payload).hexdigest()[:12]

    @pytest.mark.parametrize("block", [1, 7, 9, 64, 10_000])
    def test_the_payload_begins_anywhere_in_a_block(self, monkeypatch, tmp_path, block):
        monkeypatch.setattr("intelligent_generation.core.catalog.hashing.HASH_BLOCK", block)
        path = tmp_path / "a.safetensors"
        path.write_bytes((20).to_bytes(8, "little") + b"{" + b" " * 18 + b"}" + b"weights" * 9)
        found = hash_file(str(path), path.stat().st_size, autov3=True)
        assert found == (sha256(path), hashlib.sha256(b"weights" * 9).hexdigest()[:12])

    def test_other_files_have_no_autov3_and_are_read_once(self, catalog, models, monkeypatch):
        path = models / "vae" / "old.pt"
        path.parent.mkdir()
        path.write_bytes(b"PK\x03\x04" * 20)
        assert catalog.hashes(path).autov3 is None
        monkeypatch.setattr(module, "hash_file", None)
        assert catalog.hashes(path).sha256 == sha256(path)

    def test_autov3_survives_an_edited_header(self, catalog, add):
        before = catalog.hashes(add("a.safetensors", {"a": "1"}, fill=3))
        after = catalog.hashes(add("a.safetensors", {"a": "another"}, fill=3))
        assert before.sha256 != after.sha256
        assert before.autov3 == after.autov3

    def test_a_file_is_found_by_each_of_its_hashes_while_it_is_the_same(self, catalog, add):
        path = add("sub/a.safetensors")
        hashes = catalog.hashes(path)
        for digits in (hashes.sha256.upper(), hashes.autov2, hashes.autov3):
            assert [ref.name for ref in catalog.with_hash(digits)] == ["sub/a.safetensors"]
        assert catalog.with_hash("abc") == []
        path.write_bytes(b"other")
        assert catalog.with_hash(hashes.sha256) == []

    def test_throttle_works_its_share_and_waits_while_busy(self, tmp_path):
        time, waits, busy = [0.0], [], [True, True, False]
        throttle = Throttle(
            0.25,
            busy=lambda: busy.pop(0) if busy else False,
            clock=lambda: time[0],
            sleep=waits.append,
        )
        throttle.start()
        time[0] += 0.1
        throttle.wait()
        assert waits == [pytest.approx(0.3), 0.25, 0.25]

    def test_hashing_all_goes_on_where_it_was_stopped(self, catalog, add):
        for number in range(4):
            add(f"{number}.safetensors", {"n": str(number)}, fill=number)
        catalog.scan()
        asked: list[int] = []

        def after_two() -> bool:
            asked.append(1)
            return len(catalog.without_hash()) <= 2

        assert catalog.hash_missing(stop=after_two) == 2
        assert len(catalog.without_hash()) == 2
        progress: list[tuple[int, int]] = []
        assert catalog.hash_missing(on_progress=lambda *a: progress.append(a)) == 2
        assert progress[-1] == (2, 2)
        assert catalog.without_hash() == []


CIVITAI = {
    "id": 456,
    "modelId": 123,
    "name": "v1",
    "baseModel": "Illustrious",
    "trainedWords": ["inkwash", "brush"],
    "description": "<p>Weight: 0.6</p>",
    "model": {"name": "Ink Wash", "nsfw": True, "type": "LORA"},
    "files": [{"primary": True, "hashes": {"SHA256": "AB" * 32}}],
}


class TestSidecars:
    def test_civitai_info(self, tmp_path):
        (tmp_path / "a.civitai.info").write_text(json.dumps(CIVITAI), encoding="utf-8-sig")
        assert read_sidecars(str(tmp_path / "a.safetensors")) == SidecarFacts(
            name="Ink Wash",
            base_model="Illustrious",
            trained_words=("inkwash", "brush"),
            description="Weight: 0.6",
            nsfw=True,
            sha256="ab" * 32,
            page="https://civitai.com/models/123?modelVersionId=456",
        )

    def test_lora_manager_comes_first_and_others_fill_its_gaps(self, tmp_path):
        manager = {
            "model_name": "Mine",
            "sha256": "CD" * 32,
            "tags": ["ink"],
            "usage_tips": '{"strength_min": 0.4, "strength_max": 0.8}',
            "civitai": {},
        }
        (tmp_path / "a.metadata.json").write_text(json.dumps(manager))
        (tmp_path / "a.civitai.info").write_text(json.dumps(CIVITAI))
        facts = read_sidecars(str(tmp_path / "a.safetensors"))
        assert (facts.name, facts.sha256, facts.weight) == ("Mine", "cd" * 32, 0.6)
        assert facts.trained_words == ("inkwash", "brush")
        assert facts.nsfw

    def test_rgthree_tells_the_users_words_from_the_captions(self, tmp_path):
        words = [
            {"word": "inkwash", "civitai": True, "count": 40},
            {"word": "mine", "user": True},
            {"word": "1girl", "metadata": True, "count": 30},
        ]
        info = {"name": "Ink - v1", "trainedWords": words, "strengthMin": 0.5}
        (tmp_path / "a.safetensors.rgthree-info.json").write_text(json.dumps(info))
        facts = read_sidecars(str(tmp_path / "a.safetensors"))
        assert (facts.user_words, facts.trained_words) == (("mine",), ("inkwash",))
        assert facts.weight == 0.5

    @pytest.mark.parametrize("text", ["{", "[]", '{"civitai": 3, "tags": "x", "usage_tips": "{"}'])
    def test_odd_files_say_nothing(self, tmp_path, text):
        (tmp_path / "a.metadata.json").write_text(text)
        assert read_sidecars(str(tmp_path / "a.safetensors")) == SidecarFacts()

    def test_packing_is_without_loss(self, tmp_path):
        facts = SidecarFacts("n", "b", ("u",), ("t", "w"), ("g",), "d", 0.5, True, True, "a", "p")
        assert unpack_facts(pack_facts(facts)) == facts
        assert unpack_facts(pack_facts(SidecarFacts())) == SidecarFacts()

    def test_they_belong_to_the_entry_and_their_change_is_seen(self, catalog, add):
        path = add("a.safetensors", {"modelspec.trigger_phrase": "own"})
        assert triggers(only(catalog)) == ["own"]
        revision = catalog.revision("loras")
        beside = path.with_name("a.civitai.info")
        beside.write_text(json.dumps(CIVITAI))
        assert catalog.revision("loras") != revision
        entry = only(catalog)
        assert triggers(entry) == ["inkwash", "brush", "own"]
        assert (entry.title, entry.nsfw, entry.family) == ("Ink Wash", True, "illustrious")
        beside.unlink()
        assert triggers(only(catalog)) == ["own"]
        assert not only(catalog).nsfw

    def test_a_known_hash_need_not_be_computed(self, catalog, add):
        path = add("a.safetensors")
        path.with_name("a.civitai.info").write_text(json.dumps(CIVITAI))
        catalog.scan()
        assert catalog.without_hash() == []
        asked = []
        catalog.enrich(lambda hashes: asked.append(list(hashes)) or {"AB" * 32: remote("AB" * 32)})
        assert asked == [["ab" * 32]]
        assert only(catalog).downloads == 1000
        assert only(catalog).file.sha256 is None


ENTRY = LoraEntry(
    file=FileRef(folder="loras", name="ink_v1.safetensors"),
    title="ink v1",
    family="sdxl",
    variant=None,
    family_confidence=0.75,
    evidence="its tensors",
    trigger_words=(
        TriggerWord("own", 1.0, "modelspec"),
        TriggerWord("header prompt", 1.0, "instance_prompt"),
        TriggerWord("often", 0.95, "tag_frequency"),
    ),
    tags=(TagCount("brush", 0.97), TagCount("1girl", 0.99)),
)


class TestMerging:
    def test_trigger_words_in_the_order_of_the_contract(self):
        said = Said(
            sidecar=SidecarFacts(user_words=("theirs",)),
            versions=(
                remote(trigger_words=("inkwash", "1girl", "brush")),
                remote(hub="huggingface", trigger_words=("card prompt",)),
            ),
        )
        words = merge(ENTRY, said).trigger_words
        assert [(word.text, word.source) for word in words] == [
            ("theirs", "user"),
            ("brush", "civitai"),  # in nearly every training image, and telling
            ("inkwash", "civitai"),
            ("1girl", "civitai"),
            ("own", "modelspec"),
            ("card prompt", "instance_prompt"),
            ("header prompt", "instance_prompt"),
            ("often", "tag_frequency"),
        ]

    @pytest.mark.parametrize("words", [("mine", "too"), ()])
    def test_the_users_edit_stands_alone(self, words):
        said = Said(edit=Edit(trigger_words=words, weight=0.33), versions=(remote(),))
        merged = merge(ENTRY, said)
        assert triggers(merged) == list(words)
        assert merged.recommended_weight == 0.33

    def test_many_words_are_not_dumped(self):
        merged = merge(ENTRY, Said(versions=(remote(trigger_words=tuple(map(str, range(99)))),)))
        assert len(merged.trigger_words) == 16
        long = ", ".join(["a long prompt"] * 40)
        merged = merge(ENTRY, Said(versions=(remote(trigger_words=(f"<lora:x:1> {long}",)),)))
        assert len(merged.trigger_words[0].text) <= 200
        assert merged.trigger_words[0].text.startswith("a long prompt, a long prompt")

    def test_weights_by_who_says_it(self):
        mined = MinedSettings(images=5, weight=0.9)
        words = remote(description="recommended weight 0.65")
        assert merge(ENTRY, Said(versions=(words,), mined=mined)).recommended_weight == 0.65
        assert merge(ENTRY, Said(mined=mined)).recommended_weight == 0.9
        few = mined._replace(images=2)
        assert merge(ENTRY, Said(mined=few)).recommended_weight is None
        header = ENTRY._replace(recommended_weight=0.5)
        assert merge(header, Said(versions=(words,))).recommended_weight == 0.5
        theirs = SidecarFacts(weight=0.4)
        assert merge(header, Said(sidecar=theirs)).recommended_weight == 0.4

    @pytest.mark.parametrize(
        ("family", "confidence", "told", "result"),
        [
            ("sdxl", 0.75, "pony", "pony"),  # same tensors: the hub may choose
            ("sdxl", 0.75, "flux-dev", "sdxl"),  # other tensors: the hub is wrong
            ("illustrious", 0.9, "pony", "illustrious"),  # the header chose
            ("sd15", 0.5, "sdxl", "sd15"),  # only the header says so, but it does
            ("unknown", 0.0, "wan", "wan"),
            ("pony", 0.7, "illustrious", "illustrious"),  # the file's name chose: a hub knows more
            ("flux-dev", 0.4, "wan", "wan"),  # only the file's name says so
            ("sdxl", 0.75, "unknown", "sdxl"),
        ],
    )
    def test_family_by_tensors_and_header_first(self, family, confidence, told, result):
        entry = ENTRY._replace(family=family, family_confidence=confidence)
        said = Said(versions=(remote(base_model="", family=told),))
        assert merge(entry, said).family == result

    def test_a_title_is_the_hubs_only_where_the_file_has_none(self):
        assert merge(ENTRY, Said(versions=(remote(),))).title == "Ink Wash"
        titled = ENTRY._replace(title="The author's own")
        assert merge(titled, Said(versions=(remote(),))).title == "The author's own"


class TestRegistry:
    def test_kept_read_changed_removed_also_by_a_new_instance(self, catalog, open_catalog):
        first = remote("aa" * 32)
        catalog.registry.put([first], now=START)
        catalog.registry.set_mined("civitai", "123", "456", MinedSettings(4, weight=0.7))
        later = START + timedelta(days=31)
        changed = first._replace(downloads=2000, trigger_words=("a", "b"))
        registry = open_catalog().registry
        registry.put([changed], now=later)
        record = registry.get("civitai", "123", "456")
        assert record == (changed, MinedSettings(4, weight=0.7), START, later)
        assert [r.version for r in registry.versions("civitai", "123")] == [changed]
        assert registry.with_content(["aa" * 32])["aa" * 32][0].version == changed
        assert registry.remove("civitai", "123", "456")
        assert not registry.remove("civitai", "123", "456")
        assert registry.with_content(["aa" * 32]) == {}
        with pytest.raises(HubNotFoundError, match="456"):
            registry.get("civitai", "123", "456")

    @pytest.mark.parametrize(
        ("hub", "version_id", "size", "kept"),
        [
            ("civitai", "456", None, True),
            ("huggingface", "a" * 40, None, True),
            ("huggingface", "main", None, False),
            ("huggingface", "main", 10, True),
            ("huggingface", "main", 11, False),
        ],
    )
    def test_a_search_does_not_take_hashes_away(self, catalog, hub, version_id, size, kept):
        met = remote("ab" * 32, hub=hub, version_id=version_id)
        catalog.remember([met])
        (file,) = met.files
        catalog.remember([met._replace(files=(file._replace(sha256=None, size=size),))])
        (now,) = catalog.registry.get(hub, "123", version_id).version.files
        assert now.sha256 == ("ab" * 32 if kept else None)

    def test_everything_found_matches(self, catalog):
        catalog.registry.put(
            [
                remote(version_id="1"),
                remote(version_id="2", family="pony", name="Ink of 2018"),
                remote(version_id="3", kind="checkpoint", tags=("inky",)),
                remote(version_id="4", name="Watercolour", tags=("ink",), downloads=None),
            ],
            now=START,
        )

        def found(**query) -> list[str]:
            versions = catalog.registry.find(SearchQuery(**query))
            return sorted(version.version_id for version in versions)

        assert found() == ["1", "2", "3", "4"]
        assert found(kind="lora", families=("illustrious",)) == ["1", "4"]
        assert found(tags=("INK",)) == ["1", "2", "4"]
        assert found(text="ink wash") == ["1", "3"]
        assert found(text="18") == []
        assert found(text="100%") == []
        assert found(text="water") == ["4"]

    def test_the_order_is_the_querys(self, catalog):
        for number, downloads in enumerate((5, None, 50)):
            version = remote(version_id=str(number), downloads=downloads)
            catalog.registry.put([version], now=START + timedelta(days=number))
        best = catalog.registry.find(SearchQuery(sort="downloads"))
        assert [version.version_id for version in best] == ["2", "0", "1"]
        newest = catalog.registry.find(SearchQuery(sort="newest"))
        assert [version.version_id for version in newest] == ["2", "1", "0"]

    def test_there_are_the_indexes_of_the_requirement(self):
        tables = Base.metadata.tables
        indexed = {c.name for c in tables["remote_versions"].columns if c.index}
        assert {"kind", "base_model", "family"} <= indexed
        assert tables["remote_versions"].primary_key.columns.keys()[0] == "hub"
        assert tables["remote_tags"].columns["tag"].index


class TestEdits:
    def test_beat_everything_and_change_the_revision(self, catalog, add):
        add("a.safetensors", {"modelspec.trigger_phrase": "own"})
        file, before = only(catalog).file, catalog.revision("loras")
        catalog.edit(file, Edit(("mine",), 0.4))
        assert catalog.revision("loras") != before
        assert (triggers(only(catalog)), only(catalog).recommended_weight) == (["mine"], 0.4)
        assert catalog.edit_of(file) == Edit(("mine",), 0.4)
        catalog.edit(file, Edit())
        assert triggers(only(catalog)) == ["own"]
        assert catalog.edit_of(file) == Edit()

    def test_are_seen_by_another_catalog_at_once(self, catalog, open_catalog, add):
        add("a.safetensors")
        other = open_catalog()
        other.loras()
        catalog.edit(only(catalog).file, Edit(("mine",)))
        assert triggers(only(other)) == ["mine"]

    def test_not_of_other_content_under_the_name(self, catalog, add):
        add("a.safetensors", fill=1)
        catalog.edit(only(catalog).file, Edit(("mine",)))
        path = add("a.safetensors", {"other": "x"}, fill=2)
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
        assert triggers(only(catalog)) == []

    def test_of_a_file_that_is_not_there(self, catalog, models):
        with pytest.raises(ModelFileError, match=r"gone\.safetensors"):
            catalog.edit(FileRef(folder="loras", name="gone.safetensors"), Edit(("a",)))


class TestMoves:
    @pytest.mark.parametrize("hashed", [True, False])
    def test_a_renamed_file_keeps_hash_and_edit_without_hashing(
        self, catalog, add, models, monkeypatch, hashed
    ):
        path = add("a.safetensors", fill=1)
        os.utime(path, ns=(0, 1_700_000_000_123_456_700))
        catalog.loras()
        digest = catalog.hashes(path).sha256 if hashed else None
        catalog.edit(only(catalog).file, Edit(("mine",)))
        target = models / "loras" / "new folder" / "b.safetensors"
        target.parent.mkdir()
        path.rename(target)
        monkeypatch.setattr(module, "hash_file", None)
        report = catalog.scan()
        assert (report.moved, report.gone) == (1, 0)
        entry = only(catalog)
        assert (entry.file.name, entry.title) == ("new folder/b.safetensors", "b")
        assert entry.file.sha256 == digest
        assert triggers(entry) == ["mine"]

    def test_whole_seconds_do_not_tell_files_apart_but_the_name_does(self, catalog, add):
        first = add("a.safetensors", fill=1)
        os.utime(first, ns=(0, 1_700_000_000 * 10**9))
        catalog.loras()
        catalog.hashes(first)
        first.unlink()
        other = add("b.safetensors", fill=2)
        os.utime(other, ns=(0, 1_700_000_000 * 10**9))
        assert catalog.scan().moved == 0
        assert only(catalog).file.sha256 is None

    def test_a_copy_is_no_move(self, catalog, add, models):
        path = add("a.safetensors")
        catalog.loras()
        copy = models / "loras" / "b.safetensors"
        copy.write_bytes(path.read_bytes())
        os.utime(copy, ns=(0, path.stat().st_mtime_ns))
        assert catalog.scan().moved == 0

    def test_content_that_comes_back_finds_its_edit_by_hash(self, catalog, add, models):
        path = add("a.safetensors", fill=1)
        catalog.loras()
        catalog.hashes(path)
        catalog.edit(only(catalog).file, Edit(("mine",)))
        data = path.read_bytes()
        path.unlink()
        catalog.scan()
        (models / "loras" / "z.safetensors").write_bytes(data)
        add("small.safetensors", context=64)
        catalog.scan()
        assert [p.name for p in catalog.without_hash(lost_only=True)] == ["z.safetensors"]
        assert catalog.hash_missing(lost_only=True) == 1
        entry = next(e for e in catalog.loras().entries if e.file.name == "z.safetensors")
        assert triggers(entry) == ["mine"]


class TestEnrichment:
    def test_asks_once_in_the_interval_and_merges(self, catalog, add, clock):
        path = add("a.safetensors", {"modelspec.trigger_phrase": "own"})
        missed = add("b.safetensors", {"x": "y"}, fill=1)
        catalog.scan()
        catalog.hash_missing()
        asked: list[list[str]] = []

        def by_hashes(hashes):
            asked.append(sorted(hashes))
            return {sha256(path).upper(): remote(sha256(path))}

        before = catalog.revision("loras")
        assert catalog.enrich(by_hashes) == (2, 1)
        assert catalog.enrich(by_hashes) == (0, 0)
        assert asked == [sorted([sha256(path), sha256(missed)])]
        assert catalog.revision("loras") != before
        entry = catalog.loras().entries[0]
        assert triggers(entry) == ["inkwash", "own"]
        assert (entry.family, entry.downloads) == ("illustrious", 1000)
        clock.now += timedelta(days=31)
        assert catalog.enrich(by_hashes) == (2, 1)

    def test_in_pieces_of_a_hundred_and_what_came_before_a_failure_is_kept(self, catalog, add):
        for number in range(120):
            add(f"{number}.safetensors", {"n": str(number)}, context=8, fill=number)
        catalog.scan()
        catalog.hash_missing()
        sizes: list[int] = []

        def failing(hashes):
            sizes.append(len(hashes))
            if len(sizes) == 2:
                raise HubError("CivitAI is down.")
            return {}

        with pytest.raises(HubError):
            catalog.enrich(failing)
        assert sizes == [100, 20]
        assert catalog.enrich(lambda hashes: {}) == (20, 0)

    def test_the_hash_of_a_new_download_is_enough(self, catalog, add):
        catalog.remember([remote(sha256(add("a.safetensors")))])
        catalog.loras()
        assert only(catalog).page == ""
        catalog.sha256(add("a.safetensors"))
        assert only(catalog).page == "https://civitai.com/models/123"


class TestScan:
    def test_other_kinds_of_model(self, catalog, models, write_model):
        write_model(models / "vae" / "v.safetensors", {"decoder.conv_in.weight": (4, 4)})
        write_model(
            models / "checkpoints" / "c.safetensors",
            {"model.diffusion_model.x.weight": (4, 4)},
            {"modelspec.title": "Its title"},
        )
        report = catalog.scan()
        assert (report.files, report.read, report.complete) == (2, 2, True)
        assert catalog.models("vae").entries[0].precision == "F16"
        assert catalog.models("checkpoints").entries[0].title == "Its title"
        assert catalog.scan().read == 0

    def test_stopped_and_gone_on(self, catalog, open_catalog, add, monkeypatch):
        monkeypatch.setattr("intelligent_generation.core.catalog.refreshing._BATCH", 2)
        for number in range(5):
            add(f"{number}.safetensors")
        progress = []
        report = catalog.scan(on_progress=progress.append, stop=lambda: len(progress) == 1)
        assert not report.complete
        assert [(p.folder, p.done, p.total) for p in progress] == [("loras", 2, 5)]
        report = open_catalog().scan()
        assert (report.read, report.complete) == (3, True)
        assert len(catalog.loras().entries) == 5

    def test_listing_notes_the_files_beside(self, tmp_path):
        for name in ("a.safetensors", "a.metadata.json", "b.safetensors", "b.json"):
            (tmp_path / name).write_bytes(b"x")
        files = list_files([tmp_path]).files
        assert "a.metadata.json" in files["a.safetensors"].sidecars
        assert files["b.safetensors"].sidecars == ""
