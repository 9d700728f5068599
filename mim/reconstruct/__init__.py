"""Reconstruct: what pretraining runs make of images, of any images, under any mask, side by side."""

from mim.reconstruct.images import Shown, held_out_images, images_of
from mim.reconstruct.masks import MaskChoice, Masks
from mim.reconstruct.models import Opened, open_run
from mim.reconstruct.pages import held_out_sheets
from mim.reconstruct.side_by_side import Reconstructed, reconstruct

__all__ = [
    "MaskChoice",
    "Masks",
    "Opened",
    "Reconstructed",
    "Shown",
    "held_out_images",
    "held_out_sheets",
    "images_of",
    "open_run",
    "reconstruct",
]
