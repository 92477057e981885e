"""The cap on what the pack downloaded: least recently used first, nothing else, dry run first."""

from __future__ import annotations

import hashlib
import random
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from intelligent_generation.core.catalog import CachedFile, Catalog, DiskCache, Limits
from intelligent_generation.core.catalog import library as module
from intelligent_generation.core.catalog.cache import PACKED, plan_cleanup
from intelligent_generation.core.errors import ModelFileError
from intelligent_generation.core.hubs.entries import RemoteVersion

START = datetime(2026, 11, 1, tzinfo=timezone.utc)
VERSION = RemoteVersion("civitai", "1", "2", "Ink", "lora", "SD 1.5", "sd15", ())


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def catalog(database, models, clock) -> Catalog:
    return Catalog(database, lambda folder: [models / folder], now=clock)


@pytest.fixture
def cache(database, catalog, clock) -> DiskCache:
    return DiskCache(database, catalog, now=clock)


@pytest.fixture
def download(cache, models):
    """A file of so many bytes that the pack downloaded."""

    def download(name: str, size: int = 1000, content: bytes | None = None) -> Path:
        path = models / "loras" / name
        path.parent.mkdir(exist_ok=True)
        data = random.Random(name).randbytes(size) if content is None else content
        path.write_bytes(data)
        cache.add(path, "loras", VERSION, hashlib.sha256(data).hexdigest().upper())
        return path

    return download


def names(files) -> list[str]:
    return [Path(file.path).name for file in files]


def planned(plan) -> list[tuple[str, str]]:
    return [(action.kind, Path(action.file.path).name) for action in plan.actions]


def file(name: str, size: int, age: int, *, pinned: bool = False) -> CachedFile:
    return CachedFile(
        name, "loras", size, False, START - timedelta(days=age), pinned, "civitai:1@2"
    )


class TestPlan:
    def test_nothing_by_default(self):
        plan = plan_cleanup([file("a", 10**12, 999)], Limits(), now=START)
        assert (plan.actions, plan.bytes_after) == ((), 10**12)

    def test_the_oldest_go_until_the_rest_fits(self):
        files = [file(str(age), 100, age) for age in (3, 1, 2, 4)]
        plan = plan_cleanup(files, Limits(cap_bytes=250), now=START)
        assert planned(plan) == [("remove", "4"), ("remove", "3")]
        assert (names(plan.kept), plan.bytes_now, plan.bytes_after) == (["1", "2"], 400, 200)

    def test_an_older_small_file_does_not_stay_for_a_newer_large_one(self):
        files = [file("new", 50, 1), file("large", 100, 2), file("small", 1, 3)]
        plan = plan_cleanup(files, Limits(cap_bytes=100), now=START)
        assert names(plan.kept) == ["new"]

    def test_ten_downloads_under_a_cap_of_one_gigabyte(self):
        files = [file(str(age), 200_000_000, age) for age in range(10)]
        plan = plan_cleanup(files, Limits(cap_bytes=10**9, keep_recent=10), now=START)
        assert plan.bytes_after <= 10**9
        assert len(plan.kept) == 5

    @pytest.mark.parametrize("keep", [0, 2, 5])
    def test_no_more_files_than_wanted(self, keep):
        files = [file(str(age), 10, age) for age in range(4)]
        plan = plan_cleanup(files, Limits(10 * 10**9, keep), now=START)
        assert names(plan.kept) == [str(age) for age in range(min(keep, 4))]

    def test_pinned_and_used_files_stay_and_count(self):
        files = [file("new", 100, 1), file("pinned", 100, 8, pinned=True), file("used", 100, 9)]
        plan = plan_cleanup(files, Limits(cap_bytes=250), now=START, in_use={"used"})
        assert planned(plan) == [("remove", "new")]
        assert plan.over == 0
        over = plan_cleanup(files, Limits(cap_bytes=150), now=START, in_use={"used"})
        assert over.over == 50

    def test_old_ones_are_compressed_where_it_gains(self):
        files = [file("new", 100, 1), file("old", 100, 40), file("noise", 100, 41)]
        limits = Limits(compress_after=timedelta(days=30))
        plan = plan_cleanup(files, limits, now=START, gain=lambda f: 30 if f.path == "old" else 0)
        assert planned(plan) == [("compress", "old")]
        assert plan.bytes_after == 270


class TestCache:
    def test_only_what_the_pack_downloaded(self, cache, models, download):
        download("ours.safetensors")
        (models / "loras" / "theirs.safetensors").write_bytes(b"x" * 5000)
        plan = cache.plan(Limits(cap_bytes=0))
        assert planned(plan) == [("remove", "ours.safetensors")]
        assert (models / "loras" / "ours.safetensors").exists()  # a plan touches nothing
        report = cache.clean(plan)
        assert report.freed_bytes == 1000
        assert [p.name for p in (models / "loras").iterdir()] == ["theirs.safetensors"]
        assert cache.files() == []

    def test_use_decides_and_survives_the_process(self, cache, download, database, catalog, clock):
        first, _, _ = (download(f"{name}.safetensors") for name in "abc")
        cache.touch([first, "/not/ours.safetensors"])
        again = DiskCache(database, catalog, now=clock)
        assert names(again.files()) == ["a.safetensors", "c.safetensors", "b.safetensors"]
        assert planned(again.plan(Limits(keep_recent=2))) == [("remove", "b.safetensors")]

    def test_what_changed_since_the_plan_is_left_alone(self, cache, download):
        used, pinned, changed, loaded = (download(f"{n}.safetensors") for n in "abcd")
        plan = cache.plan(Limits(cap_bytes=0))
        cache.touch([used])
        cache.pin(pinned, pinned=True)
        changed.write_bytes(b"the user's own now")
        report = cache.clean(plan, in_use=[loaded])
        assert (report.removed, report.freed_bytes) == ((), 0)
        assert len(report.left_alone) == 4
        assert all(path.exists() for path in (used, pinned, changed, loaded))

    def test_a_changed_file_is_the_users(self, cache, download):
        download("a.safetensors").write_bytes(b"edited")
        assert cache.files() == []

    def test_a_download_is_never_hashed_again(self, cache, catalog, download, monkeypatch):
        path = download("a.safetensors")
        monkeypatch.setattr(module, "hash_file", None)
        assert catalog.sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()

    def test_compressed_and_restored(self, cache, catalog, download, clock):
        content = b"weights that repeat " * 5000
        path = download("a.safetensors", content=content)
        download("noise.safetensors", 100_000)
        clock.now += timedelta(days=31)
        plan = cache.plan(Limits(compress_after=timedelta(days=30)))
        assert planned(plan) == [("compress", "a.safetensors")]
        report = cache.clean(plan)
        packed = Path(f"{path}{PACKED}")
        assert report.freed_bytes == len(content) - packed.stat().st_size > 0
        assert not path.exists()
        assert cache.compressed(path)
        assert cache.restore(path).read_bytes() == content
        assert not packed.exists()
        assert not cache.compressed(path)
        assert catalog.sha256(path) == hashlib.sha256(content).hexdigest()
        assert names(cache.files()) == ["noise.safetensors", "a.safetensors"]
        assert cache.restore(path) == path

    def test_a_damaged_archive_is_an_error_and_stays(self, cache, download, clock):
        path = download("a.safetensors", content=b"weights " * 5000)
        clock.now += timedelta(days=31)
        cache.clean(cache.plan(Limits(compress_after=timedelta(days=30))))
        packed = Path(f"{path}{PACKED}")
        data = bytearray(packed.read_bytes())
        data[len(data) // 2] ^= 0xFF
        packed.write_bytes(data)
        with pytest.raises(ModelFileError, match=r"a\.safetensors\.gz"):
            cache.restore(path)
        assert list(path.parent.iterdir()) == [packed]

    def test_what_was_never_there_is_not_restored(self, cache, models):
        with pytest.raises(ModelFileError, match="Download it again"):
            cache.restore(models / "loras" / "x.safetensors")
