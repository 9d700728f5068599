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
    is_picture = isinstance(stored, Image.Image)
    count = len(stored.getbands()) if is_picture else len(stored)
    rows = [_row(number, count, names, numbers) for number in numbers]
    if is_picture and len(rows) in MODES:
        bands = stored.split()
        return bands[rows[0]] if len(rows) == 1 else Image.merge(MODES[len(rows)], [bands[row] for row in rows])
    pixels_NHW = np.stack([np.asarray(band) for band in stored.split()]) if is_picture else stored.numpy()
    return torch.from_numpy(np.ascontiguousarray(pixels_NHW[rows]))


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
