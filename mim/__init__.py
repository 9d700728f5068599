"""Masked image modeling: masker, encoder, head, target and loss are parts; one engine trains any combination."""

from mim.build import build_classifier, build_model
from mim.config.load import load_config
from mim.convert import load_encoder
from mim.data import Source
from mim.encoders import Encoder
from mim.engine.optim import Optimizer
from mim.errors import ConfigError
from mim.heads import Head
from mim.losses import Loss
from mim.maskers import Masker
from mim.model import MaskedImageModel
from mim.readouts.classifier import Classifier
from mim.structures import EncoderSpec, Features, ImageSpec, Output, PatchMask, Prediction, TargetSpec
from mim.targets import Target

__version__ = "0.1.0"

__all__ = [
    "Classifier",
    "ConfigError",
    "Encoder",
    "EncoderSpec",
    "Features",
    "Head",
    "ImageSpec",
    "Loss",
    "MaskedImageModel",
    "Masker",
    "Optimizer",
    "Output",
    "PatchMask",
    "Prediction",
    "Source",
    "Target",
    "TargetSpec",
    "build_classifier",
    "build_model",
    "load_config",
    "load_encoder",
]
