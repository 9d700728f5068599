"""Masks of a config, sampled and measured, for the command `masks`.

Shapes: N masks or images, C channels, H W pixels.
"""

from pathlib import Path

import torch
from torch import Tensor

from mim.build import build_data, evaluation_data, image_spec
from mim.config import Config
from mim.data.transforms import to_unit
from mim.evaluation.avg_dist import masker_avg_dist, pixel_distances
from mim.evaluation.reading import readable_images
from mim.ops.seeding import generator_for
from mim.pictures.files import write_picture
from mim.pictures.masks import SampledMasks, draw_masks

MASKS = 256  # over which AvgDist is averaged
CPU = torch.device("cpu")


def sample(cfg: Config, samples: int) -> SampledMasks:
    """Masks of the masker of a config, with its AvgDist."""
    image = image_spec(cfg)
    masker = cfg.MASKER.build(image)
    mask = masker.sample(samples, generator_for(CPU, cfg.SEED, "masks of a picture"), CPU)
    return SampledMasks(
        masker=masker.name,
        cell=masker.cell,
        ratio=cfg.MASKER.arguments.get("ratio"),
        visible=masker.visible,
        cells=masker.cells,
        avg_dist=masker_avg_dist(masker, image, MASKS, cfg.SEED),
        hidden_NHW=mask.at(image.height, image.width),
        distance_NHW=pixel_distances(mask, image.height, image.width),
        predicted_NHW=None if mask.predicted_BHW is None else mask.predicted_at(image.height, image.width),
    )


def held_out_images(cfg: Config, samples: int) -> Tensor:
    """Held-out images in [0, 1], (N, C, H, W). Raises ValueError where there are too few."""
    try:
        source = build_data(cfg)[1]
    except ValueError as error:
        raise ValueError(f"--over needs the images of the config, which are not there: {error}") from error
    if len(source) < samples:
        raise ValueError(
            f"--over needs {samples} held-out images, and DATA.name {cfg.DATA.name} has {len(source)}: lower "
            "--samples, or name other images with DATA.path"
        )
    data = evaluation_data(cfg, source)
    images_NCHW = readable_images(data, samples, cfg.SEED).batch.images_BCHW
    if len(images_NCHW) < samples:
        raise ValueError(f"--over needs {samples} held-out images, and {len(images_NCHW)} can be read: lower --samples")
    if images_NCHW.dtype == torch.uint8:
        return to_unit(images_NCHW)
    images_NCHW = images_NCHW.float()  # microscopes rarely use the whole range of their type
    low_N111, high_N111 = images_NCHW.amin((1, 2, 3), keepdim=True), images_NCHW.amax((1, 2, 3), keepdim=True)
    return (images_NCHW - low_N111) / (high_N111 - low_N111).clamp(min=1e-12)


def draw(rows: list[SampledMasks], output: Path, config: str, images_NCHW: Tensor | None) -> None:
    """Writes the picture of sampled masks, over images where there are some. config: its name, for the title."""
    _, height, width = rows[0].hidden_NHW.shape
    title = f"{rows[0].masker} masker, images of {height} × {width} px ({config})"
    note = f"AvgDist: mean over {MASKS} sampled masks,\n± half of its 95% interval"
    picture_HW3 = draw_masks(rows, title, images_NCHW, note)
    write_picture(output, picture_HW3)
