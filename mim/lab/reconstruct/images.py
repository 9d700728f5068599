"""The images of a sheet: files, or held-out images of a run's data, both as the run's evaluations see them.

Shapes: B images, C channels, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mim import build
from mim.data.decoding.broken import Notes
from mim.data.decoding.images import EXTENSIONS, BrokenImage, decode
from mim.data.decoding.values import check_values
from mim.data.scaling import scaled
from mim.data.sources.files import images_of
from mim.evaluation.reading import readable_images
from mim.lab.reconstruct.models import LoadedRun

HELD_OUT = 8  # images of a sheet, where none are named
MOST = 100  # rows of a sheet: one for each image and ratio


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Stored images (B, C, H, W) and their names."""

    images_BCHW: Tensor
    names: tuple[str, ...]


def images_from_files(paths: Sequence[Path], loaded: LoadedRun) -> ImageSet:
    """Images from files, list files and all files in and below folders, under the evaluation transform of a run."""
    files = [file for path in paths for file in _files(path)]
    if len(files) > MOST:
        raise ValueError(f"{len(files)} images are named, and a sheet holds at most {MOST}: name fewer")
    crop = build.evaluation_crop(loaded.cfg)
    images: list[Tensor] = []
    data, say = loaded.cfg.DATA.shared, Notes()
    for file in files:
        try:
            stored = check_values(decode(file, loaded.image.channels, say, data.selection), data)
            images.append(crop(check_values(scaled(stored, data), data)))
        except BrokenImage as error:
            raise ValueError(f"{file} cannot be read: {error}") from error
        if images[-1].dtype != images[0].dtype:
            types = f"{file} is stored as {images[-1].dtype} and {files[0]} as {images[0].dtype}"
            raise ValueError(f"{types}: draw them on separate sheets")
    return ImageSet(torch.stack(images), _names(files))


def held_out_images(loaded: LoadedRun, count: int, seed: int) -> ImageSet:
    """Held-out images of a run's data, drawn by the seed; all of them where there are fewer than `count`."""
    if not 1 <= count <= MOST:
        raise ValueError(f"--held-out is {count}: a sheet holds 1 to {MOST} images")
    if not loaded.source.has_data:
        raise ValueError(f"{loaded.path} is not a run of this toolkit and names no data: name images")
    source = build.build_data(loaded.cfg)[1]
    if not len(source):
        way_out = "name images, or others with --set DATA.path"
        raise ValueError(f"the data of {loaded.path} have no held-out images: {way_out}")
    read = readable_images(build.evaluation_data(loaded.cfg, source), count, seed).batch
    return ImageSet(read.images_BCHW, _names([Path(source.describe(index)) for index in read.indices]))


def _names(files: Sequence[Path]) -> tuple[str, ...]:
    """Names of files, with the name of their folder where they repeat."""
    names = tuple(file.name for file in files)
    return names if len(set(names)) == len(names) else tuple(f"{file.parent.name}/{file.name}" for file in files)


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise ValueError(f"{path} does not exist: name images, folders of them, or a .txt list")
    if path.is_file():
        return [Path(name) for name in images_of(path)]
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
    if not files:
        raise ValueError(f"{path} holds no images: in it and below there is none of {' '.join(sorted(EXTENSIONS))}")
    return files
