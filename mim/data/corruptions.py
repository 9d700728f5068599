"""ImageNet-C's corruptions of images, by the package imagecorruptions-imaug.

Source: Hendrycks and Dietterich, arXiv:1903.12261. Differs from: the package is a fork of imagecorruptions (Michaelis
et al., arXiv:1907.07484), for images of any size and without ImageMagick. It blurs motion and snow by code of its own,
has six pictures of frost and not five, and its elastic distortions scale with the image and have no affine part.

Shapes: C channels, H W pixels, 3 red, green, blue.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mim.data.decoding.broken import BrokenImage
from mim.data.sources.base import Stored
from mim.io.formatting import list_names
from mim.ops.seeding import derive_seed, host_seeded
from mim.structures import ImageSpec

FAMILIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
NAMES = tuple(name for names in FAMILIES.values() for name in names)
SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 32  # pixels of a side: what the package takes
PUBLISHED_SIDE = 224  # pixels, for which the severities were chosen
TAKE_SEEDS = ("impulse_noise", "glass_blur")  # they do not draw from numpy's global generator


def choose_corruptions(words: Sequence[str]) -> tuple[str, ...]:
    """The corruptions of these names and families, in the order of NAMES; all of them without words.

    Raises ValueError for another word.
    """
    unknown = [word for word in words if word not in FAMILIES and word not in NAMES]
    if unknown:
        raise ValueError(
            f"--only names {list_names(unknown)}: the corruptions are {', '.join(NAMES)}, and their families "
            f"{', '.join(FAMILIES)}"
        )
    chosen = {name for word in words for name in FAMILIES.get(word, (word,))}
    return tuple(name for name in NAMES if not words or name in chosen)


def check_corruptible(image: ImageSpec) -> None:
    """Raises ValueError where images of this size or channels cannot be corrupted, or the package is missing."""
    if image.channels not in (1, 3):
        raise ValueError(f"DATA.channels is {image.channels}: the corruptions are made for images of 1 or 3 channels")
    if min(image.height, image.width) < SMALLEST:
        raise ValueError(
            f"DATA.image_size is [{image.height}, {image.width}]: the corruptions need at least {SMALLEST} pixels a "
            "side"
        )
    _package()


class Corrupted:
    """A transform of stored images, and one corruption of its result. The draw depends on the image's seed alone.

    An image draws the same at each severity, so that a curve over severities shows nothing but severity. Grey images
    are corrupted as three equal channels: of noise, which draws for each channel, they keep one; else the luminance.

    Args:
        transform: the evaluation transform.
        name: of NAMES.
        severity: of SEVERITIES.
    """

    def __init__(self, transform: Callable[[Stored, int], Tensor], name: str, severity: int):
        self.transform, self.name, self.severity = transform, name, severity

    def __call__(self, image: Stored, seed: int) -> Tensor:
        """(C, H, W) uint8. Raises BrokenImage where the image is stored in more than 8 bits."""
        image_CHW = self.transform(image, seed)
        if image_CHW.dtype != torch.uint8:
            raise BrokenImage(f"it is stored as {image_CHW.dtype}, and the corruptions are made for 8 bits")
        grey = image_CHW.shape[0] == 1
        image_HW3 = np.ascontiguousarray(image_CHW.expand(3, -1, -1).permute(1, 2, 0).numpy())
        corrupted_HW3 = self._corrupt(image_HW3, derive_seed(seed, f"corruption {self.name}"))
        if not grey:
            return torch.from_numpy(corrupted_HW3).permute(2, 0, 1).contiguous()
        noise = self.name in FAMILIES["noise"]
        grey_HW = corrupted_HW3[..., 0] if noise else np.asarray(Image.fromarray(corrupted_HW3).convert("L"))
        return torch.from_numpy(grey_HW.copy())[None]

    def _corrupt(self, image_HW3: np.ndarray, seed: int) -> np.ndarray:
        own = {"seed": seed % 2**32} if self.name in TAKE_SEEDS else {}
        with host_seeded(seed):
            return np.array(_package().corrupt(image_HW3, self.severity, self.name, **own))  # some are read-only


def compile_once() -> None:
    """Compiles the code of glass_blur, so that dataloader workers, which are forks, need not: it takes seconds."""
    Corrupted(lambda image, _: torch.as_tensor(image), "glass_blur", 1)(torch.zeros(1, 32, 32, dtype=torch.uint8), 0)


def _package() -> Any:
    """The module imagecorruptions. Raises ValueError where it is missing, or is the package of which it is a fork."""
    try:
        import cv2
        import imagecorruptions
    except (ImportError, OSError) as error:  # a missing system library of OpenCV, too
        raise ValueError(
            f"corruptions need the package imagecorruptions-imaug ({error}): pip install 'mim-toolkit[corruptions]'"
        ) from error
    if not hasattr(imagecorruptions.corruptions, "SK_VERSION"):
        raise ValueError(
            "the package imagecorruptions is installed, whose last release fails under numpy 2: pip uninstall "
            "imagecorruptions, then pip install --force-reinstall imagecorruptions-imaug"
        )
    cv2.setNumThreads(1)  # dataloader workers are forks, in which its threads would be missing
    return imagecorruptions
