"""Reading a machine and showing bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from intelligent_generation.core.memory import (
    FreeMemory,
    Machine,
    human_bytes,
    ram_limit,
    read_free,
    read_machine,
    read_ram,
    read_resources,
    report_resources,
)
from intelligent_generation.core.memory.pool import PoolSettings
from intelligent_generation.core.memory.residency import ModelKey, ModelPool


class Host:
    """A host whose free memory changes from one reading to the next."""

    device_name = "cuda:0 Test Card"
    device_kind = "cuda"

    def __init__(self) -> None:
        self.free = 5_000

    def total_vram(self) -> int:
        return 6_000

    def free_vram(self) -> int:
        self.free -= 1_000
        return self.free

    def total_ram(self) -> int:
        return 32_000

    def free_ram(self) -> int:
        return 20_000

    def dynamic_vram(self) -> bool:
        return True

    def vram_state(self) -> str:
        return "LOW_VRAM"

    def devices(self) -> list[tuple[str, str, int, int, str | None]]:
        return [
            ("cuda:0 Test Card", "cuda", 6 * 2**30, 5 * 2**30, "8.9"),
            ("cuda:1 Other Card", "cuda", 12 * 2**30, 3 * 2**30, "7.5"),
        ]

    def attention_backends(self) -> tuple[str, ...]:
        return ("pytorch", "sub_quad", "xformers")

    def attention_backend(self) -> str:
        return "xformers"


def test_the_machine_is_what_the_host_says_and_free_memory_is_not_part_of_it():
    host = Host()
    first = read_machine(host)
    assert read_free(host) == FreeMemory(4_000, 20_000)
    assert read_free(host) == FreeMemory(3_000, 20_000)
    assert read_machine(host) == first
    assert first == Machine("cuda:0 Test Card", "cuda", 6_000, 32_000, True, "LOW_VRAM")


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (512 * 2**20, "512.0 MiB"),
        (2**30 - 1, "1.0 GiB"),
        (12_525_633_536, "11.7 GiB"),
        (2**40 - 1, "1.0 TiB"),
        (3 * 2**40, "3.0 TiB"),
    ],
)
def test_bytes_are_shown_in_binary_units(count: int, shown: str):
    assert human_bytes(count) == shown


def test_every_device_and_how_attention_is_computed_is_told():
    resources = read_resources(Host())
    assert [device.capability for device in resources.devices] == ["8.9", "7.5"]
    assert (resources.ram_total, resources.ram_free) == (32_000, 20_000)
    assert report_resources(resources).splitlines() == [
        "Compute capability: 8.9",
        "Also there: cuda:1 Other Card (cuda), 12.0 GiB, 3.0 GiB free now",
        "Attention: xformers; also there: pytorch, sub_quad.",
    ]


def group(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text, encoding="utf-8")
    return folder


def test_a_container_has_what_its_group_or_one_above_leaves_it(tmp_path: Path):
    own = tmp_path / "own"
    own.write_text("0::/user.slice/app.scope\n", encoding="utf-8")
    root = tmp_path / "cgroup"
    group(root / "user.slice/app.scope", memory_max="max\n", memory_current="100\n")
    assert ram_limit(root, own) is None
    group(
        root / "user.slice",
        memory_max="8000\n",
        memory_current="5000\n",
        memory_stat="anon 3000\ninactive_file 2000\n",
    )
    assert ram_limit(root, own) == (8000, 5000), "file pages can be given back"
    group(root / "user.slice/app.scope", memory_max="1000\n", memory_current="1200\n")
    assert ram_limit(root, own) == (1000, 0)


def test_the_pool_keeps_to_a_containers_memory(tmp_path: Path):
    own = tmp_path / "own"
    own.write_text("0::/\n", encoding="utf-8")
    group(tmp_path / "cgroup", memory_max="16000\n", memory_current="4000\n")
    folder, host = tmp_path / "cgroup", Host()
    assert read_ram(host, tmp_path / "none", own) == (32_000, 20_000), "the machine's own"
    assert read_ram(host, folder, own) == (16_000, 12_000)
    pool = ModelPool(
        PoolSettings(),
        total_ram=read_ram(host, folder, own).total,
        free_ram=lambda: read_ram(host, folder, own).free,
    )
    assert pool.state().limits[:2] == (8_000, 2_000), "half of it, and an eighth stays free"

    class Kept:
        bytes, in_use, gone = 3_000, False, False

        def lend(self) -> object:
            return object()

        def let_go(self) -> None:
            self.gone = True

    kept = Kept()
    assert pool.add(ModelKey((), ("checkpoints",)), kept)
    group(folder, memory_current="15000\n")  # something else in the container took RAM
    pool.settle()
    assert kept.gone


def test_the_older_kind_of_group_and_none_at_all(tmp_path: Path):
    own = tmp_path / "own"
    own.write_text("5:cpu,memory:/docker/x\n2:pids:/docker/x\n", encoding="utf-8")
    memory = tmp_path / "cgroup" / "memory"
    group(memory)
    (memory / "memory.limit_in_bytes").write_text(str(2**62), encoding="utf-8")
    assert ram_limit(tmp_path / "cgroup", own) is None
    (memory / "memory.limit_in_bytes").write_text("4000", encoding="utf-8")
    (memory / "memory.usage_in_bytes").write_text("1000", encoding="utf-8")
    assert ram_limit(tmp_path / "cgroup", own) == (4000, 3000)
    assert ram_limit(tmp_path / "cgroup", tmp_path / "missing") is None
