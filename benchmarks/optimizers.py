"""Optimizers: the time of a training step with each, in turns with AdamW, for comparisons at equal time.

  python benchmarks/optimizers.py RECIPE [KEY VALUE ...] [--rounds 10] [--threads 2]

A step is mask, encoder, head, target, loss, backward pass and optimizer, in the precision that the recipe comes to on
this CPU, on random images of its size and micro-batch. A round runs each side twice, in an order that changes.

Shapes: B batch, C channels, H W pixels.
"""

import argparse
import time

import torch
from targets import compare, spread
from torch import Tensor

from mim import build, load_config
from mim.engine.optim import parameter_groups
from mim.engine.precision import autocast, resolve_precision
from mim.ops.attention import choose_attention

CPU = torch.device("cpu")
OPTIMIZERS: dict[str, dict[str, object]] = {
    "adamw": {},
    "muon": {"OPTIMIZER.name": "muon"},
    "schedulefree": {"OPTIMIZER.name": "schedulefree"},
}
STEPS = 10  # of a time


class Side:
    """The model of a recipe with an optimizer."""

    def __init__(self, recipe: str, keys: dict[str, object]):
        cfg = load_config(recipe, keys)
        self.model, self.cfg = build.build_model(cfg).train(), cfg
        choose_attention(self.model, CPU)
        self.precision = resolve_precision(cfg.TRAIN.precision, CPU)
        self.generator = torch.Generator().manual_seed(0)
        hyperparameters = cfg.OPTIMIZER.build()
        groups = parameter_groups(self.model, hyperparameters, {})
        hyperparameters.prepare(groups, lambda lr_scale: 1e-4 * lr_scale, 0.0)
        self.optimizer = hyperparameters.build(groups)

    def seconds(self, img_BCHW: Tensor) -> float:
        """Seconds of one step, the mean of STEPS."""
        begin = time.perf_counter()
        for _ in range(STEPS):
            self.optimizer.zero_grad()
            mask = self.model.masker.sample(len(img_BCHW), self.generator, CPU)
            with autocast(self.precision, CPU):
                loss = self.model(img_BCHW, mask).loss
            loss.backward()
            self.optimizer.step()
        return (time.perf_counter() - begin) / STEPS


def main() -> None:
    """Compares each optimizer with AdamW, a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", metavar="RECIPE")
    parser.add_argument("keys", nargs="*", metavar="KEY VALUE")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shared = dict(zip(args.keys[::2], args.keys[1::2], strict=True))
    sides = {name: Side(args.recipe, {**shared, **keys}) for name, keys in OPTIMIZERS.items()}
    data = sides["adamw"].cfg.DATA
    img_BCHW = torch.randn(data.batch_size, data.channels, *data.image_size)
    for name, side in sides.items():
        if name != "adamw":
            pair = (lambda s=side: s.seconds(img_BCHW), lambda: sides["adamw"].seconds(img_BCHW))
            print(f"{name:<13} {spread(compare(*pair, args.rounds)[1], '.2f')} of a step with adamw", flush=True)


if __name__ == "__main__":
    main()
