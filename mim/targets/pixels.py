"""Pixels: the image itself, at full or lower resolution, raw or normalised by patch or by window.

Shapes: B batch, C channels, H W pixels of the image, h w entries of the target, N patches, P entries of a patch.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor

from mim.ops.patches import patchify
from mim.structures import EncoderSpec, ImageSpec, TargetSpec
from mim.targets.base import Target

WINDOW = 47


class Pixels(Target, name="pixels"):
    """Pixels of the normalised image.

    Source: MAE, models_mae.py, forward_loss (norm_pix_loss); SimMIM section 3.4 (raw pixels) and its ablation of the
    prediction's resolution; Swin-Transformer, models/simmim.py, norm_targets (window). Differs from: sums over a window
    are in float64 (in float32 the error of a flat window's variance is as large as the 1e-6).

    Args:
        normalize: `none`: raw values (SimMIM); `patch`: (x - mean) / sqrt(var + 1e-6) over all values of a patch (MAE);
            `window`: the same over the values of one channel in a window around each entry. Variances are unbiased.
        stride: pixels of the image side for one entry of the target; above 1, the target is the averaged-down image.
        patch: side of a patch in pixels, for normalize `patch` only; 0 means the encoder's stride (one token).
        window: side of the window in entries of the target, odd and at least 3, for normalize `window` only; at the
            edges of the image the window has fewer entries.
    """

    unbiased_hw: Tensor

    def __init__(
        self,
        image: ImageSpec,
        encoder: EncoderSpec,
        *,
        normalize: Literal["none", "patch", "window"] = "none",
        stride: int = 1,
        patch: int = 0,
        window: int = WINDOW,
    ):
        super().__init__(image, encoder)
        self.spec, self.stride = TargetSpec(image.channels, stride), stride
        self.grid = image.grid(stride, "TARGET.stride")
        self.normalize, self.window = normalize, window
        self.side = (patch or encoder.stride) // stride
        for key, value, default in (("patch", patch, 0), ("window", window, WINDOW)):
            if normalize != key and value != default:
                raise ValueError(f"TARGET.{key} {value} has no effect with TARGET.normalize {normalize}: remove it")
        if normalize == "patch":
            self._check_patch(patch or encoder.stride)
        if normalize == "window":
            self._check_window()
            counts_hw = torch.outer(*(_window_sizes(side, window) for side in self.grid))
            self.register_buffer("unbiased_hw", counts_hw / (counts_hw - 1), persistent=False)

    @property
    def borrowed(self) -> str:
        return {
            "none": "",
            "patch": "mean and variance of each true patch",
            "window": "mean and variance of the true pixels around each",
        }[self.normalize]

    def forward(self, img_BCHW: Tensor) -> Tensor:
        map_BChw = self._averaged(img_BCHW)
        if self.normalize == "none":
            return map_BChw
        mean_BChw, deviation_BChw = self._statistics(map_BChw)
        return (map_BChw - mean_BChw) / deviation_BChw

    def to_pixels(self, map_BChw: Tensor, img_BCHW: Tensor) -> Tensor:
        if self.normalize != "none":
            mean_BChw, deviation_BChw = self._statistics(self._averaged(img_BCHW))
            map_BChw = map_BChw * deviation_BChw + mean_BChw
        return F.interpolate(map_BChw, scale_factor=self.stride, mode="nearest")

    def _averaged(self, img_BCHW: Tensor) -> Tensor:
        return F.avg_pool2d(img_BCHW, self.stride) if self.stride > 1 else img_BCHW

    def _statistics(self, map_BChw: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation for each entry, (B, 1 or C, h, w)."""
        if self.normalize == "window":
            exact_BChw = map_BChw.double()
            mean_BChw = self._mean_around(exact_BChw)
            variance_BChw = (self._mean_around(exact_BChw**2) - mean_BChw**2) * self.unbiased_hw
            deviation_BChw = (variance_BChw.clamp(min=0) + 1e-6) ** 0.5
            return mean_BChw.to(map_BChw.dtype), deviation_BChw.to(map_BChw.dtype)
        patches_BNP = patchify(map_BChw, self.side)
        mean_BN, variance_BN = patches_BNP.mean(dim=-1), patches_BNP.var(dim=-1, unbiased=True)
        return self._spread(mean_BN), self._spread((variance_BN + 1e-6) ** 0.5)

    def _spread(self, values_BN: Tensor) -> Tensor:
        """The value of each patch at all its entries, (B, 1, h, w)."""
        high = self.grid[0] // self.side
        return repeat(values_BN, "b (h w) -> b 1 (h p) (w q)", h=high, p=self.side, q=self.side)

    def _mean_around(self, map_BChw: Tensor) -> Tensor:
        """The mean over the window around each entry: over columns, then over rows, which is the same."""
        for kernel in ((self.window, 1), (1, self.window)):
            padding = (kernel[0] // 2, kernel[1] // 2)
            map_BChw = F.avg_pool2d(map_BChw, kernel, stride=1, padding=padding, count_include_pad=False)
        return map_BChw

    def _check_patch(self, side: int) -> None:
        self.image.grid(side, "TARGET.patch")
        if side % self.stride or self.side**2 * self.image.channels < 2:
            raise ValueError(
                f"TARGET.normalize patch needs patches of at least two values: TARGET.patch is {side} px and "
                f"TARGET.stride {self.stride}; use a larger patch, a smaller stride that divides it, or "
                "TARGET.normalize none"
            )

    def _check_window(self) -> None:
        if self.window < 3 or self.window % 2 == 0:
            raise ValueError(f"TARGET.window is {self.window}: it must be an odd number of entries, at least 3")
        if self.grid == (1, 1):
            raise ValueError(
                f"TARGET.stride {self.stride} leaves one entry of the image, which has no variance: use a "
                "smaller stride, or TARGET.normalize none"
            )


def _window_sizes(side: int, window: int) -> Tensor:
    """The number of entries in the window around each of `side` entries in a row."""
    index, reach = torch.arange(side), window // 2
    return ((index + reach).clamp(max=side - 1) - (index - reach).clamp(min=0) + 1).double()
