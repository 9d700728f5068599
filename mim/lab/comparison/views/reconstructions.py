"""Sheets for a comparison page: several runs on the same held-out images under the same masks."""

from collections.abc import Sequence
from pathlib import Path

from mim.lab.comparison.result import Sheet
from mim.lab.reconstruct.images import ImageSet, held_out_images
from mim.lab.reconstruct.masks import MaskChoice, check_cell, masker_of, sampled
from mim.lab.reconstruct.models import LoadedRun, load_run, size_text
from mim.maskers import Masker
from mim.pictures.reconstructions import UNEQUAL, Reconstruction, draw_columns, percent
from mim.pictures.sheets import png

MASKERS = 3  # sheets of one image size
BYTES = 400_000  # of a PNG file


def held_out_sheets(runs: dict[str, Path], images: int = 4, seed: int = 0) -> tuple[Sheet, ...]:
    """What runs predict of the same held-out images, of the first run's data, under the same masks.

    There is a sheet for each distinct masker (name, cell, ratio) of the runs, three at most. Its caption names runs
    that cannot be drawn. Runs with images of another size or other channels get a sheet of their own. Raises ValueError
    where a run cannot be loaded, or where the data have no held-out images.
    """
    loaded = [load_run(path, (), name) for name, path in runs.items()]
    sizes = list(dict.fromkeys(each.image for each in loaded))
    sheets = []
    for size in sizes:
        alike = [each for each in loaded if each.image == size]
        batch = held_out_images(alike[0], images, seed)
        configured = [masker_of(each, MaskChoice()) for each in alike]
        maskers = {(each.name, each.cell, round(each.ratio, 6)): each for each in configured}
        for masker in list(maskers.values())[: MASKERS if size == sizes[0] else 1]:
            sheets.append(_sheet(alike, batch, masker, seed, several_sizes=len(sizes) > 1))
    return tuple(sheet for sheet in sheets if sheet is not None)


def _sheet(runs: Sequence[LoadedRun], batch: ImageSet, masker: Masker, seed: int, several_sizes: bool) -> Sheet | None:
    """None where no run can be drawn."""
    count = len(batch.names)
    mask = sampled(masker, count, seed)
    drawn: dict[str, Reconstruction] = {}
    left_out: list[str] = []
    for run in runs:
        try:
            check_cell(masker, run)
            drawn[run.name] = run.predict(batch.images_BCHW, mask)
        except ValueError as error:
            left_out.append(f"Not shown: {error}.")
    if not drawn:
        return None
    size = f" of {size_text(runs[0].image)}" if several_sizes else ""
    unit = next(iter(drawn.values())).unit
    unequal = UNEQUAL if len({each.borrowed for each in drawn.values()}) > 1 else ""
    caption = [
        f"{count} held-out images{size} of the data of {runs[0].name}, each under one mask that is the same for all "
        f"runs. Visible pixels are pasted into predictions. Error: mean absolute error over hidden pixels, {unit}.",
        *(f"{name}: the prediction borrows the {d.borrowed}{unequal}." for name, d in drawn.items() if d.borrowed),
        *left_out,
    ]
    alt = f"A column for each of {count} images; from the top: original, masked, prediction of {', of '.join(drawn)}"
    title = f"{masker.name} masker, cells of {masker.cell} px, {percent(masker.ratio)} hidden"
    title += f", images{size}" if several_sizes else ""
    return Sheet(title[0].upper() + title[1:], " ".join(caption), alt, png(draw_columns(drawn), BYTES))
