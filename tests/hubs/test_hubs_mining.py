"""Settings from sample images."""

from __future__ import annotations

from typing import Any

import pytest
from intelligent_generation.core.hubs.entries import MinedSettings
from intelligent_generation.core.hubs.mining import mine, name_sampler


def image(**meta: Any) -> dict[str, Any]:
    return {"id": 1, "meta": meta}


def test_medians_resist_outliers() -> None:
    images = [image(cfgScale=cfg, steps=steps) for cfg, steps in ((7, 20), (7.5, 30), (30, 150))]
    assert mine(images, 1) == MinedSettings(images=3, cfg=7.5, steps=30)


def test_only_our_own_weight_counts() -> None:
    def used(id: int, weight: Any) -> dict[str, Any]:
        return image(
            civitaiResources=[
                {"type": "lora", "modelVersionId": 99, "weight": 0.1},
                {"type": "lora", "modelVersionId": id, "weight": weight},
            ]
        )

    images = [used(5, 0.6), used(5, 0.8), used(5, 0.9), used(6, 0.2), used(5, "nonsense"),
              used(5, 55), used(5, None)]  # fmt: skip
    found = mine(images, 5)
    assert (found.images, found.weight) == (3, 0.8)


def test_a_weight_by_the_files_hash() -> None:
    full = "ab12cd34ef" + "0" * 54
    resources = [{"type": "lora", "name": "x", "hash": "AB12CD34EF", "weight": "0.65"},
                 {"type": "lora", "name": "y", "hash": "", "weight": 3}]  # fmt: skip
    assert mine([image(resources=resources)], 5, [full]).weight == 0.65
    assert mine([image(resources=resources)], 5, ["f" * 64]).weight is None


def test_nested_meta_and_meta_that_says_nothing() -> None:
    nested = {"meta": {"id": 3, "meta": {"steps": 25}}}
    empty: list[Any] = [{"meta": None}, {}, {"meta": {"prompt": "x"}}, {"meta": "text"}]
    assert mine([nested, *empty], 1) == MinedSettings(images=1, steps=25)
    assert mine([], 1) == MinedSettings(images=0)


@pytest.mark.parametrize("value", [True, float("nan"), "inf", 0, -5, [7], {}])
def test_impossible_numbers_are_left_out(value: Any) -> None:
    assert mine([image(cfgScale=value, steps=value, clipSkip=value)], 1) == MinedSettings(0)


def test_the_most_frequent_sampler_with_its_own_scheduler() -> None:
    images = [
        image(sampler="Euler a"), image(sampler="Euler a"), image(sampler="DPM++ 2M Karras"),
        image(sampler="DPM++ 2M", **{"Schedule type": "Karras"}), image(sampler="DPM++ 2M SDE"),
        image(sampler="dpmpp_2m", scheduler="beta"), image(sampler="unheard of"),
    ]  # fmt: skip
    found = mine(images, 1)
    assert (found.images, found.sampler, found.scheduler) == (6, "dpmpp_2m", "karras")


@pytest.mark.parametrize(
    ("sampler", "scheduler", "named"),
    [
        ("Euler a", "", ("euler_ancestral", None)),
        ("euler_ancestral", "normal", ("euler_ancestral", "normal")),
        ("DPM++ 2M Karras", "", ("dpmpp_2m", "karras")),
        ("DPM++ 2M SDE Karras", "", ("dpmpp_2m_sde", "karras")),
        ("DPM++ 2M SDE Exponential", "", ("dpmpp_2m_sde", "exponential")),
        ("DPM++ 3M SDE", "Karras", ("dpmpp_3m_sde", "karras")),
        ("DPM++ SDE Karras", "", ("dpmpp_sde", "karras")),
        ("DPM++ 2S a Karras", "", ("dpmpp_2s_ancestral", "karras")),
        ("DPM2 a", "", ("dpm_2_ancestral", None)),
        ("LMS Karras", "", ("lms", "karras")),
        ("Euler SGM Uniform", "", ("euler", "sgm_uniform")),
        ("UniPC", "", ("uni_pc", None)),
        ("DDIM", "", ("ddim", None)),
        ("DDIM", "DDIM", ("ddim", "ddim_uniform")),
        ("dpmpp_2m_sde_gpu", "sgm_uniform", ("dpmpp_2m_sde_gpu", "sgm_uniform")),
        ("Undefined", "", (None, None)),
        ("", "Karras", (None, "karras")),
        ("", "", (None, None)),
    ],
)
def test_samplers_get_comfyuis_names(sampler: str, scheduler: str, named: tuple) -> None:
    assert tuple(name_sampler(sampler, scheduler)) == named
