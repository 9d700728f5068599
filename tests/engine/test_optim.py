"""The optimizers: parameter groups, and a step that is AdamW's or LARS's, or nothing where gradients are not finite."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mim.engine.optim import LARS, AdamW, Optimizer, parameter_groups, unmatched


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
        self.rel_pos_embed = nn.Parameter(torch.zeros(5, 4))
        self.table_bias = nn.Parameter(torch.zeros(5, 4))
        self.bias = nn.Parameter(torch.zeros(2, 2))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Inner()
        self.head = Inner()
        self.scale = nn.Parameter(torch.zeros(()))


def settings(**keys) -> AdamW:
    return AdamW(**{"weight_decay": 0.1, **keys})


def build(model: nn.Module, optimizer: Optimizer, factors: dict[str, float] | None = None) -> torch.optim.Optimizer:
    return optimizer.build(parameter_groups(model, optimizer, factors or {}))


def decays(model: nn.Module, **keys) -> dict[str, float]:
    """The weight decay of every trained parameter by name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, settings(**keys), {})
    pairs = [(names[id(parameter)], group["weight_decay"]) for group in groups for parameter in group["params"]]
    assert len(pairs) == len(dict(pairs))
    return dict(pairs)


def test_parameter_groups_exempt_biases_and_vectors_only() -> None:
    model = Model()
    by_name = decays(model)
    assert set(by_name) == {name for name, _ in model.named_parameters()}
    no_weight_decay = {"proj.bias", "norm.weight", "norm.bias", "bias"}
    expected = {f"{part}.{name}" for part in ("encoder", "head") for name in no_weight_decay} | {"scale"}
    assert {name for name, decay in by_name.items() if decay == 0} == expected
    assert set(by_name.values()) == {0.0, 0.1}


def test_parameter_groups_exempt_what_no_decay_names_by_its_end() -> None:
    plain = decays(Model())
    by_name = decays(Model(), no_decay=("encoder.mask_token", "pos_embed"))
    changed = {name for name in by_name if by_name[name] != plain[name]}
    assert changed == {"encoder.mask_token", "encoder.pos_embed", "head.pos_embed"}
    assert all(by_name[name] == 0 for name in changed)


@pytest.mark.parametrize("entry", ["embed", "mask", "encoder", "token", "encoder.mask", "proj", "ncoder.mask_token"])
def test_parameter_groups_match_whole_names_at_the_end_only(entry: str) -> None:
    assert decays(Model(), no_decay=(entry,)) == decays(Model())
    assert unmatched(Model(), settings(no_decay=(entry,))) == [entry]


def test_parameter_groups_leave_frozen_parameters_out() -> None:
    model = Model()
    model.encoder.requires_grad_(False)
    by_name = decays(model)
    assert set(by_name) == {name for name, _ in model.named_parameters() if not name.startswith("encoder.")}


def test_parameter_groups_without_members_are_left_out() -> None:
    assert len(parameter_groups(nn.Linear(3, 4), settings(), {})) == 2
    assert [group["weight_decay"] for group in parameter_groups(nn.LayerNorm(4), settings(), {})] == [0.0]
    assert [group["weight_decay"] for group in parameter_groups(nn.Linear(3, 4, bias=False), settings(), {})] == [0.1]


def test_unmatched_lists_entries_that_name_no_trained_parameter() -> None:
    model = Model()
    model.head.requires_grad_(False)
    entries = ("encoder.mask_token", "head.mask_token", "cls_token", "pos_embed")
    assert unmatched(model, settings(no_decay=entries)) == ["head.mask_token", "cls_token"]
    assert unmatched(model, settings()) == []


def layer_factors(model: nn.Module) -> dict[str, float]:
    """Another factor for the encoder's norm, its mask token and what lies in the head but for its norm; else none."""
    factors = {name: 0.25 for name, _ in model.named_parameters() if name.startswith("head.") and "norm" not in name}
    return {**factors, "encoder.norm.weight": 0.5, "encoder.norm.bias": 0.5, "encoder.mask_token": 4.0}


@pytest.mark.parametrize("frozen", [(), ("encoder.proj", "head.norm")])
@pytest.mark.parametrize("weight_decay", [0.1, 0.0])
def test_parameter_groups_hold_each_trained_parameter_once_under_its_factor_and_decay(
    frozen: tuple[str, ...], weight_decay: float
) -> None:
    model = Model()
    for part in frozen:
        model.get_submodule(part).requires_grad_(False)
    factors = layer_factors(model)
    optimizer_settings = settings(no_decay=("mask_token",), weight_decay=weight_decay)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    members = {}
    for group in parameter_groups(model, optimizer_settings, factors):
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name not in members
            members[name] = (group["lr_scale"], group["weight_decay"], group["no_weight_decay"])
    vectors = ("bias", "norm.weight", "norm.bias", "scale")
    assert members == {
        name: (factors.get(name, 1.0), 0.0 if no_weight_decay else weight_decay, no_weight_decay)
        for name in names.values()
        if not name.startswith(tuple(f"{part}." for part in frozen))
        for no_weight_decay in [name.rpartition(".")[2] in (*vectors, "mask_token") or name.endswith(vectors[1:3])]
    }


def test_parameter_groups_are_one_for_each_factor_with_decay_and_without() -> None:
    groups = parameter_groups(Model(), settings(), layer_factors(Model()))
    pairs = [(group["lr_scale"], group["weight_decay"]) for group in groups]
    assert pairs == [(4.0, 0.1), (1.0, 0.1), (1.0, 0.0), (0.5, 0.0), (0.25, 0.1), (0.25, 0.0)]


def test_parameter_groups_take_a_shared_parameter_once() -> None:
    model = Model()
    model.head.proj = model.encoder.proj
    ids = [id(parameter) for group in parameter_groups(model, settings(), {}) for parameter in group["params"]]
    assert len(ids) == len(set(ids)) == len(list(model.parameters()))


def test_weight_decay_changes_by_half_a_cosine_where_it_has_an_end() -> None:
    changing = settings(weight_decay=0.04, weight_decay_end=0.4)
    decays = [changing.weight_decay_at(progress) for progress in (0.0, 0.25, 0.5, 1.0)]
    assert decays == pytest.approx([0.04, 0.4 - 0.36 * (2 + 2**0.5) / 4, 0.22, 0.4], rel=1e-12)
    falling = settings(weight_decay=0.4, weight_decay_end=0.0)
    assert falling.weight_decay_at(0.5) == pytest.approx(0.2)
    assert [settings(weight_decay=0.1).weight_decay_at(progress) for progress in (0.0, 0.3, 1.0)] == [0.1] * 3


@pytest.mark.parametrize("kind", [AdamW, LARS])
def test_optimizer_prepares_each_group_for_a_step(kind: type[Optimizer]) -> None:
    """Rate by its factor; weight decay of the step, and none in exempt groups, whatever the decay was before."""
    optimizer = kind(weight_decay=0.0, weight_decay_end=0.2)
    built = build(Model(), optimizer, layer_factors(Model()))
    for progress, decay in ((0.5, 0.1), (1.0, 0.2), (0.0, 0.0)):
        optimizer.prepare(built.param_groups, lambda lr_scale: 3 * lr_scale, progress)
        for group in built.param_groups:
            assert group["lr"] == 3 * group["lr_scale"]
            assert group["weight_decay"] == pytest.approx(0.0 if group["no_weight_decay"] else decay)


def test_optimizer_step_takes_the_weight_decay_of_the_step() -> None:
    """AdamW without gradients only decays: after each step a weight is (1 - rate x decay) times as large."""
    model, optimizer = model64(), settings(weight_decay=0.1, weight_decay_end=0.5)
    built = build(model, optimizer)
    expected = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for progress in (0.0, 0.25, 0.5, 0.75):
        optimizer.prepare(built.param_groups, lambda lr_scale: 1e-2 * lr_scale, progress)
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight)
        built.step()
        for name in ("0.weight", "2.weight"):
            expected[name] = expected[name] * (1 - 1e-2 * optimizer.weight_decay_at(progress))
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-12, atol=0)


def test_optimizer_refuses_a_negative_weight_decay_at_the_end() -> None:
    with pytest.raises(ValueError, match=r"OPTIMIZER\.weight_decay_end is -0\.1: it must be at least 0"):
        settings(weight_decay_end=-0.1)


# -------------------------------------------------------------------- the step


def update(optimizer: torch.optim.Optimizer, gradients: list[Tensor], rate: float, broken: bool = False) -> None:
    """One step as Trainer._update does it without a scaler; broken: as if the gradients were not finite."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    norm = torch.nn.utils.get_total_norm(gradients)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    optimizer.grad_scale, optimizer.found_inf = None, (~norm.isfinite() | broken).float()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def model64() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3)).double()


def test_optimizer_step_equals_the_formula_of_adamw() -> None:
    """Loshchilov and Hutter, algorithm 2, with PyTorch's placing of eps; written out in float64."""
    model, adamw = model64(), settings(betas=(0.9, 0.95), eps=1e-6, weight_decay=0.07)
    optimizer = build(model, adamw)
    assert all(group["fused"] for group in optimizer.param_groups)
    parameters = [
        (parameter, group["weight_decay"]) for group in optimizer.param_groups for parameter in group["params"]
    ]
    assert {decay for _, decay in parameters} == {0.0, 0.07}
    expected = [parameter.detach().clone() for parameter, _ in parameters]
    first = [torch.zeros_like(weight) for weight in expected]
    second = [torch.zeros_like(weight) for weight in expected]
    for step, rate in enumerate((1e-2, 3e-3, 2e-2), 1):
        gradients = [torch.randn_like(weight) for weight in expected]
        for index, (gradient, (_, decay)) in enumerate(zip(gradients, parameters, strict=True)):
            first[index] = 0.9 * first[index] + 0.1 * gradient
            second[index] = 0.95 * second[index] + 0.05 * gradient**2
            direction = (first[index] / (1 - 0.9**step)) / ((second[index] / (1 - 0.95**step)).sqrt() + 1e-6)
            expected[index] = expected[index] * (1 - rate * decay) - rate * direction
        update(optimizer, gradients, rate)
        for (parameter, _), weight in zip(parameters, expected, strict=True):
            assert (parameter - weight).abs().max() < 1e-12


@pytest.mark.parametrize("weight_decay", [0.0, 0.07])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_lars_step_equals_its_formula(weight_decay: float, momentum: float) -> None:
    """You et al. 2017, algorithm 1; without weight decay MAE's util/lars.py. The test's own, in float64."""
    model = model64()
    with torch.no_grad():
        model[2].weight.zero_()  # no norm to adapt to
    factors = {"0.weight": 0.5, "0.bias": 3.0, "2.weight": 0.125}
    optimizer = build(model, LARS(weight_decay=weight_decay, momentum=momentum, trust=0.02), factors)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    velocity = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for step, rate in enumerate((0.5, 0.2, 0.7, 0.3)):
        gradients = {name: torch.randn_like(weight) * 10.0 ** (step - 1) for name, weight in weights.items()}
        if step == 2:
            gradients["0.weight"].zero_()  # nothing to scale
        for name, gradient in gradients.items():
            push = gradient
            if weights[name].ndim > 1:
                of_weight, of_gradient = weights[name].norm(), gradient.norm()
                ratio = 0.02 * of_weight / (of_gradient + weight_decay * of_weight) if of_weight * of_gradient else 1.0
                push = ratio * (gradient + weight_decay * weights[name])
            velocity[name] = momentum * velocity[name] + push
            weights[name] = weights[name] - rate * factors.get(name, 1.0) * velocity[name]
        update(optimizer, [gradients[name] for name in order], rate)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), weights[name], rtol=1e-7, atol=0, msg=f"{name}, step {step}")


def test_lars_weight_moves_by_a_share_of_its_norm_and_its_bias_by_the_gradient() -> None:
    """So large or small a gradient may be, the first step of a weight has the length rate x trust x |weight|."""
    for scale in (1e-3, 1.0, 1e4):
        layer = nn.Linear(5, 3).double()
        before = [parameter.detach().clone() for parameter in layer.parameters()]
        gradients = [torch.randn_like(parameter) * scale for parameter in before]
        update(build(layer, LARS(weight_decay=0.0, trust=0.01)), gradients, 0.5)
        steps = [old - new.detach() for old, new in zip(before, layer.parameters(), strict=True)]
        assert steps[0].norm().item() == pytest.approx(0.5 * 0.01 * before[0].norm().item(), rel=1e-4)
        assert torch.cosine_similarity(steps[0].flatten(), gradients[0].flatten(), dim=0).item() == pytest.approx(1.0)
        torch.testing.assert_close(steps[1], 0.5 * gradients[1])


OPTIMIZERS = [AdamW(weight_decay=0.1), LARS(weight_decay=0.0), LARS(weight_decay=0.1), LARS(momentum=0.0)]
IDS = ["adamw", "lars", "lars-decay", "lars-no-momentum"]


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=IDS)
def test_optimizer_rate_of_zero_changes_no_weight(kind: Optimizer) -> None:
    model = model64()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = build(model, kind)
    update(optimizer, [torch.randn_like(p) for group in optimizer.param_groups for p in group["params"]], 0.0)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=IDS)
def test_optimizer_step_follows_the_rate_of_each_group(kind: Optimizer) -> None:
    """From one start, twice the factor is twice the step, and a factor of 0 is none; nobody else's step changes."""
    steps = []
    for factor in (0.0, 1.0, 2.0):
        model = model64()
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        optimizer = build(model, kind, {"0.weight": factor, "0.bias": factor})
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = {name: torch.full_like(weight, 0.3) for name, weight in before.items()}
        update(optimizer, [gradients[names[id(parameter)]] for parameter in parameters], 1e-2)
        steps.append({name: before[name] - parameter.detach() for name, parameter in model.named_parameters()})
    for name in steps[0]:
        if name.startswith("0."):
            assert not steps[0][name].any()
            assert steps[1][name].any()
            torch.testing.assert_close(steps[2][name], 2 * steps[1][name], rtol=1e-6, atol=0)
        else:
            assert torch.equal(steps[0][name], steps[1][name])
            assert torch.equal(steps[1][name], steps[2][name])


def copy_of_state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value.clone() for moments in optimizer.state.values() for value in moments.values()]


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=IDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), None])
@pytest.mark.parametrize("before", [0, 2])
def test_optimizer_step_that_is_not_finite_changes_nothing(kind: Optimizer, bad: float | None, before: int) -> None:
    """Weights and momenta stay to the bit, be it the very first step; None: found elsewhere, on another rank."""
    model, untouched = model64(), model64()
    optimizer, reference = build(model, kind), build(untouched, kind)
    shapes = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    torch.manual_seed(1)
    gradients_by_step = [[torch.randn_like(shape) for shape in shapes] for _ in range(before + 1)]
    for gradients in gradients_by_step[:before]:
        update(optimizer, gradients, 1e-2)
        update(reference, gradients, 1e-2)
    broken = [gradient.clone() for gradient in gradients_by_step[before]]
    if bad is not None:
        broken[1].flatten()[2] = bad
    state = copy_of_state(optimizer)
    update(optimizer, broken, 1e-2, broken=bad is None)
    for one, two in zip(model.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(one, two)
    if before:
        assert all(torch.equal(old, new) for old, new in zip(state, copy_of_state(optimizer), strict=True))
    else:
        assert all(not value.any() for value in copy_of_state(optimizer))
    update(optimizer, gradients_by_step[before], 1e-2)  # and the next good step is what it would have been
    update(reference, gradients_by_step[before], 1e-2)
    for one, two in zip(model.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=IDS)
def test_optimizer_leaves_parameters_without_a_gradient_alone(kind: Optimizer) -> None:
    model = model64()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = build(model, kind)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    model[0].weight.grad = torch.ones_like(model[0].weight)
    optimizer.found_inf = torch.zeros(())
    optimizer.step()
    changed = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert changed == [True, *[False] * 5]


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=IDS)
def test_optimizer_state_goes_through_a_file(kind: Optimizer, tmp_path: Path) -> None:
    """A resumed optimizer takes the steps that the undisturbed one takes."""
    models = [model64(), model64()]
    first = build(models[0], kind, {"0.weight": 0.5})
    shapes = [parameter for group in first.param_groups for parameter in group["params"]]
    torch.manual_seed(2)
    gradients_by_step = [[torch.randn_like(shape) for shape in shapes] for _ in range(4)]
    for gradients in gradients_by_step[:2]:
        update(first, gradients, 1e-2)
    torch.save([first.state_dict(), models[0].state_dict()], tmp_path / "state.pt")
    state, weights = torch.load(tmp_path / "state.pt", weights_only=True)
    models[1].load_state_dict(weights)
    second = build(models[1], kind, {"0.weight": 0.5})
    second.load_state_dict(state)
    for gradients in gradients_by_step[2:]:
        update(first, gradients, 1e-2)
        update(second, gradients, 1e-2)
    for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, two)


# -------------------------------------------------------------------- settings


SHARED = [("per_batch", 0), ("base_lr", -1.0), ("weight_decay", -0.1), ("layer_decay", 0.0), ("layer_decay", 1.5)]


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        *((part, key, value) for part in (AdamW, LARS) for key, value in SHARED),
        *((AdamW, "eps", -1.0), (AdamW, "betas", (0.9, 1.0)), (AdamW, "betas", (-0.1, 0.9))),
        *((LARS, "momentum", 1.0), (LARS, "momentum", -0.1), (LARS, "trust", 0.0), (LARS, "trust", -1.0)),
    ],
)
def test_optimizer_settings_out_of_range_are_refused(part: type[Optimizer], key: str, value: object) -> None:
    text = str(list(value) if isinstance(value, tuple) else value)
    with pytest.raises(ValueError, match=rf"^OPTIMIZER\.{key} is {re.escape(text)}: .*must be"):
        part(**{key: value})


def test_optimizer_settings_at_the_ends_of_their_ranges_are_taken() -> None:
    assert (
        AdamW(base_lr=0.0, weight_decay=0.0, eps=0.0, betas=(0.0, 0.0), layer_decay=1.0, per_batch=1).layer_decay == 1
    )
    assert LARS(momentum=0.0, trust=1e-9, layer_decay=1e-9).momentum == 0
