"""Nifti: slices of real volumes that nibabel ships are those of the volume that nibabel turns to its canonical axes."""

import gzip
import os
import pickle
import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from small_data import logged

from mim.data.decoding.images import BrokenImage
from mim.data.loading.dataset import ImageDataset
from mim.data.loading.loader import batches
from mim.data.settings import DataSettings
from mim.data.sources.nifti import Nifti
from mim.data.transforms import AugmentSettings, RandomCropFlip

SHIPPED = Path(nibabel.__file__).parent / "tests" / "data"
BRAIN, TIMES = SHIPPED / "anatomical.nii", SHIPPED / "functional.nii"  # (33, 41, 25), and (17, 21, 3, 20) with a scale


def source(path: object, split: str = "train", **keys: object) -> Nifti:
    shared = {key: keys.pop(key) for key in ("channels", "pages", "channels_from") if key in keys}
    return Nifti(split, DataSettings(**{"path": str(path), "channels": 1, **shared}), **{"val_share": 0, **keys})


def canonical(path: Path) -> np.ndarray:
    """All values of a volume, its axes from left to right, back to front and feet to head."""
    return np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)


@pytest.mark.parametrize("name", ["anatomical.nii", "reoriented_anat_moved.nii", "turned.nii"])
def test_nifti_slices_lie_as_the_affine_says(name: str, tmp_path: Path) -> None:
    path = SHIPPED / name
    if name == "turned.nii":
        image = nibabel.load(BRAIN)
        turned = image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
        path = tmp_path / name
        nibabel.save(turned, path)
    values = canonical(path).astype(np.float32)
    for axis, plane in enumerate(("sagittal", "coronal", "axial")):
        images = source(path, plane=plane)
        assert len(images) == values.shape[axis]
        for row in (0, 7, len(images) - 1):
            assert np.array_equal(images.read(row).numpy()[0], values.take(row, axis).T[::-1])
    assert images.describe(7) == f"{path} slice 7"


def test_nifti_fourth_axis_is_channels_or_times() -> None:
    values = canonical(TIMES).astype(np.float32)
    assert np.allclose(source(TIMES, channels=20).read(1).numpy(), values[:, :, 1].transpose(2, 1, 0)[:, ::-1])
    for pages, time in (("first", values[..., 0]), ("middle", values[..., 10]), ("max", values.max(-1))):
        assert np.allclose(source(TIMES, pages=pages).read(2).numpy()[0], time[:, :, 2].T[::-1])
    chosen = source(TIMES, channels=2, channels_from=(19, 3)).read(0)
    assert np.allclose(chosen.numpy(), values[:, :, 0, [19, 3]].transpose(2, 1, 0)[:, ::-1])
    with pytest.raises(BrokenImage, match=r"20 values a place, and DATA\.channels is 3: .* DATA\.pages first"):
        source(TIMES, channels=3).read(0)


def test_nifti_volumes_are_held_out_as_a_whole(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"patient{number}").mkdir()
        shutil.copy(BRAIN, tmp_path / f"patient{number}" / "t1.nii")
    train, val = (source(tmp_path, split, val_share=0.2, margin=0.25) for split in ("train", "val"))
    names = [{images.describe(index).split(" ")[0] for index in range(len(images))} for images in (train, val)]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 30
    assert len(val) == 13 * len(names[1])  # of 25 slices, 6 at each end are left out
    assert val.describe(0).endswith("slice 6")
    assert len(np.unique(val.groups)) == len(names[1]) > 0
    assert len(source(tmp_path, val_path=str(BRAIN))) == 30 * 25
    assert len(source(tmp_path, "val", val_path=str(BRAIN))) == 25


def test_nifti_compressed_volumes_are_the_same_and_said_to_be_slow(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(BRAIN.read_bytes()))
    with logged() as lines:
        assert torch.equal(source(tmp_path).read(9), source(BRAIN).read(9))
    assert any("a.nii.gz: it is compressed" in line for line in lines)


def test_nifti_damaged_volumes_are_broken_images(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(BRAIN.read_bytes()[:9000])
    (tmp_path / "b.nii").write_bytes(b"junk" * 300)
    shutil.copy(BRAIN, tmp_path / "c.nii")
    images = source(tmp_path)
    assert len(images) == 25 + 1 + 25
    for index in (24, 25):
        with pytest.raises(BrokenImage):
            images.read(index)
    assert torch.equal(images.read(26), source(BRAIN).read(0))
    os.rename(tmp_path, tmp_path.with_name("away"))
    with pytest.raises(BrokenImage) as caught:
        images.read(26)
    assert images.missing() == f"DATA.path {tmp_path}: No such file or directory"
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno


def test_nifti_without_volumes_is_refused(tmp_path: Path) -> None:
    for path, text in (("", "DATA.path is empty"), (tmp_path / "x", "does not exist"), (tmp_path, "holds no volume")):
        with pytest.raises(ValueError, match=text):
            source(path)
    with pytest.raises(ValueError, match=r"DATA\.margin is 0\.5: it is a share"):
        source(BRAIN, margin=0.5)


def test_nifti_without_the_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(ValueError, match=r"pip install 'mim-toolkit\[nifti\]'"):
        source(BRAIN)


def test_nifti_copies_and_workers_read_the_same() -> None:
    images = source(BRAIN)
    assert torch.equal(pickle.loads(pickle.dumps(images)).read(5), images.read(5))
    crops = ImageDataset(images, RandomCropFlip(AugmentSettings(), (16, 16)), 0)
    order = [[(0, 3), (0, 11)], [(1, 5), (1, 0)], [(2, 1), (2, 7)]]
    alone, helped = (list(batches(crops, order, workers, False)) for workers in (0, 2))
    assert all(torch.equal(*(batch.images_BCHW for batch in pair)) for pair in zip(alone, helped, strict=True))
