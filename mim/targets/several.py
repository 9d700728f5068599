"""Several: several targets at once, packed into one map that one head predicts, and the sum of their losses.

Shapes: B batch, C channels, H W pixels of the image, h w entries of a target.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim.encoders.base import Encoder
from mim.losses import Loss
from mim.structures import PatchMask, Prediction, TargetSpec
from mim.targets.base import FrozenNetwork, Lesson, Target


class Several(Target):
    """Targets as one map at the coarsest stride among them: a list of targets in a config.

    An entry holds all entries of a finer target that it covers. So each target has its own outputs of the head's last
    layer.

    Raises ValueError where the coarsest stride is no multiple of another one.
    """

    def __init__(self, targets: Sequence[Target]):
        super().__init__(targets[0].image, targets[0].encoder)
        stride = max(target.spec.stride for target in targets)
        for target in targets:
            if stride % target.spec.stride:
                raise ValueError(
                    f"TARGET.name {target.name} has entries of {target.spec.stride} pixels, which does not divide the "
                    f"{stride} of another target in the list: use strides that divide each other"
                )
        self.parts = nn.ModuleList(targets)
        self.factors = [stride // target.spec.stride for target in targets]
        self.sizes = [t.spec.channels * factor**2 for t, factor in zip(targets, self.factors, strict=True)]
        self.spec = TargetSpec(sum(self.sizes), stride)
        self.name = " + ".join(target.name for target in targets)  # type: ignore[misc]
        self.outside = any(target.outside for target in targets)  # type: ignore[misc]
        self.moving = any(target.moving for target in targets)  # type: ignore[misc]
        self.labels = labels_of([target.name for target in targets])
        self.metric_names = tuple(  # type: ignore[misc]
            f"{key}_{label}" for label, part in zip(self.labels, targets, strict=True) for key in part.metric_names
        )

    @property
    def targets(self) -> list[Target]:
        return list(self.parts)  # type: ignore[arg-type]

    def forward(self, img_BCHW: Tensor) -> Tensor:
        return self.pack([target(img_BCHW) for target in self.targets])

    def learn(self, img_BCHW: Tensor, attend: bool = False) -> Lesson:
        """The attention is that of the first target that has one."""
        first = next((target for target in self.targets if target.attends), None)
        lessons = [target.learn(img_BCHW, attend and target is first) for target in self.targets]
        losses = [lesson.loss for lesson in lessons if lesson.loss is not None]
        attention_BHW = next((each.attention_BHW for each in lessons if each.attention_BHW is not None), None)
        map_BChw = self.pack([lesson.map_BChw for lesson in lessons])
        return Lesson(map_BChw, torch.stack(losses).sum() if losses else None, attention_BHW)

    def pack(self, maps_BChw: Sequence[Tensor]) -> Tensor:
        """One map of the map of each target, (B, channels, height / stride, width / stride)."""
        maps = [F.pixel_unshuffle(each, factor) for each, factor in zip(maps_BChw, self.factors, strict=True)]
        return torch.cat(maps, dim=1)

    def unpack(self, map_BChw: Tensor) -> list[Tensor]:
        """The map of each target, (B, its channels, height / its stride, width / its stride)."""
        pieces = map_BChw.split(self.sizes, dim=1)
        return [F.pixel_shuffle(piece, factor) for piece, factor in zip(pieces, self.factors, strict=True)]

    def by_label(self, map_BChw: Tensor) -> dict[str, tuple[Target, Tensor]]:
        return dict(zip(self.labels, zip(self.targets, self.unpack(map_BChw), strict=True), strict=True))

    @property
    def title(self) -> str:
        return " + ".join(target.title for target in self.targets)

    @property
    def attends(self) -> bool:
        return any(target.attends for target in self.targets)

    def frozen_networks(self) -> list[FrozenNetwork]:
        return [network for target in self.targets for network in target.frozen_networks()]

    def blocks(self) -> list[nn.Module]:
        return [block for target in self.targets for block in target.blocks()]

    def start(self, encoder: Encoder) -> None:
        for target in self.targets:
            target.start(encoder)

    def after_step(self, encoder: Encoder, progress: float) -> None:
        for target in self.targets:
            target.after_step(encoder, progress)

    def metrics(self, map_BChw: Tensor) -> dict[str, Tensor]:
        each = zip(self.labels, self.targets, self.unpack(map_BChw), strict=True)
        return {f"{key}_{label}": value for label, part, piece in each for key, value in part.metrics(piece).items()}


class SeveralLosses(nn.Module):
    """The weighted sum of the losses of several targets.

    Args:
        losses: one for each target.
        weights: factor of each target's loss.
    """

    def __init__(self, target: Several, losses: Sequence[Loss], weights: Sequence[float]):
        super().__init__()
        self.parts, self.weights = nn.ModuleList(losses), tuple(weights)
        self.unpack, self.sizes, self.factors = target.unpack, target.sizes, target.factors
        self.terms = tuple(target.labels)
        self.specs = [part.spec for part in target.targets]
        self.name = " + ".join(dict.fromkeys(loss.name for loss in losses))
        self.over = "all" if any(loss.over == "all" for loss in losses) else "hidden"

    def check(self, target: TargetSpec) -> None:
        """Raises ValueError where a loss cannot learn its target."""
        for loss, spec in zip(self.parts, self.specs, strict=True):
            loss.check(spec)  # type: ignore[operator]

    def of(self, label: str) -> Loss:
        """The loss of a target."""
        return self.parts[self.terms.index(label)]  # type: ignore[return-value]

    def constant(self, mean_C: Tensor) -> Tensor:
        """See Loss.constant. A channel has one value for all entries of its target that share an entry of the map."""
        pieces = []
        for loss, factor, piece_C in zip(self.parts, self.factors, mean_C.split(self.sizes), strict=True):
            mean_C = piece_C.unflatten(0, (-1, factor**2)).mean(dim=1)
            pieces.append(loss.constant(mean_C).repeat_interleave(factor**2))  # type: ignore[operator]
        return torch.cat(pieces)

    def forward(self, prediction: Prediction, target_BChw: Tensor, mask: PatchMask) -> Tensor:
        """The scalar loss."""
        return self.with_terms(prediction, target_BChw, mask)[0]

    def with_terms(
        self, prediction: Prediction, target_BChw: Tensor, mask: PatchMask
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and the loss of each target by its label, without its weight."""
        maps = zip(self.unpack(prediction.map_BCHW), self.unpack(target_BChw), strict=True)
        losses = [
            loss(Prediction(predicted, prediction.predicted_BHW), target, mask)
            for loss, (predicted, target) in zip(self.parts, maps, strict=True)
        ]
        total = torch.stack([weight * loss for weight, loss in zip(self.weights, losses, strict=True)]).sum()
        return total, dict(zip(self.terms, losses, strict=True))


def labels_of(names: Sequence[str]) -> list[str]:
    """What metrics call each target: its name, with its number in the list where another one has the same name."""
    return [f"{name}_{number}" if names.count(name) > 1 else name for number, name in enumerate(names)]
