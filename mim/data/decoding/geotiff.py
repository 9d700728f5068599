"""GeoTIFF that names its missing pixels: those are NaN. It is read by rasterio; other TIFFs are read as before.

A file names them by a number (GDAL's tag 42113, or an .aux.xml beside it, where bands may have several), or by a mask
(a page of it, or an .msk beside it). An alpha band is no mask here, but a channel.
Sources: GDAL's GTiff driver, tag 42113 (GDAL_NODATA) and internal masks; GDAL's RFC 15.
Shapes: N bands of the file, C channels, H W pixels.
"""

import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from mim.data.decoding import tiff
from mim.data.decoding.broken import BrokenImage
from mim.data.decoding.numbers import can_be_stored, to_stored_type
from mim.data.decoding.selection import pick
from mim.data.settings import Selection
from mim.data.sources.base import Stored

MASK, METADATA = ".msk", ".aux.xml"  # endings of files beside it
NUMBER = b"<NoDataValue"  # in METADATA
MOST_BYTES = 2**32  # of one decoded file
LEVELS = (
    tiff.BLACK_IS_ZERO,
    tiff.RGB,
    tiff.YCBCR,
)  # others are no levels to rasterio, such as the numbers of a palette
LEFT_ALONE = "it names missing pixels, and is read with them: of {} that is not done"
AS_FLOATS = (
    "its missing pixels become NaN, and so its levels floats, in the units of the file: DATA.scale type does not "
    "divide them"
)


def read_geotiff(
    file: Path | bytes, stream: BinaryIO, channels: int, notes: list[str], selection: Selection
) -> Stored | None:
    """The image as float32 (C, H, W), NaN where a pixel of a band is missing; None for all other files.

    Args:
        file: its path, beside which further files are looked for; or its content.
        stream: the same, from its beginning, where it is left.
        channels: of the image.
        notes: gets what of the file is left out or changed.
        selection: of channels.

    Raises BrokenImage where it is damaged, rasterio is missing, or it has other channels.
    """
    pages = tiff.read_pages(stream)
    stream.seek(0)
    if not pages or not pages[0].is_geographic:
        return None
    beside = _beside(file) if isinstance(file, Path) else {}
    if not beside and not pages[0].has_nodata and not any(page.is_mask for page in pages):
        return None
    if sum(not page.partial for page in pages) > 1 or pages[0].photometric not in LEVELS:
        notes.append(LEFT_ALONE.format("several pages" if pages[0].photometric in LEVELS else "a palette or inks"))
        return None
    if pages[0].is_cut:
        raise BrokenImage("a GeoTIFF that is incomplete: the number of its missing pixels is not in the file")
    with _opened(stream.read(), beside) as dataset:
        _check(dataset)
        values_NHW = _values(dataset, notes)
        names = dataset.descriptions if all(dataset.descriptions) else ()
    image_NHW = torch.from_numpy(values_NHW)
    if selection.numbers:
        return pick(image_NHW, selection.numbers, names)
    return _fit(image_NHW, pages[0], channels, notes)


def _beside(path: Path) -> dict[str, bytes]:
    """The content of the files beside it that name missing pixels, by their ending."""
    contents: dict[str, bytes] = {}
    for ending in (MASK, METADATA):
        other = path.with_name(path.name + ending)
        if other.is_file() and (content := other.read_bytes()) and (ending == MASK or NUMBER in content):
            contents[ending] = content
    return contents


@contextmanager
def _opened(content: bytes, beside: Mapping[str, bytes]) -> Iterator[Any]:
    """The file as a dataset of rasterio, in memory with those beside it."""
    try:
        from rasterio.errors import NotGeoreferencedWarning, RasterioError
        from rasterio.io import MemoryFile
    except ImportError as error:
        raise BrokenImage(
            "a GeoTIFF that names its missing pixels is read by rasterio: pip install 'mim-toolkit[geotiff]'"
        ) from error
    folder = uuid.uuid4().hex
    with warnings.catch_warnings(), ExitStack() as files:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            for ending, other in beside.items():
                files.enter_context(MemoryFile(other, dirname=folder, filename=f"image.tif{ending}"))
            memory = files.enter_context(MemoryFile(content, dirname=folder, filename="image.tif"))
            yield files.enter_context(memory.open(driver="GTiff"))
        except RasterioError as error:
            raise BrokenImage(f"a GeoTIFF that is damaged or incomplete: {error.__cause__ or error}") from error


def _check(dataset: Any) -> None:
    """Raises BrokenImage where the pixels are no numbers, or so many that they are no image."""
    dtype = np.dtype(dataset.dtypes[0]) if dataset.dtypes[0] != "complex_int16" else np.dtype(np.complex64)
    if not can_be_stored(dtype):
        raise BrokenImage(f"a GeoTIFF of {dtype}: whole numbers and floats are read; {tiff.AS_ARRAYS}")
    needed = dataset.count * dataset.height * dataset.width * dtype.itemsize
    if needed > MOST_BYTES:
        size = f"{dataset.count} x {dataset.height} x {dataset.width}"
        raise BrokenImage(f"a GeoTIFF of {size} pixels, {needed:,} bytes: up to {MOST_BYTES:,} are read; cut it up")


def _values(dataset: Any, notes: list[str]) -> np.ndarray:
    """All bands as float32 (N, H, W), missing pixels as NaN."""
    pixels_NHW = dataset.read()
    if pixels_NHW.dtype in (np.uint8, np.uint16):
        notes.append(AS_FLOATS)
    missing_NHW = np.stack([_missing(dataset, band) for band in range(1, dataset.count + 1)])
    pixels_NHW[missing_NHW] = 0  # perhaps a number that no float32 is
    values_NHW = to_stored_type(pixels_NHW).astype(np.float32)
    values_NHW[missing_NHW] = np.nan
    return values_NHW


def _missing(dataset: Any, band: int) -> np.ndarray:
    """Whether each pixel of a band is missing, (H, W) bool. band: its number, from 1."""
    from rasterio.enums import MaskFlags

    flags = dataset.mask_flag_enums[band - 1]
    if MaskFlags.all_valid in flags or MaskFlags.alpha in flags:
        return np.zeros((dataset.height, dataset.width), bool)
    return dataset.read_masks(band) == 0


def _fit(image_NHW: Tensor, page: tiff.Page, channels: int, notes: list[str]) -> Tensor:
    """The image with DATA.channels: a grey one is repeated for 3, and bands behind colours are left out."""
    count = len(image_NHW)
    if count == channels:
        return image_NHW
    if count == 1 and channels == 3:
        return image_NHW.repeat(3, 1, 1)
    if page.photometric != tiff.BLACK_IS_ZERO and channels == 3 < count:
        notes.append(f"DATA.channels 3 leaves out {count - 3} of its {count} bands")
        return image_NHW[:3]
    way = f"{count}" + (f"; or choose {channels} of them by DATA.channels_from" if channels < count else "")
    bands = f"{count} band{'s' if count > 1 else ''}"
    raise BrokenImage(f"a GeoTIFF of {bands}, and DATA.channels is {channels}: set it to {way}")
