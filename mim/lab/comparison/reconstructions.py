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

MASKERS = 3
BYTES = 400_000


def held_out_sheets(runs: dict[str, Path], images: int = 4, seed: int = 0) -> tuple[Sheet, ...]:
    """What runs, by name, make of the same held-out images of the first run's data under the same masks.

    A sheet for each distinct masker (name, cell, ratio) of the runs, three at most; a caption names runs that cannot
    take that mask, or whose target is no picture. Runs with images of another size or of other channels get a sheet of
    their own, on images of the first of them. A PNG file has about 400 kB at most.

    Raises ValueError where a run cannot be loaded, or the data have no held-out images.
    """
    loaded = [load_run(path, (), name) for name, path in runs.items()]
    kinds = list(dict.fromkeys(each.image for each in loaded))
    sheets: list[Sheet] = []
    for kind in kinds:
        alike = [each for each in loaded if each.image == kind]
        shown = held_out_images(alike[0], images, seed)
        maskers = {_key(masker): masker for masker in (masker_of(each, MaskChoice()) for each in alike)}
        for masker in list(maskers.values())[: MASKERS if kind == kinds[0] else 1]:
            sheet = _sheet(alike, shown, masker, seed, others=len(kinds) > 1)
            sheets += [sheet] if sheet is not None else []
    return tuple(sheets)


def _sheet(runs: Sequence[LoadedRun], shown: ImageSet, masker: Masker, seed: int, others: bool) -> Sheet | None:
    """None where no run can be drawn."""
    mask = sampled(masker, len(shown.names), seed)
    drawn: dict[str, Reconstruction] = {}
    left_out: list[str] = []
    for each in runs:
        try:
            check_cell(masker, each)
            drawn[each.name] = each.predict(shown.images_BCHW, mask)
        except ValueError as error:
            left_out.append(f"Not shown: {error}.")
    if not drawn:
        return None
    image, count = runs[0].image, len(shown.names)
    of = f" of {size_text(image)}" if others else ""
    unit = next(iter(drawn.values())).unit
    unequal = UNEQUAL if len({each.borrowed for each in drawn.values()}) > 1 else ""
    caption = [
        f"{count} held-out images{of} of the data of {runs[0].name}, each under one mask that is the same for all "
        f"runs; visible pixels are pasted into predictions. Error: mean absolute error over hidden pixels, {unit}.",
        *(
            f"{name}: the prediction borrows the {each.borrowed}{unequal}."
            for name, each in drawn.items()
            if each.borrowed
        ),
        *left_out,
    ]
    alt = f"A column for each of {count} images; from the top: original, masked, prediction of {', of '.join(drawn)}"
    title = f"{masker.name} masker, cells of {masker.cell} px, {percent(masker.ratio)} hidden{', images' * others}{of}"
    return Sheet(title[0].upper() + title[1:], " ".join(caption), alt, png(draw_columns(drawn), BYTES))


def _key(masker: Masker) -> tuple[str, int, float]:
    return masker.name, masker.cell, round(masker.ratio, 6)
