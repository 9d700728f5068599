"""check_readable: whether images, and their masks, can be read at all, asked before a run begins."""

import logging
from collections.abc import Iterable

from mim.data.decoding.images import BrokenImage
from mim.data.loading.dataset import mask_of_another_size
from mim.data.sources.base import Need, Source
from mim.data.sources.retry import RetryingSource

LOG = logging.getLogger("mim")

TRIED = 20  # images
TRIED_MASKS = 200  # with their images, at most; all of a smaller data set
SMALL = Need(8.0, 1)  # of an image, to know its size


def check_readable(source: Source, which: str) -> None:
    """Reads one image; where it is broken, up to 20 that are evenly spread. Where labels are masks, up to 200 of those.

    A mask without a pixel that has a class is named in a warning. which: training or held-out, for messages.

    Raises ValueError, with a file and the reason, where no image can be read, or a mask has another size than its
    image, or a number or colour that LABELS does not name; DataLost where they cannot be reached.
    """
    reader = RetryingSource(source)
    reasons: list[str] = []
    for index in _spread(source, TRIED):
        try:
            reader.read(index)
        except BrokenImage as error:
            reasons.append(f"{source.describe(index)}: {error}")
        else:
            reasons.clear()
            break
    if reasons:
        tried = f"none of {len(reasons):,}" + (f" of the {len(source):,}" if len(reasons) < len(source) else "")
        raise ValueError(f"{tried} {which} images can be read, such as {reasons[0]}")
    if source.label_kind == "mask":
        _check_masks(reader, which)


def _check_masks(reader: RetryingSource, which: str) -> None:
    source, empty, reasons = reader.source, list[int](), list[str]()
    tried = list(_spread(source, TRIED_MASKS))
    for index in tried:
        try:
            mask_HW = reader.mask(index)
            size = _size(reader, index)
            if size is not None and size != mask_HW.shape:
                raise BrokenImage(mask_of_another_size(mask_HW, size))
        except BrokenImage as error:
            reasons.append(f"{source.describe(index)}: {error}")
            continue
        if (mask_HW < 0).all():
            empty.append(index)
    if reasons:
        raise ValueError(
            f"{len(reasons):,} of {len(tried):,} {which} masks that were tried do not fit, such as that of {reasons[0]}"
        )
    if empty:
        LOG.warning(
            "%d of %d %s masks that were tried have no pixel with a class, such as that of %s: they teach nothing",
            *(len(empty), len(tried), which, source.describe(empty[0])),
        )


def _size(reader: RetryingSource, index: int) -> tuple[int, int] | None:
    """The height and width of an image; None where it is broken, which a run names and counts."""
    try:
        return reader.read_reduced(index, lambda height, width: SMALL)[1]
    except BrokenImage:
        return None


def _spread(source: Source, count: int) -> Iterable[int]:
    """Up to `count` positions, evenly spread."""
    return dict.fromkeys(number * len(source) // count for number in range(count)) if len(source) else ()
