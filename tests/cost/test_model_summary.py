"""Shapes and operations part by part equal those of the real model at work."""

import pytest
import torch
from small_models import (
    CPU,
    IMAGE,
    assemble,
    each_part,
    finetuned_predictor,
    fits,
    hidings,
    images,
    members,
    probing_predictor,
    sampled,
    small,
)
from torch.utils.flop_counter import FlopCounterMode

from mim.cost.model_summary import ModelSummary, summarise_model
from mim.encoders import Encoder, Swin, ViT
from mim.heads import Head
from mim.ops.attention import choose_attention
from mim.structures import Features, ImageSpec

CROSSES = [(*hiding, head) for hiding in hidings() for head in members(Head) if fits(hiding[1], head)]


def on_meta(make) -> ModelSummary:
    with torch.device("meta"):
        model = make()
    return summarise_model(model, IMAGE)


def by_axis(model_summary: ModelSummary) -> dict[str, tuple[int, ...]]:
    return {boundary.what: boundary.shape for boundary in model_summary.boundaries}


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "hidden", "head"), each_part(CROSSES))
def test_summarise_model_equals_pytorchs_counter_over_the_real_model(encoder, hidden, head):
    """Real tensors on a CPU, with the kernels that training has there, all at once; and forward, part by part.

    Without groups of channels, whose gradients PyTorch counts as if there were none: see mim/cost/formulas.py.
    """
    keys = {"groups": 1} if head == "convolution" else {}

    def make():
        return assemble("random", encoder, hidden, head, head_keys=keys)

    model, img = make(), images(2)
    choose_attention(model, CPU)
    mask = sampled(model, img)
    work = on_meta(make).work
    flops = counted(lambda: model(img, mask).loss.backward()) / 2
    assert sum(part.training for part in work.values()) == pytest.approx(flops, rel=0.01)
    assert work["encoder"].forward == pytest.approx(counted(lambda: model.encode(img, mask)) / 2, rel=0.01)
    features = model.encode(img, mask)
    assert work["head"].forward == pytest.approx(counted(lambda: model.head(features)) / 2, rel=0.01)
    assert 0 < work["head"].forward < work["head"].training
    assert work["rest"].training == 0  # raw pixels and an elementwise loss


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "hidden", "head"), each_part(CROSSES))
def test_summarise_model_boundaries_are_what_the_real_parts_answer(encoder, hidden, head):
    def make():
        return assemble("random", encoder, hidden, head)

    model, img = make(), images(3)
    mask = sampled(model, img)
    features = model.encoder(img, mask)
    expected = {"image": img.shape[1:], "mask": mask.hidden_BHW.shape[1:], "tokens": features.tokens_BND.shape[1:]}
    if features.prefix_BKD is not None:
        expected["prefix tokens"] = features.prefix_BKD.shape[1:]
    expected |= {"prediction": model(img, mask).prediction.shape[1:], "target": model.target(img).shape[1:], "loss": ()}
    summary = on_meta(make)
    assert by_axis(summary) == {what: tuple(shape) for what, shape in expected.items()}
    assert [boundary.what for boundary in summary.boundaries] == list(expected)  # in the order of the data's way
    sources = {boundary.what: boundary.source for boundary in summary.boundaries}
    assert (sources["tokens"], sources["prediction"]) == (model.encoder.title, head)


def test_summarise_model_boundaries_follow_stride_and_dropping():
    dropped = by_axis(on_meta(lambda: assemble("random", "vit", "drop", "transformer", masker_keys={"ratio": 0.75})))
    assert dropped["tokens"] == (32 // 4, 16)  # a quarter of 4 x 8 patches
    merged = on_meta(lambda: assemble("random", "swin", "replace", "pixel_shuffle", target_keys={"stride": 4}))
    assert by_axis(merged)["tokens"] == (4 * 8, 16)  # patches of 4 px, merged once
    assert by_axis(merged)["prediction"] == by_axis(merged)["target"] == (3, 8, 16)


def test_summarise_model_counts_attention_alike_whatever_kernel_is_chosen():
    def make(fused: bool):
        model = assemble("random", "vit", "drop", "transformer")
        choose_attention(model, torch.device("cuda" if fused else "cpu"))
        return model

    assert on_meta(lambda: make(True)).work == on_meta(lambda: make(False)).work


def test_summarise_model_splits_a_classifier_and_counts_no_backward_pass_of_what_is_frozen():
    def encoder():
        return small(ViT, IMAGE, hidden="none")

    def tuned():
        return finetuned_predictor(encoder(), 7)

    def probe():
        return probing_predictor(encoder(), 7, rates=(1.0, 2.0))

    summary, probed = on_meta(tuned), on_meta(probe)
    assert set(summary.work) == {"encoder", "readout", "rest"}
    assert summary.work["encoder"].training > 2.5 * summary.work["encoder"].forward
    assert probed.work["encoder"].training == probed.work["encoder"].forward == summary.work["encoder"].forward
    assert probed.work["readout"].forward == 2 * summary.work["readout"].forward == 2 * (2 * 16 * 7)
    assert by_axis(summary)["scores"] == (7,)
    assert by_axis(probed)["scores"] == (2, 7)
    img = images(2)
    model = tuned()
    choose_attention(model, CPU)
    assert summary.flops == pytest.approx(counted(lambda: model(img)[0].sum().backward()) / 2, rel=0.01)


class Grouped(Encoder):
    """Patches, and then a convolution of each channel by itself."""

    name = "grouped"

    def __init__(self, image: ImageSpec):
        super().__init__(image, "replace", width=16, patch=8)
        self.embed, self.each = torch.nn.Conv2d(3, 16, 8, 8), torch.nn.Conv2d(16, 16, 7, padding=3, groups=16)

    def forward(self, img_BCHW, mask=None):
        tokens_BND = self.replace_hidden(self.embed(img_BCHW).flatten(2).transpose(1, 2), mask)
        map_BDHW = self.each(tokens_BND.transpose(1, 2).unflatten(2, self.patch_grid))
        return Features(map_BDHW.flatten(2).transpose(1, 2), self.patch_grid)


def test_summarise_model_counts_the_gradients_of_convolutions_in_groups_as_their_forward_pass():
    def make():
        model = assemble("random", "vit", "replace", "mlp")
        model.encoder = Grouped(IMAGE)
        return model

    embed, each = 2 * 32 * 16 * 3 * 8**2, 2 * 32 * 16 * 7**2  # of 32 tokens of width 16
    work = on_meta(make).work["encoder"]
    assert (work.forward, work.training) == (embed + each, 2 * embed + 3 * each)  # images need no gradient


class Peeking(Encoder):
    """Looks at a value, as no model without weights can; has a norm that counts, and draws a random number."""

    name = "peeking"

    def __init__(self, image: ImageSpec):
        super().__init__(image, "replace", width=6, patch=8)
        self.embed, self.norm = torch.nn.Conv2d(3, 6, 8, 8), torch.nn.BatchNorm2d(6)

    def forward(self, img_BCHW, mask=None):
        map_BDHW = self.norm(self.embed(img_BCHW)) * (1 + 0 * torch.rand(()))
        assert map_BDHW.isfinite().all()
        return Features(self.replace_hidden(map_BDHW.flatten(2).transpose(1, 2), mask), self.patch_grid)


def test_summarise_model_of_a_model_with_weights_tells_shapes_and_changes_nothing():
    model = assemble("random", "vit", "replace", "mlp")
    model.encoder = Peeking(IMAGE)
    model.head = small(Head.named("mlp"), model.encoder.spec, model.target.spec)
    torch.manual_seed(3)
    before, state = torch.get_rng_state(), {name: value.clone() for name, value in model.state_dict().items()}
    summary = summarise_model(model, IMAGE)
    assert by_axis(summary)["tokens"] == (4 * 8, 6)
    assert (summary.work, summary.flops, summary.metrics()) == (None, None, {})
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_model_summary_describes_shapes_and_operations_in_a_line_each():
    lines = on_meta(lambda: assemble("random", "vit", "drop", "transformer")).describe()
    assert lines["shapes"] == (
        "image 3 x 32 x 64 -> mask 4 x 8 cells -> tokens 16 x 16 and a class token -> prediction and target 3 x 32 x 64"
    )
    assert lines["operations"].startswith("0.00")
    assert "(encoder 0.00" in lines["operations"]
    swin = on_meta(lambda: assemble("random", Swin, "replace", "pixel_shuffle")).describe()
    assert "class token" not in swin["shapes"]
