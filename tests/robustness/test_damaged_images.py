"""500 damaged images among intact ones: none ends a run, a process or a packing, and each broken one is counted."""

import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import FORMATS, write_damaged, write_intact
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, SAMPLESPERPIXEL, ImageFileDirectory_v2
from processes import ESTIMATED, TINY, rows
from warm import Warm

from mim.data.decoding.images import BrokenImage, decode, decode_reduced
from mim.data.settings import DataSettings
from mim.data.sources.base import Need, quiet_decoders
from mim.data.sources.folder import Folder
from mim.data.sources.packed import Packed
from mim.data.sources.packing import PackSettings, pack

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
DAMAGED, INTACT, BATCH = 500, 140, 32


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    write_damaged(folder, DAMAGED)
    write_intact(folder, INTACT)
    return folder


@pytest.fixture(scope="module")
def refused(images: Path) -> dict[Path, str]:
    """The files that are no image to what decodes them: Pillow and numpy, without any of this toolkit."""
    quiet_decoders()
    errors = {}
    for path in sorted(images.iterdir()):
        try:
            if path.suffix == ".npy":
                values = np.load(path, allow_pickle=False)
                if values.ndim != 3 or 3 not in (values.shape[0], values.shape[-1]) or values.dtype != np.uint8:
                    raise ValueError(f"{values.dtype} of {values.shape}")
            else:
                with Image.open(path) as picture:
                    picture.load()
                    picture.convert("RGB")
        except Exception as error:  # a dozen unrelated types
            if isinstance(error, UnidentifiedImageError) and _has_samples_without_a_colour(path):
                continue
            errors[path] = f"{type(error).__name__}: {error}"
    return errors


def _has_samples_without_a_colour(path: Path) -> bool:
    """Whether damage has made it a TIFF of three grey samples, which tifffile reads and Pillow does not."""
    with suppress(Exception), path.open("rb") as file:
        tags = ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
        return tags[PHOTOMETRIC_INTERPRETATION] <= 1 and tags[SAMPLESPERPIXEL] == 3
    return False


def test_damaged_whole_files_are_all_read(images: Path, refused: dict[Path, str]) -> None:
    assert len(list(images.iterdir())) == DAMAGED + INTACT
    assert {path.suffix for path in images.iterdir()} == {suffix for suffix, _, _ in FORMATS.values()}
    assert not [path for path in refused if path.name.startswith("intact")]
    assert DAMAGED / 4 < len(refused) < 3 * DAMAGED / 4


def test_damaged_files_are_refused_by_every_way_of_reading_or_by_none(images: Path, refused: dict[Path, str]) -> None:
    for path in sorted(images.iterdir()):
        outcomes = set()
        for file in (path, path.read_bytes()):
            for need in (None, Need(1, 10_000), Need(2, 10_000), Need(8, 20)):
                try:
                    if need is None:
                        decode(file, 3)
                    else:
                        decode_reduced(file, 3, lambda height, width, need=need: need)
                except BrokenImage as error:
                    outcomes.add("refused" if str(error).isprintable() else "not to be printed")
                else:
                    outcomes.add("read")
        assert outcomes == {"refused" if path in refused else "read"}, (path, refused.get(path))


@pytest.mark.slow
def test_damaged_files_end_no_run_and_each_that_is_refused_is_counted(
    images: Path, refused: dict[Path, str], tmp_path: Path, warm: Warm, tell: Callable[[str], None]
) -> None:
    keys = TINY | ESTIMATED
    keys |= {"DATA.name": "folder", "DATA.path": images, "DATA.val_share": 0, "DATA.channels": 3}
    keys |= {"DATA.workers": 2, "DATA.max_broken": 1.0, "DATA.batch_size": BATCH, "TRAIN.batch": BATCH}
    code, output = warm.run(1, tmp_path / "run", keys)  # an epoch is 20 batches, which are all of the images
    assert code == 0, output
    named = re.findall(r"cannot read (\S+) \((.+)\); another image replaces it", output)
    assert sorted(name for name, _ in named) == sorted(map(str, refused))
    counted = [row["data/broken_files"] for row in rows(tmp_path / "run") if "data/broken_files" in row]
    assert counted[-1] == len(refused)
    assert "dataloader worker" not in output
    noise = [line for line in output.splitlines() if re.search(r"Warning:|TIFF|libpng|Traceback|warn\(", line)]
    assert not [line for line in noise if "cannot read" not in line], noise
    kinds = Counter(path.suffix for path in refused)
    tell(
        f"{DAMAGED} damaged images among {INTACT} intact ones, 1 epoch, 2 dataloader workers: {len(named)} refused "
        f"and counted ({', '.join(f'{kind} {number}' for kind, number in sorted(kinds.items()))}), "
        f"{DAMAGED - len(refused)} still decode; {len({reason for _, reason in named})} different reasons"
    )


@pytest.mark.parametrize("store", ["pixels", "jpeg"])
def test_damaged_files_are_left_out_of_a_packing(
    images: Path, refused: dict[Path, str], tmp_path: Path, store: str
) -> None:
    pixels, jpeg = PackSettings(workers=2), PackSettings(store="jpeg", size=(64, 64), workers=1)
    shapes = jpeg if store == "jpeg" else pixels
    listed = tmp_path / "pictures.txt"  # arrays are not packed beside pictures
    listed.write_text("".join(f"{path}\n" for path in sorted(images.iterdir()) if path.suffix != ".npy"))
    source = Folder("train", DataSettings(path=str(listed)), val_share=0)
    report = pack(
        {"train": source, "val": Folder("val", source.settings, val_share=0)}, tmp_path / "out", shapes, lambda n: None
    )
    names = [str(path) for path in refused if path.suffix != ".npy"]
    assert sorted(name for name, _ in report.broken) == sorted(names)
    packed = Packed("train", DataSettings(path=str(tmp_path / "out")), val_share=0)
    assert len(packed) == len(source) - len(names)
    assert isinstance(packed.read(0), Image.Image | torch.Tensor)
