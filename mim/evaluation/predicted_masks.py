"""Predicted masks: a picture of the classes of each image, as large as the image, and a table beside them.

Shapes: H W pixels of a stored image, h w pixels of its evaluation crop.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from mim.data.decoding.images import BrokenImage
from mim.data.sources.base import Need, Source
from mim.data.transforms import CentreCrop
from mim.evaluation.predictions import ImagePrediction, MaskTable, PredictionTable, write_csv
from mim.io.files import write_atomically

TABLE = "predictions.csv"
SMALL = 255  # classes of a picture of 8 bits, where 255 has no class; a picture of 16 bits has 65,535


def at_stored_size(
    predictions: Iterable[ImagePrediction], source: Source, crop: CentreCrop
) -> Iterator[ImagePrediction]:
    """Classes of evaluation crops (h, w) as classes of the stored images (H, W); -1 outside of the crop.

    Each stored pixel takes the class of the crop's pixel under its middle. The predictions are in the order of the
    source.
    """
    for index, prediction in enumerate(predictions):
        if prediction.values is None:
            yield prediction
            continue
        try:
            _, size = source.read_reduced(index, lambda height, width: Need(8.0, 1))
        except BrokenImage as error:
            yield ImagePrediction(prediction.path, None, str(error))
            continue
        row_H, column_W = (each.numpy() for each in crop.cropped_places(size))
        classes_HW = prediction.values[row_H.clip(min=0)][:, column_W.clip(min=0)]
        yield replace(prediction, values=np.where((row_H < 0)[:, None] | (column_W < 0), -1, classes_HW))


def write_masks(predictions: Iterable[ImagePrediction], table: PredictionTable, folder: Path) -> None:
    """A PNG of classes for each image, NAME.png for NAME.jpg, and `predictions.csv`.

    Of a second image of that name the picture is NAME_2.png; the table has the name of each. Pixels without an answer
    are 255, of more than 255 classes 65535.
    """
    assert isinstance(table, MaskTable)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = np.uint8 if len(table.names) <= SMALL else np.uint16
    taken: set[str] = set()

    def written() -> Iterator[ImagePrediction]:
        for prediction in predictions:
            if prediction.values is not None:
                name = _free_name(Path(prediction.path).stem, taken)
                levels_HW = np.where(prediction.values < 0, np.iinfo(dtype).max, prediction.values).astype(dtype)
                write_atomically(folder / name, partial(Image.fromarray(levels_HW).save, format="PNG"))
                prediction = replace(prediction, mask=name)
            yield prediction

    write_csv(written(), table, folder / TABLE)


def check_folder(folder: Path, paths: Iterable[str]) -> None:
    """Raises ValueError where masks would lie in a folder with the images themselves, and could replace them."""
    own = folder.resolve()
    if any(parent.resolve() == own for parent in {Path(path).parent for path in paths}):
        raise ValueError(f"--output {folder} has images that are predicted, and masks could replace them: name another")


def _free_name(stem: str, taken: set[str]) -> str:
    """The name of a picture that no other has, whatever the case of its letters."""
    name, number = f"{stem}.png", 1
    while name.casefold() in taken:
        number += 1
        name = f"{stem}_{number}.png"
    taken.add(name.casefold())
    return name
