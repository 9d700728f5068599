"""Crops of a batch, each with a box and a flip of its own, resized on the device that holds the images.

Shapes: N images, B crops (a whole multiple of N), C channels, H W pixels of an image, h w pixels of a crop, o pixels of
the result along one axis, i pixels of an image along it.
"""

from typing import Literal, get_args

import torch
from einops import rearrange
from torch import Tensor

Interpolation = Literal["bicubic", "bilinear"]
CHUNK = 128  # images that are resized at a time: enough to fill a GPU, and what lies in between is soon freed
CHUNK_OF_CPU = 4  # what lies in between fits a cache
TOP = {torch.uint8: 255, torch.uint16: 65535}


def crop_resize(
    images_NCHW: Tensor, boxes_B5: Tensor, size: tuple[int, int], interpolation: Interpolation = "bicubic"
) -> Tensor:
    """Crops (B, C, h, w) of the given size, in the stored type of the images.

    boxes_B5: whole numbers on the device of the images, for each crop its top, left, height and width in pixels, which
    must lie within the image (this is not checked, it would be a host sync), and 1 where it is mirrored, else 0. Where
    there are more crops than images, neighbouring ones are of the same image: crop b is of image b // (B / N).

    The same as Pillow's `crop` and `resize` to one level, and mostly exactly: an antialiased filter, a = -0.5
    where it is bicubic, that sees no pixel outside the box, first across and then down, rounded and cut off in between
    where images are uint8. (Pillow 13 goes down first at some shapes; overshoots at edges then differ by a few levels.)
    uint16 is rounded once, floats never, as in torchvision. Differs from: each channel is resized by itself, where
    Pillow weights the colours of RGBA by their alpha.

    Both axes are matrix products in float32, under autocast too: 2 C H W w + 2 C H w h operations a crop. Shapes do not
    depend on the boxes, so no host waits and no graph is compiled anew. A pixel that is not finite spoils its rows and
    columns of the result, also from outside the box.

    Raises ValueError for another interpolation, or where the crops are no multiple of the images.
    """
    if interpolation not in get_args(Interpolation):
        raise ValueError(f"interpolation is {interpolation!r}: it must be {' or '.join(get_args(Interpolation))}")
    repeats, left_over = divmod(len(boxes_B5), len(images_NCHW))
    if left_over or not repeats or boxes_B5.shape[1:] != (5,):
        raise ValueError(
            f"boxes of shape {tuple(boxes_B5.shape)} for {len(images_NCHW)} images: give each k x 5 numbers"
        )
    chunk = CHUNK_OF_CPU if images_NCHW.device.type == "cpu" else CHUNK
    crops_BChw = images_NCHW.new_empty((len(boxes_B5), images_NCHW.shape[1], *size))
    with torch.autocast(images_NCHW.device.type, enabled=False):
        for first in range(0, len(images_NCHW), chunk):
            part_NCHW = images_NCHW[first : first + chunk]
            rows = slice(first * repeats, (first + len(part_NCHW)) * repeats)
            crops_BChw[rows] = _resized(part_NCHW, boxes_B5[rows], size, interpolation)
    return crops_BChw


def _resized(images_NCHW: Tensor, boxes_B5: Tensor, size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """Crops (B, C, h, w) in float32, rounded and cut off as their stored type will be."""
    channels, high, wide = images_NCHW.shape[1:]
    top_B, left_B, height_B, width_B, flipped_B = boxes_B5.to(torch.int32).unbind(1)
    across_BwW = _weights(left_B, width_B, flipped_B, size[1], wide, interpolation)
    down_BhH = _weights(top_B, height_B, torch.zeros_like(flipped_B), size[0], high, interpolation)
    # the axis that is summed comes last or first in turn, so that no product needs a copy of the pixels
    pixels_NWR = rearrange(images_NCHW.float(), "n c y x -> n x (c y)")
    narrow_NwR = rearrange(across_BwW, "(n r) w x -> n (r w) x", n=len(images_NCHW)) @ pixels_NWR
    if images_NCHW.dtype == torch.uint8:
        narrow_NwR = _rounded(narrow_NwR, images_NCHW.dtype)
    narrow_BRH = rearrange(narrow_NwR, "n (r w) (c y) -> (n r) (w c) y", w=size[1], c=channels)
    crops_BRh = _rounded(narrow_BRH @ down_BhH.mT, images_NCHW.dtype)
    return rearrange(crops_BRh, "b (w c) y -> b c y w", c=channels)


def _weights(
    start_B: Tensor, length_B: Tensor, mirrored_B: Tensor, size: int, pixels: int, interpolation: Interpolation
) -> Tensor:
    """Along one axis, what each pixel of the image adds to each of the result: (B, o, i), each row of sum 1."""
    device = start_B.device
    start_B11, length_B11, mirrored_B11 = (rearrange(x, "b -> b 1 1") for x in (start_B, length_B, mirrored_B))
    position_1o1 = rearrange(torch.arange(size, dtype=torch.int32, device=device), "o -> 1 o 1")
    pixel_11i = rearrange(torch.arange(pixels, dtype=torch.int32, device=device), "i -> 1 1 i")
    position_Bo1 = position_1o1 + mirrored_B11 * (size - 1 - 2 * position_1o1)
    inner_B1i = pixel_11i - start_B11
    # from the middle of one pixel to that of the other, in whole numbers, which round nothing however large the image
    steps_Boi = (2 * inner_B1i + 1) * size - (2 * position_Bo1 + 1) * length_B11
    distance_Boi = steps_Boi.abs() / (2 * length_B11.clamp(min=size))  # a filter is widened where it reduces
    inside_B1i = (inner_B1i >= 0) & (inner_B1i < length_B11)
    weights_Boi = _kernel(distance_Boi, interpolation) * inside_B1i
    return weights_Boi / weights_Boi.sum(dim=2, keepdim=True)


def _kernel(distance: Tensor, interpolation: Interpolation) -> Tensor:
    """The filter at a distance from its middle: a triangle, or the cubic of Keys (1981) with a = -0.5."""
    if interpolation == "bilinear":
        return (1 - distance).clamp(min=0)
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def _rounded(values: Tensor, stored: torch.dtype) -> Tensor:
    """Values, which may be overwritten, as the nearest whole numbers in the range of their type; floats stay."""
    if stored not in TOP:
        return values
    return values.add_(0.5).floor_().clamp_(0, TOP[stored])  # halves go up, as Pillow's do
