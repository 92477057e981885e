"""Reading a machine and showing bytes."""

from __future__ import annotations

import pytest
from intelligent_generation.core.memory import (
    FreeMemory,
    Machine,
    human_bytes,
    read_free,
    read_machine,
)


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
