"""Reconstructions: what a model sees, what it predicts, and what was there.

Shapes: B batch, C channels, H W pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from mim.data.transforms import Normalize
from mim.model import MaskedImageModel
from mim.structures import PatchMask

GREY = 0.5
SIDE, GAP, EDGE, TOP, BOTTOM = 1.25, 0.25, 0.15, 0.52, 0.32  # inches on a sheet


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """Images in stored units scaled to [0, 1], (B, C, H, W) on the CPU; note: what a caption must say."""

    masked_BCHW: Tensor
    pasted_BCHW: Tensor
    original_BCHW: Tensor
    note: str


def reconstruct(
    model: MaskedImageModel, normalize: Normalize, images_BCHW: Tensor, mask: PatchMask
) -> Reconstruction | None:
    """Predicts what the mask hides and pastes the visible pixels in. None where the target is no picture.

    images_BCHW: stored images on the model's device.
    """
    img_BCHW = normalize(images_BCHW)
    prediction_BCHW = model(img_BCHW, mask).prediction.float()
    predicted_BCHW = model.target.to_pixels(prediction_BCHW, img_BCHW)
    if predicted_BCHW is None:
        return None
    hidden_B1HW = mask.at(*img_BCHW.shape[-2:])[:, None]
    original_BCHW = normalize.undo(img_BCHW)
    pasted_BCHW = torch.where(hidden_B1HW, normalize.undo(predicted_BCHW), original_BCHW)
    masked_BCHW = torch.where(hidden_B1HW, torch.full_like(original_BCHW, GREY), original_BCHW)
    parts = [masked_BCHW, pasted_BCHW, original_BCHW]
    share = 100 * hidden_B1HW.float().mean().item()
    note = f"{share:.0f}% hidden"
    if model.target.borrowed:
        note += f"; the prediction borrows the {model.target.borrowed}"
    if images_BCHW.dtype != torch.uint8:  # microscopes rarely use the whole range of their type
        low_B111, high_B111 = original_BCHW.amin((1, 2, 3), keepdim=True), original_BCHW.amax((1, 2, 3), keepdim=True)
        parts = [(part - low_B111) / (high_B111 - low_B111).clamp(min=1e-12) for part in parts]
        parts[0] = torch.where(hidden_B1HW, GREY, parts[0])
        note += "; contrast stretched"
    masked_BCHW, pasted_BCHW, original_BCHW = (part.cpu() for part in parts)
    return Reconstruction(masked_BCHW, pasted_BCHW, original_BCHW, note)


def draw_sheet(shown: Reconstruction, title: str) -> Tensor:
    """A labelled sheet (H, W, 3) uint8: a triple an image, masked, prediction with visible cells, original.

    Four images or more stand in two columns of triples. Images of 1 or 2 channels are shown in grey (the first
    channel), others by their first three as red, green, blue.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only pictures need it
    from matplotlib.figure import Figure

    parts = {"masked": shown.masked_BCHW, "prediction + visible": shown.pasted_BCHW, "original": shown.original_BCHW}
    count, channels, height, width = shown.original_BCHW.shape
    columns = 1 if count < 4 else 2
    rows = -(-count // columns)
    wide, high = columns * 3 * SIDE + (columns - 1) * GAP + 2 * EDGE, rows * SIDE * height / width + TOP + BOTTOM
    figure = Figure(figsize=(wide, high), dpi=150)
    for place in range(count):
        column, row = divmod(place, rows)
        for number, (name, images_BCHW) in enumerate(parts.items()):
            left = EDGE + column * (3 * SIDE + GAP) + number * SIDE
            bottom = high - TOP - (row + 1) * SIDE * height / width
            box = (left / wide, bottom / high, 0.97 * SIDE / wide, 0.97 * SIDE * height / width / high)
            axes = figure.add_axes(box)
            axes.imshow(_rgb(images_BCHW[place]).numpy(), interpolation="nearest")
            axes.set_axis_off()
            if row == 0:
                axes.set_title(name, fontsize=7.5, pad=3)
    note = shown.note
    if channels not in (1, 3):
        note += f"; channels 0, 1, 2 of {channels}" if channels > 3 else f"; channel 0 of {channels}"
    figure.text(0.5, 1 - 0.1 / high, title, ha="center", va="top", fontsize=9, fontweight="bold")
    figure.text(0.5, 0.1 / high, note, ha="center", va="bottom", fontsize=7)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _rgb(image_CHW: Tensor) -> Tensor:
    """(H, W, 3) in [0, 1]."""
    shown_CHW = image_CHW[:3] if len(image_CHW) >= 3 else image_CHW[:1].expand(3, -1, -1)
    return rearrange(shown_CHW, "c h w -> h w c").clamp(0, 1)
