"""Reconstructions: what a model sees, what it predicts, what was there, and the sheets that show it.

Shapes: B batch, C channels, H W pixels, h w entries of the target.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mim.data.preprocess import Preprocess
from mim.data.transforms import to_unit
from mim.model import MaskedImageModel
from mim.pictures.channels import Channels, View, ends, view_of
from mim.pictures.error_maps import error_colours, scale_of
from mim.pictures.sheets import Bar, Columns, Layout, Panel, Row, draw
from mim.structures import PatchMask
from mim.targets import Target

GREY = 0.5
TENSORS = ("original_BCHW", "prediction_BCHW", "hidden_BHW")
MARKS = "†‡§¶"
UNEQUAL = ", so its error does not compare with that of a run that borrows nothing"
UNTRAINED = "Predictions were trained on hidden pixels only; where the image was visible they mean nothing."


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """Images and what a model predicts of them, in stored units, integers scaled to [0, 1]; on the CPU."""

    original_BCHW: Tensor
    prediction_BCHW: Tensor
    hidden_BHW: Tensor  # bool, True where the model did not see
    eight_bit: bool = True
    borrowed: str = ""  # what the prediction takes from the true image, or empty
    hidden_only: bool = False  # whether the loss counted hidden pixels only

    @property
    def masked_BCHW(self) -> Tensor:
        """What the model sees, grey where hidden."""
        return torch.where(self.hidden_BHW[:, None], GREY, self.original_BCHW)

    @property
    def pasted_BCHW(self) -> Tensor:
        """The prediction where hidden, the original where visible."""
        return torch.where(self.hidden_BHW[:, None], self.prediction_BCHW, self.original_BCHW)

    @property
    def error_BHW(self) -> Tensor:
        """Absolute error in `unit`, mean over channels; NaN where visible or missing."""
        error_BCHW = (self.prediction_BCHW - self.original_BCHW).abs()
        if self.eight_bit:
            return torch.where(self.hidden_BHW, 255 * error_BCHW.mean(dim=1), torch.nan)
        low_C, high_C = ends(self.original_BCHW, (0, 2, 3))
        varying_C = high_C > low_C  # a channel without a range has no share of it
        share_BCHW = error_BCHW[:, varying_C] / (high_C - low_C)[varying_C, None, None]
        return torch.where(self.hidden_BHW, 100 * share_BCHW.sum(dim=1) / max(int(varying_C.sum()), 1), torch.nan)

    @property
    def error_B(self) -> Tensor:
        """The mean of `error_BHW` over the hidden pixels of each image that are not missing."""
        return self.error_BHW.nanmean(dim=(1, 2))

    @property
    def unit(self) -> str:  # of errors
        if self.eight_bit:
            return "levels of 255"
        return "% of the range" if self.original_BCHW.shape[1] == 1 else "% of each channel's range"

    @property
    def share_B(self) -> Tensor:  # of each image that is hidden
        return self.hidden_BHW.float().mean(dim=(1, 2))

    def rows(self, indices: Sequence[int]) -> "Reconstruction":
        """Some of the images, in the order of the indices."""
        return replace(self, **{name: getattr(self, name)[list(indices)] for name in TENSORS})

    @classmethod
    def joined(cls, parts: Sequence["Reconstruction"]) -> "Reconstruction":
        """Reconstructions by one model, one after the other."""
        tensors: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in TENSORS}
        return replace(parts[0], **tensors)


def predict_pixels(
    model: MaskedImageModel, preprocess: Preprocess, images_BCHW: Tensor, mask: PatchMask
) -> Reconstruction | None:
    """Predicts what the mask hides of stored images, all on the model's device. None where the target is no picture.

    Of several targets, the first that is a picture.
    """
    img_BCHW = preprocess(images_BCHW)
    output = model(img_BCHW, mask)
    for target, prediction_BChw in model.target.by_label(output.prediction).values():
        pixels = as_pixels(target, prediction_BChw, images_BCHW, img_BCHW, preprocess, output.mask)
        if pixels is not None:
            return replace(pixels, hidden_only=model.loss.over == "hidden")
    return None


def as_pixels(
    target: Target,
    prediction_BChw: Tensor,
    images_BCHW: Tensor,
    img_BCHW: Tensor,
    preprocess: Preprocess,
    mask: PatchMask,
) -> Reconstruction | None:
    """What was predicted of a target as pixels; None where it is no picture."""
    predicted_BCHW = target.to_pixels(prediction_BChw.float(), img_BCHW)
    if predicted_BCHW is None:
        return None
    return Reconstruction(
        to_unit(images_BCHW).cpu(),
        preprocess.undo(predicted_BCHW).cpu(),
        mask.at(*img_BCHW.shape[-2:]).cpu(),
        eight_bit=images_BCHW.dtype == torch.uint8,
        borrowed=target.borrowed,
    )


def draw_sheet(images: Reconstruction, title: str) -> Tensor:
    """The sheet of a training run, (H, W, 3) uint8: masked, prediction with visible pixels, original of each image."""
    view = view_of(images.original_BCHW, images.eight_bit)
    count = len(images.original_BCHW)
    blocks = 1 if count < 4 else 2  # columns of triples
    high = -(-count // blocks)
    masked, pasted = masked_panels(images, view, captions=False), panels_of(view, images.pasted_BCHW)
    parts = (masked, pasted, panels_of(view, images.original_BCHW))
    rows = []
    for row in range(high):
        indices = [row + block * high for block in range(blocks)]
        rows.append(Row(tuple(part[index] if index < count else None for index in indices for part in parts)))
    triple = Columns(("masked", "prediction + visible", "original"))
    notes = (f"{range_text(images.share_B)} hidden.", *_borrowing({"": images}), *sentence(view.note))
    return draw(Layout(columns=(triple,) * blocks, rows=tuple(rows), title=title, notes=notes))


def draw_rows(
    runs: Mapping[str, Reconstruction], names: Sequence[str], channels: Channels = (), notes: Sequence[str] = ()
) -> Tensor:
    """A sheet (H, W, 3) uint8: a row for each image and mask, three columns for each run after the first two.

    All runs, by name, are of the same images under the same masks; `names` are those of the images. The rows of one
    image follow each other. Raises ValueError for channels that the images do not have.
    """
    first = next(iter(runs.values()))
    view = view_of(first.original_BCHW, first.eight_bit, channels)
    masks = len(first.original_BCHW) // len(names)
    top, open_end = scale_of(torch.stack([run.error_BHW for run in runs.values()]))
    originals = panels_of(view, first.original_BCHW, [name for name in names for _ in range(masks)])
    columns, parts = [Columns(("original", "masked"))], [originals, masked_panels(first, view)]
    for name, run in runs.items():
        columns.append(Columns(("prediction", "prediction + visible", "error"), name + _mark(runs, run)))
        errors = [
            Panel(error_colours(error_HW, top), f"mean {_number(error)}")
            for error_HW, error in zip(run.error_BHW, run.error_B.tolist(), strict=True)
        ]
        parts += [panels_of(view, run.prediction_BCHW), panels_of(view, run.pasted_BCHW), errors]
    rows = []
    for index, panels in enumerate(zip(*parts, strict=True)):
        same_image = index % masks > 0
        rows.append(Row((None, *panels[1:]) if same_image else panels, apart=masks > 1 and not same_image))
    untrained = [UNTRAINED] if all(run.hidden_only for run in runs.values()) else []
    notes = (*notes, *_borrowing(runs), *untrained, *sentence(view.note))
    bar = Bar(f"absolute error, {first.unit}", top, open_end)
    return draw(Layout(columns=tuple(columns), rows=tuple(rows), notes=notes, bar=bar))


def draw_columns(runs: Mapping[str, Reconstruction]) -> Tensor:
    """A sheet (H, W, 3) uint8 for a page: a column for each image, a row for each run below the first two."""
    first = next(iter(runs.values()))
    view = view_of(first.original_BCHW, first.eight_bit)
    masked = Row(tuple(masked_panels(first, view, captions=False)), f"masked, {range_text(first.share_B)} hidden")
    rows = [Row(tuple(panels_of(view, first.original_BCHW)), "original"), masked]
    for name, run in runs.items():
        captions = [f"error {_number(error)}" for error in run.error_B.tolist()]
        rows.append(Row(tuple(panels_of(view, run.pasted_BCHW, captions)), name + _mark(runs, run)))
    error = f"Error: mean absolute error over hidden pixels, {first.unit}."
    notes = ("Visible pixels are pasted into predictions.", error, *_borrowing(runs), *sentence(view.note))
    columns = (Columns(("",) * len(first.original_BCHW)),)
    return draw(Layout(columns=columns, rows=tuple(rows), notes=notes, letters=1.35, density=3))


def panels_of(view: View, images_BCHW: Tensor, captions: Sequence[str] = ()) -> list[Panel]:
    """A panel for each image."""
    rgb_BHW3 = (view(images_BCHW) * 255).nan_to_num().round().to(torch.uint8).numpy()
    return [Panel(rgb_HW3, captions[index] if captions else "") for index, rgb_HW3 in enumerate(rgb_BHW3)]


def masked_panels(images: Reconstruction, view: View, captions: bool = True) -> list[Panel]:
    """Hidden pixels are grey, whatever the view makes of grey."""
    grey, panels = np.uint8(round(GREY * 255)), panels_of(view, images.original_BCHW)
    return [
        Panel(np.where(hidden_HW[..., None], grey, panel.rgb_HW3), f"{percent(share)} hidden" if captions else "")
        for panel, hidden_HW, share in zip(panels, images.hidden_BHW.numpy(), images.share_B.tolist(), strict=True)
    ]


def percent(share: float) -> str:
    """A share as text: 75%, 62.5%."""
    return f"{100 * share:.3g}%"


def _number(error: float) -> str:
    return f"{error:.1f}" if error >= 1 else f"{error:.2g}"


def range_text(share_B: Tensor) -> str:
    """Shares as text: 75%, or 70% to 80%."""
    low, high = percent(share_B.min().item()), percent(share_B.max().item())
    return low if low == high else f"{low} to {high}"


def _mark(runs: Mapping[str, Reconstruction], run: Reconstruction) -> str:
    """Leads from the name of a run to the footnote on what it borrows."""
    borrowed = list(dict.fromkeys(each.borrowed for each in runs.values() if each.borrowed))
    return f" {MARKS[borrowed.index(run.borrowed) % len(MARKS)]}" if run.borrowed and len(runs) > 1 else ""


def _borrowing(runs: Mapping[str, Reconstruction]) -> list[str]:
    borrowed = {run.borrowed: run for run in runs.values() if run.borrowed}
    if len(runs) == 1:
        return [f"The prediction borrows the {text}." for text in borrowed]
    unequal = UNEQUAL if len({run.borrowed for run in runs.values()}) > 1 else ""
    return [f"{_mark(runs, run).strip()} The prediction borrows the {text}{unequal}." for text, run in borrowed.items()]


def sentence(note: str) -> list[str]:
    """A note as a sentence, or no sentence."""
    return [note[0].upper() + note[1:] + "."] if note else []
