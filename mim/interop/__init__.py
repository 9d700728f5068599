"""Interop: weights from other code bases, and for them. A new format is a file here.

A file is tried against the formats in the order of their import: timm comes after mae and simmim, whose files have
names like its own.
"""

from mim.interop.formats import ModelWeights, WeightsFormat, WriteReport, read
from mim.interop.mae import MAE
from mim.interop.native import Native
from mim.interop.simmim import SimMIM
from mim.interop.timm import Timm
from mim.interop.transformers import Transformers

__all__ = ["MAE", "ModelWeights", "Native", "SimMIM", "Timm", "Transformers", "WeightsFormat", "WriteReport", "read"]
