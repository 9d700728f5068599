"""Criteria: what compares scores with labels, and turns scores into answers."""

from mim.criteria.base import Criterion, TrainingLabels

__all__ = ["Criterion", "TrainingLabels"]
