"""The predictor: any encoder, any number of classes; which of its parameters are trained; and what stays at rest."""

import pytest
import torch
from einops import rearrange
from processes import FINETUNE, PROBE
from small_models import IMAGE, finetuned_predictor, images, members, probing_predictor, small
from torch import nn

from mim.build import load_config
from mim.encoders import Encoder, ViT
from mim.encoders.swin import Swin
from mim.readouts import Predictor
from mim.structures import Features
from mim.tasks.settings import FreezeSettings, ProbeSettings

ENCODERS = members(Encoder)


def plain(encoder: type, **keys) -> Encoder:
    """A small encoder of whole images."""
    return small(encoder, IMAGE, hidden="none", **keys)


def finetuned(encoder: type, classes: int = 7, tune_blocks="all", readout=None, **keys) -> Predictor:
    torch.manual_seed(0)
    return finetuned_predictor(plain(encoder, **keys), classes, tune_blocks, **(readout or {}))


def probe(encoder: type, classes: int = 7, **keys) -> Predictor:
    torch.manual_seed(0)
    return probing_predictor(plain(encoder), classes, **keys)


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def backward(model: Predictor) -> None:
    """The gradients of one batch of noise."""
    scores = model(images(4))
    labels_B = torch.arange(4) % scores[0].shape[1]
    sum(nn.functional.cross_entropy(scores_BK, labels_B) for scores_BK in scores).backward()


# ---------------------------------------------------------------- shapes and pools


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("name", ENCODERS)
def test_predictor_gives_one_score_a_class_with_every_encoder(name, classes):
    img = images(3)
    fine = finetuned(ENCODERS[name], classes, readout={"pool": "mean", "init_std": 0.02})
    scores = [*fine(img), *probe(ENCODERS[name], classes, pool="mean", rates=(1.0, 2.0, 3.0))(img)]
    assert [one.shape for one in scores] == 4 * [(3, classes)]
    assert all(one.isfinite().all() for one in scores)
    assert all(one.std(dim=0).min() > 0 for one in scores)  # another image, other scores


@pytest.mark.parametrize("pool", ["class", "both"])
@pytest.mark.parametrize("name", ENCODERS)
def test_predictor_pools_the_class_token_or_says_that_there_is_none(name, pool):
    if plain(ENCODERS[name]).spec.num_prefix:
        assert probe(ENCODERS[name], pool=pool)(images(2))[0].shape == (2, 7)
        return
    with pytest.raises(ValueError, match=rf"READOUT\.pool is {pool}, and this encoder has no class token: use mean"):
        probe(ENCODERS[name], pool=pool)
    if pool == "class":
        with pytest.raises(ValueError, match=r"use mean"):
            finetuned(ENCODERS[name], readout={"pool": pool})


def test_predictor_refuses_the_class_token_of_a_vit_without_one():
    with pytest.raises(ValueError, match=r"this encoder has no class token: use mean"):
        finetuned(ViT, readout={"pool": "class"}, class_token=False)
    with pytest.raises(ValueError, match=r"class token"):
        load_config(PROBE, ["READOUT.pool", "class", "ENCODER.class_token", "false"])


@torch.no_grad()
@pytest.mark.parametrize(("pool", "picks"), [("mean", [slice(1, None)]), ("class", [0]), ("both", [slice(1, None), 0])])
def test_predictor_scores_are_those_of_timms_backbone_pooled_and_normed(pool, picks):
    """Mean pooling leaves the class token out."""
    img = images(5)
    model = probe(ViT, pool=pool, rates=(1.0, 2.0)).eval()
    tokens = model.encoder.backbone.forward_features(img)
    parts = [tokens[:, pick].mean(dim=1) if pick != 0 else tokens[:, 0] for pick in picks]
    pooled = torch.cat(parts, dim=1) / (1 + 1e-6) ** 0.5  # a BatchNorm that has seen nothing
    for index, head in enumerate(readout.linear for readout in model.readouts):
        torch.testing.assert_close(model(img)[index], pooled @ head.weight.T + head.bias, rtol=1e-5, atol=1e-6)
    if pool != "both":
        fine = finetuned(ViT, readout={"pool": pool, "init_std": 1.0}, norm=False)
        (features,) = (
            tokens[:, pick].mean(dim=1) if pick != 0 else tokens[:, 0]
            for tokens in [fine.encoder.backbone.forward_features(img)]
            for pick in picks
        )
        normed = nn.functional.layer_norm(features, (16,), eps=1e-6)
        torch.testing.assert_close(fine(img)[0], normed @ fine.readouts[0].linear.weight.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_predictor_without_a_norm_scores_the_pooled_features_themselves(name):
    model = finetuned(ENCODERS[name], readout={"norm": "none", "init_std": 1.0}).eval()
    features = model.encoder(images(3)).tokens_BND.mean(dim=1)
    torch.testing.assert_close(model(images(3))[0], features @ model.readouts[0].linear.weight.T, rtol=1e-4, atol=1e-5)
    assert not [name for name, _ in model.named_parameters() if name.startswith("readouts.0.norm.")]


# ---------------------------------------------------------------- first weights


def test_predictor_heads_start_as_published():
    """MAE: 2e-5 and zero bias in fine-tuning, .01 in a probe, whose BatchNorm has no weights."""
    torch.manual_seed(0)
    encoder = plain(ViT, width=64)
    fine = finetuned_predictor(encoder, 1000)
    probing = probing_predictor(encoder, 1000, rates=(1.0, 0.1))
    for model, std in ((fine, 2e-5), (probing, 0.01)):
        for head in [readout.linear for readout in model.readouts]:
            assert head.weight.std().item() == pytest.approx(std, rel=0.02)
            assert abs(head.weight.mean().item()) < 0.02 * std
            assert not head.bias.any()
    first, second = (readout.linear.weight for readout in probing.readouts)
    assert torch.equal(first, second)  # only their rates differ
    assert first is not second
    assert not list(probing.readouts[0].norm.parameters())
    assert (fine.readouts[0].norm.eps, probing.readouts[0].norm.eps) == (1e-6, 1e-6)


@pytest.mark.parametrize("std", [0.0, 0.02])
def test_predictor_heads_start_with_the_init_std_asked_for(std):
    head = finetuned(ViT, classes=2000, readout={"init_std": std}).readouts[0].linear
    assert head.weight.std().item() == pytest.approx(std, rel=0.02)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"READOUT\.init_std is -1"):
        finetuned(ViT, readout={"init_std": -1.0})
    for rates in ((), (0.0, 1.0), (-1.0,), (1.0, 2.0, 1.0)):
        with pytest.raises(ValueError, match=r"PROBE\.rates"):
            ProbeSettings(rates=rates)
    for decays in ((-0.1,), (0.1, 0.1)):
        with pytest.raises(ValueError, match=r"PROBE\.weight_decays"):
            ProbeSettings(weight_decays=decays)
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"PROBE\.choose_share"):
            ProbeSettings(choose_share=share)


@pytest.mark.parametrize("recipe", [FINETUNE, PROBE], ids=["finetune", "probe"])
@pytest.mark.parametrize("hidden", ["drop", "replace"])
def test_predictor_refuses_an_encoder_that_hides(recipe, hidden):
    with pytest.raises(ValueError, match=rf"ENCODER\.hidden is {hidden}.*it must be none"):
        load_config(recipe, ["ENCODER.hidden", hidden])
    encoder = small(ViT, IMAGE, hidden=hidden)
    with pytest.raises(ValueError, match=rf"ENCODER\.hidden is {hidden}"):
        finetuned_predictor(encoder, 2)


# ---------------------------------------------------------------- what is trained

VIT_UPPER = {
    *("norm2.weight", "norm2.bias"),
    *("mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"),
}
VIT_BLOCK = VIT_UPPER | {
    *("norm1.weight", "norm1.bias"),
    *("attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias"),
}
SWIN_BLOCK = VIT_BLOCK | {"attn.relative_position_bias_table"}
TOP = {"encoder.backbone.norm.weight", "encoder.backbone.norm.bias"}  # on the last block, and trained with it
HEAD = {"readouts.0.norm.weight", "readouts.0.norm.bias", "readouts.0.linear.weight", "readouts.0.linear.bias"}
VIT_STEM = {f"encoder.backbone.{name}" for name in ("cls_token", "patch_embed.proj.weight", "patch_embed.proj.bias")}
SWIN_STEM = {
    f"encoder.backbone.patch_embed.{name}" for name in ("proj.weight", "proj.bias", "norm.weight", "norm.bias")
}
DOWNSAMPLING = {
    f"encoder.backbone.layers.1.downsample.{name}" for name in ("norm.weight", "norm.bias", "reduction.weight")
}


def vit(block: int, names: set[str] = VIT_BLOCK) -> set[str]:
    return {f"encoder.backbone.blocks.{block}.{name}" for name in names}


def swin(stage: int, block: int, names: set[str] = SWIN_BLOCK) -> set[str]:
    return {f"encoder.backbone.layers.{stage}.blocks.{block}.{name}" for name in names}


VIT_TRAINED = {
    0: HEAD,
    0.5: HEAD | TOP | vit(2, VIT_UPPER),
    1: HEAD | TOP | vit(2),
    1.5: HEAD | TOP | vit(2) | vit(1, VIT_UPPER),
    2: HEAD | TOP | vit(2) | vit(1),
    2.5: HEAD | TOP | vit(2) | vit(1) | vit(0, VIT_UPPER),
    3: HEAD | TOP | vit(2) | vit(1) | vit(0),
    "all": HEAD | TOP | vit(2) | vit(1) | vit(0) | VIT_STEM,
}
SWIN_LAST = HEAD | TOP | swin(1, 1)
SWIN_TRAINED = {
    0: HEAD,
    0.5: HEAD | TOP | swin(1, 1, VIT_UPPER),
    1: SWIN_LAST,
    1.5: SWIN_LAST | swin(1, 0, VIT_UPPER),
    2: SWIN_LAST | swin(1, 0),
    2.5: SWIN_LAST | swin(1, 0) | DOWNSAMPLING | swin(0, 1, VIT_UPPER),  # down-sampling stands on the block below it
    3: SWIN_LAST | swin(1, 0) | DOWNSAMPLING | swin(0, 1),
    4: SWIN_LAST | swin(1, 0) | DOWNSAMPLING | swin(0, 1) | swin(0, 0),
    "all": SWIN_LAST | swin(1, 0) | DOWNSAMPLING | swin(0, 1) | swin(0, 0) | SWIN_STEM,
}
CASES = [(ViT, tune, names) for tune, names in VIT_TRAINED.items()]
CASES += [(Swin, tune, names) for tune, names in SWIN_TRAINED.items()]
IDS = [f"{encoder.name}-{tune}" for encoder, tune, _ in CASES]
SIZES = {ViT: {"depth": 3}, Swin: {}}


@pytest.mark.parametrize(("encoder", "tune_blocks", "names"), CASES, ids=IDS)
def test_freeze_trains_the_last_blocks_and_what_stands_on_them(encoder, tune_blocks, names):
    assert trained(finetuned(encoder, tune_blocks=tune_blocks, **SIZES[encoder])) == names


@pytest.mark.parametrize(("encoder", "tune_blocks", "names"), CASES, ids=IDS)
def test_freeze_gives_gradients_to_what_is_trained_and_to_nothing_else(encoder, tune_blocks, names):
    model = finetuned(encoder, tune_blocks=tune_blocks, **SIZES[encoder]).train()
    backward(model)
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == trained(model)
    assert [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.any()] == []


def test_freeze_leaves_a_fixed_table_fixed_and_trains_a_learned_one_with_the_stem():
    table = "encoder.backbone.pos_embed"
    for positions, tune_blocks, expected in (
        ("sincos", "all", False),
        ("sincos", 2, False),
        ("learned", "all", True),
        ("learned", 2, False),
    ):
        assert (table in trained(finetuned(ViT, tune_blocks=tune_blocks, positions=positions))) is expected


@pytest.mark.parametrize("name", ENCODERS)
def test_probe_trains_its_linear_layers_only(name):
    model = probe(ENCODERS[name], pool="mean", rates=(1.0, 2.0)).train()
    backward(model)
    expected = {f"readouts.{index}.linear.{what}" for index in (0, 1) for what in ("weight", "bias")}
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained(model) == with_gradient == expected
    assert all(model.get_parameter(name).grad.any() for name in expected)


@pytest.mark.parametrize("tune_blocks", [-1, -0.5, 0.3, 1.25, float("inf"), float("nan")])
def test_freeze_settings_take_whole_and_half_blocks_only(tune_blocks):
    with pytest.raises(ValueError, match=r"FREEZE\.tune_blocks is .*0, 0\.5, 1, 1\.5 \.\.\. or all"):
        FreezeSettings(tune_blocks=tune_blocks)


@pytest.mark.parametrize(("encoder", "most"), [(ViT, 2), (Swin, 4)])
def test_freeze_refuses_more_blocks_than_there_are(encoder, most):
    for tune_blocks in (most + 0.5, most + 1):
        with pytest.raises(
            ValueError,
            match=rf"FREEZE\.tune_blocks is {tune_blocks:g}, and ENCODER\.name {encoder.name} has {most} blocks: "
            "use fewer, or all",
        ):
            finetuned(encoder, tune_blocks=tune_blocks)
    with pytest.raises(ValueError, match=r"FREEZE\.tune_blocks is 7"):
        load_config(FINETUNE, ["FREEZE.tune_blocks", "7"])


class Convolutions(Encoder, name="classifier_test_convolutions"):
    """Whole blocks without halves, on a stem that is not the same in training and in evaluation."""

    def __init__(self, image, *, hidden: str = "none", width: int = 16, patch: int = 8):
        super().__init__(image, hidden, width=width, patch=patch)
        self.stem = nn.Sequential(
            nn.Conv2d(image.channels, width, patch, patch), nn.BatchNorm2d(width), nn.Dropout(0.5), nn.ReLU()
        )
        self.steps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()) for _ in range(2)
        )

    def blocks(self):
        return list(self.steps)

    def forward(self, img_BCHW, mask=None):
        map_BDHW = self.stem(img_BCHW)
        for step in self.steps:
            map_BDHW = step(map_BDHW)
        return Features(rearrange(map_BDHW, "b d h w -> b (h w) d"), self.spec.grid)


def test_freeze_refuses_half_a_block_where_blocks_have_no_halves():
    with pytest.raises(ValueError, match=rf"the blocks of ENCODER\.name {Convolutions.name} have no halves: use an"):
        finetuned_predictor(Convolutions(IMAGE), 2, 0.5)
    model = finetuned_predictor(Convolutions(IMAGE), 2, 1, norm="none")
    steps = {f"encoder.steps.1.{name}" for name in ("0.weight", "0.bias", "1.weight", "1.bias")}
    assert trained(model) == steps | {"readouts.0.linear.weight", "readouts.0.linear.bias"}


# ---------------------------------------------------------------- what is at rest


@pytest.mark.parametrize("encoder", [ViT, Swin])
@pytest.mark.parametrize("tune_blocks", [0, "all"])
@torch.no_grad()
def test_predictor_drops_no_path_of_a_frozen_encoder(encoder, tune_blocks):
    model = finetuned(encoder, tune_blocks=tune_blocks, drop_path=0.5)
    for _ in range(2):  # whatever mode it was in before
        model.eval()
        model.train()
    first, second = (model.encoder(images(8)).tokens_BND for _ in range(2))
    assert torch.equal(first, second) is (tune_blocks == 0)
    assert model.training
    assert model.readouts[0].training


@pytest.mark.parametrize("encoder", [ViT, Swin])
@torch.no_grad()
def test_predictor_drops_paths_of_trained_blocks_only(encoder):
    model = finetuned(encoder, tune_blocks=1, drop_path=0.5).train()
    *frozen, last = model.blocks()
    below: list = []
    frozen[-1].register_forward_hook(lambda module, inputs, output: below.append(output))
    first, second = (model.encoder(images(8)).tokens_BND for _ in range(2))
    assert torch.equal(*below)
    assert not torch.equal(first, second)
    assert [block.training for block in frozen] == [False] * len(frozen)
    assert last.training
    model.eval()
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("tune_blocks", [0, 1, 2])
def test_predictor_keeps_statistics_and_dropout_of_what_is_frozen_at_rest(tune_blocks):
    """The stem too, below the blocks."""
    torch.manual_seed(0)
    model = finetuned_predictor(Convolutions(IMAGE), 5, tune_blocks, init_std=0.02).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    outputs: list = []
    model.encoder.stem.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    for _ in range(2):
        backward(model)
    changed = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
    blocks = range(2 - tune_blocks, 2)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"encoder.steps.{block}.1.{what}" for block in blocks for what in statistics}
    assert torch.equal(*outputs)


@pytest.mark.parametrize("name", ENCODERS)
def test_probe_in_training_moves_the_statistics_of_its_norm_and_no_buffer_of_the_encoder(name):
    model = probe(ENCODERS[name], pool="mean").train()
    encoder = {key: value.clone() for key, value in model.encoder.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        backward(model)
        optimizer.step()
    assert all(torch.equal(value, encoder[key]) for key, value in model.encoder.state_dict().items())
    assert model.readouts[0].norm.num_batches_tracked == 3
    assert model.readouts[0].norm.running_mean.any()


def test_predictor_at_rest_survives_a_copy():
    """The trainer averages a copy; it must put its own modules to rest, not those of the original."""
    from copy import deepcopy

    copy = deepcopy(finetuned(ViT, tune_blocks=1, drop_path=0.5))
    copy.train()
    assert [block.training for block in copy.blocks()] == [False, True]
