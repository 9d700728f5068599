"""tools/reconstruct.py and held_out_sheets on real runs: what they open, show, refuse and leave alone."""

import contextlib
import hashlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from converted import MODELS, SHUFFLE, SWIN, VIT, build_sample, pretrained, sample
from converted import images as data_keys
from foreign_files import mae_pretrained, simmim_pretrained, swin, swin_buffers, write_mae, write_simmim
from PIL import Image, ImageDraw
from processes import ROOT, TINY, TINY_CLASSIFIER, call, last_checkpoint, last_state, tool
from small_data import digit, photograph, write_digits

from mim import build, config
from mim.convert import convert
from mim.lab.comparison.views.reconstructions import held_out_sheets
from mim.lab.reconstruct import MaskChoice, reconstruction_sheet
from mim.targets import Pixels

CPU = torch.device("cpu")
COARSE = pretrained({**SWIN, "patch": 8, "window": 2}, "replace", SHUFFLE, data_keys(32, 32, 1))  # takes cells of 8 px
HEADS = ["ENCODER.heads", "3", "HEAD.heads", "2"]


def draw(*words) -> tuple[int, str]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = tool("reconstruct").main([str(word) for word in words])
    return code, text.getvalue()


def refused(*words) -> str:
    """The error, after the notes on a foreign file."""
    code, text = draw(*words)
    assert code == 2, text
    notes, error, message = text.partition("error: ")
    assert error
    assert all("not in the file, so check" in line for line in notes.splitlines())
    return error + message


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """MAE with a moving average, SimMIM, and a probe, all of the digits."""
    folder = tmp_path_factory.mktemp("runs")
    assert call(folder / "mae", {**TINY, "TRAIN.ema": 0.9})[0] == 0
    shuffled = {key: value for key, value in TINY.items() if not key.startswith("HEAD.")}
    assert call(folder / "simmim", shuffled, ROOT / "configs" / "quickstart" / "simmim_digits.yaml")[0] == 0
    probe = {**TINY_CLASSIFIER, "TRAIN.epochs": 1, "SCHEDULE.warmup_epochs": 0, "INIT.checkpoint": folder / "mae"}
    assert call(folder / "probe", probe, ROOT / "configs" / "probe" / "digits.yaml")[0] == 0
    return folder


def by_hand(run, images_BCHW, hidden_BHW, weights):
    """What a run's model predicts, from its checkpoint alone: pixels in [0, 1]."""
    content = last_state(run)
    cfg = config.parse_config(content["config"])
    model = build.build_model(cfg)
    state = content[weights]
    model.load_state_dict({name.removeprefix("module."): state[name] for name in state if name != "n_averaged"})
    mean, std = (torch.tensor(getattr(cfg.DATA, key))[:, None, None] for key in ("mean", "std"))
    img_BCHW = (images_BCHW - mean) / std
    with torch.no_grad():
        prediction_BCHW = model.eval()(img_BCHW, hidden_BHW).prediction
    if cfg.TARGET.normalize == "patch":
        side = cfg.ENCODER.patch
        patches = img_BCHW.unfold(2, side, side).unfold(3, side, side)  # B C h w p q
        mean_Bhw = patches.mean(dim=(1, 4, 5)).repeat_interleave(side, 1).repeat_interleave(side, 2)
        flat = patches.permute(0, 2, 3, 1, 4, 5).flatten(3)
        deviation_Bhw = (flat.var(dim=3) + 1e-6).sqrt().repeat_interleave(side, 1).repeat_interleave(side, 2)
        prediction_BCHW = prediction_BCHW * deviation_Bhw[:, None] + mean_Bhw[:, None]
    return prediction_BCHW * std + mean


# ---------------------------------------------------------------- what is shown


@pytest.mark.parametrize(("name", "weights"), [("mae", "ema"), ("simmim", "model")])
def test_a_runs_prediction_is_that_of_its_weights_brought_back_to_pixels(runs, tmp_path, name, weights):
    files = write_digits(tmp_path / "in", 3)
    sheet = reconstruction_sheet(runs / name, files)
    images = sheet.runs[name]
    stored = torch.stack([torch.from_numpy(np.array(digit(number)))[None] for number in range(3)])
    assert torch.equal(images.original_BCHW, stored / 255)
    expected = by_hand(runs / name, stored / 255, images.hidden_BHW, weights)
    torch.testing.assert_close(images.prediction_BCHW, expected, rtol=0, atol=2e-4)
    assert sheet.loaded[0].source.averaged == (weights == "ema")
    assert sheet.names == ("digit-000.png", "digit-001.png", "digit-002.png")
    cell = {"mae": 4, "simmim": 8}[name]
    share = {"mae": 0.75, "simmim": 10 / 16}[name]
    assert images.hidden_BHW.float().mean(dim=(1, 2)).tolist() == [share] * 3
    assert len({tuple(images.hidden_BHW[index].flatten().tolist()) for index in range(3)}) == 3
    coarse = images.hidden_BHW[:, ::cell, ::cell]
    assert torch.equal(coarse.repeat_interleave(cell, 1).repeat_interleave(cell, 2), images.hidden_BHW)


def test_runs_side_by_side_have_the_same_images_and_masks(runs):
    sheet = reconstruction_sheet(runs / "mae", beside=[runs / "simmim"], held_out=3, mask=MaskChoice(cell=8))
    mae, simmim = sheet.runs["mae"], sheet.runs["simmim"]
    assert torch.equal(mae.original_BCHW, simmim.original_BCHW)
    assert torch.equal(mae.hidden_BHW, simmim.hidden_BHW)
    assert not torch.equal(mae.prediction_BCHW, simmim.prediction_BCHW)
    assert (mae.borrowed, simmim.borrowed) == ("mean and variance of each true patch", "")
    alone = reconstruction_sheet(runs / "simmim", held_out=3, mask=MaskChoice(cell=8, ratios=(0.75,)))
    assert torch.equal(alone.runs["simmim"].original_BCHW, mae.original_BCHW)
    other = reconstruction_sheet(runs / "mae", held_out=3, mask=MaskChoice(cell=8), seed=1)
    assert not torch.equal(other.runs["mae"].hidden_BHW, mae.hidden_BHW)
    assert not torch.equal(other.runs["mae"].original_BCHW, mae.original_BCHW)


def test_held_out_images_are_those_of_the_runs_data(runs):
    sheet = reconstruction_sheet(runs / "mae", held_out=5)
    source = build.build_data(config.parse_config(last_state(runs / "mae")["config"]))[1]
    for name, original in zip(sheet.names, sheet.runs["mae"].original_BCHW, strict=True):
        prefix, number = name.rsplit(" ", 1)
        assert prefix == "digits val image"
        assert torch.equal(original[0], torch.from_numpy(np.array(source.read(int(number)))) / 255)
    assert len(set(sheet.names)) == 5


def test_each_ratio_is_a_row_of_each_image_and_hides_more_of_the_same(runs, tmp_path):
    files = write_digits(tmp_path, 2)
    single = reconstruction_sheet(runs / "mae", files, mask=MaskChoice(ratios=(0.5,)))
    sheet = reconstruction_sheet(runs / "mae", files, mask=MaskChoice(ratios=(0.25, 0.5, 0.9)))
    images = sheet.runs["mae"]
    assert len(images.original_BCHW) == 6
    assert torch.equal(images.original_BCHW[0], images.original_BCHW[2])
    assert not torch.equal(images.original_BCHW[2], images.original_BCHW[3])
    visible = [1 - int(64 * (1 - ratio)) / 64 for ratio in (0.25, 0.5, 0.9)]
    assert images.share_B.tolist() == visible * 2
    for index in (0, 1, 3, 4):
        assert (images.hidden_BHW[index] <= images.hidden_BHW[index + 1]).all()
    assert torch.equal(images.hidden_BHW[[1, 4]], single.runs["mae"].hidden_BHW)
    torch.testing.assert_close(images.prediction_BCHW[[1, 4]], single.runs["mae"].prediction_BCHW)
    assert sheet.picture_HW3.shape[0] > 2.5 * single.picture_HW3.shape[0]


def test_another_masker_takes_the_place_of_the_runs(runs):
    grid = reconstruction_sheet(runs / "mae", held_out=1, mask=MaskChoice(masker="grid", cell=8)).runs["mae"]
    expected = torch.ones(4, 4, dtype=torch.bool)
    expected[::2, ::2] = False
    assert torch.equal(grid.hidden_BHW[0, ::8, ::8], expected)
    block = reconstruction_sheet(runs / "mae", held_out=1, mask=MaskChoice(masker="block", ratios=(0.5,))).runs["mae"]
    assert block.share_B.item() == 0.5


# ---------------------------------------------------------------- masks drawn by hand


def mask_file(path: Path, size=(32, 32), box=(8, 8, 15, 19), mode="L", **options) -> Path:
    """White in a box of (left, upper, right, lower), both ends in it."""
    picture = Image.new(mode, size)
    ImageDraw.Draw(picture).rectangle(box, fill=255 if mode == "L" else (255,) * len(mode))
    picture.save(path, **options)
    return path


def hidden_by(runs, path, images, *words):
    sheet = reconstruction_sheet(runs / "mae", images, beside=words, mask=MaskChoice(picture=path))
    return [images.hidden_BHW for images in sheet.runs.values()]


def test_a_drawn_mask_hides_every_patch_that_it_touches(runs, tmp_path):
    images = write_digits(tmp_path / "in", 2)
    (hidden_BHW,) = hidden_by(runs, mask_file(tmp_path / "m.png"), images)
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[8:20, 8:16] = True
    assert torch.equal(hidden_BHW, expected.expand(2, 32, 32))
    (hidden_BHW,) = hidden_by(runs, mask_file(tmp_path / "odd.png", box=(9, 10, 12, 10)), images)
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[8:12, 8:16] = True
    assert torch.equal(hidden_BHW[0], expected)


def test_a_drawn_mask_may_be_small_grey_transparent_an_array_or_lossy(runs, tmp_path):
    images = write_digits(tmp_path / "in", 1)
    expected = hidden_by(runs, mask_file(tmp_path / "m.png", box=(8, 8, 15, 15)), images)[0]
    mask_file(tmp_path / "half.png", size=(16, 16), box=(4, 4, 7, 7))
    mask_file(tmp_path / "clear.png", box=(8, 8, 15, 15), mode="RGBA")
    mask_file(tmp_path / "lossy.jpg", box=(8, 8, 15, 15), quality=60)
    levels = np.array(Image.open(tmp_path / "m.png"))
    Image.fromarray((levels > 0).astype(np.uint8)).save(tmp_path / "label.png")
    np.save(tmp_path / "array.npy", levels)
    Image.fromarray(levels.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(levels).save(tmp_path / "grey.tif")
    for name in ("half.png", "clear.png", "lossy.jpg", "label.png", "array.npy", "deep.png", "grey.tif"):
        assert torch.equal(hidden_by(runs, tmp_path / name, images)[0], expected), name


def test_a_mask_drawn_over_a_photograph_is_cropped_as_the_photograph_is(tmp_path):
    run = sample("mae").write(tmp_path / "mae.pt")
    photo = np.array(photograph(100, 180))
    mask = np.zeros((100, 180), dtype=np.uint8)
    mask[30:60, 70:110] = 255
    photo[mask > 0] = (255, 0, 0)  # what is to be hidden is red
    Image.fromarray(photo).save(tmp_path / "photo.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    choice = MaskChoice(picture=tmp_path / "mask.png")
    images = reconstruction_sheet(run, [tmp_path / "photo.png"], mask=choice).runs["mae"]
    red_HW = (images.original_BCHW[0, 0] > 0.9) & (images.original_BCHW[0, 1:].amax(dim=0) < 0.1)
    assert red_HW.float().mean() > 0.08
    assert (images.hidden_BHW[0] | ~red_HW).all()
    touched = red_HW.unfold(0, 8, 8).unfold(1, 8, 8).flatten(2).any(dim=2)
    assert (touched <= images.hidden_BHW[0, ::8, ::8]).all()
    assert images.hidden_BHW[0, ::8, ::8].sum() <= touched.sum() + 8  # no more than soft edges


def test_a_drawn_mask_is_the_same_for_runs_of_other_patches(runs, tmp_path):
    coarse = build_sample(COARSE)
    images = write_digits(tmp_path / "in", 1)
    path = mask_file(tmp_path / "m.png", box=(12, 12, 15, 15))
    four, eight = hidden_by(runs, path, images, coarse.write(tmp_path / "coarse.pt"))
    assert torch.equal(four, eight)
    assert four.sum() == 64


def test_drawn_masks_that_hide_nothing_or_everything_are_refused(runs, tmp_path):
    images = write_digits(tmp_path / "in", 1)
    for name, box in (("none", (40, 40, 41, 41)), ("all", (0, 0, 31, 31))):
        path = mask_file(tmp_path / f"{name}.png", box=box)
        assert "a mask must hide at least one cell" in refused(runs / "mae", *images, "--mask", path)
    assert "does not exist" in refused(runs / "mae", *images, "--mask", tmp_path / "no.png")
    (tmp_path / "broken.png").write_text("no picture")
    assert "cannot be read" in refused(runs / "mae", *images, "--mask", tmp_path / "broken.png")
    path = tmp_path / "none.png"
    assert "--ratio" in refused(runs / "mae", *images, "--mask", path, "--ratio", "0.5")


# ---------------------------------------------------------------- other images


def test_arrays_of_many_channels_and_no_square(tmp_path):
    run = sample("mae-wide-many").write(tmp_path / "plates.pt")
    levels = np.random.default_rng(0).integers(0, 9000, (2, 12, 32, 64)).astype(np.uint16)
    folder = tmp_path / "plates"
    folder.mkdir()
    for number in range(2):
        np.save(folder / f"plate{number}.npy", levels[number])
    output = tmp_path / "out" / "sheet.png"
    code, text = draw(run, folder, "--channels", "0,3,5", "--output", output)
    assert code == 0, text
    assert "% of each channel's" in text
    sheet = reconstruction_sheet(run, [folder], channels=(0, 3, 5))
    np.testing.assert_allclose(sheet.runs["plates"].original_BCHW.numpy(), levels / 65535, atol=1e-6)
    assert np.array_equal(np.asarray(Image.open(output)), sheet.picture_HW3.numpy())
    pictures = [reconstruction_sheet(run, [folder], channels=channels).picture_HW3 for channels in ((), "pca", (7,))]
    assert all(not torch.equal(picture, sheet.picture_HW3) for picture in pictures)
    assert "these images have channels 0 to 11" in refused(run, folder, "--channels", "0,3,12")
    assert "--channels is 'red'" in refused(run, folder, "--channels", "red")


def test_images_that_cannot_be_shown_are_named(runs, tmp_path):
    assert "does not exist" in refused(runs / "mae", tmp_path / "no.png")
    assert "holds no images" in refused(runs / "mae", tmp_path)
    (tmp_path / "broken.png").write_text("no picture")
    assert f"{tmp_path}/broken.png cannot be read" in refused(runs / "mae", tmp_path)
    np.save(tmp_path / "array.npy", np.zeros((32, 32), dtype=np.uint16))
    digits = write_digits(tmp_path / "in", 1)
    assert "is stored as torch.uint16" in refused(runs / "mae", *digits, tmp_path / "array.npy")
    many = write_digits(tmp_path / "many", 101)
    assert "101 images are named" in refused(runs / "mae", *many)
    message = refused(runs / "mae", *write_digits(tmp_path / "some", 34), "--ratio", "0.25", "0.5", "0.75")
    assert "34 images under 3 ratios make 102 rows, and a sheet holds at most 100" in message
    assert "--held-out 3 has no effect" in refused(runs / "mae", *digits, "--held-out", "3")
    assert "--held-out is 0" in refused(runs / "mae", "--held-out", "0")


def test_equal_file_names_are_told_apart_by_their_folders(runs, tmp_path):
    for folder in ("a", "b"):
        write_digits(tmp_path / folder, 1)
    assert reconstruction_sheet(runs / "mae", [tmp_path]).names == ("a/digit-000.png", "b/digit-000.png")


def test_a_list_names_images_in_its_order(runs, tmp_path):
    first, second = write_digits(tmp_path / "images", 2)
    (tmp_path / "chosen.txt").write_text(f"{second}\n{first}\n")
    assert reconstruction_sheet(runs / "mae", [tmp_path / "chosen.txt"]).names == (second.name, first.name)


# ---------------------------------------------------------------- what can be loaded, and what not


def test_published_files_with_a_decoder_predict_what_their_converted_checkpoints_do(tmp_path):
    mae = write_mae(tmp_path / "published_mae.pth", mae_pretrained(), input_size=32)
    encoder = swin()
    simmim = simmim_pretrained(encoder, 8, swin_buffers(encoder))
    simmim = write_simmim(tmp_path / "published_simmim.pth", simmim)
    Image.new("RGB", (40, 40), "orange").save(tmp_path / "photo.png")
    for file, keys in ((mae, HEADS), (simmim, ["DATA.image_size", "[32, 32]", "ENCODER.window", "4"])):
        convert(file, tmp_path / "own.pt", "mim", overrides=keys)
        theirs = reconstruction_sheet(file, [tmp_path / "photo.png"], overrides=keys)
        ours = reconstruction_sheet(tmp_path / "own.pt", [tmp_path / "photo.png"])
        (first,), (second,) = theirs.runs.values(), ours.runs.values()
        assert torch.equal(first.prediction_BCHW, second.prediction_BCHW)
        assert first.borrowed == second.borrowed
        message = refused(
            file, *[word for pair in zip(keys[::2], keys[1::2], strict=True) for word in ("--set", *pair)]
        )
        assert "is not a run of this toolkit and names no data: name images" in message
    assert "does not hold" in refused(mae, tmp_path / "photo.png")


def test_files_without_a_head_are_refused_by_name(runs, tmp_path):
    convert(runs / "mae", tmp_path / "mae.safetensors", "timm")
    convert(tmp_path / "mae.safetensors", tmp_path / "encoder.pt", "mim", overrides=["ENCODER.heads", "2"])
    encoder = write_mae(tmp_path / "encoder_only.pth", mae_pretrained(decoder=0), input_size=32)
    for path, named in (
        (tmp_path / "mae.safetensors", "mae.safetensors"),
        (tmp_path / "encoder.pt", "encoder.pt"),
        (encoder, "encoder_only.pth"),
        (runs / "probe", "best.pt"),
    ):
        message = refused(path)
        assert f"{named} has no head that predicts pixels" in message
        assert "name a pretraining run" in message
    content = {**last_state(runs / "mae"), "ema": {}}
    content["model"] = {name: weight for name, weight in content["model"].items() if not name.startswith("head.")}
    torch.save(content, tmp_path / "cut.pt")
    assert "cut.pt has no head" in refused(tmp_path / "cut.pt")
    assert "does not exist" in refused(tmp_path / "nothing")
    (tmp_path / "noise.pt").write_bytes(b"noise")
    assert "noise.pt cannot be read" in refused(tmp_path / "noise.pt")


def test_runs_of_other_images_or_cells_are_refused_by_name(runs, tmp_path):
    other = sample("swin-wide-many").write(tmp_path / "other.pt")
    message = refused(runs / "mae", "--beside", other)
    assert "takes images of 32 x 32 px, 1 channel and" in message
    assert f"{other} of 32 x 64 px, 12 channels" in message
    coarse = build_sample(COARSE)
    path = coarse.write(tmp_path / "coarse.pt")
    assert "coarse cannot take cells of 4 px" in refused(runs / "mae", "--beside", path)
    assert "mae cannot take cells of 2 px" in refused(runs / "mae", "--cell", "2")
    assert "MASKER.cell 5 does not divide" in refused(runs / "mae", "--cell", "5")
    assert "MASKER.name 'blocks' is unknown: did you mean 'block'" in refused(runs / "mae", "--masker", "blocks")
    assert "--ratio 0.5 has no meaning for MASKER.name grid" in refused(
        runs / "mae", "--masker", "grid", "--ratio", "0.5"
    )
    assert "MASKER.ratio is 1.5" in refused(runs / "mae", "--ratio", "1.5")
    assert "is on the sheet already" in refused(runs / "mae", "--beside", runs / "mae")


class Unseen(Pixels, name="pixels_that_are_no_picture"):
    """A target that cannot be drawn."""

    def to_pixels(self, map_BChw, img_BCHW):
        return None


def unseen(folder: Path) -> Path:
    keys = {
        **MODELS["vit-replaced"],
        "ENCODER": {**VIT, "patch": 4, "hidden": "replace"},
        "TARGET": {"name": Unseen.name},
    }
    return build_sample(keys).write(folder / "unseen.pt")


def test_a_target_that_is_no_picture_is_refused_by_name(tmp_path):
    digits = write_digits(tmp_path / "in", 1)
    message = refused(unseen(tmp_path), *digits)
    assert f"unseen predicts TARGET.name {Unseen.name}, which is no picture" in message


# ---------------------------------------------------------------- the tool


def state_of(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_the_tool_writes_a_sheet_says_where_and_leaves_the_runs_alone(runs, tmp_path, monkeypatch):
    before = state_of(runs)
    monkeypatch.chdir(tmp_path)
    code, text = draw(runs / "mae", "--beside", runs / "simmim", "--cell", 8, "--held-out", 2)
    assert code == 0, text
    assert text.splitlines()[-1] == "wrote reconstruction.png"
    assert f"{last_checkpoint(runs / 'mae').name}" in text
    assert state_of(runs) == before
    picture = Image.open(tmp_path / "reconstruction.png")
    sheet = reconstruction_sheet(runs / "mae", beside=[runs / "simmim"], mask=MaskChoice(cell=8), held_out=2)
    assert np.array_equal(np.asarray(picture), sheet.picture_HW3.numpy())
    assert f"{sheet.runs['simmim'].error_B.mean():.2f}" in text
    assert picture.width > 8 * 128
    code, text = draw(last_checkpoint(runs / "mae"), "--held-out", 1, "--output", "a/b.png", "--set", "SEED", 3)
    assert code == 0, text
    assert Image.open(tmp_path / "a" / "b.png").width < picture.width
    assert "mae/step-14" in text


def test_the_tool_writes_the_format_that_the_name_says_or_none(runs, tmp_path):
    for name, kind in (("sheet.png", "PNG"), ("sheet.JPG", "JPEG")):
        assert draw(runs / "mae", "--held-out", 1, "--output", tmp_path / name)[0] == 0
        assert Image.open(tmp_path / name).format == kind
    exact, lossy = (np.asarray(Image.open(tmp_path / name), dtype=int) for name in ("sheet.png", "sheet.JPG"))
    assert np.abs(exact - lossy).mean() < 2
    for name in ("sheet.pdf", "sheet.tif", "sheet"):
        message = refused(runs / "mae", "--output", tmp_path / name)
        assert f"{name}: a picture is written as .png or .jpg or .jpeg" in message
        assert not (tmp_path / name).exists()


def test_the_tool_prints_the_mean_error_of_each_ratio(runs, tmp_path):
    files = write_digits(tmp_path, 2)
    code, text = draw(runs / "mae", *files, "--ratio", "0.25", "0.9", "--output", tmp_path / "sheet.png")
    assert code == 0, text
    row = next(line for line in text.splitlines() if line.startswith(" mae"))
    alone = [reconstruction_sheet(runs / "mae", files, mask=MaskChoice(ratios=(ratio,))) for ratio in (0.25, 0.9)]
    assert row.split() == ["mae", *(f"{sheet.runs['mae'].error_B.mean():.2f}" for sheet in alone)]
    assert re.search(r"25% hidden +90.6% hidden", text)


# ---------------------------------------------------------------- sheets of a comparison


def test_held_out_sheets_show_all_runs_under_each_masker(runs, monkeypatch):
    drawings = []
    monkeypatch.setattr(
        "mim.lab.comparison.views.reconstructions.draw_columns",
        lambda drawing: drawings.append(drawing) or torch.zeros(4, 4, 3).byte(),
    )
    sheets = held_out_sheets({"MAE": runs / "mae", "SimMIM": runs / "simmim"}, images=3, seed=5)
    assert [sheet.title for sheet in sheets] == [
        "Random masker, cells of 4 px, 75% hidden",
        "Random masker, cells of 8 px, 62.5% hidden",
    ]
    for drawing, sheet, share in zip(drawings, sheets, (0.75, 0.625), strict=True):
        assert list(drawing) == ["MAE", "SimMIM"]
        first, second = drawing.values()
        assert torch.equal(first.original_BCHW, second.original_BCHW)
        assert torch.equal(first.hidden_BHW, second.hidden_BHW)
        assert first.share_B.tolist() == [share] * 3
        assert "MAE: the prediction borrows the mean and variance of each true patch, so its error" in sheet.caption
        assert "Not shown" not in sheet.caption
        assert "levels of 255" in sheet.caption
        assert "3 images" in sheet.alt
    assert torch.equal(drawings[0]["MAE"].original_BCHW, drawings[1]["MAE"].original_BCHW)
    sheets_again = held_out_sheets({"MAE": runs / "mae"}, images=3, seed=5)
    assert sheets_again[0].title == sheets[0].title
    assert torch.equal(drawings[2]["MAE"].prediction_BCHW, drawings[0]["MAE"].prediction_BCHW)


def test_held_out_sheets_name_what_they_cannot_show(runs, tmp_path):
    paths = {
        "MAE": runs / "mae",
        "coarse": build_sample(COARSE).write(tmp_path / "coarse.pt"),
        "blind": unseen(tmp_path),
    }
    four, eight = held_out_sheets(paths)
    assert "Not shown: coarse cannot take cells of 4 px" in four.caption
    assert "coarse cannot" not in eight.caption
    for sheet in (four, eight):
        assert f"Not shown: blind predicts TARGET.name {Unseen.name}, which is no picture" in sheet.caption
        picture = Image.open(io.BytesIO(sheet.png))
        assert picture.format == "PNG"
        assert 1000 < picture.width < 2200
        assert len(sheet.png) <= 400_000
    assert eight.alt.endswith("prediction of MAE, of coarse")


def test_held_out_sheets_give_runs_of_other_images_a_sheet_of_their_own(runs, tmp_path):
    wide = pretrained(SWIN, "replace", SHUFFLE, data_keys(32, 64, 1))
    paths = {"MAE": runs / "mae", "wide": build_sample(wide).write(tmp_path / "wide.pt")}
    first, second = held_out_sheets(paths, images=2)
    assert first.title.endswith("images of 32 x 32 px, 1 channel")
    assert second.title.endswith("images of 32 x 64 px, 1 channel")
    assert first.alt.endswith("of MAE")
    assert second.alt.endswith("of wide")


def test_held_out_sheets_are_three_at_most(runs, tmp_path):
    paths = {"MAE": runs / "mae"}
    for number, ratio in enumerate((0.3, 0.4, 0.5, 0.6)):
        keys = {**MODELS["vit-replaced"], "MASKER": {"name": "random", "cell": 8, "ratio": ratio}}
        paths[f"run {number}"] = build_sample(keys).write(tmp_path / f"{number}.pt")
    assert len(held_out_sheets(paths, images=1)) == 3
