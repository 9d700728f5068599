"""SimMIM against transformers' ForMaskedImageModeling models, and plain features against its Swin and Swin V2.

Shapes: B batch, C channels, H W pixels, h w patches high and wide, N patches, D width.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import parity
import pytest
import torch
from parity import DTYPES, assert_all_close, assert_close
from small_models import generator, images
from torch import Tensor, nn

import mim
from mim.convert import convert
from mim.structures import ImageSpec, Output, PatchMask

MODELING = "ForMaskedImageModeling"


@dataclass(frozen=True)
class Family:
    """Models of theirs by the start of their name and by keys, and ours of the same shape as an ENCODER section."""

    name: str
    image: int
    patch: int
    keys: dict[str, Any]
    ours: str
    note: str = ""

    def __str__(self) -> str:
        return self.name + self.note

    @property
    def grid(self) -> tuple[int, int]:
        return self.image // self.patch, self.image // self.patch

    def theirs(self, kind: str = MODELING, **keys: Any) -> nn.Module:
        size = {"image_size": self.image, "patch_size": self.patch}
        return parity.theirs_of(self.name + kind, {**size, **self.keys, **keys})

    def config(self, size: tuple[int, int] | None = None, head: str = "pixel_shuffle") -> str:
        return f"""
TASK: pretrain
DATA: {{image_size: {list(size or (self.image, self.image))}, channels: 3}}
MASKER: {{name: random, cell: {self.patch}, ratio: 0.6, rounding: ceil_hidden}}
ENCODER: {{hidden: replace, patch: {self.patch}, {self.ours}}}
HEAD: {{name: {head}}}
TARGET: {{name: pixels}}
LOSS: {{name: l1, eps: 1.0e-5}}
"""


def swin(**keys: Any) -> dict[str, Any]:
    """Three stages of 16, 8 and 4 tokens a side under a window of 4: blocks that shift, and a stage of one window."""
    shape = {"embed_dim": 12, "depths": [2, 2, 2], "num_heads": [2, 3, 4], "window_size": 4, "mlp_ratio": 2.0}
    return {**shape, "encoder_stride": 16, "drop_path_rate": 0.0, "layer_norm_eps": 1e-5, **keys}


def of_swin(name: str, window: int = 4) -> str:
    return f"name: {name}, width: 12, depths: [2, 2, 2], heads: [2, 3, 4], window: {window}, mlp_ratio: 2.0"


VIT = Family(
    "ViT",
    image=32,
    patch=8,
    keys={
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 60,
        "encoder_stride": 8,
        "layer_norm_eps": 1e-6,
    },
    ours="name: vit, width: 24, depth: 2, heads: 3, mlp_ratio: 2.5, positions: learned",
)
SWIN = Family("Swin", 64, 4, swin(), of_swin("swin"))
SWIN_V2 = Family("Swinv2", 64, 4, swin(), of_swin("swin_v2"))
# its last stage has fewer tokens than a window, which theirs computes in version 2 alone
WIDE_V2 = Family("Swinv2", 64, 4, swin(window_size=8), of_swin("swin_v2", window=8), note=" with a window of 8")
FAMILIES = pytest.mark.parametrize("family", [VIT, SWIN, SWIN_V2, WIDE_V2], ids=str)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    parity.forbid_network(monkeypatch)


def mask_of(family: Family, batch: int, seed: int = 3) -> PatchMask:
    """Six patches of ten hidden, by chance: a number of its own in every sample."""
    hidden_Bhw = torch.rand(batch, *family.grid, generator=generator(seed)) < 0.6
    return PatchMask.from_tensor(hidden_Bhw, batch)


def img_of(family: Family, dtype: torch.dtype, batch: int = 2) -> Tensor:
    return images(batch, ImageSpec(3, family.image, family.image), dtype=dtype)


def answer(family: Family, theirs: nn.Module, img_BCHW: Tensor, mask: PatchMask) -> Any:
    """What theirs says under a mask of ours. It counts hidden pixels, and adds the epsilon, in the dtype of the mask,
    but for bool in float32, which is too coarse for float64.
    """
    masked_BN = mask.at(*family.grid).flatten(1)
    return theirs(img_BCHW, bool_masked_pos=masked_BN.double() if img_BCHW.dtype == torch.float64 else masked_BN)


def assert_same_answer(output: Output, expected: Any) -> None:
    assert_close(output.loss, expected.loss, "loss")
    assert_close(output.prediction, expected.reconstruction, "reconstruction")


@DTYPES
@FAMILIES
def test_simmim_is_transformers_in_loss_reconstruction_and_every_gradient(
    tmp_path: Path, family: Family, dtype: torch.dtype
) -> None:
    theirs = family.theirs()
    weights = parity.carried(theirs, tmp_path / "weights")
    assert (weights.left_out, weights.notes, weights.unspecified) == ((), (), ())
    ours, theirs = parity.ours_of(weights).to(dtype), theirs.to(dtype)
    img, mask = img_of(family, dtype), mask_of(family, 2)
    expected, output = answer(family, theirs, img, mask), ours(img, mask)
    assert_same_answer(output, expected)
    expected.loss.backward()
    output.loss.backward()
    carried = parity.carried_gradients(theirs, tmp_path / "gradients")
    assert carried.left_out == ()
    assert all(weight.requires_grad for model in (ours, theirs) for weight in model.parameters())
    assert_all_close(parity.gradients(ours), carried.state)


@pytest.mark.parametrize("family", [SWIN, SWIN_V2], ids=str)
def test_simmim_parity_is_of_windows_that_shift(tmp_path: Path, family: Family) -> None:
    theirs = family.theirs()
    ours = parity.ours_of(parity.carried(theirs, tmp_path))
    theirs(img_of(family, torch.float32))  # only then a stage of one window knows that it is one
    blocks = [block for stage in getattr(theirs, family.name.lower()).encoder.layers for block in stage.blocks]
    assert [block.shift_size for block in blocks] == [0, 2, 0, 2, 0, 0]
    assert [block.shift_size for block in ours.encoder.blocks()] == [(block.shift_size,) * 2 for block in blocks]
    assert {
        (block.window_size, *our_block.window_size)
        for block, our_block in zip(blocks, ours.encoder.blocks(), strict=True)
    } == {(4, 4, 4)}


@FAMILIES
@torch.no_grad()
def test_simmim_loss_has_transformers_epsilon(tmp_path: Path, family: Family) -> None:
    """With one patch hidden, of few pixels, it shows in the eighth digit."""
    theirs = family.theirs()
    weights = parity.carried(theirs, tmp_path)
    ours, theirs = parity.ours_of(weights).double(), theirs.double()
    high, wide = family.grid
    mask = PatchMask.from_tensor(torch.arange(high * wide).reshape(high, wide) == 5, 1)
    img = img_of(family, torch.float64, batch=1)
    expected = answer(family, theirs, img, mask).loss
    torch.testing.assert_close(ours(img, mask).loss, expected, rtol=1e-12, atol=0)
    without = parity.ours_of(weights, ["LOSS.eps", "0"]).double()
    ratio = without(img, mask).loss / expected
    torch.testing.assert_close(ratio - 1, torch.full_like(ratio, 1e-5 / family.patch**2), rtol=1e-3, atol=0)


@FAMILIES
@torch.no_grad()
def test_simmim_parity_is_not_trivial(tmp_path: Path, family: Family) -> None:
    """Other masks, of our own masker's cells, change both losses, to the same; other numbers of heads, or blocks that
    do not shift, are not theirs.
    """
    theirs = family.theirs()
    weights = parity.carried(theirs, tmp_path)
    ours, theirs, img = parity.ours_of(weights).double(), theirs.double(), img_of(family, torch.float64)
    assert (ours.masker.cell == family.patch) == (family is VIT)  # else cells of 32 px, as published
    losses = []
    for seed in (1, 2):
        mask = ours.sample_mask(img, generator(seed))
        expected, output = answer(family, theirs, img, mask), ours(img, mask)
        assert_same_answer(output, expected)
        losses.append(expected.loss)
    assert abs(losses[0] - losses[1]) > 1e-3 * losses[0]
    if family is VIT:
        other = parity.ours_of(weights, ["ENCODER.heads", "2", "INIT.keep", "[ENCODER.heads]"]).double()
    else:
        other = without_shifts(parity.ours_of(weights)).double()
    assert (other(img, mask).prediction - output.prediction).abs().max() > 1e-3


def without_shifts(model: mim.MaskedImageModel) -> mim.MaskedImageModel:
    for block in model.encoder.blocks():
        block.shift_size, block.attn_mask = (0, 0), None
    return model


@DTYPES
@FAMILIES
@torch.no_grad()
def test_simmim_of_ours_trains_on_in_transformers(tmp_path: Path, family: Family, dtype: torch.dtype) -> None:
    ours, path = parity.random_checkpoint(family.config(), tmp_path / "a.pt")
    theirs = parity.exported(path, tmp_path / "theirs", family.name + MODELING).to(dtype)
    img, mask = img_of(family, dtype), mask_of(family, 2)
    expected, output = ours.to(dtype)(img, mask), answer(family, theirs, img, mask)
    assert_close(output.loss, expected.loss, "loss")
    assert_close(output.reconstruction, expected.prediction, "reconstruction")


# -------------------------------------------------------------------- the plain encoder


SHAPES = pytest.mark.parametrize(
    ("family", "size", "keys"),
    [
        pytest.param(SWIN, (64, 64), {}, id="Swin-64x64"),
        pytest.param(SWIN, (64, 128), {"window_size": 2}, id="Swin-64x128"),
        pytest.param(SWIN, (128, 64), {"window_size": 2}, id="Swin-128x64"),
        pytest.param(SWIN_V2, (64, 64), {}, id="Swinv2-64x64"),
        pytest.param(SWIN_V2, (64, 128), {"window_size": 2}, id="Swinv2-64x128"),
        pytest.param(SWIN_V2, (128, 64), {"window_size": 2}, id="Swinv2-128x64"),
        pytest.param(SWIN_V2, (64, 64), {"window_size": 8, "pretrained_window_sizes": [4, 4, 3]}, id="Swinv2-tuned"),
        pytest.param(SWIN_V2, (16, 16), {}, id="Swinv2-16x16"),
    ],
)


@DTYPES
@SHAPES
@torch.no_grad()
def test_swin_tokens_are_transformers(
    tmp_path: Path, family: Family, size: tuple[int, int], keys: dict[str, Any], dtype: torch.dtype
) -> None:
    """Of models made for that size, square or not."""
    theirs = family.theirs("Model", image_size=size[0] if size[0] == size[1] else size, **keys)
    weights = parity.carried(theirs, tmp_path)
    assert (weights.left_out, weights.notes, weights.unspecified) == ((), (), ())
    encoder, img = mim.load_encoder(tmp_path).to(dtype), images(2, ImageSpec(3, *size), dtype=dtype)
    assert_close(encoder(img).tokens_BND, theirs.to(dtype)(img).last_hidden_state, "tokens")


@SHAPES
@torch.no_grad()
def test_swin_of_ours_has_the_same_tokens_in_transformers(
    tmp_path: Path, family: Family, size: tuple[int, int], keys: dict[str, Any]
) -> None:
    """Exported without a head that theirs has no place for."""
    text = re.sub("window: 4", f"window: {keys.get('window_size', 4)}", family.config(size, head="mlp"))
    if "pretrained_window_sizes" in keys:
        text = text.replace("window:", f"pretrained_windows: {keys['pretrained_window_sizes']}, window:")
    ours, path = parity.random_checkpoint(text, tmp_path / "a.pt")
    theirs = parity.exported(path, tmp_path / "theirs", family.name + "Model")
    for dtype in (torch.float32, torch.float64):
        img = images(2, ImageSpec(3, *size), dtype=dtype)
        assert_close(theirs.to(dtype)(img).last_hidden_state, ours.encoder.to(dtype)(img).tokens_BND, "tokens")


# -------------------------------------------------------------------- what theirs does not compute


LARGE = ", width: 8, depths: [1, 1, 1, 1], heads: [1, 1, 1, 1], window: 12"  # SimMIM's Swin-L in stages and window
LARGE_THEIRS = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 12, "image_size": 192}


def test_simmim_of_a_window_larger_than_a_stage_is_refused(tmp_path: Path) -> None:
    text = Family("Swin", 192, 4, {}, f"name: swin{LARGE}").config()
    _, path = parity.random_checkpoint(text, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"ENCODER.window 12 and the grid of stage 3, 6x6 tokens"):
        convert(path, tmp_path / "theirs", "transformers")
    assert not (tmp_path / "theirs").exists()


@torch.no_grad()
def test_transformers_still_fails_where_a_window_is_larger_than_a_stage() -> None:
    """Once this fails, the refusal can go."""
    theirs, img = SWIN.theirs(**LARGE_THEIRS, encoder_stride=32), images(1, ImageSpec(3, 192, 192))
    with pytest.raises(RuntimeError, match=r"36.*144"):
        theirs(img)


@pytest.mark.parametrize("family", [SWIN, SWIN_V2], ids=str)
@pytest.mark.parametrize("size", [(64, 128), (128, 64)], ids=["64x128", "128x64"])
@torch.no_grad()
def test_simmim_of_a_window_as_long_as_one_side_is_refused(
    tmp_path: Path, family: Family, size: tuple[int, int]
) -> None:
    """In the last stage, of 4 x 8 tokens, theirs shifts along both sides or along none, ours along the longer."""
    _, path = parity.random_checkpoint(family.config(size), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"ENCODER.window 4 and the grid of stage 2, (4x8|8x4) tokens"):
        convert(path, tmp_path / "refused", "transformers")
    assert not (tmp_path / "refused").exists()
    theirs = family.theirs("Model", image_size=size)
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.raises(ValueError, match=r"4 and the grid of stage 2.*: features would differ"):
        mim.load_encoder(tmp_path / "theirs")

    config = tmp_path / "theirs" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "image_size": 64}))  # which hides what differs
    encoder = mim.load_encoder(tmp_path / "theirs", ["DATA.image_size", str(list(size))])
    img = images(1, ImageSpec(3, *size))
    tokens, expected = encoder(img).tokens_BND, theirs(img).last_hidden_state
    assert (tokens - expected).abs().max() > 1e-2 * expected.abs().max()
