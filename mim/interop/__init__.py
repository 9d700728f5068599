"""Interop: weights from elsewhere, and to elsewhere. A new format is a file here.

Formats are tried in the order of their import: timm's comes behind those whose files look like its own.
"""

from mim.interop.formats import ModelWeights, WeightsFormat, WriteReport, read
from mim.interop.mae import MAE
from mim.interop.native import Native
from mim.interop.simmim import SimMIM
from mim.interop.timm import Timm
from mim.interop.transformers import Transformers

__all__ = ["MAE", "WeightsFormat", "Native", "SimMIM", "Timm", "Transformers", "ModelWeights", "WriteReport", "read"]
