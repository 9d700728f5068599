"""Evaluating a checkpoint: its encoder by neighbours, logistic regression, patches and retrieval, its readout by the
metrics of its labels.
"""

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
    "features",
    "knn",
    "logistic",
    "predict",
    "retrieval",
]
