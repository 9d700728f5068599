"""Ink: masks of scikit-learn's digits by a rule, for segmentation on real pixels.

    python examples/ink.py runs/ink

writes `images/` and `masks/`, each with `train` and `val` as DATA.name digits has them. In a mask, ink has the class of
its digit, 1 for a zero to 10 for a nine, and 0 is paper. Ink is what is brighter than half of the brightest level: the
digits are bright on black. So a model must know where the ink is, and which digit it is part of.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from mim.data.settings import DataSettings
from mim.data.sources.digits import Digits

INK = 127  # of 255 levels: ink is above it


def main(folder: Path) -> None:
    """Writes an image and a mask of each digit."""
    for split in ("train", "val"):
        digits = Digits(split, DataSettings(channels=1))
        assert digits.labels is not None
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for row in range(len(digits)):
            levels_HW = np.asarray(digits.read(row))
            mask_HW = np.where(levels_HW > INK, digits.labels[row] + 1, 0).astype(np.uint8)
            name = f"{split}/{row:04d}.png"
            Image.fromarray(levels_HW).save(folder / "images" / name)
            Image.fromarray(mask_HW).save(folder / "masks" / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder for images and masks")
    main(parser.parse_args().folder)
