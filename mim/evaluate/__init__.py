"""Evaluating a checkpoint: its encoder by neighbours, logistic regression, patches and retrieval, its classifier by
accuracy.
"""

from mim.evaluate.classifier import classify, predict
from mim.evaluate.corruptions import CorruptionSettings, corruptions
from mim.evaluate.dense import DenseSettings, dense
from mim.evaluate.encoder import features, knn, logistic
from mim.evaluate.patches import PatchSettings
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
