"""Selection: which channels of a file become those of an image.

Shapes: C channels of the image, N of the file, H W pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from mim.data.decoding.broken import BrokenImage
from mim.data.settings import Selection
from mim.data.sources.base import Stored

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of 8-bit pictures
WHOLE = Selection()


def pick(stored: Stored, numbers: Sequence[int | str], names: Sequence[str] = ()) -> Stored:
    """The channels of an image of N that DATA.channels_from names, in its order; without any, the image as it is.

    A picture stays one where it can.

    Args:
        stored: the image with all channels of its file.
        numbers: DATA.channels_from: numbers from 0, or names.
        names: of the channels of the file; none where it has none.

    Raises BrokenImage where the file has no such channel.
    """
    if not numbers:
        return stored
    if isinstance(stored, Image.Image):
        bands = stored.split()
        rows = [_row(number, len(bands), names, numbers) for number in numbers]
        if len(rows) == 1:
            return bands[rows[0]]
        if len(rows) in MODES:
            return Image.merge(MODES[len(rows)], [bands[row] for row in rows])
        return torch.from_numpy(np.stack([np.asarray(bands[row]) for row in rows]))
    rows = [_row(number, len(stored), names, numbers) for number in numbers]
    return torch.from_numpy(np.ascontiguousarray(stored.numpy()[rows]))


def _row(number: int | str, count: int, names: Sequence[str], numbers: Sequence[int | str]) -> int:
    """The position of a channel among `count`."""
    if isinstance(number, int) and 0 <= number < count:
        return number
    if isinstance(number, str) and names.count(number) == 1:
        return names.index(number)
    has = "channel 0 alone" if count == 1 else f"channels 0 to {count - 1}"
    has += f", with the names {', '.join(names)}" if names else ", without names"
    raise BrokenImage(
        f"DATA.channels_from is [{', '.join(map(str, numbers))}], and it has {has}: {number} is none of them"
    )
