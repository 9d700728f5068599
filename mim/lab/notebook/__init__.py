"""Notebook: comparisons and sheets of reconstructions from Python, as objects that a notebook shows."""

from mim.lab.notebook.comparison import ComparedRuns, compare
from mim.lab.notebook.reconstruction import Reconstructed, reconstruct

__all__ = ["ComparedRuns", "Reconstructed", "compare", "reconstruct"]
