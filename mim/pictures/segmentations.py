"""A sheet of predicted masks: images, their true and their predicted masks, a colour for each class.

Shapes: N images, C channels, H W pixels, K classes, 3 red, green, blue.
"""

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from mim.pictures.channels import view_of
from mim.pictures.sheets import Columns, Layout, Panel, Row, draw
from mim.pictures.text_layout import font, shortened, width_of

IGNORED = (150, 150, 150)
FIRST = (  # no grey; those of Okabe and Ito, which the colour-blind can tell apart, then two more
    *((0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167), (255, 255, 255), (110, 60, 20)),
)
GOLDEN = 0.618034  # of a turn, from colour to colour: neighbours are far apart
NAMED = 40  # classes in the legend
LETTER, SWATCH, SPACE, EDGE = 15, 14, 16, 24  # of the legend, in pixels
ABSENT = -1


def draw_segmentations(
    images_NCHW: Tensor, truth_NHW: Tensor, answers_NHW: Tensor, names: Sequence[str], title: str, note: str = ""
) -> Tensor:
    """A labelled sheet (H, W, 3) uint8: a row for each image, with its true and its predicted mask.

    Below a predicted mask stands the share of its pixels that is right; below all the classes that a mask shows.

    Args:
        images_NCHW: in [0, 1], of the size of the masks.
        truth_NHW: the class of each pixel, -1 where it is ignored; these pixels are grey in both masks.

    Raises ValueError where images and masks differ in number or size.
    """
    size = (len(images_NCHW), *images_NCHW.shape[2:])
    if not size[0] or not tuple(truth_NHW.shape) == tuple(answers_NHW.shape) == size:
        shapes = [tuple(each.shape) for each in (images_NCHW, truth_NHW, answers_NHW)]
        raise ValueError(f"a sheet needs images and masks of one number and size, not {shapes}")
    images_NCHW, truth_NHW, answers_NHW = images_NCHW.cpu().float(), truth_NHW.cpu(), answers_NHW.cpu()
    colours_K3 = np.array([*map(colour_of, range(len(names))), IGNORED], dtype=np.uint8)  # -1 is the last
    view = view_of(images_NCHW, eight_bit=True)
    pictures_NHW3 = (view(images_NCHW) * 255).round().byte().numpy()
    answers_NHW = answers_NHW.masked_fill(truth_NHW == ABSENT, ABSENT)
    rows = [
        Row((Panel(picture_HW3), Panel(colours_K3[truth_HW]), Panel(colours_K3[said_HW], _caption(truth_HW, said_HW))))
        for picture_HW3, truth_HW, said_HW in zip(pictures_NHW3, truth_NHW.numpy(), answers_NHW.numpy(), strict=True)
    ]
    columns = (Columns(("image", "true mask", "predicted mask")),)
    sheet_HW3 = draw(
        Layout(columns=columns, rows=tuple(rows), title=title, notes=tuple(filter(None, (note, view.note))))
    )
    classes = torch.cat([truth_NHW.flatten(), answers_NHW.flatten()]).unique().tolist()
    legend_HW3 = _legend(
        [number for number in classes if number != ABSENT], names, ABSENT in classes, sheet_HW3.shape[1]
    )
    return torch.cat([sheet_HW3, legend_HW3])


def colour_of(number: int) -> tuple[int, int, int]:
    """The colour of a class, red, green and blue; never the grey of ignored pixels."""
    if number < len(FIRST):
        return FIRST[number]
    turn = (number * GOLDEN) % 1
    light = (0.9, 0.65, 0.5)[number % 3]
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(turn, (0.55, 0.85)[number % 2], light))
    return red, green, blue


def _caption(truth_HW: np.ndarray, said_HW: np.ndarray) -> str:
    known_HW = truth_HW != ABSENT
    return f"{(truth_HW == said_HW)[known_HW].mean():.1%} right" if known_HW.any() else "all ignored"


def _legend(classes: Sequence[int], names: Sequence[str], ignored: bool, width: int) -> Tensor:
    """A strip (H, width, 3): a square of its colour and the name of each class, line by line."""
    entries = [(colour_of(number), names[number]) for number in classes[:NAMED]]
    entries += [(IGNORED, "ignored")] if ignored else []
    places, left, top = [], EDGE, 0
    for colour, name in entries:
        text = shortened(name, width - 2 * EDGE - 2 * SWATCH, LETTER)
        wide = round(SWATCH * 1.5 + width_of(text, LETTER))
        if left > EDGE and left + wide > width - EDGE:
            left, top = EDGE, top + round(1.5 * LETTER)
        places.append((left, top, colour, text))
        left += wide + SPACE
    more = f"and {len(classes) - NAMED} more classes" if len(classes) > NAMED else ""
    strip = Image.new("RGB", (width, top + round(1.5 * LETTER) * (2 if more else 1) + EDGE // 2), "white")
    pen = ImageDraw.Draw(strip)
    for left, top, colour, text in places:
        pen.rectangle((left, top, left + SWATCH, top + SWATCH), fill=colour, outline=(120, 120, 120))
        pen.text(xy=(left + 1.5 * SWATCH, top + SWATCH - 1), text=text, fill="black", font=font(LETTER), anchor="ls")
    if more:
        pen.text(xy=(EDGE, top + round(2.4 * LETTER)), text=more, fill="black", font=font(LETTER), anchor="ls")
    return torch.from_numpy(np.array(strip))
