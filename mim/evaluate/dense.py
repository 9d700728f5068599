"""Dense: what the patches of a frozen encoder hold, as pictures without any label, and as masks where there are masks.

On one process or under torchrun. Shapes: B images, H W pixels, h w patches high and wide, D feature width, K classes.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mim import build
from mim.config import Overrides
from mim.data.sources.base import Source
from mim.data.sources.files import Files
from mim.data.transforms import to_unit
from mim.encoders import Encoder
from mim.evaluate.loading import LoadedCheckpoint, check_finite, inference_mode, load, origin, ready
from mim.evaluate.patches import PatchSettings, classify_patches
from mim.evaluation.class_attention import class_attention, why_no_class_token
from mim.evaluation.foreground import find_foreground
from mim.evaluation.patch_features import PatchEncoder
from mim.evaluation.reading import Reader, choose_samples, left_out_metrics
from mim.pictures.channels import Channels
from mim.pictures.dense import ShownImages, draw_attention, draw_components, draw_foreground
from mim.pictures.files import write_picture

SHOWN, MOST = 8, 100  # images of a sheet by default, and at most
COMPONENTS, FOREGROUND, ATTENTION = "components.png", "foreground.png", "attention.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseSettings:
    """What is looked at and shown.

    Args:
        stride: of the feature map in pixels; None: that of the encoder's output.
        images: on a sheet; None: 8, or all that are named; 0: no sheets.
        channels: of view_of.
        patches: how patches are classified, where images have masks.
        seed: of the choice of images.
    """

    stride: int | None = None
    images: int | None = None
    channels: Channels = ()
    patches: PatchSettings
    seed: int = 0


def dense(
    run: Path, images: Sequence[Path], output: Path, overrides: Overrides, settings: DenseSettings
) -> dict[str, Any]:
    """Sheets of components, foreground and attention in `output`; metrics of masks where the data have some.

    Args:
        run: a run folder or checkpoint.
        images: files, folders and lists to show, see Files; without any, held-out images, or training images where
            there are none.
        output: the folder of the sheets.
        overrides: config keys.
        settings: what is looked at and shown.

    Raises ValueError where there is no image, no such map, or nothing to do.
    """
    with load(run, overrides) as loaded:
        patch_encoder = _encoder(loaded, settings.stride)
        train, held_out = build.build_sources(loaded.cfg) if not images else (None, None)
        metrics: dict[str, Any] = {**origin(loaded), "stride": patch_encoder.stride}
        if train is not None and held_out is not None and _has_masks(train) and _has_masks(held_out):
            metrics |= classify_patches(loaded, patch_encoder, train, held_out, settings.patches)
        source = Files(images, loaded.cfg.DATA.shared) if images else held_out if held_out else train
        assert source is not None
        metrics |= _sheets(loaded, patch_encoder, source, bool(images), output, settings)
        return metrics


def _has_masks(source: Source) -> bool:
    spec = getattr(source, "label_spec", None)
    return len(source) > 0 and spec is not None and spec.kind == "mask"


def _encoder(loaded: LoadedCheckpoint, stride: int | None) -> PatchEncoder:
    encoder: Encoder = loaded.cfg.ENCODER.build(build.image_spec(loaded.cfg))
    preprocess = ready(loaded, encoder, "encoder.")
    with inference_mode(loaded):
        return PatchEncoder.of(encoder, preprocess, loaded.world.device, stride)


def _sheets(
    loaded: LoadedCheckpoint,
    patch_encoder: PatchEncoder,
    source: Source,
    named: bool,
    output: Path,
    settings: DenseSettings,
) -> dict[str, Any]:
    """Draws all sheets, and says where they are, or why there is none."""
    samples = _samples(loaded, source, named, settings)
    if not samples:
        return {}
    reader = Reader(loaded.cfg.DATA.batch_size, 0)
    stored, indices, maps, attention = [], list[int](), [], []
    encoder, no_attention = patch_encoder.encoder, why_no_class_token(patch_encoder.encoder)
    data = build.evaluation_data(loaded.cfg, source)
    with inference_mode(loaded), closing(reader.read(data, samples, mixed=True)) as parts:
        for part in parts:
            stored.append(part.batch.images_BCHW.clone())
            indices += part.batch.indices
            maps.append(patch_encoder.maps(part.batch.images_BCHW).cpu())
            if not no_attention:
                try:
                    img_BCHW = patch_encoder.preprocess(part.batch.images_BCHW.to(patch_encoder.device))
                    attention.append(class_attention(encoder, img_BCHW).cpu())
                except ValueError as error:  # of an architecture whose attention has another form
                    no_attention = f"{encoder.title}: {error}"
    broken = reader.settle(len(indices))
    map_BDhw = torch.cat(maps)
    check_finite(loaded, "features", map_BDhw)
    shown = ShownImages(
        images_BCHW=torch.cat([to_unit(part) for part in stored]),
        names=[Path(source.describe(index)).name for index in indices],
        eight_bit=all(part.dtype == torch.uint8 for part in stored),
        title=loaded.path.name,
        channels=settings.channels,
    )
    sheets = {
        COMPONENTS: draw_components(shown, map_BDhw, patch_encoder.stride),
        FOREGROUND: _foreground_sheet(shown, map_BDhw),
    }
    if not no_attention:
        sheets[ATTENTION] = draw_attention(shown, torch.cat(attention), "the class token in the last block")
    if loaded.world.main:
        for name, sheet in sheets.items():
            write_picture(output / name, sheet)
    missing = {"no attention": no_attention} if no_attention else {}
    return {
        "images on sheets": len(indices),
        **left_out_metrics(broken),
        **missing,
        "pictures": [str(output / name) for name in sheets],
    }


def _foreground_sheet(shown: ShownImages, map_BDhw: Tensor) -> Tensor:
    foreground = find_foreground(map_BDhw)
    return draw_foreground(shown, foreground.score_Bhw, foreground.components_BhwK, foreground.share)


def _samples(loaded: LoadedCheckpoint, source: Source, named: bool, settings: DenseSettings) -> list[int]:
    """The images of the sheets. Raises ValueError where there is none, or more than a sheet holds."""
    if not len(source):
        raise ValueError(f"DATA.name {loaded.cfg.DATA.name} has no images: name others by DATA.path, or name IMAGES")
    count = settings.images if settings.images is not None else len(source) if named else SHOWN
    if not 0 <= min(count, len(source)) <= MOST:
        raise ValueError(f"{count} images on a sheet: it holds 0 to {MOST}, see --images")
    return (
        list(range(len(source)))[:count] if named else choose_samples(len(source), count, settings.seed)[: count or 0]
    )
