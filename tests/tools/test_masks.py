"""tools/masks.py and its picture: what the table says is true, and what the sheet shows are the masks."""

import contextlib
import io
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image
from processes import FINETUNE, RECIPE, ROOT, run, tool
from small_data import photograph, write_digits, write_recipe
from small_models import CPU, generator

from mim.evaluation.avg_dist import masker_avg_dist, pixel_distances
from mim.maskers import Block, Grid, Masker, Random
from mim.ops.intervals import Estimate
from mim.pictures import masks as sheets
from mim.pictures.masks import SampledMasks, draw_masks
from mim.structures import ImageSpec

SIMMIM = ROOT / "configs" / "simmim" / "swin_base_100ep.yaml"
DIGITS = ImageSpec(1, 32, 32)
BEST = "* AvgDist of 10 to 20 px: where SimMIM's fine-tuning was best"


def masks(*words) -> tuple[int, str]:
    """Exit code and output of the tool in this process."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = tool("masks").main([str(word) for word in words])
    return code, text.getvalue()


def rows_of(text: str) -> list[list[str]]:
    """The table's rows, split at two spaces or more."""
    lines = text.splitlines()
    body = lines[next(place for place, line in enumerate(lines) if set(line.strip()) == {"─"}) + 1 :]
    cut = next(place for place, line in enumerate(body) if not line.strip())
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in body[:cut]]


def sampled(masker, image: ImageSpec, count: int = 3, ratio: float | None = None, seed: int = 0) -> SampledMasks:
    mask = masker.sample(count, generator(seed), CPU)
    return SampledMasks(
        masker=masker.name,
        cell=masker.cell,
        ratio=ratio,
        visible=masker.visible,
        cells=masker.cells,
        avg_dist=Estimate(5.0, 0.1, 8),
        hidden_NHW=mask.at(image.height, image.width),
        distance_NHW=pixel_distances(mask, image.height, image.width),
    )


def at_pixels(picture_HW3: torch.Tensor, rows: list[SampledMasks], row: int, place: int, panel: int) -> np.ndarray:
    """What the sheet shows at the centre of each pixel of one mask, (H, W, 3) in [0, 1]."""
    count, height, width = rows[0].hidden_NHW.shape
    layout = sheets._Layout([each.cell for each in rows], count, height, width)
    left, bottom, wide, high = layout.box(row, place, panel)
    down = (1 - bottom - high + high * (np.arange(height) + 0.5) / height) * picture_HW3.shape[0]
    across = (left + wide * (np.arange(width) + 0.5) / width) * picture_HW3.shape[1]
    return picture_HW3.numpy()[down.astype(int)][:, across.astype(int)] / 255


def mask_pixels(picture_HW3: np.ndarray) -> np.ndarray:
    """Of the first row of a sheet of square images, what lies within the masks at its left."""
    top, left = sheets.TOP + sheets.HEADING, sheets.EDGE + sheets.LABEL
    down, across = (slice(int(start * sheets.DPI) + 4, int((start + 0.8) * sheets.DPI)) for start in (top, left))
    return picture_HW3[down, across]


# -------------------------------------------------------------------- the table


def test_table_has_the_figures_of_every_combination(tmp_path):
    code, text = masks("--config", RECIPE, "--output", tmp_path / "a.png", "--ratios", 0.4, 0.75, "--cells", 4, 8, 16)
    assert code == 0, text
    expected = []
    for cell in (4, 8, 16):
        for ratio in (0.4, 0.75):
            masker = Random(DIGITS, cell=cell, ratio=ratio)
            found = masker_avg_dist(masker, DIGITS, 256, seed=0)
            counts = [f"{masker.visible} of {masker.cells}", f"{masker.ratio:.1%}"]
            distance = [f"{found.mean:.2f} ± {found.half:.2f}", f"{found.mean / 32:.1%}"]
            expected.append(["random", str(cell), f"{ratio:g}", *counts, *distance])
    assert rows_of(text) == expected
    assert BEST not in text  # which is about photographs of 192 px


def test_table_of_the_config_as_it_is(tmp_path):
    code, text = masks("--config", RECIPE, "--output", tmp_path / "a.png")
    assert code == 0, text
    assert [row[:5] for row in rows_of(text)] == [["random", "4", "0.75", "16 of 64", "75.0%"]]
    assert text.startswith(f"{RECIPE}: 256 sampled masks a row\n")


def test_overrides_may_stand_behind_a_list(tmp_path):
    image = ["DATA.image_size", "[32,64]"]
    tail = ["--ratios", 0.5, "MASKER.rounding", "ceil_hidden", "--cells", 8, 8, *image]
    code, text = masks("--config", RECIPE, "--output", tmp_path / "a.png", *tail)
    assert code == 0, text
    assert [row[:4] for row in rows_of(text)] == [["random", "8", "0.5", "16 of 32"]]
    assert "shorter side" in text


def test_combinations_that_are_impossible_are_named_and_left_out(tmp_path):
    output = tmp_path / "a.png"
    code, text = masks("--config", RECIPE, "--output", output, "--cells", 2, 3, 16, "--ratios", 0.5, 0.9)
    assert code == 0, text
    found = rows_of(text)
    assert [row[1:3] for row in found] == [[cell, ratio] for cell in ("2", "3", "16") for ratio in ("0.5", "0.9")]
    assert [row[3] for row in found] == ["left out [1]"] * 2 + ["left out [2]"] * 2 + ["2 of 4", "left out [3]"]
    words = " ".join(text.split())
    assert "[1] MASKER.cell 2 is not a multiple of ENCODER.patch 4" in words
    assert "[2] MASKER.cell 3 does not divide the image height 32" in words
    assert "[3] MASKER.ratio 0.9 of 4 cells leaves 0 visible" in words
    alone = tmp_path / "alone.png"
    assert masks("--config", RECIPE, "--output", alone, "--cells", 16, "--ratios", 0.5)[0] == 0
    assert output.read_bytes() == alone.read_bytes()


def test_simmims_range_is_told_of_images_of_its_size(tmp_path):
    code, text = masks("--config", SIMMIM, "--output", tmp_path / "a.png", "--cells", 8, 32, "--samples", 1)
    assert code == 0, text
    assert BEST in text
    near, far = rows_of(text)
    assert not near[5].endswith("*")
    assert far[5].endswith(" *")
    assert 10 < float(far[5].split()[0]) < 20  # 32 px at .6: the paper's own choice
    small = ["DATA.image_size", "[96,96]", "ENCODER.window", 3, "ENCODER.patch", 4]
    assert "SimMIM's" not in masks("--config", SIMMIM, "--output", tmp_path / "a.png", "--samples", 1, *small)[1]


def test_a_masker_without_a_ratio(tmp_path):
    words = ["--config", RECIPE, "--output", tmp_path / "a.png", "--cells", 4, 8, "MASKER.name", "grid"]
    code, text = masks(*words)
    assert code == 0, text
    assert [row[:4] for row in rows_of(text)] == [["grid", "4", "-", "16 of 64"], ["grid", "8", "-", "4 of 16"]]
    assert all("± 0.00" in row[5] for row in rows_of(text))
    assert text.count("MASKER.ratio of the file has no effect") == 1  # although the file is read twice
    code, text = masks(*words, "--ratios", 0.5)
    assert code == 2
    assert text.startswith(("warning: MASKER", f"error: {RECIPE}: unknown key MASKER.ratio of grid", "error: unknown"))
    assert "unknown key MASKER.ratio of grid" in text


@pytest.fixture
def left_half(tmp_path, monkeypatch):
    """A module on the path that registers a masker; nothing of it is left afterwards."""
    (tmp_path / "my_left_half.py").write_text(
        "import torch\n"
        "from mim import Masker\n"
        "class LeftHalf(Masker, name='my_left_half'):\n"
        "    def __init__(self, image, *, cell: int = 8):\n"
        "        super().__init__(image, cell=cell)\n"
        "        self.visible = self.cells // 2\n"
        "    def hide(self, batch, generator, device):\n"
        "        columns = torch.arange(self.grid[1], device=device) < self.grid[1] // 2\n"
        "        return columns.expand(batch, *self.grid)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_left_half"
    Masker._members.pop("my_left_half", None)
    sys.modules.pop("my_left_half", None)


def test_a_masker_of_the_users_own(tmp_path, left_half):
    own = ["PLUGINS", f"[{left_half}]", "MASKER.name", left_half]
    code, text = masks("--config", RECIPE, "--output", tmp_path / "a.png", *own)
    assert code == 0, text
    assert rows_of(text) == [[left_half, "4", "-", "32 of 64", "50.0%", "8.50 ± 0.00", "26.6%"]]


# -------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--samples", 0], "--samples is 0: at least 1"),
        (["--ratios", "0,6"], "--ratios 0,6: it must be a number"),
        (["--ratios", 1.5], "MASKER.ratio is 1.5: it must lie between 0 and 1"),
        (["--cells", "MASKER.ratio", 0.5], "--cells is followed by 'MASKER.ratio': name at least one number"),
        (["--cells", 8, "MASKER.cell", 16], "MASKER.cell is given, and --cells too"),
        (["MASKER.ratio", 0.5, "--ratios", 0.6], "MASKER.ratio is given, and --ratios too"),
        (["--cells", 8.5], "MASKER.cell is '8.5': it must be an integer"),
        (["MASKER.cel", 8], "unknown key MASKER.cel of random: did you mean 'cell'?"),
        (["MASKER.cell"], "overrides come in pairs"),
        (["DATA.name", "folder", "DATA.path", "nowhere", "--over"], "which are not there: DATA.path nowhere does not"),
        (["--over", "--samples", 361], "needs 361 held-out images, and DATA.name digits has 360"),
    ],
)
def test_errors_name_what_to_mend(tmp_path, words, message):
    output = tmp_path / "a.png"
    code, text = masks("--config", RECIPE, "--output", output, *words)
    assert code == 2
    assert text.startswith("error: ")
    assert message in text
    assert not output.exists()


def test_errors_of_files(tmp_path):
    assert masks("--config", tmp_path / "none.yaml") == (2, f"error: config {tmp_path / 'none.yaml'} does not exist\n")
    code, text = masks("--config", RECIPE, "--output", tmp_path / "a.jpg")
    assert (code, "a.jpg: the picture is a PNG" in text) == (2, True)
    code, text = masks("--config", FINETUNE)
    assert (code, "TASK is finetune, which hides nothing" in text) == (2, True)


def test_all_combinations_impossible_tells_every_reason_once(tmp_path):
    code, text = masks("--config", RECIPE, "--output", tmp_path / "a.png", "--cells", 2, 3, "--ratios", 0.5, 0.6)
    assert code == 2
    assert text.startswith("error: no combination is possible:\n  MASKER.cell 2 is not a multiple")
    assert [text.count(f"MASKER.cell {cell} ") for cell in (2, 3)] == [1, 1]


# -------------------------------------------------------------------- the picture


def test_picture_is_a_png_that_grows_with_rows_and_masks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert masks("--config", RECIPE) == masks("--config", RECIPE)
    sizes = {(0, 0): Image.open("runs/masks/mae_digits.png").size}
    for rows, count in ((3, 6), (1, 9)):
        ratios = [0.3, 0.5, 0.7][:rows]
        output = Path(f"new/folder/{rows}-{count}.png")
        code, text = masks("--config", RECIPE, "--output", output, "--ratios", *ratios, "--samples", count)
        assert code == 0, text
        assert text.splitlines()[-1] == f"Picture: {output}"
        picture = Image.open(output)
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        sizes[rows, count] = picture.size
    (wide, high), (same, taller), (wider, as_high) = sizes.values()
    assert (same, as_high) == (wide, high)
    assert taller - high == pytest.approx(2 * (sheets.LONG + sheets.GAP) * sheets.DPI, abs=2)
    assert wider - wide == pytest.approx(2 * 3 * (sheets.LONG + sheets.GAP) * sheets.DPI, abs=2)


def test_picture_depends_on_the_seed_alone(tmp_path):
    def picture(name: str, *words) -> bytes:
        assert masks("--config", RECIPE, "--output", tmp_path / name, *words)[0] == 0
        return (tmp_path / name).read_bytes()

    assert picture("a.png") == picture("b.png") != picture("c.png", "SEED", 1)
    one, other = (mask_pixels(np.asarray(Image.open(tmp_path / name))) for name in ("a.png", "c.png"))
    assert (one != other).any()


@pytest.mark.parametrize("image", [ImageSpec(3, 32, 32), ImageSpec(3, 32, 64), ImageSpec(3, 64, 32)])
def test_picture_shows_each_mask_in_its_place(image):
    rows = [
        sampled(Random(image, cell=8, ratio=0.4), image, ratio=0.4),
        sampled(Random(image, cell=8, ratio=0.8), image, ratio=0.8),
        sampled(Block(image, cell=16, ratio=0.5), image, ratio=0.5),
        sampled(Grid(image, cell=16), image),
    ]
    picture = draw_masks(rows, "title")
    assert (picture.dtype, picture.ndim, picture.shape[2]) == (torch.uint8, 3, 3)
    dark, light = np.array(to_rgb(sheets.HIDDEN)), np.array(to_rgb(sheets.VISIBLE))
    shown = []
    for number, row in enumerate(rows):
        for place in range(3):
            found = at_pixels(picture, rows, number, place, 0)[4::8, 4::8]
            hidden = row.hidden_NHW[place, 4::8, 4::8].numpy()
            np.testing.assert_allclose(found, np.where(hidden[..., None], dark, light), atol=0.02)
            shown.append(hidden.tobytes())
    assert len(set(shown[::3])) == 4  # rows differ
    assert [len(set(shown[start : start + 3])) for start in (0, 3, 9)] == [3, 3, 1]  # and masks, but for the grid's


def test_picture_has_rows_from_above_and_masks_from_the_left():
    """In shares of the sheet from its lower left corner: what test_picture_shows_each_mask_in_its_place looks up."""
    layout = sheets._Layout([8, 8, 16], 4, 32, 64)
    boxes = [[[layout.box(row, place, panel) for place in range(4)] for panel in (0, 1)] for row in range(3)]
    for row in boxes:
        in_order = [box for panel in row for box in panel]
        assert all(one[0] + one[2] < other[0] for one, other in pairwise(in_order))
        assert len({box[1] for box in in_order}) == 1
    for above, below in pairwise(row[0][0] for row in boxes):
        assert above[1] > below[1] + below[3]
        assert above[0] == below[0]


def test_picture_shows_distances_by_one_scale():
    """Visible pixels are white; the farther, the darker, and equally so in every row."""
    image = ImageSpec(3, 64, 64)
    rows = [sampled(Random(image, cell=cell, ratio=0.6), image, ratio=0.6) for cell in (8, 16, 32)]
    picture = draw_masks(rows, "")
    brightness: dict[float, list[float]] = {}
    for number, row in enumerate(rows):
        for place in range(3):
            colours = at_pixels(picture, rows, number, place, 1)[4:-4, 4:-4]
            distances = row.distance_NHW[place].numpy()[4:-4, 4:-4]
            for distance, colour in zip(distances.ravel(), colours.reshape(-1, 3), strict=True):
                brightness.setdefault(round(float(distance)), []).append(colour.mean())
    medians = [np.median(values) for _, values in sorted(brightness.items()) if len(values) > 20]
    assert len(medians) > 12
    assert all(near > far for near, far in pairwise(medians[::2]))
    assert medians[0] == 1
    assert medians[-1] < 0.3


def test_masks_over_images_show_the_image_where_it_is_visible():
    image = ImageSpec(3, 32, 64)
    rows = [sampled(Random(image, cell=8, ratio=0.5), image, ratio=0.5)]
    photo_CHW = torch.from_numpy(np.asarray(photograph(32, 64)).copy()).permute(2, 0, 1) / 255
    blocks_CHW = torch.nn.functional.avg_pool2d(photo_CHW[None], 8)[0].repeat_interleave(8, 1).repeat_interleave(8, 2)
    for images_CHW in (blocks_CHW, blocks_CHW[:1], blocks_CHW[[0, 1, 2, 0, 1]], blocks_CHW[:2]):
        picture = draw_masks(rows, "", images_CHW.expand(3, -1, -1, -1))
        seen = images_CHW[:3] if len(images_CHW) > 2 else images_CHW[:1].expand(3, -1, -1)
        grey = np.array(to_rgb(sheets.HIDDEN_OVER))
        for place in range(3):
            hidden = rows[0].hidden_NHW[place, 4::8, 4::8].numpy()[..., None]
            expected = np.where(hidden, grey, seen.permute(1, 2, 0)[4::8, 4::8].numpy())
            np.testing.assert_allclose(at_pixels(picture, rows, 0, place, 0)[4::8, 4::8], expected, atol=0.02)


@pytest.mark.parametrize("kind", ["digits", "files", "arrays"])
def test_over_takes_held_out_images(tmp_path, kind):
    data = ["DATA.name", "folder", "DATA.path", tmp_path / "images", "DATA.val_share", 0.5]
    if kind == "digits":
        data = []
    elif kind == "files":
        write_digits(tmp_path / "images", 30)
    else:  # of a microscope: counts, which must be stretched to be seen
        (tmp_path / "images").mkdir()
        for number in range(30):
            counts = np.random.default_rng(number).integers(100, 130, (4, 32, 32)).astype(np.float32)
            np.save(tmp_path / "images" / f"{number}.npy", counts)
        data += ["DATA.channels", 4]
    pictures = []
    for flag in ([], ["--over"]):
        code, text = masks("--config", RECIPE, "--output", tmp_path / "a.png", "--samples", 4, *flag, *data)
        assert code == 0, text
        pictures.append(np.asarray(Image.open(tmp_path / "a.png")))
    plain, over = pictures
    assert plain.shape == over.shape
    half = plain.shape[1] // 2
    assert (plain[:, half + 60 :] == over[:, half + 60 :]).all()  # distances and figures
    shown = mask_pixels(over)
    assert (mask_pixels(plain) != shown).any()
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 100
    assert shown.max() > 230


@pytest.mark.parametrize(("count", "name"), [(1, "random"), (2, r"$\bad$"), (6, "a_rather_long_name")])
def test_picture_keeps_words_apart(count, name):
    """Nothing reaches the edges, or from the words at the left into the masks."""
    image = ImageSpec(3, 1024, 512)
    row = sampled(Random(image, cell=128, ratio=0.9375), image, count, ratio=0.9375)
    rows = [row, SampledMasks(**{key: getattr(row, key) for key in row.__slots__} | {"masker": name, "cell": 64})]
    picture = draw_masks(rows, "a title", note="a note\nof two lines").numpy()
    ink = (picture < 200).any(axis=2)
    for side in (ink[:6], ink[-6:], ink[:, :6], ink[:, -6:]):
        assert not side.any()
    gap = int((sheets.EDGE + sheets.LABEL) * sheets.DPI)
    below = int((sheets.TOP + sheets.HEADING) * sheets.DPI)
    assert not ink[below:, gap - 6 : gap - 2].any()
    assert ink[below:, :gap].any()


def test_rows_that_do_not_fit_are_errors():
    image, other = ImageSpec(3, 32, 32), ImageSpec(3, 32, 64)
    row = sampled(Random(image, cell=8, ratio=0.5), image)
    for rows in ([], [row, sampled(Random(other, cell=8, ratio=0.5), other)]):
        with pytest.raises(ValueError, match="rows of one shape"):
            draw_masks(rows, "")
    with pytest.raises(ValueError, match="do not fit masks"):
        draw_masks([row], "", torch.zeros(3, 1, 16, 16))


def test_the_tool_runs_from_the_command_line(tmp_path):
    recipe = write_recipe(tmp_path)
    words = [sys.executable, str(ROOT / "tools" / "masks.py"), "--config", str(recipe)]
    code, text = run([*words, "--output", str(tmp_path / "a.png"), "--cells", "8", "16"])
    assert code == 0, text
    assert [row[1] for row in rows_of(text)] == ["8", "16"]
    assert Image.open(tmp_path / "a.png").size[0] > 1000
