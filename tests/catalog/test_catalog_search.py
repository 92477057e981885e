"""One search over disk, memory and hubs; the scan in the background."""

from __future__ import annotations

import hashlib
import threading
from datetime import datetime, timezone

import pytest
from intelligent_generation.core.catalog import BackgroundScan, ModelSearch
from intelligent_generation.core.catalog import library as module
from intelligent_generation.core.errors import HubBusyError, SettingError
from intelligent_generation.core.hubs import SafetyRules, SearchPage, SearchQuery
from intelligent_generation.core.hubs.entries import RemoteFile, RemoteVersion

NOW = datetime(2026, 11, 1, tzinfo=timezone.utc)


def remote(version_id: str, sha: str | None = None, /, **fields) -> RemoteVersion:
    given = {
        "hub": "civitai",
        "model_id": "1",
        "version_id": version_id,
        "name": f"Ink {version_id}",
        "kind": "lora",
        "base_model": "SD 1.5",
        "family": "sd15",
        "files": (RemoteFile("civitai", "https://civitai.com/x", "ink.safetensors", 1, sha),),
    }
    return RemoteVersion(**{**given, **fields})


@pytest.fixture
def catalog(open_catalog):
    return open_catalog()


@pytest.fixture
def add(models, write_model, kohya_lora):
    def add(name: str, metadata: dict | None = None, *, context: int = 768):
        return write_model(models / "loras" / name, kohya_lora(context), metadata)

    return add


def asking(*versions: RemoteVersion, cursor: str | None = None):
    return lambda query: SearchPage(versions, cursor)


def titles(result) -> list[str]:
    return [hit.title for hit in result.hits]


class TestSearch:
    def test_spans_all_sources_and_one_model_is_one_result(self, catalog, add):
        path = add("ink wash.safetensors")
        catalog.sha256(path)
        catalog.remember([remote("met")])
        here = remote("here", hashlib.sha256(path.read_bytes()).hexdigest(), name="Ink wash")
        repo = remote("main", hub="huggingface", model_id="o/ink", name="Ink of o")
        result = ModelSearch(catalog).search(
            SearchQuery("ink"), hubs={"civitai": asking(here), "huggingface": asking(repo)}
        )
        assert [(hit.title, hit.source, hit.entry is not None) for hit in result.hits] == [
            ("Ink wash", "civitai", True),
            ("Ink met", "civitai", False),
            ("Ink of o", "huggingface", False),
        ]
        assert result.cursor is None
        again = ModelSearch(catalog).search(SearchQuery("ink"))  # what hubs told was kept
        assert sorted(titles(again)) == sorted(titles(result))

    def test_everything_matches(self, catalog, add):
        add("ink.safetensors", {"modelspec.tags": "style"})
        add("ink xl.safetensors", context=2048)
        catalog.remember(
            [remote("a", tags=("style",)), remote("b", base_model="Pony", family="pony")]
        )

        def found(**query) -> list[str]:
            return titles(ModelSearch(catalog).search(SearchQuery(**query)))

        assert found(families=("sd15",)) == ["ink", "Ink a"]
        assert found(base_models=("SD 1.5",)) == ["ink", "Ink a"]
        assert found(tags=("Style",)) == ["ink", "Ink a"]
        assert found(kind="checkpoint") == []
        assert found(text="nk") == []
        assert found(text="xl") == ["ink xl"]

    def test_a_hub_that_fails_costs_only_its_own_results(self, catalog, add):
        add("ink.safetensors")

        def failing(query):
            raise HubBusyError("CivitAI asked to wait.")

        result = ModelSearch(catalog).search(SearchQuery("ink"), hubs={"civitai": failing})
        assert titles(result) == ["ink"]
        assert [notice.message for notice in result.notices] == ["CivitAI asked to wait."]

    def test_pages_go_on_for_each_source_until_its_end(self, catalog, add):
        for number in range(3):
            add(f"ink {number}.safetensors")
        cursors: list[str | None] = []

        def hub(query):
            cursors.append(query.cursor)
            return SearchPage((remote(f"p{query.cursor}"),), None if query.cursor else "next")

        search = ModelSearch(catalog)
        seen: list[str] = []
        query = SearchQuery("ink", limit=2)
        while True:
            result = search.search(query, hubs={"civitai": hub}, known=False)
            seen += titles(result)
            if result.cursor is None:
                break
            query = query._replace(cursor=result.cursor)
        assert sorted(seen) == ["Ink pNone", "Ink pnext", "ink 0", "ink 1", "ink 2"]
        assert cursors == [None, "next"]

    @pytest.mark.parametrize("cursor", ["x", "[]", '{"local": "x"}'])
    def test_a_foreign_cursor_is_refused(self, catalog, cursor):
        with pytest.raises(SettingError, match="Search anew"):
            ModelSearch(catalog).search(SearchQuery(cursor=cursor))


class TestSafety:
    def test_safe_for_work_by_default(self, catalog, add):
        path = add("ink.safetensors")
        path.with_name("ink.civitai.info").write_text('{"model": {"nsfw": true}}')
        add("nsfw style.safetensors")
        catalog.remember([remote("a", nsfw=True), remote("b")])
        search = ModelSearch(catalog)
        result = search.search(SearchQuery())
        assert (titles(result), result.hidden) == (["Ink b"], 3)
        allowed = search.search(SearchQuery(), rules=SafetyRules(allow_nsfw=True))
        assert (len(allowed.hits), allowed.hidden) == (4, 0)

    def test_blocked_tags_are_whole_words(self, catalog, add):
        add("a.safetensors", {"modelspec.tags": "style of 2018"})
        add("b.safetensors", {"modelspec.tags": "18"})
        rules = SafetyRules(blocked_tags=("18",))
        assert titles(ModelSearch(catalog).search(SearchQuery(), rules=rules)) == ["a"]

    def test_minors_are_never_shown_whatever_is_allowed(self, catalog, add):
        path = add("a.safetensors")
        path.with_name("a.civitai.info").write_text('{"model": {"minor": true}}')
        add("b.safetensors", {"modelspec.tags": "loli, nsfw"})
        catalog.remember([remote("c", minor_unsafe=True)])
        result = ModelSearch(catalog).search(SearchQuery(), rules=SafetyRules(allow_nsfw=True))
        assert (result.hits, result.hidden) == ((), 3)

    def test_a_file_is_what_its_hub_says_it_is(self, catalog, add):
        path = add("ink.safetensors")
        sha = catalog.sha256(path)
        catalog.remember([remote("a", sha, nsfw=True)])
        assert ModelSearch(catalog).search(SearchQuery()).hits == ()


class TestBackground:
    def test_scans_hashes_and_asks_with_progress(self, catalog, add):
        sha = hashlib.sha256(add("ink.safetensors").read_bytes()).hexdigest()
        seen = []
        scan = BackgroundScan(
            catalog,
            hash_files=True,
            by_hashes=lambda hashes: {sha: remote("a", sha, trigger_words=("inkwash",))},
            on_change=seen.append,
        )
        assert scan.start()
        assert scan.join(60)
        assert scan.status.phase == "done"
        assert scan.status.report.read == 1
        assert list(dict.fromkeys(s.phase for s in seen)) == [
            "scanning",
            "hashing",
            "asking",
            "done",
        ]
        assert catalog.loras().entries[0].trigger_words[0].text == "inkwash"

    def test_stops_when_told_and_starts_once(self, catalog, add, monkeypatch):
        add("ink.safetensors")
        entered, leave = threading.Event(), threading.Event()

        def waiting(place, size, on_progress, stop, **rest):
            entered.set()
            assert leave.wait(60)
            assert stop()
            raise module.ModelFileError("stopped")

        monkeypatch.setattr(module, "hash_file", waiting)
        scan = BackgroundScan(catalog, hash_files=True)
        scan.start()
        assert entered.wait(60)
        assert not scan.start()
        scan.stop()
        leave.set()
        assert scan.join(60)
        assert scan.status.phase == "stopped"

    def test_a_failure_is_told(self, catalog, add):
        add("ink.safetensors")

        def failing(hashes):
            raise HubBusyError("CivitAI asked to wait.")

        scan = BackgroundScan(catalog, hash_files=True, by_hashes=failing)
        scan.start()
        scan.join(60)
        assert (scan.status.phase, scan.status.error) == ("failed", "CivitAI asked to wait.")
