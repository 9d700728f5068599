"""The moving average, the sums of metrics and the loss scale: equal to their definitions, and no value is read back."""

import math

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mim.engine.optim import LARS, Optimizer, parameter_groups
from mim.engine.optim.muon import Muon
from mim.engine.optim.timm_optimizer import TimmOptimizer
from mim.engine.trackers.metrics import EPOCH, LINE, Meter
from mim.engine.train_state import MovingAverage
from mim.metric_keys import TRAIN_LOSS


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_moving_average_equals_that_of_pytorch_to_the_bit() -> None:
    model = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5))
    ours, theirs = MovingAverage(model, 0.97), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.97))
    for step in range(5):
        model(noise(step, 8, 7))  # changes the running statistics
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(noise(10 + step, *parameter.shape))
        for average in (ours, theirs):
            average.update_parameters(model)
        expected = theirs.state_dict()
        assert list(ours.state_dict()) == list(expected)
        assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())


def test_meter_takes_the_mean_of_finite_values_of_each_metric_and_goes_on_after_a_checkpoint() -> None:
    keys, meter = (TRAIN_LOSS, "train/loss_a"), Meter()
    rows = [(1.0, 2.0), (math.nan, 4.0), (3.0, math.inf), (5.0, 9.0)]
    for number, row in enumerate(rows):
        if number == 2:
            assert meter.take(LINE) == {TRAIN_LOSS: 1.0, "train/loss_a": 3.0}
            state, meter = meter.state(), Meter()
            assert state["sums"] == {EPOCH: 1.0, f"{EPOCH}/train/loss_a": 6.0}
            meter.restore(state)
            assert meter.state() == state
        meter.add(torch.tensor(row), keys)
    assert meter.take(LINE) == {TRAIN_LOSS: 4.0, "train/loss_a": 9.0}
    assert meter.take(EPOCH) == {TRAIN_LOSS: 3.0, "train/loss_a": 5.0}
    assert math.isnan(meter.take(EPOCH)[TRAIN_LOSS])


@pytest.mark.parametrize("part", [Muon(), LARS(), TimmOptimizer(optimizer="lion")], ids=["muon", "lars", "lion"])
def test_loss_scale_lets_the_optimizer_skip_a_step_so_that_no_host_waits(part: Optimizer, monkeypatch) -> None:
    model = nn.Linear(6, 5)
    optimizer = part.build(parameter_groups(model, part, {}, {}))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    monkeypatch.setattr(scaler, "_maybe_opt_step", lambda *_: pytest.fail("the scaler read a value of the device"))
    part.prepare(optimizer.param_groups, lambda scale: 0.1, 0.0)
    for step, broken in enumerate((True, False, True)):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        loss = model(noise(step, 3, 6)).square().mean()
        scaler.scale(loss * (math.inf if broken else 1.0)).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        same = [torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True)]
        assert all(same) if broken else not any(same)
