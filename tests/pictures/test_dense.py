"""Sheets of components, foreground and attention: what their pixels show."""

import numpy as np
import pytest
import torch
from small_data import photograph
from small_models import generator

from mim.pictures import dense, retrieval
from mim.pictures.dense import ShownImages, draw_attention, draw_components, draw_foreground
from mim.pictures.retrieval import RIGHT, WRONG, ShownNeighbour, draw_neighbours


def images_of(count=3, channels=3):
    """Photographs of 48 x 64, or noise of other than three channels."""
    picture = torch.from_numpy(np.array(photograph())).movedim(2, 0).float() / 255
    images = picture.expand(count, 3, 48, 64) if channels == 3 else torch.rand(count, channels, 48, 64)
    return ShownImages(images_BCHW=images, names=[f"{n}.png" for n in range(count)], eight_bit=True, title="run")


def maps(count=3, seed=0):
    return torch.randn(count, 7, 6, 8, generator=generator(seed))


@pytest.fixture
def layouts(monkeypatch):
    """The layouts that are drawn."""
    kept = []
    for module in (dense, retrieval):
        monkeypatch.setattr(module, "draw", lambda layout: kept.append(layout))
    return kept


def pictures(layout, column):
    """The panels of a column title, image after image."""
    titles = [title for group in layout.columns for title in group.titles]
    numbers = [number for number, title in enumerate(titles) if title == column]
    return [row.panels[number] for row in layout.rows for number in numbers if row.panels[number] is not None]


def test_components_are_one_projection_for_all_images(layouts):
    """The same features have the same colours in each image, and an image changes the colours of the others."""
    map_BDhw = maps()
    map_BDhw[2] = map_BDhw[0]
    draw_components(images_of(), map_BDhw, 8)
    first, second, third = (panel.rgb_HW3 for panel in pictures(layouts[0], "components"))
    assert np.array_equal(first, third)
    assert not np.array_equal(first, second)
    moved = torch.cat([map_BDhw[:1], 3 * maps(seed=5)[:2]])
    draw_components(images_of(), moved, 8)
    assert not np.array_equal(pictures(layouts[1], "components")[0].rgb_HW3, first)
    rows = map_BDhw.movedim(1, -1).reshape(-1, 7).double().numpy()
    _, _, axes = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    for channel in range(3):  # the colours rise or fall with the components over all images at once
        score = (rows - rows.mean(axis=0)) @ axes[channel]
        colours = np.concatenate([picture[::8, ::8, channel].ravel() for picture in (first, second, third)])
        assert abs(np.corrcoef(score, colours.astype(float))[0, 1]) > 0.98
    assert "fitted once on all patches of 3 images" in layouts[0].notes[0]


def test_names_stand_below_images_beside_each_other_and_a_last_row_may_be_short(layouts):
    draw_components(images_of(7), maps(7), 8)
    assert [len(row.panels) for row in layouts[0].rows] == [8, 8]
    assert [panel.caption for panel in pictures(layouts[0], "image")] == [f"{number}.png" for number in range(7)]
    assert layouts[0].rows[1].panels[-2:] == (None, None)


def test_images_of_twelve_channels_say_which_are_shown(layouts):
    draw_components(images_of(channels=12), maps(), 8)
    assert "Channels 0, 1, 2 of 12 (counted from 0) shown as red, green, blue" in layouts[0].notes[1]


def test_foreground_keeps_the_image_where_the_component_is_above_its_mean(layouts):
    score_Bhw = torch.randn(2, 6, 8, generator=generator(0), dtype=torch.float64)
    draw_foreground(images_of(2), score_Bhw, torch.randn(2, 6, 8, 3, generator=generator(1)), 0.4)
    for number, panel in enumerate(pictures(layouts[0], "foreground")):
        inside = np.kron(score_Bhw[number].numpy() > 0, np.ones((8, 8))) > 0
        image = pictures(layouts[0], "image")[number].rgb_HW3
        assert np.array_equal(panel.rgb_HW3[inside], image[inside])
        assert panel.rgb_HW3[~inside].min() >= 216  # pale
        coloured = pictures(layouts[0], "its components")[number].rgb_HW3
        assert (coloured[~inside] == 255).all()
        assert coloured[inside].std() > 30
        heat = pictures(layouts[0], "first component")[number].rgb_HW3.astype(int).sum(axis=2)
        assert heat[inside].max() < heat[~inside].min()


def test_attention_is_darkest_at_the_largest_share_of_each_head_and_of_their_mean(layouts):
    shares_BAhw = (9 * torch.rand(2, 3, 48, generator=generator(0))).softmax(dim=2).view(2, 3, 6, 8) * 0.9
    draw_attention(images_of(2), shares_BAhw, "the class token")
    titles = ("mean of heads", "head 1", "head 2", "head 3")
    for title, map_Bhw in zip(titles, [shares_BAhw.mean(dim=1), *shares_BAhw.unbind(1)], strict=True):
        for panel, map_hw in zip(pictures(layouts[0], title), map_Bhw, strict=True):
            light_hw = panel.rgb_HW3[::8, ::8].astype(int).sum(axis=2)
            assert light_hw.argmin() == map_hw.argmax()
            assert np.corrcoef(light_hw.ravel(), map_hw.ravel())[0, 1] < -0.8
    assert "90% of the attention" in layouts[0].notes[0]


def test_sheets_are_drawn_whole():
    attention = draw_attention(images_of(1), torch.ones(1, 2, 6, 8) / 48, "it")
    for sheet in (draw_components(images_of(1), maps(1), 8), attention):
        assert sheet.dtype == torch.uint8
        assert sheet.shape[1] > 2 * 128


def test_neighbours_are_framed_by_whether_they_have_the_class_of_the_query(layouts):
    picture = np.full((48, 64, 3), 90, dtype=np.uint8)
    row = [ShownNeighbour(picture, "cat", None), ShownNeighbour(picture, "cat 0.9", True)]
    draw_neighbours([[*row, ShownNeighbour(picture, "dog 0.8", False)], row], "title", ["note"])
    (first, second) = layouts[0].rows
    for panel, colour in zip(first.panels, ((255, 255, 255), RIGHT, WRONG), strict=True):
        assert tuple(panel.rgb_HW3[0, 0]) == tuple(panel.rgb_HW3[-1, -1]) == colour
        assert (panel.rgb_HW3[2:-2, 2:-2] == 90).all()
        assert panel.rgb_HW3.shape == (52, 68, 3)
    assert second.panels[2] is None
