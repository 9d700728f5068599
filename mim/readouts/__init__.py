"""Readouts: from an encoder's features to an answer."""

from mim.readouts.base import Readout
from mim.readouts.predictor import Predictor

__all__ = ["Predictor", "Readout"]
