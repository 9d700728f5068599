"""crop_resize: a batch of crops equals Pillow's crop and resize one by one, whatever the boxes, and never waits."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import InterpolationMode

from mim.ops import resample
from mim.ops.resample import crop_resize

HEIGHT, WIDTH = 427, 640  # of both photographs
BOXES = (  # top, left, height, width
    (0, 0, 427, 640),  # all of it
    (10, 20, 60, 50),  # enlarged on both axes
    (100, 300, 320, 170),  # reduced on one axis, enlarged on the other, at most sizes
    (60, 5, 90, 630),
    (367, 580, 60, 60),  # in the last corner
    (33, 71, 224, 224),
    (5, 600, 1, 40),  # a single row, and a single column
    (0, 3, 427, 1),
)
SIZES = ((224, 224), (96, 160), (16, 24), (300, 200), (1, 1))


def photographs() -> list[Image.Image]:
    return [Image.fromarray(np.array(levels_HWC)) for levels_HWC in load_sample_images().images]


def to_tensor(picture: Image.Image) -> Tensor:
    return F.pil_to_tensor(picture)


def boxes_of(boxes=BOXES, flips=(0,)) -> Tensor:
    return torch.tensor([(*box, flip) for box in boxes for flip in flips])


def mode(interpolation: str) -> Image.Resampling:
    return Image.Resampling[interpolation.upper()]


def by_pillow(picture: Image.Image, box, flip: int, size: tuple[int, int], interpolation: str, passes: int) -> Tensor:
    """Pillow's, int; in two passes, across and then down: newer Pillows go down first at some shapes."""
    top, left, height, width = box
    crop = picture.crop((left, top, left + width, top + height))
    if passes == 2:
        crop = crop.resize((size[1], height), mode(interpolation))
    crop = crop.resize(size[::-1], mode(interpolation))
    return to_tensor(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else crop).int()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["RGB", pytest.param("L", marks=pytest.mark.slow)])
def test_crop_resize_equals_pillow_to_one_level(interpolation: str, size: tuple[int, int], kind: str) -> None:
    pictures = [picture.convert(kind) for picture in photographs()]
    images_NCHW = torch.stack([to_tensor(picture) for picture in pictures])
    crops_BChw = crop_resize(images_NCHW, boxes_of(flips=(0, 1)).repeat(2, 1), size, interpolation)
    assert crops_BChw.dtype == torch.uint8
    assert crops_BChw.shape == (4 * len(BOXES), len(kind), *size)
    crops = [(picture, box, flip) for picture in pictures for box in BOXES for flip in (0, 1)]
    theirs = [torch.stack([by_pillow(*crop, size, interpolation, passes) for crop in crops]) for passes in (1, 2)]
    one_call, two_passes = (((crops_BChw.int() - expected).abs().float()) for expected in theirs)
    assert (two_passes > 1).float().mean() < 1e-5  # where both passes met a half
    assert two_passes.max() <= 2
    assert two_passes.mean() < 0.01  # nearly all are equal
    assert (one_call > 1).float().mean() < 2e-3  # overshoots are cut off after the other pass
    assert one_call.mean() < 0.1


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint16])
def test_crop_resize_of_wider_types_equals_torchvision(interpolation: str, dtype: torch.dtype) -> None:
    levels_CHW = to_tensor(photographs()[0]).float()
    image_CHW = levels_CHW * 257 if dtype == torch.uint16 else levels_CHW * 10 - 300
    crops_BChw = crop_resize(image_CHW.to(dtype)[None], boxes_of(), (48, 64), interpolation)
    assert crops_BChw.dtype == dtype
    for crop_Chw, box in zip(crops_BChw, BOXES, strict=True):
        expected = F.resize(
            F.crop(image_CHW.double(), *box), [48, 64], InterpolationMode(interpolation), antialias=True
        )
        if dtype == torch.uint16:
            expected = expected.clamp(0, 65535)
        difference = (crop_Chw.double() - expected).abs().max()
        assert difference < (0.6 if dtype == torch.uint16 else 0.01)  # rounded, or of values up to 2,250


def test_crop_resize_treats_channels_alike() -> None:
    four_CHW = torch.cat([to_tensor(photographs()[0]), to_tensor(photographs()[1])[:1]])
    crops_BChw = crop_resize(four_CHW[None], boxes_of(), (20, 30))
    for channel in range(4):
        assert torch.equal(
            crop_resize(four_CHW[None, channel : channel + 1], boxes_of(), (20, 30))[:, 0], crops_BChw[:, channel]
        )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_crop_resize_to_the_own_size_changes_nothing(dtype: torch.dtype) -> None:
    images_NCHW = to_tensor(photographs()[0])[None, :, :50, :70].to(dtype)
    boxes = torch.tensor([(0, 0, 50, 70, 0), (0, 0, 50, 70, 1)])
    plain, mirrored = crop_resize(images_NCHW, boxes, (50, 70))
    assert torch.equal(plain, images_NCHW[0])
    assert torch.equal(mirrored.float(), images_NCHW[0].float().flip(-1))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_crop_resize_sees_no_pixel_outside_the_box(interpolation: str) -> None:
    image_CHW = to_tensor(photographs()[0])
    for top, left, height, width in BOXES[1:]:
        elsewhere_CHW = 255 - image_CHW
        inside = (slice(None), slice(top, top + height), slice(left, left + width))
        elsewhere_CHW[inside] = image_CHW[inside]
        box = boxes_of(((top, left, height, width),))
        resized, same = (crop_resize(x[None], box, (32, 32), interpolation) for x in (image_CHW, elsewhere_CHW))
        assert torch.equal(resized, same)


def test_crop_resize_cuts_off_overshoots() -> None:
    step_CHW = torch.zeros(1, 32, 32)
    step_CHW[..., 16:] = 1
    box = torch.tensor([[0, 0, 32, 32, 0]])
    for dtype, top in ((torch.uint8, 255), (torch.uint16, 65535)):
        crops_BChw = crop_resize((step_CHW * top).to(dtype)[None], box, (64, 64)).int()
        assert crops_BChw[..., :24].max() == 0
        assert crops_BChw[..., 40:].min() == top


def test_crop_resize_takes_neighbouring_crops_from_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    images_NCHW = torch.stack([to_tensor(picture) for picture in photographs()] * 3)
    generator = torch.Generator().manual_seed(0)
    images_NCHW = images_NCHW + torch.randint(0, 9, (6, 1, 1, 1), generator=generator, dtype=torch.uint8)
    boxes_B5 = boxes_of(BOXES[:6], flips=(0, 1))  # 12, two an image
    each = torch.cat([crop_resize(images_NCHW[row // 2, None], boxes_B5[row, None], (24, 16)) for row in range(12)])
    monkeypatch.setattr(resample, "CHUNK_OF_CPU", 4)  # of which 6 is no multiple
    together = crop_resize(images_NCHW, boxes_B5, (24, 16))
    assert (together.int() - each.int()).abs().max() <= 1  # products of other shapes add up in another order
    assert (together != each).float().mean() < 1e-3


def test_crop_resize_keeps_float32_under_autocast() -> None:
    image_CHW, boxes_B5 = to_tensor(photographs()[0]), boxes_of()
    with torch.autocast("cpu", torch.bfloat16):
        under = crop_resize(image_CHW[None], boxes_B5, (48, 48))
    assert torch.equal(under, crop_resize(image_CHW[None], boxes_B5, (48, 48)))


def test_crop_resize_compiles_as_one_graph_for_all_boxes() -> None:
    """A graph that is whole reads no value on the way, for which a host would have to wait."""
    image_CHW = to_tensor(photographs()[0])[None]
    compiled = torch.compile(crop_resize, fullgraph=True, backend="aot_eager")
    first = compiled(image_CHW, boxes_of(BOXES[:2]), (24, 32))
    assert torch.equal(first, crop_resize(image_CHW, boxes_of(BOXES[:2]), (24, 32)))
    with torch.compiler.set_stance("fail_on_recompile"):
        second = compiled(image_CHW, boxes_of(BOXES[3:5], flips=(1,)), (24, 32))
    assert torch.equal(second, crop_resize(image_CHW, boxes_of(BOXES[3:5], flips=(1,)), (24, 32)))


@pytest.mark.parametrize(("rows", "numbers"), [(3, 5), (1, 5), (0, 5), (4, 4)])
def test_crop_resize_refuses_boxes_that_do_not_fit(rows: int, numbers: int) -> None:
    with pytest.raises(ValueError, match=rf"boxes of shape \({rows}, {numbers}\) for 2 images"):
        crop_resize(torch.zeros(2, 1, 8, 8), torch.zeros(rows, numbers, dtype=torch.int64), (4, 4))


def test_crop_resize_refuses_an_interpolation_that_it_does_not_have() -> None:
    with pytest.raises(ValueError, match="interpolation is 'nearest': it must be bicubic or bilinear"):
        crop_resize(torch.zeros(1, 1, 8, 8), torch.tensor([[0, 0, 8, 8, 0]]), (4, 4), "nearest")
