"""Features and classes of patches: what a dense evaluation fits its classifiers on, and how their answers are counted.

Shapes: B images, H W pixels, h w patches high and wide, M patches of a bank, N patches, D feature width, K classes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor

from mim.data.preprocess import Preprocess
from mim.encoders import Encoder
from mim.ops.ratios import mean_of_defined, ratio
from mim.ops.seeding import generator_for


@dataclass(frozen=True, slots=True)
class PatchMaps:
    """Some images: a map of features, and the class of each pixel."""

    features_BhwD: Tensor  # float32
    labels_BHW: Tensor  # int64, -1 where a pixel has no class
    rows: list[int]  # position of each image in its data set

    @property
    def grid(self) -> tuple[int, int]:
        """Patches high and wide."""
        return self.features_BhwD.shape[1], self.features_BhwD.shape[2]

    def to(self, device: torch.device) -> "PatchMaps":
        """On a device."""
        return PatchMaps(self.features_BhwD.to(device), self.labels_BHW.to(device), self.rows)


@dataclass(frozen=True, slots=True)
class PatchBank:
    """Patches with a class."""

    features_MD: Tensor  # float32
    labels_M: Tensor  # int64
    rows_M: Tensor  # int64, the image of each patch

    def of_images(self, rows: Iterable[int], inside: bool = True) -> "PatchBank":
        """The patches of these images; with `inside` False, those of all others."""
        rows_R = torch.tensor(list(rows), dtype=torch.long, device=self.rows_M.device)
        chosen_M = torch.isin(self.rows_M, rows_R) == inside
        return PatchBank(self.features_MD[chosen_M], self.labels_M[chosen_M], self.rows_M[chosen_M])


@dataclass(frozen=True, slots=True)
class PatchEncoder:
    """A frozen encoder with the map that is looked at."""

    encoder: Encoder
    preprocess: Preprocess
    stride: int  # of the map, in pixels
    width: int  # channels of the map
    device: torch.device

    @classmethod
    def of(
        cls, encoder: Encoder, preprocess: Preprocess, device: torch.device, stride: int | None = None
    ) -> "PatchEncoder":
        """With the map of this stride; None: of the encoder's output.

        Raises ValueError where the encoder has no such map, or one entry for the whole image.
        """
        image = encoder.image
        maps = encoder.stage_maps(torch.zeros(1, image.channels, image.height, image.width, device=device))
        chosen = encoder.spec.stride if stride is None else stride
        if chosen not in maps:
            raise ValueError(f"--stride is {chosen}: the maps of {encoder.title} have the strides {_listed(maps)}")
        _, width, high, wide = maps[chosen].shape
        if high * wide < 2:
            finer = [each for each in maps if each < chosen]
            way_out = f"name a finer one with --stride, {_listed(finer)}" if finer else "use a larger DATA.image_size"
            raise ValueError(
                f"the map of {encoder.title} at stride {chosen} has one entry for an image of {image.height} x "
                f"{image.width} px: {way_out}"
            )
        return cls(encoder, preprocess, chosen, width, device)

    def maps(self, images_BCHW: Tensor) -> Tensor:
        """The features (B, D, h, w) of stored images, float32."""
        return self.encoder.stage_maps(self.preprocess(images_BCHW.to(self.device)))[self.stride].float()


def patch_labels(labels_BHW: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    """The class of most pixels of each patch, (B, h, w) int64; the lower one of two that have as many.

    It is -1 where pixels without a class are more than those of any class.
    """
    pixels_NP = rearrange(labels_BHW, "b (h p) (w q) -> (b h w) (p q)", h=grid[0], w=grid[1])
    counts_NK = torch.zeros(len(pixels_NP), classes + 1, device=labels_BHW.device)
    last_NP = torch.where(pixels_NP < 0, classes, pixels_NP)
    counts_NK.scatter_add_(1, last_NP, torch.ones_like(last_NP, dtype=counts_NK.dtype))
    label_N = counts_NK.argmax(dim=1)
    return rearrange(torch.where(label_N == classes, -1, label_N), "(b h w) -> b h w", h=grid[0], w=grid[1])


def to_pixels(map_Bhw: Tensor, size: Sequence[int]) -> Tensor:
    """The value of its patch for each pixel, (B, H, W)."""
    factors = {name: side // count for name, side, count in zip("pq", size, map_Bhw.shape[1:], strict=True)}
    return repeat(map_Bhw, "b h w -> b (h p) (w q)", **factors)


def collect(
    parts: Iterable[PatchMaps], classes: int, quota: int, seed: int, width: int, device: torch.device
) -> PatchBank:
    """The patches of images that have a class, at most `quota` of an image, drawn by the seed; 0: all.

    The draw is a function of the seed and of the image's row, so that the number of ranks changes nothing.
    """
    nothing = torch.empty(0, dtype=torch.long, device=device)  # for a rank without images
    features, labels, rows = [torch.empty(0, width, device=device)], [nothing], [nothing]
    for part in parts:
        labels_BN = patch_labels(part.labels_BHW, part.grid, classes).flatten(1)
        for image_ND, label_N, row in zip(part.features_BhwD.flatten(1, 2), labels_BN, part.rows, strict=True):
            patches_M = (label_N >= 0).nonzero()[:, 0]
            if 0 < quota < len(patches_M):
                generator = generator_for(torch.device("cpu"), seed, "patches", row)
                order_M = torch.randperm(len(patches_M), generator=generator)[:quota].sort().values
                patches_M = patches_M[order_M.to(patches_M.device)]
            features.append(image_ND[patches_M])
            labels.append(label_N[patches_M])
            rows.append(torch.full_like(patches_M, row))
    return PatchBank(torch.cat(features), torch.cat(labels), torch.cat(rows))


def region_counts(predicted_BHW: Tensor, labels_BHW: Tensor, classes: int) -> Tensor:
    """Pixels of each class, (K, 3) int64: predicted and true, predicted, true. Those without a class count nowhere."""
    known_BHW = labels_BHW >= 0
    predicted_N, true_N = predicted_BHW[known_BHW], labels_BHW[known_BHW]
    parts = (true_N[predicted_N == true_N], predicted_N, true_N)
    return torch.stack([torch.bincount(part_N, minlength=classes) for part_N in parts], dim=1)


def mean_iou(counts_K3: Tensor) -> float:
    """The mean intersection over union of the classes that are predicted or true somewhere; NaN without pixels."""
    both_K, predicted_K, true_K = counts_K3.double().cpu().numpy().T
    return float(mean_of_defined(ratio(both_K, predicted_K + true_K - both_K)))


def _listed(strides: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(strides)))
