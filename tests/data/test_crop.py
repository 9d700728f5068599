"""From a JPEG file to a crop: torchvision's boxes, Pillow's pixels, and no more decoded than the crop needs."""

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image
from scipy.stats import ks_2samp
from simplejpeg import decode_jpeg
from sklearn.datasets import load_sample_image
from small_data import digit, photograph
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomHorizontalFlip, RandomResizedCrop

from mim.data.decoding.images import BrokenImage, decode, decode_reduced
from mim.data.loading.dataset import ImageDataset
from mim.data.settings import DataSettings
from mim.data.sources.base import Need, size_of
from mim.data.sources.folder import Folder
from mim.data.transforms import SPARE, AugmentSettings, Crop, RandomCropFlip
from mim.ops.seeding import derive_seed

SIZES = [(375, 500), (500, 333), (224, 224), (1600, 1200), (97, 106), (60, 600)]  # height, width


def jpeg(picture: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", **({"quality": 90} | options))
    return file.getvalue()


def need(by: float, rows: int) -> Callable[[int, int], Need]:
    return lambda height, width: Need(by, rows)


def pixels(stored: Image.Image | Tensor) -> Tensor:
    """(C, H, W)."""
    return stored if isinstance(stored, Tensor) else F.pil_to_tensor(stored)


# -------------------------------------------------------------------- boxes


@pytest.mark.parametrize("shape", [*SIZES, (1, 1), (2, 3), (7, 1), (10, 900), (900, 10)])
@pytest.mark.parametrize(
    ("scale", "ratio"), [((0.2, 1.0), (3 / 4, 4 / 3)), ((0.67, 1.0), (0.5, 0.9)), ((1, 1), (1, 1))]
)
def test_crop_of_a_seed_is_the_one_that_torchvision_draws(
    shape: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    transform = RandomCropFlip(AugmentSettings(crop_scale=scale, crop_ratio=ratio, flip=0.3), (224, 224))
    image = torch.empty(1, *shape)
    for seed in [*range(50), 2**32, 2**63 - 1]:
        torch.manual_seed(seed)
        box = RandomResizedCrop.get_params(image, list(scale), list(ratio))
        flipped = bool(torch.rand(1) < 0.3)
        assert transform.draw_crop(*shape, seed) == Crop(*box, flipped)


def test_crop_flips_as_torchvisions_transform() -> None:
    image, transform = torch.arange(5.0)[None, None], RandomCropFlip(AugmentSettings(flip=0.7), (1, 5))
    for seed in range(100):
        torch.manual_seed(seed)
        RandomResizedCrop.get_params(image, [0.2, 1.0], [0.75 * 5, 4 / 3 * 5])
        flipped = not torch.equal(RandomHorizontalFlip(0.7)(image), image)
        assert transform.draw_crop(1, 5, seed).flipped == flipped


def features(boxes: list[tuple[int, int, int, int]], shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Position of the centre, share of the area and ratio of the sides of boxes (top, left, height, width)."""
    top, left, height, width = np.array(boxes, dtype=float).T
    return {
        "row": (top + height / 2) / shape[0],
        "column": (left + width / 2) / shape[1],
        "area": height * width / (shape[0] * shape[1]),
        "ratio": width / height,
    }


def ours(shape: tuple[int, int], settings: AugmentSettings, draws: int) -> dict[str, np.ndarray]:
    """As training draws them, from derived seeds."""
    transform = RandomCropFlip(settings, (224, 224))
    crops = [transform.draw_crop(*shape, derive_seed(0, "augment", 0, index)) for index in range(draws)]
    return features([(crop.top, crop.left, crop.height, crop.width) for crop in crops], shape)


@pytest.mark.parametrize("shape", [*SIZES[:2], *(pytest.param(shape, marks=pytest.mark.slow) for shape in SIZES[2:])])
def test_crops_are_distributed_as_torchvisions(shape: tuple[int, int]) -> None:
    """Kolmogorov-Smirnov on positions, areas and ratios of other draws than ours; a scale off by .03 is seen."""
    torch.manual_seed(1)
    image, draws = torch.empty(1, *shape), 4000
    theirs = features([RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(draws)], shape)
    features_of_ours = ours(shape, AugmentSettings(), draws)
    for name, values in theirs.items():
        assert ks_2samp(features_of_ours[name], values).pvalue > 0.002, name
    other = ours(shape, AugmentSettings(crop_scale=(0.23, 1.0)), draws)
    if shape != (60, 600):  # where hardly any box fits, the box at the centre hides it
        assert ks_2samp(other["area"], theirs["area"]).pvalue < 0.002


def test_crops_flip_half_of_the_time() -> None:
    transform = RandomCropFlip(AugmentSettings(), (224, 224))
    flipped = sum(transform.draw_crop(375, 500, derive_seed(0, "augment", 0, index)).flipped for index in range(4000))
    assert abs(flipped - 2000) < 130  # four deviations


# -------------------------------------------------------------------- decoding

OPTIONS: dict[str, dict] = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True, "subsampling": 2},
    "optimized": {"optimize": True, "subsampling": 0},
    "restarts": {"restart_marker_rows": 1, "subsampling": 2},
    "comment": {"comment": b"\xff\xc0\xff\xda" * 9, "exif": b"Exif\x00\x00" + b"\xff\xd8\xff\xda" * 40},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("height", "width"), [(131, 97), (128, 96), (17, 300), (9, 5)])
@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1), ("L", 3), ("RGB", 1), ("RGB", 4), ("CMYK", 3)])
def test_decode_reduced_gives_pillows_pixels_of_the_rows_that_are_needed(
    name: str, height: int, width: int, mode: str, channels: int
) -> None:
    content = jpeg(photograph(height, width).convert(mode), **OPTIONS[name])
    expected_CHW = pixels(decode(content, channels))
    for rows in {1, height // 3 or 1, height - 1 or 1, height}:
        decoding, size = decode_reduced(content, channels, need(1.0, rows))
        actual_CHW = pixels(decoding)
        assert size == (height, width)
        assert actual_CHW.shape[1] >= rows
        assert torch.equal(actual_CHW, expected_CHW[:, : actual_CHW.shape[1]])


@pytest.mark.parametrize("name", OPTIONS)
def test_decode_reduced_stops_below_the_rows_that_are_needed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 8 rows, or of 16 and one more for their colours; a progressive file has no row until its end."""
    rows: list[int] = []

    def watched(*words: object, **keys: object) -> np.ndarray:
        rows.append(len(decoded := decode_jpeg(*words, **keys)))
        return decoded

    monkeypatch.setattr("mim.data.decoding.jpeg.decode_jpeg", watched)
    decoding, _ = decode_reduced(jpeg(photograph(400, 300), **OPTIONS[name]), 3, need(1.0, 47))
    assert isinstance(decoding, Tensor)
    assert decoding.shape[1] >= 47
    blocks = {"4:4:4": 48, "optimized": 48, "4:2:2": 48, "progressive": 400}
    assert rows == [blocks.get(name, 64)]


@pytest.mark.parametrize(
    ("by", "factor"), [(1.0, 1), (1.99, 1), (2.0, 2), (3.9, 2), (4.0, 4), (7.0, 4), (8.0, 8), (99, 8)]
)
@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1), ("L", 3), ("RGB", 4)])
def test_decode_reduced_divides_sides_by_no_more_than_is_enough(
    by: float, factor: int, mode: str, channels: int
) -> None:
    decoding, size = decode_reduced(jpeg(photograph(203, 301).convert(mode)), channels, need(by, 203))
    assert size == (203, 301)
    assert pixels(decoding).shape == (channels, -(-203 // factor), -(-301 // factor))
    assert isinstance(decoding, Tensor) == (factor == 1 and channels != 4)


def test_decode_reduced_of_a_path_is_that_of_its_content(tmp_path: Path) -> None:
    content = jpeg(photograph(90, 120))
    (tmp_path / "a.JPEG").write_bytes(content)
    for by in (1.0, 2.0):
        one, two = (decode_reduced(file, 3, need(by, 50))[0] for file in (tmp_path / "a.JPEG", content))
        assert torch.equal(pixels(one), pixels(two))
    assert (tmp_path / "a.JPEG").read_bytes() == content


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "npy", "16 bits"])
def test_decode_reduced_reads_other_files_whole(tmp_path: Path, kind: str) -> None:
    path, channels = tmp_path / "a.jpg", 3
    if kind == "npy":
        path = tmp_path / "a.npy"
        np.save(path, np.asarray(photograph()))
    elif kind == "16 bits":
        path, channels = tmp_path / "a.png", 1
        Image.fromarray(np.asarray(digit()).astype(np.uint16) * 257).save(path)
    else:
        photograph().save(path, kind)  # under a name that is none of its own, as in ImageNet
    for file in (path, path.read_bytes()):
        decoding, size = decode_reduced(file, channels, need(8.0, 1))
        expected = decode(file, channels)
        assert type(decoding) is type(expected)
        assert torch.equal(pixels(decoding), pixels(expected))
        assert size == tuple(pixels(expected).shape[1:])


# -------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("share", [0.99, 0.9, 0.5, 0.2, 0.02])
def test_decode_reduced_of_a_file_that_breaks_off_is_broken_whatever_is_needed(tmp_path: Path, share: float) -> None:
    content = jpeg(photograph(200, 300))
    path = tmp_path / "a.jpg"
    path.write_bytes(content[: int(len(content) * share)])
    for file in (path, path.read_bytes()):
        for by, rows in ((1.0, 200), (1.0, 3), (2.0, 3)):
            with pytest.raises(BrokenImage, match=r"\w+: \w+"):
                decode_reduced(file, 3, need(by, rows))


def test_decode_reduced_takes_what_pillow_takes_of_damaged_files() -> None:
    """Bytes that were overwritten at random: never another error, and an image wherever Pillow makes one."""
    content, random = jpeg(photograph(120, 90)), np.random.default_rng(0)
    outcomes = []
    for _ in range(150):
        damaged = bytearray(content)
        for position in random.integers(0, len(content), 3):
            damaged[position] = random.integers(0, 256)
        for by, rows in ((1.0, 120), (1.0, 30), (2.0, 30)):
            try:
                expected = decode(bytes(damaged), 3)
            except BrokenImage:
                expected = None
            try:
                decoding, size = decode_reduced(bytes(damaged), 3, need(by, rows))
            except BrokenImage:
                decoding = None
            if by == 1 and rows == 120:
                outcomes.append(expected is not None)
                assert (decoding is None) == (expected is None)
                if expected is not None:
                    assert torch.equal(pixels(decoding), pixels(expected))
            if expected is not None:
                assert pixels(decoding).shape[0] == 3
                assert size == (expected.height, expected.width)
    assert 20 < sum(outcomes) < 150


def test_decode_reduced_refuses_a_file_that_announces_too_many_pixels() -> None:
    content = bytearray(jpeg(photograph(16, 16)))
    struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, 65000, 65000)
    with pytest.raises(BrokenImage, match="DecompressionBomb"):
        decode_reduced(bytes(content), 3, need(1.0, 8))


def test_decode_reduced_mistake_of_the_one_who_asks_is_no_damage_of_the_file() -> None:
    def fails(height: int, width: int) -> Need:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        decode_reduced(jpeg(photograph()), 3, fails)


# -------------------------------------------------------------------- crops of files


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The two photographs of scikit-learn, 427 x 640, as files of different kinds."""
    root = tmp_path_factory.mktemp("photographs")
    for name in ("china", "flower"):
        picture = Image.fromarray(load_sample_image(f"{name}.jpg"))
        for number, options in enumerate(({"subsampling": 0}, {"subsampling": 2}, {"progressive": True})):
            (root / f"{name}-{number}.jpg").write_bytes(jpeg(picture, **options))
    return Folder("train", DataSettings(path=str(root)), val_share=0)


@dataclass(frozen=True)
class Compared:
    """Crops of files, (crops, C, H, W): ours; Pillow's of the picture; not rounded; how far each may shrink."""

    ours: Tensor
    pillow: Tensor
    exact: Tensor
    by: Tensor


def compared(source: Folder, side: int, interpolation: str) -> Compared:
    """The crops of six epochs, and what torchvision makes of the same boxes."""
    transform = RandomCropFlip(AugmentSettings(interpolation=interpolation), (side, side))
    data, rows = ImageDataset(source, transform, 7), []
    for epoch in range(6):
        for index in range(len(source)):
            picture = source.read(index)
            crop = transform.draw_crop(picture.height, picture.width, derive_seed(7, "augment", epoch, index))
            cut = F.crop(picture, crop.top, crop.left, crop.height, crop.width)
            row = [data[epoch, index].image_CHW]
            for image in (cut, F.pil_to_tensor(cut).double()):
                out_CHW = pixels(F.resize(image, [side, side], InterpolationMode(interpolation), antialias=True))
                row.append(out_CHW.flip(-1) if crop.flipped else out_CHW)
            rows.append(
                (
                    *(image_CHW.double() for image_CHW in row),
                    torch.tensor(transform.need_of(crop, size_of(picture)).reduction),
                )
            )
    return Compared(*(torch.stack(column) for column in zip(*rows, strict=True)))


@pytest.mark.parametrize(
    ("side", "interpolation"),
    [
        (160, "bicubic"),
        (224, "bilinear"),
        pytest.param(160, "bilinear", marks=pytest.mark.slow),
        pytest.param(224, "bicubic", marks=pytest.mark.slow),
    ],
)
def test_crop_of_a_file_is_close_to_pillows(photographs: Folder, side: int, interpolation: str) -> None:
    """Both round after the first of two passes, which some versions of PyTorch make in the other order than Pillow."""
    comparison = compared(photographs, side, interpolation)
    assert comparison.by.max() < 2
    difference = (comparison.ours - comparison.pillow).abs()
    assert difference.mean() < 0.15
    assert difference.max() <= 12
    exact = comparison.exact.clamp(0, 255)
    assert (comparison.ours - exact).abs().mean() < (comparison.pillow - exact).abs().mean() + 0.01


@pytest.mark.parametrize("side", [24, 48, 72])
def test_crop_of_a_file_that_is_decoded_smaller_stays_close_to_pillows(photographs: Folder, side: int) -> None:
    """It keeps at least 1.5 pixels for each of the result, so that only the finest of them can differ."""
    comparison = compared(photographs, side, "bicubic")
    smaller = (comparison.ours - comparison.pillow)[comparison.by >= 2].abs()
    assert len(smaller) > 15
    assert smaller.mean() < 1.5
    assert smaller.flatten().kthvalue(int(0.999 * smaller.numel())).values < 15


def test_enough_leaves_pixels_to_spare_and_all_rows_of_the_crop() -> None:
    transform = RandomCropFlip(AugmentSettings(), (100, 50))
    assert transform.need_of(Crop(10, 20, 600, 400, False), (800, 800)) == Need(600 / 100 / SPARE, 610)
    assert transform.need_of(Crop(0, 0, 400, 120, False), (800, 800)) == Need(120 / 50 / SPARE, 400)
    assert transform.need_of(Crop(5, 0, 30, 30, True), (800, 800)) == Need(1.0, 35)


def test_crop_of_a_smaller_decoding_lies_where_it_lies_in_the_whole() -> None:
    """Sides that 2 does not divide, and boxes that begin between two of the pixels that were decoded."""
    height, width, side = 403, 599, 40
    smooth_HW = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 120, width))
    content = jpeg(Image.fromarray(smooth_HW.round().astype(np.uint8)), quality=98)
    transform = RandomCropFlip(AugmentSettings(), (side, side))
    for top, left in ((0, 0), (101, 205), (403 - 301, 599 - 391)):
        crop = Crop(top, left, 301, 391, flipped=False)
        full_CHW = pixels(transform.cut(decode(content, 1), crop, (height, width))).float()
        for by in (2, 4):
            reduced, size = decode_reduced(content, 1, need(by, top + 301))
            assert reduced.width == -(-width // by)
            difference = pixels(transform.cut(reduced, crop, size)).float() - full_CHW
            assert difference.abs().max() <= 2
            assert abs(difference.mean()) < 0.2  # half a stored pixel beside it would be .25 of each axis
