"""Teacher: features of a network that was trained elsewhere and stays as it is.

Shapes: B batch, C channels, H W pixels.
"""

import copy
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mim.encoders.attention import maps_of_record, recorded_attention
from mim.encoders.base import Encoder
from mim.structures import Features, ImageSpec
from mim.targets.base import FrozenNetwork, Lesson, Network, TargetContext
from mim.targets.features import FeatureTarget

Statistics = tuple[float, ...] | Literal["file"]


class Teacher(FeatureTarget, name="teacher"):
    """Features of a frozen network: an encoder of this toolkit, or a model of timm, from any file of weights.

    It sees the whole image in its own normalisation and size, once for all masks of a step. Its weights are not in
    checkpoints, which name the file and its checksum; a run that is resumed with another file is refused.

    Source: EVA (Fang et al., arXiv:2211.07636) and MILAN (Hou et al., arXiv:2208.06049), whose teacher is CLIP;
    MaskFeat (arXiv:2112.09133), section 4, with DINO and supervised teachers.

    Args:
        checkpoint: the file of its weights; whatever INIT.checkpoint takes. Recipes leave it empty, for you to name.
        model: the name of the model in timm, for a file of timm that is not of a plain ViT; empty where the file says
            what it holds.
        image_size: height and width of the images that it sees, to which the student's are resized (bicubic,
            antialiased), and its positions too; [0, 0]: as the student's.
        mean: of its images, per channel, scaled to [0, 1]; `file`: as the file or timm says, or else as the student's.
        std: standard deviation per channel, as for mean.

    Raises ValueError where the file is missing, is not of that model, or is of images with other channels.
    """

    other_network = "a file of {names}, such as that of a plain ViT of timm with TARGET.model empty"
    scale_C11: Tensor
    shift_C11: Tensor

    def __init__(
        self,
        context: TargetContext,
        *,
        checkpoint: str = "",
        model: str = "",
        image_size: tuple[int, int] = (0, 0),
        mean: Statistics = "file",
        std: Statistics = "file",
        **shared: Any,
    ):
        image = context.image
        if any(image_size) and min(image_size) < 1:
            raise ValueError(
                f"TARGET.image_size is {list(image_size)}: height and width must be at least 1, or both 0 for those of "
                "the student"
            )
        size = image_size if any(image_size) else (image.height, image.width)
        if not checkpoint and not model and torch.empty(0).is_meta:  # a recipe whose file is still to be named
            network = Network(copy.deepcopy(context.encoder), None, None, "")
        else:
            network = context.load(checkpoint, model, ImageSpec(image.channels, *size))
        super().__init__(image, context.encoder.spec, network.encoder, **shared)
        self.size, self._checks_attention = size, True  # until `learn` gave attention once
        self.frozen = FrozenNetwork(network.encoder, {checkpoint: network.checksum} if network.checksum else {})
        their_mean = _statistic("mean", mean, network.mean, context.mean)
        their_std = _statistic("std", std, network.std, context.std)
        # (x * std + mean - their mean) / their std
        mean_C, std_C = torch.tensor(context.mean), torch.tensor(context.std)
        scale_C, shift_C = std_C / their_std, (mean_C - their_mean) / their_std
        self.register_buffer("scale_C11", scale_C[:, None, None], persistent=False)
        self.register_buffer("shift_C11", shift_C[:, None, None], persistent=False)

    @classmethod
    def of(cls, context: TargetContext, **keys: Any) -> Self:
        return cls(context, **keys)

    @property
    def title(self) -> str:
        files = [f" of {file} (SHA-256 {checksum[:12]})" for file, checksum in self.frozen.checksums.items()]
        return f"teacher {self._encoder.title}{''.join(files)}"

    def features(self, img_BCHW: Tensor, **options: Any) -> Features:
        return self.frozen(self._own_images(img_BCHW), **options)

    @property
    def attends(self) -> bool:
        return self._encoder.spec.num_prefix > 0

    def learn(self, img_BCHW: Tensor, attend: bool = False) -> Lesson:
        """The attention is what the class token takes from each patch in the last block, averaged over heads."""
        if not attend:
            return super().learn(img_BCHW)
        encoder = self._encoder
        with recorded_attention(encoder, [-1]) as weights:
            features = self.features(img_BCHW, **self.options)
        map_BANN = maps_of_record(encoder, weights, [-1], len(img_BCHW), check=self._checks_attention)[-1]
        row_BN, self._checks_attention = map_BANN.mean(dim=1)[:, 0, encoder.spec.num_prefix :], False
        return Lesson(
            self.map_of(features), attention_BHW=rearrange(row_BN, "b (h w) -> b h w", h=encoder.spec.grid[0])
        )

    def _own_images(self, img_BCHW: Tensor) -> Tensor:
        """The images as the teacher sees them."""
        img_BCHW = img_BCHW * self.scale_C11 + self.shift_C11
        if img_BCHW.shape[-2:] != self.size:
            img_BCHW = F.interpolate(img_BCHW, self.size, mode="bicubic", align_corners=False, antialias=True)
        return img_BCHW

    def frozen_networks(self) -> list[FrozenNetwork]:
        return [self.frozen]

    @property
    def _encoder(self) -> Encoder:
        return self.frozen.network  # type: ignore[return-value]


def _statistic(key: str, value: Statistics, of_file: tuple[float, ...] | None, own: tuple[float, ...]) -> Tensor:
    """The mean or std of the teacher's images, (C,).

    Args:
        of_file: what the file says; None where it says nothing.
        own: of the student's images.
    """
    values = value if value != "file" else of_file or own
    if len(values) != len(own):
        source = "as its file or timm says: " if value == "file" else ""
        example = [round(number, 3) for number in (values[0],) * len(own)]
        raise ValueError(
            f"TARGET.{key} has {len(values)} values, {source}{list(values)}, and images have {len(own)} channels: set "
            f'DATA.channels {len(values)}, or name a teacher of such images with TARGET.{key} "{example}"'
        )
    if key == "std" and min(values) <= 0:
        raise ValueError(f"TARGET.std is {list(values)}: each must be above 0")
    return torch.tensor(values)
