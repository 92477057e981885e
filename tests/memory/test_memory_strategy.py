"""Planning memory for machines from a CPU to 24 GB, and the report."""

from __future__ import annotations

import pytest
from intelligent_generation.core.errors import SettingError
from intelligent_generation.core.memory import FreeMemory, Machine, plan_memory, report
from intelligent_generation.core.plan import MemoryPlan

GIB = 2**30


def card(
    gigabytes: float, kind: str = "cuda", *, ram: float = 32, dynamic: bool = False
) -> Machine:
    # A driver shows a little less than the card is sold with.
    shown = int(gigabytes * GIB * 0.98)
    return Machine("cuda:0 Test Card", kind, shown, int(ram * GIB), dynamic, "NORMAL_VRAM")


CPU = Machine("cpu", "cpu", 16 * GIB, 16 * GIB, False, "DISABLED")
MAC = Machine("mps", "mps", 24 * GIB, 24 * GIB, False, "SHARED")


def codes(machine: Machine) -> list[str]:
    return [notice.code for notice in plan_memory(machine).notices]


@pytest.mark.parametrize("gigabytes", [4, 6])
@pytest.mark.parametrize("kind", ["cuda", "rocm", "xpu"])
def test_a_small_card_is_told_what_does_not_fit(gigabytes: int, kind: str):
    plan = plan_memory(card(gigabytes, kind))
    (notice,) = plan.notices
    assert notice.code == "small_vram"
    assert f"{gigabytes * 0.98:.1f} GiB" in notice.message


@pytest.mark.parametrize("gigabytes", [8, 12, 16, 24])
def test_a_card_of_8_gb_and_more_is_left_in_peace(gigabytes: int):
    plan = plan_memory(card(gigabytes))
    assert plan.notices == ()
    assert plan.strategy == "AUTO"
    assert plan.device.total_bytes == int(gigabytes * GIB * 0.98)


def test_each_kind_of_device_gets_its_own_remark():
    assert codes(CPU) == ["cpu_only"]
    assert codes(MAC) == ["unified_memory"]
    assert codes(card(1, "directml")) == ["vram_not_readable"]


def test_a_device_of_an_unheard_kind_is_other():
    plan = plan_memory(card(16, "npu"))
    assert plan.device.kind == "other"
    assert plan.notices == ()


def test_the_plan_round_trips_through_json():
    for machine in (card(6), card(24, dynamic=True), CPU, MAC):
        plan = plan_memory(machine)
        assert MemoryPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("strategy", ["FULL_GPU", "CPU_OFFLOAD", "SEQUENTIAL", "DISK_OFFLOAD"])
def test_each_strategy_is_part_of_the_plan_and_explained(strategy: str):
    plan = plan_memory(card(12), strategy=strategy, max_vram_gb=6)
    assert (plan.strategy, plan.max_vram_bytes) == (strategy, 6 * GIB)
    lines = report(plan, FreeMemory(GIB, GIB)).splitlines()
    (line,) = (line for line in lines if line.startswith("Strategy: "))
    assert line.startswith(f"Strategy: {strategy}, ")
    assert "Limit: a run takes 6.0 GiB of it at most." in lines
    assert MemoryPlan.from_json(plan.to_json()) == plan


def test_what_changes_nothing_is_said():
    def codes_of(machine: Machine, **wishes) -> set[str]:
        return {notice.code for notice in plan_memory(machine, **wishes).notices}

    assert "nothing_to_move" in codes_of(CPU, strategy="SEQUENTIAL")
    assert "nothing_to_move" not in codes_of(card(12), strategy="SEQUENTIAL")
    assert codes_of(card(12), max_vram_gb=16) == {"cap_above_total"}


@pytest.mark.parametrize("gigabytes", [-1.0, float("nan"), float("inf")])
def test_a_limit_that_is_no_size_is_refused(gigabytes: float):
    with pytest.raises(SettingError, match="max_vram_gb must be 0"):
        plan_memory(card(12), max_vram_gb=gigabytes)


@pytest.mark.parametrize("weight_dtype", ["auto", "fp16", "bf16", "fp8", "int8", "int4"])
def test_a_data_type_is_part_of_the_plan_and_explained(weight_dtype: str):
    plan = plan_memory(card(12), weight_dtype=weight_dtype)
    assert plan.weight_dtype == weight_dtype
    (line,) = (
        line for line in report(plan, FreeMemory(1, 1)).splitlines() if line.startswith("Weights: ")
    )
    assert weight_dtype == "auto" or weight_dtype in line


@pytest.mark.parametrize("weight_dtype", ["", "float16", "INT8"])
def test_a_data_type_that_is_not_offered_is_refused(weight_dtype: str):
    with pytest.raises(SettingError, match="one of auto, fp16, bf16, fp8, int8"):
        plan_memory(card(12), weight_dtype=weight_dtype)


@pytest.mark.parametrize("strategy", ["", "auto", "TURBO"])
def test_a_strategy_that_does_not_exist_is_refused(strategy: str):
    with pytest.raises(SettingError, match="AUTO"):
        plan_memory(card(12), strategy=strategy)


def test_the_report_of_a_card_tells_totals_free_memory_and_the_mode():
    text = report(plan_memory(card(12, dynamic=True)), FreeMemory(int(10.5 * GIB), 20 * GIB))
    lines = text.splitlines()
    assert lines[0] == "Device: cuda:0 Test Card (cuda)"
    assert lines[1] == "VRAM: 11.8 GiB, 10.5 GiB free now"
    assert lines[2] == "RAM: 32.0 GiB, 20.0 GiB free now"
    assert "AUTO" in lines[3]
    assert "left alone" in lines[3]
    assert lines[4].startswith("ComfyUI runs in mode NORMAL_VRAM: ")
    assert "Dynamic VRAM is on" in lines[5]
    assert lines[6].startswith("Weights: as ComfyUI chooses")
    assert len(lines) == 7


@pytest.mark.parametrize("machine", [CPU, MAC])
def test_memory_shared_with_the_processor_is_reported_once(machine: Machine):
    text = report(plan_memory(machine), FreeMemory(7 * GIB, 7 * GIB))
    assert "VRAM:" not in text
    assert text.count("7.0 GiB free now") == 1
    assert plan_memory(machine).notices[0].message in text


def test_the_report_of_a_small_card_carries_the_notice():
    plan = plan_memory(card(4))
    assert f"Info: {plan.notices[0].message}" in report(plan, FreeMemory(3 * GIB, 8 * GIB))


@pytest.mark.parametrize(
    "state", ["NORMAL_VRAM", "LOW_VRAM", "NO_VRAM", "HIGH_VRAM", "SHARED", "DISABLED"]
)
def test_every_mode_of_comfyui_is_explained(state: str):
    plan = plan_memory(card(12)._replace(vram_state=state))
    line = report(plan, FreeMemory(1, 1)).splitlines()[4]
    assert len(line) > len(f"ComfyUI runs in mode {state}: ") + 20


def test_a_mode_that_is_not_known_is_named_without_a_guess():
    plan = plan_memory(card(12)._replace(vram_state="NEW_STATE"))
    assert "ComfyUI runs in mode NEW_STATE.\n" in report(plan, FreeMemory(1, 1)) + "\n"
