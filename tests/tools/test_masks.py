"""tools/masks.py: what its table says is true, and it writes the picture."""

import contextlib
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import FINETUNE, RECIPE, ROOT, tool
from small_data import write_digits, write_recipe

from mim.evaluation.avg_dist import masker_avg_dist
from mim.maskers import Masker, Random
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
    body = lines[next(index for index, line in enumerate(lines) if set(line.strip()) == {"─"}) + 1 :]
    cut = next(index for index, line in enumerate(body) if not line.strip())
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in body[:cut]]


# -------------------------------------------------------------------- the table


def test_table_has_the_numbers_of_every_combination(tmp_path):
    code, text = masks("--config", RECIPE, "--output", tmp_path / "a.png", "--ratios", 0.4, 0.75, "--cells", 4, 8, 16)
    assert code == 0, text
    expected = []
    for cell in (4, 8, 16):
        for ratio in (0.4, 0.75):
            masker = Random(DIGITS, cell=cell, ratio=ratio)
            estimate = masker_avg_dist(masker, DIGITS, 256, seed=0)
            counts = [f"{masker.visible} of {masker.cells}", f"{masker.ratio:.1%}"]
            distance = [f"{estimate.mean:.2f} ± {estimate.half:.2f}", f"{estimate.mean / 32:.1%}"]
            expected.append(["random", str(cell), f"{ratio:g}", *counts, *distance])
    assert rows_of(text) == expected
    assert BEST not in text  # which is about photographs of 192 px


def test_table_of_the_config_as_it_is(tmp_path):
    code, text = masks("--config", RECIPE, "--output", tmp_path / "a.png")
    assert code == 0, text
    assert [row[:5] for row in rows_of(text)] == [["random", "4", "0.75", "16 of 64", "75.0%"]]
    assert text.startswith(f"{RECIPE}: each row is the mean over 256 sampled masks\n")


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
    table = rows_of(text)
    assert [row[1:3] for row in table] == [[cell, ratio] for cell in ("2", "3", "16") for ratio in ("0.5", "0.9")]
    assert [row[3] for row in table] == ["left out [1]"] * 2 + ["left out [2]"] * 2 + ["2 of 4", "left out [3]"]
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
    assert text.count("MASKER.ratio, rounding of the file have no effect") == 1  # although the file is read twice
    code, text = masks(*words, "--ratios", 0.5)
    assert code == 2
    assert text.startswith(("warning: MASKER", "error: unknown key MASKER.ratio of grid"))
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
    keys = ["PLUGINS", f"[{left_half}]", "MASKER.name", left_half]
    code, text = masks("--config", RECIPE, "--output", tmp_path / "a.png", *keys)
    assert code == 0, text
    assert rows_of(text) == [[left_half, "4", "-", "32 of 64", "50.0%", "8.50 ± 0.00", "26.6%"]]


# -------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--samples", 0], "--samples is 0"),
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
    code, text = masks("--config", tmp_path / "none.yaml")
    assert (code, text.count("none.yaml"), "does not exist" in text) == (2, 1, True)
    code, text = masks("--config", RECIPE, "--output", tmp_path / "a.pdf")
    assert (code, "a.pdf: a picture is written as .png or .jpg or .jpeg" in text) == (2, True)
    code, text = masks("--config", FINETUNE)
    assert (code, "TASK is finetune, which hides nothing" in text) == (2, True)


def test_all_combinations_impossible_tells_every_reason_once(tmp_path):
    code, text = masks("--config", RECIPE, "--output", tmp_path / "a.png", "--cells", 2, 3, "--ratios", 0.5, 0.6)
    assert code == 2
    assert "no combination is possible:\n  MASKER.cell 2 is not a multiple" in text
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
    assert taller > 2 * high
    assert wider == pytest.approx(wide * 9 / 6, rel=0.05)


def test_picture_depends_on_the_seed_alone(tmp_path):
    def picture(name: str, *words) -> bytes:
        assert masks("--config", RECIPE, "--output", tmp_path / name, *words)[0] == 0
        return (tmp_path / name).read_bytes()

    assert picture("a.png") == picture("b.png") != picture("c.png", "SEED", 1)


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
    assert (plain[:, half:] == over[:, half:]).all()  # distances
    assert (plain[:, :half] != over[:, :half]).any()
    _, counts = np.unique(over[100:-100, 100 : half - 100].reshape(-1, 3), axis=0, return_counts=True)
    assert (counts > 30).sum() > 20  # levels of the images, each a block of pixels


@pytest.mark.slow
def test_the_tool_runs_from_the_command_line(tmp_path, warm):
    recipe = write_recipe(tmp_path)
    words = ["--config", recipe, "--output", tmp_path / "a.png", "--cells", 8, 16]
    code, text = warm.run_program("masks", 1, words, tmp_path / "log")
    assert code == 0, text
    assert [row[1] for row in rows_of(text)] == ["8", "16"]
    assert Image.open(tmp_path / "a.png").size[0] > 1000
