"""Reconstruct: what pretraining runs make of images, of any images, under any mask, side by side."""

from mim.lab.reconstruct.images import Shown, held_out_images, images_of
from mim.lab.reconstruct.masks import MaskChoice, Masks
from mim.lab.reconstruct.models import LoadedRun, open_run
from mim.lab.reconstruct.side_by_side import Reconstructed, reconstruct

__all__ = [
    "LoadedRun",
    "MaskChoice",
    "Masks",
    "Reconstructed",
    "Shown",
    "held_out_images",
    "images_of",
    "open_run",
    "reconstruct",
]
