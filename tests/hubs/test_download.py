"""The downloader against a loopback host with faults: right and verified, or a clear error."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import logging
import os
import random
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import pytest
from intelligent_generation.core import filelock
from intelligent_generation.core.catalog import read_header
from intelligent_generation.core.errors import (
    DownloadError,
    HubAccessError,
    HubBusyError,
    HubError,
    HubNotFoundError,
    ModelFileError,
)
from intelligent_generation.core.hubs.download import (
    BLOCK_BYTES,
    PAUSES,
    Downloaded,
    DownloadProgress,
    DownloadRequest,
    _advice,
    download,
    replace,
    safe_name,
)
from intelligent_generation.core.hubs.http import TRIES, Effects, Http, Pace
from intelligent_generation.tests.services.storage import Fault, FileHost

NAME = "model.safetensors"
CANARY = "Bearer canary-7f3a"


def model(size: int, seed: int = 1) -> bytes:
    """A sound safetensors file of exactly `size` bytes."""
    header = b'{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}'
    room = 120
    text = (header % (size - 8 - room, size - 8 - room)).ljust(room)
    data = random.Random(seed).randbytes(size - 8 - room)
    return room.to_bytes(8, "little") + text + data


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


CONTENT = model(3 * BLOCK_BYTES + 12_345)


class Time:
    """A clock that runs by itself and jumps over every sleep."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def clock(self) -> float:
        return time.monotonic() + sum(self.slept)

    def effects(self, stop: Callable[[], None] = lambda: None) -> Effects:
        return Effects(self.clock, self.slept.append, lambda: 0.5, stop)


@pytest.fixture
def host() -> Iterator[FileHost]:
    with FileHost() as started:
        yield started


@pytest.fixture
def get(host: FileHost, tmp_path: Path) -> Callable[..., Downloaded]:
    """Offer `content` and download it with what is promised of it."""

    def run(
        content: bytes = CONTENT,
        *,
        effects: Effects | None = None,
        how: Any = None,
        **promised: Any,
    ) -> Downloaded:
        url = promised.pop("url", None) or host.put("/file", content)
        request = {"hub": "civitai", "name": NAME, "folder": tmp_path} | promised
        request.setdefault("size", len(content))
        request.setdefault("sha256", sha256(content))
        return download(
            DownloadRequest(url=url, **request),
            http=Http(),
            pace=Pace(1000),
            check=read_header,
            effects=effects or Time().effects(),
            **(how or {}),
        )

    return run


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_complete_and_alone(host: FileHost, get: Any, tmp_path: Path) -> None:
    done = get()
    assert done[:4] == (tmp_path / NAME, len(CONTENT), sha256(CONTENT), len(CONTENT))
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert left(tmp_path) == [NAME]
    assert len(host.requests) == 1


def test_the_folder_is_made_and_upper_case_hashes_hold(get: Any, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert get(folder=folder, sha256=sha256(CONTENT).upper()).path == folder / NAME


def test_a_file_that_is_there_is_not_fetched(host: FileHost, get: Any, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(CONTENT)
    done = get()
    assert (done.fetched, done.sha256, host.requests) == (0, sha256(CONTENT), [])
    asked: list[Path] = []

    def known(path: Path) -> str:
        asked.append(path)
        return sha256(CONTENT)

    get(how={"sha256_of": known})
    assert asked == [tmp_path / NAME]
    assert get(sha256=None).sha256 is None
    assert host.requests == []
    assert left(tmp_path) == [NAME]


@pytest.mark.parametrize("promised", [{}, {"size": None}, {"sha256": None}])
def test_another_file_of_that_name_is_never_replaced(
    host: FileHost, get: Any, tmp_path: Path, promised: dict[str, Any]
) -> None:
    other = model(len(CONTENT) + ("sha256" in promised), seed=9)
    (tmp_path / NAME).write_bytes(other)
    with pytest.raises(DownloadError, match="Another file of that name"):
        get(**promised)
    assert (tmp_path / NAME).read_bytes() == other
    assert host.requests == []


def test_an_unsound_file_that_is_there_is_told(get: Any, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(CONTENT[:-1])
    with pytest.raises(ModelFileError, match="truncated"):
        get(size=None, sha256=None)


# ------------------------------------------------------------------ cuts

CUTS = [0, 1, 9, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, len(CONTENT) - 1]


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_is_resumed_where_it_was(
    host: FileHost, get: Any, tmp_path: Path, cut: int, reset: bool
) -> None:
    host.faults.append(Fault(cut_after=cut, reset=reset))
    done = get()
    assert (tmp_path / NAME).read_bytes() == CONTENT
    first, second = host.starts
    assert first == 0
    # A reset takes what the system had not handed over yet.
    assert second <= cut if reset else second == cut
    assert done.fetched == len(CONTENT)


def test_many_cuts_with_new_bytes_between_cost_no_try(
    host: FileHost, get: Any, tmp_path: Path
) -> None:
    content = model(12 * BLOCK_BYTES)
    host.faults.extend([Fault(cut_after=BLOCK_BYTES)] * (TRIES + 5))
    get(content)
    assert (tmp_path / NAME).read_bytes() == content
    assert host.starts == [n * BLOCK_BYTES for n in range(TRIES + 6)]


def test_a_server_that_always_cuts_ends_in_an_error_and_the_next_run_goes_on(
    host: FileHost, get: Any, tmp_path: Path
) -> None:
    host.faults.append(Fault(cut_after=2_000_000))
    host.faults.extend([Fault(cut_after=0)] * (TRIES + 1))
    time_ = Time()
    with pytest.raises(HubBusyError, match=r"after 2,000,000 of 3,158,073 bytes.*kept"):
        get(effects=time_.effects())
    assert left(tmp_path) == [f"{NAME}.part", f"{NAME}.part.json"]
    assert sum(time_.slept) == pytest.approx(0.75 * (1 + 2 + 4 + 8), abs=1)
    host.faults.clear()
    host.requests.clear()
    done = get()
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert (host.starts, done.fetched) == ([2_000_000], len(CONTENT) - 2_000_000)
    assert left(tmp_path) == [NAME]


def test_a_server_that_ignores_range_starts_anew(host: FileHost, get: Any, tmp_path: Path) -> None:
    host.faults.extend([Fault(cut_after=2_000_000), Fault(ignore_range=True)])
    get()
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert host.starts == [0, 2_000_000]


def test_a_server_that_ignores_range_and_cuts_is_given_up(host: FileHost, get: Any) -> None:
    host.faults.extend([Fault(cut_after=2_000_000, ignore_range=True)] * 20)
    with pytest.raises(HubBusyError, match="cut off"):
        get()
    assert len(host.requests) == TRIES + 1


def test_an_empty_answer_does_not_cost_what_is_there(
    host: FileHost, get: Any, tmp_path: Path
) -> None:
    host.faults.extend([Fault(cut_after=2_000_000), Fault(cut_after=0, ignore_range=True)])
    get()
    assert host.starts == [0, 2_000_000, 2_000_000]


def begin(get: Any, host: FileHost, content: bytes, there: int, **promised: Any) -> None:
    """Leave a .part of so many bytes."""
    host.faults.append(Fault(cut_after=there))
    host.faults.extend([Fault(cut_after=0)] * (TRIES + 1))
    with pytest.raises(HubBusyError):
        get(content, **promised)
    host.faults.clear()
    host.requests.clear()


def test_a_part_longer_than_the_file_starts_anew(host: FileHost, get: Any, tmp_path: Path) -> None:
    begin(get, host, CONTENT, 2_000_000)
    with (tmp_path / f"{NAME}.part").open("ab") as part:
        part.write(bytes(len(CONTENT)))
    get()
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert host.starts == [0]


def test_416_without_a_known_length(host: FileHost, get: Any, tmp_path: Path) -> None:
    chunked = {"size": None, "sha256": None}
    host.faults.append(Fault(cut_after=2_000_000, chunked=True))
    host.faults.extend([Fault(status=503)] * (TRIES + 1))
    with pytest.raises(HubBusyError):
        get(**chunked)
    host.faults.clear()
    host.requests.clear()
    part = tmp_path / f"{NAME}.part"
    part.write_bytes(CONTENT)  # the cut came after the last byte: 416 says that it is complete
    get(**chunked)
    assert host.starts == [len(CONTENT)]
    # Nothing of the file; the server counts a piece after writing it, perhaps after this line.
    assert host.sent <= len(b"no such range")
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_416_for_more_than_there_is_starts_anew(host: FileHost, get: Any, tmp_path: Path) -> None:
    begin(get, host, CONTENT, 2_000_000)
    host.faults.append(Fault(status=416, headers={"Content-Range": "bytes */1000000"}))
    get()
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert host.starts == [2_000_000, 0]


def test_another_range_than_asked_for_is_not_taken(
    host: FileHost, get: Any, tmp_path: Path
) -> None:
    begin(get, host, CONTENT, 2_000_000)
    wrong = f"bytes 1000000-{len(CONTENT) - 1}/{len(CONTENT)}"
    body = CONTENT[1_000_000:]
    host.faults.append(Fault(status=206, headers={"Content-Range": wrong}, body=body))
    get()
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_a_server_that_gives_less_than_asked_for_is_asked_again(
    host: FileHost, get: Any, tmp_path: Path
) -> None:
    begin(get, host, CONTENT, 2_000_000)
    piece = {"Content-Range": f"bytes 2000000-2499999/{len(CONTENT)}"}
    host.faults.append(Fault(status=206, headers=piece, body=CONTENT[2_000_000:2_500_000]))
    get()
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert host.starts == [2_000_000, 2_500_000]


@pytest.mark.parametrize("known", [True, False])
def test_a_changed_file_starts_anew(host: FileHost, get: Any, tmp_path: Path, known: bool) -> None:
    fresh = model(len(CONTENT), seed=2)
    promised = {"sha256": sha256(fresh)} if known else {"sha256": None}
    begin(get, host, CONTENT, 2_000_000, **promised)
    get(fresh, **promised)
    assert (tmp_path / NAME).read_bytes() == fresh
    assert host.starts == [2_000_000, 0]


def test_a_part_of_another_content_is_not_used(host: FileHost, get: Any, tmp_path: Path) -> None:
    begin(get, host, CONTENT, 2_000_000)
    fresh = model(len(CONTENT), seed=2)
    get(fresh)
    assert (tmp_path / NAME).read_bytes() == fresh
    assert host.starts == [0]


def test_a_mirror_with_the_same_content_goes_on(host: FileHost, get: Any, tmp_path: Path) -> None:
    begin(get, host, CONTENT, 2_000_000)
    get(url=host.put("/elsewhere", CONTENT))
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert host.starts == [2_000_000]


def test_without_any_mark_a_part_is_not_trusted(host: FileHost, get: Any, tmp_path: Path) -> None:
    unmarked = Fault(headers={"ETag": ""}, cut_after=2_000_000)
    host.faults.extend([unmarked, *[Fault(status=503)] * TRIES])
    with pytest.raises(HubBusyError):
        get(sha256=None)
    host.requests.clear()
    host.faults.clear()
    get(sha256=None)
    assert host.starts == [0]
    assert (tmp_path / NAME).read_bytes() == CONTENT


# ------------------------------------------------------------------ wrong content


def test_wrong_bytes_are_kept_aside(host: FileHost, get: Any, tmp_path: Path) -> None:
    wrong = model(len(CONTENT), seed=3)
    host.faults.append(Fault(body=wrong))
    with pytest.raises(DownloadError, match="SHA-256") as caught:
        get()
    kept = f"{NAME}.{sha256(wrong)[:10]}.mismatch"
    assert kept in str(caught.value)
    assert left(tmp_path) == [kept]
    assert (tmp_path / kept).read_bytes() == wrong
    get()
    assert left(tmp_path) == [NAME, kept]


def test_an_unsound_model_is_kept_aside(get: Any, tmp_path: Path) -> None:
    broken = CONTENT[:-5]
    with pytest.raises(DownloadError, match=r"no sound model.*truncated"):
        get(broken, sha256=None)
    assert left(tmp_path) == [f"{NAME}.{sha256(broken)[:10]}.mismatch"]


@pytest.mark.parametrize("wrong", [len(CONTENT) - 1, len(CONTENT) + 1])
def test_another_length_than_the_hub_lists(
    host: FileHost, get: Any, tmp_path: Path, wrong: int
) -> None:
    with pytest.raises(DownloadError, match="lists"):
        get(size=wrong)
    assert left(tmp_path) == []
    assert len(host.requests) == 1


def test_a_body_shorter_than_its_length(host: FileHost, get: Any, tmp_path: Path) -> None:
    host.faults.append(Fault(body=CONTENT[:-7], headers={"Content-Length": str(len(CONTENT))}))
    get()
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert host.starts == [0, len(CONTENT) - 7]


def test_a_body_longer_than_promised(host: FileHost, get: Any, tmp_path: Path) -> None:
    host.faults.append(Fault(body=CONTENT + bytes(BLOCK_BYTES), chunked=True))
    with pytest.raises(DownloadError, match="sends more"):
        get()
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(body=b"<!DOCTYPE html><html>log in</html>"),
        Fault(body=b"\n\n  <html>log in</html>"),
        Fault(body=b'{"error":"Unauthorized"}'),
        Fault(body=model(3000), headers={"Content-Type": "text/html; charset=utf-8"}),
        Fault(body=b"<html></html>", chunked=True),
    ],
)
def test_a_web_page_is_no_model(host: FileHost, get: Any, tmp_path: Path, fault: Any) -> None:
    host.faults.append(fault)
    with pytest.raises(DownloadError, match="web page"):
        get(size=None, sha256=None)
    assert left(tmp_path) == []


def test_a_web_page_instead_of_the_rest_does_not_cost_the_part(
    host: FileHost, get: Any, tmp_path: Path
) -> None:
    begin(get, host, CONTENT, 2_000_000, size=None)
    host.faults.append(Fault(body=b"<html>log in</html>", ignore_range=True))
    with pytest.raises(DownloadError, match="web page"):
        get(size=None)
    get(size=None)
    assert host.starts == [2_000_000, 2_000_000]
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_a_header_length_may_begin_like_a_page(get: Any, tmp_path: Path) -> None:
    text = b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'.ljust(0x3C)
    content = len(text).to_bytes(8, "little") + text + b"ab"  # first byte "<"
    assert content[:1] == b"<"
    get(content)
    assert (tmp_path / NAME).read_bytes() == content


def test_small_text_files_are_taken(get: Any, tmp_path: Path) -> None:
    get(b'{"a": 1}', name="config.json", sha256=None)
    assert (tmp_path / "config.json").read_bytes() == b'{"a": 1}'


def test_neither_length_nor_hash(host: FileHost, get: Any, tmp_path: Path) -> None:
    host.faults.append(Fault(chunked=True))
    seen: list[DownloadProgress] = []
    done = get(size=None, sha256=None, how={"on_progress": seen.append})
    assert (done.size, done.sha256) == (len(CONTENT), sha256(CONTENT))
    assert seen[-1].total is None
    assert seen[-1].done == len(CONTENT)


# ------------------------------------------------------------------ refusals, redirects, tokens


def test_no_token_goes_to_another_host(
    host: FileHost, get: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A canary is in no request to the second host, no log, no file and no error."""
    caplog.set_level(logging.DEBUG)
    host.put("/signed", CONTENT)
    with FileHost(rejects_authorization=False) as front:
        front.redirects["/download"] = host.url("/signed?signature=secret", "localhost")
        host.faults.append(Fault(cut_after=2_000_000))
        host.faults.extend([Fault(cut_after=0)] * TRIES)
        promised = {"url": front.url("/download"), "authorization": CANARY}
        with pytest.raises(HubBusyError) as caught:
            get(**promised)
        texts = ["".join(traceback.format_exception(caught.value))]
        texts += [p.read_bytes().decode("latin-1") for p in tmp_path.iterdir()]
        host.faults.clear()
        get(**promised)
        assert all(seen.headers["authorization"] == CANARY for seen in front.requests)
        assert front.starts == host.starts
    assert not any("authorization" in seen.headers for seen in host.requests)
    assert (tmp_path / NAME).read_bytes() == CONTENT
    texts.append(
        repr(DownloadRequest("civitai", "http://x/y", tmp_path, NAME, authorization=CANARY))
    )
    assert not [text for text in texts if "canary" in text or "secret" in text]
    assert "canary" not in caplog.text


@pytest.mark.parametrize("address", ["http://h/f?token=abc", "http://u:abc@h/f", "ftp://h/abc"])
def test_addresses_that_are_refused(get: Any, tmp_path: Path, address: str) -> None:
    with pytest.raises(DownloadError) as caught:
        get(url=address)
    assert "token=abc" not in str(caught.value)
    assert "u:abc" not in str(caught.value)
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, {"error": "Unauthorized", "message": "The creator of this asset requires you to be "
               "logged in to download it"}, HubAccessError),
        (403, {"error": "Early Access", "deadline": "2027-01-01", "message": "x"}, HubAccessError),
        (404, {"error": "File not found"}, HubNotFoundError),
        (410, {"error": "Model archived, not available for download"}, HubNotFoundError),
    ],
)  # fmt: skip
def test_a_refusal_says_what_the_hub_means(
    host: FileHost, get: Any, tmp_path: Path, status: int, body: dict[str, str], error: type
) -> None:
    host.faults.append(Fault(status=status, body=json.dumps(body).encode()))
    with pytest.raises(error, match="CivitAI"):
        get()
    assert (len(host.requests), left(tmp_path)) == (1, [])


def test_a_link_of_the_storage_host_that_ended_is_asked_for_anew(
    host: FileHost, get: Any, tmp_path: Path
) -> None:
    host.put("/signed", CONTENT)
    host.faults.append(Fault(status=403, body=b"<Error>expired</Error>"))
    with FileHost() as front:
        front.redirects["/download"] = host.url("/signed", "localhost")
        get(url=front.url("/download"))
        assert len(front.requests) == 2
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_too_many_requests_waits_as_asked(host: FileHost, get: Any, tmp_path: Path) -> None:
    host.faults.extend([Fault(status=429, headers={"Retry-After": "17"}), Fault(status=503)])
    time_ = Time()
    get(effects=time_.effects())
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert 17 <= sum(time_.slept) < 22


def test_a_server_that_is_not_there(get: Any, tmp_path: Path) -> None:
    with FileHost() as gone:
        url = gone.url("/file?signature=secret")
    with pytest.raises(HubError, match="cannot be reached") as caught:
        get(url=url)
    assert "secret" not in "".join(traceback.format_exception(caught.value))
    assert left(tmp_path) == []


# ------------------------------------------------------------------ names and kinds


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../evil.safetensors", "path"), ("a/b.safetensors", "path"), ("a\\b.safetensors", "path"),
        ("/etc/x.safetensors", "path"), ("..", "empty"), ("", "empty"), (" ", "empty"),
        ("C:x.safetensors", "reserved"), ("a?.safetensors", "reserved"), ("a*b.sft", "reserved"),
        ("a\0.safetensors", "control"), ("a\n.safetensors", "control"),
        ("a\u202etfs.safetensors", "invisible"), ("a\ud800.safetensors", "invisible"),
        ("CON.safetensors", "device"), ("nul", "device"), ("com1 .x.safetensors", "device"),
        ("LPT¹.safetensors", "device"), (".hidden.safetensors", "dot"), ("a.safetensors.", "dot"),
        ("a.safetensors ", "space"), ("é" * 130 + ".safetensors", "longer"),
    ],
)  # fmt: skip
def test_names_that_are_refused(
    host: FileHost, get: Any, tmp_path: Path, name: str, why: str
) -> None:
    with pytest.raises(DownloadError, match=why):
        safe_name(name)
    with pytest.raises(DownloadError):
        get(name=name)
    assert (host.requests, left(tmp_path)) == ([], [])


@pytest.mark.parametrize(
    "name", ["a.safetensors", "Übung (v2) [x], 50%.safetensors", "console.sft", "日本.gguf", "a..b"]
)
def test_names_that_are_taken(name: str) -> None:
    assert safe_name(name) == name


def test_names_are_composed() -> None:
    assert safe_name("e\u0301.safetensors") == "é.safetensors"


@pytest.mark.parametrize("name", ["a.ckpt", "a.PT", "a.bin"])
def test_pickle_files_only_when_the_user_says_so(
    host: FileHost, get: Any, tmp_path: Path, name: str
) -> None:
    with pytest.raises(DownloadError, match="pickle"):
        get(name=name)
    assert host.requests == []
    get(b"\x80\x02}q\x00.", name=name, allow_pickle=True)
    assert left(tmp_path) == [name]


@pytest.mark.parametrize("name", ["a.exe", "a.py", "noending", "a.safetensors.part"])
def test_other_kinds_are_refused(get: Any, name: str) -> None:
    with pytest.raises(DownloadError, match="no model file"):
        get(name=name, allow_pickle=True)


# ------------------------------------------------------------------ what Windows does


def test_a_file_that_a_scanner_holds_is_renamed_when_it_lets_go(tmp_path: Path) -> None:
    source, target = tmp_path / "a.part", tmp_path / "a"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    slept: list[float] = []

    def held(one: Path, other: Path) -> None:
        if len(slept) < 3:
            raise PermissionError(errno.EACCES, "in use")
        one.replace(other)

    replace(source, target, move=held, sleep=slept.append, pauses=PAUSES)
    assert target.read_bytes() == b"new" and not source.exists()
    assert slept == sorted(slept) and len(slept) == 3


def test_a_file_that_stays_held_is_told(tmp_path: Path) -> None:
    slept: list[float] = []

    def held(one: Path, other: Path) -> None:
        raise PermissionError(errno.EACCES, "in use")

    with pytest.raises(PermissionError):
        replace(tmp_path / "a.part", tmp_path / "a", move=held, sleep=slept.append, pauses=PAUSES)
    assert 2 < sum(slept) < 5


@pytest.mark.parametrize(
    ("number", "length", "windows", "says"),
    [
        (errno.ENOENT, 300, True, "has 300 characters"),
        (errno.ENOENT, 300, False, "exists and is writable"),
        (errno.ENAMETOOLONG, 300, False, "has 300 characters"),
        (errno.ENOSPC, 300, True, "Free space"),
        (errno.EACCES, 100, True, "Close programs that have it open"),
        (errno.EACCES, 100, False, "exists and is writable"),
    ],
)
def test_what_to_do_about_a_disk_that_refuses(
    number: int, length: int, windows: bool, says: str
) -> None:
    assert says in _advice(number, "x" * length, windows=windows)


@pytest.mark.parametrize("name", ["con", "CON.x", "Aux.safetensors", "nul .sft", "com9.gguf",
                                  "LPT0.safetensors", "conin$", "CONOUT$.json"])  # fmt: skip
@pytest.mark.parametrize("place", ["repository", "file"])
def test_no_part_of_a_repositorys_path_is_a_device(name: str, place: str) -> None:
    path = PurePosixPath(f"{name}/a.safetensors" if place == "repository" else f"a/{name}")
    with pytest.raises(DownloadError, match="device on Windows"):
        [safe_name(part) for part in path.parts]


def test_the_lock_of_windows_lets_one_in_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The branch for Windows, with its module replaced by one that keeps to its contract."""
    held: set[tuple[int, int]] = set()

    def locking(descriptor: int, mode: int, count: int) -> None:
        assert (mode, count) == (2, 1)
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) in held:
            raise PermissionError(errno.EACCES, "Permission denied")
        held.add((status.st_dev, status.st_ino))

    module = ModuleType("msvcrt")
    module.__dict__.update(LK_NBLCK=2, locking=locking)
    monkeypatch.setitem(sys.modules, "msvcrt", module)
    monkeypatch.setattr(sys, "platform", "win32")
    spec = importlib.util.spec_from_file_location("filelock_of_windows", filelock.__file__)
    assert spec and spec.loader
    windows = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(windows)
    lock = tmp_path / "a.part.lock"
    waited: list[int] = []

    class GivenUpError(Exception):
        pass

    def wait() -> None:
        waited.append(1)
        if len(waited) == 3:
            raise GivenUpError

    with windows.one_writer(lock, wait):
        with pytest.raises(GivenUpError), windows.one_writer(lock, wait):
            raise AssertionError("two writers")
        assert lock.exists()
    assert not lock.exists() and len(waited) == 3
    held.clear()
    with windows.one_writer(lock, wait):
        assert len(waited) == 3


# ------------------------------------------------------------------ disk


def test_no_space_is_told_before_anything_is_written(
    host: FileHost, get: Any, tmp_path: Path
) -> None:
    with pytest.raises(DownloadError, match=r"needs 0\.00 GB more.*0\.06 GB free"):
        get(how={"free": lambda folder: 64_000_000})
    assert left(tmp_path) == []


def test_a_folder_that_cannot_be_made(get: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadError, match="cannot be written"):
        get(folder=tmp_path / "file" / "models")


CHILD = """
import json, sys
from pathlib import Path
from intelligent_generation.core.catalog import read_header
from intelligent_generation.core.hubs.download import DownloadRequest, download
from intelligent_generation.core.hubs.http import Http, Pace

url, folder, name, size, sha256, limit = sys.argv[1:]
if int(limit):
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
request = DownloadRequest("civitai", url, Path(folder), name, int(size), sha256)
try:
    done = download(
        request, http=Http(), pace=Pace(1000), check=read_header,
        on_progress=lambda step: print(step.phase, flush=True),
    )
    print(json.dumps([done.fetched, done.sha256]), flush=True)
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)]), flush=True)
"""


def child(url: str, folder: Path, content: bytes, limit: int = 0) -> subprocess.Popen[str]:
    arguments = (url, folder, NAME, len(content), sha256(content), limit)
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


def result(process: subprocess.Popen[str]) -> Any:
    out, _ = process.communicate(timeout=60)
    return json.loads(out.splitlines()[-1])


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are Unix's")
def test_a_full_disk_keeps_what_is_there(host: FileHost, get: Any, tmp_path: Path) -> None:
    url = host.put("/file", CONTENT)
    error, text = result(child(url, tmp_path, CONTENT, limit=1_500_000))
    assert error == "DownloadError"
    assert "Free space" in text
    assert (tmp_path / f"{NAME}.part").stat().st_size == 1_500_000
    assert left(tmp_path) == [f"{NAME}.part", f"{NAME}.part.json"]
    get()
    assert host.starts == [0, 1_500_000]
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_killed_at_ten_random_moments(host: FileHost, get: Any, tmp_path: Path) -> None:
    """Run again, the file is right, and no byte that was on disk is fetched twice."""
    content = model(8 * BLOCK_BYTES + 321)
    url, draw = host.put("/file", content), random.Random(4)
    for round_ in range(10):
        folder = tmp_path / str(round_)
        moment = draw.randrange(len(content))
        host.requests.clear()
        started, running = threading.Event(), []

        def kill(seen: Any, moment: int = moment, started: Any = started, running: Any = running):
            started.wait()
            if seen.sent >= moment:
                running[0].kill()

        host.on_sent = kill
        running.append(child(url, folder, content))
        started.set()
        assert running[0].wait(timeout=60) != 0
        running[0].stdout.close()
        host.on_sent = lambda seen: None
        part = folder / f"{NAME}.part"
        there = part.stat().st_size if part.exists() else 0
        assert not (folder / NAME).exists()
        assert part.exists() is False or part.read_bytes() == content[:there]
        done = get(content, folder=folder)
        assert host.starts == [0, there]
        assert done.fetched == len(content) - there
        assert (folder / NAME).read_bytes() == content
        assert left(folder) == [NAME]


def test_two_processes_want_the_same_file(host: FileHost, tmp_path: Path) -> None:
    url = host.put("/file", CONTENT)
    host.open.clear()
    one, two = child(url, tmp_path, CONTENT), child(url, tmp_path, CONTENT)
    phases: list[str] = []

    def read(process: subprocess.Popen[str]) -> None:
        assert process.stdout
        for line in process.stdout:
            phases.append(line.strip())
            if line.strip() == "waiting":
                host.open.set()

    threads = [threading.Thread(target=read, args=(each,)) for each in (one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert (one.wait(10), two.wait(10)) == (0, 0)
    results = sorted(json.loads(line) for line in phases if line.startswith("["))
    assert results == [[0, sha256(CONTENT)], [len(CONTENT), sha256(CONTENT)]]
    assert len(host.requests) == 1
    assert left(tmp_path) == [NAME]


def test_many_threads_want_the_same_file(host: FileHost, get: Any, tmp_path: Path) -> None:
    host.put("/file", CONTENT)
    fetched: list[int] = []
    threads = [
        threading.Thread(target=lambda: fetched.append(get(effects=Effects()).fetched))
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(fetched) == [0, 0, 0, 0, len(CONTENT)]
    assert left(tmp_path) == [NAME]


# ------------------------------------------------------------------ stop and progress


class StoppedError(Exception):
    pass


def test_stop_is_heard_while_the_server_is_silent(host: FileHost, get: Any, tmp_path: Path) -> None:
    """What it raises comes out unchanged; what was fetched is kept and nothing is added later."""
    silent = threading.Event()
    host.on_sent = lambda seen: seen.sent > 2_000_000 and silent.wait(20)
    part = tmp_path / f"{NAME}.part"

    def stop() -> None:
        if part.exists() and part.stat().st_size >= BLOCK_BYTES // 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        get(effects=Effects(stop=stop))
    there = part.read_bytes()
    silent.set()
    assert CONTENT.startswith(there)
    host.on_sent = lambda seen: None
    get()
    assert host.starts == [0, len(there)]
    assert part.exists() is False
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_stop_is_heard_while_another_process_downloads(
    host: FileHost, get: Any, tmp_path: Path
) -> None:
    host.open.clear()
    process = child(host.put("/file", CONTENT), tmp_path, CONTENT)
    lock = tmp_path / f"{NAME}.part.lock"
    looks = 0

    def stop() -> None:
        nonlocal looks
        looks += 1
        if looks > 3:
            raise StoppedError

    assert host.arrived.wait(30)
    assert lock.exists()
    with pytest.raises(StoppedError):
        get(effects=Time().effects(stop))
    host.open.set()
    assert result(process) == [len(CONTENT), sha256(CONTENT)]


def test_stop_is_heard_while_waiting_for_the_next_try(host: FileHost, get: Any) -> None:
    host.faults.append(Fault(status=429, headers={"Retry-After": "200"}))
    time_ = Time()

    def stop() -> None:
        if sum(time_.slept) > 5:
            raise StoppedError

    with pytest.raises(StoppedError):
        get(effects=time_.effects(stop))
    assert sum(time_.slept) < 6


def test_progress_in_bytes_with_speed_and_time_left(host: FileHost, get: Any) -> None:
    clock = iter(n * 0.25 for n in range(100_000))  # each look takes a quarter of a second
    seen: list[DownloadProgress] = []
    get(effects=Effects(lambda: next(clock), lambda _: None), how={"on_progress": seen.append})
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    assert {step.phase for step in seen} == {"downloading"}
    assert {step.total for step in seen} == {len(CONTENT)}
    middle = seen[len(seen) // 2]
    assert middle.bytes_per_second > 0
    assert middle.seconds_left == pytest.approx(
        (len(CONTENT) - middle.done) / middle.bytes_per_second
    )
    assert seen[-1].done == len(CONTENT)
    assert seen[-1].seconds_left == 0


def test_progress_is_logged_without_address_parameters(
    host: FileHost, get: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = iter(n * 11.0 for n in range(100_000))
    url = host.put("/file", CONTENT) + "?signature=secret"
    get(url=url, effects=Effects(lambda: next(clock), lambda _: None))
    assert "MB/s" in caplog.text
    assert "is complete (3 MB" in caplog.text
    assert "secret" not in caplog.text
