"""The images of a sheet: files, or held-out images of a run's own data, as that run's evaluations see them.

Shapes: B images, C channels, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mim import build
from mim.data.decoding.images import EXTENSIONS, BrokenImage, decode
from mim.evaluation.reading import Reader, choice
from mim.lab.reconstruct.models import LoadedRun

MOST = 100  # rows of a sheet


@dataclass(frozen=True, slots=True)
class Shown:
    """Stored images (B, C, H, W), each with a name for people."""

    images_BCHW: Tensor
    names: tuple[str, ...]


def images_of(paths: Sequence[Path], loaded: LoadedRun) -> Shown:
    """Images from files, and from all in and below folders, under the evaluation transform of a run.

    Raises ValueError where one cannot be read or is stored in another type than the first, and for more than fit on a
    sheet.
    """
    files = [file for path in paths for file in _files(path)]
    if len(files) > MOST:
        raise ValueError(f"{len(files)} images are named, and a sheet holds at most {MOST}: name fewer")
    crop = build.evaluation_crop(loaded.cfg)
    images: list[Tensor] = []
    for file in files:
        try:
            images.append(crop(decode(file, loaded.image.channels)))
        except BrokenImage as error:
            raise ValueError(f"{file} cannot be read: {error}") from error
        if images[-1].dtype != images[0].dtype:
            raise ValueError(
                f"{file} is stored as {images[-1].dtype} and {files[0]} as {images[0].dtype}: draw them on sheets of "
                "their own"
            )
    return Shown(torch.stack(images), _named(files))


def held_out_images(loaded: LoadedRun, count: int, seed: int) -> Shown:
    """So many of the held-out images of a run's data, drawn by the seed; all where there are fewer.

    Raises ValueError where it has none, or the data are not where its config says.
    """
    if not 1 <= count <= MOST:
        raise ValueError(f"--held-out is {count}: a sheet holds 1 to {MOST} images")
    if loaded.of_others:
        raise ValueError(f"{loaded.path} is not a run of this toolkit, and no data belong to it: name images")
    source = build.build_data(loaded.cfg)[1]
    if not len(source):
        raise ValueError(
            f"the data of {loaded.path} have no held-out images: name images, or others with --set DATA.path"
        )
    rows = choice(len(source), count, seed)
    batches = [each.batch for each in Reader(len(rows), 0).read(build.evaluation_data(loaded.cfg, source), rows)]
    files = [Path(source.describe(index)) for batch in batches for index in batch.indices]
    return Shown(torch.cat([batch.images_BCHW for batch in batches]), _named(files))


def _named(files: Sequence[Path]) -> tuple[str, ...]:
    """Names of files, with that of their folder where they do not differ."""
    names = tuple(file.name for file in files)
    if len(set(names)) < len(names):
        names = tuple(f"{file.parent.name}/{file.name}" for file in files)
    return names


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise ValueError(f"{path} does not exist: name images, or folders of them")
    if path.is_file():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
    if not found:
        raise ValueError(f"{path} holds no images: looked in it and below for {' '.join(sorted(EXTENSIONS))}")
    return found
