"""Drawing a sheet: pictures in rows and columns with titles, words below them, footnotes and a colour bar.

Pixels of a picture become whole blocks of pixels of the sheet, so that small images stay crisp.

Shapes: H W pixels, 3 red, green, blue.
"""

import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mim.pictures.canvas import pixels
from mim.pictures.error_maps import ramp
from mim.pictures.text_layout import shortened, width_of, wrapped

# lengths and letters on a sheet, in units of which a square picture is SIDE wide
SIDE, GAP, GROUP, APART, EDGE, BAR = 128, 4, 18, 10, 12, 150
TITLE, HEADING, COLUMN, SMALL = 12.0, 10.0, 9.0, 8.0
LINE = 1.4  # from line to line, in letters
FRAME, RULE, WORDS = (222, 222, 222), (120, 120, 120), "#444444"
WHITISH = 244  # levels from which a colour of a small palette is white
DENSITY = 2.0  # pixels for a unit, at most


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture, (H, W, 3) uint8, and a few words below it."""

    rgb_HW3: np.ndarray
    words: str = ""


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns that belong together: their titles, and a name above them all."""

    titles: tuple[str, ...]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of pictures, as many as there are columns; a title stands above it. apart: more space ahead of it."""

    panels: tuple[Panel | None, ...]
    title: str = ""
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """The scale of an error map, from 0 to `top`, which also stands for what is above where `open_end`."""

    words: str
    top: float
    open_end: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """All that a sheet shows. Pictures have one size.

    letters: their size relative to pictures; density: pixels for a unit, of which whole pixels use no more.
    """

    columns: tuple[Columns, ...]
    rows: tuple[Row, ...]
    title: str = ""
    notes: tuple[str, ...] = ()
    bar: Bar | None = None
    letters: float = 1.0
    density: float = DENSITY


def draw(layout: Layout) -> Tensor:
    """The sheet, (H, W, 3) uint8."""
    from matplotlib.figure import Figure  # slow to import, and only pictures need it

    first = next(panel for row in layout.rows for panel in row.panels if panel is not None)
    size = _Size.of(first.rgb_HW3.shape[0], first.rgb_HW3.shape[1], layout.density)
    sheet = _Sheet(layout, size)
    figure = Figure(figsize=(sheet.width / 72, sheet.height / 72), dpi=72, facecolor="white")
    for text in sheet.texts:
        text.write(figure, sheet.width, sheet.height)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in letters that the font lacks: boxes stand there
        picture_HW3 = pixels(figure).numpy()
    for left, top, block_HW3 in sheet.blocks:
        picture_HW3[top : top + block_HW3.shape[0], left : left + block_HW3.shape[1]] = block_HW3
    return torch.from_numpy(picture_HW3)


def png(picture_HW3: Tensor, most: int = 0) -> bytes:
    """A PNG file; where it would be larger than `most` bytes, in 256 colours, and then smaller as far as needed."""
    whole = Image.fromarray(picture_HW3.numpy())
    found = _saved(whole)
    for share in (1.0, 0.85, 0.7, 0.55, 0.4, 0.3):
        if not most or len(found) <= most:
            break
        picture = whole.resize((round(whole.width * share), round(whole.height * share)), Image.Resampling.LANCZOS)
        few = picture.quantize(256, Image.Quantize.MEDIANCUT)
        levels_N3 = np.array(few.getpalette()).reshape(-1, 3)
        levels_N3[(levels_N3 >= WHITISH).all(axis=1)] = 255  # the ground stays white
        few.putpalette(levels_N3.flatten().tolist())
        found = _saved(picture.quantize(palette=few, dither=Image.Dither.FLOYDSTEINBERG))
        if len(found) > most:
            found = _saved(few)  # without dithering, which compresses better
    return found


def _saved(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


# -------------------------------------------------------------------- places


@dataclass(frozen=True, slots=True)
class _Size:
    """Of a picture on the sheet, in pixels; unit: pixels of one unit of length."""

    height: int
    width: int
    unit: float

    @classmethod
    def of(cls, height: int, width: int, density: float) -> "_Size":
        """An area of SIDE x SIDE units whatever the aspect, up to 4:1; a whole number of pixels for a pixel.

        A picture of more than twice the pixels that it then has is shrunk.
        """
        wide = SIDE * min(max(width / height, 0.25), 4) ** 0.5
        wanted = wide * density
        if width > 2 * wanted:
            return cls(round(wanted * height / width), round(wanted), density)
        factor = max(1, int(wanted / width))
        return cls(factor * height, factor * width, factor * width / wide)

    def fitted(self, rgb_HW3: np.ndarray) -> np.ndarray:
        """The picture at this size."""
        factor = self.width // rgb_HW3.shape[1]
        if factor:
            return rgb_HW3.repeat(factor, axis=0).repeat(factor, axis=1)
        return np.asarray(Image.fromarray(rgb_HW3).resize((self.width, self.height), Image.Resampling.BOX))


@dataclass(frozen=True, slots=True)
class _Text:
    """Words with their upper edge at `top`, in pixels from the sheet's upper left corner."""

    left: float
    top: float
    words: str
    size: float
    align: str = "left"
    bold: bool = False
    colour: str = "black"

    def write(self, figure: Any, width: int, height: int) -> None:
        weight = "bold" if self.bold else "normal"
        style = {"fontsize": self.size, "fontweight": weight, "color": self.colour, "parse_math": False}
        # from the upper edge to the line that letters stand on, so that words of one line stand level
        base = 1 - (self.top + 0.95 * self.size) / height
        figure.text(self.left / width, base, self.words, ha=self.align, va="baseline", **style)


class _Sheet:
    """Where everything stands: texts, and blocks of pixels, later ones over earlier ones."""

    def __init__(self, layout: Layout, size: _Size):
        self.size, self.unit, self.letter = size, size.unit, size.unit * layout.letters
        self.texts: list[_Text] = []
        self.blocks: list[tuple[int, int, np.ndarray]] = []
        self.lefts, self.width = self._lefts(layout.columns)
        self.room = self.width - 2 * self._px(EDGE)
        self.top = self._px(EDGE)
        self._titles(layout)
        for place, row in enumerate(layout.rows):
            self.top += self._px(APART) if row.apart and place else 0
            self._row(row)
        self._foot(layout)
        self.height = self.top + self._px(EDGE - GAP)

    def _px(self, units: float) -> int:
        return round(units * self.unit)

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
        for line in wrapped(layout.title, self.room, TITLE * self.letter, bold=True):
            self._line(line, self.width / 2, TITLE, align="center", bold=True)
        self.top += self._px(GAP) if layout.title else 0
        if any(group.name for group in layout.columns):
            starts = [0, *np.cumsum([len(group.titles) for group in layout.columns]).tolist()]
            for group, (start, stop) in zip(layout.columns, pairwise(starts), strict=True):
                left, right = self.lefts[start], self.lefts[stop - 1] + self.size.width
                self._write(group.name, (left + right) / 2, self.top, HEADING, right - left, align="center", bold=True)
                if group.name:
                    self._rule(left, right, self.top + round(HEADING * LINE * self.letter))
            self.top += round(HEADING * LINE * self.letter) + self._px(4)
        titles = [title for group in layout.columns for title in group.titles]
        for left, title in zip(self.lefts, titles, strict=True):
            self._write(title, left + self.size.width / 2, self.top, COLUMN, self.size.width, align="center")
        self.top += round(COLUMN * LINE * self.letter) if any(titles) else 0

    def _row(self, row: Row) -> None:
        if row.title:
            self._line(row.title, self.lefts[0], COLUMN, self.room)
        below = self.top + self.size.height + self._px(1.5)
        for left, panel in zip(self.lefts, row.panels, strict=True):
            if panel is not None:
                frame = np.full((self.size.height + 2, self.size.width + 2, 3), FRAME, dtype=np.uint8)
                self.blocks += [(left - 1, self.top - 1, frame), (left, self.top, self.size.fitted(panel.rgb_HW3))]
                style = {"align": "center", "colour": WORDS}
                self._write(panel.words, left + self.size.width / 2, below, SMALL, self.size.width, **style)
        worded = any(panel is not None and panel.words for panel in row.panels)
        self.top += self.size.height + self._px(GAP) + (round(SMALL * LINE * self.letter) if worded else 0)

    def _foot(self, layout: Layout) -> None:
        """The bar at the right, notes at its left; below it where the sheet is narrow."""
        room, bottom = self.room, 0
        self.top += self._px(GAP) if layout.notes or layout.bar else 0
        if layout.bar:
            wide, bottom = self._bar(layout.bar)
            if room - wide > 1.2 * self._px(BAR):
                room -= wide + self._px(2 * GROUP)
            else:
                self.top = bottom
        for note in layout.notes:
            for line in wrapped(note, room, SMALL * self.letter):
                self._line(line, self.lefts[0], SMALL, colour=WORDS)
        self.top = max(self.top, bottom)

    def _bar(self, bar: Bar) -> tuple[int, int]:
        """Draws it at the current height; its width with its words, and its lower edge."""
        wide, high, line = min(self._px(BAR), self.room), self._px(7), round(SMALL * LINE * self.letter)
        right, top = self.width - self._px(EDGE), self.top + line
        self._write(bar.words, right, self.top, SMALL, self.room, align="right", colour=WORDS)
        ramp_HW3 = ramp(np.broadcast_to(np.linspace(0, 1, wide), (high, wide)))
        self.blocks.append((right - wide, top, ramp_HW3))
        end = f"\N{GREATER-THAN OR EQUAL TO}{bar.top:g}" if bar.open_end else f"{bar.top:g}"
        for place, words, align in ((1, "0", "left"), (0.5, f"{bar.top / 2:g}", "center"), (0, end, "right")):
            self._write(words, right - place * wide, top + high + self._px(1), SMALL, wide, align=align, colour=WORDS)
        return round(max(wide, width_of(bar.words, SMALL * self.letter))), top + high + line + self._px(1)

    def _rule(self, left: int, right: int, top: int) -> None:
        line_HW3 = np.full((max(1, self._px(0.6)), right - left, 3), RULE, dtype=np.uint8)
        self.blocks.append((left, top, line_HW3))

    def _write(self, words: str, left: float, top: float, size: float, room: float, **style: Any) -> None:
        """Words, shortened to the room they have."""
        if words:
            shown = shortened(words, room, size * self.letter, bold=style.get("bold", False))
            self.texts.append(_Text(left, top, shown, size * self.letter, **style))

    def _line(self, words: str, left: float, size: float, room: float = np.inf, **style: Any) -> None:
        """Words at the current height, which goes on below them."""
        self._write(words, left, self.top, size, room, **style)
        self.top += round(size * LINE * self.letter)
