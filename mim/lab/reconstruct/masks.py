"""The masks of a sheet: sampled by the masker of a run or by another one, or drawn by hand in a picture.

Shapes: B images, H W cells high and wide, or pixels of a picture.
"""

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
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
from mim.data.sources.base import Stored
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
    """What to hide: cells chosen by a masker, or the pixels where a picture is not black, but not both.

    A picture is as large as the model's images, or of another image's size and then cropped as that image is.
    """

    masker: str = ""  # its name; empty for that of the run, which also sets what is not chosen here
    cell: int = 0  # side of a cell in pixels; 0 for that of the run
    ratios: tuple[float, ...] = ()  # hidden shares, one mask for each; none for that of the run
    picture: Path | None = None

    def __post_init__(self) -> None:
        flags = [flag for flag in ("masker", "cell", "ratios") if getattr(self, flag)]
        if self.picture is not None and flags:
            raise ValueError(f"--mask and --{flags[0].removesuffix('s')} both say what is hidden: name one of them")


def masks_for(
    choice: MaskChoice, runs: Sequence[LoadedRun], count: int, seed: int
) -> tuple[tuple[PatchMask, ...], str]:
    """Masks of `count` images, the same for all runs, and a footnote on them. The first run sets what is not chosen.

    Raises ValueError where a masker has no such key, a run cannot take its cells, or a picture hides nothing or all.
    """
    if choice.picture is not None:
        return _drawn(choice.picture, runs, count)
    first, *others = (masker_of(runs[0], choice, ratio) for ratio in choice.ratios or (None,))
    for loaded in runs:
        check_cell(first, loaded)
    note = f"{first.name} masker, cells of {first.cell} px, seed {seed}"
    return tuple(sampled(masker, count, seed) for masker in (first, *others)), note


def masker_of(loaded: LoadedRun, choice: MaskChoice, ratio: float | None = None) -> Masker:
    """The chosen masker; the run's config sets what is not chosen. Raises ValueError where it has no such key."""
    configured = loaded.cfg.MASKER
    part = Masker.named(choice.masker or configured.name)
    allowed = keys_of(part)
    keys: dict[str, Any] = dict(configured.arguments)
    chosen = {"cell": choice.cell or None, "ratio": ratio}
    for key, value in chosen.items():
        if value is not None and key not in allowed:
            raise ValueError(f"--{key} {value:g} has no meaning for MASKER.name {part.name}. {one_of(key, allowed)}")
    keys |= {key: value for key, value in chosen.items() if value is not None}
    return part(loaded.image, **{key: value for key, value in keys.items() if key in allowed})


def check_cell(masker: Masker, loaded: LoadedRun) -> None:
    """Raises ValueError where a run cannot take the cells of a masker."""
    cell, patch = masker.cell, loaded.patch
    if cell % patch:
        reason = f"its encoder hides whole patches of {patch} px, so MASKER.cell must be a multiple of {patch}"
        raise ValueError(f"{loaded.name} cannot take cells of {cell} px: {reason}")


def sampled(masker: Masker, count: int, seed: int) -> PatchMask:
    """A mask for each image, on the CPU, so that it is the same for any device."""
    return masker.sample(count, generator_for(CPU, seed, "reconstruct"), CPU)


def _drawn(path: Path, runs: Sequence[LoadedRun], count: int) -> tuple[tuple[PatchMask, ...], str]:
    hidden_HW = _hidden(path, runs[0])
    cell = math.lcm(*(loaded.patch for loaded in runs))
    grid = runs[0].image.grid(cell, "the common patch of the runs", "draw them on separate sheets")
    try:
        mask = PatchMask.from_tensor(PatchMask(hidden_HW[None]).at(*grid)[0], count)
    except ValueError as error:
        raise ValueError(f"--mask {path}, on patches of {cell} px: {error}") from error
    drawn, hidden = percent(hidden_HW.float().mean().item()), percent(mask.hidden_BHW[0].float().mean().item())
    return (mask,), f"mask {path.name} hides {drawn} of the pixels, and {hidden} on whole patches of {cell} px"


def _hidden(path: Path, loaded: LoadedRun) -> Tensor:
    """(H, W) bool in the pixels of the model's images: True where a picture is neither black nor transparent."""
    grey = _grey(path)
    if (grey.height, grey.width) == (loaded.image.height, loaded.image.width):
        levels_HW = torch.from_numpy(np.array(grey))
    else:
        crop = build.evaluation_crop(loaded.cfg)
        crop.interpolation = InterpolationMode.NEAREST
        levels_HW = crop(grey)[0]
    return levels_HW > (127 if path.suffix.lower() in LOSSY else 0)  # a lossy format has no exact black


def _grey(path: Path) -> Image.Image:
    if not path.is_file():
        raise ValueError(f"--mask {path} does not exist: name a picture, white where pixels are hidden")
    stored = _stored(path)
    if isinstance(stored, Tensor):  # an array, or a picture of 16 bits
        drawn_HW = (stored[:3].float() != 0).any(0) & (stored[3:].float() != 0).all(0)
        return Image.fromarray(drawn_HW.numpy().astype(np.uint8) * 255)
    black = Image.new("RGBA", stored.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, stored.convert("RGBA")).convert("L")


def _stored(path: Path) -> Stored:
    """The picture with its transparency, where it has one and its format allows it."""
    first, *others = (1,) if path.suffix.lower() == ".npy" else (4, 1, 3)
    try:
        return decode(path, first, say=_nothing)
    except BrokenImage as error:
        for channels in others:
            with suppress(BrokenImage):
                return decode(path, channels, say=_nothing)
        raise ValueError(f"--mask {path} cannot be read: {error}") from error


def _nothing(notes: Iterable[str], file: object) -> None:
    """What a mask leaves out of a picture need not be said."""
