"""Pixels: the image itself, at full or lower resolution, raw or normalised patch by patch.

Shapes: B batch, C channels, H W pixels of the image, h w entries of the target, N patches, P entries of a patch.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from mim.ops.patches import patchify, unpatchify
from mim.structures import EncoderSpec, ImageSpec, TargetSpec
from mim.targets.base import Target


class Pixels(Target, name="pixels"):
    """Pixels of the normalised image.

    Args:
        normalize: `none`, or `patch`: each patch minus its mean, divided by sqrt(var + 1e-6), over all its pixels
            and channels, with the unbiased variance.
        stride: pixels of the image side for one entry of the target; above 1 the image is averaged down first.
        patch: side of a patch for `normalize: patch`, in pixels; 0 takes the encoder's stride, one token.

    Source: MAE, models_mae.py, forward_loss (norm_pix_loss); SimMIM section 3.4 (raw pixels) and its
    ablation of the prediction's resolution.
    """

    def __init__(
        self,
        image: ImageSpec,
        encoder: EncoderSpec,
        *,
        normalize: Literal["none", "patch"] = "none",
        stride: int = 1,
        patch: int = 0,
    ):
        super().__init__(image, encoder)
        self.spec = TargetSpec(image.channels, stride)
        self.grid = image.grid(stride, "TARGET.stride")
        self.normalize = normalize
        side = patch or encoder.stride
        if normalize == "patch":
            image.grid(side, "TARGET.patch")
            if side % stride or (side // stride) ** 2 * image.channels < 2:
                raise ValueError(
                    f"TARGET.normalize: patch needs patches of at least two values: TARGET.patch is {side} px and "
                    f"TARGET.stride {stride}; take a larger patch, a smaller stride that divides it, or normalize: none"
                )
        elif patch:
            raise ValueError(f"TARGET.patch {patch} has no effect with TARGET.normalize none: leave it out")
        self.side = side // stride

    @property
    def borrowed(self) -> str:
        return "mean and variance of each true patch" if self.normalize == "patch" else ""

    def forward(self, img_BCHW: Tensor) -> Tensor:
        map_BChw = F.avg_pool2d(img_BCHW, self.spec.stride) if self.spec.stride > 1 else img_BCHW
        if self.normalize == "none":
            return map_BChw
        patches_BNP, mean_BN1, deviation_BN1 = self._statistics(map_BChw)
        return self._unpatchify((patches_BNP - mean_BN1) / deviation_BN1)

    def to_pixels(self, map_BChw: Tensor, img_BCHW: Tensor) -> Tensor:
        if self.normalize == "patch":
            true_BChw = F.avg_pool2d(img_BCHW, self.spec.stride)
            _, mean_BN1, deviation_BN1 = self._statistics(true_BChw)
            map_BChw = self._unpatchify(patchify(map_BChw, self.side) * deviation_BN1 + mean_BN1)
        return F.interpolate(map_BChw, scale_factor=self.spec.stride, mode="nearest")

    def _statistics(self, map_BChw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Patches (B, N, P), and the mean and deviation of each (B, N, 1)."""
        patches_BNP = patchify(map_BChw, self.side)
        mean_BN1 = patches_BNP.mean(dim=-1, keepdim=True)
        variance_BN1 = patches_BNP.var(dim=-1, keepdim=True, unbiased=True)
        return patches_BNP, mean_BN1, (variance_BN1 + 1e-6) ** 0.5

    def _unpatchify(self, patches_BNP: Tensor) -> Tensor:
        return unpatchify(patches_BNP, self.side, (self.grid[0] // self.side, self.grid[1] // self.side))
