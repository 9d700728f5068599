"""Evaluating a checkpoint: its encoder by neighbours, logistic regression, patches and retrieval, its readout by the
metrics of its labels.

The package can be called, `mim.evaluate(run, what, ...)`, as its function `evaluate`. A function of that name in `mim`
would be replaced by the package as soon as a module of it is imported.
"""

import sys
from types import ModuleType

from mim.evaluate.call import evaluate
from mim.evaluate.classify import classify
from mim.evaluate.corruptions import CorruptionSettings, corruptions
from mim.evaluate.dense import DenseSettings, dense
from mim.evaluate.encoder import features, knn, logistic
from mim.evaluate.patches import PatchSettings
from mim.evaluate.predict import predict
from mim.evaluate.retrieval import RetrievalSettings, retrieval

__all__ = [
    "CorruptionSettings",
    "DenseSettings",
    "PatchSettings",
    "RetrievalSettings",
    "classify",
    "corruptions",
    "dense",
    "evaluate",
    "features",
    "knn",
    "logistic",
    "predict",
    "retrieval",
]


class CallablePackage(ModuleType):
    """A package that is called as its function `evaluate`; Python looks for `__call__` in the class of an object."""

    __call__ = staticmethod(evaluate)


sys.modules[__name__].__class__ = CallablePackage
