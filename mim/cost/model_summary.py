"""ModelSummary: the shapes between the parts of a model, and the operations of each part.

Shapes: B batch, C channels, H W pixels or cells, N tokens, K prefix tokens, D width, L linear layers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mim.cost.flops import Work, count_work, run_parts
from mim.model import MaskedImageModel
from mim.ops.attention import choose_attention
from mim.readouts.classifier import Classifier
from mim.structures import Features, ImageSpec, PatchMask, Prediction

Model = MaskedImageModel | Classifier
CPU = torch.device("cpu")
IMAGES = 2  # batch normalisation needs more than one


@dataclass(frozen=True, slots=True)
class Boundary:
    """What one part of a model passes to the next, for one image."""

    what: str  # image, mask, tokens, prefix tokens, prediction, target, features or scores
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
    work: dict[str, Work] | None  # by `encoder`, `head` or `classifier`, and `rest` (target, loss); None if not counted

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
                shapes[-1] += f" and {boundary.shape[0]} in front"
            elif boundary.what == "target":
                shapes[-1] = f"prediction and target {boundary.size}"
            elif boundary.shape:
                shapes.append(f"{boundary.what} {boundary.size}{' cells' if boundary.what == 'mask' else ''}")
        return shapes


def summarise_model(model: Model, image: ImageSpec) -> ModelSummary:
    """Runs a model part by part on two images.

    On the meta device nothing is computed and operations are counted, those of attention as two matrix products. A
    model with weights runs forward only, in eval mode, and nothing is counted.
    """
    device = next(model.parameters()).device
    img_BCHW = torch.zeros(IMAGES, image.channels, image.height, image.width, device=device)
    counted, was_training, work = device.type == "meta", model.training, None
    if counted:
        choose_attention(model, CPU)
    else:
        model.eval()
    with torch.set_grad_enabled(counted), torch.random.fork_rng(devices=[]):
        mask = model.sample_mask(img_BCHW) if isinstance(model, MaskedImageModel) else None
        parts = _parts(model, img_BCHW, mask)
        if counted:
            outcomes, work = count_work(parts, img_BCHW, IMAGES)
        else:
            outcomes = run_parts(parts, img_BCHW)
        boundaries = _boundaries(model, img_BCHW, mask, outcomes)
    model.train(was_training)
    return ModelSummary(tuple(boundaries), work)


def _parts(model: Model, img_BCHW: Tensor, mask: PatchMask | None) -> list[tuple[str, Callable[[Any], Any]]]:
    """The parts of `forward` in order. Each is called with the outcome of the part before it."""
    if isinstance(model, MaskedImageModel):
        assert mask is not None
        return [
            ("encoder", lambda img: model.encoder(img, mask)),
            ("head", model.head),
            ("rest", lambda prediction: model.loss(prediction, model.target(img_BCHW), mask)),
        ]
    return [
        ("encoder", model.encoder),
        ("classifier", lambda features: model.norm(features.pooled(model.pool))),
        ("classifier", lambda features_BD: torch.stack([head(features_BD) for head in model.heads])),
        ("rest", lambda scores_LBK: scores_LBK.float().sum()),
    ]


def _boundaries(model: Model, img_BCHW: Tensor, mask: PatchMask | None, outcomes: list[Any]) -> list[Boundary]:
    boundaries = [Boundary("image", "data", tuple(img_BCHW.shape[1:]), "channels x height x width")]
    features: Features = outcomes[0]
    if isinstance(model, MaskedImageModel) and mask is not None:
        boundaries.append(Boundary("mask", model.masker.name, tuple(mask.hidden_BHW.shape[1:]), "cells high x wide"))
    name = model.encoder.name
    boundaries.append(Boundary("tokens", name, tuple(features.tokens_BND.shape[1:]), "tokens x width"))
    if features.prefix_BKD is not None:
        boundaries.append(Boundary("prefix tokens", name, tuple(features.prefix_BKD.shape[1:]), "tokens x width"))
    if isinstance(model, MaskedImageModel):
        prediction: Prediction = outcomes[1]
        target_BCHW = model.target(img_BCHW)
        for what, source, map_BCHW in (
            ("prediction", model.head.name, prediction.map_BCHW),
            ("target", model.target.name, target_BCHW),
        ):
            boundaries.append(Boundary(what, source, tuple(map_BCHW.shape[1:]), "channels x high x wide"))
        return [*boundaries, Boundary("loss", model.loss.name, (), "a number")]
    features_BD, scores_LBK = outcomes[1], outcomes[2]
    layers, _, classes = scores_LBK.shape
    boundaries.append(Boundary("features", f"{model.pool} pooling", tuple(features_BD.shape[1:]), "width"))
    if layers > 1:
        return [*boundaries, Boundary("scores", "linear layers", (layers, classes), "layers x classes")]
    return [*boundaries, Boundary("scores", "linear layer", (classes,), "classes")]
