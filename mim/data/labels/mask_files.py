"""MaskFiles: the masks of images, pictures with a class for each pixel, and how one is read.

Shapes: N images, M masks, H W pixels.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from mim.data.decoding.broken import BrokenImage
from mim.data.decoding.names import printable_name
from mim.data.labels.layouts import FOREIGN, mask_layout, packed
from mim.data.labels.settings import LabelSettings
from mim.data.sources.base import unreachable
from mim.data.sources.names import Names
from mim.io.formatting import list_names, printable
from mim.structures import LabelSpec


class MaskFiles:
    """The masks of the images of a source.

    Attributes: spec, the classes; is_there_N, which images have a mask; is_mask_N, which images of the source are masks
    themselves, as where masks lie among images; words, how names were compared.

    Args:
        paths: the path of each image's mask, empty where there is none.
        is_mask_N: see above.
        folder: LABELS.masks.
        settings: the layout.
        words: see above.
    """

    def __init__(self, paths: list[str], is_mask_N: np.ndarray, folder: Path, settings: LabelSettings, words: str):
        self.paths, self.is_mask_N, self.words = Names.of(paths), is_mask_N, words
        self.is_there_N = self.paths.sizes() > 0
        self.folder, self.layout, self._name = folder, mask_layout(settings), settings.layout
        self.spec = LabelSpec("mask", self.layout.names)

    def read(self, index: int) -> np.ndarray:
        """The class of each pixel, (H, W) int64, -1 for none.

        Raises BrokenImage where the file cannot be read, or has a number or colour that the layout does not have.
        """
        path = self.paths[index]
        try:
            pixels = np.load(path, allow_pickle=False) if path.endswith(".npy") else self._pixels(path)
        except Exception as error:  # decoders raise a dozen unrelated types on damaged files
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise BrokenImage(f"its mask {printable_name(path)}: {printable(str(reason))}") from error
        if pixels.ndim == 3:
            return self._of_colours(pixels[..., :3], path)
        if not np.issubdtype(pixels.dtype, np.integer) and pixels.dtype != bool:
            raise BrokenImage(f"its mask {printable_name(path)} holds {pixels.dtype}, and classes are whole numbers")
        return self._of_numbers(pixels.astype(np.int64), path)

    def missing(self) -> str:
        """Why the masks cannot be reached now; empty where they can."""
        reason = unreachable(self.folder)
        return reason and f"LABELS.masks {printable_name(self.folder)}: {reason}"

    def _pixels(self, path: str) -> np.ndarray:
        """The numbers (H, W) or colours (H, W, 3 or more) of a picture."""
        with Image.open(path) as picture:
            if picture.mode in ("P", "PA") and self.layout.prefers_colours:
                return np.asarray(picture.convert("RGB"))
            if picture.mode in ("LA", "PA"):
                return np.asarray(picture)[..., 0]
            return np.asarray(picture)

    def _of_numbers(self, numbers_HW: np.ndarray, path: str) -> np.ndarray:
        class_of_number = self.layout.class_of_number
        inside_HW = (numbers_HW >= 0) & (numbers_HW < len(class_of_number))
        class_HW = np.where(inside_HW, class_of_number[np.where(inside_HW, numbers_HW, 0)], FOREIGN)
        if (class_HW == FOREIGN).any():
            row, column = np.argwhere(class_HW == FOREIGN)[0].tolist()
            known = np.flatnonzero(class_of_number >= 0).tolist()
            if not known:
                raise BrokenImage(f"its mask {printable_name(path)} holds numbers, and LABELS.layout is {self._name}")
            raise BrokenImage(
                f"its mask {printable_name(path)} has the number {numbers_HW[row, column]} (row {row}, column "
                f"{column}), and the {len(self.layout.names)} classes of LABELS.layout {self._name} have the numbers "
                f"{list_names(tuple(map(str, known)))}: LABELS.values names other numbers, and LABELS.ignore that of "
                "pixels without a class"
            )
        return class_HW

    def _of_colours(self, rgb_HW3: np.ndarray, path: str) -> np.ndarray:
        colours = self.layout.colours
        if not len(colours):
            if (rgb_HW3 == rgb_HW3[..., :1]).all():  # grey, saved as RGB
                return self._of_numbers(rgb_HW3[..., 0].astype(np.int64), path)
            raise BrokenImage(
                f"its mask {printable_name(path)} has colours, and LABELS.layout is {self._name}: set it to colours, "
                "with a LABELS.palette"
            )
        packed_HW = packed(rgb_HW3)
        place_HW = np.searchsorted(colours, packed_HW).clip(max=len(colours) - 1)
        is_known_HW = colours[place_HW] == packed_HW
        if not is_known_HW.all():
            row, column = np.argwhere(~is_known_HW)[0].tolist()
            raise BrokenImage(
                f"its mask {printable_name(path)} has the colour {rgb_HW3[row, column].tolist()} (row {row}, column "
                f"{column}), which is not among the {len(colours)} of "
                f"{'the palette of VOC' if self._name == 'voc' else 'LABELS.palette'}"
            )
        return self.layout.class_of_colour[place_HW]
