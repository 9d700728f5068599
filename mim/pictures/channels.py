"""How images with any number of channels are shown in red, green and blue.

Shapes: B batch, C channels, H W pixels, P pixels of all images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

Channels = Sequence[int] | Literal["pca"]


@dataclass(frozen=True, slots=True)
class View:
    """A linear map from channels to red, green and blue."""

    matrix_3C: Tensor
    low_B3: Tensor
    high_B3: Tensor
    note: str  # what a footnote must say, or empty

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """(B, H, W, 3) in [0, 1]."""
        low_B311, high_B311 = self.low_B3[..., None, None], self.high_B3[..., None, None]
        colours_B3HW = torch.einsum("kc,bchw->bkhw", self.matrix_3C, images_BCHW)
        colours_B3HW = (colours_B3HW - low_B311) / (high_B311 - low_B311).clamp(min=1e-12)
        return rearrange(colours_B3HW, "b k h w -> b h w k").clamp(0, 1)


def view_of(original_BCHW: Tensor, eight_bit: bool, channels: Channels = ()) -> View:
    """The view that suits images, and predictions of them. Raises ValueError for channels that the images do not have.

    Images of more than 8 bits rarely use the range of their type, so each image is stretched to its own range; with
    more than three channels, each channel by itself.

    Args:
        channels: one for grey, three for red, green and blue, or `pca`; by default the first three, or the first.
    """
    count = original_BCHW.shape[1]
    if channels == "pca":
        return _principal(original_BCHW)
    chosen = tuple(int(channel) for channel in channels) or (tuple(range(3)) if count >= 3 else (0,))
    if len(chosen) not in (1, 3) or not all(0 <= channel < count for channel in chosen):
        names = ",".join(map(str, chosen))
        raise ValueError(f"--channels {names}: name one, three, or pca; these images have channels 0 to {count - 1}")
    colours = list(chosen * (3 // len(chosen)))
    notes = [] if count == len(chosen) and not channels else [_named(chosen, count)]
    low_B3, high_B3 = torch.zeros(len(original_BCHW), 3), torch.ones(len(original_BCHW), 3)
    if not eight_bit:
        colours_B3P = rearrange(original_BCHW[:, colours], "b k h w -> b k (h w)")
        low_B3, high_B3 = ends(colours_B3P, 2)
        if count <= 3:  # colours of one picture
            low_B3, high_B3 = low_B3.amin(1, keepdim=True).expand(-1, 3), high_B3.amax(1, keepdim=True).expand(-1, 3)
        notes.append("contrast of each image stretched" if count <= 3 else "each stretched in each image")
    if original_BCHW.isnan().any():
        notes.append("missing pixels black")
    return View(torch.eye(count)[colours], low_B3, high_B3, ", ".join(notes))


def ends(values: Tensor, dim: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The least and the largest value along some axes, without NaN, which is a missing pixel; 0 where all are."""
    missing = values.isnan()
    empty = missing.all(dim)
    low, high = values.masked_fill(missing, torch.inf).amin(dim), values.masked_fill(missing, -torch.inf).amax(dim)
    return low.masked_fill(empty, 0.0), high.masked_fill(empty, 0.0)


def _named(chosen: tuple[int, ...], count: int) -> str:
    if len(chosen) == 1:
        return f"channel {chosen[0]} of {count} (counted from 0) shown in grey"
    return f"channels {', '.join(map(str, chosen))} of {count} (counted from 0) shown as red, green, blue"


def _principal(original_BCHW: Tensor) -> View:
    """The first three principal components of all pixels, each channel divided by its standard deviation."""
    from sklearn.decomposition import PCA  # slow to import, and few sheets need it

    count = original_BCHW.shape[1]
    if count < 3:
        raise ValueError(f"--channels pca needs images of at least 3 channels, and these have {count}")
    pixels_PC = rearrange(original_BCHW, "b c h w -> (b h w) c")
    pixels_PC = pixels_PC[~pixels_PC.isnan().any(dim=1)]
    deviation_C = pixels_PC.double().std(dim=0).clamp(min=1e-12)
    fitted = PCA(3).fit((pixels_PC.double() / deviation_C).numpy())
    matrix_3C = (torch.from_numpy(fitted.components_) / deviation_C).float()
    colours_P3 = pixels_PC @ matrix_3C.T
    low_B3, high_B3 = (end.expand(len(original_BCHW), 3) for end in (colours_P3.amin(dim=0), colours_P3.amax(dim=0)))
    description = f"the first three principal components of {count} channels shown as red, green, blue"
    share = fitted.explained_variance_ratio_.sum()
    return View(matrix_3C, low_B3, high_B3, f"{description} ({share:.0%} of their standardised variance)")
