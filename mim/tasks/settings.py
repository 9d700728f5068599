"""The settings of EVALUATE and INIT: each key with its meaning, its default and its range. No torch here."""

from dataclasses import dataclass

from mim.io.checks import at_least, shares


@dataclass(frozen=True, kw_only=True)
class InitSettings:
    """INIT: the weights that a run starts from.

    Args:
        checkpoint: a run folder (its best checkpoint, or its last) or a checkpoint of this toolkit, a file of MAE,
            SimMIM or timm, or a folder of transformers; empty for random weights.
    """

    checkpoint: str = ""


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """EVALUATE of pretraining.

    Args:
        every_epochs: epochs between two evaluations; 0 evaluates only at the end.
        at_start: also evaluate before the first step.
        samples: held-out images at most.
        knn: neighbours that vote in the kNN classification; 0 for no kNN.
        knn_bank: training images at most that neighbours are searched in.
        knn_temperature: temperature of the vote. Source: Wu et al. 2018 (0.07).
        reconstructions: images in the picture of reconstructions; 0 for no picture.
        crop_pct: share of the image side that the centre crop keeps.
    """

    every_epochs: int = 10
    at_start: bool = True
    samples: int = 2000
    knn: int = 20
    knn_bank: int = 10000
    knn_temperature: float = 0.07
    reconstructions: int = 8
    crop_pct: float = 1.0

    def __post_init__(self) -> None:
        at_least("EVALUATE", 0, every_epochs=self.every_epochs, knn=self.knn, reconstructions=self.reconstructions)
        at_least("EVALUATE", 1, samples=self.samples, knn_bank=self.knn_bank)
        if self.knn_temperature <= 0:
            raise ValueError(f"EVALUATE.knn_temperature is {self.knn_temperature}: it must be positive")
        shares("EVALUATE", crop_pct=self.crop_pct)


@dataclass(frozen=True, kw_only=True)
class ClassifyEvaluateSettings:
    """EVALUATE of fine-tuning and probes.

    Args:
        every_epochs: epochs between two evaluations; 0 evaluates only at the end.
        at_start: also evaluate before the first step.
        samples: held-out images at most; 0 for all.
        crop_pct: share of the image side that the centre crop keeps.
        confusion: draw the confusion matrix.
    """

    every_epochs: int = 1
    at_start: bool = False
    samples: int = 0
    crop_pct: float = 1.0
    confusion: bool = True

    def __post_init__(self) -> None:
        at_least("EVALUATE", 0, every_epochs=self.every_epochs, samples=self.samples)
        shares("EVALUATE", crop_pct=self.crop_pct)
