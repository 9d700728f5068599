"""Text on sheets: its font, its width, and how it is shortened or broken into lines to fit a width in pixels."""

from functools import cache
from pathlib import Path

from PIL import ImageFont


@cache
def font(size: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font that ships with matplotlib, in pixels."""
    from matplotlib import get_data_path  # slow to import, and only pictures need it

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / name), size)


def width_of(text: str, size: float, bold: bool = False) -> float:
    """The width of one line of text in pixels."""
    return font(size, bold).getlength(text)


def shortened(text: str, width: float, size: float, bold: bool = False) -> str:
    """Text on one line that fits; an ellipsis in the middle stands for what does not."""
    text = " ".join(text.encode("utf-8", "replace").decode().split())  # names of files may hold what UTF-8 cannot
    short, letters = text, len(text)
    while width_of(short, size, bold) > width and letters > 4:
        letters -= 1
        short = text[: (letters + 1) // 2].rstrip() + "…" + text[len(text) - letters // 2 :].lstrip()
    return short


def wrapped(text: str, width: float, size: float, bold: bool = False) -> list[str]:
    """Lines that fit, each of whole words."""
    lines = [""] if text else []
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and width_of(longer, size, bold) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
