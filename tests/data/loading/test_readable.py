"""A data set in which every file is refused ends at the start, with a file and the reason."""

from pathlib import Path

import numpy as np
import pytest
from small_data import write_digits

from mim import build
from mim.data.loading.readable import TRIED, check_readable
from mim.data.settings import DataSettings
from mim.data.sources.folder import Folder


def folder(path: Path, **keys: object) -> Folder:
    return Folder("train", DataSettings(path=str(path), channels=3, retry_s=0), **{"val_share": 0, **keys})


def test_check_readable_reads_until_one_image_is_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_digits(tmp_path, 30)
    (tmp_path / "digit-000.png").write_bytes(b"no image")
    source, reads = folder(tmp_path), []
    monkeypatch.setattr(source, "read", lambda index: reads.append(index) or Folder.read(source, index))
    check_readable(source, "training")
    assert reads == [0, 1]
    check_readable(Folder("val", source.settings, val_share=0), "held-out")  # none at all


def test_check_readable_names_a_file_and_why_where_all_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "whole numbers.npy"
    np.save(path, np.zeros((4, 4), np.int64))
    with pytest.raises(ValueError, match=r"^none of 1 training images can be read, such as .*numbers\.npy: an array"):
        check_readable(folder(tmp_path), "training")
    for number in range(TRIED + 5):
        (tmp_path / f"{number}.npy").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=rf"^none of {TRIED} of the {TRIED + 6} held-out images can be read"):
        check_readable(folder(tmp_path), "held-out")


@pytest.mark.parametrize("broken", ["train", "val"])
def test_task_is_not_built_where_all_files_are_refused(tmp_path: Path, broken: str) -> None:
    for name in ("train", "val"):
        write_digits(tmp_path / name, 3)
    for file in (tmp_path / broken).iterdir():
        np.save(file, np.zeros((4, 4), np.int64))
        file.with_suffix(".png.npy").replace(file.with_suffix(".npy"))
        file.unlink()
    data = {"DATA.name": "folder", "DATA.path": str(tmp_path), "DATA.mean": [0.5], "DATA.std": [0.5]}
    cfg = build.load_config("quickstart/mae_digits", data)
    with pytest.raises(ValueError, match=r"images can be read, such as .*an array of int64: .*numpy\.float32"):
        build.build_task(cfg, *build.build_data(cfg))
