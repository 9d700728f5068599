"""benchmarks/loaders.py: each side that is installed reads the same images, and what the table says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from processes import ROOT

SIDES = ("torchvision", "webdataset", "litdata", "spdl")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("a", "b"):
        (folder / "train" / name).mkdir(parents=True)
        for index in range(4):
            picture = Image.effect_noise((96, 80), 50).convert("RGB")
            picture.save(folder / "train" / name / f"{index}.jpg")
    return folder


def run(*words: object) -> str:
    """The output of the script with turns as short as they can be."""
    few = ["--rounds", "2", "--seconds", "0.01"]
    command = [sys.executable, ROOT / "benchmarks" / "loaders.py", *words, *few]
    process = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


def rows(output: str) -> dict[str, list[str]]:
    """The cells of each row of numbers."""
    lines = [line.strip("| ").split(" | ") for line in output.splitlines() if re.match(r"\| \w", line)]
    return {cells[0]: cells[1:] for cells in lines if cells[0] != "images/s"}


def number(cell: str) -> float:
    return float(cell.split()[0])


def test_loaders_script_compares_all_sides_that_are_installed(photographs):
    output = run(photographs)
    cells = rows(output)
    assert {"ours", "ours, repeats 4", "ours, normalised", "torchvision"} <= set(cells)
    for side in SIDES:
        assert (side in cells) != (f"not measured: {side}: " in output)
    for side in set(SIDES) & set(cells):
        assert [number(cell) > 0 for cell in cells[side]] == [True] * 4
    assert "8 photographs; torch " in output


def test_loaders_table_has_the_median_and_range_of_the_ratios_of_rounds(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from loaders import table

    cells = rows(table({"ours": [10.0, 30.0, 40.0], "other": [5.0, 10.0, 40.0]}))
    assert cells["other"] == ["10 (5 to 40)", "2.00 (1.00 to 3.00)"]


def test_loaders_script_compares_formats(photographs):
    output = run(photographs, "--formats", "png", "tiff")
    tables = re.split(r"^(png|tiff)$", output, flags=re.MULTILINE)
    assert tables[1::2] == ["png", "tiff"]
    for table in tables[2::2]:
        cells = rows(table)
        assert set(cells) == {"ours", "torchvision"}
        low, high = map(float, re.search(r"\(([\d.]+) to ([\d.]+)\)", cells["torchvision"][1]).groups())
        assert 0 < low <= number(cells["torchvision"][1]) <= high
