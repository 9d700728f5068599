"""Decoding: every kind of file to the channels asked for, in its stored type, or BrokenImage with a reason."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import digit, photograph

from mim.data.decoding.images import BrokenImage, decode
from mim.data.decoding.pictures import to_mode


def save(picture: Image.Image, path: Path, **options: object) -> Path:
    picture.save(path, **options)
    return path


def array(path: Path, values: np.ndarray) -> Path:
    np.save(path, values)
    return path


def rgb_HWC(height: int = 6, width: int = 8) -> np.ndarray:
    return np.asarray(photograph(height, width))


# -------------------------------------------------------------------- pictures


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "1"])
@pytest.mark.parametrize(("channels", "expected"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_decode_picture_of_any_mode_has_the_channels_asked_for(
    tmp_path: Path, mode: str, channels: int, expected: str
) -> None:
    path = save(photograph().convert(mode), tmp_path / "a.png")
    picture = decode(path, channels)
    assert picture.mode == expected
    assert picture.size == (64, 48)
    assert np.asarray(picture).dtype == np.uint8


def test_decode_keeps_lossless_pixels(tmp_path: Path) -> None:
    for picture, channels in ((digit(), 1), (photograph(), 3), (photograph().convert("RGBA"), 4)):
        read = decode(save(picture, tmp_path / "a.png"), channels)
        assert np.array_equal(np.asarray(read), np.asarray(picture))


def test_decode_grey_picture_repeats_in_every_colour(tmp_path: Path) -> None:
    read = np.asarray(decode(save(digit(), tmp_path / "a.png"), 3))
    assert np.array_equal(read, np.repeat(np.asarray(digit())[..., None], 3, axis=2))


def test_decode_palette_gives_the_colours_and_not_the_indices(tmp_path: Path) -> None:
    palette = photograph().convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    read = decode(save(palette, tmp_path / "a.png"), 3)
    assert np.array_equal(np.asarray(read), np.asarray(palette.convert("RGB")))


def test_decode_cmyk_jpeg_looks_like_the_picture(tmp_path: Path) -> None:
    path = save(photograph().convert("CMYK"), tmp_path / "a.jpg", quality=95)
    with Image.open(path) as stored:
        assert stored.mode == "CMYK"
    difference = np.asarray(decode(path, 3)).astype(int) - np.asarray(photograph()).astype(int)
    assert np.abs(difference).mean() < 12


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_decode_16_bit_picture_is_uint16(tmp_path: Path, suffix: str) -> None:
    values_HW = np.asarray(digit()).astype(np.uint16) * 257
    values_HW[0, :3] = (1, 40000, 65535)
    path = save(Image.fromarray(values_HW), tmp_path / f"a{suffix}")
    for channels in (1, 3):
        image_CHW = decode(path, channels)
        assert image_CHW.dtype == torch.uint16
        assert image_CHW.shape == (channels, 32, 32)
        for plane_HW in image_CHW.numpy():
            assert np.array_equal(plane_HW, values_HW)


def test_decode_32_bit_picture_beyond_16_bits_is_not_wrapped(tmp_path: Path) -> None:
    values_HW = np.full((4, 4), 70000, dtype=np.int32)
    path = save(Image.fromarray(values_HW), tmp_path / "a.tif")
    try:
        image_CHW = decode(path, 1)
    except BrokenImage:
        return
    assert (image_CHW.to(torch.float64) == 70000).all()


def test_decode_float_picture_keeps_its_values(tmp_path: Path) -> None:
    values_HW = (np.asarray(digit()) / 255).astype(np.float32)
    path = save(Image.fromarray(values_HW), tmp_path / "a.tif")
    try:
        image_CHW = decode(path, 1)
    except BrokenImage:
        return
    assert isinstance(image_CHW, torch.Tensor)
    assert np.array_equal(image_CHW[0].numpy(), values_HW)


def test_decode_picture_refuses_other_channel_counts(tmp_path: Path) -> None:
    path = save(photograph(), tmp_path / "a.png")
    with pytest.raises(BrokenImage, match=r"DATA\.channels is 12"):
        decode(path, 12)


def test_to_mode_keeps_a_picture_that_fits() -> None:
    picture = photograph()
    assert to_mode(picture, 3) is picture


# -------------------------------------------------------------------- arrays


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64", "float16"])
def test_decode_array_of_each_type_keeps_its_values(tmp_path: Path, dtype: str) -> None:
    values_HW = np.asarray(digit()).astype(dtype)
    image_CHW = decode(array(tmp_path / "a.npy", values_HW), 1)
    expected = torch.float32 if dtype.startswith("float") else getattr(torch, dtype)
    assert image_CHW.dtype == expected
    assert image_CHW.shape == (1, 32, 32)
    assert np.array_equal(image_CHW[0].numpy(), values_HW)


@pytest.mark.parametrize("dtype", [">u2", ">f4"])
def test_decode_array_of_the_other_byte_order_keeps_its_values(tmp_path: Path, dtype: str) -> None:
    values_HW = np.asarray(digit()).astype(dtype)
    image_CHW = decode(array(tmp_path / "a.npy", values_HW), 1)
    assert np.array_equal(image_CHW[0].numpy(), values_HW)


def test_decode_array_takes_channels_at_either_end(tmp_path: Path) -> None:
    values_CHW = np.random.default_rng(0).integers(0, 255, (12, 5, 7)).astype(np.uint8)
    for stored in (values_CHW, np.moveaxis(values_CHW, 0, -1), np.asfortranarray(values_CHW)):
        image_CHW = decode(array(tmp_path / "a.npy", stored), 12)
        assert image_CHW.shape == (12, 5, 7)
        assert image_CHW.is_contiguous()
        assert np.array_equal(image_CHW.numpy(), values_CHW)


def test_decode_array_takes_the_last_axis_where_both_fit(tmp_path: Path) -> None:
    values_HWC = np.random.default_rng(0).integers(0, 255, (3, 5, 3)).astype(np.uint8)
    image_CHW = decode(array(tmp_path / "a.npy", values_HWC), 3)
    assert np.array_equal(image_CHW.numpy(), np.moveaxis(values_HWC, -1, 0))


@pytest.mark.parametrize("shape", [(5, 7, 4), (4, 5, 7), (5, 7), (2, 3, 5, 7), (7,), ()])
def test_decode_array_of_another_shape_is_named(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(BrokenImage) as caught:
        decode(array(tmp_path / "a.npy", np.zeros(shape, dtype=np.uint8)), 12)
    assert "DATA.channels 12" in str(caught.value)


@pytest.mark.parametrize("dtype", ["int64", "int32", "bool", "complex64"])
def test_decode_array_of_another_type_is_named(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(BrokenImage, match=dtype):
        decode(array(tmp_path / "a.npy", np.zeros((4, 4), dtype=dtype)), 1)


class Alarm:
    """What a pickle would run."""

    def __reduce__(self) -> tuple:
        return (pytest.fail, ("a pickled array was run",))


def test_decode_array_of_objects_is_refused_unread(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[Alarm()]], dtype=object), allow_pickle=True)
    with pytest.raises(BrokenImage, match="pickle"):
        decode(tmp_path / "a.npy", 1)


# -------------------------------------------------------------------- damaged files


def test_decode_truncated_jpeg_is_broken(tmp_path: Path) -> None:
    path = save(photograph(), tmp_path / "a.jpg")
    content = path.read_bytes()
    for share in (0.9, 0.5, 0.05):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(BrokenImage, match=r"\w+: \w+"):
            decode(path, 3)


def test_decode_truncated_png_and_array_are_broken(tmp_path: Path) -> None:
    for path in (save(photograph(), tmp_path / "a.png"), array(tmp_path / "a.npy", rgb_HWC())):
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(BrokenImage, match=r"\w+: \w+"):
            decode(path, 3)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.npy", "a.tif"])
@pytest.mark.parametrize("content", [b"", b"this is a text and not an image\n"], ids=["zero-byte", "text"])
def test_decode_file_that_is_no_image_is_broken(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BrokenImage, match=r"\w+: \w+"):
        decode(tmp_path / name, 3)


def test_decode_missing_file_is_broken(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.npy"):
        with pytest.raises(BrokenImage, match="FileNotFoundError"):
            decode(tmp_path / name, 3)


def test_decode_archive_named_npy_is_broken(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        np.savez(file, rgb_HWC())
    with pytest.raises(BrokenImage):
        decode(tmp_path / "a.npy", 3)
