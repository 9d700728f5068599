"""One sheet: images under masks, and what one or several runs predict of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mim.lab.reconstruct.images import HELD_OUT, MOST, held_out_images, images_from_files
from mim.lab.reconstruct.masks import MaskChoice, masks_for
from mim.lab.reconstruct.models import LoadedRun, load_run, run_name, size_text
from mim.pictures.channels import Channels
from mim.pictures.reconstructions import Reconstruction, draw_rows


@dataclass(frozen=True, slots=True)
class ReconstructionSheet:
    """A sheet, and what it shows."""

    picture_HW3: Tensor
    loaded: tuple[LoadedRun, ...]
    runs: dict[str, Reconstruction]  # by name of the run; the images follow each other, each under all masks
    names: tuple[str, ...]  # of the images

    def mean_errors(self, run: str) -> list[tuple[float, float]]:
        """For each mask the share of an image that it hides, and the mean error of a run over all images."""
        images = self.runs[run]
        shares, errors = (each_B.view(len(self.names), -1).mean(dim=0) for each_B in (images.share_B, images.error_B))
        return list(zip(shares.tolist(), errors.tolist(), strict=True))

    @property
    def unit(self) -> str:  # of errors
        return next(iter(self.runs.values())).unit


def reconstruction_sheet(
    run: Path,
    images: Sequence[Path] = (),
    *,
    beside: Sequence[Path] = (),
    mask: MaskChoice | None = None,
    channels: Channels = (),
    held_out: int | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> ReconstructionSheet:
    """Draws a row for each image and each ratio, with several runs side by side under the same masks.

    Args:
        run: a run folder or checkpoint; its evaluation transform makes the images, its masker the masks.
        images: files and folders; without any, held-out images of the run's data.
        beside: other runs, for images of the same size and channels.
        mask: what to hide; by default what the run's own masker hides.
        channels: as in mim.pictures.channels.view_of.
        held_out: how many held-out images, where no images are named; 8 by default.
        seed: of the masks, and of the choice of held-out images.
        overrides: `KEY VALUE` pairs over the config of `run`.

    Raises ValueError where runs, images and masks do not fit each other, and where one cannot be read.
    """
    paths = [run, *beside]
    names = _distinct_names(paths)
    loaded = [load_run(path, overrides if path is run else (), name) for path, name in zip(paths, names, strict=True)]
    first = loaded[0]
    for other in loaded[1:]:
        if other.image != first.image:
            ours, theirs = size_text(first.image), size_text(other.image)
            sizes = f"{first.path} takes images of {ours} and {other.path} of {theirs}"
            raise ValueError(f"{sizes}: runs side by side need images of one size")
    if images and held_out is not None:
        raise ValueError(f"--held-out {held_out} has no effect where images are named: leave out one of the two")
    count = HELD_OUT if held_out is None else held_out
    batch = images_from_files(images, first) if images else held_out_images(first, count, seed)
    count = len(batch.names)
    masks, note = masks_for(mask or MaskChoice(), loaded, count, seed)
    if count * len(masks) > MOST:
        rows = f"{count} images under {len(masks)} ratios make {count * len(masks)} rows"
        raise ValueError(f"{rows}, and a sheet holds at most {MOST}: name fewer images or ratios")
    by_image = [number * count + image for image in range(count) for number in range(len(masks))]
    runs = {}
    for each in loaded:
        by_mask = [each.predict(batch.images_BCHW, mask) for mask in masks]
        runs[each.name] = Reconstruction.joined(by_mask).rows(by_image)
    notes = [f"{note[0].upper()}{note[1:]}.", *(f"{each.name}: {each.description}." for each in loaded)]
    picture_HW3 = draw_rows(runs, batch.names, channels, notes)
    return ReconstructionSheet(picture_HW3, tuple(loaded), runs, batch.names)


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """A short name for each run, or its path where short names repeat."""
    short = [run_name(path) for path in paths]
    if len(set(short)) == len(short):
        return short
    names = [str(path) for path in paths]
    for path in names:
        if names.count(path) > 1:
            raise ValueError(f"--beside {path}: it is on the sheet already")
    return names
