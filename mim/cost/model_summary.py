"""ModelSummary: the shapes between the parts of a model, and the operations of each part.

Shapes: B batch, C channels, H W pixels or cells, N tokens, K prefix tokens, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mim.cost.flops import Work, count_work
from mim.model import MaskedImageModel, repeat_rows
from mim.ops.attention import choose_attention
from mim.readouts import Predictor
from mim.structures import ImageSpec, PatchMask

Model = MaskedImageModel | Predictor
CPU = torch.device("cpu")
IMAGES = 2  # batch normalisation needs more than one


@dataclass(frozen=True, slots=True)
class Boundary:
    """What one part of a model passes to the next, for one image."""

    what: str  # image, mask, tokens, prefix tokens, prediction, target or scores
    source: str  # the part that it comes from
    shape: tuple[int, ...]  # without the batch
    axes: str  # what each number of the shape counts

    @property
    def size(self) -> str:
        """The shape as text, such as `3 x 224 x 224`."""
        return " x ".join(map(str, self.shape))


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """Shapes and operations of a model."""

    boundaries: tuple[Boundary, ...]  # in the order of the forward pass
    work: dict[str, Work] | None  # by `encoder`, `head` or `readout`, and `rest` (target, loss); None if not counted

    @property
    def flops(self) -> int | None:
        """Operations of forward and backward pass on one image."""
        return None if self.work is None else sum(work.training for work in self.work.values())

    def describe(self) -> dict[str, str]:
        """Shapes and operations, a line each, for the start of a run."""
        lines = {"shapes": " -> ".join(self._shapes())} if self.boundaries else {}
        if self.work and self.flops:
            parts = ", ".join(f"{part} {work.training / 1e9:.3g}" for part, work in self.work.items() if work.training)
            lines["operations"] = f"{self.flops / 1e9:.3g} GFLOP to train on one image ({parts}), forward and backward"
        return lines

    def metrics(self) -> dict[str, int]:
        """The part of summary.json that it gives."""
        return {"flops_per_image": self.flops} if self.flops else {}

    def _shapes(self) -> list[str]:
        shapes: list[str] = []
        for boundary in self.boundaries:
            if boundary.what == "prefix tokens":
                shapes[-1] += (
                    f" and {boundary.shape[0]} prefix tokens" if boundary.shape[0] > 1 else " and a class token"
                )
            elif boundary.what == "target":
                shapes[-1] = f"prediction and target {boundary.size}"
            elif boundary.shape:
                shapes.append(f"{boundary.what} {boundary.size}{' cells' if boundary.what == 'mask' else ''}")
        return shapes


def summarise_model(model: Model, image: ImageSpec, masks: int = 1) -> ModelSummary:
    """Runs a model part by part on two images, each under a number of masks.

    On the meta device nothing is computed and operations are counted, those of attention as two matrix products. A
    model with weights runs forward only, in eval mode, and nothing is counted.
    """
    device = next(model.parameters()).device
    img_BCHW = torch.zeros(IMAGES, image.channels, image.height, image.width, device=device)
    counted, was_training = device.type == "meta", model.training
    if counted:
        choose_attention(model, CPU)
    else:
        model.eval()
    with torch.set_grad_enabled(counted), torch.random.fork_rng(devices=[]):
        mask = model.sample_mask(repeat_rows(img_BCHW, masks)) if isinstance(model, MaskedImageModel) else None
        outcomes, work = count_work(_parts(model, img_BCHW, mask), img_BCHW, IMAGES)
        boundaries = _boundaries(model, img_BCHW, mask, outcomes)
    model.train(was_training)
    return ModelSummary(tuple(boundaries), work if counted else None)


def _parts(model: Model, img_BCHW: Tensor, mask: PatchMask | None) -> list[tuple[str, Callable[[Any], Any]]]:
    """The parts of `forward` in order. Each is called with the outcome of the part before it."""
    if isinstance(model, MaskedImageModel):
        assert mask is not None
        masks = len(mask.hidden_BHW) // len(img_BCHW)
        return [
            ("encoder", lambda img: model.encode(repeat_rows(img, masks), mask)),
            ("head", model.head),
            ("rest", lambda prediction: model.loss(prediction, repeat_rows(model.target(img_BCHW), masks), mask)),
        ]
    return [
        ("encoder", model.features),
        ("readout", model.read),
        ("rest", lambda scores: sum(each.float().sum() for each in scores)),
    ]


def _boundaries(model: Model, img_BCHW: Tensor, mask: PatchMask | None, outcomes: list[Any]) -> list[Boundary]:
    encoder, features = model.encoder.title, outcomes[0]
    rows = [("image", "data", img_BCHW, "channels x height x width")]
    if isinstance(model, MaskedImageModel) and mask is not None:
        rows.append(("mask", model.masker.name, mask.hidden_BHW, "cells high x wide"))
    rows.append(("tokens", encoder, features.tokens_BND, "tokens x width"))
    if features.prefix_BKD is not None:
        rows.append(("prefix tokens", encoder, features.prefix_BKD, "tokens x width"))
    if isinstance(model, MaskedImageModel):
        rows.append(("prediction", model.head.name, outcomes[1].map_BCHW, "channels x high x wide"))
        rows.append(("target", model.target.name, model.target(img_BCHW), "channels x high x wide"))
        last = Boundary("loss", model.loss.name, (), "mean over the batch")
    else:
        scores, names = outcomes[1], dict.fromkeys(readout.name for readout in model.readouts)
        shape, axes = tuple(scores[0].shape[1:]), "classes x high x wide" if scores[0].ndim == 4 else "outputs"
        if len(scores) > 1 and len({each.shape for each in scores}) == 1:
            shape, axes = (len(scores), *shape), f"readouts x {axes}"
        last = Boundary("scores", ", ".join(names), shape, axes)
    return [*(Boundary(what, source, tuple(tensor.shape[1:]), axes) for what, source, tensor, axes in rows), last]
