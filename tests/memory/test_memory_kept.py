"""Weights at int8 that are kept on disk: found again, refused when damaged, under a limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from intelligent_generation.core.memory import kept
from intelligent_generation.core.memory.kept import KeptWeights
from intelligent_generation.core.memory.quantization import Int8Weight, quantize
from intelligent_generation.core.memory.residency import file_stamp

InComfyUI = Callable[..., dict[str, Any]]
NAMES = [f"blocks.{number}.a.weight" for number in range(6)]
ENTRY = 6 * (512 * 512 + 4 * 512)
MB = 1_000_000


def weight(name: str) -> torch.Tensor:
    return torch.randn(512, 512, generator=torch.Generator().manual_seed(NAMES.index(name)))


class Loader:
    """Loads a model of six layers, as far as what is kept sees it."""

    def __init__(self, folder: Path, limit: int = 100 * MB) -> None:
        self.folder = folder / "quantized"
        self.limit = limit
        self.kept = KeptWeights(self.folder, lambda: self.limit)
        self.told = ""

    def load(self, file: Path, at_fourth: Callable[[], Any] = lambda: None) -> list[Any]:
        told: list[str] = []
        loaded = []
        with self.kept.makers([file_stamp(file)], NAMES, ENTRY, told.append) as makers:
            for number, name in enumerate(NAMES):
                if number == 3:
                    at_fourth()
                loaded.append(makers.int8("diffusion_model", name, weight(name)))
        self.told = " ".join(told)
        return loaded

    @property
    def entries(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))

    @property
    def leftovers(self) -> list[str]:
        return [one.suffix for one in self.folder.glob("*") if one.suffix != ".safetensors"]


@pytest.fixture
def loader(tmp_path: Path) -> Loader:
    return Loader(tmp_path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"what the test does not read")
    return path


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the weights that were made, in order."""
    names: list[str] = []

    def watched(part: str, name: str, weight: torch.Tensor) -> Int8Weight | None:
        names.append(name)
        return quantize(part, name, weight)

    monkeypatch.setattr(kept, "quantize", watched)
    return names


def same(one: list[Any], other: list[Any]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a.codes, b.codes) and torch.equal(a.scale, b.scale) for a, b in pairs)


def test_a_second_load_makes_nothing_and_gives_the_same_bits(
    loader: Loader, file: Path, made: list[str]
):
    first = loader.load(file)
    assert made == NAMES
    assert "model.safetensors is kept on disk" in loader.told
    second = loader.load(file)
    assert made == NAMES, "nothing was made again"
    assert same(first, second)
    assert "read as it had been made before" in loader.told
    assert loader.leftovers == []


def test_nothing_is_kept_by_default(tmp_path: Path, file: Path, made: list[str]):
    loader = Loader(tmp_path, limit=0)
    loader.load(file)
    loader.load(file)
    assert made == NAMES * 2
    assert not loader.folder.exists()
    assert loader.told == ""


def test_a_changed_source_is_made_again_and_its_old_entry_goes(
    loader: Loader, file: Path, made: list[str]
):
    loader.load(file)
    (old,) = loader.entries
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    loader.load(file)
    assert made == NAMES * 2
    assert "changed, so what was kept is made again" in loader.told
    assert len(loader.entries) == 1
    assert old not in loader.entries


@pytest.mark.parametrize("damage", ["one byte", "cut", "header", "digests"])
def test_a_damaged_entry_is_never_used_but_made_again(
    loader: Loader, file: Path, made: list[str], damage: str
):
    first = loader.load(file)
    (entry,) = loader.entries
    data = bytearray(entry.read_bytes())
    if damage == "one byte":
        data[-100_000] ^= 1
    elif damage == "cut":
        del data[-10:]
    elif damage == "header":
        data[8] = ord("x")
    else:
        data = data.replace(b"sha256", b"sha255")
    entry.write_bytes(data)
    assert same(loader.load(file), first)
    assert len(made) > len(NAMES)
    assert "damaged" in loader.told
    loader.load(file)
    before = len(made)
    assert same(loader.load(file), first)
    assert len(made) == before, "it is whole again"


def test_a_load_that_fails_keeps_nothing(loader: Loader, file: Path):
    def fail() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        loader.load(file, at_fourth=fail)
    assert loader.entries == []
    assert loader.leftovers == []


def test_what_was_used_least_recently_makes_room_before_writing(loader: Loader, tmp_path: Path):
    files = []
    for number in range(3):
        files.append(tmp_path / f"{number}.safetensors")
        files[-1].write_bytes(b"x")
    loader.load(files[0])
    (size,) = (one.stat().st_size for one in loader.entries)
    loader.limit = int(2.5 * size)
    loader.load(files[1])
    oldest = loader.entries
    for number, entry in enumerate(oldest):  # the times of files may be coarse
        os.utime(entry, ns=(number, number))
    first = loader.entries[0]
    most = []
    loader.load(files[2], at_fourth=lambda: most.append(loader.kept.bytes))
    assert most == [size], "room was made before anything was written"
    assert first not in loader.entries
    assert len(loader.entries) == 2
    assert loader.kept.bytes <= loader.limit
    loader.kept.trim(0)
    assert loader.entries == []


def test_what_is_larger_than_the_limit_is_not_kept_and_removes_nothing(
    loader: Loader, file: Path, tmp_path: Path
):
    loader.load(file)
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"x")
    loader.limit = ENTRY // 2
    loader.load(other)
    assert "is not kept on disk: the limit" in loader.told
    assert len(loader.entries) == 1


WRITER = """
import os, resource, signal, sys
from pathlib import Path
from intelligent_generation.tests.memory.test_memory_kept import Loader
loader = Loader(Path(sys.argv[1]))
act = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "full": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (800_000, 800_000)),
    "waits": lambda: (print("writing", flush=True), sys.stdin.readline()),
}[sys.argv[3]]
loaded = loader.load(Path(sys.argv[2]), at_fourth=act)
print(len(loaded), loader.told)
"""


def writer(loader: Loader, file: Path, what: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(loader.folder.parent), str(file), what]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)


posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")


@posix
def test_a_process_killed_while_it_writes_leaves_nothing_that_is_used(
    loader: Loader, file: Path, made: list[str]
):
    process = writer(loader, file, "killed")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert loader.entries == []
    assert ".part" in loader.leftovers
    loader.load(file)
    assert made == NAMES
    assert len(loader.entries) == 1
    assert loader.leftovers == [], "what the other left is gone"


@posix
def test_a_full_disk_ends_the_keeping_and_not_the_load(loader: Loader, file: Path):
    out, _ = writer(loader, file, "full").communicate()
    assert out.startswith("6 model.safetensors could not be kept on disk"), out
    assert loader.entries == []
    assert ".part" not in loader.leftovers


@posix
def test_two_processes_that_make_the_same_do_not_disturb_each_other(
    loader: Loader, file: Path, made: list[str]
):
    process = writer(loader, file, "waits")
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    loader.load(file)
    assert made == NAMES
    assert loader.entries == [], "the other one is at it"
    out, _ = process.communicate("\n")
    assert "is kept on disk" in out
    loader.load(file)
    assert made == NAMES


def test_a_model_at_int8_is_loaded_from_what_was_kept(in_comfyui: InComfyUI, tmp_path: Path):
    found = in_comfyui(
        """
from intelligent_generation.core.memory import kept
from intelligent_generation.core.services import Services

work = Services("sqlite:///" + ARGUMENTS[0])
choice = work.models.choose_model(model="checkpoints/small-sd15.safetensors")
plan, _ = work.memory.plan_memory("AUTO", "int8")
def load():
    loaded = work.models.load_model(choice, plan)
    states = [loaded.model.model.state_dict(), loaded.clip.cond_stage_model.state_dict()]
    weights = {key: getattr(value, "_qdata", value).clone()
               for state in states for key, value in state.items()
               if "text_projection" not in key}  # not in the file, so whatever memory held
    del loaded, states
    work.memory.pool.unload()
    work.memory.pool.carry_out()
    return weights
before = load()
kept_by_default = work.memory.kept_weights.bytes
work.memory.set_pool({"quantized_disk_gb": 1})
first = load()
held = work.memory.kept_weights.bytes
real, made = kept.quantize, []
def watched(*arguments):
    packed = real(*arguments)
    made.extend([] if packed is None else arguments[1:2])
    return packed
kept.quantize = watched
loaded = work.models.load_model(choice, plan)
told = loaded.report
del loaded
work.memory.pool.unload()
work.memory.pool.carry_out()
second = load()
work.memory.set_pool({"quantized_disk_gb": 0})
report(
    default=kept_by_default, held=held, told=told, left=work.memory.kept_weights.bytes,
    keys=len(first), made=made, differ=[k for k in first if not torch.equal(first[k], second[k])],
    from_before=[k for k in first if not torch.equal(first[k], before[k])],
)
""",
        str(tmp_path / "memory.db"),
    )
    assert found["default"] == 0
    assert found["held"] > MB
    assert "read as it had been made before" in found["told"]
    assert found["made"] == [], "nothing was made again"
    assert found["keys"] > 100
    assert found["differ"] == []
    assert found["from_before"] == []
    assert found["left"] == 0
