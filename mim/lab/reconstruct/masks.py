"""The masks of a sheet: of a run's masker or another one, at one ratio or several, or drawn by hand in a picture.

Shapes: B images, H W cells high and wide, or pixels of a picture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode

from mim import build
from mim.data.decoding.images import BrokenImage, decode
from mim.lab.reconstruct.models import LoadedRun
from mim.maskers import Masker
from mim.ops.seeding import generator_for
from mim.pictures.reconstructions import percent
from mim.registry import keys_of, one_of
from mim.structures import PatchMask

LOSSY = (".jpg", ".jpeg", ".webp")
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskChoice:
    """What to hide: by a masker, to which the run's own adds what is not asked here, or where a picture is not black.

    masker: its name; cell: side in pixels; ratios: one mask for each; picture: a file, of the size of the model's
    images or drawn over an image of another size, which is then cropped as that image is.
    """

    masker: str = ""
    cell: int = 0
    ratios: tuple[float, ...] = ()
    picture: Path | None = None

    def __post_init__(self) -> None:
        asked = [flag for flag in ("masker", "cell", "ratios") if getattr(self, flag)]
        if self.picture is not None and asked:
            raise ValueError(
                f"--mask tells what is hidden, and so does --{asked[0].removesuffix('s')}: name one of them"
            )


@dataclass(frozen=True, slots=True)
class Masks:
    """Masks of the same images, one after the other, and what a footnote must say of them."""

    masks: tuple[PatchMask, ...]
    words: str


def masks_of(asked: MaskChoice, runs: Sequence[LoadedRun], count: int, seed: int) -> Masks:
    """The same masks for all runs, whose images are of one size; a masker asked for completes itself from the first.

    A mask depends on the masker, the seed and the number of images. Raises ValueError where a masker has no such key or
    a run cannot take its cells, and where a picture hides nothing or everything.
    """
    if asked.picture is not None:
        return _drawn(asked.picture, runs, count)
    maskers = [masker_of(runs[0], asked, ratio) for ratio in asked.ratios or (None,)]
    for loaded in runs:
        check_cell(maskers[0], loaded)
    first = maskers[0]
    words = f"{first.name} masker, cells of {first.cell} px, seed {seed}"
    return Masks(tuple(sampled(masker, count, seed) for masker in maskers), words)


def masker_of(loaded: LoadedRun, asked: MaskChoice, ratio: float | None = None) -> Masker:
    """The masker that is asked for, with what is not from the run's. Raises ValueError where it has no such key."""
    held = loaded.cfg.MASKER
    part = Masker.named(asked.masker or held.name)
    own = keys_of(part)
    keys: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in held.items()}
    told = {"cell": asked.cell or None, "ratio": ratio}
    for key, value in told.items():
        if value is not None and key not in own:
            raise ValueError(f"--{key} {value:g} has no meaning for MASKER.name {part.name}. {one_of(key, own)}")
    keys |= {key: value for key, value in told.items() if value is not None}
    return part(loaded.image, **{key: value for key, value in keys.items() if key in own})


def check_cell(masker: Masker, loaded: LoadedRun) -> None:
    """Raises ValueError where a run cannot take the cells of a masker."""
    if masker.cell % loaded.patch:
        raise ValueError(
            f"{loaded.name} cannot take cells of {masker.cell} px: its encoder hides whole patches of {loaded.patch} "
            f"px, so MASKER.cell must be a multiple of {loaded.patch}"
        )


def sampled(masker: Masker, count: int, seed: int) -> PatchMask:
    """A mask for each image, on the CPU, so that it is the same on any device."""
    return masker.sample(count, generator_for(CPU, seed, "reconstruct"), CPU)


def _drawn(path: Path, runs: Sequence[LoadedRun], count: int) -> Masks:
    image = runs[0].image
    hidden_HW = _hidden(path, runs[0])
    cell = math.lcm(*(loaded.patch for loaded in runs))
    grid = image.grid(cell, "the patch that all runs share,")
    try:
        mask = PatchMask.from_tensor(PatchMask(hidden_HW[None]).at(*grid)[0], count)
    except ValueError as error:
        raise ValueError(f"--mask {path}, on patches of {cell} px: {error}") from error
    exact, share = hidden_HW.float().mean().item(), mask.hidden_BHW[0].float().mean().item()
    words = f"mask {path.name} hides {percent(exact)} of the pixels, and {percent(share)} on whole patches of {cell} px"
    return Masks((mask,), words)


def _hidden(path: Path, loaded: LoadedRun) -> Tensor:
    """(H, W) bool in the pixels of the model's images: True where a picture is neither black nor transparent.

    Of a format that loses detail, what is darker than half counts as black.
    """
    size = loaded.image.height, loaded.image.width
    grey = _grey(path)
    if (grey.height, grey.width) != size:
        crop = build.evaluation_crop(loaded.cfg)
        crop.interpolation = InterpolationMode.NEAREST
        levels_HW = crop(grey)[0]
    else:
        levels_HW = torch.from_numpy(np.array(grey))
    return levels_HW > (127 if path.suffix.lower() in LOSSY else 0)


def _grey(path: Path) -> Image.Image:
    if not path.is_file():
        raise ValueError(f"--mask {path} does not exist: name a picture, white where pixels are hidden")
    try:
        stored = decode(path, 4) if path.suffix.lower() != ".npy" else decode(path, 1)
    except BrokenImage as error:
        raise ValueError(f"--mask {path} cannot be read: {error}") from error
    if isinstance(stored, Tensor):  # an array, or a picture of 16 bits
        return Image.fromarray((stored[0].float().numpy() != 0).astype(np.uint8) * 255)
    black = Image.new("RGBA", stored.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, stored).convert("L")
