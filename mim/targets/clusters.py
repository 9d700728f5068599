"""Clusters: to which of many learned clusters the features of the encoder's moving average belong (CAPI).

Shapes: B batch, K clusters, D width, H W pixels, h w entries high and wide.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mim.encoders.base import Encoder
from mim.io.checks import above_zero, at_least
from mim.structures import TargetSpec
from mim.targets.base import Lesson
from mim.targets.follower import Follower

Across = Literal["device", "all"]


class Clusters(Follower, name="clusters"):
    """A share of each cluster for each token: features of a follower, clustered while they are learned.

    A linear layer on the features (of length 1) scores the clusters. In training, the scores of a batch are balanced
    by Sinkhorn's iterations, so that each cluster gets an equal share of the images at each position, and the layer
    learns to give the balanced shares without the balance: its loss is `train/target_loss`, added to that of the model.
    Evaluations take the shares that the layer gives to each image alone. To be used with LOSS.name cross_entropy.

    Source: CAPI (Darcet et al., arXiv:2502.08769), with 16384 clusters. Differs from: the layer has the optimizer of
    the model, where CAPI has one with half the rate.

    Args:
        clusters: number of clusters, at least 2.
        balance_temperature: temperature of the scores that are balanced; the lower, the harder the shares.
        temperature: that of the layer's own shares.
        iterations: of balancing, at least 1.
        positional: whether each position of the grid is balanced by itself, so that a cluster cannot stand for a place.
        across: what is balanced together: the micro-batch of a `device`, so that numbers do not depend on the devices,
            or those of `all` devices (CAPI). It should hold about as many images as there are clusters.
    """

    def __init__(
        self,
        student: Encoder,
        *,
        clusters: int = 16384,
        balance_temperature: float = 0.06,
        temperature: float = 0.12,
        iterations: int = 3,
        positional: bool = True,
        across: Across = "device",
        **shared: Any,
    ):
        super().__init__(student, **{"norm": "none", **shared})
        at_least("TARGET", 2, clusters=clusters)
        at_least("TARGET", 1, iterations=iterations)
        above_zero("TARGET", balance_temperature=balance_temperature, temperature=temperature)
        self.balance_temperature, self.temperature = balance_temperature, temperature
        self.iterations, self.positional, self.across = iterations, positional, across
        self.scores = nn.Conv2d(self.spec.channels, clusters, kernel_size=1)
        nn.init.normal_(self.scores.weight)
        nn.init.zeros_(self.scores.bias)  # type: ignore[arg-type]
        self.spec = TargetSpec(clusters, student.spec.stride, distribution=True)

    def forward(self, img_BCHW: Tensor) -> Tensor:
        return (self._scores(super().forward(img_BCHW)) / self.temperature).softmax(dim=1)

    def learn(self, img_BCHW: Tensor, attend: bool = False) -> Lesson:
        if not self.training:
            return super().learn(img_BCHW)
        with torch.no_grad():
            features_BDhw = super().forward(img_BCHW)
        scores_BKhw = self._scores(features_BDhw)
        with torch.no_grad():
            axes = (0,) if self.positional else (0, 2, 3)
            shares_BKhw = balance(scores_BKhw / self.balance_temperature, axes, self.iterations, self.across)
        logs_BKhw = (scores_BKhw / self.temperature).log_softmax(dim=1)
        return Lesson(shares_BKhw, -(shares_BKhw * logs_BKhw).sum(dim=1).mean())

    def _scores(self, features_BDhw: Tensor) -> Tensor:
        scores_BKhw = self.scores(F.normalize(features_BDhw, dim=1, eps=1e-7))
        return scores_BKhw.to(torch.promote_types(scores_BKhw.dtype, torch.float32))


def balance(scores_BKhw: Tensor, axes: Sequence[int], iterations: int, across: Across) -> Tensor:
    """Shares (B, K, h, w) of the clusters that add up to 1 for each token, and to nearly equal sums for each cluster.

    Sinkhorn's iterations, in logarithms: to equal sums over `axes` for each cluster, then over the clusters to 1.
    """
    for _ in range(iterations):
        scores_BKhw = scores_BKhw - _log_sum(scores_BKhw, axes, across)
        scores_BKhw = scores_BKhw.log_softmax(dim=1)
    return scores_BKhw.exp()


def _log_sum(scores_BKhw: Tensor, axes: Sequence[int], across: Across) -> Tensor:
    """The logarithm of the sum of exponentials over some axes, and over the batches of all devices."""
    if across == "device" or not (dist.is_available() and dist.is_initialized()):
        return scores_BKhw.logsumexp(dim=tuple(axes), keepdim=True)
    most = scores_BKhw.amax(dim=tuple(axes), keepdim=True)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    total = (scores_BKhw - most).exp().sum(dim=tuple(axes), keepdim=True)
    dist.all_reduce(total)
    return most + total.log()
