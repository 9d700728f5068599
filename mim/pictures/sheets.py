"""Drawing a sheet: pictures in rows and columns with titles, captions below them, footnotes and a colour bar.

A pixel of a small picture becomes a whole block of pixels of the sheet, so that it stays crisp.

Shapes: H W pixels, 3 red, green, blue.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from mim.pictures.error_maps import ramp
from mim.pictures.text_layout import font, shortened, width_of, wrapped

# lengths and letters on a sheet, in units; a square picture is SIDE units wide
SIDE, GAP, GROUP, APART, EDGE, BAR = 128, 4, 18, 10, 12, 150
TITLE, HEADING, COLUMN, SMALL = 12.0, 10.0, 9.0, 8.0
LINE = 1.4  # from line to line, in letters
FRAME, RULE, INK, SOFT = (222, 222, 222), (120, 120, 120), (0, 0, 0), (68, 68, 68)
WHITISH = 244  # levels from which a colour of a small palette is white
DENSITY = 2.0  # pixels for a unit, at most
Align = Literal["left", "center", "right"]
ANCHORS: dict[Align, str] = {"left": "ls", "center": "ms", "right": "rs"}  # of PIL, on the line that letters stand on


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture, (H, W, 3) uint8, and a caption below it."""

    rgb_HW3: np.ndarray
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns that belong together: their titles, and a name above them all."""

    titles: tuple[str, ...]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of pictures, one for each column, with a title above it."""

    panels: tuple[Panel | None, ...]
    title: str = ""
    apart: bool = False  # leave more space above the row


@dataclass(frozen=True, slots=True)
class Bar:
    """The colour scale of a sheet."""

    label: str  # the quantity and its unit
    top: float  # the value at its end; the scale starts at 0
    open_end: bool = False  # whether larger values have the colour of the end
    root: bool = False  # whether the scale is that of square roots, which shows small values beside large ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """All that a sheet shows. All pictures have one size."""

    columns: tuple[Columns, ...]
    rows: tuple[Row, ...]
    title: str = ""
    notes: tuple[str, ...] = ()
    bar: Bar | None = None
    letters: float = 1.0  # the size of letters relative to pictures
    density: float = DENSITY  # pixels for a unit; whole blocks may need fewer


def draw(layout: Layout) -> Tensor:
    """The sheet, (H, W, 3) uint8."""
    sheet = _Sheet(layout)
    picture = Image.new("RGB", (sheet.width, sheet.height), "white")
    for left, top, block_HW3 in sheet.blocks:
        picture.paste(Image.fromarray(block_HW3), (left, top))
    pen = ImageDraw.Draw(picture)
    for text in sheet.texts:
        pen.text(**text)
    return torch.from_numpy(np.array(picture))


def png(picture_HW3: Tensor, most: int = 0) -> bytes:
    """A PNG file; where it would be larger than `most` bytes, with 256 colours, and then smaller as far as needed."""
    original = Image.fromarray(picture_HW3.numpy())
    content = _saved(original)
    for share in (1.0, 0.85, 0.7, 0.55, 0.4, 0.3):
        if not most or len(content) <= most:
            break
        size = round(original.width * share), round(original.height * share)
        smaller = original.resize(size, Image.Resampling.LANCZOS)
        palette = smaller.quantize(256, Image.Quantize.MEDIANCUT)
        levels_N3 = np.array(palette.getpalette()).reshape(-1, 3)
        levels_N3[(levels_N3 >= WHITISH).all(axis=1)] = 255  # the background stays white
        palette.putpalette(levels_N3.flatten().tolist())
        content = _saved(smaller.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG))
        if len(content) > most:
            content = _saved(palette)  # without dithering, which compresses better
    return content


def _saved(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


@dataclass(frozen=True, slots=True)
class _Size:
    """Of a picture on the sheet, in pixels."""

    height: int
    width: int
    unit: float  # pixels of one unit of length

    @classmethod
    def of(cls, height: int, width: int, density: float) -> "_Size":
        """SIDE x SIDE units of area whatever the aspect, up to 4:1; a whole number of pixels for each pixel."""
        units = SIDE * min(max(width / height, 0.25), 4) ** 0.5
        if width > 2 * units * density:  # then it shrinks
            return cls(round(units * density * height / width), round(units * density), density)
        factor = max(1, int(units * density / width))
        return cls(factor * height, factor * width, factor * width / units)

    def fitted(self, rgb_HW3: np.ndarray) -> np.ndarray:
        factor = self.width // rgb_HW3.shape[1]
        if factor:
            return rgb_HW3.repeat(factor, axis=0).repeat(factor, axis=1)
        return np.asarray(Image.fromarray(rgb_HW3).resize((self.width, self.height), Image.Resampling.BOX))


class _Sheet:
    """Where everything stands: texts, and blocks of pixels. `top` moves down while rows are added."""

    def __init__(self, layout: Layout):
        first = next(panel for row in layout.rows for panel in row.panels if panel is not None)
        self.size = _Size.of(first.rgb_HW3.shape[0], first.rgb_HW3.shape[1], layout.density)
        self.letter = self.size.unit * layout.letters
        self.texts: list[dict[str, Any]] = []
        self.blocks: list[tuple[int, int, np.ndarray]] = []
        self.lefts, self.width = self._lefts(layout.columns)
        self.inside = self.width - 2 * self._px(EDGE)
        self.top = self._px(EDGE)
        self._titles(layout)
        for index, row in enumerate(layout.rows):
            self.top += self._px(APART) if row.apart and index else 0
            self._row(row)
        self._foot(layout)
        self.height = self.top + self._px(EDGE - GAP)

    def _px(self, units: float) -> int:
        return round(units * self.size.unit)

    def _lefts(self, columns: Iterable[Columns]) -> tuple[list[int], int]:
        """The left edge of each column, and the width of the sheet."""
        lefts, left = [], self._px(EDGE)
        for group in columns:
            for _ in group.titles:
                lefts.append(left)
                left += self.size.width + self._px(GAP)
            left += self._px(GROUP - GAP)
        return lefts, left - self._px(GROUP) + self._px(EDGE)

    def _titles(self, layout: Layout) -> None:
        for line in wrapped(layout.title, self.inside, TITLE * self.letter, bold=True):
            self._line(line, self.width / 2, TITLE, align="center", bold=True)
        self.top += self._px(GAP) if layout.title else 0
        if any(group.name for group in layout.columns):
            starts = [0, *np.cumsum([len(group.titles) for group in layout.columns]).tolist()]
            for group, (start, stop) in zip(layout.columns, pairwise(starts), strict=True):
                left, right = self.lefts[start], self.lefts[stop - 1] + self.size.width
                self._write(group.name, (left + right) / 2, self.top, HEADING, right - left, "center", bold=True)
                if group.name:
                    rule_HW3 = np.full((max(1, self._px(0.6)), right - left, 3), RULE, dtype=np.uint8)
                    self.blocks.append((left, self.top + round(HEADING * LINE * self.letter), rule_HW3))
            self.top += round(HEADING * LINE * self.letter) + self._px(4)
        titles = [title for group in layout.columns for title in group.titles]
        for left, title in zip(self.lefts, titles, strict=True):
            self._write(title, left + self.size.width / 2, self.top, COLUMN, self.size.width, "center")
        self.top += round(COLUMN * LINE * self.letter) if any(titles) else 0

    def _row(self, row: Row) -> None:
        for line in wrapped(row.title, self.inside, COLUMN * self.letter):
            self._line(line, self.lefts[0], COLUMN)
        height, width = self.size.height, self.size.width
        for left, panel in zip(self.lefts, row.panels, strict=True):
            if panel is not None:
                frame_HW3 = np.full((height + 2, width + 2, 3), FRAME, dtype=np.uint8)
                self.blocks += [(left - 1, self.top - 1, frame_HW3), (left, self.top, self.size.fitted(panel.rgb_HW3))]
                below = self.top + height + self._px(1.5)
                self._write(panel.caption, left + width / 2, below, SMALL, width, "center", colour=SOFT)
        captions = any(panel is not None and panel.caption for panel in row.panels)
        self.top += height + self._px(GAP) + (round(SMALL * LINE * self.letter) if captions else 0)

    def _foot(self, layout: Layout) -> None:
        """The bar at the right with the notes at its left; the notes below it where the sheet is narrow."""
        width, bottom = self.inside, 0
        self.top += self._px(GAP) if layout.notes or layout.bar else 0
        if layout.bar:
            bar_width, bottom = self._bar(layout.bar)
            if width - bar_width > 1.2 * self._px(BAR):
                width -= bar_width + self._px(2 * GROUP)
            else:
                self.top = bottom
        for note in layout.notes:
            for line in wrapped(note, width, SMALL * self.letter):
                self._line(line, self.lefts[0], SMALL, colour=SOFT)
        self.top = max(self.top, bottom)

    def _bar(self, bar: Bar) -> tuple[int, int]:
        """Draws the bar at the current height. Returns its width with its label, and its lower edge."""
        wide, high, line = min(self._px(BAR), self.inside), self._px(7), round(SMALL * LINE * self.letter)
        right, top = self.width - self._px(EDGE), self.top + line
        self._write(bar.label, right, self.top, SMALL, self.inside, "right", colour=SOFT)
        self.blocks.append((right - wide, top, ramp(np.broadcast_to(np.linspace(0, 1, wide), (high, wide)))))
        middle = bar.top / 4 if bar.root else bar.top / 2
        end = f"\N{GREATER-THAN OR EQUAL TO}{bar.top:.3g}" if bar.open_end else f"{bar.top:.3g}"
        below = top + high + self._px(1)
        self._write("0", right - wide, below, SMALL, wide, colour=SOFT)
        self._write(f"{middle:.3g}", right - wide / 2, below, SMALL, wide, "center", colour=SOFT)
        self._write(end, right, below, SMALL, wide, "right", colour=SOFT)
        return round(max(wide, width_of(bar.label, SMALL * self.letter))), top + high + line + self._px(1)

    def _write(
        self, text: str, left: float, top: float, size: float, width: float, align: Align = "left", **style: Any
    ) -> None:
        """Text on one line, shortened to a width."""
        if text:
            size, bold = size * self.letter, style.get("bold", False)
            xy = (left, top + 0.95 * size)  # letters stand on one line, whatever they are
            text, fill = shortened(text, width, size, bold), style.get("colour", INK)
            self.texts.append(
                {"xy": xy, "text": text, "font": font(size, bold), "fill": fill, "anchor": ANCHORS[align]}
            )

    def _line(self, text: str, left: float, size: float, align: Align = "left", **style: Any) -> None:
        """A line at the current height, which then moves below it."""
        self._write(text, left, self.top, size, self.inside, align, **style)
        self.top += round(size * LINE * self.letter)
