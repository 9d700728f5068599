"""The settings of CLASSIFIER and FREEZE: each key with its meaning, its default and its range. No torch here."""

from dataclasses import dataclass
from typing import Literal

from mim.io.checks import at_least


@dataclass(frozen=True, kw_only=True)
class FreezeSettings:
    """FREEZE: the part of the encoder that fine-tuning trains. Source: MAE, section 4.3.

    Args:
        tune_blocks: number of the encoder's last blocks to train, with the layers above them: 0 trains only the
            classifier, half a block is its MLP, `all` trains everything.
    """

    tune_blocks: float | Literal["all"] = "all"

    def __post_init__(self) -> None:
        if self.tune_blocks != "all" and (self.tune_blocks < 0 or self.tune_blocks * 2 % 1):
            raise ValueError(f"FREEZE.tune_blocks is {self.tune_blocks}: it must be 0, 0.5, 1, 1.5 ... or all")


@dataclass(frozen=True, kw_only=True)
class FinetuneHeadSettings:
    """CLASSIFIER of fine-tuning.

    Args:
        pool: `mean` of the patch tokens, or the `class` token.
        norm: put a new LayerNorm before the linear layer.
        init_std: standard deviation of the linear layer's initial weights. Source: MAE, main_finetune.py (2e-5); SimMIM
            (0.02 for Swin, 2e-5 for ViT).
    """

    pool: Literal["mean", "class"] = "mean"
    norm: bool = True
    init_std: float = 2e-5

    def __post_init__(self) -> None:
        at_least("CLASSIFIER", 0, init_std=self.init_std)


@dataclass(frozen=True, kw_only=True)
class ProbeHeadSettings:
    """CLASSIFIER of a linear probe. Source: MAE, main_linprobe.py (class token, 0.01, one rate).

    Differs from: `mean` averages the tokens after the encoder's norm; MAE normalises the mean of the tokens instead.

    Args:
        pool: the `class` token, the `mean` of the patch tokens, or `both`, concatenated.
        init_std: standard deviation of the initial weights.
        rates: factors on the learning rate. Each trains its own linear layer, all on one forward pass.
    """

    pool: Literal["mean", "class", "both"] = "class"
    init_std: float = 0.01
    rates: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        at_least("CLASSIFIER", 0, init_std=self.init_std)
        if not self.rates or min(self.rates) <= 0 or len(set(self.rates)) < len(self.rates):
            raise ValueError(f"CLASSIFIER.rates is {list(self.rates)}: one or more different positive factors")
