"""One sheet: images under masks, and what one or several runs make of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mim.lab.reconstruct.images import Shown, held_out_images, images_of
from mim.lab.reconstruct.masks import MaskChoice, Masks, masks_of
from mim.lab.reconstruct.models import LoadedRun, name_of, open_run, words_of
from mim.pictures.channels import Channels
from mim.pictures.reconstructions import Reconstruction, draw_rows

HELD_OUT = 8


@dataclass(frozen=True, slots=True)
class Reconstructed:
    """A sheet, and what it shows.

    picture_HW3: uint8; runs: by name, images one after the other, each under all masks; names: of the images.
    """

    picture_HW3: Tensor
    loaded: tuple[LoadedRun, ...]
    runs: dict[str, Reconstruction]
    names: tuple[str, ...]

    @property
    def unit(self) -> str:
        """Of errors."""
        return next(iter(self.runs.values())).unit


def reconstruct(
    run: Path,
    images: Sequence[Path] = (),
    *,
    beside: Sequence[Path] = (),
    mask: MaskChoice | None = None,
    channels: Channels = (),
    held_out: int | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> Reconstructed:
    """A sheet of images, a row for each and for each ratio; several runs side by side under the same masks.

    Args:
        run: a run folder or checkpoint; its evaluation transform makes the images, its masker the masks.
        images: files and folders; where none, held-out images of the run's data.
        beside: other runs, of images of the same size and channels.
        mask: what to hide; the run's own masker where not said.
        channels: as in mim.pictures.channels.view_of.
        held_out: how many, where no images are named; 8 where not said.
        seed: of the masks, and of the choice of held-out images.
        overrides: `KEY VALUE` pairs over the config of `run`.

    Raises ValueError for what the user can mend, see the parts of this package.
    """
    paths = [run, *beside]
    names = distinct_names(paths)
    loaded = [open_run(path, overrides if path is run else (), name) for path, name in zip(paths, names, strict=True)]
    for other in loaded[1:]:
        if other.image != loaded[0].image:
            raise ValueError(
                f"{loaded[0].path} takes images of {words_of(loaded[0].image)} and {other.path} of "
                f"{words_of(other.image)}: runs side by side need images of one size"
            )
    if images and held_out is not None:
        raise ValueError(f"--held-out {held_out} has no effect where images are named: leave out one of the two")
    count = HELD_OUT if held_out is None else held_out
    shown = images_of(images, loaded[0]) if images else held_out_images(loaded[0], count, seed)
    masks = masks_of(mask or MaskChoice(), loaded, len(shown.names), seed)
    runs = {each.name: under(each, shown, masks) for each in loaded}
    notes = [f"{masks.words[0].upper()}{masks.words[1:]}.", *(f"{each.name}: {each.words}." for each in loaded)]
    picture_HW3 = draw_rows(runs, shown.names, channels, notes)
    return Reconstructed(picture_HW3, tuple(loaded), runs, shown.names)


def under(loaded: LoadedRun, shown: Shown, masks: Masks) -> Reconstruction:
    """What a run makes of images, the first under every mask, then the second, and so on."""
    parts = [loaded.predict(shown.images_BCHW, mask) for mask in masks.masks]
    count = len(shown.names)
    order = [number * count + place for place in range(count) for number in range(len(parts))]
    return Reconstruction.joined(parts).rows(order)


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """A short name for each; the whole path where the short ones are not distinct."""
    short = [name_of(path) for path in paths]
    if len(set(short)) == len(short):
        return short
    whole = [str(path) for path in paths]
    repeated = next((path for path in whole if whole.count(path) > 1), None)
    if repeated is not None:
        raise ValueError(f"--beside {repeated}: it is on the sheet already")
    return whole
