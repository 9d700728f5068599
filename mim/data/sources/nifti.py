"""Nifti: slices of NIfTI volumes, as of MRI and CT, each an image.

Shapes: V volumes, N slices, C channels, H W pixels; X Y Z from left to right, back to front and feet to head.
"""

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mim.data.decoding.broken import BrokenImage
from mim.data.decoding.names import encoded, printable_name
from mim.data.decoding.numbers import to_stored_type
from mim.data.decoding.selection import pick
from mim.data.settings import DataSettings
from mim.data.sources.base import Source, Split, Stored, unreachable
from mim.data.sources.held_out import by_share, check_share, hashes
from mim.data.sources.once import once

ENDINGS = (".nii", ".nii.gz")
AXES = {"sagittal": 0, "coronal": 1, "axial": 2}  # of X, Y and Z
ZIPPED = "it is compressed, and reading a slice decodes what lies before it: gunzip is faster"


class Nifti(Source, name="nifti"):
    """The slices of NIfTI volumes (.nii and .nii.gz, by the package nibabel). DATA.path is a folder, and volumes are
    those in it and below; or one volume.

    A slice lies as its affine says, to the nearest axis: head or face up, the right of the patient on the right; a
    sagittal one looks to the right. Values are scaled as the header says. A fourth axis is the channels of a slice, or,
    as DATA.pages says, times of which one is read. Slices of a volume are a group, which splits keep together. A volume
    that cannot be read counts as one broken image.

    Args:
        plane: which slices a volume has.
        margin: share of the slices left out at each end of a volume, where there often is nothing, below 0.5.
        val_path: held-out volumes, as DATA.path.
        val_share: share of the volumes that is held out where val_path is empty, from 0 to below 1. A hash of the path
            below DATA.path decides.

    Raises ValueError where there are no volumes, or the package nibabel is missing.
    """

    chooses_channels = True

    def __init__(
        self,
        split: Split,
        settings: DataSettings,
        *,
        plane: Literal["axial", "coronal", "sagittal"] = "axial",
        margin: float = 0.0,
        val_path: str = "",
        val_share: float = 0.05,
    ):
        super().__init__(split, settings)
        check_share(val_share)
        if not 0 <= margin < 0.5:
            raise ValueError(f"DATA.margin is {margin}: it is a share of the slices at each end, from 0 to below 0.5")
        self._key, value = ("DATA.val_path", val_path) if split == "val" and val_path else ("DATA.path", settings.path)
        self.root, self._axis = Path(value).absolute(), AXES[plane]
        self.paths, slices_V = once((self.name, value, plane), lambda: _volumes(value, self._key, self._axis))
        volume_V = np.arange(len(self.paths))
        if not val_path:
            names = [os.path.relpath(path, self.root) for path in self.paths]
            volume_V = by_share(hashes(map(encoded, names)), val_share, split)
            self.held_out_share = val_share
        left_out_V = (slices_V * margin).astype(np.int64)
        rows = [
            (volume, row)
            for volume in volume_V
            for row in range(left_out_V[volume], slices_V[volume] - left_out_V[volume])
        ]
        self._slice_N2 = np.array(rows, np.int64).reshape(-1, 2)
        self.groups = self._slice_N2[:, 0].copy()

    def __len__(self) -> int:
        return len(self._slice_N2)

    def read(self, index: int) -> Stored:
        volume, row = map(int, self._slice_N2[index])
        try:
            pixels_HWC = _slice(self.paths[volume], self._axis, row)
        except Exception as error:  # nibabel raises a dozen unrelated types on damaged files
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise BrokenImage(printable_name(f"{type(error).__name__}: {reason}")) from error
        if self.paths[volume].suffix == ".gz":
            self.say([ZIPPED], self.paths[volume])
        pixels_CHW = np.moveaxis(self._one_time(pixels_HWC), -1, 0)
        return pick(torch.from_numpy(np.ascontiguousarray(to_stored_type(pixels_CHW))), self.settings.selection.numbers)

    def describe(self, index: int) -> str:
        volume, row = map(int, self._slice_N2[index])
        return f"{printable_name(self.paths[volume])} slice {row}"

    def missing(self) -> str:
        reason = unreachable(self.root)
        return reason and f"{self._key} {printable_name(self.root)}: {reason}"

    def _one_time(self, pixels_HWC: np.ndarray) -> np.ndarray:
        """The channels of a slice. Raises BrokenImage where they are others than DATA.channels."""
        settings, count = self.settings, pixels_HWC.shape[-1]
        if settings.pages == "max":
            pixels_HWC = pixels_HWC.max(-1, keepdims=True)
        elif settings.pages != "channels":
            time = 0 if settings.pages == "first" else count // 2
            pixels_HWC = pixels_HWC[..., time : time + 1]
        if settings.selection.numbers or pixels_HWC.shape[-1] == settings.channels:
            return pixels_HWC
        raise BrokenImage(
            f"a volume with {count} values a place, and DATA.channels is {settings.channels}: set it to that, or, "
            "where they are times, DATA.channels 1 and DATA.pages first, middle or max"
        )


def _volumes(value: str, key: str, axis: int) -> tuple[list[Path], np.ndarray]:
    """The volumes that the value of a key names, sorted, and the number of slices of each, (V,) int64."""
    root = Path(value).absolute()
    if not value or not root.exists():
        missing = f"{printable_name(value)} does not exist" if value else "is empty"
        raise ValueError(f"{key} {missing}: name a folder of {' or '.join(ENDINGS)} files, or one of them")
    try:
        import nibabel  # noqa: F401 - said here, and not for each volume
    except ImportError as error:
        raise ValueError("DATA.name nifti needs the package nibabel: pip install 'mim-toolkit[nifti]'") from error
    files = [root] if root.is_file() else sorted(root.rglob("*.nii*"))
    paths = [path for path in files if path.name.lower().endswith(ENDINGS) and not path.name.startswith(".")]
    if not paths:
        raise ValueError(f"{key} {printable_name(value)} holds no volume: looked for {' and '.join(ENDINGS)}")
    return paths, np.array([_slices(path, axis) for path in paths], np.int64)


def _slices(path: Path, axis: int) -> int:
    """The slices of a volume; 1 where its header cannot be read."""
    try:
        image, axes, _ = _opened(path)
        return int(image.shape[axes.index(axis)])
    except Exception:  # it is broken where it is read, and counted there
        return 1


def _opened(path: Path) -> tuple[Any, list[int], list[int]]:
    """The volume, which of X, Y and Z each of its axes is, and 1 or -1 where it runs along it or against it."""
    import nibabel

    os.stat(path)  # an error of nibabel's has no number, by which lost storage is told from damage
    image: Any = nibabel.load(path)
    if not 3 <= len(image.shape) <= 4:
        raise BrokenImage(f"a volume of {len(image.shape)} axes: 3 and 4 are read")
    orientation = nibabel.io_orientation(image.affine)
    if not np.isfinite(orientation).all():
        raise BrokenImage("its affine leaves out an axis")
    return image, [int(axis) for axis in orientation[:, 0]], [int(sign) for sign in orientation[:, 1]]


def _slice(path: Path, axis: int, row: int) -> np.ndarray:
    """One slice (H, W, C), read alone where the file is not compressed."""
    image, axes, signs = _opened(path)
    stored_axis = axes.index(axis)
    if signs[stored_axis] < 0:
        row = image.shape[stored_axis] - 1 - row
    index: list[Any] = [slice(None)] * len(image.shape)
    index[stored_axis] = row
    pixels = np.asarray(image.dataobj[tuple(index)])
    left = [stored for stored in range(3) if stored != stored_axis]
    pixels = np.flip(pixels, tuple(number for number, axis in enumerate(left) if signs[axis] < 0))
    if axes[left[0]] > axes[left[1]]:
        pixels = pixels.swapaxes(0, 1)
    pixels = np.flip(pixels.swapaxes(0, 1), 0)  # rows downwards
    return pixels if pixels.ndim == 3 else pixels[..., None]
