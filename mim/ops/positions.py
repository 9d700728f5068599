"""Fixed sine-cosine position tables.

Shapes: N tokens in row-major order, D width, K prefix tokens.
"""

import torch
from torch import Tensor


def sincos_table(grid: tuple[int, int], width: int, num_prefix: int = 0) -> Tensor:
    """Table of shape (1, K + N, D), float32; the rows of prefix tokens are zero.

    The first half of the width encodes the column (x), the second the row (y); each half is a block of sines and
    then one of cosines, not interleaved. Computed in float64. Raises ValueError where 4 does not divide the width.

    Source: facebookresearch/mae, util/pos_embed.py (whose `emb_h` is the column). Differs from: grids need not be
    square.
    """
    if width % 4:
        raise ValueError(f"sine-cosine positions need a width that 4 divides, not {width}")
    frequency = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = torch.meshgrid(
        torch.arange(grid[0], dtype=torch.float64), torch.arange(grid[1], dtype=torch.float64), indexing="ij"
    )
    angles = [axis.reshape(-1, 1) * frequency for axis in (column, row)]
    table = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    prefix = torch.zeros(num_prefix, width, dtype=torch.float64)
    return torch.cat([prefix, table])[None].float()
