"""DICOM files: one image by pydicom, in the units of the file.

Values are those behind the modality transform (RescaleSlope and RescaleIntercept, or its table), such as Hounsfield
units of CT. The window of a file is for looking at it, and files of one data set may have several; so it is not
applied, and DATA.scale [low, high] is a window for all. Source: DICOM PS3.3 (2024b), C.7.6.3.1.2, C.11.1 and C.11.2.
Shapes: F frames, C channels, H W pixels.
"""

import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mim.data.decoding.broken import BrokenImage
from mim.data.decoding.numbers import to_stored_type
from mim.data.decoding.pictures import to_mode
from mim.data.decoding.selection import pick
from mim.data.settings import Pages, Selection
from mim.data.sources.base import Stored

ENDINGS = frozenset([".dcm", ".dicom"])
MAGIC, MAGIC_AT = b"DICM", 128  # behind a preamble
GREY = ("MONOCHROME1", "MONOCHROME2")
WINDOW = "its window (WindowCenter, WindowWidth) is not applied: DATA.scale [low, high] applies one to all images"


def is_dicom(file: Path | bytes, others: frozenset[str]) -> bool:
    """Whether it is a DICOM file: by its ending; by its first bytes where it has none of these and the other endings.

    Raises OSError where the file cannot be opened.
    """
    if isinstance(file, bytes):
        return file[MAGIC_AT : MAGIC_AT + len(MAGIC)] == MAGIC
    ending = file.suffix.lower()
    if ending in ENDINGS or ending in others or not file.is_file():
        return ending in ENDINGS
    with file.open("rb") as stream:
        return stream.read(MAGIC_AT + len(MAGIC)).endswith(MAGIC)


def read_dicom(file: BinaryIO, channels: int, notes: list[str], selection: Selection) -> Stored:
    """An 8-bit PIL image; a tensor (C, H, W) of uint16 or float32 for more bits, signed numbers and rescaled values.

    Grey is repeated for 3 channels. MONOCHROME1, in which the lowest number is white, is inverted within the range of
    its bits. Several frames are planes or the channels of one image, as DATA.pages says.

    Args:
        file: from its beginning.
        channels: of the result.
        notes: gets what of the file is left out or not applied.
        selection: of frames and channels.

    Raises BrokenImage, or an error of pydicom, where it cannot be read as the file has it.
    """
    try:
        import pydicom
    except ImportError as error:
        raise BrokenImage("DICOM is read by the package pydicom: pip install 'mim-toolkit[dicom]'") from error
    with warnings.catch_warnings():  # about values that no pixel depends on
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(file)
        _check_size(dataset)
        if dataset.PhotometricInterpretation in GREY:
            pixels_CHW = np.stack([_values(frame, dataset) for frame in _frames(dataset, selection, channels)])
            if "WindowCenter" in dataset and not selection.to_float:
                notes.append(WINDOW)
        else:
            pixels_CHW = np.moveaxis(_colours(dataset, selection.pages), -1, 0)
    stored = _stored(to_stored_type(pixels_CHW))
    if selection.numbers:
        return pick(stored, selection.numbers)
    return _fit(stored, channels, notes)


def _check_size(dataset: Any) -> None:
    """Raises BrokenImage where there are no pixels, or so many that they are no image."""
    if "PixelData" not in dataset or "PhotometricInterpretation" not in dataset:
        raise BrokenImage("a DICOM file without an image")
    pixels = int(dataset.Rows) * int(dataset.Columns)
    most = 2 * (Image.MAX_IMAGE_PIXELS or pixels)  # as Pillow refuses pictures
    if pixels * _count(dataset) > most:
        raise BrokenImage(f"{pixels:,} pixels in {_count(dataset):,} frames: up to {most:,} in all are read")


def _count(dataset: Any) -> int:
    return int(dataset.get("NumberOfFrames") or 1)


def _decoded(dataset: Any, frame: int | None) -> np.ndarray:
    """The pixels of a frame, or of all frames for None, (F, H, W) or (F, H, W, C); colours as RGB."""
    from pydicom.pixels import pixel_array

    pixels = pixel_array(dataset, index=frame)
    return pixels[None] if frame is not None or _count(dataset) == 1 else pixels


def _frames(dataset: Any, selection: Selection, channels: int) -> np.ndarray:
    """The frames that are channels, (F, H, W), or the one that DATA.pages chooses."""
    count = _count(dataset)
    if selection.pages == "channels" and count not in (1, channels) and not selection.numbers:
        raise BrokenImage(
            f"a DICOM file of {count} frames, which are read as the channels of one image, and DATA.channels is "
            f"{channels}: set it to that, or, where they are planes or times, DATA.pages first, middle or max"
        )
    return _chosen(dataset, selection.pages)


def _chosen(dataset: Any, pages: Pages) -> np.ndarray:
    if pages == "channels":
        return _decoded(dataset, None)
    if pages == "max":
        frames = _decoded(dataset, None)
        return frames.min(0, keepdims=True) if _is_inverted(dataset) else frames.max(0, keepdims=True)
    return _decoded(dataset, 0 if pages == "first" else _count(dataset) // 2)


def _is_inverted(dataset: Any) -> bool:
    return dataset.PhotometricInterpretation == "MONOCHROME1"


def _values(levels_HW: np.ndarray, dataset: Any) -> np.ndarray:
    """Grey levels behind the modality transform, inverted where the lowest is white."""
    bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
    if bits == 1:
        levels_HW, bits = levels_HW.astype(np.uint8) * np.uint8(255), 8
    values_HW = _rescaled(levels_HW, dataset)
    if not _is_inverted(dataset):
        return values_HW
    ends = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1])
    total = _rescaled(ends.astype(levels_HW.dtype), dataset).astype(np.float64).sum()
    return (total - values_HW.astype(np.float64)).astype(values_HW.dtype)


def _rescaled(levels: np.ndarray, dataset: Any) -> np.ndarray:
    """The output of the modality transform; the levels themselves where it changes none."""
    from pydicom.pixels import apply_modality_lut

    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if "ModalityLUTSequence" not in dataset and (slope in (None, 1)) and (intercept in (None, 0)):
        return levels
    return apply_modality_lut(levels, dataset)


def _colours(dataset: Any, pages: Pages) -> np.ndarray:
    """One frame of colours, (H, W, 3); those of a palette are looked up."""
    from pydicom.pixels import apply_color_lut

    if _count(dataset) > 1 and pages in ("channels", "max"):
        raise BrokenImage(f"a DICOM file of {_count(dataset)} frames of colours: DATA.pages first or middle reads one")
    pixels = _chosen(dataset, pages)[0]
    if dataset.PhotometricInterpretation != "PALETTE COLOR":
        return pixels
    colours_HWC = apply_color_lut(pixels, dataset)
    return colours_HWC[..., :3]  # a fourth is opacity


def _stored(pixels_CHW: np.ndarray) -> Stored:
    """A picture for 8 bits of grey or colours, else a tensor."""
    if pixels_CHW.dtype == np.uint8 and len(pixels_CHW) in (1, 3):
        pixels_HWC = np.ascontiguousarray(np.moveaxis(pixels_CHW, 0, -1))
        return Image.fromarray(pixels_HWC if len(pixels_CHW) == 3 else pixels_HWC[..., 0])
    return torch.from_numpy(np.ascontiguousarray(pixels_CHW))


def _fit(stored: Stored, channels: int, notes: list[str]) -> Stored:
    """The image with DATA.channels: a grey one is repeated for 3."""
    if isinstance(stored, Image.Image):
        return to_mode(stored, channels, notes)
    assert isinstance(stored, Tensor)
    if len(stored) == channels:
        return stored
    if len(stored) == 1 and channels == 3:
        return stored.repeat(3, 1, 1)
    raise BrokenImage(f"a DICOM image of {len(stored)} channels, and DATA.channels is {channels}: set it to that")
