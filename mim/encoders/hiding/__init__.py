"""The ways in which a backbone of timm leaves hidden cells out.

A new way, or one for another architecture, is a file here with a subclass of `Way`, named in `WAYS`.
"""

from mim.encoders.hiding.base import Way
from mim.encoders.hiding.find import find_way, possible_ways

__all__ = ["Way", "find_way", "possible_ways"]
