"""Follower: features of a moving average of the encoder, which sees the whole image (data2vec, I-JEPA).

Shapes: B batch, D channels of the target, C channels of an image, H W pixels, h w entries high and wide.
"""

import copy
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mim.encoders.base import Encoder
from mim.structures import Features
from mim.targets.base import TargetContext
from mim.targets.features import FeatureTarget


class Follower(FeatureTarget, name="follower"):
    """Features of the encoder's own moving average, which sees the whole image while the encoder sees a part of it.

    After each optimizer step, the average moves by (1 - decay) of the way to the encoder. It is in eval mode, is saved
    with the model, and has no gradient. Where its targets lose their spread (all images look alike to it), the log of
    the run says so: see val/target_std and val/target_rank.

    Source: data2vec 2.0 (Baevski et al., arXiv:2212.07525), with layers 10 of ViT-B's 12, of mlp, layer_norm instance,
    norm layer, decay 0.9998 to 0.99999; I-JEPA (Assran et al., arXiv:2301.08243), with layers 1, norm layer, decay
    0.996 to 1.

    Args:
        decay: share of the average that stays in the first step, from 0 to 1.
        decay_end: the same from the end of the ramp on.
        ramp: share of the run's steps over which decay moves from the one to the other, linearly; 0: decay_end at once.
    """

    moving: ClassVar[bool] = True
    metric_names: ClassVar[tuple[str, ...]] = ("target_std",)

    def __init__(
        self,
        student: Encoder,
        *,
        decay: float = 0.9998,
        decay_end: float = 0.99999,
        ramp: float = 1.0,
        **shared: Any,
    ):
        super().__init__(student.image, student.spec, student, **shared)
        for key, value in (("decay", decay), ("decay_end", decay_end), ("ramp", ramp)):
            if not 0 <= value <= 1:
                raise ValueError(f"TARGET.{key} is {value:g}: it must lie between 0 and 1")
        self.decay, self.decay_end, self.ramp = decay, decay_end, ramp
        self.network = copy.deepcopy(student).eval().requires_grad_(False)

    @classmethod
    def of(cls, context: TargetContext, **keys: Any) -> Self:
        return cls(context.encoder, **keys)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.network.eval()
        return self

    def features(self, img_BCHW: Tensor, **options: Any) -> Features:
        return self.network(img_BCHW, **options)

    def blocks(self) -> list[nn.Module]:
        return self.network.blocks()

    def start(self, encoder: Encoder) -> None:
        self.network.load_state_dict(encoder.state_dict())

    def after_step(self, encoder: Encoder, progress: float) -> None:
        way = min(1.0, progress / self.ramp) if self.ramp else 1.0
        decay = self.decay + (self.decay_end - self.decay) * way
        average, current = list(self.network.parameters()), [each.detach() for each in encoder.parameters()]
        get_ema_multi_avg_fn(decay)(average, current, None)
        with torch.no_grad():
            for ours, theirs in zip(self.network.buffers(), encoder.buffers(), strict=True):
                ours.copy_(theirs)  # running statistics are averages already

    def metrics(self, map_BDhw: Tensor) -> dict[str, Tensor]:
        """The standard deviation over images, averaged over entries and channels: 0 where the targets collapse.

        Entries at other places may differ even then, because an encoder knows positions.
        """
        return {"target_std": map_BDhw.float().var(dim=0, correction=min(1, len(map_BDhw) - 1)).mean().sqrt()}
