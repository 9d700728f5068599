"""Masked image modeling: masker, encoder, head, target and loss are parts; one engine trains any combination.

Each name is imported when it is first used, so that `import mim` does not import torch. `evaluate` is a package that
can be called.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mim.build import build_model, build_predictor, load_config
    from mim.build.encoders import load_encoder
    from mim.criteria import Criterion
    from mim.data.augmentations.base import Augmentation
    from mim.data.augmentations.geometric import GeometricAugmentation
    from mim.data.augmentations.values import ValueAugmentation
    from mim.data.decoding.broken import BrokenImage
    from mim.data.sources.base import Source
    from mim.encoders import Encoder
    from mim.encoders.attention import attention_maps
    from mim.engine.callbacks import Callback
    from mim.engine.optim import Optimizer
    from mim.engine.protocol import Report
    from mim.engine.schedule import Schedule
    from mim.engine.trackers.base import RunProgress
    from mim.errors import ConfigError, RunInterrupted
    from mim.evaluate import CallablePackage
    from mim.heads import Head
    from mim.lab.notebook import compare, reconstruct
    from mim.losses import Loss
    from mim.maskers import Masker
    from mim.model import MaskedImageModel
    from mim.pretrained import load_model
    from mim.readouts import Predictor, Readout
    from mim.results import RunResult
    from mim.run import train
    from mim.structures import EncoderSpec, Features, ImageSpec, LabelSpec, Output, PatchMask, Prediction, TargetSpec
    from mim.targets import FrozenNetwork, Target

    evaluate: CallablePackage

__version__ = "0.2.0.dev0"
DISTRIBUTION = "mim-toolkit"  # mim_toolkit tells this package by it from another one named mim, such as openmim

MODULES = {  # where each public name lives
    "mim.build": ("build_model", "build_predictor", "load_config"),
    "mim.build.encoders": ("load_encoder",),
    "mim.criteria": ("Criterion",),
    "mim.data.augmentations.base": ("Augmentation",),
    "mim.data.augmentations.geometric": ("GeometricAugmentation",),
    "mim.data.augmentations.values": ("ValueAugmentation",),
    "mim.data.decoding.broken": ("BrokenImage",),
    "mim.data.sources.base": ("Source",),
    "mim.encoders": ("Encoder",),
    "mim.encoders.attention": ("attention_maps",),
    "mim.engine.callbacks": ("Callback",),
    "mim.engine.optim": ("Optimizer",),
    "mim.engine.protocol": ("Report",),
    "mim.engine.schedule": ("Schedule",),
    "mim.engine.trackers.base": ("RunProgress",),
    "mim.errors": ("ConfigError", "RunInterrupted"),
    "mim.heads": ("Head",),
    "mim.lab.notebook": ("compare", "reconstruct"),
    "mim.losses": ("Loss",),
    "mim.maskers": ("Masker",),
    "mim.model": ("MaskedImageModel",),
    "mim.pretrained": ("load_model",),
    "mim.readouts": ("Predictor", "Readout"),
    "mim.results": ("RunResult",),
    "mim.run": ("train",),
    "mim.structures": (
        "EncoderSpec",
        "Features",
        "ImageSpec",
        "LabelSpec",
        "Output",
        "PatchMask",
        "Prediction",
        "TargetSpec",
    ),
    "mim.targets": ("FrozenNetwork", "Target"),
}
PACKAGES = ("evaluate",)  # public packages of the same name, which can be called
__all__ = sorted([*PACKAGES, *(name for names in MODULES.values() for name in names)])


def __getattr__(name: str) -> Any:
    if name in PACKAGES:
        return importlib.import_module(f"mim.{name}")
    for module, names in MODULES.items():
        if name in names:
            value = getattr(importlib.import_module(module), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'mim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
