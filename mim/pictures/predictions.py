"""Predictions: the sheets of a training run, one for each target.

Shapes: B batch, C channels, H W pixels, h w entries of the target.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mim.data.preprocess import Preprocess
from mim.data.transforms import to_unit
from mim.losses import Loss
from mim.model import MaskedImageModel
from mim.pictures.channels import view_of
from mim.pictures.components import component_colours
from mim.pictures.reconstructions import (
    Reconstruction,
    as_pixels,
    draw_sheet,
    masked_panels,
    panels_of,
    range_text,
    sentence,
)
from mim.pictures.sheets import Columns, Layout, Panel, Row, draw
from mim.structures import PatchMask


def draw_predictions(
    model: MaskedImageModel, preprocess: Preprocess, images_BCHW: Tensor, mask: PatchMask, title: str
) -> dict[str, Tensor]:
    """Sheets (H, W, 3) uint8 of what the mask hides of stored images: `reconstructions`.

    Where there are several targets, there is one for each: `reconstructions_pixels`, `reconstructions_hog`.
    """
    img_BCHW = preprocess(images_BCHW)
    output = model(img_BCHW, mask)
    predictions, targets = model.target.by_label(output.prediction), model.target.by_label(model.target(img_BCHW))
    sheets = {}
    for label, (target, prediction_BChw) in predictions.items():
        pixels = as_pixels(target, prediction_BChw, images_BCHW, img_BCHW, preprocess, output.mask)
        if pixels is not None:
            sheet = draw_sheet(pixels, title)
        else:
            maps = targets[label][1], model.loss.of(label).as_target(prediction_BChw.float())
            sheet = _draw_components(*maps, images_BCHW, output.mask, model.loss.of(label), target.name, title)
        sheets["_".join(filter(None, ("reconstructions", label)))] = sheet
    return sheets


def _draw_components(
    target_BChw: Tensor,
    prediction_BChw: Tensor,
    images_BCHW: Tensor,
    mask: PatchMask,
    loss: Loss,
    name: str,
    title: str,
) -> Tensor:
    """The sheet of a target that is no picture, by its principal components."""
    if loss.directions_only:
        target_BChw, prediction_BChw = (F.normalize(each.float(), dim=1) for each in (target_BChw, prediction_BChw))
    size = (images_BCHW.shape[-2], images_BCHW.shape[-1])
    target_BHW3, predicted_BHW3 = component_colours(target_BChw, prediction_BChw, size)
    stored = to_unit(images_BCHW).cpu()
    images = Reconstruction(stored, stored, mask.at(*size).cpu(), eight_bit=images_BCHW.dtype == torch.uint8)
    view = view_of(images.original_BCHW, images.eight_bit)
    pasted_BHW3 = np.where(images.hidden_BHW.numpy()[..., None], predicted_BHW3, target_BHW3)
    parts = (
        masked_panels(images, view, captions=False),
        [Panel(each_HW3) for each_HW3 in pasted_BHW3],
        [Panel(each_HW3) for each_HW3 in target_BHW3],
        panels_of(view, images.original_BCHW),
    )
    colours = f"Colours: the first three principal components of TARGET.name {name}, on one scale."
    return draw(
        Layout(
            columns=(Columns(("masked", "prediction + visible target", "target", "original")),),
            rows=tuple(Row(panels) for panels in zip(*parts, strict=True)),
            title=title,
            notes=(f"{range_text(images.share_B)} hidden.", colours, *sentence(view.note)),
        )
    )
