"""The sheet of sampled masks: it shows the masks and the distances that it is given."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_data import photograph
from small_models import CPU, generator

from mim.evaluation.avg_dist import pixel_distances
from mim.maskers import Block, Grid, MultiBlock, Random
from mim.ops.intervals import Estimate
from mim.pictures import masks
from mim.pictures.masks import (
    HIDDEN,
    HIDDEN_OVER,
    LEFT_OUT,
    LEFT_OUT_OVER,
    VISIBLE,
    SampledMasks,
    draw_masks,
)
from mim.structures import ImageSpec


def sampled(masker, image: ImageSpec, count: int = 3, ratio: float | None = None) -> SampledMasks:
    mask = masker.sample(count, generator(0), CPU)
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


@pytest.fixture
def layouts(monkeypatch):
    """The layout that is drawn, instead of the drawing, which tests/pictures/test_reconstructions.py looks at."""
    monkeypatch.setattr(masks, "draw", lambda layout: layout)


@pytest.mark.usefixtures("layouts")
@pytest.mark.parametrize("image", [ImageSpec(3, 32, 32), ImageSpec(3, 32, 64), ImageSpec(3, 64, 32)])
def test_sheet_shows_each_mask_in_its_place(image):
    rows = [
        sampled(Random(image, cell=8, ratio=0.4), image, ratio=0.4),
        sampled(Random(image, cell=8, ratio=0.8), image, ratio=0.8),
        sampled(Block(image, cell=16, ratio=0.5), image, ratio=0.5),
        sampled(Grid(image, cell=16), image),
    ]
    layout = draw_masks(rows, "title", note="note")
    assert (layout.title, layout.notes) == ("title", ("note",))
    assert [len(group.titles) for group in layout.columns] == [3, 3]
    for row, layout_row in zip(rows, layout.rows, strict=True):
        assert len(layout_row.panels) == 6
        for hidden_HW, panel in zip(row.hidden_NHW.numpy(), layout_row.panels, strict=False):
            assert (panel.rgb_HW3[hidden_HW] == HIDDEN).all()
            assert (panel.rgb_HW3[~hidden_HW] == VISIBLE).all()


@pytest.mark.usefixtures("layouts")
def test_sheet_names_each_setting_and_what_it_hides():
    image = ImageSpec(3, 32, 64)
    rows = [sampled(Random(image, cell=8, ratio=0.7), image, ratio=0.7), sampled(Grid(image, cell=8), image)]
    first, second = (row.title for row in draw_masks(rows, "").rows)
    assert (
        first == "random, cell 8 px, ratio 0.7: 71.9% hidden (23 of 32 cells), AvgDist 5.00 ± 0.10 px (15.6% of 32 px)"
    )
    assert second.startswith("grid, cell 8 px: 75.0% hidden (24 of 32 cells)")


@pytest.mark.usefixtures("layouts")
def test_sheet_shows_distances_by_one_scale():
    """Visible pixels are white; the farther, the darker, and equally so in every row."""
    image = ImageSpec(3, 64, 64)
    rows = [sampled(Random(image, cell=cell, ratio=0.6), image, ratio=0.6) for cell in (8, 16, 32)]
    layout = draw_masks(rows, "")
    distances = np.concatenate([row.distance_NHW.numpy().ravel() for row in rows])
    colours = np.concatenate([panel.rgb_HW3.reshape(-1, 3) for row in layout.rows for panel in row.panels[3:]])
    brightness = [np.unique(colours[distances == distance].mean(axis=1)) for distance in np.unique(distances)]
    assert len(brightness) > 12
    assert all(len(values) == 1 for values in brightness)  # the same distance has the same colour in every row
    assert (np.diff(np.concatenate(brightness)) <= 0).all()
    assert brightness[0] == 255
    assert brightness[-1] < 80
    assert (layout.bar.top, layout.bar.root) == (distances.max(), True)


@pytest.mark.usefixtures("layouts")
@pytest.mark.parametrize("channels", [[0, 1, 2], [0], [0, 1, 2, 0, 1], [0, 1]])
def test_masks_over_images_show_the_image_where_it_is_visible(channels):
    image = ImageSpec(3, 32, 64)
    row = sampled(Random(image, cell=8, ratio=0.5), image, ratio=0.5)
    levels_HW3 = np.asarray(photograph(32, 64))
    images_NCHW = torch.from_numpy(levels_HW3.copy()).permute(2, 0, 1)[channels].expand(3, -1, -1, -1) / 255
    expected_HW3 = levels_HW3 if len(channels) > 2 else levels_HW3[..., [0, 0, 0]]
    panels = draw_masks([row], "", images_NCHW).rows[0].panels
    for hidden_HW, panel in zip(row.hidden_NHW.numpy(), panels, strict=False):
        assert (panel.rgb_HW3[hidden_HW] == HIDDEN_OVER).all()
        np.testing.assert_array_equal(panel.rgb_HW3[~hidden_HW], expected_HW3[~hidden_HW])


@pytest.mark.usefixtures("layouts")
@pytest.mark.parametrize("over", [False, True])
def test_masks_show_predicted_cells_apart_from_hidden_ones(over):
    image = ImageSpec(3, 64, 64)
    mask = MultiBlock(image, cell=8).sample(3, generator(0), CPU)
    row = replace(sampled(MultiBlock(image, cell=8), image), predicted_NHW=mask.predicted_at(64, 64))
    layout = draw_masks([row], "", torch.rand(3, 3, 64, 64, generator=generator(0)) if over else None)
    colours = (HIDDEN_OVER, LEFT_OUT_OVER) if over else (HIDDEN, LEFT_OUT)
    assert "predicted" in layout.columns[0].name
    for sample, panel in enumerate(layout.rows[0].panels[:3]):
        predicted, hidden = row.predicted_NHW[sample].numpy(), row.hidden_NHW[sample].numpy()
        assert (panel.rgb_HW3[predicted] == colours[0]).all()
        assert (hidden & ~predicted).any()
        assert (panel.rgb_HW3[hidden & ~predicted] == colours[1]).all()


@pytest.mark.parametrize(("count", "name"), [(1, "random"), (2, r"$\bad$"), (6, "a_rather_long_name")])
def test_nothing_reaches_the_edges_of_the_sheet(count, name):
    image = ImageSpec(3, 256, 128)
    row = sampled(Random(image, cell=32, ratio=0.9375), image, count, ratio=0.9375)
    named = SampledMasks(**{key: getattr(row, key) for key in row.__slots__} | {"masker": name})
    picture = draw_masks([row, named], "a title that is long " * count, note="a note of a few words").numpy()
    ink = (picture < 200).any(axis=2)
    assert ink.any()
    for side in (ink[:6], ink[-6:], ink[:, :6], ink[:, -6:]):
        assert not side.any()


def test_rows_that_do_not_fit_are_errors():
    image, other = ImageSpec(3, 32, 32), ImageSpec(3, 32, 64)
    row = sampled(Random(image, cell=8, ratio=0.5), image)
    for rows in ([], [row, sampled(Random(other, cell=8, ratio=0.5), other)]):
        with pytest.raises(ValueError, match="rows of one shape"):
            draw_masks(rows, "")
    with pytest.raises(ValueError, match="do not fit masks"):
        draw_masks([row], "", torch.zeros(3, 1, 16, 16))
