"""Sheets of what an encoder sees in images without training: components, foreground, attention.

Shapes: B images, C channels, H W pixels, D feature width, h w entries of a map, A attention heads, K components.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mim.ops.components import PrincipalComponents
from mim.pictures.channels import Channels, view_of
from mim.pictures.components import COLOURS, colour_range, colours_of
from mim.pictures.error_maps import ramp
from mim.pictures.reconstructions import panels_of, sentence
from mim.pictures.sheets import Columns, Layout, Panel, Row, draw

BACKGROUND = 0.15  # of the image that is left where it is no foreground; the rest is white
WIDEST = 10  # pictures beside each other, at most
MOST_HEADS = 16  # of an attention, on a sheet
PLURAL = {"head": "heads", "query": "queries"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownImages:
    """The images of a sheet, as they are stored but scaled to [0, 1], and what stands above and below them."""

    images_BCHW: Tensor  # float32 on the CPU
    names: Sequence[str]
    eight_bit: bool
    title: str  # the run
    channels: Channels = ()  # of view_of

    def panels(self) -> tuple[list[Panel], tuple[str, ...]]:
        """The images with their names below them, and a sentence on their colours where one is needed."""
        view = view_of(self.images_BCHW, self.eight_bit, self.channels)
        return panels_of(view, self.images_BCHW, self.names), tuple(sentence(view.note))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.images_BCHW.shape[2], self.images_BCHW.shape[3]


def draw_components(images: ShownImages, map_BDhw: Tensor, stride: int) -> Tensor:
    """The sheet (H, W, 3) uint8 of the first three principal components of feature maps, one projection for all."""
    pictures, notes = images.panels()
    map_BhwD = rearrange(map_BDhw, "b d h w -> b h w d")
    components = PrincipalComponents.fit(map_BhwD.flatten(0, 2), COLOURS)
    map_BhwK = components(map_BhwD)
    colours = [Panel(each) for each in colours_of(map_BhwK, colour_range(map_BhwK.flatten(0, 2)), images.size)]
    shares = ", ".join(f"{share:.0%}" for share in components.share_K.tolist())
    note = (
        f"Red, green and blue: the first three principal components of the features (stride {stride} px), fitted once "
        f"on all patches of {_count(len(map_BDhw))}. They have {shares} of the variance."
    )
    return _gallery(
        f"{images.title}: components of its patches", ("image", "components"), (pictures, colours), (note, *notes)
    )


def draw_foreground(images: ShownImages, score_Bhw: Tensor, components_BhwK: Tensor, share: float) -> Tensor:
    """The sheet of the split of patches by the first component; see mim/evaluation/foreground.py.

    Args:
        score_Bhw: the component; above 0 is foreground.
        components_BhwK: what is shown in colours where it is foreground.
        share: of the variance that the component has.
    """
    pictures, notes = images.panels()
    chosen_Bhw = score_Bhw > 0
    chosen_BHW1 = _enlarged(chosen_Bhw.float(), images.size).numpy()[..., None] > 0.5
    top = score_Bhw.abs().quantile(0.99).clamp(min=1e-12)
    scores = ramp(_enlarged((0.5 + score_Bhw / (2 * top)).clamp(0, 1), images.size).numpy())
    cut = [
        np.where(inside_HW1, panel.rgb_HW3, 255 - BACKGROUND * (255 - panel.rgb_HW3.astype(float))).astype(np.uint8)
        for panel, inside_HW1 in zip(pictures, chosen_BHW1, strict=True)
    ]
    range_of = components_BhwK[chosen_Bhw] if chosen_Bhw.any() else components_BhwK.flatten(0, 2)
    colours_BHW3 = colours_of(components_BhwK, colour_range(range_of), images.size)
    coloured_BHW3 = np.where(chosen_BHW1, colours_BHW3, 255).astype(np.uint8)
    note = (
        f"The first principal component of all patches of {_count(len(score_Bhw))} ({share:.0%} of the variance) parts "
        "foreground (above its mean, dark) from background; no label is used. Of its two signs the one is taken that "
        "leaves the border of the images in the background. Colours: components of the foreground's patches alone."
    )
    columns = ("image", "first component", "foreground", "its components")
    parts = (pictures, [Panel(each) for each in scores], [Panel(each) for each in cut])
    return _gallery(
        f"{images.title}: foreground without labels",
        columns,
        (*parts, [Panel(each) for each in coloured_BHW3]),
        (note, *notes),
    )


def draw_attention(images: ShownImages, shares_BAhw: Tensor, of: str, part: str = "head") -> Tensor:
    """The sheet of what a token or queries attend to: an image, the mean over heads, and heads, at most 16 of them.

    Args:
        images: as many as there are shares.
        shares_BAhw: the share of each patch, for each head or query.
        of: what attends, as in `the class token in the last block`.
        part: what A counts: `head` or `query`.
    """
    pictures, notes = images.panels()
    shares_BAhw, parts_of = shares_BAhw.float().cpu(), PLURAL[part]
    maps = [shares_BAhw.mean(dim=1), *shares_BAhw.unbind(1)[:MOST_HEADS]]
    parts = [pictures]
    for map_Bhw in maps:
        top_B = map_Bhw.flatten(1).amax(dim=1).clamp(min=1e-12)[:, None, None]
        parts.append([Panel(each) for each in ramp(_enlarged(map_Bhw / top_B, images.size).numpy())])
    patches = shares_BAhw.sum(dim=(2, 3)).mean()
    note = (
        f"Attention of {of}: the darker, the larger the share of a patch; each map from 0 to its own largest share. "
        f"All patches together take {patches:.0%} of the attention (mean over {parts_of} and images)."
    )
    if shares_BAhw.shape[1] > MOST_HEADS:
        note += f" The mean is over {shares_BAhw.shape[1]} {parts_of}; the first {MOST_HEADS} are drawn."
    titles = ("image", f"mean of {parts_of}", *(f"{part} {number}" for number in range(1, len(maps))))
    return _gallery(f"{images.title}: attention of {of}", titles, parts, (note, *notes))


def _gallery(title: str, titles: Sequence[str], parts: Sequence[Sequence[Panel]], notes: Sequence[str]) -> Tensor:
    """Images beside each other, as many as fit, each with its pictures under `titles`."""
    images = list(zip(*parts, strict=True))
    bands = -(-len(images) // max(1, WIDEST // len(titles)))
    across = -(-len(images) // bands)
    rows = []
    for start in range(0, len(images), across):
        beside = images[start : start + across]
        empty = [None] * (len(titles) * (across - len(beside)))
        rows.append(Row((*(panel for panels in beside for panel in panels), *empty)))
    columns = (Columns(tuple(titles)),) * across
    return draw(Layout(columns=columns, rows=tuple(rows), title=title, notes=tuple(notes)))


def _enlarged(map_Bhw: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(map_Bhw[:, None], list(size), mode="nearest")[:, 0]


def _count(images: int) -> str:
    return "1 image" if images == 1 else f"{images} images"
