"""Swin-T: whole training steps that drop hidden tokens against steps that replace them, in turns.

  python benchmarks/swin_drop.py [--rounds 6] [--batch 4] [--threads 1]

Both sides have the recipe backbones/swin_tiny_drop but for ENCODER.hidden: masks, encoder, decoder, loss, backward pass
and AdamW, in fp32 on random images. A round runs each side twice, in an order that changes, so that ratios hold while
the machine changes.
"""

import argparse
import time
from statistics import median

import torch
from torch import Tensor

from mim import build, load_config
from mim.ops.attention import choose_attention

RECIPE = "backbones/swin_tiny_drop"


class Side:
    """The recipe with one way of hiding, and its optimizer."""

    def __init__(self, hidden: str):
        cfg = load_config(RECIPE, {"ENCODER.hidden": hidden})
        self.model = build.build_model(cfg).train()
        choose_attention(self.model, torch.device("cpu"))
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad])
        self.generator = torch.Generator().manual_seed(0)

    def step(self, img_BCHW: Tensor) -> float:
        """Seconds of one step."""
        begin = time.perf_counter()
        self.optimizer.zero_grad()
        self.model(img_BCHW, self.model.sample_mask(img_BCHW, self.generator)).loss.backward()
        self.optimizer.step()
        return time.perf_counter() - begin


def main() -> None:
    """Prints the ratio of seconds, its median and its range over rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    drop, replace = Side("drop"), Side("replace")
    image = drop.model.encoder.image
    img_BCHW = torch.randn(args.batch, image.channels, image.height, image.width)
    for side in (drop, replace):
        side.step(img_BCHW)
    ratios = []
    for number in range(args.rounds):
        order = (drop, replace, replace, drop) if number % 2 else (replace, drop, drop, replace)
        seconds = [(side, side.step(img_BCHW)) for side in order]
        ratios.append(sum(s for side, s in seconds if side is replace) / sum(s for side, s in seconds if side is drop))
    print(f"replace / drop: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), {args.rounds} rounds")


if __name__ == "__main__":
    main()
