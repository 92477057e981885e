"""Where tokens are, and where they never appear."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from intelligent_generation.core.errors import SettingError
from intelligent_generation.core.hubs import Credentials

posix = pytest.mark.skipif(os.name != "posix", reason="rights of files are kept elsewhere")


def test_set_status_and_clear(tmp_path: Path) -> None:
    credentials = Credentials(tmp_path / "private", {})
    assert credentials.status() == {"huggingface": "not set", "civitai": "not set"}
    assert credentials.token("civitai") is None
    assert credentials.authorization("civitai") is None
    credentials.set("civitai", " canary-7 \n")
    again = Credentials(tmp_path / "private", {})
    assert again.token("civitai") == "canary-7"
    assert again.authorization("civitai") == "Bearer canary-7"
    assert again.status() == {"huggingface": "not set", "civitai": "set"}
    again.clear("civitai")
    again.clear("civitai")
    assert again.status()["civitai"] == "not set"


@pytest.mark.parametrize(
    ("hub", "name"),
    [
        ("civitai", "CIVITAI_API_TOKEN"),
        ("civitai", "CIVITAI_API_KEY"),
        ("huggingface", "HF_TOKEN"),
    ],
)
def test_the_environment_comes_first(tmp_path: Path, hub, name: str) -> None:
    credentials = Credentials(tmp_path, {name: "from-outside"})
    credentials.set(hub, "from-file")
    assert credentials.token(hub) == "from-outside"
    assert credentials.variable(hub) == name
    assert credentials.status()[hub] == "set"
    assert Credentials(tmp_path, {name: "  "}).token(hub) == "from-file"


def test_the_newer_variable_wins_over_the_older(tmp_path: Path) -> None:
    both = {"CIVITAI_API_TOKEN": "one", "CIVITAI_API_KEY": "two"}
    assert Credentials(tmp_path, both).token("civitai") == "one"


@posix
def test_only_the_user_may_read_it(tmp_path: Path) -> None:
    credentials = Credentials(tmp_path, {})
    credentials.set("huggingface", "canary-8")
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    credentials.token("huggingface")
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("bad", ["", "  ", "two words", "line\r\nX-Evil: 1", "tökén", "x" * 5000])
def test_what_is_no_token_is_refused_and_not_repeated(tmp_path: Path, bad: str) -> None:
    credentials = Credentials(tmp_path, {})
    credentials.set("civitai", "good")
    with pytest.raises(SettingError, match="CivitAI token") as caught:
        credentials.set("civitai", bad)
    assert not bad.strip() or bad not in str(caught.value)
    assert credentials.token("civitai") == "good"


def test_a_spoiled_file_is_told_without_its_content(tmp_path: Path) -> None:
    credentials = Credentials(tmp_path, {})
    credentials.set("civitai", "good")
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"canary-9 \xff")
    with pytest.raises(SettingError, match="Set it again") as caught:
        credentials.token("civitai")
    assert "canary" not in str(caught.value)


def test_nothing_shows_a_token(tmp_path: Path) -> None:
    credentials = Credentials(tmp_path, {"HF_TOKEN": "canary-10"})
    credentials.set("civitai", "canary-11")
    shown = repr(credentials) + str(credentials) + str(credentials.status())
    assert "canary" not in shown


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match="cannot be stored") as caught:
        Credentials(tmp_path / "file", {}).set("civitai", "canary-12")
    assert "canary" not in str(caught.value)
