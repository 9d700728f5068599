"""The settings of FREEZE and PROBE: each key with its meaning, its default and its range. No torch here."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class FreezeSettings:
    """FREEZE: the part of the encoder that fine-tuning trains. Source: MAE, section 4.3.

    Args:
        tune_blocks: number of the encoder's last blocks to train, with the layers above them: 0 trains only the
            readout, half a block is its MLP, `all` trains everything.
    """

    tune_blocks: float | Literal["all"] = "all"

    def __post_init__(self) -> None:
        if self.tune_blocks != "all" and (self.tune_blocks < 0 or self.tune_blocks * 2 % 1):
            raise ValueError(f"FREEZE.tune_blocks is {self.tune_blocks}: it must be 0, 0.5, 1, 1.5 ... or all")


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """PROBE: the settings that a probe trains side by side, on one forward pass of the frozen encoder.

    Each of READOUT is trained under each rate and each weight decay. Source: V-JEPA 2 (arXiv:2506.09985), 21 attentive
    probes; MAE, main_linprobe.py, one linear layer.

    Args:
        rates: factors on the learning rate.
        weight_decays: weight decays; none for that of OPTIMIZER.
        choose_share: share of the training images, from 0 to below 1, that chooses among several settings. They are not
            trained on, and the choice is reported on the held-out images. 0 chooses on the held-out images themselves,
            which flatters. One setting needs no choice, and is trained on all images.
    """

    rates: tuple[float, ...] = (1.0,)
    weight_decays: tuple[float, ...] = ()
    choose_share: float = 0.1

    def __post_init__(self) -> None:
        if not self.rates or min(self.rates) <= 0 or len(set(self.rates)) < len(self.rates):
            raise ValueError(f"PROBE.rates is {list(self.rates)}: one or more different positive factors")
        decays = self.weight_decays
        if min(decays, default=0) < 0 or len(set(decays)) < len(decays):
            raise ValueError(f"PROBE.weight_decays is {list(decays)}: different numbers, at least 0")
        if not 0 <= self.choose_share < 1:
            raise ValueError(f"PROBE.choose_share is {self.choose_share}: it is a share, from 0 to below 1")
