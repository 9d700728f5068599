"""Targets are what a head predicts. A new target is a file here, or a class in your own package."""

from mim.targets.base import Target
from mim.targets.pixels import Pixels

__all__ = ["Pixels", "Target"]
