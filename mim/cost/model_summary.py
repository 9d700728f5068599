"""ModelSummary: a model taken part by part: what crosses each boundary, and how many operations each part does.

Shapes: B batch, C channels, H W pixels or cells, N tokens, K prefix tokens, D width, L linear layers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mim.cost.flops import Stage, Work, at_work, work_of
from mim.model import MaskedImageModel
from mim.ops.attention import choose_attention
from mim.readouts.classifier import Classifier
from mim.structures import Features, ImageSpec, PatchMask, Prediction

Model = MaskedImageModel | Classifier
CPU = torch.device("cpu")
IMAGES = 2  # batch norm needs more than one


@dataclass(frozen=True, slots=True)
class Boundary:
    """What crosses from one part to the next, for one image.

    what: image, mask, tokens, prefix tokens, prediction, target, features, scores; of: the part that it comes out of;
    shape: without the batch; axes: what each number of it counts.
    """

    what: str
    of: str
    shape: tuple[int, ...]
    axes: str

    @property
    def size(self) -> str:
        """The shape in words, such as `3 x 224 x 224`."""
        return " x ".join(map(str, self.shape))


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """What crosses each boundary, in order, and the work of each part: `encoder`, `head` or `classifier`, and `rest`
    (target and loss); None where it was not counted.
    """

    boundaries: tuple[Boundary, ...]
    work: dict[str, Work] | None

    @property
    def flops(self) -> int | None:
        """Operations of training on one image, forward and backward."""
        return None if self.work is None else sum(work.training for work in self.work.values())

    def describe(self) -> dict[str, str]:
        """Shapes and operations, for the start of a run: a line each."""
        lines = {"shapes": " -> ".join(self._crossings())} if self.boundaries else {}
        if self.work and self.flops:
            parts = ", ".join(f"{part} {work.training / 1e9:.3g}" for part, work in self.work.items() if work.training)
            lines["operations"] = f"{self.flops / 1e9:.3g} GFLOP to train on one image ({parts}), forward and backward"
        return lines

    def figures(self) -> dict[str, int]:
        """What summary.json holds of it."""
        return {"flops_per_image": self.flops} if self.flops else {}

    def _crossings(self) -> list[str]:
        found: list[str] = []
        for boundary in self.boundaries:
            if boundary.what == "prefix tokens":
                found[-1] += f" and {boundary.shape[0]} in front"
            elif boundary.what == "target":
                found[-1] = f"prediction and target {boundary.size}"
            elif boundary.shape:
                found.append(f"{boundary.what} {boundary.size}{' cells' if boundary.what == 'mask' else ''}")
        return found


def summarise_model(model: Model, image: ImageSpec) -> ModelSummary:
    """Takes a model part by part over two images.

    On the meta device nothing is computed, and operations are counted, those of attention as explicit products. A model
    with weights is run forward only, as it evaluates, and nothing is counted.
    """
    device = next(model.parameters()).device
    img_BCHW = torch.zeros(IMAGES, image.channels, image.height, image.width, device=device)
    counts, mode = device.type == "meta", model.training
    if counts:
        choose_attention(model, CPU)
    else:
        model.eval()
    with torch.set_grad_enabled(counts), torch.random.fork_rng(devices=[]):
        mask = model.sample_mask(img_BCHW) if isinstance(model, MaskedImageModel) else None
        stages: list[Stage] = []
        for part, run in _parts(model, img_BCHW, mask):
            before = stages[-1].outcome if stages else img_BCHW
            stages.append(at_work(part, run, before))
        boundaries = _boundaries(model, img_BCHW, mask, stages)
    model.train(mode)
    return ModelSummary(tuple(boundaries), work_of(stages, IMAGES) if counts else None)


def _parts(model: Model, img_BCHW: Tensor, mask: PatchMask | None) -> list[tuple[str, Callable[[Any], Any]]]:
    """The parts of `forward` one after the other, each a function of what the one before answers."""
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


def _boundaries(model: Model, img_BCHW: Tensor, mask: PatchMask | None, stages: list[Stage]) -> list[Boundary]:
    found = [Boundary("image", "data", tuple(img_BCHW.shape[1:]), "channels x height x width")]
    features: Features = stages[0].outcome
    if isinstance(model, MaskedImageModel) and mask is not None:
        found.append(Boundary("mask", model.masker.name, tuple(mask.hidden_BHW.shape[1:]), "cells high x wide"))
    name = model.encoder.name
    found.append(Boundary("tokens", name, tuple(features.tokens_BND.shape[1:]), "tokens x width"))
    if features.prefix_BKD is not None:
        found.append(Boundary("prefix tokens", name, tuple(features.prefix_BKD.shape[1:]), "tokens x width"))
    if isinstance(model, MaskedImageModel):
        prediction: Prediction = stages[1].outcome
        target_BCHW = model.target(img_BCHW)
        for what, of, map_BCHW in (
            ("prediction", model.head.name, prediction.map_BCHW),
            ("target", model.target.name, target_BCHW),
        ):
            found.append(Boundary(what, of, tuple(map_BCHW.shape[1:]), "channels x high x wide"))
        return [*found, Boundary("loss", model.loss.name, (), "a number")]
    features_BD, scores_LBK = stages[1].outcome, stages[2].outcome
    layers, _, classes = scores_LBK.shape
    found.append(Boundary("features", f"{model.pool} pooling", tuple(features_BD.shape[1:]), "width"))
    if layers > 1:
        return [*found, Boundary("scores", "linear layers", (layers, classes), "layers x classes")]
    return [*found, Boundary("scores", "linear layer", (classes,), "classes")]
