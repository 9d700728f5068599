"""Odd and hostile images: what each kind of file becomes, or that it is refused before it costs anything."""

import io
import os
import re
import resource
import struct
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_images import png, png_of_16_bits, tiff, tiff_of_16_bits, ycck_jpeg
from PIL import Image, ImageOps
from small_data import digit, photograph

from mim.data.decoding.images import BrokenImage, decode, decode_reduced
from mim.data.sources.base import Need, Stored, quiet_decoders
from mim.data.sources.resizing import fit_to_size, reduce_to_short_side
from mim.data.transforms import AugmentSettings, CentreCrop, RandomCropFlip

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torchvision"),
]


def full_image(height: int, width: int) -> Need:
    return Need(1.0, height)


def pixels(stored: Stored) -> np.ndarray:
    """(H, W, C)"""
    if isinstance(stored, torch.Tensor):
        return stored.permute(1, 2, 0).numpy()
    return np.asarray(stored).reshape(stored.height, stored.width, -1)


def both(path: Path, channels: int = 3) -> np.ndarray:
    """The pixels that every way of reading a file gives, from its path and from its content."""
    images = [pixels(decode(file, channels)) for file in (path, path.read_bytes())]
    images += [pixels(decode_reduced(file, channels, full_image)[0]) for file in (path, path.read_bytes())]
    for other in images[1:]:
        assert other.dtype == images[0].dtype
        assert np.array_equal(other, images[0])
    return images[0]


def refusals(path: Path, channels: int = 3) -> set[str]:
    """The reasons of every way of reading it."""
    reasons = set()
    files: list[Path | bytes] = [path]
    if path.is_file():
        files.append(path.read_bytes())
    for file in files:
        for read in (decode, lambda file, channels: decode_reduced(file, channels, full_image)):
            with pytest.raises(BrokenImage) as caught:
                read(file, channels)
            reasons.add(str(caught.value))
    return reasons


def near(pixels_HWC: np.ndarray, picture: Image.Image, most: float) -> bool:
    return np.abs(pixels_HWC.astype(int) - np.asarray(picture).astype(int)).mean() < most


# -------------------------------------------------------------------- kinds of pictures


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_decode_takes_a_picture_for_what_it_holds_and_not_for_what_it_is_called(tmp_path: Path, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = photograph().convert("P") if kind == "GIF" else photograph()
    picture.save(tmp_path / "a.jpg", kind, **options)
    assert np.array_equal(both(tmp_path / "a.jpg"), np.asarray(picture.convert("RGB")))
    photograph().save(tmp_path / "b.png", "JPEG")
    assert near(both(tmp_path / "b.png"), photograph(), 8)


def test_decode_cmyk_and_ycck_jpeg_look_like_the_picture(tmp_path: Path) -> None:
    photograph().convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    ycck_jpeg(tmp_path / "b.jpg", photograph())
    for name in ("a.jpg", "b.jpg"):
        assert near(both(tmp_path / name), photograph(), 12), name
        assert near(both(tmp_path / name, 1)[..., 0], photograph().convert("L"), 12), name


def test_decode_16_bit_colours_keep_their_bits_or_are_refused(tmp_path: Path) -> None:
    deep_HWC = np.asarray(photograph()).astype(np.uint16) * 39
    image = both(png_of_16_bits(tmp_path / "a.png", deep_HWC))
    assert image.dtype == np.uint16
    assert np.array_equal(image, deep_HWC)
    assert np.array_equal(both(tiff_of_16_bits(tmp_path / "a.tif", deep_HWC)), deep_HWC)
    (reason,) = refusals(tmp_path / "a.tif", 1)
    assert reason.startswith("a TIFF of 3 samples a pixel of 16 bits, uint16, and DATA.channels is 1: set it to 3")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_decode_16_bit_grey_is_the_same_every_way(tmp_path: Path, suffix: str) -> None:
    levels_HW = np.asarray(digit()).astype(np.uint16) * 257
    Image.fromarray(levels_HW).save(tmp_path / f"a{suffix}")
    assert np.array_equal(both(tmp_path / f"a{suffix}", 1)[..., 0], levels_HW)


def test_decode_drops_alpha_that_is_not_asked_for_and_does_not_blend_it(tmp_path: Path) -> None:
    clear = photograph().convert("RGBA")
    clear.putalpha(0)
    clear.save(tmp_path / "a.png")
    assert np.array_equal(both(tmp_path / "a.png"), np.asarray(photograph()))
    assert (both(tmp_path / "a.png", 4)[..., 3] == 0).all()
    palette = photograph().convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    palette.save(tmp_path / "b.png", transparency=bytes(range(0, 256, 16)))
    with Image.open(tmp_path / "b.png") as stored:
        assert (stored.mode, type(stored.info["transparency"])) == ("P", bytes)
    assert np.array_equal(both(tmp_path / "b.png"), np.asarray(palette.convert("RGB")))
    assert len(np.unique(both(tmp_path / "b.png", 4)[..., 3])) > 8
    photograph().convert("LA").save(tmp_path / "c.png")
    assert np.array_equal(both(tmp_path / "c.png", 1)[..., 0], np.asarray(photograph().convert("L")))
    photograph().convert("1").save(tmp_path / "d.png")
    assert set(np.unique(both(tmp_path / "d.png"))) == {0, 255}


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_decode_takes_the_first_frame(tmp_path: Path, name: str) -> None:
    first, second = photograph().quantize(32).convert("RGB"), ImageOps.mirror(photograph()).quantize(32).convert("RGB")
    options = {"lossless": True} if name == "a.webp" else {}
    first.save(tmp_path / name, save_all=True, append_images=[second, first], **options)
    with Image.open(tmp_path / name) as stored:
        assert stored.n_frames == 3
    assert near(both(tmp_path / name), first, 2)
    assert not near(both(tmp_path / name), second, 20)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_decode_shows_pixels_as_stored_whatever_exif_says(tmp_path: Path, name: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    photograph().save(tmp_path / name, exif=exif)
    with Image.open(tmp_path / name) as stored:
        assert stored.getexif()[0x0112] == 6
    image = both(tmp_path / name)
    if name == "a.tif":  # its orientation is part of the format, and Pillow heeds it
        image = np.rot90(image)
    assert image.shape == (48, 64, 3)
    assert near(image, photograph(), 8)


def test_decode_starts_no_program_for_a_script_that_is_called_a_picture(tmp_path: Path) -> None:
    photograph().save(tmp_path / "a.jpg", "EPS")  # which Pillow would give to Ghostscript
    assert refusals(tmp_path / "a.jpg") == {"UnidentifiedImageError: its format is not one that is read"}


# -------------------------------------------------------------------- files that lie


@pytest.mark.parametrize("cut", [0, 1, 30, 200, 0.5, 0.99])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp", "a.gif", "a.bmp", "a.ppm", "a.npy"])
def test_decode_file_that_breaks_off_is_broken(tmp_path: Path, name: str, cut: float) -> None:
    path = tmp_path / name
    np.save(path, np.asarray(photograph())) if name == "a.npy" else photograph().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content)) if isinstance(cut, float) else cut])
    if name == "a.tif" and cut == 0.99:  # its header stands at its end
        assert path.stat().st_size < len(content)
    refusals(path)


def claims(folder: Path) -> dict[str, tuple[Path, str]]:
    """Small files that say they are huge, with what is said of them."""
    bomb = "DecompressionBombError: Image size .* exceeds limit"
    jpeg = io.BytesIO()
    photograph().save(jpeg, "JPEG")
    content = bytearray(jpeg.getvalue())
    struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, 65000, 65000)
    (folder / "b.jpg").write_bytes(content)
    gif = io.BytesIO()
    digit().save(gif, "GIF")
    content = bytearray(gif.getvalue())
    struct.pack_into("<HH", content, 6, 65535, 65535)
    (folder / "d.gif").write_bytes(content)
    header = {"descr": "<f8", "fortran_order": False, "shape": (1_000_000, 1_000_000, 3)}
    with (folder / "e.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(100))
    with (folder / "f.npy").open("wb") as file:
        np.lib.format.write_array_header_2_0(file, header | {"shape": (2**62, 2**62), "descr": "|u1"})
    (folder / "g.ppm").write_bytes(b"P6\n60000 60000\n255\n" + bytes(100))
    array = r"the array is incomplete: shape .*, [\d,]{18,} bytes, in a file of \d+"
    return {
        "png": (png(folder / "a.png", 50_000, 50_000, 8, 2, bytes(100)), bomb),
        "jpeg": (folder / "b.jpg", bomb),
        "tiff": (tiff(folder / "c.tif", 60_000, 60_000, (8, 8, 8), bytes(100)), bomb),
        "gif": (folder / "d.gif", bomb),
        "ppm": (folder / "g.ppm", bomb),
        "npy": (folder / "e.npy", array),
        "npy2": (folder / "f.npy", array),
    }


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "gif", "ppm", "npy", "npy2"])
def test_decode_file_that_claims_more_than_it_holds_is_refused_before_memory_is_taken(
    tmp_path: Path, kind: str
) -> None:
    path, reason = claims(tmp_path)[kind]
    assert path.stat().st_size < 10_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for refusal in refusals(path):
        assert re.search(reason, refusal), refusal
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


def test_decode_picture_of_100_megapixels_is_read_without_a_word(tmp_path: Path) -> None:
    """Pillow warns above 89 megapixels, and refuses twice that."""
    path = png(tmp_path / "a.png", 10_000, 10_000, 1, 0, bytes(1251) * 10_000)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        quiet_decoders()
        assert decode(path, 1).size == (10_000, 10_000)
    assert heard == []


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
@pytest.mark.parametrize("kind", ["picture", "array"])
def test_a_strip_of_pixels_takes_no_gigabytes_to_be_cut_or_packed(
    tmp_path: Path, size: tuple[int, int], kind: str
) -> None:
    values_HW = np.random.default_rng(0).integers(0, 255, size).astype(np.uint8)
    path = tmp_path / ("a.npy" if kind == "array" else "a.png")
    np.save(path, values_HW) if kind == "array" else Image.fromarray(values_HW).save(path)
    stored = decode(path, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for share in (1.0, 0.875):
        assert CentreCrop(AugmentSettings(), (64, 96), share)(stored).shape == (1, 64, 96)
    assert RandomCropFlip(AugmentSettings(), (64, 96))(stored, 0).shape == (1, 64, 96)
    reduce_to_short_side(stored, 64)
    assert pixels(fit_to_size(stored, (64, 96))).shape == (64, 96, 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


# -------------------------------------------------------------------- what is no file


@pytest.mark.parametrize("name", ["a.jpg", "a.npy"])
def test_decode_pipe_device_folder_and_link_to_itself_are_broken_and_never_waited_for(
    tmp_path: Path, name: str
) -> None:
    path, start = tmp_path / name, time.monotonic()
    os.mkfifo(path)
    assert refusals(path) == {"it is a folder, a pipe or a device, and no file"}
    path.unlink()
    path.mkdir()
    assert refusals(path) == {"it is a folder, a pipe or a device, and no file"}
    path.rmdir()
    path.symlink_to("/dev/zero")
    assert refusals_unread(path) == {"it is a folder, a pipe or a device, and no file"}
    path.unlink()
    path.symlink_to(path)
    assert refusals(path) == {"OSError: Too many levels of symbolic links"}
    path.unlink()
    path.symlink_to("nowhere.jpg")
    assert refusals(path) == {"FileNotFoundError: No such file or directory"}
    assert time.monotonic() - start < 10


def refusals_unread(path: Path) -> set[str]:
    reasons = set()
    for read in (decode, lambda file, channels: decode_reduced(file, channels, full_image)):
        with pytest.raises(BrokenImage) as caught:
            read(path, 3)
        reasons.add(str(caught.value))
    return reasons


def test_decode_file_that_may_not_be_read_is_broken(tmp_path: Path) -> None:
    photograph().save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").chmod(0)
    child = os.fork()
    if child == 0:  # root may read everything, nobody may not
        try:
            if os.getuid() == 0:
                for folder in (tmp_path, *tmp_path.parents):
                    os.chmod(folder, os.stat(folder).st_mode | 0o111)
                os.setuid(65534)
            ended = 1
            try:
                decode(tmp_path / "a.jpg", 3)
            except BrokenImage as error:
                ended = 0 if str(error) == "PermissionError: Permission denied" else 2
        finally:
            os._exit(ended)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_decode_reason_is_one_short_line(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300_000)
    (reason,) = refusals_unread(path)
    assert reason == "OSError: File name too long"
    assert refusals_unread(tmp_path / "a\0b.jpg") == {"ValueError: embedded null byte"}
    assert sys.getfilesystemencoding() == "utf-8"
