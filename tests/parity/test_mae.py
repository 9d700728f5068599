"""MAE against transformers' ViTMAEForPreTraining, and ViT against its ViTModel: loss, prediction, every gradient.

Shapes: B batch, C channels, H W pixels, h w patches high and wide, N patches, D width, P values of a patch.
"""

import re
from pathlib import Path

import parity
import pytest
import torch
from einops import rearrange
from parity import DTYPES, POSITIONS, assert_all_close, assert_close
from small_models import generator, images
from torch import Tensor, nn
from transformers.models.vit_mae import modeling_vit_mae as vit_mae

import mim
from mim import MaskedImageModel
from mim.interop import ModelWeights
from mim.ops.positions import sincos_table
from mim.structures import ImageSpec, PatchMask

THEIRS = "ViTMAEForPreTraining"
DECODER_POSITIONS = "decoder.decoder_pos_embed"  # fixed in ours: made by the head, in no file
VIT = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 60,
    "layer_norm_eps": 1e-6,
}
DECODER = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 40,
}
SIZES = [(32, 32), (16, 64), (64, 16), (48, 32)]  # the middle two with as many patches as the model's own 4 x 4
RAW_AND_NORMALISED = pytest.mark.parametrize("normalized", [False, True], ids=["raw", "normalised"])
OURS = """
TASK: pretrain
DATA: {{image_size: [32, 32], channels: 3}}
MASKER: {{name: random, cell: 8, ratio: 0.6}}
ENCODER: {{name: vit, hidden: drop, patch: 8, width: 24, depth: 2, heads: 3, mlp_ratio: 2.5, positions: {positions}}}
HEAD: {{name: transformer, width: 16, depth: 2, heads: 2, mlp_ratio: 2.5}}
TARGET: {{name: pixels, normalize: {normalize}}}
LOSS: {{name: mse}}
"""


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    parity.forbid_network(monkeypatch)


def theirs_of(normalized: bool = False) -> nn.Module:
    """With all of their tables random, and trained."""
    keys = {"mask_ratio": 0.6, "norm_pix_loss": normalized, **VIT, **DECODER}
    return parity.theirs_of(THEIRS, keys).requires_grad_(True)


def ours_of(weights: ModelWeights, theirs: nn.Module, size: tuple[int, int], dtype: torch.dtype) -> MaskedImageModel:
    """Our model for a size, in a dtype, with their weights and with the tables that theirs has for that size."""
    overrides = ["DATA.image_size", str(list(size)), "ENCODER.positions", "learned"]
    model = parity.ours_of(weights, overrides, but=[POSITIONS]).to(dtype)
    with torch.no_grad():
        model.encoder.backbone.pos_embed.copy_(encoder_table(theirs, size))
        model.head.positions.copy_(decoder_table(theirs, size))
    model.head.positions.requires_grad_(True)  # no parameter of ours, but its gradient is one more thing to compare
    return model


def patches(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // VIT["patch_size"], size[1] // VIT["patch_size"]


def encoder_table(theirs: nn.Module, size: tuple[int, int]) -> Tensor:
    """Their positions for images of a size, (1, 1 + N, D), with a way back for gradients."""
    high, wide = patches(size)
    return theirs.vit.embeddings.interpolate_pos_encoding(torch.empty(1, 1 + high * wide, VIT["hidden_size"]), *size)


def decoder_table(theirs: nn.Module, size: tuple[int, int]) -> Tensor:
    """The same of their decoder, which resizes along the row of patches."""
    high, wide = patches(size)
    return theirs.decoder.interpolate_pos_encoding(torch.empty(1, 1 + high * wide, DECODER["decoder_hidden_size"]))


def noise_of(batch: int, size: tuple[int, int], seed: int = 3) -> Tensor:
    high, wide = patches(size)
    return torch.rand(batch, high * wide, generator=generator(seed))


def mask_of(noise_BN: Tensor, size: tuple[int, int]) -> PatchMask:
    """The patches with the least noise are visible, as many of them as MAE's rounding keeps."""
    visible = int(noise_BN.shape[1] * (1 - 0.6))
    hidden_BN = torch.ones_like(noise_BN, dtype=torch.bool).scatter(1, noise_BN.argsort(dim=1)[:, :visible], False)
    return PatchMask(rearrange(hidden_BN, "b (h w) -> b h w", h=patches(size)[0]), visible)


def img_of(size: tuple[int, int], dtype: torch.dtype, batch: int = 3) -> Tensor:
    """Noise on a ramp: patches differ in mean and contrast."""
    ramp_HW = torch.linspace(-1, 1, size[0], dtype=dtype)[:, None] + torch.linspace(0, 1, size[1], dtype=dtype)
    return 0.3 * ramp_HW.exp() * images(batch, ImageSpec(3, *size), dtype=dtype) + ramp_HW


@DTYPES
@RAW_AND_NORMALISED
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_mae_is_transformers_in_loss_prediction_and_every_gradient(
    tmp_path: Path, size: tuple[int, int], normalized: bool, dtype: torch.dtype
) -> None:
    theirs = theirs_of(normalized)
    weights = parity.carried(theirs, tmp_path / "weights")
    assert weights.left_out == (DECODER_POSITIONS,)
    theirs = theirs.to(dtype)
    ours, img = ours_of(weights, theirs, size, dtype), img_of(size, dtype)
    noise_BN = noise_of(len(img), size)

    expected = theirs(img, noise=noise_BN, interpolate_pos_encoding=True)
    output = ours(img, mask_of(noise_BN, size))
    assert torch.equal(output.mask.hidden_BHW.flatten(1), expected.mask.bool())
    assert_close(output.loss, expected.loss, "loss")
    assert_close(output.prediction, theirs.unpatchify(expected.logits, size), "prediction")

    expected.loss.backward()
    output.loss.backward()
    carried = parity.carried_gradients(theirs, tmp_path / "gradients")
    assert carried.left_out == (DECODER_POSITIONS,)
    gradients = parity.gradients(ours)
    tables = theirs.vit.embeddings.position_embeddings, theirs.decoder.decoder_pos_embed
    gradients[POSITIONS] = through(encoder_table(theirs, size), tables[0], gradients[POSITIONS])
    assert_all_close(gradients, carried.state)
    last = through(decoder_table(theirs, size), tables[1], ours.head.positions.grad)
    assert_close(last, tables[1].grad, DECODER_POSITIONS)


def through(resized_1ND: Tensor, table_1ND: Tensor, gradient_1ND: Tensor) -> Tensor:
    """The gradient of a table, from that of what it was resized to."""
    return torch.autograd.grad(resized_1ND, table_1ND, gradient_1ND)[0]


@DTYPES
def test_mae_with_its_published_tables_needs_nothing_but_the_file(tmp_path: Path, dtype: torch.dtype) -> None:
    """Sine-cosine tables, frozen in both; theirs has none in the decoder before a published file is read."""
    theirs = parity.theirs_of(THEIRS, {"mask_ratio": 0.6, "norm_pix_loss": True, **VIT, **DECODER})
    with torch.no_grad():
        theirs.vit.embeddings.position_embeddings.copy_(sincos_table((4, 4), 24, num_prefix=1))
        theirs.decoder.decoder_pos_embed.copy_(sincos_table((4, 4), 16, num_prefix=1))
    weights = parity.carried(theirs, tmp_path / "weights")
    assert weights.left_out == ()
    ours, theirs = parity.ours_of(weights).to(dtype), theirs.to(dtype)
    img, noise_BN = img_of((32, 32), dtype), noise_of(3, (32, 32))
    expected, output = theirs(img, noise=noise_BN), ours(img, mask_of(noise_BN, (32, 32)))
    assert_close(output.loss, expected.loss, "loss")
    assert_close(output.prediction, theirs.unpatchify(expected.logits), "prediction")
    expected.loss.backward()
    output.loss.backward()
    frozen = {name for name, weight in theirs.named_parameters() if not weight.requires_grad}
    assert frozen == {"vit.embeddings.position_embeddings", DECODER_POSITIONS}
    carried = dict(parity.carried_gradients(theirs, tmp_path / "gradients").state)
    assert not carried.pop(POSITIONS).any()
    assert_all_close(parity.gradients(ours), carried)


def test_mae_table_is_the_one_that_transformers_starts_from() -> None:
    kind = getattr(parity.transformers, THEIRS)
    embeddings = vit_mae.ViTMAEEmbeddings(kind.config_class(**VIT))
    embeddings.initialize_weights()
    table_1ND = sincos_table((4, 4), 24, num_prefix=1)
    assert_close(table_1ND, embeddings.position_embeddings.data, "table")


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.6, 0.75, 0.9])
def test_mae_masker_hides_what_transformers_does_for_the_same_noise(tmp_path: Path, ratio: float) -> None:
    theirs = parity.theirs_of(THEIRS, {"mask_ratio": ratio, **VIT, **DECODER})
    ours, img = parity.ours_of(parity.carried(theirs, tmp_path)), img_of((32, 32), torch.float32)
    noise_BN = noise_of(len(img), (32, 32), seed=5)
    mask = ours.sample_mask(img, generator(5))
    with torch.no_grad():
        expected = theirs(img, noise=noise_BN).mask
    assert torch.equal(mask.hidden_BHW.flatten(1), expected.bool())
    assert mask.visible == int((expected[0] == 0).sum())


@torch.no_grad()
def test_mae_parity_is_not_trivial(tmp_path: Path) -> None:
    """Another mask changes both losses, to the same; other numbers of heads, or another target, are not theirs."""
    theirs, size = theirs_of(), (32, 32)
    weights = parity.carried(theirs, tmp_path)
    theirs, img = theirs.double(), img_of(size, torch.float64)
    ours = ours_of(weights, theirs, size, torch.float64)
    losses = []
    for seed in (1, 2):
        noise_BN = noise_of(len(img), size, seed)
        expected, output = theirs(img, noise=noise_BN), ours(img, mask_of(noise_BN, size))
        assert_close(output.loss, expected.loss, "loss")
        losses.append(expected.loss)
    assert abs(losses[0] - losses[1]) > 1e-3
    for pair in (["ENCODER.heads", "2", "INIT.keep", "[ENCODER.heads]"], ["HEAD.heads", "4"]):
        other = parity.ours_of(weights, pair).double()
        other.head.positions.copy_(decoder_table(theirs, size))
        assert (other(img, mask_of(noise_BN, size)).prediction - output.prediction).abs().max() > 1e-2, pair
    other = parity.ours_of(weights, ["TARGET.normalize", "patch"]).double()
    other.head.positions.copy_(decoder_table(theirs, size))
    assert abs(other(img, mask_of(noise_BN, size)).loss - output.loss) > 0.1


@DTYPES
@pytest.mark.parametrize("normalize", ["none", "patch"])
@pytest.mark.parametrize("positions", ["sincos", "learned"])
@torch.no_grad()
def test_mae_of_ours_trains_on_in_transformers(
    tmp_path: Path, positions: str, normalize: str, dtype: torch.dtype
) -> None:
    text = OURS.format(positions=positions, normalize=normalize)
    ours, path = parity.random_checkpoint(text, tmp_path / "a.pt")
    theirs = parity.exported(path, tmp_path / "theirs", THEIRS).to(dtype)
    img, noise_BN = img_of((32, 32), dtype), noise_of(3, (32, 32))
    expected = ours.to(dtype)(img, mask_of(noise_BN, (32, 32)))
    output = theirs(img, noise=noise_BN)
    assert_close(output.loss, expected.loss, "loss")
    assert_close(theirs.unpatchify(output.logits), expected.prediction, "prediction")


# -------------------------------------------------------------------- the plain encoder


@DTYPES
@pytest.mark.parametrize("size", [(32, 32), (16, 48), (48, 16)], ids=lambda size: f"{size[0]}x{size[1]}")
@torch.no_grad()
def test_vit_tokens_are_transformers(tmp_path: Path, size: tuple[int, int], dtype: torch.dtype) -> None:
    """Of a model made for that size, square or not, class token first; their pooler stands behind the tokens."""
    theirs = parity.theirs_of("ViTModel", {**VIT, "image_size": size if size[0] != size[1] else size[0]})
    weights = parity.carried(theirs, tmp_path)
    assert (weights.left_out, weights.notes) == ((), ("pooler.dense.{bias, weight}: behind the features, left out",))
    encoder = mim.load_encoder(tmp_path).to(dtype)
    img = img_of(size, dtype)
    assert_close(tokens_of(encoder, img), theirs.to(dtype)(img).last_hidden_state, "tokens")


@DTYPES
@pytest.mark.parametrize("size", [(32, 32), (16, 48), (48, 16)], ids=lambda size: f"{size[0]}x{size[1]}")
@torch.no_grad()
def test_vit_of_ours_has_the_same_tokens_in_transformers(
    tmp_path: Path, size: tuple[int, int], dtype: torch.dtype
) -> None:
    """Exported without the head, which theirs has none for; a pooler they would draw anew."""
    text = OURS.format(positions="learned", normalize="none").replace("[32, 32]", str(list(size)))
    text = re.sub("HEAD: .*", "HEAD: {name: mlp}", text).replace("hidden: drop", "hidden: replace")
    ours, path = parity.random_checkpoint(text, tmp_path / "a.pt")
    theirs = parity.exported(path, tmp_path / "theirs", "ViTModel", add_pooling_layer=False).to(dtype)
    img = img_of(size, dtype)
    assert_close(theirs(img).last_hidden_state, tokens_of(ours.encoder.to(dtype), img), "tokens")


def tokens_of(encoder: mim.Encoder, img_BCHW: Tensor) -> Tensor:
    """Class token and patches, (B, 1 + N, D)."""
    features = encoder(img_BCHW)
    return torch.cat([features.prefix_BKD, features.tokens_BND], dim=1)
