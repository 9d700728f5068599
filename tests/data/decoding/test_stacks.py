"""TIFFs of any pages, samples and types: what tifffile writes is read as the array that was written, or refused.

Shapes: P pages, C channels, H W pixels.
"""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_images import levels
from PIL import Image
from small_data import photograph

from mim.data.decoding.images import BrokenImage, decode, decode_reduced
from mim.data.settings import Selection
from mim.data.sources.base import Need, Stored

tifffile = pytest.importorskip("tifffile")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

HEIGHT, WIDTH = 20, 36
STACK = levels("uint16", 12, HEIGHT, WIDTH)
NAMES = [f"marker {number}" for number in range(4)]
GDAL = (
    "<GDALMetadata>"
    + "".join(
        f'<Item name="DESCRIPTION" sample="{number}" role="description">B{number + 2:02}</Item>' for number in range(5)
    )
    + '<Item name="AREA_OR_POINT">Area</Item></GDALMetadata>'
)


def pixels(stored: Stored) -> np.ndarray:
    """(C, H, W)"""
    if isinstance(stored, torch.Tensor):
        return stored.numpy()
    return np.moveaxis(np.asarray(stored).reshape(stored.height, stored.width, -1), -1, 0)


def read(path: Path, channels: int, **selection: object) -> np.ndarray:
    """The pixels (C, H, W) that every way of reading gives."""
    chosen = Selection(**selection)
    image = pixels(decode(path, channels, selection=chosen))
    for file in (path, path.read_bytes()):
        other = pixels(decode_reduced(file, channels, lambda height, width: Need(1.0, height), selection=chosen)[0])
        assert other.dtype == image.dtype
        assert np.array_equal(other, image)
    return image


def equal(image: np.ndarray, expected: np.ndarray) -> bool:
    return image.dtype == expected.dtype and np.array_equal(image, expected)


def refusal(path: Path, channels: int, **selection: object) -> str:
    with pytest.raises(BrokenImage) as caught:
        decode(path, channels, selection=Selection(**selection))
    assert str(caught.value).isprintable()
    return str(caught.value)


# -------------------------------------------------------------------- pages


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib"},
        {"compression": "lzw", "predictor": True},
        {"compression": "zstd"},
        {"tile": (16, 16)},
        {"tile": (16, 16), "compression": "deflate"},
        {"bigtiff": True},
        {"byteorder": ">", "compression": "zlib"},
        {"metadata": {"axes": "CYX"}},
        {"metadata": None},
        {"metadata": {"axes": "CYX"}, "ome": True},
        {"truncate": True},
        {"imagej": True, "metadata": {"axes": "CYX"}},
    ],
    ids=str,
)
def test_stack_of_12_channels_is_that_which_was_written(tmp_path: Path, options: dict) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK, photometric="minisblack", **options)
    assert equal(read(tmp_path / "a.tif", 12), STACK)
    assert equal(read(tmp_path / "a.tif", 3, numbers=(11, 0, 5)), STACK[[11, 0, 5]])
    for channels in (1, 3, 13):
        assert f"and DATA.channels is {channels}: set it to 12" in refusal(tmp_path / "a.tif", channels)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_stack_of_other_types_is_that_which_was_written(tmp_path: Path, dtype: str) -> None:
    stack = levels(dtype, 12, HEIGHT, WIDTH)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", compression="zlib", tile=(16, 16))
    assert equal(read(tmp_path / "a.tif", 12), stack)
    assert equal(read(tmp_path / "a.tif", 1, pages="max"), stack.max(0, keepdims=True))


@pytest.mark.parametrize("kind", ["ome", "imagej", "shaped"])
def test_planes_and_channels_of_zcyx_are_told_apart(tmp_path: Path, kind: str) -> None:
    stack = STACK.reshape(3, 4, HEIGHT, WIDTH)
    tifffile.imwrite(
        tmp_path / "a.tif",
        stack,
        photometric="minisblack",
        metadata={"axes": "ZCYX"},
        **({kind: True} if kind != "shaped" else {}),
    )
    for pages, expected in (("first", stack[0]), ("middle", stack[1]), ("max", stack.max(0))):
        assert equal(read(tmp_path / "a.tif", 4, pages=pages), expected)
        assert equal(read(tmp_path / "a.tif", 1, pages=pages, numbers=(2,)), expected[2:3])
    assert equal(read(tmp_path / "a.tif", 12), STACK)
    assert "a TIFF of 4 pages" in refusal(tmp_path / "a.tif", 12, pages="max")


def test_pages_without_a_meaning_are_planes_by_the_key(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK, photometric="minisblack", metadata=None)
    for pages, expected in (("first", STACK[0]), ("middle", STACK[6]), ("max", STACK.max(0))):
        assert equal(read(tmp_path / "a.tif", 1, pages=pages), expected[None])
        assert equal(read(tmp_path / "a.tif", 3, pages=pages), np.repeat(expected[None], 3, axis=0))
        assert "and DATA.channels is 12: set it to 1 or 3" in refusal(tmp_path / "a.tif", 12, pages=pages)


def test_pages_of_colours_are_frames_or_many_channels(tmp_path: Path) -> None:
    frames = levels("uint8", 5, HEIGHT, WIDTH, 3)
    tifffile.imwrite(tmp_path / "a.tif", frames, photometric="rgb", metadata={"axes": "TYXS"})
    channels_first = np.moveaxis(frames, -1, 1)
    assert equal(read(tmp_path / "a.tif", 3, pages="middle"), channels_first[2])
    assert equal(read(tmp_path / "a.tif", 15), channels_first.reshape(15, HEIGHT, WIDTH))
    assert "a TIFF of 5 pages of 3 samples" in refusal(tmp_path / "a.tif", 3)


def test_a_grey_page_never_becomes_twelve_channels(tmp_path: Path) -> None:
    for dtype in ("uint8", "uint16", "float32"):
        tifffile.imwrite(tmp_path / "a.tif", levels(dtype, HEIGHT, WIDTH), photometric="minisblack")
        message = refusal(tmp_path / "a.tif", 12)
        assert "1 sample a pixel" in message
        assert "DATA.channels is 12: set it to 1 or 3" in message


# -------------------------------------------------------------------- samples and types


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_deep_colours_are_those_that_were_written(tmp_path: Path, planar: str, dtype: str) -> None:
    for samples in (3, 4, 7):
        colours = levels(dtype, samples, HEIGHT, WIDTH)
        written = colours if planar == "separate" else np.moveaxis(colours, 0, -1)
        tifffile.imwrite(tmp_path / "a.tif", written, photometric="rgb", planarconfig=planar, compression="zlib")
        assert equal(read(tmp_path / "a.tif", samples), colours)
        assert equal(read(tmp_path / "a.tif", 3), colours[:3])
        assert equal(read(tmp_path / "a.tif", 2, numbers=(2, 0)), colours[[2, 0]])


@pytest.mark.parametrize("compression", ["jpeg2000", "lerc", "png", "packbits"])
def test_compressions_beyond_pillow_are_read(tmp_path: Path, compression: str) -> None:
    colours = levels("uint8", HEIGHT, WIDTH, 3)
    tifffile.imwrite(tmp_path / "a.tif", colours, photometric="rgb", compression=compression)
    assert isinstance(decode(tmp_path / "a.tif", 3), Image.Image)
    assert equal(read(tmp_path / "a.tif", 3), np.moveaxis(colours, -1, 0))
    tifffile.imwrite(tmp_path / "b.tif", STACK, photometric="minisblack", compression=compression)
    assert equal(read(tmp_path / "b.tif", 12), STACK)


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint32", "int8", "float64", "float16"])
def test_numbers_of_other_types_are_the_same_as_floats(tmp_path: Path, dtype: str) -> None:
    values = np.arange(-40, 40).reshape(1, 8, 10).astype(dtype) if dtype != "uint32" else np.arange(80, dtype="uint32")
    values = np.concatenate([values.reshape(1, 8, 10)] * 2)
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(values, 0, -1), photometric="minisblack", planarconfig="contig")
    assert equal(read(tmp_path / "a.tif", 2), values.astype(np.float32))
    tifffile.imwrite(tmp_path / "b.tif", values[0], photometric="minisblack")
    assert equal(read(tmp_path / "b.tif", 1, to_float=True).astype(np.float32), values[:1].astype(np.float32))


def test_whole_numbers_that_floats_would_round_are_refused(tmp_path: Path) -> None:
    values = np.full((8, 10, 2), 2**24 + 1, np.int32)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", planarconfig="contig")
    assert "levels from 16777217 to 16777217" in refusal(tmp_path / "a.tif", 2)


@pytest.mark.parametrize("samples", [1, 2])
def test_levels_in_which_0_is_white_are_inverted(tmp_path: Path, samples: int) -> None:
    values = levels("uint16", samples, HEIGHT, WIDTH)
    written, options = (values[0], {}) if samples == 1 else (np.moveaxis(values, 0, -1), {"planarconfig": "contig"})
    tifffile.imwrite(tmp_path / "a.tif", written, photometric="miniswhite", **options)
    assert equal(read(tmp_path / "a.tif", samples), 65535 - values)


def test_pages_of_one_bit_are_scaled_as_pillow_scales_one(tmp_path: Path) -> None:
    values = levels("uint8", 2, HEIGHT, WIDTH) > 100
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    assert equal(read(tmp_path / "a.tif", 1, pages="first"), values[:1] * np.uint8(255))
    tifffile.imwrite(tmp_path / "b.tif", values[0], photometric="minisblack")
    assert equal(read(tmp_path / "b.tif", 1), values[:1] * np.uint8(255))


# -------------------------------------------------------------------- DATA.channels_from


def test_channels_are_chosen_by_the_names_of_ome(tmp_path: Path) -> None:
    stack = STACK.reshape(3, 4, HEIGHT, WIDTH)
    metadata = {"axes": "ZCYX", "Channel": {"Name": NAMES}}
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", ome=True, metadata=metadata)
    image = read(tmp_path / "a.tif", 2, numbers=("marker 3", 0), pages="middle")
    assert equal(image, stack[1][[3, 0]])
    message = refusal(tmp_path / "a.tif", 1, numbers=("marker 9",), pages="first")
    assert "DATA.channels_from is [marker 9], and it has channels 0 to 3, with the names marker 0, marker 1" in message


def test_channels_are_chosen_by_the_names_of_gdal(tmp_path: Path) -> None:
    bands = levels("uint16", 5, HEIGHT, WIDTH)
    tifffile.imwrite(
        tmp_path / "a.tif", bands, photometric="minisblack", planarconfig="separate", metadata=None,
        extratags=[(42112, 2, 0, GDAL, True)],
    )  # fmt: skip
    assert equal(read(tmp_path / "a.tif", 3, numbers=("B04", "B03", "B02")), bands[[2, 1, 0]])
    assert "B09 is none of them" in refusal(tmp_path / "a.tif", 1, numbers=("B09",))


def test_channels_are_chosen_from_pictures_and_arrays(tmp_path: Path) -> None:
    picture = photograph()
    picture.save(tmp_path / "a.png")
    colours = np.moveaxis(np.asarray(picture), -1, 0)
    assert isinstance(decode(tmp_path / "a.png", 3, selection=Selection((2, 1, 0))), Image.Image)
    for numbers in ((2, 1, 0), (1,), (0, 2), (0, 0, 1, 2)):
        assert equal(read(tmp_path / "a.png", len(numbers), numbers=numbers), colours[list(numbers)])
    assert "it has channels 0 to 2, without names: 3 is none" in refusal(tmp_path / "a.png", 1, numbers=(3,))
    assert "without names: red is none" in refusal(tmp_path / "a.png", 1, numbers=("red",))
    assert "it has channel 0 alone" in _grey_refusal(tmp_path)
    for array in (STACK, np.moveaxis(STACK, 0, -1)):
        np.save(tmp_path / "a.npy", array)
        assert equal(read(tmp_path / "a.npy", 2, numbers=(7, 2)), STACK[[7, 2]])
    np.save(tmp_path / "b.npy", np.zeros((64, 64, 200), np.uint8))
    assert "shorter than both others" in refusal(tmp_path / "b.npy", 1, numbers=(0,))


def _grey_refusal(folder: Path) -> str:
    photograph().convert("L").save(folder / "grey.png")
    return refusal(folder / "grey.png", 3, numbers=(0, 1, 2))


# -------------------------------------------------------------------- damage


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib"},
        {"ome": True, "metadata": {"axes": "CYX"}},
        {"tile": (16, 16), "compression": "lzw"},
        {"truncate": True},
        {"planarconfig": "separate", "metadata": None},
    ],
    ids=str,
)
def test_stack_that_breaks_off_is_broken_where_pixels_are_lost(tmp_path: Path, options: dict) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK, photometric="minisblack", **options)
    content = (tmp_path / "a.tif").read_bytes()
    is_broken = []
    for share in (0.999, 0.98, 0.9, 0.7, 0.5, 0.1, 0.01):
        (tmp_path / "a.tif").write_bytes(content[: int(len(content) * share)])
        for selection in (Selection(), Selection(pages="max"), Selection(tuple(range(12)))):
            for channels in (12, 1):
                try:
                    image = pixels(decode(tmp_path / "a.tif", channels, selection=selection))
                except BrokenImage:
                    is_broken.append(share)
                else:  # only texts behind the pixels are lost
                    assert share > 0.8
                    assert equal(image, STACK if channels == 12 or selection.numbers else STACK.max(0, keepdims=True))
    assert is_broken.count(0.5) == is_broken.count(0.1) == 6


def test_damaged_stacks_are_read_or_broken_and_say_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    generator = np.random.default_rng(0)
    counts = {"read": 0, "broken": 0}
    for number, options in enumerate(({"compression": "zlib"}, {"ome": True, "metadata": {"axes": "CYX"}}, {})):
        tifffile.imwrite(tmp_path / "whole.tif", STACK[:, :8, :8], photometric="minisblack", **options)
        content = (tmp_path / "whole.tif").read_bytes()
        for _ in range(40):
            damaged = bytearray(content)
            for place in generator.integers(0, len(content), 6):
                damaged[place] = generator.integers(256)
            try:
                image = decode(bytes(damaged), 12, lambda notes, file: None, Selection((*range(12),)))
                assert image.shape[0] == 12, number
                counts["read"] += 1
            except BrokenImage:
                counts["broken"] += 1
    assert min(counts.values()) > 5
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert capfd.readouterr().err == ""


def test_a_file_of_a_set_without_the_others_is_not_filled_with_zeros(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK, photometric="minisblack", ome=True, metadata={"axes": "CYX"})
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "b.tif").write_bytes(content.replace(b'SizeC="12"', b'SizeC="14"'))
    assert content != (tmp_path / "b.tif").read_bytes()
    assert "a TIFF that describes 14 pages, and page 12 is not in the file" in refusal(tmp_path / "b.tif", 14)


def test_stack_that_claims_terabytes_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", levels("uint16", 16, 16, 2), photometric="minisblack", compression="zlib",
        planarconfig="contig",
    )  # fmt: skip
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        for name in ("ImageWidth", "ImageLength"):
            file.pages[0].tags[name].overwrite(2**20)
    assert "a TIFF of 1048576x1048576x2 pixels, 4,398,046,511,104 bytes: too large" in refusal(tmp_path / "a.tif", 2)
