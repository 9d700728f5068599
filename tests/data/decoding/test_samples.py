"""Samples, bits and pages: a file of any writer becomes just what it holds, or it is refused with what it has."""

import logging
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from foreign_images import HEIGHT, WIDTH, levels, write_foreign
from odd_images import png_of_16_bits
from PIL import Image
from small_data import logged, photograph

from mim.data.decoding import pictures
from mim.data.decoding.broken import Notes
from mim.data.decoding.images import BrokenImage, decode, decode_reduced
from mim.data.decoding.tiff import MOST_PAGES, read_pages
from mim.data.loading.loader import Results
from mim.data.settings import DataSettings
from mim.data.sources.base import Need, Stored
from mim.data.sources.folder import Folder
from mim.data.sources.subset import Subset

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torchvision"),
]
SIZE = HEIGHT, WIDTH


def pixels(stored: Stored) -> np.ndarray:
    """(H, W, C)"""
    if isinstance(stored, torch.Tensor):
        return stored.permute(1, 2, 0).numpy()
    return np.asarray(stored).reshape(stored.height, stored.width, -1)


def read(path: Path, channels: int) -> tuple[np.ndarray, list[str]]:
    """The pixels that every way of reading gives, and what is said of the file."""
    notes: list[str] = []
    image = pixels(decode(path, channels, say=lambda said, file: notes.extend(said)))
    for file in (path, path.read_bytes()):
        other = pixels(decode_reduced(file, channels, lambda height, width: Need(1.0, height))[0])
        assert other.dtype == image.dtype
        assert np.array_equal(other, image)
    return image, notes


def reason(path: Path, channels: int) -> str:
    """Why every way of reading refuses it."""
    with pytest.raises(BrokenImage) as caught:
        decode(path, channels)
    with pytest.raises(BrokenImage) as again:
        decode_reduced(path.read_bytes(), channels, lambda height, width: Need(1.0, height))
    assert str(again.value) == str(caught.value)
    return str(caught.value)


# -------------------------------------------------------------------- TIFF


@pytest.mark.parametrize("how", ["", ", planes", ", tiles", ", bigtiff", ", big-endian"])
def test_tiff_fourth_band_of_unspecified_meaning_is_that_of_the_file(tmp_path: Path, how: str) -> None:
    path = write_foreign(tmp_path, f"rgb and one more{how}")
    image, notes = read(path, 4)
    assert np.array_equal(image, levels("uint8", *SIZE, 4))
    assert notes == []


def test_tiff_bands_beside_the_colours_are_left_out_with_a_word(tmp_path: Path) -> None:
    for name, samples, word in (
        ("rgb and one more", 4, "leaves out 1 of its 4 samples"),
        ("rgb and two more", 5, "leaves out 2 of its 5 samples"),
        ("rgb and alpha", 4, "alpha channel is left out by DATA.channels 3"),
    ):
        image, (note,) = read(write_foreign(tmp_path, name), 3)
        assert np.array_equal(image, levels("uint8", *SIZE, samples)[..., :3])
        assert word in note
    image, notes = read(tmp_path / "rgb and alpha.tif", 4)
    assert np.array_equal(image, levels("uint8", *SIZE, 4))
    assert notes == []
    image, _ = read(write_foreign(tmp_path, "grey and alpha"), 1)
    assert np.array_equal(image, levels("uint8", *SIZE, 2)[..., :1])


BEYOND_PILLOW = [
    ("rgb and two more", 5, "5 samples a pixel of 8 bits, unsigned, and DATA.channels is 5"),
    ("rgb of 16 bits", 3, "3 samples a pixel of 16 bits"),
    ("four of 16 bits", 4, "4 samples a pixel of 16 bits"),
    ("twelve samples", 12, "12 samples a pixel of 16 bits"),
    ("four without a colour", 4, "4 samples a pixel of 8 bits"),
    ("signed of 8 bits", 1, "1 sample a pixel of 8 bits, signed"),
    ("floats, big-endian, compressed", 1, "1 sample a pixel of 32 bits, float, in big-endian order"),
    ("white is zero", 1, "in which 0 is white"),
    ("predicted, packed bits", 1, "1 sample a pixel of 8 bits, unsigned, with a predictor"),
    ("twelve pages with the tags of one", 12, "more pages than it has tags for"),
]


@pytest.mark.parametrize(("name", "channels", "what"), BEYOND_PILLOW)
def test_tiff_that_pillow_would_change_names_the_extra_where_tifffile_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, channels: int, what: str
) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    refusal = reason(write_foreign(tmp_path, name), channels)
    assert what in refusal
    assert "a TIFF of" in refusal
    assert "pip install 'mim-toolkit[tiff]'" in refusal
    assert refusal.isprintable()


@pytest.mark.parametrize(
    ("name", "channels", "what"),
    [
        ("rgb and two more", 4, "5 samples a pixel of 8 bits, uint8, and DATA.channels is 4: set it to 5; or choose 4"),
        ("rgb and one more", 5, "4 samples a pixel of 8 bits, uint8, and DATA.channels is 5: set it to 4"),
        ("rgb and alpha", 12, "4 samples a pixel of 8 bits, uint8, and DATA.channels is 12: set it to 4"),
        ("rgb times alpha", 3, "multiplied by alpha"),
        ("rgb times alpha", 4, "multiplied by alpha"),
        ("rgb of 16 bits", 1, "3 samples a pixel of 16 bits, uint16, and DATA.channels is 1: set it to 3; or choose 1"),
        ("twelve samples", 3, "12 samples a pixel of 16 bits, uint16, and DATA.channels is 3: set it to 12; or choose"),
        ("two without a colour", 1, "2 samples a pixel of 8 bits, uint8, and DATA.channels is 1: set it to 2"),
        ("lab, planes", 3, "3 samples a pixel of 8 bits, unsigned, L*a*b* in planes"),
        ("cmyk", 4, "4 samples a pixel of 8 bits, unsigned, and DATA.channels is 4: set it to 1 or 3"),
        ("floats", 12, "1 sample a pixel of 32 bits, float32, and DATA.channels is 12: set it to 1 or 3"),
    ],
)
def test_tiff_of_other_samples_than_the_channels_is_refused(
    tmp_path: Path, name: str, channels: int, what: str
) -> None:
    refusal = reason(write_foreign(tmp_path, name), channels)
    assert what in refusal
    assert "a TIFF of" in refusal
    assert refusal.isprintable()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("floats", "float32"),
        ("floats, big-endian", "float32"),
        ("16 bits, big-endian, compressed", "uint16"),
    ],
)
def test_tiff_of_one_sample_keeps_its_levels(tmp_path: Path, name: str, dtype: str) -> None:
    path = write_foreign(tmp_path, name)
    for channels in (1, 3):
        image, notes = read(path, channels)
        assert image.dtype == dtype
        assert np.array_equal(image, np.repeat(levels(dtype, *SIZE)[..., None], channels, axis=2))
        assert notes == []
    assert "DATA.channels is 4" in reason(path, 4)


def test_tiff_of_lab_and_of_a_predictor_is_read_where_pillow_reads_it(tmp_path: Path) -> None:
    assert np.array_equal(read(write_foreign(tmp_path, "predicted, deflated"), 1)[0][..., 0], levels("uint8", *SIZE))
    path = write_foreign(tmp_path, "lab")
    assert np.array_equal(read(path, 3)[0], np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize(("suffix", "dtype"), [("", "uint16"), (" of 8 bits", "uint8"), (" of floats", "float32")])
def test_tiff_pages_are_the_channels_of_one_image_or_the_file_is_refused(
    tmp_path: Path, suffix: str, dtype: str
) -> None:
    path = write_foreign(tmp_path, f"twelve pages{suffix}")
    image, notes = read(path, 12)
    assert image.dtype == dtype
    assert np.array_equal(image, np.moveaxis(levels(dtype, 12, *SIZE), 0, -1))
    assert notes == []
    for channels in (1, 3, 4, 11):
        refusal = reason(path, channels)
        assert f"which are read as the channels of one image, and DATA.channels is {channels}: set it to 12" in refusal
        assert "set DATA.pages first, middle or max" in refusal


def test_tiff_pages_of_colours_or_of_several_sizes_are_refused(tmp_path: Path) -> None:
    path = write_foreign(tmp_path, "three pages of rgb")
    assert "a TIFF of 3 pages of 3 samples a pixel of 8 bits, uint8, which are read as the channels" in reason(path, 3)
    first, second = Image.new("L", (4, 4)), Image.new("L", (5, 4))
    first.save(tmp_path / "three.tif", save_all=True, append_images=[Image.new("L", (4, 4), level) for level in (1, 2)])
    image, notes = read(tmp_path / "three.tif", 3)
    assert image[0, 0].tolist() == [0, 1, 2]
    assert notes == ["its 3 pages are read as the channels of one image"]
    first.save(tmp_path / "sizes.tif", save_all=True, append_images=[second, first])
    refusal = reason(tmp_path / "sizes.tif", 3)
    assert "a TIFF of 2 images of several sizes or types (2x4x4, 4x5): DATA.pages first" in refusal


def test_tiff_smaller_copies_are_no_pages(tmp_path: Path) -> None:
    image, notes = read(write_foreign(tmp_path, "between smaller copies"), 3)
    assert np.array_equal(image, levels("uint8", *SIZE, 3))
    assert notes == []


def test_tiff_of_endless_pages_is_refused_in_time(tmp_path: Path) -> None:
    page = struct.pack("<H", 2) + struct.pack("<HHII", 256, 4, 1, 4) + struct.pack("<HHII", 257, 4, 1, 4)
    size, count = len(page) + 4, MOST_PAGES + 500
    pages = b"".join(page + struct.pack("<I", 8 + (number + 1) * size) for number in range(count))
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 8) + pages)
    with (tmp_path / "a.tif").open("rb") as file:
        assert len(read_pages(file)) == MOST_PAGES + 1
    assert "a TIFF of 1,000 or more pages" in reason(tmp_path / "a.tif", 3)
    (tmp_path / "b.tif").write_bytes(b"II*\0" + struct.pack("<I", 8) + page + struct.pack("<I", 8))  # a loop
    with (tmp_path / "b.tif").open("rb") as file:
        assert len(read_pages(file)) == 1


# -------------------------------------------------------------------- other pictures


def test_png_of_16_bit_colours_keeps_all_bits(tmp_path: Path) -> None:
    colours = levels("uint16", *SIZE, 3)
    image, notes = read(png_of_16_bits(tmp_path / "a.png", colours), 3)
    assert image.dtype == np.uint16
    assert np.array_equal(image, colours)
    assert notes == []
    assert "a PNG of 3 samples a pixel of 16 bits, and DATA.channels is 4: set it to 3" in reason(tmp_path / "a.png", 4)
    path = write_foreign(tmp_path, "png of 4 samples")
    assert np.array_equal(read(path, 4)[0], levels("uint16", *SIZE, 4))
    image, (note,) = read(path, 3)
    assert np.array_equal(image, levels("uint16", *SIZE, 4)[..., :3])
    assert "alpha channel is left out" in note
    path = write_foreign(tmp_path, "png of 2 samples")
    for channels in (1, 3):
        image, (note,) = read(path, channels)
        assert np.array_equal(image, np.repeat(levels("uint16", *SIZE, 2)[..., :1], channels, axis=2))
        assert "alpha channel is left out" in note
    for channels in (4, 12):
        assert "DATA.channels is" in reason(path, channels)


def test_png_of_16_bit_colours_is_refused_where_torchvision_has_no_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = png_of_16_bits(tmp_path / "a.png", levels("uint16", *SIZE, 3))
    monkeypatch.delattr(pictures.torchvision.io, "decode_png")
    assert "a PNG with colours of 16 bits" in reason(path, 3)
    path.write_bytes(path.read_bytes()[:-40])
    monkeypatch.undo()
    reason(path, 3)  # one that breaks off


def test_grey_levels_of_16_bits_are_never_an_alpha_or_a_twelfth_channel(tmp_path: Path) -> None:
    Image.fromarray(levels("uint16", *SIZE)).save(tmp_path / "a.png")
    for channels in (4, 12):
        refusal = reason(tmp_path / "a.png", channels)
        assert f"grey levels of more than 8 bits, and DATA.channels is {channels}: 1 or 3 are read" in refusal


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("jpeg 2000 of 16 bits", "a JPEG 2000 of 3 samples a pixel of 16 bits"),
        ("jpeg 2000 of signed levels", "a JPEG 2000 of 1 samples a pixel of 8 bits, signed"),
        ("avif of 10 bits", "an AVIF of more than 8 bits"),
    ],
)
def test_picture_that_pillow_would_cut_to_8_bits_is_refused(tmp_path: Path, name: str, what: str) -> None:
    if "avif" in name and "AVIF" not in pictures._formats():
        pytest.skip("this Pillow reads no AVIF")
    assert what in reason(write_foreign(tmp_path, name), 3)


def test_picture_formats_with_more_bits_keep_their_levels(tmp_path: Path) -> None:
    image, _ = read(write_foreign(tmp_path, "jpeg 2000 of 15 bits"), 1)  # which Pillow shifts to 16
    assert np.array_equal(image[..., 0], levels("uint16", *SIZE, 3)[..., 0])
    if "AVIF" in pictures._formats():
        path = write_foreign(tmp_path, "avif of 8 bits")
        assert np.array_equal(read(path, 3)[0], np.asarray(Image.open(path)))
    colours = levels("uint16", *SIZE, 3)
    (tmp_path / "a.ppm").write_bytes(b"P6\n%d %d\n65535\n" % SIZE[::-1] + colours.astype(">u2").tobytes())
    assert "a PPM of colours up to 65535" in reason(tmp_path / "a.ppm", 3)
    (tmp_path / "a.pgm").write_bytes(b"P5\n%d %d\n65535\n" % SIZE[::-1] + colours[..., 0].astype(">u2").tobytes())
    assert np.array_equal(read(tmp_path / "a.pgm", 1)[0][..., 0], colours[..., 0])


def test_bmp_of_32_bits_has_colours_and_no_constant_alpha(tmp_path: Path) -> None:
    values = levels("uint8", *SIZE, 4)
    Image.fromarray(values).save(tmp_path / "a.bmp")
    assert np.array_equal(read(tmp_path / "a.bmp", 3)[0], values[..., :3])
    assert "a BMP of 32 bits that does not call its fourth byte alpha" in reason(tmp_path / "a.bmp", 4)
    Image.fromarray(values[..., :3]).save(tmp_path / "b.bmp")
    assert read(tmp_path / "b.bmp", 4)[0][..., 3].tolist() == [[255] * WIDTH] * HEIGHT


def test_cmyk_is_no_picture_of_four_channels(tmp_path: Path) -> None:
    photograph().convert("CMYK").save(tmp_path / "a.jpg")
    assert "a picture of CMYK, and DATA.channels is 4: DATA.channels 3 reads its colours" in reason(
        tmp_path / "a.jpg", 4
    )


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_first_frame_of_an_animation_is_read_with_a_word(tmp_path: Path, name: str) -> None:
    still, other = photograph().quantize(32).convert("RGB"), Image.new("RGB", photograph().size, "blue")
    still.save(tmp_path / name, save_all=True, append_images=[other])
    image, notes = read(tmp_path / name, 3)
    assert np.abs(image.astype(int) - np.asarray(still)).mean() < 8  # WebP loses some
    assert "of several frames the first is read" in notes
    still.save(tmp_path / name)
    assert read(tmp_path / name, 3)[1] == []


@pytest.mark.parametrize(
    ("mode", "channels", "what"),
    [
        ("RGBA", 3, "its alpha channel is left out by DATA.channels 3"),
        ("LA", 1, "its alpha channel is left out by DATA.channels 1"),
        ("RGB", 4, "it has no alpha channel, and the fourth of DATA.channels 4 is 255"),
        ("RGB", 1, "its colours become one grey level by DATA.channels 1"),
        ("RGB", 3, ""),
        ("RGBA", 4, ""),
        ("L", 3, ""),
        ("P", 3, ""),
    ],
)
def test_what_channels_leave_out_or_add_is_said(tmp_path: Path, mode: str, channels: int, what: str) -> None:
    photograph().convert(mode).save(tmp_path / "a.png")
    notes = read(tmp_path / "a.png", channels)[1]
    assert len(notes) == bool(what)
    assert all(note.startswith(what) for note in notes)


def test_transparent_colour_of_a_palette_or_of_grey_levels_is_alpha(tmp_path: Path) -> None:
    palette = photograph().convert("P")
    palette.save(tmp_path / "a.png", transparency=palette.getpixel((0, 0)))
    grey = Image.fromarray(levels("uint8", *SIZE))
    grey.save(tmp_path / "b.png", transparency=37)
    for name, picture, colour in (("a.png", palette, palette.getpixel((0, 0))), ("b.png", grey, 37)):
        assert "alpha channel is left out" in read(tmp_path / name, 3)[1][0]
        image, notes = read(tmp_path / name, 4)
        assert np.array_equal(image[..., 3], np.where(np.asarray(picture) == colour, 0, 255))
        assert notes == []


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_transparent_colour_is_said_to_be_left_out_where_no_mode_changes(
    tmp_path: Path, mode: str, channels: int
) -> None:
    picture = photograph().convert(mode)
    picture.save(tmp_path / "a.png", transparency=picture.getpixel((0, 0)))
    assert read(tmp_path / "a.png", channels)[1] == [
        f"its alpha channel is left out by DATA.channels {channels}, and not blended"
    ]


def test_transparent_colour_of_16_bits_is_said_to_be_left_out(tmp_path: Path) -> None:
    path = png_of_16_bits(tmp_path / "a.png", levels("uint16", *SIZE, 3), transparent=(0, 997, 1994))
    image, notes = read(path, 3)
    assert np.array_equal(image, levels("uint16", *SIZE, 3))
    assert notes == ["its alpha channel is left out by DATA.channels 3, and not blended"]


# -------------------------------------------------------------------- arrays


@pytest.mark.filterwarnings("error")
def test_array_of_float64_beyond_float32_becomes_infinite_without_a_warning_of_numpy(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1e300, 2.0]]))
    assert read(tmp_path / "a.npy", 1)[0].tolist() == [[[np.inf], [2.0]]]


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (3, 0, 5), (0, 5)])
def test_array_without_a_pixel_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.float32))
    assert reason(tmp_path / "a.npy", 3 if len(shape) == 3 else 1) == f"an array of shape {shape} is empty"


def test_array_of_two_axes_is_grey_and_nothing_else(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", levels("uint8", 12, 7))
    assert np.array_equal(read(tmp_path / "a.npy", 1)[0], levels("uint8", 12, 7)[..., None])
    for channels in (3, 7, 12):
        refusal = reason(tmp_path / "a.npy", channels)
        assert "of shape (12, 7)" in refusal
        assert f"DATA.channels {channels}" in refusal


def test_array_with_channels_at_both_ends_says_which_end_is_taken(tmp_path: Path) -> None:
    values = levels("uint8", 3, 5, 3)
    np.save(tmp_path / "a.npy", values)
    image, (note,) = read(tmp_path / "a.npy", 3)
    assert np.array_equal(image, values)
    assert "(3, 5, 3)" in note
    assert "the last axis is taken" in note


@pytest.mark.parametrize("dtype", ["int16", "int64", "bool", "complex64", "S3"])
def test_array_of_another_type_is_refused_with_the_way_out(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 4), dtype=dtype))
    assert reason(tmp_path / "a.npy", 1).endswith("uint8, uint16 and floats are read; save array.astype(numpy.float32)")


# -------------------------------------------------------------------- notes


def test_notes_are_said_once_with_the_first_file(tmp_path: Path) -> None:
    say = Notes()
    for name in ("a.png", "b.png"):
        photograph().convert("RGBA").save(tmp_path / name)
    with logged() as lines:
        for name in ("a.png", "b.png"):
            decode(tmp_path / name, 3, say)
        decode((tmp_path / "b.png").read_bytes(), 1, say)
    for line, start in zip(
        lines,
        (
            f"{tmp_path}/a.png: its alpha channel is left out by DATA.channels 3",
            "an image: its alpha channel is left out by DATA.channels 1",
            "an image: its colours become one grey level by DATA.channels 1",
        ),
        strict=True,
    ):
        assert line.startswith(start)
        assert "not said again of others" in line


def test_a_source_says_a_note_once_and_another_source_again(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        photograph().convert("RGBA").save(tmp_path / name)
    said = []
    for _ in range(2):
        source = Folder("train", DataSettings(path=str(tmp_path)), val_share=0)
        with logged() as lines:
            for index in (0, 1):
                source.read(index)
                Subset(source, [index]).read_reduced(0, lambda height, width: Need(1, height))
        said.append(lines)
    assert [len(lines) for lines in said] == [1, 1]


def test_notes_of_several_workers_are_logged_once() -> None:
    record = logging.LogRecord("mim", logging.WARNING, "", 0, "a note", None, None)
    record.note = "a note"
    other = logging.LogRecord("mim", logging.WARNING, "", 0, "something else", None, None)
    results = SimpleNamespace(_outage_end=0.0, _source=SimpleNamespace(say=Notes()))
    with logged() as lines:
        Results._log(results, [record, other, record, other])
    assert lines == ["a note", "something else", "something else"]
