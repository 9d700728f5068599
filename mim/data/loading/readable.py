"""check_readable: whether images can be read at all, asked before a run begins."""

from mim.data.decoding.images import BrokenImage
from mim.data.sources.base import Source
from mim.data.sources.retry import RetryingSource

TRIED = 20  # images


def check_readable(source: Source, which: str) -> None:
    """Reads one image; where it is broken, up to 20 that are evenly spread.

    which: training or held-out, for the message.

    Raises ValueError, with a file and the reason, where none can be read; DataLost where they cannot be reached.
    """
    reader, count = RetryingSource(source), len(source)
    reasons: list[str] = []
    for index in dict.fromkeys(number * count // TRIED for number in range(TRIED)) if count else ():
        try:
            reader.read(index)
        except BrokenImage as error:
            reasons.append(f"{source.describe(index)}: {error}")
        else:
            return
    if reasons:
        tried = f"none of {len(reasons):,}" + (f" of the {count:,}" if len(reasons) < count else "")
        raise ValueError(f"{tried} {which} images can be read, such as {reasons[0]}")
