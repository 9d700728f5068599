"""The optimizer: which parameters decay, and that a step is AdamW's, or nothing where gradients are not finite."""

import pytest
import torch
from torch import Tensor, nn

from mim.engine.optim import OptimizerSettings, build_optimizer, parameter_groups, unmatched


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


def settings(**keys) -> OptimizerSettings:
    return OptimizerSettings(**{"weight_decay": 0.1, **keys})


def decays(model: nn.Module, **keys) -> dict[str, float]:
    """The weight decay of every trained parameter by name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, settings(**keys))
    found = [(names[id(parameter)], group["weight_decay"]) for group in groups for parameter in group["params"]]
    assert len(found) == len(dict(found))
    return dict(found)


def test_parameter_groups_exempt_biases_and_vectors_only() -> None:
    model = Model()
    found = decays(model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    exempt = {"proj.bias", "norm.weight", "norm.bias", "bias"}
    expected = {f"{part}.{name}" for part in ("encoder", "head") for name in exempt} | {"scale"}
    assert {name for name, decay in found.items() if decay == 0} == expected
    assert set(found.values()) == {0.0, 0.1}


def test_parameter_groups_exempt_what_no_decay_names_by_its_end() -> None:
    plain = decays(Model())
    found = decays(Model(), no_decay=("encoder.mask_token", "pos_embed"))
    changed = {name for name in found if found[name] != plain[name]}
    assert changed == {"encoder.mask_token", "encoder.pos_embed", "head.pos_embed"}
    assert all(found[name] == 0 for name in changed)


@pytest.mark.parametrize("entry", ["embed", "mask", "encoder", "token", "encoder.mask", "proj", "ncoder.mask_token"])
def test_parameter_groups_match_whole_names_at_the_end_only(entry: str) -> None:
    assert decays(Model(), no_decay=(entry,)) == decays(Model())
    assert unmatched(Model(), settings(no_decay=(entry,))) == [entry]


def test_parameter_groups_leave_frozen_parameters_out() -> None:
    model = Model()
    model.encoder.requires_grad_(False)
    found = decays(model)
    assert set(found) == {name for name, _ in model.named_parameters() if not name.startswith("encoder.")}


def test_parameter_groups_without_members_are_left_out() -> None:
    assert len(parameter_groups(nn.Linear(3, 4), settings())) == 2
    assert [group["weight_decay"] for group in parameter_groups(nn.LayerNorm(4), settings())] == [0.0]
    assert [group["weight_decay"] for group in parameter_groups(nn.Linear(3, 4, bias=False), settings())] == [0.1]


def test_unmatched_lists_entries_that_name_no_trained_parameter() -> None:
    model = Model()
    model.head.requires_grad_(False)
    entries = ("encoder.mask_token", "head.mask_token", "cls_token", "pos_embed")
    assert unmatched(model, settings(no_decay=entries)) == ["head.mask_token", "cls_token"]
    assert unmatched(model, settings()) == []


# -------------------------------------------------------------------- the step


def update(optimizer: torch.optim.Optimizer, gradients: list[Tensor], rate: float) -> None:
    """One step as Trainer._update does it without a scaler."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    norm = torch.nn.utils.get_total_norm(gradients)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.grad_scale, optimizer.found_inf = None, (~norm.isfinite()).float()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def model64() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3)).double()


def test_optimizer_step_equals_the_formula_of_adamw() -> None:
    """Loshchilov and Hutter, algorithm 2, with PyTorch's placing of eps; written out in float64."""
    model, chosen = model64(), settings(betas=(0.9, 0.95), eps=1e-6, weight_decay=0.07)
    optimizer = build_optimizer(model, chosen)
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
        for place, (gradient, (_, decay)) in enumerate(zip(gradients, parameters, strict=True)):
            first[place] = 0.9 * first[place] + 0.1 * gradient
            second[place] = 0.95 * second[place] + 0.05 * gradient**2
            direction = (first[place] / (1 - 0.9**step)) / ((second[place] / (1 - 0.95**step)).sqrt() + 1e-6)
            expected[place] = expected[place] * (1 - rate * decay) - rate * direction
        update(optimizer, gradients, rate)
        for (parameter, _), weight in zip(parameters, expected, strict=True):
            assert (parameter - weight).abs().max() < 1e-12


def test_optimizer_rate_of_zero_changes_no_weight() -> None:
    model = model64()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = build_optimizer(model, settings())
    update(optimizer, [torch.randn_like(p) for group in optimizer.param_groups for p in group["params"]], 0.0)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def copy_of_state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value.clone() for held in optimizer.state.values() for value in held.values()]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("before", [0, 2])
def test_optimizer_step_that_is_not_finite_changes_nothing(bad: float, before: int) -> None:
    model, untouched = model64(), model64()
    optimizer, reference = build_optimizer(model, settings()), build_optimizer(untouched, settings())
    shapes = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    torch.manual_seed(1)
    drawn = [[torch.randn_like(shape) for shape in shapes] for _ in range(before + 1)]
    for gradients in drawn[:before]:
        update(optimizer, gradients, 1e-2)
        update(reference, gradients, 1e-2)
    broken = [gradient.clone() for gradient in drawn[before]]
    broken[1].flatten()[2] = bad
    state = copy_of_state(optimizer)
    update(optimizer, broken, 1e-2)
    for one, two in zip(model.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(one, two)
    if before:
        assert all(torch.equal(old, new) for old, new in zip(state, copy_of_state(optimizer), strict=True))
    else:
        assert all(not value.any() for value in copy_of_state(optimizer))
    update(optimizer, drawn[before], 1e-2)  # and the next good step is what it would have been
    update(reference, drawn[before], 1e-2)
    for one, two in zip(model.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(one, two)


# -------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("key", "value"),
    [("per_batch", 0), ("base_lr", -1.0), ("eps", -1.0), ("weight_decay", -0.1), ("betas", (0.9, 1.0))],
)
def test_optimizer_settings_out_of_range_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"OPTIMIZER\.{key} is "):
        OptimizerSettings(**{key: value})
