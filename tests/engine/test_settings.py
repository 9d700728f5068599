"""Plan: the arithmetic of batches, accumulation, steps and the learning rate."""

from dataclasses import replace
from functools import partial

import pytest

from mim.engine.optim import LARS, AdamW
from mim.engine.plan import EngineSettings, Plan
from mim.engine.schedule import Cosine, ScheduledRun
from mim.engine.settings import CheckpointSettings, DistributedSettings, LogSettings, TrainSettings


def settings(batch_size: int, batch: int = 0, epochs: int = 3, **optimizer: float) -> EngineSettings:
    return EngineSettings(
        seed=0,
        batch_size=batch_size,
        workers=0,
        max_broken=0.01,
        evaluate_every_epochs=1,
        evaluate_at_start=True,
        train=TrainSettings(batch=batch, epochs=epochs),
        optimizer=AdamW(**optimizer),
        schedule=partial(Cosine, warmup_epochs=1),
        checkpoint=CheckpointSettings(),
        log=LogSettings(),
        distributed=DistributedSettings(),
    )


@pytest.mark.parametrize("strategy", ["fsdp", "hsdp"])
def test_graphs_of_a_gpu_are_refused_where_weights_move(strategy):
    sharded = replace(settings(32), distributed=DistributedSettings(strategy=strategy))
    graphs = replace(settings(32).train, compile="max")
    assert replace(settings(32), train=graphs).train.compile == "max"
    with pytest.raises(ValueError, match=f"TRAIN.compile is max, and DISTRIBUTED.strategy {strategy}"):
        replace(sharded, train=graphs)


@pytest.mark.parametrize("size", [0, -1.5])
def test_buckets_hold_something(size):
    with pytest.raises(ValueError, match=rf"DISTRIBUTED.bucket_mb is {size}"):
        DistributedSettings(bucket_mb=size)


@pytest.mark.parametrize(
    ("batch_size", "batch", "world", "expected", "accumulation"),
    [
        (32, 0, 1, 32, 1),
        (32, 0, 4, 128, 1),
        (32, 32, 1, 32, 1),
        (32, 96, 1, 96, 3),
        (16, 128, 2, 128, 4),
        (16, 128, 8, 128, 1),
        (1, 6, 3, 6, 2),
    ],
)
def test_plan_accumulation_follows_from_the_batch(
    batch_size: int, batch: int, world: int, expected: int, accumulation: int
) -> None:
    plan = Plan.of(settings(batch_size, batch), 1000, world)
    assert (plan.batch, plan.accumulation, plan.micro_batch, plan.world_size) == (
        expected,
        accumulation,
        batch_size,
        world,
    )
    assert plan.batch == plan.micro_batch * plan.world_size * plan.accumulation
    assert plan.steps_per_epoch == 1000 // expected
    assert plan.steps == 3 * (1000 // expected)


@pytest.mark.parametrize(("batch_size", "batch", "world"), [(32, 100, 1), (32, 16, 1), (32, 96, 2), (7, 12, 1)])
def test_plan_batch_that_does_not_come_out_whole_is_refused(batch_size: int, batch: int, world: int) -> None:
    with pytest.raises(ValueError, match="whole number of micro-batches") as caught:
        Plan.of(settings(batch_size, batch), 1000, world)
    message = str(caught.value)
    assert f"TRAIN.batch {batch} is not a multiple" in message
    assert f"DATA.batch_size {batch_size} x {world} devices = {batch_size * world}" in message


@pytest.mark.parametrize(("batch_size", "batch", "world"), [(64, 0, 1), (32, 0, 2), (16, 64, 1)])
def test_plan_data_set_smaller_than_a_batch_is_refused(batch_size: int, batch: int, world: int) -> None:
    with pytest.raises(ValueError, match=r"63 training images, fewer than the 64 of one step \(TRAIN\.batch\)"):
        Plan.of(settings(batch_size, batch), 63, world)
    assert Plan.of(settings(batch_size, batch), 64, world).steps_per_epoch == 1


def test_plan_does_not_depend_on_how_a_batch_is_shared_out() -> None:
    plans = [Plan.of(settings(size, 64), 1000, world) for size, world in ((64, 1), (16, 1), (16, 4), (8, 2))]
    assert len({(plan.batch, plan.steps, plan.steps_per_epoch) for plan in plans}) == 1
    rates = [plan.schedule(settings(16, 64)).at(20) for plan in plans]
    assert len(set(rates)) == 1


def test_plan_schedule_counts_the_whole_batch() -> None:
    engine = settings(16, 64, base_lr=1e-3, per_batch=128)
    plan = Plan.of(engine, 640, 2)
    schedule = plan.schedule(engine)
    assert schedule.peak == pytest.approx(1e-3 * 64 / 128)
    assert schedule.steps == plan.steps == 30
    assert schedule.at(10) == pytest.approx(schedule.peak)


def test_plan_describes_batch_steps_and_rate_with_their_formulas() -> None:
    engine = settings(16, 64, epochs=200, base_lr=1e-3, per_batch=128)
    lines = Plan.of(engine, 1000, 2).describe(engine)
    assert lines["batch"].startswith("64 = 16 ")
    assert lines["batch"].endswith("x 2 accumulated")
    assert lines["steps"] == "3,000 = 15 an epoch x 200; 192,000 images seen in all"
    assert lines["learning rate"] == "0.0005 = 0.001 x 64 / 128, cosine, 1 epoch of warmup"
    decaying = settings(16, 64, layer_decay=0.65)
    assert (
        Plan.of(decaying, 1000, 2)
        .describe(decaying)["learning rate"]
        .endswith("x 0.65 for each encoder layer below the top")
    )


def test_plan_schedule_follows_the_optimizer_whatever_its_kind() -> None:
    engine = replace(settings(16, 64), optimizer=LARS(base_lr=0.1, per_batch=32))
    assert Plan.of(engine, 640, 2).schedule(engine).peak == pytest.approx(0.2)


@pytest.mark.parametrize(("key", "value"), [("epochs", 0), ("batch", -1), ("clip", -0.5), ("ema", 1.0), ("ema", -0.1)])
def test_train_settings_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"TRAIN\.{key} is {value}"):
        TrainSettings(**{key: value})


def test_plan_of_an_extended_run_says_where_and_with_which_rates() -> None:
    engine = replace(settings(16, 64, base_lr=1e-3, per_batch=64), train=TrainSettings(epochs=6, extended_at=(2, 4)))
    plan = Plan.of(engine, 640, 1)
    schedule = plan.schedule(engine)
    plain = [Cosine(ScheduledRun(1e-3, 16 / 64, epochs, 40), warmup_epochs=1) for epochs in (2, 4, 6)]
    for step, rate in ((79, plain[0]), (80, plain[1]), (159, plain[1]), (160, plain[2]), (239, plain[2])):
        assert schedule.at(step) == rate.at(step)
    first, second = plan.describe(engine)["extended"].split("; at ")
    assert first.startswith("at epoch 2 (step 80) to 4 epochs")
    assert first.endswith(f"{plain[1].at(80):.3g} after {plain[0].at(79):.3g}")
    assert second.startswith("epoch 4 (step 160) to 6 epochs")
    assert "extended" not in Plan.of(settings(16), 640, 1).describe(settings(16))


@pytest.mark.parametrize("extended_at", [(0,), (3,), (4,), (2, 2), (2, 1)])
def test_train_settings_extended_at_must_rise_up_to_the_epochs(extended_at: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"TRAIN\.extended_at is .*rising .*TRAIN\.epochs 3"):
        TrainSettings(epochs=3, extended_at=extended_at)
    assert TrainSettings(epochs=3, extended_at=(1, 2)).lengths == (1, 2, 3)
