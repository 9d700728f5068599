"""Reconstructions: what a model sees, what it predicts, and what was there.

Shapes: B batch, C channels, H W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mim.data.transforms import Normalize, to_unit
from mim.model import MaskedImageModel
from mim.pictures.channels import Channels, View, view_of
from mim.pictures.error_maps import error_colours, scale_of
from mim.pictures.sheets import Bar, Columns, Layout, Panel, Row, draw
from mim.structures import PatchMask

GREY = 0.5
MARKS = "†‡§¶"
UNEQUAL = ", so that its error does not compare with that of a run that borrows nothing"
UNTRAINED = "Predictions were trained on hidden pixels alone; where the image was visible they mean nothing."


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """Images and what a model predicts of them, in stored units, integers scaled to [0, 1]; on the CPU.

    hidden_BHW: bool, what the model did not see; eight_bit: images are stored in 8 bits; borrowed: what of the true
    image the prediction takes, in words, or empty; hidden_only: the loss asked for hidden pixels alone.
    """

    original_BCHW: Tensor
    prediction_BCHW: Tensor
    hidden_BHW: Tensor
    eight_bit: bool = True
    borrowed: str = ""
    hidden_only: bool = False

    @property
    def masked_BCHW(self) -> Tensor:
        """What the model sees, grey where hidden."""
        return torch.where(self.hidden_BHW[:, None], GREY, self.original_BCHW)

    @property
    def pasted_BCHW(self) -> Tensor:
        """The prediction with the visible pixels pasted in."""
        return torch.where(self.hidden_BHW[:, None], self.prediction_BCHW, self.original_BCHW)

    @property
    def error_BHW(self) -> Tensor:
        """Absolute error in `unit`, mean over channels; NaN where visible."""
        error_BCHW = (self.prediction_BCHW - self.original_BCHW).abs()
        if self.eight_bit:
            return torch.where(self.hidden_BHW, 255 * error_BCHW.mean(dim=1), torch.nan)
        low_C, high_C = self.original_BCHW.amin((0, 2, 3)), self.original_BCHW.amax((0, 2, 3))
        varying_C = high_C > low_C  # a channel without a range has no share of it
        share_BCHW = error_BCHW[:, varying_C] / (high_C - low_C)[varying_C, None, None]
        return torch.where(self.hidden_BHW, 100 * share_BCHW.sum(dim=1) / max(int(varying_C.sum()), 1), torch.nan)

    @property
    def error_B(self) -> Tensor:
        """The mean of `error_BHW` over the hidden pixels of each image."""
        hidden_only_BHW = torch.where(self.hidden_BHW, self.error_BHW, 0)
        return hidden_only_BHW.sum(dim=(1, 2)) / self.hidden_BHW.sum(dim=(1, 2))

    @property
    def unit(self) -> str:
        """Of errors."""
        if self.eight_bit:
            return "levels of 255"
        return "% of the range" if self.original_BCHW.shape[1] == 1 else "% of each channel's range"

    @property
    def share_B(self) -> Tensor:
        """Hidden share of each image."""
        return self.hidden_BHW.float().mean(dim=(1, 2))

    def rows(self, order: Sequence[int]) -> "Reconstruction":
        """The same of some images, in that order."""
        places = list(order)
        return replace(
            self,
            original_BCHW=self.original_BCHW[places],
            prediction_BCHW=self.prediction_BCHW[places],
            hidden_BHW=self.hidden_BHW[places],
        )

    @classmethod
    def joined(cls, parts: Sequence["Reconstruction"]) -> "Reconstruction":
        """One model's, of one kind of image, one behind the other."""
        return replace(
            parts[0],
            original_BCHW=torch.cat([part.original_BCHW for part in parts]),
            prediction_BCHW=torch.cat([part.prediction_BCHW for part in parts]),
            hidden_BHW=torch.cat([part.hidden_BHW for part in parts]),
        )


def reconstruct(
    model: MaskedImageModel, normalize: Normalize, images_BCHW: Tensor, mask: PatchMask
) -> Reconstruction | None:
    """Predicts what the mask hides. None where the target is no picture.

    images_BCHW: stored images on the model's device.
    """
    img_BCHW = normalize(images_BCHW)
    prediction_BCHW = model(img_BCHW, mask).prediction.float()
    predicted_BCHW = model.target.to_pixels(prediction_BCHW, img_BCHW)
    if predicted_BCHW is None:
        return None
    return Reconstruction(
        to_unit(images_BCHW).cpu(),
        normalize.undo(predicted_BCHW).cpu(),
        mask.at(*img_BCHW.shape[-2:]).cpu(),
        eight_bit=images_BCHW.dtype == torch.uint8,
        borrowed=model.target.borrowed,
        hidden_only=model.loss.over == "hidden",
    )


# -------------------------------------------------------------------- three sheets of one kind


def draw_sheet(shown: Reconstruction, title: str) -> Tensor:
    """The picture of a training run, (H, W, 3) uint8: masked, prediction with visible pixels, original of each image.

    Four images or more stand in two columns of triples.
    """
    view = view_of(shown.original_BCHW, shown.eight_bit)
    count = len(shown.original_BCHW)
    blocks = 1 if count < 4 else 2
    high = -(-count // blocks)
    parts = (
        _masked(shown, view, worded=False),
        _pictures(view, shown.pasted_BCHW),
        _pictures(view, shown.original_BCHW),
    )
    rows = []
    for row in range(high):
        places = [row + block * high for block in range(blocks)]
        rows.append(Row(tuple(part[place] if place < count else None for place in places for part in parts)))
    triple = Columns(("masked", "prediction + visible", "original"))
    notes = (f"{_range(shown.share_B)} hidden.", *_borrowing({"": shown}), *_sentence(view.words))
    return draw(Layout(columns=(triple,) * blocks, rows=tuple(rows), title=title, notes=notes))


def draw_rows(
    runs: Mapping[str, Reconstruction], names: Sequence[str], channels: Channels = (), notes: Sequence[str] = ()
) -> Tensor:
    """A sheet (H, W, 3) uint8 with a row for each image and mask, and three columns for each run beside the first two.

    runs: by name, all of the same images under the same masks; names: of the images, each of which stands in as many
    rows, one behind the other, as there are masks. Raises ValueError for channels that the images do not have.
    """
    first = next(iter(runs.values()))
    view = view_of(first.original_BCHW, first.eight_bit, channels)
    masks = len(first.original_BCHW) // len(names)
    top, open_end = scale_of(torch.stack([shown.error_BHW for shown in runs.values()]))
    originals = _pictures(view, first.original_BCHW, [name for name in names for _ in range(masks)])
    columns, parts = [Columns(("original", "masked"))], [originals, _masked(first, view)]
    for name, shown in runs.items():
        columns.append(Columns(("prediction", "prediction + visible", "error"), name + _mark(runs, shown)))
        parts += [_pictures(view, shown.prediction_BCHW), _pictures(view, shown.pasted_BCHW), _errors(shown, top)]
    rows = []
    for place, panels in enumerate(zip(*parts, strict=True)):
        again = place % masks > 0
        rows.append(Row((None, *panels[1:]) if again else panels, apart=masks > 1 and not again))
    untrained = [UNTRAINED] if all(shown.hidden_only for shown in runs.values()) else []
    notes = (*notes, *_borrowing(runs), *untrained, *_sentence(view.words))
    bar = Bar(f"absolute error, {first.unit}", top, open_end)
    return draw(Layout(columns=tuple(columns), rows=tuple(rows), notes=notes, bar=bar))


def draw_columns(runs: Mapping[str, Reconstruction]) -> Tensor:
    """A sheet (H, W, 3) uint8 with a column for each image and a row for each run below the first two, for a page.

    runs: by name, all of the same images under the same masks.
    """
    first = next(iter(runs.values()))
    view = view_of(first.original_BCHW, first.eight_bit)
    rows = [
        Row(tuple(_pictures(view, first.original_BCHW)), "original"),
        Row(tuple(_masked(first, view, worded=False)), f"masked, {_range(first.share_B)} hidden"),
    ]
    for name, shown in runs.items():
        words = [f"error {_figure(error)}" for error in shown.error_B.tolist()]
        rows.append(Row(tuple(_pictures(view, shown.pasted_BCHW, words)), name + _mark(runs, shown)))
    error = f"Error: mean absolute error over hidden pixels, {first.unit}."
    notes = ("Visible pixels are pasted into predictions.", error, *_borrowing(runs), *_sentence(view.words))
    columns = (Columns(("",) * len(first.original_BCHW)),)
    return draw(Layout(columns=columns, rows=tuple(rows), notes=notes, letters=1.35, density=3))


def _pictures(view: View, images_BCHW: Tensor, words: Sequence[str] = ()) -> list[Panel]:
    shown = (view(images_BCHW) * 255).nan_to_num().round().to(torch.uint8).numpy()
    return [Panel(rgb_HW3, words[place] if words else "") for place, rgb_HW3 in enumerate(shown)]


def _errors(shown: Reconstruction, top: float) -> list[Panel]:
    return [
        Panel(error_colours(error_HW, top), f"mean {_figure(error)}")
        for error_HW, error in zip(shown.error_BHW, shown.error_B.tolist(), strict=True)
    ]


def _figure(error: float) -> str:
    return f"{error:.1f}" if error >= 1 else f"{error:.2g}"


def _masked(shown: Reconstruction, view: View, worded: bool = True) -> list[Panel]:
    """Grey is grey whatever the view makes of it."""
    grey, panels = np.uint8(round(GREY * 255)), _pictures(view, shown.original_BCHW)
    return [
        Panel(np.where(hidden_HW[..., None], grey, panel.rgb_HW3), f"{percent(share)} hidden" if worded else "")
        for panel, hidden_HW, share in zip(panels, shown.hidden_BHW.numpy(), shown.share_B.tolist(), strict=True)
    ]


def percent(share: float) -> str:
    """A share in words: 75%, 62.5%."""
    return f"{100 * share:.3g}%"


def _range(share_B: Tensor) -> str:
    low, high = percent(share_B.min().item()), percent(share_B.max().item())
    return low if low == high else f"{low} to {high}"


def _mark(runs: Mapping[str, Reconstruction], shown: Reconstruction) -> str:
    """What leads from the name of a run to the footnote on what it borrows."""
    kinds = list(dict.fromkeys(each.borrowed for each in runs.values() if each.borrowed))
    return f" {MARKS[kinds.index(shown.borrowed) % len(MARKS)]}" if shown.borrowed and len(runs) > 1 else ""


def _borrowing(runs: Mapping[str, Reconstruction]) -> list[str]:
    kinds = {shown.borrowed: shown for shown in runs.values() if shown.borrowed}
    if len(runs) == 1:
        return [f"The prediction borrows the {kind}." for kind in kinds]
    unequal = UNEQUAL if len({shown.borrowed for shown in runs.values()}) > 1 else ""
    return [
        f"{_mark(runs, shown).strip()} The prediction borrows the {kind}{unequal}." for kind, shown in kinds.items()
    ]


def _sentence(words: str) -> list[str]:
    return [words[0].upper() + words[1:] + "."] if words else []
