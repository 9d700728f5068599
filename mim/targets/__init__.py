"""Targets are what a head predicts. A new target is a file here, or a class in your own package."""

from mim.targets.base import FrozenNetwork, Target
from mim.targets.clusters import Clusters
from mim.targets.follower import Follower
from mim.targets.fourier import Fourier
from mim.targets.hog import HOG
from mim.targets.lowpass import Lowpass
from mim.targets.pixels import Pixels
from mim.targets.teacher import Teacher

__all__ = ["HOG", "Clusters", "Follower", "Fourier", "FrozenNetwork", "Lowpass", "Pixels", "Target", "Teacher"]
