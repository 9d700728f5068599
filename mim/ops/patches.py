"""The order of pixels inside a patch, defined here alone: (row, column, channel), as in the MAE paper's code.

Shapes: B batch, C channels, H W pixels, N patches in row-major order, p side of a patch, P = p * p * C.
"""

from einops import rearrange
from torch import Tensor


def patchify(map_BCHW: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) to (B, N, P). Source: facebookresearch/mae, models_mae.py, patchify."""
    return rearrange(map_BCHW, "b c (h p) (w q) -> b (h w) (p q c)", p=patch, q=patch)


def unpatchify(patches_BNP: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """(B, N, P) back to (B, C, H, W), for a grid of patches (high, wide) that need not be square."""
    return rearrange(patches_BNP, "b (h w) (p q c) -> b c (h p) (w q)", h=grid[0], w=grid[1], p=patch, q=patch)
