"""GeoTIFFs that rasterio writes: missing pixels are NaN in each band that has them, and all others are as written.

Shapes: N bands, H W pixels.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mim.data.decoding.images import BrokenImage, decode, decode_reduced
from mim.data.settings import DataSettings, Selection
from mim.data.sources.base import Need
from mim.data.sources.folder import Folder

rasterio = pytest.importorskip("rasterio")

BANDS, HEIGHT, WIDTH = 5, 40, 52
NAMES = ("blue", "green", "red", "edge", "infrared")
HOLE = (slice(3, 9), slice(30, 50))
WAYS = [
    {},
    {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"},
    {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "zstd", "predictor": 2, "interleave": "pixel"},
    {"compress": "lzw", "BIGTIFF": "YES"},
]


def scene(dtype: str, nodata: float | None = None, bands: int = BANDS) -> np.ndarray:
    """(N, H, W): levels that differ everywhere; the hole of band 1, and a pixel of the last, are missing."""
    values = (np.arange(bands * HEIGHT * WIDTH) % 251).reshape(bands, HEIGHT, WIDTH).astype(dtype)
    values += 1  # so that 0 may be missing
    if nodata is not None:
        values[(min(1, bands - 1), *HOLE)] = values[-1, 0, 0] = nodata
    return values


def write(path: Path, values: np.ndarray, mask: np.ndarray | None = None, **profile: object) -> Path:
    shape = {"count": len(values), "height": values.shape[1], "width": values.shape[2], "dtype": values.dtype.name}
    place = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(5e5, 4e6, 10, 10)}
    with rasterio.open(path, "w", driver="GTiff", **shape, **place, **profile) as file:
        file.write(values)
        if len(values) == BANDS:
            file.descriptions = NAMES
        if mask is not None:
            file.write_mask(mask)
    return path


def read(path: Path, channels: int = BANDS, **selection: object) -> np.ndarray:
    """The pixels that every way of reading a whole file gives."""
    chosen = Selection(**selection)
    image = decode(path, channels, selection=chosen)
    assert image.dtype == torch.float32
    other, size = decode_reduced(path, channels, lambda height, width: Need(1.0, height), selection=chosen)
    assert size == (HEIGHT, WIDTH)
    assert torch.equal(image.nan_to_num(-1e9), other.nan_to_num(-1e9))
    return image.numpy()


def with_nan(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    return np.where(missing, np.float32("nan"), values.astype(np.float32))


def refusal(file: Path | bytes, channels: int = BANDS, **selection: object) -> str:
    with pytest.raises(BrokenImage) as caught:
        decode(file, channels, selection=Selection(**selection))
    assert str(caught.value).isprintable()
    return str(caught.value)


# -------------------------------------------------------------------- missing pixels


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [
        *(("int16", -9999), ("uint16", 0), ("uint8", 0), ("int32", -(2**31)), ("float32", -3.4028234663852886e38)),
        *(("float32", -9999), ("float64", -1.7976931348623157e308), ("float32", float("nan")), ("int8", -128)),
    ],
)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_pixels_with_the_number_of_missing_ones_are_nan(tmp_path: Path, dtype: str, nodata: float, way: dict) -> None:
    way = {key: value for key, value in way.items() if key != "predictor" or dtype != "int8"}
    values = scene(dtype if dtype != "int8" else "int16")
    values = (values // 2).astype(dtype) if dtype == "int8" else values
    values[(1, *HOLE)] = values[-1, 0, 0] = nodata
    missing = np.zeros(values.shape, bool)
    missing[(1, *HOLE)] = missing[-1, 0, 0] = True
    path = write(tmp_path / "a.tif", values, nodata=nodata, **way)
    expected = with_nan(np.where(missing, 0, values), missing)
    assert np.array_equal(read(path), expected, equal_nan=True)
    assert np.array_equal(decode(path.read_bytes(), BANDS).numpy(), expected, equal_nan=True)
    assert np.array_equal(read(path, 2, numbers=("infrared", "green")), expected[[4, 1]], equal_nan=True)
    assert np.array_equal(read(path, 2, numbers=(0, 3)), values[[0, 3]].astype(np.float32))


def test_images_that_name_missing_pixels_and_have_none_are_floats_too(tmp_path: Path) -> None:
    values = scene("uint8")
    assert np.array_equal(read(write(tmp_path / "a.tif", values, nodata=0)), values.astype(np.float32))


@pytest.mark.parametrize("internal", [True, False])
def test_masked_pixels_are_nan_in_all_bands(tmp_path: Path, internal: bool) -> None:
    values, mask = scene("uint16"), np.ones((HEIGHT, WIDTH), bool)
    mask[HOLE] = False
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal):
        path = write(tmp_path / "a.tif", values, mask, compress="deflate")
    assert (tmp_path / "a.tif.msk").exists() is not internal
    expected = with_nan(values, np.broadcast_to(~mask, values.shape))
    assert np.array_equal(read(path), expected, equal_nan=True)
    assert not (tmp_path / "a.tif.aux.xml").exists()


def test_number_of_each_band_stands_beside_the_file(tmp_path: Path) -> None:
    values = scene("int16")
    path = write(tmp_path / "a.tif", values)
    rows = "".join(f'<PAMRasterBand band="{band}"><NoDataValue>{band}</NoDataValue></PAMRasterBand>' for band in (2, 3))
    (tmp_path / "a.tif.aux.xml").write_text(f"<PAMDataset>{rows}</PAMDataset>")
    missing = np.zeros(values.shape, bool)
    missing[1], missing[2] = values[1] == 2, values[2] == 3
    assert missing.sum() > 10
    assert np.array_equal(read(path), with_nan(values, missing), equal_nan=True)
    (tmp_path / "a.tif.aux.xml").write_text("<PAMDataset></PAMDataset>")  # such as statistics
    assert torch.equal(decode(path, BANDS), torch.from_numpy(values.astype(np.float32)))


def test_tiles_that_were_never_written_are_nan(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    values = scene("int16")[:, :16, :16]
    tiles = {"tiled": True, "blockxsize": 16, "blockysize": 16, "sparse_ok": True, "nodata": -9999}
    with rasterio.open(path, "w", driver="GTiff", height=HEIGHT, width=WIDTH, count=BANDS, dtype="int16",
                       transform=rasterio.transform.from_origin(0, 0, 1, 1), **tiles) as file:  # fmt: skip
        file.write(values, window=rasterio.windows.Window(0, 0, 16, 16))
    image = read(path)
    assert np.array_equal(image[:, :16, :16], values.astype(np.float32))
    assert np.isnan(image[:, 16:]).all()
    assert np.isnan(image[:, :, 16:]).all()


def test_overviews_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", scene("int16", -9999), nodata=-9999)
    before = read(path)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4])
    assert np.array_equal(read(path), before, equal_nan=True)


# -------------------------------------------------------------------- channels


def test_geotiff_without_missing_pixels_is_read_as_before(tmp_path: Path) -> None:
    values = scene("uint16")
    path = write(tmp_path / "a.tif", values)
    image = decode(path, BANDS)
    assert image.dtype == torch.uint16
    assert np.array_equal(image.numpy(), values)
    assert np.array_equal(decode(path, 1, selection=Selection(("red",))).numpy(), values[2:3])
    picture = write(tmp_path / "b.tif", scene("uint8", bands=3), photometric="RGB")
    assert isinstance(decode(picture, 3), Image.Image)
    alpha = write(tmp_path / "c.tif", scene("uint8", bands=4), photometric="RGB", alpha="YES")
    assert isinstance(decode(alpha, 4), Image.Image)


def test_channels_that_the_file_does_not_have_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", scene("int16", -9999), nodata=-9999)
    message = refusal(path, 3)
    assert "a GeoTIFF of 5 bands, and DATA.channels is 3: set it to 5; or choose 3 of them" in message
    assert "with the names blue, green, red, edge, infrared: B8 is none" in refusal(path, 1, numbers=("B8",))


def test_grey_levels_are_repeated_and_bands_behind_colours_left_out(tmp_path: Path) -> None:
    grey = write(tmp_path / "a.tif", scene("uint8", 0, bands=1), nodata=0)
    image = read(grey, 3)
    assert np.isnan(image[:, 3, 30]).all()
    assert np.array_equal(image[0], image[2], equal_nan=True)
    colours = scene("uint8", 0, bands=4)
    said: list[str] = []
    path = write(tmp_path / "b.tif", colours, photometric="RGB", nodata=0)
    image = decode(path, 3, lambda notes, file: said.extend(notes))
    assert np.array_equal(image.numpy(), with_nan(colours[:3], colours[:3] == 0), equal_nan=True)
    assert said[0].startswith("its missing pixels become NaN, and so its levels floats, in the units of the file")
    assert said[1] == "DATA.channels 3 leaves out 1 of its 4 bands"


def test_palette_is_read_as_colours_and_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    place = {"transform": rasterio.transform.from_origin(0, 0, 1, 1), "height": HEIGHT, "width": WIDTH, "count": 1}
    with rasterio.open(path, "w", driver="GTiff", dtype="uint8", nodata=0, photometric="palette", **place) as file:
        file.write(scene("uint8", bands=1) % 3)
        file.write_colormap(1, {0: (0, 0, 0, 255), 1: (255, 0, 0, 255), 2: (0, 255, 0, 255)})
    said: list[str] = []
    image = decode(path, 3, lambda notes, file: said.extend(notes))
    assert isinstance(image, Image.Image)
    assert image.getpixel((0, 0)) == (255, 0, 0)
    assert said == ["it names missing pixels, and is read with them: of a palette or inks that is not done"]


# -------------------------------------------------------------------- damage


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::UserWarning:PIL")
def test_damaged_files_are_broken_or_read(tmp_path: Path, way: dict) -> None:
    path = write(tmp_path / "a.tif", scene("int16", -9999), nodata=-9999, **way)
    content = path.read_bytes()
    for share in (0.99, 0.9, 0.8, 0.7, 0.5, 0.3, 0.1):
        refusal(content[: int(len(content) * share)])
    generator = np.random.default_rng(0)
    counts = {"read": 0, "broken": 0}
    for _ in range(60):
        damaged = bytearray(content)
        for place in generator.integers(0, len(content), 20):
            damaged[place] = generator.integers(256)
        try:
            assert len(decode(bytes(damaged), BANDS, lambda notes, file: None)) == BANDS
            counts["read"] += 1
        except BrokenImage:
            counts["broken"] += 1
    assert counts["broken"] > 2


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    for dtype in ("complex64", "complex128"):
        path = write(tmp_path / "a.tif", scene(dtype), nodata=0)
        assert f"a GeoTIFF of {dtype}: whole numbers and floats are read" in refusal(path)


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.tif", scene("int16", -9999), nodata=-9999)
    for name in [module for module in sys.modules if module.split(".")[0] == "rasterio"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert refusal(path).endswith("pip install 'mim-toolkit[geotiff]'")


def test_folder_of_scenes_gives_bands_by_name(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.tif", scene("int16", -9999) + np.int16(0), nodata=-9999)
    settings = DataSettings(path=str(tmp_path), channels=2, channels_from=("green", "red"))
    images = Folder("train", settings, val_share=0)
    image = images.read(1)
    assert image.shape == (2, HEIGHT, WIDTH)
    assert torch.isnan(image[0]).sum() == 6 * 20
    assert not torch.isnan(image[1]).any()
