"""What every combination of parts must do; a part that joins the registries joins these tests."""

import random
from dataclasses import replace
from itertools import combinations, cycle, product

import pytest
import torch
from small_models import (
    IMAGE,
    Colours,
    assemble,
    each_part,
    finetuned_predictor,
    fits,
    hidings,
    images,
    learns,
    members,
    predicts,
    probing_predictor,
    sampled,
    small,
)

from mim.encoders import Encoder
from mim.engine.optim import LARS, AdamW, Optimizer, parameter_groups
from mim.heads import Head
from mim.losses import Loss
from mim.maskers import Masker
from mim.targets import Target
from mim.targets.features import FeatureTarget

VARIANTS = {
    "pixels": {
        "raw": {},
        "patch": {"normalize": "patch"},
        "window": {"normalize": "window", "window": 9},
        "half": {"stride": 2},
    }
}
MOST_SLOW = 400  # combinations among the slow tests; those of the fast ones have every pair of parts
NAMES = [*members(Target), Colours.name]
TARGETS = [(name, keys) for name in NAMES for keys in VARIANTS.get(name, {"": {}}).values()]
TARGET_IDS = [f"{name}-{variant}" for name in NAMES for variant in VARIANTS.get(name, {"": {}})]
MADE = [assemble("random", "vit", "drop", "transformer", name, target_keys=keys).target for name, keys in TARGETS]
SPECS = [target.spec for target in MADE]
ATTENDING = [number for number, target in enumerate(MADE) if target.attends]
LEARNABLE = {loss: [number for number, spec in enumerate(SPECS) if learns(loss, spec)] for loss in members(Loss)}
PAIRS = [(encoder, hidden, head) for encoder, hidden in hidings() for head in members(Head)]
FITTING = [pair for pair in PAIRS if fits(pair[1], pair[2])]
REFUSED = [pair for pair in PAIRS if not fits(pair[1], pair[2])]
UNFILLED = [pair for pair in REFUSED if pair[1] == "drop"]
UNTOLD = [pair for pair in REFUSED if pair[1] != "drop"]


def named(*pair):
    return "-".join(pair)


def pairs_of(case: tuple) -> set[tuple]:
    encoder, hidden, *others = case
    return set(combinations(enumerate([(encoder, hidden), *others]), 2))


def chooses(masker: str, number: int) -> bool:
    """Whether a masker can choose cells where this is the target: some choose by what its network attends to."""
    return number in ATTENDING or not Masker.named(masker).of_image


def masked(encoder: str, hidden: str, head: str, masker: str):
    """A model of pixels, or of a target that the masker can choose by."""
    target = TARGETS[ATTENDING[0]][0] if Masker.named(masker).of_image else "pixels"
    return assemble(masker, encoder, hidden, head, target)


def combined() -> tuple[list[tuple], list[tuple]]:
    """Combinations of encoder, head, target, masker and loss: few by which all pairs of two parts occur, and others."""
    every = [
        (*parts, number, masker, loss)
        for parts, masker, (loss, numbers) in product(FITTING, members(Masker), LEARNABLE.items())
        for number in numbers
        if predicts(*parts[1:], SPECS[number]) and chooses(masker, number)
    ]
    random.Random(0).shuffle(every)
    pairs = {case: pairs_of(case) for case in every}
    met: set[tuple] = set()
    cases: dict[tuple, None] = {}
    for new in range(10, 0, -1):  # the most pairs that a case can add
        for case in every:
            if len(pairs[case] - met) >= new:
                cases[case] = None
                met |= pairs[case]
    return list(cases), [case for case in every if case not in cases][:MOST_SLOW]


CASES, MORE_CASES = combined()
IN_TURN = {(*pair, masker) for pair, masker in zip(FITTING, cycle(members(Masker)))}


def param(*case, name: str, fast: bool):
    return pytest.param(*case, id=name, marks=[] if fast else [pytest.mark.slow])


@pytest.mark.parametrize(
    ("encoder", "hidden", "head", "number", "masker", "loss"),
    [
        param(*case, name=named(*case[:3], TARGET_IDS[case[3]], *case[4:]), fast=fast)
        for cases, fast in ((CASES, True), (MORE_CASES, False))
        for case in cases
    ],
)
def test_combination_trains_every_parameter(encoder, hidden, head, number, masker, loss):
    target, keys = TARGETS[number]
    model = assemble(masker, encoder, hidden, head, target, loss, target_keys=keys).train()
    img = images(2)
    output = model(img, sampled(model, img))
    assert output.loss.isfinite()
    assert output.loss.item() > 0
    assert output.prediction.shape == model.target(img).shape
    output.loss.backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.any()] == []
    assert [name for name, p in trained.items() if not p.grad.isfinite().all()] == []
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    torch.optim.AdamW(trained.values(), lr=1e-3, weight_decay=0.0).step()
    assert [name for name, parameter in trained.items() if torch.equal(parameter, before[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "hidden", "head"), each_part(FITTING))
def test_combination_learns_one_image_under_one_mask(encoder, hidden, head):
    model, img = assemble("random", encoder, hidden, head).train(), images(1)
    mask = sampled(model, img)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    # at a constant rate the loss of Swin V2 leaps now and then, at steps that rounding decides, and one may be the last
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.025, total_iters=39)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = model(img, mask).loss
        loss.backward()
        optimizer.step()
        decay.step()
        losses.append(loss.item())
    assert losses[-1] < 0.93 * losses[0]  # noise: the last of it is learned by heart, and slowly


@pytest.mark.parametrize(
    ("encoder", "hidden", "head", "masker"),
    [
        param(*pair, masker, name=named(*pair, masker), fast=(*pair, masker) in IN_TURN)
        for pair, masker in product(FITTING, members(Masker))
        if not Masker.named(masker).of_image or predicts(*pair[1:], SPECS[ATTENDING[0]])
    ],
)
@torch.no_grad()
def test_hidden_pixels_never_change_a_prediction(encoder, hidden, head, masker):
    """Under one mask: a masker that chooses by the image chooses others for other pixels."""
    model, img = masked(encoder, hidden, head, masker), images(2)
    mask = replace(model.teach(img, sampled(model, img))[0], draw_B=None)
    hidden_B1HW = mask.at(IMAGE.height, IMAGE.width)[:, None]
    expected = model(img, mask).prediction
    for value in (1e6 * images(2, seed=9), torch.tensor(float("nan"))):
        assert torch.equal(model(torch.where(hidden_B1HW, value, img), mask).prediction, expected)
    visible = torch.where(hidden_B1HW, img, img + images(2, seed=9))
    assert not torch.equal(model(visible, mask).prediction, expected)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        pytest.param(name, keys, id=test_id)
        for (name, keys), test_id in zip(TARGETS, TARGET_IDS, strict=True)
        if name in members(Target) and not issubclass(Target.named(name), FeatureTarget)
    ],
)
def test_target_without_a_network_has_the_same_values_in_any_precision(name, keys):
    """Products in bf16 would blur what the model learns from."""
    target = assemble("random", "vit", "drop", "transformer", name, target_keys=keys).target
    expected = target(images(2))
    with torch.autocast("cpu", torch.bfloat16):
        map_BChw = target(images(2))
        pixels_BCHW = target.to_pixels(map_BChw, images(2))
    assert map_BChw.dtype == torch.float32
    assert torch.equal(map_BChw, expected)
    if pixels_BCHW is not None:
        assert torch.equal(pixels_BCHW, target.to_pixels(expected, images(2)))


@pytest.mark.parametrize(("name", "keys"), TARGETS, ids=TARGET_IDS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@torch.no_grad()
def test_hidden_pixels_change_the_target_alone(name, keys, training):
    """Whatever networks it has: what they see of hidden pixels reaches the loss, and no prediction."""
    model, img = assemble("random", "vit", "drop", "transformer", name, target_keys=keys).train(training), images(4)
    mask = sampled(model, img)
    other = torch.where(mask.at(IMAGE.height, IMAGE.width)[:, None], images(4, seed=9), img)
    one, two = model(img, mask), model(other, mask)
    assert torch.equal(one.prediction, two.prediction)
    assert not torch.equal(one.loss, two.loss)


@pytest.mark.parametrize(("name", "keys"), TARGETS, ids=TARGET_IDS)
@torch.no_grad()
def test_target_of_an_image_in_evaluation_does_not_depend_on_its_neighbours(name, keys):
    target = assemble("random", "vit", "drop", "transformer", name, target_keys=keys).eval().target
    img = images(4)
    torch.testing.assert_close(target(img)[1:2], target(img[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("encoder", "hidden", "head"), each_part(FITTING))
@torch.no_grad()
def test_weights_survive_a_state_dict(encoder, hidden, head):
    first, second = (assemble("random", encoder, hidden, head, seed=seed) for seed in (0, 1))
    img = images(2)
    mask = sampled(first, img)
    assert not torch.equal(first(img, mask).loss, second(img, mask).loss)
    second.load_state_dict(first.state_dict(), strict=True)
    assert torch.equal(first(img, mask).prediction, second(img, mask).prediction)


def classifier(encoder, tune_blocks):
    """Fine-tuning of so many blocks, or a probe of three rates."""
    torch.manual_seed(0)
    body = small(Encoder.named(encoder), IMAGE, hidden="none")
    if tune_blocks == "probe":
        return probing_predictor(body, 5, pool="mean", rates=(0.1, 1.0, 10.0))
    return finetuned_predictor(body, 5, tune_blocks, init_std=0.5)


@pytest.mark.parametrize("optimizer", [AdamW(base_lr=1e-3), LARS()], ids=["adamw", "lars"])
@pytest.mark.parametrize("tune_blocks", ["all", 2.0, 1.5, 1.0, 0.5, 0.0, "probe"])
@pytest.mark.parametrize("encoder", members(Encoder))
def test_classifier_trains_every_parameter_that_is_not_frozen_and_no_other(encoder, tune_blocks, optimizer):
    model = classifier(encoder, tune_blocks).train()
    scores_LBK = model(images(4))
    sum(torch.nn.functional.cross_entropy(scores_BK, torch.tensor([0, 3, 1, 4])) for scores_BK in scores_LBK).backward()
    parameters = dict(model.named_parameters())
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    assert {name for name, parameter in parameters.items() if parameter.grad is not None} == trained
    assert [name for name in trained if not parameters[name].grad.any()] == []
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    built = optimizer.build(parameter_groups(model, optimizer, {}))
    for group in built.param_groups:
        group["lr"] = 1.0
    built.step()
    assert {name for name, parameter in parameters.items() if not torch.equal(parameter, before[name])} == trained
    assert trained >= {name for name in parameters if name.startswith("heads.")}


@pytest.mark.parametrize("name", members(Optimizer))
def test_optimizer_builds_what_the_engine_drives(name):
    """Groups keep their own rate and factor, and a step whose found_inf is set changes nothing."""
    optimizer = Optimizer.named(name)()
    model = classifier("vit", "all")
    groups = parameter_groups(model, optimizer, {"readouts.0.linear.weight": 0.5})
    built = optimizer.build(groups)
    assert isinstance(built, torch.optim.Optimizer)
    assert [group["lr_scale"] for group in built.param_groups] == [1.0, 1.0, 0.5]
    assert [list(map(id, group["params"])) for group in built.param_groups] == [
        list(map(id, group["params"])) for group in groups
    ]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for broken in (1.0, 0.0):
        for group in built.param_groups:
            group["lr"] = 0.1
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        built.grad_scale, built.found_inf = None, torch.tensor(broken)
        built.step()
        changed = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
        assert changed == [bool(not broken and parameter.requires_grad) for parameter in model.parameters()]


@pytest.mark.parametrize(("encoder", "hidden", "head"), UNFILLED, ids=[named(*pair) for pair in UNFILLED])
def test_head_that_cannot_fill_dropped_places_is_refused_with_a_way_out(encoder, hidden, head):
    with pytest.raises(ValueError, match=rf"HEAD\.name {head} .*use HEAD\.name") as refusal:
        assemble("random", encoder, hidden, head)
    message = str(refusal.value)
    assert "ENCODER.hidden replace" in message
    fillers = [name for name, part in members(Head).items() if part.fills_dropped]
    assert fillers
    assert all(name in message for name in fillers)
    assemble("random", encoder, "replace", head)  # both ways out are real
    for name in fillers:
        assemble("random", encoder, hidden, name)


@pytest.mark.parametrize(("encoder", "hidden", "head"), UNTOLD, ids=[named(*pair) for pair in UNTOLD])
def test_head_of_hidden_places_alone_is_refused_on_dense_features_with_a_way_out(encoder, hidden, head):
    with pytest.raises(ValueError, match=rf"{head} .*use ENCODER\.hidden drop or sparse, or HEAD\.name ") as refusal:
        assemble("random", encoder, hidden, head)
    others = [name for name, part in members(Head).items() if not part.hidden_only]
    assert others
    for name in others:  # both ways out are real
        assert name in str(refusal.value)
        assemble("random", encoder, hidden, name)
    if Encoder.named(encoder).can_drop:
        assemble("random", encoder, "drop", head)


@pytest.mark.parametrize("name", [name for name, part in members(Encoder).items() if not part.can_drop])
def test_encoder_that_cannot_drop_is_refused_with_a_way_out(name):
    with pytest.raises(ValueError, match=r"use ENCODER\.hidden replace") as refusal:
        small(Encoder.named(name), IMAGE, hidden="drop")
    droppers = [other for other, part in members(Encoder).items() if part.can_drop]
    assert droppers
    assert all(other in str(refusal.value) for other in droppers)
    small(Encoder.named(name), IMAGE, hidden="replace")


def test_contracts_cover_every_pair_of_parts():
    cases = [((encoder, hidden), head, target, masker, loss) for encoder, hidden, head, target, masker, loss in CASES]
    parts = [hidings(), members(Head), range(len(TARGETS)), members(Masker), members(Loss)]
    for (one, ours), (other, theirs) in combinations(enumerate(parts), 2):
        pairs = {(case[one], case[other]) for case in cases}
        expected = set(product(ours, theirs))
        if (one, other) == (0, 1):
            expected = {pair for pair in expected if fits(pair[0][1], pair[1])}
        if (one, other) == (2, 4):
            expected = {pair for pair in expected if pair[0] in LEARNABLE[pair[1]]}
        if (one, other) == (2, 3):
            expected = {pair for pair in expected if chooses(pair[1], pair[0])}
        if (one, other) == (3, 4):
            expected = {pair for pair in expected if any(chooses(pair[0], number) for number in LEARNABLE[pair[1]])}
        assert pairs == expected


def test_contracts_cover_every_family():
    assert {"random", "block", "grid", "semantic"} <= set(members(Masker))
    assert {"teacher", "follower", "clusters"} <= set(members(Target))
    assert [TARGETS[number][0] for number in ATTENDING] == ["teacher"]
    assert {("vit", "drop"), ("vit", "replace"), ("swin", "replace"), ("swin_v2", "replace")} <= set(hidings())
    assert {"transformer", "cross_attention", "pixel_shuffle", "mlp"} <= set(members(Head))
    assert {"mse", "l1", "smooth_l1"} <= set(members(Loss))
    assert {"adamw", "lars"} <= set(members(Optimizer))
    assert {head for _, _, head in UNFILLED} == {"pixel_shuffle", "mlp"}
    assert {head for _, _, head in UNTOLD} == {"cross_attention"}
