"""The settings of tasks: each key with its meaning, its default and its range. No torch here."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from mim.io.checks import at_least, shares
from mim.io.formatting import printable

INHERITED = r"ENCODER\.\w+|DATA\.(channels|image_size|mean|std)"
COMPARED = rf"{INHERITED}|HEAD\.\w+|TARGET\.(\d+\.)?\w+"


@dataclass(frozen=True, kw_only=True)
class InitSettings:
    """INIT: the weights that a run starts from.

    Keys of ENCODER (but `hidden` and `drop_path`), DATA.channels, image_size, mean and std that the config does not set
    are taken from the model of these weights, and PLUGINS are added. One that the config sets otherwise is an error,
    unless weights are resized for it (DATA.image_size, ENCODER.window, pretrained_windows) or compute the same
    (ENCODER.norm, positions, bias, layer_scale). DATA.mean and std `estimate` are taken as well.

    Args:
        checkpoint: a run folder (its best checkpoint, or its last) or a checkpoint of this toolkit, a file of MAE,
            SimMIM or timm, or a folder of transformers; empty for random weights. Also a file of weights under the
            names of ENCODER, such as one of yours.
        parts: `encoder`, and the head begins anew; or `model`, in pretraining alone: the head and the target's trained
            weights come along, from a run, mae_pretrain_*_full.pth or SimMIM's pretraining files, so that training
            goes on from their loss. The optimizer begins anew; `--extend` keeps it.
        take: keys, such as `ENCODER.width`, or sections, ENCODER or DATA, that are taken from the checkpoint even where
            the file sets them, which is then for random weights. Keys of the command line stay.
        keep: keys, such as `ENCODER.heads`, that stay as the config has them, otherwise than the checkpoint; with
            `parts: model` also keys of HEAD and TARGET (of a list: `TARGET.0.normalize`).
        adapt_channels: adapt the first layer to another DATA.channels: weights are summed for one channel, or repeated
            for more, times old / new channels. Source: timm, adapt_input_conv.
        leave_out: how names in the file begin that are left out, where a frozen encoder would refuse them.
    """

    checkpoint: str = ""
    parts: Literal["encoder", "model"] = "encoder"
    take: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    adapt_channels: bool = False
    leave_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, keys, allowed in (("take", self.take, rf"ENCODER|DATA|{INHERITED}"), ("keep", self.keep, COMPARED)):
            wrong = [key for key in keys if not re.fullmatch(allowed, key)]
            if wrong:
                raise ValueError(
                    f"INIT.{name} names {printable(wrong[0])}: it may name DATA.channels, DATA.image_size, DATA.mean, "
                    f"DATA.std and keys of ENCODER{', or ENCODER and DATA' if name == 'take' else ', HEAD and TARGET'}"
                )
        if self.parts == "model" and not self.checkpoint:
            raise ValueError(
                "INIT.parts is model, and INIT.checkpoint is empty: name the run or the file to go on from"
            )
        if not all(self.leave_out):
            raise ValueError("INIT.leave_out has an empty name, with which all names begin")


@dataclass(frozen=True, kw_only=True)
class TargetSettings:
    """TARGET: what all targets have.

    Args:
        weight: factor of this target's loss in the sum; above 0.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"TARGET.weight is {self.weight}: it must be above 0 and finite")


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
        confusion: draw the pictures of an evaluation: the confusion matrix, of one class an image the reliability
            diagram, and of masks a sheet of eight images with their true and predicted masks.
        resamples: of the held-out images, for the 95% interval of each metric; 0 for no intervals. Source: Efron and
            Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (1,000).
    """

    every_epochs: int = 1
    at_start: bool = False
    samples: int = 0
    crop_pct: float = 1.0
    confusion: bool = True
    resamples: int = 1000

    def __post_init__(self) -> None:
        at_least("EVALUATE", 0, every_epochs=self.every_epochs, samples=self.samples, resamples=self.resamples)
        shares("EVALUATE", crop_pct=self.crop_pct)


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
        keep_features: where augmentation leaves images the same in each epoch (AUGMENT.crop centre), compute the
            encoder's features of all images before the first step, keep them in files and train on these.
        features: folder of these files, which several probes may share: what has the same weights, images and
            preprocessing is found there again. Empty for the run folder.
    """

    rates: tuple[float, ...] = (1.0,)
    weight_decays: tuple[float, ...] = ()
    choose_share: float = 0.1
    keep_features: bool = True
    features: str = ""

    def __post_init__(self) -> None:
        if not self.rates or min(self.rates) <= 0 or len(set(self.rates)) < len(self.rates):
            raise ValueError(f"PROBE.rates is {list(self.rates)}: one or more different positive factors")
        decays = self.weight_decays
        if min(decays, default=0) < 0 or len(set(decays)) < len(decays):
            raise ValueError(f"PROBE.weight_decays is {list(decays)}: different numbers, at least 0")
        if not 0 <= self.choose_share < 1:
            raise ValueError(f"PROBE.choose_share is {self.choose_share}: it is a share, from 0 to below 1")
