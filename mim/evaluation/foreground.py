"""Foreground without labels: patches on one side of the first principal component of their features.

Shapes: B images, D feature width, h w patches high and wide, K components.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from mim.ops.components import PrincipalComponents

COLOURS = 3


@dataclass(frozen=True, slots=True)
class Foreground:
    """The first component of all images' patches, and what differs among those of the foreground."""

    score_Bhw: Tensor  # float64, the first component; above 0 is foreground
    components_BhwK: Tensor  # float64, the first components of the foreground's patches alone
    share: float  # of the variance of all patches that the first component has

    @property
    def is_foreground_Bhw(self) -> Tensor:
        """bool, True for patches of the foreground."""
        return self.score_Bhw > 0


def find_foreground(map_BDhw: Tensor) -> Foreground:
    """Splits the patches of some images by their first principal component, one for all of these images.

    Foreground is where the component is above its mean. Which of its two signs that is no label says: here it is the
    one that patches at the border of the images have less of. Source: Oquab et al. 2024, DINOv2, arXiv:2304.07193,
    figure 1 (its sign was chosen by eye).
    """
    map_BhwD = rearrange(map_BDhw, "b d h w -> b h w d")
    first = PrincipalComponents.fit(map_BhwD.flatten(0, 2), 1)
    score_Bhw = first(map_BhwD)[..., 0]
    inner = torch.zeros(score_Bhw.shape[1:], dtype=torch.bool)
    inner[1:-1, 1:-1] = True
    if score_Bhw[:, ~inner].mean() > score_Bhw.mean():
        score_Bhw = -score_Bhw
    chosen_MD = map_BhwD.cpu()[score_Bhw > 0]
    among = PrincipalComponents.fit(chosen_MD if len(chosen_MD) else map_BhwD.flatten(0, 2), COLOURS)
    return Foreground(score_Bhw, among(map_BhwD), float(first.share_K[0]))
