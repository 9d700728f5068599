"""Evaluating a checkpoint: its encoder by nearest neighbours and logistic regression, its classifier by accuracy."""

from mim.evaluate.classifier import classify, predict
from mim.evaluate.encoder import features, knn, logistic

__all__ = ["classify", "features", "knn", "logistic", "predict"]
