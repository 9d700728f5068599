"""IcarusWizard/MAE and vit-pytorch's MAE against models that are written anew here from their published description.

Shapes: B batch, C channels, H W pixels, h w patches high and wide, N patches, V visible ones, D width, P values of a
patch.
"""

import math
from dataclasses import dataclass

import pytest
import torch
from einops import rearrange
from small_models import generator, images
from torch import Tensor, nn

from mim import build, build_model, load_config
from mim.config import parse_config
from mim.engine.plan import Plan
from mim.structures import ImageSpec

TOLERANCE = 1e-9


class Block(nn.Module):
    """Attention without biases of queries, keys and values, then an MLP, each behind a norm of eps 1e-5."""

    def __init__(self, width: int, heads: int, head_width: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * heads * head_width, bias=False), nn.Linear(heads * head_width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x_ND: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm1(x_ND)), "n (three a d) -> three a n d", three=3, a=self.heads)
        weights = torch.softmax(torch.einsum("and,amd->anm", q, k) / math.sqrt(q.shape[-1]), dim=-1)
        x_ND = x_ND + self.proj(rearrange(torch.einsum("anm,amd->and", weights, v), "a n d -> n (a d)"))
        return x_ND + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x_ND))))


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of a model: side and patch in pixels; width, depth, heads, width of a head, hidden channels of each half."""

    side: int
    patch: int
    encoder: tuple[int, int, int, int, int]
    decoder: tuple[int, int, int, int, int]

    @property
    def patches(self) -> int:
        return (self.side // self.patch) ** 2


def blocks(width: int, depth: int, heads: int, head_width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(*(Block(width, heads, head_width, hidden) for _ in range(depth)))


class Icarus(nn.Module):
    """model.py: positions of patches alone in the encoder, of class token and patches in the decoder, which has neither
    a projection before it nor a norm behind it. Each row of the last layer is for one (channel, row, column).
    """

    def __init__(self, size: Size):
        super().__init__()
        width, values = size.encoder[0], 3 * size.patch**2
        self.patch = size.patch
        self.class_token, self.mask_token = (nn.Parameter(torch.randn(1, width)) for _ in range(2))
        self.positions = nn.Parameter(torch.randn(size.patches, width))
        self.decoder_positions = nn.Parameter(torch.randn(1 + size.patches, width))
        self.project, self.predict = nn.Linear(values, width), nn.Linear(width, values)
        self.encoder, self.decoder, self.norm = blocks(*size.encoder), blocks(*size.decoder), nn.LayerNorm(width)

    def forward(self, img_BCHW: Tensor, hidden_BN: Tensor) -> Tensor:
        """Squared error over the whole image where hidden, divided by the ratio."""
        patches_BNP = rearrange(img_BCHW, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch, q=self.patch)
        errors = []
        for patches_NP, hidden_N in zip(patches_BNP, hidden_BN, strict=True):
            order = (~hidden_N).nonzero().flatten().flip(0)  # any order: theirs is a random one
            tokens_VD = (self.project(patches_NP) + self.positions)[order]
            tokens_VD = self.norm(self.encoder(torch.cat([self.class_token, tokens_VD])))
            tokens_ND = self.mask_token.repeat(len(patches_NP), 1).index_copy(0, order, tokens_VD[1:])
            tokens_ND = self.decoder(torch.cat([tokens_VD[:1], tokens_ND]) + self.decoder_positions)
            errors.append((self.predict(tokens_ND[1:]) - patches_NP) ** 2 * hidden_N[:, None])
        return torch.stack(errors).mean() / hidden_BN.double().mean()

    def names(self) -> dict[str, str]:
        """Of ours, by those of this one."""
        return {
            "class_token": "encoder.backbone.cls_token",
            "mask_token": "head.mask_token",
            "positions": "encoder.backbone.pos_embed",
            "decoder_positions": "head.positions",
            "project": "encoder.backbone.patch_embed.proj",
            "norm": "encoder.backbone.norm",
            "predict": "head.predict",
        }

    def arranged(self, name: str, weight: Tensor) -> Tensor:
        """A weight, or its gradient, in our order of a patch's values, which is (row, column, channel) at the end."""
        if not name.startswith("predict"):
            return weight
        return rearrange(weight, "(c p q) ... -> (p q c) ...", p=self.patch, q=self.patch)


class VitPytorch(nn.Module):
    """mae.py and vit.py. The values of a patch are in the order (row, column, channel).

    Args:
        norms: whether norms stand around the projection of a patch, and behind the last block of each half: in 1.26,
            not yet in 0.35.
        of_all: whether the decoder's positions are added to all tokens; in revisions before 0.35 that have the argument
            apply_decoder_pos_emb_all, by default to mask tokens alone.
    """

    def __init__(self, size: Size, norms: bool = True, of_all: bool = True):
        super().__init__()
        width, inner, values = size.encoder[0], size.decoder[0], 3 * size.patch**2
        self.patch, self.norms, self.of_all = size.patch, norms, of_all
        self.mask_token = nn.Parameter(torch.randn(inner))
        self.positions, self.decoder_positions = (nn.Parameter(torch.randn(size.patches, d)) for d in (width, inner))
        self.project, self.predict = nn.Linear(values, width), nn.Linear(inner, values)
        if norms:
            self.pixel_norm, self.embed_norm = nn.LayerNorm(values), nn.LayerNorm(width)
            self.norm, self.decoder_norm = nn.LayerNorm(width), nn.LayerNorm(inner)
        self.encoder, self.decoder, self.between = blocks(*size.encoder), blocks(*size.decoder), nn.Linear(width, inner)

    def forward(self, img_BCHW: Tensor, hidden_BN: Tensor) -> Tensor:
        """Mean squared error over the values of hidden patches."""
        patches_BNP = rearrange(img_BCHW, "b c (h p) (w q) -> b (h w) (p q c)", p=self.patch, q=self.patch)
        errors = []
        for patches_NP, hidden_N in zip(patches_BNP, hidden_BN, strict=True):
            order = (~hidden_N).nonzero().flatten().flip(0)
            if self.norms:
                tokens_ND = self.embed_norm(self.project(self.pixel_norm(patches_NP)))
            else:
                tokens_ND = self.project(patches_NP)
            tokens_VD = self.encoder((tokens_ND + self.positions)[order])
            tokens_VD = self.between(self.norm(tokens_VD) if self.norms else tokens_VD)
            if self.of_all:
                tokens_VD = tokens_VD + self.decoder_positions[order]
            decoded_ND = self.decoder(torch.cat([self.mask_token + self.decoder_positions[hidden_N], tokens_VD]))
            decoded_ND = (self.decoder_norm(decoded_ND) if self.norms else decoded_ND)[: hidden_N.sum()]
            errors.append((self.predict(decoded_ND) - patches_NP[hidden_N]) ** 2)
        return torch.stack(errors).mean()

    def names(self) -> dict[str, str]:
        return {
            "mask_token": "head.mask_token",
            "positions": "encoder.backbone.pos_embed",
            "decoder_positions": "head.positions",
            "project": "encoder.backbone.patch_embed.proj",
            "pixel_norm": "encoder.pixel_norm",
            "embed_norm": "encoder.backbone.patch_embed.norm",
            "norm": "encoder.backbone.norm",
            "between": "head.embed",
            "decoder_norm": "head.norm",
            "predict": "head.predict",
        }

    def arranged(self, name: str, weight: Tensor) -> Tensor:
        """Ours are in the order (channel, row, column) at the beginning."""
        if not name.startswith(("project.weight", "pixel_norm")):
            return weight
        return rearrange(weight, "... (p q c) -> ... (c p q)", p=self.patch, q=self.patch)


def ours_by_theirs(theirs: nn.Module) -> dict[str, str]:
    """Our name of each of their parameters."""
    table = theirs.names()
    for half, prefix in (("encoder", "encoder.backbone.blocks"), ("decoder", "head.layers")):
        for number in range(len(getattr(theirs, half))):
            parts = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
            for part in ("norm1", "norm2", *parts):
                table[f"{half}.{number}.{part}"] = f"{prefix}.{number}.{parts.get(part, part)}"
    names = {}
    for name, _ in theirs.named_parameters():
        module, _, tail = name.rpartition(".")
        names[name] = table[name] if name in table else f"{table[module]}.{tail}"
    return names


def assert_equal_in_loss_and_every_gradient(config: str, theirs: nn.Module, hidden: int) -> None:
    """Ours takes the weights of theirs: no parameter of either is left."""
    cfg = parse_config(config)
    ours, theirs, names = build_model(cfg).double(), theirs.double(), ours_by_theirs(theirs)
    parameters = dict(ours.named_parameters())
    assert sorted(names.values()) == sorted(parameters)
    noise = generator(3)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=noise, dtype=weight.dtype))
            parameters[names[name]].copy_(theirs.arranged(name, weight).reshape(parameters[names[name]].shape))
    img = images(3, ImageSpec(3, *cfg.DATA.image_size), dtype=torch.float64)
    mask = ours.sample_mask(img, generator(5))
    assert mask.hidden_BHW.sum(dim=(1, 2)).tolist() == [hidden] * 3
    expected, output = theirs(img, mask.hidden_BHW.flatten(1)), ours(img, mask)
    torch.testing.assert_close(output.loss, expected, rtol=0, atol=TOLERANCE)
    expected.backward()
    output.loss.backward()
    for name, weight in theirs.named_parameters():
        expected_gradient = theirs.arranged(name, weight.grad)
        assert expected_gradient.abs().max() > 1e-4, name
        gradient = parameters[names[name]].grad.reshape(expected_gradient.shape)
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=TOLERANCE, msg=name)


ICARUS = """
TASK: pretrain
DATA: {name: cifar10, image_size: [16, 16], channels: 3, mean: [.5, .5, .5], std: [.5, .5, .5]}
MASKER: {name: random, cell: 4, ratio: 0.75}
ENCODER: {name: vit, patch: 4, width: 24, depth: 2, heads: 3, positions: learned, class_position: false,
          qkv_bias: false, norm_eps: 1.0e-5, linear_init: pytorch}
HEAD: {name: transformer, width: 24, depth: 2, heads: 3, embed: false, positions: learned, norm: false,
       qkv_bias: false, norm_eps: 1.0e-5, linear_init: pytorch}
TARGET: {name: pixels, normalize: none}
LOSS: {name: mse}
"""
VIT_PYTORCH = """
TASK: pretrain
DATA: {{name: folder, image_size: [12, 12], channels: 3, mean: [.5, .5, .5], std: [.5, .5, .5]}}
MASKER: {{name: random, cell: 4, ratio: 0.75, rounding: floor_hidden}}
ENCODER: {{name: vit, patch: 4, width: 24, depth: 2, heads: 2, head_width: 8, mlp_ratio: 2.0, positions: learned,
          class_token: false, qkv_bias: false, norm_eps: 1.0e-5, patch_norm: {norms}, norm: {norms},
          linear_init: pytorch, init_std: 1.0}}
HEAD: {{name: transformer, width: 16, depth: 2, heads: 3, head_width: 6, positions: learned, positions_of: {of},
       norm: {norms}, qkv_bias: false, norm_eps: 1.0e-5, linear_init: pytorch, init_std: 1.0}}
TARGET: {{name: pixels, normalize: none}}
LOSS: {{name: mse}}
"""


def test_icarus_mae_is_the_published_one_in_loss_and_every_gradient() -> None:
    size = Size(side=16, patch=4, encoder=(24, 2, 3, 8, 96), decoder=(24, 2, 3, 8, 96))
    assert_equal_in_loss_and_every_gradient(ICARUS, Icarus(size), hidden=12)


@pytest.mark.parametrize(
    ("norms", "of"), [(True, "all"), (False, "all"), (False, "hidden")], ids=["1.26", "0.35", "older"]
)
def test_vit_pytorch_mae_is_the_published_one_in_loss_and_every_gradient(norms: bool, of: str) -> None:
    size = Size(side=12, patch=4, encoder=(24, 2, 2, 8, 48), decoder=(16, 2, 3, 6, 64))
    config, theirs = VIT_PYTORCH.format(norms=str(norms).lower(), of=of), VitPytorch(size, norms, of == "all")
    assert_equal_in_loss_and_every_gradient(config, theirs, hidden=6)  # int(.75 * 9); MAE hides 7


def parameters_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_recipe_of_icarus_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        ours = build_model(load_config("cifar10/icarus_mae_vit_tiny"))
        theirs = Icarus(Size(side=32, patch=2, encoder=(192, 12, 3, 64, 768), decoder=(192, 4, 3, 64, 768)))
    assert parameters_of(ours) == parameters_of(theirs) == 7_212_684


def test_recipe_of_vit_pytorch_has_the_published_number_of_parameters() -> None:
    """Its README's model has 63,085,544 with the classifier for 1000 classes, which its pretraining never uses."""
    with torch.device("meta"):
        ours = build_model(load_config("mae/vit_pytorch"))
        theirs = VitPytorch(Size(side=256, patch=32, encoder=(1024, 6, 8, 64, 2048), decoder=(512, 6, 8, 64, 2048)))
    assert parameters_of(ours) == parameters_of(theirs) == 63_085_544 - 1_025_000


def test_rate_of_icarus_is_the_smaller_of_warmup_and_cosine_once_an_epoch() -> None:
    """mae_pretrain.py: lr_func, of the whole epochs that have passed."""
    cfg = load_config("cifar10/icarus_mae_vit_tiny")
    settings = build.engine_settings(cfg)
    plan = Plan.of(settings, 50_000, 1)
    rates, peak = plan.schedule(settings), 1.5e-4 * 4096 / 256
    for epoch in [*range(0, 2000, 37), *range(190, 205), 1999]:
        factor = min((epoch + 1) / (200 + 1e-8), 0.5 * (math.cos(epoch / 2000 * math.pi) + 1))
        for step in (0, plan.steps_per_epoch - 1):
            assert rates.at(epoch * plan.steps_per_epoch + step) == pytest.approx(peak * factor, rel=1e-9), epoch
