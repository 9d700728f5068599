"""Readouts: from an encoder's features to an answer."""

from mim.readouts.classifier import Classifier

__all__ = ["Classifier"]
