"""What runs are predicted to take, before and after they were measured."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from intelligent_generation.core.plan import ModelInfo, ModelPart, SamplingPlan, SecondPass
from intelligent_generation.core.storage import Database
from intelligent_generation.core.storage.tables import GenerationRow
from intelligent_generation.core.tuning import (
    Costs,
    Measured,
    Speed,
    Work,
    add_run,
    cost_revision,
    machine_speed,
    measured_runs,
    model_key,
    work_of,
)
from intelligent_generation.core.tuning.cost import Pass, evaluations

GIB = 1024**3
SPEED = Speed(flops=20e12, bandwidth=400e9, value_bytes=2)
NOON = datetime(2026, 11, 1, 12, tzinfo=timezone.utc)


def model(family: str = "sdxl", parameters: int = 2_567_463_684) -> ModelInfo:
    sizes = {"diffusion_model": parameters, "text_encoder": 817_698_048, "vae": 83_653_863}
    return ModelInfo(
        name=family,
        family=family,
        family_confidence=1.0,
        evidence="told by the test",
        parts=tuple(
            ModelPart.model_validate(
                {"role": role, "dtype": "float16", "parameters": count, "bytes": 2 * count}
            )
            for role, count in sizes.items()
        ),
    )


def work(size: int = 1024, steps: int = 20, **changes) -> Work:
    one = Pass(size, size, steps, changes.pop("sampler", "euler"))
    return Work((one,), **({"batch": 1, "guided": True} | changes))


def measured(costs: Costs, done: Work, seconds: float, *, memory: int = 9 * GIB, **changes):
    facts = {
        "model": model_key(model()),
        "configuration": done.configuration,
        "pixels": done.pixels,
        "worked_out": costs.worked_out(done),
        "sampling_seconds": seconds,
        "other_seconds": 1.0,
        "memory_bytes": memory,
        "predicted_seconds": costs(done).seconds,
    }
    return Measured(**(facts | changes))


# --------------------------------------------------------------------------- without a run


def test_sdxl_is_worked_out_from_its_published_operations():
    # 6.76e12 operations an evaluation at 1024×1024, two of them a step.
    seconds = Costs(model(), SPEED, ()).worked_out(work(1024, 20)).sampling_seconds
    assert seconds == pytest.approx(20 * 2 * 6.76e12 / SPEED.flops, rel=0.1)


def test_time_grows_with_steps_pixels_batch_guidance_and_sampler():
    costs = Costs(model(), SPEED, ())
    plain = costs(work()).seconds
    assert costs(work(steps=40)).seconds > 1.7 * plain
    assert costs(work(2048)).seconds > 3.5 * plain
    assert costs(work(batch=4)).seconds > 3.5 * plain
    assert costs(work(guided=False)).seconds < 0.65 * plain
    assert costs(work(sampler="heun")).seconds > 1.7 * plain


def test_memory_is_the_weights_and_what_works_on_top():
    costs = Costs(model(), SPEED, ())
    weights = sum(part.bytes for part in model().parts)
    small, large = costs(work(512)).memory_bytes, costs(work(1024)).memory_bytes
    assert weights < small < large < 12 * GIB


def test_samplers_that_evaluate_twice_do_so_in_all_steps_but_the_last():
    assert evaluations("euler", 20) == 20
    assert evaluations("dpmpp_sde", 20) == 39
    assert evaluations("a sampler of another pack", 20) == 20


def test_a_model_of_unknown_size_still_has_a_cost():
    bare = model().model_copy(update={"parts": (), "family": "unknown"})
    assert Costs(bare, SPEED, ())(work()).seconds >= 0


def test_the_work_of_a_plan_has_both_passes():
    second = SecondPass(
        width=768, height=768, steps=14, denoise=0.5, cfg=6.0, sampler="dpmpp_sde",
        scheduler="normal",
    )  # fmt: skip
    plan = SamplingPlan(
        steps=20, cfg=1.0, sampler="euler", scheduler="normal", width=512, height=512,
        batch_size=2, second_pass=second, strategy="test", confidence=1.0,
    )  # fmt: skip
    found = work_of(plan)
    assert [(one.width, one.steps) for one in found.passes] == [(512, 20), (768, 14)]
    assert found.guided, "the second pass alone is guided"
    assert found.configuration != work_of(plan.model_copy(update={"second_pass": None}))
    costs = Costs(model("sd15", 859_520_964), SPEED, ())
    assert costs(found).seconds > costs(found._replace(passes=found.passes[:1])).seconds


# --------------------------------------------------------------------------- after runs


def test_the_same_configuration_is_predicted_from_its_own_runs_whatever_the_steps():
    before = Costs(model(), SPEED, ())
    runs = [measured(before, work(steps=20), 40.0)] * 3
    costs = Costs(model(), SPEED, runs)
    assert costs(work(steps=20)).seconds == pytest.approx(41.0)
    assert costs(work(steps=40)).seconds == pytest.approx(81.0, rel=0.01)
    assert costs(work(steps=20)).memory_bytes == 9 * GIB
    assert costs(work(steps=20)).runs == 3


def test_a_slow_first_run_and_a_hiccup_change_little():
    before = Costs(model(), SPEED, ())
    times = [40.0, 41.0, 120.0, 39.0, 90.0]  # newest first; the first ever took 90
    runs = [measured(before, work(), seconds) for seconds in times]
    assert Costs(model(), SPEED, runs)(work()).seconds == pytest.approx(42.0)
    second = Costs(model(), SPEED, runs[3:])(work()).seconds
    assert second == pytest.approx(40.0), "of two runs the newer: the first one warmed up"


def test_another_size_is_corrected_as_the_nearest_one_was():
    before = Costs(model(), SPEED, ())
    slow = before.worked_out(work(512)).sampling_seconds * 5
    fast = before.worked_out(work(1024)).sampling_seconds * 2
    runs = [measured(before, work(512), slow), measured(before, work(1024), fast)]
    costs = Costs(model(), SPEED, runs)
    for size, factor in ((448, 5), (1152, 2)):
        wanted = before.worked_out(work(size)).sampling_seconds * factor
        assert costs(work(size)).seconds == pytest.approx(wanted, rel=0.25)
        assert costs(work(size)).runs == 0


def test_another_model_is_corrected_by_how_far_off_this_one_was():
    before = Costs(model(), SPEED, ())
    runs = [measured(before, work(), 3 * before.worked_out(work()).sampling_seconds)]
    other = model("sd15", 859_520_964)
    plain, told = Costs(other, SPEED, ()), Costs(other, SPEED, runs)
    sampling = plain.worked_out(work(512)).sampling_seconds
    assert told(work(512)).seconds > plain(work(512)).seconds + 1.5 * sampling


def test_how_far_off_the_predictions_were_is_told():
    before = Costs(model(), SPEED, ())
    runs = [measured(before, work(), 39.0, predicted_seconds=p) for p in (44.0, 40.0, 80.0)]
    assert Costs(model(), SPEED, runs)(work()).error == pytest.approx(0.1)
    assert before(work()).error is None


def test_runs_whose_peak_could_not_be_read_leave_memory_worked_out():
    before = Costs(model(), SPEED, ())
    runs = [measured(before, work(), 40.0, memory_bytes=None)]
    assert Costs(model(), SPEED, runs)(work()).memory_bytes == before(work()).memory_bytes


# --------------------------------------------------------------------------- kept


@pytest.fixture
def database(tmp_path):
    opened = Database.open(f"sqlite:///{tmp_path / 'pack.db'}")
    with opened.session() as session:
        session.add_all(
            GenerationRow(
                id=f"g{number}", created_at=NOON, schema_version=1, pack_version="0.1.0",
                mode="AUTO", prompt="", family="sdxl", seed="0", image_key=str(number),
                record="{}",
            )
            for number in range(6)
        )  # fmt: skip
    yield opened
    opened.close()


def test_runs_come_back_newest_first_those_of_other_machines_do_not(database):
    before = Costs(model(), SPEED, ())
    for number, seconds in enumerate((50.0, 40.0)):
        run = measured(before, work(), seconds)
        add_run(database, f"g{number}", "here", run, now=NOON + timedelta(minutes=number))
    other = measured(before, work(), 7.0, model="flux-dev")
    add_run(database, "g2", "here", other, now=NOON)
    add_run(database, "g3", "elsewhere", measured(before, work(), 1.0), now=NOON)
    found = measured_runs(database, "here", model_key(model()))
    assert [run.sampling_seconds for run in found] == [40.0, 50.0, 7.0]
    assert found[0] == measured(before, work(), 40.0)


def test_the_machine_is_measured_once_for_each_data_type(database):
    asked = []

    def measure() -> Speed:
        asked.append(1)
        return SPEED

    for dtype in ("float16", "float16", "float32"):
        assert machine_speed(database, "here", dtype, measure=measure) == SPEED
    assert len(asked) == 2


def test_only_a_prediction_that_was_far_off_is_news(database):
    before = Costs(model(), SPEED, ())
    start = cost_revision(database)
    for number, predicted in enumerate((40.0, 41.0, 45.0)):
        run = measured(before, work(), 40.0, predicted_seconds=predicted)
        add_run(database, f"g{number}", "here", run, now=NOON)
    assert cost_revision(database) == start
    add_run(
        database, "g4", "here", measured(before, work(), 40.0, predicted_seconds=20.0), now=NOON
    )
    assert cost_revision(database) != start
