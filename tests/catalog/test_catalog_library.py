from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from intelligent_generation.core.catalog import hashing, reading
from intelligent_generation.core.catalog import library as module
from intelligent_generation.core.errors import LoraError, ModelFileError
from intelligent_generation.core.plan import FileRef
from intelligent_generation.core.storage.tables import ModelFile
from sqlalchemy import select, update


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """Names of the files whose header is read, in order."""
    names: list[str] = []
    read = reading.load_header
    monkeypatch.setattr(
        reading, "load_header", lambda path: names.append(Path(path).name) or read(path)
    )
    return names


@pytest.fixture
def add(models, write_model, kohya_lora):
    """Put a LoRA into models/loras."""

    def add(name: str, metadata: dict | None = None, *, context: int = 768, fill: int = 0) -> Path:
        return write_model(models / "loras" / name, kohya_lora(context), metadata, fill=fill)

    return add


def touch(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))


def names(library) -> list[str]:
    return [entry.file.name for entry in library.entries]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class TestLibrary:
    def test_empty_and_missing_folder(self, open_catalog, tmp_path):
        assert open_catalog().loras().entries == ()
        assert open_catalog(tmp_path / "nowhere").loras().unreadable == ()

    def test_entries_with_their_file(self, open_catalog, add):
        path = add("styles/ink.safetensors", {"ss_base_model_version": "sd_v1"})
        add("b.SFT", context=2048)
        library = open_catalog().loras()
        assert names(library) == ["b.SFT", "styles/ink.safetensors"]
        entry = library.entries[1]
        assert entry.file == FileRef(
            folder="loras", name="styles/ink.safetensors", size=path.stat().st_size
        )
        assert (entry.family, library.entries[0].family) == ("sd15", "sdxl")

    def test_a_second_process_reads_only_what_changed(self, open_catalog, add, opened):
        kept, changed, removed = add("kept.safetensors"), add("b.safetensors"), add("c.safetensors")
        first = open_catalog().loras()
        assert sorted(opened) == ["b.safetensors", "c.safetensors", "kept.safetensors"]
        opened.clear()
        assert open_catalog().loras() == first
        assert opened == []
        add("b.safetensors", context=2048)
        touch(changed)
        removed.unlink()
        add("new.safetensors")
        library = open_catalog().loras()
        assert sorted(opened) == ["b.safetensors", "new.safetensors"]
        assert names(library) == ["b.safetensors", "kept.safetensors", "new.safetensors"]
        assert library.entries[0].family == "sdxl"
        assert kept.exists()

    def test_the_same_object_while_nothing_changes(self, open_catalog, add, opened):
        add("a.safetensors")
        catalog = open_catalog()
        assert catalog.loras() is catalog.loras()
        add("b.safetensors")
        assert names(catalog.loras()) == ["a.safetensors", "b.safetensors"]
        assert opened == ["a.safetensors", "b.safetensors"]

    def test_rows_of_removed_files_go_those_of_an_absent_drive_stay(
        self, open_catalog, add, database, models, tmp_path
    ):
        add("a.safetensors")
        add("b.safetensors").rename(models / "loras" / "c.safetensors")
        open_catalog().loras()
        (models / "loras" / "c.safetensors").unlink()
        open_catalog().loras()

        def paths() -> list[str]:
            with database.session(read_only=True) as session:
                return [Path(path).name for path in session.scalars(select(ModelFile.path))]

        assert paths() == ["a.safetensors"]
        (models / "loras").rename(tmp_path / "unplugged")
        assert open_catalog().loras().entries == ()
        assert paths() == ["a.safetensors"]

    def test_unreadable_files_are_named_with_the_reason_and_read_again_when_changed(
        self, open_catalog, add, models, opened, write_model
    ):
        add("good.safetensors")
        loras = models / "loras"
        page = loras / "page.safetensors"
        page.write_bytes(b"<!DOCTYPE html><html></html>")
        cut = add("sub/cut.safetensors")
        cut.write_bytes(cut.read_bytes()[:-10])
        write_model(loras / "vae.safetensors", {"decoder.conv_in.weight": (4, 4)})
        (loras / "old.pt").write_bytes(b"PK")
        (loras / "notes.txt").write_text("not listed")
        library = open_catalog().loras()
        assert names(library) == ["good.safetensors"]
        problems = {file.name: file.problem for file in library.unreadable}
        assert list(problems) == [
            "old.pt",
            "page.safetensors",
            "sub/cut.safetensors",
            "vae.safetensors",
        ]
        assert "pickle files are not loaded" in problems["old.pt"]
        assert "web page" in problems["page.safetensors"]
        assert "truncated" in problems["sub/cut.safetensors"]
        assert "no LoRA weights" in problems["vae.safetensors"]

        opened.clear()
        assert open_catalog().loras() == library
        assert opened == []
        add("page.safetensors")
        assert names(open_catalog().loras()) == ["good.safetensors", "page.safetensors"]
        assert opened == ["page.safetensors"]

    @pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
    @pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root reads anything")
    def test_a_file_that_may_not_be_opened_is_tried_again(self, open_catalog, add):
        path = add("a.safetensors")
        path.chmod(0)
        catalog = open_catalog()
        assert "cannot be opened" in catalog.loras().unreadable[0].problem
        path.chmod(0o600)
        assert names(catalog.loras()) == ["a.safetensors"]

    def test_a_failure_to_open_is_not_remembered(self, open_catalog, add, monkeypatch):
        add("a.safetensors")
        catalog = open_catalog()

        def refuse(path):
            raise reading.HeaderError("cannot be opened: busy", passing=True)

        with monkeypatch.context() as patch:
            patch.setattr(reading, "load_header", refuse)
            assert catalog.loras().unreadable[0].problem == "cannot be opened: busy"
        assert names(catalog.loras()) == ["a.safetensors"]

    def test_earlier_directories_win(self, open_catalog, models, add, write_model, kohya_lora):
        add("same.safetensors")
        extra = models / "extra"
        write_model(extra / "same.safetensors", kohya_lora(2048))
        write_model(extra / "other.safetensors", kohya_lora(2048))
        catalog = open_catalog(models / "loras", extra)
        assert [e.family for e in catalog.loras().entries] == ["sdxl", "sd15"]
        reverse = open_catalog(extra, models / "loras")
        assert [e.family for e in reverse.loras().entries] == ["sdxl", "sdxl"]

    def test_links_are_followed_and_loops_end(
        self, open_catalog, models, add, tmp_path, write_model, kohya_lora
    ):
        add("sub/a.safetensors")
        outside = write_model(tmp_path / "outside" / "deep" / "b.safetensors", kohya_lora())
        try:
            (models / "loras" / "linked").symlink_to(tmp_path / "outside", target_is_directory=True)
            (models / "loras" / "sub" / "loop").symlink_to(
                models / "loras", target_is_directory=True
            )
            (models / "loras" / "file.safetensors").symlink_to(outside)
            (models / "loras" / "broken.safetensors").symlink_to(tmp_path / "nothing")
        except OSError:
            pytest.skip("this system lets the user make no links")
        assert names(open_catalog().loras()) == [
            "file.safetensors",
            "linked/deep/b.safetensors",
            "sub/a.safetensors",
        ]

    @pytest.mark.skipif(sys.platform != "win32", reason="only Windows has junctions")
    def test_junctions_are_followed_and_loops_end(self, open_catalog, models, add):
        add("sub/a.safetensors")
        loop = models / "loras" / "sub" / "loop"
        subprocess.run(["cmd", "/c", "mklink", "/J", str(loop), str(models)], check=True)
        assert names(open_catalog().loras()) == ["sub/a.safetensors"]

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a name be any bytes")
    def test_a_name_that_is_not_text_is_told_and_harms_nothing_else(self, open_catalog, add):
        path = add("good.safetensors")
        os.link(os.fsencode(path), os.fsencode(path.parent) + b"/caf\xe9.safetensors")
        library = open_catalog().loras()
        assert names(library) == ["good.safetensors"]
        (odd,) = library.unreadable
        assert odd.name == "caf\\udce9.safetensors"
        assert "rename it" in odd.problem

    def test_digests_of_another_version_and_damaged_ones_are_made_anew(
        self, open_catalog, add, database, opened
    ):
        for name in ("a.safetensors", "b.safetensors", "c.safetensors"):
            add(name)
        first = open_catalog().loras()
        with database.session() as session:
            rows = session.scalars(select(ModelFile).order_by(ModelFile.path)).all()
            rows[0].digest_version -= 1
            rows[1].digest = '{"some": "thing"}'
        opened.clear()
        assert open_catalog().loras() == first
        assert opened == ["a.safetensors", "b.safetensors"]

    def test_a_file_known_under_another_folder_key(self, open_catalog, add, database, opened):
        add("a.safetensors")
        open_catalog().loras()
        with database.session() as session:
            session.execute(update(ModelFile).values(folder="checkpoints"))
        for _ in range(2):
            opened.clear()
            assert names(open_catalog().loras()) == ["a.safetensors"]
        assert opened == []

    def test_many_files_side_by_side_on_a_slow_disk(self, open_catalog, add, monkeypatch):
        monkeypatch.setattr(reading, "_SAMPLE", 3)
        for wait in (float("-inf"), float("inf")):  # threads always, threads never
            monkeypatch.setattr(reading, "_SLOW_DISK", wait)
            for number in range(20):
                add(f"{wait}/{number:02d}.safetensors")
            assert len(names(open_catalog().loras())) % 20 == 0
        assert len(names(open_catalog().loras())) == 40

    def test_threads_share_it(self, open_catalog, add, opened):
        for number in range(10):
            add(f"{number}.safetensors")
        catalog = open_catalog()
        with ThreadPoolExecutor(4) as pool:
            libraries = list(pool.map(lambda _: catalog.loras(), range(8)))
        assert len({id(library) for library in libraries}) == 1
        assert len(opened) == 10

    def test_no_file_is_changed(self, open_catalog, add, models):
        paths = [add("a.safetensors"), add("b/c.safetensors")]
        before = [(p.read_bytes(), p.stat().st_mtime_ns) for p in paths]
        catalog = open_catalog()
        catalog.loras()
        catalog.sha256(paths[0])
        assert [(p.read_bytes(), p.stat().st_mtime_ns) for p in paths] == before
        assert sorted(p.name for p in models.rglob("*")) == [
            "a.safetensors",
            "b",
            "c.safetensors",
            "loras",
        ]


class TestRevision:
    def test_changes_with_every_kind_of_change_and_only_then(self, open_catalog, add, models):
        catalog = open_catalog()
        seen = [catalog.revision("loras")]

        def changed() -> bool:
            seen.append(catalog.revision("loras"))
            assert catalog.revision("loras") == seen[-1] == catalog.loras().revision
            return seen[-1] not in seen[:-1]

        path = add("a.safetensors")
        assert changed()
        add("b.safetensors")
        assert changed()
        touch(path)
        assert changed()
        path.rename(models / "loras" / "c.safetensors")
        assert changed()
        (models / "loras" / "notes.txt").write_text("not a model")
        assert not changed()


class TestPathAndRef:
    def test_by_name_in_any_directory(self, open_catalog, models, write_model):
        second = write_model(models / "more" / "sub" / "a.safetensors", {"w": (2,)})
        catalog = open_catalog(models / "vae", models / "more")
        ref = catalog.ref("vae", "sub\\a.safetensors")
        assert ref == FileRef(folder="vae", name="sub/a.safetensors", size=second.stat().st_size)
        assert catalog.path(ref) == second

    def test_the_hash_when_it_is_known_for_the_file_as_it_is(self, open_catalog, add):
        path = add("a.safetensors")
        catalog = open_catalog()
        assert catalog.ref("loras", "a.safetensors").sha256 is None
        digest = catalog.sha256(path)
        assert open_catalog().ref("loras", "a.safetensors").sha256 == digest == sha256(path)
        touch(path)
        assert catalog.ref("loras", "a.safetensors").sha256 is None

    def test_missing(self, open_catalog, add):
        add("watercolor.safetensors")
        with pytest.raises(ModelFileError, match=r"not in ComfyUI's loras folder.*watercolor"):
            open_catalog().ref("loras", "watercolour.safetensors")

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
    def test_a_colon_is_no_drive(self, open_catalog, add):
        path = add("re:zero.safetensors")
        catalog = open_catalog()
        assert catalog.path(catalog.ref("loras", "re:zero.safetensors")) == path

    @pytest.mark.parametrize(
        "name", ["../secret.safetensors", "/etc/passwd", "C:\\x.sft", "a/C:x.sft", "", "a/../../b"]
    )
    def test_names_that_lead_out_are_refused(self, open_catalog, add, models, name):
        add("a/x.safetensors")
        (models / "secret.safetensors").write_bytes(b"x")
        with pytest.raises(ModelFileError, match="not a name below"):
            open_catalog().path(FileRef(folder="loras", name=name))


class TestSha256:
    def test_once_per_state_of_the_file(self, open_catalog, add, monkeypatch):
        path = add("a.safetensors")
        count: list[str] = []
        hash_ = module.hash_file
        monkeypatch.setattr(
            module, "hash_file", lambda *a, **k: count.append(a[0]) or hash_(*a, **k)
        )
        assert open_catalog().sha256(path) == open_catalog().sha256(str(path)) == sha256(path)
        assert len(count) == 1
        add("a.safetensors", fill=1)
        touch(path)
        assert open_catalog().sha256(path) == sha256(path)
        assert len(count) == 2

    def test_progress_and_stop(self, open_catalog, models, monkeypatch):
        monkeypatch.setattr(hashing, "HASH_BLOCK", 100)
        path = models / "big.safetensors"
        path.write_bytes(bytes(350))
        catalog, steps = open_catalog(), []
        with pytest.raises(ModelFileError, match="stopped"):
            catalog.sha256(
                path, stop=lambda: len(steps) == 2, on_progress=lambda *s: steps.append(s)
            )
        assert steps == [(100, 350), (200, 350)]

        class Interrupted(BaseException):
            pass

        def interrupt() -> None:
            raise Interrupted

        with pytest.raises(Interrupted):
            catalog.sha256(path, stop=interrupt)
        assert catalog.sha256(path, on_progress=lambda *s: steps.append(s)) == sha256(path)
        assert steps[-1] == (350, 350)

    def test_a_file_that_grows_meanwhile(self, open_catalog, models):
        path = models / "a.safetensors"
        path.write_bytes(bytes(10))

        def grow(done: int, total: int) -> None:
            if path.stat().st_size == 10:
                path.write_bytes(bytes(11))

        with pytest.raises(ModelFileError, match="changed while it was read"):
            open_catalog().sha256(path, on_progress=grow)

    def test_empty_and_missing(self, open_catalog, models):
        (models / "empty").write_bytes(b"")
        assert open_catalog().sha256(models / "empty") == hashlib.sha256(b"").hexdigest()
        with pytest.raises(ModelFileError, match="cannot be read"):
            open_catalog().sha256(models / "none")

    def test_it_shows_in_the_library_and_keeps_its_digest(self, open_catalog, add, opened):
        path = add("a.safetensors")
        catalog = open_catalog()
        catalog.loras()
        digest = catalog.sha256(path)
        assert catalog.loras().entries[0].file.sha256 == digest
        opened.clear()
        assert open_catalog().loras() == catalog.loras()
        assert opened == []

    def test_hashed_before_it_was_read(self, open_catalog, add):
        path = add("a.safetensors")
        digest = open_catalog().sha256(path)
        assert open_catalog().loras().entries[0].file.sha256 == digest
        assert open_catalog().ref("loras", "a.safetensors").sha256 == digest

    def test_side_by_side(self, open_catalog, add):
        paths = [add(f"{n}.safetensors", fill=n) for n in range(6)]
        catalog, start = open_catalog(), threading.Barrier(4)

        def work(_: int) -> list[str]:
            start.wait()
            return [catalog.sha256(path) for path in paths]

        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(work, range(4)))
        assert results == [[sha256(path) for path in paths]] * 4


class TestFind:
    @pytest.fixture
    def recorded(self, open_catalog, add) -> FileRef:
        path = add("styles/ink.safetensors", fill=7)
        add("same_size.safetensors", fill=8)
        open_catalog().sha256(path)
        return open_catalog().ref("loras", "styles/ink.safetensors")

    def test_where_it_was(self, open_catalog, recorded, models):
        found, path = open_catalog().find(recorded)
        assert (found, path) == (recorded, models / "loras" / "styles" / "ink.safetensors")

    def test_renamed_and_moved(self, open_catalog, recorded, models):
        target = models / "loras" / "renamed.safetensors"
        (models / "loras" / "styles" / "ink.safetensors").rename(target)
        found, path = open_catalog().find(recorded)
        assert found == recorded.model_copy(update={"name": "renamed.safetensors"})
        assert path == target

    def test_another_file_took_its_name(self, open_catalog, recorded, models, add):
        (models / "loras" / "styles" / "ink.safetensors").rename(
            models / "loras" / "old.safetensors"
        )
        add("styles/ink.safetensors", fill=9)
        assert open_catalog().find(recorded)[0].name == "old.safetensors"

    def test_replaced_by_other_content(self, open_catalog, recorded, add):
        touch(add("styles/ink.safetensors", fill=9))
        with pytest.raises(ModelFileError) as raised:
            open_catalog().find(recorded)
        assert recorded.sha256 in str(raised.value)
        assert "A file of that name is there, but its content is another" in str(raised.value)

    def test_gone(self, open_catalog, recorded, models):
        (models / "loras" / "styles" / "ink.safetensors").unlink()
        with pytest.raises(
            ModelFileError, match="No file in ComfyUI's loras folder has the content"
        ):
            open_catalog().find(recorded)

    def test_of_two_copies_the_one_of_that_name(self, open_catalog, recorded, add):
        add("a_copy.safetensors", fill=7)
        assert open_catalog().find(recorded)[0].name == "styles/ink.safetensors"

    def test_only_files_of_that_size_are_hashed_and_only_once(
        self, open_catalog, recorded, add, models, monkeypatch
    ):
        (models / "loras" / "styles" / "ink.safetensors").rename(models / "loras" / "z.safetensors")
        add("other_size.safetensors", {"a": "b"})
        hashed: list[str] = []
        hash_ = module.hash_file
        monkeypatch.setattr(
            module, "hash_file", lambda *a, **k: hashed.append(Path(a[0]).name) or hash_(*a, **k)
        )
        for _ in range(2):
            assert open_catalog().find(recorded)[0].name == "z.safetensors"
        assert sorted(hashed) == ["same_size.safetensors", "z.safetensors"]

    def test_upper_case_hash_and_no_size(self, open_catalog, recorded):
        ref = recorded.model_copy(update={"size": None, "sha256": recorded.sha256.upper()})
        assert open_catalog().find(ref)[0] == recorded

    def test_without_a_hash_the_name_and_size_decide(self, open_catalog, recorded, models):
        catalog = open_catalog()
        bare = FileRef(folder="loras", name="styles/ink.safetensors")
        assert catalog.find(bare)[0] == recorded
        with pytest.raises(ModelFileError, match="its content is another"):
            catalog.find(bare.model_copy(update={"size": 1}))
        (models / "loras" / "styles" / "ink.safetensors").rename(models / "loras" / "b.safetensors")
        (models / "loras" / "same_size.safetensors").unlink()
        with pytest.raises(ModelFileError, match=r"A file of the same size is b\.safetensors"):
            catalog.find(bare.model_copy(update={"size": recorded.size}))


class TestByName:
    @pytest.fixture
    def catalog(self, open_catalog, add, models):
        for name in ("styles/Ink_v1.0.safetensors", "ink.safetensors", "chars/alice.safetensors",
                     "old/alice.safetensors", "Watercolor.safetensors",
                     "cafe\N{COMBINING ACUTE ACCENT}.safetensors"):  # fmt: skip
            add(name)
        (models / "loras" / "broken.safetensors").write_bytes(b"")
        (models / "loras" / "ink.pt").write_bytes(b"PK")
        return open_catalog()

    @pytest.mark.parametrize(
        ("name", "found"),
        [
            ("ink.safetensors", "ink.safetensors"),
            ("ink", "ink.safetensors"),
            ("styles/Ink_v1.0", "styles/Ink_v1.0.safetensors"),
            ("styles\\Ink_v1.0.safetensors", "styles/Ink_v1.0.safetensors"),
            ("Ink_v1.0", "styles/Ink_v1.0.safetensors"),
            ("ink_V1.0", "styles/Ink_v1.0.safetensors"),
            ("chars/Alice", "chars/alice.safetensors"),
            (" watercolor ", "Watercolor.safetensors"),
            ("moved/elsewhere/watercolor", "Watercolor.safetensors"),
            (
                "caf\N{LATIN SMALL LETTER E WITH ACUTE}",
                "cafe\N{COMBINING ACUTE ACCENT}.safetensors",
            ),
        ],
    )
    def test_found(self, catalog, name, found):
        assert catalog.lora_by_name(name).file.name == found

    def test_ambiguous(self, catalog):
        with pytest.raises(LoraError, match=r"2 files: chars/alice\.safetensors, old/alice"):
            catalog.lora_by_name("alice")

    def test_missing_with_the_nearest(self, catalog):
        with pytest.raises(
            LoraError, match=r"no LoRA named 'watercolour'.*Watercolor\.safetensors"
        ):
            catalog.lora_by_name("watercolour")

    def test_unreadable_with_the_reason(self, catalog):
        with pytest.raises(LoraError, match=r"broken\.safetensors is empty"):
            catalog.lora_by_name("broken")
        with pytest.raises(LoraError, match="pickle"):
            catalog.lora_by_name("ink.pt")
