"""Reconstructions and their sheets: what is computed, and that what is drawn is what was computed."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from small_data import photograph
from small_models import IMAGE, Colours, assemble, generator, images, mae, sampled, simmim

from mim.data.preprocess import Preprocess
from mim.pictures import predictions, reconstructions
from mim.pictures.channels import view_of
from mim.pictures.error_maps import error_colours, scale_of
from mim.pictures.predictions import draw_predictions
from mim.pictures.reconstructions import (
    Reconstruction,
    draw_columns,
    draw_rows,
    draw_sheet,
    predict_pixels,
)
from mim.pictures.sheets import png
from mim.pictures.text_layout import shortened, width_of, wrapped
from mim.structures import Prediction
from mim.targets import Pixels

PREPROCESS = Preprocess((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def photographs(batch=2):
    return torch.randint(0, 256, (batch, 3, 32, 64), generator=generator(4), dtype=torch.uint8)


@torch.no_grad()
def reconstructed(model, stored=None):
    """A reconstruction, and the mask in the shape of the images."""
    stored = photographs() if stored is None else stored
    mask = sampled(model, stored)
    return predict_pixels(model, PREPROCESS, stored, mask), mask.at(32, 64)[:, None].expand(-1, 3, -1, -1)


# ---------------------------------------------------------------- predictions


@pytest.mark.parametrize("make", [mae, simmim])
def test_predict_pixels_pastes_the_visible_pixels_and_predicts_the_hidden_ones(make):
    run, hidden = reconstructed(make())
    assert torch.equal(run.original_BCHW, photographs() / 255)
    assert torch.equal(run.pasted_BCHW[~hidden], run.original_BCHW[~hidden])
    assert torch.equal(run.pasted_BCHW[hidden], run.prediction_BCHW[hidden])
    assert (run.pasted_BCHW[hidden] != run.original_BCHW[hidden]).float().mean() > 0.99
    assert torch.equal(run.masked_BCHW[~hidden], run.original_BCHW[~hidden])
    assert (run.masked_BCHW[hidden] == 0.5).all()


@pytest.mark.parametrize("keys", [{}, {"normalize": "patch"}, {"normalize": "patch", "patch": 16}, {"stride": 4}])
def test_predict_pixels_of_a_perfect_prediction_is_the_original(keys):
    model = mae(target_keys=keys)
    stored = photographs()
    if "stride" in keys:  # blocks of one colour, which a smaller target loses nothing of
        stored = stored[..., ::4, ::4].repeat_interleave(4, -2).repeat_interleave(4, -1)

    class Oracle(torch.nn.Module):
        stages = ()

        def forward(self, features):
            return Prediction(model.target(PREPROCESS(stored)))

    model.head = Oracle()
    run, _ = reconstructed(model, stored)
    torch.testing.assert_close(run.prediction_BCHW, run.original_BCHW, rtol=0, atol=1e-5)
    assert run.error_B.max() < 255e-5


def test_predict_pixels_says_what_it_borrows_and_what_was_trained():
    by_target = {how: reconstructed(mae(target_keys={"normalize": how}))[0] for how in ("patch", "window", "none")}
    assert by_target["patch"].borrowed == "mean and variance of each true patch"
    assert by_target["window"].borrowed == "mean and variance of the true pixels around each"
    assert by_target["none"].borrowed == ""
    assert by_target["none"].hidden_only
    assert not reconstructed(mae(loss_keys={"over": "all"}))[0].hidden_only


def test_predict_pixels_gives_none_where_the_target_is_no_picture():
    class Opaque(Pixels):
        def to_pixels(self, map_BChw, img_BCHW):
            return None

    model = simmim()
    model.target = Opaque(IMAGE, model.encoder.spec)
    assert reconstructed(model)[0] is None


@torch.no_grad()
@pytest.mark.parametrize(("loss", "same"), [("cosine", True), ("mse", False)])
def test_sheet_of_a_target_that_is_no_picture_shows_what_the_loss_sees_of_a_prediction(loss, same):
    """Where lengths do not count, one of another length has the same colours; the visible target stays as it is."""
    model, sheets = assemble("random", "vit", "drop", "transformer", "hog", loss), []
    mask = sampled(model, photographs())
    for length in (1.0, 3.0):
        model.head.register_forward_hook(lambda head, inputs, output, by=length: Prediction(by * output.map_BCHW))
        sheets.append(draw_predictions(model, PREPROCESS, photographs(), mask, "a title")["reconstructions"])
    first, second = sheets
    assert torch.equal(first, second) is same
    assert (first != second).float().mean() < 0.2


@torch.no_grad()
@pytest.mark.parametrize(("loss", "same"), [("cross_entropy", True), ("mse", False)])
def test_sheet_of_a_distribution_shows_the_probabilities_that_logits_stand_for(loss, same, monkeypatch):
    monkeypatch.setattr(predictions, "draw", lambda layout: layout)
    model, stored = assemble("random", "vit", "drop", "transformer", Colours, loss), photographs()
    right = Prediction(model.target(PREPROCESS(stored)).log())
    model.head.register_forward_hook(lambda head, inputs, output: right)
    for row in draw_predictions(model, PREPROCESS, stored, sampled(model, stored), "a title")["reconstructions"].rows:
        difference = row.panels[1].rgb_HW3.astype(int) - row.panels[2].rgb_HW3  # of the prediction and the target
        assert (np.abs(difference).max() <= 1) == same


def test_error_of_photographs_is_in_levels_where_hidden_and_blank_elsewhere():
    run, hidden = reconstructed(simmim())
    original, prediction = run.original_BCHW.double().numpy(), run.prediction_BCHW.double().numpy()
    expected = np.abs(255 * prediction - 255 * original).mean(axis=1)
    blank = ~hidden[:, 0].numpy()
    assert run.unit == "levels of 255"
    assert np.isnan(run.error_BHW.numpy()[blank]).all()
    np.testing.assert_allclose(run.error_BHW.numpy()[~blank], expected[~blank], rtol=1e-5)
    means = [expected[index][~blank[index]].mean() for index in range(2)]
    np.testing.assert_allclose(run.error_B.numpy(), means, rtol=1e-5)


def test_error_of_other_images_is_a_share_of_each_channels_range():
    original = torch.rand(2, 3, 4, 4, generator=generator(0)) * torch.tensor([1.0, 100, 0])[:, None, None]
    prediction = original + torch.tensor([0.1, -10, 5.0])[:, None, None]
    hidden = torch.zeros(2, 4, 4, dtype=torch.bool)
    hidden[:, :2] = True
    run = Reconstruction(original, prediction, hidden, eight_bit=False)
    first, second = (original[:, channel].max() - original[:, channel].min() for channel in (0, 1))
    expected = 100 * (0.1 / first + 10 / second) / 2  # a channel of one value has no range
    assert run.unit == "% of each channel's range"
    torch.testing.assert_close(run.error_BHW[:, :2], expected.expand(2, 2, 4))
    assert run.error_BHW[:, 2:].isnan().all()


def test_a_prediction_that_is_not_finite_shows_in_its_mean_error():
    flat = torch.zeros(1, 3, 4, 4)
    hidden = torch.ones(1, 4, 4, dtype=torch.bool)
    assert Reconstruction(flat, flat + torch.nan, hidden).error_B.isnan().all()


# ---------------------------------------------------------------- channels


def test_view_of_photographs_shows_them_as_they_are():
    original = torch.rand(2, 3, 8, 8, generator=generator(0)) * 0.5
    view = view_of(original, eight_bit=True)
    torch.testing.assert_close(view(original), original.permute(0, 2, 3, 1))
    assert view.note == ""


@pytest.mark.parametrize("channels", [1, 2])
def test_view_of_one_or_two_channels_is_grey(channels):
    original = torch.rand(1, channels, 8, 8, generator=generator(0))
    colours = view_of(original, eight_bit=True)(original)
    torch.testing.assert_close(colours, original[:, :1].permute(0, 2, 3, 1).expand(-1, -1, -1, 3))


def test_view_shows_the_chosen_channels_and_says_which():
    original = torch.rand(1, 12, 8, 8, generator=generator(0))
    view = view_of(original, eight_bit=True, channels=(0, 3, 5))
    torch.testing.assert_close(view(original), original[:, [0, 3, 5]].permute(0, 2, 3, 1))
    assert "channels 0, 3, 5 of 12" in view.note
    grey = view_of(original, eight_bit=True, channels=(7,))
    torch.testing.assert_close(grey(original), original[:, [7, 7, 7]].permute(0, 2, 3, 1))
    assert "channel 7 of 12" in grey.note
    assert "channels 0, 1, 2 of 12" in view_of(original, eight_bit=True).note


@pytest.mark.parametrize("channels", [(0, 3), (0, 1, 12), (-1,)])
def test_view_refuses_channels_that_are_not_there(channels):
    with pytest.raises(ValueError, match=r"--channels .*: name one, three, or pca; these images have channels 0 to 11"):
        view_of(torch.rand(1, 12, 8, 8), eight_bit=True, channels=channels)


def test_view_stretches_each_image_that_is_no_photograph_and_says_so():
    original = 3 + 0.01 * images(2)
    view = view_of(original, eight_bit=False)
    colours = view(original)
    assert "stretched" in view.note
    assert torch.equal(colours.amin((1, 2, 3)), torch.zeros(2))
    torch.testing.assert_close(colours.amax((1, 2, 3)), torch.ones(2))


def test_view_of_principal_components_equals_scikit_learns():
    mixing = torch.randn(12, 3, generator=generator(1)) * torch.logspace(0, 2, 12)[:, None]
    original = torch.einsum("ck,bkhw->bchw", mixing, torch.rand(2, 3, 16, 16, generator=generator(0)))
    original += 0.01 * torch.randn(original.shape, generator=generator(2))
    view = view_of(original, eight_bit=True, channels="pca")
    pixels = original.permute(0, 2, 3, 1).reshape(-1, 12).double().numpy()
    pixels = (pixels - pixels.mean(axis=0)) / pixels.std(axis=0)
    fitted = PCA(3).fit(pixels)
    theirs, ours = fitted.transform(pixels), view(original).reshape(-1, 3).double().numpy()
    for component in range(3):
        assert abs(np.corrcoef(theirs[:, component], ours[:, component])[0, 1]) == pytest.approx(1, abs=1e-4)
        assert (ours[:, component].min(), ours[:, component].max()) == pytest.approx((0, 1), abs=1e-5)
    assert f"{fitted.explained_variance_ratio_.sum():.0%} of their standardised variance" in view.note
    with pytest.raises(ValueError, match="pca needs images of at least 3 channels, and these have 1"):
        view_of(torch.rand(1, 1, 8, 8), eight_bit=True, channels="pca")


# ---------------------------------------------------------------- sheets


def noise(seed=0, count=2, height=16, width=32, borrowed="", share=0.5):
    """A reconstruction of noise, all of whose pictures differ."""
    source = generator(seed)
    original = torch.rand(count, 3, height, width, generator=generator(99))
    prediction = torch.rand(count, 3, height, width, generator=source)
    cells = torch.rand(count, height // 8, width // 8, generator=generator(98)) < share
    cells[:, 0, 0], cells[:, 0, 1] = True, False
    hidden = cells.repeat_interleave(8, 1).repeat_interleave(8, 2)
    return Reconstruction(original, prediction, hidden, borrowed=borrowed)


def picture_values(image_CHW):
    return (image_CHW.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def codes(rgb_HW3):
    """One number for each colour."""
    return rgb_HW3.astype(np.int32) @ np.array([65536, 256, 1], dtype=np.int32)


def corners(picture, rgb_HW3):
    """(row, column) of the upper left corner of each place where a sheet shows a picture, each pixel as a block."""
    sheet, small = codes(picture.numpy()), codes(rgb_HW3)
    _, first, counts = np.unique(small, return_index=True, return_counts=True)
    row, column = np.unravel_index(first[counts.argmin()], small.shape)  # a pixel like few others
    where = np.argwhere(sheet == small[row, column])
    positions = set()
    for factor in range(1, 25):
        block = small.repeat(factor, axis=0).repeat(factor, axis=1)
        for top, left in where - factor * np.array([row, column]):
            inside = sheet[top : top + block.shape[0], left : left + block.shape[1]] if min(top, left) >= 0 else sheet
            if inside.shape == block.shape and inside[0, 0] == block[0, 0] and (inside == block).all():
                positions.add((int(top), int(left)))
    return sorted(positions)


def only_corner(picture, rgb_HW3):
    positions = corners(picture, rgb_HW3)
    assert len(positions) == 1
    return positions[0]


def test_draw_rows_shows_every_panel_of_every_run_in_its_place():
    runs = {"first": noise(0), "second": noise(1)}
    picture = draw_rows(runs, ["one.png", "two.png"])
    assert picture.dtype == torch.uint8
    top, _ = scale_of(torch.stack([run.error_BHW for run in runs.values()]))
    rows, columns = [], []
    for index in range(2):
        first = runs["first"]
        panels = [picture_values(first.original_BCHW[index]), picture_values(first.masked_BCHW[index])]
        for run in runs.values():
            panels += [picture_values(run.prediction_BCHW[index]), picture_values(run.pasted_BCHW[index])]
            panels += [error_colours(run.error_BHW[index], top)]
        at = [only_corner(picture, panel) for panel in panels]
        assert len({row for row, _ in at}) == 1
        rows.append(at[0][0])
        columns.append([column for _, column in at])
    assert rows[0] < rows[1]
    assert columns[0] == columns[1] == sorted(columns[0])
    gaps = np.diff(columns[0])
    assert gaps[0] == gaps[2] == gaps[3] == gaps[5] == gaps[6]  # within original and masked, and within each run
    assert gaps[1] == gaps[4] > gaps[0]  # between these


def test_draw_rows_shows_an_original_once_for_all_of_its_masks():
    run = noise(count=4)
    run = replace(run, original_BCHW=run.original_BCHW[[0, 0, 1, 1]])
    picture = draw_rows({"run": run}, ["one.png", "two.png"])
    down = [only_corner(picture, picture_values(image_CHW))[0] for image_CHW in run.masked_BCHW]
    assert down == sorted(down)
    assert down[2] - down[1] > down[1] - down[0] == down[3] - down[2]
    assert [only_corner(picture, picture_values(run.original_BCHW[index]))[0] for index in (0, 2)] == [down[0], down[2]]


@pytest.fixture
def layouts(monkeypatch):
    """What is told to the drawing, in place of the drawing."""
    monkeypatch.setattr(reconstructions, "draw", lambda layout: layout)


@pytest.mark.usefixtures("layouts")
def test_sheets_say_what_is_borrowed_and_by_which_run():
    runs = {
        name: noise(borrowed=borrowed) for name, borrowed in {"a": "truth", "b": "", "c": "all", "d": "truth"}.items()
    }
    layout = draw_rows(runs, ["1", "2"], notes=["Note."])
    assert [group.name for group in layout.columns] == ["", "a †", "b", "c ‡", "d †"]
    unequal = ", so its error does not compare with that of a run that borrows nothing."
    assert layout.notes == (
        "Note.",
        *(f"{mark} The prediction borrows the {it}{unequal}" for mark, it in (("†", "truth"), ("‡", "all"))),
    )
    assert [row.title for row in draw_columns(runs).rows[2:]] == ["a †", "b", "c ‡", "d †"]
    assert f"† The prediction borrows the truth{unequal}" in draw_columns(runs).notes
    same = {name: runs[name] for name in ("a", "d")}
    assert "† The prediction borrows the truth." in draw_columns(same).notes  # one error compares with the other
    alone = noise(borrowed="truth")
    for layout in (draw_rows({"a": alone}, ["1", "2"]), draw_sheet(alone, ""), draw_columns({"a": alone})):
        assert "The prediction borrows the truth." in layout.notes
        assert [group.name for group in layout.columns if group.name] in ([], ["a"])
    assert not any("borrows" in note for note in draw_rows({"a": noise()}, ["1", "2"]).notes)


@pytest.mark.usefixtures("layouts")
def test_sheets_state_shares_errors_and_their_unit():
    run = noise()
    layout = draw_rows({"a": run}, ["one.png", "two.png"])
    for index, row in enumerate(layout.rows):
        share, error = run.hidden_BHW[index].float().mean(), run.error_BHW[index].nanmean()
        captions = [panel.caption for panel in row.panels]
        assert captions == [["one.png", "two.png"][index], f"{100 * share:.3g}% hidden", "", "", f"mean {error:.1f}"]
    assert layout.bar.label == "absolute error, levels of 255"
    assert layout.bar.top == scale_of(run.error_BHW)[0]
    assert "levels of 255" in " ".join(draw_columns({"a": run}).notes)
    assert reconstructions.UNTRAINED not in layout.notes
    hidden_only = replace(run, hidden_only=True)
    assert reconstructions.UNTRAINED in draw_rows({"a": hidden_only}, ["1", "2"]).notes


@pytest.mark.usefixtures("layouts")
def test_sheets_name_the_channels_they_show():
    many = flat(2, 12)
    for layout in (draw_rows({"a": many}, ["1", "2"]), draw_sheet(many, ""), draw_columns({"a": many})):
        assert layout.notes[-1] == "Channels 0, 1, 2 of 12 (counted from 0) shown as red, green, blue."
    assert "principal" in draw_rows({"a": many}, ["1", "2"], channels="pca").notes[-1]


def test_footnotes_and_titles_take_room_on_the_sheet():
    run = noise()
    plain, noted, titled = (
        draw_sheet(run, ""),
        draw_sheet(replace(run, borrowed="truth"), ""),
        draw_sheet(run, "t"),
    )
    assert plain.shape[0] < min(noted.shape[0], titled.shape[0])
    dark = [(picture < 140).all(dim=2).sum() for picture in (plain, noted)]
    assert dark[0] < dark[1]


def test_draw_columns_has_a_column_for_each_image_and_a_row_for_each_run():
    runs = {"first": noise(0, count=3), "second": noise(1, count=3, borrowed="truth")}
    picture = draw_columns(runs)
    kinds = [runs["first"].original_BCHW, runs["first"].masked_BCHW, *(run.pasted_BCHW for run in runs.values())]
    at = [[only_corner(picture, picture_values(image_CHW)) for image_CHW in images_BCHW] for images_BCHW in kinds]
    down = [{row for row, _ in corners} for corners in at]
    assert [len(rows) for rows in down] == [1] * 4
    assert sorted(down, key=min) == down
    across = [[column for _, column in corners] for corners in at]
    assert across[0] == across[1] == across[2] == across[3] == sorted(across[0])


def flat(rows, channels=3, height=32, width=64):
    """Pictures of one colour: green as predicted, blue as the original, all hidden."""
    original, prediction = torch.zeros(2, rows, channels, height, width)
    original[:, min(2, channels - 1)] = 1
    prediction[:, min(1, channels - 1)] = 1
    return Reconstruction(original, prediction, torch.ones(rows, height, width, dtype=torch.bool))


def pure(picture, colour):
    """Where a sheet has exactly one primary colour, (H, W)."""
    return (picture == torch.tensor([255 * (index == colour) for index in range(3)], dtype=torch.uint8)).all(dim=2)


def test_draw_sheet_shows_masked_predicted_original_from_left_to_right():
    run = noise(count=1)
    picture = draw_sheet(run, "title")
    parts = (run.masked_BCHW, run.pasted_BCHW, run.original_BCHW)
    at = [only_corner(picture, picture_values(part_BCHW[0])) for part_BCHW in parts]
    assert [column for _, column in at] == sorted(column for _, column in at)
    assert len({row for row, _ in at}) == 1


def test_draw_sheet_keeps_the_aspect_of_the_images():
    rows, columns = (pure(draw_sheet(flat(1), "title"), 1).any(dim=axis).sum().item() for axis in (1, 0))
    assert columns == 2 * rows


def test_draw_sheet_grows_with_its_rows_and_shows_every_image():
    sheets = {count: draw_sheet(flat(count), "title") for count in (1, 2, 3, 5, 8)}
    heights = [sheets[count].shape[0] for count in (1, 2, 3)]
    assert heights[2] - heights[1] == heights[1] - heights[0] > 50
    assert sheets[8].shape[0] > sheets[5].shape[0]
    areas = {count: pure(picture, 1).sum().item() for count, picture in sheets.items()}
    assert all(area == count * areas[1] for count, area in areas.items())


@pytest.mark.parametrize("size", [(8, 8), (8, 64), (64, 16), (50, 50)])
def test_small_images_become_whole_blocks_of_pixels(size):
    run = noise(height=size[0] // 8 * 8, width=max(16, size[1] // 8 * 8))
    picture = draw_sheet(run, "")
    only_corner(picture, picture_values(run.original_BCHW[0]))


def test_large_images_are_shrunk():
    original = torch.zeros(1, 3, 1024, 1024)
    run = Reconstruction(original, original, torch.ones(1, 1024, 1024, dtype=torch.bool))
    assert max(draw_sheet(run, "").shape) < 1000


def test_error_colours_are_white_where_blank_and_darker_where_more():
    error = torch.tensor([[torch.nan, 0.0, 5.0, 10.0, 20.0]])
    colours = error_colours(error, top=10).astype(int)[0]
    assert colours[0].tolist() == [255, 255, 255]
    assert colours[1].tolist() != [255, 255, 255]
    assert colours[1].sum() > colours[2].sum() > colours[3].sum()
    assert colours[3].tolist() == colours[4].tolist()


@pytest.mark.parametrize("factor", [1e-4, 0.7, 12.0, 3e5])
def test_scale_of_errors_ends_at_a_round_number_above_nearly_all(factor):
    errors = torch.rand(10_000, generator=generator(0)) * factor
    errors[:10] = 7 * factor
    errors[10:500] = torch.nan
    top, open_end = scale_of(errors)
    assert open_end
    assert (errors[500:] <= top).double().mean() >= 0.99
    assert top < 1.7 * factor
    assert f"{top:.2g}" == f"{top:g}" or top == pytest.approx(float(f"{top:.2g}"))
    assert scale_of(torch.tensor([torch.nan, 0.0])) == (1.0, False)


def test_png_keeps_every_pixel_or_stays_below_its_limit_on_white_ground():
    picture = torch.full((400, 400, 3), 255, dtype=torch.uint8)
    picture[50:350, 50:350] = torch.from_numpy(np.array(photograph(300, 300)))
    lossless = png(picture)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(lossless))), picture.numpy())
    sizes = []
    for most in (len(lossless) // 2, len(lossless) // 8):
        small = png(picture, most)
        assert len(small) <= most
        decoded = Image.open(io.BytesIO(small)).convert("RGB")
        assert decoded.getpixel((3, 3)) == (255, 255, 255)
        sizes.append(decoded.width)
    assert sizes[0] == 400 > sizes[1]


def test_words_are_shortened_in_the_middle_and_wrapped_between_words():
    assert shortened("short", 200, 10) == "short"
    short = shortened("a_very_long_name_of_an_image_0001.png", 100, 10)
    assert width_of(short, 10) <= 100
    assert short.startswith("a_v")
    assert short.endswith(".png")
    assert "…" in short
    lines = wrapped("one two three four five six seven", 60, 10)
    assert " ".join(lines) == "one two three four five six seven"
    assert len(lines) > 2
    assert all(width_of(line, 10) <= 60 for line in lines)
    assert list(wrapped("", 60, 10)) == []
