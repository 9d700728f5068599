"""Picture files: the ending of the name decides the format, and another ending is refused.

Shapes: H W pixels, 3 red, green, blue.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim.io.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

JPEG: tuple[str, dict[str, Any]] = ("JPEG", {"quality": 95, "subsampling": 0})
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {".png": ("PNG", {"optimize": True}), ".jpg": JPEG, ".jpeg": JPEG}
JPEG_SIDE = 65_535  # pixels: the most that JPEG allows


def check_ending(flag: str, path: Path) -> None:
    """Raises ValueError where no picture can be written under this name. It needs no torch."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{flag} is {path}: a picture is written as {' or '.join(FORMATS)}, so name such a file")


def write_picture(path: Path, picture_HW3: "Tensor") -> None:
    """Writes uint8 values to a file, and makes its folder. PNG keeps them exactly.

    Raises ValueError for an ending of no format here, and where the picture is too large for JPEG.
    """
    check_ending("the name of the picture", path)
    from PIL import Image

    name, settings = FORMATS[path.suffix.lower()]
    longest = max(picture_HW3.shape)
    if name == "JPEG" and longest > JPEG_SIDE:
        raise ValueError(
            f"{path}: JPEG allows {JPEG_SIDE:,} pixels a side, and this picture has {longest:,}: name a .png"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: Image.fromarray(picture_HW3.numpy()).save(file, name, **settings))
