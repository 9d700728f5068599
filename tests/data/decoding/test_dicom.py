"""DICOM: real files that pydicom ships have the values that their bytes say, or are refused with a reason."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from processes import TINY, call, losses
from small_data import logged

from mim.data.decoding.images import BrokenImage, decode, decode_reduced
from mim.data.settings import DataSettings, Selection
from mim.data.sources.folder import Folder
from mim.data.sources.retry import RetryingSource

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"
CT, MR = SHIPPED / "CT_small.dcm", SHIPPED / "MR_small.dcm"
DOSE = SHIPPED / "rtdose.dcm"  # 15 frames of uint32


def levels(path: Path, dtype: str) -> np.ndarray:
    """The numbers of a file that is not compressed, in its own shape."""
    dataset = pydicom.dcmread(path)
    shape = [int(dataset.get("NumberOfFrames") or 1), dataset.Rows, dataset.Columns, dataset.SamplesPerPixel]
    pixels = np.frombuffer(dataset.PixelData, dtype, count=int(np.prod(shape))).reshape(shape)
    return pixels.squeeze()


def changed(path: Path, to: Path, **elements: object) -> Path:
    """A copy of a file with other elements."""
    dataset = pydicom.dcmread(path)
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.save_as(to)
    return to


def test_dicom_values_are_rescaled_to_units() -> None:
    assert pydicom.dcmread(CT).RescaleIntercept == -1024
    stored = decode(CT, 1)
    assert stored.dtype == torch.float32
    assert np.array_equal(stored.numpy()[0], levels(CT, "<i2").astype(float) - 1024)
    assert torch.equal(decode(CT, 3), stored.repeat(3, 1, 1))
    assert torch.equal(decode(CT.read_bytes(), 1), stored)
    reduced, size = decode_reduced(CT, 1, None)  # its crop makes no difference
    assert torch.equal(reduced, stored)
    assert size == (128, 128)


@pytest.mark.parametrize(
    "name",
    ["MR_small", "MR_small_bigendian", "MR_small_implicit", "MR_small_RLE", "MR_small_jp2klossless", "MR_small_padded"],
)
def test_dicom_of_each_transfer_syntax_is_the_same(name: str) -> None:
    stored = decode(SHIPPED / f"{name}.dcm", 1, selection=Selection(to_float=True))
    assert np.array_equal(stored.numpy()[0], levels(MR, "<i2").astype(np.float32))


def test_dicom_grey_of_8_12_and_1_bits() -> None:
    twelve = decode(SHIPPED / "examples_overlay.dcm", 1)
    assert twelve.dtype == torch.uint16
    assert np.array_equal(twelve.numpy()[0], levels(SHIPPED / "examples_overlay.dcm", "<u2"))
    eight = decode(SHIPPED / "image_dfl.dcm", 1)
    assert isinstance(eight, Image.Image)
    assert np.array_equal(np.asarray(eight), levels(SHIPPED / "image_dfl.dcm", "u1"))
    one = np.asarray(decode(SHIPPED / "liver_1frame.dcm", 1))
    packed = np.frombuffer(pydicom.dcmread(SHIPPED / "liver_1frame.dcm").PixelData, np.uint8)
    assert np.array_equal(one, np.unpackbits(packed, bitorder="little")[: 512 * 512].reshape(512, 512) * 255)


def test_dicom_where_the_lowest_number_is_white_is_inverted(tmp_path: Path) -> None:
    elements = {"PhotometricInterpretation": "MONOCHROME1"}
    twelve = changed(SHIPPED / "examples_overlay.dcm", tmp_path / "a.dcm", **elements)
    assert np.array_equal(decode(twelve, 1).numpy()[0], 4095 - levels(twelve, "<u2"))
    ct = changed(CT, tmp_path / "b.dcm", **elements)
    assert np.array_equal(decode(ct, 1).numpy()[0], (-1 - levels(ct, "<i2").astype(float)) - 1024)


def test_dicom_colours_and_palettes() -> None:
    colours = decode(SHIPPED / "examples_rgb_color.dcm", 3)
    assert np.array_equal(np.asarray(colours), levels(SHIPPED / "examples_rgb_color.dcm", "u1"))
    path = SHIPPED / "examples_palette.dcm"
    dataset = pydicom.dcmread(path)
    count, first, bits = dataset.RedPaletteColorLookupTableDescriptor
    tables = [dataset[f"{colour}PaletteColorLookupTableData"].value for colour in ("Red", "Green", "Blue")]
    table_NC = np.stack([np.frombuffer(table, "<u2" if bits == 16 else "u1") for table in tables], axis=-1)
    looked_up_HWC = table_NC[np.clip(levels(path, "u1").astype(int) - first, 0, count - 1)]
    stored = decode(path, 3)
    assert np.array_equal(
        np.asarray(stored if isinstance(stored, Image.Image) else stored.permute(1, 2, 0)), looked_up_HWC
    )
    deep = decode(SHIPPED / "SC_rgb_rle_16bit.dcm", 3)
    assert deep.dtype == torch.uint16
    assert deep.shape == (3, 100, 100)
    with pytest.raises(BrokenImage, match=r"a DICOM image of 3 channels, and DATA\.channels is 1"):
        decode(SHIPPED / "SC_rgb_rle_16bit.dcm", 1)


def test_dicom_frames_are_channels_or_planes() -> None:
    written = levels(DOSE, "<u4")
    assert written.shape == (15, 10, 10)
    assert np.array_equal(decode(DOSE, 15).numpy(), written)
    for pages, plane in (("first", written[0]), ("middle", written[7]), ("max", written.max(0))):
        assert np.array_equal(decode(DOSE, 1, selection=Selection(pages=pages)).numpy()[0], plane)
    chosen = decode(DOSE, 2, selection=Selection(numbers=(14, 3)))
    assert np.array_equal(chosen.numpy(), written[[14, 3]])
    with pytest.raises(BrokenImage, match=r"15 frames, .* DATA\.channels is 3: .* DATA\.pages first, middle or max"):
        decode(DOSE, 3)
    video = SHIPPED / "examples_ybr_color.dcm"
    assert decode(video, 3, selection=Selection(pages="middle")).size == (320, 240)
    with pytest.raises(BrokenImage, match=r"30 frames of colours: DATA\.pages first or middle reads one"):
        decode(video, 3)


def test_dicom_that_is_damaged_or_no_image_is_refused(tmp_path: Path) -> None:
    content = CT.read_bytes()
    (tmp_path / "half.dcm").write_bytes(content[: len(content) // 2])
    (tmp_path / "junk.dcm").write_bytes(b"junk" * 1000)
    changed(CT, tmp_path / "huge.dcm", Rows=65535, Columns=65535)
    for path, text in (
        (SHIPPED / "MR_truncated.dcm", "The number of bytes of pixel data is less than expected"),
        (tmp_path / "half.dcm", "bytes"),
        (tmp_path / "junk.dcm", "InvalidDicomError"),
        (tmp_path / "huge.dcm", r"4,294,836,225 pixels in 1 frames: up to"),
        (SHIPPED / "rtplan.dcm", "a DICOM file without an image"),
    ):
        with pytest.raises(BrokenImage, match=text):
            decode(path, 1)


def test_dicom_without_the_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(BrokenImage, match=r"pip install 'mim-toolkit\[dicom\]'"):
        decode(CT, 1)


def test_dicom_window_is_a_key_and_is_said(tmp_path: Path) -> None:
    shutil.copy(MR, tmp_path / "a.dcm")
    with logged() as lines:
        stored = Folder("train", DataSettings(path=str(tmp_path), channels=1), val_share=0).read(0)
    assert any("a.dcm: its window (WindowCenter, WindowWidth) is not applied" in line for line in lines)
    settings = DataSettings(path=str(tmp_path), channels=1, scale=(-200.0, 1400.0))  # of centre 600, width 1600
    with logged() as lines:
        scaled = RetryingSource(Folder("train", settings, val_share=0)).read(0)
    assert not lines
    assert torch.allclose(scaled, (stored + 200) / 1600)


def test_dicom_files_without_an_ending_are_read_from_a_list(tmp_path: Path) -> None:
    shutil.copy(CT, tmp_path / "IM0001")
    (tmp_path / "list.txt").write_text("IM0001\n")
    images = Folder("train", DataSettings(path=str(tmp_path / "list.txt"), channels=1), val_share=0)
    assert torch.equal(images.read(0), decode(CT, 1))


@pytest.mark.slow
def test_dicom_series_pretrains(tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    for number in range(24):
        rows = np.roll(levels(CT, "<i2"), 5 * number, axis=0)
        changed(CT, tmp_path / "series" / f"slice{number:02d}.dcm", PixelData=rows.tobytes(), InstanceNumber=number)
    keys = {"DATA.name": "folder", "DATA.path": tmp_path / "series", "DATA.batch_size": 8, "TRAIN.batch": 8}
    code, text = call(tmp_path / "run", {**TINY, **keys, "DATA.workers": 2})
    assert code == 0, text
    assert np.isfinite(losses(tmp_path / "run")).all()
    assert losses(tmp_path / "run")
