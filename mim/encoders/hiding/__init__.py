"""The ways in which a backbone of timm leaves hidden cells out.

A new way, or one for another architecture, is a file here with a subclass of `Way`, named in `WAYS` of find.py.
"""

from mim.encoders.hiding.base import Way
from mim.encoders.hiding.find import find_way

__all__ = ["Way", "find_way"]
