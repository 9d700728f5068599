"""MaskedImageModel: how an image becomes a loss.

Shapes: B batch, C channels, H W pixels.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mim.encoders import Encoder
from mim.heads import Head
from mim.losses import Loss
from mim.maskers import Masker
from mim.registry import keys_of
from mim.structures import Features, Output, PatchMask
from mim.targets import Target
from mim.targets.base import Lesson
from mim.targets.several import SeveralLosses


class MaskedImageModel(nn.Module):
    """Masker, encoder, head, target and loss. MAE and SimMIM are two settings of these five parts.

    Raises ValueError where the encoder hides nothing, a cell of the masker does not cover whole patches, the masker
    needs a teacher that is not there, or the loss cannot learn the target, or counts visible cells that the head does
    not predict.
    """

    def __init__(self, masker: Masker, encoder: Encoder, head: Head, target: Target, loss: Loss | SeveralLosses):
        super().__init__()
        if encoder.hidden == "none":
            text = "ENCODER.hidden none hides nothing, so there is nothing to predict: use drop, replace or sparse"
            raise ValueError(text)
        if masker.cell % encoder.spec.patch:
            side, has_key = encoder.spec.patch, "patch" in keys_of(type(encoder))
            patch = f"ENCODER.patch {side}" if has_key else f"{side}, the side of a patch of {encoder.title} in pixels"
            raise ValueError(f"MASKER.cell {masker.cell} is not a multiple of {patch}: a cell must cover whole patches")
        if head.hidden_only and loss.over == "all":
            others = [name for name, part in Head.members().items() if part.fills_dropped and not part.hidden_only]
            raise ValueError(
                f"LOSS.over all counts visible cells too, which HEAD.name {head.name} does not predict: use LOSS.over "
                f"hidden, or HEAD.name {' or '.join(others)}"
            )
        if masker.of_image and not target.attends:
            raise ValueError(
                f"MASKER.name {masker.name} chooses by what a teacher attends to, and TARGET.name {target.name} has no "
                "teacher with a class token: use TARGET.name teacher, or another MASKER.name"
            )
        loss.check(target.spec)
        self.masker, self.encoder, self.head, self.target, self.loss = masker, encoder, head, target, loss

    def sample_mask(self, img_BCHW: Tensor, generator: torch.Generator | None = None) -> PatchMask:
        """A random mask for each image, on its device. `forward` itself draws nothing."""
        return self.masker.sample(len(img_BCHW), generator, img_BCHW.device)

    def forward(self, img_BCHW: Tensor, mask: PatchMask | Tensor) -> Output:
        """Loss and prediction for normalised images (B, C, H, W) under a mask.

        `mask` is a PatchMask, or a bool grid or pixel map, (H, W) or (B, H, W), True where hidden. A PatchMask may hold
        several masks of each image, in neighbouring rows; the target is then computed once for all of them.
        """
        if isinstance(mask, Tensor):
            mask = PatchMask.from_tensor(mask.to(img_BCHW.device), len(img_BCHW)).coarsened(*self.encoder.patch_grid)
        copies = len(mask.hidden_BHW) // len(img_BCHW)
        if copies == 1 and not self.target.outside:
            return self._predict(img_BCHW, self.masker.hide_missing(mask), None)
        mask, lesson = self.teach(img_BCHW, mask)
        target_BCHW, own_loss = lesson.map_BChw, lesson.loss
        output = self._predict(repeat_rows(img_BCHW, copies), mask, repeat_rows(target_BCHW, copies))
        metrics = {**output.metrics, **self.target.metrics(target_BCHW)}
        if own_loss is None:
            return replace(output, metrics=metrics)
        return replace(output, loss=output.loss + own_loss, metrics={**metrics, "target_loss": own_loss.detach()})

    def teach(self, img_BCHW: Tensor, mask: PatchMask) -> tuple[PatchMask, Lesson]:
        """The mask under which the model sees images, and what it learns from.

        A mask that the masker drew may depend on what a teacher attends to, and hides missing pixels; one that was made
        by hand stays as it is.
        """
        attend = self.masker.of_image and mask.draw_B is not None
        lesson = self.target.learn(img_BCHW, attend)
        if attend:
            assert lesson.attention_BHW is not None
            copies = len(mask.hidden_BHW) // len(img_BCHW)
            mask = self.masker.finish(mask, repeat_rows(lesson.attention_BHW, copies))
        return self.masker.hide_missing(mask), lesson

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The names of the metrics that `forward` gives in eval mode, in their order."""
        return (*(f"loss_{name}" for name in self.loss.terms), *self.target.metric_names)

    def compile(self, *args: Any, **options: Any) -> None:
        """Compiles the student: encoder, head and loss, and a target that is not computed outside of them."""
        self._predict = torch.compile(self._predict, *args, **options)  # type: ignore[method-assign]

    def _predict(self, img_BCHW: Tensor, mask: PatchMask, target_BCHW: Tensor | None) -> Output:
        prediction = self.head(self.encode(img_BCHW, mask))
        target_BCHW = self.target(img_BCHW) if target_BCHW is None else target_BCHW
        loss, terms = self.loss.with_terms(prediction, target_BCHW, mask)
        return Output(loss, prediction.map_BCHW, mask, {f"loss_{name}": each.detach() for name, each in terms.items()})

    def encode(self, img_BCHW: Tensor, mask: PatchMask) -> Features:
        """The features that the head needs of images under a mask."""
        stages = (self.head.stages,) if self.head.stages else ()  # not every encoder has such an argument
        features = self.encoder(img_BCHW, mask, *stages)
        if not isinstance(features, Features):
            raise TypeError(f"ENCODER.name {self.encoder.name} returned {type(features).__name__}, not mim.Features")
        return features

    def blocks(self) -> list[nn.Module]:
        """The repeated blocks of encoder and head: the units of activation checkpointing."""
        return [*self.encoder.blocks(), *self.head.blocks()]


def repeat_rows(map_BCHW: Tensor, copies: int) -> Tensor:
    """Each row several times, one after the other."""
    return map_BCHW if copies == 1 else map_BCHW.repeat_interleave(copies, dim=0)
