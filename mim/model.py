"""MaskedImageModel: how an image becomes a loss.

Shapes: B batch, C channels, H W pixels.
"""

import torch
from torch import Tensor, nn

from mim.encoders import Encoder
from mim.heads import Head
from mim.losses import Loss
from mim.maskers import Masker
from mim.registry import keys_of
from mim.structures import Features, Output, PatchMask
from mim.targets import Target


class MaskedImageModel(nn.Module):
    """Masker, encoder, head, target and loss. MAE and SimMIM are two settings of these five parts.

    Raises ValueError where the encoder hides nothing, a cell of the masker does not cover whole patches, or the loss
    cannot learn the target, or counts visible cells that the head does not predict.
    """

    def __init__(self, masker: Masker, encoder: Encoder, head: Head, target: Target, loss: Loss):
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
        loss.check(target.spec)
        self.masker, self.encoder, self.head, self.target, self.loss = masker, encoder, head, target, loss

    def sample_mask(self, img_BCHW: Tensor, generator: torch.Generator | None = None) -> PatchMask:
        """A random mask for each image, on its device. `forward` itself draws nothing."""
        return self.masker.sample(len(img_BCHW), generator, img_BCHW.device)

    def forward(self, img_BCHW: Tensor, mask: PatchMask | Tensor) -> Output:
        """Loss and prediction for normalised images (B, C, H, W) under a mask.

        `mask` is a PatchMask, or a bool grid or pixel map, (H, W) or (B, H, W), True where hidden.
        """
        if isinstance(mask, Tensor):
            mask = PatchMask.from_tensor(mask.to(img_BCHW.device), len(img_BCHW)).coarsened(*self.encoder.patch_grid)
        prediction = self.head(self.encode(img_BCHW, mask))
        return Output(self.loss(prediction, self.target(img_BCHW), mask), prediction.map_BCHW, mask)

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
