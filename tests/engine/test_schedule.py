"""The learning rate of every step equals MAE's formula, timm's cosine as SimMIM uses it, and SimMIM's multistep.

And so does that of every parameter group, whose factor MAE and SimMIM apply in two ways.
"""

import bisect
import math

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from mim.engine.schedule import Extended, Schedule, ScheduledRun

EPOCHS, PER_EPOCH = 12, 7
STEPS = EPOCHS * PER_EPOCH


def schedule(
    name: str = "cosine", base_lr: float = 1e-3, batch: int = 512, per_batch: int = 256, epochs: int = EPOCHS, **keys
) -> Schedule:
    return Schedule.named(name)(ScheduledRun(base_lr, batch / per_batch, epochs, PER_EPOCH), **keys)


# -------------------------------------------------------------------- MAE


@pytest.mark.parametrize("warmup", [0, 3, 2.5])
@pytest.mark.parametrize("min_lr", [0.0, 1e-5])
def test_schedule_equals_maes_formula(warmup: float, min_lr: float) -> None:
    """facebookresearch/mae, util/lr_sched.py, adjust_learning_rate, at fractional epochs; the rate scaled by batch."""
    rates = schedule(warmup_epochs=warmup, min_lr=min_lr)
    lr = 1e-3 * 512 / 256
    for step in range(STEPS):
        epoch = step / PER_EPOCH
        if epoch < warmup:
            expected = lr * epoch / warmup
        else:
            share = math.pi * (epoch - warmup) / (EPOCHS - warmup)
            expected = min_lr + (lr - min_lr) * 0.5 * (1.0 + math.cos(share))
        assert rates.at(step) == pytest.approx(expected, rel=1e-12, abs=1e-18)


def test_schedule_peak_scales_with_the_batch_and_the_ends_do_not() -> None:
    keys = {"warmup_epochs": 2, "warmup_lr": 1e-5, "min_lr": 1e-6}
    for batch, peak in ((256, 1e-3), (1024, 4e-3)):
        rates = schedule(batch=batch, **keys)
        assert rates.peak == pytest.approx(peak)
        assert rates.at(0) == pytest.approx(1e-5)
        assert rates.at(2 * PER_EPOCH) == pytest.approx(peak)
        assert rates.min_lr == 1e-6


def test_schedule_rises_in_the_warmup_and_falls_after_it() -> None:
    cosine = schedule(warmup_epochs=3, min_lr=1e-5)
    rates = [cosine.at(step) for step in range(STEPS)]
    top = 3 * PER_EPOCH
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert min(rates[top:]) > 1e-5


# -------------------------------------------------------------------- SimMIM


def timms_rates(
    base_lr: float, warmup_lr: float, min_lr: float, warmup: int, steps: int, factor: float = 1.0
) -> list[float]:
    """The rate of each step under timm's own scheduler, as SimMIM builds it and updates it after every step.

    factor: SimMIM's optimizer.py gives the group that rate from the start, and the scheduler takes it from there.
    """
    optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": base_lr * factor}], lr=base_lr)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=steps,
        lr_min=min_lr,
        warmup_lr_init=warmup_lr,
        warmup_t=warmup,
        cycle_limit=1,
        t_in_epochs=False,
        warmup_prefix=False,
    )
    rates = []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step_update(step)
    return rates


@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_schedule_equals_timms_cosine_as_simmim_uses_it(warmup: int) -> None:
    batch, per_batch = 2048, 512
    keys = {"base_lr": 1e-4, "batch": batch, "per_batch": per_batch}
    rates = schedule(
        **keys, warmup_epochs=warmup, warmup_lr=5e-7, min_lr=5e-6, scale_all=True, cosine_from="start", lag=1
    )
    scale = batch / per_batch
    expected = timms_rates(1e-4 * scale, 5e-7 * scale, 5e-6 * scale, warmup * PER_EPOCH, STEPS)
    assert [rates.at(step) for step in range(STEPS)] == pytest.approx(expected, rel=1e-12)


def test_schedule_of_simmim_begins_twice_and_joins_the_cosine_below_the_peak() -> None:
    rates = schedule(warmup_epochs=3, warmup_lr=1e-6, cosine_from="start", lag=1)
    assert rates.at(0) == rates.at(1) == 1e-6
    assert rates.at(2) > rates.at(1)
    first_after = rates.at(3 * PER_EPOCH + 1)
    assert first_after == pytest.approx(rates.peak * 0.5 * (1 + math.cos(math.pi * 3 / EPOCHS)))
    assert first_after < rates.at(3 * PER_EPOCH) < rates.peak


def test_schedule_scale_all_scales_all_three() -> None:
    keys = {"warmup_epochs": 2, "warmup_lr": 1e-5, "min_lr": 1e-6}
    small, large = schedule(batch=256, scale_all=True, **keys), schedule(batch=1024, scale_all=True, **keys)
    for step in range(STEPS):
        assert large.at(step) == pytest.approx(4 * small.at(step))


def test_schedule_lag_shifts_every_rate() -> None:
    plain, late = schedule(warmup_epochs=2), schedule(warmup_epochs=2, lag=3)
    assert [late.at(step) for step in range(3, STEPS)] == [plain.at(step) for step in range(STEPS - 3)]
    assert [late.at(step) for step in range(3)] == [plain.at(0)] * 3


@pytest.mark.parametrize("lag", [0, 1])
def test_schedule_multistep_equals_simmims(lag: int) -> None:
    """SimMIM, lr_scheduler.py, MultiStepLRScheduler._get_lr."""
    milestones = (5.0, 8.0, 8.5)
    rates = schedule(name="multistep", warmup_epochs=2, warmup_lr=1e-5, milestones=milestones, gamma=0.3, lag=lag)
    peak, warmup = 2e-3, 2 * PER_EPOCH
    boundaries = [int(epoch * PER_EPOCH) if epoch.is_integer() else epoch * PER_EPOCH for epoch in milestones]
    for step in range(STEPS):
        t = max(step - lag, 0)
        falling = peak * 0.3 ** bisect.bisect_right(boundaries, t)
        expected = 1e-5 + t * (peak - 1e-5) / warmup if t < warmup else falling
        assert rates.at(step) == pytest.approx(expected, rel=1e-12)
    assert rates.at(5 * PER_EPOCH - 1 + lag) == pytest.approx(peak)
    assert rates.at(5 * PER_EPOCH + lag) == pytest.approx(0.3 * peak)


# -------------------------------------------------------------------- the factor of a parameter group

FACTORS = [0.0, 0.65**13, 0.5, 1.0, 3.0]
SHAPES: list[dict] = [
    {"warmup_epochs": 3, "warmup_lr": 1e-5, "min_lr": 2e-5},
    {"warmup_epochs": 2.5, "warmup_lr": 1e-6, "min_lr": 1e-5, "scale_all": True, "cosine_from": "start", "lag": 1},
    {"name": "multistep", "warmup_epochs": 2, "warmup_lr": 1e-5, "milestones": (5.0, 8.0), "gamma": 0.3},
]


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("keys", SHAPES, ids=["mae", "simmim", "multistep"])
def test_schedule_lr_scale_on_the_rate_multiplies_all_of_it(keys: dict, factor: float) -> None:
    """MAE, util/lr_sched.py: param_group["lr"] = lr * param_group["factor"]."""
    rates = schedule(**keys)
    for step in range(STEPS):
        assert rates.at(step, factor) == pytest.approx(factor * rates.at(step), rel=1e-12, abs=0)


@pytest.mark.parametrize("factor", FACTORS)
def test_schedule_lr_scale_on_the_rate_equals_maes_formula(factor: float) -> None:
    rates = schedule(warmup_epochs=3, min_lr=1e-5, lr_scale_on="rate")
    lr = 1e-3 * 512 / 256
    for step in range(STEPS):
        epoch = step / PER_EPOCH
        falling = 1e-5 + (lr - 1e-5) * 0.5 * (1.0 + math.cos(math.pi * (epoch - 3) / (EPOCHS - 3)))
        expected = (lr * epoch / 3 if epoch < 3 else falling) * factor
        assert rates.at(step, factor) == pytest.approx(expected, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize("factor", FACTORS)
def test_schedule_lr_scale_on_the_peak_equals_timms_cosine_as_simmim_uses_it(factor: float) -> None:
    keys = {"base_lr": 1.25e-3, "batch": 2048, "per_batch": 512}
    ends = {"warmup_lr": 2.5e-7, "min_lr": 2.5e-7, "scale_all": True}
    rates = schedule(**keys, **ends, warmup_epochs=2, cosine_from="start", lag=1, lr_scale_on="peak")
    expected = timms_rates(1.25e-3 * 4, 2.5e-7 * 4, 2.5e-7 * 4, 2 * PER_EPOCH, STEPS, factor)
    assert [rates.at(step, factor) for step in range(STEPS)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("factor", FACTORS)
def test_schedule_lr_scale_on_the_peak_of_a_cosine_leaves_its_ends_alone(factor: float) -> None:
    rates = schedule(warmup_epochs=3, warmup_lr=1e-5, min_lr=2e-5, lr_scale_on="peak")
    warmup, peak = 3 * PER_EPOCH, factor * 2e-3
    for step in range(STEPS):
        falling = 2e-5 + (peak - 2e-5) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (STEPS - warmup)))
        expected = 1e-5 + (peak - 1e-5) * step / warmup if step < warmup else falling
        assert rates.at(step, factor) == pytest.approx(expected, rel=1e-12)
    assert rates.at(0, factor) == 1e-5
    assert rates.at(warmup, factor) == pytest.approx(peak, abs=1e-18)
    assert rates.at(STEPS, factor) == pytest.approx(2e-5)


@pytest.mark.parametrize("factor", FACTORS)
def test_schedule_lr_scale_on_the_peak_of_multistep_equals_simmims(factor: float) -> None:
    """SimMIM, lr_scheduler.py, MultiStepLRScheduler: base_values are the groups' own, warmup_lr_init is shared."""
    milestones = (5.0, 8.0)
    rates = schedule(
        name="multistep", warmup_epochs=2, warmup_lr=1e-5, milestones=milestones, gamma=0.3, lag=1, lr_scale_on="peak"
    )
    peak, warmup = factor * 2e-3, 2 * PER_EPOCH
    for step in range(STEPS):
        t = max(step - 1, 0)
        falling = peak * 0.3 ** bisect.bisect_right([epoch * PER_EPOCH for epoch in milestones], t)
        expected = 1e-5 + t * (peak - 1e-5) / warmup if t < warmup else falling
        assert rates.at(step, factor) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("lr_scale_on", ["rate", "peak"])
@pytest.mark.parametrize("keys", SHAPES, ids=["mae", "simmim", "multistep"])
def test_schedule_factor_of_one_is_none(keys: dict, lr_scale_on: str) -> None:
    scaled, plain = schedule(**keys, lr_scale_on=lr_scale_on), schedule(**keys)
    rates = [plain.at(step) for step in range(STEPS)]
    assert [scaled.at(step, 1.0) for step in range(STEPS)] == [scaled.at(step) for step in range(STEPS)] == rates


# -------------------------------------------------------------------- the smaller of warmup and cosine


@pytest.mark.parametrize("warmup", [0, 5, 2.5, 12])
def test_schedule_min_cosine_equals_the_formula_of_icarus(warmup: float) -> None:
    """IcarusWizard/MAE, mae_pretrain.py: a factor on the peak by the number of whole epochs."""
    rates = schedule("min_cosine", warmup_epochs=warmup)
    for step in range(STEPS):
        epoch = step // PER_EPOCH
        factor = min((epoch + 1) / (warmup + 1e-8), 0.5 * (math.cos(epoch / EPOCHS * math.pi) + 1))
        assert rates.at(step) == pytest.approx(2e-3 * factor, rel=1e-8)
    assert warmup != 12 or rates.at(8 * PER_EPOCH) < 2e-3 * 9 / 12  # the cosine takes over within the warmup


def test_schedule_min_cosine_has_its_ends_and_its_lag() -> None:
    rates = schedule("min_cosine", warmup_epochs=4, warmup_lr=1e-4, min_lr=1e-5, lag=1)
    assert rates.at(0) == rates.at(PER_EPOCH) == pytest.approx(1e-4 + (2e-3 - 1e-4) / 4)
    assert rates.at(PER_EPOCH + 1) == pytest.approx(1e-4 + (2e-3 - 1e-4) / 2)
    assert rates.at(STEPS) == pytest.approx(1e-5 + (2e-3 - 1e-5) * 0.5 * (1 + math.cos(math.pi * 11 / 12)))
    assert rates.at(PER_EPOCH, 0.5) == rates.at(PER_EPOCH) / 2


# -------------------------------------------------------------------- warmup, stable, decay


@pytest.mark.parametrize("decay", ["linear", "1-sqrt"])
def test_schedule_wsd_keeps_the_peak_and_then_decays_to_min_lr(decay: str) -> None:
    """arXiv:2405.18392, equation 1 and section 3: the factor 1 - share, or 1 - sqrt(share), over the decay's steps."""
    wsd = schedule("wsd", warmup_epochs=2, decay_epochs=4, decay=decay, min_lr=1e-5)
    start, peak = 8 * PER_EPOCH, 2e-3
    assert [wsd.at(step) for step in range(2 * PER_EPOCH, start + 1)] == [peak] * (6 * PER_EPOCH + 1)
    for step in range(start, STEPS):
        share = (step - start) / (STEPS - start)
        factor = 1 - share if decay == "linear" else 1 - math.sqrt(share)
        assert wsd.at(step) == pytest.approx(1e-5 + (peak - 1e-5) * factor, rel=1e-12)
    assert wsd.at(STEPS) == pytest.approx(1e-5)


def test_schedule_wsd_decays_in_a_share_of_the_run_and_is_stable_until_then() -> None:
    share, epochs = (schedule("wsd", warmup_epochs=2, **keys) for keys in ({"decay_share": 0.25}, {"decay_epochs": 3}))
    assert [share.at(step) for step in range(STEPS)] == [epochs.at(step) for step in range(STEPS)]
    assert share.stable_until == 9 * PER_EPOCH
    longer = schedule("wsd", epochs=16, warmup_epochs=2, decay_share=0.25)
    steps = range(share.stable_until)
    assert [longer.at(step) for step in steps] == [share.at(step) for step in steps]
    assert schedule("wsd", warmup_epochs=2, decay_epochs=0).stable_until == STEPS
    assert schedule(warmup_epochs=2).stable_until is None
    with pytest.raises(ValueError, match=r"SCHEDULE\.decay_share is 1\.5: it is a share"):
        schedule("wsd", decay_share=1.5)


def test_schedule_wsd_without_room_for_its_decay_warns_and_starts_it_after_the_warmup() -> None:
    wsd = schedule("wsd", warmup_epochs=4, decay_epochs=10)
    assert any("SCHEDULE.decay_epochs 10" in line for line in wsd.warnings())
    rates = [wsd.at(step) for step in range(4 * PER_EPOCH, STEPS)]
    assert rates[0] == wsd.peak
    assert rates == sorted(rates, reverse=True)


def test_schedule_of_a_user_needs_only_what_follows_the_warmup() -> None:
    class Constant(Schedule):
        def after_warmup(self, step: int, peak: float) -> float:
            return peak

    constant = Constant(ScheduledRun(1e-3, 2.0, EPOCHS, PER_EPOCH), warmup_epochs=1)
    assert constant.at(0) == 0
    assert constant.at(PER_EPOCH) == constant.at(STEPS - 1) == constant.peak == 2e-3
    assert constant.at(PER_EPOCH, 0.5) == 1e-3


# -------------------------------------------------------------------- warnings and refusals


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"warmup_epochs": 12}, ["SCHEDULE.warmup_epochs 12: the run ends before the warmup does"]),
        ({"warmup_epochs": 40}, ["SCHEDULE.warmup_epochs 40: the run ends before the warmup does"]),
        (
            {"warmup_epochs": 2, "name": "multistep", "milestones": (5.0, 20.0)},
            ["SCHEDULE.milestones 20 lies beyond the end of the run"],
        ),
        ({"warmup_epochs": 2}, []),
        ({"warmup_epochs": 2, "name": "wsd", "decay_epochs": 10}, []),
        ({"warmup_epochs": 2, "name": "multistep", "milestones": (5.0,)}, []),
    ],
)
def test_schedule_warns_of_settings_without_effect(keys: dict, expected: list[str]) -> None:
    assert schedule(**keys).warnings() == expected


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_schedule_with_a_warmup_as_long_as_the_run_has_a_rate_at_every_step(epochs: int) -> None:
    for origin in ("warmup", "start"):
        rates = schedule(epochs=epochs, warmup_epochs=2, cosine_from=origin)
        assert all(0 <= rates.at(step) <= rates.peak for step in range(epochs * PER_EPOCH))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("warmup_epochs", -1),
        ("warmup_lr", -1e-6),
        ("min_lr", -1e-6),
        ("gamma", -0.1),
        ("lag", -1),
        ("decay_epochs", -1),
    ],
)
def test_schedule_settings_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"SCHEDULE\.{key} is {value}"):
        schedule({"gamma": "multistep", "decay_epochs": "wsd"}.get(key, "cosine"), **{key: value})


def test_schedule_milestones_must_rise() -> None:
    with pytest.raises(ValueError, match=r"SCHEDULE\.milestones is \[8, 5\]"):
        schedule("multistep", milestones=(8, 5))


# -------------------------------------------------------------------- extended runs


def extended(name: str, lengths: tuple[int, ...], **keys) -> Extended:
    *earlier, last = (schedule(name, epochs=epochs, **keys) for epochs in lengths)
    return Extended(earlier, last)


@pytest.mark.parametrize("lr_scale", [1.0, 0.5])
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("cosine", {"warmup_epochs": 3, "min_lr": 1e-5}),
        ("cosine", {"warmup_epochs": 2, "cosine_from": "start", "lag": 1, "scale_all": True, "lr_scale_on": "peak"}),
        ("multistep", {"warmup_epochs": 2, "milestones": (5.0, 14.0), "gamma": 0.3}),
        ("min_cosine", {"warmup_epochs": 6, "min_lr": 1e-5}),
    ],
    ids=["mae", "simmim", "multistep", "min_cosine"],
)
def test_extended_schedule_is_that_of_each_length_up_to_its_end(name: str, keys: dict, lr_scale: float) -> None:
    rates = extended(name, (8, 12, 16), **keys)
    for first, until in ((0, 8), (8, 12), (12, 16)):
        plain = schedule(name, epochs=until, **keys)
        steps = range(first * PER_EPOCH, until * PER_EPOCH)
        assert [rates.at(step, lr_scale) for step in steps] == [plain.at(step, lr_scale) for step in steps]
    assert (rates.peak, rates.steps, rates.name) == (plain.peak, plain.steps, name)
    assert rates.warnings() == plain.warnings()


def test_extended_cosine_of_mae_goes_from_its_end_to_the_middle_of_the_longer_one() -> None:
    """800 epochs to 1,600 with 40 of warmup: half a cosine from 40 to 1,600 stands at (800 - 40) / 1,560 of its way."""
    rates = extended("cosine", (800, 1600), warmup_epochs=40)
    step = 800 * PER_EPOCH
    assert rates.at(step - 1) < 1e-5 * rates.peak
    assert rates.at(step) == pytest.approx(rates.peak * 0.5 * (1 + math.cos(math.pi * 760 / 1560)), rel=1e-12)
    assert rates.at(step) == pytest.approx(0.5201 * rates.peak, rel=1e-3)
    assert rates.at(1600 * PER_EPOCH - 1) < 1e-5 * rates.peak


def test_extended_schedule_of_a_user_with_rates_of_its_own() -> None:
    class Linear(Schedule):
        name = "linear"

        def at(self, step: int, lr_scale: float = 1.0) -> float:
            return lr_scale * self.peak * (1 - step / self.steps)

        def after_warmup(self, step: int, peak: float) -> float:
            raise AssertionError

    rates = Extended([Linear(ScheduledRun(1e-3, 1.0, 2, PER_EPOCH))], Linear(ScheduledRun(1e-3, 1.0, 4, PER_EPOCH)))
    assert rates.at(PER_EPOCH) == pytest.approx(5e-4)
    assert rates.at(2 * PER_EPOCH) == pytest.approx(5e-4)
    assert rates.at(3 * PER_EPOCH, 2.0) == pytest.approx(5e-4)
