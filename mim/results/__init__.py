"""Results: what calls from Python return, as values and as a part of a notebook."""

from mim.results.card import Card, CardPicture, CardTable
from mim.results.chart import Curve
from mim.results.evaluation import EvaluationResult
from mim.results.run import RunResult

__all__ = ["Card", "CardPicture", "CardTable", "Curve", "EvaluationResult", "RunResult"]
