"""What is not shown."""

from __future__ import annotations

from typing import Any

import pytest
from intelligent_generation.core.hubs import RemoteVersion, SafetyRules, blocked_by
from intelligent_generation.core.hubs.safety import marked_for_adults, words

ALL = SafetyRules(allow_nsfw=True)


def version(**fields: Any) -> RemoteVersion:
    return RemoteVersion(
        **{"hub": "civitai", "model_id": "1", "version_id": "2", "name": "A style",
           "kind": "lora", "base_model": "SDXL 1.0", "family": "sdxl", "files": ()} | fields
    )  # fmt: skip


def test_the_ordinary_is_shown() -> None:
    assert blocked_by(version(tags=("style", "landscape"))) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"nsfw": True},
        {"tags": ("nsfw",)},
        {"name": "Nude_study v2"},
        {"trigger_words": ("a, naked",)},
        {"tags": ("Not-For-All-Audiences",)},
    ],
)
def test_safe_for_work_is_the_default(fields: dict[str, Any]) -> None:
    assert blocked_by(version(**fields)) is not None
    assert blocked_by(version(**fields), ALL) is None


def test_words_are_whole_words() -> None:
    names = ("Sussex coast", "Cockatoo", "Teenage Engineering synth", "Cumulus", "Anudenim")
    assert [blocked_by(version(name=name)) for name in names] == [None] * len(names)


@pytest.mark.parametrize(
    ("fields", "blocked"),
    [
        ({"name": "Best of 2018"}, False),
        ({"name": "Model 18"}, True),
        ({"tags": ("18",)}, True),
        ({"tags": ("a18",)}, False),
        ({"tags": ("18+",)}, True),
        ({"description": "it turned 18"}, False),
    ],
)
def test_a_blocked_tag_is_exact(fields: dict[str, Any], blocked: bool) -> None:
    rules = SafetyRules(blocked_tags=("18",))
    assert (blocked_by(version(**fields), rules) is not None) is blocked


@pytest.mark.parametrize(
    ("tag", "said", "blocked"),
    [
        ("giant robot", "Giant_Robot style", True),
        ("giant robot", "robot giant", False),
        ("giant robot", "giant blue robot", False),
        ("Café", "cafe terrace", True),
        ("", "anything", False),
        ("...", "anything", False),
    ],
)
def test_blocked_phrases(tag: str, said: str, blocked: bool) -> None:
    rules = SafetyRules(blocked_tags=(tag,))
    assert (blocked_by(version(name=said), rules) is not None) is blocked


def test_blocked_creators() -> None:
    assert blocked_by(version(creator="Someone"), SafetyRules(blocked_tags=("someone",)))


@pytest.mark.parametrize(
    "fields",
    [
        {"minor_unsafe": True},
        {"nsfw": True, "tags": ("loli",)},
        {"tags": ("hentai", "schoolgirl")},
        {"name": "Young Girl", "nsfw": True},
        {"name": "17 years old", "tags": ("nude",)},
        {"name": "12yo", "nsfw": True},
        {"name": "x", "nsfw": True, "description": "a child"},
        {"tags": ("toddler",), "description": "explicit sex"},
    ],
)
def test_minors_are_blocked_whatever_is_allowed(fields: dict[str, Any]) -> None:
    assert blocked_by(version(**fields), ALL) is not None
    assert blocked_by(version(**fields)) is not None


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "Children's book illustration"},
        {"name": "Kid playing", "tags": ("family",)},
        {"name": "25 years old wine", "nsfw": True},
        {"name": "Adult", "nsfw": True, "tags": ("1980",)},
    ],
)
def test_other_content_is_not_taken_for_it(fields: dict[str, Any]) -> None:
    assert blocked_by(version(**fields), ALL) is None


def test_words_and_marks() -> None:
    assert words("Ｆｕｌｌ-Width_Ünder 18+") == ("full", "width", "under", "18")
    assert marked_for_adults(["lora", "not-for-all-audiences"])
    assert not marked_for_adults(["nsfw-filter"])
