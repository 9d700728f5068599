"""Sheets of what pretraining runs predict, for any images, under any mask, side by side."""

from mim.lab.reconstruct.images import ImageSet, held_out_images, images_from_files
from mim.lab.reconstruct.masks import MaskChoice
from mim.lab.reconstruct.models import LoadedRun, load_run
from mim.lab.reconstruct.sheet import ReconstructionSheet, reconstruction_sheet

__all__ = [
    "ImageSet",
    "LoadedRun",
    "MaskChoice",
    "ReconstructionSheet",
    "held_out_images",
    "images_from_files",
    "load_run",
    "reconstruction_sheet",
]
