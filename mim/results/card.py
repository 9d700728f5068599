"""Card: a result as a part of a notebook: HTML without scripts and network, in the colours of the page around it.

Shapes: H W pixels, 3 red, green, blue.
"""

import io
from base64 import b64encode
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from PIL import Image

SIDE = 1200  # pixels: most of a side of a picture in a card, as a notebook is saved with all its pictures


@dataclass(frozen=True, slots=True)
class CardTable:
    """A table of texts; all columns but the first are aligned as numbers."""

    rows: tuple[tuple[str, ...], ...]
    headings: tuple[str, ...] = ()
    bold: frozenset[tuple[int, int]] = frozenset()  # cells, by row and column


@dataclass(frozen=True, slots=True)
class CardPicture:
    """A picture in the card itself. name: for those who cannot see it, too."""

    name: str
    png: bytes

    @classmethod
    def of_file(cls, path: Path, name: str) -> Self:
        """That of a file, smaller where it is large. Raises OSError where it cannot be read."""
        with Image.open(path) as image:
            return cls(name, _png(image.convert("RGB")))

    @classmethod
    def of_array(cls, picture_HW3: np.ndarray, name: str) -> Self:
        """That of uint8 values, smaller where it is large."""
        return cls(name, _png(Image.fromarray(picture_HW3)))

    @property
    def address(self) -> str:
        return f"data:image/png;base64,{b64encode(self.png).decode('ascii')}"


@dataclass(frozen=True, slots=True)
class Card:
    """What is shown of a result, from top to bottom. All texts are escaped; `chart` is SVG of our own, and is not."""

    title: str
    subtitle: str = ""
    warnings: tuple[str, ...] = ()
    tables: tuple[CardTable, ...] = ()
    chart: str = ""
    pictures: tuple[CardPicture, ...] = ()
    notes: tuple[str, ...] = ()

    def html(self) -> str:
        return _template().render(card=self)


@cache
def _template() -> Template:
    loader = PackageLoader("mim.results", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("card.html")


def _png(image: Image.Image) -> bytes:
    image.thumbnail((SIDE, SIDE))  # it never makes an image larger
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
