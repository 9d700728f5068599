"""Muon, schedule-free AdamW and timm's optimizers: steps by own formulas, skipped steps, resumed runs, refusals."""

import re
import sys
from pathlib import Path

import pytest
import timm.optim
import torch
from processes import RECIPE, TINY, dying_at, last_state, same
from torch import Tensor, nn

import mim
from mim.engine.optim import Optimizer, parameter_groups, steady
from mim.engine.optim.muon import Muon, is_matrix
from mim.engine.optim.schedule_free import ScheduleFree
from mim.engine.optim.timm_optimizer import TimmOptimizer
from mim.engine.schedule import WSD, Cosine, ScheduledRun

RATE, SCALES, DECAYS = 0.01, {"2.weight": 0.5, "2.bias": 0.5}, {"4.weight": 0.2}


def build(optimizer: Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A convolution (8, 12), a layer (9, 8), a norm and a layer (3, 9), which is too flat for a matrix; in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 2), nn.Flatten(), nn.Linear(8, 9), nn.LayerNorm(9), nn.Linear(9, 3)).double()
    return model, optimizer.build(parameter_groups(model, optimizer, SCALES, DECAYS))


def gradients_of(model: nn.Module, step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        name: torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        for name, weight in model.named_parameters()
    }


def step(model: nn.Module, built: torch.optim.Optimizer, optimizer: Optimizer, number: int, skip: bool = False) -> None:
    """One step as TrainState.update takes it."""
    for (name, weight), gradient in zip(model.named_parameters(), gradients_of(model, number).values(), strict=True):
        weight.grad = torch.full_like(weight, torch.nan) if skip and name == "2.weight" else gradient
    optimizer.prepare(built.param_groups, lambda lr_scale: lr_scale * RATE, 0.0)
    built.grad_scale, built.found_inf = None, torch.tensor(float(skip))
    built.step()
    built.zero_grad(set_to_none=True)


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def rate_and_decay(name: str, weight: Tensor, decay: float) -> tuple[float, float]:
    """By the factors and decays above; biases and norms have no decay."""
    return RATE * SCALES.get(name, 1.0), DECAYS.get(name, decay) if weight.ndim > 1 else 0.0


def adamw_step(
    weight: Tensor, moments: list[Tensor], gradient: Tensor, number: int, rate: float, decay: float
) -> Tensor:
    """Loshchilov and Hutter, algorithm 2, under betas 0.9 and 0.95."""
    moments[0] = 0.9 * moments[0] + 0.1 * gradient
    moments[1] = 0.95 * moments[1] + 0.05 * gradient**2
    direction = (moments[0] / (1 - 0.9**number)) / ((moments[1] / (1 - 0.95**number)).sqrt() + 1e-8)
    return weight * (1 - rate * decay) - rate * direction


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("step_size", ["adamw", "muon", "spectral"])
def test_muon_steps_are_orthogonal_on_matrices_and_those_of_adamw_elsewhere(nesterov: bool, step_size: str) -> None:
    """Against the singular vectors of the momentum in float64; five iterations leave singular values near 1."""
    muon = Muon(weight_decay=0.1, nesterov=nesterov, step_size=step_size)
    model, built = build(muon)
    expected = values(model)
    velocity = {name: torch.zeros_like(weight) for name, weight in expected.items()}
    moments = {name: [torch.zeros_like(weight)] * 2 for name, weight in expected.items()}
    for number in (1, 2, 3):
        before = values(model)
        step(model, built, muon, number)
        for name, gradient in gradients_of(model, number).items():
            rate, decay = rate_and_decay(name, gradient, 0.1)
            if name not in ("0.weight", "2.weight"):
                expected[name] = adamw_step(expected[name], moments[name], gradient, number, rate, decay)
                torch.testing.assert_close(values(model)[name], expected[name], rtol=1e-12, atol=1e-14)
                continue
            velocity[name] = 0.95 * velocity[name] + 0.05 * gradient
            push = 0.05 * gradient + 0.95 * velocity[name] if nesterov else velocity[name]
            push_MN = push.flatten(1)
            rows, columns = push_MN.shape
            factor = {
                "adamw": 0.2 * max(rows, columns) ** 0.5,
                "muon": max(1.0, rows / columns) ** 0.5,
                "spectral": (rows / columns) ** 0.5,
            }[step_size]
            taken_MN = (before[name] * (1 - rate * decay) - values(model)[name]).flatten(1) / (rate * factor)
            left, _, right = torch.linalg.svd(push_MN, full_matrices=False)
            core = left.mT @ taken_MN @ right.mT  # diagonal where both have the same singular vectors
            assert ((core.diagonal() - 1).abs() < 0.35).all()
            assert (core - core.diagonal().diag()).abs().max() < 0.05  # bf16
            torch.testing.assert_close(left @ core @ right, taken_MN, rtol=0, atol=0.05)


def test_muon_takes_the_steps_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many matrices of three shapes, more than are taken at once, some with rates and decays of their own."""
    monkeypatch.setattr("mim.engine.optim.muon.AT_ONCE", 3 * 8 * 12)
    monkeypatch.setattr("mim.engine.optim.muon.product_dtype", lambda precision, device: torch.bfloat16)  # as theirs
    from timm.optim.muon import muon as timm_muon

    torch.manual_seed(0)
    layers = [nn.Linear(*sides, bias=False) for sides in ((12, 8), (8, 8), (8, 12)) for _ in range(4)]
    model = nn.Sequential(*layers)
    muon = Muon(weight_decay=0.1)
    built = muon.build(parameter_groups(model, muon, {"1.weight": 0.5}, {"4.weight": 0.2}))
    theirs = values(model)
    momenta = {name: torch.zeros_like(weight) for name, weight in theirs.items()}
    for number in (1, 2, 3):
        step(model, built, muon, number)
        for name, gradient in gradients_of(model, number).items():
            rate, decay = (RATE * 0.5 if name == "1.weight" else RATE), (0.2 if name == "4.weight" else 0.1)
            timm_muon(
                [theirs[name]],
                [gradient],
                [momenta[name]],
                lr=rate,
                weight_decay=decay,
                momentum=0.95,
                nesterov=True,
                ns_steps=5,
                ns_coefficients="quintic",
                eps=1e-7,
                safety_factor=1.0,
                adjust_lr_fn="match_rms_adamw",
                conv_mode="flatten",
                normalize_spatial=True,
                scale_eps=False,
            )
        for name, weight in values(model).items():
            size = RATE * 0.2 * 12**0.5 * number
            torch.testing.assert_close(weight, theirs[name], rtol=0, atol=0.005 * size)  # one rounding of bf16


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((8, 8), True),
        ((768, 3, 16, 16), True),
        ((4, 512), True),
        ((4, 513), False),
        ((3, 30), False),
        ((1, 196, 768), False),
        ((64, 1, 3, 3), False),
        ((64,), False),
        ((), False),
    ],
)
def test_muon_takes_the_matrices_that_timm_takes(shape: tuple[int, ...], expected: bool) -> None:
    from timm.optim.muon import _is_suitable_for_muon

    weight = torch.zeros(shape)
    assert is_matrix(weight) is expected
    assert _is_suitable_for_muon(weight) is expected


def test_schedulefree_steps_and_its_average_equal_the_formulas_of_the_paper() -> None:
    """arXiv:2405.15682, algorithm 1: the sequences x, y and z, each written out in float64."""
    free = ScheduleFree(weight_decay=0.1, betas=(0.9, 0.99))
    model, built = build(free)
    x, y, z = values(model), values(model), values(model)
    second = {name: torch.zeros_like(weight) for name, weight in x.items()}
    for number in range(1, 6):
        step(model, built, free, number)
        for name, gradient in gradients_of(model, number).items():
            rate, decay = rate_and_decay(name, gradient, 0.1)
            second[name] = 0.99 * second[name] + 0.01 * gradient**2
            denominator = (second[name] / (1 - 0.99**number)).sqrt() + 1e-8
            z[name] = z[name] - rate * (gradient / denominator + decay * y[name])
            x[name] = (1 - 1 / number) * x[name] + z[name] / number  # equal rates, so equal weights
            y[name] = 0.1 * z[name] + 0.9 * x[name]
        trained = values(model)
        with free.averaged(built):
            torch.testing.assert_close(values(model), x, rtol=1e-11, atol=1e-13)
        same(values(model), trained)
        torch.testing.assert_close(trained, y, rtol=1e-11, atol=1e-13)


def test_schedulefree_before_its_first_step_has_no_average_and_no_state() -> None:
    model, built = build(ScheduleFree())
    before = values(model)
    with ScheduleFree().averaged(built):
        same(values(model), before)
    assert not built.state


def test_schedulefree_warns_of_a_rate_that_falls() -> None:
    run = ScheduledRun(1e-3, 1.0, 10, 5)
    assert ScheduleFree().warnings(WSD(run, warmup_epochs=2, decay_epochs=0)) == []
    assert "set SCHEDULE.name wsd" in ScheduleFree().warnings(Cosine(run, warmup_epochs=2))[0]


def test_timm_optimizer_takes_the_steps_of_create_optimizer() -> None:
    """nadamuon, and lion with keys of its own, to the bit."""
    for name, keys in (("nadamuon", {}), ("lion", {"betas": (0.8, 0.9)}), ("sgd", {}), ("adan", {})):
        optimizer = TimmOptimizer(optimizer=name, weight_decay=0.1, **keys)
        (model, built), (reference, _) = build(optimizer), build(optimizer)
        groups = [
            {**group, "lr": RATE * group["lr_scale"], "use_fallback": group["no_weight_decay"]}
            for group in parameter_groups(reference, optimizer, SCALES, DECAYS)
        ]
        theirs = timm.optim.create_optimizer_v2(groups, name, lr=RATE, **keys)
        for group in theirs.param_groups:
            if "adamw_lr" in group:
                group["adamw_lr"] = group["lr"]
        for number in (1, 2, 3):
            step(model, built, optimizer, number)
            for weight, gradient in zip(reference.parameters(), gradients_of(model, number).values(), strict=True):
                weight.grad = gradient
            theirs.step()
        same(values(model), values(reference))


NEW = [
    *(Muon(), ScheduleFree(), TimmOptimizer(optimizer="nadamuon")),
    *(TimmOptimizer(optimizer=name) for name in ("adan", "sgd", "adafactor", "mars")),
]
IDS = ["muon", "schedulefree", "nadamuon", "adan", "sgd", "adafactor", "mars"]


@pytest.mark.parametrize("waits", [False, True], ids=["as on a GPU", "on a CPU"])
@pytest.mark.parametrize("optimizer", NEW, ids=IDS)
def test_optimizer_step_that_is_not_finite_changes_no_weight_and_no_moment(optimizer, waits, monkeypatch) -> None:
    monkeypatch.setattr(steady, "waits_for_nothing", lambda _: waits)
    model, built = build(optimizer)
    for number, skip in ((1, True), (2, False), (3, False), (4, True)):
        before = values(model)
        moments = [value.clone() for state in built.state.values() for value in state.values() if _is_moment(value)]
        step(model, built, optimizer, number, skip)
        if skip:
            same(values(model), before)
            now = [value for state in built.state.values() for value in state.values() if _is_moment(value)]
            assert all(torch.equal(old, new) for old, new in zip(moments, now, strict=bool(moments)))
        else:
            assert not any(torch.equal(old, new) for old, new in zip(before.values(), model.parameters(), strict=True))


def _is_moment(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


# -------------------------------------------------------------------- runs

SMALL = {**TINY, "TRAIN.batch": 256, "DATA.batch_size": 256, "EVALUATE.every_epochs": 1, "EVALUATE.knn": 0}
RUNS = {
    "muon": {"OPTIMIZER.name": "muon", "OPTIMIZER.layer_decay": 0.8},
    "schedulefree": {"OPTIMIZER.name": "schedulefree", "OPTIMIZER.layer_decay": 0.8, "SCHEDULE.warmup_epochs": 0.4},
    "nadamuon": {"OPTIMIZER.name": "timm", "OPTIMIZER.optimizer": "nadamuon", "OPTIMIZER.layer_decay": 0.8},
    "adan": {"OPTIMIZER.name": "timm", "OPTIMIZER.optimizer": "adan", "OPTIMIZER.betas": "[0.98,0.92,0.99]"},
}


def train(output: Path, name: str, epochs: int = 2) -> dict:
    return mim.train(RECIPE, {**SMALL, **RUNS[name], "TRAIN.epochs": epochs}, output, quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_resumed_run_equals_the_undisturbed_one(name: str, tmp_path: Path) -> None:
    """To the bit, although one evaluates and saves where the other does not."""
    whole = train(tmp_path / "whole", name)
    with dying_at(8):
        train(tmp_path / "killed", name)
    assert train(tmp_path / "killed", name)["val/loss"] == whole["val/loss"]
    ours, theirs = last_state(tmp_path / "killed"), last_state(tmp_path / "whole")
    for part in ("model", "ema"):
        same(ours[part], theirs[part])
    for weight, state in theirs["optimizer"]["state"].items():
        same(
            {key: torch.as_tensor(value) for key, value in state.items()},
            {key: torch.as_tensor(value) for key, value in ours["optimizer"]["state"][weight].items()},
        )


@pytest.mark.slow
def test_checkpoint_of_schedulefree_holds_the_average_which_everything_reads(tmp_path: Path) -> None:
    train(tmp_path / "run", "schedulefree", epochs=1)
    content = last_state(tmp_path / "run")
    averaged = {name.removeprefix("module."): weight for name, weight in content["ema"].items()}
    assert averaged.keys() == content["model"].keys()
    encoder = mim.load_encoder(tmp_path / "run")
    for name, weight in encoder.state_dict().items():
        assert torch.equal(weight, averaged[f"encoder.{name}"])
    for name, state in content["optimizer"]["state"].items():  # the recipe's beta is 0.9
        torch.testing.assert_close(0.1 * state["z"] + 0.9 * averaged[name], content["model"][name])


# -------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"optimizer": "nadamun"}, r"OPTIMIZER\.optimizer 'nadamun' is unknown to timm .*did you mean 'nadamuon'\?"),
        ({"optimizer": "kron"}, "is kron: it draws random numbers"),
        ({"optimizer": "adamc"}, "is adamc: its weight decay needs the peak"),
        ({"optimizer": "adahessian"}, "is adahessian: it needs second derivatives"),
        ({"optimizer": "fusedadam"}, r"is fusedadam: it is not timm's but apex"),
        ({"optimizer": "sgd", "betas": (0.9, 0.9)}, r"OPTIMIZER\.betas is .* sgd of timm has no betas"),
        ({"optimizer": "adan", "betas": (0.9, 0.9)}, "adan of timm has 3 of them"),
        ({"optimizer": "lion", "betas": (0.9, 1.0)}, r"OPTIMIZER\.betas is \[0\.9, 1\.0\]: each must be"),
        ({"optimizer": "sgd", "momentum": 1.0}, r"OPTIMIZER\.momentum is 1\.0"),
    ],
)
def test_timm_optimizer_refuses_what_no_run_can_have(keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimmOptimizer(**keys)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [(Muon, "momentum", 1.0), (Muon, "iterations", 0), (Muon, "eps", -1.0), (ScheduleFree, "eps", -1.0)],
)
def test_optimizer_settings_out_of_range_are_refused(part: type[Optimizer], key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"OPTIMIZER\.{key} is {re.escape(str(value))}: it must be"):
        part(**{key: value})
    for betas in ((1.0, 0.9), (0.9, 1.0)):
        with pytest.raises(ValueError, match=r"OPTIMIZER\.betas is \["):
            part(betas=betas)


@pytest.mark.parametrize("name", ["muon", "schedulefree", "timm"])
def test_optimizer_that_needs_whole_weights_refuses_shards(name: str) -> None:
    keys = {**TINY, "OPTIMIZER.name": name, "DISTRIBUTED.strategy": "fsdp"}
    with pytest.raises(ValueError, match=rf"DISTRIBUTED\.strategy is fsdp, and the steps of OPTIMIZER\.name {name} "):
        mim.load_config(RECIPE, keys)


def test_schedulefree_refuses_a_second_average() -> None:
    with pytest.raises(ValueError, match=r"TRAIN\.ema is 0\.9, and OPTIMIZER\.name schedulefree evaluates an average"):
        mim.load_config(RECIPE, {**TINY, "OPTIMIZER.name": "schedulefree", "TRAIN.ema": 0.9})


def test_schedulefree_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(ValueError, match=r"pip install 'mim-toolkit\[schedulefree\]'"):
        build(ScheduleFree())
