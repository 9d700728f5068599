"""AvgDist: how far hidden pixels lie from the nearest visible one.

Source: SimMIM, section 4.1.2. Shapes: B samples, H W pixels, R rows of cells, each P pixels high
(of a pixel map R = H and P = 1).
"""

from collections.abc import Iterator

import torch
from einops import rearrange
from torch import Tensor

from mim.maskers import Masker
from mim.ops.intervals import Estimate, estimate
from mim.ops.seeding import generator_for
from mim.structures import ImageSpec, PatchMask

PIXELS_AT_ONCE = 2**18  # of a chunk of samples, which then fits into a cache; larger samples go one by one


def pixel_distances(mask: PatchMask, height: int, width: int) -> Tensor:
    """Distance of every pixel to the nearest visible pixel, (B, height, width) float32 in pixels; 0 where visible.

    Exact and Euclidean, from pixel centre to pixel centre. On the mask's device, with a host sync.

    Raises ValueError where the mask does not fit the image, or a sample has nothing visible.
    """
    return torch.cat([_distances(hidden_BRW, height) for hidden_BRW in _chunks(mask, height, width)])


def avg_dist(mask: PatchMask, height: int, width: int) -> Tensor:
    """AvgDist of each sample: the mean of pixel_distances over its hidden pixels, (B,) float32 in pixels.

    Raises ValueError as pixel_distances does, and where a sample has nothing hidden.
    """
    means = []
    for hidden_BRW in _chunks(mask, height, width):
        hidden_B = hidden_BRW.sum(dim=(1, 2)) * (height // hidden_BRW.shape[1])
        if int(hidden_B.min()) == 0:  # host sync
            raise ValueError("AvgDist is a mean over hidden pixels: a sample has none")
        means.append(_distances(hidden_BRW, height).double().sum(dim=(1, 2)) / hidden_B)
    return torch.cat(means).float()


def masker_avg_dist(masker: Masker, image: ImageSpec, samples: int = 256, seed: int = 0) -> Estimate:
    """AvgDist of a masker in pixels: the mean over sampled masks, with its 95% interval. Computed on the CPU.

    Each mask has the same weight. SimMIM does not say whether it averages over masks or over all hidden pixels; both
    are equal here, because a masker hides the same number of cells in every sample.

    Raises ValueError where `samples` is below 1.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}: at least 1 mask must be drawn")
    device = torch.device("cpu")
    mask = masker.sample(samples, generator_for(device, seed, "avg dist"), device)
    return estimate(avg_dist(mask, image.height, image.width).tolist())


def _chunks(mask: PatchMask, height: int, width: int) -> Iterator[Tensor]:
    """The mask with a column for each pixel and a row for each cell, a few samples at a time.

    So memory does not grow with the batch, and equal rows of pixels are computed once.
    """
    rows, columns = mask.hidden_BHW.shape[1:]
    has_cells = height % rows == 0 and width % columns == 0
    step = max(1, PIXELS_AT_ONCE // (height * width))
    for start in range(0, len(mask.hidden_BHW), step):
        yield mask.rows(start, start + step).at(rows if has_cells else height, width)


def _distances(hidden_BRW: Tensor, height: int) -> Tensor:
    """Squared distances are separable: first the nearest visible pixel within each row, then the best row.

    Rows are tried outwards from the row of each pixel. A row that is as far away as the largest distance so far cannot
    be nearer, so the work grows with the distances and not with the height.
    """
    _, rows, width = hidden_BRW.shape
    high, far = height // rows, height + width  # far means no visible pixel: no two pixels are so far apart
    squared_BR1W = _within_rows(hidden_BRW, far).square()[:, :, None]
    nearest_BRPW = squared_BR1W.repeat(1, 1, high, 1)
    down_P1 = torch.arange(1, high + 1, dtype=torch.int32, device=hidden_BRW.device)[:, None]
    for apart in range(1, rows):
        skipped = (apart - 1) * high  # pixels between two rows of cells
        if (skipped + 1) ** 2 >= int(nearest_BRPW.max()):  # host sync
            break
        lower_BRPW, upper_BRPW = nearest_BRPW[:, apart:], nearest_BRPW[:, :-apart]
        torch.minimum(lower_BRPW, squared_BR1W[:, :-apart] + (skipped + down_P1).square(), out=lower_BRPW)
        torch.minimum(upper_BRPW, squared_BR1W[:, apart:] + (skipped + down_P1.flip(0)).square(), out=upper_BRPW)
    if int(nearest_BRPW.max()) >= far**2:
        raise ValueError("distances are to the nearest visible pixel: a sample has none")
    return rearrange(nearest_BRPW, "b r p w -> b (r p) w").float().sqrt()


def _within_rows(hidden_BRW: Tensor, far: int) -> Tensor:
    """Pixels to the nearest visible one of the same row, int32; `far` where there is none."""
    width = hidden_BRW.shape[2]
    column_W = torch.arange(width, dtype=torch.int32, device=hidden_BRW.device)
    left_BRW = torch.where(hidden_BRW, -far, column_W).cummax(dim=2).values
    right_BRW = torch.where(hidden_BRW, width + far, column_W).flip(2).cummin(dim=2).values.flip(2)
    return torch.minimum(column_W - left_BRW, right_BRW - column_W).clamp(max=far)
