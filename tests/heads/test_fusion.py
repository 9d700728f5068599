"""HEAD.stages: what the fusion of stages computes, which stages it reads, and that every head may have it.

Shapes: B batch, N tokens, K prefix tokens, D width, h w entries of a map high and wide.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_models import IMAGE, assemble, fits, generator, hidings, images, members, sampled, small

from mim.cost.model_summary import summarise_model
from mim.heads import Head, PixelShuffle, Transformer
from mim.registry import keys_of
from mim.structures import EncoderSpec, Features, StageSpec, TargetSpec

STAGES = (StageSpec(5, 2), StageSpec(6, 4), StageSpec(12, 8), StageSpec(7, 16), StageSpec(12, 8))
SPEC = EncoderSpec(width=12, stride=8, patch=8, grid=(2, 4), drops_hidden=True, stages=STAGES)
TARGET = TargetSpec(channels=3, stride=4)
KEPT = torch.tensor([[0, 2, 4], [1, 4, 7]])
FUSING = [name for name, part in members(Head).items() if "stages" in keys_of(part)]
CASES = [(*hiding, head) for hiding in hidings() for head in FUSING if fits(hiding[1], head)]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def build(spec=SPEC, part=Transformer, **keys) -> Head:
    torch.manual_seed(1)
    head = small(part, spec, TARGET, **keys).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * noise(*parameter.shape))
    return head


def maps(stages) -> tuple[torch.Tensor, ...]:
    sizes = [(STAGES[stage].width, 16 // STAGES[stage].stride, 32 // STAGES[stage].stride) for stage in stages]
    return tuple(noise(2, *size, seed=number) for number, size in enumerate(sizes))


# ---------------------------------------------------------------- what it computes


@pytest.mark.parametrize("drops", [True, False])
@torch.no_grad()
def test_fusion_is_a_weighted_sum_of_projected_stages_and_a_norm(drops):
    """MFF's formula, place by place; a finer map by the mean of its entries, a coarser one by the entry above."""
    spec, kept = replace(SPEC, drops_hidden=drops), KEPT if drops else torch.arange(8).expand(2, -1)
    head = build(spec, stages=(0, 1, 2, 3, 4))
    assert head.stages == (0, 1, 2, 3)
    inputs = Features(noise(2, kept.shape[1], 12), (2, 4), KEPT if drops else None, stages_BDhw=maps(head.stages))
    fused = head.fused(inputs)
    shares = torch.exp(head.fusion.weights) / torch.exp(head.fusion.weights).sum()
    for image in range(2):
        for number, place in enumerate(kept[image].tolist()):
            row, column = divmod(place, 4)
            entries = [
                inputs.stages_BDhw[0][image, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].mean((1, 2)),
                inputs.stages_BDhw[1][image, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((1, 2)),
                inputs.stages_BDhw[2][image, :, row, column],
                inputs.stages_BDhw[3][image, :, row // 2, column // 2],
            ]
            total = shares[4] * inputs.tokens_BND[image, number]
            for share, projection, entry in zip(shares, head.fusion.projections, entries, strict=False):
                total = total + share * (projection.weight @ entry + projection.bias)
            expected = (total - total.mean()) / (total.var(correction=0) + 1e-6).sqrt()
            expected = expected * head.fusion.norm.weight + head.fusion.norm.bias
            torch.testing.assert_close(fused.tokens_BND[image, number], expected, rtol=0, atol=1e-12)
    assert torch.equal(head(inputs).map_BCHW, replace_fusion(head, fused))


def replace_fusion(head: Head, fused: Features) -> torch.Tensor:
    """What the head predicts of features that are fused already."""
    fusion, head.fusion = head.fusion, None
    prediction = head(fused).map_BCHW
    head.fusion = fusion
    return prediction


@torch.no_grad()
def test_fusion_behind_a_vit_without_its_last_norm_is_mffs():
    """Its tokens are the raw output of the last block, as in mmpretrain's MFFViT; its class token is not fused."""
    model = assemble("random", "vit", "drop", "transformer", encoder_keys={"depth": 3, "norm": False})
    head = small(Transformer, model.encoder.spec, model.target.spec, stages=(0, 2))
    torch.nn.init.normal_(head.fusion.weights)
    img = images(2)
    mask = sampled(model, img)
    outputs = []
    for block in model.encoder.backbone.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    fused = head.fused(model.encoder(img, mask, head.stages))
    fusion, shares = head.fusion, F.softmax(head.fusion.weights, dim=0)
    total = shares[0] * fusion.projections[0](outputs[0][:, 1:]) + shares[1] * outputs[2][:, 1:]
    torch.testing.assert_close(fused.tokens_BND, F.layer_norm(total, (16,), fusion.norm.weight, fusion.norm.bias, 1e-6))
    assert torch.equal(fused.prefix_BKD, outputs[2][:, :1])
    assert torch.equal(small(Transformer, model.encoder.spec, TARGET, stages=(0, 1)).fusion.weights, torch.ones(3))


# ---------------------------------------------------------------- which stages


@pytest.mark.parametrize(
    ("given", "read"), [((), ()), ((4,), ()), ((-1,), ()), ((0, -1), (0,)), ((-5, 2), (0, 2)), ((3, 1), (1, 3))]
)
def test_stages_are_counted_from_either_end_and_the_last_is_always_in(given, read):
    head = build(stages=given)
    assert head.stages == read
    assert (head.fusion is None) == (not read)


@pytest.mark.parametrize("name", FUSING)
def test_head_without_stages_has_no_weights_of_a_fusion_and_draws_none(name):
    spec = replace(SPEC, drops_hidden=Head.named(name).hidden_only)
    plain, bare = build(spec, Head.named(name)), build(replace(spec, stages=()), Head.named(name))
    assert {name: weight.shape for name, weight in plain.state_dict().items()} == {
        name: weight.shape for name, weight in bare.state_dict().items()
    }
    assert all(torch.equal(first, second) for first, second in zip(plain.parameters(), bare.parameters(), strict=True))
    inputs = Features(noise(2, 8, 12), (2, 4))
    assert plain.fused(inputs) is inputs


@pytest.mark.parametrize(
    ("stages", "count", "message"),
    [
        (
            (5,),
            5,
            r"HEAD\.stages \[5\]: this encoder has no stage 5; it has 0 to 4 \(of strides 2, 4, 8, 16, 8\), or -5",
        ),
        ((0, -6), 5, r"HEAD\.stages \[0, -6\]: this encoder has no stage -6"),
        ((0,), 0, r"no stage 0; it has none.*HEAD\.stages \[\]"),
        ((1, -4), 5, r"HEAD\.stages \[1, -4\] names a stage twice"),
    ],
)
def test_stages_that_do_not_exist_are_refused_with_those_that_do(stages, count, message):
    with pytest.raises(ValueError, match=message):
        build(replace(SPEC, stages=STAGES[:count]), stages=stages)
    with pytest.raises(ValueError, match=message):
        build(replace(SPEC, stages=STAGES[:count], drops_hidden=False), PixelShuffle, stages=stages)


# ---------------------------------------------------------------- in a model


@pytest.mark.parametrize(("encoder", "hidden", "head"), CASES, ids=["-".join(case) for case in CASES])
def test_fusion_of_any_encoder_trains_every_weight_and_sees_no_hidden_pixel(encoder, hidden, head):
    model, img = assemble("random", encoder, hidden, head, head_keys={"stages": (0,)}).train(), images(2)
    mask = sampled(model, img)
    hidden_B1HW = mask.at(IMAGE.height, IMAGE.width)[:, None]
    output = model(img, mask)
    output.loss.backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"head.fusion.weights", "head.fusion.projections.0.bias", "head.fusion.norm.weight"} < set(trained)
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.any()] == []
    with torch.no_grad():
        changed = torch.where(hidden_B1HW, float("nan"), img)
        assert torch.equal(model(changed, mask).prediction, output.prediction)


def test_work_of_a_fusion_is_that_of_the_head():
    def work(**keys):
        with torch.device("meta"):
            return summarise_model(assemble("random", "vit", "drop", "transformer", head_keys=keys), IMAGE).work

    plain, fusing = work(), work(stages=(0,))
    assert fusing["encoder"] == plain["encoder"]
    visible, width = 16, 16
    assert fusing["head"].forward - plain["head"].forward == 2 * visible * width**2
    assert fusing["head"].training - plain["head"].training == 3 * 2 * visible * width**2
