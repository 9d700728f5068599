"""Beit, SimMIM's ViT: its features against timm's and a plain computation, its first weights, and its fine-tuning.

Shapes: B batch, N tokens with the class token first, D width, L rows of a bias table.
"""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from einops import rearrange, repeat
from processes import FINETUNE, ROOT, TINY, TINY_CLASSIFIER, call, last_checkpoint, last_state, losses
from small_models import assemble, finetuned_predictor, generator, images, sampled, shaken
from timm.models.beit import Beit as TimmBeit
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from mim.encoders import Beit
from mim.engine import checkpoint
from mim.heads.pixel_shuffle import PixelShuffle
from mim.interop.initialise import LoadReport, initialise_encoder
from mim.losses import L1
from mim.maskers.random import Random
from mim.ops.positions import resize_bias_table
from mim.structures import ImageSpec, PatchMask

SQUARE, WIDE = ImageSpec(3, 32, 32), ImageSpec(3, 32, 64)
SHARED = "backbone.rel_pos_bias.relative_position_bias_table"
OF_BLOCKS = [f"backbone.blocks.{i}.attn.relative_position_bias_table" for i in range(2)]
VARIANTS = pytest.mark.parametrize(
    ("image", "bias", "layer_scale"),
    [(image, bias, scale) for image in (SQUARE, WIDE) for bias in ("shared", "block") for scale in (0.0, 0.1)],
)


def beit(image: ImageSpec = SQUARE, **keys) -> Beit:
    torch.manual_seed(0)
    return Beit(image, **{"patch": 8, "width": 16, "depth": 2, "heads": 2, **keys})


def masked(image: ImageSpec, batch: int, cell: int) -> PatchMask:
    return Random(image, cell=cell, ratio=0.5).sample(batch, generator(2), torch.device("cpu"))


# ---------------------------------------------------------------- features


@VARIANTS
@pytest.mark.parametrize("norm", [True, False])
@torch.no_grad()
def test_beit_without_a_mask_equals_timms_own(image, bias, layer_scale, norm):
    encoder = shaken(beit(image, bias=bias, layer_scale=layer_scale, norm=norm).double()).eval()
    theirs = TimmBeit(
        img_size=(image.height, image.width),
        patch_size=8,
        num_classes=0,
        global_pool="token" if norm else "avg",  # with avg, no norm ahead of the mean
        embed_dim=16,
        depth=2,
        num_heads=2,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        init_values=layer_scale or None,
        use_abs_pos_emb=False,
        use_rel_pos_bias=bias == "block",
        use_shared_rel_pos_bias=bias == "shared",
    ).double()
    missing, unexpected = theirs.load_state_dict(encoder.backbone.state_dict(), strict=False)
    assert (set(missing), unexpected) == (set() if norm else {"fc_norm.weight", "fc_norm.bias"}, [])
    img = images(2, image, dtype=torch.float64)
    expected, output = theirs.eval().forward_features(img), encoder(img)
    torch.testing.assert_close(output.prefix_BKD, expected[:, :1], rtol=0, atol=1e-10)
    torch.testing.assert_close(output.tokens_BND, expected[:, 1:], rtol=0, atol=1e-10)


def bias_rows(grid: tuple[int, int]) -> Tensor:
    """The row of a bias table for each pair of tokens, class token first: how far the one looks down and right."""
    high, wide = grid
    between = (2 * high - 1) * (2 * wide - 1)
    cells = [(y, x) for y in range(high) for x in range(wide)]
    rows = [[between + 2, *(between for _ in cells)]]
    for y, x in cells:
        distances = ((y - other_y + high - 1, x - other_x + wide - 1) for other_y, other_x in cells)
        rows.append([between + 1, *(down * (2 * wide - 1) + right for down, right in distances)])
    return torch.tensor(rows)


def plainly(encoder: Beit, img_BCHW: Tensor, mask: PatchMask) -> Tensor:
    """The tokens of SimMIM's ViT, written out from models/simmim.py and models/vision_transformer.py."""
    weights = {name.removeprefix("backbone."): weight for name, weight in encoder.state_dict().items()}
    heads, eps = 2, 1e-6

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    def attention(name: str, x_BND: Tensor) -> Tensor:
        table_LH = weights.get(f"{name}.relative_position_bias_table", weights.get(SHARED.removeprefix("backbone.")))
        bias_HNN = rearrange(table_LH[bias_rows(encoder.spec.grid)], "q k heads -> heads q k")
        q, k, v = rearrange(x_BND @ weights[f"{name}.qkv.weight"].T, "b n (part d) -> part b n d", part=3)
        q, v = q + weights[f"{name}.q_bias"], v + weights[f"{name}.v_bias"]  # there is none on k
        q, k, v = (rearrange(part, "b n (heads d) -> b heads n d", heads=heads) for part in (q, k, v))
        scores = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]) + bias_HNN).softmax(-1)
        return linear(f"{name}.proj", rearrange(scores @ v, "b heads n d -> b n (heads d)"))

    patches = rearrange(img_BCHW, "b c (h p) (w q) -> b (h w) (c p q)", p=8, q=8)
    tokens = patches @ weights["patch_embed.proj.weight"].flatten(1).T + weights["patch_embed.proj.bias"]
    for sample, row, column in mask.at(*encoder.spec.grid).nonzero().tolist():
        tokens[sample, row * encoder.spec.grid[1] + column] = weights["mask_token"][0, 0]
    tokens = torch.cat([repeat(weights["cls_token"], "1 1 d -> b 1 d", b=len(tokens)), tokens], dim=1)
    for i in range(2):
        scale = [weights.get(f"blocks.{i}.gamma_{branch}", 1.0) for branch in (1, 2)]
        tokens = tokens + scale[0] * attention(f"blocks.{i}.attn", norm(f"blocks.{i}.norm1", tokens))
        hidden = gelu(linear(f"blocks.{i}.mlp.fc1", norm(f"blocks.{i}.norm2", tokens)))
        tokens = tokens + scale[1] * linear(f"blocks.{i}.mlp.fc2", hidden)
    return norm("norm", tokens)


@VARIANTS
@torch.no_grad()
def test_beit_puts_the_mask_token_in_before_the_class_token_is_put_ahead(image, bias, layer_scale):
    encoder = shaken(beit(image, bias=bias, layer_scale=layer_scale).double()).eval()
    img, mask = images(2, image, dtype=torch.float64), masked(image, batch=2, cell=16)
    expected, output = plainly(encoder, img, mask), encoder(img, mask)
    torch.testing.assert_close(output.prefix_BKD, expected[:, :1], rtol=0, atol=1e-10)
    torch.testing.assert_close(output.tokens_BND, expected[:, 1:], rtol=0, atol=1e-10)
    assert not torch.allclose(output.tokens_BND, encoder(img).tokens_BND, atol=1e-3)


@pytest.mark.parametrize("layer_scale", [0.0, 0.1])
@pytest.mark.parametrize("bias", ["shared", "block"])
def test_beit_gives_every_parameter_a_gradient_in_the_first_step_of_pretraining(bias, layer_scale):
    keys = {"bias": bias, "layer_scale": layer_scale}
    model = assemble(Random, Beit, "replace", PixelShuffle, loss=L1, encoder_keys=keys).train()
    img = images(4)
    model(img, sampled(model, img)).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []


# ---------------------------------------------------------------- first weights


def random_weights(encoder: Beit) -> dict[str, Tensor]:
    """Every weight that is drawn at random, by name, those of the branches' last layers as they were drawn."""
    tokens = {"mask_token": encoder.mask_token, "cls_token": encoder.backbone.cls_token}
    weights = {name: token.detach() for name, token in tokens.items() if token is not None}
    for name, module in encoder.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            last = name.endswith(("attn.proj", "mlp.fc2"))
            weights[name] = module.weight.detach() * (math.sqrt(2 * (int(name.split(".")[2]) + 1)) if last else 1)
    assert len(weights) == len(tokens) - (encoder.mask_token is None) + 1 + 4 * len(encoder.blocks())
    return weights


CUT_STD = 0.02 * math.sqrt(1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(0.5)))


@pytest.mark.parametrize(
    ("hidden", "std", "most"),
    [("replace", CUT_STD, 0.02), ("none", 0.02, 0.12)],
    ids=["pretraining", "fine-tuning"],
)
def test_beit_draws_its_weights_as_simmim_cut_at_one_std_only_in_pretraining(hidden, std, most):
    assert pytest.approx(0.0108, abs=1e-5) == CUT_STD
    weights = random_weights(beit(hidden=hidden, width=64, depth=3))
    for name, weight in weights.items():
        assert 0 < weight.abs().max() <= most * (1 + 1e-6), name
        assert weight.mean().item() == pytest.approx(0, abs=4 * std / math.sqrt(weight.numel())), name
        assert weight.std().item() == pytest.approx(std, rel=0.3 if weight.numel() < 100 else 0.03), name
        if weight.numel() > 1000:
            assert weight.abs().max() > (0.99 * 0.02 if hidden == "replace" else 3 * 0.02), name


@pytest.mark.parametrize(("hidden", "bias"), [("replace", "shared"), ("none", "block")])
def test_beit_last_layers_of_the_branches_start_smaller_with_their_depth(hidden, bias):
    encoder = beit(hidden=hidden, bias=bias, width=64, depth=3)
    std = CUT_STD if hidden == "replace" else 0.02
    for number, block in enumerate(encoder.blocks(), 1):
        for layer in (block.attn.proj, block.mlp.fc2):
            assert layer.weight.std().item() == pytest.approx(std / math.sqrt(2 * number), rel=0.03)
        for layer in (block.attn.qkv, block.mlp.fc1):
            assert layer.weight.std().item() == pytest.approx(std, rel=0.03)


@pytest.mark.parametrize(("hidden", "bias"), [("replace", "shared"), ("none", "block")])
@pytest.mark.parametrize("layer_scale", [0.0, 0.1, 1e-5])
def test_beit_biases_tables_norms_and_layer_scales_start_as_published(hidden, bias, layer_scale):
    encoder, starts = beit(hidden=hidden, bias=bias, layer_scale=layer_scale), {}
    for name, parameter in encoder.named_parameters():
        if ".gamma_" in name:
            starts[name] = (parameter, layer_scale)
        elif name.endswith(("bias", "relative_position_bias_table")):
            starts[name] = (parameter, 0)
        elif ".norm" in name:
            starts[name] = (parameter, 1)
    assert [name for name, (parameter, value) in starts.items() if not (parameter == value).all()] == []
    counts = {"_table": 1 if bias == "shared" else 2, ".q_bias": 2, ".v_bias": 2, ".bias": 2 * 5 + 2}
    for end, count in {**counts, "gamma_1": 2 * (layer_scale > 0), "gamma_2": 2 * (layer_scale > 0)}.items():
        assert sum(name.endswith(end) for name in starts) == count, end
    assert set(starts) | {*random_names(encoder)} == {name for name, _ in encoder.named_parameters()}


def random_names(encoder: Beit) -> list[str]:
    tokens = {"cls_token": "backbone.cls_token", "mask_token": "mask_token"}
    return [tokens.get(name, f"{name}.weight") for name in random_weights(encoder)]


# ---------------------------------------------------------------- layers


@pytest.mark.parametrize("bias", ["shared", "block"])
def test_beit_layer_ids_count_the_stem_the_blocks_and_a_shared_table_on_top(bias):
    of_block = [f"norm{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")]
    of_block += [f"mlp.fc{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")]
    of_block += [f"attn.{name}" for name in ("qkv.weight", "q_bias", "v_bias", "proj.weight", "proj.bias")]
    of_block += ["gamma_1", "gamma_2", *(["attn.relative_position_bias_table"] if bias == "block" else [])]
    expected = {
        "mask_token": 0,
        **{f"backbone.{name}": 0 for name in ("cls_token", "patch_embed.proj.weight", "patch_embed.proj.bias")},
        **{f"backbone.blocks.{i}.{name}": i + 1 for i in range(2) for name in of_block},
        **({SHARED: 3} if bias == "shared" else {}),
        **{f"backbone.norm.{kind}": 3 for kind in ("weight", "bias")},
    }
    assert beit(bias=bias).layer_ids() == expected


@pytest.mark.parametrize("layer_scale", [0.0, 0.1])
def test_beit_trains_half_a_block_as_its_mlp_with_norm_and_layer_scale(layer_scale):
    encoder = beit(hidden="none", bias="block", norm=False, layer_scale=layer_scale)
    model = finetuned_predictor(encoder, 4, 0.5, init_std=0.02).train()
    model(images(4, SQUARE))[0].square().mean().backward()
    upper = ["norm2.weight", "norm2.bias", *(f"mlp.fc{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias"))]
    expected = {f"backbone.blocks.1.{name}" for name in [*upper, *(["gamma_2"] if layer_scale else [])]}
    assert {name for name, weight in encoder.named_parameters() if weight.requires_grad} == expected
    assert {name for name, weight in encoder.named_parameters() if weight.grad is not None} == expected
    assert [name for name in expected if not encoder.get_parameter(name).grad.any()] == []


# ---------------------------------------------------------------- INIT.checkpoint


def load(path: Path, source: Beit, into: Beit) -> LoadReport:
    """INIT.checkpoint of `into`, from a file as a run of `source` writes it."""
    size = f"DATA: {{image_size: [{source.image.height}, {source.image.width}]}}\n"
    model = {f"encoder.{name}": weight for name, weight in source.state_dict().items()}
    checkpoint.write(path, {"step": 1, "model": model, "ema": {}, "config": size})
    return initialise_encoder(into, path)


@pytest.mark.parametrize("image", [SQUARE, WIDE])
def test_initialise_copies_a_shared_table_to_each_block_to_the_bit(tmp_path, image):
    source = shaken(beit(image, bias="shared"))
    encoder = beit(image, hidden="none", bias="block", norm=False)
    report = load(tmp_path / "a.pt", source, encoder)
    assert (report.missing, report.reshaped) == ([], [])
    assert set(report.unexpected) == {"mask_token", "backbone.norm.weight", "backbone.norm.bias"}
    rows = (2 * encoder.spec.grid[0] - 1) * (2 * encoder.spec.grid[1] - 1) + 3
    assert report.resized == [f"{SHARED} {rows}x2 -> {name} {rows}x2" for name in OF_BLOCKS]
    theirs, ours = source.state_dict(), encoder.state_dict()
    assert all(torch.equal(weight, theirs[SHARED if name in OF_BLOCKS else name]) for name, weight in ours.items())
    with torch.no_grad():
        first, second = (encoder.get_parameter(name) for name in OF_BLOCKS)
        first.zero_()
        assert torch.equal(second, theirs[SHARED])  # each block has its own


@pytest.mark.parametrize("norm", [True, False])
@torch.no_grad()
def test_initialise_from_a_shared_table_keeps_the_features(tmp_path, norm):
    source = shaken(beit(WIDE, norm=norm)).double().eval()
    encoder = beit(WIDE, hidden="none", bias="block", norm=norm).double().eval()
    img = images(dtype=torch.float64)
    assert not torch.allclose(encoder(img).tokens_BND, source(img).tokens_BND, atol=1e-2)
    load(tmp_path / "a.pt", source, encoder)
    torch.testing.assert_close(encoder(img).tokens_BND, source(img).tokens_BND, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("old", "new"),
    [((32, 32), (48, 48)), ((48, 48), (32, 32)), ((32, 64), (48, 40)), ((32, 64), (64, 32))],
    ids=["larger", "smaller", "another-shape", "turned"],  # turned: as many rows as before
)
def test_initialise_resizes_a_shared_table_between_patches_alone(tmp_path, old, new):
    source = shaken(beit(ImageSpec(3, *old), bias="shared"))
    encoder = beit(ImageSpec(3, *new), hidden="none", bias="block")
    load(tmp_path / "a.pt", source, encoder)
    table = source.state_dict()[SHARED]
    expected = resize_bias_table(table[:-3], encoder.spec.grid, source.spec.grid)
    assert expected.shape != table[:-3].shape or not torch.equal(expected, table[:-3])
    for name in OF_BLOCKS:
        block_table = encoder.state_dict()[name]
        assert torch.equal(block_table[:-3], expected)
        assert torch.equal(block_table[-3:], table[-3:])


def test_initialise_leaves_the_tables_of_blocks_to_their_blocks(tmp_path):
    source, encoder = (beit(WIDE, hidden="none", bias="block") for _ in range(2))
    report = load(tmp_path / "a.pt", shaken(source), encoder)
    assert (report.resized, report.missing, report.unexpected, report.reshaped) == ([], [], [], [])
    theirs, ours = source.state_dict(), encoder.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert not torch.equal(*(ours[name] for name in OF_BLOCKS))


# ---------------------------------------------------------------- tools/train.py

BEIT = {"ENCODER.name": "beit", "ENCODER.layer_scale": 0.1}
PRETRAIN = {key: value for key, value in TINY.items() if not key.startswith("HEAD.")}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_train_fine_tunes_from_a_pretrained_beit_and_tells_where_its_biases_went(tmp_path, precision, caplog):
    shared = BEIT | {"TRAIN.precision": precision}
    recipe = ROOT / "configs" / "quickstart" / "simmim_digits.yaml"
    code, output = call(tmp_path / "pretrain", PRETRAIN | shared | {"ENCODER.bias": "shared"}, recipe)
    assert code == 0, output
    curve = losses(tmp_path / "pretrain")
    assert sum(curve[-5:]) < sum(curve[:5])
    assert "ENCODER.class_token, positions of the file have no effect: they are keys of vit" in caplog.text + output
    source = last_state(tmp_path / "pretrain")["model"]
    table = source[f"encoder.{SHARED}"]
    assert table.any(dim=1).all()  # it has learned, in every row

    keys = {"ENCODER.bias": "block", "INIT.checkpoint": last_checkpoint(tmp_path / "pretrain")}
    rates = {"OPTIMIZER.base_lr": 0.1, "READOUT.init_std": 0.02, "OPTIMIZER.no_decay": "[cls_token]"}
    code, output = call(tmp_path / "finetune", TINY_CLASSIFIER | shared | keys | rates, FINETUNE)
    assert code == 0, output
    rows = len(table)
    log = (tmp_path / "finetune" / "log.txt").read_text()
    moves = ", ".join(f"{SHARED} {rows}x2 -> {name} {rows}x2" for name in OF_BLOCKS)
    for text in (output, log):
        assert f"resized or moved: {moves}" in text
    assert "warning" not in log
    curve = losses(tmp_path / "finetune")
    assert sum(curve[-3:]) < sum(curve[:3])
    tuned = last_state(tmp_path / "finetune")["model"]
    ours = [tuned[f"encoder.{name}"] for name in OF_BLOCKS]
    assert not torch.equal(*ours)  # they part as they learn
    assert all((block_table - table).norm() > 0 for block_table in ours)
