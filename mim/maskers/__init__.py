"""Maskers choose which cells of an image are hidden. A new masker is a file here, or a class in your own package."""

from mim.maskers.base import Masker
from mim.maskers.block import Block
from mim.maskers.grid import Grid
from mim.maskers.inverse_block import InverseBlock
from mim.maskers.multi_block import MultiBlock
from mim.maskers.random import Random
from mim.maskers.semantic import Semantic

__all__ = ["Block", "Grid", "InverseBlock", "Masker", "MultiBlock", "Random", "Semantic"]
