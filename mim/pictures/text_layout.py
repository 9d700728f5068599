"""Words that fit: how wide they are on a sheet, shortened to their room or broken into lines."""

import warnings
from collections.abc import Sequence


def width_of(words: str, size: float, bold: bool = False) -> float:
    """Of words, in pixels; size: of letters, in pixels."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    font = FontProperties(size=size, weight="bold" if bold else "normal")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        return RendererAgg(1, 1, 72).get_text_width_height_descent(words, font, False)[0]


def shortened(words: str, room: float, size: float, bold: bool = False) -> str:
    """Words that fit; an ellipsis in the middle stands for what does not."""
    words = " ".join(words.split())
    shown, kept = words, len(words)
    while width_of(shown, size, bold) > room and kept > 4:
        kept -= 1
        shown = words[: (kept + 1) // 2].rstrip() + "…" + words[len(words) - kept // 2 :].lstrip()
    return shown


def wrapped(words: str, room: float, size: float, bold: bool = False) -> Sequence[str]:
    """Lines that fit, each of whole words."""
    lines = [""] if words else []
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and width_of(longer, size, bold) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
