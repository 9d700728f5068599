"""Prepare: a table and two lists of the solar cells in the package elpv-dataset, and the split into modules.

    python examples/solar/prepare.py runs/solar

writes `cells.csv`, a row for each image with its labels; `train.txt` and `val.txt`, lists of images without labels; and
`cracks.txt`, a few held-out cells to look at. All name the images where the package has them: none is copied. Their
licence is CC BY-NC-SA 4.0.

The package does not say which cells were cut from one module. Its numbers do: cells follow each other module by module.
docs/solar.md says how the modules below were found, and what shows that no other image of their cells is left.
"""

import argparse
import csv
from bisect import bisect_right
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

# The number of each module's first cell. 1141 begins two modules of one kind, with no visible border between them.
FIRST_CELLS = (
    *range(1, 1142, 60),
    *range(1255, 1736, 60),
    *range(1785, 2146, 60),
    *(2217, 2277, 2337, 2397, 2445, 2505, 2565),
)
# The group that a module joins. 50 cells of 2277 are those of 1735 in another picture, and cells of the two others have
# a twin in it: a correlation above 0.7, without background and contacts.
ONE_GROUP = {2277: 1735, 1785: 1735, 721: 601}
THRESHOLD = 0.5  # the probability from which a cell counts as defective
HELD_OUT = 3  # every third module of each type is held out
CRACKS = (187, 221, 428, 448, 459, 462, 800, 817)  # held-out cells with cracks and dark parts
COLUMNS = ("path", "defect", "probability", "type", "module", "split")


@dataclass(frozen=True, slots=True)
class Cell:
    """One image and what the package and its place say of it."""

    number: int
    path: Path
    probability: float
    type: str  # mono or poly
    module: int  # the number of the first cell of its group of modules

    @property
    def defect(self) -> str:
        """The class."""
        return "defective" if self.probability >= THRESHOLD else "functional"


def read_cells() -> list[Cell]:
    """All cells, in their order. Raises ValueError where the package is missing or is another release."""
    try:
        folder = Path(str(resources.files("elpv_dataset"))) / "data"
    except ModuleNotFoundError as error:
        raise ValueError("the images are in the package elpv-dataset: pip install 'mim-toolkit[examples]'") from error
    cells = []
    for line in (folder / "labels.csv").read_text(encoding="utf-8").splitlines():
        path, probability, kind = line.split()
        number = int(path[-8:-4])  # of images/cell0001.png
        cells.append(Cell(number, folder / path, float(probability), kind, module_of(number)))
    if len(cells) != 2624:
        raise ValueError(f"elpv-dataset has {len(cells):,} cells and not 2,624: modules are known of release 1.0.0")
    return cells


def module_of(number: int) -> int:
    """The number of the first cell of the group of modules that a cell belongs to."""
    first = FIRST_CELLS[bisect_right(FIRST_CELLS, number) - 1]
    return ONE_GROUP.get(first, first)


def held_out_modules(cells: list[Cell]) -> set[int]:
    """The third, sixth, ... module of each type."""
    of_type = {kind: sorted({cell.module for cell in cells if cell.type == kind}) for kind in ("mono", "poly")}
    return {module for modules in of_type.values() for module in modules[HELD_OUT - 1 :: HELD_OUT]}


def write(cells: list[Cell], output: Path) -> None:
    """Writes cells.csv, train.txt, val.txt and cracks.txt."""
    output.mkdir(parents=True, exist_ok=True)
    held_out = held_out_modules(cells)
    splits = ["val" if cell.module in held_out else "train" for cell in cells]
    with (output / "cells.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for cell, split in zip(cells, splits, strict=True):
            table.writerow((cell.path, cell.defect, f"{cell.probability:.2f}", cell.type, cell.module, split))
    lists = {split: [cell for cell, of in zip(cells, splits, strict=True) if of == split] for split in ("train", "val")}
    lists["cracks"] = [cell for cell in cells if cell.number in CRACKS]
    for name, listed in lists.items():
        (output / f"{name}.txt").write_text("".join(f"{cell.path}\n" for cell in listed), encoding="utf-8")


def main() -> None:
    """Writes the files and says what is in them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder of the files")
    output = parser.parse_args().output
    try:
        cells = read_cells()
    except ValueError as error:
        parser.error(str(error))
    write(cells, output)
    held_out = held_out_modules(cells)
    for which, chosen in (
        ("training", [cell for cell in cells if cell.module not in held_out]),
        ("held-out", [cell for cell in cells if cell.module in held_out]),
    ):
        defects = sum(cell.defect == "defective" for cell in chosen)
        groups = len({cell.module for cell in chosen})
        print(f"{which}: {len(chosen):,} cells of {groups} groups of modules, {defects:,} of them defective")


if __name__ == "__main__":
    main()
