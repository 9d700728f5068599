"""Backbones: whole training steps of two sides in turns, and the ratio of their seconds.

  python benchmarks/backbones.py [NAMES] [--rounds 6] [--batch 8] [--threads 1]

swin, hiera, convnextv2, resnet50: the recipe of that backbone, which computes visible places alone, against the same
recipe with ENCODER.hidden replace, which computes all of them. lightly, transformers: MAE with a ViT-S/16, ours through
ENCODER.name timm against the same sizes in that library (pip install lightly).

A step is mask, encoder, head, loss, backward pass and fused AdamW, in fp32 on random images. A round runs each side
twice, in an order that changes, so that ratios hold while the machine changes.

Shapes: B batch, C channels, H W pixels, N tokens with the class token, V visible of them, D width, P values a patch.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from mim import build, load_config
from mim.ops.attention import choose_attention

RECIPES = {
    "swin": "backbones/swin_tiny_drop",
    "hiera": "backbones/hiera_tiny_drop",
    "convnextv2": "backbones/convnextv2_tiny_sparse",
    "resnet50": "backbones/resnet50_sparse",
}
VIT = "vit_small_patch16_224"
WIDTH, DEPTH, HEADS = 512, 8, 16  # of MAE's decoder
MAE_WITH_TIMM = {
    "ENCODER.model": VIT,
    "ENCODER.hidden": "drop",
    "MASKER.cell": 16,
    "MASKER.ratio": 0.75,
    "HEAD.name": "transformer",
    "HEAD.width": WIDTH,
    "HEAD.depth": DEPTH,
    "HEAD.heads": HEADS,
    "TARGET.normalize": "patch",
    "LOSS.name": "mse",
}


class Ours(nn.Module):
    """The model of a config; it draws its masks."""

    def __init__(self, recipe: str, overrides: dict[str, object]):
        super().__init__()
        self.model = build.build_model(load_config(recipe, overrides))
        choose_attention(self.model, torch.device("cpu"))
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, img_BCHW: Tensor) -> Tensor:
        """The loss."""
        return self.model(img_BCHW, self.model.sample_mask(img_BCHW, self.generator)).loss


class Lightly(nn.Module):
    """MAE of the parts of lightly, put together as its documentation does."""

    def __init__(self) -> None:
        super().__init__()
        import timm
        from lightly.models.modules.masked_vision_transformer_decoder_timm import MaskedVisionTransformerDecoderTIMM
        from lightly.models.modules.masked_vision_transformer_timm import MaskedVisionTransformerTIMM

        vit = timm.create_model(VIT, num_classes=0)
        self.patch = vit.patch_embed.patch_size[0]
        self.encoder = MaskedVisionTransformerTIMM(vit=vit)
        self.embed = nn.Linear(vit.embed_dim, WIDTH)
        self.decoder = MaskedVisionTransformerDecoderTIMM(vit.patch_embed.num_patches, WIDTH, DEPTH, HEADS)
        self.predict = nn.Linear(WIDTH, 3 * self.patch**2)

    def forward(self, img_BCHW: Tensor) -> Tensor:
        """The loss."""
        from lightly.models import utils

        size = (len(img_BCHW), self.encoder.sequence_length)
        kept_BV, hidden_BM = utils.random_token_mask(size=size, mask_ratio=0.75, device=img_BCHW.device)
        tokens_BVD = self.embed(self.encoder.encode(images=img_BCHW, idx_keep=kept_BV))
        tokens_BND = utils.repeat_token(self.decoder.mask_token, size)
        tokens_BND = utils.set_at_index(tokens_BND, kept_BV, tokens_BVD.type_as(tokens_BND))
        prediction_BMP = self.predict(utils.get_at_index(self.decoder(tokens_BND), hidden_BM))
        target_BMP = utils.get_at_index(utils.patchify(img_BCHW, self.patch), hidden_BM - 1)  # without the class token
        return nn.functional.mse_loss(prediction_BMP, utils.normalize_mean_var(target_BMP))


class Transformers(nn.Module):
    """ViTMAEForPreTraining of the same sizes."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import ViTMAEConfig, ViTMAEForPreTraining

        sizes = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
        self.model = ViTMAEForPreTraining(ViTMAEConfig(norm_pix_loss=True, **sizes))  # the decoder is 512 x 8 there too

    def forward(self, img_BCHW: Tensor) -> Tensor:
        """The loss."""
        return self.model(pixel_values=img_BCHW).loss


class Side:
    """A model that gives a loss of images, and its optimizer."""

    def __init__(self, model: nn.Module):
        self.model = model.train()
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)

    def step(self, img_BCHW: Tensor) -> float:
        """Seconds of one step."""
        begin = time.perf_counter()
        self.optimizer.zero_grad()
        self.model(img_BCHW).backward()
        self.optimizer.step()
        return time.perf_counter() - begin


def sides(name: str) -> tuple[Callable[[], nn.Module], Callable[[], nn.Module]]:
    """What makes the models of both sides."""
    if name in RECIPES:
        return lambda: Ours(RECIPES[name], {}), lambda: Ours(RECIPES[name], {"ENCODER.hidden": "replace"})
    others = {"lightly": Lightly, "transformers": Transformers}
    return lambda: Ours("backbones/any", MAE_WITH_TIMM), others[name]


def compare(name: str, rounds: int, batch: int) -> None:
    """Prints how many times as long the other side takes, its median and its range over rounds."""
    ours, other = (Side(make()) for make in sides(name))
    counts = [sum(p.numel() for p in side.model.parameters() if p.requires_grad) / 1e6 for side in (ours, other)]
    img_BCHW = torch.randn(batch, 3, 224, 224)
    for side in (ours, other):
        side.step(img_BCHW)
    ratios, seconds = [], []
    for number in range(rounds):
        order = (ours, other, other, ours) if number % 2 else (other, ours, ours, other)
        times = [(side, side.step(img_BCHW)) for side in order]
        ratios.append(sum(s for side, s in times if side is other) / sum(s for side, s in times if side is ours))
        seconds += [s for side, s in times if side is ours]
    text = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    print(
        f"{name:<13} {text}, {batch / median(seconds):.1f} images/s ours, {counts[0]:.1f} M and {counts[1]:.1f} M "
        f"parameters, {rounds} rounds",
        flush=True,
    )


def main() -> None:
    """Compares the sides of each name in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*RECIPES, "lightly", "transformers"]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    unknown = set(args.names) - set(names)
    if unknown:
        parser.error(f"NAME is {', '.join(sorted(unknown))}: allowed are {', '.join(names)}")
    torch.set_num_threads(args.threads)
    for name in args.names or names:
        compare(name, args.rounds, args.batch)


if __name__ == "__main__":
    main()
