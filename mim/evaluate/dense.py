"""Dense: what the patches of a frozen encoder hold, as pictures without any label, and as masks where there are masks.

On one process or under torchrun. Shapes: B images, H W pixels, h w patches high and wide, D feature width, K classes.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from einops import rearrange
from torch import Tensor

from mim import build
from mim.config import Overrides
from mim.data.sources.base import Source
from mim.data.sources.files import Files
from mim.data.transforms import to_unit
from mim.evaluate.loading import LoadedCheckpoint, check_finite, inference_mode, load, origin, ready_encoder, title
from mim.evaluate.patches import FittedPatches, PatchSettings, classify_patches
from mim.evaluate.predictor import load_attending
from mim.evaluation.class_attention import class_attention, why_no_class_token
from mim.evaluation.foreground import find_foreground
from mim.evaluation.patch_classifiers import predicted_masks
from mim.evaluation.patch_features import PatchEncoder, PatchMaps
from mim.evaluation.reading import Reader, choose_samples, left_out_metrics
from mim.pictures.channels import Channels
from mim.pictures.dense import ShownImages, draw_attention, draw_components, draw_foreground
from mim.pictures.files import write_picture
from mim.pictures.segmentations import draw_segmentations
from mim.readouts import Predictor
from mim.readouts.base import AttendingReadout

SHOWN, MOST = 8, 100  # images of a sheet by default, and at most
COMPONENTS, FOREGROUND, ATTENTION, QUERIES = "components.png", "foreground.png", "attention.png", "queries.png"
MASKS = {"knn": "nearest neighbours", "logistic": "logistic regression"}  # by FittedPatches.classifiers


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
        metrics: dict[str, Any] = {**origin(loaded), "stride": patch_encoder.stride}
        source, train, fitted = *_sources(loaded, images), None
        if _has_masks(source):
            if train is not source:
                fitted, counted = classify_patches(loaded, patch_encoder, train, source, settings.patches)
                metrics |= counted
            else:
                metrics["no masks are counted"] = "there are no held-out images"
        samples = _samples(source, bool(images), settings)
        if not samples:
            return metrics
        queries = Queries.of(loaded)
        seen, broken = _look(loaded, patch_encoder, source, samples, queries)
        metrics |= {"images on sheets": len(seen.names), **({} if fitted else left_out_metrics(broken))}
        if not seen.attention:
            metrics["no attention"] = seen.no_attention
        sheets = _sheets(seen, title(loaded), patch_encoder.stride, settings.channels, fitted)
        if queries is not None:
            sheet_images = seen.images(title(loaded), settings.channels)
            sheets[QUERIES] = draw_attention(sheet_images, torch.cat(seen.queries), queries.title, "query")
        if loaded.world.main:
            for name, sheet in sheets.items():
                write_picture(output / name, sheet)
        return {**metrics, "pictures": [str(output / name) for name in sheets]}


def _encoder(loaded: LoadedCheckpoint, stride: int | None) -> PatchEncoder:
    encoder, preprocess = ready_encoder(loaded)
    with inference_mode(loaded):
        return PatchEncoder.of(encoder, preprocess, loaded.world.device, stride)


def _sources(loaded: LoadedCheckpoint, images: Sequence[Path]) -> tuple[Source, Source]:
    """The images that are shown (those that are named, else held-out ones, else training images), and training images.

    Raises ValueError where there are none.
    """
    if images:
        named = Files(images, loaded.cfg.DATA.shared)
        return named, named
    train, held_out = loaded.sources()
    source = held_out if len(held_out) else train
    if not len(source):
        raise ValueError(f"DATA.name {loaded.cfg.DATA.name} has no images: name others by DATA.path, or name IMAGES")
    return source, train


def _has_masks(source: Source) -> bool:
    return source.label_kind == "mask"


def _samples(source: Source, named: bool, settings: DenseSettings) -> list[int]:
    """The images of the sheets. Raises ValueError where they are more than a sheet holds."""
    count = settings.images if settings.images is not None else len(source) if named else SHOWN
    if not 0 <= min(count, len(source)) <= MOST:
        raise ValueError(f"{count} images on a sheet: it holds 0 to {MOST}, see --images")
    if named or not count:
        return list(range(len(source)))[:count]
    return choose_samples(len(source), count, settings.seed)


@dataclass(frozen=True, slots=True)
class Queries:
    """A readout whose queries attend to patches."""

    model: Predictor
    readout: AttendingReadout
    title: str

    @classmethod
    def of(cls, loaded: LoadedCheckpoint) -> Self | None:
        """That of a checkpoint; None where no readout of it attends."""
        attending = load_attending(loaded)
        if attending is None:
            return None
        model, readout, setting = attending
        return cls(model, readout, f"the queries of the readout{f' ({setting})' if setting else ''}")

    def shares(self, img_BCHW: Tensor) -> Tensor:
        """The share of each patch in what a query gathers, the mean over its heads: (B, Q, h, w)."""
        features = self.model.features(img_BCHW)
        shares_BQHN = self.readout.attention(features)
        return rearrange(shares_BQHN.float().mean(dim=2), "b q (h w) -> b q h w", h=features.grid[0])


@dataclass(slots=True)
class _Seen:
    """Images, and what the encoder makes of them, batch by batch; on the CPU."""

    names: list[str] = field(default_factory=list)
    stored: list[Tensor] = field(default_factory=list)
    maps: list[Tensor] = field(default_factory=list)  # features (B, D, h, w)
    masks: list[Tensor] = field(default_factory=list)  # labels (B, H, W), where images have masks
    attention: list[Tensor] = field(default_factory=list)  # shares (B, A, h, w), where there is a class token
    no_attention: str = ""  # why there is none
    queries: list[Tensor] = field(default_factory=list)  # shares (B, Q, h, w), where a readout attends

    def images(self, title: str, channels: Channels) -> ShownImages:
        """The images for a sheet."""
        images_BCHW = torch.cat([to_unit(part) for part in self.stored])
        eight_bit = all(part.dtype == torch.uint8 for part in self.stored)
        return ShownImages(
            images_BCHW=images_BCHW, names=self.names, eight_bit=eight_bit, title=title, channels=channels
        )


def _look(
    loaded: LoadedCheckpoint,
    patch_encoder: PatchEncoder,
    source: Source,
    samples: Sequence[int],
    queries: Queries | None,
) -> tuple[_Seen, dict[str, str]]:
    """What the encoder makes of these images, on each rank, and the reason for each file that is left out."""
    reader, encoder = Reader(loaded.cfg.DATA.batch_size, 0), patch_encoder.encoder
    seen = _Seen(no_attention=why_no_class_token(encoder))
    data = build.evaluation_data(loaded.cfg, source, masks=_has_masks(source))
    with inference_mode(loaded), closing(reader.read(data, samples, mixed=True)) as parts:
        for part in parts:
            seen.names += [Path(source.describe(index)).name for index in part.batch.indices]
            seen.stored.append(part.batch.images_BCHW)
            seen.maps.append(patch_encoder.maps(part.batch.images_BCHW).cpu())
            if _has_masks(source):
                seen.masks.append(part.batch.labels)
            img_BCHW = patch_encoder.preprocess(part.batch.images_BCHW.to(patch_encoder.device))
            if queries is not None:
                seen.queries.append(queries.shares(img_BCHW).cpu())
            if not seen.no_attention:
                try:
                    seen.attention.append(class_attention(encoder, img_BCHW).cpu())
                except ValueError as error:  # of an architecture whose attention has another form
                    seen.no_attention = f"{encoder.title}: {error}"
    broken = reader.settle(len(seen.names))
    for map_BDhw in seen.maps:
        check_finite(loaded, "features", map_BDhw)
    return seen, broken


def _sheets(seen: _Seen, run: str, stride: int, channels: Channels, fitted: FittedPatches | None) -> dict[str, Tensor]:
    """All sheets by the name of their file."""
    images, map_BDhw = seen.images(run, channels), torch.cat(seen.maps)
    foreground = find_foreground(map_BDhw)
    sheets = {
        COMPONENTS: draw_components(images, map_BDhw, stride),
        FOREGROUND: draw_foreground(images, foreground.score_Bhw, foreground.components_BhwK, foreground.share),
    }
    if seen.attention:
        sheets[ATTENTION] = draw_attention(images, torch.cat(seen.attention), "the class token in the last block")
    if fitted is not None:
        part = PatchMaps(rearrange(map_BDhw, "b d h w -> b h w d"), torch.cat(seen.masks), [])
        for name, classifier in fitted.classifiers.items():
            answers_BHW = predicted_masks(classifier, part.to(fitted.device))[0].cpu()
            sheets[f"masks_{name}.png"] = draw_segmentations(
                *(images.images_BCHW, part.labels_BHW, answers_BHW, fitted.names),
                f"{run}: masks by {MASKS[name]}",
                f"{classifier.settings[0].describe()}, fitted on patches of training images; each pixel has the class "
                f"of its patch, {stride} px wide.",
            )
    return sheets
