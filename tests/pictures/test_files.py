"""Picture files: the ending decides the format."""

import numpy as np
import pytest
import torch
from PIL import Image

from mim.pictures.files import JPEG_SIDE, check_ending, write_picture


def test_write_picture_keeps_every_value_as_png_and_makes_the_folder(tmp_path):
    picture_HW3 = torch.randint(256, (5, 7, 3), dtype=torch.uint8)
    write_picture(tmp_path / "new" / "a.PNG", picture_HW3)
    picture = Image.open(tmp_path / "new" / "a.PNG")
    assert picture.format == "PNG"
    assert np.array_equal(np.asarray(picture), picture_HW3.numpy())


def test_write_picture_refuses_what_jpeg_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match=r"JPEG allows 65,535 pixels a side.* name a .png"):
        write_picture(tmp_path / "a.jpg", torch.zeros(JPEG_SIDE + 1, 1, 3, dtype=torch.uint8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.pdf", "a.svg", "a", "a.png.gz"])
def test_other_endings_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"--output is .*: a picture is written as .png or .jpg or .jpeg"):
        check_ending("--output", tmp_path / name)
